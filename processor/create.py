"""Files that a command writes: each is complete, or not there.

A file is written under another name and renamed when all of it is there.
"""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from tokenometer.processor import show
from tokenometer.schemas.errors import TokenometerError

STDOUT = "-"
COMPRESSION = {".gz": "gzip", ".zst": "zstd"}


class OutputError(TokenometerError):
    """A result that cannot be written; the message names the file and the way out."""


class NoSuchFormat(OutputError):
    """The name of a file says no format that could be written."""

    exit_status = 2  # as other wrong arguments of a command


@contextlib.contextmanager
def create(name: str, force: bool = False) -> Iterator[Any]:
    """A file to write bytes to, compressed as its suffix says. It takes its name when the block ends without an error;
    before, that name stays what it was. `-` and things that are not regular files are written directly."""
    path = pathlib.Path(name)
    try:
        if name == STDOUT:
            with os.fdopen(os.dup(1), "wb") as file:
                yield _TerminalFile(file) if file.isatty() else file
        elif path.exists() and not path.is_file():
            with path.open("wb") as raw, _compressed(raw, path) as file:
                yield _TerminalFile(file) if raw.isatty() else file
        else:
            check_free(name, force)
            with _renamed_at_end(path) as raw, _compressed(raw, path) as file:
                yield file
    except BrokenPipeError:
        raise
    except OSError as error:
        shown = "standard output" if name == STDOUT else name
        raise OutputError(f"{shown}: cannot be written: {error.strerror or error}") from None


@dataclass(frozen=True)
class _TerminalFile:
    """JSON lines on a terminal: what could steer it is written as JSON's escapes, which mean the same."""

    file: Any

    def write(self, lines: bytes | memoryview) -> None:
        self.file.write(show.printable_json(bytes(lines).decode(errors="backslashreplace")).encode())


def check_free(name: str, force: bool) -> None:
    """Before hours of work: may a file of this name be written?"""
    path = pathlib.Path(name)
    if name == STDOUT:
        return
    if path.is_file() and not force:
        raise OutputError(f"{name}: exists; use --force to replace it")
    if path.is_dir():
        raise OutputError(f"{name}: is a directory; name a file in it")
    if not path.parent.is_dir():
        raise OutputError(f"{name}: there is no directory {path.parent}")


@contextlib.contextmanager
def _renamed_at_end(path: pathlib.Path) -> Iterator[Any]:
    """In the same directory, so that renaming is one step."""
    mask = os.umask(0)
    os.umask(mask)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=".part", delete=False) as file:
        made = pathlib.Path(file.name)
        try:
            yield file
            if not file.closed:  # Arrow's streams close it
                file.flush()
            made.chmod(0o666 & ~mask)
            made.rename(path)
        finally:
            made.unlink(missing_ok=True)


@contextlib.contextmanager
def _compressed(raw: Any, path: pathlib.Path) -> Iterator[Any]:
    kind = COMPRESSION.get(path.suffix)
    if kind is None:
        yield raw
        raw.flush()
        return
    with pa.CompressedOutputStream(pa.PythonFile(raw, "w"), kind) as stream:
        yield stream
