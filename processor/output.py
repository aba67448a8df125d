"""Writing results to files: usage rows as NDJSON or Parquet, dead letters as NDJSON.

Owns: the files' formats, and that a file of the wanted name is a complete one: it is written under another name and
renamed when all of it is there.
Promises: no Python step for each row. A row has the fields of schemas/usage.schema.json; in Parquet `window_start` is a
timestamp, in NDJSON its text. A dead letter keeps every byte of its record.
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
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kernels.values import UsageRows
from processor.replay import PlacedLetter
from schemas.mapping import COUNTS

STDOUT = "-"
SCHEMA_VERSION = 1
COUNTERS = ("requests", *COUNTS)
_COMPRESSION = {".gz": "gzip", ".zst": "zstd"}
_NDJSON, _PARQUET = (".ndjson", ".jsonl"), ".parquet"
_SLICE_ROWS = 1 << 15  # columns of a slice stay in the processor's cache; also a row group of a Parquet file
_GROUP_SLICES = 16


class OutputError(Exception):
    """A result that cannot be written; the message names the file and the way out."""


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
                yield file
        elif path.exists() and not path.is_file():
            with path.open("wb") as raw, _compressed(raw, path) as file:
                yield file
        else:
            check_free(name, force)
            with _renamed_at_end(path) as raw, _compressed(raw, path) as file:
                yield file
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"{name}: cannot be written: {error.strerror or error}") from None


def check_free(name: str, force: bool) -> None:
    """Before hours of work: may a file of this name be written?"""
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
    """In the same directory, so that renaming is one step."""
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
        *(pa.field(name, pa.uint64(), nullable=False) for name in (*COUNTERS, "total_tokens")),
        pa.field("schema", pa.int32(), nullable=False),
    ]
)


@dataclass(frozen=True)
class ParquetRows:
    writer: Any

    def write(self, rows: UsageRows, part: str) -> None:
        for start in range(0, len(rows), _SLICE_ROWS * _GROUP_SLICES):
            table = rows.table[start : start + _SLICE_ROWS * _GROUP_SLICES]
            self.writer.write_batch(_record_batch(table, rows, part))


def _record_batch(table: Any, rows: UsageRows, part: str) -> Any:
    count = len(table)
    counters = _counters(table)
    columns = [
        pa.array((table["window"] * np.uint64(rows.window_ms)).astype(np.int64)).cast(pa.timestamp("ms", "UTC")),
        *(Names(table[name], rows.arena).column() for name in ("user", "model", "chip")),
        pa.repeat(part, count),
        pa.repeat(pa.scalar(rows.window_ms, pa.int64()), count),
        *map(pa.array, counters),
        pa.repeat(pa.scalar(SCHEMA_VERSION, pa.int32()), count),
    ]
    return pa.record_batch(columns, schema=ROW_SCHEMA)


def _counters(table: Any) -> list[np.ndarray[Any, np.dtype[np.uint64]]]:
    """The six counters and the total. No sum can overflow: the engine bounds it (Engine._counters_have_room)."""
    columns = list(np.ascontiguousarray(table["counters"].T))
    return [*columns, columns[1] + columns[4]]


@dataclass(frozen=True)
class NdjsonRows:
    file: Any

    def write(self, rows: UsageRows, part: str) -> None:
        for start in range(0, len(rows), _SLICE_ROWS):
            self.file.write(usage_lines(rows.table[start : start + _SLICE_ROWS], rows, part))


def usage_lines(table: Any, rows: UsageRows, part: str) -> Any:
    """JSON lines, one for each row."""
    texts = usage_texts(table, rows, usage_identities(table, rows, part), end="\n")
    ends = np.frombuffer(texts.buffers()[1], np.int32)
    return memoryview(texts.buffers()[2])[: int(ends[len(table)])]


def usage_identities(table: Any, rows: UsageRows, part: str) -> Any:
    """The beginning of each row's JSON, all that identifies it: constants and columns joined by Arrow."""
    windows, window_of = np.unique(table["window"], return_inverse=True)
    times = np.datetime_as_string((windows * np.uint64(rows.window_ms)).astype("datetime64[ms]"), unit="s")
    heads = pa.array([f'{{"window_start":"{time}Z","user":' for time in times.tolist()])
    models, chips = (Names(table[name], rows.arena) for name in ("model", "chip"))
    return pc.binary_join_element_wise(
        heads.take(pa.array(window_of)),
        Names(table["user"], rows.arena).json_column(),
        models.json_column(',"model":', ""),
        chips.json_column(',"chip":', f',"part":{orjson.dumps(part).decode()}'),
        "",
    )


def usage_texts(table: Any, rows: UsageRows, identities: Any, end: str = "") -> Any:
    """Each row's whole JSON."""
    parts = [identities, f',"window_ms":{rows.window_ms}']
    for name, values in zip((*COUNTERS, "total_tokens"), _counters(table), strict=True):
        parts += [f',"{name}":', pc.cast(pa.array(values), pa.string())]
    return pc.binary_join_element_wise(*parts, f',"schema":{SCHEMA_VERSION}}}{end}', "")


class Names:
    """A column of names, places in an arena; each distinct one is looked at once."""

    def __init__(self, places: Any, arena: Any) -> None:
        encoded = pa.array(np.ascontiguousarray(places)).dictionary_encode()
        distinct, self._index = encoded.dictionary.to_numpy(), encoded.indices
        lengths = (distinct & np.uint64(0xFFFF)).astype(np.int64)
        ends = np.cumsum(lengths)
        # Byte i of all names together stands at i - (where its name begins here) + (where it begins in the arena).
        shift = (distinct >> np.uint64(16)).astype(np.int64) - (ends - lengths)
        self._bytes = arena[np.arange(int(ends[-1])) + np.repeat(shift, lengths)] if len(ends) else arena[:0]
        self._ends = np.concatenate((np.zeros(1, np.int32), ends.astype(np.int32)))

    def _distinct(self) -> Any:
        data = np.ascontiguousarray(self._bytes)
        return pa.StringArray.from_buffers(len(self._ends) - 1, pa.py_buffer(self._ends), pa.py_buffer(data))

    def column(self) -> Any:
        return self._distinct().take(self._index)

    def json_column(self, before: str = "", after: str = "") -> Any:
        """Each name as a JSON string, with constants around it."""
        names = self._distinct()
        if _needs_escapes(self._bytes):
            names, quote = pa.array([orjson.dumps(name).decode() for name in names.to_pylist()], pa.string()), ""
        else:
            quote = '"'
        texts = pc.binary_join_element_wise(before + quote, names, quote + after, "")
        return texts.take(self._index)


def _needs_escapes(data: Any) -> bool:
    return bool(((data < 0x20) | (data == 0x22) | (data == 0x5C)).any())


# --- Dead letters ---


@contextlib.contextmanager
def open_letters(name: str, force: bool = False) -> Iterator["LetterWriter"]:
    with create(name, force) as file:
        yield LetterWriter(file)


@dataclass(frozen=True)
class LetterWriter:
    """One JSON object a line: reason, field, file, line, offset, and the record as `value` or `value_base64`."""

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
    return orjson.dumps(place | _value(letter.value), option=orjson.OPT_APPEND_NEWLINE)


def _value(value: bytes) -> dict[str, str]:
    """As text where the bytes are UTF-8, which is what a person wants to read; else in base64."""
    try:
        return {"value": value.decode()}
    except UnicodeDecodeError:
        return {"value_base64": base64.b64encode(value).decode()}
