"""What a rules file says, as values. Pure."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import tzinfo
from functools import cached_property
from typing import Any

from tokenometer.processor.ledger.prices import Prices, text
from tokenometer.processor.secret import Secret
from tokenometer.schemas.errors import TokenometerError
from tokenometer.schemas.usage import COUNTERS, FURTHER, TOTAL

MEASURES = (TOTAL, *COUNTERS, *FURTHER)
PERIODS = ("hour", "day", "month")
THRESHOLDS = (50, 80, 100)
RULES_MAX = 100  # each is judged for every batch of rows
THRESHOLDS_MAX = 16
PERCENT_MAX = 10_000
WEBHOOKS_MAX = 16  # a thread each


class RulesError(TokenometerError):
    """A rules file that cannot be used; the message names the file and the rule."""


@dataclass(frozen=True)
class Rule:
    """One budget, or one for each value of something.

    user, model, labels: the usage that it is about; `*` in model is any text, `?` any character. each: None, "user",
    "model" or a label's name. limit: tokens, or 10^-18 of the currency of `prices`. thresholds: in percent, ascending.
    """

    name: str
    limit: int
    measure: str = TOTAL
    prices: Prices | None = None
    user: str | None = None
    model: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    each: str | None = None
    per: str = "day"
    zone: tzinfo | None = None
    zone_name: str = "UTC"
    thresholds: Sequence[int] = THRESHOLDS

    @property
    def unit(self) -> str:
        return self.measure if self.prices is None else self.prices.currency

    @cached_property
    def sums(self) -> str:
        """Names what is added up. Two rules of one name and one such digest have the same sums."""
        prices = None if self.prices is None else self.prices.digest
        labels = dict(sorted(self.labels.items()))
        subject = [self.user, self.model, labels, self.each]
        return _digest(self.name, subject, self.measure, prices, self.per, self.zone_name)

    @cached_property
    def promise(self) -> str:
        """Names what is announced once: a threshold of this name, limit and period, whatever usage is meant."""
        return _digest(self.name, self.limit, self.unit, self.each, self.per, self.zone_name)

    @cached_property
    def whole(self) -> str:
        """Names all that the rule says."""
        return _digest(self.sums, self.promise, list(self.thresholds))

    @cached_property
    def levels(self) -> Sequence[int]:
        """The least sum at which each threshold is reached."""
        return [-(-self.limit * percent // 100) for percent in self.thresholds]

    @cached_property
    def _model(self) -> re.Pattern[str] | None:
        if self.model is None:
            return None
        parts = {"*": ".*", "?": "."}
        return re.compile("".join(parts.get(each) or re.escape(each) for each in self.model), re.DOTALL)

    def fits_model(self, model: str) -> bool:
        return self._model is None or bool(self._model.fullmatch(model))

    def fits_labels(self, labels: Mapping[str, str]) -> bool:
        each = self.each in (None, "user", "model") or self.each in labels
        return each and all(labels.get(name) == value for name, value in self.labels.items())

    def shown(self, amount: int) -> int | str:
        """An amount as an alert says it: tokens, or a decimal in a text."""
        return amount if self.prices is None else text(amount)


@dataclass(frozen=True)
class Webhook:
    """rules: names of those it hears of; None: all of the file."""

    name: str
    url: Secret
    secret: Secret
    rules: frozenset[str] | None = None


@dataclass(frozen=True)
class Rules:
    rules: Sequence[Rule]
    webhooks: Sequence[Webhook] = ()


@dataclass(frozen=True)
class Crossing:
    """A threshold that a period's usage has reached. subject: the value of `each`. begin, end: of the period, ms."""

    rule: Rule
    subject: str | None
    begin: int
    end: int
    threshold: int
    used: int

    @cached_property
    def id(self) -> str:
        """The same for the same threshold of the same budget and period, whoever finds it and however often."""
        return _digest(self.rule.promise, self.subject, self.begin, self.threshold)


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
