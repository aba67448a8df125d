"""The commands `close` and `statement`: periods of a ledger. `close` ends with 1 for a period that is not complete."""

import contextlib
import urllib.parse
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from tokenometer.processor.cli.asking import Ask, AskSettings, Grace, TimeZone, all_rows
from tokenometer.processor.cli.common import EXIT_FAILURE, needs, say, usage_error, write_json
from tokenometer.processor.cli.ledger import now_ms
from tokenometer.processor.ledger import export, periods, times, usage
from tokenometer.processor.ledger.values import BadRequest
from tokenometer.schemas.usage import COUNTERS, TOTAL

if TYPE_CHECKING:
    from tokenometer.processor.ledger.database import Database


@dataclass(frozen=True)
class CloseCommand(AskSettings):
    to: Annotated[str, Option("--to", metavar="TIME", help="The first moment that stays open.")] = ""
    time_zone: TimeZone = "UTC"
    anyway: Annotated[bool, Option("--anyway", help="Close the period even if it is not complete.")] = False
    grace: Grace = 300


def close_command(command: CloseCommand) -> None:
    """Close a period. Its statement is final, and what comes later is an adjustment of the next one.

    Examples:
        tokenometer close --to 2026-12-01 --time-zone Europe/Berlin --database ledger.duckdb
        tokenometer close --to 2026-12-01T00:00:00Z --url http://ledger:9465 --token-file ledger.token
    """
    if not command.to:
        raise BadRequest("--to is missing: a date (2026-12-01), or a time with its offset")
    if command.url is not None:
        body = {"to": command.to, "time_zone": command.time_zone, "anyway": command.anyway}
        write_json(command.fetch("/v1/close", body=body))
        return
    with needs("ledger"):
        from tokenometer.processor.ledger.opening import open_clerk

    with contextlib.closing(open_clerk(command.database_name)) as opened:
        end = times.moment(command.to, times.zone(command.time_zone))
        closed = periods.close(opened, end, command.grace * 1000, now_ms(), command.anyway)
    write_json(periods.statement_json(closed))


@dataclass(frozen=True)
class StatementCommand(AskSettings):
    number: Annotated[
        str, typer.Argument(help="A statement's number, or next. Without it all statements are listed.")
    ] = ""
    adjustments: Annotated[
        bool, Option("--adjustments", help="Show late usage of earlier periods instead of the period's own lines.")
    ] = False
    check: Annotated[bool, Option("--check", help="Check that all statements add up to the rows.")] = False
    out: Annotated[str | None, Option("--out", metavar="FILE", help="A file: .csv, .ndjson or .parquet.")] = None
    force: Annotated[bool, Option("--force", help="Replace --out.")] = False

    @property
    def kind(self) -> str:
        return "adjustments" if self.adjustments or self.number == "next" else "lines"


def statement_command(command: StatementCommand) -> None:
    """Show what was closed, as JSON lines: a list of statements, or the lines or adjustments of one.

    Examples:
        tokenometer statement
        tokenometer statement 3 --out november.csv
        tokenometer statement next --adjustments --url http://ledger:9465
        tokenometer statement --check
    """
    if command.url is not None:
        _of_running_ledger(command)
        return
    with needs("ledger"):
        from tokenometer.processor.ledger.opening import open_database

    with contextlib.closing(open_database(command.database_name, writer=False)) as opened, opened.snapshot() as moment:
        if command.check:
            _check(moment)
        elif command.number:
            _write_pages(command, lambda given: _page(moment, command, given.get("after")))
        else:
            write_json(*(periods.statement_json(each) for each in periods.statements(moment)))


def _of_running_ledger(command: StatementCommand) -> None:
    if command.check:
        usage_error("--check goes with --database")
    if command.number:
        path = f"/v1/statements/{urllib.parse.quote(command.number, safe='')}/{command.kind}"
        _write_pages(command, lambda given: command.fetch(path, given))
    else:
        write_json(*command.fetch("/v1/statements")["statements"])


def _page(moment: "Database", command: StatementCommand, after: str | None) -> dict[str, object]:
    return periods.page_json(moment, command.number, command.kind, usage.LIMIT_MAX, after)


def _check(database: "Database") -> None:
    differing = periods.reconcile(database)
    say(f"{len(periods.statements(database))} statements, {len(differing)} lines that differ from the rows")
    if differing:
        raise typer.Exit(EXIT_FAILURE)


def _write_pages(command: StatementCommand, ask: Ask) -> None:
    given = {"limit": str(usage.LIMIT_MAX)}
    pages = all_rows(ask, given, ask(given))
    if command.out is None:
        for page in pages:
            write_json(*page)
        return
    windows = ["window_start"] if command.kind == "adjustments" else []
    columns = [*windows, *usage.DIMENSIONS, *COUNTERS, TOTAL]
    say(f"{export.write(pages, columns, command.out, command.force):,} rows written to {command.out}")
