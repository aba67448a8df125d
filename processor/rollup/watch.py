"""Rolling totals on a thread of its own. It follows a topic and has an answer ready whenever somebody asks.

    topic ── follow ──> take(messages) ──> Totals ── once a second ──> latest: the answer's bytes
                                              └── history, rate: when asked

Owns: the thread, the lock around the totals, the clock.
Promises: the answer contains committed messages only. A broker that cannot be reached delays it and changes nothing. A
topic that was made anew is read from its beginning.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import orjson

from tokenometer.processor.broker import Broker, BrokerError, Messages, Offset, OutOfRange, Place, TopicMissing
from tokenometer.processor.rollup.entries import Entries
from tokenometer.processor.rollup.summaries import Unreadable, read_summary
from tokenometer.processor.rollup.tables import EVERYTHING, Only
from tokenometer.processor.rollup.totals import CellUsage, Totals

log = logging.getLogger("tokenometer.watch")
TICK_SECONDS = 1.0
_POLL_SECONDS = 0.1
_POLL_MESSAGES = 10_000
_RETRY_SECONDS = 1.0
_LOOK_SECONDS = 10.0  # is it still the same topic?

Take = Callable[[Totals, Messages], None]


class Watch:
    """`reader` makes what feeds the totals. After `start`, `latest` is None until all that the topic held is read."""

    def __init__(self, broker: Broker, topic: str, reader: Callable[[], Take], target_tokens_per_day: int) -> None:
        self._broker, self._topic, self._reader, self._target = broker, topic, reader, target_tokens_per_day
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._begin()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self.latest: bytes | None = None
        self._told_ms = 0  # when
        self.failure: BaseException | None = None  # what nobody foresaw; the thread has ended

    def _begin(self) -> None:
        self._totals, self._take = Totals(self._target), self._reader()
        self._next: dict[Place, Offset] = {}
        self._topic_id: str | None = None

    def start(self) -> "Watch":
        self._thread.start()
        return self

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def history(
        self, span_ms: int, step_ms: int, by: str, until_ms: int | None = None, only: Only = EVERYTHING
    ) -> dict[str, Any]:
        with self._lock:
            return self._totals.history(_now_ms(), span_ms, step_ms, by, until_ms, only)

    def view(self, only: Only, span_ms: int, until_ms: int | None) -> dict[str, Any]:
        """As Totals.view."""
        with self._lock:
            return self._totals.view(_now_ms(), only, span_ms, until_ms)

    def top_users(self, meter: str | None) -> list[dict[str, Any]]:
        """As Totals.top_users."""
        with self._lock:
            return self._totals.top_users(_now_ms(), meter)

    def top_user(self, user: str) -> int | None:
        """As Totals.top_user."""
        with self._lock:
            return self._totals.top_user(_now_ms(), user)

    def range_of(self, span_ms: int, until_ms: int | None) -> tuple[int, int]:
        """As Totals.range_of."""
        with self._lock:
            return self._totals.range_of(_now_ms(), span_ms, until_ms)

    def cells_of(self, begin_ms: int, end_ms: int, only: Only) -> list[CellUsage]:
        """As Totals.cells_of."""
        with self._lock:
            return self._totals.cells_of(begin_ms, end_ms, only)

    def rate(self) -> dict[str, Any]:
        with self._lock:
            return self._totals.rate_history()

    def learned(self) -> dict[int, int]:
        """As Totals.learned."""
        with self._lock:
            return self._totals.learned()

    def health(self) -> tuple[bool, dict[str, Any]]:
        """It is healthy if its totals are not older than they should be."""
        if self.failure is not None:
            return False, {"status": f"failed: {self.failure!r}"}
        if self.latest is None:
            return False, {"status": "loading: not all that was kept has been read yet"}
        age_ms = _now_ms() - self._told_ms
        if age_ms > 10_000 * TICK_SECONDS:
            return False, {"status": "no answer of the broker: see the log", "age_ms": age_ms}
        return True, {"status": "ok", "age_ms": age_ms}

    # --- The thread ---

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                try:
                    self._follow()
                except OutOfRange as error:  # or another topic of the same name
                    log.warning("reading %s from its beginning: %s", self._topic, error)
                    with self._lock:
                        self._begin()
                    self._stop.wait(_RETRY_SECONDS)
                except BrokerError as error:
                    log.warning("totals do not change, trying again in %.0f s: %s", _RETRY_SECONDS, error)
                    self._stop.wait(_RETRY_SECONDS)
        except BaseException as error:  # who owns this looks at it
            log.exception("the totals' thread ended")
            self.failure = error

    def _follow(self) -> None:
        self._catch_up()
        if self._stop.is_set():
            return
        follower = self._broker.follow(dict(self._next), keys=True)
        try:
            due = look = time.monotonic()
            while not self._stop.is_set():
                if time.monotonic() >= look:
                    look = time.monotonic() + _LOOK_SECONDS
                    self._check_topic()
                for messages in follower.poll(_POLL_SECONDS, _POLL_MESSAGES):
                    self._learn(messages)
                if time.monotonic() >= due:
                    due = max(due + TICK_SECONDS, time.monotonic())
                    self._tell()
        finally:
            follower.close()

    def _catch_up(self) -> None:
        """Reads what is there already, before anything is answered."""
        self._check_topic()
        for place, extent in self._broker.extents([self._topic]).items():
            begin = self._next.get(place, extent.begin)
            for messages in self._broker.read(place, begin, extent.end, keys=True):
                self._learn(messages)
                if self._stop.is_set():
                    return
            self._next[place] = max(begin, extent.end)

    def _check_topic(self) -> None:
        state = self._broker.topics([self._topic])[self._topic]
        if state is None:
            raise TopicMissing(f"the topic {self._topic} is not there")
        if self._topic_id not in (None, state.id):
            raise OutOfRange(f"{self._topic} was deleted and made anew")
        self._topic_id = state.id

    def _learn(self, messages: Messages) -> None:
        with self._lock:
            self._take(self._totals, messages)
        self._next[messages.place] = messages.next_offset

    def _tell(self) -> None:
        with self._lock:
            self.latest = orjson.dumps(self._totals.rolling(_now_ms()))
        self._told_ms = _now_ms()


def live() -> Take:
    """Totals straight from token-live. This is the rollup without its table, for a process that keeps nothing."""
    entries = Entries()

    def take(totals: Totals, messages: Messages) -> None:
        for value, offset in zip(messages.values, messages.offsets.tolist(), strict=True):
            try:
                summary = read_summary(value)
            except Unreadable as error:
                log.error("%s-%d at offset %d: %s", *messages.place, offset, error)
                continue
            for key, changed in entries.learn(messages.place.partition, offset, summary, _now_ms()).items():
                totals.apply(key, changed)

    return take


def kept(overtaken: Callable[[tuple[bytes, bytes]], None]) -> Take:
    """Totals from entries as a rollup keeps them. `overtaken` is told a key and the older entry written there."""

    def take(totals: Totals, messages: Messages) -> None:
        assert messages.keys is not None
        for key, value in zip(messages.keys, messages.values, strict=True):
            if key is not None and not totals.apply(key, value) and value is not None:
                overtaken((key, value))

    return take


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
