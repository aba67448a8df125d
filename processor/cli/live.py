"""The commands that need a broker: `meter`, `verify`, `demo`.

Owns: their arguments, configuration and logs; no arithmetic. Exit codes as in cli.py.
A setting comes from the command line, else from the environment (TOKENOMETER_METER_GROUP for --group), else from the
TOML file of --config (`group = "billing"`), else it is the default shown by --help.
"""

import contextlib
import logging
import os
import re
import secrets
import signal
import socket
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from pythonjsonlogger.json import JsonFormatter
from typer import Option

from tokenometer.kernels.engine import Engine
from tokenometer.kernels.target import open_target
from tokenometer.processor.broker import Broker, BrokerError, TopicMissing
from tokenometer.processor.cli import app as cli
from tokenometer.processor.meter import heap
from tokenometer.processor.meter.counting import MessageTooLarge
from tokenometer.processor.meter.health import Health
from tokenometer.processor.meter.meter import Clock, Committed, Meter, MeterSettings
from tokenometer.processor.records.referee import Referee
from tokenometer.processor.verify.values import VerifyError
from tokenometer.schemas import mapping as mappings
from tokenometer.schemas.mapping import Mapping as RecordMapping

log = logging.getLogger("tokenometer")
LOGGERS = ("tokenometer", "aiohttp", "aiokafka", "faust", "mode")  # of libraries their warnings
FAILURES = (BrokerError, MessageTooLarge, VerifyError)
_SECRET_WORDS = ("password", "passphrase", "secret", "token", "key.pem", "jaas", "credential")
_NAME = r"[0-9A-Za-z._:-]{1,80}"  # parts add the time and a number, and may have 128 characters
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def _load_config(context: typer.Context, path: str | None) -> str | None:
    """Give the file's settings to the other options as their defaults."""
    if path is None:
        return None
    try:
        with open(path, "rb") as file:
            settings = tomllib.load(file)
    except OSError as error:
        raise typer.BadParameter(f"{path}: cannot be read: {error.strerror}") from None
    except tomllib.TOMLDecodeError as error:
        raise typer.BadParameter(f"{path}: not TOML: {error}") from None
    known = {parameter.name: parameter for parameter in context.command.params}
    values = {name.replace("-", "_"): value for name, value in settings.items()}
    for name, value in values.items():
        if name not in known or name in ("config", "help"):
            raise typer.BadParameter(f"{path}: no such setting: {name}; expected one of {', '.join(sorted(known))}")
        if isinstance(value, dict):
            values[name] = [f"{key}={item}" for key, item in _flat(value)]
    context.default_map = values
    return path


def _kafka_option() -> Any:
    return Option(
        "--kafka",
        metavar="KEY=VALUE",
        help="A librdkafka setting, such as security.protocol=SASL_SSL; may be repeated. In a file: a table "
        "[bold]\\[kafka][/].",
    )


def _bootstrap_option() -> Any:
    return Option("--bootstrap", metavar="HOST:PORT,...", help="Kafka's addresses.")


def _flat(table: dict[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """`security.protocol = "SSL"` is a table in a table to TOML, and one setting to librdkafka."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield before + key, str(value).lower() if isinstance(value, bool) else str(value)


Bootstrap = Annotated[str, _bootstrap_option()]
KafkaSettings = Annotated[list[str] | None, _kafka_option()]
Config = Annotated[
    str | None, Option(metavar="FILE", callback=_load_config, is_eager=True, help="A TOML file of these settings.")
]
Inputs = Annotated[
    list[str] | None,
    Option(
        metavar="TOPIC[=MAPPING]",
        help="A topic of request logs, and its mapping; may be repeated. [dim]\\[default: inference-logs=native][/]",
    ),
]


def pairs(texts: list[str] | None, option: str) -> dict[str, str]:
    """KEY=VALUE texts as a dict."""
    found = {}
    for text in texts or ():
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise typer.BadParameter(f"{option} {text!r}: expected KEY=VALUE")
        found[key] = value
    return found


def open_broker(bootstrap: str, settings: Mapping[str, str]) -> Broker:
    from tokenometer.processor.broker.kafka import (
        KafkaBroker,  # only where a broker is asked for: the client is a large library
    )

    return KafkaBroker(bootstrap, settings)


# --- meter ---


@cli.app.command("meter")
def meter_command(
    config: Config = None,
    bootstrap: Bootstrap = "127.0.0.1:9092",
    input: Inputs = None,
    group: Annotated[str, Option(help="Meters of one group share the partitions.")] = "tokenometer",
    name: Annotated[
        str | None,
        Option(
            help="This meter's own, and the same after a restart: it takes over at once what it held.  "
            "[dim]\\[default: the host's name][/]",
        ),
    ] = None,
    device: Annotated[str, Option(help="auto, cuda or cpu.")] = "auto",
    memory: Annotated[str | None, Option(metavar="SIZE", help="For all tables together, such as 2GiB.")] = None,
    window: Annotated[
        int,
        Option(min=1, max=86_400, metavar="SECONDS", help="Length of a usage row's window."),
    ] = 60,
    commit_interval: Annotated[
        float,
        Option(min=0.05, max=60, metavar="SECONDS", help="From commit to commit."),
    ] = 1.0,
    dedup_horizon: Annotated[
        int,
        Option(
            min=1,
            max=604_800,
            metavar="SECONDS",
            help="A re-sent request is recognised for at least this long.",
        ),
    ] = 600,
    max_future_skew: Annotated[
        int,
        Option(
            min=0,
            max=31_536_000,
            metavar="SECONDS",
            help="A record this far ahead of its message's time is rejected.",
        ),
    ] = 3600,
    sketch_seed: Annotated[int, Option(min=0, help="Of active-user sketches; the same for all meters.")] = 0,
    usage_topic: Annotated[str, Option(help="Usage rows.")] = "token-usage",
    live_topic: Annotated[str, Option(help="Live summaries.")] = "token-live",
    rejected_topic: Annotated[str, Option(help="Dead letters.")] = "inference-logs-rejected",
    begin_at: Annotated[
        str,
        Option(help="beginning or end: of a partition that this group never read."),
    ] = "beginning",
    create_topics: Annotated[
        int,
        Option(
            min=0,
            max=10_000,
            metavar="PARTITIONS",
            help="Create missing output topics with so many partitions; 0: only say what is missing.",
        ),
    ] = 0,
    replication: Annotated[int, Option(min=1, max=9, help="Copies of topics that are created.")] = 1,
    listen: Annotated[
        str,
        Option(metavar="HOST:PORT", help="/metrics and /healthz; empty: none."),
    ] = "127.0.0.1:9464",
    log_format: Annotated[str, Option(help="json, or text for people.")] = "json",
    kafka: KafkaSettings = None,
) -> None:
    """Meter live Kafka topics, exactly once, until SIGTERM.

    Each option may also stand in the environment, --group as TOKENOMETER_METER_GROUP, or in the --config file.
    """
    name, input = name or socket.gethostname(), input or ["inference-logs"]
    settings = _settings(
        name,
        group,
        input,
        (usage_topic, live_topic, rejected_topic),
        commit_interval,
        begin_at,
    )
    client = pairs(kafka, "--kafka")
    heap.keep_freed_memory()
    start_logs(log_format)
    log_settings({key: value for key, value in locals().items() if key != "kafka"}, client)
    broker = open_broker(bootstrap, client)
    check_topics(broker, settings, create_topics, replication)
    target = open_target(known_device(device))
    engine = Engine(
        target,
        Referee(),
        secret=[secrets.randbits(64) for _ in range(8)],
        limits=cli.limits(target, None if memory is None else cli.memory_bytes(memory)),
        window_ms=window * 1000,
        max_future_skew_ms=max_future_skew * 1000,
        dedup_horizon_ms=dedup_horizon * 1000,
        sketch_seed=sketch_seed,
    )
    clock = Clock()
    health = Health(clock.now_ms, target.name)
    run = f"{settings.name}.{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"

    def committed(done: Committed) -> None:
        health.committed(done)
        _log_commit(done)

    with _served(health, listen), stop_signals() as stopped:
        Meter(broker, engine, settings, run, clock=clock, on_commit=committed).run(stopped)
    log.info("stopped", extra={"run": run})


def _settings(
    name: str, group: str, inputs: list[str], outputs: tuple[str, str, str], commit_seconds: float, begin_at: str
) -> MeterSettings:
    if not re.fullmatch(_NAME, name):
        raise typer.BadParameter(f"--name {name!r}: expected 1 to 80 of the characters 0-9 A-Z a-z . _ : -")
    if begin_at not in ("beginning", "end"):
        raise typer.BadParameter(f"--begin-at {begin_at}: expected beginning or end")
    if len(set(outputs)) < len(outputs):
        raise typer.BadParameter(f"three topics are written, and two have one name: {', '.join(outputs)}")
    return MeterSettings(
        name,
        group,
        _inputs(inputs, outputs),
        *outputs,
        commit_interval_ms=round(commit_seconds * 1000),
        from_end=begin_at == "end",
    )


def _inputs(texts: list[str], outputs: tuple[str, str, str]) -> dict[str, RecordMapping]:
    topics: dict[str, RecordMapping] = {}
    for text in texts:
        topic, _, mapping = text.partition("=")
        if topic in (*topics, *outputs):
            raise typer.BadParameter(f"--input {text}: the topic {topic} has another use already")
        topics[topic] = mappings.resolve(mapping or "native")
    return topics


def known_device(name: str) -> str:
    if name not in ("auto", "cuda", "cpu"):
        raise typer.BadParameter(f"--device {name}: expected auto, cuda or cpu")
    return name


# --- verify ---


@cli.app.command("verify")
def verify_command(
    config: Config = None,
    bootstrap: Bootstrap = "127.0.0.1:9092",
    input: Inputs = None,
    group: Annotated[str, Option(help="Whose commits are audited.")] = "tokenometer",
    window: Annotated[int, Option(min=1, max=86_400, metavar="SECONDS", help="As the meters have it.")] = 60,
    dedup_horizon: Annotated[int, Option(min=1, max=604_800, metavar="SECONDS", help="As the meters have it.")] = 600,
    max_future_skew: Annotated[
        int, Option(min=0, max=31_536_000, metavar="SECONDS", help="As the meters have it.")
    ] = 3600,
    usage_topic: Annotated[str, Option(help="Usage rows.")] = "token-usage",
    live_topic: Annotated[str, Option(help="Live summaries.")] = "token-live",
    rejected_topic: Annotated[str, Option(help="Dead letters.")] = "inference-logs-rejected",
    differences: Annotated[int, Option(min=0, max=100_000, metavar="N", help="Differing keys to show.")] = 20,
    processes: Annotated[
        int | None, Option(min=1, max=256, help="To judge the log with; default: one for each core.")
    ] = None,
    kafka: KafkaSettings = None,
) -> None:
    """Audit a metered stream: recompute every total from the log, without the engine, and compare.

    Exit code 1 and the differing keys, if one token differs.
    """
    from tokenometer.processor import verify
    from tokenometer.processor.verify.report import render

    settings = verify.Settings(
        usage_topic, live_topic, rejected_topic, window_ms=window * 1000, max_future_skew_ms=max_future_skew * 1000,
        dedup_horizon_ms=dedup_horizon * 1000, differences_max=differences, processes=processes or os.cpu_count() or 1,
    )  # fmt: skip
    broker = open_broker(bootstrap, pairs(kafka, "--kafka"))
    inputs = _inputs(input or ["inference-logs"], (usage_topic, live_topic, rejected_topic))
    with cli.progress_bar(None) as show:
        audit = verify.verify(broker, group, inputs, settings, _verify_progress(show))
    cli.show_view(render(audit))
    broker.close()
    if not audit.clean:
        raise typer.Exit(cli.EXIT_FAILURE)


def _verify_progress(show: Callable[[int, str], None] | None) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if show:
            show(done, f"{done:,} of at most {total:,} messages")

    return progress


# --- Topics ---


def check_input(broker: Broker, topic: str) -> None:
    if broker.topics([topic])[topic] is None:
        raise TopicMissing(f"the topic {topic} is not there; create it: {_command(topic, 6, 1, {})}")


def check_topics(broker: Broker, settings: MeterSettings, partitions: int, replication: int) -> None:
    """Are all topics there, and token-usage compacted? Creates the missing outputs if it may."""
    outputs = {
        settings.usage_topic: {"cleanup.policy": "compact"},
        settings.live_topic: {"cleanup.policy": "delete"},
        settings.rejected_topic: {"cleanup.policy": "delete"},
    }
    found = broker.topics([*settings.inputs, *outputs])
    for topic in settings.inputs:
        if found[topic] is None:
            raise TopicMissing(
                f"the input topic {topic} is not there; create it: {_command(topic, 6, replication, {})}"
            )
    for topic, wanted in outputs.items():
        state = found[topic]
        if state is None and partitions:
            broker.create_topic(topic, partitions, wanted, replication)
            log.info("topic created", extra={"topic": topic, "partitions": partitions, **wanted})
        elif state is None:
            raise TopicMissing(
                f"the topic {topic} is not there; use --create-topics 6, or create it: "
                f"{_command(topic, 6, replication, wanted)}"
            )
        elif "compact" in wanted["cleanup.policy"] and "compact" not in state.settings.get("cleanup.policy", ""):
            log.warning(
                "rows of %s will be deleted by retention instead of compacted; mend it: kafka-configs.sh "
                "--bootstrap-server HOST:PORT --alter --topic %s --add-config cleanup.policy=compact", topic, topic,
            )  # fmt: skip


def _command(topic: str, partitions: int, replication: int, settings: Mapping[str, str]) -> str:
    configs = "".join(f" --config {key}={value}" for key, value in settings.items())
    return (
        f"kafka-topics.sh --bootstrap-server HOST:PORT --create --topic {topic} --partitions {partitions} "
        f"--replication-factor {replication}{configs}"
    )


# --- Running ---


@contextlib.contextmanager
def _served(health: Health, listen: str) -> Iterator[None]:
    if not listen:
        yield
        return
    host, _, port = listen.rpartition(":")
    if not host or not port.isdigit():
        raise typer.BadParameter(f"--listen {listen!r}: expected HOST:PORT")
    try:
        server = health.serve(host, int(port))
    except OSError as error:
        raise BrokerError(
            f"--listen {listen}: {error.strerror}; choose another port, or none with --listen ''"
        ) from None
    if host not in _LOOPBACK:
        log.warning("metrics are served to other machines", extra={"listen": listen})
    log.info("serving /metrics and /healthz", extra={"host": host, "port": server.port})
    try:
        yield
    finally:
        server.close()


@contextlib.contextmanager
def stop_signals() -> Iterator[Any]:
    """Did SIGTERM or SIGINT come? The second one ends the process at once."""
    stop = threading.Event()

    def note(number: int, _: Any) -> None:
        if stop.is_set():
            sys.exit(128 + number)
        stop.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def start_logs(form: str) -> None:
    if form not in ("json", "text"):
        raise typer.BadParameter(f"--log-format {form}: expected json or text")
    handler = logging.StreamHandler()
    if form == "json":
        handler.setFormatter(
            JsonFormatter("%(asctime)s %(levelname)s %(name)s %(message)s", rename_fields={"levelname": "level"})
        )
    else:
        handler.setFormatter(_TextFormatter())
    logging.getLogger("tokenometer").setLevel(logging.INFO)
    for logger in map(logging.getLogger, LOGGERS):
        logger.handlers, logger.propagate = [handler], False


class _TextFormatter(logging.Formatter):
    """A line for people: time, level, message, and what JSON would say beside it."""

    _KNOWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}

    def format(self, record: logging.LogRecord) -> str:
        more = " ".join(f"{key}={value}" for key, value in vars(record).items() if key not in self._KNOWN)
        line = f"{self.formatTime(record)} {record.levelname:7} {record.getMessage()}{'  ' if more else ''}{more}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def log_settings(given: dict[str, Any], client: Mapping[str, str]) -> None:
    shown = {key: value for key, value in given.items() if isinstance(value, str | int | float | list)}
    masked = {key: "***" if any(word in key for word in _SECRET_WORDS) else value for key, value in client.items()}
    log.info("settings", extra={**{f"setting.{key}": value for key, value in shown.items()}, "kafka": masked})


def _log_commit(done: Committed) -> None:
    summary = done.snapshot.summary
    log.info(
        "committed",
        extra={
            "part": summary.part,
            "sequence": summary.sequence,
            "rows": done.rows,
            "dead_letters": len(done.snapshot.letters),
            "records": summary.tally.read,
            "tokens": summary.totals.total_tokens,
            "took_ms": done.took_ms,
        },
    )
