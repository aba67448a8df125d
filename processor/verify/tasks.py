"""The audit's work on what is not read together with others: lines and messages that the judge looks at one by one,
and dead letters. What runs in other processes where there is much of it.

    rejects-N.parquet    one row for each record that is refused
    digests-N.parquet    one for each record that may be a duplicate with a dead letter: of its bytes
    letters-N.parquet    one for each dead letter
    records-N, sums-N, usage-N, kept-N: of `tally`

Texts are columns of bytes: equal means equal bytes, and a NUL in a name is a byte as any other.
"""

import hashlib
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tokenometer.processor.broker import Headers, Place
from tokenometer.processor.broker.registry import Registry
from tokenometer.processor.secret import Secret, reveal
from tokenometer.processor.verify.decode import AuditDecoder
from tokenometer.processor.verify.judge import Judge, Judged, SkippedRecord
from tokenometer.processor.verify.live import MalformedSummary
from tokenometer.processor.verify.native import NUMBERS, TEXTS, Ints, Texts, joined
from tokenometer.processor.verify.quick import Left
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
_ADDED = [(name, pa.int64()) for name in NUMBERS]
RECORDS = pa.schema(
    [
        *_AT,
        *(("line", pa.int64()), ("generation", pa.int64()), ("window_start", pa.int64())),
        *((name, _BYTES) for name in TEXTS),
        *_ADDED,
        ("grows", pa.bool_()),
        ("context", pa.bool_()),
    ]
)
SUMS = pa.schema([("window_start", pa.int64()), *((name, _BYTES) for name in (*_TEXTS, "labels")),
                  ("records", pa.int64()), *_ADDED])  # fmt: skip
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
    "sums": SUMS,
    "rejects": REJECTS,
    "digests": DIGESTS,
    "usage": USAGE,
    "kept": USAGE,
    "letters": LETTERS,
}
_REPEATING = [*_TEXTS, "prefill_chip", "labels", "part", "reason", "field"]  # columns that are worth a dictionary


class Message(NamedTuple):
    """One that is no lines, or may not be."""

    number: int  # in its chunk
    value: bytes | None
    key: bytes | None
    headers: Headers


class LogTask(NamedTuple):
    """What is for the judge of a chunk of an input partition."""

    place: int
    lines: list[Left]
    messages: list[Message]
    offsets: Ints  # of all messages of the chunk
    times: Ints
    mapping: Mapping
    max_future_skew_ms: int
    max_past_ms: int | None
    lettered: Ints  # offsets of messages with a dead letter that says `conflicting_duplicate`
    schema: bytes | None = None  # of the mapping's values
    registry: tuple[tuple[str, str | Secret], ...] | None = None  # its settings, where values name their schemas


class Judgements(NamedTuple):
    """Records that count, unless they are duplicates, as columns; of each its message's number and its own in that."""

    texts: list[Texts]  # by native.TEXTS
    times: Ints
    numbers: Ints  # of each record native.NUMBERS
    messages: Ints
    lines: Ints


class LogResult(NamedTuple):
    counting: Judgements | None
    empty: int
    skipped: int
    refused: list[tuple[Any, ...]]  # rows of REJECTS
    digests: list[tuple[Any, ...]]  # rows of DIGESTS


class LetterChunk(NamedTuple):
    """Messages of a partition of the dead letters."""

    number: int  # of the chunk; its file bears it
    folder: str
    place: Place
    values: list[bytes | None]
    offsets: list[int]
    headers: list[Headers]


class LetterResult(NamedTuple):
    problems: list[Problem]
    conflicts: list[tuple[Place, int]] = []  # offsets of what letters of conflicting duplicates speak of


def write(folder: str, kind: str, number: int, rows: Sequence[Sequence[Any]]) -> None:
    """Writes rows as one file."""
    _write(folder, kind, number, list(zip(*rows, strict=True)))


def write_repeated(
    folder: str, number: int, place: int, grows: bool, context: np.ndarray[Any, np.dtype[np.bool_]], records: pa.Table
) -> None:
    """Records that may be duplicates, or have one. context: which of them are no part of the audit themselves."""
    count = len(records)
    constants = {"place": np.full(count, place, np.int32), "grows": np.full(count, grows), "context": context}
    write_table(folder, "records", number, pa.table({**{name: records[name] for name in records.column_names},
                                                     **constants}))  # fmt: skip


def _write(folder: str, kind: str, number: int, columns: Sequence[Any]) -> None:
    schema = SCHEMAS[kind]
    arrays = [pa.array(values, item.type) for values, item in zip(columns, schema, strict=True)]
    write_table(folder, kind, number, pa.Table.from_arrays(arrays, schema=schema))


def write_table(folder: str, kind: str, number: int, table: pa.Table) -> str:
    """Columns of this kind, among others. Returns the file."""
    file = f"{folder}/{kind}-{number}.parquet"
    table = table.select(SCHEMAS[kind].names).cast(SCHEMAS[kind])
    repeating = [name for name in _REPEATING if name in table.column_names]
    pq.write_table(table, file, compression="none", use_dictionary=repeating, write_statistics=False)
    return file


# --- The log ---


@lru_cache(maxsize=16)
def judge_of(mapping: Mapping, max_future_skew_ms: int, max_past_ms: int | None) -> Judge:
    return Judge(mapping, max_future_skew_ms, max_past_ms)


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


def judge(task: LogTask) -> LogResult:
    return _LogReader(task).read()


class _LogReader:
    """Judges lines, and messages that may be anything."""

    def __init__(self, task: LogTask) -> None:
        self._task = task
        self._judge = judge_of(task.mapping, task.max_future_skew_ms, task.max_past_ms)
        self._lettered = set(task.lettered.tolist())
        self._records: list[Judged] = []
        self._records_at: list[tuple[int, int]] = []
        self._refused: list[tuple[Any, ...]] = []
        self._digests: list[tuple[Any, ...]] = []  # a duplicate that says something else becomes a dead letter
        self._empty = self._skipped = 0

    def read(self) -> LogResult:
        for message, number, line in self._task.lines:
            self._read_line(message, number, line, None)
        for each in self._task.messages:
            self._read_message(each)
        found = _columns(self._records, self._records_at) if self._records else None
        return LogResult(found, self._empty, self._skipped, self._refused, self._digests)

    def _read_line(
        self, message: int, number: int, line: bytes, whole: "_Message | None", failure: str | None = None
    ) -> None:
        """whole: None where a letter holds the line itself."""
        place, offset = self._task.place, int(self._task.offsets[message])
        try:
            if failure is not None:
                raise RefusedRecord(failure)
            record = self._judge(line, int(self._task.times[message]))
        except SkippedRecord:
            self._skipped += 1
            return
        except RefusedRecord as why:
            digest = whole.digest(number, line, rejected=True) if whole else record_digest(line)
            self._refused.append((place, offset, number, why.reason, why.field, digest))
            return
        if record is None:
            self._empty += 1
            return
        self._records.append(record)
        self._records_at.append((message, number))
        if offset in self._lettered:
            digest = whole.digest(number, line, rejected=False) if whole else record_digest(line)
            self._digests.append((place, offset, number, digest))

    def _read_message(self, message: Message) -> None:
        task = self._task
        decode = _decoder(task.mapping.value, task.schema, task.registry)
        decoded = decode(message.value, message.key, message.headers)
        lines = decoded.lines or [b""]
        whole = _Message(message.value, len(lines))
        for number, line in enumerate(lines):
            self._read_line(message.number, number, line, whole, decoded.failure)


def _columns(records: Sequence[Judged], at: Sequence[tuple[int, int]]) -> Judgements:
    request_id, scope, times, *others = zip(*records, strict=True)
    names, labels = others[:4], others[4 + len(COUNTERS)]
    numbers = [*others[4 : 4 + len(COUNTERS)], *others[5 + len(COUNTERS) :]]
    texts = [joined([[None if text is None else text.encode() for text in column]])
             for column in (request_id, scope, *names, labels)]  # fmt: skip
    messages, lines = np.array(at, np.int64).T
    return Judgements(texts, np.array(times, np.int64), np.array(numbers, np.int64).T, messages, lines)


# --- Dead letters ---

_WHOLE_BYTES_MAX, _HEAD_BYTES = 900 << 10, 64 << 10  # of a letter's value; docs/RECORDS.md
_COPIES_BYTES_MAX = 1 << 20  # of a message in all letters of its records

_HEADERS = {"reason", "topic", "partition", "offset", "line"}
_OF_WHOLE = {"size", "sha256"}  # of a record whose letter has only its head


def read_letters(chunk: LetterChunk) -> LetterResult:
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
    return LetterResult(problems, conflicts)


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
