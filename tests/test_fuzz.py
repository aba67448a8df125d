"""Mutated lines of every shipped mapping, and of mappings that use each feature of format 2 alone and all together
(tests/format2.py): engine, referee, audit and oracle agree on every one of them.

    TOKENOMETER_FUZZ_LINES=5000000 pytest -m fuzz tests/test_fuzz.py      that many lines
    TOKENOMETER_FUZZ_SEED=17 pytest tests/test_fuzz.py                    another seed

A failure names the seed and the first line that is read differently.
"""

import functools
import json
import os
import platform
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import pytest

import tokenometer.kernels.engine
from tests import format2, harness, mutate, oracle
from tests.harness import Mapping, Piece, Run, shipped
from tokenometer.kernels import layout
from tokenometer.kernels import plan as plans
from tokenometer.kernels.target import HostTarget
from tokenometer.kernels.values import SKIPPED, Canonical, Rejection, Skipped, Tally
from tokenometer.processor.records.referee import Referee
from tokenometer.processor.verify.judge import Judge, SkippedRecord
from tokenometer.processor.verify.values import RefusedRecord

SEED = int(os.environ.get("TOKENOMETER_FUZZ_SEED", "1"))
LINES = 20_000 * harness.TIMES
FUZZ_LINES = int(os.environ.get("TOKENOMETER_FUZZ_LINES", "1000000"))
SETTINGS = {**harness.MIDDLE, "window_ms": 1000, "tile_records": 128}  # narrow windows: seconds show in the rows
HORIZON_MS = 1000
FORMAT_2 = {name: Mapping.parse(format2.text(mapping), name) for name, mapping in format2.MAPPINGS.items()}
FUZZED = {name: shipped(name) for name in harness.SHIPPED} | FORMAT_2
BOUNDS = {"max_past_ms": mutate.PAST_MS, "not_before_ms": mutate.NOT_BEFORE_MS}
TEXT_NAMES = ("request_id", "scope", "user", "model", "chip", "prefill_chip")


def batches(rng: random.Random, lines: list[bytes]) -> Iterator[list[bytes]]:
    """A third of the lines in handfuls, so that a plan learns from few, strange ones; the rest by the hundred."""
    at = 0
    while at < len(lines):
        size = rng.randrange(1, 30) if rng.random() < 0.9 else rng.randrange(100, 1200)
        yield from harness.batches(lines[at : at + size], SETTINGS["batch_bytes"])
        at += size


def pieces(rng: random.Random, name: str, lines: list[bytes]) -> list[Piece]:
    """Half of the batches come with message times, in a partition of their own; then identities expire."""
    made, now = [], mutate.NOW_MS
    for batch in batches(rng, lines):
        if rng.random() < 0.5:
            made.append(Piece(batch, None, "file"))
        else:
            now += rng.choice([0, 0, 0, HORIZON_MS // 2])
            made.append(Piece(batch, [now if rng.random() < 0.01 else mutate.NOW_MS for _ in batch], "topic"))
    return made


def judged(line: bytes, mapping: Mapping, time: int | None, **bounds: int) -> Canonical | Rejection | Skipped | None:
    """The oracle's verdict in the referee's words; None for an empty record."""
    verdict = oracle.judge(line, mapping.oracle, time, oracle.Bounds(**bounds))
    record = verdict.record
    if verdict.kind == "skipped":
        return SKIPPED
    if record is None:
        return None if verdict.kind == "empty" else Rejection(str(verdict.reason), verdict.field)
    texts = [b""] * layout.TEXTS
    for name in TEXT_NAMES:
        texts[getattr(layout, name.upper())] = (getattr(record, name) or "").encode()
    further = tuple(getattr(record, name) for name in oracle.FURTHER)
    labels = dict(record.labels)
    return Canonical(record.timestamp, tuple(texts), tuple(record[7:13]), further, labels_of(mapping, labels))


def labels_of(mapping: Mapping, labels: dict[str, str]) -> tuple[bytes, ...]:
    """In the mapping's order, empty where absent."""
    names = sorted(mapping.oracle.get("labels", {}))
    assert labels.keys() <= set(names) and "" not in labels.values()
    return tuple(labels.get(name, "").encode() for name in names)


def audited(judge: Judge, mapping: Mapping, line: bytes, time: int | None) -> Canonical | Rejection | Skipped | None:
    """The audit's verdict in the referee's words. It has the scope and the further fields of an identity in one text:
    that text is taken apart here, so that every part is compared."""
    try:
        record = judge(line, time)
    except SkippedRecord:
        return SKIPPED
    except RefusedRecord as refused:
        return Rejection(refused.reason, refused.field)
    if record is None:
        return None
    request_id, within, time_ms, user, model, chip, prefill_chip, *counters = record[:13]
    labels, *further = record[13:]
    names = mapping.oracle["fields"].get("request_id", {}).get("with", [])
    if names:
        within, *more = json.loads(within)
        of_record = {"user": user, "model": model, "chip": chip, "prefill_chip": prefill_chip}
        assert more == [of_record[name] for name in names]
    texts = [(text or "").encode() for text in (request_id, user, model, chip, prefill_chip, within)]
    beside = tuple(further), labels_of(mapping, json.loads(labels or "{}"))
    return Canonical(time_ms, tuple(texts), tuple(counters), *beside)


def first_difference(run: Run, mapping: Mapping, piece: Piece) -> bytes | None:
    """The first line of the batch that the engine, with what it just learned, reads differently when alone."""
    for number, line in enumerate(piece.values):
        part = ("alone", number)
        before = run.engine.tally()
        run.engine.open_part()
        times = piece.times and piece.times[number : number + 1]
        alone = Run(run.engine, mapping)
        loaded = run.engine.load(run.engine.pack([line], times, part), mapping.engine)
        progress = run.engine.count(loaded)
        wanted = harness.expected(mapping, [Piece([line], times, part)], window_ms=SETTINGS["window_ms"])
        letters = [(letter.rejection.reason, letter.rejection.field) for letter in progress.dead_letters]
        same = letters == [letter[3:5] for letter in wanted.dead_letters]
        if (
            not same
            or run.engine.tally() - before != harness.tally_of(wanted)
            or alone.rows() != harness.wanted_rows(wanted)
        ):
            return line
    return None


@dataclass(frozen=True)
class Step:
    """A batch, and what the oracle has found up to its end."""

    piece: Piece
    tallies: tuple[Tally, Tally]  # of files, of topics
    letters: list[harness.Letter]  # of the log that the batch belongs to
    count: int  # how many of these, up to the batch's end


def log_of(name: str, seed: int, lines: int) -> tuple[list[Step], harness.Rows]:
    """A log, and what the oracle says of it: made once for all engines. The referee is no engine's, so that it is asked
    here, about a tenth of the lines."""
    rng, mapping, referee = random.Random(f"{seed} {name}"), FUZZED[name], Referee()
    log = list(mutate.lines(rng, name, mapping.oracle, lines))
    file, topic = oracle.Meter(1000), oracle.Meter(1000, dedup_horizon_ms=HORIZON_MS)
    steps = []
    for piece in pieces(rng, name, log):
        wanted = file if piece.times is None else topic
        for line, time in zip(piece.values, piece.times or [None] * len(piece.values), strict=True):
            wanted.feed(mapping.oracle, line, time, piece.partition)
            if rng.random() < 0.1:
                want = judged(line, mapping, time)
                assert want is None or referee(line, mapping.engine, time) == want, f"referee, seed {seed}: {line!r}"
        tallies = harness.tally_of(file), harness.tally_of(topic)
        steps.append(Step(piece, tallies, wanted.dead_letters, len(wanted.dead_letters)))
    return steps, sum_of(file, topic)


known_log_of = functools.cache(log_of)


def fuzz(make_engine, monkeypatch, name: str, seed: int, log: tuple[list[Step], harness.Rows]) -> None:
    mapping, (steps, rows) = FUZZED[name], log
    monkeypatch.setattr(tokenometer.kernels.engine, "RELEARN_BATCHES", 1)
    engine = make_engine(secret_seed=seed, dedup_horizon_ms=HORIZON_MS, **SETTINGS)
    run = Run(engine, mapping)
    for step in steps:
        piece = step.piece
        run.feed(piece.values, piece.times, piece.partition)
        if not agree(run, step):
            monkeypatch.setattr(plans.Plan, "learn", lambda self, lines: False)
            line = first_difference(run, mapping, piece)
            what = "no line alone, so the batch matters" if line is None else f"{line!r}"
            pytest.fail(f"{name}, seed {seed}: {what}\nin a batch that begins {list(piece.values[:4])!r}")
    assert run.rows() == rows


def agree(run: Run, step: Step) -> bool:
    """Cheap enough after every batch: tallies, and the dead letters that came last."""
    of_files, of_topics = step.tallies
    if run.engine.tally() - of_files != of_topics:
        return False
    recent = run.letters[-len(step.piece.values) :]
    letters = [letter for letter in recent if letter[0] == step.piece.partition]
    return letters == step.letters[step.count - len(letters) : step.count]


def sum_of(*meters: oracle.Meter) -> harness.Rows:
    total: harness.Rows = {}
    for meter in meters:
        harness.add_rows(total, harness.wanted_rows(meter))
    return total


def judge_alike(name: str, seed: int, lines: int) -> None:
    """Referee and audit against the oracle, line by line, with a bound in the past and without a message's time."""
    mapping, rng = FUZZED[name], random.Random(f"{seed} {name} judges")
    referee, judge = Referee(**BOUNDS), Judge(mapping.engine, mutate.FUTURE_SKEW_MS, **BOUNDS)
    for line in mutate.lines(rng, name, mapping.oracle, lines):
        time = rng.choice([None, mutate.NOW_MS])
        want = judged(line, mapping, time, **BOUNDS)
        assert audited(judge, mapping, line, time) == want, f"audit, {name}, seed {seed}: {line!r}"
        if want is not None:
            assert referee(line, mapping.engine, time) == want, f"referee, {name}, seed {seed}: {line!r}"


@pytest.mark.slow
@pytest.mark.parametrize("name", FUZZED)
def test_referee_audit_and_oracle_judge_alike(name):
    judge_alike(name, SEED, LINES // len(FUZZED))


@pytest.mark.slow
@pytest.mark.parametrize("name", format2.FEATURES)
def test_each_feature_of_format_2_decides_about_some_lines(monkeypatch, name):
    """Else the fuzz would say nothing about it."""
    judge, feature, base = oracle.judge, format2.MAPPINGS[name], format2.BASE
    meters = oracle.Meter(dedup_horizon_ms=HORIZON_MS), oracle.Meter(dedup_horizon_ms=HORIZON_MS)
    differ = 0
    for line in mutate.lines(random.Random(name), name, feature, 3000):
        before = [meter.duplicates for meter in meters]
        verdicts = [judge(line, mapping, mutate.NOW_MS) for mapping in (feature, base)]
        for meter, mapping, verdict in zip(meters, (feature, base), verdicts, strict=True):
            if verdict.kind == "ok":  # else that is its fate
                monkeypatch.setattr(oracle, "judge", lambda *_, known=verdict: known)  # it costs most here
                meter.feed(mapping, line, mutate.NOW_MS)
        repeats = [meter.duplicates - then for meter, then in zip(meters, before, strict=True)]
        differ += verdicts[0] != verdicts[1] or repeats[0] != repeats[1]
        if differ >= 30 and meters[0].counted >= 300:  # neither can become less
            return
    pytest.fail(f"{differ} lines of 30, {meters[0].counted} counted of 300")


@pytest.mark.slow
@pytest.mark.parametrize("name", FUZZED)
def test_mutated_lines_are_read_alike(target, make_engine, monkeypatch, name):
    share = 10 if "x 2" in target.name else 1  # what a line means does not depend on threads; they get a sample
    fuzz(make_engine, monkeypatch, name, SEED, known_log_of(name, SEED, LINES // len(FUZZED) // share))


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags", [("-mno-avx512f", "-O1"), ("-mno-avx512f", "-mno-avx2", "-O1")], ids=["avx2", "plain"]
)
@pytest.mark.parametrize("name", ["native", "vllm", "together"])
def test_other_processors_read_alike(monkeypatch, name, flags):
    """Byte scans have three spellings; the plain one is the GPU's, too. -O1: a compiler is done in half of the time."""
    if platform.machine() != "x86_64":
        pytest.skip("only x86 has more than one")
    machine = HostTarget(extra_flags=flags)
    fuzz(partial(harness.make_engine, machine), monkeypatch, name, SEED + 1, known_log_of(name, SEED + 1, 2500))


@pytest.mark.fuzz
@pytest.mark.parametrize("name", FUZZED)
def test_a_million_mutated_lines_are_read_alike(make_engine, monkeypatch, name):
    lines = FUZZ_LINES // len(FUZZED)
    judge_alike(name, SEED + 1, lines)
    for begin in range(0, lines, LINES):
        seed = SEED + 1 + begin // LINES
        fuzz(make_engine, monkeypatch, name, seed, log_of(name, seed, min(LINES, lines - begin)))
