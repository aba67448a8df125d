"""`tokenometer verify` of this build, and of another one, over one log that each has metered by itself.

    python -m bench.bench_verify --base DIR --size large

DIR is a checkout of the other build with its environment in DIR/.venv; commit 73c8881 is the oldest that this can run.
Without --base only this build is measured. A log has one record in a message (`one`) or 200 (`many`). Each turn runs
both sides, one after the other, in fresh processes. `cpu_seconds` is the processor time of an audit's processes
together, with their start; the broker's is not in it. The ratio of the two sides is taken turn by turn, and the median
counts. The peak of memory is the first process's and, for each of the others, the largest one's.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from bench import bench_pipeline, common
from tests.kafka_server import KafkaServer

SIZES = {"small": {"one": 20_000, "many": 20_000}, "large": {"one": 10_000_000, "many": 10_000_000}}
# What each build runs of itself. The older one has other names for the same.
_METER = """
import json, secrets, sys
from bench import bench_pipeline
request = json.loads(sys.stdin.readline())
secrets.token_hex = lambda size: request["stem"]
meter = getattr(bench_pipeline, "meter", None) or bench_pipeline._meter
print(json.dumps(meter(request)))
"""
_VERIFY = """
import json, os, resource, sys, time
try:
    from tokenometer.processor import verify
    from tokenometer.processor.broker.kafka import KafkaBroker
    from tokenometer.schemas import mapping
except ImportError:
    from processor import verify
    from processor.broker.kafka import KafkaBroker
    from schemas import mapping
if __name__ == "__main__":
    request = json.loads(sys.stdin.readline())
    stem, began = request["stem"], time.monotonic()
    make = getattr(verify, "VerifySettings", None) or verify.Settings
    settings = make(f"{stem}-usage", f"{stem}-live", f"{stem}-rejected", dedup_horizon_ms=request["horizon_ms"],
                    processes=request["processes"])
    broker = KafkaBroker(request["bootstrap"])
    report = verify.verify(broker, stem, {request["topic"]: mapping.resolve("native")}, settings)
    used = os.times()
    own = int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) << 10
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10
    print(json.dumps({
        "clean": report.clean, "read": report.tally.read, "found": report.found, "rows": report.found_rows,
        "usage_messages": report.usage_messages, "seconds": time.monotonic() - began,
        "cpu_seconds": used.user + used.system + used.children_user + used.children_system,
        "peak_bytes": own + request["processes"] * largest,
    }))
"""


def main(arguments: Sequence[str]) -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--base", type=pathlib.Path, metavar="DIR", help="the other build")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--bootstrap", help="a broker to use; its topics such as verify-one-20000 may be filled")
    parser.add_argument("--only", nargs="*", default=list(SIZES["small"]), choices=list(SIZES["small"]))
    options = parser.parse_args(arguments)
    facts = common.facts("bench.bench_verify", arguments)
    if options.bootstrap:
        cases = _run(options, options.bootstrap)
    else:
        with KafkaServer(heap="512m") as kafka:
            cases = _run(options, kafka.bootstrap)
    common.save(options.json, {"kind": "verify", **facts, "cases": cases})
    return 0


def _run(options: Any, bootstrap: str) -> dict[str, Any]:
    builds = {"this": common.ROOT} | ({"base": options.base.resolve()} if options.base else {})
    return {name: _case(name, builds, options, bootstrap) for name in options.only}


def _case(name: str, builds: dict[str, pathlib.Path], options: Any, bootstrap: str) -> dict[str, Any]:
    records = SIZES[options.size][name]
    topic = f"verify-{name}-{records}"
    bench_pipeline.fill(bootstrap, topic, records, bench_pipeline.LINES[name])
    shared = {"bootstrap": bootstrap, "topic": topic, "records": records, "kafka": {}}
    shared |= {"processes": len(common.cores()), "horizon_ms": bench_pipeline.HORIZON_MS}
    requests = {build: {**shared, "stem": f"{build}-{name}-{os.getpid()}"} for build in builds}
    for build, folder in builds.items():
        _child(folder, _METER, requests[build])
    runs: dict[str, list[dict[str, Any]]] = {build: [] for build in builds}
    for _ in range(options.turns):
        for build, folder in builds.items():
            answer = _child(folder, _VERIFY, requests[build])
            assert answer["clean"] and answer["read"] == records, answer
            runs[build].append(answer)
            print(f"{name} {build}", json.dumps(answer), file=sys.stderr, flush=True)
    return {"records": records, "runs": runs, "ratios": _compare(name, runs)}


def _compare(name: str, runs: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    ratios = {}
    for clock in ("cpu_seconds", "seconds"):
        this = statistics.median(run[clock] for run in runs["this"])
        text = f"{name:5} {clock:12} {this:8.2f}"
        if "base" in runs:
            turns = zip(runs["base"], runs["this"], strict=True)
            ratios[clock] = statistics.median(base[clock] / ours[clock] for base, ours in turns)
            text += f" against {statistics.median(run[clock] for run in runs['base']):.2f}: {ratios[clock]:.2f} x"
        print(text)
    print(f"{name:5} peak MiB {max(run['peak_bytes'] for run in runs['this']) >> 20}")
    return ratios


def _child(folder: pathlib.Path, code: str, request: dict[str, Any]) -> dict[str, Any]:
    """What a build answers. Its processes start others from its file, so there is one."""
    own = folder == common.ROOT
    script = folder / f".bench-verify-{os.getpid()}.py"
    script.write_text(code, encoding="utf-8")
    try:
        run = subprocess.run(
            [sys.executable if own else str(folder / ".venv/bin/python"), str(script)],
            input=json.dumps(request) + "\n",
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={k: v for k, v in os.environ.items() if own or k != "PYTHONPATH"},
            timeout=common.CHILD_SECONDS_MAX,
            check=False,
        )
    finally:
        script.unlink()
    if run.returncode:
        raise common.ChildFailed(f"{folder}: exit status {run.returncode}")
    answer: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return answer


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
