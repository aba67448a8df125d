"""Avro against fastavro, by schemas of every type."""

import decimal
import io
import json

import fastavro
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.intake import harness
from tokenometer.processor.intake.avro import AvroSchemaError, compile_schema
from tokenometer.schemas.value import Value

SCHEMA = {
    "type": "record",
    "name": "Call",
    "namespace": "llm.log",
    "fields": [
        {"name": "id", "type": "string"},
        {"name": "ok", "type": "boolean"},
        {"name": "tokens", "type": ["null", "long", "string"]},
        {"name": "seconds", "type": "double"},
        {"name": "share", "type": "float"},
        {"name": "raw", "type": "bytes"},
        {"name": "kind", "type": {"type": "enum", "name": "Kind", "symbols": ["CHAT", "EMBED"]}},
        {"name": "other", "type": "Kind"},
        {"name": "hash", "type": {"type": "fixed", "name": "Hash", "size": 3}},
        {"name": "tags", "type": {"type": "map", "values": ["null", "string"]}},
        {"name": "calls", "type": {"type": "array", "items": ["null", "Call"]}},
        {"name": "time", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "cost", "type": {"type": "bytes", "logicalType": "decimal", "precision": 30, "scale": 4}},
    ],
}
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
LONG = st.integers(-(2**63), 2**63 - 1)
REAL = st.floats(allow_nan=False, allow_infinity=False)
COST = st.integers(-(10**20), 10**20).map(lambda number: decimal.Decimal(number).scaleb(-4))


def calls(inner):
    return st.fixed_dictionaries(
        {
            "id": TEXT,
            "ok": st.booleans(),
            "tokens": st.one_of(st.none(), LONG, TEXT),
            "seconds": REAL,
            "share": st.floats(width=32, allow_nan=False, allow_infinity=False),
            "raw": st.binary(max_size=7),
            "kind": st.sampled_from(["CHAT", "EMBED"]),
            "other": st.sampled_from(["CHAT", "EMBED"]),
            "hash": st.binary(min_size=3, max_size=3),
            "tags": st.dictionaries(TEXT, st.one_of(st.none(), TEXT), max_size=3),
            "calls": st.lists(st.one_of(st.none(), inner), max_size=2),
            "time": st.integers(0, 2**45),
            "cost": COST,
        }
    )


CALLS = calls(calls(st.none()))


def without_logical_types(schema):
    """As the line has it: a time stays a number."""
    text = json.dumps(schema)
    return fastavro.parse_schema(json.loads(text.replace('"logicalType": "timestamp-millis"', '"x": 1')))


def encoded(record, schema=SCHEMA):
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, without_logical_types(schema), record)
    return stream.getvalue()


def as_json(value):
    import base64

    match value:
        case bytes():
            return base64.b64encode(value).decode()
        case decimal.Decimal():
            return float(value)
        case float() if value.is_integer() and abs(value) < 2**63:
            return int(value)
        case dict():
            return {key: as_json(inner) for key, inner in value.items()}
        case list():
            return [as_json(inner) for inner in value]
    return value


def shares(found):
    """32-bit floats: the line has the shortest digits that tell them."""
    import struct

    if isinstance(found, dict):
        return {
            key: struct.unpack("<f", struct.pack("<f", inner))[0] if key == "share" else shares(inner)
            for key, inner in found.items()
        }
    return [shares(inner) for inner in found] if isinstance(found, list) else found


RAW = Value("avro", schema="a.avsc", frame="none")


@settings(max_examples=200, deadline=None)
@given(st.lists(CALLS, min_size=1, max_size=3))
def test_a_datum_says_what_fastavro_reads(records):
    messages = [encoded(record) for record in records]
    result = harness.check(messages, RAW, schema=json.dumps(SCHEMA).encode())
    for (line,), message in zip(result.messages, messages, strict=True):
        read = fastavro.schemaless_reader(io.BytesIO(message), without_logical_types(SCHEMA), None)
        assert shares(harness.members(line)) == shares(as_json(read))


@settings(max_examples=300, deadline=None)
@given(CALLS, st.data())
def test_damaged_data_are_read_alike(record, data):
    message = bytearray(encoded(record))
    for _ in range(data.draw(st.integers(1, 4))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    harness.check([bytes(message), bytes(message[:-1])], RAW, schema=json.dumps(SCHEMA).encode())


@pytest.mark.parametrize(
    ("schema", "message", "line"),
    [
        ('"long"', b"\x01", b"-1"),
        ('"long"', b"\xff" * 9 + b"\x01", b"-9223372036854775808"),
        ('"double"', bytes(6) + b"\xf8\x7f", b'"NaN"'),
        ('{"type":{"type":"string"}}', b"\x04ab", b'"ab"'),
        ('{"type":"array","items":"int"}', b"\x03\x04\x02\x04\x00", b"[1,2]"),
        ('{"type":"fixed","name":"f","size":2,"logicalType":"decimal","scale":1}', b"\xff\xf6", b"-1.0"),
        ('{"type":"bytes","logicalType":"decimal","scale":2,"precision":4}', b"\x02\x05", b"0.05"),
        ('{"type":"bytes","logicalType":"decimal","precision":4}', b"\x02\x05", b"5"),
    ],
)
def test_a_value_is_written_as_json(schema, message, line):
    assert harness.check([message], RAW, schema=schema.encode()).messages == [[line]]


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ('"long"', b"\xff" * 9 + b"\x02"),
        ('"long"', b"\x80" * 11),
        ('"string"', b"\x01"),
        ('"string"', b"\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01"),
        ('"boolean"', b"\x02"),
        ('["null","int"]', b"\x04\x02"),
        ('["null","int"]', b"\x01"),
        ('{"type":"enum","name":"e","symbols":["A"]}', b"\x02"),
        ('{"type":"array","items":"int"}', b"\x02\x02"),
        ('{"type":"bytes","logicalType":"decimal","scale":2,"precision":4}', b"\x00"),
        ('{"type":"bytes","logicalType":"decimal","scale":2,"precision":4}', b"\x22" + b"\1" * 17),
    ],
)
def test_a_malformed_datum_is_refused(schema, message):
    assert harness.check([message], RAW, schema=schema.encode()).failures == {0: "bad_encoding"}


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ("{", "not JSON"),
        ('"nonsense"', "unknown type nonsense"),
        ("5", "expected a type"),
        ('{"type":"record","name":"R","fields":5}', "expected a list of fields"),
        ('{"type":"record","fields":[]}', "expected a name"),
        ('{"type":"fixed","name":"F","size":-1}', "expected a size"),
        ('{"type":"bytes","logicalType":"decimal","scale":99}', "scale of 0 to 38"),
        ("[" * 5000 + "]" * 5000, "nested too deeply"),
    ],
)
def test_a_schema_that_cannot_be_used_is_said(schema, words):
    with pytest.raises(AvroSchemaError, match=words):
        compile_schema(schema)
