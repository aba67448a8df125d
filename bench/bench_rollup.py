"""How many meters' live summaries one rollup takes, what an answer costs, and whether memory is flat.

    fold     summaries as bytes -> entries -> totals, in one process without a broker: all the arithmetic of a worker
    answer   Totals.rolling and Totals.history with a whole day of windows
    memory   an hour of synthetic time, every meter commits each second
    kafka    a topic of summaries, read by a real worker on a real Kafka until its totals are those of the log

typical: 8 models on 6 kinds of chips, a window at a time and its sketch; wide: 64 models on 32 chips. The need is one
summary a second from each of METERS meters. Each case runs in a fresh process.
"""

import asyncio
import base64
import json
import secrets
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson

from bench import common
from tests.kafka_server import KafkaServer
from tests.summaries import named, rfc3339, window_text
from tokenometer.processor.broker import Broker
from tokenometer.processor.broker.kafka import KafkaBroker
from tokenometer.processor.rollup.entries import Entries
from tokenometer.processor.rollup.meters import MINUTE_MS
from tokenometer.processor.rollup.summaries import read_summary
from tokenometer.processor.rollup.totals import Totals
from tokenometer.processor.rollup.worker import Rollup, RollupSettings, create_topics
from tokenometer.schemas.usage import COUNTERS

METERS, PARTITIONS = 200, 6
SHAPES = {"typical": (8, 6), "wide": (64, 32)}
SIZES = {
    "small": {"fold": 3, "memory": (3, 120), "kafka": 2, "windows": 20},
    "large": {"fold": 90, "memory": (40, 3600), "kafka": 60, "windows": 1440},
}
START_MS = 1_795_453_500_000
PART_SECONDS = 600  # whole minutes, so that a window lies in one part
RECORD = (1, 9000, 4000, 100, 2000, 500)  # a second's counters of each cell of a meter
_HISTORIES = (("24h", 24 * 60 * MINUTE_MS, 5 * MINUTE_MS), ("1h", 60 * MINUTE_MS, MINUTE_MS))


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.child:
        request = json.loads(sys.stdin.readline())
        print(json.dumps(_CASES[request["case"]](**request["arguments"])))
        return
    common.save(arguments.json, _run(arguments))


def _run(arguments: Any) -> dict[str, Any]:
    facts, size = common.facts("bench.bench_rollup", sys.argv[1:]), SIZES[arguments.size]
    cases: list[dict[str, Any]] = []

    def measure(case: str, **given: Any) -> None:
        runs = []
        for _ in range(1 if case == "memory" else arguments.turns):
            runs.append(common.run_child("bench.bench_rollup", {"case": case, "arguments": given}, 2))
            print(case, given, json.dumps(runs[-1]), file=sys.stderr, flush=True)
        numbers = {key: statistics.median(run[key] for run in runs) for key in runs[0] if key != "resident_bytes"}
        last = {key: runs[-1][key] for key in runs[0] if key == "resident_bytes"}
        cases.append({"case": case, **given, **numbers, **last})

    for shape in SHAPES:
        measure("fold", shape=shape, seconds=size["fold"])
        measure("answer", shape=shape, windows=size["windows"])
    meters, seconds = size["memory"]
    measure("memory", shape="typical", meters=meters, seconds=seconds)
    with KafkaServer(heap="512m") as kafka:
        measure("kafka", shape="typical", seconds=size["kafka"], bootstrap=kafka.bootstrap)
    return {"kind": "rollup", **facts, "meters": METERS, "cases": cases}


# --- Summaries ---


def summaries(shape: str, meters: int, seconds: int) -> Iterator[tuple[int, int, str, bytes]]:
    """Time, partition, meter and message; every meter once a second, and a new part after ten minutes."""
    models, chips = SHAPES[shape]
    registers = base64.b64encode(np.random.default_rng(1).integers(0, 20, 1 << 14).astype(np.uint8).tobytes()).decode()
    cells = [{"model": f"model-{m:02d}", "chip": f"chip-{c:02d}"} for m in range(models) for c in range(chips)]
    for second in range(seconds):
        now_ms = START_MS + second * 1000
        window, done = now_ms // MINUTE_MS * MINUTE_MS, second % 60 + 1
        counters = named([value * done for value in RECORD])
        part, of_part = divmod(second, PART_SECONDS)
        tokens = named([len(cells) * value * (of_part + 1) for value in RECORD])
        frame = {
            "schema": 1, "part": "", "sequence": of_part, "committed_at": rfc3339(now_ms), "window_ms": MINUTE_MS,
            "device": "host", "rejects": {}, "tokens": tokens, "records": {
                "read": tokens["requests"], "counted": tokens["requests"], "duplicates": 0, "rejected": 0, "empty": 0,
            },
            "cells": [{"window_start": window_text(window)} | cell | counters for cell in cells],
            "top_users": [{"user": f"user-{n:06d}", "total_tokens": 10**6 - n} for n in range(20)],
            "users": [{
                "window_start": window_text(window), "precision": 14, "registers": registers, "estimate": 1.0,
            }],
        }  # fmt: skip
        for number in range(meters):
            name = f"meter-{number:03d}"
            place = {"topic": "inference-logs", "partition": number, "from": 0, "next": tokens["requests"], "end": None,
                     "watermark": now_ms, "log_time": now_ms}  # fmt: skip
            message = frame | {"meter": name, "part": f"{name}.run.{part + 1}", "partitions": [place]}
            yield now_ms, number % PARTITIONS, name, orjson.dumps(message)


# --- Cases, each in a process of its own ---


def _fold(shape: str, seconds: int) -> dict[str, Any]:
    messages = list(summaries(shape, METERS, seconds if shape == "typical" else max(1, seconds // 30)))
    entries, totals = Entries(), Totals()
    written = 0
    begun = time.perf_counter()
    for offset, (now_ms, partition, _, message) in enumerate(messages):
        for key, value in entries.learn(partition, offset, read_summary(message), now_ms).items():
            totals.apply(key, value)
            written += len(value or b"")
    took = time.perf_counter() - begun
    _check(totals, shape, len(messages) // METERS, messages[-1][0])
    return {
        "summaries": len(messages),
        "summaries_per_second": len(messages) / took,
        "bytes_in": sum(len(message) for *_, message in messages),
        "bytes_written": written,
    }


def _check(totals: Totals, shape: str, seconds: int, now_ms: int) -> None:
    """The answer is that of the messages."""
    models, chips = SHAPES[shape]
    found = totals.rolling(now_ms)["windows"]
    for counter, value in zip(COUNTERS, RECORD, strict=True):
        wanted = METERS * models * chips * value * seconds
        assert found["since_start"]["tokens"][counter] == found["last_24h"]["tokens"][counter] == wanted


def _answer(shape: str, windows: int) -> dict[str, Any]:
    """A day of windows, as one meter would have left them."""
    entries, totals = Entries(), Totals()
    [*_, (_, _, _, message)] = summaries(shape, 1, 1)
    summary = orjson.loads(message)
    for number in range(windows):
        now_ms = START_MS + number * MINUTE_MS
        start = window_text(now_ms // MINUTE_MS * MINUTE_MS)
        changed = {
            "committed_at": rfc3339(now_ms),
            "cells": [cell | {"window_start": start} for cell in summary["cells"]],
        }
        changed |= {"users": [summary["users"][0] | {"window_start": start}], "sequence": number}
        known = read_summary(orjson.dumps(summary | changed))
        for key, value in entries.learn(0, number, known, now_ms).items():
            totals.apply(key, value)
    rolling, moved, history = [], [], {name: [] for name, _, _ in _HISTORIES}  # type: ignore[var-annotated]
    for turn in range(20):
        moved.append(_timed(lambda turn=turn: totals.rolling(now_ms + (turn + 1) * MINUTE_MS)))  # type: ignore[misc]
        rolling.append(_timed(lambda turn=turn: orjson.dumps(totals.rolling(now_ms + (turn + 1) * MINUTE_MS + 1000))))  # type: ignore[misc]
        for name, span_ms, step_ms in _HISTORIES:
            history[name].append(_timed(lambda span=span_ms, step=step_ms: totals.history(now_ms, span, step, "model")))  # type: ignore[misc]
    answer = {"rolling_ms": statistics.median(rolling), "new_minute_ms": statistics.median(moved)}
    return answer | {f"history_{name}_ms": statistics.median(took) for name, took in history.items()}


def _timed(action: Any) -> float:
    begun = time.perf_counter()
    action()
    return (time.perf_counter() - begun) * 1000


def _memory(shape: str, meters: int, seconds: int) -> dict[str, Any]:
    entries, totals = Entries(), Totals()
    resident = []
    for offset, (now_ms, partition, _, message) in enumerate(summaries(shape, meters, seconds)):
        for key, value in entries.learn(partition, offset, read_summary(message), now_ms).items():
            totals.apply(key, value)
        if offset % meters == meters - 1:
            second = offset // meters
            totals.rolling(now_ms)
            if second % max(1, seconds // 12) == seconds // 12 - 1:
                resident.append(common.resident_bytes())
    return {"resident_bytes": resident}


def _kafka(shape: str, seconds: int, bootstrap: str) -> dict[str, Any]:
    broker: Broker = KafkaBroker(bootstrap)
    stem = secrets.token_hex(4)
    settings = RollupSettings(f"{stem}-app", bootstrap, {}, f"{stem}-live", f"{stem}-totals")
    broker.create_topic(settings.live_topic, PARTITIONS, {})
    create_topics(broker, settings, 1)
    count, wanted = 0, 0
    for _, _, name, message in summaries(shape, METERS, seconds):
        broker.append(settings.live_topic, [message], [name.encode()])
        count += 1
    broker.flush()
    wanted = METERS * SHAPES[shape][0] * SHAPES[shape][1] * seconds
    worker, done, begun = Rollup(broker, settings), threading.Event(), [0.0, 0.0]

    def look() -> None:
        while not done.is_set():
            latest = worker.watch.latest
            requests = orjson.loads(latest)["windows"]["since_start"]["tokens"]["requests"] if latest else 0
            begun[0] = begun[0] or (time.perf_counter() if requests else 0.0)
            if requests == wanted:
                begun[1] = time.perf_counter()
                done.set()
            time.sleep(0.05)

    onlooker = threading.Thread(target=look)
    started = time.perf_counter()
    onlooker.start()
    asyncio.run(worker.run(done.is_set))
    onlooker.join()
    broker.close()
    return {
        "summaries": count,
        "summaries_per_second": count / (begun[1] - started),
        "first_total_s": begun[0] - started,
    }


_CASES = {"fold": _fold, "answer": _answer, "memory": _memory, "kafka": _kafka}

if __name__ == "__main__":
    main()
