"""The ledger's loop. It polls both topics and gives what came to the store, batch by batch.

The offsets to read from are in the database, in the transaction of the rows, and nowhere else: no group is joined and
no offset is committed to the broker. After whatever happened, a start reads the database and goes on from there.

What is known to be complete, and which parts are final, follows one step after the rows:

    token-live   ... summary: watermark W, part p has ended
                        │ noted: what was seen, and where token-usage ends now, open transactions included
                        ▼
    token-usage  ... ──────────────────> all of that is in:  rows are complete up to W, p is merged

A summary and its rows are in one transaction, so when the summary can be read, its rows are before that end.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, TypeVar

from tokenometer.processor.broker import (
    Broker,
    BrokerError,
    Fenced,
    Follower,
    Messages,
    Offset,
    OutOfRange,
    Place,
    Refused,
    TopicMissing,
)
from tokenometer.processor.ledger import decode
from tokenometer.processor.ledger.parts import LedgerPart
from tokenometer.processor.ledger.store import Dispute, Stand, Store
from tokenometer.processor.ledger.values import LedgerBatch, LedgerError

log = logging.getLogger("tokenometer.ledger")
T = TypeVar("T")

_STOPPING = (OutOfRange, TopicMissing, Fenced, Refused)  # what does not pass
BATCH_BYTES = 256 << 20  # of messages held at a time, but for the last poll: a summary may have 900 KiB
_POLL_SECONDS = 0.1
_POLL_MESSAGES = 10_000
_RETRY_SECONDS = 1.0
_LOOK_MS = 10_000  # are the topics still the same, and have they new partitions?


@dataclass(frozen=True)
class IntakeSettings:
    """batch_rows: a transaction takes no more messages; linger_ms: nor messages of a longer time."""

    usage_topic: str = "token-usage"
    live_topic: str = "token-live"
    batch_rows: int = 200_000
    linger_ms: int = 1_000
    accept_gap: bool = False  # begin although older usage was deleted from the topic

    def __post_init__(self) -> None:
        assert self.batch_rows > 0 and self.linger_ms >= 0


@dataclass
class _Goal:
    """All that was there at some moment. horizons: how many were reached when all of it was in. Its summaries are used
    when one more is reached, which was noted after it."""

    ends: Mapping[Place, Offset]
    horizons: int | None = None


@dataclass(frozen=True)
class _Horizon:
    """What becomes true once token-usage was read up to `ends`."""

    ends: Mapping[Place, Offset]
    watermarks: Mapping[Place, int | None]
    ended: Sequence[LedgerPart]

    def reached(self, reached: Mapping[Place, Offset]) -> bool:
        return all(reached.get(place, Offset(0)) >= end for place, end in self.ends.items())


@dataclass
class IntakeProgress:
    """Numbers for people and metrics. Only the loop writes them."""

    rows: int = 0  # taken in since the start, whatever became of them
    batches: int = 0
    ignored_rows: int = 0
    behind: int | None = None  # messages of token-usage, when it was last looked at
    disputes: list[Dispute] = field(default_factory=list)


class Ledger:
    """`run` until it is told to stop, or `open` and `step` by step. steady_ms: a clock that only goes forward."""

    def __init__(
        self,
        broker: Broker,
        store: Store,
        settings: IntakeSettings,
        steady_ms: Callable[[], int] = lambda: time.monotonic_ns() // 1_000_000,
    ) -> None:
        self._broker, self._store, self._settings = broker, store, settings
        self._steady_ms = steady_ms
        self._reader: Follower | None = None
        self._topics = (settings.usage_topic, settings.live_topic)
        self._horizon: _Horizon | None = None
        self._horizons = self._looked_ms = 0
        self._news = True  # there are summaries that no horizon has noted; at the start there may be older ones
        self._jobs: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self.progress = IntakeProgress()

    def run(self, stopped: Callable[[], bool], once: bool = False) -> None:
        """`once`: until everything that is there is in. Raises BrokerError for what does not pass, and LedgerError."""
        while not stopped():
            try:
                self.open()
                goal = _Goal(self._broker.ends(self._topics))
                while not (stopped() or (once and self._attained(goal))):
                    self.step()
                return
            except _STOPPING:
                raise
            except BrokerError as error:
                log.warning("the broker cannot yet, trying again in %.0f s: %s", _RETRY_SECONDS, error)
                self._do_jobs()
                time.sleep(_RETRY_SECONDS)
            finally:
                self.close()

    def open(self) -> None:
        """Go on from the database's offsets."""
        self.close()
        self._check_topics()
        self._store.bind(*self._topics)
        starts = self._starts()
        self._reader = self._broker.follow(starts)
        self._looked_ms = self._steady_ms()
        self._horizon, self._news = None, True

    def _check_topics(self) -> None:
        """Before a new database is bound to them for ever: a name may be misspelt."""
        missing = [topic for topic, state in self._broker.topics(self._topics).items() if state is None]
        if missing and not self._store.positions:
            raise TopicMissing(
                f"no such topic: {', '.join(missing)}; start a meter first, which makes it with --create-topics 6"
            )

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def ask(self, job: Callable[[Store], T]) -> "Future[T]":
        """Have something done between two batches, by the one thread that writes. May be called by any thread."""
        answer: Future[T] = Future()
        self._jobs.put(lambda: _settle(answer, job, self._store))
        return answer

    def _attained(self, goal: _Goal) -> bool:
        assert self._reader is not None
        reached = self._reader.reached()
        if goal.horizons is None and all(reached.get(place, Offset(0)) >= end for place, end in goal.ends.items()):
            goal.horizons = self._horizons
        nothing_to_say = self._horizon is None and not self._news
        # The first of them may have been noted before.
        return goal.horizons is not None and (nothing_to_say or self._horizons >= goal.horizons + 2)

    def step(self, timeout_seconds: float = _POLL_SECONDS) -> int:
        """Take in a batch, if one is there; how many messages it had."""
        assert self._reader is not None
        self._do_jobs()
        messages = self._gather(timeout_seconds)
        if messages:
            self._take(messages)
        self._advance()
        if self._steady_ms() - self._looked_ms >= _LOOK_MS:
            self._look()
        return sum(len(each.values) for each in messages)

    def _do_jobs(self) -> None:
        while not self._jobs.empty():
            self._jobs.get()()

    # --- Where to begin ---

    def _starts(self) -> dict[Place, Offset]:
        states, extents = self._broker.topics(self._topics), self._broker.extents(self._topics)
        new: dict[Place, Stand] = {}
        for place, extent in extents.items():
            state, stand = states[place.topic], self._store.positions.get(place)
            if state is None:
                raise TopicMissing(f"the topic {place.topic} is not there")
            if stand is None:
                new[place] = Stand(state.id, extent.begin)
                self._begin(place, extent.begin)
                continue
            self._check(place, stand, state.id, extent.end)
            if stand.next < extent.begin:
                self._skip(place, stand.next, extent.begin)
        if gone := [place for place in self._store.positions if place not in extents]:
            raise OutOfRange(f"{_named(min(gone))} is not there any more: was the topic made anew?")
        if new:
            self._store.place(new)
        return {place: stand.next for place, stand in self._store.positions.items()}

    def _begin(self, place: Place, begin: Offset) -> None:
        if place.topic == self._settings.usage_topic and begin > 0:
            text = f"{_named(place)} begins at offset {begin}: older usage was deleted, and would not be in this ledger"
            if not self._settings.accept_gap:
                raise OutOfRange(f"{text}; to begin all the same use --accept-gap")
            log.warning(text)

    def _check(self, place: Place, stand: Stand, topic_id: str, end: Offset) -> None:
        if stand.topic_id != topic_id:
            raise OutOfRange(
                f"{place.topic} was deleted and made anew since the ledger read it: its rows may be other ones. Keep "
                f"this database as the account of the old topic, and begin another one"
            )
        if stand.next > end:
            raise OutOfRange(f"{_named(place)} ends at {end}, before the {stand.next} that the ledger has read")

    def _skip(self, place: Place, following: Offset, begin: Offset) -> None:
        """Raises for usage that is gone, because it cannot be billed. Summaries that are gone only delay merging."""
        gone = f"{_named(place)}: retention deleted offsets {following} to {begin - 1} before the ledger read them"
        if place.topic == self._settings.usage_topic:
            raise OutOfRange(
                f"{gone}: usage is missing. Give the topic cleanup.policy=compact, and see docs/BILLING.md on how to "
                f"make a ledger anew"
            )
        log.warning("%s: parts that are known so far are not merged", gone)
        self._store.skip(place, begin)

    # --- Batches ---

    def _gather(self, timeout_seconds: float) -> list[Messages]:
        """Polls until the batch is full, a second has passed, or nothing more comes."""
        assert self._reader is not None
        found, began = list[Messages](), self._steady_ms()
        room, room_bytes = self._settings.batch_rows, BATCH_BYTES
        while room > 0 and room_bytes > 0 and self._steady_ms() - began <= self._settings.linger_ms:
            polled = self._reader.poll(timeout_seconds, min(room, _POLL_MESSAGES))
            if not polled:
                break
            found += polled
            room -= sum(len(each.values) for each in polled)
            room_bytes -= sum(sum(map(len, filter(None, each.values))) for each in polled)
            timeout_seconds = min(timeout_seconds, 0.02)
        return found

    def _take(self, messages: Sequence[Messages]) -> None:
        assert self._reader is not None
        usage = [each for each in messages if each.place.topic == self._settings.usage_topic]
        summaries = decode.summaries([each for each in messages if each.place.topic == self._settings.live_topic])
        rows = decode.usage_rows(usage)
        # Of what came, not of what is only marked: that costs nothing to read again.
        reached = {each.place: each.next_offset for each in messages}
        self._store.take(LedgerBatch(rows, summaries, reached))
        self._news = self._news or bool(summaries)
        progress = self.progress
        progress.rows += len(rows) if rows is not None else 0
        progress.batches += 1
        progress.ignored_rows = self._store.ignored_rows

    def _advance(self) -> None:
        """If the horizon is reached, note the next one, if there is something to note."""
        assert self._reader is not None
        if self._horizon is not None and self._horizon.reached(self._reader.reached()):
            for dispute in self._store.reach(self._horizon.watermarks, self._horizon.ended):
                self.progress.disputes.append(dispute)
                log.error(
                    "part %s: its last summary says %s, its rows %s: it is not merged; run tokenometer verify",
                    dispute.part, dispute.said, dispute.found,
                )  # fmt: skip
            self._horizon = None
            self._horizons += 1
        if self._horizon is None and self._news:
            watermarks, ended = self._store.horizon()
            self._horizon = _Horizon(self._broker.ends([self._settings.usage_topic]), watermarks, ended)
            self._news = False

    def _look(self) -> None:
        assert self._reader is not None
        states, ends = self._broker.topics(self._topics), self._broker.ends(self._topics)
        for place, stand in self._store.positions.items():
            state = states[place.topic]
            if state is None:
                raise TopicMissing(f"{place.topic} is not there: was the topic deleted?")
            if state.id != stand.topic_id:
                raise OutOfRange(f"{place.topic} was deleted and made anew while the ledger read it")
        reached = self._reader.reached()
        self.progress.behind = sum(
            max(0, end - reached.get(place, Offset(0)))
            for place, end in ends.items()
            if place.topic == self._settings.usage_topic
        )
        self._looked_ms = self._steady_ms()
        if any(place not in reached for place in ends):  # partitions were added
            self.open()


def _settle(answer: "Future[T]", job: Callable[[Store], T], store: Store) -> None:
    try:
        answer.set_result(job(store))
    except LedgerError as error:
        answer.set_exception(error)


def _named(place: Place) -> str:
    return f"{place.topic}, partition {place.partition}"


def view(progress: IntakeProgress) -> dict[str, Any]:
    """As JSON."""
    return {
        "rows_taken": progress.rows,
        "batches": progress.batches,
        "rows_ignored": progress.ignored_rows,
        "messages_behind": progress.behind,
        "disputed_parts": [each.part for each in progress.disputes],
    }
