"""Whether a mapped key occurs twice in its object. Readers would disagree, and orjson keeps the last one silently.

A part of the audit's judge, and as independent of the engine and of the referee as that.
"""

import re
from typing import Any

import orjson

from tokenometer.schemas.mapping import Mapping, Path

_Tree = dict[str, Any]  # a mapped key -> the mapped keys below it
_Inner = list[tuple[str, Any]]  # the same of objects only
_STRING_OR_BRACKET = re.compile(rb'"(?:[^"\\]+|\\.)*+"|[{}\[\]:,]')


class RepeatedKeys:
    """Whether a key on any mapped path occurs twice in its object."""

    def __init__(self, mapping: Mapping) -> None:
        paths = _all_paths(mapping)
        self._tree: _Tree = {}
        for path in paths:
            here = self._tree
            for key in path:
                here = here.setdefault(key, {})
        self._inner = _inner_of(self._tree)
        self._quoted = [orjson.dumps(key) for key in sorted({key for path in paths for key in path})]

    def __call__(self, line: bytes, top: dict[str, Any]) -> bool:
        """Two quick answers first. Every member has a colon: as many colons as different keys, and none is repeated.
        And without a backslash a key is spelled in one way only, so that one that is repeated is found twice."""
        keys = len(top) + (_keys_below(top, self._inner) if self._inner else 0)
        if line.count(b":") == keys:
            return False
        if b"\\" not in line and not any(line.count(quoted) > 1 for quoted in self._quoted):
            return False
        return _stands_twice(line, self._tree)


def _all_paths(mapping: Mapping) -> list[Path]:
    """The paths are gathered here once more, because an audit that asked the mapping would share its mistakes."""
    fields = [*mapping.fields, *mapping.further, *([mapping.total] if mapping.total else [])]
    fields += [label.field for label in mapping.labels if label.field]
    paths = [path for field in fields for path in (*field.paths, *field.plus)]
    paths += [field.scope for field in fields if field.scope]
    paths += [mapping.selector.by] if mapping.selector else []
    paths += [condition.path for entry in (*mapping.skip, *mapping.refuse) for condition in entry]
    paths += [path for convention in mapping.conventions for path in convention.paths]
    return paths


def _inner_of(tree: _Tree) -> _Inner:
    return [(key, _inner_of(below)) for key, below in tree.items() if below]


def _keys_below(here: dict[str, Any], inner: _Inner) -> int:
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
