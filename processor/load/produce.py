"""Putting a log into a topic: keyed by user, several lines a message, at the pace of the log or as fast as it goes.

Owns: how lines become messages. Promises: every line is sent once, and the lines of one user stay in one partition, in
their order, so that a re-sent request meets its first. A line without a user is keyed by its request id, which does the
same; one without either by its bytes, which does so only where they are sent again unchanged: those are counted.

    lines ──> user and time of each ──> wait until due ──> group of the user's key ──> n lines: a message
"""

import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from tokenometer.kernels.values import Canonical, Referee
from tokenometer.processor.broker import Broker
from tokenometer.schemas.mapping import Mapping, Path

KEY_GROUPS = 256  # where a message has lines of several users: more than a topic has partitions, mostly
KEY_BYTES_MAX = 1 << 10  # of a line that has nothing else to be keyed by
_BLOCK_LINES = 1000  # judged and sent together
TOGETHER_MS = 20  # messages that are due within this time go together
_RECENT = 5  # records whose median is the log's time


@dataclass(frozen=True)
class Pacing:
    """speed: log time passes so many times as fast as the clock; None: as fast as it goes."""

    speed: float | None
    steady_ms: Callable[[], int]
    sleep: Callable[[float], None]


@dataclass
class Sent:
    records: int = 0
    messages: int = 0
    bytes: int = 0
    keyed_by_bytes: int = 0  # records without a user and a request id


@dataclass
class _Groups:
    """Lines that wait until their message is full, by key."""

    lines_per_message: int
    waiting: dict[bytes, list[bytes]] = field(default_factory=dict)

    def add(self, key: bytes, line: bytes) -> tuple[bytes, bytes] | None:
        """A key and a message, when it is full."""
        if self.lines_per_message == 1:
            return key, line
        key = b"group-%d" % (zlib.crc32(key) % KEY_GROUPS)
        lines = self.waiting.setdefault(key, [])
        lines.append(line)
        if len(lines) < self.lines_per_message:
            return None
        del self.waiting[key]
        return key, b"\n".join(lines)

    def rest(self) -> Iterator[tuple[bytes, bytes]]:
        for key, lines in self.waiting.items():
            yield key, b"\n".join(lines)


def send(
    broker: Broker,
    topic: str,
    lines: Iterable[bytes],
    mapping: Mapping,
    referee: Referee,
    pacing: Pacing,
    lines_per_message: int = 1,
    progress: Callable[[Sent], None] = lambda sent: None,
) -> Sent:
    """Send all lines (without their newlines) and wait until the broker has them."""
    sent, groups = Sent(), _Groups(lines_per_message)
    user, request = mapping.field("user").paths, mapping.field("request_id").paths
    due: _Due | None = None
    for block in _blocks(lines):
        times = [None] * len(block) if pacing.speed is None else [_time_ms(referee, line, mapping) for line in block]
        due = due or _Due(pacing, [time_ms for time_ms in times if time_ms is not None])
        full: list[tuple[bytes, bytes]] = []
        for line, time_ms in zip(block, times, strict=True):
            if time_ms is not None and (ahead_ms := due.ahead_ms(time_ms)) > TOGETHER_MS:
                append(broker, topic, full, sent)
                full = []
                pacing.sleep(ahead_ms / 1000)
            key = _text(line, (*user, *request))
            sent.keyed_by_bytes += key == b""
            message = groups.add(key or line[:KEY_BYTES_MAX], line)
            if message:
                full.append(message)
        append(broker, topic, full, sent)
        sent.records += len(block)
        progress(sent)
    append(broker, topic, list(groups.rest()), sent)
    broker.flush()
    return sent


def _text(line: bytes, paths: Sequence[Path]) -> bytes | None:
    """The first of these paths that has a text or a whole number; empty: none has. None: the line is no record."""
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(record, dict):
        return None
    for path in paths:
        value: Any = record
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        if (isinstance(value, str) and value) or type(value) is int:
            return str(value).encode()
    return b""


def _time_ms(referee: Referee, line: bytes, mapping: Mapping) -> int | None:
    record = referee(line, mapping, None)
    return record.time_ms if isinstance(record, Canonical) else None


def append(broker: Broker, topic: str, messages: list[tuple[bytes, bytes]], sent: Sent) -> None:
    if messages:
        keys, values = zip(*messages, strict=True)
        broker.append(topic, values, keys)
        sent.messages += len(values)
        sent.bytes += sum(map(len, values))


def _blocks(lines: Iterable[bytes]) -> Iterator[list[bytes]]:
    block: list[bytes] = []
    for line in lines:
        block.append(line)
        if len(block) == _BLOCK_LINES:
            yield block
            block = []
    if block:
        yield block


class _Due:
    """When the record at hand is to be sent. The log's time is the median of a few records': one that is late, or of a
    clock that is ahead, neither holds up the others nor hurries them, be it the first."""

    def __init__(self, pacing: Pacing, first_times_ms: Sequence[int]) -> None:
        self._pacing = pacing
        self._recent = deque(first_times_ms[:_RECENT], maxlen=_RECENT)
        self._log_began_ms = sorted(self._recent)[min(1, len(self._recent) - 1)] if self._recent else 0
        self._began_ms = pacing.steady_ms()

    def ahead_ms(self, time_ms: int) -> float:
        """How long it is until then; negative where the sender is late."""
        assert self._pacing.speed is not None
        self._recent.append(time_ms)
        log_ms = sorted(self._recent)[len(self._recent) // 2]
        return (log_ms - self._log_began_ms) / self._pacing.speed - (self._pacing.steady_ms() - self._began_ms)
