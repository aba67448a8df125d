"""The engine: batches of raw bytes in, usage rows out. One orchestration for both targets; no I/O, no clock.

    load     a batch travels to the device and is split into lines, while the one before is counted
    count    segment by segment: parse, the referee's rulings, dedup, intern, aggregate
    remember  the same for messages that were counted before a restart: their request ids, and nothing else
    changes  the rows that changed since the last call, with absolute counters
    open_part  drop every table but the request ids

A segment is as many whole messages as fit a tile, or one large message. Before each, room for the most it could bring
is reserved in every table; where that fails, `count` stops and the caller commits and opens a new part. So no record
meets a full table.
"""

from bisect import bisect_right
from collections.abc import Container, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tokenometer.kernels import layout
from tokenometer.kernels.identities import IdentitySet
from tokenometer.kernels.plan import Plan, compile_mapping, sample
from tokenometer.kernels.target import Array, Lines, Target
from tokenometer.kernels.values import (
    Batch,
    Bytes,
    Canonical,
    CellTotals,
    DeadLetter,
    PartitionState,
    Progress,
    Referee,
    Rejection,
    Tally,
    UsageRows,
    WindowStartMs,
)
from tokenometer.schemas.mapping import Mapping
from tokenometer.schemas.usage import Usage

COUNTER_MAX = (1 << 64) - 1
RECORD_TOKENS_MAX = 5 << 40  # what one record adds to its user: five counts of less than 2^40, if all are additive
RELEARN_BATCHES = 1024  # logs change their shape with releases, not by the minute
CHANGES_SLICE_ROWS = 1 << 15  # 2.5 MiB: what comes and goes with each commit stays in the heap
_SCATTERED = "texts", "cells", "rows"  # tables of a part whose entries lie at random places
_PAGE_BYTES = 1 << 21  # a huge one: as many rows as a table has pages touch most of these
_FILL_LIMIT = 0.75  # of a table's slots: linear probing stays short


class TablesTooSmall(ValueError):
    """One message could overfill an empty table; the message names the setting."""


@dataclass(frozen=True)
class Limits:
    """Sizes of everything, and why.

    rows, cells, texts, windows: slots, powers of two. 68, 132, 36 and 16,404 bytes each. The first records of a part
        touch all of a table, and new pages cost more than counting: so no more than a part of a million rows needs.
    arena_bytes: names of users, models and chips.
    identity_bytes: request ids of all partitions, 16 bytes each at no more than 75 % load, two generations, and both
        sizes while growing.
    batch_bytes: what one batch holds; 32-bit positions bound it to 1 GiB.
    tile_records: 192 bytes each. A tile of a whole batch costs some cache misses, and less than Python between tiles.
    """

    rows: int = 1 << 21
    cells: int = 1 << 19
    texts: int = 1 << 20
    windows: int = 1 << 12
    arena_bytes: int = 1 << 26
    identity_bytes: int = 1 << 32
    batch_bytes: int = 6 << 20
    tile_records: int = 1 << 15

    def __post_init__(self) -> None:
        for name in ("rows", "cells", "texts", "windows"):
            value = getattr(self, name)
            if value < 16 or value & (value - 1) or value > 1 << 31:
                raise ValueError(f"{name} = {value}: expected a power of two from 16 to 2^31")
        if not 1 <= self.batch_bytes <= 1 << 30:
            raise ValueError(f"batch_bytes = {self.batch_bytes}: expected 1 to 2^30")
        if not 1 <= self.tile_records <= 1 << 24:
            raise ValueError(f"tile_records = {self.tile_records}: expected 1 to 2^24")

    @classmethod
    def from_memory(cls, memory_bytes: int, cuda: bool = False) -> "Limits":
        """Half of a budget for request ids, a quarter for rows, the rest for names, cells and sketches."""
        rows = _power_of_two(memory_bytes // 4 // 68)
        return cls(
            rows=rows,
            cells=rows // 4,
            texts=rows // 2,
            windows=min(1 << 13, _power_of_two(memory_bytes // 16 // layout.SKETCH_REGISTERS)),
            arena_bytes=rows * 8,
            identity_bytes=memory_bytes // 2,
            batch_bytes=min(1 << 26 if cuda else cls.batch_bytes, rows * 2),
            tile_records=min(1 << 20 if cuda else cls.tile_records, rows // 16),
        )


def _power_of_two(most: int) -> int:
    """The largest that is no more than `most`."""
    return 1 << max(4, most.bit_length() - 1)


class Loaded:
    """A batch on the device."""

    def __init__(self, batch: Batch, plan: "_DevicePlan", slot: "_Slot", lines: Lines) -> None:
        self.batch, self.plan, self.plan_table = batch, plan.plan, plan.table
        self.slot, self.lines = slot, lines
        self.referee_at = len(slot.memory) - layout.PADDING_BYTES - len(slot.batch_space)


@dataclass
class _DevicePlan:
    plan: Plan
    table: Array
    batches_to_go: int = 0  # until it learns again


@dataclass
class _Partition:
    identities: IdentitySet
    watermark_ms: int | None = None
    log_time_ms: int | None = None


class _Slot:
    """One batch buffer and its twin on the device. Two take turns."""

    def __init__(self, target: Target, limits: Limits) -> None:
        # | prefix | messages | padding | referee's text | padding |
        space = limits.batch_bytes
        self.memory = target.pinned(layout.PREFIX_BYTES + 2 * (space + layout.PADDING_BYTES))
        self.batch_space = self.memory[layout.PREFIX_BYTES : layout.PREFIX_BYTES + space]
        self.device = target.mirror(self.memory)
        self.line_start = target.zeros(space + 2, np.uint32)
        self.counted: Any = target.mark()  # when the kernels have done with it


_NO_FIELDS = ((0,) * layout.COUNTERS, (0,) * layout.TEXTS, (0,) * layout.TEXTS)  # of a ruling that rejects


def _place_texts(plan: Plan, record: Canonical, at: int, texts: list[bytes]) -> tuple[list[int], list[int], int]:
    """Where the record's strings stand in the buffer, their lengths, and where the next one goes.

    Defaults stand in the prefix; all else came out of the line, so space as large as the batch's is enough for what is
    added to `texts`.
    """
    places = []
    for text, (default, place) in zip(record.texts, plan.defaults, strict=True):
        if text == default:
            places.append(place)
        else:
            places.append(at)
            texts.append(text)
            at += len(text)
    return places, [len(text) for text in record.texts], at


class Engine:
    """Meters one device. Not thread-safe; kernels run while Python waits without the interpreter lock."""

    def __init__(
        self,
        target: Target,
        referee: Referee,
        *,
        secret: Sequence[int],
        limits: Limits | None = None,
        window_ms: int = 60_000,
        max_future_skew_ms: int = 3_600_000,
        dedup_horizon_ms: int = 600_000,
        sketch_seed: int = 0,
    ) -> None:
        if window_ms < 1000 or window_ms % 1000:
            raise ValueError(f"window_ms = {window_ms}: expected whole seconds, 1000 or more")
        if len(secret) != 8:
            raise ValueError("secret: expected eight random 64-bit numbers")
        self.target, self.limits, self.window_ms = target, limits or Limits(), window_ms
        self._referee = referee
        self._horizon_ms = dedup_horizon_ms
        self._plans: dict[str, _DevicePlan] = {}
        self._partitions: dict[Hashable, _Partition] = {}
        self._slots = [_Slot(target, self.limits) for _ in range(2)]
        self._turn = 0
        self._job = np.zeros((), layout.JOB)
        self._job["secret"] = list(secret)
        self._job["sketch_seed"] = sketch_seed
        self._job["window_ms"], self._job["windows_per_ms"] = window_ms, 1 / window_ms
        self._job["future_skew_ms"] = max_future_skew_ms
        self._records = target.zeros(self.limits.tile_records, layout.RECORD)
        self._doubtful = target.zeros(self.limits.tile_records, np.uint32)
        self._job["records"], self._job["doubtful"] = target.address(self._records), target.address(self._doubtful)
        self._fill = target.zeros(layout.FILLS, np.uint64)
        self._job["fill"] = target.address(self._fill)
        for name in ("texts", "cells", "rows", "windows"):
            self._job[f"{name}_mask"] = getattr(self.limits, name) - 1
        self._job["windows_limit"] = int(self.limits.windows * _FILL_LIMIT)
        self._arena_mirror: np.ndarray[Any, Any] | None = None
        self._tables: dict[str, Array] = {}
        self.parts_opened = 0
        self.open_part()

    # --- Parts ---

    def open_part(self) -> None:
        """Drop every table but the request ids. Rows that changed since the last `changes` are lost: commit first."""
        self._tables = self._kept_tables()  # the others go before new ones come: never are two parts in memory
        for name, (count, dtype) in self._table_sizes().items():
            if name not in self._tables:
                self._tables[name] = self.target.zeros(count, dtype)
        if not self.target.shares_memory:
            self._arena_mirror = self.target.pinned(self.limits.arena_bytes)
        for name, array in self._tables.items():
            self._job[name] = self.target.address(array)
        self._job["epoch"] = 1
        self._clear_fill(slice(0, layout.FILL_TALLY))  # the tally goes on over all parts
        self._arena_mirrored = 0
        self._tokens_bound, self._records_since_bound = 0, 0
        self._cells_seen = np.zeros((0, layout.COUNTERS), np.uint64)  # by the last `changed_cells`
        self.parts_opened += 1

    def _kept_tables(self) -> dict[str, Array]:
        """Cleared: that costs less than fresh pages (kernels/pages.py), if most of them were touched."""
        if not self._tables or int(self._read_fill()[layout.FILL_ROWS]) * _PAGE_BYTES < self._tables["rows"].nbytes:
            return {}
        with self.target.order:
            for name in _SCATTERED:
                self._tables[name].fill(0)
        return {name: self._tables[name] for name in _SCATTERED}

    def _table_sizes(self) -> dict[str, tuple[int, Any]]:
        """Slots and their type. The names are another part's too: rows that were taken out point into them."""
        limits = self.limits
        return {
            "texts": (limits.texts, layout.TEXT_ENTRY),
            "cells": (limits.cells, layout.CELL),
            "rows": (limits.rows, layout.ROW),
            "windows": (limits.windows, layout.WINDOW),
            "registers": (limits.windows * layout.SKETCH_REGISTERS // 4, np.uint32),
            "arena": (limits.arena_bytes + layout.PADDING_BYTES, np.uint8),
            "text_order": (limits.texts, np.uint32),
            "cell_order": (limits.cells, np.uint32),
            "window_order": (limits.windows, np.uint32),
            "changed": (limits.rows, np.uint32),
        }

    def forget(self, partition: Hashable) -> None:
        """Drop what is known of a partition, request ids and times: it went to another meter, or is read anew."""
        self._partitions.pop(partition, None)

    def partition_state(self, partition: Hashable) -> PartitionState:
        known = self._partition(partition)
        return PartitionState(known.watermark_ms, known.log_time_ms, known.identities.remembered_from)

    def resume(self, partition: Hashable, state: PartitionState) -> None:
        """Take over the times of a partition that was metered before; its request ids come back by `remember`."""
        known = self._partition(partition)
        known.watermark_ms = _latest(known.watermark_ms, state.watermark_ms)
        known.log_time_ms = _latest(known.log_time_ms, state.log_time_ms)

    # --- Batches in ---

    def open_batch(self, partition: Hashable = 0) -> Batch:
        """A batch to fill. Its memory is free again after the next batch but one is opened."""
        slot = self._slots[self._turn]
        self.target.wait(slot.counted)
        return Batch(slot.memory, slot.batch_space, partition=partition)

    def pack(
        self,
        values: Sequence[bytes | None],
        times: Sequence[int] | np.ndarray[Any, Any] | None = None,
        partition: Hashable = 0,
        offsets: np.ndarray[Any, np.dtype[np.int64]] | None = None,
    ) -> Batch:
        """A batch of message values; None is a tombstone. Raises ValueError where they do not fit."""
        data, ends = joined(values)
        return self.pack_lines([data], ends, times, partition, offsets)

    def pack_lines(
        self,
        pieces: Sequence[Bytes],
        ends: np.ndarray[Any, Any],
        times: Sequence[int] | np.ndarray[Any, Any] | None = None,
        partition: Hashable = 0,
        offsets: np.ndarray[Any, np.dtype[np.int64]] | None = None,
    ) -> Batch:
        """A batch of messages as `joined` makes them, in pieces. Raises ValueError where they do not fit."""
        batch = self.open_batch(partition)
        size = sum(map(len, pieces))
        if size > len(batch.space):
            raise ValueError(f"{size} bytes of messages: expected at most batch_bytes = {len(batch.space)}")
        batch.length = size
        if size:
            np.concatenate(pieces, out=batch.space[:size])
        batch.message_end = ends.astype(np.uint32)
        batch.message_time = None if times is None else np.asarray(times, np.uint64)
        batch.message_offset = offsets
        return batch

    def load(self, batch: Batch, mapping: Mapping) -> Loaded:
        """Send a filled batch to the device and split it. Returns at once on a GPU."""
        slot = self._slots[self._turn]
        assert batch.memory is slot.memory, "batches are loaded in the order in which they are opened"
        assert batch.message_end is not None and (batch.length == 0 or batch.space[batch.length - 1] == 0x0A)
        self._turn = 1 - self._turn
        known = self._plan(mapping, batch)
        prefix = known.plan.prefix
        end = layout.PREFIX_BYTES + batch.length
        slot.memory[: len(prefix)] = np.frombuffer(prefix, np.uint8)
        slot.memory[end : end + layout.PADDING_BYTES] = 0x0A
        self.target.send_ahead(slot.memory[: end + layout.PADDING_BYTES], slot.device[: end + layout.PADDING_BYTES])
        lines = self.target.split(slot.device, layout.PREFIX_BYTES, batch.length, slot.line_start)
        return Loaded(batch, known, slot, lines)

    def _plan(self, mapping: Mapping, batch: Batch) -> _DevicePlan:
        """The mapping's plan; now and then it learns from the batch at hand."""
        known = self._plans.get(mapping.source)
        if known is None or known.plan.mapping != mapping:
            plan = compile_mapping(mapping)
            self._check_room_for_a_message(plan)
            known = self._plans[mapping.source] = _DevicePlan(plan, self.target.zeros(layout.PLAN.itemsize, np.uint8))
            self.target.send_behind(plan.as_bytes(), known.table)
        if known.batches_to_go == 0 and known.plan.learn(sample(batch.space[: batch.length])):
            self.target.send_behind(known.plan.as_bytes(), known.table)
            known.batches_to_go = RELEARN_BATCHES
        known.batches_to_go = max(0, known.batches_to_go - 1)
        return known

    def _check_room_for_a_message(self, plan: Plan) -> None:
        """Could one segment overfill an empty table? A segment is one message or at most a tile of records."""
        size = self.limits.batch_bytes
        most = size // plan.record_bytes_min + 1
        for name, needed in (("texts", 4 * most), ("cells", 2 * most), ("rows", 2 * most)):
            slots = getattr(self.limits, name)
            if needed > slots * _FILL_LIMIT:
                raise TablesTooSmall(
                    f"{name} = {slots} slots: a message of batch_bytes = {size} may bring {needed}, more "
                    f"than {_FILL_LIMIT:.0%} of them; give the meter more memory"
                )
        if self.limits.arena_bytes < 2 * self.limits.batch_bytes + layout.PREFIX_BYTES:
            raise TablesTooSmall(
                f"arena_bytes = {self.limits.arena_bytes}: expected more than twice batch_bytes = {size}"
            )

    # --- Counting ---

    def count(self, loaded: Loaded, first_message: int = 0) -> Progress:
        """Count the batch's messages from `first_message` on, as far as they fit into the open part."""
        return self._take(loaded, first_message, counting=True)

    def remember(self, loaded: Loaded) -> None:
        """Take in the request ids of messages that were counted before a restart. Nothing else of them shows."""
        self._take(loaded, 0, counting=False)

    def _take(self, loaded: Loaded, first_message: int, counting: bool) -> Progress:
        batch = loaded.batch
        assert batch.message_end is not None
        line_count = loaded.lines.count()
        ends = self._line_ends(loaded, line_count)  # past each message's last line
        partition = self._partition(batch.partition)
        log_times = self._log_times(batch, first_message, partition.log_time_ms or 0)
        turns = None if log_times is None else np.divmod(log_times, np.uint64(self._horizon_ms))
        self._point_at(loaded, line_count)
        letters: list[DeadLetter] = []
        message = first_message
        while message < len(ends):
            line = int(ends[message - 1]) if message else 0
            after = max(message + 1, int(np.searchsorted(ends, line + self.limits.tile_records, side="right")))
            if turns is not None:
                generations, passed_ms = turns
                offset = message if batch.message_offset is None else int(batch.message_offset[message])
                passed = int(passed_ms[message]) / self._horizon_ms
                partition.identities.turn_to(int(generations[message]), passed, offset)
                after = min(after, int(np.searchsorted(generations, generations[message], side="right")))
            lines = int(ends[after - 1]) - line
            size = int(batch.message_end[after - 1]) - (int(batch.message_end[message - 1]) if message else 0)
            most = min(lines, size // loaded.plan.record_bytes_min + 1)
            if counting and not self._has_room(most, size + len(loaded.plan.prefix)):
                break
            for first in range(line, line + lines, self.limits.tile_records):
                last = min(first + self.limits.tile_records, line + lines)
                letters += self._take_tile(loaded, partition.identities, ends, first, last - first, counting)
            message = after
            if log_times is not None:
                partition.log_time_ms = int(log_times[message - 1])
        self._raise_watermark(partition)
        loaded.slot.counted = self.target.mark()
        return Progress(message, letters)

    def _raise_watermark(self, partition: _Partition) -> None:
        seen = int(self._read_fill()[layout.FILL_WATERMARK])
        if seen:
            partition.watermark_ms = _latest(partition.watermark_ms, seen - 1)
            self._clear_fill(slice(layout.FILL_WATERMARK, layout.FILL_WATERMARK + 1))

    def _line_ends(self, loaded: Loaded, line_count: int) -> np.ndarray[Any, Any]:
        ends = loaded.batch.message_end
        assert ends is not None
        if line_count == len(ends):
            return np.arange(1, line_count + 1, dtype=np.int64)
        starts = self.target.fetch(loaded.slot.line_start[: line_count + 1])
        return np.searchsorted(starts, ends + np.uint32(layout.PREFIX_BYTES), side="left")

    def _log_times(self, batch: Batch, first_message: int, before_ms: int) -> np.ndarray[Any, Any] | None:
        """Log time at each message: the prefix maximum of message times. Messages before the first are left at 0."""
        if batch.message_time is None:
            return None
        log_times = np.zeros(len(batch.message_time), np.uint64)
        rest = np.maximum.accumulate(batch.message_time[first_message:])
        log_times[first_message:] = np.maximum(rest, np.uint64(before_ms))
        return log_times

    def _point_at(self, loaded: Loaded, line_count: int) -> None:
        batch, slot, address = loaded.batch, loaded.slot, self.target.address
        assert batch.message_end is not None
        ends = batch.message_end + np.uint32(layout.PREFIX_BYTES)
        # Kept until the next batch: the device reads them.
        self._message_end = self.target.send(ends)
        self._message_time = None if batch.message_time is None else self.target.send(batch.message_time)
        job = self._job
        job["buffer"], job["line_start"] = address(slot.device), address(slot.line_start)
        job["plan"] = address(loaded.plan_table)
        job["message_end"], job["message_count"] = address(self._message_end), len(ends)
        job["message_time"] = 0 if self._message_time is None else address(self._message_time)
        job["line_is_message"] = line_count == len(ends)

    def _take_tile(
        self,
        loaded: Loaded,
        identities: IdentitySet,
        ends: np.ndarray[Any, Any],
        first: int,
        count: int,
        counting: bool,
    ) -> list[DeadLetter]:
        letters: list[DeadLetter] = []
        launch, job = self.target.launch, self._job
        identities.reserve(count, job)
        launch("parse", job, first, count)
        doubtful = int(self._read_fill()[layout.FILL_DOUBTFUL])
        if doubtful:
            letters = self._ask_referee(loaded, ends, first, doubtful)
        launch("claim", job, first, count)
        if counting:
            launch("settle", job, first, count)
            launch("count", job, first, count)
            self._records_since_bound += count
        return letters

    def _ask_referee(self, loaded: Loaded, ends: np.ndarray[Any, Any], first: int, doubtful: int) -> list[DeadLetter]:
        """Rule on the tile's doubtful records, in their order; the accepted ones go back to the tile."""
        # Plain integers throughout: for a few records a numpy call costs more than what it does.
        records = sorted(self.target.fetch(self._doubtful[:doubtful]).tolist())
        self._clear_fill(slice(layout.FILL_DOUBTFUL, layout.FILL_DOUBTFUL + 1))
        starts = self.target.fetch(loaded.slot.line_start[first + records[0] : first + records[-1] + 2])
        times = loaded.batch.message_time
        letters: list[DeadLetter] = []
        rulings: list[tuple[Any, ...]] = []
        texts: list[bytes] = []
        text_at = loaded.referee_at
        for record in records:
            line = first + record
            message = bisect_right(ends, line)
            start, after = starts[record - records[0] : record - records[0] + 2].tolist()
            value = loaded.slot.memory[start : after - 1].tobytes()
            ruling = self._referee(value, loaded.plan.mapping, None if times is None else int(times[message]))
            if isinstance(ruling, Rejection):
                in_message = line - (int(ends[message - 1]) if message else 0)
                letters.append(DeadLetter(message, in_message, ruling, value, line, start - layout.PREFIX_BYTES))
                rulings.append((0, *_NO_FIELDS, record, layout.REJECTED))
            else:
                places, lengths, text_at = _place_texts(loaded.plan, ruling, text_at, texts)
                rulings.append((ruling.time_ms, ruling.counters, places, lengths, record, layout.ACCEPTED))
        self._write_texts(loaded, b"".join(texts))
        sent = self.target.send(np.array(rulings, layout.RULING))
        self._job["rulings"] = self.target.address(sent)
        self.target.launch("adopt", self._job, first, doubtful)
        return letters

    def _write_texts(self, loaded: Loaded, texts: bytes) -> None:
        """Put the strings of rulings behind the batch, where `_place_texts` said."""
        written = slice(loaded.referee_at, loaded.referee_at + len(texts))
        loaded.slot.memory[written] = np.frombuffer(texts, np.uint8)
        self.target.send_behind(loaded.slot.memory[written], loaded.slot.device[written])
        loaded.referee_at = written.stop

    def _has_room(self, records: int, size: int) -> bool:
        """Can every table take the most that so many records of so many bytes could bring?"""
        fill, limits = self._read_fill(), self.limits
        return (
            int(fill[layout.FILL_TEXTS]) + 4 * records <= limits.texts * _FILL_LIMIT
            and int(fill[layout.FILL_CELLS]) + 2 * records <= limits.cells * _FILL_LIMIT
            and int(fill[layout.FILL_ROWS]) + 2 * records <= limits.rows * _FILL_LIMIT
            and int(fill[layout.FILL_ARENA]) + size <= limits.arena_bytes
            and (int(fill[layout.FILL_WINDOWS]) < limits.windows * _FILL_LIMIT or not fill[layout.FILL_ROWS])
            and self._counters_have_room(records)
        )

    def _counters_have_room(self, records: int) -> bool:
        """No counter exceeds what all cells hold together; that sum plus the most that came since must fit 64 bits."""
        if self._tokens_bound + (self._records_since_bound + records) * RECORD_TOKENS_MAX <= COUNTER_MAX:
            return True
        self._tokens_bound = int(self._cells()["counters"].astype(np.float64).sum() * 1.001)
        self._records_since_bound = 0
        return self._tokens_bound + records * RECORD_TOKENS_MAX <= COUNTER_MAX

    # --- Results out ---

    def changes(self) -> Iterator[UsageRows]:
        """The rows that changed since the last call, in slices of bounded size; none if there are none.

        Each slice owns its table. Behind the last one a new set of changes begins; an iterator that is given up earlier
        changes nothing. Nothing may be counted in between.
        """
        before = self._read_fill().copy()
        count, arena = int(before[layout.FILL_CHANGED]), self._arena()
        for first in range(0, count, CHANGES_SLICE_ROWS):
            out = self.target.zeros(min(CHANGES_SLICE_ROWS, count - first), layout.USAGE_ROW)
            self._job["usage_rows"] = self.target.address(out)
            self.target.launch("export_rows", self._job, first, len(out))
            yield UsageRows(self.target.fetch(out).view(layout.USAGE_ROW).reshape(-1), arena, self.window_ms)
        assert (self._read_fill() == before).all(), "nothing is counted while changes are taken out"
        self._job["epoch"] += 1
        self._clear_fill(slice(layout.FILL_CHANGED, layout.FILL_CHANGED + 1))

    def tally(self) -> Tally:
        """Fates of all records since the engine began."""
        tally = self._read_fill()[layout.FILL_TALLY :].tolist()
        assert tally[layout.DOUBTFUL] == 0, "the referee ruled on every doubtful record"
        return Tally(
            counted=tally[layout.ACCEPTED],
            duplicates=tally[layout.DUPLICATE],
            rejected=tally[layout.REJECTED],
            empty=tally[layout.EMPTY],
        )

    def cells(self) -> list[CellTotals]:
        """Every (window, model, chip) of the open part, in order of arrival."""
        return self._cell_totals(self._cells())

    def changed_cells(self) -> list[CellTotals]:
        """Those that changed since the last call, with absolute counters."""
        table = self._cells()
        counters = table["counters"]
        changed = np.ones(len(table), bool)
        changed[: len(self._cells_seen)] = (counters[: len(self._cells_seen)] != self._cells_seen).any(axis=1)
        self._cells_seen = counters.copy()
        return self._cell_totals(table[changed])

    def _cell_totals(self, table: np.ndarray[Any, Any]) -> list[CellTotals]:
        windows = (table["window"] * np.uint64(self.window_ms)).tolist()
        models, chips = self._names(table["model"]), self._names(table["chip"])
        counters = table["counters"].tolist()
        return [
            CellTotals(WindowStartMs(start), model, chip, Usage(*row))
            for start, model, chip, row in zip(windows, models, chips, counters, strict=True)
        ]

    def totals(self) -> Usage:
        """Of the open part."""
        return Usage(*self._cells()["counters"].sum(axis=0).tolist())

    def top_users(self, most: int) -> list[tuple[str, int]]:
        """The users with the most tokens (input and output) in the open part, most first."""
        users = int(self._read_fill()[layout.FILL_TEXTS])
        if most < 1:
            return []
        with self.target.order:
            slots = self._tables["text_order"][:users]
            if users > most:
                tokens = self._tables["texts"][slots, 3]
                slots = slots[self.target.xp.argpartition(tokens, users - most)[users - most :]]
            tokens = self._tables["texts"][slots, 3]
        found = zip(self._names(self.target.fetch(slots)), self.target.fetch(tokens).tolist(), strict=True)
        return sorted(((user, total) for user, total in found if total), key=lambda item: (-item[1], item[0]))

    def user_tokens(self) -> dict[str, int]:
        """Tokens of every user in the open part."""
        return dict(self.top_users(self.limits.texts))

    def sketches(self, wanted: Container[WindowStartMs] | None = None) -> dict[WindowStartMs, Bytes]:
        """The HyperLogLog of users of each window (or of those wanted): 2^14 registers, to be merged by maximum."""
        count = int(self._read_fill()[layout.FILL_WINDOWS])
        with self.target.order:
            slots = self._tables["window_order"][:count]
            windows = self._tables["windows"][slots, 0]
        starts = [WindowStartMs((low - 1) * self.window_ms) for low in self.target.fetch(windows).tolist()]
        chosen = [k for k, start in enumerate(starts) if wanted is None or start in wanted]
        with self.target.order:
            registers = self._tables["registers"].reshape(self.limits.windows, -1)[slots[chosen]]
        rows = self.target.fetch(registers).view(np.uint8)
        return {starts[k]: row for k, row in zip(chosen, rows, strict=True)}

    def fill(self) -> dict[str, tuple[int, int]]:
        """Used and usable slots (bytes for the arena) of each table."""
        fill, limits = self._read_fill().tolist(), self.limits
        usable = {name: int(getattr(limits, name) * _FILL_LIMIT) for name in ("texts", "cells", "rows", "windows")}
        indices = {
            "texts": layout.FILL_TEXTS,
            "cells": layout.FILL_CELLS,
            "rows": layout.FILL_ROWS,
            "windows": layout.FILL_WINDOWS,
        }
        used = {name: (fill[index], usable[name]) for name, index in indices.items()}
        return used | {"arena": (fill[layout.FILL_ARENA], limits.arena_bytes)}

    def unsketched_rows(self) -> int:
        """Rows of the open part whose window found no room for a sketch: its active users are understated."""
        return int(self._read_fill()[layout.FILL_UNSKETCHED])

    # --- Inside ---

    def _partition(self, partition: Hashable) -> _Partition:
        if partition not in self._partitions:
            identities = IdentitySet(self.target, self.limits.identity_bytes, self._identity_sets)
            self._partitions[partition] = _Partition(identities)
        return self._partitions[partition]

    def _identity_sets(self) -> Iterator[IdentitySet]:
        return (partition.identities for partition in self._partitions.values())

    def _read_fill(self) -> np.ndarray[Any, Any]:
        return self.target.fetch(self._fill)

    def _clear_fill(self, which: slice) -> None:
        self.target.send_behind(np.zeros(which.stop - which.start, np.uint64), self._fill[which])

    def _cells(self) -> np.ndarray[Any, Any]:
        count = int(self._read_fill()[layout.FILL_CELLS])
        with self.target.order:
            cells = self._tables["cells"][self._tables["cell_order"][:count]]
        table: np.ndarray[Any, Any] = self.target.fetch(cells).view(layout.CELL).reshape(-1)
        return table

    def _names(self, slots: Array) -> list[str]:
        """The strings of text slots; each distinct one is decoded once."""
        distinct, index = np.unique(np.asarray(slots), return_inverse=True)
        with self.target.order:
            found = self._tables["texts"][self.target.xp.asarray(distinct), 2]
        where = self.target.fetch(found).tolist()
        arena = self._arena()
        starts = [(value >> layout.OFFSET_SHIFT, value & layout.LENGTH_MASK) for value in where]
        names = [bytes(arena[start : start + length]).decode() for start, length in starts]
        return [names[i] for i in index.tolist()]

    def _arena(self) -> Bytes:
        """The arena on the host; only what is new is copied."""
        used = int(self._read_fill()[layout.FILL_ARENA])
        arena = self._tables["arena"]
        if self._arena_mirror is None:
            return self.target.fetch(arena[:used])
        if used > self._arena_mirrored:
            self._arena_mirror[self._arena_mirrored : used] = self.target.fetch(arena[self._arena_mirrored : used])
            self._arena_mirrored = used
        return self._arena_mirror[:used]


def _latest(a: int | None, b: int | None) -> int | None:
    return b if a is None else a if b is None else max(a, b)


def joined(values: Sequence[bytes | None]) -> tuple[Bytes, np.ndarray[Any, np.dtype[np.int64]]]:
    """All values, each ended by one newline (its own, if it has one), and the places behind these."""
    try:
        data, ends = _lines(values)  # type: ignore[arg-type]
    except TypeError:
        return joined([value or b"" for value in values])
    doubled = data[np.maximum(ends, 2) - 2] == 0x0A
    if not doubled.any():  # an empty value behind another one looks doubled too: no harm
        return data, ends
    return _lines([(value or b"").removesuffix(b"\n") for value in values])


def _lines(values: Sequence[bytes]) -> tuple[Bytes, np.ndarray[Any, np.dtype[np.int64]]]:
    lengths = np.fromiter(map(len, values), np.int64, len(values))
    return np.frombuffer(b"\n".join([*values, b""]), np.uint8), np.cumsum(lengths + 1)
