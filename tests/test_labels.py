"""Labels, brackets and further counters: what a row carries of what a price depends on.

The engine against the oracle over any cut, tile and restart; the meter's rows and the audit; and inputs that try to
break them. The fuzz (tests/test_fuzz.py) and tests/test_rules.py read such mappings, too.
"""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import harness, streams
from tests.harness import DEDUP_HORIZON_MS, Mapping, Piece
from tests.test_output import expected, labelled_rows, some_rows
from tokenometer.kernels import layout
from tokenometer.kernels.engine import Engine, TablesTooSmall
from tokenometer.kernels.plan import compile_mapping
from tokenometer.kernels.values import Tally
from tokenometer.processor.broker.memory import MemoryBroker
from tokenometer.processor.files.label_sums import LabelSums
from tokenometer.processor.records.mapping_check import check
from tokenometer.processor.verify import VerifySettings, verify
from tokenometer.schemas.mapping import MappingError, parse
from tokenometer.schemas.usage import COUNTERS, FURTHER

MakeEngine = Callable[..., Engine]
START_MS = 1_795_392_000_000
NATIVE = (harness.MAPPINGS / "native.toml").read_text().replace("format = 1", "format = 2")
FURTHER_FIELDS = "".join(f'[fields.{name}]\npath = "{name}"\n' for name in FURTHER)
LABELS = """
[labels.team]
path = "team"
[labels.service_tier]
path = "tier"
aliases = [["meta", "tier"]]
empty = "absent"
[labels.api_key]
path = "key"
numbers = true
[labels.context]
bracket_of = "input_tokens"
edges = [100, 32000]
"""
PLAIN = Mapping.parse(NATIVE, "plain")
LABELLED = Mapping.parse(NATIVE + FURTHER_FIELDS + LABELS, "labelled")
GROW = Mapping.parse('repeats = "grow"\n' + NATIVE + FURTHER_FIELDS + LABELS, "grow")
HOSTILE = [
    '{"team":"x"}', "'; DROP TABLE rows; --", 'a","part":"', "\\", '"', "\u0000", "0-100", "null", "研究", "x" * 256,
    "\u202e", "</script>", " ",
]  # fmt: skip


def record(**values: Any) -> bytes:
    """A record of the native mapping; None leaves a field out."""
    fields = {
        "request_id": None, "timestamp": START_MS, "user": "ann", "model": "m", "chip": "H100", "input_tokens": 100,
        "output_tokens": 10,
    } | values  # fmt: skip
    return orjson.dumps({name: value for name, value in fields.items() if value is not None})


def labelled_record(draw: random.Random) -> bytes:
    tokens = draw.choice([0, 50, 100, 101, 32_000, 32_001])
    cached, out = draw.randint(0, min(tokens, 9)), draw.randint(0, 9)
    return record(
        request_id=draw.choice(["a", "b", "c", None, None]),
        timestamp=START_MS + 60_000 * draw.choice([0, 0, 0, 1]),
        user=draw.choice(["ann", "ann", "bob"]),
        prefill_chip=draw.choice([None, None, "P"]),
        team=draw.choice([None, "red", "blue", *HOSTILE]),
        tier=draw.choice([None, "", "batch"]),
        meta=draw.choice([None, {"tier": "flex"}]),
        key=draw.choice([None, 7, "7", "k"]),
        input_tokens=tokens,
        cached_input_tokens=cached,
        output_tokens=out,
        audio_input_tokens=draw.choice([None, 0, draw.randint(0, tokens)]),
        audio_cached_input_tokens=draw.choice([None, draw.randint(0, cached)]),
        audio_output_tokens=draw.choice([None, draw.randint(0, out)]),
    )


@st.composite
def logs(draw: st.DrawFn) -> tuple[list[bytes], list[int]]:
    """Messages of a few identities and labels, and their times over several generations."""
    source = random.Random(draw(st.integers(0, 1 << 30)))
    values, times, now = [], [], START_MS
    for _ in range(draw(st.integers(1, 40))):
        values.append(b"\n".join(labelled_record(source) for _ in range(source.randint(1, 4))))
        times.append(now)
        now += source.choice([0, 1, DEDUP_HORIZON_MS // 3, DEDUP_HORIZON_MS, 2 * DEDUP_HORIZON_MS])
    return values, times


# --- The engine ---


@pytest.mark.slow
@pytest.mark.parametrize("mapping", [LABELLED, GROW], ids=["first", "grow"])
@given(log=logs(), cuts=st.lists(st.integers(1, 39)), tile=st.sampled_from([1, 3, 64]))
@settings(max_examples=20 * harness.TIMES, deadline=None)
def test_cuts_tiles_and_generations_make_no_difference(make_engine, mapping, log, cuts, tile):
    harness.check(make_engine(tile_records=tile), mapping, harness.cut_pieces(*log, cuts))


@pytest.mark.slow
@pytest.mark.parametrize("mapping", [LABELLED, GROW], ids=["first", "grow"])
@given(log=logs(), where=st.integers(0, 40))
@settings(max_examples=20 * harness.TIMES, deadline=None)
def test_a_restart_makes_no_difference(make_engine, mapping, log, where):
    """What two generations of the log tell is read again, labels and further counters with it."""
    harness.check_restart(make_engine, mapping, *log, where)


@pytest.mark.slow
@given(log=logs())
@settings(max_examples=20 * harness.TIMES, deadline=None)
def test_rows_summed_over_labels_are_the_rows_without(make_engine, log):
    """Labels divide rows. They change no number, no user, and no cell."""
    piece = Piece(log[0])
    runs = [harness.meter(make_engine(), mapping, [piece]) for mapping in (LABELLED, PLAIN)]
    sums: harness.Rows = {}
    for key, counters in runs[0].rows().items():
        harness.add_rows(sums, {key[:4]: counters[:6]})
    counted, plain = (run.engine.tally().counted for run in runs)
    assert counted == plain, "no record is refused for its labels here"
    assert sums == runs[1].rows()
    labelled, other = (run.engine for run in runs)
    assert labelled.user_tokens() == other.user_tokens() and labelled.top_users(2) == other.top_users(2)
    assert set(labelled.cells()) == set(other.cells()) and labelled.totals() == other.totals()
    sketches, others = labelled.sketches(), other.sketches()
    assert sketches.keys() == others.keys()
    assert all((sketches[start] == others[start]).all() for start in sketches), "active users are users, not accounts"


def test_mappings_share_an_account_where_their_labels_are_the_same(make_engine):
    """Two topics of one meter: a row's identity is its labels, not the mapping that read them."""
    some = Mapping.parse(NATIVE + '[labels.team]\npath = "group"\n[labels.aa]\npath = "aa"\n', "some")
    team = Mapping.parse(NATIVE + '[labels.team]\npath = "team"\n', "team")
    grouped = record(group="red", aa="x") + b"\n" + record(group="red") + b"\n" + record()
    order = [(team, record(team="red")), (some, grouped), (PLAIN, record()), (some, grouped), (team, record())]
    at = [Piece([value], None, mapping.engine.source, mapping) for mapping, value in order]
    run = harness.check(make_engine(), PLAIN, at)
    requests = {key[4:]: row[0] for key, row in run.rows().items()}
    assert requests == {(): 4, ((("team", "red"),),): 3, ((("aa", "x"), ("team", "red")),): 2}


@pytest.mark.parametrize("value", HOSTILE)
def test_a_label_may_be_any_string_of_256_bytes(make_engine, value):
    run = harness.check(make_engine(), LABELLED, [Piece([record(team=value)])])
    [key] = run.rows()
    assert key[4] == (("context", "0-100"), ("team", value))


@pytest.mark.parametrize(
    ("change", "reason", "name"),
    [
        ({"team": "x" * 257}, "bad_string", "labels.team"),
        ({"team": "é" * 128 + "x"}, "bad_string", "labels.team"),
        ({"team": ""}, "bad_string", "labels.team"),
        ({"team": 7}, "wrong_type", "labels.team"),
        ({"team": ["red"]}, "wrong_type", "labels.team"),
        ({"key": 7.0}, "wrong_type", "labels.api_key"),
        ({"meta": 1}, "wrong_type", "labels.service_tier"),
        ({"audio_input_tokens": 101}, "inconsistent_counts", None),
        ({"audio_output_tokens": 11}, "inconsistent_counts", None),
        ({"cache_write_1h_tokens": 1}, "inconsistent_counts", None),
        ({"audio_cached_input_tokens": 1}, "inconsistent_counts", None),
        ({"image_input_tokens": -1}, "bad_count", "image_input_tokens"),
        ({"image_input_tokens": 1 << 40}, "bad_count", "image_input_tokens"),
        ({"image_input_tokens": "1"}, "wrong_type", "image_input_tokens"),
        ({"image_input_tokens": 1, "team": ""}, "bad_string", "labels.team"),  # labels come after the counts
    ],
)
def test_bad_labels_and_parts_are_rejected_with_their_reason(make_engine, change, reason, name):
    bad = record(**change)
    run = harness.check(make_engine(), LABELLED, [Piece([bad, record()])])
    assert [letter[3:] for letter in run.letters] == [(reason, name, bad)]
    assert run.engine.tally() == Tally(counted=1, rejected=1)


@pytest.mark.parametrize(
    ("tokens", "bracket"),
    [
        (0, "0-100"),
        (100, "0-100"),
        (101, "101-32000"),
        (32_000, "101-32000"),
        (32_001, "32001-"),
        (2**40 - 1, "32001-"),
    ],
)
def test_a_bracket_is_the_range_that_holds_the_count(make_engine, tokens, bracket):
    run = harness.check(make_engine(), LABELLED, [Piece([record(input_tokens=tokens)])])
    assert [key[4] for key in run.rows()] == [(("context", bracket),)]


def test_a_bracket_is_of_the_inclusive_count(make_engine):
    """Cached tokens beside the input make the request longer than its own field says."""
    additive = NATIVE.replace('input_tokens_are = "inclusive"', 'input_tokens_are = "additive"')
    mapping = Mapping.parse(additive + LABELS, "additive")
    run = harness.check(make_engine(), mapping, [Piece([record(input_tokens=60, cached_input_tokens=41)])])
    assert [key[4] for key in run.rows()] == [(("context", "101-32000"),)]


def test_further_counters_follow_the_chip_of_their_side(make_engine):
    values = record(
        prefill_chip="P", input_tokens=50, audio_input_tokens=3, image_input_tokens=4, audio_output_tokens=5
    )
    run = harness.check(make_engine(), LABELLED, [Piece([values])])
    place, labels = (START_MS, "ann", "m"), (("context", "0-100"),)
    assert run.rows() == {
        (*place, "P", labels): [0, 50, 0, 0, 0, 0, 0, 3, 4, 0, 0],
        (*place, "H100", labels): [1, 0, 0, 0, 10, 0, 0, 0, 0, 0, 5],
    }


@pytest.mark.parametrize(
    ("change", "conflicts"),
    [
        ({}, 0),
        ({"tier": ""}, 0),  # as good as none
        ({"team": "red"}, 1),
        ({"tier": "batch"}, 1),
        ({"key": 7}, 1),
        ({"audio_input_tokens": 1}, 1),
        ({"audio_output_tokens": 1}, 1),
    ],
)
def test_a_duplicate_with_other_labels_or_parts_is_a_conflict(make_engine, change, conflicts):
    again = record(request_id="r", **change)
    run = harness.check(make_engine(), LABELLED, [Piece([record(request_id="r"), again])])
    assert run.engine.tally() == Tally(counted=1, duplicates=1, conflicts=conflicts)


def test_what_grew_is_booked_under_the_labels_that_the_record_says(make_engine):
    """The bracket is that of the record's own count, not of what it adds; further counters grow by themselves."""
    chunks = [
        record(request_id="r", input_tokens=90, output_tokens=4, team="red", audio_input_tokens=5),
        record(request_id="r", input_tokens=101, output_tokens=9, team="blue", audio_input_tokens=5),
        record(request_id="r", input_tokens=101, output_tokens=9, team="blue", audio_input_tokens=7),
        record(request_id="r", input_tokens=101, output_tokens=9, team="red", audio_input_tokens=7),
    ]
    run = harness.check(make_engine(tile_records=2), GROW, [Piece(chunks)])
    place = (START_MS, "ann", "m", "H100")
    assert run.rows() == {
        (*place, (("context", "0-100"), ("team", "red"))): [1, 90, 0, 0, 4, 0, 0, 5, 0, 0, 0],
        (*place, (("context", "101-32000"), ("team", "blue"))): [0, 11, 0, 0, 5, 0, 0, 2, 0, 0, 0],
    }
    assert run.engine.tally() == Tally(counted=3, duplicates=1)


def test_growing_further_counters_take_more_memory_and_others_none(make_engine, id_bytes):
    held = {}
    other = Mapping.parse('repeats = "grow"\n' + NATIVE + LABELS, "grow without parts")
    for name, mapping in (("parts", GROW), ("none", other), ("first", LABELLED)):
        run = harness.check(make_engine(), mapping, [Piece([record(request_id="r")])])
        held[name] = run.engine._partition(0).identities.held_bytes
    assert held == {"parts": 4096 * 96, "none": 4096 * 56, "first": 4096 * id_bytes}


@pytest.mark.slow
def test_a_hundred_thousand_values_of_a_label_are_counted(make_engine):
    values = [record(team=f"team-{k}") for k in range(100_000)]
    run = harness.meter(make_engine(), LABELLED, [Piece(part) for part in harness.batches(values)])
    rows = run.rows()
    assert len(rows) == 100_000 and {row[0] for row in rows.values()} == {1}
    assert {dict(key[4])["team"] for key in rows} == {f"team-{k}" for k in range(100_000)}


def test_small_tables_open_parts_and_lose_nothing(make_engine):
    """Values of labels, accounts and further counters fill the tables of a part."""
    draw = random.Random(5)
    values = [
        record(user=f"u{draw.randrange(40)}", team=f"t{draw.randrange(900)}", audio_input_tokens=draw.randrange(100))
        for _ in range(3000)
    ]
    small = {"rows": 512, "cells": 512, "texts": 512, "arena_bytes": 1 << 14, "batch_bytes": 4000, "tile_records": 16}
    run = harness.check(make_engine(**small), LABELLED, [Piece(part) for part in harness.batches(values, 4000)])
    assert run.parts > 3


@pytest.mark.parametrize(
    ("setting", "limits"), [("texts", {"texts": 64}), ("arena_bytes", {"arena_bytes": 9000})], ids=["texts", "arena"]
)
def test_labels_that_one_message_could_overfill_tables_with_are_refused_by_name(make_engine, setting, limits):
    engine = make_engine(**{"batch_bytes": 4000, **limits})
    with pytest.raises(TablesTooSmall, match=rf"^{setting} = {limits[setting]}\b"):
        engine.load(engine.pack([record()]), LABELLED.engine)


def test_the_longest_defaults_and_brackets_fit_before_a_batch(make_engine):
    """Eight labels, each with what takes most room, beside the longest defaults of names."""
    edges = [(1 << 40) - 17 + k for k in range(16)]
    text = NATIVE + "".join(f'[labels.b{k}]\nbracket_of = "input_tokens"\nedges = {edges}\n' for k in range(8))
    for name in ("user", "model", "chip"):
        text = text.replace(
            f'[fields.{name}]\npath = "{name}"', f'[fields.{name}]\npath = "{name}"\ndefault = "{name[0] * 256}"'
        )
    mapping = Mapping.parse(text, "longest")
    assert 3 * 256 + 8 * 17 * 20 < len(compile_mapping(mapping.engine).prefix) <= layout.PREFIX_BYTES
    harness.check(make_engine(), mapping, [Piece([record(user=None, chip=None), record(input_tokens=edges[3])])])


# --- Mappings ---

C = "[labels.c]\nbracket_of = 'input_tokens'\n"
ONE = '[labels.team]\npath = "team"\n'


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("".join(f'[labels.l{k}]\npath = "p{k}"\n' for k in range(9)), "labels: expected at most 8 labels, found 9"),
        ("labels = 3\n", "labels: expected a table with one table for each label"),
        ("[labels]\n", "labels: expected a table with one table for each label"),
        ('[labels.Team]\npath = "t"\n', "labels.Team: expected a name of 1 to 63 characters of a-z, 0-9 and _"),
        (f'[labels.{"t" * 64}]\npath = "t"\n', "expected a name of 1 to 63 characters"),
        ('[labels.user]\npath = "t"\n', "labels.user: user is already the name of something else"),
        ('[labels.total_tokens]\npath = "t"\n', "total_tokens is already the name of something else"),
        ('[labels.audio_input_tokens]\npath = "t"\n', "is already the name of something else"),
        ("[labels.team]\n", "labels.team: expected path or constant, found nothing"),
        ('[labels.team]\npath = "t"\ndigits = true\n', "labels.team.digits: not for this field"),
        ('[labels.team]\npath = "t"\nconstant = "c"\n', "labels.team.path: excluded by constant"),
        (f'[labels.team]\nconstant = "{"c" * 257}"\n', "labels.team.constant: expected a string of 1 to 256 bytes"),
        (f'{ONE}[labels.x]\npath = ["team", "y"]\n', 'begins with the path of labels.team.path'),
        (C, "labels.c.edges: expected a list of 1 to 16 integers, found nothing"),
        ("[labels.c]\nbracket_of = 'input'\nedges = [1]\n", "labels.c.bracket_of: expected one of input_tokens"),
        ("[labels.c]\nbracket_of = 'requests'\nedges = [1]\n", "labels.c.bracket_of: expected one of input_tokens"),
        ("[labels.c]\nedges = [1]\n", "labels.c.bracket_of: expected one of input_tokens"),
        (C + "edges = [1]\npath = 'x'\n", "labels.c.path: excluded by bracket_of"),
        (C + "edges = []\n", "labels.c.edges: expected a list of 1 to 16 integers"),
        (C + f"edges = {list(range(17))}\n", "expected a list of 1 to 16 integers"),
        (C + "edges = [5, 5]\n", "edges[1]: expected edges that rise: more than 5, found 5"),
        (C + "edges = [9, 5]\n", "edges[1]: expected edges that rise: more than 9"),
        (C + "edges = [-1]\n", "labels.c.edges[0]: expected an integer, 0 <= n < 2^40"),
        (C + "edges = [1.5]\n", "labels.c.edges[0]: expected an integer"),
        (C + "edges = [true]\n", "labels.c.edges[0]: expected an integer"),
        (C + f"edges = [{1 << 40}]\n", "labels.c.edges[0]: expected an integer"),
        ('[fields.audio_input_tokens]\nconstant = 1\n', "fields.audio_input_tokens.constant: not for this field"),
        ('[fields.video_tokens]\npath = "v"\n', "fields.video_tokens: unknown key"),
    ],
)  # fmt: skip
def test_errors_of_labels_name_the_place_and_what_was_expected(text, error):
    whole = text + NATIVE if text.startswith("labels =") else NATIVE + text
    with pytest.raises(MappingError) as raised:
        parse(whole, "native.toml")
    assert str(raised.value).startswith("native.toml: ") and error in str(raised.value)


@pytest.mark.parametrize("text", [ONE, '[fields.audio_input_tokens]\npath = "a"\n'])
def test_format_1_says_that_labels_and_parts_need_format_2(text):
    with pytest.raises(MappingError, match="needs format = 2"):
        parse(NATIVE.replace("format = 2", "format = 1") + text, "native.toml")


def test_a_part_of_a_counter_that_is_not_read_is_a_mistake():
    text = NATIVE.replace('[fields.cache_write_tokens]\npath = "cache_write_tokens"\n', "")
    assert text != NATIVE
    with pytest.raises(MappingError, match="cache_write_1h_tokens: is a part of cache_write_tokens, which"):
        parse(text + '[fields.cache_write_1h_tokens]\npath = "w"\n', "native.toml")


def test_at_most_eight_labels_of_at_most_63_characters_and_16_edges_are_taken():
    labels = "".join(f'[labels.l{k}{"x" * 61}]\npath = "p{k}"\n' for k in range(7))
    mapping = parse(
        NATIVE + labels + f"[labels.c]\nbracket_of = 'output_tokens'\nedges = {list(range(16))}\n", "native"
    )
    assert len(mapping.labels) == 8 and [label.name for label in mapping.labels] == sorted(
        label.name for label in mapping.labels
    )


# --- The meter and the audit ---

AUDIT = VerifySettings(dedup_horizon_ms=DEDUP_HORIZON_MS, settle_seconds=0, processes=1, max_past_ms=None)


def broker_with(values: list[bytes], partitions: int = 2) -> MemoryBroker:
    broker = MemoryBroker(patience_seconds=0)
    streams.make_topics(broker, partitions)
    keys = [b"%d" % (k % 5) for k in range(len(values))]
    broker.append(streams.INPUT, values, keys, streams.times_of(START_MS, len(values), 400))
    broker.flush()
    return broker


def run_meter(broker: MemoryBroker, mapping: Mapping, name: str, steps: int) -> None:
    meter = streams.make_meter(broker, name, inputs={streams.INPUT: mapping})  # type: ignore[dict-item]
    meter.open()
    for _ in range(steps):
        meter.step()
    meter.close()


@pytest.mark.parametrize("mapping", [LABELLED, GROW], ids=["first", "grow"])
def test_the_meters_rows_and_the_audit_agree_over_a_restart(mapping):
    draw = random.Random(7)
    values = [labelled_record(draw) for _ in range(3000)] + [record(team=""), record(audio_output_tokens=11)]
    broker = broker_with(values)
    for name in ("meter-0", "meter-1"):
        run_meter(broker, mapping, name, 6)
    run_meter(broker, mapping, "meter-2", 40)
    found = streams.assert_exact(broker, {streams.INPUT: mapping})
    assert any(len(key) == 5 for key in found.rows) and any(len(row) > 6 for row in found.rows.values())
    report = verify(broker, streams.GROUP, {streams.INPUT: mapping.engine}, AUDIT)
    assert (report.problems, report.differences, report.letter_differences) == ((), (), ()) and report.clean
    assert report.found_rows == len(found.rows)


@pytest.mark.parametrize("damage", ["label", "further", "no labels", "schema 1"])
def test_the_audit_finds_another_label_and_another_part_of_a_count(damage):
    broker = broker_with([record(team="red", audio_input_tokens=5)], partitions=1)
    run_meter(broker, LABELLED, "meter-0", 10)
    [(key, value, _)] = streams.read_topic(broker, streams.USAGE, keys=True)
    key, value = orjson.loads(key), orjson.loads(value)
    if damage == "label":
        key["labels"]["team"] = value["labels"]["team"] = "blue"
    elif damage == "further":
        value["audio_input_tokens"] = 6
    elif damage == "no labels":
        del key["labels"], value["labels"]
    else:
        value["schema"] = 1
    broker.append(streams.USAGE, [orjson.dumps(value)], [orjson.dumps(key)], [START_MS])
    broker.flush()
    report = verify(broker, streams.GROUP, {streams.INPUT: LABELLED.engine}, AUDIT)
    assert not report.clean
    if damage == "further":
        assert report.differences[0].further == (("audio_input_tokens", 5, 6),)
    if damage == "label":
        assert "blue" in report.differences[-1].labels or "blue" in report.differences[0].labels


@pytest.mark.parametrize(
    "labels",
    [{}, {"b": "x", "a": "x"}, {"Team": "x"}, {"team": ""}, {"team": 7}, {"team": "x" * 257}, ["team"], None,
     {f"l{k}": "x" for k in range(9)}],
)  # fmt: skip
def test_the_audit_refuses_labels_that_are_none(labels):
    broker = broker_with([record(team="red")], partitions=1)
    run_meter(broker, LABELLED, "meter-0", 10)
    [(key, value, _)] = streams.read_topic(broker, streams.USAGE, keys=True)
    damaged = [orjson.dumps(orjson.loads(text) | {"labels": labels}) for text in (value, key)]
    broker.append(streams.USAGE, damaged[:1], damaged[1:], [START_MS])
    broker.flush()
    report = verify(broker, streams.GROUP, {streams.INPUT: LABELLED.engine}, AUDIT)
    assert [problem.kind for problem in report.problems] == ["row"] and "label" in report.problems[0].what


def test_the_check_of_a_mapping_shows_labels_and_further_counters():
    again = [record(request_id="r", team="red", tier="batch"), record(request_id="r", team="blue")]
    found = check([record(team="red", audio_input_tokens=7), *again], LABELLED.engine)
    assert (found.counted, found.duplicates, found.conflicts, found.first_conflict) == (2, 1, 1, 3)
    assert (found.fields["labels.team"].records, found.fields["labels.team"].examples) == (2, ["red"])
    assert found.fields["labels.context"].examples == ["0-100"]
    assert (found.fields["audio_input_tokens"].total, found.fields["audio_input_tokens"].records) == (7, 1)


def test_sums_by_a_label_add_up_over_parts():
    first, second = labelled_rows(300), labelled_rows(50, seed=3)
    for rows in (first, second):
        rows.table["counters"] >>= np.uint64(20)  # an engine keeps a part's sums within 64 bits
    sums = LabelSums(["team", "region"])
    for rows in (first, second, some_rows(1)):
        sums.take(rows)
    everything = [*expected(first, "p"), *expected(second, "p"), *expected(some_rows(1), "p")]
    for name, found in sums.sorted().items():
        wanted: dict[str | None, list[int]] = {}
        for row in everything:
            of_value = wanted.setdefault(row.get("labels", {}).get(name), [0] * 6)
            of_value[:] = [a + row[counter] for a, counter in zip(of_value, COUNTERS, strict=True)]
        assert {value: list(usage) for value, usage in found.items()} == wanted
        assert [usage.total_tokens for usage in found.values()] == sorted(
            (row[1] + row[4] for row in wanted.values()), reverse=True
        )
