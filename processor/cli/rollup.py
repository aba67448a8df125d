"""The command `rollup`: rolling totals of all meters, live."""

import asyncio
import contextlib
import logging
import pathlib
from dataclasses import dataclass
from typing import Annotated, Any

from typer import Option

from tokenometer.processor.cli import running, topics
from tokenometer.processor.cli.asking import PriceFile
from tokenometer.processor.cli.common import needs
from tokenometer.processor.cli.options import Address, Config, KafkaSettings, LogSettings, TokenFile, address, http_url
from tokenometer.processor.rollup.alerted import RecentAlerts
from tokenometer.processor.rollup.tables import Only
from tokenometer.processor.rollup.watch import Watch
from tokenometer.processor.secret import Secret, reveal
from tokenometer.schemas.usage import TARGET_TOKENS_PER_DAY

log = logging.getLogger("tokenometer")


@dataclass(frozen=True)
class RollupCommand(KafkaSettings, LogSettings):
    config: Config = None
    app: Annotated[str, Option(help="Workers of one app share the work. Its table has its name.")] = (
        "tokenometer-rollup"
    )
    live_topic: Annotated[str, Option(help="Live summaries.")] = topics.LIVE
    totals_topic: Annotated[str, Option(help="The topic of rolling totals, one message a second.")] = topics.TOTALS
    alerts_topic: Annotated[
        str, Option(help="The alerts of `tokenometer alerts`, which the dashboard shows; it need not be there.")
    ] = topics.ALERTS
    target: Annotated[
        int, Option(min=1, metavar="TOKENS", help="The tokens of a day that the run-rate is compared with.")
    ] = TARGET_TOKENS_PER_DAY
    session_timeout: Annotated[
        int,
        Option(
            min=6,
            max=300,
            metavar="SECONDS",
            help="After this time the partitions of a killed worker go to another one.",
        ),
    ] = 15
    create_topics: Annotated[bool, Option("--create-topics", help="Create the output topics if they are missing.")] = (
        False
    )
    replication: Annotated[int, Option(min=1, max=9, help="How many copies a topic that is created has.")] = 1
    listen: Annotated[
        Address | None,
        Option(
            parser=address, metavar="HOST:PORT",
            help="Where the dashboard, its API, /metrics and /healthz are served; '' serves none.",
        ),
    ] = Address("127.0.0.1", 8321)  # fmt: skip
    token: Annotated[
        Secret | None,
        Option(
            parser=Secret, metavar="TOKEN", help="What readers must give; needed beyond loopback. Better: --token-file."
        ),
    ] = None  # fmt: skip
    token_file: TokenFile = None
    prices: PriceFile = None
    chip_costs: Annotated[
        str | None,
        Option(metavar="FILE", help="A list of chip costs, where they have a file of their own; see docs/BILLING.md."),
    ] = None  # fmt: skip
    ledger: Annotated[
        str | None,
        Option(
            parser=http_url, metavar="http://HOST:PORT",
            help="A running ledger, which the dashboard asks of any user. Without it a search finds the largest users.",
        ),
    ] = None  # fmt: skip
    ledger_token_file: TokenFile = None
    docs_url: Annotated[
        str | None,
        Option(parser=http_url, metavar="URL", help="Where these documents are published; the dashboard links to it."),
    ] = None  # fmt: skip


def rollup_command(command: RollupCommand) -> None:
    """Give the rolling totals of all meters to a topic, a dashboard and Prometheus, until SIGTERM.

    Each option may also be given in the environment, --app as TOKENOMETER_ROLLUP_APP, or in the --config file.

    Examples:
        tokenometer rollup --bootstrap kafka:9092 --create-topics
        tokenometer rollup --listen 0.0.0.0:8321 --token-file dashboard.token --log-format text
    """
    with needs("rollup"):
        from tokenometer.processor.rollup import worker

    running.start_logs(command)
    broker = running.broker_of(command)
    command.log()
    settings = worker.RollupSettings(
        command.app,
        command.bootstrap,
        reveal(command.client),
        command.live_topic,
        command.totals_topic,
        command.target,
        float(command.session_timeout),
    )
    if command.create_topics:
        worker.create_topics(broker, settings, command.replication)
    cost = _cost(command)
    rollup = worker.Rollup(broker, settings)
    token = command.token_file or command.token
    ledger = _ledger(command)
    with contextlib.closing(RecentAlerts(broker, command.alerts_topic).start()) as alerts:
        extras = running.PageExtras(rollup.health, cost, ledger, command.docs_url, alerts)
        site = running.dashboard(rollup.watch, command.listen, token, extras=extras)
        with site as url, running.stop_signals() as stopped:
            log.info("serving", extra={"dashboard": url})
            asyncio.run(rollup.run(stopped))
    broker.close()
    log.info("stopped")


def _ledger(command: RollupCommand) -> running.LedgerAddress | None:
    """It prices by our list, so that all money on the page is of one."""
    if command.ledger is None:
        return None
    prices = pathlib.Path(command.prices).read_text(encoding="utf-8") if command.prices else None
    return running.LedgerAddress(command.ledger, command.ledger_token_file, prices)


def _cost(command: RollupCommand) -> running.Cost | None:
    """What the dashboard shows of money; None without a list."""
    if command.prices is None and command.chip_costs is None:
        return None
    from tokenometer.processor.ledger import pricefile
    from tokenometer.processor.ledger.list_money import ListMoney

    prices = pricefile.load(command.prices) if command.prices else None
    money = ListMoney(prices, pricefile.load(command.chip_costs) if command.chip_costs else prices)

    def cost(watch: Watch, only: Only, span_ms: int, until_ms: int | None) -> dict[str, Any]:
        begin_ms, end_ms = watch.range_of(span_ms, until_ms)
        pieces = money.bounds(begin_ms, end_ms)
        found = money.of((begin, watch.cells_of(begin, end, only)) for begin, end in pieces)
        return {"from_ms": begin_ms, "to_ms": end_ms, **found}

    return cost
