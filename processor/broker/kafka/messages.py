"""Turns the client's messages and partitions into ours, with as little Python for each message as possible."""

import contextlib
import operator
import struct
import time
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from tokenometer.processor.broker import Headers, Messages, Offset, Place, Position
from tokenometer.processor.broker.kafka.errors import COORDINATOR_MOVES, Access, error_of

LINGER_SECONDS = 0.005  # what poll waits for more once it has a message: fewer, larger batches for little latency
_PAUSE_SECONDS = 0.1


class Beside(NamedTuple):
    """The topics whose messages come with their keys, and those with their headers."""

    keys: frozenset[str] = frozenset()
    headers: frozenset[str] = frozenset()

    @classmethod
    def of(cls, keys: Collection[str] = (), headers: Collection[str] = ()) -> "Beside":
        return cls(frozenset(keys), frozenset(headers))


PLAIN = Beside()

_LENGTHS = struct.Struct("=ii")  # of a header's name and value


def headers_in(data: bytes, ends: np.ndarray[Any, np.dtype[np.int64]]) -> list[Headers]:
    """Of each message, those that end before ends[i], as batches.h writes them; most messages have none."""
    found: list[Headers] = [()] * len(ends)
    begins = np.concatenate((np.zeros(min(len(ends), 1), np.int64), ends[:-1]))
    for index in np.flatnonzero(ends > begins).tolist():
        at, end, headers = int(begins[index]), int(ends[index]), list[tuple[bytes, bytes | None]]()
        while at < end:
            name_length, length = _LENGTHS.unpack_from(data, at)
            value = at + _LENGTHS.size + name_length
            name = data[at + _LENGTHS.size : value]
            at = value + max(length, 0)
            headers.append((name, None if length < 0 else data[value:at]))
        with contextlib.suppress(UnicodeDecodeError):  # as the client: such a message has none
            found[index] = [(name.decode(), value) for name, value in headers]
    return found


def parts_of(places: Sequence[Place]) -> list[TopicPartition]:
    return [TopicPartition(place.topic, place.partition) for place in places]


def places_of(parts: Sequence[TopicPartition]) -> list[Place]:
    return [Place(part.topic, part.partition) for part in parts]


_value = Message.value
_key = Message.key
_offset = Message.offset
_partition = Message.partition
_topic = Message.topic
_timestamp = Message.timestamp
_headers = Message.headers
failed = Message.error


def _headers_of(message: Message) -> Headers:
    """None where a name is not UTF-8: then the client answers with an error set, which `map` sees and a call does not;
    and it may be asked only once."""
    try:
        return cast(Headers, next(map(_headers, (message,))) or ())
    except SystemError:
        return ()


def times_of(batch: list[Message]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The message's time; -1 or 0 where it has none."""
    return np.fromiter(map(operator.itemgetter(1), map(_timestamp, batch)), np.int64, len(batch))


def gather(
    batch: list[Message],
    times: np.ndarray[Any, np.dtype[np.int64]],
    topic: str | None,
    beside: Beside = PLAIN,
) -> list[Messages]:
    """Runs of one partition. topic: what all of them are from, if that is known."""
    unsigned = np.maximum(times, 0, out=times).view(np.uint64)
    starts = _starts(batch, topic)
    if len(starts) == 2:
        return [_messages(batch, unsigned, topic, beside)]
    return [
        _messages(batch[begin:end], unsigned[begin:end], topic, beside)
        for begin, end in zip(starts[:-1], starts[1:], strict=True)
    ]


def _starts(batch: list[Message], topic: str | None) -> list[int]:
    """Where runs begin, and where the last ends."""
    count = len(batch)
    partitions = list(map(_partition, batch))
    changes = np.zeros(count - 1, bool)
    if partitions.count(partitions[0]) != count:
        changes = np.diff(np.array(partitions, np.int32)) != 0
    if topic is None:
        topics = list(map(_topic, batch))
        if topics.count(topics[0]) != count:
            changes |= np.fromiter(map(operator.ne, topics[1:], topics), bool, count - 1)
    return [0, *(np.flatnonzero(changes) + 1).tolist(), count]


def _messages(
    run: list[Message],
    times: np.ndarray[Any, np.dtype[np.uint64]],
    topic: str | None,
    beside: Beside,
) -> Messages:
    count = len(run)
    first, last = run[0].offset(), run[-1].offset()
    place = Place(topic or str(run[0].topic()), run[0].partition() or 0)
    assert first is not None and last is not None
    # Offsets rise, so that without a gap between the two ends there is none inside.
    if last - first == count - 1:
        offsets = np.arange(first, last + 1, dtype=np.int64)
    else:
        offsets = np.fromiter(map(_offset, run), np.int64, count)
    return Messages(
        place=place,
        values=list(map(_value, run)),
        times=times,
        offsets=offsets,
        keys=list(map(_key, run)) if place.topic in beside.keys else None,
        headers=list(map(_headers_of, run)) if place.topic in beside.headers else None,
    )


def between(messages: Messages, begin: int, end: int | None = None) -> Messages | None:
    """The messages of begin <= offset < end."""
    low = int(np.searchsorted(messages.offsets, begin))
    high = len(messages.offsets) if end is None else int(np.searchsorted(messages.offsets, end))
    if low >= high:
        return None
    if high - low == len(messages.offsets):
        return messages
    return Messages(
        messages.place,
        messages.values[low:high],
        messages.times[low:high],
        messages.offsets[low:high],
        messages.keys and messages.keys[low:high],
        messages.headers and messages.headers[low:high],
    )


def committed(consumer: Consumer, parts: list[TopicPartition], seconds: float) -> list[TopicPartition]:
    """Asks again while another broker takes the group over: librdkafka hands that error out."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return consumer.committed(parts, timeout=max(_PAUSE_SECONDS, deadline - time.monotonic()))
        except KafkaException as error:
            if error.args[0].code() not in COORDINATOR_MOVES or time.monotonic() > deadline:
                raise
        time.sleep(_PAUSE_SECONDS)


def positions_of(parts: Sequence[TopicPartition], access: Access) -> dict[Place, Position | None]:
    positions: dict[Place, Position | None] = {}
    for part in parts:
        if part.error is not None:
            raise error_of(f"reading committed offsets of {part.topic}-{part.partition}", part.error, access)
        known = part.offset >= 0
        positions[Place(part.topic, part.partition)] = (
            Position(Offset(part.offset), part.metadata or "") if known else None
        )
    return positions
