"""The command `demo`: the whole way in one process, with a dashboard, and its audit.

Owns: its arguments and what it prints. Exit codes as in cli.py.
"""

import secrets
import sys
import time
from typing import Annotated

import typer
from rich.live import Live
from typer import Option

from tokenometer.kernels.engine import Engine
from tokenometer.kernels.target import open_target
from tokenometer.processor.cli import app as cli
from tokenometer.processor.cli import live as cli_live
from tokenometer.processor.cli import rollup as cli_rollup
from tokenometer.processor.cli.live import KafkaSettings
from tokenometer.processor.demo import stream as demo
from tokenometer.processor.demo.view import live_view
from tokenometer.processor.load.profile import Profile
from tokenometer.processor.meter.meter import Clock, MeterSettings
from tokenometer.processor.records.referee import Referee
from tokenometer.processor.rollup import watch
from tokenometer.schemas import mapping as mappings
from tokenometer.schemas.usage import TARGET_TOKENS_PER_DAY

_LISTEN, _ANY_PORT = "127.0.0.1:8321", "127.0.0.1:0"
_LOG_SECONDS = 3600.0  # the log is that of the last hour, and the charts fill as it runs by
_WAIT_SECONDS = 0.2


@cli.app.command("demo")
def demo_command(
    count: Annotated[int, Option(min=1000, max=100_000_000, help="Records.")] = 1_000_000,
    seconds: Annotated[
        float, Option("--seconds", min=0, max=86_400, help="How long the log takes; 0: as fast as it goes.")
    ] = 30.0,
    lines: Annotated[int, Option(min=1, max=1000, help="Records in a message.")] = 50,
    partitions: Annotated[int, Option(min=1, max=64, help="Of the input topic.")] = 4,
    seed: Annotated[int, Option(help="The same seed gives the same log.")] = 1,
    device: Annotated[str, Option(help="auto, cuda or cpu.")] = "auto",
    listen: Annotated[
        str, Option(metavar="HOST:PORT", help="The dashboard; empty: none. On a terminal it stays until Ctrl-C.")
    ] = _LISTEN,
    bootstrap: Annotated[
        str | None,
        Option(metavar="HOST:PORT,...", help="A Kafka to use; without it, a broker in this process's memory."),
    ] = None,
    kafka: KafkaSettings = None,
) -> None:
    """A synthetic log through a broker and a meter to a dashboard, live; then an independent audit of the result."""
    from tokenometer.processor import verify
    from tokenometer.processor.broker.memory import MemoryBroker
    from tokenometer.processor.verify.report import render

    broker = cli_live.open_broker(bootstrap, cli_live.pairs(kafka, "--kafka")) if bootstrap else MemoryBroker()
    stem = f"demo-{secrets.token_hex(3)}"
    inputs = {f"{stem}-inference-logs": mappings.resolve("native")}
    outputs = f"{stem}-token-usage", f"{stem}-token-live", f"{stem}-inference-logs-rejected"
    settings = MeterSettings("demo-meter", stem, inputs, *outputs)
    for topic in inputs:
        broker.create_topic(topic, partitions, {})
    cli_live.check_topics(broker, settings, 1, 1)
    target = open_target(cli_live.known_device(device))
    engine = Engine(target, Referee(), secret=[secrets.randbits(64) for _ in range(8)], limits=cli.limits(target, None))
    profile = Profile(
        records=count, seed=seed, start_ms=Clock().now_ms() - round(_LOG_SECONDS * 1000), rate=count / _LOG_SECONDS,
        duplicates=0.02, malformed=0.01, escaped=0.005,
    )  # fmt: skip
    playing = demo.Demo(settings, f"{stem}.run", profile, lines, seconds)
    onlooker = watch.Watch(broker, settings.live_topic, watch.live, TARGET_TOKENS_PER_DAY).start()
    console = cli.stdout_console()
    with (
        cli_rollup.dashboard(onlooker, listen, other=_ANY_PORT if listen == _LISTEN else None) as url,
        cli_live.stop_signals() as stopped,
    ):
        if url:
            console.print(f"Dashboard {url}")
        with Live(console=console, auto_refresh=False, transient=True) as live:

            def show(view: demo.View) -> None:
                live.update(live_view(view), refresh=True)

            view = demo.play(broker, playing, engine, onlooker, show, stopped)
        cli.show_view(live_view(view))
        audit = verify.verify(broker, stem, inputs, verify.Settings(*outputs))
        cli.show_view(render(audit))
        same = stopped() or view.totals is not None and view.tokens == audit.expected
        if not same:
            console.print("[bold red]The dashboard's totals are not the audit's[/]")
        if url and sys.stdout.isatty() and not stopped():
            console.print(f"The dashboard stays at {url} until Ctrl-C.")
            while not stopped():
                time.sleep(_WAIT_SECONDS)
    onlooker.close()
    broker.close()
    if not (audit.clean and same):
        raise typer.Exit(cli.EXIT_FAILURE)
