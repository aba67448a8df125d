"""The command `tokenometer`: which commands there are, and how each ends. `common` lists the exit statuses."""

import gc
import importlib
import io
import os
import re
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, NoReturn

import typer
from typer import Option

from tokenometer.processor.cli import sources
from tokenometer.processor.cli.common import (
    DISK_ERRORS,
    EXIT_BROKEN_PIPE,
    EXIT_FAILURE,
    EXIT_INTERRUPTED,
    EXIT_USAGE,
    fail,
)
from tokenometer.processor.cli.help import Group
from tokenometer.processor.cli.options import register
from tokenometer.schemas.errors import TokenometerError

_NAME = "tokenometer"
_USAGE_ERROR: Any = typer.BadParameter.__base__  # the one class of wrong arguments in every version of typer

# Each command's module, in the order of the help. A module is imported when its command is called, because what all of
# them need takes three times as long as what most of them need.
COMMANDS = {
    "replay": "replay",
    "synth": "synth",
    "meter": "meter",
    "verify": "verify",
    "rollup": "rollup",
    "alerts": "alerts",
    "top": "top",
    "usage": "usage",
    "close": "statement",
    "statement": "statement",
    "adjust": "adjust",
    "reconcile": "reconcile",
    "lake": "lake",
    "demo": "demo",
    "live": "live",
    "ledger": "ledger",
    "prices": "prices",
    "mappings": "mappings",
}


def main() -> NoReturn:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # else numpy begins a thread a core, for what we never use
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that unfinished files are removed
    for name in ("stdout", "stderr"):  # closed by whoever started us
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  open as long as the process is
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # who watches a file or a pipe sees what is said when it is said
    try:
        sys.exit(run(sys.argv[1:]))
    finally:
        gc.freeze()  # else the interpreter's end looks for garbage in all that was imported, for a tenth of a second


def run(arguments: Sequence[str]) -> int:
    """The command line's exit status; messages of failures are one line."""
    completing = f"_{_NAME.upper()}_COMPLETE" in os.environ
    words = os.environ.get("COMP_WORDS", os.environ.get("_TYPER_COMPLETE_ARGS", "")).split()[1:]
    [named] = (words if completing else list(arguments))[:1] or [""]
    names = [named] if named in COMMANDS else [] if named == "--version" else COMMANDS
    gc.disable()  # what is imported stays, and looking for garbage in it takes a tenth of an import's time
    try:
        command: Any = typer.main.get_command(application(names))
    finally:
        gc.enable()
    if completing:  # the shell asks for completions; this answers and ends
        command.main([], prog_name=_NAME)
    for path, each in _commands(command, _NAME):
        sources.settle_environment(path, each)
    try:  # typer's own main has other exit statuses
        status = _invoked(command, arguments)
        sys.stdout.flush()  # here, where a full disk has a message
        return status
    except _USAGE_ERROR as error:
        return fail(_without_values(sources.with_its_place(error)), EXIT_USAGE)
    except TokenometerError as error:
        return fail(str(error), error.exit_status)
    except (KeyboardInterrupt, typer.Abort):
        return fail("interrupted", EXIT_INTERRUPTED)
    except BrokenPipeError:
        _drop_output()
        return EXIT_BROKEN_PIPE
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        _drop_output()
        return fail(f"{error.filename or 'standard output'}: cannot be written: {error.strerror}", EXIT_FAILURE)


def _invoked(command: Any, arguments: Sequence[str]) -> int:
    try:
        with command.make_context(_NAME, list(arguments), auto_envvar_prefix=_NAME.upper()) as context:
            command.invoke(context)
        return 0
    except typer.Exit as leaving:
        return leaving.exit_code


def application(names: Iterable[str] = COMMANDS) -> typer.Typer:
    """The command with these commands below it."""
    app = typer.Typer(
        cls=Group,
        help="Exact token accounting for LLM inference logs: usage per user, model and chip.",
        no_args_is_help=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(_top)
    for name in names:
        module = importlib.import_module(f"tokenometer.processor.cli.{COMMANDS[name]}")
        if hasattr(module, "group"):
            app.add_typer(module.group, name=name)
        else:
            register(app, name, getattr(module, f"{name}_command"))
    return app


def _drop_output() -> None:
    """The interpreter flushes stdout once more when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _without_values(message: str) -> str:
    """A word too many may be a half of a secret that has a space in it, or the value after `--kafka sasl.password`."""
    too_many = r"(unexpected extra argument)(?:s|\(s\))? \(.*\)"
    return re.sub(too_many, r"\1; quote a value that holds a space", message, flags=re.DOTALL)


def _commands(group: Any, path: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        yield f"{path}_{name}", command
        if hasattr(command, "commands"):
            yield from _commands(command, f"{path}_{name}")


def _version(wanted: bool) -> None:
    if wanted:
        import importlib.metadata  # no other command needs it

        print(f"{_NAME} {importlib.metadata.version(_NAME)}")
        raise typer.Exit


def _top(
    context: typer.Context,
    version: Annotated[
        bool, Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help(), end="")
        raise typer.Exit(EXIT_USAGE)


if __name__ == "__main__":
    main()
