"""What a demo shows while it runs, and at its end."""

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tokenometer.processor import show
from tokenometer.processor.demo.stream import View
from tokenometer.processor.files.report import usage_table
from tokenometer.schemas.usage import COUNTERS, DAY_MS, Usage

_DAY_SECONDS = DAY_MS // 1000


def live_view(view: View) -> RenderableType:
    """What a demo shows while it runs, and at its end."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    if view.totals is None:
        return Padding(Text("waiting for the first commit"), (1, 0))
    records, day = view.totals["records"], view.totals["windows"]["last_24h"]
    tokens = view.totals["windows"]["since_start"]["tokens"]
    target, seconds = view.totals["rate"]["target_tokens_per_day"], max(view.seconds, 1e-9)
    speed = view.tokens.total_tokens / seconds
    metered = f"{tokens['total_tokens']:,} tokens in {show.plural(tokens['requests'], 'request')}"
    grid.add_row(
        "Speed",
        Text.assemble(
            (f"{show.si(speed * _DAY_SECONDS)} tokens a day", "bold green"),
            f", {show.share_of(speed * _DAY_SECONDS, target)}: {show.si(view.read / seconds)} records/s "
            f"x {view.tokens.total_tokens / max(view.read, 1):,.0f} tokens x {_DAY_SECONDS:,} s",
        ),
    )
    grid.add_row("Metered", metered)
    grid.add_row(
        "Records", f"{view.read:,} of {view.expected:,} committed, {view.produced:,} sent, {show.seconds(view.seconds)}"
    )
    grid.add_row(
        "Of these",
        f"{records['counted']:,} counted, {records['duplicates']:,} duplicates, {records['rejected']:,} rejected",
    )
    grid.add_row("Users", f"{day['active_users'] or 0:,.0f} active in the last 24 hours")
    tables = []
    for title, name in (("Model", "model"), ("Chip", "chip")):
        usages = {row[name]: Usage(*(row[counter] for counter in COUNTERS)) for row in day[f"by_{name}"]}
        if usages:
            total = day["tokens"]["total_tokens"]
            tables.append(Padding(usage_table(title, usages, total, False), (0, 0, 1, 0)))
    return Group(Padding(grid, (1, 0)), *tables)
