"""Live summaries as meters write them, and the plainest sum over them.

A `Fleet` is some meters that count random usage into parts, and the partitions of token-live with what they wrote. The
truth is kept beside: for each part and cell the last absolute counters, added up with nothing but dictionaries.
"""

import base64
import datetime
import random
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
import orjson

from tokenometer.processor.records import hyperloglog

COUNTERS = (
    "requests", "input_tokens", "cached_input_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens",
)  # fmt: skip
WINDOW_MS = 60_000
Cell = tuple[int, str, str]  # window, model, chip


def rfc3339(ms: int) -> str:
    moment = datetime.datetime.fromtimestamp(ms // 1000, datetime.UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{ms % 1000:03d}Z"


def window_text(ms: int) -> str:
    return f"{datetime.datetime.fromtimestamp(ms // 1000, datetime.UTC):%Y-%m-%dT%H:%M:%S}Z"


def named(counters: Iterable[int]) -> dict[str, int]:
    found = dict(zip(COUNTERS, counters, strict=True))
    return found | {"total_tokens": found["input_tokens"] + found["output_tokens"]}


class FakeMeter:
    """Counts into its open part, and writes summaries of it. Not the engine: a few dictionaries."""

    def __init__(self, name: str, place: int, window_ms: int = WINDOW_MS) -> None:
        self.name, self.place, self.parts, self.offset, self.window_ms = name, place, 0, 0, window_ms
        self.open_part()

    def open_part(self) -> None:
        self.parts += 1
        self.part, self.sequence, self.begin = f"{self.name}.run.{self.parts}", 0, self.offset
        self.cells: dict[Cell, list[int]] = {}
        self.changed: set[Cell] = set()
        self.users: Counter[str] = Counter()
        self.registers: dict[int, np.ndarray[Any, np.dtype[np.uint8]]] = {}
        self.records = Counter(counted=0, duplicates=0, rejected=0, empty=0)
        self.rejects: Counter[str] = Counter()
        self.watermark: int | None = None

    def count(self, cell: Cell, counters: list[int], user: str) -> None:
        row = self.cells.setdefault(cell, [0] * 6)
        row[:] = [a + b for a, b in zip(row, counters, strict=True)]
        self.changed.add(cell)
        self.users[user] += counters[1] + counters[4]
        registers = self.registers.setdefault(cell[0], np.zeros(hyperloglog.REGISTERS, np.uint8))
        digest = zlib.crc32(user.encode())
        registers[digest % hyperloglog.REGISTERS] = max(registers[digest % hyperloglog.REGISTERS], 1 + digest % 7)
        self.records["counted"] += 1
        self.offset += 1
        self.watermark = max(self.watermark or 0, cell[0] + 1)

    def reject(self, reason: str) -> None:
        self.records["rejected"] += 1
        self.rejects[reason] += 1
        self.offset += 1

    def summary(self, now_ms: int, pieces: int = 1) -> list[bytes]:
        changed = sorted(self.changed)
        frame = {
            "schema": 1, "meter": self.name, "part": self.part, "sequence": self.sequence,
            "committed_at": rfc3339(now_ms), "window_ms": self.window_ms, "interval_ms": 1000,
            "device": "host",
            "records": {"read": self.records.total() - self.records["conflicts"]} | dict(self.records),
            "rejects": dict(self.rejects),
            "partitions": [{
                "topic": "inference-logs", "partition": self.place, "from": self.begin, "next": self.offset,
                "end": self.offset + 3, "watermark": self.watermark, "log_time": now_ms - 40,
            }],
            "tokens": named(map(sum, zip(*self.cells.values(), strict=True)) if self.cells else [0] * 6),
            "top_users": [
                {"user": user, "total_tokens": tokens}
                for user, tokens in sorted(self.users.items(), key=lambda item: (-item[1], item[0]))[:20]
            ],
        }  # fmt: skip
        cells = [
            {"window_start": window_text(cell[0]), "model": cell[1], "chip": cell[2]} | named(self.cells[cell])
            for cell in changed
        ]
        users = [self._sketch(window) for window in sorted({cell[0] for cell in changed})]
        self.changed.clear()
        self.sequence += 1
        cuts = [round(k * len(cells) / pieces) for k in range(pieces + 1)]
        return [
            orjson.dumps(frame | {"cells": cells[a:b], "users": users if k == 0 else []})
            for k, (a, b) in enumerate(zip(cuts, cuts[1:], strict=False))
        ]

    def _sketch(self, window: int) -> dict[str, Any]:
        text = base64.b64encode(self.registers[window].tobytes()).decode()
        return {"window_start": window_text(window), "precision": 14, "registers": text, "estimate": 1.0}


class Fleet:
    """Meters, and what stands in the partitions of token-live."""

    def __init__(
        self, seed: int, start_ms: int, meters: int = 3, partitions: int = 2, window_ms: int = WINDOW_MS
    ) -> None:
        self.draw = random.Random(seed)
        self.now_ms = start_ms
        self.meters = [FakeMeter(f"meter-{n}", n, window_ms) for n in range(meters)]
        self.partitions, self.window_ms = partitions, window_ms
        self.log: list[tuple[int, int, bytes]] = []  # partition, offset, value: in the order of writing
        self._ends = [self.draw.randrange(5) for _ in range(partitions)]
        self.truth: dict[tuple[str, Cell], list[int]] = {}
        self.users: Counter[str] = Counter()
        self.active: dict[int, set[str]] = defaultdict(set)
        self.records: Counter[str] = Counter()

    def partition(self, meter: FakeMeter) -> int:
        return zlib.crc32(meter.name.encode()) % self.partitions

    def work(self, records: int = 5, late_ms: int = 0) -> None:
        """A meter counts some records and commits; sometimes it opens a part before."""
        draw, meter = self.draw, self.draw.choice(self.meters)
        if draw.random() < 0.15:
            meter.open_part()
        for _ in range(draw.randrange(records + 1)):
            event_ms = self.now_ms - draw.choice([0, 0, 0, draw.randrange(late_ms + 1)])
            cell = (
                event_ms // self.window_ms * self.window_ms,
                f"model-{draw.randrange(4)}",
                f"chip-{draw.randrange(3)}",
            )
            tokens = draw.choice([0, 1, 1000, (1 << 40) - 1])
            counters = [1, 2 * tokens, tokens // 2, tokens // 4, tokens, tokens // 3]
            user = f"user-{draw.randrange(30)}"
            meter.count(cell, counters, user)
            self.active[cell[0]].add(user)
            self.truth[meter.part, cell] = list(meter.cells[cell])
        if draw.random() < 0.3:
            meter.reject("invalid_json")
        self.commit(meter)

    def commit(self, meter: FakeMeter) -> None:
        partition = self.partition(meter)
        for value in meter.summary(self.now_ms, self.draw.choice([1, 1, 2, 3])):
            self.log.append((partition, self._ends[partition], value))
            self._ends[partition] += self.draw.choice([1, 1, 2])  # transaction marks take offsets too

    def usage(self) -> dict[Cell, list[int]]:
        """By window, model and chip, over all parts."""
        total: dict[Cell, list[int]] = {}
        for (_, cell), counters in self.truth.items():
            row = total.setdefault(cell, [0] * 6)
            row[:] = [a + b for a, b in zip(row, counters, strict=True)]
        return total
