"""Which request ids may occur twice? Eight bytes of each record answer that, so that only those are compared in full.

Equal ids within equal scopes have equal marks (sums.h). Different ones may have equal marks, too: they are compared for
nothing, and no harm is done. Marks of one partition are sorted, some at a time.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tokenometer.processor.verify.native import Marks

_MARKS_AT_ONCE = 64 << 20  # that are sorted in memory
_SIEVE_BITS = 20


class Repeated:
    """The marks that more than one record has. files: of marks."""

    def __init__(self, files: Sequence[str]) -> None:
        arrays = [np.load(file, mmap_mode="r") for file in files]
        passes = -(-sum(map(len, arrays)) // _MARKS_AT_ONCE)
        found = [_repeated_among(arrays, passes, number) for number in range(passes)]
        self.marks = np.sort(np.concatenate([np.zeros(0, np.uint64), *found]))
        self._sieve = np.zeros(1 << _SIEVE_BITS, bool)  # most marks are told apart by their lowest bits
        self._sieve[_low(self.marks)] = True

    def __len__(self) -> int:
        return len(self.marks)

    def holds(self, marks: Marks) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which of these are repeated."""
        found: np.ndarray[Any, np.dtype[np.bool_]] = self._sieve[_low(marks)]
        some = np.flatnonzero(found)
        places = np.searchsorted(self.marks, marks[some])
        found[some] = self.marks.take(places, mode="clip") == marks[some]
        return found


def _low(marks: Marks) -> np.ndarray[Any, np.dtype[np.intp]]:
    return (marks & np.uint64((1 << _SIEVE_BITS) - 1)).astype(np.intp)


def _repeated_among(arrays: Sequence[Marks], passes: int, number: int) -> Marks:
    some = [each if passes == 1 else each[each % np.uint64(passes) == number] for each in arrays]
    marks = np.concatenate(some)
    marks.sort()
    return np.unique(marks[1:][marks[1:] == marks[:-1]])
