"""Two decoders that share no code read every message alike: whole ones, and those that went wrong."""

import gzip

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.intake import harness
from tests.intake.mutate import mutants
from tokenometer.schemas.value import PLAIN, Value

OTLP = ["otel.otlp_json", "otel.otlp_proto", "traceloop.otlp_json", "traceloop.otlp_proto"]
NESTED = b'{"tenant":"t","region":{"a":1},"batches":[{"host":"h","records":[{"a":1},{"b":"x"}]},{"records":[]}]}'
CASES = {
    "plain": (
        PLAIN,
        ["framing-array.json", "framing-confluent-json.bin", "framing-json-string.json", "envoy-aigw.jsonl"],
    ),
    "gzip": (PLAIN, ["framing-gzip.json"]),
    "otlp json": (Value("otlp"), OTLP[:1]),
    "otlp protobuf": (Value("otlp"), OTLP[1:2]),
    "traceloop json": (Value("otlp"), OTLP[2:3]),
    "traceloop protobuf": (Value("otlp"), OTLP[3:]),
    "zipkin": (Value("zipkin"), ["otel.zipkin_json"]),
    "jaeger": (Value("jaeger"), ["traceloop.jaeger_json"]),
    "debezium": (
        Value("debezium", outer=(("^", "op"), ("^", "source", "db"), ("^", "^", "schema"))),
        ["framing-debezium.json", "framing-debezium-update.json"],
    ),
    "new-api": (Value("debezium", json_in=(("other",),)), ["newapi-debezium.jsonl"]),
    "cloudevents": (Value("cloudevents"), ["framing-cloudevents-structured.bin"]),
    "higress": (Value(json_in=(("ai_log",), ("ai_log", "model"))), ["higress-ai-log.jsonl"]),
    "prefix": (Value(prefix="[...] "), ["sglang-request-log.txt"]),
    "whole": (Value(whole=True), ["framing-array.json", "envoy-aigw.jsonl"]),
    "avro": (Value("avro", schema="a.avsc"), ["framing-confluent-avro.bin"]),
    "avro of a registry": (Value("avro", registry=True), ["framing-confluent-avro.bin"]),
}
MUTANTS = 700


def options(value):
    if value.registry:
        return {"schemas": Registry({2: harness.AVRO.decode()})}
    return {"schema": harness.AVRO} if value.encoding == "avro" else {}


class Registry(dict):
    """Answers like a registry, and like the table of schemas that an audit has."""

    def __call__(self, reference):
        from tokenometer.processor.intake import UnregisteredSchema

        if reference not in self:
            raise UnregisteredSchema(reference)
        return self[reference]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_mutated_samples_are_read_alike(name):
    value, names = CASES[name]
    samples = [message for one in names for message in harness.sample(one)]
    harness.check(list(mutants(samples, MUTANTS, seed=len(name))), value, **options(value))


RECORDS = {
    "each": Value(records=("batches", "*", "records", "*"), outer=(("^", "host"), ("^", "^", "tenant"))),
    "one": Value(records=("batches",), outer=(("^", "region", "a"),)),
    "opened": Value(records=("batches", "*"), json_in=(("records",),)),
    "or the document": Value(records=("batches", "*", "records", "*"), outer=(("^", "host"),), document=True),
    "numbered": Value(records=("batches", "*", "records", "*"), outer=(("^", "host"),), index=True),
}


@pytest.mark.parametrize("name", RECORDS)
def test_mutated_nested_records_are_read_alike(name):
    quoted = orjson.dumps({"batches": [{"records": NESTED.decode()}, {"records": "no"}], "tenant": 1})
    empty = [b'{"batches":[],"a":1}', b'{"batches":null,"a":[1]}', b'{"batches":[{"records":null},{"records":[]}]}']
    harness.check(list(mutants([NESTED, quoted, *empty], 2 * MUTANTS, seed=7)), RECORDS[name])


def test_a_message_gives_the_same_wherever_it_is():
    """Alone, and among others."""
    messages = [message for name in ("framing-array.json", "framing-gzip.json") for message in harness.sample(name)]
    messages += [b"", None, b'{"a":1}\n\n{"b":2}', b"[]", b"\n", b" {}", *mutants(messages, 200, seed=3)]
    together = harness.meter(messages)
    for index, message in enumerate(messages):
        alone = harness.meter([message])
        assert alone.messages == [together.messages[index]]
        assert alone.failures.get(0) == together.failures.get(index)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.lists(JSON, max_size=8), st.sampled_from([0, 2]), st.booleans())
def test_an_array_s_elements_are_its_records(elements, indent, pressed):
    """The independent reading is orjson's."""
    text = orjson.dumps(elements, option=orjson.OPT_INDENT_2 if indent else None)
    (lines,) = harness.check([gzip.compress(text) if pressed else text]).messages
    assert [orjson.loads(line) for line in lines if line] == elements


@settings(max_examples=200, deadline=None)
@given(JSON, st.text(max_size=3))
def test_a_string_that_holds_json_is_opened(inside, name):
    record = {name: orjson.dumps(inside).decode(), "other": 1} if name != "other" else {"other": 1}
    (lines,) = harness.check([orjson.dumps(record)], Value(json_in=((name,),) if name else (("x",),))).messages
    opened = isinstance(inside, (dict, list)) and name not in ("other", "")
    assert orjson.loads(lines[0]) == (record | {name: inside} if opened else record)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.sampled_from(["json", "otlp", "zipkin", "jaeger", "debezium", "cloudevents"]))
def test_any_bytes_are_read_alike(message, encoding):
    harness.check([message, b"[" + message + b"]", message * 3], Value(encoding))
