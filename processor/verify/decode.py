"""The audit's own decoder: the value of a message into lines, in plain Python, one message at a time.

It shares no code with `processor/intake` and keeps the same promises: a message gives the same records in the same
order, and the same reason where it gives none. It is slow on purpose: each rule is written where it can be read.
"""

import base64
import binascii
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import orjson
import zstandard

from tokenometer.processor.verify import decode_binary, decode_spans, decode_traces
from tokenometer.processor.verify.decode_json import BAD, BLANK, Misread, is_json, member, opened_string, split
from tokenometer.schemas.value import Value

BYTES_MAX = 64 << 20
_OPENERS_MAX = 4
_GZIP_MEMBERS_MAX = 64


class Decoded(NamedTuple):
    """lines: records, without their newlines. failure: why there is only a line that cannot be read."""

    lines: list[bytes]
    failure: str | None = None


class Schemas(Protocol):
    """Of a registry, by id or GUID."""

    def __getitem__(self, reference: int | str, /) -> str | bytes:
        """Raises LookupError where there is none."""


class AuditDecoder:
    """schema: the content of `value.schema`'s file. limit: bytes of an opened value and of one message's lines."""

    def __init__(
        self, value: Value, schemas: Schemas | None = None, schema: bytes | None = None, limit: int = BYTES_MAX
    ) -> None:
        self._value, self._limit = value, min(limit, BYTES_MAX)
        self._binary = None
        if value.encoding in ("avro", "protobuf"):
            self._binary = decode_binary.reader(value, schemas, schema, self._limit)

    def __call__(
        self, value: bytes | None, key: bytes | None = None, headers: Sequence[tuple[str, bytes | None]] = ()
    ) -> Decoded:
        try:
            event = _binary_event(headers) if self._value.encoding == "cloudevents" else None
            if value is None and event is None:
                return Decoded([])
            opened = b"" if value is None else self._opened(value)
            if event is not None:
                opened = _structured(opened, event)
            members = self._members(key, headers)
            lines = self._lines(opened, headers)
            if self._value.encoding not in ("json", "debezium", "cloudevents"):
                lines = [self._finished(line, []) for line in lines]
            lines = [_with_members(line, members) for line in lines]
        except Misread as error:
            return Decoded([BAD], str(error))
        if self._value.encoding != "json" or self._transforms():
            if sum(map(len, lines)) + len(lines) > self._limit and max(map(len, lines), default=0) > 0:
                return Decoded([BAD], "too_large")
        return Decoded(lines)

    def _transforms(self) -> bool:
        value = self._value
        return bool(value.records or value.json_in or value.prefix or value.whole or value.key or value.headers)

    # --- Openers ---

    def _opened(self, value: bytes) -> bytes:
        for _ in range(_OPENERS_MAX):
            inner = self._opened_once(value)
            if inner is None or inner == value:
                return value
            value = inner
        if self._opened_once(value) not in (None, value):
            raise Misread("too_deep")
        return value

    def _opened_once(self, value: bytes) -> bytes | None:
        """None: nothing claims it."""
        encoding = self._value.encoding
        if value[:3] == b"\x1f\x8b\x08":
            return _gunzip(value, self._limit)
        if value[:4] == b"\x28\xb5\x2f\xfd":
            return _unzstd(value, self._limit)
        if encoding in ("avro", "protobuf"):
            return None
        if value[:3] == b"\xef\xbb\xbf":
            return value[3:]
        if value[:1] == b"\0" and len(value) >= 5:
            return _unframed(value[5:], encoding)
        if value[:1] == b'"' and not self._value.prefix:
            return _unquoted(value)
        return None

    # --- Lines ---

    def _lines(self, value: bytes, headers: Sequence[tuple[str, bytes | None]]) -> list[bytes]:
        if self._binary is not None:
            return self._binary(value, headers)
        if self._value.encoding == "otlp":
            return decode_spans.otlp(value)
        if self._value.encoding in ("zipkin", "jaeger"):
            read = decode_traces.zipkin if self._value.encoding == "zipkin" else decode_traces.jaeger
            return decode_spans.related([BAD if text is BAD else read(text) for text in self._elements(value)])
        if not self._transforms() and self._value.encoding == "json" and value[:1] != b"[":
            lines = value.split(b"\n")
            return lines if lines[-1] else lines[:-1]
        return [line for element in self._elements(value) for line in self._records(element)]

    def _elements(self, value: bytes) -> Iterator[bytes]:
        """Documents, and the elements of those that are arrays."""
        plain_array = self._value.encoding == "json" and not self._transforms()
        for document in [value] if self._value.whole or plain_array else value.split(b"\n"):
            yield from self._document(self._without_prefix(document))

    def _document(self, document: bytes) -> Iterator[bytes]:
        while document := document.strip(BLANK):
            if document[:1] != b"[":
                documents = [document] if self._value.whole else document.split(b"\n")
                yield from (found.strip(BLANK).replace(b"\n", b"\r") for found in documents if found.strip(BLANK))
                return
            elements, document = split(document)
            yield from elements

    def _without_prefix(self, document: bytes) -> bytes:
        at = 0
        pieces = self._value.prefix.encode().split(b"...") if self._value.prefix else []
        for number, piece in enumerate(pieces):
            found = document.find(piece, at)
            if found < 0 or (number == 0 and piece and found != at):
                return document
            at = found + len(piece)
        return document[at:]

    # --- Records of JSON ---

    def _records(self, element: bytes) -> Iterator[bytes]:
        if element is BAD:
            yield BAD
        elif self._value.encoding == "debezium":
            yield from self._changed_row(element)
        elif self._value.encoding == "cloudevents":
            yield self._finished(_with_decoded_data(element), [], extra=(("data",),))
        else:
            yield from self._elements_of(element)

    def _elements_of(self, document: bytes) -> Iterator[bytes]:
        number = 0
        for record, around, in_array in self._walked(document, self._value.records, []):
            if record is None:
                yield self._finished(document, [])
                continue
            finished = self._finished(record, around)
            if in_array and self._value.index and record[:1] == b"{":
                finished = _with_members(finished, b'"@index":%d,' % number)
                number += 1
            yield finished

    def _walked(
        self, element: bytes, path: Sequence[str], around: list[bytes], in_array: bool = False
    ) -> Iterator[tuple[bytes | None, list[bytes], bool]]:
        """Records, the objects around each, and whether it is in an array; None: the document, where a member of it is
        missing. Where the mapping reads documents, too, a null and an empty array count as missing."""
        may_be_document = self._value.document and path is not self._value.records and not in_array
        if may_be_document and (element[:4] == b"null" or (path[:1] == ("*",) and _is_empty_array(element))):
            yield None, [], False
        elif not path:
            yield element, around, in_array
        elif path is not self._value.records and element[:4] == b"null":
            return
        elif path[0] != "*":
            found = member(element, path[0])
            if found is None:
                yield (element if in_array else None), [], in_array
            else:
                yield from self._walked(found, path[1:], [element, *around], in_array)
        elif element[:1] != b"[":
            yield from self._walked(element, path[1:], around, in_array)
        else:
            for inner in split(element)[0]:
                if inner is BAD:
                    yield BAD, [], False
                else:
                    yield from self._walked(inner, path[1:], around, in_array=True)

    def _changed_row(self, element: bytes) -> Iterator[bytes]:
        payload = member(element, "payload")
        if payload is not None and payload[:4] == b"null":
            return
        event, around = element, list[bytes]()
        if payload is not None and payload[:1] == b"{":
            event, around = payload, [element]
        row = member(event, "after")
        if row is None:
            if member(event, "op") is None or member(event, "source") is None:
                yield self._finished(event, [])
        elif row[:1] == b"{":
            yield self._finished(row, [event, *around])
        elif row[:4] != b"null":
            yield self._finished(event, [])

    def _finished(self, record: bytes, around: list[bytes], extra: Sequence[tuple[str, ...]] = ()) -> bytes:
        """With strings opened that hold JSON, and with what is wanted of the objects around, nearest first."""
        if record[:1] != b"{":
            return record
        for path in (*extra, *(path for path in self._value.json_in if path not in extra)):
            record = opened_string(record, path)
        return _with_members(record, _outer(self._value.outer, around))

    # --- Beside the value ---

    def _members(self, key: bytes | None, headers: Sequence[tuple[str, bytes | None]]) -> bytes:
        members = b""
        if self._value.key and key is not None:
            members += _text_member("@key", key, "bad_key")
        for name in self._value.headers:
            contents = [content for header, content in headers if header == name and content is not None]
            if contents:
                members += _text_member(f"@header.{name}", contents[-1], "bad_header")
        return members


def _is_empty_array(element: bytes) -> bool:
    return element[:1] == b"[" and not split(element)[0]


def _text_member(name: str, content: bytes, reason: str) -> bytes:
    try:
        return orjson.dumps(name) + b":" + orjson.dumps(content.decode("utf-8")) + b","
    except UnicodeDecodeError:
        raise Misread(reason) from None


def _with_members(record: bytes, members: bytes) -> bytes:
    if not members or record[:1] != b"{":
        return record
    rest = record[1:]
    return b"{" + (members[:-1] if rest.lstrip(b" \t\r")[:1] == b"}" else members) + rest


def _outer(wanted: Sequence[tuple[str, ...]], around: list[bytes]) -> bytes:
    depths = {path: sum(key == "^" for key in path) for path in wanted}
    levels = min(max(depths.values(), default=0), len(around))
    text = b""
    for level in range(levels, 0, -1):
        keys = dict.fromkeys(path[depth] for path, depth in depths.items() if depth == level and depth < len(path))
        inside = [
            orjson.dumps(key) + b":" + value
            for key in keys
            if (value := member(around[level - 1], key)) is not None and is_json(value)
        ]
        text = b'"^":{' + b",".join([*inside, *([text[:-1]] if text else [])]) + b"},"
    return text


# --- Openers ---


def _gunzip(value: bytes, limit: int) -> bytes:
    found = b""
    for _ in range(_GZIP_MEMBERS_MAX):
        stream = zlib.decompressobj(zlib.MAX_WBITS | 16)
        try:
            found += stream.decompress(value, limit + 1 - len(found))
        except zlib.error:
            raise Misread("bad_compression") from None
        if len(found) > limit:
            raise Misread("too_large")
        if not stream.eof:
            raise Misread("bad_compression")
        value = stream.unused_data.lstrip(b"\0")
        if not value:
            return found
    raise Misread("bad_compression")


def _unzstd(value: bytes, limit: int) -> bytes:
    found = b""
    while value:
        frame = zstandard.ZstdDecompressor().decompressobj()
        left = value
        try:
            while left and not frame.eof:  # little by little: what comes out is bounded by what goes in
                found += frame.decompress(left[:1024])
                left = left[1024:]
                if len(found) > limit:
                    raise Misread("too_large")
        except zstandard.ZstdError:
            raise Misread("bad_compression") from None
        if not frame.eof:
            raise Misread("bad_compression")
        value = frame.unused_data + left
    return found


def _unframed(inner: bytes, encoding: str) -> bytes:
    if encoding == "otlp":
        return inner if inner[:1] in (b"{", b"") else inner[decode_binary.indexes(inner)[1] :]
    known = (b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"\xef\xbb\xbf")
    framed = inner[:1] == b"\0" and len(inner) >= 5
    if inner and inner[0] not in b'{["' + BLANK and not inner.startswith(known) and not framed:
        raise Misread("unknown_schema")
    return inner


def _unquoted(value: bytes) -> bytes:
    lines = []
    for line in value.split(b"\n"):
        if not line.strip():
            lines.append(b"")
            continue
        try:
            held = orjson.loads(line)
        except orjson.JSONDecodeError:
            return value
        if not isinstance(held, str) or held.lstrip(" \t\r\n")[:1] not in ("{", "[", '"'):
            return value
        lines.append(held.replace("\n", "\r").encode())
    return b"\n".join(lines)


# --- CloudEvents ---


def _binary_event(headers: Sequence[tuple[str, bytes | None]]) -> dict[str, bytes] | None:
    if all(name != "ce_specversion" for name, _ in headers):
        return None
    found = {name[3:]: content for name, content in headers if name.startswith("ce_") and content is not None}
    return {name: content for name, content in found.items() if name not in ("data", "data_base64")}


def _structured(value: bytes, attributes: Mapping[str, bytes]) -> bytes:
    parts = []
    if value:
        if not is_json(value):
            raise Misread("bad_encoding")
        parts.append(b'"data":' + value.replace(b"\n", b"\r"))
    for name, content in attributes.items():
        parts.append(_text_member(name, content, "bad_header")[:-1])
    return b"{" + b",".join(parts) + b"}"


def _with_decoded_data(event: bytes) -> bytes:
    encoded = member(event, "data_base64")
    if encoded is None or encoded[:1] != b'"' or member(event, "data") is not None:
        return event
    try:
        data = base64.b64decode(orjson.loads(encoded), validate=True).replace(b"\n", b"\r")
    except (orjson.JSONDecodeError, binascii.Error, ValueError):
        return event
    return _with_members(event, b'"data":' + data + b",") if is_json(data) else event
