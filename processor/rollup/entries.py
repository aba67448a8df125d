"""What the rollup keeps of token-live: entries, each of which follows from the beginning of one partition's log.

A live summary tells the absolute counters of a meter's open part, in the cells that changed. Of a part that was closed
only what it added is needed, and a meter's parts follow one another in one partition; so an entry has sums over closed
parts, and the cells of the open one.

    key                       what
    p/meter/NAME              the last summary's head, sums over the meter's closed parts, its largest users
    p/cells/WINDOW/NAME       a window's usage by one meter
    p/window/WINDOW           a window's usage by all meters of the partition: replaces their `cells` when these are old
    p/users/WINDOW            registers of the window's users, from all meters
    p/hour/HOUR               registers of the hour's users: takes over `users` when these are old

Promises: pure. An entry bears the offset of the last message in it, and ignores what came before. No rule needs two
entries to be written together: where there is a `window` its `cells` do not count, and registers are merged by
maximum. So whatever is delivered again, and wherever a writer dies or is overtaken, the longer beginning wins.
"""

import base64
import functools
import itertools
import operator
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
import orjson

from tokenometer.kernels.values import Bytes
from tokenometer.processor.records import hyperloglog
from tokenometer.schemas.usage import COUNTERS, DAY_MS, SCHEMA_VERSION

RECORDS = ("counted", "duplicates", "rejected", "empty")
MINUTE_MS, HOUR_MS = 60_000, 3_600_000
# Parts are closed when they are ten minutes old, so that the meters' cells of a window this old hardly change any more.
FOLD_AGE_MS = 15 * MINUTE_MS  # after the window's end
USERS_AGE_MS = 70 * MINUTE_MS  # the last hour is merged from windows; what is older, from hours
AHEAD_MS = DAY_MS  # of the clock: later windows are not kept
TOP_SPAN_MS = 5 * MINUTE_MS
TOP_USERS_MAX = 50  # kept of each span
# What an entry may hold of open parts, and of closed ones; with the longest numbers that is half of ENTRY_BYTES_MAX.
CELLS_MAX = 4096
NAMES_BYTES_MAX = 1 << 20  # as JSON, where a control character takes six
OPEN_CELLS_MAX = 2048  # of all meters, in windows that become one entry
ENTRY_BYTES_MAX = 8 << 20  # what the entries' topic takes
COUNTER_END = 1 << 62  # sums are signed 64-bit numbers; at 120 T a day a counter gets there after a hundred years

Cell = tuple[str, str]  # model, chip
Cells = dict[Cell, tuple[int, ...]]  # as COUNTERS
OTHERS: Cell = "", ""  # no record has empty names
_names_of = operator.itemgetter("model", "chip")
_counters_of = operator.itemgetter(*COUNTERS)
Changes = dict[bytes, bytes | None]  # entries to be written; None: to be deleted


class Unreadable(Exception):
    """A message that is no live summary; the argument says why."""


class UnknownSummary(Exception):
    """A live summary of another version than ours."""


class UnknownEntry(Exception):
    """An entry of another version than ours."""


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
    """Windows before yesterday are forgotten."""
    return now_ms // DAY_MS * DAY_MS - DAY_MS


# --- A window's usage ---


@dataclass
class Usage:
    """Of a window: sums over closed parts, and the cells of each meter's open part."""

    offset: int = -1
    closed: Cells = field(default_factory=dict)
    open: dict[str, tuple[str, Cells]] = field(default_factory=dict)

    def learn(self, offset: int, meter: str, part: str, cells: Cells) -> bool:
        """False: it was known. Of more cells than there is room for the later ones are left out: what is not kept apart
        cannot be told from what was counted before."""
        if offset <= self.offset:
            return False
        self.offset = offset
        known, before = self.open.get(meter, (part, {}))
        if known != part:
            _add(self.closed, before)
            before = {}
        before.update((cell, counters) for cell, counters in cells.items() if cell in before)
        new = [cell for cell in cells if cell not in before]
        self.open[meter] = part, before
        before.update((cell, cells[cell]) for cell in _fitting(new, [known for _, known in self.open.values()]))
        return True

    @property
    def open_cells(self) -> int:
        return sum(len(cells) for _, cells in self.open.values())

    def take_over(self, other: "Usage") -> None:
        """Another meter's window becomes part of this one."""
        assert self.open.keys().isdisjoint(other.open)
        self.offset = max(self.offset, other.offset)
        _add(self.closed, other.closed)
        self.open |= other.open

    def settle(self, parts: Mapping[str, str]) -> None:
        """`parts`: the open one of each meter, where it is known; other parts need no cells of their own any more."""
        for meter in [meter for meter, (part, _) in self.open.items() if parts.get(meter, part) != part]:
            _add(self.closed, self.open.pop(meter)[1])

    def encode(self) -> bytes:
        parts = {meter: [part, _columns(cells)] for meter, (part, cells) in self.open.items()}
        return orjson.dumps({"offset": self.offset, "closed": _columns(self.closed), "open": parts})

    def pack(self) -> bytes:
        """As a `window`, of which there are two days: small, and its offset is read without unpacking."""
        return self.offset.to_bytes(_PACKED_OFFSET, "big") + zlib.compress(self.encode(), 1)

    @classmethod
    def unpack(cls, value: bytes) -> "Usage":
        return cls.decode(zlib.decompress(value[_PACKED_OFFSET:]))

    @classmethod
    def decode(cls, value: bytes) -> "Usage":
        entry = orjson.loads(value)
        parts = {meter: (part, _cells(columns)) for meter, (part, columns) in entry["open"].items()}
        return cls(entry["offset"], _cells(entry["closed"]), parts)


def read_usage(key: Key, value: bytes) -> tuple[int, list[str], list[int]]:
    """An entry of usage, by columns: its offset, names and counters. A cell comes once for each part that has it."""
    entry = orjson.loads(value if key.kind == "cells" else zlib.decompress(value[_PACKED_OFFSET:]))
    (names, counters), *others = entry["closed"], *(columns for _, columns in entry["open"].values())
    for more_names, more_counters in others:
        names += more_names
        counters += more_counters
    _check_columns(names, counters)
    return entry["offset"], names, counters


def _fitting(new: list[Cell], known: Iterable[Cells]) -> list[Cell]:
    """Those of the new cells for which there is room beside the known ones."""
    held = list(known)
    count = sum(map(len, held))
    if count + len(new) <= _FEW:
        return new
    left = NAMES_BYTES_MAX - sum(len(orjson.dumps(list(cells))) for cells in held)
    fitting = new[: max(0, CELLS_MAX - count)]
    if len(orjson.dumps(fitting)) <= left:
        return fitting
    sizes = itertools.accumulate(len(orjson.dumps(cell)) + 1 for cell in fitting)
    return [cell for cell, size in zip(fitting, sizes, strict=True) if size <= left]


_FEW = 256  # with the longest names they fit


def _columns(cells: Cells) -> list[list[Any]]:
    """Names and counters, a list of each: one for each cell would cost more than all the rest."""
    chain = itertools.chain.from_iterable
    return [list(chain(cells)), list(chain(cells.values()))]


def _cells(columns: list[list[Any]]) -> Cells:
    _check_columns(*columns)
    names, counters = map(iter, columns)
    return dict(zip(zip(names, names, strict=True), zip(*[counters] * len(COUNTERS), strict=True), strict=True))


def _check_columns(names: list[str], counters: list[int]) -> None:
    if len(counters) * 2 != len(names) * len(COUNTERS):
        raise UnknownEntry("an entry of another version: begin anew, with another --app")


def _add(total: Cells, cells: Cells) -> None:
    fitting = set(_fitting([cell for cell in cells if cell not in total], [total]))
    for cell, counters in cells.items():
        if cell not in total and cell not in fitting:
            cell = OTHERS
        before = total.get(cell)
        total[cell] = tuple(map(sum, zip(before, counters, strict=True))) if before else counters


# --- A meter ---


@dataclass(frozen=True)
class Sums:
    """Of a part, or of several. records: as RECORDS; tokens: as COUNTERS."""

    records: tuple[int, ...] = (0,) * len(RECORDS)
    tokens: tuple[int, ...] = (0,) * len(COUNTERS)
    rejects: Mapping[str, int] = field(default_factory=dict)

    def __add__(self, other: "Sums") -> "Sums":
        reasons = self.rejects.keys() | other.rejects.keys()
        return Sums(
            tuple(map(sum, zip(self.records, other.records, strict=True))),
            tuple(map(sum, zip(self.tokens, other.tokens, strict=True))),
            {reason: self.rejects.get(reason, 0) + other.rejects.get(reason, 0) for reason in sorted(reasons)},
        )


@dataclass(frozen=True)
class Covered:
    """How far a meter has come in a partition of the log. freshness_ms: of the newest message when it was committed,
    None if none came with the last commit."""

    topic: str
    partition: int
    next: int
    end: int | None
    watermark_ms: int | None
    freshness_ms: int | None


Tops = dict[int, dict[str, int]]  # a span's start -> user -> tokens


@dataclass
class Meter:
    """What is known of a meter. `tops`: the largest users of its parts that were closed in the last hour, by when."""

    offset: int = -1
    part: str = ""
    parts: int = 0
    sequence: int = -1
    window_ms: int = MINUTE_MS
    device: str = ""
    committed_at_ms: int = 0
    closed: Sums = field(default_factory=Sums)
    open: Sums = field(default_factory=Sums)
    covered: tuple[Covered, ...] = ()
    tops: Tops = field(default_factory=dict)
    open_top: dict[str, int] = field(default_factory=dict)

    def learn(self, offset: int, summary: "Summary", now_ms: int) -> bool:
        if offset <= self.offset:
            return False
        self.offset = offset
        again = (summary.part, summary.sequence) == (self.part, self.sequence)  # another message of one summary
        if summary.part != self.part:
            self._close_part()
            self.part, self.parts = summary.part, self.parts + 1
        if not again:
            reached = {(one.topic, one.partition): one.next for one in self.covered}
            self.covered = tuple(summary.covered(reached))
        self.sequence, self.window_ms, self.device = summary.sequence, summary.window_ms, summary.device
        self.committed_at_ms = min(summary.committed_at_ms, now_ms)
        self.open, self.open_top = summary.sums, summary.top_users
        return True

    def _close_part(self) -> None:
        self.closed = self.closed + self.open
        span = self.committed_at_ms // TOP_SPAN_MS * TOP_SPAN_MS
        users = merged([self.tops.get(span, {}), self.open_top])
        self.tops = {start: users for start, users in self.tops.items() if start > span - HOUR_MS}
        if users:
            self.tops[span] = dict(largest(users, TOP_USERS_MAX))

    def total(self) -> Sums:
        return self.closed + self.open

    def top_users(self, since_ms: int) -> list[dict[str, int]]:
        recent = [users for start, users in self.tops.items() if start + TOP_SPAN_MS > since_ms]
        return [*recent, self.open_top] if self.committed_at_ms > since_ms else recent

    def encode(self) -> bytes:
        return orjson.dumps(self, option=orjson.OPT_NON_STR_KEYS)

    @classmethod
    def decode(cls, value: bytes) -> "Meter":
        entry = orjson.loads(value)
        for name in ("closed", "open"):
            sums = entry[name]
            entry[name] = Sums(tuple(sums["records"]), tuple(sums["tokens"]), sums["rejects"])
        entry["covered"] = tuple(Covered(**one) for one in entry["covered"])
        entry["tops"] = {int(start): users for start, users in entry["tops"].items()}
        return cls(**entry)


def merged(tables: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Tokens by user, added up."""
    total: dict[str, int] = {}
    for table in tables:
        for user, tokens in table.items():
            total[user] = total.get(user, 0) + tokens
    return total


def largest(users: Mapping[str, int], most: int) -> list[tuple[str, int]]:
    return sorted(users.items(), key=lambda item: (-item[1], item[0]))[:most]


# --- A summary ---


@dataclass(frozen=True)
class Summary:
    """A message of token-live, read."""

    meter: str
    part: str
    sequence: int
    window_ms: int
    device: str
    committed_at_ms: int
    sums: Sums
    top_users: dict[str, int]
    partitions: list[dict[str, Any]]
    cells: dict[int, Cells]  # by window
    sketches: dict[int, Bytes]

    def covered(self, reached: Mapping[tuple[str, int], int]) -> Iterator[Covered]:
        """reached: where the partitions' next messages were before."""
        for one in self.partitions:
            place = one["topic"], one["partition"]
            came = one["log_time"] is not None and one["next"] > reached.get(place, one["from"])
            freshness = max(0, self.committed_at_ms - one["log_time"]) if came else None
            yield Covered(*place, one["next"], one["end"], one["watermark"], freshness)


def read_summary(value: bytes | None) -> Summary:
    """Raises Unreadable or UnknownSummary."""
    try:
        message = orjson.loads(value or b"")
        if message["schema"] != SCHEMA_VERSION:
            raise UnknownSummary(f"a live summary of schema {message['schema']}; this rollup reads {SCHEMA_VERSION}")
        return _summary(message)
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise Unreadable(f"not a live summary: {error!r}") from None


def _summary(message: Mapping[str, Any]) -> Summary:
    cells: defaultdict[int, Cells] = defaultdict(dict)
    for cell in message["cells"]:
        cells[_ms(cell["window_start"])][_names_of(cell)] = _counters_of(cell)
    counters = [_counters_of(message["tokens"]), *(row for window in cells.values() for row in window.values())]
    if max(map(max, counters)) >= COUNTER_END:
        raise ValueError("a counter that sums cannot hold")
    records = tuple(int(message["records"][name]) for name in RECORDS)
    return Summary(
        meter=message["meter"],
        part=message["part"],
        sequence=message["sequence"],
        window_ms=message["window_ms"],
        device=message["device"],
        committed_at_ms=int(datetime.fromisoformat(message["committed_at"]).timestamp() * 1000),
        sums=Sums(records, counters[0], message["rejects"]),
        top_users={top["user"]: top["total_tokens"] for top in message["top_users"]},
        partitions=message["partitions"],
        cells=cells,
        sketches={_ms(sketch["window_start"]): _registers(sketch) for sketch in message["users"]},
    )


@functools.lru_cache(4096)
def _ms(instant: str) -> int:
    return int(datetime.fromisoformat(instant).astimezone(UTC).timestamp()) * 1000


def _registers(sketch: Mapping[str, Any]) -> Bytes:
    if sketch["precision"] != hyperloglog.PRECISION:
        raise ValueError(f"a sketch of precision {sketch['precision']}; all meters have {hyperloglog.PRECISION}")
    registers = np.frombuffer(base64.b64decode(sketch["registers"], validate=True), np.uint8)
    if len(registers) != hyperloglog.REGISTERS or registers.max() > hyperloglog.RANK_MAX:
        raise ValueError("registers that no sketch has")
    return registers


def encode_registers(registers: Bytes) -> bytes:
    return zlib.compress(registers.tobytes(), 1)


def decode_registers(value: bytes) -> Bytes:
    return np.frombuffer(zlib.decompress(value), np.uint8)


def longer(key: bytes, one: bytes, other: bytes) -> bytes:
    """Of two values that were written to a key, the one that follows from more of the log."""
    kind = Key.decode(key).kind
    if kind in ("users", "hour"):
        return encode_registers(np.maximum(decode_registers(one), decode_registers(other)))
    offset = _packed_offset if kind == "window" else _offset
    return other if offset(other) >= offset(one) else one


def _offset(value: bytes) -> int:
    """Without reading all of it: `offset` is the first field of `meter` and `cells`."""
    assert value.startswith(_OFFSET)
    return int(value[len(_OFFSET) : value.index(b",")])


def _packed_offset(value: bytes) -> int:
    return int.from_bytes(value[:_PACKED_OFFSET], "big")


_OFFSET = b'{"offset":'
_PACKED_OFFSET = 8  # bytes


# --- Keeping entries ---


@dataclass
class _Partition:
    """What seldom changes is held as it was written: the table holds the same bytes."""

    clock_ms: int = 0  # the latest commit
    meters: dict[str, Meter] = field(default_factory=dict)
    cells: dict[int, dict[str, Usage]] = field(default_factory=dict)
    windows: dict[int, bytes] = field(default_factory=dict)
    users: dict[int, bytes] = field(default_factory=dict)
    hours: dict[int, bytes] = field(default_factory=dict)

    def is_old(self, window: int, age_ms: int) -> bool:
        """Is it so long since the window ended?"""
        recent = (m.window_ms for m in self.meters.values() if m.committed_at_ms > self.clock_ms - DAY_MS)
        return window + max(recent, default=MINUTE_MS) < self.clock_ms - age_ms


class Entries:
    """The entries of those partitions of token-live that this process reads."""

    def __init__(self) -> None:
        self._partitions: dict[int, _Partition] = {}
        self.left_out = 0  # cells of messages for which there was no room

    def restore(self, stored: Iterable[tuple[bytes, bytes]]) -> None:
        """Begin anew with what was kept."""
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
                meter = partition.meters[key.meter] = Meter.decode(value)
                partition.clock_ms = max(partition.clock_ms, meter.committed_at_ms)
            case "cells":
                partition.cells.setdefault(key.time_ms, {})[key.meter] = Usage.decode(value)
            case "window":
                partition.windows[key.time_ms] = value
            case "users":
                partition.users[key.time_ms] = value
            case "hour":
                partition.hours[key.time_ms] = value

    def current(self, key: bytes) -> bytes | None:
        """An entry that bears offsets as it should stand; None: it should not, or another process keeps it."""
        name = Key.decode(key)
        known = self._partitions.get(name.partition, _Partition())
        match name.kind:
            case "meter":
                entry: Meter | Usage | None = known.meters.get(name.meter)
            case "cells":
                entry = known.cells.get(name.time_ms, {}).get(name.meter)
            case _:
                return known.windows.get(name.time_ms)
        return None if entry is None else entry.encode()

    def learn(self, partition: int, offset: int, summary: Summary, now_ms: int) -> Changes:
        """What a message changes, in the order in which it is to be written. `now_ms` bounds a meter's wrong clock."""
        known = self._partitions.setdefault(partition, _Partition())
        known.clock_ms = max(known.clock_ms, min(summary.committed_at_ms, now_ms))
        changes: Changes = {}
        meter = known.meters.setdefault(summary.meter, Meter())
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
        self, known: _Partition, partition: int, offset: int, summary: Summary, window: int, cells: Cells
    ) -> Iterator[tuple[bytes, bytes | None]]:
        folded = known.windows.get(window)
        if folded is not None:
            usage = Usage.unpack(folded)
        else:
            usage = known.cells.setdefault(window, {}).setdefault(summary.meter, Usage())
        new = usage.learn(offset, summary.meter, summary.part, cells)
        if new:
            self.left_out += len(cells.keys() - usage.open[summary.meter][1].keys())
        if new and folded is not None:
            known.windows[window] = usage.pack()
            yield Key(partition, "window", window, "").encode(), known.windows[window]
        elif new:
            yield Key(partition, "cells", window, summary.meter).encode(), usage.encode()


def _write(changes: Changes, items: Iterable[tuple[bytes, bytes | None]]) -> None:
    """What changes twice is written at its later place, so that nothing is deleted before what replaces it is there."""
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
    """Old windows' meters become one entry, old windows' users become their hours', and what is older than yesterday
    goes. What replaces an entry is written first."""
    for window in sorted(window for window in known.cells if known.is_old(window, FOLD_AGE_MS)):
        usage, of_meters = Usage(), known.cells[window]
        for name, one in of_meters.items():
            # Behind a restart a meter's entry may be ahead of a window's, or behind it: then its part tells nothing.
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
