"""How the help of a command looks: the names of options are never cut.

typer gives a column each to the long name, the short one, their negatives, the type and the help. In 80 columns this is
more than there is, and names lose their ends. Here a row has two columns: the names with the type, and the help.
"""

from collections.abc import Sequence
from typing import Any

import typer.core
from rich.columns import Columns
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

_FLAG = "<bool>"  # the type of an option that has no value
_NAMES_WIDTH = 30  # names and a type that are longer together are one below the other


class OptionsTable(Table):
    """The table that typer makes for a panel of options. A table whose columns are named beforehand stays as it is."""

    _folds = False

    def add_row(self, *cells: Any, **more: Any) -> None:
        if not self.columns:
            self._folds = True
            self.add_column(no_wrap=True)
            self.add_column(overflow="fold", ratio=1)
        if self._folds:
            *names, kind, text = cells
            cells = _names(list(map(_as_text, names)), _as_text(kind)), _flowing(text)
        super().add_row(*cells, **more)


def _as_text(cell: Any) -> Text:
    return cell if isinstance(cell, Text) else Text(str(cell or ""))


def _names(names: Sequence[Text], kind: Text) -> Text:
    """`* FILE`, `--output -o FILE`, `--a / --no-a`. A long one takes several lines."""
    words = [word for word in (*names, kind) if word.plain and word.plain != _FLAG]
    length = sum(len(word.plain) + 1 for word in words)
    return Text(" " if length <= _NAMES_WIDTH else "\n  ").join(words)


def _flowing(cell: RenderableType) -> RenderableType:
    """The help and the default one after the other; columns of their own would be cut."""
    if isinstance(cell, Columns) and all(isinstance(each, Text) for each in cell.renderables):
        return Text(" ").join(each for each in cell.renderables if isinstance(each, Text))
    return cell


class Command(typer.core.TyperCommand):
    def format_help(self, ctx: Any, formatter: Any) -> None:
        keep_names()
        super().format_help(ctx, formatter)


class Group(typer.core.TyperGroup):
    def format_help(self, ctx: Any, formatter: Any) -> None:
        keep_names()
        super().format_help(ctx, formatter)


def keep_names() -> None:
    """From now on. typer has no setting for it."""
    from typer import rich_utils

    rich_utils.Table = OptionsTable  # type: ignore[attr-defined]
