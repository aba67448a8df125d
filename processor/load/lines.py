"""Random columns, and the lines that C++ makes of them (lines.cpp).

Owns: what a made-up record is made of, and its spelling.
"""

import ctypes
import functools
import hashlib
import math
import pathlib
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from tokenometer.kernels import build

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Records = npt.NDArray[np.void]
Bytes = npt.NDArray[np.uint8]

_COUNTS = ("input_tokens", "cached_input_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens")
# A record, as in lines.cpp. A count of -1 is absent; prefill and place: 1 + the index, 0: absent.
RECORD = np.dtype(
    [
        ("id", np.uint64, 2),
        ("time_ms", np.int64),
        *((name, np.int64) for name in _COUNTS),
        *((name, np.uint32) for name in ("user", "model", "chip", "prefill", "place", "latency_cents", "streamed")),
        ("spare", np.uint32),
    ]
)
_LINE_BYTES_MAX = 640  # of a record without the texts of its tables: field names, and every number at its longest
_CHUNK_BYTES = 32  # as in lines.cpp


@dataclass(frozen=True)
class Block:
    """Lines, and what a producer wants to know of them: line i is data[ends[i]:ends[i + 1]], with its newline.

    users: the number of each line's user, whose name has so many digits. due_ms: when each line comes to the log.
    """

    data: memoryview
    ends: Ints
    users: npt.NDArray[np.uint32]
    user_digits: int
    due_ms: Ints

    def __len__(self) -> int:
        return len(self.ends) - 1

    def between(self, begin: int, end: int) -> "Block":
        first, last = int(self.ends[begin]), int(self.ends[end])
        data, ends = self.data[first:last], self.ends[begin : end + 1] - first
        return Block(data, ends, self.users[begin:end], self.user_digits, self.due_ms[begin:end])

    def line(self, row: int) -> bytes:
        return bytes(self.data[self.ends[row] : self.ends[row + 1] - 1])

    def user_names(self) -> npt.NDArray[np.uint8]:
        """One line of characters for each record."""
        names = np.empty((len(self), len("user-") + self.user_digits), np.uint8)
        users = np.ascontiguousarray(self.users)
        _library().format_users(_pointer(users), len(self), self.user_digits, _pointer(names))
        return names


# --- Draw ---


def stream(seed: int, name: str) -> np.random.Generator:
    """One independent stream for each purpose; adding a purpose leaves the others as they are."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()))


class Zipf:
    """Draws from 0..n-1, number k in proportion to (k + 1) ** -skew.

    The first ranks come from a table. Beyond it the sum is as good as the integral, which is inverted directly, so
    that a billion users take no more memory than a few. A guide says between which two ranks of the table a draw lies:
    mostly they are one, and only the others are looked for.
    """

    TABLE_RANKS = 65_536
    GUIDE_CELLS = 8  # to each rank of the table

    def __init__(self, n: int, skew: float) -> None:
        self.n, self.skew = n, skew
        self.table = np.cumsum(np.arange(1, min(n, self.TABLE_RANKS) + 1, dtype=np.float64) ** -skew)
        self.tail_start = len(self.table) + 0.5
        self.head = float(self.table[-1])
        self.whole = self.head + (self._integral(n + 0.5) if n > len(self.table) else 0.0)
        self.cells = max(1024, self.GUIDE_CELLS * len(self.table))
        bounds = np.arange(self.cells + 1) * (self.whole / self.cells)
        self.guide = np.searchsorted(self.table, bounds, side="right").astype(np.int32)

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
        share, ranks = rng.random(count), np.empty(count, np.int64)
        law = _Law(self.table.ctypes.data, self.guide.ctypes.data, len(self.table), self.cells, self.whole)
        _library().draw_ranks(ctypes.byref(law), _pointer(share), ctypes.c_uint32(count), _pointer(ranks))
        if self.n > len(self.table):
            beyond = np.flatnonzero(ranks >= len(self.table))
            mass = np.maximum(share[beyond] * self.whole - self.head, 0.0)
            ranks[beyond] = np.rint(self._inverse(mass)).astype(np.int64) - 1
        return np.minimum(ranks, self.n - 1, out=ranks)


def part(rng: np.random.Generator, share: float, totals: Ints) -> Ints:
    """A random part of each total; -1 where the field is absent, which is at times also how a zero is logged."""
    uniform, parts = rng.random((3, len(totals))), np.empty(len(totals), np.int64)
    totals = np.ascontiguousarray(totals, np.int64)
    shares = _pointer(uniform), ctypes.c_double(share)
    _library().draw_parts(*shares, _pointer(totals), ctypes.c_uint32(len(totals)), _pointer(parts))
    return parts


def ids(rng: np.random.Generator, count: int) -> npt.NDArray[np.uint64]:
    return rng.integers(0, 1 << 64, (count, 2), np.uint64)


def names(known: tuple[str, ...], count: int) -> list[str]:
    return [known[i] if i < len(known) else f"{known[i % len(known)]}-{i // len(known) + 1}" for i in range(count)]


# --- Format ---


class _Law(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("table", "guide")),
        *((name, ctypes.c_uint32) for name in ("ranks", "cells")),
        ("whole", ctypes.c_double),
    ]


class _Texts(ctypes.Structure):
    _fields_ = [("data", ctypes.c_char_p), ("ends", ctypes.c_void_p)]


class _Tables(ctypes.Structure):
    _fields_ = [
        *((name, _Texts) for name in ("models", "chips", "prefills", "places")),
        ("user_digits", ctypes.c_uint32),
    ]


@functools.cache
def _library() -> Any:
    return ctypes.CDLL(str(build.build_shared(pathlib.Path(__file__).with_name("lines.cpp"))))


def _pointer(array: npt.NDArray[Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


class Format:
    """Spells records. models: as JSON strings; places: region and endpoint."""

    def __init__(
        self, models: Iterable[str], chips: Iterable[str], users: int, places: Iterable[tuple[str, str]] = ()
    ) -> None:
        self.user_digits, chips = max(6, len(str(users - 1))), list(chips)
        texts = [
            [f'","model":{name}' for name in models],
            [f',"chip":"{name}"' for name in chips],
            [f',"prefill_chip":"{name}"' for name in chips],
            [f',"region":"{region}","endpoint":"{endpoint}"' for region, endpoint in places],
        ]
        self._kept = [_joined([text.encode() for text in table]) for table in texts]  # what the pointers point to
        self._tables = _Tables(*(_Texts(data, ends.ctypes.data) for data, ends in self._kept), self.user_digits)
        self._room = _LINE_BYTES_MAX + sum(int(np.diff(ends).max(initial=0)) for _, ends in self._kept)

    def block(self, records: Records, due_ms: Ints, edits: Mapping[int, bytes] = MappingProxyType({})) -> Block:
        """edits: other lines, given without their newlines, in place of some."""
        count, rows = len(records), np.array(sorted(edits), np.uint32)
        texts, text_ends = _joined([edits[row] for row in rows.tolist()])
        space = np.empty(count * self._room + len(texts), np.uint8)
        records, ends = np.ascontiguousarray(records), np.empty(count + 1, np.int64)
        _library().format_records(
            *(_pointer(records), ctypes.c_uint32(count), ctypes.byref(self._tables)),
            *(_pointer(rows), ctypes.byref(_Texts(texts, text_ends.ctypes.data)), ctypes.c_uint32(len(rows))),
            *(_pointer(space), _pointer(ends)),
        )
        return Block(space[: ends[-1]].data, ends, records["user"].copy(), self.user_digits, due_ms)


def _joined(texts: Sequence[bytes]) -> tuple[bytes, Ints]:
    ends = np.concatenate(([0], np.cumsum([len(text) for text in texts], dtype=np.int64)))
    return b"".join(texts) + bytes(_CHUNK_BYTES), ends


# --- Group ---


class Grouping:
    """Lines that wait until so many of one group of users fill a message; C++ holds them."""

    def __init__(self, groups: int, lines_per_message: int) -> None:
        library = _library()
        library.grouping_new.restype, library.grouping_bytes.restype = ctypes.c_void_p, ctypes.c_uint64
        self._it = ctypes.c_void_p(library.grouping_new(ctypes.c_uint32(groups), ctypes.c_uint32(lines_per_message)))
        weakref.finalize(self, library.grouping_free, self._it)

    def add(self, block: Block) -> tuple[Bytes, Ints, Ints]:
        """The messages that are full now: their lines, where each message's last one ends, and its group."""
        data, users = np.frombuffer(block.data, np.uint8), np.ascontiguousarray(block.users)
        ends = np.ascontiguousarray(block.ends)
        _library().grouping_add(self._it, _pointer(data), _pointer(ends), _pointer(users), ctypes.c_uint32(len(block)))
        return self._taken()

    def rest(self) -> tuple[Bytes, Ints, Ints]:
        """All others, as they are."""
        _library().grouping_close(self._it)
        return self._taken()

    def _taken(self) -> tuple[Bytes, Ints, Ints]:
        count = ctypes.c_uint32()
        data = np.empty(_library().grouping_bytes(self._it, ctypes.byref(count)), np.uint8)
        ends, groups = np.empty(count.value, np.int64), np.empty(count.value, np.int64)
        _library().grouping_take(self._it, _pointer(data), _pointer(ends), _pointer(groups))
        return data, ends, groups
