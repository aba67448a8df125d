"""The Python interface to metering: a log in, its usage out as Arrow.

Owns: `meter`, and `MeteredUsage`, which holds the rows and the dead letters of a log.
Promises: the same numbers as `tokenometer replay`. Memory holds up to 256 MiB of rows and as much of dead letters; more
of them goes to a temporary file that is read through the page cache and has no name.
"""

import mmap
import os
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime
from typing import Any

import pyarrow as pa

from tokenometer.kernels.values import Tally, UsageRows
from tokenometer.processor.create import OutputError
from tokenometer.processor.files import decoded, in_memory, logs
from tokenometer.processor.files.output import record_batches, row_schema
from tokenometer.processor.files.replay import Outlets, PlacedLetter, ReplaySummary, replay
from tokenometer.processor.records import engines, plausible
from tokenometer.schemas import mapping as mappings
from tokenometer.schemas.mapping import Mapping
from tokenometer.schemas.usage import Usage

_SPOOL_BYTES = 256 << 20  # in memory; what is more goes to a file
NOT_BEFORE = datetime.fromtimestamp(plausible.NOT_BEFORE_MS / 1000, UTC).date()  # a time before it is a wrong unit
WINDOW_SECONDS_MAX = 86_400  # as of the commands

REJECT_SCHEMA = pa.schema(
    [
        pa.field("reason", pa.string(), nullable=False),
        pa.field("field", pa.string()),
        pa.field("file", pa.string(), nullable=False),
        pa.field("line", pa.int64(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("record", pa.int64()),
        pa.field("value", pa.binary()),  # null: other letters have enough copies of it
    ]
)


class MeteredUsage:
    """What a log holds: exact usage rows, the records that do not count with their reasons, and the sums.

    It is an Arrow stream (`__arrow_c_stream__`): `pyarrow.table(usage)`, `polars.DataFrame(usage)`, and DuckDB by its
    variable's name all read it without a copy. As a context it gives its memory or its temporary file back at the end.
    """

    def __init__(self, table: pa.Table, rejects: pa.Table, summary: ReplaySummary) -> None:
        self._table, self._rejects = table, rejects
        self.summary = summary

    @property
    def table(self) -> Any:
        """The usage rows, a `pyarrow.Table`: window_start (UTC, ms), user, model, chip, part, window_ms, the counters
        and total_tokens (uint64), schema; of a mapping that has them also labels (a map) and further counters. One row
        for each window, user, model, chip and labels of a part; a log of more rows than an engine holds has several
        parts, whose rows add up."""
        return self._table

    @property
    def rejects(self) -> Any:
        """The dead letters, a `pyarrow.Table`: reason, field (null where none is to blame), file, line (the first is
        1), offset (bytes), record (its number in the value, null where a line is one record), value (its bytes). A
        duplicate that says something else than the record that counted is among them: conflicting_duplicate."""
        return self._rejects

    @property
    def tally(self) -> Tally:
        """How many records met which fate; read = counted + duplicates + rejected + empty + skipped."""
        return self.summary.tally

    @property
    def usage(self) -> Usage:
        """The counters, summed over all rows."""
        return self.summary.usage

    def batches(self) -> Iterator[Any]:
        """The usage rows as record batches, for a log whose rows are not to be in memory together."""
        yield from self._table.to_batches()

    def to_pandas(self) -> Any:
        """The usage rows as a `pandas.DataFrame`; the counters keep their 64 bits."""
        return self._table.to_pandas()

    def to_polars(self) -> Any:
        """The usage rows as a `polars.DataFrame`."""
        import polars  # type: ignore[import-not-found, unused-ignore]

        return polars.from_arrow(self._table)

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self._table.__arrow_c_stream__(requested_schema)

    def __len__(self) -> int:
        return len(self._table)

    def __enter__(self) -> "MeteredUsage":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the rows and the dead letters; the sums stay."""
        self._table, self._rejects = self._table.schema.empty_table(), REJECT_SCHEMA.empty_table()

    def __repr__(self) -> str:
        tally = self.tally
        counts = f"{tally.counted:,} counted, {tally.duplicates:,} duplicates, {tally.rejected:,} rejected"
        return f"<Usage of {self.usage.total_tokens:,} tokens: {len(self):,} rows; {counts}>"


def meter(
    source: Any,
    mapping: str | os.PathLike[str] | Mapping = "native",
    *,
    window: int = 60,
    whole: bool = False,
    not_before: date = NOT_BEFORE,
    device: str = "auto",
    memory: int | None = None,
    run: str | None = None,
    top: int = 10,
) -> MeteredUsage:
    """Meter a log: exact token usage by window, user, model and chip, each request once.

    source: a path or several of them (newline-delimited JSON, plain, gzip or zstd; JSON arrays, CSV, Parquet), bytes
    of such lines, or a table: whatever hands out an Arrow stream (pyarrow, Polars, pandas 2.2 or later). A table's
    column `value`, or its only one, if of texts or bytes, holds one value a row, as Kafka's messages do; of any other
    table each row is a record.
    mapping: a shipped mapping's name, a file, or what `mapping` returned.
    window: seconds of event time that a row covers, 1 to 86,400.
    whole: each file, or the bytes, is one message's value.
    not_before: records of an earlier date are rejected: seconds that were read as milliseconds.
    device: `cpu`, `cuda`, or `auto`: a card where there is one. memory: bytes for the tables.
    run: the beginning of the parts' names; a random one by default. top: how many users `summary.top_users` has.

    Raises MappingError, LogError for what cannot be read to its end, and DeviceError; all are TokenometerErrors. A
    record that does not fit the mapping raises nothing: it is in `rejects`.
    """
    if not 1 <= window <= WINDOW_SECONDS_MAX:
        raise ValueError(f"window = {window}: expected 1 to {WINDOW_SECONDS_MAX:,} seconds")
    chosen = mapping if isinstance(mapping, Mapping) else mapping_of(mapping)
    bound = int(datetime(not_before.year, not_before.month, not_before.day, tzinfo=UTC).timestamp() * 1000)
    engine = engines.make_engine(device, memory, [chosen], window_ms=window * 1000, not_before_ms=max(0, bound))
    name = run or f"replay-{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
    names = [source] if isinstance(source, str | os.PathLike) else source
    if isinstance(names, Sequence) and all(isinstance(each, str | os.PathLike) for each in names):
        chosen = decoded.read_as(chosen, list(map(os.fspath, names)))
    schema = row_schema(chosen)
    with _Spool(schema) as rows, _Spool(REJECT_SCHEMA) as rejects:

        def take_rows(part_rows: UsageRows, part: str) -> None:
            for batch in record_batches(part_rows, part, schema):
                rows.write(batch)

        def take_letters(letters: list[PlacedLetter]) -> None:
            rejects.write(_reject_batch(letters))

        reader = _reader(source, chosen, whole)
        summary = replay(engine, reader.fill, chosen, name, Outlets(rows=take_rows, letters=take_letters), top)
        return MeteredUsage(rows.table(), rejects.table(), summary)


def mapping_of(name: str | os.PathLike[str]) -> Mapping:
    """A mapping: which fields of a record mean what (docs/RECORDS.md).

    name: of a shipped one (`tokenometer mappings` lists them), a .toml file, or TOML itself, in a string with a line
    break. Raises MappingError, which says where and what was expected.
    """
    text = os.fspath(name)
    return mappings.parse(text, "(text)") if "\n" in text else mappings.resolve(text)


def _reader(source: Any, mapping: Mapping, whole: bool) -> Any:
    make = decoded.decoder_of(mapping)
    if isinstance(source, str | os.PathLike):
        source = [source]
    if isinstance(source, bytes | bytearray | memoryview | mmap.mmap):
        return in_memory.bytes_reader(source, mapping.value, make, whole)
    if hasattr(source, "__arrow_c_stream__"):
        return in_memory.table_reader(source, mapping.value, make)
    if isinstance(source, Sequence) and all(isinstance(name, str | os.PathLike) for name in source):
        names = list(map(os.fspath, source))
        logs.size_of(names)  # a missing one is named before the first is counted
        return decoded.reader_of(names, mapping.value, make, whole)
    raise TypeError(
        f"{type(source).__name__}: expected a path, a list of paths, bytes, or a table with __arrow_c_stream__"
        " (pyarrow, Polars, pandas from 2.2 on)"
    )


def _reject_batch(letters: list[PlacedLetter]) -> Any:
    columns = [[getattr(letter, name) for letter in letters] for name in REJECT_SCHEMA.names]
    return pa.record_batch(
        [pa.array(column, field.type) for column, field in zip(columns, REJECT_SCHEMA, strict=True)],
        schema=REJECT_SCHEMA,
    )


class _Spool:
    """Record batches that become one table: those that are in memory or, where they are too many, mapped from a file
    without a name."""

    def __init__(self, schema: Any) -> None:
        self._schema = schema
        self._held: list[Any] = []
        self._bytes = 0
        self._file: Any = None
        self._writer: Any = None

    def write(self, batch: Any) -> None:
        self._bytes += batch.nbytes
        if self._bytes <= _SPOOL_BYTES:
            self._held.append(batch)
            return
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115  closed by __exit__
                self._writer = pa.ipc.new_file(self._file, self._schema)
            for each in (*self._held, batch):
                self._writer.write_batch(each)
        except OSError as error:
            raise OutputError(
                f"{tempfile.gettempdir()}: {error.strerror or error}: rows of a large log are kept there; "
                f"free some space, or name another folder in TMPDIR"
            ) from None
        self._held = []

    def table(self) -> Any:
        if self._file is None:
            return pa.Table.from_batches(self._held, self._schema)
        self._writer.close()
        self._file.flush()
        return pa.ipc.open_file(pa.py_buffer(mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ))).read_all()

    def __enter__(self) -> "_Spool":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()  # a map of it stays
