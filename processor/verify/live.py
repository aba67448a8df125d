"""The audit of token-live: do the parts' ranges tile the log, and do their summaries add up? Pure: messages in.

part a   [0 ───────── 40)
part b                [40 ── 57)                    every offset below the committed one lies in exactly
part c                      [57 ───────── 90)       one range; a part that read nothing has an empty one
                                   committed ┘
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple, TypeGuard

import orjson

from tokenometer.processor.broker import Messages, Place
from tokenometer.processor.verify.values import (
    COUNTERS,
    NO_COUNTERS,
    REASONS,
    SCHEMA,
    Counters,
    Problem,
    Tally,
    UnknownSchema,
    WrongWindow,
)

U64_END = 1 << 64
_DELTAS = ("cells", "users")  # what may differ between messages of one summary
_FATES = ("counted", "duplicates", "rejected", "empty", "skipped")  # a record has one of these
_RECORDS = ("read", *_FATES, "conflicts")  # conflicts are duplicates too
_GONE_MS = 86_400_000
_NEW_RECORDS = {"skipped": 0, "conflicts": 0}  # what older meters do not write


class MalformedSummary(Exception):
    """A message does not fit its schema; the argument says how."""


class PartRange(NamedTuple):
    begin: int
    end: int
    part: str


@dataclass(frozen=True)
class SummaryHead:
    """The head of a live summary: all but the changes since the summary before."""

    part: str
    meter: str
    committed_at: str
    sequence: int
    records: dict[str, int]
    rejects: dict[str, int]
    ranges: tuple[tuple[Place, int, int], ...]
    tokens: Counters
    total_tokens: int
    digest: bytes  # of all that the messages of one summary must repeat


@dataclass
class Parts:
    """The last summary of every part, and what was wrong on the way there."""

    last: dict[str, SummaryHead] = field(default_factory=dict)
    digests: dict[str, dict[int, bytes]] = field(default_factory=dict)  # part -> sequence -> its messages' head
    problems: list[Problem] = field(default_factory=list)
    known: dict[str, SummaryHead] = field(default_factory=dict)  # parts that were audited before, as they were then
    newest: dict[tuple[Place, str], str] = field(default_factory=dict)  # of each meter, by partition: its last part

    def know(self, place: Place, summary: SummaryHead) -> None:
        """A part that may go on, as it was when it was audited before."""
        self.known[summary.part] = self.last[summary.part] = summary
        self.digests[summary.part] = {summary.sequence: summary.digest}
        self.newest[place, summary.meter] = summary.part

    def open_ones(self) -> list[tuple[Place, SummaryHead]]:
        """Parts that may go on: the last one of each meter, because its first summary ends the one before. A meter that
        said nothing for a day, while others did, is gone: an idle one writes a summary every second."""
        found = [(place, self.last[part], _instant_ms(self.last[part])) for (place, _), part in self.newest.items()]
        begin = max((said for _, _, said in found if said is not None), default=0) - _GONE_MS
        return [(place, summary) for place, summary, said in found if said is None or said >= begin]

    def add(self, summary: SummaryHead, where: str, place: Place) -> None:
        digest = self.digests.setdefault(summary.part, {}).setdefault(summary.sequence, summary.digest)
        if digest != summary.digest:
            what = f"another message of sequence {summary.sequence} says otherwise"
            self.problems.append(Problem("summary", f"{where}, part {summary.part}", what))
        last = self.last.get(summary.part)
        if last is None or summary.sequence > last.sequence:
            self.last[summary.part] = summary
        self.newest[place, summary.meter] = summary.part


def read_parts(parts: Parts, stream: Iterable[Messages], window_ms: int) -> None:
    """Raises UnknownSchema and WrongWindow."""
    for messages in stream:
        for value, offset in zip(messages.values, messages.offsets.tolist(), strict=True):
            where = f"{messages.place.topic}/{messages.place.partition} at offset {offset}"
            try:
                parts.add(_summary(value, where, window_ms), where, messages.place)
            except MalformedSummary as error:
                parts.problems.append(Problem("summary", where, str(error)))


def object_of(text: bytes | None) -> dict[str, Any]:
    try:
        value = orjson.loads(text or b"")
    except orjson.JSONDecodeError:
        raise MalformedSummary("not JSON") from None
    if not isinstance(value, dict):
        raise MalformedSummary("not an object")
    return value


def check_version(value: Mapping[str, Any], where: str, window_ms: int, known: tuple[int, ...] = (SCHEMA,)) -> None:
    if value.get("schema") not in known or type(value["schema"]) is not int:
        shown = orjson.dumps(value.get("schema")).decode()
        versions = f"version{'s' if known[1:] else ''} {' and '.join(map(str, known))}"
        raise UnknownSchema(f"{where}: schema version {shown}; this tokenometer verifies {versions}")
    if value.get("window_ms") != window_ms:
        raise WrongWindow(
            f"{where}: metered with windows of {value.get('window_ms')} ms, verified with {window_ms} ms:"
            " verify with the meter's window"
        )


def _summary(value: bytes | None, where: str, window_ms: int) -> SummaryHead:
    top = object_of(value)
    check_version(top, where, window_ms)
    head = {key: item for key, item in top.items() if key not in _DELTAS}
    tokens = _counts(top, "tokens", (*COUNTERS, "total_tokens"))
    rejects = _object(top, "rejects")
    part, sequence = top.get("part"), top.get("sequence")
    if not isinstance(part, str) or not _is_count(sequence):
        raise MalformedSummary("no part, or no sequence")
    return SummaryHead(
        part,
        str(top.get("meter")),
        str(top.get("committed_at")),
        sequence,
        _counts({"records": _NEW_RECORDS | _object(top, "records")}, "records", _RECORDS),
        _counts(top, "rejects", [reason for reason in REASONS if reason in rejects]),
        tuple(_ranges(top.get("partitions"))),
        _as_counters(tokens),
        tokens["total_tokens"],
        hashlib.sha256(orjson.dumps(head, option=orjson.OPT_SORT_KEYS)).digest(),
    )


def _instant_ms(summary: SummaryHead) -> int | None:
    try:
        return int(datetime.fromisoformat(summary.committed_at).timestamp() * 1000)
    except ValueError:
        return None


def _as_counters(tokens: Mapping[str, int]) -> Counters:
    a, b, c, d, e, f = (tokens[name] for name in COUNTERS)
    return a, b, c, d, e, f


def _is_count(value: Any) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < U64_END


def _object(top: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = top.get(key)
    if not isinstance(value, dict):
        raise MalformedSummary(f"{key} is not an object")
    return value


def _counts(top: Mapping[str, Any], key: str, names: Sequence[str]) -> dict[str, int]:
    counts = _object(top, key)
    if set(counts) != set(names) or not all(map(_is_count, counts.values())):
        raise MalformedSummary(f"{key} is not an object of its counters")
    return counts


def _ranges(partitions: Any) -> Iterator[tuple[Place, int, int]]:
    if not isinstance(partitions, list):
        raise MalformedSummary("partitions is not a list")
    for item in partitions:
        if not isinstance(item, dict) or not isinstance(item.get("topic"), str):
            raise MalformedSummary("partitions is not a list of partitions")
        partition, begin, end = item.get("partition"), item.get("from"), item.get("next")
        if not (_is_count(partition) and _is_count(begin) and _is_count(end)):
            raise MalformedSummary("partitions is not a list of partitions")
        if begin > end:
            raise MalformedSummary(f"a range from {begin} to {end}")
        yield Place(item["topic"], partition), begin, end


# --- Each part by itself ---


def part_problems(parts: Parts, first_is_there: bool) -> Iterator[Problem]:
    """Conservation and sequences. `first_is_there`: the topic has lost nothing to retention, so every part begins."""
    for name, summary in sorted(parts.last.items()):
        where = f"part {name}"
        for what in _unconserved(summary):
            yield Problem("conservation", where, what)
        numbers, known = sorted(parts.digests[name]), parts.known.get(name)
        if known is not None and numbers[0] < known.sequence:
            yield Problem("sequence", where, f"a summary {numbers[0]} came after its summary {known.sequence}")
        begin = 0 if first_is_there and known is None else numbers[0]
        if numbers != list(range(begin, begin + len(numbers))):
            missing = next(number for number, given in enumerate(numbers, begin) if number != given)
            yield Problem("sequence", where, f"there is no summary {missing}, but a summary {numbers[-1]}")


def _unconserved(summary: SummaryHead) -> Iterator[str]:
    records, tokens = summary.records, dict(zip(COUNTERS, summary.tokens, strict=True))
    kinds = sum(records[name] for name in _FATES)
    if records["read"] != kinds:
        yield f"{records['read']:,} records read, but {' + '.join(_FATES)} = {kinds:,}"
    if sum(summary.rejects.values()) != records["rejected"]:
        yield f"{records['rejected']:,} rejected, but its reasons have {sum(summary.rejects.values()):,}"
    if tokens["input_tokens"] + tokens["output_tokens"] != summary.total_tokens:
        yield f"total_tokens is {summary.total_tokens:,}, but input + output is another number"


def token_problems(parts: Parts, rows: Mapping[str, Counters]) -> Iterator[Problem]:
    """Checks that a part's rows add up to its summary's tokens. `rows`: their sums by part."""
    for part in sorted(parts.last.keys() | rows.keys()):
        summary = parts.last.get(part)
        if summary is None:
            yield Problem("tokens", f"part {part}", "has usage rows, but no live summary")
            continue
        for name, said, found in zip(COUNTERS, summary.tokens, rows.get(part, NO_COUNTERS), strict=True):
            if said != found:
                yield Problem("tokens", f"part {part}", f"{name}: its summary says {said:,}, its rows {found:,}")


# --- All parts together ---


def ranges_of(parts: Parts) -> dict[Place, list[PartRange]]:
    """The ranges that the parts cover, by partition, lowest offset first, without the empty ones."""
    ranges: dict[Place, list[PartRange]] = {}
    for summary in parts.last.values():
        for place, begin, end in _not_empty(summary):
            ranges.setdefault(place, []).append(PartRange(begin, end, summary.part))
    return {place: sorted(of_place) for place, of_place in ranges.items()}


def _not_empty(summary: SummaryHead) -> list[tuple[Place, int, int]]:
    return [(place, begin, end) for place, begin, end in summary.ranges if begin < end]


def ranges_since(parts: Parts, since: Mapping[Place, int]) -> tuple[dict[Place, list[PartRange]], dict[Place, int]]:
    """The ranges that reach beyond the offsets of an audit before, and where these must begin: at that offset, or where
    the part began that had read up to it and may have gone on.

    part a (known)   [20 ────── 40)                 done with, unless it has changed
    part b (known)              [40 ── 57 ── 63)    begins at 40
    part c                                 [63 ── 90)
                        since ┘  57
    """
    known = {(*of_place, part) for part, summary in parts.known.items() for of_place in _not_empty(summary)}
    starts = dict(since)
    for place, begin, end, _ in known:
        if end == since.get(place):
            starts[place] = min(starts[place], begin)
    ranges = ranges_of(parts)
    return {
        place: [each for each in of_place if (place, *each) not in known or each.end >= since.get(place, 0)]
        for place, of_place in ranges.items()
    }, starts


def tiling_problems(
    place: Place,
    ranges: Sequence[PartRange],
    first_message: int | None,
    committed: int | None,
    start: int | None = None,
) -> Iterator[Problem]:
    """first_message: the lowest offset below `committed` that has a message. committed: None if there is none. start:
    where the ranges must begin, if that is known."""
    where = f"{place.topic}/{place.partition}"
    reached, before = (ranges[0].begin, "") if ranges else (0 if committed is None else committed, "")
    if start is not None:
        reached, before = start, "a part that was audited before"
    elif first_message is not None and (not ranges or first_message < reached):
        yield Problem("gap", where, f"offsets {first_message} to {reached - 1} are in no part")
    for begin, end, part in ranges:
        if begin > reached:
            yield Problem("gap", where, f"offsets {reached} to {begin - 1} are in no part, before part {part}")
        elif begin < reached:
            twice = f"offsets {begin} to {min(reached, end) - 1} are in {before} and in part {part}"
            yield Problem("overlap", where, twice)
        if end >= reached:
            reached, before = end, f"part {part}"
    if (ranges or start is not None) and reached != committed:
        said = "nothing" if committed is None else f"offset {committed}"
        yield Problem("end", where, f"the parts end at offset {reached} ({before}); {said} is committed")


def record_problems(parts: Parts, tally: Tally, rejects: Mapping[str, int]) -> Iterator[Problem]:
    """Checks that the parts' summaries together say what the log says."""
    summaries, before = parts.last.values(), parts.known.values()
    for name in _RECORDS:
        said, found = _sum(summaries, name) - _sum(before, name), getattr(tally, name)
        if said != found:
            yield Problem("records", "all parts", f"{name}: the summaries say {said:,}, the log {found:,}")
    for reason in REASONS:
        said = sum(summary.rejects.get(reason, 0) for summary in summaries)
        said, found = said - sum(summary.rejects.get(reason, 0) for summary in before), rejects.get(reason, 0)
        if said != found:
            yield Problem("records", "all parts", f"{reason}: the summaries say {said:,}, the log {found:,}")


def _sum(summaries: Iterable[SummaryHead], name: str) -> int:
    return sum(summary.records[name] for summary in summaries)
