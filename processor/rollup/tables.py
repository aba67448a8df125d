"""The tables of rolling totals: counters by cell, the number of each cell, sums of windows and of spans.

Owns: which number a (model, chip) has. Promises: there are at most `most` cells; what is named beyond that has the
number OTHERS_NUMBER.
"""

import zlib
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from tokenometer.processor.rollup.cells import OTHERS
from tokenometer.schemas.usage import COUNTERS

OTHERS_NUMBER = 0
Table = np.ndarray[Any, np.dtype[np.int64]]  # a row for each cell, columns as COUNTERS
Mask = np.ndarray[Any, np.dtype[np.bool_]]  # of cells


class Only(NamedTuple):
    """What is meant; None: any. A meter's own usage is known of windows that are not folded yet (entries.py)."""

    model: str | None = None
    chip: str | None = None
    meter: str | None = None


EVERYTHING = Only()


@dataclass
class Said:
    """What an entry said of its window. cells: each once. held: the counters, packed where the window is old and seldom
    changes."""

    offset: int
    cells: np.ndarray[Any, np.dtype[np.uint16]]
    held: Table | bytes

    @property
    def counters(self) -> Table:
        if isinstance(self.held, bytes):
            return np.frombuffer(zlib.decompress(self.held), np.int64).reshape(len(self.cells), len(COUNTERS))
        return self.held


@dataclass
class Window:
    """said: by partition and meter; '' is the partition's `window`, which is all its meters."""

    table: Table = field(default_factory=lambda: np.zeros((0, len(COUNTERS)), np.int64))
    said: dict[tuple[int, str], Said] = field(default_factory=dict)


@dataclass
class Span:
    """The sum of the windows of begin_ms <= start < end_ms."""

    begin_ms: int = 0
    end_ms: int = 0
    table: Table = field(default_factory=lambda: np.zeros((0, len(COUNTERS)), np.int64))

    def holds(self, window: int) -> bool:
        return self.begin_ms <= window < self.end_ms


class CellNumbers:
    """Gives numbers to (model, chip), while there are any left."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._numbers: dict[tuple[str, str], int] = {OTHERS: OTHERS_NUMBER}
        self.names: list[tuple[str | None, str | None]] = [(None, None)]
        self._free: list[int] = []

    def __len__(self) -> int:
        return len(self.names)

    @property
    def full(self) -> bool:
        return len(self.names) >= self._most and not self._free

    def numbers(self, cells: list[tuple[str, str]]) -> np.ndarray[Any, np.dtype[np.uint16]]:
        found = list(map(self._numbers.get, cells))
        if None in found:
            found = [self._number(cell) for cell in cells]
        return np.array(found, np.uint16)

    def _number(self, cell: tuple[str, str]) -> int:
        number = self._numbers.get(cell)
        if number is None:
            if self.full:
                return OTHERS_NUMBER
            number = self._numbers[cell] = self._free.pop() if self._free else len(self.names)
            self.names[number : number + 1] = [cell]
        return number

    def keep(self, used: np.ndarray[Any, np.dtype[np.bool_]]) -> None:
        """Frees the numbers of cells that nobody uses any more."""
        for cell, number in list(self._numbers.items()):
            if number != OTHERS_NUMBER and (number >= len(used) or not used[number]):
                del self._numbers[cell]
                self.names[number] = None, None
                self._free.append(number)


def add_window(table: Table, window: Window, meter: str | None) -> None:
    """Adds all of the window's usage, or one meter's."""
    if meter is None:
        table[: len(window.table)] += window.table
        return
    for (_, name), said in window.said.items():
        if name == meter:
            table[said.cells] += said.counters  # each cell comes once


def rows_of(table: Table, mask: Mask) -> Table:
    """The rows of the cells in the mask; zeros in place of the others."""
    return np.where(mask[: len(table), None], table, 0)
