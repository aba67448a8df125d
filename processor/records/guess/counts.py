"""Which paths hold the counts: pairs of an input and an output, their totals and parts, and what belongs to none."""

from dataclasses import dataclass, field
from itertools import product

from tokenometer.processor.records.count_names import (
    CACHED,
    INPUT,
    OUTPUT,
    REASONING,
    TOOL_INPUT,
    TOTAL,
    UNCACHED,
    WRITE,
    WRITE_PART,
    Name,
    name_of,
    norm,
    words,
)
from tokenometer.processor.records.sample import Sample
from tokenometer.schemas.mapping_model import PLUS_MAX, Path

CANDIDATES_MAX = 24  # of input and of output: all pairs of them are tried
ALIASES_MAX = 3
_SUMMED = {"session", "cumulative", "lifetime", "monthly", "daily", "conversation", "aggregate", "accumulated"}
ROLES = (INPUT, CACHED, WRITE, OUTPUT, REASONING)
Counts = dict[int, int]  # by the record's index


@dataclass(eq=False)
class Candidate:
    """A path whose name says that it counts tokens."""

    path: Path
    name: Name
    counts: Counts
    values: int  # records that have any value
    types: frozenset[type]

    @property
    def positive(self) -> int:
        return sum(1 for count in self.counts.values() if count)


@dataclass(eq=False)
class Pair:
    """Input and output of one producer, side by side."""

    input: Candidate | None
    output: Candidate | None

    @property
    def parent(self) -> Path:
        sides = [side.path[:-1] for side in (self.input, self.output) if side]
        return sides[0][: shared_keys(sides[0], sides[-1])]

    def counts(self) -> dict[int, tuple[int, int]]:
        """By record: input and output; a side that is absent is 0."""
        sent = self.input.counts if self.input else {}
        made = self.output.counts if self.output else {}
        return {index: (sent.get(index, 0), made.get(index, 0)) for index in {**sent, **made}}


@dataclass
class Reading:
    """The counters that were found, each with its paths in the order of reading."""

    pairs: list[Pair]
    roles: dict[str, list[Candidate]]  # canonical count or total -> what is read
    plus: dict[str, list[Path]] = field(default_factory=dict)
    rivals: dict[str, list[Candidate]] = field(default_factory=dict)  # of the same role, and not read

    def counts(self, role: str, sample: Sample) -> Counts:
        """As the mapping will read them: the first path that has a value, and what is added."""
        found: Counts = {}
        for candidate in reversed(self.roles.get(role, [])):
            found |= candidate.counts
        for path in self.plus.get(role, []):
            leaf = sample.leaves.get(path)
            for index, count in (leaf.counts() if leaf else {}).items():
                found[index] = found.get(index, 0) + count
        return found

    def source(self, role: str, index: int) -> Candidate | None:
        return next((each for each in self.roles.get(role, []) if index in each.counts), None)

    @property
    def parents(self) -> list[Path]:
        return [pair.parent for pair in self.pairs]


def shared_keys(one: Path, other: Path) -> int:
    """How many keys two paths have in common from the top down."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def candidates_of(sample: Sample) -> dict[str, list[Candidate]]:
    """By role: every leaf whose name says that it counts tokens, and whose values do not contradict it.

    What is below `before` is an older state of a row, as change data capture writes it.
    """
    by_role: dict[str, list[Candidate]] = {}
    for leaf in sample.leaves.values():
        name, counts = name_of(leaf.path), leaf.counts()
        if name and "before" not in leaf.path[:-1] and (counts or not leaf.values):
            types = frozenset(type(value) for value in leaf.values.values())
            by_role.setdefault(name.role, []).append(Candidate(leaf.path, name, counts, len(leaf.values), types))
    return by_role


def reading_of(sample: Sample, by_role: dict[str, list[Candidate]]) -> Reading | None:
    """None: no path says that it holds an input or an output."""
    pairs = _enough(_pairs(by_role))
    if not pairs:
        return None
    totals = [total for pair in pairs if (total := _total_of(pair, by_role))]
    reading = Reading(pairs, {})
    reading.roles[INPUT] = list(dict.fromkeys(pair.input for pair in pairs if pair.input))
    reading.roles[OUTPUT] = list(dict.fromkeys(pair.output for pair in pairs if pair.output))
    reading.roles[TOTAL] = list(dict.fromkeys(totals))
    for role in (CACHED, WRITE, REASONING):
        reading.roles[role] = _part(by_role.get(role, []), reading.parents)
    for role in ROLES:
        read = reading.roles[role]
        reading.rivals[role] = [each for each in by_role.get(role, []) if each not in read and each.counts]
    _add_plus(reading, by_role)
    return reading


# --- Input and output ---


def _pairs(by_role: dict[str, list[Candidate]]) -> list[Pair]:
    """All that occur, the best first."""
    sent = _best(by_role.get(INPUT, [])) or _best(by_role.get(UNCACHED, []))
    made = _best(by_role.get(OUTPUT, []))
    pairs = [Pair(left, right) for left, right in product(sent, made) if left.counts.keys() & right.counts.keys()]
    pairs += [Pair(left, None) for left in sent]  # embeddings have no output
    pairs += [Pair(None, right) for right in made]
    ranks = {pair: _rank(pair, by_role) for pair in pairs}
    return sorted(pairs, key=lambda pair: ranks[pair])


def _best(candidates: list[Candidate]) -> list[Candidate]:
    return sorted((each for each in candidates if each.counts), key=_worth)[:CANDIDATES_MAX]


def _worth(candidate: Candidate) -> tuple[int, bool, int, Path]:
    return -candidate.positive, not candidate.name.known, len(candidate.path), candidate.path


def _rank(pair: Pair, by_role: dict[str, list[Candidate]]) -> tuple[bool | int | Path, ...]:
    sides = [side for side in (pair.input, pair.output) if side]
    shared = sides[0].counts.keys() & sides[-1].counts.keys()
    return (
        any(side.name.billed for side in sides),
        any(set(words(key)) & _SUMMED for side in sides for key in side.path),
        len(sides) == 1,
        -sum(1 for index in shared if any(side.counts[index] for side in sides)),
        -len(shared),
        sum(len(side.path) - 1 - len(pair.parent) for side in sides),  # how far they are apart
        not _total_of(pair, by_role),
        sum(not side.name.known for side in sides),
        len(sides[0].path),
        sides[0].path,
        sides[-1].path,
    )


def _enough(pairs: list[Pair]) -> list[Pair]:
    """The best pair, and those that say something where the ones before say nothing."""
    chosen: list[Pair] = []
    known: set[int] = set()
    for pair in pairs:
        counts = pair.counts()
        if not chosen or (len(chosen) <= ALIASES_MAX and any(any(counts[index]) for index in counts.keys() - known)):
            chosen.append(pair)
            known |= counts.keys()
    return chosen


def _total_of(pair: Pair, by_role: dict[str, list[Candidate]]) -> Candidate | None:
    beside = [total for total in by_role.get(TOTAL, []) if total.path[:-1] == pair.parent and total.counts]
    return min(beside, key=_worth) if beside else None


# --- Parts ---


def _part(candidates: list[Candidate], parents: list[Path]) -> list[Candidate]:
    """The candidate that says most, and those that say something where it says nothing."""

    def worth(each: Candidate) -> tuple[int, int, bool, int, Path]:
        near = max(shared_keys(each.path, parent) for parent in parents)
        return -each.positive, -near, not each.name.known, len(each.path), each.path

    chosen: list[Candidate] = []
    known: set[int] = set()
    for each in sorted(candidates, key=worth):
        says = any(each.counts[index] for index in each.counts.keys() - known)
        if len(chosen) <= ALIASES_MAX and (says or not chosen):
            chosen.append(each)
            known |= each.counts.keys()
    return chosen


def _add_plus(reading: Reading, by_role: dict[str, list[Candidate]]) -> None:
    """Adds up cache writes that are there only as their parts, and input that the producer counts beside its input."""
    parts = [each for each in by_role.get(WRITE_PART, []) if each.counts]
    if parts and not any(each.positive for each in reading.roles[WRITE]):
        parent = min(parts, key=_worth).path[:-1]
        together = [each for each in parts if each.path[:-1] == parent][: PLUS_MAX + 1]
        reading.roles[WRITE] = together[:1]
        reading.plus[WRITE] = [each.path for each in together[1:]]
    tools = [each.path for each in by_role.get(TOOL_INPUT, []) if each.path[:-1] in reading.parents]
    for each in reading.roles[INPUT]:
        if (
            not tools and norm(each.path[-1:]) == "prompt_token_count"
        ):  # Gemini's; a sample may well have no such request
            camel = each.path[-1] == "promptTokenCount"
            tools.append((*each.path[:-1], "toolUsePromptTokenCount" if camel else "tool_use_prompt_token_count"))
    if tools:
        reading.plus[INPUT] = tools[:PLUS_MAX]
