"""One line stands for many: what is fixed in it, and where values may differ.

    {"user":"ada","input_tokens":17,"status":200}        a line, and its template:
    {"user":"    ","input_tokens":  ,"status":   }       texts, a number, and a scalar that no field reads

A line that has a template's fixed text around values of the same kinds is the same JSON with other values: the same
keys in the same order, a string where that has a string, a number where that has one. So what was decided for the one
line by its keys and its types is decided for all of them. plan.h compares; here a line is taken apart.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

import orjson

from tokenometer.processor.verify.native import Program

Path = tuple[str, ...]
ANY_BYTES = 1 << 40  # more than a line has


class Kind(Enum):
    TEXT = "text"  # without escapes
    INTEGER = "integer"
    SCALAR = "scalar"  # a number, true, false or null, whichever: no field reads it
    NAME = "name"  # may have escapes, if what it says needs none
    ANY_TEXT = "any text"  # no field reads it


class Leaf(NamedTuple):
    """A string or a scalar of a line. path: None inside an array."""

    path: Path | None
    text: bytes  # with a string's quotes
    begin: int
    quotes: int  # that are before it

    @property
    def is_text(self) -> bool:
        return self.text[:1] == b'"'


class Leaves(NamedTuple):
    leaves: list[Leaf]
    containers: set[Path]  # where an object or an array is


_PLAIN = re.compile(rb"[ -\[\]-\xff]*")
_VISIBLE = re.compile(rb"[ -\xff]*")
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[{}\[\]:,]|[^ "{}\[\]:,]+')


@dataclass
class _Open:
    """An object or an array that is being read."""

    is_object: bool
    path: Path | None
    keys: set[str] = field(default_factory=set)
    key: str | None = None

    def inner(self) -> Path | None:
        return (*self.path, self.key) if self.is_object and self.path is not None and self.key is not None else None


def leaves_of(line: bytes, escapes: bool = False) -> Leaves | None:
    """What a line holds that is known to be a JSON object; None where a key occurs twice, or where something is a
    control character, or escaped (unless `escapes`)."""
    if (_VISIBLE if escapes else _PLAIN).fullmatch(line) is None:
        return None
    found = Leaves([], set())
    stack: list[_Open] = []
    quotes = 0
    for match in _TOKEN.finditer(line):
        token, inside = match[0], stack[-1] if stack else None
        if token in (b"{", b"["):
            path = inside.inner() if inside else ()
            if path is not None:
                found.containers.add(path)
            stack.append(_Open(token == b"{", path))
        elif token in (b"}", b"]"):
            stack.pop()
        elif inside is None or token == b":":
            continue
        elif token == b",":
            inside.key = None
        elif inside.is_object and inside.key is None:
            inside.key = orjson.loads(token)
            quotes += 2
            if inside.key in inside.keys:
                return None
            inside.keys.add(inside.key)
        else:
            found.leaves.append(Leaf(inside.inner(), token, match.start(), quotes))
            quotes += 2 if token[:1] == b'"' else 0
    return found


class Template:
    """kind_of: of a leaf that may differ between lines what it is, and None of one that must be the same."""

    def __init__(self, line: bytes, leaves: Leaves, kind_of: Callable[[Leaf], Kind | None]) -> None:
        self.kinds: dict[Path, Kind] = {}
        self.slots: dict[Path, int] = {}  # the number of each path's value
        self._kinds: list[Kind] = []
        self._bounds: dict[int, tuple[int, int]] = {}
        self._fixed: list[bytes] = []
        done = 0
        for leaf in leaves.leaves:
            kind = kind_of(leaf)
            if kind is None:
                continue
            if leaf.path is not None:
                self.kinds[leaf.path], self.slots[leaf.path] = kind, len(self._kinds)
            begin, end = leaf.begin + leaf.is_text, leaf.begin + len(leaf.text) - leaf.is_text
            self._kinds.append(kind)
            self._fixed.append(line[done:begin])
            done = end
        self._fixed.append(line[done:])

    @property
    def count(self) -> int:
        return len(self._kinds)

    def bound(self, path: Path, bytes_max: int) -> int:
        """The value there is read as a text of 1 to so many bytes. Returns its number."""
        slot = self.slots[path]
        self._bounds[slot] = 1, min(bytes_max, self._bounds.get(slot, (1, bytes_max))[1])
        return slot

    def write(self, program: Program) -> None:
        program.add(len(self._kinds))
        for number, kind in enumerate(self._kinds):
            program.add(_KINDS.index(kind), *self._bounds.get(number, (0, ANY_BYTES)))
        for text in self._fixed:
            program.literal(text)


_KINDS = [Kind.TEXT, Kind.INTEGER, Kind.SCALAR, Kind.NAME, Kind.ANY_TEXT]  # as in plan.h


# --- Which lines to learn from ---

WORTH = 64  # so many lines alike, and a template is cheaper than each by itself
PLANS_MAX = 256  # of one kind of log; one with more shapes is read line by line
_TRIES = 3  # lines with as many quotes, of a chunk, that turn out to be no templates
_LOOKED_AT = 4096  # lines of a chunk


class Candidates:
    """Lines from which something may be learned: those of which many have as many quotes, more or less, in a chunk or
    in all until now."""

    def __init__(self) -> None:
        self._left: Counter[int] = Counter()  # of chunks before, by their quotes
        self._begin()

    def _begin(self) -> None:
        self._tried: Counter[int] = Counter()
        self._known: set[bytes] = set()

    def among(self, lines: Sequence[bytes]) -> Iterator[int]:
        """The numbers of some of these lines; the next one is asked for only where nothing was learned."""
        counts = _quotes(lines)
        often = {quotes for quotes, times in Counter(counts).items() if times + self._left[quotes] >= WORTH and quotes}
        for number, quotes in enumerate(counts):
            if quotes not in often or self._tried[quotes] >= _TRIES or lines[number] in self._known:
                continue
            self._tried[quotes] += 1
            self._known.add(lines[number])
            yield number

    def end(self, lines: Sequence[bytes]) -> None:
        """These lines of a chunk were left."""
        self._left.update(_quotes(lines))
        self._begin()


def _quotes(lines: Sequence[bytes]) -> list[int]:
    return [line.count(b'"') - line.count(b'\\"') for line in lines[:_LOOKED_AT]]


# --- What texts are made of ---

Piece = bytes | int | tuple[int, Sequence[int], Sequence[bytes]]  # a literal; a value; of a bracket its counter,
Pieces = list[Piece] | None  # edges and names. None: no text


def write_text(program: Program, pieces: Pieces) -> None:
    if pieces is None:
        program.add(-1)
        return
    joined = list[Piece]()
    for piece in pieces:
        if isinstance(piece, bytes) and joined and isinstance(joined[-1], bytes):
            joined[-1] += piece
        else:
            joined.append(piece)
    program.add(len(joined))
    for piece in joined:
        if isinstance(piece, bytes):
            program.add(0)
            program.literal(piece)
        elif isinstance(piece, int):
            program.add(1, piece)
        else:
            counter, edges, names = piece
            program.add(2, counter, len(edges), *edges)
            for name in names:
                program.literal(name)


def json_object(members: Sequence[tuple[str, list[Piece]]]) -> list[Piece]:
    """values: as JSON has them. A value of a line has nothing that is escaped in JSON."""
    pieces = list[Piece]()
    for number, (name, value) in enumerate(members):
        pieces += [b"," if number else b"{", orjson.dumps(name), b":", *value]
    return [*pieces, b"}"] if members else [b""]


def json_array(values: Sequence[list[Piece]]) -> list[Piece]:
    pieces = list[Piece]([b"["])
    for number, value in enumerate(values):
        pieces += [b","] * bool(number) + value
    return [*pieces, b"]"]


def json_text(pieces: Pieces) -> list[Piece]:
    if pieces is None:
        return [b"null"]
    if len(pieces) == 1 and isinstance(pieces[0], bytes):
        return [orjson.dumps(pieces[0].decode())]
    return [b'"', *pieces, b'"']
