"""The audit's two sides while it reads: the sums of the log and the rows that were published.

Both are tables in memory (sums.h). In the end rows of the log whose published rows add up to them are done with; only
the others, and those with a record that may be a duplicate, go to DuckDB (`sums`). A stream whose tables are too large
for that goes there as a whole: a full table is written out and begun anew.

    logged-N.bin     what is needed of each record that may be a duplicate or have one; read again for those alone
    ends-N.npy       where each of these ends
    marks-N.npy      eight bytes of each, which say for which (`ids`)
    sums-N.parquet   rows of the log, duplicates included: `sums` takes those out again
    usage-N.parquet  published rows
    kept-N.parquet   those of parts that may go on, where a checkpoint is to be left
"""

import itertools
import secrets
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tokenometer.processor.verify import ids, tasks
from tokenometer.processor.verify.native import NUMBERS, Expected, Found, Ints, logged
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


class Tables:
    """Used by one thread at a time. memory_bytes: of both tables."""

    def __init__(self, folder: str, window_ms: int, memory_bytes: int) -> None:
        seed = secrets.randbits(64)  # nobody can make rows that have one place
        self.expected, self.found = Expected(window_ms, seed), Found(seed)
        self._folder, self._memory_bytes = folder, memory_bytes
        self._numbers = itertools.count()
        self._place: int | None = None
        self._logs: dict[int, list[int]] = {}  # of each place its files
        self._written: list[tuple[int, int, str]] = []  # rows that left the table: first, how many, file
        self._in_memory = True  # nothing has left the tables
        self.kept_parts: frozenset[bytes] | None = None  # whose rows are kept for a checkpoint

    # --- While the log is read ---

    def begin(self, place: int, is_context: bool = False) -> None:
        """Records that are added now are of this place. is_context: only later ones are audited."""
        if place != self._place:
            self._write_log()
            self._place = place
        self.expected.context(is_context)

    def add(self, found: Judgements, offsets: Ints, generations: Ints) -> None:
        """What the judge said. offsets, generations: of the chunk's messages."""
        at = found.messages
        self.expected.add(found.texts, found.times, found.numbers, offsets[at], generations[at], found.lines)

    def make_room(self) -> None:
        """Between two chunks."""
        if self.expected.log_bytes >= _LOG_BYTES:
            self._write_log()
        size = self.expected.size + self.found.size
        if self.expected.is_full or (size > self._memory_bytes and len(self.expected) > 0):
            self._write_expected()
        if self.found.size > self._memory_bytes // 2:
            self._write_found()

    def _write_log(self) -> None:
        if not self.expected.log_bytes:
            return
        assert self._place is not None
        number = next(self._numbers)
        with open(f"{self._folder}/logged-{number}.bin", "wb") as file:
            ends, marks = self.expected.take_log(file)
        np.save(f"{self._folder}/ends-{number}.npy", ends)
        np.save(f"{self._folder}/marks-{number}.npy", marks)
        self._logs.setdefault(self._place, []).append(number)

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
        self._write_log()
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
        rows, prefill_rows = found.pop("row"), found.pop("prefill_row")
        keys = self._rows(rows)
        absent = prefill_rows < 0
        chips = self._rows(np.where(absent, rows, prefill_rows))["chip"]
        chips = pa.chunked_array([chips.combine_chunks()]).take(pa.array(np.arange(len(rows)), mask=absent))
        return pa.table({**found, **{name: keys[name] for name in _KEYS}, "prefill_chip": chips})

    def _rows(self, numbers: Ints) -> pa.Table:
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
