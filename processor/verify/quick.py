"""Many lines judged at once: what the judge says of one line, proved of those that differ from it in values only.

`Judge` decides. Its verdict on a line depends on the line's keys and types, on the values that conditions and
conventions look at, and on whether texts, counts and times are within their bounds. A `Template` keeps the first two
fixed, plan.h checks the third for every line, and whatever is not surely within every bound is left to `Judge`. So a
record is never refused here; it counts, or is skipped, or is left.

A template is learned from a line that was judged, and used only if it says the same of that line. From then on one of
the lines that it takes is judged again in every chunk: if the two should ever differ, the audit ends with an error.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import orjson

from tokenometer.processor.verify.judge import Judge, Judged, SkippedRecord, bracket_texts
from tokenometer.processor.verify.native import COUNTED, LEFT, NUMBERS, Answer, Lines, Messages, Program, Records
from tokenometer.processor.verify.templates import (
    PLANS_MAX,
    Candidates,
    Kind,
    Leaf,
    Leaves,
    Path,
    Piece,
    Pieces,
    Template,
    json_array,
    json_object,
    json_text,
    leaves_of,
    write_text,
)
from tokenometer.processor.verify.values import COUNTS, FURTHER, RefusedRecord, VerifyError
from tokenometer.schemas.mapping import Field, Mapping

_PLAIN_INTEGER = re.compile(rb"0|[1-9][0-9]{0,15}")


class Left(NamedTuple):
    """A line that is for the judge: its message, its number in that."""

    message: int
    number: int
    line: bytes


class Read(NamedTuple):
    """Of a chunk: how many records count, unless they are duplicates, and how many are skipped."""

    counted: int
    skipped: int
    left: list[Left]


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

    def program(self, mapping: Mapping) -> Program:
        """As plan.h reads it."""
        texts = [] if self.skipped else self._texts(mapping)  # they set bounds in the template
        program = Program()
        self.template.write(program)
        program.add(self.skipped)
        if self.skipped:
            return program
        multiply, divide = _scale(mapping.field("timestamp")) or (1, 1)
        path = self.time.path
        kind = 0 if path is None else 1 if self.template.kinds[path] is Kind.TEXT else 2
        program.add(kind, 0 if path is None else self.template.slots[path], multiply, divide)
        program.add(self.fixed.get("requests", 1))
        for name in (*COUNTS, *FURTHER):
            self._write_sum(program, self.counts.get(name, (_Source(None, self.fixed.get(name, 0)),)))
        self._write_sum(program, self.total)
        combinations = list(product(*self.beside))
        program.add(len(combinations), *(int(part) for some in combinations for part in some))
        for pieces in texts:
            write_text(program, pieces)
        return program

    def _write_sum(self, program: Program, sources: "tuple[_Source, ...] | None") -> None:
        some = sources or ()
        paths = [source.path for source in some if source.path is not None]
        if any(self.template.kinds[path] is not Kind.INTEGER for path in paths):
            raise _Unusable  # nothing else has a number
        slots = [self.template.slots[path] for path in paths]
        constant = sum(source.constant for source in some if source.path is None)
        program.add(sources is not None, constant, len(slots), *slots)

    def _texts(self, mapping: Mapping) -> list[Pieces]:
        request_id = mapping.field("request_id")
        found = {name: self._text(source, request_id if name == "scope" else mapping.field(name))
                 for name, source in self.texts.items()}  # fmt: skip
        members = list[tuple[str, list[Piece]]]()
        for label, (name, source) in zip(mapping.labels, self.labels, strict=True):
            if label.bracket:
                names = [text.encode() for text in bracket_texts(label.bracket.edges)]
                counter = NUMBERS.index(label.bracket.counter)
                members.append((name, [b'"', (counter, label.bracket.edges, names), b'"']))
            elif label.field and source:
                pieces = self._text(source, label.field)
                if pieces is not None:
                    members.append((name, json_text(pieces)))
        labels = json_object(sorted(members, key=lambda member: member[0]))
        scope = found["scope"]
        if request_id.with_fields:
            scope = json_array([json_text(scope), *(json_text(found[name]) for name in request_id.with_fields)])
        named = [found[name] for name in ("user", "model", "chip", "prefill_chip")]
        return [found["request_id"], scope, *named, labels]

    def _text(self, source: _Source, field: Field) -> Pieces:
        if source.path is None:
            return None if source.constant is None else [source.constant]
        if self.template.kinds[source.path] is Kind.INTEGER and not field.numbers:
            raise _Unusable
        return [self.template.bound(source.path, field.bytes_max)]


_FIELDS = ("request_id", "user", "model", "chip", "prefill_chip")


class QuickJudge:
    """Learns templates of one mapping, and judges chunks with them."""

    def __init__(
        self, mapping: Mapping, judge: Judge, max_future_skew_ms: int, max_past_ms: int | None, not_before_ms: int = 0
    ) -> None:
        self._mapping, self._judge = mapping, judge
        self._lines = Lines(max_future_skew_ms, max_past_ms, not_before_ms)
        self._roles, self._candidates = _Roles(mapping), Candidates()
        self.learned = 0

    def __call__(self, records: Records, messages: Messages) -> Read:
        """Adds to `records` what surely counts."""
        counted, skipped, only_left = 0, 0, False
        while True:
            outcome = self._lines.read(records, messages, only_left)
            counted, skipped, only_left = counted + outcome.counted, skipped + outcome.skipped, True
            for begin, end, message, plan, was_skipped, _ in outcome.samples.tolist():
                line = messages.values.between(begin, end)
                self._judge_again(plan, line, int(messages.times[message]), bool(was_skipped))
            left = [
                Left(message, number, messages.values.between(begin, end))
                for begin, end, message, number in outcome.left.tolist()
            ]
            if not self._learn_from(left, messages):
                self._candidates.end([each.line for each in left])
                return Read(counted, skipped, left)

    # --- Learning ---

    def _learn_from(self, left: list[Left], messages: Messages) -> bool:
        if self.learned >= PLANS_MAX:
            return False
        lines = [each.line for each in left]
        return any(
            self.learn(lines[number], int(messages.times[left[number].message])) is not None
            for number in self._candidates.among(lines)
        )

    def learn(self, line: bytes, time: int) -> int | None:
        """From a line; None where it is no template."""
        try:
            verdict = self._judge(line, time)
            if verdict is None:
                return None
        except SkippedRecord:
            verdict = None
        except RefusedRecord:
            return None
        leaves = leaves_of(line, escapes=True)
        if leaves is None:
            return None
        try:
            program = self._plan(line, leaves, skipped=verdict is None).program(self._mapping)
        except _Unusable:
            return None
        number = self._lines.learn(program)
        if self._lines.judge(number, line, time)[0] == LEFT:
            self._lines.forget()
            return None
        self._judge_again(number, line, time, verdict is None)
        self.learned += 1
        return number

    def _plan(self, line: bytes, leaves: Leaves, skipped: bool) -> _Plan:
        template = Template(line, leaves, self._roles.kind_of)
        nothing = _Source(None)
        if skipped:
            return _Plan(template, True, {}, {}, {}, None, nothing, (), ())
        mapping, resolve = self._mapping, _Resolver(template, leaves)
        request_id = mapping.field("request_id")
        texts = {name: resolve.text(mapping.field(name)) for name in _FIELDS}
        texts["scope"] = resolve.scope(request_id)
        counts, fixed = resolve.counters(mapping)
        counts |= {field.name: resolve.count(field) for field in mapping.further}
        total = resolve.total(mapping.total) if mapping.total else None
        labels = tuple((label.name, resolve.text(label.field) if label.field else None) for label in mapping.labels)
        top = orjson.loads(line)
        beside, asked = self._judge.beside(top, total is not None)
        if total is not None and not asked:
            raise _Unusable  # it is not compared, but it has to be a count all the same
        time = resolve.time(mapping.field("timestamp"))
        return _Plan(template, False, texts, counts, fixed, total, time, labels, tuple(beside))

    # --- Looking again ---

    def judged(self, plan: int, line: bytes, time: int) -> Judged | None:
        """As the judge answers; None for one that is skipped."""
        verdict, answer = self._lines.judge(plan, line, time)
        return _as_judged(answer) if verdict == COUNTED else None

    def _judge_again(self, plan: int, line: bytes, time: int, was_skipped: bool) -> None:
        wanted = self.judged(plan, line, time)
        found: Judged | None
        try:
            found = self._judge(line, time)
        except SkippedRecord:
            found = None
        except RefusedRecord as why:
            raise VerifyError(f"two readings of one line differ, one refuses it ({why}): {line!r}") from None
        if found != wanted or was_skipped != (wanted is None):
            raise VerifyError(f"two readings of one line differ, {found} and {wanted}: {line!r}")


def _as_judged(answer: Answer) -> Judged:
    texts = [None if text is None else text.decode() for text in answer.texts]
    request_id, scope, user, model, chip, prefill_chip, labels = texts
    six, further = answer.numbers[:6], answer.numbers[6:]
    record = (request_id, scope, answer.time, user, model, chip, prefill_chip, *six, labels, *further)
    return record  # type: ignore[return-value]  # a list's length is not known


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
        decisions = [condition.path for entry in (*mapping.skip, *mapping.refuse) for condition in entry]
        decisions += [path for convention in mapping.conventions for path in convention.paths]
        decisions += [mapping.selector.by] if mapping.selector else []
        for path in decisions:
            self._of.setdefault(path, set()).add("decides")

    def kind_of(self, leaf: Leaf) -> Kind | None:
        roles = self._of.get(leaf.path, set()) if leaf.path is not None else set()
        if len(roles) > 1 or "decides" in roles:
            return None
        if not roles:
            return Kind.ANY_TEXT if leaf.is_text else Kind.SCALAR
        if leaf.is_text and roles == {"count"} and _PLAIN_INTEGER.fullmatch(leaf.text[1:-1]):
            return Kind.INTEGER  # between its quotes
        if leaf.is_text:
            return None if leaf.text == b'""' else Kind.NAME if roles == {"text"} else Kind.TEXT
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
        own_id = self._first(request_id.paths[:1] if request_id.scope_of_aliases else (), request_id.empty_is_absent)
        has_one = request_id.scope is not None and own_id is None
        leaf = self._first((request_id.scope,), request_id.empty_is_absent) if request_id.scope and has_one else None
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
