"""The rows of one part that may still change, and the table that is made of them once they are final. Pure.

Counters of an identity only grow, so its last row is the greatest of each counter, in whatever order rows came and
however often. Rows are put together now and then, so that a part takes the room of its identities, not of its messages.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from tokenometer.processor.broker import Offset
from tokenometer.processor.lake.values import TooLarge
from tokenometer.processor.ledger.values import Coded, LabelSet, LedgerRows
from tokenometer.schemas.usage import COUNTERS, FURTHER, TOTAL, Usage, total_of

I64_END = 1 << 63  # Iceberg has no unsigned numbers
_SLACK_ROWS = 200_000  # rows that wait to be put together, beyond as many as there are identities
_KEY = ["window_start", "user", "model", "chip", "labels"]
_COUNTS = (*COUNTERS, *FURTHER)
ARROW_SCHEMA = pa.schema(
    [
        pa.field("window_start", pa.timestamp("us", "UTC"), nullable=False),
        pa.field("window_ms", pa.int64(), nullable=False),
        *(pa.field(name, pa.string(), nullable=False) for name in ("user", "model", "chip")),
        pa.field("labels", pa.map_(pa.string(), pa.field("value", pa.string(), nullable=False)), nullable=False),
        pa.field("part", pa.string(), nullable=False),
        *(pa.field(name, pa.int64(), nullable=False) for name in (*COUNTERS, TOTAL, *FURTHER)),
    ]
)


class HeldPart:
    """firsts, ends: of each partition, the offset of the first row, and the one after the last."""

    def __init__(self, name: str, window_ms: int) -> None:
        self.name, self.window_ms = name, window_ms
        self.firsts: dict[int, Offset] = {}
        self.ends: dict[int, Offset] = {}
        self._names: dict[str, dict[Any, int]] = {name: {} for name in ("user", "model", "chip", "labels")}
        self._names["labels"][()] = 0
        self._merged: Any = None
        self._waiting: list[Any] = []
        self.rows = 0  # that are held, put together or not

    def add(self, rows: LedgerRows, chosen: Any, partition: int, first: Offset, end: Offset) -> None:
        """Rows of this part. chosen: which of `rows`, as booleans; None: all of them."""
        self.firsts.setdefault(partition, first)
        self.ends[partition] = end
        columns: dict[str, Any] = {"window_start": rows.window_starts}
        columns |= {name: self._coded(name, getattr(rows, name)) for name in ("user", "model", "chip")}
        columns["labels"] = self._labels(rows)
        columns |= dict(zip(COUNTERS, rows.counters, strict=True))
        if rows.further:
            columns |= dict(zip(FURTHER, rows.further, strict=True))
        table = pa.table(columns)
        if chosen is not None:
            table = table.filter(pa.array(chosen))
        self._waiting.append(table)
        self.rows += len(table)
        if self.rows > 2 * (len(self._merged) if self._merged is not None else 0) + _SLACK_ROWS:
            self._merge()

    def _coded(self, name: str, column: Coded) -> Any:
        return _numbers(self._names[name], column.names)[column.codes]

    def _labels(self, rows: LedgerRows) -> Any:
        if rows.labels is None:
            return np.zeros(len(rows), np.int32)
        return _numbers(self._names["labels"], rows.labels.sets)[rows.labels.codes]

    def _merge(self) -> Any:
        """Each identity once, with its greatest counters."""
        tables = [*([self._merged] if self._merged is not None else []), *self._waiting]
        if self._waiting:
            together = pa.concat_tables(tables, promote_options="default")
            counts = [name for name in _COUNTS if name in together.column_names]
            grouped = together.group_by(_KEY).aggregate([(name, "max") for name in counts])
            self._merged = grouped.rename_columns([name.removesuffix("_max") for name in grouped.column_names])
            self._waiting, self.rows = [], len(self._merged)
        return self._merged

    def final(self) -> tuple[Any, Usage]:
        """The rows as a table of ARROW_SCHEMA, those of a user together, and their sums. Raises TooLarge."""
        table = self._merge()
        if table is None:
            return ARROW_SCHEMA.empty_table(), Usage()
        codes = {name: table[name].to_numpy() for name in _KEY}
        by_name = _ranks(self._names["user"])[codes["user"]]
        order = np.lexsort((codes["window_start"], codes["chip"], codes["model"], by_name))
        codes = {name: column[order] for name, column in codes.items()}
        counts = {name: _ordered(table, name, order) for name in _COUNTS}
        counts[TOTAL] = total_of([counts[name] for name in COUNTERS])
        for name, values in counts.items():
            if values.max(initial=0) >= I64_END:
                raise TooLarge(
                    f"part {self.name}: a row's {name} is {values.max()}, and a number of Iceberg is below {I64_END}: "
                    f"no engine could read it"
                )
        columns = {"window_start": codes["window_start"] * 1000, "window_ms": np.full(len(table), self.window_ms)}
        columns |= {name: _texts(self._names[name], codes[name]) for name in ("user", "model", "chip")}
        columns["labels"] = _maps(list(self._names["labels"])).take(pa.array(codes["labels"]))
        columns["part"] = pa.repeat(pa.scalar(self.name), len(table))
        columns |= {name: values.astype(np.int64) for name, values in counts.items()}
        arrays = [pa.array(columns[field.name]).cast(field.type) for field in ARROW_SCHEMA]
        sums = Usage(*(sum_of(counts[name]) for name in COUNTERS))
        return pa.Table.from_arrays(arrays, schema=ARROW_SCHEMA), sums


def sum_of(values: Any) -> int:
    """The exact sum of unsigned numbers, which may be above 64 bits."""
    return (int((values >> np.uint64(32)).sum()) << 32) + int((values & np.uint64(0xFFFF_FFFF)).sum())


def _ordered(table: Any, name: str, order: Any) -> Any:
    if name not in table.column_names:
        return np.zeros(len(table), np.uint64)
    column = table[name]
    return (column.fill_null(0) if column.null_count else column).to_numpy()[order]


def _numbers(known: dict[Any, int], names: Sequence[Any]) -> Any:
    """names: different ones. Those that are new get the next numbers."""
    known.update(zip((name for name in names if name not in known), itertools.count(len(known)), strict=False))
    return np.fromiter(map(known.__getitem__, names), np.int32, len(names))


def _ranks(names: Mapping[bytes, int]) -> Any:
    ranks = np.empty(len(names), np.int32)
    ranks[sorted(range(len(names)), key=list(names).__getitem__)] = np.arange(len(names), dtype=np.int32)
    return ranks


def _texts(names: Mapping[bytes, int], codes: Any) -> Any:
    return pa.array(list(names), pa.binary()).cast(pa.string()).take(pa.array(codes))


def _maps(sets: Sequence[LabelSet]) -> Any:
    kind = ARROW_SCHEMA.field("labels").type
    return pa.array([[(name.decode(), value.decode()) for name, value in each] for each in sets], kind)
