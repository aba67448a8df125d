"""Record batches of Kafka, walked by the host or on the device: the whole way from a broker's bytes to counted records.

    host      Walker.walk, which makes lines; they are copied into the batch, sent, split and counted
    device    Walker.open; the records are sent as they are, and found, read, placed, split and counted there

Wall time of a pass, each batch sent while the one before is counted; both ways in turns, in one process, with new
request ids in each pass; the median of the passes. One native record a message, 64 messages a record batch, not
compressed. On a CPU there is no device to relieve the host, so that the figure only says what the extra pass costs.
The digest is of all totals: the same both ways.

    python -m bench.bench_walk --device cuda --size large
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

from rich.console import Console

from bench import common, record_batches
from bench.bench_engine import FIRST_MESSAGE_MS, HORIZON_MS, SECRET, digest_of
from tokenometer.kernels.engine import Engine, Limits, Loaded
from tokenometer.kernels.target import DeviceError, open_target
from tokenometer.processor.broker.kafka.fetch.walk import Status, Walker
from tokenometer.processor.load.profile import Profile
from tokenometer.processor.load.synth import generate, messages
from tokenometer.processor.records.referee import Referee
from tokenometer.schemas import mapping as mappings

MODULE = "bench.bench_walk"
RECORDS = {"small": 20_000, "large": 400_000}
PASSES = {"small": 2, "large": 9}
BATCH_BYTES = {"small": 1 << 20, "cpu": 6 << 20, "cuda": 1 << 26}
ROWS = {"small": 1 << 18, "large": 1 << 22}  # slots; a process touches most pages of its tables
PER_BATCH = 64  # messages


@dataclass
class Feed:
    """What one engine is fed with, either way."""

    engine: Engine
    walker: Walker
    mapping: mappings.Mapping

    def by_host(self, data: memoryview) -> Iterator[Loaded]:
        """Messages in as few batches as hold them."""
        values = self.walker.walk(data, 0)
        column, room = values.values, self.engine.limits.batch_bytes
        assert column.lines is not None
        begin = 0
        while begin < len(column):
            first = int(column.starts[begin])
            end = int(column.lines.searchsorted(first + room, side="right"))
            part = column[begin:end]
            assert part.lines is not None
            times, offsets = values.times[begin:end], values.offsets[begin:end]
            batch = self.engine.pack_lines([part.data], part.lines, times, 0, offsets)
            yield self.engine.load(batch, self.mapping)
            begin = end

    def on_device(self, data: memoryview) -> Iterator[Loaded]:
        at = 0
        while at < len(data):
            opened = self.walker.open(data[at:], 0, (), self.engine.limits.batch_bytes)
            assert opened.status in (Status.FINE, Status.FULL) and opened.walked
            yield self.engine.load_raw(opened.raw, self.mapping)
            at += opened.walked

    def count(self, loads: Iterator[Loaded]) -> float:
        """Seconds."""
        start, waiting = time.perf_counter(), next(loads)
        for loaded in loads:
            self.engine.count(waiting)
            waiting = loaded
        self.engine.count(waiting)
        self.engine.tally()  # waits for the last kernel
        return time.perf_counter() - start


def measure(device: str, size: str) -> dict[str, Any]:
    target = open_target(device)
    rows = ROWS[size]
    limits = Limits(
        rows=rows, cells=rows // 4, texts=rows // 2, arena_bytes=64 * rows,
        batch_bytes=BATCH_BYTES[device if size == "large" else "small"],
        tile_records=1 << 20 if device == "cuda" else Limits.tile_records,
    )  # fmt: skip
    feeds = {
        name: Feed(Engine(target, Referee(), secret=SECRET, limits=limits), Walker(), mappings.resolve("native"))
        for name in ("host", "device")
    }
    ways: dict[str, Callable[[memoryview], Iterator[Loaded]]] = {
        "host": feeds["host"].by_host, "device": feeds["device"].on_device
    }  # fmt: skip
    ns: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(PASSES[size] + 1):
        values = list(messages(generate(Profile(records=RECORDS[size], seed=1 + number))))
        times = [FIRST_MESSAGE_MS + number * HORIZON_MS] * len(values)
        data = memoryview(record_batches.batches(values, times, PER_BATCH))
        for name, way in ways.items():
            ns[name].append(feeds[name].count(way(data)) / RECORDS[size] * 1e9)
    return {
        "target": target.name,
        "ns_all_passes": ns,
        "ns": {name: median(all_passes[1:]) for name, all_passes in ns.items()},  # the first one touches the tables
        "digests": {name: digest_of(feed.engine) for name, feed in feeds.items()},
    }


def main(arguments: list[str]) -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args(arguments)
    if options.child:
        request = json.loads(sys.stdin.readline())
        print(json.dumps(measure(request["device"], request["size"])))
        return 0
    try:
        accelerator = open_target(options.device).name if options.device == "cuda" else None
    except DeviceError as error:
        print(error, file=sys.stderr)
        return 2
    found = common.run_child(MODULE, {"device": options.device, "size": options.size}, len(common.cores()))
    equal = len(set(found["digests"].values())) == 1
    Console().print(
        f"{found['target']}: walked by the host {found['ns']['host']:.0f} ns a record, on the device "
        f"{found['ns']['device']:.0f} ns; answers {'equal' if equal else 'DIFFER'}"
    )
    common.save(options.json, common.facts(MODULE, arguments, accelerator) | {"kind": "walk"} | found)
    return 0 if equal else 1


if __name__ == "__main__":
    os.environ.setdefault("PYTHONHASHSEED", "0")
    sys.exit(main(sys.argv[1:]))
