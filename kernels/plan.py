"""A mapping, compiled for the parser: a tree of keys, a perfect hash over them, and the steps a log usually takes.

The tree and the hash decide what is read. The steps only predict which bytes stand between two values, so learning them
from any sample, or from none, changes speed and nothing else.
"""

import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson

from tokenometer.kernels import layout
from tokenometer.schemas.mapping import Field, Mapping, Path
from tokenometer.schemas.usage import COUNTERS

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
_U64 = (1 << 64) - 1
_SAMPLE_LINES = 64
_SAMPLE_BYTES = 1 << 17


@dataclass(frozen=True)
class _Node:
    """A key in its place: the key `name` in the object of node `parent`."""

    name: bytes
    parent: int
    kind: int = layout.ORDINARY
    slot: int = 0
    digits: bool = False
    mark: int = 0


@dataclass
class Plan:
    """What the parser reads for one mapping; `table` is the C++ Plan."""

    mapping: Mapping
    table: np.ndarray[Any, Any]
    prefix: bytes  # the mapping's default strings, for the head of every batch buffer
    record_bytes_min: int  # no accepted record is shorter
    # Each string's default, empty where there is none, and its place in the prefix
    defaults: list[tuple[bytes, int]] = field(default_factory=lambda: [(b"", 0)] * layout.TEXTS)
    nodes: list[_Node] = field(default_factory=list)

    def learn(self, lines: Iterable[bytes]) -> bool:
        """Predict steps from sample lines; False, and no change, if none of them is a JSON object.

        Only valid JSON teaches: a literal that matched is not checked again.
        """
        objects = [line for line in lines if _is_object(line)]
        if not objects:
            return False
        learned = _Steps(self.nodes)
        learned.read(objects)
        _write_nodes(self.table, learned.nodes)
        for node, counts in learned.counts.items():
            steps = self.table["start"] if node is None else self.table["next"][node]
            for i, ((literal, marks, key, quoted), _) in enumerate(counts.most_common(layout.STEPS)):
                to = _Node(b"", layout.ROOT) if key == layout.END else learned.nodes[key]
                kind = to.kind | (layout.QUOTED if quoted else 0)
                steps[i] = (literal, marks, len(literal), key, kind, to.slot, to.digits, b"")
        return True

    def as_bytes(self) -> np.ndarray[Any, Any]:
        """The table as it travels to the device."""
        return self.table.reshape(1).view(np.uint8)


def compile_mapping(mapping: Mapping) -> Plan:
    table = np.zeros((), layout.PLAN)
    plan = Plan(mapping, table, b"", record_bytes_min=2)
    needed = 0
    for spec in mapping.fields:
        kind = {"string": layout.TEXT, "count": layout.COUNT, "time": layout.TIME}[spec.kind]
        have = _have_bit(kind, _slot(spec))
        if spec.required or (spec.name == "timestamp" and spec.message_time_fallback):
            needed |= have
        if spec.required:
            # The shortest way to write it: comma, quoted key, colon, and a digit or two quotes and a byte.
            shortest = min(len(path[-1].encode()) for path in spec.paths)
            plan.record_bytes_min += shortest + (5 if spec.kind == "count" else 6)
        for path in spec.paths:
            _add_path(plan.nodes, path, kind, _slot(spec), spec.digits)
        if spec.scope:
            _add_path(plan.nodes, spec.scope, layout.TEXT, layout.SCOPE, False)
        if spec.kind == "string" and spec.default is not None:
            text = str(spec.default).encode()
            plan.defaults[_slot(spec)] = text, len(plan.prefix)
            table["default_start"][_slot(spec)] = len(plan.prefix)
            table["default_length"][_slot(spec)] = len(text)
            table["defaulted"] |= have
            plan.prefix += text
        if spec.kind == "count" and spec.default:
            table["default_count"][_slot(spec)] = spec.default
            table["defaulted"] |= have
    if mapping.selector:
        needed |= layout.HAVE_SELECTOR
        _add_path(plan.nodes, mapping.selector.by, layout.SELECTOR, 0, False)
        for i, (value, counter) in enumerate(mapping.selector.to):
            counts = mapping.selector.requests in (None, value)
            table["choices"][i] = (value.encode(), len(value.encode()), _COUNTER_SLOTS[counter], counts, 0)
        table["choice_count"] = len(mapping.selector.to)
    time = mapping.field("timestamp")
    table["needed"] = needed
    table["epoch"] = next((_EPOCHS[name] for name in time.formats if name in _EPOCHS), layout.NO_EPOCH)
    table["rfc3339"] = "rfc3339" in time.formats
    table["message_time_fallback"] = time.message_time_fallback
    table["input_additive"], table["output_additive"] = mapping.input_additive, mapping.output_additive
    assert len(plan.prefix) <= layout.PREFIX_BYTES
    _write_nodes(table, plan.nodes)
    return plan


def _slot(spec: Field) -> int:
    if spec.kind == "string":
        return _TEXT_SLOTS[spec.name]
    return _COUNTER_SLOTS[spec.name] if spec.kind == "count" else 0


def _have_bit(kind: int, slot: int) -> int:
    """Says that a field has a value; none of an object."""
    bits = {
        layout.TEXT: 1 << slot,
        layout.COUNT: 1 << (slot + layout.HAVE_COUNTER),
        layout.TIME: layout.HAVE_TIME,
        layout.SELECTOR: layout.HAVE_SELECTOR,
    }
    return bits.get(kind, 0)


def _add_path(nodes: list[_Node], path: Path, kind: int, slot: int, digits: bool) -> None:
    parent = layout.ROOT
    for depth, key in enumerate(path):
        place = (key.encode(), parent)
        known = next((i for i, node in enumerate(nodes) if (node.name, node.parent) == place), None)
        if known is None:
            leaf = depth == len(path) - 1
            known = len(nodes)
            mark = 1 << known | (_have_bit(kind, slot) << layout.HAVE_SHIFT if leaf else 0)
            nodes.append(_Node(*place, kind, slot, digits, mark) if leaf else _Node(*place, layout.OBJECT, mark=mark))
        parent = known


# --- The perfect hash: find_key in parse.h ---


def _hash(node: _Node, multiplier: int) -> int:
    value = (len(node.name) << 8 | node.parent) * multiplier & _U64
    for i in range(0, len(node.name), 8):
        value = ((value << 29 | value >> 35) & _U64) ^ int.from_bytes(node.name[i : i + 8], "little")
        value = value * multiplier & _U64
    return value >> 56


def _write_nodes(table: np.ndarray[Any, Any], nodes: list[_Node]) -> None:
    """Put nodes into the table under a multiplier that gives each a bucket of its own; forget all steps."""
    table["keys"] = np.zeros(layout.KEYS_MAX, layout.KEY)
    table["start"], table["next"] = _NO_STEP, _NO_STEP
    for i, node in enumerate(nodes):
        key = table["keys"][i]
        key["text"], key["length"], key["object"] = node.name, len(node.name), node.parent
        key["kind"], key["slot"], key["digits"], key["mark"] = node.kind, node.slot, node.digits, node.mark
    draw = random.Random(len(nodes))
    while True:  # 64 keys in 256 buckets: one draw in 3,000 succeeds, fewer keys sooner
        multiplier = draw.getrandbits(64) | 1
        buckets: dict[int, int] = {}
        for i, node in enumerate(nodes):
            if buckets.setdefault(_hash(node, multiplier), i) != i:
                break
        else:
            break
    table["multiplier"] = multiplier
    table["buckets"] = 255
    for bucket, i in buckets.items():
        table["buckets"][bucket] = i


# --- Learning steps ---

# Matches no JSON: a NUL before the record's end, and even there it only leads to doubt, one byte past that end.
_NO_STEP = np.array((b"\0\n", 0, 2, layout.END, 0, 0, 0, b""), layout.STEP)

_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[{}\[\]:,]|[^\s{}\[\]:,"]+')
_LEARNED_MAX = 40  # keys in all; each ordinary key costs a bucket, and long records are not worth more
_STEADY_SHARE = 0.95
_STEADY_BYTES_MAX = 40  # of a literal that ends in a steady value, so that the next key still fits
_Step = tuple[bytes, int, int, bool]  # literal, marks, key, quoted
_Value = tuple[int | None, int, int, int]  # key (None if unknown, or END), marks since the last value, start, end


class _Steps:
    """Counts which literal leads from the end of one known value to the start of the next.

    A value that is nearly always the same, such as `"status":200`, is part of the literal around it.
    """

    def __init__(self, mapped: list[_Node]) -> None:
        self.nodes = list(mapped)
        self.index = {(node.name, node.parent): i for i, node in enumerate(mapped)}
        self.counts: dict[int | None, Counter[_Step]] = {}

    def read(self, lines: list[bytes]) -> None:
        walks = [(line, list(self._values(line))) for line in lines]
        steady = self._steady(walks)
        for line, walk in walks:
            before: int | None = None  # the last known value's key; None at the record's start
            end: int | None = 0  # where its value ended; None behind a value of an unknown key
            passed = 0  # marks of the keys since
            for key, marks, start, value_end in walk:
                if passed & marks:
                    break  # likewise, over a steady value
                passed |= marks
                if key in steady and (end is None or value_end - end < _STEADY_BYTES_MAX):
                    continue
                if end is not None and key is not None:
                    quoted = line[start : start + 1] == b'"'
                    self._count(before, (line[end : start + quoted], passed, key, quoted))
                before, end, passed = key, value_end if key is not None else None, 0

    def _steady(self, walks: list[tuple[bytes, list[_Value]]]) -> set[int]:
        """Ordinary keys of which as many values as steps are predicted make up nearly all."""
        seen: dict[int, Counter[bytes]] = {}
        for line, walk in walks:
            for key, _, start, end in walk:
                if key is not None and key != layout.END and not self.nodes[key].mark:
                    seen.setdefault(key, Counter())[line[start:end]] += 1
        return {
            key
            for key, values in seen.items()
            if sum(count for _, count in values.most_common(layout.STEPS)) >= _STEADY_SHARE * values.total()
        }

    def _count(self, before: int | None, step: _Step) -> None:
        if len(step[0]) <= layout.LITERAL_BYTES_MAX:
            self.counts.setdefault(before, Counter())[step] += 1

    def _values(self, line: bytes) -> Iterator[_Value]:
        """Each value in a tracked object, and END."""
        tokens = [(match.group(), match.start(), match.end()) for match in _TOKEN.finditer(line)]
        objects = [layout.ROOT]
        marks = 0
        at = 1
        if not tokens or tokens[0][0] != b"{":
            return
        while at + 2 < len(tokens) or (at < len(tokens) and tokens[at][0] == b"}"):
            text = tokens[at][0]
            if text == b"}":
                objects.pop()
                if not objects:
                    yield layout.END, marks, len(line), len(line)
                    return
                at += 1
            elif text == b",":
                at += 1
            else:
                key = self._key(text[1:-1], objects[-1])
                node = self.nodes[key] if key is not None else None
                if node and node.mark & marks:
                    return  # a mapped key twice: nothing to learn from
                marks |= node.mark if node else 0
                at += 2
                if node and node.kind == layout.OBJECT and tokens[at][0] == b"{":
                    assert key is not None
                    objects.append(key)
                    at += 1
                    continue
                last = _value_last(tokens, at)
                if last is None:
                    return
                yield key, marks, tokens[at][1], tokens[last][2]
                marks = 0
                at = last + 1

    def _key(self, name: bytes, parent: int) -> int | None:
        known = self.index.get((name, parent))
        if known is None and len(self.nodes) < _LEARNED_MAX and len(name) <= layout.KEY_BYTES_MAX and b"\\" not in name:
            known = self.index[name, parent] = len(self.nodes)
            self.nodes.append(_Node(name, parent))
        return known


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(orjson.loads(line), dict)
    except orjson.JSONDecodeError:
        return False


def _value_last(tokens: list[tuple[bytes, int, int]], at: int) -> int | None:
    """The index of a value's last token; None where the line ends before."""
    depth = 0
    for i in range(at, len(tokens)):
        depth += (tokens[i][0] in (b"{", b"[")) - (tokens[i][0] in (b"}", b"]"))
        if depth <= 0:
            return i
    return None


def sample(data: np.ndarray[Any, Any]) -> list[bytes]:
    """Some of the lines that a batch begins with."""
    lines = data[:_SAMPLE_BYTES].tobytes().split(b"\n")[:-1]
    return lines[:: max(1, len(lines) // _SAMPLE_LINES)][:_SAMPLE_LINES]
