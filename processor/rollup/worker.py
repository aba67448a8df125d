"""The rollup: a Faust app that folds token-live into entries and gives rolling totals once a second.

    token-live ── agent ──> Entries ──> table ──> its changelog ── follow ──> Watch ──> Totals ─┬─> HTTP
                                                                                                └─> token-totals
Workers of one app share the partitions of token-live; every worker follows the whole changelog, so each can answer for
all, and goes on answering while partitions move. The worker that has partition 0 writes token-totals.

Owns: the Faust app and its settings, the topics it needs.
Promises: only committed summaries count. The changelog is written before the next offset is committed, and an entry
ignores what it has already (entries.py). So kills, rebalances and redelivery leave totals exact. A worker that was
overtaken may write an older entry; the owner sees it in the changelog and writes its own again.
"""

import asyncio
import contextlib
import logging
import os
import ssl
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, cast

import faust

from tokenometer.processor.broker import Broker, BrokerError, GroupMember, Offset, Refused, TopicMissing
from tokenometer.processor.rollup.delivery import RollupConsumer, Transport
from tokenometer.processor.rollup.entries import ENTRY_BYTES_MAX, Entries, Key, longer
from tokenometer.processor.rollup.progress import Progress
from tokenometer.processor.rollup.summaries import UnknownSummary, Unreadable, read_summary
from tokenometer.processor.rollup.watch import TICK_SECONDS, Watch, kept
from tokenometer.schemas.errors import TokenometerError

log = logging.getLogger("tokenometer.rollup")
CHANGELOG_SETTINGS = {
    "cleanup.policy": "compact",
    "max.message.bytes": str(ENTRY_BYTES_MAX + (64 << 10)),
    # Entries of the open minute are written once a second: only closed segments are compacted, so they are small ones.
    "segment.bytes": str(64 << 20),
    "segment.ms": "600000",
    "min.cleanable.dirty.ratio": "0.2",
}
TOTALS_SETTINGS = {"cleanup.policy": "delete", "retention.ms": "604800000"}
_START_SECONDS, _STOP_SECONDS = 120.0, 20.0
_COORDINATOR_SECONDS = 60.0
_LOOK_SECONDS = 0.1
_JUDGE_SECONDS = 1.0
_JUDGE_SILENT_MS = 9_000
_RECENT = 20  # messages of a partition, among which there is a summary
_WRITING_MAX = 1000  # messages whose entries are on their way to the changelog


class RollupFailed(TokenometerError):
    """The Faust app ended by itself."""


@dataclass(frozen=True)
class RollupSettings:
    app: str  # name of the app: its consumer group, and the beginning of its changelog's name
    bootstrap: str
    client: Mapping[str, str]  # librdkafka settings; those of security hold for Faust too
    live_topic: str = "token-live"
    totals_topic: str = "token-totals"
    target_tokens_per_day: int = 120_000_000_000_000
    session_seconds: float = 15.0  # after which a killed worker's partitions go to another

    @property
    def changelog(self) -> str:
        return f"{self.app}-{_TABLE}-changelog"


_TABLE = "entries"


class Rollup:
    """One worker. `run` it in an event loop until it should stop."""

    def __init__(self, broker: Broker, settings: RollupSettings) -> None:
        self._settings = settings
        self._partitions = _partitions(broker, settings)
        self._entries = Entries()
        self._overtaken: SimpleQueue[tuple[bytes, bytes]] = SimpleQueue()  # keys, and what was written to them last
        self._written: asyncio.Queue[tuple[Any, Any, list[Any]]] = asyncio.Queue(_WRITING_MAX)
        self._failure: Exception | None = None  # of folding
        self._broker = broker
        self._joined = False  # the group, once
        self._progress = Progress(settings.app, settings.live_topic, _now_ms())
        self._reasons: list[str] = []  # why it is not healthy
        self._judged_ms = _now_ms()
        self.watch = Watch(
            broker, settings.changelog, lambda: kept(self._overtaken.put), settings.target_tokens_per_day
        )
        self._app = _app(settings, self._partitions)
        self._live = self._app.topic(settings.live_topic, key_serializer="raw", value_serializer="raw")
        self._totals = self._app.topic(settings.totals_topic, key_serializer="raw", value_serializer="raw")
        self._table: Any = self._app.Table(
            _TABLE,
            key_type=bytes,
            value_type=bytes,
            partitions=self._partitions,  # an entry is in the partition of its summaries
            on_recover=self._restore,
        )
        self._app.agent(self._live)(self._fold)  # one of it: entries know one order
        self._app.timer(TICK_SECONDS)(self._tell)
        self._app.task(self._acknowledge)

    async def run(self, stopped: Callable[[], bool]) -> None:
        """Raises RollupFailed."""
        self.watch.start()
        starting = asyncio.create_task(asyncio.wait_for(self._app.start(), _START_SECONDS))
        judging = asyncio.create_task(self._judge())
        try:
            while not (stopped() or self._ended()):
                await asyncio.sleep(_LOOK_SECONDS)
                if starting.done():
                    starting.result()
        except TimeoutError:
            raise RollupFailed(f"Faust did not start within {_START_SECONDS:.0f} s: see the log") from None
        finally:
            failure = self._ended()
            starting.cancel()
            judging.cancel()
            with contextlib.suppress(TimeoutError):  # what is not committed will be read again
                await asyncio.wait_for(self._app.stop(), _STOP_SECONDS)
            self.watch.close()
        if failure:
            raise RollupFailed(f"the rollup ended by itself: {failure}")

    def _ended(self) -> str | None:
        """Why it ended, if it did."""
        reason = self._failure or self.watch.failure or self._app.crash_reason
        if reason is None and self._app.should_stop:
            return "Faust stopped"
        return None if reason is None else f"{type(reason).__name__}: {reason}"

    # --- Is it healthy? ---

    def health(self) -> tuple[bool, dict[str, Any]]:
        """That of its totals, and whether what they are made of still comes. Any thread may ask."""
        healthy, state = self.watch.health()
        reasons = list(self._reasons)
        silent_ms = _now_ms() - self._judged_ms
        if not healthy or not (reasons or silent_ms > _JUDGE_SILENT_MS):
            return healthy, state
        reasons = reasons or [f"the worker has not looked at itself for {silent_ms // 1000} s"]
        return False, state | {"status": f"degraded: {'; '.join(reasons)}"}

    async def _judge(self) -> None:
        while True:
            before = self._reasons
            try:
                ends = await asyncio.to_thread(self._ends)
                self._reasons = self._progress.look(_now_ms(), self._joined, self.watch.learned(), ends)
            except BrokerError as error:
                self._reasons = [f"Kafka does not answer: {error}"]
            self._judged_ms = _now_ms()
            for reason in self._reasons if not before else ():
                log.error("not healthy: %s", reason)
            await asyncio.sleep(_JUDGE_SECONDS)

    def _ends(self) -> dict[int, int]:
        topic = self._settings.live_topic
        extents = self._broker.extents([topic])
        return {place.partition: held.end if held.end > held.begin else 0 for place, held in extents.items()}

    # --- Faust calls these ---

    async def _fold(self, stream: Any) -> None:
        """A message that fails is not acknowledged, so its offset is never committed, and it ends the worker. Faust
        would start this anew after it."""
        async for event in stream.noack().events():
            try:
                self._learn(event)
            except Exception as error:
                await self._fail(error)
            await self._written.put((stream, event, self._table.taken()))

    async def _acknowledge(self) -> None:
        """Acknowledges a message once its entries are in the changelog: Faust's flush before a commit gives up after a
        tenth of a second."""
        while True:
            stream, event, writes = await self._written.get()
            try:
                await asyncio.gather(*writes)
            except Exception as error:
                self._failure = error
                return
            await stream.ack(event)

    def _learn(self, event: Any) -> None:
        message = event.message
        cast(RollupConsumer, self._app.consumer).take(message.tp, message.offset)
        try:
            summary = read_summary(event.value)
        except Unreadable as error:
            log.error("%s", error, extra=_where(message))
            return
        left_out = self._entries.left_out
        changes = self._entries.learn(message.partition, message.offset, summary, _now_ms())
        if self._entries.left_out > left_out:
            log.warning("more models and chips than are kept apart: only since_start has all", extra=_where(message))
        for key, value in changes.items():
            if value is None:
                self._table.pop(key, None)
            else:
                self._table[key] = value

    async def _restore(self, *_: Any) -> None:
        """Called after each rebalance, before messages come. The table still holds what other workers have taken over.
        A failure ends the worker before partitions open, because Faust would not hear of it."""
        self._joined = True
        held = self._held()
        stored = [(key, value) for key, value in self._table.items() if Key.decode(key).partition in held]
        try:
            self._entries.restore(stored)
        except Exception as error:
            await self._fail(error)
        log.info("partitions restored", extra={"partitions": sorted(held)})

    async def _fail(self, error: Exception) -> None:
        """Ends the worker: nothing goes on until the app stops."""
        self._failure = error
        await asyncio.Event().wait()

    async def _tell(self) -> None:
        held = self._held()
        while not self._overtaken.empty():
            key, older = self._overtaken.get()
            partition = Key.decode(key).partition
            value = self._entries.current(key) if partition in held else older
            if value != older:  # otherwise another worker's to mend, or what is right
                log.warning("an overtaken worker wrote an older entry; writing it again", extra={"key": key.decode()})
                self._table.send_changelog(partition, key, value)
        latest = self.watch.latest
        if 0 in held and latest is not None:
            await self._totals.send(key=b"totals", value=latest)

    def _held(self) -> set[int]:
        topic = self._settings.live_topic
        return {place.partition for place in self._app.consumer.assignment() if place.topic == topic}


# --- Topics ---


def _partitions(broker: Broker, settings: RollupSettings) -> int:
    """The partitions of token-live, and so of the table. Raises TopicMissing, or Refused where the numbers differ."""
    topics = [settings.live_topic, settings.totals_topic, settings.changelog]
    found = broker.topics(topics)
    for topic in topics:
        if found[topic] is None:
            if topic == settings.live_topic:
                raise _live_missing(topic)
            raise TopicMissing(f"the topic {topic} is not there; use --create-topics")
    _check_app(broker, settings)
    live, changelog = found[settings.live_topic], found[settings.changelog]
    assert live is not None and changelog is not None
    if live.partitions != changelog.partitions:
        raise Refused(
            f"{settings.live_topic} has {live.partitions} partitions, {settings.changelog} has {changelog.partitions}: "
            "partitions were added, and meters moved to others; begin anew with another --app"
        )
    return live.partitions


def _check_app(broker: Broker, settings: RollupSettings) -> None:
    """A group has one kind of members. Raises Refused where the app's name is that of another group, such as the
    meters': a rollup that joined it would take their partitions away."""
    own = {settings.live_topic, settings.changelog}
    others = {place.topic for member in _members(broker, settings.app) for place in member.places} - own
    inputs = [topic for topic in sorted(_inputs(broker, settings) - own) if _is_seen(broker, topic)]
    held = broker.committed(settings.app, inputs) if inputs else {}
    others |= {place.topic for place, position in held.items() if position is not None}
    if others:
        raise Refused(
            f"--app {settings.app} is the name of another group, which reads {', '.join(sorted(others))}: a meter's "
            "--group must not be a rollup's --app; choose another name"
        )


def _is_seen(broker: Broker, topic: str) -> bool:
    """Whether it is there. Who may not see a topic cannot take its partitions away either."""
    try:
        return broker.topics([topic])[topic] is not None
    except Refused:
        return False


def _members(broker: Broker, group: str) -> list[GroupMember]:
    """A coordinator that begins its work, as after the first start of a cluster, does not answer for some seconds."""
    deadline = time.monotonic() + _COORDINATOR_SECONDS
    while True:
        try:
            return broker.members(group)
        except Refused:
            raise
        except BrokerError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(_LOOK_SECONDS)


def _inputs(broker: Broker, settings: RollupSettings) -> set[str]:
    """The topics that meters read, as their last summaries say."""
    found: set[str] = set()
    for place, extent in broker.extents([settings.live_topic]).items():
        for messages in broker.read(place, Offset(max(extent.begin, extent.end - _RECENT)), extent.end):
            for value in messages.values:
                with contextlib.suppress(Unreadable, UnknownSummary):
                    found |= {one["topic"] for one in read_summary(value).partitions}
    return found


def create_topics(broker: Broker, settings: RollupSettings, replication: int) -> None:
    """Creates the outputs that are missing. Raises TopicMissing without an input."""
    live = broker.topics([settings.live_topic])[settings.live_topic]
    if live is None:
        raise _live_missing(settings.live_topic)
    broker.create_topic(settings.changelog, live.partitions, CHANGELOG_SETTINGS, replication)
    broker.create_topic(settings.totals_topic, 1, TOTALS_SETTINGS, replication)


def _live_missing(topic: str) -> TopicMissing:
    return TopicMissing(f"the topic {topic} is not there: start a meter first, which makes it with --create-topics 6")


# --- Faust ---


class _LongestTable(faust.Table[bytes, bytes]):
    """The table, in which an overtaken worker may have written last. `taken`: what was written since the last call."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._sent: list[Any] = []

    def send_changelog(self, *arguments: Any, **named: Any) -> Any:
        future = super().send_changelog(*arguments, **named)
        self._sent.append(future)
        return future

    def taken(self) -> list[Any]:
        sent, self._sent = self._sent, []
        return sent

    def apply_changelog_batch(self, batch: Iterable[Any]) -> None:
        stored = self.data.data  # of the store in memory
        for message in (event.message for event in batch):
            if message.value is None:
                stored.pop(message.key, None)
            else:
                known = stored.get(message.key)
                stored[message.key] = message.value if known is None else longer(message.key, known, message.value)


class _App(faust.App):
    def _new_transport(self) -> Any:
        return Transport(self.conf.broker_consumer, self)


def _app(settings: RollupSettings, partitions: int) -> faust.App:
    return _App(
        settings.app,
        broker=[f"kafka://{address.strip()}" for address in settings.bootstrap.split(",")],
        broker_credentials=_credentials(settings.client),
        # Entries fit in memory, and the changelog restores them; a copy on disk would be one more thing to lose.
        Table=_LongestTable,
        store="memory://",
        datadir=os.path.join(tempfile.gettempdir(), settings.app),  # wanted, and never made by a store in memory
        # Entries make redelivery harmless. Faust's exactly_once has open faults, and is not needed.
        processing_guarantee="at_least_once",
        # Kept partitions are followed by every worker's Watch; Faust's own standby copies would be a second reader.
        table_standby_replicas=0,
        topic_partitions=partitions,
        topic_allow_declare=False,  # `create_topics` knows their settings
        topic_disable_leader=True,  # who has partition 0 leads
        consumer_auto_offset_reset="earliest",  # the first time: all that token-live still holds
        broker_session_timeout=settings.session_seconds,
        broker_heartbeat_interval=settings.session_seconds / 5,
        broker_commit_interval=1.0,  # what is read again after a kill
        stream_wait_empty=False,  # a rebalance need not wait: what was not committed is read again
        producer_acks=-1,  # all replicas in sync
        producer_max_request_size=ENTRY_BYTES_MAX,
        consumer_max_fetch_size=ENTRY_BYTES_MAX,
        web_enabled=False,  # the dashboard is its own
        loghandlers=[],
    )


_SASL = {"PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"}


def _credentials(client: Mapping[str, str]) -> Any:
    """librdkafka's security settings for Faust's client. Raises Refused for what only one of the two can do."""
    protocol = client.get("security.protocol", "plaintext").upper()
    if protocol == "PLAINTEXT":
        return None
    context = _ssl_context(client) if protocol.endswith("SSL") else None
    if protocol == "SSL":
        return faust.SSLCredentials(context)
    mechanism = client.get("sasl.mechanism", client.get("sasl.mechanisms", "")).upper()
    if mechanism not in _SASL:
        raise Refused(f"sasl.mechanism {mechanism or 'is missing'}: the rollup can {', '.join(sorted(_SASL))}")
    return faust.SASLCredentials(
        mechanism=mechanism,
        username=client.get("sasl.username"),
        password=client.get("sasl.password"),
        ssl_context=context,
    )


def _ssl_context(client: Mapping[str, str]) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=client.get("ssl.ca.location"))
        if "ssl.certificate.location" in client:
            context.load_cert_chain(
                client["ssl.certificate.location"], client.get("ssl.key.location"), client.get("ssl.key.password")
            )
    except (OSError, ssl.SSLError) as error:
        raise Refused(f"the ssl.* settings: {error}") from None
    context.check_hostname = client.get("ssl.endpoint.identification.algorithm", "https") != "none"
    return context


def _where(message: Any) -> dict[str, Any]:
    return {"topic": message.topic, "partition": message.partition, "offset": message.offset}


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
