"""Record batches to columns: walk.cpp, built at first use like the kernels.

Nothing is done for a message in Python, and the interpreter's lock is released meanwhile.
"""

import ctypes
import enum
import functools
import pathlib
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tokenometer.kernels import build, layout
from tokenometer.kernels.values import RawBatches
from tokenometer.processor.broker import Column, Headers
from tokenometer.processor.broker.kafka.fetch import codecs
from tokenometer.processor.broker.kafka.messages import headers_in

_SOURCE = pathlib.Path(__file__).with_name("walk.cpp")
# A batch comes from one request of a producer, of some megabytes at most; this is what one may take when it is opened.
OPENED_BYTES_MAX = 256 << 20

KEYS, HEADERS = 1, 2  # enum Wanted in batches.h

Ints = np.ndarray[Any, np.dtype[np.int64]]
Bytes = np.ndarray[Any, np.dtype[np.uint8]]


class Status(enum.IntEnum):
    """As in batches.h."""

    FINE = 0
    BAD_CRC = 1
    BAD_BATCH = 2
    BAD_COMPRESSION = 3
    TOO_LARGE = 4
    OLD_FORMAT = 5
    UNKNOWN_CODEC = 6
    NO_MEMORY = 7
    FULL = 8


class _Task(ctypes.Structure):
    """As in batches.h."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("size", ctypes.c_uint64),
        ("from_offset", ctypes.c_int64),
        ("aborted_producers", ctypes.c_void_p),
        ("aborted_offsets", ctypes.c_void_p),
        ("aborted", ctypes.c_uint64),
        ("room", ctypes.c_uint64),
        ("wanted", ctypes.c_uint32),
    ]


_TEXTS = ("values", "keys", "headers")
_NUMBERS = ("ends", "lengths", "times", "offsets", "key_ends", "key_lengths", "header_ends")


class _Found(ctypes.Structure):
    """As in batches.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in _TEXTS),
        *((f"{name}_bytes", ctypes.c_uint64) for name in _TEXTS),
        ("count", ctypes.c_uint64),
        ("batches", ctypes.c_void_p),
        ("batch_count", ctypes.c_uint64),
        *((name, ctypes.c_void_p) for name in _NUMBERS),
        ("next_offset", ctypes.c_int64),
        ("walked", ctypes.c_uint64),
        ("epoch", ctypes.c_int32),
        ("status", ctypes.c_int32),
        ("region", ctypes.c_uint64),
        ("lines_within", ctypes.c_uint64),
    ]


@dataclass(frozen=True)
class Walked:
    """What whole batches hold, up to the first broken one; `status` says what is wrong with that.

    next_offset: past all of them, those included that hold nothing for us. walked: their bytes. epoch: of the leader
    that wrote the last one; -1: there was none.
    """

    values: Column
    times: np.ndarray[Any, np.dtype[np.uint64]]
    offsets: Ints
    keys: Column | None
    headers: Sequence[Headers] | None
    next_offset: int
    walked: int
    epoch: int
    status: Status


@dataclass(frozen=True)
class Opened:
    """Whole batches whose records are still to be walked, up to the first that is broken or does not fit (`status`).

    The rest as in Walked. A device that walks them may find a batch broken that is counted here.
    """

    raw: RawBatches
    next_offset: int
    walked: int
    epoch: int
    status: Status


class Walker:
    """For one thread at a time. Raises schemas.compiled.BuildError where there is no compiler."""

    def __init__(self, limit: int = OPENED_BYTES_MAX, missing: frozenset[str] = frozenset()) -> None:
        """missing: libraries that are not to be used (codecs.py)."""
        self._library = library = _library()
        self._libraries = codecs.find(library.append_bytes, missing)
        self._walker = ctypes.c_void_p(library.walker_new(ctypes.byref(self._libraries), ctypes.c_uint64(limit)))
        if not self._walker:
            raise MemoryError
        weakref.finalize(self, library.walker_free, self._walker).atexit = False  # a thread may be walking still

    def walk(self, data: memoryview, begin: int, aborted: Sequence[tuple[int, int]] = (), wanted: int = 0) -> Walked:
        """The messages of offset >= begin. aborted: (producer, first offset) of transactions, as an answer lists them.

        data may be used again when this returns. Raises MemoryError.
        """
        return _walked(self._found(data, begin, aborted, 0, wanted), wanted)

    def open(self, data: memoryview, begin: int, aborted: Sequence[tuple[int, int]], room: int) -> Opened:
        """The same batches, for a walk on a device: checked and decompressed, as many as fit `room` bytes, of 1 or
        more. Keys and headers are not to be had there."""
        found = self._found(data, begin, aborted, room, 0)
        values = _owned(found.values, found.values_bytes, np.uint8)
        batches = _owned(found.batches, found.batch_count * layout.RAW_BATCH.itemsize, np.uint8)
        raw = RawBatches(values, batches.view(layout.RAW_BATCH), begin)
        return Opened(raw, found.next_offset, found.walked, found.epoch, _status(found))

    def _found(
        self, data: memoryview, begin: int, aborted: Sequence[tuple[int, int]], room: int, wanted: int
    ) -> _Found:
        raw = np.frombuffer(data, np.uint8)
        transactions = np.array(sorted(aborted, key=lambda pair: pair[1]), np.int64).reshape(-1, 2).T.copy()
        where = (row.ctypes.data for row in transactions)
        task = _Task(raw.ctypes.data, len(raw), begin, *where, len(aborted), room, wanted)
        found = _Found()
        self._library.walk(self._walker, ctypes.byref(task), ctypes.byref(found))
        return found


def next_offset(data: memoryview, begin: int, epoch: int) -> tuple[int, int]:
    """Where a walk over this will end if nothing is wrong with it, and the epoch of the last batch (`epoch`: there is
    none), by the heads of the batches alone."""
    raw, found = np.frombuffer(data, np.uint8), ctypes.c_int32(epoch)
    size = ctypes.c_uint64(len(raw))
    return int(_library().next_offset(ctypes.c_void_p(raw.ctypes.data), size, begin, ctypes.byref(found))), found.value


def checksum(data: bytes) -> int:
    """CRC-32C."""
    return int(_library().checksum(data, ctypes.c_uint64(len(data))))


def _walked(found: _Found, wanted: int) -> Walked:
    values, buffer = _values(found)
    keys, headers = (_owned(getattr(found, name), getattr(found, f"{name}_bytes"), np.uint8) for name in _TEXTS[1:])
    sizes = [found.count] * 4 + [found.count * bool(wanted & KEYS)] * 2 + [found.count * bool(wanted & HEADERS)]
    ends, lengths, times, offsets, key_ends, key_lengths, header_ends = (
        _owned(getattr(found, name), size, np.int64) for name, size in zip(_NUMBERS, sizes, strict=True)
    )
    return Walked(
        Column(values, _begins(ends), lengths, ends, buffer, one_line=not found.lines_within),
        times.view(np.uint64),
        offsets,
        Column(keys, key_ends - np.maximum(key_lengths, 0), key_lengths) if wanted & KEYS else None,
        headers_in(headers.tobytes(), header_ends) if wanted & HEADERS else None,
        *(found.next_offset, found.walked, found.epoch, _status(found)),
    )


def _values(found: _Found) -> tuple[Bytes, Bytes | None]:
    """The values, and the region that they are in (regions.h), which lives as long as they do; None: none."""
    if not found.region:
        return _owned(found.values, found.values_bytes, np.uint8), None
    region = _owned(found.values - layout.PREFIX_BYTES, found.region, np.uint8, "give_back")
    return region[layout.PREFIX_BYTES : layout.PREFIX_BYTES + found.values_bytes], region


def _status(found: _Found) -> Status:
    status = Status(found.status)
    if status is Status.NO_MEMORY:
        raise MemoryError("no memory for the messages of a fetch")
    return status


def _begins(ends: Ints) -> Ints:
    return np.concatenate((np.zeros(min(len(ends), 1), np.int64), ends[:-1]))


def _owned(address: int | None, count: int, kind: type[np.uint8] | type[np.int64], free: str = "release") -> Any:
    """The library's memory as an array, which frees it in the end."""
    if address is None:
        return np.empty(0, kind)
    buffer = (ctypes.c_uint8 * (count * np.dtype(kind).itemsize)).from_address(address)
    weakref.finalize(buffer, getattr(_library(), free), ctypes.c_void_p(address)).atexit = False
    return np.frombuffer(memoryview(buffer), kind)


@functools.cache
def _library() -> Any:
    library = ctypes.CDLL(str(build.build_shared(_SOURCE)))
    library.walker_new.restype = ctypes.c_void_p
    library.walker_free.restype = library.release.restype = library.give_back.restype = library.walk.restype = None
    library.append_bytes.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint64]
    library.next_offset.restype = ctypes.c_int64
    library.next_offset.argtypes = [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int64, ctypes.c_void_p]
    library.checksum.restype = ctypes.c_uint32
    return library
