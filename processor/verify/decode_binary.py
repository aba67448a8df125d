"""The audit's reading of Avro and protobuf: by their specifications, one value at a time."""

import base64
import contextlib
import datetime
import decimal
import json
import struct
from collections.abc import Callable, Sequence
from typing import Any

import orjson

from tokenometer.processor.verify.decode_json import Misread
from tokenometer.processor.verify.decode_spans import fields, number_of, quoted
from tokenometer.schemas.value import Value

_DEPTH_MAX = 64
_Headers = Sequence[tuple[str, bytes | None]]
Reader = Callable[[bytes, _Headers], list[bytes]]


def reader(value: Value, schemas: Any, schema: bytes | None, limit: int) -> Reader:
    """Reads a message's value into its one line; raises Misread. schemas: of a registry, by id or GUID."""
    known: dict[Any, Any] = {}

    def compiled(reference: int | str | None) -> Any:
        if reference not in known:
            try:
                text: str | bytes = (schema or b"") if reference is None else schemas[reference]
                known[reference] = _Avro(text, limit) if value.encoding == "avro" else _Protobuf(text)
            except (ValueError, LookupError, TypeError):
                raise Misread("unknown_schema") from None
        return known[reference]

    def read(message: bytes, headers: _Headers) -> list[bytes]:
        if value.registry:
            reference, payload = _named(message, headers)
            return [compiled(reference).framed(payload)]
        if value.encoding == "protobuf":
            types = compiled(None)
            return [types.framed(message[5:]) if message[:1] == b"\0" else types.line(message, value.message)]
        return [compiled(None).framed(_unframed(message, value.frame))]

    return read


def _named(message: bytes, headers: _Headers) -> tuple[int | str, bytes]:
    for name, content in headers:
        if name == "__value_schema_id" and content and len(content) == 17 and content[0] == 1:
            text = content[1:].hex()
            return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}", message
    if len(message) < 5 or message[0] != 0:
        raise Misread("unknown_schema")
    return struct.unpack(">I", message[1:5])[0], message[5:]


def _unframed(message: bytes, frame: str) -> bytes:
    mark, size = {"confluent": (b"\0", 5), "single_object": (b"\xc3\x01", 10), "none": (b"", 0)}[frame]
    if len(message) < size or not message.startswith(mark):
        raise Misread("bad_encoding")
    return message[size:]


# --- Avro ---


class _Avro:
    def __init__(self, text: str | bytes, limit: int) -> None:
        self._limit = limit
        self._names: dict[str, Any] = {}
        self._schema = json.loads(text)
        self._resolve(self._schema, "")

    def _resolve(self, schema: Any, namespace: str) -> None:
        """Notes the full names of named types."""
        if isinstance(schema, list):
            for branch in schema:
                self._resolve(branch, namespace)
        if isinstance(schema, str) and schema not in _PRIMITIVES:
            self._named(schema, namespace)
        if not isinstance(schema, dict):
            return
        kind = schema["type"]
        if kind not in _COMPLEX:
            self._resolve(kind, namespace)
        if kind in ("record", "enum", "fixed"):
            full = schema["name"]
            if "." not in full and schema.get("namespace", namespace):
                full = f"{schema.get('namespace', namespace)}.{full}"
            self._names[full] = schema
            namespace = full.rpartition(".")[0]
            schema["namespace"] = namespace
        for inner in ("items", "values"):
            if inner in schema:
                self._resolve(schema[inner], namespace)
        for field in schema.get("fields", ()):
            self._resolve(field["type"], namespace)

    def _named(self, name: str, namespace: str) -> Any:
        full = f"{namespace}.{name}" if namespace and "." not in name else name
        return self._names[full if full in self._names else name]

    def framed(self, payload: bytes) -> bytes:
        stream = _Stream(payload)
        text = self._value(self._schema, stream, "", 0)
        if stream.at != len(payload):
            raise Misread("bad_encoding")
        return text

    def _value(self, schema: Any, stream: "_Stream", namespace: str, depth: int) -> bytes:
        if isinstance(schema, str):
            if schema not in _PRIMITIVES:
                return self._value(self._named(schema, namespace), stream, namespace, depth)
            schema = {"type": schema}
        if isinstance(schema, list):
            self._check(depth)
            which = stream.long()
            if not 0 <= which < len(schema):
                raise Misread("bad_encoding")
            return self._value(schema[which], stream, namespace, depth + 1)
        kind = schema["type"]
        if not isinstance(kind, str) or kind not in (*_PRIMITIVES, *_COMPLEX):
            return self._value(kind, stream, namespace, depth)
        if kind not in ("int", "long", "string"):
            self._check(depth)
        if kind == "record":
            members = [
                quoted(field["name"].encode())
                + b":"
                + self._value(field["type"], stream, schema["namespace"], depth + 1)
                for field in schema["fields"]
            ]
            return b"{" + b",".join(members) + b"}"
        if kind in ("array", "map"):
            return self._blocks(schema, stream, namespace, depth)
        return self._scalar(kind, schema, stream)

    def _check(self, depth: int) -> None:
        if depth > _DEPTH_MAX:
            raise Misread("bad_encoding")

    def _blocks(self, schema: Any, stream: "_Stream", namespace: str, depth: int) -> bytes:
        keyed = schema["type"] == "map"
        items, size = list[bytes](), 0
        while count := stream.long():
            if count < 0:
                stream.long()
            for _ in range(abs(count)):
                key = quoted(stream.take(stream.long())) + b":" if keyed else b""
                items.append(key + self._value(schema["values" if keyed else "items"], stream, namespace, depth + 1))
                size += len(items[-1]) + 1
                if size > self._limit:
                    raise Misread("too_large")
        return (b"{%b}" if keyed else b"[%b]") % b",".join(items)

    def _scalar(self, kind: str, schema: Any, stream: "_Stream") -> bytes:
        if kind == "null":
            return b"null"
        if kind == "boolean":
            byte = stream.take(1)[0]
            if byte > 1:
                raise Misread("bad_encoding")
            return b"true" if byte else b"false"
        if kind in ("int", "long"):
            return b"%d" % stream.long()
        if kind == "float":
            return _float32(struct.unpack("<f", stream.take(4))[0])
        if kind == "double":
            return orjson.dumps(number_of(struct.unpack("<d", stream.take(8))[0]))
        if kind == "string":
            return quoted(stream.take(stream.long()))
        if kind == "enum":
            which = stream.long()
            if not 0 <= which < len(schema["symbols"]):
                raise Misread("bad_encoding")
            return orjson.dumps(schema["symbols"][which])
        content = stream.take(schema["size"] if kind == "fixed" else stream.long())
        if schema.get("logicalType") == "decimal":
            if not 1 <= len(content) <= 16:
                raise Misread("bad_encoding")
            exact = decimal.Decimal(int.from_bytes(content, "big", signed=True))
            return f"{exact.scaleb(-schema.get('scale', 0), _EXACT):f}".encode()
        return b'"' + base64.b64encode(content) + b'"'


_PRIMITIVES = ("null", "boolean", "int", "long", "float", "double", "bytes", "string")
_COMPLEX = ("record", "enum", "fixed", "array", "map")
_EXACT = decimal.Context(prec=60)


def _float32(value: float) -> bytes:
    """The shortest digits that a 32-bit float is told by."""
    whole = number_of(value)
    if not isinstance(whole, float):
        return orjson.dumps(whole)
    for digits in range(1, 10):
        text = f"{value:.{digits}g}"
        with contextlib.suppress(OverflowError):  # a few digits may round to more than a 32-bit float holds
            if struct.pack("<f", float(text)) == struct.pack("<f", value):
                return text.encode()
    raise AssertionError("nine digits tell every 32-bit float")


class _Stream:
    def __init__(self, data: bytes) -> None:
        self._data, self.at = data, 0

    def take(self, size: int) -> bytes:
        if size < 0 or self.at + size > len(self._data):
            raise Misread("bad_encoding")
        self.at += size
        return self._data[self.at - size : self.at]

    def long(self) -> int:
        number = 0
        for shift in range(0, 70, 7):
            byte = self.take(1)[0]
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                if number >= 1 << 64:
                    break
                return (number >> 1) ^ -(number & 1)
        raise Misread("bad_encoding")


# --- Protobuf ---


def indexes(value: bytes) -> tuple[list[int], int]:
    """The message indexes at the start of a framed value, and where it goes on."""
    at = 0

    def number() -> int:
        nonlocal at
        found = 0
        for shift in range(0, 35, 7):
            if at >= len(value):
                break
            byte = value[at]
            at += 1
            found |= (byte & 0x7F) << shift
            if byte < 0x80:
                return (found >> 1) ^ -(found & 1)
        raise Misread("bad_encoding")

    count = number()
    if not 0 <= count <= len(value):
        raise Misread("bad_encoding")
    return [number() for _ in range(count)] or [0], at


def _misread() -> Exception:
    return Misread("bad_encoding")


class _Protobuf:
    """Messages by the descriptors of a FileDescriptorSet, which are protobuf messages themselves."""

    def __init__(self, descriptor_set: str | bytes) -> None:
        if isinstance(descriptor_set, str):
            raise ValueError("a descriptor set is bytes")
        self._messages: dict[str, _Message] = {}
        self._enums: dict[str, dict[int, str]] = {}
        self._top: list[_Message] = []
        for file in _all(descriptor_set, 1):
            package = _one(file, 2).decode()
            proto3 = _one(file, 12) == b"proto3"
            scope = f".{package}" if package else ""
            top = [self._add(message, scope, proto3) for message in _all(file, 4)]
            for enum in _all(file, 5):
                self._add_enum(enum, scope)
            self._top = top or self._top

    def _add(self, descriptor: bytes, scope: str, proto3: bool) -> "_Message":
        name = f"{scope}.{_one(descriptor, 1).decode()}"
        message = self._messages[name] = _Message(name, descriptor, proto3)
        message.nested = [self._add(inner, name, proto3) for inner in _all(descriptor, 3)]
        for enum in _all(descriptor, 4):
            self._add_enum(enum, name)
        return message

    def _add_enum(self, descriptor: bytes, scope: str) -> None:
        values = self._enums[f"{scope}.{_one(descriptor, 1).decode()}"] = {}
        for value in _all(descriptor, 2):
            values.setdefault(_int32(_number(value, 2)), _one(value, 1).decode())

    def framed(self, payload: bytes) -> bytes:
        path, at = indexes(payload)
        found, inside = None, self._top
        for index in path:
            if not 0 <= index < len(inside):
                raise Misread("bad_encoding")
            found = inside[index]
            inside = found.nested
        assert found is not None
        return orjson.dumps(self._plain(found, [payload[at:]]))

    def line(self, payload: bytes, name: str | None) -> bytes:
        message = self._top[0] if name is None else self._messages[f".{name}"]
        return orjson.dumps(self._plain(message, [payload]))

    def _plain(self, message: "_Message", parts: list[bytes]) -> Any:
        """What a message says; parts that came one after the other are merged."""
        said: dict[int, list[Any]] = {}
        for part in parts:
            for number, wire, value in fields(part, _misread, groups=True):
                field = message.fields.get(number)
                if field is not None and (values := _values(field, wire, value)) is not None:
                    for other in message.fields.values():
                        if field.oneof is not None and other.oneof == field.oneof and other is not field:
                            said.pop(other.number, None)
                    said.setdefault(number, []).extend(values)
        found = {field.name: value for field in message.ordered for value in self._field(field, said.get(field.number))}
        if message.name == ".google.protobuf.Timestamp":
            return _timestamp(found)
        if message.name.startswith(".google.protobuf.") and message.name.endswith("Value") and "value" in message.names:
            return found.get("value", b"" if message.fields[1].type == 12 else "")
        return found

    def _field(self, field: "_Field", said: list[Any] | None) -> list[Any]:
        """The value, in a list of one; nothing where the line has no such member."""
        if field.repeated:
            entry = self._messages.get(field.type_name)
            if not said:
                return []
            if entry is not None and entry.is_map:
                pairs = dict(pair for part in said if (pair := self._pair(entry, part)) is not None)
                if not pairs:
                    return []
                numbers = entry.fields[1].type not in (8, 9)
                return [dict(sorted(pairs.items(), key=lambda pair: int(pair[0]) if numbers else pair[0]))]
            return [[self._single(field, [value]) for value in said]]
        if field.presence:
            return [self._single(field, said)] if said else []
        value = said[-1] if said else _zero(field.type)
        return [] if field.type in (9, 12) and not value else [self._single(field, [value])]

    def _pair(self, entry: "_Message", part: bytes) -> tuple[str, Any] | None:
        """An entry of a map; None: it has an unknown field, and the library keeps it as an unknown field itself."""
        said: dict[int, list[Any]] = {}
        unknown = False
        for number, wire, value in fields(part, _misread, groups=True):
            values = _values(entry.fields[number], wire, value) if number in entry.fields else None
            unknown |= values is None
            said.setdefault(number, []).extend(values or ())
        if unknown:
            return None
        key_field, value_field = entry.fields[1], entry.fields[2]
        key = self._single(key_field, said.get(1) or [_zero(key_field.type)])
        value = self._single(value_field, said.get(2) or [_zero(value_field.type)])
        return {True: "true", False: "false"}[key] if isinstance(key, bool) else str(key), value

    def _single(self, field: "_Field", said: list[Any]) -> Any:
        if field.type == 11:
            return self._plain(self._messages[field.type_name], said)
        value = said[-1]
        if field.type == 14:
            number = _int32(value)
            return self._enums[field.type_name].get(number, number)
        return _scalar(field.type, value)


class _Field:
    def __init__(self, descriptor: bytes, proto3: bool) -> None:
        said = {(number, wire): value for number, wire, value in fields(descriptor, ValueError)}
        self.name = said[1, 2].decode()
        self.number = said[3, 0]
        self.repeated = said[4, 0] == 3
        self.type = said[5, 0]
        self.type_name = said.get((6, 2), b"").decode()
        self.oneof = said.get((9, 0))
        self.presence = not proto3 or self.type == 11 or self.oneof is not None


class _Message:
    def __init__(self, name: str, descriptor: bytes, proto3: bool) -> None:
        self.name = name
        self.ordered = [_Field(field, proto3) for field in _all(descriptor, 2)]
        self.fields = {field.number: field for field in self.ordered}
        self.names = {field.name for field in self.ordered}
        self.is_map = _number(_one(descriptor, 7), 7) == 1
        self.nested: list[_Message] = []


def _all(message: bytes, number: int) -> list[bytes]:
    return [value for found, wire, value in fields(message, ValueError) if found == number and wire == 2]


def _one(message: bytes, number: int) -> bytes:
    return ([b""] + _all(message, number))[-1]


def _number(message: bytes, number: int) -> int:
    numbers = [int(value) for found, wire, value in fields(message, ValueError) if (found, wire) == (number, 0)]
    return ([0] + numbers)[-1]


def _int32(value: int) -> int:
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >> 31 else value


_WIRES = {1: 1, 2: 5, 6: 1, 7: 5, 9: 2, 11: 2, 12: 2, 15: 5, 16: 1}  # of types; all others are varints


def _zero(kind: int) -> Any:
    """What the wire would say of a field that was left out."""
    return {0: 0, 1: bytes(8), 5: bytes(4), 2: b""}[_WIRES.get(kind, 0)]


def _values(field: _Field, wire: int, value: Any) -> list[Any] | None:
    """The values of one field on the wire; None: of another type than the schema says, and so unknown."""
    expected = _WIRES.get(field.type, 0)
    if wire == expected:
        if field.type == 9:
            _utf8(value)  # each must be, also one that a later one replaces
        return [value]
    if not field.repeated or wire != 2 or expected == 2:
        return None
    if expected:
        size = 8 if expected == 1 else 4
        if len(value) % size:
            raise Misread("bad_encoding")
        return [value[at : at + size] for at in range(0, len(value), size)]
    stream, numbers = _Stream(value), []
    while stream.at < len(value):
        signed = stream.long()
        numbers.append(signed << 1 if signed >= 0 else (-signed << 1) - 1)
    return numbers


def _utf8(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise Misread("bad_encoding") from None


def _scalar(kind: int, value: Any) -> Any:
    match kind:
        case 1:
            return number_of(struct.unpack("<d", value)[0])
        case 2:
            return number_of(struct.unpack("<f", value)[0])
        case 6 | 7 | 15 | 16:
            return int.from_bytes(value, "little", signed=kind in (15, 16))
        case 3:
            return value - (1 << 64) if value >> 63 else value
        case 5:
            return _int32(value)
        case 13:
            return value & 0xFFFFFFFF
        case 17 | 18:
            value = value & 0xFFFFFFFF if kind == 17 else value
            return (value >> 1) ^ -(value & 1)
        case 8:
            return bool(value)
        case 9:
            return _utf8(value)
        case 12:
            return base64.b64encode(value).decode()
    return value


def _timestamp(found: dict[str, Any]) -> str:
    seconds, nanos = found.get("seconds", 0), found.get("nanos", 0)
    if not 0 <= nanos < 10**9:
        raise Misread("bad_encoding")
    try:
        moment = datetime.datetime(1970, 1, 1) + datetime.timedelta(seconds=seconds)  # noqa: DTZ001
    except OverflowError:
        raise Misread("bad_encoding") from None
    return f"{moment.isoformat()}.{nanos:09}Z"
