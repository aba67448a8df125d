"""Writes in transactions."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tokenometer.processor.broker import BrokerError, Column, Fenced, Headers, Place, Position
from tokenometer.processor.broker.memory.cluster import Cluster
from tokenometer.processor.broker.memory.group import Membership
from tokenometer.processor.broker.memory.log import Transaction


class MemoryProducer:
    """Every call compares the epoch first, because a newer producer or a timeout makes the old epoch worthless."""

    def __init__(self, cluster: Cluster, transactional_id: str, epoch: int) -> None:
        self._cluster = cluster
        self._id = transactional_id
        self._epoch = epoch
        self._begun = False
        self._failed = False

    def begin(self) -> None:
        with self._operation("begin"):
            assert not self._begun, "begin() inside a transaction"
            self._begun = True

    def produce(
        self,
        topic: str,
        values: Sequence[bytes | None],
        keys: Sequence[bytes | None] | None = None,
        headers: Sequence[Headers] | None = None,
    ) -> None:
        with self._operation("produce"):
            self._cluster.write(topic, values, keys, headers, None, self._transaction)

    def produce_columns(self, topic: str, keys: Column, values: Column) -> None:
        self.produce(topic, values, keys)

    def send_offsets(self, positions: Mapping[Place, Position], group: Any) -> None:
        assert isinstance(group, Membership)
        with self._operation("send_offsets"):
            self._cluster.group(group.group).check(group)
            self._transaction().offsets.setdefault(group.group, {}).update(positions)

    def commit(self) -> None:
        with self._operation("commit.before"):
            self._end(committed=True)
        with self._operation("commit.after"):  # an error here is the ambiguous one
            pass

    def abort(self) -> None:
        with self._operation("abort"):
            self._end(committed=False)

    def close(self) -> None:
        self._failed = True

    @contextlib.contextmanager
    def _operation(self, name: str) -> Iterator[None]:
        """Any error ends a producer: its user does not know what became of the call."""
        try:
            self._cluster.fault(name)
            with self._cluster.changing():
                self._check()
                yield
        except BrokerError:
            self._failed = True
            raise

    def _check(self) -> None:
        state = self._cluster.transactional(self._id)
        if state.newest != self._epoch:
            raise Fenced(f"a newer producer has taken {self._id}")
        if state.epoch != self._epoch:
            raise BrokerError(f"a transaction of {self._id} took too long: open another producer")
        if self._failed:
            raise BrokerError(f"this producer of {self._id} is closed, or has failed before: open another one")

    def _transaction(self) -> Transaction:
        """The open transaction. The broker learns of it with its first message or offset; then its time begins."""
        assert self._begun, "no transaction was begun"
        state = self._cluster.transactional(self._id)
        if state.transaction is None:
            state.transaction = Transaction(self._cluster.clock())
        return state.transaction

    def _end(self, committed: bool) -> None:
        assert self._begun, "no transaction was begun"
        self._begun = False
        self._cluster.end_transaction(self._cluster.transactional(self._id), committed)
