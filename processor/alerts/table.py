"""Columns by a 64-bit key, and integers wider than a machine's. No Python step for a key.

A sum of tokens fits 64 bits; a sum of money, in 10^-18 of a currency, does not. A wide integer is `hi * 2^32 + lo`,
with 0 <= lo < 2^32, in two arrays of int64, so it has 95 bits. What is wider raises OverflowError.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Ints = np.ndarray[Any, np.dtype[np.int64]]
Keys = np.ndarray[Any, np.dtype[np.uint64]]
_BITS = 32
_LOW = (1 << _BITS) - 1
_HIGH_END = 1 << 62


@dataclass(frozen=True)
class Wide:
    """Integers of up to 95 bits."""

    hi: Ints
    lo: Ints

    @classmethod
    def of(cls, values: np.ndarray[Any, Any]) -> "Wide":
        """values: uint64, or Python's integers (dtype object)."""
        try:
            return cls((values >> _BITS).astype(np.int64), (values & _LOW).astype(np.int64))
        except OverflowError:
            raise OverflowError("an amount of money has more than 95 bits") from None

    def __getitem__(self, at: Any) -> "Wide":
        return Wide(self.hi[at], self.lo[at])

    def __sub__(self, other: "Wide") -> "Wide":
        return normal(self.hi - other.hi, self.lo - other.lo)

    def __add__(self, other: "Wide") -> "Wide":
        return normal(self.hi + other.hi, self.lo + other.lo)

    def summed(self, starts: Ints) -> "Wide":
        """The sums of groups that begin at these places; there is at least one group."""
        return normal(np.add.reduceat(self.hi, starts), np.add.reduceat(self.lo, starts))

    def reaches(self, level: int) -> Any:
        hi, lo = level >> _BITS, level & _LOW
        return (self.hi > hi) | ((self.hi == hi) & (self.lo >= lo))

    def exceeds(self, other: "Wide") -> Any:
        return (self.hi > other.hi) | ((self.hi == other.hi) & (self.lo > other.lo))

    def ints(self) -> list[int]:
        return [(hi << _BITS) + lo for hi, lo in zip(self.hi.tolist(), self.lo.tolist(), strict=True)]


def normal(hi: Ints, lo: Ints) -> Wide:
    found = Wide(hi + (lo >> _BITS), lo & _LOW)
    if len(hi) and int(np.abs(found.hi).max()) >= _HIGH_END:
        raise OverflowError("a sum has more than 95 bits")
    return found


class Table:
    """Columns of int64 by key, which are 0 where nothing was written. keys: sorted, each once."""

    def __init__(self, columns: int) -> None:
        self.keys: Keys = np.empty(0, np.uint64)
        self.columns: list[Ints] = [np.empty(0, np.int64) for _ in range(columns)]

    def __len__(self) -> int:
        return len(self.keys)

    def places(self, keys: Keys) -> Ints:
        """Where these keys are, which are sorted and each there once. Those that are new get zeros."""
        at = np.searchsorted(self.keys, keys)
        new = np.ones(len(keys), bool)
        inside = at < len(self.keys)
        new[inside] = self.keys[at[inside]] != keys[inside]
        if new.any():
            self.columns = [np.insert(column, at[new], 0) for column in self.columns]
            self.keys = np.insert(self.keys, at[new], keys[new])
            at = np.searchsorted(self.keys, keys)
        return at.astype(np.int64)

    def wide(self, column: int, at: Any) -> Wide:
        return Wide(self.columns[column][at], self.columns[column + 1][at])

    def put(self, column: int, at: Any, values: Wide) -> None:
        self.columns[column][at], self.columns[column + 1][at] = values.hi, values.lo

    def keep(self, kept: np.ndarray[Any, np.dtype[np.bool_]]) -> None:
        self.keys = self.keys[kept]
        self.columns = [column[kept] for column in self.columns]

    def arrays(self) -> list[np.ndarray[Any, Any]]:
        return [self.keys, *self.columns]

    def restore(self, arrays: Sequence[np.ndarray[Any, Any]]) -> None:
        assert len(arrays) == len(self.columns) + 1
        self.keys, self.columns = arrays[0], list(arrays[1:])
