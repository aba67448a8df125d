"""The tables `[fields.NAME]` of a mapping file: which paths hold a canonical field, and what is taken there."""

import re
from typing import Any

from tokenometer.schemas.mapping_errors import MappingPlace, did_you_mean, show
from tokenometer.schemas.mapping_model import (
    EPOCH_FORMATS,
    FIELDS,
    ID_BYTES_MAX,
    KEY_BYTES_MAX,
    NEEDED,
    PLUS_MAX,
    SELECTOR_ENTRIES_MAX,
    STRING_BYTES_MAX,
    STRINGS,
    TEXT_FORMATS,
    TOTAL_TOKENS,
    VALUE_BYTES_MAX,
    Field,
    Kind,
    Path,
    Selector,
)
from tokenometer.schemas.mapping_values import Reads, flag, path_of, paths_of, stand_in, unknown_key
from tokenometer.schemas.usage import FURTHER, FURTHER_PARENTS, TOKENS
from tokenometer.schemas.value import HEADER_PREFIX, KEY_MEMBER

_STRING_KEYS = ("path", "aliases", "required", "default", "constant")
_COUNT_KEYS = (*_STRING_KEYS, "digits")
_KEYS_1: dict[str, tuple[str, ...]] = {
    # There is no default or constant, because one id for many records would make them duplicates of each other.
    "request_id": ("path", "aliases", "required", "scope"),
    # There is no default or constant, because one time for many records would bill them all in one window.
    "timestamp": ("path", "aliases", "required", "formats", "fallback"),
    **{name: _STRING_KEYS for name in STRINGS if name != "request_id"},
    **{name: _COUNT_KEYS for name in TOKENS},
    "tokens": ("path", "aliases", "required", "default", "digits", "by", "requests", "to"),
}
LABEL = "labels"  # the keys of a label, beside those of the fields
_MESSAGE = ("key", "header")  # in place of a path: the message's key, or one of its headers
_MORE_2 = {
    "request_id": ("empty", "numbers", "with", "scope_of", *_MESSAGE),
    "timestamp": ("digits", "zone", *_MESSAGE),
    **{name: ("empty", "numbers", *_MESSAGE) for name in STRINGS if name != "request_id"},
    **{name: ("whole_numbers", "plus", *_MESSAGE) for name in TOKENS},
    "tokens": ("whole_numbers",),
}
_KEYS_2: dict[str, tuple[str, ...]] = {
    **{name: (*keys, *_MORE_2[name]) for name, keys in _KEYS_1.items()},
    # No default or constant: a total is there to be checked, and a part that no record tells is none.
    **{name: ("path", "aliases", "required", "digits", "whole_numbers", "plus") for name in (*FURTHER, TOTAL_TOKENS)},
    LABEL: (*_STRING_KEYS, "empty", "numbers", *_MESSAGE),
}
_KEYS = {1: _KEYS_1, 2: _KEYS_2}
_FIELD_NAMES = {version: tuple(name for name in keys if name != LABEL) for version, keys in _KEYS.items()}
_EXCLUDED_BY_CONSTANT = (
    *("path", "aliases", "default", "required", "empty", "numbers", "whole_numbers", "plus"),
    *_MESSAGE,
)


def fields_of(
    tables: Any, file_format: int, here: MappingPlace, reads: Reads
) -> tuple[tuple[Field, ...], tuple[Field, ...], Field | None, Selector | None]:
    """All canonical fields in their order, the further counters, `total_tokens`, and the selector of `tokens`."""
    if not isinstance(tables, dict):
        here.fail("a table with one table for each canonical field", tables)
    for name in tables:
        if name not in _FIELD_NAMES[file_format]:
            _newer(name in _FIELD_NAMES[2], here / name)
            unknown_key(name, _FIELD_NAMES[file_format], here)
    names: tuple[str, ...] = FIELDS
    if "tokens" in tables:
        for count in (*TOKENS, *FURTHER, TOTAL_TOKENS):
            if count in tables:
                (here / count).error("excluded by fields.tokens, which takes the place of the five counters")
        names = (*(name for name in FIELDS if name not in TOKENS), "tokens")

    fields = tuple(_field(name, tables.get(name), file_format, here / name, reads) for name in names)
    selector = _selector(tables["tokens"], here / "tokens", reads) if "tokens" in tables else None
    further = tuple(_further(name, tables[name], fields, here / name, reads) for name in FURTHER if name in tables)
    total = None
    if TOTAL_TOKENS in tables:
        total = _field(TOTAL_TOKENS, tables[TOTAL_TOKENS], file_format, here / TOTAL_TOKENS, reads)
    _check_identity(fields, here / "request_id" / "with")
    return fields, further, total, selector


def label_field(name: str, table: dict[str, Any], here: MappingPlace, reads: Reads) -> Field:
    """A label that is read from the record: the rules of `user`, but that it may be absent."""
    return _field(LABEL, table, 2, here, reads, f"{LABEL}.{name}")


def _further(name: str, table: Any, fields: tuple[Field, ...], here: MappingPlace, reads: Reads) -> Field:
    """A part is refused where it is more than its total, so that has to be read, too."""
    parent = next(field for field in fields if field.name == FURTHER_PARENTS[name])
    if not parent.paths and not parent.default:
        here.error(f"is a part of {parent.name}, which this mapping does not read: map fields.{parent.name} too")
    return _field(name, table, 2, here, reads)


def _newer(is_newer: bool, here: MappingPlace) -> None:
    if is_newer:
        here.error("needs format = 2")


def _check_field_keys(name: str, table: dict[str, Any], file_format: int, here: MappingPlace) -> None:
    known = _KEYS[file_format][name]
    for key in table:
        if key in known:
            continue
        _newer(key in _KEYS_2[name], here / key)
        owners = [owner for owner, keys in _KEYS[file_format].items() if key in keys]
        if owners:
            (here / key).error(f"not for this field; only for {', '.join(owners)}")
        unknown_key(key, known, here)


def _field(
    name: str, table: Any, file_format: int, here: MappingPlace, reads: Reads, called: str | None = None
) -> Field:
    kind: Kind = "time" if name == "timestamp" else "string" if name in (*STRINGS, LABEL) else "count"
    bytes_max = ID_BYTES_MAX if name == "request_id" and file_format == 2 else STRING_BYTES_MAX
    if table is None:
        if name in NEEDED:
            here.fail("a table: every record needs this field", table)
        return Field(name, kind, (), required=False, default=0 if kind == "count" else None, bytes_max=bytes_max)
    if not isinstance(table, dict):
        here.fail("a table", table)
    _check_field_keys(name, table, file_format, here)
    if "constant" in table:
        for key in _EXCLUDED_BY_CONSTANT:
            if key in table:
                (here / key).error("excluded by constant")
        constant = stand_in(kind, table["constant"], here / "constant")
        return Field(called or name, kind, (), required=False, default=constant, digits=flag(table, "digits", here))

    default = stand_in(kind, table["default"], here / "default") if "default" in table else None
    required = _required(name, table, here)
    if default is None and kind == "count" and not required and name != TOTAL_TOKENS:
        default = 0
    formats = _formats(table.get("formats"), file_format, here / "formats") if kind == "time" else ()
    if table.get("fallback", "message_time") != "message_time":
        (here / "fallback").fail('"message_time"', table["fallback"])
    return Field(
        called or name,
        kind,
        _paths(table, _KEYS[file_format][name], here, reads),
        required,
        default,
        digits=_digits(table, kind, formats, here),
        formats=formats,
        message_time_fallback="fallback" in table,
        scope=_scope(table, here, reads),
        scope_of_aliases=_scope_of(table, here),
        plus=_plus(table, here, reads),
        whole_numbers=flag(table, "whole_numbers", here),
        empty_is_absent=_empty(table, here / "empty"),
        numbers=flag(table, "numbers", here),
        zone_minutes=_zone_minutes(table, formats, here / "zone"),
        with_fields=_with_fields(table, here / "with"),
        bytes_max=bytes_max,
    )


def _required(name: str, table: dict[str, Any], here: MappingPlace) -> bool:
    """Whether a record must have the field: a needed one unless something replaces it, an optional one if the mapping
    says so."""
    instead = next((key for key in ("default", "fallback") if key in table), None)
    required = flag(table, "required", here)
    if required and instead:
        (here / "required").error(f"excluded by {instead}, which replaces an absent value")
    if name not in NEEDED:
        return required
    if "required" in table and not required and not instead:
        help_text = 'fallback = "message_time"' if name == "timestamp" else "a default"
        (here / "required").error(f"expected true, found false: every record needs this field; give it {help_text}")
    return not instead


# --- Paths ---


def _paths(table: dict[str, Any], known: tuple[str, ...], here: MappingPlace, reads: Reads) -> tuple[Path, ...]:
    sources = [key for key in ("path", *_MESSAGE) if key in table]
    if len(sources) > 1:
        (here / sources[1]).error(f"excluded by {sources[0]}")
    if not sources and "constant" in known:
        here.fail("path or constant", None)
    places = [_source(table, sources[0] if sources else "path", here), *paths_of(table, "aliases", here)]
    for place, path in places:
        reads.add(place, path, here.where)
    return tuple(path for _, path in places)


def _source(table: dict[str, Any], key: str, here: MappingPlace) -> tuple[MappingPlace, Path]:
    """The first source: a path into the record, or the member that intake makes of the message's key or a header."""
    place = here / key
    if key == "path":
        return place, path_of(table.get(key), place)
    if key == "key":
        if table[key] is not True:
            place.fail("true", table[key])
        return place, (KEY_MEMBER,)
    header, most = table[key], KEY_BYTES_MAX - len(HEADER_PREFIX)
    if not isinstance(header, str) or not 1 <= len(header.encode()) <= most:
        place.fail(f"a header's name of 1 to {most} bytes", header)
    return place, (HEADER_PREFIX + header,)


def _scope(table: dict[str, Any], here: MappingPlace, reads: Reads) -> Path | None:
    if "scope" not in table:
        return None
    scope = path_of(table["scope"], here / "scope")
    reads.add(here / "scope", scope, here.where)
    return scope


def _scope_of(table: dict[str, Any], here: MappingPlace) -> bool:
    if "scope_of" not in table:
        return False
    if table["scope_of"] != "aliases":
        (here / "scope_of").fail('"aliases"', table["scope_of"])
    for key in ("scope", "aliases"):
        if not table.get(key):
            (here / "scope_of").error(f"needs {key}: it says that only an id of an alias has the scope")
    return True


def _plus(table: dict[str, Any], here: MappingPlace, reads: Reads) -> tuple[Path, ...]:
    """An addend that the field reads already would be counted twice: `Reads` refuses it."""
    places = paths_of(table, "plus", here, PLUS_MAX)
    for place, path in places:
        reads.add(place, path, here.where)
    return tuple(path for _, path in places)


# --- Identity ---


def _with_fields(table: dict[str, Any], here: MappingPlace) -> tuple[str, ...]:
    if "with" not in table:
        return ()
    names, known = table["with"], [name for name in STRINGS if name != "request_id"]
    if not isinstance(names, list) or not names:
        here.fail(f"a list of {', '.join(known)}", names)
    for index, name in enumerate(names):
        if name not in known:
            here[index].error(f"expected one of {', '.join(known)}, found {show(name)}{did_you_mean(name, known)}")
    if len(set(names)) != len(names):
        here.error("the same field is listed twice")
    return tuple(names)


def _check_identity(fields: tuple[Field, ...], here: MappingPlace) -> None:
    by_name = {field.name: field for field in fields}
    for index, name in enumerate(by_name["request_id"].with_fields):
        if not by_name[name].paths:
            here[index].error(f"{name} is the same in every record of this mapping, so it tells no two requests apart")


# --- Counts and strings ---


def _digits(table: dict[str, Any], kind: Kind, formats: tuple[str, ...], here: MappingPlace) -> bool:
    digits = flag(table, "digits", here)
    if digits and kind == "time" and not any(name in EPOCH_FORMATS for name in formats):
        (here / "digits").error(f"needs an epoch format in formats ({', '.join(EPOCH_FORMATS)})")
    return digits


def _empty(table: dict[str, Any], here: MappingPlace) -> bool:
    if "empty" in table and table["empty"] != "absent":
        here.fail('"absent"', table["empty"])
    return "empty" in table


# --- Times ---


def _formats(value: Any, file_format: int, here: MappingPlace) -> tuple[str, ...]:
    texts = TEXT_FORMATS if file_format == 2 else TEXT_FORMATS[:1]
    known = (*EPOCH_FORMATS, *texts)
    expected = f"a list of at most one epoch format ({', '.join(EPOCH_FORMATS)}) and/or {' or '.join(texts)}"
    if not isinstance(value, list) or not value:
        here.fail(expected, value)
    for item in value:
        if item not in known:
            _newer(item in TEXT_FORMATS, here)
            here.error(f"expected {expected}, found {show(item)}{did_you_mean(item, known)}")
    twice = any(sum(item in group for item in value) > 1 for group in (EPOCH_FORMATS, TEXT_FORMATS))
    if twice or len(set(value)) != len(value):
        here.error(f"expected {expected}, found {', '.join(value)}")
    return tuple(value)


def _zone_minutes(table: dict[str, Any], formats: tuple[str, ...], here: MappingPlace) -> int | None:
    if "zone" not in table:
        return None
    zone = table["zone"]
    match = re.fullmatch(r"UTC|([+-])([01][0-9]|2[0-3]):([0-5][0-9])", zone) if isinstance(zone, str) else None
    if not match:
        here.fail('"UTC" or an offset such as "+08:00"', zone)
    if "iso8601" not in formats:
        here.error("needs iso8601 in formats: a time of rfc3339 always names its zone")
    if not match[1]:
        return 0
    return (int(match[2]) * 60 + int(match[3])) * (-1 if match[1] == "-" else 1)


# --- Token events ---


def _selector(table: dict[str, Any], here: MappingPlace, reads: Reads) -> Selector:
    by = path_of(table.get("by"), here / "by")
    reads.add(here / "by", by, f"{here.where}.by")
    to = table.get("to")
    if not isinstance(to, dict) or not 1 <= len(to) <= SELECTOR_ENTRIES_MAX:
        expected = f"a table of 1 to {SELECTOR_ENTRIES_MAX} entries, source value = counter"
        (here / "to").fail(expected, f"{len(to)} entries" if isinstance(to, dict) else to)
    for value, counter in to.items():
        if not 1 <= len(value.encode()) <= VALUE_BYTES_MAX:
            (here / "to").fail(f"source values of 1 to {VALUE_BYTES_MAX} bytes", value)
        if counter not in TOKENS:
            hint = did_you_mean(counter, TOKENS)
            (here / "to" / value).error(f"expected one of {', '.join(TOKENS)}, found {show(counter)}{hint}")
    requests = table.get("requests")
    if "requests" in table and (not isinstance(requests, str) or requests not in to):
        (here / "requests").fail(f"one of the source values in `to` ({', '.join(map(show, to))})", requests)
    return Selector(by, tuple(to.items()), requests)
