"""Rows by Produce requests of our own, on a real broker: where they lie, and answers that are lost on their way."""

import contextlib
import logging
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions

from tests.kafka.proxy import Proxy
from tests.kafka.test_fetch import damaging as damaging
from tests.kafka.test_fetch import new_name
from tests.kafka_server import KafkaServer
from tests.write.test_packer import column
from tokenometer.processor.broker import BrokerError, Fenced, Refused
from tokenometer.processor.broker.kafka import KafkaBroker
from tokenometer.processor.broker.kafka.producer import KafkaProducer
from tokenometer.processor.broker.kafka.write import sender

pytestmark = pytest.mark.kafka

PATIENCE_SECONDS = 60
OWN = {"tokenometer.rows": "own"}
_PRODUCE = 0


def numbers(count: int, first: int = 0) -> list[bytes]:
    return [b"%d" % number for number in range(first, first + count)]


def write(producer: KafkaProducer, topic: str, values: Sequence[bytes]) -> None:
    producer.produce_columns(topic, column(values), column(values))


def committed(broker: KafkaBroker, topic: str, count: int) -> dict[int, list[bytes | None]]:
    """By partition. A commit is answered before it shows, and a partition is known before it has a leader."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    found: dict[int, list[bytes | None]] = {}
    while True:
        with contextlib.suppress(BrokerError):
            found = {
                place.partition: [value for messages in broker.read(place, *extent) for value in messages.values]
                for place, extent in broker.extents([topic]).items()
            }
        if sum(map(len, found.values())) >= count:
            return found
        assert time.monotonic() < deadline, f"{sum(map(len, found.values()))} of {count} are there"
        time.sleep(0.05)


def assert_all_in_order(found: dict[int, list[bytes | None]], count: int) -> None:
    """Forty times each number, which were written in their order, are in the partitions once."""
    assert sorted(sum(found.values(), [])) == sorted(value * 40 for value in numbers(count))
    for values in found.values():
        order = [int((value or b"")[: len(value or b"") // 40]) for value in values]
        assert order == sorted(order), "in the order of writing"


CANNOT = pytest.mark.parametrize("name, value", [("partitioner", "consistent"), ("compression.type", "zstd")])


@pytest.fixture
def opened() -> Iterator[Callable[..., KafkaBroker]]:
    brokers: list[KafkaBroker] = []

    def open_one(bootstrap: str, **settings: str) -> KafkaBroker:
        brokers.append(KafkaBroker(bootstrap, {**OWN, **settings}))
        return brokers[-1]

    yield open_one
    for broker in brokers:
        broker.close()


# --- Where they lie ---


def test_rows_lie_where_librdkafka_would_have_put_them(
    kafka: KafkaServer, topics: Callable[..., str], opened: Callable[..., KafkaBroker]
) -> None:
    found = []
    for way in ("own", "librdkafka"):
        broker, topic = opened(kafka.bootstrap, **{"tokenometer.rows": way}), topics(partitions=5)
        producer = broker.producer(new_name())
        assert (producer._writer is not None) == (way == "own")
        producer.begin()
        write(producer, topic, numbers(20_000))
        producer.commit()
        producer.close()
        found.append(committed(broker, topic, 20_000))
    assert found[0] == found[1] and all(found[0].values())


def test_transactions_follow_one_another_and_an_aborted_one_is_not_seen(
    kafka: KafkaServer, topics: Callable[..., str], opened: Callable[..., KafkaBroker]
) -> None:
    broker, topic, other = opened(kafka.bootstrap), topics(partitions=2), topics()
    producer = broker.producer(new_name())
    for round_number in range(6):
        producer.begin()
        if round_number % 2:  # else librdkafka has nothing of this transaction
            producer.produce(other, [b"%d" % round_number])
        write(producer, topic, numbers(1_000, 1_000 * round_number))
        if round_number in (1, 2):
            producer.abort()
        else:
            producer.commit()
    producer.begin()
    producer.commit()  # without a message
    found = committed(broker, topic, 4_000)
    wanted = [*numbers(1_000), *numbers(3_000, 3_000)]
    assert sorted(sum(found.values(), [])) == sorted(wanted)
    assert committed(broker, other, 2) == {0: [b"3", b"5"]}


def test_new_partitions_are_used(
    kafka: KafkaServer,
    topics: Callable[..., str],
    admin: AdminClient,
    opened: Callable[..., KafkaBroker],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broker, topic = opened(kafka.bootstrap), topics(partitions=1)
    producer = broker.producer(new_name())
    producer.begin()
    write(producer, topic, numbers(1_000))
    producer.commit()
    admin.create_partitions([NewPartitions(topic, 3)])[topic].result(PATIENCE_SECONDS)
    monkeypatch.setattr(sender, "_FRESH_SECONDS", 0.0)
    deadline = time.monotonic() + PATIENCE_SECONDS
    count = 1_000
    while not all(committed(broker, topic, count).get(partition) for partition in range(3)):
        assert time.monotonic() < deadline
        producer.begin()
        write(producer, topic, numbers(1_000, count))
        producer.commit()
        count += 1_000
    assert sorted(sum(committed(broker, topic, count).values(), [])) == sorted(numbers(count))


# --- What does not pass ---


def test_a_zombies_rows_are_refused(
    kafka: KafkaServer, topics: Callable[..., str], opened: Callable[..., KafkaBroker]
) -> None:
    broker, topic, name = opened(kafka.bootstrap), topics(), new_name()
    zombie = broker.producer(name)
    zombie.begin()
    write(zombie, topic, [b"on its way"])
    assert zombie._writer is not None
    zombie._writer.finish()  # the broker has it
    heir = broker.producer(name)
    with pytest.raises(Fenced, match="stop this one"):
        write(zombie, topic, [b"late"])
        zombie.commit()
    heir.begin()
    write(heir, topic, [b"the heir's"])
    heir.commit()
    assert committed(broker, topic, 1) == {0: [b"the heir's"]}


def test_rows_of_a_transaction_that_timed_out_are_not_called_fenced(
    kafka: KafkaServer, topics: Callable[..., str], opened: Callable[..., KafkaBroker]
) -> None:
    broker, topic, name = opened(kafka.bootstrap, **{"transaction.timeout.ms": "1000"}), topics(), new_name()
    producer = broker.producer(name)
    producer.begin()
    write(producer, topic, [b"in the log"])
    assert producer._writer is not None
    producer._writer.finish()
    time.sleep(3)
    with pytest.raises(BrokerError) as caught:
        write(producer, topic, [b"late"])
        producer.commit()
    assert not isinstance(caught.value, Fenced)
    producer.close()
    anew = broker.producer(name)
    anew.begin()
    write(anew, topic, [b"in time"])
    anew.commit()
    assert committed(broker, topic, 1) == {0: [b"in time"]}


@CANNOT
def test_what_our_requests_cannot_do_is_left_to_librdkafka_and_said(
    kafka: KafkaServer,
    topics: Callable[..., str],
    opened: Callable[..., KafkaBroker],
    caplog: pytest.LogCaptureFixture,
    name: str,
    value: str,
) -> None:
    broker, topic = opened(kafka.bootstrap, **{"tokenometer.rows": "auto", name: value}), topics()
    with caplog.at_level(logging.WARNING):
        producer = broker.producer(new_name())
    assert f"librdkafka writes all rows, because requests of our own cannot do this: {name}={value}" in caplog.text
    producer.begin()
    write(producer, topic, numbers(10))
    producer.commit()
    assert committed(broker, topic, 10) == {0: numbers(10)}
    with pytest.raises(Refused, match=f"{name}={value}"):
        opened(kafka.bootstrap, **{name: value}).producer(new_name())


# --- What passes ---


def test_answers_that_are_lost_are_asked_for_again_and_nothing_is_written_twice(
    damaging: tuple[KafkaServer, Proxy], opened: Callable[..., KafkaBroker]
) -> None:
    server, between = damaging
    broker, topic = opened(f"127.0.0.1:{between.port}"), new_name()
    broker.create_topic(topic, 2, {})
    producer = broker.producer(new_name())
    seen = []

    def cut(answer: bytes) -> bytes | None:
        seen.append(len(answer))
        return None if len(seen) % 3 == 1 else answer

    between.damages[_PRODUCE] = cut
    try:
        for round_number in range(3):
            producer.begin()
            for part in range(4):
                values = numbers(20_000, 20_000 * (4 * round_number + part))
                producer.produce_columns(topic, column(values), column([value * 40 for value in values]))
            producer.commit()
    finally:
        del between.damages[_PRODUCE]
    assert len(seen) > 12
    assert_all_in_order(committed(broker, topic, 240_000), 240_000)


@pytest.mark.parametrize("code", [6, 7, 19, 74], ids=["not leader", "timed out", "not enough replicas", "epoch"])
def test_a_failure_that_passes_is_waited_out(
    damaging: tuple[KafkaServer, Proxy], opened: Callable[..., KafkaBroker], code: int
) -> None:
    """The broker has written the batch, and says that it has not."""
    server, between = damaging
    broker, topic = opened(f"127.0.0.1:{between.port}"), new_name()
    broker.create_topic(topic, 1, {})
    producer = broker.producer(new_name())
    answers = []

    def fail_once(answer: bytes) -> bytes:
        answers.append(answer)
        at = answer.index(topic.encode()) + len(topic) + 1 + 4
        return answer if len(answers) > 1 else answer[:at] + struct.pack(">h", code) + answer[at + 2 :]

    between.damages[_PRODUCE] = fail_once
    try:
        producer.begin()
        write(producer, topic, numbers(1_000))
        producer.commit()
    finally:
        del between.damages[_PRODUCE]
    assert len(answers) == 2 and committed(broker, topic, 1_000) == {0: numbers(1_000)}


def test_a_restart_of_the_broker_in_the_middle_of_a_transaction_is_waited_out(
    owned: KafkaServer, topics: Callable[..., str], opened: Callable[..., KafkaBroker]
) -> None:
    broker, topic, other = (
        opened(owned.bootstrap, **{"transaction.timeout.ms": "44000"}),
        topics(partitions=2),
        topics(),
    )
    producer = broker.producer(new_name())
    producer.begin()
    write(producer, topic, numbers(100))
    producer.commit()
    producer.begin()
    producer.produce(other, [b"librdkafka's"])
    count, restart = 100, threading.Thread(target=owned.restart)
    restart.start()
    while restart.is_alive():
        write(producer, topic, numbers(100, count))
        assert producer._writer is not None
        producer._writer.push()
        count += 100
        time.sleep(0.05)
    producer.commit()
    assert sorted(sum(committed(broker, topic, count).values(), [])) == sorted(numbers(count))
    assert committed(broker, other, 1) == {0: [b"librdkafka's"]}


def test_batches_that_a_stopped_broker_forgot_are_not_missing(
    owned: KafkaServer, topics: Callable[..., str], opened: Callable[..., KafkaBroker]
) -> None:
    """Stopped in order, a broker keeps a producer's last batch of a partition only: the ones before, of which we have
    no answer, are out of order when they are sent again."""
    broker, topic = opened(owned.bootstrap, **{"transaction.timeout.ms": "44000"}), topics(partitions=1)
    producer = broker.producer(new_name())
    producer.begin()
    assert producer._writer is not None
    for part in range(4):
        write(producer, topic, numbers(100, 100 * part))
        producer._writer.push()
    deadline = time.monotonic() + PATIENCE_SECONDS
    settings = {"bootstrap.servers": owned.bootstrap, "group.id": "any", "isolation.level": "read_uncommitted"}
    consumer = Consumer(settings)
    while consumer.get_watermark_offsets(TopicPartition(topic, 0))[1] < 400:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    consumer.close()
    for line in producer._writer._lines.values():
        line.connection.interrupt()  # the answers are lost
    owned.restart()
    write(producer, topic, numbers(100, 400))
    producer.commit()
    assert committed(broker, topic, 500) == {0: numbers(500)}
