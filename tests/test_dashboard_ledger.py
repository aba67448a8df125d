"""What the dashboard asks a real ledger, and what it makes of prices."""

import contextlib
import time

import orjson
import pytest

from tests import books
from tests.test_dashboard import get
from tests.test_ledger import take
from tests.test_ledger_usage import serving
from tests.totals_data import Feed
from tokenometer.processor.dashboard import Ledger, ServeAddress, SiteThread
from tokenometer.processor.ledger import pricefile
from tokenometer.processor.ledger.list_money import ListMoney
from tokenometer.processor.ledger.prices import PriceError

TOKEN = "a-token-of-the-ledger-0123456789"
LIST = """
currency = "USD"
[[price]]
model = "m*"
input = "0.5"
output = "1.5"
[[price]]
model = "m*"
customer = "acme"
input = "0.1"
output = "0.1"
[[chip_cost]]
chip = "h100"
per_million_tokens = "0.25"
"""


def test_a_user_s_last_day_comes_from_the_ledger_by_hour_and_model(tmp_path):
    hour = int(time.time()) // 3600 * 3_600_000
    rows = [
        books.usage_row((hour, "alice", "m1", "h100", "p"), [1, 10, 4, 0, 5, 0]),
        books.usage_row((hour - 3_600_000, "alice", "m2", "h100", "p"), [1, 2**53, 0, 0, 1, 0]),
        books.usage_row((hour - 90_000_000, "alice", "m1", "h100", "p"), [1, 7, 0, 0, 0, 0]),  # 25 hours ago
        books.usage_row((hour, "bob", "m1", "h100", "p"), [1, 99, 0, 0, 0, 0]),
    ]
    with books.opened(str(tmp_path / "ledger.duckdb")) as store:
        take(store, rows)
        with serving(store, token=TOKEN) as url:
            feed = Feed(ledger=Ledger(url, TOKEN))
            with contextlib.closing(SiteThread(feed.source(), ServeAddress(port=0))) as site:
                found = get(site, "/api/user?user=alice").json()
                assert get(site, "/api/user?user=carol").json()["total_tokens"] == 0
                assert get(site, "/api/about").json()["ledger"] == url
            feed = Feed(ledger=Ledger(url, "a-wrong-token"))
            with contextlib.closing(SiteThread(feed.source(), ServeAddress(port=0))) as site:
                refused = get(site, "/api/user?user=alice")
    assert found["source"] == "ledger" and found["total_tokens"] == 2**53 + 16
    assert sorted((row["model"], row["total_tokens"]) for row in found["rows"]) == [("m1", 15), ("m2", 2**53 + 1)]
    assert (refused.status, refused.json()) == (502, {"error": "the ledger answers with status 401"})


def test_who_used_most_of_a_model_in_a_time_and_what_it_cost_comes_from_the_ledger(tmp_path):
    hour = books.START_MS // 3_600_000 * 3_600_000
    rows = [
        books.usage_row((hour + minute * 60_000, user, model, chip, "p"), [1, tokens, 0, 0, 0, 0])
        for minute, user, model, chip, tokens in (
            (0, "acme", "m1", "h100", 1000), (59, "alice", "m1", "b200", 300), (5, "alice", "m1", "h100", 5),
            (60, "late", "m1", "h100", 9000), (7, "other", "x", "h100", 7000),
        )
    ]  # fmt: skip
    with books.opened(str(tmp_path / "ledger.duckdb")) as store:
        take(store, rows)
        with serving(store) as url:
            for prices in (LIST, None):
                feed = Feed(ledger=Ledger(url, prices=prices))
                with contextlib.closing(SiteThread(feed.source(), ServeAddress(port=0))) as site:
                    time_of = f"from={_text(hour)}&to={_text(hour + 3_600_000)}"
                    found = get(site, f"/api/users?{time_of}&model=m1").json()
                    everything = get(site, f"/api/users?{time_of}").json()["rows"]
                    chips = get(site, f"/api/users?{time_of}&chip=b200").json()["rows"]
                    user = get(site, "/api/user?user=alice").json()
                assert [(row["user"], row["total_tokens"]) for row in found["rows"]] == [("acme", 1000), ("alice", 305)]
                assert [row["user"] for row in everything] == ["other", "acme", "alice"]
                assert [(row["user"], row["total_tokens"]) for row in chips] == [("alice", 300)]
                assert (found["source"], found["from"], found["to"]) == (
                    "ledger", _text(hour), _text(hour + 3_600_000),
                )  # fmt: skip
                amounts = [row.get("revenue") for row in found["rows"]]
                assert amounts == (["0.0001", "0.0001525"] if prices else [None, None]), "acme has a price of its own"
                assert found["currency"] == user["currency"] == ("USD" if prices else None)


def _text(ms: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(ms // 1000))


def test_money_of_a_time_in_which_a_price_changes_is_that_of_each_piece():
    text = 'currency = "USD"\n[[price]]\nmodel = "m"\nto = 2026-11-02\ninput = "1"\noutput = "1"\n'
    text += '[[price]]\nmodel = "m"\nfrom = 2026-11-02\ninput = "2"\noutput = "2"\n'
    money, change = ListMoney(pricefile.parse(text, "prices.toml"), None), 1_793_577_600_000
    pieces = money.bounds(change - 60_000, change + 60_000)
    assert pieces == [(change - 60_000, change), (change, change + 60_000)]
    found = money.of((begin, [("m", "h100", (1, 1_000_000, 0, 0, 0, 0))]) for begin, _ in pieces)
    assert found["revenue"] == "3" and found["total_tokens"] == 2_000_000


def test_money_of_an_hour_is_exact_and_says_what_has_no_price_and_no_cost():
    prices = pricefile.parse(LIST, "prices.toml")
    cells = [
        ("m1", "h100", (1, 3, 0, 0, 2, 0)), ("m1", "b200", (1, 1, 0, 0, 0, 0)), ("x", "h100", (1, 4, 0, 0, 0, 0)),
        (None, None, (1, 8, 0, 0, 0, 0)),
    ]  # fmt: skip
    found = ListMoney(prices, prices).of([(books.START_MS, cells)])
    assert (found["currency"], found["total_tokens"]) == ("USD", 18)
    assert found["revenue"] == "0.000005", "(4 x 0.5 + 2 x 1.5) of a million, and not the customer's price"
    assert found["cost"] == "0.00000225" and found["unpriced_tokens"] == 12 and found["uncosted_tokens"] == 9
    assert [(row["model"], row["revenue"], row["cost"]) for row in found["by_model"]] == [
        (None, None, None), ("m1", "0.000005", "0.00000125"), ("x", None, "0.000001"),
    ]  # fmt: skip
    assert {row["chip"]: row["uncosted_tokens"] for row in found["by_chip"]} == {None: 8, "h100": 0, "b200": 1}
    assert orjson.loads(orjson.dumps(found)) == found


def test_two_currencies_are_refused():
    euros = pricefile.parse('currency = "EUR"', "costs.toml")
    with pytest.raises(PriceError, match="prices.toml is in USD and costs.toml in EUR"):
        ListMoney(pricefile.parse(LIST, "prices.toml"), euros)
