"""librdkafka's call to produce many messages at once, which the Python client does not offer.

A commit writes some 200,000 rows. Through the client each is a Python call and some objects, all of it under the
interpreter's lock; here a message is a line of a table, and one call takes the table with the lock released.

The library is the one that the client has loaded, found through the client's own extension module. The handle is the
first field of the client's objects. Nobody promises that, so this is used only with versions that were tested; with
others, messages go one by one.
"""

import ctypes
import functools
import importlib.metadata
from typing import Any

import confluent_kafka
import numpy as np

from tokenometer.processor.broker import Column

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


class ProducerTopic:
    """A topic of one producer, for batches."""

    def __init__(self, producer: confluent_kafka.Producer, name: str) -> None:
        self._library = found = library()
        self._producer = producer  # which must outlive the topic
        self._topic = ctypes.c_void_p(found.rd_kafka_topic_new(handle(producer), name.encode(), None))

    def __del__(self) -> None:
        self._library.rd_kafka_topic_destroy(self._topic)

    def produce(self, keys: Column, values: Column) -> "Rest":
        """Hands over as many as the queue takes; the others are in the answer."""
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
        self, topic: ProducerTopic, messages: np.ndarray[Any, Any], error: int | None, keys: Column, values: Column
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


def library() -> Any:
    """The librdkafka that the client has loaded, through the client's own extension module."""
    from confluent_kafka import cimpl

    found = ctypes.CDLL(cimpl.__file__)
    found.rd_kafka_topic_new.restype = ctypes.c_void_p
    return found


def handle(client: Any) -> ctypes.c_void_p:
    return ctypes.c_void_p.from_address(id(client) + object.__basicsize__)
