"""Totals on a thread: over the memory broker, whatever it does meanwhile."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.summaries import Fleet
from tests.test_schemas import validator
from tokenometer.processor.broker import BrokerError, Place
from tokenometer.processor.broker.memory import MemoryBroker
from tokenometer.processor.rollup import watch
from tokenometer.processor.rollup.entries import Entries
from tokenometer.processor.rollup.summaries import read_summary
from tokenometer.processor.rollup.watch import Watch

LIVE, CHANGELOG = "token-live", "changelog"
TARGET = 120_000_000_000_000
PATIENCE_SECONDS = 30


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Stage:
    def __init__(self) -> None:
        self.failing = False
        self.broker = MemoryBroker(faults=self._fault)
        for topic in (LIVE, CHANGELOG):
            self.broker.create_topic(topic, 2, {})
        self.fleet = Fleet(1, now_ms())
        self.entries = Entries()
        self.sent = 0

    def _fault(self, name: str) -> None:
        if self.failing and name in ("read", "extents"):
            raise BrokerError("it cannot just now")

    def work(self, turns: int = 10) -> None:
        for _ in range(turns):
            self.fleet.now_ms = now_ms()
            self.fleet.work(late_ms=60_000)
        for _, _, value in self.fleet.log[self.sent :]:
            meter = json.loads(value)["meter"].encode()
            self.broker.append(LIVE, [value], [meter])
        self.sent = len(self.fleet.log)

    @property
    def tokens(self) -> int:
        return sum(row[1] + row[4] for row in self.fleet.truth.values())


def tokens_of(watched: Watch) -> int | None:
    if watched.latest is None:
        return None
    totals = json.loads(watched.latest)
    validator("totals").validate(totals)
    found: int = totals["windows"]["since_start"]["tokens"]["total_tokens"]
    return found


def eventually(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.01)


@pytest.fixture
def stage() -> Stage:
    return Stage()


@pytest.fixture
def started() -> Iterator[Callable[[Stage], Watch]]:
    running: list[Watch] = []

    def start(stage: Stage, topic: str = LIVE, reader: Callable[[], watch.Take] = watch.live) -> Watch:
        running.append(Watch(stage.broker, topic, reader, TARGET).start())
        return running[-1]

    yield start
    for each in running:
        each.close()


def test_totals_follow_what_is_committed(stage, started):
    stage.work()
    watched = started(stage)
    eventually(lambda: tokens_of(watched) == stage.tokens)
    stage.work()
    eventually(lambda: tokens_of(watched) == stage.tokens)
    history = watched.history(3_600_000, 60_000, "model")
    assert sum(sum(series["tokens"]) for series in history["series"]) == stage.tokens
    assert set(watched.rate()) == {"times", "tokens_per_second"}
    assert watched.health()[0]


def test_nothing_is_told_before_all_is_read(stage, started):
    stage.work(100)
    stage.failing = True
    watched = started(stage)
    time.sleep(0.1)
    assert watched.latest is None and watched.health() == (False, watched.health()[1])
    assert "loading" in watched.health()[1]["status"]
    stage.failing = False
    eventually(lambda: watched.latest is not None)
    assert tokens_of(watched) == stage.tokens, "the first answer is the whole"


def test_a_broker_that_cannot_delays_and_changes_nothing(stage, started):
    stage.work()
    watched = started(stage)
    eventually(lambda: tokens_of(watched) == stage.tokens)
    before = watched.latest
    stage.failing = True
    stage.work()
    time.sleep(0.3)
    assert tokens_of(watched) in (json.loads(before)["windows"]["since_start"]["tokens"]["total_tokens"], stage.tokens)
    stage.failing = False
    eventually(lambda: tokens_of(watched) == stage.tokens)


def test_a_topic_that_was_made_anew_is_read_from_its_beginning(stage, started):
    stage.work(40)
    watched = started(stage)
    eventually(lambda: tokens_of(watched) == stage.tokens)
    stage.broker.delete_topic(LIVE)
    stage.broker.create_topic(LIVE, 2, {})
    stage.fleet = Fleet(2, now_ms())
    stage.sent = 0
    stage.work(1)
    eventually(lambda: tokens_of(watched) == stage.tokens)


def test_a_longer_topic_of_the_same_name_is_another_topic(stage, started):
    stage.work(5)
    watched = started(stage)
    eventually(lambda: tokens_of(watched) == stage.tokens)
    stage.failing = True
    time.sleep(0.3)  # it has lost its broker, and will come back to another topic
    stage.broker.delete_topic(LIVE)
    stage.broker.create_topic(LIVE, 2, {})
    stage.fleet, stage.sent = Fleet(2, now_ms()), 0
    stage.work(60)
    stage.failing = False
    eventually(lambda: tokens_of(watched) == stage.tokens)


def test_what_is_no_summary_is_passed_over(stage, started):
    stage.broker.append(LIVE, [b"{", None, b'{"schema":1}'], [b"k"] * 3)
    stage.work()
    watched = started(stage)
    eventually(lambda: tokens_of(watched) == stage.tokens)


def test_another_version_ends_the_watch_and_says_so(stage, started, monkeypatch):
    stage.broker.append(LIVE, [b'{"schema":2}'], [b"k"])
    watched = started(stage)
    eventually(lambda: watched.failure is not None)
    healthy, state = watched.health()
    assert not healthy and "schema 2" in state["status"]


def test_kept_entries_tell_the_same_and_overtaken_ones_are_named(stage, started):
    overtaken: list[tuple[bytes, bytes]] = []
    stage.work(40)
    first: dict[bytes, bytes] = {}
    for place in [Place(LIVE, 0), Place(LIVE, 1)]:
        extent = stage.broker.extents([LIVE])[place]
        for messages in stage.broker.read(place, extent.begin, extent.end):
            for offset, value in zip(messages.offsets.tolist(), messages.values, strict=True):
                for key, changed in stage.entries.learn(place.partition, offset, read_summary(value), now_ms()).items():
                    stage.broker.append(CHANGELOG, [changed], [key])
                    if changed is not None:
                        first.setdefault(key, changed)
    watched = started(stage, CHANGELOG, lambda: watch.kept(overtaken.append))
    eventually(lambda: tokens_of(watched) == stage.tokens)
    assert overtaken == []
    [key] = [key for key in first if b"/meter/" in key][:1]
    stage.broker.append(CHANGELOG, [first[key]], [key])
    eventually(lambda: overtaken == [(key, first[key])])
    assert tokens_of(watched) == stage.tokens


def test_readers_on_other_threads_are_no_trouble(stage, started):
    stage.work()
    watched = started(stage)
    eventually(lambda: watched.latest is not None)
    failures: list[BaseException] = []

    def ask() -> None:
        try:
            for _ in range(200):
                watched.history(3_600_000, 60_000, "chip")
                watched.rate()
                watched.health()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    stage.work(100)
    for thread in threads:
        thread.join()
    assert failures == []
    eventually(lambda: tokens_of(watched) == stage.tokens)
