"""Records of a chunk as columns: what is written of them, and their sums.

records-N.arrow  all that is needed of a record that may be a duplicate or have one; read again for those alone
marks-N.npy      eight bytes of each record, which say for which (`ids`)
sums-N.parquet   the counters of the chunk by row, duplicates included: `sums` takes those out again
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tokenometer.processor.verify import ids
from tokenometer.processor.verify.judge import Judged
from tokenometer.processor.verify.pages import Text
from tokenometer.processor.verify.quick import NUMBERS, TEXTS, Counted, Number
from tokenometer.processor.verify.values import COUNTERS, FURTHER

_BYTES = pa.binary()
KEYS = ("user", "model", "chip", "prefill_chip", "labels")  # of a sum, beside its window
WHERE = (("log_offset", pa.int64()), ("line", pa.int32()), ("generation", pa.int64()), ("window_start", pa.int64()))
RECORDS = pa.schema([*WHERE, *((name, _BYTES) for name in TEXTS), *((name, pa.int64()) for name in NUMBERS)])
SUMS = pa.schema(
    [("window_start", pa.int64()), *((name, _BYTES) for name in KEYS), ("records", pa.int64()),
     *((name, pa.int64()) for name in (*COUNTERS, *FURTHER))]
)  # fmt: skip


def of_judged(lines: Sequence[int], records: Sequence[Judged]) -> Counted:
    """What the judge said of single lines, as columns."""
    request_id, scope, times, *others = zip(*records, strict=True)
    names = others[:4]
    counters, labels, further = others[4 : 4 + len(COUNTERS)], others[4 + len(COUNTERS)], others[5 + len(COUNTERS) :]
    texts = (request_id, scope, *names, labels)
    numbers = (np.array(column, np.int64) for column in (*counters, *further))
    return Counted(
        np.array(lines, np.int64),
        np.array(times, np.int64),
        {name: pa.array(column, _BYTES) for name, column in zip(TEXTS, texts, strict=True)},
        dict(zip(NUMBERS, numbers, strict=True)),
    )


class Columns:
    """Parts of a chunk, one after another. What all of its records have in common is kept once."""

    def __init__(self, parts: Sequence[Counted], where: dict[str, np.ndarray[Any, Any]], window_ms: int) -> None:
        """where: of each line of the chunk."""
        self._sizes = [len(part.lines) for part in parts]
        self.count = sum(self._sizes)
        lines = np.concatenate([part.lines for part in parts])
        times = np.concatenate([part.times for part in parts])
        self.columns: dict[str, pa.ChunkedArray | pa.Array] = {
            name: pa.array(values[lines], RECORDS.field(name).type) for name, values in where.items()
        }
        self.columns["window_start"] = pa.array(times - times % window_ms)
        self.constants: dict[str, Text | Number] = {}
        for name in TEXTS:
            self._join(name, [part.texts[name] for part in parts])
        for name in NUMBERS:
            self._join(name, [part.numbers[name] for part in parts])

    def _join(self, name: str, values: Sequence[Any]) -> None:
        first, kind = values[0], RECORDS.field(name).type
        if not isinstance(first, (pa.Array, np.ndarray)) and all(
            type(value) is type(first) and value == first for value in values
        ):
            self.constants[name] = first
            return
        arrays = [
            pa.array(value, kind) if isinstance(value, np.ndarray)
            else value if isinstance(value, pa.Array)
            else pa.repeat(pa.scalar(value, kind), size)
            for value, size in zip(values, self._sizes, strict=True)
        ]  # fmt: skip
        self.columns[name] = pa.concat_arrays(arrays)

    def write(self, folder: str, number: int) -> dict[str, Any]:
        """Returns what the records have in common."""
        table = pa.table(self.columns)
        with pa.OSFile(f"{folder}/records-{number}.arrow", "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        np.save(f"{folder}/marks-{number}.npy", self._marks())
        pq.write_table(
            self.sums(), f"{folder}/sums-{number}.parquet", compression="none", use_dictionary=list(KEYS),
            write_statistics=False,
        )  # fmt: skip
        return self.constants

    def _marks(self) -> ids.Marks:
        request_ids = self.columns.get("request_id")
        if request_ids is None:
            constant = self.constants["request_id"]
            request_ids = pa.repeat(pa.scalar(constant, _BYTES), self.count)
        scopes = self.columns.get("scope")
        if scopes is None and self.constants["scope"]:
            scopes = pa.repeat(pa.scalar(self.constants["scope"], _BYTES), self.count)
        return ids.marks_of(request_ids, scopes)

    def sums(self) -> pa.Table:
        keys = ["window_start", *(name for name in KEYS if name in self.columns)]
        numbers = [name for name in (*COUNTERS, *FURTHER) if name in self.columns]
        table = pa.table({name: self.columns[name] for name in (*keys, *numbers)})
        wanted = [([], "count_all"), *((name, "sum") for name in numbers)]
        found = table.group_by(keys, use_threads=False).aggregate(wanted)
        records = found["count_all"]
        columns: list[Any] = []
        for field in SUMS:
            name = field.name
            if name in keys:
                columns.append(found[name])
            elif name == "records":
                columns.append(records)
            elif name in numbers:
                columns.append(found[f"{name}_sum"])
            elif name in KEYS:
                columns.append(pa.repeat(pa.scalar(self.constants[name], _BYTES), len(found)))
            else:
                columns.append(pa.array(np.asarray(records) * int(self.constants[name] or 0)))
        return pa.table(columns, schema=SUMS)


def read_again(folder: str, number: int, rows: np.ndarray[Any, Any], constants: dict[str, Any]) -> pa.Table:
    """These records of a chunk, with all their columns."""
    with pa.memory_map(f"{folder}/records-{number}.arrow") as file:
        table = pa.ipc.open_file(file).read_all().take(pa.array(rows))
    columns = [
        table[field.name] if field.name in table.column_names
        else pa.repeat(pa.scalar(constants[field.name], field.type), len(rows))
        for field in RECORDS
    ]  # fmt: skip
    return pa.table(columns, schema=RECORDS)
