"""Values that are wrong: a reason and one bad record, or bad records among good ones. The neighbours count."""

import gzip
import struct

import numpy as np
import orjson
import pytest
import zstandard

from tests.intake import harness
from tests.intake.test_agreement import Registry
from tokenometer.processor.intake import openers
from tokenometer.schemas.value import PLAIN, Value

GOOD = b'{"a":1}'
LIMIT = 1 << 16
AVRO = {"schema": harness.AVRO}


def only_failure(message, value=PLAIN, **options):
    """The reason of a message between two good ones, which are read."""
    good = options.pop("good", GOOD)
    result = harness.check([good, message, good], value, **options)
    assert len(result.messages) == 3 and result.messages[1] == [b"?"]
    assert set(result.failures) <= {1}
    assert result.messages[0] == result.messages[2] != [b"?"]
    return result.failures[1]


# --- Compression ---


def zstd(data):
    return zstandard.compress(data)


@pytest.mark.parametrize("compress", [gzip.compress, zstd])
def test_compressed_values_are_opened(compress):
    pressed = compress(b"[" + GOOD + b",\n" + GOOD + b"]")
    assert harness.check([pressed, compress(GOOD + b"\n" + GOOD), compress(b"")]).messages == [[GOOD] * 2] * 2 + [[b""]]
    assert harness.check([compress(GOOD + b"\n") + compress(GOOD)]).messages == [[GOOD] * 2]


@pytest.mark.parametrize("compress", [gzip.compress, zstd])
@pytest.mark.parametrize("cut", [1, 4, 9])
def test_compression_that_ends_early_is_refused(compress, cut):
    assert only_failure(compress(GOOD * 50)[:-cut]) == "bad_compression"


@pytest.mark.parametrize("compress", [gzip.compress, zstd])
def test_damaged_compression_is_refused(compress):
    pressed = bytearray(compress(bytes(range(256)) * 20))
    pressed[len(pressed) // 2] ^= 0x55
    pressed[-6] ^= 0x55
    assert only_failure(bytes(pressed)) == "bad_compression"


@pytest.mark.parametrize("compress", [gzip.compress, zstd])
def test_a_value_opens_to_the_limit_and_no_further(compress):
    record = b'{"a":"' + b"x" * (LIMIT - 8) + b'"}'
    assert harness.check([compress(record)], limit=LIMIT).messages == [[record]]
    assert only_failure(compress(record + b" "), limit=LIMIT) == "too_large"


@pytest.mark.parametrize("compress", [gzip.compress, zstd])
def test_a_bomb_is_refused_before_it_grows(compress):
    """256 MiB of zeros in a value; the memory that it takes is of the order of the limit."""
    import resource

    if compress is zstd:
        writer = zstandard.ZstdCompressor().compressobj(size=1 << 28)
        bomb = b"".join([writer.compress(bytes(1 << 20)) for _ in range(1 << 8)]) + writer.flush()
    else:
        import zlib

        stream = zlib.compressobj(1, wbits=31)
        bomb = b"".join([stream.compress(bytes(1 << 20)) for _ in range(1 << 8)]) + stream.flush()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert harness.meter([GOOD, bomb, GOOD]).failures == {1: "too_large"}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # KiB; the limit is 64 MiB


def test_openers_nest_to_a_fixed_depth():
    value = b"[" + GOOD + b"]"
    for _ in range(openers.NESTED_MAX):
        value = gzip.compress(value)
    assert harness.check([value]).messages == [[GOOD]]
    assert only_failure(gzip.compress(value)) == "too_deep"


def test_gzip_members_have_a_limit():
    member = gzip.compress(b" ")
    assert not harness.check([member * openers.GZIP_MEMBERS_MAX]).failures
    assert only_failure(member * (openers.GZIP_MEMBERS_MAX + 1)) == "bad_compression"


def test_a_byte_order_mark_is_no_part_of_a_record():
    assert harness.check([b"\xef\xbb\xbf" + GOOD, b"\xef\xbb\xbf[" + GOOD + b"]"]).messages == [[GOOD]] * 2
    assert harness.check([gzip.compress(b"\xef\xbb\xbf" + orjson.dumps("[1,2]"))]).messages == [[b"1", b"2"]]


# --- Frames and schemas ---


def test_avro_in_a_frame_cannot_be_read_as_json():
    assert only_failure(harness.sample("framing-confluent-avro.bin")[0]) == "unknown_schema"


DATUM = harness.sample("framing-confluent-avro.bin")[0]
REGISTERED = Value("avro", registry=True)


def framed(schema_id):
    return b"\0" + struct.pack(">I", schema_id) + DATUM[5:]


def test_a_schema_is_found_by_its_id_or_guid():
    guid = bytes(range(16))
    known = Registry({7: harness.AVRO.decode(), "00010203-0405-0607-0809-0a0b0c0d0e0f": harness.AVRO.decode()})
    headers = [(), (("__value_schema_id", b"\x01" + guid),)]
    result = harness.check([framed(7), DATUM[5:]], REGISTERED, headers=headers, schemas=known)
    assert result.messages[0] == result.messages[1] and harness.members(result.messages[0][0])["user"] == "u"


@pytest.mark.parametrize("message", [framed(8), DATUM[5:], b"", b"\0\0\0", framed(9), b"\1" + framed(7)[1:]])
def test_an_unknown_schema_is_said(message):
    known = Registry({7: harness.AVRO.decode(), 9: '{"type":"nonsense"}'})
    assert only_failure(message, REGISTERED, schemas=known, good=framed(7)) == "unknown_schema"


def test_a_registry_that_is_away_stops_the_decoder():
    def away(reference):
        raise ConnectionError("the registry answers 500")

    with pytest.raises(ConnectionError):
        harness.meter([framed(7)], REGISTERED, schemas=away)


@pytest.mark.parametrize("length", range(len(DATUM) - 5))
def test_avro_that_ends_early_is_refused(length):
    """Also where what is left would be a datum if it had no frame."""
    value = Value("avro", schema="a.avsc")
    assert only_failure(DATUM[: 5 + length], value, good=DATUM, **AVRO) == "bad_encoding"
    plain = Value("avro", schema="a.avsc", frame="none")
    assert only_failure(DATUM[5 : 5 + length], plain, good=DATUM[5:], **AVRO) == "bad_encoding"


def test_a_frame_is_what_the_mapping_says():
    single = b"\xc3\x01" + bytes(8) + DATUM[5:]
    messages = {"confluent": DATUM, "none": DATUM[5:], "single_object": single}
    for frame, good in messages.items():
        value = Value("avro", schema="a.avsc", frame=frame)
        for other in messages.values():
            if other is not good:
                assert only_failure(other, value, good=good, **AVRO) == "bad_encoding"


@pytest.mark.parametrize("extra", [b"\0", b"{}", b"\xff" * 20])
def test_avro_with_more_behind_it_is_refused(extra):
    assert only_failure(DATUM + extra, Value("avro", schema="a.avsc"), good=DATUM, **AVRO) == "bad_encoding"


def test_avro_cannot_grow_without_end():
    """A block of 2^60 nulls takes a few bytes."""
    schema = b'{"type":"record","name":"R","fields":[{"name":"x","type":{"type":"array","items":"null"}}]}'
    bomb = b"\x80\x80\x80\x80\x80\x80\x80\x80\x20" + b"\0"
    value = Value("avro", schema="a.avsc", frame="none")
    assert only_failure(bomb, value, good=b"\0", schema=schema, limit=LIMIT) == "too_large"


def test_a_schema_that_names_itself_ends():
    schema = b'{"type":"record","name":"R","fields":[{"name":"x","type":["null","R"]}]}'
    value = Value("avro", schema="a.avsc", frame="none")
    assert harness.check([b"\2" * 20 + b"\0"], value, schema=schema).messages[0][0].count(b"x") == 21
    assert only_failure(b"\2" * 5000 + b"\0", value, good=b"\0", schema=schema) == "bad_encoding"


# --- Arrays ---


def array(*elements):
    return b"[" + b",".join(elements) + b"]"


@pytest.mark.parametrize(
    ("message", "lines"),
    [
        (b"[]", [b""]),
        (b"[ \n ]", [b""]),
        (array(GOOD, b"{bad}", GOOD), [GOOD, b"{bad}", GOOD]),
        (array(GOOD, b'{"b":}', GOOD), [GOOD, b'{"b":}', GOOD]),
        (array(GOOD, b'{"b":1}}', GOOD), [GOOD, b'{"b":1}}', GOOD]),
        (array(GOOD, b"nonsense", b"5", b"null", GOOD), [GOOD, b"nonsense", b"5", b"null", GOOD]),
        (array(GOOD, array(GOOD, GOOD), GOOD), [GOOD, array(GOOD, GOOD), GOOD]),
        (array(b'{"b":"],[{\\"}', GOOD), [b'{"b":"],[{\\"}' + b"," + GOOD + b"]", b"?"]),
        (array(b'{"b":"],[{\\""}', GOOD), [b'{"b":"],[{\\""}', GOOD]),
        (array(b'{"b":[1}', GOOD), [b'{"b":[1},{"a":1}]', b"?"]),
        (b"[" + GOOD, [GOOD, b"?"]),
        (b"[" + GOOD + b',{"b":', [GOOD, b'{"b":', b"?"]),
        (b"[", [b"?"]),
        (array(GOOD) + b"\n" + array(GOOD, GOOD), [GOOD] * 3),
        (array(GOOD) + b" more", [GOOD, b"more"]),
        (array(GOOD) + b"\n" + GOOD + b"\n" + GOOD, [GOOD] * 3),
        (b'[{"a":\n1},\n{"b":"x\ny"}\n]', [b'{"a":\r1}', b'{"b":"x\ry"}']),
        (array(b"", GOOD, b"", b""), [GOOD]),
        (b"[" * 1000 + b"]" * 1000, [b"[" * 999 + b"]" * 999]),
        (
            b'[{"a":"' + b"\\\\" * 200 + b'"},{"b":"' + b"\\" * 63 + b'"}]',
            [b'{"a":"' + b"\\\\" * 200 + b'"}', b'{"b":"' + b"\\" * 63 + b'"}]', b"?"],
        ),
    ],
)
def test_an_array_is_its_elements(message, lines):
    assert harness.check([message]).messages == [lines]


def test_an_array_of_100_000_elements():
    elements = [b'{"a":%d}' % number for number in range(100_000)]
    assert harness.check([array(*elements)]).messages == [elements]


@pytest.mark.parametrize("shift", range(0, 70))
def test_an_array_is_cut_alike_wherever_its_blocks_begin(shift):
    """64 bytes are looked at together: escapes, quotes and brackets move through them."""
    inside = b'{"k":"' + b"x" * shift + b'\\"]},[{\\\\"}'
    assert harness.check([array(inside, GOOD, inside)]).messages == [[inside, GOOD, inside]]


# --- JSON in its shapes ---


def test_nesting_of_1000_is_read_and_judged_elsewhere():
    deep = b'{"a":' * 1000 + b"1" + b"}" * 1000
    assert harness.check([deep, array(deep)]).messages == [[deep]] * 2
    text = orjson.dumps({"x": deep.decode()})
    assert harness.check([text], Value(json_in=(("x",),))).messages == [[b'{"x":' + deep + b"}"]]
    deeper = b"[" * 1025 + b"]" * 1025
    held = orjson.dumps({"x": deeper.decode()})
    assert harness.check([held], Value(json_in=(("x",),))).messages == [[held]]


def test_an_empty_string_or_a_dash_in_place_of_json_is_null():
    """new-api writes `other` so where it has nothing to say, and Envoy a dash: the counts are read all the same."""
    texts = [b'{"x":"","y":1}', b'{"x":" ","y":1}', b'{"x":"-","y":1}']
    lines = harness.check(texts, Value(json_in=(("x",),))).messages
    assert lines == [[b'{"x":null,"y":1}'], [texts[1]], [b'{"x":null,"y":1}']]


def test_a_string_cannot_put_members_into_its_record():
    record = orjson.dumps({"x": '{"a":1},"user":"other"', "y": '{"a":1}}'})
    assert harness.check([record], Value(json_in=(("x",), ("y",)))).messages == [[record]]


@pytest.mark.parametrize(
    "number", [b"1e308", b"-1.5e-320", b"0e999", b"1" * 300, b"0." + b"0" * 400 + b"1", b"1e-9999"]
)
@pytest.mark.parametrize("refused", [b"1e309", b"1" * 310, b"-2e308", b"01", b"1.", b"1e", b".5", b"1e+"])
def test_numbers_are_read_as_far_as_orjson_reads_them(number, refused):
    texts = [b'{"x":"{\\"n\\":%b}"}' % text for text in (number, refused)]
    lines = harness.check(texts, Value(json_in=(("x",),))).messages
    assert lines == [[b'{"x":{"n":%b}}' % number], [texts[1]]]


def test_whole_messages_keep_their_newlines_out_of_sight():
    message = b'{\n "a": 1\n}\n'
    assert harness.check([message], Value(whole=True)).messages == [[b'{\r "a": 1\r}']]
    assert harness.check([message]).messages == [[b"{", b' "a": 1', b"}"]]


def test_records_get_what_is_around_them():
    value = Value(records=("batches", "*", "records", "*"), outer=(("^", "host"), ("^", "^", "tenant")))
    message = b'{"batches":[{"records":[{"a":1},{}],"host":"h"},{"records":null},{"other":1}],"tenant":"t"}'
    assert harness.check([message], value).messages == [
        [
            b'{"^":{"host":"h","^":{"tenant":"t"}},"a":1}',
            b'{"^":{"host":"h","^":{"tenant":"t"}}}',
            b'{"other":1}',
        ]
    ]


def test_one_bad_record_among_nested_ones_leaves_the_others():
    value = Value(records=("records", "*"))
    message = b'{"records":[{"a":1},{bad},{"a":1}],"more":1}'
    assert harness.check([message], value).messages == [[GOOD, b"{bad}", GOOD]]


# --- Debezium, CloudEvents, keys, headers ---


@pytest.mark.parametrize(
    ("message", "lines"),
    [
        (b'{"before":{"a":0},"after":{"a":1},"op":"u"}', [GOOD]),
        (b'{"schema":{},"payload":{"before":null,"after":{"a":1},"op":"c"}}', [GOOD]),
        (b'{"before":{"a":1},"after":null,"op":"d","source":{}}', [b""]),
        (b'{"op":"t","source":{}}', [b""]),
        (b'{"schema":null,"payload":null}', [b""]),
        (None, [b""]),
        (GOOD, [GOOD]),  # the connector may have taken the envelope off
        (b'{"after":5,"op":"c"}', [b'{"after":5,"op":"c"}']),
    ],
)
def test_a_change_event_is_the_row_after_it(message, lines):
    assert harness.check([message], Value("debezium")).messages == [lines]


EVENT = b'{"id":"e","data":%b}'


@pytest.mark.parametrize(
    "event",
    [
        EVENT % GOOD,
        EVENT % orjson.dumps(GOOD.decode()),
        b'{"id":"e","data_base64":"eyJhIjoxfQ=="}',
    ],
)
def test_an_event_has_its_data_as_an_object(event):
    ((line,),) = harness.check([event], Value("cloudevents")).messages
    assert harness.members(line)["data"] == {"a": 1}


@pytest.mark.parametrize("data", [b'"eyJhIjoxf"', b'"!!!!"', b'"bm8="', b"5"])
def test_data_that_is_no_json_stays_encoded(data):
    event = b'{"data_base64":' + data + b"}"
    assert harness.check([event], Value("cloudevents")).messages == [[event]]


def test_an_event_in_binary_mode_becomes_a_structured_one():
    headers = [("ce_specversion", b"1.0"), ("ce_id", b"e-1"), ("ce_subject", "Zoë".encode()), ("other", b"x")]
    value = Value("cloudevents")
    ((line,),) = harness.check([b'{"a":\n1}'], value, headers=[headers]).messages
    assert harness.members(line) == {"specversion": "1.0", "id": "e-1", "subject": "Zoë", "data": {"a": 1}}
    bad = [[], [("ce_specversion", b"1.0"), ("ce_id", b"\xff")], [("ce_specversion", b"1.0")]]
    result = harness.check([GOOD, GOOD, b"{bad"], value, headers=bad)
    assert result.failures == {1: "bad_header", 2: "bad_encoding"} and result.messages[0] == [GOOD]


def test_keys_and_headers_are_members_of_every_record():
    value = Value(key=True, headers=("team",))
    headers = [[("team", b"a"), ("team", b"b")], [], [("team", b"\xff")], [("team", None)], [("team", b"c")]]
    keys = [b"k", None, b"k", b"\xfe", b'q"']
    result = harness.check([array(GOOD, b"{}", b"5"), GOOD, GOOD, GOOD, None], value, keys, headers)
    assert result.messages == [
        [b'{"@key":"k","@header.team":"b","a":1}', b'{"@key":"k","@header.team":"b"}', b"5"],
        [GOOD],
        [b"?"],
        [b"?"],
        [b""],
    ]
    assert result.failures == {2: "bad_header", 3: "bad_key"}


def test_keys_go_into_spans_and_avro_too():
    spans = b'{"resourceSpans":[{"scopeSpans":[{"spans":[{"name":"a"},{"name":"b"}]}]}]}'
    assert harness.check([spans], Value("otlp", key=True), keys=[b"k"]).messages == [
        [b'{"@key":"k","name":"a"}', b'{"@key":"k","name":"b"}']
    ]
    value = Value("avro", schema="a.avsc", key=True)
    ((line,),) = harness.check([DATUM], value, keys=[b"k"], **AVRO).messages
    assert harness.members(line)["@key"] == "k"


# --- The seam ---


def test_plain_values_are_not_copied():
    from tokenometer.processor.intake import Decoder

    values = harness.column([GOOD, b" " + GOOD, b"", None, b"nonsense", GOOD + b"\n" + GOOD])
    lines = Decoder()(values)
    assert lines.data is values.data and lines.ends is values.lines and not lines.failures


def test_one_call_gives_no_more_than_it_may():
    """What is left of the column comes with the next call."""
    from tokenometer.processor import intake

    pressed = gzip.compress(array(*[GOOD] * 1000))
    values = [pressed] * 20 + [GOOD]
    everything = harness.check(values).messages
    before, intake._CALL_BYTES = intake._CALL_BYTES, 20_000
    try:
        decode = intake.Decoder()
        calls = [len(decode(harness.column(values), first).ends) for first in (0, 5)]
        assert all(1 <= count < 10 for count in calls)
        assert harness.meter(values).messages == everything
    finally:
        intake._CALL_BYTES = before


def test_columns_without_lines_are_read_too():
    from tokenometer.processor.broker import Column
    from tokenometer.processor.intake import Decoder

    data = np.frombuffer(GOOD * 2, np.uint8)
    size = len(GOOD)
    lines = Decoder()(Column(data, np.array([size, 0]), np.array([size, size])))
    assert lines.data.tobytes() == (GOOD + b"\n") * 2


def test_a_message_s_lines_have_a_limit():
    """Spans repeat what their resource says."""
    long = b"x" * 2000
    spans = b",".join([b'{"name":"a"}'] * 50)
    text = (
        b'{"resourceSpans":[{"resource":{"attributes":[{"key":"k","value":{"stringValue":"%b"}}]},'
        b'"scopeSpans":[{"spans":[%b]}]}]}' % (long, spans)
    )
    small = b'{"resourceSpans":[{"scopeSpans":[{"spans":[{"name":"a"}]}]}]}'
    assert only_failure(text, Value("otlp"), good=small, limit=LIMIT) == "too_large"
    assert not harness.check([text], Value("otlp"), limit=4 * LIMIT).failures
