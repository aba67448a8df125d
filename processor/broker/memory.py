"""A model of Kafka inside this process: the broker of the demo, which needs no server, and the stage of simulation.

Owns: logs, transactions, groups and their clocks. Everything that Kafka decides is decided here under one lock;
listeners and faults are called without it, so that they may call the broker.
Promises: nothing depends on the wall clock or on chance, only on the calls, their order and the clock handed in.

A partition, with one transaction open since offset 7:

    offset    0   1   2   3   4   5   6   7   8   9   10
            | a   a   C | .   .   A | b | t | b | t |         a, b  messages     C, A  markers: committed, aborted
              └ begin                     └ last     └ end    .     aborted: leaves a gap
                                            stable            t     of the open transaction: hides what follows

What is simpler than in Kafka
- A transaction's markers are written at one instant; Kafka writes them partition by partition.
- A member's session lasts from poll to poll; Kafka tells heartbeats from polls.
- A producer whose transaction took too long gets BrokerError, and Fenced only once there is a newer one; Kafka
  answers the same to both.
- All members of a group read the same topics. Nothing is compacted, replicated or elected.
- Offsets that an open transaction is about to commit: `Consumer.committed` waits for its end, as Kafka's require_stable
  does, but no longer than `patience_seconds`; then it raises BrokerError: try again, or open the transaction's producer
  anew, which aborts it. `Broker.committed`, from outside of the group, then shows the older offsets.
"""

import contextlib
import itertools
import time
import uuid
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Condition
from typing import Any, Literal, NamedTuple, TypeVar
from zlib import crc32

import numpy as np

from tokenometer.processor.broker import (
    Broker,
    BrokerError,
    Column,
    Consumer,
    Extent,
    Fenced,
    Follower,
    Headers,
    Listener,
    Lost,
    Messages,
    Offset,
    OutOfRange,
    Place,
    Position,
    Producer,
    Refused,
    TopicMissing,
    TopicState,
)

Assignor = Literal["eager", "cooperative"]
Times = np.ndarray[Any, np.dtype[np.uint64]]
_Cell = TypeVar("_Cell")

_READ_MESSAGES = 1 << 14  # of one step of `read`; between steps others get the lock
_WAIT_SECONDS_MAX = 0.05  # sessions and transactions run out by a clock that wakes nobody


# --- Partitions ---


@dataclass(slots=True, eq=False)
class _Segment:
    """What one call wrote to a partition: consecutive offsets from `base`, column by column."""

    base: int
    values: list[bytes | None]
    times: Times
    keys: list[bytes | None] | None
    headers: list[Headers] | None
    transaction: "_Transaction | None"

    @property
    def end(self) -> int:
        return self.base + len(self.values)


@dataclass(slots=True, eq=False)
class _Log:
    """One partition. Whatever lies below the last stable offset is committed: an abort takes its segments out."""

    begin: int = 0
    end: int = 0
    segments: list[_Segment] = field(default_factory=list)
    open: dict["_Transaction", int] = field(default_factory=dict)  # their first offsets here, in ascending order

    @property
    def last_stable(self) -> int:
        return next(iter(self.open.values()), self.end)

    def write(self, segment: _Segment) -> None:
        assert segment.base == self.end and segment.values
        if segment.transaction is not None:
            self.open.setdefault(segment.transaction, segment.base)
        self.segments.append(segment)
        self.end = segment.end

    def mark(self, transaction: "_Transaction", committed: bool) -> None:
        """Write the marker that ends a transaction here. It takes an offset, as in Kafka."""
        first = self.open.pop(transaction)
        if not committed:
            begin = self._index(first)
            self.segments[begin:] = [s for s in self.segments[begin:] if s.transaction is not transaction]
        self.end += 1

    def delete_before(self, offset: int) -> None:
        assert offset <= self.last_stable
        self.begin = max(self.begin, offset)
        kept = next((i for i, segment in enumerate(self.segments) if segment.end > offset), len(self.segments))
        del self.segments[:kept]

    def keep(self, messages: int) -> None:
        """Drop all but the last `messages` offsets, as soon as that frees a whole segment."""
        limit = min(self.end - messages, self.last_stable)
        if self.segments and self.segments[0].end <= limit:
            self.delete_before(limit)

    def read(
        self, place: Place, begin: int, end: int, most: int, keys: bool = False, headers: bool = False
    ) -> Messages | None:
        """Up to `most` messages of `begin` <= offset < `end`, which is stable; None: there are none."""
        assert end <= self.last_stable
        pieces = list(self._pieces(begin, end, most))
        if not pieces:
            return None
        return Messages(
            place,
            _joined([segment.values[first:last] for segment, first, last in pieces]),
            _concatenated([segment.times[first:last] for segment, first, last in pieces]),
            _concatenated([np.arange(s.base + first, s.base + last, dtype=np.int64) for s, first, last in pieces]),
            _joined([s.keys[i:j] if s.keys else [None] * (j - i) for s, i, j in pieces]) if keys else None,
            _joined([s.headers[i:j] if s.headers else [()] * (j - i) for s, i, j in pieces]) if headers else None,
        )

    def _pieces(self, begin: int, end: int, most: int) -> Iterator[tuple[_Segment, int, int]]:
        index = self._index(begin)
        while most > 0 and index < len(self.segments) and self.segments[index].base < end:
            segment = self.segments[index]
            first = max(begin - segment.base, 0)
            last = min(end - segment.base, len(segment.values), first + most)
            if first < last:
                yield segment, first, last
                most -= last - first
            index += 1

    def _index(self, offset: int) -> int:
        """Of the segment that holds an offset, or would."""
        return max(bisect_right(self.segments, offset, key=lambda segment: segment.base) - 1, 0)


def _joined(lists: list[list[_Cell]]) -> list[_Cell]:
    return lists[0] if len(lists) == 1 else list(itertools.chain.from_iterable(lists))


def _chosen(column: Sequence[_Cell], indexes: list[int] | None) -> list[_Cell]:
    return list(column) if indexes is None else [column[index] for index in indexes]


def _concatenated(arrays: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


@dataclass(slots=True, eq=False)
class _Topic:
    id: str
    logs: list[_Log]
    settings: dict[str, str]
    turn: int = 0  # messages without a key go to one partition a call, in turn

    def spread(self, keys: Sequence[bytes | None] | None) -> Iterator[tuple[_Log, list[int] | None]]:
        """Each partition that gets messages, and which ones; None: all. The rule is librdkafka's `consistent_random`
        (crc32, which Python has built in), with turns instead of chance for messages without a key."""
        count = len(self.logs)
        sticky = self.turn % count
        self.turn += 1
        if keys is None or count == 1:
            yield self.logs[sticky], None
            return
        chosen: list[list[int]] = [[] for _ in self.logs]
        for index, key in enumerate(keys):
            chosen[crc32(key) % count if key else sticky].append(index)
        yield from ((log, indexes) for log, indexes in zip(self.logs, chosen, strict=True) if indexes)


# --- Transactions ---


@dataclass(slots=True, eq=False)
class _Transaction:
    began_ms: int
    offsets: dict[str, dict[Place, Position]] = field(default_factory=dict)
    logs: dict[_Log, None] = field(default_factory=dict)  # a set that keeps its order

    def end(self, committed: bool) -> None:
        for log in self.logs:
            log.mark(self, committed)


@dataclass(slots=True)
class _Transactional:
    """What the coordinator knows of a transactional id."""

    epoch: int = 0
    newest: int = 0  # the epoch of the producer that was opened last; a timeout goes beyond it
    transaction: _Transaction | None = None


class _Producer:
    """Every call compares the epoch first: a newer producer or a timeout has made it worthless."""

    def __init__(self, broker: "MemoryBroker", transactional_id: str, epoch: int) -> None:
        self._broker = broker
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
        values: Sequence[bytes],
        keys: Sequence[bytes] | None = None,
        headers: Sequence[Headers] | None = None,
    ) -> None:
        with self._operation("produce"):
            self._broker._write(topic, values, keys, headers, None, self._transaction)

    def produce_columns(self, topic: str, keys: Column, values: Column) -> None:
        self.produce(topic, values.tolist(), keys.tolist())

    def send_offsets(self, positions: Mapping[Place, Position], group: Any) -> None:
        assert isinstance(group, _Membership)
        with self._operation("send_offsets"):
            self._broker._group(group.group).check(group)
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
            self._broker._fault(name)
            with self._broker._changing():
                self._check()
                yield
        except BrokerError:
            self._failed = True
            raise

    def _check(self) -> None:
        state = self._broker._transactional(self._id)
        if state.newest != self._epoch:
            raise Fenced(f"a newer producer has taken {self._id}")
        if state.epoch != self._epoch:
            raise BrokerError(f"a transaction of {self._id} took too long: open another producer")
        if self._failed:
            raise BrokerError(f"this producer of {self._id} is closed, or has failed before: open another one")

    def _transaction(self) -> _Transaction:
        """The open one. The broker learns of it with its first message or offset: that is when its time begins."""
        assert self._begun, "no transaction was begun"
        state = self._broker._transactional(self._id)
        if state.transaction is None:
            state.transaction = _Transaction(self._broker._clock())
        return state.transaction

    def _end(self, committed: bool) -> None:
        assert self._begun, "no transaction was begun"
        self._begun = False
        self._broker._end_transaction(self._broker._transactional(self._id), committed)


# --- Groups ---


class _Membership(NamedTuple):
    """What a producer sends along with offsets."""

    group: str
    member: str
    generation: int
    instance: str | None


@dataclass(slots=True, eq=False)
class _Member:
    id: str
    instance: str | None
    seen_ms: int
    generation: int = 0
    joined: bool = False  # the rebalance that is going on
    owned: list[Place] = field(default_factory=list)  # as it said when it joined
    assigned: list[Place] = field(default_factory=list)  # as the group decided
    fresh: bool = False  # `assigned` is not yet what the consumer has


@dataclass(slots=True, eq=False)
class _Group:
    """Rebalances, as one member after the other polls:

        stable ── a member comes or goes, partitions are added ──> rebalancing ── all members joined ──> stable,
                                                                                                       generation + 1

    eager        a member gives up everything, then joins.
    cooperative  a member joins with what it has. What shall move is taken away in the new generation, and what was
                 taken away is given out in the one after.
    """

    name: str
    topics: list[str]
    cooperative: bool
    generation: int = 0
    rebalancing: bool = False
    members: dict[str, _Member] = field(default_factory=dict)
    instances: dict[str, str] = field(default_factory=dict)  # instance id -> id of the member that has it
    places: list[Place] = field(default_factory=list)  # as of the generation
    committed: dict[Place, Position] = field(default_factory=dict)

    def check(self, membership: _Membership) -> None:
        """May this member commit offsets?"""
        if self.instances.get(membership.instance or "", membership.member) != membership.member:
            raise Fenced(f"a newer member has taken {membership.instance} of group {self.name}")
        member = self.members.get(membership.member)
        if member is None or membership.generation != self.generation or member.generation != self.generation:
            raise Lost(f"{membership.member} of generation {membership.generation} is not in the current generation")

    def add(self, member: _Member) -> None:
        older = self.members.pop(self.instances.get(member.instance, ""), None) if member.instance else None
        self.members[member.id] = member
        if member.instance is not None:
            self.instances[member.instance] = member.id
        if older is None or self.rebalancing or set(older.owned) - set(older.assigned):
            self.rebalance()
            return
        # A static member came back: it goes on in its generation, and the others notice nothing.
        member.generation, member.assigned, member.fresh = older.generation, older.assigned, True

    def remove(self, member: _Member) -> None:
        del self.members[member.id]
        if member.instance is not None:
            del self.instances[member.instance]
        self.rebalance()
        self._complete()

    def rebalance(self) -> None:
        if not self.rebalancing:
            self.rebalancing = True
            for member in self.members.values():
                member.joined = False

    def join(self, member: _Member, owned: Iterable[Place], places: list[Place]) -> None:
        member.joined, member.fresh, member.owned = True, False, list(owned)
        self.places = places
        self._complete()

    def _complete(self) -> None:
        members = list(self.members.values())
        if not members or not all(member.joined for member in members):
            return
        self.generation += 1
        self.rebalancing = False
        target = self._sticky(members) if self.cooperative else _in_turn(members, self.places)
        taken = {place: member for member in members for place in member.owned}
        for member in members:
            member.generation, member.fresh = self.generation, True
            member.assigned = [place for place in target[member.id] if taken.get(place, member) is member]

    def _sticky(self, members: list[_Member]) -> dict[str, list[Place]]:
        """As many partitions for each as in any balance, and as few moves as that allows."""
        here = set(self.places)
        least, more = divmod(len(self.places), len(members))
        target = {}
        for member in sorted(members, key=lambda member: -len(member.owned)):
            kept = [place for place in member.owned if place in here]
            quota = least + (more > 0)
            target[member.id] = kept[:quota]
            more -= len(target[member.id]) > least
        given = {place for places in target.values() for place in places}
        for place in (place for place in self.places if place not in given):
            min(target.values(), key=len).append(place)
        return target


def _in_turn(members: list[_Member], places: list[Place]) -> dict[str, list[Place]]:
    return {member.id: places[index :: len(members)] for index, member in enumerate(members)}


class _Consumer:
    def __init__(
        self, broker: "MemoryBroker", group: _Group, topics: Sequence[str], listener: Listener, instance: str | None
    ) -> None:
        self._broker = broker
        self._group = group
        self._topics = list(topics)
        self._listener = listener
        self._positions: dict[Place, int] = {}
        self._paused: set[Place] = set()
        self._failed: set[Place] = set()  # the listener could not say where to read them from
        self._turn = 0
        self._closed = False
        self._member = broker._join(group, instance)

    def poll(self, timeout_seconds: float, most: int) -> list[Messages]:
        assert not self._closed
        deadline = time.monotonic() + timeout_seconds
        while True:
            self._broker._fault("poll")
            self._rebalance()
            with self._broker._locked():
                messages = self._fetch(most)
                if messages or not self._broker._wait(deadline):
                    return messages

    def seek(self, positions: Mapping[Place, Offset]) -> None:
        with self._broker._locked():
            assert positions.keys() <= self._positions.keys()
            self._positions.update(positions)

    def pause(self, places: Sequence[Place]) -> None:
        assert self._positions.keys() >= set(places)
        self._paused.update(places)

    def resume(self, places: Sequence[Place]) -> None:
        self._paused.difference_update(places)

    def assignment(self) -> list[Place]:
        return list(self._positions)

    def committed(self, places: Sequence[Place]) -> dict[Place, Position | None]:
        self._broker._fault("committed")
        deadline = time.monotonic() + self._broker._patience_seconds
        with self._broker._locked():
            while not self._broker._pending(self._group.name).isdisjoint(places):
                if not self._broker._wait(deadline):
                    raise BrokerError("a transaction is about to commit offsets: it must end first")
            return {place: self._group.committed.get(place) for place in places}

    def known_ends(self) -> dict[Place, Offset]:
        with self._broker._locked():
            there = [place for place in self._positions if place.topic in self._broker._topics]
            return {place: Offset(self._broker._log(place).last_stable) for place in there}

    def group_metadata(self) -> _Membership:
        with self._broker._locked():
            member = self._member
            return _Membership(self._group.name, member.id, member.generation, member.instance)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            with self._broker._locked():
                current = self._is_current()
            if self._positions:
                self._give_up(list(self._positions), self._listener.revoked if current else self._listener.lost)
        finally:
            with self._broker._changing():
                # A static member leaves nothing behind but its session, so that it finds its partitions again.
                if self._is_current() and self._member.instance is None:
                    self._group.remove(self._member)

    def _is_current(self) -> bool:
        return self._group.members.get(self._member.id) is self._member

    def _rebalance(self) -> None:
        """Everything that this member has to do for its group, until there is nothing left to do."""
        while (step := self._next_step()) is not None:
            step()

    def _next_step(self) -> Callable[[], None] | None:
        """One thing that the listener has to hear, decided under the lock and told without it."""
        with self._broker._locked():
            member, group, held = self._member, self._group, list(self._positions)
            if not self._is_current():
                if member.instance is not None and member.instance in group.instances:
                    raise Fenced(f"a newer member has taken {member.instance} of group {group.name}")
                if held:
                    return lambda: self._give_up(held, self._listener.lost)
                member = self._member = self._broker._join(group, member.instance)
            member.seen_ms = self._broker._clock()
            places = self._broker._places(self._topics)
            if places != group.places:
                group.rebalance()
            if group.rebalancing and not member.joined:
                if held and not group.cooperative:
                    return lambda: self._give_up(held, self._listener.revoked)
                group.join(member, held, places)
                self._failed.clear()
                self._broker._changed.notify_all()
            return self._adopt(held) if member.fresh else None

    def _adopt(self, held: list[Place]) -> Callable[[], None] | None:
        assigned = self._member.assigned
        if gone := [place for place in held if place not in assigned]:
            return lambda: self._give_up(gone, self._listener.revoked, rejoin=True)
        if came := [place for place in assigned if place not in self._positions and place not in self._failed]:
            return lambda: self._take(came)
        self._member.fresh = False
        return None

    def _give_up(self, places: list[Place], tell: Callable[[Sequence[Place]], None], rejoin: bool = False) -> None:
        try:
            tell(places)
        finally:  # whatever the listener made of it, they are gone
            with self._broker._changing():
                for place in places:
                    del self._positions[place]
                self._paused.difference_update(places)
                if rejoin and self._is_current():
                    self._group.rebalance()

    def _take(self, places: list[Place]) -> None:
        """If the listener fails, it is not asked again in this generation: they are ours, and nobody reads them."""
        try:
            positions = self._listener.assigned(places)
        except BaseException:
            self._failed.update(places)
            raise
        assert positions.keys() == set(places)
        with self._broker._locked():
            self._positions.update(positions)

    def _fetch(self, most: int) -> list[Messages]:
        """Partitions take turns at being the first one, so that a full one starves no other."""
        places = [place for place in self._positions if place not in self._paused]
        if not places:
            return []
        self._turn = (self._turn + 1) % len(places)
        # All are looked at before anything is taken: an error must not swallow messages of other partitions.
        turns = places[self._turn :] + places[: self._turn]
        logs = {place: self._broker._log_at(place, self._positions[place]) for place in turns}
        found = []
        for place, log in logs.items():
            if most == 0:
                break
            messages = log.read(place, self._positions[place], log.last_stable, most)
            if messages is not None:
                found.append(messages)
                most -= len(messages.values)
                self._positions[place] = messages.next_offset
            if most > 0:  # a gap at the end is behind us too
                self._positions[place] = max(self._positions[place], log.last_stable)
        return found


class _Follower(Follower):
    def __init__(self, broker: "MemoryBroker", starts: Mapping[Place, Offset], keys: bool) -> None:
        self._broker, self._positions, self._keys = broker, dict(starts), keys

    def poll(self, timeout_seconds: float, most: int) -> list[Messages]:
        self._broker._fault("read")
        deadline = time.monotonic() + timeout_seconds
        with self._broker._locked():
            while True:
                found = self._take(most)
                if found or not self._broker._wait(deadline):
                    return found

    def _take(self, most: int) -> list[Messages]:
        found: list[Messages] = []
        for place, position in self._positions.items():
            log = self._broker._log_at(place, position)
            messages = log.read(place, position, log.last_stable, most, self._keys) if most else None
            if messages is not None:
                found.append(messages)
                most -= len(messages.values)
                self._positions[place] = messages.next_offset
            if most:  # there was room for more, and nothing is left but markers
                self._positions[place] = Offset(log.last_stable)
        return found

    def reached(self) -> dict[Place, Offset]:
        return dict(self._positions)

    def close(self) -> None:
        pass


# --- The broker ---


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class MemoryBroker(Broker):
    """Kafka as far as `Broker` goes, and what an administrator may do to it.

    clock: ms since the epoch; sessions and transactions run out by it.
    faults: called with an operation's name before it is done; what it raises comes out of the operation. It is called
    as `commit.after` too, when the commit has taken place. Names: init, begin, produce, send_offsets, commit.before,
    commit.after, abort, poll, committed, append, flush, read, extents, group_offsets, topics, create_topic.
    retention_messages: what a partition keeps at least; a reader that is further behind gets OutOfRange.
    patience_seconds: the most that any call waits for another thread; 0: there is none, as in simulation.
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
        assert transaction_timeout_ms < session_timeout_ms
        self._assignor = assignor
        self._clock = clock
        self._fault = faults
        self._session_timeout_ms = session_timeout_ms
        self._transaction_timeout_ms = transaction_timeout_ms
        self._message_bytes_max = message_bytes_max
        self._retention_messages = retention_messages
        self._patience_seconds = patience_seconds
        self._changed = Condition()
        self._topics: dict[str, _Topic] = {}
        self._groups: dict[str, _Group] = {}
        self._transactionals: dict[str, _Transactional] = {}
        self._topic_ids = itertools.count(1)
        self._member_ids = itertools.count(1)

    # Broker

    def consumer(self, group: str, topics: Sequence[str], listener: Listener, member: str | None = None) -> Consumer:
        with self._changing():
            state = self._group(group)
            if not state.members:
                state.topics = sorted(topics)
            if state.topics != sorted(topics):
                raise Refused(f"the members of group {group} read other topics")
            return _Consumer(self, state, topics, listener, member)

    def producer(self, transactional_id: str) -> Producer:
        self._fault("init")
        with self._changing():
            state = self._transactional(transactional_id)
            self._fence(state)
            state.newest = state.epoch
            return _Producer(self, transactional_id, state.epoch)

    def append(
        self,
        topic: str,
        values: Sequence[bytes | None],
        keys: Sequence[bytes | None] | None = None,
        times: Sequence[int] | None = None,
    ) -> None:
        self._fault("append")
        with self._changing():
            self._write(topic, values, keys, None, times, None)

    def flush(self) -> None:
        self._fault("flush")

    def read(
        self, place: Place, begin: Offset, end: Offset, keys: bool = False, headers: bool = False
    ) -> Iterator[Messages]:
        self._fault("read")
        position = begin
        while position < end:
            with self._locked():
                log = self._log(place)
                if position < log.begin or end > log.last_stable:
                    raise OutOfRange(f"{place.topic} [{place.partition}]: {position} to {end} is not there")
                messages = log.read(place, position, end, _READ_MESSAGES, keys, headers)
            if messages is None:
                return
            yield messages
            position = messages.next_offset

    def follow(self, starts: Mapping[Place, Offset], keys: bool = False) -> Follower:
        return _Follower(self, starts, keys)

    def ends(self, topics: Sequence[str]) -> dict[Place, Offset]:
        self._fault("extents")
        with self._locked():
            return {place: Offset(self._log(place).end) for place in self._places(topics)}

    def extents(self, topics: Sequence[str]) -> dict[Place, Extent]:
        self._fault("extents")
        with self._locked():
            logs = {place: self._log(place) for place in self._places(topics)}
            return {place: Extent(Offset(log.begin), Offset(log.last_stable)) for place, log in logs.items()}

    def committed(self, group: str, topics: Sequence[str]) -> dict[Place, Position | None]:
        self._fault("group_offsets")
        deadline = time.monotonic() + self._patience_seconds
        with self._locked():
            while not self._pending(group).isdisjoint(self._places(topics)) and self._wait(deadline):
                pass
            offsets = self._groups[group].committed if group in self._groups else {}
            return {place: offsets.get(place) for place in self._places(topics)}

    def topics(self, names: Sequence[str]) -> dict[str, TopicState | None]:
        self._fault("topics")
        with self._locked():
            return {name: self._state(self._topics.get(name)) for name in names}

    def create_topic(self, name: str, partitions: int, settings: Mapping[str, str], replication: int = 1) -> None:
        self._fault("create_topic")
        if partitions < 1:
            raise Refused(f"{name}: a topic has one partition at least")
        with self._locked():
            if name not in self._topics:
                topic_id = str(uuid.UUID(int=next(self._topic_ids)))
                self._topics[name] = _Topic(topic_id, [_Log() for _ in range(partitions)], dict(settings))

    def close(self) -> None:
        pass

    # What an administrator does

    def delete_topic(self, name: str) -> None:
        """Its committed offsets go with it, as in Kafka."""
        with self._changing():
            topic = self._find(name)
            del self._topics[name]
            for group in self._groups.values():
                group.committed = {place: at for place, at in group.committed.items() if place.topic != name}
            for state in self._transactionals.values():
                if state.transaction is not None:
                    for log in topic.logs:
                        state.transaction.logs.pop(log, None)

    def add_partitions(self, name: str, total: int) -> None:
        with self._changing():
            logs = self._find(name).logs
            if total <= len(logs):
                raise Refused(f"{name} has {len(logs)} partitions")
            logs.extend(_Log() for _ in range(total - len(logs)))

    def delete_before(self, place: Place, offset: Offset) -> None:
        """What retention does to a partition that is not read in time."""
        with self._locked():
            self._log(place).delete_before(offset)

    # What consumers and producers need; all of it under the lock

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with self._changed:
            self._expire()
            yield

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Locked, and waiting threads look again afterwards."""
        with self._locked():
            try:
                yield
            finally:
                self._changed.notify_all()

    def _wait(self, deadline: float) -> bool:
        """Wait for another thread. False: the time is over."""
        left = min(deadline - time.monotonic(), self._patience_seconds, _WAIT_SECONDS_MAX)
        if left <= 0:
            return False
        self._changed.wait(left)
        self._expire()
        return True

    def _expire(self) -> None:
        now = self._clock()
        for state in self._transactionals.values():
            if state.transaction is not None and now - state.transaction.began_ms >= self._transaction_timeout_ms:
                self._fence(state)
        for group in self._groups.values():
            for member in list(group.members.values()):
                if now - member.seen_ms >= self._session_timeout_ms:
                    group.remove(member)

    def _transactional(self, transactional_id: str) -> _Transactional:
        return self._transactionals.setdefault(transactional_id, _Transactional())

    def _fence(self, state: _Transactional) -> None:
        self._end_transaction(state, committed=False)
        state.epoch += 1

    def _end_transaction(self, state: _Transactional, committed: bool) -> None:
        transaction, state.transaction = state.transaction, None
        if transaction is None:
            return
        transaction.end(committed)
        if committed:
            for group, offsets in transaction.offsets.items():
                self._group(group).committed.update(offsets)

    def _pending(self, group: str) -> set[Place]:
        """Partitions whose offsets an open transaction is about to commit."""
        open_ones = (state.transaction for state in self._transactionals.values() if state.transaction is not None)
        return {place for transaction in open_ones for place in transaction.offsets.get(group, ())}

    def _group(self, name: str) -> _Group:
        if name not in self._groups:
            self._groups[name] = _Group(name, [], self._assignor == "cooperative")
        return self._groups[name]

    def _join(self, group: _Group, instance: str | None) -> _Member:
        member = _Member(f"member-{next(self._member_ids)}", instance, self._clock())
        group.add(member)
        return member

    def _find(self, topic: str) -> _Topic:
        if topic not in self._topics:
            raise TopicMissing(f"there is no topic {topic}")
        return self._topics[topic]

    def _places(self, topics: Iterable[str]) -> list[Place]:
        return [Place(name, partition) for name in sorted(topics) for partition in range(len(self._find(name).logs))]

    def _log(self, place: Place) -> _Log:
        logs = self._find(place.topic).logs
        if not 0 <= place.partition < len(logs):
            raise TopicMissing(f"{place.topic} has no partition {place.partition}")
        return logs[place.partition]

    def _log_at(self, place: Place, position: int) -> _Log:
        """A partition that can be read from there."""
        log = self._log(place)
        if not log.begin <= position <= log.end:
            raise OutOfRange(f"{place.topic} [{place.partition}]: {position} is not in {log.begin} to {log.end}")
        return log

    @staticmethod
    def _state(topic: _Topic | None) -> TopicState | None:
        return None if topic is None else TopicState(topic.id, len(topic.logs), dict(topic.settings))

    def _write(
        self,
        name: str,
        values: Sequence[bytes | None],
        keys: Sequence[bytes | None] | None,
        headers: Sequence[Headers] | None,
        times: Sequence[int] | None,
        transaction: Callable[[], _Transaction] | None,
    ) -> None:
        topic = self._find(name)
        self._check_size(topic, values, keys)
        if not values:
            return
        opened = transaction() if transaction else None
        stamps = np.full(len(values), self._clock(), np.uint64) if times is None else np.asarray(times, np.uint64)
        assert all(column is None or len(column) == len(values) for column in (keys, headers, stamps))
        for log, chosen in topic.spread(keys):
            segment = _Segment(
                log.end,
                _chosen(values, chosen),
                stamps if chosen is None else stamps[chosen],
                None if keys is None else _chosen(keys, chosen),
                None if headers is None else _chosen(headers, chosen),
                opened,
            )
            log.write(segment)
            if opened is not None:
                opened.logs[log] = None
            if self._retention_messages is not None:
                log.keep(self._retention_messages)

    def _check_size(self, topic: _Topic, values: Sequence[bytes | None], keys: Sequence[bytes | None] | None) -> None:
        limit = int(topic.settings.get("max.message.bytes", self._message_bytes_max))
        largest = max(map(len, filter(None, values)), default=0)
        if keys is not None and largest + max(map(len, filter(None, keys)), default=0) > limit:
            largest = max(len(value or b"") + len(key or b"") for value, key in zip(values, keys, strict=True))
        if largest > limit:
            raise Refused(f"a message of {largest} bytes; the limit is {limit}")
