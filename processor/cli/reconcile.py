"""The command `reconcile`: a provider's usage export against a ledger. Ends with 1 where they differ."""

import contextlib
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from typer import Option

from tokenometer.processor import show
from tokenometer.processor.cli.asking import DATABASE, Database
from tokenometer.processor.cli.common import EXIT_FAILURE, needs, say, write_json
from tokenometer.processor.cli.options import CommandSettings, Config
from tokenometer.processor.cli.tables import show_rows
from tokenometer.processor.ledger import provider
from tokenometer.processor.secret import Secret


@dataclass(frozen=True)
class ReconcileCommand(CommandSettings):
    file: Annotated[str, typer.Argument(metavar="FILE", help="A provider's usage export, CSV.")]
    config: Config = None
    database: Database = Secret(DATABASE, DATABASE)
    layout: Annotated[
        str | None,
        Option(metavar="NAME|FILE", help=f"{', '.join(provider.LAYOUTS)}, or a TOML file; else known by the columns."),
    ] = None
    user: Annotated[str | None, Option(help="Only the ledger's usage of this user.")] = None
    label: Annotated[list[str] | None, Option(metavar="NAME=VALUE", help="Only with this label; may be repeated.")] = (
        None
    )
    json: Annotated[bool, Option("--json", help="An object a line, for each difference.")] = False


def reconcile_command(command: ReconcileCommand) -> None:
    """Compare a provider's own usage export with the ledger, by day and model: where and by how much do they differ?

    Examples:
        tokenometer reconcile completions_usage.csv
        tokenometer reconcile claude_usage.csv --label provider=anthropic --json
        tokenometer reconcile bill.csv --layout bill-layout.toml
    """
    layout = None if command.layout is None else provider.layout_of(command.layout)
    export = provider.read(command.file, layout)
    only: dict[str, Any] = {"label": command.label} if command.label else {}
    only |= {"user": command.user} if command.user is not None else {}
    with needs("ledger"):
        from tokenometer.processor.ledger.opening import open_database

    with (
        contextlib.closing(open_database(command.database.reveal(), writer=False)) as opened,
        opened.snapshot() as moment,
    ):
        found = list(provider.compare(moment, export, only))
    if command.json:
        write_json(*({**vars(each), "difference": each.ours - each.theirs} for each in found))
    else:
        _show(export, found)
    if found or export.unknown:
        raise typer.Exit(EXIT_FAILURE)


def _show(export: provider.Export, found: list[provider.ExportDifference]) -> None:
    if found:
        rows = [
            [each.day, each.model, each.counter, f"{each.theirs:,}", f"{each.ours:,}", f"{each.ours - each.theirs:+,}"]
            for each in found
        ]
        show_rows(["day", "model", "counter"], ["provider", "ledger", "difference"], rows)
    for kind, quantity in sorted(export.unknown.items()):
        say(f"not compared: {quantity:,} of {kind}, which the layout does not name")
    say(f"{len(export.sums):,} days and models compared, {show.plural(len(found), 'difference')}")
