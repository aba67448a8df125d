"""The command `synth`: a synthetic request log, or one made of a public trace."""

import dataclasses
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

from typer import Option

from tokenometer.processor import create, show
from tokenometer.processor.cli.common import progress_bar, say, usage_error
from tokenometer.processor.cli.options import Force, ToKafkaSettings
from tokenometer.processor.load import synth
from tokenometer.processor.load.blocks import ahead
from tokenometer.processor.load.lines import Block
from tokenometer.processor.load.profile import MODEL_NAMES, Profile
from tokenometer.processor.load.trace import TraceError, trace_blocks
from tokenometer.processor.meter import heap

_START = "2026-11-23T00:00:00Z"
_RECORDS = 1_000_000
_TERMINAL_RECORDS_MAX = 1000  # more in a terminal was not meant
_NOT_OF_A_TRACE = (
    *("count", "duration", "rate", "models", "day_curve", "bursts", "input_median", "output_median", "token_sigma"),
    *("cached_share", "cache_write_share", "reasoning_share", "duplicates", "late", "future", "malformed", "escaped"),
    *("prefill", "compact"),
)
_ONLY_OF_A_TRACE = ("model", "repeat")
_LOG, _WHO, _SIZES, _FAULTS, _TRACE = "The log", "Users, models, chips", "Tokens", "Faults", "From a trace"


def _of(panel: str, text: str) -> Any:
    return Option(rich_help_panel=panel, help=text)


def _share(panel: str, text: str) -> Any:
    return Option(rich_help_panel=panel, help=text, metavar="SHARE")


@dataclass(frozen=True)
class SynthCommand(ToKafkaSettings):
    """Options that are named like a field of `Profile` become that field."""

    output: Annotated[
        str,
        Option("--output", "-o", metavar="FILE", help="Compressed if it ends in .zst or .gz.",
               show_default="standard output"),
    ] = create.STDOUT  # fmt: skip
    force: Force = False
    seed: Annotated[int, _of(_LOG, "The same seed gives the same log.")] = 1
    count: Annotated[
        int | None, Option(rich_help_panel=_LOG, help="Records.", min=0, show_default=str(_RECORDS))
    ] = None  # fmt: skip
    duration: Annotated[
        float | None,
        Option(rich_help_panel=_LOG, help="Seconds of log time at --rate, instead of --count.", min=0,
               metavar="SECONDS", show_default=False),
    ] = None  # fmt: skip
    rate: Annotated[float, _of(_LOG, "Records per second of log time, on average.")] = 20_000.0
    start: Annotated[
        str | None,
        Option(rich_help_panel=_LOG, help="When the log begins.", metavar="TIME",
               show_default=f"{_START}, or now with --speed"),
    ] = None  # fmt: skip
    day_curve: Annotated[
        bool, Option("--day-curve", rich_help_panel=_LOG, help="The log is busy at 15:00 UTC and quiet at 03:00.")
    ] = False
    bursts: Annotated[float, _share(_LOG, "Share of time that is four times as busy.")] = 0.05
    compact: Annotated[
        bool, Option("--compact", rich_help_panel=_LOG, help="Write only the needed fields, about 200 bytes a record.")
    ] = False
    users: Annotated[int, _of(_WHO, "How many there are.")] = 50_000
    user_skew: Annotated[float, _of(_WHO, "Zipf exponent; 0: all users alike.")] = 1.1
    models: Annotated[int, _of(_WHO, "How many there are.")] = 8
    chips: Annotated[int, _of(_WHO, "How many kinds there are.")] = 6
    prefill: Annotated[float, _share(_WHO, "Requests with a chip of their own for prefill.")] = 0.05
    input_median: Annotated[int, _of(_SIZES, "Of the log-normal distribution.")] = 800
    output_median: Annotated[int, _of(_SIZES, "Of the log-normal distribution.")] = 160
    token_sigma: Annotated[float, _of(_SIZES, "Its width, of the logarithm.")] = 1.2
    cached_share: Annotated[float, _share(_SIZES, "Requests with a cache hit.")] = 0.4
    cache_write_share: Annotated[float, _share(_SIZES, "Requests that write the cache.")] = 0.05
    reasoning_share: Annotated[float, _share(_SIZES, "Requests that reason.")] = 0.15
    duplicates: Annotated[float, _share(_FAULTS, "Records that are sent again.")] = 0.001
    late: Annotated[float, _share(_FAULTS, "Records that come minutes to days late.")] = 0.002
    future: Annotated[float, _share(_FAULTS, "Records from hours to days ahead.")] = 0.0
    malformed: Annotated[float, _share(_FAULTS, "Records that must be rejected.")] = 0.0005
    escaped: Annotated[float, _share(_FAULTS, "Records spelled with JSON escapes.")] = 0.001
    trace: Annotated[
        str | None,
        Option(
            rich_help_panel=_TRACE,
            metavar="CSV",
            help="Times and token counts come from this CSV (or .csv.zst); of the options above, only --seed, --start, "
            "--users, --user-skew and --chips apply.",
        ),
    ] = None
    model: Annotated[
        str | None,
        Option(rich_help_panel=_TRACE, help="The model of records of a trace that names none.", metavar="NAME",
               show_default=MODEL_NAMES[0]),
    ] = None  # fmt: skip
    repeat: Annotated[
        int, Option(rich_help_panel=_TRACE, help="How often it is played, each time with new request ids.", metavar="N")
    ] = 1

    def __post_init__(self) -> None:
        if self.count is not None and self.duration is not None:
            usage_error("--count and --duration are two ways to say one thing; give one of them")
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name in sorted(_ONLY_OF_A_TRACE if self.trace is None else _NOT_OF_A_TRACE):
            if getattr(self, name) != defaults[name]:
                word = "without" if self.trace is None else "with"
                usage_error(f"--{name.replace('_', '-')} has no meaning {word} --trace")

    @property
    def start_ms(self) -> int:
        """Milliseconds of an RFC 3339 time or of an integer. A log that is played at its own pace begins now."""
        if self.start is None and self.speed is not None:
            return time.time_ns() // 1_000_000
        text = self.start or _START
        if re.fullmatch(r"\d{1,15}", text, re.ASCII):
            return int(text)
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            usage_error(f"--start {text!r}: expected a time such as {_START}, or milliseconds since 1970")
        return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)

    @property
    def records(self) -> int | None:
        """How many records there are; None: as many as the trace has."""
        if self.trace is not None:
            return None
        wanted = _RECORDS if self.count is None else self.count
        return wanted if self.duration is None else round(self.duration * self.rate)

    def blocks(self) -> Iterator[Block]:
        """The log, some lines at a time."""
        start_ms = self.start_ms
        if self.trace is not None:
            return trace_blocks(
                self.trace, seed=self.seed, users=self.users, chips=self.chips, user_skew=self.user_skew,
                model=self.model, repeat=self.repeat, start_ms=start_ms if self.start or self.speed else None,
            )  # fmt: skip
        assert self.records is not None
        ours = {field.name for field in dataclasses.fields(self)}
        same = [field.name for field in dataclasses.fields(Profile) if field.name in ours]
        return synth.blocks(Profile(self.records, start_ms=start_ms, **{name: getattr(self, name) for name in same}))


def synth_command(command: SynthCommand) -> None:
    """Write a synthetic request log, or turn a public trace into one. The same arguments give the same bytes.

    Examples:
        tokenometer synth --count 100000 --output requests.ndjson.zst
        tokenometer synth --duration 60 --rate 5000 --duplicates 0.02 --malformed 0.01 > requests.ndjson
        tokenometer synth --trace trace.csv --repeat 3 -o requests.ndjson
        tokenometer synth --count 1000000 --to-kafka inference-logs --lines 50
    """
    heap.keep_freed_memory()
    try:
        blocks = command.blocks()
    except TraceError:
        raise
    except ValueError as error:
        usage_error(_as_option(str(error)))
    if command.to_kafka is not None:
        from tokenometer.processor.cli.to_kafka import send_blocks  # what it needs is not loaded to write a file

        return send_blocks(blocks, command.records, command)
    _write_log(blocks, command)


def _as_option(message: str) -> str:
    """`user_skew must be ...` as `--user-skew must be ...`."""
    name, space, rest = message.partition(" ")
    return f"--{'count' if name == 'records' else name.replace('_', '-')}{space}{rest}"


def _write_log(blocks: Iterator[Block], command: SynthCommand) -> None:
    out, records = command.output, command.records
    if out == create.STDOUT and sys.stdout.isatty() and (records is None or records > _TERMINAL_RECORDS_MAX):
        usage_error("a log of this size in a terminal? Redirect it, or name a file with -o")
    begun, lines, size = time.perf_counter(), 0, 0
    with create.create(out, command.force) as file, progress_bar(records) as advance:
        for block in ahead(blocks):
            file.write(block.data)
            lines, size = lines + len(block), size + len(block.data)
            if advance:
                elapsed = time.perf_counter() - begun
                advance(lines, f"{lines:,} records  {show.si(lines / elapsed)} records/s  {show.si(size)}B")
    if out != create.STDOUT:
        elapsed = time.perf_counter() - begun
        say(f"{out}: {show.plural(lines, 'record')}, {show.si(size)}B in {show.seconds(elapsed)}", sys.stderr)
