"""What only the model of Kafka has: a clock, faults and an administrator; and its properties under any interleaving."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenometer.processor.broker import (
    BEGINNING,
    BrokerError,
    Column,
    Consumer,
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
)
from tokenometer.processor.broker.memory import Assignor, MemoryBroker

TOPIC = "logs"
MOST = 1000
SESSION_MS, TRANSACTION_MS = 10_000, 4_000
ASSIGNORS: list[Assignor] = ["eager", "cooperative"]


def test_columns_fill_pieces_of_memory_and_one_that_is_larger_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenometer.processor.broker.memory.room._PIECE_BYTES", 64)
    broker, wanted = MemoryBroker(), []
    broker.create_topic(TOPIC, 1, {})
    broker.reserve(100)
    for size in (0, 1, 62, 63, 64, 65, 1000, 3):
        texts = [b"a" * size, b"", b"b" * size]
        starts, lengths = np.array([0, size, size]), np.array([size, 0, size])
        broker.append(TOPIC, Column(np.frombuffer(b"".join(texts), np.uint8), starts, lengths))
        wanted += texts
        end = Offset(len(wanted))
        assert [value for some in broker.read(Place(TOPIC, 0), BEGINNING, end) for value in some.values] == wanted


@pytest.mark.parametrize("size", [1 << 20, (1 << 20) + 1])
def test_a_column_is_held_to_the_limit_of_a_message(size: int) -> None:
    broker = MemoryBroker()
    broker.create_topic(TOPIC, 1, {})
    keys = Column(np.zeros(4, np.uint8), np.array([0, 0]), np.array([4, 0]))
    values = Column(np.zeros(size, np.uint8), np.array([0, 0]), np.array([10, size]))
    if size <= 1 << 20:  # the longest key belongs to the other one
        return broker.append(TOPIC, values, keys)
    with pytest.raises(Refused, match="a message of 1048577 bytes; the limit is 1048576"):
        broker.append(TOPIC, values, keys)


class Clock:
    def __init__(self) -> None:
        self.now_ms = 1_000_000

    def __call__(self) -> int:
        return self.now_ms


class Faults:
    """Fails the next operation of a name that was planned for."""

    def __init__(self) -> None:
        self.planned: dict[str, Exception] = {}
        self.called: list[str] = []

    def __call__(self, name: str) -> None:
        self.called.append(name)
        if error := self.planned.pop(name, None):
            raise error


class Heard:
    """Remembers what it was told; starts where the group stands."""

    def __init__(self) -> None:
        self.consumer: Consumer | None = None
        self.events: list[tuple[str, list[Place]]] = []
        self.before: Callable[[str], None] = lambda kind: None
        self.positions: dict[Place, int] = {}  # of what was read since it was assigned

    def _tell(self, kind: str, places: Sequence[Place]) -> None:
        self.before(kind)
        for place in places:
            self.positions.pop(place, None)
        self.events.append((kind, sorted(places)))

    def assigned(self, places: Sequence[Place]) -> Mapping[Place, Offset]:
        self._tell("assigned", places)
        assert self.consumer is not None
        committed = self.consumer.committed(places)
        return {place: at.offset if at else BEGINNING for place, at in committed.items()}

    def revoked(self, places: Sequence[Place]) -> None:
        self._tell("revoked", places)

    def lost(self, places: Sequence[Place]) -> None:
        self._tell("lost", places)


class Stage:
    """A broker without other threads, its clock and its faults."""

    def __init__(self, assignor: Assignor = "eager", partitions: int = 1, **options: Any) -> None:
        self.clock, self.faults = Clock(), Faults()
        self.broker = MemoryBroker(
            assignor=assignor,
            clock=self.clock,
            faults=self.faults,
            session_timeout_ms=SESSION_MS,
            transaction_timeout_ms=TRANSACTION_MS,
            patience_seconds=0,
            **options,
        )
        self.broker.create_topic(TOPIC, partitions, {})

    def join(self, member: str | None = None, group: str = "group") -> tuple[Consumer, Heard]:
        heard = Heard()
        heard.consumer = self.broker.consumer(group, [TOPIC], heard, member)
        return heard.consumer, heard

    def settle(self, *consumers: Consumer) -> None:
        """Enough polls for any rebalance; nothing is read."""
        for _ in range(4):
            for consumer in consumers:
                consumer.poll(0, 0)

    def committed(self, partition: int = 0) -> list[bytes | None]:
        place = Place(TOPIC, partition)
        begin, end = self.broker.extents([TOPIC])[place]
        return values_of(self.broker.read(place, begin, end))


def values_of(found: Iterator[Messages] | list[Messages]) -> list[bytes | None]:
    return [value for messages in found for value in messages.values]


def places(*partitions: int) -> list[Place]:
    return [Place(TOPIC, partition) for partition in partitions]


def begun(producer: Producer, *values: bytes) -> Producer:
    producer.begin()
    producer.produce(TOPIC, values)
    return producer


@pytest.fixture
def stage() -> Stage:
    return Stage()


# --- Transactions ---


def test_markers_take_an_offset(stage: Stage) -> None:
    producer = stage.broker.producer("id")
    begun(producer, b"a", b"b").commit()
    begun(producer, b"c").abort()
    begun(producer, b"d").commit()
    assert stage.broker.extents([TOPIC]) == {Place(TOPIC, 0): (0, 7)}
    (messages,) = stage.broker.read(Place(TOPIC, 0), BEGINNING, Offset(7))
    assert messages.offsets.tolist() == [0, 1, 5] and list(messages.values) == [b"a", b"b", b"d"]


def test_a_transaction_that_takes_too_long_is_aborted_with_its_producer(stage: Stage) -> None:
    producer = begun(stage.broker.producer("id"), b"slow")
    stage.broker.append(TOPIC, [b"after"])
    stage.clock.now_ms += TRANSACTION_MS - 1
    assert stage.committed() == []
    stage.clock.now_ms += 1
    assert stage.committed() == [b"after"]
    for call in (producer.commit, producer.begin):
        with pytest.raises(BrokerError) as raised:
            call()
        assert not isinstance(raised.value, Fenced), "to be told to stop, there must be somebody newer"
    begun(stage.broker.producer("id"), b"new").commit()
    with pytest.raises(Fenced):
        producer.begin()
    assert stage.committed() == [b"after", b"new"]


def test_the_time_of_a_transaction_begins_with_its_first_message(stage: Stage) -> None:
    producer = stage.broker.producer("id")
    producer.begin()
    stage.clock.now_ms += 10 * TRANSACTION_MS
    producer.produce(TOPIC, [b"a"])
    stage.clock.now_ms += TRANSACTION_MS - 1
    producer.commit()
    assert stage.committed() == [b"a"]


def test_a_closed_producer_leaves_its_transaction_to_the_timeout(stage: Stage) -> None:
    producer = begun(stage.broker.producer("id"), b"left")
    producer.close()
    with pytest.raises(BrokerError):
        producer.commit()
    stage.broker.append(TOPIC, [b"after"])
    assert stage.committed() == []
    stage.clock.now_ms += TRANSACTION_MS
    assert stage.committed() == [b"after"]


def test_offsets_of_an_open_transaction_are_neither_old_nor_new(stage: Stage) -> None:
    consumer, _ = stage.join()
    stage.settle(consumer)
    (place,) = consumer.assignment()
    producer = stage.broker.producer("id")

    def commit(offset: int) -> None:
        producer.begin()
        producer.send_offsets({place: Position(Offset(offset), "")}, consumer.group_metadata())

    commit(1)
    producer.commit()
    commit(2)
    with pytest.raises(BrokerError):
        consumer.committed([place])
    assert stage.broker.committed("group", [TOPIC]) == {place: (1, "")}
    stage.broker.producer("id")
    assert consumer.committed([place]) == {place: (1, "")}


def test_a_new_owner_cannot_start_before_the_old_ones_commit_has_ended(stage: Stage) -> None:
    """An accepted offset commit outlives the member; a new one must not start below it and count again."""
    old, _ = stage.join()
    stage.broker.append(TOPIC, [b"%d" % number for number in range(5)])
    stage.settle(old)
    producer = stage.broker.producer("id")
    producer.begin()
    producer.send_offsets({Place(TOPIC, 0): Position(Offset(3), "")}, old.group_metadata())
    old.close()
    new, heard = stage.join()
    with pytest.raises(BrokerError, match="about to commit"):
        new.poll(0, MOST)
    new.close()
    producer.commit()
    new, heard = stage.join()
    assert values_of(new.poll(0, MOST)) == [b"3", b"4"]


# --- Faults ---


@pytest.mark.parametrize("name", ["begin", "produce", "send_offsets", "commit.before", "commit.after", "abort"])
def test_a_producer_that_failed_is_of_no_more_use(name: str) -> None:
    stage = Stage()
    consumer, _ = stage.join()
    stage.settle(consumer)
    producer = stage.broker.producer("id")
    stage.faults.planned[name] = BrokerError("planned")

    def whole(end: str) -> None:
        begun(producer, b"a")
        producer.send_offsets({Place(TOPIC, 0): Position(Offset(1), "")}, consumer.group_metadata())
        getattr(producer, end)()

    end = "abort" if name == "abort" else "commit"
    with pytest.raises(BrokerError, match="planned"):
        whole(end)
    with pytest.raises(BrokerError, match="another one"):
        whole(end)
    stage.broker.producer("id")
    happened = name == "commit.after"
    assert stage.committed() == ([b"a"] if happened else [])
    assert consumer.committed(places(0)) == {Place(TOPIC, 0): (1, "") if happened else None}


def test_every_operation_can_fail_once_and_then_succeeds(stage: Stage) -> None:
    consumer, _ = stage.join()
    broker = stage.broker
    attempts: dict[str, Callable[[], Any]] = {
        "init": lambda: broker.producer("id"),
        "poll": lambda: consumer.poll(0, 1),
        "committed": lambda: consumer.committed(places(0)),
        "append": lambda: broker.append(TOPIC, [b"a"]),
        "flush": broker.flush,
        "read": lambda: list(broker.read(Place(TOPIC, 0), BEGINNING, BEGINNING)),
        "extents": lambda: broker.extents([TOPIC]),
        "group_offsets": lambda: broker.committed("group", [TOPIC]),
        "topics": lambda: broker.topics([TOPIC]),
        "create_topic": lambda: broker.create_topic("other", 1, {}),
    }
    for name, attempt in attempts.items():
        stage.faults.planned[name] = BrokerError("planned")
        with pytest.raises(BrokerError, match="planned"):
            attempt()
        attempt()
    assert stage.committed() == [b"a"]


def test_a_fault_may_use_the_broker(stage: Stage) -> None:
    """So that anything may happen between two steps of a client."""
    producer = begun(stage.broker.producer("id"), b"a")

    def faults(name: str) -> None:
        if name == "commit.before":
            stage.broker.producer("id")

    stage.broker._cluster.fault = faults
    with pytest.raises(Fenced):
        producer.commit()
    assert stage.committed() == []


# --- Sessions ---


@pytest.mark.parametrize("assignor", ASSIGNORS)
def test_a_member_that_does_not_poll_is_out(assignor: Assignor) -> None:
    stage = Stage(assignor, partitions=4)
    (silent, of_silent), (lively, of_lively) = stage.join(), stage.join()
    stage.settle(silent, lively)
    mine, metadata = silent.assignment(), silent.group_metadata()
    for _ in range(3):
        stage.clock.now_ms += SESSION_MS // 2
        stage.settle(lively)
    assert sorted(lively.assignment()) == places(0, 1, 2, 3)
    assert silent.assignment() == mine, "it has not heard of it"
    producer = stage.broker.producer("id")
    for stale in (metadata, silent.group_metadata()):
        with pytest.raises(Lost):
            producer.begin()
            producer.send_offsets({mine[0]: Position(Offset(1), "")}, stale)
        producer = stage.broker.producer("id")
    stage.settle(silent, lively)
    assert of_silent.events[-2:] == [("lost", sorted(mine)), ("assigned", sorted(silent.assignment()))]
    assert len(silent.assignment()) == len(lively.assignment()) == 2
    assert "lost" not in [kind for kind, _ in of_lively.events]


def test_a_member_that_polls_stays(stage: Stage) -> None:
    consumer, heard = stage.join()
    for _ in range(10):
        stage.clock.now_ms += SESSION_MS - 1
        consumer.poll(0, 0)
    assert heard.events == [("assigned", places(0))]


def test_a_rebalance_waits_for_every_member(stage: Stage) -> None:
    (first, heard), (second, _) = stage.join(), stage.join()
    stage.settle(first, second)
    generation = first.group_metadata().generation
    third, _ = stage.join()
    stage.settle(second, third)
    assert third.group_metadata().generation == 0 and not third.assignment()
    assert first.group_metadata().generation == generation, "the old generation may still commit"
    stage.clock.now_ms += SESSION_MS - 1
    stage.settle(second, third)
    assert not third.assignment()
    stage.clock.now_ms += 1
    stage.settle(second, third)
    assert second.assignment() + third.assignment() == places(0)
    assert heard.events in ([], [("assigned", places(0))])


def test_a_static_member_that_ran_out_of_time_comes_back(stage: Stage) -> None:
    consumer, heard = stage.join(member="mine")
    stage.settle(consumer)
    stage.clock.now_ms += SESSION_MS
    stage.settle(consumer)
    assert [kind for kind, _ in heard.events] == ["assigned", "lost", "assigned"]


def test_a_static_member_is_replaced_even_after_its_time(stage: Stage) -> None:
    old, heard = stage.join(member="mine")
    stage.settle(old)
    stage.clock.now_ms += SESSION_MS
    new, _ = stage.join(member="mine")
    stage.settle(new)
    with pytest.raises(Fenced):
        old.poll(0, MOST)
    assert new.assignment() == places(0)
    old.close()
    assert [kind for kind, _ in heard.events] == ["assigned", "lost"]


def test_a_closed_static_member_is_forgotten_after_its_session() -> None:
    stage = Stage(partitions=2)
    (old, _), (other, _) = stage.join(member="mine"), stage.join(member="other")
    stage.settle(old, other)
    old.close()
    stage.settle(other)
    assert len(other.assignment()) == 1
    stage.clock.now_ms += SESSION_MS - 1
    stage.settle(other)
    stage.clock.now_ms += 1
    stage.settle(other)
    assert sorted(other.assignment()) == places(0, 1)


def test_a_cooperative_member_reads_on_through_a_rebalance() -> None:
    stage = Stage("cooperative", partitions=2)
    stage.broker.append(TOPIC, [b"a"])
    first, heard = stage.join()
    stage.settle(first)
    second, _ = stage.join()
    first.poll(0, 0)
    assert sorted(first.assignment()) == places(0, 1)
    assert values_of(first.poll(0, MOST)) == [b"a"]
    stage.settle(second, first)
    assert len(first.assignment()) == len(second.assignment()) == 1
    assert heard.events == [("assigned", places(0, 1)), ("revoked", second.assignment())]


def test_a_static_takeover_in_the_middle_of_a_cooperative_rebalance() -> None:
    """The old one was to give up partitions and never did: they must reach the other member all the same."""
    stage = Stage("cooperative", partitions=4)
    old, _ = stage.join(member="mine")
    stage.settle(old)
    other, _ = stage.join(member="other")
    old.poll(0, 0)
    other.poll(0, 0)
    assert len(old.assignment()) == 4 and not other.assignment()
    new, _ = stage.join(member="mine")
    stage.settle(other, new)
    assert sorted(other.assignment() + new.assignment()) == places(0, 1, 2, 3)
    assert len(other.assignment()) == 2


def test_an_error_of_the_listener_ends_the_poll(stage: Stage) -> None:
    """What it could not place is not read until a rebalance; what it gave up is gone all the same."""
    consumer, heard = stage.join()
    failing = {"assigned", "revoked"}

    def before(kind: str) -> None:
        if kind in failing:
            failing.remove(kind)
            raise BrokerError(kind)

    heard.before = before
    with pytest.raises(BrokerError, match="assigned"):
        consumer.poll(0, MOST)
    consumer.poll(0, MOST)
    assert consumer.assignment() == [] == heard.events
    stage.broker.add_partitions(TOPIC, 2)
    stage.settle(consumer)
    assert sorted(consumer.assignment()) == places(0, 1)
    stage.broker.add_partitions(TOPIC, 3)
    with pytest.raises(BrokerError, match="revoked"):
        consumer.poll(0, MOST)
    assert consumer.assignment() == []
    stage.settle(consumer)
    assert sorted(consumer.assignment()) == places(0, 1, 2)


# --- Topics ---


def test_retention_overtakes_a_reader() -> None:
    stage = Stage(retention_messages=100)
    consumer, _ = stage.join()
    for number in range(30):
        stage.broker.append(TOPIC, [b"%d" % number] * 10)
    assert stage.broker.extents([TOPIC]) == {Place(TOPIC, 0): (200, 300)}
    with pytest.raises(OutOfRange):
        consumer.poll(0, MOST)
    consumer.seek({Place(TOPIC, 0): Offset(200)})
    assert len(values_of(consumer.poll(0, MOST))) == 100


def test_a_reader_is_past_a_gap_at_the_end(stage: Stage) -> None:
    """Else retention, which takes the gap away, would seem to take messages."""
    consumer, _ = stage.join()
    begun(stage.broker.producer("id"), b"aborted").abort()
    consumer.poll(0, MOST)
    stage.broker.delete_before(Place(TOPIC, 0), Offset(2))
    stage.broker.append(TOPIC, [b"a"])
    assert values_of(consumer.poll(0, MOST)) == [b"a"]


def test_retention_spares_an_open_transaction() -> None:
    stage = Stage(retention_messages=10)
    producer = begun(stage.broker.producer("id"), *[b"inside"] * 10)
    for _ in range(10):
        stage.broker.append(TOPIC, [b"after"] * 10)
    producer.commit()
    assert stage.committed() == [b"inside"] * 10 + [b"after"] * 100


def test_a_deleted_topic_takes_its_offsets_with_it(stage: Stage) -> None:
    stage.broker.append(TOPIC, [b"a"] * 5)
    consumer, _ = stage.join()
    stage.settle(consumer)
    producer = stage.broker.producer("id")
    producer.begin()
    producer.send_offsets({Place(TOPIC, 0): Position(Offset(5), "")}, consumer.group_metadata())
    producer.commit()
    open_one = begun(stage.broker.producer("other"), b"open")
    assert len(values_of(consumer.poll(0, MOST))) == 5
    stage.broker.delete_topic(TOPIC)
    with pytest.raises(TopicMissing):
        consumer.poll(0, MOST)
    stage.broker.create_topic(TOPIC, 1, {})
    assert stage.broker.committed("group", [TOPIC]) == {Place(TOPIC, 0): None}
    with pytest.raises(OutOfRange):
        consumer.poll(0, MOST)
    open_one.commit()
    assert stage.broker.extents([TOPIC]) == {Place(TOPIC, 0): (0, 0)}


def test_a_topic_may_have_its_own_limit(stage: Stage) -> None:
    stage.broker.create_topic("small", 1, {"max.message.bytes": "10"})
    stage.broker.append("small", [b"x" * 8], [b"kk"])
    with pytest.raises(Refused):
        stage.broker.append("small", [b"x" * 8, b""], [b"kkk", b"k"])
    stage.broker.append("small", [b"x" * 8, None], [b"", b"k" * 10])
    with pytest.raises(Refused):
        stage.broker.create_topic("none", 0, {})


def test_keys_choose_partitions_as_librdkafka_does() -> None:
    stage = Stage(partitions=3)
    stage.broker.append(TOPIC, [b"123456789"], [b"123456789"])
    assert stage.committed(0xCBF43926 % 3) == [b"123456789"]


def test_messages_without_a_key_take_turns() -> None:
    stage = Stage(partitions=3)
    for keys in (None, [None, None], [b"", b""]):
        stage.broker.append(TOPIC, [b"a", b"b"], keys)
    assert [stage.committed(partition) for partition in range(3)] == [[b"a", b"b"]] * 3


def test_a_poll_returns_when_something_comes() -> None:
    """With other threads about, a poll sleeps and is woken."""
    import threading

    broker = MemoryBroker()
    broker.create_topic(TOPIC, 1, {})
    heard = Heard()
    heard.consumer = consumer = broker.consumer("group", [TOPIC], heard)
    assert consumer.poll(0, MOST) == []
    timer = threading.Timer(0.05, broker.append, [TOPIC, [b"a"]])
    timer.start()
    began = time.monotonic()
    assert values_of(consumer.poll(30, MOST)) == [b"a"]
    assert time.monotonic() - began < 10
    timer.join()


# --- Properties under any interleaving ---

Step = tuple[str, int, int]


def _steps() -> st.SearchStrategy[list[Step]]:
    names = st.sampled_from(["begin", "produce", "produce", "commit", "abort", "reopen", "append", "read", "wait"])
    return st.lists(st.tuples(names, st.integers(0, 2), st.integers(0, 5)), max_size=60)


class Interleaving:
    """Three transactional ids write at will, a consumer reads at will; what a reader may see is known beforehand."""

    def __init__(self) -> None:
        self.stage = Stage(partitions=2)
        self.producers = [self._open(number) for number in range(3)]
        self.pending: list[list[bytes] | None] = [None, None, None]  # of open transactions
        self.began_ms: list[int | None] = [None, None, None]
        self.visible: set[bytes] = set()
        self.count = 0
        self.consumer, _ = self.stage.join()
        self.read: dict[Place, list[int]] = {}
        self.seen: list[bytes | None] = []

    def _open(self, number: int) -> Producer:
        return self.stage.broker.producer(f"id-{number}")

    def step(self, name: str, number: int, amount: int) -> None:
        getattr(self, "do_" + name)(number, amount)
        self._check_hidden()

    def _messages(self, amount: int) -> list[bytes]:
        self.count += amount
        return [b"%d" % n for n in range(self.count - amount, self.count)]

    def do_begin(self, number: int, amount: int) -> None:
        if self.pending[number] is None:
            self.producers[number].begin()
            self.pending[number] = []

    def do_produce(self, number: int, amount: int) -> None:
        pending = self.pending[number]
        if pending is None:
            return
        values = self._messages(amount)
        self.producers[number].produce(TOPIC, values, values)
        pending += values
        if values and self.began_ms[number] is None:
            self.began_ms[number] = self.stage.clock.now_ms

    def do_commit(self, number: int, amount: int) -> None:
        self._end(number, self.producers[number].commit, committed=True)

    def do_abort(self, number: int, amount: int) -> None:
        self._end(number, self.producers[number].abort, committed=False)

    def _end(self, number: int, end: Callable[[], None], committed: bool) -> None:
        pending = self.pending[number]
        if pending is not None:
            end()
            self.visible |= set(pending) if committed else set()
            self.pending[number] = self.began_ms[number] = None

    def do_reopen(self, number: int, amount: int) -> None:
        old, self.producers[number] = self.producers[number], self._open(number)
        self.pending[number] = self.began_ms[number] = None
        with pytest.raises(Fenced):
            old.commit()

    def do_append(self, number: int, amount: int) -> None:
        values = self._messages(amount)
        self.stage.broker.append(TOPIC, values, values)
        self.visible |= set(values)

    def do_read(self, number: int, amount: int) -> None:
        extents = self.stage.broker.extents([TOPIC])
        for messages in self.consumer.poll(0, amount):
            offsets = self.read.setdefault(messages.place, [])
            offsets += messages.offsets.tolist()
            assert offsets == sorted(set(offsets)), "offsets ascend"
            assert messages.next_offset <= extents[messages.place].end, "nothing past the last stable offset"
            assert self.visible.issuperset(messages.values), "nothing but committed messages"
            self.seen += messages.values

    def do_wait(self, number: int, amount: int) -> None:
        clock = self.stage.clock
        clock.now_ms += amount * TRANSACTION_MS // 4
        self.consumer.poll(0, 0)
        for number, began_ms in enumerate(self.began_ms):
            if began_ms is not None and clock.now_ms - began_ms >= TRANSACTION_MS:
                self.do_reopen(number, 0)

    def _check_hidden(self) -> None:
        """By any way of reading, the same committed messages show, and none of a transaction that is open."""
        stable = [value for partition in range(2) for value in self.stage.committed(partition)]
        assert len(stable) == len(set(stable)) and self.visible.issuperset(stable)
        if all(began_ms is None for began_ms in self.began_ms):
            assert set(stable) == self.visible

    def finish(self) -> None:
        for number in range(3):
            self.do_abort(number, 0)
        for _ in range(10):
            self.do_read(0, MOST)
        assert sorted(value or b"" for value in self.seen) == sorted(self.visible), "each exactly once"


@settings(max_examples=150, deadline=None)
@given(_steps())
def test_a_reader_sees_exactly_what_was_committed(steps: list[Step]) -> None:
    run = Interleaving()
    for step in steps:
        run.step(*step)
    run.finish()


def _member_steps() -> st.SearchStrategy[list[Step]]:
    names = st.sampled_from(["poll", "poll", "poll", "poll", "join", "close", "kill", "wait", "commit", "partitions"])
    return st.lists(st.tuples(names, st.integers(0, 3), st.integers(1, 6)), max_size=60)


class Members:
    """Up to four members come, go, fall silent and commit what they read. Offsets never go backwards, no two members
    that are up to date hold one partition, and in the end all of it was committed by somebody who held it."""

    def __init__(self, assignor: Assignor, static: bool) -> None:
        self.stage = Stage(assignor, partitions=3)
        values = [b"%d" % number for number in range(60)]
        self.stage.broker.append(TOPIC, values, values)
        self.static = static
        self.members: list[Consumer | None] = [None] * 4
        self.heard = [Heard()] * 4
        self.committed: dict[Place, int] = {}

    def step(self, name: str, number: int, amount: int) -> None:
        getattr(self, "do_" + name)(number, amount)
        self._check()

    def do_join(self, number: int, amount: int) -> None:
        if self.members[number] is None:
            name = f"static-{number}" if self.static else None
            self.members[number], self.heard[number] = self.stage.join(name)

    def do_poll(self, number: int, amount: int) -> None:
        consumer = self.members[number]
        if consumer is None:
            return
        for messages in consumer.poll(0, amount):
            self.heard[number].positions[messages.place] = messages.next_offset

    def do_close(self, number: int, amount: int) -> None:
        if (consumer := self.members[number]) is not None:
            consumer.close()
            self.members[number] = None

    def do_kill(self, number: int, amount: int) -> None:
        self.members[number] = None

    def do_wait(self, number: int, amount: int) -> None:
        self.stage.clock.now_ms += amount * SESSION_MS // 4

    def do_partitions(self, number: int, amount: int) -> None:
        if amount == 6 and len(self.stage.broker.extents([TOPIC])) == 3:
            self.stage.broker.add_partitions(TOPIC, 5)

    def do_commit(self, number: int, amount: int) -> None:
        consumer = self.members[number]
        if consumer is None:
            return
        mine = {place: Position(Offset(at), "") for place, at in self.heard[number].positions.items()}
        assert mine.keys() <= set(consumer.assignment())
        producer = self.stage.broker.producer(f"id-{number}")
        producer.begin()
        try:
            producer.send_offsets(mine, consumer.group_metadata())
        except Lost:
            return
        producer.commit()

    def _check(self) -> None:
        now = self.stage.broker.committed("group", [TOPIC])
        for place, position in now.items():
            offset = position.offset if position else 0
            assert offset >= self.committed.get(place, 0), "committed offsets go backwards"
            self.committed[place] = offset

    def finish(self) -> None:
        """Faults stop: whoever is left, and at least one, must come to share all partitions and read to their ends."""
        self.do_join(0, 0)
        self.stage.clock.now_ms += SESSION_MS
        alive = [number for number in range(4) if self.members[number] is not None]
        for _ in range(40):
            for number in alive:
                self.do_poll(number, 20)
                self.do_commit(number, 0)
                self._check()
        shares = [consumer.assignment() for consumer in self.members if consumer is not None]
        extents = self.stage.broker.extents([TOPIC])
        assert sorted(place for share in shares for place in share) == sorted(extents)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
        assert self.committed == {place: extent.end for place, extent in extents.items()}


@pytest.mark.slow
@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
@pytest.mark.parametrize("assignor", ASSIGNORS)
@settings(max_examples=150, deadline=None)
@given(steps=_member_steps())
def test_a_group_converges_and_never_goes_back(assignor: Assignor, static: bool, steps: list[Step]) -> None:
    run = Members(assignor, static)
    for step in steps:
        run.step(*step)
    run.finish()


# --- Speed ---


def test_a_million_messages_pass_quickly() -> None:
    """The demo streams millions through the model; a Python object a message would show here."""
    broker = MemoryBroker()
    broker.create_topic(TOPIC, 4, {})
    heard = Heard()
    heard.consumer = consumer = broker.consumer("group", [TOPIC], heard)
    values = [b"x" * 100] * 10_000
    keys = [b"user-%d" % (number % 500) for number in range(10_000)]
    began = time.perf_counter()
    for _ in range(100):
        broker.append(TOPIC, values, keys)
    count = 0
    while found := consumer.poll(0, 50_000):
        count += sum(len(messages.values) for messages in found)
    assert count == 1_000_000
    assert time.perf_counter() - began < 10
