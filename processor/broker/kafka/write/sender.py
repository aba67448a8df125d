"""Messages of one producer by requests of our own.

    write ─> packer ─> closed batches ─> Produce ─> unanswered ─> answered
                                            └── sent again after a failure that passes ┘

Owns: connections to the partitions' leaders, and batches until they are answered.
Promises: when `finish` returns, all replicas in sync have all that was written, once and in its order; the brokers see
to that by the batches' sequence numbers. Nothing waits beyond the deadline.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from confluent_kafka import KafkaError, KafkaException

from tokenometer.processor.broker import BrokerError, Column, Place
from tokenometer.processor.broker.kafka.fetch.connection import Connection, Options, addresses
from tokenometer.processor.broker.kafka.fetch.security import Unable
from tokenometer.processor.broker.kafka.fetch.wire import (
    METADATA,
    Malformed,
    Request,
    metadata,
    read_metadata,
)
from tokenometer.processor.broker.kafka.write import wire
from tokenometer.processor.broker.kafka.write.packer import Identity, PackedBatch, Packer, encoder_of

_BACKOFF_SECONDS, _BACKOFF_SECONDS_MAX = 0.05, 1.0
_BUSY_SECONDS = 0.01  # the coordinator has not yet done with the transaction before
_FRESH_SECONDS = 10.0  # then a topic is asked for again: it may have more partitions
_MISSING_SECONDS = 10.0  # a broker that has just begun may not have heard of a topic yet
_REQUEST_BYTES_MAX = 8 << 20
# On their way to one broker. It knows a producer's last five batches of a partition again when they are repeated.
_REQUESTS_MAX = 5
_BATCH_BYTES = 1_000_000  # librdkafka's default; what is not compressible stays below the brokers' default limit
_PARTITIONERS = ("murmur2", "murmur2_random")  # the same where there is a key

_DUPLICATE, _OUT_OF_ORDER = KafkaError.DUPLICATE_SEQUENCE_NUMBER, KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER
COORDINATOR_MOVED = {
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
}
PASSING = {
    *COORDINATOR_MOVED,
    KafkaError.CONCURRENT_TRANSACTIONS,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.UNKNOWN_LEADER_EPOCH,
    KafkaError.REQUEST_TIMED_OUT,
    KafkaError.BROKER_NOT_AVAILABLE,
    KafkaError.REPLICA_NOT_AVAILABLE,
    KafkaError.NETWORK_EXCEPTION,
    KafkaError.NOT_ENOUGH_REPLICAS,
    KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
    KafkaError.KAFKA_STORAGE_ERROR,
}


class Passing(Exception):
    """What may pass: a code of Kafka's."""

    def __init__(self, code: int) -> None:
        super().__init__(KafkaError(code).str())
        self.code = code


FAILURES = (OSError, Malformed, Passing)


@dataclass
class _Topic:
    packer: Packer
    asked_at: float = float("-inf")
    leaders: dict[int, tuple[str, int]] = field(default_factory=dict)
    added: set[int] = field(default_factory=set)  # partitions that `_enter` was told of


@dataclass(frozen=True)
class _Line:
    """A connection to a leader, and the batches of each request that waits for its answer."""

    connection: Connection
    waiting: deque[list[tuple[Place, PackedBatch]]] = field(default_factory=deque)


class Sender:
    """For one thread at a time. What no retry mends is a KafkaException with Kafka's code, or a BrokerError that begins
    with `doing`."""

    transactional_id: str | None = None
    doing = "writing"

    def __init__(self, settings: Mapping[str, Any], answer_seconds_max: float, requests: Sequence[Request]) -> None:
        """settings: librdkafka's. Raises Unable, BuildError where there is no compiler, OSError for certificates."""
        self._lines: dict[tuple[str, int], _Line] = {}
        self._asking: Connection | None = None  # any broker
        partitioner = str(settings.get("partitioner", _PARTITIONERS[0]))
        if partitioner not in _PARTITIONERS:
            raise Unable(f"partitioner={partitioner}")
        options = Options.of(settings, requests)
        self._options = replace(options, answer_timeout=min(options.answer_timeout, answer_seconds_max))
        self._compression = str(settings.get("compression.codec", settings.get("compression.type", "none")))
        encoder_of(self._compression)  # so that it is known whether it can be
        self._batch_bytes = min(int(settings.get("batch.size", _BATCH_BYTES)), _BATCH_BYTES)
        self._bootstrap = list(addresses(str(settings["bootstrap.servers"])))
        self._brokers: list[tuple[str, int]] = []  # that were heard of
        self._identity: Identity | None = None
        self._deadline = 0.0  # by the steady clock
        self._topics: dict[str, _Topic] = {}
        self._unanswered: dict[Place, deque[PackedBatch]] = {}

    def _enter(self, name: str, partitions: Sequence[int]) -> None:
        """Called before the first batches to partitions of a topic are sent."""

    def write(self, name: str, keys: Column, values: Column) -> None:
        topic = self._known(name)
        topic.packer.add(keys, values, _now_ms())
        self._send_closed(name, topic)

    def push(self) -> None:
        """Sends what is there; the answers may come later."""
        for name, topic in self._topics.items():
            topic.packer.close(_now_ms())
            self._send_closed(name, topic)

    def finish(self) -> None:
        self.push()
        try:
            for line in self._lines.values():
                while line.waiting:
                    self._answer(line)
        except FAILURES as error:
            self._mend(error)
        assert not any(self._unanswered.values())

    def close(self) -> None:
        """Without waiting for what is on its way."""
        self._disconnect()
        self._leave()

    def __del__(self) -> None:
        self.close()  # a producer may be given up without being closed, as librdkafka's may

    # --- Batches ---

    def _send_closed(self, name: str, topic: _Topic) -> None:
        if new := [partition for partition in topic.packer.touched() if partition not in topic.added]:
            self._enter(name, new)
            topic.added.update(new)
        batches = [(Place(name, batch.partition), batch) for batch in topic.packer.take()]
        for place, batch in batches:
            self._unanswered.setdefault(place, deque()).append(batch)
        try:
            for address, request in self._requests(batches):
                line = self._line(address)
                while len(line.waiting) >= _REQUESTS_MAX:
                    self._answer(line)
                self._produce(line, request)
        except FAILURES as error:
            self._mend(error)

    def _requests(
        self, batches: Sequence[tuple[Place, PackedBatch]]
    ) -> Iterator[tuple[tuple[str, int], list[tuple[Place, PackedBatch]]]]:
        """By leader; of a partition each request has one batch at most."""
        requests: dict[tuple[str, int], list[tuple[Place, PackedBatch]]] = {}
        for place, batch in batches:
            address = self._topics[place.topic].leaders.get(place.partition)
            if address is None:
                raise Passing(KafkaError.LEADER_NOT_AVAILABLE)
            request = requests.setdefault(address, [])
            size = sum(len(other.data) for _, other in request) + len(batch.data)
            if request and (size > _REQUEST_BYTES_MAX or any(place == other for other, _ in request)):
                yield address, requests.pop(address)
                request = requests[address] = []
            request.append((place, batch))
        yield from requests.items()

    def _produce(self, line: _Line, request: list[tuple[Place, PackedBatch]]) -> None:
        by_topic: dict[str, list[PackedBatch]] = {}
        for place, batch in request:
            by_topic.setdefault(place.topic, []).append(batch)
        timeout_ms = max(1, round(1000 * self._options.answer_timeout))
        line.connection.send(wire.PRODUCE, wire.produce(self.transactional_id, by_topic, timeout_ms))
        line.waiting.append(request)

    def _answer(self, line: _Line, again: bool = False) -> None:
        """Takes the oldest one. A batch may be out of order because the one before it failed; or, sent again, because
        its broker has it and later ones: one that was stopped and started knows only the last again."""
        request = line.waiting.popleft()
        codes = wire.read_produced(line.connection.answer(wire.PRODUCE))
        failed: int | None = None
        for place, batch in request:
            code = codes.get(place)
            if code is None:
                raise Malformed(f"an answer says nothing of {place.topic}-{place.partition}")
            waiting = self._unanswered[place]
            if code in (0, _DUPLICATE):
                while waiting.popleft() is not batch:  # a broker has all that was before what it has
                    pass
            elif code in PASSING or (code == _OUT_OF_ORDER and not again and waiting[0] is not batch):
                failed = code
            elif not (code == _OUT_OF_ORDER and again and waiting[-1] is not batch):
                raise KafkaException(KafkaError(code))
        if failed is not None:
            raise Passing(failed)

    def _mend(self, error: Exception) -> None:
        """Sends what is unanswered again, one request after the other, until it is answered. The brokers may have some
        of it: they leave that out."""
        began, wait = time.monotonic(), _BACKOFF_SECONDS
        while True:
            self._disconnect()
            self._rest(wait, began, error)
            wait = min(2 * wait, _BACKOFF_SECONDS_MAX)
            try:
                for name in {place.topic for place, batches in self._unanswered.items() if batches}:
                    self._ask_leaders(name)
                batches = [(place, batch) for place, waiting in self._unanswered.items() for batch in waiting]
                for address, request in self._requests(batches):
                    line = self._line(address)
                    self._produce(line, request)
                    self._answer(line, again=True)
                return
            except FAILURES as another:
                error = another

    def _rest(self, seconds: float, began: float, error: Exception) -> None:
        """Before the next try. Raises what it was that did not pass."""
        now = time.monotonic()
        missing = isinstance(error, Passing) and error.code == KafkaError.UNKNOWN_TOPIC_OR_PART
        if now + seconds > self._deadline or (missing and now - began > _MISSING_SECONDS):
            if isinstance(error, Passing):
                raise KafkaException(KafkaError(error.code))
            raise BrokerError(f"{self.doing}: {error}")
        time.sleep(seconds)

    # --- Brokers ---

    def _line(self, address: tuple[str, int]) -> _Line:
        line = self._lines.get(address)
        if line is None:
            line = self._lines[address] = _Line(self._connected(address))
        return line

    def _disconnect(self) -> None:
        """What is on its way to leaders is of an unknown fate now."""
        for line in self._lines.values():
            line.connection.close()
        self._lines.clear()

    def _connected(self, address: tuple[str, int]) -> Connection:
        try:
            return Connection(*address, self._options)
        except Unable as error:
            raise BrokerError(f"our own requests cannot use {error}: set tokenometer.rows=librdkafka") from None

    def _known(self, name: str) -> _Topic:
        topic = self._topics.get(name)
        if topic is None:
            assert self._identity is not None
            transactional = self.transactional_id is not None
            topic = self._topics[name] = _Topic(
                Packer(self._identity, self._batch_bytes, self._compression, transactional=transactional)
            )
        if time.monotonic() - topic.asked_at > _FRESH_SECONDS:
            self._persist(lambda: self._ask_leaders(name))
        return topic

    def _ask_leaders(self, name: str) -> None:
        topic = self._topics[name]
        try:
            self._asking = self._asking or self._any()
            known = read_metadata(self._asking.ask(METADATA, metadata([name])))
        except (OSError, Malformed):
            self._leave()
            raise
        found = known.topics.get(name)
        if found is None or found.error in PASSING or not found.leaders:
            raise Passing(found.error if found is not None and found.error else KafkaError.LEADER_NOT_AVAILABLE)
        if found.error:
            raise KafkaException(KafkaError(found.error))
        self._brokers = list(known.brokers.values())
        topic.leaders = {
            partition: known.brokers[leader.node]
            for partition, leader in found.leaders.items()
            if leader.node in known.brokers
        }
        topic.packer.grow(len(found.leaders))
        topic.asked_at = time.monotonic()

    def _leave(self) -> None:
        """The broker that is asked; the next one may be another."""
        if self._asking is not None:
            self._asking.close()
            self._asking = None

    def _any(self) -> Connection:
        """Any broker that answers."""
        failure: OSError | Malformed | None = None
        for address in dict.fromkeys([*self._brokers, *self._bootstrap]):
            try:
                return self._connected(address)
            except (OSError, Malformed) as error:
                failure = error
        raise failure or ConnectionError("bootstrap.servers names nobody")

    def _persist(self, action: Callable[[], None]) -> None:
        began, wait = time.monotonic(), _BACKOFF_SECONDS
        while True:
            try:
                return action()
            except FAILURES as error:
                busy = isinstance(error, Passing) and error.code == KafkaError.CONCURRENT_TRANSACTIONS
                self._rest(_BUSY_SECONDS if busy else wait, began, error)
                wait = min(2 * wait, _BACKOFF_SECONDS_MAX)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
