"""The state of the model: topics, groups, transactional ids, one lock and one clock.

Owns: everything that Kafka decides. Whoever calls it holds the lock, and nothing in here calls a listener or a fault.
"""

import contextlib
import itertools
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from threading import Condition
from typing import Literal

import numpy as np

from tokenometer.processor.broker import Column, Headers, OutOfRange, Place, Refused, TopicMissing, TopicState
from tokenometer.processor.broker.memory.group import Group, Member
from tokenometer.processor.broker.memory.log import Log, Segment, Texts, Topic, Transaction, longest, picked
from tokenometer.processor.broker.memory.room import Room

Assignor = Literal["eager", "cooperative"]

_WAIT_SECONDS_MAX = 0.05  # sessions and transactions run out by a clock that wakes nobody


@dataclass(slots=True)
class Transactional:
    """What the coordinator knows of a transactional id."""

    epoch: int = 0
    newest: int = 0  # the epoch of the producer that was opened last; a timeout goes beyond it
    transaction: Transaction | None = None


class Cluster:
    """All of it is used under the lock, inside `locked`, or inside `changing` where others have to see the change.

    The arguments are those of MemoryBroker.
    """

    def __init__(
        self,
        *,
        assignor: Assignor,
        clock: Callable[[], int],
        faults: Callable[[str], None],
        session_timeout_ms: int,
        transaction_timeout_ms: int,
        message_bytes_max: int,
        retention_messages: int | None,
        patience_seconds: float,
    ) -> None:
        assert transaction_timeout_ms < session_timeout_ms
        self._assignor = assignor
        self.clock = clock
        self.fault = faults
        self._session_timeout_ms = session_timeout_ms
        self._transaction_timeout_ms = transaction_timeout_ms
        self._message_bytes_max = message_bytes_max
        self._retention_messages = retention_messages
        self.patience_seconds = patience_seconds
        self.changed = Condition()
        self.room = Room()
        self.topics: dict[str, Topic] = {}
        self.groups: dict[str, Group] = {}
        self.transactionals: dict[str, Transactional] = {}
        self._topic_ids = itertools.count(1)
        self._member_ids = itertools.count(1)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        with self.changed:
            self._expire()
            yield

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Holds the lock; threads that wait look again afterwards."""
        with self.locked():
            try:
                yield
            finally:
                self.changed.notify_all()

    def wait(self, deadline: float) -> bool:
        """Wait for another thread. Returns False when the time is over."""
        left = min(deadline - time.monotonic(), self.patience_seconds, _WAIT_SECONDS_MAX)
        if left <= 0:
            return False
        self.changed.wait(left)
        self._expire()
        return True

    def _expire(self) -> None:
        now = self.clock()
        for state in self.transactionals.values():
            if state.transaction is not None and now - state.transaction.began_ms >= self._transaction_timeout_ms:
                self.fence(state)
        for group in self.groups.values():
            for member in list(group.members.values()):
                if now - member.seen_ms >= self._session_timeout_ms:
                    group.remove(member)

    def transactional(self, transactional_id: str) -> Transactional:
        return self.transactionals.setdefault(transactional_id, Transactional())

    def fence(self, state: Transactional) -> None:
        self.end_transaction(state, committed=False)
        state.epoch += 1

    def end_transaction(self, state: Transactional, committed: bool) -> None:
        transaction, state.transaction = state.transaction, None
        if transaction is None:
            return
        transaction.end(committed)
        if committed:
            for group, offsets in transaction.offsets.items():
                self.group(group).committed.update(offsets)

    def pending(self, group: str) -> set[Place]:
        """Partitions whose offsets an open transaction is about to commit."""
        open_ones = (state.transaction for state in self.transactionals.values() if state.transaction is not None)
        return {place for transaction in open_ones for place in transaction.offsets.get(group, ())}

    def group(self, name: str) -> Group:
        if name not in self.groups:
            self.groups[name] = Group(name, [], self._assignor == "cooperative")
        return self.groups[name]

    def join(self, group: Group, instance: str | None) -> Member:
        member = Member(f"member-{next(self._member_ids)}", instance, self.clock())
        group.add(member)
        return member

    def find(self, topic: str) -> Topic:
        if topic not in self.topics:
            raise TopicMissing(f"there is no topic {topic}")
        return self.topics[topic]

    def places(self, topics: Iterable[str]) -> list[Place]:
        return [Place(name, partition) for name in sorted(topics) for partition in range(len(self.find(name).logs))]

    def log(self, place: Place) -> Log:
        logs = self.find(place.topic).logs
        if not 0 <= place.partition < len(logs):
            raise TopicMissing(f"{place.topic} has no partition {place.partition}")
        return logs[place.partition]

    def log_at(self, place: Place, position: int) -> Log:
        """A partition that can be read from there."""
        log = self.log(place)
        if not log.begin <= position <= log.end:
            raise OutOfRange(f"{place.topic} [{place.partition}]: {position} is not in {log.begin} to {log.end}")
        return log

    def create(self, name: str, partitions: int, settings: Mapping[str, str]) -> None:
        if name not in self.topics:
            topic_id = str(uuid.UUID(int=next(self._topic_ids)))
            self.topics[name] = Topic(topic_id, [Log() for _ in range(partitions)], dict(settings))

    def delete(self, name: str) -> None:
        """Deletes a topic, and its committed offsets with it, as Kafka does."""
        topic = self.find(name)
        del self.topics[name]
        for group in self.groups.values():
            group.committed = {place: at for place, at in group.committed.items() if place.topic != name}
        for state in self.transactionals.values():
            if state.transaction is not None:
                for log in topic.logs:
                    state.transaction.logs.pop(log, None)

    def state(self, name: str) -> TopicState | None:
        topic = self.topics.get(name)
        return None if topic is None else TopicState(topic.id, len(topic.logs), dict(topic.settings))

    def write(
        self,
        name: str,
        values: Sequence[bytes | None],
        keys: Sequence[bytes | None] | None,
        headers: Sequence[Headers] | None,
        times: Sequence[int] | None,
        transaction: Callable[[], Transaction] | None,
    ) -> None:
        topic = self.find(name)
        self._check_size(topic, values, keys)
        if not values:
            return
        opened = transaction() if transaction else None
        stamps = np.full(len(values), self.clock(), np.uint64) if times is None else np.asarray(times, np.uint64)
        assert all(column is None or len(column) == len(values) for column in (keys, headers, stamps))
        if keys is not None and not isinstance(values, Column):
            keys = list(keys)
        for log, chosen in topic.spread(keys):
            segment = Segment(
                log.end,
                self._kept(values, chosen),
                stamps if chosen is None else stamps[chosen],
                None if keys is None else self._kept(keys, chosen),
                None if headers is None else picked(headers, chosen),
                opened,
            )
            log.write(segment)
            if opened is not None:
                opened.logs[log] = None
            if self._retention_messages is not None:
                log.keep(self._retention_messages)

    def _kept(self, texts: Texts, rows: list[int] | None) -> Texts:
        """These texts, or all; none of them changes any more."""
        return self.room.keep(texts, rows) if isinstance(texts, Column) else picked(texts, rows)

    def _check_size(self, topic: Topic, values: Sequence[bytes | None], keys: Sequence[bytes | None] | None) -> None:
        limit = int(topic.settings.get("max.message.bytes", self._message_bytes_max))
        largest = longest(values)
        if keys is not None and largest + longest(keys) > limit:
            largest = max(len(value or b"") + len(key or b"") for value, key in zip(values, keys, strict=True))
        if largest > limit:
            raise Refused(f"a message of {largest} bytes; the limit is {limit}")
