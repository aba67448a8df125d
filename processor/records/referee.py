"""The referee: what the kernels would not decide goes to orjson, and comes back canonical or with a reason.

The rules are those of docs/RECORDS.md, in their order. The kernels accept only what is certain, so their records and
these rulings together are orjson plus the field rules, on every line.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import orjson

from tokenometer.kernels.layout import RECORD_BYTES_MAX
from tokenometer.kernels.values import Canonical, EventTimeMs, Rejection
from tokenometer.schemas.mapping import COUNT_END, STRING_BYTES_MAX, Field, Mapping, Path
from tokenometer.schemas.usage import PARENTS, Usage, part_sums

TIME_END_MS = 253_402_300_800_000  # 10000-01-01T00:00:00Z
REASONS = (
    "too_long",
    "invalid_json",
    "not_an_object",
    "repeated_field",
    "wrong_type",
    "missing_field",
    "bad_string",
    "bad_count",
    "bad_timestamp",
    "future_timestamp",
    "unknown_token_type",
    "inconsistent_counts",
)
_DIGITS = re.compile(r"0|[1-9][0-9]*", re.ASCII)
_RFC3339 = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(?:[Zz]|([+-])(\d\d):(\d\d))", re.ASCII
)
_EPOCH_PER_MS = {"epoch_s": (1000, 1), "epoch_ms": (1, 1), "epoch_us": (1, 1000), "epoch_ns": (1, 1_000_000)}
_CONTAINERS = (dict, list)
_KEY_END = re.compile(rb'"[ \t\r]*:')
_TOKEN = re.compile(rb'("(?:[^"\\]|\\.)*+")[ \t\r]*(:?)|[{}\[\]]')


class Rejected(Exception):
    """Ends the judgement of a record; carries the ruling."""

    def __init__(self, reason: str, field: str | None = None) -> None:
        super().__init__(reason, field)
        self.rejection = Rejection(reason, field)


class Referee:
    """Judges single records. `max_future_skew_ms` is how far an event may be ahead of its message."""

    def __init__(self, max_future_skew_ms: int = 3_600_000) -> None:
        self._skew_ms = max_future_skew_ms
        self._trees: dict[str, tuple[Mapping, _Tree]] = {}

    def __call__(self, record: bytes, mapping: Mapping, message_time: int | None) -> Canonical | Rejection:
        try:
            return self._judge(record, mapping, message_time)
        except Rejected as rejected:
            return rejected.rejection

    def _judge(self, record: bytes, mapping: Mapping, message_time: int | None) -> Canonical:
        if len(record) > RECORD_BYTES_MAX:
            raise Rejected("too_long")
        try:
            value = orjson.loads(record)
        except orjson.JSONDecodeError:
            raise Rejected("invalid_json") from None
        if not isinstance(value, dict):
            raise Rejected("not_an_object")
        tree = self._tree(mapping)
        if _could_repeat(record, value, tree) and _repeats(record, tree.root):
            raise Rejected("repeated_field")
        texts: dict[str, bytes] = {}
        counts: dict[str, int] = {}
        time_ms = 0
        for field in mapping.fields:
            if field.kind == "time":
                time_ms = self._time(value, field, message_time)
            elif field.kind == "string":
                texts[field.name] = _text(_read(value, field), field.name) or _default_text(field)
                if field.scope:
                    texts["scope"] = _text(_walk(value, field.scope, field.name), field.name) or b""
            elif mapping.selector:
                counts = _selected_counts(value, field, mapping)
            else:
                counts[field.name] = _count(value, field)
        return _canonical(mapping, time_ms, texts, counts)

    def _time(self, record: dict[str, Any], field: Field, message_time: int | None) -> int:
        raw = _value(record, field)
        if raw is None and field.message_time_fallback:
            raw_ms = message_time
            if raw_ms is None:
                raise Rejected("missing_field", field.name)
        else:
            raw_ms = _time_ms(raw if raw is not None else _read(record, field), field)
        if not 0 <= raw_ms < TIME_END_MS:
            raise Rejected("bad_timestamp", field.name)
        if message_time is not None and raw_ms > message_time + self._skew_ms:
            raise Rejected("future_timestamp", field.name)
        return raw_ms

    def _tree(self, mapping: Mapping) -> "_Tree":
        known = self._trees.get(mapping.source)
        if known is None or (known[0] is not mapping and known[0] != mapping):
            known = self._trees[mapping.source] = mapping, _tree_of(mapping)
        return known[1]


# --- Values ---


def _walk(record: dict[str, Any], path: Path, name: str) -> Any:
    """The value at a path; None where it, or an object above it, is absent or null."""
    value: Any = record
    for key in path:
        if value is None:
            return None
        if not isinstance(value, dict):
            raise Rejected("wrong_type", name)
        value = value.get(key)
    return value


def _value(record: dict[str, Any], field: Field) -> Any:
    """The value of the first path that has one."""
    for path in field.paths:
        value = record.get(path[0]) if len(path) == 1 else _walk(record, path, field.name)
        if value is not None:
            return value
    return None


def _read(record: dict[str, Any], field: Field) -> Any:
    value = _value(record, field)
    if value is None and field.required:
        raise Rejected("missing_field", field.name)
    return value


def _text(value: Any, name: str) -> bytes | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise Rejected("wrong_type", name)
    text = value.encode()
    if not 1 <= len(text) <= STRING_BYTES_MAX:
        raise Rejected("bad_string", name)
    return text


def _default_text(field: Field) -> bytes:
    return b"" if field.default is None else str(field.default).encode()


def _count(record: dict[str, Any], field: Field) -> int:
    value = _read(record, field)
    if value is None:
        return int(field.default or 0)
    if isinstance(value, str) and field.digits:
        if not _DIGITS.fullmatch(value) or len(value) > 13:  # 2^40 has 13 digits
            raise Rejected("bad_count", field.name)
        value = int(value)
    if type(value) is not int:
        raise Rejected("wrong_type", field.name)
    if not 0 <= value < COUNT_END:
        raise Rejected("bad_count", field.name)
    return value


def _selected_counts(record: dict[str, Any], field: Field, mapping: Mapping) -> dict[str, int]:
    """The counters of a source with one event for each token type."""
    assert mapping.selector
    kind = _walk(record, mapping.selector.by, field.name)
    if kind is None:
        raise Rejected("missing_field", field.name)
    if not isinstance(kind, str):
        raise Rejected("wrong_type", field.name)
    counter = dict(mapping.selector.to).get(kind)
    if counter is None:
        raise Rejected("unknown_token_type", field.name)
    return {counter: _count(record, field), "requests": int(mapping.selector.requests in (None, kind))}


def _time_ms(value: Any, field: Field) -> int:
    epoch = next((name for name in field.formats if name != "rfc3339"), None)
    if isinstance(value, str) and "rfc3339" in field.formats:
        return _rfc3339_ms(value, field.name)
    if epoch == "epoch_s_decimal" and type(value) in (int, float):
        seconds = float(value)
        if not 0 <= seconds + 1 <= TIME_END_MS:  # keeps the product finite; the caller checks the range itself
            raise Rejected("bad_timestamp", field.name)
        return round(seconds * 1000)
    if epoch in _EPOCH_PER_MS and type(value) is int:
        times, per = _EPOCH_PER_MS[epoch]
        return value * times // per
    raise Rejected("wrong_type", field.name)


def _rfc3339_ms(text: str, name: str) -> int:
    match = _RFC3339.fullmatch(text)
    if not match:
        raise Rejected("bad_timestamp", name)
    year, month, day, hour, minute, second = map(int, match.groups()[:6])
    fraction = int((match[7] or "0")[:3].ljust(3, "0"))
    hours, minutes = int(match[9] or 0), int(match[10] or 0)
    if second > 60 or hours > 23 or minutes > 59:
        raise Rejected("bad_timestamp", name)
    offset = timedelta(hours=hours, minutes=minutes) * (-1 if match[8] == "-" else 1)
    leap = second == 60
    try:
        local = datetime(year, month, day, hour, minute, 59 if leap else second, tzinfo=timezone(offset))
        utc = local.astimezone(UTC)
    except (ValueError, OverflowError):
        raise Rejected("bad_timestamp", name) from None
    if leap and (utc.hour, utc.minute) != (23, 59):
        raise Rejected("bad_timestamp", name)
    milliseconds = (utc - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    return milliseconds + (999 if leap else fraction)


def _canonical(mapping: Mapping, time_ms: int, texts: dict[str, bytes], counts: dict[str, int]) -> Canonical:
    text = texts.get
    additive = {"input_tokens": mapping.input_additive, "output_tokens": mapping.output_additive}
    usage = Usage(**({"requests": 1} | counts))
    for part, parent in PARENTS.items():
        if additive[parent]:
            usage = usage._replace(**{parent: getattr(usage, parent) + getattr(usage, part)})
    if any(parts > total for parts, total in part_sums(usage)):
        raise Rejected("inconsistent_counts")
    return Canonical(
        EventTimeMs(time_ms),
        (
            text("request_id", b""),
            text("user", b""),
            text("model", b""),
            text("chip", b""),
            text("prefill_chip", b""),
            text("scope", b""),
        ),
        usage,
    )


# --- Repeated keys: orjson keeps the last one silently ---

_Node = dict[str, Any]  # key -> what matters below it; a leaf's is empty


@dataclass(frozen=True)
class _Tree:
    """The keys of all mapped paths."""

    root: _Node
    quoted: tuple[bytes, ...]  # each distinct key as it is mostly spelled


def _tree_of(mapping: Mapping) -> _Tree:
    root: _Node = {}
    paths = [path for field in mapping.fields for path in field.paths]
    paths += [field.scope for field in mapping.fields if field.scope]
    paths += [mapping.selector.by] if mapping.selector else []
    for path in paths:
        node = root
        for key in path:
            node = node.setdefault(key, {})
    return _Tree(root, tuple(orjson.dumps(key) for key in {key for path in paths for key in path}))


def _could_repeat(record: bytes, value: dict[str, Any], tree: _Tree) -> bool:
    """A quick no for most records: a key that stands twice is spelled twice, if without an escape; else one is lost.

    A string may hold what looks like a key's end, so the count of those may be too large, never too small.
    """
    if b"\\" in record:
        return len(_KEY_END.findall(record)) > _key_count(value)
    return any(record.count(key) > 1 for key in tree.quoted)


def _key_count(value: dict[str, Any]) -> int:
    """Of an object and all that it holds."""
    count = 0
    held: list[Any] = [value]
    while held:
        inside = held.pop()
        values = inside
        if isinstance(inside, dict):
            count += len(inside)
            values = inside.values()
        held += [x for x in values if isinstance(x, _CONTAINERS)]
    return count


def _repeats(record: bytes, root: _Node) -> bool:
    """Does a key on a mapped path stand twice in its object? `record` is valid JSON and an object."""
    places: list[_Node] = []  # of open objects and arrays: the keys that matter inside
    seen: list[set[str]] = []
    below: _Node = root  # what matters inside the next value
    for match in _TOKEN.finditer(record):
        token = match.group()
        if token == b"{" or token == b"[":
            places.append(below if token == b"{" else {})
            seen.append(set())
            below = {}
        elif token == b"}" or token == b"]":
            places.pop()
            seen.pop()
            below = {}
        elif match[2]:
            below = {}
            if places[-1]:
                key = orjson.loads(match[1])
                if key in seen[-1]:
                    return True
                if key in places[-1]:
                    seen[-1].add(key)
                    below = places[-1][key]
    return False
