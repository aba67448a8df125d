"""The audit's two sides while it reads: the sums of the log and the rows that were published.

Both are tables in memory (sums.h). In the end rows of the log whose published rows add up to them are done with; only
the others, and those with a record that may be a duplicate, go to DuckDB (`sums`). A stream whose tables are too large
for that goes there as a whole: a full table is written out and begun anew.

    logged-N.bin     what is needed of each record that may be a duplicate or have one; read again for those alone
    ends-N.npy       where each of these ends
    marks-N.npy      eight bytes of each, which say for which (`ids`)
    rows-N.npy       of each its row's number, and that of its prefill chip's row
    sums-N.parquet   rows of the log, duplicates included: `sums` takes those out again
    usage-N.parquet  published rows
    kept-N.parquet   those of parts that may go on, where a checkpoint is to be left
"""

import itertools
import secrets
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tokenometer.processor.verify import ids, tasks
from tokenometer.processor.verify.native import NO_ROW, NUMBERS, Expected, Found, Ints, Records, RowNumbers, logged
from tokenometer.processor.verify.tasks import Judgements

_LOG_BYTES = 32 << 20  # that are kept before they are written
_KEYS = ("window_start", "user", "model", "chip", "labels")


@dataclass(frozen=True)
class Agreed:
    """Rows that are the same on both sides. parts: of each part what its rows add up to, by NUMBERS."""

    rows: int = 0
    parts: dict[bytes, list[int]] = field(default_factory=dict)

    def totals(self) -> list[int]:
        return [sum(column) for column in zip(*self.parts.values(), strict=True)] or [0] * len(NUMBERS)


class _Log:
    """A file of records of one place, as it grows."""

    def __init__(self, folder: str, number: int) -> None:
        self._folder, self.number, self.size = folder, number, 0
        self._file = open(f"{folder}/logged-{number}.bin", "wb")  # noqa: SIM115  closed when it is full
        self._arrays: dict[str, list[np.ndarray[Any, Any]]] = {"ends": [], "marks": [], "rows": []}

    def add(self, records: Records, rows: RowNumbers) -> None:
        ends, marks = records.write_log(self._file)
        found = {"ends": ends + np.uint64(self.size), "marks": marks, "rows": rows}
        for name, array in found.items():
            self._arrays[name].append(array)
        self.size = int(found["ends"][-1])

    def end(self) -> None:
        self.close()
        for name, arrays in self._arrays.items():
            np.save(f"{self._folder}/{name}-{self.number}.npy", np.concatenate(arrays))

    def close(self) -> None:
        self._file.close()


class Tables:
    """`records` is for one thread, the others are for another one. memory_bytes: of both tables."""

    def __init__(self, folder: str, window_ms: int, memory_bytes: int) -> None:
        self._seed = secrets.randbits(64)  # nobody can make rows that have one place
        self.expected, self.found = Expected(), Found(self._seed)
        self._folder, self._window_ms, self._memory_bytes = folder, window_ms, memory_bytes
        self._numbers = itertools.count()
        self._free: list[Records] = []  # whose memory is used again
        self._place: int | None = None
        self._log: _Log | None = None
        self._logs: dict[int, list[int]] = {}  # of each place its files
        self._written: list[tuple[int, int, str]] = []  # rows that left the table: first, how many, file
        self._in_memory = True  # nothing has left the tables
        self.kept_parts: frozenset[bytes] | None = None  # whose rows are kept for a checkpoint

    # --- While the log is read ---

    def records(self) -> Records:
        """Of a chunk, to be filled and added."""
        return self._free.pop() if self._free else Records(self._window_ms, self._seed)

    def add(self, records: Records, place: int, is_context: bool = False) -> None:
        """Records of one place. is_context: only later ones are audited."""
        rows = self.expected.add(records, is_context)
        if len(rows):
            if self._log is not None and (place != self._place or self._log.size >= _LOG_BYTES):
                self._end_log()
            if self._log is None:
                self._place, self._log = place, _Log(self._folder, next(self._numbers))
                self._logs.setdefault(place, []).append(self._log.number)
            self._log.add(records, rows)
        records.clear()
        self._free.append(records)

    def add_judged(self, found: Judgements, offsets: Ints, generations: Ints, place: int, is_context: bool) -> None:
        """What the judge said. offsets, generations: of the chunk's messages."""
        at, records = found.messages, self.records()
        records.add(found.texts, found.times, found.numbers, offsets[at], generations[at], found.lines)
        self.add(records, place, is_context)

    def _end_log(self) -> None:
        if self._log is not None:
            self._log.end()
            self._log = None

    def make_room(self) -> None:
        """Between two chunks."""
        size = self.expected.size + self.found.size
        if self.expected.is_full or (size > self._memory_bytes and len(self.expected) > 0):
            self._write_expected()
        if self.found.size > self._memory_bytes // 2:
            self._write_found()

    def _write_expected(self) -> None:
        first = sum(count for _, count, _ in self._written)
        table = self.expected.table(np.arange(len(self.expected)))
        file = tasks.write_table(self._folder, "sums", next(self._numbers), table)
        self._written.append((first, len(table), file))
        self.expected.clear()
        self._in_memory = False

    def _write_found(self) -> None:
        self._keep()
        tasks.write_table(self._folder, "usage", next(self._numbers), self.found.table())
        self.found.clear()
        self._in_memory = False

    def _keep(self) -> None:
        if self.kept_parts is not None:
            tasks.write_table(self._folder, "kept", next(self._numbers), self.found.table(self.kept_parts))

    # --- In the end ---

    def write_repeated(self, grows: dict[int, bool], begins: dict[int, int]) -> None:
        """Writes the records that may be duplicates, or have one. grows: of each place, whether its repeats grow.
        begins: of each place, the first offset that is audited; records before it are context."""
        self._end_log()
        for place, numbers in self._logs.items():
            repeated = ids.Repeated([f"{self._folder}/marks-{number}.npy" for number in numbers])
            for number in numbers if len(repeated) else ():
                entries = np.flatnonzero(repeated.holds(np.load(f"{self._folder}/marks-{number}.npy")))
                if len(entries):
                    table = self._read_again(number, entries)
                    context = table["log_offset"].to_numpy() < begins[place]
                    tasks.write_repeated(self._folder, number, place, grows[place], context, table)

    def _read_again(self, number: int, entries: Ints) -> pa.Table:
        data = np.memmap(f"{self._folder}/logged-{number}.bin", np.uint8, "r")
        found = logged(data, np.load(f"{self._folder}/ends-{number}.npy", mmap_mode="r"), entries)
        rows, prefill_rows = np.load(f"{self._folder}/rows-{number}.npy", mmap_mode="r")[entries].T
        keys = self._rows(rows)
        absent = prefill_rows == NO_ROW
        chips = self._rows(np.where(absent, rows, prefill_rows))["chip"]
        chips = pa.chunked_array([chips.combine_chunks()]).take(pa.array(np.arange(len(rows)), mask=absent))
        return pa.table({**found, **{name: keys[name] for name in _KEYS}, "prefill_chip": chips})

    def _rows(self, numbers: RowNumbers) -> pa.Table:
        """The texts of rows, wherever they are. Those that are still in the table do not agree from now on."""
        different, places = np.unique(numbers, return_inverse=True)
        tables, known = [], 0
        for first, count, file in self._written:
            some = different[(different >= first) & (different < first + count)] - first
            if len(some):
                tables.append(pq.read_table(file, columns=list(_KEYS)).take(pa.array(some)))
            known = first + count
        live = different[different >= known] - known
        if len(live):
            self.expected.touch(live)
            tables.append(self.expected.table(live).select(_KEYS))
        return pa.concat_tables(tables).take(pa.array(places.ravel()))

    def write_rows(self) -> Agreed:
        """Writes what DuckDB has to look at; returns what agrees. The tables are empty afterwards."""
        self._keep()
        agreed = Agreed()
        if self._in_memory:
            agreed = Agreed(*self.found.agree(self.expected))
        for kind, table in (("sums", self.expected.table()), ("usage", self.found.table())):
            tasks.write_table(self._folder, kind, next(self._numbers), table)
        self.expected.clear()
        self.found.clear()
        return agreed

    def close(self) -> None:
        """Wherever the audit ended."""
        if self._log is not None:
            self._log.close()
