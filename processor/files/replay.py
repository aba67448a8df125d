"""Metering files: logs go through one engine, and their totals come out.

Owns: the order of things (read ahead, load, count, close a part) and the sums over parts.
Promises: no clock and no output of its own; the sums do not depend on the batches, the parts or the order of the rows.
Every record is accounted for, or the replay stops with an assertion.

    reader thread:   fill 1 │ fill 2  │ fill 3  │ ...
    this thread:            │ count 1 │ count 2 │ ... ── a table is full, or the end ──> rows out, sums folded, new part
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson

from tokenometer.kernels import layout
from tokenometer.kernels.engine import CONFLICTING, Engine, Loaded
from tokenometer.kernels.values import Bytes, DeadLetter, Tally, UsageRows
from tokenometer.processor.files.clock import FixedClock, LogClock
from tokenometer.processor.files.logs import Chunk, ReadAhead
from tokenometer.processor.records import hyperloglog, plausible
from tokenometer.processor.records.sample import keys_of, leaves_of
from tokenometer.schemas.mapping import Mapping
from tokenometer.schemas.usage import DAY_MS, Usage

_PARTITION = "files"  # one for all files of a replay: a request that is in two of them is a duplicate
_WAIT_SECONDS = 0.2  # between looks at `stopped` while a pipe has nothing to read


@dataclass(frozen=True)
class PlacedLetter:
    """A rejected record and where it was in its log.

    record: its number in its value, from 0, where a value holds several; `value` is the whole one then, or None where
    other letters have enough copies of it.
    """

    file: str
    line: int  # the first is 1
    offset: int  # in bytes, after decompression
    reason: str
    field: str | None
    value: bytes | None
    record: int | None = None


@dataclass(frozen=True)
class BusiestWindow:
    start_ms: int
    tokens: int
    tokens_per_day: int


@dataclass(frozen=True)
class ReplaySummary:
    """What a replay found, over all its parts."""

    partial: bool  # stopped before the logs ended
    read_bytes: int  # as they lie on disk
    log_bytes: int  # after decompression
    tally: Tally
    rejects: dict[str, int]  # reason, or reason:field; the most frequent first
    parts: int
    usage_rows: int
    window_ms: int
    windows: int
    first_window_ms: int | None
    end_of_last_window_ms: int | None
    busiest_window: BusiestWindow | None
    usage: Usage
    by_model: dict[str, Usage]  # most tokens first, as in all of these
    by_chip: dict[str, Usage]
    by_model_and_chip: dict[tuple[str, str], Usage]
    top_users: list[tuple[str, int]]
    active_users: int  # an estimate, with a standard error of 0.81 %
    active_users_understated: bool  # more windows than sketches
    fault_keys: tuple[str, ...] = ()  # of the first record that was rejected for the most frequent reason
    fault_unit: str | None = None  # where that is its time: the epoch format in which it would be of our time


@dataclass(frozen=True)
class ReplayProgress:
    """How far a replay is."""

    read_bytes: int
    log_bytes: int
    records: int
    tokens: Callable[[], int]  # costs milliseconds: not to be called for every batch


@dataclass(frozen=True)
class Outlets:
    """Where a replay's results go when they come, and what may end it early."""

    rows: Callable[[UsageRows, str], None] | None = None  # the rows of a closed part, and its name
    letters: Callable[[list[PlacedLetter]], None] | None = None
    progress: Callable[[ReplayProgress], None] | None = None  # after each batch
    stopped: Callable[[], bool] = lambda: False


def replay(
    engine: Engine,
    reader: Callable[[Bytes], Chunk | None],
    mapping: Mapping,
    run: str,
    outlets: Outlets,
    top: int = 10,
    clock: LogClock | FixedClock | None = None,
) -> ReplaySummary:
    """Meter everything that `reader` fills in. Parts are named `<run>-part-<n>`. clock: message times; request ids are
    forgotten by them after the engine's horizon, as in a topic; without one they are remembered to the end."""
    return _Replay(engine, mapping, run, outlets, top, clock).run(reader)


@dataclass
class _Sums:
    """Sums over closed parts."""

    cells: dict[tuple[str, str], Usage] = field(default_factory=dict)
    window_tokens: Counter[int] = field(default_factory=Counter)
    users: Counter[str] = field(default_factory=Counter)
    top_users: list[tuple[str, int]] = field(default_factory=list)
    registers: Bytes = field(default_factory=lambda: hyperloglog.merge([]))
    usage_rows: int = 0
    unsketched_rows: int = 0
    parts: int = 0

    def tokens(self) -> int:
        return sum(self.window_tokens.values())


class _Replay:
    def __init__(
        self,
        engine: Engine,
        mapping: Mapping,
        run: str,
        outlets: Outlets,
        top: int,
        clock: LogClock | FixedClock | None,
    ) -> None:
        self._clock = clock
        self._engine, self._mapping, self._name, self._outlets, self._top = engine, mapping, run, outlets, top
        self._sums = _Sums()
        self._rejects: Counter[str] = Counter()
        self._keys: dict[str, tuple[str, ...]] = {}  # of the first record of each kind of reject
        self._units: dict[str, str | None] = {}  # of its time
        self._lines_before = 0  # of this batch, in its log
        self._lines = 0  # of all logs
        self._log_bytes = self._read_bytes = 0

    def run(self, reader: Callable[[Bytes], Chunk | None]) -> ReplaySummary:
        ahead = ReadAhead(reader)
        partial = False
        try:
            batch = self._engine.open_batch(_PARTITION)
            ahead.begin(batch.space)
            while (chunk := self._wait(ahead)) is not None:
                if chunk is _STOPPED:
                    partial = True
                    break
                batch.length, batch.message_end = chunk.length, chunk.message_end
                if self._clock:  # each record is a message
                    batch.message_end, batch.message_time = self._clock(batch.space[: chunk.length])
                loaded = self._engine.load(batch, self._mapping)
                batch = self._engine.open_batch(_PARTITION)  # the one before last: counted
                ahead.begin(batch.space)
                self._count(loaded, chunk)
                self._report()
        finally:
            ahead.close()
        self._close_part(last=True)
        return self._summary(partial)

    def _wait(self, ahead: ReadAhead) -> Chunk | None:
        while not self._outlets.stopped():
            try:
                return ahead.wait(_WAIT_SECONDS)
            except TimeoutError:
                continue
        return _STOPPED

    def _count(self, loaded: Loaded, chunk: Chunk) -> None:
        """Count a batch, in as many parts as it takes."""
        first, opened = 0, False
        messages = loaded.batch.message_end
        assert messages is not None
        while True:
            progress = self._engine.count(loaded, first)
            self._reject(chunk, progress.dead_letters)
            assert progress.next_message > first or not opened, "an empty part takes at least one message"
            first = progress.next_message
            if first == len(messages):
                break
            self._close_part(last=False)
            self._engine.open_part()
            opened = True
        lines = loaded.count_lines()
        self._lines_before = lines if chunk.offset == 0 else self._lines_before + lines
        self._lines += lines
        self._log_bytes += chunk.length
        self._read_bytes = chunk.read_bytes

    def _reject(self, chunk: Chunk, letters: list[DeadLetter]) -> None:
        if not letters:
            return
        before = 0 if chunk.offset == 0 else self._lines_before
        placed = [_placed(chunk, before, letter) for letter in letters]
        for each in placed:
            if each.reason != CONFLICTING.reason:  # a duplicate, not a reject
                fault = f"{each.reason}:{each.field}" if each.field else each.reason
                self._rejects[fault] += 1
                if fault not in self._keys and each.value is not None:
                    self._keys[fault] = keys_of(each.value)
                    if each.field == "timestamp":
                        self._units[fault] = _unit_of(each.value, self._mapping)
        if self._outlets.letters:
            self._outlets.letters(placed)

    def _report(self) -> None:
        if self._outlets.progress:
            self._outlets.progress(ReplayProgress(self._read_bytes, self._log_bytes, self._lines, self._tokens))

    def _tokens(self) -> int:
        totals = self._engine.totals()
        return self._sums.tokens() + totals[layout.INPUT] + totals[layout.OUTPUT]

    def _close_part(self, last: bool) -> None:
        """Take everything out of the open part."""
        engine, sums = self._engine, self._sums
        sums.parts += 1
        sums.usage_rows += engine.fill()["rows"][0]
        sums.unsketched_rows += engine.unsketched_rows()
        for cell in engine.cells():
            key = cell.model, cell.chip
            # Python's integers: a sum over parts may exceed 64 bits.
            sums.cells[key] = sums.cells[key].plus(cell.counters) if key in sums.cells else cell.counters
            sums.window_tokens[cell.window_start] += cell.counters.total_tokens
        sums.registers = hyperloglog.merge([sums.registers, *engine.sketches().values()])
        self._fold_users(last)
        if self._outlets.rows:
            taken = 0
            for rows in engine.changes():
                taken += len(rows)
                self._outlets.rows(rows, f"{self._name}-part-{sums.parts}")
            assert taken == engine.fill()["rows"][0], "a part's rows are taken once, at its end"

    def _fold_users(self, last: bool) -> None:
        """Exact over parts; a single part is asked for no more users than are wanted."""
        sums = self._sums
        if last and sums.parts == 1:
            sums.top_users = self._engine.top_users(self._top)
            return
        sums.users.update(self._engine.user_tokens())
        if last:
            sums.top_users = sorted(sums.users.items(), key=lambda item: (-item[1], item[0]))[: self._top]

    def _summary(self, partial: bool) -> ReplaySummary:
        sums, engine = self._sums, self._engine
        tally = engine.tally()
        by_cell = sums.cells
        usage = Usage.sum_of(by_cell.values())
        assert tally.read == self._lines, f"{self._lines} lines read, {tally} accounted for"
        assert tally.rejected == self._rejects.total(), f"{tally}, {self._rejects.total()} dead letters"
        assert usage.requests <= tally.counted
        windows = sums.window_tokens
        rejects = dict(sorted(self._rejects.items(), key=lambda item: (-item[1], item[0])))
        return ReplaySummary(
            partial=partial,
            read_bytes=self._read_bytes,
            log_bytes=self._log_bytes,
            tally=tally,
            rejects=rejects,
            parts=sums.parts,
            usage_rows=sums.usage_rows,
            window_ms=engine.window_ms,
            windows=len(windows),
            first_window_ms=min(windows, default=None),
            end_of_last_window_ms=max(windows) + engine.window_ms if windows else None,
            busiest_window=_busiest(windows, engine.window_ms),
            usage=usage,
            by_model=_grouped(by_cell, 0),
            by_chip=_grouped(by_cell, 1),
            by_model_and_chip=_sorted(by_cell),
            top_users=sums.top_users,
            active_users=round(hyperloglog.estimate(sums.registers)),
            active_users_understated=sums.unsketched_rows > 0,
            fault_keys=self._keys[next(iter(rejects))] if rejects else (),
            fault_unit=self._units.get(next(iter(rejects))) if rejects else None,
        )


_STOPPED = Chunk("", 0, 0, np.zeros(0, np.uint32), 0)


def _unit_of(record_text: bytes, mapping: Mapping) -> str | None:
    """The epoch format that the record's time seems to have, where the mapping reads another one."""
    field = mapping.field("timestamp")
    try:
        record: Any = orjson.loads(record_text)
    except orjson.JSONDecodeError:
        return None
    leaves = dict(leaves_of(record)) if isinstance(record, dict) else {}
    value = next((leaves[path] for path in field.paths if leaves.get(path) is not None), None)
    digits = isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20
    unit = plausible.unit_of(int(str(value)) if digits else value)
    return None if unit is None or {unit, f"{unit}_decimal"} & set(field.formats) else unit


def _placed(chunk: Chunk, lines_before: int, letter: DeadLetter) -> PlacedLetter:
    """Turns a line and byte of a batch into a line and byte of a log."""
    if chunk.origins is not None:
        value, record, failure, data = chunk.origins.of(letter.batch_line)
        reason, field = (failure, None) if failure else (letter.rejection.reason, letter.rejection.field)
        return PlacedLetter(chunk.file, value.number, value.offset, reason, field, data, record)
    return PlacedLetter(
        file=chunk.file,
        line=lines_before + letter.batch_line + 1,
        offset=chunk.offset + letter.start,
        reason=letter.rejection.reason,
        field=letter.rejection.field,
        value=letter.value,
    )


# --- Sums ---


def _grouped(by_cell: dict[tuple[str, str], Usage], place: int) -> dict[str, Usage]:
    """Takes one pass, because there may be 100,000 models."""
    groups: dict[str, list[Usage]] = {}
    for key, usage in by_cell.items():
        groups.setdefault(key[place], []).append(usage)
    return _sorted({name: Usage.sum_of(usages) if len(usages) > 1 else usages[0] for name, usages in groups.items()})


def _sorted(usages: dict[Any, Usage]) -> dict[Any, Usage]:
    return dict(sorted(usages.items(), key=lambda item: (-item[1].total_tokens, item[0])))


def _busiest(window_tokens: Counter[int], window_ms: int) -> BusiestWindow | None:
    """The window with the most tokens, the earliest of several. Late records hardly move it."""
    if not window_tokens:
        return None
    start = min(window_tokens, key=lambda window: (-window_tokens[window], window))
    return BusiestWindow(start, window_tokens[start], window_tokens[start] * DAY_MS // window_ms)
