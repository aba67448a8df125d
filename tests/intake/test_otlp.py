"""Spans and log records against opentelemetry-proto, and what the lines promise."""

import math

import orjson
import pytest
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, InstrumentationScope, KeyValue, KeyValueList
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, LogsData, ResourceLogs, ScopeLogs
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status, TracesData

from tests.intake import harness
from tokenometer.schemas.value import Value

OTLP = Value("otlp")
FIXED = {
    *("trace_id", "span_id", "parent_span_id", "name", "kind", "start_time", "end_time", "status", "status_message"),
    *("scope.name", "scope.version", "parent.has_usage", "child.has_usage"),
}

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SCALAR = st.one_of(
    TEXT.map(lambda text: AnyValue(string_value=text)),
    st.booleans().map(lambda flag: AnyValue(bool_value=flag)),
    st.integers(-(2**63), 2**63 - 1).map(lambda number: AnyValue(int_value=number)),
    st.floats(allow_nan=False, allow_infinity=False).map(lambda number: AnyValue(double_value=number)),
    st.binary(max_size=8).map(lambda content: AnyValue(bytes_value=content)),
    st.just(AnyValue()),
)
VALUE = st.recursive(
    SCALAR,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda values: AnyValue(array_value=ArrayValue(values=values))),
        st.dictionaries(TEXT, inner, max_size=3).map(
            lambda items: AnyValue(
                kvlist_value=KeyValueList(values=[KeyValue(key=key, value=value) for key, value in items.items()])
            )
        ),
    ),
    max_leaves=5,
)
NAMES = st.one_of(TEXT, st.sampled_from(["gen_ai.usage.input_tokens", "name", "llm.token_count.prompt", "scope.name"]))
ATTRIBUTES = st.dictionaries(NAMES, VALUE, max_size=4).map(
    lambda items: [KeyValue(key=key, value=value) for key, value in items.items()]
)
IDS = st.sampled_from([b"", b"\x01" * 8, b"\x02" * 8, b"\x03" * 8, b"\xff" * 8])
NANOSECONDS = st.one_of(st.just(0), st.integers(1, 10**19 - 1))
SPANS = st.builds(
    Span,
    trace_id=st.sampled_from([b"", b"\xab" * 16]),
    span_id=IDS,
    parent_span_id=IDS,
    name=TEXT,
    kind=st.integers(0, 5),
    start_time_unix_nano=NANOSECONDS,
    end_time_unix_nano=NANOSECONDS,
    attributes=ATTRIBUTES,
    status=st.one_of(st.none(), st.builds(Status, message=TEXT, code=st.integers(0, 2))),
)
TRACES = st.builds(
    TracesData,
    resource_spans=st.lists(
        st.builds(
            ResourceSpans,
            resource=st.one_of(st.none(), st.builds(Resource, attributes=ATTRIBUTES)),
            scope_spans=st.lists(
                st.builds(
                    ScopeSpans,
                    scope=st.one_of(
                        st.none(),
                        st.builds(InstrumentationScope, name=TEXT, version=TEXT, attributes=ATTRIBUTES),
                    ),
                    spans=st.lists(SPANS, max_size=4),
                ),
                max_size=2,
            ),
        ),
        max_size=2,
    ),
)


def plain(value):
    match value.WhichOneof("value"):
        case None:
            return None
        case "array_value":
            return [plain(item) for item in value.array_value.values]
        case "kvlist_value":
            return {item.key: plain(item.value) for item in value.kvlist_value.values}
        case "bytes_value":
            import base64

            return base64.b64encode(value.bytes_value).decode()
        case kind:
            return getattr(value, kind)


def otlp_json(data):
    """As the Collector writes it: ids are hexadecimal there, and enumerations numbers."""
    found = json_format.MessageToDict(data, use_integers_for_enums=True)
    for resource, resource_data in zip(found.get("resourceSpans", []), data.resource_spans, strict=True):
        for scope, scope_data in zip(resource.get("scopeSpans", []), resource_data.scope_spans, strict=True):
            for span, span_data in zip(scope.get("spans", []), scope_data.spans, strict=True):
                for name in ("trace_id", "span_id", "parent_span_id"):
                    json_name = name.split("_")[0] + "".join(part.title() for part in name.split("_")[1:])
                    if json_name in span:
                        span[json_name] = getattr(span_data, name).hex()
    return orjson.dumps(found)


def lines_of(message):
    result = harness.check([message], OTLP)
    assert not result.failures
    return [harness.members(line) for line in result.messages[0] if line]


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(TRACES)
def test_spans_say_what_the_library_reads(data):
    expected = [
        (resource, scope, span)
        for resource in data.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    for message in (data.SerializeToString(), otlp_json(data)):
        lines = lines_of(message)
        assert len(lines) == len(expected)
        for line, (resource, scope, span) in zip(lines, expected, strict=True):
            for attribute in span.attributes:
                if attribute.key not in FIXED and not attribute.key.startswith(("resource.", "scope.")):
                    assert line[attribute.key] == plain(attribute.value), attribute
            for attribute in resource.resource.attributes:
                assert line[f"resource.{attribute.key}"] == plain(attribute.value)
            assert line.get("trace_id", "") == span.trace_id.hex()
            assert line.get("span_id", "") == span.span_id.hex()
            assert line.get("name", "") == span.name
            assert line.get("scope.version", "") == scope.scope.version
            assert line.get("kind") == (None, "internal", "server", "client", "producer", "consumer")[span.kind]
            assert line.get("status") == (None, "ok", "error")[span.status.code]
            assert ("start_time" in line) == (span.start_time_unix_nano > 0)


def attribute(key, value):
    return KeyValue(
        key=key, value=AnyValue(int_value=value) if isinstance(value, int) else AnyValue(string_value=value)
    )


def traces(*spans, resource=()):
    found = ResourceSpans(resource=Resource(attributes=resource), scope_spans=[ScopeSpans(spans=spans)])
    return TracesData(resource_spans=[found])


def span(number, parent=0, tokens=None, **fields):
    attributes = [] if tokens is None else [attribute("gen_ai.usage.input_tokens", tokens)]
    ids = [bytes([number]) * 8, bytes([parent]) * 8 if parent else b""]
    return Span(trace_id=b"\1" * 16, span_id=ids[0], parent_span_id=ids[1], attributes=attributes, **fields)


def relations(*spans):
    return [
        (line.get("parent.has_usage", False), line.get("child.has_usage", False))
        for line in lines_of(traces(*spans).SerializeToString())
    ]


def test_a_call_that_two_instrumentations_report_is_told_by_its_parent():
    assert relations(span(2, parent=1, tokens=5), span(1, tokens=5)) == [(True, False), (False, True)]


def test_an_agent_s_span_is_told_by_usage_anywhere_below_it():
    """The agent's sum, a tool without usage, a call below the tool."""
    assert relations(span(1, tokens=9), span(2, parent=1), span(3, parent=2, tokens=9)) == [
        (False, True),
        (True, True),
        (False, False),
    ]


def call(number, parent=0, response_id="", **counts):
    found = span(number, parent)
    names = {"sent": "gen_ai.usage.input_tokens", "made": "gen_ai.usage.output_tokens", "cost": "gen_ai.usage.cost"}
    found.attributes.extend(attribute(names[name], count) for name, count in counts.items())
    found.attributes.extend([attribute("gen_ai.response.id", response_id)] if response_id else [])
    return found


def gives_way(*spans):
    """Whether the first of them says that its tokens are those of the spans below it; both decoders say so, in JSON
    and protobuf."""
    data = traces(*spans)
    found = [
        lines_of(message)[0].get("child.has_usage", False) for message in (data.SerializeToString(), otlp_json(data))
    ]
    assert found[0] == found[1]
    return found[0]


def test_a_call_with_a_response_id_of_its_own_does_not_give_way_to_another_call():
    chat = call(1, response_id="c1", sent=1000, made=200)
    assert not gives_way(chat, call(2, 1, response_id="e1", sent=8))
    assert not gives_way(chat, span(2, 1), call(3, 2, response_id="c2", sent=1000, made=200))
    assert not gives_way(chat, call(2, 1, sent=10, made=5)), "another call, by its counts"
    assert gives_way(chat, call(2, 1, response_id="c1", sent=1000, made=200))
    assert gives_way(chat, call(2, 1, sent=1000, made=200)), "one call that a second instrumentation reports without id"


def test_a_call_does_not_give_way_to_a_span_that_lacks_a_count_that_it_has():
    chat = call(1, sent=1000, made=200)
    assert not gives_way(chat, call(2, 1, cost=3)), "both would vanish"
    assert not gives_way(chat, call(2, 1, sent=8)), "an embedding is no chat"
    assert gives_way(chat, call(2, 1, sent=8), call(3, 1, sent=992, made=200)), "an agent's sum has no id"


TAGS = st.dictionaries(
    st.sampled_from(["gen_ai.usage.input_tokens", "gen_ai.usage.completion_tokens", "llm.token_count.prompt", "x"]),
    st.sampled_from(["5", '"5"', '"\\u0035"', "-0", "0", "5.0", "null", "1000000000000000000", '""', '{"a":1}', "?"]),
)
IDS = st.sampled_from(["", ',"gen_ai.response.id":"a"', ',"gen_ai.response.id":"\\u0061"', ',"gen_ai.response.id":7'])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), TAGS, IDS), min_size=2, max_size=5))
def test_both_decoders_relate_odd_spans_alike(spans):
    message = ",".join(
        f'{{"traceId":"1","id":"{number}","parentId":"{parent}","tags":{{"y":1{tag_id}'
        + "".join(f',"{name}":{value}' for name, value in tags.items())
        + "}}"
        for number, (parent, tags, tag_id) in enumerate(spans)
    )
    harness.check([b"[" + message.encode() + b"]"], Value("zipkin"))


@pytest.mark.parametrize(("levels", "expected"), [(64, True), (65, False)])
def test_counts_are_looked_for_64_levels_up(levels, expected):
    between = [span(number, number - 1) for number in range(2, levels + 1)]
    assert gives_way(call(1, sent=9, made=1), *between, call(levels + 1, levels, sent=9, made=1)) == expected


def test_relations_need_the_parent_in_the_same_message_and_trace():
    assert relations(span(2, parent=9, tokens=5)) == [(False, False)]
    other = span(1, tokens=5)
    other.trace_id = b"\2" * 16
    assert relations(other, span(2, parent=1, tokens=5)) == [(False, False)] * 2


def test_spans_that_are_each_other_s_parents_end():
    assert relations(span(1, parent=1, tokens=1)) == [(False, False)]
    assert relations(span(1, parent=2, tokens=1), span(2, parent=1, tokens=1)) == [(True, True)] * 2


def test_a_line_has_the_form_that_mappings_read():
    call = span(1, tokens=7, name="chat", kind=3, start_time_unix_nano=1795922916155419936)
    call.status.code, call.status.message = 2, "boom"
    (line,) = lines_of(traces(call, resource=[attribute("user.id", "u")]).SerializeToString())
    assert line == {
        "trace_id": "01" * 16,
        "span_id": "01" * 8,
        "name": "chat",
        "kind": "client",
        "start_time": "2026-11-29T03:28:36.155419936Z",
        "status": "error",
        "status_message": "boom",
        "gen_ai.usage.input_tokens": 7,
        "resource.user.id": "u",
    }


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (2006.0, 2006),
        (-0.0, 0),
        (0.5, 0.5),
        (2.0**60, 2**60),
        (2.0**63, 2.0**63),
        (1e22, 1e22),
        (math.inf, "Infinity"),
        (-math.inf, "-Infinity"),
        (math.nan, "NaN"),
    ],
)
def test_a_double_that_is_a_whole_number_is_an_integer(number, expected):
    data = traces(Span(attributes=[KeyValue(key="x", value=AnyValue(double_value=number))]))
    (line,) = lines_of(data.SerializeToString())
    assert line["x"] == expected and type(line["x"]) is type(expected)


def test_members_in_an_unusual_order_are_read_alike():
    text = (
        b'{"resourceSpans":[{"scopeSpans":[{"spans":[{"attributes":[{"value":{"intValue":"7"},"key":"x"}],"name":"a",'
        b'"name":"b"}],"scope":{"name":"s"}}],"resource":{"attributes":[{"key":"r","value":{"stringValue":"v"}}]}}]}'
    )
    assert lines_of(text) == [{"name": "b", "x": 7, "scope.name": "s", "resource.r": "v"}]
    assert lines_of(text + b"\n" + text) == lines_of(text) * 2
    assert lines_of(text.replace(b",", b"\n,\n")) == lines_of(text)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b'{"intValue":"12"}', 12),
        (b'{"intValue":12}', 12),
        (b'{"intValue":"012"}', "012"),
        (b'{"intValue":"x"}', "x"),
        (b'{"intValue":1.5}', 1.5),
        (b'{"stringValue":5}', 5),
        (b'{"stringValue":{"a":[1]}}', {"a": [1]}),
        (b'{"boolValue":null}', None),
        (b"{}", None),
        (b"null", None),
        (b'{"arrayValue":{}}', []),
        (b'{"arrayValue":{"values":[{"intValue":"1"},{},null]}}', [1, None, None]),
        (b'{"kvlistValue":{"values":[{"key":"a","value":{"intValue":"1"}},{"key":"b"}]}}', {"a": 1, "b": None}),
    ],
)
def test_a_value_of_a_wrong_type_is_handed_on(value, expected):
    text = b'{"resourceSpans":[{"scopeSpans":[{"spans":[{"attributes":[{"key":"x","value":%b}]}]}]}]}' % value
    assert lines_of(text) == [{"x": expected}]


BAD_SPANS = [
    b"5",
    b"null",
    b'{"traceId":5}',
    b'{"attributes":{}}',
    b'{"attributes":[5]}',
    b'{"attributes":[{"key":5}]}',
    b'{"attributes":[{"key":"x","value":5}]}',
    b'{"attributes":[{"key":"x","value":{"intValue":1,"stringValue":"a"}}]}',
    b'{"attributes":[{"key":"x","value":{"arrayValue":[]}}]}',
    b'{"startTimeUnixNano":true}',
    b'{"status":[]}',
    b'{"kind":{}}',
]


@pytest.mark.parametrize("bad", BAD_SPANS)
def test_the_neighbours_of_a_bad_span_count(bad):
    text = b'{"resourceSpans":[{"scopeSpans":[{"spans":[{"name":"a"},%b,{"name":"b"}]}]}]}' % bad
    result = harness.check([text], OTLP)
    assert not result.failures
    assert result.messages == [[b'{"name":"a"}', b"?", b'{"name":"b"}']]


@pytest.mark.parametrize(
    "text",
    [
        b"{",
        b'{"resourceSpans":5}',
        b'{"resourceSpans":[5]}',
        b'{"resourceSpans":[{"scopeSpans":{}}]}',
        b'{"resourceSpans":[{"resource":5}]}',
        b'{"resourceSpans":[{"scopeSpans":[{"spans":[{"name":"a"}]}]}]',
        b'{"resourceSpans":[{"scopeSpans":[{"spans":[{"name":"a"},{]}]}]}',
        b'{"records":[]}',
        b'{"resourceSpans":[],"resourceLogs":[]}',
        b"5",
        b"[]",
        b"\x12\x03abc",
        b"\x0a\x05abc",
        b"\x0b",
    ],
)
def test_what_is_no_otlp_is_one_bad_message(text):
    assert harness.check([text], OTLP).failures == {0: "bad_encoding"}


def test_an_empty_batch_has_no_record():
    assert harness.check([b"", b"{}", b'{"resourceSpans":[]}', b'{"resourceSpans":null}'], OTLP).messages == [[b""]] * 4


def test_unknown_protobuf_fields_are_skipped():
    data = traces(span(1, tokens=3))
    unknown = b"\xf8\x3f\x05" + b"\xfd\x3fabcd" + b"\xf9\x3fabcdefgh" + b"\xfa\x3f\x03abc"
    inner = data.resource_spans[0].scope_spans[0].spans[0].SerializeToString() + unknown
    resource = part(b"\x12", part(b"\x12", inner) + unknown) + unknown
    assert lines_of(part(b"\x0a", resource) + unknown) == lines_of(data.SerializeToString())


def part(tag, content):
    """A field of bytes, by its tag."""
    size = len(content)
    return tag + (bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7])) + content


@pytest.mark.parametrize("depth", [64, 65, 300])
def test_values_nest_64_deep(depth):
    value, text = b"\x18\x01", b'{"intValue":1}'
    for _ in range(depth - 1):
        value = part(b"\x2a", part(b"\x0a", value))
        text = b'{"arrayValue":{"values":[%b]}}' % text
    neighbour = part(b"\x12", b"\x2a\x01n")
    spans = part(b"\x12", part(b"\x4a", b"\x0a\x01x" + part(b"\x12", value))) + neighbour
    proto = part(b"\x0a", part(b"\x12", spans))
    text = (
        b'{"resourceSpans":[{"scopeSpans":[{"spans":[{"attributes":[{"key":"x","value":%b}]},{"name":"n"}]}]}]}' % text
    )
    for message in (proto, text):
        (lines,) = harness.check([message], OTLP).messages
        assert (lines[0] == b"?") == (depth > 64)
        assert lines[1] == b'{"name":"n"}'


def test_a_string_that_is_not_utf8_spoils_only_its_record():
    data = traces(Span(attributes=[attribute("x", "ABCD")]), span(1, tokens=1)).SerializeToString()
    (lines,) = harness.check([data.replace(b"ABCD", b"AB\xff\xfe")], OTLP).messages
    assert harness.meaning(lines[0]) is None and harness.meaning(lines[1]) is not None


def test_log_records_are_lines_too():
    record = LogRecord(
        time_unix_nano=1795922916155419936,
        event_name="api_request",
        severity_text="INFO",
        body=AnyValue(string_value="hi"),
        attributes=[attribute("input_tokens", 5)],
        trace_id=b"\1" * 16,
    )
    data = LogsData(
        resource_logs=[ResourceLogs(scope_logs=[ScopeLogs(log_records=[record, LogRecord(body=AnyValue())])])]
    )
    text = json_format.MessageToJson(data, indent=None).replace('"AQEBAQEBAQEBAQEBAQEBAQ=="', f'"{"01" * 16}"')
    expected = {
        "time": "2026-11-29T03:28:36.155419936Z",
        "event_name": "api_request",
        "severity": "INFO",
        "body": "hi",
        "trace_id": "01" * 16,
        "input_tokens": 5,
    }
    assert lines_of(data.SerializeToString())[0] == expected
    assert lines_of(text.encode())[0] == expected
