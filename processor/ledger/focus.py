"""A statement in the columns of FOCUS 1.2, the FinOps Foundation's specification of cost and usage data.

Each line becomes a row for each rate that it is charged at: its tokens, their price, what they cost. So the sum of
BilledCost is the statement's amount. Late usage and corrections of tokens have the charge class Correction, and amounts
by hand the category Credit (what is taken off) or Adjustment (what is added). What has no price costs 0, and says so.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC
from typing import Any

from tokenometer.processor.ledger import billing, prices, statements, times
from tokenometer.processor.ledger.database import COUNTS, Database
from tokenometer.processor.ledger.periods import Statement, customer_of, statement
from tokenometer.processor.ledger.usage import window_end
from tokenometer.processor.ledger.values import BadRequest

VERSION = "1.2"
COLUMNS = (
    "BilledCost", "BillingAccountId", "BillingAccountName", "BillingCurrency", "BillingPeriodEnd", "BillingPeriodStart",
    "ChargeCategory", "ChargeClass", "ChargeDescription", "ChargeFrequency", "ChargePeriodEnd", "ChargePeriodStart",
    "ConsumedQuantity", "ConsumedUnit", "ContractedCost", "ContractedUnitPrice", "EffectiveCost", "InvoiceId",
    "InvoiceIssuerName", "ListCost", "ListUnitPrice", "PricingCategory", "PricingQuantity", "PricingUnit",
    "ProviderName", "PublisherName", "ServiceCategory", "ServiceName", "ServiceSubcategory", "SkuId", "SkuMeter",
    "SkuPriceId", "SubAccountId", "Tags",
)  # fmt: skip
_ISSUER = "Tokenometer"
_SERVICE = {
    "ServiceCategory": "AI and Machine Learning", "ServiceName": "LLM inference", "ServiceSubcategory": "Generative AI",
    "InvoiceIssuerName": _ISSUER, "ProviderName": _ISSUER, "PublisherName": _ISSUER,
}  # fmt: skip
_EPOCH = "1970-01-01T00:00:00Z"  # where a first statement begins, which has all that is older
_MILLIONTH = prices.UNIT // 10**6
_SECTIONS = statements.KINDS


def page_json(database: Database, id: int, limit: int, after: str | None) -> dict[str, Any]:
    """Rows of a page of lines, then of adjustments, then of corrections."""
    section, _, cursor = (after or "0.").partition(".")
    if not (section.isascii() and section.isdigit() and len(section) == 1 and int(section) < len(_SECTIONS)):
        raise BadRequest("after is not the next of an answer to the same question")
    number, made = int(section), statement(database, id)
    book = _Book(database, made)
    kind = _SECTIONS[number]
    if kind == "corrections":
        found = statements.corrections_json(database, id, limit, cursor or None)
        rows, following = list(book.corrections(found["rows"])), found["next"]
    else:
        read = statements.lines if kind == "lines" else statements.adjustments
        page = read(database, id, limit, cursor or None)
        rows, following = [row for line in page.lines for row in book.line(line)], page.following
    if following is not None:
        return {"rows": rows, "next": f"{number}.{following}"}
    return {"rows": rows, "next": f"{number + 1}." if number + 1 < len(_SECTIONS) else None}


class _Book:
    """What the rows of one statement have in common."""

    def __init__(self, database: Database, made: Statement) -> None:
        self._database, self._made = database, made
        self._lists = billing.lists(database)
        customer = customer_of(database, made.scope)
        self._account = None if customer is None else customer.value
        self._begin = _EPOCH if made.begin is None else times.text(made.begin, UTC)
        self._end = times.text(made.end, UTC)
        own = self._lists.get(made.list_id or 0)
        self._currency = own.currency if own else ""

    def line(self, line: statements.Line) -> Iterator[dict[str, Any]]:
        charge = line.charge
        if charge is None:
            raise BadRequest("the statement has no prices, so it has no costs: close with --prices")
        late = line.window_start is not None
        begin, end = self._begin, self._end
        if line.window_start is not None:
            begin = times.text(line.window_start, UTC)
            end = times.text(window_end(self._database, line.window_start + 1), UTC)
        elif charge.end is not None:
            begin, end = (
                self._begin if charge.begin is None else times.text(charge.begin, UTC),
                times.text(charge.end, UTC),
            )
        counts = dict(zip(COUNTS, [*line.counters, *line.further], strict=True))
        common = {
            **self._common(line.user, self._lists[charge.list_id].currency), "ChargePeriodStart": begin,
            "ChargePeriodEnd": end, "ChargeCategory": "Usage", "ChargeClass": "Correction" if late else None,
            "ChargeFrequency": "Usage-Based", "PricingCategory": "Standard",
            "Tags": json.dumps(line.labels, ensure_ascii=False),
        }  # fmt: skip
        yield from self._rates(common, line.model, counts, charge)

    def _rates(
        self, common: Mapping[str, Any], model: str, counts: Mapping[str, int], charge: statements.Charge
    ) -> Iterator[dict[str, Any]]:
        entry = None if charge.line is None else self._lists[charge.list_id].of_line(charge.line)
        for name, tokens in prices.charged(counts).items():
            rate = 0 if entry is None else entry.rates[name]
            if not tokens:
                continue
            meter = f"{name.replace('_', ' ').capitalize()} tokens"
            cost, price = prices.text(tokens * rate), prices.text(rate * 10**6)
            yield _row({
                **common, **dict.fromkeys(_COSTS, cost), "ListUnitPrice": price, "ContractedUnitPrice": price,
                "PricingQuantity": prices.text(tokens * _MILLIONTH), "PricingUnit": "1000000 Tokens",
                "ConsumedQuantity": str(tokens), "ConsumedUnit": "Tokens", "SkuId": f"{model}/{name}",
                "SkuMeter": meter,
                "SkuPriceId": f"{model}/{name}/{_terms(entry)}/{price}", "ChargeDescription": f"{meter} of {model}"
                + (", without a price" if entry is None else ""),
            })  # fmt: skip

    def corrections(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """With their amounts; the tokens of a correction are in its description."""
        for row in rows:
            amount = row["amount"] or "0"
            begin = row.get("at") or self._begin
            earlier = row.get("at") is not None and begin < self._begin
            labels = row.get("labels", {})
            account = row.get("user") or next(iter(labels.values()), "")
            credit = amount.startswith("-")
            yield _row({
                **self._common(account, row.get("currency") or self._currency), **dict.fromkeys(_COSTS, amount),
                "ChargePeriodStart": begin, "ChargePeriodEnd": self._end,
                "ChargeCategory": "Credit" if credit else "Adjustment",
                "ChargeClass": "Correction" if earlier else None, "ChargeFrequency": "One-Time",
                "ChargeDescription": f"{row['kind']} {row['key']}: {row['reason']}",
                "Tags": json.dumps(labels, ensure_ascii=False),
            })  # fmt: skip

    def _common(self, user: str, currency: str) -> dict[str, Any]:
        return {
            **_SERVICE, "BillingAccountId": self._account or user, "SubAccountId": user, "BillingCurrency": currency,
            "BillingPeriodStart": self._begin, "BillingPeriodEnd": self._end, "InvoiceId": f"statement-{self._made.id}",
        }  # fmt: skip


def _terms(entry: prices.Entry | None) -> str:
    """When an entry of a list holds. An id has the price as well, for a list may be edited."""
    if entry is None:
        return "unpriced"
    spans = (("from", entry.begin), ("to", entry.end))
    terms = [f"{key}={value}" for key, value in sorted(entry.labels.items())]
    terms += [] if entry.customer is None else [f"customer={entry.customer}"]
    return ",".join(terms + [f"{name}={times.text(moment, UTC)}" for name, moment in spans if moment is not None])


_COSTS = ("BilledCost", "ContractedCost", "EffectiveCost", "ListCost")


def _row(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: values.get(name) for name in COLUMNS}
