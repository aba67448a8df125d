"""A ledger's tables from version to version: what was released stays as it is, and an old ledger answers as before."""

import gzip
import hashlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tests import books
from tests.ledgers import make
from tests.test_ledger import COUNTS, IDENTITY, take
from tokenometer.processor.ledger import migrations, periods, statements
from tokenometer.processor.ledger.database import COUNTS as COUNTED
from tokenometer.processor.ledger.database import KEY
from tokenometer.processor.ledger.duck import DuckDatabase
from tokenometer.processor.ledger.opening import open_database
from tokenometer.processor.ledger.postgres import PostgresDatabase
from tokenometer.processor.ledger.values import DatabaseError

LEDGERS = pathlib.Path(make.__file__).parent
# Of the statements of each released version. A line is added for a new version; none is ever changed.
DIGESTS = {
    ("duckdb", 1): "aa2f8f453d227b207b6622f081bff1fd477f52cf8e6dba3d75d6f4fc6f680584",
    ("postgres", 1): "e0ef57f80cea503dfeb48a9266e1b5cd3897d8970d649abe13c8d15765638d72",
    ("duckdb", 2): "43e084b109b8a8cd754a1db9eead21725c35b8525e3541af636d6ce342e2563b",
    ("postgres", 2): "cdbce8fe0600488e69768286853304638daec76a10143a40b7f1f18c04b6da0e",
}
# What a counter more would be.
LATER = (
    "ALTER TABLE parts ADD COLUMN audio_tokens {u64}",
    "ALTER TABLE open_rows ADD COLUMN audio_tokens {u64} DEFAULT 0",
    *(
        f"ALTER TABLE {table} ADD COLUMN audio_tokens {{total}} DEFAULT 0"
        for table in ("merged_rows", "statement_lines", "late")
    ),
    "DROP VIEW usage",
    f"CREATE VIEW usage AS SELECT {', '.join(KEY)}, "
    + ", ".join(f"CAST({name} AS {{total}}) AS {name}" for name in (*COUNTED, "audio_tokens"))
    + f" FROM open_rows UNION ALL SELECT {', '.join(KEY)}, "
    + ", ".join((*COUNTED, "audio_tokens"))
    + " FROM merged_rows",
)


@pytest.mark.parametrize(
    ("dialect", "types", "indexed"),
    [("duckdb", DuckDatabase.types, False), ("postgres", PostgresDatabase.types, True)],
)
def test_a_released_migration_never_changes(dialect: str, types: Any, indexed: bool) -> None:
    for number, migration in enumerate(migrations.MIGRATIONS, 1):
        text = "\n".join(line for each in migration for line in migrations.filled(each, types, indexed))
        assert DIGESTS[dialect, number] == hashlib.sha256(text.encode()).hexdigest(), f"version {number} of {dialect}"


@pytest.fixture(params=["version-1", "version-2"])
def old(database: str, request: pytest.FixtureRequest) -> Iterator[tuple[str, dict[str, Any]]]:
    """A ledger that an earlier version made, and what it answered."""
    version = request.param
    if database.startswith("postgresql"):
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute((LEDGERS / f"{version}.sql").read_text())  # type: ignore[arg-type]
    else:
        pathlib.Path(database).write_bytes(gzip.decompress((LEDGERS / f"{version}.duckdb.gz").read_bytes()))
    told = json.loads((LEDGERS / f"{version}.json").read_text())
    if database.startswith("postgresql"):  # its topics are of another broker
        positions = told["positions"]
        with psycopg.connect(database) as connection:
            for topic, partition, topic_id, _ in positions:
                connection.execute(
                    "UPDATE positions SET topic_id = %s WHERE topic = %s AND partition = %s",
                    [topic_id, topic, partition],
                )
    yield database, told


def test_an_old_ledger_answers_as_before(old: tuple[str, dict[str, Any]]) -> None:
    name, told = old
    with books.opened(name) as store:
        assert _answers(store, told) == told
        assert statements.reconcile(store.database) == []


def _answers(store: books.Store, told: dict[str, Any]) -> dict[str, Any]:
    return {**make.answers(store), **({"money": make.money(store)} if "money" in told else {})}


def test_an_old_ledger_is_taken_through_the_migration_of_a_later_counter(
    old: tuple[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, told = old
    monkeypatch.setattr(migrations, "MIGRATIONS", (*migrations.MIGRATIONS, LATER))
    with pytest.raises(DatabaseError, match="tables of version [12], .* reads version 3: start `tokenometer ledger`"):
        open_database(name, writer=False)
    with books.opened(name) as store:
        assert _answers(store, told) == told
        assert store.database.rows("SELECT sum(audio_tokens) FROM usage") == [(0,)]
    with books.opened(name) as store:  # a second start migrates nothing
        assert store.database.rows("SELECT version FROM schema_version ORDER BY version") == [(1,), (2,), (3,)]
        _go_on(store, books.totals(store))
        assert statements.reconcile(store.database) == []


def _go_on(store: books.Store, before: Any) -> None:
    """Every statement that writes does so into the tables with a column more."""
    part = next(part for part in store.parts.in_state("open"))
    identity = (*IDENTITY[:4], "meter.9")
    take(store, [books.usage_row(identity, COUNTS)])
    with store.database.transaction():
        store.database.merge_part(part.id)
    periods.close(
        store.database, books.START_MS + 9 * make.DAY_MS, 0, 0, terms=periods.Terms(anyway=True, without_prices=True)
    )
    take(store, [books.usage_row(identity, books.add(COUNTS, COUNTS))])
    books.harness.add_rows(before, {IDENTITY[:4]: books.add(COUNTS, COUNTS)})
    assert books.totals(store) == before


def test_a_newer_database_is_refused(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as later:
        later.setattr(migrations, "MIGRATIONS", (*migrations.MIGRATIONS, LATER))
        with books.opened(database):
            pass
    for writer in (True, False):
        with pytest.raises(DatabaseError, match=r"tables of version 3, and this tokenometer knows 2: upgrade it"):
            open_database(database, writer)
