"""C++ programs that sanitizers watch. Each is compiled once and kept, as the kernels are."""

import functools
import pathlib
import shlex
import subprocess
from collections.abc import Sequence

import pytest

from tokenometer.schemas import compiled

_PROBES = {True: "extern \"C\" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }\n",
           False: "int main() { return 0; }\n"}  # fmt: skip


def program(file: pathlib.Path, sanitizers: str, options: Sequence[str], compiler: str | None = None) -> pathlib.Path:
    """The program of this file. Skips only where the compiler has no such sanitizer."""
    command = [*(shlex.split(compiled.compiler()) if compiler is None else [compiler]), f"-fsanitize={sanitizers}"]
    if not _has(tuple(command), "fuzzer" in sanitizers):
        pytest.skip(f"{shlex.join(command[:-1])} has no runtime for {sanitizers}")
    command += [*options, str(file)]
    text = _run([*command, "-E", "-P"]).stdout

    def make(made: pathlib.Path) -> None:
        _run([*command, "-o", str(made)])
        made.chmod(0o700)

    return compiled.kept(file.stem, "", [text, *command, compiled.version(command[0]), compiled.processor()], make)


@functools.cache
def _has(command: tuple[str, ...], fuzzer: bool) -> bool:
    tried = [*command, "-xc++", "-", "-o", "/dev/null"]
    return subprocess.run(tried, input=_PROBES[fuzzer], capture_output=True, text=True, check=False).returncode == 0


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done
