"""Which request ids may occur twice? Eight bytes of each record answer that, so that only those are compared in full.

Equal ids have equal marks. Different ones may have equal marks, too (a mark looks at 48 bytes at most): they are
compared for nothing, and no harm is done. Marks of one partition are sorted, some at a time.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Marks = np.ndarray[Any, np.dtype[np.uint64]]

NONE = np.uint64(0)  # of a record without an id
_MARKS_AT_ONCE = 64 << 20  # that are sorted in memory
_WORD = 16
# Odd numbers without a pattern: digits of the golden ratio, of e and of pi.
_FACTORS = np.array(
    [0x9E3779B97F4A7C15, 0xB7E151628AED2A6B, 0x243F6A8885A308D3, 0x13198A2E03707345, 0xA4093822299F31D1,
     0x082EFA98EC4E6C89, 0x452821E638D01377], np.uint64
)  # fmt: skip


def marks_of(ids: pa.Array, scopes: pa.Array | None) -> Marks:
    """Of a column of ids, some of them null. scopes: what each is unique within; None is as good as empty ones."""
    marks = _mixed(ids)
    if scopes is not None:
        marks ^= np.where(np.asarray(pc.binary_length(scopes)) > 0, _mixed(scopes) * _FACTORS[0], np.uint64(0))
    marks = _stirred(marks)
    marks[marks == NONE] = np.uint64(1)
    if ids.null_count:
        marks[np.asarray(ids.is_null())] = NONE
    return marks


def _mixed(texts: pa.Array) -> Marks:
    """Of the first, the middle and the last 16 bytes."""
    _, offsets, data = texts.buffers()
    ends = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1].astype(np.int64)
    begins, lengths = ends[:-1], np.diff(ends)
    text = (data.to_pybytes() if data is not None else b"") + bytes(_WORD)
    words = np.ndarray((len(text) - _WORD + 1,), f"S{_WORD}", text, strides=(1,))
    long = lengths > _WORD
    found = lengths.astype(np.uint64) * _FACTORS[6]
    for place, at in enumerate((begins, begins + np.where(long, (lengths - _WORD) // 2, 0), ends[1:] - _WORD * long)):
        halves = words[np.where(long, at, begins)].view("<u8").reshape(-1, 2)
        kept = lengths.clip(0, _WORD)
        for half in (0, 1):
            found += (halves[:, half] & _KEEP[half][kept]) * _FACTORS[2 * place + half]
    return _stirred(found)


_KEEP = tuple(np.array([(1 << 8 * min(max(n - at, 0), 8)) - 1 for n in range(_WORD + 1)], np.uint64) for at in (0, 8))


def _stirred(marks: Marks) -> Marks:
    for shift in (32, 29):
        marks = (marks ^ marks >> np.uint64(shift)) * _FACTORS[1]
    return marks ^ marks >> np.uint64(32)


def repeated(files: Sequence[str]) -> Marks:
    """The marks that more than one record has, sorted."""
    arrays = [np.load(file, mmap_mode="r") for file in files]
    total = sum(map(len, arrays))
    passes = -(-total // _MARKS_AT_ONCE)
    found = [_repeated_among(arrays, passes, number) for number in range(passes)]
    return np.sort(np.concatenate([np.zeros(0, np.uint64), *found]))


def _repeated_among(arrays: Sequence[Marks], passes: int, number: int) -> Marks:
    some = [each if passes == 1 else each[each % np.uint64(passes) == number] for each in arrays]
    marks = np.concatenate(some)
    marks.sort()
    again = marks[1:][marks[1:] == marks[:-1]]
    return np.unique(again[again != NONE])


def are_among(marks: Marks, wanted: Marks) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """wanted: sorted."""
    if not len(wanted):
        return np.zeros(len(marks), bool)
    found: np.ndarray[Any, np.dtype[np.bool_]] = wanted.take(np.searchsorted(wanted, marks), mode="clip") == marks
    return found
