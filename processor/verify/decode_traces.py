"""The audit's reading of Zipkin's and Jaeger's spans."""

import base64
import binascii
import contextlib
import json
from typing import Any

import orjson

from tokenometer.processor.verify.decode_json import BAD
from tokenometer.processor.verify.decode_spans import INTEGER, SPAN_NAMES, USAGE, BadRecord, Span, add_text, time_of


def zipkin(text: bytes) -> "Span | bytes":
    try:
        record = _loaded(text)
        span = Span()
        span.trace = add_text(span, "trace_id", record.get("traceId"))
        span.id = add_text(span, "span_id", record.get("id"))
        span.parent = add_text(span, "parent_span_id", record.get("parentId"))
        add_text(span, "name", record.get("name"))
        kind = record.get("kind")
        add_text(span, "kind", kind.translate(_LOWER) if isinstance(kind, str) else kind)
        _microseconds(span, record.get("timestamp"), record.get("duration"))
        tags = record.get("tags")
        if tags is not None and not isinstance(tags, dict):
            return BAD
        for key, value in _said(tags):
            _tag(span, key, value)
        endpoint = record.get("localEndpoint")
        if endpoint is not None and not isinstance(endpoint, dict):
            return BAD
        add_text(span, "resource.service.name", (endpoint or {}).get("serviceName"))
        return span
    except BadRecord:
        return BAD


_LOWER = {code: code + 32 for code in range(ord("A"), ord("Z") + 1)}


def jaeger(text: bytes) -> "Span | bytes":
    try:
        record = _loaded(text)
        span = Span()
        span.trace = _jaeger_id(span, "trace_id", _either(record, "traceId", "traceID"))
        span.id = _jaeger_id(span, "span_id", _either(record, "spanId", "spanID"))
        span.parent = _jaeger_id(span, "parent_span_id", _cause(record.get("references")))
        add_text(span, "name", record.get("operationName"))
        start = record.get("startTime")
        if isinstance(start, str):
            span.add("start_time", start)
        else:
            _microseconds(span, start, record.get("duration"))
        _jaeger_tags(span, record.get("tags"), "")
        process = record.get("process")
        if process is not None:
            if not isinstance(process, dict):
                return BAD
            _jaeger_tags(span, process.get("tags"), "resource.")
            add_text(span, "resource.service.name", process.get("serviceName"))
        return span
    except BadRecord:
        return BAD


def _loaded(text: bytes) -> dict[str, Any]:
    try:
        record = orjson.loads(text)
    except orjson.JSONDecodeError:
        raise BadRecord from None
    if not isinstance(record, dict):
        raise BadRecord
    # Where it is deeper than Python's own reader goes, a name that is there twice is lost.
    with contextlib.suppress(RecursionError):
        record = json.loads(text, object_pairs_hook=_Object, parse_int=_integer)
    found: dict[str, Any] = record
    return found


class _Object(dict[str, Any]):
    """An object, and its members as often as they were said: a name that is there twice is for the judge to see."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.pairs = pairs


def _said(tags: Any) -> list[tuple[str, Any]]:
    return tags.pairs if isinstance(tags, _Object) else list((tags or {}).items())


def _integer(text: str) -> int | float:
    number = int(text)
    return number if -(1 << 63) <= number < 1 << 64 else float(text)


def _either(record: dict[str, Any], first: str, second: str) -> Any:
    return record.get(second) if record.get(first) is None else record[first]


def _microseconds(span: Span, start: Any, duration: Any) -> None:
    def usable(found: Any) -> bool:
        return type(found) is int and 0 <= found < 1 << 52

    if start is None:
        return
    if not usable(start):
        span.add("start_time", start)
        return
    span.add("start_time", time_of(start * 1000))
    if usable(duration):
        span.add("end_time", time_of((start + duration) * 1000))


def _tag(span: Span, key: str, value: Any, prefix: str = "") -> None:
    if prefix or key not in SPAN_NAMES:
        span.add(prefix + key, value)
        span.usage |= not prefix and key.startswith(USAGE)


def _cause(references: Any) -> Any:
    if references is None:
        return None
    if not isinstance(references, list):
        raise BadRecord
    found = None
    for reference in references:
        if not isinstance(reference, dict):
            raise BadRecord
        if found is None and reference.get("refType") in (None, 0, "CHILD_OF"):
            found = _either(reference, "spanId", "spanID")
    return found


def _jaeger_id(span: Span, name: str, found: Any) -> str:
    if isinstance(found, str) and len(found) in (12, 24) and found.endswith("="):
        try:
            span.add(name, base64.b64decode(found, validate=True).hex())
            return found
        except (binascii.Error, ValueError):
            pass
    return add_text(span, name, found)


def _jaeger_tags(span: Span, tags: Any, prefix: str) -> None:
    if tags is None:
        return
    if not isinstance(tags, list):
        raise BadRecord
    types = ("STRING", "BOOL", "INT64", "FLOAT64", "BINARY")
    for tag in tags:
        if not isinstance(tag, dict) or not isinstance(tag.get("key"), str):
            raise BadRecord
        value = tag.get("value")
        integer = value is not None and tag.get("type") == "int64"
        if value is None:
            kind = tag.get("vType")
            which = types.index(kind) if kind in types else kind if kind in range(5) and type(kind) is int else 0
            names = ("vStr", "vBool", "vInt64", "vFloat64", "vBinary")
            value = tag.get(names[which]) if kind is None or kind in types or kind in range(5) else ""
            if value is None:
                value = ("", False, 0, 0, "")[which]
            integer = which == 2
        if integer and isinstance(value, str) and INTEGER.fullmatch(value):
            value = orjson.Fragment(value)
        _tag(span, tag["key"], value, prefix)
