"""The meter on the memory broker: what it commits is what the oracle finds in the input topics."""

import itertools
import threading
import time
from collections.abc import Callable

import pytest

from tests import harness, streams
from tokenometer.kernels.target import HostTarget
from tokenometer.processor.broker.memory import MemoryBroker
from tokenometer.processor.load import synth
from tokenometer.processor.load.profile import Profile

START_MS = 1_795_000_000_000


def log_lines(records: int, seed: int = 1, **shares: float) -> list[bytes]:
    profile = Profile(
        records=records, seed=seed, users=50, start_ms=START_MS, **{"duplicates": 0.05, "malformed": 0.03} | shares
    )
    return b"".join(synth.generate(profile)).splitlines(keepends=True)


def append(broker: MemoryBroker, lines: list[bytes], lines_per_message: int = 1, step_ms: int = 10) -> None:
    values = [b"".join(lines[k : k + lines_per_message]) for k in range(0, len(lines), lines_per_message)]
    times = streams.times_of(START_MS, len(values), step_ms)
    broker.append(streams.INPUT, values, keys=[b"%d" % (k % 7) for k in range(len(values))], times=times)
    broker.flush()


def steps(meter, count: int = 30) -> None:
    for _ in range(count):
        meter.step()


def waited(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def is_read(broker: MemoryBroker) -> bool:
    positions, extents = broker.committed(streams.GROUP, [streams.INPUT]), broker.extents([streams.INPUT])
    return {place: position and position.offset for place, position in positions.items()} == {
        place: extent.end for place, extent in extents.items()
    }


@pytest.fixture
def broker() -> MemoryBroker:
    broker = MemoryBroker(patience_seconds=0)
    streams.make_topics(broker, partitions=3)
    return broker


@pytest.mark.parametrize("lines_per_message", [1, 20])
def test_a_stream_is_metered_exactly(broker, lines_per_message) -> None:
    append(broker, log_lines(2000), lines_per_message)
    stop = itertools.chain([False] * 30, itertools.repeat(True))
    streams.make_meter(broker).run(lambda: next(stop))
    found = streams.assert_exact(broker)
    assert found.parts == 1 and found.tallies["duplicates"] > 0 and found.tallies["rejected"] > 0


def test_counting_goes_on_while_a_full_part_is_committed(broker) -> None:
    append(broker, log_lines(3000))
    small = {"rows": 256, "cells": 256, "texts": 512, "arena_bytes": 1 << 15, "batch_bytes": 4000, "tile_records": 16}
    engine = harness.make_engine(HostTarget(), **small, dedup_horizon_ms=streams.HORIZON_MS)
    meter = streams.make_meter(broker, inline=False, engine=engine)
    write, may_write, enough = meter._write, threading.Event(), threading.Event()

    def slowly(snapshot) -> None:
        assert may_write.wait(60)
        write(snapshot)

    meter._write = slowly  # type: ignore[method-assign]
    thread = threading.Thread(target=meter.run, args=(enough.is_set,))
    thread.start()
    waited(lambda: engine.parts_opened > 1, "the engine waits for the first part's commit")
    may_write.set()
    waited(lambda: is_read(broker), "not all was committed")
    enough.set()
    thread.join()
    assert streams.assert_exact(broker).parts > 3


def test_a_commit_has_what_waits_for_company(broker) -> None:
    append(broker, log_lines(50))
    meter = streams.make_meter(broker, commit_interval_ms=0, flush_ms=3_600_000)
    meter.open()
    steps(meter)
    assert is_read(broker)
    meter.close()
    streams.assert_exact(broker)


def test_a_partition_without_messages_gets_a_position(broker) -> None:
    stop = itertools.chain([False] * 3, itertools.repeat(True))
    streams.make_meter(broker).run(lambda: next(stop))
    assert all(position.offset == 0 for position in broker.committed(streams.GROUP, [streams.INPUT]).values())


def test_a_meter_that_ends_while_the_group_goes_on_without_it_ends_well(caplog) -> None:
    """Several meters are started again at once: its last commit is of a generation that is over."""
    now_ms = [START_MS]
    broker = MemoryBroker(patience_seconds=0, clock=lambda: now_ms[0])
    streams.make_topics(broker, partitions=3)
    append(broker, log_lines(600))
    other = streams.make_meter(broker, "meter-1", commit_interval_ms=0, flush_ms=0)
    other.open()
    polls = itertools.count()

    def stopped() -> bool:
        if next(polls) < 30:
            other.step()
            return False
        append(broker, log_lines(300, seed=2))
        leaver.step()
        for _ in range(3):  # its session is over, and that of the other one is not
            now_ms[0] += 30_000
            other.step()
        return True

    leaver = streams.make_meter(broker, commit_interval_ms=3_600_000, flush_ms=0)
    leaver.run(stopped)
    assert [record.message for record in caplog.records if "others will count it" in record.message]
    steps(other)
    other.close()
    assert is_read(broker)
    streams.assert_exact(broker)


def test_duplicates_are_known_after_a_crash(broker) -> None:
    lines = log_lines(600)
    append(broker, lines)
    first = streams.make_meter(broker, commit_interval_ms=0, flush_ms=0)
    first.open()
    steps(first)
    append(broker, lines)  # all of them again
    second = streams.make_meter(broker, run="again", commit_interval_ms=0, flush_ms=0)
    second.open()  # the same name takes over
    steps(second)
    second.close()
    found = streams.assert_exact(broker)
    assert found.tallies["duplicates"] >= 600 * 0.9
    assert all(len(ranges) == 2 for ranges in found.ranges.values()) and found.parts == 2
