"""The command `tokenometer`.

Owns: arguments, messages, exit codes; no arithmetic.

    0    done, also where a log has rejected records: they are reported
    1    a file, a mapping or a device that cannot be used; one line on stderr says which and what to do
    2    wrong arguments
    3    --strict, and the log has rejected records
    130  interrupted by Ctrl-C
    141  the reader of our output went away
"""

import contextlib
import dataclasses
import importlib.metadata
import itertools
import os
import re
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, NoReturn

import orjson
import typer
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn
from typer import Argument, Option

from tokenometer.kernels.build import BuildError
from tokenometer.kernels.engine import Engine, Limits, TablesTooSmall
from tokenometer.kernels.identities import IdentityMemoryError
from tokenometer.kernels.target import DeviceError, Target, open_target
from tokenometer.processor import show
from tokenometer.processor.files import logs, output, report
from tokenometer.processor.files.replay import Outlets, Snapshot, Summary, replay
from tokenometer.processor.load import produce, synth
from tokenometer.processor.load.profile import MODEL_NAMES, Profile
from tokenometer.processor.load.trace import TraceError, from_trace
from tokenometer.processor.records import mapping_check
from tokenometer.processor.records.referee import Referee
from tokenometer.schemas import mapping as mappings
from tokenometer.schemas.usage import DAY_MS, TARGET_TOKENS_PER_DAY

EXIT_FAILURE, EXIT_USAGE, EXIT_STRICT, EXIT_INTERRUPTED, EXIT_BROKEN_PIPE = 1, 2, 3, 130, 141
_FAILURES = (
    logs.LogError,
    output.OutputError,
    mappings.MappingError,
    TraceError,
    DeviceError,
    BuildError,
    TablesTooSmall,
    IdentityMemoryError,
)
_USAGE_ERROR: Any = typer.BadParameter.__base__  # the one class of wrong arguments in every version of typer
_BOOTSTRAP = "127.0.0.1:9092"
_WIDTH_PIPED = 120  # of tables that go to a file or another program
_BARS_WIDTH = 100
_REPLAY_WINDOWS = 1 << 13  # slots for windows, 16 KB each when used: four days of minutes in one part
_MEMORY_MIN = 256 << 20  # one message of 1 MiB may bring 10,000 rows and names
_CUDA_MEMORY_MAX = 16 << 30  # tables of more than this are asked for

app = typer.Typer(
    help="Exact token accounting for LLM inference logs: usage per user, model and chip.",
    no_args_is_help=False,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
mappings_app = typer.Typer(help="List, explain and check mappings: where a log's JSON holds each field.")
app.add_typer(mappings_app, name="mappings")


# --- Running and failing ---


def main() -> NoReturn:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that unfinished files are removed
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """The command line's exit code; messages of failures are one line."""
    from tokenometer.processor.cli import billing as cli_billing  # noqa: F401
    from tokenometer.processor.cli import demo as cli_demo  # noqa: F401
    from tokenometer.processor.cli import live as cli_live  # noqa: F401
    from tokenometer.processor.cli import rollup as cli_rollup  # noqa: F401
    from tokenometer.processor.cli import top as cli_top  # noqa: F401

    command: Any = typer.main.get_command(app)
    for option in itertools.chain.from_iterable(each.params for each in command.commands.values()):
        option.show_envvar = False  # each has one, TOKENOMETER_COMMAND_OPTION; thirty times that makes no help
    try:  # typer's own main has other exit codes
        with command.make_context("tokenometer", list(arguments), auto_envvar_prefix="TOKENOMETER") as context:
            command.invoke(context)
        sys.stdout.flush()
        return 0
    except typer.Exit as leaving:
        return leaving.exit_code
    except _USAGE_ERROR as error:
        return _fail(error.format_message(), EXIT_USAGE)
    except (*_FAILURES, *cli_live.FAILURES, *cli_billing.FAILURES, cli_rollup.RollupError, cli_top.TopError) as error:
        return _fail(str(error), EXIT_FAILURE)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", EXIT_INTERRUPTED)
    except BrokenPipeError:
        # The interpreter flushes stdout once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return EXIT_BROKEN_PIPE


def _fail(message: str, code: int) -> int:
    first, *more = message.splitlines() or [""]
    print(f"tokenometer: error: {first}", *more, sep="\n", file=sys.stderr)
    return code


def _usage_error(message: str) -> NoReturn:
    raise typer.BadParameter(message)


def stdout_console() -> Console:
    """Colours and width of the terminal; plain and wide for a file or a pipe."""
    if sys.stdout.isatty():
        return Console(highlight=False)
    return Console(highlight=False, width=int(os.environ.get("COLUMNS", 0)) or _WIDTH_PIPED)


def show_view(view: RenderableType) -> None:
    console = stdout_console()
    with console.capture() as captured:
        console.print(view)
    # Rich pads lines to their full width, which a file need not keep.
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def _version(wanted: bool) -> None:
    if wanted:
        print(f"tokenometer {importlib.metadata.version('tokenometer')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _top(
    context: typer.Context,
    version: Annotated[
        bool, Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help(), end="")
        raise typer.Exit(EXIT_USAGE)


# --- replay ---


def memory_bytes(text: str) -> int:
    """Bytes of `2GiB`, `500MB`, `1073741824`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", text.strip(), re.IGNORECASE | re.ASCII)
    if not match:
        _usage_error(f"--memory {text!r}: expected a size such as 2GiB or 500MB")
    size = int(float(match[1]) * (1024 if match[3] else 1000) ** " kmgt".index(match[2].lower() or " "))
    if size < _MEMORY_MIN:
        _usage_error(f"--memory {text}: expected 256MiB or more")
    return size


def _option(name: str, panel: str | None, text: str, short: str | None = None, **more: Any) -> Any:
    return Option(*filter(None, (name, short)), rich_help_panel=panel, help=text, **more)


def _to_kafka(name: str, text: str, **more: Any) -> Any:
    return _option(name, "To Kafka", text, **more)


@app.command("replay")
def replay_command(
    files: Annotated[
        list[str],
        Argument(
            help="Logs, newline-delimited JSON: plain, gzip or zstd, [bold]-[/] is standard input. Duplicates are "
            "found across all of them.",
            metavar="FILE",
            show_default=False,
        ),
    ],
    mapping: Annotated[
        str,
        Option(
            "--mapping",
            "-m",
            help="Where the fields are: a shipped mapping (see [bold]tokenometer mappings[/]) or a .toml file.",
        ),
    ] = "native",
    out: Annotated[
        str | None,
        Option(
            "--out",
            "-o",
            metavar="FILE",
            help="Write usage rows: .parquet, .ndjson, .ndjson.zst, .ndjson.gz; [bold]-[/] is NDJSON to standard "
            "output, the summary goes to standard error then.",
        ),
    ] = None,
    rejected: Annotated[
        str | None,
        Option("--rejected", metavar="FILE", help="Write rejected records with reason and place, as NDJSON."),
    ] = None,
    force: Annotated[bool, Option("--force", "-f", help="Replace files that exist.")] = False,
    device: Annotated[str, Option(help="auto, cuda or cpu; auto takes a GPU where there is one.")] = "auto",
    memory: Annotated[
        str | None, Option(metavar="SIZE", help="For all tables together, such as 2GiB; 256MiB or more.")
    ] = None,
    window: Annotated[int, Option(min=1, max=86_400, metavar="SECONDS", help="Length of a usage row's window.")] = 60,
    top: Annotated[int, Option(min=0, max=10_000, metavar="N", help="Users to show.")] = 10,
    run_name: Annotated[
        str | None,
        Option(
            "--run", metavar="NAME", help="Parts are named NAME-part-1, ...; default: the time and a random number."
        ),
    ] = None,
    json: Annotated[bool, Option("--json", help="Print the summary as one JSON object.")] = False,
    strict: Annotated[bool, Option("--strict", help="Exit with 3 if a record was rejected.")] = False,
    to_kafka: Annotated[str | None, _to_kafka("--to-kafka", "Put the logs into this topic instead of metering them.",
                                              metavar="TOPIC")] = None,
    bootstrap: Annotated[str, _to_kafka("--bootstrap", "Kafka's addresses.", metavar="HOST:PORT,...")] = _BOOTSTRAP,
    kafka: Annotated[list[str] | None, _to_kafka("--kafka", "A librdkafka setting.", metavar="KEY=VALUE")] = None,
    lines: Annotated[int, _to_kafka("--lines", "Records in a message.", min=1, max=10_000)] = 1,
    speed: Annotated[float | None, _to_kafka("--speed", "Times as fast as the log's clock; else as fast as it goes.",
                                             min=0.001, metavar="X", show_default=False)] = None,
) -> None:  # fmt: skip
    """Meter logs: exact usage rows, and totals by model, chip and user. Or put them into a Kafka topic."""
    if run_name is not None and not re.fullmatch(r"[0-9A-Za-z._:-]{1,100}", run_name):
        _usage_error(f"--run {run_name!r}: expected 1 to 100 of the characters 0-9 A-Z a-z . _ : -")
    if device not in ("auto", "cuda", "cpu"):
        _usage_error(f"--device {device}: expected auto, cuda or cpu")
    if to_kafka is not None:
        logs.size_of(files)  # a missing one is named before the first is sent
        every = itertools.chain.from_iterable(map(logs.read_lines, files))
        return _send(every, None, mappings.resolve(mapping), to_kafka, bootstrap, kafka, lines, speed)
    budget = None if memory is None else memory_bytes(memory)
    _check_names(files, out, rejected, force)
    total_bytes = logs.size_of(files)
    chosen = mappings.resolve(mapping)
    engine = _open_engine(device, budget, window)
    name = run_name or f"replay-{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
    begun = time.perf_counter()
    try:
        with _outlets(out, rejected, force) as outlets, _replay_progress(total_bytes) as progress, _ctrl_c() as pressed:
            outlets = dataclasses.replace(outlets, progress=progress, stopped=pressed)
            summary = replay(engine, logs.LogReader(files).fill, chosen, name, outlets, top)
            if summary.partial:
                raise _Interrupted(summary)
    except _Interrupted as interrupted:
        summary = interrupted.summary
    ran = report.Run(name, files, chosen.name, engine.target.name, time.perf_counter() - begun, out, rejected)
    with contextlib.redirect_stdout(sys.stderr if output.STDOUT in (out, rejected) else sys.stdout):
        _print_summary(summary, ran, json)
    if summary.partial:
        _fail("interrupted: the result is partial, and no file was written", EXIT_INTERRUPTED)
        raise typer.Exit(EXIT_INTERRUPTED)
    if strict and summary.tally.rejected:
        raise typer.Exit(EXIT_STRICT)


class _Interrupted(Exception):
    """Leaves the files of a partial replay without their names."""

    def __init__(self, summary: Summary) -> None:
        super().__init__()
        self.summary = summary


def _check_names(files: list[str], out: str | None, rejected: str | None, force: bool) -> None:
    """Before hours of work."""
    results = [name for name in (out, rejected) if name]
    for name in results:
        if [*map(os.path.realpath, (*files, *results))].count(os.path.realpath(name)) > 1 and name != output.STDOUT:
            _usage_error(f"{name} is named twice; results need files of their own")
        output.check_free(name, force)
    if results == [output.STDOUT, output.STDOUT]:
        _usage_error("--out and --rejected cannot both go to standard output")


def _open_engine(device: str, memory: int | None, window_seconds: int) -> Engine:
    target = open_target(device)
    return Engine(
        target,
        Referee(),
        secret=[secrets.randbits(64) for _ in range(8)],
        limits=limits(target, memory),
        window_ms=window_seconds * 1000,
    )


def limits(target: Target, memory: int | None) -> Limits:
    """Without --memory: half of a GPU's free memory, or modest tables on the host and half of its memory for ids."""
    free = target.memory()[0] // 2
    if memory is None and target.shares_memory:
        return Limits(windows=_REPLAY_WINDOWS, identity_bytes=free)
    return Limits.from_memory(min(free, _CUDA_MEMORY_MAX) if memory is None else memory, not target.shares_memory)


@contextlib.contextmanager
def _outlets(out: str | None, rejected: str | None, force: bool) -> Iterator[Outlets]:
    with contextlib.ExitStack() as stack:
        rows = stack.enter_context(output.open_rows(out, force)) if out else None
        letters = stack.enter_context(output.open_letters(rejected, force)) if rejected else None
        yield Outlets(rows=rows.write if rows else None, letters=letters.write if letters else None)


@contextlib.contextmanager
def _ctrl_c() -> Iterator[Callable[[], bool]]:
    """Was Ctrl-C pressed? A second time interrupts at once."""
    pressed = False

    def press(*_: Any) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)


def _print_summary(summary: Summary, ran: report.Run, json: bool) -> None:
    if json:
        print(orjson.dumps(report.summary_dict(summary, ran), option=orjson.OPT_INDENT_2).decode())
        return
    show_view(report.summary_view(summary, ran, bars=sys.stdout.isatty() and stdout_console().width >= _BARS_WIDTH))


# --- Progress: on stderr, where that is a terminal ---


@contextlib.contextmanager
def progress_bar(total: int | None) -> Iterator[Callable[[int, str], None] | None]:
    """Shows how much is done and a text; None where nobody watches."""
    if not sys.stderr.isatty():
        yield None
        return
    columns = (BarColumn(bar_width=None), TaskProgressColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True, expand=True) as bar:
        task: TaskID = bar.add_task("", total=total)
        yield lambda done, text: bar.update(task, completed=done, description=text)


@contextlib.contextmanager
def _replay_progress(total_bytes: int | None) -> Iterator[Callable[[Snapshot], None] | None]:
    with progress_bar(total_bytes) as advance:
        yield None if advance is None else _Pace(advance)


class _Pace:
    """Turns snapshots into rates, a few times a second. Tokens are asked for only as often as they are cheap."""

    _EVERY_SECONDS = 0.2
    _TOKENS_COST_SHARE = 0.02

    def __init__(self, advance: Callable[[int, str], None]) -> None:
        self._advance = advance
        self._begun = time.perf_counter()
        self._next = self._next_tokens = self._begun + self._EVERY_SECONDS
        self._tokens_per_second = 0.0

    def __call__(self, now: Snapshot) -> None:
        at = time.perf_counter()
        if at < self._next:
            return
        elapsed = at - self._begun
        if at >= self._next_tokens:
            self._tokens_per_second = now.tokens() / elapsed
            cost = time.perf_counter() - at
            self._next_tokens = at + max(self._EVERY_SECONDS, cost / self._TOKENS_COST_SHARE)
        records, size = show.si(now.records / elapsed), show.si(now.log_bytes / elapsed)
        tokens, share = (
            self._tokens_per_second,
            show.share_of(self._tokens_per_second * DAY_MS / 1000, TARGET_TOKENS_PER_DAY),
        )
        self._advance(now.read_bytes, f"{records} records/s  {size}B/s  {show.si(tokens)} tokens/s  {share}/day")
        self._next = at + self._EVERY_SECONDS


# --- synth ---

_PROFILE_OPTIONS = {"records": "--count"}  # where an option is not named like the setting
_NOT_OF_A_TRACE = (
    *("count", "duration", "rate", "models", "day_curve", "bursts", "input_median", "output_median", "token_sigma"),
    *("cached_share", "cache_write_share", "reasoning_share", "duplicates", "late", "future", "malformed", "escaped"),
    *("prefill", "compact"),
)
_ONLY_OF_A_TRACE = ("model", "repeat")
_LOG, _WHO, _SIZES, _FAULTS, _TRACE = "The log", "Users, models, chips", "Tokens", "Faults", "From a trace"


def _share(name: str, panel: str, text: str) -> Any:
    return _option(name, panel, text, metavar="SHARE")


def _start(text: str) -> int:
    """Milliseconds of an RFC 3339 time or of an integer."""
    if re.fullmatch(r"\d{1,15}", text, re.ASCII):
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        _usage_error(f"--start {text!r}: expected a time such as 2026-11-23T00:00:00Z, or milliseconds since 1970")
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


@app.command("synth")
def synth_command(
    context: typer.Context,
    out: Annotated[str, _option("--output", None, "Compressed if it ends in .zst or .gz.", short="-o", metavar="FILE",
                                show_default="standard output")] = "-",
    force: Annotated[bool, _option("--force", None, "Replace a file that exists.", short="-f")] = False,
    seed: Annotated[int, _option("--seed", _LOG, "The same seed gives the same log.")] = 1,
    count: Annotated[int | None, _option("--count", _LOG, "Records.", min=0, show_default="1000000")] = None,
    duration: Annotated[float | None, _option("--duration", _LOG, "Seconds of log time at --rate, instead of --count.",
                                              min=0, metavar="SECONDS", show_default=False)] = None,
    rate: Annotated[float, _option("--rate", _LOG, "Records per second of log time, on average.")] = 20_000.0,
    start: Annotated[str, _option("--start", _LOG, "When the log begins.", metavar="TIME")] = "2026-11-23T00:00:00Z",
    day_curve: Annotated[bool, _option("--day-curve", _LOG, "Busy at 15:00 UTC, quiet at 03:00.")] = False,
    bursts: Annotated[float, _share("--bursts", _LOG, "Share of time that is four times as busy.")] = 0.05,
    compact: Annotated[bool, _option("--compact", _LOG, "Only the needed fields: about 200 bytes a record.")] = False,
    users: Annotated[int, _option("--users", _WHO, "How many there are.")] = 50_000,
    user_skew: Annotated[float, _option("--user-skew", _WHO, "Zipf exponent; 0: all users alike.")] = 1.1,
    models: Annotated[int, _option("--models", _WHO, "How many there are.")] = 8,
    chips: Annotated[int, _option("--chips", _WHO, "How many kinds there are.")] = 6,
    prefill: Annotated[float, _share("--prefill", _WHO, "Requests with a chip of their own for prefill.")] = 0.05,
    input_median: Annotated[int, _option("--input-median", _SIZES, "Of the log-normal distribution.")] = 800,
    output_median: Annotated[int, _option("--output-median", _SIZES, "Of the log-normal distribution.")] = 160,
    token_sigma: Annotated[float, _option("--token-sigma", _SIZES, "Its width, of the logarithm.")] = 1.2,
    cached_share: Annotated[float, _share("--cached-share", _SIZES, "Requests with a cache hit.")] = 0.4,
    cache_write_share: Annotated[float, _share("--cache-write-share", _SIZES, "Requests that write the cache.")] = 0.05,
    reasoning_share: Annotated[float, _share("--reasoning-share", _SIZES, "Requests that reason.")] = 0.15,
    duplicates: Annotated[float, _share("--duplicates", _FAULTS, "Records that are sent again.")] = 0.001,
    late: Annotated[float, _share("--late", _FAULTS, "Records that come minutes to days late.")] = 0.002,
    future: Annotated[float, _share("--future", _FAULTS, "Records from hours to days ahead.")] = 0.0,
    malformed: Annotated[float, _share("--malformed", _FAULTS, "Records that must be rejected.")] = 0.0005,
    escaped: Annotated[float, _share("--escaped", _FAULTS, "Records spelled with JSON escapes.")] = 0.001,
    trace: Annotated[str | None, _option("--trace", _TRACE, "Times and token counts come from this CSV (or .csv.zst); "
                                         "of the options above, only --seed, --start, --users, --user-skew and --chips "
                                         "apply.", metavar="CSV")] = None,
    model: Annotated[str | None, _option("--model", _TRACE, "Where the trace names no model.", metavar="NAME",
                                         show_default=MODEL_NAMES[0])] = None,
    repeat: Annotated[int, _option("--repeat", _TRACE, "Play it so often, with new request ids.", metavar="N")] = 1,
    to_kafka: Annotated[str | None, _to_kafka("--to-kafka", "Put the log into this topic, keyed by user.",
                                              metavar="TOPIC")] = None,
    bootstrap: Annotated[str, _to_kafka("--bootstrap", "Kafka's addresses.", metavar="HOST:PORT,...")] = _BOOTSTRAP,
    kafka: Annotated[list[str] | None, _to_kafka("--kafka", "A librdkafka setting.", metavar="KEY=VALUE")] = None,
    lines: Annotated[int, _to_kafka("--lines", "Records in a message.", min=1, max=10_000)] = 1,
    speed: Annotated[float | None, _to_kafka("--speed", "Times as fast as the log's clock; else as fast as it goes.",
                                             min=0.001, metavar="X", show_default=False)] = None,
) -> None:  # fmt: skip
    """Write a synthetic request log, or turn a public trace into one. The same arguments give the same bytes."""
    given = {name for name in context.params if _is_given(context, name)}
    if count is not None and duration is not None:
        _usage_error("--count and --duration are two ways to say one thing; give one of them")
    wrong = sorted(given.intersection(_ONLY_OF_A_TRACE if trace is None else _NOT_OF_A_TRACE))
    if wrong:
        _usage_error(f"--{wrong[0].replace('_', '-')} has no meaning {'without' if trace is None else 'with'} --trace")
    start_ms = _start(start)
    wanted = 1_000_000 if count is None else count
    records = wanted if duration is None else round(duration * rate)
    try:
        if trace is not None:
            chunks = from_trace(
                trace, seed=seed, users=users, chips=chips, user_skew=user_skew, model=model, repeat=repeat,
                start_ms=start_ms if "start" in given else None,
            )  # fmt: skip
        else:
            settings = {field.name for field in dataclasses.fields(Profile)} & context.params.keys()
            values = {name: context.params[name] for name in settings}
            chunks = synth.generate(Profile(records, start_ms=start_ms, **values))
    except ValueError as error:
        _usage_error(_as_option(str(error)))
    if to_kafka is not None:
        every = itertools.chain.from_iterable(chunk.splitlines() for chunk in chunks)
        known = None if trace else records
        return _send(every, known, mappings.resolve("native"), to_kafka, bootstrap, kafka, lines, speed)
    _write_log(chunks, None if trace else records, out, force)


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _as_option(message: str) -> str:
    """`user_skew must be ...` as `--user-skew must be ...`."""
    name, space, rest = message.partition(" ")
    return f"{_PROFILE_OPTIONS.get(name, '--' + name.replace('_', '-'))}{space}{rest}"


def _write_log(chunks: Iterator[bytes], records: int | None, out: str, force: bool) -> None:
    if out == output.STDOUT and sys.stdout.isatty() and (records is None or records > 1000):
        _usage_error("a log of this size in a terminal? Redirect it, or name a file with -o")
    begun, lines, size = time.perf_counter(), 0, 0
    with output.create(out, force) as file, progress_bar(records) as advance:
        for chunk in chunks:
            file.write(chunk)
            lines, size = lines + chunk.count(b"\n"), size + len(chunk)
            if advance:
                elapsed = time.perf_counter() - begun
                advance(lines, f"{lines:,} records  {show.si(lines / elapsed)} records/s  {show.si(size)}B")
    if out != output.STDOUT:
        elapsed = time.perf_counter() - begun
        print(f"{out}: {show.plural(lines, 'record')}, {show.si(size)}B in {show.seconds(elapsed)}", file=sys.stderr)


# --- To Kafka ---


def _send(
    lines: Iterator[bytes],
    records: int | None,
    mapping: mappings.Mapping,
    topic: str,
    bootstrap: str,
    kafka: list[str] | None,
    lines_per_message: int,
    speed: float | None,
) -> None:
    from tokenometer.processor.cli import live as cli_live

    broker = cli_live.open_broker(bootstrap, cli_live.pairs(kafka, "--kafka"))
    cli_live.check_input(broker, topic)
    pacing = produce.Pacing(speed, lambda: time.monotonic_ns() // 1_000_000, time.sleep)
    begun = time.perf_counter()

    def progress(sent: produce.Sent) -> None:
        if advance:
            pace = show.si(sent.records / (time.perf_counter() - begun))
            advance(sent.records, f"{sent.records:,} records  {pace} records/s")

    with progress_bar(records) as advance:
        sent = produce.send(broker, topic, lines, mapping, Referee(), pacing, lines_per_message, progress)
    broker.close()
    elapsed = show.seconds(time.perf_counter() - begun)
    what = f"{show.plural(sent.records, 'record')} in {show.plural(sent.messages, 'message')}"
    print(f"{topic}: {what}, {show.si(sent.bytes)}B in {elapsed}", file=sys.stderr)


# --- mappings ---


@mappings_app.callback(invoke_without_command=True)
def mappings_list(context: typer.Context) -> None:
    """List, explain and check mappings: where a log's JSON holds each field."""
    if context.invoked_subcommand is None:
        show_view(report.mappings_view(map(mappings.resolve, mappings.shipped())))


@mappings_app.command("show")
def mappings_show(name: Annotated[str, Argument(help="A shipped mapping or a .toml file.")]) -> None:
    """Explain a mapping: where each field is read, and by which rule."""
    show_view(report.mapping_view(mappings.resolve(name)))


@mappings_app.command("check")
def mappings_check(
    name: Annotated[str, Argument(metavar="MAPPING", help="A .toml file or a shipped mapping.")],
    sample: Annotated[str, Option("--sample", metavar="LOG", help="A log to try it on; [bold]-[/] is standard input.")],
    records: Annotated[int, Option("--records", "-n", min=1, max=1_000_000, help="Of its beginning.")] = 1000,
    strict: Annotated[bool, Option("--strict", help="Exit with 3 if a record was rejected.")] = False,
) -> None:
    """Show what a mapping makes of the first records of a log."""
    chosen = mappings.resolve(name)
    logs.size_of([sample])
    found = mapping_check.check(itertools.islice(logs.read_lines(sample), records), chosen)
    show_view(report.check_view(found, chosen, "standard input" if sample == logs.STDIN else sample))
    if strict and found.rejects:
        raise typer.Exit(EXIT_STRICT)


if __name__ == "__main__":
    main()
