"""Logs that are not plain JSON lines: values that a mapping's decoder turns into lines, whole files, CSV, Parquet.

Owns: what is one value of a file, and where each record came from.
Promises: memory holds a few values, not a file, except where a file is one value. A dead letter has the value's bytes
as they are in the file, and the record's number in it.

    file ── by its bytes ──> a JSON array, or --whole:   the file is one value
                             Parquet, CSV:               each row is one value, a JSON object
                             else:                       each line is one value
    values ── intake ──> lines ──> space
"""

import base64
import csv
import pathlib
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from tokenometer.kernels.engine import joined
from tokenometer.kernels.values import Bytes
from tokenometer.processor.broker import Column
from tokenometer.processor.files.logs import STDIN, Chunk, LogError, LogReader, message_ends
from tokenometer.processor.intake import MESSAGE_BYTES_MAX, Decoder, SchemaError
from tokenometer.schemas.mapping import Field, Mapping, MappingError
from tokenometer.schemas.value import HEADER_PREFIX, KEY_MEMBER, PLAIN, Value

_VALUES_BYTES = 1 << 20  # decoded together
_VALUES_MAX = 4096
_ROWS = 4096  # of a table, read together
_HEAD_BYTES = 4096
_COPIES_BYTES_MAX = 1 << 20  # of a value in the dead letters of its records; one has it at least
_PARQUET = b"PAR1"
_CSV_HEADER = re.compile(rb'(\xef\xbb\xbf)?"?\w[\w .-]*"?(,"?\w[\w .-]*"?)+\r?\n', re.ASCII)


class SourceValue(NamedTuple):
    """number: of the line or row in its file, the first is 1. offset: of its first byte, as far as lines have one."""

    number: int
    offset: int
    data: bytes


@dataclass
class _Copies:
    """How many bytes of a value's copies dead letters may still take."""

    left: int = _COPIES_BYTES_MAX

    def of(self, data: bytes) -> bytes | None:
        copied = self.left == _COPIES_BYTES_MAX or len(data) <= self.left
        self.left -= len(data) if copied else 0
        return data if copied else None


@dataclass(frozen=True)
class _Origin:
    """Lines of one chunk that come from one value. first: the number of the first of these lines in the value."""

    value: SourceValue
    first: int
    failure: str | None
    copies: _Copies = field(default_factory=_Copies)


class Origins:
    """Where the lines of a chunk come from."""

    def __init__(self, origins: Sequence[_Origin], line_ends: Sequence[int]) -> None:
        self._origins, self._ends = origins, np.array(line_ends, np.int64)

    def of(self, line: int) -> tuple[SourceValue, int, str | None, bytes | None]:
        """The value, the record's number in it (from 0), why the value could not be read, and a copy of its bytes for a
        dead letter; None: there are enough."""
        index = int(np.searchsorted(self._ends, line, side="right"))
        before = int(self._ends[index - 1]) if index else 0
        origin = self._origins[index]
        return origin.value, origin.first + line - before, origin.failure, origin.copies.of(origin.value.data)


class _Lines(NamedTuple):
    """What is left of the lines of one value."""

    file: str
    origin: _Origin
    data: bytes


class DecodedReader:
    """Reads several logs one after the other, as `LogReader` does, for a mapping whose values are not plain lines."""

    def __init__(self, logs: Iterable[tuple[str, Iterator[SourceValue]]], decoder: Decoder) -> None:
        """logs: of each its name and its values."""
        self._decoder = decoder
        self._lines = self._decoded(logs)
        self._held: deque[_Lines] = deque()
        self._read_bytes = 0

    def fill(self, space: Bytes) -> Chunk | None:
        """The next whole lines, at most as many as fit; None after the last. A chunk never spans two logs."""
        length, lines, file = 0, 0, None
        origins: list[_Origin] = []
        ends: list[int] = []
        while (held := self._next()) is not None and file in (None, held.file):
            room = len(space) - length
            cut = len(held.data) if len(held.data) <= room else held.data.rfind(b"\n", 0, room) + 1
            if cut == 0:
                break
            part = held.data[:cut]
            space[length : length + cut] = np.frombuffer(part, np.uint8)
            count = part.count(b"\n")
            length, lines, file = length + cut, lines + count, held.file
            origins.append(held.origin)
            ends.append(lines)
            self._held.popleft()
            if cut < len(held.data):
                origin = replace(held.origin, first=held.origin.first + count)
                self._held.appendleft(_Lines(held.file, origin, held.data[cut:]))
        if file is None:
            if self._held:
                raise LogError(f"{self._held[0].file}: a record of more than {len(space)} bytes")
            return None
        first = origins[0].value.offset
        return Chunk(file, first, length, message_ends(space, length), self._read_bytes, Origins(origins, ends))

    def _next(self) -> _Lines | None:
        if not self._held:
            self._held.extend(next(self._lines, ()))
        return self._held[0] if self._held else None

    def _decoded(self, logs: Iterable[tuple[str, Iterator[SourceValue]]]) -> Iterator[list[_Lines]]:
        for name, values in logs:
            for few in _together(values):
                yield list(self._decode(name, few))

    def _decode(self, file: str, values: list[SourceValue]) -> Iterator[_Lines]:
        decoded = _decoded_values([value.data for value in values], self._decoder)
        for value, (lines, failure) in zip(values, decoded, strict=True):
            yield _Lines(file, _Origin(value, 0, failure), lines)

    def close(self) -> None:
        self._held.clear()


def _decoded_values(values: list[bytes], decoder: Decoder) -> Iterator[tuple[bytes, str | None]]:
    """For each value its lines, each with a newline, and why it could not be read."""
    data, ends = joined(values)
    starts = np.concatenate((np.zeros(1, np.int64), ends[:-1]))
    column = Column(data, starts, np.array([len(value) for value in values], np.int64), ends)
    first = 0
    while first < len(values):
        decoded = decoder(column, first)
        begin = 0
        for index, end in enumerate(decoded.ends.tolist(), first):
            yield decoded.data[begin:end].tobytes(), decoded.failures.get(index)
            begin = end
        first += len(decoded.ends)


def sample_lines(values: Iterable[bytes], decoder: Decoder) -> Iterator[bytes]:
    """The records of a sample's values, each without its newline."""
    values = list(values)
    for lines, _ in _decoded_values(values, decoder) if values else ():
        yield from lines[:-1].split(b"\n")


def is_plain(name: str) -> bool:
    """Does the file hold plain lines, which need no decoder where the mapping asks for none?"""
    if name == STDIN:
        return True
    head = _head(name)
    return not (head.startswith(_PARQUET) or _CSV_HEADER.match(head) or head.lstrip().startswith(b"["))


def _head(name: str) -> bytes:
    """The first bytes, after decompression. A log that cannot be read is reported where it is read."""
    reader, space = LogReader([name]), np.zeros(1 << 22, np.uint8)
    try:
        with open(name, "rb") as file:
            raw = file.read(_HEAD_BYTES)
        if raw.startswith((_PARQUET, b"[")) or not raw.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd")):
            return raw
        chunk = reader.fill(space)
        return b"" if chunk is None else space[: min(chunk.length, _HEAD_BYTES)].tobytes()
    except (OSError, LogError):
        return b""
    finally:
        reader.close()


def _content(name: str) -> bytes:
    try:
        with open(0 if name == STDIN else name, "rb", closefd=name != STDIN) as file:
            content = file.read(MESSAGE_BYTES_MAX + 1)
    except OSError as error:
        raise LogError(f"{name}: {error.strerror}") from None
    if len(content) > MESSAGE_BYTES_MAX:
        raise LogError(
            f"{name}: one value of more than {MESSAGE_BYTES_MAX} bytes; write each record on a line of its own"
        )
    return content


def _file_lines(name: str) -> Iterator[SourceValue]:
    reader, space = LogReader([name]), np.zeros(MESSAGE_BYTES_MAX, np.uint8)
    number = 0
    try:
        while chunk := reader.fill(space):
            offset = chunk.offset
            for line in space[: chunk.length].tobytes()[:-1].split(b"\n"):
                number += 1
                yield SourceValue(number, offset, line)
                offset += len(line) + 1
    finally:
        reader.close()


def object_rows(name: str, batches: Iterable[Any]) -> Iterator[SourceValue]:
    """Each row of a table as a JSON object. Raises LogError where two columns have one name."""
    number = 0
    for batch in batches:
        if number == 0:
            _check_columns(name, batch.schema.names)
        for row in batch.to_pylist():
            number += 1
            yield SourceValue(number, 0, orjson.dumps(row, default=_as_json, option=orjson.OPT_UTC_Z))


def _check_columns(name: str, columns: Sequence[str]) -> None:
    if twice := [column for column in columns if columns.count(column) > 1]:
        raise LogError(f"{name}: the column {twice[0]} is there twice: rename one, for only one could be read")


def _as_json(cell: Any) -> Any:
    """Of a cell that JSON has no type for. Some writers store texts as bytes; bytes that are no text are an object,
    which is no name."""
    if isinstance(cell, bytes):
        try:
            return cell.decode()
        except UnicodeDecodeError:
            return {"base64": base64.b64encode(cell).decode()}
    if isinstance(cell, Decimal):
        whole = cell == cell.to_integral_value()  # a column of decimals writes 10 as 10.00
        return orjson.Fragment(str(int(cell)) if whole else format(cell, "f"))
    return str(cell)


def _parquet(name: str) -> Iterator[Any]:
    try:
        with pq.ParquetFile(name) as file:
            yield from file.iter_batches(_ROWS)
    except (pa.ArrowException, OSError) as error:
        raise LogError(f"{name}: not a Parquet file that can be read: {error}") from None


def _csv(name: str) -> Iterator[Any]:
    """Every cell is a string, exactly as it is in the file; an empty cell is null. A guessed type would turn the user
    007 into 7."""
    try:
        with open(name, "rb") as file:
            (columns,) = csv.reader([file.readline().decode("utf-8-sig").strip()])
        _check_columns(name, columns)
        convert = pa_csv.ConvertOptions(
            column_types={column: pa.string() for column in columns}, strings_can_be_null=True, null_values=[""]
        )
        with pa_csv.open_csv(name, convert_options=convert) as reader:
            yield from reader
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise LogError(f"{name}: not a CSV file that can be read: {error}") from None


def _together(values: Iterator[SourceValue]) -> Iterator[list[SourceValue]]:
    """A few values at a time: as many as make a MiB."""
    held: list[SourceValue] = []
    size = 0
    for value in values:
        held.append(value)
        size += len(value.data)
        if size >= _VALUES_BYTES or len(held) == _VALUES_MAX:
            yield held
            held, size = [], 0
    if held:
        yield held


def reader_of(names: Sequence[str], value: Value, make_decoder: Callable[[], Decoder], whole: bool = False) -> Any:
    """The reader that these logs need: the fast one for plain lines."""
    if value == PLAIN and not whole and all(map(is_plain, names)):
        return LogReader(names)
    files = (("(standard input)" if name == STDIN else name, _file_values(name, value, whole)) for name in names)
    return DecodedReader(files, make_decoder())


def _file_values(name: str, value: Value, whole: bool) -> Iterator[SourceValue]:
    if whole:
        return iter([SourceValue(1, 0, _content(name))])
    head = b"" if name == STDIN else _head(name)
    if head.startswith(_PARQUET):
        return object_rows(name, _parquet(name))
    if value == PLAIN and _CSV_HEADER.match(head):
        return object_rows(name, _csv(name))
    if value.encoding == "json" and head.lstrip().startswith(b"["):
        return iter([SourceValue(1, 0, _content(name))])
    return _file_lines(name)


def read_as(mapping: Mapping, names: Sequence[str]) -> Mapping:
    """The mapping for these files: where one is CSV, whose cells have no type, counts and epoch times may be digits."""
    if mapping.value != PLAIN or not any(name != STDIN and _CSV_HEADER.match(_head(name)) for name in names):
        return mapping
    fields, further = (
        tuple(replace(field, digits=True) if _has_digits(field) else field for field in some)
        for some in (mapping.fields, mapping.further)
    )
    total = replace(mapping.total, digits=True) if mapping.total else None
    return replace(mapping, fields=fields, further=further, total=total)


def _has_digits(field: Field) -> bool:
    return field.kind == "count" or any(name.startswith("epoch") for name in field.formats)


def decoder_of(mapping: Mapping) -> Callable[[], Decoder]:
    """Makes what reads this mapping's values. Raises MappingError where its schema file cannot be read."""
    value = mapping.value

    def make() -> Decoder:
        schema = None
        if value.schema is not None:
            try:
                schema = pathlib.Path(value.schema).read_bytes()
            except OSError as error:
                raise MappingError(f"{mapping.source}: value.schema: {value.schema}: {error.strerror}") from None
        if value.registry:
            raise MappingError(f"{mapping.source}: value.registry: this command has no Schema Registry; name a schema")
        _check_for_files(mapping)
        try:
            return Decoder(value, None, schema)
        except SchemaError as error:
            raise MappingError(f"{mapping.source}: value.schema: {value.schema}: {error}") from None

    return make


def _check_for_files(mapping: Mapping) -> None:
    for one in mapping.fields:
        if one.paths and all(path[0] == KEY_MEMBER or path[0].startswith(HEADER_PREFIX) for path in one.paths):
            raise MappingError(
                f"{mapping.source}: fields.{one.name} reads the message's key or a header, and a file has neither; "
                f"meter the topic, or name aliases that read the field from the value"
            )
