"""Half an hour of a live stream: is memory flat, how long do commits take, how old is what operators see?

A producer sends messages of 200 lines at a steady rate, each line with a request id and a time of its own; a meter in
another process commits them, with default settings. Both topics are cut by retention, so that the run fits a disk, and
request ids are remembered for two minutes, so that it fits a small machine's memory: at 0.7 M records/s ten minutes'
ids take 18 GB.

freshness   of a message: from its append (the broker's timestamp) to the end of the commit that covers it, which is
            when a reader of token-live can see it. Taken over all messages, as if they came evenly between two commits.
--attack    another run: brokers and meters are killed, and HTTP faces are flooded (attack.py); nothing is measured
settled     the same from the third generation of request ids on: before, their tables grow through memory that the
            machine never used, and the broker's code is compiled, both beside the load
"""

import argparse
import itertools
import json
import secrets
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np

from bench import attack, common
from tests.kafka_server import KafkaServer
from tokenometer.kernels.engine import Engine
from tokenometer.kernels.target import HostTarget
from tokenometer.processor.broker.kafka import KafkaBroker
from tokenometer.processor.load import synth
from tokenometer.processor.load.profile import Profile
from tokenometer.processor.meter import heap
from tokenometer.processor.meter.meter import Committed, Meter, MeterSettings
from tokenometer.processor.records.engines import limits
from tokenometer.processor.records.referee import Referee
from tokenometer.schemas import mapping as mappings

SERVER = {"log.retention.check.interval.ms": "5000", "log.segment.delete.delay.ms": "1000"}
CUT = {"retention.bytes": str(1 << 29), "segment.bytes": str(1 << 27)}  # of each partition
TOPIC, PARTITIONS, LINES = "soak-logs", 4, 200
BLOCK_RECORDS = 100_000  # sent again and again, with other ids and times
_ID_DIGITS, _BLOCK_DIGITS = 12, 7  # an id: the block's number, and the record's in it
_SAMPLE_SECONDS = 10
_REST_SECONDS = 5  # for what was sent last


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=700_000.0, help="records a second")
    parser.add_argument("--horizon", type=float, default=120.0, help="seconds for which request ids are remembered")
    parser.add_argument("--attack", action="store_true", help="assert what holds while everything goes wrong")
    arguments = parser.parse_args()
    if arguments.child:
        request = json.loads(sys.stdin.readline())
        {"produce": _produce, "meter": _meter}[request["role"]](request)
        return
    if arguments.attack:
        return _attacked(arguments)
    facts = common.facts("bench.bench_soak", sys.argv[1:])
    seconds = 20.0 if arguments.size == "small" else arguments.minutes * 60
    with KafkaServer(heap="512m", settings=SERVER) as kafka:
        broker = KafkaBroker(kafka.bootstrap)
        for topic in (TOPIC, "soak-usage", "soak-live", "soak-rejected"):
            broker.create_topic(topic, PARTITIONS, CUT)
        shared = {
            "bootstrap": kafka.bootstrap,
            "seconds": seconds,
            "rate": arguments.rate,
            "horizon": arguments.horizon,
        }
        meter = _start({"role": "meter", **shared})
        assert meter.stdout is not None
        meter.stdout.readline()  # it has its partitions: what waits while a group forms is not live
        sent = _start({"role": "produce", **shared})
        answers = {"sent": _answer(sent)}
        time.sleep(_REST_SECONDS)
        answers["meter"] = _answer(meter)  # which stops where its standard input ends
        result = {
            "kind": "soak",
            **facts,
            "minutes": seconds / 60,
            "rate": arguments.rate,
            "horizon_seconds": arguments.horizon,
            **answers,
        }
    common.save(arguments.json, result)
    print(
        json.dumps(
            {**result["sent"], **{k: v for k, v in result["meter"].items() if not isinstance(v, list)}}, indent=1
        )
    )
    print("resident MiB, every 10 s:", result["meter"]["resident_mib"])
    print("oldest message, ms, worst of each 10 s:", result["meter"]["freshness_ms_worst"])


def _attacked(arguments: argparse.Namespace) -> None:
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that everybody is ended
    facts = common.facts("bench.bench_soak", sys.argv[1:])
    seconds = 60.0 if arguments.size == "small" else arguments.minutes * 60
    found = attack.run(seconds, arguments.rate, arguments.horizon, _start, _answer)
    common.save(arguments.json, {"kind": "attack", **facts, "minutes": seconds / 60, "rate": arguments.rate, **found})
    print(json.dumps(found, indent=1))


def _start(request: dict[str, Any]) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-m", "bench.bench_soak", "--child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=common.ROOT,
    )
    assert child.stdin is not None
    child.stdin.write(json.dumps(request) + "\n")
    child.stdin.flush()
    return child


def _answer(child: subprocess.Popen[str]) -> dict[str, Any]:
    out, _ = child.communicate()
    if child.returncode:
        raise common.ChildFailed(f"exit status {child.returncode}; its last words are above")
    answer: dict[str, Any] = json.loads(out.splitlines()[-1])
    return answer


# --- The producer ---


def _places(block: np.ndarray[Any, Any], mark: bytes) -> np.ndarray[Any, Any]:
    """Behind each `mark`."""
    data, found, at = block.tobytes(), [], 0
    while (at := data.find(mark, at)) >= 0:
        at += len(mark)
        found.append(at)
    return np.array(found)


class _Number:
    """The same number at many places of a block. Only digits that change are written: the cores are for the meter."""

    def __init__(self, block: np.ndarray[Any, Any], places: np.ndarray[Any, Any], digits: int) -> None:
        self._block, self._places, self._text = block, places, bytes(digits)

    def write(self, value: int) -> None:
        text = b"%0*d" % (len(self._text), value)
        for k, (digit, before) in enumerate(zip(text, self._text, strict=True)):
            if digit != before:
                self._block[self._places + k] = digit
        self._text = text


def _produce(request: dict[str, Any]) -> None:
    broker = KafkaBroker(request["bootstrap"], {"compression.type": "lz4"})
    now_ms = time.time_ns() // 1_000_000
    is_hostile = request.get("hostile", False)
    profile = Profile(records=BLOCK_RECORDS, start_ms=now_ms, late=0, duplicates=0, compact=is_hostile)
    lines = b"".join(synth.generate(profile))
    block = np.frombuffer(attack.hostile(lines) if is_hostile else lines, np.uint8).copy()
    ids, times = _places(block, b'"request_id":"'), _places(block, b'"timestamp":1') - 1
    for k, place in enumerate(ids.tolist()):
        block[place : place + _ID_DIGITS] = np.frombuffer(b"%0*d" % (_ID_DIGITS, k), np.uint8)
    blocks, now = _Number(block, ids, _BLOCK_DIGITS), _Number(block, times, 13)
    ends = np.flatnonzero(block == 0x0A)[LINES - 1 :: LINES] + 1
    began, sent, behind, turns = time.monotonic(), 0, 0.0, itertools.count()
    while time.monotonic() - began < request["seconds"]:
        blocks.write(next(turns))
        now.write(time.time_ns() // 1_000_000)
        data, start = block.tobytes(), 0
        for k, end in enumerate(ends.tolist()):
            broker.append(TOPIC, [data[start:end]], [b"%d" % k])
            start = end
            sent += LINES
            ahead = sent / request["rate"] - (time.monotonic() - began)
            if ahead > 0.002:
                time.sleep(ahead)
            behind = max(behind, -ahead)
    broker.flush()
    seconds = time.monotonic() - began
    print(json.dumps({"records_sent": sent, "sent_per_second": sent / seconds, "behind_seconds_max": behind}))


# --- The meter ---


def _meter(request: dict[str, Any]) -> None:
    heap.keep_freed_memory()  # as `tokenometer meter` does
    resident: list[int] = []
    done = threading.Event()
    broker = KafkaBroker(request["bootstrap"])
    inputs = {TOPIC: mappings.resolve("native")}
    settings = MeterSettings("soak", "soak", inputs, "soak-usage", "soak-live", "soak-rejected")
    target = HostTarget()
    secret, horizon_ms = [secrets.randbits(64) for _ in range(8)], round(request["horizon"] * 1000)
    engine = Engine(target, Referee(), secret=secret, limits=limits(target, None), dedup_horizon_ms=horizon_ms)
    parts: dict[str, int] = {}
    facts: list[tuple[float, int, int, int]] = []  # end, newest message, took, rows

    def committed(commit: Committed) -> None:
        if not facts:
            print("{}", flush=True)
        newest = [covered.state.log_time_ms for covered in commit.snapshot.summary.ranges]
        parts[commit.snapshot.summary.part] = commit.snapshot.summary.tally.counted
        oldest = min((time_ms for time_ms in newest if time_ms is not None), default=0)
        facts.append((time.time() * 1000, oldest, commit.took_ms, commit.rows))

    def watch() -> None:
        while not done.wait(_SAMPLE_SECONDS):
            resident.append(common.resident_bytes() >> 20)

    threading.Thread(target=watch, daemon=True).start()
    threading.Thread(target=lambda: (sys.stdin.read(), done.set()), daemon=True).start()
    Meter(broker, engine, settings, f"soak-{secrets.token_hex(2)}", on_commit=committed).run(done.is_set)
    took = sorted(fact[2] for fact in facts)
    settled = [fact for fact in facts if fact[0] > facts[0][0] + 2 * horizon_ms]
    print(
        json.dumps(
            {
                "records_counted": sum(parts.values()),
                "parts": len(parts),
                "commits": len(facts),
                "rows": sum(fact[3] for fact in facts),
                "commit_ms": _percentiles(np.array(took)),
                "freshness_ms": _percentiles(_freshness(facts)),
                **({"freshness_ms_settled": _percentiles(_freshness(settled))} if settled else {}),
                "freshness_ms_worst": _worst(facts),
                "resident_mib": resident,
                "cpu_seconds": time.process_time(),
            }
        )
    )


def _freshness(facts: list[tuple[float, int, int, int]]) -> np.ndarray[Any, Any]:
    ages = []
    for (_, before, *_), (end, newest, *_) in zip(facts, facts[1:], strict=False):
        if newest > before > 0:
            ages.append(end - np.linspace(before, newest, max(2, (newest - before) // 10)))
    return np.concatenate(ages) if ages else np.zeros(1)


def _worst(facts: list[tuple[float, int, int, int]]) -> list[int]:
    """Of each sample's time: the age of the oldest message when its commit ended, in ms."""
    begin = facts[0][0]
    worst = [0] * (int((facts[-1][0] - begin) / 1000 / _SAMPLE_SECONDS) + 1)
    for (_, before, *_), (end, *_) in zip(facts, facts[1:], strict=False):
        if before:
            at = int((end - begin) / 1000 / _SAMPLE_SECONDS)
            worst[at] = max(worst[at], round(end - before))
    return worst


def _percentiles(values: np.ndarray[Any, Any]) -> dict[str, float]:
    return {f"p{q}": round(float(np.percentile(values, q)), 1) for q in (50, 90, 99, 100)}


if __name__ == "__main__":
    main()
