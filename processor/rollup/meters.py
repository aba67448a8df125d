"""What the rollup knows of one meter: its last summary, the sums over its closed parts, its largest users."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from tokenometer.processor.rollup.summaries import OLD_INTERVAL_MS, RECORDS, CoveredPartition, PartSums, SummaryMessage

MINUTE_MS, HOUR_MS = 60_000, 3_600_000
TOP_SPAN_MS = 5 * MINUTE_MS
TOP_USERS_MAX = 50  # kept of each span


Tops = dict[int, dict[str, int]]  # a span's start -> user -> tokens


@dataclass
class MeterState:
    """What is known of a meter. `tops`: the largest users of the parts that it closed in the last hour, by time."""

    offset: int = -1
    part: str = ""
    parts: int = 0
    sequence: int = -1
    window_ms: int = MINUTE_MS
    device: str = ""
    committed_at_ms: int = 0
    closed: PartSums = field(default_factory=PartSums)
    open: PartSums = field(default_factory=PartSums)
    covered: tuple[CoveredPartition, ...] = ()
    tops: Tops = field(default_factory=dict)
    open_top: dict[str, int] = field(default_factory=dict)
    misfits: list[dict[str, Any]] = field(default_factory=list)  # as summaries.MISFIT
    interval_ms: int = OLD_INTERVAL_MS
    leaving: bool = False

    def learn(self, offset: int, summary: SummaryMessage, now_ms: int) -> bool:
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
        self.open, self.open_top, self.misfits = summary.sums, summary.top_users, summary.misfits
        self.interval_ms, self.leaving = summary.interval_ms, summary.leaving
        return True

    def _close_part(self) -> None:
        self.closed = self.closed + self.open
        span = self.committed_at_ms // TOP_SPAN_MS * TOP_SPAN_MS
        users = merged([self.tops.get(span, {}), self.open_top])
        self.tops = {start: users for start, users in self.tops.items() if start > span - HOUR_MS}
        if users:
            self.tops[span] = dict(largest(users, TOP_USERS_MAX))

    def total(self) -> PartSums:
        return self.closed + self.open

    def top_users(self, since_ms: int) -> list[dict[str, int]]:
        recent = [users for start, users in self.tops.items() if start + TOP_SPAN_MS > since_ms]
        return [*recent, self.open_top] if self.committed_at_ms > since_ms else recent

    def encode(self) -> bytes:
        return orjson.dumps(self, option=orjson.OPT_NON_STR_KEYS)

    @classmethod
    def decode(cls, value: bytes) -> "MeterState":
        entry = orjson.loads(value)
        for name in ("closed", "open"):
            sums = entry[name]
            entry[name] = PartSums(_records(sums["records"]), tuple(sums["tokens"]), sums["rejects"])
        entry["covered"] = tuple(CoveredPartition(**one) for one in entry["covered"])
        entry["tops"] = {int(start): users for start, users in entry["tops"].items()}
        return cls(**entry)


def _records(kept: list[int]) -> tuple[int, ...]:
    """An entry of an older rollup that knew fewer fates has 0 for the others."""
    return (*kept, *[0] * (len(RECORDS) - len(kept)))


def merged(tables: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Tokens by user, added up."""
    total: dict[str, int] = {}
    for table in tables:
        for user, tokens in table.items():
            total[user] = total.get(user, 0) + tokens
    return total


def largest(users: Mapping[str, int], most: int) -> list[tuple[str, int]]:
    return sorted(users.items(), key=lambda item: (-item[1], item[0]))[:most]
