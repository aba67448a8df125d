"""Whether parts are inside their totals or beside them, by the arithmetic of every record of the sample.

A record proves something where its total fits only one way of adding, or where a part is larger than the count that
would hold it. What no record proves is what the names say; where they say nothing it is a doubt.
"""

import re
from collections import Counter
from dataclasses import dataclass
from itertools import product
from typing import Any

from tokenometer.processor.records.count_names import (
    CACHED,
    INPUT,
    OUTPUT,
    REASONING,
    TOTAL,
    UNCACHED,
    WRITE,
    Name,
    norm,
)
from tokenometer.processor.records.guess.counts import Candidate, Reading, shared_keys
from tokenometer.processor.records.guess.plan import GuessPlan, listed, of_records, paths_text
from tokenometer.processor.records.sample import Sample
from tokenometer.schemas.mapping_errors import show, show_path
from tokenometer.schemas.mapping_model import PARTS, VALUE_BYTES_MAX, VALUES_MAX, Path
from tokenometer.schemas.mapping_values import listed_string
from tokenometer.schemas.usage import PARENTS

_WORD = {False: "inclusive", True: "additive"}
_WAYS = list(product((False, True), repeat=3))  # of PARTS, all inside first
_UNFIT_MAX = 0.1  # of the totals: more, and they are something else than input + output
# Of the records with a part, of one provider and model: fewer are broken records, and prove nothing.
_PROOF_MIN, _PROOFS_MIN, _MANY = 0.02, 3, 100
_CLAUDE = re.compile("claude|anthropic")
_PROVIDERS = ("provider_name", "provider", "custom_llm_provider", "vendor", "system", "llm_provider", "upstream")
_MODELS = ("model", "model_name", "request_model", "response_model", "model_id")


@dataclass(frozen=True)
class Amounts:
    """Of one record, as the log writes them."""

    input: int
    output: int
    parts: tuple[int, int, int]  # of PARTS
    total: int | None

    def fits(self, way: tuple[bool, ...], extra: int = 0) -> bool:
        sums = {INPUT: self.input, OUTPUT: self.output}
        held = {INPUT: 0, OUTPUT: 0}
        for part, amount, beside in zip(PARTS, self.parts, way, strict=True):
            held[PARENTS[part]] += amount
            sums[PARENTS[part]] += amount if beside else 0
        within = all(held[name] <= sums[name] for name in sums)
        return within and self.total in (None, sums[INPUT] + sums[OUTPUT] + extra)

    @property
    def ways(self) -> list[tuple[bool, ...]]:
        return [way for way in _WAYS if self.fits(way)]


def amounts_of(reading: Reading, sample: Sample, with_total: bool) -> dict[int, Amounts]:
    sent, made = reading.counts(INPUT, sample), reading.counts(OUTPUT, sample)
    total = reading.counts(TOTAL, sample) if with_total else {}
    parts = [reading.counts(part, sample) for part in PARTS]
    return {
        index: Amounts(
            sent.get(index, 0),
            made.get(index, 0),
            (parts[0].get(index, 0), parts[1].get(index, 0), parts[2].get(index, 0)),
            total.get(index),
        )
        for index in sorted({**sent, **made})
    }


# --- The total ---


def keep_total(reading: Reading, sample: Sample, plan: GuessPlan) -> dict[int, Amounts]:
    """Amounts with the total where it is input + output after all; without it, and a doubt, where it is not."""
    amounts = amounts_of(reading, sample, with_total=True)
    _find_plus(reading, sample, plan, amounts)
    amounts = amounts_of(reading, sample, with_total=True)
    totals = {index: each for index, each in amounts.items() if each.total is not None}
    if not totals:
        reading.roles[TOTAL] = []
        return amounts
    unfit = [index for index, each in totals.items() if not each.ways]
    if not unfit:
        return amounts
    paths = paths_text(each.path for each in reading.roles[TOTAL])
    first = f"the first is record {unfit[0] + 1}"
    if len(unfit) <= _UNFIT_MAX * len(totals):
        plan.doubt("total_tokens", f"{paths} is not input + output in {of_records(len(unfit), len(totals))} ({first}): "
                                   "these are rejected as inconsistent_counts.")  # fmt: skip
        return amounts
    reading.roles[TOTAL] = []
    if all(each.total == each.input + each.output for each in totals.values()):
        plan.doubt("input_tokens", f"{paths} is the input + the output as they are, although parts are larger than "
                                   f"these in {of_records(len(unfit), len(totals))} ({first}). So it proves nothing "
                                   "about parts, and is not checked.")  # fmt: skip
    else:
        plan.doubt("total_tokens", f"{paths} is not input + output in {of_records(len(unfit), len(totals))} ({first}):"
                                   " it is not checked. Is a count missing in the mapping?")  # fmt: skip
    return amounts_of(reading, sample, with_total=False)


def _find_plus(reading: Reading, sample: Sample, plan: GuessPlan, amounts: dict[int, Amounts]) -> None:
    """A count beside the pair that makes every total fit."""
    unfit = {index: each for index, each in amounts.items() if each.total is not None and not each.ways}
    if not unfit:
        return
    read = {each.path for role in reading.roles.values() for each in role} | {
        p for ps in reading.plus.values() for p in ps
    }
    for leaf in sample.leaves.values():
        if leaf.path in read or not any(shared_keys(leaf.path, parent) == len(parent) for parent in reading.parents):
            continue
        counts = leaf.counts()
        if all(
            index in counts and any(each.fits(way, counts[index]) for way in _WAYS) for index, each in unfit.items()
        ):
            made = any(
                word in norm(leaf.path[-1:]) for word in ("output", "completion", "generat", "predict", "answer")
            )
            role = OUTPUT if made or not reading.roles[OUTPUT] else INPUT
            if not reading.roles[role]:  # the remainder of the other side's total is the whole of this one
                types = frozenset(type(value) for value in leaf.values.values())
                reading.roles[role] = [
                    Candidate(leaf.path, Name(role, None, known=False), counts, len(leaf.values), types)
                ]
                plan.doubt(role, f"{show_path(leaf.path)} is taken for it, because the totals only fit with it.")
                return
            reading.plus.setdefault(role, []).append(leaf.path)
            plan.doubt(role, f"{show_path(leaf.path)} is added, because the totals only fit with it.")
            for part in PARTS:
                if PARENTS[part] == role and not reading.roles[part]:
                    plan.doubt(part, f"not found. Is it {show_path(leaf.path)}, which is only added to the {role}?")
            return


# --- The conventions ---


@dataclass
class _Evidence:
    """About one part, by record where it is not 0: what is proven, and what the names say."""

    proven: dict[int, bool]
    named: dict[int, bool]
    open: list[int]  # neither
    without_total: list[int]

    def decided(self, index: int) -> bool | None:
        return self.proven.get(index, self.named.get(index))

    @property
    def indexes(self) -> list[int]:
        """Of all records where the part is not 0."""
        return list(dict.fromkeys([*self.proven, *self.named, *self.open]))


def decide(reading: Reading, sample: Sample, plan: GuessPlan) -> None:
    """Writes `..._are` of the plan."""
    amounts = keep_total(reading, sample, plan)
    evidence = {part: _evidence(part, reading, amounts) for part in PARTS}
    has_total = bool(reading.roles[TOTAL])
    if not has_total:
        _leave_out_broken(reading, sample, evidence, plan)
    _doubt_claude(reading, sample, evidence, has_total, plan)
    split = None if has_total else _split(reading, sample, evidence, plan)
    for name in (INPUT, OUTPUT):
        mine = [part for part in PARTS if PARENTS[part] == name]
        stated = {part: _statement(part, evidence[part], reading, has_total, plan) for part in mine}
        if split and name == INPUT:
            stated = dict.fromkeys(mine, split)
        plan.head[f"{name}_are"] = stated[mine[0]]
        for part in mine[1:]:
            if stated[part] != stated[mine[0]]:
                plan.head[f"{part}_are"] = stated[part]
        plan.head_why[f"{name}_are"] = [
            line for part in mine for line in _why(part, evidence[part], reading, has_total)
        ]


def _evidence(part: str, reading: Reading, amounts: dict[int, Amounts]) -> _Evidence:
    place = PARTS.index(part)
    found = _Evidence({}, {}, [], [])
    for index, each in amounts.items():
        if not each.parts[place]:
            continue
        ways = {way[place] for way in each.ways}
        named = _named(part, index, reading)
        if len(ways) == 1:
            found.proven[index] = ways.pop()
        elif named is None:
            found.open.append(index)
        if named is not None:
            found.named[index] = named
        if each.total is None:
            found.without_total.append(index)
    return found


def _leave_out_broken(reading: Reading, sample: Sample, evidence: dict[str, _Evidence], plan: GuessPlan) -> None:
    """A part that is larger than its total shows that it is beside it, or that the record is broken. Where only a few
    records of a provider and model show it, they are: one of ten thousand must not decide about the others."""
    tellers = _tellers(sample)
    for part, found in evidence.items():
        groups: dict[tuple[Any, ...], list[int]] = {}
        for index in found.indexes:
            groups.setdefault(tuple(str(sample.at(path).get(index)) for path in tellers), []).append(index)
        several = _PROOFS_MIN if len(found.indexes) >= _MANY else 1
        broken = []
        for members in groups.values():
            proofs = [index for index in members if found.proven.get(index)]
            if len(proofs) < max(several, _PROOF_MIN * len(members)):
                broken += proofs
        for index in broken:
            del found.proven[index]
            found.named.pop(index, None)
        if broken:
            paths = paths_text(each.path for each in reading.roles[part])
            few = of_records(len(broken), len(found.indexes))
            text = f"{paths} is larger than its total in {few}: so few are taken as broken, and rejected."
            plan.doubt(part, f"{text} The first is record {min(broken) + 1}.")


def _named(part: str, index: int, reading: Reading) -> bool | None:
    source, whole = reading.source(part, index), reading.source(PARENTS[part], index)
    if not source:
        return None
    if part != REASONING and whole and whole.name.role == UNCACHED:
        return True
    if source.name.additive is not None:
        return source.name.additive
    beside_input = (
        whole and norm(whole.path[-1:]) == "input_tokens" and source.path[: len(whole.path) - 1] == whole.path[:-1]
    )
    if beside_input and _is_anthropic(source.path):
        return True
    return None


def _is_anthropic(path: Path) -> bool:
    last = norm(path[-1:])
    return last in ("cache_read_input_tokens", "cache_creation_input_tokens", "cache_write_input_tokens") or (
        last.startswith("ephemeral")
    )


def _statement(part: str, evidence: _Evidence, reading: Reading, has_total: bool, plan: GuessPlan) -> Any:
    sources = reading.roles[part]
    if not sources:
        return {"by_total": "inclusive"} if has_total else "inclusive"
    paths = paths_text(each.path for each in sources)
    indexes = evidence.without_total if has_total else evidence.indexes
    votes = Counter(side for index in indexes if (side := evidence.decided(index)) is not None)
    named = {name for each in sources if (name := each.name.additive) is not None}
    fallback = named.pop() if len(named) == 1 else bool(evidence.named) and all(evidence.named.values())
    heard = bool(votes) and votes.total() >= _PROOF_MIN * len(indexes)
    default = votes.most_common(1)[0][0] if heard else fallback
    if len(votes) > 1:
        sides = f"beside its total in {votes[True]:,} records, inside it in {votes[False]:,}"
        plan.doubt(part, f"{paths} is {sides}; the mapping says {_WORD[default]}. Name a value that tells.")
    if evidence.open:
        plan.doubt(part, f"nothing proves whether {paths} is inside its total or beside it in "
                         f"{of_records(len(evidence.open), len(evidence.open) + len(evidence.proven))}; the mapping "
                         f"says {_WORD[default]}.")  # fmt: skip
    against = [index for index, side in evidence.proven.items() if evidence.named.get(index, side) != side]
    copied = [each for each in sources if _is_anthropic(each.path) and each.name.additive is None]
    if against:
        plan.doubt(part, f"by its name {paths} is {_WORD[not evidence.proven[against[0]]]}, by arithmetic not, in "
                         f"{len(against):,} records.")  # fmt: skip
    elif copied and evidence.named and not evidence.proven:
        plan.doubt(part, f"{paths} is one of Anthropic's names, which are beside the input; no record proves it here.")
    elif evidence.named and not evidence.proven and False in evidence.named.values():
        # Gateways keep OpenAI's names beside counts of their own (of providers that count beside).
        plan.doubt(part, f"{paths} is inside its total by its name; no record proves it here.")
    elif copied and has_total and False in evidence.proven.values():
        plan.doubt(part, f"{paths} is one of Anthropic's names, which are beside the input there. Here the total says "
                         "that it is inside. Is the total the provider's own?")  # fmt: skip
    if (
        not evidence.proven
        and not evidence.named
        and not evidence.open
        and not has_total
        and fallback is False
        and not all(each.name.additive is False for each in sources)
    ):
        plan.doubt(part, f"{paths} is 0 in every record, so whether it is inside its total is not known.")
    return {"by_total": _WORD[default]} if has_total else _WORD[default]


def _doubt_claude(
    reading: Reading, sample: Sample, evidence: dict[str, _Evidence], has_total: bool, plan: GuessPlan
) -> None:
    """Anthropic counts the cache beside the input and has no total, so a total is somebody else's sum."""
    for path in _tellers(sample) if has_total else ():
        claude = {i for i, text in sample.at(path).items() if isinstance(text, str) and _CLAUDE.search(text.lower())}
        for part in (CACHED, WRITE):
            if any(evidence[part].proven.get(index) is False for index in claude):
                paths = paths_text(each.path for each in reading.roles[part])
                text = f"{paths} is inside the input by the total, but {show_path(path)} names Anthropic, which counts"
                plan.doubt(part, f"{text} it beside the input. Is the total right?")
                return


def _why(part: str, evidence: _Evidence, reading: Reading, has_total: bool) -> list[str]:
    if not reading.roles[part]:
        return []
    sides = Counter(evidence.proven.values())
    proofs = [f"{_WORD[side]} in {count:,}" for side, count in sides.items()]
    text = f"{part}: proven {' and '.join(proofs)} record(s)" if proofs else f"{part}: no record proves it"
    by = "by the total" if has_total else "by a part that is larger than its total"
    names = {_WORD[side] for side in evidence.named.values()}
    return [f"{text}{f', {by}' if proofs else ''}; its names say {' or '.join(sorted(names)) or 'nothing'}."]


def _split(reading: Reading, sample: Sample, evidence: dict[str, _Evidence], plan: GuessPlan) -> dict[str, Any] | None:
    """A string that tells the records whose cache counts are beside their input from the others."""
    sides: dict[int, bool | None] = {}
    for part in (CACHED, WRITE):
        for index in [*evidence[part].open, *evidence[part].named, *evidence[part].proven]:
            side = evidence[part].decided(index)
            sides[index] = side if side is not None else sides.get(index)
    if True not in sides.values() or set(sides.values()) == {True}:
        return None
    read = {*reading.counts(INPUT, sample), *reading.counts(OUTPUT, sample)}
    for path in _tellers(sample):
        texts = sample.at(path)
        if not read <= texts.keys() or not all(isinstance(texts[index], str) for index in read):
            continue
        groups: dict[str, set[bool | None]] = {}
        for index in read:
            groups.setdefault(texts[index], set()).add(sides.get(index))
        additive = [text for text, found in groups.items() if True in found]
        inclusive = [text for text in groups if text not in additive]
        mixed = any({True, False} <= found for found in groups.values())
        if mixed or not inclusive or len(groups) > VALUES_MAX or max(len(t.encode()) for t in groups) > VALUE_BYTES_MAX:
            continue
        unproven = [text for text in inclusive if False not in groups[text]]
        plan.doubt(INPUT, f"cache counts are beside the input where {show_path(path)} is {listed(map(show, additive))} "
                          f"and taken as inside it for {listed(map(show, inclusive))}"
                          f"{', which no record proves' if unproven else ''}. Records with another value are rejected "
                          "as unknown_convention: add it to the right list.")  # fmt: skip
        sides_of = {"inclusive": inclusive, "additive": additive}
        return {"path": path} | {side: list(map(listed_string, texts)) for side, texts in sides_of.items()}
    return None


def _tellers(sample: Sample) -> list[Path]:
    def rank(path: Path) -> int | None:
        last = norm(path[-1:])
        names = (*_PROVIDERS, *_MODELS)
        return next((place for place, name in enumerate(names) if last == name or last.endswith(f"_{name}")), None)

    ranked = [(place, len(path), path) for path in sample.leaves if (place := rank(path)) is not None]
    return [path for _, _, path in sorted(ranked)]
