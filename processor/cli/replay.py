"""The command `replay`: logs in files are metered, or go into a topic."""

import contextlib
import dataclasses
import itertools
import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

import orjson
import typer
from typer import Argument, Option

from tokenometer.kernels.values import UsageRows
from tokenometer.processor import create, show
from tokenometer.processor.cli import mapping_names
from tokenometer.processor.cli.common import (
    EXIT_INTERRUPTED,
    EXIT_STRICT,
    ctrl_c,
    fail,
    progress_bar,
    show_view,
    stdout_console,
    usage_error,
)
from tokenometer.processor.cli.options import Device, DeviceName, Force, Memory, ToKafkaSettings, Window
from tokenometer.processor.files import decoded, logs, metering, output, report
from tokenometer.processor.files.clock import FixedClock, LogClock
from tokenometer.processor.files.label_sums import LabelSums
from tokenometer.processor.files.replay import Outlets, ReplayProgress, ReplaySummary, replay
from tokenometer.processor.records import engines, plausible
from tokenometer.processor.records.referee import TIME_END_MS, Referee
from tokenometer.schemas.mapping import Mapping
from tokenometer.schemas.usage import DAY_MS, TARGET_TOKENS_PER_DAY

_BARS_WIDTH = 100


@dataclass(frozen=True)
class ReplayCommand(ToKafkaSettings):
    files: Annotated[
        list[str],
        Argument(
            help="Logs: newline-delimited JSON (plain, gzip or zstd; [bold]-[/] is standard input), a JSON array, CSV, "
            "Parquet, or what the mapping reads. Duplicates are found across all of them.",
            metavar="FILE",
            show_default=False,
        ),
    ] = dataclasses.field(kw_only=True)
    mapping: Annotated[
        str,
        Option(
            "--mapping",
            "-m",
            help="Where the fields are: a shipped mapping (see [bold]tokenometer mappings[/]) or a .toml file.",
        ),
    ] = "native"
    out: Annotated[
        str | None,
        Option(
            "--out",
            "-o",
            metavar="FILE",
            help="Write usage rows: .parquet, .ndjson, .ndjson.zst, .ndjson.gz; [bold]-[/] is NDJSON to standard "
            "output, the summary goes to standard error then.",
        ),
    ] = None
    rejected: Annotated[
        str | None,
        Option("--rejected", metavar="FILE", help="Write rejected records with their reason and place, as NDJSON."),
    ] = None
    force: Force = False
    device: DeviceName = Device.AUTO
    memory: Memory = None
    window: Window = 60
    top: Annotated[int, Option(min=0, max=10_000, metavar="N", help="How many users are shown.")] = 10
    by_label: Annotated[
        list[str] | None,
        Option("--by-label", metavar="LABEL", help="Show totals by this label of the mapping, too; may be repeated."),
    ] = None
    run_name: Annotated[
        str | None,
        Option(
            "--run", metavar="NAME", help="Parts are named NAME-part-1, ...; default: the time and a random number."
        ),
    ] = None  # fmt: skip
    not_before: Annotated[
        str,
        Option(
            metavar="DATE",
            help="The earliest date of an event. An earlier one has a wrong unit of time and is rejected.",
        ),
    ] = str(metering.NOT_BEFORE)
    dedup_horizon: Annotated[
        int | None,
        Option(
            min=1,
            max=604_800,
            metavar="SECONDS",
            help="Recognise a re-sent request for this long by the log's own times, as a meter of a topic of one "
            "partition does; default: to the end of the log. Slower: each record's time is read ahead.",
            show_default=False,
        ),
    ] = None
    message_time: Annotated[
        str | None,
        Option(
            metavar="TIME",
            help="The time of records that have none, where the mapping takes the message's: 2026-11-23T17:00:00Z. "
            "A file has no message time.",
            show_default=False,
        ),
    ] = None
    whole: Annotated[bool, Option("--whole", help="Each file is the value of one message, as a topic holds it.")] = (
        False
    )
    json: Annotated[bool, Option("--json", help="Print the summary as one JSON object.")] = False
    strict: Annotated[
        bool, Option("--strict", help="Exit with 3 if any record was rejected, and not only if none was counted.")
    ] = False

    def __post_init__(self) -> None:
        if self.run_name is not None and not re.fullmatch(r"[0-9A-Za-z._:-]{1,100}", self.run_name):
            usage_error(f"--run {self.run_name!r}: expected 1 to 100 of the characters 0-9 A-Z a-z . _ : -")
        if self.message_time is not None and (self.dedup_horizon is not None or self.to_kafka is not None):
            usage_error("--message-time: with --dedup-horizon and in Kafka records have message times of their own")


def _date_ms(text: str) -> int:
    try:
        return max(0, int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000))
    except ValueError:
        usage_error(f"--not-before {text!r}: expected a date such as 2015-01-01")


def _message_time_ms(text: str) -> int:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        at = None
    if at is None or at.tzinfo is None:
        usage_error(f"--message-time {text!r}: expected a time with its zone, such as 2026-11-23T17:00:00Z")
    return max(0, int(at.timestamp() * 1000))


class _Interrupted(Exception):
    """Leaves the files of a partial replay without their names."""

    def __init__(self, summary: ReplaySummary) -> None:
        super().__init__()
        self.summary = summary


def replay_command(command: ReplayCommand) -> None:
    """Meter logs: write exact usage rows, and show totals by model, chip and user. Or put the logs into a Kafka topic.

    The exit status is 3 where a log has records and none of them was counted.

    Examples:
        tokenometer replay requests.ndjson
        tokenometer replay *.ndjson.zst --out usage.parquet --rejected rejected.ndjson
        cat requests.ndjson | tokenometer replay - --mapping anthropic --json
        tokenometer replay requests.ndjson --to-kafka inference-logs --speed 10
    """
    if command.to_kafka is not None:
        from tokenometer.processor.cli.to_kafka import send_lines  # what it needs is not loaded to meter a file

        logs.size_of(command.files)  # a missing one is named before the first is sent
        every = itertools.chain.from_iterable(map(logs.read_lines, command.files))
        return send_lines(every, mapping_names.resolve(command.mapping), command)
    summary, ran = _metered(command)
    with contextlib.redirect_stdout(sys.stderr if create.STDOUT in (command.out, command.rejected) else sys.stdout):
        _print_summary(summary, ran, command.json)
    if summary.partial:
        fail("interrupted: the result is partial, and no file was written", EXIT_INTERRUPTED)
        raise typer.Exit(EXIT_INTERRUPTED)
    if why := _why_nothing(summary, ran):
        fail(why, EXIT_STRICT)
    if why or (command.strict and summary.tally.rejected):
        raise typer.Exit(EXIT_STRICT)


def _why_nothing(summary: ReplaySummary, ran: report.Run) -> str | None:
    """Where a log has records and none of them was counted. An empty log is no fault: some hours have no requests."""
    tally = summary.tally
    if tally.counted or not tally.judged + tally.skipped:
        return None
    if not tally.rejected:
        return f"nothing was counted: mapping {ran.mapping} skips all {show.plural(tally.skipped, 'record')}"
    fault, most = next(iter(summary.rejects.items()))
    reason, _, field = fault.partition(":")
    if reason == "bad_encoding":
        return (
            f"nothing was counted: {most:,} of {show.plural(tally.rejected, 'value')} rejected for bad_encoding; "
            f"each line was taken for a value. Is the file one message? Try --whole"
        )
    keys = f"; one of them has the keys {', '.join(summary.fault_keys)}" if summary.fault_keys else ""
    skipped = f", {tally.skipped:,} skipped" if tally.skipped else ""
    if (reason, field) == ("missing_field", "timestamp"):
        keys += "; if the records have no time at all, give them one with --message-time"
    if summary.fault_unit:
        keys = f"; these look like {plausible.NAMES[summary.fault_unit]}"
    return (
        f"nothing was counted: {show.plural(tally.rejected, 'record')} rejected{skipped}, "
        f"{most:,} of them for {reason}{f' of {field}' if field else ''}{keys}; "
        f"try another mapping: tokenometer mappings check {ran.mapping} --sample LOG, or tokenometer mappings guess LOG"
    )


def _metered(command: ReplayCommand) -> tuple[ReplaySummary, report.Run]:
    _check_names(command)
    total_bytes = logs.size_of(command.files)
    chosen = decoded.read_as(mapping_names.resolve(command.mapping), command.files)
    not_before_ms = _date_ms(command.not_before)
    settings, clock = _clock(command, chosen, not_before_ms)
    engine = engines.make_engine(
        command.device, command.memory, [chosen],
        window_ms=command.window * 1000, not_before_ms=not_before_ms, **settings,
    )  # fmt: skip
    labels = _label_sums(command, chosen)
    name = command.run_name or f"replay-{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
    begun = time.perf_counter()
    try:
        with _outlets(command, chosen, labels) as outlets, _progress(total_bytes) as progress, ctrl_c() as pressed:
            outlets = dataclasses.replace(outlets, progress=progress, stopped=pressed)
            reader = decoded.reader_of(command.files, chosen.value, decoded.decoder_of(chosen), command.whole)
            summary = replay(engine, reader.fill, chosen, name, outlets, command.top, clock)
            if summary.partial:
                raise _Interrupted(summary)
    except _Interrupted as interrupted:
        summary = interrupted.summary
    seconds = time.perf_counter() - begun
    run = report.Run(name, command.files, chosen.name, engine.target.name, seconds, command.out, command.rejected)
    return summary, dataclasses.replace(run, by_label=labels.sorted() if labels else {})


def _label_sums(command: ReplayCommand, mapping: Mapping) -> LabelSums | None:
    known = [label.name for label in mapping.labels]
    for name in command.by_label or []:
        if name not in known:
            usage_error(f"--by-label {name}: mapping {mapping.name} has {', '.join(known) or 'no labels'}")
    return LabelSums(command.by_label) if command.by_label else None


def _clock(
    command: ReplayCommand, mapping: Mapping, not_before_ms: int
) -> tuple[dict[str, int], LogClock | FixedClock | None]:
    """Settings of the engine, and the log's clock. That clock makes no record one of the future."""
    settings = {"max_future_skew_ms": TIME_END_MS}
    if command.message_time is not None:
        return settings, FixedClock(_message_time_ms(command.message_time))
    if command.dedup_horizon is None:
        return {}, None
    settings["dedup_horizon_ms"] = command.dedup_horizon * 1000
    return settings, LogClock(Referee(not_before_ms=not_before_ms), mapping)


def _check_names(command: ReplayCommand) -> None:
    """Checked before hours of work."""
    results = [name for name in (command.out, command.rejected) if name]
    for name in results:
        same = [*map(os.path.realpath, (*command.files, *results))].count(os.path.realpath(name)) > 1
        if same and name != create.STDOUT:
            usage_error(f"{name} is named twice; results need files of their own")
        create.check_free(name, command.force)
    if results == [create.STDOUT, create.STDOUT]:
        usage_error("--out and --rejected cannot both go to standard output")


@contextlib.contextmanager
def _outlets(command: ReplayCommand, mapping: Mapping, labels: LabelSums | None) -> Iterator[Outlets]:
    with contextlib.ExitStack() as stack:
        rows = stack.enter_context(output.open_rows(command.out, mapping, command.force)) if command.out else None
        letters = (
            stack.enter_context(output.open_letters(command.rejected, command.force)) if command.rejected else None
        )

        def take(some: UsageRows, part: str) -> None:
            if labels:
                labels.take(some)
            if rows:
                rows.write(some, part)

        yield Outlets(rows=take if rows or labels else None, letters=letters.write if letters else None)


def _print_summary(summary: ReplaySummary, ran: report.Run, json: bool) -> None:
    if json:
        text = orjson.dumps(report.summary_dict(summary, ran), option=orjson.OPT_INDENT_2).decode()
        print(show.printable_json(text))
        return
    show_view(report.summary_view(summary, ran, bars=sys.stdout.isatty() and stdout_console().width >= _BARS_WIDTH))


# --- Progress ---


@contextlib.contextmanager
def _progress(total_bytes: int | None) -> Iterator[Callable[[ReplayProgress], None] | None]:
    with progress_bar(total_bytes) as advance:
        yield None if advance is None else _Pace(advance)


class _Pace:
    """Turns snapshots into rates, a few times a second. It asks for tokens only as often as that is cheap."""

    _EVERY_SECONDS = 0.2
    _TOKENS_COST_SHARE = 0.02

    def __init__(self, advance: Callable[[int, str], None]) -> None:
        self._advance = advance
        self._begun = time.perf_counter()
        self._next = self._next_tokens = self._begun + self._EVERY_SECONDS
        self._tokens_per_second = 0.0

    def __call__(self, now: ReplayProgress) -> None:
        at = time.perf_counter()
        if at < self._next:
            return
        elapsed = at - self._begun
        if at >= self._next_tokens:
            self._tokens_per_second = now.tokens() / elapsed
            cost = time.perf_counter() - at
            self._next_tokens = at + max(self._EVERY_SECONDS, cost / self._TOKENS_COST_SHARE)
        records, size = show.si(now.records / elapsed), show.si(now.log_bytes / elapsed)
        tokens = self._tokens_per_second
        share = show.share_of(tokens * DAY_MS / 1000, TARGET_TOKENS_PER_DAY)
        self._advance(now.read_bytes, f"{records} records/s  {size}B/s  {show.si(tokens)} tokens/s  {share}/day")
        self._next = at + self._EVERY_SECONDS
