"""The request ids of one partition: two generations that turn by log time (docs/RECORDS.md, Duplicates).

A table per partition, so that what is a duplicate depends on that partition's log alone and a revoked partition's ids
go with it. Unlike the other tables these grow: closing a part must not forget an id. A table of millions of ids would
take seconds to move, most of them for the first touch of new memory; so it moves by and by, tile by tile, and both are
looked into until it has.
"""

from typing import Any

import numpy as np

from kernels import layout
from kernels.target import Array, Target

_LOAD_MAX = 0.75
_SLOTS_MIN = 1 << 12
_MOVED_PER_RECORD = 2  # slots: a table has left long before the next one is full, three quarters of its size later


class IdentityMemoryError(MemoryError):
    """Request ids need more memory than they may have; the message names the settings."""


class IdentitySet:
    def __init__(self, target: Target, bytes_max: int) -> None:
        self._target, self._bytes_max = target, bytes_max
        self._leaving: Array | None = None  # of which the slots before `_moved` are in the current table too
        self._moved = 0
        self._use(self._table(_SLOTS_MIN), None)
        self._generation: int | None = None
        self._used_at_most = 0
        self._sequence = 0
        self._current_from: int | None = None  # offset of the generation's first message
        self.remembered_from: int | None = None  # of the first message of the generation before, if that is kept

    def _table(self, slots: int) -> Array:
        return self._target.zeros(slots, layout.IDENTITY)

    def _use(self, current: Array, before: Array | None) -> None:
        """Addresses are looked up here, once, and not for each tile."""
        self._current, self._before = current, before
        address = self._target.address
        self._current_at = address(current), len(current) - 1  # and mask
        self._before_at = (0, 0) if before is None else (address(before), len(before) - 1)

    def turn_to(self, generation: int, offset: int) -> None:
        """Generation g, which begins at `offset`, remembers itself and g - 1; tables of older ids are dropped."""
        if generation == self._generation:
            return
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
        if dropped is not None and len(dropped) == len(self._current):
            with self._target.order:
                dropped.fill(0)
            self._use(dropped, before)
        else:
            self._use(self._table(len(self._current)), before)
        self._used_at_most, self._sequence = 0, 0

    def reserve(self, records: int, job: np.ndarray[Any, Any]) -> None:
        """Make room for so many new ids and point the job at the tables."""
        assert self._sequence + records <= layout.SEQUENCE_MAX, "a generation holds fewer than 2^40 records"
        self._move(_MOVED_PER_RECORD * records)
        if self._used_at_most + records > len(self._current) * _LOAD_MAX:
            self._move(None)
            with self._target.order:
                self._used_at_most = int(self._target.xp.count_nonzero(self._current[:, 0]))
            self._grow(self._used_at_most + records)
        job["identities"], job["identities_mask"] = self._current_at
        job["identities_leaving"] = 0 if self._leaving is None else self._target.address(self._leaving)
        job["identities_before"], job["identities_before_mask"] = self._before_at
        job["sequence"] = self._sequence
        self._used_at_most += records
        self._sequence += records

    def _grow(self, wanted: int) -> None:
        slots = len(self._current)
        while wanted > slots * _LOAD_MAX:
            slots *= 2
        if slots == len(self._current):
            return
        size = (slots + len(self._current) + (0 if self._before is None else len(self._before))) * 16
        if size > self._bytes_max:
            raise IdentityMemoryError(
                f"{wanted} request ids within the dedup horizon need {size} bytes, more than identity_bytes = "
                f"{self._bytes_max}; give the meter more memory, or a shorter dedup_horizon"
            )
        self._leaving, self._moved = self._current, 0
        self._use(self._table(slots), self._before)
        if slots > 2 * len(self._leaving):  # the kernels know the leaving table's size by the other's
            self._move(None)

    def _move(self, most: int | None) -> None:
        """Move so many slots of the leaving table, or all that are left."""
        if self._leaving is None:
            return
        end = len(self._leaving) if most is None else min(self._moved + most, len(self._leaving))
        self._target.move_identities(self._leaving[self._moved : end], self._current)
        self._moved = end
        if end == len(self._leaving):
            self._leaving = None
