"""Turns protobuf messages of a schema into JSON lines, with the names of the .proto file.

Numbers, booleans and enumerations (by name) are always there, as proto3 means it; strings, bytes (base64) and messages
where they are set. A Timestamp is RFC 3339, a wrapper is its value, a double that is a whole number below 2^63 is an
integer. The library is google.protobuf, which is imported only where a mapping asks for it.
"""

import base64
import datetime
import math
from collections.abc import Sequence
from typing import Any

import orjson

from tokenometer.processor.intake.openers import Undecodable

_WHOLE_END = 1 << 63
_WRAPPERS = {
    f"google.protobuf.{name}Value"
    for name in ("Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String", "Bytes")
}
_TIMESTAMP = "google.protobuf.Timestamp"


class ProtobufSchemaError(ValueError):
    """A schema cannot be used. The message says what is wrong with it."""


class MessageTypes:
    """The messages of a FileDescriptorSet (`protoc --include_imports --descriptor_set_out`), dependencies first."""

    def __init__(self, descriptor_set: bytes) -> None:
        try:
            from google.protobuf import descriptor_pb2, descriptor_pool
            from google.protobuf.message import DecodeError
        except ImportError:
            raise ProtobufSchemaError(
                'encoding = "protobuf" needs the package protobuf: pip install "tokenometer[protobuf]"'
            ) from None
        pool = descriptor_pool.DescriptorPool()
        try:
            files = descriptor_pb2.FileDescriptorSet.FromString(descriptor_set).file
            for file in files:
                pool.AddSerializedFile(file.SerializeToString())
            self._files = [pool.FindFileByName(file.name) for file in files]
        except (DecodeError, TypeError, KeyError) as error:
            raise ProtobufSchemaError(f"not a complete protobuf descriptor set: {error}") from None
        if not any(file.message_types_by_name for file in self._files):
            raise ProtobufSchemaError("the protobuf descriptor set has no message")
        self._pool = pool

    def by_name(self, name: str | None) -> Any:
        """A message's class, by its full name; None: the first message of the last file that has one."""
        if name is None:
            return self.by_indexes([0])
        try:
            return self._class_of(self._pool.FindMessageTypeByName(name))
        except KeyError:
            raise ProtobufSchemaError(f"the protobuf descriptor set has no message {name}") from None

    def by_indexes(self, indexes: Sequence[int]) -> Any:
        """The message that a Confluent frame names: its number in the file, then in the message around it."""
        file = next(file for file in reversed(self._files) if file.message_types_by_name)
        types, found = list(file.message_types_by_name.values()), None
        for index in indexes:
            if not 0 <= index < len(types):
                raise Undecodable("bad_encoding")
            found = types[index]
            types = list(found.nested_types)
        return self._class_of(found)

    def _class_of(self, descriptor: Any) -> Any:
        from google.protobuf import message_factory

        return message_factory.GetMessageClass(descriptor)


def line_of(message_class: Any, value: bytes) -> bytes:
    """One message as a line without its newline. Raises Undecodable."""
    from google.protobuf.message import DecodeError

    try:
        return orjson.dumps(_plain(message_class.FromString(value)))
    except (DecodeError, RecursionError, orjson.JSONEncodeError, ValueError):
        raise Undecodable("bad_encoding") from None


def _plain(message: Any) -> Any:
    descriptor = message.DESCRIPTOR
    if descriptor.full_name == _TIMESTAMP:
        return _timestamp(message)
    if descriptor.full_name in _WRAPPERS:
        return _scalar(descriptor.fields_by_name["value"], message.value)
    members: dict[str, Any] = {}
    for field in descriptor.fields:
        value = getattr(message, field.name)
        if field.is_repeated:
            if len(value):
                members[field.name] = _repeated(field, value)
        elif field.has_presence:
            if message.HasField(field.name):
                members[field.name] = _one(field, value)
        elif value or field.cpp_type != field.CPPTYPE_STRING:
            members[field.name] = _one(field, value)
    return members


def _repeated(field: Any, values: Any) -> Any:
    entry = field.message_type
    if entry is None or not entry.GetOptions().map_entry:
        return [_one(field, value) for value in values]
    value_field = entry.fields_by_name["value"]
    return {_key(key): _one(value_field, values[key]) for key in sorted(values)}  # a map has no order of its own


def _key(key: Any) -> str:
    return ("false", "true")[key] if isinstance(key, bool) else str(key)


def _one(field: Any, value: Any) -> Any:
    return _scalar(field, value) if field.message_type is None else _plain(value)


def _scalar(field: Any, value: Any) -> Any:
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return value if known is None else known.name
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, float):
        return number(value)
    return value


def number(value: float) -> int | float | str:
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return int(value) if value.is_integer() and abs(value) < _WHOLE_END else value


def _timestamp(message: Any) -> str:
    if not 0 <= message.nanos < 1_000_000_000:
        raise Undecodable("bad_encoding")
    try:
        moment = datetime.datetime(1970, 1, 1) + datetime.timedelta(seconds=message.seconds)  # noqa: DTZ001
    except OverflowError:
        raise Undecodable("bad_encoding") from None
    return f"{moment.isoformat()}.{message.nanos:09}Z"
