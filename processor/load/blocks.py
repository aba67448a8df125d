"""Putting a made-up log into a topic. As `produce`, without a Python step for each line: a block knows already whose
each line is and when it comes.

    blocks ──> pieces, each at its time ──> lines by group of users ──> n lines of a group: a message
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TypeVar

import numpy as np

from tokenometer.processor.broker import Broker, Column
from tokenometer.processor.load.lines import Block, Bytes, Grouping, Ints
from tokenometer.processor.load.produce import KEY_GROUPS, TOGETHER_MS, Pacing, Sent

_Messages = tuple[Column, Column]  # keys and values
_Item = TypeVar("_Item")


def ahead(items: Iterable[_Item], most: int = 2) -> Iterator[_Item]:
    """The same items, made on a thread of its own, some before they are asked for."""
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1) as pool:
        waiting = deque(pool.submit(next, iterator, end) for _ in range(most))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(pool.submit(next, iterator, end))
            yield item  # type: ignore[misc]


def send_blocks(
    broker: Broker,
    topic: str,
    blocks: Iterable[Block],
    pacing: Pacing,
    lines_per_message: int = 1,
    progress: Callable[[Sent], None] = lambda sent: None,
) -> Sent:
    """Send all lines and wait until the broker has them. Paced, a line goes when it comes to the log, and is
    there before the sender sleeps."""
    sent, groups = Sent(), _Groups(lines_per_message) if lines_per_message > 1 else None
    for block in _when_due(blocks, pacing, broker.flush):
        _append(broker, topic, _single(block) if groups is None else groups.add(block), sent)
        sent.records += len(block)
        progress(sent)
    if groups is not None:
        _append(broker, topic, groups.rest(), sent)
    broker.flush()
    return sent


def _append(broker: Broker, topic: str, messages: _Messages, sent: Sent) -> None:
    keys, values = messages
    if len(values):
        broker.append(topic, values, keys)
        sent.messages += len(values)
        sent.bytes += int(values.lengths.sum())


def _when_due(blocks: Iterable[Block], pacing: Pacing, before_sleep: Callable[[], None]) -> Iterator[Block]:
    """Pieces of blocks, each at its time."""
    if pacing.speed is None:
        yield from blocks
        return
    log_began_ms: float | None = None
    began_ms = pacing.steady_ms()
    for block in blocks:
        due_ms = np.maximum.accumulate(block.due_ms)
        log_began_ms = float(due_ms[0]) if log_began_ms is None else log_began_ms
        turns = ((due_ms - log_began_ms) / pacing.speed).astype(np.int64) // TOGETHER_MS
        cuts = [0, *(np.flatnonzero(np.diff(turns)) + 1).tolist(), len(block)]
        for begin, end in pairwise(cuts):
            ahead_ms = int(turns[begin]) * TOGETHER_MS - (pacing.steady_ms() - began_ms)
            if ahead_ms > 0:
                before_sleep()
                pacing.sleep(ahead_ms / 1000)
            yield block.between(begin, end)


def _single(block: Block) -> _Messages:
    """One line a message, its user the key."""
    names, starts, ends = block.user_names(), block.ends[:-1], block.ends[1:]
    count, width = names.shape
    keys = Column(names.reshape(-1), np.arange(count, dtype=np.int64) * width, np.full(count, width, np.int64))
    return keys, Column(np.frombuffer(block.data, np.uint8), starts, ends - starts - 1, ends, one_line=True)


class _Groups:
    """Messages of several lines, keyed by their users' group."""

    def __init__(self, lines_per_message: int) -> None:
        self._grouping = Grouping(KEY_GROUPS, lines_per_message)
        names = [b"group-%d" % group for group in range(KEY_GROUPS)]
        self._names = np.frombuffer(b"".join(names), np.uint8)
        self._lengths = np.array([len(name) for name in names], np.int64)
        self._starts = np.cumsum(self._lengths) - self._lengths

    def add(self, block: Block) -> _Messages:
        """What is full."""
        return self._messages(*self._grouping.add(block))

    def rest(self) -> _Messages:
        return self._messages(*self._grouping.rest())

    def _messages(self, data: Bytes, ends: Ints, groups: Ints) -> _Messages:
        starts = np.concatenate((np.zeros(1, np.int64), ends[:-1])) if len(ends) else ends
        keys = Column(self._names, self._starts[groups], self._lengths[groups])
        return keys, Column(data, starts, ends - starts - 1, ends)
