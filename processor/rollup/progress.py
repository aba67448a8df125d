"""Judges from outside of Faust whether a rollup does its work.

Owns: the judgement, and what it remembers from look to look. Promises: it is pure; `now_ms` is an argument.

    what the table has of each partition of token-live     learned ─┐
    where those partitions end                             ends ────┴─ look ─> reasons
    has this worker joined its group?                      joined ──┘

Whichever worker has a partition, its entries come to every worker by the changelog. So each of them can tell that a
partition is read by nobody.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

PATIENCE_MS = 8_000  # with a look every second, and its answer, that is below ten seconds


@dataclass
class Progress:
    """since: when a partition's entries last changed, or its end was first seen beyond them."""

    app: str
    live_topic: str
    began_ms: int
    _seen: dict[int, tuple[int, int, int]] = field(default_factory=dict)  # learned, end, since

    def look(self, now_ms: int, joined: bool, learned: Mapping[int, int], ends: Mapping[int, int]) -> list[str]:
        """Why the rollup is not healthy. learned: the last offset in the entries of a partition. ends: of partitions.

        Behind a transaction's last message there is a mark that nobody reads, and behind an aborted one's there are
        messages that nobody reads. So a partition is stuck only if its end goes on and its entries do not."""
        reasons = []
        if not joined and now_ms - self.began_ms >= PATIENCE_MS:
            reasons.append(
                f"this worker has not joined the group {self.app} for {(now_ms - self.began_ms) // 1000} s: see the "
                "log, and whether another program has a group of that name"
            )
        for partition, end in sorted(ends.items()):
            last = learned.get(partition, -1)
            known = self._seen.get(partition)
            if known is None or known[0] != last:
                self._seen[partition] = known = last, end, now_ms
            if end == known[1] and (known[0] >= 0 or end == 0):
                self._seen[partition] = known = last, end, now_ms  # nothing came
            if now_ms - known[2] >= PATIENCE_MS:
                reasons.append(
                    f"nothing of {self.live_topic}, partition {partition}, was counted for "
                    f"{(now_ms - known[2]) // 1000} s, and it goes on to offset {end}: no worker of {self.app} reads it"
                )
        return reasons
