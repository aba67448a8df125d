"""The whole way on a real Kafka: meters and writers as processes that are killed at random, and the oracle's totals."""

import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

import pytest

from tests import forked, harness, streams
from tests.kafka.meter_process import POINTS, Trip
from tests.kafka.stream import PATIENCE_SECONDS, SMALL, Stream, eventually
from tests.lake import lakes

pytestmark = pytest.mark.kafka

KILLS = 6
SEED_ENVIRONMENT = "TOKENOMETER_TEST_LAKE_SEED"
HASTE = {"session.timeout.ms": "6000", "transaction.timeout.ms": "4000", "heartbeat.interval.ms": "500"}


class LakeProcess:
    """`tokenometer lake`, as an operator starts it."""

    def __init__(self, stream: Stream, folder: pathlib.Path, *more: str) -> None:
        self._errors = tempfile.TemporaryFile()
        usage, live, _ = stream.outputs
        settings = {
            "bootstrap": stream.bootstrap, "warehouse": str(folder), "table": lakes.TABLE, "usage-topic": usage,
            "live-topic": live, "group": stream.group, "writers": f"{stream.group}-lake", "commit-interval": "0.2",
            "log-format": "text",
        }  # fmt: skip
        arguments = [text for name, value in settings.items() for text in (f"--{name}", value)]
        arguments += [text for name, value in HASTE.items() for text in ("--kafka", f"{name}={value}")]
        program = "from tokenometer.processor.cli.__main__ import main; main()"
        self.process = forked.Popen(
            [sys.executable, "-c", program, "lake", *arguments, *more], stdout=subprocess.PIPE, stderr=self._errors
        )

    @property
    def errors(self) -> str:
        return os.pread(self._errors.fileno(), 1 << 24, 0).decode(errors="replace")

    def wait(self) -> str:
        """Until it ends by itself; what it said."""
        said, _ = self.process.communicate(timeout=PATIENCE_SECONDS)
        errors = self.errors
        self._errors.close()
        assert self.process.returncode == 0, errors
        return said.decode()

    def end(self, number: signal.Signals) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)
        self.process.communicate(timeout=PATIENCE_SECONDS)
        errors = self.errors
        self._errors.close()
        assert self.process.returncode in (0, -number), errors


def run_and_kill(stream: Stream, folder: pathlib.Path) -> harness.Rows:
    """Two writers and a meter that are killed again and again; in the end all is in. The oracle's rows."""
    seed = int(os.environ.get(SEED_ENVIRONMENT, random.randrange(1 << 32)))
    print(f"seed {seed}: set {SEED_ENVIRONMENT} to it to draw the same kills again")
    draw = random.Random(seed)
    lakes.make_table(folder)
    writers = [LakeProcess(stream, folder) for _ in range(2)]
    try:
        with stream.flowing():
            for _ in range(KILLS):
                trip = Trip(draw.choice(POINTS), draw.randint(1, 4), delay_ms=draw.uniform(0, 10))
                meter = stream.meter(trip=trip, engine=SMALL)
                time.sleep(draw.uniform(0.5, 4))
                number = draw.randrange(2)
                writers[number].end(signal.SIGKILL)
                writers[number] = LakeProcess(stream, folder)
                meter.wait_for_end(-signal.SIGKILL)
            stream.meter(engine=SMALL).wait_for_count()
        stream.settle()
        stream.stop()
        oracle, _ = streams.expected(stream.broker)
        wanted = {key: list(row) for key, row in oracle.rows.items()}
        table, requests = lakes.make_table(folder), sum(row[0] for row in wanted.values())

        def all_in() -> bool:
            ended = [writer.errors for writer in writers if writer.process.poll() is not None]
            assert not ended, ended
            return sum(row.requests for row in table.sums_by_part().values()) >= requests

        eventually(all_in, f"{requests} requests in the table, seed {seed}", PATIENCE_SECONDS)
    finally:
        for writer in writers:
            writer.end(signal.SIGTERM)
    return wanted


def test_meters_and_writers_are_killed_and_every_row_is_there_once(stream: Stream, tmp_path: pathlib.Path) -> None:
    wanted = run_and_kill(stream, tmp_path)
    table = lakes.make_table(tmp_path)
    assert lakes.sums_of(lakes.rows_of(table)) == wanted
    state = table.state()
    assert state is not None and state.sums == {}, "every part is in for all partitions"
    assert "0 rows in 0 commits" in LakeProcess(stream, tmp_path, "--once").wait()
    checked = LakeProcess(stream, tmp_path, "--check").wait()
    assert f"{sum(row[0] for row in wanted.values()):,} requests" in checked and "0 parts are not in" in checked
    assert "small files have become" in LakeProcess(stream, tmp_path, "--compact").wait()
    assert lakes.sums_of(lakes.rows_of(table)) == wanted
    for name in tmp_path.rglob("*.parquet"):
        os.utime(name, (0, 0))
    assert "that no snapshot has are deleted" in LakeProcess(stream, tmp_path, "--clean", "1").wait()
    assert lakes.sums_of(lakes.rows_of(table)) == wanted
    assert len(list(tmp_path.rglob("*.parquet"))) == len(set(table.load().inspect.all_files()["file_path"].to_pylist()))
