"""The clock of a log in a file: message times, which a topic has and a file does not, so that request ids can be
forgotten there as they are in a topic.

Promises: a record's message time is the median of the times of the last five records, its own among them: what is late,
or of a client whose clock is wrong, moves it neither back nor ahead. It depends on the records' order alone, not on how
they are cut into batches. It is looked at by the horizon only; it makes no record too early or too late.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from tokenometer.kernels.values import Bytes
from tokenometer.processor.files.logs import LogError
from tokenometer.processor.records.referee import Referee
from tokenometer.schemas.mapping import Mapping

_RECENT = 5
Ends = np.ndarray[Any, np.dtype[np.uint32]]
Times = np.ndarray[Any, np.dtype[np.uint64]]


class FixedClock:
    """One message time for every record: that of a log whose records have no time of their own."""

    def __init__(self, time_ms: int) -> None:
        self._time_ms = time_ms

    def __call__(self, lines: Bytes) -> tuple[Ends, Times]:
        """As of LogClock."""
        ends = _ends(lines)
        return ends, np.full(len(ends), self._time_ms, np.uint64)


class LogClock:
    """Called with batches of lines, in the order of the log."""

    def __init__(self, referee: Referee, mapping: Mapping) -> None:
        self._referee, self._mapping = referee, mapping
        self._recent: deque[int] = deque(maxlen=_RECENT)

    def __call__(self, lines: Bytes) -> tuple[Ends, Times]:
        """Of each line, past its newline, and its message time in ms. Raises LogError where none has a time at all."""
        ends = _ends(lines)
        text, begin, times = lines.tobytes(), 0, []
        for end in ends.tolist():
            times.append(self._referee.time_of(text[begin : end - 1], self._mapping))
            begin = end
        return ends, np.array(self._medians(times), np.uint64)

    def _medians(self, times: Sequence[int | None]) -> list[int]:
        if not self._recent:
            self._recent.extend([time_ms for time_ms in times if time_ms is not None][:_RECENT])
        if times and not self._recent:
            raise LogError(
                "--dedup-horizon: no record of the log's beginning has a time that the mapping can read; "
                "see tokenometer mappings check"
            )
        found = []
        for time_ms in times:
            if time_ms is not None:
                self._recent.append(time_ms)
            found.append(sorted(self._recent)[len(self._recent) // 2])
        return found


def _ends(lines: Bytes) -> Ends:
    return np.flatnonzero(lines == 0x0A).astype(np.uint32) + np.uint32(1)
