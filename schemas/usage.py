"""The counters of a usage row: their one home.

Names, order, what is part of what, the total, and the version of what carries them. Everything but the oracle, the
audit and the C++ imports this module. The first two keep copies of their own on purpose, because they judge the rest;
the C++ is compared with it when it is loaded (kernels/layout.py).
"""

from collections.abc import Iterable, Sequence
from functools import reduce
from operator import add
from typing import Any, NamedTuple

SCHEMA_VERSION = 1  # of live summaries
ROW_SCHEMA_VERSION = 2  # of usage rows, as they are written
ROW_SCHEMA_VERSIONS = (1, 2)  # as they are read: rows of version 1 have no labels and no further counters
TARGET_TOKENS_PER_DAY = 120 * 10**12
DAY_MS = 86_400_000


class Usage(NamedTuple):
    """The counters of a row, a cell, a part or a day, in the order in which everything lists them.

    Totals are inclusive: `PARENTS` says which counter is part of which.
    """

    requests: int = 0
    input_tokens: int = 0
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return int(total_of(self))

    def plus(self, other: Sequence[int]) -> "Usage":
        """The sums, counter by counter."""
        return Usage(*(a + b for a, b in zip(self, other, strict=True)))

    @classmethod
    def sum_of(cls, usages: Iterable["Usage"]) -> "Usage":
        """The sums over all of them; zeros where there are none."""
        return cls(*map(sum, zip(*usages, strict=True)))

    def with_total(self) -> dict[str, int]:
        """By name, the total included, as rows and summaries show them."""
        return self._asdict() | {TOTAL: self.total_tokens}


COUNTERS = Usage._fields
TOKENS = COUNTERS[1:]  # all but the requests
TOTAL = "total_tokens"
PARENTS = {  # a part -> the total that holds it
    "cached_input_tokens": "input_tokens",
    "cache_write_tokens": "input_tokens",
    "reasoning_tokens": "output_tokens",
}
# Further counters, each a part of one counter. They are rare: a row has only those that are not 0.
FURTHER_PARENTS = {
    "cache_write_1h_tokens": "cache_write_tokens",
    "audio_input_tokens": "input_tokens",
    "image_input_tokens": "input_tokens",
    "audio_cached_input_tokens": "cached_input_tokens",
    "audio_output_tokens": "output_tokens",
}
FURTHER = tuple(FURTHER_PARENTS)
NO_FURTHER = (0,) * len(FURTHER)
_ADDENDS = [COUNTERS.index(name) for name in TOKENS if name not in PARENTS]
_WHOLES = [  # counters that have parts, and these
    (COUNTERS.index(whole), [COUNTERS.index(part) for part, parent in PARENTS.items() if parent == whole])
    for whole in dict.fromkeys(PARENTS.values())
]


def total_of(columns: Sequence[Any]) -> Any:
    """`total_tokens` of counters in the order of COUNTERS: integers, arrays or columns of a table."""
    first, second = _ADDENDS
    return columns[first] + columns[second]


def part_sums(columns: Sequence[Any]) -> list[tuple[Any, Any]]:
    """For each counter that has parts, the sum of the parts and the counter itself: the first is never the larger."""
    return [(reduce(add, [columns[part] for part in parts]), columns[whole]) for whole, parts in _WHOLES]
