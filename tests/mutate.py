"""Hostile log lines from a seed: valid records of a mapping, and records with one or two things wrong.

A record is built as a tree whose leaves are JSON text already: an object is a list of entries `[key text, value]`, so
that a key may stand twice; an array is a tuple. Trees are broken in ways that know the mapping (`TREE_MUTATORS`), lines
in ways that do not (`BYTE_MUTATORS`). No line contains 0x0A. The same generator state gives the same lines.
"""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests import format2
from tests.mutate_bytes import BYTE_MUTATORS, span
from tests.mutate_texts import (
    BAD_NUMBERS,
    BAD_OTHERS,
    BAD_STRINGS,
    BAD_TIMES,
    BLANK_LINES,
    EXTRA_KEYS,
    GARBAGE,
    GOOD_TIMES,
    VALID_NUMBERS,
    VALID_OTHERS,
    VALID_STRINGS,
    WORDS,
)

NOW_MS = 1_795_000_000_000  # records lie around it; feed it as message time and the future border is hit, too
FUTURE_SKEW_MS = 3_600_000
PAST_MS = 400 * 86_400_000
NOT_BEFORE_MS = 1_420_070_400_000  # 2015
TIME_END_MS = 253_402_300_800_000

COUNTS = ("input_tokens", "cached_input_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens")
NEEDED = ("timestamp", "user", "model", "chip", "input_tokens", "output_tokens", "tokens")
EPOCH_UNITS_NS = {"epoch_s": 10**9, "epoch_ms": 10**6, "epoch_us": 10**3, "epoch_ns": 1}

PARTS = {
    "cached_input_tokens": "input_tokens",
    "cache_write_tokens": "input_tokens",
    "reasoning_tokens": "output_tokens",
}

FURTHER = {
    "cache_write_1h_tokens": "cache_write_tokens",
    "audio_input_tokens": "input_tokens",
    "image_input_tokens": "input_tokens",
    "audio_cached_input_tokens": "cached_input_tokens",
    "audio_output_tokens": "output_tokens",
}
ALL_COUNTS = (*COUNTS, *FURTHER)

Tree = bytes | list | tuple


@dataclass
class Leaf:
    """A mapped value in a tree: entry is `[key text, value]` and stands in parent; above are the entries on its way."""

    field: str  # the canonical field, "scope", "by", "plus", "convention" or "skip"
    entry: list
    parent: list
    above: list[list]
    spec: dict


@dataclass
class Record:
    tree: list
    leaves: list[Leaf]


UNESCAPED = json.JSONEncoder(ensure_ascii=False).encode  # made once: json.dumps makes one for each call


def quoted(rng: random.Random, text: str) -> bytes:
    """A JSON string, sometimes with escapes that nobody needs."""
    style = rng.random()
    if style < 0.75:
        return UNESCAPED(text).encode()
    if style < 0.9:
        return json.dumps(text).encode()
    units = text.encode("utf-16-be")
    escapes = [f"\\u{units[i]:02x}{units[i + 1]:02X}" for i in range(0, len(units), 2)]
    if style < 0.95 or len(escapes) != len(text):
        return ('"' + "".join(escapes) + '"').encode()
    at = rng.randrange(len(text) + 1)
    head, tail = UNESCAPED(text[:at])[:-1], UNESCAPED(text[at + 1 :])[1:]
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


def iso8601(rng: random.Random, text: str) -> str:
    """A time of RFC 3339 as others write it: a comma, a shorter offset, no zone at all."""
    if rng.random() < 0.3:
        text = text.replace(".", ",")
    if text[-1] in "Zz":
        return text[:-1] + rng.choice(["Z", "z", "", "", "+0000", "+00", "-00"])
    if rng.random() < 0.7:
        text = text[:-3] + (text[-2:] if rng.random() < 0.7 or text[-2:] != "00" else "")
    return text


def time_value(rng: random.Random, formats: list[str], milliseconds: int, digits: bool = False) -> bytes:
    unit = rng.choice(formats)
    if unit in ("rfc3339", "iso8601"):
        text = time_text(rng, milliseconds)
        return quoted(rng, iso8601(rng, text) if unit == "iso8601" else text)
    if digits and rng.random() < 0.5:
        return b'"' + time_value(rng, [unit], milliseconds) + b'"'
    if unit == "epoch_s_decimal":
        seconds, millis = divmod(milliseconds, 1000)
        exact = f"{seconds}.{millis:03}"
        return rng.choice([f"{seconds}", exact, exact + "5", exact + "499", f"{milliseconds}e-3"]).encode()
    nanoseconds = milliseconds * 10**6 + rng.randrange(10**6)
    return str(nanoseconds // EPOCH_UNITS_NS[unit]).encode()


def drawn_conventions(rng: random.Random, mapping: dict) -> tuple[dict[str, bool], list[tuple], bool]:
    """Which parts are beside their totals; the values that say so (`path, spec, text`); whether there is a total."""
    has_total = rng.random() < 0.7
    beside: dict[str, bool] = {}
    said: dict[str, tuple] = {}  # by path: path, spec, value, what it means
    for part, total in PARTS.items():
        convention = mapping.get(f"{part}_are", mapping[f"{total}_are"])
        if convention == "by_total":
            convention = {"by_total": "inclusive"}
        if isinstance(convention, str):
            answer = convention
        elif "by_total" in convention:
            answer = rng.choice(["inclusive", "additive"]) if has_total else convention["by_total"]
        else:
            choices = [(value, name) for name in ("inclusive", "additive") for value in convention.get(name, [])]
            flags = all(isinstance(value, bool) for value, _ in choices)
            choices.append((not choices[0][0] if flags else "another", convention.get("otherwise", "inclusive")))
            known = said.setdefault(str(convention["path"]), (convention["path"], convention, *rng.choice(choices)))
            answer = known[3]
            if answer == "by_total":
                answer = rng.choice(["inclusive", "additive"]) if has_total else "inclusive"
        beside[part] = answer == "additive"
    texts = [(path, spec, compared(rng, format2.spelt(rng, value))) for path, spec, value, _ in said.values()]
    return beside, texts, has_total


def compared(rng: random.Random, value: str | bool) -> bytes:
    return quoted(rng, value) if isinstance(value, str) else json.dumps(value).encode()


def consistent_counts(rng: random.Random, beside: dict[str, bool], has_total: bool) -> dict[str, int]:
    """Counters as the source has them, and their total, where there is one."""
    top = rng.choice([10, 1000, 100_000])
    counts = {part: rng.choice([0, rng.randrange(top)]) for part in PARTS}
    totals = {"input_tokens": rng.randrange(top), "output_tokens": rng.randrange(top)}
    whole = sum(totals.values()) + sum(counts.values())
    for part, total in PARTS.items():
        totals[total] += 0 if beside[part] else counts[part]
    if rng.random() < 0.03:
        whole += rng.choice([-1, 1, 1000, counts["reasoning_tokens"], -counts["cached_input_tokens"]])
    return counts | totals | ({"total_tokens": max(whole, 0)} if has_total else {})


def number_text(rng: random.Random, spec: dict, number: int) -> bytes:
    """A count in one of the spellings that its field takes."""
    spellings = [str(number).encode()] * 2
    if spec.get("digits"):
        spellings += [quoted(rng, str(number))] * 2
    if spec.get("whole_numbers"):
        tenth = f"{number // 10}.{number % 10}e1"
        spellings += [f"{number}.0".encode(), f"{number}e0".encode(), f"{number}00E-2".encode(), tenth.encode()]
    return rng.choice(spellings)


def field_text(rng: random.Random, name: str, spec: dict, counts: dict[str, int]) -> bytes:
    if name == "timestamp":
        before = rng.choice([0, rng.randrange(300_000), rng.randrange(10**9)])
        return time_value(rng, spec["formats"], NOW_MS - before, spec.get("digits", False))
    if name in ALL_COUNTS or name in ("tokens", "total_tokens"):
        return number_text(rng, spec, counts.get(name, counts["input_tokens"]))
    if spec.get("numbers") and rng.random() < 0.2:
        return str(rng.randrange(-3, 30)).encode()
    if spec.get("empty") and rng.random() < 0.2:
        return b'""'
    if name == "request_id":
        return quoted(rng, f"req-{rng.randrange(10 ** rng.choice([1, 3, 12]))}")
    names = {
        "user": ["alice", "bob", "Zoë", "用户", "a/b", 'q"q', "user-" + "x" * 60],
        "model": ["llama-3.1-405b", "gpt-x", "qwen3", "模型"],
        "scope": ["/eu", "/us"],
    }
    if name.startswith("labels."):
        return quoted(rng, rng.choice(LABELS))
    return quoted(rng, rng.choice(names.get(name, ["H100", "H200", "B200", "MI300X"])))


LABELS = ["red", "blue", "batch", "0-32000", "研究", 'q"q', '{"a":1}', "'; DROP TABLE rows; --", "x" * 33, "y" * 16]


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
    if any(other[0] == entry[0] for other in here):
        return  # several fields read this path, and it has its value
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


def put_addends(rng: random.Random, record: Record, name: str, spec: dict, counts: dict[str, int]) -> None:
    """Moves some of a count to the paths that are added to it."""
    for path in spec.get("plus", []) if name in counts else []:
        if rng.random() < 0.7:
            addend = rng.randrange(counts[name] + 1)
            counts[name] -= addend
            put(record, path, "plus", spec, number_text(rng, spec, addend))
        elif rng.random() < 0.3:
            put(record, path, "plus", spec, b"null")


def put_field(rng: random.Random, record: Record, name: str, spec: dict, counts: dict[str, int]) -> None:
    put_addends(rng, record, name, spec, counts)
    can_miss = name not in NEEDED and not spec.get("required") or "default" in spec or "fallback" in spec
    if (can_miss and name != "total_tokens" and rng.random() < 0.3) or (name == "total_tokens" and name not in counts):
        if rng.random() < 0.3:
            put(record, spec["path"], name, spec, b"null")
        return
    candidates = [spec["path"], *spec.get("aliases", [])]
    chosen = rng.choice([0, rng.randrange(len(candidates))])
    for path in candidates[:chosen]:
        if rng.random() < 0.3:
            put(record, path, name, spec, b"null" if "empty" not in spec else rng.choice([b"null", b'""']))
    put(record, candidates[chosen], name, spec, field_text(rng, name, spec, counts))
    if chosen + 1 < len(candidates) and rng.random() < 0.2:  # a later alias has a value, too: nobody looks at it
        put(record, candidates[-1], name, spec, field_text(rng, name, spec, counts))
    if "scope" in spec and rng.random() < 0.8:
        put(record, spec["scope"], "scope", spec, field_text(rng, "scope", spec, counts))
    if "by" in spec:
        put(record, spec["by"], "by", spec, quoted(rng, rng.choice(list(spec["to"]))))


def put_condition(rng: random.Random, record: Record, condition: dict) -> None:
    """A value that mostly does not fit, or none."""
    listed = [
        json.dumps(format2.spelt(rng, value)).encode() for value in condition.get("in", condition.get("not_in", []))
    ]
    others = [b'"other"', b"8", b"true", b"false", b'"7"', b'"true"', b'"Chat"', b"-0"]
    if listed and rng.random() < 0.8:  # of the type that the field beside it may want, where it reads the path, too
        others = [text for text in others if (text[:1] == b'"') == (listed[0][:1] == b'"')]
    fit = rng.random() < 0.2
    if "in" in condition or "not_in" in condition:
        if rng.random() < 0.9 or fit == ("absent" not in condition):
            put(
                record,
                condition["path"],
                "skip",
                condition,
                rng.choice(listed if ("in" in condition) == fit else others),
            )
    elif fit == ("present" in condition):
        put(record, condition["path"], "skip", condition, rng.choice([*others, b"{}", b"[]", b"0.5", b'""']))
    elif rng.random() < 0.2:
        put(record, condition["path"], "skip", condition, b"null")


def valid_record(rng: random.Random, mapping: dict, service: bytes) -> Record:
    record = Record([], [])
    beside, conventions, has_total = drawn_conventions(rng, mapping)
    counts = consistent_counts(rng, beside, has_total and "total_tokens" in mapping["fields"])
    if rng.random() < 0.9:
        record.tree.append([b'"service"', service])
    entries = [*mapping.get("skip", []), *mapping.get("refuse", [])]
    conditions = [condition for entry in entries for condition in (entry, *entry.get("and", []))]
    later = [condition for condition in conditions if "in" not in condition and "not_in" not in condition]
    for condition in conditions:
        if condition not in later:
            put_condition(rng, record, condition)
    for path, spec, text in conventions:
        if rng.random() < 0.95 or "otherwise" not in spec:
            put(record, path, "convention", spec, text)
    for name, parent in FURTHER.items():
        if name in mapping["fields"]:
            counts[name] = rng.choice([0, rng.randrange(counts[parent] + 1)])
    labels = {f"labels.{name}": spec for name, spec in mapping.get("labels", {}).items()}
    for name, spec in (mapping["fields"] | labels).items():
        if "path" in spec:
            put_field(rng, record, name, spec, counts)
    for condition in later:  # its path may be that of an object, which is there by now
        put_condition(rng, record, condition)
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
    counts = [leaf for leaf in record.leaves if leaf.field in (*ALL_COUNTS, "tokens", "total_tokens", "plus")]
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
    strings = [leaf for leaf in record.leaves if leaf.field not in ALL_COUNTS]
    if strings:
        size = rng.choice([0, 1, 2, 63, 64, 255, 255, 256, 256, 257, 257, 300, 1023, 1024, 1025])
        rng.choice(strings).entry[1] = long_string(rng, size)


def border_time(rng: random.Random, record: Record) -> None:
    leaf = next((leaf for leaf in record.leaves if leaf.field == "timestamp"), None)
    if leaf is None:
        return
    borders = [0, NOW_MS, NOW_MS + FUTURE_SKEW_MS, NOW_MS - PAST_MS, NOT_BEFORE_MS, TIME_END_MS, 1_483_228_800_000]
    border = rng.choice([*borders, NOW_MS // 60_000 * 60_000])
    others = [["rfc3339"], ["iso8601"], ["epoch_ms"], ["epoch_s_decimal"]]
    formats = rng.choice([leaf.spec["formats"]] * 3 + others)
    digits = rng.random() < 0.3
    leaf.entry[1] = rng.choice([
        json.dumps(rng.choice(BAD_TIMES)).encode(),
        quoted(rng, rng.choice(GOOD_TIMES)),
        time_value(rng, formats, border + rng.choice([-60_000, -1000, -1, 0, 0, 1, 2, 999, 1000]), digits),
        time_value(rng, formats, border + rng.choice([-1, 0, 0, 1]), digits),
        rng.choice(VALID_NUMBERS) if not digits else b'"' + rng.choice(VALID_NUMBERS) + b'"',
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
    counts = [leaf for leaf in record.leaves if leaf.field in ALL_COUNTS]
    if counts:
        rng.choice(counts).entry[1] = rng.choice([b"0", b"1", b"99999999", str(2**40 - 1).encode()])


def unknown_type(rng: random.Random, record: Record) -> None:
    selectors = [leaf for leaf in record.leaves if leaf.field in ("by", "scope")]
    if selectors:
        values = [b'"other"', b'""', b"null", b"1", b"{}", b'"Input"', long_string(rng, 300)]
        rng.choice(selectors).entry[1] = rng.choice(values)


def another_scalar(rng: random.Random, record: Record) -> None:
    """Where a mapping compares values: one of another type that looks the same, or none."""
    compared = [leaf for leaf in record.leaves if leaf.field in ("skip", "convention")]
    if not compared:
        return
    leaf = rng.choice(compared)
    lists = [leaf.spec.get(name, []) for name in ("in", "not_in", "inclusive", "additive")]
    listed = [json.dumps(value).encode() for values in lists for value in values]
    lookalikes = [b"true", b"1", b'"1"', b"1.0", b"0", b"false", b'""', b"null", b"7", b'"7"', b"7.0", b"[]", b"{}"]
    leaf.entry[1] = rng.choice([*listed, *lookalikes, b"18446744073709551616", b'"\\u0063hat"'])


def number_or_nothing(rng: random.Random, record: Record) -> None:
    """Where a string is wanted: an empty or blank one, or a number."""
    named = ("request_id", "scope", "user", "model", "chip")
    strings = [leaf for leaf in record.leaves if leaf.field in named or leaf.field.startswith("labels.")]
    if strings:
        values = [b'""', b'""', b'" "', b"12345", b"0", b"-0", b"-7", b"18446744073709551615", b"18446744073709551616"]
        rng.choice(strings).entry[1] = rng.choice([*values, b"1.0", b"1e3", b"true", b"null"])


def whole_or_not(rng: random.Random, record: Record) -> None:
    """Where a count is wanted: one that is spelled with a fraction or an exponent."""
    counts = [leaf for leaf in record.leaves if leaf.field in (*ALL_COUNTS, "tokens", "total_tokens", "plus")]
    if counts:
        values = [b"12.0", b"1.2e3", b"1e+05", b"-0.0", b"14417.92", b"0.5", b"-1.0", b"1099511627775.0", b"1e-400"]
        rng.choice(counts).entry[1] = rng.choice(
            [*values, b"1099511627776.0", b"1.099511627775e12", b"1e300", b'"12.0"']
        )


TREE_MUTATORS: list[Callable[[random.Random, Record], None]] = [
    swap_value, swap_value, swap_above, hostile_value, hostile_count, hostile_count, hostile_extra, hostile_extra,
    hostile_key,
    drop_field, border_string, border_time, border_time, escape_key, repeat_key, repeat_key_elsewhere,
    repeat_extra, nest_deep,
    grow_part, unknown_type, another_scalar, another_scalar, number_or_nothing, whole_or_not,
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
