"""The loop: rows in, alerts out, exactly once, whatever is killed.

An alert has an id that follows from its rule, subject, period and threshold. Whoever starts
    1. opens the transactional producer, which fences an older process of this name and ends its transaction,
    2. reads the newest state, and marks in it what was announced after it,
    3. follows token-usage from the state's offsets, and announces what is reached and not marked.
So a crash between any two steps repeats sums and no alert. There is no other recovery: after a broker's error, too, all
is dropped and read again. A state is written now and then, in one transaction, on a thread of its own.

Which parts are over follows one step after the rows, as in the ledger: once a row of a part's successor was read, the
end of every partition is noted; when all are read so far, no row of the part comes any more.
"""

import json
import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import orjson

from tokenometer.processor.alerts import messages
from tokenometer.processor.alerts.budgets import Budgets
from tokenometer.processor.alerts.messages import State
from tokenometer.processor.alerts.rules import Crossing, Rules
from tokenometer.processor.broker import (
    Broker,
    BrokerError,
    Fenced,
    Follower,
    Messages,
    Offset,
    OutOfRange,
    Place,
    Producer,
    Refused,
    TopicMissing,
)
from tokenometer.processor.ledger import decode
from tokenometer.schemas.usage import DAY_MS

log = logging.getLogger("tokenometer.alerts")
_STOPPING = (OutOfRange, TopicMissing, Fenced, Refused)  # what does not pass
_POLL_SECONDS = 0.1
_POLL_MESSAGES = 20_000
_BATCH_ROWS = 200_000
_BATCH_BYTES = 256 << 20
_LINGER_SECONDS = 0.25  # of a batch, while more comes: fewer and larger batches cost less
_MORE_SECONDS = 0.02  # for the next messages of a batch
_RETRY_SECONDS = 1.0
_TOLD = ("rule", "threshold", "subject", "used", "limit", "unit", "per", "begin")  # of an alert, in the log
_TOLD_MAX = 10  # alerts of a batch: a rule for each user may have very many at once, and the topic has all of them
_LOOK_MS = 10_000  # are the topics still the same, and have they new partitions?
_RETENTION_MS = 400 * DAY_MS
ALERTS_SETTINGS = {"cleanup.policy": "delete", "retention.ms": str(_RETENTION_MS)}
STATE_SETTINGS = {
    "cleanup.policy": "compact",
    "segment.bytes": str(64 << 20),  # only closed segments are compacted
    "segment.ms": "600000",
    "min.cleanable.dirty.ratio": "0.2",
}


@dataclass(frozen=True)
class AlertSettings:
    """name: of this process, in its transactional ids and its state's keys."""

    name: str = "alerts"
    usage_topic: str = "token-usage"
    alerts_topic: str = "token-alerts"
    state_topic: str = "token-alerts-state"
    state_interval_ms: int = 30_000  # rows that a crash reads again
    accept_gap: bool = False  # begin although older usage was deleted from the topic


@dataclass
class AlertProgress:
    """Numbers for people and metrics. Only the loop writes them."""

    rows: int = 0
    batches: int = 0
    announced: dict[tuple[str, int], int] = field(default_factory=dict)  # by rule and threshold
    behind: int | None = None  # messages of token-usage, when it was last looked at
    stepped_ms: int | None = None  # when the loop was last seen, and the broker well
    state_ms: int | None = None  # when a state was last kept
    late_rows: int = 0
    stray_rows: int = 0
    unpriced: Mapping[str, int] = field(default_factory=dict)
    ambiguous: Mapping[str, str] = field(default_factory=dict)
    gap: str | None = None  # usage that retention deleted before it was read
    trouble: str | None = None


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class AlertWorker:
    """`run` until it is told to stop, or `open` and `step` by step."""

    def __init__(
        self,
        broker: Broker,
        rules: Rules,
        settings: AlertSettings,
        now_ms: Callable[[], int] = _now_ms,
        threads: Executor | None = None,
    ) -> None:
        self._broker, self._rules, self._settings, self._now_ms = broker, rules, settings, now_ms
        self._threads = threads or ThreadPoolExecutor(1, "state")
        self._reader: Follower | None = None
        self._producer: Producer | None = None
        self._keeper: Producer | None = None  # of states: the other one may have a transaction open meanwhile
        self._keeping: Future[None] | None = None
        self._budgets = Budgets(rules.rules)
        self._alerts: Mapping[int, int] = {}  # where token-alerts ended, when this process began
        self._partitions: dict[int, int] = {}
        self._topic_id = ""
        self._horizon: tuple[Mapping[Place, Offset], set[bytes]] | None = None
        self._kept_ms = self._looked_ms = 0
        self.progress = AlertProgress()
        # From zero on, or who watches the counters would miss the first one.
        self.progress.announced = {(rule.name, each): 0 for rule in rules.rules for each in rule.thresholds}

    def run(self, stopped: Callable[[], bool]) -> None:
        """Raises BrokerError for what does not pass, and LedgerError for a message that is no usage row."""
        try:
            while not stopped():
                try:
                    self.open()
                    while not stopped():
                        self.step()
                    self.keep(wait=True)
                except _STOPPING:
                    raise
                except BrokerError as error:
                    self.progress.trouble = str(error)
                    log.warning("going on from the last state in %.0f s: %s", _RETRY_SECONDS, error)
                    time.sleep(_RETRY_SECONDS)
                finally:
                    self.close()
        finally:
            self._threads.shutdown()

    def open(self) -> None:
        self.close()
        settings = self._settings
        self._check_topics()
        self._producer = self._broker.producer(f"tokenometer-alerts-{settings.name}")
        self._keeper = self._broker.producer(f"tokenometer-alerts-{settings.name}-state")
        state = messages.state_of(settings.name, newest(self._broker, settings.state_topic))
        self._budgets = Budgets(self._rules.rules)
        began, now = dict[str, int](), self._now_ms()
        if state is not None:
            self._check_state(state)
            began = dict(state.header["since"])
        whole = {rule.whole for rule in self._rules.rules}
        if state is not None and self._budgets.fits(state.header):
            self._budgets.restore(state.header, state.arrays)
        else:
            if state is not None:
                log.warning("a rule is new, or means other usage than before: reading all of %s", settings.usage_topic)
            state = None
        self._budgets.since({name: began.get(name, now) for name in whole})
        self._mark(state.alerts if state and whole <= set(began) else {})
        starts = self._starts(state)
        self._reader = self._broker.follow(starts)
        self._partitions = {place.partition: int(offset) for place, offset in starts.items()}
        self._horizon, self._kept_ms, self._looked_ms = None, 0, now
        self._announce(self._budgets.review())
        self.keep(wait=True)  # from when each rule announces is known from now on
        self.progress.trouble = None

    def close(self) -> None:
        if self._keeping is not None:
            self._keeping.exception()
        for each in (self._reader, self._producer, self._keeper):
            if each is not None:
                each.close()
        self._reader, self._producer, self._keeper, self._keeping = None, None, None, None

    def step(self, timeout_seconds: float = _POLL_SECONDS) -> int:
        """Judge a batch, if one is there; how many messages it had."""
        polled = self._gather(timeout_seconds)
        if polled:
            self._take(polled)
        self._end_parts()
        now = self._now_ms()
        if now - self._kept_ms >= self._settings.state_interval_ms:
            self._budgets.tidy()
            self.keep()
        if now - self._looked_ms >= _LOOK_MS:
            self._look()
        self.progress.stepped_ms = now
        return sum(len(each.values) for each in polled)

    # --- Rows ---

    def _gather(self, timeout_seconds: float) -> list[Messages]:
        assert self._reader is not None
        found, began = list[Messages](), time.monotonic()
        room, room_bytes = _BATCH_ROWS, _BATCH_BYTES
        while room > 0 and room_bytes > 0 and time.monotonic() - began <= max(timeout_seconds, _LINGER_SECONDS):
            polled = self._reader.poll(timeout_seconds, min(room, _POLL_MESSAGES))
            if not polled:
                break
            found += polled
            room -= sum(len(each.values) for each in polled)
            room_bytes -= sum(sum(map(len, filter(None, each.values))) for each in polled)
            timeout_seconds = min(timeout_seconds, _MORE_SECONDS)
        return found

    def _take(self, polled: Sequence[Messages]) -> None:
        rows = decode.usage_rows(polled)
        if rows is not None:
            origins = [(each.place.partition, sum(value is not None for value in each.values)) for each in polled]
            now = max(int(each.times.max()) for each in polled)
            self._announce(self._budgets.take(rows, origins, now))
            self.progress.rows += len(rows)
        self.progress.batches += 1
        for each in polled:
            self._partitions[each.place.partition] = int(each.next_offset)
        self._tell()

    def _announce(self, crossings: Sequence[Crossing]) -> None:
        if not crossings:
            return
        assert self._producer is not None
        now = self._now_ms()
        self._producer.begin()
        values, keys = [messages.alert(each, now) for each in crossings], [each.id.encode() for each in crossings]
        self._producer.produce(self._settings.alerts_topic, values, keys)
        self._producer.commit()
        for each in crossings:
            counted = each.rule.name, each.threshold
            self.progress.announced[counted] = self.progress.announced.get(counted, 0) + 1
        for value in values[:_TOLD_MAX]:
            alert = json.loads(value)
            log.info("alert", extra={name: alert[name] for name in _TOLD if alert[name] is not None})
        log.info("announced", extra={"alerts": len(crossings), "rules": sorted({each.rule.name for each in crossings})})

    def _tell(self) -> None:
        budgets, progress = self._budgets, self.progress
        progress.late_rows, progress.stray_rows = budgets.late_rows, budgets.stray_rows
        for model, why in budgets.unpriced.ambiguous.items():
            if model not in progress.ambiguous:
                log.error("usage is not counted as money: %s", why)
        for model in budgets.unpriced.tokens.keys() - progress.unpriced.keys() - budgets.unpriced.ambiguous.keys():
            log.error("the model %s has no price: its usage is not counted as money", model)
        progress.unpriced, progress.ambiguous = dict(budgets.unpriced.tokens), dict(budgets.unpriced.ambiguous)

    def _end_parts(self) -> None:
        """If the noted ends are reached, the parts noted with them are over; then note the next."""
        assert self._reader is not None
        if self._horizon is not None:
            ends, parts = self._horizon
            reached = self._reader.reached()
            if all(reached.get(place, Offset(0)) >= end for place, end in ends.items()):
                self._budgets.end(parts)
                self._horizon = None
        if self._horizon is None and self._budgets.ending:
            self._horizon = self._broker.ends([self._settings.usage_topic]), set(self._budgets.ending)

    # --- The state ---

    def keep(self, wait: bool = False) -> None:
        """Begin to write a state, unless one is on its way."""
        if self._keeping is not None and (wait or self._keeping.done()):
            keeping, self._keeping = self._keeping, None
            keeping.result()
        if self._keeping is None:
            arrays = {name: array.copy() for name, array in self._budgets.arrays().items()}
            state = State(self._budgets.header(), arrays, self._topic_id, dict(self._partitions), self._alerts)
            self._kept_ms = self._now_ms()
            assert self._keeper is not None
            self._keeping = self._threads.submit(self._write, self._keeper, state)
        if wait:
            keeping, self._keeping = self._keeping, None
            keeping.result()

    def _write(self, keeper: Producer, state: State) -> None:
        keys, values = messages.state_messages(self._settings.name, state, secrets.token_bytes(16))
        keeper.begin()
        keeper.produce(self._settings.state_topic, values, keys)
        keeper.commit()
        self.progress.state_ms = self._now_ms()

    def _mark(self, since: Mapping[int, int]) -> None:
        """What token-alerts has from these offsets on is announced."""
        extents = self._broker.extents([self._settings.alerts_topic])
        for place, extent in extents.items():
            begin = min(max(since.get(place.partition, 0), extent.begin), extent.end)
            for each in self._broker.read(place, Offset(begin), extent.end):
                self._budgets.mark([orjson.loads(value) for value in each.values if value is not None])
        self._alerts = {place.partition: int(extent.end) for place, extent in extents.items()}

    # --- Topics ---

    def _check_topics(self) -> None:
        settings = self._settings
        names = [settings.usage_topic, settings.alerts_topic, settings.state_topic]
        states = self._broker.topics(names)
        for name in names:
            if states[name] is None:
                hint = (
                    "meters make it with --create-topics 6" if name == settings.usage_topic else "use --create-topics"
                )
                raise TopicMissing(f"the topic {name} is not there; {hint}")
        usage, kept = states[settings.usage_topic], states[settings.state_topic]
        assert usage is not None and kept is not None
        if "compact" not in kept.settings.get("cleanup.policy", "compact"):
            raise Refused(
                f"the topic {settings.state_topic} must have cleanup.policy=compact, or the state would be lost"
            )
        self._topic_id = usage.id

    def _check_state(self, state: State) -> None:
        if state.topic_id != self._topic_id:
            raise OutOfRange(
                f"{self._settings.usage_topic} was deleted and made anew since these sums were made: its rows may be "
                f"other ones. Begin with another --name; what has been announced is announced again"
            )

    def _starts(self, state: State | None) -> dict[Place, Offset]:
        found, gap = {}, None
        for place, extent in self._broker.extents([self._settings.usage_topic]).items():
            wanted = 0 if state is None else state.positions.get(place.partition, 0)
            if wanted > extent.end:
                raise OutOfRange(f"{place.topic}, partition {place.partition} ends at {extent.end}, before {wanted}")
            if wanted < extent.begin:
                gone = f"retention deleted offsets {wanted} to {extent.begin - 1}"
                gap = f"{place.topic}, partition {place.partition}: {gone}"
            found[place] = Offset(max(wanted, extent.begin))
        self.progress.gap = gap
        if gap is not None:
            if not self._settings.accept_gap:
                raise OutOfRange(
                    f"{gap}, so sums of budgets would be too low. Give the topic cleanup.policy=compact; to begin all "
                    f"the same use --accept-gap"
                )
            log.warning("%s: sums of budgets may be too low", gap)
        return found

    def _look(self) -> None:
        assert self._reader is not None
        usage = self._settings.usage_topic
        state, ends = self._broker.topics([usage])[usage], self._broker.ends([usage])
        if state is None:
            raise TopicMissing(f"{usage} is not there: was the topic deleted?")
        if state.id != self._topic_id:
            raise OutOfRange(f"{usage} was deleted and made anew while it was read; begin with another --name")
        reached = self._reader.reached()
        self.progress.behind = sum(max(0, end - reached.get(place, Offset(0))) for place, end in ends.items())
        self._looked_ms = self._now_ms()
        if any(place not in reached for place in ends):  # partitions were added
            self.keep(wait=True)
            self.open()


def newest(broker: Broker, topic: str) -> dict[bytes, bytes]:
    """The newest value of each key of a compacted topic."""
    held: dict[bytes, bytes] = {}
    for place, extent in broker.extents([topic]).items():
        for each in broker.read(place, extent.begin, extent.end, keys=True):
            assert each.keys is not None
            for key, value in zip(each.keys, each.values, strict=True):
                if key is not None and value is not None:
                    held[key] = value
    return held


def create_topics(broker: Broker, settings: AlertSettings, replication: int) -> None:
    """Creates the outputs that are missing. One partition keeps a state's messages in order."""
    broker.create_topic(settings.alerts_topic, 1, ALERTS_SETTINGS, replication)
    broker.create_topic(settings.state_topic, 1, STATE_SETTINGS, replication)
