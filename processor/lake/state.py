"""What a table's last snapshot says of Kafka: how far each partition is in the table. Pure.

Each snapshot of ours carries the whole state in its summary, for all partitions and all writers. So the last one is
enough, whatever other programs have done to the table since (compaction, rollback), and older ones may expire.

    token-usage, one partition:   ... rows that are in ... │ rows of parts that go on, and of parts that are in ...
                                                          next            `done` names the parts that are in
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import orjson

from tokenometer.processor.broker import Offset
from tokenometer.processor.lake.values import OtherTable, OtherTopics
from tokenometer.schemas.usage import COUNTERS, Usage

VERSION = 1
ENDED_KEPT = 100  # names; each snapshot has them, and no part goes on so long after its end


class Done(NamedTuple):
    """A part whose rows of a partition are in. usage: the offset after the last of them. live_partition, live: the
    partition of token-live and the offset of its last summary; -1: it has none."""

    usage: int
    live_partition: int
    live: int


@dataclass(frozen=True)
class Mark:
    """A partition of token-usage. next: read from here. live: of each partition of token-live, read from here.
    done: parts whose rows may come again after `next`, or whose summaries after `live`."""

    next: Offset
    live: Mapping[int, Offset]
    done: Mapping[str, Done] = field(default_factory=dict)

    def has(self, part: str, live_partition: int, live: int) -> bool:
        """Are the rows of a part in? live_partition, live: where its last summary is, or -1."""
        return part in self.done or 0 <= live < self.live.get(live_partition, 0)


@dataclass(frozen=True)
class Topics:
    """Names and ids of the topics. partitions: of token-usage."""

    usage: str
    usage_id: str
    live: str
    live_id: str
    partitions: int


@dataclass(frozen=True)
class LakeState:
    """sums: of each part that is in for some partitions and not yet for all: its counters so far. ended: the last parts
    that are in for all, to know one again that goes on all the same."""

    topics: Topics
    marks: Mapping[int, Mark] = field(default_factory=dict)
    sums: Mapping[str, Usage] = field(default_factory=dict)
    ended: Mapping[str, Done] = field(default_factory=dict)


@dataclass(frozen=True)
class Slice:
    """The rows of a part in the partitions of one writer. ends: of each partition, the offset after the last of them.
    said: what the part's last summary says of all partitions together; None: it has none."""

    part: str
    ends: Mapping[int, Offset]
    live_partition: int
    live: int
    found: Usage
    said: Usage | None


@dataclass(frozen=True)
class Dispute:
    """A part whose rows do not add up to its last summary."""

    part: str
    said: Usage
    found: Usage


def advanced(
    state: LakeState, slices: Collection[Slice], following: Mapping[int, Offset], live: Mapping[int, Offset]
) -> tuple[LakeState, list[Dispute]]:
    """The state with these slices in, and the disputes of parts that are complete with them. following, live: where the
    writer's partitions, and token-live, are to be read on."""
    marks, sums, ended, disputes = dict(state.marks), dict(state.sums), dict(state.ended), list[Dispute]()
    for partition, offset in following.items():
        old = marks.get(partition, Mark(Offset(0), {}))
        done = dict(old.done)
        done |= {
            each.part: Done(each.ends[partition], each.live_partition, each.live)
            for each in slices
            if partition in each.ends
        }
        marks[partition] = Mark(offset, dict(live), done)
    for each in slices:
        total = sums.get(each.part, Usage()).plus(each.found)
        everywhere = len(marks) == state.topics.partitions and all(
            mark.has(each.part, each.live_partition, each.live) for mark in marks.values()
        )
        if not everywhere:
            sums[each.part] = total
            continue
        sums.pop(each.part, None)
        ended[each.part] = Done(0, each.live_partition, each.live)
        if each.said is not None and total != each.said:
            disputes.append(Dispute(each.part, each.said, total))
    marks = {number: _pruned(mark, sums) for number, mark in marks.items()}
    return replace(state, marks=marks, sums=sums, ended=dict(list(ended.items())[-ENDED_KEPT:])), disputes


def _pruned(mark: Mark, sums: Mapping[str, Usage]) -> Mark:
    """Without the parts that are complete and of which nothing is read again."""
    kept = {
        part: done
        for part, done in mark.done.items()
        if part in sums or done.usage > mark.next or done.live >= mark.live.get(done.live_partition, 0)
    }
    return replace(mark, done=kept)


def check_topics(table: str, held: Topics, found: Topics) -> None:
    """Raises OtherTopics, unless what was found is what the table's rows are of."""
    if (held.usage, held.live) != (found.usage, found.live):
        raise OtherTopics(
            f"the table {table} has the rows of {held.usage} and {held.live}, not of {found.usage} and {found.live}: "
            f"use another table"
        )
    if (held.usage_id, held.live_id) != (found.usage_id, found.live_id):
        raise OtherTopics(
            f"{found.usage} or {found.live} was deleted and made anew since the table {table} was written: its rows "
            f"may be other ones. Keep the table as the account of the old topic, and use another"
        )
    if held.partitions != found.partitions:
        raise OtherTopics(
            f"{found.usage} has {found.partitions} partitions now, and had {held.partitions}: a row of a part that was "
            f"open meanwhile may be in two of them. Fill another table with one writer (--writers '')"
        )


def encode(state: LakeState) -> str:
    topics = state.topics
    return orjson.dumps(
        {
            "version": VERSION,
            "usage": [topics.usage, topics.usage_id, topics.partitions],
            "live": [topics.live, topics.live_id],
            "partitions": {
                str(number): {
                    "next": mark.next,
                    "live": {str(partition): offset for partition, offset in mark.live.items()},
                    "done": {part: list(done) for part, done in mark.done.items()},
                }
                for number, mark in sorted(state.marks.items())
            },
            "sums": {part: list(sums) for part, sums in state.sums.items()},
            "ended": {part: list(done) for part, done in state.ended.items()},
        }
    ).decode()


def decode(text: str) -> LakeState:
    """Raises OtherTable."""
    try:
        top = orjson.loads(text)
        if top["version"] != VERSION:
            raise OtherTable(
                f"the table was written by another version of tokenometer lake (its state has version "
                f"{top['version']}, this one knows {VERSION}): use that version, or another table"
            )
        usage, usage_id, partitions = top["usage"]
        live, live_id = top["live"]
        return LakeState(
            Topics(usage, usage_id, live, live_id, partitions),
            {int(number): _mark(mark) for number, mark in top["partitions"].items()},
            {part: Usage(*_exactly(sums, len(COUNTERS))) for part, sums in top["sums"].items()},
            {part: Done(*_exactly(done, 3)) for part, done in top["ended"].items()},
        )
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise OtherTable(f"the state in the table's last snapshot cannot be read: {error!r}") from None


def _mark(mark: Mapping[str, Any]) -> Mark:
    live = {int(partition): Offset(offset) for partition, offset in mark["live"].items()}
    return Mark(Offset(mark["next"]), live, {part: Done(*_exactly(done, 3)) for part, done in mark["done"].items()})


def _exactly(numbers: list[int], count: int) -> list[int]:
    if len(numbers) != count:
        raise ValueError(f"{len(numbers)} numbers, not {count}")
    return numbers
