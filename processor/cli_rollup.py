"""The command `rollup`: rolling totals of all meters, live.

Owns: its arguments; no arithmetic. Exit codes as in cli.py, settings as in cli_live.py.
"""

import asyncio
from typing import Annotated

from typer import Option

from processor import cli, cli_live
from processor.cli_live import Bootstrap, Config, KafkaSettings


@cli.app.command("rollup")
def rollup_command(
    config: Config = None,
    bootstrap: Bootstrap = "127.0.0.1:9092",
    app: Annotated[str, Option(help="Workers of one app share the work; its table is named after it.")] = (
        "tokenometer-rollup"
    ),
    live_topic: Annotated[str, Option(help="Live summaries.")] = "token-live",
    totals_topic: Annotated[str, Option(help="Rolling totals, one message a second.")] = "token-totals",
    target: Annotated[
        int, Option(min=1, metavar="TOKENS", help="A day's tokens that the run-rate is a share of.")
    ] = 120_000_000_000_000,
    session_timeout: Annotated[
        int, Option(min=6, max=300, metavar="SECONDS", help="After which a killed worker's part goes to another.")
    ] = 15,
    create_topics: Annotated[bool, Option("--create-topics", help="Create the output topics if they are missing.")] = (
        False
    ),
    replication: Annotated[int, Option(min=1, max=9, help="Copies of topics that are created.")] = 1,
    listen: Annotated[
        str, Option(metavar="HOST:PORT", help="The dashboard, its API, /metrics and /healthz; empty: none.")
    ] = "127.0.0.1:8321",
    log_format: Annotated[str, Option(help="json, or text for people.")] = "json",
    kafka: KafkaSettings = None,
) -> None:
    """Rolling totals of all meters: to a topic, a dashboard and Prometheus, until SIGTERM.

    Each option may also stand in the environment, --app as TOKENOMETER_ROLLUP_APP, or in the --config file.
    """
    from processor.rollup import Rollup, RollupSettings
    from processor.rollup import create_topics as make_topics

    client = cli_live.pairs(kafka, "--kafka")
    cli_live.start_logs(log_format)
    cli_live.log_settings({key: value for key, value in locals().items() if key != "kafka"}, client)
    settings = RollupSettings(app, bootstrap, client, live_topic, totals_topic, target, float(session_timeout))
    broker = cli_live.open_broker(bootstrap, client)
    if create_topics:
        make_topics(broker, settings, replication)
    with cli_live.stop_signals() as stopped:
        asyncio.run(Rollup(broker, settings).run(stopped))
