"""The counting side of a meter: the engine's open part, and what a commit must say about it.

Owns: the engine, the offsets that the open part covers, dead letters on their way out.
Promises: no broker, no clock and no threads of its own; every call comes from one thread. Whatever was counted is in
exactly one snapshot, and a snapshot's offsets cover exactly what its rows count.

    Intake ── take ──> engine ── flip ──> Snapshot: changed rows, live summary, dead letters, positions

A message that no batch holds is counted in pieces, each of whole lines. Its offset is committed once, after the last
piece: where a part is full before that, its snapshot is set aside, and goes into the transaction of the message's end.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from tokenometer.kernels.engine import CONFLICTING, Engine, Loaded, joined
from tokenometer.kernels.layout import RECORD_BYTES_MAX
from tokenometer.kernels.values import Bytes, PartitionState, Progress, Rejection, Tally, UsageRows
from tokenometer.processor.broker import Column, Messages, Offset, Place, Position
from tokenometer.processor.intake import Decoder
from tokenometer.processor.meter import positions
from tokenometer.processor.meter.emission import DeadRecord, LiveSummary, Range
from tokenometer.schemas.errors import TokenometerError
from tokenometer.schemas.mapping import Mapping as RecordMapping

# Of a message with many bad records: what all copies of it in its dead letters may take; else the first one has it.
COPIES_BYTES_MAX = 1 << 20
LETTERS_BYTES_MAX = 64 << 20  # held until a commit; a log that is all rejects would fill them in a second
TOP_USERS = 20
_NEWLINE = 0x0A
SKETCHES_MAX = 8  # of the latest windows that changed: late records touch hundreds of old ones, 22 KB each


class LineTooLarge(TokenometerError):
    """A record fits no batch and is not too long to be counted. The error's text names the setting."""


@dataclass(frozen=True, eq=False)
class Intake:
    """Consecutive messages of one partition, on their way to the engine.

    pieces: their lines, each ended by one newline, one piece after the other. ends: past each message's last newline.
    sources: the values that a decoder made these lines of, none where lines are the values. buffer: around the only
    piece; an engine that shares our memory counts it there. one_line: each message is known to be one line.
    """

    place: Place
    pieces: Sequence[Bytes]
    ends: np.ndarray[Any, np.dtype[np.int64]]
    times: np.ndarray[Any, np.dtype[np.uint64]]  # ms
    offsets: np.ndarray[Any, np.dtype[np.int64]]
    sources: tuple["_Source", ...] = ()
    buffer: Bytes | None = None
    one_line: bool = False

    @classmethod
    def of(cls, messages: Messages, decoder: Decoder | None = None) -> "Intake":
        values = messages.values
        if not isinstance(values, Column) or values.lines is None:
            values = _column(values)
        assert values.lines is not None
        as_they_are = cls(
            *(messages.place, [values.data], values.lines, messages.times, messages.offsets),
            buffer=values.buffer,
            one_line=values.one_line,
        )
        if decoder is None or not len(values):
            return as_they_are
        pieces: list[Bytes] = []
        ends: list[np.ndarray[Any, np.dtype[np.int64]]] = []
        failures: dict[int, str] = {}
        first = before = 0
        while first < len(values):
            lines = decoder(values, first, messages.keys, messages.headers)
            if lines.data is values.data:
                return as_they_are
            pieces.append(lines.data)
            ends.append(lines.ends + before)
            failures |= lines.failures
            first, before = first + len(lines.ends), before + int(lines.ends[-1])
        all_ends = np.concatenate(ends)
        source = _Source(messages.offsets, values, failures, pieces, all_ends)
        return cls(messages.place, pieces, all_ends, messages.times, messages.offsets, (source,))

    @staticmethod
    def gathered(intakes: "Sequence[Intake]", in_place: bool) -> "Iterator[Intake]":
        """Intakes of one partition, one after the other, in as few pieces as may be. in_place: what is in a buffer
        stays there."""
        for alone, group in itertools.groupby(intakes, lambda intake: in_place and intake.buffer is not None):
            if alone:
                yield from group
            else:
                yield Intake.together(list(group))

    @classmethod
    def together(cls, intakes: "Sequence[Intake]") -> "Intake":
        """Intakes of one partition, one after the other."""
        if len(intakes) == 1:
            return intakes[0]
        before = np.cumsum([0, *(intake.size for intake in intakes[:-1])])
        return cls(
            intakes[0].place,
            [piece for intake in intakes for piece in intake.pieces],
            np.concatenate([intake.ends + shift for intake, shift in zip(intakes, before, strict=True)]),
            np.concatenate([intake.times for intake in intakes]),
            np.concatenate([intake.offsets for intake in intakes]),
            tuple(source for intake in intakes for source in intake.sources),
            one_line=all(intake.one_line for intake in intakes),
        )

    def part(self, begin: int, end: int) -> "Intake":
        """Messages `begin` to `end`."""
        if begin == 0 and end == len(self.offsets):
            return self
        first = int(self.ends[begin - 1]) if begin else 0
        ends = self.ends[begin:end] - first
        pieces = list(_cut(self.pieces, first, first + (int(ends[-1]) if len(ends) else 0)))
        times, offsets = self.times[begin:end], self.offsets[begin:end]
        return Intake(self.place, pieces, ends, times, offsets, self.sources, one_line=self.one_line)

    def letter(
        self, offset: Offset, line: int, record: bytes, rejection: Rejection, first: bool
    ) -> tuple[DeadRecord, bool]:
        """A record that is a line of its message as it stands there is kept by itself; else its message is, untouched,
        as often as the copies may take, or once. first: no letter of the message's rejects has it so far. The answer's
        second: now one has."""
        for source in self.sources:
            index = int(np.searchsorted(source.offsets, offset))
            if index < len(source.offsets) and int(source.offsets[index]) == offset:
                failure, message = source.failures.get(index), source.message(index)
                rejection = Rejection(failure) if failure else rejection
                if line < len(message.lines) and message.lines[line] == record:
                    break
                copied = first or len(message.value) * message.records <= COPIES_BYTES_MAX
                return DeadRecord.of(self.place, offset, line, rejection, message.value, copied), copied
        return DeadRecord.of(self.place, offset, line, rejection, record), False

    @property
    def size(self) -> int:
        return sum(map(len, self.pieces))


class _Message(NamedTuple):
    """lines: of the value as it stands. records: that a decoder made of it."""

    value: bytes
    lines: list[bytes]
    records: int


@dataclass(frozen=True)
class _Source:
    """Messages as they came. failures: why some of them, by index, could not be decoded. pieces, ends: their lines, as
    an Intake has them."""

    offsets: np.ndarray[Any, np.dtype[np.int64]]
    values: Column
    failures: Mapping[int, str]
    pieces: Sequence[Bytes]
    ends: np.ndarray[Any, np.dtype[np.int64]]
    _last: dict[int, _Message] = field(default_factory=dict, compare=False)

    def message(self, index: int) -> _Message:
        """The last one is kept, since a message that is all rejects is asked for each."""
        if index not in self._last:
            self._last.clear()
            value = self.values[index] or b""
            begin, end = int(self.ends[index - 1]) if index else 0, int(self.ends[index])
            records = sum(int(np.count_nonzero(piece == _NEWLINE)) for piece in _cut(self.pieces, begin, end))
            self._last[index] = _Message(value, value.split(b"\n"), records)
        return self._last[index]


def _column(values: Sequence[bytes | None]) -> Column:
    data, ends = joined(values)
    starts = np.concatenate((np.zeros(1, np.int64), ends[:-1])) if len(ends) else ends
    return Column(data, starts, np.array([-1 if value is None else len(value) for value in values], np.int64), ends)


@dataclass(frozen=True)
class Start:
    """Where a partition is taken up: it is read from `read_from`, and what lies before `offset` was counted before; it
    only refills the request ids."""

    read_from: Offset
    offset: Offset
    state: PartitionState
    topic_id: str
    mapping: RecordMapping


@dataclass(frozen=True)
class Snapshot:
    """Everything that one transaction writes."""

    rows: list[UsageRows]
    summary: LiveSummary
    letters: list[DeadRecord]
    positions: dict[Place, Position]
    fill: Mapping[str, tuple[int, int]]  # used and usable, of each table
    parts_opened: Mapping[str, int]  # by reason, since the meter began
    judged: Mapping[str, int] = field(default_factory=dict)  # topic -> records that are neither empty nor skipped
    earlier: "Sequence[Snapshot]" = ()  # of parts that were full in the middle of a message: only together with this


class _Piece(NamedTuple):
    """Whole lines of a message. line: the first one's number. whole: the record for which a shorter one goes in."""

    intake: Intake
    line: int
    whole: bytes | None = None


@dataclass
class _Partition:
    start: Start
    taken: Offset  # what comes from before here has come already
    next: Offset  # to be counted
    refilling: bool


@dataclass
class _Part:
    name: str
    tally_before: Tally
    sequence: int = 0
    rejects: Counter[str] = field(default_factory=Counter)
    covered: dict[Place, tuple[Offset, Offset]] = field(default_factory=dict)  # first and next
    states: dict[Place, PartitionState] = field(default_factory=dict)  # of covered partitions that went elsewhere


class Counting:
    """`commit` sees to it that a snapshot is written, before any later one; it is called where a part is full."""

    def __init__(self, engine: Engine, meter: str, run: str, commit: Callable[[Snapshot], None]) -> None:
        self._engine, self._meter, self._run, self._commit = engine, meter, run, commit
        self._partitions: dict[Place, _Partition] = {}
        self._letters: list[DeadRecord] = []
        self._letter_bytes = 0
        self._copied: dict[Place, Offset] = {}  # the last message that a reject's letter has
        self._aside: list[Snapshot] = []
        self._judged: Counter[str] = Counter()  # by topic, since the last flip
        self._tally = engine.tally()  # as it was then noted in _judged
        self.parts_opened: Counter[str] = Counter()  # by reason
        self.has_news = False
        self._failed = False  # an intake was taken in part only
        self._ahead: tuple[Intake, Loaded] | None = None  # what is likely to be counted next
        self._part = self._new_part("start")

    @property
    def batch_bytes(self) -> int:
        return self._engine.limits.batch_bytes

    @property
    def in_place(self) -> bool:
        """Whether it counts what is in a buffer there."""
        return self._engine.target.shares_memory

    # --- Partitions come and go ---

    def begin(self, starts: Mapping[Place, Start]) -> None:
        """Take up partitions."""
        if any(place in self._part.covered for place in starts):
            self._close_part("rebalance")  # a part covers one range of a partition
        for place, start in starts.items():
            self._engine.forget(place)
            self._copied.pop(place, None)
            partition = self._partitions[place] = _Partition(start, start.read_from, start.offset, refilling=True)
            if start.read_from >= start.offset:
                self._end_refill(place, partition)
        self.has_news = True  # a first position is to be committed, even of a silent partition

    def end(self, places: Iterable[Place]) -> None:
        """Give up partitions; what was counted of them stays in the part."""
        for place in places:
            if place in self._partitions:
                if place in self._part.covered:
                    self._part.states[place] = self._state(place)
                del self._partitions[place]
                self._engine.forget(place)

    def drop(self, starts: Mapping[Place, Start]) -> None:
        """The one recovery: forget all that was not committed, and the request ids. A new part begins at `starts`."""
        for place in self._partitions:
            self._engine.forget(place)
        self._partitions.clear()
        self._letters, self._letter_bytes, self._aside = [], 0, []
        self._judged, self._tally = Counter(), self._engine.tally()
        self._failed, self._ahead = False, None
        self._engine.open_part()
        self._part = self._new_part("failure")
        self.begin(starts)

    def held(self) -> dict[Place, tuple[Offset, Offset | None]]:
        """Where each partition was taken up, and how far it is read again while its request ids are refilled. From any
        thread."""
        return {
            place: (known.start.offset, known.taken if known.refilling else None)
            for place, known in list(self._partitions.items())
        }

    def _state(self, place: Place) -> PartitionState:
        known = self._partitions[place]
        return known.start.state if known.refilling else self._engine.partition_state(place)

    # --- Counting ---

    def take(self, intake: Intake, following: Intake | None = None) -> None:
        """Count messages, or remember those that were counted before. Ignores what came already, as a broker may send
        again after a seek, and partitions that went. following: what is likely to be taken next, for a head start."""
        partition = self._partitions.get(intake.place)
        if partition is None or self._failed:
            return
        intake = intake.part(int(np.searchsorted(intake.offsets, partition.taken)), len(intake.offsets))
        if not len(intake.offsets):
            return
        self._failed = True  # until all of it is in: after a failure everything is dropped
        partition.taken = Offset(int(intake.offsets[-1]) + 1)
        known = int(np.searchsorted(intake.offsets, partition.start.offset))
        for batch in _batches(intake.part(0, known), self.batch_bytes):
            self._remember(batch, partition)
        if known < len(intake.offsets):
            self._end_refill(intake.place, partition)
        batches = list(_batches(intake.part(known, len(intake.offsets)), self.batch_bytes))
        for batch, next_ in zip(batches, [*batches[1:], following], strict=False):
            if batch.size <= self.batch_bytes:
                self._count(batch, partition, next_)
            else:
                self._count_in_pieces(batch, partition)
            if self._letter_bytes > LETTERS_BYTES_MAX:
                self._commit(self.flip())
        self._failed = False

    def _load(self, intake: Intake, partition: _Partition) -> Loaded:
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] is intake:
            return ahead[1]
        engine = self._engine
        about = intake.ends, intake.times, intake.place, intake.offsets, intake.one_line
        if self.in_place and intake.buffer is not None:
            batch = engine.batch_in(intake.buffer, *about)
        else:
            batch = engine.pack_lines(intake.pieces, *about)
        return engine.load(batch, partition.start.mapping)

    def _load_ahead(self, intake: Intake | None) -> Loaded | None:
        """If it is one batch, to be counted. Where it does not come next after all, nothing is lost."""
        partition = None if intake is None else self._partitions.get(intake.place)
        if intake is None or partition is None or partition.refilling or not 0 < intake.size <= self.batch_bytes:
            return None
        loaded = self._load(intake, partition)
        self._ahead = intake, loaded
        return loaded

    def _remember(self, intake: Intake, partition: _Partition) -> None:
        for piece in _pieces(intake, self.batch_bytes):
            self._engine.remember(self._load(piece.intake, partition))
        if int(intake.offsets[-1]) + 1 >= partition.start.offset:
            self._end_refill(intake.place, partition)

    def _end_refill(self, place: Place, partition: _Partition) -> None:
        if partition.refilling:
            partition.refilling = False
            self._engine.resume(place, partition.start.state)
            self.has_news = True

    def _count(self, intake: Intake, partition: _Partition, next_: Intake | None) -> None:
        loaded, following = self._load(intake, partition), self._load_ahead(next_)
        first, opened = 0, False
        while True:
            progress = self._engine.count(loaded, first, following)
            assert progress.next_message > first or not opened, "an empty part takes at least one message"
            self._note(_Piece(intake, 0), progress)
            if progress.next_message > first:
                self._book(intake, progress.next_message, partition)
            first = progress.next_message
            if first == len(intake.offsets):
                break
            self._close_part("full")
            opened = True

    def _count_in_pieces(self, message: Intake, partition: _Partition) -> None:
        # All of them are made before any is counted: a line that cannot be, leaves no message by half.
        for piece in list(_pieces(message, self.batch_bytes)):
            loaded = self._load(piece.intake, partition)
            progress = self._engine.count(loaded)
            if progress.next_message == 0:
                self._set_part_aside()
                progress = self._engine.count(loaded)
            assert progress.next_message == 1, "an empty part takes at least one piece"
            self._note(piece, progress)
        self._book(message, 1, partition)

    def _note(self, piece: _Piece, progress: Progress) -> None:
        """Dead letters belong to the open part, as the counters do."""
        before, self._tally = self._tally, self._engine.tally()
        self._judged[piece.intake.place.topic] += (self._tally - before).judged
        place = piece.intake.place
        for letter in progress.dead_letters:  # in the order of the log
            offset, is_reject = Offset(int(piece.intake.offsets[letter.message])), letter.rejection != CONFLICTING
            record, line = letter.value if piece.whole is None else piece.whole, piece.line + letter.line
            first = is_reject and self._copied.get(place) != offset
            found, copied = piece.intake.letter(offset, line, record, letter.rejection, first)
            self._letters.append(found)
            self._letter_bytes += len(found.value)
            if is_reject:  # and no duplicate
                self._part.rejects[found.rejection.reason] += 1
            if is_reject and copied:
                self._copied[place] = offset
        self.has_news = self.has_news or progress.next_message > 0

    def _book(self, intake: Intake, after: int, partition: _Partition) -> None:
        """The open part's range reaches past the message before `after`."""
        before = partition.next
        partition.next = Offset(int(intake.offsets[after - 1]) + 1)
        begin, _ = self._part.covered.get(intake.place, (before, before))
        self._part.covered[intake.place] = begin, partition.next
        self.has_news = True

    # --- Parts and commits ---

    def flip(self) -> Snapshot:
        """Everything that changed since the last flip."""
        rows, letters = list(self._engine.changes()), self._letters
        positions_ = {
            place: Position(known.next, positions.encode(self._resumable(place), known.start.topic_id))
            for place, known in self._partitions.items()
            if not known.refilling
        }
        opened, earlier = dict(self.parts_opened), tuple(self._aside)
        snapshot = Snapshot(
            rows, self._summary(), letters, positions_, self._engine.fill(), opened, self._judged, earlier
        )
        self._letters, self._letter_bytes, self._aside, self._judged = [], 0, [], Counter()
        self._part.sequence += 1
        self.has_news = False
        return snapshot

    def _resumable(self, place: Place) -> PartitionState:
        """The state to commit. Where nothing is remembered yet, a restart has nothing to refill."""
        state, next_ = self._state(place), self._partitions[place].next
        dedup_from = next_ if state.dedup_from is None else min(state.dedup_from, next_)
        return PartitionState(state.watermark_ms, state.log_time_ms, dedup_from)

    def _summary(self) -> LiveSummary:
        engine, part = self._engine, self._part
        cells = engine.changed_cells()
        tally = engine.tally() - part.tally_before
        assert tally.rejected == part.rejects.total(), f"{tally}, dead letters {part.rejects}"
        return LiveSummary(
            meter=self._meter,
            part=part.name,
            sequence=part.sequence,
            window_ms=engine.window_ms,
            device=engine.target.name,
            tally=tally,
            rejects=dict(part.rejects),
            ranges=self._ranges(),
            totals=engine.totals(),
            cells=cells,
            top_users=engine.top_users(TOP_USERS),
            sketches=engine.sketches(sorted({cell.window_start for cell in cells})[-SKETCHES_MAX:]),
        )

    def _ranges(self) -> list[Range]:
        """What the part has read, and its partitions of which it has read nothing."""
        gone = [
            Range(place, *self._part.covered[place], state)
            for place, state in self._part.states.items()
            if place in self._part.covered
        ]
        held = [
            Range(place, *self._part.covered.get(place, (known.next, known.next)), self._state(place))
            for place, known in self._partitions.items()
        ]
        return gone + held

    def turn(self) -> None:
        """Close the part because of its age. An empty part stays open."""
        if self._part.covered:
            self._close_part("age")

    def _close_part(self, reason: str) -> None:
        """Commit what the part holds, then drop its tables. The request ids stay."""
        if self.has_news:
            self._commit(self.flip())
        self._open_part(reason)

    def _set_part_aside(self) -> None:
        """Sets the part aside: it is full, and holds only a part of a message."""
        snapshot = self.flip()
        self._aside = [*snapshot.earlier, replace(snapshot, earlier=())]
        self._open_part("full")

    def _open_part(self, reason: str) -> None:
        self._engine.open_part()
        self._part = self._new_part(reason)

    def _new_part(self, reason: str) -> _Part:
        self.parts_opened[reason] += 1
        return _Part(f"{self._run}.{self.parts_opened.total()}", self._engine.tally())


def _cut(pieces: Sequence[Bytes], first: int, after: int) -> Iterator[Bytes]:
    """Bytes `first` to `after` of the pieces, one after the other."""
    for piece in pieces:
        cut = piece[max(first, 0) : max(after, 0)]
        if len(cut):
            yield cut
        first, after = first - len(piece), after - len(piece)


def _batches(intake: Intake, batch_bytes: int) -> Iterator[Intake]:
    """Cuts into as few batches as possible, of about the same size. A message that is larger than a batch is alone."""
    first, total = 0, intake.size
    while first < len(intake.ends):
        before = int(intake.ends[first - 1]) if first else 0
        batches = max(1, -(-(total - before) // batch_bytes))
        wanted = int(np.searchsorted(intake.ends, before + (total - before) // batches)) + 1
        after = min(int(np.searchsorted(intake.ends, before + batch_bytes, side="right")), wanted)
        after = max(after, first + 1)
        yield intake.part(first, after)
        first = after


def _pieces(message: Intake, batch_bytes: int) -> Iterator[_Piece]:
    """Pieces of whole lines, as many as fit a batch. A record that fits none is too long to be counted; its beginning,
    which is too long as well, goes to the engine for it. A line of white space stays one."""
    if message.size <= batch_bytes:
        yield _Piece(message, 0)
        return
    data = np.concatenate(message.pieces)
    begin, line = 0, 0
    while begin < len(data):
        newlines = np.flatnonzero(data[begin : begin + batch_bytes] == _NEWLINE)
        if len(newlines):
            end = begin + int(newlines[-1]) + 1
            yield _Piece(_piece(message, data[begin:end]), line)
            line += len(newlines)
        else:
            end = begin + batch_bytes + int(np.flatnonzero(data[begin + batch_bytes :] == _NEWLINE)[0]) + 1
            record = data[begin : end - 1].tobytes()
            yield _Piece(_piece(message, _stand_in(message, record, batch_bytes)), line, record)
            line += 1
        begin = end


def _stand_in(message: Intake, record: bytes, batch_bytes: int) -> Bytes:
    if len(record) <= RECORD_BYTES_MAX or batch_bytes < RECORD_BYTES_MAX + 2:
        place, offset = message.place, int(message.offsets[0])
        raise LineTooLarge(
            f"{place.topic}-{place.partition}, offset {offset}: a line of {len(record)} bytes; batch_bytes = "
            f"{batch_bytes}: set it to {RECORD_BYTES_MAX + 2} or more, and give the meter the memory that it needs"
        )
    text = b" " if not record.strip(b" \t\r") else b"x" * (RECORD_BYTES_MAX + 1)
    return np.frombuffer(text + b"\n", np.uint8)


def _piece(message: Intake, data: Bytes) -> Intake:
    return Intake(message.place, [data], np.array([len(data)]), message.times, message.offsets, message.sources)
