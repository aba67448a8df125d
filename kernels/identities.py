"""The request ids of one partition: two generations that turn by log time (docs/RECORDS.md, Duplicates).

There is a table for each partition, so that what is a duplicate depends on that partition's log alone, and a revoked
partition's ids go with it. Unlike the other tables these grow, because closing a part must not forget an id. For
gigabytes of ids each step of growing takes seconds, so no step is taken at once. Before a table is full, the memory of
a larger one is taken from the system and the ids of this one are counted. Then the ids move, tile by tile, and both
tables are looked into until all have moved. A generation that will not find a dropped table of its size has a spare
one. The ids of a generation are foreseen from those that it has and the log time that is left. A log without times is
one generation, read from files: nobody waits there for a step that takes seconds, so nothing is taken ahead.

What an id's first record said is noted, to tell conflicting duplicates: within its slot where records come in order, in
4 bytes beside it elsewhere. Where a mapping's repeats grow, the counters so far are beside it (kernels/dedup.h,
kernels/grow.h).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tokenometer.kernels import layout
from tokenometer.kernels.target import Array, Target
from tokenometer.schemas.errors import TokenometerError

_LOAD_MAX = 0.75
_SLOTS_MIN = 1 << 12
# Of the ids that a table takes. From the first on a larger one is prepared if more than the second are foreseen, and
# with the second in any case. One that comes to nothing means gigabytes to clear.
_PREPARE_AT, _PREPARE_LATEST = 0.75, 0.9
# Slots for each record that comes. A table that was left is half as large and has moved after a sixth of the new one's
# slots, before the next one is prepared.
_MOVED = 3
_SPARE_AT = 0.75  # of a generation's log time: seconds before it is needed, and not much longer
_WORTH_STAYING = 0.875  # of what the table takes: with more, the ids would be counted again before long


@dataclass(frozen=True)
class IdentityTable:
    """A table of ids and of the notes beside them, slot by slot, or no notes at all."""

    ids: Array
    notes: Array

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def nbytes(self) -> int:
        return int(self.ids.nbytes + self.notes.nbytes)

    def clear(self) -> None:
        self.ids.fill(0)
        self.notes.fill(0)


class IdentityMemoryError(TokenometerError, MemoryError):
    """Request ids need more memory than they may have. The message names the settings."""


class IdentitySet:
    """The ids of one partition. bytes_max: of all partitions together, whose sets `everybody` gives."""

    def __init__(
        self, target: Target, bytes_max: int, everybody: Callable[[], "Iterable[IdentitySet]"], grows: int = 0
    ) -> None:
        """grows: how many counters are kept for each id, where repeats grow."""
        self._target, self._bytes_max, self._everybody, self.grows = target, bytes_max, everybody, grows
        self._note = np.dtype([("seen", "u8", grows)]) if grows else np.dtype(np.uint32)
        self._has_notes = grows > 0 or not target.in_order
        self._slot_bytes = layout.IDENTITY.itemsize + self._has_notes * self._note.itemsize
        self._leaving: IdentityTable | None = None  # of which the slots before `_moved` are in the current table too
        self._moved = 0
        self._next: _Next | None = None
        self._spare: IdentityTable | None = None  # for the next generation, as large as the current table
        self._use(self._table(_SLOTS_MIN), None)
        self._generation: int | None = None
        self._passed: float | None = None  # of the generation's log time
        self._passed_before = 0.0  # the generation's first message; the first generation begins anywhere
        self._used_at_most = 0
        self._sequence = 0
        self._current_from: int | None = None  # offset of the generation's first message
        self.remembered_from: int | None = None  # of the first message of the generation before, if that is kept

    @property
    def is_new(self) -> bool:
        """Whether no record came yet."""
        return self._generation is None and self._sequence == 0

    # --- Memory ---

    @property
    def held_bytes(self) -> int:
        ahead = self._spare, None if self._next is None else self._next.table
        tables = self._current, self._before, self._leaving, *ahead
        return sum(len(table) for table in tables if table is not None) * self._slot_bytes

    def _left(self) -> int:
        return self._bytes_max - sum(each.held_bytes for each in self._everybody())

    def _table(self, slots: int) -> IdentityTable:
        notes = self._target.zeros(slots if self._has_notes else 0, self._note)
        return IdentityTable(self._target.zeros(slots, layout.IDENTITY), notes)

    def _table_ahead(self, slots: int) -> IdentityTable | None:
        """A table that may be needed; None where there is no room for it."""
        if slots * self._slot_bytes > self._left():
            return None
        table = self._table(slots)
        self._target.take_ahead(table.ids)
        self._target.take_ahead(table.notes)
        return table

    def _needed_table(self, slots: int, wanted: int) -> IdentityTable:
        """A table for so many ids. What anybody has ahead of need is given up first."""
        size = slots * self._slot_bytes
        assert slots <= layout.IDENTITIES_MAX, "400 million ids of a partition's generation"
        if size > self._left():
            for each in self._everybody():
                each._next = each._spare = None
        if size > (left := self._left()):
            raise IdentityMemoryError(
                f"{wanted} request ids of a partition within the dedup horizon need {size} bytes, and {left} of "
                f"identity_bytes = {self._bytes_max} are left; give the meter more memory, or a shorter dedup_horizon"
            )
        return self._table(slots)

    def _use(self, current: IdentityTable, before: IdentityTable | None) -> None:
        """Uses these tables. Addresses are looked up here, once, and not for each tile."""
        self._current, self._before, self._next = current, before, None
        if self._spare is not None and len(self._spare) != len(current):
            self._spare = None
        self._current_at, self._before_at = self._place(current), self._place(before)

    def _place(self, table: IdentityTable | None) -> tuple[int, int, int]:
        """Addresses of a table's ids and notes, and the mask of its slots."""
        if table is None:
            return 0, 0, 0
        return self._target.address(table.ids), self._target.address(table.notes), len(table) - 1

    # --- Generations ---

    def turn_to(self, generation: int, passed: float, offset: int) -> None:
        """Generation g, which begins at `offset`, remembers itself and g - 1; tables of older ids are dropped.
        passed: the share of g's log time that lies before the messages that come."""
        self._passed = passed
        if generation == self._generation:
            return
        self._passed_before = passed
        keep = False
        if self._generation is not None:
            assert generation > self._generation, "log time is a prefix maximum"
            keep = generation == self._generation + 1
            self._turn(keep)
        self.remembered_from = self._current_from if keep else offset
        self._current_from = offset
        self._generation = generation

    def _turn(self, keep: bool) -> None:
        """Start an empty table, in the memory of the one that is dropped if that is as large."""
        self._move(None)
        dropped, before = (self._before, self._current) if keep else (self._current, None)
        slots = len(self._current)
        if dropped is not None and len(dropped) == slots:
            with self._target.order:
                dropped.clear()
            self._use(dropped, before)
        elif self._spare is not None:
            self._use(self._spare, before)
            self._spare = None
        else:
            self._use(self._current, None)  # what is dropped is free now
            self._use(self._table(slots if slots * self._slot_bytes <= self._left() else _SLOTS_MIN), before)
        self._used_at_most, self._sequence = 0, 0

    def _take_spare(self) -> None:
        dropped_fits = self._before is not None and len(self._before) == len(self._current)
        if self._spare is None and not dropped_fits:
            self._spare = self._table_ahead(len(self._current))

    # --- Room ---

    def reserve(self, records: int, job: np.ndarray[Any, Any]) -> None:
        """Make room for so many new ids and point the job at the tables."""
        assert self._sequence + records <= layout.SEQUENCE_MASK, "a generation holds fewer than 2^40 records"
        self._move(_MOVED * records)
        takes = len(self._current) * _LOAD_MAX
        if self._passed is not None:
            self._look_ahead(records, takes, self._passed)
        if self._used_at_most + records > takes:
            self._make_room(records)
        job["identities"], job["notes"], job["identities_mask"] = self._current_at
        job["identities_leaving"], job["notes_leaving"], _ = self._place(self._leaving)
        job["identities_before"], job["notes_before"], job["identities_before_mask"] = self._before_at
        job["grows"] = self.grows
        job["sequence"] = self._sequence
        self._used_at_most += records
        self._sequence += records

    def _look_ahead(self, records: int, takes: float, passed: float) -> None:
        used = self._used_at_most + records
        left, gone = 1 - passed, passed - self._passed_before
        foreseen = used * (1 + left / gone) if gone > 0 else used  # within a moment: nothing can be foreseen
        if passed >= _SPARE_AT and foreseen <= takes:
            self._take_spare()
        wanted = used > _PREPARE_AT * takes and foreseen > _PREPARE_LATEST * takes
        if wanted or self._next is not None:
            self._prepare(records, max(1, int(takes) - self._used_at_most))

    def _prepare(self, records: int, room: int) -> None:
        if self._next is None and (table := self._table_ahead(2 * len(self._current))) is not None:
            self._next = _Next(table, room)
        if self._next is not None:
            with self._target.order:
                self._next.prepare(records, self._current.ids, self._target)

    def _make_room(self, records: int) -> None:
        """An id that is sent again takes no second slot, so the table may have room; if not, a larger one is taken."""
        self._move(None)
        if self._next is not None and self._next.used_at_most is not None:
            self._used_at_most = min(self._used_at_most, self._next.used_at_most - records)
        else:
            with self._target.order:
                self._used_at_most = int(self._target.xp.count_nonzero(self._current.ids[:, 0]))
        wanted = self._used_at_most + records
        if self._next is not None and wanted <= _WORTH_STAYING * _LOAD_MAX * len(self._current):
            self._next.count_again()
        else:
            self._grow(wanted)

    def _grow(self, wanted: int) -> None:
        slots = len(self._current)
        while wanted > slots * _LOAD_MAX:
            slots *= 2
        if slots == len(self._current):
            return
        ahead = self._next.table if self._next is not None and len(self._next.table) == slots else None
        table = self._needed_table(slots, wanted) if ahead is None else ahead
        self._leaving, self._moved = self._current, 0
        self._use(table, self._before)
        if slots > 2 * len(self._leaving):  # the kernels know the leaving table's size by the other's
            self._move(None)

    def _move(self, most: int | None) -> None:
        """Move so many slots of the leaving table, or all that are left."""
        if self._leaving is None:
            return
        end = len(self._leaving) if most is None else min(self._moved + most, len(self._leaving))
        leaving = IdentityTable(self._leaving.ids[self._moved : end], self._leaving.notes[self._moved : end])
        move = np.array((*self._place(leaving)[:2], *self._current_at, self.grows), layout.MOVE)
        with self._target.order:
            self._target.run("move_identities", move, len(leaving))
        self._moved = end
        if end == len(self._leaving):
            self._leaving = None


class _Next:
    """A table to grow into, and a count of the ids of the one that fills up, done before `room` records came."""

    def __init__(self, table: IdentityTable, room: int) -> None:
        self.table = table
        self._slots = len(table) // 2 // room + 1  # to be looked at for each record
        self.count_again()

    def count_again(self) -> None:
        self._counted = self._found = self._since = 0
        self.used_at_most: int | None = None  # once all slots were looked at; the records that are coming included

    def prepare(self, records: int, current: Array, target: Target) -> None:
        """To be called before so many records come."""
        counted = self._counted + self._slots * records
        if self._counted < len(current):
            self._found += int(target.xp.count_nonzero(current[self._counted : counted, 0]))
        self._counted = counted
        self._since += records  # any of these may be after the count
        if counted >= len(current):
            self.used_at_most = self._found + self._since
