"""A price list's file: TOML to `prices.Prices`, or an error that names the line. The format is docs/BILLING.md's.

No float is ever made, not of a number in the file either.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, tzinfo
from decimal import Decimal
from typing import Any, NoReturn

from tokenometer.processor.ledger import labels, times
from tokenometer.processor.ledger.prices import AS, RATES, Buyer, Cost, Entry, LabelValue, PriceError, Prices, overlap
from tokenometer.processor.ledger.values import NAME_BYTES_MAX, LedgerError

_DIGITS_MAX = 12  # after the point, of a price; before it as many
_FIELDS = {
    "price": ("model", "customer", "labels", "from", "to", *RATES),
    "chip_cost": ("chip", "from", "to", "per_million_tokens"),
}
_HEADER = re.compile(r"\s*\[\[\s*\"?(\w+)\"?\s*\]\]")


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
    """One price file on its way to prices. It knows the line of each thing, for complaints."""

    def __init__(self, text: str, source: str, top: dict[str, Any]) -> None:
        self._text, self._lines, self._source, self._top = text, text.splitlines(), source, top
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
        entries = [self._entry(table, line) for table, line in self._tables("price")]
        costs = [self._cost(table, line) for table, line in self._tables("chip_cost")]
        self._check_costs(costs)
        self._check_entries(entries)
        return Prices(currency, entries, costs, self._text, self._source)

    def _tables(self, kind: str) -> Iterator[tuple[dict[str, Any], int]]:
        tables = self._top.get(kind, [])
        if not isinstance(tables, list) or not all(isinstance(each, dict) for each in tables):
            self._fail(self._line(kind), f"{kind}: expected tables, each under [[{kind}]]")
        lines = list(self._headers(kind))
        for number, table in enumerate(tables):
            line = lines[number] if len(lines) == len(tables) else self._line(kind)
            for key in table.keys() - set(_FIELDS[kind]):
                self._fail(self._line(key, line), f"no such setting: {key}; expected {', '.join(_FIELDS[kind])}")
            yield table, line

    def _check_costs(self, costs: list[Cost]) -> None:
        for number, cost in enumerate(costs):
            for other in costs[:number]:
                if cost.chip == other.chip and overlap(cost, other):
                    self._fail(
                        cost.line, f"{cost.chip} has a chip_cost for the same time already, on line {other.line}"
                    )

    def _check_entries(self, entries: list[Entry]) -> None:
        """Two that say the same of when they hold. `prices check` tells of those that may meet on some usage."""
        alike: dict[Any, list[Entry]] = {}
        for entry in entries:
            for other in alike.setdefault((entry.customer, labels.set_of(entry.labels), entry.rank), []):
                if overlap(entry, other) and entry.may_share_a_model(other):
                    self._fail(
                        entry.line,
                        f"{entry.model} has a price for the same time already, on line {other.line}"
                        if entry.model == other.model
                        else f"{entry.model} and {other.model} (line {other.line}) fit the same models equally well",
                    )
            alike[entry.customer, labels.set_of(entry.labels), entry.rank].append(entry)

    def _entry(self, table: dict[str, Any], line: int) -> Entry:
        given = table.get("labels", {})
        if (wrong := labels.fault(given)) or (isinstance(given, dict) and not all(given.values())):
            self._fail(self._line("labels", line), f"labels: {wrong or 'a value is empty'}")
        customer = self._customer(table, line) if "customer" in table else None
        if isinstance(customer, LabelValue) and given.get(customer.label, customer.value) != customer.value:
            self._fail(self._line("customer", line), f"customer: the entry's labels say another {customer.label}")
        begin, end = self._times(table, line)
        rates = {name: self._rate(table, name, line) for name in ("input", "output")}
        for name in RATES:
            if name not in rates:
                rates[name] = self._rate(table, name, line) if name in table else rates[AS[name]]
        return Entry(self._name(table, "model", line), customer, dict(given), begin, end, rates, line)

    def _customer(self, table: dict[str, Any], line: int) -> Buyer:
        customer = table["customer"]
        if not isinstance(customer, dict):
            return self._name(table, "customer", line)
        at = self._line("customer", line)
        if customer.keys() != {"label", "value"}:
            self._fail(at, 'customer: expected a name, or { label = "team", value = "blue" }')
        label, value = customer["label"], customer["value"]
        if wrong := labels.fault({label: value}):
            self._fail(at, f"customer: {wrong}")
        return LabelValue(label, value)

    def _cost(self, table: dict[str, Any], line: int) -> Cost:
        begin, end = self._times(table, line)
        return Cost(self._name(table, "chip", line), begin, end, self._rate(table, "per_million_tokens", line), line)

    def _name(self, table: Mapping[str, Any], key: str, line: int) -> str:
        name = table.get(key)
        if not isinstance(name, str) or not 0 < len(name.encode()) <= NAME_BYTES_MAX:
            self._fail(self._line(key, line), f"{key}: expected a name")
        return name

    def _times(self, table: dict[str, Any], line: int) -> tuple[int | None, int | None]:
        begin, end = (self._moment(table, key, line) for key in ("from", "to"))
        if begin is not None and end is not None and begin >= end:
            self._fail(self._line("to", line), "to is not after from")
        return begin, end

    def _rate(self, table: dict[str, Any], name: str, line: int) -> int:
        """In the unit of `prices.Entry`."""
        value, at = table.get(name), self._line(name, line)
        if value is None:
            self._fail(at, f"{name} is missing")
        text = str(value) if type(value) in (str, int, Decimal) else ""
        if not re.fullmatch(rf"\d{{1,{_DIGITS_MAX}}}(\.\d{{1,{_DIGITS_MAX}}})?", text, re.ASCII):
            self._fail(at, f'{name}: expected a decimal such as "0.15", with at most {_DIGITS_MAX} digits on each side')
        whole, _, digits = text.partition(".")
        return int(whole + digits.ljust(_DIGITS_MAX, "0"))

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
