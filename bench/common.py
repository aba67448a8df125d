"""What the benchmarks share: facts of a run, fresh child processes, peak memory, digests."""

import argparse
import datetime
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from tokenometer.kernels import build
from tokenometer.schemas import compiled

ROOT = pathlib.Path(__file__).resolve().parent.parent
DATA = ROOT / "bench" / "data"  # logs made once and read again; ignored by git
RESULTS = ROOT / "bench" / "results"
MEASURED = (
    "kernels",
    "processor",
    "schemas",
    "bench/*.py",
    "bench/peers",
    "pyproject.toml",
)  # what a figure depends on
PACKAGES = (
    "numpy",
    "pyarrow",
    "orjson",
    "duckdb",
    "psycopg",
    "polars",
    "chdb",
    "chdb-core",
    "cupy-cuda12x",
    "cupy-cuda13x",
)
CHILD_SECONDS_MAX = 900


class ChildFailed(RuntimeError):
    """A measurement's process ended without a result."""


# --- Facts ---


def facts(module: str, arguments: Sequence[str], accelerator: str | None = None) -> dict[str, Any]:
    """Where, when and of what a run was: everything that is needed to judge or repeat it."""
    return {
        "machine": {
            "cpu": _first("/proc/cpuinfo", "model name") or platform.processor(),
            "cores": len(os.sched_getaffinity(0)),
            "memory_gib": round(int((_first("/proc/meminfo", "MemTotal") or "0 kB").split()[0]) / (1 << 20), 1),
            "caches": _caches(),
            "kernel": platform.release(),
            "load_average": os.getloadavg()[0],
            "accelerator": accelerator,
        },
        "versions": {"python": platform.python_version(), "compiler": _compiler(), **_packages()},
        "commit": _commit(),
        "kernels": hashlib.sha256("".join(map(build.source, build.SOURCES)).encode()).hexdigest()[:16],
        "command": shlex.join(["python", "-m", module, *arguments]),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _first(path: str, name: str) -> str | None:
    """The value of the first line `name : value`."""
    try:
        lines = pathlib.Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((line.split(":", 1)[1].strip() for line in lines if line.split(":")[0].strip() == name), None)


def _caches() -> str:
    found = []
    for index in sorted(pathlib.Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        kind, level, size = ((index / name).read_text().strip() for name in ("type", "level", "size"))
        if kind != "Instruction":
            found.append(f"L{level} {size}")
    return ", ".join(found)


def _compiler() -> str:
    try:
        command = [shlex.split(compiled.compiler())[0], "--version"]
    except compiled.BuildError:
        return "none"
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()[0]


def _packages() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> str:
    """The commit of what is measured, and whether that was changed since. A copy without git may name it itself."""
    if given := os.environ.get("TOKENOMETER_COMMIT"):
        return given
    head = _git("rev-parse", "HEAD")
    if not head:
        return "unknown"
    return head[:12] + (" with changes" if _git("status", "--porcelain", "--", *MEASURED) else "")


def _git(*arguments: str) -> str:
    try:
        run = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return run.stdout.strip() if run.returncode == 0 else ""


# --- Processes ---


def cores() -> list[int]:
    """The processors that this process may use. The last ones first: interrupts prefer processor 0."""
    return sorted(os.sched_getaffinity(0), reverse=True)


def run_child(module: str, request: dict[str, Any], core_count: int, **environment: str) -> dict[str, Any]:
    """The answer of a fresh process, bound to so many cores: it reads the request and prints one line of JSON."""
    try:
        run = run_bound(
            [sys.executable, "-m", module, "--child"],
            core_count,
            input=json.dumps(request),
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, **environment},
            timeout=CHILD_SECONDS_MAX,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ChildFailed(f"{request}: no result after {CHILD_SECONDS_MAX} s") from None
    if run.returncode:
        raise ChildFailed(f"{request}: exit status {run.returncode}; its last words are above")
    answer: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return answer


def run_bound(command: Sequence[str], core_count: int, **options: Any) -> subprocess.CompletedProcess[str]:
    """subprocess.run, bound to so many cores before a library counts its processors. Tests, which look at no time, put
    in its place what starts faster."""
    chosen = cores()[:core_count]
    return subprocess.run(command, preexec_fn=lambda: os.sched_setaffinity(0, chosen), **options)


def peak_bytes() -> int:
    """Peak resident memory of this process. Not getrusage: its ru_maxrss begins with the parent's (exec keeps it)."""
    return _memory("VmHWM")


def resident_bytes() -> int:
    return _memory("VmRSS")


def _memory(name: str) -> int:
    value = _first("/proc/self/status", name)
    assert value is not None, "Linux"
    return int(value.split()[0]) * 1024


# --- Results ---


def digest(rows: Any) -> str:
    """Of something printable, for comparison."""
    return hashlib.sha256(repr(rows).encode()).hexdigest()[:16]


def save(path: pathlib.Path | None, result: dict[str, Any]) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--size", choices=("small", "large"), default="small", help="small: seconds, for tests only")
    made.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write the result there, for bench/report.py")
    made.add_argument("--data", type=pathlib.Path, default=DATA, metavar="DIR", help="where logs are kept")
    made.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return made
