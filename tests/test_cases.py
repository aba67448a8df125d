"""Records from public bug reports and of real producers (tests/cases): each gives its right value.

Every case goes through the oracle and through the engine, which must agree, and its rows are those that were worked out
by hand from the report. What a mapping's option makes readable is refused without it: both are shown.
"""

import json
import pathlib

import pytest

from tests import format2, harness
from tests.harness import Mapping, Piece, shipped

CASES = pathlib.Path(__file__).parent / "cases"
COUNTERS = 6


def lines_of(name: str) -> list[bytes]:
    return (CASES / name).read_bytes().splitlines()


def native(**fields: dict) -> Mapping:
    """`native` under format 2, with more keys in some fields."""
    mapping = format2.merged(shipped("native").oracle, {"fields": fields}) | {"format": 2}
    return Mapping.parse(format2.text(mapping))


@pytest.fixture
def metered(make_engine):
    """Feeds lines to a fresh engine, which must agree with the oracle, and hands back the run."""

    def feed(mapping: Mapping, lines: list[bytes], **settings: int) -> harness.Run:
        return harness.check(make_engine(**settings), mapping, [Piece(lines)], **settings)

    return feed


def counters(run: harness.Run, user: str | None = None) -> list[int]:
    """Sums over all rows, or over a user's."""
    rows = [row for key, row in run.rows().items() if user in (None, key[1])]
    return [sum(row[index] for row in rows) for index in range(COUNTERS)]


def tokens(run: harness.Run, user: str | None = None) -> int:
    total = counters(run, user)
    return total[1] + total[4]


def refused(run: harness.Run) -> dict[int, str]:
    """By line."""
    return {letter[1]: letter[3] for letter in run.letters}


def test_ids_that_identify_nothing_lose_no_usage(metered):
    run = metered(shipped("litellm"), lines_of("02-id-reuse.ndjson"))
    assert tokens(run) == 19_375
    assert (run.engine.tally().counted, run.engine.tally().duplicates) == (5, 0)


def test_ids_alone_make_conflicts_that_are_reported_with_their_bytes(metered):
    mapping = format2.merged(shipped("litellm").oracle, {})
    del mapping["fields"]["request_id"]["with"]
    lines = lines_of("02-id-reuse.ndjson")
    run = metered(Mapping.parse(format2.text(mapping)), lines)
    assert tokens(run) == 1_720
    assert (run.engine.tally().duplicates, run.engine.tally().conflicts) == (3, 3)
    assert [letter[3] for letter in run.letters] == ["conflicting_duplicate"] * 3
    assert all(letter[5] in lines for letter in run.letters)


@pytest.mark.parametrize("name", ["openai-chat", "xai"])
@pytest.mark.parametrize(("line", "total", "output"), [(0, 14_428, 4_308), (1, 1_750, 1_250), (2, 1_400, 900)])
def test_the_total_tells_whether_reasoning_is_inside_the_output(metered, name, line, total, output):
    run = metered(shipped(name), lines_of("03-reasoning-beside-output.ndjson")[line : line + 1])
    assert (tokens(run), counters(run)[4]) == (total, output)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (0, [1, 12_530, 0, 0, 103, 50]),
        (1, [1, 7_477, 4_000, 0, 3_999, 1_939]),
        (2, [1, 300, 0, 0, 1_020, 1_020]),
    ],
)
def test_geminis_tool_use_is_input_and_its_thoughts_are_output(metered, line, expected):
    run = metered(shipped("gemini"), lines_of("04-gemini-tool-use.ndjson")[line : line + 1])
    assert counters(run) == expected


def test_an_agents_span_does_not_repeat_its_children(metered):
    run = metered(shipped("otel-genai"), lines_of("06-parent-span.ndjson"))
    assert (counters(run)[0], tokens(run)) == (2, 124)
    assert run.engine.tally().skipped == 1


def test_chunks_with_the_usage_so_far_count_once(metered):
    run = metered(shipped("vllm"), lines_of("07-chunks.ndjson"))
    assert counters(run) == [1, 6_179, 0, 0, 222, 0]
    assert run.engine.tally().skipped == 1


def test_odd_users_are_refused_by_default(metered):
    run = metered(shipped("native"), lines_of("08-users.ndjson"))
    assert refused(run) == {0: "bad_string", 2: "wrong_type", 3: "wrong_type", 4: "wrong_type", 5: "missing_field"}
    assert counters(run, "   ")[0] == run.engine.tally().counted == 1


def test_odd_users_are_read_where_the_mapping_says_so(metered):
    mapping = native(user={"empty": "absent", "numbers": True, "default": "nobody"})
    run = metered(mapping, lines_of("08-users.ndjson"))
    assert refused(run) == {3: "wrong_type", 4: "wrong_type"}
    assert [counters(run, user)[0] for user in ("nobody", "   ", "12345")] == [2, 1, 1]


BIRTHDAY_MS = 1_753_018_718_368  # 2025-07-20T13:38:38.368Z, the time that most of the case's spellings mean


def test_times_in_other_spellings_are_refused_by_default(metered):
    run = metered(shipped("native"), lines_of("09-times.ndjson"), not_before_ms=1_420_070_400_000)
    reasons = refused(run)
    assert [reasons.get(line) for line in (0, 1, 2, 3, 5, 6, 7, 8, 9, 10)] == [
        *["bad_timestamp"] * 5,
        "wrong_type",
        "bad_timestamp",
        "past_timestamp",
        "bad_timestamp",
        "bad_timestamp",
    ]
    assert 4 not in reasons


def test_times_in_other_spellings_are_read_where_the_mapping_says_so(metered):
    iso = native(timestamp={"formats": ["epoch_ms", "iso8601"], "digits": True, "zone": "UTC"})
    run = metered(iso, lines_of("09-times.ndjson")[:11], not_before_ms=1_420_070_400_000)
    assert refused(run) == {
        5: "bad_timestamp",
        6: "wrong_type",
        8: "past_timestamp",  # seconds where milliseconds are meant
        9: "bad_timestamp",
        10: "bad_timestamp",
    }
    seconds = native(timestamp={"formats": ["epoch_s_decimal", "iso8601"], "digits": True})
    run = metered(seconds, [lines_of("09-times.ndjson")[line] for line in (5, 6)])
    assert list(run.rows()) == [(BIRTHDAY_MS - BIRTHDAY_MS % 60_000, "ana", "m", "H100")]
    assert counters(run)[0] == 2


def test_a_time_without_a_zone_needs_one_from_the_mapping(metered):
    line = lines_of("09-times.ndjson")[1:2]
    without = metered(native(timestamp={"formats": ["iso8601"]}), line)
    assert refused(without) == {0: "bad_timestamp"}
    run = metered(native(timestamp={"formats": ["iso8601"], "zone": "+08:00"}), line)
    [(window, *_)] = run.rows()
    assert window == 1_752_990_180_000  # 2025-07-20T05:43Z


def test_odd_counts_are_refused_by_default(metered):
    run = metered(shipped("native"), lines_of("10-counts.ndjson"))
    assert refused(run) == dict.fromkeys(range(5), "wrong_type") | {5: "bad_count"}


def test_whole_numbers_are_read_where_the_mapping_says_so(metered):
    counts = {name: {"whole_numbers": True} for name in ("input_tokens", "output_tokens")}
    run = metered(native(**counts), lines_of("10-counts.ndjson"))
    assert refused(run) == {2: "wrong_type", 3: "wrong_type", 4: "bad_count", 5: "bad_count"}
    assert counters(run) == [2, 1_212, 0, 0, 20, 0]


def test_digit_strings_of_counts_hold_no_fraction(metered):
    run = metered(native(input_tokens={"digits": True, "whole_numbers": True}), lines_of("10-counts.ndjson")[2:4])
    assert refused(run) == {1: "bad_count"}
    assert counters(run)[1] == 12


def test_reading_a_stored_response_is_no_request(metered):
    run = metered(shipped("litellm"), lines_of("15-retrieved.ndjson"))
    assert (counters(run)[0], tokens(run), run.engine.tally().skipped) == (1, 521, 2)


# --- What real producers write: the sums that the records themselves say ---


@pytest.mark.parametrize(
    ("mapping", "file", "expected", "skipped"),
    [
        ("litellm", "litellm-slp.jsonl", [13, 26_689, 23_110, 300, 1_880, 454], 1),
        ("litellm-cache-hits", "litellm-slp.jsonl", [14, 28_695, 25_030, 300, 2_180, 518], 0),
        ("kong", "kong-kafka-log.jsonl", [1, 2_006, 0, 0, 300, 0], 1),
        ("bedrock-log", "bedrock-invocation-log.jsonl", [1, 4_071, 3_962, 100, 50, 0], 0),
        ("envoy-ai-gateway", "envoy-aigw.jsonl", [1, 2_006, 0, 0, 300, 64], 1),
        ("sglang-metrics", "sglang-metrics-file.jsonl", [1, 2_006, 1_920, 0, 300, 64], 0),
    ],
)
def test_a_producers_lines_are_read_exactly(metered, mapping, file, expected, skipped):
    run = metered(shipped(mapping), lines_of(f"samples/{file}"))
    assert counters(run) == expected
    assert (run.engine.tally().skipped, run.engine.tally().rejected) == (skipped, 0)


@pytest.mark.parametrize(
    ("mapping", "file", "expected"),
    [
        ("openai-chat", "sdk-ark-chat.json", [1, 2_006, 1_920, 0, 300, 64]),
        ("openai-chat", "sdk-deepseek-openai.json", [1, 2_006, 1_920, 0, 300, 64]),
        ("gemini", "sdk-google-camel.json", [1, 1_000, 600, 0, 120, 70]),
        ("cohere", "sdk-cohere.json", [1, 215, 80, 0, 420, 0]),
        ("dashscope", "sdk-dashscope.json", [1, 1_024, 512, 0, 300, 64]),
        ("ollama", "sdk-ollama.json", [1, 26, 0, 0, 290, 0]),
        ("bedrock-converse", "sdk-bedrock-converse.json", [1, 4_071, 3_962, 100, 50, 0]),
    ],
)
def test_a_producers_body_is_read_exactly(metered, mapping, file, expected):
    wrapper = {"request_id": "r-1", "timestamp": 1_795_453_200_000, "user": "alice", "chip": "H100", "model": "m"}
    body = json.loads((CASES / "samples" / file).read_bytes())
    run = metered(shipped(mapping), [json.dumps(wrapper | {"response": body}).encode()])
    assert counters(run) == expected
