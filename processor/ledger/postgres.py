"""The ledger's database in PostgreSQL, for production. Only this file imports psycopg.

A batch comes by COPY into a temporary table, and goes from there into the rows by one INSERT ... ON CONFLICT. Names are
`bytea`: a text of PostgreSQL cannot hold U+0000, and a name may. Counters are NUMERIC: its integers of 64 bits have a
sign. Other processes may read while the ledger writes; a session's advisory lock keeps a second writer out.
"""

import contextlib
import io
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.csv as pc

from tokenometer.processor.ledger.database import COLUMNS, COUNTS, KEY, WIDE, Database, Rows, Types, shown
from tokenometer.processor.ledger.migrations import check_version, migrate
from tokenometer.processor.ledger.values import Busy, DatabaseError
from tokenometer.schemas.usage import COUNTERS

_LOCK = 0x746F6B656E6F  # one ledger in one database
# The keys': each page of an index is visited once.
_MERGED_ORDER = "user_id, window_start, model_id, chip_id, labels_id"
_ORDER = f"{_MERGED_ORDER}, part_id"
_SUMS = ", ".join(f"{name} = held.{name} + excluded.{name}" for name in COUNTS)
_ADD = f"""
    INSERT INTO merged_rows AS held ({", ".join((*KEY, *COUNTS))})
    SELECT {", ".join((*KEY, *COUNTS))} FROM open_rows WHERE part_id = ? ORDER BY window_start
    ON CONFLICT ({_MERGED_ORDER}) DO UPDATE SET {_SUMS}
"""


def _upsert(columns: Sequence[str], counters: Sequence[str]) -> str:
    """Columns that are not named are 0 in a new row, and stay what they are in an old one."""
    return f"""
        INSERT INTO open_rows AS held ({", ".join(columns)})
        SELECT {", ".join(columns)} FROM incoming ORDER BY {_ORDER}
        ON CONFLICT ({_ORDER}) DO UPDATE SET
            {", ".join(f"{name} = greatest(held.{name}, excluded.{name})" for name in counters)}
    """


_UPSERT, _UPSERT_WIDE = _upsert(COLUMNS, COUNTERS), _upsert(WIDE, COUNTS)
_STAGE = (
    "CREATE TEMPORARY TABLE IF NOT EXISTS incoming (window_start BIGINT, user_id INTEGER, model_id INTEGER, "
    "chip_id INTEGER, labels_id INTEGER, part_id INTEGER, "
    f"{', '.join(f'{name} NUMERIC' for name in COUNTS)}) ON COMMIT DELETE ROWS"
)
# Sums of a day's users fit in memory; compiling a question takes longer than running it.
_SESSION = "SET work_mem = '64MB'; SET jit = off"
_CONNECT_SECONDS = 10
_LOCK_SECONDS = 5
_IDLE_MAX = 4


class PostgresDatabase:
    types = Types(u64="NUMERIC(20)", total="NUMERIC", bytes="BYTEA")

    def __init__(self, name: str, writer: bool) -> None:
        self._name = name
        self._connection = _connect(name)
        self._idle: list[Any] = []  # connections of readers, for the next ones: to open one takes 10 ms
        try:
            if writer:
                self._lock()
                migrate(self, indexed=True)
                self.rows(_STAGE)
            else:
                self._check()
        except BaseException:
            self.close()
            raise

    def _lock(self) -> None:
        """A ledger that was killed has the lock until its server process has noticed."""
        deadline = time.monotonic() + _LOCK_SECONDS
        while not self.rows("SELECT pg_try_advisory_lock(?)", [_LOCK])[0][0]:
            if time.monotonic() > deadline:
                raise Busy(f"{shown(self._name)}: another ledger writes to it; one database has one ledger")
            time.sleep(0.1)

    def _check(self) -> None:
        [(there,)] = self.rows("SELECT to_regclass('schema_version') IS NOT NULL")
        if not there:
            raise DatabaseError(f"{shown(self._name)}: there is no ledger in it; is the schema in the search_path?")
        check_version(self)

    def rows(self, statement: str, parameters: Sequence[Any] = ()) -> Rows:
        psycopg = _require()
        try:
            cursor = self._connection.execute(statement.replace("?", "%s"), parameters or None)
            return cursor.fetchall() if cursor.description else []
        except psycopg.Error as error:
            raise _failed(self._name, error) from error

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        psycopg = _require()
        try:
            with self._connection.transaction():
                yield
        except psycopg.Error as error:
            raise _failed(self._name, error) from error

    def ids(self, table: str, texts: Sequence[bytes]) -> dict[bytes, int]:
        return {bytes(name): id for name, id in self.rows(f"SELECT name, id FROM {table} WHERE name = ANY(?)", [texts])}

    def append(self, table: str, rows: Any) -> None:
        """A field that is empty and not quoted is NULL."""
        plain = rows
        for number, column in enumerate(rows.schema):
            if pa.types.is_binary(column.type):
                hex_texts = [None if value is None else f"\\x{value.hex()}" for value in rows[number].to_pylist()]
                plain = plain.set_column(number, column.name, pa.array(hex_texts, pa.string()))
        text = io.BytesIO()
        pc.write_csv(plain, text, pc.WriteOptions(include_header=False))
        self._copy(f"{table} ({', '.join(rows.column_names)})", text.getbuffer())

    def stage(self, batch: Any) -> None:
        text = io.BytesIO()
        pc.write_csv(batch, text, pc.WriteOptions(include_header=False, quoting_style="none"))
        self._copy(f"incoming ({', '.join(batch.column_names)})", text.getbuffer())

    def _copy(self, table: str, text: Any) -> None:
        psycopg = _require()
        try:
            with self._connection.cursor() as cursor:
                with cursor.copy(f"COPY {table} FROM STDIN (FORMAT csv)") as copy:
                    copy.write(text)
        except psycopg.Error as error:
            raise _failed(self._name, error) from error

    def upsert(self, further: bool) -> None:
        self.rows(_UPSERT_WIDE if further else _UPSERT)

    def merge_part(self, part_id: int) -> None:
        self.rows(_ADD, [part_id])
        self.rows("DELETE FROM open_rows WHERE part_id = ?", [part_id])

    def buckets(self, bounds: Sequence[int]) -> str:
        if len(bounds) == 1:
            return f"{int(bounds[0])}::bigint"
        array = f"'{{{','.join(str(int(bound)) for bound in bounds)}}}'::bigint[]"
        return f"({array})[width_bucket(window_start, {array})]"

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[Database]:
        reader = object.__new__(PostgresDatabase)
        reader._name, reader._idle = self._name, self._idle
        try:
            reader._connection = self._idle.pop()
        except IndexError:
            reader._connection = _connect(self._name)
        try:
            with reader.transaction():
                reader.rows("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
                yield reader
        except DatabaseError:
            reader._connection.close()  # it may be broken
            raise
        finally:
            if not reader._connection.closed and len(self._idle) < _IDLE_MAX:
                self._idle.append(reader._connection)
            else:
                reader._connection.close()

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()
        self._connection.close()


def _connect(name: str) -> Any:
    psycopg = _require()
    try:
        connection = psycopg.connect(name, autocommit=True, connect_timeout=_CONNECT_SECONDS)
        connection.execute(_SESSION)
        return connection
    except (psycopg.Error, UnicodeError) as error:
        raise _failed(name, error) from None


def _failed(name: str, error: Exception) -> DatabaseError:
    return DatabaseError(f"{shown(name)}: {str(error).strip().splitlines()[0] if str(error).strip() else error!r}")


def _require() -> Any:
    try:
        import psycopg
    except ImportError:
        raise DatabaseError("a ledger in PostgreSQL needs psycopg: pip install 'tokenometer[ledger]'") from None
    return psycopg
