"""The whole meter in plain Python dictionaries: docs/RECORDS.md once more, written to be trusted by reading.

Nothing of the engine or of the referee is imported here. orjson says whether a line is JSON and what it says; a small
scanner of our own says whether a key stands twice; everything else is `judge`, which reads from top to bottom as the
table of reasons does. A mapping is the plain dict that tomllib makes of its file.
"""

import datetime
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

RECORD_BYTES_MAX = 1 << 20
STRING_BYTES_MAX = 256
COUNT_END = 1 << 40
TIME_END_MS = 253_402_300_800_000  # 10000-01-01T00:00:00Z

INPUT_COUNTS = ("input_tokens", "cached_input_tokens", "cache_write_tokens")
COUNTS = (*INPUT_COUNTS, "output_tokens", "reasoning_tokens")
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


@dataclass(frozen=True)
class Verdict:
    kind: str  # "empty", "rejected" or "ok"
    reason: str | None = None
    field: str | None = None
    record: Canonical | None = None


class Fault(Exception):
    """Why a value is refused; the argument is the reason."""


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
    for spec in mapping["fields"].values():
        for name in ("path", "scope", "by"):
            if name in spec:
                yield as_path(spec[name])
        for alias in spec.get("aliases", []):
            yield as_path(alias)


STRING_OR_BRACKET = re.compile(rb'("[^"\\]*(?:\\.[^"\\]*)*")[ \t\r]*(:)?|[{}\[\]]', re.DOTALL)


def has_repeated_field(line: bytes, mapping: dict) -> bool:
    """Whether a key on a mapped path stands twice in its object. The line is known to be JSON, so a string before a
    colon is a key. Objects that no mapped path enters, and those in arrays, have the path None."""
    places = {path[:length] for path in mapped_paths(mapping) for length in range(1, len(path) + 1)}
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
        value = value_at(top, as_path(path))
        if value is not None:
            return value
    return spec.get("default")


# Values


def as_string(value: Any) -> str:
    if not isinstance(value, str):
        raise Fault("wrong_type")
    if not 1 <= len(value.encode()) <= STRING_BYTES_MAX:
        raise Fault("bad_string")
    return value


def as_count(value: Any, digits: bool) -> int:
    if digits and isinstance(value, str):
        if not re.fullmatch("0|[1-9][0-9]*", value) or len(value) > 13:  # 2^40 has 13 digits
            raise Fault("bad_count")
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise Fault("wrong_type")
    if not 0 <= value < COUNT_END:
        raise Fault("bad_count")
    return value


RFC3339 = re.compile(
    "([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt ]([0-9]{2}):([0-9]{2}):([0-9]{2})"
    r"(?:\.([0-9]{1,9}))?(?:[Zz]|([+-])([0-9]{2}):([0-9]{2}))"
)


def rfc3339_ms(text: str) -> int:
    match = RFC3339.fullmatch(text)
    if not match:
        raise Fault("bad_timestamp")
    year, month, day, hour, minute, second = (int(part) for part in match.groups()[:6])
    fraction, sign, offset_hours, offset_minutes = match.groups()[6:]
    offset = int(offset_hours or 0) * 60 + int(offset_minutes or 0)
    if hour > 23 or minute > 59 or second > 60 or int(offset_hours or 0) > 23 or int(offset_minutes or 0) > 59:
        raise Fault("bad_timestamp")
    try:
        days = datetime.date(year, month, day).toordinal() - datetime.date(1970, 1, 1).toordinal()
    except ValueError:
        raise Fault("bad_timestamp") from None
    utc_minute = days * 1440 + hour * 60 + minute - (-offset if sign == "-" else offset)
    if second < 60:
        return utc_minute * 60_000 + second * 1000 + int((fraction or "0").ljust(3, "0")[:3])
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


def as_time(value: Any, formats: list[str]) -> int:
    epoch_formats = [name for name in formats if name != "rfc3339"]
    if isinstance(value, str) and "rfc3339" in formats:
        time = rfc3339_ms(value)
    elif isinstance(value, int | float) and not isinstance(value, bool) and epoch_formats:
        time = epoch_ms(value, epoch_formats[0])
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


def read_string(name: str, spec: dict, top: dict) -> str | None:
    return read(name, spec, top, as_string, None)


def read_count(name: str, spec: dict, top: dict) -> int:
    return read(name, spec, top, lambda value: as_count(value, spec.get("digits", False)), 0)


def read_time(spec: dict, top: dict, message_time: int | None, max_future_skew_ms: int) -> int:
    value = first_value(spec, top)
    if value is not None:
        time = as_time(value, spec["formats"])
    elif spec.get("fallback") == "message_time" and message_time is not None:
        time = as_time(message_time, ["epoch_ms"])
    else:
        raise Fault("missing_field")
    if message_time is not None and time > message_time + max_future_skew_ms:
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


def judge(line: bytes, mapping: dict, message_time: int | None = None, max_future_skew_ms: int = 3_600_000) -> Verdict:
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
    name = "request_id"
    try:
        values["request_id"] = read_string(name, fields.get(name, {}), top)
        scope_path = fields.get(name, {}).get("scope")
        scope = None if scope_path is None else value_at(top, as_path(scope_path))
        values["scope"] = None if scope is None else as_string(scope)
        name = "timestamp"
        values[name] = read_time(fields[name], top, message_time, max_future_skew_ms)
        for name in ("user", "model", "chip", "prefill_chip"):
            values[name] = read_string(name, fields.get(name, {}), top)
        if "tokens" in fields:
            name = "tokens"
            requests, counter = read_token_event(fields[name], top)
            counts.update(counter)
        else:
            for name in COUNTS:
                counts[name] = read_count(name, fields.get(name, {}), top)
    except Fault as fault:
        return Verdict("rejected", fault.args[0], name)

    input_parts = counts["cached_input_tokens"] + counts["cache_write_tokens"]
    if mapping["input_tokens_are"] == "additive":
        counts["input_tokens"] += input_parts
    if mapping["output_tokens_are"] == "additive":
        counts["output_tokens"] += counts["reasoning_tokens"]
    if input_parts > counts["input_tokens"] or counts["reasoning_tokens"] > counts["output_tokens"]:
        return Verdict("rejected", "inconsistent_counts")
    return Verdict("ok", record=Canonical(**values, requests=requests, **counts))


class Meter:
    """All rows, duplicates and dead letters of a log fed message by message, in offset order within each partition."""

    def __init__(
        self, window_ms: int = 60_000, max_future_skew_ms: int = 3_600_000, dedup_horizon_ms: int | None = None
    ) -> None:
        self.window_ms = window_ms
        self.max_future_skew_ms = max_future_skew_ms
        self.dedup_horizon_ms = dedup_horizon_ms  # None: identities never expire
        self.rows: dict[tuple[int, str, str, str], list[int]] = {}  # -> requests, then COUNTS
        self.read = self.counted = self.duplicates = self.rejected = self.empty = 0
        self.reasons: Counter[str] = Counter()
        self.dead_letters: list[tuple[object, int, int, str, str | None, bytes]] = []
        self.messages: Counter[object] = Counter()  # of each partition: the next message's index in it
        self.log_time: dict[object, int] = {}  # of each partition
        self.counted_in: dict[tuple[object, str | None, str], int] = {}  # identity -> generation

    def feed(self, mapping: dict, value: bytes | None, message_time: int | None = None, partition: object = 0) -> None:
        generation = self.generation(message_time, partition)
        message_index = self.messages[partition]
        self.messages[partition] += 1
        for line_index, line in enumerate(records(value)):
            self.read += 1
            verdict = judge(line, mapping, message_time, self.max_future_skew_ms)
            if verdict.kind == "empty":
                self.empty += 1
            elif verdict.record is None:
                self.rejected += 1
                self.reasons[str(verdict.reason)] += 1
                letter = (partition, message_index, line_index, str(verdict.reason), verdict.field, line)
                self.dead_letters.append(letter)
            elif self.is_duplicate(verdict.record, partition, generation):
                self.duplicates += 1
            else:
                self.counted += 1
                self.count(verdict.record)
        assert self.read == self.counted + self.duplicates + self.rejected + self.empty

    def generation(self, message_time: int | None, partition: object) -> int:
        if self.dedup_horizon_ms is None:
            return 0
        if message_time is None:
            raise ValueError("generations need message times")
        self.log_time[partition] = max(message_time, self.log_time.get(partition, message_time))
        return self.log_time[partition] // self.dedup_horizon_ms

    def is_duplicate(self, record: Canonical, partition: object, generation: int) -> bool:
        if record.request_id is None:
            return False
        identity = (partition, record.scope, record.request_id)
        last_seen = self.counted_in.get(identity, generation - 2)
        self.counted_in[identity] = generation
        return last_seen >= generation - 1

    def count(self, record: Canonical) -> None:
        start = record.timestamp - record.timestamp % self.window_ms
        input_chip = record.chip if record.prefill_chip is None else record.prefill_chip
        row = self.rows.setdefault((start, record.user, record.model, record.chip), [0] * 6)
        input_row = self.rows.setdefault((start, record.user, record.model, input_chip), [0] * 6)
        row[0] += record.requests
        for index, name in enumerate(COUNTS, start=1):
            target = input_row if name in INPUT_COUNTS else row
            target[index] += getattr(record, name)
