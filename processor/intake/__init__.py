"""From the values of messages to lines of JSON records. Bytes go in and lines come out, without I/O or a clock.

    values ── openers ──> plain bytes ── the mapping's encoding ──> lines ──> engine

What every decoder promises
- Each record is one line that a newline ends; a message's lines come together, in the order of its records. A message
  without records is an empty line.
- Values that are plain JSON lines already are handed on untouched, without a copy where the column has its lines.
- A message that cannot be read at all is one line that is no JSON, and a reason. A bad record among others is handed on
  as its bytes, or as such a line: the engine rejects it, and its neighbours count.
- A raw newline inside a record becomes a carriage return, which is white space between values and stays refused inside
  strings.
- What a message gives depends on nothing but the message.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tokenometer.processor.broker import Column
from tokenometer.processor.broker.registry import UnregisteredSchema
from tokenometer.processor.intake import avro, envelopes, native, openers, protobuf
from tokenometer.processor.intake.envelopes import Headers
from tokenometer.processor.intake.native import Bytes, Ints
from tokenometer.processor.intake.openers import MESSAGE_BYTES_MAX, Undecodable
from tokenometer.schemas.value import PLAIN, Value

__all__ = ["MESSAGE_BYTES_MAX", "REASONS", "Decoder", "DecodedLines", "SchemaError", "UnregisteredSchema", "decoder"]

REASONS = (
    "too_large",  # the opened value, or its lines, are more than the limit
    "too_deep",  # more openers in each other than NESTED_MAX
    "bad_compression",  # gzip or zstd that ends early or is damaged
    "bad_encoding",  # not what the mapping's encoding says
    "unknown_schema",  # no schema is known for the value
    "bad_key",  # not UTF-8, and a field reads it
    "bad_header",
)
_BAD = b"?"  # the value in place of one that cannot be read
_FRAME_BYTES = {"confluent": openers.FRAME_BYTES, "single_object": 10, "none": 0}
_CALL_BYTES = 256 << 20  # lines of one call: messages may grow, memory must not

SchemaError = (avro.AvroSchemaError, protobuf.ProtobufSchemaError)


# The text of a registry's schema by its id or GUID: Avro's JSON, or the bytes of a protobuf descriptor set. Raises
# UnregisteredSchema; any other error, such as a registry that is away, comes out of the decoder.
Schemas = Callable[[int | str], str | bytes]


@dataclass(frozen=True)
class DecodedLines:
    """data: lines. ends: past each message's last line, for messages first, first + 1, ... of the column: perhaps not
    all of them. failures: why messages (by their index in the column) cannot be read."""

    data: Bytes
    ends: Ints
    failures: dict[int, str] = field(default_factory=dict)


class Decoder:
    """Reads values as one mapping says. It is not for several threads at once.

    schemas: where a registry's schemas come from. schema: the content of `value.schema`'s file. limit: bytes of an
    opened value and of one message's lines.
    """

    def __init__(
        self,
        value: Value = PLAIN,
        schemas: Schemas | None = None,
        schema: bytes | None = None,
        limit: int = MESSAGE_BYTES_MAX,
    ) -> None:
        assert value.schema is None or schema is not None, "the content of the schema's file is the caller's to read"
        assert not value.registry or schemas is not None
        self._value, self._limit = value, min(limit, MESSAGE_BYTES_MAX)
        self._recipe = native.recipe(value, self._limit)
        self._openers = self._openers_of(value)
        self._claims = sum(1 << claim for claim in self._openers)
        self._schemas = _Schemas(value, schemas, schema) if value.encoding in ("avro", "protobuf") else None
        self._untouched = value == PLAIN
        lines = Value(json_in=value.json_in)
        self._second_recipe = native.recipe(lines, self._limit)

    def _openers_of(self, value: Value) -> dict[int, openers.Opener]:
        if value.encoding in ("avro", "protobuf"):
            return openers.COMPRESSION
        known = openers.OTLP if value.encoding == "otlp" else openers.JSON
        return known if not value.prefix else {k: v for k, v in known.items() if k != native.TEXT}

    def __call__(
        self,
        values: Column,
        first: int = 0,
        keys: Sequence[bytes | None] | None = None,
        headers: Sequence[Headers] | None = None,
    ) -> DecodedLines:
        """The lines of messages `first` and following, as many as one call may give: at least one of them.

        keys: where `value.key`. headers: where `schemas.value.asks_for_headers`.
        """
        if not len(values):
            return DecodedLines(np.empty(0, np.uint8), np.empty(0, np.int64))
        claimed, plain = native.look(values.data, values.starts, values.lengths, self._claims)
        if self._untouched and plain and values.lines is not None and first == 0:
            return DecodedLines(values.data, values.lines)
        batch = native.ValueBatch.of(values.data, values.starts, values.lengths)
        failures = self._open(batch, values, claimed[claimed >= first].tolist()) if len(claimed) else {}
        if self._value.encoding == "cloudevents" and headers is not None:
            self._structure(batch, headers, failures)
        inject = self._members(batch, keys, headers, failures)
        written = self._decode(batch, first, inject, headers, failures)
        failures = written.failures | _upto(failures, first + len(written.ends))
        return DecodedLines(written.data, written.ends, failures)

    # --- Openers ---

    def _open(self, batch: native.ValueBatch, values: Column, claimed: Sequence[int]) -> dict[int, str]:
        """Replaces what is claimed; stops where the opened values are as much as one call may give."""
        failures: dict[int, str] = {}
        replaced: dict[int, bytes] = {}
        size = 0
        for index in claimed:
            if size > _CALL_BYTES:
                batch.lengths = batch.lengths[:index]
                batch.addresses = batch.addresses[:index]
                break
            value = values[index]
            assert value is not None
            try:
                replaced[index] = openers.opened(value, self._limit, self._openers)
            except Undecodable as error:
                replaced[index], failures[index] = _BAD, error.reason
            size += len(replaced[index])
        batch.replace(replaced)
        return failures

    # --- Keys and headers ---

    def _structure(self, batch: native.ValueBatch, headers: Sequence[Headers], failures: dict[int, str]) -> None:
        replaced: dict[int, bytes] = {}
        for index in range(len(batch.lengths)):
            if index in failures or not envelopes.is_binary_event(headers[index]):
                continue
            try:
                replaced[index] = envelopes.structured(batch.value(index), headers[index])
            except Undecodable as error:
                replaced[index], failures[index] = _BAD, error.reason
        batch.replace(replaced)

    def _members(
        self,
        batch: native.ValueBatch,
        keys: Sequence[bytes | None] | None,
        headers: Sequence[Headers] | None,
        failures: dict[int, str],
    ) -> list[bytes] | None:
        if not self._value.key and not self._value.headers:
            return None
        found, failed = [], dict[int, bytes]()
        for index in range(len(batch.lengths)):
            try:
                found.append(
                    envelopes.members(self._value, keys[index] if keys else None, headers[index] if headers else ())
                )
            except Undecodable as error:
                found.append(b"")
                failures.setdefault(index, error.reason)
                failed[index] = _BAD
        batch.replace(failed)
        return found

    # --- Encodings ---

    def _decode(
        self,
        batch: native.ValueBatch,
        first: int,
        inject: list[bytes] | None,
        headers: Sequence[Headers] | None,
        failures: dict[int, str],
    ) -> native.Written:
        encoding = self._value.encoding
        if encoding in ("json", "debezium", "cloudevents"):
            return native.lines(batch, self._recipe, first, _CALL_BYTES, inject)
        if encoding == "avro":
            written = self._avro(batch, first, headers)
        elif encoding == "protobuf":
            written = self._protobuf(batch, first, headers, failures)
        else:
            written = native.lines(batch, self._recipe, first, _CALL_BYTES)
        if not self._value.json_in and inject is None:
            return written
        return self._finish(written, first, inject)

    def _finish(self, written: native.Written, first: int, inject: list[bytes] | None) -> native.Written:
        """Strings that hold JSON, keys and headers, in lines that another encoding has given."""
        starts = np.concatenate((np.zeros(1, np.int64), written.ends[:-1]))
        batch = native.ValueBatch.of(written.data, starts, written.ends - starts)
        part = None if inject is None else inject[first : first + len(written.ends)]
        again = native.lines(batch, self._second_recipe, 0, 2 * _CALL_BYTES, part)
        failures = {**{first + index: reason for index, reason in again.failures.items()}, **written.failures}
        return native.Written(again.data, again.ends, _upto(failures, first + len(again.ends)))

    def _avro(self, batch: native.ValueBatch, first: int, headers: Sequence[Headers] | None) -> native.Written:
        assert self._schemas is not None
        which = np.zeros(len(batch.lengths), np.int32)
        if self._value.registry:
            guids = _guids(headers, len(batch.lengths))
            ids = batch.frames()
            ids[list(guids)] = -1
            known, place_of = np.unique(ids, return_inverse=True)
            places = [-1 if id_ < 0 else self._schemas.place(id_) for id_ in known.tolist()]
            which = np.array(places, np.int32)[place_of]
            for index, guid in guids.items():
                which[index] = self._schemas.place(guid)
            batch.skip(ids >= 0, openers.FRAME_BYTES)
        frame_bytes = 0 if self._value.registry else _FRAME_BYTES[self._value.frame]
        return native.avro(batch, self._schemas.avro, which, frame_bytes, self._limit, first, _CALL_BYTES)

    def _protobuf(
        self, batch: native.ValueBatch, first: int, headers: Sequence[Headers] | None, failures: dict[int, str]
    ) -> native.Written:
        assert self._schemas is not None
        parts: list[bytes] = []
        ends, failed, size = [], dict[int, str](), 0
        references: dict[int, _Reference | None] = {}
        if self._value.registry:
            guids = _guids(headers, len(batch.lengths))
            references = {index: None if id_ < 0 else id_ for index, id_ in enumerate(batch.frames().tolist())} | guids
            batch.skip(np.array([type(references[index]) is int for index in references]), openers.FRAME_BYTES)
        for index in range(first, len(batch.lengths)):
            value = batch.value(index)
            try:
                line = b"" if value is None else self._schemas.protobuf(value, references.get(index))
            except Undecodable as error:
                line, failed[index] = _BAD, error.reason
            parts.append(line + b"\n")
            size += len(line) + 1
            ends.append(size)
            if size > _CALL_BYTES:
                break
        return native.Written(np.frombuffer(b"".join(parts), np.uint8), np.array(ends, np.int64), failed)


def decoder(
    value: Value = PLAIN, schemas: Schemas | None = None, schema: bytes | None = None, limit: int = MESSAGE_BYTES_MAX
) -> Decoder:
    """Raises one of SchemaError where the schema's file cannot be used."""
    return Decoder(value, schemas, schema, limit)


def _upto(failures: dict[int, str], end: int) -> dict[int, str]:
    return {index: reason for index, reason in failures.items() if index < end}


# --- Schemas ---

_Reference = int | str  # an id or a GUID


def _guids(headers: Sequence[Headers] | None, count: int) -> dict[int, str]:
    """The schemas that headers name, by message."""
    found = ((index, envelopes.schema_guid(some)) for index, some in enumerate((headers or ())[:count]) if some)
    return {index: guid for index, guid in found if guid is not None}


class _Schemas:
    """The compiled schemas of a mapping, by the names that values give them."""

    def __init__(self, value: Value, source: Schemas | None, schema: bytes | None) -> None:
        self._value, self._source = value, source
        self.avro: list[native.AvroTables] = []
        self._places: dict[_Reference, int] = {}
        self._types: dict[_Reference, Any] = {}
        self._types_of_file: protobuf.MessageTypes | None = None
        if schema is not None and value.encoding == "avro":
            self.avro.append(avro.compile_schema(schema))
        elif schema is not None:
            self._types_of_file = protobuf.MessageTypes(schema)
            self._types_of_file.by_name(value.message)  # which must be there

    def place(self, reference: _Reference) -> int:
        """The index of an Avro schema; -1 where there is none."""
        if reference in self._places:
            return self._places[reference]
        if (text := self._text(reference)) is None:
            return -1  # and perhaps not tomorrow
        try:
            self.avro.append(avro.compile_schema(text))
            self._places[reference] = len(self.avro) - 1
        except avro.AvroSchemaError:
            self._places[reference] = -1  # a schema that cannot be used is like none
        return self._places[reference]

    def protobuf(self, value: bytes, reference: _Reference | None) -> bytes:
        """The line of one message, after its schema's id. Raises Undecodable."""
        if self._types_of_file is not None:
            if value[:1] != b"\0":  # no protobuf message begins with a tag of 0
                return protobuf.line_of(self._types_of_file.by_name(self._value.message), value)
            indexes, at = openers.after_indexes(value, openers.FRAME_BYTES)
            found = self._types_of_file.by_indexes(indexes)
            return protobuf.line_of(found, value[at:])
        if reference is None:
            raise Undecodable("unknown_schema")
        if reference not in self._types:
            if (text := self._text(reference)) is None:
                raise Undecodable("unknown_schema")
            try:
                self._types[reference] = protobuf.MessageTypes(text) if isinstance(text, bytes) else None
            except protobuf.ProtobufSchemaError:
                self._types[reference] = None
        types = self._types[reference]
        if types is None:
            raise Undecodable("unknown_schema")
        indexes, at = openers.after_indexes(value)
        return protobuf.line_of(types.by_indexes(indexes), value[at:])

    def _text(self, reference: _Reference) -> str | bytes | None:
        assert self._source is not None
        try:
            return self._source(reference)
        except UnregisteredSchema:
            return None
