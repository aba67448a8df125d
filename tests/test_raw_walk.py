"""Record batches that are walked on the device: what they hold is what the host's walk and the oracle find in them.

tests/fetch/native/fuzz_walk.cpp compares the two walks on mutants, under sanitizers.
"""

import json
import random
import struct
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from bench import record_batches
from tests import harness, mutate
from tests.bad_input import TIME_MS
from tests.fetch import batches
from tests.fetch.batches import CODECS, Record, batch, changed, marker
from tests.fetch.test_walk import inside, some_records
from tests.harness import Piece, shipped
from tokenometer.kernels import layout
from tokenometer.kernels.engine import Engine
from tokenometer.kernels.loaded import RawLoaded
from tokenometer.kernels.plan import sample
from tokenometer.kernels.values import RawBatches
from tokenometer.processor.broker.kafka.fetch.walk import Opened, Status, Walked, Walker
from tokenometer.schemas import mapping as mappings

ROOM = harness.LIMITS["batch_bytes"]
NATIVE = mappings.resolve("native")
OVERHEAD_BYTES = 24  # of a record, at most: its numbers beside the value, and its length
ABORTED = ((1, 0),)


def opened(data: bytes, begin: int = 0, room: int = ROOM) -> Opened:
    return Walker().open(memoryview(data), begin, ABORTED, room)


def walked(data: bytes, begin: int = 0) -> Walked:
    return Walker().walk(memoryview(data), begin, ABORTED)


def on_device(engine: Engine, raw: RawBatches) -> RawLoaded:
    loaded = engine.load_raw(raw, NATIVE)
    loaded.count_lines()
    return loaded


def lines_of(engine: Engine, loaded: RawLoaded) -> bytes:
    begin = layout.PREFIX_BYTES
    return engine.target.fetch(loaded.buffer.device[begin : begin + loaded.batch.length]).tobytes()


def assert_same(engine: Engine, loaded: RawLoaded, host: Walked) -> None:
    found = loaded.batch
    assert found.message_offset is not None and found.message_time is not None and found.message_end is not None
    assert found.message_offset.tolist() == host.offsets.tolist()
    assert found.message_time.tolist() == host.times.tolist()
    assert host.values.lines is not None and found.message_end.tolist() == host.values.lines.tolist()
    assert lines_of(engine, loaded) == host.values.data.tobytes()
    assert loaded.count_lines() == host.values.data.tobytes().count(b"\n")


def some_data() -> list[bytes]:
    """Of transactions, compaction, tombstones, codecs, times of the broker and none; each begins at offset 0."""
    plain = b"".join(batch(base, some_records(base, 9), epoch=base) for base in (0, 9, 500))
    emptied = changed(batch(9, [])[:61], 23, struct.pack(">i", 4))
    return [
        plain,
        b"".join(batch(at, some_records(at, 40), codec) for at, codec in zip(range(0, 200, 40), CODECS, strict=True)),
        plain[: len(batch(0, some_records(0, 9), epoch=0))] + emptied + batch(14, some_records(5, 3)),
        inside(0, 1, b"aborted", b"too") + inside(2, 2, b"kept") + marker(3, 1, commit=False) + inside(4, 1, b"kept"),
        changed(batch(0, [Record(b"a"), Record(None, time_ms=batches.TIME_MS + 5)]), 21, struct.pack(">h", 8)),
        changed(batch(0, [Record(b"a")]), 27, struct.pack(">q", -1)),
        batch(0, [Record(b"x" * size) for size in (*range(30), 100_000, 7)]),
        batch(0, [Record(b"\n" * size) for size in range(12)]),
        inside(0, 1, b"aborted") + marker(1, 1, commit=False),
        b"",
    ]


@pytest.mark.parametrize("number", range(len(some_data())))
def test_messages_are_those_of_the_hosts_walk(make_engine, number):
    engine, data = make_engine(), some_data()[number]
    assert_same(engine, on_device(engine, opened(data).raw), walked(data))


def test_what_lies_before_the_offset_is_left_out(make_engine):
    engine, data = make_engine(), b"".join(batch(base, some_records(base, 5)) for base in (0, 5, 20))
    for begin in range(26):
        assert_same(engine, on_device(engine, opened(data, begin).raw), walked(data, begin))


def broken_batches() -> list[bytes]:
    """Of five records, at offset 5; their heads are well."""
    good = batch(5, [Record(b"x" * 50, time_ms=batches.TIME_MS)] * 5)
    length = (len(good) - 61) // 5
    third = 61 + 2 * length
    return [
        changed(good, 23, struct.pack(">i", 3)),  # the last offset is beyond
        changed(good, 57, struct.pack(">i", 4)),  # bytes are left over
        changed(good, 57, struct.pack(">i", 6)),  # a record is missing
        changed(good, 61, b"\0"),  # a record of no bytes
        changed(good, third, b"\1"),  # of less than none
        changed(good, third, b"\x7e"),  # longer than what is left of it: it ends in the next record
        changed(good, third + 3, b"\0"),  # an offset comes again
        changed(good, third + 4, b"\x7e"),  # a key that is longer than its record
        changed(good, third + 5, b"\x7e"),  # a value that is
        changed(good, len(good) - length, b"\xff" * length),  # a number without an end
    ]


@pytest.mark.parametrize("number", range(len(broken_batches())))
def test_a_broken_batch_is_named_and_ends_what_counts(make_engine, number):
    engine = make_engine()
    data = batch(0, some_records(1, 5)) + broken_batches()[number] + batch(10, some_records(2, 5))
    host = walked(data)
    assert (host.status, len(host.offsets)) == (Status.BAD_BATCH, 5)
    raw = opened(data).raw
    assert len(raw.batches) == 3
    loaded = on_device(engine, raw)
    assert loaded.broken == 1
    assert_same(engine, loaded, host)
    assert on_device(engine, opened(batch(0, some_records(1, 5))).raw).broken is None


def test_of_two_broken_batches_the_first_is_named(make_engine):
    engine = make_engine()
    broken = broken_batches()[3]
    data = broken + batch(10, some_records(1, 5)) + batches.placed(broken, 20)
    loaded = on_device(engine, opened(data).raw)
    assert loaded.broken == 0 and loaded.batch.length == 0
    assert engine.count(loaded).next_message == 0


def test_batches_are_opened_as_far_as_they_fit():
    data = b"".join(batch(base, some_records(base, 9), "zstd") for base in range(0, 900, 9))
    whole = opened(data, room=1 << 30).raw
    first = int(whole.batches["end"][0])
    room = 3 * int((whole.batches["end"] - whole.batches["begin"]).max())
    assert opened(data, room=first).raw.batches["end"].tolist() == [first]
    at, found = 0, []
    while at < len(data):
        part = opened(data[at:], room=room)
        assert len(part.raw.data) <= room and part.raw.batches["end"][-1] == len(part.raw.data)
        assert part.status is (Status.FULL if at + part.walked < len(data) else Status.FINE)
        found.append(part.raw.data.tobytes())
        at += part.walked
    assert b"".join(found) == whole.data.tobytes() and len(found) > 5


def test_a_batch_larger_than_the_room_is_not_opened():
    data = batch(0, [Record(b"x" * 100)])
    size = len(data) - 61
    assert len(opened(data, room=size).raw.batches) == 1
    refused = opened(data, room=size - 1)
    assert (refused.status, refused.walked, len(refused.raw.batches)) == (Status.FULL, 0, 0)


def test_records_fit_a_batch_or_are_refused(make_engine):
    engine = make_engine()
    data = batch(0, [Record(b"x" * (ROOM - OVERHEAD_BYTES))])
    pad = ROOM - (len(data) - 61)
    exact = opened(batch(0, [Record(b"x" * (ROOM - OVERHEAD_BYTES + pad))]), room=ROOM + 1).raw
    assert len(exact.data) == ROOM
    assert on_device(engine, exact).count_lines() == 1
    beyond = opened(batch(0, [Record(b"x" * (ROOM - OVERHEAD_BYTES + pad + 1))]), room=ROOM + 1).raw
    with pytest.raises(ValueError, match="bytes of records: expected at most batch_bytes"):
        engine.load_raw(beyond, NATIVE)


def test_a_plan_learns_from_what_came_back(make_engine):
    engine = make_engine()
    lines = [json.dumps({"user": f"u{i}", "x": "y" * (i % 300)}).encode() for i in range(900)]
    data = record_batches.batches(lines, [TIME_MS] * len(lines), 50)
    found = on_device(engine, opened(data, room=1 << 20).raw).sample()
    assert len(found) == 64 and found == sample(np.frombuffer(b"\n".join([*lines, b""]), np.uint8))


# --- What the engine counts ---


@dataclass
class RawRun(harness.Run):
    """Fed with record batches of some messages each, by any codec."""

    chance: random.Random = field(default_factory=lambda: random.Random(1))

    def load(
        self,
        values: Sequence[bytes | None],
        times: Sequence[int] | None,
        partition: Hashable,
        mapping: mappings.Mapping,
    ) -> RawLoaded:
        assert times is not None
        made, at, base = [], 0, self.fed.get(partition, 0)
        while at < len(values):
            count = self.chance.choice([1, 2, 7, 60])
            pairs = zip(values[at : at + count], times[at : at + count], strict=True)
            records = [Record(value, b"key", [("name", b"header")], time_ms) for value, time_ms in pairs]
            made.append(batch(base + at, records, self.chance.choice([*CODECS])))
            at += len(records)
        found = Walker().open(memoryview(b"".join(made)), base, (), self.engine.limits.batch_bytes)
        assert found.status is Status.FINE and found.next_offset == base + len(values)
        return self.engine.load_raw(found.raw, mapping, partition)


def check(engine: Engine, mapping: harness.Mapping, pieces: Sequence[Piece], seed: int) -> RawRun:
    run = RawRun(engine, mapping, chance=random.Random(seed))
    for piece in pieces:
        run.feed(piece.values, piece.times, piece.partition)
    harness.assert_same(run, harness.expected(mapping, pieces))
    return run


@pytest.mark.parametrize("name", harness.SHIPPED)
def test_the_engine_counts_what_the_oracle_does(make_engine, name):
    """Messages of several mutated lines, tombstones and empty ones among them."""
    chance, mapping = random.Random(name), shipped(name)
    lines = [line for line in mutate.lines(chance, name, mapping.oracle, 90 * harness.TIMES) if len(line) < 1 << 12]
    values: list[bytes | None] = [None, b"", b"\n"]
    while lines:
        count = chance.choice([1, 1, 3])
        values.append(b"\n".join(lines[:count]) + chance.choice([b"", b"\n"]))
        del lines[:count]
    chance.shuffle(values)
    pieces = [
        Piece(part, [TIME_MS + 90_000 * number] * len(part), number % 2)
        for number, part in enumerate(harness.batches(values, ROOM // 3))
    ]
    check(make_engine(tile_records=64), mapping, pieces, 1)


def test_a_message_that_does_not_fit_the_open_part_opens_the_next(make_engine):
    """Counting goes on in the middle of what was walked."""
    lines = [
        json.dumps(
            {
                "request_id": f"r{i}", "timestamp": TIME_MS, "user": f"u{i}", "model": "m", "chip": "c",
                "input_tokens": i, "output_tokens": "wrong" if i % 5 == 0 else 1,
            }
        ).encode()
        for i in range(120)
    ]  # fmt: skip
    pieces = [Piece(lines[at : at + 3], [TIME_MS] * 3) for at in range(0, len(lines), 3)]
    run = check(make_engine(**harness.TINY), shipped(), pieces, 2)
    assert run.parts > 3 and len(run.letters) == 24


def test_batches_of_the_benchmarks_are_what_another_reader_finds():
    values = [b"a", None, b"", b"b" * 300, b"\n"] * 30
    times = [TIME_MS + at * 77 for at in range(len(values))]
    found = batches.read(record_batches.batches(values, times, 7, base=5))
    assert [(seen.offset, seen.time_ms, seen.value) for seen in found] == [
        (5 + at, *pair) for at, pair in enumerate(zip(times, values, strict=True))
    ]
