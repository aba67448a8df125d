"""Lines that are read while an earlier batch is counted: whatever comes next, the answers are those of one thread."""

import gc
import os
import pathlib
import random
import types

import pytest

from tests import harness, mutate
from tests.bad_input import GOOD, TIME_MS
from tests.harness import Piece, shipped
from tokenometer.kernels import target as targets
from tokenometer.kernels.target import DeviceError, HostTarget

SIZES = harness.LARGE | {"tile_records": 4096}
THREADS = pathlib.Path("/proc/self/task")


class Watched(HostTarget):
    """A CPU of several cores, whatever this machine has."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[int] = []  # read beside, by call

    @property
    def reads_ahead(self) -> bool:
        return True

    def count_beside(self, job, first, count, next_job, lines):
        super().count_beside(job, first, count, next_job, lines)
        self.lines.append(lines)


def log_of(name: str, seed: int, count: int = 1000) -> list[bytes]:
    return list(mutate.lines(random.Random(seed), name, shipped(name).oracle, count))


@pytest.mark.parametrize("name", ["native", "openai-chat", "anthropic", "otel-genai"])
def test_hostile_lines_are_read_alike_by_two_threads(name):
    """Several blocks of lines in a batch, so that both threads read some."""
    target = Watched()
    pieces = [Piece(log_of(name, seed)) for seed in range(5)]
    harness.check(harness.make_engine(target, **SIZES), shipped(name), pieces)
    assert target.lines == [1000] * 2, "two of five pieces were foretold"


def test_a_part_that_is_full_before_the_last_tile_reads_the_next_batch_later():
    target = Watched()
    lines = [GOOD.replace(b"alice", b"user-%d" % k) for k in range(60)]
    pieces = [Piece(lines[at : at + 6]) for at in range(0, 60, 6)]
    run = harness.check(harness.make_engine(target, **harness.TINY), shipped(), pieces)
    assert run.parts > 1 and target.lines == [6] * 6


def test_what_was_foretold_may_never_come():
    """Another batch comes, twice, then the one that was foretold first; each is counted as it is."""
    target, mapping = Watched(), shipped()
    engine = harness.make_engine(target, **SIZES)
    run = harness.Run(engine, mapping)
    logs = [log_of("native", seed) for seed in range(4)]
    run.feed(logs[0], following=Piece(logs[1]))
    for at in (2, 3, 1):
        run.ahead = None
        run.feed(logs[at])
    harness.assert_same(run, harness.expected(mapping, [Piece(logs[at]) for at in (0, 2, 3, 1)]))
    assert len(target.lines) == 1


def test_the_greatest_time_of_a_batch_counts_when_the_batch_does():
    engine, mapping = harness.make_engine(Watched(), **SIZES), shipped()
    early, late = ([GOOD.replace(b"%d" % TIME_MS, b"%d" % (TIME_MS + more))] for more in (0, 5000))
    assert early != late
    run = harness.Run(engine, mapping)
    run.feed(early, [TIME_MS], "a", following=Piece(late, [TIME_MS], "b"))
    assert engine.partition_state("a").watermark_ms == TIME_MS
    run.feed(late, [TIME_MS], "b")
    assert engine.partition_state("b").watermark_ms == TIME_MS + 5000


def test_a_copy_of_the_process_reads_ahead_with_a_thread_of_its_own():
    target = Watched()
    pieces = [Piece(log_of("native", seed)) for seed in range(3)]
    harness.check(harness.make_engine(target, **SIZES), shipped(), pieces)
    child = os.fork()
    if child == 0:
        try:
            before = len(target.lines)
            harness.check(harness.make_engine(target, secret_seed=2, **SIZES), shipped(), pieces)
            os._exit(0 if len(target.lines) > before else 2)
        except BaseException:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


def test_the_thread_ends_with_its_target():
    gc.collect()
    before = len(list(THREADS.iterdir()))
    target = Watched()
    harness.check(harness.make_engine(target, **SIZES), shipped(), [Piece(log_of("native", seed)) for seed in range(3)])
    assert len(list(THREADS.iterdir())) == before + 1
    del target
    gc.collect()
    assert len(list(THREADS.iterdir())) == before


def test_a_system_that_starts_no_thread_is_named(monkeypatch):
    target = Watched()
    monkeypatch.setattr(target, "_library", types.SimpleNamespace(open_ahead=lambda: None))
    with pytest.raises(DeviceError, match="raise the limit of processes"):
        target._open_ahead()


def test_one_core_reads_nothing_ahead(monkeypatch):
    before = len(list(THREADS.iterdir()))
    monkeypatch.setattr(targets, "_CORES", 1)
    target = HostTarget()
    assert not target.reads_ahead
    harness.check(harness.make_engine(target), shipped(), [Piece([GOOD]), Piece([GOOD]), Piece([GOOD])])
    assert len(list(THREADS.iterdir())) == before
