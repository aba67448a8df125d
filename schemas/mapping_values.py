"""Reads and checks the small values in a mapping file: paths, lists of values, flags, and the keys of a table."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tokenometer.schemas.mapping_errors import MappingPlace, did_you_mean, show, show_path
from tokenometer.schemas.mapping_model import (
    COUNT_END,
    KEY_BYTES_MAX,
    PATH_KEYS_MAX,
    STRING_BYTES_MAX,
    VALUE_BYTES_MAX,
    VALUES_MAX,
    Kind,
    Path,
)

_LISTED = re.compile(r"((?:[^\\*]|\\[\\*])*)(\*?)", re.DOTALL)  # of a condition or convention
_PATH_EXPECTED = f"a string or a list of 1 to {PATH_KEYS_MAX} strings"


def path_of(value: Any, here: MappingPlace) -> Path:
    """A string is ONE key, dots and all; a list goes down."""
    keys = [value] if isinstance(value, str) else value
    if not isinstance(keys, list) or not 1 <= len(keys) <= PATH_KEYS_MAX:
        here.fail(_PATH_EXPECTED, value)
    for key in keys:
        if not isinstance(key, str):
            here.fail(_PATH_EXPECTED, key)
        if not 1 <= len(key.encode()) <= KEY_BYTES_MAX:
            here.error(f"expected keys of 1 to {KEY_BYTES_MAX} bytes, found {show(key)} of {len(key.encode())}")
    return tuple(keys)


def paths_of(
    table: dict[str, Any], key: str, here: MappingPlace, most: int | None = None
) -> list[tuple[MappingPlace, Path]]:
    """A list of paths, each with its place; empty where the key is absent."""
    values = table.get(key, [])
    expected = "a list of paths" if most is None else f"a list of 1 to {most} paths"
    if not isinstance(values, list) or (most is not None and key in table and not 1 <= len(values) <= most):
        (here / key).fail(expected, values)
    return [((here / key)[index], path_of(value, (here / key)[index])) for index, value in enumerate(values)]


@dataclass(frozen=True)
class Prefix:
    """How a string begins."""

    text: str


def _string_of(text: str, here: MappingPlace) -> str | Prefix:
    """What a listed string means: a `*` at its end means any text; a star itself is `\\*`, a backslash `\\\\`."""
    found = _LISTED.fullmatch(text)
    if not found:
        here.fail(r"a star only at the end, for anything; a star itself is written \* and a backslash \\", text)
    plain = re.sub(r"\\(.)", r"\1", found[1])
    if len(plain.encode()) > VALUE_BYTES_MAX:
        here.fail(f"at most {VALUE_BYTES_MAX} bytes", text)
    return Prefix(plain) if found[2] else plain


def listed_string(text: str) -> str:
    """How a string is written in such a list."""
    return re.sub(r"([\\*])", r"\\\1", text)


def values_of(values: Any, here: MappingPlace, types: tuple[type, ...], what: str) -> list[Any]:
    """A list of different values to compare with: a `Prefix` for a string with a star. Types are exact: true is no
    integer."""
    if not isinstance(values, list) or not 1 <= len(values) <= VALUES_MAX:
        here.fail(f"a list of 1 to {VALUES_MAX} {what}", values)
    for index, value in enumerate(values):
        if type(value) not in types:
            here[index].fail(what, value)
        if type(value) is int and not -(1 << 63) <= value < 1 << 64:
            here[index].fail("an integer of 64 bits, as JSON's are read", value)
    found = [_string_of(value, here[index]) if isinstance(value, str) else value for index, value in enumerate(values)]
    if len({(type(value), value) for value in found}) != len(found):
        here.error("the same value is listed twice")
    return found


def stand_in(kind: Kind, value: Any, here: MappingPlace) -> str | int:
    """A default or constant obeys the rule of its own field."""
    if kind == "string":
        if not isinstance(value, str) or not 1 <= len(value.encode()) <= STRING_BYTES_MAX:
            here.fail(f"a string of 1 to {STRING_BYTES_MAX} bytes", value)
        return value
    if type(value) is not int or not 0 <= value < COUNT_END:
        here.fail("an integer, 0 <= n < 2^40", value)
    return value


def flag(table: dict[str, Any], key: str, here: MappingPlace) -> bool:
    value = table.get(key, False)
    if not isinstance(value, bool):
        (here / key).fail("true or false", value)
    return value


def unknown_key(key: str, known: Iterable[str], here: MappingPlace) -> None:
    known = tuple(known)
    (here / key).error(f"unknown key; expected one of {', '.join(known)}{did_you_mean(key, known)}")


def check_keys(table: dict[str, Any], known: Iterable[str], here: MappingPlace) -> None:
    known = tuple(known)
    for key in table:
        if key not in known:
            unknown_key(key, known, here)


class Reads:
    """Every path of a mapping and where it is written, for the rules across fields."""

    def __init__(self) -> None:
        self._all: list[tuple[MappingPlace, Path, str, bool]] = []  # with who reads it, and whether an object will do

    def add(self, place: MappingPlace, path: Path, reader: str, object_too: bool = False) -> None:
        """`object_too`: only the value's presence matters, so the path may lead to an object that others go through."""
        self._all.append((place, path, reader, object_too))

    def check(self, here: MappingPlace, shared: bool, places_max: int) -> None:
        """All paths are leaves of one tree of limited size. `shared`: several readers may read one path."""
        self._check_once(shared)
        leaves = {path: place for place, path, _, object_too in reversed(self._all) if not object_too}
        for place, path, _, _ in self._all:
            for end in range(1, len(path)):
                if path[:end] in leaves:
                    place.error(f"{show_path(path)} begins with the path of {leaves[path[:end]].where}")
        places = {path[:end] for _, path, _, _ in self._all for end in range(1, len(path) + 1)}
        if len(places) > places_max:
            hint = "leave out aliases, labels or conditions that your log does not have"
            here.error(f"expected at most {places_max} distinct keys in all paths, found {len(places)}: {hint}")

    def _check_once(self, shared: bool) -> None:
        readers: dict[tuple[Path, str], MappingPlace] = {}
        for place, path, reader, _ in self._all:
            known = readers.setdefault((path, reader if shared else ""), place)
            if known is not place:
                place.error(f"{show_path(path)} is already read by {known.where}")
