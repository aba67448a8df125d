"""`tokenometer verify` answers: is every token of the log in the published rows, exactly once?

It audits a metered stream from what is in the broker alone:
1. Cut: the group's committed offsets, and how far the published topics reach at that moment.
2. token-live: the last summary of each part; their ranges must tile every partition up to the committed offset.
3. token-usage and the dead letters: every message, as columns.
4. The log: every line up to the committed offsets, judged anew (`judge`; lines that are alike together, `quick`), as
   columns and as sums of each chunk.
5. Sums: DuckDB finds the duplicates among the records whose id may occur twice (`ids`), takes them out, adds up the
   chunks, adds up the last rows of all parts, and compares.

Nothing of the engine takes part: not its parser, not its tables, not its referee. Steps 3 and 4 run in several
processes; the columns lie in a temporary folder, and DuckDB keeps to its memory, so the size of a stream is no limit.
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
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from tokenometer.processor.broker import BEGINNING, Broker, Extent, Messages, Offset, OutOfRange, Place
from tokenometer.processor.verify import columns, ids, live, tasks
from tokenometer.processor.verify.pages import Ints, page_text
from tokenometer.processor.verify.sums import Sums, require_duckdb
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
    cut = _cut(broker, group, sorted(topics), settings)
    with tempfile.TemporaryDirectory(prefix="tokenometer-verify-", dir=settings.scratch) as folder:
        with _without_collector(), _pool(settings, cut) as pool:
            audit = _Audit(broker, topics, settings, cut, folder, pool, progress)
            audit.read_summaries()
            audit.read_usage()
            audit.read_letters()
            audit.read_log()
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


class _Audit:
    def __init__(
        self,
        broker: Broker,
        topics: Mapping[str, mappings.Mapping],
        settings: VerifySettings,
        cut: _Cut,
        folder: str,
        pool: Executor | None,
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
        self.places = sorted(cut.committed)  # the columns name a partition by its number here
        self.first_messages: dict[Place, int] = {}
        self.usage_messages = 0
        self.counting = 0  # records that count or are duplicates
        self.empty = 0
        self.skipped = 0
        self.rejects: Counter[str] = Counter()
        self.lettered: dict[Place, list[int]] = {}  # offsets of messages with letters of conflicting duplicates
        self.chunks: dict[int, list[tuple[int, dict[str, Any]]]] = {}  # of a place, with records: number, constants
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
        for result in self._each(tasks.read_usage, self._output_chunks(self.settings.usage_topic)):
            self.usage_messages += result.messages
            self.problems.add(result.problems)

    def read_letters(self) -> None:
        for result in self._each(tasks.read_letters, self._output_chunks(self.settings.rejected_topic)):
            self.problems.add(result.problems)
            for place, offset in result.conflicts:
                self.lettered.setdefault(place, []).append(offset)

    def read_log(self) -> None:
        """A place's chunks are done before those of the next one begin, as they come in order."""
        chunks = itertools.chain.from_iterable(map(self._log_chunks, self.places))
        for result in self._each(tasks.read_log, chunks):
            self.counting += result.counting
            if result.counting:
                self.chunks.setdefault(result.place, []).append((result.number, result.constants))
            self.empty += result.empty
            self.skipped += result.skipped
            self.rejects.update(result.rejects)

    def _each(self, work: Callable[[_Task], _Result], chunks: Iterable[_Task]) -> Iterator[_Result]:
        return map(work, chunks) if self.pool is None else _in_order(self.pool, work, chunks, self.settings.processes)

    def _published(self, topic: str, keys: bool = False, headers: bool = False) -> Iterator[Messages]:
        for place, (begin, end) in self.cut.published_in(topic):
            for messages in self.broker.read(place, begin, end, keys=keys, headers=headers):
                self._advance(messages)
                yield messages

    def _advance(self, messages: Messages) -> None:
        self.done += len(messages.values)
        self.progress(self.done, self.cut.messages)

    def _output_chunks(self, topic: str) -> Iterator[tasks.OutputChunk]:
        letters = topic == self.settings.rejected_topic
        for some in _in_chunks(self._published(topic, keys=not letters, headers=letters)):
            yield tasks.OutputChunk(
                next(self.numbers),
                self.folder,
                some[0].place,
                [value for messages in some for value in messages.values],
                [offset for messages in some for offset in messages.offsets.tolist()],
                [key for messages in some for key in messages.keys or ()],
                [list(headers) for messages in some for headers in messages.headers or ()],
                self.settings.window_ms,
            )

    def _log_chunks(self, place: Place) -> Iterator[tasks.LogChunk]:
        log_time, mapping = 0, self.topics[place.topic]
        lettered = np.array(sorted(set(self.lettered.get(place, ()))), np.int64)
        for some in _in_chunks(self._log(place)):
            self.first_messages.setdefault(place, int(some[0].offsets[0]))
            times = np.concatenate([messages.times for messages in some])
            offsets = np.concatenate([messages.offsets for messages in some])
            log_times = np.maximum.accumulate(np.maximum(times, np.uint64(log_time)))
            log_time = int(log_times[-1])
            text, lengths = _joined(list(itertools.chain.from_iterable(messages.values for messages in some)))
            begin, end = np.searchsorted(lettered, (offsets[0], offsets[-1] + 1))
            yield tasks.LogChunk(
                next(self.numbers),
                self.folder,
                self.places.index(place),
                text,
                lengths,
                offsets,
                times,
                (log_times // np.uint64(self.settings.dedup_horizon_ms)).astype(np.int64),
                mapping,
                self.settings.window_ms,
                self.settings.max_future_skew_ms,
                self.settings.max_past_ms,
                lettered[begin:end],
                self.schemas[place.topic],
                [key for messages in some for key in messages.keys or ()] if some[0].keys is not None else None,
                [list(one) for messages in some for one in messages.headers or ()]
                if some[0].headers is not None
                else None,
                self.settings.registry if mapping.value.registry else None,
            )

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
        self._find_repeated()
        with Sums(self.folder, self.places, self.settings) as sums:
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
                expected_rows=sums.count("expected"),
                found_rows=sums.count("found"),
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

    def _find_repeated(self) -> None:
        """Writes the records that may be duplicates, or have one."""
        for place, chunks in self.chunks.items():
            repeated = ids.repeated([f"{self.folder}/marks-{number}.npy" for number, _ in chunks])
            grows = self.topics[self.places[place].topic].repeats == "grow"
            for number, constants in chunks if len(repeated) else ():
                marks = np.load(f"{self.folder}/marks-{number}.npy")
                rows = np.flatnonzero(ids.are_among(marks, repeated))
                if len(rows):
                    table = columns.read_again(self.folder, number, rows, constants)
                    tasks.write_repeated(self.folder, number, place, grows, table)

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
        size += sum(map(len, filter(None, messages.values)))
    if some:
        yield some


def _in_pieces(messages: Messages) -> Iterator[Messages]:
    """Messages of some bytes each, where many large ones came at once."""
    lengths = np.array([len(value or b"") for value in messages.values[:_SAMPLE]])
    step = max(1, int(_CHUNK_BYTES // max(1, lengths.mean())))
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


def _joined(values: list[bytes | None]) -> tuple[bytes, Ints]:
    """As one text, and how long each is; a tombstone is -1."""
    if None not in values:
        return page_text(values), np.fromiter(map(len, values), np.int64, len(values))  # type: ignore[arg-type]
    lengths = np.array([-1 if value is None else len(value) for value in values], np.int64)
    return page_text([value or b"" for value in values]), lengths


# --- Processes ---


@contextlib.contextmanager
def _pool(settings: VerifySettings, cut: _Cut) -> Iterator[Executor | None]:
    """Other processes for the work; None where it is done here. They are spawned and not forked, because a fork would
    lose the threads of a broker's client."""
    if settings.processes < 2 or cut.messages < _FEW_MESSAGES:
        yield None
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(settings.processes, context, initializer=_begin_process)
    try:
        yield pool
    except BrokenProcessPool as error:
        raise VerifyError("a process of the audit ended by itself; is there enough memory?") from error
    finally:
        pool.shutdown(cancel_futures=True)


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


def _in_order(
    pool: Executor, work: Callable[[_Task], _Result], chunks: Iterable[_Task], processes: int
) -> Iterator[_Result]:
    """Reads ahead only so far that no process waits."""
    waiting: deque[Any] = deque()
    for chunk in chunks:
        waiting.append(pool.submit(work, chunk))
        if len(waiting) > 2 * processes:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
