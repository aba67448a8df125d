"""What an audit knows from the one before it, and whether that still fits the stream.

                      before        own         committed                 committed now
    log        ─────────┼────────────┼──────────────┼──────────────────────────┤
                        └── context: may make later ones duplicates ──┘ audited ──┘
    topics of the meters ───────────────────────────┼──────────────────────────┤ audited
                                                 their end then

A part that was open then goes on: its rows and its summary are cumulative. So what it had published is put on both
sides of the comparison, as a row that is found and as one that is expected.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any, NoReturn

import numpy as np

from tokenometer.processor.broker import Broker, Extent, Offset, Place, Refused
from tokenometer.processor.verify.checkpoint import Checkpoint, LogState, Stream, digest_of
from tokenometer.processor.verify.cut import Cut
from tokenometer.processor.verify.live import Parts
from tokenometer.processor.verify.native import NUMBERS, Ints, joined
from tokenometer.processor.verify.tally import Tables
from tokenometer.processor.verify.values import COUNTERS, Counters, LogGone, OtherStream, Since, VerifySettings
from tokenometer.schemas.mapping import Mapping as RecordMapping

_SMALL, _ROWS_AT_ONCE = 1 << 48, 1 << 13  # of counters: so many of them do not bring a sum beyond its end (sums.h)
_PIECE = 1 << 61
_NO_PLACE = -1  # a row of a checkpoint is of no partition, and no record's duplicate
_DECIDING = {  # settings, and the names of their options
    "usage_topic": "--usage-topic",
    "live_topic": "--live-topic",
    "rejected_topic": "--rejected-topic",
    "window_ms": "--window",
    "dedup_horizon_ms": "--dedup-horizon",
    "max_future_skew_ms": "--max-future-skew",
    "max_past_ms": "--max-past",
    "conflict_letters": "--conflicts-to-letters",
}


def stream_of(
    broker: Broker,
    group: str,
    topics: Mapping[str, RecordMapping],
    schemas: Mapping[str, bytes | None],
    settings: VerifySettings,
) -> Stream:
    """schemas: of each topic the content of its mapping's schema file."""
    deciding = {name: value for name, value in asdict(settings).items() if name in _DECIDING}
    digests = {topic: digest_of(mapping, schemas[topic]) for topic, mapping in topics.items()}
    published = settings.usage_topic, settings.live_topic, settings.rejected_topic
    return Stream(group, deciding, digests, _topic_ids(broker, [*topics, *published]))


def _topic_ids(broker: Broker, topics: Iterable[str]) -> dict[str, str]:
    """Those that are known. An audit may run without the permission to ask for a topic's settings."""
    try:
        states = broker.topics(sorted(topics))
    except Refused:
        return {}
    return {topic: state.id for topic, state in states.items() if state is not None}


# --- Does it fit? ---


class Earlier:
    """The audit before this one: a checkpoint, or nothing."""

    def __init__(self, file: str | None, checkpoint: Checkpoint | None) -> None:
        self.checkpoint = checkpoint
        self.since = Since(file, checkpoint.made_at_ms, checkpoint.totals) if file and checkpoint else None
        self._log = checkpoint.log if checkpoint else {}

    def offsets(self) -> dict[Place, int]:
        """Up to which the log was audited."""
        return {place: state.committed for place, state in self._log.items()}

    def check(self, now: Stream) -> None:
        """Raises OtherStream."""
        if self.checkpoint is None:
            return
        known = self.checkpoint.stream
        if now.group != known.group:
            self._misfit(f"it is of the group {known.group}, and {now.group} is to be audited: give the other one")
        for name, value in now.settings.items():
            if value != known.settings.get(name):
                then = f"was made with {_DECIDING[name]} {_shown(name, known.settings.get(name))}"
                self._misfit(f"it {then}, and now it is {_shown(name, value)}: give what the meters have; {_ANEW}")
        for topic, digest in known.mappings.items():
            if topic not in now.mappings:
                self._misfit(f"it has the topic {topic}, which is not to be audited now: add --input {topic}")
            if now.mappings[topic] != digest:
                self._misfit(f"the mapping of {topic} was another one: give that one, or {_ANEW}")
        for topic, one in known.topics.items():
            if now.topics.get(topic, one) != one:
                self._misfit(f"the topic {topic} was made anew since then: {_ANEW}")

    def _misfit(self, what: str) -> NoReturn:
        assert self.since
        raise OtherStream(f"the checkpoint {self.since.file} does not fit: {what}")

    # --- What is left to read ---

    def cut(self, cut: Cut, broker: Broker, horizon_ms: int) -> Cut:
        """What of a cut is to be audited. Raises OtherStream and LogGone."""
        if self.checkpoint is None:
            return cut
        published = {place: self._published(place, extent) for place, extent in cut.published.items()}
        for place in self.checkpoint.published.keys() - published.keys():
            self._misfit(f"{_name(place)} is not there any more: {_ANEW}")
        log, context = dict(cut.log), {}
        for place, state in self._log.items():
            committed = cut.committed.get(place)
            if committed is None or committed < state.committed:
                now = "nothing" if committed is None else f"only offset {committed}"
                what = f"{_name(place)} was audited up to offset {state.committed}, but {now} is committed: if the"
                self._misfit(f"{what} group's offsets were set back, usage was counted twice; {_ANEW}")
            context[place] = self._context(broker, place, log[place], committed, horizon_ms)
            log[place] = Extent(state.committed, log[place].end)
        return replace(cut, log=log, published=published, context=context)

    def _published(self, place: Place, extent: Extent) -> Extent:
        assert self.checkpoint
        begin = self.checkpoint.published.get(place)
        if begin is None:
            return extent
        if extent.end < begin:
            self._misfit(f"{_name(place)} ends at offset {extent.end}, but it was read up to {begin}: {_MADE_ANEW}")
        if extent.begin > begin:
            raise LogGone(f"{_name(place)} begins at offset {extent.begin}, but {_NEEDED} {begin} on: {_ANEW}")
        return Extent(begin, extent.end)

    def _context(self, broker: Broker, place: Place, extent: Extent, committed: Offset, horizon_ms: int) -> Offset:
        """Where reading begins. What is a duplicate follows from a record's own generation and the one before."""
        state = self._log[place]
        if committed == state.committed:
            return committed
        begin = state.committed
        if extent.begin <= begin:
            first = next(iter(broker.read(place, begin, committed)), None)
            if first is None:
                return committed
            generation = max(state.log_time, int(first.times[0])) // horizon_ms
            begin = {0: state.before, 1: state.own}.get(generation - state.log_time // horizon_ms, begin)
        if extent.begin > begin:
            what = f"begins at offset {extent.begin}, but {_NEEDED} {begin} on"
            raise LogGone(f"{_name(place)} {what}, because request ids are remembered: {_ANEW}")
        return begin

    # --- What is known ---

    def clock(self, place: Place, horizon_ms: int, begin: Offset) -> "LogClock":
        state = self._log.get(place)
        if state is not None and begin < state.committed:
            return LogClock(horizon_ms, None)
        return LogClock(horizon_ms, state)

    def check_log_time(self, place: Place, clock: "LogClock") -> None:
        """After the context was read. Raises OtherStream."""
        if clock.log_time != self._log[place].log_time:
            self._misfit(f"{_name(place)} has other messages before offset {self._log[place].committed}: {_MADE_ANEW}")

    def parts(self) -> Parts:
        parts = Parts()
        for place, summary in self.checkpoint.parts if self.checkpoint else ():
            parts.know(place, summary)
        return parts

    def tokens(self) -> Counters:
        """Of the rows that parts had published which may go on."""
        if self.checkpoint is None:
            return 0, 0, 0, 0, 0, 0
        a, b, c, d, e, f = (sum(self.checkpoint.rows[name].to_pylist()) for name in COUNTERS)
        return a, b, c, d, e, f

    def add_rows(self, tables: Tables) -> None:
        """On both sides."""
        if self.checkpoint is None:
            return
        rows = self.checkpoint.rows
        for begin in range(0, len(rows), _ROWS_AT_ONCE):
            some = rows.slice(begin, _ROWS_AT_ONCE)
            numbers = [some[name].to_pylist() for name in NUMBERS]
            counters = [list(row) for row in zip(*numbers, strict=True)]
            texts = [some[name].to_pylist() for name in ("user", "model", "chip", "labels", "part")]
            others = [some[name].to_pylist() for name in ("window_start", "log_offset", "place")]
            for window, offset, place, *names, row in zip(*others, *texts, counters, strict=True):
                tables.found.add(window, offset, place, names, row)
            _expect(tables, others[0], texts[:4], counters)
            tables.make_room()


_ANEW = "audit without --since, and leave a new one with --checkpoint"
_MADE_ANEW = f"was the topic made anew? Then {_ANEW}"
_NEEDED = "what the checkpoint's audit left is needed from offset"


def _name(place: Place) -> str:
    return f"{place.topic}/{place.partition}"


def _shown(name: str, value: Any) -> str:
    return f"{value:,} ms" if name.endswith("_ms") and value is not None else str(value)


def _expect(tables: Tables, windows: list[int], texts: list[list[bytes]], counters: list[list[int]]) -> None:
    """Rows whose counters could bring a sum beyond its end are added by themselves, in pieces."""
    large = [number for number, row in enumerate(counters) if max(row) >= _SMALL]
    zeros = [0] * len(NUMBERS)
    _add(tables, windows, texts, [zeros if max(row) >= _SMALL else row for row in counters])
    for number in large:
        rest = counters[number]
        while any(rest):
            piece = [min(count, _PIECE) for count in rest]
            rest = [count - taken for count, taken in zip(rest, piece, strict=True)]
            tables.make_room()
            _add(tables, [windows[number]], [[column[number]] for column in texts], [piece])


def _add(tables: Tables, windows: list[int], texts: list[list[bytes]], counters: list[list[int]]) -> None:
    count = len(windows)
    user, model, chip, labels = (joined([column]) for column in texts)
    nothing, empty = joined([[None] * count]), joined([[b""] * count])
    times, zeros = np.array(windows, np.int64), np.zeros(count, np.int64)
    columns = [nothing, empty, user, model, chip, nothing, labels]
    records = tables.records()
    records.add(columns, times, np.array(counters, np.int64), zeros, zeros, zeros)
    tables.add(records, _NO_PLACE)


# --- Log time ---


class LogClock:
    """A partition's log time: the highest time of a message so far, and from where on it is in its generations."""

    def __init__(self, horizon_ms: int, state: LogState | None) -> None:
        self.log_time = state.log_time if state else 0
        self._horizon_ms = horizon_ms
        self._own: tuple[int, Offset] | None = None
        self._before: tuple[int, Offset] | None = None
        if state is not None:
            generation = state.log_time // horizon_ms
            self._own, self._before = (generation, state.own), (generation - 1, state.before)

    def read(self, times: np.ndarray[Any, np.dtype[np.uint64]], offsets: Ints) -> Ints:
        """The generations of messages that come next."""
        log_times = np.maximum.accumulate(np.maximum(times, np.uint64(self.log_time)))
        self.log_time = int(log_times[-1])
        generations: Ints = (log_times // np.uint64(self._horizon_ms)).astype(np.int64)
        if self._own is None or generations[-1] != self._own[0]:
            last = generations[0] - 1 if self._own is None else self._own[0]
            for at in np.flatnonzero(np.diff(generations, prepend=last))[-2:].tolist():
                self._before, self._own = self._own, (int(generations[at]), Offset(int(offsets[at])))
        return generations

    def state(self, committed: Offset) -> LogState:
        if self._own is None:
            return LogState(committed, self.log_time, committed, committed)
        generation, own = self._own
        is_next = self._before is not None and self._before[0] == generation - 1
        return LogState(committed, self.log_time, own, self._before[1] if self._before and is_next else own)
