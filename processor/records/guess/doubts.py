"""What a person must look at although something was chosen: names that are not known, counts that are not read."""

import orjson

from tokenometer.processor.records import plausible
from tokenometer.processor.records.count_names import (
    DETAIL,
    INPUT,
    OUTPUT,
    TOTAL,
    Name,
    is_no_count,
    name_of,
    norm,
    place_of,
)
from tokenometer.processor.records.guess.counts import ROLES, Candidate, Reading, shared_keys
from tokenometer.processor.records.guess.plan import GuessPlan, listed, of_records, paths_text
from tokenometer.processor.records.sample import Sample, count_of, held_objects, leaves_of
from tokenometer.schemas.mapping_errors import show, show_path
from tokenometer.schemas.mapping_model import PARTS, Path

_SEVERAL = ("request_count", "requests", "num_requests", "n_requests", "number_of_requests", "calls", "call_count")
_NAMES_OF_TAGS = ("key", "name", "k")


def doubt_counts(reading: Reading, sample: Sample, read: set[int], plan: GuessPlan) -> None:
    total = reading.counts(TOTAL, sample)
    for role in ROLES:
        for each in reading.roles.get(role, []):
            proven = role in (INPUT, OUTPUT) and each.counts.keys() & read <= total.keys()
            if not each.name.known and each.positive and not proven:
                plan.doubt(role, f"{show_path(each.path)} is no name that is known; its words say so.")
            if each.name.billed:
                plan.doubt(role, f"{show_path(each.path)} is what is billed, which may be less than what was used.")
            bad = each.values - len(each.counts)
            if bad:
                plan.doubt(role, f"{of_records(bad, each.values)} have something there that is no count.")
        _doubt_rivals(role, reading, sample, plan)
        if len(reading.roles.get(role, [])) > 1:
            paths = paths_text(each.path for each in reading.roles[role][1:])
            plan.doubt(role, f"where {show_path(reading.roles[role][0].path)} has no value, {paths} is read instead.")


def _doubt_rivals(role: str, reading: Reading, sample: Sample, plan: GuessPlan) -> None:
    """Other paths of the same meaning that say something else."""
    counts = reading.counts(role, sample)
    differ = [each for each in reading.rivals.get(role, []) if _differs(each, counts)]
    if not differ:
        return
    chosen = paths_text(each.path for each in reading.roles.get(role, []))
    plan.doubt(role, f"{paths_text(each.path for each in differ)} could be meant too, and differs"
                     f"{f' from {chosen}' if chosen else ''}.")  # fmt: skip


def _differs(each: Candidate, counts: dict[int, int]) -> bool:
    return any(count != counts.get(index, 0) for index, count in each.counts.items())


def doubt_rest(reading: Reading | None, sample: Sample, plan: GuessPlan) -> None:
    """Counts that no field reads: by name in strings and arrays, without a telling name beside those that are read."""
    for path, text in sample.strings.items():
        held = [(item_path, name) for item in held_objects(text) for item_path, name in _names(item)]
        _doubt_held(path, held, reading, plan, "JSON in a string", f"[value] json_in = [{show_path(path)}] opens it")
    for path, items in sample.arrays.items():
        held = [found for item in items[:200] if isinstance(item, dict) for found in (*_names(item), *_tags(item))]
        _doubt_held(path, held, reading, plan, "an array", "[value] opens it with records or an encoding")
    unread = _unread(reading, sample) if reading else []
    for part in PARTS if unread else ():
        if part not in plan.tables:
            plan.doubt(
                part, f"no path looks like it, so it is 0; beside the counts that are read are {paths_text(unread)}."
            )


def _names(item: dict[str, object]) -> list[tuple[Path, Name]]:
    named = ((path, name_of(path), value) for path, value in leaves_of(item))
    return [(path, name) for path, name, value in named if name and count_of(value)]


def _tags(item: dict[str, object]) -> list[tuple[Path, Name]]:
    """`{"key": "gen_ai.usage.input_tokens", ...}`."""
    keys = [value for key in _NAMES_OF_TAGS if isinstance(value := item.get(key), str) and value]
    return [((key,), name) for key in keys if (name := name_of((key,)))]


def _doubt_held(
    path: Path, held: list[tuple[Path, Name]], reading: Reading | None, plan: GuessPlan, what: str, how: str
) -> None:
    held = [(inner, name) for inner, name in held if name.role in (*ROLES, TOTAL)]
    if reading and what != "an array":  # what is inside an array may be counts of further calls
        held = [(inner, name) for inner, name in held if not reading.roles.get(name.role)]
    for role in dict.fromkeys(name.role for _, name in held):
        inner = paths_text(dict.fromkeys(inner for inner, name in held if name.role == role))
        plan.doubt(role, f"{show_path(path)} holds {inner} inside {what}, which this mapping does not read: {how}.")


def _unread(reading: Reading, sample: Sample) -> list[Path]:
    """Counts beside or below those that are read, whose names say nothing that we know."""
    read = {each.path for candidates in reading.roles.values() for each in candidates}
    read |= {path for paths in reading.plus.values() for path in paths}
    found = []
    for leaf in sample.leaves.values():
        below = any(
            shared_keys(leaf.path, parent) == len(parent) if parent else len(leaf.path) == 1
            for parent in reading.parents
        )
        name = name_of(leaf.path)
        says_tokens = "tok" in leaf.path[-1].lower() or "cache" in leaf.path[-1].lower()
        if leaf.path in read or name and not (name.role == DETAIL and not name.known and not says_tokens):
            continue
        counts = [value for value in leaf.values.values() if type(value) is int and count_of(value)]
        if counts and (below or says_tokens) and not is_no_count(leaf.path) and not plausible.unit_of(counts[0]):
            found.append(leaf.path)
    return found


def doubt_log(sample: Sample, plan: GuessPlan) -> None:
    """Lines that no mapping reads as they are, and records that are more than one request."""
    for leaf in sample.leaves.values():
        if place_of(norm(leaf.path[-1:]), _SEVERAL) is not None and any(count > 1 for count in leaf.counts().values()):
            plan.doubt("log", f"by {show_path(leaf.path)} a record may sum up several requests; it is counted as one.")
    if sample.too_many:
        plan.doubt("log", "the sample has so many different keys that some were not looked at.")
    if not sample.records:
        plan.doubt("log", "no line of the sample is a JSON object.")
    if not sample.unreadable:
        return
    first = sample.unreadable[0]
    shown = show(first[:60].decode(errors="replace"))
    what = "are no JSON objects"
    for start in (place for place, byte in enumerate(first[:200]) if byte == ord("{") and place):
        try:
            if isinstance(orjson.loads(first[start:]), dict):
                before = show(first[:start].decode(errors="replace"))
                what = f"have text before the JSON ([value] prefix takes it off), {before}"
                break
        except orjson.JSONDecodeError:
            continue
    if first[:1] == b"[" and first.rstrip()[-1:] == b"]":
        what = "may be arrays of records"
    total = len(sample.unreadable) + len(sample.records)
    plan.doubt("log", f"{of_records(len(sample.unreadable), total)} {what}. The first begins with {listed([shown])}.")
    if not sample.records:
        for role in (INPUT, OUTPUT):
            plan.doubt(role, "no line of the sample could be read.")
