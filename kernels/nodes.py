"""Keys in their places: the tree of all paths of a mapping, and a perfect hash over it (find_key in parse.h)."""

import random
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from tokenometer.kernels import layout
from tokenometer.schemas.mapping import Path

# Matches no JSON: a NUL before the record's end, and even there it only leads to doubt, one byte past that end.
NO_STEP = np.array((b"\0\n", 0, 2, layout.END, 0, 0, 0, b""), layout.STEP)


@dataclass(frozen=True)
class Node:
    """A key in its place: the key `name` in the object of node `parent`."""

    name: bytes
    parent: int
    kind: int = layout.ORDINARY
    slot: int = 0
    digits: int = 0  # as Step::digits
    mark: int = 0


def add_path(nodes: list[Node], path: Path, kind: int, slot: int, digits: int = 0, have: int = 0) -> int:
    """The number of the path's last key; it and those above it are added where they are not there yet.

    have: the bit which says that the field has a value.
    """
    parent = layout.ROOT
    for depth, key in enumerate(path):
        place = (key.encode(), parent)
        known = find(nodes, *place)
        if known is None:
            leaf = depth == len(path) - 1
            known = len(nodes)
            have_mark = have << layout.HAVE_SHIFT if leaf else 0
            nodes.append(Node(*place, kind, slot, digits, have_mark) if leaf else Node(*place, layout.OBJECT))
        parent = known
    return parent


def numbered(nodes: list[Node]) -> list[int]:
    """Give each key its mark, in place, and the new number of each: those that need a mark come first."""
    order = list(range(len(nodes)))
    if len(nodes) > layout.MARKS:
        order.sort(key=lambda i: nodes[i].kind == layout.DEFERRED)
    numbers = [0] * len(nodes)
    for new, old in enumerate(order):
        numbers[old] = new
    found = []
    for new, old in enumerate(order):
        node = nodes[old]
        assert new < layout.MARKS or node.kind == layout.DEFERRED, "a key without a mark"
        mark = node.mark | (1 << new if new < layout.MARKS else 0)
        parent = node.parent if node.parent == layout.ROOT else numbers[node.parent]
        found.append(replace(node, parent=parent, mark=mark))
    nodes[:] = found
    return numbers


def find(nodes: list[Node], name: bytes, parent: int) -> int | None:
    return next((i for i, node in enumerate(nodes) if (node.name, node.parent) == (name, parent)), None)


@lru_cache(maxsize=256)  # a plan that learns anew, and the next engine, mostly come with the same keys
def _perfect(places: tuple[tuple[bytes, int], ...]) -> tuple[int, list[int]]:
    """A multiplier that gives each key (its name and its object) a bucket of its own, and these buckets."""
    draw = random.Random(len(places))
    tries = 8
    while True:  # 64 keys in 256 buckets: one draw in 3,000 succeeds, fewer keys sooner
        multipliers = np.array([draw.getrandbits(64) | 1 for _ in range(tries)], np.uint64)
        buckets = _buckets(places, multipliers)
        ordered = np.sort(buckets)
        apart = (ordered[:, 1:] != ordered[:, :-1]).all(axis=1)
        if apart.any():
            first = int(apart.argmax())
            return int(multipliers[first]), buckets[first].tolist()
        tries = 512


def _buckets(places: tuple[tuple[bytes, int], ...], multipliers: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """As find_key hashes: a row for each multiplier, a column for each key."""
    factors = multipliers[:, np.newaxis]
    lengths = np.array([len(name) for name, _ in places], np.uint64)
    objects = np.array([parent for _, parent in places], np.uint64)
    width = -(-int(lengths.max(initial=0)) // 8)
    padded = b"".join(name.ljust(8 * width, b"\0") for name, _ in places)
    words = np.frombuffer(padded, "<u8").reshape(len(places), width)
    values = (lengths << np.uint64(8) | objects) * factors
    for i in range(width):
        rotated = values << np.uint64(29) | values >> np.uint64(35)
        values = np.where(lengths > 8 * i, (rotated ^ words[:, i]) * factors, values)
    buckets: np.ndarray[Any, Any] = (values >> np.uint64(56)).astype(np.uint8)
    return buckets


def write_nodes(table: np.ndarray[Any, Any], nodes: list[Node]) -> None:
    """Put nodes into the table under a multiplier that gives each a bucket of its own; forget all steps."""
    table["keys"] = np.zeros(layout.KEYS_MAX, layout.KEY)
    table["start"], table["next"] = NO_STEP, NO_STEP
    for i, node in enumerate(nodes):
        table["keys"][i] = (node.name, node.mark, len(node.name), node.parent, node.kind, node.slot, node.digits, 0)
    table["multiplier"], buckets = _perfect(tuple((node.name, node.parent) for node in nodes))
    table["buckets"] = 255
    table["buckets"][buckets] = range(len(nodes))
