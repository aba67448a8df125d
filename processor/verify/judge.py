"""What `tokenometer verify` makes of one line: docs/RECORDS.md read a third time, for speed in plain Python.

The audit is worth as much as this file is independent, so nothing of kernels/ and nothing of the referee is imported.
orjson says whether a line is JSON and what it says. `Judge` turns a mapping into one small function for each field,
once; a line is then judged by calling them in the order of the fields.
"""

import math
from bisect import bisect_left
from collections.abc import Callable
from operator import methodcaller
from typing import Any

import orjson

from tokenometer.processor.verify.repeated import RepeatedKeys
from tokenometer.processor.verify.times import time_reader
from tokenometer.processor.verify.values import COUNTERS, COUNTS, FURTHER, NO_FURTHER, PARENTS, RefusedRecord
from tokenometer.schemas.mapping import (
    COUNT_END,
    STRING_BYTES_MAX,
    Condition,
    Convention,
    Field,
    Label,
    Mapping,
    Path,
    Selector,
)

RECORD_BYTES_MAX = 1 << 20
BLANKS = b" \t\r"
_SURELY_SHORT = STRING_BYTES_MAX // 4  # so many characters cannot have more bytes than allowed


# A record that counts, unless it is a duplicate, as a plain tuple: a named one takes a tenth of all the time.
# request_id, what it is unique within ("" for nothing), time in ms, user, model, chip, prefill_chip; what it adds to
# its rows (requests, COUNTS); its labels (JSON, "" for none); and what it adds of FURTHER.
_Head = tuple[str | None, str, int, str | None, str | None, str | None, str | None, int, int, int, int, int, int]
Judged = tuple[*_Head, str, int, int, int, int, int]


class SkippedRecord(Exception):
    """The mapping says that the record is none of those that are counted."""


Object = dict[str, Any]
ReadText = Callable[[Object], str | None]
ReadCount = Callable[[Object], int]
Six = tuple[int, int, int, int, int, int]  # requests, then COUNTS
ReadCounters = Callable[[Object], Six]  # as the source has them
ReadTotal = Callable[[Object], int | None]
Trials = tuple[bool, ...]  # is a part beside its total? the answers in the order in which they are tried
ReadBeside = Callable[[Object, bool], tuple[list[Trials], bool]]
MakeInclusive = Callable[[Object, Six, int | None], Six]


class Judge:
    """Judges the records of one mapping.

    `max_future_skew_ms` and `max_past_ms` (None: no bound): how far an event may be ahead of its message, and how far
    before it. `not_before_ms`: the earliest time of any event.
    """

    def __init__(
        self, mapping: Mapping, max_future_skew_ms: int, max_past_ms: int | None = None, not_before_ms: int = 0
    ) -> None:
        request_id = mapping.field("request_id")
        self._is_skipped = _skip_reader(mapping.skip, mapping.refuse) if mapping.skip or mapping.refuse else None
        self._request_id = _text_reader(request_id)
        self.grows = mapping.repeats == "grow"
        self._scope = _scope_reader(request_id)
        self._with = [mapping.field(name).name for name in request_id.with_fields]
        self._time = time_reader(
            mapping.field("timestamp"),
            _first_of(mapping.field("timestamp").paths, "timestamp"),
            max_future_skew_ms,
            max_past_ms,
            not_before_ms,
        )
        self._user = _text_reader(mapping.field("user"))
        self._model = _text_reader(mapping.field("model"))
        self._chip = _text_reader(mapping.field("chip"))
        self._prefill_chip = _text_reader(mapping.field("prefill_chip"))
        self._counters = _counters_reader(mapping)
        self._further = _further_reader(mapping.further) if mapping.further else None
        self._labels = [_label_reader(label) for label in mapping.labels]
        self._total = _total_reader(mapping.total) if mapping.total else None
        self._inclusive = _inclusive_maker(mapping.conventions)
        self.beside = beside_reader(mapping.conventions)  # how each part of a record may be meant
        self._repeats = RepeatedKeys(mapping)

    def __call__(self, line: bytes, message_time: int | None) -> Judged | None:
        """None: the line is empty. Raises RefusedRecord and SkippedRecord."""
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
        if self._is_skipped and self._is_skipped(top):
            raise SkippedRecord
        return self._fields(top, message_time)

    def _fields(self, top: Object, message_time: int | None) -> Judged:
        request_id = self._request_id(top)
        within = (self._scope(top) if self._scope else None) or ""
        time_ms = self._time(top, message_time)
        user, model, chip, prefill_chip = self._user(top), self._model(top), self._chip(top), self._prefill_chip(top)
        counters = self._counters(top)
        further = self._further(top) if self._further else NO_FURTHER
        total = self._total(top) if self._total else None
        texts = [read(top) if read else None for _, read, _ in self._labels]
        counters = self._inclusive(top, counters, total)
        _check_within(further, counters)
        labels = self._labels_of(texts, counters) if self._labels else ""
        if self._with:
            values = {"user": user, "model": model, "chip": chip, "prefill_chip": prefill_chip}
            within = orjson.dumps([within, *(values[name] for name in self._with)]).decode()
        return (request_id, within, time_ms, user, model, chip, prefill_chip, *counters, labels, *further)

    def _labels_of(self, texts: list[str | None], counters: Six) -> str:
        found = {}
        for (name, _, bracket), text in zip(self._labels, texts, strict=True):
            value = bracket(counters) if bracket else text
            if value is not None:
                found[name] = value
        return labels_text(found) if found else ""


def labels_text(labels: dict[str, str]) -> str:
    """One text for one set of labels."""
    return orjson.dumps(labels, option=orjson.OPT_SORT_KEYS).decode()


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


def _first_of(paths: tuple[Path, ...], name: str, nothing: str | None = None) -> Callable[[Object], Any]:
    """Reads the first path that has a value; `nothing` counts as null."""
    walks = [_walker(path, name) for path in paths]
    if len(walks) == 1 and nothing is None:
        return walks[0]

    def first(top: Object) -> Any:
        for walk in walks:
            value = walk(top)
            if value is not None and value != nothing:
                return value
        return None

    return first


def _text_reader(field: Field) -> ReadText:
    name, required = field.name, field.required
    default = None if field.default is None else str(field.default)
    if not field.paths:
        return lambda top: default
    value_of = _first_of(field.paths, name, nothing="" if field.empty_is_absent else None)

    def read(top: Object) -> str | None:
        value = value_of(top)
        if type(value) is str and 0 < len(value) <= _SURELY_SHORT:
            return value
        if value is None:
            if required:
                raise RefusedRecord("missing_field", name)
            return default
        return _text(value, field)

    return read


def _scope_reader(request_id: Field) -> ReadText | None:
    if request_id.scope is None:
        return None
    nothing = "" if request_id.empty_is_absent else None
    value_of = _first_of((request_id.scope,), request_id.name, nothing=nothing)
    own_id = _first_of(request_id.paths[:1], request_id.name, nothing=nothing)

    def read(top: Object) -> str | None:
        if request_id.scope_of_aliases and own_id(top) is not None:
            return None
        value = value_of(top)
        return None if value is None else _text(value, request_id)

    return read


def _text(value: Any, field: Field) -> str:
    if type(value) is int and field.numbers:
        return str(value)
    if type(value) is not str:
        raise RefusedRecord("wrong_type", field.name)
    if 0 < len(value.encode()) <= field.bytes_max:
        return value
    raise RefusedRecord("bad_string", field.name)


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
    default = int(field.default or 0)
    if not field.paths:
        return lambda top: default
    if not field.plus:
        return _plain_count_reader(field, default)
    read_main, read_added = _main_count_reader(field), _added_reader(field)

    def read(top: Object) -> int:
        count = read_main(top)
        return _bounded((default if count is None else count) + read_added(top), field.name)

    return read


def _plain_count_reader(field: Field, default: int) -> ReadCount:
    """One function for what most mappings ask of a count: five of these are called for every record."""
    name, required, number_of = field.name, field.required, _number_reader(field)
    value_of = _first_of(field.paths, name)

    def read(top: Object) -> int:
        value = value_of(top)
        if type(value) is int and 0 <= value < COUNT_END:
            return value
        if value is None:
            if required:
                raise RefusedRecord("missing_field", name)
            return default
        return number_of(value)

    return read


def _total_reader(field: Field) -> ReadTotal:
    read_main, read_added = _main_count_reader(field), _added_reader(field)

    def read(top: Object) -> int | None:
        total, added = read_main(top), read_added(top)
        return None if total is None else _bounded(total + added, field.name)

    return read


def _main_count_reader(field: Field) -> ReadTotal:
    """The count without what `plus` adds; None where it has no value."""
    name, required, number_of = field.name, field.required, _number_reader(field)
    value_of = _first_of(field.paths, name)

    def read(top: Object) -> int | None:
        value = value_of(top)
        if type(value) is int:
            return _bounded(value, name)
        if value is None:
            if required:
                raise RefusedRecord("missing_field", name)
            return None
        return number_of(value)

    return read


def _added_reader(field: Field) -> ReadCount:
    walks, number_of = [_walker(path, field.name) for path in field.plus], _number_reader(field)

    def read(top: Object) -> int:
        values = [walk(top) for walk in walks]
        return sum([number_of(value) for value in values if value is not None])

    return read


def _number_reader(field: Field) -> Callable[[Any], int]:
    name, digits, whole_numbers = field.name, field.digits, field.whole_numbers

    def number(value: Any) -> int:
        kind = type(value)
        if kind is int:
            return _bounded(value, name)
        if kind is str and digits:
            return _digits(value, name)
        if kind is float and whole_numbers:
            if 0 <= value < COUNT_END and value == math.floor(value):
                return int(value)
            raise RefusedRecord("bad_count", name)
        raise RefusedRecord("wrong_type", name)

    return number


def _bounded(count: int, name: str) -> int:
    if 0 <= count < COUNT_END:
        return count
    raise RefusedRecord("bad_count", name)


def _digits(text: str, name: str) -> int:
    # 2^40 has 13 digits; a leading zero is the only digit. isdigit alone would take other scripts' digits.
    if 0 < len(text) <= 13 and text.isascii() and text.isdigit() and (text[0] != "0" or text == "0"):
        return _bounded(int(text), name)
    raise RefusedRecord("bad_count", name)


# --- Further counters and labels ---

Five = tuple[int, int, int, int, int]
_PARENT_PLACES = [COUNTERS.index(parent) for parent in PARENTS.values()]


def _further_reader(fields: tuple[Field, ...]) -> Callable[[Object], Five]:
    named = {field.name: _count_reader(field) for field in fields}
    readers = [named.get(name) for name in FURTHER]

    def read(top: Object) -> Five:
        a, b, c, d, e = (0 if reader is None else reader(top) for reader in readers)
        return a, b, c, d, e

    return read


def _check_within(further: Five, counters: Six) -> None:
    """Checks that no part is more than what it is a part of."""
    if further is NO_FURTHER:
        return
    for count, place in zip(further, _PARENT_PLACES, strict=True):
        if count > counters[place]:
            raise RefusedRecord("inconsistent_counts")


_LabelReader = tuple[str, ReadText | None, Callable[[Six], str] | None]  # name, and one of the two


def _label_reader(label: Label) -> _LabelReader:
    if label.field is not None:
        return label.name, _text_reader(label.field), None
    assert label.bracket
    place, edges = COUNTERS.index(label.bracket.counter), label.bracket.edges
    texts = bracket_texts(edges)

    def bracket(counters: Six) -> str:
        return texts[bisect_left(edges, counters[place])]

    return label.name, None, bracket


def bracket_texts(edges: tuple[int, ...]) -> list[str]:
    """The names of the ranges that rising edges make, one more than there are edges."""
    begins = [0, *(edge + 1 for edge in edges)]
    return [f"{begin}-{end}" for begin, end in zip(begins, (*edges, ""), strict=True)]


# --- Skipping ---


Entries = tuple[tuple[Condition, ...], ...]


def _skip_reader(skip: Entries, refuse: Entries) -> Callable[[Object], bool]:
    """Says whether a record fits an entry of `skip`. Each condition is asked, so that any can refuse the record."""
    skips, refuses = ([list(map(_condition_reader, entry)) for entry in entries] for entries in (skip, refuse))

    def is_skipped(top: Object) -> bool:
        skipped = _fits_any(skips, top)
        refused = _fits_any(refuses, top)
        if refused and not skipped:
            raise RefusedRecord("refused")
        return skipped

    return is_skipped


def _fits_any(entries: list[list[Callable[[Object], bool]]], top: Object) -> bool:
    found = False
    for entry in entries:
        answers = [fits(top) for fits in entry]
        found = found or False not in answers
    return found


def _condition_reader(condition: Condition) -> Callable[[Object], bool]:
    value_of = _walker(condition.path, "skip")
    if condition.test == "present":
        return lambda top: value_of(top) is not None
    if condition.test == "absent":
        return lambda top: value_of(top) is None
    lists: dict[type, tuple[Any, ...]] = {
        str: condition.strings,
        int: condition.integers,
        bool: condition.booleans,
    }
    wanted, absent, prefixes = condition.test == "in", condition.or_absent, condition.prefixes

    def fits(top: Object) -> bool:
        value = value_of(top)
        if value is None:
            return absent
        listed = lists.get(type(value))
        if listed is None:
            raise RefusedRecord("wrong_type", "skip")
        return (value in listed or (type(value) is str and value.startswith(prefixes))) is wanted

    return fits


# --- Parts and their totals ---


def _inclusive_maker(conventions: tuple[Convention, Convention, Convention]) -> MakeInclusive:
    """Puts the parts of a record's counters inside their totals, as the conventions of cached tokens, cache writes and
    reasoning say."""
    if any(convention.by_total or convention.paths for convention in conventions):
        return _by_record(conventions)
    cached_beside, written_beside, reasoning_beside = (bool(convention.additive) for convention in conventions)

    def inclusive(top: Object, counters: Six, total: int | None) -> Six:
        answer = _put_inside(counters, cached_beside, written_beside, reasoning_beside, total)
        if answer is None:
            raise RefusedRecord("inconsistent_counts")
        return answer

    return inclusive


def _by_record(conventions: tuple[Convention, Convention, Convention]) -> MakeInclusive:
    read_beside = beside_reader(conventions)

    def inclusive(top: Object, counters: Six, total: int | None) -> Six:
        (cached, written, reasoning), asked = read_beside(top, total is not None)
        if not asked:
            total = None
        for c in cached:
            for w in written:
                for r in reasoning:
                    answer = _put_inside(counters, c, w, r, total)
                    if answer is not None:
                        return answer
        raise RefusedRecord("inconsistent_counts")

    return inclusive


def beside_reader(conventions: tuple[Convention, Convention, Convention]) -> ReadBeside:
    """What each part's relation to its total may be in a record, in the order of trial: True is beside it. And whether
    the record's total is asked: it is not where a value tells what `by_total` would otherwise."""
    told_by = [_told_reader(convention) for convention in conventions]

    def read(top: Object, has_total: bool) -> tuple[list[Trials], bool]:
        told = [tell(top) for tell in told_by]
        asked = has_total and not any(
            answer is not None and convention.by_total for answer, convention in zip(told, conventions, strict=True)
        )
        found: list[Trials] = []
        for answer, convention in zip(told, conventions, strict=True):
            if answer is not None:
                found.append((answer,))
            else:
                found.append((False, True) if convention.by_total and asked else (bool(convention.additive),))
        return found, asked

    return read


def _told_reader(convention: Convention) -> Callable[[Object], bool | None]:
    """Whether a value of the record says that the part is beside its total; None where no value tells."""
    name, otherwise = convention.field, None if convention.by_total else convention.additive
    if not convention.paths:
        return lambda top: None
    walkers, table = [_walker(path, name) for path in convention.paths], dict(convention.values)
    types = {type(value) for value, _ in (*convention.values, *convention.prefixes)}
    longest_first = sorted(convention.prefixes, key=lambda each: -len(each[0]))

    def read(top: Object) -> bool | None:
        value = None
        for walk in walkers:
            value = walk(top)
            if value is not None:
                break
        if value is not None and type(value) not in types:
            raise RefusedRecord("wrong_type", name)
        beside = otherwise if value is None else table.get(value, otherwise)
        if longest_first and type(value) is str and value not in table:
            beside = next((answer for text, answer in longest_first if value.startswith(text)), beside)
        if beside is None and not convention.by_total:
            raise RefusedRecord("unknown_convention", name)
        return beside

    return read


def _put_inside(
    counters: Six, cached_beside: bool, written_beside: bool, reasoning_beside: bool, total: int | None
) -> Six | None:
    """None where the parts are larger than their totals, or the totals do not make up the record's."""
    requests, total_in, cached, written, total_out, reasoning = counters
    if cached_beside:
        total_in += cached
    if written_beside:
        total_in += written
    if reasoning_beside:
        total_out += reasoning
    if cached + written > total_in or reasoning > total_out or (total is not None and total != total_in + total_out):
        return None
    return requests, total_in, cached, written, total_out, reasoning
