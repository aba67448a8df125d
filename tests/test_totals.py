"""The rollup's entries and rolling totals, against the plainest sum, whatever is delivered again or lost on the way."""

import itertools
import json
import zlib
from collections import defaultdict

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.harness import TIMES
from tests.summaries import COUNTERS, FakeMeter, Fleet, named, rfc3339
from tests.test_schemas import validator
from tokenometer.processor.rollup import cells, entries, summaries, totals
from tokenometer.processor.rollup.entries import DAY_MS, Entries, Key, kept_from
from tokenometer.processor.rollup.meters import HOUR_MS, MINUTE_MS
from tokenometer.processor.rollup.summaries import UnknownSummary, Unreadable, read_summary
from tokenometer.processor.rollup.tables import Only
from tokenometer.processor.rollup.totals import Totals

START_MS = 1_795_453_500_000  # 17:05 UTC
LONG = {"last_24h", "today"}
seeds = st.integers(0, 1 << 32)


class Kept:
    """Entries as a compacted topic keeps them: what was written last, in the order of writing for who follows."""

    def __init__(self) -> None:
        self.table: dict[bytes, bytes] = {}
        self.log: list[tuple[bytes, bytes | None]] = []

    def write(self, key: bytes, value: bytes | None) -> None:
        self.log.append((key, value))
        if value is None:
            self.table.pop(key, None)
        else:
            self.table[key] = value


def rolled(kept: Kept, now_ms: int) -> dict:
    """By one who read the topic from its beginning, after compaction."""
    view = Totals()
    for key, value in kept.table.items():
        view.apply(key, value)
    return checked(view.rolling(now_ms))


def checked(answer: dict) -> dict:
    validator("totals").validate(json.loads(json.dumps(answer)))
    return answer


def expected_span(fleet: Fleet, begin_ms: int, end_ms: int) -> dict:
    total, models, chips = [0] * 6, defaultdict(lambda: [0] * 6), defaultdict(lambda: [0] * 6)
    for (window, model, chip), counters in fleet.usage().items():
        if begin_ms <= window < end_ms:
            for row in (total, models[model], chips[chip]):
                row[:] = [a + b for a, b in zip(row, counters, strict=True)]
    return {
        "tokens": named(total),
        "by_model": {model: named(row) for model, row in models.items()},
        "by_chip": {chip: named(row) for chip, row in chips.items()},
    }


def begins(now_ms: int, window_ms: int = MINUTE_MS) -> dict[str, tuple[int, int]]:
    """Where the spans begin and end, by their definition."""
    day, ever = now_ms // DAY_MS * DAY_MS, 1 << 60
    spans = {"last_1m": MINUTE_MS, "last_5m": 5 * MINUTE_MS, "last_1h": HOUR_MS, "last_24h": DAY_MS}
    found = {name: ((now_ms - span) // window_ms * window_ms, ever) for name, span in spans.items()}
    return found | {"today": (day, day + DAY_MS), "yesterday": (day - DAY_MS, day)}


def assert_is_the_sum(answer: dict, fleet: Fleet, now_ms: int) -> None:
    for name, (begin_ms, end_ms) in begins(now_ms, fleet.window_ms).items():
        wanted, found = expected_span(fleet, begin_ms, end_ms), answer["windows"][name]
        assert found["tokens"] == wanted["tokens"], name
        assert found["from"] == rfc3339(begin_ms)
        if name != "yesterday":
            assert {row.pop("model"): row for row in map(dict, found["by_model"])} == {
                model: row for model, row in wanted["by_model"].items() if any(row.values())
            }
            assert {row.pop("chip"): row for row in map(dict, found["by_chip"])} == {
                chip: row for chip, row in wanted["by_chip"].items() if any(row.values())
            }
            assert found["others"] == named([0] * 6)
    ever = expected_span(fleet, 0, 1 << 60)["tokens"]
    assert answer["windows"]["since_start"]["tokens"] == ever
    hour = [row for row in answer["windows"]["last_1h"]["by_model"]]
    assert sum(map(sum, answer["matrix"]["total_tokens"])) == sum(row["total_tokens"] for row in hour)
    assert answer["records"]["read"] == sum(answer["records"][name] for name in summaries.RECORDS)


def run(fleet: Fleet, steps: int, step_ms: tuple[int, ...], late_ms: int) -> None:
    for _ in range(steps):
        fleet.now_ms += fleet.draw.choice(step_ms)
        fleet.work(late_ms=late_ms)


WINDOWS = st.sampled_from([1000, 10_000, MINUTE_MS, HOUR_MS, DAY_MS])
STEPS = st.sampled_from([(1000,), (0, 1000, 60_000), (1000, 20 * MINUTE_MS), (1000, 3 * HOUR_MS)])


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    seed=seeds, step_ms=STEPS, late_ms=st.sampled_from([0, 5 * MINUTE_MS, 2 * HOUR_MS]), window_ms=WINDOWS
)  # fmt: skip
def test_totals_are_the_sum_of_the_last_words_of_all_parts(seed, step_ms, late_ms, window_ms):
    fleet, keeper, view = Fleet(seed, START_MS, window_ms=window_ms), Entries(), Totals()
    kept = Kept()
    for _ in range(40):
        seen = len(fleet.log)
        run(fleet, 1, step_ms, late_ms)
        for partition, offset, value in fleet.log[seen:]:
            for key, changed in keeper.learn(partition, offset, read_summary(value), fleet.now_ms).items():
                kept.write(key, changed)
                assert view.apply(key, changed)
    assert_is_the_sum(checked(view.rolling(fleet.now_ms)), fleet, fleet.now_ms)
    assert_is_the_sum(rolled(kept, fleet.now_ms), fleet, fleet.now_ms)


@pytest.mark.slow
@settings(max_examples=50 * TIMES, deadline=None)
@given(seed=seeds, step_ms=STEPS, late_ms=st.sampled_from([0, 5 * MINUTE_MS, 2 * HOUR_MS]))
def test_crashes_and_redelivery_change_nothing(seed, step_ms, late_ms):
    """Writers die between any two writes and go on at any earlier offset; partitions wait for one another."""
    fleet = Fleet(seed, START_MS)
    run(fleet, 40, step_ms, late_ms)
    draw, kept, view = fleet.draw, Kept(), Totals()
    logs = {p: [(offset, value) for partition, offset, value in fleet.log if partition == p] for p in range(2)}
    keepers, at, before = {p: Entries() for p in logs}, dict.fromkeys(logs, 0), 0
    while any(at[p] < len(logs[p]) for p in logs):
        p = draw.choice([p for p in logs if at[p] < len(logs[p])])
        offset, value = logs[p][at[p]]
        changes = list(keepers[p].learn(p, offset, read_summary(value), fleet.now_ms).items())
        dies = draw.random() < 0.15
        for key, changed in changes[: draw.randrange(len(changes) + 1)] if dies else changes:
            kept.write(key, changed)
            view.apply(key, changed)
        assert keepers[p].left_out == 0
        at[p] += 1
        spot = view.rolling(fleet.now_ms)["windows"]["since_start"]["tokens"]["total_tokens"] if dies else before
        assert before <= spot, "a total never goes back"
        before = spot
        if dies:
            keepers[p] = Entries()
            keepers[p].restore((key, value) for key, value in kept.table.items() if Key.decode(key).partition == p)
            at[p] = max(
                0, at[p] - 1 - draw.choice([0, 0, 0, 0, draw.randrange(20)])
            )  # nothing is committed that was not written
    assert_is_the_sum(checked(view.rolling(fleet.now_ms)), fleet, fleet.now_ms)
    assert_is_the_sum(rolled(kept, fleet.now_ms), fleet, fleet.now_ms)


@pytest.mark.slow
@settings(max_examples=20 * TIMES, deadline=None)
@given(seed=seeds, step_ms=STEPS)
def test_no_total_is_ever_too_large(seed, step_ms):
    """Not between two writes either: what is shown has happened."""
    fleet, keeper, view = Fleet(seed, START_MS), Entries(), Totals()
    for _ in range(30):
        seen = len(fleet.log)
        run(fleet, 1, step_ms, 20 * MINUTE_MS)
        true = {name: expected_span(fleet, *span)["tokens"] for name, span in begins(fleet.now_ms).items()}
        for partition, offset, value in fleet.log[seen:]:
            for key, changed in keeper.learn(partition, offset, read_summary(value), fleet.now_ms).items():
                view.apply(key, changed)
                for name, found in view.rolling(fleet.now_ms)["windows"].items():
                    if name in true:
                        assert all(found["tokens"][counter] <= true[name][counter] for counter in COUNTERS)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(seed=seeds, step_ms=STEPS)
def test_an_overtaken_writer_changes_nothing(seed, step_ms):
    """It woke up, and writes what it has; whoever follows keeps the longer beginning and says so."""
    fleet = Fleet(seed, START_MS, partitions=1)
    run(fleet, 30, step_ms, 5 * MINUTE_MS)
    owner, zombie, view = Entries(), Entries(), Totals()
    stale = fleet.draw.randrange(len(fleet.log))
    late_writes = []
    for number, (partition, offset, value) in enumerate(fleet.log):
        for key, changed in owner.learn(partition, offset, read_summary(value), fleet.now_ms).items():
            assert view.apply(key, changed)
        if number < stale:
            changes = zombie.learn(partition, offset, read_summary(value), fleet.now_ms).items()
            late_writes += [(key, changed) for key, changed in changes if changed is not None]
    before = view.rolling(fleet.now_ms)
    for key, changed in late_writes:
        current = view.apply(key, changed)
        assert current or owner.current(key) is not None, "what is not current can be written again"
    assert view.rolling(fleet.now_ms)["windows"] == before["windows"]


def test_a_part_is_closed_by_the_log_and_not_by_a_meters_entry_that_is_ahead():
    """An overtaken writer's cells are the last ones written, and their owner died before it could mend them."""
    meter, late = FakeMeter("meter-0", 0), START_MS + 20 * MINUTE_MS
    messages = []
    for now_ms in (START_MS, START_MS + 1000):
        meter.count((START_MS, "m", "c"), [1, 10, 0, 0, 0, 0], "u")
        messages += meter.summary(now_ms)
    meter.open_part()
    meter.count((late, "m", "c"), [1, 1, 0, 0, 0, 0], "u")
    messages += meter.summary(late)
    writer, kept = Entries(), Kept()
    written = [list(writer.learn(0, n, read_summary(value), late).items()) for n, value in enumerate(messages)]
    for key, changed in written[0]:
        kept.write(key, changed)
    kept.write(*next(item for item in written[2] if Key.decode(item[0]).kind == "meter"))
    writer = Entries()
    writer.restore(kept.table.items())
    for offset, value in enumerate(messages):
        for key, changed in writer.learn(0, offset, read_summary(value), late).items():
            kept.write(key, changed)
    assert rolled(kept, late)["windows"]["last_1h"]["tokens"]["input_tokens"] == 21


def told(fleet: Fleet) -> Totals:
    """The totals of all that the fleet has written."""
    keeper, view = Entries(), Totals()
    for partition, offset, value in fleet.log:
        for key, changed in keeper.learn(partition, offset, read_summary(value), fleet.now_ms).items():
            view.apply(key, changed)
    return view


@settings(max_examples=30, deadline=None)
@given(seed=seeds, window_ms=WINDOWS)
def test_active_users_are_those_of_the_span(seed, window_ms):
    fleet = Fleet(seed, START_MS, window_ms=window_ms)
    for _ in range(60):
        fleet.now_ms += fleet.draw.choice([1000, 10 * MINUTE_MS])
        fleet.work(records=20)
    view = told(fleet)
    answer = view.rolling(fleet.now_ms)
    for name, (begin_ms, end_ms) in begins(fleet.now_ms, window_ms).items():
        found = answer["windows"][name]
        if name == "yesterday":
            assert found["active_users"] is None
            continue
        first = begin_ms // HOUR_MS * HOUR_MS if name in LONG else begin_ms
        users = set().union(*(users for window, users in fleet.active.items() if begin_ms <= window < end_ms))
        most = set().union(*(users for window, users in fleet.active.items() if first <= window < end_ms))
        if not most:
            assert found["active_users"] is None
            continue
        # thirty names among 16,384 registers: two of them may share one
        assert len(users) * 0.9 - 1 <= (found["active_users"] or 0) <= len(most) * 1.1 + 1
        if found["active_users"]:
            assert found["tokens_per_active_user"] == found["tokens"]["total_tokens"] / found["active_users"]


@settings(max_examples=30, deadline=None)
@given(seed=seeds, by=st.sampled_from(totals.HISTORIES), step_ms=st.sampled_from([MINUTE_MS, 5 * MINUTE_MS]))
def test_histories_add_up(seed, by, step_ms):
    fleet = Fleet(seed, START_MS)
    run(fleet, 40, (1000, 60_000), 10 * MINUTE_MS)
    view = told(fleet)
    found = view.history(fleet.now_ms, HOUR_MS, step_ms, by)
    assert found["times"] == list(range(found["times"][0], found["times"][0] + HOUR_MS, step_ms))
    assert found["times"][-1] <= fleet.now_ms < found["times"][-1] + step_ms
    for place, time in enumerate(found["times"]):
        wanted = expected_span(fleet, time, time + step_ms)
        assert sum(series["tokens"][place] for series in found["series"]) == wanted["tokens"]["total_tokens"]
        for series in found["series"]:
            if by in ("model", "chip"):
                known = wanted[f"by_{by}"].get(series["name"], named([0] * 6))
                assert series["tokens"][place] == known["total_tokens"]
    assert view.history(fleet.now_ms, HOUR_MS, step_ms, by, fleet.now_ms)["series"] == found["series"], "until now"


@settings(max_examples=30, deadline=None)
@given(seed=seeds)
def test_a_part_of_the_totals_is_that_of_its_cells(seed):
    fleet = Fleet(seed, START_MS)
    run(fleet, 40, (1000, 60_000), 10 * MINUTE_MS)
    view = told(fleet)
    whole = view.rolling(fleet.now_ms)["windows"]
    for kind in ("model", "chip"):
        for row in whole["last_24h"][f"by_{kind}"]:
            only = Only(**{kind: row[kind]})
            found = view.view(fleet.now_ms, only)
            assert found["windows"]["last_24h"]["tokens"] == {
                name: row[name] for name in found["windows"]["today"]["tokens"]
            }
            matrix = found["matrix"]
            known = [each for each in whole["last_1h"][f"by_{kind}"] if each[kind] == row[kind]]
            assert matrix[f"{kind}s"] == [row[kind]] * len(known)
            assert sum(map(sum, matrix["total_tokens"])) == sum(each["total_tokens"] for each in known)
            cells = view.cells_of(*view.range_of(fleet.now_ms, HOUR_MS, None), only)
            assert found["range"]["tokens"]["total_tokens"] == sum(map(sum, matrix["total_tokens"]))
            assert sum(counters[1] + counters[4] for _, _, counters in cells) == sum(map(sum, matrix["total_tokens"]))
            found = view.history(fleet.now_ms, HOUR_MS, MINUTE_MS, "total", only=only)
            assert sum(found["series"][0]["tokens"]) <= whole["last_1h"]["tokens"]["total_tokens"]
    nobody = view.view(fleet.now_ms, Only("nobody"))
    assert nobody["windows"]["last_24h"]["tokens"]["total_tokens"] == 0 and nobody["matrix"]["models"] == []


@settings(max_examples=30, deadline=None)
@given(seed=seeds, minutes=st.integers(1, 3000), until=st.integers(0, 200))
def test_sums_of_a_time_are_those_of_its_windows(seed, minutes, until):
    fleet = Fleet(seed, START_MS)
    run(fleet, 40, (1000, 60_000), 100 * MINUTE_MS)
    view = told(fleet)
    view.rolling(fleet.now_ms)
    until_ms = fleet.now_ms // MINUTE_MS * MINUTE_MS + (10 - until) * MINUTE_MS
    begin_ms = max(until_ms - minutes * MINUTE_MS, kept_from(fleet.now_ms))
    for only in (Only(), Only(model="model-1"), Only(chip="chip-2"), Only("model-0", "chip-0")):
        found = view.view(fleet.now_ms, only, until_ms - begin_ms, until_ms)
        rows = [
            counters for (window, model, chip), counters in fleet.usage().items()
            if begin_ms <= window < until_ms and only.model in (None, model) and only.chip in (None, chip)
        ]  # fmt: skip
        tokens = sum(row[1] + row[4] for row in rows)
        assert found["range"]["tokens"]["total_tokens"] == tokens
        assert sum(map(sum, found["matrix"]["total_tokens"])) == tokens


@settings(max_examples=30, deadline=None)
@given(seed=seeds)
def test_a_meter_s_last_quarter_of_an_hour_is_that_of_its_own_cells(seed):
    fleet = Fleet(seed, START_MS)
    run(fleet, 60, (1000, 60_000), 10 * MINUTE_MS)
    view = told(fleet)
    view.rolling(fleet.now_ms)
    begin_ms = (fleet.now_ms - 15 * MINUTE_MS) // MINUTE_MS * MINUTE_MS
    for meter in fleet.meters:
        only = Only(meter=meter.name)
        own = {
            (part, cell): counters for (part, cell), counters in fleet.truth.items()
            if part.startswith(f"{meter.name}.") and cell[0] >= begin_ms
        }  # fmt: skip
        found = view.view(fleet.now_ms, only, 15 * MINUTE_MS)
        assert found["range"]["tokens"]["total_tokens"] == sum(row[1] + row[4] for row in own.values())
        assert set(found["windows"]) == {"last_1m", "last_5m"}
        history = view.history(fleet.now_ms, 15 * MINUTE_MS, MINUTE_MS, "model", only=only)
        recent = sum(row[1] + row[4] for (_, cell), row in own.items() if cell[0] >= history["times"][0])
        assert sum(map(sum, (series["tokens"] for series in history["series"]))) == recent
        users = {row["user"]: row["total_tokens"] for row in view.top_users(fleet.now_ms, meter.name)}
        everybody = {row["user"]: row["total_tokens"] for row in view.top_users(fleet.now_ms)}
        assert all(tokens <= everybody.get(user, tokens) for user, tokens in users.items())


def apply_all(view: Totals, keeper: Entries, meter: FakeMeter, now_ms: int, offset: int) -> None:
    for key, changed in keeper.learn(0, offset, read_summary(meter.summary(now_ms)[0]), now_ms).items():
        view.apply(key, changed)


def test_days_follow_one_another():
    view, keeper, meter = Totals(), Entries(), FakeMeter("meter-0", 0)
    midnight = START_MS // DAY_MS * DAY_MS + DAY_MS
    meter.count((midnight - MINUTE_MS, "m", "c"), [1, 10, 0, 0, 5, 0], "u")
    apply_all(view, keeper, meter, midnight - 1000, 0)
    spans = view.rolling(midnight - 1000)["windows"]
    assert (spans["today"]["tokens"]["total_tokens"], spans["yesterday"]["tokens"]["total_tokens"]) == (15, 0)
    spans = view.rolling(midnight + 1000)["windows"]
    assert (spans["today"]["tokens"]["total_tokens"], spans["yesterday"]["tokens"]["total_tokens"]) == (0, 15)
    meter.count((midnight - MINUTE_MS, "m", "c"), [1, 1, 0, 0, 0, 0], "u")  # late
    apply_all(view, keeper, meter, midnight + 2000, 1)
    spans = view.rolling(midnight + 2000)["windows"]
    assert (spans["today"]["tokens"]["total_tokens"], spans["yesterday"]["tokens"]["total_tokens"]) == (0, 16)
    spans = view.rolling(midnight + DAY_MS)["windows"]
    assert (spans["yesterday"]["tokens"]["total_tokens"], spans["since_start"]["tokens"]["total_tokens"]) == (0, 16)


def test_memory_is_bounded_by_two_days():
    fleet, keeper, kept, view = Fleet(3, START_MS), Entries(), Kept(), Totals()
    sizes = []
    for _ in range(6):
        seen = len(fleet.log)
        for _ in range(200):
            fleet.now_ms += 7 * MINUTE_MS
            fleet.work(late_ms=3 * DAY_MS)
        for partition, offset, value in fleet.log[seen:]:
            for key, changed in keeper.learn(partition, offset, read_summary(value), fleet.now_ms).items():
                kept.write(key, changed)
                view.apply(key, changed)
        view.rolling(fleet.now_ms)
        sizes.append((len(kept.table), len(view._windows), len(view._users), len(view._hours)))
    assert max(size[0] for size in sizes[2:]) < 1.3 * sizes[2][0]
    assert all(windows <= 2 * 24 * 60 and users <= 3 * 60 and hours <= 49 for _, windows, users, hours in sizes)
    assert {Key.decode(key).kind for key in kept.table} <= {"meter", "cells", "window", "users", "hour"}
    oldest = min(Key.decode(key).time_ms for key in kept.table if Key.decode(key).kind != "meter")
    assert oldest >= entries.kept_from(fleet.now_ms) - HOUR_MS - DAY_MS


def test_more_cells_than_are_told_apart_are_others(monkeypatch):
    monkeypatch.setattr(totals, "CELLS_MAX", 5)
    view, keeper, meter = Totals(), Entries(), FakeMeter("meter-0", 0)
    for number in range(9):
        meter.count((START_MS, f"m{number}", "c"), [1, 10, 0, 0, 5, 0], "u")
    apply_all(view, keeper, meter, START_MS + 1000, 0)
    found = view.rolling(START_MS + 1000)["windows"]["last_1m"]
    assert [row["model"] for row in found["by_model"]] == ["m0", "m1", "m2", "m3"]
    assert found["tokens"] == named([9, 90, 0, 0, 45, 0]) and found["others"] == named([5, 50, 0, 0, 25, 0])
    later = START_MS + 3 * DAY_MS  # the first ones are forgotten, and others take their numbers
    view.rolling(later)
    for number in range(20, 24):
        meter.count((later, f"m{number}", "c"), [1, 10, 0, 0, 5, 0], "u")
    apply_all(view, keeper, meter, later, 1)
    found = view.rolling(later)["windows"]["last_1m"]
    assert [row["model"] for row in found["by_model"]] == ["m20", "m21", "m22", "m23"]
    assert found["others"] == named([0] * 6)


def test_speed_is_that_of_the_last_minute():
    view, keeper, meter = Totals(), Entries(), FakeMeter("meter-0", 0)
    for second in range(120):
        now_ms = START_MS + second * 1000
        meter.count((START_MS, "m", "c"), [2, 30 if second < 30 else 300, 0, 0, 10, 0], "u")
        apply_all(view, keeper, meter, now_ms, second)
        rate = view.rolling(now_ms)["rate"]
        if second == 0:
            assert rate["tokens_per_second"] is None and rate["share_of_target"] is None
        if second == 20:
            assert rate["tokens_per_second"] == 40 and rate["requests_per_second"] == 2
            assert rate["tokens_per_day"] == 40 * 86_400
    assert rate["tokens_per_second"] == 310
    assert rate["share_of_target"] == pytest.approx(310 * 86_400 / 120e12)
    speeds = view.rate_history()
    assert len(speeds["times"]) == 115 and speeds["tokens_per_second"][-1] == 310


def test_a_meter_that_is_silent_is_stale_and_then_gone():
    view, keeper, meter = Totals(), Entries(), FakeMeter("meter-0", 0)
    assert view.rolling(START_MS)["stale"]
    meter.count((START_MS, "m", "c"), [1, 1, 0, 0, 0, 0], "u")
    meter.reject("invalid_json")
    apply_all(view, keeper, meter, START_MS, 0)
    for age_ms, state in ((1999, "live"), (2000, "late"), (11_999, "late")):
        answer = view.rolling(START_MS + age_ms)
        assert (answer["stale"], answer["meters"][0]["state"], answer["meters"][0]["age_ms"]) == (False, state, age_ms)
    assert answer["freshness_ms"] == 40 and answer["lag_messages"] == 3
    assert answer["rejects"] == {"invalid_json": 1} and answer["records"]["rejected"] == 1
    answer = view.rolling(START_MS + 12_000)
    assert answer["stale"] and answer["meters"][0]["state"] == "stale" and answer["freshness_ms"] is None
    answer = view.rolling(START_MS + DAY_MS)
    assert answer["meters"] == [] and answer["records"]["read"] == 2, "what it counted stays"


def test_a_meter_that_said_goodbye_is_stopped_at_once_and_lives_again_with_its_next_word():
    view, keeper, meter = Totals(), Entries(), FakeMeter("meter-0", 0)
    for second, more, state in ((0, {}, "live"), (1, {"leaving": True}, "stopped"), (60, {}, "live")):
        now_ms = START_MS + 1000 * second
        (value,) = meter.summary(now_ms)
        told = json.loads(value) | {"interval_ms": 1000} | more
        validator("live").validate(told)
        for entry in keeper.learn(0, second, read_summary(orjson.dumps(told)), now_ms).items():
            view.apply(*entry)
        answer = view.rolling(now_ms)
        assert (answer["meters"][0]["state"], answer["stale"]) == (state, state == "stopped")


@pytest.mark.parametrize(
    ("interval_ms", "late_ms", "stale_ms"), [(0, 2000, 12_000), (5000, 10_000, 15_000), (None, 20_000, 30_000)]
)
def test_a_meter_that_commits_seldom_is_late_after_two_of_its_own_intervals(interval_ms, late_ms, stale_ms):
    view, keeper, meter = Totals(), Entries(), FakeMeter("meter-0", 0)
    (value,) = meter.summary(START_MS)
    told = json.loads(value) | {"interval_ms": interval_ms}
    if interval_ms is None:
        del told["interval_ms"]  # an older meter
    for entry in keeper.learn(0, 0, read_summary(orjson.dumps(told)), START_MS).items():
        view.apply(*entry)
    for age_ms, state in ((late_ms - 1, "live"), (late_ms, "late"), (stale_ms - 1, "late"), (stale_ms, "stale")):
        assert view.rolling(START_MS + age_ms)["meters"][0]["state"] == state


def test_a_meter_whose_clock_is_slow_is_not_late_for_that():
    view, keeper, meter = Totals(), Entries(), FakeMeter("meter-0", 0)
    view.rolling(START_MS)
    for second in range(5):
        now_ms = START_MS + 1000 * second
        (value,) = meter.summary(now_ms - 60_000)
        told = json.loads(value) | {"interval_ms": 1000}
        for entry in keeper.learn(0, second, read_summary(orjson.dumps(told)), now_ms).items():
            view.apply(*entry)
        assert view.rolling(now_ms)["meters"][0]["state"] == "live"
    assert view.rolling(now_ms + 2000)["meters"][0]["state"] == "late"


def test_a_topic_that_does_not_fit_is_told_as_long_as_a_live_meter_says_so():
    kept, keeper = Kept(), Entries()
    one = {"topic": "logs", "judged": 1000, "rejected": 900, "reason": "missing_field", "field": "user", "most": 900,
           "keys": ["id"]}  # fmt: skip
    for place, (name, rejected) in enumerate((("a", 900), ("b", 999), ("c", None))):
        meter = FakeMeter(name, place)
        (value,) = meter.summary(START_MS)
        told = json.loads(value) | ({"misfits": [one | {"rejected": rejected}]} if rejected else {})
        validator("live").validate(told)
        for entry in keeper.learn(place, 0, read_summary(orjson.dumps(told)), START_MS).items():
            kept.write(*entry)
    assert rolled(kept, START_MS)["misfits"] == [one | {"rejected": 999}], "the meter that rejects most of it"
    assert rolled(kept, START_MS + totals.STALE_MS)["misfits"] == [], "nobody knows"


def test_an_entry_of_a_rollup_that_knew_no_misfits_is_read():
    state = json.loads(totals.MeterState().encode())
    del state["misfits"]
    assert totals.MeterState.decode(orjson.dumps(state)).misfits == []


def test_who_reads_a_partition_now_tells_its_lag():
    view, keeper = Totals(), Entries()
    one, two = FakeMeter("one", 7), FakeMeter("two", 7)
    one.count((START_MS, "m", "c"), [1, 1, 0, 0, 0, 0], "u")
    apply_all(view, keeper, one, START_MS, 0)
    two.offset = 1
    two.open_part()
    for _ in range(5):
        two.count((START_MS + MINUTE_MS, "m", "c"), [1, 1, 0, 0, 0, 0], "u")
    apply_all(view, keeper, two, START_MS + 1000, 1)
    answer = view.rolling(START_MS + 1000)
    assert answer["lag_messages"] == 3
    assert answer["complete_up_to"] == rfc3339(START_MS + MINUTE_MS + 1)


def test_top_users_are_those_of_the_last_hour():
    view, keeper, meter = Totals(), Entries(), FakeMeter("meter-0", 0)
    now_ms = START_MS
    for offset, user in enumerate(["old", "a", "b", "a"]):
        meter.open_part()
        meter.count((now_ms, "m", "c"), [1, 100 + offset, 0, 0, 0, 0], user)
        apply_all(view, keeper, meter, now_ms, offset)
        now_ms += 50 * MINUTE_MS if user == "old" else 10 * MINUTE_MS
    assert view.rolling(now_ms - 10 * MINUTE_MS)["top_users"] == [
        {"user": "a", "total_tokens": 204}, {"user": "b", "total_tokens": 102},
    ]  # fmt: skip


@pytest.mark.parametrize(
    "value", [None, b"", b"{", b"[]", b"{}", b"null", b'{"schema":1}', b"7", b'{"schema":1,"cells":7}']
)
def test_what_is_no_summary_is_said_to_be_none(value):
    with pytest.raises(Unreadable):
        read_summary(value)


def summary_with(**changes) -> bytes:
    meter = FakeMeter("meter-0", 0)
    meter.count((START_MS, "m", "c"), [1, 1, 0, 0, 0, 0], "u")
    return orjson.dumps(orjson.loads(meter.summary(START_MS)[0]) | changes)


def test_another_version_stops():
    with pytest.raises(UnknownSummary, match="schema 2"):
        read_summary(summary_with(schema=2))


def test_counters_beyond_what_sums_can_hold_are_refused():
    cell = {"window_start": "2026-11-23T17:05:00Z", "model": "m", "chip": "c"}
    assert read_summary(summary_with(cells=[cell | named([0, summaries.COUNTER_END - 1, 0, 0, 0, 0])]))
    with pytest.raises(Unreadable, match="a counter that"):
        read_summary(summary_with(cells=[cell | named([0, summaries.COUNTER_END, 0, 0, 0, 0])]))


def test_a_clock_ahead_folds_nothing():
    """A meter whose clock is days ahead must not make everybody's windows old."""
    keeper, one, two = Entries(), FakeMeter("one", 0), FakeMeter("two", 1)
    for offset, (meter, committed_at) in enumerate([(one, START_MS), (two, START_MS + 9 * DAY_MS)]):
        meter.count((START_MS, "m", "c"), [1, 1, 0, 0, 0, 0], "u")
        changes = keeper.learn(0, offset, read_summary(meter.summary(committed_at)[0]), START_MS + 1000)
        assert {Key.decode(key).kind for key in changes} <= {"meter", "cells", "users"}


NAMES = st.from_regex(r"[0-9A-Za-z._:-]+", fullmatch=True)


@settings(deadline=None)
@given(partition=st.integers(0, 1000), time_ms=st.integers(0, 1 << 50), meter=NAMES)
def test_keys_come_back(partition, time_ms, meter):
    keys = [Key(partition, kind, time_ms, "") for kind in ("window", "users", "hour")]
    for key in (*keys, Key(partition, "meter", 0, meter), Key(partition, "cells", time_ms, meter)):
        assert Key.decode(key.encode()) == key


def test_registers_come_back():
    registers = np.random.default_rng(1).integers(0, 52, 1 << 14).astype(np.uint8)
    assert (entries.decode_registers(entries.encode_registers(registers)) == registers).all()


def test_the_fleet_writes_what_meters_write():
    fleet = Fleet(1, START_MS)
    run(fleet, 20, (1000, 60_000), 5 * MINUTE_MS)
    for _, _, value in itertools.islice(fleet.log, 30):
        validator("live").validate(json.loads(value))


@settings(max_examples=30, deadline=None)
@given(seed=seeds)
def test_of_two_values_the_longer_beginning_stays(seed):
    fleet, keeper = Fleet(seed, START_MS, partitions=1), Entries()
    run(fleet, 20, (1000, 10 * MINUTE_MS), 0)
    written: dict[bytes, bytes] = {}
    for partition, offset, value in fleet.log:
        for key, changed in keeper.learn(partition, offset, read_summary(value), fleet.now_ms).items():
            before, after = written.get(key), changed
            if before is not None and after is not None:
                assert entries.longer(key, before, after) == entries.longer(key, after, before) == after
            written[key] = after or b""
            if not after:
                del written[key]
    assert written


# --- Found by review, each once ---


def written(kept: Kept, keeper: Entries, offset: int, value: bytes, now_ms: int) -> list[tuple[bytes, bytes | None]]:
    changes = list(keeper.learn(0, offset, read_summary(value), now_ms).items())
    for key, changed in changes:
        kept.write(key, changed)
    return changes


def test_a_late_record_in_the_summary_that_makes_its_window_old_is_not_lost_where_its_writer_dies():
    meter, late = FakeMeter("m", 0), START_MS + 20 * MINUTE_MS
    meter.count((START_MS, "m", "c"), [1, 10, 0, 0, 0, 0], "u")
    first = meter.summary(START_MS)[0]
    meter.open_part()
    meter.count((START_MS, "m", "c"), [1, 5, 0, 0, 0, 0], "u")
    second = meter.summary(late)[0]
    for died_after in range(5):
        keeper, kept = Entries(), Kept()
        written(kept, keeper, 0, first, START_MS)
        changes = list(keeper.learn(0, 1, read_summary(second), late).items())
        assert len(changes) < 5
        for key, changed in changes[:died_after]:
            kept.write(key, changed)
        again = Entries()
        again.restore(kept.table.items())
        written(kept, again, 1, second, late)
        assert rolled(kept, late)["windows"]["last_1h"]["tokens"]["total_tokens"] == 15, died_after


def test_a_clock_ahead_forgets_nothing_behind_a_restart_either():
    keeper, kept, good, ahead = Entries(), Kept(), FakeMeter("good", 0), FakeMeter("ahead", 1)
    for offset, (meter, ahead_ms) in enumerate([(good, 0), (ahead, 9 * DAY_MS), (good, 0)]):
        meter.count((START_MS, "m", "c"), [1, 10, 0, 0, 0, 0], "u")
        written(kept, keeper, offset, meter.summary(START_MS + ahead_ms)[0], START_MS)
        keeper = Entries()
        keeper.restore(kept.table.items())
    assert rolled(kept, START_MS)["windows"]["last_1h"]["tokens"]["total_tokens"] == 30
    assert rolled(kept, START_MS + HOUR_MS)["stale"], "nor is it live for nine days"


@pytest.mark.parametrize("model", ["\x01" * 250, "m" * 250])
def test_no_entry_is_larger_than_its_topic_takes(model):
    keeper, late, offset = Entries(), START_MS + 20 * MINUTE_MS, 0
    sizes = []
    for number in range(4):
        meter = FakeMeter(f"meter-{number}", number)
        for cell in range(cells.CELLS_MAX + 10):
            meter.count((START_MS, f"{model}{cell:06d}", "c" * 256), [1, 1 << 39, 0, 0, 1 << 39, 0], "u")
        for now_ms in (START_MS, late):
            for value in meter.summary(now_ms, 8):
                changes = keeper.learn(0, offset, read_summary(value), now_ms)
                sizes += [len(changed or b"") for changed in changes.values()]
                offset += 1
            meter.open_part()
            meter.count((late, "m", "c"), [1, 1, 0, 0, 0, 0], "u")
    assert entries.ENTRY_BYTES_MAX / 10 < max(sizes) < entries.ENTRY_BYTES_MAX
    assert keeper.left_out > 0


def test_cells_beyond_the_limit_are_in_the_totals_since_start_only():
    view, keeper, meter = Totals(), Entries(), FakeMeter("m", 0)
    for cell in range(cells.CELLS_MAX + 1):
        meter.count((START_MS, f"{cell}", "c"), [1, 10, 0, 0, 0, 0], "u")
        if cell + 1 == cells.CELLS_MAX:
            apply_all(view, keeper, meter, START_MS, 0)
            spans = view.rolling(START_MS)["windows"]
            assert spans["last_1h"]["tokens"] == spans["since_start"]["tokens"] and keeper.left_out == 0
    apply_all(view, keeper, meter, START_MS, 1)
    spans = view.rolling(START_MS)["windows"]
    assert keeper.left_out == 1
    assert spans["since_start"]["tokens"]["total_tokens"] - spans["last_1h"]["tokens"]["total_tokens"] == 10


def test_meters_that_are_gone_do_not_rule_the_answer():
    keeper, view = Entries(), Totals()
    long_ago = START_MS - 100 * DAY_MS
    gone, meter = FakeMeter("gone", 9, window_ms=DAY_MS), FakeMeter("meter-0", 0)
    gone.count((long_ago // DAY_MS * DAY_MS, "m", "c"), [1, 1, 0, 0, 0, 0], "u")
    apply_all(view, keeper, gone, long_ago, 0)
    meter.count((START_MS, "m", "c"), [1, 10, 0, 0, 0, 0], "u")
    apply_all(view, keeper, meter, START_MS, 1)
    answer = view.rolling(START_MS)
    assert answer["window_ms"] == MINUTE_MS and answer["windows"]["last_1m"]["from"] == rfc3339(START_MS - MINUTE_MS)
    assert answer["lag_messages"] == 3 and answer["complete_up_to"] == rfc3339(START_MS + 1)


def test_events_far_ahead_are_in_the_totals_since_start_only():
    keeper, view, kept, meter = Entries(), Totals(), Kept(), FakeMeter("m", 0)
    for minute in range(500):
        meter.count((START_MS + 365 * DAY_MS + minute * MINUTE_MS, "m", "c"), [1, 1, 0, 0, 0, 0], "u")
    meter.count((START_MS + HOUR_MS, "m", "c"), [1, 1, 0, 0, 0, 0], "u")  # an hour is within what meters take
    for key, changed in written(kept, keeper, 0, meter.summary(START_MS)[0], START_MS):
        view.apply(key, changed)
    spans = view.rolling(START_MS)["windows"]
    assert (spans["last_1m"]["tokens"]["requests"], spans["since_start"]["tokens"]["requests"]) == (1, 501)
    assert len(kept.table) == 3


@pytest.mark.parametrize("pieces", [1, 2, 3])
def test_a_summary_of_several_messages_is_as_fresh_as_one(pieces):
    view, keeper, meter = Totals(), Entries(), FakeMeter("m", 0)
    for cell in range(3):
        meter.count((START_MS, f"m{cell}", "c"), [1, 10, 0, 0, 0, 0], "u")
    for offset, value in enumerate(meter.summary(START_MS, pieces)):
        for key, changed in keeper.learn(0, offset, read_summary(value), START_MS).items():
            view.apply(key, changed)
    assert view.rolling(START_MS)["freshness_ms"] == 40


def test_a_meters_entry_that_is_behind_closes_nothing():
    """An overtaken writer wrote the meter's entry last, when another part was open."""
    late, meter, other = START_MS + 20 * MINUTE_MS, FakeMeter("meter-0", 0), FakeMeter("meter-1", 1)
    messages = []
    for turn in range(2):
        meter.open_part()
        meter.count((START_MS - (1 - turn) * MINUTE_MS, "m", "c"), [1, 1 + 9 * turn, 0, 0, 0, 0], "u")
        messages += meter.summary(START_MS)
    other.count((late, "m", "c"), [1, 100, 0, 0, 0, 0], "u")
    messages += other.summary(late)
    meter.count((START_MS, "m", "c"), [1, 10, 0, 0, 0, 0], "u")
    messages += meter.summary(late)
    keeper, kept = Entries(), Kept()
    [stale] = [item for item in written(kept, keeper, 0, messages[0], START_MS) if b"/meter/" in item[0]]
    written(kept, keeper, 1, messages[1], START_MS)
    kept.write(*stale)
    keeper = Entries()
    keeper.restore(kept.table.items())
    for offset in (2, 3):
        written(kept, keeper, offset, messages[offset], late)
    assert rolled(kept, late)["windows"]["last_1h"]["tokens"]["input_tokens"] == 121


def test_a_shorter_window_does_not_displace_longer_cells():
    meter, view, keeper, kept, overtaken = FakeMeter("m", 0), Totals(), Entries(), Kept(), Entries()
    for offset in range(5):
        meter.count((START_MS, "m", "c"), [1, 10, 0, 0, 0, 0], "u")
        value = meter.summary(START_MS)[0]
        for key, changed in written(kept, keeper, offset, value, START_MS):
            view.apply(key, changed)
        if offset == 0:
            overtaken.learn(0, 0, read_summary(value), START_MS)
    other = FakeMeter("other", 1)
    other.count((START_MS, "m", "c"), [1, 1, 0, 0, 0, 0], "u")
    late = START_MS + 20 * MINUTE_MS
    changes = overtaken.learn(0, 1, read_summary(other.summary(late)[0]), late)
    [window] = [key for key in changes if b"/window/" in key]
    assert not view.apply(window, changes[window]), "so that its owner is told"
    assert keeper.current(window) is None, "and deletes it"
    kept.write(window, changes[window])
    assert view.rolling(START_MS)["windows"]["last_1h"]["tokens"]["input_tokens"] == 50
    assert rolled(kept, START_MS)["windows"]["last_1h"]["tokens"]["input_tokens"] == 50
    keeper = Entries()
    keeper.restore(kept.table.items())
    assert keeper.current(window) is None


@pytest.mark.parametrize("kind", ["cells", "window"])
def test_an_entry_of_another_version_is_refused(kind):
    usage = cells.WindowUsage()
    usage.learn(1, "m", "part", {("model", "chip"): (1, 2, 3, 4, 5, 6)})
    value = usage.encode().replace(b"[1,2,3,4,5,6]", b"[[1,2,3,4,5,6]]")
    if kind == "window":
        value = usage.pack()[: cells.PACKED_OFFSET_BYTES] + zlib.compress(value)
    key = Key(0, kind, START_MS, "m" if kind == "cells" else "").encode()
    with pytest.raises(cells.UnknownEntry, match="--app"):
        Totals().apply(key, value)
    with pytest.raises(cells.UnknownEntry, match="--app"):
        (cells.WindowUsage.decode if kind == "cells" else cells.WindowUsage.unpack)(value)
