"""What every command does alike: it writes, shows progress, fails, and ends with a status.

0    done, also where a log has rejected records: they are reported
1    something outside cannot be used, or an audit found a difference; one line on stderr says what and what to do
2    wrong arguments
3    no record of a log was counted, or --strict was given and some were rejected
130  interrupted by Ctrl-C
141  the reader of our output went away
"""

import contextlib
import errno
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TextIO

import typer
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn

from tokenometer.processor import secret, show
from tokenometer.schemas.errors import TokenometerError

EXIT_FAILURE, EXIT_USAGE, EXIT_STRICT, EXIT_INTERRUPTED, EXIT_BROKEN_PIPE = 1, 2, 3, 130, 141
# What the system says of a full or broken disk. With a file's name or without, this is no fault of the program.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG, errno.EROFS)
_WIDTH_PIPED = 120  # of tables that go to a file or another program


class ExtraMissing(TokenometerError):
    """A command needs packages that are not installed; the message names them."""


class WrongArgument(TokenometerError):
    """An argument is wrong, as the message says."""

    exit_status = EXIT_USAGE


@contextlib.contextmanager
def needs(extra: str, otherwise: str = "") -> Iterator[None]:
    """Around the imports of a command that works only with an extra. otherwise: what else the person can do."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "tokenometer":
            raise
        way = f"pip install 'tokenometer[{extra}]'{otherwise}"
        raise ExtraMissing(f"the Python package {error.name} is not installed: {way}") from None


# --- Failing ---


def usage_error(message: str) -> NoReturn:
    raise typer.BadParameter(message)


def fail(message: str, status: int) -> int:
    """Write the message to stderr, in one line where it has one. Returns the status."""
    first, *more = show.printable_lines(secret.scrub(message)).split("\n")
    with contextlib.suppress(OSError):  # a message cannot be written to a full disk
        print(f"tokenometer: error: {first}", *more, sep="\n", file=sys.stderr)
    return status


# --- Writing ---


def say(text: str, file: TextIO | None = None) -> None:
    """Write a line for people. Names of files and other foreign words in it cannot steer a terminal. file: None is
    stdout."""
    print(show.printable_lines(text), file=file or sys.stdout)


def write_json(*values: Any) -> None:
    """Write one value a line. Characters that could steer a terminal become JSON's escapes, which mean the same."""
    lines = (json.dumps(value, ensure_ascii=False) + "\n" for value in values)
    print(show.printable_json("".join(lines)), end="")


def write_csv(text: str) -> None:
    """Write it unchanged to a file or a pipe. CSV has no escapes, so a terminal gets visible ones."""
    print(show.printable_lines(text) if sys.stdout.isatty() else text, end="")


def stdout_console() -> Console:
    """A console with the terminal's colours and width; for a file or a pipe it is plain and wide."""
    if sys.stdout.isatty():
        return Console(highlight=False)
    return Console(highlight=False, width=int(os.environ.get("COLUMNS", 0)) or _WIDTH_PIPED)


def show_view(view: RenderableType) -> None:
    console = stdout_console()
    with console.capture() as captured:
        console.print(view)
    # Rich pads lines to their full width, which a file need not keep.
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


# --- Ctrl-C ---


@contextlib.contextmanager
def ctrl_c() -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether Ctrl-C was pressed. The second time interrupts at once."""
    pressed = False

    def press(*_: Any) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)


# --- Progress: on stderr, where that is a terminal ---


@contextlib.contextmanager
def progress_bar(total: int | None) -> Iterator[Callable[[int, str], None] | None]:
    """Gives a function that shows how much is done, and a text. It gives None where nobody watches."""
    if not sys.stderr.isatty():
        yield None
        return
    columns = (BarColumn(bar_width=None), TaskProgressColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True, expand=True) as bar:
        task: TaskID = bar.add_task("", total=total)
        yield lambda done, text: bar.update(task, completed=done, description=text)
