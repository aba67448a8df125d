"""The audit's reading of `token-usage`: each message is a row whose key says the same as its value.

`_row` says what a row is. Most rows look alike, so most are read together: the two texts of a message make one line,
`{"k":key,"v":value}`, and a template of such a line fixes all but texts and counters (`templates`). What is not surely
a row in this way is read by itself.
"""

import re
from calendar import timegm
from collections.abc import Sequence
from functools import lru_cache
from time import strptime
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from tokenometer.processor.verify.judge import labels_text
from tokenometer.processor.verify.live import U64_END, MalformedSummary, check_version, object_of
from tokenometer.processor.verify.pages import Flags, Ints, Page, Places, json_object, page_text
from tokenometer.processor.verify.templates import Kind, Leaf, Path, Shapes, Template, leaves_of
from tokenometer.processor.verify.values import COUNTERS, FURTHER, ROW_SCHEMAS, Problem, VerifyError

_TEXTS = ("user", "model", "chip", "part")
_KEY = ("window_start", *_TEXTS)
_ROW = frozenset((*_KEY, "schema", "window_ms", *COUNTERS, "total_tokens"))
_MORE = {1: _ROW, 2: _ROW | {"labels", *FURTHER}}  # that a row of each version may have
_LABEL_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}", re.ASCII)
_LABELS_MAX, _LABEL_BYTES_MAX = 8, 256


class Rows(NamedTuple):
    """messages: which, by their number in the chunk. columns: by name."""

    messages: Ints
    columns: dict[str, Any]


def read(
    keys: Sequence[bytes | None], values: Sequence[bytes | None], offsets: Sequence[int], place: str, window_ms: int
) -> tuple[list[Rows], list[Problem]]:
    """Raises UnknownSchema and WrongWindow."""
    lines = [b'{"k":%b,"v":%b}' % (key or b"", value or b"") for key, value in zip(keys, values, strict=True)]
    page = Page(page_text(lines))
    parts, left = list[Rows](), np.arange(len(lines))
    if len(page) == len(lines):  # a text with a newline is none of ours
        whole = np.array([key is not None and value is not None for key, value in zip(keys, values, strict=True)], bool)
        parts, left = _shapes(window_ms).read(_Alike(keys, values, window_ms), page, whole)
        left = np.concatenate((left, np.flatnonzero(~whole)))
    singles, problems = list[tuple[Any, ...]](), list[Problem]()
    for message in np.sort(left).tolist():
        where = f"{place} at offset {offsets[message]}"
        try:
            singles.append((message, *_row(keys[message], values[message], where, window_ms)))
        except MalformedSummary as error:
            problems.append(Problem("row", where, str(error)))
    if singles:
        messages, *columns = zip(*singles, strict=True)
        names = ("window_start", *_TEXTS, *COUNTERS, "labels", *FURTHER)
        parts.append(Rows(np.array(messages, np.int64), dict(zip(names, columns, strict=True))))
    return parts, problems


def table(parts: Sequence[Rows], place: int, offsets: Ints, schema: pa.Schema) -> pa.Table:
    """place: the number of the partition."""
    tables = []
    for part in parts:
        count = len(part.messages)
        columns = {"place": np.full(count, place, np.int32), "log_offset": offsets[part.messages], **part.columns}
        arrays = [_column(columns[field.name], field.type, count) for field in schema]
        tables.append(pa.Table.from_arrays(arrays, schema=schema))
    return pa.concat_tables(tables)


def _column(values: Any, kind: pa.DataType, count: int) -> pa.Array:
    if isinstance(values, bytes | int):
        return pa.repeat(pa.scalar(values, kind), count)
    return values if isinstance(values, pa.Array) else pa.array(values, kind)


# --- Many at once ---


@lru_cache(maxsize=4)
def _shapes(window_ms: int) -> Shapes["_Plan", Rows]:
    return Shapes()


class _Plan(NamedTuple):
    template: Template
    texts: tuple[Path, ...]  # of the value; the key has each, too
    numbers: tuple[str, ...]
    labels: tuple[str, ...]


class _Alike:
    def __init__(self, keys: Sequence[bytes | None], values: Sequence[bytes | None], window_ms: int) -> None:
        self._keys, self._values, self._window_ms = keys, values, window_ms

    def learn(self, page: Page, line: int) -> _Plan | None:
        """From a row as it should be."""
        text, value = page.line(line), self._values[line]
        try:
            _row(self._keys[line], value, "", self._window_ms)
        except (MalformedSummary, VerifyError):
            return None
        leaves = leaves_of(text)
        if leaves is None:
            return None
        row = object_of(value)
        labels = tuple(row.get("labels", ()))
        texts = (*(("v", name) for name in _KEY), *(("v", "labels", name) for name in labels))
        numbers = tuple(name for name in (*COUNTERS, "total_tokens", *FURTHER) if name in row)
        read = {*texts, *(("k", *path[1:]) for path in texts), *(("v", name) for name in numbers)}
        template = Template(text, leaves, lambda leaf: _kind_of(leaf, read))
        plan = _Plan(template, texts, numbers, labels)
        usable = template.usable and read <= template.kinds.keys()
        return plan if usable and self.take(plan, page, np.array([line]))[1].all() else None

    def take(self, plan: _Plan, page: Page, lines: Ints) -> tuple[Rows | None, Flags]:
        taken = np.zeros(len(lines), bool)
        numbered = [("v", name) for name in plan.numbers]
        keys = [("k", *path[1:]) for path in plan.texts]
        index, places = plan.template.match(page, lines, [*plan.texts, *keys, *numbered])
        if not len(index):
            return None, taken
        begins, lengths = (np.stack([places[path][i] for path in numbered]) for i in (0, 1))
        found, sure_each = page.integers((begins, lengths))
        numbers = dict(zip(plan.numbers, found, strict=True))
        sure = sure_each.all(axis=0) & (numbers["total_tokens"] == numbers["input_tokens"] + numbers["output_tokens"])
        for name in plan.numbers:
            if name in FURTHER:
                sure &= numbers[name] > 0
        for path, key in zip(plan.texts, keys, strict=True):
            sure &= (places[path][1] >= 1) & page.are_equal(places[path], places[key])
            if len(path) > 2:
                sure &= places[path][1] <= _LABEL_BYTES_MAX
        window_start, sure_time = self._windows(page, places["v", "window_start"])
        sure &= sure_time
        taken[index[sure]] = True
        texts = {path: page.texts((begins[sure], lengths[sure])) for path, (begins, lengths) in places.items()
                 if path in plan.texts and path != ("v", "window_start")}  # fmt: skip
        labels = json_object([(name, texts["v", "labels", name]) for name in plan.labels])
        columns = {name: numbers[name][sure] if name in numbers else 0 for name in (*COUNTERS, *FURTHER)}
        columns |= {name: texts["v", name] for name in _TEXTS}
        columns |= {"window_start": window_start[sure], "labels": labels}
        return (Rows(lines[index[sure]], columns) if sure.any() else None), taken

    def _windows(self, page: Page, places: Places) -> tuple[Ints, Flags]:
        """As `_window_start_ms` reads them, which is stricter than RFC 3339."""
        begins, lengths = places
        found, sure = page.rfc3339(places)
        sure &= (lengths == 20) & (page.bytes[begins + 10] == ord("T")) & (page.bytes[begins + 19] == ord("Z"))
        return found, sure & (found % self._window_ms == 0)


def _kind_of(leaf: Leaf, read: set[Path]) -> Kind | None:
    if leaf.path not in read:
        return None
    return Kind.TEXT if leaf.is_text else Kind.INTEGER


# --- One by itself ---


def _row(key: bytes | None, value: bytes | None, where: str, window_ms: int) -> tuple[Any, ...]:
    if value is None:
        raise MalformedSummary("a tombstone: the meter deletes no row")
    row = object_of(value)
    check_version(row, where, window_ms, ROW_SCHEMAS)
    if not _ROW <= row.keys() <= _MORE[row["schema"]]:
        raise MalformedSummary("its fields are not those of a usage row")
    if object_of(key) != {name: row[name] for name in (*_KEY, "labels") if name in row}:
        raise MalformedSummary("its key's fields are not its value's")
    labels = _labels_text(row["labels"]) if "labels" in row else ""
    texts = [row[name] for name in _KEY]
    counters = [row[name] for name in COUNTERS]
    if not all(type(text) is str and text for text in texts):
        raise MalformedSummary("a field that must be a string is not, or is empty")
    if not all(type(count) is int and 0 <= count < U64_END for count in counters):
        raise MalformedSummary("a counter is not an integer of 64 bits")
    if row["total_tokens"] != row["input_tokens"] + row["output_tokens"]:
        raise MalformedSummary("total_tokens is not input_tokens + output_tokens")
    window_start = _window_start_ms(texts[0])
    if window_start is None or window_start % window_ms:
        raise MalformedSummary(f"no window starts at {texts[0]}")
    return (window_start, *texts[1:], *counters, labels, *_further(row))


def _further(row: dict[str, Any]) -> list[int]:
    counts = [row.get(name) for name in FURTHER]
    if not all(count is None or (type(count) is int and 0 < count < U64_END) for count in counts):
        raise MalformedSummary("a further counter is not an integer of 64 bits above 0")
    return [count or 0 for count in counts]


def _labels_text(labels: Any) -> str:
    if type(labels) is not dict or not 1 <= len(labels) <= _LABELS_MAX or list(labels) != sorted(labels):
        raise MalformedSummary(
            f"its labels are not an object of 1 to {_LABELS_MAX} members in the order of their names"
        )
    if not all(map(_LABEL_NAME.fullmatch, labels)):
        raise MalformedSummary("a label has a name that no label may have")
    if not all(type(text) is str and 1 <= len(text.encode()) <= _LABEL_BYTES_MAX for text in labels.values()):
        raise MalformedSummary(f"a label is not a string of 1 to {_LABEL_BYTES_MAX} bytes")
    return labels_text(labels)


@lru_cache(maxsize=1 << 16)
def _window_start_ms(text: str) -> int | None:
    if len(text) != 20:  # strptime takes numbers without their zeros
        return None
    try:
        return timegm(strptime(text, "%Y-%m-%dT%H:%M:%SZ")) * 1000
    except ValueError:
        return None
