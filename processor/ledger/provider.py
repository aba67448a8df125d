"""A provider's own usage export against the ledger, by day and model: where they differ, and by how much.

An export is CSV, and a *layout* says which of its columns mean what: those of `LAYOUTS` are known by their columns,
others are a TOML file:

    day = "date"                                  a date, RFC 3339, `2026-11-01 12:00:00`, or seconds since 1970
    model = "model"
    cost = "spend"                                optional
    models = { "gpt-4o-2024-*" = "gpt-4o" }       optional: their names, as the ledger calls them

    [counters]                                    each the sum of columns
    input_tokens = ["uncached_input", "cached_input"]

    [kinds]                                       or, of a row for each kind of token:
    column = "SkuMeter"                           what it says which kind is, and
    quantity = "ConsumedQuantity"                 how many
    of = { "Input tokens" = ["input_tokens"] }    patterns, and the counters that these tokens are in

Only counters that a layout names are compared. Numbers are exact: what a float would be is refused.
"""

import csv
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal, InvalidOperation
from fnmatch import fnmatchcase
from typing import Any

from tokenometer.processor.ledger import usage
from tokenometer.processor.ledger.database import COUNTS, Database
from tokenometer.processor.ledger.values import LedgerError

_DAY = re.compile(r"(\d{4}-\d\d-\d\d)(?:[T ].*)?", re.ASCII)
_ZONE = re.compile(r"\d(?: ?(?P<utc>Z|UTC)| ?(?P<offset>[+-]\d\d(?::?\d\d)?))$", re.ASCII)  # PostgreSQL leaves out :00
_SECONDS = re.compile(r"\d{9,11}", re.ASCII)
Key = tuple[str, str]  # day, model


class ExportUnreadable(LedgerError):
    """An export, or its layout, that cannot be read; the message names the file and the line."""


@dataclass(frozen=True)
class Layout:
    day: str
    model: str
    counters: Mapping[str, Sequence[str]] = field(default_factory=dict)
    kind_column: str | None = None
    quantity: str = ""
    kinds: Mapping[str, Sequence[str]] = field(default_factory=dict)
    cost: str | None = None
    models: Mapping[str, str] = field(default_factory=dict)

    @property
    def compared(self) -> list[str]:
        named = {*self.counters, *(name for names in self.kinds.values() for name in names)}
        return [name for name in COUNTS if name in named]

    @property
    def columns(self) -> set[str]:
        named = {self.day, self.model, *(column for columns in self.counters.values() for column in columns)}
        return named | ({self.kind_column, self.quantity} if self.kind_column else set())


_INPUT = ("input_tokens",)
_CACHED = ("input_tokens", "cached_input_tokens")
_WRITTEN = ("input_tokens", "cache_write_tokens")
_MIX = {  # of a meter's name, as this project and cloud bills write it; the first that fits
    "*cache*read*": _CACHED, "*cached*": _CACHED, "*cache*write*": _WRITTEN, "*input*": _INPUT,
    "*reasoning*": ("output_tokens", "reasoning_tokens"), "*output*": ("output_tokens",),
}  # fmt: skip
LAYOUTS = {
    # The fields of GET /v1/organization/usage/completions, which the dashboard's export has as columns.
    "openai": Layout(
        "start_time", "model",
        {"requests": ["num_model_requests"], "input_tokens": ["input_tokens"], "output_tokens": ["output_tokens"],
         "cached_input_tokens": ["input_cached_tokens"]},
    ),
    # The Console's usage export. Its input columns are beside each other.
    "anthropic": Layout(
        "usage_date_utc", "model_version",
        {"input_tokens": ["usage_input_tokens_no_cache", "usage_input_tokens_cache_write_5m",
                          "usage_input_tokens_cache_write_1h", "usage_input_tokens_cache_read"],
         "cached_input_tokens": ["usage_input_tokens_cache_read"],
         "cache_write_tokens": ["usage_input_tokens_cache_write_5m", "usage_input_tokens_cache_write_1h"],
         "cache_write_1h_tokens": ["usage_input_tokens_cache_write_1h"], "output_tokens": ["usage_output_tokens"]},
    ),
    # The table LiteLLM_SpendLogs: a row for each request.
    "litellm": Layout(
        "startTime", "model", {"input_tokens": ["prompt_tokens"], "output_tokens": ["completion_tokens"]}, cost="spend"
    ),
    "focus": Layout("ChargePeriodStart", "SkuId", kind_column="SkuMeter", quantity="ConsumedQuantity", kinds=_MIX,
                    cost="BilledCost"),
    # AWS Cost and Usage Report 2.0. Which product is which model is for a layout's `models` to say.
    "cur": Layout("line_item_usage_start_date", "line_item_usage_type", kind_column="line_item_usage_type",
                  quantity="line_item_usage_amount", kinds=_MIX, cost="line_item_unblended_cost"),
}  # fmt: skip


@dataclass
class Export:
    """What an export says. unknown: kinds of tokens that the layout does not name, with their quantity."""

    layout: Layout
    sums: dict[Key, dict[str, int]] = field(default_factory=dict)
    cost: Decimal = Decimal()
    unknown: dict[str, Decimal] = field(default_factory=dict)


@dataclass(frozen=True)
class ExportDifference:
    day: str
    model: str
    counter: str
    theirs: int
    ours: int


# --- The export ---


def read(name: str, layout: Layout | None) -> Export:
    """layout: None: one of LAYOUTS, by the columns."""
    try:
        with open(name, encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, strict=True)
            found = Export(layout or _guess(name, rows.fieldnames or ()))
            if missing := found.layout.columns - set(rows.fieldnames or ()):
                raise ExportUnreadable(f"{name}: no column {min(missing)}")
            for row in rows:
                _add(found, row, f"{name}, line {rows.line_num}")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ExportUnreadable(f"{name}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    return found


def _guess(name: str, columns: Sequence[str]) -> Layout:
    for layout in LAYOUTS.values():
        if layout.columns <= set(columns):
            return layout
    raise ExportUnreadable(
        f"{name}: its columns are of none of {', '.join(LAYOUTS)}: give a layout (--layout FILE), docs/BILLING.md"
    )


def _add(found: Export, row: Mapping[str, str], where: str) -> None:
    layout = found.layout
    model = row[layout.model] or ""
    known = next((ours for theirs, ours in layout.models.items() if fnmatchcase(model, theirs)), model)
    if layout is LAYOUTS["focus"]:
        known = model.partition("/")[0]
    held = found.sums.setdefault((_day(row[layout.day], where), known), dict.fromkeys(layout.compared, 0))
    for counter, columns in layout.counters.items():
        held[counter] += sum(_whole(row[column], where, column) for column in columns)
    if layout.kind_column is not None:
        kind = row[layout.kind_column] or ""
        quantity = _number(row[layout.quantity], where, layout.quantity)
        counters = next(
            (names for like, names in layout.kinds.items() if fnmatchcase(kind.lower(), like.lower())), None
        )
        if counters is None:
            found.unknown[kind] = found.unknown.get(kind, Decimal()) + quantity
        for counter in counters or ():
            held[counter] += _whole(row[layout.quantity], where, layout.quantity)
    if layout.cost is not None and layout.cost in row:
        found.cost += _number(row[layout.cost], where, layout.cost)


def _day(text: str | None, where: str) -> str:
    given = (text or "").strip()
    try:
        if _SECONDS.fullmatch(given):
            return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=int(given))).date().isoformat()
        if match := _DAY.fullmatch(given):
            zone = _ZONE.search(given) if len(given) > len(match[1]) else None
            if zone is None:
                return date.fromisoformat(match[1]).isoformat()
            moment = datetime.fromisoformat(given[: zone.start() + 1] + (zone["offset"] or "+00:00"))
            return moment.astimezone(UTC).date().isoformat()
    except ValueError:
        pass
    raise ExportUnreadable(f"{where}: {given[:40]!r} is no day: expected a date, RFC 3339, or seconds since 1970")


def _number(text: str | None, where: str, column: str) -> Decimal:
    try:
        number = Decimal((text or "0").strip().replace(",", "") or "0")
    except InvalidOperation:
        number = Decimal("NaN")
    if not number.is_finite():
        raise ExportUnreadable(f"{where}: {column} is no number: {(text or '')[:40]!r}")
    return number


def _whole(text: str | None, where: str, column: str) -> int:
    number = _number(text, where, column)
    if number != number.to_integral_value():
        raise ExportUnreadable(f"{where}: {column} is no whole number: {number}")
    return int(number)


def layout_of(name: str) -> Layout:
    """One of LAYOUTS by its name, or a file's."""
    if name in LAYOUTS:
        return LAYOUTS[name]
    try:
        with open(name, "rb") as file:
            top = tomllib.load(file)
        kinds = top.get("kinds", {})
        made = Layout(
            top["day"], top["model"], dict(top.get("counters", {})), kinds.get("column"), kinds.get("quantity", ""),
            dict(kinds.get("of", {})), top.get("cost"), dict(top.get("models", {})),
        )  # fmt: skip
    except OSError as error:
        raise ExportUnreadable(f"{name}: cannot be read: {error.strerror}; known are {', '.join(LAYOUTS)}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ExportUnreadable(f"{name}: not a layout: {error}") from None
    named = {*made.counters, *(each for names in made.kinds.values() for each in names)}
    if not named or (wrong := named - set(COUNTS)):
        raise ExportUnreadable(
            f"{name}: expected counters, of {', '.join(COUNTS)}{f', not {min(wrong)}' if named else ''}"
        )
    return made


# --- The comparison ---


def compare(database: Database, export: Export, only: Mapping[str, Any]) -> Iterator[ExportDifference]:
    """For each day and model from the export's first day to its last, whether it has the days between or not: who has
    billed nothing of a day writes no row. In order. only: as `usage` takes user and label."""
    days = sorted({day for day, _ in export.sums})
    if not days:
        return
    following = (date.fromisoformat(days[-1]) + timedelta(days=1)).isoformat()
    given = {"from": days[0], "to": following, "window": "day", "group_by": "model", "limit": str(usage.LIMIT_MAX)}
    ours: dict[Key, dict[str, int]] = {}
    after: str | None = None
    while True:
        asked = given | dict(only) | ({"after": after} if after else {})
        page = usage.as_json(usage.answer(database, usage.parse(asked)))
        for row in page["rows"]:
            ours[row["begin"][:10], row["model"]] = row
        if (after := page["next"]) is None:
            break
    for key in sorted({*export.sums, *ours}):
        for counter in export.layout.compared:
            theirs, own = export.sums.get(key, {}).get(counter, 0), ours.get(key, {}).get(counter, 0)
            if theirs != own:
                yield ExportDifference(*key, counter, theirs, own)
