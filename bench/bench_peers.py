"""The same log and the same answer by this engine and by what one would otherwise use, in one run.

The question: for each (minute, user, model, chip) the requests and the five token counters, counting of all records
with one request id only the first in the file. A second table asks the same without the request ids.

The log: synthetic, the default profile (320-byte records in the native mapping, 1 % sent again, some late, some spelled
with JSON escapes), but without malformed records, on which the peers do not agree, and without `prefill_chip`, which
would book half a record on another row and make their SQL a union. An absent count is 0 for everyone.

Timed: from opening the file, which is in the page cache, to an Arrow table of the answer in memory; for this engine
that includes making its tables, and for DuckDB opening a database. Not timed: imports, and a first run over the log's
head that loads code and starts threads. Each run has a fresh process, bound to its cores; contenders take turns (A B C,
A B C, ...), and the first turn is not counted. Before each, memory is taken and freed: the host of a virtual machine
takes back what is free for long and gives it again slowly, so that whoever followed a large contender paid for it. Peak
memory is the process's own (on all cores of orjson + dict, the sum over its processes), imports and all, before the
check of its answer.

Every answer's digest must be the same, or the run fails. A contender that is not installed is listed with the reason.

    python -m bench.bench_peers --size large --json bench/results/peers.json
"""

import contextlib
import importlib.util
import io
import json
import multiprocessing
import pathlib
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from bench import common
from bench.logs import make_all, path_of
from tokenometer.processor.load.profile import Profile

MODULE = "bench.bench_peers"
WINDOW_MS = 60_000
KEYS = ("window_start", "user", "model", "chip")
TOKENS = ("input_tokens", "cached_input_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens")
COUNTERS = ("requests", *TOKENS)
FIELDS = {"request_id": str, "timestamp": int, "user": str, "model": str, "chip": str, **dict.fromkeys(TOKENS, int)}
ANSWER = pa.schema([("window_start", pa.int64()), *((key, pa.string()) for key in KEYS[1:])]
                   + [(name, pa.int64()) for name in COUNTERS])  # fmt: skip
HEAD_BYTES = 4 << 20
SIZES = {"small": (20_000, 0, 1), "large": (3_000_000, 1, 5)}  # records, turns that do not count, turns that do
MEMORY = {"small": 1 << 28, "large": None}  # for this engine's tables, of which a log of any size touches all pages


@dataclass(frozen=True)
class Contender:
    name: str
    answer: Callable[[str, bool, int], Any]  # (log, without duplicates?, threads) -> a table with ANSWER's columns
    module: str | None = None  # what must be installed
    how: str = ""
    read: Callable[[Any], Any] = lambda answer: answer  # what `answer` gave into such a table, which is not timed


# --- This engine ---


_memory: list[int] = []  # where a child's tables are not the usual ones


def tokenometer(log: str, dedup: bool, threads: int) -> Any:
    """Whole batches as `tokenometer replay` reads them; with more than one thread one reads ahead, as there."""
    from tokenometer.kernels.engine import CONFLICTING, Engine, Limits
    from tokenometer.kernels.target import HostTarget
    from tokenometer.processor.files.logs import LogReader
    from tokenometer.processor.records.referee import Referee

    # The peers write no dead letters either, for duplicates that say something else.
    limits = Limits.from_memory(*_memory) if _memory else None
    engine = Engine(
        HostTarget(threads), Referee(), secret=list(range(1, 9)), limits=limits, window_ms=WINDOW_MS,
        conflict_letters=False,
    )  # fmt: skip
    mapping, reader = native(dedup), LogReader([log])
    with ThreadPoolExecutor(1) as ahead:
        batch = engine.open_batch()
        chunk = reader.fill(batch.space)
        while chunk is not None:
            batch.length, batch.message_end = chunk.length, chunk.message_end
            loaded = engine.load(batch, mapping)
            batch = engine.open_batch()
            coming = ahead.submit(reader.fill, batch.space) if threads > 1 else None
            progress = engine.count(loaded)
            assert progress.next_message == len(chunk.message_end), f"more than one part: {engine.fill()}"
            # Some of the records that are sent again say something else.
            assert {letter.rejection for letter in progress.dead_letters} <= {CONFLICTING}
            chunk = coming.result() if coming else reader.fill(batch.space)
    return _from_engine(engine.changes())


def python_interface(log: str, dedup: bool, threads: int) -> Any:
    """As in a notebook: dead letters, sums and the largest users are made, too."""
    import tokenometer

    return tokenometer.meter(log, native(dedup), memory=_memory[0] if _memory else None).table


def replay(log: str, dedup: bool, threads: int) -> Any:
    """The command, with its rows in a Parquet file."""
    from tokenometer.processor.cli.__main__ import run

    folder = pathlib.Path(tempfile.mkdtemp(prefix="tokenometer-bench-"))
    mapping, rows = folder / "native.toml", folder / "usage.parquet"
    mapping.write_text(native_text(dedup), encoding="utf-8")
    memory = [f"--memory={size}" for size in _memory]
    with contextlib.redirect_stdout(io.StringIO()):
        code = run(["replay", log, "--mapping", str(mapping), "--out", str(rows), "--json", *memory])
    assert code == 0
    return rows


def _from_rows(table: Any) -> Any:
    """Usage rows, as the commands write them."""
    window = table["window_start"].cast(pa.timestamp("ms", "UTC")).cast(pa.int64())
    return pa.table([window, *(table[name] for name in ANSWER.names[1:])], names=ANSWER.names)


def _from_file(rows: pathlib.Path) -> Any:
    table = pq.read_table(rows)
    shutil.rmtree(rows.parent)
    return _from_rows(table)


def native(dedup: bool) -> Any:
    """The native mapping; without duplicates to find, its request id is not mapped."""
    from tokenometer.schemas import mapping as mappings

    return mappings.resolve("native") if dedup else mappings.parse(native_text(False), "native without request ids")


def native_text(dedup: bool) -> str:
    from tokenometer.schemas import mapping as mappings

    text = (pathlib.Path(mappings.__file__).parent / "mappings" / "native.toml").read_text(encoding="utf-8")
    without = text.replace('[fields.request_id]\npath = "request_id"\n', "")
    assert without != text
    return text if dedup else without


def _from_engine(slices: Any) -> Any:
    return pa.concat_tables([_from_slice(rows) for rows in slices])


def _from_slice(rows: Any) -> Any:
    from tokenometer.processor.files.output import Names

    columns = [pa.array((rows.table["window"] * np.uint64(rows.window_ms)).astype(np.int64))]
    columns += [Names(rows.table[key], rows.arena).column() for key in KEYS[1:]]
    return pa.table([*columns, *map(pa.array, np.ascontiguousarray(rows.table["counters"].T))], names=ANSWER.names)


# --- Peers ---


def duckdb(log: str, dedup: bool, threads: int) -> Any:
    import duckdb

    columns = {name: "VARCHAR" if kind is str else "BIGINT" for name, kind in FIELDS.items()}
    source = f"read_ndjson('{log}', columns = {columns})"
    sums = ", ".join(f"sum(coalesce({name}, 0))::BIGINT AS {name}" for name in TOKENS)
    group = (
        f'SELECT "timestamp" - "timestamp" % {WINDOW_MS} AS window_start, "user", model, chip, count(*) AS requests, '
        f"{sums} FROM {{}} GROUP BY ALL"
    )
    with duckdb.connect(config={"threads": threads}) as connection:
        if not dedup:
            return connection.sql(group.format(source)).to_arrow_table()
        # rowid is the line's number: insertion order is preserved. Faster here than DISTINCT ON, QUALIFY or arg_min.
        connection.execute(f"CREATE TEMP TABLE log AS SELECT * FROM {source}")
        first = "log WHERE rowid IN (SELECT min(rowid) FROM log GROUP BY request_id)"
        return connection.sql(group.format(first)).to_arrow_table()


def polars(log: str, dedup: bool, threads: int) -> Any:
    import polars

    assert polars.thread_pool_size() == threads, "POLARS_MAX_THREADS"
    schema = {name: polars.String if kind is str else polars.Int64 for name, kind in FIELDS.items()}
    lines = polars.scan_ndjson(log, schema=schema)
    if dedup:
        lines = lines.filter(polars.col("request_id").is_first_distinct())
    time = polars.col("timestamp")
    sums = [polars.col(name).sum() for name in TOKENS]
    groups = lines.group_by((time - time % WINDOW_MS).alias("window_start"), *KEYS[1:])
    return groups.agg(polars.len().alias("requests"), *sums).collect(engine="streaming").to_arrow()


def chdb(log: str, dedup: bool, threads: int) -> Any:
    import chdb

    columns = ", ".join(f"{name} {'String' if kind is str else 'Int64'}" for name, kind in FIELDS.items())
    source = f"file('{log}', 'JSONEachRow', '{columns}')"
    if dedup:
        source = f"(SELECT *, _row_number AS line FROM {source} ORDER BY line LIMIT 1 BY request_id)"
    sums = ", ".join(f"sum({name}) AS {name}_sum" for name in TOKENS)
    answer = chdb.query(
        f"SELECT timestamp - timestamp % {WINDOW_MS} AS window_start, user, model, chip, count() AS requests, {sums} "
        f"FROM {source} GROUP BY window_start, user, model, chip SETTINGS max_threads = {threads}",
        "ArrowStream",
    )
    return pa.ipc.open_stream(answer.bytes()).read_all().rename_columns(ANSWER.names)


def pyarrow(log: str, dedup: bool, threads: int) -> Any:
    from pyarrow import json as pa_json

    pa.set_cpu_count(threads)
    several = threads > 1
    lines = pa_json.read_json(
        log,
        read_options=pa_json.ReadOptions(use_threads=several, block_size=1 << 24),
        parse_options=pa_json.ParseOptions(
            explicit_schema=pa.schema(
                [(name, pa.string() if kind is str else pa.int64()) for name, kind in FIELDS.items()]
            ),
            unexpected_field_behavior="ignore",
        ),
    )
    if dedup:
        ids = lines.select(["request_id"]).append_column("line", pa.array(np.arange(len(lines))))
        first = ids.group_by("request_id", use_threads=several).aggregate([("line", "min")])["line_min"]
        keep = np.zeros(len(lines), np.bool_)
        keep[first.to_numpy()] = True
        lines = lines.filter(pa.array(keep))
    windows = pc.multiply(pc.divide(lines["timestamp"], WINDOW_MS), WINDOW_MS)
    groups = lines.append_column("window_start", windows).group_by(KEYS, use_threads=several)
    sums = groups.aggregate([([], "count_all"), *((name, "sum") for name in TOKENS)])
    # The sum of nothing but absent counts is null.
    columns = [*sums.columns[: len(KEYS) + 1], *(pc.fill_null(column, 0) for column in sums.columns[len(KEYS) + 1 :])]
    return pa.table(columns, names=ANSWER.names)


def orjson_dict(log: str, dedup: bool, threads: int) -> Any:
    """What anyone writes first. On all cores: a range of the file for each process; earlier ranges' ids come last."""
    if threads == 1:
        with open(log, "rb") as file:
            rows = _count_lines(file, set() if dedup else None)
        return _from_dict([rows])
    with open(log, "rb") as file:
        cuts = [0]
        size = file.seek(0, 2)
        for k in range(1, threads):
            file.seek(size * k // threads)
            file.readline()
            cuts.append(file.tell())
    return _from_dict(_count_ranges(log, [*cuts, size], dedup))


def _count_lines(lines: Any, seen: set[str] | None) -> dict[tuple[int, str, str, str], list[int]]:
    import orjson

    loads = orjson.loads
    rows: dict[tuple[int, str, str, str], list[int]] = {}
    for line in lines:
        record = loads(line)
        if seen is not None:
            if record["request_id"] in seen:
                continue
            seen.add(record["request_id"])
        _add(rows, *_read(record))
    return rows


def _read(record: dict[str, Any]) -> tuple[tuple[int, str, str, str], list[int]]:
    get, time = record.get, record["timestamp"]
    key = (time - time % WINDOW_MS, record["user"], record["model"], record["chip"])
    return key, [
        1,
        record["input_tokens"],
        get("cached_input_tokens") or 0,
        get("cache_write_tokens") or 0,
        record["output_tokens"],
        get("reasoning_tokens") or 0,
    ]


def _add(rows: dict[Any, list[int]], key: tuple[int, str, str, str], counts: list[int]) -> None:
    row = rows.get(key)
    if row is None:
        rows[key] = counts
        return
    for k, count in enumerate(counts):
        row[k] += count


def _count_ranges(log: str, cuts: list[int], dedup: bool) -> list[dict[Any, list[int]]]:
    """Each process counts its range and tells its ids; then it takes back those that an earlier range had."""
    context = multiprocessing.get_context("fork")
    workers = []
    for begin, end in zip(cuts, cuts[1:], strict=False):
        here, there = context.Pipe()
        process = context.Process(target=_range_worker, args=(there, log, begin, end, dedup))
        process.start()
        workers.append((process, here))
    before: set[str] = set()
    for k, (_, pipe) in enumerate(workers):
        ids = pipe.recv()
        pipe.send(before & ids)
        if k + 1 < len(workers):
            before |= ids
    parts = []
    for process, pipe in workers:
        rows, peak = pipe.recv()
        _worker_peaks.append(peak)
        parts.append(rows)
        process.join()
    return parts


_worker_peaks: list[int] = []


def _range_worker(pipe: Any, log: str, begin: int, end: int, dedup: bool) -> None:
    import orjson

    rows: dict[Any, list[int]] = {}
    first: dict[str, tuple[Any, list[int]]] = {}
    with open(log, "rb") as file:
        file.seek(begin)
        at = begin
        for line in file:
            key, counts = _read(record := orjson.loads(line))
            if not dedup:
                _add(rows, key, counts)
            elif record["request_id"] not in first:
                first[record["request_id"]] = key, counts
            at += len(line)
            if at >= end:
                break
    pipe.send(set(first))
    for request_id in pipe.recv():
        del first[request_id]
    for key, counts in first.values():
        _add(rows, key, counts)
    pipe.send((rows, common.peak_bytes()))


def _from_dict(parts: list[dict[Any, list[int]]]) -> Any:
    rows = parts[0]
    for part in parts[1:]:
        for key, counts in part.items():
            _add(rows, key, counts)
    return pa.table([*map(pa.array, zip(*rows)), *map(pa.array, zip(*rows.values()))], names=ANSWER.names)  # noqa: B905


CONTENDERS = (
    Contender("tokenometer", tokenometer, how="this engine, CPU build"),
    Contender(".meter()", python_interface, how="tokenometer.meter, to an Arrow table", read=_from_rows),
    Contender("replay", replay, how="the command, to a Parquet file", read=_from_file),
    Contender("duckdb", duckdb, "duckdb", "read_ndjson into a temporary table; least rowid of each id; GROUP BY"),
    Contender("polars", polars, "polars", "scan_ndjson, is_first_distinct, group_by; streaming engine"),
    Contender("chdb", chdb, "chdb", "file(JSONEachRow), ORDER BY _row_number LIMIT 1 BY id, GROUP BY"),
    Contender("pyarrow", pyarrow, "pyarrow", "json.read_json in 16 MiB blocks; least line of each id; group_by"),
    Contender("orjson + dict", orjson_dict, "orjson", "a loop in Python; on all cores a process for each range"),
)


# --- A run in a child ---


def child() -> None:
    request = json.load(sys.stdin)
    _memory[:] = filter(None, [request["memory"]])
    contender = next(one for one in CONTENDERS if one.name == request["name"])
    contender.read(contender.answer(request["head"], request["dedup"], request["threads"]))
    _worker_peaks.clear()
    start = time.perf_counter()
    answer = contender.answer(request["log"], request["dedup"], request["threads"])
    seconds = time.perf_counter() - start
    answer = contender.read(answer)
    peak = common.peak_bytes() + sum(_worker_peaks)
    print(json.dumps({"seconds": seconds, "peak_bytes": peak, "rows": len(answer), "digest": digest_of(answer)}))


def digest_of(answer: Any) -> str:
    """Of the rows in order of their keys: equal answers have equal digests, whatever types and order they came in."""
    import hashlib

    table = answer.select(ANSWER.names).cast(ANSWER)
    table = table.take(pc.sort_indices(table, [(key, "ascending") for key in KEYS])).combine_chunks()
    made = hashlib.sha256()
    for column in table.columns:
        assert column.null_count == 0
        for buffer in column.chunk(0).buffers()[1:]:
            made.update(buffer)
    return made.hexdigest()[:16]


# --- The whole run ---


def missing(contender: Contender) -> str | None:
    if contender.module and importlib.util.find_spec(contender.module) is None:
        return f"not installed: pip install -e '.[bench]' brings {contender.module}"
    return None


def compare(
    runs: list[tuple[Contender, int]], log: pathlib.Path, head: pathlib.Path, dedup: bool, size: str, turns: int
) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """Every contender in turn, again and again; the size says how many turns do not count at first."""
    _, warm, _ = SIZES[size]
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    memory = 4 * log.stat().st_size  # the most that one of them takes
    for turn in range(warm + turns):
        for contender, threads in runs:
            request = {"name": contender.name, "threads": threads, "dedup": dedup, "log": str(log), "head": str(head),
                       "memory": MEMORY[size]}  # fmt: skip
            np.ones(memory, np.uint8)  # and freed at once
            answer = common.run_child(MODULE, request, threads, POLARS_MAX_THREADS=str(threads))
            print(f"turn {turn}: {contender.name}, {threads}: {answer}", file=sys.stderr)
            if turn >= warm:
                found.setdefault((contender.name, threads), []).append(answer)
    return found


def summary(found: dict[tuple[str, int], list[dict[str, Any]]], records: int, size: int) -> list[dict[str, Any]]:
    ours = median(run["seconds"] for run in found["tokenometer", 1])
    results = []
    for (name, threads), runs in found.items():
        seconds = median(run["seconds"] for run in runs)
        results.append(
            {
                "name": name,
                "threads": threads,
                "seconds": seconds,
                "seconds_all_turns": [run["seconds"] for run in runs],
                "records_per_s": records / seconds,
                "bytes_per_s": size / seconds,
                "ratio": seconds / ours,
                "peak_bytes": max(run["peak_bytes"] for run in runs),
                "rows": runs[0]["rows"],
                "digests": sorted({run["digest"] for run in runs}),
            }
        )
    return results


def show(console: Console, title: str, results: Sequence[dict[str, Any]], skipped: dict[str, str]) -> None:
    table = Table(title=title, title_justify="left")
    for name in ("contender", "cores", "seconds", "spread", "M records/s", "GB/s", "ratio", "peak", "rows", "digest"):
        table.add_column(name, justify="left" if name in ("contender", "digest") else "right")
    for result in results:
        every = result["seconds_all_turns"]
        table.add_row(
            result["name"],
            str(result["threads"]),
            f"{result['seconds']:.2f}",
            f"{min(every):.2f}-{max(every):.2f}",
            f"{result['records_per_s'] / 1e6:.2f}",
            f"{result['bytes_per_s'] / 1e9:.2f}",
            f"{result['ratio']:.2f}",
            f"{result['peak_bytes'] / (1 << 20):.0f} MiB",
            f"{result['rows']:,}",
            " ".join(result["digests"]),
        )
    for name, reason in skipped.items():
        table.add_row(name, "", reason)
    console.print(table)


def make_log(records: int, directory: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """The log and its head."""
    profile = Profile(records=records, seed=20, malformed=0.0, duplicates=0.01, prefill=0.0)
    make_all([profile], directory)
    log = path_of(profile, directory).absolute()
    head = log.with_suffix(".head.ndjson")
    with log.open("rb") as file:
        data = file.read(HEAD_BYTES)
    head.write_bytes(data[: data.rindex(b"\n") + 1])
    return log, head


def main(arguments: Sequence[str]) -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--turns", type=int, help="counted turns of each contender (5)")
    options = parser.parse_args(arguments)
    if options.child:
        child()
        return 0
    records, _, turns = SIZES[options.size]
    turns = options.turns or turns
    log, head = make_log(records, options.data)
    skipped = {one.name: reason for one in CONTENDERS if (reason := missing(one))}
    all_cores = len(common.cores())
    core_counts = sorted({1, all_cores})
    runs = [(one, threads) for one in CONTENDERS if one.name not in skipped for threads in core_counts]
    size = log.stat().st_size
    result = common.facts(MODULE, arguments) | {
        "kind": "peers",
        "log": {"records": records, "bytes": size, "record_bytes": size / records},
        "how": {one.name: one.how for one in CONTENDERS},
        "skipped": skipped,
        "tables": {},
    }
    console = Console(width=160 if not sys.stdout.isatty() else None)
    equal = True
    for title, dedup in (("with dedup", True), ("without dedup", False)):
        results = summary(compare(runs, log, head, dedup, options.size, turns), records, size)
        show(console, f"{title}: {records:,} records, {size / 1e9:.2f} GB", results, skipped)
        result["tables"][title] = results
        digests = {digest for one in results for digest in one["digests"]}
        if len(digests) > 1:
            equal = False
            print(f"{title}: the answers differ: {digests}", file=sys.stderr)
    if not equal:
        return 1  # and nothing is written: figures for different answers compare nothing
    common.save(options.json, result)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
