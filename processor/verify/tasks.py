"""The audit's work on messages: chunks of a topic in, columns in a Parquet file out. What runs in other processes.

    log       -> records-N.arrow      one row for each record that counts unless it is a duplicate; beside it, of
                                      `columns`, marks-N.npy and sums-N.parquet
                 rejects-N.parquet    one for each record that is refused
                 digests-N.parquet    one for each record that may be a duplicate with a dead letter: of its bytes
    usage     -> usage-N.parquet      one for each published row, old ones too
    rejected  -> letters-N.parquet    one for each dead letter

Texts are columns of bytes: equal means equal bytes, and a NUL in a name is a byte as any other.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tokenometer.processor.broker import Headers, Place
from tokenometer.processor.broker.registry import Registry
from tokenometer.processor.secret import Secret, reveal
from tokenometer.processor.verify import columns, usage
from tokenometer.processor.verify.columns import of_judged
from tokenometer.processor.verify.decode import AuditDecoder
from tokenometer.processor.verify.judge import Judge, Judged, SkippedRecord
from tokenometer.processor.verify.live import MalformedSummary
from tokenometer.processor.verify.pages import FRONT, Flags, Ints, Page
from tokenometer.processor.verify.quick import Counted, QuickJudge, is_eligible
from tokenometer.processor.verify.values import (
    CONFLICTING,
    COUNTERS,
    FURTHER,
    REASONS,
    Problem,
    RefusedRecord,
)
from tokenometer.schemas.mapping import Mapping
from tokenometer.schemas.value import Value

_TEXTS = ("user", "model", "chip")
_AT = [("place", pa.int32()), ("log_offset", pa.int64())]
_BYTES = pa.binary()
RECORDS = pa.schema([("place", pa.int32()), *columns.RECORDS, ("grows", pa.bool_())])
DIGESTS = pa.schema([*_AT, ("line", pa.int32()), ("digest", _BYTES)])
REJECTS = pa.schema([*_AT, ("line", pa.int64()), ("reason", pa.string()), ("field", pa.string()), ("digest", _BYTES)])
USAGE = pa.schema(
    [
        *_AT,
        ("window_start", pa.int64()),
        *((name, _BYTES) for name in (*_TEXTS, "part")),
        *((name, pa.uint64()) for name in COUNTERS),
        ("labels", _BYTES),
        *((name, pa.uint64()) for name in FURTHER),
    ]
)
LETTERS = pa.schema([("topic", pa.string()), ("partition", pa.int64()), ("log_offset", pa.int64()), *list(REJECTS)[2:]])
SCHEMAS = {
    "records": RECORDS,
    "sums": columns.SUMS,
    "rejects": REJECTS,
    "digests": DIGESTS,
    "usage": USAGE,
    "letters": LETTERS,
}
_REPEATING = [*_TEXTS, "prefill_chip", "labels", "part", "reason", "field"]  # columns that are worth a dictionary


_TIMES_END = 1 << 62  # later ones are for the judge


class LogChunk(NamedTuple):
    """Messages of an input partition."""

    number: int  # of the chunk; files bear it
    folder: str
    place: int
    text: bytes  # of all values: `page_text`
    lengths: Ints  # of the values; -1 for a tombstone
    offsets: Ints
    times: Ints
    generations: Ints
    mapping: Mapping
    window_ms: int
    max_future_skew_ms: int
    max_past_ms: int | None
    lettered: Ints  # offsets of messages with a dead letter that says `conflicting_duplicate`
    schema: bytes | None = None  # of the mapping's values
    keys: list[bytes | None] | None = None  # where the mapping reads them
    headers: list[Headers] | None = None
    registry: tuple[tuple[str, str | Secret], ...] | None = None  # its settings, where values name their schemas


class LogResult(NamedTuple):
    number: int
    place: int
    counting: int  # records that count or are duplicates
    empty: int
    skipped: int
    rejects: dict[str, int]
    constants: dict[str, Any]  # what its records have in common


class OutputChunk(NamedTuple):
    """Messages of a partition of token-usage or of the dead letters."""

    number: int
    folder: str
    place: Place
    values: list[bytes | None]
    offsets: list[int]
    keys: list[bytes | None]
    headers: list[Headers]
    window_ms: int


class OutputResult(NamedTuple):
    messages: int
    problems: list[Problem]
    conflicts: list[tuple[Place, int]] = []  # offsets of what letters of conflicting duplicates speak of


def write(folder: str, kind: str, number: int, rows: Sequence[Sequence[Any]]) -> None:
    """Writes rows as one file. No rows make an empty file, so that there is one to read."""
    _write(folder, kind, number, list(zip(*rows, strict=True)) if rows else [()] * len(SCHEMAS[kind]))


def write_repeated(folder: str, number: int, place: int, grows: bool, records: pa.Table) -> None:
    """Records that may be duplicates, or have one."""
    count = len(records)
    constants = pa.array(np.full(count, place, np.int32)), pa.array(np.full(count, grows))
    table = pa.table([constants[0], *records.columns, constants[1]], schema=RECORDS)
    pq.write_table(table, f"{folder}/records-{number}.parquet", write_statistics=False)


def _write(folder: str, kind: str, number: int, columns: Sequence[Any]) -> None:
    schema = SCHEMAS[kind]
    arrays = [pa.array(values, item.type) for values, item in zip(columns, schema, strict=True)]
    _write_table(folder, kind, number, pa.Table.from_arrays(arrays, schema=schema))


def _write_table(folder: str, kind: str, number: int, table: pa.Table) -> None:
    repeating = [name for name in _REPEATING if name in table.column_names]
    pq.write_table(table, f"{folder}/{kind}-{number}.parquet", use_dictionary=repeating, write_statistics=False)


# --- The log ---


@lru_cache(maxsize=16)
def _judges(mapping: Mapping, max_future_skew_ms: int, max_past_ms: int | None) -> tuple[Judge, QuickJudge | None]:
    """The judge, and a quick one where messages are lines as they stand there."""
    judge = Judge(mapping, max_future_skew_ms, max_past_ms)
    return judge, QuickJudge(mapping, judge, max_future_skew_ms, max_past_ms) if is_eligible(mapping) else None


@lru_cache(maxsize=16)
def _decoder(value: Value, schema: bytes | None, registry: tuple[tuple[str, str | Secret], ...] | None) -> AuditDecoder:
    known = Registry(reveal(dict(registry))).schemas(value.encoding) if registry is not None else None
    return AuditDecoder(value, known, schema)


def lines_of(value: bytes | None) -> list[bytes]:
    """A newline ends a record, and so does the end of the message."""
    lines = (value or b"").split(b"\n")
    if len(lines) > 1 and not lines[-1]:
        lines.pop()
    return lines


class _Message:
    """What the dead letters of a message hold: the record where it is a line of the message as it stands there, else
    the message; where the copies would be too many, only the first reject's letter has it, and the others say its size
    and hash."""

    def __init__(self, value: bytes | None, records: int) -> None:
        self._value, self._lines = value or b"", lines_of(value)
        self._has_room = len(self._value) * records <= _COPIES_BYTES_MAX
        self._copied = False

    def digest(self, number: int, line: bytes, rejected: bool) -> bytes:
        if number < len(self._lines) and self._lines[number] == line:
            return record_digest(line)
        if self._has_room or (rejected and not self._copied):
            self._copied = self._copied or rejected
            return self._whole
        return self._named

    @cached_property
    def _whole(self) -> bytes:
        return record_digest(self._value)

    @cached_property
    def _named(self) -> bytes:
        return _letter_digest(b"", (len(self._value), hashlib.sha256(self._value).hexdigest()))


def read_log(chunk: LogChunk) -> LogResult:
    return _LogReader(chunk).read()


class _LogReader:
    """Judges a chunk: what it can in one go, the rest line by line, and messages that are no lines one by one."""

    def __init__(self, chunk: LogChunk) -> None:
        self._chunk = chunk
        self._judge, self._quick = _judges(chunk.mapping, chunk.max_future_skew_ms, chunk.max_past_ms)
        self._lettered = set(chunk.lettered.tolist())
        sizes = np.maximum(chunk.lengths, 0)
        self._ends = FRONT - 1 + np.cumsum(sizes + 1)
        self._begins = self._ends - sizes
        self._parts: list[Counted] = []
        self._single: list[Judged] = []
        self._single_at: list[tuple[int, int]] = []  # of each: its message's index in the chunk, and its number in that
        self._refused: list[tuple[Any, ...]] = []
        self._digests: list[tuple[Any, ...]] = []  # a duplicate that says something else becomes a dead letter
        self._empty = self._skipped = 0

    def read(self) -> LogResult:
        chunk = self._chunk
        are_lines = np.zeros(len(chunk.lengths), bool)
        messages = numbers = np.zeros(0, np.int64)
        if self._quick is not None:
            first_bytes = np.frombuffer(chunk.text, np.uint8)[self._begins]
            are_lines = (chunk.lengths > 0) & (first_bytes == ord("{")) & (chunk.times < _TIMES_END)
            if are_lines.any():
                messages, numbers = self._read_lines(self._quick, are_lines)
        for message in np.flatnonzero(~are_lines).tolist():
            self._read_message(message)
        if self._single:
            count = len(messages)
            self._parts.append(of_judged(range(count, count + len(self._single)), self._single))
            single_messages, single_numbers = np.array(self._single_at, np.int64).T
            messages = np.concatenate((messages, single_messages))
            numbers = np.concatenate((numbers, single_numbers))
        return self._write(messages, numbers)

    def _read_lines(self, quick: QuickJudge, are_lines: Flags) -> tuple[Ints, Ints]:
        """Messages that are lines as they stand there. Returns of each line its message, and its number in that."""
        chunk, page = self._chunk, Page(self._chunk.text)
        last_lines = np.searchsorted(page.ends, self._ends)
        messages = np.repeat(np.arange(len(last_lines)), np.diff(last_lines, prepend=-1))
        numbers = np.arange(len(page)) - (np.concatenate(([-1], last_lines[:-1])) + 1)[messages]
        # A newline at a message's end ends its last line; it does not begin another one.
        nothing = (page.begins == page.ends) & (page.ends == self._ends[messages]) & (numbers > 0)
        answer = quick(page, are_lines[messages] & ~nothing, chunk.times.astype(np.int64)[messages])
        self._skipped += answer.skipped
        self._parts += answer.counted
        for line in answer.left.tolist():
            self._read_line(int(messages[line]), int(numbers[line]), page.line(line), None)
        for part in answer.counted if self._lettered else ():
            for line in part.lines[np.isin(chunk.offsets[messages[part.lines]], chunk.lettered)].tolist():
                self._add_digest(int(messages[line]), int(numbers[line]), record_digest(page.line(line)))
        return messages, numbers

    def _read_line(
        self, message: int, number: int, line: bytes, whole: "_Message | None", failure: str | None = None
    ) -> None:
        """whole: None where a letter holds the line itself."""
        chunk = self._chunk
        try:
            if failure is not None:
                raise RefusedRecord(failure)
            record = self._judge(line, int(chunk.times[message]))
        except SkippedRecord:
            self._skipped += 1
            return
        except RefusedRecord as why:
            digest = whole.digest(number, line, rejected=True) if whole else record_digest(line)
            self._refused.append((chunk.place, int(chunk.offsets[message]), number, why.reason, why.field, digest))
            return
        if record is None:
            self._empty += 1
            return
        self._single.append(record)
        self._single_at.append((message, number))
        if int(chunk.offsets[message]) in self._lettered:
            digest = whole.digest(number, line, rejected=False) if whole else record_digest(line)
            self._add_digest(message, number, digest)

    def _add_digest(self, message: int, number: int, digest: bytes) -> None:
        self._digests.append((self._chunk.place, int(self._chunk.offsets[message]), number, digest))

    def _read_message(self, message: int) -> None:
        """A message that may be anything."""
        chunk = self._chunk
        value = None if chunk.lengths[message] < 0 else chunk.text[self._begins[message] : self._ends[message]]
        key = chunk.keys[message] if chunk.keys is not None else None
        decode = _decoder(chunk.mapping.value, chunk.schema, chunk.registry)
        decoded = decode(value, key, chunk.headers[message] if chunk.headers is not None else ())
        lines = decoded.lines or [b""]
        whole = _Message(value, len(lines))
        for number, line in enumerate(lines):
            self._read_line(message, number, line, whole, decoded.failure)

    def _write(self, messages: Ints, numbers: Ints) -> LogResult:
        chunk, folder = self._chunk, self._chunk.folder
        count, constants = 0, dict[str, Any]()
        if self._parts:
            offsets, generations = chunk.offsets[messages], chunk.generations[messages]
            where = {"log_offset": offsets, "line": numbers, "generation": generations}
            found = columns.Columns(self._parts, where, chunk.window_ms)
            count, constants = found.count, found.write(folder, chunk.number)
        for kind, rows in (("rejects", self._refused), ("digests", self._digests)):
            if rows:
                write(folder, kind, chunk.number, rows)
        rejects = dict(Counter(reason for _, _, _, reason, _, _ in self._refused))
        return LogResult(chunk.number, chunk.place, count, self._empty, self._skipped, rejects, constants)


# --- token-usage ---


def read_usage(chunk: OutputChunk) -> OutputResult:
    """Raises UnknownSchema and WrongWindow."""
    where = f"{chunk.place.topic}/{chunk.place.partition}"
    parts, problems = usage.read(chunk.keys, chunk.values, chunk.offsets, where, chunk.window_ms)
    if parts:
        offsets = np.array(chunk.offsets, np.int64)
        table = usage.table(parts, chunk.place.partition, offsets, USAGE)
        _write_table(chunk.folder, "usage", chunk.number, table)
    return OutputResult(len(chunk.values), problems)


# --- Dead letters ---

_WHOLE_BYTES_MAX, _HEAD_BYTES = 900 << 10, 64 << 10  # of a letter's value; docs/RECORDS.md
_COPIES_BYTES_MAX = 1 << 20  # of a message in all letters of its records

_HEADERS = {"reason", "topic", "partition", "offset", "line"}
_OF_WHOLE = {"size", "sha256"}  # of a record whose letter has only its head


def read_letters(chunk: OutputChunk) -> OutputResult:
    rows: list[tuple[Any, ...]] = []
    problems: list[Problem] = []
    conflicts: list[tuple[Place, int]] = []
    for value, headers, offset in zip(chunk.values, chunk.headers, chunk.offsets, strict=True):
        try:
            row = _letter(value, headers)
            rows.append(row)
            if row[4] == CONFLICTING:
                conflicts.append((Place(row[0], row[1]), row[2]))
        except MalformedSummary as error:
            where = f"{chunk.place.topic}/{chunk.place.partition} at offset {offset}"
            problems.append(Problem("letter", where, str(error)))
    if rows:
        write(chunk.folder, "letters", chunk.number, rows)
    return OutputResult(len(chunk.values), problems, conflicts)


def _letter(value: bytes | None, headers: Headers) -> tuple[Any, ...]:
    named = {name: (text or b"").decode(errors="replace") for name, text in headers}
    optional = named.keys() - _HEADERS - {"field"}
    if len(named) != len(headers) or not _HEADERS <= named.keys() or optional not in (set(), _OF_WHOLE):
        raise MalformedSummary("its headers are not those of a dead letter")
    if named["reason"] not in (*REASONS, CONFLICTING):
        raise MalformedSummary("its reason is none of ours")
    numbers = [_decimal(named[name]) for name in ("partition", "offset", "line")]
    whole = (_decimal(named["size"]), named["sha256"]) if optional else None
    digest = _letter_digest(value or b"", whole)
    return (named["topic"], *numbers, named["reason"], named.get("field"), digest)


def record_digest(record: bytes) -> bytes:
    """What the letter of a rejected record has to say of it: all of its bytes, or of a long one its head and the rest
    by size and hash."""
    if len(record) <= _WHOLE_BYTES_MAX:
        return _letter_digest(record, None)
    return _letter_digest(record[:_HEAD_BYTES], (len(record), hashlib.sha256(record).hexdigest()))


def _letter_digest(value: bytes, whole: tuple[int, str] | None) -> bytes:
    digest = hashlib.sha256(value)
    if whole is not None:
        digest.update(f"\n{whole[0]} {whole[1]}".encode())
    return digest.digest()


def _decimal(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 18 and (text == "0" or text[0] != "0")):
        raise MalformedSummary("a header that must be a number is not")
    return int(text)
