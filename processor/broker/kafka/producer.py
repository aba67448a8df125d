"""Writing, with transactions and without."""

import time
from collections.abc import Mapping, Sequence
from itertools import repeat
from typing import Any

import confluent_kafka as client
from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition

from tokenometer.processor.broker import BrokerError, Column, Fenced, Headers, Place, Position
from tokenometer.processor.broker.kafka import direct
from tokenometer.processor.broker.kafka.errors import Access, error_from, error_of, is_fatal
from tokenometer.processor.broker.kafka.settings import (
    ANSWER_SECONDS,
    DEFAULTS,
    FULL_QUEUE_SECONDS,
    PRODUCER_DEFAULTS,
    READY_SECONDS,
    TRANSACTION_TIMEOUT_MS,
    make,
    milliseconds,
    principal_of,
)

_APPEND_TIMEOUT_MS = 60_000


class KafkaProducer:
    """Writes in transactions. Between `begin` and `commit` at most transaction.timeout.ms may pass."""

    def __init__(self, settings: Mapping[str, Any], transactional_id: str) -> None:
        self._timeout_seconds = (
            milliseconds(settings, "transaction.timeout.ms", TRANSACTION_TIMEOUT_MS) / 1000 + ANSWER_SECONDS
        )
        self._id = transactional_id
        self._principal = principal_of(settings)
        self._written: set[str] = set()  # topics; a commit fails without saying at which
        self._deadline: float | None = None  # when the broker gives the transaction up
        own = {
            "transactional.id": transactional_id,
            "transaction.timeout.ms": milliseconds(settings, "transaction.timeout.ms", TRANSACTION_TIMEOUT_MS),
            "enable.idempotence": True,
            "acks": "all",
            "delivery.report.only.error": True,  # a commit fails where a message did
        }
        self._producer: client.Producer | None = make(
            client.Producer, {**DEFAULTS, **PRODUCER_DEFAULTS, **settings, **own}
        )
        self._topics: dict[str, direct.ProducerTopic] = {}
        self._do("opening", "init_transactions", READY_SECONDS)

    def begin(self) -> None:
        self._do("beginning", "begin_transaction")
        self._deadline = time.monotonic() + self._timeout_seconds - ANSWER_SECONDS

    def produce(
        self,
        topic: str,
        values: Sequence[bytes],
        keys: Sequence[bytes] | None = None,
        headers: Sequence[Headers] | None = None,
    ) -> None:
        assert self._producer is not None, "produce after close"
        self._written.add(topic)
        assert keys is None or len(keys) == len(values)
        assert headers is None or len(headers) == len(values)
        produce, poll = self._producer.produce, self._producer.poll
        try:
            # produce_batch takes a dict for each message, knows no headers, and is slower.
            for value, key, header in zip(values, keys or repeat(None), headers or repeat(None), strict=False):
                while True:
                    try:
                        if header is None:
                            produce(topic, value, key)
                        else:
                            produce(topic, value, key, headers=list(header))
                        break
                    except BufferError:  # librdkafka's queue is full
                        self._check_time(topic)
                        poll(FULL_QUEUE_SECONDS)
            poll(0)
        except KafkaException as error:
            raise self._raised(f"writing to {topic}", error) from None

    def produce_columns(self, topic: str, keys: Column, values: Column) -> None:
        if not direct.supported():
            return self.produce(topic, values.tolist(), keys.tolist())
        assert self._producer is not None, "produce after close"
        self._written.add(topic)
        assert len(keys) == len(values)
        known = self._topics.get(topic) or self._topics.setdefault(topic, direct.ProducerTopic(self._producer, topic))
        try:
            rest = known.produce(keys, values)
            while rest:
                if rest.error is not None:
                    raise KafkaException(KafkaError(rest.error))
                self._check_time(topic)
                self._producer.poll(FULL_QUEUE_SECONDS)
                rest = rest.produce()
            self._producer.poll(0)  # this too says what was fatal
        except KafkaException as error:
            raise self._raised(f"writing to {topic}", error) from None

    def _check_time(self, topic: str) -> None:
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise BrokerError(f"writing to {topic}: the transaction timed out before its messages were taken")

    def send_offsets(self, positions: Mapping[Place, Position], group: Any) -> None:
        parts = [
            TopicPartition(place.topic, place.partition, position.offset, position.metadata)
            for place, position in positions.items()
        ]
        self._do("committing offsets", "send_offsets_to_transaction", parts, group, self._timeout_seconds)

    def commit(self) -> None:
        self._do("committing", "commit_transaction", self._timeout_seconds)
        self._deadline = None

    def abort(self) -> None:
        self._do("aborting", "abort_transaction", self._timeout_seconds)
        self._deadline = None

    def close(self) -> None:
        # Not librdkafka's own close: that one aborts and flushes first, and waits for a broker that may be gone.
        self._topics.clear()
        self._producer = None

    def _do(self, doing: str, method: str, *arguments: Any) -> None:
        assert self._producer is not None, f"{doing} after close"
        try:
            getattr(self._producer, method)(*arguments)
        except KafkaException as error:
            raise self._raised(f"{doing} the transaction of {self._id}", error) from None

    def _raised(self, doing: str, error: KafkaException) -> BrokerError:
        access = Access(
            self._principal,
            topic=f"WRITE on the topics {', '.join(sorted(self._written))}, and READ on those whose offsets it commits",
            group="READ on the group whose offsets it commits",
            transactional_id=f"WRITE on the transactional id {self._id}",
            cluster="IDEMPOTENT_WRITE on the cluster",
        )
        raised = error_from(doing, error, access)
        if error.args[0].code() == KafkaError._FATAL and self._producer is not None:
            # produce() does not say what was fatal; after that, every call of a transaction does.
            try:
                self._producer.begin_transaction()
            except KafkaException as cause:
                raised = error_from(doing, cause, access)
        # The broker gives the same answer to a producer whose transaction timed out and to one that was replaced. After
        # the timeout the first is more likely; if it was the second, the next producer is told so soon.
        if isinstance(raised, Fenced) and self._deadline is not None and time.monotonic() >= self._deadline:
            return BrokerError(f"{doing}: {error.args[0].str()}: it was open for longer than transaction.timeout.ms")
        return raised


class KafkaAppender:
    """Writes without transactions; the client is made with the first message."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = settings
        self._producer: client.Producer | None = None
        self._unwritten: list[tuple[str, KafkaError]] = []  # with their topics

    def append(
        self,
        topic: str,
        values: Sequence[bytes | None],
        keys: Sequence[bytes | None] | None = None,
        times: Sequence[int] | None = None,
    ) -> None:
        assert keys is None or len(keys) == len(values)
        assert times is None or len(times) == len(values)
        producer = self._producer = self._producer or self._open()
        produce = producer.produce
        try:
            for value, key, time_ms in zip(values, keys or repeat(None), times or repeat(0), strict=False):
                while True:
                    try:
                        produce(topic, value, key, timestamp=time_ms)  # 0: now
                        break
                    except BufferError:  # a message that cannot be sent leaves the queue after message.timeout.ms
                        producer.poll(FULL_QUEUE_SECONDS)
            producer.poll(0)
        except KafkaException as error:
            self._discard_if_fatal(error.args[0])
            raise error_from(f"writing to {topic}", error, self._access(topic)) from None

    def _access(self, topic: str) -> Access:
        allowed = f"WRITE on the topic {topic}"
        return Access(principal_of(self._settings), topic=allowed, cluster="IDEMPOTENT_WRITE on the cluster")

    def _discard_if_fatal(self, error: KafkaError) -> None:
        """The next message makes another client."""
        if is_fatal(error):
            self._producer = None

    def _open(self) -> client.Producer:
        own = {
            "enable.idempotence": True,
            "acks": "all",
            "delivery.report.only.error": True,
            "on_delivery": self._on_delivery,
        }
        defaults = {**DEFAULTS, **PRODUCER_DEFAULTS, "message.timeout.ms": str(_APPEND_TIMEOUT_MS)}
        transactional = {"transaction.timeout.ms"}
        settings = {name: value for name, value in self._settings.items() if name not in transactional}
        return make(client.Producer, {**defaults, **settings, **own})

    def _on_delivery(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self._unwritten.append((message.topic() or "", error))

    def flush(self) -> None:
        if self._producer is None:
            return
        timeout_ms = milliseconds(self._settings, "message.timeout.ms", _APPEND_TIMEOUT_MS)
        left = self._producer.flush(timeout_ms / 1000 + ANSWER_SECONDS)
        unwritten, self._unwritten = self._unwritten, []
        if unwritten:
            topic, error = unwritten[0]
            self._discard_if_fatal(error)
            raise error_of(f"{len(unwritten)} messages to {topic} were not written", error, self._access(topic))
        if left:
            raise BrokerError(f"{left} messages were not written: no answer from Kafka")

    def close(self) -> None:
        """Closes the client. Messages that were not flushed may be lost."""
        self._producer = None
