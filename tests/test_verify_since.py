"""`tokenometer verify --since`: audits from checkpoint to checkpoint say what one audit of everything says."""

import copy
import dataclasses
import datetime
import functools
import itertools
import json
import os
import pathlib
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import orjson
import pyarrow as pa
import pytest

from tests import bad_input, harness, streams, test_simulation, test_verify
from tests.harness import TIMES
from tests.test_repeats import GROW
from tests.test_repeats import record as record_of
from tests.test_verify import (
    COUNTERS,
    GROUP,
    HORIZON_MS,
    LIVE,
    LOG,
    NOW_MS,
    REJECTED,
    SETTINGS,
    USAGE,
    Stream,
    Writer,
    text_of,
    tokens_of,
)
from tokenometer.processor.broker import Offset, Place, Refused
from tokenometer.processor.broker.memory import MemoryBroker
from tokenometer.processor.verify import VerifySettings, checkpoint, live, verify
from tokenometer.processor.verify.since import Earlier, LogClock
from tokenometer.processor.verify.sums import Sums
from tokenometer.processor.verify.tally import Tables
from tokenometer.processor.verify.values import LogGone, OtherStream, Report, Totals, UnusableCheckpoint
from tokenometer.schemas import mapping as mappings

SEED = int(os.environ.get("TOKENOMETER_FUZZ_SEED", "1"))


@pytest.fixture
def file(tmp_path) -> str:
    return str(tmp_path / "audit")


def totals_of(report: Report) -> Totals:
    return Totals(report.tally, report.rejects, report.found, report.parts, report.usage_messages, report.letters)


def told(report: Report) -> str:
    return text_of(report).replace("\n", " ")


class Audits:
    """Of one stream: in full, and from checkpoint to checkpoint."""

    def __init__(self, file: str, group: str, topics: dict[str, mappings.Mapping], settings: VerifySettings) -> None:
        self.file, self.group, self.topics, self.settings = file, group, topics, settings
        self.count = 0

    def full(self, broker: MemoryBroker, **more: Any) -> Report:
        return verify(broker, self.group, self.topics, dataclasses.replace(self.settings, **more))

    def next(self, broker: MemoryBroker, leave: bool = True) -> Report:
        since = self.file if self.count else None
        report = self.full(broker, since=since, checkpoint=self.file if leave else None)
        self.count += leave and report.clean
        return report

    def both(self, broker: MemoryBroker) -> tuple[Report, Report]:
        return self.full(broker), self.next(broker)

    def assert_both_clean(self, broker: MemoryBroker) -> Report:
        whole, part = self.both(broker)
        assert whole.clean, text_of(whole)
        assert part.clean, text_of(part)
        assert part.in_all == totals_of(whole)
        assert part.expected == part.found and part.checkpoint == self.file
        return part


# --- Seeded schedules: kills, rebalances, failed commits; an audit after some commits ---

# Of the audits within a schedule: an audit of everything costs as much as all else. What a chain has got wrong, its
# sums still have at the end, where they are always compared.
COMPARED_SHARE = 0.3


class Schedule(test_simulation.Schedule):
    def __init__(self, seed: int, file: str) -> None:
        super().__init__(seed)
        settings = VerifySettings(dedup_horizon_ms=self.horizon_ms, settle_seconds=0, processes=1)
        topics = {topic: harness.shipped(name).engine for topic, name in self.inputs.items()}
        self.chain = Audits(file, streams.GROUP, topics, settings)
        self.audits = 0.1

    def actions(self) -> dict[Callable[[], None], float]:
        return super().actions() | {self.audit: 3}

    def audit(self) -> None:
        transactions = self.broker._cluster.transactionals.items()
        if any(state.transaction is not None for name, state in transactions if name not in self.writers):
            return
        with self.elsewhere():
            if any(self.broker.committed(streams.GROUP, list(self.inputs)).values()):
                if self.draw.random() < COMPARED_SHARE:
                    self.chain.assert_both_clean(self.broker)
                else:
                    report = self.chain.next(self.broker)
                    assert report.clean, text_of(report)

    def run(self) -> None:
        super().run()
        with self.elsewhere():
            self.chain.assert_both_clean(self.broker)


@pytest.mark.parametrize(
    "seeds",
    [range(4), *(pytest.param(range(at, at + 20), marks=pytest.mark.slow) for at in range(4, 4 + 60 * TIMES, 20))],
    ids=str,
)
def test_audits_from_checkpoint_to_checkpoint_say_what_one_of_everything_says(seeds, tmp_path, monkeypatch):
    monkeypatch.setattr(test_simulation, "SEEN", Counter())
    audits = 0
    for seed in seeds:
        schedule = Schedule(seed, str(tmp_path / f"{seed}"))
        try:
            schedule.run()
        except Exception as error:
            story = "\n".join(schedule.story)
            raise AssertionError(f"{story}\n\nseed {seed}: {type(error).__name__}: {error}") from error
        audits += schedule.chain.count
    assert audits > len(seeds)


# --- Repeats over a cut: duplicates, conflicts, counters that grow ---


def repeating(rng: random.Random, now: int) -> bytes:
    """A record of few identities, which says much the same as those before; often late."""
    given, out = rng.randrange(4), rng.randrange(4)
    return record_of(
        request_id=rng.choice(["a", "b", "c", "d", None]),
        user=rng.choice(["ann", "ann", "bob"]),
        timestamp=now - rng.choice([0, 0, 0, 60_000, 3_600_000]),
        prefill_chip=rng.choice([None, None, "P"]),
        input_tokens=given if rng.random() > 0.05 else -1,
        cached_input_tokens=rng.randint(0, given),
        output_tokens=out,
        reasoning_tokens=rng.randint(0, out),
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed, is_small", [*((SEED + at, False) for at in range(2 * TIMES)), (SEED + 5, True)])
@pytest.mark.parametrize("name", ["first", "grow"])
def test_repeats_over_a_cut(name, seed, is_small, file, monkeypatch):
    """The same meter goes on over most cuts. is_small: nothing stays in the audit's tables, all goes to DuckDB."""
    if is_small:
        made = Tables
        monkeypatch.setattr("tokenometer.processor.verify.Tables", lambda folder, window, _: made(folder, window, 1))
        monkeypatch.setattr("tokenometer.processor.verify._CHUNK_MESSAGES", 3)
    rng = random.Random(f"{seed} {name}")
    mapping = harness.shipped("native") if name == "first" else GROW
    broker = MemoryBroker(patience_seconds=0)  # nobody else writes, so there is nothing to wait for
    streams.make_topics(broker, 2)
    settings = VerifySettings(dedup_horizon_ms=streams.HORIZON_MS, settle_seconds=0, processes=1)
    audits = Audits(file, streams.GROUP, {streams.INPUT: mapping.engine}, settings)
    meter, now, conflicts, duplicates = None, NOW_MS, 0, 0
    for step in range(8):
        for _ in range(rng.randrange(1, 12)):
            now += rng.choice([0, 1, streams.HORIZON_MS // 3, streams.HORIZON_MS, 2 * streams.HORIZON_MS])
            lines = [repeating(rng, now) for _ in range(rng.randrange(1, 4))]
            broker.append(streams.INPUT, [b"\n".join(lines)], [b"%d" % rng.randrange(5)], [now])
        if meter is None or rng.random() < 0.3:
            options = {"commit_interval_ms": 0, "flush_ms": 0, "run": f"meter-0.{step}"}
            meter = streams.make_meter(broker, inputs={streams.INPUT: mapping}, **options)
            meter.open()
        for _ in range(12):
            meter.step()
        report = audits.assert_both_clean(broker)
        conflicts, duplicates = conflicts + report.tally.conflicts, duplicates + report.tally.duplicates
    streams.assert_exact(broker, {streams.INPUT: mapping})
    assert duplicates > 0 and (conflicts > 0 or name == "grow")


@pytest.mark.slow
@pytest.mark.parametrize(
    "before, after, counted, first_read",
    [
        ([0], [0], 0, 0),
        ([0], [1], 0, 0),
        ([0], [2], 1, 1),
        ([0, 1], [1], 0, 0),
        ([0, 1], [2], 0, 1),
        ([0, 1], [3], 1, 2),
        ([0, 1, 2], [2], 0, 1),
        ([0, 1, 1, 3], [3], 0, 3),
        ([0, 3], [2, 4, 6], 1, 1),  # an earlier time does not turn log time back
        ([5, 3], [6, 8], 1, 0),
    ],
)
def test_a_record_is_a_duplicate_of_one_before_the_cut(before, after, counted, first_read, file, monkeypatch):
    """And no more of the log is read than that takes."""
    base = NOW_MS - NOW_MS % HORIZON_MS
    chain = Chain(file, [bad_input.changed(request_id=b'"r"')] * len(before), [base + at * HORIZON_MS for at in before])
    chain.go_on([bad_input.changed(request_id=b'"r"')] * len(after), [base + at * HORIZON_MS for at in after])
    read, begins = chain.broker.read, []

    def noted(place: Place, begin: Offset, *more: Any, **named: Any) -> Any:
        begins.extend([begin] * (place.topic == LOG))
        return read(place, begin, *more, **named)

    whole = chain.audits.full(chain.broker)
    monkeypatch.setattr(chain.broker, "read", noted)
    report = chain.audits.next(chain.broker)
    assert whole.clean and report.clean and report.in_all == totals_of(whole)
    assert (report.tally.counted, report.tally.duplicates) == (counted, len(after) - counted)
    assert min(begins) == first_read
    state = checkpoint.read(file).log[Place(LOG, 0)]
    fresh = LogClock(HORIZON_MS, None)
    for messages in read(Place(LOG, 0), Offset(0), Offset(len(before) + len(after))):
        fresh.read(messages.times, messages.offsets)
    assert state == fresh.state(Offset(len(before) + len(after)))


# --- Damage after the cut ---


class Chain:
    """A stream that the oracle counts and a writer publishes; it was audited once, and goes on."""

    def __init__(self, file: str, values: Sequence[bytes | None], times: Sequence[int] | None = None) -> None:
        self.broker = test_verify.new_broker(1)
        self.broker.append(LOG, values, None, times or [NOW_MS] * len(values))
        self.writer = Writer(self.broker, harness.shipped())
        self.audits = Audits(file, GROUP, {LOG: harness.shipped().engine}, SETTINGS)
        self.commit()
        report = self.publish_and_audit()
        assert report.clean, text_of(report)

    @property
    def stream(self) -> Stream:
        return self.writer.stream

    def commit(self) -> None:
        self.writer.commit(Place(LOG, 0), self.broker.extents([LOG])[Place(LOG, 0)].end)

    def go_on(self, values: Sequence[bytes | None], times: Sequence[int] | None = None) -> None:
        self.broker.append(LOG, values, None, times or [NOW_MS] * len(values))
        self.commit()
        self.stream.publish()

    def publish_and_audit(self) -> Report:
        self.stream.publish()
        for published in (self.stream.usage, self.stream.live, self.stream.letters):
            published.clear()
        return self.audits.next(self.broker)


class Halves:
    """The stream of test_verify, audited once in the middle of its second part. What is published later is in `later`,
    and can be damaged; what was published before is in `before`."""

    def __init__(self, file: str, name: str = "native") -> None:
        first, kept = _halves(name)
        pathlib.Path(file).write_bytes(kept)
        self.audits = first.audits(file)
        self.before, self.later = copy.deepcopy(first.before), test_verify.copied(first.later)

    def audit(self) -> tuple[Report, Report]:
        self.later.publish()
        return self.audits.both(self.later.broker)


class Published(NamedTuple):
    usage: list[tuple[dict[str, Any], dict[str, Any]]]
    live: list[dict[str, Any]]
    letters: list[tuple[bytes, dict[str, str]]]


class FirstHalf:
    """Takes the time that it takes; `Halves` are copies."""

    def __init__(self, file: str, name: str) -> None:
        self._topics = {LOG: harness.shipped(name).engine}
        self._first = Audits(file, GROUP, self._topics, SETTINGS)
        self.later = test_verify.build_stream(name, between=self._between)

    def audits(self, file: str) -> Audits:
        """They go on in this file."""
        made = Audits(file, GROUP, self._topics, SETTINGS)
        made.count = self._first.count
        return made

    def _between(self, stream: Stream, part: int, step: int) -> None:
        if (part, step) != (1, 1):
            return
        stream.publish()
        report = self._first.next(stream.broker)
        assert report.clean, text_of(report)
        lists = "usage", "live", "letters"
        self.before = Published(**{name: list(getattr(stream, name)) for name in lists})
        for name in lists:
            getattr(stream, name).clear()


@functools.cache
def _halves(name: str) -> tuple[FirstHalf, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "audit"
        return FirstHalf(str(file), name), file.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("name", harness.SHIPPED)
def test_the_second_half_of_a_clean_stream_is_clean(name, file):
    halves = Halves(file, name)
    halves.later.publish()
    report = halves.audits.assert_both_clean(halves.later.broker)
    assert report.parts == 2 and report.new_parts == 1 and report.tally.read > 100
    assert 0 < report.usage_messages == len(halves.later.usage)


def identity(key: dict[str, Any]) -> tuple:
    return tuple(key[name] for name in ("window_start", "user", "model", "chip", "part"))


def row_of(halves: Halves, name: str = "requests", part: str | None = None) -> dict[str, Any]:
    """The last message of its row, with a counter that can be one less."""
    rows = [row for _, row in halves.later.usage if part is None or row["part"] == part]
    return next(row for row in reversed(rows) if row[name] >= 1)


Damage = Callable[[Halves], None]
DAMAGES: dict[str, Damage] = {}


def damage(name: str) -> Callable[[Damage], Damage]:
    def note(function: Damage) -> Damage:
        DAMAGES[name] = function
        return function

    return note


def off_by(name: str, by: int, part: str) -> Damage:
    def change(halves: Halves) -> None:
        row = row_of(halves, name, part)
        row[name] += by
        row["total_tokens"] = row["input_tokens"] + row["output_tokens"]

    return change


for _name, _by, _part in itertools.product(COUNTERS, (1, -1), ("meter-0.1", "meter-0.2")):
    DAMAGES[f"{_name} {_by:+} in {_part}"] = off_by(_name, _by, _part)


@damage("a missing row of a new part")
def _(halves: Halves) -> None:
    keys = [identity(key) for key, _ in halves.later.usage]
    at = next(n for n, key in enumerate(keys) if keys.count(key) == 1 and key[-1] == "meter-0.2")
    halves.later.usage.pop(at)


@damage("a row of the open part that stays as it was")
def _(halves: Halves) -> None:
    old = {identity(key) for key, _ in halves.before.usage}
    again = next(identity(key) for key, _ in halves.later.usage if identity(key) in old)
    halves.later.usage = [row for row in halves.later.usage if identity(row[0]) != again]


@damage("an old row of the open part that comes last")
def _(halves: Halves) -> None:
    changed = {identity(key) for key, _ in halves.later.usage}
    halves.later.usage.append(next(row for row in halves.before.usage if identity(row[0]) in changed))


@damage("an old row of a part that is over, with other numbers")
def _(halves: Halves) -> None:
    key, value = next(row for row in halves.before.usage if row[0]["part"] == "meter-0.0")
    halves.later.usage.append((key, value | tokens_of([value["requests"] + 1, *[value[n] for n in COUNTERS[1:]]])))


@damage("an extra row")
def _(halves: Halves) -> None:
    key, value = halves.later.usage[-1]
    halves.later.usage.append((key | {"user": "nobody"}, value | {"user": "nobody"}))


@damage("an extra row without any tokens")
def _(halves: Halves) -> None:
    key, value = halves.later.usage[-1]
    halves.later.usage.append((key | {"user": "nobody"}, value | {"user": "nobody"} | tokens_of([0] * 6)))


@damage("rows of an unknown part")
def _(halves: Halves) -> None:
    key, value = halves.later.usage[-1]
    halves.later.usage.append((key | {"part": "zombie"}, value | {"part": "zombie"}))


@damage("a row that is none")
def _(halves: Halves) -> None:
    key, value = halves.later.usage[-1]
    halves.later.usage.append((key, value | {"total_tokens": 10**15}))


@damage("a row under another key")
def _(halves: Halves) -> None:
    key, value = halves.later.usage[-1]
    halves.later.usage.append((key | {"user": "another"}, value))


@damage("a tombstone")
def _(halves: Halves) -> None:
    halves.later.publish()
    halves.later.broker.append(USAGE, [None], [orjson.dumps(halves.later.usage[-1][0])])


@damage("one identity of the open part in two partitions")
def _(halves: Halves) -> None:
    key, value = next(row for row in halves.before.usage if row[0]["part"] == "meter-0.1")
    for spelling in range(8):
        halves.later.broker.append(USAGE, [orjson.dumps(value)], [orjson.dumps(key) + b" " * spelling])


def range_off(part: int, name: str, by: int) -> Damage:
    return lambda halves: test_verify.change_range(halves.later, part, name, by)


for _of, _end, _by in itertools.product((1, 2), ("from", "next"), (1, -1)):
    DAMAGES[f"{_end} {_by:+} of part {_of}"] = range_off(_of, _end, _by)


@damage("a part that reads what was audited before")
def _(halves: Halves) -> None:
    ranges = halves.later.live[-1]["partitions"]
    halves.later.live[-1]["partitions"] = [*ranges, ranges[0] | {"from": 3, "next": 5}]
    halves.later.live[-1]["sequence"] += 1


@damage("a part of a topic that is not verified")
def _(halves: Halves) -> None:
    halves.later.live[-1]["partitions"].append(halves.later.live[-1]["partitions"][0] | {"topic": "other"})
    halves.later.live[-1]["sequence"] += 1


def without(part: str) -> Damage:
    def remove(halves: Halves) -> None:
        halves.later.live[:] = [summary for summary in halves.later.live if summary["part"] != part]

    return remove


DAMAGES["the open part without its later summaries"] = without("meter-0.1")
DAMAGES["a new part without its summaries"] = without("meter-0.2")


def records_off(name: str, part: str) -> Damage:
    def change(halves: Halves) -> None:
        for summary in halves.later.live:
            if summary["part"] == part:
                summary["records"][name] += 1

    return change


for _name, _part in itertools.product(
    ("read", "counted", "duplicates", "rejected", "empty", "conflicts"), ("meter-0.1", "meter-0.2")
):
    DAMAGES[f"{_name} +1 of {_part}"] = records_off(_name, _part)


@damage("a reason for another")
def _(halves: Halves) -> None:
    for summary in halves.later.live:
        summary["rejects"]["too_long"] = summary["rejects"].pop("invalid_json", 0)


@damage("a total that is none")
def _(halves: Halves) -> None:
    halves.later.live[-1]["tokens"]["total_tokens"] += 1
    halves.later.live[-1]["sequence"] += 1


@damage("a summary that is missing")
def _(halves: Halves) -> None:
    halves.later.live[:] = [one for one in halves.later.live if (one["part"], one["sequence"]) != ("meter-0.2", 1)]


@damage("the first summary after the cut is missing")
def _(halves: Halves) -> None:
    first = halves.later.live[0]["sequence"]
    halves.later.live[:] = [one for one in halves.later.live if (one["part"], one["sequence"]) != ("meter-0.1", first)]


COMES_AGAIN = "an earlier summary of the open part that comes again and says something else"


@damage(COMES_AGAIN)
def _(halves: Halves) -> None:
    old = next(one for one in halves.before.live if one["part"] == "meter-0.1")
    halves.later.live.append(old | {"device": "another"})


@damage("the last summary before the cut comes again and says something else")
def _(halves: Halves) -> None:
    halves.later.live.append(halves.before.live[-1] | {"device": "another"})


@damage("messages of one summary that contradict each other")
def _(halves: Halves) -> None:
    halves.later.live.append(halves.later.live[-1] | {"device": "another"})


@damage("a summary that is none")
def _(halves: Halves) -> None:
    halves.later.live.append(halves.later.live[-1] | {"records": {}})


@damage("a missing letter")
def _(halves: Halves) -> None:
    halves.later.letters.pop(5)


@damage("a letter twice")
def _(halves: Halves) -> None:
    halves.later.letters.append(halves.later.letters[5])


@damage("a letter again that came before")
def _(halves: Halves) -> None:
    halves.later.letters.append(halves.before.letters[5])


@damage("a letter of another line")
def _(halves: Halves) -> None:
    halves.later.letters[5][1]["line"] = "77"


@damage("a letter of another reason")
def _(halves: Halves) -> None:
    letter = next(headers for _, headers in halves.later.letters if headers["reason"] != "conflicting_duplicate")
    letter["reason"] = "too_deep"


@damage("a letter with one byte changed")
def _(halves: Halves) -> None:
    value, headers = halves.later.letters[5]
    halves.later.letters[5] = (value[:-1] + bytes([value[-1] ^ 1]), headers)


@damage("a letter that is none")
def _(halves: Halves) -> None:
    halves.later.letters[5][1]["offset"] = "x"


@damage("more was committed than parts have read")
def _(halves: Halves) -> None:
    halves.later.broker.append(LOG, [bad_input.GOOD] * 4, [b"%d" % key for key in range(4)], [NOW_MS] * 4)
    halves.later.committed |= {place: extent.end for place, extent in halves.later.broker.extents([LOG]).items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", DAMAGES)
def test_damage_after_the_cut_is_found(name, file):
    """By the audit of everything and by that since the checkpoint, and both show the same rows and letters."""
    halves, kept = Halves(file), pathlib.Path(file).read_bytes()
    DAMAGES[name](halves)
    whole, part = halves.audit()
    assert not whole.clean, "else this is no damage"
    assert not part.clean
    kinds = {"sequence"} if name == COMES_AGAIN else {each.kind for each in whole.problems}
    assert {each.kind for each in part.problems} == kinds
    rows = [(each.user, each.model, each.chip, each.window_start_ms) for each in whole.differences]
    assert [(each.user, each.model, each.chip, each.window_start_ms) for each in part.differences] == rows
    places = {(each.place, each.offset) for each in part.letter_differences}
    assert places == {(each.place, each.offset) for each in whole.letter_differences}
    assert part.checkpoint is None and "No checkpoint was written" in told(part)
    assert pathlib.Path(file).read_bytes() == kept, "the last one that was clean"


@pytest.mark.parametrize("is_small", [False, True])
def test_a_row_that_only_the_log_before_the_cut_has_is_not_expected(is_small, file, monkeypatch):
    """Although that log is read, for its ids. is_small: nothing stays in the audit's tables."""
    chain = Chain(file, [bad_input.changed(request_id=b'"x"', user=b'"x"')])
    for user in b'"y"', b'"z"':
        chain.writer.open_part()
        chain.go_on([bad_input.changed(request_id=user, user=user)])
        assert chain.publish_and_audit().clean
    chain.go_on([bad_input.changed(request_id=b'"v"', user=b'"z"')])
    key, value = chain.stream.usage[-1]
    chain.stream.usage.append((key | {"user": "x"}, value | {"user": "x"} | tokens_of([0] * 6)))
    chain.stream.publish()
    if is_small:
        made = Tables
        monkeypatch.setattr("tokenometer.processor.verify.Tables", lambda folder, window, _: made(folder, window, 1))
    assert [each.user for each in chain.audits.next(chain.broker).differences] == ["x"]


@pytest.mark.parametrize("value, verdict", [(b"{", "missing"), (bad_input.GOOD, "unexpected")])
def test_a_letter_is_wanted_for_what_was_rejected_after_the_cut_alone(value, verdict, file):
    chain = Chain(file, [value])
    headers = {"reason": "invalid_json", "topic": LOG, "partition": "0", "line": "0"}
    chain.go_on([value])
    assert chain.audits.next(chain.broker, leave=False).clean
    if verdict == "unexpected":
        chain.stream.letters.append((value, headers | {"offset": "0"}))
        chain.stream.usage.clear(), chain.stream.live.clear()
        chain.stream.publish()
        [letter] = chain.audits.next(chain.broker).letter_differences
        assert (letter.what, letter.offset) == (verdict, 0)


# --- What the log before the cut is needed for ---


def test_the_log_before_what_is_needed_may_be_gone(file):
    """Retention has removed it, so that an audit in full is impossible."""
    base = NOW_MS - NOW_MS % HORIZON_MS
    ids = [b'"%d"' % at for at in range(6)]
    chain = Chain(
        file, [bad_input.changed(request_id=text) for text in ids], [base + at * HORIZON_MS for at in range(6)]
    )
    chain.go_on(
        [bad_input.changed(request_id=b'"5"'), bad_input.changed(request_id=b'"0"')], [base + 5 * HORIZON_MS] * 2
    )
    chain.broker.delete_before(Place(LOG, 0), Offset(4))
    with pytest.raises(LogGone):
        chain.audits.full(chain.broker)
    report = chain.audits.next(chain.broker, leave=False)
    assert report.clean and (report.tally.counted, report.tally.duplicates) == (1, 1)
    chain.broker.delete_before(Place(LOG, 0), Offset(5))
    with pytest.raises(
        LogGone, match="begins at offset 5, but .* from offset 4 on, because request ids are remembered"
    ):
        chain.audits.next(chain.broker)


def test_a_partition_that_rests_needs_none_of_its_log(file):
    """Its last messages go by retention while others go on; it is audited again when it goes on itself."""
    stream = test_verify.make_stream()
    audits = Audits(file, GROUP, {LOG: stream.mapping.engine}, SETTINGS)
    stream.publish()
    assert audits.next(stream.broker).clean
    for place, extent in stream.broker.extents([LOG]).items():
        stream.broker.delete_before(place, extent.end)
    for _ in range(2):
        report = audits.next(stream.broker)
        assert report.clean and report.tally.read == 0 and report.expected == (0,) * 6


def test_retention_of_what_was_not_audited_yet_has_its_error(file):
    base = NOW_MS - NOW_MS % HORIZON_MS
    chain = Chain(file, [bad_input.GOOD], [base])
    chain.go_on([bad_input.GOOD] * 2, [base + 9 * HORIZON_MS] * 2)
    chain.broker.delete_before(Place(LOG, 0), Offset(1))
    assert chain.audits.next(chain.broker, leave=False).clean, "no id of the first message is remembered"
    chain.broker.delete_before(Place(LOG, 0), Offset(2))
    with pytest.raises(LogGone, match="begins at offset 2, but .* needed from offset 1 on"):
        chain.audits.next(chain.broker)


@pytest.mark.parametrize("topic", [USAGE, LIVE, REJECTED])
def test_retention_of_what_was_published_before_does_no_harm(topic, file):
    halves = Halves(file)
    ends = halves.later.broker.extents([topic])
    halves.later.publish()
    for place, extent in ends.items():
        halves.later.broker.delete_before(place, extent.end)
    report = halves.audits.next(halves.later.broker, leave=False)
    assert report.clean and not report.notes
    place, extent = max(halves.later.broker.extents([topic]).items(), key=lambda item: item[1].end)
    halves.later.broker.delete_before(place, Offset(ends[place].end + 1))
    with pytest.raises(LogGone, match=f"{topic}/{place.partition} begins at offset"):
        halves.audits.next(halves.later.broker)


def test_a_partition_that_is_new_is_audited_from_its_beginning(file):
    chain = Chain(file, [bad_input.GOOD])
    chain.broker.add_partitions(LOG, 2)
    chain.broker.append(LOG, [bad_input.changed(request_id=b'"%d"' % at) for at in range(20)],
                        [b"%d" % at for at in range(20)], [NOW_MS] * 20)  # fmt: skip
    for place, extent in chain.broker.extents([LOG]).items():
        chain.writer.commit(place, extent.end)
    report = chain.audits.next(chain.broker) if chain.stream.publish() is None else None
    assert report and report.clean and report.tally.read == 20 and len(report.partitions) == 2


# --- What does not fit ---


@pytest.mark.parametrize(
    "settings, match",
    [
        ({"dedup_horizon_ms": 2000}, "--dedup-horizon 1,000 ms, and now it is 2,000 ms"),
        ({"window_ms": 30_000}, "--window 60,000 ms, and now it is 30,000 ms"),
        ({"max_future_skew_ms": 1}, "--max-future-skew 3,600,000 ms"),
        ({"max_past_ms": 5}, "--max-past None, and now it is 5 ms"),
        ({"conflict_letters": False}, "--conflicts-to-letters True"),
        ({"usage_topic": LIVE}, "--usage-topic token-usage, and now it is token-live"),
        ({"live_topic": USAGE}, "--live-topic"),
        ({"rejected_topic": USAGE}, "--rejected-topic"),
    ],
)
def test_other_settings_have_their_error(settings, match, file):
    chain = Chain(file, [bad_input.GOOD])
    with pytest.raises(OtherStream, match=match):
        chain.audits.full(chain.broker, since=file, **settings)


def test_another_group_or_topic_or_mapping_has_its_error(file):
    chain = Chain(file, [bad_input.GOOD])
    settings = dataclasses.replace(SETTINGS, since=file)
    native = harness.shipped().engine
    chain.broker.create_topic("more", 1, {})
    for topics, match in (
        ({"more": native}, "the topic inference-logs, which is not to be audited now: add --input inference-logs"),
        ({LOG: harness.shipped("openai-chat").engine}, "the mapping of inference-logs was another one"),
        ({LOG: GROW.engine}, "the mapping of inference-logs was another one"),
    ):
        with pytest.raises(OtherStream, match=match):
            verify(chain.broker, GROUP, topics, settings)
    renamed = dataclasses.replace(native, name="other", description="other", source="other.toml")
    assert verify(chain.broker, GROUP, {LOG: renamed, "more": native}, settings).clean, "one more topic may come"
    with pytest.raises(OtherStream, match="it is of the group meters, and others is to be audited"):
        verify(chain.broker, "others", {LOG: native}, settings)


@pytest.mark.parametrize("topic", [LOG, USAGE, LIVE, REJECTED])
@pytest.mark.parametrize("is_named", [True, False])
def test_a_topic_that_was_made_anew_has_its_error(topic, is_named, file, monkeypatch):
    """By its id; and where the permission for that is missing, by what is in it."""
    chain = Chain(file, [bad_input.GOOD, b"{"])
    if not is_named:
        monkeypatch.setattr(chain.broker, "topics", refuse)
    chain.broker.delete_topic(topic)
    chain.broker.create_topic(topic, 1 if topic == LOG else 2 if topic != USAGE else 3, {})
    if topic == LOG:
        chain.broker.append(LOG, [bad_input.GOOD] * 3, None, [NOW_MS + 5] * 3)
        if is_named:
            chain.stream.publish()
        else:
            chain.go_on([bad_input.GOOD])
    with pytest.raises(OtherStream, match="was made anew since then" if is_named else "was the topic made anew"):
        chain.audits.next(chain.broker)


def refuse(names: Sequence[str]) -> dict:
    raise Refused("no DESCRIBE_CONFIGS")


def test_an_audit_without_checkpoints_asks_for_no_permission_that_it_did_not_need_before(file, monkeypatch):
    chain = Chain(file, [bad_input.GOOD])
    monkeypatch.setattr(chain.broker, "topics", lambda names: pytest.fail("this needs DESCRIBE_CONFIGS"))
    assert chain.audits.full(chain.broker).clean


def test_offsets_that_were_set_back_have_their_error(file):
    chain = Chain(file, [bad_input.GOOD] * 3)
    chain.stream.committed[Place(LOG, 0)] = 2
    chain.stream.publish()
    with pytest.raises(OtherStream, match="was audited up to offset 3, but only offset 2 is committed"):
        chain.audits.next(chain.broker)


# --- The file ---


def test_a_file_that_is_none_has_its_error(file, tmp_path):
    chain = Chain(file, [bad_input.GOOD, b"{"])
    data = pathlib.Path(file).read_bytes()
    for number, (bad, match) in enumerate(
        [
            (b"", "no checkpoint of verify"),
            (b"PAR1", "no checkpoint of verify"),
            (data.replace(b"checkpoint 1 ", b"checkpoint 2 ", 1), "version 2, and this tokenometer reads version 1"),
            (data[:-1], "damaged"),
            (data + b"\0", "damaged"),
            (data.split(b"\n")[0] + b"\n", "damaged"),
        ]
    ):
        other = tmp_path / f"bad-{number}"
        other.write_bytes(bad)
        with pytest.raises(UnusableCheckpoint, match=match):
            chain.audits.full(chain.broker, since=str(other))
    with pytest.raises(UnusableCheckpoint, match="no such file: make the first one with --checkpoint"):
        chain.audits.full(chain.broker, since=str(tmp_path / "nothing"))
    with pytest.raises(UnusableCheckpoint, match="Is a directory"):
        chain.audits.full(chain.broker, since=str(tmp_path))


def test_no_changed_byte_of_a_file_is_overlooked(file):
    chain = Chain(file, [bad_input.GOOD])
    path, data = pathlib.Path(file), pathlib.Path(file).read_bytes()
    rng = random.Random(SEED)
    for at in {*range(len(b"tokenometer checkpoint 1 ")), *rng.sample(range(len(data)), 200)}:
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :])
        with pytest.raises(UnusableCheckpoint):
            checkpoint.read(file)
    path.write_bytes(data)
    assert chain.audits.next(chain.broker).clean


def test_a_file_is_the_old_one_or_the_new_one(file, tmp_path, monkeypatch):
    chain = Chain(file, [bad_input.GOOD])
    before = pathlib.Path(file).read_bytes()
    chain.go_on([bad_input.GOOD])

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os, "replace", full)
        with pytest.raises(UnusableCheckpoint, match="it cannot be written: No space left"):
            chain.audits.next(chain.broker)
    assert pathlib.Path(file).read_bytes() == before and os.listdir(tmp_path) == ["audit"]
    assert chain.audits.next(chain.broker).clean
    assert pathlib.Path(file).read_bytes() != before and os.listdir(tmp_path) == ["audit"]
    assert pathlib.Path(file).stat().st_mode & 0o077 == 0, "it has the names of users"


def test_a_file_that_cannot_be_written_is_told_before_anything_is_read(tmp_path):
    for file, match in ((tmp_path / "none" / "file", "there is no folder"), (tmp_path, "it cannot be written")):
        with pytest.raises(UnusableCheckpoint, match=match):
            verify(None, GROUP, {}, dataclasses.replace(SETTINGS, checkpoint=str(file)))  # type: ignore[arg-type]


def test_a_file_says_the_same_when_it_is_read(file):
    halves = Halves(file, "multimodal-gateway") if "multimodal-gateway" in harness.SHIPPED else Halves(file)
    made = checkpoint.read(file)
    checkpoint.write(file + ".again", made)
    again = checkpoint.read(file + ".again")
    assert again.rows.equals(made.rows) and len(made.rows) > 0
    assert dataclasses.replace(again, rows=None) == dataclasses.replace(made, rows=None)
    assert {part.part for _, part in made.parts} == {"meter-0.1"}
    assert set(made.rows["part"].to_pylist()) == {b"meter-0.1"}
    assert halves.before.live[-1]["part"] == "meter-0.1"


def test_a_mappings_digest_is_of_what_it_means(tmp_path):
    seen = {checkpoint.digest_of(harness.shipped(name).engine, None) for name in harness.SHIPPED}
    assert len(seen) == len(harness.SHIPPED)
    text = (harness.MAPPINGS / "native.toml").read_text()
    same = mappings.parse("# a comment\n" + text, "elsewhere.toml")
    assert checkpoint.digest_of(same, None) == checkpoint.digest_of(harness.shipped().engine, None)
    assert checkpoint.digest_of(same, b"schema") not in {*seen, checkpoint.digest_of(same, b"other")}


# --- What is kept ---


@pytest.mark.parametrize("age_ms, is_kept", [(86_400_000, True), (86_400_001, False)])
def test_a_meter_that_said_nothing_for_a_day_is_gone(age_ms, is_kept):
    parts, place = live.Parts(), Place(LIVE, 0)
    for meter, part, at in (("a", "a.0", 0), ("a", "a.1", 0), ("b", "b.0", age_ms)):
        text = datetime.datetime.fromtimestamp((NOW_MS + at) / 1000, datetime.UTC).isoformat()
        parts.add(head(part, meter, (), at=text), "", place)
    assert [each.part for _, each in parts.open_ones()] == (["a.1"] if is_kept else []) + ["b.0"]


A, B = Place(LOG, 0), Place(LOG, 1)
KNOWN = ((A, 10, 20), (B, 0, 30))  # of part p: A was taken from it at 20, and it goes on with B


@pytest.mark.parametrize(
    "now, wanted",
    [
        (KNOWN, {A: "the parts end at offset 40", B: "the parts end at offset 30"}),
        (((A, 10, 20), (B, 0, 35)), {A: "the parts end at offset 40"}),
        (((A, 10, 25), (B, 0, 35)), {A: "offsets 10 to 24 are in a part that was audited before and in part p"}),
        (
            ((A, 10, 20), (B, 1, 35)),
            {A: "the parts end at offset 40", B: "offsets 0 to 0 are in no part, before part p"},
        ),
        (((A, 10, 20), (B, 0, 29)), {A: "the parts end at offset 40", B: "the parts end at offset 29"}),
        (((B, 0, 35),), {A: "the parts end at offset 40"}),
    ],
)
@pytest.mark.parametrize("goes_on", [True, False])
def test_the_ranges_of_a_part_that_goes_on_tile(now, wanted, goes_on):
    """goes_on: another part has read A from 40 on, up to what is committed."""
    parts, since = live.Parts(), {A: 40, B: 30}
    parts.know(Place(LIVE, 0), head("p", "a", KNOWN))
    parts.add(head("p", "a", now, sequence=1), "", Place(LIVE, 0))
    if goes_on:
        parts.add(head("q", "b", ((A, 40, 50),)), "", Place(LIVE, 0))
        wanted = {place: text for place, text in wanted.items() if text != "the parts end at offset 40"}
    ranges, starts = live.ranges_since(parts, since)
    found = [
        problem
        for place, committed in ((A, 50), (B, 35))
        for problem in live.tiling_problems(place, ranges.get(place, []), None, committed, starts.get(place))
    ]
    assert {problem.where for problem in found} == {f"{place.topic}/{place.partition}" for place in wanted}
    for place, text in wanted.items():
        assert any(text in problem.what for problem in found if problem.where == f"{LOG}/{place.partition}"), found


def head(part: str, meter: str, ranges: tuple, sequence: int = 0, at: str = "") -> live.SummaryHead:
    nothing = dict.fromkeys(("read", "counted", "duplicates", "rejected", "empty", "skipped", "conflicts"), 0)
    return live.SummaryHead(part, meter, at, sequence, nothing, {}, ranges, (0,) * 6, 0, b"")


@pytest.mark.parametrize("count", [1, (1 << 48) - 1, 1 << 48, 1 << 61, (1 << 61) + 1, (1 << 64) - 1])
def test_rows_of_any_size_go_on(count, file, tmp_path):
    """No sum wraps: what would bring one beyond its end is added in pieces, and written out between them."""
    chain = Chain(file, [bad_input.GOOD])
    made = checkpoint.read(file)
    row = made.rows.to_pylist()[0] | {"input_tokens": count}
    rows = [row | {"part": b"part %d" % at, "log_offset": at} for at in range(3)]
    known = Earlier(file, dataclasses.replace(made, rows=pa.Table.from_pylist(rows, made.rows.schema)))
    tables = Tables(str(tmp_path), 60_000, 1 << 30)
    known.add_rows(tables)
    agreed = tables.write_rows()
    with Sums(str(tmp_path), [], SETTINGS, agreed) as sums:
        assert sums.count("differing") == 0
        assert sums.total("expected") == sums.total("found") == (3, 3 * count, 0, 0, 15, 0)
        assert sums.total("found", known.tokens()) == (0,) * 6
    assert chain.audits.count == 1


def test_a_report_says_since_when_and_of_what(file):
    halves = Halves(file)
    first = checkpoint.read(file)
    halves.later.publish()
    report = halves.audits.next(halves.later.broker)
    text = " ".join(told(report).split())
    assert max(map(len, text_of(report).splitlines())) <= 80
    assert f"offsets of {LOG}/0 from {first.log[Place(LOG, 0)].committed}" in text
    assert f"{report.in_all.tally.read:,} records" in text and "written to" in text
    assert report.since and report.since.made_at_ms == first.made_at_ms and report.since.file == file
    assert report.in_all.tally.read == first.totals.tally.read + report.tally.read
    assert json.loads(pathlib.Path(file).read_bytes().split(b"\n")[1])["stream"]["group"] == GROUP
