"""`tokenometer verify` answers: is every token of the log in the published rows, exactly once?

It audits a metered stream from what is in the broker alone:
1. Cut: the group's committed offsets, and how far the published topics reach at that moment.
2. token-live: the last summary of each part; their ranges must tile every partition up to the committed offset.
3. token-usage and the dead letters: the last row of each identity, and every letter.
4. The log: every line up to the committed offsets, judged anew (`judge`; lines that are alike together, `quick`), and
   added up by row.
5. Sums: rows that are the same on both sides are done with (`tally`). For the others DuckDB finds the duplicates among
   the records whose id may occur twice (`ids`), takes them out, adds up the last rows of all parts, and compares.

Nothing of the engine takes part: not its parser, not its tables, not its referee. Messages are read by one thread and
looked at by another one; where much is left to the judge, that is done in other processes. Tables that become too large
go to a temporary folder, and DuckDB keeps to its memory, so the size of a stream is no limit.
"""

import contextlib
import ctypes
import gc
import itertools
import multiprocessing
import pathlib
import signal
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np

from tokenometer.processor.broker import BEGINNING, Broker, Extent, Headers, Messages, Offset, OutOfRange, Place
from tokenometer.processor.verify import live, native, tasks
from tokenometer.processor.verify.native import Ints, Texts, bytes_of, joined
from tokenometer.processor.verify.quick import QuickJudge, Read, is_eligible
from tokenometer.processor.verify.sums import Sums, require_duckdb
from tokenometer.processor.verify.tally import Agreed, Tables
from tokenometer.processor.verify.tasks import LogResult
from tokenometer.processor.verify.usage import UsageReader
from tokenometer.processor.verify.values import (
    Covered,
    LogGone,
    NothingCommitted,
    Problem,
    Report,
    StreamMoves,
    Tally,
    VerifyError,
    VerifySettings,
)
from tokenometer.schemas import mapping as mappings
from tokenometer.schemas.value import asks_for_headers

__all__ = ["Report", "VerifySettings", "VerifyError", "verify"]

_CUT_ATTEMPTS = 100
_CHUNK_MESSAGES = 32_768
_CHUNK_BYTES = 8 << 20
_SAMPLE = 100  # messages that tell how large the others may be
_FEW_MESSAGES = 5_000  # sooner judged here than other processes are started
_MANY_LETTERS = 50_000  # worth other processes
_FEW_LINES = 1_000  # of a chunk: sooner judged here than sent to another process
_READ_AHEAD = 2  # chunks
_ROWS_KEPT = 20_000  # refused records and digests, before they are written
_TIMES_END = 1 << 62  # later ones are for the judge
_PROBLEMS_MAX = 1000  # that are kept; all are counted

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")
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
    cut = _cut(broker, group, sorted(topics), settings)
    with tempfile.TemporaryDirectory(prefix="tokenometer-verify-", dir=settings.scratch) as folder:
        with _without_collector(), _pool(settings, cut) as pool:
            audit = _Audit(broker, topics, settings, cut, folder, pool, progress)
            audit.read_summaries()
            audit.read_usage()
            audit.read_letters()
            audit.read_log()
            audit.compare()
        moved = _committed(broker, group, sorted(topics)) != cut.committed
        return audit.report(group, moved, started)


# --- 1. Cut ---


@dataclass(frozen=True)
class _Cut:
    """One moment of the stream, in which what was published belongs to the offsets that were committed."""

    committed: dict[Place, Offset]
    log: dict[Place, Extent]
    published: dict[Place, Extent]

    def covered(self) -> Iterator[Covered]:
        """The committed partitions of the log."""
        for place, offset in sorted(self.committed.items()):
            yield Covered(place, self.log[place].begin, offset, self.log[place].end)

    def published_in(self, topic: str) -> list[tuple[Place, Extent]]:
        return [(place, extent) for place, extent in sorted(self.published.items()) if place.topic == topic]

    @property
    def messages(self) -> int:
        """At most."""
        log = sum(max(0, offset - begin) for _, begin, offset, _ in self.covered())
        return log + sum(extent.end - extent.begin for extent in self.published.values())


def _cut(broker: Broker, group: str, topics: list[str], settings: VerifySettings) -> _Cut:
    """Finds a moment between two commits. A commit's markers reach the partitions one after another, so it waits
    before it looks."""
    published = [settings.usage_topic, settings.live_topic, settings.rejected_topic]
    for _ in range(_CUT_ATTEMPTS):
        committed = _committed(broker, group, topics)
        if not committed:
            raise NothingCommitted(
                f"group {group} has committed no offset of {', '.join(topics)}; give the --group and the --input of "
                "its meters, or start one"
            )
        time.sleep(settings.settle_seconds)
        extents = broker.extents(published)
        if _committed(broker, group, topics) == committed:
            cut = _Cut(committed, broker.extents(topics), extents)
            _check_ends(cut)
            return cut
    raise StreamMoves(f"group {group} commits without a pause of {settings.settle_seconds} s: verify when it rests")


def _check_ends(cut: _Cut) -> None:
    for place, _, committed, end in cut.covered():
        if committed > end:
            name = f"{place.topic}/{place.partition}"
            raise LogGone(f"{name} ends at offset {end}, but {committed} is committed: was the topic made anew?")


def _committed(broker: Broker, group: str, topics: list[str]) -> dict[Place, Offset]:
    positions = broker.committed(group, topics)
    return {place: position.offset for place, position in positions.items() if position is not None}


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


class _Audit:
    def __init__(
        self,
        broker: Broker,
        topics: Mapping[str, mappings.Mapping],
        settings: VerifySettings,
        cut: _Cut,
        folder: str,
        pool: "_Pool",
        progress: Progress,
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
        self.parts = live.Parts()
        self.schemas = {topic: _schema(mapping) for topic, mapping in topics.items()}
        self.quick = {topic: _quick(mapping, settings) for topic, mapping in topics.items()}
        self.tables = Tables(folder, settings.window_ms, settings.memory_bytes)
        self.agreed = Agreed()
        self.places = sorted(cut.committed)  # the columns name a partition by its number here
        self.first_messages: dict[Place, int] = {}
        self.usage_messages = 0
        self.counting = 0  # records that count or are duplicates
        self.empty = 0
        self.skipped = 0
        self.rejects: Counter[str] = Counter()
        self.lettered: dict[Place, list[int]] = {}  # offsets of messages with letters of conflicting duplicates
        self.waiting: deque[tuple[Future[LogResult], _Chunk]] = deque()  # what other processes judge
        self.rows: dict[str, list[tuple[Any, ...]]] = {"rejects": [], "digests": []}
        self.numbers = itertools.count()

    def read_summaries(self) -> None:
        stream = self._published(self.settings.live_topic)
        self.parts = live.read_parts(stream, self.settings.window_ms)
        self.problems.add(self.parts.problems)
        for place, ranges in sorted(live.ranges_of(self.parts).items()):
            name = f"{place.topic}/{place.partition}"
            if place not in self.cut.log:
                self.problems.add([Problem("end", name, f"part {ranges[0].part} read it, but it is not verified")])
            elif ranges[0].begin < self.cut.log[place].begin:
                raise LogGone(
                    f"{name} now begins at offset {self.cut.log[place].begin}, but it was metered from"
                    f" {ranges[0].begin}: the totals of what retention removed cannot be recomputed"
                )

    def read_usage(self) -> None:
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
        for result in self.pool.map(tasks.read_letters, self._letters(topic), count >= _MANY_LETTERS):
            self.problems.add(result.problems)
            for place, offset in result.conflicts:
                self.lettered.setdefault(place, []).append(offset)

    def read_log(self) -> None:
        self._each(self._judge, itertools.chain.from_iterable(map(self._log_chunks, self.places)))
        while self.waiting:
            self._add(*self._next_waiting())
        self._write_rows(0)

    def compare(self) -> None:
        grows = {number: self.topics[place.topic].repeats == "grow" for number, place in enumerate(self.places)}
        self.tables.write_repeated(grows)
        self.agreed = self.tables.write_rows()

    def _each(self, work: Callable[[_Task], None], chunks: Iterable[_Task]) -> None:
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
        log_time = 0
        for some in _in_chunks(self._log(place)):
            self.first_messages.setdefault(place, int(some[0].offsets[0]))
            times = np.concatenate([messages.times for messages in some])
            log_times = np.maximum.accumulate(np.maximum(times, np.uint64(log_time)))
            log_time = int(log_times[-1])
            keys, headers = some[0].keys is not None, some[0].headers is not None
            yield _Chunk(
                place,
                self.places.index(place),
                joined([messages.values for messages in some]),
                np.concatenate([messages.offsets for messages in some]),
                times,
                (log_times // np.uint64(self.settings.dedup_horizon_ms)).astype(np.int64),
                [key for messages in some for key in messages.keys or ()] if keys else None,
                [list(one) for messages in some for one in messages.headers or ()] if headers else None,
            )

    def _judge(self, chunk: _Chunk) -> None:
        """What is alike together; the rest here or, if it is much, in another process."""
        task = self._read_together(chunk)
        if len(task.lines) + len(task.messages) < _FEW_LINES:
            if task.lines or task.messages:
                self._add(tasks.judge(task), chunk)
        elif (future := self.pool.submit(tasks.judge, task)) is not None:
            self.waiting.append((future, chunk))
            if len(self.waiting) > 2 * self.settings.processes:
                self._add(*self._next_waiting())
        else:
            self._add(tasks.judge(task), chunk)
        self.tables.make_room()

    def _next_waiting(self) -> tuple[LogResult, _Chunk]:
        future, chunk = self.waiting.popleft()
        return future.result(), chunk

    def _read_together(self, chunk: _Chunk) -> tasks.LogTask:
        """Adds what surely counts, and returns what is left."""
        values, quick = chunk.values, self.quick[chunk.place.topic]
        lettered = self.lettered.get(chunk.place, ())
        are_lines = np.zeros(len(values.lengths), bool)
        read = Read(0, 0, [])
        if quick is not None:
            are_lines = values.are_first(b"{") & (chunk.times < _TIMES_END)
            if lettered:
                are_lines &= ~np.isin(chunk.offsets, np.array(lettered))
            messages = native.Messages(values, chunk.times, chunk.offsets, chunk.generations, are_lines)
            self.tables.begin(chunk.number)
            read = quick(self.tables.expected, messages)
        self.counting += read.counted
        self.skipped += read.skipped
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
        return tasks.LogTask(
            chunk.number,
            read.left,
            left,
            chunk.offsets,
            chunk.times,
            self.topics[topic],
            settings.max_future_skew_ms,
            settings.max_past_ms,
            np.array(sorted(set(lettered)), np.int64),
            self.schemas[topic],
            settings.registry if self.topics[topic].value.registry else None,
        )

    def _add(self, result: LogResult, chunk: _Chunk) -> None:
        if result.counting is not None:
            self.counting += len(result.counting.times)
            self.tables.begin(chunk.number)
            self.tables.add(result.counting, chunk.offsets, chunk.generations)
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

    def _log(self, place: Place) -> Iterator[Messages]:
        begin, committed = self.cut.log[place].begin, self.cut.committed[place]
        value = self.topics[place.topic].value
        beside = {"keys": value.key, "headers": asks_for_headers(value)}
        try:
            for messages in self.broker.read(place, begin, max(begin, committed), **beside):
                self._advance(messages)
                yield messages
        except OutOfRange as error:
            raise LogGone(f"retention has removed messages while they were verified: {error}") from error

    # --- 5. Sums ---

    def report(self, group: str, moved: bool, started: float) -> Report:
        with Sums(self.folder, self.places, self.settings, self.agreed) as sums:
            tally = self._tally(sums.count("duplicates"), sums.count("conflicts"))
            self.problems.add(self._problems(tally, sums))
            most = self.settings.differences_max
            return Report(
                group=group,
                partitions=tuple(self.cut.covered()),
                parts=len(self.parts.last),
                tally=tally,
                rejects=dict(sorted(self.rejects.items())),
                expected=sums.total("expected"),
                found=sums.total("found"),
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
            )

    def _tally(self, duplicates: int, conflicts: int) -> Tally:
        return Tally(self.counting - duplicates, duplicates, self.rejects.total(), self.empty, self.skipped, conflicts)

    def _problems(self, tally: Tally, sums: Sums) -> Iterator[Problem]:
        ranges = live.ranges_of(self.parts)
        for place in sorted(self.cut.log):
            offset = self.cut.committed.get(place)
            yield from live.tiling_problems(place, ranges.get(place, []), self.first_messages.get(place), offset)
        yield from live.part_problems(self.parts, first_is_there=not self._lost(self.settings.live_topic))
        yield from live.record_problems(self.parts, tally, self.rejects)
        yield from live.token_problems(self.parts, sums.by_part())
        yield from sums.misplaced_rows()

    def _lost(self, topic: str) -> bool:
        return any(extent.begin > BEGINNING for _, extent in self.cut.published_in(topic))

    def _notes(self, moved: bool) -> Iterator[str]:
        for topic in (self.settings.live_topic, self.settings.usage_topic, self.settings.rejected_topic):
            if self._lost(topic):
                yield f"{topic} does not begin at offset 0: what retention removed from it is missed below."
        if moved:
            yield "The group went on meanwhile; if rows are missing, compaction may have taken them: verify again."


def _in_chunks(stream: Iterable[Messages]) -> Iterator[list[Messages]]:
    """Consecutive messages of one partition, as many as are worth sending to another process."""
    some: list[Messages] = []
    count = size = 0
    for messages in itertools.chain.from_iterable(map(_in_pieces, stream)):
        if some and (count >= _CHUNK_MESSAGES or size >= _CHUNK_BYTES or messages.place != some[0].place):
            yield some
            some, count, size = [], 0, 0
        some.append(messages)
        count += len(messages.values)
        size += bytes_of(messages.values)
    if some:
        yield some


def _in_pieces(messages: Messages) -> Iterator[Messages]:
    """Messages of some bytes each, where many large ones came at once."""
    sample = messages.values[:_SAMPLE]
    step = max(1, _CHUNK_BYTES * len(sample) // max(1, bytes_of(sample)))
    if step >= len(messages.values):
        yield messages
        return
    for begin in range(0, len(messages.values), step):
        part = slice(begin, begin + step)
        yield Messages(
            messages.place,
            messages.values[part],
            messages.times[part],
            messages.offsets[part],
            messages.keys and messages.keys[part],
            messages.headers and messages.headers[part],
        )


# --- Processes ---


class _Pool:
    """Another thread for what is read, and other processes for what is left to the judge. Nothing of it is started
    before there is work for it; without it, work is done here."""

    def __init__(self, processes: int) -> None:
        self._processes = processes
        self._executor: Executor | None = None

    def submit(self, work: Callable[[_Task], _Result], task: _Task) -> "Future[_Result] | None":
        if not self._processes:
            return None
        if self._executor is None:
            # Spawned and not forked, because a fork would lose the threads of a broker's client.
            context = multiprocessing.get_context("spawn")
            self._executor = ProcessPoolExecutor(self._processes, context, initializer=_begin_process)
        return self._executor.submit(work, task)

    def map(self, work: Callable[[_Task], _Result], chunks: Iterable[_Task], are_many: bool) -> Iterator[_Result]:
        """In order; in other processes where there are many."""
        if not (self._processes and are_many):
            yield from map(work, chunks)
            return
        waiting: deque[Any] = deque()
        for chunk in chunks:  # read ahead only so far that no process waits
            waiting.append(self.submit(work, chunk))
            if len(waiting) > 2 * self._processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def beside(self, work: Callable[[_Task], _Result], chunks: Iterable[_Task]) -> Iterator[_Result]:
        """In order, in one other thread."""
        if not self._processes:
            yield from map(work, chunks)
            return
        with ThreadPoolExecutor(1, "verify") as thread:
            waiting: deque[Any] = deque()
            try:
                for chunk in chunks:
                    waiting.append(thread.submit(work, chunk))
                    if len(waiting) > _READ_AHEAD:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                thread.shutdown(cancel_futures=True)

    def close(self) -> None:
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _pool(settings: VerifySettings, cut: _Cut) -> Iterator[_Pool]:
    is_worth_it = settings.processes >= 2 and cut.messages >= _FEW_MESSAGES
    pool = _Pool(settings.processes if is_worth_it else 0)
    try:
        yield pool
    except BrokenProcessPool as error:
        raise VerifyError("a process of the audit ended by itself; is there enough memory?") from error
    finally:
        pool.close()


def _begin_process() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its processes
    _keep_freed_memory()
    gc.disable()  # a chunk is many small values without any cycle


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Messages are many small values without any cycle. The collector would look at all of them, again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _keep_freed_memory() -> None:
    """Columns of some 100 KiB come and go. glibc would give each back to the system, which clears it before it comes
    again; with these limits it keeps them. Nothing happens where the C library is another one."""
    mmap_threshold, trim_threshold = -3, -1  # of malloc.h
    with contextlib.suppress(AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(mmap_threshold, 64 << 20)
        library.mallopt(trim_threshold, 256 << 20)
