"""The audit's reading of `token-usage`: each message is a row whose key says the same as its value.

`_row` says what a row is. Most rows look alike, so most are read together: a template of a key and one of a value fix
all but texts and counters (`templates`, rows.h). What is not surely a row in this way is read by itself.
"""

import re
from calendar import timegm
from collections.abc import Callable
from functools import lru_cache
from time import strptime
from typing import Any

from tokenometer.processor.verify.judge import labels_text
from tokenometer.processor.verify.live import U64_END, MalformedSummary, check_version, object_of
from tokenometer.processor.verify.native import NUMBERS, Found, Ints, Program, Rows, Texts
from tokenometer.processor.verify.templates import (
    ANY_BYTES,
    PLANS_MAX,
    Candidates,
    Kind,
    Leaf,
    Path,
    Piece,
    Template,
    json_object,
    json_text,
    leaves_of,
    write_text,
)
from tokenometer.processor.verify.values import COUNTERS, FURTHER, ROW_SCHEMAS, Problem, VerifyError

_TEXTS = ("user", "model", "chip", "part")
_KEY = ("window_start", *_TEXTS)
_ROW = frozenset((*_KEY, "schema", "window_ms", *COUNTERS, "total_tokens"))
_MORE = {1: _ROW, 2: _ROW | {"labels", *FURTHER}}  # that a row of each version may have
_LABEL_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}", re.ASCII)
_LABELS_MAX, _LABEL_BYTES_MAX = 8, 256


class UsageReader:
    """Reads rows into `found`."""

    def __init__(self, found: Found, window_ms: int) -> None:
        self._found, self._window_ms = found, window_ms
        self._rows, self._candidates = Rows(window_ms), Candidates()
        self._learned = 0

    def read(self, keys: Texts, values: Texts, offsets: Ints, topic: str, partition: int) -> list[Problem]:
        """Raises UnknownSchema and WrongWindow."""
        left = self._rows.read(self._found, keys, values, offsets, partition)
        while (plan := self._learn_from(left, keys, values)) is not None:
            left = self._rows.read(self._found, keys, values, offsets, partition, plan)
        self._candidates.end([values.at(message) or b"" for message in left.tolist()])
        problems = list[Problem]()
        for message in left.tolist():
            offset = int(offsets[message])
            where = f"{topic}/{partition} at offset {offset}"
            try:
                window, *row = _row(keys.at(message), values.at(message), where, self._window_ms)
            except MalformedSummary as error:
                problems.append(Problem("row", where, str(error)))
                continue
            user, model, chip, part = (text.encode() for text in row[:4])
            counters, labels, further = row[4 : 4 + len(COUNTERS)], row[4 + len(COUNTERS)], row[5 + len(COUNTERS) :]
            texts = user, model, chip, labels.encode(), part
            self._found.add(window, offset, partition, texts, [*counters, *further])
        return problems

    def _learn_from(self, left: Ints, keys: Texts, values: Texts) -> int | None:
        """The number of the plan that was learned."""
        if self._learned >= PLANS_MAX:
            return None
        messages = left.tolist()
        lines = [values.at(message) or b"" for message in messages]
        for number in self._candidates.among(lines):
            plan = self._learn(keys.at(messages[number]), lines[number])
            if plan is not None:
                return plan
        return None

    def _learn(self, key: bytes | None, value: bytes) -> int | None:
        """From a row as it should be."""
        try:
            _row(key, value, "", self._window_ms)
        except (MalformedSummary, VerifyError):
            return None
        program = _program(key or b"", value)
        if program is None:
            return None
        plan = self._rows.learn(program)
        if not self._rows.takes(plan, key or b"", value):
            self._rows.forget()
            return None
        self._learned += 1
        return plan


def _program(key: bytes, value: bytes) -> Program | None:
    """As rows.h reads it; None where the row is no template."""
    of_key, of_value = leaves_of(key), leaves_of(value)
    if of_key is None or of_value is None:
        return None
    row = object_of(value)
    labels = tuple(row.get("labels", ()))
    texts = [*((name,) for name in _KEY), *(("labels", name) for name in labels)]
    numbers = [(name,) for name in (*COUNTERS, "total_tokens", *FURTHER) if name in row]
    named, counted = Template(key, of_key, _kinds(texts)), Template(value, of_value, _kinds([*texts, *numbers]))
    if not (set(texts) <= named.slots.keys() and {*texts, *numbers} <= counted.slots.keys()):
        return None
    slot_of = {path: counted.bound(path, _LABEL_BYTES_MAX if path[1:] else ANY_BYTES) for path in texts}
    slot_of |= {path: counted.slots[path] for path in numbers}
    program = Program()
    counted.write(program)
    named.write(program)
    program.add(*(slot_of[name,] for name in _KEY))
    program.add(*(slot_of.get((name,), -1) for name in NUMBERS), slot_of["total_tokens",])
    program.add(len(texts), *(slot for path in texts for slot in (slot_of[path], counted.count + named.slots[path])))
    members = list[tuple[str, list[Piece]]]((name, json_text([slot_of["labels", name]])) for name in labels)
    write_text(program, json_object(members))
    return program


def _kinds(read: list[Path]) -> Callable[[Leaf], Kind | None]:
    def kind_of(leaf: Leaf) -> Kind | None:
        if leaf.path not in read:
            return None
        return Kind.TEXT if leaf.is_text else Kind.INTEGER

    return kind_of


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
