"""Meters whose groups the brokers lead (KIP-848, `group.protocol=consumer`), and clients that librdkafka gives up."""

import random
import signal
import time
from collections.abc import Callable

import pytest

from tests.kafka.meter_process import POINTS, Trip
from tests.kafka.stream import PATIENCE_SECONDS, SMALL, Stream, eventually
from tests.kafka_server import KafkaServer
from tokenometer.processor.broker import Dead
from tokenometer.processor.broker.kafka import KafkaBroker

pytestmark = pytest.mark.kafka

CLIENT = {
    "group.protocol": "consumer",
    "transaction.timeout.ms": "4000",
    "topic.metadata.refresh.interval.ms": "500",
}


def test_a_meter_that_is_killed_counts_on_when_its_session_is_over(stream: Stream) -> None:
    """Until then the brokers refuse its name, and librdkafka gives each client up that asks for it."""
    with stream.flowing():
        first = stream.meter(kafka=CLIENT)
        first.wait_for_count()
        first.kill()
        again = stream.meter(kafka=CLIENT)
        again.wait_for_count()
        assert any(event["kind"] == "Dead" for event in again.of("recovering"))
        assert "is gone, and its session has not ended (group.consumer.session.timeout.ms)" in again.errors
    stream.settle()
    stream.audit()


def test_a_client_that_died_says_so_until_it_is_closed(kafka: KafkaServer, stream: Stream) -> None:
    broker = KafkaBroker(kafka.bootstrap, CLIENT)
    nobody = _Nobody()
    holder = broker.consumer(stream.group, [stream.input], nobody, "a-name")
    eventually(lambda: holder.poll(0.1, 1) or holder.assignment(), "partitions", PATIENCE_SECONDS)
    second = broker.consumer(stream.group, [stream.input], nobody, "a-name")
    with pytest.raises(Dead):
        eventually(lambda: second.poll(0.1, 1), "an error", PATIENCE_SECONDS)
    for _ in range(3):
        with pytest.raises(Dead):
            second.poll(0.1, 1)
    second.close()
    holder.close()
    third = broker.consumer(stream.group, [stream.input], nobody, "a-name")
    eventually(lambda: third.poll(0.1, 1) or third.assignment(), "partitions", PATIENCE_SECONDS)
    third.close()
    broker.close()


class _Nobody:
    def assigned(self, places):
        return dict.fromkeys(places, 0)

    def revoked(self, places):
        pass

    def lost(self, places):
        pass


def test_an_assignor_that_the_brokers_do_not_have_ends_the_meter_with_the_fix(stream: Stream) -> None:
    meter = stream.meter(kafka={**CLIENT, "group.remote.assignor": "nonsense"})
    meter.wait_for_end(1)
    assert "error: Refused" in meter.errors
    assert "set group.remote.assignor to one that the brokers have: uniform or range" in meter.errors


def test_a_meter_that_is_killed_at_each_point_of_a_commit(stream: Stream) -> None:
    with stream.flowing():
        for point in random.Random(1).sample(POINTS, 3):
            meter = stream.meter(trip=Trip(point, commit=3), kafka=CLIENT)
            meter.wait_for_end(-signal.SIGKILL)
        stream.meter(kafka=CLIENT).wait_for_count()
    stream.settle()
    assert stream.audit().parts > 3


def test_meters_come_and_go(make_stream: Callable[..., Stream]) -> None:
    stream = make_stream(partitions=6)

    def shared(*meters) -> None:
        def fairly() -> bool:
            held = [meter.held for meter in meters]
            return sum(map(len, held)) == 6 and all(len(places) == 6 // len(meters) for places in held)

        eventually(fairly, f"{len(meters)} meters to share", PATIENCE_SECONDS, meters)
        for meter in meters:
            meter.wait_for_count(since=len(meter.events))

    with stream.flowing():
        first, second = (stream.meter(name, kafka=CLIENT) for name in ("meter-0", "meter-1"))
        shared(first, second)
        third = stream.meter("meter-2", kafka=CLIENT, engine=SMALL)
        shared(first, second, third)
        second.stop()
        third.kill()
        shared(first)
    stream.settle()
    stream.audit()


def test_a_frozen_meter_that_comes_back_after_its_session_adds_nothing(stream: Stream) -> None:
    with stream.flowing():
        zombie = stream.meter(trip=Trip("produced", commit=3, signal="SIGSTOP"), kafka=CLIENT)
        zombie.wait_until_stopped()
        other = stream.meter("meter-1", kafka=CLIENT)
        other.wait_until(lambda: len(other.held) == 3, "the zombie's partitions", PATIENCE_SECONDS)
        other.wait_for_count(since=len(other.events))
        zombie.signal(signal.SIGCONT)
        zombie.wait_for("recovered")
        eventually(lambda: zombie.held and other.held, "both to have partitions", PATIENCE_SECONDS, [other, zombie])

        zombie.wait_for_count(since=len(zombie.events))
    stream.settle()
    stream.audit()


def test_of_two_processes_of_one_name_the_newer_goes_on(stream: Stream) -> None:
    with stream.flowing():
        older = stream.meter(kafka=CLIENT)
        older.wait_for_count()
        newer = stream.meter(kafka=CLIENT)
        older.wait_for_end(1)
        assert "error: Fenced" in older.errors
        begun = time.monotonic()
        newer.wait_for_count()
        assert time.monotonic() - begun < PATIENCE_SECONDS
    stream.settle()
    stream.audit()
