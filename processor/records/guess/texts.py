"""Which paths hold the names: user, model, chip, and the id of the request."""

from collections.abc import Sequence
from typing import NamedTuple

from tokenometer.processor.records.count_names import norm, place_of, words
from tokenometer.processor.records.guess.counts import shared_keys
from tokenometer.processor.records.guess.plan import LABELS, GuessPlan, Table, of_records, paths_text
from tokenometer.processor.records.sample import Leaf, Sample
from tokenometer.schemas.mapping_errors import show_path
from tokenometer.schemas.mapping_model import ID_BYTES_MAX, STRING_BYTES_MAX, Path

ALIASES_MAX = 3
UNKNOWN = "unknown"
_UNIQUE = 0.5  # ids that repeat more often than this name something larger than a request
_RARE = 0.01  # of the records: what so few say is more often a broken record than a field

# The ends of paths, the best first.
_USERS = (
    "end_user_id end_user enduser_id user_api_key_end_user_id gen_ai_user user_id user userid username user_name "
    "metadata_user_id uid customer_id customer consumer_username consumer_id consumer_name consumer client_id "
    "account_id account acct_id acct owner_id user_api_key_user_id tenant_id tenant team_id team organization_id "
    "organization org_id org project_id project "
    "workspace_id workspace subject principal owner caller identity_arn user_email email api_key_name "
    "api_key_id user_api_key_hash api_key_hash key_hash api_key token_name app_id app"
).split()
# Words of names that several people share.
_GROUPS = {"tenant", "team", "organization", "org", "project", "workspace"}
_MODELS = (
    "response_model llm_model_name model_name model model_version served_model_name request_model "
    "model_id deployment engine model_group"
).split()
_CHIPS = (
    "chip gpu_type gpu_model hw_model gpu accelerator_type accelerator hardware device_model device_type chip_type "
    "gpu_name node_type instance_type"
).split()
_IDS = (
    "litellm_call_id request_id req_id x_request_id gen_ai_response_id response_id rid call_id chat_id completion_id "
    "generation_id message_id log_id event_id id uuid span_id"
).split()
_SPAN = "span_id"
NAMES = ("user", "model")  # that may identify a request together with its id
_CONTENT = {"messages", "choices", "candidates", "content", "parts", "tools", "prompt", "headers"}
_NOT = {
    "user": {"agent", "pod", "ip", "spend", "prompt", "message", "alias", "budget"},
    "model": {"hw", "gpu", "host", "device", "chip", "accelerator", "cost", "map", "parameters", "ratio", "user"},
    "chip": {"count", "id", "user", "memory", "util", "utilization"},
    "label": {"request", "requested"},
    "prefill_chip": {"count", "memory"},
    "request_id": {"trace", "parent", "session", "conversation", "user", "model", "team", "key", "organization",
                   "account", "channel", "project", "tenant", "plugin", "customer", "deployment", "operation"},
}  # fmt: skip


class Say(NamedTuple):
    """What a record says: the values of NAMES, and the counts."""

    names: tuple[str | None, ...]
    counts: tuple[int, ...]


Says = dict[int, Say]  # by the record's index


def _rank(leaf: Leaf, names: Sequence[str], field: str) -> int | None:
    """The place of its name among the field's names."""
    if any(set(words(key)) & _CONTENT for key in leaf.path[:-1] if key.lower() in _CONTENT - {"headers"}):
        return None
    own = set(words(leaf.path[-1]))
    if own & _NOT[field] or ("prefill" in own) != (field == "prefill_chip"):
        return None
    return place_of(norm(leaf.path), names)


def _ranked(sample: Sample, field: str, names: list[str], near: Path, read: set[int]) -> list[Leaf]:
    """Leaves of the field's names that have a value in records that are counted; the best first, and the rare last."""
    found = []
    for leaf in sample.leaves.values():
        place = _rank(leaf, names, field)
        texts = leaf.texts()
        here = texts.keys() & read
        too_long = sum(len(text.encode()) > _bytes_max(field) for text in texts.values())
        if place is None or not here or too_long > _RARE * len(texts):
            continue
        rare = len(here) < _RARE * len(read)
        is_number = any(type(value) is int for value in leaf.values.values())
        close = -shared_keys(leaf.path[:-1], near) if field == "model" else 0
        found.append(((rare, is_number, close, place, len(leaf.path), leaf.path), leaf))
    found.sort(key=lambda each: each[0])
    usual = [leaf.path for (rare, *_), leaf in found if not rare]
    return [leaf for (rare, *_), leaf in found if not (rare and any(_contain(leaf.path, path) for path in usual))]


def _contain(one: Path, other: Path) -> bool:
    """One of them is an object where the other is a value."""
    return shared_keys(one, other) == min(len(one), len(other))


def _bytes_max(field: str) -> int:
    return ID_BYTES_MAX if field == "request_id" else STRING_BYTES_MAX


def _fill(leaves: list[Leaf], read: set[int]) -> list[Leaf]:
    """The best, and those that have a value where the ones before have none."""
    chosen: list[Leaf] = []
    known: set[int] = set()
    for leaf in leaves:
        if len(chosen) <= ALIASES_MAX and (leaf.texts().keys() & read) - known:
            chosen.append(leaf)
            known |= leaf.texts().keys()
    return chosen


def _coercion(table: Table, leaves: list[Leaf]) -> None:
    values = [value for leaf in leaves for value in leaf.values.values()]
    if any(value == "" for value in values):
        table.settings["empty"] = "absent"
    if any(type(value) is int for value in values):
        table.settings["numbers"] = True


def guess_name(field: str, sample: Sample, near: Path, read: set[int], plan: GuessPlan) -> None:
    """The table of user, model, chip or prefill_chip."""
    names = {"user": _USERS, "model": _MODELS, "chip": _CHIPS, "prefill_chip": _CHIPS}[field]
    leaves = _ranked(sample, field, names, near, read)
    if not leaves:
        if field != "prefill_chip":
            plan.tables[field] = Table(field, [], {"constant": UNKNOWN}, ["No path looks like it."])
            plan.doubt(field, f"no path looks like the {field}: every record would be {UNKNOWN}.")
        return
    chosen = _fill(leaves, read)
    table = plan.tables[field] = Table(field, [leaf.path for leaf in chosen])
    _coercion(table, chosen)
    missing = read - {index for leaf in chosen for index in leaf.texts()}
    examples = list(dict.fromkeys(chosen[0].texts().values()))[:3]
    table.why.append(f"By its name; {of_records(len(chosen[0].texts()), len(sample.records))}, such as {examples}.")
    groups = [leaf.path for leaf in chosen if set(words(leaf.path[-1])) & _GROUPS] if field == "user" else []
    if groups:
        plan.doubt(field, f"{paths_text(groups)} names a group of people: is it who pays?")
    if field != "prefill_chip" and missing:
        _missing(field, table, missing, read, plan)
    _say_others(field, chosen, leaves, read, plan)


def guess_labels(sample: Sample, near: Path, read: set[int], plan: GuessPlan) -> None:
    """What a price depends on beside the model, where the record says it: nearest to the counts, for what was asked for
    need not be what was served."""
    for label, names in LABELS.items():
        leaves = [leaf for leaf in _ranked(sample, "label", names, near, read) if _are_texts(leaf)]
        leaves.sort(key=lambda leaf: -shared_keys(leaf.path[:-1], near))
        if not leaves:
            continue
        chosen, texts = leaves[0], leaves[0].texts()
        table = plan.labels[label] = Table(label, [chosen.path], {"empty": "absent"})
        values = list(dict.fromkeys(texts.values()))
        table.why.append(f"Prices may depend on it; in {of_records(len(texts), len(sample.records))}: {values[:6]}.")
        if others := [leaf.path for leaf in leaves[1:] if leaf.texts() != texts]:
            plan.doubt(label, f"{paths_text(others)} may say it as well.")


def _are_texts(leaf: Leaf) -> bool:
    return all(value is None or isinstance(value, str) for value in leaf.values.values())


def _missing(field: str, table: Table, missing: set[int], read: set[int], plan: GuessPlan) -> None:
    """A record without a chip is still the user's usage; one without a model may be no usage at all."""
    if field == "model":
        plan.doubt(field, f"{of_records(len(missing), len(read))} with counts have no model: they are rejected.")
        return
    table.settings["default"] = UNKNOWN
    plan.doubt(field, f"{of_records(len(missing), len(read))} have none: they are counted as {UNKNOWN}.")


def _say_others(field: str, chosen: list[Leaf], leaves: list[Leaf], read: set[int], plan: GuessPlan) -> None:
    first = chosen[0].texts()
    others = []
    for leaf in leaves:
        texts = leaf.texts()
        both = texts.keys() & first.keys() & read
        if leaf is not chosen[0] and any(texts[index] != first[index] for index in both):
            others.append(leaf.path)
    if others:
        plan.doubt(field, f"{show_path(chosen[0].path)} was chosen; {paths_text(others)} could be meant, and differ.")
    if len(chosen) > 1:
        filled = paths_text(leaf.path for leaf in chosen[1:])
        plan.doubt(field, f"where {show_path(chosen[0].path)} has no value, {filled} is read instead.")


# --- The request's id ---


def guess_id(sample: Sample, read: set[int], says: Says, plan: GuessPlan) -> None:
    """`says`: what a record says by its index, to tell a request sent twice from another one of the same id."""
    leaves = _ranked(sample, "request_id", _IDS, (), read)
    varied = [leaf for leaf in leaves if _variety(leaf, read) >= _UNIQUE and _lacks(leaf, read) <= 0.5]
    candidates = varied or [leaf for leaf in leaves if _variety(leaf, read) >= _UNIQUE] or leaves[:1]
    if not candidates:
        plan.doubt("request_id", "no path looks like a request's id: a record that is sent twice is counted twice.")
        return
    spans = [leaf for leaf in candidates if norm(leaf.path[-1:]).endswith(_SPAN)]
    calls = [leaf for leaf in candidates if leaf not in spans] or spans
    best = next((leaf for leaf in calls if not _conflicting(leaf, read, says) or _all_grow(leaf, read, says)), calls[0])
    # Two spans may tell of one call, so a span's own id is only for those that name no call.
    chosen = [best, *(leaf for leaf in spans[:1] if leaf is not best and _lacks(best, read))]
    table = plan.tables["request_id"] = Table("request_id", [leaf.path for leaf in chosen])
    _coercion(table, chosen)
    texts = {index: text for index, text in best.texts().items() if index in read}
    table.why.append(f"By its name; {len(set(texts.values())):,} different values in {len(texts):,} records.")
    if best is not calls[0]:
        plan.doubt("request_id", f"{show_path(calls[0].path)} occurs again in other requests, so it was not chosen.")
    known = {index for leaf in chosen for index in leaf.texts()}
    if missing := read - known:
        plan.doubt("request_id", f"{of_records(len(missing), len(read))} have none: they are never duplicates.")


def guess_scope(sample: Sample, read: set[int], plan: GuessPlan) -> None:
    """A CloudEvent is identified by its source and its id together."""
    source = sample.leaves.get(("source",))
    is_event = read <= sample.at(("specversion",)).keys()
    table = plan.tables.get("request_id")
    if table and is_event and source and all(isinstance(value, str) for value in source.values.values()):
        table.settings["scope"] = source.path
        table.why.append("CloudEvents: an id is unique within its source.")


def _lacks(leaf: Leaf, read: set[int]) -> float:
    """The share of records that lack it."""
    return 1 - len(leaf.texts().keys() & read) / len(read)


def _variety(leaf: Leaf, read: set[int]) -> float:
    texts = [text for index, text in leaf.texts().items() if index in read]
    return len(set(texts)) / len(texts)


def _conflicting(leaf: Leaf, read: set[int], says: Says) -> dict[str, list[int]]:
    """Ids that occur again in records that say something else, with these records in their order."""
    return {text: found for text, found in _again(leaf, read).items() if len({says[index] for index in found}) > 1}


def _again(leaf: Leaf, read: set[int]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    texts = leaf.texts()
    for index in sorted(texts.keys() & read):
        groups.setdefault(texts[index], []).append(index)
    return {text: found for text, found in groups.items() if len(found) > 1}


def _all_grow(leaf: Leaf, read: set[int], says: Says) -> bool:
    """Usage so far: the names stay, and no count falls."""
    return all(
        says[i].names == says[j].names
        and all(then <= now for then, now in zip(says[i].counts, says[j].counts, strict=True))
        for found in _conflicting(leaf, read, says).values()
        for i, j in zip(found, found[1:], strict=False)
    )


def guess_repeats(sample: Sample, read: set[int], says: Says, plan: GuessPlan) -> None:
    """What it means that an id occurs again: other requests, usage so far, or the same record sent twice."""
    table = plan.tables.get("request_id")
    if not table:
        return
    leaf = sample.leaves[table.paths[0]]
    differ, again = _conflicting(leaf, read, says), _again(leaf, read)
    if not differ:
        if again:
            plan.doubt("request_id", f"{len(again):,} ids occur again with the same counts: these are duplicates.")
        return
    if _all_grow(leaf, read, says):
        plan.head["repeats"] = "grow"
        text = "ids occur again with counts that only grow, as chunks of a stream do: the greatest are counted."
        plan.doubt("repeats", f"{len(differ):,} {text} If these are requests of their own, the id is the wrong one.")
        return
    told = [place for place, name in enumerate(NAMES) if plan.tables[name].paths]
    for places in (*([place] for place in told), told):
        groups = {(text, *(says[i].names[p] for p in places)): says[i] for text, found in differ.items() for i in found}
        kinds = {(text, says[i]) for text, found in differ.items() for i in found}
        if places and len(groups) == len(kinds):
            table.settings["with"] = [NAMES[place] for place in places]
            text = f"ids occur again in other requests; {' and '.join(table.settings['with'])} tell them apart."
            plan.doubt("request_id", f"{len(differ):,} {text}")
            return
    text = "ids occur again with other contents: only the first record of each is counted, the others are conflicting"
    plan.doubt("request_id", f"{len(differ):,} {text} duplicates. Is another path the id?")
