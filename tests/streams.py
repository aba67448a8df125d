"""Runs real meters on a broker, and compares what they committed with the oracle.

`audit` trusts nothing that a meter says of itself: it reads the topics as a consumer of them does.
"""

import datetime
import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import numpy as np
import orjson

from tests import harness, oracle
from tokenometer.kernels.engine import Engine
from tokenometer.kernels.target import HostTarget
from tokenometer.processor.broker import Broker, Place, Position
from tokenometer.processor.meter.meter import Clock, Meter, MeterSettings

INPUT, USAGE, LIVE, REJECTED = "inference-logs", "token-usage", "token-live", "inference-logs-rejected"
GROUP = "billing"
HORIZON_MS = harness.DEDUP_HORIZON_MS
COUNTERS = ("requests", *oracle.COUNTS)


class Inline(Executor):
    """Does at once what it is asked for, so that a simulation has one order."""

    def submit(self, fn: Any, /, *arguments: Any, **named: Any) -> Future:
        future: Future = Future()
        try:
            future.set_result(fn(*arguments, **named))
        except BaseException as error:
            future.set_exception(error)
        return future


def mapped_by(mapping: str | harness.Mapping) -> harness.Mapping:
    """A shipped mapping by its name, or one that a test has made."""
    return harness.shipped(mapping) if isinstance(mapping, str) else mapping


def make_topics(broker: Broker, partitions: int = 1, inputs: Sequence[str] = (INPUT,)) -> None:
    for topic in inputs:
        broker.create_topic(topic, partitions, {})
    broker.create_topic(USAGE, 2, {"cleanup.policy": "compact"})
    broker.create_topic(LIVE, 1, {})
    broker.create_topic(REJECTED, 1, {})


def make_meter(
    broker: Broker,
    name: str = "meter-0",
    *,
    run: str = "",
    inline: bool = True,
    clock: Clock | None = None,
    engine: Engine | None = None,
    inputs: Mapping[str, str | harness.Mapping] | None = None,
    **settings: Any,
) -> Meter:
    """A meter; with `inline` it is to be driven by `open` and `step`."""
    mapped = {topic: mapped_by(mapping).engine for topic, mapping in (inputs or {INPUT: "native"}).items()}
    engine = engine or harness.make_engine(HostTarget(), dedup_horizon_ms=HORIZON_MS)
    threads = {"threads": lambda begin: Inline()} if inline else {}
    return Meter(
        broker, engine, MeterSettings(name, GROUP, mapped, **settings), run or f"{name}.run", clock=clock, **threads
    )


@dataclass
class Outcome:
    """What a stream of one group says, read from its topics."""

    rows: harness.Rows = field(default_factory=dict)  # sums over parts
    letters: list[tuple[Place, int, int, str, str | None, bytes]] = field(default_factory=list)
    tallies: dict[str, int] = field(default_factory=dict)
    ranges: dict[Place, list[tuple[int, int, str]]] = field(default_factory=dict)
    parts: int = 0


def read_topic(broker: Broker, topic: str, **wanted: bool) -> list[Any]:
    found = []
    for place, extent in broker.extents([topic]).items():
        for messages in broker.read(place, extent.begin, extent.end, **wanted):
            keys = messages.keys or [None] * len(messages.values)
            headers = messages.headers or [()] * len(messages.values)
            found += zip(keys, messages.values, headers, strict=True)
    return found


def outcome(broker: Broker) -> Outcome:
    result = Outcome()
    latest: dict[tuple, list[int]] = {}
    for key, value, _ in read_topic(broker, USAGE, keys=True):
        row, identity = orjson.loads(value), orjson.loads(key)
        assert {name: row[name] for name in identity} == identity
        start = int(datetime.datetime.fromisoformat(row["window_start"]).timestamp() * 1000)
        further = [row.get(name, 0) for name in oracle.FURTHER]
        counters = [row[name] for name in COUNTERS] + (further if any(further) else [])
        labels = (tuple(row["labels"].items()),) if "labels" in row else ()
        place = (start, row["user"], row["model"], row["chip"], *labels)
        before = latest.get((place, row["part"]), [])
        assert all(a <= b for a, b in zip_longest(before, counters, fillvalue=0))
        latest[place, row["part"]] = counters
    for (place, _), counters in latest.items():
        harness.add_rows(result.rows, {place: counters})
    last: dict[str, dict] = {}
    for _, value, _ in read_topic(broker, LIVE):
        summary = orjson.loads(value)
        assert summary["sequence"] >= last.get(summary["part"], summary)["sequence"]
        last[summary["part"]] = summary
    for part, summary in last.items():
        for name, count in summary["records"].items():
            result.tallies[name] = result.tallies.get(name, 0) + count
        for covered in summary["partitions"]:
            if covered["next"] > covered["from"]:
                place = Place(covered["topic"], covered["partition"])
                result.ranges.setdefault(place, []).append((covered["from"], covered["next"], part))
    result.parts = len(last)
    for _, value, headers in read_topic(broker, REJECTED, headers=True):
        texts = {name: text.decode() for name, text in headers}
        place = Place(texts["topic"], int(texts["partition"]))
        where = int(texts["offset"]), int(texts["line"])
        if "size" in texts:
            value = (value, int(texts["size"]), texts["sha256"])
        result.letters.append((place, *where, texts["reason"], texts.get("field"), value))
    result.letters.sort(key=lambda letter: letter[:3])
    return result


def said_of(record: bytes | tuple[bytes, int, str]) -> bytes | tuple[bytes, int, str]:
    """What a dead letter says of a record: all, or of one above 900 KiB its head, size and hash."""
    if isinstance(record, tuple) or len(record) <= 900 << 10:
        return record
    return record[: 64 << 10], len(record), hashlib.sha256(record).hexdigest()


def expected(
    broker: Broker,
    inputs: Mapping[str, str | harness.Mapping] | None = None,
    horizon_ms: int = HORIZON_MS,
    upto: Mapping[Place, Position | None] | None = None,
) -> tuple[oracle.Meter, list]:
    """The oracle over everything that the input topics hold (`upto` the group's positions), and its dead letters by
    offset."""
    wanted = oracle.Meter(dedup_horizon_ms=horizon_ms, decode=harness.decode_of())
    letters = []
    for topic, mapping in (inputs or {INPUT: "native"}).items():
        for place, extent in broker.extents([topic]).items():
            position = None if upto is None else upto[place]
            end = extent.end if upto is None else position.offset if position else extent.begin
            for messages in broker.read(place, extent.begin, end):
                for value, time, offset in zip(
                    messages.values, messages.times.tolist(), messages.offsets.tolist(), strict=True
                ):
                    before = len(wanted.dead_letters)
                    wanted.feed(mapped_by(mapping).oracle, value, time, place)
                    letters += [
                        (place, offset, *letter[2:5], said_of(letter[5])) for letter in wanted.dead_letters[before:]
                    ]
    return wanted, sorted(letters, key=lambda letter: letter[:3])


def assert_exact(
    broker: Broker,
    inputs: Mapping[str, str | harness.Mapping] | None = None,
    horizon_ms: int = HORIZON_MS,
    upto: Mapping[Place, Position | None] | None = None,
) -> Outcome:
    """All that the input topics hold was committed, once. `upto` the group's positions: all that lies before them, and
    nothing else."""
    found, (wanted, letters) = outcome(broker), expected(broker, inputs, horizon_ms, upto)
    assert found.rows == harness.wanted_rows(wanted)
    assert found.letters == letters
    assert found.tallies.get("read", 0) == wanted.read
    for name in ("counted", "duplicates", "rejected", "empty", "skipped", "conflicts"):
        assert found.tallies.get(name, 0) == getattr(wanted, name), name
    assert_tiled(broker, found, list(inputs or [INPUT]), partly=upto is not None)
    return found


def assert_tiled(broker: Broker, found: Outcome, topics: list[str], partly: bool = False) -> None:
    """The parts' ranges meet without gap or overlap, from the first message to the committed offset. `partly`: some
    partitions may have none yet."""
    committed = broker.committed(GROUP, topics)
    for place, extent in broker.extents(topics).items():
        ranges = sorted(found.ranges.get(place, []))
        position = committed[place]
        at = ranges[0][0] if ranges else position.offset if position else extent.begin
        for first, following, part in ranges:
            assert first == at, f"{place}: {part} begins at {first}, the one before ends at {at}"
            at = following
        if position is None and partly and not ranges:
            continue
        assert position is not None and position.offset == at, (place, position, at)


def times_of(start_ms: int, count: int, step_ms: int = 10) -> list[int]:
    return (start_ms + step_ms * np.arange(count)).tolist()
