"""What people and scripts are shown: numbers with units, the summary of a replay, what a mapping makes of a log.

It is pure: values go in, Rich renderables or plain dicts come out, and the command line prints them.
"""

from collections.abc import Mapping as Dict
from dataclasses import asdict, dataclass, field
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tokenometer.processor import show
from tokenometer.processor.files.replay import ReplaySummary
from tokenometer.processor.records.mapping_check import Check
from tokenometer.schemas.mapping import Mapping
from tokenometer.schemas.usage import DAY_MS, TARGET_TOKENS_PER_DAY, Usage

SUMMARY_SCHEMA = 1
_DAY_SECONDS = DAY_MS // 1000


@dataclass(frozen=True)
class Run:
    """How a replay was run: what a summary says beside its totals."""

    name: str
    files: list[str]
    mapping: str
    device: str
    seconds: float  # of reading, counting and writing
    out: str | None = None
    rejected: str | None = None
    by_label: Dict[str, Dict[str | None, Usage]] = field(default_factory=dict)  # of those that were asked for


# --- A replay's summary ---


def summary_dict(summary: ReplaySummary, run: Run) -> dict[str, Any]:
    """A summary for scripts: every number is exact, and shares and rates are left to the reader."""
    window = summary.busiest_window
    return {
        "schema": SUMMARY_SCHEMA,
        "run": run.name,
        "partial": summary.partial,
        "files": run.files,
        "mapping": run.mapping,
        "device": run.device,
        "seconds": round(run.seconds, 6),
        "read_bytes": summary.read_bytes,
        "log_bytes": summary.log_bytes,
        "records": {"read": summary.tally.read, **asdict(summary.tally)},
        "rejects": summary.rejects,
        "parts": summary.parts,
        "usage_rows": summary.usage_rows,
        "window_ms": summary.window_ms,
        "windows": summary.windows,
        "first_window_ms": summary.first_window_ms,
        "end_of_last_window_ms": summary.end_of_last_window_ms,
        "busiest_window": asdict(window) if window else None,
        "usage": summary.usage.with_total(),
        "by_model": [{"model": name, **usage.with_total()} for name, usage in summary.by_model.items()],
        "by_chip": [{"chip": name, **usage.with_total()} for name, usage in summary.by_chip.items()],
        "by_model_and_chip": [
            {"model": model, "chip": chip, **usage.with_total()}
            for (model, chip), usage in summary.by_model_and_chip.items()
        ],
        **_labels_dict(run),
        "top_users": [{"user": user, "total_tokens": tokens} for user, tokens in summary.top_users],
        "active_users_estimate": summary.active_users,
        "active_users_understated": summary.active_users_understated,
    }


def _labels_dict(run: Run) -> dict[str, Any]:
    """null: rows without the label."""
    if not run.by_label:
        return {}
    lists = {
        name: [{"value": value, **usage.with_total()} for value, usage in usages.items()]
        for name, usages in run.by_label.items()
    }
    return {"by_label": lists}


def _named(usages: Dict[str | None, Usage]) -> dict[str, Usage]:
    """With a name for what has no value, which no value has."""
    none = "(none)"
    while none in usages:
        none = f"({none})"
    return {none if value is None else value: usage for value, usage in usages.items()}


def summary_view(summary: ReplaySummary, run: Run, bars: bool = False) -> RenderableType:
    """A summary for people. The bars beside the shares need 100 columns."""
    parts: list[RenderableType] = [_headline(summary), _facts(summary, run)]
    total = summary.usage.total_tokens
    if summary.tally.counted:
        tables = [
            usage_table("Model", summary.by_model, total, bars),
            usage_table("Chip", summary.by_chip, total, bars),
        ]
        for name, usages in run.by_label.items():
            tables.append(usage_table(name, _named(usages), total, bars))
        tables += [_users_table(summary, bars)] if summary.top_users else []
        names = [name for usages in (summary.by_model, summary.by_chip) for name, _ in _shortened(usages)]
        names += [user for user, _ in summary.top_users]
        for table in tables:  # of one width, so that their first numbers are in one column
            table.columns[0].min_width = min(_NAME_WIDTH_MAX, max(map(cell_len, names)))
        parts += [Padding(table, (0, 0, 1, 0)) for table in tables]
    if summary.rejects:
        parts.append(_rejects_table(summary))
    return Group(*parts)


def _headline(summary: ReplaySummary) -> Text:
    tokens = Text(f"{show.si(summary.usage.total_tokens)} tokens", "bold green")
    text = Text.assemble(tokens, f" in {show.plural(summary.usage.requests, 'request')}")
    if summary.partial:
        text = Text.assemble(("PARTIAL, interrupted before the end: ", "bold red"), text)
    return text


def _facts(summary: ReplaySummary, run: Run) -> RenderableType:
    """Name and value pairs, one line each where the terminal is wide enough."""
    tally, usage = summary.tally, summary.usage
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")

    def fact(name: str, *values: str) -> None:
        text = "\n".join(value for value in values if value)
        grid.add_row(name, Text(show.printable_lines(text)))

    fact("Log", f"{_files(run.files)}, {_sizes(summary)}, mapping {run.mapping}")
    fact("Device", f"{run.device}, {show.seconds(run.seconds)}{_speed(summary, run.seconds)}")
    fact(
        "Records",
        f"{tally.read:,} = {tally.counted:,} counted + {show.plural(tally.duplicates, 'duplicate')}"
        f" + {tally.rejected:,} rejected + {tally.empty:,} empty"
        + (f" + {tally.skipped:,} skipped" if tally.skipped else ""),
        f"{tally.conflicts:,} of the duplicates say something else" if tally.conflicts else "",
    )
    if tally.counted:
        reasoning = usage.reasoning_tokens
        thought = f", {show.percent(reasoning / usage.output_tokens)} reasoning" if reasoning else ""
        fact("Input", f"{usage.input_tokens:,} tokens{_of_which(usage)}")
        fact("Output", f"{usage.output_tokens:,} tokens{thought}")
        fact("Users", _users(summary))
        fact("Windows", _windows(summary))
        fact("Busiest", _busiest(summary))
    rows, parts = show.plural(summary.usage_rows, "usage row"), show.plural(summary.parts, "part")
    fact("Rows", f"{rows} in {parts}{_to(run.out, summary)}")
    if run.rejected:
        fact("Rejected", f"{show.plural(tally.rejected + tally.conflicts, 'dead letter')}{_to(run.rejected, summary)}")
    return Padding(grid, (1, 0))


def _files(files: list[str]) -> str:
    shown = "standard input" if files[0] == "-" else files[0]
    return shown if len(files) == 1 else f"{shown} and {len(files) - 1} more"


def _sizes(summary: ReplaySummary) -> str:
    log = f"{show.si(summary.log_bytes)}B"
    return (
        log if summary.read_bytes >= summary.log_bytes * 0.99 else f"{log} ({show.si(summary.read_bytes)}B compressed)"
    )


def _speed(summary: ReplaySummary, elapsed: float) -> str:
    if elapsed <= 0 or not summary.tally.read:
        return ""
    tokens = summary.usage.total_tokens / elapsed
    return (
        f": {show.si(summary.tally.read / elapsed)} records/s, {show.si(summary.log_bytes / elapsed)}B/s, "
        f"{show.si(tokens)} tokens/s\n"
        f"a day at this pace: {show.si(tokens * _DAY_SECONDS)} tokens, "
        f"{show.share_of(tokens * _DAY_SECONDS, TARGET_TOKENS_PER_DAY)}"
    )


def _of_which(usage: Usage) -> str:
    parts = {"cached": usage.cached_input_tokens, "cache write": usage.cache_write_tokens}
    return "".join(f", {show.percent(count / usage.input_tokens)} {name}" for name, count in parts.items() if count)


def _users(summary: ReplaySummary) -> str:
    each = summary.usage.total_tokens / summary.active_users if summary.active_users else 0
    least = "at least " if summary.active_users_understated else ""
    return f"{least}{summary.active_users:,} active (estimated, ± 0.8 %), {show.si(each)} tokens each"


def _windows(summary: ReplaySummary) -> str:
    assert summary.first_window_ms is not None and summary.end_of_last_window_ms is not None
    return (
        f"{summary.windows:,} of {summary.window_ms // 1000} s, "
        f"{show.time(summary.first_window_ms)} to {show.time(summary.end_of_last_window_ms)}"
    )


def _busiest(summary: ReplaySummary) -> str:
    window = summary.busiest_window
    assert window is not None
    return (
        f"{show.time(window.start_ms)}, {show.si(window.tokens * 1000 / summary.window_ms)} tokens/s = "
        f"{show.si(window.tokens_per_day)} a day, {show.share_of(window.tokens_per_day, TARGET_TOKENS_PER_DAY)}"
    )


def _to(name: str | None, summary: ReplaySummary) -> str:
    if name is None:
        return ""
    return f"; {name} not written, because the replay is partial" if summary.partial else f", written to {name}"


# --- Its tables ---

_ROWS_MAX = 20  # of models or chips; the others are one line
_NAME_WIDTH_MAX = 24
_BAR_WIDTH = 24


def usage_table(title: str, usages: Dict[str, Usage], total: int, bars: bool) -> Table:
    table = _table(title, "Requests", "Input", "Output", "Tokens", "Share", bars=bars)
    for name, usage in _shortened(usages):
        tokens = usage.total_tokens
        row = (f"{usage.requests:,}", show.si(usage.input_tokens), show.si(usage.output_tokens), f"{tokens:,}")
        _add_row(table, name, row, tokens, total)
    return table


def _shortened(usages: Dict[str, Usage]) -> list[tuple[str, Usage]]:
    named = list(usages.items())
    if len(named) <= _ROWS_MAX:
        return named
    others = named[_ROWS_MAX - 1 :]
    return [*named[: _ROWS_MAX - 1], (f"({len(others):,} others)", Usage.sum_of(usage for _, usage in others))]


def _users_table(summary: ReplaySummary, bars: bool) -> Table:
    table = _table(f"Top {show.plural(len(summary.top_users), 'user')}", "Tokens", "Share", bars=bars)
    for user, tokens in summary.top_users:
        _add_row(table, user, (f"{tokens:,}",), tokens, summary.usage.total_tokens)
    return table


def _plain_table() -> Table:
    return Table(box=box.SIMPLE_HEAD, header_style="bold", border_style="dim", pad_edge=False, show_edge=False)


def _table(name: str, *columns: str, bars: bool) -> Table:
    table = _plain_table()
    table.add_column(name, overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    if bars:
        table.add_column("", no_wrap=True, style="cyan")
    return table


def _add_row(table: Table, name: str, cells: tuple[str, ...], tokens: int, total: int) -> None:
    share = tokens / total if total else 0
    bar = [_bar(share)] if len(table.columns) == len(cells) + 3 else []
    shown = f"{share * 100:.1f} %" if share >= 0.0005 or not share else "< 0.1 %"
    table.add_row(Text(show.printable(name)), *cells, shown, *bar)


def _bar(share: float) -> str:
    """In eighths of a character."""
    whole, eighths = divmod(round(share * _BAR_WIDTH * 8), 8)
    return "█" * whole + " ▏▎▍▌▋▊▉"[eighths].strip()


def _rejects_table(summary: ReplaySummary) -> Table:
    by_reason: dict[str, dict[str, int]] = {}
    for key, count in summary.rejects.items():
        reason, _, field = key.partition(":")
        by_reason.setdefault(reason, {})[field] = count
    table = _plain_table()
    table.add_column("Rejected", no_wrap=True)
    table.add_column("Records", justify="right", no_wrap=True)
    table.add_column("Field at fault")
    for reason, fields in sorted(by_reason.items(), key=lambda item: (-sum(item[1].values()), item[0])):
        named = ", ".join(f"{field} {count:,}" for field, count in fields.items() if field)
        table.add_row(reason, f"{sum(fields.values()):,}", named)
    return table


# --- What a mapping makes of a log ---

_EXAMPLE_WIDTH = 16


def check_view(check: Check, mapping: Mapping, log: str) -> RenderableType:
    head = Text.assemble(
        (
            f"{check.counted:,} of {show.plural(check.read, 'record')}",
            "bold green" if not check.rejects else "bold yellow",
        ),
        f" of {show.printable(log)} would be counted with {mapping.name}, "
        f"{check.rejected:,} rejected, {check.empty:,} empty{_repeats(check)}\n",
    )
    parts: list[RenderableType] = [head]
    if check.hints:
        parts.append(Text("\n".join(f"{show.printable(hint)}." for hint in check.hints) + "\n", "yellow"))
    if check.counted:
        parts.append(Padding(_fields_table(check), (0, 0, 1, 0)))
    if check.rejects:
        parts.append(_examples_table(check))
    return Group(*parts)


def _repeats(check: Check) -> str:
    """Names duplicates only where there are any, because most samples have none."""
    skipped = f", {check.skipped:,} skipped" if check.skipped else ""
    if not check.duplicates:
        return skipped
    duplicates = f"{skipped}, {show.plural(check.duplicates, 'duplicate')}"
    if check.first_conflict is None:
        return duplicates
    return f"{duplicates}, of which {check.conflicts:,} say something else (the first is line {check.first_conflict:,})"


def _fields_table(check: Check) -> Table:
    table = _plain_table()
    table.add_column("Field", no_wrap=True)
    table.add_column("Records", justify="right", no_wrap=True)
    table.add_column("Sum", justify="right", no_wrap=True)
    table.add_column("First values", overflow="fold")
    for name, values in check.fields.items():
        total = "" if values.total is None else f"{values.total:,}"
        table.add_row(name, f"{values.records:,}", total, Text(_examples(name, values.examples)))
    return table


def _examples(field: str, values: list[str | int]) -> str:
    """Puts values one below the other where they are long."""

    def text(value: str | int) -> str:
        if isinstance(value, str):
            return show.printable(value)
        return show.time(value) if field == "timestamp" else f"{value:,}"

    shown = list(map(text, values))
    return ("\n" if max(map(len, shown), default=0) > _EXAMPLE_WIDTH else ", ").join(shown)


def _examples_table(check: Check) -> Table:
    table = _plain_table()
    table.add_column("Rejected", no_wrap=True)
    table.add_column("Records", justify="right", no_wrap=True)
    table.add_column("First at", justify="right", no_wrap=True)
    table.add_column("Record", overflow="fold")
    for (reason, at_fault), rejects in check.rejects.items():
        name = f"{reason}\n{at_fault}" if at_fault else reason
        table.add_row(name, f"{rejects.records:,}", f"line {rejects.line:,}", Text(_excerpt(rejects.value)))
    return table


def _excerpt(value: bytes, most: int = 120) -> str:
    text = value[: most * 4].decode(errors="backslashreplace")
    return show.printable(text[:most]) + (" ..." if len(value) > most else "")
