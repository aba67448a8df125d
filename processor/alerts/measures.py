"""What a row counts for a rule: a counter of it, or what it costs. Columns in, wide integers out.

Money is exact: the ledger's price lists in the ledger's unit. A row's amount is that of its own counters; where parts
of a count overlap, a statement's amount may differ, because it is that of a line's sums.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tokenometer.processor.alerts.table import Wide
from tokenometer.processor.ledger.prices import RATES, Entry, PriceError, Prices
from tokenometer.processor.ledger.values import LedgerRows
from tokenometer.schemas.usage import COUNTERS, FURTHER, TOTAL, total_of

Counts = np.ndarray[Any, np.dtype[np.uint64]]


@dataclass(frozen=True)
class Usages:
    """Rows of distinct identities. at: of each, a row of `rows` that has its names; users: numbers of the users;
    counts: by the counter's name, the greatest that came."""

    rows: LedgerRows
    at: np.ndarray[Any, np.dtype[np.int64]]
    users: np.ndarray[Any, np.dtype[np.uint64]]
    counts: Mapping[str, Counts]


def of_counter(usages: Usages, name: str) -> Wide:
    counts = usages.counts
    if name == TOTAL:
        return Wide.of(total_of([counts[each] for each in COUNTERS]))
    return Wide.of(counts.get(name, np.zeros(len(usages.at), np.uint64)))


class Unpriced:
    """Why usage has no price, and how many tokens: by model."""

    def __init__(self) -> None:
        self.tokens: dict[str, int] = {}
        self.ambiguous: dict[str, str] = {}


def of_money(usages: Usages, prices: Prices, unpriced: Unpriced) -> Wide:
    """In 10^-18 of the currency. What no entry fits, or two fit equally well, costs nothing and is noted."""
    entries, codes = _entries(usages, prices, unpriced)
    amounts = np.zeros(len(usages.at), object)
    tokens = charged(usages.counts)
    for code, entry in enumerate(entries):
        chosen = codes == code
        if entry is not None:
            for rate, values in tokens.items():
                if entry.rates[rate]:
                    amounts[chosen] += values[chosen].astype(object) * entry.rates[rate]
    return Wide.of(amounts)


def charged(counts: Mapping[str, Counts]) -> dict[str, Counts]:
    """prices.charged, for columns: the tokens that are charged at each rate."""
    zero = np.zeros(len(counts["input_tokens"]), np.uint64)

    def own(name: str) -> Counts:
        return counts.get(f"{name}_tokens", zero)

    def part(name: str, most: Counts, less: Counts = zero) -> Counts:
        value = own(name)
        return np.minimum(np.where(value > less, value - less, zero), most)

    rest = own("input")
    cached = part("cached_input", rest)
    cached_audio = part("audio_cached_input", cached)
    written = part("cache_write", rest := rest - cached)
    long = part("cache_write_1h", written)
    audio = part("audio_input", rest := rest - written, cached_audio)
    image = part("image_input", rest := rest - audio)
    said = own("output")
    reasoning = part("reasoning", said)
    spoken = part("audio_output", said - reasoning)
    found = (
        rest - image, cached - cached_audio, written - long, said - reasoning - spoken, reasoning, long, audio, image,
        cached_audio, spoken,
    )  # fmt: skip
    return {rate: values for rate, values in zip(RATES, found, strict=True) if values.any()}


# --- Which price ---


def _entries(usages: Usages, prices: Prices, unpriced: Unpriced) -> tuple[list[Entry | None], Any]:
    """The price of each row, as codes of few distinct ones."""
    rows, at = usages.rows, usages.at
    users = _customers(rows, prices)
    windows, window = np.unique(rows.window_starts[at], return_inverse=True)
    labels = np.zeros(len(at), np.int64) if rows.labels is None else rows.labels.codes[at].astype(np.int64)
    kinds = np.stack([window, rows.model.codes[at], labels, users[rows.user.codes[at]]], axis=1)
    distinct, codes = np.unique(kinds, axis=0, return_inverse=True)
    tokens = of_counter(usages, TOTAL)
    found: list[Entry | None] = []
    for number, (when, model, label, user) in enumerate(distinct.tolist()):
        name = rows.model.names[model].decode()
        held = {} if rows.labels is None else {k.decode(): v.decode() for k, v in rows.labels.sets[label]}
        customer = rows.user.names[user].decode() if user >= 0 else ""
        entry = _entry(prices, name, customer, held, int(windows[when]), unpriced)
        found.append(entry)
        if entry is None:
            unpriced.tokens[name] = unpriced.tokens.get(name, 0) + sum(tokens[codes == number].ints())
    return found, codes


def _entry(
    prices: Prices, model: str, user: str, labels: Mapping[str, str], at: int, unpriced: Unpriced
) -> Entry | None:
    try:
        return prices.entry(model, user, labels, at)
    except PriceError as error:
        unpriced.ambiguous[model] = str(error)
        return None


def _customers(rows: LedgerRows, prices: Prices) -> np.ndarray[Any, np.dtype[np.int64]]:
    """By code of the user: the code where a price names this user, and -1 where none does."""
    named = {entry.customer.encode() for entry in prices.entries if isinstance(entry.customer, str)}
    return np.array([code if name in named else -1 for code, name in enumerate(rows.user.names)], np.int64)


def needed(measures: Iterable[str]) -> Sequence[str]:
    """The counters that these measures are made of."""
    wanted = set(measures)
    if wanted & {TOTAL, "money"}:
        wanted |= set(COUNTERS)
    return [name for name in (*COUNTERS, *FURTHER) if name in wanted or (name in FURTHER and "money" in wanted)]
