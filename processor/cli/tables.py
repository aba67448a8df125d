"""Rows as a table where the terminal is wide enough for every digit; else row after row, in lines of pairs."""

import re
import textwrap
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from tokenometer.processor import show
from tokenometer.processor.cli.common import say, show_view, stdout_console

_NAME_MIN = 20  # columns for a name, which may be folded; a time or a number may not
_WHOLE = re.compile(r"[-+0-9:.,TZ]*")
_GAP = 2
_WIDTH_MIN = 40  # of a line of pairs: room for the largest count
_NO_BREAK = "\u00a0"


def show_rows(names: Sequence[str], numbers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """rows: texts, first of `names`, then of `numbers`. A number is never cut or folded."""
    widths = [
        max(len(title), *(len(row[len(names) + place]) for row in rows), 0) if rows else len(title)
        for place, title in enumerate(numbers)
    ]
    columns = [[show.printable(row[place]) for row in rows] for place in range(len(names))]
    least = [_least(title, column) for title, column in zip(names, columns, strict=True)]
    spare = stdout_console().width - sum(widths) - sum(least) - _GAP * (len(names) + len(numbers))
    if spare < 0:
        for row in rows:
            _show_pairs(names, numbers, row)
        return
    table = Table(box=None, header_style="bold")
    for title, column, width in zip(names, columns, least, strict=True):
        more = min(spare, max(map(len, column), default=0) - width)
        spare -= max(more, 0)
        table.add_column(title, overflow="fold", width=width + max(more, 0))
    for title, width in zip(numbers, widths, strict=True):
        table.add_column(title, justify="right", no_wrap=True, min_width=width)
    for row in rows:
        table.add_row(*(Text(show.printable(text)) for text in row))
    show_view(table)


def _least(title: str, column: Sequence[str]) -> int:
    """The width that a column of names needs: its header, its times and numbers, and so much of a name."""
    return max([len(title), *(len(text) if _WHOLE.fullmatch(text) else min(len(text), _NAME_MIN) for text in column)])


def _show_pairs(names: Sequence[str], numbers: Sequence[str], row: Sequence[str]) -> None:
    """A long name is folded, a number is not."""
    _show_line([f"{title} {show.printable(text)}" for title, text in zip(names, row, strict=False)] or ["total"], "")
    _show_line([f"{title} {text}" for title, text in zip(numbers, row[len(names) :], strict=True)], "  ")


def _show_line(pairs: Sequence[str], indent: str) -> None:
    text = "  ".join(pair.replace(" ", _NO_BREAK) for pair in pairs)
    width = max(stdout_console().width, _WIDTH_MIN)
    for line in textwrap.wrap(text, width, initial_indent=indent, subsequent_indent="  ", break_on_hyphens=False):
        say(line.replace(_NO_BREAK, " "))
