"""One line stands for many: what is fixed in it, and where values may differ.

    {"user":"ada","input_tokens":17,"status":200}        a line, and its template:
    {"user":"    ","input_tokens":  ,"status":   }       texts, a number, and a scalar that no field reads

A line that has a template's fixed text around its own values, at places that follow from its quotes, is the same JSON
with other values: the same keys in the same order, a string where that has a string, a number where that has one. So
what was decided for the one line by its keys and its types is decided for all of them.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from tokenometer.processor.verify.pages import PAD, WORD, Flags, Ints, Page, Places

Path = tuple[str, ...]
_Plan = TypeVar("_Plan")
_Found = TypeVar("_Found")
_Found_co = TypeVar("_Found_co", covariant=True)
_BLOCK = 1024  # lines that are matched at once: what is made of them stays in a core's cache
_FIXED_MAX = PAD - 2 * WORD  # bytes between two values: what is read of a page stays within it


class Kind(Enum):
    TEXT = "text"
    INTEGER = "integer"
    SCALAR = "scalar"  # a number, true, false or null, whichever: no field reads it


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


_TOKEN = re.compile(rb'"[^"]*"|[{}\[\]:,]|[^ "{}\[\]:,]+')


@dataclass
class _Open:
    """An object or an array that is being read."""

    is_object: bool
    path: Path | None
    keys: set[str] = field(default_factory=set)
    key: str | None = None

    def inner(self) -> Path | None:
        return (*self.path, self.key) if self.is_object and self.path is not None and self.key is not None else None


def leaves_of(line: bytes) -> Leaves | None:
    """What a line without escapes holds, that is known to be a JSON object; None where a key occurs twice."""
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
            inside.key = token[1:-1].decode()
            quotes += 2
            if inside.key in inside.keys:
                return None
            inside.keys.add(inside.key)
        else:
            found.leaves.append(Leaf(inside.inner(), token, match.start(), quotes))
            quotes += 2 if token[:1] == b'"' else 0
    return found


class _Pieces:
    """Fixed texts in words of 16 bytes, to be compared with a line's; a text's last word overlaps the one before.
    after: the step after whose value each is, with 0 for the beginning of the line."""

    def __init__(self, texts: Sequence[bytes]) -> None:
        after, offsets, wanted, masks = [], [], [], []
        for step, text in enumerate(texts):
            for at in [*range(0, len(text) - WORD, WORD), max(0, len(text) - WORD)] if text else []:
                piece = text[at : at + WORD]
                after.append(step)
                offsets.append(at)
                wanted += [int.from_bytes(piece[i : i + 8], "little") for i in (0, 8)]
                masks += [(1 << 8 * len(piece[i : i + 8])) - 1 for i in (0, 8)]
        self._after, self._offsets = np.array(after, np.int64), np.array(offsets, np.int64)[:, None]
        self._wanted, self._masks = (np.array(each, np.uint64).reshape(-1, 2) for each in (wanted, masks))

    def stand_at(self, page: Page, places: Ints) -> Flags:
        """places: of the lines' beginnings one row, and one of the ends of each value."""
        words = page.words(places[self._after] + self._offsets)
        same = np.ones(places.shape[1], bool)
        for half in (0, 1):
            kept = words[..., half] & self._masks[:, half, None]
            same &= (kept == self._wanted[:, half, None]).all(axis=0)
        return same


class Template:
    """kind_of: of a leaf that may differ between lines what it is, and None of one that must be the same."""

    def __init__(self, line: bytes, leaves: Leaves, kind_of: Callable[[Leaf], Kind | None]) -> None:
        self.kinds: dict[Path, Kind] = {}
        self._steps: dict[Path, int] = {}
        texts, ends, after, opening, scalars = list[bytes](), list[int](), list[int](), list[int](), list[int]()
        in_one_gap = Counter(leaf.quotes for leaf in leaves.leaves if not leaf.is_text)
        done = 0
        for leaf in leaves.leaves:
            kind = kind_of(leaf)
            if kind is None or (not leaf.is_text and in_one_gap[leaf.quotes] > 1):
                continue  # two scalars without a quote between them have no places that follow from quotes
            begin, end = leaf.begin + leaf.is_text, leaf.begin + len(leaf.text) - leaf.is_text
            next_quote = line.find(b'"', end)
            texts.append(line[done:begin])
            ends.append(leaf.quotes + leaf.is_text)
            after.append((next_quote if next_quote >= 0 else len(line)) - end)
            if leaf.is_text:
                opening.append(len(ends) - 1)
            else:
                scalars.append(len(ends) - 1)
            if leaf.path is not None:
                self.kinds[leaf.path], self._steps[leaf.path] = kind, len(ends) - 1
            done = end
        texts.append(line[done:])
        self.usable = bool(ends) and max(map(len, texts)) <= _FIXED_MAX
        self._pieces, self._last = _Pieces(texts), len(texts[-1])
        self._lengths = np.array([len(text) for text in texts[:-1]], np.int64)
        self._ends, self._after = np.array(ends, np.int64), np.array(after, np.int64)
        self._texts, self._scalars = np.array(opening, np.int64), np.array(scalars, np.int64)

    def match(self, page: Page, lines: Ints, read: Sequence[Path]) -> tuple[Ints, dict[Path, Places]]:
        """Which of these lines, all with as many quotes, are of this template: their indices; and where the values are
        that are read. Scalars that nobody reads are checked here; what is read is still to be checked."""
        unread = [n for n in self._scalars.tolist() if n not in {self._steps.get(path) for path in read}]
        steps = [self._steps[path] for path in read]
        parts = []
        for first in range(0, len(lines), _BLOCK):
            index, begin, length = self._match(page, lines[first : first + _BLOCK], unread)
            parts.append((index + first, begin[steps], length[steps]))
        index, begins, lengths = (np.concatenate(each, axis=-1) for each in zip(*parts, strict=True))
        return index, dict(zip(read, zip(begins, lengths, strict=True), strict=True))

    def _match(self, page: Page, lines: Ints, unread: list[int]) -> tuple[Ints, Ints, Ints]:
        """The indices of some lines, and where the values of each begin and how long they are.

        A value ends with the quote after it, or so many bytes before that; it begins where fixed text after the value
        before it ends. A text must begin after its opening quote, too.
        """
        first = page.first_mark[lines]
        places = np.empty((len(self._ends) + 1, len(lines)), np.int64)
        places[0] = page.begins[lines]
        places[1:] = page.marks[first + self._ends[:, None]] - self._after[:, None]
        begins = places[:-1] + self._lengths[:, None]
        openings = page.marks[first + (self._ends[self._texts, None] - 1)] + 1
        good = (openings == begins[self._texts]).all(axis=0)
        good &= (places[self._scalars + 1] > begins[self._scalars]).all(axis=0)
        good &= places[-1] + self._last == page.ends[lines]
        index = np.flatnonzero(good)
        if len(index) < len(lines):
            places, begins = places[:, index], begins[:, index]
        good = self._pieces.stand_at(page, places)
        lengths = places[1:] - begins
        if unread:
            good &= page.scalars((begins[unread], lengths[unread])).all(axis=0)
        return (index, begins, lengths) if good.all() else (index[good], begins[:, good], lengths[:, good])


# --- Many lines, by the templates that are known and by new ones ---

_WORTH = 64  # so many lines alike, and a template is cheaper than a line by itself
_PLANS_MAX = 256  # of one kind of log; one with more shapes is read line by line
_TRIES = 3  # lines with as many quotes, in a page, that turn out to be no templates


class Reader(Protocol[_Plan, _Found_co]):
    """What is done with templates. A plan is a template and what to read of its lines."""

    def learn(self, page: Page, line: int) -> _Plan | None:
        """From a line; None where it is no template."""

    def take(self, plan: _Plan, page: Page, lines: Ints) -> tuple[_Found_co | None, Flags]:
        """What is found in those of these lines that are surely the plan's, and which these are."""


class Shapes(Generic[_Plan, _Found]):
    """The plans of a log, by the number of quotes of their lines."""

    def __init__(self) -> None:
        self._plans: dict[int, list[_Plan]] = {}
        self.learned = 0

    def read(self, reader: Reader[_Plan, _Found], page: Page, candidates: Flags) -> tuple[list[_Found], Ints]:
        """What was found, and the lines among `candidates` that are left."""
        may = candidates & page.plain & (page.quote_count % 2 == 0) & (page.quote_count > 0)
        may &= page.bytes[page.begins] == ord("{")
        left = [np.flatnonzero(candidates & ~may)]
        found: list[_Found] = []
        lines = np.flatnonzero(may)
        counts = page.quote_count[lines]
        for quotes in np.unique(counts).tolist():
            left.append(self._alike(reader, page, quotes, lines[counts == quotes], found))
        return found, np.concatenate(left)

    def _alike(self, reader: Reader[_Plan, _Found], page: Page, quotes: int, lines: Ints, found: list[_Found]) -> Ints:
        """Lines with as many quotes. Returns those that are left."""
        known = self._plans.setdefault(quotes, [])
        tried = tries = 0
        left = np.zeros(0, np.int64)
        while len(lines) and (tried < len(known) or (len(lines) >= _WORTH and tries < _TRIES)):
            if tried == len(known):
                plan = reader.learn(page, int(lines[0])) if self.learned < _PLANS_MAX else None
                if plan is None:
                    left, lines, tries = np.append(left, lines[0]), lines[1:], tries + 1
                    continue
                known.append(plan)
                self.learned += 1
            something, taken = reader.take(known[tried], page, lines)
            if something is not None:
                found.append(something)
            lines = lines[~taken]
            tried += 1
        return np.concatenate((left, lines))
