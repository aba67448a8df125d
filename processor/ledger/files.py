"""Usage rows of files into a ledger, as `replay` writes them: Parquet, or JSON lines, compressed or not.

Promises: the same file again changes nothing, and one that was cut short is completed: a row's identity has its part's
name. A part that the ledger has with other rows is refused before anything is written, for two logs under one name
would be taken for one. So a file is read twice: to compare, and to take in.
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tokenometer.processor.broker import Messages, Place
from tokenometer.processor.ledger import decode
from tokenometer.processor.ledger.store import Store
from tokenometer.processor.ledger.values import LedgerBatch, LedgerError, LedgerRows

_BATCH_ROWS = 200_000
_CHUNK_BYTES = 8 << 20
_LINES = (".ndjson", ".jsonl", ".ndjson.gz", ".ndjson.zst", ".jsonl.gz", ".jsonl.zst")


class FileUnreadable(LedgerError):
    """A file of rows that cannot be read; the message names it and the place."""


class Loaded(NamedTuple):
    """new: rows that the ledger did not have."""

    rows: int
    new: int


def load(store: Store, name: str) -> Loaded:
    """All rows of a file, in as many transactions as it takes. Raises OtherRows where the ledger has one of its parts
    from something else; the store is then of no more use."""
    count, before = 0, _held(store)
    try:
        store.check_parts(_batches(name), name)
        for rows in _batches(name):
            store.take(LedgerBatch(rows, (), {}))
            count += len(rows)
    except (OSError, pa.ArrowException) as error:
        raise FileUnreadable(f"{name}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    return Loaded(count, _held(store) - before)


def _held(store: Store) -> int:
    [(count,)] = store.database.rows("SELECT count(*) FROM open_rows")
    return int(count)


def _batches(name: str) -> Iterator[LedgerRows]:
    if name.endswith(".parquet"):
        yield from _parquet(name)
    elif name.endswith(_LINES):
        yield from _lines(name)
    else:
        raise FileUnreadable(
            f"{name}: expected a name that ends in .parquet, .ndjson or .jsonl, or these with .gz or .zst"
        )


def _parquet(name: str) -> Iterator[LedgerRows]:
    first = 0
    with pq.ParquetFile(name) as file:
        for batch in file.iter_batches(_BATCH_ROWS):
            table = pa.Table.from_batches([batch])
            yield decode.of_table(_as_messages_have_it(table), f"{name}, rows {first + 1} to {first + len(table)}")
            first += len(table)


def _as_messages_have_it(table: Any) -> Any:
    """Times as texts; labels as a struct of texts, whether they are one or a map."""
    for number, field in enumerate(table.schema):
        column = table.column(number)
        if field.name == "window_start" and pa.types.is_timestamp(field.type):
            seconds = column.cast(pa.timestamp("s", "UTC"))
            column = pc.strftime(seconds, format="%Y-%m-%dT%H:%M:%SZ")
        elif field.name == "labels" and pa.types.is_map(field.type):
            sets = [dict(each) if each else {} for each in column.to_pylist()]
            names = sorted({name for each in sets for name in each})
            if not names:
                continue
            column = pa.array(sets, pa.struct([(name, pa.string()) for name in names]))
        elif pa.types.is_dictionary(field.type):
            column = column.cast(field.type.value_type)
        table = table.set_column(number, field.name, column)
    return table


def _lines(name: str) -> Iterator[LedgerRows]:
    first, values = 0, list[bytes]()
    for line in _text_lines(name):
        values.append(line)
        if len(values) == _BATCH_ROWS:
            yield _decoded(name, values, first)
            first += len(values)
            values = []
    if values:
        yield _decoded(name, values, first)


def _decoded(name: str, values: list[bytes], first: int) -> LedgerRows:
    offsets = np.arange(first, first + len(values), dtype=np.int64)
    messages = Messages(Place(name, 0), values, np.zeros(len(values), np.uint64), offsets)
    try:
        rows = decode.usage_rows([messages])
    except LedgerError as error:
        if first == 0 and _is_record(values[0]):
            raise FileUnreadable(
                f"{name}: this is a log, not usage rows: replay it first "
                f"(tokenometer replay {name} --out usage.parquet)"
            ) from None
        placed = re.sub(
            r", partition 0, offset (\d+)", lambda match: f", line {int(match[1]) + 1}", str(error), count=1
        )
        raise type(error)(placed) from None
    assert rows is not None
    return rows


def _is_record(line: bytes) -> bool:
    """Is it an object that has nothing of a usage row's key?"""
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    return isinstance(value, dict) and bool(value) and not value.keys() & {"window_start", "part", "window_ms"}


def _text_lines(name: str) -> Iterator[bytes]:
    """The last one may have no line break."""
    rest = b""
    with pa.input_stream(name, compression="detect") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            *whole, rest = (rest + chunk).split(b"\n")
            yield from whole
    if rest:
        yield rest
