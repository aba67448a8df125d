"""How fast a made-up log is: into a file, into a real Kafka, and through `tokenometer demo` until it is metered.

    python -m bench.bench_synth --size large [--base DIR] [--only file kafka demo]

Each turn runs the commands that a user runs, in fresh processes on two cores; a Kafka shares them. With --base, a
checkout of another build with its environment in DIR/.venv, each turn runs that build too. What is taken:

    file    records a second, as the command itself says; with `cpu`, its processor time for a record, without its start
    kafka   the same; messages have 200 lines, and the topic four partitions
    demo    tokens metered and committed, by the seconds of the log and of the last commit, as a day of such seconds has
            them; the audit must find the same tokens

The file's digest must be the same in each turn of a build.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import re
import secrets
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bench import common
from tests.kafka_server import KafkaServer

CASES = ("file", "kafka", "demo")
RECORDS = {"small": 20_000, "large": 8_000_000}
CORES = 2
LINES = 200  # of a message
LIVE_RECORDS_PER_S = 900_000  # of the demo's log; an older build has another default
SECONDS_MAX = 900


@dataclass(frozen=True)
class Build:
    name: str
    directory: pathlib.Path
    python: str

    def run(self, *arguments: str) -> tuple[str, float]:
        """What the command says, and its processor time."""
        before = os.times()
        run = common.run_bound(
            [self.python, "-m", "tokenometer.processor.cli", *arguments], CORES,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=self.directory,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            timeout=SECONDS_MAX, check=False,
        )  # fmt: skip
        if run.returncode:
            raise common.ChildFailed(f"{self.name}: {arguments}: exit status {run.returncode}\n{run.stdout}")
        after = os.times()
        used = after.children_user + after.children_system - before.children_user - before.children_system
        return run.stdout, used


def to_file(build: Build, records: int, folder: pathlib.Path) -> dict[str, Any]:
    file = folder / f"{build.name}.ndjson"
    found = _sent(build, records, "--force", "--output", str(file))
    with file.open("rb") as stream:
        found["digest"] = hashlib.file_digest(stream, "sha256").hexdigest()[:32]
    file.unlink()
    return found


def to_kafka(build: Build, records: int, bootstrap: str, topic: str) -> dict[str, Any]:
    where = ("--to-kafka", topic, "--create-topics", "4", "--lines", str(LINES), "--bootstrap", bootstrap)
    return _sent(build, records, *where)


def _sent(build: Build, records: int, *where: str) -> dict[str, Any]:
    _, start = build.run("synth", "--count", "0", *where)
    said, used = build.run("synth", "--count", str(records), *where)  # last: what it has written is looked at
    seconds = re.search(r"B in (?:([\d.]+) s|(\d+) min (\d+) s)", said)
    assert seconds, said
    taken = float(seconds[1]) if seconds[1] else 60.0 * int(seconds[2]) + int(seconds[3])
    return {"records_per_s": records / max(taken, 0.1), "cpu_us": (used - start) / records * 1e6}


def demo(build: Build, records: int) -> dict[str, Any]:
    seconds = records / LIVE_RECORDS_PER_S
    said, _ = build.run("demo", "--count", str(records), "--seconds", f"{seconds:.3f}", "--listen", "")
    metered = re.search(r"Metered +([\d,]+) tokens", said)
    taken = re.search(r"sent, +(?:([\d.]+) s|(\d+) min (\d+) s)", said)
    clean = re.search(r"clean: ([\d,]+) tokens", said)
    assert metered and taken and clean and metered[1] == clean[1], said
    lasted = float(taken[1]) if taken[1] else 60.0 * int(taken[2]) + int(taken[3])
    tokens = int(metered[1].replace(",", ""))
    return {"records_per_s": records / lasted, "tokens_per_day": tokens / lasted * 86_400}


@contextlib.contextmanager
def _kafka(options: Any) -> Iterator[str]:
    if options.bootstrap or "kafka" not in options.only:
        yield options.bootstrap
        return
    with KafkaServer(heap="512m") as kafka:
        yield kafka.bootstrap


def measure(options: Any, builds: Sequence[Build]) -> dict[str, dict[str, Any]]:
    """Of each case and build: the median of each figure, and all of them."""
    records = RECORDS[options.size]
    runs: dict[str, list[dict[str, Any]]] = {}
    with _kafka(options) as bootstrap, tempfile.TemporaryDirectory(dir=options.data) as folder:
        for _ in range(options.turns):
            for case in options.only:
                for build in builds:
                    if case == "file":
                        found = to_file(build, records, pathlib.Path(folder))
                    elif case == "kafka":
                        found = to_kafka(build, records, bootstrap, f"synth-{secrets.token_hex(4)}")
                    else:
                        found = demo(build, records)
                    print(f"{case} {build.name}: {json.dumps(found)}", file=sys.stderr, flush=True)
                    runs.setdefault(f"{case}, {build.name}", []).append(found)
    return {name: _medians(each) for name, each in runs.items()}


def _medians(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    assert len({run.get("digest") for run in runs}) == 1, "the same seed gave other bytes"
    figures = {name for name in runs[0] if name != "digest"}
    return {name: statistics.median(run[name] for run in runs) for name in sorted(figures)} | {"runs": list(runs)}


def main(arguments: Sequence[str]) -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--base", type=pathlib.Path, metavar="DIR", help="the checkout of another build")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--bootstrap", default="", help="a broker to use; topics are left behind")
    options = parser.parse_args(arguments)
    options.data.mkdir(parents=True, exist_ok=True)
    builds = [Build("this", common.ROOT, sys.executable)]
    if options.base:
        base = options.base.resolve()
        builds.append(Build("base", base, str(base / ".venv/bin/python")))
    facts = common.facts("bench.bench_synth", arguments)
    cases = measure(options, builds)
    common.save(options.json, {"kind": "synth", **facts, "records": RECORDS[options.size], "cases": cases})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
