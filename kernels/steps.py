"""The steps that a log usually takes from one value to the next, learned from sample lines."""

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson

from tokenometer.kernels import layout
from tokenometer.kernels.nodes import Node

_SAMPLE_LINES = 64
SAMPLE_BYTES = 1 << 17
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[{}\[\]:,]|[^\s{}\[\]:,"]+')
_LEARNED_MAX = 40  # keys in all; each ordinary key costs a bucket, and long records are not worth more
_ORDINARY_MIN = 8  # of these, for a mapping with many keys of its own
_STEADY_SHARE = 0.95
_STEADY_BYTES_MAX = 40  # of a literal that ends in a steady value, so that the next key still fits
_Step = tuple[bytes, int, int, bool]  # literal, marks, key, quoted
_Value = tuple[int | None, int, int, int]  # key (None if unknown, or END), marks since the last value, start, end


class Steps:
    """Counts which literal leads from the end of one known value to the start of the next.

    A value that is nearly always the same, such as `"status":200`, is part of the literal around it.
    """

    def __init__(self, mapped: list[Node]) -> None:
        self.nodes = list(mapped)
        self.most = min(max(_LEARNED_MAX, len(mapped) + _ORDINARY_MIN), layout.KEYS_MAX)
        self.index = {(node.name, node.parent): i for i, node in enumerate(mapped)}
        self.counts: dict[int | None, Counter[_Step]] = {}

    def read(self, lines: list[bytes]) -> None:
        walks = [(line, list(self._values(line))) for line in lines]
        steady = self._steady(walks)
        for line, walk in walks:
            before: int | None = None  # the last known value's key; None at the record's start
            end: int | None = 0  # where its value ended; None after a value of an unknown key
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
                if key is not None and key != layout.END and self.nodes[key].kind == layout.ORDINARY:
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
                if node and node.kind in (layout.OBJECT, layout.DEFERRED_OBJECT) and tokens[at][0] == b"{":
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
        if known is None and len(self.nodes) < self.most and len(name) <= layout.KEY_BYTES_MAX and b"\\" not in name:
            known = self.index[name, parent] = len(self.nodes)
            self.nodes.append(Node(name, parent))
        return known


def is_object(line: bytes) -> bool:
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
    lines = data[:SAMPLE_BYTES].tobytes().split(b"\n")[:-1]
    return lines[:: max(1, len(lines) // _SAMPLE_LINES)][:_SAMPLE_LINES]
