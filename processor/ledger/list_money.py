"""Revenue and cost of usage by model and chip, as the dashboard shows them: at list prices.

Promises: it is pure, and exact: amounts are those of `prices`, as texts. A price that holds for one customer, or for
labels, holds for nobody here, because rolling totals know neither; so the sum is not a bill's. Further counters (audio,
images) are not in rolling totals either, and are charged as what they are a part of. What has no price or no cost is
counted and said, never taken for 0.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tokenometer.processor.ledger.prices import PriceError, Prices, maybe_text
from tokenometer.schemas.usage import NO_FURTHER, total_of

Cell = tuple[str | None, str | None, tuple[int, ...]]  # model, chip, counters as COUNTERS


@dataclass
class _Sums:
    tokens: int = 0
    revenue: int | None = None
    cost: int | None = None
    unpriced_tokens: int = 0
    uncosted_tokens: int = 0

    def add(self, tokens: int, revenue: int | None, cost: int | None) -> None:
        self.tokens += tokens
        self.revenue = _plus(self.revenue, revenue)
        self.cost = _plus(self.cost, cost)
        self.unpriced_tokens += tokens if revenue is None else 0
        self.uncosted_tokens += tokens if cost is None else 0

    def shown(self) -> dict[str, Any]:
        return {
            "total_tokens": self.tokens,
            "revenue": maybe_text(self.revenue),
            "cost": maybe_text(self.cost),
            "unpriced_tokens": self.unpriced_tokens,
            "uncosted_tokens": self.uncosted_tokens,
        }


@dataclass
class ListMoney:
    """prices: what users pay; costs: what chips cost. Each may be absent. Raises PriceError for two currencies."""

    prices: Prices | None
    costs: Prices | None
    currency: str = field(init=False)

    def __post_init__(self) -> None:
        given = [each for each in (self.prices, self.costs) if each is not None]
        assert given, "there is a list"
        if len({each.currency for each in given}) > 1:
            one, other = given
            raise PriceError(f"{one.source} is in {one.currency} and {other.source} in {other.currency}: one is needed")
        self.currency = given[0].currency

    def bounds(self, begin_ms: int, end_ms: int) -> list[tuple[int, int]]:
        """The time in pieces, in each of which no price and no cost changes."""
        lists = [each for each in (self.prices, self.costs) if each is not None]
        begins = sorted({moment for each in lists for moment in each.bounds(begin_ms, end_ms)})
        return list(zip(begins, [*begins[1:], end_ms], strict=True))

    def of(self, pieces: Iterable[tuple[int, Iterable[Cell]]]) -> dict[str, Any]:
        """The whole, and rows by model and by chip, most tokens first. pieces: the beginning of each, by which its
        prices are chosen, and its cells."""
        whole = _Sums()
        tables: tuple[dict[str | None, _Sums], dict[str | None, _Sums]] = ({}, {})
        for begin_ms, cells in pieces:
            for model, chip, counters in cells:
                tokens = int(total_of(counters))
                money = tokens, self._revenue(model, counters, begin_ms), self._cost(chip, tokens, begin_ms)
                for sums in (whole, tables[0].setdefault(model, _Sums()), tables[1].setdefault(chip, _Sums())):
                    sums.add(*money)
        by_model, by_chip = (_rows(name, table) for name, table in zip(("model", "chip"), tables, strict=True))
        return {"currency": self.currency, **whole.shown(), "by_model": by_model, "by_chip": by_chip}

    def _revenue(self, model: str | None, counters: tuple[int, ...], at: int) -> int | None:
        if self.prices is None or model is None:
            return None
        entry = self.prices.entry(model, "", {}, at)
        return None if entry is None else entry.amount((*counters, *NO_FURTHER))

    def _cost(self, chip: str | None, tokens: int, at: int) -> int | None:
        return None if self.costs is None or chip is None else self.costs.cost(chip, at, tokens)


def _plus(one: int | None, other: int | None) -> int | None:
    return other if one is None else one if other is None else one + other


def _rows(name: str, table: Mapping[str | None, _Sums]) -> list[dict[str, Any]]:
    ranked = sorted(table.items(), key=lambda item: (-item[1].tokens, item[0] or ""))
    return [{name: key, **sums.shown()} for key, sums in ranked]
