"""Opens what needs no configuration, because no JSON object begins so: compression, a byte order mark, a Confluent
frame, a string that holds JSON. They nest; arrays are opened afterwards, in C++.
"""

import zlib
from collections.abc import Callable
from io import BytesIO
from typing import Any

import orjson
import pyarrow

from tokenometer.processor.intake import native

MESSAGE_BYTES_MAX = 64 << 20  # of an opened value, and of one message's lines; Kafka's own default limit is 1 MiB
NESTED_MAX = 4  # one in the other: a compressed frame of a string in a string is more than anybody writes
FRAME_BYTES = 5  # 00 and a schema's id, four bytes, big-endian
GZIP_MEMBERS_MAX = 64  # one after the other in a value; each costs a copy of what follows
_JSON_STARTS = b'{["' + b" \t\r\n"


Opener = Callable[[bytes, int], bytes]  # of a value and the limit of what may come out; raises Undecodable


class Undecodable(Exception):
    """A message cannot be read at all; the argument is the reason of its dead letter."""

    @property
    def reason(self) -> str:
        return str(self.args[0])


def claim(value: bytes) -> int:
    """The opener that claims one value, as `native.look` says it of many."""
    if value.startswith(b"\x1f\x8b\x08"):
        return native.GZIP
    if value.startswith(b"\x28\xb5\x2f\xfd"):
        return native.ZSTD
    if value.startswith(b"\xef\xbb\xbf"):
        return native.MARK
    if value.startswith(b"\0") and len(value) >= FRAME_BYTES:
        return native.FRAME
    return {b"[": native.ARRAY, b'"': native.TEXT}.get(value[:1], native.PLAIN)


def opened(value: bytes, limit: int, openers: dict[int, Opener]) -> bytes:
    """The value without what these openers take off. Raises Undecodable."""
    for _ in range(NESTED_MAX):
        opener = openers.get(claim(value))
        if opener is None:
            return value
        inner = opener(value, limit)
        if inner == value:
            return value
        value = inner
    if claim(value) in openers:
        raise Undecodable("too_deep")
    return value


def gunzip(value: bytes, limit: int) -> bytes:
    """Opens all members of a gzip file."""
    parts: list[bytes] = []
    left = limit
    while value:
        if len(parts) == GZIP_MEMBERS_MAX:
            raise Undecodable("bad_compression")
        member = zlib.decompressobj(wbits=31)
        try:
            parts.append(member.decompress(value, left + 1))
        except zlib.error:
            raise Undecodable("bad_compression") from None
        left -= len(parts[-1])
        if left < 0:
            raise Undecodable("too_large")
        if not member.eof:
            raise Undecodable("bad_compression")  # it ends early
        value = member.unused_data.lstrip(b"\0")  # a file may be padded with zeros
    return b"".join(parts)


def unzstd(value: bytes, limit: int) -> bytes:
    """Opens all frames. Memory is bounded by the limit and by libzstd's own limit of a window, 128 MiB."""
    parts, left = [], limit
    try:
        with pyarrow.CompressedInputStream(pyarrow.PythonFile(BytesIO(value), mode="r"), "zstd") as stream:
            while part := stream.read(min(left + 1, 1 << 20)):
                parts.append(part)
                left -= len(part)
                if left < 0:
                    raise Undecodable("too_large")
    except (OSError, pyarrow.ArrowException):
        raise Undecodable("bad_compression") from None
    return b"".join(parts)


def without_mark(value: bytes, limit: int) -> bytes:
    return value[3:]


def json_of_frame(value: bytes, limit: int) -> bytes:
    """Opens what a JSON serializer of a Schema Registry wrote, without its schema."""
    inner = value[FRAME_BYTES:]
    if inner and inner[0] not in _JSON_STARTS and claim(inner) == native.PLAIN:
        raise Undecodable("unknown_schema")  # Avro or protobuf, which cannot be read as JSON
    return inner


def otlp_of_frame(value: bytes, limit: int) -> bytes:
    """Protobuf has the place of its message in the schema after the schema's id."""
    inner = value[FRAME_BYTES:]
    return inner if inner[:1] in (b"{", b"") else inner[after_indexes(inner)[1] :]


def after_indexes(value: bytes, at: int = 0) -> tuple[list[int], int]:
    """The message indexes of a framed protobuf value: zigzag numbers, their count first; a lone 0 means [0]."""
    count, at = _zigzag(value, at)
    if not 0 <= count <= len(value):
        raise Undecodable("bad_encoding")
    indexes = []
    for _ in range(count):
        index, at = _zigzag(value, at)
        indexes.append(index)
    return indexes or [0], at


def _zigzag(value: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while at < len(value) and shift < 35:
        byte = value[at]
        at += 1
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return (number >> 1) ^ -(number & 1), at
    raise Undecodable("bad_encoding")


def json_of_string(value: bytes, limit: int) -> bytes:
    """Opens JSON in a JSON string, or one in each line. Other values stay as they are."""
    lines = value.split(b"\n")
    inner = [_held(line) if line.strip() else b"" for line in lines]
    return value if None in inner else b"\n".join(inner)  # type: ignore[arg-type]


def _held(line: bytes) -> bytes | None:
    try:
        held: Any = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(held, str) or not held.lstrip(" \t\r\n").startswith(("{", "[", '"')):
        return None
    return held.replace("\n", "\r").encode()


COMPRESSION: dict[int, Opener] = {native.GZIP: gunzip, native.ZSTD: unzstd}
JSON: dict[int, Opener] = {
    **COMPRESSION,
    native.MARK: without_mark,
    native.FRAME: json_of_frame,
    native.TEXT: json_of_string,
}
OTLP: dict[int, Opener] = {**JSON, native.FRAME: otlp_of_frame}
