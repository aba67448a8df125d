"""`make chaos`: a long stream on a Kafka of its own, meters that are killed again and again, and then the audit.

    python -m tests.kafka.chaos --records 20000000 --kills 100 --seed 1

    synthetic log ──> inference-logs ──> meter-0, meter-1, ... ──> token-usage, token-live, dead letters
     (a process)                          ^ kill -9, and again under its name: at random places of the stream,
                                            a random moment after it was reached
    then `tokenometer verify`; the exit code is 1 unless not one token is lost or counted twice

The seed decides the log, and where in it somebody is killed. What a kill hits depends on the machine as well.
"""

import argparse
import contextlib
import multiprocessing
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.sharedctypes import Synchronized
from typing import Any

from tests.kafka.meter_process import MeterProcess, Spec
from tests.kafka_server import KafkaServer
from tokenometer.processor import verify
from tokenometer.processor.broker.kafka import KafkaBroker
from tokenometer.processor.cli.common import stdout_console
from tokenometer.processor.load import synth
from tokenometer.processor.load.profile import Profile
from tokenometer.processor.verify.report import render
from tokenometer.schemas import mapping as mappings

INPUT, USAGE, LIVE, REJECTED = "inference-logs", "token-usage", "token-live", "inference-logs-rejected"
GROUP = "chaos"
KEY_GROUPS = 256  # lines of a user always go to the same one, and a group to one partition
AHEAD_RECORDS = 3_000_000  # of the producer: the log is written while it is metered
RECORD_BYTES = 210  # of the compact form, as it lies on the disk
OUTPUT_SHARE = 2.0  # usage rows, dead letters and the audit's columns, beside the log
SILENCE_SECONDS = 180  # without a commit of anybody: something hangs
CLIENT = {"session.timeout.ms": "20000", "transaction.timeout.ms": "15000"}
ENGINE = {
    "rows": 1 << 20,
    "cells": 1 << 17,
    "texts": 1 << 19,
    "arena_bytes": 1 << 25,
    "batch_bytes": 1 << 21,
    "tile_records": 1 << 14,
}


@dataclass(frozen=True)
class Plan:
    records: int
    kills: int
    seed: int
    meters: int
    rate: int  # records/s that are written: slow enough for most restarts to count before the next kill
    lines: int  # of a message
    partitions: int
    users: int
    horizon_seconds: int
    commit_seconds: float

    @property
    def profile(self) -> Profile:
        return Profile(
            records=self.records, seed=self.seed, users=self.users, rate=200_000, compact=True, escaped=0,
            duplicates=0.02, malformed=0.01,
        )  # fmt: skip


@dataclass
class Story:
    """What happened."""

    kills: int = 0
    gone: list[MeterProcess] = field(default_factory=list)
    read: dict[str, int] = field(default_factory=dict)  # part -> records, as it last said
    reasons: Counter[str] = field(default_factory=Counter)  # why parts were opened
    rows: int = 0
    seconds: float = 0.0


class Failed(Exception):
    """The stream came to a stop; nothing can be audited."""


# --- The log ---


def feed(bootstrap: str, plan: Plan, metered: "Synchronized[int]") -> None:
    """In a process of its own: append the log at its rate, and not too far ahead of the meters."""
    broker = KafkaBroker(bootstrap, {"queue.buffering.max.kbytes": "65536"})
    waiting: dict[int, list[bytes]] = {}
    written, began = 0, time.monotonic()
    for chunk in synth.generate(plan.profile):
        lines = chunk.splitlines()
        while written - metered.value > AHEAD_RECORDS or written / plan.rate > time.monotonic() - began:
            time.sleep(0.05)
        written += len(lines)
        _append(broker, list(_full(lines, waiting, plan.lines)))
    _append(broker, list(waiting.items()))
    broker.flush()


def _full(lines: list[bytes], waiting: dict[int, list[bytes]], size: int) -> Iterator[tuple[int, list[bytes]]]:
    for line in lines:
        _, found, rest = line.partition(b'"user":"')
        group = zlib.crc32(rest[: rest.find(b'"')] if found else line) % KEY_GROUPS
        lines_of_group = waiting.setdefault(group, [])
        lines_of_group.append(line)
        if len(lines_of_group) == size:
            yield group, waiting.pop(group)


def _append(broker: KafkaBroker, messages: list[tuple[int, list[bytes]]]) -> None:
    if messages:
        broker.append(
            INPUT, [b"\n".join(lines) for _, lines in messages], [b"group-%d" % group for group, _ in messages]
        )


# --- The meters ---


class Chaos:
    def __init__(self, bootstrap: str, plan: Plan, metered: "Synchronized[int]") -> None:
        self._bootstrap, self._plan, self._metered = bootstrap, plan, metered
        self._random = random.Random(plan.seed)
        self._seen: dict[MeterProcess, int] = {}  # events of each that were looked at
        self._heard = time.monotonic()
        self.story = Story()
        self.meters = [self._start(f"meter-{number}") for number in range(plan.meters)]

    def _start(self, name: str) -> MeterProcess:
        plan = self._plan
        return MeterProcess(
            Spec(
                self._bootstrap,
                GROUP,
                name,
                {INPUT: "native"},
                (USAGE, LIVE, REJECTED),
                settings={"commit_interval_ms": round(plan.commit_seconds * 1000)},
                engine={**ENGINE, "dedup_horizon_ms": plan.horizon_seconds * 1000},
                kafka=CLIENT,
            )
        )

    def run(self, feeder: Any) -> None:
        plan, draw = self._plan, self._random
        began = time.monotonic()
        places = sorted(draw.uniform(0.005, 0.98) * plan.records for _ in range(plan.kills))
        for place in places:
            while self.look() < place:
                self._check(feeder)
                time.sleep(0.05)
            time.sleep(draw.uniform(0, 1.5 * plan.commit_seconds))
            self._kill(draw.randrange(plan.meters))
        broker = KafkaBroker(self._bootstrap)
        while feeder.is_alive() or not all_committed(broker):
            self.look()
            self._check(feeder)
            time.sleep(0.5)
        self.story.seconds = time.monotonic() - began
        for meter in self.meters:
            meter.stop()
        self.look()
        self.story.gone += self.meters

    def _kill(self, index: int) -> None:
        meter = self.meters[index]
        meter.kill()
        self.look()
        self.story.kills += 1
        self.story.gone.append(meter)
        self.meters[index] = self._start(meter.spec.name)
        if self.story.kills % 10 == 0:
            print(f"{self.story.kills} kills, {self._metered.value:,} records metered", flush=True)

    def look(self) -> int:
        """Records in all commits that were heard of; one that was killed may have kept its last ones to itself."""
        story = self.story
        for meter in self.meters:
            seen = self._seen.get(meter, 0)
            for event in meter.of("commit", seen):
                story.read[event["part"]] = event["read"]
                story.rows += event["rows"]
                self._heard = time.monotonic()
            self._seen[meter] = len(meter.events)
        self._metered.value = sum(story.read.values())
        return self._metered.value

    def _check(self, feeder: Any) -> None:
        for meter in self.meters:
            if meter.ended:
                raise Failed(f"{meter} ended by itself: {meter.errors[-3000:]}")
        if not feeder.is_alive() and feeder.exitcode:
            raise Failed(f"the producer ended with {feeder.exitcode}")
        if time.monotonic() - self._heard > SILENCE_SECONDS:
            tails = "\n".join(f"{meter}: {meter.events[-2:]}\n{meter.errors[-2000:]}" for meter in self.meters)
            raise Failed(f"no commit for {SILENCE_SECONDS} s\n{tails}")

    def close(self) -> None:
        for meter in {*self.meters, *self.story.gone}:
            meter.close()


def all_committed(broker: KafkaBroker) -> bool:
    committed, extents = broker.committed(GROUP, [INPUT]), broker.extents([INPUT])
    return all(position is not None and position.offset >= extents[place].end for place, position in committed.items())


# --- The report ---


@dataclass(frozen=True)
class Restart:
    """Seconds of one restart that came to a commit before the next kill."""

    total: float  # from the start of the process to the first commit that counted
    assigned: float  # to the partitions
    refill: float  # of request ids
    refilled: int  # messages that were read for it


def restarts(story: Story, first: int) -> list[Restart]:
    """Of all processes but the first ones, which had nothing to come back to."""
    found = []
    for meter in story.gone:
        counted = next((event["at"] for event in meter.of("commit") if event["read"]), None)
        assigned = meter.of("assigned")
        if counted is None or not assigned:
            continue
        refilled = next((event["at"] for event in meter.of("refilled")), counted)
        begin = assigned[0]["at"]
        refill = max(0.0, min(refilled, counted) - begin)
        found.append(Restart(counted - meter.started, begin - meter.started, refill, assigned[0]["refill"]))
    return found[first:]


def spread(name: str, values: Sequence[float], unit: str = "s") -> str:
    digits = 2 if unit == "s" else 0
    low, middle, high = (f"{value:,.{digits}f}" for value in (min(values), statistics.median(values), max(values)))
    return f"  {name:<34} min {low}, median {middle}, max {high} {unit}"


def report(plan: Plan, story: Story, audit: verify.Report) -> str:
    tally, counters = audit.tally, audit.expected
    lines = [
        f"records    {tally.read:,}: {tally.counted:,} counted, {tally.duplicates:,} duplicates, "
        f"{tally.rejected:,} rejected, {tally.empty:,} empty",
        f"tokens     {counters[1] + counters[4]:,} in the log, {audit.found[1] + audit.found[4]:,} published",
        f"kills      {story.kills} of {plan.meters} meters; {audit.parts} parts, {audit.usage_messages:,} usage rows",
        f"metered    in {story.seconds:,.0f} s, {tally.read / story.seconds:,.0f} records/s, kills included",
    ]
    known = restarts(story, plan.meters)
    if known:
        lines += [
            f"restarts   {len(known)} that counted before the next kill; from the start of the process",
            spread("to the first commit of records", [each.total for each in known]),
            spread("  of it until partitions came", [each.assigned for each in known]),
            spread("  of it for the refill", [each.refill for each in known]),
            spread("  without the refill", [each.total - each.refill for each in known]),
            spread("messages read for the refill", [each.refilled for each in known], ""),
        ]
    kinds = Counter(event["kind"] for meter in story.gone for event in meter.of("recovering"))
    if kinds:
        lines.append(f"recoveries {', '.join(f'{count} x {kind}' for kind, count in kinds.most_common())}")
    lines.append(f"verify     {'clean' if audit.clean else 'NOT CLEAN'}, in {audit.seconds:,.0f} s")
    return "\n".join(lines)


# --- All together ---


def play(plan: Plan, folder: str) -> int:
    # A process for the log; spawned, because a client's threads are lost in a fork.
    context = multiprocessing.get_context("spawn")
    metered = context.Value("q", 0)
    with KafkaServer(heap="512m") as kafka, contextlib.ExitStack() as stack:
        broker = KafkaBroker(kafka.bootstrap)
        broker.create_topic(INPUT, plan.partitions, {})
        broker.create_topic(USAGE, 4, {"cleanup.policy": "compact"})
        broker.create_topic(LIVE, 1, {})
        broker.create_topic(REJECTED, 1, {})
        feeder = context.Process(target=feed, args=(kafka.bootstrap, plan, metered), daemon=True)
        feeder.start()
        stack.callback(feeder.kill)
        chaos = Chaos(kafka.bootstrap, plan, metered)
        stack.callback(chaos.close)
        chaos.run(feeder)
        settings = verify.VerifySettings(
            USAGE, LIVE, REJECTED, dedup_horizon_ms=plan.horizon_seconds * 1000, scratch=folder
        )
        print(f"{plan.records:,} records are metered; the audit begins", flush=True)
        audit = verify.verify(broker, GROUP, {INPUT: mappings.resolve("native")}, settings)
        if not audit.clean:
            stdout_console().print(render(audit))
        print(report(plan, chaos.story, audit), flush=True)
        complete = audit.tally.read == plan.records
        if not complete:
            print(f"the log has {plan.records:,} records, and the audit found {audit.tally.read:,}")
        return 0 if audit.clean and complete else 1


def check_space(plan: Plan, folder: str) -> None:
    needed, free = plan.records * RECORD_BYTES * (1 + OUTPUT_SHARE), shutil.disk_usage(folder).free
    if free < needed:
        raise Failed(f"{folder} has {free / 1e9:.1f} GB free; {needed / 1e9:.1f} GB are needed (TMPDIR, --records)")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.kafka.chaos", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--records", type=int, default=20_000_000)
    add("--kills", type=int, default=100)
    add("--seed", type=int, default=1)
    add("--meters", type=int, default=2)
    add("--rate", type=int, default=50_000, help="of writing, in records/s (default: %(default)s)")
    add("--lines", type=int, default=200, help="of a message (default: %(default)s)")
    add("--partitions", type=int, default=8)
    add("--users", type=int, default=20_000)
    add("--horizon", type=int, default=20, dest="horizon_seconds", help="of request ids, in s (default: %(default)s)")
    add("--commit", type=float, default=1.0, dest="commit_seconds", help="from commit to commit (default: %(default)s)")
    plan = Plan(**vars(parser.parse_args()))
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that everybody is ended
    print(plan, flush=True)
    with tempfile.TemporaryDirectory(prefix="tokenometer-chaos-") as folder:
        try:
            check_space(plan, folder)
            return play(plan, folder)
        except Failed as error:
            print(error, file=sys.stderr)
            return 1


if __name__ == "__main__":
    sys.exit(main())
