"""Writing results to files: usage rows as NDJSON or Parquet, dead letters as NDJSON.

Owns: the files' formats.
Promises: there is no Python step for each row. A row has the fields of schemas/usage.schema.json; in Parquet
`window_start` is a timestamp and `labels` a map, in NDJSON a text and an object. A dead letter keeps every byte of its
record.
"""

import base64
import contextlib
import pathlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from tokenometer.kernels.values import UsageRows
from tokenometer.processor.create import COMPRESSION, STDOUT, NoSuchFormat, create
from tokenometer.processor.files.replay import PlacedLetter
from tokenometer.processor.records.rows import Names, label_maps, usage_counters, usage_lines
from tokenometer.schemas.mapping import Mapping
from tokenometer.schemas.usage import COUNTERS, FURTHER, ROW_SCHEMA_VERSION, TOTAL

_NDJSON, _PARQUET = (".ndjson", ".jsonl"), ".parquet"
_SLICE_ROWS = 1 << 15  # columns of a slice stay in the processor's cache; also a row group of a Parquet file
_GROUP_SLICES = 16


class RowWriter(Protocol):
    def write(self, rows: UsageRows, part: str) -> None: ...


# --- Usage rows ---


@contextlib.contextmanager
def open_rows(name: str, mapping: Mapping | None = None, force: bool = False) -> Iterator[RowWriter]:
    """A writer of usage rows in the format that the suffix names. mapping: of their log; without one they have neither
    labels nor further counters."""
    suffixes = [suffix for suffix in pathlib.Path(name).suffixes if suffix not in COMPRESSION]
    suffix = suffixes[-1] if suffixes else ""
    if name == STDOUT or suffix in _NDJSON:
        with create(name, force) as file:
            yield NdjsonRows(file)
    elif name.endswith(_PARQUET):
        schema = row_schema(mapping)
        with create(name, force) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
            yield ParquetRows(writer, schema)
    else:
        raise NoSuchFormat(f"{name}: expected a name that ends in .parquet, .ndjson, .jsonl, .ndjson.zst or .ndjson.gz")


ROW_SCHEMA = pa.schema(
    [
        pa.field("window_start", pa.timestamp("ms", "UTC"), nullable=False),
        *(pa.field(name, pa.string(), nullable=False) for name in ("user", "model", "chip", "part")),
        pa.field("window_ms", pa.int64(), nullable=False),
        *(pa.field(name, pa.uint64(), nullable=False) for name in (*COUNTERS, TOTAL)),
        pa.field("schema", pa.int32(), nullable=False),
    ]
)


def row_schema(mapping: Mapping | None) -> Any:
    """With a map `labels` after `chip` and columns for further counters after the total, where the mapping has such."""
    fields = list(ROW_SCHEMA)
    further = [field.name for field in mapping.further] if mapping else []
    fields[-1:-1] = [pa.field(name, pa.uint64(), nullable=False) for name in further]
    if mapping and mapping.labels:
        fields.insert(ROW_SCHEMA.get_field_index("part"), pa.field("labels", _LABELS, nullable=False))
    return pa.schema(fields)


_LABELS = pa.map_(pa.string(), pa.string())


@dataclass(frozen=True)
class ParquetRows:
    writer: Any
    schema: Any = ROW_SCHEMA

    def write(self, rows: UsageRows, part: str) -> None:
        for batch in record_batches(rows, part, self.schema):
            self.writer.write_batch(batch)


def record_batches(rows: UsageRows, part: str, schema: Any = ROW_SCHEMA) -> Iterator[Any]:
    """Rows as Arrow's record batches of a `row_schema`, 512 Ki rows each."""
    for start in range(0, len(rows), _SLICE_ROWS * _GROUP_SLICES):
        yield _record_batch(rows.slice(start, start + _SLICE_ROWS * _GROUP_SLICES), part, schema)


def _record_batch(rows: UsageRows, part: str, schema: Any) -> Any:
    count, table = len(rows), rows.table
    columns = {
        "window_start": pa.array((table["window"] * np.uint64(rows.window_ms)).astype(np.int64)).cast(
            pa.timestamp("ms", "UTC")
        ),
        **{name: Names(table[name], rows.arena).column() for name in ("user", "model", "chip")},
        "part": pa.repeat(part, count),
        "window_ms": pa.repeat(pa.scalar(rows.window_ms, pa.int64()), count),
        **dict(zip((*COUNTERS, TOTAL), map(pa.array, usage_counters(table)), strict=True)),
        "schema": pa.repeat(pa.scalar(ROW_SCHEMA_VERSION, pa.int32()), count),
    }
    if "labels" in schema.names:
        columns["labels"] = label_maps(rows)
    for kind, name in enumerate(FURTHER):
        if name in schema.names:
            values = np.zeros(count, np.uint64) if rows.extras is None else rows.extras["further"][:, kind]
            columns[name] = pa.array(np.ascontiguousarray(values))
    return pa.record_batch([columns[name] for name in schema.names], schema=schema)


@dataclass(frozen=True)
class NdjsonRows:
    file: Any

    def write(self, rows: UsageRows, part: str) -> None:
        for start in range(0, len(rows), _SLICE_ROWS):
            self.file.write(usage_lines(rows.slice(start, start + _SLICE_ROWS), part))


# --- Dead letters ---


@contextlib.contextmanager
def open_letters(name: str, force: bool = False) -> Iterator["LetterWriter"]:
    with create(name, force) as file:
        yield LetterWriter(file)


@dataclass(frozen=True)
class LetterWriter:
    """One JSON object a line: reason, field, file, line, offset, and the record as `value` or `value_base64`; where a
    mapping's decoder made several records of a value, the whole value, and `record`, the number in it; no value where
    other letters have 1 MiB of its copies."""

    file: Any

    def write(self, letters: Sequence[PlacedLetter]) -> None:
        self.file.write(b"".join(map(_letter_line, letters)))


def _letter_line(letter: PlacedLetter) -> bytes:
    place = {
        "reason": letter.reason,
        "field": letter.field,
        "file": letter.file,
        "line": letter.line,
        "offset": letter.offset,
    }
    if letter.record is not None:
        place["record"] = letter.record
    value = {} if letter.value is None else _value(letter.value)
    return orjson.dumps(place | value, option=orjson.OPT_APPEND_NEWLINE)


def _value(value: bytes) -> dict[str, str]:
    """As text where the bytes are UTF-8, which is what a person wants to read; else in base64."""
    try:
        return {"value": value.decode()}
    except UnicodeDecodeError:
        return {"value_base64": base64.b64encode(value).decode()}
