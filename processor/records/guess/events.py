"""Logs with one event for each type of tokens: a count without a telling name, and a word beside it that tells."""

from tokenometer.processor.records.count_names import CACHED, INPUT, OUTPUT, REASONING, WRITE, name_of, words
from tokenometer.processor.records.guess.plan import GuessPlan, Table, of_records
from tokenometer.processor.records.sample import Leaf, Sample
from tokenometer.schemas.mapping_errors import show, show_path
from tokenometer.schemas.mapping_model import SELECTOR_ENTRIES_MAX, VALUE_BYTES_MAX

_AMOUNTS = {"tokens", "token_count", "tokencount", "count", "value", "quantity", "amount", "num_tokens", "n_tokens"}
_COUNTERS = (INPUT, CACHED, WRITE, OUTPUT, REASONING)


def counter_of(text: str) -> str | None:
    """`output`, `prompt_tokens` or `cacheRead`: which counter a type of tokens is."""
    if text.lower() in ("system", "user"):  # a system prompt is input
        return INPUT
    name = name_of(("tokens", text)) or name_of((f"{text}_tokens",))
    return name.role if name and name.role in _COUNTERS else None


def guess_events(sample: Sample, plan: GuessPlan) -> set[int]:
    """The records that are such events; writes the table `tokens`."""
    for amount in sample.leaves.values():
        if "_".join(words(amount.path[-1])) not in _AMOUNTS or not amount.counts():
            continue
        for kind in sample.leaves.values():
            if kind.path[:-1] == amount.path[:-1] and (read := _events(amount, kind, plan)):
                return read
    return set()


def _events(amount: Leaf, kind: Leaf, plan: GuessPlan) -> set[int]:
    """What `kind` says of `amount`, if it is always a type of tokens that we know."""
    counts = amount.counts()
    types = dict.fromkeys(kind.values[index] for index in counts if index in kind.values)
    if not types or not all(isinstance(text, str) and 1 <= len(text.encode()) <= VALUE_BYTES_MAX for text in types):
        return set()
    to = {text: counter for text in types if (counter := counter_of(text))}
    if len(to) < len(types) or len(to) > SELECTOR_ENTRIES_MAX:
        return set()
    table = plan.tables["tokens"] = Table("tokens", [amount.path])
    table.why.append(f"One event for each type of tokens: {show_path(kind.path)} says which.")
    if any(isinstance(value, str) for value in amount.values.values()):
        table.settings["digits"] = True
    if any(isinstance(value, float) for value in amount.values.values()):
        table.settings["whole_numbers"] = True
    table.settings |= {"by": kind.path, "to": to}
    made = [text for text, counter in to.items() if counter == OUTPUT]
    if len(made) == 1:
        table.settings["requests"] = made[0]
        plan.doubt("tokens", f"events of the type {show(made[0])} count as the request, others add tokens to it.")
    else:
        plan.doubt("tokens", "every event counts as a request, because no single type is the output.")
    parts = bool({CACHED, WRITE} & set(to.values())), REASONING in to.values()
    for name, has_parts in zip((INPUT, OUTPUT), parts, strict=True):
        plan.head[f"{name}_are"] = "additive" if has_parts else "inclusive"
        if has_parts:
            plan.doubt("tokens", f"an event of a part is added to the {name}, because it is an event of its own.")
    if len(counts) < len(amount.values):
        plan.doubt("tokens", f"{of_records(len(amount.values) - len(counts), len(amount.values))} have no count there.")
    return counts.keys() & kind.values.keys()
