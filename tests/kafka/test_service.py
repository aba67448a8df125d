"""`tokenometer meter` as an operator has it: its health is what is true, and it ends when it is told to."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence

import pytest

from tests.kafka.service import Service
from tests.kafka.stream import PATIENCE_SECONDS, Stream, eventually
from tests.kafka_server import ENVIRONMENT, KafkaServer
from tokenometer.processor.broker import BEGINNING, BrokerError, Place
from tokenometer.processor.broker.kafka import KafkaBroker

pytestmark = pytest.mark.kafka


class Holder:
    """Another process's member of the group."""

    def assigned(self, places: Sequence[Place]) -> dict[Place, int]:
        return dict.fromkeys(places, BEGINNING)

    def revoked(self, places: Sequence[Place]) -> None: ...

    def lost(self, places: Sequence[Place]) -> None: ...


def test_a_meter_whose_name_another_member_has_is_not_healthy_and_says_so(
    stream: Stream, start: Callable[..., Service]
) -> None:
    """With KIP-848 the brokers refuse it; it used to go on in no group, with /healthz ok and no lag."""
    broker = KafkaBroker(stream.bootstrap, {"group.protocol": "consumer"})
    holder = broker.consumer(stream.group, [stream.input], Holder(), stream.named("meter-0"))
    eventually(lambda: holder.poll(0.1, 1) or holder.assignment(), "partitions", PATIENCE_SECONDS)
    done = threading.Event()

    def hold() -> None:
        while not done.is_set():
            holder.poll(0.1, 100)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        stream.append(stream.lines(500))
        service = start(stream, "--kafka", "group.protocol=consumer", "--log-format", "text")
        eventually(lambda: service.health()[0], "an answer", PATIENCE_SECONDS)
        eventually(lambda: service.health()[0] == 503, "it to be not healthy", 20)
        eventually(lambda: "no partition, though the group" in service.health()[1], "the reason", 20)
        assert "not healthy: no partition, though the group" in service.log
        assert "is gone, and its session has not ended" in service.log
        assert service.lag() == 500
    finally:
        done.set()
        thread.join()
        holder.close()
    eventually(lambda: service.health() == (200, "ok"), "it to be healthy", PATIENCE_SECONDS)
    stream.settle()
    eventually(lambda: service.lag() == 0, "no lag", PATIENCE_SECONDS)
    assert "healthy again" in service.log
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(PATIENCE_SECONDS) == 0


def test_a_spare_meter_is_healthy(stream: Stream, start: Callable[..., Service]) -> None:
    others = [stream.meter(f"other-{number}") for number in range(3)]
    eventually(lambda: all(meter.held for meter in others), "partitions", PATIENCE_SECONDS, others)
    service = start(stream, "--name", stream.named("meter-9"))
    eventually(lambda: service.health()[0] == 200, "an answer", PATIENCE_SECONDS)
    begun = time.monotonic()
    while time.monotonic() - begun < 16:
        assert service.health() == (200, "ok"), service.log
        time.sleep(0.5)


def caught_up(stream: Stream) -> bool:
    """For a while after it was frozen, the broker is no coordinator."""
    with contextlib.suppress(BrokerError):
        return not stream.behind()
    return False


def test_a_meter_that_is_told_to_end_while_kafka_is_frozen_ends(
    start: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its commit, and its answer to the group, would wait for longer than any supervisor does."""
    if os.environ.get(ENVIRONMENT):
        pytest.skip(f"freezes the broker, and {ENVIRONMENT} names one that is not ours")
    with KafkaServer(quick=True) as server:
        stream = Stream(server, monkeypatch, 3, True)
        service = start(stream)
        stream.append(stream.lines(300))
        stream.settle()
        assert server.pid is not None
        # Between two commits: between a commit's decision and its markers, a broker that is alone and loses its
        # session (Kafka 4.4.0) never writes them.
        os.kill(server.pid, signal.SIGSTOP)
        try:
            eventually(lambda: service.health()[0] == 503, "it to be not healthy", 20)
            service.process.send_signal(signal.SIGTERM)
            assert service.process.wait(30) in (0, 1), service.log
        finally:
            os.kill(server.pid, signal.SIGCONT)
        again = start(stream)
        stream.append(stream.lines(300))
        eventually(lambda: caught_up(stream), "all to be committed", PATIENCE_SECONDS)
        again.process.send_signal(signal.SIGTERM)
        assert again.process.wait(PATIENCE_SECONDS) == 0
        stream.audit()
        stream.close()


# --- Messages larger than a batch ---


def test_messages_of_20_megabytes_are_counted_exactly(stream: Stream, start: Callable[..., Service]) -> None:
    """The topic of dead letters takes a megabyte, as by default: what it refuses would stop every meter."""
    from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource

    admin = AdminClient({"bootstrap.servers": stream.bootstrap})

    def set_limit(topic: str, size: int) -> None:
        entry = ConfigEntry("max.message.bytes", str(size), incremental_operation=AlterConfigOpType.SET)
        resource = ConfigResource(ConfigResource.Type.TOPIC, topic, incremental_configs=[entry])
        for done in admin.incremental_alter_configs([resource]).values():
            done.result(20)

    set_limit(stream.input, 30 << 20)
    set_limit(stream.outputs[2], 1_048_588)
    lines = stream.lines(66_000)
    large = b"\n".join([*lines[:30_000], b"z" * 3_000_000, b"[" + b"1," * 470_000 + b"1]", *lines[30_000:]])
    assert len(large) > 20_000_000
    stream.append([*stream.lines(100), large, *stream.lines(100)])
    stream.append([large])  # all of it is duplicates, where it lies in the same partition
    service = start(stream)
    stream.settle()
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(PATIENCE_SECONDS) == 0, service.log
    assert "messages of up to 31457280 bytes" in service.log
    found = stream.audit()
    assert found.tallies["read"] == 200 + 2 * (len(lines) + 2)
    assert sum(isinstance(letter[5], tuple) for letter in found.letters) == 4
