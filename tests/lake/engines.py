"""Other programs' view of a table: DuckDB's Iceberg extension and Spark, as their users have them.

    python -m pytest tests/lake/test_engines.py      in the environment that `make test-engines` makes

The extension comes from PyPI, where its files lie beside DuckDB's; Spark's runtime for Iceberg and SQLite's driver come
from Maven, into a folder of the user's cache.
"""

import contextlib
import os
import pathlib
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, TypeVar

from tests import harness
from tests.lake import lakes
from tokenometer.processor.lake.table import LakeTable
from tokenometer.schemas.usage import COUNTERS, FURTHER, TOTAL

T = TypeVar("T")
JARS = ("org.apache.iceberg:iceberg-spark-runtime-4.0_2.13:1.10.0", "org.xerial:sqlite-jdbc:3.46.1.3")
_SUMS = ", ".join(f"CAST(sum({name}) AS DECIMAL(38, 0)) AS {name}" for name in (*COUNTERS, TOTAL, *FURTHER))
_KEY = "window_start, user, model, chip"


class EngineMissing(Exception):
    """What the test needs is not installed; the message says what."""


def rows_of(found: Any) -> harness.Rows:
    """Rows (epoch ms, user, model, chip, labels as pairs, counters, total, further) as the oracle's."""
    rows: harness.Rows = {}
    for ms, user, model, chip, pairs, *counts in found:
        counters, total, further = counts[: len(COUNTERS)], counts[len(COUNTERS)], counts[len(COUNTERS) + 1 :]
        counters, further = list(map(int, counters)), list(map(int, further))
        assert int(total) == counters[1] + counters[4]
        labels = (tuple(sorted(map(tuple, pairs))),) if pairs else ()
        rows[int(ms), user, model, chip, *labels] = counters + (further if any(further) else [])
    return rows


def by_duckdb(table: LakeTable) -> harness.Rows:
    import duckdb

    query = f"""
        SELECT epoch_ms(window_start), "user", model, chip, map_entries(labels) AS labels, {_SUMS}
        FROM iceberg_scan(?) GROUP BY window_start, "user", model, chip, labels
    """
    with duckdb.connect(config={"allow_unsigned_extensions": "true"}) as connection:
        for name in ("avro", "iceberg"):
            connection.execute(f"LOAD '{_extension(name)}'")
        found = connection.execute(query, [table.load().metadata_location.removeprefix("file://")]).fetchall()
    return rows_of((*row[:4], [(pair["key"], pair["value"]) for pair in row[4]], *row[5:]) for row in found)


def _extension(name: str) -> pathlib.Path:
    import importlib

    package = importlib.import_module(f"duckdb_extension_{name}")
    [file] = pathlib.Path(str(package.__file__)).parent.rglob(f"{name}.duckdb_extension")
    return file


@contextlib.contextmanager
def spark_session(warehouse: pathlib.Path) -> Iterator[Any]:
    """Spark on the embedded catalog, by JDBC."""
    from pyspark.sql import SparkSession

    catalog = "spark.sql.catalog.tokenometer"
    session = (
        SparkSession.builder.master("local[2]")
        .config("spark.jars", ",".join(map(str, jars())))
        .config("spark.sql.extensions", "org.apache.iceberg.spark.extensions.IcebergSparkSessionExtensions")
        .config(catalog, "org.apache.iceberg.spark.SparkCatalog")
        .config(f"{catalog}.type", "jdbc")
        .config(f"{catalog}.uri", f"jdbc:sqlite:{warehouse / 'catalog.db'}")
        .config(f"{catalog}.warehouse", warehouse.as_uri())
        .config("spark.sql.session.timeZone", "UTC")
        .config("spark.ui.enabled", "false")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.sql.shuffle.partitions", "2")
        .config("spark.driver.memory", "1g")
        .getOrCreate()
    )
    try:
        yield session
    finally:
        session.stop()


def by_spark(warehouse: pathlib.Path) -> harness.Rows:
    """In a process of its own: as long as it runs, Spark keeps a lock on SQLite's file."""
    return _apart(_ask_spark, warehouse)


def compacted_by_spark(warehouse: pathlib.Path) -> None:
    _apart(_compact_by_spark, warehouse)


def _apart(work: Callable[[pathlib.Path], T], warehouse: pathlib.Path) -> T:
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(work, warehouse).result()


def _compact_by_spark(warehouse: pathlib.Path) -> None:
    with spark_session(warehouse) as session:
        options = "options => map('rewrite-all', 'true')"
        session.sql(f"CALL tokenometer.system.rewrite_data_files(table => '{lakes.TABLE}', {options})").collect()


def _ask_spark(warehouse: pathlib.Path) -> harness.Rows:
    query = f"""
        SELECT unix_millis(window_start), user, model, chip, pairs, {_SUMS} FROM (
            SELECT *, array_sort(map_entries(labels)) AS pairs FROM tokenometer.{lakes.TABLE}
        ) GROUP BY window_start, user, model, chip, pairs
    """
    with spark_session(warehouse) as session:
        return rows_of(tuple(row) for row in session.sql(query).collect())


def jars() -> list[pathlib.Path]:
    """From the user's cache, or from Maven."""
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "tokenometer" / "spark"
    found = []
    for artifact in JARS:
        _, name, version = artifact.split(":")
        file = cache / f"{name}-{version}.jar"
        if not file.exists():
            maven = shutil.which("mvn")
            if maven is None:
                raise EngineMissing("Maven (mvn) is not installed: it fetches Spark's runtime for Iceberg")
            command = [maven, "-q", "-B", "dependency:copy", f"-Dartifact={artifact}", f"-DoutputDirectory={cache}"]
            cache.mkdir(parents=True, exist_ok=True)
            subprocess.run(command, cwd=cache, check=True)
        found.append(file)
    return found
