"""The model as the protocol's broker, and what an administrator may do to it."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from tokenometer.processor.broker import (
    Broker,
    Consumer,
    Extent,
    Follower,
    GroupMember,
    Listener,
    Messages,
    Offset,
    OutOfRange,
    Place,
    Position,
    Producer,
    Refused,
    TopicState,
)
from tokenometer.processor.broker.memory.cluster import Assignor, Cluster
from tokenometer.processor.broker.memory.consumer import MemoryConsumer
from tokenometer.processor.broker.memory.following import MemoryFollower
from tokenometer.processor.broker.memory.log import Log
from tokenometer.processor.broker.memory.producer import MemoryProducer
from tokenometer.processor.broker.memory.room import piece

_READ_MESSAGES = 1 << 14  # of one step of `read`; between steps others get the lock


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class MemoryBroker(Broker):
    """Kafka as far as `Broker` goes, and what an administrator may do to it.

    clock: ms since the epoch; sessions and transactions run out by it.
    faults: called with an operation's name before it is done; what it raises comes out of the operation. It is called
    as `commit.after` too, when the commit has taken place. Names: init, begin, produce, send_offsets, commit.before,
    commit.after, abort, poll, committed, append, flush, read, extents, group_offsets, members, topics,
    create_topic.
    retention_messages: how many messages a partition keeps at least; a reader that is further behind gets OutOfRange.
    patience_seconds: the longest time that a call waits for another thread; 0 where there is none, as in simulation.
    """

    def __init__(
        self,
        *,
        assignor: Assignor = "eager",
        clock: Callable[[], int] = _now_ms,
        faults: Callable[[str], None] = lambda name: None,
        session_timeout_ms: int = 45_000,
        transaction_timeout_ms: int = 30_000,
        message_bytes_max: int = 1 << 20,
        retention_messages: int | None = None,
        patience_seconds: float = 10.0,
    ) -> None:
        self._cluster = Cluster(
            assignor=assignor,
            clock=clock,
            faults=faults,
            session_timeout_ms=session_timeout_ms,
            transaction_timeout_ms=transaction_timeout_ms,
            message_bytes_max=message_bytes_max,
            retention_messages=retention_messages,
            patience_seconds=patience_seconds,
        )

    # Broker

    def consumer(
        self,
        group: str,
        topics: Sequence[str],
        listener: Listener,
        member: str | None = None,
        keys: Collection[str] = (),
        headers: Collection[str] = (),
    ) -> Consumer:
        with self._cluster.changing():
            state = self._cluster.group(group)
            if not state.members:
                state.topics = sorted(topics)
            if state.topics != sorted(topics):
                raise Refused(f"the members of group {group} read other topics")
            return MemoryConsumer(self._cluster, state, topics, listener, member, keys, headers)

    def producer(self, transactional_id: str) -> Producer:
        self._cluster.fault("init")
        with self._cluster.changing():
            state = self._cluster.transactional(transactional_id)
            self._cluster.fence(state)
            state.newest = state.epoch
            return MemoryProducer(self._cluster, transactional_id, state.epoch)

    def append(
        self,
        topic: str,
        values: Sequence[bytes | None],
        keys: Sequence[bytes | None] | None = None,
        times: Sequence[int] | None = None,
    ) -> None:
        self._cluster.fault("append")
        with self._cluster.changing():
            self._cluster.write(topic, values, keys, None, times, None)

    def flush(self) -> None:
        self._cluster.fault("flush")

    def read(
        self, place: Place, begin: Offset, end: Offset, keys: bool = False, headers: bool = False
    ) -> Iterator[Messages]:
        self._cluster.fault("read")
        position = begin
        while position < end:
            with self._cluster.locked():
                log = self._cluster.log(place)
                if position < log.begin or end > log.last_stable:
                    raise OutOfRange(f"{place.topic} [{place.partition}]: {position} to {end} is not there")
                found = log.read(place, position, end, _READ_MESSAGES, keys, headers)
            if not found:
                return
            yield from found
            position = found[-1].next_offset

    def follow(self, starts: Mapping[Place, Offset], keys: bool = False) -> Follower:
        return MemoryFollower(self._cluster, starts, keys)

    def ends(self, topics: Sequence[str]) -> dict[Place, Offset]:
        self._cluster.fault("extents")
        with self._cluster.locked():
            return {place: Offset(self._cluster.log(place).end) for place in self._cluster.places(topics)}

    def extents(self, topics: Sequence[str]) -> dict[Place, Extent]:
        self._cluster.fault("extents")
        with self._cluster.locked():
            logs = {place: self._cluster.log(place) for place in self._cluster.places(topics)}
            return {place: Extent(Offset(log.begin), Offset(log.last_stable)) for place, log in logs.items()}

    def committed(self, group: str, topics: Sequence[str]) -> dict[Place, Position | None]:
        self._cluster.fault("group_offsets")
        deadline = time.monotonic() + self._cluster.patience_seconds
        with self._cluster.locked():
            places = self._cluster.places(topics)
            while not self._cluster.pending(group).isdisjoint(places) and self._cluster.wait(deadline):
                pass
            offsets = self._cluster.groups[group].committed if group in self._cluster.groups else {}
            return {place: offsets.get(place) for place in places}

    def members(self, group: str) -> list[GroupMember]:
        self._cluster.fault("members")
        with self._cluster.locked():
            found = self._cluster.groups[group].members.values() if group in self._cluster.groups else ()
            return [GroupMember(member.instance, list(member.assigned)) for member in found]

    def topics(self, names: Sequence[str]) -> dict[str, TopicState | None]:
        self._cluster.fault("topics")
        with self._cluster.locked():
            return {name: self._cluster.state(name) for name in names}

    def create_topic(self, name: str, partitions: int, settings: Mapping[str, str], replication: int = 1) -> None:
        self._cluster.fault("create_topic")
        if partitions < 1:
            raise Refused(f"{name}: a topic has one partition at least")
        with self._cluster.locked():
            self._cluster.create(name, partitions, settings)

    def close(self) -> None:
        pass

    # What an administrator does

    def reserve(self, size: int) -> None:
        """Takes memory for columns before they come. When this returns, the system has given all of it."""
        made = piece(size, touched=True)
        with self._cluster.locked():
            self._cluster.room.fill(made)

    def delete_topic(self, name: str) -> None:
        with self._cluster.changing():
            self._cluster.delete(name)

    def add_partitions(self, name: str, total: int) -> None:
        with self._cluster.changing():
            logs = self._cluster.find(name).logs
            if total <= len(logs):
                raise Refused(f"{name} has {len(logs)} partitions")
            logs.extend(Log() for _ in range(total - len(logs)))

    def delete_before(self, place: Place, offset: Offset) -> None:
        """What retention does to a partition that is not read in time."""
        with self._cluster.locked():
            self._cluster.log(place).delete_before(offset)
