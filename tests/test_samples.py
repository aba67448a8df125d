"""What real producers write, through `replay`: each sample gives the counters that its own records say.

The samples and what they are: tests/intake/samples. Counters: requests, input, cached, cache write, output, reasoning.
"""

from pathlib import Path

import orjson
import pytest

from tests import harness
from tests.intake.harness import SAMPLES
from tokenometer.processor.files import decoded
from tokenometer.processor.files.replay import Outlets, ReplaySummary, replay
from tokenometer.processor.intake import Decoder
from tokenometer.schemas import mapping as mappings

WHOLE, LINES = True, False
NATIVE = (1, 2006, 1920, 0, 300, 0)
OPENAI_V2 = (3, 4020, 0, 0, 600, 0)
TRACELOOP = (6, 15600, 12788, 200, 810, 128)  # the first of two spans in the log says 50 output tokens, the other 51
MIXED = (2, 6077, 5882, 100, 350)

# sample, mapping, is the file one message, counters, records that are skipped, duplicates
CASES = [
    ("litellm-slp.jsonl", "litellm-cache-hits", LINES, (14, 28695, 25030, 300, 2180, 518), 0, 0),
    ("litellm-slp.jsonl", "litellm", LINES, (13, 26689, 23110, 300, 1880, 454), 1, 0),  # one is LiteLLM's cache's
    ("litellm-generic-api.json", "litellm", WHOLE, (9, 23109, 17774, 300, 970, 256), 0, 0),
    ("otel.otlp_json", "otlp", WHOLE, OPENAI_V2, 2, 0),
    ("otel.otlp_proto", "otlp", WHOLE, OPENAI_V2, 2, 0),
    ("traceloop.otlp_json", "otlp", WHOLE, TRACELOOP, 2, 2),
    ("traceloop.otlp_proto", "otlp", WHOLE, TRACELOOP, 2, 2),
    ("otel.zipkin_json", "zipkin", WHOLE, OPENAI_V2, 2, 0),
    ("traceloop.jaeger_json", "jaeger", LINES, TRACELOOP, 2, 2),
    ("apisix-default-array.json", "apisix", WHOLE, (*MIXED, 64), 1, 0),
    ("apisix-batch1.jsonl", "apisix", LINES, (*MIXED, 64), 1, 0),
    ("kong-kafka-log.jsonl", "kong", LINES, (1, 2006, 0, 0, 300, 0), 1, 0),
    ("higress-ai-log.jsonl", "higress", LINES, (1, 2006, 0, 0, 300, 0), 0, 0),
    ("newapi-debezium.jsonl", "new-api", LINES, (*MIXED, 0), 1, 0),
    ("bedrock-invocation-log.jsonl", "bedrock-log", LINES, (1, 4071, 3962, 100, 50, 0), 0, 0),
    ("sglang-metrics-file.jsonl", "sglang-metrics", LINES, (1, 2006, 1920, 0, 300, 64), 0, 0),
    ("sglang-request-log.txt", "sglang-log", LINES, (1, 2006, 1920, 0, 300, 64), 0, 0),
    ("envoy-aigw.jsonl", "envoy-ai-gateway", LINES, (1, 2006, 0, 0, 300, 64), 1, 0),
    ("framing-array.json", "native", WHOLE, NATIVE, 0, 1),
    ("framing-confluent-json.bin", "native", WHOLE, NATIVE, 0, 0),
    ("framing-confluent-json-headerid.bin", "native", WHOLE, NATIVE, 0, 0),
    ("framing-gzip.json", "native", WHOLE, NATIVE, 0, 0),
    ("framing-json-string.json", "native", WHOLE, NATIVE, 0, 0),
    ("framing-debezium.json", "debezium", WHOLE, NATIVE, 0, 0),
    ("framing-debezium-update.json", "debezium", WHOLE, NATIVE, 0, 0),
    ("framing-cloudevents-structured.bin", "cloudevents", WHOLE, NATIVE, 0, 0),
]

# A body, its mapping, its counters
BODIES = [
    ("sdk-ark-chat.json", "ark", (1, 2006, 1920, 0, 300, 64)),
    ("sdk-ark-chat.json", "openai-chat", (1, 2006, 1920, 0, 300, 64)),
    ("sdk-ark-bot.json", "ark", (2, 150, 0, 0, 25, 0)),
    ("sdk-google-camel.json", "gemini", (1, 1000, 600, 0, 120, 70)),
    ("sdk-cohere.json", "cohere", (1, 215, 80, 0, 420, 0)),
    ("sdk-dashscope.json", "dashscope", (1, 1024, 512, 0, 300, 64)),
    ("sdk-ollama.json", "ollama", (1, 26, 0, 0, 290, 0)),
    ("sdk-bedrock-converse.json", "bedrock-converse", (1, 4071, 3962, 100, 50, 0)),
    ("sdk-deepseek-openai.json", "openai-chat", (1, 2006, 1920, 0, 300, 64)),
]


def counted(make_engine, file: Path, name: str, whole: bool) -> ReplaySummary:
    mapping = mappings.resolve(name)
    reader = decoded.reader_of([str(file)], mapping.value, lambda: Decoder(mapping.value), whole)
    return replay(make_engine(), reader.fill, mapping, "samples", Outlets())


def counters(summary: ReplaySummary) -> tuple[int, ...]:
    return summary.usage[:6]


@pytest.mark.parametrize(("name", "mapping", "whole", "expected", "skipped", "duplicates"), CASES)
def test_a_sample_gives_the_counters_that_its_records_say(
    make_engine, name, mapping, whole, expected, skipped, duplicates
):
    summary = counted(make_engine, SAMPLES / name, mapping, whole)
    assert counters(summary) == expected
    assert (summary.tally.rejected, summary.rejects) == (0, {})
    assert (summary.tally.skipped, summary.tally.duplicates) == (skipped, duplicates)


@pytest.mark.parametrize(("name", "mapping", "expected"), BODIES)
def test_a_provider_s_body_gives_its_counters(make_engine, tmp_path, name, mapping, expected):
    body = orjson.loads((SAMPLES / name).read_bytes())
    record = {"request_id": "r", "timestamp": 1795922600123, "user": "alice", "chip": "H100", "model": "m"}
    (tmp_path / "body.json").write_bytes(orjson.dumps(record | {"response": body}))
    summary = counted(make_engine, tmp_path / "body.json", mapping, whole=True)
    assert counters(summary) == expected
    assert summary.tally.rejected == 0


def test_the_avro_sample_is_read_by_a_copy_of_native_with_its_schema(make_engine, tmp_path):
    """No shipped mapping can name a schema's file."""
    text = (
        (harness.MAPPINGS / "native.toml").read_text().replace("format = 1", "format = 2").replace('"native"', '"avro"')
    )
    text += f'\n[value]\nencoding = "avro"\nschema = "{SAMPLES / "framing-confluent-avro.avsc"}"\n'
    (tmp_path / "avro.toml").write_text(text)
    mapping = mappings.resolve(str(tmp_path / "avro.toml"))
    schema = (SAMPLES / "framing-confluent-avro.avsc").read_bytes()
    file = str(SAMPLES / "framing-confluent-avro.bin")
    reader = decoded.reader_of([file], mapping.value, lambda: Decoder(mapping.value, schema=schema), whole=True)
    assert counters(replay(make_engine(), reader.fill, mapping, "samples", Outlets())) == NATIVE


def test_every_sample_has_a_test():
    tested = {case[0] for case in (*CASES, *BODIES)} | {"framing-confluent-avro.bin", "framing-confluent-avro.avsc"}
    assert tested == {file.name for file in SAMPLES.iterdir()}
