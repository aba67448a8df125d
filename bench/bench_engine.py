"""How fast the engine is by itself: parse only, and parse + dedup + aggregate, on one core, several, or a GPU.

Measured on a CPU, for each batch: from `Engine.load` (which splits it into lines) to the end of `Engine.count`. The
batch is in its buffer by then. Filling the buffer, here a memcpy, is reported beside it, and so is the sum of both.
Not measured: reading a file or a broker; taking rows out and turning the dedup generation, which are timed apart; and
the page faults of tables that are touched for the first time (but for `new_row_ns`, which has them).

State is warm: a first pass grows the tables; then come passes over logs of other seeds, so that every request id is
new, and message times that turn the generation before each pass, so that every id is looked up in two of them. A pass
begins with `Engine.changes`, so that every row it meets is marked as changed anew. The median pass is reported.

Measured on a GPU, apart: a plain copy from pinned memory (the bound), the engine's own copies, the kernels by CUDA
events, and wall time end to end: with the batches already in pinned memory, and with a host memcpy into it before each.

Each case runs in a fresh process that is bound to its cores. The digest is of all totals of (window, model, chip): the
same for the same seed on every target and for every number of threads.

    python -m bench.bench_engine --size large --json bench/results/engine-cpu.json
"""

import json
import os
import pathlib
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from bench import common
from bench.logs import CHIPS, MAPPINGS, MODELS, PROFILES, ChunksLog, FileLog, RowsLog, make_all, path_of, users_of
from tokenometer.kernels import layout
from tokenometer.kernels.engine import Engine, Limits, Loaded
from tokenometer.kernels.plan import compile_mapping
from tokenometer.kernels.target import DeviceError, HostTarget, open_target
from tokenometer.kernels.values import Batch
from tokenometer.processor.files.logs import message_ends
from tokenometer.processor.load.profile import START_MS, Profile
from tokenometer.processor.records.referee import Referee
from tokenometer.schemas import mapping as mappings

MODULE = "bench.bench_engine"
Log = FileLog | RowsLog | ChunksLog
GROUPS = ("records", "escapes", "repeats", "tiles", "batches", "messages", "identities", "skew", "rows", "memory")
SECRET = [0x9E3779B97F4A7C15 * k % (1 << 64) for k in range(1, 9)]  # fixed, so that probe lengths repeat
HORIZON_MS = 600_000
FIRST_MESSAGE_MS = START_MS + HORIZON_MS  # later than any event of a log
FILL_LIMIT = 0.749  # of a table's slots; the engine stops at 0.75
FILL_PASS_RECORDS = 1 << 22  # a generation of request ids while rows are filled in
MEMORY_SHARE_MAX = 0.7  # of what is free
GROUP_NOTES = {
    "records": "kinds of records (clean: none for the referee) and threads",
    "escapes": "default log whose models have a slash, escaped as PHP's json_encode does",
    "repeats": "200 chunks of each of 1,000 streams, which say the usage so far, as vLLM's do",
    "tiles": "records counted at a time; default log",
    "batches": "bytes of a batch; default log",
    "messages": "lines of a message; default log",
    "identities": "request ids that each of the two generations' tables has grown for; 1 M rows",
    "skew": "Zipf exponent of the draw among 1 M rows that are all there",
    "rows": "distinct rows, all there before, drawn uniformly: every record misses the caches",
    "memory": "peak memory of a process that does nothing else; ratio: to tables + request ids + two batches",
}


@dataclass(frozen=True)
class Case:
    """One measurement; a child process gets it as JSON."""

    group: str
    name: str
    log: str = "default"  # of PROFILES, or "rows": RowsLog, "chunks": ChunksLog
    records: int = 500_000  # of a pass
    passes: int = 7
    mode: str = "all"  # split, parse, all
    device: str = "cpu"
    threads: int = 1
    batch_bytes: int = Limits.batch_bytes
    tile_records: int = Limits.tile_records
    one_line_messages: bool = False
    escaped: bool = False  # see FileLog
    rows: int = 0  # filled in before
    rows_room: int = 1 << 22  # slots at least: room for the many windows and rows of the synthetic logs
    skew: float = 0.0
    remembered: int = 0  # request ids in a generation, before the first pass
    turn_by: int = 1  # generations between two passes; 2: ids are looked up in one set, as those of a file
    mapping: str = ""  # of MAPPINGS, for a log of bench.logs.labelled; otherwise what fits the log
    files: tuple[str, ...] = field(default=(), compare=False)


# --- Cases ---


def cases(size: str, device: str) -> list[Case]:
    small, cuda = size == "small", device == "cuda"
    if cuda:
        base = Case("", "", device=device, batch_bytes=1 << 26, tile_records=1 << 20, records=2_000_000, passes=3)
    else:
        base = Case("", "")
    many = [1, *([len(common.cores())] if len(common.cores()) > 1 and not cuda else [])]
    found = [
        replace(base, group="records", name=name, log=log, mode=mode, threads=threads)
        for log in PROFILES
        for name, mode, threads in [
            *([(f"{log}: split", "split", 1), (f"{log}: parse only", "parse", 1)] if not cuda else []),
            *((f"{log}: all", "all", threads) for threads in many),
        ]
    ]
    found += [
        replace(base, group="records", name=f"{log}, ids as of a file: all", log=log, turn_by=2)
        for log in PROFILES
        if "clean" in log
    ]
    found.append(replace(base, group="escapes", name="one in each record: all", escaped=True))
    found.append(replace(base, group="repeats", name="200 chunks: grow", log="chunks", records=1_000_000))
    rows = replace(base, log="rows")
    tiles = (18, 19, 20, 21) if cuda else (9, 11, 12, 13, 14, 15)
    batches = (24, 25, 26, 27) if cuda else (18, 20, 21, 22, 23, 24, 26)
    found += [replace(base, group="tiles", name=f"{1 << k}", tile_records=1 << k) for k in tiles]
    found += [replace(base, group="batches", name=_size(1 << k), batch_bytes=1 << k) for k in batches]
    found += [replace(base, group="messages", name="about 1 MiB")]
    found += [replace(base, group="messages", name="one line", one_line_messages=True)]
    for ids in (500_000, 4_000_000, 32_000_000):
        found.append(replace(rows, group="identities", name=_count(ids), rows=1_000_000, remembered=ids))
    for skew in (0.0, 0.5, 0.8, 1.0, 1.2, 1.5):
        found.append(replace(rows, group="skew", name=f"{skew}", rows=1_000_000, skew=skew))
    for count in (1_000, 10_000, 100_000, 1_000_000, 10_000_000, 50_000_000):
        found.append(replace(rows, group="rows", name=_count(count), rows=count))
    if not cuda:
        found.append(replace(rows, group="memory", name="many rows", rows=6_000_000))
        found.append(replace(rows, group="memory", name="many ids", rows=1_000_000, remembered=20_000_000))
    return [shrunk(case) for case in found if _is_small(case)] if small else found


def _is_small(case: Case) -> bool:
    names = (
        "default: all",
        "default: parse only",
        "compact: all",
        "one in each record: all",
        "200 chunks: grow",
        "4096",
        "one line",
        "1.2",
        "10 k",
        "many rows",
    )
    return case.name in names and (case.group != "rows" or case.rows < 100_000)


def shrunk(case: Case) -> Case:
    rows = min(case.rows, 50_000)
    # A process touches most pages of its tables, which for so few records costs more than all else.
    room = 1 << 18
    return replace(case, records=20_000, passes=2, rows=rows, rows_room=room, batch_bytes=1 << 20, tile_records=1 << 12)


def _count(number: int) -> str:
    return f"{number // 1_000_000} M" if number >= 1_000_000 else f"{number // 1_000} k"


def _size(number: int) -> str:
    return f"{number >> 20} MiB" if number >= 1 << 20 else f"{number >> 10} KiB"


def profiles_of(case: Case) -> list[Profile]:
    """A log to warm up, one for each pass, and one for the split by kernels."""
    if case.log not in PROFILES:
        return []
    return [Profile(records=case.records, seed=1 + k, **PROFILES[case.log]) for k in range(case.passes + 2)]


def limits_of(case: Case) -> Limits:
    """Tables for the case: what its rows fill, and the most that one batch could bring (Engine.load demands it)."""
    most = case.batch_bytes // compile_mapping(mappings.resolve("native")).record_bytes_min + 1
    rows = _power((case.rows + 2 * most) / FILL_LIMIT)
    texts = _power((users_of(case.rows) + 4 * most) / FILL_LIMIT)
    cells = _power((MODELS * CHIPS + 2 * most) / FILL_LIMIT)
    sizes: dict[str, int] = {"arena_bytes": max(1 << 26, 4 * case.batch_bytes), "identity_bytes": 1 << 34}
    if case.group == "memory":  # what is allocated shall be used
        sizes |= {"arena_bytes": 1 << 24, "windows": 16}
    else:
        room = case.rows_room
        rows = max(2 * room if case.device == "cuda" else room, rows)
        texts, cells = max(room // 2, texts), max(room // 4, cells)
    return Limits(
        rows=rows,
        texts=texts,
        cells=cells,
        batch_bytes=case.batch_bytes,
        tile_records=case.tile_records,
        **sizes,
    )


def _power(least: float) -> int:
    return 1 << max(4, int(np.ceil(np.log2(max(least, 1)))))


def bytes_of(case: Case) -> int:
    """What the case's process will touch, roughly: row tables, request ids while they grow, and its log."""
    limits = limits_of(case)
    ids = max(case.remembered, min(case.rows, FILL_PASS_RECORDS), case.records)
    return limits.rows * 68 + 3 * 16 * _power(ids / 0.75) + case.records * 350 + (1 << 29)


# --- Counting a pass ---


@dataclass(frozen=True)
class Pass:
    records: int
    bytes: int
    seconds: float  # load to the end of count
    fill_seconds: float  # memcpy into the batch


def parse_only(engine: Engine, loaded: Loaded) -> None:
    """The kernel `parse` over all tiles: what Engine.count does first, without the referee and all that follows.

    It reaches into the engine, as nothing but this measurement has a use for half a count.
    """
    lines = loaded.count_lines()
    engine._point_at(engine._job, loaded)
    doubtful = engine._fill.array[layout.FILL_DOUBTFUL : layout.FILL_DOUBTFUL + 1]
    for first in range(0, lines, engine.limits.tile_records):
        engine.target.launch("parse", engine._job, first, min(engine.limits.tile_records, lines - first))
        engine.target.send_behind(np.zeros(1, np.uint64), doubtful)


def count_all(engine: Engine, loaded: Loaded) -> None:
    progress = engine.count(loaded)
    ends = loaded.batch.message_end
    assert ends is not None and progress.next_message == len(ends), f"the tables are too small: {engine.fill()}"


def take_changes(engine: Engine) -> int:
    """Let go of the changed rows, slice by slice; how many there were."""
    return sum(map(len, engine.changes()))


WORK: dict[str, Callable[[Engine, Loaded], None]] = {"split": lambda *_: None, "parse": parse_only, "all": count_all}


class Runner:
    """An engine and the message time that it has reached."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.target = HostTarget(case.threads) if case.device == "cpu" else open_target(case.device)
        self.engine = Engine(self.target, Referee(), secret=SECRET, limits=limits_of(case), dedup_horizon_ms=HORIZON_MS)
        if case.mapping:
            self.mapping = mappings.parse(MAPPINGS[case.mapping], case.mapping)
        else:
            self.mapping = mappings.resolve("vllm" if case.log == "chunks" else "native")
        self.message_ms = FIRST_MESSAGE_MS
        self.turn_seconds = 0.0
        if self.target.shares_memory and not case.rows:
            for table in self.engine._part.tables.values():
                table.fill(0)  # takes the pages

    def turn(self) -> None:
        """The next generation of request ids, by an empty record; what it costs is kept apart."""
        self.message_ms += HORIZON_MS * self.case.turn_by
        batch = self.engine.pack([b""], [self.message_ms])
        start = time.perf_counter()
        count_all(self.engine, self.engine.load(batch, self.mapping))
        self.turn_seconds = time.perf_counter() - start

    def close_batch(self, batch: Batch, length: int) -> None:
        batch.length = length
        if self.case.one_line_messages:
            batch.message_end = (np.flatnonzero(batch.space[:length] == 0x0A) + 1).astype(np.uint32)
        else:
            batch.message_end = message_ends(batch.space, length)
        batch.message_time = np.full(len(batch.message_end), self.message_ms, np.uint64)

    def run(self, log: Log, mode: str) -> Pass:
        engine, work = self.engine, WORK[mode]
        records, size, seconds, fill_seconds = 0, 0, 0.0, 0.0
        while True:
            batch = engine.open_batch()
            start = time.perf_counter()
            length = log.fill(batch.space)
            filled = time.perf_counter()
            if not length:
                return Pass(records, size, seconds, fill_seconds)
            self.close_batch(batch, length)
            begun = time.perf_counter()
            loaded = engine.load(batch, self.mapping)
            work(engine, loaded)
            seconds += time.perf_counter() - begun
            fill_seconds += filled - start
            records, size = records + loaded.count_lines(), size + length


def log_of(case: Case, k: int) -> Log:
    if case.log == "chunks":
        return ChunksLog(case.records, seed=1 + k)
    if case.log == "rows":
        return RowsLog(case.rows, case.records, seed=100 + k, skew=case.skew)
    return FileLog(pathlib.Path(case.files[k]), case.escaped)


def fill_tables(runner: Runner) -> dict[str, float]:
    """Bring every row once, then the request ids to remember; how long new rows take."""
    case, new_seconds = runner.case, 0.0
    for first in range(0, case.rows, FILL_PASS_RECORDS):
        runner.turn()
        count = min(FILL_PASS_RECORDS, case.rows - first)
        new_seconds += runner.run(RowsLog(case.rows, count, seed=first, first_row=first), "all").seconds
    # Two generations, so that both tables have their size and their pages. Peak memory is while the first one grows.
    for seed in (98, 99)[: 1 if case.group == "memory" else 2] if case.remembered else ():
        runner.turn()
        runner.run(RowsLog(case.rows, case.remembered, seed=seed, skew=0.0), "all")
    return {"new_row_ns": new_seconds / case.rows * 1e9} if case.rows else {}


def measure(case: Case) -> dict[str, Any]:
    """In the child: a case on the CPU."""
    runner = Runner(case)
    engine = runner.engine
    extra = fill_tables(runner)
    runner.run(log_of(case, 0), "all")
    passes, commits, turns = [], [], []
    for k in range(1, case.passes + 1):
        log = log_of(case, k)
        start = time.perf_counter()
        rows = take_changes(engine)
        commits.append((time.perf_counter() - start) / max(1, rows) * 1e9)
        runner.turn()
        turns.append(runner.turn_seconds)
        before = engine.fill()["rows"][0]
        passes.append(runner.run(log, case.mode))
        new_rows = engine.fill()["rows"][0] - before
    extra |= {"new_rows_share": new_rows / passes[-1].records, "turn_ms": median(turns) * 1e3}
    extra |= {"commit_row_ns": median(commits[1:] or commits)}
    kernels = kernel_split(runner, log_of(case, case.passes + 1)) if case.mode == "all" else {}
    extra |= {"kernels": kernels, "digest": digest_of(engine), "target": engine.target.name}
    return summary(case, passes) | extra


def kernel_split(runner: Runner, log: Log) -> dict[str, float]:
    """ns per record of each launch, in a pass of its own; `rest` is Python and the referee."""
    spent: dict[str, float] = defaultdict(float)
    target: Any = runner.target
    plain_launch, plain_split = target.launch, target.split

    def timed(name: str | None, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any) -> Any:
            start = time.perf_counter()
            result = call(*arguments)
            spent[name or arguments[0]] += time.perf_counter() - start
            return result

        return wrapped

    take_changes(runner.engine)
    runner.turn()
    target.launch, target.split = timed(None, plain_launch), timed("split", plain_split)
    try:
        done = runner.run(log, "all")
    finally:
        del target.launch, target.split
    spent["rest"] = done.seconds - sum(spent.values())
    return {name: seconds / done.records * 1e9 for name, seconds in spent.items()}


def summary(case: Case, passes: Sequence[Pass]) -> dict[str, Any]:
    ns = [one.seconds / one.records * 1e9 for one in passes]
    with_fill = [(one.seconds + one.fill_seconds) / one.records * 1e9 for one in passes]
    record_bytes = sum(one.bytes for one in passes) / sum(one.records for one in passes)
    return {
        "record_bytes": record_bytes,
        "ns": median(ns),
        "ns_all_passes": ns,
        "records_per_s": 1e9 / median(ns),
        "bytes_per_s": record_bytes * 1e9 / median(ns),
        # A log that is made on the spot has no memcpy to count.
        "fill_ns": None if case.log not in PROFILES else median(one.fill_seconds / one.records * 1e9 for one in passes),
        "records_per_s_with_fill": None if case.log not in PROFILES else 1e9 / median(with_fill),
    }


def digest_of(engine: Engine) -> str:
    cells = [(cell.window_start, cell.model, cell.chip, *cell.counters) for cell in engine.cells()]
    return common.digest(sorted(cells))


# --- Memory ---


def measure_memory(case: Case) -> dict[str, Any]:
    """In the child: peak memory against the tables, request ids and two batches. Nothing else is held."""
    before = common.peak_bytes()
    runner = Runner(case)
    extra = fill_tables(runner)
    counted = common.peak_bytes()
    rows = take_changes(runner.engine)
    committed = common.peak_bytes()
    engine = runner.engine
    tables = sum(array.nbytes for array in engine._part.tables.values())
    ids = [
        table
        for known in engine._partitions.values()
        for table in (known.identities._current, known.identities._before)
    ]
    identities = sum(table.nbytes for table in ids if table is not None)
    bound = tables + identities + 2 * case.batch_bytes
    assert rows == case.rows or case.remembered
    return extra | {
        "rows": rows,
        "rows_full": case.rows / engine.limits.rows,
        "process_bytes": before,
        "tables_bytes": tables,
        "identities_bytes": identities,
        "batches_bytes": 2 * case.batch_bytes,
        "peak_bytes": counted,
        "peak_with_commit_bytes": committed,
        "ratio": counted / bound,
        "ratio_with_commit": committed / bound,
        "ratio_without_process": (committed - before) / bound,
        "digest": digest_of(engine),
        "target": engine.target.name,
    }


# --- CUDA ---


class CudaRunner(Runner):
    """Batches that lie in pinned memory before the clock starts, as a consumer's would.

    The engine owns two batch buffers. To leave the host's memcpy out without waiting for the GPU in between, this lends
    its slots other pinned memory: a batch each.
    """

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self._lent: list[tuple[Any, Any]] = []

    def prefill(self, log: Log) -> list[tuple[Any, Any, int]]:
        filled = []
        space = self.case.batch_bytes
        for k in range(10_000):
            if k == len(self._lent):
                memory = self.target.pinned(len(self.engine._slots[0].buffer.memory))
                self._lent.append((memory, memory[layout.PREFIX_BYTES : layout.PREFIX_BYTES + space]))
            memory, view = self._lent[k]
            length = log.fill(view)
            if not length:
                return filled
            filled.append((memory, view, length))
        raise AssertionError("a log of more than 10,000 batches")

    def run_filled(self, filled: Sequence[tuple[Any, Any, int]], copy_from: bool = False) -> Pass:
        """Wall time of all batches: each travels while the one before is counted. `copy_from`: with a memcpy before."""
        engine = self.engine
        own = [(slot.buffer.memory, slot.buffer.space) for slot in engine._slots]
        records, waiting = 0, None
        prepared = []
        for _, view, length in filled:
            batch = Batch(view, view)
            self.close_batch(batch, length)
            prepared.append(batch)
        engine.tally()
        start = time.perf_counter()
        for (memory, view, length), ready in zip(filled, prepared, strict=True):
            buffer = engine._slots[engine._turn].buffer
            if not copy_from:
                buffer.memory, buffer.space = memory, view
            batch = engine.open_batch()
            if copy_from:
                batch.space[:length] = view[:length]
            batch.length, batch.message_end, batch.message_time = length, ready.message_end, ready.message_time
            loaded = engine.load(batch, self.mapping)
            if waiting is not None:
                count_all(engine, waiting)
                records += waiting.count_lines()
            waiting = loaded
        assert waiting is not None
        count_all(engine, waiting)
        records += waiting.count_lines()
        engine.tally()  # waits for the last kernel
        seconds = time.perf_counter() - start
        for slot, (memory, space) in zip(engine._slots, own, strict=True):
            slot.buffer.memory, slot.buffer.space = memory, space
        return Pass(records, sum(length for *_, length in filled), seconds, 0.0)


def measure_cuda(case: Case) -> dict[str, Any]:
    """In the child: a case on the GPU."""
    runner = CudaRunner(case)
    engine = runner.engine
    fill_tables(runner)
    extra: dict[str, Any] = {}
    runner.run_filled(runner.prefill(log_of(case, 0)))
    passes = []
    for k in range(1, case.passes + 1):
        filled = runner.prefill(log_of(case, k))
        take_changes(engine)
        runner.turn()
        passes.append(runner.run_filled(filled))
    filled = runner.prefill(log_of(case, case.passes + 1))
    extra["kernels"] = cuda_kernels(runner, filled)
    extra["digest"] = digest_of(engine)  # by now the same passes as on the CPU
    extra["copy_bytes_per_s"] = cuda_copies(runner, filled)
    extra["plain_copy_bytes_per_s"] = cuda_plain_copy(case.batch_bytes)
    copied_in = measure_cuda_memcpy(runner, case) if case.log in PROFILES else None
    made = summary(case, passes) | {"fill_ns": None, "records_per_s_with_fill": copied_in}
    return made | extra | {"target": engine.target.name}


def measure_cuda_memcpy(runner: CudaRunner, case: Case) -> float:
    """Records/s with a host memcpy into the pinned buffer before each batch: by one thread, so this is its speed."""
    ns = []
    for k in range(3):
        filled = runner.prefill(log_of(case, 1 + k))  # its ids were seen too long ago to be known
        runner.turn()
        runner.turn()
        done = runner.run_filled(filled, copy_from=True)
        ns.append(done.seconds / done.records)
    return 1 / median(ns)


def cuda_kernels(runner: CudaRunner, filled: Sequence[tuple[Any, Any, int]]) -> dict[str, float]:
    """ns per record of each kernel, by CUDA events, in a pass of its own."""
    import cupy

    spans: list[tuple[str, Any, Any]] = []
    target: Any = runner.target
    plain = target._run

    def timed(name: str, count: int, arguments: tuple[Any, ...]) -> None:
        start, end = cupy.cuda.Event(), cupy.cuda.Event()
        start.record()
        plain(name, count, arguments)
        end.record()
        spans.append((name, start, end))

    take_changes(runner.engine)
    runner.turn()
    target._run = timed
    try:
        done = runner.run_filled(filled)
    finally:
        del target._run
    cupy.cuda.Device().synchronize()
    spent: dict[str, float] = defaultdict(float)
    for name, start, end in spans:
        spent[name] += cupy.cuda.get_elapsed_time(start, end) * 1e6
    return {name: ns / done.records for name, ns in spent.items()}


def cuda_copies(runner: CudaRunner, filled: Sequence[tuple[Any, Any, int]]) -> float:
    """Bytes/s of the engine's own copies of these batches to the device, and nothing else."""
    import cupy

    target: Any = runner.target
    device = runner.engine._slots[0].buffer.device
    rates = []
    for _ in range(5):
        start, end = cupy.cuda.Event(), cupy.cuda.Event()
        start.record(target._travel)
        for memory, _view, length in filled:
            target.send_ahead(memory[:length], device[:length])
        end.record(target._travel)
        end.synchronize()
        size = sum(length for *_, length in filled)
        rates.append(size / (cupy.cuda.get_elapsed_time(start, end) / 1e3))
    return median(rates)


def cuda_plain_copy(size: int) -> float:
    """Bytes/s of cudaMemcpyAsync from pinned memory: the bound of everything that travels."""
    import cupy

    runtime = cupy.cuda.runtime
    memory, there = cupy.cuda.alloc_pinned_memory(size), cupy.empty(size, np.uint8)
    stream = cupy.cuda.Stream(non_blocking=True)
    np.frombuffer(memory, np.uint8, size)[:] = 1
    rates = []
    for _ in range(20):
        start, end = cupy.cuda.Event(), cupy.cuda.Event()
        start.record(stream)
        runtime.memcpyAsync(there.data.ptr, memory.ptr, size, runtime.memcpyHostToDevice, stream.ptr)
        end.record(stream)
        end.synchronize()
        rates.append(size / (cupy.cuda.get_elapsed_time(start, end) / 1e3))
    return median(rates)


# --- The whole run ---


def child() -> None:
    case = Case(**json.load(sys.stdin))
    if case.device == "cuda":
        result = measure_cuda(case)
    else:
        result = measure_memory(case) if case.group == "memory" else measure(case)
    print(json.dumps(result))


def run_case(case: Case, data: pathlib.Path) -> dict[str, Any]:
    """In a fresh process; a case that would not fit is skipped with the reason."""
    free, _ = HostTarget().memory()
    if case.device == "cpu" and (needed := bytes_of(case)) > free * MEMORY_SHARE_MAX:
        reason = f"needs {needed / 1e9:.1f} GB, more than {MEMORY_SHARE_MAX:.0%} of {free / 1e9:.1f} GB"
        return asdict(case) | {"skipped": reason}
    profiles = profiles_of(case)
    make_all(profiles, data)
    files = tuple(str(path_of(profile, data)) for profile in profiles)
    core_count = len(common.cores()) if case.device == "cuda" else case.threads
    try:
        answer = common.run_child(MODULE, asdict(replace(case, files=files)), core_count)
    except common.ChildFailed as error:
        if case.device == "cpu":
            raise
        answer = {"skipped": f"failed: {error}"}  # a card too small for a sweep's end must not lose the rest
    return asdict(case) | answer


def show(console: Console, group: str, results: Sequence[dict[str, Any]]) -> None:
    table = Table(title=f"{group}: {GROUP_NOTES[group]}", title_justify="left")
    if group == "memory":
        _show_memory(table, results)
        console.print(table)
        return
    left, right = {"case", "on", "kernels, ns", "digest"}, "bytes ns M/s GB/s spread fill+M/s new_rows".split()
    for name in ("case", "on", *right, "kernels, ns", "digest"):
        table.add_column(name, justify="left" if name in left else "right")
    for result in results:
        if "skipped" in result:
            table.add_row(result["name"], result["device"], result["skipped"])
            continue
        every, filled = result["ns_all_passes"], result["records_per_s_with_fill"]
        table.add_row(
            result["name"],
            result["target"],
            f"{result['record_bytes']:.0f}",
            f"{result['ns']:.1f}",
            f"{result['records_per_s'] / 1e6:.2f}",
            f"{result['bytes_per_s'] / 1e9:.2f}",
            f"{min(every):.0f}-{max(every):.0f}",
            f"{filled / 1e6:.2f}" if filled else "",
            f"{result['new_rows_share']:.1%}" if "new_rows_share" in result else "",
            " ".join(f"{name} {ns:.3g}" for name, ns in result.get("kernels", {}).items()),
            result["digest"],
        )
    console.print(table)


def _show_memory(table: Table, results: Sequence[dict[str, Any]]) -> None:
    for name in "case,rows,full,tables,ids,batches,python,peak,with commit,ratio,with commit".split(","):
        table.add_column(name, justify="right")
    for result in results:
        if "skipped" in result:
            table.add_row(result["name"], result["skipped"])
            continue
        sizes = ("tables", "identities", "batches", "process", "peak", "peak_with_commit")
        table.add_row(
            result["name"],
            f"{result['rows']:,}",
            f"{result['rows_full']:.0%}",
            *(f"{result[name + '_bytes'] / (1 << 20):.0f} MiB" for name in sizes),
            f"{result['ratio']:.2f}",
            f"{result['ratio_with_commit']:.2f}",
        )


def main(arguments: Sequence[str]) -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=GROUPS, metavar="GROUP", help=" ".join(GROUPS))
    options = parser.parse_args(arguments)
    if options.child:
        child()
        return 0
    try:
        accelerator = open_target(options.device).name if options.device == "cuda" else None
    except DeviceError as error:
        print(error, file=sys.stderr)
        return 2
    console = Console(width=200 if not sys.stdout.isatty() else None)
    result = common.facts(MODULE, arguments, accelerator) | {"kind": "engine", "device": options.device, "cases": []}
    for group in GROUPS:
        chosen = [case for case in cases(options.size, options.device) if case.group == group and group in options.only]
        done = [run_case(case, options.data) for case in chosen]
        if done:
            show(console, group, done)
            result["cases"] += [{name: value for name, value in case.items() if name != "files"} for case in done]
            common.save(options.json, result)  # after each group: a long run that breaks off is not lost
    return 0


if __name__ == "__main__":
    os.environ.setdefault("PYTHONHASHSEED", "0")
    sys.exit(main(sys.argv[1:]))
