"""Messages to columns and summaries. Pure: bytes in, values out, or an error that names topic, partition and offset.

    values ── Arrow's JSON reader ──> columns ── all as the schema says ──> UsageRows
                    │                    │
                    └──── in doubt ──────┴──> orjson and the schema's rules, row by row: the culprit, or columns

No Python step for each row on the first way. Whatever is odd there (another layout, a missing field, a number that is
none) is judged on the second, so the two agree on what a row says, and only the second knows how to complain.
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from tokenometer.processor.broker import Messages, Place
from tokenometer.processor.ledger import labels
from tokenometer.processor.ledger.values import (
    NAME_BYTES_MAX,
    U64_END,
    Coded,
    CodedLabels,
    LedgerRows,
    LedgerSummary,
    Malformed,
    UnknownSchema,
    are_names,
)
from tokenometer.schemas.usage import COUNTERS, FURTHER, FURTHER_PARENTS, PARENTS, TOTAL, Usage, total_of

_TEXTS = ("user", "model", "chip", "part")
_TABLE = pa.schema(
    [
        ("window_start", pa.string()),
        *((name, pa.string()) for name in _TEXTS),
        ("window_ms", pa.int64()),
        *((name, pa.uint64()) for name in (*COUNTERS, TOTAL)),
        ("schema", pa.int64()),
    ]
)
_REQUIRED = frozenset(_TABLE.names)
_WHOLE = pa.schema([*_TABLE, *((name, pa.uint64()) for name in FURTHER)])
_OPTIONAL = frozenset(("labels", *FURTHER))
_VERSIONS = (1, 2)  # of rows; 2 has labels and further counters
_LIVE_VERSIONS = (1,)
_READ = pj.ReadOptions(block_size=8 << 20)
# What the labels are called is the mapping's to say, so their columns are found in the rows.
_PARSE = pj.ParseOptions(explicit_schema=_WHOLE, unexpected_field_behavior="infer")
_WINDOW = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)
_NAME = re.compile(r"[0-9A-Za-z._:-]{1,128}", re.ASCII)
_WINDOW_MS_END = 1 << 53


class _Doubt(Exception):
    """Not surely a batch of valid rows."""


# --- Usage rows ---


def usage_rows(polled: Sequence[Messages]) -> LedgerRows | None:
    """The rows of messages of token-usage; None: there are none. A tombstone is no row: it takes one from the topic,
    not from the books."""
    values = [value for value in itertools.chain.from_iterable(m.values for m in polled) if value is not None]
    if not values:
        return None
    try:
        return _columns(_read(values))
    except (_Doubt, pa.ArrowInvalid, UnicodeDecodeError):
        rows = [_row(value, _at(place, offset)) for place, offset, value in _there(polled)]
        names = sorted({name for row in rows for name in row.get("labels") or ()})
        labelled = _with_labels(names) if names else _WHOLE
        return _columns(pa.Table.from_pylist(rows, labelled))


def of_table(table: Any, where: str) -> LedgerRows:
    """The rows of a table that has the fields of a row as columns. Raises Malformed."""
    missing = [name for name in _REQUIRED if name not in table.column_names]
    unknown = set(table.column_names) - _REQUIRED - _OPTIONAL
    if missing or unknown:
        name = min(missing or unknown)
        raise Malformed(f"{where}: {'no' if missing else 'an unknown'} column {name}")
    try:
        for name in FURTHER:
            if name not in table.column_names:
                table = table.append_column(name, pa.nulls(len(table), pa.uint64()))
        if any(table[name].null_count for name in _REQUIRED):
            raise _Doubt
        return _columns(table.cast(_cast_of(table.schema)).combine_chunks())
    except (_Doubt, pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError):
        raise Malformed(f"{where}: not usage rows: a value is none, or counters contradict each other") from None


def _cast_of(schema: Any) -> Any:
    kinds = {field.name: field for field in _WHOLE}
    if "labels" in schema.names:
        if not labels.is_column(kind := schema.field("labels").type):
            raise _Doubt
        kinds["labels"] = pa.field("labels", pa.struct([(field.name, pa.string()) for field in kind]))
    return pa.schema([kinds.get(field.name, field) for field in schema])


def _with_labels(names: Sequence[str]) -> Any:
    return _WHOLE.append(pa.field("labels", pa.struct([(name, pa.string()) for name in names])))


def _there(polled: Sequence[Messages]) -> Iterator[tuple[Place, int, bytes]]:
    for messages in polled:
        for offset, value in zip(messages.offsets.tolist(), messages.values, strict=True):
            if value is not None:
                yield messages.place, offset, value


def _at(place: Place, offset: int) -> str:
    return f"{place.topic}, partition {place.partition}, offset {offset}"


def _read(values: list[bytes]) -> Any:
    """Arrow's reader takes one object a line, and crashes on some lines that are no objects."""
    text = b"\n".join(values)
    data = np.frombuffer(text, np.uint8)
    lengths = np.fromiter(map(len, values), np.int64, len(values))
    ends = np.cumsum(lengths + 1) - 1
    if lengths.min() < 2 or np.count_nonzero(data == 0x0A) != len(values) - 1:
        raise _Doubt
    if (data[ends - lengths] != ord("{")).any() or (data[ends - 1] != ord("}")).any():
        raise _Doubt
    table = _parsed(text)
    if len(table) != len(values) or any(table[name].null_count for name in _REQUIRED):
        raise _Doubt
    table = table.combine_chunks()
    # What has no label has no object of labels, and what is 0 is not there.
    if any(pc.min(table[name]).as_py() == 0 for name in FURTHER if table[name].null_count < len(table)):
        raise _Doubt
    if "labels" in table.column_names and labels.has_empty(_one_chunk(table["labels"])):
        raise _Doubt
    return table


def _parsed(text: bytes) -> Any:
    table = pj.read_json(pa.BufferReader(text), read_options=_READ, parse_options=_PARSE)
    if unknown := set(table.column_names) - _REQUIRED - _OPTIONAL:
        raise _Doubt(unknown)
    if "labels" not in table.column_names:
        return table
    kind = table.schema.field("labels").type
    if not pa.types.is_struct(kind):
        raise _Doubt
    if all(pa.types.is_string(field.type) for field in kind):
        return table
    # A text that looks like a time was read as one: again, as what it is.
    explicit = _with_labels([field.name for field in kind])
    options = pj.ParseOptions(explicit_schema=explicit, unexpected_field_behavior="error")
    return pj.read_json(pa.BufferReader(text), read_options=_READ, parse_options=options)


def _columns(table: Any) -> LedgerRows:
    counters = [table[name].to_numpy() for name in COUNTERS]
    further = _further(table)
    if not _consistent(counters, table["total_tokens"].to_numpy(), further):
        raise _Doubt
    versions, windows = (table[name].to_numpy() for name in ("schema", "window_ms"))
    if not np.isin(versions, _VERSIONS).all() or (windows < 1000).any() or (windows % 1000 != 0).any():
        raise _Doubt
    starts, (user, model, chip, part) = _coded(table["window_start"]), (_coded(table[name]) for name in _TEXTS)
    if not all(are_names(column.names) for column in (user, model, chip)):
        raise _Doubt
    if not all(_NAME.fullmatch(name.decode()) for name in part.names):
        raise _Doubt
    times = np.array([_window_ms(text.decode()) for text in starts.names], np.int64)
    found = None
    if "labels" in table.column_names:
        found = labels.coded(_one_chunk(table["labels"]))
        if not labels.checked(found):
            raise _Doubt
    if (found or further) and (versions == 1).any():
        _check_old(versions == 1, found, further)
    of_parts = _of_parts(part, windows)
    return LedgerRows(times[starts.codes], user, model, chip, part, of_parts, counters, found, further)


def _further(table: Any) -> list[Any]:
    """None of them, where all are 0."""
    columns = [table[name] for name in FURTHER]
    if all(column.null_count == len(column) for column in columns):
        return []
    found = [pc.fill_null(column, 0).to_numpy() for column in columns]
    return found if any(values.any() for values in found) else []


def _check_old(old: Any, found: CodedLabels | None, further: Sequence[Any]) -> None:
    """Version 1 has no labels and no further counters."""
    if found is not None and (found.sizes()[found.codes[old]] > 0).any():
        raise _Doubt
    if any(values[old].any() for values in further):
        raise _Doubt


def _one_chunk(column: Any) -> Any:
    whole = column.combine_chunks()
    return pa.concat_arrays(whole.chunks) if isinstance(whole, pa.ChunkedArray) else whole


def _coded(column: Any) -> Coded:
    encoded = pc.dictionary_encode(_one_chunk(column))
    return Coded(encoded.indices.to_numpy(), labels.names_of(encoded.dictionary))


def _consistent(counters: list[Any], total: Any, further: Sequence[Any] = ()) -> bool:
    """What is a part of a number is no more than it, and sums do not wrap."""
    held = dict(zip(COUNTERS, counters, strict=True))
    left = {name: held[name] for name in PARENTS.values()}  # of each total, once its parts are taken away
    within = total_of(counters) == total
    for part, parent in PARENTS.items():
        within &= held[part] <= left[parent]
        left[parent] = left[parent] - held[part]
    for values, parent in zip(further, FURTHER_PARENTS.values() if further else (), strict=True):
        within &= values <= held[parent]
    return bool((within & (total >= held[next(iter(left))])).all())


def _of_parts(part: Coded, windows: np.ndarray[Any, np.dtype[np.int64]]) -> list[int]:
    """Each part has windows of one length."""
    found = np.zeros(len(part.names), np.int64)
    found[part.codes] = windows
    if (found[part.codes] != windows).any():
        raise _Doubt
    return [int(length) for length in found]


def _window_ms(text: str) -> int:
    if not _WINDOW.fullmatch(text):
        raise _Doubt
    try:
        return int(datetime.fromisoformat(text).timestamp()) * 1000
    except ValueError:
        raise _Doubt from None


def _row(value: bytes, where: str) -> dict[str, Any]:
    """One row by the rules of schemas/usage.schema.json."""
    row = _object(value, where)
    _check_version(row, where, _VERSIONS)
    row = {name: value for name, value in row.items() if value is not None or name not in _OPTIONAL}
    if wrong := row.keys() ^ _REQUIRED ^ (row.keys() & _OPTIONAL if row["schema"] > 1 else set()):
        name = min(wrong)
        raise Malformed(f"{where}: {'an unknown' if name in row else 'no'} field {name}")
    given = [name for name in FURTHER if name in row]
    if any(row[name] == 0 for name in given):
        raise Malformed(f"{where}: a further counter that is 0 is not there")
    for name in (*COUNTERS, *given, TOTAL, "window_ms"):
        if type(row[name]) is not int or not 0 <= row[name] < (_WINDOW_MS_END if name == "window_ms" else U64_END):
            raise Malformed(f"{where}: {name} is not an unsigned 64-bit integer")
    if row["window_ms"] < 1000 or row["window_ms"] % 1000:
        raise Malformed(f"{where}: window_ms is not a number of whole seconds")
    for name in ("window_start", *_TEXTS):
        if not isinstance(row[name], str):
            raise Malformed(f"{where}: {name} is not a text")
    for name in _TEXTS[:3]:
        if not 0 < len(row[name].encode()) <= NAME_BYTES_MAX:
            raise Malformed(f"{where}: {name} has not 1 to {NAME_BYTES_MAX} bytes")
    if not _NAME.fullmatch(row["part"]):
        raise Malformed(f"{where}: part is not a name")
    try:
        _window_ms(row["window_start"])
    except _Doubt:
        raise Malformed(f"{where}: window_start is not a moment such as 2026-11-23T17:05:00Z") from None
    if "labels" in row and (wrong_labels := labels.fault(row["labels"]) or labels.emptiness(row["labels"])):
        raise Malformed(f"{where}: {wrong_labels}")
    counters, further = ([np.array([row.get(name, 0)], np.uint64) for name in names] for names in (COUNTERS, FURTHER))
    if not _consistent(counters, np.uint64(row[TOTAL]), further):
        raise Malformed(f"{where}: the counters of tokens contradict each other")
    return row


# --- Live summaries ---


def summaries(polled: Sequence[Messages]) -> list[LedgerSummary]:
    return [
        _summary(_object(value, _at(place, offset)), place.partition, _at(place, offset))
        for place, offset, value in _there(polled)
    ]


def _summary(top: dict[str, Any], live_partition: int, where: str) -> LedgerSummary:
    _check_version(top, where, _LIVE_VERSIONS)
    try:
        summary = LedgerSummary(
            meter=_text(top["meter"]),
            part=_text(top["part"]),
            sequence=_count(top["sequence"]),
            window_ms=_count(top["window_ms"]),
            tokens=_tokens(top["tokens"]),
            watermarks={
                Place(_text(each["topic"]), _count(each["partition"])): _optional(each["watermark"])
                for each in top["partitions"]
            },
            live_partition=live_partition,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise Malformed(f"{where}: not a live summary: {error!r}") from None
    return summary


def _tokens(counts: dict[str, Any]) -> Usage:
    return Usage(*(_count(counts[name]) for name in COUNTERS))


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{value!r} is not a text")
    return value


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < U64_END:
        raise ValueError(f"{value!r} is not a counter")
    return value


def _optional(value: Any) -> int | None:
    return None if value is None else _count(value)


# --- Both ---


def _object(value: bytes, where: str) -> dict[str, Any]:
    try:
        top = orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise Malformed(f"{where}: not JSON: {error}") from None
    if not isinstance(top, dict):
        raise Malformed(f"{where}: not a JSON object")
    return top


def _check_version(top: dict[str, Any], where: str, known: Sequence[int]) -> None:
    version = top.get("schema")
    if type(version) is not int or version not in known:
        shown, versions = orjson.dumps(version).decode(), " and ".join(map(str, known))
        raise UnknownSchema(f"{where}: schema version {shown}; this tokenometer knows version {versions}: upgrade it")
