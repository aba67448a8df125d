"""librdkafka's calls for many messages at once, which the Python client does not offer.

A commit writes some 200,000 rows, and a second brings up to a million messages. Through the client each is a Python
call and some objects, all of it under the interpreter's lock; here a message is a line of a table, and one call takes
or fills the table with the lock released.

The library is the one that the client has loaded, found through the client's own extension module. The handle is the
first field of the client's objects. Nobody promises that, so this is used only with versions that were tested; with
others, messages go one by one.
"""

import contextlib
import ctypes
import functools
import importlib.metadata
import pathlib
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import confluent_kafka
import numpy as np

from tokenometer.kernels import build
from tokenometer.processor.broker import Column, Headers, Place
from tokenometer.processor.broker.kafka.messages import PLAIN, Beside

TESTED = ("2.16",)  # of confluent-kafka
_COPY = 0x2  # RD_KAFKA_MSG_F_COPY: without it, a producer that is given up might read freed values
_BY_KEY = -1  # RD_KAFKA_PARTITION_UA: the partitioner decides
_QUEUE_FULL = -184

# rd_kafka_message_t, part of librdkafka's stable ABI
MESSAGE = np.dtype(
    [
        ("err", np.int32),
        ("spare", np.int32),
        ("rkt", np.uint64),
        ("partition", np.int32),
        ("spare2", np.int32),
        ("payload", np.uint64),
        ("len", np.uint64),
        ("key", np.uint64),
        ("key_len", np.uint64),
        ("offset", np.int64),
        ("private", np.uint64),
    ]
)
assert MESSAGE.itemsize == 72


@functools.cache
def supported() -> bool:
    return ".".join(importlib.metadata.version("confluent-kafka").split(".")[:2]) in TESTED


class Topic:
    """A topic of one producer, for batches."""

    def __init__(self, producer: confluent_kafka.Producer, name: str) -> None:
        self._library = library = _library()
        self._producer = producer  # which must outlive the topic
        handle = _handle(producer)
        self._topic = ctypes.c_void_p(library.rd_kafka_topic_new(handle, name.encode(), None))

    def __del__(self) -> None:
        self._library.rd_kafka_topic_destroy(self._topic)

    def produce(self, keys: Column, values: Column) -> "Rest":
        """Hands over as many messages as the queue takes, and returns the others."""
        messages = np.zeros(len(values), MESSAGE)
        messages["payload"], messages["len"] = _places(values)
        messages["key"], messages["key_len"] = _places(keys)
        return self._enqueue(messages, keys, values)

    def _enqueue(self, messages: np.ndarray[Any, Any], keys: Column, values: Column) -> "Rest":
        self._library.rd_kafka_produce_batch(
            self._topic, ctypes.c_int32(_BY_KEY), _COPY, messages.ctypes.data_as(ctypes.c_void_p), len(messages)
        )
        left = messages[messages["err"] != 0]
        refused = left[left["err"] != _QUEUE_FULL]
        return Rest(self, left, int(refused["err"][0]) if len(refused) else None, keys, values)


class Rest:
    """Messages that were not taken. `error`: librdkafka's code, if it is another one than a full queue."""

    def __init__(
        self, topic: Topic, messages: np.ndarray[Any, Any], error: int | None, keys: Column, values: Column
    ) -> None:
        self._topic, self._messages, self.error = topic, messages, error
        self._columns = keys, values  # alive as long as the messages point into them

    def __bool__(self) -> bool:
        return len(self._messages) > 0

    def produce(self) -> "Rest":
        self._messages["err"] = 0
        return self._topic._enqueue(self._messages, *self._columns)


def _places(column: Column) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Address and length of each text."""
    return np.uint64(column.data.ctypes.data) + column.starts.astype(np.uint64), column.lengths.astype(np.uint64)


# --- Reading ---


class _Columns(ctypes.Structure):
    """As in gather.cpp."""

    _fields_ = [
        (name, ctypes.c_void_p) for name in ("lengths", "ends", "times", "offsets", "topics", "partitions", "errors")
    ]


_LENGTHS = struct.Struct("=ii")  # of a header's name and value


def _headers(data: bytes, ends: np.ndarray[Any, np.dtype[np.int64]]) -> list[Headers]:
    """Of each message, those that end before ends[i]; most messages have none."""
    found: list[Headers] = [()] * len(ends)
    begins = np.concatenate((np.zeros(1, np.int64), ends[:-1]))
    for index in np.flatnonzero(ends > begins).tolist():
        at, end, headers = int(begins[index]), int(ends[index]), list[tuple[bytes, bytes | None]]()
        while at < end:
            name_length, length = _LENGTHS.unpack_from(data, at)
            value = at + _LENGTHS.size + name_length
            name = data[at + _LENGTHS.size : value]
            at = value + max(length, 0)
            headers.append((name, None if length < 0 else data[value:at]))
        with contextlib.suppress(UnicodeDecodeError):
            found[index] = [(name.decode(), value) for name, value in headers]
    return found


class _Beside(ctypes.Structure):
    """As in gather.cpp."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("key_lengths", "key_ends", "header_ends")]


class _Calls(ctypes.Structure):
    """As `Librdkafka` in gather.cpp."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("headers_of", "header_at")]


_KEY, _HEADERS = 1, 2  # enum Wanted


@dataclass(frozen=True)
class Fetched:
    """Messages in order of arrival, those of a partition in the order of their offsets. errors: librdkafka's codes.
    keys, headers: None where no topic's were asked for; those of other topics are empty."""

    values: Column
    times: np.ndarray[Any, np.dtype[np.int64]]
    offsets: np.ndarray[Any, np.dtype[np.int64]]
    topics: np.ndarray[Any, np.dtype[np.uint64]]
    partitions: np.ndarray[Any, np.dtype[np.int32]]
    errors: np.ndarray[Any, np.dtype[np.int32]]
    keys: Column | None = None
    headers: list[Headers] | None = None

    def __len__(self) -> int:
        return len(self.offsets)

    def runs(self) -> Iterator[tuple[int, int]]:
        """Consecutive messages of one partition, errors apart."""
        if not len(self):
            return
        same = (self.topics[1:] == self.topics[:-1]) & (self.partitions[1:] == self.partitions[:-1])
        same &= (self.errors[1:] == 0) & (self.errors[:-1] == 0)
        yield from pairwise([0, *(np.flatnonzero(~same) + 1).tolist(), len(self)])


class Reader:
    """The messages of a consumer's partitions, through a queue of our own; all else stays in the client's.

    A partition's queue is forwarded to ours when it is assigned; librdkafka drops what was fetched before a seek or for
    an earlier assignment in any queue. Raises kernels.build.BuildError where there is no compiler.
    """

    def __init__(self, consumer: confluent_kafka.Consumer, most: int, beside: Beside = PLAIN) -> None:
        file = pathlib.Path(__file__).with_name("gather.cpp")
        self._own = ctypes.CDLL(str(build.build_shared(file)))
        self._own.gathered_bytes.restype = ctypes.c_uint64
        self._library = library = _library()
        self._handle = _handle(consumer)
        self._queue = ctypes.c_void_p(library.rd_kafka_queue_new(self._handle))
        self._forwarded: dict[Place, ctypes.c_void_p] = {}
        self._messages = (ctypes.c_void_p * most)()
        self._names: dict[int, str] = {}
        self._beside = beside
        calls = (library.rd_kafka_message_headers, library.rd_kafka_header_get_all)
        self._calls = _Calls(*(ctypes.cast(call, ctypes.c_void_p) for call in calls))

    def add(self, places: Iterable[Place]) -> None:
        for place in places:
            queue = self._library.rd_kafka_queue_get_partition(self._handle, place.topic.encode(), place.partition)
            self._forwarded[place] = ctypes.c_void_p(queue)
            self._library.rd_kafka_queue_forward(self._forwarded[place], self._queue)

    def remove(self, places: Iterable[Place]) -> None:
        for place in places:
            if queue := self._forwarded.pop(place, None):
                self._library.rd_kafka_queue_forward(queue, None)
                self._library.rd_kafka_queue_destroy(queue)

    def close(self) -> None:
        """To be called before the consumer's own close, which frees what the queues belong to."""
        self.remove(list(self._forwarded))
        self._library.rd_kafka_queue_destroy(self._queue)

    def fetch(self, timeout_ms: int, most: int) -> Fetched:
        count = self._library.rd_kafka_consume_batch_queue(
            self._queue, ctypes.c_int(timeout_ms), self._messages, ctypes.c_size_t(min(most, len(self._messages)))
        )
        assert count >= 0
        beside = self._gather_beside(count) if count and any(self._beside) else (None, None)
        data = np.empty(self._own.gathered_bytes(self._messages, count), np.uint8)
        lengths, ends, times, offsets = (np.empty(count, np.int64) for _ in range(4))
        topics, partitions, errors = np.empty(count, np.uint64), np.empty(count, np.int32), np.empty(count, np.int32)
        columns = _Columns(*(a.ctypes.data for a in (lengths, ends, times, offsets, topics, partitions, errors)))
        time_of = ctypes.cast(self._library.rd_kafka_message_timestamp, ctypes.c_void_p)
        destroy = ctypes.cast(self._library.rd_kafka_message_destroy, ctypes.c_void_p)
        self._own.gather(
            self._messages, count, time_of, destroy, ctypes.c_void_p(data.ctypes.data), ctypes.byref(columns)
        )
        starts = np.concatenate((np.zeros(min(count, 1), np.int64), ends[:-1]))
        return Fetched(Column(data, starts, lengths, ends), times, offsets, topics, partitions, errors, *beside)

    def _gather_beside(self, count: int) -> tuple[Column, list[Headers]]:
        topics, sizes = np.empty(count, np.uint64), np.zeros(2, np.uint64)
        self._own.topics_of(self._messages, count, _pointer(topics))
        known, places = np.unique(topics, return_inverse=True)
        wanted = np.array([self._wanted(int(topic)) for topic in known], np.uint8)[places]
        asked = self._messages, count, _pointer(wanted), ctypes.byref(self._calls)
        self._own.beside_bytes(*asked, _pointer(sizes))
        keys, headers = (np.empty(int(size), np.uint8) for size in sizes)
        key_lengths, key_ends, header_ends = (np.empty(count, np.int64) for _ in range(3))
        to = _Beside(*(a.ctypes.data for a in (key_lengths, key_ends, header_ends)))
        self._own.gather_beside(*asked, _pointer(keys), _pointer(headers), ctypes.byref(to))
        found = Column(keys, key_ends - np.maximum(key_lengths, 0), key_lengths)
        return found, _headers(headers.tobytes(), header_ends)

    def _wanted(self, topic: int) -> int:
        name = self.topic(topic)
        return _KEY * (name in self._beside.keys) | _HEADERS * (name in self._beside.headers)

    def topic(self, pointer: int) -> str:
        """The name of a topic that came with a message."""
        if pointer not in self._names:
            self._names[pointer] = self._library.rd_kafka_topic_name(ctypes.c_void_p(pointer)).decode()
        return self._names[pointer]


def _library() -> Any:
    """The librdkafka that the client has loaded, through the client's own extension module."""
    from confluent_kafka import cimpl

    library = ctypes.CDLL(cimpl.__file__)
    for name in ("rd_kafka_topic_new", "rd_kafka_queue_new", "rd_kafka_queue_get_partition"):
        getattr(library, name).restype = ctypes.c_void_p
    library.rd_kafka_topic_name.restype = ctypes.c_char_p
    library.rd_kafka_consume_batch_queue.restype = ctypes.c_ssize_t
    return library


def _pointer(array: np.ndarray[Any, Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def _handle(client: Any) -> ctypes.c_void_p:
    return ctypes.c_void_p.from_address(id(client) + object.__basicsize__)
