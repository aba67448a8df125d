"""Writing results to files: usage rows as NDJSON or Parquet, dead letters as NDJSON.

Owns: the files' formats, and that a file of the wanted name is complete: it is written under another name and renamed
when all of it is there.
Promises: there is no Python step for each row. A row has the fields of schemas/usage.schema.json; in Parquet
`window_start` is a timestamp, in NDJSON its text. A dead letter keeps every byte of its record.
"""

import base64
import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from tokenometer.kernels.values import UsageRows
from tokenometer.processor import show
from tokenometer.processor.files.replay import PlacedLetter
from tokenometer.processor.records.rows import Names, usage_counters, usage_lines
from tokenometer.schemas.errors import TokenometerError
from tokenometer.schemas.usage import COUNTERS, SCHEMA_VERSION, TOTAL

STDOUT = "-"
_COMPRESSION = {".gz": "gzip", ".zst": "zstd"}
_NDJSON, _PARQUET = (".ndjson", ".jsonl"), ".parquet"
_SLICE_ROWS = 1 << 15  # columns of a slice stay in the processor's cache; also a row group of a Parquet file
_GROUP_SLICES = 16


class OutputError(TokenometerError):
    """A result cannot be written. The message names the file and what to do."""


class RowWriter(Protocol):
    def write(self, rows: UsageRows, part: str) -> None: ...


# --- Files ---


@contextlib.contextmanager
def create(name: str, force: bool = False) -> Iterator[Any]:
    """A file to write bytes to, compressed as its suffix says. It takes its name when the block ends without an error;
    before, that name stays what it was. `-` and things that are not regular files are written directly."""
    path = pathlib.Path(name)
    try:
        if name == STDOUT:
            with os.fdopen(os.dup(1), "wb") as file:
                yield _TerminalFile(file) if file.isatty() else file
        elif path.exists() and not path.is_file():
            with path.open("wb") as raw, _compressed(raw, path) as file:
                yield _TerminalFile(file) if raw.isatty() else file
        else:
            check_free(name, force)
            with _renamed_at_end(path) as raw, _compressed(raw, path) as file:
                yield file
    except BrokenPipeError:
        raise
    except OSError as error:
        shown = "standard output" if name == STDOUT else name
        raise OutputError(f"{shown}: cannot be written: {error.strerror or error}") from None


@dataclass(frozen=True)
class _TerminalFile:
    """JSON lines on a terminal. Characters that could steer it are written as JSON's escapes, which mean the same."""

    file: Any

    def write(self, lines: bytes | memoryview) -> None:
        self.file.write(show.printable_json(bytes(lines).decode(errors="backslashreplace")).encode())


def check_free(name: str, force: bool) -> None:
    """Checks, before hours of work, that a file of this name may be written."""
    path = pathlib.Path(name)
    if name == STDOUT:
        return
    if path.is_file() and not force:
        raise OutputError(f"{name}: exists; use --force to replace it")
    if path.is_dir():
        raise OutputError(f"{name}: is a directory; name a file in it")
    if not path.parent.is_dir():
        raise OutputError(f"{name}: there is no directory {path.parent}")


@contextlib.contextmanager
def _renamed_at_end(path: pathlib.Path) -> Iterator[Any]:
    """A temporary file in the same directory, so that renaming is one step."""
    mask = os.umask(0)
    os.umask(mask)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=".part", delete=False) as file:
        made = pathlib.Path(file.name)
        try:
            yield file
            if not file.closed:  # Arrow's streams close it
                file.flush()
            made.chmod(0o666 & ~mask)
            made.rename(path)
        finally:
            made.unlink(missing_ok=True)


@contextlib.contextmanager
def _compressed(raw: Any, path: pathlib.Path) -> Iterator[Any]:
    kind = _COMPRESSION.get(path.suffix)
    if kind is None:
        yield raw
        raw.flush()
        return
    with pa.CompressedOutputStream(pa.PythonFile(raw, "w"), kind) as stream:
        yield stream


# --- Usage rows ---


@contextlib.contextmanager
def open_rows(name: str, force: bool = False) -> Iterator[RowWriter]:
    """A writer of usage rows in the format that the suffix names."""
    suffixes = [suffix for suffix in pathlib.Path(name).suffixes if suffix not in _COMPRESSION]
    suffix = suffixes[-1] if suffixes else ""
    if name == STDOUT or suffix in _NDJSON:
        with create(name, force) as file:
            yield NdjsonRows(file)
    elif name.endswith(_PARQUET):
        with create(name, force) as file, pq.ParquetWriter(file, ROW_SCHEMA, compression="zstd") as writer:
            yield ParquetRows(writer)
    else:
        raise OutputError(f"{name}: expected a name that ends in .parquet, .ndjson, .jsonl, .ndjson.zst or .ndjson.gz")


ROW_SCHEMA = pa.schema(
    [
        pa.field("window_start", pa.timestamp("ms", "UTC"), nullable=False),
        *(pa.field(name, pa.string(), nullable=False) for name in ("user", "model", "chip", "part")),
        pa.field("window_ms", pa.int64(), nullable=False),
        *(pa.field(name, pa.uint64(), nullable=False) for name in (*COUNTERS, TOTAL)),
        pa.field("schema", pa.int32(), nullable=False),
    ]
)


@dataclass(frozen=True)
class ParquetRows:
    writer: Any

    def write(self, rows: UsageRows, part: str) -> None:
        for batch in record_batches(rows, part):
            self.writer.write_batch(batch)


def record_batches(rows: UsageRows, part: str) -> Iterator[Any]:
    """Rows as Arrow's record batches of ROW_SCHEMA, 512 Ki rows each."""
    for start in range(0, len(rows), _SLICE_ROWS * _GROUP_SLICES):
        yield _record_batch(rows.table[start : start + _SLICE_ROWS * _GROUP_SLICES], rows, part)


def _record_batch(table: Any, rows: UsageRows, part: str) -> Any:
    count = len(table)
    counters = usage_counters(table)
    columns = [
        pa.array((table["window"] * np.uint64(rows.window_ms)).astype(np.int64)).cast(pa.timestamp("ms", "UTC")),
        *(Names(table[name], rows.arena).column() for name in ("user", "model", "chip")),
        pa.repeat(part, count),
        pa.repeat(pa.scalar(rows.window_ms, pa.int64()), count),
        *map(pa.array, counters),
        pa.repeat(pa.scalar(SCHEMA_VERSION, pa.int32()), count),
    ]
    return pa.record_batch(columns, schema=ROW_SCHEMA)


@dataclass(frozen=True)
class NdjsonRows:
    file: Any

    def write(self, rows: UsageRows, part: str) -> None:
        for start in range(0, len(rows), _SLICE_ROWS):
            self.file.write(usage_lines(rows.table[start : start + _SLICE_ROWS], rows, part))


# --- Dead letters ---


@contextlib.contextmanager
def open_letters(name: str, force: bool = False) -> Iterator["LetterWriter"]:
    with create(name, force) as file:
        yield LetterWriter(file)


@dataclass(frozen=True)
class LetterWriter:
    """One JSON object a line: reason, field, file, line, offset, and the record as `value` or `value_base64`; where a
    mapping's decoder made several records of a value, the whole value, and `record`, the number in it."""

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
    return orjson.dumps(place | _value(letter.value), option=orjson.OPT_APPEND_NEWLINE)


def _value(value: bytes) -> dict[str, str]:
    """Text where the bytes are UTF-8, because a person wants to read it, and else base64."""
    try:
        return {"value": value.decode()}
    except UnicodeDecodeError:
        return {"value_base64": base64.b64encode(value).decode()}
