"""librdkafka's settings: which are ours, which defaults a user's have, and how a client is made of them.

Promises: a user cannot choose a setting on which exactness depends, and sizes that depend on one another fit. No client
writes to standard error; all goes to the log `tokenometer.kafka`.
"""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from confluent_kafka import KafkaException

from tokenometer.processor.broker import Refused

log = logging.getLogger("tokenometer.kafka")

ANSWER_SECONDS = 10  # for a request that the broker answers at once if it answers at all
READY_SECONDS = 30  # for a coordinator that loads its state, or a transaction that has to end first
FULL_QUEUE_SECONDS = 0.05
TRANSACTION_TIMEOUT_MS = 30_000
SESSION_TIMEOUT_MS = 45_000  # librdkafka's default
_REPEAT_SECONDS = 30  # a log line that says the same again

_T = TypeVar("_T")

# A setting of ours among librdkafka's: which way a group's messages come. "own": by the fetcher, and an error if it
# cannot; "librdkafka": never by it; "auto": by it where it can.
FETCH = "tokenometer.fetch"
# The same of rows on their way out, which are written by requests of our own.
ROWS = "tokenometer.rows"
OWN_WAYS = ("auto", "own", "librdkafka")
# How often librdkafka says what its producer's id and epoch are; nothing else tells.
STATISTICS_MS = 250

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
    "stats_cb": "rows are written with what it tells",
}

# The defaults of a user's settings, where librdkafka's own do not suit.
DEFAULTS = {
    "client.id": "tokenometer",
    # New partitions are found within this time, not within five minutes.
    "topic.metadata.refresh.interval.ms": "10000",
    "socket.keepalive.enable": "true",
}
CONSUMER_DEFAULTS = {
    "partition.assignment.strategy": "cooperative-sticky",
    # A rebalance begins when the last member has heard of it, which is with its next heartbeat.
    "heartbeat.interval.ms": "500",
    # A full queue is looked at again after this; with the default of a second, a fast reader starves.
    "fetch.queue.backoff.ms": "10",
    # Of each partition. Of 100,000, the default, most have left the cache when they are read: a meter counts 6 % less.
    "queued.min.messages": "30000",
    "fetch.message.max.bytes": str(4 << 20),
}
PRODUCER_DEFAULTS = {
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
CLASSIC_ONLY = ("partition.assignment.strategy", "session.timeout.ms", "heartbeat.interval.ms")


def check(settings: Mapping[str, str]) -> None:
    for name in settings:
        if name in _OURS:
            raise Refused(f"the librdkafka setting {name} cannot be chosen: {_OURS[name]}")
    for name in (FETCH, ROWS):
        if settings.get(name, "auto") not in OWN_WAYS:
            raise Refused(f"{name} is one of {', '.join(OWN_WAYS)}, not {settings[name]!r}")
    if settings.get("group.protocol", "classic") != "classic":
        return
    transaction, session = (
        milliseconds(settings, name, default)
        for name, default in (
            ("transaction.timeout.ms", TRANSACTION_TIMEOUT_MS),
            ("session.timeout.ms", SESSION_TIMEOUT_MS),
        )
    )
    # Else a member that has lost its partitions could still commit them after their next owner has read the offsets.
    if transaction >= session:
        raise Refused(
            f"transaction.timeout.ms ({transaction}) must be below session.timeout.ms ({session}):"
            " set one or both with --kafka"
        )


def milliseconds(settings: Mapping[str, str], name: str, default: int) -> int:
    text = settings.get(name, str(default))
    try:
        return int(text)
    except ValueError:
        raise Refused(f"librdkafka setting {name}: expected a number of milliseconds, got {text!r}") from None


def principal_of(settings: Mapping[str, Any]) -> str:
    """The name that the brokers give to a client with these settings. A certificate or a ticket contains its name."""
    protocol = str(settings.get("security.protocol", "plaintext")).lower()
    if protocol.startswith("sasl"):
        name = settings.get("sasl.username")
        return f"User:{name}" if name else "the principal of these credentials"
    return "User:ANONYMOUS" if protocol == "plaintext" else "the principal of ssl.certificate.location"


def make(kind: Callable[..., _T], settings: Mapping[str, Any]) -> _T:
    """Makes a client. Its log lines go where all others of the process go."""
    try:
        return kind(dict(settings), logger=_Lines())
    except KafkaException as error:
        raise Refused(f"librdkafka settings: {error.args[0].str().strip()}") from None
    except (TypeError, ValueError) as error:
        raise Refused(f"librdkafka settings: {error}") from None


class Said:
    """Which lines were logged a moment ago: while a broker is away the same one comes many times a second."""

    def __init__(self) -> None:
        self._said: dict[str, float] = {}

    def again(self, text: str) -> bool:
        # "... (after 0ms in state CONNECT, 30 identical error(s) suppressed)"
        core = text.split("(after ")[0]
        now = time.monotonic()
        if now - self._said.get(core, -_REPEAT_SECONDS) < _REPEAT_SECONDS:
            return True
        if len(self._said) > 100:
            self._said.clear()
        self._said[core] = now
        return False


class _Lines:
    """Takes a client's log lines."""

    def __init__(self) -> None:
        self._said = Said()

    def log(self, level: int, form: str, *arguments: Any) -> None:
        text = form % arguments
        # Every client is given all settings.
        if "will be ignored by this" not in text and not self._said.again(text):
            log.log(level, "%s", text)


def classic(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Without a group there is no group protocol."""
    return {name: value for name, value in settings.items() if name not in ("group.protocol", "group.remote.assignor")}
