"""Builds the kernels: for the CPU with the host's C++ compiler at first use, for the GPU with NVRTC.

Both come from the same headers, and both compare layout.py with them. The CPU library is cached by a hash of the
sources, the flags, the compiler and the processor. Apart from target.py this is the only module that touches CuPy.
"""

import ctypes
import functools
import json
import pathlib
import re
from dataclasses import asdict, dataclass
from typing import Any

from tokenometer.kernels import layout
from tokenometer.schemas import compiled
from tokenometer.schemas.compiled import BuildError, build_text, kept

_HERE = pathlib.Path(__file__).resolve().parent
SOURCES = _HERE / "host.cpp", _HERE / "device.cu"
THREADS_FLAG = "-DTOKENOMETER_THREADS"
DEVICE_FLAGS = ("-std=c++17",)
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")  # Ampere, Hopper, Blackwell data centre cards
_PARSING = "parse", "finish", "look_again", "accounts", "respell", "read_respelled", "adopt"
ENTRIES = (*_PARSING, "claim", "grow", "recall", "settle", "count", "export_rows")
HOST_ENTRIES = (*ENTRIES, "in_order")
OWN_ENTRIES = "move_identities", "find_records", "read_records", "place_values"  # over structs of their own


def build_host(threads: bool = False, extra: tuple[str, ...] = ()) -> pathlib.Path:
    """The host library's path; builds it if this source was not yet built with these flags on such a machine."""
    return build_shared(SOURCES[0], (*((THREADS_FLAG,) if threads else ()), *extra))


def build_shared(file: pathlib.Path, extra: tuple[str, ...] = ()) -> pathlib.Path:
    """A shared library of one C++ file."""
    return build_text(file.stem, source(file), extra)


@functools.cache  # to find it takes half a millisecond, and tests make an engine for each of thousands of tries
def load_host(threads: bool = False, extra: tuple[str, ...] = ()) -> ctypes.CDLL:
    library = ctypes.CDLL(str(build_host(threads, extra)))
    for name in HOST_ENTRIES:
        entry = getattr(library, name)
        entry.argtypes, entry.restype = [ctypes.c_void_p, *[ctypes.c_uint32] * 3], None
    library.split_lines.argtypes = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p]
    library.split_lines.restype = ctypes.c_uint32
    library.open_ahead.argtypes, library.open_ahead.restype = [], ctypes.c_void_p
    library.close_ahead.argtypes, library.close_ahead.restype = [ctypes.c_void_p], None
    library.count_beside.argtypes = [ctypes.c_void_p, *[ctypes.c_uint32] * 2, *[ctypes.c_void_p] * 2, ctypes.c_uint32]
    library.count_beside.restype = None
    for name in OWN_ENTRIES:
        entry = getattr(library, name)
        entry.argtypes, entry.restype = [ctypes.c_void_p, ctypes.c_uint32], None
    library.touch_pages.argtypes, library.touch_pages.restype = [ctypes.c_void_p, ctypes.c_uint64], None
    return library


def source(file: pathlib.Path) -> str:
    """A source file with our own headers in place, each once, and layout.py's assertions after layout.h's readers.

    NVRTC, the host's compiler and the cache's hash all take this one text; its messages name the files.
    """
    text, files = compiled.expanded(file)
    return f'{text}\n#line 1 "layout.py"\n{layout.assertions()}' if _HERE / "layout.h" in files else text


def load_device() -> Any:
    """The CUDA kernels for the current card, as a CuPy module."""
    import cupy

    return cupy.RawModule(code=source(SOURCES[1]), options=DEVICE_FLAGS)


@dataclass(frozen=True)
class KernelUse:
    """What ptxas says of one kernel."""

    name: str
    registers: int
    stack_bytes: int
    spill_bytes: int


def compile_device(architecture: str) -> list[KernelUse]:
    """Compile the CUDA kernels for `sm_90` or another architecture; needs NVRTC, not a GPU. What ptxas said is cached,
    as the host's libraries are: it follows from the source, the options and NVRTC's version."""
    import importlib.metadata  # nothing else here needs it, and it needs the package for e-mail

    from cupy_backends.cuda.libs import nvrtc

    text, options = source(SOURCES[1]), (*DEVICE_FLAGS, f"-arch={architecture}", "--ptxas-options=-v")

    def make(made: pathlib.Path) -> None:
        program = nvrtc.createProgram(text, "device.cu", [], [])
        try:
            nvrtc.compileProgram(program, options)
        except nvrtc.NVRTCError as error:
            raise BuildError(f"NVRTC {architecture}: {error}\n{nvrtc.getProgramLog(program)}") from None
        uses = _read_ptxas(nvrtc.getProgramLog(program).replace("\0", ""))
        made.write_text(json.dumps([asdict(use) for use in uses]), encoding="utf-8")

    packages = (f"{package.name} {package.version}" for package in importlib.metadata.distributions())
    compiler_is = [str(nvrtc.getVersion()), *sorted(package for package in packages if "nvrtc" in package)]
    path = kept(f"device-{architecture}", ".json", [text, *options, *compiler_is], make)
    return [KernelUse(**use) for use in json.loads(path.read_text(encoding="utf-8"))]


def _read_ptxas(log: str) -> list[KernelUse]:
    uses, name, stack, spill = [], "", 0, 0
    for line in log.splitlines():
        if match := re.search(r"Compiling entry function '(\w+)'", line):
            name = match[1]
        elif match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            stack, spill = int(match[1]), int(match[2]) + int(match[3])
        elif match := re.search(r"Used (\d+) registers", line):
            uses.append(KernelUse(name, int(match[1]), stack, spill))
    return uses


def main() -> None:
    """Build both host libraries, with every warning an error, and the CUDA kernels where NVRTC is at hand."""
    for threads in (False, True):
        print(f"host{' with threads' if threads else ''}: {build_host(threads).name}")
    for architecture in ARCHITECTURES:
        for use in compile_device(architecture):
            print(f"{architecture} {use.name:16} {use.registers:3} registers, {use.spill_bytes} bytes spilled")
            if use.spill_bytes:
                raise BuildError(f"{use.name} spills {use.spill_bytes} bytes for {architecture}")


if __name__ == "__main__":
    main()
