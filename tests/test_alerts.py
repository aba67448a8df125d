"""Budgets and alerts: the pure core and the process on the memory broker, against sums in plain dictionaries.

The oracle knows nothing of batches, parts that end, or states: it adds up what a topic holds and says which thresholds
that reaches.
"""

import datetime
import itertools
import os
import random
import zoneinfo
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import orjson
import pytest

from tests import streams
from tests.test_schemas import validator
from tokenometer.processor.alerts import measures, messages, rulefile, worker
from tokenometer.processor.alerts.budgets import LATE_MS, Budgets
from tokenometer.processor.alerts.messages import State
from tokenometer.processor.alerts.rules import Crossing, Rule, Rules
from tokenometer.processor.alerts.worker import AlertSettings, AlertWorker
from tokenometer.processor.broker import BrokerError, Fenced, Messages, Offset, OutOfRange, Place
from tokenometer.processor.broker.memory import MemoryBroker
from tokenometer.processor.ledger import decode, prices
from tokenometer.schemas.usage import COUNTERS, FURTHER

SEEDS = int(os.environ.get("TOKENOMETER_TEST_ALERTS_SEEDS", "4"))
START_MS = 1_795_392_000_000  # 2026-11-23T00:00:00Z
HOUR_MS = 3_600_000
NOW_MS = START_MS + 30 * HOUR_MS
PRICES = """
currency = "USD"
[[price]]
model = "model-*"
input = "1.50"
output = "7.123456789012"
cached_input = "0.15"
[[price]]
model = "model-1"
labels = { team = "blue" }
customer = "user-1"
input = "3"
output = "123456789012"
"""
RULES = """
prices = "prices.toml"
[[rule]]
name = "all"
tokens = 60_000
thresholds = [1, 10, 50, 100, 1000]
[[rule]]
name = "each-user"
each = "user"
tokens = 4_000
count = "output_tokens"
per = "hour"
time_zone = "Asia/Kolkata"
[[rule]]
name = "alice"
user = "user-1"
model = "model-?"
tokens = 10
count = "requests"
per = "month"
[[rule]]
name = "team"
each = "team"
money = "0.01"
time_zone = "America/New_York"
[[rule]]
name = "blue"
labels = { team = "blue" }
money = "300"
per = "month"
[[rule]]
name = "models"
each = "model"
tokens = 100
count = "audio_input_tokens"
"""


@pytest.fixture
def load(tmp_path) -> Callable[[str], Rules]:
    def load(text: str = RULES) -> Rules:
        (tmp_path / "prices.toml").write_text(PRICES)
        (tmp_path / "rules.toml").write_text(text)
        return rulefile.load(str(tmp_path / "rules.toml"))

    return load


# --- A log of usage rows ---


class Log:
    """Meters that commit rows, part after part. `partitions`: what a topic holds, as values in the order of commits."""

    def __init__(self, seed: int, partitions: int = 3, meters: int = 2) -> None:
        self.draw = random.Random(seed)
        self.partitions: list[list[bytes]] = [[] for _ in range(partitions)]
        self._meters = [[f"meter-{number}.run.x", 1, {}] for number in range(meters)]

    def commit(self) -> list[tuple[bytes, bytes]]:
        """Keys and values of one transaction."""
        draw, meter = self.draw, self.draw.choice(self._meters)
        if draw.random() < 0.15:
            meter[1], meter[2] = meter[1] + 1, {}
        name, held = f"{meter[0]}.{meter[1]}", meter[2]
        rows = {}
        for _ in range(draw.randint(1, 12)):
            labels = draw.choice([{}, {"team": "blue"}, {"team": "red", "region": "eu"}])
            window = START_MS + 20 * HOUR_MS + 60_000 * draw.randrange(0, 600, 7)
            place = window, f"user-{draw.randrange(4)}", f"model-{draw.randrange(2)}", "chip", tuple(labels.items())
            counts = held.setdefault(place, dict.fromkeys((*COUNTERS, *FURTHER), 0))
            _grow(draw, counts)
            key = {"window_start": _instant(window), "user": place[1], "model": place[2], "chip": "chip"}
            key |= {"labels": dict(sorted(labels.items()))} if labels else {}
            rows[place] = (key | {"part": name}, dict(counts))
        return [(orjson.dumps(key), _value(key, counts)) for key, counts in rows.values()]

    def append(self) -> None:
        for key, value in self.commit():
            self.partitions[hash_of(key) % len(self.partitions)].append(value)


def _grow(draw: random.Random, counts: dict[str, int]) -> None:
    given, out = draw.randrange(300), draw.randrange(300)
    cached = draw.randint(0, given)
    more = {"requests": 1, "input_tokens": given, "cached_input_tokens": cached, "output_tokens": out}
    more["cache_write_tokens"] = draw.randint(0, given - cached)
    more["reasoning_tokens"] = draw.randint(0, out)
    if draw.random() < 0.3:
        more["audio_input_tokens"] = draw.randint(0, given - cached - more["cache_write_tokens"])
    for name, count in more.items():
        counts[name] += count


def _value(key: dict[str, Any], counts: dict[str, int]) -> bytes:
    further = {name: counts[name] for name in FURTHER if counts[name]}
    main = {name: counts[name] for name in COUNTERS}
    total = counts["input_tokens"] + counts["output_tokens"]
    return orjson.dumps(key | {"window_ms": 60_000, **main, "total_tokens": total, **further, "schema": 2})


def _instant(ms: int) -> str:
    return f"{datetime.datetime.fromtimestamp(ms // 1000, datetime.UTC):%Y-%m-%dT%H:%M:%SZ}"


def hash_of(key: bytes) -> int:
    return sum(key) * 31 + len(key)


# --- The oracle ---

Alert = tuple[str, str | None, str, int]  # rule, subject, begin of the period, threshold


def expected(rules: Sequence[Rule], values: Sequence[bytes]) -> set[Alert]:
    latest: dict[bytes, dict[str, Any]] = {}
    for value in values:
        row = orjson.loads(value)
        identity = orjson.dumps([row[name] for name in ("window_start", "user", "model", "chip", "part")])
        latest[identity + orjson.dumps(row.get("labels"))] = row
    found = set()
    for rule in rules:
        sums: dict[tuple[str | None, str], int] = {}
        for row in latest.values():
            labels = row.get("labels", {})
            if rule.user not in (None, row["user"]) or not rule.fits_model(row["model"]):
                continue
            if any(labels.get(name) != value for name, value in rule.labels.items()):
                continue
            subject = (
                None if rule.each is None else {**labels, "user": row["user"], "model": row["model"]}.get(rule.each)
            )
            if rule.each is None or subject is not None:
                place = subject, _period(row["window_start"], rule)
                sums[place] = sums.get(place, 0) + _worth(rule, row, labels)
        for (subject, begin), used in sums.items():
            found |= {(rule.name, subject, begin, each) for each in rule.thresholds if 100 * used >= rule.limit * each}
    return found


def _worth(rule: Rule, row: dict[str, Any], labels: dict[str, str]) -> int:
    if rule.prices is None:
        return row.get(rule.measure, 0)
    at = int(datetime.datetime.fromisoformat(row["window_start"]).timestamp() * 1000)
    entry = rule.prices.entry(row["model"], row["user"], labels, at)
    return entry.amount([row.get(name, 0) for name in (*COUNTERS, *FURTHER)])


def _period(text: str, rule: Rule) -> str:
    zone = zoneinfo.ZoneInfo(rule.zone_name)
    local = datetime.datetime.fromisoformat(text).astimezone(zone).replace(minute=0, second=0)
    if rule.per in ("day", "month"):
        local = local.replace(hour=0)
    if rule.per == "month":
        local = local.replace(day=1)
    return local.isoformat().replace("+00:00", "Z")


def shown(crossings: Sequence[Crossing]) -> list[Alert]:
    alerts = [orjson.loads(messages.alert(each, START_MS)) for each in crossings]
    return [(each["rule"], each["subject"], each["begin"], each["threshold"]) for each in alerts]


# --- The core ---


def polled(log: Log, at: list[int], draw: random.Random) -> list[Messages]:
    """Some messages of some partitions, each from where it was read."""
    found = []
    for partition in draw.sample(range(len(at)), draw.randint(1, len(at))):
        count = draw.randint(0, 30)
        values = log.partitions[partition][at[partition] : at[partition] + count]
        if values:
            offsets = np.arange(at[partition], at[partition] + len(values))
            found.append(
                Messages(Place("token-usage", partition), values, np.full(len(values), NOW_MS, np.uint64), offsets)
            )
            at[partition] += len(values)
    return found


def take(budgets: Budgets, given: Sequence[Messages]) -> list[Crossing]:
    rows = decode.usage_rows(given)
    if rows is None:
        return []
    origins = [(each.place.partition, len(each.values)) for each in given]
    return budgets.take(rows, origins, max(int(each.times.max()) for each in given))


def restarted(budgets: Budgets, rules: Rules, at: Sequence[int]) -> tuple[Budgets, list[int]]:
    """Through the bytes of a state."""
    state = State(budgets.header(), budgets.arrays(), "topic", dict(enumerate(at)), {})
    keys, values = messages.state_messages("name", state, bytes(16))
    back = messages.state_of("name", dict(zip(keys, values, strict=True)))
    assert back is not None
    again = Budgets(rules.rules)
    assert again.fits(back.header)
    again.restore(back.header, back.arrays)
    again.since(back.header["since"])
    return again, [back.positions[number] for number in range(len(at))]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(SEEDS))
def test_any_cut_order_and_restart_gives_the_alerts_of_plain_sums(load, seed: int):
    rules, log, draw = load(), Log(seed), random.Random(seed)
    budgets = Budgets(rules.rules)
    budgets.since({rule.whole: 0 for rule in rules.rules})
    at, found, horizon, ended = [0] * 3, [], None, 0
    for step in range(90):
        if step < 60:
            log.append()
        found += shown(take(budgets, polled(log, at, draw)))
        if horizon is not None and all(a >= b for a, b in zip(at, horizon[0], strict=True)):
            budgets.end(horizon[1])
            ended, horizon = ended + len(horizon[1]), None
        if horizon is None and budgets.ending:
            horizon = [len(values) for values in log.partitions], set(budgets.ending)
        if draw.random() < 0.2:
            budgets.tidy()
            budgets, at = restarted(budgets, rules, at)
    while given := polled(log, at, draw):
        found += shown(take(budgets, given))
    while any(a < len(b) for a, b in zip(at, log.partitions, strict=True)):
        found += shown(take(budgets, polled(log, at, draw)))
    assert len(found) == len(set(found)), "a threshold is announced once"
    assert set(found) == expected(rules.rules, list(itertools.chain.from_iterable(log.partitions)))
    assert {rule for rule, *_ in found} == {rule.name for rule in rules.rules}, "every rule has said something"
    assert ended > 2 and budgets.late_rows == budgets.stray_rows == 0


# --- The process, on the memory broker ---


class Crash(Exception):
    """The process is killed here."""


class Process:
    """Workers of one name, one after the other. `trips`: how likely a call of the broker is to end one."""

    def __init__(self, rules: Rules, seed: int = 0, crashes: float = 0.0, errors: float = 0.0) -> None:
        self.draw, self.crashes, self.errors = random.Random(seed), crashes, errors
        self.broker = MemoryBroker(faults=self._fault, patience_seconds=0)
        self.rules, self.settings = rules, AlertSettings(state_interval_ms=3)
        self.ticks = itertools.count(START_MS)  # no period of the log has ended before it begins
        self.killed = 0
        self.frozen: list[AlertWorker] = []
        self.broker.create_topic("token-usage", 3, {})
        worker.create_topics(self.broker, self.settings, 1)
        self.worker = self._new()

    def _fault(self, name: str) -> None:
        drawn = self.draw.random()
        if drawn < self.crashes:
            raise Crash(name)
        if drawn < self.crashes + self.errors:
            raise BrokerError(name)

    def _new(self) -> AlertWorker:
        return AlertWorker(self.broker, self.rules, self.settings, lambda: next(self.ticks), streams.Inline())

    def write(self, log: Log) -> None:
        """One transaction of a meter."""
        before = self.crashes, self.errors
        self.crashes = self.errors = 0.0
        keys, values = zip(*log.commit(), strict=True)
        self.broker.append("token-usage", values, keys, [NOW_MS] * len(values))
        self.crashes, self.errors = before

    def step(self) -> int:
        try:
            if self.worker._reader is None:
                self.worker.open()
            return self.worker.step(0.0)
        except Crash:
            self.killed += 1
            self.worker = self._new()
        except BrokerError:
            self.worker.close()
        return 1

    def freeze(self) -> None:
        """The process is replaced, and goes on later as if nothing had been."""
        self.frozen.append(self.worker)
        self.worker = self._new()

    def thaw(self) -> None:
        if self.frozen and self.frozen[0]._reader is not None:
            try:
                self.frozen[0].step(0.0)
                return
            except (Crash, BrokerError):
                pass
        del self.frozen[:1]

    def drain(self) -> None:
        quiet = 0
        while quiet < 2:
            quiet = 0 if self.step() else quiet + 1

    def calm(self) -> None:
        self.crashes = self.errors = 0.0

    def alerts(self) -> list[dict[str, Any]]:
        return [orjson.loads(value) for _, value, _ in streams.read_topic(self.broker, "token-alerts")]

    def announced(self) -> list[Alert]:
        return [(each["rule"], each["subject"], each["begin"], each["threshold"]) for each in self.alerts()]

    def values(self) -> list[bytes]:
        return [value for _, value, _ in streams.read_topic(self.broker, "token-usage")]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_process_that_is_killed_anywhere_neither_loses_nor_repeats_an_alert(load, seed: int):
    process, log = Process(load(), seed, crashes=0.03, errors=0.02), Log(seed)
    for _ in range(60):
        process.write(log)
        process.step()
        process.draw.choice([process.freeze, process.thaw, process.thaw, process.step, process.step])()
    process.drain()
    process.calm()
    process.drain()
    found = process.announced()
    assert process.killed > 3 and len(found) == len(set(found))
    assert set(found) == expected(process.rules.rules, process.values())
    assert len({each["id"] for each in process.alerts()}) == len(found)
    for alert in process.alerts():
        validator("alert").validate(alert)


def test_the_log_says_of_an_alert_whose_budget_how_much_of_it_and_when(load, caplog):
    process, log = Process(load()), Log(1)
    caplog.set_level("INFO", "tokenometer.alerts")
    for _ in range(30):
        process.write(log)
        process.drain()
    alerts = {each["id"]: each for each in process.alerts()}
    told = [record for record in caplog.records if record.message == "alert"]
    batches = [record.alerts for record in caplog.records if record.message == "announced"]
    assert sum(batches) == len(alerts) and len(told) == sum(min(10, count) for count in batches) > 10
    wanted = {tuple(sorted((name, alert[name]) for name in TOLD)) for alert in alerts.values()}
    assert {tuple(sorted((name, getattr(record, name, None)) for name in TOLD)) for record in told} <= wanted


# --- What changes while it does not run ---


@pytest.fixture
def flow(load) -> tuple[Process, Log]:
    process, log = Process(load()), Log(1)
    for _ in range(30):
        process.write(log)
    process.drain()
    return process, log


TOLD = ("rule", "threshold", "subject", "used", "limit", "unit", "per", "begin")


def restart(process: Process, rules: Rules) -> list[Alert]:
    """Under other rules; what is announced anew."""
    before = process.announced()
    process.worker.close()
    process.rules = rules
    process.worker = process._new()
    process.drain()
    return process.announced()[len(before) :]


def test_the_same_rules_announce_nothing_again(flow, load):
    assert flow[0].announced() and restart(flow[0], load()) == []


def test_a_changed_limit_is_judged_at_once_for_periods_that_go_on(flow, load):
    process, _ = flow
    process.ticks = itertools.count(START_MS + 24 * HOUR_MS)  # the first day is over
    rules = load(RULES.replace("tokens = 60_000", "tokens = 6_000"))
    new = restart(process, rules)
    wanted = {each for each in expected(rules.rules, process.values()) if each[0] == "all" and each[2] > "2026-11-24"}
    assert set(new) == wanted and len(new) == len(wanted) > 0
    assert restart(process, rules) == []
    assert restart(process, load()) == [], "the first limit has been announced before"


def test_a_further_threshold_is_announced_alone(flow, load):
    process, _ = flow
    new = restart(process, load(RULES.replace("[1, 10, 50, 100, 1000]", "[1, 5, 10, 50, 100, 1000]")))
    assert new and {each[0::3] for each in new} == {("all", 5)}


def test_a_new_rule_counts_the_whole_period_and_another_meaning_repeats_nothing(flow, load):
    process, log = flow
    rules = load(RULES + '[[rule]]\nname = "late"\neach = "user"\ntokens = 100\nper = "month"\n')
    new = restart(process, rules)
    assert set(new) == {each for each in expected(rules.rules, process.values()) if each[0] == "late"}
    narrower = load(RULES.replace('model = "model-?"', 'model = "model-0"'))
    assert restart(process, narrower) == []
    for _ in range(30):
        process.write(log)
    process.drain()
    found = process.announced()
    assert len(found) == len(set(found))


def test_partitions_may_be_added_while_parts_are_open(load):
    process, log = Process(load()), Log(2)
    for step in range(40):
        if step == 15:
            process.broker.add_partitions("token-usage", 5)
        if step == 20:
            process.ticks = itertools.count(START_MS + 60_000)  # it looks at the topics again
        process.write(log)
        process.step()
    process.drain()
    assert len(process.worker._partitions) == 5
    found = process.announced()
    assert len(found) == len(set(found)) and set(found) == expected(process.rules.rules, process.values())


def test_usage_that_comes_late_counts_for_two_days_after_its_period(load):
    rules = load('[[rule]]\nname = "hour"\nper = "hour"\ntokens = 100\nthresholds = [100]\n')
    budgets = Budgets(rules.rules)
    budgets.since({rules.rules[0].whole: 0})

    def row(part: str, now: int) -> list[Crossing]:
        key = {"window_start": _instant(START_MS), "user": "u", "model": "m", "chip": "c", "part": part}
        counts = dict.fromkeys((*COUNTERS, *FURTHER), 0) | {"input_tokens": 50}
        place = Place("token-usage", 0)
        return take(budgets, [Messages(place, [_value(key, counts)], np.array([now], np.uint64), np.array([0]))])

    end = START_MS + HOUR_MS
    assert row("a.r.1", START_MS) == []
    budgets.tidy()
    assert [each.used for each in row("a.r.2", end + LATE_MS - 1)] == [100]
    budgets.tidy()
    assert row("a.r.3", end + LATE_MS) == [] and budgets.late_rows == 1
    budgets.tidy()
    assert not len(budgets._sums[0].table)


def test_usage_that_was_deleted_before_it_was_read_stops_the_process(load):
    process, log = Process(load()), Log(3)
    for _ in range(10):
        process.write(log)
    for partition in range(3):
        process.broker.delete_before(Place("token-usage", partition), Offset(2))
    with pytest.raises(OutOfRange, match="--accept-gap"):
        process.worker.open()
    process.settings = AlertSettings(accept_gap=True)
    process.worker = process._new()
    process.drain()
    assert process.worker.progress.gap is not None and process.announced()


def test_a_topic_that_was_made_anew_stops_the_process(flow):
    process, _ = flow
    process.broker.delete_topic("token-usage")
    process.broker.create_topic("token-usage", 3, {})
    with pytest.raises(OutOfRange, match="made anew"):
        process.worker.open()


def test_a_second_process_of_one_name_ends_the_first(flow):
    process, log = flow
    process.freeze()
    process.step()
    process.write(log)
    with pytest.raises(Fenced):
        for _ in range(100):
            process.frozen[0].step(0.0)
            process.write(log)


# --- Money ---


@pytest.mark.parametrize("seed", range(SEEDS))
def test_columns_are_charged_as_the_ledger_charges_a_line(seed: int):
    draw = random.Random(seed)
    lines = [[draw.choice([0, 1, 7, 100, 1 << 39]) for _ in (*COUNTERS, *FURTHER)] for _ in range(200)]
    names = (*COUNTERS, *FURTHER)
    columns = {name: np.array(values, np.uint64) for name, values in zip(names, zip(*lines, strict=True), strict=True)}
    found = measures.charged(columns)
    for number, line in enumerate(lines):
        one = {rate: int(values[number]) for rate, values in found.items()}
        wanted = prices.charged(dict(zip(names, line, strict=True)))
        assert {rate: one.get(rate, 0) for rate in wanted} == wanted, line


def test_usage_without_a_price_and_with_two_is_told_and_costs_nothing(tmp_path):
    (tmp_path / "p.toml").write_text(
        'currency = "USD"\n[[price]]\nmodel = "a*"\ninput = "1"\noutput = "1"\n'
        '[[price]]\nmodel = "b"\nlabels = { t = "x" }\ninput = "1"\noutput = "1"\n'
        '[[price]]\nmodel = "b"\nlabels = { s = "y" }\ninput = "1"\noutput = "1"\n'
    )
    (tmp_path / "r.toml").write_text('prices = "p.toml"\n[[rule]]\nname = "all"\nmoney = "1"\nthresholds = [100]\n')
    read = rulefile.load(str(tmp_path / "r.toml"))
    budgets = Budgets(read.rules)
    budgets.since({read.rules[0].whole: 0})
    values = []
    for model, labels in (("a1", {}), ("b", {"s": "y", "t": "x"}), ("c", {})):
        key = {"window_start": _instant(START_MS), "user": "u", "model": model, "chip": "c"}
        key |= {"labels": labels} if labels else {}
        values.append(
            _value(key | {"part": "m.r.1"}, dict.fromkeys((*COUNTERS, *FURTHER), 0) | {"input_tokens": 10**6})
        )
    given = Messages(Place("token-usage", 0), values, np.full(3, START_MS, np.uint64), np.arange(3))
    [crossing] = take(budgets, [given])
    assert crossing.used == prices.UNIT, "a1 alone has a price"
    assert budgets.unpriced.tokens == {"b": 10**6, "c": 10**6} and list(budgets.unpriced.ambiguous) == ["b"]


def test_names_of_parts_that_are_over_are_forgotten_and_sums_stay_right(load, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tokenometer.processor.alerts.budgets._NAMES_SPARE", 0)
    rules = load('[[rule]]\nname = "m"\neach = "model"\ntokens = 1000\nthresholds = [25, 100]\n')
    budgets = Budgets(rules.rules)
    budgets.since({rules.rules[0].whole: 0})

    def take_rows(part: str, users: range, tokens: int, offset: int) -> list[tuple[str | None, int, int]]:
        values = []
        for user in users:
            key = {"window_start": _instant(START_MS), "user": f"u{user}", "model": "zz", "chip": "c", "part": part}
            values.append(_value(key, dict.fromkeys((*COUNTERS, *FURTHER), 0) | {"output_tokens": tokens}))
        offsets = np.arange(offset, offset + len(values))
        given = Messages(Place("token-usage", 0), values, np.full(len(values), START_MS, np.uint64), offsets)
        return [(each.subject, each.threshold, each.used) for each in take(budgets, [given])]

    assert take_rows("m.r.1", range(100), 3, 0) == [("zz", 25, 300)]
    assert take_rows("m.r.2", range(90, 110), 10, 100) == []
    assert budgets.ending == {b"m.r.1"}
    budgets.end(budgets.ending)
    budgets.tidy()
    assert len(budgets._names) == 22, "nobody, the model, and twenty users"
    assert take_rows("m.r.2", range(90, 110), 35, 120) == [("zz", 100, 1000)]
    assert take_rows("m.r.1", range(100), 9, 140) == [] and budgets.stray_rows == 100
