"""A sample of a log, taken apart: every path that a mapping could read, and its values record by record."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson

from tokenometer.kernels.layout import RECORD_BYTES_MAX
from tokenometer.schemas.mapping_model import COUNT_END, KEY_BYTES_MAX, PATH_KEYS_MAX, Path

LEAVES_MAX = 5000  # a log whose keys are values would grow without end
KEYS_MAX = 12  # of a record that are shown
KEY_CHARACTERS_MAX = 64
_HELD_MAX = 20


@dataclass
class Leaf:
    """A path that leads to strings, numbers or booleans."""

    path: Path
    values: dict[int, Any] = field(default_factory=dict)  # by the record's index; without nulls

    def texts(self) -> dict[int, str]:
        """Of strings that are not empty, and of integers."""
        return {
            index: str(value)
            for index, value in self.values.items()
            if (isinstance(value, str) and value) or type(value) is int
        }

    def counts(self) -> dict[int, int]:
        """What is a count, with or without coercion."""
        found = {index: count_of(value) for index, value in self.values.items()}
        return {index: count for index, count in found.items() if count is not None}


@dataclass
class Sample:
    records: list[dict[str, Any]] = field(default_factory=list)
    leaves: dict[Path, Leaf] = field(default_factory=dict)
    arrays: dict[Path, list[Any]] = field(default_factory=dict)  # the first that is not empty
    strings: dict[Path, str] = field(default_factory=dict)  # that look as if they held JSON, the first
    unreadable: list[bytes] = field(default_factory=list)  # lines that are no JSON object
    too_many: bool = False  # paths: some are not looked at

    def at(self, path: Path | None) -> dict[int, Any]:
        leaf = self.leaves.get(path) if path else None
        return leaf.values if leaf else {}


def sample_of(lines: Iterable[bytes]) -> Sample:
    sample = Sample()
    for line in lines:
        if not line.strip(b" \t\r\n"):
            continue
        try:
            record = orjson.loads(line) if len(line) <= RECORD_BYTES_MAX else None
        except orjson.JSONDecodeError:
            record = None
        if isinstance(record, dict):
            _take(record, sample)
        else:
            sample.unreadable.append(line)
    return sample


def _take(record: dict[str, Any], sample: Sample) -> None:
    index = len(sample.records)
    sample.records.append(record)
    for path, value in leaves_of(record):
        if isinstance(value, list):
            if value:
                sample.arrays.setdefault(path, value)
            continue
        if path not in sample.leaves:
            if len(sample.leaves) >= LEAVES_MAX:
                sample.too_many = True
                continue
            sample.leaves[path] = Leaf(path)
        if value is None:
            continue
        sample.leaves[path].values[index] = value
        if isinstance(value, str) and value[:1] in "{[" and len(value) > 2 and len(sample.strings) < _HELD_MAX:
            sample.strings.setdefault(path, value)


def leaves_of(record: dict[str, Any], above: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every path of a record that a mapping can name, with its value: no object, perhaps an array or null."""
    for key, value in record.items():
        if not 1 <= len(key.encode()) <= KEY_BYTES_MAX:
            continue
        path = (*above, key)
        if not isinstance(value, dict):
            yield path, value
        elif len(path) < PATH_KEYS_MAX:
            yield from leaves_of(value, path)


def keys_of(record_text: bytes) -> tuple[str, ...]:
    """The keys of a record without their values, because those are other people's. Only an object has some."""
    try:
        record: Any = orjson.loads(record_text)
    except orjson.JSONDecodeError:
        return ()
    if isinstance(record, list) and record:
        record = record[0]
    if not isinstance(record, dict):
        return ()
    names = [".".join(path) for path, _ in leaves_of(record)]
    cut = [name if len(name) <= KEY_CHARACTERS_MAX else f"{name[: KEY_CHARACTERS_MAX - 1]}…" for name in names]
    return tuple([*cut[:KEYS_MAX], *([f"and {len(cut) - KEYS_MAX} more"] if len(cut) > KEYS_MAX else [])])


def count_of(value: Any) -> int | None:
    """A count as JSON number or as digits; None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        is_digits = value.isascii() and value.isdigit() and (value == "0" or value[0] != "0") and len(value) <= 13
        value = int(value) if is_digits else None
    elif isinstance(value, float):
        value = int(value) if value.is_integer() and abs(value) < COUNT_END else None
    return value if isinstance(value, int) and 0 <= value < COUNT_END else None


def held_objects(text: str) -> list[dict[str, Any]]:
    """The objects that a string holds as JSON."""
    try:
        held = orjson.loads(text)
    except orjson.JSONDecodeError:
        return []
    return [item for item in (held if isinstance(held, list) else [held]) if isinstance(item, dict)]
