"""A mapping in words: the tables of `tokenometer mappings` and `tokenometer mappings show`."""

import json
from collections.abc import Iterable

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tokenometer.processor import show
from tokenometer.schemas.mapping import PARTS, Condition, Convention, Field, Mapping, Path
from tokenometer.schemas.usage import FURTHER_PARENTS, PARENTS

_CONVENTIONS_WIDTH = 160  # of a terminal that has room for them beside the description


def mappings_view(mappings: Iterable[Mapping], width: int) -> RenderableType:
    """Names, which are to be typed and so never cut, and descriptions. Where the terminal is wide, conventions too."""
    wide, known = width >= _CONVENTIONS_WIDTH, list(mappings)
    table = _table()
    table.add_column("Mapping", no_wrap=True, min_width=max(len(mapping.name) for mapping in known))
    table.add_column("Description", overflow="fold")
    if wide:
        table.add_column("Input", no_wrap=True)
        table.add_column("Output", no_wrap=True)
    for mapping in known:
        cached, write, reasoning = map(_kind, mapping.conventions)
        kinds = [cached if cached == write else f"{cached}, {write}", reasoning] if wide else []
        table.add_row(mapping.name, Text(show.printable(mapping.description)), *kinds)
    return table


def mapping_view(mapping: Mapping) -> RenderableType:
    """Shows what is read for each field, which records are skipped, and how parts and repeats count."""
    table = _table()
    table.add_column("Field", no_wrap=True)
    table.add_column("Read from", overflow="fold")
    table.add_column("Rule")
    read = [label.field for label in mapping.labels if label.field]
    for field in (*mapping.fields, *mapping.further, *([mapping.total] if mapping.total else []), *read):
        texts = (Text(show.printable_lines(text)) for text in (_source(field), _rule(field, mapping)))
        table.add_row(field.name, *texts)
    for label in mapping.labels:
        if label.bracket:
            table.add_row(
                f"labels.{label.name}", f"the range of {label.bracket.counter}", ", ".join(label.bracket.names)
            )
    notes = ["; ".join(_conventions(mapping)) + "."]
    notes += [f"Skipped where {' and '.join(map(_condition, entry))}." for entry in mapping.skip]
    notes += [f"Refused where {' and '.join(map(_condition, entry))}." for entry in mapping.refuse]
    if mapping.repeats == "grow":
        notes.append("Records of one request carry the usage so far: each counter counts up to its greatest value.")
    elif mapping.field("request_id").paths:
        notes.append("Of records with one request_id the first counts, and the others are duplicates.")
    notes += [f"Messages are opened as {mapping.value.encoding}."] if mapping.value.encoding != "json" else []
    text = show.printable_lines("\n".join([f": {show.printable(mapping.description)}", *notes]))
    return Group(Text.assemble((mapping.name, "bold"), text + "\n"), table)


def _table() -> Table:
    return Table(box=box.SIMPLE_HEAD, header_style="bold", border_style="dim", pad_edge=False, show_edge=False)


def _kind(convention: Convention) -> str:
    # `mappings show` says by which field.
    kinds = ["a field"] * bool(convention.paths) + ["total"] * convention.by_total
    if kinds:
        return f"by {', else '.join(kinds)}"
    return "additive" if convention.additive else "inclusive"


def _conventions(mapping: Mapping) -> list[str]:
    if mapping.plain:
        return [
            "cached and cache-write tokens are added to input_tokens"
            if mapping.input_additive
            else "input_tokens includes cached and cache-write tokens",
            "reasoning tokens are added to output_tokens"
            if mapping.output_additive
            else "output_tokens includes reasoning tokens",
        ]
    said: dict[str, list[str]] = {}
    for part, convention in zip(PARTS, mapping.conventions, strict=True):
        said.setdefault(_convention(convention, PARENTS[part]), []).append(part)
    return [f"{' and '.join(parts)} are {text}" for text, parts in said.items()]


def _paths(convention: Convention) -> str:
    return ", else ".join(map(_path, convention.paths))


def _convention(convention: Convention, parent: str) -> str:
    stated = {True: f"added to {parent}", False: f"included in {parent}", None: "refused"}
    by_total = f"included in {parent} or added to it, as total_tokens tells"
    if convention.by_total:
        by_total += f", and {'added' if convention.additive else 'included'} where there is no total"
    if convention.by_total and not convention.paths:
        return by_total
    if convention.paths:
        values = [f"{stated[additive]} where it is {_json(value)}" for value, additive in convention.values]
        otherwise = by_total if convention.by_total else stated[convention.additive]
        values += [f"{stated[additive]} where it begins with {_json(text)}" for text, additive in convention.prefixes]
        return f"by {_paths(convention)}: {', '.join(values)}, otherwise {otherwise}"
    return stated[convention.additive]


def _condition(condition: Condition) -> str:
    path = _path(condition.path)
    if condition.only_presence:
        return f"{path} is {condition.test}"
    listed = [*map(_json, (*condition.strings, *condition.integers, *condition.booleans))]
    values = ", ".join([*listed, *(f"{_json(text)} and more" for text in condition.prefixes)])
    is_in = "is" if condition.test == "in" else "is none of"
    return f"{path} {is_in} {values}{' or absent' if condition.or_absent else ''}"


def _path(path: Path) -> str:
    return " > ".join(path)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _source(field: Field) -> str:
    if not field.paths:
        return "-" if not field.default else f"constant {_json(field.default)}"
    return "\n".join(["\nelse ".join(map(_path, field.paths)), *(f"plus {_path(path)}" for path in field.plus)])


def _rule(field: Field, mapping: Mapping) -> str:
    if not field.paths:
        return "not in this source" if not field.default else ""
    rules = ["required" if field.required else "optional"]
    if field.default:
        rules.append(f"default {_json(field.default)}")
    rules += _spellings(field)
    if field.scope:
        only = f", but for one at {_path(field.paths[0])}" if field.scope_of_aliases else ""
        rules.append(f"unique within {_path(field.scope)}{only}")
    if field.with_fields:
        rules.append(f"unique with {', '.join(field.with_fields)}")
    if field.name == "tokens" and mapping.selector:
        kinds = ", ".join(f"{value} = {counter}" for value, counter in mapping.selector.to)
        rules.append(f"counted by {_path(mapping.selector.by)}: {kinds}")
        if mapping.selector.requests:
            rules.append(f"{mapping.selector.requests} counts as the request")
    if field is mapping.total:
        rules.append("must be input + output")
    if field.name in FURTHER_PARENTS:
        rules.append(f"a part of {FURTHER_PARENTS[field.name]}")
    return "; ".join(rules)


def _spellings(field: Field) -> list[str]:
    """The other spellings that are taken as a value of the field."""
    rules = [" or ".join(field.formats)] if field.formats else []
    if field.zone_minutes is not None:
        sign, minutes = "-" if field.zone_minutes < 0 else "+", abs(field.zone_minutes)
        rules.append(f"at {sign}{minutes // 60:02}:{minutes % 60:02} where no zone is named")
    said = {
        "else the message's time": field.message_time_fallback,
        "digit strings too": field.digits,
        "12.0 and 1e+05 too": field.whole_numbers,
        '"" is absent': field.empty_is_absent,
        "numbers too": field.numbers,
    }
    return [*rules, *(words for words, holds in said.items() if holds)]
