"""The command `verify`: the audit of a metered stream."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import typer
from typer import Option

from tokenometer.processor.cli import running, topics
from tokenometer.processor.cli.common import EXIT_FAILURE, needs, progress_bar, show_view
from tokenometer.processor.cli.meter import (
    MAX_PAST_DAYS,
    ConflictLetters,
    DedupHorizon,
    FutureSkew,
    Inputs,
    LiveTopic,
    MaxPast,
    RejectedTopic,
    UsageTopic,
)
from tokenometer.processor.cli.options import Config, KafkaSettings, RegistrySettings, Window
from tokenometer.schemas.usage import DAY_MS


@dataclass(frozen=True)
class VerifyCommand(KafkaSettings, RegistrySettings):
    config: Config = None
    input: Inputs = None
    group: Annotated[str, Option(help="The group whose commits are audited.")] = "tokenometer"
    window: Window = 60
    dedup_horizon: DedupHorizon = 600
    max_future_skew: FutureSkew = 3600
    max_past: MaxPast = MAX_PAST_DAYS
    conflict_letters: ConflictLetters = True
    usage_topic: UsageTopic = topics.USAGE
    live_topic: LiveTopic = topics.LIVE
    rejected_topic: RejectedTopic = topics.REJECTED
    since: Annotated[
        str | None,
        Option(metavar="FILE", help="A checkpoint of a clean audit: only what was committed after it is audited."),
    ] = None
    checkpoint: Annotated[
        str | None,
        Option(metavar="FILE", help="Leave a checkpoint here if the audit is clean; it may be the file of --since."),
    ] = None
    differences: Annotated[int, Option(min=0, max=100_000, metavar="N", help="How many differing keys are shown.")] = 20
    processes: Annotated[
        int | None, Option(min=1, max=256, help="How many processes judge the log; by default one for each core.")
    ] = None


def verify_command(command: VerifyCommand) -> None:
    """Audit a metered stream. Every total is recomputed from the log, without the engine, and compared.

    The exit status is 1 if one token differs, and the differing keys are shown. --window, --dedup-horizon and
    --max-future-skew must be those of the meters. With --checkpoint a clean audit leaves a file, and with --since the
    next one goes on from there: a daily audit reads a day, and the log before it may be gone.

    Examples:
        tokenometer verify --bootstrap kafka:9092 --group billing
        tokenometer verify --input inference-logs=openai-chat --differences 100
        tokenometer verify --group billing --checkpoint billing.audit
        tokenometer verify --group billing --since billing.audit --checkpoint billing.audit
    """
    with needs("verify"):
        from tokenometer.processor import verify
        from tokenometer.processor.verify.report import render
        from tokenometer.processor.verify.sums import require_duckdb

    require_duckdb()  # before a log of hours is read
    outputs = command.usage_topic, command.live_topic, command.rejected_topic
    inputs = topics.inputs(command.input, outputs)
    topics.registry(inputs, command.registry_client)  # at once, not in the middle of the log
    settings = verify.VerifySettings(
        *outputs,
        window_ms=command.window * 1000,
        max_future_skew_ms=command.max_future_skew * 1000,
        max_past_ms=command.max_past * DAY_MS,
        conflict_letters=command.conflict_letters,
        dedup_horizon_ms=command.dedup_horizon * 1000,
        differences_max=command.differences,
        processes=command.processes or os.cpu_count() or 1,
        since=command.since,
        checkpoint=command.checkpoint,
        registry=tuple(client.items()) if (client := command.registry_client) else None,
    )
    broker = running.broker_of(command)
    with progress_bar(None) as advance:
        audit = verify.verify(broker, command.group, inputs, settings, _progress(advance))
    show_view(render(audit))
    broker.close()
    if not audit.clean:
        raise typer.Exit(EXIT_FAILURE)


def _progress(advance: Callable[[int, str], None] | None) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if advance:
            advance(done, f"{done:,} of at most {total:,} messages")

    return progress
