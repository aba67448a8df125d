"""The parts of a message beside its value: keys and headers as members of records, CloudEvents in binary mode."""

from collections.abc import Iterable, Sequence

import orjson

from tokenometer.processor.intake.openers import Undecodable
from tokenometer.schemas.value import HEADER_PREFIX, KEY_MEMBER, Value

Headers = Sequence[tuple[str, bytes | None]]

_EVENT = "ce_"  # the prefix of a CloudEvents attribute in Kafka's binding, binary mode
_EVENT_MARK = "ce_specversion"
_GUID_HEADER = "__value_schema_id"  # of Confluent's serializers
_GUID_FRAME = 1  # the header's first byte; 16 bytes follow


def members(value: Value, key: bytes | None, headers: Headers) -> bytes:
    """The members, each with its comma, that the message's key and headers give every record of it: the last header of
    a name. Raises Undecodable where one of those that are asked for is not UTF-8."""
    found = b""
    if value.key and key is not None:
        found += _member(KEY_MEMBER, key, "bad_key")
    if value.headers:
        last = {name: content for name, content in headers if name in value.headers and content is not None}
        for name in value.headers:
            if name in last:
                found += _member(HEADER_PREFIX + name, last[name], "bad_header")
    return found


def _member(name: str, content: bytes, reason: str) -> bytes:
    try:
        return orjson.dumps(name) + b":" + orjson.dumps(content.decode()) + b","
    except UnicodeDecodeError:
        raise Undecodable(reason) from None


def schema_guid(headers: Headers) -> str | None:
    """The schema of the value, where a header names it instead of a frame."""
    for name, content in headers:
        if name == _GUID_HEADER and content and len(content) == 17 and content[0] == _GUID_FRAME:
            digits = content[1:].hex()
            return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
    return None


def is_binary_event(headers: Headers) -> bool:
    return any(name == _EVENT_MARK for name, _ in headers)


def structured(value: bytes | None, headers: Headers) -> bytes:
    """An event in binary mode as one in structured mode. Raises Undecodable."""
    parts = [b'"data":' + _json(value)] if value else []
    for name, content in _attributes(headers):
        parts.append(_member(name, content, "bad_header").rstrip(b","))
    return b"{" + b",".join(parts) + b"}"


def _attributes(headers: Headers) -> Iterable[tuple[str, bytes]]:
    found = {
        name[len(_EVENT) :]: content for name, content in headers if name.startswith(_EVENT) and content is not None
    }
    found.pop("data", None)
    found.pop("data_base64", None)
    return found.items()


def _json(value: bytes) -> bytes:
    """Checks one value: whatever is put into another text must be whole."""
    try:
        orjson.loads(value)
    except orjson.JSONDecodeError:
        raise Undecodable("bad_encoding") from None
    return value.replace(b"\n", b"\r")
