"""The command `ledger`: usage rows into a database, exactly once, and answers over HTTP."""

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from typer import Option

from tokenometer.processor.cli import load, running, topics
from tokenometer.processor.cli.asking import DATABASE, Database, Grace, PriceFile
from tokenometer.processor.cli.common import needs
from tokenometer.processor.cli.options import (
    Address,
    Config,
    KafkaSettings,
    LogSettings,
    TokenFile,
    address,
    group_of,
)
from tokenometer.processor.cli.sources import secret_text
from tokenometer.processor.secret import Secret

if TYPE_CHECKING:
    from tokenometer.processor.ledger.intake import Ledger
    from tokenometer.processor.ledger.prices import Prices
    from tokenometer.processor.ledger.store import Store

log = logging.getLogger("tokenometer.ledger")
_REPORT_SECONDS = 10.0


@dataclass(frozen=True)
class LedgerCommand(KafkaSettings, LogSettings):
    config: Config = None
    database: Database = Secret(DATABASE, DATABASE)
    usage_topic: Annotated[str, Option(help="Usage rows.")] = topics.USAGE
    live_topic: Annotated[str, Option(help="Live summaries.")] = topics.LIVE
    batch_rows: Annotated[int, Option(min=1, max=10_000_000, help="The most rows of one transaction.")] = 200_000
    linger: Annotated[
        float, Option(min=0, max=60, metavar="SECONDS", help="The longest time that a transaction collects rows.")
    ] = 1.0
    grace: Grace = 300
    price_list: PriceFile = None
    listen: Annotated[
        Address | None,
        Option(parser=address, metavar="HOST:PORT", help="Where questions are answered over HTTP; '' answers none."),
    ] = Address("127.0.0.1", 9465)
    token_file: TokenFile = None
    customers: Annotated[
        str | None, Option(metavar="FILE", help="The tokens of customers, who read their own usage and statements.")
    ] = None
    once: Annotated[bool, Option("--once", help="Take in what the topics hold now, and end.")] = False
    accept_gap: Annotated[
        bool, Option("--accept-gap", help="Begin a ledger although retention has deleted older usage.")
    ] = False


def ledger_command(command: LedgerCommand) -> None:
    """Take usage rows into a database, exactly once, until SIGTERM; answer questions over HTTP.

    Each option may also be given in the environment, --database as TOKENOMETER_LEDGER_DATABASE, or in the --config
    file. The password of a PostgreSQL database is best in --config or in ~/.pgpass.

    Examples:
        tokenometer ledger --database ledger.duckdb --prices prices.toml
        tokenometer ledger --config ledger.toml --kafka-file kafka.properties --token-file ledger.token
        tokenometer ledger --once --listen ''
    """
    with needs("ledger"):
        from tokenometer.processor.ledger import pricefile
        from tokenometer.processor.ledger.intake import IntakeSettings, Ledger
        from tokenometer.processor.ledger.opening import open_database
        from tokenometer.processor.ledger.store import Store

    linger_ms = round(command.linger * 1000)
    settings = IntakeSettings(
        command.usage_topic, command.live_topic, command.batch_rows, linger_ms, command.accept_gap
    )
    price_list = None if command.price_list is None else pricefile.load(command.price_list)
    running.start_logs(command)
    with contextlib.closing(Store(open_database(command.database.reveal(), writer=True))) as store:
        broker = running.broker_of(command)
        command.log()
        ledger = Ledger(broker, store, settings)
        with _served(ledger, store, command, price_list), running.stop_signals() as stopped, _reported(ledger):
            ledger.run(stopped, command.once)
        broker.close()
    log.info("stopped")


@contextlib.contextmanager
def _served(ledger: "Ledger", store: "Store", command: LedgerCommand, prices: "Prices | None") -> Iterator[None]:
    if command.listen is None:
        yield
        return
    with needs("ledger", ", or serve nothing with --listen ''"):
        from tokenometer.processor.ledger import api as ledger_api
        from tokenometer.processor.ledger.api import Api, ServeSettings
        from tokenometer.processor.ledger.serve import LedgerServer

    host, token = command.listen.host, command.token_file
    customers = {}
    if command.customers is not None:
        customers = ledger_api.customers(secret_text(command.customers), command.customers)
    settings = ServeSettings(
        host, command.listen.port, token.reveal() if token else None, command.grace * 1000, prices, customers
    )
    api = Api(store.database, settings, ledger.ask, lambda: ledger.progress, now_ms)
    with contextlib.closing(LedgerServer(api, settings)) as server:
        log.info("serving /v1/usage", extra={"host": host, "port": server.port})
        yield


@contextlib.contextmanager
def _reported(ledger: "Ledger") -> Iterator[None]:
    """Write a line to the log now and then while rows come."""
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


def now_ms() -> int:
    return time.time_ns() // 1_000_000


group = group_of(ledger_command, {"load": load.load_command})
