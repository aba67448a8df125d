"""A mapping, compiled for the parser: a tree of keys, a perfect hash over them, and the steps a log usually takes.

The tree and the hash decide what is read. The steps only predict which bytes are between two values, so learning them
from any sample, or from none, changes speed and nothing else.

A path that one field reads, and that holds what a field of format 1 may hold, is read where it is. Every other
value is *deferred* and read by a rule after the record's end (rules.h).
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from typing import Any, NamedTuple

import numpy as np

from tokenometer.kernels import layout
from tokenometer.kernels.nodes import Node, add_path, numbered, write_nodes
from tokenometer.kernels.steps import Steps, is_object
from tokenometer.kernels.steps import sample as sample
from tokenometer.schemas.mapping import STRING_BYTES_MAX, Condition, Convention, Field, Label, Mapping, Path
from tokenometer.schemas.usage import COUNTERS, FURTHER

_TEXT_SLOTS = {
    "request_id": layout.REQUEST_ID,
    "user": layout.USER,
    "model": layout.MODEL,
    "chip": layout.CHIP,
    "prefill_chip": layout.PREFILL_CHIP,
}
# `tokens` is where the parser keeps an event's count until its type says whose it is.
_COUNTER_SLOTS = {name: slot for slot, name in enumerate(COUNTERS)} | {"tokens": layout.INPUT}
_EPOCHS = {
    "epoch_s": layout.SECONDS,
    "epoch_ms": layout.MILLISECONDS,
    "epoch_us": layout.MICROSECONDS,
    "epoch_ns": layout.NANOSECONDS,
    "epoch_s_decimal": layout.DECIMAL_SECONDS,
}
_KINDS = {"string": layout.TEXT, "count": layout.COUNT, "time": layout.TIME}
_TESTS = {"in": layout.IN, "not_in": layout.NOT_IN, "present": layout.PRESENT, "absent": layout.ABSENT}
_PARTS = layout.CACHED_PART, layout.WRITE_PART, layout.REASONING_PART  # in the order of a mapping's conventions
_ESCAPED = re.compile(rb'["\\\x00-\x1f]')  # JSON has another spelling for these, and that is doubt
_STATED = {False: layout.INCLUSIVE, True: layout.ADDITIVE, None: layout.UNKNOWN}
# Of two alternatives the parser may have to read both; a rule reads one of them, but each for a second time.
_ALTERNATIVES_MAX = 2


class Need(NamedTuple):
    """Of records: the most that they could bring."""

    records: int
    texts: int
    arena_bytes: int
    further: int
    rows_each: int = 2  # one for the input where another chip read it, and one for the rest

    @property
    def rows(self) -> int:
        return self.rows_each * self.records

    @property
    def cells(self) -> int:
        return self.rows_each * self.records


@dataclass
class Plan:
    """What the parser reads for one mapping; `table` is the C++ Plan."""

    mapping: Mapping
    table: np.ndarray[Any, Any]
    prefix: bytes  # the mapping's default strings, for the head of every batch buffer
    record_bytes_min: int  # no accepted record is shorter
    # Each string's default, empty where there is none, and its place in the prefix
    defaults: list[tuple[bytes, int]] = field(default_factory=lambda: [(b"", 0)] * layout.TEXTS)
    label_defaults: list[tuple[bytes, int]] = field(default_factory=list)  # likewise
    nodes: list[Node] = field(default_factory=list)

    def learn(self, lines: Iterable[bytes]) -> bool:
        """Predict steps from sample lines; False, and no change, if none of them is a JSON object.

        Only valid JSON teaches: a literal that matched is not checked again.
        """
        objects = [line for line in lines if is_object(line)]
        if not objects:
            return False
        learned = Steps(self.nodes)
        learned.read(objects)
        write_nodes(self.table, learned.nodes)
        for node, counts in learned.counts.items():
            steps = self.table["start"] if node is None else self.table["next"][node]
            for i, ((literal, marks, key, quoted), _) in enumerate(counts.most_common(layout.STEPS)):
                to = Node(b"", layout.ROOT) if key == layout.END else learned.nodes[key]
                kind = to.kind | (layout.QUOTED if quoted else 0)
                steps[i] = (literal, marks, len(literal), key, kind, to.slot, to.digits, b"")
        return True

    @property
    def has_extras(self) -> bool:
        """Whether it reads labels or further counters."""
        return bool(self.mapping.labels or self.mapping.further)

    @property
    def note_counters(self) -> int:
        """How many counters are kept for each request id, where repeats grow."""
        if self.mapping.repeats != "grow":
            return 0
        return layout.TOKENS + (layout.FURTHER if self.mapping.further else 0)

    def number_labels(self, numbers: dict[str, int]) -> None:
        """Give the names of labels the numbers that they have in all mappings of an engine."""
        for label, out in zip(self.mapping.labels, self.table["labels"], strict=False):
            out["number"] = numbers.setdefault(label.name, len(numbers))
        assert len(numbers) < 1 << (64 - layout.PLACE_BITS), "8,191 names of labels in all mappings"

    def most(self, lines: int, size: int) -> "Need":
        """The most that so many lines of so many bytes could bring to tables."""
        records = min(lines, size // self.record_bytes_min + 1)
        accounts = records if self.mapping.labels else 0
        return Need(
            records=records,
            texts=self._most_values(lines, size, self._needed_names, self._text_bytes)
            + len(self.defaults)
            + accounts
            + self._given_labels,
            arena_bytes=size + len(self.prefix) + accounts * (4 + layout.LABEL_BYTES * len(self.mapping.labels)),
            further=self._most_values(lines, size, 0, self._further_bytes),
            rows_each=self._rows_each,
        )

    # Asked for every tile, so worked out once.
    @cached_property
    def _rows_each(self) -> int:
        return 2 if _may_differ(self.mapping.field("prefill_chip")) else 1

    @cached_property
    def _needed_names(self) -> int:
        return _needed_names(self.mapping)

    @cached_property
    def _text_bytes(self) -> list[int]:
        return _bytes_of_texts(self.mapping)

    @cached_property
    def _further_bytes(self) -> list[int]:
        return _bytes_of_further(self.mapping)

    @cached_property
    def _given_labels(self) -> int:
        """Values of labels that come from the mapping."""
        return sum(len(label.bracket.names) if label.bracket else 1 for label in self.mapping.labels)

    def _most_values(self, lines: int, size: int, each: int, costs: list[int]) -> int:
        """So many of each record, and optional values that cost so many bytes. Either few records have all of these, or
        many have few: a byte can bring only one of the two."""
        least, most = min(costs, default=0), 0
        for record_bytes in {self.record_bytes_min, self.record_bytes_min + len(costs) * least}:
            records = min(lines, size // record_bytes + 1)
            values = records * len(costs)
            if least:
                values = min(values, max(0, size - (records - 1) * self.record_bytes_min) // least + 1)
            most = max(most, each * records + values)
        return most

    def as_bytes(self) -> np.ndarray[Any, Any]:
        """The table as it travels to the device."""
        return self.table.reshape(1).view(np.uint8)


def compile_mapping(mapping: Mapping) -> Plan:
    """The plan of a mapping. Where that says more than a plan holds, every record is left to the referee."""
    plan = Plan(mapping, np.zeros((), layout.PLAN), b"", record_bytes_min=2)
    try:
        _Compiler(plan).compile()
    except _TooMuch:
        plan.table["has_rules"] = plan.table["undecided"] = True
    assert len(plan.prefix) <= layout.PREFIX_BYTES
    write_nodes(plan.table, plan.nodes)
    return plan


class _TooMuch(Exception):
    """The mapping says more than a plan holds."""


class _Compiler:
    def __init__(self, plan: Plan) -> None:
        self.plan, self.mapping, self.table, self.nodes = plan, plan.mapping, plan.table, plan.nodes
        self._readers = Counter(plan.mapping.paths)
        self._spots: dict[Path, int] = {}
        self._values = 0
        places = {path[:end] for path in plan.mapping.paths for end in range(1, len(path) + 1)}
        # Of 60 keys at most 50 have others below them, because a path has at most 6.
        self._marks = layout.MARKS - len({place[:-1] for place in places} - {()})

    def compile(self) -> None:
        table, mapping = self.table, self.mapping
        # What the referee's records need comes first.
        self.plan.record_bytes_min = _shortest_record(mapping)
        self._labels()
        for spec in mapping.fields:
            self._needs(spec)
            self._default(spec)
        self._time(mapping.field("timestamp"))
        identity = mapping.field("request_id")
        table["identity_with"] = sum(1 << _TEXT_SLOTS[name] for name in identity.with_fields)
        table["long_ids"] = identity.bytes_max > STRING_BYTES_MAX
        for spec in mapping.fields:
            self._field(spec)
        for slot, label in enumerate(mapping.labels):
            if label.field and label.field.paths:
                self._label_field(slot, label.field)
        for spec in mapping.further:
            self._further(spec)
        self._selector()
        if mapping.plain:
            table["input_additive"], table["output_additive"] = mapping.input_additive, mapping.output_additive
        if mapping.total or not mapping.plain:
            self._conventions()
        self._skip()
        self._number()
        table["spot_count"] = len(self._spots)
        table["has_rules"] = bool(self._spots or table["has_conventions"])

    def _number(self) -> None:
        numbers = numbered(self.nodes)
        for condition in self.table["conditions"][: int(self.table["condition_count"])]:
            condition["key"] = numbers[int(condition["key"])]

    # --- Fields ---

    def _needs(self, spec: Field) -> None:
        fallback = spec.name == "timestamp" and spec.message_time_fallback
        if spec.required or fallback:
            self.table["needed"] |= _have_bit(_KINDS[spec.kind], _slot(spec))

    def _default(self, spec: Field) -> None:
        if spec.default is None or spec.default == 0:
            return
        slot, plan = _slot(spec), self.plan
        self.table["defaulted"] |= _have_bit(_KINDS[spec.kind], slot)
        if spec.kind == "count":
            self.table["default_count"][slot] = spec.default
            return
        text = str(spec.default).encode()
        plan.defaults[slot] = text, len(plan.prefix)
        self.table["default_start"][slot], self.table["default_length"][slot] = len(plan.prefix), len(text)
        plan.prefix += text

    def _time(self, spec: Field) -> None:
        texts = {"rfc3339": layout.RFC3339, "iso8601": layout.ISO8601}
        table = self.table
        table["epoch"] = next((_EPOCHS[name] for name in spec.formats if name in _EPOCHS), layout.NO_EPOCH)
        table["time_texts"] = sum(texts.get(name, 0) for name in spec.formats)
        table["time_texts"] |= layout.DIGIT_TIMES if spec.digits else 0
        if spec.zone_minutes is not None:
            table["time_texts"] |= layout.ZONE
            table["zone_minutes"] = spec.zone_minutes
        table["message_time_fallback"] = spec.message_time_fallback

    def _field(self, spec: Field) -> None:
        kind, slot = _KINDS[spec.kind], _slot(spec)
        if self._is_direct(spec):
            for path in spec.paths:
                self._read(path, kind, slot, spec.digits)
        else:
            self._rule(kind, slot, spec.paths, spec)
        if spec.scope:
            special = spec.empty_is_absent or spec.numbers
            special = special or spec.scope_of_aliases
            if not special and self._readers[spec.scope] == 1 and self._afford((spec.scope,)):
                self._read(spec.scope, layout.TEXT, layout.SCOPE)
            else:
                own_id = spec.paths[:1] if spec.scope_of_aliases else ()  # before it, see apply_rule
                self._rule(layout.TEXT, layout.SCOPE, (*own_id, spec.scope), spec)

    # --- Labels and further counters ---

    def _labels(self) -> None:
        """The values of labels where a record has none."""
        table, labels = self.table, self.mapping.labels
        table["has_extras"], table["label_count"] = self.plan.has_extras, len(labels)
        table["labels_needed"] = sum(
            1 << slot for slot, label in enumerate(labels) if label.field and label.field.required
        )
        for label, out in zip(labels, table["labels"], strict=False):
            out["salt"] = int.from_bytes(sha256(label.name.encode()).digest()[:8], "little") | 1
            if label.bracket:
                out["counter"], out["edge_count"] = _COUNTER_SLOTS[label.bracket.counter], len(label.bracket.edges)
                out["edges"][: len(label.bracket.edges)] = label.bracket.edges
            self.plan.label_defaults.append((_default_of(label), len(self.plan.prefix)))
            for i, text in enumerate(label.bracket.names if label.bracket else [_default_of(label).decode()]):
                out["start"][i], out["length"][i] = len(self.plan.prefix), len(text.encode())
                self.plan.prefix += text.encode()

    def _label_field(self, slot: int, spec: Field) -> None:
        direct = len(spec.paths) == 1 and self._readers[spec.paths[0]] == 1 and not spec.numbers
        if direct and self._afford(spec.paths):
            flags = layout.EMPTY_IS_ABSENT if spec.empty_is_absent else 0
            add_path(self.nodes, spec.paths[0], layout.LABEL, slot, flags)
        else:
            self._rule(layout.LABEL, slot, spec.paths, spec)

    def _further(self, spec: Field) -> None:
        slot = FURTHER.index(spec.name)
        direct = len(spec.paths) == 1 and not spec.required and self._is_direct(spec)
        if direct:
            add_path(self.nodes, spec.paths[0], layout.FURTHER_COUNT, slot, spec.digits)
        else:  # an absent one is 0: it has no default among those of the counters
            self._rule(layout.FURTHER_COUNT, slot, spec.paths, replace(spec, default=None))

    def _is_direct(self, spec: Field) -> bool:
        """Whether the field is read where it is. A mapping of format 1 has no other fields."""
        special = spec.plus or spec.whole_numbers or spec.empty_is_absent or spec.numbers or spec.scope_of_aliases
        special = special or (spec.kind == "time" and (spec.digits or "iso8601" in spec.formats))
        many = self.mapping.format > 1 and len(spec.paths) > _ALTERNATIVES_MAX
        direct = not special and not many and all(self._readers[path] == 1 for path in spec.paths)
        return direct and self._afford(spec.paths)

    def _afford(self, paths: tuple[Path, ...]) -> bool:
        """Whether there are marks for these keys: those of a mapping with up to 50 have one."""
        if len(paths) > self._marks:
            return False
        self._marks -= len(paths)
        return True

    def _read(self, path: Path, kind: int, slot: int, digits: bool = False) -> None:
        add_path(self.nodes, path, kind, slot, digits, _have_bit(kind, slot))

    def _rule(self, kind: int, slot: int, paths: tuple[Path, ...], spec: Field) -> None:
        rule = self.table["rules"][int(self.table["rule_count"])]
        self._write_rule(rule, kind, slot, paths, spec)
        self.table["rule_count"] += 1

    def _write_rule(self, rule: Any, kind: int, slot: int, paths: tuple[Path, ...], spec: Field) -> None:
        flags = {
            layout.DIGITS: spec.digits,
            layout.WHOLE_NUMBERS: spec.whole_numbers,
            layout.EMPTY_IS_ABSENT: spec.empty_is_absent,
            layout.NUMBERS: spec.numbers,
            layout.OPTIONAL: spec.default is not None,
            layout.REQUIRED: spec.required,
        }
        spots = [self._spot(path) for path in (*paths, *spec.plus)]
        rule["kind"], rule["slot"], rule["paths"], rule["plus"] = kind, slot, len(paths), len(spec.plus)
        rule["flags"] = sum(flag for flag, on in flags.items() if on)
        rule["spots"][: len(spots)] = spots

    def _selector(self) -> None:
        selector = self.mapping.selector
        if selector is None:
            return
        self.table["needed"] |= layout.HAVE_SELECTOR
        for i, (value, counter) in enumerate(selector.to):
            counts = selector.requests in (None, value)
            self.table["choices"][i] = (value.encode(), len(value.encode()), _COUNTER_SLOTS[counter], counts, 0)
        self.table["choice_count"] = len(selector.to)
        if self._readers[selector.by] == 1 and self._afford((selector.by,)):
            self._read(selector.by, layout.SELECTOR, 0)
        else:
            self._rule(layout.SELECTOR, 0, (selector.by,), Field("tokens", "string", (), False, None))

    # --- Whole records ---

    def _spot(self, path: Path) -> int:
        """The number of the spot that keeps where the value at the path begins."""
        if path not in self._spots:
            assert len(self._spots) < layout.SPOTS_MAX, "more than the keys that a mapping may name"
            self._spots[path] = len(self._spots)
            key = add_path(self.nodes, path, layout.DEFERRED, self._spots[path])
            if self.nodes[key].kind == layout.OBJECT:  # on the way to others: only its presence is asked for
                self.nodes[key] = replace(self.nodes[key], kind=layout.DEFERRED_OBJECT, slot=self._spots[path])
        return self._spots[path]

    def _value(self, text: bytes, quoted: bool, stated: int = 0, begins: bool = False) -> None:
        if _ESCAPED.search(text):
            return
        if self._values == layout.VALUES_MAX:
            raise _TooMuch
        self.table["values"][self._values] = (text, len(text), quoted, stated, begins)
        self._values += 1

    def _conventions(self) -> None:
        self.table["has_conventions"] = True
        if total := self.mapping.total:
            if self._is_direct(total):
                self.table["needed"] |= _have_bit(layout.COUNT, layout.TOTAL) if total.required else 0
                for path in total.paths:
                    self._read(path, layout.COUNT, layout.TOTAL, total.digits)
            else:
                self._write_rule(self.table["total"], layout.COUNT, layout.TOTAL, total.paths, total)
        for part, convention in zip(_PARTS, self.mapping.conventions, strict=True):
            self._convention(part, convention)

    def _convention(self, part: int, convention: Convention) -> None:
        table = self.table
        if not convention.paths:
            table["additive"] |= part if convention.additive else 0
            table["by_total"] |= part if convention.by_total else 0
            return
        table["by_value"] |= part
        out = table["conventions"][part.bit_length() - 1]
        out["otherwise"] = layout.BY_TOTAL if convention.by_total else _STATED[convention.additive]
        out["paths"] = len(convention.paths)
        for number, path in enumerate(convention.paths):
            out["spots"][number] = self._spot(path)
        out["first"] = self._values
        listed = [str(value).encode() for value, _ in (*convention.values, *convention.prefixes)]
        if convention.prefixes and any(map(_ESCAPED.search, listed)):
            raise _TooMuch  # an escape could make another of them fit
        silent = layout.SILENT if convention.by_total else 0
        for text, additive in sorted(convention.prefixes, key=lambda item: len(item[0].encode())):
            self._value(text.encode(), True, _STATED[additive] | silent, begins=True)
        for value, additive in sorted(convention.values, key=lambda item: isinstance(item[0], bool)):  # strings first
            if isinstance(value, str):
                self._value(value.encode(), True, _STATED[additive] | silent)
            else:
                self._value(b"true" if value else b"false", False, _STATED[additive] | silent)
        out["count"] = self._values - int(out["first"])

    def _skip(self) -> None:
        entries = (*self.mapping.skip, *self.mapping.refuse)
        conditions = [(condition, condition is entry[-1]) for entry in entries for condition in entry]
        refusing = sum(map(len, self.mapping.refuse))
        # The deepest paths first: an object above another path is known as such when its own turn comes.
        for condition, _ in sorted(conditions, key=lambda item: -len(item[0].path)):
            self._spot(condition.path)
        for out, (condition, last) in zip(self.table["conditions"], conditions, strict=False):
            self._condition(out, condition)
            out["last"] = last
        self.table["conditions"]["refuses"][len(conditions) - refusing : len(conditions)] = 1
        self.table["condition_count"] = len(conditions)

    def _condition(self, out: Any, condition: Condition) -> None:
        out["test"], out["fits_absent"] = _TESTS[condition.test], condition.fits_absent
        out["spot"], out["key"] = self._spot(condition.path), add_path(self.nodes, condition.path, layout.DEFERRED, 0)
        out["first"] = self._values
        for text in condition.strings:
            self._value(text.encode(), True)
        for text in condition.prefixes:
            self._value(text.encode(), True, begins=True)
        for number in condition.integers:
            self._value(str(number).encode(), False)
        for boolean in condition.booleans:
            self._value(b"true" if boolean else b"false", False)
        out["count"] = self._values - int(out["first"])


def _shortest_record(mapping: Mapping) -> int:
    """No accepted record has fewer bytes, its newline included.

    Each key costs a comma, two quotes and a colon, and then a digit, two quotes and a byte, or two braces. The first of
    an object has no comma; the record's newline and the byte that an empty object would not hold make up for that.
    """
    needed = [spec for spec in mapping.fields if spec.required]
    readers = Counter(path for spec in needed for path in spec.paths)
    costs: dict[Path, int] = {}  # of keys that every record has
    for spec in needed:
        if len(spec.paths) == 1:
            [path] = spec.paths
            above = {path[:end]: len(path[end - 1].encode()) + 5 for end in range(1, len(path))}
            costs = above | costs | {path: max(costs.get(path, 0), _leaf_bytes(path, spec))}
    for spec in needed:
        # Only if none of its alternatives serves another needed field: then it is a key beside all others.
        if len(spec.paths) > 1 and all(readers[path] == 1 for path in spec.paths):
            costs[("", *spec.paths[0])] = min(_leaf_bytes(path, spec) for path in spec.paths)
    return 2 + sum(costs.values())


def _leaf_bytes(path: Path, spec: Field) -> int:
    quoted = spec.kind == "string" and not spec.numbers
    return len(path[-1].encode()) + (7 if quoted else 5)


def _names(mapping: Mapping) -> list[Field]:
    """The strings of a record that its rows have."""
    return [mapping.field(name) for name in ("user", "model", "chip", "prefill_chip")]


def _needed_names(mapping: Mapping) -> int:
    return sum(spec.required for spec in _names(mapping))


def _may_differ(prefill_chip: Field) -> bool:
    return bool(prefill_chip.paths) or prefill_chip.default is not None


def _bytes_of_texts(mapping: Mapping) -> list[int]:
    """Of each label, and each optional name, whose values may be texts of their own: how many bytes of a record one
    takes at least, beside those of needed fields. What a needed string reads, too, is no text of its own."""
    needed = [spec for spec in mapping.fields if spec.required]
    strings = {spec.paths[0] for spec in needed if spec.kind == "string" and len(spec.paths) == 1}
    others = {path for spec in needed if spec.kind != "string" for path in spec.paths}
    costs = []
    optional = [label.field for label in mapping.labels if label.field]
    optional += [spec for spec in _names(mapping) if not spec.required]
    for spec in optional:
        if not strings.issuperset(spec.paths):
            shared = not others.isdisjoint(spec.paths)
            costs.append(0 if shared else min(_leaf_bytes(path, spec) for path in spec.paths))
    return costs


def _bytes_of_further(mapping: Mapping) -> list[int]:
    readers = Counter(mapping.paths)
    paths = [(spec, (*spec.paths, *spec.plus)) for spec in mapping.further]
    return [
        0 if any(readers[path] > 1 for path in read) else min(_leaf_bytes(path, spec) for path in read)
        for spec, read in paths
    ]


def _default_of(label: Label) -> bytes:
    return b"" if label.field is None or label.field.default is None else str(label.field.default).encode()


def _slot(spec: Field) -> int:
    if spec.kind == "string":
        return _TEXT_SLOTS[spec.name]
    return _COUNTER_SLOTS[spec.name] if spec.kind == "count" else 0


def _have_bit(kind: int, slot: int) -> int:
    """Says that a field has a value."""
    bits = {
        layout.TEXT: 1 << slot,
        layout.COUNT: 1 << (slot + layout.HAVE_COUNTER),
        layout.TIME: layout.HAVE_TIME,
        layout.SELECTOR: layout.HAVE_SELECTOR,
    }
    return bits[kind]
