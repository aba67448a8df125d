"""Shared libraries of C++ files: compiled with the host's compiler at first use, and kept.

A library is kept by a hash of its source with its own headers, the flags, the compiler and the processor. Nothing here
knows what is compiled: the kernels use this, and so does the audit, which shares nothing else with them.
"""

import contextlib
import fcntl
import functools
import hashlib
import os
import pathlib
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence

from tokenometer.schemas.errors import TokenometerError

HOST_FLAGS = (
    *("-std=c++17", "-O3", "-march=native", "-mtune=generic", "-Wall", "-Wextra", "-Werror"),
    *("-fvisibility=hidden", "-shared", "-fPIC", "-pthread"),
    "-fno-jump-tables",  # compares are better predicted than one indirect jump for every kind of value
)


class BuildError(TokenometerError, RuntimeError):
    """The kernels cannot be built here. The message says what is missing and how to mend it."""


def compiler() -> str:
    """The C++ compiler: $CXX, else g++, else clang++."""
    for name in (os.environ.get("CXX"), "g++", "clang++"):
        if name and shutil.which(shlex.split(name)[0]):
            return name
    raise BuildError(
        "no C++ compiler found: the CPU engine is built at first use. Install one (Debian: apt-get install g++; "
        "Fedora: dnf install gcc-c++), or name one in CXX"
    )


def cache_directory() -> pathlib.Path:
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "tokenometer"


def build_shared(file: pathlib.Path, extra: tuple[str, ...] = ()) -> pathlib.Path:
    """A shared library of one C++ file."""
    return build_text(file.stem, source(file), extra)


def build_text(name: str, text: str, extra: tuple[str, ...] = ()) -> pathlib.Path:
    """A shared library of a source without headers of its own."""
    command = [*shlex.split(compiler()), *HOST_FLAGS, *extra, "-x", "c++"]

    def make(made: pathlib.Path) -> None:
        run = subprocess.run([*command, "-o", str(made), "-"], input=text, capture_output=True, text=True, check=False)
        if run.returncode:
            raise BuildError(f"{shlex.join(command)} failed:\n{run.stderr}")

    return kept(name, ".so", [text, *command, version(command[0]), processor()], make)


def kept(name: str, suffix: str, identity: Sequence[str], make: Callable[[pathlib.Path], None]) -> pathlib.Path:
    """The cached file of this identity. Where there is none, `make` writes it; other processes that want it wait."""
    digest = hashlib.sha256("\0".join(identity).encode()).hexdigest()[:20]
    path = cache_directory() / f"{name}-{digest}{suffix}"
    if path.exists():
        return path
    with _lock(path) as made:
        if not path.exists():
            make(made)
            made.rename(path)  # atomic, because not every file system has locks
    return path


@contextlib.contextmanager
def _lock(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """One process at a time; gives a new file beside the path, which is gone afterwards."""
    lock = path.with_suffix(".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=path.suffix, delete=False) as taken:
            made = pathlib.Path(taken.name)
        held = lock.open("w")
    except OSError as error:
        raise BuildError(
            f"{path.parent}: the kernels cannot be kept here: {error.strerror}; name another directory in "
            "XDG_CACHE_HOME"
        ) from None
    with held:
        try:
            with contextlib.suppress(OSError):
                fcntl.flock(held, fcntl.LOCK_EX)
            yield made
        finally:
            lock.unlink(missing_ok=True)
            made.unlink(missing_ok=True)


@functools.cache
def version(program: str) -> str:
    """What a compiler says of itself."""
    return subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout


def source(file: pathlib.Path) -> str:
    """A source file with its own headers in place, each once; the compiler's messages name the files."""
    return expanded(file)[0]


@functools.cache  # a process has one version of itself, and may load a library many times
def expanded(file: pathlib.Path) -> tuple[str, frozenset[pathlib.Path]]:
    """`source`, and the files in it."""
    seen: set[pathlib.Path] = set()

    def expand(path: pathlib.Path) -> str:
        if path in seen:
            return ""
        seen.add(path)
        lines = []
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if match := re.fullmatch(r'#include "(.+)"', line):
                lines += [expand((path.parent / match[1]).resolve()), f'#line {number + 1} "{path.name}"']
            else:
                lines.append("" if line == "#pragma once" else line)
        return "\n".join([f'#line 1 "{path.name}"', *lines])

    return expand(file.resolve()), frozenset(seen)


@functools.cache
def processor() -> str:
    """What -march=native means here: model and feature flags."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
