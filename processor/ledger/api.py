"""The ledger's questions without HTTP: texts and plain values in, plain values out. Raises LedgerError."""

import tomllib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from datetime import UTC
from typing import Any, TypeVar

from tokenometer.processor.http import access
from tokenometer.processor.ledger import adjust, focus, intake, labels, periods, pricefile, statements, times, usage
from tokenometer.processor.ledger.database import Database
from tokenometer.processor.ledger.periods import Customer, Terms
from tokenometer.processor.ledger.prices import Prices
from tokenometer.processor.ledger.store import Store
from tokenometer.processor.ledger.values import BadArgument, BadRequest, LedgerError

_CLOSE_SECONDS = 300  # a batch may be on its way, and a month has many rows
_CLOSE_FIELDS = ("to", "time_zone", "anyway", "user", "label", "prices", "priced", "allow_unpriced", "without_prices")
T = TypeVar("T")


@dataclass(frozen=True)
class ServeSettings:
    """token: what a request must bear; needed for any address but this machine's own. customers: tokens that read what
    is of one customer, and nothing else."""

    host: str = "127.0.0.1"
    port: int = 9465
    token: str | None = field(default=None, repr=False)
    grace_ms: int = 300_000
    prices: Prices | None = None
    customers: Mapping[str, Customer] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        try:
            access.check(self.host, self.token)
            for token in self.customers:
                access.check(self.host, token)
        except access.ServeError as error:
            raise BadRequest(f"{error} (--token-file)") from None
        if self.customers and self.token is None:
            raise BadRequest("tokens of customers want a token of your own, which may do all (--token-file)")
        if self.token in self.customers:
            raise BadRequest("a customer's token is the one that may do all")


class Api:
    def __init__(
        self,
        database: Database,
        settings: ServeSettings,
        ask: Callable[[Callable[[Store], Any]], "Future[Any]"],
        progress: Callable[[], intake.IntakeProgress],
        now_ms: Callable[[], int],
    ) -> None:
        self._database, self._settings = database, settings
        self._ask, self._progress, self._now_ms = ask, progress, now_ms

    def usage(self, given: usage.Given, prices: str | None = None, customer: Customer | None = None) -> dict[str, Any]:
        """prices: the text of a list for this question; None: the ledger's own."""
        query = usage.parse(given)
        if customer is not None:
            query = _only(query, customer)
        priced_by = self._settings.prices if prices is None else pricefile.parse(prices, "prices")
        with self._database.snapshot() as database:
            return usage.as_json(usage.answer(database, query, priced_by))

    def posted_usage(self, body: Any) -> dict[str, Any]:
        """A question as an object: its parameters, of `label` a list, and `prices`."""
        if not isinstance(body, dict):
            raise BadArgument("expected an object of the parameters")
        prices, given = body.get("prices"), {name: value for name, value in body.items() if name != "prices"}
        if prices is not None and not isinstance(prices, str):
            raise BadArgument("prices: expected the text of a price list")
        for name, value in given.items():
            texts = value if name == "label" and isinstance(value, list) else [value]
            if (name == "label" and not isinstance(value, list)) or not all(isinstance(each, str) for each in texts):
                raise BadArgument(f"{name}: expected a text{'s list' if name == 'label' else ''}")
        return self.usage(given, prices)

    def status(self) -> dict[str, Any]:
        with self._database.snapshot() as database:
            closed = database.rows(f"SELECT max(end_ms) FROM statements WHERE {periods.EVERYBODY.same()}")[0][0]
            states = database.rows("SELECT state, count(*) FROM parts GROUP BY state ORDER BY state")
            mark = usage.watermark(database)
        return {
            "complete_up_to": None if mark is None else times.text(mark, UTC),
            "closed_until": None if closed is None else times.text(closed, UTC),
            "parts": {state: int(count) for state, count in states},
            **intake.view(self._progress()),
        }

    def statements(self, customer: Customer | None = None) -> dict[str, Any]:
        with self._database.snapshot() as database:
            allowed = periods.scope_of(database, customer)
            shown = [each for each in periods.statements(database) if allowed in (periods.EVERYBODY, each.scope)]
            return {"statements": [statements.statement_json(database, each) for each in shown]}

    def page(self, name: str, kind: str, given: Mapping[str, str], customer: Customer | None = None) -> dict[str, Any]:
        if unknown := given.keys() - {"limit", "after"}:
            raise BadArgument(f"no such parameter: {min(unknown)}; expected limit, after")
        limit, after = usage.limit(given.get("limit")), given.get("after")
        with self._database.snapshot() as database:
            return page_json(database, name, kind, limit, after, periods.scope_of(database, customer))

    def check(self) -> dict[str, Any]:
        """Do all statements add up?"""
        with self._database.snapshot() as database:
            return statements.check_json(database)

    def close(self, body: Any) -> dict[str, Any]:
        end, terms = closing_terms(body, self._settings.prices)
        grace, now = self._settings.grace_ms, self._now_ms()

        def job(store: Store) -> dict[str, Any]:
            made = periods.close(store.database, end, grace, now, terms=terms)
            return statements.statement_json(store.database, made)

        return self._wait(job, "/v1/statements")

    def adjust(self, body: Any) -> dict[str, Any]:
        if not isinstance(body, dict):
            raise BadArgument("expected an object")
        now = self._now_ms()
        return self._wait(lambda store: adjust.adjust(store.database, body, now), "/v1/statements/next/corrections")

    def _wait(self, job: Callable[[Store], T], where: str) -> T:
        asked: Future[T] = self._ask(job)
        try:
            return asked.result(_CLOSE_SECONDS)
        except TimeoutError:
            raise LedgerError(f"the ledger has not come to it yet; look at {where} before asking again") from None


def page_json(
    database: Database, name: str, kind: str, limit: int, after: str | None, allowed: periods.Scope = periods.EVERYBODY
) -> dict[str, Any]:
    """One of statements.KINDS, or `focus`, of a statement by its number; `next` is the one to come, and has no lines.
    allowed: whose statements may be seen."""
    if kind not in (*statements.KINDS, "focus") or (
        name == "next" and (kind in ("lines", "focus") or allowed != periods.EVERYBODY)
    ):
        raise BadArgument(f"a statement has {', '.join(statements.KINDS)} and focus, and the next one no lines so far")
    if name == "next":
        return statements.page_json(database, None, kind, limit, after)
    found = periods.statement(database, usage.number("statement", name))
    if allowed not in (periods.EVERYBODY, found.scope):
        raise BadRequest(f"there is no statement {found.id}")
    if kind == "focus":
        return focus.page_json(database, found.id, limit, after)
    return statements.page_json(database, found.id, kind, limit, after)


def closing_terms(body: Any, own: Prices | None, source: str = "prices") -> tuple[int, Terms]:
    """When a period ends, and how it is closed. own: the ledger's list, for `priced`. source: a name of `prices`."""
    if not isinstance(body, dict) or body.keys() - set(_CLOSE_FIELDS) or not _text(body.get("to")):
        raise BadArgument(f'expected {{"to": "2026-12-01"}}, and if wanted {", ".join(_CLOSE_FIELDS[1:])}')
    for name in ("time_zone", "user", "label", "prices"):
        if name in body and not _text(body[name]):
            raise BadArgument(f"{name}: expected a text")
    for name in ("anyway", "priced", "allow_unpriced", "without_prices"):
        if not isinstance(body.get(name, False), bool):
            raise BadArgument(f"{name} is true or false")
    where = body.get("time_zone", "UTC")
    end = times.moment(body["to"], times.zone(where))
    prices = None
    if "prices" in body:
        prices = pricefile.parse(body["prices"], source)
    elif body.get("priced", False):
        if (prices := own) is None:
            raise BadArgument("priced: there is no price list; start the ledger with --prices FILE, or give prices")
    without = body.get("without_prices", False)
    if without and prices is not None:
        raise BadArgument("a statement is closed with prices or without_prices, not both")
    customer = customer_from(body.get("user"), body.get("label"))
    return end, Terms(customer, where, body.get("anyway", False), prices, body.get("allow_unpriced", False), without)


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def customer_from(user: str | None, label: str | None) -> Customer | None:
    """label: NAME=VALUE."""
    if user is not None and label is not None:
        raise BadArgument("a customer is a user or a label's value, not both")
    if label is None:
        return None if user is None else Customer(None, user)
    name, equals, value = label.partition("=")
    if not equals or not value or not labels.is_name(name):
        raise BadArgument(f"label {label!r}: expected NAME=VALUE")
    return Customer(name, value)


def _only(query: usage.Query, customer: Customer) -> usage.Query:
    """What this customer may see of the answer."""
    if query.priced:
        raise BadRequest("priced is not for a customer's token; amounts are in the statements")
    name = customer.label or "user"
    held = (query.only if customer.label is None else query.only_labels).get(name, customer.value)
    if held != customer.value:
        raise BadRequest(f"this token is for the usage of {customer} only")
    if customer.label is None:
        return replace(query, only={**query.only, "user": customer.value})
    return replace(query, only_labels={**query.only_labels, name: customer.value})


def customers(text: str, source: str) -> dict[str, Customer]:
    """A file of customers' tokens: tables [[customer]] with token, and user or label. Nothing of it is repeated in an
    error, for a token may be where another thing should be."""
    try:
        tables = tomllib.loads(text).get("customer", [])
    except tomllib.TOMLDecodeError:
        raise BadRequest(f"{source}: not TOML") from None
    found: dict[str, Customer] = {}
    for number, table in enumerate(tables if isinstance(tables, list) else [None], 1):
        if not isinstance(table, dict) or table.keys() - {"token", "user", "label"} or not _text(table.get("token")):
            raise BadRequest(f"{source}: [[customer]] {number}: expected token, and user or label")
        try:
            customer = customer_from(table.get("user"), table.get("label"))
        except BadRequest:
            customer = None
        if customer is None or table["token"] in found:
            raise BadRequest(f"{source}: [[customer]] {number}: expected user or label, and a token of its own")
        found[table["token"]] = customer
    return found


def metrics(status: Mapping[str, Any]) -> Iterator[tuple[str, str, float | None]]:
    """Name, help and value of what /v1/status says."""
    counted = ("rows_taken", "Rows taken in."), ("batches", "Batches taken in."), ("rows_ignored", "Rows read before.")
    for name, text in counted:
        yield f"{name}_total", text, status[name]
    yield "messages_behind", "Messages of usage rows that wait.", status["messages_behind"]
    yield "disputed_parts", "Parts that did not add up since the start.", len(status["disputed_parts"])
    for name in ("complete_up_to", "closed_until"):
        moment = status[name]
        value = None if moment is None else times.moment(moment, UTC) / 1000
        yield f"{name}_seconds", f"{name.replace('_', ' ').capitalize()}, in seconds since 1970.", value
