"""Reading without a group: a range of a partition, and partitions as they grow."""

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import confluent_kafka as client
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from tokenometer.processor.broker import BrokerError, Messages, Offset, Place
from tokenometer.processor.broker.kafka import drain as drains
from tokenometer.processor.broker.kafka.drain import Drain
from tokenometer.processor.broker.kafka.errors import PASSING, Access, error_from, error_of, is_fatal
from tokenometer.processor.broker.kafka.messages import (
    LINGER_SECONDS,
    Beside,
    between,
    failed,
    gather,
    parts_of,
    times_of,
)
from tokenometer.processor.broker.kafka.settings import CONSUMER_DEFAULTS, DEFAULTS, classic, make, principal_of

_STALL_SECONDS = 30  # a read that gets nothing for so long has lost its broker
_READ_MESSAGES = 2_000  # at once; of more, most have left the cache when they are looked at
_DRAINED_MESSAGES = 1 << 15  # which are copied some at a time


# The client looks for its group's coordinator, whom nobody needs here: it may be refused.
_PASSING = PASSING | {KafkaError.GROUP_AUTHORIZATION_FAILED}


def access_of(settings: Mapping[str, Any], places: Iterable[Place]) -> Access:
    topics = ", ".join(sorted({place.topic for place in places}))
    return Access(principal_of(settings), topic=f"READ on the topic {topics}")


def assigned(settings: Mapping[str, Any], starts: Mapping[Place, Offset]) -> client.Consumer:
    """A consumer in no group."""
    own = {
        "group.id": "tokenometer-read",  # the client wants a name; nothing is joined or committed
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "isolation.level": "read_committed",
        "auto.offset.reset": "error",
        "enable.partition.eof": True,
    }
    given = {**DEFAULTS, **CONSUMER_DEFAULTS, **classic(settings), **own}
    consumer = make(client.Consumer, given)
    consumer.assign([TopicPartition(place.topic, place.partition, offset) for place, offset in starts.items()])
    return consumer


class KafkaFollower:
    def __init__(self, settings: Mapping[str, Any], starts: Mapping[Place, Offset], keys: bool) -> None:
        self._consumer = assigned(settings, starts)
        self._beside = Beside.of({place.topic for place in starts} if keys else ())
        self._access = access_of(settings, starts)
        self._reached, self._parts = dict(starts), parts_of(list(starts))

    def poll(self, timeout_seconds: float, most: int) -> list[Messages]:
        try:
            batch = self._consumer.consume(1, timeout_seconds)
            if batch and most > 1:
                batch += self._consumer.consume(most - 1, LINGER_SECONDS)
            # As in `read`, this is past all that was taken from the queue, markers included.
            positions = self._consumer.position(self._parts)
        except KafkaException as error:
            raise error_from("following", error, self._access) from None
        for part in positions:
            self._pass(part.topic, part.partition, part.offset)
        for message in filter(failed, batch):
            failure = message.error()
            assert failure is not None
            if failure.code() == KafkaError._PARTITION_EOF:
                self._pass(message.topic(), message.partition(), message.offset())
            elif failure.code() not in _PASSING and (is_fatal(failure) or not failure.retriable()):
                raise error_of(f"following {message.topic()}-{message.partition()}", failure, self._access)
        found = [message for message in batch if not message.error()]
        return gather(found, times_of(found), None, self._beside) if found else []

    def _pass(self, topic: str | None, partition: int | None, offset: int | None) -> None:
        assert topic is not None and partition is not None and offset is not None
        place = Place(topic, partition)
        self._reached[place] = Offset(max(self._reached[place], offset))

    def reached(self) -> dict[Place, Offset]:
        return dict(self._reached)

    def close(self) -> None:
        self._consumer.close()


def read(
    consumer: client.Consumer, place: Place, end: int, access: Access, keys: bool, headers: bool
) -> Iterator[Messages]:
    """Reads until nothing below `end` can come. The last ones there may be aborted messages and transaction markers."""
    part, topic = [TopicPartition(place.topic, place.partition)], (place.topic,)
    beside = Beside.of(topic if keys else (), topic if headers else ())
    drain = None if headers else drains.opened(consumer, place, keys)
    reached = 0
    heard = time.monotonic()
    try:
        while reached < end:
            found, failures = _take(consumer, drain, place.topic, beside)
            # Asked before the messages go out: it is past all that was taken from the queue, markers included.
            if drain is None or drain.is_empty:
                reached = max(reached, consumer.position(part)[0].offset)
            for error, offset in failures:
                if error.code() == KafkaError._PARTITION_EOF:
                    reached = max(reached, offset)
                elif error.code() not in _PASSING:
                    raise error_of(f"reading {place.topic}-{place.partition}", error, access)
            if found:
                heard = time.monotonic()
            elif time.monotonic() - heard > _STALL_SECONDS and reached < end:
                raise BrokerError(
                    f"reading {place.topic}-{place.partition}: nothing came for {_STALL_SECONDS} s; it ends at {end},"
                    f" and offset {reached} is next"
                )
            for messages in found:
                rest = between(messages, 0, end)
                if rest is not None:
                    yield rest
    finally:
        if drain is not None:
            drain.close()


def _take(
    consumer: client.Consumer, drain: Drain | None, topic: str, beside: Beside
) -> tuple[list[Messages], list[tuple[KafkaError, int]]]:
    """Messages in their order, and errors with their offsets."""
    if drain is None:
        batch = consumer.consume(1, 1.0)
        batch += consumer.consume(_READ_MESSAGES, LINGER_SECONDS) if batch else []
        return _told_apart(batch, topic, beside)
    drained, errors = drain.take(1.0, _DRAINED_MESSAGES)
    # What came before the queue was cut off, and the client's own errors. One thread of librdkafka fills both queues,
    # so what is here was there before what was just drained.
    batch = list[client.Message]()
    while more := consumer.consume(_READ_MESSAGES, 0):
        batch += more
    found, failures = _told_apart(batch, topic, beside)
    failures += [(KafkaError(code), offset) for code, offset in errors]
    return found + ([drained] if drained is not None else []), failures


def _told_apart(
    batch: list[client.Message], topic: str, beside: Beside
) -> tuple[list[Messages], list[tuple[KafkaError, int]]]:
    failures = [(error, message.offset() or 0) for message in batch if (error := message.error()) is not None]
    found = [message for message in batch if not message.error()] if failures else batch
    return gather(found, times_of(found), topic, beside) if found else [], failures
