"""The whole meter in plain Python dictionaries: docs/RECORDS.md once more, written to be trusted by reading.

Nothing of the engine or of the referee is imported here. orjson says whether a line is JSON and what it says; a small
scanner of our own says whether a key stands twice; everything else is `judge`, which reads from top to bottom as the
table of reasons does. A mapping is the plain dict that tomllib makes of its file.
"""

import datetime
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

RECORD_BYTES_MAX = 1 << 20
STRING_BYTES_MAX = 256
ID_BYTES_MAX = 1024  # of request ids and scopes under format 2
COUNT_END = 1 << 40
TIME_END_MS = 253_402_300_800_000  # 10000-01-01T00:00:00Z

INPUT_COUNTS = ("input_tokens", "cached_input_tokens", "cache_write_tokens")
COUNTS = (*INPUT_COUNTS, "output_tokens", "reasoning_tokens")
PARENTS = {
    "cached_input_tokens": "input_tokens",
    "cache_write_tokens": "input_tokens",
    "reasoning_tokens": "output_tokens",
}
FURTHER_PARENTS = {
    "cache_write_1h_tokens": "cache_write_tokens",
    "audio_input_tokens": "input_tokens",
    "image_input_tokens": "input_tokens",
    "audio_cached_input_tokens": "cached_input_tokens",
    "audio_output_tokens": "output_tokens",
}
FURTHER = tuple(FURTHER_PARENTS)
TOKENS = (*COUNTS, *FURTHER)
NEEDED = ("timestamp", "user", "model", "chip", "input_tokens", "output_tokens", "tokens")


class Canonical(NamedTuple):
    request_id: str | None
    scope: str | None
    timestamp: int
    user: str
    model: str
    chip: str
    prefill_chip: str | None
    requests: int
    input_tokens: int
    cached_input_tokens: int
    cache_write_tokens: int
    output_tokens: int
    reasoning_tokens: int
    cache_write_1h_tokens: int = 0
    audio_input_tokens: int = 0
    image_input_tokens: int = 0
    audio_cached_input_tokens: int = 0
    audio_output_tokens: int = 0
    labels: tuple[tuple[str, str], ...] = ()  # name and value, by name, of those that have a value


@dataclass(frozen=True)
class Verdict:
    kind: str  # "empty", "rejected", "skipped" or "ok"
    reason: str | None = None
    field: str | None = None
    record: Canonical | None = None


class Fault(Exception):
    """Why a value is refused; the argument is the reason."""


class Refused(Fault):
    """The record fits an entry of `refuse`, which is no field's fault."""


# From bytes to records


def records(value: bytes | None) -> list[bytes]:
    """A message's records: a newline ends one, and so does the end of the message."""
    lines = (value or b"").split(b"\n")
    if len(lines) > 1 and lines[-1] == b"":
        lines.pop()  # the final newline does not start another record
    return lines


# Paths


def as_path(path: str | list[str]) -> tuple[str, ...]:
    return (path,) if isinstance(path, str) else tuple(path)


def mapped_paths(mapping: dict) -> Iterator[tuple[str, ...]]:
    specs = [*mapping["fields"].values(), *mapping.get("labels", {}).values()]
    specs += [condition for kind in ("skip", "refuse") for entry in entries(mapping, kind) for condition in entry]
    specs += [convention for _, convention in conventions(mapping) if isinstance(convention, dict)]
    for spec in specs:
        for name in ("path", "scope", "by"):
            if name in spec:
                yield as_path(spec[name])
        for path in [*spec.get("aliases", []), *spec.get("plus", [])]:
            yield as_path(path)


def entries(mapping: dict, kind: str) -> list[list[dict]]:
    """Of each entry of `skip` or `refuse` all its conditions."""
    return [[entry, *entry.get("and", [])] for entry in mapping.get(kind, [])]


def conventions(mapping: dict) -> list[tuple[str, str | dict]]:
    """Of each of PARENTS: the field whose convention holds for it, and that convention."""
    found = []
    for part, total in PARENTS.items():
        field = part if f"{part}_are" in mapping else total
        found.append((field, mapping.get(f"{field}_are", "inclusive")))
    return found


PLAIN_STRING = re.compile(rb'"([^"]*)"[ \t\r]*(:)?')
STRING_OR_BRACKET = re.compile(rb'("[^"\\]*(?:\\.[^"\\]*)*")[ \t\r]*(:)?|[{}\[\]]', re.DOTALL)


PLACES: dict[int, tuple[dict, set[tuple[str, ...]]]] = {}  # by id of a mapping, which is held here so that it keeps it


def places_of(mapping: dict) -> set[tuple[str, ...]]:
    """All mapped paths and what is above them: worked out once, because it costs as much as the rest of a line."""
    if id(mapping) not in PLACES:
        paths = {path[:length] for path in mapped_paths(mapping) for length in range(1, len(path) + 1)}
        PLACES[id(mapping)] = mapping, paths
    return PLACES[id(mapping)][1]


def has_repeated_field(line: bytes, mapping: dict) -> bool:
    """Whether a key on a mapped path stands twice in its object. The line is known to be JSON, so a string before a
    colon is a key. Objects that no mapped path enters, and those in arrays, have the path None."""
    if b"\\" not in line:  # nearly always, and then mostly no key at all stands twice: that is seen sooner
        keys = [string for string, colon in PLAIN_STRING.findall(line) if colon]
        if len(keys) == len(set(keys)):
            return False
    places = places_of(mapping)
    seen: set[tuple[str, ...]] = set()
    open_paths: list[tuple[str, ...] | None] = []  # one for each open object or array
    value_path: tuple[str, ...] | None = ()  # of the value that comes next
    for token in STRING_OR_BRACKET.finditer(line):
        string, colon = token.groups()
        if colon:
            parent = open_paths[-1]
            path = None if parent is None else (*parent, orjson.loads(string))
            value_path = path if path in places else None
            if value_path in seen:
                return True
            if value_path is not None:
                seen.add(value_path)
        elif token[0] == b"{":
            open_paths.append(value_path)
        elif token[0] == b"[":
            open_paths.append(None)
            value_path = None
        elif string is None:
            open_paths.pop()
    return False


def value_at(top: dict, path: tuple[str, ...]) -> Any:
    """The value at a path, None where it is absent or null."""
    value: Any = top
    for key in path:
        if value is None:
            return None
        if not isinstance(value, dict):
            raise Fault("wrong_type")
        value = value.get(key)
    return value


def first_value(spec: dict, top: dict) -> Any:
    if "constant" in spec:
        return spec["constant"]
    paths = [spec["path"]] if "path" in spec else []
    for path in [*paths, *spec.get("aliases", [])]:
        value = present(spec, value_at(top, as_path(path)))
        if value is not None:
            return value
    return spec.get("default")


def present(spec: dict, value: Any) -> Any:
    """With `empty = "absent"` an empty string is as good as null."""
    return None if value == "" and "empty" in spec else value


# Skip


def fits(condition: dict, value: Any) -> bool:
    if value is None:
        return "absent" in condition
    if "in" not in condition and "not_in" not in condition:
        return "present" in condition
    if not isinstance(value, str | bool | int):
        raise Fault("wrong_type")
    listed = any(is_listed(value, each) for each in condition.get("in", condition.get("not_in")))
    return listed == ("in" in condition)


def is_listed(value: Any, listed: Any) -> bool:
    if type(value) is not type(listed):
        return False
    if not isinstance(listed, str):
        return value == listed
    text, any_more = plain_text(listed)
    return value[: len(text)] == text and (any_more or len(value) == len(text))


def plain_text(listed: str) -> tuple[str, bool]:
    """What a listed string says, and whether a star ends it: a backslash is before a star or a backslash itself."""
    text, rest = "", listed
    while rest and rest != "*":
        text += rest[1] if rest[0] == "\\" else rest[0]
        rest = rest[2:] if rest[0] == "\\" else rest[1:]
    return text, rest == "*"


def is_skipped(mapping: dict, top: dict) -> bool:
    """All conditions are looked at before any decides."""
    skips, refuses = (
        any(
            [
                all([fits(test, value_at(top, as_path(test["path"]))) for test in entry])
                for entry in entries(mapping, kind)
            ]
        )
        for kind in ("skip", "refuse")
    )
    if refuses and not skips:
        raise Refused("refused")
    return skips


# Values


def as_string(value: Any, spec: dict, bytes_max: int) -> str:
    if spec.get("numbers") and type(value) is int:
        value = str(value)
    if not isinstance(value, str):
        raise Fault("wrong_type")
    if not 1 <= len(value.encode()) <= bytes_max:
        raise Fault("bad_string")
    return value


def as_count(value: Any, spec: dict) -> int:
    if spec.get("digits") and isinstance(value, str):
        if not re.fullmatch("0|[1-9][0-9]*", value) or len(value) > 13:  # 2^40 has 13 digits
            raise Fault("bad_count")
        value = int(value)
    if spec.get("whole_numbers") and isinstance(value, float):
        if value % 1 != 0:
            raise Fault("bad_count")
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise Fault("wrong_type")
    if not 0 <= value < COUNT_END:
        raise Fault("bad_count")
    return value


TIME_OF_DAY = "([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt ]([0-9]{2}):([0-9]{2}):([0-9]{2})"
TEXT_TIMES = {
    "rfc3339": re.compile(TIME_OF_DAY + r"(?:\.([0-9]{1,9}))?([Zz]|[+-][0-9]{2}:[0-9]{2})"),
    "iso8601": re.compile(TIME_OF_DAY + r"(?:[.,]([0-9]{1,9}))?([Zz]|[+-][0-9]{2}:?[0-9]{2}|[+-][0-9]{2}|)"),
}


def offset_minutes(zone: str) -> int:
    """Of Z, UTC, +HH, +HHMM and +HH:MM."""
    if zone in ("Z", "z", "UTC"):
        return 0
    hours, minutes = int(zone[1:3]), int(zone[3:].lstrip(":") or 0)
    if hours > 23 or minutes > 59:
        raise Fault("bad_timestamp")
    return -(hours * 60 + minutes) if zone[0] == "-" else hours * 60 + minutes


def text_ms(text: str, text_format: str, zone: str | None) -> int:
    """`zone` is that of a text that names none."""
    match = TEXT_TIMES[text_format].fullmatch(text)
    zone = (match[8] or zone) if match else None
    if not match or not zone:
        raise Fault("bad_timestamp")
    year, month, day, hour, minute, second = (int(part) for part in match.groups()[:6])
    if hour > 23 or minute > 59 or second > 60:
        raise Fault("bad_timestamp")
    try:
        days = datetime.date(year, month, day).toordinal() - datetime.date(1970, 1, 1).toordinal()
    except ValueError:
        raise Fault("bad_timestamp") from None
    utc_minute = days * 1440 + hour * 60 + minute - offset_minutes(zone)
    if second < 60:
        return utc_minute * 60_000 + second * 1000 + int((match[7] or "0").ljust(3, "0")[:3])
    if utc_minute % 1440 != 1439:
        raise Fault("bad_timestamp")
    return utc_minute * 60_000 + 59_999


def epoch_ms(value: int | float, unit: str) -> int:
    if unit == "epoch_s_decimal":
        milliseconds = float(value) * 1000
        if abs(milliseconds) > 1e15:  # far out of range, perhaps infinite
            raise Fault("bad_timestamp")
        return round(milliseconds)
    if isinstance(value, float):
        raise Fault("wrong_type")
    return {"epoch_s": value * 1000, "epoch_ms": value, "epoch_us": value // 1000, "epoch_ns": value // 1_000_000}[unit]


def epoch_of_digits(text: str, unit: str) -> int | float | None:
    """The number that a string of digits is, None where it is no such string."""
    if unit == "epoch_s_decimal":
        return float(text) if re.fullmatch(r"(0|[1-9][0-9]*)(\.[0-9]+)?", text) else None
    if not re.fullmatch("0|[1-9][0-9]*", text):
        return None
    return int(text) if len(text) < 25 else 10**25  # beyond any time of any unit


def as_time(value: Any, spec: dict) -> int:
    unit = next((name for name in spec["formats"] if name.startswith("epoch")), None)
    text_format = next((name for name in spec["formats"] if not name.startswith("epoch")), None)
    if isinstance(value, str) and spec.get("digits") and epoch_of_digits(value, unit) is not None:
        value = epoch_of_digits(value, unit)
    if isinstance(value, str) and text_format:
        time = text_ms(value, text_format, spec.get("zone"))
    elif isinstance(value, str) and spec.get("digits"):
        raise Fault("bad_timestamp")
    elif isinstance(value, int | float) and not isinstance(value, bool) and unit:
        time = epoch_ms(value, unit)
    else:
        raise Fault("wrong_type")
    if not 0 <= time < TIME_END_MS:
        raise Fault("bad_timestamp")
    return time


# Fields


def read(name: str, spec: dict, top: dict, convert: Callable[[Any], Any], absent: Any) -> Any:
    value = first_value(spec, top)
    if value is not None:
        return convert(value)
    if name in NEEDED or spec.get("required", False):
        raise Fault("missing_field")
    return absent


def read_string(name: str, spec: dict, top: dict, bytes_max: int = STRING_BYTES_MAX) -> str | None:
    return read(name, spec, top, lambda value: as_string(value, spec, bytes_max), None)


def read_scope(spec: dict, top: dict, bytes_max: int) -> str | None:
    value = present(spec, value_at(top, as_path(spec["scope"]))) if "scope" in spec else None
    if spec.get("scope_of") == "aliases" and present(spec, value_at(top, as_path(spec["path"]))) is not None:
        return None
    return None if value is None else as_string(value, spec, bytes_max)


def read_count(name: str, spec: dict, top: dict, absent: int | None = 0) -> int | None:
    """With `plus`, the sum."""
    count = read(name, spec, top, lambda value: as_count(value, spec), absent)
    added = [value_at(top, as_path(path)) for path in spec.get("plus", [])]
    added = [as_count(value, spec) for value in added if value is not None]
    if count is None:
        return None
    if count + sum(added) >= COUNT_END:
        raise Fault("bad_count")
    return count + sum(added)


def read_time(spec: dict, top: dict, message_time: int | None, bounds: "Bounds") -> int:
    value = first_value(spec, top)
    if value is not None:
        time = as_time(value, spec)
    elif spec.get("fallback") == "message_time" and message_time is not None:
        time = as_time(message_time, {"formats": ["epoch_ms"]})
    else:
        raise Fault("missing_field")
    if time < bounds.not_before_ms:
        raise Fault("past_timestamp")
    if message_time is not None and bounds.max_past_ms is not None and time < message_time - bounds.max_past_ms:
        raise Fault("past_timestamp")
    if message_time is not None and time > message_time + bounds.max_future_skew_ms:
        raise Fault("future_timestamp")
    return time


def read_token_event(spec: dict, top: dict) -> tuple[int, dict[str, int]]:
    """Whether the event counts as a request, and its one counter."""
    token_type = value_at(top, as_path(spec["by"]))
    if token_type is None:
        raise Fault("missing_field")
    if not isinstance(token_type, str):
        raise Fault("wrong_type")
    if token_type not in spec["to"]:
        raise Fault("unknown_token_type")
    requests = int(spec.get("requests", token_type) == token_type)
    return requests, {spec["to"][token_type]: read_count("tokens", spec, top)}


# Totals


def stated(convention: str | dict, top: dict) -> str:
    """`inclusive`, `additive` or `by_total`: what the mapping says, perhaps by a value of the record."""
    if isinstance(convention, str):
        return convention
    if "by_total" in convention:
        return "by_total"
    value = None
    for path in (convention["path"], *convention.get("aliases", [])):
        value = value_at(top, as_path(path)) if value is None else value
    known = [*convention.get("inclusive", []), *convention.get("additive", [])]
    if value is not None and not any(type(value) is type(one) for one in known):
        raise Fault("wrong_type")
    fitting = [
        (not isinstance(one, str) or not plain_text(one)[1], len(str(one)), answer)
        for answer in ("inclusive", "additive")
        for one in convention.get(answer, [])
        if is_listed(value, one)
    ]
    if fitting:  # a whole value before a beginning, and the longest of these
        return max(fitting)[2]
    if "otherwise" not in convention:
        raise Fault("unknown_convention")
    return convention["otherwise"]


def with_parts_inside(source: dict[str, int], beside: dict[str, bool]) -> dict[str, int] | None:
    """The counts with each part that is beside its total added to it; None where parts are larger than their total."""
    counts = dict(source)
    for part, total in PARENTS.items():
        counts[total] += source[part] if beside[part] else 0
    if counts["cached_input_tokens"] + counts["cache_write_tokens"] > counts["input_tokens"]:
        return None
    return counts if counts["reasoning_tokens"] <= counts["output_tokens"] else None


def asks_no_total(convention: str | dict, answer: str) -> bool:
    """A value of the record told what the record's total would otherwise have to tell."""
    return isinstance(convention, dict) and convention.get("otherwise") == "by_total" and answer != "by_total"


def made_inclusive(source: dict[str, int], answers: dict[str, str], mapping: dict, total: int | None) -> dict[str, int]:
    """The first reading of the parts that agrees with itself and, where there is one, with the total."""
    told = zip(conventions(mapping), answers.values(), strict=True)
    if any(asks_no_total(convention, answer) for (_, convention), answer in told):
        total = None
    tried = [part for part in PARENTS if answers[part] == "by_total" and total is not None]
    for number in range(2 ** len(tried)):
        beside = {part: answers[part] == "additive" for part in PARENTS}
        if total is None:
            for (_, convention), part in zip(conventions(mapping), PARENTS, strict=True):
                if answers[part] == "by_total" and isinstance(convention, dict):
                    beside[part] = convention.get("by_total", "inclusive") == "additive"
        for bit, part in enumerate(reversed(tried)):
            beside[part] = bool(number >> bit & 1)
        counts = with_parts_inside(source, beside)
        if counts and total in (None, counts["input_tokens"] + counts["output_tokens"]):
            return counts
    raise Fault("inconsistent_counts")


# Labels


def bracket(edges: list[int], count: int) -> str:
    begin = 0
    for edge in edges:
        if count <= edge:
            return f"{begin}-{edge}"
        begin = edge + 1
    return f"{begin}-"


def all_labels(mapping: dict, read: dict[str, str | None], counts: dict[str, int]) -> tuple[tuple[str, str], ...]:
    """read: of those that are no brackets."""
    found = dict(read)
    for name, spec in mapping.get("labels", {}).items():
        if "bracket_of" in spec:
            found[name] = bracket(spec["edges"], counts[spec["bracket_of"]])
    return tuple((name, text) for name, text in sorted(found.items()) if text is not None)


# Records


@dataclass(frozen=True)
class Bounds:
    """Which times are too far ahead of a message's, or too old."""

    max_future_skew_ms: int = 3_600_000
    max_past_ms: int | None = None  # before the message's time
    not_before_ms: int = 0


def judge(line: bytes, mapping: dict, message_time: int | None = None, bounds: Bounds = Bounds()) -> Verdict:  # noqa: B008
    """The fate of one record, before duplicates: the first reason of RECORDS.md's table that applies."""
    if not line.strip(b" \t\r"):
        return Verdict("empty")
    if len(line) > RECORD_BYTES_MAX:
        return Verdict("rejected", "too_long")
    try:
        top = orjson.loads(line)
    except orjson.JSONDecodeError:
        return Verdict("rejected", "invalid_json")
    if not isinstance(top, dict):
        return Verdict("rejected", "not_an_object")
    if has_repeated_field(line, mapping):
        return Verdict("rejected", "repeated_field")

    fields = mapping["fields"]
    values: dict[str, Any] = {}
    counts = dict.fromkeys(COUNTS, 0)
    requests = 1
    name = "skip"
    try:
        if is_skipped(mapping, top):
            return Verdict("skipped")
        name = "request_id"
        id_bytes_max = ID_BYTES_MAX if mapping["format"] == 2 else STRING_BYTES_MAX
        values[name] = read_string(name, fields.get(name, {}), top, id_bytes_max)
        values["scope"] = read_scope(fields.get(name, {}), top, id_bytes_max)
        name = "timestamp"
        values[name] = read_time(fields[name], top, message_time, bounds)
        for name in ("user", "model", "chip", "prefill_chip"):
            values[name] = read_string(name, fields.get(name, {}), top)
        if "tokens" in fields:
            name = "tokens"
            requests, counter = read_token_event(fields[name], top)
            counts.update(counter)
        else:
            for name in COUNTS:
                counts[name] = read_count(name, fields.get(name, {}), top)
        further = {}
        for name in FURTHER:
            further[name] = read_count(name, fields.get(name, {}), top)
        name = "total_tokens"
        total = read_count(name, fields.get(name, {}), top, absent=None)
        read_labels = {}
        for label, spec in sorted(mapping.get("labels", {}).items()):
            if "bracket_of" not in spec:
                name = f"labels.{label}"
                read_labels[label] = read_string(name, spec, top)
        answers = {}
        for part, (field, convention) in zip(PARENTS, conventions(mapping), strict=True):
            name = field
            answers[part] = stated(convention, top)
        name = None
        counts = made_inclusive(counts, answers, mapping, total)
        if any(count > counts[FURTHER_PARENTS[part]] for part, count in further.items()):
            raise Fault("inconsistent_counts")
    except Fault as fault:
        return Verdict("rejected", fault.args[0], None if isinstance(fault, Refused) else name)
    labels = all_labels(mapping, read_labels, counts)
    return Verdict("ok", record=Canonical(**values, requests=requests, **counts, **further, labels=labels))


def identity_of(record: Canonical, mapping: dict, partition: object) -> tuple:
    more = [getattr(record, name) for name in mapping["fields"]["request_id"].get("with", [])]
    return (partition, record.scope, record.request_id, *more)


class Letters:
    """What the dead letters of a message hold: the record, where it is a line of its message as it stands there, else
    the message; where all copies would take more than 1 MiB, the first reject's letter alone, and the others nothing,
    its size and its hash."""

    def __init__(self, value: bytes | None, records: int) -> None:
        self.value, self.lines = value or b"", (value or b"").split(b"\n")
        self.room = len(self.value) * records <= 1 << 20
        self.named = None if self.room else (b"", len(self.value), hashlib.sha256(self.value).hexdigest())
        self.copied = False

    def of(self, number: int, record: bytes, rejected: bool) -> bytes | tuple[bytes, int, str]:
        if number < len(self.lines) and self.lines[number] == record:
            return record
        if self.named is None or (rejected and not self.copied):
            self.copied = self.copied or rejected
            return self.value
        return self.named


class Meter:
    """All rows, duplicates and dead letters of a log fed message by message, in offset order within each partition."""

    def __init__(
        self,
        window_ms: int = 60_000,
        max_future_skew_ms: int = 3_600_000,
        dedup_horizon_ms: int | None = None,
        max_past_ms: int | None = None,
        not_before_ms: int = 0,
        decode: Callable[[bytes | None], tuple[list[bytes], str | None]] = lambda value: (records(value), None),
    ) -> None:
        self.lines_of = decode  # of a message's value: its records, and why they are one that cannot be read
        self.window_ms = window_ms
        self.bounds = Bounds(max_future_skew_ms, max_past_ms, not_before_ms)
        self.dedup_horizon_ms = dedup_horizon_ms  # None: identities never expire
        # (start, user, model, chip) and, of a record with labels, these -> requests, then COUNTS
        self.rows: dict[tuple, list[int]] = {}
        self.further: dict[tuple, Counter[str]] = {}  # of rows that have such: counts by name
        self.read = self.counted = self.duplicates = self.rejected = self.empty = self.skipped = 0
        self.conflicts = 0  # of the duplicates, those that say something else
        self.reasons: Counter[str] = Counter()
        self.dead_letters: list[tuple[object, int, int, str, str | None, Any]] = []
        self.messages: Counter[object] = Counter()  # of each partition: the next message's index in it
        self.log_time: dict[object, int] = {}  # of each partition
        self.said: dict[tuple, tuple] = {}  # (identity, generation) -> its first record's statement
        self.so_far: dict[tuple, list[int]] = {}  # (identity, generation) -> greatest counters, in order of TOKENS

    def feed(self, mapping: dict, value: bytes | None, message_time: int | None = None, partition: object = 0) -> None:
        generation = self.generation(message_time, partition)
        message_index = self.messages[partition]
        self.messages[partition] += 1
        lines, failure = self.lines_of(value)
        letters = Letters(value, len(lines))
        for line_index, line in enumerate(lines):
            self.read += 1
            verdict = Verdict("rejected", failure) if failure else judge(line, mapping, message_time, self.bounds)
            if verdict.kind == "empty":
                self.empty += 1
            elif verdict.kind == "skipped":
                self.skipped += 1
            elif verdict.record is None:
                self.rejected += 1
                self.reasons[str(verdict.reason)] += 1
                said = letters.of(line_index, line, rejected=True)
                self.dead_letters.append(
                    (partition, message_index, line_index, str(verdict.reason), verdict.field, said)
                )
            elif mapping.get("repeats") == "grow":
                self.take(self.grown(verdict.record, mapping, partition, generation))
            else:
                first = self.first_said(verdict.record, mapping, partition, generation)
                self.take(verdict.record if first is None else None)
                if first not in (None, self.statement(verdict.record)):
                    self.conflicts += 1
                    self.dead_letters.append(
                        (partition, message_index, line_index, "conflicting_duplicate", None,
                         letters.of(line_index, line, rejected=False))
                    )  # fmt: skip
        assert self.read == self.counted + self.duplicates + self.rejected + self.empty + self.skipped

    def fates(self) -> Counter[str]:
        return Counter(
            {name: getattr(self, name) for name in ("counted", "duplicates", "rejected", "empty", "skipped")}
        )

    def generation(self, message_time: int | None, partition: object) -> int:
        if self.dedup_horizon_ms is None:
            return 0
        if message_time is None:
            raise ValueError("generations need message times")
        self.log_time[partition] = max(message_time, self.log_time.get(partition, message_time))
        return self.log_time[partition] // self.dedup_horizon_ms

    def take(self, record: Canonical | None) -> None:
        if record is None:
            self.duplicates += 1
        else:
            self.counted += 1
            self.count(record)

    def statement(self, record: Canonical) -> tuple:
        """All that a record says beside its identity."""
        window = record.timestamp // self.window_ms
        names = (record.user, record.model, record.chip, record.prefill_chip)
        return (window, *names, record.labels, record.requests, *(getattr(record, name) for name in TOKENS))

    def first_said(self, record: Canonical, mapping: dict, partition: object, generation: int) -> tuple | None:
        """What the first record of this identity in the generation before said, or else in this one; None: it is the
        first."""
        if record.request_id is None:
            return None
        identity = identity_of(record, mapping, partition)
        known = self.said.get((identity, generation - 1)) or self.said.get((identity, generation))
        self.said.setdefault((identity, generation), self.statement(record))
        return known

    def grown(self, record: Canonical, mapping: dict, partition: object, generation: int) -> Canonical | None:
        """What the record adds to the greatest counters of its identity in this generation and the one before; None:
        nothing."""
        if record.request_id is None:
            return record
        identity, counts = identity_of(record, mapping, partition), [getattr(record, name) for name in TOKENS]
        held = [self.so_far.get((identity, g)) for g in (generation - 1, generation)]
        most = list(map(max, zip(*[known for known in held if known] or [[0] * len(TOKENS)], strict=True)))
        first = held == [None, None]
        self.so_far[identity, generation] = list(map(max, zip(held[1] or counts, counts, strict=True)))
        added = {name: max(0, value - known) for name, value, known in zip(TOKENS, counts, most, strict=True)}
        if not first and not any(added.values()):
            return None
        return record._replace(requests=record.requests if first else 0, **added)

    def count(self, record: Canonical) -> None:
        start = record.timestamp - record.timestamp % self.window_ms
        input_chip = record.chip if record.prefill_chip is None else record.prefill_chip
        labels = (record.labels,) if record.labels else ()
        key = (start, record.user, record.model, record.chip, *labels)
        input_key = (start, record.user, record.model, input_chip, *labels)
        row, input_row = self.rows.setdefault(key, [0] * 6), self.rows.setdefault(input_key, [0] * 6)
        row[0] += record.requests
        for index, name in enumerate(COUNTS, start=1):
            target = input_row if name in INPUT_COUNTS else row
            target[index] += getattr(record, name)
        for name in FURTHER:
            if getattr(record, name):
                booked = key if FURTHER_PARENTS[name] == "output_tokens" else input_key
                self.further.setdefault(booked, Counter())[name] += getattr(record, name)
