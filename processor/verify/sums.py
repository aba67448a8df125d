"""The sums of an audit, in DuckDB: columns from Parquet files in, totals, differences and counts out.

    sums ──────────────────────┬──> expected ──┐      sums have all records; what is no usage is taken out of them
    records ── duplicates, grown               ├── differing           by window, user, model and chip
    usage ──── last of each identity ──> found ┘
    rejects, conflicts ───┐
                          ├── differing_letters                        by partition, offset and line
    letters ──────────────┘

`records` are only those whose request id another one may have, too (`ids`). Those that are context were audited before:
they make duplicates of later ones, and are no more than that.

The sums are exact: those of 64-bit integers are 128 bits wide here. Memory is bounded: what is more goes to the folder.
"""

import glob
import os
from collections.abc import Iterator, Sequence
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from tokenometer.processor.broker import Offset, Place
from tokenometer.processor.verify import tasks
from tokenometer.processor.verify.tally import Agreed
from tokenometer.processor.verify.values import (
    CONFLICTING,
    COUNTERS,
    FURTHER,
    NO_COUNTERS,
    OUTPUT,
    Counters,
    Difference,
    DuckDBMissing,
    LetterDifference,
    Problem,
    VerifyError,
    VerifySettings,
)

if TYPE_CHECKING:
    import duckdb

_SMALL_BYTES = 1 << 20  # of the files of a kind
_TYPES = {
    pa.int32(): "INTEGER", pa.int64(): "BIGINT", pa.uint64(): "UBIGINT", pa.bool_(): "BOOLEAN", pa.string(): "VARCHAR",
    pa.binary(): "BLOB",
}  # fmt: skip
_KEY = 'window_start, "user", model, chip, labels'
_COUNTERS = (*COUNTERS, *FURTHER)
_ALL = ", ".join(_COUNTERS)
_SUMS = ", ".join(f"sum({name}) AS {name}" for name in _COUNTERS)

# The first record of an identity in a generation counts, unless the generation before has one too.
#
#     generation   4   5   6   7       9  10
#     records      xx  x   x   xx      x  x
#     counted      x                   x
_DUPLICATES = """
    CREATE TABLE duplicates AS
    WITH repeated AS (
        SELECT place, scope, request_id FROM records WHERE request_id IS NOT NULL AND NOT grows
        GROUP BY ALL HAVING count(*) > 1
    ), candidates AS (
        SELECT place, scope, request_id, generation, log_offset, line, context,
            row_number() OVER (
                PARTITION BY place, scope, request_id, generation ORDER BY log_offset, line
            ) AS nth,
            generation - dense_rank() OVER (
                PARTITION BY place, scope, request_id ORDER BY generation
            ) AS island
        FROM records SEMI JOIN repeated USING (place, scope, request_id)
    ), placed AS (
        SELECT place, log_offset, line, context, nth,
            generation - min(generation) OVER (PARTITION BY place, scope, request_id, island) AS age
        FROM candidates
    )
    SELECT place, log_offset, line FROM placed WHERE (nth > 1 OR age > 0) AND NOT context
"""
_NO_DUPLICATES = "CREATE TABLE duplicates (place INTEGER, log_offset BIGINT, line BIGINT)"
# What a duplicate is compared with: the first record of its identity in the generation before, or else in its own.
_SAID = f'window_start, "user", model, chip, prefill_chip, labels, {_ALL}'
_CONFLICTS = f"""
    CREATE TABLE conflicts AS
    WITH said AS (
        SELECT place, scope, request_id, generation, log_offset, line, row({_SAID}) AS what
        FROM records SEMI JOIN (
            SELECT DISTINCT place, scope, request_id FROM records SEMI JOIN duplicates USING (place, log_offset, line)
        ) USING (place, scope, request_id) WHERE NOT grows
    ), firsts AS (
        SELECT place, scope, request_id, generation, arg_min(what, (log_offset, line)) AS what FROM said
        GROUP BY place, scope, request_id, generation
    )
    SELECT s.place, s.log_offset, s.line
    FROM said s SEMI JOIN duplicates USING (place, log_offset, line)
    JOIN firsts own USING (place, scope, request_id, generation)
    LEFT JOIN firsts before ON before.place = s.place AND before.scope = s.scope
        AND before.request_id = s.request_id AND before.generation = s.generation - 1
    WHERE s.what IS DISTINCT FROM CASE WHEN before.place IS NULL THEN own.what ELSE before.what END
"""
_NO_CONFLICTS = "CREATE TABLE conflicts (place INTEGER, log_offset BIGINT, line BIGINT)"
# Where a mapping's repeats grow: what each record is ahead of the greatest counters of its identity, in the generation
# before and so far in its own. The first one counts the request.
_TOKENS = _COUNTERS[1:]
_GROWN = f"""
    CREATE TABLE grown AS
    WITH growing AS (SELECT * FROM records WHERE grows AND request_id IS NOT NULL), most AS (
        SELECT place, scope, request_id, generation, {", ".join(f"max({name}) AS {name}" for name in _TOKENS)}
        FROM growing GROUP BY place, scope, request_id, generation
    ), walked AS (
        SELECT *, count(*) OVER earlier AS nth,
            {", ".join(f"max({name}) OVER earlier AS own_{name}" for name in _TOKENS)}
        FROM growing WINDOW earlier AS (
            PARTITION BY place, scope, request_id, generation ORDER BY log_offset, line
            ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
        )
    )
    SELECT w.place, w.log_offset, w.line, w.nth = 0 AND before.place IS NULL AS first,
        CASE WHEN first THEN w.requests ELSE 0 END AS requests,
        {", ".join(
            f"greatest(0, w.{name} - greatest(coalesce(w.own_{name}, 0), coalesce(before.{name}, 0))) AS {name}"
            for name in _TOKENS
        )}
    FROM walked w LEFT JOIN most before ON before.place = w.place AND before.scope = w.scope
        AND before.request_id = w.request_id AND before.generation = w.generation - 1
    WHERE NOT w.context
"""  # fmt: skip
_NONE_GROWN = f"""
    CREATE TABLE grown (
        place INTEGER, log_offset BIGINT, line BIGINT, first BOOLEAN,
        {", ".join(f"{name} BIGINT" for name in _COUNTERS)}
    )
"""
_NOTHING_ADDED = f"""
    INSERT INTO duplicates SELECT place, log_offset, line FROM grown
    WHERE NOT first AND {" AND ".join(f"{name} = 0" for name in _TOKENS)}
"""
# A row is expected where at least one record is kept; what grows is kept with what it adds.
_EXPECTED = f"""
    CREATE TABLE expected AS
    WITH taken_out AS (SELECT * FROM records SEMI JOIN duplicates USING (place, log_offset, line)), changes AS (
        SELECT {_KEY}, prefill_chip, -1 AS records, {", ".join(f"-{name} AS {name}" for name in _COUNTERS)}
        FROM taken_out
        UNION ALL
        SELECT {_KEY}, prefill_chip, 0, {", ".join(f"g.{name} - r.{name}" for name in _COUNTERS)}
        FROM (SELECT * FROM records ANTI JOIN duplicates USING (place, log_offset, line)) r
        JOIN grown g USING (place, log_offset, line)
    ), booked AS (
        SELECT {_KEY}, records, {_ALL} FROM sums
        UNION ALL
        SELECT {_KEY}, records, {", ".join(
            name if name in OUTPUT else f"CASE WHEN prefill_chip IS NULL THEN {name} ELSE 0 END AS {name}"
            for name in _COUNTERS
        )} FROM changes
        UNION ALL
        SELECT window_start, "user", model, prefill_chip AS chip, labels, records, {", ".join(
            f"0 AS {name}" if name in OUTPUT else name for name in _COUNTERS
        )} FROM changes WHERE prefill_chip IS NOT NULL
    )
    SELECT {_KEY}, {_SUMS} FROM booked GROUP BY {_KEY} HAVING sum(records) > 0
"""  # fmt: skip
_AS_BOOKED = f"CREATE TABLE expected AS SELECT {_KEY}, {_SUMS} FROM sums GROUP BY {_KEY} HAVING sum(records) > 0"
# A key always goes to one partition, so the highest offset there is the last word. Rows of one identity in two
# partitions have no order: both are taken, and `misplaced_rows` says so.
_LAST = f"""
    CREATE TABLE last_rows AS
    SELECT {_KEY}, part, {_ALL} FROM usage SEMI JOIN (
        SELECT place, max(log_offset) AS log_offset FROM usage GROUP BY place, {_KEY}, part
    ) USING (place, log_offset)
"""
_KEPT = f"""
    SELECT * FROM kept SEMI JOIN (
        SELECT place, max(log_offset) AS log_offset FROM kept GROUP BY place, {_KEY}, part
    ) USING (place, log_offset)
"""
_FOUND = f"CREATE TABLE found AS SELECT {_KEY}, {_SUMS} FROM last_rows GROUP BY {_KEY}"
_DIFFERING = f"""
    CREATE TABLE differing AS
    SELECT {_KEY}, {", ".join(f"e.{name}" for name in _COUNTERS)}, {", ".join(f"f.{name}" for name in _COUNTERS)}
    FROM expected e FULL JOIN found f USING ({_KEY})
    WHERE {" OR ".join(f"e.{name} IS DISTINCT FROM f.{name}" for name in _COUNTERS)}
"""
_DIFFERING_LETTERS = f"""
    CREATE TABLE differing_letters AS
    WITH wanted AS (
        SELECT topic, partition, log_offset, line, concat_ws(':', reason, field) AS verdict, digest
        FROM (
            SELECT place, log_offset, line, reason, field, digest FROM rejects UNION ALL
            SELECT place, log_offset, line, '{CONFLICTING}', NULL, digest
            FROM conflicts LEFT JOIN digests USING (place, log_offset, line) WHERE $conflict_letters
        ) JOIN places USING (place)
    ), given AS (
        SELECT topic, partition, log_offset, line, count(*) AS times,
            min(concat_ws(':', reason, field)) AS verdict, max(concat_ws(':', reason, field)) AS other_verdict,
            min(digest) AS digest, max(digest) AS other_digest
        FROM letters GROUP BY ALL
    )
    SELECT topic, partition, log_offset, line,
        CASE
            WHEN g.times IS NULL THEN 'missing'
            WHEN w.verdict IS NULL THEN 'unexpected'
            WHEN g.times > 1 THEN 'repeated'
            WHEN w.verdict <> g.verdict THEN 'other verdict'
            WHEN w.digest <> g.digest THEN 'other bytes'
        END AS what,
        w.verdict AS expected,
        CASE WHEN g.other_verdict <> w.verdict THEN g.other_verdict ELSE g.verdict END AS found
    FROM wanted w FULL JOIN given g USING (topic, partition, log_offset, line)
    WHERE what IS NOT NULL
"""


class Sums:
    """A database over the files of a folder."""

    def __init__(self, folder: str, places: list[Place], settings: VerifySettings, agreed: Agreed) -> None:
        """agreed: rows that are not looked at here."""
        self._agreed, self._folder = agreed, folder
        self._database = _connect(folder, settings)
        sizes = [self._read(kind, schema) for kind, schema in tasks.SCHEMAS.items()]
        if max(sizes) <= _SMALL_BYTES:
            self._rows("PRAGMA disable_optimizer")  # which takes longer than a plan of any kind
        self._rows("CREATE TABLE places (place INTEGER, topic VARCHAR, partition BIGINT)")
        for number, place in enumerate(places):
            self._rows("INSERT INTO places VALUES (?, ?, ?)", [number, *place])
        self._compare()
        self._rows(_DIFFERING_LETTERS, {"conflict_letters": settings.conflict_letters})

    def _read(self, kind: str, schema: pa.Schema) -> int:
        """Few rows are taken in, so that their files are read once; many stay where they are. Returns their bytes."""
        files = glob.glob(f"{glob.escape(self._folder)}/{kind}-*.parquet")
        if not files:
            columns = ", ".join(f'"{column.name}" {_TYPES[column.type]}' for column in schema)
            self._rows(f"CREATE TABLE {kind} ({columns})")
            return 0
        size = sum(map(os.path.getsize, files))
        what = "TABLE" if size <= _SMALL_BYTES else "VIEW"
        names = f"{self._folder}/{kind}-*.parquet".replace("'", "''")
        self._rows(f"CREATE {what} {kind} AS SELECT * FROM read_parquet('{names}')")
        return size

    def _compare(self) -> None:
        """A statement that would find nothing is not worth its planning, which takes longer than all of a small log."""
        self._rows(_DUPLICATES if self.count("records") else _NO_DUPLICATES)
        self._rows(_CONFLICTS if self.count("duplicates") else _NO_CONFLICTS)
        if self.count("records WHERE grows"):
            self._rows(_GROWN)
            self._rows(_NOTHING_ADDED)
        else:
            self._rows(_NONE_GROWN)
        is_as_booked = self.count("duplicates") == self.count("grown") == 0
        for statement in (_AS_BOOKED if is_as_booked else _EXPECTED, _LAST, _FOUND, _DIFFERING):
            self._rows(statement)

    def __enter__(self) -> "Sums":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close()

    def count(self, table: str) -> int:
        [(rows,)] = self._rows(f"SELECT count(*) FROM {table}")
        return int(rows)

    def total(self, table: str, before: Counters = NO_COUNTERS) -> Counters:
        """The sums over all rows of `expected` or `found`, without what was audited before."""
        [row] = self._rows(f"SELECT {_SUMS} FROM {table}")
        sums = _both(_counters(row) or NO_COUNTERS, self._agreed.totals())
        return _both(sums, [-count for count in before])

    def by_part(self) -> dict[str, Counters]:
        rows = self._rows(f"SELECT part, {_SUMS} FROM last_rows GROUP BY part")
        found = {part.decode(): _counters(row) or NO_COUNTERS for part, *row in rows}
        for part, agreed in self._agreed.parts.items():
            found[part.decode()] = _both(found.get(part.decode(), NO_COUNTERS), agreed)
        return found

    def differences(self, most: int) -> Iterator[Difference]:
        """The first differing rows by key."""
        for row in self._rows(f"SELECT * FROM differing ORDER BY {_KEY} LIMIT {most}"):
            start, *texts = row[:5]
            user, model, chip, labels = (text.decode() for text in texts)
            expected, found = row[5 : 5 + len(_COUNTERS)], row[5 + len(_COUNTERS) :]
            six = _counters(expected), _counters(found)
            further = [
                (name, int(ours or 0), int(theirs or 0))
                for name, ours, theirs in zip(_COUNTERS, expected, found, strict=True)
                if name in FURTHER and (ours or 0) != (theirs or 0)
            ]
            yield Difference(start, user, model, chip, *six, labels, tuple(further))

    def letter_differences(self, most: int) -> Iterator[LetterDifference]:
        rows = self._rows(f"SELECT * FROM differing_letters ORDER BY ALL LIMIT {most}")
        for topic, partition, offset, line, what, expected, found in rows:
            yield LetterDifference(Place(topic, partition), Offset(offset), line, what, expected, found)

    def kept(self) -> pa.Table:
        """The last rows of parts that may go on, as tasks.USAGE."""
        file = f"{self._folder}/last-kept.parquet"
        self._rows(f"COPY ({_KEPT}) TO '{file.replace(chr(39), 2 * chr(39))}' (FORMAT parquet)")
        return pq.read_table(file).select(tasks.USAGE.names).cast(tasks.USAGE)

    def misplaced_rows(self) -> Iterator[Problem]:
        [(count,)] = self._rows(
            f"SELECT count(*) FROM (SELECT 1 FROM last_rows GROUP BY {_KEY}, part HAVING count(*) > 1)"
        )
        if count:
            what = f"{count:,} rows have a message in two partitions, so nobody can say which is the last"
            yield Problem("row", "token-usage", what)

    def _rows(self, query: str, parameters: list[Any] | dict[str, Any] | None = None) -> list[tuple[Any, ...]]:
        try:
            rows: list[tuple[Any, ...]] = self._database.execute(query, parameters).fetchall()
        except require_duckdb().Error as error:  # no memory, or no room in the folder
            raise VerifyError(f"DuckDB: {error}") from error
        return rows


def require_duckdb() -> ModuleType:
    """The module duckdb, which is an extra. Raises DuckDBMissing."""
    try:
        import duckdb
    except ImportError:
        raise DuckDBMissing("verify needs DuckDB: pip install 'tokenometer[verify]'") from None
    return duckdb


def _connect(folder: str, settings: VerifySettings) -> "duckdb.DuckDBPyConnection":
    config: dict[str, Any] = {
        "memory_limit": f"{settings.memory_bytes >> 20}MiB",
        "temp_directory": folder,
        "threads": settings.processes,
        "preserve_insertion_order": False,
    }
    connection: duckdb.DuckDBPyConnection = require_duckdb().connect(":memory:", config=config)
    return connection


def _both(some: Counters, others: Sequence[int]) -> Counters:
    a, b, c, d, e, f = (one + other for one, other in zip(some, others, strict=False))
    return a, b, c, d, e, f


def _counters(row: Any) -> Counters | None:
    """None where the join found no row."""
    if row[0] is None:
        return None
    a, b, c, d, e, f = map(int, row[: len(COUNTERS)])
    return a, b, c, d, e, f
