"""layout.h as numpy dtypes. The C++ is the truth: `assertions` has the compiler compare all of this with it.

Every public integer here is a constant or an enumerator there, of the same name; every dtype is a struct there.
"""

from typing import Any

import numpy as np

from tokenometer.schemas import mapping_model as _mappings
from tokenometer.schemas.usage import COUNTERS as _COUNTERS
from tokenometer.schemas.usage import FURTHER as _FURTHER

EMPTY, ACCEPTED, DOUBTFUL, REJECTED, DUPLICATE, SKIPPED, UNFINISHED, UNREAD, RESPELLED = range(9)
REQUEST_ID, USER, MODEL, CHIP, PREFILL_CHIP, SCOPE, TEXTS = range(7)
HASHES = 5
REQUESTS = _COUNTERS.index("requests")
INPUT = _COUNTERS.index("input_tokens")
CACHED_INPUT = _COUNTERS.index("cached_input_tokens")
CACHE_WRITE = _COUNTERS.index("cache_write_tokens")
OUTPUT = _COUNTERS.index("output_tokens")
REASONING = _COUNTERS.index("reasoning_tokens")
COUNTERS = TOTAL = len(_COUNTERS)
TOKENS = COUNTERS - 1
CACHE_WRITE_1H = _FURTHER.index("cache_write_1h_tokens")
AUDIO_INPUT = _FURTHER.index("audio_input_tokens")
IMAGE_INPUT = _FURTHER.index("image_input_tokens")
AUDIO_CACHED_INPUT = _FURTHER.index("audio_cached_input_tokens")
AUDIO_OUTPUT = _FURTHER.index("audio_output_tokens")
FURTHER, LABELS_MAX, EDGES_MAX = len(_FURTHER), _mappings.LABELS_MAX, _mappings.EDGES_MAX
HAVE_TIME, HAVE_SELECTOR, HAVE_COUNTER = 1 << 6, 1 << 7, 7
MARKS, HAVE_SHIFT, KEY_MARKS = 50, 50, (1 << 50) - 1  # of a mark
PREFIX_BYTES, PADDING_BYTES = 5120, 64  # of a batch buffer
TEXT_BYTES_MAX, ID_BYTES_MAX, RECORD_BYTES_MAX = 256, 1024, 1 << 20
COUNT_MAX, TIME_MAX_MS = 1 << 40, 253_402_300_800_000
KEYS_MAX, KEY_BYTES_MAX, LITERAL_BYTES_MAX, BUCKETS, STEPS, CHOICES_MAX = 64, 48, 64, 256, 2, 8
ROOT, END, NONE = 254, 255, 0xFFFFFFFF
ORDINARY, OBJECT, TEXT, COUNT, TIME, SELECTOR, LABEL, FURTHER_COUNT, DEFERRED, DEFERRED_OBJECT = range(10)
QUOTED = 16
SPOT_BITS, SPOTS_MAX, SPOT_WORDS, RULES_MAX, CONDITIONS_MAX, VALUES_MAX, PARTS = 21, 60, 10, 26, 128, 128, 3
CONVENTION_PATHS_MAX = 8
DIGITS, WHOLE_NUMBERS, EMPTY_IS_ABSENT, NUMBERS, OPTIONAL, REQUIRED = 1, 2, 4, 8, 16, 32
IN, NOT_IN, PRESENT, ABSENT = range(4)
INCLUSIVE, ADDITIVE, UNKNOWN, BY_TOTAL, SILENT = range(5)
REASONING_PART, WRITE_PART, CACHED_PART = 1, 2, 4
RFC3339, ISO8601, DIGIT_TIMES, ZONE = 1, 2, 4, 8
NO_EPOCH, SECONDS, MILLISECONDS, MICROSECONDS, NANOSECONDS, DECIMAL_SECONDS = range(6)
SKETCH_BITS, SKETCH_RANK_BITS, LENGTH_BITS, OFFSET_SHIFT, SKETCH_REGISTERS = 14, 6, 9, 29, 1 << 14
SEQUENCE_BITS, SEQUENCE_MASK = 40, (1 << 40) - 1
FILL_TEXTS, FILL_ARENA, FILL_CELLS, FILL_ROWS, FILL_CHANGED, FILL_WINDOWS, FILL_UNSKETCHED, FILL_DOUBTFUL = range(8)
FILL_RESPELLED, FILL_TALLY, FILL_CONFLICTS, FILL_CONFLICTING, FILL_WATERMARK, FILL_FURTHER = 8, 9, 15, 16, 17, 18
FILLS = 24
EARLIER, SLOT_MASK, IDENTITIES_MAX, GROWN_TAKEN = 1 << 31, (1 << 31) - 1, 1 << 29, 1 << 63
ACCOUNT, PLACE_BITS, LABEL_BYTES = TEXT_BYTES_MAX, 51, 8

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
RULE = np.dtype(
    [*((name, "u4") for name in ("kind", "slot", "flags", "paths", "plus")), ("spots", "u1", SPOTS_MAX + 4)]
)
CONDITION = np.dtype(
    [(name, "u4") for name in ("test", "fits_absent", "spot", "key", "first", "count", "last", "refuses")]
)
VALUE = np.dtype([("text", "V48"), *((name, "u4") for name in ("length", "quoted", "additive", "begins"))])
CONVENTION = np.dtype(
    [*((name, "u4") for name in ("otherwise", "first", "count", "paths")), ("spots", "u1", CONVENTION_PATHS_MAX)]
)
LABEL_PLAN = np.dtype(
    [
        ("salt", "u8"),
        *((name, "u4") for name in ("number", "edge_count", "counter", "spare")),
        ("edges", "u8", EDGES_MAX),
        ("start", "u4", EDGES_MAX + 1),
        ("length", "u4", EDGES_MAX + 1),
    ]
)
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
        ("time_texts", "u4"),
        ("message_time_fallback", "u4"),
        ("input_additive", "u4"),
        ("output_additive", "u4"),
        ("choice_count", "u4"),
        *((name, "u4") for name in ("has_rules", "has_conventions", "undecided", "long_ids")),
        *((name, "u4") for name in ("additive", "by_total", "by_value", "identity_with")),
        ("zone_minutes", "i4"),
        *((name, "u4") for name in ("rule_count", "condition_count", "spot_count")),
        *((name, "u4") for name in ("has_extras", "label_count", "labels_needed")),
        ("rules", RULE, RULES_MAX),
        ("total", RULE),
        ("conditions", CONDITION, CONDITIONS_MAX),
        ("conventions", CONVENTION, PARTS),
        ("values", VALUE, VALUES_MAX),
        ("labels", LABEL_PLAN, LABELS_MAX),
        ("padding", "V24"),
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
EXTRA = np.dtype(
    [
        ("low", "u8"),
        ("high", "u8"),
        ("further", "u8", FURTHER),
        ("start", "u4", LABELS_MAX),
        ("length", "u2", LABELS_MAX),
        ("account", "u4"),
        ("padding", "V20"),
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
ROW = np.dtype([("key", "u8"), ("counters", "u8", COUNTERS), ("epoch", "u4"), ("further", "u4")])
FURTHER_ENTRY = np.dtype([("key", "u8"), ("counter", "u8")])
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
RULING_EXTRA = np.dtype([("further", "u8", FURTHER), ("start", "u4", LABELS_MAX), ("length", "u4", LABELS_MAX)])
MOVE = np.dtype(
    [*((name, "u8") for name in ("from", "from_notes", "to", "to_notes")), ("to_mask", "u4"), ("grows", "u4")]
)
RAW_BATCH = np.dtype(
    [
        *((name, "u8") for name in ("base", "time")),
        *((name, "u4") for name in "begin end first count last appended".split()),
    ]
)
RAW_SPAN = np.dtype([(name, "u4") for name in ("begin", "end", "batch", "spare")])
WALK = np.dtype(
    [
        *((name, "u8") for name in "data batches spans offsets times values sizes ends lines broken".split()),
        *((name, "u4") for name in ("batch_count", "count")),
    ]
)
USAGE_EXTRA = np.dtype([("labels", "u8", LABELS_MAX), ("further", "u8", FURTHER)])
USAGE_ROW = np.dtype([("window", "u8"), ("user", "u8"), ("model", "u8"), ("chip", "u8"), ("counters", "u8", COUNTERS)])

_POINTERS = (
    "buffer line_start plan message_end message_time records doubtful respelled rulings extras spots ruling_extras "
    "identities identities_leaving identities_before notes notes_leaving notes_before conflicts grown_order "
    "texts cells rows further windows registers arena text_order cell_order window_order changed "
    "usage_rows usage_extras fill"
).split()
_NUMBERS = (
    "identities_mask identities_before_mask texts_mask cells_mask rows_mask further_mask windows_mask windows_limit "
    "message_count line_is_message epoch grows grown_count spare"
).split()
JOB = np.dtype(
    [
        *((name, "u8") for name in _POINTERS),
        ("secret", "u8", 8),
        *((name, "u8") for name in ("sketch_seed", "window_ms")),
        ("windows_per_ms", "f8"),
        *((name, "u8") for name in ("future_skew_ms", "past_ms", "not_before_ms", "sequence")),
        *((name, "u4") for name in _NUMBERS),
    ]
)


STRUCTS: dict[str, np.dtype[Any]] = {
    "Step": STEP,
    "Key": KEY,
    "Choice": CHOICE,
    "Rule": RULE,
    "Condition": CONDITION,
    "Value": VALUE,
    "Convention": CONVENTION,
    "Plan": PLAN,
    "Record": RECORD,
    "LabelPlan": LABEL_PLAN,
    "Extra": EXTRA,
    "Identity": IDENTITY,
    "TextEntry": TEXT_ENTRY,
    "Cell": CELL,
    "Row": ROW,
    "FurtherEntry": FURTHER_ENTRY,
    "Window": WINDOW,
    "Ruling": RULING,
    "RulingExtra": RULING_EXTRA,
    "Move": MOVE,
    "RawBatch": RAW_BATCH,
    "RawSpan": RAW_SPAN,
    "Walk": WALK,
    "UsageRow": USAGE_ROW,
    "UsageExtra": USAGE_EXTRA,
    "Job": JOB,
}


def constants() -> dict[str, int]:
    """Every constant and enumerator by its name."""
    return {
        name: value for name, value in globals().items() if name.isupper() and name[0] != "_" and type(value) is int
    }


def assertions() -> str:
    """C++ that compiles only beside a layout.h that says the same: each value, each struct's size, and the offset and
    size of each of its fields. A failure names the constant or field and says what is expected here."""
    facts = [(f"(u64){name}", value) for name, value in constants().items()]
    for struct, dtype in STRUCTS.items():
        facts.append((f"sizeof({struct})", dtype.itemsize))
        for name, (field, offset, *_) in (dtype.fields or {}).items():
            if name != "padding":
                facts += [(f"OFFSET_OF({struct}, {name})", offset), (f"sizeof({struct}::{name})", field.itemsize)]
    lines = [f'static_assert({fact} == {value}ull, "layout.py expects {fact} == {value}");' for fact, value in facts]
    return "\n".join(["namespace tokenometer {", *lines, "}", ""])
