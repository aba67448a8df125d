"""Messages of one producer's transactions by requests of our own: as a Sender, and a partition enters the transaction
before its first batch. Owns a connection to the transaction's coordinator."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException

from tokenometer.processor.broker.kafka.fetch.connection import Connection
from tokenometer.processor.broker.kafka.fetch.wire import METADATA, Malformed, Reader, Request
from tokenometer.processor.broker.kafka.write import wire
from tokenometer.processor.broker.kafka.write.packer import Identity
from tokenometer.processor.broker.kafka.write.sender import COORDINATOR_MOVED, PASSING, Passing, Sender

_REQUESTS = wire.PRODUCE, METADATA, wire.FIND_COORDINATOR, wire.ADD_PARTITIONS, wire.END_TRANSACTION
_NOT_ATTEMPTED = KafkaError.OPERATION_NOT_ATTEMPTED


class TransactionWriter(Sender):
    """A transaction is librdkafka's; its messages are written here. Nothing waits for longer than it may be open."""

    def __init__(self, settings: Mapping[str, Any], transactional_id: str, timeout_seconds: float) -> None:
        """settings: librdkafka's. Raises Unable, BuildError where there is no compiler, OSError for certificates."""
        self._coordinator: Connection | None = None
        self._id = self.transactional_id = transactional_id
        self.doing = f"writing in the transaction of {transactional_id}"
        super().__init__(settings, timeout_seconds, _REQUESTS)

    def begin(self, identity: Identity, deadline: float) -> None:
        """A transaction that the brokers give up at `deadline`, by the steady clock."""
        if identity != self._identity:  # sequence numbers begin anew
            self._identity = identity
            self._topics.clear()
        self._deadline = deadline
        for topic in self._topics.values():
            topic.added.clear()

    def end(self, commit: bool) -> None:
        """For a transaction of which librdkafka has sent nothing: then it would not end it either."""
        assert self._identity is not None
        body = wire.end(self._id, self._identity, commit)
        self._coordinate(wire.END_TRANSACTION, body, lambda reader: [wire.read_ended(reader)])

    def close(self) -> None:
        super().close()
        self._leave_coordinator()

    def _enter(self, name: str, partitions: Sequence[int]) -> None:
        assert self._identity is not None
        body = wire.add_partitions(self._id, self._identity, {name: partitions})
        self._coordinate(wire.ADD_PARTITIONS, body, lambda reader: wire.read_added(reader).values())

    def _coordinate(self, request: Request, body: bytearray, codes_in: Callable[[Reader], Iterable[int]]) -> None:
        """Asks the transaction's coordinator, again and again, until it has done it."""

        def ask() -> None:
            try:
                self._coordinator = self._coordinator or self._find_coordinator()
                codes = {code for code in codes_in(self._coordinator.ask(request, body)) if code}
            except (OSError, Malformed):
                self._leave_coordinator()
                raise
            if codes & COORDINATOR_MOVED:
                self._leave_coordinator()
            for code in sorted(codes - {_NOT_ATTEMPTED}, key=PASSING.__contains__):
                raise Passing(code) if code in PASSING else KafkaException(KafkaError(code))

        self._persist(ask)

    def _find_coordinator(self) -> Connection:
        self._asking = self._asking or self._any()
        try:
            answer = self._asking.ask(wire.FIND_COORDINATOR, wire.find_coordinator(self._id))
        except (OSError, Malformed):
            self._leave()
            raise
        found = wire.read_coordinator(answer)
        if found.error:
            raise Passing(found.error) if found.error in PASSING else KafkaException(KafkaError(found.error))
        return self._connected((found.host, found.port))

    def _leave_coordinator(self) -> None:
        if self._coordinator is not None:
            self._coordinator.close()
            self._coordinator = None
