"""The command `mappings` and what is below it: show, check, guess and init."""

import itertools
import pathlib
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import typer
from typer import Argument, Option

from tokenometer.processor import create, show
from tokenometer.processor.cli import mapping_names
from tokenometer.processor.cli.common import EXIT_STRICT, say, show_view, stdout_console, usage_error
from tokenometer.processor.cli.help import Group
from tokenometer.processor.cli.options import CommandSettings, register
from tokenometer.processor.files import decoded, logs, mapping_report, report
from tokenometer.processor.intake import Decoder
from tokenometer.processor.records import guess, mapping_check
from tokenometer.schemas import mapping as mappings
from tokenometer.schemas.value import Value

group = typer.Typer(cls=Group, help="List, explain, check and guess mappings: where a log's JSON holds each field.")


@group.callback(
    invoke_without_command=True,
    epilog="Examples:\n\ntokenometer mappings\n\ntokenometer mappings show anthropic\n\n"
    "tokenometer mappings check mine.toml --sample requests.ndjson\n\ntokenometer mappings guess requests.ndjson",
)
def mappings_list(context: typer.Context) -> None:
    """List, explain, check and guess mappings: where a log's JSON holds each field."""
    if context.invoked_subcommand is None:
        known = map(mappings.resolve, mappings.shipped())
        show_view(mapping_report.mappings_view(known, stdout_console().width))


@dataclass(frozen=True)
class ShowCommand(CommandSettings):
    name: Annotated[str, Argument(help="A shipped mapping or a .toml file.")]


def show_command(command: ShowCommand) -> None:
    """Explain a mapping: where each field is read, and by which rule.

    Examples:
        tokenometer mappings show anthropic
        tokenometer mappings show ./mine.toml
    """
    show_view(mapping_report.mapping_view(mapping_names.resolve(command.name)))


@dataclass(frozen=True)
class MappingsCheckCommand(CommandSettings):
    name: Annotated[str, Argument(metavar="MAPPING", help="A .toml file or a shipped mapping.")]
    sample: Annotated[str, Option("--sample", metavar="LOG", help="A log to try it on; [bold]-[/] is standard input.")]
    records: Annotated[
        int, Option("--records", "-n", min=1, max=1_000_000, help="How many records of its beginning are read.")
    ] = 1000
    strict: Annotated[bool, Option("--strict", help="Exit with 3 if a record was rejected.")] = False


def check_command(command: MappingsCheckCommand) -> None:
    """Show what a mapping makes of the first records of a log.

    Examples:
        tokenometer mappings check mine.toml --sample requests.ndjson
        zcat requests.ndjson.gz | tokenometer mappings check native --sample - --strict
    """
    chosen = mapping_names.resolve(command.name)
    lines = decoded.sample_lines(_first_lines(command.sample, command.records), decoded.decoder_of(chosen)())
    found = mapping_check.check(lines, chosen)
    name = "standard input" if command.sample == logs.STDIN else command.sample
    show_view(report.check_view(found, chosen, name))
    if command.strict and found.rejects:
        raise typer.Exit(EXIT_STRICT)


def _first_lines(log: str, most: int) -> Iterator[bytes]:
    logs.size_of([log])  # a log that is not there is refused before anything is read
    return itertools.islice(logs.read_lines(log), most)


@dataclass(frozen=True)
class GuessCommand(CommandSettings):
    sample: Annotated[str, Argument(metavar="LOG", help="A log of lines; [bold]-[/] is standard input.")]
    name: Annotated[
        str | None, Option("--name", metavar="N", help="The mapping's name; by default it is the log's.")
    ] = None
    records: Annotated[
        int, Option("--records", "-n", min=1, max=100_000, help="How many records of its beginning are read.")
    ] = 10_000


def guess_command(command: GuessCommand) -> None:
    """Write a mapping for a log that no mapping describes, with every doubt marked: # CHECK.

    Examples:
        tokenometer mappings guess requests.ndjson --name mine > mine.toml
        zcat requests.ndjson.gz | tokenometer mappings guess - --name mine > mine.toml
    """

    def opened(lines: Sequence[bytes], value: Value) -> list[bytes]:
        return list(decoded.sample_lines(lines, Decoder(value)))

    if command.name is not None and not re.fullmatch(r"[a-z0-9-]+", command.name):
        usage_error(f"--name {command.name!r}: expected a string of a-z, 0-9 and -")
    name = command.name or _name_of(command.sample)
    found = guess.guess(_first_lines(command.sample, command.records), name, opened)
    print(found.text, end="")  # nothing in it steers a terminal
    doubts = f"{show.plural(len(found.doubts), 'place')} to check (# CHECK)" if found.doubts else "nothing to check"
    say(f"{name}: {found.check.counted:,} of {found.check.read:,} records would be counted; {doubts}", sys.stderr)


def _name_of(log: str) -> str:
    """A mapping's name is made of a-z, 0-9 and -."""
    return re.sub(r"[^a-z0-9]+", "-", pathlib.PurePath(log).name.partition(".")[0].lower()).strip("-") or "guessed"


@dataclass(frozen=True)
class InitCommand(CommandSettings):
    name: Annotated[str, Argument(metavar="NAME", help="A shipped mapping.")]
    force: Annotated[bool, Option("--force", help="Replace a file that is there.")] = False


def init_command(command: InitCommand) -> None:
    """Write a shipped mapping to NAME.toml in this directory, to start from.

    Examples:
        tokenometer mappings init openai-chat
    """
    text = mapping_names.shipped_text(command.name)
    name = f"{command.name}.toml"
    with create.create(name, command.force) as file:
        file.write(text)
    say(f"{name} written; use it as ./{name}")


register(group, "guess", guess_command)
register(group, "init", init_command)
register(group, "show", show_command)
register(group, "check", check_command)
