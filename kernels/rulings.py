"""Rulings of the referee on their way back to a tile: where their strings are in the batch's buffer."""

from collections.abc import Sequence
from typing import Any

from tokenometer.kernels.plan import Plan
from tokenometer.kernels.values import Canonical


class Texts:
    """Strings of the referee's records on their way into a batch's buffer, after its messages.

    Defaults are in the prefix; all else came out of the line, and what two fields read is placed once. So space as
    large as the batch's is enough for them.
    """

    def __init__(self, at: int) -> None:
        self._at = at
        self._texts: list[bytes] = []

    def place(
        self, texts: Sequence[bytes], defaults: Sequence[tuple[bytes, int]], placed: dict[bytes, int]
    ) -> tuple[list[int], list[int]]:
        """Where a record's strings are in the buffer, and their lengths. placed: those of the record so far."""
        places: list[int] = []
        at = self._at
        for text, (default, place) in zip(texts, defaults, strict=True):
            if text != default:
                place = placed.setdefault(text, at)
                if place == at:
                    self._texts.append(text)
                    at += len(text)
            places.append(place)
        self._at = at
        return places, [len(text) for text in texts]

    def joined(self) -> bytes:
        return b"".join(self._texts)


def beside(plan: Plan, record: Canonical, texts: Texts, placed: dict[bytes, int], number: int) -> tuple[Any, ...]:
    """Of a ruling: its number, further counters, and where its labels are. The kernels know brackets."""
    labels = [b"" if each.bracket else text for each, text in zip(plan.mapping.labels, record.labels, strict=True)]
    return number, record.further, *texts.place(labels, plan.label_defaults, placed)
