"""The tables `[labels.NAME]` of a mapping file: strings of a record, or ranges of its counts, that its row carries."""

import re
from itertools import pairwise
from typing import Any

from tokenometer.schemas.mapping_errors import MappingPlace, did_you_mean, show
from tokenometer.schemas.mapping_fields import label_field
from tokenometer.schemas.mapping_model import (
    COUNT_END,
    EDGES_MAX,
    LABEL_NAMES_TAKEN,
    LABELS_MAX,
    Bracket,
    Label,
)
from tokenometer.schemas.mapping_values import Reads, check_keys
from tokenometer.schemas.usage import TOKENS

_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}", re.ASCII)
_BRACKET_KEYS = ("bracket_of", "edges")


def labels_of(tables: Any, here: MappingPlace, reads: Reads) -> tuple[Label, ...]:
    """By name, as rows list them."""
    if not isinstance(tables, dict) or not tables:
        here.fail("a table with one table for each label, such as [labels.team]", tables)
    if len(tables) > LABELS_MAX:
        here.error(f"expected at most {LABELS_MAX} labels, found {len(tables)}: {', '.join(tables)}")
    return tuple(_label(name, tables[name], here / name, reads) for name in sorted(tables))


def _label(name: str, table: Any, here: MappingPlace, reads: Reads) -> Label:
    if not _NAME.fullmatch(name):
        here.error("expected a name of 1 to 63 characters of a-z, 0-9 and _ that begins with a letter")
    if name in LABEL_NAMES_TAKEN:
        here.error(f"{name} is already the name of something else in usage rows; choose another name for the label")
    if not isinstance(table, dict):
        here.fail("a table", table)
    if "bracket_of" in table or "edges" in table:
        return Label(name, None, _bracket(table, here))
    return Label(name, label_field(name, table, here, reads))


def _bracket(table: dict[str, Any], here: MappingPlace) -> Bracket:
    for key in table:
        if key not in _BRACKET_KEYS and "bracket_of" in table:
            (here / key).error("excluded by bracket_of: a bracket is computed from a count, and has only edges")
    check_keys(table, _BRACKET_KEYS, here)
    counter = table.get("bracket_of")
    if counter not in TOKENS:
        place, hint = here / "bracket_of", did_you_mean(counter, TOKENS)
        place.error(f"expected one of {', '.join(TOKENS)}, found {show(counter)}{hint}")
    return Bracket(counter, _edges(table.get("edges"), here / "edges"))


def _edges(edges: Any, here: MappingPlace) -> tuple[int, ...]:
    if not isinstance(edges, list) or not 1 <= len(edges) <= EDGES_MAX:
        here.fail(f"a list of 1 to {EDGES_MAX} integers", edges)
    for index, edge in enumerate(edges):
        if type(edge) is not int or not 0 <= edge < COUNT_END:
            here[index].fail("an integer, 0 <= n < 2^40", edge)
    for index, (before, edge) in enumerate(pairwise(edges), 1):
        if edge <= before:
            here[index].fail(f"edges that rise: more than {before}", edge)
    return tuple(edges)
