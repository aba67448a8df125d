"""The memory of columns.

Fresh memory is what costs this model most: the system clears each page, and a virtual machine's host may have to find
it first. So it comes in large pieces of huge pages, and can be taken before it is needed.
"""

import contextlib
import mmap
from typing import Any

import numpy as np

from tokenometer.processor.broker import Column

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
_PIECE_BYTES = 32 << 20


class Room:
    def __init__(self) -> None:
        self._free: Bytes = np.empty(0, np.uint8)

    def fill(self, piece: Bytes) -> None:
        """What is kept from now on goes there, until it is full."""
        self._free = piece

    def keep(self, column: Column, rows: list[int] | None) -> Column:
        """These texts of the column, or all, in memory of our own."""
        begins, ends = column.starts, column.lines
        if ends is None:
            ends = begins + np.maximum(column.lengths, 0)
        if rows is None:
            first = int(begins.min())
            data = self._take(int(ends.max()) - first)
            data[:] = column.data[first : first + len(data)]
            lines = None if column.lines is None else ends - first
            return Column(data, begins - first, column.lengths.copy(), lines, one_line=column.one_line)
        places = list(zip(begins[rows].tolist(), ends[rows].tolist(), strict=True))
        sizes = ends[rows] - begins[rows]
        ends = np.cumsum(sizes)
        data = self._take(int(ends[-1]))
        np.concatenate([column.data[begin:end] for begin, end in places], out=data)
        lines = None if column.lines is None else ends
        return Column(data, ends - sizes, column.lengths[rows], lines, one_line=column.one_line)

    def _take(self, size: int) -> Bytes:
        if size > len(self._free):
            self._free = piece(max(_PIECE_BYTES, size))
        taken, self._free = self._free[:size], self._free[size:]
        return taken


def piece(size: int, touched: bool = False) -> Bytes:
    """touched: the system has given all of it when this returns."""
    # Not of the heap: there it would lie between blocks that come and go.
    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(AttributeError, OSError):  # a system that has no huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    made = np.frombuffer(memory, np.uint8)
    if touched:
        made[:: mmap.PAGESIZE] = 0
    return made
