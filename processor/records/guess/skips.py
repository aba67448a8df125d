"""Which records are no usage: without any count, spans of agents and tools, reads of stored responses."""

from typing import Any

from tokenometer.processor.records.count_names import INPUT, OUTPUT, norm, place_of, words
from tokenometer.processor.records.guess.counts import ROLES, Reading
from tokenometer.processor.records.guess.plan import GuessPlan, listed, of_records, paths_text
from tokenometer.processor.records.sample import Leaf, Sample
from tokenometer.schemas.mapping_errors import show, show_path
from tokenometer.schemas.mapping_model import SKIP_AND_MAX, VALUE_BYTES_MAX, VALUES_MAX

# The end of a path that says what a span did -> the values of spans that sum up or call others.
_KINDS: dict[str, set[str]] = {
    "gen_ai_operation_name": {
        "invoke_agent",
        "create_agent",
        "execute_tool",
        "invoke_workflow",
        "agent",
        "workflow",
        "tool",
    },
    "openinference_span_kind": {"agent", "chain", "tool", "retriever", "reranker", "guardrail", "evaluator"},
    "traceloop_span_kind": {"workflow", "task", "agent", "tool"},
    "span_kind": {"agent", "chain", "tool", "workflow", "task"},
    "run_type": {"chain", "tool", "retriever", "prompt", "parser"},
    "langfuse_observation_type": {"span", "agent", "chain", "tool", "event"},
}
_READS = ("aget_responses", "get_responses", "alist_input_items", "list_input_items", "adelete_responses",
          "delete_responses", "acancel_responses", "cancel_responses")  # fmt: skip

# Names of values that say whether a gateway answered from its own cache: booleans, and the words for a hit.
_HIT_NAMES = ("cache_hit", "cached", "from_cache", "cache_status", "cached_response", "cache_result", "hit_cache")
_HITS = {"true", "hit", "hits", "semantic_hit", "semantic hit"}


def skip_others(sample: Sample, plan: GuessPlan) -> set[int]:
    """Records that are skipped because of what they say they are."""
    skipped: set[int] = set()
    for leaf in sample.leaves.values():
        last = f"_{norm(leaf.path)}"
        kinds = next((values for name, values in _KINDS.items() if last.endswith(f"_{name}")), None)
        if kinds:
            skipped |= _skip(leaf, {t for t in set(leaf.texts().values()) if t.lower() in kinds}, plan,
                             "spans that sum up or call others")  # fmt: skip
        if last.endswith("_call_type"):
            skipped |= _skip(leaf, {t for t in set(leaf.texts().values()) if t in _READS}, plan,
                             "reads of stored responses, which used no tokens", also=_READS[:2])  # fmt: skip
        _doubt_hits(leaf, sample, plan)
    return skipped


def _doubt_hits(leaf: Leaf, sample: Sample, plan: GuessPlan) -> None:
    """What a gateway answered from its own cache may say the tokens of the stored answer, though no model was asked."""
    if not norm(leaf.path).endswith(_HIT_NAMES):
        return
    values = list(leaf.values.values())
    hits = [value for value in values if value is True or (isinstance(value, str) and value.lower() in _HITS)]
    if hits and all(isinstance(value, (str, bool, int)) for value in values):
        shown = "true" if hits[0] is True else show(hits[0])
        how = f"to leave them out: [[skip]], path = {show_path(leaf.path)}, in = [{shown}]"
        text = f"{of_records(len(hits), len(sample.records))} are hits in the gateway's own cache and are counted"
        plan.doubt("skip", f"{text}; {how}.")


def _skip(leaf: Leaf, values: set[str], plan: GuessPlan, what: str, also: tuple[str, ...] = ()) -> set[int]:
    found = {index for index, value in leaf.values.items() if isinstance(value, str) and value in values}
    strings = all(isinstance(value, (str, bool, int)) for value in leaf.values.values())
    if not found or not strings:
        return set()
    texts = sorted(values | set(also))[:VALUES_MAX]
    others = sorted(set(map(str, leaf.values.values())) - values)
    counted = f"Counted are {listed(map(show, others))}." if others else ""
    plan.skip.append(({"path": leaf.path, "in": texts}, f"{what[:1].upper()}{what[1:]}."))
    text = f"{len(found):,} records are skipped as {what}: {show_path(leaf.path)} is"
    plan.doubt("skip", f"{text} {listed(map(show, sorted(values)))}. {counted}")
    return {index for index in found if len(str(leaf.values[index]).encode()) <= VALUE_BYTES_MAX}


def skip_empty(sample: Sample, reading: Reading, skipped: set[int], plan: GuessPlan) -> set[int]:
    """Records in which no count that is read has a value; returns those with counts."""
    read = [each for role in ROLES for each in reading.roles.get(role, [])]
    filled = {index for each in read for index in sample.at(each.path)}
    empty = set(range(len(sample.records))) - filled - skipped
    if not empty:
        return filled - skipped
    ends = [each.path for role in (INPUT, OUTPUT) for each in reading.roles.get(role, [])]
    first = sample.records[min(empty)]
    text = f"{of_records(len(empty), len(sample.records))} have no counts"
    names = f"The first of them is record {min(empty) + 1}, with the keys {listed(map(show, first))}."
    if 1 <= len(ends) <= SKIP_AND_MAX + 1:
        conditions: list[dict[str, Any]] = [{"path": path, "absent": True} for path in ends]
        entry = conditions[0] | ({"and": conditions[1:]} if conditions[1:] else {})
        plan.skip.append((entry, "Records without counts are no usage."))
        plan.doubt("skip", f"{text}: they are skipped. {names}")
    else:
        plan.doubt("skip", f"{text} at {paths_text(ends)}: they are rejected. {names}")
    return filled - skipped


# --- Sums of children ---

_PARENTS = ("parent_span_id", "parent_id", "parent_observation_id", "parent_run_id")
_TELLERS = {"type", "kind", "operation", "name", "event"}


def skip_sums(sample: Sample, counts: dict[int, int], read: set[int], plan: GuessPlan) -> set[int]:
    """Records that repeat what the records below them say; `counts` are their inputs. Returns what is skipped."""
    sums = _sums_of_children(sample, counts, read)
    if not sums:
        return set()
    what = f"{of_records(len(sums), len(read))} have the sum of the records whose parent they are"
    for leaf in sorted(sample.leaves.values(), key=lambda leaf: (len(leaf.path), leaf.path)):
        texts = {index: value for index, value in leaf.values.items() if index in read and isinstance(value, str)}
        mine = {texts[index] for index in sums if index in texts}
        usable = len(mine) <= VALUES_MAX and all(len(text.encode()) <= VALUE_BYTES_MAX for text in mine)
        others = {text for index, text in texts.items() if index not in sums}
        if set(words(leaf.path[-1])) & _TELLERS and texts.keys() >= sums and usable and not mine & others:
            plan.skip.append(({"path": leaf.path, "in": sorted(mine)}, "Records that sum up others."))
            plan.doubt(
                "skip", f"{what}: they are skipped by {show_path(leaf.path)}, {listed(map(show, sorted(mine)))}."
            )
            return sums
    plan.doubt(INPUT, f"{what}, and are counted beside them: the first is record {min(sums) + 1}.")
    return set()


def _sums_of_children(sample: Sample, counts: dict[int, int], read: set[int]) -> set[int]:
    found: set[int] = set()
    for leaf in sample.leaves.values():
        if place_of(norm(leaf.path), _PARENTS) is None:
            continue
        children: dict[str, int] = {}
        for index, text in leaf.texts().items():
            if index in read:
                children[text] = children.get(text, 0) + counts.get(index, 0)
        for own in sample.leaves.values():
            ids = own.texts()
            if own.path[:-1] == leaf.path[:-1] and own is not leaf and norm(own.path[-1:]).endswith("id"):
                found |= {i for i, text in ids.items() if i in read and 0 < counts.get(i, 0) == children.get(text)}
    return found
