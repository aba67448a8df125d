"""The counting side of a meter: what a log says does not depend on its cuts, on commits, on full parts or on restarts.

`Books` stands for Kafka and for an auditor in one: it takes snapshots as commits, remembers what a restart would find,
and compares with the oracle at every commit, up to exactly the offsets that were committed.
"""

import dataclasses
import hashlib
import itertools
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, event, example, given, settings
from hypothesis import strategies as st

from tests import harness, oracle
from tests.harness import TINY, shipped
from tests.test_schemas import validator
from tokenometer.kernels import layout
from tokenometer.kernels.engine import Engine
from tokenometer.kernels.loaded import Buffer
from tokenometer.kernels.target import HostTarget
from tokenometer.kernels.values import PartitionState, Tally
from tokenometer.processor.broker import Column, Messages, Offset, Place, Position
from tokenometer.processor.meter import counting, emission, positions
from tokenometer.processor.meter.counting import Counting, Intake, LineTooLarge, Snapshot, Start
from tokenometer.processor.records import hyperloglog

NATIVE = shipped("native")
ROOMY = {
    "rows": 1 << 12,
    "cells": 1 << 10,
    "texts": 1 << 11,
    "windows": 16,
    "arena_bytes": 1 << 17,
    "batch_bytes": 1 << 14,
    "tile_records": 64,
}
BASE_MS = 1_795_000_000_000
HORIZON_MS = 1000
A, B = Place("inference-logs", 0), Place("inference-logs", 1)
TOPIC_ID = "topic-1"

property_test = settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


def record(**fields: object) -> bytes:
    """A native record; None leaves a field out."""
    known = {"timestamp": BASE_MS, "user": "u", "model": "m", "chip": "c", "input_tokens": 10, "output_tokens": 5}
    return json.dumps({name: value for name, value in (known | fields).items() if value is not None}).encode()


@dataclass(frozen=True)
class Message:
    offset: int
    value: bytes | None
    time: int


Log = dict[Place, list[Message]]


def make_log(values: Iterable[tuple[bytes | None, int]], place: Place = A, first: int = 0, step: int = 1) -> Log:
    """Values and times; `step` above 1 leaves gaps, as transaction markers do."""
    return {place: [Message(first + step * k, value, BASE_MS + time) for k, (value, time) in enumerate(values)]}


def intake(place: Place, messages: Sequence[Message], shape: int = 0) -> Intake:
    """As a broker hands messages over, in one of its SHAPES."""
    values: Sequence[bytes | None] = [message.value for message in messages]
    times = np.array([message.time for message in messages], np.uint64)
    offsets = np.array([message.offset for message in messages], np.int64)
    return Intake.of(Messages(place, SHAPES[shape % len(SHAPES)](values), times, offsets))


def as_column(values: Sequence[bytes | None]) -> Column:
    """Each text ended by one newline, its own if it has one."""
    lines = [(value or b"").removesuffix(b"\n") + b"\n" for value in values]
    ends = np.cumsum([0, *map(len, lines)])
    lengths = [-1 if value is None else len(value) for value in values]
    data = np.frombuffer(b"".join(lines), np.uint8)
    one_line = not any(b"\n" in line[:-1] for line in lines)
    return Column(data, *(np.array(each, np.int64) for each in (ends[:-1], lengths, ends[1:])), one_line=one_line)


def in_a_buffer(values: Sequence[bytes | None]) -> Column:
    """As the fetcher has them in a region, whose memory somebody has used before."""
    column = as_column(values)
    buffer = np.full(Buffer.bytes_for(len(column.data)), 0x7B, np.uint8)
    data = buffer[layout.PREFIX_BYTES : layout.PREFIX_BYTES + len(column.data)]
    data[:] = column.data
    return dataclasses.replace(column, data=data, buffer=buffer)


SHAPES: Sequence[Callable[[Sequence[bytes | None]], Sequence[bytes | None]]] = (list, as_column, in_a_buffer)


@dataclass
class Books:
    """All that was committed."""

    log: Log
    horizon_ms: int
    wanted: oracle.Meter = field(init=False)
    letters: list = field(default_factory=list)
    positions: dict[Place, Position] = field(default_factory=dict)
    starts: dict[Place, Start] = field(default_factory=dict)
    snapshots: list[Snapshot] = field(default_factory=list)
    by_part: dict[str, harness.Rows] = field(default_factory=lambda: defaultdict(dict))  # absolute
    cells: dict[str, dict] = field(default_factory=lambda: defaultdict(dict))
    summaries: dict[str, emission.LiveSummary] = field(default_factory=dict)  # the last of each part
    fed: dict[Place, int] = field(default_factory=lambda: defaultdict(int))  # messages the oracle has
    wanted_letters: list = field(default_factory=list)

    def __post_init__(self) -> None:
        self.wanted = oracle.Meter(dedup_horizon_ms=self.horizon_ms)

    def commit(self, snapshot: Snapshot) -> None:
        for part in (*snapshot.earlier, snapshot):  # one transaction
            self._keep(part)
            self._check_summary(part)
        self.check()

    def _keep(self, snapshot: Snapshot) -> None:
        part = snapshot.summary.part
        changed = harness.rows_of(snapshot.rows)
        for key, counters in changed.items():
            before = self.by_part[part].get(key, [0] * 6)
            assert all(a <= b for a, b in zip(before, counters, strict=True)), "a part's counters only grow"
        self.by_part[part].update(changed)
        for letter in snapshot.letters:
            reason, name = letter.rejection.reason, letter.rejection.field
            self.letters.append((letter.place, letter.offset, letter.line, reason, name, letter.value))
        for place, position in snapshot.positions.items():
            assert position.offset >= self.positions.get(place, Position(Offset(0), "")).offset
        self.positions.update(snapshot.positions)
        self.snapshots.append(snapshot)

    def _check_summary(self, snapshot: Snapshot) -> None:
        summary, rows = snapshot.summary, self.by_part[snapshot.summary.part]
        before = self.summaries.get(summary.part)
        assert summary.sequence == (before.sequence + 1 if before else 0)
        assert summary.tally.rejected == sum(summary.rejects.values())
        # Rows, cells and totals are the same tokens.
        assert list(summary.totals) == [sum(column) for column in zip(*rows.values(), [0] * 6, strict=True)]
        sums: harness.Rows = {}
        for (start, _, model, chip), counters in rows.items():
            harness.add_rows(sums, {(start, model, chip): counters})  # type: ignore[dict-item]
        known = self.cells[summary.part]
        given = {(cell.window_start, cell.model, cell.chip): list(cell.counters) for cell in summary.cells}
        assert len(given) == len(summary.cells), "a cell is listed once"
        assert given == {key: counters for key, counters in sums.items() if known.get(key) != counters}
        known.update(given)
        # Sketches of the windows whose cells changed, each of all users of the window in this part.
        assert summary.sketches.keys() == {start for start, _, _ in given}
        for start, registers in summary.sketches.items():
            users = {user for at, user, _, _ in rows if at == start}
            assert round(hyperloglog.estimate(registers)) == len(users), "few users are counted exactly"
        users_sum: dict[str, int] = defaultdict(int)
        for (_, user, _, _), counters in rows.items():
            users_sum[user] += counters[1] + counters[4]
        top = sorted(((user, n) for user, n in users_sum.items() if n), key=lambda item: (-item[1], item[0]))
        assert [n for _, n in summary.top_users] == [n for _, n in top][: counting.TOP_USERS]
        self.summaries[summary.part] = summary

    def rows(self) -> harness.Rows:
        total: harness.Rows = {}
        for rows in self.by_part.values():
            harness.add_rows(total, rows)
        return total

    def check(self) -> None:
        """What is committed counts exactly the messages before the committed offsets."""
        for place, position in self.positions.items():
            for message in self.log[place][self.fed[place] :]:
                if message.offset >= position.offset:
                    break
                self._feed(place, message)
        assert self.rows() == self.wanted.rows
        assert sorted(self.letters) == sorted(self.wanted_letters)
        tally = Tally()
        for summary in self.summaries.values():
            tally -= Tally() - summary.tally
        assert tally == harness.tally_of(self.wanted)
        self._check_tiles()

    def _feed(self, place: Place, message: Message) -> None:
        before = len(self.wanted.dead_letters)
        self.wanted.feed(NATIVE.oracle, message.value, message.time, place)
        self.wanted_letters += [(place, message.offset, *letter[2:]) for letter in self.wanted.dead_letters[before:]]
        self.fed[place] += 1

    def _check_tiles(self) -> None:
        """Ranges of all parts meet, and end at the committed offset."""
        ranges = defaultdict(list)
        for summary in self.summaries.values():
            places = [covered.place for covered in summary.ranges]
            assert len(places) == len(set(places)), "a part covers one range of a partition"
            for covered in summary.ranges:
                if covered.next > covered.first:
                    ranges[covered.place].append((covered.first, covered.next))
        for place, position in self.positions.items():
            at = 0
            for first, following in sorted(ranges[place]):
                assert first == at
                at = following
            assert position.offset == at

    def restart(self, places: Iterable[Place]) -> dict[Place, Start]:
        """Where a new meter takes up: docs of `Start` and of the offset's metadata."""
        starts = {}
        for place in places:
            position = self.positions.get(place)
            if position is None:
                starts[place] = Start(Offset(0), Offset(0), PartitionState(), TOPIC_ID, NATIVE.engine)
                continue
            state, topic_id = positions.decode(position.metadata)
            assert topic_id == TOPIC_ID and state.dedup_from is not None
            assert state.dedup_from <= position.offset
            starts[place] = Start(Offset(state.dedup_from), position.offset, state, TOPIC_ID, NATIVE.engine)
        return starts


Step = tuple[Place, int, int]  # so many messages of it, after so many that were there before


class Driver:
    """Hands a log to a Counting as a meter does: from where it was told to read on, in order, in pieces."""

    def __init__(
        self, log: Log, horizon_ms: int = 600_000, make: Callable[[], Engine] | None = None, **limits: int
    ) -> None:
        self.log, self.horizon_ms = log, horizon_ms
        self.make = make or (lambda: harness.make_engine(HostTarget(), dedup_horizon_ms=horizon_ms, **ROOMY | limits))
        self.books = Books(log, horizon_ms)
        self.runs = itertools.count()
        self.next: dict[Place, int] = {}  # index of the message to hand over
        self.foretold: Intake | None = None
        self.counting: Counting

    def start(self, places: Iterable[Place] | None = None) -> None:
        """A new process."""
        self.counting = Counting(self.make(), "meter-0", f"run-{next(self.runs)}", self.books.commit)
        self.next = {}
        self.begin(places or self.log)

    def begin(self, places: Iterable[Place]) -> None:
        starts = self.books.restart(places)
        self.counting.begin(starts)
        self._seek(starts)

    def drop(self) -> None:
        """What a meter does after any doubt."""
        starts = self.books.restart(self.next)
        self.counting.drop(starts)
        self._seek(starts)

    def end(self, places: Iterable[Place]) -> None:
        self.flip()
        self.counting.end(places)
        for place in places:
            self.next.pop(place, None)

    def _seek(self, starts: dict[Place, Start]) -> None:
        for place, start in starts.items():
            self.next[place] = sum(message.offset < start.read_from for message in self.log[place])

    def take(self, place: Place, count: int, again: int = 0, then: Step | None = None) -> None:
        """`again` so many messages before them, as a broker may after a seek. then: what is foretold to come next."""
        taken = self._intake(place, count, again)
        self.next[place] = min(self.next[place] + count, len(self.log[place]))
        self.foretold = self._intake(*then) if then is not None and then[0] in self.next else None
        if taken is not None:
            self.counting.take(taken, self.foretold)

    def _intake(self, place: Place, count: int, again: int) -> Intake | None:
        """The one that was foretold, if it has the same messages."""
        at, foretold = self.next[place], self.foretold
        messages = self.log[place][max(0, at - again) : at + count]
        if not messages:
            return None
        same = foretold is not None and (foretold.place, foretold.offsets.tolist()) == (
            place, [message.offset for message in messages],
        )  # fmt: skip
        return foretold if same else intake(place, messages, shape=at)

    def flip(self) -> Snapshot:
        snapshot = self.counting.flip()
        self.books.commit(snapshot)
        return snapshot

    def finish(self) -> Books:
        for place in self.next:
            self.take(place, len(self.log[place]))
        self.flip()
        for place in self.next:
            if messages := self.log[place]:
                assert self.books.positions[place].offset == messages[-1].offset + 1
        return self.books


# --- Strategies ---

ids = st.none() | st.integers(0, 6).map("id-{}".format)
junk = st.sampled_from([b"", b" ", b"{", b"[]", b"\xff", record(user=""), record(model=None), record(input_tokens=-1)])
good = st.builds(
    lambda request_id, late, user, model, chip, prefill, counts: record(
        request_id=request_id, timestamp=BASE_MS - late, user=user, model=model, chip=chip, prefill_chip=prefill,
        input_tokens=counts[0], output_tokens=counts[1],
    ),
    ids, st.sampled_from([0, 1, 59_000, 60_000, 3_600_000]), st.sampled_from(["u1", "u2", "é"]),
    st.sampled_from(["m1", "m2"]), st.sampled_from(["c1", "c2"]), st.sampled_from([None, None, "c2"]),
    st.tuples(st.integers(0, 5), st.integers(0, (1 << 40) - 1)),
)  # fmt: skip
lines = st.one_of(good, good, good, good, junk)
values = st.lists(lines, min_size=1, max_size=12).map(b"\n".join) | st.sampled_from([None, b"", b"\n"])
times = st.integers(0, 3500)


@st.composite
def logs(draw: st.DrawFn, most: int = 24) -> Log:
    """Two partitions, with gaps in their offsets; message times go up and down."""
    log: Log = {}
    for place in (A, B):
        offset = 0
        log[place] = []
        for value, time in draw(st.lists(st.tuples(values, times), max_size=most)):
            offset += draw(st.sampled_from([0, 0, 0, 1, 5]))
            log[place].append(Message(offset, value, BASE_MS + time))
            offset += 1
    return log


def lines_fit(log: Log) -> bool:
    """Messages may be larger than a tiny batch."""
    messages = (message for messages in log.values() for message in messages)
    return all(len(line) < TINY["batch_bytes"] for message in messages for line in oracle.records(message.value))


pieces = st.lists(st.tuples(st.sampled_from([A, B]), st.integers(1, 9), st.sampled_from([0, 0, 0, 3])), max_size=20)
horizons = st.sampled_from([1, 200, 1000, 600_000])


# --- Cuts, commits, parts ---


@pytest.mark.slow
@property_test
@given(log=logs(), cuts=pieces, flips=st.sets(st.integers(0, 20), max_size=6), horizon_ms=horizons)
def test_intakes_may_be_cut_anywhere(log, cuts, flips, horizon_ms):
    """Also where messages come twice, and wherever a commit falls."""
    driver = Driver(log, horizon_ms)
    driver.start()
    for index, (step, then) in enumerate(itertools.zip_longest(cuts, cuts[1:])):
        driver.take(*step, then=then)
        if index in flips:
            driver.flip()
    books = driver.finish()
    assert len(books.summaries) == 1 and driver.counting.parts_opened == {"start": 1}


@property_test
@given(log=logs(), cuts=pieces, flips=st.sets(st.integers(0, 20), max_size=6))
def test_a_full_part_is_committed_and_another_opened(log, cuts, flips):
    driver = Driver(log, 600_000, **TINY)
    assume(lines_fit(log))
    driver.start()
    for index, (step, then) in enumerate(itertools.zip_longest(cuts, cuts[1:])):
        driver.take(*step, then=then)
        if index in flips:
            driver.flip()
    books = driver.finish()
    opened = driver.counting.parts_opened
    assert opened.total() == opened["start"] + opened["full"] >= len(books.summaries)
    event(f"full parts: {min(opened['full'], 3)}")


def test_many_rows_fill_many_parts():
    log = make_log([(record(request_id=str(k), user=f"user-{k}"), k) for k in range(200)], step=2)
    driver = Driver(log, **TINY)
    driver.start()
    driver.take(A, 200)
    books = driver.finish()
    opened = driver.counting.parts_opened
    assert opened["full"] > 5 and len(books.summaries) == opened.total()
    assert books.snapshots[-1].parts_opened == opened
    assert len({summary.part for summary in books.summaries.values()}) == len(books.summaries)
    for name, (used, usable) in books.snapshots[0].fill.items():
        assert 0 <= used <= usable, name


# --- Restarts ---

actions = st.lists(
    st.sampled_from(["take", "take", "take", "take", "flip", "flip", "drop", "restart", "move", "fail"]), max_size=30
)


def play(driver: Driver, script: Sequence[str], steps: Sequence[tuple[Place, int, int]]) -> Books:
    driver.start()
    for index, (action, step) in enumerate(zip(script, itertools.cycle(steps), strict=False)):
        place, then = step[0], steps[(index + 1) % len(steps)]
        if action == "take" and place in driver.next:
            driver.take(*step, then=then)
        elif action == "flip":
            driver.flip()
        elif action == "drop":
            driver.drop()
        elif action == "fail":  # a flip whose commit came to nothing
            driver.counting.flip()
            driver.drop()
        elif action == "restart":
            driver.start()
        elif action == "move":  # to another meter and back
            driver.end([place])
            driver.begin([place])
    return driver.finish()


@pytest.mark.slow
@property_test
@given(
    log=logs(),
    script=actions,
    steps=st.lists(
        st.tuples(st.sampled_from([A, B]), st.integers(1, 9), st.sampled_from([0, 2])), min_size=1, max_size=9
    ),
    horizon_ms=horizons,
    tiny=st.booleans(),
)
def test_a_restart_changes_no_answer(log, script, steps, horizon_ms, tiny):
    limits = TINY if tiny else {}
    assume(not tiny or lines_fit(log))
    play(Driver(log, horizon_ms, **limits), script, steps)


@pytest.mark.parametrize("restart", ["drop", "start", "move"])
@pytest.mark.parametrize("at", range(8))
@pytest.mark.parametrize(
    "times",
    [
        [0, 10, 999, 1000, 1500, 1999, 1000, 1999],
        [0, 999, 1998, 1999, 1, 2, 3, 1999],
        [999, 0, 1000, 0, 0, 0, 0, 0],
        [0, 0, 2000, 0, 0, 2999, 3999, 0],
        [0, 5000, 5001, 0, 5999, 6000, 6001, 6999],
    ],
)
def test_duplicates_are_known_wherever_a_restart_falls(times, at, restart):
    """One id in every message, and another one that is new in each."""
    log = make_log(
        [(record(request_id="x") + b"\n" + record(request_id=f"n{k}"), time) for k, time in enumerate(times)], step=3
    )
    driver = Driver(log, HORIZON_MS)
    driver.start()
    driver.take(A, at)
    driver.flip()
    {"drop": driver.drop, "start": driver.start, "move": lambda: (driver.end([A]), driver.begin([A]))}[restart]()
    books = driver.finish()
    assert books.wanted.duplicates > 0


@pytest.mark.parametrize("restart_at", range(7))
def test_an_id_of_every_generation_is_known_after_a_restart(restart_at):
    """A restart reads two generations again; whether the copies there were counted it cannot know, and need not."""
    times = [0, 1000, 2000, 2001, 3999, 4000, 6000]  # the last one is two generations behind
    log = make_log([(record(request_id="x"), time) for time in times])
    driver = Driver(log, HORIZON_MS)
    driver.start()
    driver.take(A, restart_at)
    driver.flip()
    driver.start()
    assert driver.finish().wanted.counted == 2


def test_what_was_not_committed_is_counted_once():
    log = make_log([(record(request_id=str(k)), 0) for k in range(10)])
    driver = Driver(log)
    driver.start()
    driver.take(A, 4)
    driver.flip()
    driver.take(A, 3)  # dropped
    driver.drop()
    books = driver.finish()
    assert books.wanted.counted == 10 and driver.counting.parts_opened == {"start": 1, "failure": 1}
    assert [summary.tally.counted for summary in books.summaries.values()] == [4, 6]


def test_a_refill_shows_nowhere():
    """No rows, no letters, no tally; and its partition has no position before it is over."""
    last = record(request_id="b", timestamp=BASE_MS + 70)
    log = make_log([(record(request_id="a"), 0), (b"{", 0), (b"", 0), (last, 90), (record(request_id="a"), 0)])
    driver = Driver(log)
    driver.start()
    driver.take(A, 4)
    driver.flip()
    driver.start()
    driver.take(A, 2)  # the refill's first half
    middle = driver.counting.flip()
    assert middle.positions == {} and not middle.letters and middle.summary.tally == Tally()
    assert sum(map(len, middle.rows)) == 0 and not middle.summary.cells and not middle.summary.sketches
    [standing] = middle.summary.ranges
    assert (standing.first, standing.next) == (4, 4)
    assert standing.state == PartitionState(BASE_MS + 70, BASE_MS + 90, 0), "as it was committed"
    driver.take(A, 2)
    after = driver.counting.flip()
    assert after.positions[A].offset == 4 and after.summary.tally == Tally()
    driver.take(A, 1)
    assert driver.counting.flip().summary.tally == Tally(duplicates=1)


@pytest.mark.parametrize("count", [1, 3, 4, 6])
def test_one_intake_may_hold_the_end_of_the_refill(count):
    log = make_log([(record(request_id=f"id-{k % 3}"), 0) for k in range(6)])
    driver = Driver(log)
    driver.start()
    driver.take(A, 4)
    driver.flip()
    driver.start()
    for _ in range(0, 6, count):
        driver.take(A, count)
    assert driver.finish().wanted.duplicates == 3


def test_times_survive_a_restart_with_nothing_to_read():
    log = make_log(
        [(record(request_id="a", timestamp=BASE_MS - 5), 100), (record(request_id="b", timestamp=BASE_MS - 9), 50)]
    )
    driver = Driver(log)
    driver.start()
    first = positions.decode(driver.finish().positions[A].metadata)[0]
    assert first == PartitionState(BASE_MS - 5, BASE_MS + 100, 0)
    driver.start()
    driver.flip()  # still refilling: nothing to say
    again = driver.finish()
    assert positions.decode(again.positions[A].metadata)[0] == first


def test_a_silent_partition_gets_a_position():
    driver = Driver({A: [], B: []})
    driver.start()
    assert driver.counting.has_news
    snapshot = driver.flip()
    assert {place: position.offset for place, position in snapshot.positions.items()} == {A: 0, B: 0}
    state, topic_id = positions.decode(snapshot.positions[A].metadata)
    assert (state, topic_id) == (PartitionState(None, None, 0), TOPIC_ID)
    assert not driver.counting.has_news
    assert [(covered.first, covered.next) for covered in snapshot.summary.ranges] == [(0, 0), (0, 0)]


# --- Partitions come and go ---


def test_a_partition_that_comes_back_opens_a_part():
    log = make_log([(record(request_id=f"id-{k % 4}"), 0) for k in range(8)]) | make_log([(record(), 0)] * 8, B)
    driver = Driver(log)
    driver.start()
    driver.take(A, 3)
    driver.take(B, 3)
    driver.end([A])
    driver.take(B, 2)
    elsewhere = driver.flip()  # the part still tells of A's range
    assert {(c.place, c.first, c.next) for c in elsewhere.summary.ranges} == {(A, 0, 3), (B, 0, 5)}
    assert set(elsewhere.positions) == {B}
    driver.begin([A])
    books = driver.finish()
    assert driver.counting.parts_opened == {"start": 1, "rebalance": 1} and len(books.summaries) == 2


def test_a_partition_that_comes_for_the_first_time_opens_none():
    log = make_log([(record(), 0)] * 4) | make_log([(record(), 0)] * 4, B)
    driver = Driver(log)
    driver.start([A])
    driver.take(A, 2)
    driver.begin([B])
    books = driver.finish()
    assert driver.counting.parts_opened == {"start": 1}
    assert set(books.positions) == {A, B} and books.wanted.counted == 8


def test_an_old_part_is_closed_behind_a_commit_and_an_empty_one_is_kept():
    log = make_log([(record(request_id=str(k)), k) for k in range(30)])
    driver = Driver(log)
    driver.start()
    driver.counting.turn()
    assert driver.counting.parts_opened == {"start": 1}
    for _ in range(3):
        driver.take(A, 10)
        driver.counting.turn()
    books = driver.finish()
    assert driver.counting.parts_opened == {"start": 1, "age": 3}
    assert books.wanted.counted == 30


def test_a_partition_that_comes_back_unread_has_one_range():
    """Nothing of it was counted in this part, so the part stays open."""
    driver = Driver(make_log([(record(request_id="a"), 0), (record(request_id="b"), 7)]))
    driver.start()
    driver.end([A])
    driver.begin([A])
    driver.take(A, 2)
    [covered] = driver.counting.flip().summary.ranges
    assert (covered.first, covered.next, covered.state) == (0, 2, PartitionState(BASE_MS, BASE_MS + 7, 0))
    assert driver.counting.parts_opened == {"start": 1}


def test_the_part_of_a_returning_partition_is_committed_before():
    log = make_log([(record(), 0)] * 4) | make_log([(record(), 0)] * 4, B)
    driver = Driver(log)
    driver.start()
    driver.take(A, 2)
    driver.end([A])
    driver.take(B, 3)
    commits = len(driver.books.snapshots)
    driver.begin([A])
    assert len(driver.books.snapshots) == commits + 1
    assert driver.books.positions[B].offset == 3, "what was counted of the others goes with it"
    driver.finish()


def test_messages_of_a_partition_that_went_are_ignored():
    log = make_log([(record(), 0)] * 4) | make_log([(record(), 0)] * 4, B)
    driver = Driver(log)
    driver.start()
    driver.take(A, 2)
    driver.end([A])
    driver.counting.take(intake(A, log[A][2:]))
    driver.counting.end([A])  # twice is once
    driver.flip()
    assert driver.books.wanted.counted == 2


# --- Messages that came already ---


@property_test
@given(spans=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=12), step=st.integers(1, 3))
def test_messages_that_came_already_are_ignored(spans, step):
    """Whatever was handed over before, in whatever overlap; nothing is skipped."""
    log = make_log([(record(request_id=None, user=f"u{k}"), k) for k in range(12)], step=step)
    driver = Driver(log)
    driver.start()
    reached = 0
    for begin, end in spans:
        begin = min(begin, reached)  # a broker leaves nothing out
        if begin < end:
            driver.counting.take(intake(A, log[A][begin:end]))
            reached = max(reached, end)
    driver.next[A] = reached
    assert driver.finish().wanted.counted == 12


@property_test
@given(log=logs(), cuts=st.lists(st.integers(0, 24), max_size=4), begin=st.integers(0, 24), end=st.integers(0, 24))
def test_intakes_join_and_split(log, cuts, begin, end):
    """However they are cut and joined, the same messages with the same records."""
    messages = log[A]
    assume(messages)
    whole = intake(A, messages)
    pieces = [intake(A, piece, shape=index) for index, piece in enumerate(harness.cut(messages, cuts))]
    joined = Intake.together(pieces)
    begin, end = min(begin, len(messages)), max(min(begin, len(messages)), min(end, len(messages)))
    for found, wanted in (
        (whole, messages),
        (joined, messages),
        (whole.part(begin, end), messages[begin:end]),
        (joined.part(begin, end), messages[begin:end]),
        (joined.part(begin, len(messages)).part(0, end - begin), messages[begin:end]),
    ):
        assert found.offsets.tolist() == [message.offset for message in wanted]
        assert found.times.tolist() == [message.time for message in wanted]
        starts = [0, *found.ends.tolist()]
        data = b"".join(piece.tobytes() for piece in found.pieces)
        assert len(data) == starts[-1]
        texts = [data[first:after] for first, after in itertools.pairwise(starts)]
        assert all(text.endswith(b"\n") for text in texts)
        assert [oracle.records(text) for text in texts] == [oracle.records(message.value) for message in wanted]


@property_test
@given(log=logs(), cuts=st.lists(st.integers(0, 24), max_size=8), in_place=st.booleans())
def test_what_is_in_a_buffer_is_not_joined(log, cuts, in_place):
    messages = log[A]
    assume(messages)
    pieces = [intake(A, piece, shape=index) for index, piece in enumerate(harness.cut(messages, cuts))]
    found = list(Intake.gathered(pieces, in_place))
    assert [int(offset) for each in found for offset in each.offsets] == [message.offset for message in messages]
    alone = [piece for piece in pieces if piece.buffer is not None] if in_place else []
    assert [each for each in found if each.buffer is not None and each in alone] == alone
    assert len(found) <= 2 * len(alone) + 1
    assert all(len(each.pieces) == 1 for each in found if each.buffer is not None)


@property_test
@given(sizes=st.lists(st.integers(0, 90), min_size=1, max_size=200), batch_bytes=st.integers(100, 1000))
@example(sizes=[0, 0, 7, 90, 9, 90, 9], batch_bytes=100)  # of two that follow each other, one may be nearly empty
def test_batches_are_few_and_of_about_the_same_size(sizes, batch_bytes):
    whole = intake(A, [Message(k, b"x" * size, 0) for k, size in enumerate(sizes)])
    found = list(counting._batches(whole, batch_bytes))
    assert [int(offset) for batch in found for offset in batch.offsets] == list(range(len(sizes)))
    assert b"".join(bytes(piece) for batch in found for piece in batch.pieces) == bytes(np.concatenate(whole.pieces))
    assert all(batch.size <= batch_bytes or len(batch.offsets) == 1 for batch in found)
    largest = max(sizes) + 1
    assert len(found) <= -(-whole.size // max(batch_bytes // 2, batch_bytes - largest)) + 1
    if len(found) == -(-whole.size // batch_bytes):  # otherwise large messages left holes
        assert max(batch.size for batch in found[:-1] or found) <= whole.size / len(found) + largest


def test_an_empty_intake_is_nothing():
    driver = Driver({A: []})
    driver.start()
    driver.flip()
    driver.counting.take(intake(A, []))
    assert not driver.counting.has_news


def test_behind_a_failed_commit_nothing_is_counted_until_it_is_dropped():
    """The messages behind the failure would be counted, and those before it lost with their part."""
    log = make_log([(record(request_id=str(k), user=f"user-{k}"), k) for k in range(100)]) | make_log(
        [(record(), 0)], B
    )
    driver = Driver(log, **TINY)
    driver.start()

    class Failure(Exception):
        pass

    def fail(snapshot: Snapshot) -> None:
        raise Failure

    keep, driver.counting._commit = driver.counting._commit, fail
    with pytest.raises(Failure):
        driver.take(A, 60)
    driver.counting._commit = keep
    driver.take(A, 10)
    driver.take(B, 1)
    assert not driver.books.snapshots
    driver.drop()
    assert driver.finish().wanted.counted == 101


# --- Limits ---


def test_letters_are_committed_before_they_fill_the_memory(monkeypatch):
    monkeypatch.setattr(counting, "LETTERS_BYTES_MAX", 200)
    log = make_log([(b"x" * 30, 0)] * 100)
    driver = Driver(log)
    driver.start()
    for _ in range(20):
        driver.take(A, 5)
        held = sum(len(snapshot.letters) for snapshot in driver.books.snapshots)
        assert driver.next[A] - held <= 200 // 30 + 5
    books = driver.finish()
    assert len(books.snapshots) >= 10 and len(books.letters) == 100
    assert driver.counting.parts_opened == {"start": 1}, "it takes no new part"


def test_as_many_letter_bytes_as_allowed_wait(monkeypatch):
    monkeypatch.setattr(counting, "LETTERS_BYTES_MAX", 300)
    driver = Driver(make_log([(b"x" * 30, 0)] * 11))
    driver.start()
    driver.take(A, 10)
    assert not driver.books.snapshots
    driver.take(A, 1)
    assert len(driver.books.snapshots) == 1 and len(driver.books.letters) == 11


BATCH_BYTES = 900


@pytest.mark.parametrize("before", [0, 1, 3])
@pytest.mark.parametrize("size", [BATCH_BYTES - 2, BATCH_BYTES - 1])
def test_a_message_may_fill_a_batch(size, before):
    small = [(record(request_id=str(k)), 0) for k in range(before)]
    driver = Driver(make_log([*small, (b"y" * size, 0), *small]), **TINY)
    driver.start()
    books = driver.finish()
    assert [len(letter[-1]) for letter in books.letters] == [size]


@pytest.mark.parametrize("size", [BATCH_BYTES, BATCH_BYTES + 1, 10 * BATCH_BYTES])
@pytest.mark.parametrize("refill", [False, True])
def test_a_line_that_no_batch_holds_names_its_place_and_the_setting(size, refill):
    """Where batches are smaller than the longest record that counts, which no command allows."""
    log = make_log([(record(), 0), (record() + b"\n" + b"y" * size, 0)], first=0, step=41)
    driver = Driver(log, **TINY)
    if refill:
        state = PartitionState(BASE_MS, BASE_MS, 0)
        driver.books.positions[A] = Position(Offset(42), positions.encode(state, TOPIC_ID))
    driver.start()
    with pytest.raises(LineTooLarge) as caught:
        driver.counting.take(intake(A, log[A]))
    message = str(caught.value)
    for words in ("inference-logs-0", "offset 41", f"batch_bytes = {BATCH_BYTES}", "set it to 1048578 or more"):
        assert words in message
    if not refill:
        assert driver.flip().positions[A].offset == 1, "what came before it is counted, and nothing of it"


def test_a_message_larger_than_any_part_is_counted_exactly_in_one_transaction():
    """Of tables that hold a few records. Its line numbers, duplicates and dead letters are those of a whole one."""
    lines = [record(request_id=str(k), user=f"u{k % 40}", model=f"m{k % 7}") for k in [*range(60), *range(20)]]
    lines[10:10] = [b"{", b"", b"  "]
    lines += [b"[]", lines[0]]
    after = record(request_id="59")  # of the large message
    driver = Driver(make_log([(record(), 0), (b"\n".join(lines), 0), (after, 5)]), **TINY)
    driver.start()
    books = driver.finish()
    whole = [snapshot for snapshot in books.snapshots if snapshot.earlier]
    assert len(whole) == 1 and len(whole[0].earlier) > 1
    assert [letter[2] for letter in books.letters if letter[1] == 1] == [10, len(lines) - 2]
    assert books.wanted.duplicates >= 21
    driver.start()  # a restart reads its request ids in pieces, too
    driver.log[A].append(Message(3, record(request_id="7"), BASE_MS + 6))
    before = books.wanted.duplicates
    assert driver.finish().wanted.duplicates == before + 1


def test_a_message_of_20_megabytes_is_counted_exactly_whatever_lines_are_in_it():
    """Its records that no batch holds are too long, or empty; a dead letter has the head, the size and the hash."""
    limits = harness.LARGE
    long, blank = b"z" * 5_000_000, b" \t\r" * 1_700_000
    some = [record(request_id=str(k), user=f"u{k % 50}", model=f"m{k % 3}", pad="p" * 900) for k in range(8000)]
    some[17] = some[7900] = b"{"
    value = b"\n".join([*some[:4000], long, blank, *some[4000:], b"x" * 2_000_000]) + b"\n"
    assert len(value) > 20_000_000
    driver = Driver(make_log([(record(), 0), (value, 0), (some[5], 0)]), **limits)
    driver.books.check = lambda: None  # the dead letters are not whole
    driver.start()
    books = driver.finish()
    wanted = oracle.Meter(dedup_horizon_ms=600_000)
    for message in driver.log[A]:
        wanted.feed(NATIVE.oracle, message.value, message.time, A)
    assert books.rows() == wanted.rows
    tallies = Tally()
    for summary in books.summaries.values():
        tallies -= Tally() - summary.tally
    assert tallies == harness.tally_of(wanted) and tallies.empty == 1 and tallies.duplicates == 1
    found = [letter for snapshot in books.snapshots for letter in snapshot.letters]
    assert [(letter.line, letter.rejection.reason, letter.size) for letter in found] == [
        (17, "invalid_json", None), (4000, "too_long", len(long)), (7902, "invalid_json", None),
        (8002, "too_long", 2_000_000),
    ]  # fmt: skip
    assert found[1].value == long[: emission.LETTER_HEAD_BYTES]
    assert found[1].sha256 == hashlib.sha256(long).hexdigest()
    assert [name for name, _ in emission.rejected_headers(found[1])][-2:] == ["size", "sha256"]


# --- What a commit says ---


def test_live_cells_are_those_that_changed():
    log = make_log([(record(model="m1"), 0), (record(model="m2"), 0), (record(model="m1"), 0), (b"{", 0)])
    driver = Driver(log)
    driver.start()
    driver.take(A, 2)
    assert {cell.model: cell.counters[0] for cell in driver.flip().summary.cells} == {"m1": 1, "m2": 1}
    driver.take(A, 1)
    assert {cell.model: cell.counters[0] for cell in driver.flip().summary.cells} == {"m1": 2}
    driver.take(A, 1)
    rejected = driver.flip()
    assert (rejected.summary.cells, dict(rejected.summary.sketches)) == ([], {})
    assert rejected.summary.tally == Tally(counted=3, rejected=1) and rejected.summary.rejects == {"invalid_json": 1}


def test_nothing_new_says_nothing_new():
    driver = Driver(make_log([(record(), 0), (b"{", 0)]))
    driver.start()
    before = driver.finish().snapshots[-1]
    assert not driver.counting.has_news
    after = driver.flip()
    assert sum(map(len, after.rows)) == 0 and not after.letters and not after.summary.cells
    assert after.positions == before.positions
    assert after.summary == dataclasses.replace(before.summary, sequence=1, cells=[], sketches={})


def test_a_snapshot_does_not_change_while_counting_goes_on():
    """It is written by another thread."""
    log = make_log([(record(user=f"user-{k % 3}", request_id=str(k)), k) for k in range(30)] + [(b"{", 0)] * 4)
    driver = Driver(log)
    driver.start()
    driver.take(A, 10)
    snapshot = driver.counting.flip()
    rows, summary = (
        harness.rows_of(snapshot.rows),
        dataclasses.replace(snapshot.summary, ranges=list(snapshot.summary.ranges)),
    )
    sketches = {start: registers.copy() for start, registers in snapshot.summary.sketches.items()}
    live = emission.live_messages(snapshot.summary, 0, {})
    driver.counting.take(intake(A, log[A][10:]))
    driver.counting.flip()
    assert harness.rows_of(snapshot.rows) == rows and snapshot.summary == summary
    assert emission.live_messages(snapshot.summary, 0, {}) == live and snapshot.letters == []
    for start, registers in sketches.items():
        assert (snapshot.summary.sketches[start] == registers).all()


@pytest.mark.slow
@property_test
@given(log=logs(12), cuts=pieces)
def test_live_summaries_obey_their_schema(log, cuts):
    driver = Driver(log)
    driver.start()
    for place, count, again in cuts:
        driver.take(place, count, again)
        driver.flip()
    for snapshot in driver.finish().snapshots:
        for message in emission.live_messages(snapshot.summary, BASE_MS, {}):
            validator("live").validate(json.loads(message))
        for rows in snapshot.rows:
            for keys, found in emission.usage_messages(rows, snapshot.summary.part):
                for key, value in zip(keys.tolist(), found.tolist(), strict=True):
                    validator("usage-key").validate(json.loads(key))
                    validator("usage").validate(json.loads(value))


def test_parts_have_names_of_their_own():
    driver = Driver(make_log([(record(user=f"user-{k}"), 0) for k in range(60)]), **TINY)
    for _ in range(2):
        driver.start()
        driver.take(A, 15)
        driver.flip()
        driver.drop()
    names = [summary.part for summary in driver.finish().summaries.values()]
    assert len(names) == len(set(names)) >= 3


# --- Every target ---


def test_targets_agree(make_engine):
    log = make_log(
        [(record(request_id=f"id-{k % 17}", user=f"user-{k % 5}", model=f"m{k % 3}"), 40 * k) for k in range(120)],
        step=2,
    )
    log[A][50] = Message(log[A][50].offset, b"{\n" + record() + b"\n", BASE_MS)
    log |= make_log([(record(chip="c2", prefill_chip="c3"), 0), (None, 0), (b"nonsense", 0)] * 5, B)
    for limits in ({}, TINY):
        driver = Driver(log, 5000, lambda limits=limits: make_engine(dedup_horizon_ms=5000, **ROOMY | limits))
        steps = [(A, 13, 0), (B, 4, 0), (A, 20, 3), (A, 7, 0)]
        books = play(driver, ["take", "flip", "take", "take", "restart", "take", "drop", "take", "move", "take"], steps)
        assert books.wanted.duplicates > 0 and books.wanted.rejected == 6
