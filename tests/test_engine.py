"""The engine against the oracle: what it answers depends on the log, not on batches, tiles, parts, threads or luck."""

import functools
import json
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import harness, mutate, oracle
from tests.bad_input import CASES, GOOD, TIME_MS, changed, padded
from tests.harness import LARGE, MIDDLE, TINY, Mapping, Piece, Run, shipped
from tokenometer.kernels import layout, room
from tokenometer.kernels import plan as plans
from tokenometer.kernels.engine import Limits, TablesTooSmall
from tokenometer.kernels.identities import IdentityMemoryError
from tokenometer.kernels.part import COUNTER_MAX, RECORD_TOKENS_MAX
from tokenometer.kernels.target import HostTarget
from tokenometer.processor.records import hyperloglog

NATIVE = shipped("native")
COUNT_END = 1 << 40

# Examples cost an engine each. The fixtures live as long as the session, so sharing them among examples is meant.
property_test = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


def line(**fields: object) -> bytes:
    """A native record; fields as Python values, None leaves one out."""
    record = {"timestamp": TIME_MS, "user": "u", "model": "m", "chip": "c", "input_tokens": 10, "output_tokens": 5}
    record |= fields
    given = {name: value for name, value in record.items() if value is not None}
    return json.dumps(given, separators=(",", ":")).encode()


# --- Strategies ---

names = st.one_of(st.sampled_from(["alice", "bob", "Zoë", "用户", "a/b"]), st.text(min_size=1, max_size=9))
counts = st.one_of(st.integers(0, 9), st.integers(0, COUNT_END - 1))
junk = st.one_of(
    st.binary(max_size=30).map(lambda data: data.replace(b"\n", b" ")),
    st.sampled_from([b"", b" ", b"{}", b"{", b"null", GOOD[:-1], GOOD + b"}", changed(user=b'""'), changed(chip=None)]),
)


# Made once: a strategy that is made for each draw costs more than the draw.
one_in_ten, up_to_50 = st.integers(0, 9), st.one_of(st.none(), st.integers(0, 50))
request_ids = st.one_of(st.none(), st.integers(0, 20).map("id-{}".format))
ages_ms = st.one_of(st.integers(0, 300_000), st.integers(0, TIME_MS))
models, chips = st.sampled_from(["m1", "m2", "é"]), st.sampled_from(["H100", "B200"])
prefill_chips = st.sampled_from([None, None, "H100", "L40S"])
separators = st.sampled_from([(",", ":"), (", ", ": "), (" ,\t", "\r: ")])


@st.composite
def native_lines(draw: st.DrawFn) -> bytes:
    """A record, a hostile one now and then; ids and names repeat."""
    if draw(one_in_ten) == 0:
        return draw(junk)
    cached, written, reasoning = (draw(up_to_50) for _ in range(3))
    record = {
        "request_id": draw(request_ids),
        "timestamp": TIME_MS - draw(ages_ms),
        "user": draw(names),
        "model": draw(models),
        "chip": draw(chips),
        "prefill_chip": draw(prefill_chips),
        "input_tokens": draw(counts),
        "cached_input_tokens": cached,
        "cache_write_tokens": written,
        "output_tokens": draw(counts),
        "reasoning_tokens": reasoning,
    }
    items = [item for item in record.items() if item[1] is not None or draw(st.booleans())]
    text = json.dumps(dict(items), ensure_ascii=draw(st.booleans()), separators=draw(separators))
    return text.encode("utf-8", "replace")


values = st.lists(native_lines(), max_size=3).map(b"\n".join) | st.sampled_from([None, b"", b"\n", b"\n\n"])
logs = st.lists(values, max_size=40)
cuts = st.lists(st.integers(0, 40), max_size=6)


def pieces_of(log: list, where: list[int], times: list[int] | None = None) -> list[Piece]:
    spans = harness.cut(range(len(log)), where)
    return [Piece([log[i] for i in span], times and [times[i] for i in span]) for span in spans]


# --- One answer for one log ---


@property_test
@given(log=logs, where=cuts)
def test_batches_may_be_cut_anywhere(make_engine, log, where):
    harness.check(make_engine(), NATIVE, pieces_of(log, where))


@pytest.mark.slow
@property_test
@given(lines=st.lists(native_lines(), max_size=40), where=cuts)
def test_lines_may_share_a_message(make_engine, lines, where):
    """Only positions of dead letters tell how many lines a message holds."""
    alone = harness.check(make_engine(), NATIVE, [Piece(lines)])
    groups = [b"".join(text + b"\n" for text in group) for group in harness.cut(lines, where) if group]
    grouped = harness.check(make_engine(), NATIVE, [Piece(groups)])
    assert alone.rows() == grouped.rows()
    assert alone.engine.tally() == grouped.engine.tally()
    assert [letter[3:] for letter in alone.letters] == [letter[3:] for letter in grouped.letters]


@property_test
@given(log=logs, tile_records=st.sampled_from([1, 7, 64, 4096]), where=cuts)
def test_tiles_may_have_any_size(make_engine, log, tile_records, where):
    harness.check(make_engine(tile_records=tile_records), NATIVE, pieces_of(log, where))


@property_test
@given(lines=st.lists(native_lines(), max_size=60), where=cuts, tile_records=st.integers(1, 8))
def test_tiny_tables_need_many_parts_and_the_sums_stay(make_engine, lines, where, tile_records):
    log = [value for value in lines if len(value) < TINY["batch_bytes"]]
    engine = make_engine(**TINY | {"tile_records": tile_records})
    pieces = [batch for piece in pieces_of(log, where) for batch in harness.batches(piece.values, TINY["batch_bytes"])]
    harness.check(engine, NATIVE, map(Piece, pieces))


@property_test
@given(
    log=st.lists(st.tuples(values, st.integers(0, 400), st.integers(0, 1)), max_size=30),
    where=cuts,
    horizon_ms=st.sampled_from([1, 50, 1000]),
)
def test_generations_turn_by_log_time_wherever_batches_are_cut(make_engine, log, where, horizon_ms):
    """Message times go up and down; only their prefix maximum turns generations, in each partition for itself."""
    pieces: list[Piece] = []
    for span in harness.cut(log, where):
        for partition in (0, 1):
            chosen = [(value, TIME_MS + time) for value, time, where in span if where == partition]
            pieces.append(Piece([value for value, _ in chosen], [time for _, time in chosen], partition))
    harness.check(make_engine(dedup_horizon_ms=horizon_ms), NATIVE, pieces, dedup_horizon_ms=horizon_ms)


@pytest.mark.slow
@pytest.mark.parametrize("tile_records", [1, 7, 64, 4096])
@pytest.mark.parametrize("small", [False, True], ids=["one part", "many parts"])
def test_a_long_log_of_mixed_mappings(make_engine, tile_records, small):
    """Every shipped mapping in turn in one engine; those whose repeats do not grow share the partitions' ids."""
    limits = {"rows": 1 << 9, "cells": 1 << 9, "texts": 1 << 11, "batch_bytes": MIXED_BATCH_BYTES}
    limits = limits if small else {"windows": 1 << 11}
    engine = make_engine(tile_records=min(tile_records, 128) if small else tile_records, **limits)
    pieces, wanted = log_of_mixed_mappings(tile_records)
    run = harness.meter(engine, NATIVE, pieces)
    harness.assert_same(run, wanted)
    assert (run.parts > 1) == small


MIXED_BATCH_BYTES = 1 << 13


@functools.cache
def log_of_mixed_mappings(seed: int) -> tuple[list[Piece], oracle.Meter]:
    """Of the same seed the same for every engine, with what the oracle makes of it."""
    rng, pieces = random.Random(seed), []
    for _ in range(2):
        for name in harness.SHIPPED:
            mapping = shipped(name)
            made = mutate.lines(rng, name, mapping.oracle, 90 * harness.TIMES)
            lines = [text for text in made if len(text) < MIXED_BATCH_BYTES]
            for batch in harness.batches(lines, MIXED_BATCH_BYTES):
                # What grows is noted counter by counter, so that such a mapping has partitions of its own.
                owner = "all" if mapping.engine.repeats == "first" else name
                pieces.append(Piece(batch, [mutate.NOW_MS] * len(batch), f"{owner}-{rng.choice('ab')}", mapping))
    return pieces, harness.expected(NATIVE, pieces)


def test_alternate_mappings_may_be_loaded_ahead(make_engine):
    """A batch travels while the one before is counted: each keeps its own mapping."""
    engine = make_engine()
    other = Mapping.parse(
        (harness.MAPPINGS / "native.toml").read_text().replace('path = "chip"', 'path = "gpu"\ndefault = "none"'),
        "other.toml",
    )
    first = engine.load(engine.pack([GOOD]), NATIVE.engine)
    second = engine.load(engine.pack([GOOD]), other.engine)
    assert engine.count(first).next_message == engine.count(second).next_message == 1
    start = TIME_MS - TIME_MS % 60_000
    want = {(start, "alice", "llama", chip): [1, 10, 0, 0, 5, 0] for chip in ("H100", "none")}
    assert harness.rows_of(engine.changes()) == want


def test_a_changed_mapping_of_the_same_file_does_not_touch_a_batch_on_its_way(make_engine):
    engine = make_engine()
    text = (harness.MAPPINGS / "native.toml").read_text()
    edited = text.replace('path = "chip"', 'constant = "edited"')
    first = engine.load(engine.pack([GOOD]), Mapping.parse(text, "same.toml").engine)
    second = engine.load(engine.pack([GOOD]), Mapping.parse(edited, "same.toml").engine)
    assert engine.count(first).next_message == engine.count(second).next_message == 1
    chips = {chip: row[0] for (_, _, _, chip), row in harness.rows_of(engine.changes()).items()}
    assert chips == {"H100": 1, "edited": 1}


# --- Duplicates ---


def numbered(numbers: list[int], **fields: object) -> list[bytes]:
    return [line(request_id=f"id-{n}", user=f"user-{i % 5}", **fields) for i, n in enumerate(numbers)]


@pytest.mark.parametrize("tile_records", [4, 1024])
def test_a_duplicate_is_known_within_a_tile_a_batch_a_part_and_across_parts(make_engine, tile_records):
    run = Run(make_engine(tile_records=tile_records), NATIVE)
    run.feed(numbered([0, 0, 1, 2, 3, 4, 5, 0, 1, 6]))
    assert run.engine.tally().duplicates == 3
    run.feed(numbered([1, 7, 7]))
    assert run.engine.tally().duplicates == 5
    run.close_part()
    run.feed(numbered([6, 8]))
    assert run.engine.tally().duplicates == 6
    assert sum(row[0] for row in run.rows().values()) == 9


def test_the_lowest_record_of_equal_ids_counts_whatever_its_fields_say(make_engine):
    run = Run(make_engine(), NATIVE)
    run.feed([line(request_id="x", user=f"user-{i}", timestamp=TIME_MS - 60_000 * i) for i in range(500)])
    assert [key[1] for key in run.rows()] == ["user-0"]
    assert run.engine.tally().duplicates == 499


def test_equal_ids_of_two_partitions_are_no_duplicates(make_engine):
    pieces = [Piece(numbered([1, 2]), partition=("topic", 0)), Piece(numbered([1, 2]), partition=("topic", 1))] * 2
    run = harness.check(make_engine(), NATIVE, pieces)
    assert (run.engine.tally().counted, run.engine.tally().duplicates) == (4, 4)


def test_a_forgotten_partition_counts_its_ids_anew(make_engine):
    run = Run(make_engine(), NATIVE)
    run.feed(numbered([1]), partition="kept")
    run.feed(numbered([1]), partition="lost")
    run.engine.forget("lost")
    run.engine.forget("never seen")
    run.feed(numbered([1]), partition="kept")
    run.feed(numbered([1]), partition="lost")
    assert (run.engine.tally().counted, run.engine.tally().duplicates) == (3, 1)


def test_ids_of_scope_and_id_do_not_run_into_each_other(make_engine):
    """openmeter's identity is (source, id): moving a byte from one to the other makes another identity."""

    def event(source: str | None, identity: str) -> bytes:
        record = {"id": identity, "source": source, "time": "2026-11-20T10:00:00Z", "subject": "s"}
        data = {"tokens": "3", "model": "m", "type": "output"}
        return json.dumps({key: value for key, value in record.items() if value} | {"data": data}).encode()

    events = [event(*pair) for pair in [("a", "bc"), ("ab", "c"), (None, "abc"), ("abc", "abc"), ("a", "bc")]]
    run = harness.check(make_engine(), shipped("openmeter"), [Piece(events)])
    assert (run.engine.tally().counted, run.engine.tally().duplicates) == (4, 1)


@pytest.mark.parametrize(
    ("times", "duplicates"),
    [
        ([0, 999], 1),  # the same generation
        ([999, 1000], 1),  # g - 1
        ([0, 1999], 1),
        ([0, 2000], 0),  # g - 2
        ([0, 5000], 0),
        ([0, 1000, 2000], 2),  # the second was a duplicate, and is remembered all the same
        ([0, 1000, 3000], 1),
        ([0, 1000, 1999], 2),
        ([0, 2000, 0, 1], 2),  # log time does not go back
        ([0, 2000, 2999, 4000], 1),
    ],
)
@pytest.mark.parametrize("batch_size", [1, 2, 9])
def test_an_id_is_remembered_for_its_generation_and_the_next(make_engine, times, duplicates, batch_size):
    values, at = [line(request_id="x")] * len(times), [TIME_MS + time for time in times]
    spans = harness.cut(range(len(times)), range(0, len(times), batch_size))
    pieces = [Piece([values[i] for i in span], [at[i] for i in span]) for span in spans]
    assert TIME_MS % 1000 == 0
    run = harness.check(make_engine(dedup_horizon_ms=1000), NATIVE, pieces, dedup_horizon_ms=1000)
    assert run.engine.tally().duplicates == duplicates


@pytest.mark.parametrize("before", range(16, 24))
def test_generations_do_not_depend_on_where_a_part_closes(make_engine, before):
    """After so many new users before it, the part is full somewhere in a batch whose last message is far ahead."""
    filler = [Piece([line(request_id=f"filler-{i}", user=f"filler-{i}")], [TIME_MS]) for i in range(before)]
    ids = ["filler-0", "a", "b", "c", "a", "b", "c"]
    log = [line(request_id=name, user=f"user-{i}") for i, name in enumerate(ids)]
    times = [TIME_MS] * 6 + [TIME_MS + 5000]
    again = Piece(log, [TIME_MS + 5000] * len(log))
    engine = make_engine(dedup_horizon_ms=1000, **TINY | {"tile_records": 2})
    run = harness.check(engine, NATIVE, [*filler, Piece(log, times), again], dedup_horizon_ms=1000)
    assert run.parts > 1


def test_the_identity_table_grows_and_forgets_nothing(make_engine):
    engine = make_engine()
    ids = list(range(30_000))
    values = [line(request_id=f"id-{n}") for n in ids]
    run = Run(engine, NATIVE)
    for batch in harness.batches(values):
        run.feed(batch)
    run.close_part()
    for batch in harness.batches(values[::-1]):
        run.feed(batch)
    assert (engine.tally().counted, engine.tally().duplicates) == (30_000, 30_000)
    assert run.rows() == {(TIME_MS - TIME_MS % 60_000, "u", "m", "c"): [30_000, 300_000, 0, 0, 150_000, 0]}


@pytest.mark.slow
@pytest.mark.parametrize("turn_at", [None, 3_300, 13_000], ids=["one generation", "turns early", "turns late"])
def test_ids_are_known_while_their_table_grows(make_engine, turn_at):
    """Every new id is followed by an older one, from anywhere in a table that is on its way into a larger one."""
    numbers = [number for new in range(14_000) for number in (new, new * 7919 % (new + 1))]
    values = [line(request_id=f"id-{number}") for number in numbers]
    times = [TIME_MS + (10_000 if turn_at and k >= 2 * turn_at else 0) for k in range(len(values))]
    engine = make_engine(tile_records=128, dedup_horizon_ms=10_000)
    run = Run(engine, NATIVE)
    for first in range(0, len(values), 1000):
        run.feed(values[first : first + 1000], times[first : first + 1000])
        assert engine.tally().counted == first // 2 + len(values[first : first + 1000]) // 2


@pytest.mark.parametrize("doublings", [0, 1])
def test_ids_that_come_again_need_no_larger_table(make_engine, doublings):
    """2,500 ids fit into the first table; counted in good time they may take one doubling, never another."""
    slots = 4096
    engine = make_engine(**MIDDLE | {"tile_records": 128}, identity_bytes=16 * (slots + (slots << doublings)))
    values = [line(request_id=f"id-{number}") for number in range(2_500)]
    run = Run(engine, NATIVE)
    for _ in range(20):
        run.feed(values)
    assert (engine.tally().counted, engine.tally().duplicates) == (2_500, 19 * 2_500)


class Allocations:
    """Slots of the tables of request ids that an engine's target hands out."""

    def __init__(self, target, monkeypatch):
        self.slots: list[int] = []
        zeros = target.zeros

        def counted(count, dtype):
            if dtype is layout.IDENTITY:
                self.slots.append(count)
            return zeros(count, dtype)

        monkeypatch.setattr(target, "zeros", counted)

    def since(self) -> list[int]:
        found, self.slots = self.slots, []
        return found


BEGIN_MS = TIME_MS // 10_000 * 10_000  # of a generation of 10 s


def feed_evenly(run: Run, generation: int, starts: range, of: float) -> None:
    """Twenty ids from each start on. Of the generation's log time an id's number / `of` has passed before it."""
    for at in starts:
        values = [line(request_id=f"{generation}-{at + k}") for k in range(20)]
        run.feed(values, [BEGIN_MS + 10_000 * generation + int(10_000 * (at + k) / of) for k in range(20)])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ids", "of", "ahead"),
    [
        (2_700, 2_700, [4096]),  # the spare one of the next generation
        (2_900, 2_900, [4096, 8192]),
        (2_700, 1e9, []),  # all within a moment: nothing can be foreseen
        (2_900, 1e9, [8192]),
        (2_400, 1e4, [8192]),  # in the first quarter: thousands more are foreseen
        (2_280, 1e4, []),
        (3_100, 3_100, [8192, 8192]),  # it grows, and the spare one is as large
    ],
)
def test_a_larger_table_is_prepared_where_more_ids_are_foreseen_than_fit(make_engine, monkeypatch, ids, of, ahead):
    """A table takes 3,072; from 2,304 on a larger one is prepared if more than 2,764 are foreseen."""
    engine = make_engine(tile_records=16, dedup_horizon_ms=10_000)
    allocations = Allocations(engine.target, monkeypatch)
    run = Run(engine, NATIVE)
    for generation in range(2):
        feed_evenly(run, generation, range(0, ids, 20), of)
        if generation == 0:
            assert allocations.since() == [4096, *ahead]
    assert engine.tally().counted == 2 * ids


def test_a_log_without_times_takes_nothing_ahead(make_engine, monkeypatch):
    engine = make_engine(**MIDDLE | {"tile_records": 16})
    allocations = Allocations(engine.target, monkeypatch)
    run = Run(engine, NATIVE)
    for first, since in ((0, [4096]), (3_000, [8192])):
        run.feed([line(request_id=f"id-{first + k}") for k in range(3_000)])
        assert allocations.since() == since
    assert engine.tally().counted == 6_000


@pytest.mark.parametrize(("of", "ahead", "at_the_turn"), [(2_000, [], [4096]), (1_500, [4096], [])])
def test_a_generation_begins_with_a_table_at_hand(make_engine, monkeypatch, of, ahead, at_the_turn):
    """From three quarters of a generation's log time on there is a spare one, unless the dropped one is as large."""
    ids = 1_500
    engine = make_engine(tile_records=16, dedup_horizon_ms=10_000)
    allocations = Allocations(engine.target, monkeypatch)
    run = Run(engine, NATIVE)
    feed_evenly(run, 0, range(0, ids, 20), of)
    assert allocations.since() == [4096, *ahead]
    feed_evenly(run, 1, range(0, 20, 20), of)
    assert allocations.since() == at_the_turn
    feed_evenly(run, 1, range(20, ids, 20), of)
    feed_evenly(run, 2, range(0, ids, 20), of)
    assert allocations.since() == [], "the dropped table is as large as the current one"
    feed_evenly(run, 2, range(0, ids, 20), of)
    assert (engine.tally().counted, engine.tally().duplicates) == (3 * ids, ids)


def test_what_is_held_ahead_of_need_is_given_up_for_another_partition(make_engine, id_bytes):
    """Of five tables' room the first partition holds three, two of them ahead. The second has one, and needs two."""
    engine = make_engine(tile_records=16, identity_bytes=id_bytes * 4096 * 5)
    for partition, ids in ((0, 2_800), (1, 4_000)):
        for first in range(0, ids, 20):
            values = [line(request_id=f"id-{first + k}") for k in range(20)]
            engine.count(engine.load(engine.pack(values, [TIME_MS] * 20, partition), NATIVE.engine))
        if partition == 0:
            assert engine._partition(0).identities.held_bytes == id_bytes * 4096 * 3
    assert engine.tally().counted == 6_800


@pytest.mark.parametrize("lines, tiles", [(64, [64]), (72, [72]), (73, [64, 9]), (136, [64, 72]), (137, [64, 64, 9])])
def test_a_small_rest_of_a_batch_joins_its_last_tile(make_engine, monkeypatch, lines, tiles):
    """A tile has room for an eighth more than its size. One message or many, all of it is counted once."""
    values = [line(request_id=f"id-{n}") for n in range(lines)]
    for messages in ([b"\n".join(values)], values):
        engine = make_engine(tile_records=64)
        assert engine.limits.tile_room == 72
        taken = []
        launch = engine.target.launch

        def noted(name, job, first, count, launch=launch, taken=taken):
            taken.extend([count] if name == "parse" else [])
            launch(name, job, first, count)

        with monkeypatch.context() as patched:
            patched.setattr(engine.target, "launch", noted)
            engine.count(engine.load(engine.pack(messages, [TIME_MS] * len(messages)), NATIVE.engine))
        assert taken == tiles and engine.tally().counted == lines


# --- Limits ---


@pytest.mark.parametrize(
    ("setting", "limits"),
    [
        ("texts", {"texts": 32}),
        ("cells", {"cells": 16}),
        ("rows", {"rows": 16}),
        ("arena_bytes", {"arena_bytes": 1700}),
    ],
)
def test_tables_that_one_message_could_overfill_are_refused_by_name(make_engine, setting, limits):
    engine = make_engine(**TINY | limits)
    with pytest.raises(TablesTooSmall, match=rf"^{setting} = {limits[setting]}\b"):
        engine.load(engine.pack([GOOD]), NATIVE.engine)


def test_a_message_larger_than_an_empty_part_is_refused_by_name(make_engine):
    """3 MiB of records of other users in one message: neither counted in part nor waited for in vain."""
    engine = make_engine(texts=1 << 16, rows=1 << 15, cells=1 << 15, batch_bytes=1 << 22, tile_records=256)
    user = iter(range(10**9))
    text = line(user="USER", timestamp=1, input_tokens=1, output_tokens=1)
    value = b"\n".join(text.replace(b"USER", b"%d" % next(user)) for _ in range(3 * (1 << 20) // len(text)))
    run = Run(engine, NATIVE)
    try:
        run.feed([value])
    except TablesTooSmall:
        return
    assert engine.tally().counted == value.count(b"\n") + 1


def test_too_many_ids_within_the_horizon_name_the_settings(make_engine):
    engine = make_engine(identity_bytes=1 << 18)
    run = Run(engine, NATIVE)
    with pytest.raises(IdentityMemoryError, match=r"identity_bytes = 262144.*dedup_horizon"):
        for batch in harness.batches([line(request_id=f"id-{n}") for n in range(50_000)], 1 << 18):
            run.feed(batch)


def test_partitions_share_the_memory_for_request_ids(make_engine, id_bytes):
    """Three tables of 2^14 slots fit, and those of half the size that they are leaving; no fourth one does."""
    engine = make_engine(identity_bytes=id_bytes * 5 * (1 << 14))
    plan = NATIVE.engine
    values = [line(request_id=f"id-{n}") for n in range(9_000)]
    for partition in range(3):
        for batch in harness.batches(values):
            engine.count(engine.load(engine.pack(batch, partition=partition), plan))
    assert engine.tally().counted == 27_000
    with pytest.raises(IdentityMemoryError, match=f"identity_bytes = {id_bytes * 81920}"):
        for batch in harness.batches(values):
            engine.count(engine.load(engine.pack(batch, partition=3), plan))


@pytest.mark.parametrize(
    "wrong",
    [
        {"rows": 17},
        {"rows": 8},
        {"texts": 1 << 32},
        {"cells": 0},
        {"windows": 3},
        {"batch_bytes": 0},
        {"batch_bytes": (1 << 30) + 1},
        {"tile_records": 0},
        {"tile_records": (1 << 24) + 1},
    ],
)
def test_limits_out_of_range_name_the_setting(wrong):
    (name, value), *_ = wrong.items()
    with pytest.raises(ValueError, match=rf"{name} = {value}\b"):
        Limits(**wrong)


@pytest.mark.parametrize("memory_bytes", [1 << 24, 1 << 28, 1 << 33, 3 << 34])
@pytest.mark.parametrize("cuda", [False, True])
def test_limits_from_memory_stay_within_it_and_take_any_batch(memory_bytes, cuda):
    limits = Limits.from_memory(memory_bytes, cuda)
    size = limits.identity_bytes + limits.arena_bytes + limits.windows * (16_400 + 4)
    size += limits.rows * (64 + 4) + limits.cells * (64 + 4) + limits.texts * (32 + 4)
    assert size <= memory_bytes
    for name in harness.SHIPPED:
        plan = plans.compile_mapping(shipped(name).engine)
        assert room.shortage(limits, plan) is None


@pytest.mark.parametrize("wrong", [{"window_ms": 0}, {"window_ms": 999}, {"window_ms": 1500}])
def test_a_window_is_whole_seconds(make_engine, wrong):
    with pytest.raises(ValueError, match=f"window_ms = {wrong['window_ms']}"):
        make_engine(**wrong)


@pytest.mark.parametrize("counters", ["rows and cells", "users"])
def test_a_part_closes_before_a_counter_could_wrap(make_engine, monkeypatch, counters):
    """With 64 bits that takes millions of the largest records, so the test lowers the border."""
    border = 40 * COUNT_END
    monkeypatch.setattr("tokenometer.kernels.part.COUNTER_MAX", border)
    largest = COUNT_END - 1
    usage = {"input_tokens": largest, "cache_read_input_tokens": largest, "cache_creation_input_tokens": largest}
    record = {"timestamp": TIME_MS, "user": "u", "chip": "c"}
    record["response"] = {"model": "m", "usage": usage | {"output_tokens": largest}}
    mapping = shipped("anthropic")
    run = Run(make_engine(tile_records=4), mapping)
    values = [json.dumps(record).encode()] * 8
    for _ in range(10):
        run.feed(values)
        if counters == "users":
            found = [total for _, total in run.engine.top_users(9)]
        else:
            found = [counter for row in run.take_changes().values() for counter in row]
            found += [counter for cell in run.engine.cells() for counter in cell.counters]
        assert max(found) <= border
    assert run.parts > 1
    harness.assert_same(run, harness.expected(mapping, [Piece(values)] * 10))


def test_no_counter_wraps_by_the_bound_that_the_engine_keeps():
    assert COUNTER_MAX == 2**64 - 1
    assert RECORD_TOKENS_MAX >= 3 * COUNT_END, "additive input: three counts"


def test_counters_hold_sums_far_beyond_2_to_the_40(make_engine):
    largest = COUNT_END - 1
    values = [line(input_tokens=largest, cached_input_tokens=largest, output_tokens=largest, reasoning_tokens=largest)]
    run = harness.check(make_engine(**LARGE), NATIVE, [Piece(values * 3000)] * 2)
    assert list(run.rows().values()) == [[6000, 6000 * largest, 6000 * largest, 0, 6000 * largest, 6000 * largest]]


def test_the_first_and_the_last_window(make_engine):
    times = [0, 59_999, 60_000, 253_402_300_799_999, 253_402_300_740_000, 253_402_300_739_999]
    run = harness.check(make_engine(), NATIVE, [Piece([line(timestamp=time) for time in times])])
    counted = {key[0]: row[0] for key, row in run.rows().items()}
    assert counted == {0: 2, 60_000: 1, 253_402_300_740_000: 2, 253_402_300_680_000: 1}


@pytest.mark.parametrize("window_ms", [1000, 7000, 60_000, 86_400_000])
def test_windows_are_half_open_at_any_width(make_engine, window_ms):
    rng = random.Random(window_ms)
    starts = [rng.randrange(253_402_300_800_000 // window_ms) * window_ms for _ in range(500)]
    times = [time for start in starts for time in (start, start - 1, start + window_ms - 1) if 0 <= time]
    values = [line(timestamp=time, input_tokens=i) for i, time in enumerate(times) if time < 253_402_300_800_000]
    engine = make_engine(window_ms=window_ms)
    harness.check(engine, NATIVE, [Piece(values)], window_ms=window_ms)


# --- Results out ---


def test_changes_are_the_rows_changed_since_the_last_call_with_absolute_counters(make_engine):
    engine = make_engine()
    run = Run(engine, NATIVE)
    start = TIME_MS - TIME_MS % 60_000
    assert run.take_changes() == {}
    run.feed([line(user="a"), line(user="b"), line(user="a")])
    assert run.take_changes() == {
        (start, "a", "m", "c"): [2, 20, 0, 0, 10, 0],
        (start, "b", "m", "c"): [1, 10, 0, 0, 5, 0],
    }
    assert run.take_changes() == {}
    run.feed([line(user="b", chip="d", prefill_chip="c"), b"{}", b""])
    assert run.take_changes() == {
        (start, "b", "m", "c"): [1, 20, 0, 0, 5, 0],
        (start, "b", "m", "d"): [1, 0, 0, 0, 5, 0],
    }
    run.feed([line(user="a")])
    run.close_part()
    assert run.take_changes() == {}
    run.feed([line(user="a")])
    assert run.take_changes() == {(start, "a", "m", "c"): [1, 10, 0, 0, 5, 0]}
    assert run.rows()[start, "a", "m", "c"] == [4, 40, 0, 0, 20, 0]


def test_taken_changes_outlive_the_part(make_engine):
    """A caller produces rows while the engine goes on."""
    engine = make_engine()
    run = Run(engine, NATIVE)
    run.feed([line(user=f"user-{i}") for i in range(100)])
    taken = list(engine.changes())
    before = harness.rows_of(taken)
    engine.open_part()
    run.feed([line(user=f"other-{i}") for i in range(100)])
    run.take_changes()
    assert harness.rows_of(taken) == before


@pytest.mark.parametrize("users", [7, 8, 16])  # of 32 rows; a quarter is well filled
def test_a_part_begins_with_empty_tables_however_full_the_last_one_was(make_engine, users):
    engine = make_engine(**TINY)
    run = Run(engine, NATIVE)
    for part in range(3):
        names = [f"user-{part + i}" for i in range(users)]
        for name in names:
            run.feed([line(user=name)])
        assert engine.parts_opened == part + 1 and engine.totals()[0] == users
        assert {user: row[0] for (_, user, _, _), row in run.take_changes().items()} == dict.fromkeys(names, 1)
        run.close_part()
        assert engine.cells() == engine.top_users(5) == [] and engine.sketches() == {}


@pytest.mark.parametrize(("users", "sizes"), [(0, []), (3, [3]), (4, [4]), (5, [4, 1]), (8, [4, 4])])
def test_changes_come_in_slices_of_bounded_size(make_engine, monkeypatch, users, sizes):
    monkeypatch.setattr("tokenometer.kernels.part.CHANGES_SLICE_ROWS", 4)
    engine = make_engine()
    run = Run(engine, NATIVE)
    run.feed([line(user=f"user-{i}") for i in range(users)])
    slices = list(engine.changes())
    assert [len(rows) for rows in slices] == sizes
    assert {user for _, user, _, _ in harness.rows_of(slices)} == {f"user-{i}" for i in range(users)}
    assert run.take_changes() == {}


def test_changes_given_up_half_way_come_again(make_engine, monkeypatch):
    monkeypatch.setattr("tokenometer.kernels.part.CHANGES_SLICE_ROWS", 4)
    engine = make_engine()
    run = Run(engine, NATIVE)
    run.feed([line(user=f"user-{i}") for i in range(6)])
    assert len(next(engine.changes())) == 4
    run.feed([line(user="user-0")])
    assert {user: row[0] for (_, user, _, _), row in run.take_changes().items()} == {
        f"user-{i}": 1 + (i == 0) for i in range(6)
    }
    assert run.take_changes() == {}


def test_counting_while_changes_are_taken_out_is_a_bug(make_engine):
    engine = make_engine()
    run = Run(engine, NATIVE)
    run.feed([line()])
    with pytest.raises(AssertionError, match="nothing is counted"):
        for _ in engine.changes():
            run.feed([line()])


def test_a_record_without_tokens_still_makes_its_rows(make_engine):
    values = [line(input_tokens=0, output_tokens=0, prefill_chip="p")]
    run = harness.check(make_engine(), NATIVE, [Piece(values)])
    assert sorted(run.rows().values()) == [[0] * 6, [1, 0, 0, 0, 0, 0]]


@property_test
@given(lines=st.lists(native_lines(), max_size=40), times=st.lists(st.integers(0, 4), min_size=1))
def test_cells_and_users_are_sums_of_rows(make_engine, lines, times):
    run = Run(make_engine(), NATIVE)
    run.feed(lines)
    rows = run.rows()
    cells: dict = {}
    users: Counter[str] = Counter()
    for (start, user, model, chip), row in rows.items():
        harness.add_rows(cells, {(start, model, chip): row})
        users[user] += row[1] + row[4]
    found = run.engine.cells()
    assert {(cell.window_start, cell.model, cell.chip): list(cell.counters) for cell in found} == cells
    assert len(found) == len(cells)
    ranked = sorted(((user, total) for user, total in users.items() if total), key=lambda item: (-item[1], item[0]))
    assert run.engine.user_tokens() == dict(ranked)
    for most in (1, 3, 1000):
        top = run.engine.top_users(most)
        assert [total for _, total in top] == [total for _, total in ranked[:most]]
        assert all(users[user] == total for user, total in top)


def test_a_name_may_be_a_user_a_model_and_a_chip(make_engine):
    values = [line(user="x", model="x", chip="x", prefill_chip="x"), line(user="y", model="x", chip="y")]
    run = harness.check(make_engine(), NATIVE, [Piece(values)])
    assert run.engine.user_tokens() == {"x": 15, "y": 15}


def test_top_users_asks_for_any_number(make_engine):
    run = Run(make_engine(), NATIVE)
    assert run.engine.top_users(5) == []
    run.feed([line(user=f"user-{i}", input_tokens=i) for i in range(9)])
    assert run.engine.top_users(0) == []
    assert run.engine.top_users(2) == [("user-8", 13), ("user-7", 12)]


def test_fill_tells_used_and_usable(make_engine):
    run = Run(make_engine(), NATIVE)
    assert {used for used, _ in run.engine.fill().values()} == {0}
    run.feed([line(user=f"user-{i}", timestamp=TIME_MS + 60_000 * (i % 3)) for i in range(10)])
    fill = run.engine.fill()
    assert {name: used for name, (used, _) in fill.items() if name != "arena"} == {
        "texts": 12,
        "cells": 3,
        "rows": 10,
        "windows": 3,
    }
    assert fill["arena"][0] == len("mc") + 10 * len("user-0")
    assert fill["rows"][1] == int(run.engine.limits.rows * 0.75)
    run.close_part()
    assert {used for used, _ in run.engine.fill().values()} == {0}


# --- Sketches ---


@pytest.mark.slow
def test_a_sketch_estimates_a_million_users_within_2_percent(make_engine):
    engine = make_engine(
        texts=1 << 21, rows=1 << 21, cells=1 << 19, arena_bytes=1 << 25, batch_bytes=1 << 23, tile_records=1 << 12
    )
    head, tail = line(user="USER").split(b"USER")
    for first in range(0, 1_000_000, 50_000):
        batch = engine.open_batch()
        data = b"".join([b"%bu%d%b\n" % (head, n, tail) for n in range(first, first + 50_000)])
        batch.length = len(data)
        batch.space[: len(data)] = np.frombuffer(data, np.uint8)
        batch.message_end = np.array([len(data)], np.uint32)
        assert engine.count(engine.load(batch, NATIVE.engine)).next_message == 1
    assert engine.tally().counted == engine.fill()["rows"][0] == 1_000_000
    (registers,) = engine.sketches().values()
    assert hyperloglog.estimate(registers) == pytest.approx(1_000_000, rel=0.02)


def users_sketch(make_engine, users, seed=1, **settings):
    run = Run(make_engine(secret_seed=seed, **settings), NATIVE)
    for batch in harness.batches([line(user=user) for user in users]):
        run.feed(batch)
    sketches = run.engine.sketches()
    assert list(sketches) == [TIME_MS - TIME_MS % 60_000]
    return next(iter(sketches.values())).copy()


def test_a_sketch_is_the_same_under_any_secret_and_order(make_engine):
    users = [f"user-{i}" for i in range(5000)]
    one = users_sketch(make_engine, users, seed=1)
    two = users_sketch(make_engine, users[::-1] + users, seed=2, tile_records=7)
    assert one.shape == (1 << 14,) and one.dtype == np.uint8
    assert np.array_equal(one, two)
    assert not np.array_equal(one, users_sketch(make_engine, users, sketch_seed=1))


def test_sketches_of_two_meters_merge_by_maximum(make_engine):
    users = [f"user-{i}" for i in range(6000)]
    both = users_sketch(make_engine, users)
    left, right = users_sketch(make_engine, users[:4000], seed=2), users_sketch(make_engine, users[2000:], seed=3)
    assert np.array_equal(both, hyperloglog.merge([left, right]))
    assert hyperloglog.estimate(both) == pytest.approx(6000, rel=0.03)


def test_each_window_has_a_sketch_of_its_own(make_engine):
    run = Run(make_engine(**LARGE), NATIVE)
    run.feed([line(user=f"user-{i}", timestamp=TIME_MS + 60_000 * (i % 4)) for i in range(4000)])
    sketches = run.engine.sketches()
    start = TIME_MS - TIME_MS % 60_000
    assert sorted(sketches) == [start + 60_000 * i for i in range(4)]
    for registers in sketches.values():
        assert hyperloglog.estimate(registers) == pytest.approx(1000, rel=0.05)


def test_windows_without_room_for_a_sketch_lose_no_tokens(make_engine):
    """Old windows by the hundred: the sketch is a courtesy, rows are not."""
    values = [line(timestamp=60_000 * i, user=f"user-{i % 7}") for i in range(300)]
    engine = make_engine(windows=16)
    run = harness.check(engine, NATIVE, [Piece(values), Piece(values)])
    assert sum(row[0] for row in run.rows().values()) == 600
    assert len(engine.sketches()) <= 16


# --- Learning ---

VARIANTS = [
    [shape.replace(b"TIME", b"%d" % (TIME_MS + i)).replace(b"USER", b"user-%d" % i) for i in range(3)]
    for shape in [
        b'{"timestamp":TIME,"user":"USER","model":"m","chip":"c","input_tokens":1,"output_tokens":2}',
        b'{"output_tokens":2,"input_tokens":1,"chip":"c","model":"m","user":"USER","timestamp":TIME}',
        b'{"timestamp": TIME, "user": "USER", "model": "m", "chip": "c", "input_tokens": 1, "output_tokens": 2}',
        b' {\t"timestamp" :TIME ,"user": "USER","model":\r"m","chip":"c","input_tokens":1,"output_tokens": 2 } \r',
        b'{"x":1,"timestamp":TIME,"y":"s","user":"USER","z":[1,{"user":"no"}],"model":"m","w":{},"chip":"c",'
        b'"input_tokens":1,"v":null,"output_tokens":2,"u":{"a":[]}}',
        b'{"timestamp":TIME,"user":"USER","model":"m","chip":"c","request_id":null,"input_tokens":1,"output_tokens":2}',
        b'{"timestamp":TIME,"user":"USER","model":"m","chip":"c","x":"}","input_tokens":1,"output_tokens":2}',
        b'{"timestamp":"2026-11-20T10:00:00Z","user":"USER","model":"m","chip":"c","input_tokens":1,"output_tokens":2}',
        b'{"timestamp":TIME,"user":"USER","user":"USER","model":"m","chip":"c","input_tokens":1,"output_tokens":2}',
        b'{"timestamp":TIME,"user":"USER","model":"m","chip":"c","input_tokens":"1","output_tokens":2}',
        b'{"timestamp":TIME,"user":"USER","model":"m","chip":"c","input_tokens":1,"output_tokens":2.0}',
    ]
]
EVERY_SHAPE = [text for variant in VARIANTS for text in variant]


@pytest.mark.parametrize("shape", range(len(VARIANTS)))
def test_a_plan_learned_from_one_shape_reads_every_other_equally(make_engine, shape):
    harness.check(make_engine(), NATIVE, [Piece(VARIANTS[shape] * 5), Piece(EVERY_SHAPE), Piece(EVERY_SHAPE[::-1])])


@pytest.mark.slow
def test_a_plan_that_never_learned_reads_everything_equally(make_engine, monkeypatch):
    monkeypatch.setattr(plans.Plan, "learn", lambda self, lines: False)
    for name, pieces, wanted in mutated_logs(3, harness.SHIPPED, 200):
        harness.assert_same(harness.meter(make_engine(), shipped(name), pieces), wanted)
    harness.check(make_engine(), NATIVE, [Piece(EVERY_SHAPE)])


@functools.cache
def mutated_logs(seed: int, names: tuple[str, ...], count: int) -> list[tuple[str, list[Piece], oracle.Meter]]:
    """Of each mapping the same for every engine, with what the oracle makes of it."""
    rng, logs = random.Random(seed), []
    for name in names:
        lines = list(mutate.lines(rng, name, shipped(name).oracle, count))
        pieces = [Piece(batch) for batch in harness.batches(lines)]
        logs.append((name, pieces, harness.expected(shipped(name), pieces)))
    return logs


GARBAGE = [
    [],
    [b""],
    [b"{}"] * 9,
    [b"null", b"[]", b"{", b"\xff", b'{"user"', b'{"user":"a"', b"}" * 99, b'"' * 99, b"{" * 99],
    [b'{"%d":%d}' % (i, i) for i in range(500)],
    [b"{" + b",".join(b'"key-%d":"%d"' % (i, i) for i in range(500)) + b"}"],
    [b'{"user":{"user":{"user":1}},"timestamp":[],"chip":"\\u0041","":"","model":{}}'],
    [b"{" + b" " * 70 + b'"user":"a"}', b'{"' + b"k" * 49 + b'":1}'],
]


@pytest.mark.slow
@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
def test_a_plan_learned_from_garbage_reads_everything_equally(make_engine, monkeypatch, garbage):
    monkeypatch.setattr("tokenometer.kernels.loaded.sample", lambda lines: garbage)
    for name, pieces, wanted in mutated_logs(4, ("native", "vllm", "openmeter"), 150):
        harness.assert_same(harness.meter(make_engine(), shipped(name), pieces), wanted)
    harness.check(make_engine(), NATIVE, [Piece(EVERY_SHAPE)])


TAUGHT_AND_READ = {
    "a string where a count is due": (
        changed(input_tokens=b'"12"'),
        [
            GOOD.replace(b'"input_tokens":10', b'"input_tokens":"10'),
            GOOD.replace(b'"input_tokens":10', b'"input_tokens":"10"'),
            GOOD.replace(b'"input_tokens":10', b'"input_tokens":""10"'),
            GOOD,
        ],
    ),
    "a string where a time is due": (
        changed(timestamp=b'"2026-11-20T10:00:00Z"'),
        [changed(timestamp=b'"2026-11-20T10:00:00Z'), changed(timestamp=b'"1795000000000'), GOOD],
    ),
    "a repeated key": (
        GOOD[:-1] + b',"user":"bob"}',
        [GOOD, GOOD[:-1] + b',"user":"bob","chip":"c"}', GOOD[:-1] + b',"user":"bob"}'],
    ),
    "a value that never changes": (
        changed(status=b"200", region=b'"eu"'),
        [
            changed(status=text, region=region)
            for text in (b"200", b"201", b"20", b"2000", b"200.5", b"200e1", b"0200", b'"200"', b"null", b"[200]", None)
            for region in (b'"eu"', b'"e\\u0075"', b'"eu', b'eu"', b'""', b'{"eu":1}', None)
        ],
    ),
    "values that never change, between mapped keys": (
        b'{"a":1,"timestamp":1795000000000,"b":true,"user":"u","c":[1,{"d":null}],"model":"m","e":"x","chip":"c","f":{},'
        b'"input_tokens":1,"g":"y","output_tokens":2,"h":0}',
        [
            GOOD,
            GOOD[:-1] + b',"h":0}',
            GOOD[:-1] + b',"h":0,"user":"v"}',
            GOOD[:-1] + b',"h":00}',
            b'{"a":1,' + GOOD[1:],
        ],
    ),
    "null, then text": (changed(user=b"null"), [changed(user=b"nullx"), changed(user=b'"null"'), GOOD]),
}


@pytest.mark.parametrize("taught", TAUGHT_AND_READ)
def test_a_step_learned_from_a_rejected_record_accepts_nothing_else(make_engine, taught):
    teacher, read = TAUGHT_AND_READ[taught]
    harness.check(make_engine(), NATIVE, [Piece([teacher] * 3), *(Piece([text]) for text in read)])


USAGE = b'"prompt_tokens":3,"completion_tokens":4'
VLLM = b'{"timestamp":1795000000000,"user":"u","chip":"c","response":{"model":"m","usage":{' + USAGE + b"}}}"
VLLM_TAUGHT_AND_READ = {
    "an empty object last": (
        VLLM[:-3] + b',"prompt_tokens_details":{}}}}',
        [
            VLLM.replace(USAGE, b'"prompt_tokens_details":{},' + USAGE + b',"prompt_tokens_details":{}'),
            VLLM.replace(USAGE, b'"prompt_tokens_details":null,' + USAGE + b',"prompt_tokens_details":{}'),
            VLLM[:-3] + b',"prompt_tokens_details":{}}}}',
        ],
    ),
    "an empty object, twice in between": (
        VLLM.replace(b'"usage":', b'"usage":{},"usage":'),
        [VLLM.replace(b'"usage":', b'"usage":{},"usage":'), VLLM],
    ),
    "an empty object, twice at the end": (
        VLLM[:-3] + b',"prompt_tokens_details":{},"prompt_tokens_details":{}}}}',
        [
            VLLM[:-3] + b',"prompt_tokens_details":{},"prompt_tokens_details":{}}}}',
            VLLM[:-3] + b',"prompt_tokens_details":{}}}}',
        ],
    ),
    "a string where an object is due": (
        VLLM.replace(b'"usage":{' + USAGE + b"}", b'"usage":"none"'),
        [
            VLLM.replace(b'"usage":{', b'"usage":"{'),
            VLLM.replace(b'"usage":{', b'"usage":"none",{'),
            VLLM[:-1] + b',"x":1}',
            VLLM,
        ],
    ),
    "a string where an optional object is due": (
        VLLM[:-3] + b',"prompt_tokens_details":"x"}}}',
        [
            VLLM[:-3] + b',"prompt_tokens_details":"null}}}',
            VLLM[:-3] + b',"prompt_tokens_details":"{"cached_tokens":1}}}}',
            VLLM[:-3] + b',"prompt_tokens_details":null}}}',
        ],
    ),
}


@pytest.mark.parametrize("taught", VLLM_TAUGHT_AND_READ)
def test_a_step_learned_in_a_nested_object_accepts_nothing_else(make_engine, taught):
    teacher, read = VLLM_TAUGHT_AND_READ[taught]
    harness.check(make_engine(), shipped("vllm"), [Piece([teacher] * 3), *(Piece([text]) for text in read)])


@pytest.mark.slow
@pytest.mark.parametrize("name", harness.SHIPPED)
def test_a_plan_learned_from_a_line_judges_its_mutants(make_engine, name):
    """Nearly the learned bytes: the place where trust in a matched literal could go too far."""
    for pieces, wanted in logs_of_mutants(name):
        harness.assert_same(harness.meter(make_engine(), shipped(name), pieces), wanted)


@functools.cache
def logs_of_mutants(name: str) -> list[tuple[list[Piece], oracle.Meter]]:
    """Lines to learn from, each before its mutants: the same for every engine, with what the oracle makes of them."""
    mapping, rng, logs = shipped(name), random.Random(name), []
    for _ in range(15 * harness.TIMES):
        record = mutate.valid_record(rng, mapping.oracle, b'"service"')
        if rng.random() < 0.7 and record.leaves:
            rng.choice(mutate.TREE_MUTATORS)(rng, record)
        taught = mutate.dump(record.tree, *rng.choice(mutate.STYLES)).replace(b"\n", b" ")
        mutants = [rng.choice(mutate.BYTE_MUTATORS)(rng, taught) for _ in range(50)] if taught else []
        mutants = [text.replace(b"\n", b" ") for text in mutants]
        pieces = [Piece([taught] * 2), *map(Piece, harness.batches(mutants))]
        logs.append((pieces, harness.expected(mapping, pieces)))
    return logs


# --- Windows, times, sizes ---


def test_a_fallback_takes_the_messages_time(make_engine):
    mapping = shipped("openmeter")
    event = b'{"id":"%d","source":"s","subject":"u","data":{"tokens":1,"model":"m","type":"output"}}'
    values = [event % i for i in range(4)]
    times = [TIME_MS, TIME_MS + 60_000, 0, 253_402_300_799_999]
    run = harness.check(make_engine(), mapping, [Piece(values, times)])
    assert sorted(key[0] for key in run.rows()) == sorted(time - time % 60_000 for time in times)
    alone = harness.check(make_engine(), mapping, [Piece(values)])
    assert {letter[3:5] for letter in alone.letters} == {("missing_field", "timestamp")}


def test_each_message_has_its_own_time_in_a_batch_of_many_lines(make_engine):
    mapping = shipped("openmeter")
    event = b'{"id":"%d","source":"s","subject":"u","data":{"tokens":1,"model":"m","type":"output"}}\n'
    values = [b"".join(event % (10 * i + k) for k in range(i % 4)) for i in range(20)]
    times = [TIME_MS + 60_000 * i for i in range(20)]
    run = harness.check(make_engine(tile_records=7), mapping, [Piece(values, times)])
    assert len(run.rows()) == 15


@pytest.mark.parametrize("skew_ms", [0, 1, 3_600_000])
def test_a_time_may_be_ahead_of_its_message_by_the_skew_and_no_more(make_engine, skew_ms):
    values = [line(timestamp=TIME_MS + skew_ms + more) for more in (-1, 0, 1, 1000)]
    engine = make_engine(max_future_skew_ms=skew_ms)
    pieces = [Piece(values, [TIME_MS] * 4)]
    run = harness.check(engine, NATIVE, pieces, max_future_skew_ms=skew_ms)
    assert [letter[1:5] for letter in run.letters] == [
        (2, 0, "future_timestamp", "timestamp"),
        (3, 0, "future_timestamp", "timestamp"),
    ]


@pytest.mark.parametrize("size", [(1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_a_record_may_have_1_mib(make_engine, size):
    run = harness.check(make_engine(**LARGE), NATIVE, [Piece([GOOD, padded(size), GOOD])])
    assert run.engine.tally().counted == (3 if size <= 1 << 20 else 2)


def test_white_space_is_empty_at_any_length(make_engine):
    run = harness.check(make_engine(**LARGE), NATIVE, [Piece([b" " * (1 << 20), b"\t" * ((1 << 20) + 1), b"\r" * 3])])
    assert run.engine.tally().empty == 3


@pytest.mark.parametrize("size", [900, 899])
def test_a_batch_may_be_exactly_full(make_engine, size):
    engine = make_engine(**TINY)
    values = [padded(400), padded(size - 402)]
    assert sum(map(len, values)) + 2 == size
    run = harness.check(engine, NATIVE, [Piece(values), Piece([b"\n" * size]), Piece([b""] * size), Piece(values)])
    assert run.engine.tally().counted == 4


def test_a_pack_that_does_not_fit_says_so(make_engine):
    engine = make_engine(**TINY)
    with pytest.raises(ValueError, match="901 bytes of messages: expected at most batch_bytes = 900"):
        engine.pack([padded(900)])
    run = Run(engine, NATIVE)
    run.feed([GOOD])
    assert engine.tally().counted == 1


def test_an_empty_batch_changes_nothing(make_engine):
    run = harness.check(make_engine(), NATIVE, [Piece([]), Piece([GOOD]), Piece([]), Piece([], None, "other")])
    assert run.engine.tally().read == 1
    assert harness.rows_of(run.engine.changes()) == {}


def test_an_empty_batch_with_times_of_a_known_partition(make_engine):
    pieces = [Piece([GOOD], [TIME_MS]), Piece([], []), Piece([GOOD], [TIME_MS])]
    harness.check(make_engine(), NATIVE, pieces)


def test_the_backend_agrees_with_one_thread(make_engine):
    """The whole table of bad input and a fuzzed log: row for row what the plainest build says."""
    rng = random.Random(11)
    values = [case.value for case in CASES] + list(mutate.lines(rng, "native", NATIVE.oracle, 2000))
    pieces = [Piece(batch) for batch in harness.batches(values)]
    run = harness.meter(make_engine(**LARGE), NATIVE, pieces)
    plain = harness.meter(harness.make_engine(HostTarget(), secret_seed=9, **LARGE), NATIVE, pieces)
    assert run.rows() == plain.rows()
    assert run.letters == plain.letters


def test_the_oracle_and_the_harness_read_the_same_mapping():
    for name in harness.SHIPPED:
        mapping = shipped(name)
        assert mapping.engine.name == mapping.oracle["name"] == name
        paths = {path for spec in mapping.engine.fields for path in spec.paths}
        assert set(oracle.mapped_paths(mapping.oracle)) >= paths
