"""What `tokenometer top` shows: rolling totals as the screen of a terminal.

It is pure. Totals and what is known of the connection go in; a Rich renderable of at most `width` x `height` comes out.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.cells import cell_len, set_cell_size
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tokenometer.processor.dashboard.top_keys import AS_IT_COMES, HELP, Order, Wanted
from tokenometer.processor.show import percent, printable, si

WIDTH_MIN, HEIGHT_MIN = 60, 16
_TABLE_LINES = 3  # of a table beside its rows: its head, a rule, an empty line
_WIDE = 144  # columns, from which four tables fit side by side
_MATRIX_ROWS_MIN = 4  # of room, below which the tables need it more
_SPARKS = " ▁▂▃▄▅▆▇█"
_CATEGORIES = (
    ("uncached", "blue"),
    ("cached", "cyan"),
    ("written", "green"),
    ("output", "yellow"),
    ("reasoning", "magenta"),
)
_BLANK = "–"
_HEADS = {Order.TOKENS: "Tokens", Order.REQUESTS: "Requests", Order.OUTPUT: "Output"}
_ORDERS = {Order.TOKENS: "", Order.REQUESTS: "by requests", Order.OUTPUT: "by output", Order.NAME: "by name"}
_GAP = 3
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


@dataclass(frozen=True)
class Link:
    """What is known of the server."""

    url: str
    silent_ms: int | None = 0  # since the last totals came, where that is too long; else 0
    trouble: str = ""  # why the connection is lost
    rates: Sequence[float] = ()  # tokens/s, oldest first


def view(
    totals: dict[str, Any], link: Link, width: int, height: int, wanted: Wanted = AS_IT_COMES, keys: bool = False
) -> RenderableType:
    """The screen; it is cut where it does not fit, at the end of tables first. keys: somebody can press some."""
    width, height = max(width, WIDTH_MIN), max(height, HEIGHT_MIN)
    lines = [*_rates(totals, link, width), *_usage(totals, width), *_flow(totals, width)]
    if link.silent_ms or totals["stale"]:
        for line in lines:
            line.stylize("dim")
    if wanted.help:
        return Group(_title(totals, link, width), Text(""), _help())
    tables = _tables(totals, width, height - len(lines) - 2, wanted)
    told = _asked(wanted) or Text(_old(totals), "bold")
    told.truncate(width - 12, overflow="ellipsis")
    between = _between(told, Text("? for keys", "dim"), width) if keys else told
    return Group(_title(totals, link, width), *lines, between, *tables)


def _asked(wanted: Wanted) -> Text:
    """What is not as it comes: the filter and the order."""
    words = f"/{wanted.words}{'▏' if wanted.typing else ''}" if wanted.words or wanted.typing else ""
    return Text("  ".join(filter(None, (printable(words), _ORDERS[wanted.order]))), "bold yellow")


def _help() -> RenderableType:
    table = _table()
    table.add_column("Key", no_wrap=True)
    table.add_column("What it does")
    for key, text in HELP:
        table.add_row(Text(key, "bold"), Text(text))
    return table


# --- The lines at the top ---


def _title(totals: dict[str, Any], link: Link, width: int) -> Text:
    time = f"{totals['at'][11:19]} UTC"
    if link.silent_ms:
        state = Text(
            f" NO UPDATES for {duration(link.silent_ms)}: {link.trouble or 'the server sends nothing'} ",
            "bold white on red",
        )
    elif totals["stale"]:
        ages = [meter["age_ms"] for meter in totals["meters"]]
        text = f"no meter has committed for {duration(min(ages))}" if ages else "no meter has committed yet"
        state = Text(f" STALE: {text} ", "bold white on red")
    elif totals.get("misfits"):
        state = Text(f" NOT COUNTED: {_misfit(totals['misfits'])} ", "bold white on red")
    else:
        state = Text("live", "green")
    title = Text.assemble(("Tokenometer", "bold"), "  ", state, (f"  {printable(link.url)}", "dim"), no_wrap=True)
    title.truncate(width - len(time) - 1, overflow="ellipsis")
    return _between(title, Text(time, "dim"), width)


def _misfit(misfits: list[dict[str, Any]]) -> str:
    """The topic that does not fit its mapping, or the one of several of which most is lost."""
    worst = max(misfits, key=lambda misfit: misfit["rejected"])
    fault = worst["reason"] + (f" of {worst['field']}" if worst["field"] else "")
    others = f" and {len(misfits) - 1} more" if len(misfits) > 1 else ""
    return printable(f"{percent(worst['rejected'] / worst['judged'])} of {worst['topic']}, {fault}{others}")


def _rates(totals: dict[str, Any], link: Link, width: int) -> list[Text]:
    rate, share = totals["rate"], totals["rate"]["share_of_target"]
    now = Text.assemble(
        (f"{_si(rate['tokens_per_second'])} tokens/s", "bold green"),
        f"  {_si(rate['requests_per_second'])} requests/s  ",
    )
    now.append(spark(link.rates, width - now.cell_len - 11), "green")
    of_target = f"{_BLANK if share is None else percent(share)} of {si(rate['target_tokens_per_day'])}"
    day = Text.assemble((_si(rate["tokens_per_day"]), "bold"), f" a day, {of_target}  ")
    cells = max(0, width - day.cell_len - 11)
    filled = round(min(1.0, share or 0.0) * cells)
    day.append("━" * filled, "green").append("━" * (cells - filled), "bright_black")
    windows = totals["windows"]
    sums = [f"{name} {_si(windows[key]['tokens']['total_tokens'])}" for name, key in (
        ("today", "today"), ("yesterday", "yesterday"), ("since start", "since_start"))]  # fmt: skip
    return [_line("Now", now), _line("Run-rate", day), _line("Tokens", Text(", ".join(sums)))]


def _usage(totals: dict[str, Any], width: int) -> list[Text]:
    windows = totals["windows"]
    active = []
    for name, key in (("min", "last_1m"), ("h", "last_1h"), ("day", "last_24h")):
        users, each = windows[key]["active_users"], windows[key]["tokens_per_active_user"]
        active.append(
            f"{_si(users)}/{name} ({_si(each)} tokens each)" if width >= 100 else f"{_si(users)}/{name} ({_si(each)})"
        )
    shares = _category_shares(windows["last_1h"]["tokens"])
    split = Text(", ").join(
        Text(f"{name} {share * 100:.0f} %", colour) for (name, colour), share in zip(_CATEGORIES, shares, strict=True)
    )
    return [_line("Users", Text(", ".join(active))), _line("Split", split)]


def _category_shares(tokens: dict[str, int]) -> list[float]:
    cached, written, reasoning = (tokens[f"{name}_tokens"] for name in ("cached_input", "cache_write", "reasoning"))
    parts = (tokens["input_tokens"] - cached - written, cached, written, tokens["output_tokens"] - reasoning, reasoning)
    return [part / tokens["total_tokens"] if tokens["total_tokens"] else 0.0 for part in parts]


def _flow(totals: dict[str, Any], width: int) -> list[Text]:
    records, complete = totals["records"], totals["complete_up_to"]
    flow = Text(
        f"lag {_si(totals['lag_messages'])} messages, fresh {duration(totals['freshness_ms'])}, "
        f"complete to {_moment(complete, totals['at']) if complete else _BLANK}"
    )
    told = Text(f"{si(records['read'])} read")
    for text in _fates(records, totals["rejects"]):  # as many as there is room for
        if told.cell_len + cell_len(text) > width - 11:
            break
        told.append(text, "yellow" if text.startswith((":", "; ")) else "")
    return [_line("Flow", flow), _line("Records", told)]


def _old(totals: dict[str, Any]) -> str:
    """Why the last hour is empty, where the log is older."""
    marks = [place["watermark"] for meter in totals["meters"] for place in meter["partitions"] if place["watermark"]]
    hour, newest = totals["windows"]["last_1h"], max(marks, default="")
    if not newest or hour["tokens"]["total_tokens"] or newest >= hour["from"]:
        return ""
    return f"The newest record is of {_moment(newest, totals['at'])} UTC; the last hour has nothing of it."


def _moment(instant: str, now: str) -> str:
    """17:05:13, with the day where it is not today's: 23 Nov 17:05:13."""
    day = "" if instant[:10] == now[:10] else f"{int(instant[8:10])} {_MONTHS[int(instant[5:7]) - 1]} "
    return f"{day}{instant[11:19]}"


def _fates(records: dict[str, int], rejects: dict[str, int]) -> Iterator[str]:
    """What became of records that are not counted. Kinds that most logs lack are named only where there are some."""
    yield f", {si(records['duplicates'])} duplicates, {si(records['rejected'])} rejected"
    if records["conflicts"]:
        yield f", {si(records['conflicts'])} conflicting"
    if records["skipped"]:
        yield f", {si(records['skipped'])} skipped"
    reasons = sorted((-count, reason) for reason, count in rejects.items() if count)
    for k, (count, reason) in enumerate(reasons):
        yield f"{'; ' if k else ': '}{printable(reason)} {si(-count)}"


def _line(name: str, value: Text) -> Text:
    line = Text.assemble((f"{name:<10}", "bold"), no_wrap=True, overflow="crop")
    return line.append_text(value)


def _between(left: Text, right: Text, width: int) -> Text:
    return left.append(" " * max(1, width - left.cell_len - right.cell_len)).append_text(right)


# --- Tables ---


def _tables(totals: dict[str, Any], width: int, height: int, wanted: Wanted) -> list[RenderableType]:
    """Four rankings in one row, or in two rows of two. The matrix comes below, where there is room and no filter."""
    hour = totals["windows"]["last_1h"]
    columns = 4 if width >= _WIDE else 2
    each = (width - _GAP * (columns - 1)) // columns
    matrix_rows = _matrix_rows(totals["matrix"], height // 2 if columns == 4 else height // 3)
    matrix_rows = 0 if wanted.words else matrix_rows
    blocks = 4 // columns
    room = height + 1 - (matrix_rows + _TABLE_LINES if matrix_rows else 0)  # the empty line above is counted already
    rows = max(1, room // blocks - _TABLE_LINES)

    def ranking(title: str, key: str, entries: list[dict[str, Any]]) -> Table:
        counter, ranked = wanted.ranked(entries, key)
        return _ranking((title, _HEADS[Order(counter)]), ranked, hour["tokens"][counter], each, rows)

    tables = [
        ranking("Model, last hour", "model", hour["by_model"]),
        ranking("Chip", "chip", hour["by_chip"]),
        ranking("Top users", "user", totals["top_users"]),
        _meters(wanted.of(totals["meters"], "meter"), each, rows),
    ]
    shown: list[RenderableType] = [_beside(tables[k : k + columns]) for k in range(0, 4, columns)]
    if matrix_rows:
        shown.append(_matrix(totals["matrix"], width, matrix_rows))
    return [part for table in shown for part in (Text(""), table)][1:]


def _beside(tables: list[Table]) -> Table:
    grid = Table.grid(padding=(0, _GAP, 0, 0), pad_edge=False)
    for _ in tables:
        grid.add_column(vertical="top")
    grid.add_row(*tables)
    return grid


def _table(width: int | None = None) -> Table:
    return Table(
        box=box.SIMPLE_HEAD, header_style="bold", border_style="dim", pad_edge=False, show_edge=False,
        padding=(0, 1, 0, 0), width=width,
    )  # fmt: skip


def _ranking(heads: tuple[str, str], entries: list[tuple[str, int]], whole: int, width: int, rows: int) -> Table:
    table = _table(width)
    table.add_column(heads[0], no_wrap=True, overflow="ellipsis", ratio=1)
    table.add_column(heads[1], justify="right", no_wrap=True)
    table.add_column("Share", justify="right", no_wrap=True)
    shown = entries if len(entries) <= rows else entries[: rows - 1]
    for name, tokens in shown:
        table.add_row(Text(printable(name)), si(tokens), percent(tokens / whole) if whole else _BLANK)
    if len(entries) > len(shown):
        rest = sum(tokens for _, tokens in entries[len(shown) :])
        table.add_row(
            Text(f"{len(entries) - len(shown):,} more", "italic dim"),
            si(rest),
            percent(rest / whole) if whole else _BLANK,
        )
    return table


def _meters(meters: list[dict[str, Any]], width: int, rows: int) -> Table:
    table = _table(width)
    table.add_column(f"Meter ({len(meters):,})", no_wrap=True, overflow="ellipsis", ratio=1)
    for name in ("State", "Lag", "Fresh"):
        table.add_column(name, justify="right", no_wrap=True)
    ranked = sorted(meters, key=lambda meter: (meter["state"] == "live", _natural(meter["meter"])))  # stale ones first
    for meter in ranked[:rows]:
        state = _STATES.get(meter["state"]) or Text(f"{meter['state']} {duration(meter['age_ms'])}", "bold red")
        label = Text.assemble(printable(meter["meter"]), (f" {printable(meter['device'])}", "dim"))
        table.add_row(label, state, _si(meter["lag_messages"]), duration(meter["freshness_ms"]))
    return table


_STATES = {"live": Text("live", "green"), "stopped": Text("stopped", "dim")}


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts meter-2 before meter-10."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"([0-9]+)", name)]


def _matrix_rows(matrix: dict[str, Any], most: int) -> int:
    """How many rows the matrix has: 0 where it would say no more than the two tables, or has no room."""
    sides, room = min(len(matrix["models"]), len(matrix["chips"])), most - _TABLE_LINES
    return min(len(matrix["models"]), room) if sides >= 2 and room >= _MATRIX_ROWS_MIN else 0


def _matrix(matrix: dict[str, Any], width: int, rows: int) -> Table:
    """Names have the room that there is: so that many chips fit, theirs are cut first."""
    name_width, cell_width = 24, 13
    chips = matrix["chips"][: (width - name_width) // (cell_width + 1)]
    longest = max(map(_cells, chips), default=0)
    cell_width = max(cell_width, min(longest, (width - name_width) // max(1, len(chips)) - 1))
    free = width - (cell_width + 1) * len(chips) - 1
    name_width = max(name_width, min(free, max(map(_cells, matrix["models"][:rows]), default=0)))
    table = _table()
    table.add_column("Model x chip, last hour", no_wrap=True, overflow="ellipsis", width=name_width)
    for chip in chips:
        table.add_column(Text(_short(chip, cell_width)), justify="right", no_wrap=True, width=cell_width)
    most = max((max(line, default=0) for line in matrix["total_tokens"]), default=0)
    for model, line in list(zip(matrix["models"], matrix["total_tokens"], strict=True))[:rows]:
        cells = [
            Text(si(tokens) if tokens else "·", "bold" if tokens * 4 >= most else "") for tokens in line[: len(chips)]
        ]
        table.add_row(Text(printable(model)), *cells)
    return table


# --- Words ---


def _short(name: str, cells: int) -> str:
    shown = printable(name)
    return shown if cell_len(shown) <= cells else set_cell_size(shown, cells - 1).rstrip() + "…"


def _cells(name: str) -> int:
    return cell_len(printable(name))


def _si(value: float | None) -> str:
    return _BLANK if value is None else si(value)


def duration(ms: float | None) -> str:
    if ms is None:
        return _BLANK
    if ms < 1000:
        return f"{max(0, round(ms))} ms"
    if ms < 10_000:
        return f"{ms / 1000:.1f} s"
    if ms < 120_000:
        return f"{int(ms // 1000)} s"
    return f"{int(ms // 60_000)} min" if ms < 7_200_000 else f"{int(ms // 3_600_000)} h"


def spark(values: Sequence[float], cells: int) -> str:
    """The newest values, one character each, from zero to the highest."""
    shown = values[-cells:] if cells > 0 else ()
    most = max(shown, default=0)
    return "".join(_SPARKS[min(8, int(value / most * 8 + 0.5))] if most else _SPARKS[1] for value in shown)
