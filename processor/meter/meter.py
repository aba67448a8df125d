"""The meter: a consumer group's messages go in, one transaction a second comes out.

Owns: the group membership, the transactional producer, the order of things.
Promises: what is committed is exact. A part's rows, its live summary, its dead letters and the offsets that it covers
become visible together or not at all; after any doubt everything uncommitted is dropped, and counting goes on from the
committed offsets.

    this thread     poll ─> per partition ─> take ...... poll ......... poll
    engine thread             pack, count ─── flip ─── count ─── count     one caller of the engine
    commit thread                               └─ produce, send offsets, commit

Partitions come and go inside `poll`. One that comes begins at the group's offset; one that goes is committed first.
"""

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from tokenometer.kernels.engine import Engine
from tokenometer.kernels.scheduling import yield_to_others
from tokenometer.kernels.values import PartitionState
from tokenometer.processor.broker import (
    Broker,
    BrokerError,
    Consumer,
    Dead,
    Extent,
    Fenced,
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
from tokenometer.processor.broker.registry import Registry
from tokenometer.processor.intake import native
from tokenometer.processor.meter import emission, positions
from tokenometer.processor.meter.counting import Counting, Intake, Snapshot, Start
from tokenometer.processor.meter.emission import Misfit
from tokenometer.processor.meter.fitting import FitSettings, Fitting
from tokenometer.processor.meter.receiving import Receiving
from tokenometer.processor.meter.watching import TROUBLE_MS, Standing
from tokenometer.schemas.mapping import Mapping as RecordMapping

T = TypeVar("T")
log = logging.getLogger("tokenometer.meter")
_STOPPING_ERRORS = (Fenced, OutOfRange, Refused, TopicMissing, positions.UnknownMetadata)
_POLL_SECONDS = 0.05
_POLL_MESSAGES_MAX = 20_000
_INTAKES_MAX = 3  # on their way to the engine
_HEAR_SECONDS = 0.5  # within which a heartbeat that was due is answered
_RETRY_SECONDS = (0.1, 5.0)  # first and longest wait
_ANEW_SECONDS = (0.5, 2.0)  # the same between consumers that die one after the other


@dataclass(frozen=True)
class MeterSettings:
    """What a meter is told. inputs: topic -> mapping. The names of topics are settings."""

    name: str  # of this process: transactional id, member id and beginning of its parts' names
    group: str
    inputs: Mapping[str, RecordMapping]
    usage_topic: str = "token-usage"
    live_topic: str = "token-live"
    rejected_topic: str = "inference-logs-rejected"
    commit_interval_ms: int = 800  # with the commit itself, totals are then less than a second old
    idle_interval_ms: int = 1000  # a meter without news says so this often: silence of two seconds is worth a look
    flush_ms: int = 100  # how long messages wait for company on their way to the engine
    flush_bytes: int = 6 << 20  # this much goes at once: an engine's batch
    part_age_ms: int = 600_000  # then the part is closed, so that who adds up parts can be done with it
    from_end: bool = False  # where a partition begins that the group has never committed
    schemas: Mapping[str, bytes] = field(default_factory=dict)  # topic -> its mapping's schema file, read
    fit: FitSettings = FitSettings()
    registry: Registry | None = None  # where a mapping has registry = true


@dataclass
class Clock:
    """The wall clock in ms, a steady one, and a way to wait; another one in a simulation."""

    now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000
    steady_ms: Callable[[], int] = lambda: time.monotonic_ns() // 1_000_000
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True)
class Committed:
    """What logs and metrics hear of each commit."""

    snapshot: Snapshot
    began_ms: int  # wall clock
    took_ms: int
    rows: int
    ends: Mapping[Place, Offset]  # of the partitions, as last heard
    misfits: Sequence[Misfit] = ()  # topics that do not fit their mappings


@dataclass
class _Pending:
    """Messages of a partition that wait for company."""

    since_ms: int
    intakes: list[Intake] = field(default_factory=list)
    bytes: int = 0


class Meter:
    """One member of the group, on one device. `run` it until it should stop; a meter runs once."""

    def __init__(
        self,
        broker: Broker,
        engine: Engine,
        settings: MeterSettings,
        run: str,
        *,
        clock: Clock | None = None,
        threads: Callable[[Callable[[], None]], Executor] = lambda begin: ThreadPoolExecutor(1, initializer=begin),
        on_commit: Callable[[Committed], None] = lambda committed: None,
    ) -> None:
        native.make_ready()
        emission.make_ready()
        self._broker, self._settings, self._clock, self._on_commit = broker, settings, clock or Clock(), on_commit
        # Counting goes first: it is one thread's work, and a commit's can fill the time in which that one waits.
        self._engine_thread, self._commit_thread = threads(lambda: None), threads(yield_to_others)
        self.counting = Counting(engine, settings.name, run, self._commit_full)
        self._fitting = Fitting(settings.fit, settings.inputs)
        self._receiving = Receiving(settings.inputs, settings.schemas, settings.registry, self._clock.steady_ms)
        self._pending: dict[Place, _Pending] = {}
        self._paused: list[Place] = []  # when the last recovery began
        self._intakes: deque[Future[None]] = deque()
        self._waiting: deque[Intake] = deque()  # of these, those that the engine has not begun
        self._commit: Future[Future[None]] | None = None
        self._full: Future[None] | None = None  # the last commit that the engine's thread asked for
        self._last_commit_ms = self._last_turn_ms = self._clock.steady_ms()
        self._poll_messages = 500
        self._failure: BrokerError | None = None  # met inside a callback: the loop recovers
        self._commit_failed = False  # nothing may be committed before a recovery
        self._deaths = 0  # of consumers, since the last commit
        self._trouble: tuple[str, int] | None = None  # and when it was last seen
        self._committed: dict[Place, Offset] = {}  # by this meter
        self._leaving = False  # its next commit is its last one
        self._group: Any = None  # this member's generation
        self._ends: Mapping[Place, Offset] = {}
        self._topic_ids: dict[str, str] = {}  # as of when this meter first took up a partition of it
        self._stopped: Callable[[], bool] = lambda: False
        self._producer: Producer
        self._consumer: Consumer

    def run(self, stopped: Callable[[], bool]) -> None:
        """Meter until `stopped`, then commit and leave the group. Raises what the meter cannot mend by itself."""
        self._stopped = stopped
        self.open()
        try:
            while not stopped():
                self.step()
            self._leaving = True
            self._commit_last()
        except BaseException as error:
            self._failure = BrokerError(f"stopped by {error!r}")  # leaving the group must not commit
            raise
        finally:
            self.close()

    def open(self) -> None:
        """Join the group; the producer comes first, for it ends an open transaction of this name."""
        self._producer = self._open_producer()
        try:
            self._consumer = self._open_consumer()
        except BaseException:
            self._producer.close()
            raise

    def _open_consumer(self) -> Consumer:
        settings, receiving = self._settings, self._receiving
        asked = {"keys": receiving.keys, "headers": receiving.headers}
        return self._broker.consumer(settings.group, list(settings.inputs), self, settings.name, **asked)

    def _open_producer(self) -> Producer:
        """Opened from the thread that commits, because the producer's own threads inherit its priority."""
        return self._commit_thread.submit(self._broker.producer, self._settings.name).result()

    def close(self) -> None:
        """Leave the group. What is counted and not committed is committed first, unless something failed."""
        try:
            self._consumer.close()
        finally:
            self._engine_thread.shutdown()
            self._commit_thread.shutdown()
            self._producer.close()

    def step(self) -> None:
        """Poll once, and do what is due."""
        try:
            for messages in self._consumer.poll(_POLL_SECONDS, self._poll_messages):
                self._receive(messages)
            if self._failure:
                raise self._failure
            self._receive_again()
            self._feed(everything=False)
            self._commit_if_due()
            if self._trouble and self._clock.steady_ms() - self._trouble[1] > TROUBLE_MS:
                self._trouble = None
        except _STOPPING_ERRORS:
            raise
        except BrokerError as error:
            self._recover(error)

    def standing(self) -> Standing:
        """What this meter knows of itself. Any thread may ask."""
        held = self.counting.held()
        offsets = {place: max(start, self._committed.get(place, start)) for place, (start, _) in held.items()}
        refilled = {place: taken for place, (_, taken) in held.items() if taken is not None}
        return Standing(offsets, refilled, self._receiving.trouble or (self._trouble and self._trouble[0]))

    def _ask_consumer(self) -> None:
        """Whatever a commit needs of it: in another thread than the polling one an answer may take minutes."""
        self._group, self._ends = self._consumer.group_metadata(), self._consumer.known_ends()

    # --- Messages in ---

    def _receive(self, messages: Messages) -> None:
        intake = self._receiving.take(messages)
        if intake is None:
            self._consumer.pause([messages.place])
        else:
            self._add(intake)

    def _receive_again(self) -> None:
        intakes, free = self._receiving.again()
        for intake in intakes:
            self._add(intake)
        if free:
            self._consumer.resume(free)

    def _add(self, intake: Intake) -> None:
        pending = self._pending.setdefault(intake.place, _Pending(self._clock.steady_ms()))
        pending.intakes.append(intake)
        pending.bytes += intake.size
        mean = max(1, intake.size // len(intake.offsets))
        self._poll_messages = max(1, min(_POLL_MESSAGES_MAX, 2 * self._settings.flush_bytes // mean))

    def _feed(self, everything: bool) -> None:
        """Send full or old batches on to the engine, and wait where it is too slow."""
        now = self._clock.steady_ms()
        for place, pending in list(self._pending.items()):
            if (
                everything
                or pending.bytes >= self._settings.flush_bytes
                or now - pending.since_ms >= self._settings.flush_ms
            ):
                del self._pending[place]
                for intake in Intake.gathered(pending.intakes, self.counting.in_place):
                    self._waiting.append(intake)
                    self._intakes.append(self._engine_thread.submit(self._take))
        self._wait_for_engine(_INTAKES_MAX)

    def _take(self) -> None:
        """On the engine's thread."""
        intake = self._waiting.popleft()
        self.counting.take(intake, self._waiting[0] if self._waiting else None)

    def _wait_for_engine(self, most: int) -> None:
        while len(self._intakes) > most or (self._intakes and self._intakes[0].done()):
            self._intakes.popleft().result()

    # --- Commits ---

    def _commit_if_due(self) -> None:
        self._finish_full(wait=False)
        self._finish_commit(wait=False)
        if self._commit is not None:
            return
        waited_ms = self._clock.steady_ms() - self._last_commit_ms
        wanted_ms = self._settings.commit_interval_ms if self.counting.has_news else self._interval_ms
        if waited_ms >= wanted_ms:
            self._last_commit_ms += waited_ms
            self._feed(everything=True)  # else what waits for company waits for the next commit as well
            self._ask_consumer()
            self._commit = self._engine_thread.submit(self._begin_commit)

    @property
    def _interval_ms(self) -> int:
        """The longest time between two commits while all goes well."""
        return max(self._settings.commit_interval_ms, self._settings.idle_interval_ms)

    def _finish_commit(self, wait: bool) -> None:
        if self._commit is None or not (wait or self._commit.done()):
            return
        begun, self._commit = self._commit, None  # whatever it raises, it is over
        written = begun.result()
        if wait or written.done():
            written.result()
        else:
            self._commit = begun

    def _finish_full(self, wait: bool) -> None:
        full = self._full
        if full is not None and (wait or full.done()):
            full.result()

    def _commit_now(self, anyway: bool = False) -> None:
        """Count and commit all that was polled, and wait for it. anyway: also without news."""
        self._feed(everything=True)
        self._wait_for_engine(0)
        self._finish_commit(wait=True)
        self._ask_consumer()
        if self.counting.has_news or anyway:
            self._commit = self._engine_thread.submit(self._begin_commit)
            self._finish_commit(wait=True)
        self._finish_full(wait=True)

    def _commit_last(self) -> None:
        """Where the group goes on without this meter, as while several are started again at once, nothing is wrong:
        who has the partitions next counts what this commit would have held."""
        try:
            self._commit_now(anyway=True)
        except Lost as error:
            self._failure = error  # leaving the group must not commit
            log.warning("what was counted last is not committed, and others will count it: %s", error)

    def _begin_commit(self) -> Future[None]:
        """On the engine's thread: 1. flip. The rest happens beside further counting."""
        now = self._clock.steady_ms()
        if now - self._last_turn_ms >= self._settings.part_age_ms:
            self._last_turn_ms = now
            self.counting.turn()
        return self._commit_thread.submit(self._write, self.counting.flip())

    def _commit_full(self, snapshot: Snapshot) -> None:
        """On the engine's thread: a part is full. Counting goes on beside its commit; one such snapshot may wait."""
        if self._full is not None:
            self._full.result()
        self._full = self._commit_thread.submit(self._write, snapshot)

    def _write(self, snapshot: Snapshot) -> None:
        """One transaction. Whatever fails here, the loop drops all that was counted since the last one."""
        if self._commit_failed:
            raise BrokerError("the commit before failed, and its rows are not in this one")
        self._commit_failed = True
        began_ms, began = self._clock.now_ms(), self._clock.steady_ms()
        self._producer.begin()
        snapshots = [*snapshot.earlier, snapshot]
        rows = [self._produce(part, began_ms) for part in snapshots]  # 2
        self._check_topics()
        self._producer.send_offsets(snapshot.positions, self._group)  # 3
        self._producer.commit()  # 4; 5: nobody holds input buffers any longer, the engine has its own
        self._commit_failed, self._deaths = False, 0
        self._committed.update({place: position.offset for place, position in snapshot.positions.items()})
        took_ms = self._clock.steady_ms() - began
        for part, count in zip(snapshots, rows, strict=True):
            held = {place.topic for place in part.positions}
            self._fitting.committed(began_ms, held, part.judged, part.letters)
            self._on_commit(Committed(part, began_ms, took_ms, count, self._ends, self._fitting.misfits))

    def _produce(self, snapshot: Snapshot, began_ms: int) -> int:
        count = self._produce_usage(snapshot)
        self._produce_live(snapshot, began_ms)
        self._produce_rejected(snapshot)
        return count

    def _check_topics(self) -> None:
        """Messages of a topic that was made anew under its name must not be committed as the old one's."""
        for topic, state in self._broker.topics(sorted(self._topic_ids)).items():
            if state is None:
                raise TopicMissing(f"{topic} is not there: was the topic deleted?")
            if state.id != self._topic_ids[topic]:
                raise OutOfRange(f"{topic} was deleted and made anew since this meter began to read it")

    def _produce_usage(self, snapshot: Snapshot) -> int:
        count = 0
        for rows in snapshot.rows:
            for keys, values in emission.usage_messages(rows, snapshot.summary.part):
                self._producer.produce_columns(self._settings.usage_topic, keys, values)
                count += len(values)
        return count

    def _produce_live(self, snapshot: Snapshot, began_ms: int) -> None:
        """Keyed by meter, so that its parts follow one another: after a new part's summary the part before is final."""
        summary = replace(
            snapshot.summary, misfits=self._fitting.misfits, interval_ms=self._interval_ms, leaving=self._leaving
        )
        values = emission.live_messages(summary, began_ms, self._ends)
        self._producer.produce(self._settings.live_topic, values, [snapshot.summary.meter.encode()] * len(values))

    def _produce_rejected(self, snapshot: Snapshot) -> None:
        letters = snapshot.letters
        if letters:
            headers = [emission.rejected_headers(letter) for letter in letters]
            self._producer.produce(self._settings.rejected_topic, [letter.value for letter in letters], headers=headers)

    # --- Partitions come and go: called by the consumer ---

    def assigned(self, places: Sequence[Place]) -> Mapping[Place, Offset]:
        starts = self._persistently(lambda: self._starts(places))
        try:
            if self._failure is None:  # otherwise the recovery takes them up
                self._group = self._consumer.group_metadata()
                self._engine_thread.submit(self.counting.begin, starts).result()
        except BrokerError as error:  # of the part's last commit; raised from here it would leave them unread
            self._failure = error
        return {place: start.read_from for place, start in starts.items()}

    def revoked(self, places: Sequence[Place]) -> None:
        try:
            if self._failure is None:
                self._commit_now()
        except BrokerError as error:
            self._failure = error
        self._give_up(places)

    def lost(self, places: Sequence[Place]) -> None:
        self._failure = BrokerError(f"{len(places)} partitions were lost: the group went on without this meter")
        self._give_up(places)

    def _give_up(self, places: Sequence[Place]) -> None:
        for place in places:
            self._pending.pop(place, None)
        with contextlib.suppress(BrokerError):  # who has them next must not find them paused
            self._consumer.resume(self._receiving.forget(places))
        self._engine_thread.submit(self.counting.end, places).result()

    def _starts(self, places: Sequence[Place]) -> dict[Place, Start]:
        """The group's offsets, in topics that are still the same."""
        committed = self._consumer.committed(places)
        topics = sorted({place.topic for place in places})
        extents, states = self._broker.extents(topics), self._broker.topics(topics)
        starts = {}
        for place in places:
            state = states[place.topic]
            if state is None or place not in extents:
                raise TopicMissing(f"{_named(place)} is assigned and not there: was the topic deleted?")
            if place.topic not in self._topic_ids:
                self._tell_of_sizes(place.topic, state)
            if self._topic_ids.setdefault(place.topic, state.id) != state.id:
                raise OutOfRange(f"{place.topic} was deleted and made anew since this meter began to read it")
            starts[place] = self._start(place, committed[place], extents[place], state.id)
        return starts

    def _tell_of_sizes(self, topic: str, state: TopicState) -> None:
        """Logs that a small --memory makes small batches, so that this is no surprise."""
        most, batch = int(state.settings.get("max.message.bytes", 0)), self.counting.batch_bytes
        if most > batch:
            log.info(
                "%s takes messages of up to %d bytes; those above --batch-bytes, %d here, are counted in pieces of "
                "whole lines, which is as exact", topic, most, batch,
            )  # fmt: skip

    def _start(self, place: Place, position: Position | None, extent: Extent, topic_id: str) -> Start:
        mapping = self._settings.inputs[place.topic]
        if position is None:
            offset = extent.end if self._settings.from_end else extent.begin
            return Start(offset, offset, PartitionState(), topic_id, mapping)
        state, known_id = positions.decode(position.metadata)
        way_out = "what is counted twice adds up, so see Disasters in docs/OPERATIONS.md before any offset is changed"
        if known_id not in (None, topic_id):
            raise OutOfRange(f"{_named(place)}: the topic was deleted and made anew since the last commit; {way_out}")
        if position.offset < extent.begin:
            raise OutOfRange(
                f"{_named(place)}: retention deleted offsets {position.offset} to {extent.begin - 1} before they were "
                f"metered; {way_out}"
            )
        if position.offset > extent.end:
            raise OutOfRange(f"{_named(place)} ends at {extent.end}, before the committed {position.offset}; {way_out}")
        remembered = position.offset if state.dedup_from is None else Offset(state.dedup_from)
        read_from = min(max(remembered, extent.begin), position.offset)
        return Start(read_from, position.offset, state, topic_id, mapping)

    # --- The one recovery path ---

    def _recover(self, error: BrokerError) -> None:
        """Drop all that is not known to be committed; go on from what is."""
        log.warning("dropping what is not committed, going on from the committed offsets: %s", error)
        self._trouble = str(error), self._clock.steady_ms()
        self._failure = error  # partitions that go meanwhile are not committed
        self._abandon()
        self._producer.close()
        self._persistently(self._reopen)
        self._failure = None
        self._last_commit_ms = self._clock.steady_ms()

    def _abandon(self) -> None:
        """Wait until nothing is on its way any more, whether it succeeded or failed."""
        self._pending.clear()
        self._paused = self._receiving.forget()
        while self._intakes:
            with contextlib.suppress(BrokerError):
                self._intakes.popleft().result()
        with contextlib.suppress(BrokerError):
            self._finish_commit(wait=True)
        with contextlib.suppress(BrokerError):
            self._finish_full(wait=True)
        self._full = None

    def _reopen(self) -> None:
        """First hear what the group has decided: a meter whose name was taken must not fence its successor, and
        partitions that went cannot be sought. What is polled here comes again after the seek."""
        self._clock.sleep(_HEAR_SECONDS)  # a poll would end with the first message that waits
        try:
            self._consumer.poll(0, 1)
        except Dead:
            self._replace_consumer()
        self._producer = self._open_producer()
        starts = self._starts(self._consumer.assignment())
        self._engine_thread.submit(self.counting.drop, starts).result()
        self._commit_failed = False
        self._consumer.seek({place: start.read_from for place, start in starts.items()})
        self._consumer.resume([place for place in self._paused if place in starts])
        self._ask_consumer()

    def _replace_consumer(self) -> None:
        """The next one joins the group in later polls. Meanwhile this meter has no partition."""
        first, longest = _ANEW_SECONDS
        self._clock.sleep(min(first * 2**self._deaths, longest))
        self._deaths += 1
        self._consumer.close()
        self._consumer = self._open_consumer()

    def _persistently(self, action: Callable[[], T]) -> T:
        """Does the action again and again while the broker fails, until the meter should stop."""
        wait, longest = _RETRY_SECONDS
        while True:
            try:
                return action()
            except _STOPPING_ERRORS:
                raise
            except BrokerError as error:
                if self._stopped():
                    raise
                self._trouble = str(error), self._clock.steady_ms()
                log.warning("the broker cannot yet, trying again in %.1f s: %s", wait, error)
            self._clock.sleep(wait)
            wait = min(2 * wait, longest)


def _named(place: Place) -> str:
    return f"{place.topic}, partition {place.partition}"
