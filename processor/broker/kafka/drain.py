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


class _Taken(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("messages", "value_bytes", "key_bytes", "errors")]


class Drain:
    """The queue of a partition that was assigned to this consumer. What came before stays in the consumer's queue."""

    def __init__(self, consumer: client.Consumer, place: Place, keys: bool) -> None:
        """Raises BuildError where there is no compiler."""
        self._place, self._keys = place, keys
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
        """Messages, and codes of errors with their offsets. Waits so long for the first one."""
        taken = _Taken()
        linger_ms = int(1000 * LINGER_SECONDS)
        failed = self._own.drain_take(self._drain, int(1000 * seconds), linger_ms, most, ctypes.byref(taken))
        if failed:
            raise MemoryError
        messages = self._columns(taken) if taken.messages else None
        errors = self._errors(taken.errors) if taken.errors else []
        self._own.drain_clear(self._drain)
        return messages, errors

    def _columns(self, taken: _Taken) -> Messages:
        count = taken.messages
        values = np.empty(taken.value_bytes, np.uint8)
        keys = np.empty(taken.key_bytes if self._keys else 0, np.uint8)
        starts, lengths, key_starts, key_lengths, times, offsets = (np.empty(count, np.int64) for _ in range(6))
        columns = [values, keys, starts, lengths, key_starts, key_lengths, times, offsets]
        pointers = [ctypes.c_void_p(column.ctypes.data) for column in columns]
        if not self._keys:
            pointers[1] = ctypes.c_void_p(None)
        self._own.drain_fill(self._drain, (ctypes.c_void_p * len(pointers))(*pointers))
        beside = Column(keys, key_starts, key_lengths) if self._keys else None
        return Messages(self._place, Column(values, starts, lengths), times.view(np.uint64), offsets, beside)

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
    own.drain_take.argtypes = [p, integer, integer, ctypes.c_uint64, p]
    own.drain_fill.restype, own.drain_fill.argtypes = None, [p, p]
    own.drain_errors.restype, own.drain_errors.argtypes = None, [p, p, p]
    own.drain_clear.restype = own.drain_free.restype = None
    own.drain_clear.argtypes = own.drain_free.argtypes = [p]
    librdkafka = direct.library()
    librdkafka.rd_kafka_queue_get_partition.restype = p
    librdkafka.rd_kafka_queue_get_partition.argtypes = [p, ctypes.c_char_p, ctypes.c_int32]
    librdkafka.rd_kafka_queue_forward.restype, librdkafka.rd_kafka_queue_forward.argtypes = None, [p, p]
    librdkafka.rd_kafka_queue_destroy.restype, librdkafka.rd_kafka_queue_destroy.argtypes = None, [p]
    functions = _Functions(*(ctypes.cast(getattr(librdkafka, name), p) for name in _FUNCTIONS))
    return own, librdkafka, functions
