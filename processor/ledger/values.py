"""Values that pass between the ledger's rooms, and its errors."""

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tokenometer.processor.broker import Offset, Place
from tokenometer.schemas.errors import TokenometerError
from tokenometer.schemas.usage import Usage

U64_END = 1 << 64
NAME_BYTES_MAX = 256
LABELS_MAX = 8  # of a row
LABEL_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}", re.ASCII)
LabelSet = tuple[tuple[bytes, bytes], ...]


def are_names(texts: Iterable[bytes]) -> bool:
    """Has each of them 1 to NAME_BYTES_MAX bytes?"""
    return all(0 < size <= NAME_BYTES_MAX for size in set(map(len, texts)))


class LedgerError(TokenometerError):
    """The ledger cannot go on, or cannot answer; the message says why and what to do."""


class BadRequest(LedgerError):
    """What was asked for is wrong; it is the asker's to mend."""


class BadArgument(BadRequest):
    """What was asked for is wrong, whatever the ledger holds."""

    exit_status = 2  # as other wrong arguments of a command


class DatabaseError(LedgerError):
    """The database refuses or is not there."""


class Busy(DatabaseError):
    """Another process has the database."""


class Damaged(DatabaseError):
    """What the database has on its disk is not what it wrote there."""


class UnknownSchema(LedgerError):
    """A message of a schema version that this program does not know."""


class Malformed(LedgerError):
    """A message that is not what its schema says."""


@dataclass(frozen=True)
class Coded:
    """A column of few distinct names: value i is `names[codes[i]]`."""

    codes: np.ndarray[Any, np.dtype[np.int32]]
    names: Sequence[bytes]


@dataclass(frozen=True)
class CodedLabels:
    """A column of few distinct sets of labels: row i has `sets[codes[i]]`, pairs of a name and a value.

        names   [b"team", b"tier"]                     sorted; each of them is in a set
        values  [[b"blue", b"red"], [b"batch"]]        of each name
        held    [[0, 1, -1],                           which value each set has of a name; -1: it has none
                 [-1, 0, -1]]

    These three sets are team=blue; team=red and tier=batch; and the empty one.
    """

    codes: np.ndarray[Any, np.dtype[np.int32]]
    names: Sequence[bytes]
    values: Sequence[Sequence[bytes]]
    held: np.ndarray[Any, np.dtype[np.int32]]

    def sizes(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """How many labels each set has."""
        sizes: np.ndarray[Any, np.dtype[np.int64]] = (self.held >= 0).sum(axis=0, dtype=np.int64)
        return sizes

    @functools.cached_property
    def sets(self) -> Sequence[LabelSet]:
        """Python objects, which cost more than all else here: the intake does without them."""
        found: list[LabelSet] = [()] * self.held.shape[1]
        for name, values, of_sets in zip(self.names, self.values, self.held.tolist(), strict=True):
            pairs = [((name, value),) for value in values]
            found = [held + pairs[code] if code >= 0 else held for held, code in zip(found, of_sets, strict=True)]
        return found


@dataclass(frozen=True)
class LedgerRows:
    """Usage rows as columns. counters: one array for each of COUNTERS. window_ms: by code of the part. labels: None
    where no row has any. further: one array for each of FURTHER; none where all of them are 0."""

    window_starts: np.ndarray[Any, np.dtype[np.int64]]
    user: Coded
    model: Coded
    chip: Coded
    part: Coded
    window_ms: Sequence[int]
    counters: Sequence[np.ndarray[Any, np.dtype[np.uint64]]]
    labels: CodedLabels | None = None
    further: Sequence[np.ndarray[Any, np.dtype[np.uint64]]] = ()

    def __len__(self) -> int:
        return len(self.window_starts)


@dataclass(frozen=True)
class LedgerSummary:
    """What the ledger needs of a live summary. live_partition: its partition in token-live."""

    meter: str
    part: str
    sequence: int
    window_ms: int
    tokens: Usage
    watermarks: Mapping[Place, int | None]
    live_partition: int


@dataclass(frozen=True)
class LedgerBatch:
    """What one transaction takes in. reached: where each partition is to be read on, once it is in."""

    rows: LedgerRows | None
    summaries: Sequence[LedgerSummary]
    reached: Mapping[Place, Offset]
