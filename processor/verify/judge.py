"""What `tokenometer verify` makes of one line: docs/RECORDS.md read a third time, for speed in plain Python.

The audit is worth as much as this file is independent, so nothing of kernels/ and nothing of the referee is imported.
orjson says whether a line is JSON and what it says. `Judge` turns a mapping into one small function for each field,
once; a line is then judged by calling them in the order of the fields.
"""

import datetime
import math
import re
from collections.abc import Callable
from functools import lru_cache
from operator import methodcaller
from typing import Any

import orjson

from tokenometer.processor.verify.values import COUNTS
from tokenometer.schemas.mapping import COUNT_END, STRING_BYTES_MAX, Field, Mapping, Path, Selector

RECORD_BYTES_MAX = 1 << 20
TIME_END_MS = 253_402_300_800_000  # 10000-01-01T00:00:00Z
BLANKS = b" \t\r"
_SURELY_SHORT = STRING_BYTES_MAX // 4  # so many characters cannot have more bytes than allowed


# A record that counts, unless it is a duplicate, as a plain tuple: a named one takes a tenth of all the time.
# request_id, scope ("" for none), time in ms, user, model, chip, prefill_chip, and what it adds to its rows.
Judged = tuple[str | None, str, int, str | None, str | None, str | None, str | None, int, int, int, int, int, int]


class RefusedRecord(Exception):
    """The record goes to the dead letters, for the first reason that applies."""

    def __init__(self, reason: str, field: str | None = None) -> None:
        super().__init__(reason, field)
        self.reason = reason
        self.field = field


Object = dict[str, Any]
ReadText = Callable[[Object], str | None]
ReadCount = Callable[[Object], int]
ReadCounters = Callable[[Object], tuple[int, int, int, int, int, int]]  # requests, then COUNTS, as the source has them
ReadTime = Callable[[Object, int | None], int]


class Judge:
    """Judges the records of one mapping. `max_future_skew_ms`: how far an event may be ahead of its message."""

    def __init__(self, mapping: Mapping, max_future_skew_ms: int) -> None:
        request_id = mapping.field("request_id")
        self._request_id = _text_reader(request_id)
        self._scope = _scope_reader(request_id)
        self._time = _time_reader(mapping.field("timestamp"), max_future_skew_ms)
        self._user = _text_reader(mapping.field("user"))
        self._model = _text_reader(mapping.field("model"))
        self._chip = _text_reader(mapping.field("chip"))
        self._prefill_chip = _text_reader(mapping.field("prefill_chip"))
        self._counters = _counters_reader(mapping)
        self._input_additive = mapping.input_additive
        self._output_additive = mapping.output_additive
        self._repeats = _Repeats(mapping)

    def __call__(self, line: bytes, message_time: int | None) -> Judged | None:
        """None: the line is empty. Raises RefusedRecord."""
        if len(line) > RECORD_BYTES_MAX:
            if not line.strip(BLANKS):
                return None
            raise RefusedRecord("too_long")
        try:
            top = orjson.loads(line)
        except orjson.JSONDecodeError:
            if not line.strip(BLANKS):
                return None
            raise RefusedRecord("invalid_json") from None
        if type(top) is not dict:
            raise RefusedRecord("not_an_object")
        if self._repeats(line, top):
            raise RefusedRecord("repeated_field")
        return self._fields(top, message_time)

    def _fields(self, top: Object, message_time: int | None) -> Judged:
        request_id = self._request_id(top)
        scope = (self._scope(top) if self._scope else None) or ""
        time_ms = self._time(top, message_time)
        user, model, chip, prefill_chip = self._user(top), self._model(top), self._chip(top), self._prefill_chip(top)
        requests, total_in, cached, written, total_out, reasoning = self._counters(top)
        if self._input_additive:
            total_in += cached + written
        if self._output_additive:
            total_out += reasoning
        if cached + written > total_in or reasoning > total_out:
            raise RefusedRecord("inconsistent_counts")
        return (
            request_id, scope, time_ms, user, model, chip, prefill_chip,
            requests, total_in, cached, written, total_out, reasoning,
        )  # fmt: skip


# --- From a mapping to functions ---


def _walker(path: Path, name: str) -> Callable[[Object], Any]:
    """Reads the value at a path; None where it, or an object on the way, is absent or null."""
    if len(path) == 1:
        return methodcaller("get", path[0])  # half the time of a function of ours
    *above, last = path

    def walk(top: Object) -> Any:
        here = top
        for key in above:
            below = here.get(key)
            if below is None:
                return None
            if type(below) is not dict:
                raise RefusedRecord("wrong_type", name)
            here = below
        return here.get(last)

    return walk


def _first_of(paths: tuple[Path, ...], name: str) -> Callable[[Object], Any]:
    """Reads the first path that has a value."""
    walks = [_walker(path, name) for path in paths]
    if len(walks) == 1:
        return walks[0]

    def first(top: Object) -> Any:
        for walk in walks:
            value = walk(top)
            if value is not None:
                return value
        return None

    return first


def _text_reader(field: Field) -> ReadText:
    name, required = field.name, field.required
    default = None if field.default is None else str(field.default)
    if not field.paths:
        return lambda top: default
    value_of = _first_of(field.paths, name)

    def read(top: Object) -> str | None:
        value = value_of(top)
        if type(value) is str and 0 < len(value) <= _SURELY_SHORT:
            return value
        if value is None:
            if required:
                raise RefusedRecord("missing_field", name)
            return default
        return _text(value, name)

    return read


def _scope_reader(request_id: Field) -> ReadText | None:
    if request_id.scope is None:
        return None
    value_of = _walker(request_id.scope, request_id.name)

    def read(top: Object) -> str | None:
        value = value_of(top)
        return None if value is None else _text(value, request_id.name)

    return read


def _text(value: Any, name: str) -> str:
    if type(value) is not str:
        raise RefusedRecord("wrong_type", name)
    if 0 < len(value.encode()) <= STRING_BYTES_MAX:
        return value
    raise RefusedRecord("bad_string", name)


def _counters_reader(mapping: Mapping) -> ReadCounters:
    if mapping.selector:
        return _selected_reader(mapping.selector, mapping.field("tokens"))
    total_in, cached, written, total_out, reasoning = (_count_reader(mapping.field(name)) for name in COUNTS)

    def read(top: Object) -> tuple[int, int, int, int, int, int]:
        return 1, total_in(top), cached(top), written(top), total_out(top), reasoning(top)

    return read


def _selected_reader(selector: Selector, tokens: Field) -> ReadCounters:
    type_of = _walker(selector.by, tokens.name)
    count_of = _count_reader(tokens)
    place_of = {source: 1 + COUNTS.index(counter) for source, counter in selector.to}

    def read(top: Object) -> tuple[int, int, int, int, int, int]:
        source = type_of(top)
        if source is None:
            raise RefusedRecord("missing_field", tokens.name)
        if type(source) is not str:
            raise RefusedRecord("wrong_type", tokens.name)
        if source not in place_of:
            raise RefusedRecord("unknown_token_type", tokens.name)
        counters = [int(selector.requests is None or selector.requests == source), 0, 0, 0, 0, 0]
        counters[place_of[source]] = count_of(top)
        return (counters[0], counters[1], counters[2], counters[3], counters[4], counters[5])

    return read


def _count_reader(field: Field) -> ReadCount:
    name, required, digits, default = field.name, field.required, field.digits, int(field.default or 0)
    if not field.paths:
        return lambda top: default
    value_of = _first_of(field.paths, name)

    def read(top: Object) -> int:
        value = value_of(top)
        if type(value) is int:
            if 0 <= value < COUNT_END:
                return value
            raise RefusedRecord("bad_count", name)
        if value is None:
            if required:
                raise RefusedRecord("missing_field", name)
            return default
        if digits and type(value) is str:
            return _digits(value, name)
        raise RefusedRecord("wrong_type", name)

    return read


def _digits(text: str, name: str) -> int:
    # 2^40 has 13 digits; a leading zero stands alone. isdigit alone would take other scripts' digits.
    if 0 < len(text) <= 13 and text.isascii() and text.isdigit() and (text[0] != "0" or text == "0"):
        value = int(text)
        if value < COUNT_END:
            return value
    raise RefusedRecord("bad_count", name)


# --- Time ---


def _time_reader(field: Field, max_future_skew_ms: int) -> ReadTime:
    value_of = _first_of(field.paths, field.name)
    milliseconds_of = _milliseconds_reader(field)

    def read(top: Object, message_time: int | None) -> int:
        value = value_of(top)
        if value is not None:
            time_ms = milliseconds_of(value)
        elif field.message_time_fallback and message_time is not None:
            time_ms = message_time
        else:
            raise RefusedRecord("missing_field", field.name)
        if not 0 <= time_ms < TIME_END_MS:
            raise RefusedRecord("bad_timestamp", field.name)
        if message_time is not None and time_ms > message_time + max_future_skew_ms:
            raise RefusedRecord("future_timestamp", field.name)
        return time_ms

    return read


def _milliseconds_reader(field: Field) -> Callable[[Any], int]:
    """Turns a time in one of the formats into milliseconds, which may still be out of range."""
    epochs = [name for name in field.formats if name != "rfc3339"]
    epoch = epochs[0] if epochs else None
    texts = "rfc3339" in field.formats
    multiply, divide = {"epoch_s": (1000, 1), "epoch_us": (1, 1000), "epoch_ns": (1, 10**6)}.get(epoch or "", (1, 1))

    def milliseconds(value: Any) -> int:
        kind = type(value)
        if kind is str and texts:
            return _rfc3339_ms(value, field.name)
        if epoch == "epoch_s_decimal" and kind in (int, float):
            thousandfold = float(value) * 1000
            return round(thousandfold) if math.isfinite(thousandfold) else TIME_END_MS
        if epoch is not None and kind is int:
            return int(value) * multiply // divide
        raise RefusedRecord("wrong_type", field.name)

    return milliseconds


_RFC3339 = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt ]([01][0-9]|2[0-3]):([0-5][0-9]):([0-5][0-9]|60)(?:\.([0-9]{1,9}))?"
    r"(?:[Zz]|([+-])([01][0-9]|2[0-3]):([0-5][0-9]))"
)
_MINUTES_PER_DAY = 1440


def _rfc3339_ms(text: str, name: str) -> int:
    match = _RFC3339.fullmatch(text)
    day = match and _days_since_epoch(match[1])
    if match is None or day is None:
        raise RefusedRecord("bad_timestamp", name)
    _, hour, minute, second, fraction, sign, offset_hours, offset_minutes = match.groups()
    utc_minute = day * _MINUTES_PER_DAY + int(hour) * 60 + int(minute)
    if sign:
        ahead = int(offset_hours) * 60 + int(offset_minutes)
        utc_minute += ahead if sign == "-" else -ahead
    if second != "60":
        return (utc_minute * 60 + int(second)) * 1000 + (int(fraction[:3].ljust(3, "0")) if fraction else 0)
    if utc_minute % _MINUTES_PER_DAY != _MINUTES_PER_DAY - 1:
        raise RefusedRecord("bad_timestamp", name)
    return utc_minute * 60_000 + 59_999  # the last millisecond of its own day


@lru_cache(maxsize=4096)  # a log has few days
def _days_since_epoch(date: str) -> int | None:
    try:
        return datetime.date.fromisoformat(date).toordinal() - 719_163  # 1970-01-01
    except ValueError:
        return None


# --- Keys that stand twice; orjson keeps the last one and says nothing ---

_Tree = dict[str, Any]  # a mapped key -> the mapped keys below it
_Inner = list[tuple[str, Any]]  # the same of objects only
_STRING_OR_BRACKET = re.compile(rb'"(?:[^"\\]+|\\.)*+"|[{}\[\]:,]')


class _Repeats:
    """Whether a key on any mapped path stands twice in its object."""

    def __init__(self, mapping: Mapping) -> None:
        paths = [path for field in mapping.fields for path in field.paths]
        paths += [field.scope for field in mapping.fields if field.scope]
        paths += [mapping.selector.by] if mapping.selector else []
        self._tree: _Tree = {}
        for path in paths:
            here = self._tree
            for key in path:
                here = here.setdefault(key, {})
        self._inner = _inner_of(self._tree)
        self._quoted = [orjson.dumps(key) for key in sorted({key for path in paths for key in path})]

    def __call__(self, line: bytes, top: Object) -> bool:
        """Two quick answers first. Every member has a colon: as many colons as different keys, and none is repeated.
        And without a backslash a key is spelled in one way only, so that one that is repeated is found twice."""
        keys = len(top) + (_keys_below(top, self._inner) if self._inner else 0)
        if line.count(b":") == keys:
            return False
        if b"\\" not in line and not any(line.count(quoted) > 1 for quoted in self._quoted):
            return False
        return _stands_twice(line, self._tree)


def _inner_of(tree: _Tree) -> _Inner:
    return [(key, _inner_of(below)) for key, below in tree.items() if below]


def _keys_below(here: Object, inner: _Inner) -> int:
    """The keys of objects that lie on mapped paths."""
    keys = 0
    for key, below in inner:
        value = here.get(key)
        if type(value) is dict:
            keys += len(value) + _keys_below(value, below)
    return keys


def _stands_twice(line: bytes, tree: _Tree) -> bool:
    """Reads all of a line that is known to be JSON, with a stack of what is open."""
    nothing: _Tree = {}
    open_trees: list[_Tree] = []  # of each open object: the keys that matter in it; nothing matters in an array
    open_keys: list[set[str]] = []
    last = b""  # the string before a colon is a key
    below = tree  # what matters in the value that comes next
    for match in _STRING_OR_BRACKET.finditer(line):
        token = match[0]
        if token == b"{" or token == b"[":
            open_trees.append(below if token == b"{" else nothing)
            open_keys.append(set())
            below = nothing
        elif token == b"}" or token == b"]":
            open_trees.pop()
            open_keys.pop()
        elif token == b",":
            below = nothing
        elif token == b":":
            below = nothing
            if not open_trees[-1]:
                continue
            key = orjson.loads(last)
            if key in open_keys[-1]:
                return True
            if key in open_trees[-1]:
                open_keys[-1].add(key)
                below = open_trees[-1][key]
        else:
            last = token
    return False
