"""Statements that carry money: exact, frozen, of customers, adjusted, and the same after whatever comes later."""

import json
import os
import pathlib
import random
from fractions import Fraction
from typing import Any

import pytest

from tests import books
from tests.test_ledger import labelled, take
from tests.test_ledger_usage import DAY_MS, fetch, run, serving
from tokenometer.processor.ledger import adjust, focus, periods, pricefile, prices, statements
from tokenometer.processor.ledger.api import page_json
from tokenometer.processor.ledger.billing import Unpriced
from tokenometer.processor.ledger.database import COUNTS
from tokenometer.processor.ledger.periods import Customer, Terms
from tokenometer.processor.ledger.store import Store
from tokenometer.processor.ledger.values import BadRequest

END = books.START_MS + DAY_MS
LIST = """
currency = "USD"
[[price]]
model = "*"
input = "2"
cached_input = "0.5"
output = "10"
audio_input = "7"
[[price]]
model = "*"
labels = { tier = "batch" }
input = "1"
output = "5"
[[price]]
model = "*"
customer = "vip"
from = 2026-11-24
input = "0.1"
output = "0.2"
"""
TWICE = LIST.replace('input = "2"', 'input = "4"')


def close(store: Store, end: int = END, text: str | None = LIST, **terms: Any) -> periods.Statement:
    listed = None if text is None else pricefile.parse(text, "p.toml")
    return periods.close(store.database, end, 0, 0, terms=Terms(anyway=True, prices=listed, **terms))


def usage_of(user: str, tokens: int, labels: Any = None, window: int = books.START_MS, part: str = "m.1") -> bytes:
    return labelled(labels or {}, [1, tokens, 0, 0, 0, 0], (window, user, "llama", "H100", part))


def amounts(store: Store, id: int | None, kind: str = "lines") -> list[str | None]:
    name = "next" if id is None else str(id)
    return [row.get("amount") for row in page_json(store.database, name, kind, 1000, None)["rows"]]


def everything(store: Store) -> list[Any]:
    """All that closed statements say."""
    return [
        (statements.statement_json(store.database, each),
         [page_json(store.database, str(each.id), kind, 1000, None) for kind in statements.KINDS])
        for each in periods.statements(store.database)
    ]  # fmt: skip


# --- What a statement costs ---


def test_a_statement_has_lines_by_labels_and_price_with_amounts(database: str) -> None:
    with books.opened(database) as store:
        take(store, [
            usage_of("alice", 1_000_000, {"tier": "batch"}), usage_of("alice", 500_000), usage_of("vip", 10),
            usage_of("vip", 30, window=END),
        ])  # fmt: skip
        first, second = close(store), close(store, END + DAY_MS)
        lines = page_json(store.database, "1", "lines", 10, None)["rows"]
        assert [(row["user"], row.get("labels"), row["price_line"], row["amount"]) for row in lines] == [
            ("alice", None, 3, "1"), ("alice", {"tier": "batch"}, 9, "1"), ("vip", None, 3, "0.00002"),
        ]  # fmt: skip
        assert (prices.maybe_text(first.amount), prices.maybe_text(second.amount)) == ("2.00002", "0.000003")
        shown = statements.statement_json(store.database, first)
        assert shown["currency"] == "USD" and shown["price_list"] == pricefile.parse(LIST, "").digest
        [line] = page_json(store.database, "2", "lines", 10, None)["rows"]
        assert (line["begin"], line["end"]) == ("2026-11-24T00:00:00Z", "2026-11-25T00:00:00Z")
        assert statements.reconcile(store.database) == []


def test_a_price_that_changes_within_a_period_makes_lines_by_span(database: str) -> None:
    text = 'currency = "USD"\n[[price]]\nmodel = "*"\nto = 2026-11-24\ninput = 1\noutput = 1\n'
    text += '[[price]]\nmodel = "*"\nfrom = 2026-11-24\ninput = 3\noutput = 1'
    with books.opened(database) as store:
        take(store, [usage_of("a", 1_000_000), usage_of("a", 1_000_000, window=END)])
        close(store, END + DAY_MS, text)
        lines = page_json(store.database, "1", "lines", 10, None)["rows"]
        assert [(row["begin"], row["end"], row["amount"]) for row in lines] == [
            (None, "2026-11-24T00:00:00Z", "1"), ("2026-11-24T00:00:00Z", "2026-11-25T00:00:00Z", "3"),
        ]  # fmt: skip


def test_a_closed_amount_stays_what_it_was_when_usage_comes_late(database: str) -> None:
    """$10.76, and the late $5.00 is an adjustment of the next statement; by the old list, though there is a new one."""
    with books.opened(database) as store:
        take(store, [usage_of("a", 5_380_000)])
        assert prices.text(close(store).amount or 0) == "10.76"
    before = None
    with books.opened(database) as store:
        take(store, [usage_of("a", 5_380_000 + 2_500_000)])
        before = everything(store)
        assert amounts(store, None, "adjustments") == [None], "its price is known when it is closed"
        second = close(store, END + DAY_MS, TWICE)
        assert amounts(store, second.id, "adjustments") == ["5"] and prices.text(second.amount or 0) == "5"
        assert everything(store)[:1] == before
        adjust.adjust(store.database, {"key": "k", "reason": "r", "user": "a", "amount": "-1"}, 0)
        assert everything(store)[:1] == before
        assert statements.reconcile(store.database) == []
    with books.opened(database) as store:
        assert everything(store)[:1] == before


def test_late_usage_of_a_period_without_prices_is_priced_by_the_next_list(database: str) -> None:
    with books.opened(database) as store:
        take(store, [usage_of("a", 100)])
        assert close(store, text=None).amount is None
        take(store, [usage_of("a", 1_000_100)])
        assert prices.text(close(store, END + DAY_MS).amount or 0) == "2"


def test_unpriced_usage_is_refused_and_listed_unless_it_is_allowed(database: str) -> None:
    text = LIST.replace('model = "*"', 'model = "gpt"')
    with books.opened(database) as store:
        take(store, [usage_of("a", 100, {"tier": "flex"}), usage_of("b", 23)])
        with pytest.raises(Unpriced, match=r"--allow-unpriced.*\nllama \(tier=flex\): 100 tokens\nllama: 23 tokens"):
            close(store, text=text)
        assert periods.statements(store.database) == [] and books.contents(store)["statement_lines"] == []
        made = close(store, text=text, allow_unpriced=True)
        assert made.amount is None and amounts(store, 1) == [None, None]
        assert statements.reconcile(store.database) == []


def test_a_tie_that_usage_meets_refuses_the_close(database: str) -> None:
    text = 'currency = "USD"\n' + "".join(
        f'[[price]]\nmodel = "*"\nlabels = {{ {name} = "x" }}\ninput = 1\noutput = 1\n' for name in ("a", "b")
    )
    with books.opened(database) as store:
        take(store, [usage_of("u", 1, {"a": "x", "b": "x"})])
        with pytest.raises(prices.PriceError, match="line 2 and line 7 fit 'llama'"):
            close(store, text=text)


def test_a_table_that_somebody_changed_is_found(database: str) -> None:
    with books.opened(database) as store:
        take(store, [usage_of("a", 100)])
        close(store)
        store.database.rows("UPDATE statement_lines SET amount = '1'")
        assert {row[0] for _, row in statements.reconcile(store.database)} == {"statement_lines", "sum"}


# --- Customers ---


def test_customers_have_periods_of_their_own_and_no_row_is_billed_twice(database: str) -> None:
    with books.opened(database) as store:
        blue = {"team": "blue"}
        take(store, [usage_of("alice", 1, blue), usage_of("alice", 10), usage_of("bob", 100, blue)])
        take(store, [usage_of("bob", 1000), usage_of("alice", 10_000, window=END)])
        close(store, customer=Customer("team", "blue"))
        close(store, END + DAY_MS, customer=Customer(None, "alice"))
        close(store)
        close(store, END + DAY_MS)
        tokens = [sum(row["total_tokens"] for row in page_json(store.database, str(n), "lines", 9, None)["rows"])
                  for n in (1, 2, 3, 4)]  # fmt: skip
        assert tokens == [101, 10_010, 1000, 0]
        shown = [statements.statement_json(store.database, each) for each in periods.statements(store.database)]
        assert [each.get("customer") for each in shown] == [{"team": "blue"}, {"user": "alice"}, None, None]
        with pytest.raises(BadRequest, match="up to 2026-11-25T00:00:00Z is closed already"):
            close(store, customer=Customer(None, "bob"))
        take(store, [usage_of("alice", 2, {"team": "blue"}), usage_of("alice", 30), usage_of("bob", 2000)])
        assert statements.reconcile(store.database) == []
        closed_by = store.database.rows("SELECT closed_by, sum(input_tokens) FROM late GROUP BY closed_by ORDER BY 1")
        assert [tuple(map(int, row)) for row in closed_by] == [(1, 1), (2, 20), (3, 1000)]
        made = close(store, END + 2 * DAY_MS, customer=Customer(None, "alice"))
        [late] = page_json(store.database, str(made.id), "adjustments", 9, None)["rows"]
        assert late["total_tokens"] == 20, "each customer's statements have that customer's late usage"
        assert statements.reconcile(store.database) == []


@pytest.mark.parametrize(
    ("customer", "words"),
    [
        (Customer(None, "nobody"), "no usage of user nobody"),
        (Customer("team", "nobody"), "no usage of team nobody"),
        (Customer("project", "x"), "no row has a label project; the ledger has team"),
        (Customer(None, "llama"), "no usage of user llama"),
        (Customer(None, "\ud800"), "not a text in UTF-8"),
    ],
)
def test_a_customer_of_whom_there_is_no_usage_is_refused(database: str, customer: Customer, words: str) -> None:
    with books.opened(database) as store:
        take(store, [usage_of("a", 1, {"team": "blue"})])
        with pytest.raises(BadRequest, match=words):
            close(store, customer=customer)


# --- Corrections ---


def test_credits_corrections_and_voids_are_of_the_next_statement(database: str) -> None:
    with books.opened(database) as store:
        take(store, [usage_of("a", 1_000_000), usage_of("b", 1_000_000, {"team": "x"})])
        close(store)
        given = {"key": "c-1", "reason": "an outage", "user": "a", "amount": "-0.75", "currency": "USD"}
        first = adjust.adjust(store.database, given, 5)
        assert adjust.adjust(store.database, given, 9) == first, "sent twice, it is one"
        with pytest.raises(adjust.Conflict, match="the key c-1 is another entry's already"):
            adjust.adjust(store.database, {**given, "amount": "-1"}, 9)
        tokens = {"key": "t-1", "reason": "counted twice", "user": "a", "model": "llama", "chip": "H100",
                  "at": "2026-11-23", "tokens": {"input_tokens": -250_000}}  # fmt: skip
        adjust.adjust(store.database, tokens, 5)
        adjust.adjust(store.database, {"key": "l-1", "reason": "x", "labels": {"team": "x"}, "amount": "3"}, 5)
        second = close(store, END + DAY_MS, TWICE)
        assert amounts(store, second.id, "corrections") == ["-0.75", "-0.5", "3"], "at the price of when it happened"
        assert prices.text(second.amount or 0) == "1.75"
        adjust.adjust(store.database, {"key": "v-1", "reason": "agreed", "void": "t-1"}, 6)
        with pytest.raises(BadRequest, match="t-1 is void already"):
            adjust.adjust(store.database, {"key": "v-2", "reason": "again", "void": "t-1"}, 6)
        third = close(store, END + 2 * DAY_MS, TWICE)
        assert amounts(store, third.id, "corrections") == ["0.5"] and prices.text(third.amount or 0) == "0.5"
        [void] = page_json(store.database, "3", "corrections", 9, None)["rows"]
        assert (void["voids"], void["input_tokens"], void["statement"]) == ("t-1", 250_000, 3)
        assert statements.reconcile(store.database) == []


def test_an_amount_in_another_currency_refuses_the_close(database: str) -> None:
    with books.opened(database) as store:
        take(store, [usage_of("a", 1)])
        adjust.adjust(store.database, {"key": "k", "reason": "r", "user": "a", "amount": "-1", "currency": "CNY"}, 0)
        with pytest.raises(
            prices.PriceError, match="p.toml is in USD, and credit k of this statement in CNY.*--void KEY"
        ):
            close(store)
        adjust.adjust(store.database, {"key": "v", "reason": "r", "void": "k"}, 0)
        assert prices.text(close(store).amount or 0) == "0.000002", "an entry and its void are nothing in any currency"
        assert statements.reconcile(store.database) == []
        given = {"key": "e", "reason": "r", "user": "a", "amount": "-1", "currency": "EUR"}
        with pytest.raises(BadRequest, match="currency EUR: the statements of this ledger are in USD"):
            adjust.adjust(store.database, given, 0)
        adjust.adjust(store.database, {**given, "currency": "USD"}, 0)


def test_a_void_of_what_a_statement_has_is_of_its_currency(database: str) -> None:
    with books.opened(database) as store:
        take(store, [usage_of("a", 1)])
        adjust.adjust(store.database, {"key": "k", "reason": "r", "user": "a", "amount": "-1", "currency": "CNY"}, 0)
        close(store, text=None)
        adjust.adjust(store.database, {"key": "v", "reason": "r", "void": "k"}, 0)
        with pytest.raises(prices.PriceError, match="void v of this statement in CNY"):
            close(store, END + DAY_MS)


def test_amounts_of_two_currencies_are_not_added_without_a_list_either(database: str) -> None:
    with books.opened(database) as store:
        take(store, [usage_of("a", 1)])
        for key, currency in (("k", "EUR"), ("l", "USD")):
            given = {"key": key, "reason": "r", "user": "a", "amount": "-1", "currency": currency}
            adjust.adjust(store.database, given, 0)
        with pytest.raises(prices.PriceError, match="credit k is in EUR, and credit l of this statement in USD"):
            close(store, text=None)
        assert periods.statements(store.database) == []


def test_late_usage_and_a_credit_of_another_currency_are_not_added_without_a_list(database: str) -> None:
    with books.opened(database) as store:
        take(store, [usage_of("a", 1), usage_of("b", 1)])
        adjust.adjust(store.database, {"key": "k", "reason": "r", "user": "a", "amount": "-1", "currency": "EUR"}, 0)
        close(store, customer=Customer(None, "b"))
        take(store, [usage_of("b", 9)])
        adjust.adjust(store.database, {"key": "l", "reason": "r", "user": "b", "amount": "-1"}, 0)
        store.database.rows("UPDATE adjustments SET currency = 'EUR' WHERE key = 'l'")
        with pytest.raises(prices.PriceError, match="late usage is in USD, and credit l of this statement in EUR"):
            close(store, END + DAY_MS, text=None, customer=Customer(None, "b"), without_prices=True)


def test_a_forgotten_list_is_no_statement_without_amounts(database: str) -> None:
    with books.opened(database) as store:
        take(store, [usage_of("a", 1_000_000)])
        close(store)
        with pytest.raises(BadRequest, match="statement 1 has prices.*--prices FILE, or --without-prices"):
            close(store, END + DAY_MS, text=None)
        assert close(store, END + DAY_MS, text=None, without_prices=True).amount is None


def test_a_statement_says_what_its_amount_is_the_sum_of(database: str) -> None:
    with books.opened(database) as store:
        take(store, [usage_of("a", 1_000_000)])
        first = close(store)
        take(store, [usage_of("a", 1_500_000), usage_of("a", 4_000_000, window=END)])
        adjust.adjust(store.database, {"key": "k", "reason": "r", "user": "a", "amount": "-12.5"}, 0)
        second = close(store, END + DAY_MS)
        shown = [statements.statement_json(store.database, each) for each in (first, second)]
        assert [each["subtotals"] for each in shown] == [
            {"lines": "2", "adjustments": "0", "corrections": "0"},
            {"lines": "8", "adjustments": "1", "corrections": "-12.5"},
        ]
        assert shown[1]["amount"] == "-3.5"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "key: expected a text"),
        ({"key": "k"}, "reason: expected a text"),
        ({"key": "k" * 1025, "reason": "r"}, "key: expected a text of 1 to 1,024"),
        ({"key": "k", "reason": "r"}, "expected an amount, or tokens, or the key"),
        ({"key": "k", "reason": "r", "amount": "1", "void": "x"}, "expected an amount, or tokens, or the key"),
        ({"key": "k", "reason": "r", "amount": "1"}, "an amount is of a user, or of one label's value"),
        ({"key": "k", "reason": "r", "amount": "1e3", "user": "a"}, "expected a decimal"),
        ({"key": "k", "reason": "r", "amount": "0", "user": "a"}, "0 corrects nothing"),
        ({"key": "k", "reason": "r", "amount": 5, "user": "a"}, "amount: expected a text"),
        ({"key": "k", "reason": "r", "amount": "1", "user": "nobody"}, "no usage of user nobody"),
        ({"key": "k", "reason": "r", "void": "x"}, "there is no entry x"),
        ({"key": "k", "reason": "r", "tokens": {"input_tokens": 1}, "user": "a"}, "a correction of tokens is of a"),
        ({"key": "k", "reason": "r", "tokens": {"audio": 1}}, "expected counters"),
        ({"key": "k", "reason": "r", "tokens": {"input_tokens": -1, "output_tokens": 1}}, "all are taken away"),
        ({"key": "k", "reason": "r", "tokens": {"cached_input_tokens": -1}}, "a part of a counter"),
        ({"key": "k", "reason": "r", "tokens": {"input_tokens": 2**64}}, "not a whole number of 64 bits"),
        ({"key": "k", "reason": "r", "amount": "1", "user": "a", "tokns": 1}, "no such setting: tokns"),
    ],
)  # fmt: skip
def test_a_wrong_correction_is_told_what_is_wrong(database: str, given: dict[str, Any], words: str) -> None:
    if "tokens" in given and "user" not in given:
        given = {**given, "user": "a", "model": "llama", "chip": "H100", "at": "2026-11-23"}
    with books.opened(database) as store:
        take(store, [usage_of("a", 1)])
        with pytest.raises(BadRequest, match=words):
            adjust.adjust(store.database, given, 0)
        assert books.contents(store) and store.database.rows("SELECT count(*) FROM adjustments") == [(0,)]


# --- The sum of everything ---


def priced(lists: prices.Prices, user: str, model: str, labels: dict[str, str], at: int, counts: list[int]) -> Fraction:
    chosen = lists.entry(model, user, labels, at)
    assert chosen is not None
    inside = dict(zip(COUNTS, counts, strict=True))
    own = prices.charged(inside)
    return sum((Fraction(chosen.rates[name]) * count for name, count in own.items()), Fraction()) / prices.UNIT


def _history(name: str, seed: int) -> None:
    """Rows with labels, delivered in any order and more than once, while periods are closed for all and for customers;
    at the end every row is billed once, at the price of the list in force."""
    draw, lists = random.Random(seed), pricefile.parse(LIST, "p.toml")
    rows = []
    for identity, counts in books.history(seed, draw.randrange(1, 25)):
        labels = {key: draw.choice(values) for key, values in (("tier", ("batch", "flex")), ("team", ("vip", "x")))
                  if draw.random() < 0.5}  # fmt: skip
        window = books.START_MS + DAY_MS * draw.randrange(3)
        rows.append(((window, *identity[1:4], f"p.{len(rows)}"), labels, counts, counts[1] - counts[2] - counts[3]))
    delivered = rows + draw.choices(rows, k=5)
    draw.shuffle(delivered)
    with books.opened(name) as store:
        while delivered:
            some = [delivered.pop() for _ in range(min(len(delivered), draw.randrange(1, 12)))]
            further = [{"audio_input_tokens": audio} if audio else {} for *_, audio in some]
            take(store, [labelled(row[1], row[2], row[0], **more) for row, more in zip(some, further, strict=True)])
            if draw.random() < 0.6:
                customer = draw.choice([None, None, Customer(None, "user-1"), Customer("team", "vip")])
                try:
                    close(store, books.START_MS + DAY_MS * draw.randrange(1, 4), customer=customer)
                except BadRequest:
                    pass
        for customer in (Customer(None, "user-1"), Customer("team", "vip"), None):
            try:
                close(store, books.START_MS + DAY_MS * 4, customer=customer)
            except BadRequest:
                pass
        assert statements.reconcile(store.database) == [], f"seed {seed}"
        _check(store, lists, rows, seed)


def _check(store: Store, lists: prices.Prices, rows: list[Any], seed: int) -> None:
    total = Fraction()
    for each in periods.statements(store.database):
        found = [text for kind in ("lines", "adjustments") for text in amounts(store, each.id, kind)]
        total += sum(map(Fraction, found), Fraction())
        assert Fraction(prices.text(each.amount or 0)) == sum(map(Fraction, found), Fraction()), f"seed {seed}"
    waiting = statements.adjustments(store.database, None).lines
    total += sum((priced(lists, line.user, line.model, dict(line.labels), line.window_start or 0,
                         [*line.counters, *line.further]) for line in waiting), Fraction())  # fmt: skip
    wanted = sum((priced(lists, identity[1], identity[2], labels, identity[0], [*counts, 0, audio, 0, 0, 0])
                  for identity, labels, counts, audio in rows), Fraction())  # fmt: skip
    assert total == wanted, f"seed {seed}"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_sums_of_lines_are_the_statements_and_the_usage(database: str, seed: int) -> None:
    _history(database, seed)


@pytest.mark.slow
def test_sums_of_lines_are_the_statements_and_the_usage_on_many_histories(tmp_path: pathlib.Path) -> None:
    """A history takes a third of a second; LEDGER_HISTORIES=1000 runs as many as were run before a release."""
    for seed in range(12, int(os.environ.get("LEDGER_HISTORIES", "24"))):  # those before have a test each
        _history(str(tmp_path / f"{seed}.duckdb"), seed)


# --- FOCUS ---


def test_a_statement_in_focus_columns_adds_up(database: str) -> None:
    with books.opened(database) as store:
        take(store, [labelled({"tier": "batch"}, [1, 100, 40, 20, 30, 10]), usage_of("a", 5, window=END)])
        close(store)
        take(store, [labelled({"tier": "batch"}, [2, 300, 40, 20, 30, 10])])
        adjust.adjust(
            store.database, {"key": "k", "reason": "r", "user": "alice", "amount": "-1", "at": "2026-11-23"}, 0
        )
        second = close(store, END + DAY_MS)
        rows: list[dict[str, Any]] = []
        after: str | None = None
        while True:
            page = page_json(store.database, "2", "focus", 1, after)
            rows += page["rows"]
            if (after := page["next"]) is None:
                break
        assert sum(Fraction(row["BilledCost"]) for row in rows) == Fraction(prices.text(second.amount or 0))
        assert [(row["ChargeCategory"], row["ChargeClass"]) for row in rows] == [
            ("Usage", None), ("Usage", "Correction"), ("Credit", "Correction"),
        ]  # fmt: skip
        for row in rows:
            assert tuple(row) == focus.COLUMNS
            if row["ListUnitPrice"] is not None:
                cost = Fraction(row["ListUnitPrice"]) * Fraction(row["PricingQuantity"])
                assert cost == Fraction(row["BilledCost"]) and row["ConsumedUnit"] == "Tokens"
        with pytest.raises(BadRequest, match="after is not the next"):
            page_json(store.database, "2", "focus", 1, "9.")


def test_a_statement_without_prices_has_no_focus(database: str) -> None:
    with books.opened(database) as store:
        take(store, [usage_of("a", 5)])
        close(store, text=None)
        with pytest.raises(BadRequest, match="the statement has no prices"):
            page_json(store.database, "1", "focus", 10, None)


# --- Over HTTP, and by commands ---

JSON = {"Content-Type": "application/json"}


def test_money_over_http(database: str) -> None:
    with books.opened(database) as store, serving(store) as url:
        take(store, [usage_of("a", 1_000_000, {"team": "blue"})])
        asked = {"from": "2026-11-23", "to": "2026-11-24", "priced": "true", "prices": LIST, "label": ["team=blue"]}
        status, found = fetch(f"{url}/v1/usage", asked, **JSON)
        assert status == 200 and found["rows"][0]["revenue"] == "2"
        assert fetch(f"{url}/v1/usage", {**asked, "prices": "x"}, **JSON)[0] == 400
        body = {"to": "2026-11-24", "anyway": True, "prices": LIST}
        assert fetch(f"{url}/v1/close", {**body, "prices": LIST.replace('"*"', '"gpt"')}, **JSON)[0] == 409
        status, closed = fetch(f"{url}/v1/close", {**body, "label": "team=blue"}, **JSON)
        assert status == 200 and closed["amount"] == "2" and closed["customer"] == {"team": "blue"}
        credit = {"key": "k", "reason": "r", "user": "a", "amount": "-1"}
        assert fetch(f"{url}/v1/adjust", credit, **JSON)[1]["kind"] == "credit"
        assert fetch(f"{url}/v1/adjust", {**credit, "amount": "-2"}, **JSON)[0] == 409
        assert len(fetch(f"{url}/v1/statements/next/corrections")[1]["rows"]) == 1
        assert fetch(f"{url}/v1/check")[1] == {"statements": 1, "differences": 0}
        assert "tokenometer_ledger_disputed_parts 0.0" in fetch(f"{url}/metrics")[1]
        assert len(fetch(f"{url}/v1/statements/1/focus")[1]["rows"]) == 1
        assert fetch(f"{url}/v1/close", {"to": "2026-11-25", "priced": True}, **JSON)[0] == 400


def test_a_customer_s_token_reads_what_is_theirs_and_nothing_else(database: str) -> None:
    tokens = {"a" * 20: Customer(None, "alice"), "b" * 20: Customer("team", "blue"), "c" * 20: Customer(None, "nobody")}
    with books.opened(database) as store, serving(store, token="o" * 20, customers=tokens) as url:
        take(
            store, [usage_of("alice", 1, {"team": "red"}), usage_of("bob", 10, {"team": "blue"}), usage_of("bob", 100)]
        )
        close(store, customer=Customer("team", "blue"))
        close(store)
        alice, blue, nobody = ({"Authorization": f"Bearer {letter * 20}"} for letter in "abc")
        asked = f"{url}/v1/usage?from=2026-11-22&to=2026-11-30"
        assert [row["total_tokens"] for row in fetch(asked, **alice)[1]["rows"]] == [1]
        assert [row["user"] for row in fetch(f"{asked}&group_by=user", **blue)[1]["rows"]] == ["bob"]
        assert fetch(asked, **nobody)[1]["rows"] == []
        assert fetch(f"{asked}&user=bob", **alice)[0] == 400 and fetch(f"{asked}&label=team=red", **blue)[0] == 400
        assert fetch(f"{asked}&label=team=", **blue)[0] == 400
        assert fetch(f"{asked}&priced=true", **alice)[0] == 400, "chips' costs are not theirs"
        assert [each["statement"] for each in fetch(f"{url}/v1/statements", **blue)[1]["statements"]] == [1]
        assert fetch(f"{url}/v1/statements/1/lines", **blue)[0] == 200
        assert fetch(f"{url}/v1/statements/1/lines", **alice)[0] == 400
        for path in ("/v1/statements/2/lines", "/v1/statements/next/adjustments", "/v1/statements/next/corrections"):
            assert fetch(f"{url}{path}", **blue)[0] == 400, path
        for path in ("/v1/status", "/v1/check", "/metrics", "/v1/usage/", "/v1/statements/1/lines/x"):
            assert fetch(f"{url}{path}", **blue)[0] == 403, path
        for path in ("/v1/close", "/v1/adjust", "/v1/usage"):
            assert fetch(f"{url}{path}", {}, **blue, **JSON)[0] == 403, path
        assert fetch(asked, Authorization="Bearer " + "d" * 20)[0] == 401


def test_the_commands_of_money(database: str, capsys: Any, tmp_path: pathlib.Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    listed = tmp_path / "prices.toml"
    listed.write_text(LIST)
    where = ["--database", database]
    with books.opened(database) as store:
        take(store, [usage_of("a-user-with-a-long-name", 123_456_789_012, {"team": "blue"})])
    code, _, err = run(capsys, "close", *where, "--to", "2026-11-24", "--prices", str(listed))
    assert code == 1 and "held up by" not in err
    code, out, _ = run(capsys, "close", *where, "--to", "2026-11-24", "--prices", str(listed), "--anyway", "--json")
    assert code == 0 and json.loads(out)["amount"] == "246913.578024"
    code, out, _ = run(capsys, "statement", "1", *where)
    assert "246913.578024" in out and "123,456,789,012" in out and max(map(len, out.splitlines())) <= 80
    for form in ("csv", "focus"):
        assert "246913.578024" in run(capsys, "statement", "1", *where, "--format", form)[1]
    assert run(capsys, "statement", "1", *where, "--out", str(tmp_path / "s.parquet"))[0] == 0
    entry = ["adjust", "--key", "k", "--reason", "r", "--label", "team=blue", "--amount=-2.5", "--currency", "USD"]
    assert json.loads(run(capsys, *entry, *where, "--json")[1])["amount"] == "-2.5"
    told = "Credit k: -2.5 USD, team blue\nReported with: tokenometer statement next --corrections\n"
    assert run(capsys, *entry, *where) == (0, told, "")
    assert "-2.5" in run(capsys, "statement", "next", *where, "--corrections")[1]
    with books.opened(database) as store, serving(store) as url:
        said = ["--url", url]
        assert run(capsys, "statement", *said, "--check")[1] == "1 statement, 0 lines that differ from the rows\n"
        entry = ["adjust", *said, "--key", "fix", "--reason", "r", "--at", "2026-11-23", "--label", "team=blue"]
        entry += ["--user", "a-user-with-a-long-name", "--model", "llama", "--chip", "H100"]
        out = run(capsys, *entry, "--tokens", "input_tokens=-1200", "--tokens", "audio_input_tokens=-7")[1]
        whose = "user a-user-with-a-long-name, model llama, chip H100, at 2026-11-23T00:00:00Z, team blue"
        assert out.startswith(f"Correction fix: -1,200 input_tokens, -7 audio_input_tokens, {whose}\n")
        out = run(capsys, "adjust", *said, "--key", "no", "--reason", "r", "--void", "k")[1]
        assert out.startswith("Void no: takes back k, 2.5 USD, team blue\n")
        asked = ["usage", *said, "--from", "2026-11-23", "--to", "2026-11-24", "--priced", "--prices", str(listed)]
        code, out, _ = run(capsys, *asked)
        assert code == 0 and "246913.578024" in out and max(map(len, out.splitlines())) <= 80


def test_one_price_id_of_focus_has_one_price(database: str) -> None:
    """Also where a list was edited, and where entries differ by their times or customers only."""
    with books.opened(database) as store:
        for day, text in enumerate((LIST, TWICE)):
            window = books.START_MS + day * DAY_MS
            take(store, [usage_of(user, 1_000, window=window, part=f"m.{day}") for user in ("a", "vip")])
            close(store, END + day * DAY_MS, text)
        found: dict[str, set[str]] = {}
        for id in (1, 2):
            for row in focus.page_json(store.database, id, 100, None)["rows"]:
                found.setdefault(row["SkuPriceId"], set()).add(row["ListUnitPrice"])
        assert sorted(prices for each in found.values() for prices in each) == ["0.1", "2", "4"]
        assert all(len(each) == 1 for each in found.values())
