"""Record batches become the messages that another reader finds in them, or are refused with a reason."""

import random
import struct

import numpy as np
import pytest

from tests.fetch import batches
from tests.fetch.batches import CODECS, Record, batch, changed, marker
from tokenometer.kernels import layout
from tokenometer.kernels.limits import Limits
from tokenometer.kernels.loaded import Buffer
from tokenometer.processor.broker.kafka.fetch.codecs import _NAMES
from tokenometer.processor.broker.kafka.fetch.walk import HEADERS, KEYS, Status, Walked, Walker, checksum, next_offset

EVERY_LIBRARY = frozenset(_NAMES)
SPACE = Limits.batch_bytes  # of a region's values (regions.h)
LEAST = SPACE // 6


def walk(data: bytes, begin: int = 0, aborted=(), wanted: int = 0, walker: Walker | None = None) -> Walked:
    return (walker or Walker()).walk(memoryview(data), begin, aborted, wanted)


def seen(walked: Walked) -> list[batches.Seen]:
    count = len(walked.offsets)
    keys = list(walked.keys) if walked.keys is not None else [None] * count
    headers = [list(pairs) for pairs in walked.headers] if walked.headers is not None else [[]] * count
    offsets, times = walked.offsets.tolist(), walked.times.tolist()
    return [batches.Seen(*row) for row in zip(offsets, times, list(walked.values), keys, headers, strict=True)]


def some_records(seed: int, count: int = 40) -> list[Record]:
    chance = random.Random(seed)

    def text(most: int) -> bytes | None:
        return None if chance.random() < 0.1 else chance.randbytes(chance.choice([0, 1, most, 3 * most]))

    def line() -> bytes | None:
        return chance.choice([b'{"user":"u"}', b"a\nb\n", b"\n", text(70)])

    def headers() -> list[tuple[str, bytes | None]]:
        return [(chance.choice(["x", "ü" * 40, ""]), text(30)) for _ in range(chance.choice([0, 0, 1, 70]))]

    time_ms = batches.TIME_MS
    return [Record(line(), text(20), headers(), time_ms + chance.randrange(-9_000, 9_000)) for _ in range(count)]


@pytest.mark.parametrize("missing", [frozenset(), EVERY_LIBRARY], ids=["libraries", "pyarrow"])
@pytest.mark.parametrize("codec", CODECS)
def test_messages_are_what_another_reader_finds(codec: str, missing: frozenset[str]) -> None:
    walker = Walker(missing=missing)
    for seed in range(5):
        data = b"".join(batch(base, some_records(seed + base), codec) for base in (0, 40, 1_000))
        walked = walk(data, 0, wanted=KEYS | HEADERS, walker=walker)
        assert walked.status is Status.FINE and walked.walked == len(data)
        assert seen(walked) == batches.read(data)
        assert (walked.next_offset, walked.epoch) == next_offset(memoryview(data), 0, -1) == (1_040, 0)


@pytest.mark.parametrize("codec", CODECS)
def test_a_batch_that_expands_a_thousandfold_is_read(codec: str) -> None:
    records = [Record(b"x" * 3_000_000), Record(b""), Record(b"y" * 1_000_000)]
    assert [len(value or b"") for value in walk(batch(0, records, codec)).values] == [3_000_000, 0, 1_000_000]


def test_values_are_lines_in_one_buffer() -> None:
    walked = walk(batch(0, [Record(value) for value in (b"a", None, b"b\n", b"", b"\n\n")]))
    assert walked.values.data.tobytes() == b"a\n" + b"\n" + b"b\n" + b"\n" + b"\n\n"
    assert walked.values.lines is not None and walked.values.lines.tolist() == [2, 3, 5, 6, 8]
    assert walked.keys is None and walked.headers is None


@pytest.mark.parametrize("codec", CODECS)
def test_whether_each_value_is_one_line_is_known(codec: str) -> None:
    plain = [Record(value) for value in (b"a", None, b"b\n", b"", b"\n", b"x" * 300 + b"\n")]
    assert walk(batch(0, plain, codec)).values.one_line and walk(b"").values.one_line
    for value in (b"\n\n", b"\na", b"a\nb\n", b"x" * 299 + b"\n" + b"x" * 300):
        for at in range(len(plain) + 1):
            data = batch(0, [*plain[:at], Record(value), *plain[at:]], codec) + batch(9, plain, codec)
            walked = walk(data)
            assert not walked.values.one_line and not walked.values[1:].one_line
            assert walk(data, begin=9).values.one_line, "what lies before the offset does not count"


def large(size: int, count: int = 8) -> bytes:
    """Batches whose values and newlines are so many bytes."""
    sizes = [size // count] * (count - 1)
    sizes.append(size - sum(sizes))
    values = [bytes([0x61 + index]) * (each - 1) for index, each in enumerate(sizes)]
    return b"".join(batch(index, [Record(value)], "lz4") for index, value in enumerate(values))


@pytest.mark.parametrize(
    ("size", "in_region"),
    [(LEAST - 1, False), (LEAST, True), (SPACE - 99, True), (SPACE + 1, False), (3 * SPACE, False)],
)
def test_many_values_come_in_a_region_that_is_laid_out_as_a_batch(size: int, in_region: bool) -> None:
    data = large(size)
    walker = Walker()
    for _ in range(3):  # a region that is given back is used again
        walked = walk(data, walker=walker)
        assert list(walked.values) == [row.value for row in batches.read(data)]
        values, region = walked.values.data, walked.values.buffer
        assert len(values) == size and (region is not None) == in_region
        if region is None:
            continue
        assert len(region) == Buffer.bytes_for(SPACE)
        around = np.delete(region, slice(layout.PREFIX_BYTES, layout.PREFIX_BYTES + SPACE))
        assert np.shares_memory(values, region[layout.PREFIX_BYTES :]) and not around.any()
        assert walked.values[1:].buffer is None, "a part of them is somebody else's neighbour"


def test_every_answer_in_use_has_its_own_region() -> None:
    walker = Walker()
    kept = [walk(batch(0, [Record(text * LEAST)], "lz4"), walker=walker) for text in (b"a", b"b", b"c", b"d")]
    assert bytes(walked.values.data[0] for walked in kept) == b"abcd"
    assert len({walked.values.data.ctypes.data for walked in kept}) == 4


@pytest.mark.parametrize("wanted", [0, KEYS, HEADERS, KEYS | HEADERS])
def test_keys_and_headers_come_where_they_are_asked_for(wanted: int) -> None:
    data = batch(0, some_records(1))
    expected = [
        row._replace(key=row.key if wanted & KEYS else None, headers=row.headers if wanted & HEADERS else [])
        for row in batches.read(data)
    ]
    assert seen(walk(data, wanted=wanted)) == expected


def test_what_lies_before_the_offset_is_left_out() -> None:
    data = batch(10, some_records(1, 5)) + batch(15, some_records(2, 5))
    for begin in range(8, 22):
        walked = walk(data, begin, wanted=KEYS | HEADERS)
        assert seen(walked) == [row for row in batches.read(data) if row.offset >= begin]
        assert walked.next_offset == max(begin, 20)


@pytest.mark.parametrize("missing", [frozenset(), EVERY_LIBRARY], ids=["libraries", "pyarrow"])
def test_snappy_comes_in_the_frame_of_java_and_without(missing: frozenset[str]) -> None:
    import cramjam

    framed = batch(0, some_records(3), "snappy")
    assert framed[61:69] == b"\x82SNAPPY\0"
    plain = bytes(cramjam.snappy.compress_raw(batch(0, some_records(3))[61:]))
    length = struct.pack(">i", len(plain) + 61 - 12)
    walked = walk(changed(framed[:8] + length + framed[12:61] + plain, 8, length), wanted=KEYS | HEADERS,
                  walker=Walker(missing=missing))  # fmt: skip
    assert seen(walked) == batches.read(framed)


def test_the_time_of_appending_is_that_of_all_messages() -> None:
    data = changed(batch(0, [Record(b"a"), Record(b"b", time_ms=batches.TIME_MS + 5)]), 21, struct.pack(">h", 8))
    assert walk(data).times.tolist() == [batches.TIME_MS + 5] * 2


def test_a_message_without_a_time_has_time_0() -> None:
    assert walk(changed(batch(0, [Record(b"a")]), 27, struct.pack(">q", -1))).times.tolist() == [0]


def test_an_epoch_is_that_of_the_last_batch() -> None:
    assert walk(batch(0, [Record(b"a")], epoch=3) + batch(1, [Record(b"a")], epoch=7)).epoch == 7
    assert walk(b"").epoch == -1


# --- Transactions ---


def inside(base: int, producer: int, *values: bytes) -> bytes:
    return batch(base, [Record(value) for value in values], producer=producer, transactional=True)


def test_aborted_messages_and_markers_are_left_out() -> None:
    data = b"".join((
        inside(0, 1, b"aborted"), inside(1, 2, b"kept"), batch(2, [Record(b"plain")]), inside(3, 1, b"aborted", b"too"),
        marker(5, 1, commit=False), inside(6, 1, b"kept too"), marker(7, 2, commit=True), marker(8, 1, commit=True),
    ))  # fmt: skip
    walked = walk(data, 0, aborted=[(1, 0)])
    assert list(walked.values) == [b"kept", b"plain", b"kept too"]
    assert walked.offsets.tolist() == [1, 2, 6] and walked.next_offset == 9


def test_an_abort_counts_from_its_first_message_on() -> None:
    """Two of one producer, with a commit between them, and listed in any order."""
    data = b"".join((
        inside(0, 1, b"aborted"), marker(1, 1, commit=False), inside(2, 1, b"kept"), marker(3, 1, commit=True),
        inside(4, 1, b"aborted"), marker(5, 1, commit=False), inside(6, 1, b"kept"),
    ))  # fmt: skip
    for aborted in ([(1, 0), (1, 4)], [(1, 4), (1, 0)]):
        assert walk(data, 0, aborted).offsets.tolist() == [2, 6]


def test_a_message_outside_of_transactions_is_kept_whoever_wrote_it() -> None:
    assert list(walk(batch(0, [Record(b"kept")], producer=1), 0, [(1, 0)]).values) == [b"kept"]


def test_batches_that_hold_nothing_move_the_offset_on() -> None:
    walked = walk(inside(0, 1, b"aborted") + marker(1, 1, commit=False), 0, [(1, 0)])
    assert len(walked.values) == 0 and walked.next_offset == 2 and walked.status is Status.FINE


def test_an_empty_batch_that_compaction_left_moves_the_offset_on() -> None:
    data = batch(5, [Record(b"gone")] * 3)[:61]
    emptied = changed(data[:8] + struct.pack(">i", 49) + data[12:57] + struct.pack(">i", 0), 57, struct.pack(">i", 0))
    walked = walk(emptied, 5)
    assert (len(walked.values), walked.next_offset, walked.status) == (0, 8, Status.FINE)


# --- Broken batches ---


def test_a_batch_that_the_answer_cuts_off_is_left_for_the_next_one() -> None:
    first, second = batch(0, some_records(1, 5)), batch(5, some_records(2, 5))
    for cut in range(len(second)):
        walked = walk(first + second[:cut], wanted=KEYS | HEADERS)
        assert (walked.status, walked.next_offset, walked.walked) == (Status.FINE, 5, len(first))
        assert seen(walked) == batches.read(first)


def test_a_batch_with_a_wrong_checksum_is_refused_and_nothing_of_it_kept() -> None:
    first, second = batch(0, some_records(1, 5)), bytearray(batch(5, some_records(2, 5)))
    for at in range(21, len(second)):
        second[at] ^= 1 << at % 8
        walked = walk(first + bytes(second))
        assert (walked.status, walked.next_offset) == (Status.BAD_CRC, 5)
        assert walked.offsets.tolist() == [0, 1, 2, 3, 4]
        second[at] ^= 1 << at % 8


@pytest.mark.parametrize(
    ("at", "new", "expected"),
    [
        (8, struct.pack(">i", -1), Status.BAD_BATCH),
        (8, struct.pack(">i", 4), Status.BAD_BATCH),
        (16, b"\1", Status.OLD_FORMAT),
        (16, b"\0", Status.OLD_FORMAT),
        (16, b"\3", Status.BAD_BATCH),
        (21, struct.pack(">h", 5), Status.UNKNOWN_CODEC),
        (21, struct.pack(">h", CODECS["gzip"]), Status.BAD_COMPRESSION),
        (21, struct.pack(">h", CODECS["snappy"]), Status.BAD_COMPRESSION),
        (21, struct.pack(">h", CODECS["lz4"]), Status.BAD_COMPRESSION),
        (21, struct.pack(">h", CODECS["zstd"]), Status.BAD_COMPRESSION),
        (23, struct.pack(">i", -1), Status.BAD_BATCH),
        (23, struct.pack(">i", 3), Status.BAD_BATCH),  # below the last one's
        (57, struct.pack(">i", 4), Status.BAD_BATCH),
        (57, struct.pack(">i", 6), Status.BAD_BATCH),
        (57, struct.pack(">i", 1 << 30), Status.BAD_BATCH),
        (57, struct.pack(">i", -1), Status.BAD_BATCH),
        (61, b"\0", Status.BAD_BATCH),  # a record of no bytes
        (61, b"\1", Status.BAD_BATCH),  # of less than none
        (0, struct.pack(">q", -5), Status.BAD_BATCH),
        (0, struct.pack(">q", (1 << 63) - 2), Status.BAD_BATCH),
    ],
)
def test_a_broken_batch_is_named(at: int, new: bytes, expected: Status) -> None:
    good = batch(0, [Record(b"a")])
    walked = walk(good + changed(batch(1, [Record(b"x" * 50)] * 5), at, new))
    assert (walked.status, walked.next_offset) == (expected, 1)
    assert list(walked.values) == [b"a"]


def test_a_batch_that_repeats_offsets_is_refused() -> None:
    for base in (0, 4):
        walked = walk(batch(0, some_records(1, 5)) + batch(base, some_records(2, 5)))
        assert (walked.status, walked.next_offset) == (Status.BAD_BATCH, 5)


@pytest.mark.parametrize("missing", [frozenset(), EVERY_LIBRARY], ids=["libraries", "pyarrow"])
@pytest.mark.parametrize("codec", [codec for codec in CODECS if codec != "none"])
def test_a_batch_that_would_open_to_more_than_the_limit_is_refused(codec: str, missing: frozenset[str]) -> None:
    """At the limit it is read."""
    records = [Record(b"x" * 100_000)] * 11
    opened = len(batch(0, records)) - 61
    data = batch(0, records, codec)
    assert walk(data, walker=Walker(opened, missing)).status is Status.FINE
    refused = walk(data, walker=Walker(opened // 3, missing))
    assert refused.status is Status.TOO_LARGE and len(refused.values) == 0


@pytest.mark.parametrize("codec", [codec for codec in CODECS if codec != "none"])
def test_compressed_records_that_end_early_are_refused(codec: str) -> None:
    data = batch(0, some_records(4), codec)
    for left in range(1, 40):
        short = data[:8] + struct.pack(">i", len(data) - left - 12) + data[12 : len(data) - left]
        assert walk(changed(short, 16, b"\2")).status in (Status.BAD_COMPRESSION, Status.BAD_BATCH)


def test_the_checksum_is_the_published_one() -> None:
    """RFC 3720, B.4."""
    assert checksum(bytes(32)) == 0x8A9136AA and checksum(b"\xff" * 32) == 0x62A8AB43
    assert checksum(bytes(range(32))) == 0x46DD794E and checksum(b"123456789") == 0xE3069283
