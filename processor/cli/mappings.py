"""The commands `mappings`, `mappings show` and `mappings check`."""

import itertools
from dataclasses import dataclass
from typing import Annotated

import typer
from typer import Argument, Option

from tokenometer.processor.cli.common import EXIT_STRICT, show_view
from tokenometer.processor.cli.options import Settings, register
from tokenometer.processor.files import logs, mapping_report, report
from tokenometer.processor.records import mapping_check
from tokenometer.schemas import mapping as mappings

group = typer.Typer(help="List, explain and check mappings: where a log's JSON holds each field.")


@group.callback(
    invoke_without_command=True,
    epilog="Examples:\n\ntokenometer mappings\n\ntokenometer mappings show anthropic\n\n"
    "tokenometer mappings check mine.toml --sample requests.ndjson",
)
def mappings_list(context: typer.Context) -> None:
    """List, explain and check mappings: where a log's JSON holds each field."""
    if context.invoked_subcommand is None:
        show_view(mapping_report.mappings_view(map(mappings.resolve, mappings.shipped())))


@dataclass(frozen=True)
class ShowCommand(Settings):
    name: Annotated[str, Argument(help="A shipped mapping or a .toml file.")]


def show_command(command: ShowCommand) -> None:
    """Explain a mapping: where each field is read, and by which rule.

    Examples:
        tokenometer mappings show anthropic
        tokenometer mappings show ./mine.toml
    """
    show_view(mapping_report.mapping_view(mappings.resolve(command.name)))


@dataclass(frozen=True)
class CheckCommand(Settings):
    name: Annotated[str, Argument(metavar="MAPPING", help="A .toml file or a shipped mapping.")]
    sample: Annotated[str, Option("--sample", metavar="LOG", help="A log to try it on; [bold]-[/] is standard input.")]
    records: Annotated[int, Option("--records", "-n", min=1, max=1_000_000, help="Of its beginning.")] = 1000
    strict: Annotated[bool, Option("--strict", help="Exit with 3 if a record was rejected.")] = False


def check_command(command: CheckCommand) -> None:
    """Show what a mapping makes of the first records of a log.

    Examples:
        tokenometer mappings check mine.toml --sample requests.ndjson
        zcat requests.ndjson.gz | tokenometer mappings check native --sample - --strict
    """
    chosen = mappings.resolve(command.name)
    logs.size_of([command.sample])
    found = mapping_check.check(itertools.islice(logs.read_lines(command.sample), command.records), chosen)
    name = "standard input" if command.sample == logs.STDIN else command.sample
    show_view(report.check_view(found, chosen, name))
    if command.strict and found.rejects:
        raise typer.Exit(EXIT_STRICT)


register(group, "show", show_command)
register(group, "check", check_command)
