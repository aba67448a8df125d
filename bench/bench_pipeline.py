"""What Kafka's client can deliver, and what a meter makes of it: all contenders read one topic of one real broker.

    consume   Consumer.consume() that drops its messages: the ceiling of any Python consumer
    meter     the real meter: everything but the command line, a transaction each second
    orjson    consume(), orjson.loads for each line, totals in a dict; no dedup, no commits
    faust     a Faust agent that does the same

Each runs in a fresh process with the broker beside it on the same machine. Timed: from the assignment of the partitions
until the last message is read, for the meter until it is committed; contenders that are slow stop after --seconds.
"""

import asyncio
import json
import os
import secrets
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import orjson

from bench import common
from kernels.engine import Engine, Limits
from kernels.target import HostTarget
from processor import heap, synth
from processor.broker import Broker
from processor.broker.kafka import CONSUMER_DEFAULTS, KafkaBroker
from processor.cli_live import check_topics
from processor.meter import Committed, Meter, MeterSettings
from processor.referee import Referee
from schemas import mapping as mappings
from tests.kafka_server import KafkaServer

SIZES = {"small": {"one": 20_000, "many": 100_000}, "large": {"one": 5_000_000, "many": 20_000_000}}
LINES = {"one": 1, "many": 200}
CASES = (("one", "consume"), ("one", "meter"), ("one", "orjson"), ("one", "faust"),
         ("many", "consume"), ("many", "meter"), ("many", "orjson"))  # fmt: skip
PARTITIONS = 4
RATE = 1_400_000.0  # records a second of log time: as many users are active in a commit as at the design point
_CONSUME_MESSAGES = 5000


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0, help="the most that a contender reads")
    parser.add_argument(
        "--bootstrap", help="a broker to use; its topics bench-one and bench-many may be filled already"
    )
    parser.add_argument("--only", nargs="*", help="cases such as one:meter")
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(_child(json.loads(sys.stdin.readline()))))
        return
    if arguments.bootstrap:
        result = _run(arguments, arguments.bootstrap)
    else:
        with KafkaServer(heap="512m") as kafka:
            result = _run(arguments, kafka.bootstrap)
    common.save(arguments.json, result)


def _run(arguments: Any, bootstrap: str) -> dict[str, Any]:
    facts = common.facts("bench.bench_pipeline", sys.argv[1:])
    wanted = SIZES[arguments.size]
    for name, records in wanted.items():
        _fill(bootstrap, f"bench-{name}", records, LINES[name])
    cases = [case for case in CASES if not arguments.only or ":".join(case) in arguments.only]
    answers: dict[str, list[dict[str, Any]]] = {f"{name}:{contender}": [] for name, contender in cases}
    for _ in range(arguments.turns):
        for name, contender in cases:
            request = {
                "contender": contender,
                "bootstrap": bootstrap,
                "topic": f"bench-{name}",
                "records": wanted[name],
                "seconds": arguments.seconds,
            }
            answer = common.run_child("bench.bench_pipeline", request, len(common.cores()))
            answers[f"{name}:{contender}"].append(answer)
            print(f"{name}:{contender}", json.dumps(answer), file=sys.stderr, flush=True)
    medians = {case: _median(found) for case, found in answers.items()}
    for case, found in medians.items():
        print(f"{case:14} {found['records_per_second'] / 1e6:6.3f} M records/s  {found['mb_per_second']:6.0f} MB/s")
    return {"kind": "pipeline", **facts, "lines": LINES, "records": wanted, "medians": medians, "runs": answers}


def _median(runs: list[dict[str, Any]]) -> dict[str, Any]:
    middle = sorted(runs, key=lambda run: run["records_per_second"])[len(runs) // 2]
    return {**middle, "records_per_second": statistics.median(run["records_per_second"] for run in runs)}


def _fill(bootstrap: str, topic: str, records: int, lines: int) -> None:
    """The topic, once: lines of about 320 bytes."""
    broker = KafkaBroker(bootstrap)
    broker.create_topic(topic, PARTITIONS, {})
    held = sum(extent.end - extent.begin for extent in broker.extents([topic]).values())
    if held == -(-records // lines):
        return
    assert held == 0, f"{topic} holds {held} messages, not {-(-records // lines)}: use another broker"
    profile = synth.Profile(records=records, rate=RATE, start_ms=time.time_ns() // 1_000_000)
    block: list[bytes] = []
    for k, message in enumerate(synth.messages(synth.generate(profile), lines)):
        block.append(message)
        if len(block) * lines >= 20_000:
            broker.append(topic, block, [b"%d" % (k + i) for i in range(len(block))])
            block = []
    broker.append(topic, block, [b"%d" % i for i in range(len(block))])
    broker.flush()
    broker.close()


# --- Contenders, each in a process of its own ---


def _child(request: dict[str, Any]) -> dict[str, Any]:
    return {"consume": _consume, "meter": _meter, "orjson": _orjson, "faust": _faust}[request["contender"]](request)


def _answer(records: int, size: int, seconds: float, **more: Any) -> dict[str, Any]:
    used = os.times()
    return {
        "records": records,
        "seconds": seconds,
        "records_per_second": records / seconds,
        "mb_per_second": size / seconds / 1e6,
        "cpu_seconds": used.user + used.system,
        "peak_bytes": common.peak_bytes(),
        **more,
    }


def _client(request: dict[str, Any]) -> Iterator[list[Any]]:
    """Batches of messages from the assignment on, until the topic ends."""
    import confluent_kafka

    topic = request["topic"]
    consumer = confluent_kafka.Consumer(
        {
            "bootstrap.servers": request["bootstrap"],
            "group.id": secrets.token_hex(4),
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            # As the meter's consumer has it: with the default of a second a fast reader starves.
            "fetch.queue.backoff.ms": CONSUMER_DEFAULTS["fetch.queue.backoff.ms"],
        }
    )
    consumer.subscribe([topic])
    while True:
        yield consumer.consume(_CONSUME_MESSAGES, 0.1)


def _read(request: dict[str, Any], use: Callable[[list[Any]], None]) -> dict[str, Any]:
    lines = LINES[request["topic"].removeprefix("bench-")]
    wanted, messages, size, began = -(-request["records"] // lines), 0, 0, 0.0
    for batch in _client(request):
        if batch and not began:
            began = time.monotonic()
        use(batch)
        messages += len(batch)
        if messages >= wanted or (began and time.monotonic() - began > request["seconds"]):
            break
    seconds = time.monotonic() - began
    return _answer(messages * lines, size, seconds)


def _consume(request: dict[str, Any]) -> dict[str, Any]:
    return _read(request, lambda batch: None)


def _add(totals: dict[Any, list[int]], value: bytes) -> None:
    for line in value.split(b"\n"):
        try:
            record = orjson.loads(line)
            row = totals[record["timestamp"] // 60_000, record["user"], record["model"], record["chip"]]
            row[0] += 1
            row[1] += record["input_tokens"]
            row[2] += record["output_tokens"]
        except (ValueError, KeyError, TypeError):
            continue


def _orjson(request: dict[str, Any]) -> dict[str, Any]:
    totals: dict[Any, list[int]] = defaultdict(lambda: [0, 0, 0])

    def use(batch: list[Any]) -> None:
        for message in batch:
            _add(totals, message.value())

    return _read(request, use)


def _faust(request: dict[str, Any]) -> dict[str, Any]:
    import faust

    app = faust.App(
        secrets.token_hex(4),
        broker=f"kafka://{request['bootstrap']}",
        store="memory://",
        web_enabled=False,
        topic_disable_leader=True,
        consumer_auto_offset_reset="earliest",
        datadir=tempfile.mkdtemp(),
    )
    topic = app.topic(request["topic"], value_serializer="raw")
    totals: dict[Any, list[int]] = defaultdict(lambda: [0, 0, 0])
    state = {"messages": 0, "began": 0.0}
    done = threading.Event()

    @app.agent(topic)  # type: ignore[misc]
    async def agent(stream: Any) -> None:
        async for value in stream:
            state["began"] = state["began"] or time.monotonic()
            _add(totals, value)
            state["messages"] += 1
            if state["messages"] >= request["records"] or time.monotonic() - state["began"] > request["seconds"]:
                state["seconds"] = time.monotonic() - state["began"]
                done.set()
                return

    async def run() -> None:
        await app.start()
        while not done.is_set():
            await asyncio.sleep(0.05)
        await app.stop()

    asyncio.run(run())
    return _answer(int(state["messages"]), 0, state["seconds"])


class _TimedMeter(Meter):
    began = 0.0

    def assigned(self, places: Any) -> Any:
        found = super().assigned(places)
        self.began = self.began or time.monotonic()
        return found


def _meter(request: dict[str, Any]) -> dict[str, Any]:
    heap.keep_freed_memory()  # as `tokenometer meter` does
    broker: Broker = KafkaBroker(request["bootstrap"])
    stem = secrets.token_hex(4)
    outputs = f"{stem}-usage", f"{stem}-live", f"{stem}-rejected"
    settings = MeterSettings(stem, stem, {request["topic"]: mappings.resolve("native")}, *outputs)
    check_topics(broker, settings, 4, 1)
    engine = Engine(HostTarget(), Referee(), secret=[secrets.randbits(64) for _ in range(8)], limits=Limits())
    commits: list[Committed] = []
    parts: dict[str, int] = {}
    ended = threading.Event()

    def committed(done: Committed) -> None:
        commits.append(done)
        parts[done.snapshot.summary.part] = done.snapshot.summary.tally.read
        if sum(parts.values()) >= request["records"]:
            ended.set()

    meter = _TimedMeter(broker, engine, settings, stem, on_commit=committed)
    meter.run(ended.is_set)
    seconds = time.monotonic() - meter.began
    took = sorted(done.took_ms for done in commits)
    rows = [done.rows for done in commits]
    return _answer(sum(parts.values()), 0, seconds, commits=len(commits), rows=sum(rows), rows_max=max(rows),
                   commit_ms_median=took[len(took) // 2], commit_ms_max=took[-1], parts=len(parts))  # fmt: skip


if __name__ == "__main__":
    main()
