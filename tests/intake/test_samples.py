"""What real producers write: the counters that the samples' own records say, by both decoders."""

import orjson
import pytest

from tests.intake import harness
from tokenometer.schemas.value import PLAIN, Value

NATIVE = {"request_id": "r-1", "user": "u", "model": "m", "input_tokens": 2006, "output_tokens": 300}
AVRO = Value("avro", schema="framing-confluent-avro.avsc")

# sample, how it is read, messages' records in all
CASES = [
    ("litellm-slp.jsonl", PLAIN, 14),
    ("litellm-generic-api.json", PLAIN, 9),
    ("otel.otlp_json", Value("otlp"), 5),
    ("otel.otlp_proto", Value("otlp"), 5),
    ("traceloop.otlp_json", Value("otlp"), 10),
    ("traceloop.otlp_proto", Value("otlp"), 10),
    ("otel.zipkin_json", Value("zipkin"), 5),
    ("traceloop.jaeger_json", Value("jaeger"), 10),
    ("apisix-default-array.json", PLAIN, 3),
    ("apisix-batch1.jsonl", PLAIN, 3),
    ("kong-kafka-log.jsonl", PLAIN, 2),
    ("higress-ai-log.jsonl", Value(json_in=(("ai_log",),)), 1),
    ("newapi-debezium.jsonl", Value("debezium", json_in=(("other",),)), 3),
    ("bedrock-invocation-log.jsonl", PLAIN, 1),
    ("sglang-metrics-file.jsonl", PLAIN, 1),
    ("sglang-request-log.txt", Value(prefix="[...] "), 1),
    ("envoy-aigw.jsonl", PLAIN, 2),
    ("framing-array.json", PLAIN, 2),
    ("framing-confluent-json.bin", PLAIN, 1),
    ("framing-confluent-json-headerid.bin", PLAIN, 1),
    ("framing-confluent-avro.bin", AVRO, 1),
    ("framing-gzip.json", PLAIN, 1),
    ("framing-json-string.json", PLAIN, 1),
    ("framing-debezium.json", Value("debezium"), 1),
    ("framing-debezium-update.json", Value("debezium"), 1),
    ("framing-cloudevents-structured.bin", Value("cloudevents"), 1),
]


def options(value):
    return {"schema": harness.AVRO} if value.encoding == "avro" else {}


@pytest.mark.parametrize(("name", "value", "records"), CASES, ids=[case[0] for case in CASES])
def test_both_decoders_read_a_sample_alike(name, value, records):
    found = harness.check(harness.sample(name), value, **options(value))
    assert not found.failures
    lines = [line for message in found.messages for line in message]
    assert len(lines) == records
    assert all(isinstance(orjson.loads(line), dict) for line in lines)


@pytest.mark.parametrize("name", [name for name, _, _ in CASES if name.startswith("framing-")])
def test_every_framing_gives_the_native_record(name):
    value = next(value for known, value, _ in CASES if known == name)
    (lines,) = harness.meter(harness.sample(name), value, **options(value)).messages
    for line in lines:
        record = harness.members(line)
        record = record.get("data", record)
        assert {key: record[key] for key in NATIVE} == NATIVE


def usage(lines, inputs="gen_ai.usage.input_tokens", outputs="gen_ai.usage.output_tokens"):
    spans = [span for span in map(harness.members, lines) if outputs in span]
    return len(spans), sum(int(span[inputs]) for span in spans), sum(int(span[outputs]) for span in spans)


@pytest.mark.parametrize("encoding", ["otlp_json", "otlp_proto", "zipkin_json"])
def test_the_spans_of_openai_v2_carry_their_usage(encoding):
    value = Value("otlp" if encoding.startswith("otlp") else "zipkin")
    (lines,) = harness.meter(harness.sample(f"otel.{encoding}"), value).messages
    assert usage(lines) == (2, 4012, 600)  # and an embedding has input only
    assert sum(int(harness.members(line).get("gen_ai.usage.input_tokens", 0)) for line in lines) == 4020


def test_json_and_protobuf_of_one_batch_are_the_same_lines():
    for name in ("otel", "traceloop"):
        texts = [
            harness.meter(harness.sample(f"{name}.otlp_{kind}"), Value("otlp")).messages for kind in ("json", "proto")
        ]
        assert texts[0] == texts[1]


def test_jaeger_has_the_usage_that_otlp_has():
    (lines,) = harness.meter(harness.sample("traceloop.otlp_json"), Value("otlp")).messages
    jaeger = harness.meter(harness.sample("traceloop.jaeger_json"), Value("jaeger")).messages
    assert usage(lines) == usage([line for message in jaeger for line in message])
    ids = [[harness.members(line)["span_id"] for line in found] for found in (lines, [one for (one,) in jaeger])]
    assert ids[0] == ids[1]


def test_the_sdk_s_own_spans_are_known_by_their_parents():
    """traceloop's span and the Anthropic SDK's own report one call under one response id."""
    (lines,) = harness.meter(harness.sample("traceloop.otlp_json"), Value("otlp")).messages
    spans = [harness.members(line) for line in lines]
    by_id = {span["span_id"]: span for span in spans}
    for span in spans:
        parent = by_id.get(span.get("parent_span_id"), {})
        assert span.get("parent.has_usage", False) == any(name.startswith("gen_ai.usage.") for name in parent)
