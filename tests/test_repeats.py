"""What becomes of records that repeat an identity: conflicting duplicates, and counters that grow.

The engine against the oracle: whatever the batches, tiles and generations, and over a restart.
"""

import functools

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import harness, oracle
from tests.harness import DEDUP_HORIZON_MS, Mapping, Piece, shipped
from tokenometer.kernels.values import Tally

START_MS = 1_795_392_000_000
NATIVE = shipped("native")
COUNTS = ("input_tokens", "cached_input_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens")
GROW = Mapping.parse(
    (harness.MAPPINGS / "native.toml").read_text().replace("format = 1", 'format = 2\nrepeats = "grow"'), "grow"
)


def record(**values: object) -> bytes:
    """A record of the native mapping; None leaves a field out."""
    fields = {
        "request_id": "r", "timestamp": START_MS, "user": "ann", "model": "m", "chip": "H100", "input_tokens": 100,
        "output_tokens": 10,
    } | values  # fmt: skip
    return orjson.dumps({name: value for name, value in fields.items() if value is not None})


# Made once: a strategy that is made for each draw costs more than the draw.
UP_TO = [st.integers(0, most) for most in range(4)]
IDS, USERS = st.sampled_from(["a", "b", "c", None]), st.sampled_from(["ann", "ann", "bob"])
WINDOWS, PREFILL_CHIPS = st.sampled_from([0, 0, 0, 1]), st.sampled_from([None, None, "P"])
STEPS_MS = st.sampled_from([0, 1, DEDUP_HORIZON_MS // 3, DEDUP_HORIZON_MS, 2 * DEDUP_HORIZON_MS])
MESSAGES, LINES = st.integers(1, 60), st.integers(1, 4)


@st.composite
def logs(draw: st.DrawFn) -> tuple[list[bytes], list[int]]:
    """Messages of a few identities that say much the same, and their times over several generations."""
    values, times, now = [], [], START_MS
    for _ in range(draw(MESSAGES)):
        lines = []
        for _ in range(draw(LINES)):
            given_, out = draw(UP_TO[3]), draw(UP_TO[3])
            lines.append(
                record(
                    request_id=draw(IDS),
                    user=draw(USERS),
                    timestamp=START_MS + 60_000 * draw(WINDOWS),
                    prefill_chip=draw(PREFILL_CHIPS),
                    input_tokens=given_,
                    cached_input_tokens=draw(UP_TO[given_]),
                    output_tokens=out,
                    reasoning_tokens=draw(UP_TO[out]),
                )  # fmt: skip
            )
        values.append(b"\n".join(lines))
        times.append(now)
        now += draw(STEPS_MS)
    return values, times


@pytest.mark.slow
@pytest.mark.parametrize("mapping", [NATIVE, GROW], ids=["first", "grow"])
@given(log=logs(), cuts=st.lists(st.integers(1, 59)), tile=st.sampled_from([1, 3, 64]))
@settings(max_examples=20 * harness.TIMES, deadline=None)
def test_cuts_tiles_and_generations_make_no_difference(make_engine, mapping, log, cuts, tile):
    harness.check(make_engine(tile_records=tile), mapping, harness.cut_pieces(*log, cuts))


@pytest.mark.slow
@pytest.mark.parametrize("mapping", [NATIVE, GROW], ids=["first", "grow"])
@given(log=logs(), where=st.integers(0, 60))
@settings(max_examples=20 * harness.TIMES, deadline=None)
def test_a_restart_makes_no_difference(make_engine, mapping, log, where):
    """What two generations of the log tell is read again, and no more."""
    harness.check_restart(make_engine, mapping, *log, where)


@pytest.mark.parametrize(
    ("change", "conflicts"),
    [
        ({}, 0),
        ({"note": "not mapped"}, 0),
        ({"timestamp": START_MS + 59_999}, 0),  # of the same window
        ({"timestamp": START_MS + 60_000}, 1),
        ({"user": "bob"}, 1),
        ({"model": "n"}, 1),
        ({"chip": "H200"}, 1),
        ({"prefill_chip": "H100"}, 1),
        ({"input_tokens": 101}, 1),
        ({"cached_input_tokens": 1}, 1),
        ({"cache_write_tokens": 1}, 1),
        ({"output_tokens": 11}, 1),
        ({"reasoning_tokens": 1}, 1),
    ],
)
def test_a_duplicate_that_says_something_else_is_kept(make_engine, change, conflicts):
    again = record(**change)
    run = harness.check(make_engine(), NATIVE, [Piece([record(), again])])
    assert run.engine.tally() == Tally(counted=1, duplicates=1, conflicts=conflicts)
    assert [letter[3:] for letter in run.letters] == [("conflicting_duplicate", None, again)] * conflicts


def test_the_letters_of_conflicts_can_be_left_out(make_engine):
    engine = make_engine(conflict_letters=False)
    progress = engine.count(engine.load(engine.pack([record(), record(user="bob")]), NATIVE.engine))
    assert progress.dead_letters == [] and engine.tally() == Tally(counted=1, duplicates=1, conflicts=1)


def test_letters_of_a_tile_come_in_the_order_of_its_records(make_engine):
    values = [record(), record(user="bob"), b"{", record(user="eve"), b"["]
    run = harness.check(make_engine(), NATIVE, [Piece(values)])
    assert [letter[1] for letter in run.letters] == [1, 2, 3, 4]


@pytest.mark.slow
def test_a_table_that_grows_keeps_what_its_ids_say(make_engine):
    """Thousands of ids, so that the table is left for a larger one while records of both kinds come."""
    for mapping, pieces, wanted in logs_of_many_ids():
        harness.assert_same(harness.meter(make_engine(tile_records=64), mapping, pieces), wanted)


@functools.cache
def logs_of_many_ids() -> list[tuple[Mapping, list[Piece], oracle.Meter]]:
    """The same for every engine, with what the oracle makes of it."""
    values = [record(request_id=f"id-{k % 4_000}", output_tokens=10 + k // 6_000) for k in range(12_000)]
    pieces = [Piece(part) for part in harness.batches(values)]
    return [(mapping, pieces, harness.expected(mapping, pieces)) for mapping in (NATIVE, GROW)]


def test_chunks_of_a_stream_count_once(make_engine):
    """Each chunk says the usage so far; a chunk that comes twice, or late, adds nothing."""
    chunks = [record(output_tokens=n, input_tokens=50) for n in (0, 1, 2, 5, 3, 5, 9)]
    run = harness.check(make_engine(tile_records=2), GROW, [Piece(chunks)])
    assert run.rows() == {(START_MS, "ann", "m", "H100"): [1, 50, 0, 0, 9, 0]}
    assert run.engine.tally() == Tally(counted=5, duplicates=2)


def test_what_was_added_is_booked_where_the_record_says(make_engine):
    chunks = [record(output_tokens=4), record(output_tokens=9, timestamp=START_MS + 60_000, user="bob")]
    run = harness.check(make_engine(), GROW, [Piece(chunks)])
    assert run.rows() == {
        (START_MS, "ann", "m", "H100"): [1, 100, 0, 0, 4, 0],
        (START_MS + 60_000, "bob", "m", "H100"): [0, 0, 0, 0, 5, 0],
    }


def test_a_mapping_that_grows_takes_more_memory_and_another_none(make_engine, id_bytes):
    held = {}
    for name, mapping in (("first", NATIVE), ("grow", GROW)):
        run = harness.check(make_engine(), mapping, [Piece([record()])])
        held[name] = run.engine._partition(0).identities.held_bytes
    assert held == {"first": 4096 * id_bytes, "grow": 4096 * 56}
