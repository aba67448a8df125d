"""A mapping for a log that nobody has described yet: guessed from a sample of its lines, with every doubt marked.

Fields are found by the names that producers use, by the types and values of the sample, and by arithmetic: an epoch
unit gives dates of our time, an id differs from record to record, a total is its input and its output. What is only
likely is written with a comment that begins with `# CHECK:`; nothing that matters to a bill is guessed in silence.

    counts        input, output, total and parts
    conventions   whether parts are inside their totals, by arithmetic
    events        logs with one event for each type of tokens
    skips         records that are no usage
    texts, times  user, model, chip, id, labels; the time and its unit
    values        how lines hold records
    plan, write   what was decided, as TOML with comments
"""

from collections.abc import Iterable
from dataclasses import dataclass

from tokenometer.processor.records import mapping_check
from tokenometer.processor.records.count_names import INPUT, OUTPUT, TOTAL
from tokenometer.processor.records.guess import conventions, events, skips, texts, times
from tokenometer.processor.records.guess.counts import ROLES, Reading, candidates_of, reading_of
from tokenometer.processor.records.guess.doubts import doubt_counts, doubt_log, doubt_rest
from tokenometer.processor.records.guess.plan import Doubt, GuessPlan, Table, of_records, paths_text
from tokenometer.processor.records.guess.values import Reader, opened
from tokenometer.processor.records.guess.write import free, made_valid, text_of
from tokenometer.processor.records.sample import Sample, sample_of
from tokenometer.schemas.mapping import Mapping, parse

__all__ = ["Doubt", "Guess", "Reader", "guess"]


@dataclass(frozen=True)
class Guess:
    """text: the mapping file. mapping: what the loader makes of it. check: what it makes of the sample."""

    text: str
    mapping: Mapping
    doubts: tuple[Doubt, ...]
    check: mapping_check.Check


def guess(lines: Iterable[bytes], name: str, reader: Reader | None = None) -> Guess:
    """A format 2 mapping for a log of which `lines` are a sample: JSON objects, each without its newline.

    `reader` opens lines as a mapping's [value] says; without one, what only [value] can open is marked as a doubt.
    `name` is the mapping's name (a-z, 0-9 and -); any other raises MappingError. All lines are held in memory.
    """
    lines, plan = list(lines), GuessPlan()
    if reader:
        lines, sample = opened(lines, reader, plan)
    else:
        sample = sample_of(lines)
    _decide(sample, plan)
    made_valid(plan)
    _without_counts(plan)
    mapping = parse(text_of(plan, name, []), f"{name}.toml")
    found = mapping_check.check(lines, mapping)
    for (reason, field), rejects in found.rejects.items():
        plan.doubt(
            field or "log",
            f"{of_records(rejects.records, found.read)} are rejected as {reason}; line {rejects.line} is the first.",
        )
    text = text_of(plan, name, _head(found))
    return Guess(text, parse(text, f"{name}.toml"), tuple(plan.doubts), found)


def _decide(sample: Sample, plan: GuessPlan) -> None:
    skipped = skips.skip_others(sample, plan)
    by_role = candidates_of(sample)
    reading = reading_of(sample, by_role)
    every = set(range(len(sample.records)))
    amounts: dict[int, tuple[int, ...]] = {}
    read = every - skipped
    if reading:
        conventions.decide(reading, sample, plan)
        read = skips.skip_empty(sample, reading, skipped, plan)
        read -= skips.skip_sums(sample, reading.counts(INPUT, sample), read, plan)
        _tables(reading, sample, read, plan)
        doubt_counts(reading, sample, read, plan)
        columns = [reading.counts(role, sample) for role in ROLES]
        amounts = {index: tuple(column.get(index, 0) for column in columns) for index in read}
    else:
        found = events.guess_events(sample, plan)
        read = found or read
        amounts = {index: (index,) for index in read}  # events of one id are never the same usage again
    near = (
        reading.pairs[0].parent if reading else plan.tables["tokens"].paths[0][:-1] if "tokens" in plan.tables else ()
    )
    times.guess_time(sample, read, plan)
    for field in ("user", "model", "chip", "prefill_chip"):
        texts.guess_name(field, sample, near, read, plan)
    texts.guess_labels(sample, near, read, plan)
    says = _says(sample, read, amounts, plan)
    texts.guess_id(sample, read, says, plan)
    if "tokens" in plan.tables:
        texts.guess_scope(sample, read, plan)
    elif reading:
        texts.guess_repeats(sample, read, says, plan)
    doubt_log(sample, plan)
    doubt_rest(reading, sample, plan)


def _says(sample: Sample, read: set[int], amounts: dict[int, tuple[int, ...]], plan: GuessPlan) -> texts.Says:
    columns: list[dict[int, str]] = []
    for name in texts.NAMES:
        columns.append({})
        for path in reversed(plan.tables[name].paths):
            columns[-1] |= sample.leaves[path].texts()
    return {index: texts.Say(tuple(each.get(index) for each in columns), amounts.get(index, ())) for index in read}


def _tables(reading: Reading, sample: Sample, read: set[int], plan: GuessPlan) -> None:
    """The tables of the counts."""
    for role in (*ROLES, TOTAL):
        candidates = reading.roles.get(role, [])
        if not candidates:
            continue
        table = plan.tables[role] = Table(role, [each.path for each in candidates])
        leaves = [sample.leaves[path] for path in (*table.paths, *reading.plus.get(role, [])) if path in sample.leaves]
        kinds = {type(value) for leaf in leaves for value in leaf.values.values()}
        if str in kinds:
            table.settings["digits"] = True
        if float in kinds:
            table.settings["whole_numbers"] = True
        if reading.plus.get(role):
            table.settings["plus"] = list(reading.plus[role])
        known = "a known name" if all(each.name.known for each in candidates) else "its words"
        filled = reading.counts(role, sample)
        table.why.append(
            f"By {known}; in {of_records(len(filled), len(sample.records))}, {sum(filled.values()):,} in all."
        )
    _output_default(reading, sample, read, plan)


def _output_default(reading: Reading, sample: Sample, read: set[int], plan: GuessPlan) -> None:
    """An embedding, or an answer that is all reasoning, has no output: 0, if the total does not say something else."""
    made, total = reading.counts(OUTPUT, sample), reading.counts(TOTAL, sample)
    missing = read - made.keys()
    if not missing:
        return
    if OUTPUT not in plan.tables:
        path = (*reading.pairs[0].parent, "completion_tokens")
        plan.tables[OUTPUT] = Table(OUTPUT, [path], {}, ["No record has one."])
        plan.doubt(OUTPUT, "no path looks like it: every record is counted with 0, which is right for embeddings only.")
    plan.tables[OUTPUT].settings["default"] = 0
    unproven = missing - total.keys()
    if unproven:
        plan.doubt(OUTPUT, f"{of_records(len(unproven), len(read))} have no output: they are counted with 0.")


def _without_counts(plan: GuessPlan) -> None:
    """Paths that no record has: every record is rejected, so that nothing is counted as 0 in silence."""
    plan.head.setdefault("input_tokens_are", "inclusive")
    plan.head.setdefault("output_tokens_are", "inclusive")
    if "tokens" in plan.tables:
        return
    kept = {path for table in plan.tables.values() for path in table.paths}
    kept |= {item["path"] for entry, _ in plan.skip for item in (entry, *entry.get("and", []))}
    for role in (INPUT, OUTPUT):
        if role not in plan.tables:
            plan.tables[role] = Table(role, [free(role, kept)], {}, ["Not found."])
            plan.doubt(
                role,
                f"no path looks like it: {paths_text(plan.tables[role].paths)} is only an example.",
            )


def _head(found: mapping_check.Check) -> list[str]:
    """What it would count."""
    usage = found.usage
    return [
        "Guessed from a sample of a log: read every CHECK before you count with it.",
        f"Of {found.read:,} records of the sample it would count {found.counted:,}; {found.duplicates:,} duplicates "
        f"({found.conflicts:,} of them say something else), {found.rejected:,} rejected, {found.skipped:,} skipped, "
        f"{found.empty:,} empty.",
        f"Tokens: {usage.input_tokens:,} input ({usage.cached_input_tokens:,} cached, {usage.cache_write_tokens:,} "
        f"cache write), {usage.output_tokens:,} output ({usage.reasoning_tokens:,} reasoning).",
    ]
