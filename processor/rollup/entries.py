"""What the rollup keeps of token-live: entries, each of which follows from the beginning of one partition's log.

A live summary has the absolute counters of a meter's open part, in the cells that changed. A closed part is needed only
for what it added, and a meter's parts follow one another in one partition. So an entry has sums over closed parts, and
the cells of the open one.

    key                       what
    p/meter/NAME              the last summary's head, sums over the meter's closed parts, its largest users
    p/cells/WINDOW/NAME       a window's usage by one meter
    p/window/WINDOW           a window's usage by all meters of the partition: replaces their `cells` when these are old
    p/users/WINDOW            registers of the window's users, from all meters
    p/hour/HOUR               registers of the hour's users: takes over `users` when these are old

Promises: it is pure. An entry has the offset of the last message in it, and ignores earlier messages. No rule needs two
entries to be written together: where there is a `window`, its `cells` do not count, and registers are merged by
maximum. So the entry that has read further wins, whatever comes again and wherever a writer dies or is overtaken.
"""

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import orjson

from tokenometer.kernels.values import Bytes
from tokenometer.processor.rollup.cells import PACKED_OFFSET_BYTES, Cells, WindowUsage, check_columns
from tokenometer.processor.rollup.meters import HOUR_MS, MINUTE_MS, MeterState
from tokenometer.processor.rollup.summaries import SummaryMessage
from tokenometer.schemas.usage import DAY_MS

# Parts are closed when they are ten minutes old, so that the meters' cells of a window this old hardly change any more.
FOLD_AGE_MS = 15 * MINUTE_MS  # after the window's end
USERS_AGE_MS = 70 * MINUTE_MS  # the last hour is merged from windows; what is older, from hours
AHEAD_MS = DAY_MS  # of the clock: later windows are not kept
OPEN_CELLS_MAX = 2048  # of all meters, in windows that become one entry
ENTRY_BYTES_MAX = 8 << 20  # what the entries' topic takes

Changes = dict[bytes, bytes | None]  # entries to be written; None: to be deleted


class Key(NamedTuple):
    partition: int
    kind: str
    time_ms: int  # a window's or hour's start; 0 for a meter
    meter: str

    def encode(self) -> bytes:
        name = {"meter": self.meter, "cells": f"{self.time_ms}/{self.meter}"}.get(self.kind, str(self.time_ms))
        return f"{self.partition}/{self.kind}/{name}".encode()

    @classmethod
    def decode(cls, key: bytes) -> "Key":
        partition, kind, name = key.decode().split("/", 2)
        if kind == "meter":
            return cls(int(partition), kind, 0, name)
        time_ms, _, meter = name.partition("/")
        return cls(int(partition), kind, int(time_ms), meter)


def kept_from(now_ms: int) -> int:
    """The oldest window that is kept: those before yesterday are forgotten."""
    return now_ms // DAY_MS * DAY_MS - DAY_MS


def read_usage(key: Key, value: bytes) -> tuple[int, list[str], list[int]]:
    """An entry of usage as columns: its offset, names and counters. A cell comes once for each part that has it."""
    entry = orjson.loads(value if key.kind == "cells" else zlib.decompress(value[PACKED_OFFSET_BYTES:]))
    (names, counters), *others = entry["closed"], *(columns for _, columns in entry["open"].values())
    for more_names, more_counters in others:
        names += more_names
        counters += more_counters
    check_columns(names, counters)
    return entry["offset"], names, counters


def encode_registers(registers: Bytes) -> bytes:
    return zlib.compress(registers.tobytes(), 1)


def decode_registers(value: bytes) -> Bytes:
    return np.frombuffer(zlib.decompress(value), np.uint8)


def longer(key: bytes, one: bytes, other: bytes) -> bytes:
    """The one of two values of a key that follows from more of the log."""
    kind = Key.decode(key).kind
    if kind in ("users", "hour"):
        return encode_registers(np.maximum(decode_registers(one), decode_registers(other)))
    offset = _packed_offset if kind == "window" else _offset
    return other if offset(other) >= offset(one) else one


def _offset(value: bytes) -> int:
    """The offset of an entry, without reading all of it: it is the first field of `meter` and `cells`."""
    assert value.startswith(_OFFSET)
    return int(value[len(_OFFSET) : value.index(b",")])


def _packed_offset(value: bytes) -> int:
    return int.from_bytes(value[:PACKED_OFFSET_BYTES], "big")


_OFFSET = b'{"offset":'


@dataclass
class _Partition:
    """An entry that seldom changes is held as it was written: the table holds the same bytes."""

    clock_ms: int = 0  # the latest commit
    meters: dict[str, MeterState] = field(default_factory=dict)
    cells: dict[int, dict[str, WindowUsage]] = field(default_factory=dict)
    windows: dict[int, bytes] = field(default_factory=dict)
    users: dict[int, bytes] = field(default_factory=dict)
    hours: dict[int, bytes] = field(default_factory=dict)

    def is_old(self, window: int, age_ms: int) -> bool:
        """Whether the window ended so long ago."""
        recent = (m.window_ms for m in self.meters.values() if m.committed_at_ms > self.clock_ms - DAY_MS)
        return window + max(recent, default=MINUTE_MS) < self.clock_ms - age_ms


class Entries:
    """The entries of those partitions of token-live that this process reads."""

    def __init__(self) -> None:
        self._partitions: dict[int, _Partition] = {}
        self.left_out = 0  # cells of messages for which there was no room

    def restore(self, stored: Iterable[tuple[bytes, bytes]]) -> None:
        """Begin anew with the entries that were kept."""
        self._partitions.clear()
        for key, value in stored:
            self._restore(Key.decode(key), value)
        for partition in self._partitions.values():
            for window in partition.windows.keys() & partition.cells.keys():
                longest = max(usage.offset for usage in partition.cells[window].values())
                if longest <= _packed_offset(partition.windows[window]):
                    del partition.cells[window]  # their writer died between two deletions
                else:
                    del partition.windows[window]  # of a writer that was overtaken

    def _restore(self, key: Key, value: bytes) -> None:
        partition = self._partitions.setdefault(key.partition, _Partition())
        match key.kind:
            case "meter":
                meter = partition.meters[key.meter] = MeterState.decode(value)
                partition.clock_ms = max(partition.clock_ms, meter.committed_at_ms)
            case "cells":
                partition.cells.setdefault(key.time_ms, {})[key.meter] = WindowUsage.decode(value)
            case "window":
                partition.windows[key.time_ms] = value
            case "users":
                partition.users[key.time_ms] = value
            case "hour":
                partition.hours[key.time_ms] = value

    def current(self, key: bytes) -> bytes | None:
        """An entry with offsets as it should be in the table; None where it should not be there, or another process has
        it."""
        name = Key.decode(key)
        known = self._partitions.get(name.partition, _Partition())
        match name.kind:
            case "meter":
                entry: MeterState | WindowUsage | None = known.meters.get(name.meter)
            case "cells":
                entry = known.cells.get(name.time_ms, {}).get(name.meter)
            case _:
                return known.windows.get(name.time_ms)
        return None if entry is None else entry.encode()

    def learn(self, partition: int, offset: int, summary: SummaryMessage, now_ms: int) -> Changes:
        """What a message changes, in the order in which it must be written. `now_ms` bounds a meter's wrong clock."""
        known = self._partitions.setdefault(partition, _Partition())
        known.clock_ms = max(known.clock_ms, min(summary.committed_at_ms, now_ms))
        changes: Changes = {}
        meter = known.meters.setdefault(summary.meter, MeterState())
        if meter.learn(offset, summary, now_ms):
            changes[Key(partition, "meter", 0, summary.meter).encode()] = meter.encode()
        since_ms, until_ms = kept_from(known.clock_ms), known.clock_ms + AHEAD_MS
        for window, cells in summary.cells.items():
            if since_ms <= window <= until_ms:
                _write(changes, self._learn_cells(known, partition, offset, summary, window, cells))
        for window, registers in summary.sketches.items():
            if since_ms <= window <= until_ms:
                _write(changes, _learn_users(known, partition, window, registers))
        _write(changes, _tidy(known, partition, offset))
        return changes

    def _learn_cells(
        self, known: _Partition, partition: int, offset: int, summary: SummaryMessage, window: int, cells: Cells
    ) -> Iterator[tuple[bytes, bytes | None]]:
        folded = known.windows.get(window)
        if folded is not None:
            usage = WindowUsage.unpack(folded)
        else:
            usage = known.cells.setdefault(window, {}).setdefault(summary.meter, WindowUsage())
        new = usage.learn(offset, summary.meter, summary.part, cells)
        if new:
            self.left_out += len(cells.keys() - usage.open[summary.meter][1].keys())
        if new and folded is not None:
            known.windows[window] = usage.pack()
            yield Key(partition, "window", window, "").encode(), known.windows[window]
        elif new:
            yield Key(partition, "cells", window, summary.meter).encode(), usage.encode()


def _write(changes: Changes, items: Iterable[tuple[bytes, bytes | None]]) -> None:
    """A key that changes twice is written at its later place, so that nothing is deleted before its replacement is
    there."""
    for key, value in items:
        changes.pop(key, None)
        changes[key] = value


def _learn_users(
    known: _Partition, partition: int, window: int, registers: Bytes
) -> Iterator[tuple[bytes, bytes | None]]:
    old = known.is_old(window, USERS_AGE_MS)
    table, kind = (known.hours, "hour") if old else (known.users, "users")
    start = window // HOUR_MS * HOUR_MS if old else window
    before = decode_registers(table[start]) if start in table else None
    after = registers if before is None else np.maximum(before, registers)
    if before is None or not np.array_equal(before, after):
        table[start] = encode_registers(after)
        yield Key(partition, kind, start, "").encode(), table[start]


def _tidy(known: _Partition, partition: int, offset: int) -> Iterator[tuple[bytes, bytes | None]]:
    """The meters of an old window become one entry, the users of an old window become their hour's, and what is older
    than yesterday is deleted. What replaces an entry is written first."""
    for window in sorted(window for window in known.cells if known.is_old(window, FOLD_AGE_MS)):
        usage, of_meters = WindowUsage(), known.cells[window]
        for name, one in of_meters.items():
            # After a restart a meter's entry may be ahead of a window's, or behind it: then its part tells nothing.
            meter = known.meters.get(name)
            if meter is not None and one.offset <= meter.offset <= offset:
                one.settle({name: meter.part})
            usage.take_over(one)
        if usage.open_cells > OPEN_CELLS_MAX:
            continue  # until parts are closed
        known.windows[window] = usage.pack()
        del known.cells[window]
        yield Key(partition, "window", window, "").encode(), known.windows[window]
        yield from ((Key(partition, "cells", window, meter).encode(), None) for meter in of_meters)
    for window in sorted(window for window in known.users if known.is_old(window, USERS_AGE_MS)):
        yield from _learn_users(known, partition, window, decode_registers(known.users.pop(window)))
        yield Key(partition, "users", window, "").encode(), None
    since_ms = kept_from(known.clock_ms)
    tables: dict[str, dict[int, Any]] = {"window": known.windows, "hour": known.hours}
    for kind, table in tables.items():
        for start in [start for start in table if start < since_ms]:
            del table[start]
            yield Key(partition, kind, start, "").encode(), None
