"""Writing in transactions."""

import json
import time
from collections.abc import Mapping, Sequence
from itertools import repeat
from typing import Any

import confluent_kafka as client
import numpy as np
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from tokenometer.processor.broker import BrokerError, Column, Fenced, Headers, Place, Position, Refused
from tokenometer.processor.broker.kafka import direct
from tokenometer.processor.broker.kafka.errors import Access, error_from
from tokenometer.processor.broker.kafka.fetch import Unable
from tokenometer.processor.broker.kafka.settings import (
    ANSWER_SECONDS,
    DEFAULTS,
    FULL_QUEUE_SECONDS,
    PRODUCER_DEFAULTS,
    READY_SECONDS,
    ROWS,
    STATISTICS_MS,
    TRANSACTION_TIMEOUT_MS,
    log,
    make,
    milliseconds,
    principal_of,
)
from tokenometer.processor.broker.kafka.write import Identity, TransactionWriter
from tokenometer.schemas.compiled import BuildError


class KafkaProducer:
    """Writes in transactions. Between `begin` and `commit` at most transaction.timeout.ms may pass.

    Columns are written by requests of our own (write/), if that can be. The sequence numbers of a topic's partitions
    are ours then, and librdkafka writes nothing to it.
    """

    def __init__(self, settings: Mapping[str, Any], transactional_id: str, rows: str = "auto") -> None:
        """rows: which way columns go, ROWS of settings.py."""
        self._timeout_seconds = (
            milliseconds(settings, "transaction.timeout.ms", TRANSACTION_TIMEOUT_MS) / 1000 + ANSWER_SECONDS
        )
        self._id = transactional_id
        self._principal = principal_of(settings)
        self._written: set[str] = set()  # topics; a commit fails without saying at which
        self._deadline: float | None = None  # when the broker gives the transaction up
        self._writer: TransactionWriter | None = None
        if rows != "librdkafka":
            self._writer = _writer({**DEFAULTS, **PRODUCER_DEFAULTS, **settings}, transactional_id, rows)
        self._own_topics: set[str] = set()  # the writer's; others are librdkafka's
        self._writing = self._through_client = False  # in this transaction
        self._told = ""  # librdkafka's last statistics
        own = {
            "transactional.id": transactional_id,
            "transaction.timeout.ms": milliseconds(settings, "transaction.timeout.ms", TRANSACTION_TIMEOUT_MS),
            "enable.idempotence": True,
            "acks": "all",
            "delivery.report.only.error": True,  # a commit fails where a message did
        }
        if self._writer is not None:
            own |= {"statistics.interval.ms": STATISTICS_MS, "stats_cb": self._on_statistics}
        self._producer: client.Producer | None = make(
            client.Producer, {**DEFAULTS, **PRODUCER_DEFAULTS, **settings, **own}
        )
        self._topics: dict[str, direct.ProducerTopic] = {}
        self._do("opening", "init_transactions", READY_SECONDS)

    def begin(self) -> None:
        self._do("beginning", "begin_transaction")
        self._deadline = time.monotonic() + self._timeout_seconds - ANSWER_SECONDS
        self._writing = self._through_client = False

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
        if not values:
            return
        if topic in self._own_topics:
            assert keys is not None and headers is None, "a topic that is written by columns has keys and no headers"
            return self.produce_columns(topic, _column(keys), _column(values))
        self._through_client = True
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
        assert self._producer is not None, "produce after close"
        assert len(keys) == len(values)
        if self._writer is not None and (topic in self._own_topics or topic not in self._written):
            return self._write(self._writer, topic, keys, values)
        if not direct.supported():
            return self.produce(topic, values.tolist(), keys.tolist())
        self._written.add(topic)
        self._through_client = True
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

    def _write(self, writer: TransactionWriter, topic: str, keys: Column, values: Column) -> None:
        assert self._deadline is not None, "produce outside of a transaction"
        if not len(values):
            return
        self._written.add(topic)
        self._own_topics.add(topic)
        try:
            if not self._writing:
                writer.begin(self._identity(), self._deadline)
                self._writing = True
            writer.write(topic, keys, values)
            self._poll(0)  # says what was fatal
        except KafkaException as error:
            raise self._raised(f"writing to {topic}", error) from None

    def _poll(self, seconds: float) -> None:
        assert self._producer is not None
        self._producer.poll(seconds)

    def _on_statistics(self, text: str) -> None:
        self._told = text

    def _identity(self) -> Identity:
        """The producer's id and epoch, which librdkafka tells by its statistics alone."""
        deadline = time.monotonic() + ANSWER_SECONDS
        while True:
            told = json.loads(self._told).get("eos", {}) if self._told else {}
            if told.get("idemp_state") == "Assigned" and told.get("producer_id", -1) >= 0:
                return Identity(told["producer_id"], told["producer_epoch"])
            if time.monotonic() > deadline:
                raise BrokerError(f"librdkafka does not tell the id of its producer: set {ROWS}=librdkafka")
            self._poll(FULL_QUEUE_SECONDS)

    def _finish(self, commit: bool) -> None:
        """What the writer has is in the log after this. librdkafka ends no transaction of which it sent nothing."""
        if self._writer is None or not self._writing:
            return
        try:
            self._writer.finish()
            if not self._through_client:
                self._writer.end(commit)
        except KafkaException as error:
            raise self._raised(f"writing in the transaction of {self._id}", error) from None

    def _check_time(self, topic: str) -> None:
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise BrokerError(f"writing to {topic}: the transaction timed out before its messages were taken")

    def send_offsets(self, positions: Mapping[Place, Position], group: Any) -> None:
        parts = [
            TopicPartition(place.topic, place.partition, position.offset, position.metadata)
            for place, position in positions.items()
        ]
        if parts and self._writer is not None:
            self._through_client = True
            if self._writing:
                self._push(self._writer)
        self._do("committing offsets", "send_offsets_to_transaction", parts, group, self._timeout_seconds)

    def _push(self, writer: TransactionWriter) -> None:
        try:
            writer.push()  # its answers come while the offsets are sent
        except KafkaException as error:
            raise self._raised(f"writing in the transaction of {self._id}", error) from None

    def commit(self) -> None:
        self._finish(commit=True)
        self._do("committing", "commit_transaction", self._timeout_seconds)
        self._deadline = None

    def abort(self) -> None:
        self._finish(commit=False)
        self._do("aborting", "abort_transaction", self._timeout_seconds)
        self._deadline = None
        self._poll(0)
        self._told = ""  # librdkafka may have another epoch now

    def close(self) -> None:
        # Not librdkafka's own close: that one aborts and flushes first, and waits for a broker that may be gone.
        self._topics.clear()
        self._producer = None
        if self._writer is not None:
            self._writer.close()

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


def _writer(settings: Mapping[str, Any], transactional_id: str, rows: str) -> TransactionWriter | None:
    """None: rows go through librdkafka. Raises Refused if they must not."""
    timeout_seconds = milliseconds(settings, "transaction.timeout.ms", TRANSACTION_TIMEOUT_MS) / 1000
    try:
        return TransactionWriter(settings, transactional_id, timeout_seconds)
    except (Unable, BuildError, OSError) as error:
        if rows == "own":
            raise Refused(f"rows cannot be written by requests of our own: {error}: set {ROWS}=auto") from None
        log.warning("librdkafka writes all rows, because requests of our own cannot do this: %s", error)
        return None


def _column(texts: Sequence[bytes]) -> Column:
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    return Column(np.frombuffer(b"".join([*texts, b" "]), np.uint8), np.cumsum(lengths) - lengths, lengths)
