"""The last message of each key: a row that a later one replaces need not be read. Pure.

A meter publishes a row again each time that it has grown, and most of the time of a writer goes into reading JSON.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from tokenometer.processor.broker import Messages, Place

MESSAGES_MAX = 200_000  # of all partitions together, about 130 MB


@dataclass
class _Held:
    """Of one partition, lowest offset first. sorted_out: so many are known to be the last of their keys, if no more
    come."""

    keys: list[bytes | None] = field(default_factory=list)
    values: list[bytes] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sorted_out: int = 0


class Latest:
    """count: messages that are held. is_full: `take` them, for waiting on would make little room."""

    def __init__(self, messages_max: int = MESSAGES_MAX) -> None:
        self._most = messages_max
        self._held: dict[Place, _Held] = {}
        self.count, self.is_full = 0, False

    def add(self, messages: Messages) -> None:
        held = self._held.setdefault(messages.place, _Held())
        keys = list(messages.keys) if messages.keys is not None else [None] * len(messages.values)
        values, offsets = list(messages.values), messages.offsets.tolist()
        if None in values:
            there = [at for at, value in enumerate(values) if value is not None]
            keys, values, offsets = (_chosen(column, there) for column in (keys, values, offsets))
        held.keys += keys
        held.values += values  # type: ignore[arg-type]  # none of them is None
        held.offsets += offsets
        self.count += len(values)
        if self.count >= self._most:
            self._held = {place: _last(each) for place, each in self._held.items()}
            self.count = sum(len(each.values) for each in self._held.values())
            self.is_full = self.count >= self._most // 2

    def take(self) -> list[Messages]:
        """All of them, in the order of their offsets; they are not held any more."""
        found = []
        for place, held in self._held.items():
            if held.values:
                last = _last(held)
                there = np.array(last.offsets, np.int64)
                found.append(Messages(place, last.values, np.zeros(len(there), np.uint64), there))
        self._held, self.count, self.is_full = {}, 0, False
        return found


def _last(held: _Held) -> _Held:
    """Without those that a later one of the same key replaces."""
    if held.sorted_out == len(held.values):
        return held
    codes = pa.array(held.keys, pa.large_binary()).dictionary_encode(null_encoding="encode").indices.to_numpy()
    counts = np.bincount(codes)
    if len(counts) == len(codes):
        held.sorted_out = len(codes)
        return held
    honest = np.ones(len(codes), bool)
    repeated = np.flatnonzero(counts[codes] > 1)
    honest[repeated] = [_fits(held.keys[at], held.values[at]) for at in repeated.tolist()]
    last = np.full(len(counts), -1)
    last[codes[honest]] = np.flatnonzero(honest)  # of those that are written to one place the last one stays
    chosen = ~honest
    chosen[last[last >= 0]] = True
    places = np.flatnonzero(chosen).tolist()
    keys, values, offsets = (_chosen(column, places) for column in (held.keys, held.values, held.offsets))
    return _Held(keys, values, offsets, len(places))


def _chosen(column: list[Any], chosen: Iterable[int]) -> list[Any]:
    return [column[at] for at in chosen]


def _fits(key: bytes | None, value: bytes) -> bool:
    """Whether the value begins with its key, as a meter writes them. Otherwise a key may be of several rows."""
    return key is not None and value.startswith(key[:-1])
