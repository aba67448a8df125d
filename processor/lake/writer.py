"""The loop of a writer: token-usage and token-live in, rows of parts that are over out.

    read ──> rows to their parts, summaries to the table of parts
                 │ now and then: which parts are over, and where do the topics end, open transactions included?
                 ▼
    all of that is in ──> those parts are final: one commit, with the offsets from which a start reads again

A start reads again all rows of parts that were not over: ten minutes of the stream, for a meter begins a part that
often. Whatever goes wrong, the writer drops what it holds and begins from the table's last snapshot.
"""

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tokenometer.processor.broker import (
    Broker,
    BrokerError,
    Fenced,
    Follower,
    Messages,
    Offset,
    OutOfRange,
    Place,
    Refused,
    TopicMissing,
)
from tokenometer.processor.lake import ending
from tokenometer.processor.lake.held import HeldPart
from tokenometer.processor.lake.latest import Latest
from tokenometer.processor.lake.share import Share
from tokenometer.processor.lake.state import Dispute, Done, LakeState, Mark, Slice, Topics, advanced, check_topics
from tokenometer.processor.lake.table import LakeTable
from tokenometer.processor.lake.values import Taken, TooLarge
from tokenometer.processor.ledger import decode
from tokenometer.processor.ledger.parts import ENDED, MERGED, OPEN, UNPROVED, LedgerPart, LedgerParts, PartGoesOn
from tokenometer.processor.ledger.values import LedgerRows, LedgerSummary

log = logging.getLogger("tokenometer.lake")
ROWS_MAX = 20_000_000  # held at a time, of all parts that are not over: about 2 GB
_STOPPING = (OutOfRange, TopicMissing, Fenced, Refused)  # what does not pass
_POLL_SECONDS, _POLL_MESSAGES = 0.1, 10_000
_BATCH_ROWS = 100_000  # read together; more at a time are not faster
_RETRY_SECONDS = 1.0
_ASK_MS = 10_000  # is a meter still in its group?
_JOIN_SECONDS = 60.0  # `once`: how long a writer waits for partitions


@dataclass(frozen=True)
class WriterSettings:
    """group: of the meters; None: whether a meter has gone, nobody asks. writers: the group that shares the partitions;
    None: this writer takes all. commit_interval_ms: a table of few large files wants few commits."""

    usage_topic: str = "token-usage"
    live_topic: str = "token-live"
    group: str | None = "tokenometer"
    writers: str | None = "tokenometer-lake"
    commit_interval_ms: int = 60_000
    rows_max: int = ROWS_MAX
    accept_gap: bool = False


@dataclass
class WriterProgress:
    """Numbers for people and tests."""

    read: int = 0  # rows, each as it was last when it was read
    rows: int = 0  # in the table, by this writer
    commits: int = 0
    disputes: list[Dispute] = field(default_factory=list)


@dataclass(frozen=True)
class _Horizon:
    """Once all up to `ends` is read, these parts are final."""

    ends: Mapping[Place, Offset]
    over: Mapping[str, bool]  # and whether they had no summary
    whole: bool  # it was noted after everything had been read that there was when `run` began

    def reached(self, reached: Mapping[Place, Offset]) -> bool:
        return all(reached.get(place, Offset(0)) >= end for place, end in self.ends.items())


class LakeWriter:
    """`run` until it is told to stop, or `open` and `step` by step. steady_ms: a clock that only goes forward."""

    def __init__(
        self,
        broker: Broker,
        table: LakeTable,
        settings: WriterSettings,
        steady_ms: Callable[[], int] = lambda: time.monotonic_ns() // 1_000_000,
    ) -> None:
        self._broker, self._table, self._settings, self._steady_ms = broker, table, settings, steady_ms
        self._share = Share(broker, settings.writers, settings.usage_topic)
        self._reader: Follower | None = None
        self._asked_ms = -_ASK_MS
        self.progress = WriterProgress()
        self._forget()

    def _forget(self) -> None:
        """All that a start begins with anew."""
        self._marks: dict[int, Mark | None] = {}  # of the own partitions, as the table has them
        self._ended: Mapping[str, Done] = {}
        self._held: dict[str, HeldPart] = {}
        self._latest = Latest()  # rows that were not read yet
        self._parts = LedgerParts([], 1, lambda name: None)
        self._last: dict[str, tuple[int, int]] = {}  # of each part: the partition and offset of its last summary
        self._inputs: dict[str, tuple[str, Collection[Place]]] = {}  # of each part, its meter and what it has read
        self._reached: dict[Place, Offset] = {}
        self._horizon: _Horizon | None = None
        self._committed_ms = self._steady_ms()
        self._goal: Mapping[Place, Offset] | None = None
        self._news = True

    # --- The loop ---

    def run(self, stopped: Callable[[], bool], once: bool = False) -> None:
        """`once`: until every part that is over now is in. Raises BrokerError for what does not pass, LedgerError for a
        message that cannot be read, LakeError."""
        while not stopped():
            try:
                self.open(stopped, _JOIN_SECONDS if once else None)
                while not (stopped() or self._share.changed):
                    if self.step(once) and once:
                        return
                if once and not self._marks:
                    return
            except Taken as error:
                log.warning("%s: beginning again from the table's state", error)
            except _STOPPING:
                raise
            except BrokerError as error:
                log.warning("the broker cannot yet, trying again in %.0f s: %s", _RETRY_SECONDS, error)
                time.sleep(_RETRY_SECONDS)
                self._share.renew()
            finally:
                self._close_reader()

    def open(self, stopped: Callable[[], bool] = lambda: False, join_seconds: float | None = 0) -> None:
        """Begin from the table's state, with the partitions that are this writer's."""
        self._close_reader()
        deadline = None if join_seconds is None else time.monotonic() + join_seconds
        self._share.hear()
        while not (own := self._share.partitions()):
            if stopped() or (deadline is not None and time.monotonic() > deadline):
                log.warning("no partition is this writer's: others have them all")
                break
            self._share.hear(_POLL_SECONDS)
        self._forget()
        state, topics = self._table.state(), self._topics()
        if state is not None:
            check_topics(self._table.name, state.topics, topics)
        self._ended = state.ended if state else {}
        self._marks = {number: state.marks.get(number) if state else None for number in own}
        starts = self._starts(topics) if own else {}
        self._reached = dict(starts)
        self._reader = self._broker.follow(starts, keys=True) if own else None
        self._goal = self._ends() if own else {}
        log.info("reading", extra={"partitions": own, "of": topics.partitions})

    def _close_reader(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def close(self) -> None:
        self._close_reader()
        self._share.close()

    def step(self, at_once: bool = False, timeout_seconds: float = _POLL_SECONDS) -> bool:
        """Read a batch, and commit what is final. at_once: commit without waiting for the interval. Whether all parts
        are in that were over when the writer was opened."""
        self._share.hear()
        if self._reader is None or self._share.changed:
            time.sleep(0 if self._share.changed else timeout_seconds)
            return False
        for messages in self._gather(timeout_seconds):
            self._take(messages)
        self._reached = self._reader.reached()
        horizon = self._horizon
        if horizon is not None and horizon.reached(self._reached):
            due = at_once or self._steady_ms() - self._committed_ms >= self._settings.commit_interval_ms
            if horizon.over and not due:
                return False
            if horizon.over or at_once:
                self._read_rows()
            self._finish(horizon)
            self._horizon = None
            if horizon.whole:
                return True
        if self._horizon is None:
            self._note(at_once)
        return False

    def _gather(self, timeout_seconds: float) -> list[Messages]:
        assert self._reader is not None
        found, room = list[Messages](), _BATCH_ROWS
        while room > 0:
            polled = self._reader.poll(timeout_seconds, min(room, _POLL_MESSAGES))
            if not polled:
                break
            found += polled
            room -= sum(len(each.values) for each in polled)
            timeout_seconds = min(timeout_seconds, 0.02)
        together: dict[Place, list[Messages]] = {}
        for messages in found:
            together.setdefault(messages.place, []).append(messages)
        return [_joined(each) for each in together.values()]

    # --- Where to begin ---

    def _topics(self) -> Topics:
        names = (self._settings.usage_topic, self._settings.live_topic)
        states = self._broker.topics(names)
        usage, live = (states[name] for name in names)
        if usage is None or live is None:
            raise TopicMissing(f"the topic {names[0] if usage is None else names[1]} is not there")
        return Topics(names[0], usage.id, names[1], live.id, usage.partitions)

    def _starts(self, topics: Topics) -> dict[Place, Offset]:
        extents = self._broker.extents([topics.usage, topics.live])
        starts: dict[Place, Offset] = {}
        for number, mark in self._marks.items():
            place = Place(topics.usage, number)
            begin = extents[place].begin
            starts[place] = begin if mark is None else mark.next
            if begin > starts[place] or (mark is None and begin > 0 and not self._settings.accept_gap):
                raise OutOfRange(
                    f"{topics.usage}, partition {number}, begins at offset {begin}: usage before it was deleted and is "
                    f"not in the table. Give the topic cleanup.policy=compact. A table that is new begins all the same "
                    f"with --accept-gap"
                )
            if starts[place] > extents[place].end:
                raise OutOfRange(f"{topics.usage}, partition {number}, ends before the {starts[place]} that was read")
        for place, extent in extents.items():
            if place.topic == topics.live:
                held = [
                    mark.live.get(place.partition, extent.begin) if mark else extent.begin
                    for mark in self._marks.values()
                ]
                starts[place] = max(extent.begin, min(held))  # summaries that are gone only delay
        return starts

    def _ends(self) -> dict[Place, Offset]:
        """Of what this writer reads, open transactions included."""
        ends = self._broker.ends([self._settings.usage_topic, self._settings.live_topic])
        return {place: end for place, end in ends.items() if place in self._reached}

    # --- What was read ---

    def _take(self, messages: Messages) -> None:
        if messages.place.topic == self._settings.live_topic:
            offsets = [o for o, v in zip(messages.offsets.tolist(), messages.values, strict=True) if v is not None]
            for offset, summary in zip(offsets, decode.summaries([messages]), strict=True):
                self._take_summary(summary, offset)
            return
        self._latest.add(messages)
        if self._latest.is_full:
            self._read_rows()

    def _read_rows(self) -> None:
        for messages in self._latest.take():
            rows = decode.usage_rows([messages])
            assert rows is not None
            self.progress.read += len(rows)
            self._take_rows(rows, messages)

    def _take_summary(self, summary: LedgerSummary, offset: int) -> None:
        ended = [mark.done.get(summary.part) for mark in self._marks.values() if mark is not None]
        for done in (*ended, self._ended.get(summary.part)):
            if done is not None and done.live_partition == summary.live_partition and offset > done.live >= 0:
                raise PartGoesOn(
                    f"part {summary.part} of meter {summary.meter} is in the table {self._table.name} as one that has "
                    f"ended, and there is another summary of it: do two meters run under one name?"
                )
        self._parts.take(summary)
        self._last[summary.part] = (summary.live_partition, offset)
        self._inputs[summary.part] = (summary.meter, summary.watermarks.keys())
        self._news = True

    def _take_rows(self, rows: LedgerRows, messages: Messages) -> None:
        """To each part its own; rows of parts that are in are left out."""
        partition, mark = messages.place.partition, self._marks[messages.place.partition]
        offsets = messages.offsets
        for code, (encoded, window_ms) in enumerate(zip(rows.part.names, rows.window_ms, strict=True)):
            name = encoded.decode()
            if mark is not None and name in mark.done:
                continue
            part = self._parts.of(name, window_ms)
            if part.state == MERGED:
                raise PartGoesOn(f"part {name} is in the table {self._table.name}, and rows of it come: run verify")
            chosen = None if len(rows.part.names) == 1 else rows.part.codes == code
            there = offsets if chosen is None else offsets[chosen]
            held = self._held.setdefault(name, HeldPart(name, window_ms))
            held.add(rows, chosen, partition, Offset(int(there[0])), Offset(int(there[-1]) + 1))
        self._news = True
        if (count := sum(held.rows for held in self._held.values())) > self._settings.rows_max:
            raise TooLarge(
                f"{count:,} rows of parts that are not over are held in memory, and the limit is "
                f"{self._settings.rows_max:,}: start more writers, or raise --rows-max (100 bytes each)"
            )

    # --- What is final ---

    def _note(self, at_once: bool) -> None:
        """If there is news, which parts are over, and what must be read before they are final."""
        assert self._goal is not None
        now = self._steady_ms()
        asked = self._settings.group is not None and (at_once or now - self._asked_ms >= _ASK_MS)
        whole = all(self._reached.get(place, Offset(0)) >= end for place, end in self._goal.items())
        if not (self._news or asked or (at_once and whole)):
            return
        self._news = False
        if at_once and whole:
            self._read_rows()  # for parts that have no summary
        gone = self._ask() if asked else lambda part: False
        over = {part.name: part.meter is None for part in ending.over(self._parts, gone)}
        over = {name: silent for name, silent in over.items() if self._is_missing(name)}
        self._horizon = _Horizon(self._ends(), over, whole)

    def _ask(self) -> Callable[[str], bool]:
        """Which parts' meters are not in the group now. A part whose input the group has not committed is another
        group's, of which nobody knows."""
        group = self._settings.group
        assert group is not None
        self._asked_ms = self._steady_ms()
        members = {member.name for member in self._broker.members(group)}
        away = {name: places for name, (meter, places) in self._inputs.items() if meter not in members}
        topics = sorted({place.topic for places in away.values() for place in places})
        committed = self._broker.committed(group, topics) if topics else {}
        gone = {name for name, places in away.items() if places and all(map(committed.get, places))}
        return gone.__contains__

    def _is_missing(self, part: str) -> bool:
        """Whether rows of it may not be in yet."""
        return any(not self._is_in(number, part) for number in self._marks)

    def _is_in(self, partition: int, part: str) -> bool:
        mark = self._marks[partition]
        return mark is not None and mark.has(part, *self._last.get(part, (-1, -1)))

    def _finish(self, horizon: _Horizon) -> None:
        """These parts are final: their rows go into the table."""
        over = [
            part for part in self._parts.in_state(OPEN) + self._parts.in_state(ENDED) + self._parts.in_state(UNPROVED)
        ]
        over = [part for part in over if part.name in horizon.over and ending.still_over(part, horizon.over[part.name])]
        if not over:
            return
        tables, slices = [], []
        for part in over:
            held = self._held.get(part.name) or HeldPart(part.name, part.window_ms)
            rows, found = held.final()
            tables.append(rows)
            ends = {n: held.ends.get(n, Offset(0)) for n in self._marks if not self._is_in(n, part.name)}
            slices.append(Slice(part.name, ends, *self._last.get(part.name, (-1, -1)), found, part.tokens))
        ended = {part.name for part in over}
        following = {number: self._following(number, ended) for number in self._marks}
        live = self._live_following(ended)
        topics = self._topics()

        def change(state: LakeState | None) -> tuple[LakeState, list[Dispute]]:
            state = state or LakeState(topics)
            check_topics(self._table.name, state.topics, topics)
            return advanced(state, slices, following, live)

        state, disputes = self._table.commit(tables, self._marks, change)
        self._settle(over, state, disputes)
        self.progress.rows += sum(map(len, tables))
        log.info("committed", extra={"parts": len(slices), "rows": sum(map(len, tables))})

    def _settle(self, over: Sequence[LedgerPart], state: LakeState, disputes: Sequence[Dispute]) -> None:
        self._marks = {number: state.marks[number] for number in self._marks}
        self._ended = state.ended
        for part in over:
            self._held.pop(part.name, None)
            self._inputs.pop(part.name, None)
            self._parts.move(part, MERGED)
        self._parts.changed.clear()
        self._committed_ms = self._steady_ms()
        self.progress.commits += 1
        for dispute in disputes:
            self.progress.disputes.append(dispute)
            log.error(
                "part %s: its last summary says %s, its rows %s: run tokenometer verify",
                dispute.part, dispute.said, dispute.found,
            )  # fmt: skip

    def _following(self, number: int, ended: set[str]) -> Offset:
        """From where a start must read a partition again: the first row of a part that goes on."""
        place = Place(self._settings.usage_topic, number)
        firsts = [
            held.firsts[number] for name, held in self._held.items() if name not in ended and number in held.firsts
        ]
        return min([self._reached[place], *firsts])

    def _live_following(self, ended: set[str]) -> dict[int, Offset]:
        """The same for token-live: the last summary of a part that goes on."""
        found = {p.partition: offset for p, offset in self._reached.items() if p.topic == self._settings.live_topic}
        for name, (partition, offset) in self._last.items():
            if name not in ended and self._is_missing(name):
                found[partition] = min(found[partition], Offset(offset))
        return found


def _joined(messages: Sequence[Messages]) -> Messages:
    if len(messages) == 1:
        return messages[0]
    values, keys = ([each for some in messages for each in getattr(some, name) or ()] for name in ("values", "keys"))
    times, offsets = (np.concatenate([getattr(each, name) for each in messages]) for name in ("times", "offsets"))
    return Messages(messages[0].place, values, times, offsets, keys if len(keys) == len(values) else None)
