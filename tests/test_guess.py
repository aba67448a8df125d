"""Guessed mappings: right at once or marked, on what real producers write and on logs that no table knows."""

import json
import pathlib
import re

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.guess_exports import EXPORTS
from tests.guess_shapes import KNOWN, OTHERS, Counters, lines_of, rows, wrapped
from tests.intake import harness
from tokenometer.processor.load.profile import Profile
from tokenometer.processor.load.synth import generate, messages
from tokenometer.processor.records.guess import Guess, guess
from tokenometer.schemas.mapping import MappingError, parse
from tokenometer.schemas.usage import COUNTERS
from tokenometer.schemas.value import Value

SAMPLES = pathlib.Path(__file__).parent / "intake" / "samples"
SOURCES = pathlib.Path(__file__).parents[1] / "docs" / "SOURCES.md"
# The counters that the samples' own records say.
LINES: dict[str, tuple[Counters, ...]] = {
    "litellm-slp.jsonl": ((14, 28695, 25030, 300, 2180, 518),),
    "traceloop.jaeger_json": ((6, 15600, 12788, 200, 810, 128), (6, 15600, 12788, 200, 811, 128)),
    "apisix-batch1.jsonl": ((3, 6077, 5882, 100, 350, 64), (2, 6077, 5882, 100, 350, 64)),
    "kong-kafka-log.jsonl": ((1, 2006, 0, 0, 300, 0),),
    "higress-ai-log.jsonl": ((1, 2006, 0, 0, 300, 0),),
    "newapi-debezium.jsonl": ((2, 6077, 5882, 100, 350, 0),),
    "bedrock-invocation-log.jsonl": ((1, 4071, 3962, 100, 50, 0),),
    "sglang-metrics-file.jsonl": ((1, 2006, 1920, 0, 300, 64),),
    "sglang-request-log.txt": ((1, 2006, 1920, 0, 300, 64),),
    "envoy-aigw.jsonl": ((1, 2006, 0, 0, 300, 64),),
}
BODIES: dict[str, tuple[Counters, ...]] = {
    "sdk-ark-chat.json": ((1, 2006, 1920, 0, 300, 64),),
    "sdk-ark-bot.json": ((2, 150, 0, 0, 25, 0),),
    "sdk-google-camel.json": ((1, 1000, 600, 0, 120, 70),),
    "sdk-cohere.json": ((1, 215, 80, 0, 420, 0),),
    "sdk-dashscope.json": ((1, 1024, 512, 0, 300, 64),),
    "sdk-ollama.json": ((1, 26, 0, 0, 290, 0),),
    "sdk-bedrock-converse.json": ((1, 4071, 3962, 100, 50, 0),),
    "sdk-deepseek-openai.json": ((1, 2006, 1920, 0, 300, 64),),
}
PARENTS = {
    "cached_input_tokens": "input_tokens",
    "cache_write_tokens": "input_tokens",
    "reasoning_tokens": "output_tokens",
}


def reader(lines, value: Value) -> list[bytes]:
    return [line for message in harness.meter(lines, value).messages for line in message]


def counters(found: Guess) -> Counters:
    return tuple(found.check.usage)


def verdict(found: Guess, *right: Counters) -> str:
    """Wrong is what no CHECK explains: none on a counter that differs, on a part of it, or on what makes a request."""
    if counters(found) in right:
        return "right"
    differ = {name for name, a, b in zip(COUNTERS, counters(found), right[0], strict=True) if a != b}
    causes = differ | {part for part, whole in PARENTS.items() if whole in differ} | {"tokens", "total_tokens"}
    if "requests" in differ:
        causes |= {"log", "skip", "repeats", "request_id"} | {field for _, field in found.check.rejects if field}
    return "marked" if causes & {doubt.field for doubt in found.doubts} else "wrong"


def shapes() -> dict[str, tuple[list[bytes], tuple[Counters, ...]]]:
    found = {name: ((SAMPLES / name).read_bytes().splitlines(), right) for name, right in LINES.items()}
    for name, right in BODIES.items():
        (record,) = wrapped(json.loads((SAMPLES / name).read_bytes()))
        found[name] = lines_of([{"model": "of-the-wrapper"} | record]), right
    for name, (records, counts) in {**KNOWN, **OTHERS, **EXPORTS}.items():
        found[name] = lines_of(records), (counts,)
    return found


def judged() -> dict[str, tuple[str, int]]:
    """Of each shape: what became of it, and how many doubts its mapping marks."""
    found = {}
    for name, (lines, right) in shapes().items():
        guessed = guess(lines, "shape", reader)
        found[name] = verdict(guessed, *right), len(guessed.doubts)
    return found


def table(verdicts: dict[str, tuple[str, int]]) -> str:
    """As docs/SOURCES.md shows it."""
    said = {"right": "yes", "marked": "no, and a `CHECK` says so", "wrong": "no"}
    rows = [f"| {name} | {said[kind]} | {doubts} |" for name, (kind, doubts) in verdicts.items()]
    return "\n".join(["| log | counted right at once | `CHECK` lines |", "|---|---|---|", *rows]) + "\n"


def test_every_sample_of_lines_is_judged():
    assert {file.name for file in SAMPLES.iterdir() if file.suffix in (".jsonl", ".txt", ".jaeger_json")} == set(LINES)


def test_most_shapes_are_right_at_once_and_none_is_silently_wrong():
    verdicts = judged()
    kinds = [kind for kind, _ in verdicts.values()]
    assert "wrong" not in kinds
    assert kinds.count("right") >= 0.8 * len(kinds)
    lines_only = [verdicts[name][0] for name in LINES]
    assert lines_only.count("right") >= 0.8 * len(lines_only)
    assert table(verdicts) in SOURCES.read_text(), f"docs/SOURCES.md does not have this table:\n{table(verdicts)}"


@pytest.mark.parametrize("name", [*LINES, *BODIES])
def test_without_a_decoder_nothing_is_silently_wrong(name):
    lines, right = shapes()[name]
    assert verdict(guess(lines, "shape"), *right) != "wrong"


# --- Each doubt is written where it belongs ---


def text_of(*records, **names) -> str:
    return guess(lines_of(rows(*records, **names)), "example").text


def test_the_text_is_what_the_loader_reads_and_every_doubt_is_in_it():
    found = guess(shapes()["apisix-batch1.jsonl"][0], "example")
    assert parse(found.text, "example.toml") == found.mapping
    text = " ".join(line.removeprefix("#").strip() for line in found.text.splitlines())
    assert found.doubts and all(" ".join(doubt.text.split()) in text for doubt in found.doubts)
    assert found.text.count("# CHECK: ") == len(found.doubts) > 0


def test_a_name_that_the_loader_refuses_is_its_error():
    with pytest.raises(MappingError, match="a string of a-z, 0-9 and -"):
        guess([], "Not a name")


def test_a_log_without_counts_rejects_every_record_instead_of_counting_zero():
    found = guess(lines_of(rows({"bytes": 100})), "example")
    assert counters(found) == (0, 0, 0, 0, 0, 0) and found.check.rejected == 1
    assert {"input_tokens", "output_tokens"} <= {doubt.field for doubt in found.doubts}


@pytest.mark.parametrize(
    ("time", "formats"),
    [
        (1_795_453_500, '["epoch_s"]'),
        (1_795_453_500.25, '["epoch_s_decimal"]'),
        (1_795_453_500_123, '["epoch_ms"]'),
        (1_795_453_500_123_456, '["epoch_us"]'),
        (1_795_453_500_123_456_789, '["epoch_ns"]'),
        ("2026-11-23T17:05:00Z", '["rfc3339"]'),
        ("2026-11-23 17:05:00,5+0800", '["iso8601"]'),
        ("2026-11-23T17:05:00", '["iso8601"]\nzone = "UTC"'),
        ("1795453500123", '["epoch_ms"]\ndigits = true'),
        ("1795453500.5", '["epoch_s_decimal"]\ndigits = true'),
    ],
)
def test_a_time_is_read_in_the_unit_that_gives_a_date_of_our_time(time, formats):
    text = text_of({"timestamp": time, "input_tokens": 1, "output_tokens": 2})
    assert f'path = "timestamp"\nformats = {formats}\n' in text
    assert ("CHECK: timestamp" in text) == ("zone" in formats)


def test_the_remainder_of_a_total_is_the_output_where_none_was_found():
    found = guess(
        lines_of(rows(*({"prompt_tokens": p, "new_tokens": o, "total_tokens": p + o} for p, o in ((10, 3), (20, 7))))),
        "x",
    )
    assert counters(found) == (2, 30, 0, 0, 10, 0)
    assert "output_tokens" in {doubt.field for doubt in found.doubts} and "completion_tokens" not in found.text


def test_an_output_that_is_not_found_is_a_doubt():
    found = guess(lines_of(rows({"prompt_tokens": 10, "total_tokens": 10})), "x")
    assert "output_tokens" in {doubt.field for doubt in found.doubts}


@pytest.mark.parametrize("name", ["team", "tenant_id", "org", "project_id"])
def test_a_group_that_is_taken_for_the_user_is_a_doubt(name):
    text = text_of({name: "g-1", "input_tokens": 1, "output_tokens": 2}, user=None)
    assert f'path = "{name}"' in text and "# CHECK: user: " in text


@pytest.mark.parametrize("name", ["uid", "acct", "acct_id", "account", "owner_id"])
def test_names_of_users_come_before_names_of_groups(name):
    text = text_of({"team": "g-1", name: "u-1", "input_tokens": 1, "output_tokens": 2}, user=None)
    assert f'[fields.user]\npath = "{name}"' in text.replace("\n\n", "\n") and "CHECK: user: team" not in text


def test_units_that_are_mixed_are_a_doubt():
    times = [{"timestamp": time, "input_tokens": 1, "output_tokens": 2} for time in (1_795_453_500, 1_795_453_500_000)]
    assert "# CHECK: timestamp: " in text_of(*times)


def test_a_part_that_nothing_proves_is_a_doubt_and_one_that_is_larger_than_its_total_is_additive():
    small = {"prompt_tokens": 100, "cached_tokens": 40, "completion_tokens": 5}
    assert "# CHECK: cached_input_tokens: " in text_of(small)
    proven = guess(lines_of(rows(small | {"prompt_tokens": 10})), "example")
    assert counters(proven) == (1, 50, 40, 0, 5, 0)
    assert proven.mapping.conventions[0].additive


@pytest.mark.parametrize(
    ("prompt", "doubtful"), [({"prompt_tokens": 100}, True), ({"prompt_tokens": 100, "total_tokens": 105}, False)]
)
def test_a_part_that_only_its_name_puts_inside_the_prompt_is_a_doubt(prompt, doubtful):
    """Of a log whose prompt does not hold the cache the same records come, and nothing tells."""
    details = {"prompt_tokens_details": {"cached_tokens": 40}, "completion_tokens": 5}
    assert ("# CHECK: cached_input_tokens: " in text_of(prompt | details)) is doubtful
    thought = {"completion_tokens": 90, "completion_tokens_details": {"reasoning_tokens": 40}}
    total = {"total_tokens": 190} if "total_tokens" in prompt else {}
    assert ("# CHECK: reasoning_tokens: " in text_of(prompt | thought | total)) is doubtful


def test_a_total_that_says_that_claude_s_cache_is_inside_the_input_is_a_doubt():
    usage = {"prompt_tokens": 100, "cached_tokens": 40, "completion_tokens": 5, "total_tokens": 105}
    assert "# CHECK: cached_input_tokens: " not in text_of(usage)
    assert "names Anthropic" in " ".join(text_of(usage, model="claude-sonnet-4-5").replace("#", "").split())


@pytest.mark.parametrize("seed", range(1, 7))
def test_a_few_broken_records_decide_nothing_about_the_others(seed):
    """Before, one record of thousands whose part is larger than its total made the parts of all additive, and one user
    who is an object, or too long a name, hid the user of all."""
    log = list(messages(generate(Profile(records=4_000, malformed=0.01, seed=seed))))
    found = guess([line for message in log for line in message.splitlines()], "example")
    assert [convention.additive for convention in found.mapping.conventions] == [False] * 3
    assert found.mapping.field("user").paths == (("user",),)
    broken = [doubt for doubt in found.doubts if "so few are taken as broken" in doubt.text]
    assert all(re.search(r"in [1-9]\d? of [\d,]+ records", doubt.text) for doubt in broken)


@pytest.mark.parametrize(("larger", "additive"), [(0, False), (1, False), (11, False), (12, True), (300, True)])
def test_parts_are_beside_their_total_where_enough_records_show_it(larger, additive):
    """Names that say nothing; a fiftieth of the records of a model is enough."""
    log = [
        {"id": f"r{i}", "timestamp": 1795453500000 + i, "user": "u", "model": "m",
         "usage": {"tokens_in": 100, "cached": 200 if i < larger else 50, "tokens_out": 5}}
        for i in range(600)
    ]  # fmt: skip
    found = guess(lines_of(log), "example")
    assert found.mapping.conventions[0].additive == additive


def test_a_model_s_records_decide_about_that_model_alone():
    log = [
        {"id": f"r{i}", "timestamp": 1795453500000 + i, "user": "u", "model": "claude" if i % 50 == 0 else "gpt",
         "usage": {"tokens_in": 100, "cached": 200 if i % 100 == 0 else 50, "tokens_out": 5}}
        for i in range(1_000)
    ]  # fmt: skip
    assert '{ path = "model", inclusive = ["gpt"], additive = ["claude"] }' in guess(lines_of(log), "example").text


def test_a_count_that_only_the_total_shows_is_added_and_is_a_doubt():
    found = guess(
        lines_of(rows({"usage": {"prompt_tokens": 10, "completion_tokens": 5, "grounding": 7, "total_tokens": 22}})),
        "x",
    )
    assert counters(found) == (1, 17, 0, 0, 5, 0)
    assert "# CHECK: input_tokens: " in found.text


def test_a_count_with_a_name_that_nobody_knows_is_a_doubt_on_the_parts_that_are_not_found():
    found = guess(lines_of(rows({"usage": {"prompt_tokens": 100, "completion_tokens": 5, "kv_hits": 60}})), "example")
    assert {"cached_input_tokens", "cache_write_tokens"} <= {doubt.field for doubt in found.doubts}


def test_an_unknown_user_is_marked_and_users_that_differ_are_named():
    record = {"input_tokens": 1, "output_tokens": 2}
    assert "# CHECK: user: no path looks like the user" in text_of(record, user=None)
    assert '"team" could be meant, and differ' in text_of(record, team="t-1")


def test_a_session_is_no_request():
    records = [
        {"request_id": None, "id": "s-1", "input_tokens": count, "output_tokens": 2} for count in range(100, 60, -1)
    ]
    found = guess(lines_of(rows(*records)), "example")
    assert found.check.counted == 40 or "request_id" in {doubt.field for doubt in found.doubts}
    assert "request_id" in {doubt.field for doubt in found.doubts}


def test_a_parent_whose_counts_are_the_sum_of_its_children_is_skipped_by_what_it_says_it_is():
    spans = [("s1", "p", "llm", 5), ("s2", "p", "llm", 6), ("p", None, "flow", 11)]
    records = [
        {"span_id": own, "parent_span_id": parent, "step_type": kind, "input_tokens": count, "output_tokens": 1}
        for own, parent, kind, count in spans
    ]
    found = guess(lines_of(rows(*records)), "example")
    assert counters(found) == (2, 11, 0, 0, 2, 0) and found.check.skipped == 1


def test_more_keys_than_a_mapping_may_read_are_left_out_with_a_doubt():
    bodies = [
        {f"a{n}": {f"b{n}": {f"c{n}": {f"d{n}": {"prompt_tokens": n, "completion_tokens": 1, "cached_tokens": 1,
                                               "reasoning_tokens": 1, "cache_creation_input_tokens": 1}}}}}
        for n in range(2, 30)
    ]  # fmt: skip
    found = guess(lines_of(wrapped(*bodies)), "example")
    assert found.doubts  # and it loads


# --- Properties ---

KEYS = st.one_of(
    st.sampled_from(
        "usage id timestamp user model chip input_tokens output_tokens total_tokens prompt_tokens completion_tokens "
        "cached_tokens reasoning_tokens cache_read_input_tokens tokens type time source specversion call_type before "
        "gen_ai.operation.name gen_ai.usage.input_tokens parent_span_id span_id tags".split()
    ),
    st.text(max_size=60),
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 3000),
    st.integers(-(1 << 70), 1 << 70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(
        ["", "output", "input", "12", "2026-11-23T17:05:00Z", "1795453500123", '{"prompt_tokens": 5}', "[x] {}"]
    ),
    st.sampled_from([1_795_453_500, 1_795_453_500_123, 1_795_453_500.5]),
    st.text(max_size=300),
)
JSON = st.recursive(
    SCALARS, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=6))
)
RECORDS = st.dictionaries(KEYS, JSON, max_size=8)
LINE = st.one_of(
    RECORDS.map(lambda record: json.dumps(record).encode()),
    JSON.map(lambda v: json.dumps(v).encode()),
    st.binary(max_size=40),
)


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(LINE, max_size=6))
@example([b'{"usage": 5}', b'{"usage": {"prompt_tokens": 1, "completion_tokens": 2}}'])
@example([b'{"a\x7fb": {"input_tokens": 1, "output_tokens": 2}}'])
@example([b'{"\xc3\xa9\\"": {"input_tokens": 1, "output_tokens": 2}, "user": "\\u0085\\n# x"}'])
def test_whatever_comes_in_the_text_loads_and_no_record_is_lost(lines):
    found = guess(lines, "example")
    assert parse(found.text, "example.toml") == found.mapping
    assert found.check.read == len(lines)


AMOUNTS = st.integers(0, 5000)
NAMES = {
    "input": ["prompt_tokens", "input_tokens", "inputTokens", "tokens_in", "promptTokenCount", "n_prompt_tokens"],
    "output": ["completion_tokens", "output_tokens", "outputTokens", "tokens_out", "generated_tokens"],
    "cached": ["cached_tokens", "cache_read_input_tokens", "cachedInputTokens", "prefix_hits", "cache_hit_tokens"],
    "reasoning": ["reasoning_tokens", "thinkingTokens", "thoughts", "reasoning"],
}


@st.composite
def logs(draw):
    """Records of a producer that nobody knows, and what they say."""
    name = {role: draw(st.sampled_from(names)) for role, names in NAMES.items()}
    beside = {role: draw(st.booleans()) for role in ("cached", "reasoning")}
    has_total, holder = draw(st.booleans()), draw(st.sampled_from([(), ("usage",), ("response", "usage")]))
    records, truth = [], [0, 0, 0, 0, 0, 0]
    for _ in range(draw(st.integers(1, 8))):
        sent, made = draw(AMOUNTS), draw(AMOUNTS)
        cached = draw(st.integers(0, 5000 if beside["cached"] else sent))
        thought = draw(st.integers(0, 5000 if beside["reasoning"] else made))
        usage = {name["input"]: sent, name["output"]: made, name["cached"]: cached, name["reasoning"]: thought}
        full_sent = sent + cached * beside["cached"]
        full_made = made + thought * beside["reasoning"]
        if has_total:
            usage["total_tokens"] = full_sent + full_made
        for key in reversed(holder):
            usage = {key: usage}
        records.append(usage)
        truth = [a + b for a, b in zip(truth, (1, full_sent, cached, 0, full_made, thought), strict=True)]
    return rows(*records), tuple(truth)


OPENAI = {
    "cached": ("prompt_tokens_details", "cached_tokens"),
    "reasoning": ("completion_tokens_details", "reasoning_tokens"),
}


@settings(max_examples=100, deadline=None)
@given(st.booleans(), st.booleans(), st.booleans(), st.integers(1, 900), st.integers(1, 90))
def test_openai_s_names_with_another_meaning_are_never_silently_wrong(beside, thinks_beside, total, cached, thought):
    usage = {"prompt_tokens": 1000, "completion_tokens": 100}
    for part, amount in (("cached", cached), ("reasoning", thought)):
        holder, name = OPENAI[part]
        usage[holder] = {name: amount}
    sent, made = 1000 + cached * beside, 100 + thought * thinks_beside
    found = guess(lines_of(rows(usage | ({"total_tokens": sent + made} if total else {}))), "example")
    assert verdict(found, (1, sent, cached, 0, made, thought)) != "wrong", found.text


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(logs())
def test_a_producer_that_nobody_knows_is_never_silently_wrong(log):
    records, truth = log
    found = guess(lines_of(records), "example")
    assert verdict(found, truth) != "wrong", found.text


# --- Labels that prices go by ---


def tiered(number: int, tier: object, **more: object) -> dict[str, object]:
    usage = {"prompt_tokens": 10 + number, "completion_tokens": 3, "total_tokens": 13 + number}
    return {"response": {"model": "m", "service_tier": tier, "usage": usage}, **more}


def test_a_service_tier_becomes_a_label_from_where_it_was_served():
    tiers = ["default", "flex", "priority"]
    records = [tiered(n, tiers[n % 3], request={"service_tier": "auto"}) for n in range(9)]
    found = guess(lines_of(rows(*records)), "example")
    assert [(label.name, label.field.paths) for label in found.mapping.labels] == [
        ("service_tier", (("response", "service_tier"),))
    ]
    [doubt] = [doubt for doubt in found.doubts if doubt.field == "service_tier"]
    assert '["request", "service_tier"] may say it as well' in doubt.text
    assert "# CHECK: service_tier: " in found.text and found.check.counted == 9


def test_a_service_tier_that_is_no_text_or_never_there_is_no_label():
    for tier in (None, 7, {"name": "flex"}):
        found = guess(lines_of(rows(*(tiered(n, tier) for n in range(4)))), "example")
        assert found.mapping.labels == () and "labels" not in found.text, tier


def test_a_tier_that_some_records_lack_is_empty_there():
    records = [tiered(0, "flex"), tiered(1, ""), tiered(2, None)]
    found = guess(lines_of(rows(*records)), "example")
    assert found.mapping.labels[0].field.empty_is_absent and found.check.counted == 3
