"""The table: the one module that knows Iceberg.

Owns: what the table looks like, how a commit is exactly once, which files are whose.

    1. data files are written, and belong to nothing yet
    2. the table is loaded; its state says what every writer has committed
    3. a snapshot: these files, and the new state in its summary; the catalog takes it only as the successor of 2
    4. where another commit came first, again from 2, with the same files

Killed before 3, nothing has happened but files that nobody refers to; `clean` removes them. Killed after 3, all has.
"""

import contextlib
import itertools
import pathlib
import random
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

import pyarrow as pa
from pyarrow import fs
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.exceptions import (
    CommitFailedException,
    NamespaceAlreadyExistsError,
    NoSuchTableError,
    NotInstalledError,
    RESTError,
    ValidationException,
)
from pyiceberg.io.pyarrow import ArrowScan, _dataframe_to_data_files
from pyiceberg.manifest import DataFile
from pyiceberg.partitioning import PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.table import FileScanTask, Table
from pyiceberg.table.snapshots import Operation, Snapshot, ancestors_of
from pyiceberg.table.update.snapshot import _FastAppendFiles, _OverwriteFiles
from pyiceberg.transforms import DayTransform
from pyiceberg.types import LongType, MapType, NestedField, StringType, TimestamptzType

from tokenometer.processor.lake import state as states
from tokenometer.processor.lake.state import Dispute, LakeState, Mark
from tokenometer.processor.lake.values import CatalogAway, LakeError, OtherTable, Taken, TooManyConflicts
from tokenometer.processor.secret import scrub
from tokenometer.schemas.usage import COUNTERS, FURTHER, TOTAL, Usage

T = TypeVar("T")
STATE, PARENT = "tokenometer.state", "tokenometer.parent"
CONFLICTS_MAX = 20  # one after the other; with so many writers, commit less often
COMPACT_BYTES = 128 << 20  # smaller files of a day are put together, up to this size
_WAIT_SECONDS = (0.05, 2.0)  # first and longest, after a conflict
_PROPERTIES = {
    "format-version": "2",
    "write.parquet.compression-codec": "zstd",
    "write.metadata.delete-after-commit.enabled": "true",  # the state is in each metadata file: no need for old ones
    "write.metadata.previous-versions-max": "20",
    "history.expire.min-snapshots-to-keep": "20",
}


def iceberg_schema() -> Schema:
    texts, longs = ("user", "model", "chip"), (*COUNTERS, TOTAL, *FURTHER)
    numbers = itertools.count(1)
    labels = MapType(1001, StringType(), 1002, StringType(), value_required=True)
    fields: list[tuple[str, Any]] = [("window_start", TimestamptzType()), ("window_ms", LongType())]
    fields += [(name, StringType()) for name in texts] + [("labels", labels), ("part", StringType())]
    fields += [(name, LongType()) for name in longs]
    return Schema(*(NestedField(next(numbers), name, kind, required=True) for name, kind in fields))


_SPEC = PartitionSpec(PartitionField(1, 1000, DayTransform(), "window_day"))


def embedded(warehouse: str) -> Catalog:
    """A catalog in a SQLite file, beside the data."""
    folder = pathlib.Path(warehouse).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    uri = f"sqlite:///{folder / 'catalog.db'}?timeout=60"  # s that a commit waits for another one
    return load_catalog("tokenometer", type="sql", uri=uri, warehouse=folder.as_uri())


def configured(name: str) -> Catalog:
    """A catalog that pyiceberg's own configuration names. Raises LakeError where that is wrong, CatalogAway."""
    with _asking(f"the catalog {name}"):
        try:
            return load_catalog(name)
        except (ValueError, NotInstalledError) as error:
            raise LakeError(f"the catalog {name}: {scrub(str(error))}; docs/LAKE.md says where it is set") from None


class LakeTable:
    """A table of a catalog, made where it is not there. name: NAMESPACE.TABLE. Raises OtherTable, CatalogAway."""

    def __init__(self, catalog: Catalog, name: str, create: bool = True) -> None:
        self._catalog, self.name = catalog, name
        with _asking(f"the table {name}"):
            if create and not catalog.table_exists(name):
                with contextlib.suppress(NamespaceAlreadyExistsError):
                    catalog.create_namespace(name.rpartition(".")[0])
                catalog.create_table_if_not_exists(name, iceberg_schema(), partition_spec=_SPEC, properties=_PROPERTIES)
        self._check(self.load())

    def load(self) -> Table:
        with _asking(f"the table {self.name}"):
            try:
                return self._catalog.load_table(self.name)
            except NoSuchTableError:
                raise OtherTable(f"the catalog has no table {self.name}") from None

    def _check(self, table: Table) -> None:
        wanted = {field.name: str(field.field_type) for field in iceberg_schema().fields}
        found = {field.name: str(field.field_type) for field in table.schema().fields}
        if wanted != found:
            name = min(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
            raise OtherTable(
                f"the table {self.name} has another schema: column {name} is {found.get(name, 'not there')}, and "
                f"should be {wanted.get(name, 'not there')}: use another table"
            )
        fields = [
            (table.schema().find_column_name(field.source_id), str(field.transform)) for field in table.spec().fields
        ]
        if fields != [("window_start", "day")]:
            raise OtherTable(
                f"the table {self.name} is not partitioned by the day of window_start alone: use another table"
            )

    def state(self) -> LakeState | None:
        """None: nothing was ever committed. Raises OtherTable, CatalogAway."""
        return state_of(self.load())

    def commit(
        self,
        rows: Sequence[pa.Table],
        believed: Mapping[int, Mark | None],
        change: Callable[[LakeState | None], tuple[LakeState, list[Dispute]]],
    ) -> tuple[LakeState, list[Dispute]]:
        """Append these rows, once. believed: the marks of the writer's own partitions, on which the rows rest. change:
        the new state, made of that which the table has by then. Raises Taken, TooManyConflicts, CatalogAway, OSError of
        a full disk."""
        table = self.load()
        files = list(itertools.chain.from_iterable(_written(table, each) for each in rows if len(each)))

        def append(table: Table) -> tuple[LakeState, list[Dispute]]:
            old = state_of(table)
            if old is not None and any(old.marks.get(number) != mark for number, mark in believed.items()):
                raise Taken("another writer has committed for a partition that this one reads")
            if old is None and any(mark is not None for mark in believed.values()):
                raise Taken("the table was made anew")
            new, disputes = change(old)
            _append(table, files, _summary(new, table))
            return new, disputes

        return self._optimistically(append, files)

    def _optimistically(self, attempt: Callable[[Table], T], files: Sequence[DataFile]) -> T:
        """Attempt it until no other commit comes first. Where it is sure not to have happened, its files go."""
        wait, longest = _WAIT_SECONDS
        try:
            for _ in range(CONFLICTS_MAX):
                table = self.load()
                with _asking(f"a commit to the table {self.name}"):
                    try:
                        return attempt(table)
                    except CommitFailedException:
                        time.sleep(random.uniform(0, wait))
                        wait = min(2 * wait, longest)
            raise TooManyConflicts(
                f"the table {self.name}: {CONFLICTS_MAX} commits of others came first, one after the other. Nothing "
                f"was written; start again, with a longer --commit-interval or fewer writers"
            )
        except (Taken, TooManyConflicts, ValidationException):
            _delete(self.load(), [file.file_path for file in files])
            raise

    # --- Small files ---

    def compact(self, target_bytes: int = COMPACT_BYTES, files_min: int = 2) -> tuple[int, int]:
        """Put small files of a day together: how many there were, and how many they have become. What another program
        has compacted meanwhile is left to it. Exactly once is not touched: the state goes on unchanged."""
        before = after = 0
        table = self.load()
        with _asking(f"the files of the table {self.name}"):
            bins = list(_bins(table.scan().plan_files(), target_bytes, files_min))
        for some in bins:
            try:
                count = self._rewrite(table, some)
            except ValidationException:
                continue
            before, after = before + len(some), after + count
        return before, after

    def _rewrite(self, table: Table, tasks: Sequence[FileScanTask]) -> int:
        with _asking(f"the files of the table {self.name}"):
            rows = ArrowScan(table.metadata, table.io, table.schema(), _everything()).to_table(tasks)
        order = [(name, "ascending") for name in ("user", "model", "chip", "window_start")]
        files = list(_written(table, rows.sort_by(order)))
        assert sum(file.record_count for file in files) == sum(task.file.record_count for task in tasks)

        def replace(table: Table) -> int:
            state = state_of(table)
            _replace(table, [task.file for task in tasks], files, _summary(state, table) if state else {})
            return len(files)

        return self._optimistically(replace, files)

    def clean(self, older_than_ms: int, now_ms: int) -> list[str]:
        """Delete data files that no snapshot has, and return their names. older_than_ms: younger ones may belong to a
        commit that is on its way."""
        table = self.load()
        with _asking(f"the files of the table {self.name}"):
            known = {_path(name) for name in table.inspect.all_files()["file_path"].to_pylist()}
            there = list(_files(table))
            # A commit that came in between has files that were not known before.
            known |= {_path(name) for name in self.load().inspect.all_files()["file_path"].to_pylist()}
            store = _store(table)
            gone = [name for name, ms in there if name not in known and ms < now_ms - older_than_ms]
            for name in gone:
                store.delete_file(name)
        return gone

    # --- Questions ---

    def sums_by_part(self) -> dict[str, Usage]:
        """The counters of each part."""
        found: dict[str, Usage] = {}
        with _asking(f"the rows of the table {self.name}"):
            for batch in self.load().scan(selected_fields=("part", *COUNTERS)).to_arrow_batch_reader():
                grouped = pa.table(batch).group_by("part").aggregate([(name, "sum") for name in COUNTERS])
                for row in grouped.to_pylist():
                    sums = [row[f"{name}_sum"] for name in COUNTERS]
                    found[row["part"]] = found.get(row["part"], Usage()).plus(sums)
        return found


# --- Snapshots ---


def state_of(table: Table) -> LakeState | None:
    """From the last snapshot that has one. Other programs' snapshots, such as those of a compaction, have none."""
    current = table.current_snapshot()
    if current is None:
        return None
    for snapshot in ancestors_of(current, table.metadata):
        text = _property(snapshot, STATE)
        if text is not None:
            if _property(snapshot, PARENT) != str(snapshot.parent_snapshot_id):
                raise OtherTable(
                    f"snapshot {snapshot.snapshot_id} of the table was made of another one than the one before it: "
                    f"some program has repeated a commit. Roll the table back to the snapshot before"
                )
            return states.decode(text)
    raise OtherTable(
        "the table has rows, and none of its snapshots says how far Kafka's topics are in it: it is not a table of "
        "tokenometer lake, or all of its snapshots have expired. Use another table"
    )


def _property(snapshot: Snapshot, name: str) -> str | None:
    return None if snapshot.summary is None else snapshot.summary.additional_properties.get(name)


def _summary(state: LakeState, table: Table) -> dict[str, str]:
    current = table.current_snapshot()
    parent = None if current is None else current.snapshot_id
    return {STATE: states.encode(state), PARENT: str(parent)}


def _refuse(_: Any) -> NoReturn:
    """In place of pyiceberg's own second attempt, which would not read the state again."""
    raise CommitFailedException("another commit came first")


class _AppendOnce(_FastAppendFiles):
    _validate_concurrency = _refuse


class _ReplaceOnce(_OverwriteFiles):
    _validate_concurrency = _refuse


def _append(table: Table, files: Iterable[DataFile], summary: dict[str, str]) -> None:
    with table.transaction() as transaction:
        producer = _AppendOnce(Operation.APPEND, transaction, table.io, snapshot_properties=summary)
        for file in files:
            producer.append_data_file(file)
        producer.commit()


def _replace(table: Table, old: Iterable[DataFile], new: Iterable[DataFile], summary: dict[str, str]) -> None:
    with table.transaction() as transaction:
        producer = _ReplaceOnce(Operation.OVERWRITE, transaction, table.io, snapshot_properties=summary)
        for file in old:
            producer.delete_data_file(file)
        for file in new:
            producer.append_data_file(file)
        producer.commit()


# --- Files ---


def _written(table: Table, rows: pa.Table) -> Iterable[DataFile]:
    with _asking(f"the files of the table {'.'.join(table.name())}"):
        return list(_dataframe_to_data_files(table.metadata, rows, table.io, uuid.uuid4()))


def _bins(tasks: Iterable[FileScanTask], target: int, files_min: int) -> Iterator[list[FileScanTask]]:
    """Small files of the same day, as many as make a large one."""
    days: dict[str, list[FileScanTask]] = {}
    for task in tasks:
        if task.file.file_size_in_bytes < target // 2 and not task.delete_files:
            days.setdefault(repr(task.file.partition), []).append(task)
    for small in days.values():
        some, size = list[FileScanTask](), 0
        for task in small:
            if some and size + task.file.file_size_in_bytes > target:
                yield from [some] if len(some) >= files_min else []
                some, size = [], 0
            some.append(task)
            size += task.file.file_size_in_bytes
        yield from [some] if len(some) >= files_min else []


def _everything() -> Any:
    from pyiceberg.expressions import AlwaysTrue

    return AlwaysTrue()


def _store(table: Table) -> Any:
    scheme, netloc, _ = table.io.parse_location(table.location(), table.io.properties)  # type: ignore[attr-defined]
    return table.io.fs_by_scheme(scheme, netloc)  # type: ignore[attr-defined]


def _path(name: str) -> str:
    from pyiceberg.io.pyarrow import PyArrowFileIO

    return PyArrowFileIO.parse_location(name)[2]


def _files(table: Table) -> Iterator[tuple[str, int]]:
    """Names of data files, and when each was written, in ms."""
    folder = _path(f"{table.location()}/data")
    for info in _store(table).get_file_info(fs.FileSelector(folder, allow_not_found=True, recursive=True)):
        if info.type == fs.FileType.File:
            yield info.path, info.mtime_ns // 1_000_000


def _delete(table: Table, names: Iterable[str]) -> None:
    """What cannot be deleted now, `clean` deletes later."""
    for name in names:
        with contextlib.suppress(OSError):
            table.io.delete(name)


@contextlib.contextmanager
def _asking(what: str) -> Iterator[None]:
    """What catalogs and stores raise when they are away, as CatalogAway; a full disk stays an OSError."""
    import requests

    try:
        from sqlalchemy.exc import SQLAlchemyError
    except ImportError:  # a catalog that is no database
        SQLAlchemyError = RESTError  # type: ignore[misc, assignment]
    try:
        yield
    except OSError as error:
        if error.errno is not None and not isinstance(error, (requests.RequestException, ConnectionError)):
            raise
        _away(what, error)
    except (RESTError, SQLAlchemyError) as error:
        _away(what, error)


def _away(what: str, error: Exception) -> NoReturn:
    first = scrub(str(error)).strip().partition("\n")[0]
    raise CatalogAway(
        f"{what}: no answer that can be used: {type(error).__name__}: {first}. Nothing is lost: start again once it "
        f"answers, and the table says how far it is"
    ) from None
