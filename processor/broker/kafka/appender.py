"""Writing without transactions."""

from collections.abc import Callable, Mapping, Sequence
from itertools import repeat
from typing import Any, TypeGuard

import confluent_kafka as client
from confluent_kafka import KafkaError, KafkaException, Message

from tokenometer.processor.broker import BrokerError, Column, Refused
from tokenometer.processor.broker.kafka.errors import Access, error_from, error_of, is_fatal
from tokenometer.processor.broker.kafka.fetch import Unable
from tokenometer.processor.broker.kafka.settings import (
    ANSWER_SECONDS,
    DEFAULTS,
    FULL_QUEUE_SECONDS,
    PRODUCER_DEFAULTS,
    ROWS,
    log,
    make,
    milliseconds,
    principal_of,
)
from tokenometer.processor.broker.kafka.write import IdempotentWriter
from tokenometer.schemas.compiled import BuildError

_TIMEOUT_MS = 60_000


class KafkaAppender:
    """Columns without gaps go by requests of our own (write/), if that can be; all else through librdkafka. Each client
    is made with its first message."""

    def __init__(self, settings: Mapping[str, Any], rows: str = "auto") -> None:
        """rows: which way columns go, ROWS of settings.py."""
        chosen = {name: value for name, value in settings.items() if name != "transaction.timeout.ms"}
        self._settings = {**DEFAULTS, **PRODUCER_DEFAULTS, "message.timeout.ms": str(_TIMEOUT_MS), **chosen}
        self._rows = rows
        self._producer: client.Producer | None = None
        self._writer: IdempotentWriter | None = None
        self._written = ""  # the topic that the writer wrote to last
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
        if times is None and _is_whole(keys) and _is_whole(values) and self._can_write():
            return self._write(topic, keys, values)
        self._finish()  # what comes later lies behind it
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

    def _timeout_seconds(self) -> float:
        return milliseconds(self._settings, "message.timeout.ms", _TIMEOUT_MS) / 1000

    # --- Requests of our own ---

    def _can_write(self) -> bool:
        if self._writer is None and self._rows != "librdkafka":
            try:
                self._writer = IdempotentWriter(self._settings, self._timeout_seconds())
            except (Unable, BuildError, OSError) as error:
                if self._rows == "own":
                    raise Refused(f"requests of our own cannot write this: {error}: set {ROWS}=auto") from None
                log.warning("librdkafka writes all messages, because requests of our own cannot do this: %s", error)
                self._rows = "librdkafka"
        return self._writer is not None

    def _write(self, topic: str, keys: Column, values: Column) -> None:
        assert self._writer is not None
        self._flush_producer()  # what comes later lies behind it
        self._written = topic
        self._tried(lambda writer: writer.write(topic, keys, values))

    def _finish(self) -> None:
        if self._writer is not None and self._written:
            self._tried(IdempotentWriter.finish)

    def _tried(self, action: Callable[[IdempotentWriter], None]) -> None:
        """After an error the next message makes another writer."""
        writer = self._writer
        assert writer is not None
        self._writer = None
        try:
            action(writer)
        except KafkaException as error:
            raise error_from(f"writing to {self._written}", error, self._access(self._written)) from None
        self._writer = writer

    # --- librdkafka ---

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
        return make(client.Producer, {**self._settings, **own})

    def _on_delivery(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self._unwritten.append((message.topic() or "", error))

    def _flush_producer(self) -> None:
        if self._producer is None:
            return
        left = self._producer.flush(self._timeout_seconds() + ANSWER_SECONDS)
        unwritten, self._unwritten = self._unwritten, []
        if unwritten:
            topic, error = unwritten[0]
            self._discard_if_fatal(error)
            raise error_of(f"{len(unwritten)} messages to {topic} were not written", error, self._access(topic))
        if left:
            raise BrokerError(f"{left} messages were not written: no answer from Kafka")

    def flush(self) -> None:
        self._finish()
        self._flush_producer()

    def close(self) -> None:
        """Closes the clients. Messages that were not flushed may be lost."""
        self._producer = None
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _is_whole(texts: Sequence[bytes | None] | None) -> TypeGuard[Column]:
    """A column of which no text is missing."""
    return isinstance(texts, Column) and not (texts.lengths < 0).any()
