"""A window's usage as the rollup keeps it: sums over closed parts, and the cells of each meter's open part.

Promises: an entry has room for CELLS_MAX cells of any names. What does not fit is added to OTHERS and never lost.
"""

import itertools
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from tokenometer.schemas.usage import COUNTERS

# What an entry may hold of open parts, and of closed ones; with the longest numbers that is half of ENTRY_BYTES_MAX.
CELLS_MAX = 4096
NAMES_BYTES_MAX = 1 << 20  # as JSON, where a control character takes six
PACKED_OFFSET_BYTES = 8

Cell = tuple[str, str]  # model, chip
Cells = dict[Cell, tuple[int, ...]]  # as COUNTERS
OTHERS: Cell = "", ""  # no record has empty names


class UnknownEntry(Exception):
    """An entry has another version than ours."""


@dataclass
class WindowUsage:
    """A window's usage: sums over closed parts, and the cells of each meter's open part."""

    offset: int = -1
    closed: Cells = field(default_factory=dict)
    open: dict[str, tuple[str, Cells]] = field(default_factory=dict)

    def learn(self, offset: int, meter: str, part: str, cells: Cells) -> bool:
        """Takes the cells of a summary. False: it was known. Where there are more cells than room, the later ones are
        left out, because the next summary's counters could not be compared with cells that are not kept apart."""
        if offset <= self.offset:
            return False
        self.offset = offset
        known, before = self.open.get(meter, (part, {}))
        if known != part:
            _add(self.closed, before)
            before = {}
        before.update((cell, counters) for cell, counters in cells.items() if cell in before)
        new = [cell for cell in cells if cell not in before]
        self.open[meter] = part, before
        before.update((cell, cells[cell]) for cell in _fitting(new, [known for _, known in self.open.values()]))
        return True

    @property
    def open_cells(self) -> int:
        return sum(len(cells) for _, cells in self.open.values())

    def take_over(self, other: "WindowUsage") -> None:
        """Adds another meter's window to this one."""
        assert self.open.keys().isdisjoint(other.open)
        self.offset = max(self.offset, other.offset)
        _add(self.closed, other.closed)
        self.open |= other.open

    def settle(self, parts: Mapping[str, str]) -> None:
        """Adds up what is final. `parts`: the open part of each meter, where it is known. Other parts need no cells of
        their own any more."""
        for meter in [meter for meter, (part, _) in self.open.items() if parts.get(meter, part) != part]:
            _add(self.closed, self.open.pop(meter)[1])

    def encode(self) -> bytes:
        parts = {meter: [part, columns_of(cells)] for meter, (part, cells) in self.open.items()}
        return orjson.dumps({"offset": self.offset, "closed": columns_of(self.closed), "open": parts})

    def pack(self) -> bytes:
        """The bytes of a `window` entry. Two days of them are kept, so they are small, and the offset is read without
        unpacking."""
        return self.offset.to_bytes(PACKED_OFFSET_BYTES, "big") + zlib.compress(self.encode(), 1)

    @classmethod
    def unpack(cls, value: bytes) -> "WindowUsage":
        return cls.decode(zlib.decompress(value[PACKED_OFFSET_BYTES:]))

    @classmethod
    def decode(cls, value: bytes) -> "WindowUsage":
        entry = orjson.loads(value)
        parts = {meter: (part, _cells(columns)) for meter, (part, columns) in entry["open"].items()}
        return cls(entry["offset"], _cells(entry["closed"]), parts)


def _fitting(new: list[Cell], known: Iterable[Cells]) -> list[Cell]:
    """The new cells for which there is room beside the known ones."""
    held = list(known)
    count = sum(map(len, held))
    if count + len(new) <= _FEW:
        return new
    left = NAMES_BYTES_MAX - sum(len(orjson.dumps(list(cells))) for cells in held)
    fitting = new[: max(0, CELLS_MAX - count)]
    if len(orjson.dumps(fitting)) <= left:
        return fitting
    sizes = itertools.accumulate(len(orjson.dumps(cell)) + 1 for cell in fitting)
    return [cell for cell, size in zip(fitting, sizes, strict=True) if size <= left]


_FEW = 256  # with the longest names they fit


def columns_of(cells: Cells) -> list[list[Any]]:
    """One list of names and one of counters. A list for each cell would cost more than all the rest."""
    chain = itertools.chain.from_iterable
    return [list(chain(cells)), list(chain(cells.values()))]


def _cells(columns: list[list[Any]]) -> Cells:
    check_columns(*columns)
    names, counters = map(iter, columns)
    return dict(zip(zip(names, names, strict=True), zip(*[counters] * len(COUNTERS), strict=True), strict=True))


def check_columns(names: list[str], counters: list[int]) -> None:
    if len(counters) * 2 != len(names) * len(COUNTERS):
        raise UnknownEntry("an entry of another version: begin anew, with another --app")


def _add(total: Cells, cells: Cells) -> None:
    fitting = set(_fitting([cell for cell in cells if cell not in total], [total]))
    for cell, counters in cells.items():
        if cell not in total and cell not in fitting:
            cell = OTHERS
        before = total.get(cell)
        total[cell] = tuple(map(sum, zip(before, counters, strict=True))) if before else counters
