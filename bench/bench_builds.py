"""This build against another one, and mappings against a plain one, in alternating runs.

    python -m bench.bench_builds --base DIR --size large

DIR is a checkout of the other build with its environment in DIR/.venv (`make .venv/installed-bench` there). It runs its
own benchmarks, which must be bench_pipeline and bench_engine as they are since commit 73c8881. Without --base only what
this build compares within itself is run:

    read:one, read:many      base     the meter's consumer alone; one record, or 200, in a message
    meter:one, meter:many    base     the meter
    engine:default, ...      base     `Engine.load` and `Engine.count` on one core
    share                    itself   meter:one against a bare consume(), as librdkafka comes
    rules                    itself   the engine, format 2: `skip`, a total and an identity of three fields against none
    labels                   itself   the engine: four labels of 10,000 values in all against none
    meter:labels             itself   the meter: the same, one record a message

Each turn runs both sides, one after the other, in fresh processes. The ratio of their rates is taken turn by turn, and
the median counts: what disturbs a machine for minutes disturbs both sides. There are two clocks: `cpu` is the processor
time of all of a process's threads, which a busy machine changes little; `wall` is what other benchmarks report. A
process that waits has a better `cpu` than `wall`. Rates are of the second half of a run; by `wall` those of a meter and
of consume() are of a whole one, for half of one has few commits. A meter commits after so many records, by `wall` each
two seconds, not each second: so the rows of a record are about the same for both sides (builds_child.py).
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from bench import bench_engine, bench_pipeline, common
from bench.logs import PROFILES, labelled, make_all, path_of
from tests.kafka_server import KafkaServer

PIPELINE = ("read:one", "read:many", "meter:one", "meter:many")
ENGINE = tuple(f"engine:{log}" for log in PROFILES)
ITSELF = ("share", "rules", "labels", "meter:labels")
CASES = (*PIPELINE, *ENGINE, *ITSELF)
RECORDS = {
    "small": {"one": 20_000, "many": 20_000, "labels": 20_000},
    "large": {"one": 20_000_000, "many": 20_000_000, "labels": 10_000_000},
}
_CHILD = common.ROOT / "bench/builds_child.py"


@dataclass(frozen=True)
class Build:
    """Where a benchmark is run. own: this build's."""

    directory: pathlib.Path
    python: str
    own: bool

    def rate(self, module: str, request: dict[str, Any], cores: int, cpu: bool) -> dict[str, Any]:
        """What one of this build's benchmarks answers."""
        chosen = common.cores()[:cores]
        run = subprocess.run(
            [self.python, str(_CHILD), module, "cpu" if cpu else "wall"],
            input=json.dumps(request) + "\n",
            stdout=subprocess.PIPE,
            text=True,
            cwd=self.directory,
            env=os.environ if self.own else {k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
            preexec_fn=lambda: os.sched_setaffinity(0, chosen),
            timeout=common.CHILD_SECONDS_MAX,
            check=False,
        )
        if run.returncode:
            raise common.ChildFailed(f"{self.directory}: {module}: exit status {run.returncode}")
        answer: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
        return answer


OURS = Build(common.ROOT, sys.executable, True)


@dataclass(frozen=True)
class Side:
    """One side of a comparison: which build runs which benchmark."""

    build: Build
    module: str
    request: dict[str, Any]

    def measure(self, cpu: bool) -> dict[str, float]:
        """Records a second (of processor time, for `cpu`) and the peak of memory."""
        pipeline = self.module == "bench_pipeline"
        answer = self.build.rate(self.module, self.request, len(common.cores()) if pipeline else 1, cpu)
        whole = not cpu and self.request.get("contender") in ("meter", "consume")
        rate = answer["records_per_second" if whole else "sustained"] if pipeline else answer["records_per_s"]
        return {"rate": rate, "peak_bytes": answer.get("peak_bytes", 0)}


def sides(case: str, base: Build | None, options: Any, bootstrap: str) -> tuple[Side, Side]:
    """What a case measures, and against what. Makes the logs that it needs."""
    kind, _, name = case.partition(":")
    if case == "meter:labels":
        request = _pipeline(kind, name, options, bootstrap)
        labels, plain = (
            Side(OURS, "bench_pipeline", request | {"mapping": mapping}) for mapping in ("labels", "plain")
        )
        return labels, plain
    if kind in ("read", "meter"):
        assert base is not None
        request = _pipeline(kind, name, options, bootstrap)
        return Side(OURS, "bench_pipeline", request), Side(base, "bench_pipeline", request)
    if case == "share":
        meter, consume = (_pipeline(kind, "one", options, bootstrap) for kind in ("meter", "consume"))
        return Side(OURS, "bench_pipeline", meter), Side(OURS, "bench_pipeline", consume)
    if kind == "engine":
        assert base is not None
        request = asdict(_engine_case(name, options))
        older = {key: value for key, value in request.items() if key not in ("mapping", "rows_room")}
        return Side(OURS, "bench_engine", request), Side(base, "bench_engine", older)
    plain = _engine_case("default, clean", options, "plain")
    other = replace(plain, mapping=case)
    return Side(OURS, "bench_engine", asdict(other)), Side(OURS, "bench_engine", asdict(plain))


def _pipeline(contender: str, name: str, options: Any, bootstrap: str) -> dict[str, Any]:
    records = RECORDS[options.size][name]
    bench_pipeline.fill(bootstrap, f"bench-{name}", records, bench_pipeline.LINES[name], name == "labels")
    return {"contender": contender, "bootstrap": bootstrap, "topic": f"bench-{name}", "records": records,
            "seconds": 300.0, "kafka": {}}  # fmt: skip


def _engine_case(log: str, options: Any, mapping: str = "") -> bench_engine.Case:
    case = bench_engine.Case("records", f"{log}: all", log=log, mapping=mapping)
    if options.size == "small":
        case = bench_engine.shrunk(case)
    profiles = bench_engine.profiles_of(case)
    make_all(profiles, options.data)
    files = [path_of(profile, options.data) for profile in profiles]
    return replace(case, files=tuple(str(labelled(file) if mapping else file) for file in files))


def compare(case: str, left: Side, right: Side, turns: int, cpu: bool) -> dict[str, Any]:
    runs = [(left.measure(cpu), right.measure(cpu)) for _ in range(turns)]
    ratios = [ours["rate"] / theirs["rate"] for ours, theirs in runs]
    peaks = [statistics.median(run[side]["peak_bytes"] for run in runs) for side in (0, 1)]
    found = {
        "case": case,
        "clock": "cpu" if cpu else "wall",
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "us": [1e6 / statistics.median(run[side]["rate"] for run in runs) for side in (0, 1)],
        "peak_bytes": peaks,
    }
    print(
        f"{case:24} {found['clock']:4} ratio {found['ratio']:.3f} ({min(ratios):.3f} to {max(ratios):.3f}), us a record"
        f" {found['us'][0]:.3f} against {found['us'][1]:.3f}, peak MiB {peaks[0] / 2**20:.0f}"
        f" against {peaks[1] / 2**20:.0f}",
        flush=True,
    )
    return found


def main(arguments: Sequence[str]) -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--base", type=pathlib.Path, metavar="DIR", help="the checkout of another build")
    parser.add_argument("--only", nargs="+", choices=CASES, metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--clock", choices=("cpu", "wall"), nargs="+", default=["cpu", "wall"])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--bootstrap", help="a broker to use; its topics bench-one and bench-many may be filled")
    options = parser.parse_args(arguments)
    base = None
    if options.base:
        base = Build(options.base.resolve(), str(options.base.resolve() / ".venv/bin/python"), False)
    cases = options.only or [case for case in CASES if base or case in ITSELF]
    if not base and not set(ITSELF).issuperset(cases):
        parser.error("these cases need --base")
    facts = common.facts("bench.bench_builds", arguments)
    if options.bootstrap or not any(case in (*PIPELINE, "share", "meter:labels") for case in cases):
        found = _run(cases, base, options, options.bootstrap or "")
    else:
        with KafkaServer(heap="512m") as kafka:
            found = _run(cases, base, options, kafka.bootstrap)
    common.save(options.json, {"kind": "builds", **facts, "cases": found})
    return 0


def _run(cases: Sequence[str], base: Build | None, options: Any, bootstrap: str) -> list[dict[str, Any]]:
    found = []
    for case in cases:
        left, right = sides(case, base, options, bootstrap)
        found += [compare(case, left, right, options.turns, clock == "cpu") for clock in options.clock]
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
