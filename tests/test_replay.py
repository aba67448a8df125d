"""A replay of files against the oracle: totals, rows, users and dead letters, in one part or in many."""

import itertools
import pathlib
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from tests import harness, oracle
from tokenometer.kernels.engine import Engine
from tokenometer.kernels.values import UsageRows
from tokenometer.processor.files import logs, replay
from tokenometer.processor.files.replay import Outlets, PlacedLetter, ReplaySummary, Usage
from tokenometer.processor.load import synth
from tokenometer.processor.load.profile import Profile

SYNTH = Profile(
    6_000, seed=7, users=300, rate=40, duplicates=0.03, late=0.01, malformed=0.03, escaped=0.03, prefill=0.2
)
# Room for the whole log, and for what a batch of 4 MiB could bring.
ROOMY = harness.LARGE | {
    "batch_bytes": 1 << 22,
    "rows": 1 << 19,
    "cells": 1 << 18,
    "texts": 1 << 19,
    "windows": 1 << 12,
}
# A batch of the log has 100 records, which may bring 200 rows: a part is closed after a dozen of them.
SMALL = {
    "windows": 1 << 12,
    "batch_bytes": 1 << 15,
    "rows": 1 << 11,
    "cells": 1 << 11,
    "texts": 1 << 12,
    "arena_bytes": 1 << 17,
    "tile_records": 1 << 8,
}

Rows = dict[tuple[int, str, str, str], list[int]]


class Results:
    """What came out of a replay."""

    def __init__(self) -> None:
        self.parts: dict[str, Rows] = {}
        self.letters: list[PlacedLetter] = []

    def take(self, rows: UsageRows, part: str) -> None:
        assert part not in self.parts
        texts = [rows.texts(name) for name in ("user", "model", "chip")]
        counters = rows.table["counters"].tolist()
        self.parts[part] = dict(zip(zip(rows.window_starts(), *texts, strict=True), counters, strict=True))
        assert len(self.parts[part]) == len(rows), "a row stands once in a part"

    def rows(self) -> Rows:
        total: Rows = {}
        for key, counters in itertools.chain.from_iterable(part.items() for part in self.parts.values()):
            total[key] = [a + b for a, b in zip(total.get(key, [0] * 6), counters, strict=True)]
        return total


def meter(engine: Engine, names: list[str], **settings: Any) -> tuple[ReplaySummary, Results]:
    results = Results()
    outlets = Outlets(rows=results.take, letters=results.letters.extend)
    mapping = harness.shipped().engine
    return replay.replay(engine, logs.LogReader(names).fill, mapping, "run", outlets, **settings), results


def ask_oracle(data: bytes) -> oracle.Meter:
    meter = oracle.Meter()
    meter.feed(harness.shipped().oracle, data)
    return meter


def grouped(rows: Rows, place: Callable[[tuple[int, str, str, str]], Any]) -> dict[Any, Usage]:
    sums: dict[Any, list[int]] = {}
    for key, counters in rows.items():
        sums[place(key)] = [a + b for a, b in zip(sums.get(place(key), [0] * 6), counters, strict=True)]
    return {key: Usage(*counters) for key, counters in sums.items()}


def assert_is(summary: ReplaySummary, truth: oracle.Meter) -> None:
    tally = summary.tally
    assert (tally.read, tally.counted) == (truth.read, truth.counted)
    assert (tally.duplicates, tally.rejected, tally.empty) == (truth.duplicates, truth.rejected, truth.empty)
    assert (tally.skipped, tally.conflicts) == (truth.skipped, truth.conflicts)
    rejected = [letter for letter in truth.dead_letters if letter[3] != "conflicting_duplicate"]
    assert summary.rejects == Counter(f"{x[3]}:{x[4]}" if x[4] else x[3] for x in rejected)
    assert summary.by_model_and_chip == grouped(truth.rows, lambda key: (key[2], key[3]))
    assert summary.by_model == grouped(truth.rows, lambda key: key[2])
    assert summary.by_chip == grouped(truth.rows, lambda key: key[3])
    assert {"all": summary.usage} == grouped(truth.rows, lambda key: "all")
    users = grouped(truth.rows, lambda key: key[1])
    by_tokens = sorted(((user, usage.total_tokens) for user, usage in users.items()), key=lambda x: (-x[1], x[0]))
    assert summary.top_users == by_tokens[: len(summary.top_users)]
    assert summary.active_users == pytest.approx(len(users), rel=0.03, abs=1)
    windows = grouped(truth.rows, lambda key: key[0])
    assert summary.windows == len(windows)
    assert (summary.first_window_ms, summary.end_of_last_window_ms) == (min(windows), max(windows) + 60_000)
    busiest = max(usage.total_tokens for usage in windows.values())
    assert summary.busiest_window and summary.busiest_window.tokens == busiest
    assert summary.busiest_window.tokens_per_day == busiest * 1440
    assert windows[summary.busiest_window.start_ms].total_tokens == busiest


@pytest.fixture(scope="module")
def log() -> bytes:
    data = b"".join(synth.generate(SYNTH))
    empty = [b"\n", b" \t\r\n"]  # and lines that are nothing at all
    lines = data.splitlines(keepends=True)
    return b"".join(x + random.Random(i).choice(empty) if i % 500 == 0 else x for i, x in enumerate(lines))


@pytest.fixture(scope="module")
def truth(log: bytes) -> oracle.Meter:
    return ask_oracle(log)


@pytest.fixture
def name(tmp_path: pathlib.Path, log: bytes) -> str:
    path = tmp_path / "requests.ndjson"
    path.write_bytes(log)
    return str(path)


def test_totals_equal_the_oracle(make_engine: Callable[..., Engine], name: str, log: bytes, truth: oracle.Meter):
    summary, results = meter(make_engine(**ROOMY), [name], top=25)
    assert (summary.parts, summary.partial, len(summary.top_users)) == (1, False, 25)
    assert summary.read_bytes == summary.log_bytes == len(log)
    assert not summary.active_users_understated
    assert_is(summary, truth)
    assert list(results.parts) == ["run-part-1"]
    assert results.rows() == truth.rows
    assert summary.usage_rows == len(truth.rows)
    assert truth.duplicates > 100 and truth.rejected > 100 and truth.empty > 10, "the log has what is to be tested"


def test_many_parts_equal_one(make_engine: Callable[..., Engine], name: str, truth: oracle.Meter):
    summary, results = meter(make_engine(**SMALL), [name], top=1_000)
    assert summary.parts >= 3
    assert_is(summary, truth)
    assert list(results.parts) == [f"run-part-{n}" for n in range(1, summary.parts + 1)]
    assert results.rows() == truth.rows
    assert summary.usage_rows == sum(map(len, results.parts.values()))


def test_dead_letters_say_where_they_stood(
    make_engine: Callable[..., Engine], name: str, log: bytes, truth: oracle.Meter
):
    for limits in (ROOMY, SMALL):
        _, results = meter(make_engine(**limits), [name])
        placed = [(x.line - 1, x.reason, x.field, x.value) for x in results.letters]
        assert placed == [letter[2:] for letter in truth.dead_letters]
        for letter in results.letters:
            assert letter.file == name
            assert log[letter.offset :].startswith(letter.value + b"\n")
            assert log[: letter.offset].count(b"\n") == letter.line - 1


def test_places_begin_anew_in_each_file(make_engine: Callable[..., Engine], tmp_path: pathlib.Path):
    bad = {"a": b'{}\n{"x":1}\nbad', "b": b"\n\nworse\n", "c": b"worst"}
    for name, data in bad.items():
        (tmp_path / name).write_bytes(data)
    _, results = meter(make_engine(**ROOMY), [str(tmp_path / name) for name in bad])
    found = [(pathlib.Path(x.file).name, x.line, x.offset, x.value) for x in results.letters]
    assert found == [
        ("a", 1, 0, b"{}"),
        ("a", 2, 3, b'{"x":1}'),
        ("a", 3, 11, b"bad"),
        ("b", 3, 2, b"worse"),
        ("c", 1, 0, b"worst"),
    ]


@pytest.mark.slow
def test_a_request_in_two_files_is_counted_once(make_engine: Callable[..., Engine], name: str, log: bytes):
    summary, results = meter(make_engine(**ROOMY), [name, name])
    truth = ask_oracle(log * 2)
    assert_is(summary, truth)
    assert results.rows() == truth.rows


def test_lines_of_a_mebibyte_and_more(make_engine: Callable[..., Engine], tmp_path: pathlib.Path):
    record = b'{"timestamp":1,"user":"u","model":"m","chip":"c","input_tokens":1,"output_tokens":2,"pad":"%s"}\n'
    sizes = (10, 1_048_576, 1_048_577, 3_000_000, 10)
    data = b"".join(record % (b"x" * (size - len(record) + 3)) if size > 10 else record % b"" for size in sizes)
    path = tmp_path / "long"
    path.write_bytes(data)
    summary, results = meter(make_engine(**ROOMY), [str(path)])
    assert [len(letter.value) for letter in results.letters] == [1_048_577, 3_000_000]
    assert summary.rejects == {"too_long": 2}
    assert results.rows() == ask_oracle(data).rows == {(0, "u", "m", "c"): [3, 3, 0, 0, 6, 0]}


@pytest.mark.parametrize("data", [b"", b"\n", b"\n \n", b"{}\n"])
def test_a_log_without_a_counted_record(make_engine: Callable[..., Engine], tmp_path: pathlib.Path, data: bytes):
    path = tmp_path / "log"
    path.write_bytes(data)
    summary, results = meter(make_engine(**ROOMY), [str(path)])
    assert summary.tally.read == data.count(b"\n")
    assert (summary.usage, summary.by_model, summary.top_users, summary.active_users) == (Usage(), {}, [], 0)
    assert summary.first_window_ms is summary.end_of_last_window_ms is summary.busiest_window is None
    assert results.rows() == {}


def test_a_replay_that_is_stopped_is_partial_and_adds_up(make_engine: Callable[..., Engine], name: str):
    batches = itertools.count()
    seen: list[tuple[int, int]] = []
    reader = logs.LogReader([name])
    outlets = Outlets(progress=lambda now: seen.append((now.records, now.tokens())), stopped=lambda: next(batches) >= 3)
    summary = replay.replay(make_engine(**SMALL), reader.fill, harness.shipped().engine, "run", outlets)
    assert summary.partial
    assert len(seen) == 3
    assert seen[-1] == (summary.tally.read, summary.usage.total_tokens)
    assert 0 < summary.tally.read < SYNTH.records


def test_an_error_while_reading_ends_the_replay(make_engine: Callable[..., Engine], name: str, tmp_path: pathlib.Path):
    with pytest.raises(logs.LogError, match="no such file"):
        meter(make_engine(**ROOMY), [name, str(tmp_path / "none")])
