"""The command `meter`: live topics, exactly once."""

import contextlib
import logging
import re
import secrets
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated

from typer import Option

from tokenometer.kernels.engine import Engine
from tokenometer.processor.cli import running, topics
from tokenometer.processor.cli.common import usage_error
from tokenometer.processor.cli.options import (
    Address,
    BatchBytes,
    Config,
    Device,
    DeviceName,
    KafkaSettings,
    Listen,
    LogSettings,
    Memory,
    RegistrySettings,
    Window,
)
from tokenometer.processor.meter import heap
from tokenometer.processor.meter.fitting import FitSettings
from tokenometer.processor.meter.health import Health
from tokenometer.processor.meter.meter import Clock, Committed, Meter, MeterSettings
from tokenometer.processor.meter.watching import HealthWatch
from tokenometer.processor.records import engines
from tokenometer.schemas.usage import DAY_MS

log = logging.getLogger("tokenometer")
_NAME = r"[0-9A-Za-z._:-]{1,80}"  # a part's name adds the time and a number, and may have 128 characters
_METERS_MAX = 1000  # of one host without names of their own


class BeginAt(StrEnum):
    BEGINNING, END = "beginning", "end"


Inputs = Annotated[
    list[str] | None,
    Option(
        metavar="TOPIC[=MAPPING]",
        help="A topic of request logs, and its mapping; may be repeated. [dim]\\[default: inference-logs=native][/]",
    ),
]
DedupHorizon = Annotated[
    int,
    Option(min=1, max=604_800, metavar="SECONDS", help="A re-sent request is recognised for at least this long."),
]
MAX_PAST_DAYS = 400  # a log may be replayed after a year, and hardly later
MaxPast = Annotated[
    int,
    Option(
        min=0, max=36_500, metavar="DAYS",
        help="How far an event may be before its message. One further back has a wrong unit of time and is rejected.",
    ),
]  # fmt: skip
ConflictLetters = Annotated[
    bool,
    Option(
        "--conflicts-to-letters/--no-conflicts-to-letters",
        help="A duplicate that says something else than the record that counted becomes a dead letter.",
    ),
]
FutureSkew = Annotated[
    int,
    Option(
        min=0, max=31_536_000, metavar="SECONDS", help="A record further ahead of its message's time is rejected."
    ),
]  # fmt: skip
UsageTopic = Annotated[str, Option(help="The topic of usage rows.")]
LiveTopic = Annotated[str, Option(help="The topic of live summaries.")]
RejectedTopic = Annotated[str, Option(help="The topic of dead letters.")]


@dataclass(frozen=True)
class MeterCommand(KafkaSettings, RegistrySettings, LogSettings):
    config: Config = None
    input: Inputs = None
    group: Annotated[str, Option(help="Meters of one group share the partitions.")] = "tokenometer"
    name: Annotated[
        str | None,
        Option(
            help="A name of this meter alone. With the same name after a restart it takes over at once what it held.  "
            "[dim]\\[default: the host's name; of the second one on a host with -2][/]",
        ),
    ] = None
    device: DeviceName = Device.AUTO
    memory: Memory = None
    batch_bytes: BatchBytes = None
    window: Window = 60
    commit_interval: Annotated[
        float, Option(min=0.05, max=60, metavar="SECONDS", help="The time from one commit to the next.")
    ] = 0.8
    dedup_horizon: DedupHorizon = 600
    max_future_skew: FutureSkew = 3600
    max_past: MaxPast = MAX_PAST_DAYS
    conflict_letters: ConflictLetters = True
    alarm_share: Annotated[
        float,
        Option(
            min=0, max=1, metavar="SHARE",
            help="A topic with a larger share of rejects does not fit its mapping, and the meter warns; 1 never "
            "does.",
        ),
    ] = 0.5  # fmt: skip
    alarm_records: Annotated[
        int, Option(min=1, max=1_000_000_000, metavar="N", help="A topic with fewer records is not judged.")
    ] = 1000
    alarm_interval: Annotated[
        int,
        Option(
            min=1, max=86_400, metavar="SECONDS",
            help="The share is that of the last so many seconds, and it is logged this often.",
        ),
    ] = 60  # fmt: skip
    sketch_seed: Annotated[int, Option(min=0, help="Seed of the active users' sketches; all meters need the same.")] = 0
    usage_topic: UsageTopic = topics.USAGE
    live_topic: LiveTopic = topics.LIVE
    rejected_topic: RejectedTopic = topics.REJECTED
    begin_at: Annotated[BeginAt, Option(help="Where to begin a partition that this group never read.")] = (
        BeginAt.BEGINNING
    )
    create_topics: Annotated[
        int,
        Option(
            min=0,
            max=10_000,
            metavar="PARTITIONS",
            help="Create missing topics with so many partitions, inputs too; 0 only says what is missing.",
        ),
    ] = 0
    replication: Annotated[int, Option(min=1, max=9, help="How many copies a topic that is created has.")] = 1
    listen: Listen = Address("127.0.0.1", 9464)

    def __post_init__(self) -> None:
        outputs = self.outputs
        if self.name is not None and not re.fullmatch(_NAME, self.name):
            usage_error(f"--name {self.name!r}: expected 1 to 80 of the characters 0-9 A-Z a-z . _ : -")
        if len(set(outputs)) < len(outputs):
            usage_error(f"three topics are written, and two have one name: {', '.join(outputs)}")

    @property
    def outputs(self) -> tuple[str, str, str]:
        return self.usage_topic, self.live_topic, self.rejected_topic

    def of_meter(self, name: str) -> MeterSettings:
        inputs = topics.inputs(self.input, self.outputs)
        return MeterSettings(
            name,
            self.group,
            inputs,
            *self.outputs,
            commit_interval_ms=round(self.commit_interval * 1000),
            from_end=self.begin_at is BeginAt.END,
            schemas=topics.schemas(inputs),
            fit=FitSettings(self.alarm_share, self.alarm_records, self.alarm_interval * 1000),
            registry=topics.registry(inputs, self.registry_client),
        )

    def engine(self, settings: MeterSettings) -> Engine:
        return engines.make_engine(
            self.device,
            self.memory,
            list(settings.inputs.values()),
            self.batch_bytes,
            window_ms=self.window * 1000,
            max_future_skew_ms=self.max_future_skew * 1000,
            max_past_ms=self.max_past * DAY_MS,
            conflict_letters=self.conflict_letters,
            dedup_horizon_ms=self.dedup_horizon * 1000,
            sketch_seed=self.sketch_seed,
        )


@contextlib.contextmanager
def own_name(host: str) -> Iterator[str]:
    """A name that no other meter on this host has taken in this way: HOST, HOST-2, HOST-3 ... Who starts again has the
    first that is free, so the same ones are used again. The kernel frees a name when its process ends, however it
    does."""
    for number in range(1, _METERS_MAX + 1):
        name = host if number == 1 else f"{host}-{number}"
        with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as taken:
            try:
                taken.bind(f"\0tokenometer-meter/{name}")  # Linux's abstract names: no file is left behind
            except OSError:
                continue
            yield name
            return
    usage_error(f"{_METERS_MAX} meters without names of their own run on this host; give this one a --name")


def meter_command(command: MeterCommand) -> None:
    """Meter live Kafka topics exactly once, until SIGTERM.

    Each option may also be given in the environment, --group as TOKENOMETER_METER_GROUP, or in the --config file.

    Examples:
        tokenometer meter --bootstrap kafka:9092 --group billing --create-topics 6
        tokenometer meter --input inference-logs=openai-chat --device cuda --memory 8GiB
        tokenometer meter --input otlp-spans=otlp
        tokenometer meter --config meter.toml --kafka-file kafka.properties --log-format text
    """
    with own_name(socket.gethostname()) if command.name is None else contextlib.nullcontext(command.name) as name:
        _run(command, command.of_meter(name))


def _run(command: MeterCommand, settings: MeterSettings) -> None:
    heap.keep_freed_memory()
    running.start_logs(command)
    if command.name is None and settings.name != (host := socket.gethostname()):
        log.warning("another meter on this host has the name %s, so this one is %s", host, settings.name)
    broker = running.broker_of(command)
    command.log()
    topics.check_topics(broker, settings, command.create_topics, command.replication)
    engine = command.engine(settings)
    clock = Clock()
    health = Health(clock.now_ms, engine.target.name)
    run = f"{settings.name}.{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"

    log_commit = CommitLog()

    def committed(done: Committed) -> None:
        health.committed(done)
        log_commit(done)

    meter = Meter(broker, engine, settings, run, clock=clock, on_commit=committed)
    watch = HealthWatch(
        broker, settings.name, settings.group, settings.inputs, meter.standing, health.judged, clock.steady_ms,
        settings.commit_interval_ms,
    )  # fmt: skip
    with contextlib.closing(watch), running.served(health, command.listen), running.stop_signals() as stopped:
        meter.run(stopped)
    log.info("stopped", extra={"run": run})


class CommitLog:
    """A line for each commit. One that has nothing new comes each second, so it is for finding faults only."""

    def __init__(self) -> None:
        self._records = 0

    def __call__(self, done: Committed) -> None:
        summary, letters = done.snapshot.summary, len(done.snapshot.letters)
        new = done.rows or letters or summary.tally.read != self._records
        self._records = summary.tally.read
        log.log(
            logging.INFO if new else logging.DEBUG,
            "committed",
            extra={
                "part": summary.part,
                "sequence": summary.sequence,
                "rows": done.rows,
                "dead_letters": letters,
                "records": summary.tally.read,
                "tokens": summary.totals.total_tokens,
                "took_ms": done.took_ms,
            },
        )
