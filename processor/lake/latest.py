"""The last message of each key: a row that a later one replaces need not be read. Pure.

A meter publishes a row again each time that it has grown, and most of the time of a writer goes into reading JSON.
"""

from collections.abc import Sequence

import numpy as np

from tokenometer.processor.broker import Messages, Place

KEYS_MAX = 200_000  # of all partitions together, about 130 MB


class Latest:
    def __init__(self) -> None:
        self._held: dict[Place, dict[object, tuple[bytes, int]]] = {}
        self.count = 0

    def add(self, messages: Messages) -> None:
        held = self._held.setdefault(messages.place, {})
        before, offsets = len(held), messages.offsets.tolist()
        values = messages.values
        keys: Sequence[object] = messages.keys if messages.keys is not None and _fit(messages) else offsets
        held.update(
            (key, (value, offset))
            for key, value, offset in zip(keys, values, offsets, strict=True)
            if value is not None
        )
        self.count += len(held) - before

    def take(self) -> list[Messages]:
        """All of them, in the order of their offsets; they are not held any more."""
        found = []
        for place, held in self._held.items():
            if held:
                values, offsets = zip(*sorted(held.values(), key=_offset), strict=True)
                there = np.array(offsets, np.int64)
                found.append(Messages(place, values, np.zeros(len(there), np.uint64), there))
        self._held, self.count = {}, 0
        return found


def _offset(held: tuple[bytes, int]) -> int:
    return held[1]


def _fit(messages: Messages) -> bool:
    """Whether each value begins with its key, as a meter writes them. Otherwise a key may be of several rows."""
    assert messages.keys is not None
    return all(
        value is None or (key is not None and value.startswith(key[:-1]))
        for key, value in zip(messages.keys, messages.values, strict=True)
    )
