"""layout.h as numpy dtypes. The C++ is the truth: `check` compares sizes and offsets and refuses a mismatch."""

from typing import Any

import numpy as np

EMPTY, ACCEPTED, DOUBTFUL, REJECTED, DUPLICATE = range(5)
REQUEST_ID, USER, MODEL, CHIP, PREFILL_CHIP, SCOPE = range(6)
TEXTS, HASHES = 6, 5
REQUESTS, INPUT, CACHED_INPUT, CACHE_WRITE, OUTPUT, REASONING = range(6)
COUNTERS = 6
HAVE_TIME, HAVE_SELECTOR, HAVE_COUNTER = 1 << 6, 1 << 7, 8
HAVE_SHIFT = 32  # of a mark
KEYS_MAX, KEY_BYTES_MAX, LITERAL_BYTES_MAX, BUCKETS, STEPS, CHOICES_MAX = 64, 48, 64, 256, 2, 8
ROOT, END, NONE = 254, 255, 0xFFFFFFFF
ORDINARY, OBJECT, TEXT, COUNT, TIME, SELECTOR = range(6)
QUOTED = 8
EPOCHS = {"epoch_s": 1, "epoch_ms": 2, "epoch_us": 3, "epoch_ns": 4, "epoch_s_decimal": 5}
SKETCH_REGISTERS = 1 << 14
OFFSET_SHIFT, LENGTH_MASK = 29, (1 << 9) - 1  # of TextEntry::where
SEQUENCE_MAX = (1 << 40) - 1
RECORD_BYTES_MAX = 1 << 20
FILL_TEXTS, FILL_ARENA, FILL_CELLS, FILL_ROWS, FILL_CHANGED, FILL_WINDOWS, FILL_UNSKETCHED, FILL_DOUBTFUL = range(8)
FILL_TALLY, FILL_WATERMARK, FILLS = 8, 13, 16
PREFIX_BYTES = 2048  # of a batch buffer: the mapping's default strings
PADDING_BYTES = 64  # of newlines behind the messages, and again behind the referee's text

STEP = np.dtype(
    [
        ("literal", "V64"),
        ("marks", "u8"),
        *((name, "u4") for name in ("length", "key", "kind", "slot", "digits")),
        ("padding", "V36"),
    ]
)
KEY = np.dtype(
    [
        ("text", "V48"),
        ("mark", "u8"),
        *((name, "u4") for name in ("length", "object", "kind", "slot", "digits", "spare")),
    ]
)
CHOICE = np.dtype([("text", "V48"), ("length", "u4"), ("counter", "u4"), ("requests", "u4"), ("spare", "u4")])
PLAN = np.dtype(
    [
        ("next", STEP, (KEYS_MAX, STEPS)),
        ("start", STEP, STEPS),
        ("keys", KEY, KEYS_MAX),
        ("choices", CHOICE, CHOICES_MAX),
        ("buckets", "u1", BUCKETS),
        ("multiplier", "u8"),
        ("default_count", "u8", COUNTERS),
        ("default_start", "u4", TEXTS),
        ("default_length", "u4", TEXTS),
        ("needed", "u4"),
        ("defaulted", "u4"),
        ("epoch", "u4"),
        ("rfc3339", "u4"),
        ("message_time_fallback", "u4"),
        ("input_additive", "u4"),
        ("output_additive", "u4"),
        ("choice_count", "u4"),
        ("padding", "V120"),
    ]
)
RECORD = np.dtype(
    [
        ("low", "u8", HASHES),
        ("high", "u8", HASHES),
        ("counters", "u8", COUNTERS),
        ("window", "u8"),
        ("start", "u4", TEXTS),
        *((name, "u4") for name in ("verdict", "identity_slot", "user_slot", "cell_slot", "prefill_cell_slot")),
        ("length", "u2", TEXTS),
    ]
)
IDENTITY = np.dtype([("low", "u8"), ("owner", "u8")])
TEXT_ENTRY = np.dtype([("low", "u8"), ("high", "u8"), ("where", "u8"), ("tokens", "u8")])
CELL = np.dtype(
    [
        ("low", "u8"),
        ("high", "u8"),
        ("counters", "u8", COUNTERS),
        ("window", "u8"),
        ("model", "u4"),
        ("chip", "u4"),
        ("spare", "u8", 6),
    ]
)
ROW = np.dtype([("key", "u8"), ("counters", "u8", COUNTERS), ("epoch", "u4"), ("spare", "u4")])
WINDOW = np.dtype([("low", "u8"), ("high", "u8")])
RULING = np.dtype(
    [
        ("time_ms", "u8"),
        ("counters", "u8", COUNTERS),
        ("start", "u4", TEXTS),
        ("length", "u4", TEXTS),
        ("record", "u4"),
        ("verdict", "u4"),
    ]
)
USAGE_ROW = np.dtype([("window", "u8"), ("user", "u8"), ("model", "u8"), ("chip", "u8"), ("counters", "u8", COUNTERS)])

_POINTERS = (
    "buffer line_start plan message_end message_time records doubtful rulings identities identities_leaving "
    "identities_before texts cells rows windows registers arena text_order cell_order window_order changed "
    "usage_rows fill"
).split()
_NUMBERS = (
    "identities_mask identities_before_mask texts_mask cells_mask rows_mask windows_mask windows_limit message_count "
    "line_is_message epoch"
).split()
JOB = np.dtype(
    [
        *((name, "u8") for name in _POINTERS),
        ("secret", "u8", 8),
        *((name, "u8") for name in ("sketch_seed", "window_ms")),
        ("windows_per_ms", "f8"),
        *((name, "u8") for name in ("future_skew_ms", "sequence")),
        *((name, "u4") for name in _NUMBERS),
    ]
)


def facts() -> list[int]:
    """Sizes and offsets in the order of `layout` in host.cpp."""
    sized = (STEP, KEY, CHOICE, PLAN, RECORD, IDENTITY, TEXT_ENTRY, CELL, ROW, WINDOW, RULING, USAGE_ROW, JOB)
    places: list[tuple[np.dtype[Any], str]] = [
        (STEP, "marks"),
        (STEP, "digits"),
        (KEY, "digits"),
        (CHOICE, "counter"),
        (PLAN, "start"),
        (PLAN, "choices"),
        (PLAN, "buckets"),
        (PLAN, "default_count"),
        (PLAN, "needed"),
        (ROW, "epoch"),
        (RULING, "start"),
        (RULING, "verdict"),
        (USAGE_ROW, "counters"),
        (RECORD, "window"),
        (RECORD, "verdict"),
        (RECORD, "length"),
        (JOB, "records"),
        (JOB, "identities"),
        (JOB, "fill"),
        (JOB, "secret"),
        (JOB, "sequence"),
        (JOB, "windows_limit"),
        (JOB, "epoch"),
    ]
    offsets = [dtype.fields[name][1] for dtype, name in places if dtype.fields is not None]
    return [dtype.itemsize for dtype in sized] + offsets
