"""Prices and costs: which entry of a list is meant, and exact amounts.

Amounts are integers, in units of 10^-18 of the currency (`UNIT` of them are one): a rate has twelve digits after the
point and is for a million tokens. So nothing is ever rounded, and sums do not depend on their order.

Counters are inclusive, and a token is charged once. What has no rate of its own is charged as what it is a part of:

    input ──┬─ cached_input ──── audio_cached_input       output ──┬─ reasoning
            ├─ cache_write ───── cache_write_1h                    └─ audio_output
            ├─ audio_input (its cached tokens are charged as audio_cached_input)
            └─ image_input

So an amount is never negative, and, where no parts overlap, that of a sum of rows is the sum of their amounts. Amounts
are of sums: of a statement's line, or of what a question adds up.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, Protocol

from tokenometer.processor.ledger.database import COUNTS
from tokenometer.processor.ledger.values import LedgerError

UNIT = 10**18
_DIGITS = 18
_AMOUNT = re.compile(r"([+-]?)(\d{1,18})(?:\.(\d{1,18}))?", re.ASCII)
RATES = (
    "input", "cached_input", "cache_write", "output", "reasoning",
    "cache_write_1h", "audio_input", "image_input", "audio_cached_input", "audio_output",
)  # fmt: skip
AS = {  # without a rate of its own
    "cached_input": "input", "cache_write": "input", "reasoning": "output", "cache_write_1h": "cache_write",
    "audio_input": "input", "image_input": "input", "audio_cached_input": "cached_input", "audio_output": "output",
}  # fmt: skip
_MODELS_CACHED_MAX = 100_000


class PriceError(LedgerError):
    """A price list that cannot be used; the message names its line."""


class _Span(Protocol):
    @property
    def begin(self) -> int | None: ...
    @property
    def end(self) -> int | None: ...


def _holds(span: _Span, at: int) -> bool:
    """Of a window that begins at this moment."""
    return (span.begin is None or span.begin <= at) and (span.end is None or at < span.end)


def overlap(a: _Span, b: _Span) -> bool:
    return (a.end is None or b.begin is None or b.begin < a.end) and (
        b.end is None or a.begin is None or a.begin < b.end
    )


class LabelValue(NamedTuple):
    """A customer who is told by one label."""

    label: str
    value: str

    def __str__(self) -> str:
        return f"{self.label}:{self.value}"


Buyer = str | LabelValue  # a text is a user of this name, or this value of any label


@dataclass(frozen=True)
class Entry:
    """What a million tokens cost, for usage that fits. model: `*` is any text in it, and `?` any character. rates: in
    10^-12 of the currency."""

    model: str
    customer: Buyer | None
    labels: Mapping[str, str]
    begin: int | None
    end: int | None
    rates: Mapping[str, int]
    line: int

    @property
    def is_pattern(self) -> bool:
        return "*" in self.model or "?" in self.model

    @cached_property
    def rank(self) -> tuple[bool, int, bool, int]:
        """Of two entries that fit, the one of the higher rank wins."""
        literal = sum(character not in "*?" for character in self.model)
        return self.customer is not None, len(self.labels), not self.is_pattern, literal

    @cached_property
    def _matcher(self) -> re.Pattern[str]:
        parts = {"*": ".*", "?": "."}
        return re.compile("".join(parts.get(each) or re.escape(each) for each in self.model), re.DOTALL)

    def fits_model(self, model: str) -> bool:
        return bool(self._matcher.fullmatch(model)) if self.is_pattern else self.model == model

    def fits(self, user: str, labels: Mapping[str, str], at: int) -> bool:
        """Of usage of a model that fits."""
        return (
            _holds(self, at)
            and self._is_of(user, labels)
            and all(labels.get(name) == value for name, value in self.labels.items())
        )

    def _is_of(self, user: str, labels: Mapping[str, str]) -> bool:
        if isinstance(self.customer, LabelValue):
            return labels.get(self.customer.label) == self.customer.value
        return self.customer is None or self.customer == user or self.customer in labels.values()

    def amount(self, counts: Sequence[int]) -> int:
        """counts: in the order of COUNTS."""
        tokens = charged(dict(zip(COUNTS, counts, strict=True)))
        return sum(count * self.rates[rate] for rate, count in tokens.items())

    def may_share_a_model(self, other: "Entry") -> bool:
        """Is there a name that both fit?"""
        return _meet(self.model, other.model)

    def may_meet(self, other: "Entry") -> bool:
        """Is there usage that both fit?"""
        return (
            _may_be_one(self.customer, other.customer)
            and all(other.labels.get(name, value) == value for name, value in self.labels.items())
            and overlap(self, other)
            and self.may_share_a_model(other)
        )


def _may_be_one(a: Buyer | None, b: Buyer | None) -> bool:
    """Is there usage of both?"""
    if isinstance(a, LabelValue) and isinstance(b, LabelValue):
        return a == b or a.label != b.label
    return a is None or b is None or a == b or type(a) is not type(b)


def _meet(a: str, b: str) -> bool:
    """Do two patterns fit a common text? row[j]: do a[i:] and b[j:]?"""
    below = [False] * (len(b) + 1)
    for i in range(len(a), -1, -1):
        row = [False] * (len(b) + 1)
        row[len(b)] = i == len(a)
        for j in range(len(b), -1, -1):
            one, other = a[i : i + 1], b[j : j + 1]
            if one == "*":
                row[j] = below[j] or (bool(other) and row[j + 1])
            elif other == "*":
                row[j] = row[j + 1] or (bool(one) and below[j])
            elif one and other:
                row[j] = below[j + 1] and (one == other or "?" in (one, other))
        below = row
    return below[0]


@dataclass(frozen=True)
class Cost:
    """What a million tokens on a chip cost. rate: in 10^-12 of the currency."""

    chip: str
    begin: int | None
    end: int | None
    rate: int
    line: int


@dataclass(frozen=True)
class Prices:
    """A list. text: of its file, which is what is frozen with a statement."""

    currency: str
    entries: Sequence[Entry]
    costs: Sequence[Cost]
    text: str
    source: str
    _of_models: dict[str, Sequence[Entry]] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    @cached_property
    def by_user(self) -> bool:
        """Does a price depend on who used it?"""
        return any(entry.customer is not None for entry in self.entries)

    @cached_property
    def by_labels(self) -> bool:
        return any(entry.labels or entry.customer is not None for entry in self.entries)

    def bounds(self, begin: int, end: int) -> list[int]:
        """`begin`, and every moment before `end` at which some price or cost changes."""
        spans: list[_Span] = [*self.entries, *self.costs]
        changes = {moment for span in spans for moment in (span.begin, span.end) if moment is not None}
        return [begin, *sorted(moment for moment in changes if begin < moment < end)]

    def entry(self, model: str, user: str, labels: Mapping[str, str], at: int) -> Entry | None:
        """The most specific one that fits; None: there is no price. Raises PriceError where two fit equally well."""
        best: Entry | None = None
        for entry in self._fitting(model):
            if best is not None and entry.rank < best.rank:
                break
            if entry.fits(user, labels, at):
                if best is not None:
                    raise PriceError(
                        f"{self.source}: the prices on line {best.line} and line {entry.line} fit {model!r}"
                        f"{f' of user {user!r}' if self.by_user else ''} with labels {dict(labels)} equally "
                        "well: add one for both"
                    )
                best = entry
        return best

    def _fitting(self, model: str) -> Sequence[Entry]:
        """Those of a model, the most specific first."""
        if (found := self._of_models.get(model)) is None:
            if len(self._of_models) > _MODELS_CACHED_MAX:
                self._of_models.clear()
            fitting = [entry for entry in self.entries if entry.fits_model(model)]
            found = self._of_models[model] = sorted(fitting, key=lambda entry: entry.rank, reverse=True)
        return found

    def cost(self, chip: str, at: int, tokens: int) -> int | None:
        """None: the chip has no cost then."""
        found = next((cost for cost in self.costs if cost.chip == chip and _holds(cost, at)), None)
        return None if found is None else tokens * found.rate

    def of_line(self, line: int) -> Entry:
        return next(entry for entry in self.entries if entry.line == line)


def charged(counts: Mapping[str, int]) -> dict[str, int]:
    """The tokens that are charged at each rate. counts: all of one sign. They are as many as the input and the output:
    where parts overlap (an image that was read from the cache), or are more than what they are a part of, the first in
    this order has the token."""
    sign = -1 if any(count < 0 for count in counts.values()) else 1
    own = {name: sign * count for name, count in counts.items()}

    def part(name: str, most: int, less: int = 0) -> int:
        return max(0, min(own.get(f"{name}_tokens", 0) - less, most))

    rest = own.get("input_tokens", 0)
    cached = part("cached_input", rest)
    cached_audio = part("audio_cached_input", cached)
    written = part("cache_write", rest := rest - cached)
    long = part("cache_write_1h", written)
    audio = part("audio_input", rest := rest - written, less=cached_audio)
    image = part("image_input", rest := rest - audio)
    said = own.get("output_tokens", 0)
    reasoning = part("reasoning", said)
    spoken = part("audio_output", said - reasoning)
    found = (
        rest - image, cached - cached_audio, written - long, said - reasoning - spoken, reasoning, long, audio, image,
        cached_audio, spoken,
    )  # fmt: skip
    return {rate: sign * count for rate, count in zip(RATES, found, strict=True)}


# --- Amounts as texts ---


def text(amount: int) -> str:
    """All of its digits, and no exponent."""
    whole, digits = divmod(abs(amount), UNIT)
    shown = f"{whole}.{digits:0{_DIGITS}d}".rstrip("0").rstrip(".")
    return f"-{shown}" if amount < 0 else shown


def maybe_text(amount: int | None) -> str | None:
    return None if amount is None else text(amount)


def parse_amount(given: str) -> int:
    """Raises ValueError."""
    match = _AMOUNT.fullmatch(given)
    if match is None:
        raise ValueError(given)
    sign, whole, digits = match.groups()
    amount = int(whole) * UNIT + int((digits or "").ljust(_DIGITS, "0"))
    return -amount if sign == "-" else amount


def from_text(given: str) -> int:
    """Of what `text` wrote."""
    sign, plain = (-1, given[1:]) if given.startswith("-") else (1, given)
    whole, _, digits = plain.partition(".")
    return sign * (int(whole) * UNIT + int(digits.ljust(_DIGITS, "0")))
