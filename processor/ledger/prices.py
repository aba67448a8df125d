"""Prices and costs: a TOML file to exact decimals. No float is ever made, not of a number in the file either.

    [[price]]                          [[chip_cost]]
    model = "gpt-4o-mini"              chip = "H100-SXM5-80GB"
    from = 2026-01-01                  per_million_tokens = "0.02"
    to = 2026-07-01
    input = "0.15"
    cached_input = "0.075"
    output = "0.60"

Prices are for a million tokens. Totals are inclusive, and a token is charged once: cached and cache-write tokens at
their own price and not at the input's, reasoning tokens at theirs and not at the output's. What has no price of its own
is charged as the input, or the output, that it is a part of.
"""

import decimal
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, tzinfo
from decimal import Decimal
from typing import Any, NoReturn

from tokenometer.processor.ledger import times
from tokenometer.processor.ledger.values import LedgerError
from tokenometer.schemas.usage import Usage

_MILLION = Decimal(1_000_000)
_DIGITS_MAX = 12  # behind the point, of a price; before it as many
# Exact: 20 digits of tokens, 24 of a price, and what a sum of very many of them may add. Else it raises.
_EXACT = decimal.Context(prec=80, traps=[decimal.Inexact, decimal.InvalidOperation, decimal.Overflow])
_RATES = ("input", "cached_input", "cache_write", "output", "reasoning")
_FIELDS = {
    "price": ("model", "from", "to", *_RATES),
    "chip_cost": ("chip", "from", "to", "per_million_tokens"),
}
_HEADER = re.compile(r"\s*\[\[\s*\"?(\w+)\"?\s*\]\]")


class PriceError(LedgerError):
    """A price file that cannot be used; the message names its line."""


@dataclass(frozen=True)
class _Entry:
    """Valid for `begin` <= a window's beginning < `end`."""

    name: str
    begin: int | None
    end: int | None
    rates: Mapping[str, Decimal]
    line: int

    def holds(self, at: int) -> bool:
        return (self.begin is None or self.begin <= at) and (self.end is None or at < self.end)


@dataclass(frozen=True)
class Prices:
    currency: str
    models: Mapping[str, Sequence[_Entry]]
    chips: Mapping[str, Sequence[_Entry]]

    def bounds(self, begin: int, end: int) -> list[int]:
        """`begin`, and every moment before `end` at which some price or cost changes."""
        entries = [entry for each in (self.models, self.chips) for some in each.values() for entry in some]
        changes = {moment for entry in entries for moment in (entry.begin, entry.end) if moment is not None}
        return [begin, *sorted(moment for moment in changes if begin < moment < end)]

    def revenue(self, model: str, at: int, counters: Usage) -> Decimal | None:
        """None: the model has no price then."""
        entry = _valid(self.models.get(model, ()), at)
        if entry is None:
            return None
        charged = {
            "input": counters.input_tokens - counters.cached_input_tokens - counters.cache_write_tokens,
            "cached_input": counters.cached_input_tokens,
            "cache_write": counters.cache_write_tokens,
            "output": counters.output_tokens - counters.reasoning_tokens,
            "reasoning": counters.reasoning_tokens,
        }
        assert all(count >= 0 for count in charged.values()), counters
        with decimal.localcontext(_EXACT):
            return sum((count * entry.rates[name] for name, count in charged.items()), Decimal()) / _MILLION

    def cost(self, chip: str, at: int, tokens: int) -> Decimal | None:
        """None: the chip has no cost then."""
        entry = _valid(self.chips.get(chip, ()), at)
        if entry is None:
            return None
        with decimal.localcontext(_EXACT):
            return tokens * entry.rates["per_million_tokens"] / _MILLION


def money(a: Decimal, b: Decimal) -> Decimal:
    """Their sum, exactly."""
    with decimal.localcontext(_EXACT):
        return a + b


def _valid(entries: Sequence[_Entry], at: int) -> _Entry | None:
    return next((entry for entry in entries if entry.holds(at)), None)


# --- The file ---


def load(path: str) -> Prices:
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise PriceError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    return parse(text, path)


def parse(text: str, source: str) -> Prices:
    try:
        top = tomllib.loads(text, parse_float=Decimal)
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"at line (\d+)", str(error))
        number = int(line[1]) if line else text.count("\n") + 1
        raise PriceError(f"{source}, line {number}: not TOML: {error}") from None
    return _File(text, source, top).prices()


class _File:
    """One price file on its way to prices: knows where things stand, for complaints."""

    def __init__(self, text: str, source: str, top: dict[str, Any]) -> None:
        self._lines, self._source, self._top = text.splitlines(), source, top
        self._where: tzinfo = UTC

    def prices(self) -> Prices:
        for name in self._top.keys() - {"currency", "time_zone", *_FIELDS}:
            self._fail(self._line(name), f"no such setting: {name}; expected currency, time_zone, price or chip_cost")
        currency, zone = self._top.get("currency", ""), self._top.get("time_zone", "UTC")
        if not isinstance(currency, str) or not re.fullmatch(r"[A-Z]{3}", currency):
            self._fail(self._line("currency"), 'currency: expected three capital letters, such as "USD"')
        try:
            self._where = times.zone(str(zone))
        except LedgerError as error:
            self._fail(self._line("time_zone"), str(error))
        return Prices(currency, self._entries("price"), self._entries("chip_cost"))

    def _entries(self, kind: str) -> dict[str, list[_Entry]]:
        found: dict[str, list[_Entry]] = {}
        tables = self._top.get(kind, [])
        if not isinstance(tables, list) or not all(isinstance(each, dict) for each in tables):
            self._fail(self._line(kind), f"{kind}: expected tables, each under [[{kind}]]")
        lines = list(self._headers(kind))
        for number, table in enumerate(tables):
            line = lines[number] if len(lines) == len(tables) else self._line(kind)
            entry = self._entry(kind, table, line)
            for other in found.setdefault(entry.name, []):
                if _overlap(entry, other):
                    self._fail(line, f"{entry.name} has a {kind} for the same time already, on line {other.line}")
            found[entry.name].append(entry)
        return found

    def _entry(self, kind: str, table: dict[str, Any], line: int) -> _Entry:
        for key in table.keys() - set(_FIELDS[kind]):
            self._fail(self._line(key, line), f"no such setting: {key}; expected {', '.join(_FIELDS[kind])}")
        named, *_ = _FIELDS[kind]
        name = table.get(named)
        if not isinstance(name, str) or not name:
            self._fail(self._line(named, line), f"{named}: expected a name")
        begin, end = (self._moment(table, key, line) for key in ("from", "to"))
        if begin is not None and end is not None and begin >= end:
            self._fail(self._line("to", line), "to is not after from")
        return _Entry(name, begin, end, self._rates(kind, table, line), line)

    def _rates(self, kind: str, table: dict[str, Any], line: int) -> dict[str, Decimal]:
        if kind == "chip_cost":
            return {"per_million_tokens": self._rate(table, "per_million_tokens", line)}
        rates = {name: self._rate(table, name, line) for name in ("input", "output")}
        for name, whole in (("cached_input", "input"), ("cache_write", "input"), ("reasoning", "output")):
            rates[name] = self._rate(table, name, line) if name in table else rates[whole]
        return rates

    def _rate(self, table: dict[str, Any], name: str, line: int) -> Decimal:
        value, at = table.get(name), self._line(name, line)
        if value is None:
            self._fail(at, f"{name} is missing")
        text = str(value) if type(value) in (str, int, Decimal) else ""
        if not re.fullmatch(rf"\d{{1,{_DIGITS_MAX}}}(\.\d{{1,{_DIGITS_MAX}}})?", text, re.ASCII):
            self._fail(at, f'{name}: expected a decimal such as "0.15", with at most {_DIGITS_MAX} digits on each side')
        return Decimal(text)

    def _moment(self, table: dict[str, Any], name: str, line: int) -> int | None:
        value, at = table.get(name), self._line(name, line)
        if value is None:
            return None
        if isinstance(value, datetime) and value.tzinfo is None or not isinstance(value, date | str):
            self._fail(at, f"{name}: expected a date, or a time with its offset")
        try:
            return times.moment(value if isinstance(value, str) else value.isoformat(), self._where)
        except LedgerError as error:
            self._fail(at, f"{name}: {error}")

    def _headers(self, kind: str) -> Iterator[int]:
        for number, text in enumerate(self._lines, 1):
            if (match := _HEADER.match(text)) and match[1] == kind:
                yield number

    def _line(self, key: str, after: int = 0) -> int:
        """The first line from there that sets the key or heads its table; else where its table begins."""
        for number, text in enumerate(self._lines[after:], after + 1):
            if after and _HEADER.match(text):
                break
            if re.match(rf"\s*(\[\[?\s*)?\"?{re.escape(key)}\"?\s*(=|\.|\])", text):
                return number
        return max(after, 1)

    def _fail(self, line: int, what: str) -> NoReturn:
        raise PriceError(f"{self._source}, line {line}: {what}")


def _overlap(a: _Entry, b: _Entry) -> bool:
    return (a.end is None or b.begin is None or b.begin < a.end) and (
        b.end is None or a.begin is None or a.begin < b.end
    )
