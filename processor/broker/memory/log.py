"""The logs of a topic's partitions, and transactions as far as logs know them.

A partition, with one transaction open since offset 7:

    offset    0   1   2   3   4   5   6   7   8   9   10
            | a   a   C | .   .   A | b | t | b | t |         a, b  messages     C, A  markers: committed, aborted
              └ begin                     └ last     └ end    .     aborted: leaves a gap
                                            stable            t     of the open transaction: hides what follows
"""

import itertools
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar
from zlib import crc32

import numpy as np

from tokenometer.processor.broker import Column, Headers, Messages, Place, Position

Times = np.ndarray[Any, np.dtype[np.uint64]]
Texts = Sequence[bytes | None]  # a list, or a Column in a Room
_Cell = TypeVar("_Cell")


@dataclass(slots=True, eq=False)
class Segment:
    """What one call wrote to a partition: consecutive offsets from `base`, column by column."""

    base: int
    values: Texts
    times: Times
    keys: Texts | None
    headers: list[Headers] | None
    transaction: "Transaction | None"

    @property
    def end(self) -> int:
        return self.base + len(self.values)


@dataclass(slots=True, eq=False)
class Log:
    """One partition. Whatever lies below the last stable offset is committed: an abort takes its segments out."""

    begin: int = 0
    end: int = 0
    segments: list[Segment] = field(default_factory=list)
    open: dict["Transaction", int] = field(default_factory=dict)  # their first offsets here, in ascending order

    @property
    def last_stable(self) -> int:
        return next(iter(self.open.values()), self.end)

    def write(self, segment: Segment) -> None:
        assert segment.base == self.end and segment.values
        if segment.transaction is not None:
            self.open.setdefault(segment.transaction, segment.base)
        self.segments.append(segment)
        self.end = segment.end

    def mark(self, transaction: "Transaction", committed: bool) -> None:
        """Write the marker that ends a transaction here. It takes an offset, as Kafka's does."""
        first = self.open.pop(transaction)
        if not committed:
            begin = self._index(first)
            self.segments[begin:] = [s for s in self.segments[begin:] if s.transaction is not transaction]
        self.end += 1

    def delete_before(self, offset: int) -> None:
        assert offset <= self.last_stable
        self.begin = max(self.begin, offset)
        kept = next((i for i, segment in enumerate(self.segments) if segment.end > offset), len(self.segments))
        del self.segments[:kept]

    def keep(self, messages: int) -> None:
        """Drop all but the last `messages` offsets, where that frees whole segments."""
        limit = min(self.end - messages, self.last_stable)
        if self.segments and self.segments[0].end <= limit:
            self.delete_before(limit)

    def read(
        self, place: Place, begin: int, end: int, most: int, keys: bool = False, headers: bool = False
    ) -> list[Messages]:
        """Up to `most` messages of `begin` <= offset < `end`, which is stable. Columns come as they are; what is
        between them comes in one piece."""
        assert end <= self.last_stable
        runs: list[list[tuple[Segment, int, int]]] = []
        for piece in self._pieces(begin, end, most):
            alone = isinstance(piece[0].values, Column)
            if not runs or alone or isinstance(runs[-1][0][0].values, Column):
                runs.append([])
            runs[-1].append(piece)
        return [self._messages(place, pieces, keys, headers) for pieces in runs]

    def _messages(self, place: Place, pieces: list[tuple[Segment, int, int]], keys: bool, headers: bool) -> Messages:
        return Messages(
            place,
            _joined([segment.values[first:last] for segment, first, last in pieces]),
            _concatenated([segment.times[first:last] for segment, first, last in pieces]),
            _concatenated([np.arange(s.base + first, s.base + last, dtype=np.int64) for s, first, last in pieces]),
            _joined([s.keys[i:j] if s.keys else [None] * (j - i) for s, i, j in pieces]) if keys else None,
            _joined([s.headers[i:j] if s.headers else [()] * (j - i) for s, i, j in pieces]) if headers else None,
        )

    def _pieces(self, begin: int, end: int, most: int) -> Iterator[tuple[Segment, int, int]]:
        index = self._index(begin)
        while most > 0 and index < len(self.segments) and self.segments[index].base < end:
            segment = self.segments[index]
            first = max(begin - segment.base, 0)
            last = min(end - segment.base, len(segment.values), first + most)
            if first < last:
                yield segment, first, last
                most -= last - first
            index += 1

    def _index(self, offset: int) -> int:
        """The index of the segment that holds an offset, or would hold it."""
        return max(bisect_right(self.segments, offset, key=lambda segment: segment.base) - 1, 0)


def _joined(lists: Sequence[Sequence[_Cell]]) -> Sequence[_Cell]:
    return lists[0] if len(lists) == 1 else list(itertools.chain.from_iterable(lists))


def longest(texts: Texts) -> int:
    if isinstance(texts, Column):
        return int(texts.lengths.max(initial=0))
    return max(map(len, filter(None, texts)), default=0)


def picked(column: Sequence[_Cell], indexes: list[int] | None) -> list[_Cell]:
    return list(column) if indexes is None else [column[index] for index in indexes]


def _concatenated(arrays: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


@dataclass(slots=True, eq=False)
class Topic:
    id: str
    logs: list[Log]
    settings: dict[str, str]
    turn: int = 0  # messages without a key go to one partition a call, in turn

    def spread(self, keys: Sequence[bytes | None] | None) -> Iterator[tuple[Log, list[int] | None]]:
        """Each partition that gets messages, and which ones (None: all). The rule is librdkafka's `consistent_random`
        (crc32, which Python has built in), with turns instead of chance for messages without a key."""
        count = len(self.logs)
        sticky = self.turn % count
        self.turn += 1
        if keys is None or count == 1:
            yield self.logs[sticky], None
            return
        chosen: list[list[int]] = [[] for _ in self.logs]
        for index, key in enumerate(keys):
            chosen[crc32(key) % count if key else sticky].append(index)
        yield from ((log, indexes) for log, indexes in zip(self.logs, chosen, strict=True) if indexes)


@dataclass(slots=True, eq=False)
class Transaction:
    began_ms: int
    offsets: dict[str, dict[Place, Position]] = field(default_factory=dict)
    logs: dict[Log, None] = field(default_factory=dict)  # a set that keeps its order

    def end(self, committed: bool) -> None:
        for log in self.logs:
            log.mark(self, committed)
