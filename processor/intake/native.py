"""The C++ half of intake: builds it at first use like the kernels, and calls it.

Every call takes columns and gives lines, without a step in Python for each message. The interpreter's lock is released
meanwhile.
"""

import ctypes
import functools
import pathlib
import struct
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from tokenometer.kernels import build
from tokenometer.schemas.value import ANYTHING, OUTER, Path, Value

_SOURCE = pathlib.Path(__file__).with_name("intake.cpp")
_MODES = {"json": 0, "debezium": 1, "cloudevents": 2, "zipkin": 3, "jaeger": 4, "otlp": 5}  # enum Mode in records.h

PLAIN, ARRAY, TEXT, FRAME, MARK, GZIP, ZSTD = range(7)  # enum Claim in intake.cpp
FAILURES = ("", "too_large", "bad_encoding", "unknown_schema")  # enum Failure in intake.cpp
_SPACE_SLACK = 128  # bytes that decoders ask for beyond their lines

Ints = np.ndarray[Any, np.dtype[np.int64]]
Bytes = np.ndarray[Any, np.dtype[np.uint8]]


class _Task(ctypes.Structure):
    """As in intake.cpp."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("addresses", "lengths", "memory")),
        *((name, ctypes.c_uint64) for name in ("memory_bytes", "first", "count", "stop_bytes")),
        *((name, ctypes.c_void_p) for name in ("inject", "inject_ends", "ends", "failures", "space")),
        ("space_bytes", ctypes.c_uint64),
        ("lines", ctypes.c_void_p),
        *((name, ctypes.c_uint64) for name in ("size", "done")),
    ]


class _AvroSchema(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("nodes", "children", "texts")]


@dataclass(frozen=True)
class AvroTables:
    """A compiled schema, as avro.h reads it."""

    nodes: np.ndarray[Any, np.dtype[np.uint32]]  # kind, first child, children, size, scale
    children: np.ndarray[Any, np.dtype[np.uint32]]  # node, text's offset, text's length
    texts: Bytes


@dataclass
class ValueBatch:
    """Values by address and length (-1: none), and what must live as long as they are read."""

    addresses: np.ndarray[Any, np.dtype[np.uint64]]
    lengths: Ints
    owners: list[Any]  # the first is where the values were before any was replaced

    @classmethod
    def of(cls, data: Bytes, starts: Ints, lengths: Ints) -> "ValueBatch":
        return cls(np.uint64(data.ctypes.data) + starts.astype(np.uint64), lengths, [data])

    def replace(self, values: dict[int, bytes]) -> None:
        """Puts other bytes in the place of some messages."""
        if not values:
            return
        joined = np.frombuffer(b"".join([*values.values(), b"\0"]), np.uint8)
        sizes = np.fromiter(map(len, values.values()), np.int64, len(values))
        index = np.fromiter(values, np.int64, len(values))
        self.lengths = self.lengths.copy()
        self.addresses[index] = np.uint64(joined.ctypes.data) + (np.cumsum(sizes) - sizes).astype(np.uint64)
        self.lengths[index] = sizes
        self.owners.append(joined)

    def value(self, index: int) -> bytes | None:
        length = int(self.lengths[index])
        return None if length < 0 else ctypes.string_at(int(self.addresses[index]), length)

    def frames(self) -> Ints:
        """The schema's id that each value begins with; -1: none."""
        ids = np.empty(len(self.lengths), np.int64)
        lengths = np.ascontiguousarray(self.lengths)
        _library().frames(_pointer(self.addresses), _pointer(lengths), ctypes.c_uint64(len(ids)), _pointer(ids))
        return ids

    def skip(self, which: np.ndarray[Any, np.dtype[np.bool_]], count: int) -> None:
        """From now on these values begin `count` bytes later."""
        self.addresses = self.addresses + np.where(which, np.uint64(count), np.uint64(0))
        self.lengths = self.lengths - np.where(which, count, 0)


@dataclass(frozen=True)
class Written:
    """Lines of messages first, first + 1, ..., as many as there are ends; failures by message."""

    data: Bytes
    ends: Ints
    failures: dict[int, str]


def look(data: Bytes, starts: Ints, lengths: Ints, openers: int) -> tuple[Ints, bool]:
    """Which values one of the openers claims, a bit for each, and whether nothing has a claim on any value: by one look
    at the first byte of each."""
    claimed, plain = np.empty(len(starts) + 1, np.int64), ctypes.c_uint8()
    columns = [column.ctypes.data for column in (data, starts, lengths)]
    found = _library().look(*columns, len(starts), openers, claimed.ctypes.data, ctypes.byref(plain))
    return claimed[:found], bool(plain.value)


def lines(
    batch: ValueBatch, recipe: bytes, first: int, stop_bytes: int, inject: Sequence[bytes] | None = None
) -> Written:
    """JSON in any of its shapes, and OTLP. inject: members that every record of a message gets."""
    text, ends = None, None
    if inject is not None:
        text = np.frombuffer(b"".join([*inject, b"\0"]), np.uint8)
        ends = np.concatenate(([0], np.cumsum(np.fromiter(map(len, inject), np.int64, len(inject))))).astype(np.int64)
    return _run(batch, first, stop_bytes, lambda task: _library().decode_lines(task, recipe), text, ends)


def avro(
    batch: ValueBatch,
    schemas: Sequence[AvroTables],
    which: np.ndarray[Any, np.dtype[np.int32]],
    frame_bytes: int,
    limit: int,
    first: int,
    stop_bytes: int,
) -> Written:
    """One datum a message. which: the index of each message's schema; -1: none is known. frame_bytes: that each value
    begins with."""
    array = (_AvroSchema * max(1, len(schemas)))()
    for index, schema in enumerate(schemas):
        array[index] = _AvroSchema(*(part.ctypes.data for part in (schema.nodes, schema.children, schema.texts)))
    call = _library().decode_avro
    return _run(
        batch, first, stop_bytes, lambda task: call(task, array, _pointer(which), frame_bytes, ctypes.c_uint64(limit))
    )


def _run(
    batch: ValueBatch,
    first: int,
    stop_bytes: int,
    call: Any,
    inject: Bytes | None = None,
    inject_ends: Ints | None = None,
) -> Written:
    count = len(batch.lengths)
    assert 0 <= first < count
    ends, failures = np.empty(count, np.int64), np.zeros(count, np.uint8)
    lengths = np.ascontiguousarray(batch.lengths)
    # As much as lines of JSON take, which are about as long as their messages: what grows is copied.
    space = np.empty(int(lengths.sum()) + 2 * count + _SPACE_SLACK, np.uint8)
    task = _Task(
        *(a.ctypes.data for a in (batch.addresses, lengths, batch.owners[0])),
        *(batch.owners[0].nbytes, first, count, stop_bytes),
        *(None if a is None else a.ctypes.data for a in (inject, inject_ends)),
        *(a.ctypes.data for a in (ends, failures, space)),
        space.nbytes,
    )
    if call(ctypes.byref(task)):
        raise MemoryError("no memory for the lines of a batch of messages")
    failed = {int(i): FAILURES[failures[i]] for i in np.flatnonzero(failures)} if failures.any() else {}
    data = space[: task.size] if task.lines == space.ctypes.data else _owned(task.lines, task.size)
    return Written(data, ends[first : task.done], failed)


def _owned(address: int, size: int) -> Bytes:
    """The library's memory as an array, which frees it in the end."""
    buffer = (ctypes.c_uint8 * size).from_address(address)
    weakref.finalize(buffer, _library().release, ctypes.c_void_p(address))
    data: Bytes = np.frombuffer(memoryview(buffer), np.uint8)
    return data


def recipe(value: Value, limit: int) -> bytes:
    """The value as records.h unpacks it. Encodings that are not JSON's give lines that are read as plain JSON then."""
    levels = {(path.count(OUTER), path[path.count(OUTER)]): None for path in value.outer if path[-1] != OUTER}
    json_in = value.json_in
    if value.encoding == "cloudevents":
        json_in = (("data",), *(path for path in json_in if path != ("data",)))
    return b"".join(
        (
            struct.pack("<IIIII", _MODES.get(value.encoding, 0), value.whole, value.index, value.document, limit),
            _path(value.prefix.split(ANYTHING) if value.prefix else ()),
            _path(value.records),
            struct.pack("<I", len(levels)),
            *(struct.pack("<I", level) + _text(key.encode()) + _text(orjson.dumps(key)) for level, key in levels),
            struct.pack("<I", len(json_in)),
            *map(_path, json_in),
        )
    )


def _path(keys: Path | list[str]) -> bytes:
    return struct.pack("<I", len(keys)) + b"".join(_text(key.encode()) for key in keys)


def _text(text: bytes) -> bytes:
    return struct.pack("<I", len(text)) + text


def _pointer(array: np.ndarray[Any, Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def make_ready() -> None:
    """Compiles this module's C++, where this machine has not done that: seconds that no message shall wait for."""
    _library()


@functools.cache
def _library() -> Any:
    library = ctypes.CDLL(str(build.build_shared(_SOURCE)))
    library.look.restype = ctypes.c_uint64
    library.look.argtypes = [*[ctypes.c_void_p] * 3, ctypes.c_uint64, ctypes.c_uint32, *[ctypes.c_void_p] * 2]
    library.release.restype = None
    return library
