"""`tokenometer verify` answers: is every token of the log in the published rows, exactly once?

It audits a metered stream from what is in the broker alone:
1. Cut: the group's committed offsets, and how far the published topics reach at that moment.
2. token-live: the last summary of each part; their ranges must tile every partition up to the committed offset.
3. token-usage and the dead letters: the last row of each identity, and every letter.
4. The log: every line up to the committed offsets, judged anew (`judge`; lines that are alike together, `quick`), and
   added up by row.
5. Sums: rows that are the same on both sides are done with (`tally`). For the others DuckDB finds the duplicates among
   the records whose id may occur twice (`ids`), takes them out, adds up the last rows of all parts, and compares.

A clean audit can leave a checkpoint; the next one then goes on from there (`since`, `checkpoint`).

Nothing of the engine takes part: not its parser, not its tables, not its referee. One thread reads messages, a second
one judges them, a third one adds up; where much is left to the judge, that is done in other processes. Tables that
become too large go to a temporary folder, and DuckDB keeps to its memory, so the size of a stream is no limit.
"""

import contextlib
import itertools
import pathlib
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from tokenometer.processor.broker import BEGINNING, Broker, Headers, Messages, Offset, OutOfRange, Place
from tokenometer.processor.verify import checkpoint, cut, live, native, since, tasks
from tokenometer.processor.verify.cut import Cut
from tokenometer.processor.verify.native import Ints, Texts, bytes_of, joined
from tokenometer.processor.verify.processes import Pool, Task, without_collector
from tokenometer.processor.verify.quick import QuickJudge, Read, is_eligible
from tokenometer.processor.verify.sums import Sums, require_duckdb
from tokenometer.processor.verify.tally import Agreed, Tables
from tokenometer.processor.verify.tasks import LogResult
from tokenometer.processor.verify.usage import UsageReader
from tokenometer.processor.verify.values import (
    LogGone,
    Problem,
    Report,
    Tally,
    VerifyError,
    VerifySettings,
)
from tokenometer.schemas import mapping as mappings
from tokenometer.schemas.value import asks_for_headers

__all__ = ["Report", "VerifySettings", "VerifyError", "verify"]

_CHUNK_MESSAGES = 32_768
_CHUNK_BYTES = 8 << 20
_FEW_MESSAGES = 5_000  # sooner judged here than other processes are started
_MANY_LETTERS = 50_000  # worth other processes
_FEW_LINES = 1_000  # of a chunk: sooner judged here than sent to another process
_ROWS_KEPT = 20_000  # refused records and digests, before they are written
_TIMES_END = 1 << 62  # later ones are for the judge
_PROBLEMS_MAX = 1000  # that are kept; all are counted

Progress = Callable[[int, int], None]  # messages read, of how many


def verify(
    broker: Broker,
    group: str,
    topics: Mapping[str, mappings.Mapping],
    settings: VerifySettings | None = None,
    progress: Progress = lambda done, total: None,
) -> Report:
    """Audit what `group` has metered of `topics`, each with its mapping. Raises VerifyError, or a BrokerError."""
    settings = settings or VerifySettings()
    started = time.monotonic()
    require_duckdb()  # at once, not when all is read
    native.require()
    earlier = _earlier(settings)
    schemas = {topic: _schema(mapping) for topic, mapping in topics.items()}
    stream = None
    if settings.since is not None or settings.checkpoint is not None:
        stream = since.stream_of(broker, group, topics, schemas, settings)
        earlier.check(stream)
    cut_at_ms, whole = time.time_ns() // 10**6, cut.find(broker, group, sorted(topics), settings)
    left = earlier.cut(whole, broker, settings.dedup_horizon_ms)
    with tempfile.TemporaryDirectory(prefix="tokenometer-verify-", dir=settings.scratch) as folder:
        with without_collector(), _pool(settings, left) as pool:
            audit = _Audit(broker, topics, settings, left, folder, pool, progress, earlier, schemas)
            with contextlib.closing(audit.tables):
                audit.read_summaries()
                audit.read_usage()
                audit.read_letters()
                audit.read_log()
                audit.compare()
        moved = cut.committed_of(broker, group, sorted(topics)) != left.committed
        report = audit.report(group, moved, started)
        return audit.leave_checkpoint(report, stream, cut_at_ms) if stream is not None else report


def _earlier(settings: VerifySettings) -> since.Earlier:
    """Both files are looked at before a log of hours is read."""
    if settings.checkpoint is not None:
        checkpoint.check_writable(settings.checkpoint)
    return since.Earlier(settings.since, checkpoint.read(settings.since) if settings.since is not None else None)


# --- 2. to 4. Reading ---


def _schema(mapping: mappings.Mapping) -> bytes | None:
    if mapping.value.schema is None:
        return None
    try:
        return pathlib.Path(mapping.value.schema).read_bytes()
    except OSError as error:
        raise VerifyError(f"{mapping.source}: value.schema: {mapping.value.schema}: {error.strerror}") from None


def _quick(mapping: mappings.Mapping, settings: VerifySettings) -> QuickJudge | None:
    """Where messages are lines as they stand there."""
    bounds = settings.max_future_skew_ms, settings.max_past_ms
    return QuickJudge(mapping, tasks.judge_of(mapping, *bounds), *bounds) if is_eligible(mapping) else None


class _Problems:
    """Counts all problems and keeps the first ones."""

    def __init__(self) -> None:
        self.count = 0
        self.kept: list[Problem] = []

    def add(self, problems: Iterable[Problem]) -> None:
        for problem in problems:
            self.count += 1
            if len(self.kept) < _PROBLEMS_MAX:
                self.kept.append(problem)


class _Chunk(NamedTuple):
    """Messages of an input partition."""

    place: Place
    number: int  # of the place
    values: Texts
    offsets: Ints
    times: Ints
    generations: Ints
    keys: list[bytes | None] | None = None  # where the mapping reads them
    headers: list[Headers] | None = None
    is_context: bool = False  # audited before; its records may have duplicates in later chunks


class _Judged(NamedTuple):
    """What was found in a chunk. result: of what was left for the judge; None where nothing was."""

    chunk: _Chunk
    read: Read
    records: native.Records
    result: "LogResult | Future[LogResult] | None"


class _Audit:
    def __init__(
        self,
        broker: Broker,
        topics: Mapping[str, mappings.Mapping],
        settings: VerifySettings,
        cut: Cut,
        folder: str,
        pool: Pool,
        progress: Progress,
        earlier: since.Earlier,
        schemas: dict[str, bytes | None],
    ) -> None:
        self.broker = broker
        self.topics = topics
        self.settings = settings
        self.cut = cut
        self.folder = folder
        self.pool = pool
        self.progress = progress
        self.done = 0
        self.problems = _Problems()
        self.earlier = earlier
        self.since = earlier.offsets()
        self.parts = earlier.parts()
        self.schemas = schemas
        self.quick = {topic: _quick(mapping, settings) for topic, mapping in topics.items()}
        self.tables = Tables(folder, settings.window_ms, settings.memory_bytes)
        self.agreed = Agreed()
        self.places = sorted(cut.committed)  # the columns name a partition by its number here
        self.clocks: dict[Place, since.LogClock] = {}
        self.first_messages: dict[Place, int] = {}
        self.usage_messages = 0
        self.counting = 0  # records that count or are duplicates
        self.empty = 0
        self.skipped = 0
        self.rejects: Counter[str] = Counter()
        # Offsets of messages with letters of conflicting duplicates.
        self.lettered: dict[Place, Ints] = {}
        self.waiting: deque[tuple[Future[LogResult], _Chunk]] = deque()  # what other processes judge
        self.rows: dict[str, list[tuple[Any, ...]]] = {"rejects": [], "digests": []}
        self.numbers = itertools.count()
        self.kept: pa.Table | None = None  # rows for a checkpoint

    def read_summaries(self) -> None:
        stream = self._published(self.settings.live_topic)
        live.read_parts(self.parts, stream, self.settings.window_ms)
        self.problems.add(self.parts.problems)
        if self.settings.checkpoint is not None:
            self.tables.kept_parts = frozenset(summary.part.encode() for _, summary in self.parts.open_ones())
        for place, ranges in sorted(live.ranges_of(self.parts).items()):
            name = f"{place.topic}/{place.partition}"
            if place not in self.cut.log:
                self.problems.add([Problem("end", name, f"part {ranges[0].part} read it, but it is not verified")])
            elif place not in self.since and ranges[0].begin < self.cut.log[place].begin:
                raise LogGone(
                    f"{name} now begins at offset {self.cut.log[place].begin}, but it was metered from"
                    f" {ranges[0].begin}: the totals of what retention removed cannot be recomputed"
                )

    def read_usage(self) -> None:
        self.earlier.add_rows(self.tables)
        reader, topic = UsageReader(self.tables.found, self.settings.window_ms), self.settings.usage_topic

        def read(some: list[Messages]) -> None:
            self.usage_messages += sum(len(messages.values) for messages in some)
            keys, values = joined([messages.keys or () for messages in some]), joined([each.values for each in some])
            offsets = np.concatenate([messages.offsets for messages in some])
            self.problems.add(reader.read(keys, values, offsets, topic, some[0].place.partition))
            self.tables.make_room()

        self._each(read, _in_chunks(self._published(topic, keys=True)))

    def read_letters(self) -> None:
        topic = self.settings.rejected_topic
        count = sum(extent.end - extent.begin for _, extent in self.cut.published_in(topic))
        lettered: dict[Place, set[int]] = {}
        for result in self.pool.map(tasks.read_letters, self._letters(topic), count >= _MANY_LETTERS):
            self.problems.add(result.problems)
            for place, offset in result.conflicts:
                lettered.setdefault(place, set()).add(offset)
        self.lettered = {place: np.array(sorted(offsets), np.int64) for place, offsets in lettered.items()}

    def read_log(self) -> None:
        """Chunks are read, judged and added up by a thread each."""
        chunks = itertools.chain.from_iterable(map(self._log_chunks, self.places))
        with contextlib.closing(self.pool.beside(self._judge, chunks)) as judged:
            self._each(self._add_up, judged)
        while self.waiting:
            self._add(*self._next_waiting())
        self._write_rows(0)

    def compare(self) -> None:
        grows = {number: self.topics[place.topic].repeats == "grow" for number, place in enumerate(self.places)}
        begins = {number: self.since.get(place, 0) for number, place in enumerate(self.places)}
        self.tables.write_repeated(grows, begins)
        self.agreed = self.tables.write_rows()

    def _each(self, work: Callable[[Task], None], chunks: Iterable[Task]) -> None:
        """In a thread of its own, if that is worth one, while the next ones are read."""
        for _ in self.pool.beside(work, chunks):
            pass

    def _published(self, topic: str, keys: bool = False, headers: bool = False) -> Iterator[Messages]:
        for place, (begin, end) in self.cut.published_in(topic):
            for messages in self.broker.read(place, begin, end, keys=keys, headers=headers):
                self._advance(messages)
                yield messages

    def _advance(self, messages: Messages) -> None:
        self.done += len(messages.values)
        self.progress(self.done, self.cut.messages)

    def _letters(self, topic: str) -> Iterator[tasks.LetterChunk]:
        for some in _in_chunks(self._published(topic, headers=True)):
            yield tasks.LetterChunk(
                next(self.numbers),
                self.folder,
                some[0].place,
                [value for messages in some for value in messages.values],
                [offset for messages in some for offset in messages.offsets.tolist()],
                [list(headers) for messages in some for headers in messages.headers or ()],
            )

    def _log_chunks(self, place: Place) -> Iterator[_Chunk]:
        begin, committed = self.cut.log[place].begin, self.cut.committed[place]
        context = self.cut.context.get(place, begin)
        clock = self.clocks[place] = self.earlier.clock(place, self.settings.dedup_horizon_ms, context)
        for some in _in_chunks(self._log(place, context, begin)):
            yield self._chunk(place, some, clock, is_context=True)
        if context < begin:
            self.earlier.check_log_time(place, clock)
        for some in _in_chunks(self._log(place, begin, max(begin, committed))):
            self.first_messages.setdefault(place, int(some[0].offsets[0]))
            yield self._chunk(place, some, clock)

    def _chunk(self, place: Place, some: list[Messages], clock: since.LogClock, is_context: bool = False) -> _Chunk:
        times = np.concatenate([messages.times for messages in some])
        offsets = np.concatenate([messages.offsets for messages in some])
        keys, headers = some[0].keys is not None, some[0].headers is not None
        return _Chunk(
            place,
            self.places.index(place),
            joined([messages.values for messages in some]),
            offsets,
            times,
            clock.read(times, offsets),
            [key for messages in some for key in messages.keys or ()] if keys else None,
            [list(one) for messages in some for one in messages.headers or ()] if headers else None,
            is_context,
        )

    def _judge(self, chunk: _Chunk) -> _Judged:
        """What is alike together; the rest here or, if it is much, in another process."""
        read, records, task = self._read_together(chunk)
        left = len(task.lines) + len(task.messages)
        if left == 0:
            return _Judged(chunk, read, records, None)
        future = self.pool.submit(tasks.judge, task) if left >= _FEW_LINES else None
        return _Judged(chunk, read, records, future or tasks.judge(task))

    def _add_up(self, judged: _Judged) -> None:
        chunk, read, records, result = judged
        self.tables.add(records, chunk.number, chunk.is_context)
        if not chunk.is_context:
            self.counting += read.counted
            self.skipped += read.skipped
        if isinstance(result, Future):
            self.waiting.append((result, chunk))
            if len(self.waiting) > 2 * self.settings.processes:
                self._add(*self._next_waiting())
        elif result is not None:
            self._add(result, chunk)
        self.tables.make_room()

    def _next_waiting(self) -> tuple[LogResult, _Chunk]:
        future, chunk = self.waiting.popleft()
        return future.result(), chunk

    def _read_together(self, chunk: _Chunk) -> tuple[Read, native.Records, tasks.LogTask]:
        """What surely counts, and what is left."""
        values, quick = chunk.values, self.quick[chunk.place.topic]
        lettered = _among(self.lettered.get(chunk.place), chunk.offsets)
        are_lines = np.zeros(len(values.lengths), bool)
        read, records = Read(0, 0, []), self.tables.records()
        if quick is not None:
            are_lines = values.are_first(b"{") & (chunk.times < _TIMES_END)
            are_lines[lettered] = False
            messages = native.Messages(values, chunk.times, chunk.offsets, chunk.generations, are_lines)
            read = quick(records, messages)
        left = [
            tasks.Message(
                message,
                values.at(message),
                chunk.keys[message] if chunk.keys is not None else None,
                chunk.headers[message] if chunk.headers is not None else (),
            )
            for message in np.flatnonzero(~are_lines).tolist()
        ]
        topic, settings = chunk.place.topic, self.settings
        task = tasks.LogTask(
            chunk.number,
            read.left,
            left,
            chunk.offsets,
            chunk.times,
            self.topics[topic],
            settings.max_future_skew_ms,
            settings.max_past_ms,
            chunk.offsets[lettered],
            self.schemas[topic],
            settings.registry if self.topics[topic].value.registry else None,
        )
        return read, records, task

    def _add(self, result: LogResult, chunk: _Chunk) -> None:
        if result.counting is not None:
            self.tables.add_judged(result.counting, chunk.offsets, chunk.generations, chunk.number, chunk.is_context)
        if chunk.is_context:
            return
        self.counting += 0 if result.counting is None else len(result.counting.times)
        self.empty += result.empty
        self.skipped += result.skipped
        self.rejects.update(Counter(reason for _, _, _, reason, _, _ in result.refused))
        self.rows["rejects"] += result.refused
        self.rows["digests"] += result.digests
        self._write_rows(_ROWS_KEPT)

    def _write_rows(self, most: int) -> None:
        for kind, rows in self.rows.items():
            if len(rows) > most:
                tasks.write(self.folder, kind, next(self.numbers), rows)
                rows.clear()

    def _log(self, place: Place, begin: Offset, end: Offset) -> Iterator[Messages]:
        value = self.topics[place.topic].value
        beside = {"keys": value.key, "headers": asks_for_headers(value)}
        try:
            for messages in self.broker.read(place, begin, end, **beside):
                self._advance(messages)
                yield messages
        except OutOfRange as error:
            raise LogGone(f"retention has removed messages while they were verified: {error}") from error

    # --- 5. Sums ---

    def report(self, group: str, moved: bool, started: float) -> Report:
        with Sums(self.folder, self.places, self.settings, self.agreed) as sums:
            tally = self._tally(sums.count("duplicates"), sums.count("conflicts"))
            self.problems.add(self._problems(tally, sums))
            most, before = self.settings.differences_max, self.earlier.tokens()
            report = Report(
                group=group,
                partitions=tuple(self.cut.covered()),
                parts=len(self.parts.last),
                tally=tally,
                rejects=dict(sorted(self.rejects.items())),
                expected=sums.total("expected", before),
                found=sums.total("found", before),
                expected_rows=self.agreed.rows + sums.count("expected"),
                found_rows=self.agreed.rows + sums.count("found"),
                usage_messages=self.usage_messages,
                letters=sums.count("letters"),
                differing_rows=sums.count("differing"),
                differences=tuple(sums.differences(most)),
                differing_letters=sums.count("differing_letters"),
                letter_differences=tuple(sums.letter_differences(most)),
                problem_count=self.problems.count,
                problems=tuple(self.problems.kept[:most]),
                notes=tuple(self._notes(moved)),
                seconds=time.monotonic() - started,
                since=self.earlier.since,
                new_parts=len(self.parts.last) - len(self.parts.known),
            )
            if report.clean and self.settings.checkpoint is not None:
                self.kept = sums.kept()
            return report

    def leave_checkpoint(self, report: Report, stream: checkpoint.Stream, made_at_ms: int) -> Report:
        """Writes it, if one is wanted and the report is clean."""
        if self.settings.checkpoint is None:
            return report
        if self.kept is None:
            return replace(report, notes=(*report.notes, "No checkpoint was written: only a clean audit leaves one."))
        log = {place: self.clocks[place].state(offset) for place, offset in self.cut.committed.items()}
        ends = {place: extent.end for place, extent in self.cut.published.items()}
        parts = self.parts.open_ones()
        left = checkpoint.Checkpoint(made_at_ms, stream, log, ends, parts, report.in_all, self.kept)
        checkpoint.write(self.settings.checkpoint, left)
        return replace(report, checkpoint=self.settings.checkpoint)

    def _tally(self, duplicates: int, conflicts: int) -> Tally:
        return Tally(self.counting - duplicates, duplicates, self.rejects.total(), self.empty, self.skipped, conflicts)

    def _problems(self, tally: Tally, sums: Sums) -> Iterator[Problem]:
        ranges, starts = live.ranges_since(self.parts, self.since)
        for place in sorted(self.cut.log):
            offset, first = self.cut.committed.get(place), self.first_messages.get(place)
            yield from live.tiling_problems(place, ranges.get(place, []), first, offset, starts.get(place))
        yield from live.part_problems(self.parts, first_is_there=not self._lost(self.settings.live_topic))
        yield from live.record_problems(self.parts, tally, self.rejects)
        yield from live.token_problems(self.parts, sums.by_part())
        yield from sums.misplaced_rows()

    def _lost(self, topic: str) -> bool:
        """Only an audit from the beginning misses it."""
        if self.earlier.since is not None:
            return False
        return any(extent.begin > BEGINNING for _, extent in self.cut.published_in(topic))

    def _notes(self, moved: bool) -> Iterator[str]:
        for topic in (self.settings.live_topic, self.settings.usage_topic, self.settings.rejected_topic):
            if self._lost(topic):
                yield f"{topic} does not begin at offset 0: what retention removed from it is missed below."
        if moved:
            yield "The group went on meanwhile; if rows are missing, compaction may have taken them: verify again."


def _among(some: Ints | None, offsets: Ints) -> Ints:
    """Where some offsets are among these. Both rise."""
    if some is None:
        return np.zeros(0, np.int64)
    low, high = np.searchsorted(some, [offsets[0], offsets[-1] + 1])
    places = np.searchsorted(offsets, some[low:high])
    found: Ints = places[offsets[places] == some[low:high]]
    return found


def _in_chunks(stream: Iterable[Messages]) -> Iterator[list[Messages]]:
    """Consecutive messages of one partition, as many as are worth sending to another process."""
    some: list[Messages] = []
    count = size = 0
    for messages, its_size in itertools.chain.from_iterable(map(_in_pieces, stream)):
        is_full = count + len(messages.values) > _CHUNK_MESSAGES or size + its_size > _CHUNK_BYTES
        if some and (is_full or messages.place != some[0].place):
            yield some
            some, count, size = [], 0, 0
        some.append(messages)
        count += len(messages.values)
        size += its_size
    if some:
        yield some


def _in_pieces(messages: Messages) -> Iterator[tuple[Messages, int]]:
    """Messages of some bytes each, where many large ones came at once; with their bytes."""
    size = bytes_of(messages.values)
    if size <= _CHUNK_BYTES:
        yield messages, size
        return
    step = max(1, len(messages.values) * _CHUNK_BYTES // size)
    for begin in range(0, len(messages.values), step):
        part = slice(begin, begin + step)
        piece = Messages(
            messages.place,
            messages.values[part],
            messages.times[part],
            messages.offsets[part],
            messages.keys and messages.keys[part],
            messages.headers and messages.headers[part],
        )
        yield piece, bytes_of(piece.values)


@contextlib.contextmanager
def _pool(settings: VerifySettings, cut: Cut) -> Iterator[Pool]:
    is_worth_it = settings.processes >= 2 and cut.messages >= _FEW_MESSAGES
    pool = Pool(settings.processes if is_worth_it else 0)
    try:
        yield pool
    except BrokenProcessPool as error:
        raise VerifyError("a process of the audit ended by itself; is there enough memory?") from error
    finally:
        pool.close()
