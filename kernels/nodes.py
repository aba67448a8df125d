"""Keys in their places: the tree of all paths of a mapping, and a perfect hash over it (find_key in parse.h)."""

import random
from dataclasses import dataclass
from typing import Any

import numpy as np

from tokenometer.kernels import layout
from tokenometer.schemas.mapping import Path

_U64 = (1 << 64) - 1
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
            mark = 1 << known | (have << layout.HAVE_SHIFT if leaf else 0)
            nodes.append(Node(*place, kind, slot, digits, mark) if leaf else Node(*place, layout.OBJECT, mark=mark))
        parent = known
    return parent


def find(nodes: list[Node], name: bytes, parent: int) -> int | None:
    return next((i for i, node in enumerate(nodes) if (node.name, node.parent) == (name, parent)), None)


def _hash(node: Node, multiplier: int) -> int:
    value = (len(node.name) << 8 | node.parent) * multiplier & _U64
    for i in range(0, len(node.name), 8):
        value = ((value << 29 | value >> 35) & _U64) ^ int.from_bytes(node.name[i : i + 8], "little")
        value = value * multiplier & _U64
    return value >> 56


def write_nodes(table: np.ndarray[Any, Any], nodes: list[Node]) -> None:
    """Put nodes into the table under a multiplier that gives each a bucket of its own; forget all steps."""
    table["keys"] = np.zeros(layout.KEYS_MAX, layout.KEY)
    table["start"], table["next"] = NO_STEP, NO_STEP
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
