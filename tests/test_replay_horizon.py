"""A file is counted as a topic would be: request ids are forgotten by the log's own times, whatever the batches."""

import json
import pathlib
import random

import pytest

from tests import harness, streams
from tests.test_replay import ROOMY, SMALL, Results
from tokenometer.kernels.target import HostTarget
from tokenometer.processor.broker import Place
from tokenometer.processor.broker.memory import MemoryBroker
from tokenometer.processor.files import logs, replay
from tokenometer.processor.files.clock import LogClock
from tokenometer.processor.files.logs import LogError
from tokenometer.processor.files.replay import Outlets, ReplaySummary
from tokenometer.processor.records.referee import TIME_END_MS, Referee

HORIZON_MS = 20_000
DAY_MS = 86_400_000
START_MS = 1_795_000_000_000
NATIVE = harness.shipped("native").engine


def line(request: str, time_ms: int | None, user: str = "u", output: int = 1) -> bytes:
    record = {"request_id": request, "timestamp": time_ms, "user": user, "model": "m", "chip": "c"}
    return json.dumps(record | {"input_tokens": 1, "output_tokens": output}).encode()


def sent_again(seed: int, records: int = 3000) -> list[bytes]:
    """Ten records a second, of which some come again within four horizons, a little out of order; and rubbish."""
    rng = random.Random(seed)
    found = [(k * 100, line(f"r-{k}", START_MS + k * 100, f"u-{k % 7}", k % 50)) for k in range(records)]
    for at, text in rng.sample(found, records // 3):
        found.append((at + rng.randrange(4 * HORIZON_MS), text.replace(b"}", b', "again": 1}')))
    for k in range(50):
        found.append((rng.randrange(records * 100), rng.choice([b"", b"{", b"[]", line(f"bad-{k}", None)])))
    return [text for _, text in sorted(found, key=lambda item: item[0] + rng.randrange(1500))]


def medians(lines: list[bytes]) -> list[int]:
    """Each line's message time, the plain way."""
    times = []
    for text in lines:
        try:
            record = json.loads(text)
        except ValueError:
            record = None
        times.append(record.get("timestamp") if isinstance(record, dict) else None)
    known = [time_ms for time_ms in times if time_ms is not None][:5]
    found = []
    for time_ms in times:
        known = [*known, *([] if time_ms is None else [time_ms])][-5:]
        found.append(sorted(known)[2])
    return found


def metered(lines: list[bytes], tmp_path: pathlib.Path, **limits: int) -> tuple[ReplaySummary, Results]:
    log = tmp_path / "log.ndjson"
    log.write_bytes(b"\n".join(lines) + b"\n")
    results = Results()
    settings = {"dedup_horizon_ms": HORIZON_MS, "max_future_skew_ms": TIME_END_MS, **limits}
    engine = harness.make_engine(HostTarget(), **settings)
    outlets = Outlets(rows=results.take, letters=results.letters.extend)
    clock = LogClock(Referee(), NATIVE)
    return replay.replay(engine, logs.LogReader([str(log)]).fill, NATIVE, "run", outlets, clock=clock), results


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("limits", [ROOMY, SMALL], ids=["one", "many batches and parts"])
def test_rows_are_those_of_a_meter_of_the_same_horizon(seed: int, limits: dict[str, int], tmp_path: pathlib.Path):
    lines = sent_again(seed)
    broker = MemoryBroker()
    streams.make_topics(broker, 1)
    broker.append(streams.INPUT, lines, times=medians(lines))
    engine = harness.make_engine(HostTarget(), dedup_horizon_ms=HORIZON_MS)
    meter = streams.make_meter(broker, engine=engine)
    meter.open()
    while not caught_up(broker):
        meter.step()
    meter.close()
    summary, results = metered(lines, tmp_path, **limits)
    told = streams.outcome(broker)
    assert results.rows() == told.rows
    assert summary.tally.duplicates == told.tallies["duplicates"] and summary.tally.counted == told.tallies["counted"]
    forgotten = summary.tally.counted - len({json.loads(text).get("request_id") for text in lines if b"r-" in text})
    assert summary.tally.duplicates > 400 and forgotten > 200, "some were recognised, and some forgotten"


def caught_up(broker: MemoryBroker) -> bool:
    place = Place(streams.INPUT, 0)
    position = broker.committed(streams.GROUP, [streams.INPUT])[place]
    return position is not None and position.offset == broker.extents([streams.INPUT])[place].end


def test_a_clock_that_is_wrong_forgets_nothing_and_a_quiet_day_rejects_nothing(tmp_path: pathlib.Path):
    before = [line(f"r-{k}", START_MS + k) for k in range(10)]
    wrong = [line("wrong", START_MS + 30 * DAY_MS), line("late", START_MS - 30 * DAY_MS)]
    summary, _ = metered([*before, *wrong, *before], tmp_path)
    assert (summary.tally.counted, summary.tally.duplicates, summary.tally.rejected) == (12, 10, 0)
    later = [line(f"r-{k}", START_MS + DAY_MS + k) for k in range(10)]
    summary, _ = metered([*before, *later], tmp_path)
    assert summary.tally.rejected == 0 and summary.tally.counted + summary.tally.duplicates == 20
    assert summary.tally.duplicates <= 2, "the clock follows two records later"


def test_a_log_without_a_time_is_refused(tmp_path: pathlib.Path):
    with pytest.raises(LogError, match="no record of the log's beginning has a time"):
        metered([line("r", None), b"{}"], tmp_path)


def test_an_empty_log_has_no_clock_and_needs_none(tmp_path: pathlib.Path):
    (tmp_path / "log.ndjson").write_bytes(b"")
    clock = LogClock(Referee(), NATIVE)
    summary = replay.replay(
        harness.make_engine(HostTarget()), logs.LogReader([str(tmp_path / "log.ndjson")]).fill, NATIVE, "run",
        Outlets(), clock=clock,
    )  # fmt: skip
    assert summary.tally.read == 0
