"""Hostile log lines from a seed: valid records of a mapping, and records with one or two things wrong.

A record is built as a tree whose leaves are JSON text already: an object is a list of entries `[key text, value]`, so
that a key may stand twice; an array is a tuple. Trees are broken in ways that know the mapping (`TREE_MUTATORS`), lines
in ways that do not (`BYTE_MUTATORS`). No line contains 0x0A. The same generator state gives the same lines.
"""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

NOW_MS = 1_795_000_000_000  # records lie around it; feed it as message time and the future border is hit, too
FUTURE_SKEW_MS = 3_600_000
TIME_END_MS = 253_402_300_800_000

COUNTS = ("input_tokens", "cached_input_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens")
NEEDED = ("timestamp", "user", "model", "chip", "input_tokens", "output_tokens", "tokens")
EPOCH_UNITS_NS = {"epoch_s": 10**9, "epoch_ms": 10**6, "epoch_us": 10**3, "epoch_ns": 1}

Tree = bytes | list | tuple


@dataclass
class Leaf:
    """A mapped value in a tree: entry is `[key text, value]` and stands in parent; above are the entries on its way."""

    field: str  # the canonical field, "scope", "by" or "tokens"
    entry: list
    parent: list
    above: list[list]
    spec: dict


@dataclass
class Record:
    tree: list
    leaves: list[Leaf]


# Raw JSON text, valid and not

INTEGER_BORDERS = [
    0, 1, 255, 999, 2**31, 2**32, 2**40 - 1, 2**40, 2**40 + 1, 10**12, 10**13, 2**53, 2**53 + 1, 2**63 - 1, 2**63,
    2**64 - 1, 2**64, 2**64 + 1, 10**19, 10**20, -1, -(2**40), -(2**63), -(2**63) - 1, 10**300,
]  # fmt: skip
VALID_NUMBERS = [str(n).encode() for n in INTEGER_BORDERS] + [
    b"-0", b"0.0", b"-0.0", b"0e0", b"1.0", b"1.5", b"1e3", b"1E3", b"1e+3", b"1e-3", b"12.0e1", b"1e308", b"1e-400",
    b"1.7976931348623157e308", b"0." + b"0" * 400 + b"1", b"9" * 25, b"9" * 308, b"4.9e-324", b"0.1e1", b"1E-0",
]  # fmt: skip
BAD_NUMBERS = [
    b"00", b"01", b"-01", b"+1", b".5", b"1.", b"1.e3", b"1e", b"1e+", b"-", b"--1", b"0x10", b"1_000", b"1,000",
    b"1 0",
    b"1e400", b"-1e400", b"1.7976931348623159e308", b"9" * 309, b"9" * 5000, b"NaN", b"Infinity", b"-Infinity",
    b"nan",
    b"1f", b"1L", b"- 1", b"1-", b"\xef\xbc\x91", b"1.2.3", b"1e1.5", b"0e", b"-.1",
]  # fmt: skip
VALID_STRINGS = [
    b'""', b'"0"', b'"1"', b'"01"', b'"-1"', b'"+1"', b'" 1"', b'"1 "', b'"1.0"', b'"1e3"', b'"\\u0031"',
    b'"1099511627775"', b'"1099511627776"', b'"18446744073709551616"', b'"' + b"9" * 5000 + b'"', b'"\xef\xbc\x91"',
    b'"\xd9\xa1"', b'"null"', b'"\\u0000"', b'"\\u001f\\n\\r\\t\\b\\f\\/\\\\\\""', b'"\\ud83d\\ude00"',
    b'"\\uD83D\\uDE00"',
    b'"a\\u0062"', b'"\\u00e9"', '"é"'.encode(), '"\u2028\ufeff\u00a0"'.encode(), b'"\x7f"', b'"\xf4\x8f\xbf\xbf"',
    b'"\xed\x9f\xbf"', b'"\xee\x80\x80"', b'"\xc2\x80"', b'"\xe0\xa0\x80"', b'"\xf0\x90\x80\x80"', b'"\xef\xbf\xbf"',
    b'"\\\\"', b'"{\\"user\\":\\"x\\"}"', b'"}]},:"', b'"//"', b'"\\uFFFF\\uffff"',
]  # fmt: skip
BAD_STRINGS = [
    b'"\\ud800"', b'"\\udc00"', b'"\\ud800\\u0041"', b'"\\ud800x"', b'"\\ud800\\n"', b'"\\ude00\\ud83d"',
    b'"\\ud83d\\ud83d\\ude00"', b'"\\u12"', b'"\\u12G4"', b'"\\u"', b'"\\u+123"', b'"\\u 123"', b'"\\x41"', b'"\\a"',
    b'"\\\'"', b'"\\0"', b'"\\U0041"', b'"\\"', b"'a'", b'"a', b'a"', b'"\x00"', b'"\x01"', b'"\x1f"', b'"a\tb"',
    b'"a\rb"',
    b'"\x0b"', b'"\\\t"', b'"\x80"', b'"\xbf"', b'"\xc0\x80"', b'"\xc1\xbf"', b'"\xc0\xaf"', b'"\xe0\x80\x80"',
    b'"\xe0\x9f\xbf"', b'"\xf0\x80\x80\x80"', b'"\xf0\x8f\xbf\xbf"', b'"\xed\xa0\x80"', b'"\xed\xbf\xbf"',
    b'"\xed\xa0\xbd\xed\xb8\x80"', b'"\xf4\x90\x80\x80"', b'"\xf5\x80\x80\x80"', b'"\xf8\x88\x80\x80\x80"', b'"\xfe"',
    b'"\xff"', b'"abc\xc3"', b'"abc\xe2\x82"', b'"abc\xe2"', b'"abc\xf0\x9f\x98"', b'"abc\xf0\x9f"', b'"\xc3("',
    b'"\xe2\x28\xa1"', b'"\xe2\x82\x28"', b'"\xf0\x9f\x98\x28"', b'"\xc3\\u0041"', b'"\\u00\xc3\xa9"',
    b'"\xe2\x82\\n"',
]  # fmt: skip
VALID_OTHERS = [
    b"null", b"true", b"false", b"[]", b"{}", b"[1]", b'{"a":1}', b"[[]]", b'["x"]', b'{"":null}', b"[null]",
]  # fmt: skip
BAD_OTHERS = [
    b"", b"nul", b"Null", b"NULL", b"tru", b"truee", b"True", b"undefined", b"[", b"]", b"{", b"}", b"[1,]",
    b"[,]", b"[1 2]",
    b'{"a":1,}', b"{,}", b'{"a"}', b'{"a":}', b"{a:1}", b"{1:1}", b"{'a':1}", b'{"a" 1}', b'{"a":1 "b":2}',
    b'{"a"::1}',
    b"/**/1", b"1//", b"[1}", b'{"a":1]', b"nulltrue", b"null null", b'""""', b"[1,,2]", b"\\u0031", b"\xff",
    b"\x00", b"#",
]  # fmt: skip
BLANK_LINES = [
    b"", b" ", b"\t", b"\r", b" \t\r ", b" " * 70, b"\x0c", b"\x0b", b"\x00", b"\xc2\xa0", b" \xe2\x80\xa8", b"\x1a",
]  # fmt: skip
GARBAGE = [
    b"{}", b"[]", b"null", b"0", b'"user"', b"{}{}", b"{} {}", b"{", b"}", b'{"', b'"', b"\\", b"hello",
    b"\xef\xbb\xbf{}", b"[{}]",
    b"-", b"[", b"{}x", b"{},", b",{}", b"{}\x00", b"\x00{}", b"\xff\xfe{}", b'{"":""}', b"\xf0\x9f\x98", b"true",
    b"1e400",
    b'{"a":1}}', b"{]", b'{"a', b'{"a":"', b'{"a":"\\', b'{"a":"\\u', b"tru", b'\xef\xbb\xbf', b"{}\x0c",
    b"\x0c{}", b"{}\xc2\xa0",
]  # fmt: skip
EXTRA_KEYS = [
    b'"host"', b'"trace_id"', b'"latency_ms"', b'"messages"', b'"tags"', b'"n"', b'""', b'"x y"', b'"stream"',
    b'"finish.reason"',
    '"größe"'.encode(), '"キー"'.encode(), b'"esc\\u0061ped"', b'"quote\\"key"', b'"' + b"k" * 60 + b'"', b'"User"',
    b'"user_"',
    b'"use"', b'"input_tokens_details"', b'"timestamp2"', b'"model_"', b'"\\ud83d\\ude00"', b'"chi"', b'"chipp"',
    b'"id "',
]  # fmt: skip
WORDS = [
    "prompt", "Straße", "日本語", "naïve", "😀", "a/b", "c:\\dir",
    'say "hi"', "tab\t", "line\nbreak", "x", "}", "{", "[,]",
    "\u2028",
]  # fmt: skip
BAD_TIMES = [
    "", "2026-11-20", "2026-11-20T10:00:00", "2026-11-20T10:00Z", "2026-11-20T10:00:00+0100",
    "2026-11-20T10:00:00+01",
    "2026-02-29T00:00:00Z", "2026-13-01T00:00:00Z", "2026-00-10T00:00:00Z", "2026-04-31T00:00:00Z",
    "2026-11-20T24:00:00Z",
    "2026-11-20T10:60:00Z", "2026-11-20T10:00:61Z", "2026-11-20T10:00:60Z", "2026-11-20T10:00:00.Z",
    "2026-11-20T10:00:00.1234567890Z",
    "2026-11-20T10:00:00,5Z", "2026-11-20T10:00:00+24:00", "2026-11-20T10:00:00+01:60", " 2026-11-20T10:00:00Z",
    "2026-11-20T10:00:00Z ", "2026-11-20  10:00:00Z", "2026-11-20_10:00:00Z", "26-11-20T10:00:00Z",
    "02026-11-20T10:00:00Z",
    "2026-1-20T10:00:00Z", "2026-11-20T1:00:00Z", "-2026-11-20T10:00:00Z", "1795000000000", "1795000000",
    "2026-11-20T10:00:00ZZ",
    "2026-11-20T10:00:00UTC", "１026-11-20T10:00:00Z", "2026-11-20T10:00:00.５Z", "0000-01-01T00:00:00Z",
    "1900-02-29T00:00:00Z",
    "1969-12-31T23:59:59.999Z", "1970-01-01T00:00:00+00:01", "9999-12-31T23:59:59.999-00:01", "1969-12-31T23:59:60Z",
    "2016-12-31T23:59:60+00:01", "2016-12-31T22:59:60Z", "2026-11-20T10:00:00\u221201:00",
    "2026-11-20T10:00:00+1:00", "yesterday",
    "2026-11-20t10:00:00 z", "2026/11/20T10:00:00Z", "2026-11-20T10:00:00+01:00Z", "2100-02-29T00:00:00Z",
    "2026-11-20T10:00:00z\u0000",
]  # fmt: skip
GOOD_TIMES = [
    "1970-01-01T00:00:00Z", "1970-01-01T00:00:00.000000001Z", "2024-02-29T12:00:00Z", "2000-02-29T00:00:00z",
    "2016-12-31T23:59:60Z",
    "2016-12-31T23:59:60.5Z", "2017-01-01T00:59:60+01:00", "2016-12-31T18:59:60-05:00",
    "2016-12-31t23:59:60.999999999-00:00",
    "1969-12-31T23:30:00-01:00", "1970-01-01T23:59:00+23:59", "9999-12-31T23:59:59.999999999Z",
    "9999-12-31T23:59:60Z",
    "2026-11-20 10:00:00.1Z", "2026-11-20t10:00:00.9999z", "2026-11-20T10:00:00.123456789+05:45",
    "1969-12-31T00:01:00-23:59",
]  # fmt: skip


def quoted(rng: random.Random, text: str) -> bytes:
    """A JSON string, sometimes with escapes that nobody needs."""
    style = rng.random()
    if style < 0.75:
        return json.dumps(text, ensure_ascii=False).encode()
    if style < 0.9:
        return json.dumps(text).encode()
    units = text.encode("utf-16-be")
    escapes = [f"\\u{units[i]:02x}{units[i + 1]:02X}" for i in range(0, len(units), 2)]
    if style < 0.95 or len(escapes) != len(text):
        return ('"' + "".join(escapes) + '"').encode()
    at = rng.randrange(len(text) + 1)
    head, tail = json.dumps(text[:at], ensure_ascii=False)[:-1], json.dumps(text[at + 1 :], ensure_ascii=False)[1:]
    return (head + (escapes[at] if at < len(text) else "") + tail).encode()


def long_string(rng: random.Random, size: int) -> bytes:
    """Exactly `size` bytes after unescaping, with a multi-byte character somewhere, best at the border."""
    character = rng.choice(["é", "€", "😀", "a", "\x7f"])
    width = len(character.encode())
    if size < width:
        return b'"' + b"a" * size + b'"'
    at = rng.choice([size - width, size - width, 0, rng.randrange(size - width + 1)])
    shown = character.encode() if rng.random() < 0.8 else json.dumps(character).encode()[1:-1]
    return b'"' + b"a" * at + shown + b"a" * (size - width - at) + b'"'


def nested(rng: random.Random, depth: int) -> bytes:
    if rng.random() < 0.5:
        return b"[" * depth + b"]" * depth
    if rng.random() < 0.5:
        return b'{"a":' * depth + b"1" + b"}" * depth
    opening = [rng.choice([b"[", b'{"user":']) for _ in range(depth)]
    return b"".join(opening) + b"0" + b"".join(b"]" if o == b"[" else b"}" for o in reversed(opening))


# Valid records


def time_text(rng: random.Random, milliseconds: int) -> str:
    offset = rng.choice([0, 0, 0, 60, -300, 345, 1439, -1439])
    seconds, millis = divmod(milliseconds + offset * 60_000, 1000)
    days, second_of_day = divmod(seconds, 86_400)
    # Days to a date after Howard Hinnant's civil_from_days; datetime ends at year 9999 and so must not be asked here.
    era, day_of_era = divmod(days + 719_468, 146_097)
    year_of_era = (day_of_era - day_of_era // 1460 + day_of_era // 36_524 - day_of_era // 146_096) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    shifted_month = (5 * day_of_year + 2) // 153
    day = day_of_year - (153 * shifted_month + 2) // 5 + 1
    month = shifted_month + 3 if shifted_month < 10 else shifted_month - 9
    year = year_of_era + era * 400 + (month <= 2)
    clock = f"{second_of_day // 3600:02}:{second_of_day // 60 % 60:02}:{second_of_day % 60:02}"
    fraction = f".{millis:03}" + rng.choice(["", "", "9", "999", "000000"]) if millis or rng.random() < 0.5 else ""
    zone = f"{'-' if offset < 0 else '+'}{abs(offset) // 60:02}:{abs(offset) % 60:02}" if offset else rng.choice("ZZZz")
    return f"{year:04}-{month:02}-{day:02}{rng.choice('TTTt ')}{clock}{fraction}{zone}"


def time_value(rng: random.Random, formats: list[str], milliseconds: int) -> bytes:
    unit = rng.choice(formats)
    if unit == "rfc3339":
        return quoted(rng, time_text(rng, milliseconds))
    if unit == "epoch_s_decimal":
        seconds, millis = divmod(milliseconds, 1000)
        exact = f"{seconds}.{millis:03}"
        return rng.choice([f"{seconds}", exact, exact + "5", exact + "499", f"{milliseconds}e-3"]).encode()
    nanoseconds = milliseconds * 10**6 + rng.randrange(10**6)
    return str(nanoseconds // EPOCH_UNITS_NS[unit]).encode()


def consistent_counts(rng: random.Random, mapping: dict) -> dict[str, int]:
    top = rng.choice([10, 1000, 100_000])
    cached, written, reasoning = (rng.choice([0, rng.randrange(top)]) for _ in range(3))
    fresh, visible = rng.randrange(top), rng.randrange(top)
    additive_input = mapping["input_tokens_are"] == "additive"
    additive_output = mapping["output_tokens_are"] == "additive"
    total_input = fresh if additive_input else fresh + cached + written
    total_output = visible if additive_output else visible + reasoning
    return dict(zip(COUNTS, (total_input, cached, written, total_output, reasoning), strict=True))


def field_text(rng: random.Random, name: str, spec: dict, counts: dict[str, int]) -> bytes:
    if name == "timestamp":
        return time_value(rng, spec["formats"], NOW_MS - rng.choice([0, rng.randrange(300_000), rng.randrange(10**9)]))
    if name in COUNTS or name == "tokens":
        number = str(counts.get(name, counts["input_tokens"]))
        as_digits = spec.get("digits") and rng.random() < 0.5
        return quoted(rng, number) if as_digits else number.encode()
    if name == "request_id":
        return quoted(rng, f"req-{rng.randrange(10 ** rng.choice([1, 3, 12]))}")
    names = {
        "user": ["alice", "bob", "Zoë", "用户", "a/b", 'q"q', "user-" + "x" * 60],
        "model": ["llama-3.1-405b", "gpt-x", "qwen3", "模型"],
        "scope": ["/eu", "/us"],
    }
    return quoted(rng, rng.choice(names.get(name, ["H100", "H200", "B200", "MI300X"])))


def put(record: Record, path: str | list[str], field: str, spec: dict, value: bytes) -> None:
    keys = [path] if isinstance(path, str) else path
    here, above = record.tree, []
    for key in keys[:-1]:
        text = json.dumps(key).encode()
        entry = next((entry for entry in here if entry[0] == text), None)
        if entry is None:
            entry = [text, []]
            here.append(entry)
        if not isinstance(entry[1], list):
            return  # an extra of the same name stands in the way
        above.append(entry)
        here = entry[1]
    entry = [json.dumps(keys[-1]).encode(), value]
    here.append(entry)
    record.leaves.append(Leaf(field, entry, here, above, spec))


def extra_value(rng: random.Random, depth: int = 0) -> Tree:
    kind = rng.randrange(12)
    if kind < 2:
        return rng.choice(VALID_NUMBERS)
    if kind < 3:
        return str(rng.uniform(-1e6, 1e6)).encode()
    if kind < 5:
        return quoted(rng, " ".join(rng.choices(WORDS, k=rng.randrange(6))))
    if kind < 6:
        return rng.choice(VALID_STRINGS)
    if kind < 8:
        return rng.choice(VALID_OTHERS)
    if kind < 9 and rng.random() < 0.1:
        return quoted(rng, " ".join(rng.choices(WORDS, k=rng.randrange(600))))
    if depth > 3:
        return b"null"
    if kind < 10:
        return tuple(extra_value(rng, depth + 1) for _ in range(rng.randrange(4)))
    keys = rng.sample(EXTRA_KEYS, rng.randrange(4))
    if rng.random() < 0.3:
        keys.append(rng.choice([b'"user"', b'"usage"', b'"input_tokens"', b'"id"']))  # mapped elsewhere, or not at all
    return [[key, extra_value(rng, depth + 1)] for key in keys]


def valid_record(rng: random.Random, mapping: dict, service: bytes) -> Record:
    record = Record([], [])
    counts = consistent_counts(rng, mapping)
    if rng.random() < 0.9:
        record.tree.append([b'"service"', service])
    for name, spec in mapping["fields"].items():
        if "path" not in spec:
            continue
        can_miss = name not in NEEDED and not spec.get("required") or "default" in spec or "fallback" in spec
        if can_miss and rng.random() < 0.3:
            if rng.random() < 0.3:
                put(record, spec["path"], name, spec, b"null")
            continue
        candidates = [spec["path"], *spec.get("aliases", [])]
        chosen = rng.choice([0, rng.randrange(len(candidates))])
        for path in candidates[:chosen]:
            if rng.random() < 0.3:
                put(record, path, name, spec, b"null")
        put(record, candidates[chosen], name, spec, field_text(rng, name, spec, counts))
        if "scope" in spec and rng.random() < 0.8:
            put(record, spec["scope"], "scope", spec, field_text(rng, "scope", spec, counts))
        if "by" in spec:
            put(record, spec["by"], "by", spec, quoted(rng, rng.choice(list(spec["to"]))))
    objects = [record.tree, *{id(leaf.parent): leaf.parent for leaf in record.leaves}.values()]
    for entries in objects:
        for key in rng.sample(EXTRA_KEYS, rng.choice([0, 0, 1, 2, 5])):
            entries.append([key, extra_value(rng)])
        if rng.random() < 0.8:
            rng.shuffle(entries)
    return record


# Serialising

STYLES = [(b",", b":"), (b",", b":"), (b", ", b": "), (b", ", b": "), (b" ,\t", b"\r: ")]


def dump(tree: Tree, comma: bytes, colon: bytes) -> bytes:
    if isinstance(tree, bytes):
        return tree
    if isinstance(tree, tuple):
        return b"[" + comma.join([dump(item, comma, colon) for item in tree]) + b"]"
    return b"{" + comma.join([key + colon + dump(value, comma, colon) for key, value in tree]) + b"}"


# Breaking trees


def any_object(rng: random.Random, record: Record) -> list:
    """An object on a mapped path, the top level most often."""
    return rng.choice([record.tree, rng.choice(record.leaves).parent]) if record.leaves else record.tree


def add(rng: random.Random, entries: list, key: bytes, value: Tree) -> None:
    entries.insert(rng.randrange(len(entries) + 1), [key, value])


def hostile_text(rng: random.Random) -> bytes:
    return rng.choice(rng.choice([VALID_NUMBERS, BAD_NUMBERS, VALID_STRINGS, BAD_STRINGS, VALID_OTHERS, BAD_OTHERS]))


def swap_value(rng: random.Random, record: Record) -> None:
    rng.choice(record.leaves).entry[1] = rng.choice(rng.choice([VALID_NUMBERS, VALID_STRINGS, VALID_OTHERS]))


def swap_above(rng: random.Random, record: Record) -> None:
    above = rng.choice(record.leaves).above
    if above:
        rng.choice(above)[1] = rng.choice([*VALID_OTHERS, b"1", b'"x"', b"0.5"])


def hostile_value(rng: random.Random, record: Record) -> None:
    rng.choice(record.leaves).entry[1] = hostile_text(rng)


def hostile_count(rng: random.Random, record: Record) -> None:
    counts = [leaf for leaf in record.leaves if leaf.field in COUNTS or leaf.field == "tokens"]
    if not counts:
        return
    number = rng.choice(rng.choice([VALID_NUMBERS, VALID_NUMBERS, BAD_NUMBERS]))
    rng.choice(counts).entry[1] = b'"' + number + b'"' if rng.random() < 0.25 else number


def hostile_extra(rng: random.Random, record: Record) -> None:
    add(rng, any_object(rng, record), rng.choice(EXTRA_KEYS), hostile_text(rng))


def hostile_key(rng: random.Random, record: Record) -> None:
    add(rng, any_object(rng, record), rng.choice([*BAD_STRINGS, *VALID_STRINGS, *VALID_OTHERS, *BAD_OTHERS]), b"1")


def drop_field(rng: random.Random, record: Record) -> None:
    leaf = rng.choice(record.leaves)
    leaf.parent[:] = [entry for entry in leaf.parent if entry is not leaf.entry]


def border_string(rng: random.Random, record: Record) -> None:
    strings = [leaf for leaf in record.leaves if leaf.field not in COUNTS]
    if strings:
        size = rng.choice([0, 1, 2, 63, 64, 255, 255, 256, 256, 257, 257, 300])
        rng.choice(strings).entry[1] = long_string(rng, size)


def border_time(rng: random.Random, record: Record) -> None:
    leaf = next((leaf for leaf in record.leaves if leaf.field == "timestamp"), None)
    if leaf is None:
        return
    border = rng.choice([0, NOW_MS, NOW_MS + FUTURE_SKEW_MS, TIME_END_MS, 1_483_228_800_000, NOW_MS // 60_000 * 60_000])
    formats = rng.choice([leaf.spec["formats"], leaf.spec["formats"], ["rfc3339"], ["epoch_ms"], ["epoch_s_decimal"]])
    leaf.entry[1] = rng.choice([
        json.dumps(rng.choice(BAD_TIMES)).encode(),
        quoted(rng, rng.choice(GOOD_TIMES)),
        time_value(rng, formats, border + rng.choice([-60_000, -1000, -1, 0, 0, 1, 2, 999, 1000])),
        time_value(rng, formats, border + rng.choice([-1, 0, 0, 1])),
        rng.choice(VALID_NUMBERS),
    ])  # fmt: skip


def respell(rng: random.Random, key: bytes) -> bytes:
    """The same key with one plain ASCII character escaped."""
    at = rng.randrange(1, max(2, len(key) - 1))
    if b"\\" in key or key[at] > 126 or at >= len(key) - 1:
        return key
    return key[:at] + b"\\u%04x" % key[at] + key[at + 1 :]


def escape_key(rng: random.Random, record: Record) -> None:
    leaf = rng.choice(record.leaves)
    entry = rng.choice([leaf.entry, *leaf.above])
    entry[0] = respell(rng, entry[0])


def repeat_key(rng: random.Random, record: Record) -> None:
    leaf = rng.choice(record.leaves)
    places = [(leaf.entry, leaf.parent)]
    for depth, entry in enumerate(leaf.above):
        places.append((entry, record.tree if depth == 0 else leaf.above[depth - 1][1]))
    entry, parent = rng.choice(places)
    value = rng.choice([entry[1], b"null", extra_value(rng)])
    key = entry[0] if rng.random() < 0.6 else respell(rng, entry[0])
    if isinstance(parent, list):
        add(rng, parent, key, value)


def repeat_key_elsewhere(rng: random.Random, record: Record) -> None:
    """Not a repeated field: the key stands twice only where no mapping looks, or once more at another level."""
    key = rng.choice(record.leaves).entry[0]
    inner = [[key, extra_value(rng)], [key, extra_value(rng)], [b'"z"', [[key, b"1"]]]][: rng.randrange(1, 4)]
    add(rng, any_object(rng, record), rng.choice(EXTRA_KEYS), rng.choice([inner, (inner,), (b"1", inner, inner)]))


def repeat_extra(rng: random.Random, record: Record) -> None:
    entries = any_object(rng, record)
    key = rng.choice(EXTRA_KEYS)
    add(rng, entries, key, extra_value(rng))
    add(rng, entries, key, extra_value(rng))


def nest_deep(rng: random.Random, record: Record) -> None:
    value = nested(rng, rng.choice([7, 8, 15, 16, 31, 32, 33, 62, 63, 64, 65, 200, 1022, 1023, 1024, 1025]))
    if rng.random() < 0.8:
        add(rng, any_object(rng, record), rng.choice(EXTRA_KEYS), value)
    else:
        rng.choice(record.leaves).entry[1] = value


def grow_part(rng: random.Random, record: Record) -> None:
    counts = [leaf for leaf in record.leaves if leaf.field in COUNTS]
    if counts:
        rng.choice(counts).entry[1] = rng.choice([b"0", b"1", b"99999999", str(2**40 - 1).encode()])


def unknown_type(rng: random.Random, record: Record) -> None:
    selectors = [leaf for leaf in record.leaves if leaf.field in ("by", "scope")]
    if selectors:
        values = [b'"other"', b'""', b"null", b"1", b"{}", b'"Input"', long_string(rng, 300)]
        rng.choice(selectors).entry[1] = rng.choice(values)


TREE_MUTATORS: list[Callable[[random.Random, Record], None]] = [
    swap_value, swap_value, swap_above, hostile_value, hostile_count, hostile_count, hostile_extra, hostile_extra,
    hostile_key,
    drop_field, border_string, border_time, border_time, escape_key, repeat_key, repeat_key_elsewhere,
    repeat_extra, nest_deep,
    grow_part, unknown_type,
]  # fmt: skip


# Breaking bytes

SPACES = [b" ", b"\t", b"\r", b"  ", b"\x0c", b"\x0b", b"\x00", b"\xc2\xa0", b"\xe3\x80\x80", b"\xef\xbb\xbf", b"\x85"]
STRUCTURE = b'{}[],:"\\'


def span(rng: random.Random, line: bytes) -> tuple[int, int]:
    start = rng.randrange(len(line) + 1)
    return start, min(len(line), start + rng.choice([1, 1, 2, 3, 8, 40]))


def flip_bit(rng: random.Random, line: bytes) -> bytes:
    at = rng.randrange(len(line))
    return line[:at] + bytes([line[at] ^ 1 << rng.randrange(8)]) + line[at + 1 :]


def set_byte(rng: random.Random, line: bytes) -> bytes:
    at = rng.randrange(len(line))
    byte = rng.choice([rng.randrange(256), rng.choice(STRUCTURE), rng.choice(b"0123456789eE+-.")])
    return line[:at] + bytes([byte]) + line[at + 1 :]


def insert_byte(rng: random.Random, line: bytes) -> bytes:
    at = rng.randrange(len(line) + 1)
    return line[:at] + bytes([rng.choice([rng.randrange(256), rng.choice(STRUCTURE)])]) + line[at:]


def insert_space(rng: random.Random, line: bytes) -> bytes:
    """Mostly next to a structural character, where white space may stand."""
    places = [at for at, byte in enumerate(line) if byte in b"{}[],:"]
    at = rng.choice(places) + rng.randrange(2) if places and rng.random() < 0.7 else rng.randrange(len(line) + 1)
    return line[:at] + rng.choice(SPACES) + line[at:]


def surround(rng: random.Random, line: bytes) -> bytes:
    return rng.choice([*SPACES, b""]) + line + rng.choice([*SPACES, b"\r", b"\r", b""])


def delete_span(rng: random.Random, line: bytes) -> bytes:
    start, end = span(rng, line)
    return line[:start] + line[end:]


def repeat_span(rng: random.Random, line: bytes) -> bytes:
    start, end = span(rng, line)
    return line[:end] + line[start:end] + line[end:]


def move_span(rng: random.Random, line: bytes) -> bytes:
    start, end = span(rng, line)
    rest = line[:start] + line[end:]
    at = rng.randrange(len(rest) + 1)
    return rest[:at] + line[start:end] + rest[at:]


def delete_structure(rng: random.Random, line: bytes) -> bytes:
    places = [at for at, byte in enumerate(line) if byte in STRUCTURE]
    if not places:
        return line
    at = rng.choice(places)
    return line[:at] + rng.choice([b"", b"", bytes([rng.choice(STRUCTURE)])]) + line[at + 1 :]


def edit_number(rng: random.Random, line: bytes) -> bytes:
    places = [at for at, byte in enumerate(line) if byte in b"0123456789"]
    if not places:
        return line
    at = rng.choice(places)
    edit = rng.choice([b"0", b"-", b".", b"e", b"E+", b"e-", b".0", b"+", b"9" * 20, b"1", b"00"])
    return line[:at] + edit + line[at:]


def edit_string(rng: random.Random, line: bytes) -> bytes:
    places = [at for at, byte in enumerate(line) if byte == 0x22]
    if not places:
        return line
    at = rng.choice(places) + rng.randrange(2)
    return line[:at] + rng.choice([*BAD_STRINGS, *VALID_STRINGS])[1:-1][:40] + line[at:]


def truncate(rng: random.Random, line: bytes) -> bytes:
    return line[: rng.randrange(len(line))] if rng.random() < 0.7 else line[: -rng.randrange(1, 4)]


def append(rng: random.Random, line: bytes) -> bytes:
    return line + rng.choice([b"}", b"]", b",", b"{}", b"x", b"\x00", b"null", b"//", line, b",\r", b"0", b'"'])


BYTE_MUTATORS: list[Callable[[random.Random, bytes], bytes]] = [
    flip_bit, flip_bit, set_byte, insert_byte, insert_space, insert_space, surround, delete_span, repeat_span,
    move_span,
    delete_structure, delete_structure, edit_number, edit_string, truncate, append,
]  # fmt: skip


def lines_of_record(rng: random.Random, mapping: dict, service: bytes) -> Iterator[bytes]:
    record = valid_record(rng, mapping, service)
    intact = dump(record.tree, *rng.choice(STYLES))
    yield intact
    for _ in range(rng.choice([1, 2])):
        broken = intact
        for _ in range(rng.choice([1, 1, 1, 2, 4])):
            if broken:
                broken = rng.choice(BYTE_MUTATORS)(rng, broken)
        yield broken
    another = rng.choice(BYTE_MUTATORS)(rng, intact)
    if rng.random() < 0.1:
        start, end = span(rng, intact)
        yield intact[:start] + another[end:]
    if record.leaves:
        for _ in range(rng.choice([1, 1, 1, 2])):
            rng.choice(TREE_MUTATORS)(rng, record)
            yield dump(record.tree, *rng.choice(STYLES))
    if rng.random() < 0.08:
        yield rng.choice([rng.choice(BLANK_LINES), rng.choice(GARBAGE)])


def lines(rng: random.Random, mapping_name: str, mapping: dict, n: int) -> Iterator[bytes]:
    """`n` lines, about a third of them valid records of the mapping."""
    service = json.dumps(f"gateway-{mapping_name}").encode()
    made = 0
    while made < n:
        for line in lines_of_record(rng, mapping, service):
            if made < n:
                made += 1
                yield line.replace(b"\n", b"\r")
