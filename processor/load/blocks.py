"""Putting a made-up log into a topic. As `produce`, without a Python step for each line: a block knows already whose
each line is and when it comes.

    blocks ──> pieces, each at its time ──> lines by group of users ──> n lines of a group: a message
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeVar

import numpy as np

from tokenometer.processor.broker import Broker
from tokenometer.processor.load.lines import Block
from tokenometer.processor.load.produce import KEY_GROUPS, TOGETHER_MS, Pacing, Sent, append

_Messages = list[tuple[bytes, bytes]]  # keys and values
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
    """Send all lines and wait until the broker has them. Paced, a line goes when it comes to the log."""
    sent, groups = Sent(), _Groups(lines_per_message)
    for block in _when_due(blocks, pacing):
        append(broker, topic, _single(block) if lines_per_message == 1 else groups.add(block), sent)
        sent.records += len(block)
        progress(sent)
    append(broker, topic, groups.rest(), sent)
    broker.flush()
    return sent


def _when_due(blocks: Iterable[Block], pacing: Pacing) -> Iterator[Block]:
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
                pacing.sleep(ahead_ms / 1000)
            yield block.between(begin, end)


def _single(block: Block) -> _Messages:
    """One line a message, its user the key."""
    names = block.user_names()
    keys, width, data = names.tobytes(), names.shape[1], bytes(block.data)
    places = zip(range(0, len(keys), width), pairwise(block.ends.tolist()), strict=True)
    return [(keys[at : at + width], data[start : end - 1]) for at, (start, end) in places]


@dataclass
class _Groups:
    """Lines that wait until their message is full: for each group of users some bytes, and how many lines they are."""

    lines_per_message: int
    waiting: list[list[bytes]] = field(default_factory=lambda: [[] for _ in range(KEY_GROUPS)])
    lines: list[int] = field(default_factory=lambda: [0] * KEY_GROUPS)

    def add(self, block: Block) -> _Messages:
        """What is full."""
        groups = (block.users % KEY_GROUPS).astype(np.uint8)
        data, ends = block.reordered(np.argsort(groups, kind="stable"))
        full, row = [], 0
        for group, count in enumerate(np.bincount(groups, minlength=KEY_GROUPS).tolist()):
            end = row + count
            while self.lines[group] + end - row >= self.lines_per_message:
                last = row + self.lines_per_message - self.lines[group]
                value = b"".join((*self.waiting[group], data[ends[row] : ends[last] - 1]))
                full.append((b"group-%d" % group, value))
                self.waiting[group], self.lines[group], row = [], 0, last
            if row < end:
                self.waiting[group].append(bytes(data[ends[row] : ends[end]]))
                self.lines[group] += end - row
            row = end
        return full

    def rest(self) -> _Messages:
        return [(b"group-%d" % group, b"".join(lines)[:-1]) for group, lines in enumerate(self.waiting) if lines]
