"""Rulings of the referee on their way back to a tile: where their strings stand in the batch's buffer."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from tokenometer.kernels.plan import Plan
from tokenometer.kernels.values import Canonical


class Texts:
    """Strings of the referee's records on their way into a batch's buffer, after its messages.

    Defaults stand in the prefix; all else came out of the line, and what two fields read is placed once. So space as
    large as the batch's is enough for them.
    """

    def __init__(self, at: int) -> None:
        self._at = at
        self._texts: list[bytes] = []

    def of_record(self) -> "TextsOfRecord":
        return TextsOfRecord(self, {})

    def add(self, text: bytes) -> int:
        self._texts.append(text)
        self._at += len(text)
        return self._at - len(text)

    def joined(self) -> bytes:
        return b"".join(self._texts)


class TextsOfRecord(NamedTuple):
    all: Texts
    placed: dict[bytes, int]

    def place(self, texts: Sequence[bytes], defaults: Sequence[tuple[bytes, int]]) -> tuple[list[int], list[int]]:
        """Where they stand in the buffer, and their lengths."""
        places: list[int] = []
        for text, (default, place) in zip(texts, defaults, strict=True):
            if text == default:
                places.append(place)
                continue
            if text not in self.placed:
                self.placed[text] = self.all.add(text)
            places.append(self.placed[text])
        return places, [len(text) for text in texts]


def beside(plan: Plan, record: Canonical, texts: TextsOfRecord, number: int) -> tuple[Any, ...]:
    """Of a ruling: its number, further counters, and where its labels stand. The kernels know brackets."""
    labels = [b"" if each.bracket else text for each, text in zip(plan.mapping.labels, record.labels, strict=True)]
    return number, record.further, *texts.place(labels, plan.label_defaults)
