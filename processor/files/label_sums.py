"""Sums by a label's values, for those who ask a replay for them: cells know no labels, so the rows are added up."""

from collections.abc import Sequence

import numpy as np

from tokenometer.kernels.layout import PLACE_BITS
from tokenometer.kernels.values import PLACE_MASK, UsageRows
from tokenometer.schemas.usage import Usage


class LabelSums:
    """Of the rows of closed parts. Memory grows with the distinct values."""

    def __init__(self, names: Sequence[str]) -> None:
        self._sums: dict[str, dict[str | None, Usage]] = {name: {} for name in names}

    def take(self, rows: UsageRows) -> None:
        for name, sums in self._sums.items():
            for value, usage in _by_value(rows, name).items():
                sums[value] = sums[value].plus(usage) if value in sums else usage

    def sorted(self) -> dict[str, dict[str | None, Usage]]:
        """By label and value; None: rows without the label. Most tokens first."""
        return {
            name: dict(sorted(sums.items(), key=lambda item: (-item[1].total_tokens, item[0] or "")))
            for name, sums in self._sums.items()
        }


def _by_value(rows: UsageRows, name: str) -> dict[str | None, Usage]:
    places = np.zeros(len(rows), np.uint64)
    if rows.extras is not None and name in rows.label_names:
        entries = rows.extras["labels"]
        its = (entries > 0) & (entries >> np.uint64(PLACE_BITS) == rows.label_names.index(name))
        places = np.where(its, entries, 0).max(axis=1) & np.uint64(PLACE_MASK)
    distinct, index = np.unique(places, return_inverse=True)
    sums = np.zeros((len(distinct), len(Usage._fields)), np.uint64)  # a part's sums fit 64 bits
    np.add.at(sums, index, rows.table["counters"])
    return {
        rows.text(place) if place else None: Usage(*row)
        for place, row in zip(distinct.tolist(), sums.tolist(), strict=True)
    }
