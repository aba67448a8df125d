"""The `[value]` table of a mapping: what it may say, and how it is told what is wrong."""

import pytest

from tests.intake import harness
from tokenometer.schemas.value import PLAIN, Value, asks_for_headers, value_of, with_fields


class Wrong(Exception):
    pass


def fail(where, expected, found):
    raise Wrong(f"value.{where}: expected {expected}, found {found!r}")


@pytest.mark.parametrize(
    ("table", "value"),
    [
        (None, PLAIN),
        ({}, PLAIN),
        ({"encoding": "otlp"}, Value("otlp")),
        ({"records": ["records", "*"]}, Value(records=("records", "*"))),
        ({"records": "records"}, Value(records=("records",))),
        ({"json_in": ["ai_log", ["a", "b"]]}, Value(json_in=(("ai_log",), ("a", "b")))),
        ({"prefix": "[...] "}, Value(prefix="[...] ")),
        ({"whole": True}, Value(whole=True)),
        ({"encoding": "avro", "schema": "a.avsc", "frame": "none"}, Value("avro", schema="a.avsc", frame="none")),
        (
            {"encoding": "protobuf", "schema": "a.desc", "message": "x.Y"},
            Value("protobuf", schema="a.desc", message="x.Y"),
        ),
        ({"encoding": "avro", "registry": True}, Value("avro", registry=True)),
    ],
)
def test_a_table_is_a_value(table, value):
    assert value_of(table, fail) == value


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (5, "value.: expected a table"),
        ({"encoding": "otpl"}, "did you mean otlp"),
        ({"encoding": ["otlp"]}, "value.encoding: expected one of"),
        ({"record": ["x"]}, "did you mean records"),
        ({"encoding": "otlp", "records": ["x"]}, "no such key with encoding = otlp; it is for json"),
        ({"schema": "x"}, "no such key with encoding = json"),
        ({"records": []}, "a list of 1 to 6 keys"),
        ({"records": ["a"] * 7}, "a list of 1 to 6 keys"),
        ({"records": ["a", 5]}, "found 5"),
        ({"records": ["*"]}, "arrays are opened anyway"),
        ({"records": ["^", "a"]}, "is for the paths of fields"),
        ({"json_in": "x"}, "a list of 1 to 8 paths"),
        ({"json_in": [[]]}, r"value.json_in\[0\]: expected a path"),
        ({"json_in": ["x"] * 9}, "a list of 1 to 8 paths"),
        ({"prefix": ""}, "a string of 1 to 256 bytes"),
        ({"prefix": "x" * 257}, "a string of 1 to 256 bytes"),
        ({"prefix": "x..."}, "does not end with"),
        ({"whole": "yes"}, "true or false"),
        ({"encoding": "avro"}, "cannot be read without a schema"),
        ({"encoding": "avro", "registry": False}, "cannot be read without a schema"),
        ({"encoding": "avro", "schema": "a", "registry": True}, "which of them should count"),
        ({"encoding": "avro", "schema": ""}, "the path of a schema file"),
        ({"encoding": "avro", "schema": "a", "frame": "confluence"}, "did you mean confluent"),
        ({"encoding": "avro", "registry": True, "frame": "none"}, "no frame but confluent"),
        ({"encoding": "protobuf", "registry": True, "message": "x"}, "each value names its own"),
    ],
)
def test_a_wrong_table_is_told_what_is_wrong(table, words):
    with pytest.raises(Wrong, match=words):
        value_of(table, fail)


def test_fields_say_what_is_wanted_beside_the_value():
    paths = [("user",), ("@key",), ("@header.team",), ("^", "tenant"), ("^", "tenant")]
    assert with_fields(PLAIN, paths) == Value(outer=(("^", "tenant"),), key=True, headers=("team",))
    each = Value(records=("a", "*"))
    assert with_fields(each, [("@index",)]).index and not with_fields(each, paths).index
    assert not with_fields(PLAIN, [("@index",)]).index
    assert asks_for_headers(with_fields(PLAIN, paths)) and not asks_for_headers(PLAIN)
    assert asks_for_headers(Value("cloudevents"))


def test_elements_have_numbers_and_a_document_without_the_array_is_a_record():
    """An element's number is a part of its identity where the request's id is around the array."""
    value = Value(records=("a", "b", "*"), outer=(("^", "^", "id"),), index=True)
    message = b'{"id":1,"a":{"b":[{"x":1},{},2,{"y":1}]}}\n{"id":2,"a":{"c":3}}\n{"id":3}\n{"id":4,"a":{"b":[{"x":1}]}}'
    wanted = [
        b'{"@index":0,"^":{"^":{"id":1}},"x":1}',
        b'{"@index":1,"^":{"^":{"id":1}}}',
        b"2",
        b'{"@index":2,"^":{"^":{"id":1}},"y":1}',
        b'{"id":2,"a":{"c":3}}',
        b'{"id":3}',
        b'{"@index":0,"^":{"^":{"id":4}},"x":1}',
    ]
    assert harness.check([message], value).messages == [wanted]


def test_a_string_that_stands_for_nothing_is_null():
    """Envoy writes a dash where a text is empty."""
    value = Value(json_in=(("a",), ("a", "b")))
    message = b'{"a":""}\n{"a":"-"}\n{"a":"--"}\n{"a":"{\\"b\\":\\"-\\"}"}\n{"a":"-1"}'
    wanted = [b'{"a":null}', b'{"a":null}', b'{"a":"--"}', b'{"a":{"b":null}}', b'{"a":"-1"}']
    assert harness.check([message], value).messages == [wanted]


@pytest.mark.parametrize(
    "text",
    [
        b'{"a":{"b":null},"u":1}',
        b'{"a":{"b":[]},"u":1}',
        b'{"a":{"b":[ ]},"u":1}',
        b'{"a":null,"u":1}',
        b'{"a":{},"u":1}',
        b'{"u":1}',
    ],
)
def test_a_document_without_records_is_one_where_the_mapping_reads_documents(text):
    """Of a batch that is empty, no field reads the document, and it gives none."""
    value = Value(records=("a", "b", "*"))
    reads = with_fields(value, [("a", "usage"), ("u",)])
    assert reads.document and not with_fields(value, [("u",), ("^", "a")]).document
    assert harness.check([text], reads).messages == [[text]]
    assert (harness.check([text], value).messages == [[b""]]) == (b"null" in text or b"[" in text)


def test_null_in_an_array_is_no_document():
    value = with_fields(Value(records=("a", "*", "b", "*")), [("a",)])
    assert harness.check([b'{"a":[null,{"b":null},{"b":[]},{"b":[{"x":1}]}]}'], value).messages == [[b'{"x":1}']]
