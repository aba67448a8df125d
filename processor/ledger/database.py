"""What the ledger needs of a database; `duck` and `postgres` give it. SQL is written once, with `?` for parameters.

Promises of both: a transaction is all or nothing and survives a crash once it is committed; what `snapshot` reads is of
one moment, and does not wait for the writer; no text that comes from a log is ever part of a statement.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tokenometer.processor.ledger.values import BadRequest, DatabaseError
from tokenometer.schemas.usage import COUNTERS

Rows = list[tuple[Any, ...]]
POSTGRES_SCHEMES = ("postgresql://", "postgres://")

KEY = ("window_start", "user_id", "model_id", "chip_id")
COLUMNS = (*KEY, "part_id", *COUNTERS)  # of `open_rows`, and of a batch on its way there


@dataclass(frozen=True)
class Types:
    """What a dialect calls them. u64: 64 bits without sign; total: wide enough for any sum of them."""

    u64: str
    total: str
    bytes: str


class Database(Protocol):
    """One connection. Raises DatabaseError for whatever the database says, Busy if another process has it."""

    types: Types

    def rows(self, statement: str, parameters: Sequence[Any] = ()) -> Rows: ...

    def transaction(self) -> contextlib.AbstractContextManager[None]:
        """Committed at the end of the block, rolled back if it raises."""

    def name_ids(self, names: Sequence[bytes]) -> dict[bytes, int]:
        """Of those that are known."""

    def add_names(self, ids: Sequence[int], names: Sequence[bytes]) -> None: ...

    def stage(self, batch: Any) -> None:
        """Make an Arrow table of COLUMNS readable as `incoming` until the transaction ends."""

    def upsert(self) -> None:
        """Of `incoming` into `open_rows`. Counters of an identity never go down."""

    def merge_part(self, part_id: int) -> None:
        """Add the part's rows in `open_rows` up in `merged_rows`, and remove them there."""

    def buckets(self, bounds: Sequence[int]) -> str:
        """An expression: the greatest of `bounds` that is not above `window_start`."""

    def snapshot(self) -> contextlib.AbstractContextManager["Database"]:
        """To read from, by any thread, at one moment."""

    def close(self) -> None: ...


def open_database(name: str, writer: bool) -> Database:
    """`postgresql://...`, or the name of a DuckDB file. A writer is alone: Busy says that there is one already."""
    if name.startswith(POSTGRES_SCHEMES):
        from tokenometer.processor.ledger.postgres import PostgresDatabase

        return PostgresDatabase(name, writer)
    if "://" in name:
        raise BadRequest(f"{shown(name)}: expected postgresql://... or the name of a file")
    from tokenometer.processor.ledger.duck import DuckDatabase

    return DuckDatabase(name, writer)


def open_clerk(name: str) -> Database:
    """To close a period without a ledger. PostgreSQL lets it work beside one; a file is one process's at a time."""
    return open_database(name, writer=not name.startswith(POSTGRES_SCHEMES))


def shown(name: str) -> str:
    """A database's name without its password, for messages and logs."""
    scheme, separator, rest = name.partition("://")
    address, question, options = rest.partition("?")
    user, at, host = address.rpartition("@")
    if question:
        kept = [option for option in options.split("&") if not option.lower().startswith(("password", "sslpassword"))]
        host += "?" + "&".join(kept) if kept else ""
    return f"{scheme}{separator}{user.partition(':')[0]}{at}{host}" if separator else name


# --- Migrations ---

# Each is run once, in order, in one transaction. Never change one that was released: add another.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE book (usage_topic TEXT, live_topic TEXT, closed_until BIGINT)",  # one row
        "INSERT INTO book VALUES (NULL, NULL, NULL)",
        "CREATE TABLE positions (topic TEXT NOT NULL, partition INTEGER NOT NULL, topic_id TEXT NOT NULL, "
        "next BIGINT NOT NULL)",
        "CREATE TABLE watermarks (topic TEXT NOT NULL, partition INTEGER NOT NULL, seen BIGINT, complete BIGINT)",
        "CREATE TABLE names (id INTEGER NOT NULL{primary}, name {bytes} NOT NULL{unique})",
        "CREATE TABLE parts (id INTEGER NOT NULL, name TEXT NOT NULL, window_ms BIGINT NOT NULL, state TEXT NOT NULL, "
        "meter TEXT, sequence BIGINT, live_partition INTEGER, {tokens})",
        "CREATE TABLE open_rows (window_start BIGINT NOT NULL, user_id INTEGER NOT NULL, model_id INTEGER NOT NULL, "
        "chip_id INTEGER NOT NULL, part_id INTEGER NOT NULL, {counters}{open_key}){open_storage}",
        "CREATE TABLE merged_rows (window_start BIGINT NOT NULL, user_id INTEGER NOT NULL, model_id INTEGER NOT NULL, "
        "chip_id INTEGER NOT NULL, {totals}{merged_key})",
        "CREATE TABLE statements (id INTEGER NOT NULL, begin_ms BIGINT, end_ms BIGINT NOT NULL, "
        "closed_at BIGINT NOT NULL, complete BOOLEAN NOT NULL, watermark BIGINT)",
        "CREATE TABLE statement_lines (statement_id INTEGER NOT NULL, user_id INTEGER NOT NULL, "
        "model_id INTEGER NOT NULL, chip_id INTEGER NOT NULL, {totals})",
        # Usage of windows that were closed when it came. statement_id: where it is reported; null: in the next one.
        "CREATE TABLE late (window_start BIGINT NOT NULL, user_id INTEGER NOT NULL, model_id INTEGER NOT NULL, "
        "chip_id INTEGER NOT NULL, {totals}, statement_id INTEGER)",
        "{indexes}",
        "CREATE VIEW usage AS SELECT window_start, user_id, model_id, chip_id, {as_totals} FROM open_rows "
        "UNION ALL SELECT window_start, user_id, model_id, chip_id, {names} FROM merged_rows",
    ),
)


def migrate(database: Database, indexed: bool, migrations: Sequence[Sequence[str]] = MIGRATIONS) -> None:
    """Bring the tables up to this program's version. indexed: with keys and indexes, which DuckDB does without."""
    with database.transaction():
        database.rows("CREATE TABLE IF NOT EXISTS schema_version (version INTEGER NOT NULL)")
        found = check_version(database, migrations)
        for number, statements in enumerate(migrations[found:], found + 1):
            for statement in statements:
                for text in _filled(statement, database.types, indexed):
                    database.rows(text)
            database.rows("INSERT INTO schema_version VALUES (?)", [number])


def check_version(database: Database, migrations: Sequence[Sequence[str]] = MIGRATIONS) -> int:
    [(version,)] = database.rows("SELECT coalesce(max(version), 0) FROM schema_version")
    if version > len(migrations):
        raise DatabaseError(
            f"the database has tables of version {version}, and this tokenometer knows {len(migrations)}: upgrade it"
        )
    return int(version)


_INDEXES = (
    "CREATE UNIQUE INDEX parts_name ON parts (name)",
    # Rows come in the order of time, more or less: a summary of each run of pages finds a day, or a part.
    "CREATE INDEX open_rows_time ON open_rows USING brin (window_start, part_id)",
    "CREATE INDEX merged_rows_time ON merged_rows USING brin (window_start)",
    "CREATE INDEX late_statement ON late (statement_id)",
    "CREATE INDEX statement_lines_statement ON statement_lines (statement_id)",
)


def _filled(statement: str, types: Types, indexed: bool) -> Iterator[str]:
    if statement == "{indexes}":
        yield from _INDEXES if indexed else ()
        return
    yield statement.format(
        bytes=types.bytes,
        primary=" PRIMARY KEY" if indexed else "",
        unique=" UNIQUE" if indexed else "",
        tokens=", ".join(f"{name} {types.u64}" for name in COUNTERS),
        counters=", ".join(f"{name} {types.u64} NOT NULL" for name in COUNTERS),
        totals=", ".join(f"{name} {types.total} NOT NULL" for name in COUNTERS),
        as_totals=", ".join(f"CAST({name} AS {types.total}) AS {name}" for name in COUNTERS),
        names=", ".join(COUNTERS),
        # By user first: that is how rows are asked for.
        open_key=", PRIMARY KEY (user_id, window_start, model_id, chip_id, part_id)" if indexed else "",
        # Room for the next counters of a row on its page: else each update writes to the indexes too.
        open_storage=" WITH (fillfactor = 70)" if indexed else "",
        merged_key=", PRIMARY KEY (user_id, window_start, model_id, chip_id)" if indexed else "",
    )
