"""Usage rows into the lake: two writers, beside the DuckDB ledger's intake, and the bytes of a row beside PostgreSQL.

    lake     two processes take the partitions of the same rows, as messages, to committed snapshots; the time is that
             of the slower one. Rows are those of bench_ledger: most of them are of identities that are there already.
    ledger   the same rows into a DuckDB ledger, which uses all cores. The broker is in neither.
    bytes    of the table's data files after its part has ended, for each row in it; of a PostgreSQL ledger that has
             merged the same rows, with its keys

Checked: the sums of both against those of the rows that were made.
"""

import contextlib
import pathlib
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np
import orjson

from bench import common
from bench.bench_ledger import _batch, _bytes, _merge
from tokenometer.processor.broker import Messages, Offset, Place
from tokenometer.processor.lake.held import HeldPart
from tokenometer.processor.lake.latest import MESSAGES_MAX, Latest
from tokenometer.processor.lake.state import LakeState, Slice, Topics, advanced
from tokenometer.processor.lake.table import LakeTable, embedded
from tokenometer.processor.ledger import decode
from tokenometer.processor.ledger.opening import open_database
from tokenometer.processor.ledger.store import Stand, Store
from tokenometer.processor.ledger.values import LedgerBatch
from tokenometer.processor.meter import heap
from tokenometer.schemas.usage import COUNTERS, Usage

SIZES = {
    "small": {"batches": 3, "batch_rows": 2_000, "users": 1_000},
    "large": {"batches": 40, "batch_rows": 200_000, "users": 300_000},
}
WRITERS = 2
TABLE = "bench.usage"
_PART, _WINDOW_MS = "meter-0.20261123T100000Z-5f3a.1", 60_000


def main(arguments: Sequence[str]) -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--without-postgres", action="store_true", help="leave PostgreSQL out")
    options = parser.parse_args(arguments)
    facts, size = common.facts("bench.bench_lake", arguments), SIZES[options.size]
    skipped: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="tokenometer-bench-") as name:
        folder = pathlib.Path(name)
        truth, rows = _make(folder, size)
        case = {"messages": rows, **_ledger(folder, "duckdb", f"{folder}/ledger.duckdb", size, truth)}
        case |= _lake(folder, size, truth)
        case["ratio"] = case["rows_per_second"] / case["duckdb_rows_per_second"]
        try:
            case |= {} if options.without_postgres else _postgres(folder, size, truth)
        except RuntimeError as error:
            skipped["postgres"] = str(error)
    print(
        f"lake, {WRITERS} writers {case['rows_per_second']:,.0f} rows/s, DuckDB ledger "
        f"{case['duckdb_rows_per_second']:,.0f} rows/s, {case['ratio']:.2f} times; {case['bytes_a_row']:.1f} bytes a "
        f"row, DuckDB {case['duckdb_bytes_a_row']:.1f}, PostgreSQL {case.get('postgres_bytes_a_row', 0):.1f}"
    )
    common.save(options.json, {"kind": "lake", **facts, "size": size, "cases": {"lake": case}, "skipped": skipped})
    return 0


# --- The rows ---


def _make(folder: pathlib.Path, size: dict[str, int]) -> tuple[list[int], int]:
    """Batches of values as files, each one's values by partition; the sums, and how many rows there are."""
    draw, truth, rows = np.random.default_rng(1), np.zeros(len(COUNTERS), np.int64), 0
    held: dict[int, np.ndarray[Any, Any]] = {}
    for number in range(size["batches"]):
        values, sums = _batch(draw, number, {"part": "intake", **size}, held)
        truth, rows = truth + sums, rows + len(values)
        (folder / f"all-{number}").write_bytes(b"\n".join(values))
        for partition in range(WRITERS):
            own = [value for value in values if hash_of(value) % WRITERS == partition]
            (folder / f"{partition}-{number}").write_bytes(b"\n".join(own))
    return truth.tolist(), rows


def hash_of(value: bytes) -> int:
    """A row is in the partition of its key."""
    return sum(orjson.loads(value)["user"].encode()[-4:])


def _messages(file: pathlib.Path, partition: int, first: int) -> Messages:
    values = file.read_bytes().split(b"\n")
    offsets = np.arange(first, first + len(values), dtype=np.int64)
    keys = [value[: value.index(b',"window_ms"')] + b"}" for value in values]
    return Messages(Place("token-usage", partition), values, np.zeros(len(values), np.uint64), offsets, keys)


# --- The lake ---


def _lake(folder: pathlib.Path, size: dict[str, int], truth: list[int]) -> dict[str, Any]:
    LakeTable(embedded(f"{folder}/lake"), TABLE)
    with ProcessPoolExecutor(WRITERS, get_context("spawn")) as pool:
        jobs = [pool.submit(_write, str(folder), number, size["batches"]) for number in range(WRITERS)]
        found = [job.result() for job in jobs]
    table = LakeTable(embedded(f"{folder}/lake"), TABLE).load()
    assert list(LakeTable(embedded(f"{folder}/lake"), TABLE).sums_by_part()[_PART]) == truth
    files = table.inspect.files().to_pylist()
    rows, size_bytes = (sum(file[name] for file in files) for name in ("record_count", "file_size_in_bytes"))
    messages = sum(each["messages"] for each in found)
    return {
        "rows_per_second": messages / max(each["seconds"] for each in found),
        "processor_seconds": sum(each["processor"] for each in found),
        "decoding_share": sum(each["decoding"] for each in found) / sum(each["seconds"] for each in found),
        "rows": rows,
        "bytes_a_row": size_bytes / rows,
    }


def _write(folder: str, partition: int, batches: int) -> dict[str, float]:
    """One writer: all of its rows, then one commit, which waits for the other one's where they meet."""
    import pyarrow as pa

    pa.set_cpu_count(1)
    heap.keep_freed_memory()  # as `tokenometer lake` does
    latest = Latest(MESSAGES_MAX // WRITERS)  # as a writer of more partitions
    table, held = LakeTable(embedded(f"{folder}/lake"), TABLE), HeldPart(_PART, _WINDOW_MS)
    seconds = processor = decoding = 0.0
    first = 0
    for number in range(batches):
        messages = _messages(pathlib.Path(folder) / f"{partition}-{number}", partition, first)
        began, used = time.perf_counter(), _processor()
        latest.add(messages)
        if latest.is_full:
            decoding += _read(latest, held, partition)
        seconds, processor = seconds + time.perf_counter() - began, processor + _processor() - used
        first += len(messages.values)
    began, used = time.perf_counter(), _processor()
    decoding += _read(latest, held, partition)
    rows, sums = held.final()
    own = Slice(_PART, {partition: Offset(first)}, -1, -1, sums, None)
    topics = Topics("token-usage", "1", "token-live", "2", WRITERS)

    def change(state: LakeState | None) -> Any:
        return advanced(state or LakeState(topics), [own], {partition: Offset(first)}, {})

    table.commit([rows], {partition: None}, change)
    seconds, processor = seconds + time.perf_counter() - began, processor + _processor() - used
    return {"seconds": seconds, "decoding": decoding, "messages": first, "processor": processor}


def _read(latest: Latest, held: HeldPart, partition: int) -> float:
    """The seconds of decoding."""
    seconds = 0.0
    for messages in latest.take():
        began = time.perf_counter()
        rows = decode.usage_rows([messages])
        seconds += time.perf_counter() - began
        assert rows is not None
        held.add(rows, None, partition, Offset(int(messages.offsets[0])), messages.next_offset)
    return seconds


def _processor() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


# --- The ledgers ---


def _ledger(folder: pathlib.Path, kind: str, database: str, size: dict[str, int], truth: list[int]) -> dict[str, Any]:
    with contextlib.closing(Store(open_database(database, writer=True))) as store:
        store.place({Place("token-usage", 0): Stand("bench", Offset(0))})
        seconds, first, processor = 0.0, 0, 0.0
        for number in range(size["batches"]):
            messages = _messages(folder / f"all-{number}", 0, first)
            began, used = time.perf_counter(), _processor()
            rows = decode.usage_rows([messages])
            store.take(LedgerBatch(rows, [], {messages.place: messages.next_offset}))
            seconds, processor = seconds + time.perf_counter() - began, processor + _processor() - used
            first += len(messages.values)
        _merge(store, Usage(*truth))  # type: ignore[arg-type]
        store.database.rows("CHECKPOINT" if kind == "duckdb" else "VACUUM FULL")
        [(count, *sums)] = store.database.rows(
            f"SELECT count(*), {', '.join(f'sum({name})' for name in COUNTERS)} FROM usage"
        )
        assert [int(value) for value in sums] == truth
        size_bytes = _bytes(store.database, database)
    return {
        f"{kind}_rows_per_second": first / seconds,
        f"{kind}_processor_seconds": processor,
        f"{kind}_bytes_a_row": size_bytes / int(count),
    }


def _postgres(folder: pathlib.Path, size: dict[str, int], truth: list[int]) -> dict[str, Any]:
    from tests.postgres_server import PostgresMissing, PostgresServer

    try:
        server = PostgresServer(durable=True)
    except PostgresMissing as error:
        raise RuntimeError(str(error)) from None
    with contextlib.closing(server), server.database() as url:
        return _ledger(folder, "postgres", url, size, truth)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
