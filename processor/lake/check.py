"""`lake --check`: does the table say what the meters, or a ledger, say? Pure; both sides are sums by part.

A part that is in the table is there as a whole, or its rows are still with another writer, so parts are compared one by
one. What the other side has and the table has not is not wrong: those parts go on, or wait for their writer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tokenometer.schemas.usage import Usage


class Difference(NamedTuple):
    part: str
    table: Usage
    said: Usage


@dataclass(frozen=True)
class Comparison:
    """equal: how many parts say the same; their sums. waiting: parts that are not in the table, or not for all
    partitions. unknown: parts of the table that the other side does not have."""

    equal: int
    sums: Usage
    differences: Sequence[Difference]
    waiting: int
    unknown: int

    @property
    def clean(self) -> bool:
        return not self.differences


def compare(table: Mapping[str, Usage], partly: Mapping[str, Usage], said: Mapping[str, Usage]) -> Comparison:
    """partly: parts of the table that are not in for all partitions. said: the other side's sums."""
    whole = {part: sums for part, sums in table.items() if part not in partly and any(sums)}
    both = whole.keys() & said.keys()
    different = [Difference(part, whole[part], said[part]) for part in sorted(both) if whole[part] != said[part]]
    same = [whole[part] for part in both if whole[part] == said[part]]
    waiting = sum(1 for part, sums in said.items() if part not in whole and any(sums))
    return Comparison(len(same), Usage.sum_of(same) if same else Usage(), different, waiting, len(whole) - len(both))
