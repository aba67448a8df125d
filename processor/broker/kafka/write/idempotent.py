"""Messages of a producer without transactions by requests of our own: as a Sender, under an identity that any broker
gives."""

import time
from collections.abc import Mapping
from typing import Any

from confluent_kafka import KafkaError, KafkaException

from tokenometer.processor.broker import Column
from tokenometer.processor.broker.kafka.fetch.wire import METADATA, Malformed
from tokenometer.processor.broker.kafka.write import wire
from tokenometer.processor.broker.kafka.write.sender import PASSING, Passing, Sender

_REQUESTS = wire.PRODUCE, METADATA, wire.INIT_PRODUCER


class IdempotentWriter(Sender):
    """Each message is in the log once. What was written is on its way once a batch is full, or with `push`. After an
    error it is of no more use: what is not in the log by then is lost."""

    def __init__(self, settings: Mapping[str, Any], timeout_seconds: float) -> None:
        """settings: librdkafka's. timeout_seconds: for which each call waits at most. Raises Unable, BuildError where
        there is no compiler, OSError for certificates."""
        self._timeout_seconds = timeout_seconds
        super().__init__(settings, timeout_seconds, _REQUESTS)

    def write(self, name: str, keys: Column, values: Column) -> None:
        self.doing = f"writing to {name}"
        self._renew()
        super().write(name, keys, values)

    def finish(self) -> None:
        self._renew()
        super().finish()

    def _renew(self) -> None:
        self._deadline = time.monotonic() + self._timeout_seconds
        if self._identity is None:
            self._persist(self._ask_identity)

    def _ask_identity(self) -> None:
        try:
            self._asking = self._asking or self._any()
            error, identity = wire.read_initiated(self._asking.ask(wire.INIT_PRODUCER, wire.init_producer()))
        except (OSError, Malformed):
            self._leave()
            raise
        if error:
            raise Passing(error) if error in PASSING else KafkaException(KafkaError(error))
        self._identity = identity
