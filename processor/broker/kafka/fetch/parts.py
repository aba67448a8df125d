"""What the fetcher knows of its partitions: where each is read from, how far, and what waits to be taken. No I/O.

    claim -> (a request goes out) -> answered -> (batches are walked) -> delivered -> take

A seek makes a new Part, so that what was asked for before belongs to nobody. `flight` counts what makes the answers
that are on their way useless.
"""

import uuid
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from tokenometer.processor.broker import Messages, Offset, Place
from tokenometer.processor.broker.kafka.fetch import walk, wire
from tokenometer.processor.broker.kafka.fetch.walk import Status, Walked
from tokenometer.processor.broker.kafka.messages import between

# What waits is what the brokers' threads are ahead: enough that nobody waits for them, little enough that memory is
# bounded by it and by one answer of each broker.
WAITING_BYTES_MAX = 32 << 20
RETRY_SECONDS = 0.1
MISSING_SECONDS = 30.0  # a topic may be missing for so long at a broker that has not heard of it yet, or just started
NEARER_SECONDS = 300.0  # then the leader is asked again which replica is the nearest
BROKEN_MAX = 5  # answers in a row that cannot be read

OUT_OF_RANGE, BROKEN_BATCH, MISSING, NOT_LEADER = 1, 2, 3, 6
_LOOK_AGAIN = {  # who leads; by Kafka's code
    MISSING: "it is not there",
    5: "it has no leader",
    NOT_LEADER: "another broker leads it now",
    9: "its replica is away",
    56: "the broker's disk failed",
    74: "its leader was chosen anew",
    75: "its new leader has not heard of it yet",
    100: "the broker does not know the topic",
    103: "the broker does not know the topic by this id",
}
_TRY_AGAIN = {
    -1: "the broker failed",
    BROKEN_BATCH: "the broker has found a broken batch",
    7: "the broker was too slow",
    78: "its new leader has not caught up yet",
}
_BROKEN = {
    Status.BAD_CRC: "a batch has a wrong checksum",
    Status.BAD_BATCH: "a batch is broken",
    Status.BAD_COMPRESSION: "a batch cannot be decompressed",
}
_UNABLE = {
    Status.OLD_FORMAT: "messages in a format older than Kafka 0.11",
    Status.UNKNOWN_CODEC: "a codec that it does not know",
    Status.TOO_LARGE: f"a batch of more than {walk.OPENED_BYTES_MAX} bytes when it is decompressed",
}


@dataclass(eq=False)
class Part:
    """A partition that is read. leader, nearer: brokers' numbers; None: not known, or none."""

    place: Place
    offset: int  # to ask for next
    topic_id: uuid.UUID | None = None
    leader: int | None = None
    nearer: int | None = None
    nearer_until: float = 0.0
    epoch: int = wire.NO_EPOCH
    read_epoch: int = wire.NO_EPOCH
    flight: int = 0
    paused: bool = False
    stopped: bool = False  # after an error that does not pass, until it is sought
    retry_at: float = 0.0
    turn: int = 0  # who got something last waits longest
    broken: int = 0
    missing_since: float | None = None
    stable: int = -1  # the last stable offset that was heard
    waiting: deque[Messages] = field(default_factory=deque)
    waiting_bytes: int = 0

    def source(self, now: float) -> int | None:
        """The broker to read it from."""
        if self.nearer is not None and now >= self.nearer_until:
            self.nearer = None
        return self.leader if self.nearer is None else self.nearer

    def forget_source(self, now: float) -> None:
        self.leader, self.nearer, self.retry_at = None, None, now + RETRY_SECONDS


class Claim(NamedTuple):
    """What one request asks for of a partition."""

    part: Part
    flight: int
    wanted: wire.Wanted


class Failure(NamedTuple):
    """What does not pass by itself. code: Kafka's."""

    place: Place
    code: int
    text: str = ""


class Fallback(NamedTuple):
    """What only librdkafka can read."""

    places: Sequence[Place]
    reason: str


class Parts:
    """notes: what is being overcome, newest last."""

    def __init__(self, wanted: Mapping[str, int]) -> None:
        """wanted: topics with keys or headers, walk.KEYS | walk.HEADERS; others have neither."""
        self.events: deque[Failure | Fallback] = deque()
        self.notes: deque[str] = deque()
        self.waiting_bytes = 0
        self._parts: dict[Place, Part] = {}
        self._wanted = wanted
        self._turn = 0

    # What the consumer says

    def add(self, starts: Mapping[Place, int]) -> None:
        """Also a seek: what was read before is forgotten."""
        for place, offset in starts.items():
            old = self._parts.get(place)
            made = Part(place, offset)
            if old is not None:
                self._drop(old)
                made.topic_id, made.leader, made.epoch = old.topic_id, old.leader, old.epoch
                made.paused, made.stable = old.paused, old.stable
            self._parts[place] = made

    def remove(self, places: Iterable[Place]) -> None:
        for place in places:
            if (part := self._parts.pop(place, None)) is not None:
                self._drop(part)

    def _drop(self, part: Part) -> None:
        part.flight += 1
        self._wait(part, -part.waiting_bytes)
        part.waiting.clear()

    def _wait(self, part: Part, more: int) -> None:
        part.waiting_bytes += more
        self.waiting_bytes += more

    def pause(self, places: Iterable[Place], paused: bool) -> None:
        for place in places:
            if (part := self._parts.get(place)) is not None:
                part.paused = paused

    def ends(self) -> dict[Place, Offset]:
        return {place: Offset(part.stable) for place, part in self._parts.items() if part.stable >= 0}

    def ready(self) -> int:
        """The bytes that could be taken now."""
        return sum(part.waiting_bytes for part in self._parts.values() if not part.paused)

    def take(self, most: int) -> list[Messages]:
        """Up to so many messages; an answer's are cut only where they are the first."""
        found: list[Messages] = []
        for part in self._parts.values():
            while part.waiting and not part.paused and (not found or len(part.waiting[0].offsets) <= most):
                messages = part.waiting.popleft()
                self._wait(part, -_bytes_of(messages))
                if len(messages.offsets) > most:
                    rest = between(messages, int(messages.offsets[most]))
                    messages = between(messages, 0, int(messages.offsets[most])) or messages
                    assert rest is not None
                    part.waiting.appendleft(rest)
                    self._wait(part, _bytes_of(rest))
                most -= len(messages.offsets)
                found.append(messages)
        if found:  # the next time another partition is first
            first = found[0].place
            self._parts[first] = self._parts.pop(first)
        return found

    # Who leads

    def homeless(self, now: float) -> set[str]:
        """Topics of partitions that nobody is known to lead."""
        return {
            place.topic
            for place, part in self._parts.items()
            if part.leader is None and not part.stopped and part.retry_at <= now
        }

    def settle(self, known: wire.Metadata, now: float) -> None:
        for place, part in self._parts.items():
            topic = known.topics.get(place.topic)
            if part.leader is not None or part.stopped or topic is None:
                continue
            leader = topic.leaders.get(place.partition)
            if topic.error == MISSING or (leader is None and not topic.error):
                self._miss(part, now)
            elif topic.error and topic.error not in _LOOK_AGAIN:
                self._fail(part, topic.error)
            elif part.topic_id not in (None, topic.id):
                self._fail(part, OUT_OF_RANGE, "the topic was deleted and made anew")
            elif leader is None or leader.node not in known.brokers or leader.epoch < part.epoch:
                part.retry_at = now + RETRY_SECONDS
            else:
                part.topic_id, part.missing_since = topic.id, None
                part.leader, part.epoch, part.retry_at = leader.node, leader.epoch, 0.0

    def _miss(self, part: Part, now: float) -> None:
        part.retry_at = now + RETRY_SECONDS
        part.missing_since = part.missing_since or now
        if now - part.missing_since > MISSING_SECONDS:
            self._fail(part, MISSING)

    def lose(self, node: int, now: float) -> None:
        """That broker does not answer."""
        for part in self._parts.values():
            if node in (part.leader, part.nearer):
                part.forget_source(now)
                part.flight += 1

    def unable(self, reason: str) -> None:
        """Of any partition."""
        places = [place for place, part in self._parts.items() if not part.stopped]
        for place in places:
            self._parts[place].stopped = True
        if places:
            self.events.append(Fallback(places, reason))

    # Requests and answers

    def claim(self, node: int, now: float) -> list[Claim]:
        """What to ask this broker for."""
        if self.waiting_bytes >= WAITING_BYTES_MAX:
            return []
        readable = [
            part
            for part in self._parts.values()
            if part.source(now) == node and not (part.paused or part.stopped) and part.retry_at <= now
        ]
        readable.sort(key=lambda part: part.turn)
        return [Claim(part, part.flight, _wanted(part)) for part in readable]

    def answered(
        self, node: int, claims: Sequence[Claim], fetched: wire.Fetched, now: float
    ) -> list[tuple[Claim, wire.Part]]:
        """What is to be walked. The offsets to ask for next are past that already."""
        asked = {(claim.wanted.topic_id, claim.wanted.place.partition): claim for claim in claims}
        found = []
        for answer in fetched.parts:
            claim = asked.get((answer.topic_id, answer.partition))
            if claim is None or claim.part.flight != claim.flight:
                continue
            part = claim.part
            if answer.error:
                self._judge(part, node, answer.error, now)
                continue
            if answer.diverged:
                self._fail(part, OUT_OF_RANGE, "its log was cut back: what was read is there no more")
                continue
            part.stable = answer.stable
            if answer.nearer >= 0 and answer.nearer != node:
                part.nearer, part.nearer_until = answer.nearer, now + NEARER_SECONDS
            if len(answer.records):
                part.offset, part.read_epoch = walk.next_offset(answer.records, part.offset, part.read_epoch)
                self._turn += 1
                part.turn = self._turn
                found.append((claim, answer))
        return found

    def _judge(self, part: Part, node: int, error: int, now: float) -> None:
        if error == OUT_OF_RANGE and node == part.nearer:
            part.forget_source(now)  # a follower may know less than the leader
        elif error in _LOOK_AGAIN:
            self._note(part, _LOOK_AGAIN[error])
            part.forget_source(now)
        elif error in _TRY_AGAIN:
            self._note(part, _TRY_AGAIN[error])
            part.retry_at = now + RETRY_SECONDS
        else:
            self._fail(part, error)

    def wanted_beside(self, place: Place) -> int:
        return self._wanted.get(place.topic, 0)

    def delivered(self, claim: Claim, walked: Walked, had: bool, now: float) -> None:
        """had: the answer had bytes of this partition."""
        part = claim.part
        if part.flight != claim.flight:
            return
        if len(walked.offsets):
            place, offsets = part.place, walked.offsets
            messages = Messages(place, walked.values, walked.times, offsets, walked.keys, walked.headers)
            part.waiting.append(messages)
            self._wait(part, _bytes_of(messages))
        if walked.status is Status.FINE and (walked.walked or not had):
            part.broken = 0
            return
        part.flight += 1
        part.offset, part.read_epoch = walked.next_offset, walked.epoch if walked.walked else claim.wanted.read_epoch
        if walked.status in _UNABLE:
            part.stopped = True
            self.events.append(Fallback([part.place], _UNABLE[walked.status]))
            return
        text = f"at offset {part.offset} {_BROKEN.get(walked.status, 'a batch is cut short')}"
        part.broken = 1 if walked.walked else part.broken + 1
        part.retry_at = now + RETRY_SECONDS * part.broken
        self._note(part, text)
        if part.broken >= BROKEN_MAX:
            self._fail(part, BROKEN_BATCH, f"{text}, {BROKEN_MAX} times in a row")

    def _note(self, part: Part, text: str) -> None:
        self.notes.append(f"reading {part.place.topic}-{part.place.partition}: {text}")

    def _fail(self, part: Part, code: int, text: str = "") -> None:
        part.stopped = True
        part.flight += 1
        self.events.append(Failure(part.place, code, text))


def _wanted(part: Part) -> wire.Wanted:
    assert part.topic_id is not None
    return wire.Wanted(part.place, part.topic_id, part.offset, part.epoch, part.read_epoch)


def _bytes_of(messages: Messages) -> int:
    """Of its values, with some for what each message has beside them."""
    lines = messages.values.lines  # type: ignore[attr-defined]
    return int(lines[-1]) + 40 * len(lines)
