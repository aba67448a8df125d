"""What the simulation found, each as small as it gets."""

import numpy as np
import orjson
import pytest

from tests import harness, streams
from tokenometer.kernels.target import HostTarget
from tokenometer.kernels.values import PartitionState
from tokenometer.processor.broker import BrokerError, Messages, Offset, Place
from tokenometer.processor.broker.memory import MemoryBroker
from tokenometer.processor.meter.counting import Counting, Intake, Start
from tokenometer.processor.meter.meter import Clock

START_MS = 1_795_000_000_000
PLACE = Place(streams.INPUT, 0)


class Stage:
    def __init__(self, horizon_ms: int = 600_000) -> None:
        self.now_ms, self.horizon_ms = START_MS, horizon_ms
        self.broker = MemoryBroker(
            clock=lambda: self.now_ms, session_timeout_ms=10_000, transaction_timeout_ms=6_000, patience_seconds=0
        )
        streams.make_topics(self.broker)

    def meter(self, name: str = "meter-0", run: str = "", **settings):
        engine = harness.make_engine(HostTarget(), dedup_horizon_ms=self.horizon_ms)
        clock = Clock(lambda: self.now_ms, lambda: self.now_ms, lambda seconds: None)
        settings = {"flush_ms": 0, "commit_interval_ms": 0} | settings
        meter = streams.make_meter(self.broker, name, run=run, engine=engine, clock=clock, **settings)
        meter.open()
        return meter

    def append(self, *records: tuple[int, str]) -> None:
        for after_ms, request_id in records:
            self.broker.append(streams.INPUT, [record(request_id)], times=[START_MS + after_ms])

    def assert_exact(self) -> None:
        streams.assert_exact(self.broker, horizon_ms=self.horizon_ms)


def record(request_id: str, user: str = "u") -> bytes:
    fields = {"user": user, "model": "m", "chip": "c", "input_tokens": 1, "output_tokens": 2, "timestamp": START_MS}
    return orjson.dumps(fields | {"request_id": request_id})


def steps(*meters, count: int = 4) -> None:
    for _ in range(count):
        for meter in meters:
            meter.step()


def test_a_partition_that_came_back_before_its_first_message_is_listed_once() -> None:
    stage = Stage()
    first = stage.meter()
    steps(first)
    second = stage.meter("meter-1")
    steps(second, first, count=3)  # revoked and assigned again, in the same part
    stage.append((0, "a"))
    steps(first, second)
    stage.assert_exact()


def test_partitions_that_were_lost_are_read_again() -> None:
    stage = Stage()
    meter = stage.meter(commit_interval_ms=5_000)
    stage.append((0, "a"))
    steps(meter)
    stage.now_ms += 10_000  # the session runs out before the commit
    steps(meter)
    stage.now_ms += 5_000
    steps(meter)
    stage.assert_exact()


def test_a_restart_knows_the_request_ids_that_the_meter_before_knew() -> None:
    stage = Stage(horizon_ms=1000)
    stage.append((0, "a"), (1000, "a"), (2000, "b"))
    steps(stage.meter(run="first"))
    stage.append((2500, "a"))
    steps(stage.meter(run="second"))
    stage.assert_exact()


@pytest.mark.parametrize("restart", [False, True])
def test_a_restart_changes_no_verdict(restart) -> None:
    stage = Stage(horizon_ms=1000)
    meter = stage.meter(run="first")
    stage.append((0, "a"), (1000, "a"), (2000, "b"))
    steps(meter)
    stage.append((2500, "a"))
    steps(stage.meter(run="second") if restart else meter)
    assert streams.outcome(stage.broker).tallies["duplicates"] == 2


def test_nothing_is_counted_behind_an_intake_that_failed() -> None:
    def commit(snapshot) -> None:
        raise BrokerError("it cannot just now")

    engine = harness.make_engine(HostTarget(), **harness.TINY)
    counting = Counting(engine, "meter", "run", commit)
    mapping = harness.shipped().engine
    counting.begin({PLACE: Start(Offset(0), Offset(0), PartitionState(), "id", mapping)})

    def intake(first: int, count: int) -> Intake:
        values = [record(f"{k}", f"user-{k}") for k in range(first, first + count)]
        times, offsets = np.full(count, START_MS, np.uint64), np.arange(first, first + count)
        return Intake.of(Messages(PLACE, values, times, offsets))

    with pytest.raises(BrokerError):
        counting.take(intake(0, 100))
    before = engine.tally()
    counting.take(intake(100, 1))
    assert engine.tally() == before
