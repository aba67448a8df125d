"""Values that pass in and out of the engine."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any, NamedTuple, NewType

import numpy as np

from tokenometer.kernels.layout import PLACE_BITS
from tokenometer.schemas.mapping import Mapping
from tokenometer.schemas.usage import NO_FURTHER, Usage

EventTimeMs = NewType("EventTimeMs", int)
WindowStartMs = NewType("WindowStartMs", int)
PLACE_MASK = (1 << PLACE_BITS) - 1  # of a label's entry: the rest is its name's number
Bytes = np.ndarray[Any, np.dtype[np.uint8]]


class Canonical(NamedTuple):
    """A record that the referee accepts, totals inclusive.

    texts: UTF-8 of request_id, user, model, chip, prefill_chip, scope; empty where absent.
    counters: of this record; requests are 0 or 1. further: in the order of schemas.usage.FURTHER.
    labels: UTF-8 of each label of the mapping, in its order; empty where absent.
    """

    time_ms: EventTimeMs
    texts: tuple[bytes, ...]
    counters: Usage
    further: tuple[int, ...] = NO_FURTHER
    labels: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Rejection:
    """Why a record cannot be counted; reasons are listed in docs/RECORDS.md."""

    reason: str
    field: str | None = None


@dataclass(frozen=True)
class Skipped:
    """The mapping says that the record is none of those that are counted."""


SKIPPED = Skipped()
# (record, mapping, message time in ms or None) -> verdict
Referee = Callable[[bytes, Mapping, int | None], Canonical | Rejection | Skipped]


@dataclass(frozen=True)
class DeadLetter:
    """A rejected record, its bytes untouched."""

    message: int  # in the batch
    line: int  # in the message
    rejection: Rejection
    value: bytes
    batch_line: int  # in the batch
    start: int  # of its bytes, in the batch's space


@dataclass
class Batch:
    """Messages of one partition in one buffer, each ended by a newline; `messages` of them, `length` bytes in all.

    `memory` is the engine's own; write into `space` and set the rest, or let `Engine.pack` do it.
    """

    memory: Bytes
    space: Bytes  # the part of memory that messages may fill
    length: int = 0
    message_end: np.ndarray[Any, np.dtype[np.uint32]] | None = None  # in `space`, past each message's newline
    message_time: np.ndarray[Any, np.dtype[np.uint64]] | None = None  # ms; None: a file
    message_offset: np.ndarray[Any, np.dtype[np.int64]] | None = None  # with message_time: what dedup_from speaks of
    partition: Hashable = 0
    one_line: bool = False  # each message is known to be one line

    def holding(
        self,
        ends: np.ndarray[Any, Any],
        times: Sequence[int] | np.ndarray[Any, Any] | None,
        offsets: np.ndarray[Any, np.dtype[np.int64]] | None,
        one_line: bool = False,
    ) -> "Batch":
        """Says what is in it."""
        self.length = int(ends[-1]) if len(ends) else 0
        self.message_end = ends.astype(np.uint32)
        self.message_time = None if times is None else np.asarray(times, np.uint64)
        self.message_offset = offsets
        self.one_line = one_line
        return self


@dataclass(frozen=True)
class RawBatches:
    """Record batches of one partition whose heads were read, checksums compared and codecs undone.

    data: their records, one batch after the other. batches: dtype layout.RAW_BATCH, by rising offsets, none of them
    empty. begin: messages of lower offsets are left out.
    """

    data: Bytes
    batches: np.ndarray[Any, Any]
    begin: int = 0


@dataclass(frozen=True)
class Tally:
    """How many records met which fate: read = counted + duplicates + rejected + empty + skipped, always.

    conflicts: of the duplicates, those that say something else than the record that counted.
    """

    counted: int = 0
    duplicates: int = 0
    rejected: int = 0
    empty: int = 0
    skipped: int = 0
    conflicts: int = 0

    @property
    def read(self) -> int:
        return self.counted + self.duplicates + self.rejected + self.empty + self.skipped

    @property
    def judged(self) -> int:
        """What a mapping was asked to read: neither empty nor skipped."""
        return self.counted + self.duplicates + self.rejected

    def __sub__(self, other: "Tally") -> "Tally":
        return Tally(*(a - b for a, b in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class Progress:
    """What `Engine.count` did: messages before `next_message` are in, the others did not fit into this part."""

    next_message: int
    dead_letters: list[DeadLetter]


@dataclass(frozen=True)
class PartitionState:
    """What a partition's log has told so far: all that a restart needs beside its offset.

    watermark_ms: highest event time of a record. log_time_ms: highest message time. None before the first.
    dedup_from: offset of the first message whose request ids are still remembered.
    """

    watermark_ms: int | None = None
    log_time_ms: int | None = None
    dedup_from: int | None = None


@dataclass(frozen=True)
class UsageRows:
    """Rows of (window, user, model, chip) and labels with absolute counters for the open part.

    `table` has dtype layout.USAGE_ROW; its strings are places in `arena`, `offset << 16 | length`. `extras` has dtype
    layout.USAGE_EXTRA, row by row; None where no mapping has labels or further counters. `label_names`: by number.
    """

    table: np.ndarray[Any, Any]
    arena: Bytes
    window_ms: int
    extras: np.ndarray[Any, Any] | None = None
    label_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.table)

    def text(self, place: int) -> str:
        return bytes(self.arena[place >> 16 : (place >> 16) + (place & 0xFFFF)]).decode()

    def texts(self, column: str) -> list[str]:
        """The strings of `user`, `model` or `chip`, row by row; each distinct one is decoded once."""
        places, index = np.unique(self.table[column], return_inverse=True)
        names = [self.text(place) for place in places.tolist()]
        return [names[i] for i in index.tolist()]

    def slice(self, start: int, end: int) -> "UsageRows":
        extras = None if self.extras is None else self.extras[start:end]
        return replace(self, table=self.table[start:end], extras=extras)

    def labels(self) -> list[dict[str, str]]:
        """Row by row."""
        if self.extras is None:
            return [{} for _ in range(len(self))]
        return [
            {self.label_names[entry >> PLACE_BITS]: self.text(entry & PLACE_MASK) for entry in entries if entry}
            for entries in self.extras["labels"].tolist()
        ]

    def further(self) -> list[tuple[int, ...]]:
        """Row by row, in the order of schemas.usage.FURTHER."""
        if self.extras is None:
            return [NO_FURTHER] * len(self)
        return [tuple(counters) for counters in self.extras["further"].tolist()]

    def window_starts(self) -> list[int]:
        starts: list[int] = (self.table["window"] * np.uint64(self.window_ms)).tolist()
        return starts


@dataclass(frozen=True)
class CellTotals:
    """One (window, model, chip) of the open part."""

    window_start: WindowStartMs
    model: str
    chip: str
    counters: Usage
