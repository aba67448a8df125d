"""What one commit writes: usage rows, live summaries and dead letters as Kafka messages.

Owns: the messages' bytes (schemas/usage, usage-key, live, rejected).
Promises: it is pure, and makes no Python dict for a row, because 200,000 changed rows in one commit are normal.
"""

import base64
import ctypes
import functools
import hashlib
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import orjson
import pyarrow.compute as pc

from tokenometer.kernels import build
from tokenometer.kernels.values import Bytes, CellTotals, PartitionState, Rejection, Tally, UsageRows, WindowStartMs
from tokenometer.processor.broker import Column, Headers, Offset, Place
from tokenometer.processor.records import hyperloglog
from tokenometer.processor.records.rows import usage_identities, usage_texts
from tokenometer.schemas.compiled import BuildError
from tokenometer.schemas.usage import FURTHER, SCHEMA_VERSION, Usage

LIVE_BYTES_MAX = 900 << 10  # of a live message: brokers take 1 MiB with key, headers and batch; more goes into another
LETTER_BYTES_MAX = 900 << 10  # of a dead letter's value, for the same reason; of a longer record it has the head
LETTER_HEAD_BYTES = 64 << 10  # which says what it was; the input has the rest
_FURTHER_BYTES_MAX = max(map(len, FURTHER)) + 24  # a comma, quotes, a colon and 20 digits around a name
_ROWS_PER_PIECE = 1 << 12  # formatted and handed over while they are in the processor's cache


@functools.lru_cache(maxsize=1)
def _head(record: bytes) -> tuple[bytes, int, str]:
    """What a letter says of a long record; kept, since one long message may be what many letters are about."""
    return record[:LETTER_HEAD_BYTES], len(record), hashlib.sha256(record).hexdigest()


@dataclass(frozen=True)
class DeadRecord:
    """A rejected record and its place in Kafka. size, sha256: of the whole record, where `value` is only its head."""

    place: Place
    offset: Offset
    line: int
    rejection: Rejection
    value: bytes
    size: int | None = None
    sha256: str | None = None

    @classmethod
    def of(
        cls, place: Place, offset: Offset, line: int, rejection: Rejection, record: bytes, copied: bool = True
    ) -> "DeadRecord":
        """copied: False where another letter has the bytes, and this one says which they are."""
        if not copied:
            return cls(place, offset, line, rejection, b"", *_head(record)[1:])
        if len(record) <= LETTER_BYTES_MAX:
            return cls(place, offset, line, rejection, record)
        return cls(place, offset, line, rejection, *_head(record))


@dataclass(frozen=True)
class Range:
    """What a part covers of a partition, `[first, next)`, and what that part of the log has told."""

    place: Place
    first: Offset
    next: Offset
    state: PartitionState


@dataclass(frozen=True)
class Misfit:
    """A topic most of whose last records were rejected (fitting.py): how many were judged, and the most frequent fault
    with the keys of a record that has it."""

    topic: str
    judged: int
    rejected: int
    reason: str
    field: str | None
    most: int  # of the rejected ones, for that reason
    keys: tuple[str, ...]

    @property
    def fault(self) -> tuple[str, str | None]:
        return self.reason, self.field


@dataclass(frozen=True)
class LiveSummary:
    """A part as a commit finds it. Counters are absolute within the part; cells and sketches are those that changed."""

    meter: str
    part: str
    sequence: int
    window_ms: int
    device: str
    tally: Tally
    rejects: Mapping[str, int]  # by reason
    ranges: Sequence[Range]
    totals: Usage
    cells: Sequence[CellTotals]
    top_users: Sequence[tuple[str, int]]
    sketches: Mapping[WindowStartMs, Bytes]
    misfits: Sequence[Misfit] = ()  # as the commit before has left them
    interval_ms: int = 1000  # the next summary is begun within this time
    leaving: bool = False  # the meter's last: it was told to stop


def usage_messages(rows: UsageRows, part: str) -> Iterator[tuple[Column, Column]]:
    """Keys and values of usage rows, piece by piece. A key is the beginning of its value, and a brace."""
    formatted = _formatted if _formatter() else _joined
    for start in range(0, len(rows), _ROWS_PER_PIECE):
        yield formatted(rows.slice(start, start + _ROWS_PER_PIECE), part)


def make_ready() -> None:
    """Compiles this module's C++, where this machine has not done that: seconds that no commit shall wait for."""
    _formatter()


@functools.cache
def _formatter() -> Any:
    """The compiled one; None where there is no compiler, as on a machine that only has a GPU."""
    file = pathlib.Path(__file__).with_name("emission.cpp")
    try:
        return ctypes.CDLL(str(build.build_shared(file))).format_rows
    except BuildError:
        return None


def _formatted(rows: UsageRows, part: str) -> tuple[Column, Column]:
    table, name, count = np.ascontiguousarray(rows.table), orjson.dumps(part), len(rows)
    lengths = table.view(np.uint64).reshape(count, -1)[:, 1:4] & np.uint64(0xFFFF)  # of user, model and chip
    room = count * (640 + 2 * len(name)) + 12 * int(lengths.sum())
    extras, label_names, more = _beside(rows)
    room += more
    keys, values = np.empty(room, np.uint8), np.empty(room, np.uint8)
    key_places, value_places = np.zeros(count + 1, np.int64), np.zeros(count + 1, np.int64)
    arrays = keys, key_places[1:], values, value_places[1:]
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in arrays]
    arena, window_ms = ctypes.c_void_p(rows.arena.ctypes.data), ctypes.c_uint64(rows.window_ms)
    beside = ctypes.c_void_p(None if extras is None else extras.ctypes.data), label_names
    _formatter()(ctypes.c_void_p(table.ctypes.data), *beside, count, arena, window_ms, name, len(name), *pointers)
    return _column(keys, key_places), _column(values, value_places)


def _beside(rows: UsageRows) -> tuple[Any, Any, int]:
    """Labels and further counters for the compiled formatter: the table, the labels' names as C strings, and the room
    that they need at most in keys and values together."""
    if rows.extras is None:
        return None, None, 0
    extras = np.ascontiguousarray(rows.extras)
    names = [name.encode() for name in rows.label_names]
    lengths = extras["labels"] & np.uint64(0xFFFF)
    labels = int(np.count_nonzero(extras["labels"])) * (2 * max(map(len, names), default=0) + 12)
    room = 12 * int(lengths.sum()) + labels + len(rows) * (24 + len(FURTHER) * _FURTHER_BYTES_MAX)
    return extras, (ctypes.c_char_p * len(names))(*names), room


def _joined(rows: UsageRows, part: str) -> tuple[Column, Column]:
    """The same messages, made by Arrow."""
    identities = usage_identities(rows, part)
    columns = []
    for texts in (pc.binary_join_element_wise(identities, "}", ""), usage_texts(rows, identities)):
        _, ends, data = texts.buffers()
        places = np.frombuffer(ends, np.int32)[: len(texts) + 1].astype(np.int64)
        columns.append(_column(np.frombuffer(data, np.uint8), places))
    return columns[0], columns[1]


def _column(data: Bytes, places: np.ndarray[Any, np.dtype[np.int64]]) -> Column:
    return Column(data, places[:-1], np.diff(places))


def live_messages(summary: LiveSummary, committed_at_ms: int, ends: Mapping[Place, Offset]) -> list[bytes]:
    """The summary as one message, or as several that repeat all but cells and users. ends: of the partitions known."""
    frame = _frame(summary, committed_at_ms, ends)
    room = LIVE_BYTES_MAX - len(orjson.dumps(frame))
    entries = [("cells", orjson.dumps(_cell(cell))) for cell in summary.cells]
    entries += [("users", orjson.dumps(_sketch(*item))) for item in summary.sketches.items()]
    pieces: list[dict[str, list[orjson.Fragment]]] = [{"cells": [], "users": []}]
    left = room
    for kind, entry in entries:
        if len(entry) + 1 > left and left < room:
            pieces.append({"cells": [], "users": []})
            left = room
        pieces[-1][kind].append(orjson.Fragment(entry))
        left -= len(entry) + 1
    return [orjson.dumps(frame | piece) for piece in pieces]


def rejected_headers(record: DeadRecord) -> Headers:
    texts = {
        "reason": record.rejection.reason,
        "field": record.rejection.field,
        "topic": record.place.topic,
        "partition": record.place.partition,
        "offset": record.offset,
        "line": record.line,
        "size": record.size,
        "sha256": record.sha256,
    }
    return [(name, str(text).encode()) for name, text in texts.items() if text is not None]


def _frame(summary: LiveSummary, committed_at_ms: int, ends: Mapping[Place, Offset]) -> dict[str, Any]:
    return {
        "schema": SCHEMA_VERSION,
        "meter": summary.meter,
        "part": summary.part,
        "sequence": summary.sequence,
        "committed_at": _instant(committed_at_ms),
        "window_ms": summary.window_ms,
        "device": summary.device,
        "records": {"read": summary.tally.read} | asdict(summary.tally),
        "rejects": dict(summary.rejects),
        "partitions": [_range(covered, ends.get(covered.place)) for covered in summary.ranges],
        "tokens": summary.totals.with_total(),
        "top_users": [{"user": user, "total_tokens": tokens} for user, tokens in summary.top_users],
        "interval_ms": summary.interval_ms,
        **({"leaving": True} if summary.leaving else {}),
        **({"misfits": [asdict(misfit) for misfit in summary.misfits]} if summary.misfits else {}),
    }


def _range(covered: Range, end: Offset | None) -> dict[str, Any]:
    return {
        "topic": covered.place.topic,
        "partition": covered.place.partition,
        "from": covered.first,
        "next": covered.next,
        "end": None if end is None else max(end, covered.next),  # heard a moment before
        "watermark": covered.state.watermark_ms,
        "log_time": covered.state.log_time_ms,
    }


def _cell(cell: CellTotals) -> dict[str, Any]:
    place = {"window_start": _window(cell.window_start), "model": cell.model, "chip": cell.chip}
    return place | cell.counters.with_total()


def _sketch(start: WindowStartMs, registers: Bytes) -> dict[str, Any]:
    return {
        "window_start": _window(start),
        "precision": hyperloglog.PRECISION,
        "registers": base64.b64encode(registers.tobytes()).decode(),
        "estimate": round(hyperloglog.estimate(registers), 3),
    }


def _window(start: WindowStartMs) -> str:
    return f"{datetime.fromtimestamp(start // 1000, UTC):%Y-%m-%dT%H:%M:%SZ}"


def _instant(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms // 1000, UTC):%Y-%m-%dT%H:%M:%S}.{ms % 1000:03d}Z"
