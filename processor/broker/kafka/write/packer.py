"""Columns of messages to record batches of one producer: pack.cpp, built at first use like the kernels.

Nothing is done for a message in Python, and the interpreter's lock is released meanwhile.
"""

import ctypes
import functools
import pathlib
import weakref
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tokenometer.kernels import build
from tokenometer.processor.broker import Column
from tokenometer.processor.broker.kafka.fetch import codecs
from tokenometer.processor.broker.kafka.fetch.security import Unable

_SOURCE = pathlib.Path(__file__).with_name("pack.cpp")
_LZ4 = "LZ4F_compressFrameBound", "LZ4F_compressFrame", "LZ4F_isError"
COMPRESSIONS = ("lz4", "none")


class _Encoder(ctypes.Structure):
    """As in pack.h."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("bound", "compress", "failed")]


class _Texts(ctypes.Structure):
    """As in pack.h."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("data", "starts", "lengths")]


class _Closed(ctypes.Structure):
    """As in pack.h."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("size", ctypes.c_uint64),
        *((name, ctypes.c_int32) for name in ("partition", "first_sequence", "count")),
    ]


class Identity(NamedTuple):
    """Of a producer, as a broker has given it."""

    producer: int
    epoch: int


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """A batch that is ready to be sent."""

    partition: int
    data: memoryview
    first_sequence: int
    count: int


class Packer:
    """The batches of one topic. Raises Unable, schemas.compiled.BuildError, MemoryError."""

    def __init__(
        self,
        identity: Identity,
        batch_bytes: int,
        compression: str = "lz4",
        first_sequence: int = 0,
        transactional: bool = True,
    ) -> None:
        library, encoder = _library(), encoder_of(compression)
        self._packer = ctypes.c_void_p(
            library.packer_new(ctypes.byref(encoder), *identity, transactional, batch_bytes, first_sequence)
        )
        if not self._packer:
            raise MemoryError
        weakref.finalize(self, library.packer_free, self._packer).atexit = False
        self.partitions = 0

    def grow(self, partitions: int) -> None:
        """The topic has so many now."""
        if partitions > self.partitions:
            _check(_library().packer_grow(self._packer, ctypes.c_uint64(partitions)))
            self.partitions = partitions

    def add(self, keys: Column, values: Column, now_ms: int) -> None:
        """None of them may be missing."""
        assert self.partitions and len(keys) == len(values)
        texts = [_Texts(*(array.ctypes.data for array in arrays)) for arrays in (_arrays(keys), _arrays(values))]
        pointers, count = map(ctypes.byref, texts), ctypes.c_uint64(len(values))
        _check(_library().packer_add(self._packer, *pointers, count, ctypes.c_uint64(now_ms)))

    def touched(self) -> list[int]:
        """The partitions that were given messages since this was last asked."""
        flags = np.zeros(self.partitions, np.uint8)
        _library().packer_touched(self._packer, ctypes.c_void_p(flags.ctypes.data))
        found: list[int] = np.flatnonzero(flags).tolist()
        return found

    def close(self, now_ms: int) -> None:
        """Whatever there is goes into batches, however small."""
        _check(_library().packer_close(self._packer, ctypes.c_uint64(now_ms)))

    def take(self) -> list[PackedBatch]:
        """The batches that are closed; those of a partition in their order."""
        found, closed, library = [], _Closed(), _library()
        while library.packer_take(self._packer, ctypes.byref(closed)):
            buffer = (ctypes.c_uint8 * closed.size).from_address(closed.data)
            weakref.finalize(buffer, library.release, ctypes.c_void_p(closed.data)).atexit = False
            data = memoryview(buffer).cast("B")
            found.append(PackedBatch(closed.partition, data, closed.first_sequence, closed.count))
        return found


def hash_of(key: bytes) -> int:
    """By which a key's partition is chosen, as Java's clients do."""
    return int(_library().hash_of(key, ctypes.c_uint64(len(key))))


def encoder_of(compression: str) -> ctypes.Structure:
    encoder = _Encoder()
    if compression == "none":
        return encoder
    library = codecs.loaded("liblz4.so.1")
    if compression != "lz4" or library is None:
        raise Unable(f"compression.type={compression}, or liblz4 is not on this machine")
    for entry, name in zip(_Encoder._fields_, _LZ4, strict=True):
        setattr(encoder, entry[0], ctypes.cast(getattr(library, name), ctypes.c_void_p))
    return encoder


def _arrays(column: Column) -> list[np.ndarray[Any, Any]]:
    return [np.ascontiguousarray(array) for array in (column.data, column.starts, column.lengths)]


def _check(failed: int) -> None:
    if failed:
        raise MemoryError("no memory for the batches of a transaction")


@functools.cache
def _library() -> Any:
    library = ctypes.CDLL(str(build.build_shared(_SOURCE)))
    library.packer_new.restype = ctypes.c_void_p
    numbers = [ctypes.c_int64, ctypes.c_int32, ctypes.c_int32, ctypes.c_uint64, ctypes.c_int32]
    library.packer_new.argtypes = [ctypes.c_void_p, *numbers]
    library.packer_free.restype = library.release.restype = library.packer_touched.restype = None
    library.hash_of.restype = ctypes.c_uint32
    return library
