"""What format 2 says about whole records: which ones to skip, and how the parts of a count relate to its total."""

from typing import Any, Literal

from tokenometer.schemas.mapping_errors import MappingPlace
from tokenometer.schemas.mapping_model import (
    CONVENTION_ALIASES_MAX,
    PARTS,
    SKIP_AND_MAX,
    SKIP_ENTRIES_MAX,
    VALUES_MAX,
    Condition,
    Convention,
    Field,
    Test,
)
from tokenometer.schemas.mapping_values import Prefix, Reads, check_keys, path_of, paths_of, values_of
from tokenometer.schemas.usage import PARENTS

_TESTS: tuple[Test, ...] = ("in", "not_in", "present", "absent")
_CONVENTION = '"inclusive", "additive", "by_total", or a table with by_total or path'
_STATED = ("inclusive", "additive")
_INSIDE_OR_BESIDE = '"inclusive" or "additive"'


# --- Skip ---


def skip_of(value: Any, here: MappingPlace, reads: Reads) -> tuple[tuple[Condition, ...], ...]:
    """The entries of `[[skip]]` or `[[refuse]]`, each with all its conditions."""
    if not isinstance(value, list) or not 1 <= len(value) <= SKIP_ENTRIES_MAX:
        here.fail(f"1 to {SKIP_ENTRIES_MAX} tables, each written as [[{here.where}]]", value)
    return tuple(_entry(table, here[index], reads) for index, table in enumerate(value))


def _entry(table: Any, here: MappingPlace, reads: Reads) -> tuple[Condition, ...]:
    conditions = [_condition(table, here, reads, here.where, ("path", *_TESTS, "and"))]
    more = table.get("and", [])
    if not isinstance(more, list) or ("and" in table and not 1 <= len(more) <= SKIP_AND_MAX):
        (here / "and").fail(f"a list of 1 to {SKIP_AND_MAX} tables", more)
    for index, further in enumerate(more):
        place = (here / "and")[index]
        conditions.append(_condition(further, place, reads, here.where, ("path", *_TESTS)))
    _check_it_can_fit(conditions, here)
    return tuple(conditions)


def _condition(table: Any, here: MappingPlace, reads: Reads, reader: str, known: tuple[str, ...]) -> Condition:
    if not isinstance(table, dict):
        here.fail("a table with a path and one test", table)
    check_keys(table, known, here)
    path = path_of(table.get("path"), here / "path")
    for name in ("present", "absent"):
        if name in table and table[name] is not True:
            (here / name).fail("true", table[name])
    tests = [name for name in _TESTS if name in table]
    or_absent = len(tests) == 2 and tests[1] == "absent" and tests[0] in ("in", "not_in")
    if len(tests) != 1 and not or_absent:
        expected = "exactly one of in, not_in, present = true and absent = true (absent may be beside in and not_in)"
        here.fail(expected, " and ".join(tests) if tests else None)
    test, listed = tests[0], []
    if test in ("in", "not_in"):
        listed = values_of(table[test], (here / test), (str, bool, int), "strings, booleans or integers")
    reads.add(here / "path", path, reader, object_too=test in ("present", "absent"))
    return Condition(
        path,
        test,
        strings=tuple(value for value in listed if type(value) is str),
        integers=tuple(value for value in listed if type(value) is int),
        booleans=tuple(value for value in listed if type(value) is bool),
        prefixes=tuple(value.text for value in listed if type(value) is Prefix),
        or_absent=or_absent,
    )


def _check_it_can_fit(conditions: list[Condition], here: MappingPlace) -> None:
    """Refuses conditions that never fit: where a value is absent, so is everything below it."""
    for above in conditions:
        for below in conditions:
            under = below.path[: len(above.path)] == above.path and len(below.path) > len(above.path)
            if under and above.test == "absent" and not below.fits_absent:
                here.error("can never fit: one condition wants a value below another that must be absent")


def check_skip(skip: tuple[tuple[Condition, ...], ...], fields: tuple[Field, ...], here: MappingPlace) -> None:
    """Refuses an entry that fits every record that could be counted, because it is a mistake."""
    for index, entry in enumerate(skip):
        if len(entry) != 1 or entry[0].test != "present":
            continue
        for field in fields:
            if field.required and all(path[: len(entry[0].path)] == entry[0].path for path in field.paths):
                here[index].error(
                    f"would {here.where} every record that can be counted: {field.name} is required there"
                )


# --- Conventions ---


def conventions_of(
    top: dict[str, Any], file_format: int, here: MappingPlace, reads: Reads, has_total: bool
) -> tuple[Convention, Convention, Convention]:
    """Of PARTS; a part without one of its own has its total's."""
    stated = {
        name: _stated(top, f"{name}_are", file_format, here, has_total) for name in ("input_tokens", "output_tokens")
    }
    found = []
    for part in PARTS:
        key = f"{part}_are"
        found.append(_stated(top, key, file_format, here, has_total) if key in top else stated[PARENTS[part]])
    for name, convention in stated.items():
        if (convention.paths or convention.by_total) and convention not in found:
            (here / f"{name}_are").error("has no effect: each of its parts has a convention of its own")
    for convention in dict.fromkeys(found):
        place = here / f"{convention.field}_are"
        for number, path in enumerate(convention.paths):
            reads.add((place / "aliases")[number - 1] if number else place / "path", path, place.where)
    return found[0], found[1], found[2]


def _stated(top: dict[str, Any], key: str, file_format: int, here: MappingPlace, has_total: bool) -> Convention:
    value, place, field = top.get(key), here / key, key.removesuffix("_are")
    if value in _STATED:
        return Convention(value == "additive", field=field)
    if file_format == 1:
        place.fail(_INSIDE_OR_BESIDE, value)
    if value == "by_total":
        value = {"by_total": "inclusive"}
    if not isinstance(value, dict):
        place.fail(_CONVENTION, value)
    check_keys(value, ("by_total", "path", "aliases", *_STATED, "otherwise"), place)
    if ("by_total" in value) == ("path" in value):
        place.fail("a table with either by_total or path", " and ".join(value) if value else "an empty table")
    if "path" in value:
        return _by_value(value, place, field, has_total)
    check_keys(value, ("by_total",), place)
    _needs_total(has_total, place)
    return Convention(_is_additive(value, "by_total", place), by_total=True, field=field)


def _needs_total(has_total: bool, here: MappingPlace) -> None:
    if not has_total:
        here.error("by_total needs the total: map fields.total_tokens")


def _by_value(table: dict[str, Any], here: MappingPlace, field: str, has_total: bool) -> Convention:
    aliases = paths_of(table, "aliases", here, CONVENTION_ALIASES_MAX)
    paths = (path_of(table["path"], here / "path"), *(path for _, path in aliases))
    values: list[tuple[str | bool | Prefix, bool]] = []
    for name in _STATED:
        if name in table:
            listed = values_of(table[name], here / name, (str, bool), "strings or booleans")
            values += [(value, name == "additive") for value in listed]
    if not values:
        here.fail("a list of values under inclusive or additive", None)
    if len({value for value, _ in values}) != len(values):
        here.error("the same value is listed under inclusive and under additive")
    if len(values) > VALUES_MAX:
        here.fail(f"at most {VALUES_MAX} values in both lists", f"{len(values)} values")
    by_total = table.get("otherwise") == "by_total"
    if by_total:
        _needs_total(has_total, here / "otherwise")
    otherwise = _is_additive(table, "otherwise", here) if "otherwise" in table and not by_total else None
    whole = tuple((value, additive) for value, additive in values if not isinstance(value, Prefix))
    prefixes = tuple((value.text, additive) for value, additive in values if isinstance(value, Prefix))
    additive = False if by_total else otherwise
    return Convention(additive, by_total, paths=paths, values=whole, field=field, prefixes=prefixes)


def _is_additive(table: dict[str, Any], key: str, here: MappingPlace) -> bool:
    if table[key] not in _STATED:
        (here / key).fail(
            '"inclusive", "additive" or "by_total"' if key == "otherwise" else _INSIDE_OR_BESIDE, table[key]
        )
    return bool(table[key] == "additive")


# --- Repeats ---


def repeats_of(top: dict[str, Any], has_id: bool, here: MappingPlace) -> Literal["first", "grow"]:
    value = top.get("repeats", "first")
    if value == "first":
        return "first"
    if value != "grow":
        here.fail('"first" or "grow"', value)
    if not has_id:
        here.error("grow needs to know which records belong together: map fields.request_id")
    return "grow"
