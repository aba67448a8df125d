"""Mapping files: which path of a log's JSON holds which canonical field.

docs/RECORDS.md, section "Mapping files", is the contract; this module is its only reader. A mapping that loads obeys
every rule and limit of that page, so the engine's compiler, the referee and the command line check nothing again.
An error names the file, the place in it, what was expected and what was found.

    mapping_model      what a mapping says, and the limits
    mapping_fields     reads [fields.NAME]
    mapping_labels     reads [labels.NAME]
    mapping_meaning    reads [[skip]], [[refuse]], conventions and repeats
    mapping_values     reads paths, lists and flags
    value              reads [value]: how a message's value holds records
    mapping_errors     the words of an error
"""

import os
import pathlib
import re
import tomllib
from dataclasses import replace
from typing import Any, NoReturn

from tokenometer.schemas.mapping_errors import MappingError, MappingPlace, did_you_mean, show, toml_error
from tokenometer.schemas.mapping_fields import fields_of
from tokenometer.schemas.mapping_labels import labels_of
from tokenometer.schemas.mapping_meaning import check_skip, conventions_of, repeats_of, skip_of
from tokenometer.schemas.mapping_model import (
    COUNT_END,
    FIELDS,
    FORMATS,
    ID_BYTES_MAX,
    PARTS,
    PLACES_MAX,
    STRING_BYTES_MAX,
    STRINGS,
    TOTAL_TOKENS,
    Bracket,
    Condition,
    Convention,
    Field,
    Label,
    Mapping,
    Path,
    Selector,
)
from tokenometer.schemas.mapping_values import Reads, unknown_key
from tokenometer.schemas.value import Value, value_of, with_fields

__all__ = [
    "COUNT_END",
    "FIELDS",
    "ID_BYTES_MAX",
    "PARTS",
    "STRINGS",
    "STRING_BYTES_MAX",
    "TOTAL_TOKENS",
    "Bracket",
    "Condition",
    "Convention",
    "Field",
    "Label",
    "Mapping",
    "MappingError",
    "Path",
    "Selector",
    "load",
    "parse",
    "resolve",
    "shipped",
    "shipped_text",
]

_TOP_KEYS_1 = ("format", "name", "description", "input_tokens_are", "output_tokens_are", "fields")
_TOP_KEYS_2 = (*_TOP_KEYS_1, *(f"{part}_are" for part in PARTS), "skip", "refuse", "repeats", "value", "labels")
_TOP_KEYS = {1: _TOP_KEYS_1, 2: _TOP_KEYS_2}
_SHIPPED = pathlib.Path(__file__).parent / "mappings"


def load(path: str | os.PathLike[str]) -> Mapping:
    """Read and check a mapping file; its `name` must be the file's name without `.toml`."""
    return _load(pathlib.Path(path), os.fspath(path))


def parse(text: str, source: str) -> Mapping:
    """Check a mapping's text; `source` says in messages where it came from."""
    try:
        top = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also an integer with thousands of digits
        raise MappingError(f"{source}: {toml_error(error, text)}") from None
    return _mapping(top, source)


def shipped() -> tuple[str, ...]:
    """The names of the mappings that come with Tokenometer, sorted."""
    return tuple(sorted(file.stem for file in _SHIPPED.glob("*.toml")))


def shipped_text(name: str) -> bytes:
    """The file of a shipped mapping as it is, comments and all."""
    if name not in shipped():
        hint = did_you_mean(name, shipped())
        raise MappingError(f"{name}: expected the name of a shipped mapping ({', '.join(shipped())}){hint}")
    return (_SHIPPED / f"{name}.toml").read_bytes()


def resolve(name_or_path: str) -> Mapping:
    """A shipped mapping by its name, or a file. Write `./native` for a file that is named like a shipped mapping."""
    names = shipped()
    if name_or_path in names:
        return _load(_SHIPPED / f"{name_or_path}.toml", name_or_path)
    if name_or_path.endswith(".toml") or pathlib.Path(name_or_path).exists():
        return load(name_or_path)
    hint = did_you_mean(name_or_path, names)
    raise MappingError(
        f"{name_or_path}: expected a .toml file or the name of a shipped mapping ({', '.join(names)}){hint}"
    )


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
        MappingPlace(source, "name").fail(f"the file's name without .toml, {show(stem)}", mapping.name)
    return mapping


def _mapping(top: dict[str, Any], source: str) -> Mapping:
    here = MappingPlace(source)
    # The format comes first: a file of another format may well have other keys.
    file_format = top.get("format")
    if type(file_format) is not int or file_format not in FORMATS:
        (here / "format").fail("1 or 2, the formats that this version reads", file_format)
    _check_top_keys(top, file_format, here)
    name = top.get("name")
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9-]+", name):
        (here / "name").fail("a string of a-z, 0-9 and -", name)
    description = top.get("description")
    if not isinstance(description, str) or not description.strip() or len(description.splitlines()) != 1:
        (here / "description").fail("a string of one line", description)
    reads = Reads()
    has_total = isinstance(top.get("fields"), dict) and TOTAL_TOKENS in top["fields"]
    conventions = conventions_of(top, file_format, here, reads, has_total)
    fields, further, total, selector = fields_of(top.get("fields"), file_format, here / "fields", reads)
    labels = labels_of(top["labels"], here / "labels", reads) if "labels" in top else ()
    skip = skip_of(top["skip"], here / "skip", reads) if "skip" in top else ()
    check_skip(skip, fields, here / "skip")
    refuse = skip_of(top["refuse"], here / "refuse", reads) if "refuse" in top else ()
    check_skip(refuse, fields, here / "refuse")
    reads.check(here / "fields", shared=file_format == 2, places_max=PLACES_MAX)
    repeats = repeats_of(top, "request_id" in top["fields"], here / "repeats")
    mapping = Mapping(name, description, conventions, fields, selector, source, total, skip, repeats, file_format)
    mapping = replace(mapping, refuse=refuse, further=further, labels=labels)
    return replace(mapping, value=with_fields(_value(top, here / "value"), mapping.paths))


def _value(top: dict[str, Any], here: MappingPlace) -> Value:
    def fail(where: str, expected: str, found: Any) -> NoReturn:
        (here / where if where else here).fail(expected, found)

    return value_of(top.get("value"), fail)


def _check_top_keys(top: dict[str, Any], file_format: int, here: MappingPlace) -> None:
    for key in top:
        if key in _TOP_KEYS[file_format]:
            continue
        if key in _TOP_KEYS_2:
            (here / key).error("needs format = 2")
        unknown_key(key, _TOP_KEYS[file_format], here)
