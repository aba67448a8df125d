"""The open part: its tables, the room in them, and what is read out of them.

A part begins with empty tables and its counters only grow; it is dropped as a whole. Before a segment is counted,
`has_room` says whether every table takes the most that the segment could bring, so no record meets a full table.
"""

from collections.abc import Container, Iterator
from typing import Any

import numpy as np

from tokenometer.kernels import layout
from tokenometer.kernels.limits import FILL_LIMIT, Limits
from tokenometer.kernels.plan import Need
from tokenometer.kernels.target import Array, Target
from tokenometer.kernels.values import Bytes, CellTotals, UsageRows, WindowStartMs
from tokenometer.schemas.usage import Usage

COUNTER_MAX = (1 << 64) - 1
RECORD_TOKENS_MAX = 5 << 40  # what one record adds to its user: five counts of less than 2^40, if all are additive
CHANGES_SLICE_ROWS = 1 << 15  # 2.5 MiB: what comes and goes with each commit stays in the heap
_SCATTERED = "texts", "cells", "rows"  # tables whose entries are at random places
_LENGTH_MASK = (1 << layout.LENGTH_BITS) - 1  # of TextEntry::where
_PAGE_BYTES = 1 << 21  # a huge one: as many rows as a table has pages touch most of these


class Fill:
    """How full the tables are, and how many records met which fate: counts that kernels only add to (layout.h)."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self.array = target.zeros(layout.FILLS, np.uint64)

    def read(self) -> np.ndarray[Any, Any]:
        return self._target.fetch(self.array)

    def clear(self, first: int, after: int) -> None:
        self._target.send_behind(np.zeros(after - first, np.uint64), self.array[first:after])

    def take_over(self, read: "Fill") -> None:
        """What lines that were read ahead have added there. Only for a target that shares memory."""
        self.array[layout.FILL_DOUBTFUL] = read.array[layout.FILL_DOUBTFUL]
        seen = self.array[layout.FILL_WATERMARK], read.array[layout.FILL_WATERMARK]
        self.array[layout.FILL_WATERMARK] = max(seen)


class Part:
    """Points the job at its tables. kept: what `give_up` of the part before left. label_names: with their numbers."""

    def __init__(
        self,
        target: Target,
        limits: Limits,
        job: np.ndarray[Any, Any],
        fill: Fill,
        kept: dict[str, Array],
        label_names: dict[str, int],
    ) -> None:
        self.target, self.limits, self.window_ms = target, limits, int(job["window_ms"])
        self._job, self._fill = job, fill
        self.tables: dict[str, Array] = kept
        for name, (count, dtype) in self._table_sizes().items():
            if name not in kept:
                self.tables[name] = target.zeros(count, dtype)
        for name, array in self.tables.items():
            job[name] = target.address(array)
        for name in ("texts", "cells", "rows", "windows"):
            job[f"{name}_mask"] = getattr(limits, name) - 1
        job["windows_limit"] = int(limits.windows * FILL_LIMIT)
        job["epoch"] = 1
        fill.clear(0, layout.FILL_TALLY)  # the tally goes on over all parts
        fill.clear(layout.FILL_FURTHER, layout.FILL_FURTHER + 1)
        self._label_names = label_names
        self._extras = False
        self._arena_mirror = None if target.shares_memory else target.pinned(limits.arena_bytes)
        self._arena_mirrored = 0
        self._tokens_bound, self._records_since_bound = 0, 0
        self._cells_seen = np.zeros((0, layout.COUNTERS), np.uint64)  # by the last `changed_cells`

    def has_extras(self, further: bool) -> None:
        """From now on rows have labels or further counters."""
        self._extras = True
        if further and "further" not in self.tables:
            self.tables["further"] = self.target.zeros(self.limits.further, layout.FURTHER_ENTRY)
            self._job["further"] = self.target.address(self.tables["further"])
            self._job["further_mask"] = self.limits.further - 1

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

    def give_up(self) -> dict[str, Array]:
        """Drop every table before new ones come, so that two parts are never in memory. Returns those that the next
        part may have, cleared: this costs less than fresh pages (kernels/pages.py), if most were touched."""
        touched = int(self._fill.read()[layout.FILL_ROWS]) * _PAGE_BYTES >= self.tables["rows"].nbytes
        kept = {name: self.tables[name] for name in _SCATTERED if touched}
        self.tables = {}
        with self.target.order:
            for table in kept.values():
                table.fill(0)
        return kept

    # --- Room ---

    def has_room(self, need: Need) -> bool:
        """Whether every table can take what some records could bring."""
        fill, limits = self._fill.read(), self.limits
        return (
            int(fill[layout.FILL_TEXTS]) + need.texts <= limits.texts * FILL_LIMIT
            and int(fill[layout.FILL_CELLS]) + need.cells <= limits.cells * FILL_LIMIT
            and int(fill[layout.FILL_ROWS]) + need.rows <= limits.rows * FILL_LIMIT
            and int(fill[layout.FILL_FURTHER]) + need.further <= limits.further * FILL_LIMIT
            and int(fill[layout.FILL_ARENA]) + need.arena_bytes <= limits.arena_bytes
            and (int(fill[layout.FILL_WINDOWS]) < limits.windows * FILL_LIMIT or not fill[layout.FILL_ROWS])
            and self._counters_have_room(need.records)
        )

    def _counters_have_room(self, records: int) -> bool:
        """No counter exceeds what all cells hold together; that sum plus the most that came since must fit 64 bits."""
        if self._tokens_bound + (self._records_since_bound + records) * RECORD_TOKENS_MAX <= COUNTER_MAX:
            return True
        self._tokens_bound = int(self._cells()["counters"].astype(np.float64).sum() * 1.001)
        self._records_since_bound = 0
        return self._tokens_bound + records * RECORD_TOKENS_MAX <= COUNTER_MAX

    def counted(self, records: int) -> None:
        """Notes that so many records were counted."""
        self._records_since_bound += records

    # --- Results out ---

    def changes(self) -> Iterator[UsageRows]:
        """The rows that changed since the last call, in slices of bounded size; none if there are none.

        Each slice owns its table. After the last one a new set of changes begins; an iterator that is given up earlier
        changes nothing. Nothing may be counted in between.
        """
        before = self._fill.read().copy()
        count, arena = int(before[layout.FILL_CHANGED]), self._arena()
        for first in range(0, count, CHANGES_SLICE_ROWS):
            out = self.target.zeros(min(CHANGES_SLICE_ROWS, count - first), layout.USAGE_ROW)
            extras = self.target.zeros(len(out), layout.USAGE_EXTRA) if self._extras else None
            self._job["usage_rows"] = self.target.address(out)
            self._job["usage_extras"] = 0 if extras is None else self.target.address(extras)
            self.target.launch("export_rows", self._job, first, len(out))
            table = self.target.fetch(out).view(layout.USAGE_ROW).reshape(-1)
            beside = None if extras is None else self.target.fetch(extras).view(layout.USAGE_EXTRA).reshape(-1)
            yield UsageRows(table, arena, self.window_ms, beside, tuple(self._label_names))
        assert (self._fill.read() == before).all(), "nothing is counted while changes are taken out"
        self._job["epoch"] += 1
        self._fill.clear(layout.FILL_CHANGED, layout.FILL_CHANGED + 1)

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
        """The sums of the open part."""
        return Usage(*self._cells()["counters"].sum(axis=0).tolist())

    def top_users(self, most: int) -> list[tuple[str, int]]:
        """The users with the most tokens (input and output) in the open part, most first."""
        users = int(self._fill.read()[layout.FILL_TEXTS])
        if most < 1:
            return []
        with self.target.order:
            slots = self.tables["text_order"][:users]
            if users > most:
                tokens = self.tables["texts"][slots, 3]
                slots = slots[self.target.xp.argpartition(tokens, users - most)[users - most :]]
            tokens = self.tables["texts"][slots, 3]
            slots, tokens = slots[tokens > 0], tokens[tokens > 0]  # others are no users; an account has no name
        found = zip(self._names(self.target.fetch(slots)), self.target.fetch(tokens).tolist(), strict=True)
        return sorted(found, key=lambda item: (-item[1], item[0]))

    def user_tokens(self) -> dict[str, int]:
        """Tokens of every user in the open part."""
        return dict(self.top_users(self.limits.texts))

    def sketches(self, wanted: Container[WindowStartMs] | None = None) -> dict[WindowStartMs, Bytes]:
        """The HyperLogLog of users of each window (or of those wanted): 2^14 registers, to be merged by maximum."""
        count = int(self._fill.read()[layout.FILL_WINDOWS])
        with self.target.order:
            slots = self.tables["window_order"][:count]
            windows = self.tables["windows"][slots, 0]
        starts = [WindowStartMs((low - 1) * self.window_ms) for low in self.target.fetch(windows).tolist()]
        chosen = [k for k, start in enumerate(starts) if wanted is None or start in wanted]
        with self.target.order:
            registers = self.tables["registers"].reshape(self.limits.windows, -1)[slots[chosen]]
        rows = self.target.fetch(registers).view(np.uint8)
        return {starts[k]: row for k, row in zip(chosen, rows, strict=True)}

    def fill(self) -> dict[str, tuple[int, int]]:
        """Used and usable slots (bytes for the arena) of each table."""
        fill, limits = self._fill.read().tolist(), self.limits
        usable = {name: int(getattr(limits, name) * FILL_LIMIT) for name in ("texts", "cells", "rows", "windows")}
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
        return int(self._fill.read()[layout.FILL_UNSKETCHED])

    # --- Inside ---

    def _cells(self) -> np.ndarray[Any, Any]:
        count = int(self._fill.read()[layout.FILL_CELLS])
        with self.target.order:
            cells = self.tables["cells"][self.tables["cell_order"][:count]]
        table: np.ndarray[Any, Any] = self.target.fetch(cells).view(layout.CELL).reshape(-1)
        return table

    def _names(self, slots: Array) -> list[str]:
        """The strings of text slots; each distinct one is decoded once."""
        distinct, index = np.unique(np.asarray(slots), return_inverse=True)
        with self.target.order:
            found = self.tables["texts"][self.target.xp.asarray(distinct), 2]
        where = self.target.fetch(found).tolist()
        arena = self._arena()
        starts = [(value >> layout.OFFSET_SHIFT, value & _LENGTH_MASK) for value in where]
        names = [bytes(arena[start : start + length]).decode() for start, length in starts]
        return [names[i] for i in index.tolist()]

    def _arena(self) -> Bytes:
        """The arena on the host; only what is new is copied."""
        used = int(self._fill.read()[layout.FILL_ARENA])
        arena = self.tables["arena"]
        if self._arena_mirror is None:
            return self.target.fetch(arena[:used])
        if used > self._arena_mirrored:
            self._arena_mirror[self._arena_mirrored : used] = self.target.fetch(arena[self._arena_mirrored : used])
            self._arena_mirrored = used
        return self._arena_mirror[:used]
