"""The engine: batches of raw bytes in, usage rows out. One orchestration for both targets; no I/O, no clock.

    load     a batch travels to the device and is split into lines, while the one before is counted (load_raw: record
             batches of Kafka, whose records are found there)
    count    segment by segment: parse (on a CPU of several cores beside the batch before), the referee's rulings,
             dedup, intern, aggregate
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
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np

from tokenometer.kernels import layout, room
from tokenometer.kernels.identities import IdentitySet
from tokenometer.kernels.limits import Limits as Limits
from tokenometer.kernels.loaded import DevicePlan, RawLoaded, Slot, Tile
from tokenometer.kernels.loaded import Loaded as Loaded
from tokenometer.kernels.part import Fill, Part
from tokenometer.kernels.plan import Plan, compile_mapping
from tokenometer.kernels.rulings import Texts, beside
from tokenometer.kernels.target import Array, Target
from tokenometer.kernels.values import (
    Batch,
    Bytes,
    Canonical,
    CellTotals,
    DeadLetter,
    PartitionState,
    Progress,
    RawBatches,
    Referee,
    Rejection,
    Tally,
    UsageRows,
    WindowStartMs,
)
from tokenometer.schemas.errors import TokenometerError
from tokenometer.schemas.mapping import Mapping
from tokenometer.schemas.usage import Usage

READ_AHEAD_LINES = 1024  # fewer are read before another core has begun
RELEARN_BATCHES = 1024  # logs change their shape with releases, not by the minute


class TablesTooSmall(TokenometerError, ValueError):
    """One message could overfill an empty table; the message names the setting."""


@dataclass
class _Partition:
    identities: IdentitySet
    watermark_ms: int | None = None
    log_time_ms: int | None = None


class _Line(NamedTuple):
    """A record's line in its batch."""

    message: int
    in_message: int
    value: bytes
    number: int
    start: int

    def rejected(self, rejection: Rejection) -> DeadLetter:
        return DeadLetter(self.message, self.in_message, rejection, self.value, self.number, self.start)


CONFLICTING = Rejection("conflicting_duplicate")
_IDENTITY_SLOT_WORD = layout.RECORD.fields["identity_slot"][1] // 4  # type: ignore[index]
_NO_FIELDS = ((0,) * layout.COUNTERS, (0,) * layout.TEXTS, (0,) * layout.TEXTS)  # of a ruling that does not accept
_NO_PAST_MS = 1 << 62  # no bound


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
        max_past_ms: int | None = None,
        not_before_ms: int = 0,
        dedup_horizon_ms: int = 600_000,
        sketch_seed: int = 0,
        conflict_letters: bool = True,
    ) -> None:
        """conflict_letters: duplicates that say something else become dead letters; they are tallied in any case."""
        if window_ms < 1000 or window_ms % 1000:
            raise ValueError(f"window_ms = {window_ms}: expected whole seconds, 1000 or more")
        if len(secret) != 8:
            raise ValueError("secret: expected eight random 64-bit numbers")
        self.target, self.limits, self.window_ms = target, limits or Limits(), window_ms
        self._referee = referee
        self._horizon_ms = dedup_horizon_ms
        self._plans: dict[str, DevicePlan] = {}
        self._partitions: dict[Hashable, _Partition] = {}
        # Where lines are read while others are counted, there is a tile for each.
        self._tiles = [Tile(target, self.limits.tile_room) for _ in range(1 + target.reads_ahead)]
        self._slots = [Slot(target, self.limits, self._tiles[k % len(self._tiles)]) for k in range(2)]
        self._turn = 0
        self._job = np.zeros((), layout.JOB)
        self._job["secret"] = list(secret)
        self._job["sketch_seed"] = sketch_seed
        self._job["window_ms"], self._job["windows_per_ms"] = window_ms, 1 / window_ms
        self._job["future_skew_ms"] = max_future_skew_ms
        self._job["past_ms"] = _NO_PAST_MS if max_past_ms is None else max_past_ms
        self._job["not_before_ms"] = not_before_ms
        self._conflicts = target.zeros(self.limits.tile_room if conflict_letters else 0, np.uint32)
        self._job["conflicts"] = target.address(self._conflicts) if conflict_letters else 0
        self._fill = Fill(target)
        self._job["fill"] = target.address(self._fill.array)
        self._fill_ahead, self._job_ahead = Fill(target), np.zeros((), layout.JOB)  # of lines that are read ahead
        self._label_numbers: dict[str, int] = {}
        self._has_extras = self._reads_further = False  # whether a mapping has labels or further counters; the latter
        self._part = self._new_part({})
        self.parts_opened = 1

    # --- Parts ---

    def open_part(self) -> None:
        """Drop every table but the request ids. Rows that changed since the last `changes` are lost: commit first."""
        self._part = self._new_part(self._part.give_up())
        self.parts_opened += 1

    def _new_part(self, kept: dict[str, Array]) -> Part:
        part = Part(self.target, self.limits, self._job, self._fill, kept, self._label_numbers)
        if self._has_extras:
            part.has_extras(self._reads_further)
        return part

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
        return Batch(slot.buffer.memory, slot.buffer.space, partition=partition)

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
        one_line: bool = False,
    ) -> Batch:
        """A batch of messages as `joined` makes them, in pieces; one_line: each is known to be one line. Raises
        ValueError where they do not fit."""
        batch = self.open_batch(partition)
        size = sum(map(len, pieces))
        if size > len(batch.space):
            raise ValueError(f"{size} bytes of messages: expected at most batch_bytes = {len(batch.space)}")
        if size:
            np.concatenate(pieces, out=batch.space[:size])
        return batch.holding(ends, times, offsets, one_line)

    def batch_in(
        self,
        buffer: Bytes,
        ends: np.ndarray[Any, Any],
        times: Sequence[int] | np.ndarray[Any, Any] | None = None,
        partition: Hashable = 0,
        offsets: np.ndarray[Any, np.dtype[np.int64]] | None = None,
        one_line: bool = False,
    ) -> Batch:
        """A batch of messages that are in memory of this layout already (layout.h), which is the engine's from now on.
        Only for a target that shares memory."""
        assert self.target.shares_memory and int(ends[-1]) <= self.limits.batch_bytes
        self.open_batch(partition)  # its turn
        batch = Batch(buffer, buffer[layout.PREFIX_BYTES :], partition=partition)
        return batch.holding(ends, times, offsets, one_line)

    def load(self, batch: Batch, mapping: Mapping) -> Loaded:
        """Send a filled batch to the device and split it. Returns at once on a GPU."""
        assert batch.message_end is not None and (batch.length == 0 or batch.space[batch.length - 1] == 0x0A)
        return Loaded(self.target, batch, self._plan(mapping), self._take_turn(batch))

    def load_raw(self, raw: RawBatches, mapping: Mapping, partition: Hashable = 0) -> RawLoaded:
        """Send record batches to the device and walk them there. Returns at once on a GPU; what they hold is known
        after `count` or `remember`. Raises ValueError where they do not fit."""
        if len(raw.data) > self.limits.batch_bytes:
            size = self.limits.batch_bytes
            raise ValueError(f"{len(raw.data)} bytes of records: expected at most batch_bytes = {size}")
        batch = self.open_batch(partition)
        return RawLoaded(self.target, raw, batch, self._plan(mapping), self._take_turn(batch))

    def _take_turn(self, batch: Batch) -> Slot:
        slot = self._slots[self._turn]
        own = any(batch.memory is each.buffer.memory for each in self._slots)
        assert not own or batch.memory is slot.buffer.memory, "batches are loaded in the order in which they are opened"
        self._turn = 1 - self._turn
        return slot

    def _plan(self, mapping: Mapping) -> DevicePlan:
        known = self._plans.get(mapping.source)
        if known is None or known.plan.mapping != mapping:
            plan = compile_mapping(mapping)
            if too_small := room.shortage(self.limits, plan):
                raise TablesTooSmall(too_small)
            if plan.has_extras:
                self._make_room_for_extras(plan)
            known = self._plans[mapping.source] = DevicePlan(plan, self.target.zeros(layout.PLAN.itemsize, np.uint8))
            self.target.send_behind(plan.as_bytes(), known.table)
        return known

    def _learn(self, loaded: Loaded) -> None:
        """Now and then a plan learns from the batch at hand."""
        known = loaded.known
        if known.batches_to_go == 0 and known.plan.learn(loaded.sample()):
            self.target.send_behind(known.plan.as_bytes(), known.table)
            known.batches_to_go = RELEARN_BATCHES
        known.batches_to_go = max(0, known.batches_to_go - 1)

    def _make_room_for_extras(self, plan: Plan) -> None:
        plan.number_labels(self._label_numbers)
        for tile in self._tiles:
            tile.make_room_for_extras()
        self._has_extras = True
        self._reads_further |= bool(plan.mapping.further)
        self._part.has_extras(self._reads_further)

    # --- Counting ---

    def count(self, loaded: Loaded, first_message: int = 0, following: Loaded | None = None) -> Progress:
        """Count the batch's messages from `first_message` on, as far as they fit into the open part. following: the
        batch that was loaded after it, whose lines another core may read meanwhile."""
        return self._take(loaded, first_message, counting=True, following=following)

    def remember(self, loaded: Loaded) -> None:
        """Take in the request ids of messages that were counted before a restart. Nothing else of them shows."""
        self._take(loaded, 0, counting=False)

    def _take(self, loaded: Loaded, first_message: int, counting: bool, following: Loaded | None = None) -> Progress:
        batch, line_count = loaded.batch, loaded.count_lines()
        assert batch.message_end is not None
        if first_message == 0:
            self._learn(loaded)
        ends = self._line_ends(loaded, line_count)  # past each message's last line
        partition = self._partition(batch.partition, grows=loaded.plan.note_counters)
        log_times = _log_times(batch, partition.log_time_ms or 0)
        self._point_at(self._job, loaded)
        self._messages = loaded.messages()  # kept until the next batch: the device reads them
        letters: list[DeadLetter] = []
        message = first_message
        while message < len(ends):
            line = int(ends[message - 1]) if message else 0
            tile = self.limits.tile_of(int(ends[-1]) - line)
            after = max(message + 1, int(np.searchsorted(ends, line + tile, side="right")))
            if log_times is not None:
                generation, passed_ms = divmod(int(log_times[message]), self._horizon_ms)
                offset = message if batch.message_offset is None else int(batch.message_offset[message])
                partition.identities.turn_to(generation, passed_ms / self._horizon_ms, offset)
                turn_ms = np.uint64((generation + 1) * self._horizon_ms)
                after = min(after, int(np.searchsorted(log_times, turn_ms)))
            lines = int(ends[after - 1]) - line
            size = int(batch.message_end[after - 1]) - (int(batch.message_end[message - 1]) if message else 0)
            if counting and not self._part.has_room(loaded.plan.most(lines, size)):
                break
            first, last = line, line + lines
            while first < last:
                count = self.limits.tile_of(last - first)
                after_it = following if first + count == ends[-1] else None
                letters += self._take_tile(loaded, partition.identities, ends, first, count, counting, after_it)
                first += count
            message = after
            if log_times is not None:
                partition.log_time_ms = int(log_times[message - 1])
        self._raise_watermark(partition)
        loaded.slot.counted = self.target.mark()
        return Progress(message, letters)

    def _raise_watermark(self, partition: _Partition) -> None:
        seen = int(self._fill.read()[layout.FILL_WATERMARK])
        if seen:
            partition.watermark_ms = _latest(partition.watermark_ms, seen - 1)
            self._fill.clear(layout.FILL_WATERMARK, layout.FILL_WATERMARK + 1)

    def _line_ends(self, loaded: Loaded, line_count: int) -> np.ndarray[Any, Any]:
        ends = loaded.batch.message_end
        assert ends is not None
        if line_count == len(ends):
            return np.arange(1, line_count + 1, dtype=np.int64)
        starts = self.target.fetch(loaded.slot.line_start[: line_count + 1])
        return np.searchsorted(starts, ends + np.uint32(layout.PREFIX_BYTES), side="left")

    def _point_at(self, job: np.ndarray[Any, Any], loaded: Loaded) -> None:
        buffer, tile, address = loaded.buffer, loaded.slot.tile, self.target.address
        assert loaded.batch.message_end is not None
        count, (message_end, message_time) = len(loaded.batch.message_end), loaded.messages()
        job["buffer"], job["line_start"] = address(buffer.device), address(loaded.slot.line_start)
        job["respelled"] = address(buffer.respelled)
        job["plan"] = address(loaded.plan_table)
        job["records"], job["doubtful"] = address(tile.records), address(tile.doubtful)
        job["spots"] = address(tile.spots)
        job["extras"] = address(tile.extras) if loaded.plan.has_extras else 0
        job["message_end"], job["message_count"] = address(message_end), count
        job["message_time"] = 0 if message_time is None else address(message_time)
        job["line_is_message"] = loaded.count_lines() == count

    def _take_tile(
        self,
        loaded: Loaded,
        identities: IdentitySet,
        ends: np.ndarray[Any, Any],
        first: int,
        count: int,
        counting: bool,
        following: Loaded | None,
    ) -> list[DeadLetter]:
        letters: list[DeadLetter] = []
        job = self._job
        identities.reserve(count, job)
        self._read(loaded, first, count)
        doubtful = int(self._fill.read()[layout.FILL_DOUBTFUL])
        if doubtful:
            letters = self._ask_referee(loaded, ends, first, doubtful)
        if not counting or not self.target.in_order:
            self._pass_by_pass(loaded.slot.tile, identities, first, count, counting)
        elif lines := self._lines_to_read(following):
            assert following is not None
            self._read_beside(first, count, following, lines)
        else:
            self.target.launch("in_order", job, first, count)
        if counting:
            self._part.counted(count)
            if conflicting := self._conflicting(loaded, ends, first):
                letters = sorted(letters + conflicting, key=attrgetter("batch_line"))
        return letters

    # --- Lines are read: those of the tile at hand, or ahead, while others are counted ---

    def _read(self, loaded: Loaded, first: int, count: int) -> None:
        launch, job = self.target.launch, self._job
        read, loaded.lines_read = loaded.lines_read, 0
        if first == 0 and count == read:
            return self._fill.take_over(self._fill_ahead)
        launch("parse", job, first, count)
        if loaded.plan.table["has_rules"] and not self.target.in_order:
            launch("finish", job, first, count)
            launch("look_again", job, first, count)
        if loaded.plan.has_extras and not self.target.in_order:
            launch("accounts", job, first, count)

    def _lines_to_read(self, following: Loaded | None) -> int:
        """How many of its lines are worth a second core's time: what its first tile will be."""
        if following is None or not self.target.reads_ahead:
            return 0
        lines = self.limits.tile_of(following.count_lines())
        return lines if lines >= READ_AHEAD_LINES else 0

    def _read_beside(self, first: int, count: int, following: Loaded, lines: int) -> None:
        job = self._job_ahead
        job[...] = self._job
        self._point_at(job, following)
        self._fill_ahead.clear(0, layout.FILLS)
        job["fill"] = self.target.address(self._fill_ahead.array)
        self.target.count_beside(self._job, first, count, job, lines)
        following.lines_read = lines

    def _pass_by_pass(self, tile: Tile, identities: IdentitySet, first: int, count: int, counting: bool) -> None:
        launch, job = self.target.launch, self._job
        launch("claim", job, first, count)
        if identities.grows:
            self._grow(tile, first, count)
        if counting:
            launch("settle", job, first, count)
            launch("count", job, first, count)
        elif not identities.grows:
            launch("recall", job, first, count)

    def _grow(self, tile: Tile, first: int, count: int) -> None:
        """What each record adds to what its identity has said. Where records do not come in order, they are sorted by
        slot, so that those of one identity follow one another in theirs."""
        if not self.target.in_order:
            with self.target.order:
                slots = tile.records[:count].view(np.uint32)[:, _IDENTITY_SLOT_WORD] & np.uint32(layout.SLOT_MASK)
                keys = slots.astype(np.uint64) << np.uint64(32) | self.target.xp.arange(count, dtype=np.uint64)
                self._grown_order = self.target.xp.argsort(keys).astype(np.uint32)
            self._job["grown_order"], self._job["grown_count"] = self.target.address(self._grown_order), count
        self.target.launch("grow", self._job, first, count)

    def _conflicting(self, loaded: Loaded, ends: np.ndarray[Any, Any], first: int) -> list[DeadLetter]:
        """The tile's duplicates that say something else than the first record of their identity."""
        count = int(self._fill.read()[layout.FILL_CONFLICTING])
        if not count:
            return []
        records = sorted(self.target.fetch(self._conflicts[:count]).tolist())
        self._fill.clear(layout.FILL_CONFLICTING, layout.FILL_CONFLICTING + 1)
        return [line.rejected(CONFLICTING) for line in self._lines(loaded, ends, first, records)]

    def _ask_referee(self, loaded: Loaded, ends: np.ndarray[Any, Any], first: int, doubtful: int) -> list[DeadLetter]:
        """Rule on the tile's doubtful records, in their order; the accepted ones go back to the tile."""
        times, plan = loaded.batch.message_time, loaded.plan
        records = self._still_doubtful(loaded, first, doubtful)
        if not records:
            return []
        letters: list[DeadLetter] = []
        rulings: list[tuple[Any, ...]] = []
        extras: list[tuple[Any, ...]] = []
        texts = Texts(loaded.referee_at)
        for record, line in zip(records, self._lines(loaded, ends, first, records), strict=True):
            message_time = None if times is None else int(times[line.message])
            ruling = self._referee(line.value, plan.mapping, message_time)
            if isinstance(ruling, Canonical):
                placed: dict[bytes, int] = {}
                places, lengths = texts.place(ruling.texts, plan.defaults, placed)
                rulings.append((ruling.time_ms, ruling.counters, places, lengths, record, layout.ACCEPTED))
                if plan.has_extras:
                    extras.append(beside(plan, ruling, texts, placed, len(rulings) - 1))
            elif isinstance(ruling, Rejection):
                letters.append(line.rejected(ruling))
                rulings.append((0, *_NO_FIELDS, record, layout.REJECTED))
            else:
                rulings.append((0, *_NO_FIELDS, record, layout.SKIPPED))
        self._write_texts(loaded, texts.joined())
        if loaded.plan.has_extras:
            self._send_extras(extras, len(rulings))
        sent = self.target.send(np.array(rulings, layout.RULING))
        self._job["rulings"] = self.target.address(sent)
        self.target.launch("adopt", self._job, first, len(rulings))
        return letters

    def _still_doubtful(self, loaded: Loaded, first: int, doubtful: int) -> list[int]:
        """The tile's doubtful records, in their order, but for those that leave no doubt once their escapes are written
        out."""
        self._fill.clear(layout.FILL_DOUBTFUL, layout.FILL_RESPELLED + 1)
        if not loaded.plan.table["undecided"]:
            self.target.launch("respell", self._job, first, doubtful)
            self.target.launch("read_respelled", self._job, first, doubtful)
        records = self.target.fetch(loaded.slot.tile.doubtful[:doubtful])
        return sorted(records[records != layout.NONE].tolist())

    def _send_extras(self, extras: list[tuple[Any, ...]], rulings: int) -> None:
        table = np.zeros(rulings, layout.RULING_EXTRA)
        for number, further, places, lengths in extras:
            table["further"][number] = further
            table["start"][number, : len(places)], table["length"][number, : len(places)] = places, lengths
        self._ruling_extras = self.target.send(table)  # kept until the next ones: the device reads them
        self._job["ruling_extras"] = self.target.address(self._ruling_extras)

    def _lines(self, loaded: Loaded, ends: np.ndarray[Any, Any], first: int, records: list[int]) -> Iterator["_Line"]:
        """Of records of the tile, in their order."""
        # Plain integers from plain buffers: for a few records a numpy call costs more than what it does.
        starts = self.target.fetch(loaded.slot.line_start[first + records[0] : first + records[-1] + 2]).data
        message_ends = ends.data
        for record in records:
            line, at = first + record, record - records[0]
            message = bisect_right(message_ends, line)
            in_message = line - (message_ends[message - 1] if message else 0)
            value = loaded.cut(message, starts[at], starts[at + 1] - 1)
            yield _Line(message, in_message, value, line, starts[at] - layout.PREFIX_BYTES)

    def _write_texts(self, loaded: Loaded, texts: bytes) -> None:
        """Put the strings of rulings after the batch, where `_place_texts` said."""
        written = slice(loaded.referee_at, loaded.referee_at + len(texts))
        memory, device = loaded.buffer.memory, loaded.buffer.device
        memory[written] = np.frombuffer(texts, np.uint8)
        self.target.send_behind(memory[written], device[written])
        loaded.referee_at = written.stop

    # --- Results out: of the open part (kernels/part.py), but for the tally ---

    def tally(self) -> Tally:
        """Fates of all records since the engine began."""
        tally = self._fill.read()[layout.FILL_TALLY :].tolist()
        assert tally[layout.DOUBTFUL] == 0, "the referee ruled on every doubtful record"
        return Tally(
            counted=tally[layout.ACCEPTED],
            duplicates=tally[layout.DUPLICATE],
            rejected=tally[layout.REJECTED],
            empty=tally[layout.EMPTY],
            skipped=tally[layout.SKIPPED],
            conflicts=tally[layout.FILL_CONFLICTS - layout.FILL_TALLY],
        )

    def changes(self) -> Iterator[UsageRows]:
        """The rows that changed since the last call, in slices; nothing may be counted before the last one is taken."""
        return self._part.changes()

    def cells(self) -> list[CellTotals]:
        """Every (window, model, chip), in order of arrival."""
        return self._part.cells()

    def changed_cells(self) -> list[CellTotals]:
        """Those that changed since the last call, with absolute counters."""
        return self._part.changed_cells()

    def totals(self) -> Usage:
        return self._part.totals()

    def top_users(self, most: int) -> list[tuple[str, int]]:
        """The users with the most tokens (input and output), most first."""
        return self._part.top_users(most)

    def user_tokens(self) -> dict[str, int]:
        """Tokens of every user."""
        return self._part.user_tokens()

    def sketches(self, wanted: Container[WindowStartMs] | None = None) -> dict[WindowStartMs, Bytes]:
        """The HyperLogLog of users of each window (or of those wanted)."""
        return self._part.sketches(wanted)

    def fill(self) -> dict[str, tuple[int, int]]:
        """Used and usable slots (bytes for the arena) of each table."""
        return self._part.fill()

    def unsketched_rows(self) -> int:
        """Rows whose window found no room for a sketch: its active users are understated."""
        return self._part.unsketched_rows()

    # --- Inside ---

    def _partition(self, partition: Hashable, grows: int | None = None) -> _Partition:
        """grows: how many counters its mapping's repeats make grow, once that is known."""
        known = self._partitions.get(partition)
        if known is None:
            known = self._partitions[partition] = _Partition(self._identity_set(grows or 0))
        elif grows not in (None, known.identities.grows):
            assert known.identities.is_new, "a partition has one mapping"
            known.identities = self._identity_set(grows)
        return known

    def _identity_set(self, grows: int) -> IdentitySet:
        return IdentitySet(self.target, self.limits.identity_bytes, self._identity_sets, grows)

    def _identity_sets(self) -> Iterator[IdentitySet]:
        return (partition.identities for partition in self._partitions.values())


def _log_times(batch: Batch, before_ms: int) -> np.ndarray[Any, np.dtype[np.uint64]] | None:
    """Log time at each message: the prefix maximum of message times."""
    if batch.message_time is None:
        return None
    log_times = np.maximum.accumulate(batch.message_time)
    return np.maximum(log_times, np.uint64(before_ms), out=log_times)


def _latest(a: int | None, b: int | None) -> int | None:
    return b if a is None else a if b is None else max(a, b)


def joined(values: Sequence[bytes | None]) -> tuple[Bytes, np.ndarray[Any, np.dtype[np.int64]]]:
    """All values, each ended by one newline (its own, if it has one), and the places after these."""
    try:
        data, ends = _lines(values)  # type: ignore[arg-type]
    except TypeError:
        return joined([value or b"" for value in values])
    doubled = data[np.maximum(ends, 2) - 2] == 0x0A
    if not doubled.any():  # an empty value after another one looks doubled too: no harm
        return data, ends
    return _lines([(value or b"").removesuffix(b"\n") for value in values])


def _lines(values: Sequence[bytes]) -> tuple[Bytes, np.ndarray[Any, np.dtype[np.int64]]]:
    lengths = np.fromiter(map(len, values), np.int64, len(values))
    return np.frombuffer(b"\n".join([*values, b""]), np.uint8), np.cumsum(lengths + 1)
