"""How many tokens are committed per second, by the times at which the meters committed them.

    a meter's word ─> what it adds to the word before ─> the second of its commit ─> sums of the last ten minutes

A rollup reads in a moment what meters committed while it was away. So what counts is when a summary was committed, and
not when it was read.

Owns: the tokens of each second, and since when all of them are known. Promises: it is pure. What a word adds counts
once, in the second of its commit. What cannot be dated, because words before it are missing, counts in no second. So no
rate is higher than that of the commits of its span; a meter whose clock is slow has its commits in our clock's seconds.
"""

from typing import NamedTuple

from tokenometer.processor.rollup.meters import MeterState
from tokenometer.schemas.usage import total_of

SPAN_SECONDS = 60
SMOOTHED_SECONDS = 5  # of a sample of the history
KEPT_SECONDS = 600
FRESH_MS = 2_000  # a meter that committed so recently goes on, and is waited for
STEADY_MS = 30_000  # so long a meter's words must come equally late, before its clock is taken to be slow
_Place = tuple[int, str]  # partition, meter


class Amount(NamedTuple):
    tokens: int = 0
    requests: int = 0


class Span(NamedTuple):
    """Whole seconds, begin_s < second <= end_s."""

    begin_s: int
    end_s: int


class Rates:
    """`learn` takes each word of a meter in order; `hear` and `look` come once a second, with the time."""

    def __init__(self) -> None:
        self._seconds: dict[int, Amount] = {}  # the commits of (second - 1, second]
        self._since_s: int | None = None  # what was committed after it is known
        self._latest: dict[_Place, int] = {}  # a meter's last commit, in ms of our clock
        self._steady: dict[_Place, tuple[int, int]] = {}  # since when its words are equally late, and by how much
        self._slow_ms: dict[_Place, int] = {}  # how far its clock is back
        self._now_ms = 0
        self._end_s = 0

    def learn(self, place: _Place, known: MeterState | None, new: MeterState) -> None:
        at_ms = new.committed_at_ms + self._slow_ms.get(place, 0)
        second = -(-at_ms // 1000)
        added = _added(known, new)
        if self._since_s is None or added is None:
            self._since_s = max(self._since_s or 0, second)
        self._latest[place] = at_ms
        if added is not None and any(added):
            before = self._seconds.get(second, Amount())
            self._seconds[second] = Amount(before.tokens + added.tokens, before.requests + added.requests)
            if len(self._seconds) > 2 * KEPT_SECONDS:
                self._forget(max(self._seconds))

    def _forget(self, end_s: int) -> None:
        since_s = end_s - KEPT_SECONDS - SMOOTHED_SECONDS
        self._seconds = {second: amount for second, amount in self._seconds.items() if second > since_s}

    def hear(self, place: _Place, committed_at_ms: int, now_ms: int) -> None:
        """A meter whose words come late is one with a slow clock if they come equally late for some time. A rollup that
        catches up reads more of the log in a second than a second."""
        late_ms = now_ms - committed_at_ms
        since_ms, steady_ms = self._steady.get(place, (now_ms, late_ms))
        if abs(late_ms - steady_ms) > FRESH_MS:
            since_ms, steady_ms = now_ms, late_ms
        self._steady[place] = since_ms, min(late_ms, steady_ms)
        if now_ms - since_ms >= STEADY_MS or late_ms <= FRESH_MS:
            self._slow_ms[place] = self._steady[place][1] if late_ms > FRESH_MS else 0

    def look(self, now_ms: int) -> Span | None:
        """The last minute, up to the last second that is complete. None: less than a second is known."""
        if now_ms < self._now_ms:  # the clock was set back
            self._seconds = {second: amount for second, amount in self._seconds.items() if second <= now_ms // 1000}
            self._since_s = None if self._since_s is None else min(self._since_s, now_ms // 1000)
        self._now_ms = now_ms
        going_on = [at_ms for at_ms in self._latest.values() if now_ms - FRESH_MS < at_ms <= now_ms]
        self._end_s = min(going_on, default=now_ms) // 1000
        self._forget(self._end_s)
        if self._since_s is None or self._since_s >= self._end_s:
            return None
        return Span(max(self._since_s, self._end_s - SPAN_SECONDS), self._end_s)

    def sum_of(self, span: Span) -> Amount:
        seconds = [self._seconds.get(second, Amount()) for second in range(span.begin_s + 1, span.end_s + 1)]
        return Amount(sum(each.tokens for each in seconds), sum(each.requests for each in seconds))

    def history(self) -> tuple[list[int], list[float]]:
        """Times in ms, and the tokens per second of the five seconds before each, of ten minutes."""
        if self._since_s is None:
            return [], []
        first = max(self._since_s + SMOOTHED_SECONDS, self._end_s - KEPT_SECONDS + 1)
        ends = range(first, self._end_s + 1)
        sums = [self.sum_of(Span(end - SMOOTHED_SECONDS, end)).tokens for end in ends]
        return [end * 1000 for end in ends], [tokens / SMOOTHED_SECONDS for tokens in sums]


def _added(known: MeterState | None, new: MeterState) -> Amount | None:
    """What was committed with the new word. None: that is not known, because words before it are missing."""
    before = Amount()
    if known is not None and known.part == new.part:
        before = _amount(known)
        if new.sequence not in (known.sequence, known.sequence + 1):
            return None
    elif new.sequence != 0:
        return None
    after = _amount(new)
    return Amount(max(0, after.tokens - before.tokens), max(0, after.requests - before.requests))


def _amount(meter: MeterState) -> Amount:
    """Of its open part."""
    return Amount(total_of(meter.open.tokens), meter.open.tokens[0])
