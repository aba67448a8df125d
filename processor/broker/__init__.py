"""What Tokenometer needs of a broker: partitions that are read in order, and transactions that write.

Two implementations keep one contract (tests/test_broker_contract.py): `kafka`, a real cluster, and `memory`, a model of
one inside this process. Everybody else knows only this file.

What both promise
- A reader sees committed messages only, in the order of their offsets; offsets may have gaps (transaction markers,
  messages of aborted transactions).
- A transaction's messages and consumer offsets become visible together, or never.
- A newer producer of the same transactional id fences the older one; an offset commit by a member that is no longer in
  the group's current generation fails.
- A member is told of partitions that it gets, gives up or has lost inside `poll`, in the thread that called it.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NewType, Protocol, overload

import numpy as np

from tokenometer.schemas.errors import TokenometerError

Offset = NewType("Offset", int)
Headers = Sequence[tuple[str, bytes | None]]
BEGINNING = Offset(0)


class Place(NamedTuple):
    """A partition of a topic."""

    topic: str
    partition: int


@dataclass(frozen=True)
class Column(Sequence[bytes | None]):
    """Many texts in one buffer: text i is `lengths[i]` bytes from `starts[i]` on; None where that is -1.

    lines: where each text's newline ends, if the buffer holds these texts, each ended by one newline (its own, if it
    has one), and nothing else. buffer: the memory around `data`, where that is laid out as an engine's batch
    (kernels/layout.h) and nobody else's; the engine may count the lines there. one_line: no text has another newline
    than that at its end.
    """

    data: np.ndarray[Any, np.dtype[np.uint8]]
    starts: np.ndarray[Any, np.dtype[np.int64]]
    lengths: np.ndarray[Any, np.dtype[np.int64]]
    lines: np.ndarray[Any, np.dtype[np.int64]] | None = None
    buffer: np.ndarray[Any, np.dtype[np.uint8]] | None = None
    one_line: bool = False

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, index: int) -> bytes | None: ...
    @overload
    def __getitem__(self, index: slice) -> "Column": ...
    def __getitem__(self, index: int | slice) -> "bytes | None | Column":
        if isinstance(index, slice):
            return self._between(*index.indices(len(self))[:2])
        start, length = int(self.starts[index]), int(self.lengths[index])
        return None if length < 0 else self.data[start : start + length].tobytes()

    def _between(self, begin: int, end: int) -> "Column":
        starts, lengths = self.starts[begin:end], self.lengths[begin:end]
        if self.lines is None or begin >= end:
            return Column(self.data, starts, lengths, None if self.lines is None else self.lines[:0])
        first = int(starts[0])
        lines = self.lines[begin:end]
        return Column(self.data[first : int(lines[-1])], starts - first, lengths, lines - first, None, self.one_line)

    def __iter__(self) -> Iterator[bytes | None]:
        view: memoryview = self.data.data
        for start, length in zip(self.starts.tolist(), self.lengths.tolist(), strict=True):
            yield None if length < 0 else bytes(view[start : start + length])

    def tolist(self) -> list[bytes]:
        """As a list, where no text is missing."""
        assert not (self.lengths < 0).any()
        data = self.data.tobytes()
        places = zip(self.starts.tolist(), self.lengths.tolist(), strict=True)
        return [data[start : start + length] for start, length in places]


@dataclass(frozen=True)
class Messages:
    """Messages of one partition, lowest offset first; there is at least one.

    times: ms since the epoch, as the broker has them. A value of None is a tombstone. keys, headers: only where they
    were asked for; a message has none where a header's name is not UTF-8, which the client cannot read.
    """

    place: Place
    values: Sequence[bytes | None]
    times: np.ndarray[Any, np.dtype[np.uint64]]
    offsets: np.ndarray[Any, np.dtype[np.int64]]
    keys: Sequence[bytes | None] | None = None
    headers: Sequence[Headers] | None = None

    @property
    def next_offset(self) -> Offset:
        return Offset(int(self.offsets[-1]) + 1)


class Position(NamedTuple):
    """A committed offset: the next message to read, and a string that was committed with it."""

    offset: Offset
    metadata: str


class Extent(NamedTuple):
    """What a partition holds: messages of `begin` <= offset < `end`; `end` is the last stable offset."""

    begin: Offset
    end: Offset


class GroupMember(NamedTuple):
    """A member as the group's coordinator knows it. name: its static member id."""

    name: str | None
    places: Sequence[Place]


@dataclass(frozen=True)
class TopicState:
    """What is known of a topic. Two topics that had the same name one after the other have different `id`s."""

    id: str
    partitions: int
    settings: Mapping[str, str]


# --- Errors ---


class BrokerError(TokenometerError):
    """The broker could not do something. If it is none of the kinds below, try again from the start."""


class Fenced(BrokerError):
    """A newer producer has taken this transactional id, or a newer member this instance id: stop."""


class Lost(BrokerError):
    """This member is not in the group's current generation: its partitions belong to others now."""


class Dead(BrokerError):
    """This client has given up for good, and each later call raises this again. Close it and open another one."""


class OutOfRange(BrokerError):
    """The offset to read next is not in the partition: retention has passed it, or the topic was made anew."""


class TopicMissing(BrokerError):
    """A topic is not there."""


class Refused(BrokerError):
    """The broker will never accept this: no permission, a message that is too large, a setting that is wrong."""


# --- Reading in a group, writing in transactions ---


class Listener(Protocol):
    """It is told of partitions inside `Consumer.poll` and `Consumer.close`, of one at least.

    What it raises comes out of these calls. Partitions that are revoked or lost are gone all the same. If `assigned`
    raises, its partitions stay unread: close the consumer.
    """

    def assigned(self, places: Sequence[Place]) -> Mapping[Place, Offset]:
        """These partitions came. Returns the offset from which to read each."""

    def revoked(self, places: Sequence[Place]) -> None:
        """These partitions go when this returns. Until then an offset commit succeeds."""

    def lost(self, places: Sequence[Place]) -> None:
        """These partitions are gone, and others may read them already."""


class Consumer(Protocol):
    """One member of a group."""

    def poll(self, timeout_seconds: float, most: int) -> list[Messages]:
        """Up to `most` messages, consecutive ones of a partition together; none when the time is over.

        Raises OutOfRange, TopicMissing, Fenced, Refused, Dead, or BrokerError for what passes when tried again.
        """

    def seek(self, positions: Mapping[Place, Offset]) -> None:
        """Read on from these offsets instead; what was fetched ahead is dropped."""

    def pause(self, places: Sequence[Place]) -> None: ...

    def resume(self, places: Sequence[Place]) -> None: ...

    def assignment(self) -> list[Place]: ...

    def committed(self, places: Sequence[Place]) -> dict[Place, Position | None]:
        """The group's committed offsets; waits for transactions that are about to commit some. Never answers older ones
        meanwhile: raises BrokerError if one stays open for too long."""

    def known_ends(self) -> dict[Place, Offset]:
        """Where the assigned partitions end, as the last messages said. It asks nobody."""

    def group_metadata(self) -> Any:
        """This member's place in the group at this moment, for `Producer.send_offsets`."""

    def close(self) -> None:
        """Leave the group: `Listener.revoked` is called for what is still assigned. What the group gives this member
        meanwhile it does not take up. A static member's partitions wait for it until its session runs out."""


class Follower(Protocol):
    """Reads partitions as they grow, in no group."""

    def poll(self, timeout_seconds: float, most: int) -> list[Messages]:
        """Up to `most` committed messages, consecutive ones of a partition together; none when the time is over.

        Raises OutOfRange, TopicMissing, Refused, or BrokerError for what passes when tried again.
        """

    def reached(self) -> dict[Place, Offset]:
        """The offset from which each partition is to be read on: past all that was polled and the markers after it."""

    def close(self) -> None: ...


class Producer(Protocol):
    """Writes in transactions. After any error but `Fenced`: `close` it and open another one.

    An error of a message or of the producer may be raised as late as by `commit`. A transaction that was open for too
    long is aborted, and its producer is of no more use: that is a BrokerError, not Fenced.
    """

    def begin(self) -> None: ...

    def produce(
        self,
        topic: str,
        values: Sequence[bytes],
        keys: Sequence[bytes] | None = None,
        headers: Sequence[Headers] | None = None,
    ) -> None:
        """Add messages to the transaction. The partition follows from the key; without one, from the broker."""

    def produce_columns(self, topic: str, keys: Column, values: Column) -> None:
        """The same for very many messages, without a step in Python for each of them."""

    def send_offsets(self, positions: Mapping[Place, Position], group: Any) -> None:
        """Commit consumer offsets with the transaction. Raises Lost if the member is not of the current generation."""

    def commit(self) -> None:
        """All of it becomes visible. When this returns, that is decided; readers see it soon after, not all at one
        instant. An error may come although the transaction was committed."""

    def abort(self) -> None: ...

    def close(self) -> None:
        """Close without a commit. An open transaction is aborted by its timeout or by the next producer."""


class Broker(Protocol):
    def consumer(
        self,
        group: str,
        topics: Sequence[str],
        listener: Listener,
        member: str | None = None,
        keys: Collection[str] = (),
        headers: Collection[str] = (),
    ) -> Consumer:
        """Join a group. member: a static member id, which a restarted process takes over at once. keys, headers: the
        topics whose messages come with them; others do not pay for it."""

    def producer(self, transactional_id: str) -> Producer:
        """A transactional producer, ready to begin: older ones of this id are fenced, their transactions ended."""

    def append(
        self,
        topic: str,
        values: Sequence[bytes | None],
        keys: Sequence[bytes | None] | None = None,
        times: Sequence[int] | None = None,
    ) -> None:
        """Write messages without a transaction; they may still be on their way when this returns, or wait for others
        until `flush`. times: ms. Values and keys may be `Column`s, whose memory the caller may then use again."""

    def flush(self) -> None:
        """Wait until all that `append` took is in the log. Raises BrokerError if any of it could not be written."""

    def read(
        self, place: Place, begin: Offset, end: Offset, keys: bool = False, headers: bool = False
    ) -> Iterator[Messages]:
        """The committed messages of `begin` <= offset < `end`, without a group. Raises OutOfRange unless the
        partition's extent holds them all; where `begin` is `end`, there are none."""

    def follow(self, starts: Mapping[Place, Offset], keys: bool = False) -> Follower:
        """Read these partitions from these offsets on, and also what is appended later."""

    def extents(self, topics: Sequence[str]) -> dict[Place, Extent]:
        """What every partition of these topics holds now. Raises TopicMissing."""

    def ends(self, topics: Sequence[str]) -> dict[Place, Offset]:
        """Where every partition ends, open transactions included. Raises TopicMissing."""

    def committed(self, group: str, topics: Sequence[str]) -> dict[Place, Position | None]:
        """A group's committed offsets, seen from outside of it. Waits as `Consumer.committed` does, but then answers
        the older ones."""

    def members(self, group: str) -> list[GroupMember]:
        """The members of a group and their partitions; a group that does not exist has none."""

    def topics(self, names: Sequence[str]) -> dict[str, TopicState | None]:
        """What is known of each topic; None where there is no such topic."""

    def create_topic(self, name: str, partitions: int, settings: Mapping[str, str], replication: int = 1) -> None:
        """Create a topic. Nothing happens if there is one of that name."""

    def close(self) -> None: ...
