"""The referee. What the kernels would not decide goes to orjson and comes back canonical, skipped or with a reason.

The rules are those of docs/RECORDS.md, in their order. The kernels accept only what is certain, so their records and
these rulings together are orjson plus the field rules, on every line.
"""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from itertools import product
from typing import Any, NamedTuple

import orjson

from tokenometer.kernels.layout import RECORD_BYTES_MAX
from tokenometer.kernels.values import SKIPPED, Canonical, EventTimeMs, Rejection, Skipped
from tokenometer.processor.records.repeated_keys import KeyTree, could_repeat, repeats, tree_of
from tokenometer.schemas.mapping import COUNT_END, PARTS, STRINGS, Condition, Convention, Field, Label, Mapping, Path
from tokenometer.schemas.usage import (
    COUNTERS,
    FURTHER,
    FURTHER_PARENTS,
    NO_FURTHER,
    PARENTS,
    TOKENS,
    Usage,
)

TIME_END_MS = 253_402_300_800_000  # 10000-01-01T00:00:00Z
REASONS = (
    "too_long",
    "invalid_json",
    "not_an_object",
    "repeated_field",
    "refused",
    "wrong_type",
    "missing_field",
    "bad_string",
    "bad_count",
    "bad_timestamp",
    "past_timestamp",
    "future_timestamp",
    "unknown_token_type",
    "unknown_convention",
    "inconsistent_counts",
)
_DIGITS = re.compile(r"0|[1-9][0-9]*", re.ASCII)
_DECIMAL = re.compile(r"(?:0|[1-9][0-9]*)(?:\.[0-9]+)?", re.ASCII)
_DATE_TIME = r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)"
_RFC3339 = re.compile(_DATE_TIME + r"(?:\.(\d{1,9}))?(?:[Zz]|([+-])(\d\d):(\d\d))", re.ASCII)
_ISO8601 = re.compile(_DATE_TIME + r"(?:[.,](\d{1,9}))?(?:([Zz])|([+-])(\d\d)(?::?(\d\d))?)?", re.ASCII)
_EPOCH_PER_MS = {"epoch_s": (1000, 1), "epoch_ms": (1, 1), "epoch_us": (1, 1000), "epoch_ns": (1, 1_000_000)}
_EPOCH_DIGITS_MAX = 21  # more are beyond the year 9999 in every unit
_PARTS = [(COUNTERS.index(part), COUNTERS.index(PARENTS[part])) for part in PARTS]


class Rejected(Exception):
    """Ends the judgement of a record and carries the ruling."""

    def __init__(self, reason: str, field: str | None = None) -> None:
        super().__init__(reason, field)
        self.rejection = Rejection(reason, field)


class Referee:
    """Judges single records.

    `max_future_skew_ms` and `max_past_ms` (None: no bound) say how far an event may be ahead of its message and how far
    before it; `not_before_ms` is the earliest time of an event, with or without a message time.
    """

    def __init__(
        self, max_future_skew_ms: int = 3_600_000, max_past_ms: int | None = None, not_before_ms: int = 0
    ) -> None:
        self._skew_ms = max_future_skew_ms
        self._past_ms = max_past_ms
        self._not_before_ms = not_before_ms
        self._known: dict[str, tuple[Mapping, _Readers]] = {}

    def __call__(self, record: bytes, mapping: Mapping, message_time: int | None) -> Canonical | Rejection | Skipped:
        try:
            return self._judge(record, mapping, message_time)
        except Rejected as rejected:
            return rejected.rejection

    def time_of(self, record: bytes, mapping: Mapping) -> int | None:
        """When a record says that it was, in ms, whatever else is wrong with it; None where that cannot be read."""
        try:
            value = orjson.loads(record)
            return self._time(value, mapping.field("timestamp"), None) if isinstance(value, dict) else None
        except (orjson.JSONDecodeError, Rejected):
            return None

    def _judge(self, record: bytes, mapping: Mapping, message_time: int | None) -> Canonical | Skipped:
        if len(record) > RECORD_BYTES_MAX:
            raise Rejected("too_long")
        try:
            value = orjson.loads(record)
        except orjson.JSONDecodeError:
            raise Rejected("invalid_json") from None
        if not isinstance(value, dict):
            raise Rejected("not_an_object")
        readers = self._readers(mapping)
        if could_repeat(record, value, readers.tree) and repeats(record, readers.tree.root):
            raise Rejected("repeated_field")
        if (mapping.skip or mapping.refuse) and _is_skipped(value, mapping):
            return SKIPPED
        return self._canonical(value, mapping, readers, message_time)

    def _canonical(
        self, value: dict[str, Any], mapping: Mapping, readers: "_Readers", message_time: int | None
    ) -> Canonical:
        texts = [b""] * len(_TEXTS)
        counters = [1] + [0] * len(TOKENS)
        time_ms = 0
        for kind, slot, field, read in readers.fields:
            if kind == "string":
                texts[slot] = read(value)
            elif kind == "count":
                counters[slot] = read(value)
            elif kind == "time":
                time_ms = self._time(value, field, message_time)
            else:
                counters = _selected_counters(value, field, mapping)
        further = {field.name: _count(value, field) or 0 for field in mapping.further} if mapping.further else {}
        total = _count(value, mapping.total) if mapping.total else None
        labels = _labels(value, mapping.labels) if mapping.labels else []
        usage = _inclusive(value, counters, mapping, readers.additive, total)
        if further:
            _check_further(further, usage)
        return Canonical(
            EventTimeMs(time_ms),
            tuple(texts),
            usage,
            tuple(further.get(name, 0) for name in FURTHER) if further else NO_FURTHER,
            tuple([text or _label(each, usage) for text, each in labels]) if labels else (),
        )

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
        earliest = self._not_before_ms
        if message_time is not None and self._past_ms is not None:
            earliest = max(earliest, message_time - self._past_ms)
        if raw_ms < earliest:
            raise Rejected("past_timestamp", field.name)
        if message_time is not None and raw_ms > message_time + self._skew_ms:
            raise Rejected("future_timestamp", field.name)
        return raw_ms

    def _readers(self, mapping: Mapping) -> "_Readers":
        known = self._known.get(mapping.source)
        if known is None or (known[0] is not mapping and known[0] != mapping):
            known = self._known[mapping.source] = mapping, _readers_of(mapping)
        return known[1]


# --- What a mapping's fields are read by, made once. A quick reader knows the usual value, where its first path says;
# for any other one it asks the rules below. ---

_Read = Callable[[dict[str, Any]], Any]
_TEXTS = (*STRINGS, "scope")  # in the order of `Canonical.texts`


@dataclass(frozen=True)
class _Readers:
    """fields: in the order of judgement: the kind, the slot among texts or counters, the field, what reads it.
    additive: of PARTS, where the mapping says it for every record."""

    fields: list[tuple[str, int, Field, _Read]]
    additive: tuple[bool, ...] | None
    tree: KeyTree


def _readers_of(mapping: Mapping) -> _Readers:
    fields: list[tuple[str, int, Field, _Read]] = []
    for field in mapping.fields:
        if field.kind == "string":
            fields.append(("string", _TEXTS.index(field.name), field, _text_reader(field)))
            if field.scope:
                fields.append(("string", _TEXTS.index("scope"), field, _scope_reader(field, field.scope)))
        elif field.kind == "count" and mapping.selector:
            fields.append(("selected", 0, field, _read_with_more))
        elif field.kind == "count":
            fields.append(("count", COUNTERS.index(field.name), field, _count_reader(field)))
        else:
            fields.append(("time", 0, field, _read_with_more))
    stated = [each.additive for each in mapping.conventions if not each.by_total and not each.paths]
    decided = tuple(each for each in stated if each is not None)
    return _Readers(fields, decided if len(decided) == len(PARTS) else None, tree_of(mapping))


def _read_with_more(record: dict[str, Any]) -> Any:
    raise AssertionError("a time is read with its message's, a selected count with its mapping")


def _text_reader(field: Field) -> _Read:
    default, longest = _default_text(field), field.bytes_max
    above, last = _ends_of(field.paths[0] if field.paths else ())

    def read(record: dict[Any, Any]) -> bytes:
        value = (_object(record, above) if above else record).get(last)
        if type(value) is str:
            text = value.encode()
            if 1 <= len(text) <= longest:
                return text
        return _text(_read(record, field), field) or default

    return read


def _ends_of(path: Path) -> tuple[Path, str | None]:
    """The keys above a value, and its own; of no path the key None, which no record has."""
    return (path[:-1], path[-1]) if path else ((), None)


def _object(record: dict[Any, Any], path: Path) -> dict[Any, Any]:
    """The object at a path; an empty one where there is none."""
    value: Any = record
    for key in path:
        value = value.get(key)
        if type(value) is not dict:
            return {}
    found: dict[Any, Any] = value
    return found


def _scope_reader(field: Field, path: Path) -> _Read:
    def read(record: dict[Any, Any]) -> bytes:
        if field.scope_of_aliases and _present(_walk(record, field.paths[0], field.name), field) is not None:
            return b""
        return _text(_present(_walk(record, path, field.name), field), field) or b""

    return read


def _count_reader(field: Field) -> _Read:
    above, last = _ends_of(field.paths[0] if field.paths and not field.plus else ())

    def read(record: dict[Any, Any]) -> int:
        value = (_object(record, above) if above else record).get(last)
        if type(value) is int and 0 <= value < COUNT_END:
            return value
        return _count(record, field) or 0

    return read


# --- Values ---


def _walk(record: dict[str, Any], path: Path, name: str) -> Any:
    """The value at a path; None where the value or an object above it is absent or null."""
    value: Any = record
    for key in path:
        if value is None:
            return None
        if not isinstance(value, dict):
            raise Rejected("wrong_type", name)
        value = value.get(key)
    return value


def _present(value: Any, field: Field) -> Any:
    """The value; None also for an empty string, where the mapping says so."""
    return None if field.empty_is_absent and value == "" else value


def _value(record: dict[str, Any], field: Field) -> Any:
    """The value of the first path that has one."""
    for path in field.paths:
        value = record.get(path[0]) if len(path) == 1 else _walk(record, path, field.name)
        if value is not None and not (field.empty_is_absent and value == ""):
            return value
    return None


def _read(record: dict[str, Any], field: Field) -> Any:
    value = _value(record, field)
    if value is None and field.required:
        raise Rejected("missing_field", field.name)
    return value


def _text(value: Any, field: Field) -> bytes | None:
    if value is None:
        return None
    if field.numbers and type(value) is int:
        value = str(value)
    if not isinstance(value, str):
        raise Rejected("wrong_type", field.name)
    text = value.encode()
    if not 1 <= len(text) <= field.bytes_max:
        raise Rejected("bad_string", field.name)
    return text


def _default_text(field: Field) -> bytes:
    return b"" if field.default is None else str(field.default).encode()


def _is_skipped(record: dict[str, Any], mapping: Mapping) -> bool:
    """Every condition is looked at, so that a value of a wrong type is refused wherever it is."""
    entries = (*mapping.skip, *mapping.refuse)
    fits = [all([_fits(_walk(record, test.path, "skip"), test) for test in entry]) for entry in entries]
    if any(fits[: len(mapping.skip)]):
        return True
    if any(fits):
        raise Rejected("refused")
    return False


def _fits(value: Any, condition: Condition) -> bool:
    if value is None:
        return condition.fits_absent
    if condition.only_presence:
        return condition.test == "present"
    listed: tuple[Any, ...]
    if isinstance(value, str):
        listed = condition.strings
        if value.startswith(condition.prefixes):
            return condition.test == "in"
    elif isinstance(value, bool):
        listed = condition.booleans
    elif isinstance(value, int):
        listed = condition.integers
    else:
        raise Rejected("wrong_type", "skip")
    return (value in listed) == (condition.test == "in")


# --- Counts ---


def _count(record: dict[str, Any], field: Field) -> int | None:
    """The field's count; None where it has neither a value nor a default."""
    value = _read(record, field)
    count = field.default if value is None else _number(value, field)
    if not field.plus:
        return None if count is None else int(count)
    addends = [_walk(record, path, field.name) for path in field.plus]
    added = sum(_number(addend, field) for addend in addends if addend is not None)
    if count is None:
        return None
    if int(count) + added >= COUNT_END:
        raise Rejected("bad_count", field.name)
    return int(count) + added


def _number(value: Any, field: Field) -> int:
    if isinstance(value, str) and field.digits:
        if not _DIGITS.fullmatch(value) or len(value) > 13:  # 2^40 has 13 digits
            raise Rejected("bad_count", field.name)
        value = int(value)
    if isinstance(value, float) and field.whole_numbers:
        if not value.is_integer():
            raise Rejected("bad_count", field.name)
        value = int(value)
    if type(value) is not int:
        raise Rejected("wrong_type", field.name)
    if not 0 <= value < COUNT_END:
        raise Rejected("bad_count", field.name)
    return value


def _selected_counters(record: dict[str, Any], field: Field, mapping: Mapping) -> list[int]:
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
    requests = int(mapping.selector.requests in (None, kind))
    return list(Usage(requests)._replace(**{counter: _count(record, field) or 0}))


def _inclusive(
    record: dict[str, Any], source: list[int], mapping: Mapping, stated: tuple[bool, ...] | None, total: int | None
) -> Usage:
    """The source's counters with every part inside its total, by the first reading that adds up."""
    if stated and total is None:
        usage = _reading(source, stated)
        if usage:
            return usage
        raise Rejected("inconsistent_counts")
    answers = [_stated(record, convention) for convention in mapping.conventions]
    if any(answer.silences_total for answer in answers):
        total = None
    open_to_both = (each.by_total and total is not None for each in answers)
    readings = ((False, True) if both else (each.additive,) for both, each in zip(open_to_both, answers, strict=True))
    for additive in product(*readings):
        usage = _reading(source, additive)
        if usage and total in (None, usage.total_tokens):
            return usage
    raise Rejected("inconsistent_counts")


def _reading(source: list[int], additive: tuple[bool, ...]) -> Usage | None:
    """What the source's counters mean if these of PARTS are beside their totals; None where a part is larger."""
    counters = source.copy()
    if True in additive:
        for (part, whole), beside in zip(_PARTS, additive, strict=True):
            counters[whole] += source[part] * beside
    rest = counters.copy()
    for part, whole in _PARTS:
        rest[whole] -= source[part]
        if rest[whole] < 0:
            return None
    return Usage(*counters)


def _check_further(further: dict[str, int], usage: Usage) -> None:
    if any(count > getattr(usage, FURTHER_PARENTS[name]) for name, count in further.items()):
        raise Rejected("inconsistent_counts")


def _labels(record: dict[str, Any], labels: tuple[Label, ...]) -> list[tuple[bytes | None, Label]]:
    """What the record says of each."""
    return [(_text(_read(record, each.field), each.field) if each.field else None, each) for each in labels]


def _label(label: Label, usage: Usage) -> bytes:
    """A label that is not read from the record: a bracket, a default, or none."""
    if label.bracket:
        return label.bracket.names[label.bracket.index(getattr(usage, label.bracket.counter))].encode()
    assert label.field
    return _default_text(label.field)


class _Stated(NamedTuple):
    """Whether a part is beside its total, or, where the record's total tells, what holds without one."""

    additive: bool
    by_total: bool
    silences_total: bool = False  # the record's value told, so its total is not asked


def _stated(record: dict[str, Any], convention: Convention) -> _Stated:
    additive, named = convention.additive, None
    if convention.paths:
        values = (_walk(record, path, convention.field) for path in convention.paths)
        value = next((value for value in values if value is not None), None)
        listed = (*convention.prefixes, *convention.values)
        if value is not None and type(value) not in {type(each) for each, _ in listed}:
            raise Rejected("wrong_type", convention.field)
        if isinstance(value, str):
            for prefix, answer in sorted(convention.prefixes, key=lambda item: len(item[0])):
                named = answer if value.startswith(prefix) else named
        if value is not None:
            named = dict(convention.values).get(value, named)
    if named is not None:
        return _Stated(named, by_total=False, silences_total=convention.by_total)
    if additive is None:
        raise Rejected("unknown_convention", convention.field)
    return _Stated(additive, convention.by_total)


# --- Times ---


def _time_ms(value: Any, field: Field) -> int:
    epoch = _epoch_of(field.formats)
    if isinstance(value, str):
        return _text_ms(value, field, epoch)
    if epoch == "epoch_s_decimal" and type(value) in (int, float):
        return _decimal_ms(float(value), field)
    if epoch in _EPOCH_PER_MS and type(value) is int:
        times, per = _EPOCH_PER_MS[epoch]
        return value * times // per
    raise Rejected("wrong_type", field.name)


@functools.cache
def _epoch_of(formats: tuple[str, ...]) -> str | None:
    return next((name for name in formats if name.startswith("epoch")), None)


def _decimal_ms(seconds: float, field: Field) -> int:
    if not 0 <= seconds + 1 <= TIME_END_MS:  # keeps the product finite; the caller checks the range itself
        raise Rejected("bad_timestamp", field.name)
    return round(seconds * 1000)


def _text_ms(value: str, field: Field, epoch: str | None) -> int:
    if field.digits and epoch == "epoch_s_decimal" and _DECIMAL.fullmatch(value):
        return _decimal_ms(float(value), field)
    if field.digits and epoch in _EPOCH_PER_MS and _DIGITS.fullmatch(value):
        times, per = _EPOCH_PER_MS[epoch]
        return int(value) * times // per if len(value) <= _EPOCH_DIGITS_MAX else TIME_END_MS
    if "rfc3339" in field.formats:
        match = _RFC3339.fullmatch(value)
        zone = match and (match[8], match[9], match[10])
    elif "iso8601" in field.formats:
        match = _ISO8601.fullmatch(value)
        zone = match and (match[9], match[10], match[11])
        if match and not match[8] and not match[9]:
            zone = _zone_texts(field)
    else:
        raise Rejected("bad_timestamp" if field.digits else "wrong_type", field.name)
    if not match or not zone:
        raise Rejected("bad_timestamp", field.name)
    return _calendar_ms(match, zone, field.name)


def _zone_texts(field: Field) -> tuple[str, str, str] | None:
    """The mapping's zone as if a text had named it."""
    if field.zone_minutes is None:
        return None
    hours, minutes = divmod(abs(field.zone_minutes), 60)
    return "-" if field.zone_minutes < 0 else "+", str(hours), str(minutes)


def _calendar_ms(match: re.Match[str], zone: tuple[str | None, str | None, str | None], name: str) -> int:
    year, month, day, hour, minute, second = map(int, match.groups()[:6])
    fraction = int((match[7] or "0")[:3].ljust(3, "0"))
    sign, hours, minutes = zone[0], int(zone[1] or 0), int(zone[2] or 0)
    if second > 60 or hours > 23 or minutes > 59:
        raise Rejected("bad_timestamp", name)
    offset = timedelta(hours=hours, minutes=minutes) * (-1 if sign == "-" else 1)
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
