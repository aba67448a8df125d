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
    # Rows carry labels, and parts of counts; statements carry money, and may be of one customer.
    (
        # A set of labels is a number in the rows. name: eight bytes for each label, the numbers of its name and its
        # value in `names`, in order. Set 0 has no labels.
        "CREATE TABLE label_sets (id INTEGER NOT NULL{primary}, name {bytes} NOT NULL{unique})",
        "INSERT INTO label_sets VALUES (0, CAST('' AS {bytes}))",
        "CREATE TABLE set_labels (set_id INTEGER NOT NULL, name_id INTEGER NOT NULL, value_id INTEGER NOT NULL"
        "{set_key})",
        # DuckDB adds no column that is NOT NULL, and drops none that a view reads.
        "DROP VIEW usage",
        "ALTER TABLE book ADD COLUMN further BOOLEAN DEFAULT FALSE",  # has a row ever had a part of a count?
        *(
            f"ALTER TABLE {table} ADD COLUMN {column}"
            for table, kind in (
                ("open_rows", "u64"),
                ("merged_rows", "total"),
                ("statement_lines", "total"),
                ("late", "total"),
            )
            for column in (
                "labels_id INTEGER DEFAULT 0",
                f"cache_write_1h_tokens {{{kind}}} DEFAULT 0",
                f"audio_input_tokens {{{kind}}} DEFAULT 0",
                f"image_input_tokens {{{kind}}} DEFAULT 0",
                f"audio_cached_input_tokens {{{kind}}} DEFAULT 0",
                f"audio_output_tokens {{{kind}}} DEFAULT 0",
            )
        ),
        "{keys_of_labels}",
        # user_id, or label_id and value_id: only of this customer. list_id: the prices; null: none.
        "ALTER TABLE statements ADD COLUMN user_id INTEGER",
        "ALTER TABLE statements ADD COLUMN label_id INTEGER",
        "ALTER TABLE statements ADD COLUMN value_id INTEGER",
        "ALTER TABLE statements ADD COLUMN time_zone TEXT",
        "ALTER TABLE statements ADD COLUMN list_id INTEGER",
        "ALTER TABLE statements ADD COLUMN amount TEXT",  # exact decimals; more digits than an integer has
        "CREATE TABLE price_lists (id INTEGER NOT NULL, digest TEXT NOT NULL, currency TEXT NOT NULL, "
        "content {bytes} NOT NULL)",
        # price_line: of the entry in the statement's list; null: unpriced.
        "ALTER TABLE statement_lines ADD COLUMN price_line INTEGER",
        "ALTER TABLE statement_lines ADD COLUMN span_begin BIGINT",
        "ALTER TABLE statement_lines ADD COLUMN span_end BIGINT",
        "ALTER TABLE statement_lines ADD COLUMN amount TEXT",
        # closed_by: the statement whose period the window was in. list_id: what it was priced by.
        "ALTER TABLE late ADD COLUMN closed_by INTEGER",
        "ALTER TABLE late ADD COLUMN list_id INTEGER",
        "ALTER TABLE late ADD COLUMN price_line INTEGER",
        "ALTER TABLE late ADD COLUMN amount TEXT",
        "UPDATE late SET closed_by = (SELECT min(statements.id) FROM statements "
        "WHERE statements.end_ms > late.window_start)",
        # Corrections by hand. label_id, value_id: a credit's that is of a label's value. given: all that was asked for,
        # so that the same key again is known to mean the same.
        "CREATE TABLE adjustments (id INTEGER NOT NULL, key TEXT NOT NULL, kind TEXT NOT NULL, reason TEXT NOT NULL, "
        "given TEXT NOT NULL, made_at BIGINT NOT NULL, window_start BIGINT, user_id INTEGER, model_id INTEGER, "
        "chip_id INTEGER, labels_id INTEGER NOT NULL, label_id INTEGER, value_id INTEGER, voids INTEGER, "
        "requests {total} NOT NULL, "
        "input_tokens {total} NOT NULL, cached_input_tokens {total} NOT NULL, cache_write_tokens {total} NOT NULL, "
        "output_tokens {total} NOT NULL, reasoning_tokens {total} NOT NULL, cache_write_1h_tokens {total} NOT NULL, "
        "audio_input_tokens {total} NOT NULL, image_input_tokens {total} NOT NULL, "
        "audio_cached_input_tokens {total} NOT NULL, audio_output_tokens {total} NOT NULL, currency TEXT, "
        "statement_id INTEGER, list_id INTEGER, price_line INTEGER, amount TEXT)",
        "CREATE VIEW usage AS SELECT window_start, user_id, model_id, chip_id, labels_id, "
        "CAST(requests AS {total}) AS requests, CAST(input_tokens AS {total}) AS input_tokens, "
        "CAST(cached_input_tokens AS {total}) AS cached_input_tokens, "
        "CAST(cache_write_tokens AS {total}) AS cache_write_tokens, CAST(output_tokens AS {total}) AS output_tokens, "
        "CAST(reasoning_tokens AS {total}) AS reasoning_tokens, "
        "CAST(cache_write_1h_tokens AS {total}) AS cache_write_1h_tokens, "
        "CAST(audio_input_tokens AS {total}) AS audio_input_tokens, "
        "CAST(image_input_tokens AS {total}) AS image_input_tokens, "
        "CAST(audio_cached_input_tokens AS {total}) AS audio_cached_input_tokens, "
        "CAST(audio_output_tokens AS {total}) AS audio_output_tokens FROM open_rows "
        "UNION ALL SELECT window_start, user_id, model_id, chip_id, labels_id, requests, input_tokens, "
        "cached_input_tokens, cache_write_tokens, output_tokens, reasoning_tokens, cache_write_1h_tokens, "
        "audio_input_tokens, image_input_tokens, audio_cached_input_tokens, audio_output_tokens FROM merged_rows",
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

_KEYS_OF_LABELS = (
    "ALTER TABLE open_rows ALTER COLUMN labels_id SET NOT NULL",
    "ALTER TABLE open_rows DROP CONSTRAINT open_rows_pkey",
    "ALTER TABLE open_rows ADD PRIMARY KEY (user_id, window_start, model_id, chip_id, labels_id, part_id)",
    "ALTER TABLE merged_rows ALTER COLUMN labels_id SET NOT NULL",
    "ALTER TABLE merged_rows DROP CONSTRAINT merged_rows_pkey",
    "ALTER TABLE merged_rows ADD PRIMARY KEY (user_id, window_start, model_id, chip_id, labels_id)",
)


def filled(statement: str, types: Types, indexed: bool) -> Iterator[str]:
    """The statements of a dialect that one of a migration means."""
    if statement == "{indexes}":
        yield from _INDEXES if indexed else ()
        return
    if statement == "{keys_of_labels}":
        yield from _KEYS_OF_LABELS if indexed else ()
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
        set_key=", PRIMARY KEY (set_id, name_id)" if indexed else "",
        merged_key=", PRIMARY KEY (user_id, window_start, model_id, chip_id)" if indexed else "",
    )
