"""The tables of the ledger's database, version by version.

A migration that was released never changes: its columns are written out here, and are not made from the counters' list
(schemas/usage.py), which grows. A new counter is a new migration: a column of each table that counts, with 0 for the
rows that were written before (`ALTER TABLE open_rows ADD COLUMN audio_tokens {u64} DEFAULT 0`; DuckDB adds no column
that is NOT NULL), and the view made anew. tests/test_ledger_migrations.py keeps a digest of each version.
"""

from collections.abc import Iterator

from tokenometer.processor.ledger.database import Database, Types
from tokenometer.processor.ledger.values import DatabaseError

# Each is run once, in order, in one transaction. {u64}, {total} and {bytes} are the dialect's types; keys and
# indexes are left out where the database does without.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE book (usage_topic TEXT, live_topic TEXT, closed_until BIGINT)",  # one row
        "INSERT INTO book VALUES (NULL, NULL, NULL)",
        "CREATE TABLE positions (topic TEXT NOT NULL, partition INTEGER NOT NULL, topic_id TEXT NOT NULL, "
        "next BIGINT NOT NULL)",
        "CREATE TABLE watermarks (topic TEXT NOT NULL, partition INTEGER NOT NULL, seen BIGINT, complete BIGINT)",
        "CREATE TABLE names (id INTEGER NOT NULL{primary}, name {bytes} NOT NULL{unique})",
        "CREATE TABLE parts (id INTEGER NOT NULL, name TEXT NOT NULL, window_ms BIGINT NOT NULL, state TEXT NOT NULL, "
        "meter TEXT, sequence BIGINT, live_partition INTEGER, requests {u64}, input_tokens {u64}, "
        "cached_input_tokens {u64}, cache_write_tokens {u64}, output_tokens {u64}, reasoning_tokens {u64})",
        "CREATE TABLE open_rows (window_start BIGINT NOT NULL, user_id INTEGER NOT NULL, model_id INTEGER NOT NULL, "
        "chip_id INTEGER NOT NULL, part_id INTEGER NOT NULL, requests {u64} NOT NULL, input_tokens {u64} NOT NULL, "
        "cached_input_tokens {u64} NOT NULL, cache_write_tokens {u64} NOT NULL, output_tokens {u64} NOT NULL, "
        "reasoning_tokens {u64} NOT NULL{open_key}){open_storage}",
        "CREATE TABLE merged_rows (window_start BIGINT NOT NULL, user_id INTEGER NOT NULL, model_id INTEGER NOT NULL, "
        "chip_id INTEGER NOT NULL, requests {total} NOT NULL, input_tokens {total} NOT NULL, "
        "cached_input_tokens {total} NOT NULL, cache_write_tokens {total} NOT NULL, output_tokens {total} NOT NULL, "
        "reasoning_tokens {total} NOT NULL{merged_key})",
        "CREATE TABLE statements (id INTEGER NOT NULL, begin_ms BIGINT, end_ms BIGINT NOT NULL, "
        "closed_at BIGINT NOT NULL, complete BOOLEAN NOT NULL, watermark BIGINT)",
        "CREATE TABLE statement_lines (statement_id INTEGER NOT NULL, user_id INTEGER NOT NULL, "
        "model_id INTEGER NOT NULL, chip_id INTEGER NOT NULL, requests {total} NOT NULL, "
        "input_tokens {total} NOT NULL, cached_input_tokens {total} NOT NULL, cache_write_tokens {total} NOT NULL, "
        "output_tokens {total} NOT NULL, reasoning_tokens {total} NOT NULL)",
        # Usage of windows that were closed when it came. statement_id: where it is reported; null: in the next one.
        "CREATE TABLE late (window_start BIGINT NOT NULL, user_id INTEGER NOT NULL, model_id INTEGER NOT NULL, "
        "chip_id INTEGER NOT NULL, requests {total} NOT NULL, input_tokens {total} NOT NULL, "
        "cached_input_tokens {total} NOT NULL, cache_write_tokens {total} NOT NULL, output_tokens {total} NOT NULL, "
        "reasoning_tokens {total} NOT NULL, statement_id INTEGER)",
        "{indexes}",
        "CREATE VIEW usage AS SELECT window_start, user_id, model_id, chip_id, "
        "CAST(requests AS {total}) AS requests, CAST(input_tokens AS {total}) AS input_tokens, "
        "CAST(cached_input_tokens AS {total}) AS cached_input_tokens, "
        "CAST(cache_write_tokens AS {total}) AS cache_write_tokens, CAST(output_tokens AS {total}) AS output_tokens, "
        "CAST(reasoning_tokens AS {total}) AS reasoning_tokens FROM open_rows "
        "UNION ALL SELECT window_start, user_id, model_id, chip_id, requests, input_tokens, cached_input_tokens, "
        "cache_write_tokens, output_tokens, reasoning_tokens FROM merged_rows",
    ),
)


def migrate(database: Database, indexed: bool) -> None:
    """Bring the tables up to this program's version. indexed: with keys and indexes, which DuckDB does without."""
    with database.transaction():
        database.rows("CREATE TABLE IF NOT EXISTS schema_version (version INTEGER NOT NULL)")
        found = _version(database)
        for number, statements in enumerate(MIGRATIONS[found:], found + 1):
            for statement in statements:
                for text in filled(statement, database.types, indexed):
                    database.rows(text)
            database.rows("INSERT INTO schema_version VALUES (?)", [number])


def check_version(database: Database) -> None:
    """For a reader, which changes no tables. Raises DatabaseError unless they are of this program's version."""
    version = _version(database)
    if version < len(MIGRATIONS):
        raise DatabaseError(
            f"the database has tables of version {version}, and this tokenometer reads version {len(MIGRATIONS)}: "
            f"start `tokenometer ledger` of this version once, which migrates them"
        )


def _version(database: Database) -> int:
    [(version,)] = database.rows("SELECT coalesce(max(version), 0) FROM schema_version")
    if version > len(MIGRATIONS):
        raise DatabaseError(
            f"the database has tables of version {version}, and this tokenometer knows {len(MIGRATIONS)}: upgrade it"
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


def filled(statement: str, types: Types, indexed: bool) -> Iterator[str]:
    """The statements of a dialect that one of a migration means."""
    if statement == "{indexes}":
        yield from _INDEXES if indexed else ()
        return
    yield statement.format(
        bytes=types.bytes,
        primary=" PRIMARY KEY" if indexed else "",
        unique=" UNIQUE" if indexed else "",
        u64=types.u64,
        total=types.total,
        # By user first: that is how rows are asked for.
        open_key=", PRIMARY KEY (user_id, window_start, model_id, chip_id, part_id)" if indexed else "",
        # Room for the next counters of a row on its page: else each update writes to the indexes too.
        open_storage=" WITH (fillfactor = 70)" if indexed else "",
        merged_key=", PRIMARY KEY (user_id, window_start, model_id, chip_id)" if indexed else "",
    )
