"""Public traces of token counts as records. Every count is the trace's, and the rest is made up from a seed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from tokenometer.processor.load.lines import RECORD, Block, Bools, Format, Ints, Zipf, ids, names, stream
from tokenometer.processor.load.profile import (
    CHIP_NAMES,
    COUNT_LIMIT,
    MODEL_NAMES,
    START_MS,
    STRING_BYTES_MAX,
    TIME_LIMIT_MS,
    Profile,
)
from tokenometer.schemas.errors import TokenometerError
from tokenometer.schemas.usage import TOKENS


class TraceError(TokenometerError, ValueError):
    """A trace file cannot become records. The message says what was expected."""


# Columns of a trace, by the field that they become. Several names for one field: any of them, but only one.
_TRACE_COLUMNS = {
    "timestamp": ("timestamp_ms", "timestamp"),
    "model": ("model",),
    "user": ("client", "prefix_group", "session"),
    "input_tokens": ("input_tokens",),
    "cached_input_tokens": ("cached_input_tokens", "cached_input_tokens_derived"),
    "cache_write_tokens": ("cache_creation_tokens",),
    "output_tokens": ("output_tokens",),
    "reasoning_tokens": ("reasoning_tokens", "reasoning_output_tokens"),
    "": ("provider",),  # not used
}
_TRACE_NEEDED = ("timestamp", "input_tokens", "output_tokens")
_TRACE_HELP = (
    "accepted columns: timestamp_ms (integer) or timestamp (ISO 8601); input_tokens, output_tokens; optional: model; "
    "client, prefix_group or session; cached_input_tokens or cached_input_tokens_derived; cache_creation_tokens; "
    "reasoning_tokens or reasoning_output_tokens; provider (not used)"
)
_TRACE_BLOCK_BYTES = 512 * 1024  # of CSV: 25,000 rows or so, a few MB of records
_EPOCH_MS_MIN = 100_000_000_000  # a trace that begins before March 1973 counts from its own beginning


def from_trace(path: str | Path, **settings: Any) -> Iterator[bytes]:
    """The log of `trace_blocks` in chunks of whole lines."""
    return (bytes(block.data) for block in trace_blocks(path, **settings))


def trace_blocks(
    path: str | Path,
    *,
    seed: int = 1,
    users: int = 50_000,
    chips: int = 6,
    model: str | None = None,
    start_ms: int | None = None,
    repeat: int = 1,
    user_skew: float = 1.1,
) -> Iterator[Block]:
    """Records of the native mapping from a CSV trace (.csv or .csv.zst), with every token count unchanged.

    What traces lack is made up from the seed: request ids, chips, and users where no column tells requests apart (one
    that does decides the user). `model` is used where the trace has no such column. The first row is put at
    `start_ms`; without it the trace's own dates are kept, or START_MS is used where it has none. Each repetition
    follows the last after a second, with new request ids. A row that RECORDS.md would reject is a TraceError, because
    its counts cannot be kept and counted at the same time.
    """
    made = Profile(0, seed=seed, users=users, chips=chips, user_skew=user_skew)  # checks the settings
    if start_ms is not None and not 0 <= start_ms < TIME_LIMIT_MS:
        raise ValueError(f"start_ms must be from 0 to {TIME_LIMIT_MS - 1}, not {start_ms!r}")
    if repeat < 1:
        raise ValueError(f"repeat must be at least 1, not {repeat!r}")
    model = MODEL_NAMES[0] if model is None else model
    if not 1 <= len(model.encode()) <= STRING_BYTES_MAX:
        raise ValueError(f"model must be 1 to {STRING_BYTES_MAX} bytes of UTF-8, not {model!r}")
    return _trace_records(Path(path), made, model, start_ms, repeat)


def _trace_records(path: Path, made: Profile, model: str, start_ms: int | None, repeat: int) -> Iterator[Block]:
    writer = _TraceWriter(path, made, model)
    shift_ms: int | None = None
    first_ms = last_ms = 0
    for _ in range(repeat):
        for columns in _trace_columns(path):
            times = columns["timestamp"].cast(pa.int64()).to_numpy()
            if shift_ms is None:
                first_ms = last_ms = int(times[0])
                shift_ms = _trace_start(first_ms, start_ms) - first_ms
            last_ms = max(last_ms, int(times.max()))
            yield writer.write(columns, times + shift_ms)
        if shift_ms is not None:
            shift_ms += last_ms - first_ms + 1_000


def _trace_start(first_ms: int, start_ms: int | None) -> int:
    if start_ms is not None:
        return start_ms
    return START_MS if first_ms < _EPOCH_MS_MIN else first_ms


def _trace_columns(path: Path) -> Iterator[dict[str, Any]]:
    """Blocks of checked columns, by field."""
    try:
        with pa.input_stream(str(path), compression="zstd" if path.suffix == ".zst" else None) as source:
            reader = pa_csv.open_csv(
                source,
                read_options=pa_csv.ReadOptions(use_threads=False, block_size=_TRACE_BLOCK_BYTES),
                convert_options=pa_csv.ConvertOptions(column_types=_trace_types()),
            )
            names = _trace_names(path, reader.schema.names)
            for batch in reader:
                for name, field in names.items():
                    if field in _TRACE_NEEDED and batch.column(name).null_count:
                        raise TraceError(f"{path}: a row without {name}")
                if batch.num_rows:
                    yield {field: batch.column(name) for name, field in names.items()}
    except (pa.ArrowInvalid, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # no such file, no permission: not a matter of the trace
        raise TraceError(f"{path}: {error}; {_TRACE_HELP}") from error


def _trace_types() -> dict[str, Any]:
    types = {name: pa.int64() for field in TOKENS for name in _TRACE_COLUMNS[field]}
    types |= {name: pa.string() for field in ("model", "user") for name in _TRACE_COLUMNS[field]}
    return types | {"timestamp_ms": pa.int64(), "timestamp": pa.timestamp("ms", "UTC")}


def _trace_names(path: Path, header: list[str]) -> dict[str, str]:
    """Column name -> field."""
    field_of = {name: field for field, names in _TRACE_COLUMNS.items() for name in names}
    unknown = [name for name in header if name not in field_of]
    if unknown:
        raise TraceError(f"{path}: unknown column {', '.join(unknown)}; {_TRACE_HELP}")
    found = [field_of[name] for name in header]
    for field in _TRACE_NEEDED:
        if field not in found:
            raise TraceError(f"{path}: no column for {field}; {_TRACE_HELP}")
    for field in found:
        if found.count(field) > 1:
            raise TraceError(f"{path}: more than one column for {field or 'provider'}; {_TRACE_HELP}")
    return {name: field_of[name] for name in header if field_of[name]}


class _TraceWriter:
    """Renders the rows of a trace; keeps the random streams and the row number across blocks."""

    def __init__(self, path: Path, made: Profile, model: str) -> None:
        self.path, self.made, self.model = path, made, model
        self.ids, self.users, self.chips = (stream(made.seed, f"trace {name}") for name in ("ids", "users", "chips"))
        self.user, self.chip = Zipf(made.users, made.user_skew), Zipf(made.chips, 0.6)
        self.chip_names = names(CHIP_NAMES, made.chips)
        self.rows = 0
        self.user_of_group: dict[str, int] = {}

    def write(self, columns: dict[str, Any], times: Ints) -> Block:
        n = len(times)
        self._check(columns, times)
        self.rows += n
        records = np.zeros(n, RECORD)
        records["id"] = ids(self.ids, n)
        records["time_ms"] = times
        records["user"] = self._users(columns, n)
        models, records["model"] = self._models(columns)
        records["chip"] = self.chip.draw(self.chips, n)
        for field in TOKENS:
            records[field] = columns[field].fill_null(-1).to_numpy() if field in columns else -1
        return Format(models, self.chip_names, self.made.users).block(records, times)

    def _models(self, columns: dict[str, Any]) -> tuple[list[str], Ints | int]:
        """Names as JSON, and which of them each row has."""
        if "model" not in columns:
            return [orjson.dumps(self.model).decode()], 0
        encoded = columns["model"].fill_null("").dictionary_encode()
        names = [name or self.model for name in encoded.dictionary.to_pylist()]
        for name in names:
            if len(name.encode()) > STRING_BYTES_MAX:
                raise TraceError(f"{self.path}: model {name[:40]}... is longer than {STRING_BYTES_MAX} bytes")
        return [orjson.dumps(name).decode() for name in names], encoded.indices.to_numpy()

    def _users(self, columns: dict[str, Any], n: int) -> Ints:
        """Who sent each row. Client numbers begin anew for each model, so the two together make a user."""
        if "user" not in columns:
            return self.user.draw(self.users, n)
        groups = columns["user"].fill_null("")
        if "model" in columns:
            groups = pc.binary_join_element_wise(columns["model"].fill_null(""), groups, "\n")
        encoded = groups.dictionary_encode()
        users = np.array([self._user_of(group) for group in encoded.dictionary.to_pylist()], np.int64)
        each: Ints = users[encoded.indices.to_numpy()]
        return each

    def _user_of(self, group: str) -> int:
        """Numbered by first use: no two share a user unless there are more of them than users."""
        return self.user_of_group.setdefault(group, len(self.user_of_group) % self.made.users)

    def _check(self, columns: dict[str, Any], times: Ints) -> None:
        """Every row must become a record that RECORDS.md counts; a count is never altered to make it one."""
        self._refuse((times < 0) | (times >= TIME_LIMIT_MS), "its time is outside the years 1970 to 9999")
        counts: dict[str, Ints] = {}
        for field in TOKENS:
            column = columns.get(field)
            counts[field] = np.zeros(len(times), np.int64) if column is None else column.fill_null(0).to_numpy()
            self._refuse((counts[field] < 0) | (counts[field] >= COUNT_LIMIT), f"{field} is outside 0 <= n < 2^40")
        parts = counts["cached_input_tokens"] + counts["cache_write_tokens"]
        self._refuse(parts > counts["input_tokens"], "cached and cache-write tokens exceed input_tokens")
        self._refuse(counts["reasoning_tokens"] > counts["output_tokens"], "reasoning tokens exceed output_tokens")

    def _refuse(self, bad: Bools, why: str) -> None:
        if bad.any():
            raise TraceError(f"{self.path}: row {self.rows + int(bad.argmax()) + 1}: {why}")
