"""Keys that occur twice in an object: orjson keeps the last one silently. Pure."""

import re
from dataclasses import dataclass
from typing import Any

import orjson

from tokenometer.schemas.mapping import Mapping

_CONTAINERS = (dict, list)
_KEY_END = re.compile(rb'"[ \t\r]*:')
# What comes before the first key that has an escape. It reads each string once; a search for the escape would read the
# rest of a text anew at each of its escapes.
_NO_ESCAPED_KEY = re.compile(rb'(?:[^"]++|"[^"\\]*+"|"(?:[^"\\]++|\\.)*+"(?![ \t\r]*:))*+')
_TOKEN = re.compile(rb'("(?:[^"\\]++|\\.)*+")[ \t\r]*(:?)|[{}\[\]]')

_Node = dict[str, Any]  # key -> what matters below it; a leaf's is empty


@dataclass(frozen=True)
class KeyTree:
    """The keys of all mapped paths."""

    root: _Node
    quoted: tuple[bytes, ...]  # each distinct key as it is mostly spelled


def tree_of(mapping: Mapping) -> KeyTree:
    """Of what the mapping reads."""
    root: _Node = {}
    for path in mapping.paths:
        node = root
        for key in path:
            node = node.setdefault(key, {})
    return KeyTree(root, tuple(orjson.dumps(key) for key in {key for path in mapping.paths for key in path}))


def could_repeat(record: bytes, value: dict[str, Any], tree: KeyTree) -> bool:
    """A quick no for most records: a key that occurs twice is spelled twice, unless one of the two has an escape.

    A string may hold what looks like a key's end, so the count of those may be too large, never too small.
    """
    if b"\\" in record and _NO_ESCAPED_KEY.match(record).end() < len(record):  # type: ignore[union-attr]
        keys = _key_count(record, value)
        return record.count(b":") > keys and len(_KEY_END.findall(record)) > keys
    count = record.count
    for key in tree.quoted:  # a loop: a generator costs as much as what it counts
        if count(key) > 1:
            return True
    return False


def _key_count(record: bytes, value: dict[str, Any]) -> int:
    """The number of keys of an object and all that it holds."""
    if record.count(b"{") == 1 and b"[" not in record:
        return len(value)
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


def repeats(record: bytes, root: _Node) -> bool:
    """Whether a key on a mapped path occurs twice in its object. `record` is valid JSON and an object."""
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
