"""The rate that is shown is that of the meters' commits, whenever a rollup comes to read them."""

import random
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.summaries import FakeMeter, Fleet
from tests.test_totals import START_MS, Kept, written
from tokenometer.processor.rollup import rates
from tokenometer.processor.rollup.entries import Entries
from tokenometer.processor.rollup.rates import SPAN_SECONDS, Rates, Span
from tokenometer.processor.rollup.summaries import read_summary
from tokenometer.processor.rollup.totals import Totals

SECOND_MS = 1000
seeds = st.integers(0, 1 << 32)


def busy(meter: FakeMeter, seconds: int, tokens: int = 100, begin_ms: int = START_MS) -> Iterator[tuple[int, bytes]]:
    """What a meter says that counts so much in each second."""
    for second in range(seconds):
        now_ms = begin_ms + second * SECOND_MS
        meter.count((now_ms // 60_000 * 60_000, "m", "c"), [1, tokens, 0, 0, 0, 0], "u")
        yield now_ms, meter.summary(now_ms)[0]


def rate(view: Totals, now_ms: int) -> float | None:
    return view.rolling(now_ms)["rate"]["tokens_per_second"]


@pytest.mark.parametrize("kept_before", [False, True], ids=["a new app", "a restart with state"])
def test_a_rollup_that_starts_late_shows_no_rate_of_what_it_catches_up(kept_before):
    """A log is metered, and 75 seconds later a rollup begins to read what its meter said."""
    meter, keeper, kept = FakeMeter("meter-0", 0), Entries(), Kept()
    words = list(busy(meter, 20, 10**6))
    if kept_before:
        for offset, (now_ms, value) in enumerate(words[:5]):
            written(kept, keeper, offset, value, now_ms)
    view = Totals()
    for key, value in kept.table.items():
        view.apply(key, value)
    now_ms = words[-1][0] + 75 * SECOND_MS
    shown = [rate(view, now_ms)]
    for offset, (_, value) in enumerate(words):
        if offset < 5 and kept_before:
            continue
        for entry in keeper.learn(0, offset, read_summary(value), now_ms).items():
            view.apply(*entry)
        now_ms += 200
        shown.append(rate(view, now_ms))
    shown += [rate(view, now_ms + second * SECOND_MS) for second in range(70)]
    assert view.rolling(now_ms + 70 * SECOND_MS)["windows"]["since_start"]["tokens"]["total_tokens"] == 20 * 10**6
    assert not any(shown)
    history = view.rate_history()
    assert max(history["tokens_per_second"]) == 10**6, "at the time of the commits"
    since = START_MS + 20 * SECOND_MS + 5 * SECOND_MS
    assert not any(speed for at, speed in zip(*history.values(), strict=True) if at >= since)


def test_a_rollup_that_starts_again_knows_the_rate_at_once():
    meter, keeper, kept, view = FakeMeter("meter-0", 0), Entries(), Kept(), Totals()
    for offset, (now_ms, value) in enumerate(busy(meter, 90)):
        written(kept, keeper, offset, value, now_ms)
    for key, value in kept.log:
        view.apply(key, value)
    assert rate(view, now_ms + 300) == 100
    assert set(view.rate_history()["tokens_per_second"]) == {100}


def test_of_a_compacted_log_the_rate_is_that_of_the_words_that_are_left():
    """Compaction leaves a meter's last word alone, and so what was committed before it is not known."""
    meter, keeper, kept, view = FakeMeter("meter-0", 0), Entries(), Kept(), Totals()
    words = list(busy(meter, 40))
    for offset, (now_ms, value) in enumerate(words[:30]):
        written(kept, keeper, offset, value, now_ms)
    for key, value in kept.table.items():
        view.apply(key, value)
    assert rate(view, words[29][0]) is None
    for offset, (now_ms, value) in enumerate(words[30:], 30):
        for entry in keeper.learn(0, offset, read_summary(value), now_ms).items():
            view.apply(*entry)
        assert rate(view, now_ms) == 100


def test_a_meter_whose_clock_is_slow_has_its_rate():
    meter, keeper, view = FakeMeter("slow", 0), Entries(), Totals()
    for offset, (now_ms, value) in enumerate(busy(meter, 120)):
        for entry in keeper.learn(0, offset, read_summary(value), now_ms + 90 * SECOND_MS).items():
            view.apply(*entry)
        last = rate(view, now_ms + 90 * SECOND_MS)
    assert last == 100


def test_a_clock_that_is_set_back_does_not_stop_the_rate():
    meter, keeper, view = FakeMeter("meter-0", 0), Entries(), Totals()
    words = [*busy(meter, 30), *busy(meter, 30, begin_ms=START_MS - 3_600_000)]
    for offset, (now_ms, value) in enumerate(words):
        for entry in keeper.learn(0, offset, read_summary(value), now_ms).items():
            view.apply(*entry)
        last = rate(view, now_ms)
    assert last == 100


class Truth:
    """Tokens by the second of their commit, out of the fleet's own log."""

    def __init__(self, fleet: Fleet) -> None:
        self.log, self.read, self.before = fleet.log, 0, Counter[str]()
        self.seconds: Counter[int] = Counter()

    def learn(self) -> None:
        for _, _, value in self.log[self.read :]:
            summary = read_summary(value)
            tokens = summary.sums.tokens[1] + summary.sums.tokens[4]
            self.seconds[-(-summary.committed_at_ms // SECOND_MS)] += tokens - self.before[summary.part]
            self.before[summary.part] = tokens
        self.read = len(self.log)

    def of(self, span: Span) -> int:
        return sum(self.seconds[second] for second in range(span.begin_s + 1, span.end_s + 1))


class Rollup:
    """A worker that reads some partitions as fast as it can, keeps entries, and may start again."""

    def __init__(self, fleet: Fleet) -> None:
        self.log, self.keeper, self.kept, self.read = fleet.log, Entries(), Kept(), 0
        self.view, self.seen = Totals(), 0

    def catch_up(self, messages: int, now_ms: int) -> None:
        for partition, offset, value in self.log[self.read : self.read + messages]:
            for entry in self.keeper.learn(partition, offset, read_summary(value), now_ms).items():
                self.kept.write(*entry)
        self.read = min(len(self.log), self.read + messages)
        self.follow()

    def follow(self) -> None:
        for key, value in self.kept.log[self.seen :]:
            self.view.apply(key, value)
        self.seen = len(self.kept.log)

    def restart(self, compacted: bool) -> None:
        """With what the topic of entries holds: all of it, or what compaction leaves."""
        self.keeper = Entries()
        self.keeper.restore(self.kept.table.items())
        self.view = Totals()
        if compacted:
            self.kept.log = list(self.kept.table.items())
        self.seen = 0
        self.follow()


def assert_is_not_higher_than_the_truth(view: Totals, truth: Truth, now_ms: int) -> Span | None:
    shown, span = rate(view, now_ms), view._rates.look(now_ms)
    assert (shown is None) == (span is None)
    if span is None or shown is None:
        return None
    assert now_ms - 3 * SECOND_MS <= span.end_s * SECOND_MS <= now_ms
    assert 0 < span.end_s - span.begin_s <= SPAN_SECONDS
    assert shown * (span.end_s - span.begin_s) <= truth.of(span) * (1 + 1e-12)
    for at, speed in zip(*view.rate_history().values(), strict=True):
        assert speed * 5 <= truth.of(Span(at // SECOND_MS - 5, at // SECOND_MS)) * (1 + 1e-12)
    return span


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(seed=seeds)
def test_no_rate_is_higher_than_that_of_the_commits_of_its_span(seed):
    draw = random.Random(seed)
    fleet = Fleet(seed, START_MS, meters=draw.choice([1, 3]), partitions=draw.choice([1, 3]))
    rollup, truth, away = Rollup(fleet), Truth(fleet), draw.choice([0, 40, 90])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(rates, "STEADY_MS", 1 << 60)  # a rollup that is always equally late is a meter's slow clock
        for step in range(120):
            fleet.now_ms += draw.choice([0, 1000, 1000, 1000, 5000])
            fleet.work()
            if step < away:
                continue
            truth.learn()
            if draw.random() < 0.05:
                rollup.restart(draw.random() < 0.5)
            rollup.catch_up(draw.choice([0, 1, 2, 5, 1000]), fleet.now_ms)
            assert_is_not_higher_than_the_truth(rollup.view, truth, fleet.now_ms)
        rollup.catch_up(len(fleet.log), fleet.now_ms)
        for _ in range(70):
            fleet.now_ms += SECOND_MS
            span = assert_is_not_higher_than_the_truth(rollup.view, truth, fleet.now_ms)
    assert span == Span(fleet.now_ms // SECOND_MS - 60, fleet.now_ms // SECOND_MS)
    assert rate(rollup.view, fleet.now_ms) == 0


@settings(max_examples=10, deadline=None)
@given(seed=seeds)
def test_who_has_read_all_shows_the_rate_of_the_commits(seed):
    fleet = Fleet(seed, START_MS)
    rollup, truth = Rollup(fleet), Truth(fleet)
    for _ in range(100):
        fleet.now_ms += fleet.draw.choice([0, 1000, 1000, 5000])
        fleet.work()
        truth.learn()
        rollup.catch_up(1000, fleet.now_ms)
        shown, span = rate(rollup.view, fleet.now_ms), rollup.view._rates.look(fleet.now_ms)
        if span is not None:
            assert shown == pytest.approx(truth.of(span) / (span.end_s - span.begin_s))


def test_seconds_are_forgotten_while_a_long_log_is_read():
    summed, meter, keeper = Rates(), FakeMeter("meter-0", 0), Entries()
    for offset, (now_ms, value) in enumerate(busy(meter, 3000)):
        known = keeper._partitions[0].meters["meter-0"] if offset else None
        old = None if known is None else type(known).decode(known.encode())
        keeper.learn(0, offset, read_summary(value), now_ms)
        summed.learn((0, "meter-0"), old, keeper._partitions[0].meters["meter-0"])
        assert len(summed._seconds) <= 1201
