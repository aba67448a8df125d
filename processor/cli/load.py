"""The command `ledger load`: rows of files into a ledger, without Kafka."""

import contextlib
from dataclasses import dataclass
from typing import Annotated

import typer
from typer import Option

from tokenometer.processor import show
from tokenometer.processor.cli.asking import DATABASE, Database
from tokenometer.processor.cli.common import needs, say
from tokenometer.processor.cli.options import CommandSettings, Config
from tokenometer.processor.ledger.values import BadRequest
from tokenometer.processor.secret import Secret


@dataclass(frozen=True)
class LoadCommand(CommandSettings):
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Rows, as replay writes them.")]
    config: Config = None
    database: Database = Secret(DATABASE, DATABASE)
    beside: Annotated[
        bool, Option("--beside-topics", help="Also into a ledger that reads topics: these rows are not in them.")
    ] = False


def load_command(command: LoadCommand) -> None:
    """Take usage rows of files into a ledger. The same file again changes nothing. A file whose parts the ledger has of
    other rows is refused.

    Examples:
        tokenometer ledger load usage.parquet --database ledger.duckdb
    """
    with needs("ledger"):
        from tokenometer.processor.ledger import files
        from tokenometer.processor.ledger.opening import open_database
        from tokenometer.processor.ledger.store import Store

    with contextlib.closing(Store(open_database(command.database.reveal(), writer=True))) as store:
        if store.positions and not command.beside:
            raise BadRequest(
                "this ledger reads topics; if the files were made of the same log, their usage would be counted twice. "
                "Use another database, or --beside-topics"
            )
        for name in command.files:
            loaded = files.load(store, name)
            say(f"{name}: {show.plural(loaded.rows, 'row')}, {loaded.new:,} of them new")
