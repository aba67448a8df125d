"""A real Kafka, through librdkafka: the only module that imports its client.

Owns: librdkafka's clients, their settings, what their errors mean here, and the few places where librdkafka says less
than the protocol promises.
Promises: no client writes to standard error (all goes to the log `tokenometer.kafka`); no call waits for ever.

    consume() -> [Message, ...] -> errors? -> runs of one partition -> Messages -> only where we still read -> caller
                   ^ rebalances happen in here: a Listener is called. What it raises is kept until consume() is over,
                     because a callback that raises makes the client drop the messages at hand, and move on past them
"""

import logging
import operator
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from itertools import repeat
from typing import Any, TypeVar, cast

import confluent_kafka as client
import numpy as np
from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, OffsetSpec

from tokenometer.kernels.build import BuildError
from tokenometer.processor.broker import (
    BrokerError,
    Column,
    Extent,
    Fenced,
    Follower,
    Headers,
    Listener,
    Lost,
    Messages,
    Offset,
    OutOfRange,
    Place,
    Position,
    Refused,
    TopicMissing,
    TopicState,
)
from tokenometer.processor.broker.kafka import direct

log = logging.getLogger("tokenometer.kafka")

_ANSWER_SECONDS = 10  # for a request that the broker answers at once if it answers at all
_READY_SECONDS = 30  # for a coordinator that loads its state, or a transaction that has to end first
_STALL_SECONDS = 30  # a read that gets nothing for so long has lost its broker
_SEEK_SECONDS = 5  # for a partition that was assigned a moment ago and is not fetched from yet
_LINGER_SECONDS = 0.005  # what poll waits for more once it has a message: fewer, larger batches for little latency
_LINGER_MS = round(_LINGER_SECONDS * 1000)
_FULL_QUEUE_SECONDS = 0.05
_SLICE_MESSAGES = 2_000  # taken from the client at a time: they stay in the processor's cache until they are lists
_FETCH_MESSAGES = 8_000  # taken from librdkafka at a time: one buffer, without Python for each
_READ_MESSAGES = 10_000
_TRANSACTION_TIMEOUT_MS = 30_000
_SESSION_TIMEOUT_MS = 45_000  # librdkafka's default
_APPEND_TIMEOUT_MS = 60_000

_REPEAT_SECONDS = 30  # a log line that says the same again

_T = TypeVar("_T")

# --- Settings ---

# Exactness depends on these, or the protocol's arguments give them: a user cannot.
_OURS = {
    "bootstrap.servers": "it is an argument of its own",
    "metadata.broker.list": "it is an argument of its own",
    "group.id": "it is an argument of its own",
    "group.instance.id": "it is an argument of its own",
    "enable.auto.commit": "offsets are committed with the totals, in one transaction",
    "auto.commit.enable": "offsets are committed with the totals, in one transaction",
    "enable.auto.offset.store": "offsets are committed with the totals, in one transaction",
    "isolation.level": "only committed messages are counted",
    "auto.offset.reset": "a missing offset stops the meter; it never skips or repeats messages",
    "enable.partition.eof": "the end of a partition is not an error here",
    "enable.idempotence": "a retry must not write twice",
    "enable.gapless.guarantee": "a retry must not write twice",
    "acks": "what is committed must survive a broker",
    "request.required.acks": "what is committed must survive a broker",
    "transactional.id": "it is an argument of its own",
    "delivery.report.only.error": "failed writes are reported by us",
    "error_cb": "errors are reported by us",
    "on_delivery": "failed writes are reported by us",
}

# The defaults of a user's settings, where librdkafka's own do not suit.
_DEFAULTS = {
    "client.id": "tokenometer",
    # New partitions are found within this time, not within five minutes.
    "topic.metadata.refresh.interval.ms": "10000",
    "socket.keepalive.enable": "true",
}
CONSUMER_DEFAULTS = {
    "partition.assignment.strategy": "cooperative-sticky",
    # A full queue is looked at again after this; with the default of a second, a fast reader starves.
    "fetch.queue.backoff.ms": "10",
    # Of each partition. Of 100,000, the default, most have left the cache when they are read: a meter counts 6 % less.
    "queued.min.messages": "30000",
    "fetch.message.max.bytes": str(4 << 20),
}
_PRODUCER_DEFAULTS = {
    # A commit sends at once what waits, so this delays nothing; it makes batches of a hundred thousand rows large.
    "linger.ms": "100",
    "queue.buffering.max.messages": "1000000",
    # A row takes 76 bytes so, and 46 with zstd, which costs a meter on two cores 8 % of its records.
    "compression.type": "lz4",
    # Equal keys go where a Java client would put them.
    "partitioner": "murmur2_random",
    # The broker's limit decides (message.max.bytes of the topic), not ours.
    "message.max.bytes": "100000000",
}
# Sizes of the consumer protocol of KIP-848 are the broker's to set; librdkafka refuses them.
_CLASSIC_ONLY = ("partition.assignment.strategy", "session.timeout.ms", "heartbeat.interval.ms")


def _check(settings: Mapping[str, str]) -> None:
    for name in settings:
        if name in _OURS:
            raise Refused(f"the librdkafka setting {name} cannot be chosen: {_OURS[name]}")
    if settings.get("group.protocol", "classic") != "classic":
        return
    transaction, session = (
        _milliseconds(settings, name, default)
        for name, default in (
            ("transaction.timeout.ms", _TRANSACTION_TIMEOUT_MS),
            ("session.timeout.ms", _SESSION_TIMEOUT_MS),
        )
    )
    # Else a member that has lost its partitions could still commit them after their next owner has read the offsets.
    if transaction >= session:
        raise Refused(
            f"transaction.timeout.ms ({transaction}) must be below session.timeout.ms ({session}):"
            " set one or both with --kafka"
        )


def _milliseconds(settings: Mapping[str, str], name: str, default: int) -> int:
    text = settings.get(name, str(default))
    try:
        return int(text)
    except ValueError:
        raise Refused(f"librdkafka setting {name}: expected a number of milliseconds, got {text!r}") from None


def _make(kind: Callable[..., _T], settings: Mapping[str, Any]) -> _T:
    """A client; its log lines go where all others of the process go."""
    try:
        return kind(dict(settings), logger=_Lines())
    except KafkaException as error:
        raise Refused(f"librdkafka settings: {error.args[0].str().strip()}") from None
    except (TypeError, ValueError) as error:
        raise Refused(f"librdkafka settings: {error}") from None


class _Lines:
    """Takes a client's log lines. While a broker is away the same comes many times a second: once is enough."""

    def __init__(self) -> None:
        self._said: dict[str, float] = {}

    def log(self, level: int, form: str, *arguments: Any) -> None:
        text = form % arguments
        # Every client is given all settings.
        if "will be ignored by this" in text:
            return
        # "... (after 0ms in state CONNECT, 30 identical error(s) suppressed)"
        core = text.split("(after ")[0]
        now = time.monotonic()
        if now - self._said.get(core, -_REPEAT_SECONDS) < _REPEAT_SECONDS:
            return
        if len(self._said) > 100:
            self._said.clear()
        self._said[core] = now
        log.log(level, "%s", text)


# --- Errors ---

_FENCED = {
    KafkaError._FENCED,
    KafkaError.PRODUCER_FENCED,
    KafkaError.INVALID_PRODUCER_EPOCH,
    KafkaError.FENCED_INSTANCE_ID,
}
_LOST = {
    KafkaError.ILLEGAL_GENERATION,
    KafkaError.UNKNOWN_MEMBER_ID,
    KafkaError.REBALANCE_IN_PROGRESS,
    KafkaError.STALE_MEMBER_EPOCH,
    KafkaError.FENCED_MEMBER_EPOCH,
    KafkaError._ASSIGNMENT_LOST,
}
_OUT_OF_RANGE = {KafkaError.OFFSET_OUT_OF_RANGE, KafkaError._AUTO_OFFSET_RESET, KafkaError._LOG_TRUNCATION}
_TOPIC_MISSING = {
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError.UNKNOWN_TOPIC_ID,
    KafkaError.INCONSISTENT_TOPIC_ID,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError._UNKNOWN_PARTITION,
}
_REFUSED = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "grant this principal access to the topic",
    KafkaError.GROUP_AUTHORIZATION_FAILED: "grant this principal READ on the group",
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: "grant this principal access to the cluster",
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED: "grant this principal WRITE on the transactional id",
    KafkaError.SASL_AUTHENTICATION_FAILED: "check the sasl.* settings",
    KafkaError.UNSUPPORTED_SASL_MECHANISM: "check sasl.mechanisms",
    KafkaError._AUTHENTICATION: "check the sasl.* and ssl.* settings",
    KafkaError._SSL: "check the ssl.* settings",
    KafkaError.MSG_SIZE_TOO_LARGE: "raise max.message.bytes of the topic",
    KafkaError.RECORD_LIST_TOO_LARGE: "raise segment.bytes of the topic",
    KafkaError.OFFSET_METADATA_TOO_LARGE: "raise offset.metadata.max.bytes of the brokers",
    KafkaError.INVALID_TRANSACTION_TIMEOUT: "lower transaction.timeout.ms, or raise transaction.max.timeout.ms",
    KafkaError.INVALID_SESSION_TIMEOUT: "bring session.timeout.ms within the brokers' limits",
    KafkaError.INCONSISTENT_GROUP_PROTOCOL: "give all members the same partition.assignment.strategy",
    KafkaError.GROUP_MAX_SIZE_REACHED: "raise group.max.size of the brokers",
    KafkaError.INVALID_GROUP_ID: "choose another group",
    KafkaError.TOPIC_EXCEPTION: "choose another name",
    KafkaError.INVALID_CONFIG: "correct the topic's settings",
    KafkaError.INVALID_PARTITIONS: "ask for one partition at least",
    KafkaError.INVALID_REPLICATION_FACTOR: "the cluster has too few brokers for its default.replication.factor",
    KafkaError.POLICY_VIOLATION: "the cluster's policy does not allow it",
    KafkaError.INVALID_RECORD: "a compacted topic needs keys, and a timestamp must be near the broker's clock",
    KafkaError.INVALID_TIMESTAMP: "a timestamp must be near the broker's clock",
    KafkaError.UNSUPPORTED_VERSION: "the brokers are too old; 2.5 is the oldest that can do this",
    KafkaError._INVALID_ARG: "librdkafka refuses the argument",
}
# librdkafka mends these itself, sooner or later. Exceeding max.poll.interval.ms is followed by a rebalance.
_PASSING = {
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._TRANSPORT,
    KafkaError._RESOLVE,
    KafkaError._TIMED_OUT,
    KafkaError._MAX_POLL_EXCEEDED,
    KafkaError._PARTITION_EOF,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.REPLICA_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.NOT_COORDINATOR,
    KafkaError.REQUEST_TIMED_OUT,
    KafkaError.NETWORK_EXCEPTION,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.UNKNOWN_LEADER_EPOCH,
    KafkaError.OFFSET_NOT_AVAILABLE,
    KafkaError.KAFKA_STORAGE_ERROR,
    KafkaError.BROKER_NOT_AVAILABLE,
}


_FATAL_CAUSES = {KafkaError(code).str(): code for code in _FENCED | _LOST | set(_REFUSED)}


def _code(error: KafkaError) -> int:
    """A fatal error tells its cause only in its text."""
    if error.code() != KafkaError._FATAL:
        return error.code()
    return next((code for text, code in _FATAL_CAUSES.items() if text in error.str()), KafkaError._FATAL)


def _error(doing: str, error: KafkaError) -> BrokerError:
    """What a KafkaError means to the protocol."""
    code = _code(error)
    text = f"{doing}: {error.str()} ({error.name()})"
    if code in _FENCED:
        return Fenced(f"{text}: another process has taken over; stop this one")
    if code in _LOST:
        return Lost(text)
    if code in _OUT_OF_RANGE:
        return OutOfRange(f"{text}: retention has passed the offset, or the topic was made anew")
    if code in _TOPIC_MISSING:
        return TopicMissing(text)
    if code in _REFUSED:
        return Refused(f"{text}: {_REFUSED[code]}")
    return BrokerError(text)


def _raised(doing: str, error: KafkaException) -> BrokerError:
    return _error(doing, error.args[0])


def _parts(places: Sequence[Place]) -> list[TopicPartition]:
    return [TopicPartition(place.topic, place.partition) for place in places]


def _places(parts: Sequence[TopicPartition]) -> list[Place]:
    return [Place(part.topic, part.partition) for part in parts]


# --- Messages: as little Python for each as possible ---

_value = Message.value
_key = Message.key
_offset = Message.offset
_partition = Message.partition
_topic = Message.topic
_timestamp = Message.timestamp
_headers = Message.headers
_failed = Message.error


def _times(batch: list[Message]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """-1 or 0: the message has none."""
    return np.fromiter((time_ms for _, time_ms in map(_timestamp, batch)), np.int64, len(batch))


def _reader(consumer: client.Consumer) -> direct.Reader | None:
    """None: messages come one by one, through the client."""
    if not direct.supported():
        return None
    try:
        return direct.Reader(consumer, _FETCH_MESSAGES)
    except BuildError as error:
        log.warning("reading message by message: %s", error)
        return None


def _gather(
    batch: list[Message],
    times: np.ndarray[Any, np.dtype[np.int64]],
    topic: str | None,
    keys: bool = False,
    headers: bool = False,
) -> list[Messages]:
    """Runs of one partition. topic: what all of them are from, if that is known."""
    unsigned = np.maximum(times, 0, out=times).view(np.uint64)
    starts = _starts(batch, topic)
    if len(starts) == 2:
        return [_messages(batch, unsigned, topic, keys, headers)]
    return [
        _messages(batch[begin:end], unsigned[begin:end], topic, keys, headers)
        for begin, end in zip(starts[:-1], starts[1:], strict=True)
    ]


def _starts(batch: list[Message], topic: str | None) -> list[int]:
    """Where runs begin, and where the last ends."""
    count = len(batch)
    partitions = list(map(_partition, batch))
    changes = np.zeros(count - 1, bool)
    if partitions.count(partitions[0]) != count:
        changes = np.diff(np.array(partitions, np.int32)) != 0
    if topic is None:
        topics = list(map(_topic, batch))
        if topics.count(topics[0]) != count:
            changes |= np.fromiter(map(operator.ne, topics[1:], topics), bool, count - 1)
    return [0, *(np.flatnonzero(changes) + 1).tolist(), count]


def _messages(
    run: list[Message],
    times: np.ndarray[Any, np.dtype[np.uint64]],
    topic: str | None,
    keys: bool,
    headers: bool,
) -> Messages:
    count = len(run)
    first, last = run[0].offset(), run[-1].offset()
    place = Place(topic or str(run[0].topic()), run[0].partition() or 0)
    assert first is not None and last is not None
    # Offsets rise, so that without a gap between the two ends there is none inside.
    if last - first == count - 1:
        offsets = np.arange(first, last + 1, dtype=np.int64)
    else:
        offsets = np.fromiter(map(_offset, run), np.int64, count)
    return Messages(
        place=place,
        values=list(map(_value, run)),
        times=times,
        offsets=offsets,
        keys=list(map(_key, run)) if keys else None,
        headers=cast(list[Headers], [found or () for found in map(_headers, run)]) if headers else None,
    )


def _between(messages: Messages, begin: int, end: int | None = None) -> Messages | None:
    """Those of begin <= offset < end."""
    low = int(np.searchsorted(messages.offsets, begin))
    high = len(messages.offsets) if end is None else int(np.searchsorted(messages.offsets, end))
    if low >= high:
        return None
    if high - low == len(messages.offsets):
        return messages
    return Messages(
        messages.place,
        messages.values[low:high],
        messages.times[low:high],
        messages.offsets[low:high],
        messages.keys and messages.keys[low:high],
        messages.headers and messages.headers[low:high],
    )


# --- A member of a group ---


class KafkaConsumer:
    """One member of a group. All methods are called by one thread; only `group_metadata` may be called by another.

    `last_error`: what librdkafka is trying to overcome; None once messages come again.

    After an exception out of `poll` that is not ours (a signal handler's), messages may have been dropped: `seek` every
    partition to where its batches ended, or `close`.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        group: str,
        topics: Sequence[str],
        listener: Listener,
        member: str | None,
    ) -> None:
        own = {
            "group.id": group,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "isolation.level": "read_committed",
            "auto.offset.reset": "error",
            "enable.partition.eof": False,
            "error_cb": self._on_error,
        }
        if member is not None:
            own["group.instance.id"] = member
        defaults = {**_DEFAULTS, **CONSUMER_DEFAULTS}
        # librdkafka refuses to mix strategies of both kinds, so that the settings tell which kind this is.
        self._incremental = "cooperative" in settings.get("partition.assignment.strategy", "cooperative-sticky")
        if settings.get("group.protocol", "classic") != "classic":
            self._incremental = True
            defaults = {name: value for name, value in defaults.items() if name not in _CLASSIC_ONLY}
        self.last_error: str | None = None
        self._listener = listener
        self._topic = topics[0] if len(topics) == 1 else None
        self._next: dict[Place, int] = {}  # what is assigned, and the lowest offset that may come next
        self._left: set[Place] = set()  # revoked or lost during the poll that runs
        self._again: set[Place] = set()  # of these, assigned anew in the same poll
        self._held: list[Messages] = []  # came in a poll that had to raise
        self._exception: BaseException | None = None
        self._closed = False
        self._consumer = _make(client.Consumer, {**defaults, **settings, **own})
        try:
            self._consumer.subscribe(
                list(topics), on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
            )
        except KafkaException as error:
            raise _raised(f"subscribing to {', '.join(topics)}", error) from None
        self._reader = _reader(self._consumer)

    def poll(self, timeout_seconds: float, most: int) -> list[Messages]:
        """A partition may come more than once in the answer, always further on."""
        # What was held back by a poll that had to raise goes first.
        wait_seconds = 0.0 if self._held else timeout_seconds
        if self._reader is not None:
            return self._poll_queues(self._reader, wait_seconds, most)
        while most > 0:
            size = min(most, _SLICE_MESSAGES)
            batch = self._consume(wait_seconds, size)
            taken = self._take(batch)  # which may thin out what is held
            self._held += taken
            if self._exception is not None:
                exception, self._exception = self._exception, None
                raise exception
            if len(batch) < size:
                break
            most -= size
            wait_seconds = 0.0
        found, self._held = self._held, []
        return found

    def _poll_queues(self, reader: direct.Reader, timeout_seconds: float, most: int) -> list[Messages]:
        """The client's queue has the rebalances and errors; a message there is older than any in ours."""
        while True:
            batch = self._consume(0.0, _SLICE_MESSAGES)
            self._held += self._take(batch)
            if len(batch) < _SLICE_MESSAGES:
                break
        wait_ms = 0 if self._held or self._exception else round(timeout_seconds * 1000)
        while self._exception is None and most > 0:
            size = min(most, _FETCH_MESSAGES)
            fetched = reader.fetch(min(wait_ms, _LINGER_MS), size)
            if not len(fetched) and wait_ms > _LINGER_MS:
                fetched, size = reader.fetch(wait_ms - _LINGER_MS, 1), 1
            self._held += self._still_ours(self._runs(reader, fetched))
            most -= len(fetched)
            wait_ms = 0
            if len(fetched) < size:
                break
        if self._exception is not None:
            exception, self._exception = self._exception, None
            raise exception
        found, self._held = self._held, []
        return found

    def _runs(self, reader: direct.Reader, fetched: direct.Fetched) -> list[Messages]:
        found = []
        for begin, end in fetched.runs():
            place = Place(reader.topic(int(fetched.topics[begin])), int(fetched.partitions[begin]))
            if fetched.errors[begin]:
                self._judge(KafkaError(int(fetched.errors[begin])), f"reading {place.topic}-{place.partition}")
                continue
            times = fetched.times[begin:end].astype(np.uint64)
            found.append(Messages(place, fetched.values[begin:end], times, fetched.offsets[begin:end]))
        return found

    def _take(self, batch: list[Message]) -> list[Messages]:
        found: list[Messages] = []
        if batch:
            times = _times(batch)
            # An error has no time; few messages have none, so that few batches are looked through.
            if times.min() <= 0 and any(map(_failed, batch)):
                batch = self._sort_out(batch)
                times = _times(batch)
            found = _gather(batch, times, self._topic) if batch else []
        return self._still_ours(found)

    def _consume(self, timeout_seconds: float, most: int) -> list[Message]:
        """Returns soon after the first message; consume() by itself waits for `most` of them as long as it may."""
        consume = self._consumer.consume
        linger = min(_LINGER_SECONDS, timeout_seconds)
        try:
            batch = consume(most, linger)
            if batch or timeout_seconds <= linger or self._exception is not None:
                return batch
            batch = consume(1, timeout_seconds - linger)
            if batch and most > 1 and not batch[0].error():
                batch += consume(most - 1, linger)
            return batch
        except KafkaException as error:
            raise _raised("reading", error) from None

    def _sort_out(self, batch: list[Message]) -> list[Message]:
        """The messages among them. Errors that do not pass by themselves are kept for the caller."""
        for message in filter(_failed, batch):
            error = message.error()
            assert error is not None
            doing = "reading" if message.topic() is None else f"reading {message.topic()}-{message.partition()}"
            self._judge(error, doing)
        return [message for message in batch if not message.error()]

    def _judge(self, error: KafkaError, doing: str) -> None:
        if error.code() in _PASSING or (error.retriable() and not error.fatal()):
            self._note(f"{doing}: {error.str()}")
        else:
            self._keep(_error(doing, error))

    def _still_ours(self, found: list[Messages]) -> list[Messages]:
        """Without what was fetched before a partition was given up or sought.

        A partition that was revoked and assigned again within one poll: nobody can say whether its messages were
        fetched before or after, so that they are all dropped and fetched once more.
        """
        if found:
            self.last_error = None
        if self._again:
            doubtful = self._again.intersection(messages.place for messages in found)
            found = [messages for messages in found if messages.place not in doubtful]
            self.seek({place: Offset(self._next[place]) for place in doubtful})
        self._left.clear()
        self._again.clear()
        ours: list[Messages] = []
        for messages in found:
            expected = self._next.get(messages.place)
            rest = None if expected is None else _between(messages, expected)
            if rest is not None:
                self._next[rest.place] = rest.next_offset
                ours.append(rest)
        return ours

    def seek(self, positions: Mapping[Place, Offset]) -> None:
        for place, offset in positions.items():
            self._seek(TopicPartition(place.topic, place.partition, offset))
            self._next[place] = offset
        self._held = [messages for messages in self._held if messages.place not in positions]

    def _seek(self, part: TopicPartition) -> None:
        deadline = time.monotonic() + _SEEK_SECONDS
        while True:
            try:
                return self._consumer.seek(part)
            except KafkaException as error:
                # Assigned, but its fetcher has not started.
                starting = error.args[0].code() in (KafkaError._STATE, KafkaError._PREV_IN_PROGRESS)
                if not starting or time.monotonic() > deadline:
                    raise _raised(f"seeking {part.topic}-{part.partition} to {part.offset}", error) from None
            time.sleep(0.01)

    def pause(self, places: Sequence[Place]) -> None:
        try:
            self._consumer.pause(_parts(places))
        except KafkaException as error:
            raise _raised("pausing", error) from None

    def resume(self, places: Sequence[Place]) -> None:
        try:
            self._consumer.resume(_parts(places))
        except KafkaException as error:
            raise _raised("resuming", error) from None

    def assignment(self) -> list[Place]:
        return list(self._next)

    def committed(self, places: Sequence[Place]) -> dict[Place, Position | None]:
        if not places:
            return {}
        try:
            # A read_committed consumer asks for stable offsets, and asks again while a transaction is open.
            parts = self._consumer.committed(_parts(places), timeout=_READY_SECONDS)
        except KafkaException as error:
            raise _raised("reading committed offsets", error) from None
        return _positions(parts)

    def known_ends(self) -> dict[Place, Offset]:
        ends: dict[Place, Offset] = {}
        for place in self._next:
            _, high = self._consumer.get_watermark_offsets(TopicPartition(*place), cached=True)
            if high >= 0:
                ends[place] = Offset(high)
        return ends

    def group_metadata(self) -> Any:
        return self._consumer.consumer_group_metadata()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._held = []
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        self._consumer.close()
        if self._exception is not None:
            exception, self._exception = self._exception, None
            raise exception

    # What follows is called by librdkafka inside consume() and close(), in their thread. Nothing may be raised.

    def _on_assign(self, _: client.Consumer, parts: list[TopicPartition]) -> None:
        places = _places(parts)
        start: list[TopicPartition] = []
        try:
            offsets = self._listener.assigned(places) if places else {}
            start = [TopicPartition(place.topic, place.partition, offsets[place]) for place in places]
            self._next.update({place: int(offsets[place]) for place in places})
            self._again |= self._left.intersection(places)
        except BaseException as error:
            self._keep(error)
        # Also if that failed: without this call the wrapper would start at the committed offsets by itself.
        if self._reader is not None:  # before anything is fetched, which would come through the client's queue
            self._reader.add(Place(part.topic, part.partition) for part in start)
        self._guard(self._consumer.incremental_assign if self._incremental else self._consumer.assign, start)

    def _on_revoke(self, _: client.Consumer, parts: list[TopicPartition]) -> None:
        self._leave(parts, self._listener.revoked)

    def _on_lost(self, _: client.Consumer, parts: list[TopicPartition]) -> None:
        self._leave(parts, self._listener.lost)

    def _leave(self, parts: list[TopicPartition], tell: Callable[[Sequence[Place]], None]) -> None:
        places = _places(parts)
        try:
            if places:
                tell(places)
        except BaseException as error:
            self._keep(error)
        for place in places:
            self._next.pop(place, None)
        if self._reader is not None:
            self._reader.remove(places)
        self._left.update(places)
        self._again.difference_update(places)
        self._held = [messages for messages in self._held if messages.place in self._next]
        self._guard(self._unassign, parts)

    def _unassign(self, parts: list[TopicPartition]) -> None:
        if not self._incremental:
            return self._consumer.unassign()
        # What a failed `assigned` has left out is not there to be taken away.
        present = {Place(part.topic, part.partition) for part in self._consumer.assignment()}
        self._consumer.incremental_unassign([part for part in parts if Place(part.topic, part.partition) in present])

    def _on_error(self, error: KafkaError) -> None:
        self._note(error.str())
        if error.fatal():
            self._keep(_error("reading", error))

    def _note(self, text: str) -> None:
        self.last_error = text
        log.warning("%s", text)

    def _guard(self, action: Callable[..., None], *arguments: Any) -> None:
        try:
            action(*arguments)
        except KafkaException as error:
            if error.args[0].code() != KafkaError._DESTROY:  # closing has gone so far that there is nothing to do
                self._keep(_raised("assigning partitions", error))

    def _keep(self, error: BaseException) -> None:
        """The first one counts: the others follow from it."""
        if self._exception is None:
            self._exception = error


def _positions(parts: Sequence[TopicPartition]) -> dict[Place, Position | None]:
    positions: dict[Place, Position | None] = {}
    for part in parts:
        if part.error is not None:
            raise _error(f"reading committed offsets of {part.topic}-{part.partition}", part.error)
        known = part.offset >= 0
        positions[Place(part.topic, part.partition)] = (
            Position(Offset(part.offset), part.metadata or "") if known else None
        )
    return positions


# --- Writing in transactions ---


class KafkaProducer:
    """Writes in transactions. Between `begin` and `commit` at most transaction.timeout.ms may pass."""

    def __init__(self, settings: Mapping[str, Any], transactional_id: str) -> None:
        self._timeout_seconds = (
            _milliseconds(settings, "transaction.timeout.ms", _TRANSACTION_TIMEOUT_MS) / 1000 + _ANSWER_SECONDS
        )
        self._id = transactional_id
        self._deadline: float | None = None  # when the broker gives the transaction up
        own = {
            "transactional.id": transactional_id,
            "transaction.timeout.ms": _milliseconds(settings, "transaction.timeout.ms", _TRANSACTION_TIMEOUT_MS),
            "enable.idempotence": True,
            "acks": "all",
            "delivery.report.only.error": True,  # a commit fails where a message did
        }
        self._producer: client.Producer | None = _make(
            client.Producer, {**_DEFAULTS, **_PRODUCER_DEFAULTS, **settings, **own}
        )
        self._topics: dict[str, direct.Topic] = {}
        self._do("opening", "init_transactions", _READY_SECONDS)

    def begin(self) -> None:
        self._do("beginning", "begin_transaction")
        self._deadline = time.monotonic() + self._timeout_seconds - _ANSWER_SECONDS

    def produce(
        self,
        topic: str,
        values: Sequence[bytes],
        keys: Sequence[bytes] | None = None,
        headers: Sequence[Headers] | None = None,
    ) -> None:
        assert self._producer is not None, "produce after close"
        assert keys is None or len(keys) == len(values)
        assert headers is None or len(headers) == len(values)
        produce, poll = self._producer.produce, self._producer.poll
        try:
            # produce_batch takes a dict for each message, knows no headers, and is slower.
            for value, key, header in zip(values, keys or repeat(None), headers or repeat(None), strict=False):
                while True:
                    try:
                        if header is None:
                            produce(topic, value, key)
                        else:
                            produce(topic, value, key, headers=list(header))
                        break
                    except BufferError:  # librdkafka's queue is full
                        self._check_time(topic)
                        poll(_FULL_QUEUE_SECONDS)
            poll(0)
        except KafkaException as error:
            raise self._raised(f"writing to {topic}", error) from None

    def produce_columns(self, topic: str, keys: Column, values: Column) -> None:
        if not direct.supported():
            return self.produce(topic, values.tolist(), keys.tolist())
        assert self._producer is not None, "produce after close"
        assert len(keys) == len(values)
        known = self._topics.get(topic) or self._topics.setdefault(topic, direct.Topic(self._producer, topic))
        try:
            rest = known.produce(keys, values)
            while rest:
                if rest.error is not None:
                    raise KafkaException(KafkaError(rest.error))
                self._check_time(topic)
                self._producer.poll(_FULL_QUEUE_SECONDS)
                rest = rest.produce()
            self._producer.poll(0)  # this too says what was fatal
        except KafkaException as error:
            raise self._raised(f"writing to {topic}", error) from None

    def _check_time(self, topic: str) -> None:
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise BrokerError(f"writing to {topic}: the transaction timed out before its messages were taken")

    def send_offsets(self, positions: Mapping[Place, Position], group: Any) -> None:
        parts = [
            TopicPartition(place.topic, place.partition, position.offset, position.metadata)
            for place, position in positions.items()
        ]
        self._do("committing offsets", "send_offsets_to_transaction", parts, group, self._timeout_seconds)

    def commit(self) -> None:
        self._do("committing", "commit_transaction", self._timeout_seconds)
        self._deadline = None

    def abort(self) -> None:
        self._do("aborting", "abort_transaction", self._timeout_seconds)
        self._deadline = None

    def close(self) -> None:
        # Not librdkafka's own close: that one aborts and flushes first, and waits for a broker that may be gone.
        self._topics.clear()
        self._producer = None

    def _do(self, doing: str, method: str, *arguments: Any) -> None:
        assert self._producer is not None, f"{doing} after close"
        try:
            getattr(self._producer, method)(*arguments)
        except KafkaException as error:
            raise self._raised(f"{doing} the transaction of {self._id}", error) from None

    def _raised(self, doing: str, error: KafkaException) -> BrokerError:
        raised = _raised(doing, error)
        if error.args[0].code() == KafkaError._FATAL and self._producer is not None:
            # produce() does not say what was fatal; after that, every call of a transaction does.
            try:
                self._producer.begin_transaction()
            except KafkaException as cause:
                raised = _raised(doing, cause)
        # The broker gives the same answer to a producer whose transaction timed out as to one that was replaced. After
        # the timeout the first is the likely one; if it was the second, the next producer is told so before long.
        if isinstance(raised, Fenced) and self._deadline is not None and time.monotonic() >= self._deadline:
            return BrokerError(f"{doing}: {error.args[0].str()}: it was open for longer than transaction.timeout.ms")
        return raised


# --- The cluster ---


class KafkaBroker:
    """A cluster. `settings` are librdkafka's, for every client. Raises BrokerError if nobody answers."""

    def __init__(self, bootstrap: str, settings: Mapping[str, str] = {}) -> None:
        _check(settings)
        self._settings: dict[str, Any] = {**settings, "bootstrap.servers": bootstrap}
        self._passing: str | None = None  # what goes wrong while we wait for an answer
        self._admin = _make(AdminClient, {**_DEFAULTS, **self._settings, "error_cb": self._on_error})
        self._appender: client.Producer | None = None
        self._askers: dict[tuple[str, bool], client.Consumer] = {}
        self._unwritten: list[KafkaError] = []
        self._reach(bootstrap)

    def _on_error(self, error: KafkaError) -> None:
        if self._passing is None or error.code() != KafkaError._ALL_BROKERS_DOWN:  # that one does not say why
            self._passing = error.str()

    def _reach(self, bootstrap: str) -> None:
        try:
            self._admin.list_topics(timeout=_ANSWER_SECONDS)
        except KafkaException as error:
            self._admin.poll(0)  # the callbacks that are due
            why = self._passing or error.args[0].str()
            raise BrokerError(f"Kafka at {bootstrap} gave no answer in {_ANSWER_SECONDS} s: {why}") from None

    def consumer(
        self, group: str, topics: Sequence[str], listener: Listener, member: str | None = None
    ) -> KafkaConsumer:
        return KafkaConsumer(self._settings, group, topics, listener, member)

    def producer(self, transactional_id: str) -> KafkaProducer:
        return KafkaProducer(self._settings, transactional_id)

    # Writing without transactions

    def append(
        self,
        topic: str,
        values: Sequence[bytes | None],
        keys: Sequence[bytes | None] | None = None,
        times: Sequence[int] | None = None,
    ) -> None:
        assert keys is None or len(keys) == len(values)
        assert times is None or len(times) == len(values)
        producer = self._appender = self._appender or self._new_appender()
        produce = producer.produce
        try:
            for value, key, time_ms in zip(values, keys or repeat(None), times or repeat(0), strict=False):
                while True:
                    try:
                        produce(topic, value, key, timestamp=time_ms)  # 0: now
                        break
                    except BufferError:  # a message that cannot be sent leaves the queue after message.timeout.ms
                        producer.poll(_FULL_QUEUE_SECONDS)
            producer.poll(0)
        except KafkaException as error:
            raise _raised(f"writing to {topic}", error) from None

    def _new_appender(self) -> client.Producer:
        own = {
            "enable.idempotence": True,
            "acks": "all",
            "delivery.report.only.error": True,
            "on_delivery": self._on_delivery,
        }
        defaults = {**_DEFAULTS, **_PRODUCER_DEFAULTS, "message.timeout.ms": str(_APPEND_TIMEOUT_MS)}
        transactional = {"transaction.timeout.ms"}
        settings = {name: value for name, value in self._settings.items() if name not in transactional}
        return _make(client.Producer, {**defaults, **settings, **own})

    def _on_delivery(self, error: KafkaError | None, _: Message) -> None:
        if error is not None:
            self._unwritten.append(error)

    def flush(self) -> None:
        if self._appender is None:
            return
        timeout_ms = _milliseconds(self._settings, "message.timeout.ms", _APPEND_TIMEOUT_MS)
        left = self._appender.flush(timeout_ms / 1000 + _ANSWER_SECONDS)
        unwritten, self._unwritten = self._unwritten, []
        if unwritten:
            raise _error(f"{len(unwritten)} messages were not written", unwritten[0])
        if left:
            raise BrokerError(f"{left} messages were not written: no answer from Kafka")

    # Reading without a group

    def read(
        self, place: Place, begin: Offset, end: Offset, keys: bool = False, headers: bool = False
    ) -> Iterator[Messages]:
        if begin >= end:
            return
        self._check_range(place, begin, end)
        consumer = self._assigned({place: begin}, {"enable.partition.eof": True})
        try:
            yield from _read(consumer, place, end, keys, headers)
        except KafkaException as error:
            raise _raised(f"reading {place.topic}-{place.partition}", error) from None
        finally:
            consumer.close()

    def follow(self, starts: Mapping[Place, Offset], keys: bool = False) -> Follower:
        return _KafkaFollower(self._assigned(starts, {"enable.partition.eof": True}), starts, keys)

    def _assigned(self, starts: Mapping[Place, Offset], settings: Mapping[str, Any]) -> client.Consumer:
        """A consumer in no group."""
        own = {
            "group.id": "tokenometer-read",  # the client wants a name; nothing is joined or committed
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "isolation.level": "read_committed",
            "auto.offset.reset": "error",
        }
        given = {**_DEFAULTS, **CONSUMER_DEFAULTS, **_classic(self._settings), **own, **settings}
        consumer = _make(client.Consumer, given)
        consumer.assign([TopicPartition(place.topic, place.partition, offset) for place, offset in starts.items()])
        return consumer

    def _check_range(self, place: Place, begin: Offset, end: Offset) -> None:
        """Else a reader would wait for what is not there."""
        low = self._offsets([place], OffsetSpec.earliest())[place]  # type: ignore[no-untyped-call]
        high = self._offsets([place], OffsetSpec.latest())[place]  # type: ignore[no-untyped-call]
        if begin < low or end > high:
            raise OutOfRange(f"{place.topic}-{place.partition} holds {low} to {high}; asked for {begin} to {end}")

    # Looking at the cluster

    def extents(self, topics: Sequence[str]) -> dict[Place, Extent]:
        places = self._partitions(topics)
        begins = self._offsets(places, OffsetSpec.earliest())  # type: ignore[no-untyped-call]
        ends = self._offsets(places, OffsetSpec.latest())  # type: ignore[no-untyped-call]
        return {place: Extent(begins[place], ends[place]) for place in places}

    def ends(self, topics: Sequence[str]) -> dict[Place, Offset]:
        places = self._partitions(topics)
        return self._offsets(places, OffsetSpec.latest(), client.IsolationLevel.READ_UNCOMMITTED)  # type: ignore[no-untyped-call]

    def _offsets(
        self,
        places: Sequence[Place],
        spec: OffsetSpec,
        # The latest offset is the last stable one.
        isolation: client.IsolationLevel = client.IsolationLevel.READ_COMMITTED,
    ) -> dict[Place, Offset]:
        if not places:
            return {}
        asked = {part: spec for part in _parts(places)}
        answers = self._admin.list_offsets(asked, isolation_level=isolation, request_timeout=_ANSWER_SECONDS)
        return {
            Place(part.topic, part.partition): Offset(_answer(f"offsets of {part.topic}", future).offset)
            for part, future in answers.items()
        }

    def _partitions(self, topics: Sequence[str]) -> list[Place]:
        counts = {name: len(described.partitions) for name, described in self._described(topics).items() if described}
        missing = [name for name in topics if name not in counts]
        if missing:
            raise TopicMissing(f"no such topic: {', '.join(missing)}")
        return [Place(name, partition) for name in topics for partition in range(counts[name])]

    def committed(self, group: str, topics: Sequence[str]) -> dict[Place, Position | None]:
        parts = _parts(self._partitions(topics))
        if not parts:
            return {}
        try:
            return _positions(self._asking(group, stable=True).committed(parts, timeout=_READY_SECONDS))
        except KafkaException as error:
            if error.args[0].code() not in (KafkaError._TIMED_OUT, KafkaError.UNSTABLE_OFFSET_COMMIT):
                raise _raised(f"committed offsets of {group}", error) from None
        try:
            return _positions(self._asking(group, stable=False).committed(parts, timeout=_ANSWER_SECONDS))
        except KafkaException as error:
            raise _raised(f"committed offsets of {group}", error) from None

    def _asking(self, group: str, stable: bool) -> client.Consumer:
        """A consumer that joins nothing. librdkafka's admin client crashes while a group's coordinator is loading:
        it takes the answer for a member's. stable: wait for transactions that are about to commit."""
        known = self._askers.get((group, stable))
        if known is None:
            own = {
                "group.id": group,
                "enable.auto.commit": False,
                "isolation.level": "read_committed" if stable else "read_uncommitted",
            }
            known = _make(client.Consumer, {**_DEFAULTS, **_classic(self._settings), **own})
            self._askers[group, stable] = known
        return known

    def topics(self, names: Sequence[str]) -> dict[str, TopicState | None]:
        described = self._described(names)
        there = [name for name, found in described.items() if found is not None]
        resources = {name: ConfigResource(ConfigResource.Type.TOPIC, name) for name in there}
        states: dict[str, TopicState | None] = dict.fromkeys(names)
        if not there:
            return states
        settings = self._admin.describe_configs(list(resources.values()), request_timeout=_ANSWER_SECONDS)
        for name in there:
            found = _answer(f"settings of {name}", settings[resources[name]])
            values = {entry.name: entry.value for entry in found.values() if entry.value is not None}
            states[name] = TopicState(str(described[name].topic_id), len(described[name].partitions), values)
        return states

    def _described(self, names: Sequence[str]) -> dict[str, Any]:
        """What the cluster says of each topic; None: there is none of that name."""
        if not names:
            return {}
        asked = client.TopicCollection(list(names))
        found: dict[str, Any] = {}
        for name, future in self._admin.describe_topics(asked, request_timeout=_ANSWER_SECONDS).items():
            try:
                found[name] = _answer(f"looking at {name}", future)
            except TopicMissing:
                found[name] = None
        self._admin.poll(0)  # log lines and callbacks that are due
        return found

    def create_topic(self, name: str, partitions: int, settings: Mapping[str, str], replication: int = 1) -> None:
        topic = NewTopic(name, num_partitions=partitions, replication_factor=replication, config=dict(settings))
        future = self._admin.create_topics([topic], request_timeout=_ANSWER_SECONDS)[name]
        try:
            future.result(timeout=2 * _ANSWER_SECONDS)
        except KafkaException as error:
            if error.args[0].code() == KafkaError.TOPIC_ALREADY_EXISTS:
                return
            raise _raised(f"creating {name}", error) from None
        self._await_leaders(name)

    def _await_leaders(self, name: str) -> None:
        """The controller has made it, but the brokers learn of it a moment later: until they answer for it."""
        deadline = time.monotonic() + _ANSWER_SECONDS
        while True:
            try:
                self.extents([name])
                return
            except BrokerError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.05)

    def close(self) -> None:
        self._appender = None
        for asking in self._askers.values():
            asking.close()
        self._askers.clear()


def _classic(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Without a group there is no group protocol."""
    return {name: value for name, value in settings.items() if name not in ("group.protocol", "group.remote.assignor")}


def _answer(doing: str, future: "Future[Any]") -> Any:
    try:
        # librdkafka answers within request_timeout; this is for the case that it does not.
        return future.result(timeout=2 * _ANSWER_SECONDS)
    except KafkaException as error:
        raise _raised(doing, error) from None
    except TimeoutError:
        raise BrokerError(f"{doing}: no answer in {2 * _ANSWER_SECONDS} s") from None


class _KafkaFollower:
    def __init__(self, consumer: client.Consumer, starts: Mapping[Place, Offset], keys: bool) -> None:
        self._consumer, self._keys = consumer, keys
        self._reached, self._parts = dict(starts), _parts(list(starts))

    def poll(self, timeout_seconds: float, most: int) -> list[Messages]:
        try:
            batch = self._consumer.consume(1, timeout_seconds)
            if batch and most > 1:
                batch += self._consumer.consume(most - 1, _LINGER_SECONDS)
            # As in `_read`: past all that was taken from the queue, markers as well.
            positions = self._consumer.position(self._parts)
        except KafkaException as error:
            raise _raised("following", error) from None
        for part in positions:
            self._pass(part.topic, part.partition, part.offset)
        for message in filter(_failed, batch):
            failure = message.error()
            assert failure is not None
            if failure.code() == KafkaError._PARTITION_EOF:
                self._pass(message.topic(), message.partition(), message.offset())
            elif failure.code() not in _PASSING and (failure.fatal() or not failure.retriable()):
                raise _error(f"following {message.topic()}-{message.partition()}", failure)
        found = [message for message in batch if not message.error()]
        return _gather(found, _times(found), None, self._keys) if found else []

    def _pass(self, topic: str | None, partition: int | None, offset: int | None) -> None:
        assert topic is not None and partition is not None and offset is not None
        place = Place(topic, partition)
        self._reached[place] = Offset(max(self._reached[place], offset))

    def reached(self) -> dict[Place, Offset]:
        return dict(self._reached)

    def close(self) -> None:
        self._consumer.close()


def _read(consumer: client.Consumer, place: Place, end: int, keys: bool, headers: bool) -> Iterator[Messages]:
    """Until nothing below `end` can come: aborted messages and transaction markers may be the last ones there."""
    part = [TopicPartition(place.topic, place.partition)]
    reached = 0
    heard = time.monotonic()
    while reached < end:
        batch = consumer.consume(1, 1.0)
        batch += consumer.consume(_READ_MESSAGES, _LINGER_SECONDS) if batch else []
        # Asked before the messages go out: it is past all that this call has taken from the queue, markers as well.
        reached = max(reached, consumer.position(part)[0].offset)
        for message in filter(_failed, batch):
            error = message.error()
            assert error is not None
            if error.code() == KafkaError._PARTITION_EOF:
                reached = max(reached, message.offset() or 0)
            elif error.code() not in _PASSING:
                raise _error(f"reading {place.topic}-{place.partition}", error)
        found = [message for message in batch if not message.error()]
        if batch:
            heard = time.monotonic()
        elif time.monotonic() - heard > _STALL_SECONDS and reached < end:
            raise BrokerError(
                f"reading {place.topic}-{place.partition}: nothing came for {_STALL_SECONDS} s; it ends at {end},"
                f" and offset {reached} is next"
            )
        for messages in _gather(found, _times(found), place.topic, keys, headers) if found else ():
            rest = _between(messages, 0, end)
            if rest is not None:
                yield rest
