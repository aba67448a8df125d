"""Bad input, one case a row: a whole message for the `native` mapping and what RECORDS.md says of each of its records.

The verdicts are written by hand: "counted", "duplicate", "empty", "rejected:REASON" or "rejected:REASON:FIELD".
"""

from dataclasses import dataclass

TIME_MS = 1_795_000_000_000


@dataclass(frozen=True)
class Case:
    name: str
    value: bytes | None
    expect: tuple[str, ...]
    message_time: int | None = None
    conflicts: int = 0  # of the duplicates, those that say something else


GOOD_FIELDS = {
    "timestamp": b"1795000000000",
    "user": b'"alice"',
    "model": b'"llama"',
    "chip": b'"H100"',
    "input_tokens": b"10",
    "output_tokens": b"5",
}
GOOD = b'{"timestamp":1795000000000,"user":"alice","model":"llama","chip":"H100","input_tokens":10,"output_tokens":5}'


def changed(**fields: bytes | None) -> bytes:
    """GOOD with fields replaced or added as JSON text; None leaves one out."""
    texts = {name: text for name, text in {**GOOD_FIELDS, **fields}.items() if text is not None}
    return b"{" + b",".join(b'"%s":%s' % (name.encode(), text) for name, text in texts.items()) + b"}"


def padded(size: int) -> bytes:
    """GOOD with a skipped string, `size` bytes in all."""
    return changed(prompt=b'"' + b"x" * (size - len(changed(prompt=b'""'))) + b'"')


def one(name: str, value: bytes | None, verdict: str, message_time: int | None = None) -> Case:
    return Case(name, value, (verdict,), message_time)


def count(name: str, text: bytes, verdict: str) -> Case:
    return one(f"count is {name}", changed(input_tokens=text), verdict)


def user(name: str, text: bytes, verdict: str) -> Case:
    return one(f"user is {name}", changed(user=text), verdict)


def time(text: str, verdict: str, message_time: int | None = None) -> Case:
    name = f"time is {text}" + ("" if message_time is None else ", by a message's time")
    return one(name, changed(timestamp=text.encode()), verdict, message_time)


NOT_JSON = "rejected:invalid_json"
BAD_TIME = "rejected:bad_timestamp:timestamp"
PRETTY = b"""{
  "timestamp": 1795000000000,
  "user": "alice", "model": "llama", "chip": "H100",
  "input_tokens": 10,
  "output_tokens": 5
}
"""

CASES: list[Case] = [
    one("good", GOOD, "counted"),
    one("good with white space", b" \t" + GOOD.replace(b":", b" :\t").replace(b",", b"\r, ") + b" \r", "counted"),
    # Not JSON, or not an object
    one("truncated", GOOD[:-1], NOT_JSON),
    one("truncated in a key", GOOD[:20], NOT_JSON),
    one("truncated in a string", GOOD[:35], NOT_JSON),
    one("trailing comma", GOOD[:-1] + b",}", NOT_JSON),
    one("comma after the object", GOOD + b",", NOT_JSON),
    one("unbalanced: one brace too many", GOOD + b"}", NOT_JSON),
    one("unbalanced: bracket closed by a brace", changed(tags=b"[1}"), NOT_JSON),
    one("unbalanced: bracket left open", changed(tags=b"[1"), NOT_JSON),
    one("two objects in a line", GOOD + GOOD, NOT_JSON),
    one("single quotes", GOOD.replace(b'"', b"'"), NOT_JSON),
    one("array", b"[" + GOOD + b"]", "rejected:not_an_object"),
    one("string", b'"alice"', "rejected:not_an_object"),
    one("number", b"1", "rejected:not_an_object"),
    one("null", b"null", "rejected:not_an_object"),
    one("empty object", b"{}", "rejected:missing_field:timestamp"),
    one("byte order mark", b"\xef\xbb\xbf" + GOOD, NOT_JSON),
    one("NUL after the object", GOOD + b"\x00", NOT_JSON),
    one("NUL before the object", b"\x00" + GOOD, NOT_JSON),
    one("only a NUL", b"\x00", NOT_JSON),
    one("form feed is not white space", b"\x0c", NOT_JSON),
    one("no-break space is not white space", b"\xc2\xa0" + GOOD, NOT_JSON),
    one("bad number in a skipped field", changed(x=b"01"), NOT_JSON),
    one("infinite number in a skipped field", changed(x=b"1e400"), NOT_JSON),
    one("large number in a skipped field", changed(x=b"1e308"), "counted"),
    one("NaN in a skipped field", changed(x=b"NaN"), NOT_JSON),
    one("bad escape in a skipped field", changed(x=b'"\\x41"'), NOT_JSON),
    one("10,000-deep nesting", changed(x=b"[" * 10_000 + b"]" * 10_000), NOT_JSON),
    one("10,000-deep nesting left open", b'{"x":' * 10_000, NOT_JSON),
    one("1024-deep nesting, the object itself counts", changed(x=b"[" * 1023 + b"]" * 1023), "counted"),
    one("1025-deep nesting", changed(x=b"[" * 1024 + b"]" * 1024), NOT_JSON),
    # Counts
    count("NaN", b"NaN", NOT_JSON),
    count("1e3", b"1e3", "rejected:wrong_type:input_tokens"),
    count("1.0", b"1.0", "rejected:wrong_type:input_tokens"),
    count("-1", b"-1", "rejected:bad_count:input_tokens"),
    count("-0", b"-0", "counted"),
    count("01", b"01", NOT_JSON),
    count("+1", b"+1", NOT_JSON),
    count("2^40 - 1", b"1099511627775", "counted"),
    count("2^40", b"1099511627776", "rejected:bad_count:input_tokens"),
    count("2^64 - 1", b"18446744073709551615", "rejected:bad_count:input_tokens"),
    count("2^64", b"18446744073709551616", "rejected:wrong_type:input_tokens"),
    count("-2^63 - 1", b"-9223372036854775809", "rejected:wrong_type:input_tokens"),
    count("a digit string", b'"12"', "rejected:wrong_type:input_tokens"),
    count("true", b"true", "rejected:wrong_type:input_tokens"),
    count("null", b"null", "rejected:missing_field:input_tokens"),
    count("an array", b"[1]", "rejected:wrong_type:input_tokens"),
    count("an object", b"{}", "rejected:wrong_type:input_tokens"),
    one("optional count is null", changed(reasoning_tokens=b"null"), "counted"),
    one("optional count is true", changed(reasoning_tokens=b"true"), "rejected:wrong_type:reasoning_tokens"),
    one("optional count is -1", changed(cached_input_tokens=b"-1"), "rejected:bad_count:cached_input_tokens"),
    one("cached equal to input", changed(cached_input_tokens=b"4", cache_write_tokens=b"6"), "counted"),
    one(
        "cached and written above input",
        changed(cached_input_tokens=b"5", cache_write_tokens=b"6"),
        "rejected:inconsistent_counts",
    ),
    one("reasoning above output", changed(reasoning_tokens=b"6"), "rejected:inconsistent_counts"),
    # Fields: missing, empty, repeated, nested-wrong, long, escaped
    one("missing time", changed(timestamp=None), "rejected:missing_field:timestamp"),
    one("missing user", changed(user=None), "rejected:missing_field:user"),
    one("missing model", changed(model=None), "rejected:missing_field:model"),
    one("missing chip", changed(chip=None), "rejected:missing_field:chip"),
    one("missing input tokens", changed(input_tokens=None), "rejected:missing_field:input_tokens"),
    one("missing output tokens", changed(output_tokens=None), "rejected:missing_field:output_tokens"),
    one("the first fault in field order", changed(chip=None, user=b"1"), "rejected:wrong_type:user"),
    user("null", b"null", "rejected:missing_field:user"),
    user("empty", b'""', "rejected:bad_string:user"),
    user("a number", b"7", "rejected:wrong_type:user"),
    one("empty request id", changed(request_id=b'""'), "rejected:bad_string:request_id"),
    one("request id is null", changed(request_id=b"null"), "counted"),
    one("repeated user", GOOD[:-1] + b',"user":"alice"}', "rejected:repeated_field"),
    one("repeated user, once null", GOOD[:-1] + b',"user":null}', "rejected:repeated_field"),
    one("repeated optional field", GOOD[:-1] + b',"prefill_chip":"A","prefill_chip":"A"}', "rejected:repeated_field"),
    one("repeated user, once escaped", GOOD[:-1] + b',"\\u0075ser":"bob"}', "rejected:repeated_field"),
    one("repeated unmapped key", GOOD[:-1] + b',"x":1,"x":2}', "counted"),
    one("mapped key repeated in a skipped object", changed(x=b'{"user":1,"user":2}'), "counted"),
    one("repeated before any field is judged", GOOD[:-1] + b',"timestamp":true}', "rejected:repeated_field"),
    user("nested-wrong: an object", b'{"id":"alice"}', "rejected:wrong_type:user"),
    user("nested-wrong: an array", b'["alice"]', "rejected:wrong_type:user"),
    one("nested-wrong: an object around all", b'{"log":' + GOOD + b"}", "rejected:missing_field:timestamp"),
    user("256 bytes", b'"' + b"a" * 256 + b'"', "counted"),
    user("257 bytes", b'"' + b"a" * 257 + b'"', "rejected:bad_string:user"),
    user("301 bytes", b'"' + b"a" * 301 + b'"', "rejected:bad_string:user"),
    user("256 bytes with a multi-byte end", b'"' + b"a" * 254 + "é".encode() + b'"', "counted"),
    user("257 bytes in 256 characters", b'"' + b"a" * 255 + "é".encode() + b'"', "rejected:bad_string:user"),
    user("256 bytes, all escaped", b'"' + b"\\u0061" * 256 + b'"', "counted"),
    user("escaped", b'"\\u0061l\\u0069ce\\n"', "counted"),
    user("an escaped NUL", b'"\\u0000"', "counted"),
    user("an escaped pair of surrogates", b'"\\ud83d\\ude00"', "counted"),
    one("escaped key", GOOD.replace(b'"user"', b'"us\\u0065r"'), "counted"),
    Case(
        "escaped request id is the same identity",
        changed(request_id=b'"ab"') + b"\n" + changed(request_id=b'"a\\u0062"', user=b'"bob"'),
        ("counted", "duplicate"),
        conflicts=1,
    ),
    Case(
        "a rejected record does not take part in duplicates",
        changed(request_id=b'"r"', chip=None) + b"\n" + changed(request_id=b'"r"') + b"\n" + changed(request_id=b'"r"'),
        ("rejected:missing_field:chip", "counted", "duplicate"),
    ),
    # Text
    user("a lone high surrogate", b'"\\ud800"', NOT_JSON),
    user("a lone low surrogate", b'"\\udc00"', NOT_JSON),
    one("lone surrogate in a skipped field", changed(x=b'"\\ud800x"'), NOT_JSON),
    user("invalid UTF-8", b'"\xff"', NOT_JSON),
    user("overlong UTF-8", b'"\xc0\xaf"', NOT_JSON),
    user("a surrogate in UTF-8", b'"\xed\xa0\x80"', NOT_JSON),
    user("beyond U+10FFFF", b'"\xf4\x90\x80\x80"', NOT_JSON),
    user("a sequence cut by the quote", b'"abc\xe2\x82"', NOT_JSON),
    one("invalid UTF-8 in a skipped field", changed(x=b'"\x80"'), NOT_JSON),
    one("invalid UTF-8 in a skipped key", GOOD[:-1] + b',"\xff":1}', NOT_JSON),
    user("a raw NUL", b'"a\x00b"', NOT_JSON),
    user("a raw tab", b'"a\tb"', NOT_JSON),
    user("a raw carriage return", b'"a\rb"', NOT_JSON),
    one("raw control character in a skipped field", changed(x=b'"\x1f"'), NOT_JSON),
    user("a raw DEL, which is allowed", b'"\x7f"', "counted"),
    Case("raw newline in a string ends the record", changed(user=b'"a\nb"'), (NOT_JSON, NOT_JSON)),
    # Long lines
    one("1 MB line", padded(1_000_000), "counted"),
    one("line of 1 MiB", padded(1_048_576), "counted"),
    one("line of 1 MiB with its newline", padded(1_048_576) + b"\n", "counted"),
    one("line over 1 MiB", padded(1_048_577), "rejected:too_long"),
    one("line over 1 MiB, and not JSON", b"x" * 1_048_577, "rejected:too_long"),
    Case(
        "records around a long one",
        GOOD + b"\n" + padded(2_000_000) + b"\n" + GOOD,
        ("counted", "rejected:too_long", "counted"),
    ),
    # Lines and messages
    Case("pretty-printed", PRETTY, (NOT_JSON,) * 6),
    Case("CRLF", GOOD + b"\r\n" + GOOD + b"\r\n", ("counted", "counted")),
    Case(
        "blank lines",
        b"\n" + GOOD + b"\n\n \t\r\n" + GOOD + b"\n\n",
        ("empty", "counted", "empty", "empty", "counted", "empty"),
    ),
    Case("no final newline", GOOD + b"\n" + GOOD, ("counted", "counted")),
    Case("final newline", GOOD + b"\n" + GOOD + b"\n", ("counted", "counted")),
    Case("a blank after the final newline", GOOD + b"\n ", ("counted", "empty")),
    Case("only a newline", b"\n", ("empty",)),
    Case("two newlines", b"\n\n", ("empty", "empty")),
    one("empty message", b"", "empty"),
    one("tombstone", None, "empty"),
    one("only white space", b" \t\r", "empty"),
    # Times
    time("0", "counted"),
    time("-1", BAD_TIME),
    time("253402300799999", "counted"),
    time("253402300800000", BAD_TIME),
    time("18446744073709551615", BAD_TIME),
    time("18446744073709551616", "rejected:wrong_type:timestamp"),
    time("1795000000000.0", "rejected:wrong_type:timestamp"),
    time("1.795e12", "rejected:wrong_type:timestamp"),
    time("true", "rejected:wrong_type:timestamp"),
    time("{}", "rejected:wrong_type:timestamp"),
    time('""', BAD_TIME),
    time('"1795000000000"', BAD_TIME),
    time('"2026-11-20T10:00:00Z"', "counted"),
    time('"2026-11-20t10:00:00.123456789z"', "counted"),
    time('"2026-11-20 10:00:00.5+05:45"', "counted"),
    time('"2026-11-20T10:00:00-23:59"', "counted"),
    time('"\\u0032026-11-20T10:00:00Z"', "counted"),
    time('"2026-11-20T10:00:00+24:00"', BAD_TIME),
    time('"2026-11-20T10:00:00+01:60"', BAD_TIME),
    time('"2026-11-20T10:00:00+0100"', BAD_TIME),
    time('"2026-11-20T10:00:00"', BAD_TIME),
    time('"2026-11-20T10:00:00.Z"', BAD_TIME),
    time('"2026-11-20T10:00:00.1234567890Z"', BAD_TIME),
    time('"2026-11-20T24:00:00Z"', BAD_TIME),
    time('"2026-11-20T10:60:00Z"', BAD_TIME),
    time('"2026-11-20T10:00:61Z"', BAD_TIME),
    time('"2026-02-29T10:00:00Z"', BAD_TIME),
    time('"2024-02-29T10:00:00Z"', "counted"),
    time('" 2026-11-20T10:00:00Z"', BAD_TIME),
    time('"2026-11-20T10:00:00Z "', BAD_TIME),
    time('"1970-01-01T00:00:00Z"', "counted"),
    time('"1969-12-31T23:59:59.999Z"', BAD_TIME),
    time('"1969-12-31T23:30:00-01:00"', "counted"),
    time('"1970-01-01T00:00:00+00:01"', BAD_TIME),
    time('"9999-12-31T23:59:59.999999999Z"', "counted"),
    time('"9999-12-31T23:59:59-00:01"', BAD_TIME),
    time('"2016-12-31T23:59:60Z"', "counted"),
    time('"2016-12-31T23:59:60.5Z"', "counted"),
    time('"2017-01-01T00:59:60+01:00"', "counted"),
    time('"2016-12-31T23:59:60+01:00"', BAD_TIME),
    time('"2016-12-31T23:58:60Z"', BAD_TIME),
    # Future times, by the message's time
    time("1795003600000", "counted", TIME_MS),
    time("1795003600001", "rejected:future_timestamp:timestamp", TIME_MS),
    time('"2026-11-18T12:06:40.001Z"', "rejected:future_timestamp:timestamp", TIME_MS),
    time("253402300800000", BAD_TIME, TIME_MS),
    time("0", "counted", TIME_MS),
    one("a future time in a file", changed(timestamp=b"253402300799999"), "counted"),
]
