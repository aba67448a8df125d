"""The audit's reading of OTLP, in JSON and protobuf, and what all spans have in common."""

import base64
import datetime
import json
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson

from tokenometer.processor.verify.decode_json import BAD, Misread, documents, is_json

_DEPTH_MAX = 64
SPAN_NAMES = {
    *("trace_id", "span_id", "parent_span_id", "name", "kind", "start_time", "end_time", "status", "status_message"),
    *("scope.name", "scope.version", "parent.has_usage", "child.has_usage"),
}
_LOG_NAMES = {
    *("time", "observed_time", "event_name", "severity", "body", "trace_id", "span_id", "scope.name", "scope.version"),
}
USAGE = ("gen_ai.usage.", "llm.token_count.", "llm.usage.")
_COUNTS = {
    **dict.fromkeys(("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens", "llm.token_count.prompt"), "input"),
    **dict.fromkeys(
        ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens", "llm.token_count.completion"), "output"
    ),
}
_COMPARED = re.compile(r"[0-9]{1,18}")  # a count that can be compared
_ANCESTORS_MAX = 64
_KINDS = ("", "internal", "server", "client", "producer", "consumer")
_STATUSES = ("", "ok", "error")
_STATUS_NAMES = ("UNSET", "OK", "ERROR")
_NANOSECONDS = re.compile(r"0|[1-9][0-9]{0,18}")
INTEGER = re.compile(r"-?(?:0|[1-9][0-9]*)")


class BadRecord(Exception):
    pass


@dataclass
class Span:
    """A line's members in order, each name as often as it was said, and how the span is related."""

    members: list[tuple[bytes, bytes]] = field(default_factory=list)
    trace: Any = ""
    id: Any = ""
    parent: Any = ""
    usage: bool = False

    def add(self, name: str, value: Any) -> None:
        self.members.append((orjson.dumps(name), orjson.dumps(value)))

    def add_raw(self, name: bytes, value: bytes) -> None:
        self.members.append((name, value))

    def line(self, relations: Sequence[str]) -> bytes:
        members = [*self.members, *((orjson.dumps(name), b"true") for name in relations)]
        return b"{" + b",".join(name + b":" + value for name, value in members) + b"}"


def related(spans: Sequence["Span | bytes"]) -> list[bytes]:
    """The lines of one message, each with what its parent and the spans below it say."""
    known: dict[Any, int] = {}
    for index, span in enumerate(spans):
        if isinstance(span, Span) and span.id:
            known.setdefault((span.trace, span.id), index)

    def parent_of(index: int) -> int | None:
        span = spans[index]
        if not isinstance(span, Span) or not span.parent or span.parent == span.id:
            return None
        return known.get((span.trace, span.parent))

    repeated = _repeated(spans, parent_of)
    lines = []
    for index, span in enumerate(spans):
        if not isinstance(span, Span):
            lines.append(span)
            continue
        parent = parent_of(index)
        holder = spans[parent] if parent is not None else None
        relations = ["parent.has_usage"] if isinstance(holder, Span) and holder.usage else []
        lines.append(span.line([*relations, *(["child.has_usage"] if index in repeated else [])]))
    return lines


def _repeated(spans: Sequence["Span | bytes"], parent_of: Callable[[int], int | None]) -> set[int]:
    """Spans whose tokens are those of spans below them."""
    calls = [_call_of(span) if isinstance(span, Span) and span.usage else None for span in spans]
    found: set[int] = set()
    for index, below in enumerate(calls):
        if below is None or not below.counts:
            continue
        above = parent_of(index)
        for _ in range(_ANCESTORS_MAX):
            if above is None or above == index:
                break
            holder = calls[above]
            if holder is None or _repeats(holder, below):
                found.add(above)
            above = parent_of(above)
    return found


class _Number(str):
    """A number of JSON, as it is written."""


class _Call(NamedTuple):
    """What a span says of one call. counts: by kind, as integers; None where the value is none that can be compared."""

    counts: dict[str, int | None]
    response_id: str


def _call_of(span: Span) -> _Call:
    counts: dict[str, int | None] = {}
    response_id = ""
    try:
        line = span.line([])
        said = json.loads(line, object_pairs_hook=list, parse_int=_Number, parse_float=_Number) if is_json(line) else []
    except RecursionError:
        said = []
    for name, value in said:
        if name in _COUNTS and isinstance(value, str):
            plain = "0" if value == "-0" and isinstance(value, _Number) else value
            counts[_COUNTS[name]] = int(plain) if _COMPARED.fullmatch(plain) else None
        elif name == "gen_ai.response.id":
            response_id = value if type(value) is str else ""
    return _Call(counts, response_id)


def _repeats(above: _Call, below: _Call) -> bool:
    """Whether the tokens of a span are those of the span below it."""
    if not above.counts.keys() <= below.counts.keys():
        return False
    if not above.response_id:
        return True
    if below.response_id:
        return above.response_id == below.response_id
    return above.counts == below.counts and None not in above.counts.values()


def time_of(ns: int) -> str:
    days, second = divmod(ns // 10**9, 86_400)
    year, month, day = _civil(days)
    return f"{year:04}-{month:02}-{day:02}T{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}.{ns % 10**9:09}Z"


def _civil(days: int) -> tuple[int, int, int]:
    date = datetime.date.fromordinal(719_163 + days)
    return date.year, date.month, date.day


# --- OTLP ---


def otlp(value: bytes) -> list[bytes]:
    """Raises Misread."""

    def json_spans() -> list[bytes]:
        return related([span for text in documents(value) for span in _json_message(text)])

    if value[:1] in (b"{", b" ", b"\t", b"\r") and value:
        return json_spans()
    try:
        return related(list(_proto_message(value)))
    except Misread:
        if value[:1] != b"\n":
            raise
        return json_spans()


def _json_message(text: bytes) -> Iterator["Span | bytes"]:
    try:
        top = orjson.loads(text)
    except orjson.JSONDecodeError:
        raise Misread("bad_encoding") from None
    _expect(isinstance(top, dict))
    signals = [name for name in ("resourceSpans", "resourceLogs") if name in top]
    _expect(len(signals) == 1 or not top)
    for signal in signals:
        logs = signal == "resourceLogs"
        for resource in _list(top[signal]):
            _expect(isinstance(resource, dict))
            of_resource = _described(resource.get("resource"), "resource.")
            for scope in _list(resource.get("scopeLogs" if logs else "scopeSpans")):
                _expect(isinstance(scope, dict))
                of_scope = _described(scope.get("scope"), "scope.")
                for record in _list(scope.get("logRecords" if logs else "spans")):
                    try:
                        span = (_json_log if logs else _json_span)(record)
                    except BadRecord:
                        yield BAD
                        continue
                    span.members += of_scope + of_resource
                    yield span


def _expect(holds: bool) -> None:
    if not holds:
        raise Misread("bad_encoding")


def _list(found: Any) -> list[Any]:
    _expect(found is None or isinstance(found, list))
    return found or []


def _described(head: Any, prefix: str) -> list[tuple[bytes, bytes]]:
    if head is None:
        return []
    _expect(isinstance(head, dict))
    span = Span()
    try:
        if prefix == "scope.":
            add_text(span, "scope.name", head.get("name"))
            add_text(span, "scope.version", head.get("version"))
        _expect(head.get("attributes") is None or isinstance(head["attributes"], list))
        taken = {"name", "version"} if prefix == "scope." else set()
        _attributes(span, head.get("attributes"), taken, prefix)
    except BadRecord:
        raise Misread("bad_encoding") from None
    return span.members


def _json_span(record: Any) -> Span:
    if not isinstance(record, dict):
        raise BadRecord
    span = Span()
    span.trace = add_text(span, "trace_id", record.get("traceId"))
    span.id = add_text(span, "span_id", record.get("spanId"))
    span.parent = add_text(span, "parent_span_id", record.get("parentSpanId"))
    add_text(span, "name", record.get("name"))
    _enumeration(span, "kind", record.get("kind"), "SPAN_KIND_", ("UNSPECIFIED", *map(str.upper, _KINDS[1:])), _KINDS)
    _json_time(span, "start_time", record.get("startTimeUnixNano"))
    _json_time(span, "end_time", record.get("endTimeUnixNano"))
    _attributes(span, record.get("attributes"), SPAN_NAMES)
    status = record.get("status")
    if status is not None:
        if not isinstance(status, dict):
            raise BadRecord
        _enumeration(span, "status", status.get("code"), "STATUS_CODE_", _STATUS_NAMES, _STATUSES)
        add_text(span, "status_message", status.get("message"))
    return span


def _json_log(record: Any) -> Span:
    if not isinstance(record, dict):
        raise BadRecord
    span = Span()
    _json_time(span, "time", record.get("timeUnixNano"))
    _json_time(span, "observed_time", record.get("observedTimeUnixNano"))
    add_text(span, "event_name", record.get("eventName"))
    add_text(span, "severity", record.get("severityText"))
    if record.get("body") is not None:
        span.add("body", _any_value(record["body"], 1))
    span.trace = add_text(span, "trace_id", record.get("traceId"))
    span.id = add_text(span, "span_id", record.get("spanId"))
    _attributes(span, record.get("attributes"), _LOG_NAMES)
    return span


def add_text(span: Span, name: str, found: Any) -> str:
    if found is None or found == "":
        return ""
    if not isinstance(found, str):
        raise BadRecord
    span.add(name, found)
    return found


def _is_number(found: Any) -> bool:
    return isinstance(found, (int, float)) and not isinstance(found, bool)


def _json_time(span: Span, name: str, found: Any) -> None:
    if found is None:
        return
    if not isinstance(found, str) and not _is_number(found):
        raise BadRecord
    digits = found if isinstance(found, str) else str(found) if isinstance(found, int) else ""
    if not _NANOSECONDS.fullmatch(digits):
        span.add(name, found)
    elif int(digits):
        span.add(name, time_of(int(digits)))


def _enumeration(span: Span, name: str, found: Any, prefix: str, names: Sequence[str], texts: Sequence[str]) -> None:
    if found is None:
        return
    known = None
    if isinstance(found, str):
        known = next((text for word, text in zip(names, texts, strict=True) if found == prefix + word), None)
    elif not _is_number(found):
        raise BadRecord
    elif isinstance(found, int) and 0 <= found < len(texts):
        known = texts[found]
    if known is None:
        span.add(name, found)
    elif known:
        span.add(name, known)


def _attributes(span: Span, found: Any, taken: set[str], prefix: str = "") -> None:
    if found is None:
        return
    if not isinstance(found, list):
        raise BadRecord
    for item in found:
        key, value = _key_and_value(item)
        value = _any_value(value, 1)
        if key in taken:
            continue
        span.add(prefix + key, value)
        span.usage |= not prefix and key.startswith(USAGE)


def _key_and_value(item: Any) -> tuple[str, Any]:
    if not isinstance(item, dict):
        raise BadRecord
    key = "" if item.get("key") is None else item["key"]
    if not isinstance(key, str):
        raise BadRecord
    return key, item.get("value")


def _any_value(found: Any, depth: int) -> Any:
    if found is None:
        return None
    if not isinstance(found, dict) or depth > _DEPTH_MAX:
        raise BadRecord
    kinds = ("stringValue", "boolValue", "doubleValue", "bytesValue", "intValue", "arrayValue", "kvlistValue")
    said = [kind for kind in kinds if found.get(kind) is not None]
    if len(said) > 1:
        raise BadRecord
    if not said:
        return None
    kind, value = said[0], found[said[0]]
    if kind == "intValue" and isinstance(value, str) and INTEGER.fullmatch(value):
        return orjson.Fragment(value)
    if kind not in ("arrayValue", "kvlistValue"):
        return value
    if not isinstance(value, dict) or not (value.get("values") is None or isinstance(value["values"], list)):
        raise BadRecord
    items = value.get("values") or []
    if kind == "arrayValue":
        return [_any_value(item, depth + 1) for item in items]
    pairs = [_key_and_value(item) for item in items]
    return _object((orjson.dumps(key), _any_value(inner, depth + 1)) for key, inner in pairs)


def _object(pairs: Any) -> orjson.Fragment:
    return orjson.Fragment(b"{" + b",".join(key + b":" + orjson.dumps(value) for key, value in pairs) + b"}")


# --- OTLP/protobuf ---


def fields(message: bytes, error: Callable[[], Exception], groups: bool = False) -> Iterator[tuple[int, int, Any]]:
    """Number, wire type and value of each field; raises what `error` makes where the message is malformed. groups: skip
    those of protobuf 2 and what is in them; else they are malformed."""
    at, end = 0, len(message)
    inside: list[int] = []  # the groups that are open

    def varint() -> int:
        nonlocal at
        number = 0
        for shift in range(0, 70, 7):
            if at >= end:
                raise error()
            byte = message[at]
            at += 1
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number & (1 << 64) - 1
        raise error()

    while at < end:
        tag = varint()
        if tag >> 32 or tag < 8:
            raise error()
        wire = tag & 7
        if wire == 0:
            number = varint()
            if not inside:
                yield tag >> 3, wire, number
            continue
        if groups and wire == 3 and len(inside) < 99:
            inside.append(tag >> 3)
            continue
        if wire == 4 and inside and inside.pop() == tag >> 3:
            continue
        size = varint() if wire == 2 else {1: 8, 5: 4}.get(wire)
        if size is None or at + size > end:
            raise error()
        at += size
        if not inside:
            yield tag >> 3, wire, message[at - size : at]
    if inside:
        raise error()


def _misread() -> Exception:
    return Misread("bad_encoding")


def _last(message: bytes, number: int, error: Callable[[], Exception]) -> bytes:
    found = b""
    for field_number, wire, value in fields(message, error):
        if field_number == number and wire == 2:
            found = value
    return found


def _each(message: bytes, number: int, error: Callable[[], Exception]) -> list[bytes]:
    return [value for field_number, wire, value in fields(message, error) if field_number == number and wire == 2]


def _proto_message(value: bytes) -> Iterator["Span | bytes"]:
    resources = _each(value, 1, _misread)
    _expect(bool(resources) or not value)
    for resource in resources:
        of_resource = Span()
        _proto_attributes(of_resource, _last(resource, 1, _misread), 1, "resource.", set(), _misread)
        for scope in _each(resource, 2, _misread):
            head = _last(scope, 1, _misread)
            of_scope = Span()
            _proto_text(of_scope, "scope.name", _last(head, 1, _misread))
            _proto_text(of_scope, "scope.version", _last(head, 2, _misread))
            _proto_attributes(of_scope, head, 3, "scope.", {b"name", b"version"}, _misread)
            for record in _each(scope, 2, _misread):
                try:
                    span = (_proto_log if _is_log(record) else _proto_span)(record)
                except BadRecord:
                    yield BAD
                    continue
                span.members += of_scope.members + of_resource.members
                yield span


def _is_log(record: bytes) -> bool:
    try:
        for number, wire, _ in fields(record, BadRecord):
            if number in (1, 2, 6, 11):
                return wire == {1: 1, 2: 0, 6: 2, 11: 1}[number]
    except BadRecord:
        pass
    return False


def _proto_fields(record: bytes) -> dict[tuple[int, int], Any]:
    return {(number, wire): value for number, wire, value in fields(record, BadRecord)}


def _proto_span(record: bytes) -> Span:
    last = _proto_fields(record)
    span = Span()
    span.trace = _proto_id(span, "trace_id", last.get((1, 2), b""))
    span.id = _proto_id(span, "span_id", last.get((2, 2), b""))
    span.parent = _proto_id(span, "parent_span_id", last.get((4, 2), b""))
    _proto_text(span, "name", last.get((5, 2), b""))
    _proto_enumeration(span, "kind", last.get((6, 0), 0), _KINDS)
    _proto_time(span, "start_time", last.get((7, 1)))
    _proto_time(span, "end_time", last.get((8, 1)))
    _proto_attributes(span, record, 9, "", {name.encode() for name in SPAN_NAMES}, BadRecord)
    status = _proto_fields(last.get((15, 2), b""))
    _proto_enumeration(span, "status", status.get((3, 0), 0), _STATUSES)
    _proto_text(span, "status_message", status.get((2, 2), b""))
    return span


def _proto_log(record: bytes) -> Span:
    last = _proto_fields(record)
    span = Span()
    _proto_time(span, "time", last.get((1, 1)))
    _proto_time(span, "observed_time", last.get((11, 1)))
    _proto_text(span, "event_name", last.get((12, 2), b""))
    _proto_text(span, "severity", last.get((3, 2), b""))
    if (5, 2) in last:
        span.add_raw(b'"body"', orjson.dumps(_proto_value(last[5, 2], 1, BadRecord)))
    _proto_id(span, "trace_id", last.get((9, 2), b""))
    _proto_id(span, "span_id", last.get((10, 2), b""))
    _proto_attributes(span, record, 6, "", {name.encode() for name in _LOG_NAMES}, BadRecord)
    return span


def _proto_id(span: Span, name: str, found: bytes) -> bytes:
    if found:
        span.add(name, found.hex())
    return found


def quoted(text: bytes) -> bytes:
    """A JSON string; bytes that are no UTF-8 stay as they are, so that the line is refused."""
    special = {0x22: b'\\"', 0x5C: b"\\\\"}
    escaped = [special.get(byte) or (b"\\u%04x" % byte if byte < 0x20 else bytes((byte,))) for byte in text]
    return b'"' + b"".join(escaped) + b'"'


def _proto_text(span: Span, name: str, found: bytes) -> None:
    if found:
        span.add_raw(orjson.dumps(name), quoted(found))


def _proto_enumeration(span: Span, name: str, found: int, texts: Sequence[str]) -> None:
    number = (found & 0xFFFFFFFF) - ((found & 0x80000000) << 1)
    if number:
        span.add(name, texts[number] if 0 < number < len(texts) else number)


def _proto_time(span: Span, name: str, found: bytes | None) -> None:
    if found is not None and (ns := int.from_bytes(found, "little")):
        span.add(name, time_of(ns))


def _proto_attributes(
    span: Span, message: bytes, number: int, prefix: str, taken: set[bytes], error: Callable[[], Exception]
) -> None:
    for item in _each(message, number, error):
        last = {n: value for n, wire, value in fields(item, error) if wire == 2}
        key = last.get(1, b"")
        value = _proto_value(last.get(2, b""), 1, error)
        if key in taken:
            continue
        span.add_raw(quoted(prefix.encode() + key), orjson.dumps(value))
        span.usage |= not prefix and key.startswith(tuple(name.encode() for name in USAGE))


_NOTHING: Any = None


def _proto_value(message: bytes, depth: int, error: Callable[[], Exception]) -> Any:
    if depth > _DEPTH_MAX:
        raise error()
    kinds = {1: 2, 2: 0, 3: 0, 4: 1, 5: 2, 6: 2, 7: 2}
    kind, value = 0, _NOTHING
    for number, wire, found in fields(message, error):
        if kinds.get(number) == wire:
            kind, value = number, found
    match kind:
        case 1:
            return orjson.Fragment(quoted(value))
        case 2:
            return bool(value)
        case 3:
            return value - (1 << 64) if value >> 63 else value
        case 4:
            return number_of(struct.unpack("<d", value)[0])
        case 5:
            return [_proto_value(item, depth + 1, error) for item in _each(value, 1, error)]
        case 6:
            items = [
                {n: inner for n, wire, inner in fields(item, error) if wire == 2} for item in _each(value, 1, error)
            ]
            return _object(
                (quoted(item.get(1, b"")), _proto_value(item.get(2, b""), depth + 1, error)) for item in items
            )
        case 7:
            return base64.b64encode(value).decode()
    return None


def number_of(value: float) -> int | float | str:
    if value != value:
        return "NaN"
    if value in (float("inf"), float("-inf")):
        return "Infinity" if value > 0 else "-Infinity"
    return int(value) if value == int(value) and -(2**63) < value < 2**63 else value
