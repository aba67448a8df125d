"""`tokenometer verify`: a clean stream is clean, every kind of damage is named, and its judge is the oracle's equal."""

import copy
import dataclasses
import functools
import io
import itertools
import json
import os
import random
import subprocess
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest
from rich.console import Console

from tests import bad_input, harness, mutate, oracle, streams
from tests.test_schemas import validator
from tokenometer.processor.broker import BEGINNING, Offset, Place, Position
from tokenometer.processor.broker.memory import MemoryBroker
from tokenometer.processor.verify import VerifySettings, sums, verify
from tokenometer.processor.verify import tasks as verify_tasks
from tokenometer.processor.verify.judge import Judge, SkippedRecord
from tokenometer.processor.verify.report import render
from tokenometer.processor.verify.values import (
    DuckDBMissing,
    LogGone,
    NothingCommitted,
    RefusedRecord,
    Report,
    StreamMoves,
    UnknownSchema,
    VerifyError,
    WrongWindow,
)
from tokenometer.schemas.mapping_model import EPOCH_FORMATS

GROUP = "meters"
LOG, USAGE, LIVE, REJECTED = "inference-logs", "token-usage", "token-live", "inference-logs-rejected"
WINDOW_MS, HORIZON_MS, NOW_MS = 60_000, 1000, mutate.NOW_MS
COUNTERS = ("requests", *oracle.COUNTS)
ALL = len(COUNTERS) + len(oracle.FURTHER)
SETTINGS = VerifySettings(dedup_horizon_ms=HORIZON_MS, settle_seconds=0, processes=1)
SEED = int(os.environ.get("TOKENOMETER_FUZZ_SEED", "1"))
LINES = 12_000 * harness.TIMES


# --- A metered stream: the oracle counts, the writer below publishes ---


class Taker:
    """Takes every partition from its beginning."""

    def assigned(self, places: Sequence[Place]) -> Mapping[Place, Offset]:
        return dict.fromkeys(places, BEGINNING)

    def revoked(self, places: Sequence[Place]) -> None: ...

    def lost(self, places: Sequence[Place]) -> None: ...


@dataclass
class Stream:
    """What a meter has published, still to be damaged, and then to be written to a broker."""

    broker: MemoryBroker
    mapping: harness.Mapping
    usage: list[tuple[dict[str, Any], dict[str, Any]]] = field(default_factory=list)
    live: list[dict[str, Any]] = field(default_factory=list)
    letters: list[tuple[bytes, dict[str, str]]] = field(default_factory=list)
    committed: dict[Place, int] = field(default_factory=dict)

    def row(self, index: int) -> dict[str, Any]:
        return self.usage[index][1]

    def publish(self) -> None:
        consumer = self.broker.consumer(GROUP, [LOG], Taker())
        while not consumer.assignment():
            consumer.poll(0, 1)
        producer = self.broker.producer("meter-0")
        producer.begin()
        keys, values = ([json.dumps(row[side]).encode() for row in self.usage] for side in (0, 1))
        producer.produce(USAGE, values, keys)
        meters = [str(summary.get("meter")).encode() for summary in self.live]
        producer.produce(LIVE, [orjson.dumps(summary) for summary in self.live], meters)
        headers = [[(name, text.encode()) for name, text in texts.items()] for _, texts in self.letters]
        producer.produce(REJECTED, [value for value, _ in self.letters], headers=headers)
        positions = {place: Position(Offset(offset), "") for place, offset in self.committed.items()}
        producer.send_offsets(positions, consumer.group_metadata())
        producer.commit()
        producer.close()
        consumer.close()

    def verify(self, settings: VerifySettings = SETTINGS) -> Report:
        self.publish()
        return verify(self.broker, GROUP, {LOG: self.mapping.engine}, settings)


def rfc3339(ms: int) -> str:
    return mutate.time_text(Zulu(), ms)


class Zulu(random.Random):
    """Chooses UTC and no fraction from mutate's ways to write a time."""

    def choice(self, seq: Any) -> Any:
        return seq[0]

    def random(self) -> float:
        return 1.0


class Writer:
    """Counts a log with the oracle, one commit after another, in parts."""

    def __init__(self, broker: MemoryBroker, mapping: harness.Mapping) -> None:
        self.stream = Stream(broker, mapping)
        self.meter = oracle.Meter(WINDOW_MS, dedup_horizon_ms=HORIZON_MS, decode=harness.decode_of())
        self.offsets: dict[Place, list[int]] = defaultdict(list)  # of each partition's messages
        self.part = -1
        self.open_part()

    def open_part(self) -> None:
        self.part += 1
        self.sequence = 0
        self.begins = dict(self.stream.committed)
        self.before = self.state()
        self.written: dict[tuple, tuple[int, ...]] = {}

    def state(self) -> dict[str, Any]:
        meter = self.meter
        records = {
            name: getattr(meter, name)
            for name in ("read", "counted", "duplicates", "rejected", "empty", "skipped", "conflicts")
        }
        none = Counter[str]()
        rows = {
            key: (*counters, *(meter.further.get(key, none)[name] for name in oracle.FURTHER))
            for key, counters in meter.rows.items()
        }
        return {"records": records, "rejects": dict(meter.reasons), "rows": rows}

    def commit(self, place: Place, end: int) -> None:
        """Count a partition up to an offset, and publish."""
        begin = self.stream.committed.get(place, 0)
        self.begins.setdefault(place, begin)
        letters = len(self.meter.dead_letters)
        for messages in self.stream.broker.read(place, Offset(begin), Offset(end)):
            for value, time, offset in zip(messages.values, messages.times, messages.offsets, strict=True):
                self.offsets[place].append(int(offset))
                self.meter.feed(self.stream.mapping.oracle, value, int(time), place)
        self.stream.committed[place] = end
        self.publish_rows()
        self.publish_summary()
        self.stream.letters += map(self.letter, self.meter.dead_letters[letters:])

    def rows(self) -> dict[tuple, tuple[int, ...]]:
        """Of the open part. Rows that are new belong to it even if they are all zero."""
        before, now = self.before["rows"], self.state()["rows"]
        rows = {key: minus(counters, before.get(key, (0,) * ALL)) for key, counters in now.items()}
        return {key: row for key, row in rows.items() if key not in before or any(row)}

    def publish_rows(self) -> None:
        for identity, counters in self.rows().items():
            if self.written.get(identity) == counters:
                continue
            self.written[identity] = counters
            start, user, model, chip, *labels = identity
            key = {"window_start": rfc3339(start), "user": user, "model": model, "chip": chip}
            key |= ({"labels": dict(labels[0])} if labels else {}) | {"part": self.name}
            further = dict(zip(oracle.FURTHER, counters[6:], strict=True))
            value = key | {"schema": 2, "window_ms": WINDOW_MS} | tokens_of(counters[:6])
            value |= {name: count for name, count in further.items() if count}
            self.stream.usage.append((key, value))

    def publish_summary(self) -> None:
        before, now = self.before, self.state()
        rejects = {reason: count - before["rejects"].get(reason, 0) for reason, count in now["rejects"].items()}
        frame = {
            "schema": 1,
            "meter": "meter-0",
            "part": self.name,
            "sequence": self.sequence,
            "committed_at": rfc3339(NOW_MS + len(self.stream.live) * 1000),
            "window_ms": WINDOW_MS,
            "device": "host",
            "records": {name: count - before["records"][name] for name, count in now["records"].items()},
            "rejects": {reason: count for reason, count in rejects.items() if count},
            "partitions": [
                {"topic": place.topic, "partition": place.partition, "from": begin,
                 "next": self.stream.committed[place], "end": None, "watermark": None, "log_time": None}
                for place, begin in self.begins.items()
            ],
            "tokens": tokens_of([sum(column) for column in zip(*self.rows().values(), strict=True)][:6] or [0] * 6),
            "top_users": [],
            "users": [],
        }  # fmt: skip
        cells = [{"window_start": rfc3339(0), "model": "m", "chip": "c"} | tokens_of([0] * 6)]
        messages = [frame | {"cells": cells}, frame | {"cells": []}] if self.sequence % 2 else [frame | {"cells": []}]
        self.stream.live += map(copy.deepcopy, messages)  # damage to one is not damage to the other
        self.sequence += 1

    @property
    def name(self) -> str:
        return f"meter-0.{self.part}"

    def letter(self, letter: tuple) -> tuple[bytes, dict[str, str]]:
        place, message, line, reason, name, value = letter
        texts = {"reason": reason, "topic": place.topic, "partition": str(place.partition)}
        texts |= {"offset": str(self.offsets[place][message]), "line": str(line)}
        return value, texts | ({"field": name} if name else {})


def minus(a: Iterable[int], b: Iterable[int]) -> tuple[int, ...]:
    return tuple(x - y for x, y in zip(a, b, strict=True))


def tokens_of(counters: Sequence[int]) -> dict[str, int]:
    tokens = dict(zip(COUNTERS, counters, strict=True))
    return tokens | {"total_tokens": tokens["input_tokens"] + tokens["output_tokens"]}


def new_broker(partitions: int = 2) -> MemoryBroker:
    broker = MemoryBroker()
    broker.create_topic(LOG, partitions, {})
    broker.create_topic(USAGE, 3, {"cleanup.policy": "compact"})
    for topic in (LIVE, REJECTED):
        broker.create_topic(topic, 2, {})
    return broker


def messages(rng: random.Random, name: str, lines: list[bytes]) -> tuple[list[bytes | None], list[int]]:
    """Lines as messages of one or several, times that mostly go forward."""
    values: list[bytes | None] = []
    times: list[int] = []
    at, now = 0, NOW_MS
    while at < len(lines):
        size = rng.choice([1, 1, 1, 2, 7])
        some = [None] if rng.random() < 0.01 else [b"\n".join(lines[at : at + size])]
        if rng.random() < 0.1:
            some += some  # sent again
        for value in some:
            now += rng.choice([0, 0, 0, 20, 400, HORIZON_MS, 3 * HORIZON_MS // 2]) if rng.random() < 0.1 else 0
            values.append(value)
            times.append(now - rng.choice([0, 0, 700]))
        at += size
    return values, times


def make_stream(name: str = "native", lines: int = 300, seed: int = SEED) -> Stream:
    """Two partitions, three parts, several commits; offsets with gaps, and late, repeated and hostile records."""
    return copied(_stream(name, lines, seed))


@functools.cache
def _stream(name: str, lines: int, seed: int) -> Stream:
    return build_stream(name, lines, seed)


def copied(stream: Stream) -> Stream:
    """A stream that can be damaged and published, while the one that took long to make stays as it is."""
    waiting = stream.broker._cluster.changed
    memo = {id(stream.mapping): stream.mapping, id(waiting): threading.Condition()}
    return copy.deepcopy(stream, memo)


def build_stream(
    name: str, lines: int = 300, seed: int = SEED,
    between: Callable[[Stream, int, int], None] = lambda stream, part, step: None,
) -> Stream:  # fmt: skip
    """between: called after each step of each part."""
    rng = random.Random(f"{seed} {name}")
    broker, mapping = new_broker(), harness.shipped(name)
    log = list(mutate.lines(rng, name, mapping.oracle, lines))
    for _ in range(3):
        values, times = messages(rng, name, [line for line in log if rng.random() < 0.5])
        keys = [b"%d" % rng.randrange(20) for _ in values]
        broker.append(LOG, values, keys, times)
        abort_one(broker)
    writer = Writer(broker, mapping)
    ends = {place: extent.end for place, extent in broker.extents([LOG]).items()}
    for part in range(3):
        for step in (1, 2):
            for place, end in ends.items():
                if place.partition == 0 or part > 0:  # another partition comes later
                    writer.commit(place, end * (2 * part + step) // 6)
            between(writer.stream, part, step)
        if part < 2:
            writer.open_part()
    return writer.stream


def abort_one(broker: MemoryBroker) -> None:
    producer = broker.producer("synth")
    producer.begin()
    producer.produce(LOG, [bad_input.GOOD] * 2, [b"1", b"2"])
    producer.abort()
    producer.close()


def simple_stream(values: list[bytes | None], times: list[int] | None = None, name: str = "native") -> Stream:
    broker = new_broker(1)
    broker.append(LOG, values, None, times or [NOW_MS] * len(values))
    writer = Writer(broker, harness.shipped(name))
    writer.commit(Place(LOG, 0), len(values))
    return writer.stream


# --- Clean streams ---


@pytest.mark.slow
@pytest.mark.parametrize("name", harness.SHIPPED)
def test_a_clean_stream_is_clean(name):
    stream = make_stream(name)
    report = stream.verify()
    assert (report.problems, report.differences, report.letter_differences) == ((), (), ())
    assert report.clean and report.expected == report.found and report.expected_rows == report.found_rows > 0
    records = [summary["records"] for summary in last_summaries(stream)]
    for kind in ("read", "counted", "duplicates", "rejected", "empty"):
        assert getattr(report.tally, kind) == sum(record[kind] for record in records)
    assert report.tally.duplicates and report.tally.rejected + report.tally.conflicts == report.letters > 0
    assert report.parts == 3 and report.usage_messages == len(stream.usage) >= report.found_rows


def last_summaries(stream: Stream) -> list[dict[str, Any]]:
    return list({summary["part"]: summary for summary in stream.live}.values())


def test_what_the_writer_writes_is_valid():
    """Else this file would prove nothing about real streams."""
    stream = make_stream()
    for key, value in stream.usage[:50]:
        validator("usage-key").validate(key)
        validator("usage").validate(value)
    for summary in stream.live:
        validator("live").validate(summary)
    for _, headers in stream.letters[:50]:
        validator("rejected").validate(headers)


def test_a_partition_that_nobody_committed_is_not_verified_yet():
    stream = make_stream()
    stream.broker.add_partitions(LOG, 3)
    assert stream.verify().clean


def test_more_log_than_was_committed_is_not_verified_yet():
    stream = make_stream()
    stream.broker.append(LOG, [bad_input.GOOD, b"{"], [b"1", b"2"], [NOW_MS, NOW_MS])
    report = stream.verify()
    assert report.clean and sum(place.end - place.committed for place in report.partitions) >= 2


@pytest.mark.parametrize(
    "generations, counted",
    [
        ([0, 0], [0]),
        ([0, 1], [0]),
        ([0, 2], [0, 1]),
        ([0, 1, 2], [0]),
        ([0, 1, 2, 3, 4], [0]),
        ([0, 1, 1, 3, 3, 4], [0, 3]),
        ([0, 1, 3, 4, 6], [0, 2, 4]),
        ([5, 3, 6, 8], [0, 3]),  # an earlier message time does not turn log time back
    ],
)
def test_an_identity_counts_again_when_it_was_not_seen_for_a_generation(generations, counted):
    base = NOW_MS - NOW_MS % HORIZON_MS
    lines = [bad_input.changed(request_id=b'"r"', user=b'"%d"' % n) for n in range(len(generations))]
    stream = simple_stream(list(lines), [base + generation * HORIZON_MS for generation in generations])
    report = stream.verify()
    assert report.clean
    assert sorted(int(row["user"]) for _, row in stream.usage) == counted
    assert report.tally.duplicates == len(generations) - len(counted)


def test_names_are_bytes():
    """A NUL, a letter and its decomposed form, and a name of 256 bytes are names like any other."""
    users = [b'"\\u0000"', b'"\\u0000\\u0000"', '"é"'.encode(), '"e\u0301"'.encode(), b'"' + b"x" * 256 + b'"', b'" "']
    lines = [bad_input.changed(user=user, request_id=user) for user in users]
    report = simple_stream([*lines, *lines]).verify()
    assert report.clean and report.found_rows == len(users) and report.tally.duplicates == len(users)


def test_totals_beyond_64_bits_add_up():
    line = bad_input.changed(input_tokens=b"1099511627775", user=b'"u"')
    stream = simple_stream([b"\n".join([line] * 5)])
    report = stream.verify()
    assert report.clean and report.found[1] == 5 * (2**40 - 1)


def test_other_processes_find_the_same(monkeypatch):
    monkeypatch.setattr("tokenometer.processor.verify._FEW_MESSAGES", 0)
    monkeypatch.setattr("tokenometer.processor.verify._FEW_LINES", 0)
    monkeypatch.setattr("tokenometer.processor.verify._MANY_LETTERS", 0)
    monkeypatch.setattr("tokenometer.processor.verify._CHUNK_MESSAGES", 20)
    stream = make_stream()
    stream.row(-1)["requests"] += 1
    here = stream.verify()
    there = verify(stream.broker, GROUP, {LOG: stream.mapping.engine}, dataclasses.replace(SETTINGS, processes=2))
    assert here.differing_rows == 1
    assert {**vars(here), "seconds": 0} == {**vars(there), "seconds": 0}


@pytest.mark.parametrize("damaged", [False, True])
def test_many_rows_stay_in_their_files_and_say_the_same_as_few(damaged, monkeypatch):
    reports = []
    for most in (sums._SMALL_BYTES, -1):
        monkeypatch.setattr(sums, "_SMALL_BYTES", most)
        stream = make_stream()
        if damaged:
            stream.row(-1)["requests"] += 1
            del stream.letters[3], stream.usage[5]
        reports.append(stream.verify())
    assert reports[0].tally.duplicates and reports[0].letters and reports[0].clean is not damaged
    assert vars(reports[0]) | {"seconds": 0} == vars(reports[1]) | {"seconds": 0}


def test_nothing_of_the_engine_is_imported():
    code = (
        "import sys, tokenometer.processor.verify, duckdb; "
        "rooms = 'tokenometer.kernels', 'tokenometer.processor.records', 'tokenometer.processor.files'; "
        "print([m for m in sys.modules if m.startswith(rooms)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
@pytest.mark.parametrize("name", harness.SHIPPED)
def test_what_a_meter_writes_is_clean(name):
    """The engine and this audit have no line in common; commits at every step, and a meter that takes over."""
    rng = random.Random(f"{SEED} meter {name}")
    broker = MemoryBroker(patience_seconds=0)  # nobody else writes, so there is nothing to wait for
    streams.make_topics(broker, 2)
    for again in range(2):
        log = list(mutate.lines(rng, name, harness.shipped(name).oracle, 150 * harness.TIMES))
        values, times = messages(rng, name, log)
        broker.append(streams.INPUT, values, [b"%d" % rng.randrange(20) for _ in values], times)
        abort_one(broker)
        stop = itertools.chain([False] * 12, itertools.repeat(True))
        meter = streams.make_meter(
            broker, inputs={streams.INPUT: name}, commit_interval_ms=0, flush_ms=0, run=f"run-{again}"
        )
        meter.run(lambda stop=stop: next(stop))
        settings = VerifySettings(dedup_horizon_ms=streams.HORIZON_MS, settle_seconds=0, processes=1)
        report = verify(broker, streams.GROUP, {streams.INPUT: harness.shipped(name).engine}, settings)
        assert report.clean, text_of(report)
        assert report.parts > again and report.tally.read >= 150 * (again + 1)


# --- Damage ---


def text_of(report: Report) -> str:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(render(report))
    return console.export_text()


def assert_found(report: Report, *kinds: str) -> str:
    assert not report.clean
    assert {problem.kind for problem in report.problems} == set(kinds)
    text = text_of(report)
    assert "NOT clean" in text and max(map(len, text.splitlines())) <= 80
    return text


@pytest.mark.slow
@pytest.mark.parametrize("name", COUNTERS)
@pytest.mark.parametrize("by", [1, -1])
def test_one_token_off(name, by):
    stream = make_stream()
    index = next(n for n in reversed(range(len(stream.usage))) if stream.row(n)[name] >= 1)
    row = stream.row(index)
    row[name] += by
    row["total_tokens"] = row["input_tokens"] + row["output_tokens"]
    report = stream.verify()
    assert_found(report, "tokens")
    [difference] = report.differences
    assert (difference.user, difference.model, difference.chip) == (row["user"], row["model"], row["chip"])
    assert rfc3339(difference.window_start_ms) == row["window_start"]
    assert difference.expected and difference.found
    off = minus(difference.found, difference.expected)
    assert off == tuple(by if counter == name else 0 for counter in COUNTERS)


def only_part(stream: Stream) -> int:
    """A row whose key has one part and one message."""
    keys = [tuple(key.values())[:4] for key, _ in stream.usage]
    return next(n for n, key in enumerate(keys) if keys.count(key) == 1 and stream.row(n)["total_tokens"])


def test_a_missing_row():
    stream = make_stream()
    key, _ = stream.usage.pop(only_part(stream))
    report = stream.verify()
    assert_found(report, "tokens")
    [difference] = report.differences
    assert difference.user == key["user"] and difference.expected and difference.found is None


def test_an_extra_row():
    stream = make_stream()
    key, value = stream.usage[-1]
    stream.usage.append((key | {"user": "nobody"}, value | {"user": "nobody"}))
    report = stream.verify()
    assert_found(report, "tokens")
    [difference] = report.differences
    assert difference.user == "nobody" and difference.expected is None and difference.found


def test_an_extra_row_without_any_tokens():
    stream = make_stream()
    key, value = stream.usage[-1]
    stream.usage.append((key | {"user": "nobody"}, value | {"user": "nobody"} | tokens_of([0] * 6)))
    report = stream.verify()
    assert_found(report)
    assert [difference.user for difference in report.differences] == ["nobody"]


def test_an_old_row_that_came_last():
    stream = make_stream()
    keys = [key for key, _ in stream.usage]
    again = next(key for key in keys if keys.count(key) > 1)
    stream.usage.append(stream.usage[keys.index(again)])
    report = stream.verify()
    assert_found(report, "tokens")
    assert report.differing_rows == 1


def test_rows_of_an_unknown_part():
    stream = make_stream()
    key, value = stream.usage[-1]
    stream.usage.append((key | {"part": "zombie"}, value | {"part": "zombie"}))
    text = assert_found(stream.verify(), "tokens")
    assert "zombie" in text


@pytest.mark.parametrize("consistent", [False, True])
def test_a_duplicate_that_was_counted(consistent):
    """Rows and summaries that agree with each other do not make it right."""
    line = bad_input.changed(request_id=b'"r"')
    stream = simple_stream([line, line])
    stream.usage[-1][1].update(tokens_of([2, 20, 0, 0, 10, 0]))
    if consistent:
        stream.live[-1]["tokens"] = tokens_of([2, 20, 0, 0, 10, 0])
        stream.live[-1]["records"].update(counted=2, duplicates=0)
    report = stream.verify()
    assert_found(report, "records" if consistent else "tokens")
    [difference] = report.differences
    assert (difference.expected, difference.found) == ((1, 10, 0, 0, 5, 0), (2, 20, 0, 0, 10, 0))


def change_range(stream: Stream, part: int, name: str, by: int) -> None:
    for summary in stream.live:
        if summary["part"] == f"meter-0.{part}":
            summary["partitions"][0][name] += by


@pytest.mark.slow
@pytest.mark.parametrize(
    "part, name, by, kind",
    [
        (1, "from", 1, "gap"),
        (1, "from", -1, "overlap"),
        (0, "next", -1, "gap"),
        (0, "next", 1, "overlap"),
        (0, "from", 1, "gap"),
        (2, "next", 1, "end"),
        (2, "next", -1, "end"),
    ],
)
def test_ranges_that_do_not_tile(part, name, by, kind):
    stream = make_stream()
    change_range(stream, part, name, by)
    text = assert_found(stream.verify(), kind)
    assert f"{LOG}/0" in text


def test_a_part_inside_of_another():
    stream = make_stream()
    ranges = stream.live[-1]["partitions"]
    stream.live[-1]["partitions"] = [*ranges, ranges[0] | {"from": 3, "next": 5}]
    stream.live[-1]["sequence"] += 1
    assert_found(stream.verify(), "overlap")


def test_a_part_without_its_summaries():
    stream = make_stream()
    stream.live = [summary for summary in stream.live if summary["part"] != "meter-0.1"]
    assert_found(stream.verify(), "gap", "records", "tokens")


def test_committed_without_a_part():
    stream = simple_stream([bad_input.GOOD] * 3)
    stream.live.clear()
    assert_found(stream.verify(), "gap", "records", "tokens")


def test_a_part_of_a_topic_that_is_not_verified():
    stream = make_stream()
    stream.live[-1]["partitions"].append(stream.live[-1]["partitions"][0] | {"topic": "other"})
    stream.live[-1]["sequence"] += 1
    text = assert_found(stream.verify(), "end")
    assert "other/0" in text


@pytest.mark.parametrize("name", ["read", "counted", "duplicates", "rejected", "empty"])
def test_records_that_do_not_add_up(name):
    stream = make_stream()
    for summary in stream.live:
        if summary["part"] == "meter-0.2":
            summary["records"][name] += 1
    assert_found(stream.verify(), "conservation", "records")


def test_a_reason_for_another():
    stream = make_stream()
    for summary in stream.live:
        if summary["part"] == "meter-0.2":
            summary["rejects"]["too_long"] = summary["rejects"].pop("invalid_json", 0)  # 0 is as good as none
    text = assert_found(stream.verify(), "records")
    assert "too_long" in text and "invalid_json" in text


def test_total_tokens_that_are_no_total():
    stream = make_stream()
    stream.live[-1]["tokens"]["total_tokens"] += 1
    stream.live[-1]["sequence"] += 1
    assert_found(stream.verify(), "conservation")


def test_a_summary_that_is_missing():
    stream = make_stream()
    stream.live = [summary for summary in stream.live if (summary["part"], summary["sequence"]) != ("meter-0.1", 1)]
    text = assert_found(stream.verify(), "sequence")
    assert "summary 1" in text


def test_a_summary_that_is_out_of_sequence():
    """The last state under a low number: what looks like the last is old."""
    stream = make_stream()
    for summary in stream.live:
        if summary["part"] == "meter-0.0":
            summary["sequence"] = {3: 0, 0: 3}.get(summary["sequence"], summary["sequence"])
    assert not stream.verify().clean


def test_messages_of_one_summary_that_contradict_each_other():
    stream = make_stream()
    stream.live.append(stream.live[-1] | {"device": "another"})
    assert_found(stream.verify(), "summary")


@pytest.mark.parametrize("damage", [{"records": {}}, {"partitions": None}, {"tokens": {"requests": 1.5}}, {"part": 1}])
def test_a_summary_that_is_none(damage):
    stream = make_stream()
    stream.live.append(stream.live[-1] | damage)
    assert_found(stream.verify(), "summary")


def test_a_missing_letter():
    stream = make_stream()
    _, headers = stream.letters.pop(5)
    text = assert_found(report := stream.verify())
    [letter] = report.letter_differences
    assert letter.what == "missing" and letter.found is None and "missing" in text
    assert (str(letter.place.partition), str(letter.offset), str(letter.line)) == tuple(
        headers[name] for name in ("partition", "offset", "line")
    )


def test_a_letter_twice():
    stream = make_stream()
    stream.letters.append(stream.letters[5])
    report = stream.verify()
    assert_found(report)
    assert [letter.what for letter in report.letter_differences] == ["repeated"]


@pytest.mark.parametrize(
    "header, text, what",
    [
        ("reason", "too_long", ["other verdict"]),
        ("field", "chip", ["other verdict"]),
        ("line", "77", ["missing", "unexpected"]),
        ("topic", "elsewhere", ["missing", "unexpected"]),
    ],
)
def test_a_letter_with_another_header(header, text, what):
    stream = make_stream()
    index = next(n for n, (_, headers) in enumerate(stream.letters) if headers.get("field") == "user")
    stream.letters[index][1][header] = text
    report = stream.verify()
    assert_found(report)
    assert sorted(letter.what for letter in report.letter_differences) == what


def test_a_letter_with_one_byte_changed():
    stream = make_stream()
    value, headers = stream.letters[5]
    stream.letters[5] = (value[:-1] + bytes([value[-1] ^ 1]), headers)
    report = stream.verify()
    assert_found(report)
    assert [letter.what for letter in report.letter_differences] == ["other bytes"]


def test_a_letter_for_a_record_that_counts():
    stream = simple_stream([bad_input.GOOD])
    headers = {"reason": "invalid_json", "topic": LOG, "partition": "0", "offset": "0", "line": "0"}
    stream.letters.append((bad_input.GOOD, headers))
    report = stream.verify()
    assert_found(report)
    assert [letter.what for letter in report.letter_differences] == ["unexpected"]


@pytest.mark.parametrize("header, text", [("offset", "x"), ("offset", "01"), ("reason", "why"), ("more", "1")])
def test_a_letter_that_is_none(header, text):
    stream = make_stream()
    stream.letters[5][1][header] = text
    report = stream.verify()
    assert_found(report, "letter")
    assert [letter.what for letter in report.letter_differences] == ["missing"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage",
    [
        {"total_tokens": 10**15},
        {"requests": -1},
        {"requests": 1.0},
        {"requests": True},
        {"requests": 2**64},
        {"user": ""},
        {"user": None},
        {"window_start": "2026-11-20T10:00:01Z"},
        {"window_start": "2026-11-20"},
        {"extra": 1},
    ],
)
def test_a_row_that_is_none(damage):
    stream = make_stream()
    key, value = stream.usage[-1]
    same_key = {name: damage.get(name, text) for name, text in key.items()}
    stream.usage.append((same_key, value | damage))
    assert_found(stream.verify(), "row")


@pytest.mark.parametrize("name", ["window_start", "user", "model", "chip", "part"])
def test_a_row_under_another_key(name):
    stream = make_stream()
    key, value = stream.usage[-1]
    stream.usage.append((key | {name: "2026-11-20T10:00:00Z"}, value))
    assert_found(stream.verify(), "row")


def test_a_tombstone():
    stream = make_stream()
    stream.publish()
    stream.broker.append(USAGE, [None], [orjson.dumps(stream.usage[-1][0])])
    report = verify(stream.broker, GROUP, {LOG: stream.mapping.engine}, SETTINGS)
    assert_found(report, "row")


def test_one_identity_in_two_partitions():
    stream = make_stream()
    key, value = stream.usage[-1]
    stream.publish()
    text = orjson.dumps(value)
    for spelling in range(8):  # the partition follows from the key's bytes
        stream.broker.append(USAGE, [text], [orjson.dumps(key) + b" " * spelling])
    assert_found(verify(stream.broker, GROUP, {LOG: stream.mapping.engine}, SETTINGS), "row", "tokens")


def test_only_so_many_differences_are_shown():
    stream = make_stream()
    for _, row in stream.usage:
        row["requests"] += 1
    report = stream.verify(dataclasses.replace(SETTINGS, differences_max=3))
    text = assert_found(report, "tokens")
    assert len(report.differences) == 3 < report.differing_rows and f"{report.differing_rows:,}" in text
    keys = [(d.window_start_ms, d.user.encode(), d.model.encode(), d.chip.encode()) for d in report.differences]
    assert keys == sorted(keys)


# --- What cannot be audited ---


@pytest.mark.parametrize("version", [2, 3, None, "1", True])
def test_an_unknown_schema_has_its_error(version):
    for damage in ("usage", "live"):
        stream = make_stream()
        (stream.row(-1) if damage == "usage" else stream.live[-1])["schema"] = version
        if (damage, version) == ("usage", 2):
            assert stream.verify().clean, "rows of both versions may be in one topic"
            continue
        with pytest.raises(UnknownSchema, match="token-"):
            stream.verify()


def test_another_window_has_its_error():
    with pytest.raises(WrongWindow, match="60000 ms, verified with 30000 ms"):
        make_stream().verify(VerifySettings(window_ms=30_000, settle_seconds=0))


def test_retention_of_the_log_has_its_error():
    stream = make_stream()
    stream.publish()
    stream.broker.delete_before(Place(LOG, 0), Offset(4))
    with pytest.raises(LogGone, match="begins at offset 4, but it was metered from 0"):
        verify(stream.broker, GROUP, {LOG: stream.mapping.engine}, SETTINGS)


def test_a_log_that_ends_before_the_committed_offset_has_its_error():
    stream = make_stream()
    stream.committed[Place(LOG, 0)] += 1000
    with pytest.raises(LogGone, match="made anew"):
        stream.verify()


def test_a_missing_duckdb_has_its_error(monkeypatch):
    stream = make_stream()
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(DuckDBMissing, match="pip install"):
        stream.verify()


def test_too_little_memory_has_its_error():
    with pytest.raises(VerifyError, match="DuckDB"):
        make_stream().verify(dataclasses.replace(SETTINGS, memory_bytes=1 << 20))


def test_a_commit_while_the_cut_is_taken_is_waited_for(monkeypatch):
    """The published topics are as they were between two commits, not in the middle of one."""
    stream = simple_stream([bad_input.GOOD])
    extents, late = stream.broker.extents, []
    nothing = Stream(stream.broker, stream.mapping, committed={Place(LOG, 0): 0})
    nothing.publish()

    def another_commit(topics: Sequence[str]) -> dict:
        found = extents(topics)
        if USAGE in topics and not late:
            late.append(True)
            stream.publish()
        return found

    monkeypatch.setattr(stream.broker, "extents", another_commit)
    report = verify(stream.broker, GROUP, {LOG: stream.mapping.engine}, SETTINGS)
    assert late and report.clean and report.found_rows == 1


def test_retention_of_what_was_published_is_noted():
    stream = make_stream()
    stream.publish()
    for place, extent in stream.broker.extents([LIVE]).items():
        stream.broker.delete_before(place, Offset(max(0, extent.end - 2)))
    report = verify(stream.broker, GROUP, {LOG: stream.mapping.engine}, SETTINGS)
    assert not report.clean and LIVE in " ".join(report.notes) and "retention" in text_of(report)


def test_a_group_that_committed_nothing_has_its_error():
    with pytest.raises(NothingCommitted, match="nobody"):
        verify(make_stream().broker, "nobody", {LOG: harness.shipped().engine}, SETTINGS)


def test_a_group_that_never_rests_has_its_error(monkeypatch):
    stream = make_stream()
    stream.publish()
    offsets = iter(range(10**6))
    monkeypatch.setattr(
        stream.broker, "committed", lambda group, topics: {Place(LOG, 0): Position(Offset(next(offsets)), "")}
    )
    with pytest.raises(StreamMoves):
        verify(stream.broker, GROUP, {LOG: stream.mapping.engine}, SETTINGS)


def test_errors_are_of_one_kind():
    for error in (LogGone, NothingCommitted, StreamMoves, UnknownSchema, WrongWindow):
        assert issubclass(error, VerifyError)


def test_a_report_says_that_all_is_well():
    report = make_stream().verify()
    text = text_of(report)
    requests, tokens = report.found[0], report.found[1] + report.found[4]
    assert f"clean: {tokens:,} tokens in {requests:,} requests accounted for exactly" in " ".join(text.split())
    assert "NOT" not in text and max(map(len, text.splitlines())) <= 80


# --- The judge, beside the oracle ---


def judged(judge: Callable, line: bytes, time: int | None) -> tuple:
    try:
        record = judge(line, time)
    except RefusedRecord as refused:
        return ("rejected", refused.reason, refused.field)
    except SkippedRecord:
        return ("skipped",)
    return ("empty",) if record is None else ("ok", *record)


def wanted(line: bytes, mapping: harness.Mapping, time: int | None) -> tuple:
    verdict = oracle.judge(line, mapping.oracle, time)
    if verdict.record is not None:
        within = verdict.record.scope or ""
        names = mapping.oracle["fields"].get("request_id", {}).get("with")
        if names:
            within = orjson.dumps([within, *(getattr(verdict.record, name) for name in names)]).decode()
        *most, labels = verdict.record._replace(scope=within)
        place = oracle.Canonical._fields.index(oracle.FURTHER[0])  # where the judge has its labels
        return ("ok", *most[:place], orjson.dumps(dict(labels)).decode() if labels else "", *most[place:])
    return (verdict.kind,) if verdict.kind in ("empty", "skipped") else (verdict.kind, verdict.reason, verdict.field)


@pytest.mark.parametrize("case", bad_input.CASES, ids=lambda case: case.name)
def test_bad_input_has_its_verdict(case):
    judge = Judge(harness.shipped().engine, 3_600_000)
    lines = verify_tasks.lines_of(case.value)
    assert lines == oracle.records(case.value)
    seen = set()
    for line, verdict in zip(lines, case.expect, strict=True):
        kind, *why = judged(judge, line, case.message_time)
        shown = ":".join(["rejected", *filter(None, why)]) if kind == "rejected" else "empty" if kind == "empty" else ""
        duplicate = kind == "ok" and why[0] is not None and why[0] in seen
        assert (shown or ("duplicate" if duplicate else "counted")) == verdict
        seen |= {why[0]} if kind == "ok" else set()


@pytest.mark.slow
@pytest.mark.parametrize("name", harness.SHIPPED)
def test_mutated_lines_are_judged_alike(name):
    rng = random.Random(f"{SEED} verify {name}")
    mapping = harness.shipped(name)
    judge = Judge(mapping.engine, 3_600_000)
    kinds = set()
    for line in mutate.lines(rng, name, mapping.oracle, LINES // len(harness.SHIPPED)):
        for time in (None, NOW_MS - 3_600_000):
            verdict = wanted(line, mapping, time)
            assert judged(judge, line, time) == verdict, f"{name}, seed {SEED}: {line!r}"
            kinds.add(verdict[:2] if verdict[0] == "rejected" else verdict[0])
    assert len(kinds) >= 8


MAPPINGS = {
    "every unit": 'formats = ["{unit}", "rfc3339"]\nfallback = "message_time"',
    "one unit": 'formats = ["{unit}"]',
}
ODD = """
format = 1
name = "odd"
description = "What no shipped mapping has."
input_tokens_are = "additive"
output_tokens_are = "additive"
[fields.request_id]
path = ["a", "id"]
aliases = ["id"]
required = true
scope = ["a", "b", "scope"]
[fields.timestamp]
path = ["a", "t"]
aliases = ["t"]
TIME
[fields.user]
path = ["a", "b", "user"]
aliases = ["user", ["c", "user"]]
default = "someone"
[fields.model]
constant = "m"
[fields.chip]
path = "chip"
[fields.prefill_chip]
path = ["a", "prefill"]
default = "P"
[fields.input_tokens]
path = ["u", "in"]
digits = true
default = 7
[fields.cached_input_tokens]
constant = 3
[fields.cache_write_tokens]
path = ["u", "write"]
required = true
[fields.output_tokens]
path = ["u", "out"]
digits = true
[fields.reasoning_tokens]
path = ["u", "think"]
aliases = ["think"]
default = 2
"""


@pytest.mark.slow
@pytest.mark.parametrize("unit", EPOCH_FORMATS)
@pytest.mark.parametrize("time", MAPPINGS)
def test_odd_mappings_are_judged_alike(unit, time):
    mapping = harness.Mapping.parse(ODD.replace("TIME", MAPPINGS[time].format(unit=unit)), "odd")
    rng = random.Random(f"{SEED} verify {unit} {time}")
    judge = Judge(mapping.engine, 3_600_000)
    for line in mutate.lines(rng, "odd", mapping.oracle, 500):
        for message_time in (None, NOW_MS, 1 << 63):
            verdict = wanted(line, mapping, message_time)
            assert judged(judge, line, message_time) == verdict, f"{unit}, seed {SEED}: {line!r}"
