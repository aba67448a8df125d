"""What `mappings check` finds: fates, repeats, and what looks like a mistake in the mapping."""

import json
from datetime import UTC, datetime

import pytest

from tokenometer.processor.files.decoded import decoder_of, sample_lines
from tokenometer.processor.records import plausible
from tokenometer.processor.records.mapping_check import check
from tokenometer.schemas import mapping as mappings
from tokenometer.schemas.mapping import parse

TOML = """
format = 2
name = "example"
description = "An example."
input_tokens_are = "inclusive"
output_tokens_are = "inclusive"
{head}
[fields.request_id]
path = "id"
{id}
[fields.timestamp]
path = "time"
formats = ["{unit}"]
[fields.user]
path = "user"
[fields.model]
path = "model"
[fields.chip]
constant = "H100"
[fields.input_tokens]
path = "in"
[fields.cached_input_tokens]
path = "cached"
[fields.output_tokens]
path = "out"
"""
RECORD = {"id": "a", "time": 1_795_453_500_000, "user": "u", "model": "m", "in": 10, "out": 5}


def mapping(head="", unit="epoch_ms", **more):
    return parse(TOML.format(head=head, unit=unit, id=more.get("id", "")), "example.toml")


def found(*changes, **options):
    return check([json.dumps(RECORD | change).encode() for change in changes], mapping(**options))


def test_a_repeat_that_says_the_same_is_a_duplicate_and_another_is_a_conflict():
    result = found({}, {}, {"out": 6}, {"time": RECORD["time"] + 1}, {"user": "v"}, {"id": "b"})
    assert (result.counted, result.duplicates, result.conflicts, result.first_conflict) == (2, 4, 2, 3)
    assert result.read == 6 and result.usage.output_tokens == 10


def test_another_window_is_a_conflict():
    result = found({}, {"time": RECORD["time"] + 60_000})
    assert (result.duplicates, result.conflicts) == (1, 1)


def test_identity_takes_in_the_fields_that_the_mapping_names():
    result = found({}, {"user": "v"}, id='with = ["user"]')
    assert (result.counted, result.duplicates) == (2, 0)


def test_records_without_an_id_are_no_duplicates():
    assert found({"id": None}, {"id": None}).counted == 2


def test_usage_that_grows_counts_up_to_its_greatest():
    result = found({"out": 1}, {"out": 5}, {"out": 3}, {"in": 11}, head='repeats = "grow"')
    assert (result.counted, result.duplicates, result.conflicts) == (3, 1, 0)
    assert (result.usage.requests, result.usage.input_tokens, result.usage.output_tokens) == (1, 11, 5)


def test_skipped_and_rejected_and_empty_are_told_apart():
    lines = [json.dumps(RECORD | {"user": "nobody"}).encode(), b"{}", b" \t", b"no JSON"]
    result = check(lines, mapping(head='[[skip]]\npath = "user"\nin = ["nobody"]'))
    assert (result.skipped, result.rejected, result.empty, result.read) == (1, 2, 1, 4)


@pytest.mark.parametrize(
    ("time", "unit", "words"),
    [
        (1_795_453_500, "epoch_ms", 'these look like seconds: formats = ["epoch_s"]'),
        (1_795_453_500.5, "epoch_ms", 'these look like seconds: formats = ["epoch_s_decimal"]'),
        (1_795_453_500_000, "epoch_s", 'these look like milliseconds: formats = ["epoch_ms"]'),
        (1_795_453_500_000, "epoch_ns", 'these look like milliseconds: formats = ["epoch_ms"]'),
        (1_795_453_500_000_000, "epoch_ms", 'these look like microseconds: formats = ["epoch_us"]'),
        (1_795_453_500_000_000_000, "epoch_us", 'these look like nanoseconds: formats = ["epoch_ns"]'),
    ],
)
def test_times_out_of_our_time_are_named_with_the_unit_that_they_look_like(time, unit, words):
    (hint,) = found({"time": time}, unit=unit).hints
    assert words in hint


def test_few_strange_times_among_many_are_no_hint():
    assert not found({"id": "1", "time": 5}, {"id": "2"}, {"id": "3"}).hints


def test_a_field_that_no_record_has_is_named_with_what_the_log_has():
    record = {key: value for key, value in RECORD.items() if key not in ("in", "user")}
    lines = [json.dumps(record | {"prompt_tokens": 9, "user_id": "u", "cache_read_input_tokens": 4}).encode()]
    assert check(lines, mapping()).hints == [
        'no record has user ("user"); the log has "user_id"',
        'no record has input_tokens ("in"); the log has "prompt_tokens"',
        'no record has cached_input_tokens ("cached"); the log has "cache_read_input_tokens"',
    ]


def test_an_optional_part_that_the_log_does_not_have_is_no_hint():
    assert not found({}).hints


@pytest.mark.parametrize(
    "more", [{"bot_usage": None}, {"bot_usage": {"model_usage": None}}, {"bot_usage": {"model_usage": []}}, {}]
)
def test_an_answer_of_ark_without_models_counts_itself(more):
    ark = mappings.resolve("ark")
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    record = {"request_id": "r", "timestamp": 1_795_453_500_000, "user": "u", "chip": "c"}
    line = json.dumps(record | {"response": {"id": "a", "model": "m", "usage": usage} | more}).encode()
    result = check(sample_lines([line], decoder_of(ark)()), ark)
    assert (result.counted, result.usage.total_tokens) == (1, 15)


def test_a_time_that_replay_refuses_by_default_is_refused():
    assert plausible.NOT_BEFORE_MS == datetime(2015, 1, 1, tzinfo=UTC).timestamp() * 1000
    result = found({"time": plausible.NOT_BEFORE_MS}, {"id": "b", "time": plausible.NOT_BEFORE_MS - 1})
    assert result.counted == 1 and list(result.rejects) == [("past_timestamp", "timestamp")]
