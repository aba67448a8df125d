"""The ledger's database in one file, by DuckDB. This is the default. Only this file and the audit import DuckDB.

There are no keys and no indexes: the store alone writes, and MERGE finds identities by a hash join whose scan of the
table is bounded by the windows of the batch. A primary key made the same batches 1.8 times slower; an index on users
would take three times the room of the rows.

Whoever opens a file reads all of it once: DuckDB keeps a checksum with each block, and compares it when it reads the
block, so damage is found at the start and not in the middle of a bill. Errors are told apart by their class, and
whether another process has the file is asked of the system; what a message says is for people.

The file's lock is what keeps a second writer out. It keeps readers of other processes out as well: a running ledger
answers over HTTP.
"""

import contextlib
import fcntl
import os
import pathlib
import struct
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from tokenometer.processor.ledger.database import COLUMNS, COUNTS, IDENTITY, KEY, WIDE, Database, Rows, Types
from tokenometer.processor.ledger.migrations import check_version, migrate
from tokenometer.processor.ledger.values import Busy, Damaged, DatabaseError
from tokenometer.schemas.usage import COUNTERS

if TYPE_CHECKING:
    import duckdb

_SAME = " AND ".join(f"held.{name} = incoming.{name}" for name in IDENTITY)
_PART = f"SELECT {', '.join(KEY)}, {', '.join(COUNTS)} FROM open_rows WHERE part_id = ?"
_ADD = f"""
    UPDATE merged_rows AS held SET {", ".join(f"{name} = held.{name} + part.{name}" for name in COUNTS)}
    FROM ({_PART}) AS part WHERE {" AND ".join(f"held.{name} = part.{name}" for name in KEY)}
"""
# By user, so that of each 122,880 rows a smallest and a largest user is known that tells most users' questions to pass.
_MOVE = f"""
    INSERT INTO merged_rows ({", ".join((*KEY, *COUNTS))})
    SELECT * FROM ({_PART}) AS part ANTI JOIN merged_rows USING ({", ".join(KEY)}) ORDER BY user_id, window_start
"""


def _upsert(columns: Sequence[str], counters: Sequence[str]) -> str:
    """Columns that are not named are 0 in a new row, and stay what they are in an old one."""
    return f"""
        MERGE INTO open_rows AS held USING incoming ON {_SAME}
        WHEN MATCHED THEN UPDATE SET
            {", ".join(f"{name} = greatest(held.{name}, incoming.{name})" for name in counters)}
        WHEN NOT MATCHED THEN INSERT ({", ".join(columns)})
            VALUES ({", ".join(f"incoming.{name}" for name in columns)})
    """


_UPSERT, _UPSERT_WIDE = _upsert(COLUMNS, COUNTERS), _upsert(WIDE, COUNTS)
_CHECKPOINT_AT = "256MB"  # the default of 16 MB stops a busy ledger many times a minute


def check_there(name: str) -> None:
    if not pathlib.Path(name).is_file():
        raise DatabaseError(
            f"{name}: there is no such ledger; name one with --database or --url, or start one: tokenometer ledger"
        )


class DuckDatabase:
    _name: str
    _connection: "duckdb.DuckDBPyConnection"
    _readers: "duckdb.DuckDBPyConnection"  # never used by the writer's thread
    _lock: threading.Lock
    types = Types(u64="UBIGINT", total="HUGEINT", bytes="BLOB")

    def __init__(self, name: str, writer: bool) -> None:
        duckdb = _require()
        if not writer:
            check_there(name)
        try:
            config = {"checkpoint_threshold": _CHECKPOINT_AT} if writer else {}
            self._connection = duckdb.connect(name, read_only=not writer, config=config)
        except duckdb.Error as error:
            raise _unopened(name, error) from None
        self._name = name
        self._readers, self._lock = self._connection.cursor(), threading.Lock()
        try:
            self._read_all()
            migrate(self, indexed=False) if writer else check_version(self)
        except BaseException:
            self.close()
            raise

    def _read_all(self) -> None:
        """Every block of every table. Raises Damaged. Half a second for 10 million rows, on two cores."""
        try:
            for (table,) in self.rows("SELECT table_name FROM duckdb_tables() WHERE NOT internal AND NOT temporary"):
                self.rows(f'SELECT bit_xor(hash(held)) FROM "{table}" AS held')
        except DatabaseError as error:
            if isinstance(error.__cause__, _require().IOException):  # a block that is not there
                raise _damaged(self._name, error.__cause__) from None
            raise

    def rows(self, statement: str, parameters: Sequence[Any] = ()) -> Rows:
        try:
            found: Rows = self._connection.execute(statement, list(parameters)).fetchall()
        except _require().Error as error:
            raise _failed(self._name, error) from error
        return found

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        self.rows("BEGIN")
        try:
            yield
            self._unstage()
            self.rows("COMMIT")
        except BaseException:
            with contextlib.suppress(DatabaseError):  # a failed COMMIT has rolled back already
                self.rows("ROLLBACK")
            with contextlib.suppress(DatabaseError):
                self._unstage()
            raise

    def ids(self, table: str, texts: Sequence[bytes]) -> dict[bytes, int]:
        self._register("wanted", pa.table({"name": pa.array(texts, pa.binary())}))
        found = self.rows(f"SELECT name, id FROM {table} JOIN wanted USING (name)")
        return dict(found)

    def append(self, table: str, rows: Any) -> None:
        self._register("wanted", rows)
        columns = ", ".join(rows.column_names)
        self.rows(f"INSERT INTO {table} ({columns}) SELECT {columns} FROM wanted")

    def stage(self, batch: Any) -> None:
        self._register("incoming", batch)

    def upsert(self, further: bool) -> None:
        self.rows(_UPSERT_WIDE if further else _UPSERT)

    def merge_part(self, part_id: int) -> None:
        self.rows(_ADD, [part_id])
        self.rows(_MOVE, [part_id])
        self.rows("DELETE FROM open_rows WHERE part_id = ?", [part_id])

    def buckets(self, bounds: Sequence[int]) -> str:
        """A balanced tree of comparisons: DuckDB has no search in a list."""
        if len(bounds) == 1:
            return str(int(bounds[0]))
        half = len(bounds) // 2
        low, high = self.buckets(bounds[:half]), self.buckets(bounds[half:])
        return f"CASE WHEN window_start < {int(bounds[half])} THEN {low} ELSE {high} END"

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[Database]:
        """Reads on a connection of its own to the same database."""
        reader = object.__new__(DuckDatabase)
        with self._lock:
            reader._connection, reader._readers, reader._lock = self._readers.cursor(), self._readers, self._lock
        reader._name = self._name
        try:
            reader.rows("BEGIN")
            yield reader
        finally:
            reader._connection.close()

    def close(self) -> None:
        self._readers.close()
        self._connection.close()

    def _register(self, name: str, table: Any) -> None:
        self._connection.register(name, table)

    def _unstage(self) -> None:
        for name in ("incoming", "wanted"):
            with contextlib.suppress(_require().Error):
                self._connection.unregister(name)


def _unopened(name: str, error: Exception) -> DatabaseError:
    if not isinstance(error, _require().IOException) or not pathlib.Path(name).is_file():
        return _failed(name, error)
    if (holder := _holder(name)) is not None:
        who = f"process {holder}" if holder > 0 else "another process"
        return Busy(
            f"{name}: {who} has it open. A running ledger answers over HTTP: use --url http://HOST:PORT in place of "
            f"--database, or stop it first"
        )
    if not os.access(name, os.R_OK | os.W_OK):
        return DatabaseError(f"{name}: this user may not read and write it")
    return _damaged(name, error)


def _failed(name: str, error: Exception) -> DatabaseError:
    """DuckDB has no class for a checksum that differs: it is its base class, of which no other error is."""
    duckdb = _require()
    inner = (duckdb.FatalException, duckdb.InternalException, duckdb.SerializationException)
    if type(error) is duckdb.Error or isinstance(error, inner):
        return _damaged(name, error)
    return DatabaseError(f"{name}: DuckDB: {error}")


def _damaged(name: str, error: Exception) -> Damaged:
    return Damaged(
        f"{name} is damaged, or no ledger at all: {str(error).splitlines()[0]}. It is left as it is; docs/BILLING.md, "
        f"'A damaged ledger', says how to make it anew"
    )


def _holder(name: str) -> int | None:
    """The process that has the file's lock; 0 or less: one that cannot be seen from here. None: nobody.

    Only asked after this process has failed to get the lock: closing a file gives up all locks of a process on it.
    """
    layout = "hhqqi"  # struct flock of Linux
    with contextlib.suppress(OSError), open(name, "rb") as file:
        asked = struct.pack(layout, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, *_, holder = struct.unpack_from(layout, fcntl.fcntl(file, fcntl.F_GETLK, asked.ljust(32, b"\0")))
        return None if kind == fcntl.F_UNLCK else int(holder)
    return None


def _require() -> Any:
    try:
        import duckdb
    except ImportError:
        raise DatabaseError("a ledger in a file needs DuckDB: pip install 'tokenometer[ledger]'") from None
    return duckdb
