"""What only a real Kafka can show of processor/broker/kafka.py. What the model shows too: test_broker_contract.py."""

import collections
import contextlib
import ctypes
import gc
import logging
import math
import os
import random
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient

from tests.kafka_server import KafkaServer
from tokenometer.processor.broker import (
    BEGINNING,
    BrokerError,
    Dead,
    Fenced,
    GroupMember,
    Messages,
    Offset,
    OutOfRange,
    Place,
    Position,
    Refused,
)
from tokenometer.processor.broker.kafka import KafkaBroker, KafkaConsumer, cluster, direct, drain, following

pytestmark = pytest.mark.kafka

PATIENCE_SECONDS = 120
FETCHED_SECONDS = 1.0  # enough for librdkafka to fetch a few thousand small messages ahead
MOST = 1_000


class Starter:
    """A listener that starts at the beginning; `told` may raise."""

    def __init__(self, told: Callable[[str, Sequence[Place]], None] = lambda kind, places: None) -> None:
        self._told = told

    def assigned(self, places: Sequence[Place]) -> Mapping[Place, Offset]:
        self._told("assigned", places)
        return dict.fromkeys(places, BEGINNING)

    def revoked(self, places: Sequence[Place]) -> None:
        self._told("revoked", places)

    def lost(self, places: Sequence[Place]) -> None:
        self._told("lost", places)


@pytest.fixture
def broker(kafka: KafkaServer) -> Iterator[KafkaBroker]:
    made = KafkaBroker(kafka.bootstrap)
    yield made
    made.close()


def new_name() -> str:
    return f"test-{uuid.uuid4().hex[:12]}"


def fill(broker: KafkaBroker, topic: str, count: int, first: int = 0) -> None:
    broker.append(topic, [b"%d" % number for number in range(first, first + count)])
    broker.flush()


def poll_some(consumer: KafkaConsumer, most: int = MOST) -> list[Messages]:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        found = consumer.poll(0.1, most)
        if found:
            return found
    pytest.fail("nothing came")


def offsets_of(found: Sequence[Messages]) -> list[int]:
    return [int(offset) for messages in found for offset in messages.offsets]


def poll_offsets(consumer: KafkaConsumer, count: int) -> list[int]:
    offsets: list[int] = []
    while len(offsets) < count:
        offsets += offsets_of(poll_some(consumer))
    return offsets


def wait_until_hidden(broker: KafkaBroker, place: Place) -> Offset:
    """The last stable offset, once an open transaction holds it back. A producer sends its messages when it likes."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    end = broker.extents([place.topic])[place].end
    while time.monotonic() < deadline:
        fill(broker, place.topic, 1)
        now = broker.extents([place.topic])[place].end
        if now == end:
            return end
        end = now
        time.sleep(0.02)
    pytest.fail("the transaction hides nothing")


# --- Settings and connections ---


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"isolation.level": "read_uncommitted"}, "isolation.level cannot be chosen: only committed"),
        ({"enable.auto.commit": "true"}, "enable.auto.commit cannot be chosen"),
        ({"auto.offset.reset": "earliest"}, "auto.offset.reset cannot be chosen"),
        ({"enable.idempotence": "false"}, "enable.idempotence cannot be chosen"),
        ({"transactional.id": "mine"}, "transactional.id cannot be chosen"),
        ({"acks": "1"}, "acks cannot be chosen"),
        ({"no.such.setting": "1"}, 'No such configuration property: "no.such.setting"'),
        ({"fetch.wait.max.ms": "-7"}, '"fetch.wait.max.ms" value -7 is outside allowed range'),
        ({"session.timeout.ms": "long"}, "session.timeout.ms: expected a number of milliseconds, got 'long'"),
        ({"session.timeout.ms": "9000"}, r"transaction.timeout.ms \(30000\) must be below session.timeout.ms \(9000\)"),
        ({"transaction.timeout.ms": "45000"}, "must be below session.timeout.ms"),
        ({"ssl.ca.location": "/does/not/exist", "security.protocol": "ssl"}, "ssl.ca.location"),
    ],
)
def test_a_setting_is_refused_with_its_reason(kafka: KafkaServer, settings: dict[str, str], expected: str) -> None:
    with pytest.raises(Refused, match=expected):
        KafkaBroker(kafka.bootstrap, settings)


def test_an_unreachable_broker_is_named_soon(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        begun = time.monotonic()
        with pytest.raises(BrokerError, match=f"Kafka at {address} gave no answer.*refused"):
            KafkaBroker(address)
        assert time.monotonic() - begun < 15
    assert len(caplog.records) < 5, "the same is not said ten times a second"


def test_clients_log_and_leave_standard_error_alone(
    kafka: KafkaServer, topics: Callable[..., str], capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "tokenometer.kafka"):
        broker = KafkaBroker(kafka.bootstrap, {"debug": "broker,cgrp,eos"})
        topic = topics()
        fill(broker, topic, 10)
        consumer = broker.consumer(new_name(), [topic], Starter())
        poll_offsets(consumer, 10)
        producer = broker.producer(new_name())
        producer.begin()
        producer.produce(topic, [b"never sent"])
        producer.close()
        consumer.close()
        broker.close()
        del broker, consumer, producer
        gc.collect()
    assert "librdkafka" in caplog.text or "thrd:" in caplog.text
    assert capfd.readouterr().err == ""


def test_a_restart_of_the_broker_is_waited_out(owned: KafkaServer, topics: Callable[..., str]) -> None:
    broker = KafkaBroker(owned.bootstrap)
    topic = topics()
    fill(broker, topic, 10)
    consumer = broker.consumer(new_name(), [topic], Starter())
    assert poll_offsets(consumer, 10) == list(range(10))
    restart = threading.Thread(target=owned.restart)
    restart.start()
    seen = set()
    while restart.is_alive():
        assert consumer.poll(0.1, MOST) == []
        seen.add(consumer.last_error)
    restart.join()
    fill(broker, topic, 10)
    assert poll_offsets(consumer, 10) == list(range(10, 20))
    assert any(error is not None for error in seen) and consumer.last_error is None
    consumer.close()
    broker.close()


def test_a_topic_that_goes_while_it_is_looked_at_is_not_there(
    kafka: KafkaServer, broker: KafkaBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = new_name()
    broker.create_topic(topic, 1, {})
    described = broker._described([topic])
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    admin.delete_topics([topic])[topic].result(20)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while broker.topics([topic])[topic] is not None and time.monotonic() < deadline:
        time.sleep(0.05)
    monkeypatch.setattr(broker, "_described", lambda names: described)  # as it was a moment ago
    assert broker.topics([topic]) == {topic: None}


# --- Rebalances ---


def test_a_client_that_ends_its_process_while_it_looks_at_a_group_ends_not_ours(
    broker: KafkaBroker, topics: Callable[..., str]
) -> None:
    """librdkafka does so when the broker that coordinates the group is killed; here we do it."""
    topic, group = topics("log"), new_name()
    consumer = broker.consumer(group, [topic], Starter(), "me")
    fill(broker, topic, 1)
    poll_offsets(consumer, 1)
    known = broker.members(group)
    assert known == [GroupMember("me", [Place(topic, 0)])]
    child = broker._members._child
    assert child is not None
    os.kill(child.pid, signal.SIGABRT)
    child.wait()
    assert broker.members(group) == known, "between two questions nobody hears of it"
    frozen = broker._members._child
    assert frozen is not None and frozen.pid != child.pid
    os.kill(frozen.pid, signal.SIGSTOP)
    killer = threading.Timer(1, lambda: os.kill(frozen.pid, signal.SIGKILL))
    killer.start()
    with pytest.raises(BrokerError, match="the process that asks has ended"):
        broker.members(group)
    killer.join()
    assert broker.members(group) == known and broker.members(new_name()) == []
    consumer.close()
    last = broker._members._child
    broker.close()
    assert last is not None and last.poll() is not None


def test_what_a_listener_raises_comes_out_of_poll(broker: KafkaBroker, topics: Callable[..., str]) -> None:
    topic = topics()
    fill(broker, topic, 10)

    def told(kind: str, places: Sequence[Place]) -> None:
        raise ZeroDivisionError(kind)

    consumer = broker.consumer(new_name(), [topic], Starter(told))
    with pytest.raises(ZeroDivisionError, match="assigned"):
        poll_some(consumer)
    assert consumer.assignment() == []
    for _ in range(5):
        assert consumer.poll(0.1, MOST) == [], "a partition without a position is not read"
    with pytest.raises(ZeroDivisionError, match="revoked"):
        consumer.close()
    consumer.close()


def in_every_group(test: Any) -> Any:
    """Once for each way to share partitions out, and each way to fetch."""
    strategies: list[dict[str, str]] = [
        *({"partition.assignment.strategy": name} for name in ("cooperative-sticky", "range")),
        {"group.protocol": "consumer"},
    ]
    settings = pytest.mark.parametrize("settings", strategies, ids=lambda settings: next(iter(settings.values())))
    return settings(pytest.mark.parametrize("fetch", ["own", "librdkafka"])(test))


@in_every_group
def test_what_is_assigned_while_a_member_leaves_is_not_taken_up(
    kafka: KafkaServer, topics: Callable[..., str], settings: dict[str, str], fetch: str
) -> None:
    """The group has answered, and this member closes before it polls: librdkafka hands the assignment out in close(),
    where it answers no question for offsets. A meter that was stopped in that moment waited 30 s and failed."""
    broker = KafkaBroker(kafka.bootstrap, {**settings, "tokenometer.fetch": fetch})
    topic, group = topics(partitions=2), new_name()
    heard: list[str] = []
    consumer = broker.consumer(group, [topic], Starter(lambda kind, places: heard.append(kind)))
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not any(member.places for member in broker.members(group)):
        assert time.monotonic() < deadline, "the group gave this member nothing"
        time.sleep(0.05)
    time.sleep(FETCHED_SECONDS)  # the answer has come, and waits for a poll
    consumer.close()
    assert heard == []
    assert consumer.assignment() == []
    second = broker.consumer(group, [topic], Starter())
    while len(second.assignment()) < 2:
        assert time.monotonic() < deadline, "what a member that left was given stays with it"
        second.poll(0.05, 1)
    second.close()
    broker.close()


@in_every_group
def test_a_member_may_leave_at_any_moment(
    kafka: KafkaServer, topics: Callable[..., str], settings: dict[str, str], fetch: str
) -> None:
    """Some close while they join, some with an assignment that nobody polled, some a moment after they took it up.
    librdkafka alone waits for ever in about one of a hundred such closes."""
    broker = KafkaBroker(kafka.bootstrap, {**settings, "tokenometer.fetch": fetch})
    topic, heard, draw = topics(partitions=3), collections.Counter[str](), random.Random(1)
    listener = Starter(lambda kind, places: heard.update([kind]))
    left: list[int] = []

    def come_and_go() -> None:
        for number in range(150):
            consumer = broker.consumer(new_name(), [topic], listener, "meter-0")
            time.sleep(draw.uniform(0, 0.06))
            if draw.random() < 0.5:
                consumer.poll(0, 1)
            consumer.close()
            left.append(number)

    coming = threading.Thread(target=come_and_go, daemon=True)
    coming.start()
    coming.join(PATIENCE_SECONDS)
    assert len(left) == 150, "the last one does not end to leave"
    assert heard["revoked"] == heard["assigned"]
    broker.close()


@pytest.mark.parametrize("strategy", ["cooperative-sticky", "range"])
def test_a_raising_listener_loses_no_message(kafka: KafkaServer, topics: Callable[..., str], strategy: str) -> None:
    """The messages at hand come with the next poll, but for those of the partition that is gone."""
    broker = KafkaBroker(kafka.bootstrap, {"partition.assignment.strategy": strategy})
    topic, group = topics(partitions=2), new_name()
    broker.append(topic, [b"x" * 100] * 40_000, [b"%d" % number for number in range(40_000)])
    broker.flush()
    failing = [False]

    def told(kind: str, places: Sequence[Place]) -> None:
        if failing[0] and kind == "revoked":
            failing[0] = False
            raise ZeroDivisionError

    first = broker.consumer(group, [topic], Starter(told))
    reached: dict[Place, int] = {}
    while sum(reached.values()) < 100:  # else both join at once, and nothing is ever revoked
        follow(first, reached, 100, 10)
    failing[0] = True
    second = broker.consumer(group, [topic], Starter())
    deadline = time.monotonic() + PATIENCE_SECONDS
    while failing[0] and time.monotonic() < deadline:
        second.poll(0.01, 1)
        try:
            follow(first, reached, 1, 10)
        except ZeroDivisionError:
            break
    assert not failing[0]
    # Eager: everything was revoked, and is begun anew. Cooperative: what stays goes on without a gap.
    if strategy == "range":
        reached.clear()
    while not (len(first.assignment()) == len(second.assignment()) == 1):
        second.poll(0.01, 1)
        follow(first, reached, 1, 10, restarts=strategy == "range")
    before = sum(reached.values())
    while sum(reached.values()) < before + 1_000:
        follow(first, reached, 1_000, MOST)
    for consumer in (first, second):
        consumer.close()
    broker.close()


def follow(consumer: KafkaConsumer, reached: dict[Place, int], count: int, most: int, restarts: bool = False) -> None:
    """Poll `count` messages; each partition must go on where it was."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while count > 0 and time.monotonic() < deadline:
        found = consumer.poll(0.05, most)
        if not found:
            return
        for messages in found:
            first = int(messages.offsets[0])
            assert first == reached.get(messages.place, 0) or (restarts and first == 0)
            assert offsets_of([messages]) == list(range(first, messages.next_offset))
            reached[messages.place] = messages.next_offset
            count -= len(messages.values)


# --- Positions ---


def test_seek_drops_what_was_fetched_ahead(broker: KafkaBroker, topics: Callable[..., str]) -> None:
    topic = topics()
    place = Place(topic, 0)
    fill(broker, topic, 5_000)
    consumer = broker.consumer(new_name(), [topic], Starter())
    assert offsets_of(poll_some(consumer, 10))[0] == 0
    for target in (4_000, 3, 4_999, 0):
        time.sleep(FETCHED_SECONDS)
        consumer.seek({place: Offset(target)})
        count = min(50, 5_000 - target)
        assert offsets_of(poll_some(consumer, count))[0] == target
    consumer.close()


def test_a_seek_outlasts_a_pause(broker: KafkaBroker, topics: Callable[..., str]) -> None:
    topic = topics()
    place = Place(topic, 0)
    fill(broker, topic, 1_000)
    consumer = broker.consumer(new_name(), [topic], Starter())
    poll_some(consumer, 10)
    consumer.seek({place: Offset(500)})
    consumer.pause([place])
    assert consumer.poll(FETCHED_SECONDS, MOST) == []
    consumer.resume([place])
    assert offsets_of(poll_some(consumer, 10))[0] == 500
    # Fetched ahead again, and resumed where the last message was handed out.
    consumer.seek({place: Offset(100)})
    handed_out = offsets_of(poll_some(consumer, 10))
    time.sleep(FETCHED_SECONDS)
    consumer.pause([place])
    assert consumer.poll(FETCHED_SECONDS, MOST) == []
    consumer.resume([place])
    assert offsets_of(poll_some(consumer, 10))[0] == handed_out[-1] + 1
    consumer.close()


def test_an_offset_beyond_the_log_is_out_of_range(broker: KafkaBroker, topics: Callable[..., str]) -> None:
    topic = topics()
    fill(broker, topic, 10)
    consumer = broker.consumer(new_name(), [topic], Starter())
    poll_some(consumer)
    consumer.seek({Place(topic, 0): Offset(5_000)})
    with pytest.raises(OutOfRange, match=topic):
        poll_some(consumer)
    consumer.close()


# --- Transactions ---


def test_an_open_transaction_holds_the_extent_and_its_abort_leaves_a_gap(
    broker: KafkaBroker, topics: Callable[..., str]
) -> None:
    topic = topics()
    place = Place(topic, 0)
    fill(broker, topic, 3)
    producer = broker.producer(new_name())
    producer.begin()
    producer.produce(topic, [b"never seen"] * 5)
    stable = wait_until_hidden(broker, place)
    assert offsets_of(list(broker.read(place, BEGINNING, stable))) == list(range(stable))
    producer.abort()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while broker.extents([topic])[place].end <= stable and time.monotonic() < deadline:
        time.sleep(0.02)
    found = list(broker.read(place, BEGINNING, broker.extents([topic])[place].end))
    assert b"never seen" not in [value for messages in found for value in messages.values]
    # What was written behind the transaction is there, after a gap of its five messages.
    assert offsets_of(found)[stable] >= stable + 5
    producer.close()


@pytest.mark.parametrize("keys", [False, True])
def test_a_range_is_the_same_as_columns_and_as_the_clients_messages(
    broker: KafkaBroker, topics: Callable[..., str], monkeypatch: pytest.MonkeyPatch, keys: bool
) -> None:
    """With tombstones, empty values, messages without a key, and more than are taken at once."""
    topic, count = topics(), 5_000
    values = [None if n % 97 == 0 else b"x" * (n % 50) for n in range(count)]
    named = [None if n % 89 == 0 else b"k%d" % n for n in range(count)]
    place = Place(topic, 0)
    broker.append(topic, values, named, [1_700_000_000_000 + n for n in range(count)])
    broker.flush()
    end = broker.extents([topic])[place].end
    opened = drain.opened
    drains = []
    monkeypatch.setattr(drain, "opened", lambda *given: drains.append(opened(*given)) or drains[-1])
    columns = whole(broker, place, Offset(end - 1), keys)
    assert len(drains) == 1 and drains[0] is not None, "this version of the client was tested"
    monkeypatch.setattr(direct, "supported", lambda: False)
    assert whole(broker, place, Offset(end - 1), keys) == columns
    assert len(columns[0]) == end - 1 - 3


@pytest.mark.parametrize(
    "room, most",
    [(7, 32_768), (30_000, 32_768), (30_000, 3), (100_000, 32_768), (1 << 20, 2_000), (1 << 20, 2_001), (1 << 20, 1)],
)
def test_a_range_is_the_same_however_little_is_taken_at_once(
    broker: KafkaBroker, topics: Callable[..., str], monkeypatch: pytest.MonkeyPatch, room: int, most: int
) -> None:
    """Columns that are full with one message, in the middle of those that came together, and just at their end; a
    message or a key that is larger than all columns; and the last messages, out of the queue and without room."""
    topic, count = topics(), 2_500 if most > 100 else 100
    values = [b"y" * 40_000 if n in (50, 2_100) else b"x" * (n % 50) for n in range(count)]
    named = [b"k" * 35_000 if n == 60 else b"k%d" % n for n in range(count)]
    broker.append(topic, values, named, [1_700_000_000_000 + n for n in range(count)])
    broker.flush()
    monkeypatch.setattr(drain, "_ROOM_BYTES", room)
    monkeypatch.setattr(following, "_DRAINED_MESSAGES", most)
    found = whole(broker, Place(topic, 0), Offset(count), True)
    assert found[:2] == (values[3:], named[3:])
    assert found[3] == list(range(3, count))


def whole(broker: KafkaBroker, place: Place, end: Offset, keys: bool) -> tuple[list[Any], ...]:
    some = list(broker.read(place, Offset(3), end, keys=keys))
    assert all((messages.keys is not None) == keys for messages in some)
    return (
        [value for messages in some for value in messages.values],
        [key for messages in some for key in messages.keys or ()],
        [time for messages in some for time in messages.times.tolist()],
        [offset for messages in some for offset in messages.offsets.tolist()],
    )


def test_an_error_of_a_partition_is_said_by_its_own_queue(broker: KafkaBroker, topics: Callable[..., str]) -> None:
    """The offset is gone when it is asked for."""
    topic = topics()
    fill(broker, topic, 10)
    place = Place(topic, 0)
    consumer = following.assigned(broker._settings, {place: Offset(500)})
    with contextlib.closing(consumer), pytest.raises(OutOfRange):
        list(following.read(consumer, place, 600, following.access_of({}, [place]), False, False))


def test_a_range_that_ends_in_an_abort_is_read_to_its_end(broker: KafkaBroker, topics: Callable[..., str]) -> None:
    topic = topics()
    place = Place(topic, 0)
    producer = broker.producer(new_name())
    producer.begin()
    producer.produce(topic, [b"seen"])
    producer.commit()
    producer.begin()
    producer.produce(topic, [b"never seen"] * 5)
    stable = wait_until_hidden(broker, place)
    producer.abort()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (end := broker.extents([topic])[place].end) <= stable and time.monotonic() < deadline:
        time.sleep(0.02)
    begun = time.monotonic()
    found = list(broker.read(place, BEGINNING, end))
    assert offsets_of(found)[0] == 0
    assert time.monotonic() - begun < 5
    producer.close()


def test_a_zombie_producer_is_fenced(broker: KafkaBroker, topics: Callable[..., str]) -> None:
    topic, name = topics(), new_name()
    zombie = broker.producer(name)
    zombie.begin()
    zombie.produce(topic, [b"from the zombie"])
    heir = broker.producer(name)
    with pytest.raises(Fenced, match="stop this one"):
        zombie.commit()
    zombie.close()
    heir.begin()
    heir.produce(topic, [b"from the heir"])
    heir.commit()
    heir.close()
    found: list[Messages] = []
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not found:  # a commit is answered before it shows
        assert time.monotonic() < deadline, "nothing was committed"
        end = broker.extents([topic])[Place(topic, 0)].end
        found = list(broker.read(Place(topic, 0), BEGINNING, end))
    assert [value for messages in found for value in messages.values] == [b"from the heir"]


def test_a_transaction_that_timed_out_is_not_called_fenced(kafka: KafkaServer, topics: Callable[..., str]) -> None:
    broker, topic, name = KafkaBroker(kafka.bootstrap, {"transaction.timeout.ms": "1000"}), topics(), new_name()
    producer = broker.producer(name)
    producer.begin()
    producer.produce(topic, [b"late"])
    wait_until_hidden(broker, Place(topic, 0))
    time.sleep(3)
    with pytest.raises(BrokerError) as caught:
        producer.commit()
    assert not isinstance(caught.value, Fenced)
    producer.close()
    anew = broker.producer(name)
    anew.begin()
    anew.produce(topic, [b"in time"])
    anew.commit()
    anew.close()
    broker.close()


def test_many_small_messages_fit_in_one_commit(broker: KafkaBroker, topics: Callable[..., str]) -> None:
    topic, count = topics("rows", 2), 200_000
    producer = broker.producer(new_name())
    producer.begin()
    keys = [b"%080d" % number for number in range(count)]
    producer.produce(topic, keys, keys)
    producer.commit()
    producer.close()
    found, deadline = 0, time.monotonic() + PATIENCE_SECONDS
    while found < count:  # a commit is answered before it shows, in one partition after another
        assert time.monotonic() < deadline, f"{found} of {count} were committed"
        extents = broker.extents([topic]).items()
        found = sum(len(messages.values) for place, extent in extents for messages in broker.read(place, *extent))
    assert found == count


def test_offsets_of_an_open_transaction_are_waited_for(broker: KafkaBroker, topics: Callable[..., str]) -> None:
    topic, group = topics(), new_name()
    place = Place(topic, 0)
    fill(broker, topic, 10)
    consumer = broker.consumer(group, [topic], Starter())
    poll_offsets(consumer, 10)
    producer = broker.producer(new_name())
    producer.begin()
    producer.send_offsets({place: Position(Offset(7), "seven")}, consumer.group_metadata())
    committing = threading.Timer(1.0, producer.commit)
    committing.start()
    assert consumer.committed([place]) == {place: Position(Offset(7), "seven")}
    committing.join()
    assert broker.committed(group, [topic]) == {place: Position(Offset(7), "seven")}
    consumer.close()
    producer.close()


# --- Clients that librdkafka gives up ---


def give_up(client: Any, code: int) -> None:
    """librdkafka's own way to try it."""
    direct.library().rd_kafka_test_fatal_error(direct.handle(client), ctypes.c_int(code), b"as a test")


def test_a_consumer_with_any_fatal_error_is_dead(
    broker: KafkaBroker, topics: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    topic = topics()
    fill(broker, topic, 10)
    consumer = broker.consumer(new_name(), [topic], Starter())
    poll_offsets(consumer, 10)
    give_up(consumer._consumer, KafkaError.UNKNOWN)
    deadline = time.monotonic() + PATIENCE_SECONDS
    with pytest.raises(Dead):
        while time.monotonic() < deadline:
            consumer.poll(0.1, MOST)
    for _ in range(3):
        with pytest.raises(Dead):
            consumer.poll(0.1, MOST)
    consumer.close()
    # Closing such a client never ends, and takes a core.
    assert "stays until this process ends" in caplog.text
    assert "closing" not in {thread.name for thread in threading.enumerate()}


def test_an_appender_with_a_fatal_error_is_followed_by_another(broker: KafkaBroker, topics: Callable[..., str]) -> None:
    topic = topics()
    fill(broker, topic, 10)
    give_up(broker._appender._producer, KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER)
    with pytest.raises(BrokerError):
        fill(broker, topic, 10)
    fill(broker, topic, 10)
    place = Place(topic, 0)
    assert broker.extents([topic])[place].end == 20


# --- Topics that were made a moment ago ---


def late_to_hear(broker: KafkaBroker, monkeypatch: pytest.MonkeyPatch, name: str, answers: float) -> list[str]:
    """From now on so many answers come from a broker that has not heard of the topic, as on a cluster of several."""
    asked: list[str] = []
    ask = broker._admin.describe_topics

    def describe(topics: Any, **named: Any) -> Any:
        asked.append(name)
        return ask(TopicCollection([f"{name}-unheard-of"]) if len(asked) <= answers else topics, **named)

    def renamed(topics: Any, **named: Any) -> Any:
        [answer] = describe(topics, **named).values()
        return {name: answer}

    monkeypatch.setattr(broker._admin, "describe_topics", renamed)
    return asked


def test_a_topic_just_made_is_asked_for_until_the_brokers_know_it(
    broker: KafkaBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"late-{uuid.uuid4().hex[:8]}"
    asked = late_to_hear(broker, monkeypatch, name, 3)
    broker.create_topic(name, 2, {})
    assert len(asked) == 4
    late_to_hear(broker, monkeypatch, name, 2)  # the next question goes to another broker
    found = broker.topics([name])[name]
    assert found is not None and found.partitions == 2


def test_a_topic_that_stays_unknown_is_named_and_nobody_is_sent_in_a_circle(
    broker: KafkaBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "ANSWER_SECONDS", 1)
    name = f"late-{uuid.uuid4().hex[:8]}"
    late_to_hear(broker, monkeypatch, name, math.inf)
    with pytest.raises(BrokerError, match=f"the topic {name} was created, and in 1 s no broker answered for it"):
        broker.create_topic(name, 1, {})


def with_moving_leader(broker: KafkaBroker, monkeypatch: pytest.MonkeyPatch, code: int, times: float) -> list[int]:
    """So many answers say of partition 1 that its leader moves. Gives how many partitions each question was of."""
    asked: list[int] = []
    real = broker._admin.list_offsets

    def list_offsets(wanted: Any, **named: Any) -> Any:
        asked.append(len(wanted))
        answers = dict(real(wanted, **named))  # the client still fills its own
        if len(asked) <= times:
            for part in answers:
                if part.partition == 1:
                    answers[part] = Future()
                    answers[part].set_exception(KafkaException(KafkaError(code)))
        return answers

    monkeypatch.setattr(broker._admin, "list_offsets", list_offsets)
    return asked


@pytest.mark.parametrize("code", [KafkaError.FENCED_LEADER_EPOCH, KafkaError.NOT_LEADER_FOR_PARTITION])
def test_offsets_are_asked_for_again_while_a_leader_moves(
    broker: KafkaBroker, topics: Callable[..., str], monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    topic = topics(partitions=2)
    broker.ends([topic])  # from now on both have a leader: a new topic's are known a little later
    asked = with_moving_leader(broker, monkeypatch, code, 2)
    assert broker.ends([topic]) == {Place(topic, 0): 0, Place(topic, 1): 0}
    assert asked == [2, 1, 1]


def test_a_leader_that_stays_unknown_is_named(
    broker: KafkaBroker, topics: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = topics(partitions=2)
    monkeypatch.setattr(cluster, "ANSWER_SECONDS", 1)
    with_moving_leader(broker, monkeypatch, KafkaError.FENCED_LEADER_EPOCH, math.inf)
    with pytest.raises(BrokerError, match=f"offsets of {topic}: .*FENCED_LEADER_EPOCH"):
        broker.ends([topic])
