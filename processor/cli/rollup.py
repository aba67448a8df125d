"""The command `rollup`: rolling totals of all meters, live."""

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from typing import Annotated

from typer import Option

from tokenometer.processor.cli import running, topics
from tokenometer.processor.cli.common import needs
from tokenometer.processor.cli.options import Address, Config, KafkaSettings, LogSettings, TokenFile, address
from tokenometer.processor.rollup.alerted import RecentAlerts
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
    rollup = worker.Rollup(broker, settings)
    token = command.token_file or command.token
    with contextlib.closing(RecentAlerts(broker, command.alerts_topic).start()) as alerts:
        with (
            running.dashboard(rollup.watch, command.listen, token, alerts=alerts) as url,
            running.stop_signals() as stopped,
        ):
            log.info("serving", extra={"dashboard": url})
            asyncio.run(rollup.run(stopped))
    broker.close()
    log.info("stopped")
