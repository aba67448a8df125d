"""Which parts may still change: a table of states, and what moves a part through them. It is pure.

    rows or a summary       a later part of        its rows add up to its
    of an unknown part      the meter is seen      last summary's tokens
           │                       │                      │
           └────────> open ────────┴──────> ended ────────┴──> merged      rows added up, the part only a name
                        │                     ├──> disputed                 they do not add up: kept apart, and reported
                        └─────────────────────┴──> unproved                 its last summary may be missing: kept apart

A meter's summaries are in one partition of token-live (their key is the meter's name), in the order of its commits,
and a meter has one open part at a time. So the first summary of its next part says that the summary before was the
last one of the old part. Whatever is not merged is still right: it only takes the room of a row for each part.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tokenometer.processor.ledger.values import LedgerError, LedgerSummary
from tokenometer.schemas.usage import Usage

OPEN, ENDED, MERGED, DISPUTED, UNPROVED = "open", "ended", "merged", "disputed", "unproved"


class PartGoesOn(LedgerError):
    """A part that was taken for ended goes on."""


@dataclass
class LedgerPart:
    id: int
    name: str
    window_ms: int
    state: str = OPEN
    meter: str | None = None  # None: no summary of it was seen
    sequence: int | None = None
    tokens: Usage | None = None
    live_partition: int | None = None


class LedgerParts:
    """All parts that the ledger knows. `changed`: what is to be written."""

    def __init__(self, known: list[LedgerPart], next_id: int, merged: Callable[[str], LedgerPart | None]) -> None:
        """known: all that are not merged. merged: looks one of the others up, of which there are ever more."""
        self._by_name = {part.name: part for part in known}
        self._current = {part.meter: part for part in known if part.meter is not None and part.state == OPEN}
        self._next_id, self._merged = next_id, merged
        self.changed: dict[str, LedgerPart] = {}

    def of(self, name: str, window_ms: int) -> LedgerPart:
        """The part of this name, new if it was not known."""
        part = self._by_name.get(name) or self._merged(name)
        if part is not None:
            self._by_name[name] = part
        else:
            part = self._by_name[name] = self.changed[name] = LedgerPart(self._next_id, name, window_ms)
            self._next_id += 1
        if part.window_ms != window_ms:
            raise LedgerError(f"part {name} has windows of {part.window_ms} ms, and of {window_ms} ms")
        return part

    @property
    def last_id(self) -> int:
        """No part that is known so far has a higher one."""
        return self._next_id - 1

    def in_state(self, state: str) -> list[LedgerPart]:
        return [part for part in self._by_name.values() if part.state == state]

    def take(self, summary: LedgerSummary) -> None:
        part = self.of(summary.part, summary.window_ms)
        if part.sequence is not None and summary.sequence <= part.sequence:
            return  # read before, or another message of the same summary
        if part.state in (MERGED, DISPUTED, ENDED):
            raise PartGoesOn(
                f"part {part.name} of meter {summary.meter} ended with summary {part.sequence}, and now there is a "
                f"summary {summary.sequence} of it: do two meters run under one name?"
            )
        part.meter, part.sequence, part.tokens = summary.meter, summary.sequence, summary.tokens
        part.live_partition = summary.live_partition
        self.changed[part.name] = part
        if part.state == OPEN:
            self._succeed(part, summary.meter)

    def _succeed(self, part: LedgerPart, meter: str) -> None:
        before = self._current.get(meter)
        if before is not None and before is not part:
            # In another partition there may be later summaries of it that were not read yet.
            self.move(before, ENDED if before.live_partition == part.live_partition else UNPROVED)
        self._current[meter] = part

    def move(self, part: LedgerPart, state: str) -> None:
        part.state = state
        self.changed[part.name] = part

    def doubt_all(self) -> None:
        """Summaries were lost: nobody can say which one was the last of the parts so far."""
        for part in self.in_state(OPEN) + self.in_state(ENDED):
            self.move(part, UNPROVED)
        self._current.clear()
