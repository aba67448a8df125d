"""What `tokenometer verify` shows: one verdict, what was audited, all that differs. It is pure and needs 80 columns."""

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tokenometer.processor import show
from tokenometer.processor.broker import Place
from tokenometer.processor.verify.values import COUNTERS, Counters, Difference, LetterDifference, Problem, Report

_PARTITIONS_SHOWN = 8  # with their offsets


def render(report: Report) -> RenderableType:
    parts: list[RenderableType] = [_verdict(report), _facts(report)]
    parts += [Padding(Text(note, "yellow"), (0, 0, 1, 0)) for note in report.notes]
    if report.problem_count:
        parts.append(_problems(report))
    if report.differing_rows:
        parts.append(_differences(report))
    if report.differing_letters:
        parts.append(_letters(report))
    return Group(*parts)


def tokens_of(counters: Counters) -> int:
    named = dict(zip(COUNTERS, counters, strict=True))
    return named["input_tokens"] + named["output_tokens"]


def _verdict(report: Report) -> Text:
    if report.clean:
        tokens, requests = tokens_of(report.expected), report.expected[0]
        accounted = f"{tokens:,} tokens in {show.plural(requests, 'request')} accounted for exactly"
        if report.since is not None:
            accounted += f" since {show.time(report.since.made_at_ms)}"
        return Text.assemble(("clean: ", "bold green"), accounted)
    wrong = []
    if report.differing_rows:
        rows = max(report.expected_rows, report.found_rows)
        wrong.append(f"{report.differing_rows:,} of {show.plural(rows, 'row')} {_differ(report.differing_rows)}")
    if report.differing_letters:
        wrong.append(f"{show.plural(report.differing_letters, 'dead letter')} {_differ(report.differing_letters)}")
    if report.problem_count:
        wrong.append(show.plural(report.problem_count, "other problem"))
    return Text.assemble(("NOT clean: ", "bold red"), ", ".join(wrong))


def _differ(count: int) -> str:
    return "differs" if count == 1 else "differ"


def _facts(report: Report) -> RenderableType:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    tally = report.tally
    grid.add_row("Group", Text(f"{report.group}, {_covered(report)}"))
    grid.add_row(
        "Records",
        f"{tally.read:,} = {tally.counted:,} counted + {show.plural(tally.duplicates, 'duplicate')}"
        f" + {tally.rejected:,} rejected + {tally.empty:,} empty"
        + (f" + {tally.skipped:,} skipped" if tally.skipped else "")
        + (f"; {tally.conflicts:,} of the duplicates say something else" if tally.conflicts else ""),
    )
    grid.add_row("Tokens", _sums(report))
    parts, published = show.plural(report.parts, "part"), show.plural(report.usage_messages, "message")
    grid.add_row("Rows", f"{show.plural(report.found_rows, 'row')} of {parts}, the last of {published}")
    grid.add_row("Rejected", show.plural(report.letters, "dead letter"))
    if report.since is not None:
        grid.add_row("Since", Text(_since(report)))
        grid.add_row("In all", _in_all(report))
    if report.checkpoint is not None:
        grid.add_row("Checkpoint", Text(f"written to {show.printable(report.checkpoint)}"))
    grid.add_row("Time", f"{show.seconds(report.seconds)}{_speed(report)}")
    return Padding(grid, (1, 0))


def _covered(report: Report) -> str:
    topics = sorted({covered.place.topic for covered in report.partitions})
    behind = sum(covered.end - covered.committed for covered in report.partitions)
    later = f"; the {behind:,} offsets behind that are not metered yet" if behind else ""
    partitions = show.plural(len(report.partitions), "partition")
    return f"{partitions} of {', '.join(topics)} up to the committed offsets{later}"


def _since(report: Report) -> str:
    """When, and from which offsets on."""
    assert report.since is not None
    some = [f"{place_name(place)} from {begin:,} to {committed:,}" for place, begin, committed, _ in report.partitions]
    more = [f"{len(some) - _PARTITIONS_SHOWN:,} more"] if len(some) > _PARTITIONS_SHOWN else []
    offsets = ", ".join([*some[:_PARTITIONS_SHOWN], *more])
    file = show.printable(report.since.file)
    return show.printable(f"{show.time(report.since.made_at_ms)}, by the checkpoint {file}: offsets of {offsets}")


def _in_all(report: Report) -> str:
    totals = report.in_all
    return (
        f"{tokens_of(totals.tokens):,} tokens in {show.plural(totals.tokens[0], 'request')},"
        f" {show.plural(totals.tally.read, 'record')}, {show.plural(totals.letters, 'dead letter')},"
        f" {show.plural(totals.parts, 'part')}, with the clean audits before this one"
    )


def _sums(report: Report) -> str:
    expected, found = tokens_of(report.expected), tokens_of(report.found)
    if expected == found:
        return f"{found:,} published, as in the log"
    return f"{found:,} published, {expected:,} in the log: {found - expected:+,}"


def _speed(report: Report) -> str:
    return f", {show.si(report.tally.read / report.seconds)} records/s" if report.seconds > 0 else ""


# --- What differs ---


def _problems(report: Report) -> RenderableType:
    table = _table(_title("Problem", len(report.problems), report.problem_count), "Where", "What")
    for problem in report.problems:
        table.add_row(*map(Text, _cells(problem)))
    return Padding(table, (0, 0, 1, 0))


def _cells(problem: Problem) -> tuple[str, str, str]:
    return problem.kind, show.printable(problem.where), show.printable(problem.what)


def _differences(report: Report) -> RenderableType:
    """A row's key on a line of its own, and below it the counters that differ."""
    title = _title("Rows that differ", len(report.differences), report.differing_rows)
    parts: list[RenderableType] = []
    for difference in report.differences:
        parts += [Text(_key(difference)), Padding(_counters(difference), (0, 0, 0, 2))]
    return Group(Text(title, "bold"), *parts, "")


def _key(difference: Difference) -> str:
    texts = map(show.printable, (difference.user, difference.model, difference.chip))
    labels = [show.printable(difference.labels)] if difference.labels else []
    return "  ".join((show.time(difference.window_start_ms), *texts, *labels))


def _counters(difference: Difference) -> RenderableType:
    if difference.expected is None and difference.found is not None:
        return Text(f"published, but not in the log: {_all(difference.found)}")
    if difference.found is None and difference.expected is not None:
        return Text(f"in the log, but not published: {_all(difference.expected)}")
    assert difference.expected and difference.found
    both = [*zip(COUNTERS, difference.expected, difference.found, strict=True), *difference.further]
    lines = [
        f"{name}: {expected:,} in the log, {found:,} published: {found - expected:+,}"
        for name, expected, found in both
        if expected != found
    ]
    return Text("\n".join(lines))


def _all(counters: Counters) -> str:
    return f"{show.plural(counters[0], 'request')}, {tokens_of(counters):,} tokens"


def _letters(report: Report) -> RenderableType:
    title = _title("Dead letter", len(report.letter_differences), report.differing_letters)
    table = _table(title, "Record", "Log", "Published")
    for letter in report.letter_differences:
        table.add_row(*map(Text, _letter_cells(letter)))
    return Padding(table, (0, 0, 1, 0))


def _letter_cells(letter: LetterDifference) -> tuple[str, str, str, str]:
    where = f"{place_name(letter.place)} offset {letter.offset} line {letter.line}"
    return letter.what, show.printable(where), letter.expected or "-", letter.found or "-"


def place_name(place: Place) -> str:
    return f"{place.topic}/{place.partition}"


def _title(name: str, shown: int, count: int) -> str:
    return f"{name}: the first {shown:,} of {count:,}" if shown < count else name


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for name in columns:
        table.add_column(name, overflow="fold")
    return table
