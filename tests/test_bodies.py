"""Each body of a model API is counted as it says, by the mapping that docs/SOURCES.md names, and lost by none.

A body under a mapping of another API is read by its own names or refused: a record that carries tokens is never
skipped, and never counted with another input or output. Parts that a mapping does not know may be 0.
"""

import pytest

from tests import harness
from tests.bodies import SHAPES, lines_of
from tests.harness import Piece
from tests.intake import harness as intake
from tests.test_samples import counted, counters
from tokenometer.processor.records.mapping_check import Check, check
from tokenometer.schemas import mapping as mappings

BODIES = (
    "anthropic",
    "anthropic-stream",
    "ark",
    "bedrock-converse",
    "cohere",
    "dashscope",
    "gemini",
    "llamacpp",
    "moonshot",
    "ollama",
    "openai-chat",
    "openai-responses",
    "vllm",
    "xai",
)
# These serve Moonshot's models themselves, with the usage at the top: a chunk without it is no sign of another API.
MOONSHOT_ELSEWHERE = {("moonshot, stream", mapping) for mapping in ("ark", "dashscope", "vllm")}


def decoded(shape: str, name: str) -> list[bytes]:
    """The shape's records, of which meter and audit make the same."""
    messages = intake.check(lines_of("r-1", *SHAPES[shape][0]), mappings.resolve(name).value).messages
    return [line for message in messages for line in message]


def judged(shape: str, name: str) -> Check:
    return check(decoded(shape, name), mappings.resolve(name))


@pytest.mark.parametrize("shape", [shape for shape, (_, _, home) in SHAPES.items() if home])
def test_a_body_counts_as_it_says(make_engine, tmp_path, shape):
    bodies, expected, home = SHAPES[shape]
    (tmp_path / "log.jsonl").write_bytes(b"\n".join(lines_of("r-1", *bodies)))
    summary = counted(make_engine, tmp_path / "log.jsonl", home, whole=False)
    assert counters(summary) == expected
    assert (summary.rejects, summary.tally.conflicts) == ({}, 0)
    harness.check(make_engine(), harness.shipped(home), [Piece(decoded(shape, home))])


@pytest.mark.parametrize("shape", SHAPES)
def test_a_body_is_counted_or_refused_by_every_mapping_and_never_lost_in_silence(shape):
    requests, sent, *_, made, _ = SHAPES[shape][1]
    for name in BODIES:
        if (shape, name) in MOONSHOT_ELSEWHERE:
            continue
        found = judged(shape, name)
        right = (found.usage.requests, found.usage.input_tokens, found.usage.output_tokens) == (requests, sent, made)
        assert right or found.rejected or found.conflicts, f"{name}: {found.usage}, {found.skipped} skipped"


def test_a_body_that_no_mapping_reads_is_refused_by_the_mapping_of_its_producer():
    homes = {
        "mistral, a conversation with a connector": "openai-chat",
        "bedrock titan": "bedrock-converse",
        "bedrock mistral": "bedrock-converse",
        "gemini's OpenAI mode with thoughts": "openai-chat",
        "vertex embeddings": "gemini",
        "dashscope, an application": "dashscope",
        "llama.cpp chat, stream without usage": "llamacpp",
        "text generation inference": "openai-chat",
        "sglang generate": "vllm",
    }
    streams = {"bedrock's stream of llama"}  # a conflict: see the mapping's first event
    assert {shape for shape, (_, _, home) in SHAPES.items() if not home} == set(homes) | streams
    for shape, name in homes.items():
        found = judged(shape, name)
        assert (found.usage.requests, found.rejected) == (0, 1), shape
