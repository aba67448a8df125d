"""What a live meter asks of the engine beside counting: to remember, a partition's times and offsets, changed cells."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import harness, oracle
from tests.harness import shipped
from tokenometer.kernels.engine import Engine
from tokenometer.kernels.values import PartitionState, Tally
from tokenometer.processor.records import hyperloglog

NATIVE = shipped("native")
NOW_MS = 1_795_000_000_000  # a whole number of horizons
WINDOW_MS = 60_000
HORIZON_MS = 1000
SMALL = {
    "rows": 1 << 12,
    "cells": 1 << 10,
    "texts": 1 << 11,
    "windows": 16,
    "arena_bytes": 1 << 17,
    "batch_bytes": 1 << 14,
    "tile_records": 16,
}

property_test = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


def record(**fields: object) -> bytes:
    """A native record; None leaves a field out."""
    known = {"timestamp": NOW_MS, "user": "u", "model": "m", "chip": "c", "input_tokens": 10, "output_tokens": 5}
    return json.dumps({name: value for name, value in (known | fields).items() if value is not None}).encode()


def offsets_of(count: int, first: int = 0) -> np.ndarray:
    return np.arange(first, first + count, dtype=np.int64)


def load(engine: Engine, values: list, times: list[int] | None = None, partition: object = 0, first: int = 0):
    times = [NOW_MS] * len(values) if times is None else times
    batch = engine.pack(values, times, partition, offsets_of(len(values), first))
    return engine.load(batch, NATIVE.engine)


def count(engine: Engine, values: list, times: list[int] | None = None, partition: object = 0, first: int = 0) -> list:
    """The dead letters."""
    progress = engine.count(load(engine, values, times, partition, first))
    assert progress.next_message == len(values)
    return progress.dead_letters


def remember(
    engine: Engine, values: list, times: list[int] | None = None, partition: object = 0, first: int = 0
) -> None:
    assert engine.remember(load(engine, values, times, partition, first)) is None


def cells_of(cells) -> dict:
    found = {(cell.window_start, cell.model, cell.chip): cell.counters for cell in cells}
    assert len(found) == len(cells), "a cell is listed once"
    return found


@pytest.fixture
def engine(make_engine) -> Engine:
    return make_engine(dedup_horizon_ms=HORIZON_MS, **SMALL)


# --- Remember ---

HOSTILE = [
    record(request_id="odd\\u0041", user="w\u00e9\n"),
    b"{",
    b"",
    None,
    b"[]",
    record(user=""),
    b"{}\n\n" + record(),
]


def test_what_is_remembered_shows_nowhere(engine):
    """Names, rows, cells, tally, sketches, changes: all as in an engine that never ran."""
    remember(engine, [record(request_id=f"id-{k}", user=f"user-{k}", prefill_chip="p") for k in range(100)] + HOSTILE)
    assert engine.tally() == Tally()
    assert harness.rows_of(engine.changes()) == {}
    assert engine.cells() == engine.changed_cells() == []
    assert engine.totals() == (0,) * 6 and engine.top_users(5) == [] and engine.user_tokens() == {}
    assert engine.sketches() == {} and engine.unsketched_rows() == 0
    assert engine.fill() == {name: (0, usable) for name, (_, usable) in engine.fill().items()}


def test_what_was_counted_before_is_not_touched(engine):
    count(engine, [record(request_id="a", user="ann")])
    before = engine.tally(), engine.cells(), engine.user_tokens(), engine.fill()
    rows = harness.rows_of(engine.changes())
    remember(engine, [record(request_id="b", user="bob", model="other", chip="x"), *HOSTILE], first=1)
    assert (engine.tally(), engine.cells(), engine.user_tokens(), engine.fill()) == before
    assert harness.rows_of(engine.changes()) == {}, "no row has changed"
    count(engine, [record(request_id="c", user="ann")], first=9)
    assert harness.rows_of(engine.changes()) == {key: [2 * n for n in counters] for key, counters in rows.items()}


def test_remembered_ids_are_duplicates(engine):
    remember(engine, [record(request_id="a"), b"{\n" + record(request_id="b"), record(request_id=None)])
    again = [
        record(request_id="a", user="other"),
        record(request_id="b"),
        record(request_id="c"),
        record(request_id=None),
    ]
    [letter] = count(engine, again, first=3)
    assert (letter.rejection.reason, letter.value) == ("conflicting_duplicate", again[0])
    assert engine.tally() == Tally(counted=2, duplicates=2, conflicts=1)


def test_ids_of_rejected_records_are_not_remembered(engine):
    remember(engine, [record(request_id="a", user=""), record(request_id="b", timestamp=NOW_MS + 7_200_000)])
    count(engine, [record(request_id="a"), record(request_id="b")], first=2)
    assert engine.tally() == Tally(counted=2)


def test_ids_are_remembered_for_their_partition(engine):
    remember(engine, [record(request_id="a")], partition="p")
    count(engine, [record(request_id="a")], partition="q")
    assert engine.tally() == Tally(counted=1)
    count(engine, [record(request_id="a")], partition="p", first=1)
    assert engine.tally() == Tally(counted=1, duplicates=1)


def test_the_referee_is_asked_for_remembered_records_too(engine):
    """An id with an escape, which the kernels leave to the referee."""
    odd = record(request_id="odd").replace(b'"odd"', b'"\\u006fdd"')
    remember(engine, [odd])
    count(engine, [record(request_id="odd")], first=1)
    assert engine.tally() == Tally(duplicates=1)


def test_a_remembered_partition_may_be_larger_than_any_part(make_engine):
    """Remembering reserves no rows: ten times what a part may hold goes by without one."""
    engine = make_engine(dedup_horizon_ms=HORIZON_MS, **harness.TINY)
    values = [record(request_id=f"id-{k}", user=f"user-{k}") for k in range(300)]
    for first in range(0, 300, 3):
        remember(engine, values[first : first + 3], first=first)
    assert engine.parts_opened == 1
    run = harness.Run(engine, NATIVE)
    for first in range(0, 300, 3):
        run.feed(values[first : first + 3], [NOW_MS] * 3)
    assert engine.tally() == Tally(duplicates=300)


ids = st.none() | st.integers(0, 5).map("id-{}".format)
messages = st.lists(st.tuples(ids, st.integers(0, 3000)), min_size=1, max_size=25)


@property_test
@given(
    log=messages,
    where=st.lists(st.integers(0, 25), max_size=4),
    known=st.integers(0, 25),
    horizon_ms=st.sampled_from([1, 300, 1000]),
)
def test_remembering_is_counting_without_the_counts(make_engine, log, where, known, horizon_ms):
    """After either, whatever follows gets the same verdicts, and the partition has the same state."""
    values = [record(request_id=identity, user=f"user-{k}") for k, (identity, _) in enumerate(log)]
    times = [NOW_MS + time for _, time in log]
    known = min(known, len(log))
    tallies, states = [], []
    for refill in (False, True):
        engine = make_engine(dedup_horizon_ms=horizon_ms, **SMALL)
        for span in harness.cut(range(known), where):
            if span:
                do = remember if refill else count
                do(engine, [values[k] for k in span], [times[k] for k in span], first=span[0])
        before = engine.tally()
        for span in harness.cut(range(known, len(log)), [at - known for at in where]):
            if span:
                count(engine, [values[k] for k in span], [times[k] for k in span], first=span[0])
        tallies.append(engine.tally() - before)
        state = engine.partition_state(0)
        states.append((state.log_time_ms, state.dedup_from))
    assert tallies[0] == tallies[1] and states[0] == states[1]


# --- The state of a partition ---


def test_a_new_partition_knows_nothing(engine):
    assert engine.partition_state("new") == PartitionState(None, None, None)


def test_the_watermark_is_the_highest_event_time_of_an_accepted_record(engine):
    values = [
        record(timestamp=NOW_MS - 50),
        record(timestamp=NOW_MS - 90),
        record(timestamp=NOW_MS + 500, user=""),  # rejected
        record(timestamp=NOW_MS + 7_200_000),  # too far ahead
        b"{",
    ]
    count(engine, values)
    assert engine.partition_state(0).watermark_ms == NOW_MS - 50
    count(engine, [record(timestamp=NOW_MS - 70)], first=5)
    assert engine.partition_state(0).watermark_ms == NOW_MS - 50, "it does not go back"
    count(engine, [record(timestamp=NOW_MS + 60_000)], first=6)
    assert engine.partition_state(0).watermark_ms == NOW_MS + 60_000
    assert engine.partition_state(1).watermark_ms is None, "each partition has its own"


def test_only_rejected_records_leave_no_watermark(engine):
    count(engine, [b"{", b"", record(user="")])
    state = engine.partition_state(0)
    assert state.watermark_ms is None and state.log_time_ms == NOW_MS


def test_a_record_at_the_epoch_is_a_watermark(engine):
    count(engine, [record(timestamp=0)])
    assert engine.partition_state(0).watermark_ms == 0


def test_a_watermark_may_come_from_the_referee(engine):
    odd = record(timestamp=NOW_MS - 3).replace(b'"user"', b'"us\\u0065r"')
    count(engine, [odd])
    assert engine.partition_state(0).watermark_ms == NOW_MS - 3


def test_a_duplicates_event_time_counts_for_the_watermark(engine):
    """It is an accepted record of the log, whatever dedup says of it: so a refill cannot make a difference."""
    count(engine, [record(request_id="a", timestamp=NOW_MS - 5), record(request_id="a", timestamp=NOW_MS)])
    assert engine.tally() == Tally(counted=1, duplicates=1)
    assert engine.partition_state(0).watermark_ms == NOW_MS


def test_the_parts_end_does_not_touch_a_partition(engine):
    count(engine, [record(request_id="a", timestamp=NOW_MS - 5)], [NOW_MS + 7])
    before = engine.partition_state(0)
    engine.open_part()
    assert engine.partition_state(0) == before == PartitionState(NOW_MS - 5, NOW_MS + 7, 0)
    count(engine, [record(request_id="a")], first=1)
    assert engine.tally() == Tally(counted=1, duplicates=1)


def test_a_forgotten_partition_knows_nothing(engine):
    count(engine, [record()])
    engine.forget(0)
    engine.forget("never seen")
    assert engine.partition_state(0) == PartitionState()


@pytest.mark.parametrize(
    ("before", "resumed", "after"),
    [
        ((None, None), (None, None), (None, None)),
        ((None, None), (5, 7), (5, 7)),
        ((5, 7), (None, None), (5, 7)),
        ((5, 7), (4, 8), (5, 8)),
        ((5, 7), (6, 6), (6, 7)),
        ((None, 7), (6, None), (6, 7)),
    ],
)
def test_resume_takes_the_later_times(engine, before, resumed, after):
    for watermark, log_time in (before, resumed):
        engine.resume("p", PartitionState(watermark, log_time, 99))
    state = engine.partition_state("p")
    assert (state.watermark_ms, state.log_time_ms) == after


def test_resumed_log_time_decides_about_generations(engine):
    """A message that is older than the log time belongs to the log time's generation."""
    remember(engine, [record(request_id="a")], [NOW_MS], first=3)
    engine.resume(0, PartitionState(None, NOW_MS + 5 * HORIZON_MS, 3))
    count(engine, [record(request_id="a")], [NOW_MS], first=4)
    assert engine.tally() == Tally(counted=1)
    assert engine.partition_state(0) == PartitionState(NOW_MS, NOW_MS + 5 * HORIZON_MS, 4)


@pytest.mark.parametrize(
    ("times", "dedup_from"),
    [
        ([0], [0]),
        ([0, 999], [0, 0]),
        ([0, 1000], [0, 0]),  # generation 0 is the one before
        ([0, 1000, 2000], [0, 0, 1]),
        ([0, 1000, 1999, 2000, 2001, 3000], [0, 0, 0, 1, 1, 3]),
        ([0, 2000], [0, 1]),  # no message of the generation before
        ([0, 1000, 5000], [0, 0, 2]),
        ([0, 1000, 0, 2000, 1000, 0], [0, 0, 0, 1, 1, 1]),  # log time does not go back
        ([2500, 0, 0, 3000, 0, 4000], [0, 0, 0, 0, 0, 3]),
    ],
)
@pytest.mark.parametrize("batch_size", [1, 2, 9])
def test_dedup_from_is_where_the_generation_before_began(engine, times, dedup_from, batch_size):
    for first in range(0, len(times), batch_size):
        piece = times[first : first + batch_size]
        values = [record(request_id=f"id-{first + k}") for k in range(len(piece))]
        batch = engine.pack(values, [NOW_MS + time for time in piece], 0, 10 + 5 * offsets_of(len(piece), first))
        engine.count(engine.load(batch, NATIVE.engine))
        last = first + len(piece) - 1
        state = engine.partition_state(0)
        assert state.dedup_from == 10 + 5 * dedup_from[last]
        assert state.log_time_ms == NOW_MS + max(times[: last + 1])


@property_test
@given(
    log=messages,
    where=st.lists(st.integers(0, 25), max_size=5),
    horizon_ms=st.sampled_from([1, 300, 1000, 5000]),
    step=st.integers(1, 4),
)
def test_the_state_is_a_property_of_the_log(make_engine, log, where, horizon_ms, step):
    """Wherever batches are cut: a prefix maximum, and the first message of the generation before, if any was then."""
    engine = make_engine(dedup_horizon_ms=horizon_ms, **SMALL)
    first_of: dict[int, int] = {}  # generation -> its first message's offset
    wanted = oracle.Meter(dedup_horizon_ms=horizon_ms)
    for span in harness.cut(range(len(log)), where):
        values = [record(request_id=log[k][0], timestamp=NOW_MS + log[k][1] - 7) for k in span]
        times = [NOW_MS + log[k][1] for k in span]
        offsets = step * offsets_of(len(span), span[0])
        engine.count(engine.load(engine.pack(values, times, 0, offsets), NATIVE.engine))
        for value, time, offset in zip(values, times, offsets.tolist(), strict=True):
            wanted.feed(NATIVE.oracle, value, time)
            first_of.setdefault(wanted.log_time[0] // horizon_ms, offset)
        generation = wanted.log_time[0] // horizon_ms
        assert engine.partition_state(0) == PartitionState(
            NOW_MS + max(time for _, time in log[: span[-1] + 1]) - 7,
            wanted.log_time[0],
            first_of.get(generation - 1, first_of[generation]),
        )
    assert engine.tally() == harness.tally_of(wanted)


def test_a_file_has_no_log_time(engine):
    engine.count(engine.load(engine.pack([record(request_id="a")]), NATIVE.engine))
    state = engine.partition_state(0)
    assert (state.watermark_ms, state.log_time_ms) == (NOW_MS, None)


# --- Changed cells ---


def test_changed_cells_are_those_of_the_records_in_between(engine):
    assert engine.changed_cells() == []
    count(engine, [record(model="m1"), record(model="m2"), record(model="m1", user="other")])
    assert cells_of(engine.changed_cells()) == cells_of(engine.cells())
    assert engine.changed_cells() == []
    count(engine, [record(model="m2"), record(model="m3"), b"{"], first=3)
    changed = cells_of(engine.changed_cells())
    assert {model: counters[0] for (_, model, _), counters in changed.items()} == {"m2": 2, "m3": 1}
    assert len(engine.cells()) == 3, "and all of them are still there"


def test_a_duplicate_changes_no_cell(engine):
    count(engine, [record(request_id="a")])
    engine.changed_cells()
    count(engine, [record(request_id="a", input_tokens=99)], first=1)
    assert engine.changed_cells() == []


def test_changed_cells_and_changed_rows_do_not_know_of_each_other(engine):
    count(engine, [record()])
    assert len(harness.rows_of(engine.changes())) == 1
    assert len(engine.changed_cells()) == 1
    count(engine, [record()], first=1)
    assert len(engine.changed_cells()) == 1
    assert len(harness.rows_of(engine.changes())) == 1


def test_a_new_part_begins_with_changed_cells(engine):
    """With the same numbers as the cells of the part before: they are other cells."""
    count(engine, [record()])
    before = cells_of(engine.changed_cells())
    engine.open_part()
    assert engine.changed_cells() == []
    count(engine, [record()], first=1)
    assert cells_of(engine.changed_cells()) == before


def test_a_cell_without_a_token_is_a_changed_cell_once(engine):
    values = [record(chip="d", prefill_chip="p", input_tokens=0, output_tokens=0)]
    count(engine, values)
    assert {chip for _, _, chip in cells_of(engine.changed_cells())} == {"d", "p"}
    count(engine, values, first=1)
    assert {chip for _, _, chip in cells_of(engine.changed_cells())} == {"d"}, "only the request is new"


@property_test
@given(
    steps=st.lists(
        st.lists(
            st.tuples(
                st.sampled_from(["m1", "m2"]), st.sampled_from(["c1", "c2"]), st.integers(0, 2), st.integers(0, 3)
            ),
            max_size=6,
        ),
        max_size=8,
    )
)
def test_changed_cells_are_the_difference(make_engine, steps):
    engine = make_engine(**SMALL)
    known: dict = {}
    for index, step in enumerate(steps):
        values = [
            record(model=model, chip=chip, timestamp=NOW_MS - window * WINDOW_MS, input_tokens=tokens)
            for model, chip, window, tokens in step
        ]
        count(engine, values, first=10 * index)
        now = cells_of(engine.cells())
        assert cells_of(engine.changed_cells()) == {key: row for key, row in now.items() if known.get(key) != row}
        known = now


# --- Sketches ---


def test_sketches_of_wanted_windows_only(engine):
    starts = [NOW_MS - NOW_MS % WINDOW_MS - k * WINDOW_MS for k in range(4)]
    count(engine, [record(timestamp=start, user=f"user-{n}") for k, start in enumerate(starts) for n in range(k + 1)])
    every = engine.sketches()
    assert {start: round(hyperloglog.estimate(registers)) for start, registers in every.items()} == {
        start: k + 1 for k, start in enumerate(starts)
    }
    for wanted in ([], starts[:1], starts[1:3], [*starts, 0, starts[0] + 1]):
        found = engine.sketches(set(wanted))
        assert found.keys() == set(wanted) & set(starts)
        for start, registers in found.items():
            assert registers.dtype == np.uint8 and (registers == every[start]).all()


def test_a_sketch_does_not_change_while_counting_goes_on(engine):
    count(engine, [record(user="a")])
    [registers] = engine.sketches().values()
    before = registers.copy()
    count(engine, [record(user=f"user-{k}") for k in range(50)], first=1)
    assert (registers == before).all()


# --- Pack ---


@pytest.mark.parametrize(
    "values",
    [
        [],
        [b""],
        [None],
        [b"", b""],
        [None, b"", None],
        [b"\n"],
        [b"\n", b"\n"],
        [b"", b"\n", b"", None],
        [b"\n\n"],
        [b"a\n"],
        [b"a\n", b"a"],
        [b"a", b"\n", b"b\n"],
        [b"a", b"", b"b"],
        [b"\n", b"a"],
        [b"a\nb", None, b"c\n\n"],
        [b"x" * 100, b"", b"y" * 100 + b"\n"],
        [b""] * 300,
        [None, *[b"z\n"] * 300],
    ],
    ids=lambda values: repr(values)[:30],
)
def test_values_are_split_as_records_md_says(engine, values):
    """Each line that is no JSON is a dead letter with its place; white space only is empty."""
    letters = count(engine, values)
    lines = [(m, n, line) for m, value in enumerate(values) for n, line in enumerate(oracle.records(value))]
    assert [(letter.message, letter.line, letter.value) for letter in letters] == [at for at in lines if at[2].strip()]
    assert engine.tally().read == len(lines)


@property_test
@given(
    values=st.lists(
        st.none() | st.lists(st.sampled_from([b"\n", b"a", b" ", b"{}", b""]), max_size=5).map(b"".join), max_size=30
    )
)
def test_any_values_are_split_as_records_md_says(make_engine, values):
    engine = make_engine(**SMALL)
    letters = count(engine, values)
    wanted = oracle.Meter(dedup_horizon_ms=1 << 50)
    for value in values:
        wanted.feed(NATIVE.oracle, value, NOW_MS)
    found = [(0, x.message, x.line, x.rejection.reason, x.rejection.field, x.value) for x in letters]
    assert found == wanted.dead_letters and engine.tally() == harness.tally_of(wanted)


@property_test
@given(values=st.lists(st.none() | st.binary(max_size=12), max_size=40))
def test_a_batch_ends_each_message_with_one_newline(make_engine, values):
    engine = make_engine(**SMALL)
    batch = engine.pack(values, [NOW_MS] * len(values), "p", offsets_of(len(values), 7))
    starts = [0, *batch.message_end.tolist()]
    packed = [batch.space[begin:end].tobytes() for begin, end in zip(starts, starts[1:], strict=False)]
    # A final newline does not start another record, so it may stand once or be the message's own.
    assert [oracle.records(text) for text in packed] == [oracle.records(value) for value in values]
    assert all(text.endswith(b"\n") for text in packed)
    assert batch.length == (starts[-1] if values else 0)
    assert batch.message_offset.tolist() == list(range(7, 7 + len(values))) and batch.partition == "p"
    engine.count(engine.load(batch, NATIVE.engine))


@pytest.mark.parametrize("ending", [b"", b"\n"])
def test_a_full_batch_of_many_values(engine, ending):
    value = record(request_id=None) + ending
    each = len(value.removesuffix(b"\n")) + 1
    most = SMALL["batch_bytes"] // each
    assert count(engine, [value] * most) == []
    assert engine.tally() == Tally(counted=most)
    with pytest.raises(ValueError, match="batch_bytes"):
        engine.pack([value] * (most + 1))


def test_times_may_be_an_array_or_a_list(engine):
    values = [record(request_id="a"), record(request_id="a")]
    for times in ([NOW_MS, NOW_MS + 1], np.array([NOW_MS, NOW_MS + 1], np.uint64)):
        engine.count(engine.load(engine.pack(values, times, str(times), offsets_of(2)), NATIVE.engine))
        assert engine.partition_state(str(times)).log_time_ms == NOW_MS + 1
