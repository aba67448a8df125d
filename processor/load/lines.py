"""Random columns, and lines made of them: Arrow joins columns without a Python step for each record."""

import hashlib
import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class Block(NamedTuple):
    """Rendered lines: line i is data[ends[i]:ends[i + 1]], with its newline."""

    data: bytes
    ends: Ints

    def __len__(self) -> int:
        return len(self.ends) - 1

    def first(self, count: int) -> "Block":
        return self if count == len(self) else Block(self.data[: self.ends[count]], self.ends[: count + 1])

    def line(self, row: int) -> bytes:
        return self.data[self.ends[row] : self.ends[row + 1] - 1]


# --- Draw ---


def stream(seed: int, name: str) -> np.random.Generator:
    """One independent stream for each purpose; adding a purpose leaves the others as they are."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()))


class Zipf:
    """Draws from 0..n-1, number k in proportion to (k + 1) ** -skew.

    The first ranks come from a table. Beyond it the sum is as good as the integral, which is inverted directly, so
    that a billion users take no more memory than a few.
    """

    TABLE_RANKS = 65_536

    def __init__(self, n: int, skew: float) -> None:
        self.n, self.skew = n, skew
        self.table = np.cumsum(np.arange(1, min(n, self.TABLE_RANKS) + 1, dtype=np.float64) ** -skew)
        self.tail_start = len(self.table) + 0.5
        self.head = float(self.table[-1])
        self.tail = self._integral(n + 0.5) if n > len(self.table) else 0.0

    def _integral(self, upto: float) -> float:
        """Of x ** -skew from tail_start."""
        power = 1.0 - self.skew
        if abs(power) < 1e-9:
            return math.log(upto / self.tail_start)
        return float((upto**power - self.tail_start**power) / power)

    def _inverse(self, mass: Floats) -> Floats:
        power = 1.0 - self.skew
        if abs(power) < 1e-9:
            return self.tail_start * np.exp(mass)
        return np.asarray((mass * power + self.tail_start**power) ** (1.0 / power))

    def draw(self, rng: np.random.Generator, count: int) -> Ints:
        mass = rng.random(count) * (self.head + self.tail)
        ranks: Ints = np.searchsorted(self.table, mass, side="right").astype(np.int64)
        beyond = mass >= self.head
        if beyond.any():
            ranks[beyond] = np.rint(self._inverse(mass[beyond] - self.head)).astype(np.int64) - 1
        return np.minimum(ranks, self.n - 1)


def names(known: tuple[str, ...], count: int) -> list[str]:
    return [known[i] if i < len(known) else f"{known[i % len(known)]}-{i // len(known) + 1}" for i in range(count)]


# --- Render ---

_TENS = 10 ** np.arange(18, -1, -1, dtype=np.int64)


def render(parts: list[Any]) -> Block:
    """Joins columns and constants into lines; the last part ends with the newline."""
    lines = pc.binary_join_element_wise(*parts, "", null_handling="replace", null_replacement="")
    _, ends, data = lines.buffers()
    ends = np.frombuffer(ends, np.int32)[: len(lines) + 1].astype(np.int64)
    return Block(data.to_pybytes()[: int(ends[-1])], ends)


def number(values: Ints) -> Any:
    return pc.cast(pa.array(values), pa.string())


def optional(name: str, values: Ints) -> tuple[Any, Any]:
    """Nothing where the value is negative."""
    absent = values < 0
    keys = pick(pa.array([f',"{name}":', ""]), absent.astype(np.int64))
    return keys, pc.cast(pa.array(values, mask=absent), pa.string())


def pick(table: Any, rows: Ints) -> Any:
    return table.take(pa.array(rows))


def digits(values: Ints, width: int) -> Any:
    return _fixed_width((values[:, None] // _TENS[-width:] % 10 + ord("0")).astype(np.uint8))


def uuids(rng: np.random.Generator, count: int) -> Any:
    hexed = np.frombuffer(rng.bytes(16 * count).hex().encode(), np.uint8).reshape(count, 32)
    text = np.full((count, 36), ord("-"), np.uint8)
    for group, (start, end) in enumerate(((0, 8), (8, 12), (12, 16), (16, 20), (20, 32))):
        text[:, start + group : end + group] = hexed[:, start:end]
    text[:, 14] = ord("4")  # the version: random
    return _fixed_width(text)


def _fixed_width(text: npt.NDArray[np.uint8]) -> Any:
    count, width = text.shape
    ends = np.arange(0, (count + 1) * width, width, dtype=np.int32)
    return pa.StringArray.from_buffers(count, pa.py_buffer(ends), pa.py_buffer(np.ascontiguousarray(text)))
