"""The oracle against the table of bad input, examples computed by hand, and a few properties."""

import json
import random

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import mutate
from tests.bad_input import CASES, GOOD, TIME_MS, Case, changed
from tests.oracle import Canonical, Meter, Verdict, has_repeated_field, judge, records

NATIVE: dict = {
    "format": 1,
    "name": "native",
    "description": "The canonical names at the top level.",
    "input_tokens_are": "inclusive",
    "output_tokens_are": "inclusive",
    "fields": {
        "request_id": {"path": "request_id"},
        "timestamp": {"path": "timestamp", "formats": ["epoch_ms", "rfc3339"]},
        "user": {"path": "user"},
        "model": {"path": "model"},
        "chip": {"path": "chip"},
        "prefill_chip": {"path": "prefill_chip"},
        "input_tokens": {"path": "input_tokens"},
        "cached_input_tokens": {"path": "cached_input_tokens"},
        "cache_write_tokens": {"path": "cache_write_tokens"},
        "output_tokens": {"path": "output_tokens"},
        "reasoning_tokens": {"path": "reasoning_tokens"},
    },
}

# Aliases, default, constant, fallback, scope, nested paths, digit strings, additive counts.
GATEWAY: dict = {
    "format": 1,
    "name": "gateway",
    "description": "Everything that a mapping can say about single counters.",
    "input_tokens_are": "additive",
    "output_tokens_are": "additive",
    "fields": {
        "request_id": {"path": ["meta", "id"], "scope": "source", "required": True},
        "timestamp": {"path": "time", "formats": ["epoch_s_decimal"], "fallback": "message_time"},
        "user": {"path": ["meta", "user_id"], "aliases": ["user", ["auth", "sub"]], "default": "unknown"},
        "model": {"path": "gen_ai.model"},
        "chip": {"constant": "H100"},
        "input_tokens": {"path": ["usage", "in"], "digits": True, "default": 0},
        "cached_input_tokens": {"path": ["usage", "cached"]},
        "cache_write_tokens": {"path": ["usage", "written"]},
        "output_tokens": {"path": ["usage", "out"]},
        "reasoning_tokens": {"path": ["usage", "details", "reasoning"]},
    },
}

# One event for each token type.
EVENTS: dict = {
    "format": 1,
    "name": "events",
    "description": "One CloudEvent for each token type.",
    "input_tokens_are": "inclusive",
    "output_tokens_are": "inclusive",
    "fields": {
        "request_id": {"path": "id", "scope": "source"},
        "timestamp": {"path": "time", "formats": ["rfc3339"]},
        "user": {"path": "subject"},
        "model": {"path": ["data", "model"]},
        "chip": {"path": ["data", "chip"]},
        "tokens": {
            "path": ["data", "tokens"],
            "digits": True,
            "by": ["data", "type"],
            "requests": "output",
            "to": {"input": "input_tokens", "output": "output_tokens", "cached": "cached_input_tokens"},
        },
    },
}


def gateway_line(**changes: object) -> bytes:
    return orjson.dumps({"meta": {"id": "r", "user_id": "alice"}, "time": 1795000000.25, "gen_ai.model": "m",
                         "usage": {"in": 10, "out": 5}} | changes)  # fmt: skip


def event_line(**data: object) -> bytes:
    data = {"model": "m", "chip": "H100", "type": "input", "tokens": 7} | data
    return orjson.dumps({"id": "e", "time": "2026-11-18T11:06:40Z", "subject": "alice", "data": data})


def rejected(reason: str, field: str | None = None) -> Verdict:
    return Verdict("rejected", reason, field)


def accepted(line: bytes, mapping: dict, message_time: int | None = None) -> Canonical:
    verdict = judge(line, mapping, message_time)
    assert verdict.record is not None, verdict
    return verdict.record


def verdicts_by_feeding(case: Case) -> list[str]:
    """One verdict a record, from the totals and dead letters of a meter that is fed one message at a time."""
    meter = Meter()
    verdicts = []
    for line in records(case.value):
        before = (meter.counted, meter.duplicates, meter.empty)
        meter.feed(NATIVE, line, case.message_time)
        after = (meter.counted, meter.duplicates, meter.empty)
        if before == after:
            reason, field = meter.dead_letters[-1][3:5]
            verdicts.append(f"rejected:{reason}" + (f":{field}" if field else ""))
        else:
            grown = [now > then for now, then in zip(after, before, strict=True)]
            verdicts.append(("counted", "duplicate", "empty")[grown.index(True)])
    return verdicts


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input(case: Case) -> None:
    assert tuple(verdicts_by_feeding(case)) == case.expect
    meter = Meter()
    meter.feed(NATIVE, case.value, case.message_time)
    assert meter.read == len(case.expect)
    assert meter.counted == case.expect.count("counted")
    assert meter.duplicates == case.expect.count("duplicate")
    assert meter.empty == case.expect.count("empty")
    assert meter.rejected + meter.conflicts == len(meter.dead_letters)
    assert meter.rejected == meter.reasons.total()


def test_case_names_are_distinct() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


def test_native_record() -> None:
    line = (
        b'{"request_id":"r","timestamp":"2026-11-18T11:06:40.9999Z","user":"\\u0061lice","model":"m","chip":"H100",'
        b'"prefill_chip":"L40S","input_tokens":10,"cached_input_tokens":3,"cache_write_tokens":2,"output_tokens":5,'
        b'"reasoning_tokens":1,"x":{"user":[]}}'
    )
    assert accepted(line, NATIVE) == Canonical(
        "r", None, TIME_MS + 999, "alice", "m", "H100", "L40S", 1, 10, 3, 2, 5, 1
    )


def test_rows_by_window_and_prefill_chip() -> None:
    meter = Meter(window_ms=60_000)
    split = {
        "prefill_chip": b'"L40S"',
        "cached_input_tokens": b"4",
        "cache_write_tokens": b"1",
        "reasoning_tokens": b"2",
    }
    first = changed(timestamp=b"119999")
    second = changed(timestamp=b"120000", **split)
    third = changed(timestamp=b"179999", prefill_chip=b'"H100"')
    meter.feed(NATIVE, first + b"\n" + second + b"\n" + third)
    assert meter.rows == {
        (60_000, "alice", "llama", "H100"): [1, 10, 0, 0, 5, 0],
        (120_000, "alice", "llama", "H100"): [2, 10, 0, 0, 10, 2],
        (120_000, "alice", "llama", "L40S"): [0, 10, 4, 1, 0, 0],
    }


def test_dead_letters_say_where() -> None:
    meter = Meter()
    meter.feed(NATIVE, GOOD, partition=0)
    meter.feed(NATIVE, GOOD + b"\n\n{\r\n", partition=1)
    meter.feed(NATIVE, changed(user=b"1"), partition=1)
    assert meter.dead_letters == [
        (1, 0, 2, "invalid_json", None, b"{\r"),
        (1, 1, 0, "wrong_type", "user", changed(user=b"1")),
    ]
    assert (meter.read, meter.counted, meter.rejected, meter.empty) == (5, 2, 2, 1)
    assert meter.reasons == {"invalid_json": 1, "wrong_type": 1}


def test_leap_second_stays_in_its_day() -> None:
    for text in (b'"2016-12-31T23:59:60Z"', b'"2016-12-31T23:59:60.1Z"', b'"2017-01-01T05:44:60+05:45"'):
        assert accepted(changed(timestamp=text), NATIVE).timestamp == 1_483_228_799_999


@pytest.mark.parametrize(
    ("formats", "text", "expected"),
    [
        (["epoch_s"], b"1795000000", 1_795_000_000_000),
        (["epoch_s"], b"253402300799", 253_402_300_799_000),
        (["epoch_s"], b"253402300800", "bad_timestamp"),
        (["epoch_us"], b"1795000000000999", 1_795_000_000_000),
        (["epoch_us"], b"-1", "bad_timestamp"),
        (["epoch_ns"], b"1795000000000999999", 1_795_000_000_000),
        (["epoch_ns"], b"-1", "bad_timestamp"),
        (["epoch_ns"], b"18446744073709551615", 18_446_744_073_709),
        (["epoch_ns"], b"18446744073709551616", "wrong_type"),
        (["epoch_s"], b"1.5", "wrong_type"),
        (["epoch_s"], b'"2026-11-18T11:06:40Z"', "wrong_type"),
        (["rfc3339"], b"1795000000", "wrong_type"),
        (["rfc3339"], b'"1795000000"', "bad_timestamp"),
        (["epoch_s_decimal"], b"1795000000", 1_795_000_000_000),
        (["epoch_s_decimal"], b"1795000000.0625", 1_795_000_000_062),  # 62.5: a tie, to even
        (["epoch_s_decimal"], b"1795000000.1875", 1_795_000_000_188),  # 187.5: a tie, to even
        (["epoch_s_decimal"], b"1.795e9", 1_795_000_000_000),
        (["epoch_s_decimal"], b"-0.0004", 0),
        (["epoch_s_decimal"], b"-0.001", "bad_timestamp"),
        (["epoch_s_decimal"], b"253402300799.999", 253_402_300_799_999),
        (["epoch_s_decimal"], b"253402300799.9996", "bad_timestamp"),
        (["epoch_s_decimal"], b"1e308", "bad_timestamp"),
        (["epoch_s_decimal"], b"true", "wrong_type"),
    ],
)
def test_time_formats(formats: list[str], text: bytes, expected: int | str) -> None:
    mapping = NATIVE | {"fields": NATIVE["fields"] | {"timestamp": {"path": "timestamp", "formats": formats}}}
    verdict = judge(changed(timestamp=text), mapping)
    if isinstance(expected, str):
        assert verdict == rejected(expected, "timestamp")
    else:
        assert verdict.record is not None and verdict.record.timestamp == expected


def test_additive_counts_become_inclusive() -> None:
    usage = {"in": "10", "cached": 20, "written": 3, "out": 5, "details": {"reasoning": 7}}
    record = accepted(gateway_line(usage=usage, source="eu"), GATEWAY)
    assert record == Canonical("r", "eu", 1_795_000_000_250, "alice", "m", "H100", None, 1, 33, 20, 3, 12, 7)


@pytest.mark.parametrize(
    ("changes", "user"),
    [
        ({}, "alice"),
        ({"user": 5}, "alice"),  # not looked at
        ({"meta": {"id": "r", "user_id": None}, "user": "bob"}, "bob"),
        ({"meta": {"id": "r"}, "auth": {"sub": "carol"}}, "carol"),
        ({"meta": {"id": "r"}, "user": None, "auth": None}, "unknown"),
    ],
)
def test_aliases_and_default(changes: dict, user: str) -> None:
    assert accepted(gateway_line(**changes), GATEWAY).user == user


@pytest.mark.parametrize(
    ("changes", "reason", "field"),
    [
        ({"meta": {"user_id": "alice"}}, "missing_field", "request_id"),
        ({"meta": "r"}, "wrong_type", "request_id"),
        ({"meta": None}, "missing_field", "request_id"),
        ({"source": 1}, "wrong_type", "request_id"),
        ({"source": ""}, "bad_string", "request_id"),
        ({"meta": {"id": "r", "user_id": ""}, "user": "bob"}, "bad_string", "user"),
        ({"meta": {"id": "r"}, "auth": []}, "wrong_type", "user"),
        ({"usage": {"in": "01", "out": 5}}, "bad_count", "input_tokens"),
        ({"usage": {"in": "", "out": 5}}, "bad_count", "input_tokens"),
        ({"usage": {"in": "-0", "out": 5}}, "bad_count", "input_tokens"),
        ({"usage": {"in": "\u0661", "out": 5}}, "bad_count", "input_tokens"),
        ({"usage": {"in": "1099511627776", "out": 5}}, "bad_count", "input_tokens"),
        ({"usage": {"in": "9" * 5000, "out": 5}}, "bad_count", "input_tokens"),
        ({"usage": {"in": 1, "out": "5"}}, "wrong_type", "output_tokens"),
        ({"usage": []}, "wrong_type", "input_tokens"),
        ({"usage": {"out": 5, "details": 0}}, "wrong_type", "reasoning_tokens"),
        ({"usage": None}, "missing_field", "output_tokens"),
        ({"time": None}, "missing_field", "timestamp"),
    ],
)
def test_rejections_by_mapping(changes: dict, reason: str, field: str) -> None:
    assert judge(gateway_line(**changes), GATEWAY) == rejected(reason, field)


def test_default_makes_a_needed_count_optional() -> None:
    assert accepted(gateway_line(usage={"out": 5}), GATEWAY).input_tokens == 0


def test_keys_with_dots_are_one_key() -> None:
    line = gateway_line().replace(b'"gen_ai.model":"m"', b'"gen_ai":{"model":"m"}')
    assert judge(line, GATEWAY) == rejected("missing_field", "model")


def test_fallback_to_the_time_of_the_message() -> None:
    assert accepted(gateway_line(time=None), GATEWAY, message_time=TIME_MS).timestamp == TIME_MS
    assert judge(gateway_line(time="x"), GATEWAY, TIME_MS) == rejected("wrong_type", "timestamp")


@pytest.mark.parametrize(
    ("line", "repeated"),
    [
        (b'{"meta":{"id":"a"},"meta":null}', True),
        (b'{"meta":{"id":"a","x":1,"i\\u0064":"b"}}', True),
        (b'{"source":1,"source":1}', True),
        (b'{"auth":{"sub":1,"sub":1}}', True),  # an alias that is perhaps not read
        (b'{"meta":{"x":1,"x":1}}', False),
        (b'{"id":1,"id":1}', False),  # mapped only below meta
        (b'{"meta":[{"id":"a","id":"a"}]}', False),
        (b'{"x":{"meta":{"id":1,"id":1}},"meta":{"id":"a","z":{"id":1}}}', False),
        (b'{"meta":{"id":{"id":1,"id":1}}}', False),
        (b'{"x":"\\"source\\":","source":"\\\\","y":",\\"source\\":1"}', False),
        (b'{"x":"source","source" \t:1}', False),
        (b'{"source":["source","source"]}', False),
    ],
)
def test_repeated_fields(line: bytes, repeated: bool) -> None:
    orjson.loads(line)
    assert has_repeated_field(line, GATEWAY) == repeated
    assert (judge(line, GATEWAY).reason == "repeated_field") == repeated


def test_token_events() -> None:
    time = 1_795_000_000_000
    assert accepted(event_line(), EVENTS) == Canonical("e", None, time, "alice", "m", "H100", None, 0, 7, 0, 0, 0, 0)
    output = accepted(event_line(type="output", tokens="12"), EVENTS)
    assert output == Canonical("e", None, time, "alice", "m", "H100", None, 1, 0, 0, 0, 12, 0)


@pytest.mark.parametrize(
    ("data", "verdict"),
    [
        ({"type": None, "tokens": -1}, rejected("missing_field", "tokens")),
        ({"type": 5}, rejected("wrong_type", "tokens")),
        ({"type": "image", "tokens": -1}, rejected("unknown_token_type", "tokens")),
        ({"type": ""}, rejected("unknown_token_type", "tokens")),
        ({"tokens": None}, rejected("missing_field", "tokens")),
        ({"tokens": -1}, rejected("bad_count", "tokens")),
        ({"tokens": "1.0"}, rejected("bad_count", "tokens")),
        ({"tokens": 1.0}, rejected("wrong_type", "tokens")),
        ({"chip": 1, "type": 5}, rejected("wrong_type", "chip")),
        ({"type": "cached"}, rejected("inconsistent_counts")),
    ],
)
def test_rejected_token_events(data: dict, verdict: Verdict) -> None:
    assert judge(event_line(**data), EVENTS) == verdict


def test_every_event_is_a_request_unless_the_mapping_names_one() -> None:
    tokens = {key: value for key, value in EVENTS["fields"]["tokens"].items() if key != "requests"}
    additive = EVENTS | {"fields": EVENTS["fields"] | {"tokens": tokens}, "input_tokens_are": "additive"}
    record = accepted(event_line(type="cached"), additive)
    assert (record.requests, record.input_tokens, record.cached_input_tokens) == (1, 7, 7)


def test_identity_is_scope_and_id_within_a_partition() -> None:
    meter = Meter()
    line = gateway_line(source="eu")
    for other in (line, gateway_line(source="us"), gateway_line(), gateway_line(source="eu", time=5.0)):
        meter.feed(GATEWAY, other)
    meter.feed(GATEWAY, line, partition=1)
    assert (meter.counted, meter.duplicates) == (4, 1)


def test_identities_live_for_two_generations_of_log_time() -> None:
    meter = Meter(dedup_horizon_ms=1000)

    def feed(request_id: bytes, message_time: int) -> str:
        before = meter.counted
        meter.feed(NATIVE, changed(request_id=b'"%s"' % request_id, timestamp=b"0"), message_time)
        return "counted" if meter.counted > before else "duplicate"

    assert feed(b"a", 5999) == "counted"  # generation 5
    assert feed(b"a", 6000) == "duplicate"  # 6
    assert feed(b"b", 5000) == "counted"  # message time goes back, log time does not: 6
    assert feed(b"a", 6999) == "duplicate"  # 6
    assert feed(b"a", 7000) == "duplicate"  # 7: a duplicate is remembered as well
    assert feed(b"b", 7999) == "duplicate"  # 7
    assert feed(b"b", 9000) == "counted"  # 9
    assert feed(b"a", 0) == "counted"  # 9: last seen in 7
    assert feed(b"a", 99_000) == "counted"


def test_log_time_belongs_to_a_partition() -> None:
    meter = Meter(dedup_horizon_ms=1000)
    line = changed(request_id=b'"a"', timestamp=b"0")
    meter.feed(NATIVE, line, 1000, partition=0)
    meter.feed(NATIVE, line, 50_000, partition=1)
    meter.feed(NATIVE, line, 2999, partition=0)
    assert (meter.counted, meter.duplicates) == (2, 1)
    with pytest.raises(ValueError):
        meter.feed(NATIVE, line)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["user", "meta", "id", "x"]), inner),
    max_leaves=12,
)


@settings(deadline=None)
@given(extra=JSON_VALUES, compact=st.booleans(), at=st.integers(0, 6))
def test_an_unrelated_field_changes_nothing(extra: object, compact: bool, at: int) -> None:
    items = list(json.loads(GOOD).items())
    items.insert(at, ("zzz", extra))
    line = json.dumps(dict(items), separators=(",", ":") if compact else None, ensure_ascii=compact).encode()
    assert judge(line, NATIVE) == judge(GOOD, NATIVE)


def pairs_repeat_a_key(line: bytes) -> bool:
    """Any key of any object, by json's own reader."""
    repeats = []
    json.loads(line, object_pairs_hook=lambda pairs: repeats.append(len({key for key, _ in pairs}) < len(pairs)))
    return any(repeats)


KEY_TEXTS = [b'"user"', b'"meta"', b'"us\\u0065r"', b'"x"']


@settings(deadline=None)
@given(entries=st.lists(st.tuples(st.sampled_from(KEY_TEXTS), JSON_VALUES), max_size=5))
def test_repeated_fields_agree_with_the_pairs_of_json(entries: list[tuple[bytes, object]]) -> None:
    line = b"{" + b",".join(key + b":" + orjson.dumps(value) for key, value in entries) + b"}"
    mapping = {"fields": {"user": {"path": "user", "aliases": ["meta", "x"]}}}
    assert has_repeated_field(line, mapping) == pairs_repeat_a_key(line)


@settings(deadline=None)
@given(texts=st.lists(st.binary(max_size=4).map(lambda text: text.replace(b"\n", b"")), min_size=1, max_size=5))
def test_records_are_the_lines_between_newlines(texts: list[bytes]) -> None:
    assert records(b"\n".join(texts) + b"\n") == texts
    if texts[-1]:
        assert records(b"\n".join(texts)) == texts


@pytest.mark.parametrize("mapping", [NATIVE, GATEWAY, EVENTS], ids=lambda mapping: mapping["name"])
def test_mutated_lines(mapping: dict) -> None:
    lines = list(mutate.lines(random.Random(7), mapping["name"], mapping, 4000))
    assert len(lines) == 4000
    assert lines[:100] == list(mutate.lines(random.Random(7), mapping["name"], mapping, 100))
    assert not any(b"\n" in line for line in lines)
    meter = Meter()
    meter.feed(mapping, b"\n".join(lines) + b"\n", mutate.NOW_MS)
    assert meter.read == len(lines)
    assert 0.25 < (meter.counted + meter.duplicates) / meter.read < 0.7
    reasons = {
        "invalid_json",
        "not_an_object",
        "repeated_field",
        "wrong_type",
        "missing_field",
        "bad_string",
        "bad_count",
    }
    assert reasons <= set(meter.reasons)
    assert sum(row[0] for row in meter.rows.values()) <= meter.counted
