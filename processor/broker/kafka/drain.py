"""Messages of one partition as columns, out of librdkafka, without an object for each: drain.cpp, built at first use.

The client hands out its messages one Python object each, which takes longer than reading them. librdkafka has a queue
for each partition. Here it is cut off from the consumer's own queue, which is still asked through the client: log lines
and errors of the client come there, and its callbacks want the client's own calls around them.

As `direct`, this is used only with versions of the client that were tested; with others, and without a compiler,
messages come one by one.
"""

import ctypes
import functools
import pathlib
import weakref
from typing import Any

import confluent_kafka as client
import numpy as np

from tokenometer.processor.broker import Column, Messages, Place
from tokenometer.processor.broker.kafka import direct
from tokenometer.processor.broker.kafka.messages import LINGER_SECONDS
from tokenometer.schemas import compiled

_SOURCE = pathlib.Path(__file__).with_name("drain.cpp")
_FUNCTIONS = "rd_kafka_consume_batch_queue", "rd_kafka_message_timestamp", "rd_kafka_message_destroy"


class _Functions(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in _FUNCTIONS]


class _Amount(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("messages", "value_bytes", "key_bytes")]


class _Taken(ctypes.Structure):
    _fields_ = [("amount", _Amount), ("errors", ctypes.c_uint64), ("held", ctypes.c_uint64)]


_NO_MEMORY, _DONE, _NO_ROOM = -1, 0, 1
_ROOM_BYTES = 8 << 20  # of all values that are taken at once, unless the first ones are larger; and of all keys


class Drain:
    """The queue of a partition that was assigned to this consumer. What came before stays in the consumer's queue."""

    def __init__(self, consumer: client.Consumer, place: Place, keys: bool) -> None:
        """Raises BuildError where there is no compiler."""
        self._place, self._keys = place, keys
        self.is_empty = True  # nothing is held back that was in the queue
        self._own, self._librdkafka, functions = _libraries()
        handle = direct.handle(consumer)
        queue = self._librdkafka.rd_kafka_queue_get_partition(handle, place.topic.encode(), place.partition)
        assert queue, "the partition is assigned"
        self._queue = ctypes.c_void_p(queue)
        self._librdkafka.rd_kafka_queue_forward(self._queue, None)
        drain = self._own.drain_new(ctypes.byref(functions), self._queue)
        if not drain:
            raise MemoryError
        self._drain = ctypes.c_void_p(drain)
        self._close = weakref.finalize(self, _close, self._own, self._librdkafka, self._drain, self._queue)

    def take(self, seconds: float, most: int) -> tuple[Messages | None, list[tuple[int, int]]]:
        """At most so many messages, and codes of errors with their offsets. Waits so long for the first one."""
        room = _Amount(most, _ROOM_BYTES, _ROOM_BYTES if self._keys else 0)
        while True:
            columns, taken = self._columns(room), _Taken()
            answer = self._take(seconds, room, columns, taken)
            if answer == _DONE:
                break
            if answer == _NO_MEMORY:
                raise MemoryError
            room = taken.amount
        self.is_empty = taken.held == 0
        messages = self._messages(columns, taken.amount) if taken.amount.messages else None
        return messages, self._errors(taken.errors) if taken.errors else []

    def _columns(self, room: _Amount) -> list[Any]:
        texts = [np.empty(size, np.uint8) for size in (room.value_bytes, room.key_bytes)]
        return texts + [np.empty(room.messages, np.int64) for _ in range(6 if self._keys else 4)]

    def _take(self, seconds: float, room: _Amount, columns: list[Any], taken: _Taken) -> int:
        values, keys, starts, lengths, times, offsets, *of_keys = (column.ctypes.data for column in columns)
        beside = (keys, *of_keys) if self._keys else (None, None, None)
        pointers = (ctypes.c_void_p * 8)(values, beside[0], starts, lengths, *beside[1:], times, offsets)
        wait_ms, linger_ms = int(1000 * seconds), int(1000 * LINGER_SECONDS)
        parts = ctypes.byref(room), pointers, ctypes.byref(taken)
        return int(self._own.drain_take(self._drain, wait_ms, linger_ms, *parts))

    def _messages(self, columns: list[Any], taken: _Amount) -> Messages:
        values, keys, *numbers = columns
        starts, lengths, times, offsets, *of_keys = (column[: taken.messages] for column in numbers)
        beside = Column(keys[: taken.key_bytes], *of_keys) if self._keys else None
        column = Column(values[: taken.value_bytes], starts, lengths)
        return Messages(self._place, column, times.view(np.uint64), offsets, beside)

    def _errors(self, count: int) -> list[tuple[int, int]]:
        codes, offsets = np.empty(count, np.int32), np.empty(count, np.int64)
        self._own.drain_errors(self._drain, codes.ctypes.data, offsets.ctypes.data)
        return list(zip(codes.tolist(), offsets.tolist(), strict=True))

    def close(self) -> None:
        """Before the consumer is closed."""
        self._close()


def opened(consumer: client.Consumer, place: Place, keys: bool) -> Drain | None:
    if not direct.supported():
        return None
    try:
        return Drain(consumer, place, keys)
    except compiled.BuildError:
        return None


def _close(own: Any, librdkafka: Any, drain: ctypes.c_void_p, queue: ctypes.c_void_p) -> None:
    own.drain_free(drain)
    librdkafka.rd_kafka_queue_destroy(queue)


@functools.cache
def _libraries() -> tuple[Any, Any, _Functions]:
    own = ctypes.CDLL(str(compiled.build_shared(_SOURCE)))
    p, integer = ctypes.c_void_p, ctypes.c_int
    own.drain_new.restype, own.drain_new.argtypes = p, [p, p]
    own.drain_take.restype = ctypes.c_int64
    own.drain_take.argtypes = [p, integer, integer, p, p, p]
    own.drain_errors.restype, own.drain_errors.argtypes = None, [p, p, p]
    own.drain_free.restype, own.drain_free.argtypes = None, [p]
    librdkafka = direct.library()
    librdkafka.rd_kafka_queue_get_partition.restype = p
    librdkafka.rd_kafka_queue_get_partition.argtypes = [p, ctypes.c_char_p, ctypes.c_int32]
    librdkafka.rd_kafka_queue_forward.restype, librdkafka.rd_kafka_queue_forward.argtypes = None, [p, p]
    librdkafka.rd_kafka_queue_destroy.restype, librdkafka.rd_kafka_queue_destroy.argtypes = None, [p]
    functions = _Functions(*(ctypes.cast(getattr(librdkafka, name), p) for name in _FUNCTIONS))
    return own, librdkafka, functions
