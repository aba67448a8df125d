"""Which parts are over: no row of them can come any more, once all that the topics hold now was read. Pure.

the meter has a later part               its summaries say so, as for the ledger (ledger/parts.py)
the meter is not in its group any more   it was stopped. A meter that comes back begins a new part, and a commit by
                                         one that was thrown out fails
the part has rows and no summary         retention has deleted its summaries, for both are one transaction: it is
                                         older than all that token-live holds
"""

from collections.abc import Callable

from tokenometer.processor.ledger.parts import ENDED, OPEN, UNPROVED, LedgerPart, LedgerParts


def over(parts: LedgerParts, gone: Callable[[str], bool]) -> list[LedgerPart]:
    """gone: whether the meter of an open part of this name has left its group; asked after these parts were seen."""
    going_on = [part for part in parts.in_state(OPEN) if part.meter is None or gone(part.name)]
    return parts.in_state(ENDED) + parts.in_state(UNPROVED) + going_on


def still_over(part: LedgerPart, was_silent: bool) -> bool:
    """When all was read. was_silent: it had no summary when it was found to be over, and must not have one now."""
    return not (was_silent and part.meter is not None and part.state == OPEN)
