"""The command `demo`: the whole way in one process, with a dashboard, and its audit."""

import gc
import os
import secrets
import sys
import time
from dataclasses import dataclass, replace
from typing import Annotated, Any

import typer
from rich.live import Live
from typer import Option

from tokenometer.processor.broker import Broker
from tokenometer.processor.cli import running, topics
from tokenometer.processor.cli.common import EXIT_FAILURE, needs, progress_bar, show_view, stdout_console, usage_error
from tokenometer.processor.cli.options import (
    Address,
    Device,
    DeviceName,
    KafkaPairsWithoutConfig,
    KafkaSettings,
    address,
)
from tokenometer.processor.demo import stream
from tokenometer.processor.demo.view import live_view
from tokenometer.processor.load.profile import Profile
from tokenometer.processor.meter import heap
from tokenometer.processor.meter.meter import Clock, MeterSettings
from tokenometer.processor.records import engines
from tokenometer.processor.rollup import watch
from tokenometer.schemas import mapping as mappings
from tokenometer.schemas.usage import TARGET_TOKENS_PER_DAY

_LISTEN, _ANY_PORT = Address("127.0.0.1", 8321), Address("127.0.0.1", 0)
_LIVE_RATE = 900_000  # records/s of 1,900 tokens each: 148 trillion tokens a day
_LIVE_RECORDS = 8_000_000
_PACED_SECONDS, _PACED_RECORDS = 30.0, 1_000_000
_LOG_SECONDS = 3600.0  # a log that is not live is that of the last hour, and the charts fill while it passes
_WAIT_SECONDS = 0.2
# What the broker in this process keeps of a record, its usage rows included. It takes the memory before the log begins,
# as a broker that has run for long has it: a host may give fresh memory at a slower pace than that of the log.
_RECORD_BYTES = 500
_RESERVED_BYTES_MAX = 4 << 30


def _free_bytes() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class DemoCommand(KafkaSettings):
    bootstrap: Annotated[
        str,
        Option(
            rich_help_panel="Kafka",
            metavar="HOST:PORT,...",
            help="A Kafka to use, also from KAFKA_BOOTSTRAP_SERVERS. Without it the broker is in this process.",
        ),
    ] = ""
    kafka: KafkaPairsWithoutConfig = None
    pace: Annotated[
        bool, Option("--pace", help="A smaller log, an hour of it in half a minute, so that the charts fill.")
    ] = False
    count: Annotated[
        int | None,
        Option(min=1000, max=100_000_000, help="The number of records.",
               show_default=f"{_LIVE_RECORDS:,}, or {_PACED_RECORDS:,} with --pace"),
    ] = None  # fmt: skip
    seconds: Annotated[
        float | None,
        Option("--seconds", min=0, max=86_400, help="How long the log takes; with 0 it goes as fast as it can.",
               show_default=f"{_LIVE_RATE:,} records a second, or {_PACED_SECONDS:.0f} with --pace"),
    ] = None  # fmt: skip
    lines: Annotated[int, Option(min=1, max=1000, help="How many records a message has.")] = 50
    partitions: Annotated[int, Option(min=1, max=64, help="Partitions of the input topic.")] = 4
    seed: Annotated[int, Option(help="The same seed gives the same log.")] = 1
    device: DeviceName = Device.AUTO
    listen: Annotated[
        Address | None,
        Option(
            parser=address,
            metavar="HOST:PORT",
            help="Where the dashboard is served; '' serves none. On a terminal it stays until Ctrl-C.",
        ),
    ] = _LISTEN

    def __post_init__(self) -> None:
        if (self.kafka or self.kafka_file) and not self.bootstrap:
            usage_error("--kafka and --kafka-file have no meaning without --bootstrap")

    def broker(self) -> Broker:
        if self.bootstrap:
            return running.broker_of(self)
        from tokenometer.processor.broker.memory import MemoryBroker

        memory = MemoryBroker()
        memory.reserve(min(self.reserved_bytes, _free_bytes() // 2))
        return memory

    @property
    def reserved_bytes(self) -> int:
        return min(self.records * _RECORD_BYTES, _RESERVED_BYTES_MAX)

    @property
    def records(self) -> int:
        return self.count or (_PACED_RECORDS if self.pace else _LIVE_RECORDS)

    @property
    def live(self) -> bool:
        return not self.pace and self.seconds != 0

    @property
    def speed(self) -> float | None:
        """Of the log's clock."""
        if self.seconds == 0:
            return None
        return 1.0 if self.live else _LOG_SECONDS / (self.seconds or _PACED_SECONDS)

    def profile(self) -> Profile:
        """A live log begins now; another one is the last hour's."""
        if self.live:
            seconds = self.seconds or self.records / _LIVE_RATE
            log = Profile(
                self.records, start_ms=Clock().now_ms(), rate=self.records / seconds, bursts=0.0, malformed=0.001
            )
        else:
            start_ms = Clock().now_ms() - round(_LOG_SECONDS * 1000)
            log = Profile(
                self.records, start_ms=start_ms, rate=self.records / _LOG_SECONDS, malformed=0.01, escaped=0.005
            )
        return replace(log, seed=self.seed, duplicates=0.02)


def demo_command(command: DemoCommand) -> None:
    """Send a synthetic log through a broker and a meter to a live dashboard, then audit the result independently.

    Examples:
        tokenometer demo
        tokenometer demo --pace
        tokenometer demo --count 100000 --seconds 0 --listen ''
        tokenometer demo --bootstrap 127.0.0.1:9092
    """
    with needs("verify"):
        from tokenometer.processor import verify
        from tokenometer.processor.verify.report import render
        from tokenometer.processor.verify.sums import require_duckdb

    require_duckdb()  # the audit at the end needs it
    heap.keep_freed_memory()  # as a meter does
    broker = command.broker()
    settings = _settings()
    _make_topics(broker, settings, command.partitions)
    engine = engines.make_engine(command.device, None, list(settings.inputs.values()))
    gc.freeze()  # what was imported stays: a collection that looks at all of it would hold up every thread for 0.1 s
    playing = stream.Demo(settings, f"{settings.group}.run", command.profile(), command.lines, command.speed)
    onlooker = watch.Watch(broker, settings.live_topic, watch.live, TARGET_TOKENS_PER_DAY).start()
    other = _ANY_PORT if command.listen == _LISTEN else None
    with running.dashboard(onlooker, command.listen, other=other) as url, running.stop_signals() as stopped:
        view = _play(broker, playing, engine, onlooker, url, stopped)
        show_view(live_view(view))
        outputs = settings.usage_topic, settings.live_topic, settings.rejected_topic
        with progress_bar(None) as advance:

            def audited(done: int, total: int) -> None:
                if advance:
                    advance(done, f"audit: {done:,} of {total:,} messages")

            audit = verify.verify(broker, settings.group, settings.inputs, verify.VerifySettings(*outputs), audited)
        show_view(render(audit))
        same = stopped() or view.totals is not None and view.tokens == audit.expected
        if not same:
            stdout_console().print("[bold red]The dashboard's totals are not the audit's[/]")
        if url and sys.stdout.isatty() and not stopped():
            stdout_console().print(f"The dashboard stays at {url} until Ctrl-C.")
            while not stopped():
                time.sleep(_WAIT_SECONDS)
    onlooker.close()
    broker.close()
    if not (audit.clean and same):
        raise typer.Exit(EXIT_FAILURE)


def _settings() -> MeterSettings:
    """This run has topics and a group of its own, so a demo on a Kafka in use touches nothing of others."""
    stem = f"demo-{secrets.token_hex(3)}"
    inputs = {f"{stem}-{topics.INPUT}": mappings.resolve("native")}
    usage, live, rejected = (f"{stem}-{topic}" for topic in (topics.USAGE, topics.LIVE, topics.REJECTED))
    return MeterSettings("demo-meter", stem, inputs, usage, live, rejected)


def _make_topics(broker: Broker, settings: MeterSettings, partitions: int) -> None:
    for topic in settings.inputs:
        broker.create_topic(topic, partitions, {})
    topics.check_topics(broker, settings, 1, 1)


def _play(
    broker: Broker, playing: stream.Demo, engine: Any, onlooker: watch.Watch, url: str | None, stopped: Any
) -> stream.View:
    console = stdout_console()
    if url:
        console.print(f"Dashboard {url}")
    with Live(console=console, auto_refresh=False, transient=True) as live:

        def show(view: stream.View) -> None:
            live.update(live_view(view), refresh=True)

        return stream.play(broker, playing, engine, onlooker, show, stopped)
