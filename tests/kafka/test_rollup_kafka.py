"""The rollup on a real Kafka: several workers, killed and frozen, over summaries in transactions, some of them aborted.

What is told must become the plainest sum over all summaries (tests/summaries.py), and no total that was ever written to
token-totals may be larger than what had been committed until then.
"""

import contextlib
import itertools
import json
import os
import random
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from confluent_kafka import Producer

from tests import forked
from tests.kafka.stream import Stream
from tests.kafka_server import KafkaServer
from tests.summaries import Fleet
from tests.test_schemas import validator
from tests.test_totals import assert_is_the_sum
from tokenometer.processor.broker import Broker, BrokerError
from tokenometer.processor.broker.kafka import KafkaBroker
from tokenometer.processor.load import synth
from tokenometer.processor.load.profile import Profile
from tokenometer.processor.rollup.worker import CHANGELOG_SETTINGS
from tokenometer.schemas.usage import COUNTERS

pytestmark = pytest.mark.kafka
PARTITIONS = 3
PATIENCE_SECONDS = 120
SESSION_SECONDS = 6  # the least that brokers allow


class Worker:
    """The command, in a process of its own."""

    def __init__(self, bootstrap: str, app: str, live: str, totals: str, before: str = "") -> None:
        """before: what the process does first."""
        self._errors = tempfile.TemporaryFile()
        command = [
            sys.executable, "-c", f"{before}\nfrom tokenometer.processor.cli.__main__ import main; main()", "rollup",
            "--bootstrap", bootstrap, "--app", app, "--live-topic", live, "--totals-topic", totals,
            "--create-topics", "--listen", "", "--session-timeout", str(SESSION_SECONDS),
        ]  # fmt: skip
        self.process = forked.Popen(command, stdout=self._errors, stderr=self._errors)

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._errors.close()

    @property
    def log(self) -> str:
        return os.pread(self._errors.fileno(), 1 << 24, 0).decode(errors="replace")


def last_told(broker: Broker, topic: str) -> dict[str, Any] | None:
    if broker.topics([topic])[topic] is None:
        return None
    told = [
        value
        for place, extent in broker.extents([topic]).items()
        for messages in broker.read(place, max(extent.begin, extent.end - 5), extent.end)  # type: ignore[type-var]
        for value in messages.values
    ]
    return json.loads(told[-1] or b"") if told else None


class Stage:
    """A fleet, its topics, workers, and all that was told."""

    def __init__(self, broker: Broker, bootstrap: str, seed: int) -> None:
        self.broker, self.bootstrap = broker, bootstrap
        self.app, self.live, self.totals = (
            f"rollup-{kind}-{uuid.uuid4().hex[:8]}" for kind in ("app", "live", "totals")
        )
        broker.create_topic(self.live, PARTITIONS, {})
        self.fleet = Fleet(seed, time.time_ns() // 1_000_000, meters=4)
        self.workers: list[Worker] = []
        self._producer = broker.producer(f"{self.live}-fleet")
        self._sent = 0
        self._read = 0

    def start(self, before: str = "") -> Worker:
        self.workers.append(Worker(self.bootstrap, self.app, self.live, self.totals, before))
        return self.workers[-1]

    def work(self, turns: int) -> None:
        """Meters count and commit."""
        for _ in range(turns):
            self.fleet.now_ms = time.time_ns() // 1_000_000
            self.fleet.work(late_ms=600_000)
        self.write()

    def unsent(self) -> list[tuple[bytes, bytes]]:
        """Keys and values."""
        values = [value for _, _, value in self.fleet.log[self._sent :]]
        return [(json.loads(value)["meter"].encode(), value) for value in values]

    def write(self) -> None:
        keys, values = zip(*self.unsent(), strict=True)
        self._producer.begin()
        self._producer.produce(self.live, values, keys)
        self._producer.commit()
        self._sent = len(self.fleet.log)

    def abort(self) -> None:
        """Write it all, and take it back: it stands in the partitions, and does not count."""
        producer = Producer({"bootstrap.servers": self.bootstrap, "transactional.id": f"{self.live}-aborting"})
        producer.init_transactions()
        producer.begin_transaction()
        for key, value in self.unsent():
            producer.produce(self.live, value, key)
        assert producer.flush(PATIENCE_SECONDS) == 0  # else they would be dropped before they are sent
        producer.abort_transaction()
        del self.fleet.log[self._sent :]

    def told(self) -> list[dict[str, Any]]:
        """What came to token-totals since the last look."""
        if self.broker.topics([self.totals])[self.totals] is None:
            return []
        answers = []
        for place, extent in self.broker.extents([self.totals]).items():
            for messages in self.broker.read(place, max(extent.begin, self._read), extent.end):  # type: ignore[type-var]
                answers += [json.loads(value or b"") for value in messages.values]
            self._read = extent.end
        most = sum(row[1] + row[4] for row in self.fleet.truth.values())
        for answer in answers:
            assert answer["windows"]["since_start"]["tokens"]["total_tokens"] <= most, "counted twice"
        return answers

    def converges(self) -> dict[str, Any]:
        """Waits until the truth is told: a window's cells may come a moment behind their meter's sums."""
        most = sum(row[1] + row[4] for row in self.fleet.truth.values())
        deadline = time.monotonic() + PATIENCE_SECONDS
        last: dict[str, Any] = {}
        while time.monotonic() < deadline:
            last = ([last] + self.told())[-1]
            if last and last["windows"]["since_start"]["tokens"]["total_tokens"] == most:
                with contextlib.suppress(AssertionError):
                    self.assert_true(last)
                    return last
            for worker in self.workers:
                assert worker.process.poll() is None, worker.log[-3000:]
            time.sleep(0.2)
        found = last and last["windows"]["since_start"]["tokens"]["total_tokens"]
        if found == most:
            self.assert_true(last)
        logs = "\n".join(worker.log[-2000:] for worker in self.workers)
        raise AssertionError(f"{found} was told, {most} is true\n{logs}")

    def assert_true(self, answer: dict[str, Any]) -> None:
        import datetime

        validator("totals").validate(answer)
        at_ms = round(datetime.datetime.fromisoformat(answer["at"]).timestamp() * 1000)
        assert_is_the_sum(answer, self.fleet, at_ms)

    def close(self) -> None:
        for worker in self.workers:
            worker.send(signal.SIGCONT)
            worker.kill()
        self._producer.close()


@pytest.fixture
def stage(kafka: KafkaServer, request: pytest.FixtureRequest) -> Iterator[Stage]:
    broker = KafkaBroker(kafka.bootstrap)
    seed = int(os.environ.get("ROLLUP_SEED", random.randrange(1 << 32)))
    print(f"ROLLUP_SEED={seed}")
    stage = Stage(broker, kafka.bootstrap, seed)
    try:
        yield stage
    finally:
        stage.close()
        broker.close()


def test_totals_are_told_and_a_worker_that_was_stopped_goes_on(stage: Stage) -> None:
    worker = stage.start()
    stage.work(30)
    stage.assert_true(stage.converges())
    worker.send(signal.SIGTERM)
    assert worker.process.wait(PATIENCE_SECONDS) == 0, worker.log[-3000:]
    stage.workers.pop().kill()
    stage.work(30)
    stage.start()
    stage.assert_true(stage.converges())


def test_aborted_summaries_are_not_counted(stage: Stage) -> None:
    stage.start()
    stage.work(10)
    stage.converges()
    before = dict(stage.fleet.truth)
    stage.fleet.truth.clear()  # what follows will never have happened
    for _ in range(20):
        stage.fleet.work()
    stage.abort()
    stage.fleet.truth = before
    for meter in stage.fleet.meters:  # as real meters do: dropped, a new part
        meter.open_part()
    stage.work(10)
    stage.assert_true(stage.converges())


def test_killed_workers_count_everything_once(stage: Stage) -> None:
    """Two workers share the partitions; now and then one of them is killed, and another one starts."""
    stage.start()
    stage.start()
    for turn in range(8):
        for _ in range(6):
            stage.work(5)
            time.sleep(0.2)
        stage.told()
        if turn % 2:
            victim = stage.workers.pop(stage.fleet.draw.randrange(2))
            victim.kill()
            stage.start()
    stage.assert_true(stage.converges())


SLOW_CHANGELOG = """
import asyncio, aiokafka
send = aiokafka.AIOKafkaProducer.send
async def slow(self, topic, *arguments, **named):
    if topic.endswith("changelog"):
        await asyncio.sleep(0.3)
    return await send(self, topic, *arguments, **named)
aiokafka.AIOKafkaProducer.send = slow
"""


# What comes while a worker restores waits in queues, and a poll sees what changed since it was asked for.
SLOW_START = """
import asyncio, aiokafka, tokenometer.processor.rollup.worker
from aiokafka.consumer.fetcher import Fetcher
def delayed(owner, name, seconds):
    method = getattr(owner, name)
    async def slow(*arguments, **named):
        await asyncio.sleep(seconds)
        return await method(*arguments, **named)
    setattr(owner, name, slow)
delayed(Fetcher, "fetched_records", 0.3)
delayed(aiokafka.AIOKafkaConsumer, "seek_to_committed", 1.0)
delayed(aiokafka.AIOKafkaProducer, "send", 0.005)
tokenometer.processor.rollup.worker._WRITING_MAX = 1
"""


@pytest.mark.parametrize("successor", ["", SLOW_START], ids=["", "slow_start"])
def test_nothing_is_committed_before_it_is_kept(stage: Stage, successor: str) -> None:
    """A broker that takes 0.3 s for an entry, and a kill as soon as some offset is committed: of other partitions there
    is none."""
    worker = stage.start(SLOW_CHANGELOG)
    stage.work(40)
    deadline = time.monotonic() + PATIENCE_SECONDS
    committed = False
    while not committed:
        assert time.monotonic() < deadline, worker.log[-3000:]
        time.sleep(0.1)
        with contextlib.suppress(BrokerError):  # the group is not there yet
            committed = any(stage.broker.committed(stage.app, [stage.live]).values())
    stage.workers.pop().kill()
    stage.start(successor)
    stage.assert_true(stage.converges())


def test_a_frozen_worker_that_wakes_up_spoils_nothing(stage: Stage) -> None:
    stage.start()
    frozen = stage.start()
    stage.work(20)
    stage.converges()
    frozen.send(signal.SIGSTOP)
    deadline = time.monotonic() + 2.5 * SESSION_SECONDS
    while time.monotonic() < deadline:
        stage.work(5)
        time.sleep(0.5)
    frozen.send(signal.SIGCONT)
    for _ in range(10):
        stage.work(5)
        time.sleep(0.5)
    stage.assert_true(stage.converges())


def test_the_changelog_is_compacted_and_takes_large_entries(stage: Stage) -> None:
    stage.start()
    stage.work(5)
    stage.converges()
    [state] = stage.broker.topics([f"{stage.app}-entries-changelog"]).values()
    assert state is not None and state.partitions == PARTITIONS
    assert {name: state.settings[name] for name in CHANGELOG_SETTINGS} == CHANGELOG_SETTINGS


@pytest.fixture
def stream(kafka: KafkaServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stream]:
    made = Stream(kafka, monkeypatch, 3, outputs=True)
    yield made
    made.close()


def test_meters_and_rollups_are_killed_and_the_totals_become_the_audits(stream: Stream) -> None:
    """The whole way: a log, meters, summaries, rollups. `verify` adds up the log itself."""
    profile = Profile(
        records=1_000_000, seed=5, users=40, models=3, chips=2, start_ms=time.time_ns() // 1_000_000 - 600_000,
        duplicates=0.05, malformed=0.03, late=0.0,
    )  # fmt: skip
    stream.log = itertools.chain.from_iterable(chunk.splitlines() for chunk in synth.generate(profile))
    draw, live = random.Random(stream.group), stream.outputs[1]
    totals = f"{live}-totals"
    workers = [Worker(stream.bootstrap, f"{live}-app", live, totals) for _ in range(2)]
    names = ["meter-0", "meter-1"]
    meters = {name: stream.meter(name, watch_ms=3000) for name in names}
    try:
        with stream.flowing():
            for _ in range(8):
                time.sleep(draw.uniform(0.5, 2.5))
                if draw.random() < 0.6:
                    name = draw.choice(names)
                    meters[name].kill()
                    meters[name] = stream.meter(name, watch_ms=3000)  # one may be killed while it gives a partition up
                else:
                    workers.pop(draw.randrange(2)).kill()
                    workers.append(Worker(stream.bootstrap, f"{live}-app", live, totals))
        stream.settle()
        stream.stop()
        report = stream.verify()
        assert report.clean
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            told = last_told(stream.broker, totals)
            spans = told["windows"] if told else {}
            found = {name: tuple(spans[name]["tokens"][counter] for counter in COUNTERS) for name in spans}
            if found.get("since_start") == report.expected:
                break
            assert time.monotonic() < deadline, f"{found}\n{report.expected}\n" + workers[-1].log[-3000:]
            time.sleep(0.2)
        assert found["last_24h"] == report.expected
        assert told is not None and told["records"]["read"] == report.tally.read
        assert told["rejects"] == {reason: count for reason, count in report.rejects.items() if count}
    finally:
        for worker in workers:
            worker.kill()
