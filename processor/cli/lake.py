"""The command `lake`: usage rows into a table of Apache Iceberg, exactly once; its files, and its check."""

import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from tokenometer.processor import show
from tokenometer.processor.cli import running, topics
from tokenometer.processor.cli.asking import database
from tokenometer.processor.cli.common import EXIT_FAILURE, needs, say, usage_error
from tokenometer.processor.cli.options import Config, KafkaSettings, LogSettings
from tokenometer.processor.meter import heap
from tokenometer.processor.secret import Secret

if TYPE_CHECKING:
    from tokenometer.processor.lake.check import Comparison
    from tokenometer.processor.lake.table import LakeTable

_HOUR_MS = 3_600_000
_SHOWN = 20  # parts that differ


@dataclass(frozen=True)
class LakeCommand(KafkaSettings, LogSettings):
    config: Config = None
    warehouse: Annotated[
        str, Option(metavar="FOLDER", help="Where the table is, with its catalog in a SQLite file beside it.")
    ] = "lake"
    catalog: Annotated[
        str | None,
        Option(metavar="NAME", help="A catalog of pyiceberg's own configuration (REST, Glue, Hive, SQL) in its place."),
    ] = None
    table: Annotated[str, Option(metavar="NAMESPACE.TABLE")] = "tokenometer.usage"
    usage_topic: Annotated[str, Option(help="Usage rows.")] = topics.USAGE
    live_topic: Annotated[str, Option(help="Live summaries.")] = topics.LIVE
    group: Annotated[
        str, Option(help="The group of the meters: the last part of a meter that has left it is over. '' asks nobody.")
    ] = "tokenometer"
    writers: Annotated[
        str, Option(metavar="GROUP", help="Writers of one group share the partitions. With '' this one takes all.")
    ] = "tokenometer-lake"
    commit_interval: Annotated[
        float, Option(min=0, max=86_400, metavar="SECONDS", help="The shortest time between two snapshots.")
    ] = 60.0
    rows_max: Annotated[
        int, Option(min=1, help="The most rows of parts that go on, in memory: about 100 bytes each.")
    ] = 20_000_000
    once: Annotated[bool, Option("--once", help="Append what is final now, and end.")] = False
    accept_gap: Annotated[
        bool, Option("--accept-gap", help="Begin a table although retention has deleted older usage.")
    ] = False
    compact: Annotated[bool, Option("--compact", help="Put small files of a day together, and end.")] = False
    clean: Annotated[
        float | None,
        Option(min=1, metavar="HOURS", help="Delete data files older than this that no snapshot has, and end."),
    ] = None
    check: Annotated[
        bool, Option("--check", help="Compare the table with the meters' summaries, or with --against; and end.")
    ] = False
    against: Annotated[
        Secret | None,
        Option(
            parser=database,
            metavar="FILE|postgresql://...",
            help="A ledger's database that --check compares with. Without it the meters' summaries are compared.",
        ),
    ] = None

    def __post_init__(self) -> None:
        namespace, _, name = self.table.rpartition(".")
        if not namespace or not name:
            usage_error(f"--table {self.table}: expected NAMESPACE.TABLE")
        if sum((self.once, self.compact, self.check, self.clean is not None)) > 1:
            usage_error("--once, --compact, --clean and --check are commands of their own: give one of them")
        if self.against is not None and not self.check:
            usage_error("--against needs --check")


def lake_command(command: LakeCommand) -> None:
    """Append usage rows to a table of Apache Iceberg, exactly once, until SIGTERM: for Spark, Trino, DuckDB and others.

    Rows of a part are appended once the part has ended, and never change. Several writers share the partitions.
    docs/LAKE.md has the table's columns and queries.

    Examples:
        tokenometer lake --warehouse /data/lake
        tokenometer lake --catalog production --table billing.usage --kafka-file kafka.properties
        tokenometer lake --compact
        tokenometer lake --check --against ledger.duckdb
    """
    with needs("lake"):
        from tokenometer.processor.lake.table import LakeTable, configured, embedded

    running.start_logs(command)
    catalog = embedded(command.warehouse) if command.catalog is None else configured(command.catalog)
    table = LakeTable(catalog, command.table, create=not (command.compact or command.check or command.clean))
    if command.compact:
        before, after = table.compact()
        say(f"{command.table}: {before:,} small files have become {after:,}")
    elif command.clean is not None:
        gone = table.clean(round(command.clean * _HOUR_MS), time.time_ns() // 1_000_000)
        say(f"{command.table}: {len(gone):,} files that no snapshot has are deleted")
    elif command.check:
        _check(command, table)
    else:
        _write(command, table)


def _write(command: LakeCommand, table: "LakeTable") -> None:
    from tokenometer.processor.lake.writer import LakeWriter, WriterSettings

    settings = WriterSettings(
        command.usage_topic,
        command.live_topic,
        command.group or None,
        command.writers or None,
        round(command.commit_interval * 1000),
        command.rows_max,
        command.accept_gap,
    )
    heap.keep_freed_memory()  # a tenth of a row's cost
    broker = running.broker_of(command)
    command.log()
    with contextlib.closing(LakeWriter(broker, table, settings)) as writer, running.stop_signals() as stopped:
        writer.run(stopped, command.once)
    broker.close()
    if command.once:
        progress = writer.progress
        rows, commits = show.plural(progress.rows, "row"), show.plural(progress.commits, "commit")
        say(f"{command.table}: {rows} in {commits}")


def _check(command: LakeCommand, table: "LakeTable") -> None:
    from tokenometer.processor.lake import check, said

    # The table first: what comes meanwhile is then with the other side alone, which is no difference.
    state, sums = table.state(), table.sums_by_part()
    if command.against is None:
        broker = running.broker_of(command)
        other = said.by_meters(broker, command.live_topic)
        broker.close()
    else:
        with needs("ledger"):
            from tokenometer.processor.ledger.opening import open_database
        with contextlib.closing(open_database(command.against.reveal(), writer=False)) as database:
            other = said.by_ledger(database)
    found = check.compare(sums, state.sums if state else {}, other)
    _show(command.table, found)
    if not found.clean:
        raise typer.Exit(EXIT_FAILURE)


def _show(name: str, found: "Comparison") -> None:
    sums = found.sums
    say(f"{name}: {found.equal:,} parts say the same: {sums.requests:,} requests, {sums.total_tokens:,} tokens")
    say(f"{found.waiting:,} parts are not in the table yet; {found.unknown:,} in it are unknown to the other side")
    for each in found.differences[:_SHOWN]:
        say(f"part {each.part}: the table has {tuple(each.table)}, the other side says {tuple(each.said)}")
    if found.differences:
        say(f"{len(found.differences):,} parts DIFFER")
