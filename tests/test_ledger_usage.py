"""What is asked of the ledger: usage by names and time, periods, over HTTP and by commands, on every database."""

import contextlib
import csv
import dataclasses
import io
import json
import pathlib
import random
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import books, forked, streams
from tests.test_ledger import HOSTILE, IDENTITY, take
from tokenometer.processor.broker import Offset, Place
from tokenometer.processor.cli import __main__ as cli
from tokenometer.processor.ledger import periods, pricefile, prices, statements, times, usage
from tokenometer.processor.ledger.api import Api, ServeSettings
from tokenometer.processor.ledger.intake import IntakeProgress
from tokenometer.processor.ledger.opening import open_database
from tokenometer.processor.ledger.parts import ENDED, OPEN
from tokenometer.processor.ledger.serve import LedgerServer
from tokenometer.processor.ledger.store import Stand, Store
from tokenometer.processor.ledger.values import BadRequest, LedgerBatch, LedgerError, LedgerSummary

DAY_MS = 86_400_000
BERLIN, HOWE = ZoneInfo("Europe/Berlin"), ZoneInfo("Australia/Lord_Howe")


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp() * 1000)


def ask(store: Store, lists: prices.Prices | None = None, **given: str) -> usage.Answer:
    with store.database.snapshot() as database:
        return usage.answer(database, usage.parse(given), lists)


def reach(store: Store, watermark: int) -> None:
    """Rows are complete up to there."""
    sequence = 1 + max((part.sequence or 0 for part in store.parts.in_state("open")), default=0)
    summary = LedgerSummary("m", "m.live", sequence, 60_000, (0,) * 6, {Place(streams.INPUT, 0): watermark}, 0)  # type: ignore[arg-type]
    store.take(LedgerBatch(None, [summary], {}))
    store.reach(*store.horizon())


# --- Time ---


@pytest.mark.parametrize(
    ("text", "zone", "wanted"),
    [
        ("2026-11-01", UTC, "2026-11-01T00:00:00+00:00"),
        ("2026-11-01", BERLIN, "2026-10-31T23:00:00+00:00"),
        ("2026-11-01T12:00:00+01:00", UTC, "2026-11-01T11:00:00+00:00"),
        ("2026-11-01T12:00:00.5Z", BERLIN, "2026-11-01T12:00:00.500000+00:00"),
        ("2026-11-01 12:00Z", BERLIN, "2026-11-01T12:00:00+00:00"),
        # Clocks skip midnight here: the day begins at one o'clock.
        ("2018-11-04", ZoneInfo("America/Sao_Paulo"), "2018-11-04T03:00:00+00:00"),
        # Clocks show midnight twice: the day begins at the first.
        ("2026-10-25", ZoneInfo("Atlantic/Azores"), "2026-10-25T00:00:00+00:00"),
        ("2026-11-01T12:00:00", UTC, None),  # whose noon?
        ("2026-11-31", UTC, None),
        ("2026-11-01T25:00:00Z", UTC, None),
        ("1795392000", UTC, None),
        ("yesterday", UTC, None),
        ("", UTC, None),
        ("２０２６-11-01", UTC, None),
    ],
)
def test_moments(text: str, zone: Any, wanted: str | None) -> None:
    if wanted is None:
        with pytest.raises(BadRequest, match="is not a moment"):
            times.moment(text, zone)
    else:
        assert times.moment(text, zone) == ms(wanted)


@pytest.mark.parametrize(
    ("begin", "end", "unit", "zone", "hours"),
    [
        ("2026-03-28", "2026-03-31", "day", BERLIN, [24, 23, 24]),
        ("2026-10-24", "2026-10-27", "day", BERLIN, [24, 25, 24]),
        ("2026-03-29", "2026-03-30", "hour", BERLIN, [1] * 23),
        ("2026-10-25", "2026-10-26", "hour", BERLIN, [1] * 25),
        ("2026-10-01", "2026-12-01", "month", BERLIN, [31 * 24 + 1, 30 * 24]),
        ("2026-01-31", "2026-03-01", "month", UTC, [24, 28 * 24]),
        ("2026-04-05", "2026-04-06", "day", HOWE, [24.5]),
        ("2026-04-05", "2026-04-05T04:00:00+10:30", "hour", HOWE, [1, 1, 0.5, 1, 1]),
        ("2026-11-01", "2026-11-03", "total", BERLIN, [48]),
        ("2026-11-01T00:30:00+05:30", "2026-11-01T02:00:00+05:30", "hour", ZoneInfo("Asia/Kolkata"), [0.5, 1]),
    ],
)
def test_buckets_follow_the_clock_of_the_zone(begin: str, end: str, unit: str, zone: Any, hours: list[float]) -> None:
    first, last = times.moment(begin, zone), times.moment(end, zone)
    found = [*times.bounds(first, last, unit, zone), last]
    assert [(b - a) / 3_600_000 for a, b in zip(found, found[1:], strict=False)] == hours


def test_too_many_buckets_and_unknown_zones() -> None:
    with pytest.raises(BadRequest, match="more than 10,000 hours"):
        times.bounds(0, 20_000 * 3_600_000, "hour", UTC)
    for name in ("Europe/Atlantis", "../../etc/passwd", "/etc/localtime", "\0", ""):
        with pytest.raises(BadRequest, match="no such time zone"):
            times.zone(name)


# --- Usage ---


@pytest.fixture
def filled(database: str) -> Iterator[tuple[Store, list[Any]]]:
    """A ledger with rows of several days, of open parts and merged ones."""
    rows = []
    for number, (identity, counts) in enumerate(books.history(7, 300)):
        rows.append(((books.START_MS + 7_200_000 * (number % 40), *identity[1:]), counts))
    with books.opened(database) as store:
        take(store, [books.usage_row(*row) for row in rows])
        part = store.parts.of("meter.0", books.WINDOW_MS)
        with store.database.transaction():
            store.database.merge_part(part.id)
        yield store, rows


def brute(rows: list[Any], query: usage.Query) -> dict[tuple[Any, ...], list[int]]:
    """The answer, by hand."""
    found: dict[tuple[Any, ...], list[int]] = {}
    bounds = times.bounds(query.begin, query.end, query.window, query.where)
    for (window, *names), counts in books.truth(rows).items():
        named = dict(zip(usage.DIMENSIONS, names, strict=True))
        if query.begin <= window < query.end and all(named[name] == value for name, value in query.only.items()):
            bucket = max(bound for bound in bounds if bound <= window)
            key = (bucket, *(named[name] for name in query.group_by))
            found[key] = books.add(found.get(key, [0] * 6), counts)
    return found


def test_usage_is_what_the_rows_say(filled: tuple[Store, list[Any]]) -> None:
    store, rows = filled
    draw = random.Random(1)
    for _ in range(40):
        begin = books.START_MS + draw.randrange(-2, 40) * 3_600_000
        given = {
            "from": books.instant(begin),
            "to": books.instant(begin + draw.randrange(1, 72) * 3_600_000),
            "time_zone": draw.choice(["UTC", "Europe/Berlin", "Asia/Kolkata"]),
            "window": draw.choice(times.UNITS),
            "group_by": ",".join(draw.sample(usage.DIMENSIONS, draw.randrange(4))),
        }
        given |= {name: f"{name}-0" for name in usage.DIMENSIONS if draw.random() < 0.2}
        query = usage.parse(given)
        found = ask(store, **given)
        shown = {(group.begin, *group.names.values()): list(group.counters) for group in found.groups}
        assert shown == brute(rows, query), given
        assert list(shown) == sorted(shown)


def test_pages_together_are_the_whole(filled: tuple[Store, list[Any]]) -> None:
    store, rows = filled
    given = {"from": "2026-11-22", "to": "2026-11-28", "group_by": "user,model", "window": "day"}
    whole = ask(store, **given)
    for limit in (1, 7, 1000):
        found = [ask(store, **given, limit=str(limit))]
        while found[-1].following is not None:
            found.append(ask(store, **given, limit=str(limit), after=found[-1].following))
        assert [group for page in found for group in page.groups] == list(whole.groups)
        assert all(len(page.groups) == limit for page in found[:-1])


def test_top_is_by_tokens_then_by_name(filled: tuple[Store, list[Any]]) -> None:
    store, rows = filled
    given = {"from": "2026-11-22", "to": "2026-11-28", "group_by": "user"}
    wanted = sorted(brute(rows, usage.parse(given)).items(), key=lambda item: (-item[1][1] - item[1][4], item[0]))
    found = ask(store, **given, top="3")
    assert [list(group.counters) for group in found.groups] == [counts for _, counts in wanted[:3]]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"from": ""}, "not a moment"),
        ({"to": "2026-11-22"}, "is no time"),
        ({"window": "week"}, "window 'week': expected hour, day, month, total"),
        ({"group_by": "user,part"}, "group_by 'part': expected user, model, chip or the name of a label"),
        ({"limit": "0"}, "limit '0': expected a number from 1 to 100,000"),
        ({"limit": "1e3"}, "limit"),
        ({"limit": "９"}, "limit"),
        ({"top": "5"}, "top wants something to group by"),
        ({"top": "5", "group_by": "user", "window": "day"}, "the window total"),
        ({"after": "x"}, "after is not the next"),
        ({"after": "WzFd"}, "after is not the next"),
        ({"time_zone": "Mars"}, "no such time zone"),
        ({"users": "a"}, "no such parameter: users"),
        ({"priced": "yes"}, "priced 'yes'"),
    ],
)
def test_a_wrong_question_is_told_what_is_wrong(changes: dict[str, str], words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        usage.parse({"from": "2026-11-22", "to": "2026-11-23", **changes})
    with pytest.raises(BadRequest, match="to is missing"):
        usage.parse({"from": "2026-11-22"})


def test_a_parameter_that_a_route_does_not_know_is_refused_and_not_ignored(tmp_path: pathlib.Path) -> None:
    with books.opened(str(tmp_path / "ledger.duckdb")) as store, serving(store) as url:
        for path in ("status", "statements", "check", "openapi.json"):
            status, answer = fetch(f"{url}/v1/{path}?user=a")
            assert (status, answer["error"]) == (400, "no such parameter: user; there are none"), path
        for path in ("usage", "close", "adjust"):
            status, answer = fetch(f"{url}/v1/{path}?to=2026-12-01", {}, **{"Content-Type": "application/json"})
            assert (status, answer["error"]) == (400, "no such parameter: to; there are none"), path
        assert fetch(f"{url}/v1/usage?form=csv")[0] == fetch(f"{url}/metrics?name=x")[0] == 400
        assert fetch(f"{url}/healthz?verbose")[0] == 200, "a probe must not be told that it is ill"


def test_hostile_names_can_be_asked_for(database: str) -> None:
    given = {"from": "2026-11-22", "to": "2026-11-24", "group_by": "user"}
    with books.opened(database) as store:
        rows = [
            ((books.START_MS, name, "m", "c", "p.1"), [1, number, 0, 0, 0, 0]) for number, name in enumerate(HOSTILE)
        ]
        take(store, [books.usage_row(*row) for row in rows])
        for number, name in enumerate(HOSTILE):
            [group] = ask(store, **given, user=name).groups
            assert group.names == {"user": name} and group.counters[1] == number
        found = ask(store, **given, limit="1")
        seen = []
        while found.following:
            seen += [group.names["user"] for group in found.groups]
            found = ask(store, **given, limit="1", after=found.following)
        assert [*seen, found.groups[0].names["user"]] == sorted(HOSTILE, key=str.encode)
        assert ask(store, **given, user="nobody").groups == []
        with pytest.raises(BadRequest, match="UTF-8"):
            ask(store, **given, user="\ud800")


def test_rows_are_complete_up_to_the_lowest_watermark(database: str) -> None:
    given = {"from": "2026-11-22", "to": "2026-11-24"}
    with books.opened(database) as store:
        assert ask(store, **given).watermark is None
        store.parts.of("m.1", 60_000)
        places = [Place(streams.INPUT, number) for number in range(3)]
        noon, end = ms("2026-11-23T12:00:00Z"), ms("2026-11-24T00:00:00Z")
        marks: dict[Place, int | None] = {places[0]: end + DAY_MS, places[1]: noon, places[2]: None}
        store.take(LedgerBatch(None, [LedgerSummary("m", "m.1", 0, 60_000, (0,) * 6, marks, 0)], {}))  # type: ignore[arg-type]
        assert ask(store, **given).watermark is None, "seen, but its rows may not be in"
        store.reach(*store.horizon())
        found = ask(store, **given)
        assert (found.watermark, found.complete) == (noon, False)
        marks[places[1]] = end
        store.take(LedgerBatch(None, [LedgerSummary("m", "m.1", 1, 60_000, (0,) * 6, marks, 0)], {}))  # type: ignore[arg-type]
        store.reach(*store.horizon())
        assert ask(store, **given).complete


@pytest.mark.slow
def test_answers_are_of_one_moment_while_the_ledger_writes(database: str) -> None:
    """Every batch adds a request to each of 50 users: whoever asks sees them all alike."""
    given = {"from": "2026-11-23", "to": "2026-11-24", "group_by": "user"}
    users = [(books.START_MS, f"user-{number}", "m", "c", "m.1") for number in range(50)]
    with books.opened(database) as store, ThreadPoolExecutor(4) as pool:
        take(store, [books.usage_row(user, [1, 1, 0, 0, 0, 0]) for user in users])
        done = threading.Event()

        def look() -> list[set[int]]:
            seen = []
            while not done.is_set():
                seen.append({group.counters[0] for group in ask(store, **given).groups})
            return seen

        lookers = [pool.submit(look) for _ in range(4)]
        for count in range(2, 30):
            take(store, [books.usage_row(user, [count, count, 0, 0, 0, 0]) for user in users])
        done.set()
        for looker in lookers:
            seen = looker.result()
            assert all(len(counts) == 1 for counts in seen)
            assert [min(counts) for counts in seen] == sorted(min(counts) for counts in seen)


# --- Periods ---


def test_a_period_that_is_not_complete_is_not_closed_unless_it_is_wanted(database: str) -> None:
    with books.opened(database) as store:
        take(store, [books.usage_row(IDENTITY, [1, 10, 0, 0, 5, 0])])
        end = books.START_MS + DAY_MS
        with pytest.raises(periods.NotComplete, match="nothing is known to be complete"):
            periods.close(store.database, end, 300_000, 0)
        reach(store, end + 299_999)
        with pytest.raises(periods.NotComplete, match="is at 2026-11-24T00:05:00Z, and it is at 2026-11-24T00:04:59"):
            periods.close(store.database, end, 300_000, 0)
        with pytest.raises(
            periods.NotComplete, match=rf"held up by {streams.INPUT}, partition 0 \(2026-11-24T00:04:59"
        ):
            periods.close(store.database, end, 300_000, 0)
        assert periods.close(store.database, end, 300_000, 0, anyway=True).complete is False
        reach(store, end + DAY_MS + 300_000)
        assert periods.close(store.database, end + DAY_MS, 300_000, 0).complete
        with pytest.raises(BadRequest, match="everything up to 2026-11-25T00:00:00Z is closed already"):
            periods.close(store.database, end, 300_000, 0)


def test_usage_after_the_close_is_an_adjustment_of_the_next_statement(database: str) -> None:
    end = books.START_MS + DAY_MS
    with books.opened(database) as store:
        take(store, [books.usage_row(IDENTITY, [1, 10, 0, 0, 5, 0])])
        first = periods.close(store.database, end, 0, 0, anyway=True)
        take(store, [books.usage_row(IDENTITY, [3, 30, 0, 0, 5, 0])])
        take(store, [books.usage_row((*IDENTITY[:4], "meter.2"), [1, 1, 1, 0, 0, 0])] * 2)
        take(store, [books.usage_row((end, *IDENTITY[1:]), [7, 7, 0, 0, 7, 0])])
        [waiting] = statements.adjustments(store.database, None).lines
        assert waiting == statements.Line(IDENTITY[0], "alice", "llama", "H100", (3, 21, 1, 0, 0, 0))
        second = periods.close(store.database, end + DAY_MS, 0, 0, anyway=True)
        assert statements.adjustments(store.database, None).lines == []
        assert statements.adjustments(store.database, second.id).lines == [waiting]
        assert [line.counters for line in statements.lines(store.database, first.id).lines] == [(1, 10, 0, 0, 5, 0)]
        assert [line.counters for line in statements.lines(store.database, second.id).lines] == [(7, 7, 0, 0, 7, 0)]
        assert statements.reconcile(store.database) == []
        assert (first.begin, second.begin) == (None, end)
        store.database.rows("UPDATE statement_lines SET requests = requests + 1 WHERE statement_id = 1")
        assert [id for id, _ in statements.reconcile(store.database)] == [1]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_statements_and_adjustments_add_up_to_the_truth(database: str, seed: int) -> None:
    draw, rows = random.Random(seed), books.history(seed, 200)
    delivered = rows + draw.choices(rows, k=60)
    draw.shuffle(delivered)
    closed, taken = books.START_MS, 0
    with books.opened(database) as store:
        while taken < len(delivered):
            some = delivered[taken : taken + draw.randrange(1, 60)]
            take(store, [books.usage_row(*row) for row in some])
            taken += len(some)
            if draw.random() < 0.5:
                closed += books.WINDOW_MS * draw.randrange(1, 3)
                periods.close(store.database, closed, 0, 0, anyway=True)
            missing = {identity[4] for identity, counts in rows if (identity, counts) not in delivered[:taken]}
            for part in {"meter.0", "meter.1", "meter.2"} - missing:
                _merge(store, part)
            assert statements.reconcile(store.database) == [], f"seed {seed}"
        billed: dict[tuple[str, ...], list[int]] = {}
        for statement in periods.statements(store.database):
            for page in (statements.lines, statements.adjustments):
                for line in page(store.database, statement.id).lines:
                    key = line.user, line.model, line.chip
                    billed[key] = books.add(billed.get(key, [0] * 6), line.counters)
        for line in statements.adjustments(store.database, None).lines:
            key = line.user, line.model, line.chip
            billed[key] = books.add(billed.get(key, [0] * 6), line.counters)
        last = max((each.end for each in periods.statements(store.database)), default=0)
        wanted: dict[tuple[str, ...], list[int]] = {}
        for (window, *names), counts in books.totals(store).items():
            if window < last:
                wanted[tuple(names)] = books.add(wanted.get(tuple(names), [0] * 6), counts)
        assert billed == wanted, f"seed {seed}"


def _merge(store: Store, name: str) -> None:
    """All of its rows are in."""
    part = store.parts.of(name, books.WINDOW_MS)
    if part.state == OPEN:
        part.tokens = store._sum(part)
        store.parts.move(part, ENDED)
        assert store.reach({}, [part]) == []


# --- Prices ---

PRICES = """
currency = "USD"

[[price]]
model = "llama"
to = 2026-11-24
input = "0.15"
cached_input = "0.075"
output = "0.60"

[[price]]
model = "llama"
from = 2026-11-24
input = 0.3
cache_write = 1
output = "1.2"
reasoning = "2.000000000001"

[[chip_cost]]
chip = "H100"
per_million_tokens = "0.02"
"""


@settings(max_examples=200, deadline=None)
@given(counts=st.lists(st.integers(0, 2**64 - 1), min_size=5, max_size=5), late=st.booleans())
def test_revenue_is_exact_and_charges_a_token_once(counts: list[int], late: bool) -> None:
    plain, cached, written, out, reasoning = counts
    entry = pricefile.parse(PRICES, "p.toml").entry("llama", "", {}, ms("2026-11-24T00:00:00Z") - (not late))
    assert entry is not None
    found = entry.amount([1, plain + cached + written, cached, written, out + reasoning, reasoning, *[0] * 5])
    rates = ("0.3", "0.3", "1", "1.2", "2.000000000001") if late else ("0.15", "0.075", "0.15", "0.6", "0.6")
    wanted = sum(Fraction(rate) * count for rate, count in zip(rates, counts, strict=True)) / 1_000_000
    assert Fraction(found, prices.UNIT) == wanted and Fraction(prices.text(found)) == wanted


def test_priced_usage_counts_what_has_no_price(database: str) -> None:
    lists = pricefile.parse(PRICES, "p.toml")
    day = {"from": "2026-11-23", "to": "2026-11-25"}
    other = (IDENTITY[0], "alice", "gemma", "B200", "meter.1")
    with books.opened(database) as store:
        take(store, [books.usage_row(IDENTITY, [1, 1_000_000, 500_000, 0, 1_000_000, 0])])
        take(store, [books.usage_row((IDENTITY[0] + DAY_MS, *IDENTITY[1:]), [1, 1_000_000, 0, 0, 0, 0])])
        take(store, [books.usage_row(other, [1, 10, 0, 0, 7, 0])])
        [total] = ask(store, lists, **day, priced="true").groups
        assert (prices.maybe_text(total.revenue), total.unpriced) == ("1.0125", 17)
        assert (prices.maybe_text(total.cost), total.uncosted) == ("0.06", 17)
        by_model = ask(store, lists, **day, priced="true", group_by="model")
        assert [(g.names["model"], prices.maybe_text(g.revenue), g.unpriced) for g in by_model.groups] == [
            ("gemma", None, 17), ("llama", "1.0125", 0),
        ]  # fmt: skip
        by_day = ask(store, lists, **day, priced="true", window="day", group_by="user", model="llama")
        assert [prices.maybe_text(g.revenue) for g in by_day.groups] == ["0.7125", "0.3"]
        assert usage.as_json(by_model)["rows"][0]["revenue"] is None
        with pytest.raises(BadRequest, match="there is no price list"):
            ask(store, **day, priced="true")


@pytest.mark.parametrize(
    ("line", "old", "new", "words"),
    [
        (2, '"USD"', '"dollars"', "currency: expected three capital letters"),
        (2, 'currency = "USD"', 'curency = "USD"', "no such setting: curency"),
        (4, "[[price]]\nmodel", "[price]\nmodel", "not TOML"),
        (5, 'model = "llama"\nto', 'model = ""\nto', "model: expected a name"),
        (6, "to = 2026-11-24", "to = 2026-11-24T00:00:00", "to: expected a date, or a time with its offset"),
        (6, "to = 2026-11-24", "until = 2026-11-24", "no such setting: until"),
        (6, "to = 2026-11-24", 'to = "soon"', "to: 'soon' is not a moment"),
        (7, 'input = "0.15"', 'input = "-0.15"', "input: expected a decimal"),
        (7, 'input = "0.15"', "input = nan", "input: expected a decimal"),
        (7, 'input = "0.15"', "input = true", "input: expected a decimal"),
        (7, 'input = "0.15"', 'input = "0.1234567890123"', "at most 12 digits"),
        (9, 'output = "0.60"', "output = ", "not TOML"),
        (4, 'output = "0.60"', "", "output is missing"),
        (11, "from = 2026-11-24", "from = 2026-11-23", "llama has a price for the same time already, on line 4"),
        (21, "per_million_tokens = ", "per_hour = ", "no such setting: per_hour"),
    ],
)
def test_a_wrong_price_file_names_its_line(line: int, old: str, new: str, words: str) -> None:
    text = PRICES.replace(old, new, 1)
    assert text != PRICES
    with pytest.raises(prices.PriceError, match=rf"p\.toml, line \d+: .*{words}") as raised:
        pricefile.parse(text, "p.toml")
    if "not TOML" not in words or line == 9:
        assert f"line {line}:" in str(raised.value), raised.value


# --- Over HTTP ---


@contextlib.contextmanager
def serving(store: Store, **options: Any) -> Iterator[str]:
    def at_once(job: Any) -> "Future[Any]":
        answer: Future[Any] = Future()
        try:
            answer.set_result(job(store))
        except LedgerError as error:
            answer.set_exception(error)
        return answer

    made = ServeSettings(port=0, **options)
    api = Api(store.database, made, at_once, IntakeProgress, lambda: 0)
    with contextlib.closing(LedgerServer(api, made)) as server:
        yield f"http://127.0.0.1:{server.port}"


def fetch(url: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=30) as answer:
            text = answer.read().decode()
            return answer.status, json.loads(text) if "json" in answer.headers["Content-Type"] else text
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def test_usage_over_http(database: str) -> None:
    with books.opened(database) as store:
        take(store, [books.usage_row(IDENTITY, [1, 10, 4, 0, 5, 0])])
        take(store, [books.usage_row((*IDENTITY[:1], "=1+1", *IDENTITY[2:]), [1, 2**53 + 1, 0, 0, 0, 0])])
        with serving(store) as url:
            status, found = fetch(f"{url}/v1/usage?from=2026-11-23&to=2026-11-24&group_by=user,model&window=hour")
            assert status == 200 and found["complete"] is False and found["complete_up_to"] is None
            assert found["rows"][1] == {
                "begin": "2026-11-23T00:00:00Z", "end": "2026-11-23T01:00:00Z", "user": "alice", "model": "llama",
                "requests": 1, "input_tokens": 10, "cached_input_tokens": 4, "cache_write_tokens": 0,
                "output_tokens": 5, "reasoning_tokens": 0, "total_tokens": 15,
            }  # fmt: skip
            status, text = fetch(f"{url}/v1/usage?from=2026-11-23&to=2026-11-24&group_by=user&format=csv")
            rows = list(csv.DictReader(io.StringIO(text)))
            assert [row["user"] for row in rows] == ["'=1+1", "alice"] and rows[0]["input_tokens"] == str(2**53 + 1)
            for wrong in ("", "?from=2026-11-23", "?from=a&to=b", "?from=2026-11-23&from=1&to=2", "?format=xml"):
                status, found = fetch(f"{url}/v1/usage{wrong}")
                assert status == 400 and found["error"]
            assert fetch(f"{url}/healthz") == (200, {"status": "ok"})
            assert fetch(f"{url}/v1/status")[1]["parts"] == {"open": 1}


def test_a_period_is_closed_over_http(database: str) -> None:
    json_body = {"Content-Type": "application/json"}
    with books.opened(database) as store, serving(store) as url:
        take(store, [books.usage_row(IDENTITY, [1, 10, 4, 0, 5, 0])])
        assert fetch(f"{url}/v1/close", {"to": "2026-11-24"}, **json_body)[0] == 409
        assert fetch(f"{url}/v1/close", {"to": "2026-11-24"}, **{"Content-Type": "text/plain"})[0] == 400
        for wrong in ([], {}, {"to": 1}, {"to": "x"}, {"to": "2026-11-24", "anyway": 1}, {"to": "2026-11-24", "a": 1}):
            assert fetch(f"{url}/v1/close", wrong, **json_body)[0] == 400
        status, closed = fetch(f"{url}/v1/close", {"to": "2026-11-24", "anyway": True}, **json_body)
        assert status == 200 and closed["statement"] == 1 and closed["complete"] is False
        assert fetch(f"{url}/v1/statements")[1]["statements"] == [closed]
        [line] = fetch(f"{url}/v1/statements/1/lines")[1]["rows"]
        assert line["user"] == "alice" and line["total_tokens"] == 15
        assert fetch(f"{url}/v1/statements/next/adjustments")[1] == {"rows": [], "next": None}
        for wrong in ("2/lines", "next/lines", "1/others", "x/lines", "1/lines?limit=0", "1/lines?after=x"):
            assert fetch(f"{url}/v1/statements/{wrong}")[0] == 400, wrong


def test_a_page_whose_name_resolves_to_this_machine_is_refused(tmp_path: Any) -> None:
    with books.opened(str(tmp_path / "ledger.duckdb")) as store, serving(store) as url:
        assert fetch(f"{url}/v1/status", Host="evil.example")[0] == 403
        assert fetch(f"{url}/v1/status", Host="localhost:1")[0] == 200


def test_other_machines_need_a_token(tmp_path: Any) -> None:
    with pytest.raises(BadRequest, match="without a token.*--token-file"):
        ServeSettings(host="0.0.0.0")
    with books.opened(str(tmp_path / "ledger.duckdb")) as store, serving(store, token="a" * 20) as url:
        assert fetch(f"{url}/v1/status")[0] == 401
        assert fetch(f"{url}/v1/status", Authorization="Bearer " + "b" * 20)[0] == 401
        assert fetch(f"{url}/v1/status", Authorization="Bearer " + "a" * 20)[0] == 200


# --- Commands ---


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.run(arguments)
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_command_usage(
    database: str, capsys: pytest.CaptureFixture[str], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    price_file = tmp_path / "prices.toml"
    price_file.write_text(PRICES)
    with books.opened(database) as store:
        rows = [((IDENTITY[0], f"user-{n:03d}", *IDENTITY[2:]), [1, 1_000_000 + n, 0, 0, 0, 0]) for n in range(120)]
        take(store, [books.usage_row(*row) for row in rows])
        take(store, [books.usage_row((IDENTITY[0], "\x1b[31m[red]", "none", "none", "m.1"), [1, 1, 0, 0, 0, 0])])
    asked = ["usage", "--database", database, "--from", "2026-11-23", "--to", "2026-11-24", "--group-by", "user"]
    code, out, _ = run(capsys, *asked, "--top", "2", "--priced", "--prices", str(price_file))
    assert code == 0 and "user-119" in out and "0.15001785" in out and "user-117" not in out
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = run(capsys, *asked, "--priced", "--prices", str(price_file))
    assert "\x1b" not in out and "[31m[red]" in out and "unpriced" in out and "--after" in out
    code, out, _ = run(capsys, *asked, "--format", "json", "--limit", "1")
    assert len(json.loads(out)["rows"]) == 1
    for name in ("usage.csv", "usage.ndjson", "usage.parquet"):
        file = tmp_path / name
        code, out, _ = run(capsys, *asked, "--out", str(file), "--priced", "--prices", str(price_file))
        assert code == 0 and "121 rows written" in out
        assert run(capsys, *asked, "--out", str(file))[0] == 1, "it exists"
    assert pq.read_table(tmp_path / "usage.parquet")["revenue"].to_pylist()[1] == Decimal("0.15")
    assert len((tmp_path / "usage.csv").read_text().splitlines()) == 122
    assert len((tmp_path / "usage.ndjson").read_text().splitlines()) == 121
    price_file.write_text(PRICES.replace('"0.15"', '"free"'))
    code, _, err = run(capsys, *asked, "--priced", "--prices", str(price_file))
    assert code == 1 and f"{price_file}, line 7: input" in err
    assert run(capsys, *asked, "--window", "week")[0] == 2


def test_the_commands_close_and_statement(database: str, capsys: pytest.CaptureFixture[str], tmp_path: Any) -> None:
    with books.opened(database) as store:
        take(store, [books.usage_row(IDENTITY, [1, 10, 4, 0, 5, 0])])
    where = ["--database", database]
    code, _, err = run(capsys, "close", *where, "--to", "2026-11-24")
    assert code == 1 and "the period is not complete" in err
    code, out, _ = run(
        capsys, "close", *where, "--to", "2026-11-24", "--time-zone", "Europe/Berlin", "--anyway", "--json"
    )
    assert code == 0 and json.loads(out)["end"] == "2026-11-23T23:00:00Z"
    with books.opened(database) as store:
        take(store, [books.usage_row(IDENTITY, [2, 10, 4, 0, 5, 0])])
    assert json.loads(run(capsys, "statement", *where, "--json")[1])["statement"] == 1
    assert json.loads(run(capsys, "statement", *where, "1", "--json")[1])["requests"] == 1
    assert json.loads(run(capsys, "statement", *where, "next", "--json")[1])["requests"] == 1
    assert run(capsys, "statement", *where, "--check")[1] == "1 statement, 0 lines that differ from the rows\n"
    assert run(capsys, "statement", *where, "1", "--out", str(tmp_path / "s.csv"))[0] == 0
    assert run(capsys, "statement", *where, "7")[0] == 1


def test_a_file_that_a_ledger_has_open_names_the_way_out(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Another process has it, as DuckDB's lock is between processes."""
    import subprocess
    import sys

    name = str(tmp_path / "ledger.duckdb")
    with books.opened(name):
        pass
    code = "import sys, duckdb; c = duckdb.connect(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    holder = forked.Popen([sys.executable, "-c", code, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdin is not None and holder.stdout is not None
    try:
        assert holder.stdout.readline() == b"open\n"
        asked = ["usage", "--database", name, "--from", "2026-11-23", "--to", "2026-11-24"]
        code_, _, err = run(capsys, *asked)
        assert code_ == 1 and f"process {holder.pid} has it open" in err and "--url http://HOST:PORT" in err
        with pytest.raises(LedgerError, match="has it open"):
            open_database(name, writer=True)
    finally:
        holder.stdin.close()
        holder.wait()
        holder.stdout.close()


def test_usage_of_a_running_ledger(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with books.opened(str(tmp_path / "ledger.duckdb")) as store:
        take(store, [books.usage_row(IDENTITY, [1, 10, 4, 0, 5, 0])])
        token = tmp_path / "token"
        token.write_text("a" * 20 + "\n")
        with serving(store, token="a" * 20) as url:
            asked = ["usage", "--url", url, "--from", "2026-11-23", "--to", "2026-11-24", "--format", "csv"]
            assert run(capsys, *asked, "--token-file", str(token))[1].splitlines()[1].endswith(",1,10,4,0,5,0,15")
            assert "a bearer token is wanted" in run(capsys, *asked)[2]
            code, out, _ = run(
                capsys, "close", "--url", url, "--to", "2026-11-24", "--anyway", "--json", "--token-file", str(token)
            )
            assert code == 0 and json.loads(out)["statement"] == 1
            said = ["--url", url, "--token-file", str(token)]
            assert json.loads(run(capsys, "statement", *said, "--json")[1])["statement"] == 1
            assert json.loads(run(capsys, "statement", *said, "1", "--json")[1])["total_tokens"] == 15
            assert run(capsys, "statement", *said, "next", "--json")[1] == ""
            assert run(capsys, "statement", *said, "../usage")[0] == 2
            assert run(capsys, "statement", *said, "--database", "x")[0] == cli.EXIT_USAGE
    assert "no ledger answers there" in run(capsys, *asked)[2]


def test_queries_are_values() -> None:
    query = usage.parse({"from": "2026-11-23", "to": "2026-11-24", "group_by": "chip,user"})
    assert query.group_by == ("user", "chip") and dataclasses.replace(query) == query
    assert Stand("id", Offset(1)) == Stand("id", Offset(1))
