"""Messages without a transaction by requests of our own, on a real broker."""

import itertools
import logging
import struct
import threading
import time
from collections.abc import Callable

import pytest

from tests.kafka.proxy import Proxy
from tests.kafka.test_fetch import damaging as damaging
from tests.kafka.test_fetch import new_name
from tests.kafka.test_write import CANNOT, assert_all_in_order, committed, numbers
from tests.kafka.test_write import opened as opened
from tests.kafka_server import KafkaServer
from tests.write.test_packer import column
from tokenometer.processor.broker import BrokerError, Refused
from tokenometer.processor.broker.kafka import KafkaBroker
from tokenometer.processor.broker.kafka.write import sender

pytestmark = pytest.mark.kafka

_PRODUCE, _INIT_PRODUCER = 0, 22
_AT_ONCE_SECONDS = 0.3


def append(broker: KafkaBroker, topic: str, values: list[bytes]) -> None:
    broker.append(topic, column(values), column(values))


def test_they_lie_where_librdkafka_would_have_put_them(
    kafka: KafkaServer, topics: Callable[..., str], opened: Callable[..., KafkaBroker]
) -> None:
    found = []
    for way in ("own", "librdkafka"):
        broker, topic = opened(kafka.bootstrap, **{"tokenometer.rows": way}), topics(partitions=5)
        before_ms = time.time_ns() // 1_000_000
        append(broker, topic, numbers(20_000))
        broker.flush()
        assert (broker._appender._writer is not None) == (way == "own")
        found.append(committed(broker, topic, 20_000))
        for place, extent in broker.extents([topic]).items():
            assert all((messages.times >= before_ms).all() for messages in broker.read(place, *extent))
    assert found[0] == found[1] and all(found[0].values())


def test_columns_and_single_messages_keep_their_order(
    kafka: KafkaServer, topics: Callable[..., str], opened: Callable[..., KafkaBroker]
) -> None:
    broker, topic, other = opened(kafka.bootstrap), topics(), topics()
    for part in range(6):
        values = numbers(500, 500 * part)
        broker.append(topic, values if part % 2 else column(values), values if part % 2 else column(values))
        append(broker, other, values)
    broker.flush()
    assert committed(broker, topic, 3_000) == {0: numbers(3_000)}
    assert committed(broker, other, 3_000) == {0: numbers(3_000)}


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
        append(broker, topic, numbers(10))
        append(broker, topic, numbers(10, 10))
    assert caplog.text.count(f"because requests of our own cannot do this: {name}={value}") == 1
    broker.flush()
    assert committed(broker, topic, 20) == {0: numbers(20)}
    with pytest.raises(Refused, match=f"{name}={value}.*set tokenometer.rows=auto"):
        append(opened(kafka.bootstrap, **{name: value}), topic, numbers(1))


# --- What passes ---


def test_answers_that_are_lost_are_asked_for_again_and_nothing_is_written_twice(
    damaging: tuple[KafkaServer, Proxy], opened: Callable[..., KafkaBroker]
) -> None:
    server, between = damaging
    broker, topic = opened(f"127.0.0.1:{between.port}"), new_name()
    broker.create_topic(topic, 2, {})
    turns = itertools.count()
    between.damages[_PRODUCE] = lambda answer: None if next(turns) % 3 == 1 else answer
    between.damages[_INIT_PRODUCER] = lambda answer: None if next(turns) == 0 else answer
    try:
        for part in range(12):
            values = numbers(20_000, 20_000 * part)
            broker.append(topic, column([value * 40 for value in values]), column(values))
        broker.flush()
    finally:
        between.damages.clear()
    assert next(turns) > 12
    assert_all_in_order(committed(broker, topic, 240_000), 240_000)


def test_a_restart_of_the_broker_is_waited_out(
    owned: KafkaServer, topics: Callable[..., str], opened: Callable[..., KafkaBroker]
) -> None:
    broker, topic = opened(owned.bootstrap), topics(partitions=2)
    append(broker, topic, numbers(100))
    broker.flush()
    count, restart = 100, threading.Thread(target=owned.restart)
    restart.start()
    while restart.is_alive():
        append(broker, topic, numbers(100, count))
        broker.flush()
        count += 100
        time.sleep(0.05)
    restart.join()
    assert sorted(sum(committed(broker, topic, count).values(), [])) == sorted(numbers(count))


# --- What does not pass ---


def test_nobody_answers_is_said_in_time_and_the_next_message_finds_the_broker(
    damaging: tuple[KafkaServer, Proxy], opened: Callable[..., KafkaBroker]
) -> None:
    server, between = damaging
    broker, topic = opened(f"127.0.0.1:{between.port}", **{"message.timeout.ms": "1000"}), new_name()
    broker.create_topic(topic, 1, {})
    between.damages[_PRODUCE] = lambda answer: None
    try:
        append(broker, topic, numbers(10))
        with pytest.raises(BrokerError, match=f"writing to {topic}: "):
            broker.flush()
    finally:
        between.damages.clear()
    append(broker, topic, numbers(10, 100))
    broker.flush()
    found = committed(broker, topic, 10)[0]
    assert found[-10:] == numbers(10, 100) and found[:-10] in ([], numbers(10))


def test_a_topic_that_is_not_there_is_named(
    kafka: KafkaServer, opened: Callable[..., KafkaBroker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "_MISSING_SECONDS", _AT_ONCE_SECONDS)
    broker, topic = opened(kafka.bootstrap), new_name()
    with pytest.raises(BrokerError, match=f"writing to {topic}: .*[Uu]nknown topic"):
        append(broker, topic, numbers(10))


@pytest.mark.parametrize("code, fix", [(29, "WRITE on the topic"), (31, "IDEMPOTENT_WRITE on the cluster")])
def test_a_refused_identity_says_what_to_allow(
    damaging: tuple[KafkaServer, Proxy], opened: Callable[..., KafkaBroker], code: int, fix: str
) -> None:
    """Codes of KIP-98: the topic's permission and the cluster's."""
    server, between = damaging
    broker = opened(f"127.0.0.1:{between.port}")

    def refuse(answer: bytes) -> bytes:  # after the correlation id, a byte of tags and the throttle time
        return answer[:9] + struct.pack(">h", code) + answer[11:]

    between.damages[_INIT_PRODUCER] = refuse
    try:
        with pytest.raises(Refused, match=fix):
            append(broker, new_name(), numbers(1))
    finally:
        between.damages.clear()
