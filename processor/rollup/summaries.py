"""Reads what meters say: a message of token-live becomes a SummaryMessage, or an error that names what is wrong."""

import base64
import functools
import operator
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import orjson

from tokenometer.kernels.values import Bytes
from tokenometer.processor.records import hyperloglog
from tokenometer.processor.rollup.cells import Cells
from tokenometer.schemas.usage import COUNTERS, SCHEMA_VERSION

FATES = ("counted", "duplicates", "rejected", "empty", "skipped")  # a record has one of these
RECORDS = (*FATES, "conflicts")  # conflicts are duplicates too
MISFIT = ("topic", "judged", "rejected", "reason", "field", "most", "keys")
OLD_INTERVAL_MS = 10_000  # of meters that do not say it: they committed so often without news
COUNTER_END = 1 << 62  # sums are signed 64-bit numbers; at 120 T a day a counter gets there after a hundred years
_names_of = operator.itemgetter("model", "chip")
_counters_of = operator.itemgetter(*COUNTERS)


class Unreadable(Exception):
    """A message is no live summary; the argument says why."""


class UnknownSummary(Exception):
    """A live summary has another version than ours."""


@dataclass(frozen=True)
class PartSums:
    """Sums of one part or of several. records: in the order of RECORDS; tokens: in the order of COUNTERS."""

    records: tuple[int, ...] = (0,) * len(RECORDS)
    tokens: tuple[int, ...] = (0,) * len(COUNTERS)
    rejects: Mapping[str, int] = field(default_factory=dict)

    def __add__(self, other: "PartSums") -> "PartSums":
        reasons = self.rejects.keys() | other.rejects.keys()
        return PartSums(
            tuple(map(sum, zip(self.records, other.records, strict=True))),
            tuple(map(sum, zip(self.tokens, other.tokens, strict=True))),
            {reason: self.rejects.get(reason, 0) + other.rejects.get(reason, 0) for reason in sorted(reasons)},
        )


@dataclass(frozen=True)
class CoveredPartition:
    """How far a meter has come in a partition of the log. freshness_ms: the age of the newest message when it was
    committed; None if no message came with the last commit."""

    topic: str
    partition: int
    next: int
    end: int | None
    watermark_ms: int | None
    freshness_ms: int | None


@dataclass(frozen=True)
class SummaryMessage:
    """A message of token-live as values."""

    meter: str
    part: str
    sequence: int
    window_ms: int
    device: str
    committed_at_ms: int
    sums: PartSums
    top_users: dict[str, int]
    partitions: list[dict[str, Any]]
    cells: dict[int, Cells]  # by window
    sketches: dict[int, Bytes]
    misfits: list[dict[str, Any]] = field(default_factory=list)  # topics that do not fit their mappings
    interval_ms: int = OLD_INTERVAL_MS  # within which the next one is begun
    leaving: bool = False  # the meter was told to stop

    def covered(self, reached: Mapping[tuple[str, int], int]) -> Iterator[CoveredPartition]:
        """What became fresh. reached: the partitions' next offsets before this message."""
        for one in self.partitions:
            place = one["topic"], one["partition"]
            came = one["log_time"] is not None and one["next"] > reached.get(place, one["from"])
            freshness = max(0, self.committed_at_ms - one["log_time"]) if came else None
            yield CoveredPartition(*place, one["next"], one["end"], one["watermark"], freshness)


def read_summary(value: bytes | None) -> SummaryMessage:
    """Raises Unreadable or UnknownSummary."""
    try:
        message = orjson.loads(value or b"")
        if message["schema"] != SCHEMA_VERSION:
            raise UnknownSummary(f"a live summary of schema {message['schema']}; this rollup reads {SCHEMA_VERSION}")
        return _summary(message)
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise Unreadable(f"not a live summary: {error!r}") from None


def _summary(message: Mapping[str, Any]) -> SummaryMessage:
    cells: defaultdict[int, Cells] = defaultdict(dict)
    for cell in message["cells"]:
        cells[_ms(cell["window_start"])][_names_of(cell)] = _counters_of(cell)
    counters = [_counters_of(message["tokens"]), *(row for window in cells.values() for row in window.values())]
    if max(map(max, counters)) >= COUNTER_END:
        raise ValueError("a counter that sums cannot hold")
    records = tuple(int(message["records"].get(name, 0)) for name in RECORDS)  # older meters know fewer
    return SummaryMessage(
        meter=message["meter"],
        part=message["part"],
        sequence=message["sequence"],
        window_ms=message["window_ms"],
        device=message["device"],
        committed_at_ms=int(datetime.fromisoformat(message["committed_at"]).timestamp() * 1000),
        sums=PartSums(records, counters[0], message["rejects"]),
        top_users={top["user"]: top["total_tokens"] for top in message["top_users"]},
        partitions=message["partitions"],
        cells=cells,
        sketches={_ms(sketch["window_start"]): _registers(sketch) for sketch in message["users"]},
        misfits=[{name: one[name] for name in MISFIT} for one in message.get("misfits", ())],  # newer meters only
        interval_ms=int(message.get("interval_ms", OLD_INTERVAL_MS)),
        leaving=bool(message.get("leaving", False)),
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
