"""A short engine run for compute-sanitizer: every kernel, odd records, growing and turning request ids, several parts,
the examples of every shipped mapping, with their rules, labels and repeats; half of the batches come as record batches
of Kafka and are walked on the device.

Its totals are compared with those of the CPU build, which gets lines alone. Without CuPy's memory pool each array is an
allocation of its own, so that an access beyond one is seen.

    compute-sanitizer --tool memcheck --error-exitcode 1 python -m bench.sanitize
"""

import argparse
import pathlib
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

from bench import record_batches
from tokenometer.kernels.engine import Engine, Limits, Loaded
from tokenometer.kernels.target import DeviceError, Target, open_target
from tokenometer.processor.broker.kafka.fetch.walk import Walker
from tokenometer.processor.load.profile import START_MS, Profile
from tokenometer.processor.load.synth import generate, messages
from tokenometer.processor.records.referee import Referee
from tokenometer.schemas import mapping as mappings
from tokenometer.schemas.value import PLAIN

FOLDER = pathlib.Path(mappings.__file__).parent / "mappings"
RECORDS = 6_000
MESSAGES = 40  # of a batch
HORIZON_MS = 600_000
LIMITS = Limits(
    rows=1 << 14,
    cells=1 << 14,
    texts=1 << 15,
    windows=1 << 6,
    arena_bytes=1 << 22,
    identity_bytes=1 << 26,
    batch_bytes=1 << 18,
    tile_records=256,
)


LABELS = """
[labels.region]
path = "region"

[labels.context]
bracket_of = "input_tokens"
edges = [500, 2000]
"""


def batches() -> Iterator[tuple[mappings.Mapping, list[bytes]]]:
    """What is counted; the values of each are messages of one partition."""
    profile = Profile(records=RECORDS, malformed=0.02, duplicates=0.05, escaped=0.02, late=0.02, users=2_000)
    values = list(messages(generate(profile), lines_per_message=7))
    for at in range(0, len(values), MESSAGES):
        yield mappings.resolve("native"), values[at : at + MESSAGES]
    native = (FOLDER / "native.toml").read_text(encoding="utf-8").replace("format = 1", "format = 2")
    yield mappings.parse(native + LABELS, "labelled.toml"), values[:MESSAGES]
    for name in mappings.shipped():
        mapping = mappings.resolve(name)
        if mapping.value == PLAIN:
            lines = (FOLDER / f"examples/{name}.ndjson").read_bytes().splitlines()
            yield mapping, [b"\n".join(lines), *lines * 3]


def load(engine: Engine, values: list[bytes], time_ms: int, mapping: mappings.Mapping, raw: bool) -> Loaded:
    times = [time_ms] * len(values)
    if not raw:
        return engine.load(engine.pack(values, times, mapping.source), mapping)
    data = record_batches.batches(values, times, per_batch=9)
    opened = Walker().open(memoryview(data), 0, (), engine.limits.batch_bytes)
    return engine.load_raw(opened.raw, mapping, mapping.source)


def totals(target: Target, raw: bool = True) -> tuple[Counter[tuple[Any, ...]], Any, int]:
    """Sums over parts of every row, the tally, and the number of parts. raw: every second batch comes as one."""
    engine = Engine(target, Referee(), secret=range(1, 9), limits=LIMITS, dedup_horizon_ms=HORIZON_MS)
    sums: Counter[tuple[Any, ...]] = Counter()

    def close_part() -> None:
        for rows in engine.changes():
            texts = (rows.texts(name) for name in ("user", "model", "chip"))
            labels = (tuple(sorted(labels.items())) for labels in rows.labels())
            keys = zip(rows.window_starts(), *texts, labels, strict=True)
            for key, counters, further in zip(keys, rows.table["counters"].tolist(), rows.further(), strict=True):
                for k, count in enumerate((*counters, *further)):
                    sums[*key, k] += count

    for number, (mapping, batch) in enumerate(batches()):
        # Every third batch is one dedup generation later.
        time_ms = START_MS + HORIZON_MS * (1 + number // 3)
        loaded = load(engine, batch, time_ms, mapping, raw and number % 2 == 1)
        done = 0
        while (done := engine.count(loaded, done).next_message) < len(batch):
            close_part()
            engine.open_part()
    close_part()
    engine.cells(), engine.top_users(5), engine.sketches()
    return sums, engine.tally(), engine.parts_opened


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    device = parser.parse_args().device
    if device == "cuda":
        import cupy

        cupy.cuda.set_allocator(None)
        cupy.cuda.set_pinned_memory_allocator(None)
    try:
        target = open_target(device)
    except DeviceError as error:
        print(error, file=sys.stderr)
        return 2
    found, expected = totals(target), totals(open_target("cpu"), raw=False)
    print(f"{target.name}: {found[1]}, {found[2]} parts, {len(found[0])} counters")
    if found != expected:
        print(f"the CPU build says {expected[1]}, {expected[2]} parts; totals equal: {found[0] == expected[0]}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
