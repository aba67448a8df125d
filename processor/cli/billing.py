"""The commands of billing: `ledger`, `usage`, `close`, `statement`.

Owns: their arguments and what they print; no arithmetic. Exit codes as in cli.py; `close` answers 1 for a period that
is not complete. Settings come from the command line, the environment or --config, as cli_live.py says.
"""

import contextlib
import json
import logging
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.table import Table
from typer import Option

from tokenometer.processor.cli import app as cli
from tokenometer.processor.cli import live as cli_live
from tokenometer.processor.ledger import export, periods, times, usage
from tokenometer.processor.ledger import prices as price_lists
from tokenometer.processor.ledger.database import Database, shown
from tokenometer.processor.ledger.intake import IntakeSettings, Ledger
from tokenometer.processor.ledger.opening import open_clerk, open_database
from tokenometer.processor.ledger.store import Store
from tokenometer.processor.ledger.values import BadRequest, LedgerError
from tokenometer.schemas.usage import COUNTERS, TOKENS, TOTAL

log = logging.getLogger("tokenometer.ledger")
FAILURES = (LedgerError,)
_DATABASE = "ledger.duckdb"
_ANSWER_SECONDS = 300
_REPORT_SECONDS = 10.0
_Ask = Callable[[Mapping[str, str]], dict[str, Any]]

DatabaseName = Annotated[
    str, Option("--database", metavar="FILE|postgresql://...", help="A DuckDB file, or a PostgreSQL database.")
]
DatabaseOrNone = Annotated[
    str | None, Option("--database", metavar="FILE|postgresql://...", help="The ledger's database.")
]
Url = Annotated[str | None, Option(metavar="http://HOST:PORT", help="A running ledger, in place of --database.")]
TokenFile = Annotated[
    str | None, Option(metavar="FILE", help="Holds the token that a request to the ledger has to bear.")
]
PriceFile = Annotated[str | None, Option("--prices", metavar="FILE", help="A price list; docs/BILLING.md.")]
Grace = Annotated[
    int,
    Option(min=0, max=31_536_000, metavar="SECONDS", help="A period is complete when watermarks are so far behind it."),
]
TimeZone = Annotated[str, Option(metavar="ZONE", help="Of dates, days and months: UTC, Europe/Berlin, ...")]


# --- ledger ---


@cli.app.command("ledger")
def ledger_command(
    config: cli_live.Config = None,
    bootstrap: cli_live.Bootstrap = "127.0.0.1:9092",
    database: DatabaseName = _DATABASE,
    usage_topic: Annotated[str, Option(help="Usage rows.")] = "token-usage",
    live_topic: Annotated[str, Option(help="Live summaries.")] = "token-live",
    batch_rows: Annotated[int, Option(min=1, max=10_000_000, help="Of one transaction, at most.")] = 200_000,
    linger: Annotated[
        float, Option(min=0, max=60, metavar="SECONDS", help="A transaction's rows came within this time.")
    ] = 1.0,
    grace: Grace = 300,
    price_list: PriceFile = None,
    listen: Annotated[
        str, Option(metavar="HOST:PORT", help="For questions over HTTP; empty: none.")
    ] = "127.0.0.1:9465",
    token_file: TokenFile = None,
    once: Annotated[bool, Option("--once", help="Take in what is there, and end.")] = False,
    accept_gap: Annotated[
        bool, Option("--accept-gap", help="Begin a ledger although retention has deleted older usage.")
    ] = False,
    log_format: Annotated[str, Option(help="json, or text for people.")] = "json",
    kafka: cli_live.KafkaSettings = None,
) -> None:
    """Take usage rows into a database, exactly once, until SIGTERM; answer questions over HTTP.

    Each option may also stand in the environment, --database as TOKENOMETER_LEDGER_DATABASE, or in the --config file.
    """
    client = cli_live.pairs(kafka, "--kafka")
    settings = IntakeSettings(usage_topic, live_topic, batch_rows, round(linger * 1000), accept_gap)
    prices = None if price_list is None else price_lists.load(price_list)
    token = None if token_file is None else _token(token_file)
    cli_live.start_logs(log_format)
    cli_live.log_settings({**locals(), "database": shown(database), "token": None}, client)
    with contextlib.closing(Store(open_database(database, writer=True))) as store:
        broker = cli_live.open_broker(bootstrap, client)
        ledger = Ledger(broker, store, settings)
        with _served(ledger, store, listen, token, grace, prices), cli_live.stop_signals() as stopped:
            with _reported(ledger):
                ledger.run(stopped, once)
        broker.close()
    log.info("stopped")


@contextlib.contextmanager
def _served(
    ledger: Ledger, store: Store, listen: str, token: str | None, grace: int, prices: price_lists.Prices | None
) -> Iterator[None]:
    if not listen:
        yield
        return
    from tokenometer.processor.ledger.serve import Api, Server, ServeSettings

    host, _, port = listen.rpartition(":")
    if not host or not port.isdigit():
        raise typer.BadParameter(f"--listen {listen!r}: expected HOST:PORT")
    settings = ServeSettings(host.strip("[]"), int(port), token, grace * 1000, prices)
    api = Api(store.database, settings, ledger.ask, lambda: ledger.progress, _now_ms)
    with contextlib.closing(Server(api, settings)) as server:
        log.info("serving /v1/usage", extra={"host": host, "port": server.port})
        yield


@contextlib.contextmanager
def _reported(ledger: Ledger) -> Iterator[None]:
    """A line in the log now and then while rows come."""
    done = threading.Event()

    def report() -> None:
        before = 0
        while not done.wait(_REPORT_SECONDS):
            progress = ledger.progress
            if progress.rows != before:
                more = {"rows": progress.rows, "batches": progress.batches, "behind": progress.behind}
                log.info("rows taken in", extra={**more, "rows_a_second": (progress.rows - before) / _REPORT_SECONDS})
            before = progress.rows

    thread = threading.Thread(target=report, name="report", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _token(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            token = file.read().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequest(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(token) < 16 or not token.isascii() or any(character.isspace() for character in token):
        raise BadRequest(f"{path}: expected a token of 16 characters at least, without spaces")
    return token


# --- usage ---


@cli.app.command("usage")
def usage_command(
    config: cli_live.Config = None,
    begin: Annotated[str, Option("--from", metavar="TIME", help="A date, or RFC 3339 with its offset.")] = "",
    end: Annotated[str, Option("--to", metavar="TIME", help="The first moment that is not asked for.")] = "",
    user: Annotated[str | None, Option(help="Only of this user.")] = None,
    model: Annotated[str | None, Option(help="Only of this model.")] = None,
    chip: Annotated[str | None, Option(help="Only of this chip.")] = None,
    group_by: Annotated[str, Option(metavar="user,model,chip", help="A row for each of these.")] = "",
    window: Annotated[str, Option(help="And for each hour, day or month; or one total.")] = "total",
    time_zone: TimeZone = "UTC",
    top: Annotated[int | None, Option(metavar="N", help="Only the rows of the most tokens.")] = None,
    limit: Annotated[int, Option(help="Rows to show; --out writes all.")] = 100,
    after: Annotated[str | None, Option(metavar="NEXT", help="Go on behind an earlier answer.")] = None,
    priced: Annotated[bool, Option("--priced", help="With revenue and chip costs, by a price list.")] = False,
    price_list: PriceFile = None,
    database: DatabaseOrNone = None,
    url: Url = None,
    token_file: TokenFile = None,
    out: Annotated[
        str | None, Option("--out", metavar="FILE", help="Write all rows: .csv, .ndjson or .parquet.")
    ] = None,
    force: Annotated[bool, Option("--force", help="Replace --out.")] = False,
    form: Annotated[str, Option("--format", help="table, json or csv, to the terminal.")] = "table",
) -> None:
    """What was used: tokens by user, model and chip, and whether that is all of it yet."""
    given = {
        "from": begin, "to": end, "time_zone": time_zone, "window": window, "group_by": group_by,
        "limit": str(usage.LIMIT_MAX if out else limit), "priced": "true" if priced else "false",
    }  # fmt: skip
    optional = {"user": user, "model": model, "chip": chip, "top": top, "after": after}
    given |= {name: str(value) for name, value in optional.items() if value is not None}
    given = {name: value for name, value in given.items() if value}
    if form not in ("table", "json", "csv"):
        raise typer.BadParameter(f"--format {form}: expected table, json or csv")
    usage.parse(given)  # before anything is opened
    with _asked(database, url, token_file, price_list) as ask:
        first = ask(given)
        if out is not None:
            rows = export.write(_all_rows(ask, given, first), export.columns_of(first), out, force)
            print(f"{rows:,} rows written to {out}; {_completeness(first)}")
        elif form == "json":
            print(json.dumps(first, ensure_ascii=False))
        elif form == "csv":
            print(export.csv_text(first["rows"], export.columns_of(first)), end="")
        else:
            cli.show_view(_usage_table(first))
            print(_completeness(first))
            if first["next"]:
                print(f"There are more rows: --after {first['next']}, or --out FILE for all of them.")


@contextlib.contextmanager
def _asked(database: str | None, url: str | None, token_file: str | None, price_list: str | None) -> Iterator[_Ask]:
    """What answers /v1/usage, of a database or of a running ledger."""
    _one_source(database, url)
    if url is not None:
        if price_list is not None:
            raise typer.BadParameter("the running ledger has its own price list: --prices goes with --database")
        yield lambda given: _fetch(url, "/v1/usage", token_file, given)
        return
    prices = None if price_list is None else price_lists.load(price_list)
    with contextlib.closing(open_database(database or _DATABASE, writer=False)) as opened:
        with opened.snapshot() as moment:
            yield lambda given: usage.as_json(usage.answer(moment, usage.parse(given), prices))


def _one_source(database: str | None, url: str | None) -> None:
    if url is not None and database is not None:
        raise typer.BadParameter("give --url or --database, not both")


def _all_rows(ask: _Ask, given: Mapping[str, str], first: dict[str, Any]) -> Iterator[list[dict[str, Any]]]:
    while True:
        yield first["rows"]
        if not first["next"]:
            return
        first = ask({**given, "after": first["next"]})


def _completeness(answer: Mapping[str, Any]) -> str:
    if answer["complete"]:
        return "Complete: every partition's watermark has passed the end."
    if answer["complete_up_to"] is None:
        return "Not known to be complete: not every partition has told how far it is."
    return f"Complete up to {answer['complete_up_to']}; later usage may still come."


def _usage_table(answer: Mapping[str, Any]) -> Table:
    names = [*([] if answer["window"] == "total" else ["begin"]), *answer["group_by"]]
    money = ["revenue", "chip_cost"] if "currency" in answer else []
    table = Table(box=None, header_style="bold")
    for name in names:
        table.add_column(name, no_wrap=name == "begin")
    for name in (*COUNTERS, TOTAL, *money):
        shown_name = name.removesuffix("_tokens") if name in TOKENS else name
        table.add_column(f"{shown_name} {answer['currency']}" if name in money else shown_name, justify="right")
    for row in answer["rows"]:
        counts = [f"{row[name]:,}" for name in (*COUNTERS, TOTAL)]
        table.add_row(*(cli_text(row[name]) for name in names), *counts, *(_money_text(row, name) for name in money))
    return table


def cli_text(name: str) -> Any:
    """A log's own text: no markup of ours, no control character of a terminal."""
    from rich.text import Text

    return Text("".join(character if character.isprintable() else "\ufffd" for character in name))


def _money_text(row: Mapping[str, Any], name: str) -> str:
    """What has no price is said to have none."""
    without = row["unpriced_tokens" if name == "revenue" else "uncosted_tokens"]
    if not without:
        return row[name] or "0"
    label = "unpriced" if name == "revenue" else "no cost"
    return f"{row[name]} + {without:,} {label}" if row[name] is not None else label


# --- close, statement ---


@cli.app.command("close")
def close_command(
    config: cli_live.Config = None,
    to: Annotated[str, Option("--to", metavar="TIME", help="The first moment that stays open.")] = "",
    time_zone: TimeZone = "UTC",
    anyway: Annotated[bool, Option("--anyway", help="Also if the period is not complete.")] = False,
    grace: Grace = 300,
    database: DatabaseOrNone = None,
    url: Url = None,
    token_file: TokenFile = None,
) -> None:
    """Close a period: its statement is final, and what comes later is an adjustment of the next one."""
    if not to:
        raise BadRequest("--to is missing: a date (2026-12-01), or a time with its offset")
    _one_source(database, url)
    if url is not None:
        body = {"to": to, "time_zone": time_zone, "anyway": anyway}
        closed = _fetch(url, "/v1/close", token_file, body=body)
    else:
        with contextlib.closing(open_clerk(database or _DATABASE)) as opened:
            end = times.moment(to, times.zone(time_zone))
            closed = periods.statement_json(periods.close(opened, end, grace * 1000, _now_ms(), anyway))
    print(json.dumps(closed))


@cli.app.command("statement")
def statement_command(
    config: cli_live.Config = None,
    number: Annotated[str, typer.Argument(help="A statement, or next; without it: a list of all.")] = "",
    adjustments: Annotated[
        bool, Option("--adjustments", help="Late usage of earlier periods, in place of the period's own lines.")
    ] = False,
    check: Annotated[bool, Option("--check", help="Do all statements add up to the rows?")] = False,
    database: DatabaseOrNone = None,
    url: Url = None,
    token_file: TokenFile = None,
    out: Annotated[str | None, Option("--out", metavar="FILE", help="A file: .csv, .ndjson or .parquet.")] = None,
    force: Annotated[bool, Option("--force", help="Replace --out.")] = False,
) -> None:
    """What was closed, as JSON lines: a list of statements, or one's lines, or its adjustments."""
    _one_source(database, url)
    kind = "adjustments" if adjustments or number == "next" else "lines"
    if url is not None:
        if check:
            raise typer.BadParameter("--check goes with --database")
        if number:
            path = f"/v1/statements/{urllib.parse.quote(number, safe='')}/{kind}"
            _write_pages(lambda given: _fetch(url, path, token_file, given), kind, out, force)
        else:
            _print_rows(_fetch(url, "/v1/statements", token_file)["statements"])
        return
    with contextlib.closing(open_database(database or _DATABASE, writer=False)) as opened, opened.snapshot() as moment:
        if check:
            _check_statements(moment)
        elif number:
            _write_pages(
                lambda given: periods.page_json(moment, number, kind, usage.LIMIT_MAX, given.get("after")),
                kind, out, force,
            )  # fmt: skip
        else:
            _print_rows([periods.statement_json(each) for each in periods.statements(moment)])


def _check_statements(database: Database) -> None:
    differing = periods.reconcile(database)
    print(f"{len(periods.statements(database))} statements, {len(differing)} lines that differ from the rows")
    if differing:
        raise typer.Exit(cli.EXIT_FAILURE)


def _write_pages(ask: _Ask, kind: str, out: str | None, force: bool) -> None:
    given = {"limit": str(usage.LIMIT_MAX)}
    pages = _all_rows(ask, given, ask(given))
    if out is None:
        for page in pages:
            _print_rows(page)
        return
    windows = ["window_start"] if kind == "adjustments" else []
    columns = [*windows, *usage.DIMENSIONS, *COUNTERS, TOTAL]
    print(f"{export.write(pages, columns, out, force):,} rows written to {out}")


def _print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    print("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), end="")


# --- A running ledger ---


def _fetch(
    url: str, path: str, token_file: str | None, given: Mapping[str, str] | None = None, body: Any = None
) -> dict[str, Any]:
    """Its answer. Raises LedgerError with its own words where it refuses."""
    if not url.startswith(("http://", "https://")):
        raise BadRequest(f"--url {url}: expected http://HOST:PORT")
    query = f"?{urllib.parse.urlencode(given)}" if given else ""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{url.rstrip('/')}{path}{query}", data, {"Content-Type": "application/json"})
    if token_file is not None:
        request.add_header("Authorization", f"Bearer {_token(token_file)}")
    try:
        with urllib.request.urlopen(request, timeout=_ANSWER_SECONDS) as answer:
            found: dict[str, Any] = json.load(answer)
            return found
    except urllib.error.HTTPError as error:
        with error:
            raise LedgerError(f"{url}: {_said(error)}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise LedgerError(f"{url}: no ledger answers there: {reason}") from None


def _said(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(error)["error"])
    except (ValueError, KeyError, TypeError):
        return f"status {error.code}"
