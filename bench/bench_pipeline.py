"""What Kafka's client can deliver, and what a meter makes of it: all contenders read one topic of one real broker.

    consume        Consumer.consume() that drops its messages, as librdkafka comes
    consume-tuned  the same with the queues of the meter's consumer: about the fastest that it can be made
    read           the meter's consumer, without a meter after it
    meter          the real meter: everything but the command line, a transaction each second
    orjson         consume-tuned, orjson.loads for each line, totals in a dict; no dedup, no commits
    faust          a Faust agent that does the same

A call of consume() asks for 500 messages. With fewer it takes more calls; of 1,000 and more Python's cycle collector
makes it slower than the fetches, whereupon librdkafka's defaults let it starve for a second at a time.

Each runs in a fresh process with the broker beside it on the same machine. Timed: from the assignment of the partitions
until the last message is read, for the meter until it is committed; all but the meter stop after --seconds at latest.
`sustained` is the rate of the second half: a process that began seconds ago touches most of its memory for the first
time, a service does not. For the meter it is what was counted from the beginning of one commit to that of another, the
last one left out: that one finds the cores free, for nothing is left to read. The topics are written with lz4, and the
meter remembers request ids for HORIZON_MS of log time, so that its second half forgets as many ids as it learns.
"""

import asyncio
import contextlib
import itertools
import json
import os
import secrets
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import orjson

from bench import common
from bench.bench_peers import native
from bench.logs import MAPPINGS, labelled_line
from tests.kafka_server import KafkaServer
from tokenometer.kernels.engine import Engine
from tokenometer.kernels.target import HostTarget
from tokenometer.processor.broker import Broker, Offset, Place
from tokenometer.processor.broker.kafka import CONSUMER_DEFAULTS, KafkaBroker
from tokenometer.processor.cli.topics import check_topics
from tokenometer.processor.load import synth
from tokenometer.processor.load.profile import Profile
from tokenometer.processor.meter import heap
from tokenometer.processor.meter.meter import Committed, Meter, MeterSettings
from tokenometer.processor.records.engines import limits
from tokenometer.processor.records.referee import Referee
from tokenometer.schemas import mapping as mappings

SIZES = {"small": {"one": 20_000, "many": 100_000}, "large": {"one": 60_000_000, "many": 40_000_000}}
LINES = {"one": 1, "many": 200, "labels": 1}
CASES = (("one", "consume"), ("one", "consume-tuned"), ("one", "read"), ("one", "meter"), ("one", "orjson"),
         ("one", "faust"), ("many", "consume-tuned"), ("many", "meter"), ("many", "orjson"))  # fmt: skip
PARTITIONS = 4
RATE = 1_400_000.0  # records a second of log time: as many users are active in a commit as at the design point
HORIZON_MS = 7_000
_MESSAGES = 500  # a call


def main(arguments: Sequence[str]) -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0, help="the most that a contender reads")
    parser.add_argument(
        "--bootstrap", help="a broker to use; its topics bench-one and bench-many may be filled already"
    )
    parser.add_argument("--only", nargs="*", help="cases such as one:meter")
    parser.add_argument("--kafka", nargs="*", default=[], metavar="KEY=VALUE", help="settings of the meter's clients")
    options = parser.parse_args(arguments)
    if options.child:
        print(json.dumps(_child(json.loads(sys.stdin.readline()))))
        return 0
    facts = common.facts("bench.bench_pipeline", arguments)
    if options.bootstrap:
        result = _run(options, options.bootstrap)
    else:
        with KafkaServer(heap="512m") as kafka:
            result = _run(options, kafka.bootstrap)
    common.save(options.json, {"kind": "pipeline", **facts, **result})
    return 0


def _run(options: Any, bootstrap: str) -> dict[str, Any]:
    wanted = SIZES[options.size]
    for name, records in wanted.items():
        fill(bootstrap, f"bench-{name}", records, LINES[name])
    cases = [case for case in CASES if not options.only or ":".join(case) in options.only]
    answers: dict[str, list[dict[str, Any]]] = {f"{name}:{contender}": [] for name, contender in cases}
    for _ in range(options.turns):
        for name, contender in cases:
            request = {
                "contender": contender,
                "bootstrap": bootstrap,
                "topic": f"bench-{name}",
                "records": wanted[name],
                "seconds": options.seconds,
                "kafka": dict(text.split("=", 1) for text in options.kafka or ()),
            }
            answer = common.run_child("bench.bench_pipeline", request, len(common.cores()))
            answers[f"{name}:{contender}"].append(answer)
            print(f"{name}:{contender}", json.dumps(answer), file=sys.stderr, flush=True)
    medians = {case: median_of(found) for case, found in answers.items()}
    for case, found in medians.items():
        print(
            f"{case:14} {found['records_per_second'] / 1e6:6.3f} M records/s, sustained {found['sustained'] / 1e6:6.3f}"
        )
    return {"lines": LINES, "records": wanted, "medians": medians, "runs": answers}


def median_of(runs: list[dict[str, Any]]) -> dict[str, Any]:
    middle = sorted(runs, key=lambda run: run["records_per_second"])[len(runs) // 2]
    return {
        **middle,
        **{rate: statistics.median(run[rate] for run in runs) for rate in ("records_per_second", "sustained")},
    }


def fill(bootstrap: str, topic: str, records: int, lines: int, labelled: bool = False) -> None:
    """The topic, once: lines of about 320 bytes; `labelled`: with four labels, in messages of one line."""
    broker = KafkaBroker(bootstrap, {"compression.type": "lz4"})
    broker.create_topic(topic, PARTITIONS, {})
    held = sum(extent.end - extent.begin for extent in broker.extents([topic]).values())
    if held == -(-records // lines):
        return
    assert held == 0, f"{topic} holds {held} messages, not {-(-records // lines)}: use another broker"
    profile = Profile(records=records, rate=RATE, start_ms=time.time_ns() // 1_000_000)
    messages = synth.messages(synth.generate(profile), lines)
    if labelled:
        messages = map(labelled_line, messages)
    for first in itertools.count(0, step := max(1, 20_000 // lines)):
        block = list(itertools.islice(messages, step))
        if not block:
            break
        numbers = range(first, first + len(block))
        times = [profile.start_ms + int(i * lines * 1000 / RATE) for i in numbers]
        broker.append(topic, block, [b"%d" % i for i in numbers], times)
    broker.flush()
    broker.close()


# --- Contenders, each in a process of its own ---


def _child(request: dict[str, Any]) -> dict[str, Any]:
    return _CONTENDERS[request["contender"]](request)


def answer_of(ticks: list[tuple[float, int]], end: tuple[float, int], **more: Any) -> dict[str, Any]:
    """Moments and the records that were done by then. ticks: from the assignment on, while there was more to read."""
    (began, _), (last, latest), (ended, records) = ticks[0], ticks[-1], end
    half, done = next(tick for tick in ticks if 2 * tick[1] >= latest)
    whole = records / (ended - began)
    used = os.times()
    return {
        "records": records,
        "seconds": ended - began,
        "records_per_second": whole,
        "sustained": (latest - done) / (last - half) if latest > done else whole,
        "cpu_seconds": used.user + used.system,
        "peak_bytes": common.peak_bytes(),
        **more,
    }


# Otherwise a fast reader starves: librdkafka looks at a full queue again after a second.
_TUNED = {name: CONSUMER_DEFAULTS[name] for name in ("fetch.queue.backoff.ms", "queued.min.messages")}


def _client(request: dict[str, Any], settings: dict[str, str]) -> Iterator[list[Any]]:
    """Batches of messages from the assignment on, until the topic ends."""
    import confluent_kafka

    own = {
        "bootstrap.servers": request["bootstrap"],
        "group.id": secrets.token_hex(4),
        "auto.offset.reset": "earliest",
        "enable.auto.commit": False,
        "isolation.level": "read_committed",
    }
    consumer = confluent_kafka.Consumer({**settings, **own})
    consumer.subscribe([request["topic"]])
    while True:
        yield consumer.consume(_MESSAGES, 0.1)


def _read_all(request: dict[str, Any], batches: Iterator[int]) -> dict[str, Any]:
    """batches: how many messages came with each call, from the assignment on."""
    lines = LINES[request["topic"].removeprefix("bench-")]
    wanted, messages, ticks = -(-request["records"] // lines), 0, []
    for count in batches:
        if count and not ticks:
            ticks.append((time.monotonic(), 0))
        messages += count
        if count:
            ticks.append((time.monotonic(), messages * lines))
        if messages >= wanted or (ticks and time.monotonic() - ticks[0][0] > request["seconds"]):
            return answer_of(ticks, ticks[-1])
    raise AssertionError("a consumer's messages do not end")


def _consume(request: dict[str, Any], settings: dict[str, str]) -> dict[str, Any]:
    return _read_all(request, map(len, _client(request, settings)))


class _FromTheBeginning:
    def assigned(self, places: Sequence[Place]) -> dict[Place, Offset]:
        return dict.fromkeys(places, Offset(0))

    def revoked(self, places: Sequence[Place]) -> None:
        pass

    lost = revoked


def _read(request: dict[str, Any]) -> dict[str, Any]:
    heap.keep_freed_memory()
    broker = KafkaBroker(request["bootstrap"], request["kafka"])
    consumer = broker.consumer(secrets.token_hex(4), [request["topic"]], _FromTheBeginning())
    polls = iter(lambda: consumer.poll(0.05, 20_000), None)  # as the meter polls
    with contextlib.closing(consumer):
        return _read_all(request, (sum(len(messages.offsets) for messages in found) for found in polls))


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

    def use(batch: list[Any]) -> int:
        for message in batch:
            _add(totals, message.value())
        return len(batch)

    return _read_all(request, map(use, _client(request, _TUNED)))


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
    ticks: list[tuple[float, int]] = []
    done = threading.Event()

    @app.agent(topic)  # type: ignore[misc]
    async def agent(stream: Any) -> None:
        async for value in stream:
            if not ticks:
                ticks.append((time.monotonic(), 0))
            _add(totals, value)
            ticks.append((time.monotonic(), len(ticks)))
            if ticks[-1][1] == request["records"] or ticks[-1][0] - ticks[0][0] > request["seconds"]:
                done.set()
                return

    async def run() -> None:
        await app.start()
        while not done.is_set():
            await asyncio.sleep(0.05)
        with contextlib.suppress(TimeoutError):  # it waits for the agent, which is done
            await asyncio.wait_for(app.stop(), 10)

    asyncio.run(run())
    return answer_of(ticks, ticks[-1])


class _TimedMeter(Meter):
    began = 0.0

    def assigned(self, places: Any) -> Any:
        found = super().assigned(places)
        self.began = self.began or time.monotonic()
        return found


def meter(request: dict[str, Any]) -> dict[str, Any]:
    heap.keep_freed_memory()  # as `tokenometer meter` does
    broker: Broker = KafkaBroker(request["bootstrap"], request["kafka"])
    stem = secrets.token_hex(4)
    outputs = f"{stem}-usage", f"{stem}-live", f"{stem}-rejected"
    if name := request.get("mapping"):
        mapping = mappings.parse(MAPPINGS[name], name)
    else:
        mapping = native(request.get("dedup", True))
    settings = MeterSettings(stem, stem, {request["topic"]: mapping}, *outputs, commit_interval_ms=1000)
    check_topics(broker, settings, 4, 1)
    target = HostTarget()
    secret = [secrets.randbits(64) for _ in range(8)]
    engine = Engine(target, Referee(), secret=secret, limits=limits(target, None), dedup_horizon_ms=HORIZON_MS)
    commits: list[Committed] = []
    ticks: list[tuple[float, int]] = []
    parts: dict[str, int] = {}
    ended = threading.Event()

    def committed(done: Committed) -> None:
        commits.append(done)
        parts[done.snapshot.summary.part] = done.snapshot.summary.tally.read
        ticks.append((time.monotonic() - done.took_ms / 1000, sum(parts.values())))
        if sum(parts.values()) >= request["records"]:
            ended.set()

    timed = _TimedMeter(broker, engine, settings, stem, on_commit=committed)
    timed.run(ended.is_set)
    took = sorted(done.took_ms for done in commits)
    rows = [done.rows for done in commits]
    (*ticks, (last, records)) = ticks
    end = last + commits[-1].took_ms / 1000, records
    return answer_of(
        [(timed.began, 0), *ticks], end, commits=len(commits), rows=sum(rows), rows_max=max(rows),
        commit_ms_median=took[len(took) // 2], commit_ms_max=took[-1], parts=len(parts), output=outputs[0],
    )  # fmt: skip


_CONTENDERS = {
    "consume": partial(_consume, settings={}),
    "consume-tuned": partial(_consume, settings=_TUNED),
    "read": _read,
    "meter": meter,
    "orjson": _orjson,
    "faust": _faust,
}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
