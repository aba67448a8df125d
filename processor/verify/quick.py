"""Many lines judged at once: what the judge says of one line, proved of those that differ from it in values only.

`Judge` decides. Its verdict on a line depends on the line's keys and types, on the values that conditions and
conventions look at, and on whether texts, counts and times are within their bounds. A `Template` keeps the first two
fixed, this module checks the third for all lines at once, and whatever is not surely within every bound is left to
`Judge`. So a record is never refused here; it counts, or is skipped, or is left.

A template is learned from a line that was judged, and used only if it says the same of that line. From then on one of
the lines that it takes is judged again in every page: if the two should ever differ, the audit ends with an error.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import orjson
import pyarrow as pa

from tokenometer.processor.verify.judge import RECORD_BYTES_MAX, Judge, Judged, SkippedRecord, bracket_texts
from tokenometer.processor.verify.pages import Flags, Ints, Page, Places, Text, json_array, json_object
from tokenometer.processor.verify.templates import Kind, Leaf, Leaves, Path, Shapes, Template, leaves_of
from tokenometer.processor.verify.times import TIME_END_MS
from tokenometer.processor.verify.values import COUNTS, FURTHER, PARENTS, RefusedRecord, VerifyError
from tokenometer.schemas.mapping import COUNT_END, Field, Mapping

TEXTS = ("request_id", "scope", "user", "model", "chip", "prefill_chip", "labels")
NUMBERS = ("requests", *COUNTS, *FURTHER)
_PLAIN_INTEGER = re.compile(rb"0|[1-9][0-9]{0,15}")

Number = Ints | int


class Counted(NamedTuple):
    """Records that count, unless they are duplicates. lines: their numbers in the page."""

    lines: Ints
    times: Ints
    texts: dict[str, Text]
    numbers: dict[str, Number]


class Answer(NamedTuple):
    counted: list[Counted]
    skipped: int
    left: Ints  # lines that are for the judge


def is_eligible(mapping: Mapping) -> bool:
    """Whether a value that begins with `{` is lines, as they stand there."""
    value = mapping.value
    changed = value.records or value.json_in or value.prefix or value.whole or value.key or value.headers or value.outer
    return value.encoding == "json" and not changed


# --- Where a template's values come from ---


class _Unusable(Exception):
    """The line is no template."""


@dataclass(frozen=True)
class _Source:
    """Of a field: the path whose value it is, or what every line has."""

    path: Path | None
    constant: Any = None


@dataclass(frozen=True)
class _Plan:
    """What is read of a template's lines."""

    template: Template
    skipped: bool
    texts: dict[str, _Source]
    counts: dict[str, tuple[_Source, ...]]  # to be added
    fixed: dict[str, int]  # other counters
    total: tuple[_Source, ...] | None
    time: _Source
    labels: tuple[tuple[str, _Source | None], ...]  # None: a bracket
    beside: tuple[tuple[bool, ...], ...]  # of each part: its possible relations to its total, in the order of trial

    def read(self) -> list[Path]:
        sources = [*self.texts.values(), self.time, *(self.total or ())]
        sources += [source for some in self.counts.values() for source in some]
        sources += [source for _, source in self.labels if source]
        return [source.path for source in sources if source.path is not None]

    def numbers(self) -> set[Path]:
        """Of what is read, the places of integers."""
        sources = [source for some in (*self.counts.values(), self.total or ()) for source in some]
        kinds = self.template.kinds
        of_counts = {source.path for source in sources if source.path is not None}
        return of_counts | {path for path in self.read() if kinds[path] is Kind.INTEGER}


class QuickJudge:
    """Learns templates of one mapping, and judges pages with them."""

    def __init__(
        self, mapping: Mapping, judge: Judge, max_future_skew_ms: int, max_past_ms: int | None, not_before_ms: int = 0
    ) -> None:
        self._mapping, self._judge = mapping, judge
        self._bounds = max_future_skew_ms, max_past_ms, not_before_ms
        self._roles = _Roles(mapping)
        self._shapes: Shapes[_Plan, Counted | int] = Shapes()
        self._times: Ints = np.zeros(0, np.int64)

    def __call__(self, page: Page, candidates: Flags, times: Ints) -> Answer:
        """candidates: lines that may be judged here. times: of their messages."""
        self._times = times
        found, left = self._shapes.read(self, page, candidates & (page.ends - page.begins <= RECORD_BYTES_MAX))
        too_long = np.flatnonzero(candidates & (page.ends - page.begins > RECORD_BYTES_MAX))
        counted = [each for each in found if not isinstance(each, int)]
        skipped = sum(each for each in found if isinstance(each, int))
        return Answer(counted, skipped, np.concatenate((left, too_long)))

    # --- Learning ---

    def learn(self, page: Page, line: int) -> _Plan | None:
        text = page.line(line)
        try:
            self._judge(text, int(self._times[line]))
            skipped = False
        except SkippedRecord:
            skipped = True
        except RefusedRecord:
            return None
        leaves = leaves_of(text)
        if leaves is None:
            return None
        try:
            plan = self._plan(text, leaves, skipped)
        except _Unusable:
            return None
        usable = plan.template.usable and self.take(plan, page, np.array([line]))[1].all()
        return plan if usable else None

    def _plan(self, line: bytes, leaves: Leaves, skipped: bool) -> _Plan:
        template = Template(line, leaves, self._roles.kind_of)
        nothing = _Source(None)
        if skipped:
            return _Plan(template, True, {}, {}, {}, None, nothing, (), ())
        mapping, resolve = self._mapping, _Resolver(template, leaves)
        request_id = mapping.field("request_id")
        texts = {name: resolve.text(mapping.field(name)) for name in TEXTS if name not in ("scope", "labels")}
        texts["scope"] = resolve.scope(request_id)
        counts, fixed = resolve.counters(mapping)
        counts |= {field.name: resolve.count(field) for field in mapping.further}
        total = resolve.total(mapping.total) if mapping.total else None
        labels = tuple((label.name, resolve.text(label.field) if label.field else None) for label in mapping.labels)
        top = orjson.loads(line)
        beside = tuple(read(top, total is not None) for read in self._judge.beside)
        time = resolve.time(mapping.field("timestamp"))
        return _Plan(template, False, texts, counts, fixed, total, time, labels, beside)

    # --- Using a template ---

    def take(self, plan: _Plan, page: Page, lines: Ints) -> tuple[Counted | int | None, Flags]:
        """Which lines are surely of this template and within all bounds; their records, or how many are skipped."""
        taken = np.zeros(len(lines), bool)
        index, places = plan.template.match(page, lines, plan.read())
        if not len(index):
            return None, taken
        if plan.skipped:
            taken[index] = True
            self._judge_one_again(page, lines[index], None)
            return len(index), taken
        reader = _Reader(self._mapping, plan, page, places, self._times[lines[index]], self._bounds)
        times, numbers = reader.time(), reader.numbers()
        texts = reader.texts(numbers)
        sure = reader.sure
        if not sure.all():
            index, times = index[sure], times[sure]
            texts = {name: each.filter(pa.array(sure)) if isinstance(each, pa.Array) else each
                     for name, each in texts.items()}  # fmt: skip
            numbers = {name: each if isinstance(each, int) else each[sure] for name, each in numbers.items()}
        taken[index] = True
        if not len(index):
            return None, taken
        counted = Counted(lines[index], times, texts, numbers)
        self._judge_one_again(page, counted.lines, counted)
        return counted, taken

    def _judge_one_again(self, page: Page, lines: Ints, counted: Counted | None) -> None:
        at = len(lines) // 2
        line = int(lines[at])
        wanted = None if counted is None else record_at(counted, at)
        found: Judged | None
        try:
            found = self._judge(page.line(line), int(self._times[line]))
        except SkippedRecord:
            found = None
        except RefusedRecord as why:
            raise VerifyError(f"two readings of one line differ, one refuses it ({why}): {page.line(line)!r}") from None
        if found != wanted:
            raise VerifyError(f"two readings of one line differ, {found} and {wanted}: {page.line(line)!r}")


def record_at(counted: Counted, at: int) -> Judged:
    """As the judge answers."""

    def text(name: str) -> Any:
        value = counted.texts[name]
        value = value[at].as_py() if isinstance(value, pa.Array) else value
        return None if value is None else value.decode()

    def number(name: str) -> int:
        value = counted.numbers[name]
        return value if isinstance(value, int) else int(value[at])

    six = [number(name) for name in ("requests", *COUNTS)]
    names = [text(name) for name in ("user", "model", "chip", "prefill_chip")]
    further = [number(name) for name in FURTHER]
    record = (text("request_id"), text("scope"), int(counted.times[at]), *names, *six, text("labels"), *further)
    return record


class _Roles:
    """What is done with the value at a path: `decides` must be the same in all lines of a template."""

    def __init__(self, mapping: Mapping) -> None:
        self._of: dict[Path, set[str]] = {}
        fields = [*mapping.fields, *mapping.further, *([mapping.total] if mapping.total else [])]
        fields += [label.field for label in mapping.labels if label.field]
        self._fields: dict[Path, Field] = {}
        for field in fields:
            role = {"timestamp": "time"}.get(field.name, "count" if field.kind == "count" else "text")
            for path in (*field.paths, *field.plus, *([field.scope] if field.scope else [])):
                self._of.setdefault(path, set()).add(role)
                self._fields[path] = field
        decisions = [condition.path for entry in mapping.skip for condition in entry]
        decisions += [path for convention in mapping.conventions for path in convention.paths]
        decisions += [mapping.selector.by] if mapping.selector else []
        for path in decisions:
            self._of.setdefault(path, set()).add("decides")

    def kind_of(self, leaf: Leaf) -> Kind | None:
        roles = self._of.get(leaf.path, set()) if leaf.path is not None else set()
        if len(roles) > 1 or "decides" in roles:
            return None
        if not roles:
            return Kind.TEXT if leaf.is_text else Kind.SCALAR
        if leaf.is_text:
            return None if leaf.text == b'""' else Kind.TEXT
        return Kind.INTEGER if _PLAIN_INTEGER.fullmatch(leaf.text) else None


class _Resolver:
    """From fields to sources, for the lines of one template: the first path that has a value."""

    def __init__(self, template: Template, leaves: Leaves) -> None:
        self._template = template
        self._leaves = {leaf.path: leaf for leaf in leaves.leaves if leaf.path is not None}
        self._containers = leaves.containers

    def _leaf(self, path: Path, empty_is_absent: bool = False) -> Leaf | None:
        """None where the path has no value."""
        for depth in range(1, len(path)):
            above = self._leaves.get(path[:depth])
            if above is not None and (above.text != b"null" or path[:depth] in self._template.kinds):
                raise _Unusable
        if path in self._containers:
            raise _Unusable
        leaf = self._leaves.get(path)
        fixed = path not in self._template.kinds
        if leaf is None or (fixed and (leaf.text == b"null" or (empty_is_absent and leaf.text == b'""'))):
            return None
        return leaf

    def _first(self, paths: Sequence[Path], empty_is_absent: bool = False) -> Leaf | None:
        leaves = (self._leaf(path, empty_is_absent) for path in paths)
        return next((leaf for leaf in leaves if leaf is not None), None)

    def _is_read(self, leaf: Leaf) -> bool:
        return leaf.path in self._template.kinds

    def text(self, field: Field) -> _Source:
        leaf = self._first(field.paths, field.empty_is_absent)
        if leaf is None:
            return _Source(None, None if field.default is None else str(field.default).encode())
        return self._text(leaf)

    def _text(self, leaf: Leaf) -> _Source:
        if self._is_read(leaf):
            return _Source(leaf.path)
        value = orjson.loads(leaf.text)
        return _Source(None, (value if isinstance(value, str) else str(value)).encode())

    def scope(self, request_id: Field) -> _Source:
        leaf = self._first((request_id.scope,), request_id.empty_is_absent) if request_id.scope else None
        return _Source(None, b"") if leaf is None else self._text(leaf)

    def counters(self, mapping: Mapping) -> tuple[dict[str, tuple[_Source, ...]], dict[str, int]]:
        if mapping.selector is None:
            return {name: self.count(mapping.field(name)) for name in COUNTS}, {"requests": 1}
        by = self._leaf(mapping.selector.by)
        if by is None or self._is_read(by) or not by.is_text:
            raise _Unusable
        source = orjson.loads(by.text)
        name = dict(mapping.selector.to)[source]
        requests = int(mapping.selector.requests in (None, source))
        zeros = {each: 0 for each in COUNTS if each != name}
        return {name: self.count(mapping.field("tokens"))}, {**zeros, "requests": requests}

    def count(self, field: Field) -> tuple[_Source, ...]:
        leaf = self._first(field.paths)
        main = _Source(None, int(field.default or 0)) if leaf is None else self._count(leaf)
        return main, *self._added(field)

    def total(self, field: Field) -> tuple[_Source, ...] | None:
        leaf = self._first(field.paths)
        return None if leaf is None else (self._count(leaf), *self._added(field))

    def _added(self, field: Field) -> list[_Source]:
        leaves = (self._leaf(path) for path in field.plus)
        return [self._count(leaf) for leaf in leaves if leaf is not None]

    def _count(self, leaf: Leaf) -> _Source:
        if self._is_read(leaf):
            return _Source(leaf.path)
        if _PLAIN_INTEGER.fullmatch(leaf.text):
            return _Source(None, int(leaf.text))
        raise _Unusable

    def time(self, field: Field) -> _Source:
        leaf = self._first(field.paths)
        if leaf is None:
            return _Source(None)
        if not self._is_read(leaf) or (not leaf.is_text and _scale(field) is None):
            raise _Unusable
        if leaf.is_text and not {"rfc3339", "iso8601"} & set(field.formats):
            raise _Unusable
        return _Source(leaf.path)


def _scale(field: Field) -> tuple[int, int] | None:
    """What to multiply an epoch time with for milliseconds, and what then to divide by."""
    known = {"epoch_ms": (1, 1), "epoch_s": (1000, 1), "epoch_us": (1, 1000), "epoch_ns": (1, 10**6)}
    return next((known[name] for name in field.formats if name in known), None)


class _Reader:
    """The values of a template's lines. What is not surely within its bounds is marked in `sure`."""

    def __init__(
        self,
        mapping: Mapping,
        plan: _Plan,
        page: Page,
        places: dict[Path, Places],
        message_times: Ints,
        bounds: tuple[int, int | None, int],
    ) -> None:
        self._mapping, self._plan, self._page, self._places = mapping, plan, page, places
        self._message_times, self._bounds = message_times, bounds
        self.sure: Flags = np.ones(len(message_times), bool)
        self._numbers = plan.numbers()
        self._integers: dict[Path, Ints] = {}

    def _integer(self, path: Path) -> Ints:
        if not self._integers:  # all at once
            paths = [path for path in self._places if path in self._numbers]
            begins, lengths = (np.stack([self._places[path][i] for path in paths]) for i in (0, 1))
            found, sure = self._page.integers((begins, lengths))
            self.sure &= sure.all(axis=0)
            self._integers = dict(zip(paths, found, strict=True))
        return self._integers[path]

    # --- Times ---

    def time(self) -> Ints:
        field, path = self._mapping.field("timestamp"), self._plan.time.path
        skew, past, not_before = self._bounds
        if path is None:
            found = self._message_times
        elif self._plan.template.kinds[path] is Kind.TEXT:
            found, sure = self._page.rfc3339(self._places[path])
            self.sure &= sure
        else:
            multiply, divide = _scale(field) or (1, 1)
            found = self._integer(path)
            self._check(found < _SURELY_INT64 // multiply)
            found = found * multiply // divide
        self.sure &= (found >= not_before) & (found < TIME_END_MS) & (found - self._message_times <= skew)
        if past is not None:
            self.sure &= self._message_times - found <= past
        return found

    # --- Counts ---

    def numbers(self) -> dict[str, Number]:
        plan = self._plan
        found: dict[str, Number] = {name: self._sum(sources) for name, sources in plan.counts.items()}
        found |= {name: 0 for name in FURTHER if name not in found}
        found |= plan.fixed
        total = None if plan.total is None else self._sum(plan.total)
        found |= self._inside(found, total)
        for name, parent in PARENTS.items():
            self._check(found[name] <= found[parent])
        return found

    def _sum(self, sources: tuple[_Source, ...]) -> Number:
        found: Number = 0
        for source in sources:
            count = source.constant if source.path is None else self._integer(source.path)
            self._check(count < COUNT_END)
            found = found + count
        self._check(found < COUNT_END)
        return found

    def _check(self, sure: Any) -> None:
        self.sure &= sure

    def _inside(self, counts: dict[str, Number], total: Number | None) -> dict[str, Number]:
        """Parts put inside their totals, as the first conventions say that fit."""
        total_in, cached, written, total_out, reasoning = (counts[name] for name in COUNTS)
        undecided: Any = np.ones(len(self.sure), bool)
        found_in, found_out = total_in, total_out
        for cached_beside, written_beside, reasoning_beside in product(*self._plan.beside):
            whole_in = total_in + cached * cached_beside + written * written_beside
            whole_out = total_out + reasoning * reasoning_beside
            fits = (cached + written <= whole_in) & np.asarray(reasoning <= whole_out)
            if total is not None:
                fits = fits & np.asarray(total == whole_in + whole_out)
            if np.all(fits):  # of most templates the very first
                if np.all(undecided):
                    return {"input_tokens": whole_in, "output_tokens": whole_out}
            found_in = np.where(undecided & fits, whole_in, found_in)
            found_out = np.where(undecided & fits, whole_out, found_out)
            undecided = undecided & ~fits
        self._check(~undecided)
        return {"input_tokens": found_in, "output_tokens": found_out}

    # --- Texts ---

    def texts(self, numbers: dict[str, Number]) -> dict[str, Text]:
        plan, request_id = self._plan, self._mapping.field("request_id")
        found: dict[str, Text] = {}
        for name, source in plan.texts.items():
            field = request_id if name == "scope" else self._mapping.field(name)
            found[name] = self._text(source, field.bytes_max, field.numbers)
        labels = {label.name: label for label in self._mapping.labels}
        values: list[tuple[str, Text]] = []
        for name, text in plan.labels:
            label = labels[name]
            if text is None:
                assert label.bracket
                values.append((name, _bracket(label.bracket.edges, numbers[label.bracket.counter])))
            else:
                assert label.field
                values.append((name, self._text(text, label.field.bytes_max, label.field.numbers)))
        found["labels"] = json_object(sorted((name, value) for name, value in values if value is not None))
        if request_id.with_fields:
            parts = [found["scope"], *(found[name] for name in request_id.with_fields)]
            found["scope"] = json_array(parts)
        return found

    def _text(self, source: _Source, bytes_max: int, numbers: bool) -> Text:
        if source.path is None:
            constant: bytes | None = source.constant
            return constant
        if self._plan.template.kinds[source.path] is Kind.INTEGER:
            if not numbers:
                raise AssertionError("the judge refused the template's own line")
            self._integer(source.path)
        places = self._places[source.path]
        self.sure &= (places[1] >= 1) & (places[1] <= bytes_max)
        return self._page.texts(places)


_SURELY_INT64 = 1 << 62


def _bracket(edges: tuple[int, ...], counts: Number) -> Text:
    names = [name.encode() for name in bracket_texts(edges)]
    if isinstance(counts, int):
        return names[int(np.searchsorted(edges, counts))]
    return pa.array(names, pa.binary()).take(pa.array(np.searchsorted(np.array(edges), counts)))
