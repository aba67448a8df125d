"""A stream for tests with meters of their own: topics, a group, an endless log, and what has to hold at the end."""

import contextlib
import itertools
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from rich.console import Console

from tests import streams
from tests.kafka.meter_process import MeterProcess, Spec, Trip
from tests.kafka_server import KafkaServer
from tokenometer.processor import verify
from tokenometer.processor.broker import Place
from tokenometer.processor.broker.kafka import KafkaBroker
from tokenometer.processor.load import synth
from tokenometer.processor.load.profile import Profile
from tokenometer.processor.verify.report import render
from tokenometer.schemas import mapping as mappings

PATIENCE_SECONDS = 90
START_MS = (
    int(time.time()) // 86_400 - 1
) * 86_400_000  # of the records: yesterday, which no bound of the past rejects
CLIENT = {
    "session.timeout.ms": "6000",
    "transaction.timeout.ms": "4000",
    "heartbeat.interval.ms": "500",
    "topic.metadata.refresh.interval.ms": "500",
}
HASTY = {**CLIENT, "session.timeout.ms": "3000", "transaction.timeout.ms": "1500"}
SETTINGS = {"commit_interval_ms": 150, "idle_interval_ms": 1000, "flush_ms": 20}
# Tables that are full after a second or two of these streams, so that parts end by themselves as well.
SMALL = {"rows": 512, "cells": 512, "texts": 1024, "windows": 16, "arena_bytes": 1 << 16, "batch_bytes": 1 << 13}


class Stream:
    """Topics, a group, an endless log with duplicates and malformed records, and the meters of a test."""

    def __init__(self, kafka: KafkaServer, monkeypatch: pytest.MonkeyPatch, partitions: int, outputs: bool) -> None:
        stem = f"meter-{uuid.uuid4().hex[:8]}"
        for name in ("INPUT", "USAGE", "LIVE", "REJECTED", "GROUP"):
            monkeypatch.setattr(streams, name, f"{stem}-{getattr(streams, name)}")
        self.input, self.group = streams.INPUT, streams.GROUP
        self.mapping = "native"
        self.outputs = streams.USAGE, streams.LIVE, streams.REJECTED
        self.bootstrap = kafka.bootstrap
        self.broker = KafkaBroker(kafka.bootstrap)
        if outputs:
            streams.make_topics(self.broker, partitions, [self.input])
        else:
            self.broker.create_topic(self.input, partitions, {})
        self.meters: list[MeterProcess] = []
        self.registry: str | None = None  # the URL of a Schema Registry
        self.log = endless(START_MS)

    def meter(self, name: str = "meter-0", trip: Trip | None = None, **options: Any) -> MeterProcess:
        """One that runs; `options` are fields of its Spec."""
        options = {"settings": SETTINGS, "kafka": CLIENT, "registry": self.registry, **options}
        spec = Spec(self.bootstrap, self.group, name, {self.input: self.mapping}, self.outputs, trip=trip, **options)
        self.meters.append(MeterProcess(spec))
        return self.meters[-1]

    def named(self, meter: str) -> str:
        """Of a meter that has its name as its transactional id, which no other test may have on this broker."""
        return f"{self.group}-{meter}"

    # The log

    def append(self, values: Sequence[bytes | None], broker: KafkaBroker | None = None) -> None:
        """Keyed by user, so that a re-sent request meets its first."""
        broker = broker or self.broker
        broker.append(self.input, values, [key_of(value) for value in values])
        broker.flush()

    def lines(self, count: int) -> list[bytes]:
        return list(itertools.islice(self.log, count))

    @contextlib.contextmanager
    def flowing(self, per_second: int = 600) -> Iterator[None]:
        """The log goes on meanwhile. What cannot be written at the moment is written later."""
        done = threading.Event()
        failures: list[BaseException] = []

        def flow() -> None:
            broker = KafkaBroker(self.bootstrap)
            try:
                while not done.wait(0.05):
                    self.append(self.lines(per_second // 20), broker)
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=flow)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
        assert not failures, failures

    # What became of it

    def behind(self) -> list[Place]:
        """Partitions with messages that nobody has committed; transaction marks are none."""
        committed = self.broker.committed(self.group, [self.input])
        found = []
        for place, extent in self.broker.extents([self.input]).items():
            position = committed[place]
            begin = position.offset if position else extent.begin
            if position is None or any(True for _ in self.broker.read(place, begin, extent.end)):
                found.append(place)
        return found

    def settle(self, seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until all that was appended is committed."""
        eventually(lambda: not self.behind(), "all to be committed", seconds, self.meters)

    def stop(self) -> None:
        for meter in self.meters:
            if not meter.ended:
                meter.stop()

    def audit(self) -> streams.Outcome:
        """Stop what still runs, and look at what was committed, as others would."""
        self.stop()
        report = self.verify()
        assert report.clean, text_of(report)
        found = streams.assert_exact(self.broker, {self.input: self.mapping})
        assert found.tallies["read"] == report.tally.read
        return found

    def verify(self, **settings: Any) -> verify.Report:
        wanted = {self.input: mappings.resolve(self.mapping)}
        registry = (("url", self.registry),) if self.registry else None
        told = verify.VerifySettings(*self.outputs, processes=1, registry=registry, **settings)
        return verify.verify(self.broker, self.group, wanted, told)

    def close(self) -> None:
        for meter in self.meters:
            meter.close()
        self.broker.close()


def endless(start_ms: int) -> Iterator[bytes]:
    """A log that begins then."""
    profile = Profile(
        records=10_000_000, seed=3, users=40, models=3, chips=2, start_ms=start_ms, duplicates=0.05, malformed=0.03
    )
    return itertools.chain.from_iterable(chunk.splitlines() for chunk in synth.generate(profile))


def text_of(report: verify.Report) -> str:
    console = Console(width=200, color_system=None)
    with console.capture() as captured:
        console.print(render(report))
    return captured.get()


def key_of(value: bytes | None) -> bytes:
    _, found, rest = (value or b"").partition(b'"user":"')
    return rest.partition(b'"')[0] if found else b"nobody"


def eventually(condition: Callable[[], Any], what: str, seconds: float, meters: Sequence[MeterProcess] = ()) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        for meter in meters:
            meter.check()
        tails = [meter.tail() for meter in meters if not meter.ended]
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}: {tails}"
        time.sleep(0.2)
