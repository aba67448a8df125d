"""The command `rollup`: rolling totals of all meters, live.

Owns: its arguments; no arithmetic. Exit codes as in cli.py, settings as in cli_live.py.
"""

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from typer import Option

from tokenometer.processor.cli import app as cli
from tokenometer.processor.cli import live as cli_live
from tokenometer.processor.cli.live import Bootstrap, Config, KafkaSettings
from tokenometer.processor.rollup.watch import Watch

log = logging.getLogger("tokenometer")


class RollupError(Exception):
    """The rollup or its dashboard cannot run; the message says why."""


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
    token: Annotated[
        str | None,
        Option(help="Asked of readers; needed beyond loopback. Better in a file."),
    ] = None,
    token_file: Annotated[str | None, Option(metavar="FILE", help="Holds the token.")] = None,
    log_format: Annotated[str, Option(help="json, or text for people.")] = "json",
    kafka: KafkaSettings = None,
) -> None:
    """Rolling totals of all meters: to a topic, a dashboard and Prometheus, until SIGTERM.

    Each option may also stand in the environment, --app as TOKENOMETER_ROLLUP_APP, or in the --config file.
    """
    try:
        from tokenometer.processor.rollup import worker as rollup
    except ModuleNotFoundError as error:
        raise RollupError(f"{error}; install tokenometer[rollup]") from None

    client = cli_live.pairs(kafka, "--kafka")
    cli_live.start_logs(log_format)
    shown = {name: value for name, value in locals().items() if name not in ("kafka", "token")}
    cli_live.log_settings(shown, client)
    token = _read_token(token_file) if token_file else token
    settings = rollup.RollupSettings(app, bootstrap, client, live_topic, totals_topic, target, float(session_timeout))
    broker = cli_live.open_broker(bootstrap, client)
    if create_topics:
        rollup.create_topics(broker, settings, replication)
    worker = rollup.Rollup(broker, settings)
    with dashboard(worker.watch, listen, token) as url, cli_live.stop_signals() as stopped:
        log.info("serving", extra={"dashboard": url})
        try:
            asyncio.run(worker.run(stopped))
        except rollup.RollupFailed as error:
            raise RollupError(str(error)) from None
    broker.close()
    log.info("stopped")


@contextlib.contextmanager
def dashboard(watch: Watch, listen: str, token: str | None = None, other: str | None = None) -> Iterator[str | None]:
    """The dashboard over what is watched, on a thread of its own; its address. listen: '' for none. other: where, if
    that one is taken."""
    if not listen:
        yield None
        return
    try:
        from tokenometer.processor.dashboard import DashboardError, SiteThread, Source, metrics
    except ModuleNotFoundError as error:
        raise RollupError(f"{error}; install tokenometer[dashboard], or serve none with --listen ''") from None

    def totals() -> bytes | None:
        return watch.latest

    source = Source(totals, watch.history, watch.rate, watch.health, metrics.registry(totals))
    try:
        site = SiteThread(source, _address(listen, token))
    except DashboardError as error:
        if other is None:
            raise RollupError(f"--listen {listen}: {error}") from None
        site = SiteThread(source, _address(other, token))
    try:
        yield site.url
    finally:
        site.close()


def _read_token(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise RollupError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _address(listen: str, token: str | None) -> Any:
    from tokenometer.processor.dashboard import Settings

    host, _, port = listen.rpartition(":")
    if not host or not port.isdigit():
        raise typer.BadParameter(f"--listen {listen!r}: expected HOST:PORT")
    return Settings(host.strip("[]"), int(port), token)
