"""The audit's C++: audit.cpp, built at first use, and its tables as Python sees them.

Nothing is decided here. `quick` and `usage` say what lines mean, `tally` what is done with the sums. Each call releases
the interpreter's lock; a table belongs to one thread at a time.
"""

import ctypes
import functools
import pathlib
import weakref
from collections.abc import Container, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from tokenometer.processor.broker import Column
from tokenometer.processor.verify.values import COUNTERS, FURTHER, OUTPUT, PARENTS
from tokenometer.schemas import compiled

_SOURCE = pathlib.Path(__file__).with_name("audit.cpp")
TEXTS = ("request_id", "scope", "user", "model", "chip", "prefill_chip", "labels")  # as in plan.h
NUMBERS = (*COUNTERS, *FURTHER)
LEFT, COUNTED, SKIPPED = range(3)

Ints = np.ndarray[Any, np.dtype[np.int64]]
Marks = np.ndarray[Any, np.dtype[np.uint64]]
RowNumbers = np.ndarray[Any, np.dtype[np.uint32]]
NO_ROW = (1 << 32) - 1
_LINE = np.dtype([("begin", np.uint64), ("end", np.uint64), ("message", np.uint32), ("number", np.uint32)])
_SAMPLE = np.dtype([("begin", np.uint64), ("end", np.uint64), ("message", np.uint32), ("plan", np.uint32),
                    ("skipped", np.uint32), ("spare", np.uint32)])  # fmt: skip


class _Text(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("size", ctypes.c_uint64)]


class _Answer(ctypes.Structure):
    _fields_ = [("time", ctypes.c_int64), ("numbers", ctypes.c_uint64 * len(NUMBERS)), ("texts", _Text * len(TEXTS))]


class _Outcome(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("counted", "skipped", "left", "left_count", "samples", "count")]


def _pointers(*names: str) -> list[tuple[str, Any]]:
    return [(name, ctypes.c_void_p) for name in names]


class _Messages(ctypes.Structure):
    _fields_ = [
        *_pointers("text", "begins", "lengths", "times", "offsets", "generations", "lines"),
        ("count", ctypes.c_uint64),
    ]


class _Pairs(ctypes.Structure):
    _fields_ = [
        *_pointers("keys", "values", "key_begins", "key_lengths", "value_begins", "value_lengths", "offsets"),
        ("count", ctypes.c_uint64),
    ]


class _Columns(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p * len(TEXTS)) for name in ("text", "begins", "lengths")),
        *_pointers("times", "numbers", "offsets", "generations", "lines"),
        ("count", ctypes.c_uint64),
    ]


class _Log(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("size", ctypes.c_uint64), *_pointers("ends", "marks"),
                ("entries", ctypes.c_uint64)]  # fmt: skip


class _Export(ctypes.Structure):
    _fields_ = _pointers("windows", "records", "numbers", "lengths", "texts", "offsets", "places", "parts")


class _LogExport(ctypes.Structure):
    _fields_ = _pointers("offsets", "generations", "lines", "numbers", "lengths", "texts")


# --- Texts in one buffer ---


class Texts(NamedTuple):
    """Of some messages. lengths: -1 where there is none."""

    data: np.ndarray[Any, np.dtype[np.uint8]]
    begins: Ints
    lengths: Ints

    def at(self, number: int) -> bytes | None:
        begin, length = int(self.begins[number]), int(self.lengths[number])
        return None if length < 0 else self.data[begin : begin + length].tobytes()

    def are_first(self, byte: bytes) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which texts begin with this byte."""
        found = self.lengths > 0
        found[found] = self.data[self.begins[found]] == byte[0]
        return found

    def between(self, begin: int, end: int) -> bytes:
        return self.data[begin:end].tobytes()


def joined(some: Sequence[Sequence[bytes | None]]) -> Texts:
    parts = [_texts(each) for each in some]
    if len(parts) == 1:
        return parts[0]
    starts = np.cumsum([0, *(len(part.data) for part in parts[:-1])])
    return Texts(
        np.concatenate([part.data for part in parts]),
        np.concatenate([part.begins + start for part, start in zip(parts, starts, strict=True)]),
        np.concatenate([part.lengths for part in parts]),
    )


def bytes_of(values: Sequence[bytes | None]) -> int:
    """Of all of them together."""
    if isinstance(values, Column):
        return int(np.maximum(values.lengths, 0).sum())
    return sum(map(len, filter(None, values)))


def _texts(values: Sequence[bytes | None]) -> Texts:
    if isinstance(values, Column):
        return Texts(values.data, values.starts, values.lengths)
    if None not in values:
        data = b"".join(values)  # type: ignore[arg-type]
        lengths = np.fromiter(map(len, values), np.int64, len(values))  # type: ignore[arg-type]
    else:
        data = b"".join(value or b"" for value in values)
        lengths = np.array([-1 if value is None else len(value) for value in values], np.int64)
    sizes = np.maximum(lengths, 0)
    return Texts(np.frombuffer(data, np.uint8), np.cumsum(sizes) - sizes, lengths)


# --- Plans ---


class Program:
    """What plan.h reads: numbers, and literals by place and size."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self._literals = bytearray()

    def add(self, *numbers: int) -> None:
        self.numbers += numbers

    def literal(self, text: bytes) -> None:
        self.numbers += len(self._literals), len(text)
        self._literals += text

    def learned_by(self, learn: Any, whose: ctypes.c_void_p) -> int:
        numbers = np.array(self.numbers, np.int64)
        return _checked(learn(whose, _at(numbers), bytes(self._literals)))


class Messages:
    """Messages of a partition. lines: which are lines as they stand there."""

    def __init__(
        self,
        values: Texts,
        times: np.ndarray[Any, Any],
        offsets: Ints,
        generations: Ints,
        lines: np.ndarray[Any, np.dtype[np.bool_]],
    ) -> None:
        self.values, self.times, self.offsets, self.generations = values, times.astype(np.int64), offsets, generations
        arrays = [values.data, values.begins, values.lengths, self.times, offsets, generations, lines]
        self._kept = [np.ascontiguousarray(array) for array in arrays]
        self.struct = _Messages(*map(_at, self._kept), len(values.lengths))


class Outcome(NamedTuple):
    counted: int
    skipped: int
    left: np.ndarray[Any, Any]  # _LINE
    samples: np.ndarray[Any, Any]  # _SAMPLE


class Answer(NamedTuple):
    time: int
    numbers: list[int]
    texts: list[bytes | None]


class Records:
    """Records of a chunk that count: on their way to `Expected`, and into a log of those that may have duplicates."""

    def __init__(self, window_ms: int, seed: int) -> None:
        library = _library()
        self.pointer = _owned(library.records_new(window_ms, seed), library.records_free, self)

    def __len__(self) -> int:
        return int(_library().records_count(self.pointer))

    def add(
        self, texts: Sequence[Texts], times: Ints, numbers: Ints, offsets: Ints, generations: Ints, lines: Ints
    ) -> None:
        """numbers: of each record one after another."""
        many = ctypes.c_void_p * len(TEXTS)
        columns = [[np.ascontiguousarray(text[part]) for text in texts] for part in range(3)]
        arrays = [np.ascontiguousarray(array, np.int64) for array in (times, numbers, offsets, generations, lines)]
        struct = _Columns(*(many(*map(_at, column)) for column in columns), *map(_at, arrays), len(times))
        _checked(_library().records_add(self.pointer, ctypes.byref(struct)))

    @property
    def logged(self) -> int:
        """How many are in the log."""
        return int(self._log().entries)

    def write_log(self, file: Any) -> tuple[Marks, Marks]:
        """Writes it. Returns where each record ends in it, and their marks."""
        log = self._log()
        if log.size:
            file.write((ctypes.c_char * log.size).from_address(log.data))
        return _copied(log.ends, log.entries, np.uint64), _copied(log.marks, log.entries, np.uint64)

    def _log(self) -> _Log:
        log = _Log()
        _library().records_log(self.pointer, ctypes.byref(log))
        return log

    def clear(self) -> None:
        _library().records_clear(self.pointer)


class Expected:
    """By window, user, model, chip and labels: the sums over the log's records."""

    def __init__(self) -> None:
        library = _library()
        self.pointer = _owned(library.expected_new(), library.expected_free, self)

    @property
    def size(self) -> int:
        """In bytes."""
        return int(_library().expected_bytes(self.pointer))

    @property
    def is_full(self) -> bool:
        """Whether another chunk of records could be too much for a sum."""
        return bool(_library().expected_is_full(self.pointer))

    def __len__(self) -> int:
        return int(_library().expected_count(self.pointer))

    def add(self, records: Records, is_context: bool = False) -> RowNumbers:
        """is_context: whether they are only there for later ones to be their duplicates. Returns the number of the row
        of each record in the log, and of its prefill chip's row or NO_ROW."""
        rows = np.empty((records.logged, 2), np.uint32)
        _checked(_library().expected_add(self.pointer, records.pointer, is_context, _at(rows)))
        return rows

    def touch(self, rows: np.ndarray[Any, Any]) -> None:
        """These are never taken to agree."""
        numbers = np.ascontiguousarray(rows, np.uint32)
        _library().expected_touch(self.pointer, _at(numbers), len(numbers))

    def table(self, rows: np.ndarray[Any, Any] | None = None) -> pa.Table:
        """These rows; without any, all that do not agree."""
        numbers = None if rows is None else np.ascontiguousarray(rows, np.uint32)
        return _exported(
            lambda count, to: _library().expected_export(self.pointer, _at(numbers), count, to),
            len(self) if numbers is None else len(numbers),
        )

    def clear(self) -> None:
        _library().expected_clear(self.pointer)


class Found:
    """By the same and the part: the last row that was published."""

    def __init__(self, seed: int) -> None:
        library = _library()
        self.pointer = _owned(library.found_new(seed), library.found_free, self)

    @property
    def size(self) -> int:
        """In bytes."""
        return int(_library().found_bytes(self.pointer))

    def __len__(self) -> int:
        return int(_library().found_count(self.pointer))

    def add(self, window: int, offset: int, place: int, texts: Sequence[bytes], numbers: Sequence[int]) -> None:
        """texts: user, model, chip, labels, part."""
        pointers = (ctypes.c_char_p * 5)(*texts)
        sizes = (ctypes.c_uint64 * 5)(*map(len, texts))
        added = (ctypes.c_uint64 * len(NUMBERS))(*numbers)
        _checked(_library().found_add(self.pointer, window, offset, place, pointers, sizes, added))

    def parts(self) -> list[bytes]:
        library, size = _library(), ctypes.c_uint64()
        return [
            ctypes.string_at(library.found_part(self.pointer, number, ctypes.byref(size)), size.value)
            for number in range(library.found_parts(self.pointer))
        ]

    def table(self, of_parts: Container[bytes] | None = None) -> pa.Table:
        """All that do not agree; or all of these parts."""
        some = None if of_parts is None else np.array([part in of_parts for part in self.parts()], np.uint8)
        table = _exported(lambda count, to: _library().found_export(self.pointer, _at(some), count, to), len(self))
        return table.set_column(
            table.schema.get_field_index("part"), "part", pa.array(self.parts(), pa.binary()).take(table["part"])
        )

    def agree(self, expected: Expected) -> tuple[int, dict[bytes, list[int]]]:
        """How many rows of the log agree; of each part, what its rows of those add up to."""
        parts = self.parts()
        sums = np.zeros((len(parts), len(NUMBERS), 2), np.uint64)
        rows = _checked(_library().agree_all(expected.pointer, self.pointer, _at(sums)))
        return rows, {
            part: [int(low) + (int(high) << 64) for low, high in of_part]
            for part, of_part in zip(parts, sums, strict=True)
        }

    def clear(self) -> None:
        _library().found_clear(self.pointer)


class Lines:
    """Plans of lines of one mapping."""

    def __init__(self, max_future_skew_ms: int, max_past_ms: int | None, not_before_ms: int) -> None:
        library = _library()
        past = -1 if max_past_ms is None else max_past_ms
        self._pointer = _owned(library.judge_new(max_future_skew_ms, past, not_before_ms), library.judge_free, self)

    def learn(self, program: Program) -> int:
        return program.learned_by(_library().judge_learn, self._pointer)

    def forget(self) -> None:
        """The plan that was learned last."""
        _library().judge_forget(self._pointer)

    def judge(self, plan: int, line: bytes, time: int) -> tuple[int, Answer]:
        found = _Answer()
        verdict = _checked(_library().judge_try(self._pointer, plan, line, len(line), time, ctypes.byref(found)))
        if verdict != COUNTED:
            return verdict, Answer(0, [], [])
        texts = [None if text.size == (1 << 64) - 1 else ctypes.string_at(text.data or 0, text.size) if text.size
                 else b"" for text in found.texts]  # fmt: skip
        return verdict, Answer(found.time, list(found.numbers), texts)

    def read(self, records: Records, messages: Messages, only_left: bool = False) -> Outcome:
        """Adds what surely counts. only_left: just the lines that were left, by the plan that was learned last."""
        library, outcome = _library(), _Outcome()
        read = library.judge_read_left if only_left else library.judge_read
        _checked(read(self._pointer, records.pointer, ctypes.byref(messages.struct), ctypes.byref(outcome)))
        left = _copied(outcome.left, outcome.left_count, _LINE)
        return Outcome(outcome.counted, outcome.skipped, left, _copied(outcome.samples, outcome.count, _SAMPLE))


class Rows:
    """Plans of rows of token-usage."""

    def __init__(self, window_ms: int) -> None:
        library = _library()
        self._pointer = _owned(library.rows_new(window_ms), library.rows_free, self)

    def learn(self, program: Program) -> int:
        return program.learned_by(_library().rows_learn, self._pointer)

    def forget(self) -> None:
        _library().rows_forget(self._pointer)

    def takes(self, plan: int, key: bytes, value: bytes) -> bool:
        return bool(_checked(_library().rows_try(self._pointer, plan, key, len(key), value, len(value))))

    def read(self, found: Found, keys: Texts, values: Texts, offsets: Ints, place: int, first: int = 0) -> Any:
        """Adds what surely is a row. first: the first plan that is asked, about what was left before, if it is above 0.
        Returns which messages are left."""
        arrays = [keys.data, values.data, keys.begins, keys.lengths, values.begins, values.lengths, offsets]
        kept = [np.ascontiguousarray(array) for array in arrays]
        pairs, left = _Pairs(*map(_at, kept), len(offsets)), ctypes.c_void_p()
        count = _checked(
            _library().rows_read(self._pointer, found.pointer, ctypes.byref(pairs), place, first, ctypes.byref(left))
        )
        return _copied(left.value, count, np.uint32).astype(np.int64)


def logged(data: np.ndarray[Any, np.dtype[np.uint8]], ends: Marks, entries: Ints) -> dict[str, Any]:
    """Some records of a log, as columns."""
    count = len(entries)
    names = ("log_offset", "generation", "line")
    columns = {name: np.empty(count, np.int64) for name in names}
    numbers, lengths = np.empty((count, len(NUMBERS)), np.uint64), np.empty((count, 2), np.int64)
    ends, entries = np.ascontiguousarray(ends), np.ascontiguousarray(entries)
    to = _LogExport(*map(_at, columns.values()), _at(numbers), _at(lengths), None)
    arguments = (_at(data), _at(ends), _at(entries), count, ctypes.byref(to))
    texts = np.empty(_library().log_export(*arguments), np.uint8)
    to.texts = _at(texts)
    _library().log_export(*arguments)
    ids, scopes = _text_columns(texts, lengths)
    return {
        **columns,
        "request_id": ids,
        "scope": scopes,
        **{name: numbers[:, at] for at, name in enumerate(NUMBERS)},
    }


def _exported(export: Any, most: int) -> pa.Table:
    """export: called twice, first to learn how large the texts are."""
    windows, records, offsets, places, parts = (np.zeros(most, np.int64) for _ in range(5))
    numbers, lengths = np.empty((most, len(NUMBERS)), np.uint64), np.empty((most, 4), np.int64)
    to = _Export(*map(_at, (windows, records, numbers, lengths)), None, *map(_at, (offsets, places, parts)))
    count = ctypes.c_uint64(most)
    texts = np.empty(export(ctypes.byref(count), ctypes.byref(to)), np.uint8)
    to.texts = _at(texts)
    export(ctypes.byref(count), ctypes.byref(to))
    some = slice(0, count.value)
    named = zip(("user", "model", "chip", "labels"), _text_columns(texts, lengths[some]), strict=True)
    return pa.table(
        {
            "window_start": windows[some],
            **dict(named),
            "records": records[some],
            "log_offset": offsets[some],
            "place": places[some],
            "part": parts[some],
            **{name: numbers[some, at] for at, name in enumerate(NUMBERS)},
        }
    )


def _text_columns(texts: np.ndarray[Any, np.dtype[np.uint8]], lengths: Ints) -> list[pa.Array]:
    """lengths: of each row some texts, one after another; -1 where there is none."""
    sizes = np.maximum(lengths, 0)
    ends = np.cumsum(sizes.ravel())
    begins = np.concatenate((np.zeros(1, np.int64), ends))
    whole = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), lengths.size, [None, pa.py_buffer(begins), pa.py_buffer(texts)]
    )
    columns = []
    for at in range(lengths.shape[1]):
        rows = np.arange(at, lengths.size, lengths.shape[1])
        absent = lengths[:, at] < 0
        columns.append(whole.take(pa.array(rows, mask=absent)).cast(pa.binary()))
    return columns


# --- The library ---


def require() -> None:
    """Raises BuildError where there is no compiler."""
    _library()


def _at(array: np.ndarray[Any, Any] | None) -> int | None:
    return None if array is None else array.ctypes.data


def _copied(address: int | None, count: int, kind: Any) -> np.ndarray[Any, Any]:
    kind = np.dtype(kind)
    return np.frombuffer(ctypes.string_at(address, count * kind.itemsize) if address and count else b"", kind)


def _checked(answer: int) -> int:
    if answer < 0:
        raise MemoryError("no memory for the audit's tables")
    return int(answer)


def _owned(address: int | None, free: Any, owner: object) -> ctypes.c_void_p:
    if not address:
        raise MemoryError("no memory for the audit's tables")
    pointer = ctypes.c_void_p(address)
    weakref.finalize(owner, free, pointer)
    return pointer


@functools.cache
def _library() -> Any:
    library = ctypes.CDLL(str(compiled.build_shared(_SOURCE)))
    p, u64, i64, u32, i32 = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int64, ctypes.c_uint32, ctypes.c_int32
    entries: dict[str, tuple[Any, list[Any]]] = {
        "judge_new": (p, [i64, i64, i64]), "judge_free": (None, [p]), "judge_learn": (i64, [p, p, p]),
        "judge_forget": (None, [p]), "judge_try": (i64, [p, u32, p, u64, i64, p]), "judge_read": (i64, [p, p, p, p]),
        "judge_read_left": (i64, [p, p, p, p]), "records_new": (p, [i64, u64]), "records_free": (None, [p]),
        "records_clear": (None, [p]), "records_count": (u64, [p]), "records_add": (i64, [p, p]),
        "records_log": (None, [p, p]), "expected_new": (p, []), "expected_free": (None, [p]),
        "expected_bytes": (u64, [p]), "expected_count": (u64, [p]), "expected_is_full": (i64, [p]),
        "expected_clear": (None, [p]), "expected_add": (i64, [p, p, i32, p]), "expected_touch": (None, [p, p, u64]),
        "expected_export": (u64, [p, p, p, p]), "found_new": (p, [u64]), "found_free": (None, [p]),
        "found_bytes": (u64, [p]), "found_count": (u64, [p]), "found_clear": (None, [p]), "found_parts": (u64, [p]),
        "found_part": (p, [p, u64, p]), "found_add": (i64, [p, i64, i64, i32, p, p, p]),
        "found_export": (u64, [p, p, p, p]), "rows_new": (p, [i64]), "rows_free": (None, [p]),
        "rows_learn": (i64, [p, p, p]), "rows_forget": (None, [p]), "rows_try": (i64, [p, u32, p, u64, p, u64]),
        "rows_read": (i64, [p, p, p, i32, u32, p]),
        "layout": (u64, [p]), "agree_all": (i64, [p, p, p]), "log_export": (u64, [p, p, p, u64, p]),
    }  # fmt: skip
    for name, (answer, arguments) in entries.items():
        entry = getattr(library, name)
        entry.restype, entry.argtypes = answer, arguments
    _check_layout(library)
    return library


def _check_layout(library: Any) -> None:
    """A counter that one of the two does not know would be read as another one."""
    structs = _Messages, _Outcome, _Answer, _Pairs, _Columns, _Log, _Export, _LogExport
    sizes = [ctypes.sizeof(struct) for struct in structs]
    wanted = [*sizes[:2], _LINE.itemsize, _SAMPLE.itemsize, *sizes[2:], len(NUMBERS), len(TEXTS)]
    wanted += [NUMBERS.index(parent) for parent in PARENTS.values()]
    wanted += [int(name in OUTPUT) for name in NUMBERS]
    found = np.zeros(64, np.uint64)
    count = library.layout(_at(found))
    assert found[:count].tolist() == wanted, "audit.cpp has other numbers than values.py"
