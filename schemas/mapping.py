"""Mapping files: which path of a log's JSON holds which canonical field.

docs/RECORDS.md, section "Mapping files", is the contract; this module is its only reader. A mapping that loads obeys
every rule and limit of that page, so the engine's compiler, the referee and the command line check nothing again.
An error names the file, the place in it, what was expected and what was found.
"""

import difflib
import json
import os
import pathlib
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from tokenometer.schemas.usage import TOKENS

Path = tuple[str, ...]  # keys from the top level down
Kind = Literal["string", "count", "time"]

FIELDS = (
    "request_id",
    "timestamp",
    "user",
    "model",
    "chip",
    "prefill_chip",
    *TOKENS,
)
STRINGS = ("request_id", "user", "model", "chip", "prefill_chip")
NEEDED = ("timestamp", "user", "model", "chip", "input_tokens", "output_tokens", "tokens")

EPOCH_FORMATS = ("epoch_s", "epoch_ms", "epoch_us", "epoch_ns", "epoch_s_decimal")
TIME_FORMATS = (*EPOCH_FORMATS, "rfc3339")

FORMAT = 1  # of the mapping file itself
STRING_BYTES_MAX = 256
COUNT_END = 1 << 40
KEY_BYTES_MAX = 48
PATH_KEYS_MAX = 6
PLACES_MAX = 32  # distinct keys-in-place: the nodes of the tree that all paths form together
SELECTOR_ENTRIES_MAX = 8

_TOP_KEYS = ("format", "name", "description", "input_tokens_are", "output_tokens_are", "fields")
_STRING_KEYS = ("path", "aliases", "required", "default", "constant")
_COUNT_KEYS = (*_STRING_KEYS, "digits")
_KEYS: dict[str, tuple[str, ...]] = {
    # No default or constant: one id for many records would make them duplicates of each other.
    "request_id": ("path", "aliases", "required", "scope"),
    # No default or constant: one time for many records would bill them all in one window.
    "timestamp": ("path", "aliases", "required", "formats", "fallback"),
    **{name: _STRING_KEYS for name in STRINGS if name != "request_id"},
    **{name: _COUNT_KEYS for name in TOKENS},
    "tokens": ("path", "aliases", "required", "default", "digits", "by", "requests", "to"),
}
_PATH_EXPECTED = f"a string or a list of 1 to {PATH_KEYS_MAX} strings"


class MappingError(ValueError):
    """A mapping that cannot be used; the message is one line for the person who wrote it."""


@dataclass(frozen=True)
class Field:
    """How one canonical field is read from a record."""

    name: str
    kind: Kind
    paths: tuple[Path, ...]  # path, then aliases; () for a constant and for an optional field that is not mapped
    required: bool  # absent and null are `missing_field`
    default: str | int | None  # where all paths are absent or null; a constant is stored here too
    digits: bool = False  # a count may also be a string of digits
    formats: tuple[str, ...] = ()  # of a time
    message_time_fallback: bool = False
    scope: Path | None = None  # of request_id: the identity is (scope, id)


@dataclass(frozen=True)
class Selector:
    """Which counter an event of one token type belongs to. The count itself is the field `tokens`."""

    by: Path
    to: tuple[tuple[str, str], ...]  # source value, counter
    requests: str | None  # the source value whose events count as requests; None: every event does


@dataclass(frozen=True)
class Mapping:
    """A checked mapping. `fields` has every canonical field in canonical order.

    With a selector `tokens` stands in place of `input_tokens` and the other four counts are left out.
    """

    name: str
    description: str
    input_additive: bool
    output_additive: bool
    fields: tuple[Field, ...]
    selector: Selector | None
    source: str  # the file's path, or a shipped mapping's name

    def field(self, name: str) -> Field:
        for field in self.fields:
            if field.name == name:
                return field
        raise KeyError(name)


def load(path: str | os.PathLike[str]) -> Mapping:
    """Read and check a mapping file; its `name` must be the file's name without `.toml`."""
    return _load(pathlib.Path(path), os.fspath(path))


def parse(text: str, source: str) -> Mapping:
    """Check a mapping's text; `source` says in messages where it came from."""
    try:
        top = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also an integer with thousands of digits
        raise MappingError(f"{source}: {_toml_error(error, text)}") from None
    return _mapping(top, source)


def shipped() -> tuple[str, ...]:
    """The names of the mappings that come with Tokenometer, sorted."""
    return tuple(sorted(file.stem for file in _SHIPPED.glob("*.toml")))


def resolve(name_or_path: str) -> Mapping:
    """A shipped mapping by its name, or a file. Write `./native` for a file that is named like a shipped mapping."""
    names = shipped()
    if name_or_path in names:
        return _load(_SHIPPED / f"{name_or_path}.toml", name_or_path)
    if name_or_path.endswith(".toml") or pathlib.Path(name_or_path).exists():
        return load(name_or_path)
    hint = _did_you_mean(name_or_path, names)
    raise MappingError(
        f"{name_or_path}: expected a .toml file or the name of a shipped mapping ({', '.join(names)}){hint}"
    )


_SHIPPED = pathlib.Path(__file__).parent / "mappings"


def _load(path: pathlib.Path, source: str) -> Mapping:
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise MappingError(f"{source}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise MappingError(f"{source}: line {line}: not valid TOML: not UTF-8") from error
    mapping = parse(text, source)
    stem = path.name.removesuffix(".toml")
    if mapping.name != stem:
        _Place(source, "name").fail(f"the file's name without .toml, {_show(stem)}", mapping.name)
    return mapping


# --- Messages ---


@dataclass(frozen=True)
class _Place:
    """A place in a mapping, such as `fields.user.path`, to be named in an error."""

    source: str
    where: str = ""

    def __truediv__(self, key: str) -> "_Place":
        if not re.fullmatch(r"[A-Za-z0-9_-]+", key):
            key = json.dumps(key, ensure_ascii=False)
        return _Place(self.source, f"{self.where}.{key}" if self.where else key)

    def __getitem__(self, index: int) -> "_Place":
        return _Place(self.source, f"{self.where}[{index}]")

    def error(self, message: str) -> NoReturn:
        raise MappingError(f"{self.source}: {self.where}: {message}")

    def fail(self, expected: str, found: Any) -> NoReturn:
        self.error(f"expected {expected}, found {_show(found)}")


def _show(value: Any) -> str:
    """A value as a person who wrote TOML knows it, cut to a readable length."""
    match value:
        case None:
            return "nothing"
        case bool():
            return "true" if value else "false"
        case dict():
            return "a table"
        case list():
            return "an empty list" if not value else f"a list of {len(value)}"
        case str():
            shown = json.dumps(value, ensure_ascii=False)
        case int():  # str() of an int with thousands of digits raises, hex() does not
            shown = str(value) if value.bit_length() <= 128 else hex(value)
        case _:
            shown = str(value)
    return shown if len(shown) <= 80 else f"{shown[:70]}... ({len(shown)} characters)"


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _toml_error(error: Exception, text: str) -> str:
    """`line 3, column 5: not valid TOML: ...` from tomllib's message, which puts the place at its end."""
    if isinstance(error, RecursionError):
        return "not valid TOML: nested too deeply"
    message = str(error)
    if place := re.fullmatch(r"(.*) \(at line (\d+), column (\d+)\)", message, re.DOTALL):
        return f"line {place[2]}, column {place[3]}: not valid TOML: {place[1]}"
    if message.endswith(" (at end of document)"):
        return f"line {text.count(chr(10)) + 1}: not valid TOML: {message}"
    return f"not valid TOML: {message}"


# --- The parts of a mapping ---


def _mapping(top: dict[str, Any], source: str) -> Mapping:
    here = _Place(source)
    # The format comes first: a file of another format may well have other keys.
    if type(top.get("format")) is not int or top["format"] != FORMAT:
        (here / "format").fail(f"{FORMAT}, the format that this version reads", top.get("format"))
    _check_keys(top, _TOP_KEYS, here)
    name = top.get("name")
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9-]+", name):
        (here / "name").fail("a string of a-z, 0-9 and -", name)
    description = top.get("description")
    if not isinstance(description, str) or not description.strip() or len(description.splitlines()) != 1:
        (here / "description").fail("a string of one line", description)
    input_additive = _is_additive(top, "input_tokens_are", here)
    output_additive = _is_additive(top, "output_tokens_are", here)
    fields, selector = _fields(top.get("fields"), here / "fields")
    return Mapping(name, description, input_additive, output_additive, fields, selector, source)


def _is_additive(top: dict[str, Any], key: str, here: _Place) -> bool:
    value = top.get(key)
    if value not in ("inclusive", "additive"):
        (here / key).fail('"inclusive" or "additive"', value)
    return bool(value == "additive")


def _fields(tables: Any, here: _Place) -> tuple[tuple[Field, ...], Selector | None]:
    if not isinstance(tables, dict):
        here.fail("a table with one table for each canonical field", tables)
    _check_keys(tables, _KEYS, here)
    names: tuple[str, ...] = FIELDS
    if "tokens" in tables:
        for count in TOKENS:
            if count in tables:
                (here / count).error("excluded by fields.tokens, which takes the place of the five counters")
        names = (*(name for name in FIELDS if name not in TOKENS), "tokens")

    reads: list[tuple[_Place, Path]] = []  # every path of the mapping and where it stands, for the rules across fields
    fields = tuple(_field(name, tables.get(name), here / name, reads) for name in names)
    selector = _selector(tables["tokens"], here / "tokens", reads) if "tokens" in tables else None
    _check_paths(reads, here)
    return fields, selector


def _field(name: str, table: Any, here: _Place, reads: list[tuple[_Place, Path]]) -> Field:
    kind: Kind = "time" if name == "timestamp" else "string" if name in STRINGS else "count"
    if table is None:
        if name in NEEDED:
            here.fail("a table: every record needs this field", table)
        return Field(name, kind, (), required=False, default=0 if kind == "count" else None)
    if not isinstance(table, dict):
        here.fail("a table", table)
    _check_keys(table, _KEYS[name], here)

    if "constant" in table:
        for key in ("path", "aliases", "default", "required"):
            if key in table:
                (here / key).error("excluded by constant")
        constant = _value(kind, table["constant"], here / "constant")
        return Field(name, kind, (), required=False, default=constant, digits=_flag(table, "digits", here))

    paths = _paths(table, here, reads)
    scope = None
    if "scope" in table:
        scope = _path(table["scope"], here / "scope")
        reads.append((here / "scope", scope))
    formats = _formats(table.get("formats"), here / "formats") if kind == "time" else ()
    if table.get("fallback", "message_time") != "message_time":
        (here / "fallback").fail('"message_time"', table["fallback"])
    default = _value(kind, table["default"], here / "default") if "default" in table else None
    required = _required(name, table, here)
    if default is None and kind == "count" and not required:
        default = 0
    digits = _flag(table, "digits", here)
    return Field(name, kind, paths, required, default, digits, formats, "fallback" in table, scope)


def _required(name: str, table: dict[str, Any], here: _Place) -> bool:
    """A needed field is required unless something stands in for it; an optional one if the mapping says so."""
    stand_in = next((key for key in ("default", "fallback") if key in table), None)
    required = _flag(table, "required", here)
    if required and stand_in:
        (here / "required").error(f"excluded by {stand_in}, which stands in for an absent value")
    if name not in NEEDED:
        return required
    if "required" in table and not required and not stand_in:
        instead = 'fallback = "message_time"' if name == "timestamp" else "a default"
        (here / "required").error(f"expected true, found false: every record needs this field; give it {instead}")
    return not stand_in


def _selector(table: dict[str, Any], here: _Place, reads: list[tuple[_Place, Path]]) -> Selector:
    by = _path(table.get("by"), here / "by")
    reads.append((here / "by", by))
    to = table.get("to")
    if not isinstance(to, dict) or not 1 <= len(to) <= SELECTOR_ENTRIES_MAX:
        expected = f"a table of 1 to {SELECTOR_ENTRIES_MAX} entries, source value = counter"
        (here / "to").fail(expected, f"{len(to)} entries" if isinstance(to, dict) else to)
    for value, counter in to.items():
        if not 1 <= len(value.encode()) <= KEY_BYTES_MAX:
            (here / "to").fail(f"source values of 1 to {KEY_BYTES_MAX} bytes", value)
        if counter not in TOKENS:
            hint = _did_you_mean(counter, TOKENS) if isinstance(counter, str) else ""
            (here / "to" / value).error(f"expected one of {', '.join(TOKENS)}, found {_show(counter)}{hint}")
    requests = table.get("requests")
    if "requests" in table and (not isinstance(requests, str) or requests not in to):
        (here / "requests").fail(f"one of the source values in `to` ({', '.join(map(_show, to))})", requests)
    return Selector(by, tuple(to.items()), requests)


# --- Values ---


def _paths(table: dict[str, Any], here: _Place, reads: list[tuple[_Place, Path]]) -> tuple[Path, ...]:
    if "path" not in table and "constant" in _KEYS[here.where.rpartition(".")[2]]:
        here.fail("path or constant", None)
    places = [(here / "path", _path(table.get("path"), here / "path"))]
    aliases = table.get("aliases", [])
    if not isinstance(aliases, list):
        (here / "aliases").fail("a list of paths", aliases)
    for index, alias in enumerate(aliases):
        place = (here / "aliases")[index]
        places.append((place, _path(alias, place)))
    reads += places
    return tuple(path for _, path in places)


def _path(value: Any, here: _Place) -> Path:
    """A string is ONE key, dots and all; a list goes down."""
    keys = [value] if isinstance(value, str) else value
    if not isinstance(keys, list) or not 1 <= len(keys) <= PATH_KEYS_MAX:
        here.fail(_PATH_EXPECTED, value)
    for key in keys:
        if not isinstance(key, str):
            here.fail(_PATH_EXPECTED, key)
        if not 1 <= len(key.encode()) <= KEY_BYTES_MAX:
            here.error(f"expected keys of 1 to {KEY_BYTES_MAX} bytes, found {_show(key)} of {len(key.encode())}")
    return tuple(keys)


def _check_paths(reads: list[tuple[_Place, Path]], here: _Place) -> None:
    """The rules across fields: all paths are leaves of one tree of limited size."""
    readers: dict[Path, _Place] = {}
    for place, path in reads:
        if path in readers:
            place.error(f"{_show_path(path)} is already read by {readers[path].where}")
        readers[path] = place
    for place, path in reads:
        for end in range(1, len(path)):
            if path[:end] in readers:
                place.error(f"{_show_path(path)} begins with the path of {readers[path[:end]].where}")
    places = {path[:end] for path in readers for end in range(1, len(path) + 1)}
    if len(places) > PLACES_MAX:
        here.error(f"expected at most {PLACES_MAX} distinct keys in all paths, found {len(places)}")


def _show_path(path: Path) -> str:
    return json.dumps(path[0] if len(path) == 1 else path, ensure_ascii=False)


def _formats(value: Any, here: _Place) -> tuple[str, ...]:
    expected = f"a list of at most one epoch format ({', '.join(EPOCH_FORMATS)}) and/or rfc3339"
    if not isinstance(value, list) or not value:
        here.fail(expected, value)
    for item in value:
        if item not in TIME_FORMATS:
            hint = _did_you_mean(item, TIME_FORMATS) if isinstance(item, str) else ""
            here.error(f"expected {expected}, found {_show(item)}{hint}")
    if len(set(value)) != len(value) or sum(item in EPOCH_FORMATS for item in value) > 1:
        here.error(f"expected {expected}, found {', '.join(value)}")
    return tuple(value)


def _value(kind: Kind, value: Any, here: _Place) -> str | int:
    """A default or constant obeys the rule of its own field."""
    if kind == "string":
        if not isinstance(value, str) or not 1 <= len(value.encode()) <= STRING_BYTES_MAX:
            here.fail(f"a string of 1 to {STRING_BYTES_MAX} bytes", value)
        return value
    if type(value) is not int or not 0 <= value < COUNT_END:
        here.fail("an integer, 0 <= n < 2^40", value)
    return value


def _flag(table: dict[str, Any], key: str, here: _Place) -> bool:
    value = table.get(key, False)
    if not isinstance(value, bool):
        (here / key).fail("true or false", value)
    return value


def _check_keys(table: dict[str, Any], known: Iterable[str], here: _Place) -> None:
    known = tuple(known)
    for key in table:
        if key in known:
            continue
        owners = [name for name, keys in _KEYS.items() if key in keys] if here.where.startswith("fields.") else []
        if owners:
            (here / key).error(f"not for this field; only for {', '.join(owners)}")
        (here / key).error(f"unknown key; expected one of {', '.join(known)}{_did_you_mean(key, known)}")
