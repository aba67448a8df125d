"""The commands `close` and `statement`: periods of a ledger. `close` ends with 1 for a period that is not complete."""

import contextlib
import sys
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from tokenometer.processor import show
from tokenometer.processor.cli.asking import AskSettings, Grace, PriceFile, TimeZone, all_rows, file_text
from tokenometer.processor.cli.common import EXIT_FAILURE, needs, say, usage_error, write_csv, write_json
from tokenometer.processor.cli.ledger import now_ms
from tokenometer.processor.cli.tables import show_rows
from tokenometer.processor.ledger import api, export, focus, periods, pricecheck, statements, usage
from tokenometer.processor.ledger.values import BadArgument
from tokenometer.schemas.usage import COUNTERS, TOTAL

if TYPE_CHECKING:
    from tokenometer.processor.ledger.database import Database


_WARNINGS_MAX = 20  # `prices check` has all of them


@dataclass(frozen=True)
class CloseCommand(AskSettings):
    to: Annotated[str, Option("--to", metavar="TIME", help="The first moment that stays open.")] = ""
    time_zone: TimeZone = "UTC"
    user: Annotated[str | None, Option(help="Only of this user, whose periods are then their own.")] = None
    label: Annotated[
        str | None, Option(metavar="NAME=VALUE", help="Only of this label's value, such as team=blue.")
    ] = None
    price_list: PriceFile = None
    allow_unpriced: Annotated[
        bool, Option("--allow-unpriced", help="Also if some usage has no price; its amount is then empty.")
    ] = False
    without_prices: Annotated[
        bool, Option("--without-prices", help="A statement without amounts, although earlier ones have prices.")
    ] = False
    anyway: Annotated[bool, Option("--anyway", help="Close the period even if it is not complete.")] = False
    json: Annotated[bool, Option("--json", help="Print the statement's head as JSON.")] = False
    grace: Grace = 300

    def body(self) -> dict[str, Any]:
        """As /v1/close takes it."""
        given = {"to": self.to, "time_zone": self.time_zone, "user": self.user, "label": self.label}
        if self.price_list is not None:
            given["prices"] = file_text(self.price_list)
        flags = {"anyway": self.anyway, "allow_unpriced": self.allow_unpriced, "without_prices": self.without_prices}
        return {name: value for name, value in (given | flags).items() if value not in (None, False)}


def close_command(command: CloseCommand) -> None:
    """Close a period. Its statement is final, and what comes later is an adjustment of the next one.

    Examples:
        tokenometer close --to 2026-12-01 --time-zone Europe/Berlin --prices prices.toml
        tokenometer close --to 2026-12-01 --label team=blue --prices blue.toml --database ledger.duckdb
        tokenometer close --to 2026-12-01 --prices prices.toml --url http://ledger:9465 --token-file ledger.token
    """
    if not command.to:
        raise BadArgument("--to is missing: a date (2026-12-01), or a time with its offset")
    body = command.body()
    end, terms = api.closing_terms(body, None, command.price_list or "prices")  # before anything is opened
    if command.url is not None:
        _show_closed(command, command.fetch("/v1/close", body=body))
        return
    with needs("ledger"):
        from tokenometer.processor.ledger.opening import open_clerk

    with contextlib.closing(open_clerk(command.database_name)) as opened:
        closed = periods.close(opened, end, command.grace * 1000, now_ms(), terms=terms)
        _show_closed(command, statements.statement_json(opened, closed))
        if terms.prices is not None:
            with opened.snapshot() as moment:
                found = pricecheck.against(moment, terms.prices, closed.begin, closed.end)
            for text in pricecheck.fallen_texts(found)[:_WARNINGS_MAX]:
                say(f"{command.price_list}, {text}", sys.stderr)


def _show_closed(command: CloseCommand, closed: dict[str, Any]) -> None:
    if command.json:
        write_json(closed)
        return
    number, begin = closed["statement"], closed["begin"] or "the first usage"
    of = "".join(f", {name} {value}" for name, value in closed.get("customer", {}).items())
    say(f"Statement {number}: {begin} to {closed['end']}{of}{'' if closed['complete'] else ', not complete'}")
    if "amount" in closed:
        _show_sum(closed)
    say(f"Its lines: tokenometer statement {number}")


_LIST_COLUMNS = (
    "statement", "begin", "end", "closed_at", "complete", "customer", "time_zone", "amount", "currency", "price_list"
)  # fmt: skip


class StatementFormat(StrEnum):
    TABLE, JSON, CSV, FOCUS = "table", "json", "csv", "focus"


@dataclass(frozen=True)
class StatementCommand(AskSettings):
    number: Annotated[
        str, typer.Argument(help="A statement's number, or next. Without it all statements are listed.")
    ] = ""
    adjustments: Annotated[
        bool, Option("--adjustments", help="Show late usage of earlier periods instead of the period's own lines.")
    ] = False
    corrections: Annotated[bool, Option("--corrections", help="Show what was adjusted by hand.")] = False
    check: Annotated[bool, Option("--check", help="Check that all statements add up to the rows.")] = False
    form: Annotated[
        StatementFormat, Option("--format", help=f"What is printed; focus: all of it, as CSV of FOCUS {focus.VERSION}.")
    ] = StatementFormat.TABLE
    json: Annotated[bool, Option("--json", help="As --format json: an object a line.")] = False
    out: Annotated[str | None, Option("--out", metavar="FILE", help="A file: .csv, .ndjson or .parquet.")] = None
    force: Annotated[bool, Option("--force", help="Replace --out.")] = False

    @property
    def kind(self) -> str:
        if self.shown_as is StatementFormat.FOCUS:
            return "focus"
        if self.corrections:
            return "corrections"
        return "adjustments" if self.adjustments or self.number == "next" else "lines"

    @property
    def shown_as(self) -> StatementFormat:
        return StatementFormat.JSON if self.json else self.form


def statement_command(command: StatementCommand) -> None:
    """Show what was closed: a list of statements, or the lines, adjustments or corrections of one.

    Examples:
        tokenometer statement
        tokenometer statement 3 --json
        tokenometer statement 3 --format focus --out november.csv
        tokenometer statement next --adjustments --url http://ledger:9465
        tokenometer statement --check
    """
    _check_options(command)
    if command.url is not None:
        _answer(command, command.fetch)
        return
    with needs("ledger"):
        from tokenometer.processor.ledger.opening import open_database

    with contextlib.closing(open_database(command.database_name, writer=False)) as opened, opened.snapshot() as moment:
        _answer(command, lambda path, given=None: _own(moment, path, given or {}))


def _check_options(command: StatementCommand) -> None:
    """Of two things that were asked for, none is left out silently."""
    form = command.shown_as
    if command.number and command.check:
        usage_error(f"--check is of all statements together; leave {command.number} out")
    if command.number not in ("", "next"):
        usage.number("statement", command.number)
    if command.out is not None:
        export.check_name(command.out)
    if sum((command.adjustments, command.corrections, form is StatementFormat.FOCUS)) > 1:
        usage_error("give one of --adjustments, --corrections and --format focus")
    if not command.number and not command.check and (command.adjustments or command.corrections):
        usage_error("--adjustments and --corrections are of one statement: give its number, or next")
    if not command.number and not command.check and form is StatementFormat.FOCUS:
        usage_error("--format focus is of one statement: give its number")
    suffixes = {StatementFormat.JSON: (".ndjson", ".jsonl"), StatementFormat.CSV: (".csv",)}.get(form, ())
    plain = (command.out or "").removesuffix(".gz").removesuffix(".zst")
    if command.out is not None and suffixes and not plain.endswith(suffixes):
        usage_error(f"--format {form} and --out {command.out} contradict each other: the name's end says the format")


def _own(moment: "Database", path: str, given: Mapping[str, str]) -> dict[str, Any]:
    """As a running ledger answers these paths."""
    if path == "/v1/check":
        return statements.check_json(moment)
    if path == "/v1/statements":
        return {"statements": [statements.statement_json(moment, each) for each in periods.statements(moment)]}
    _, _, _, name, kind = path.split("/")
    return api.page_json(moment, urllib.parse.unquote(name), kind, usage.LIMIT_MAX, given.get("after"))


def _answer(command: StatementCommand, fetch: Any) -> None:
    if command.check:
        found = fetch("/v1/check")
        lines = show.plural(found["differences"], "line")
        verb = "differs" if found["differences"] == 1 else "differ"
        say(f"{show.plural(found['statements'], 'statement')}, {lines} that {verb} from the rows")
        if found["differences"]:
            raise typer.Exit(EXIT_FAILURE)
        return
    listed = fetch("/v1/statements")["statements"]
    if not command.number:
        _show_list(command, listed)
        return
    path = f"/v1/statements/{urllib.parse.quote(command.number, safe='')}/{command.kind}"
    given = {"limit": str(usage.LIMIT_MAX)}
    pages = list(all_rows(lambda given: fetch(path, given), given, fetch(path, given)))
    _show_pages(command, pages, next((each for each in listed if str(each["statement"]) == command.number), None))


def _show_list(command: StatementCommand, listed: list[dict[str, Any]]) -> None:
    if command.shown_as is StatementFormat.JSON and command.out is None:
        write_json(*listed)
        return
    if command.out is not None or command.shown_as is StatementFormat.CSV:
        plain = [
            {**each, "statement": str(each["statement"]), "complete": str(each["complete"]).lower()} for each in listed
        ]
        if command.out is not None:
            count = export.write([plain], _LIST_COLUMNS, command.out, command.force)
            say(f"{show.plural(count, 'row')} written to {command.out}")
        else:
            write_csv(export.csv_text(plain, _LIST_COLUMNS))
        return
    if not listed:
        say("No statements.")
        return
    rows = [
        [
            *(str(each.get(name) or "") for name in ("statement", "begin", "end")),
            " ".join(f"{name} {value}" for name, value in each.get("customer", {}).items()),
            _amount_text(each),
        ]
        for each in listed
    ]
    show_rows(["statement", "begin", "end", "customer"], ["amount"], rows)


def _amount_text(head: Mapping[str, Any]) -> str:
    """A statement without prices has no amount, and one whose usage has no price has none either."""
    if "amount" not in head:
        return ""
    return f"{head['amount']} {head.get('currency', '')}".strip() if head["amount"] is not None else "unpriced"


def _show_pages(command: StatementCommand, pages: list[list[dict[str, Any]]], head: dict[str, Any] | None) -> None:
    rows = [row for page in pages for row in page]
    columns = _columns(command.kind, rows)
    if command.out is not None:
        count = export.write(pages, columns, command.out, command.force)
        say(f"{show.plural(count, 'row')} written to {command.out}")
    elif command.shown_as is StatementFormat.JSON:
        for page in pages:
            write_json(*page)
    elif command.shown_as in (StatementFormat.CSV, StatementFormat.FOCUS):
        write_csv(export.csv_text(rows, columns))
    else:
        if rows:
            _show_table(rows, columns)
        else:
            say("Nothing waits." if command.number == "next" else f"No {command.kind}.")
        if head is not None and "amount" in head:
            _show_sum(head)


def _show_sum(head: dict[str, Any]) -> None:
    """What the statement's amount is the sum of, one below the other, and the amount."""
    name = f"Statement {head['statement']}"
    if head["amount"] is None:
        say(f"{name}: nothing has a price")
        return
    sums = {f"{name}, {kind}": amount for kind, amount in head["subtotals"].items()} | {
        f"{name}, all of it": head["amount"]
    }
    wide = max(map(len, sums))
    digits = {amount: len(amount.partition(".")[0]) for amount in sums.values()}
    for title, amount in sums.items():
        indent = " " * (max(digits.values()) - digits[amount])
        say(f"{title:{wide}}  {indent}{amount} {head.get('currency', '')}".rstrip())


def _columns(kind: str, rows: list[dict[str, Any]]) -> list[str]:
    """Those that any row has."""
    if kind == "focus":
        return list(focus.COLUMNS)
    known = {name for row in rows for name in row}
    if kind == "corrections":
        order = ["key", "kind", "reason", "made_at", "voids", "at", *usage.DIMENSIONS, "labels", *COUNTERS,
                 *export.further_of(rows), "currency", "amount", "statement"]  # fmt: skip
        return [name for name in order if name in known or not rows]
    fixed = [*(["window_start"] if kind == "adjustments" else []), *usage.DIMENSIONS]
    more = [name for name in ("labels",) if name in known]
    money = [name for name in ("begin", "end", "price_line", "amount") if name in known]
    return [*fixed, *more, *COUNTERS, TOTAL, *export.further_of(rows), *money]


def _show_table(rows: list[dict[str, Any]], columns: list[str]) -> None:
    """Counters that are 0 everywhere have no column."""
    counts = {*COUNTERS, TOTAL, *export.further_of(rows)}
    numbers = [name for name in columns if name in counts and any(row.get(name) for row in rows)]
    numbers += [name for name in ("amount",) if name in columns]
    names = [name for name in columns if name not in counts and name not in ("amount", "begin", "end")]
    shown = [
        [
            *(_text(row.get(name)) for name in names),
            *(f"{row.get(name, 0):,}" if name in counts else row[name] or "unpriced" for name in numbers),
        ]
        for row in rows
    ]
    show_rows(names, [name.removesuffix("_tokens") if name != TOTAL else name for name in numbers], shown)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{name}={each}" for name, each in value.items())
    return "" if value is None else str(value)
