"""Columns to record batches, read back by aiokafka's reader."""

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tests.fetch.batches import read
from tokenometer.processor.broker import Column
from tokenometer.processor.broker.kafka.fetch.security import Unable
from tokenometer.processor.broker.kafka.write.packer import Identity, PackedBatch, Packer, hash_of

NOW_MS = 1_700_000_000_000
LARGEST_SEQUENCE = 2**31 - 1


def column(texts: Sequence[bytes]) -> Column:
    lengths = np.array([len(text) for text in texts], np.int64)
    return Column(np.frombuffer(b"".join(texts) + b" ", np.uint8), np.cumsum(lengths) - lengths, lengths)


def packed(
    keys: Sequence[bytes], values: Sequence[bytes], partitions: int = 1, batch_bytes: int = 1 << 20, **more: Any
) -> list[PackedBatch]:
    packer = Packer(Identity(7, 3), batch_bytes, **more)
    packer.grow(partitions)
    packer.add(column(keys), column(values), NOW_MS)
    packer.close(NOW_MS)
    return packer.take()


def head(batch: PackedBatch) -> tuple[int, ...]:
    """Attributes, producer, its epoch, first sequence number, records."""
    data = bytes(batch.data)
    return struct.unpack(">h", data[21:23]) + struct.unpack(">qhii", data[43:61])


@pytest.mark.parametrize(
    "key, expected",
    [  # of Kafka's own test, UtilsTest.testMurmur2
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_keys_have_the_hash_of_javas_clients(key: bytes, expected: int) -> None:
    assert hash_of(key) == expected & 0xFFFFFFFF


@pytest.mark.parametrize("transactional", [True, False])
@pytest.mark.parametrize("compression, codec", [("none", 0), ("lz4", 3)])
def test_what_is_packed_is_read_by_others(compression: str, codec: int, transactional: bool) -> None:
    keys = [b"k%d" % number for number in range(300)]
    values = [b"%d" % number * (number % 50) for number in range(300)]  # some are empty
    batches = packed(keys, values, partitions=3, compression=compression, transactional=transactional)
    assert sorted(batch.partition for batch in batches) == [0, 1, 2]
    for batch in batches:
        expected = [
            pair for pair in zip(keys, values, strict=True) if (hash_of(pair[0]) & 0x7FFFFFFF) % 3 == batch.partition
        ]
        seen = read(bytes(batch.data))
        assert [(each.key, each.value or b"") for each in seen] == expected
        assert [each.offset for each in seen] == list(range(len(seen))) and {e.time_ms for e in seen} == {NOW_MS}
        assert head(batch) == (16 * transactional | codec, 7, 3, 0, len(expected))


def test_a_batch_ends_before_its_limit_and_a_larger_message_is_alone() -> None:
    small, large = b"s" * 100, b"l" * 5_000
    batches = packed([b"k"] * 7, [small, small, large, small, small, large, large], batch_bytes=1_000)
    assert [[each.value for each in read(bytes(batch.data))] for batch in batches] == [
        [small, small], [large], [small, small], [large], [large],
    ]  # fmt: skip
    full = packed([b"k"] * 100, [small] * 100, batch_bytes=1_000, compression="none")
    assert all(len(batch.data) <= 61 + 1_000 for batch in full) and sum(batch.count for batch in full) == 100
    assert [batch.first_sequence for batch in full] == [sum(b.count for b in full[:i]) for i in range(len(full))]


def test_numbers_of_each_length_are_read_by_others() -> None:
    values = [b"v" * size for size in (0, 1, 63, 64, 8_191, 8_192, 1_048_575, 1_048_576)]
    (batch,) = packed(values, values, batch_bytes=1 << 24)
    assert [(each.key or b"", each.value or b"") for each in read(bytes(batch.data))] == [(v, v) for v in values]
    many = [b"%d" % number for number in range(20_000)]  # offsets of one, two and three bytes
    (batch,) = packed(many, many, batch_bytes=1 << 24)
    assert [each.value for each in read(bytes(batch.data))] == many


def test_after_the_largest_sequence_number_comes_0() -> None:
    packer = Packer(Identity(1, 0), 1 << 20, first_sequence=LARGEST_SEQUENCE - 2)
    packer.grow(1)
    for count in (2, 2, 3):  # up to the largest, over it, after it
        packer.add(column([b"k"] * count), column([b"v"] * count), NOW_MS)
        packer.close(NOW_MS)
    assert [head(batch)[3] for batch in packer.take()] == [LARGEST_SEQUENCE - 2, LARGEST_SEQUENCE, 1]


def test_only_partitions_with_messages_are_touched_and_new_ones_are_used() -> None:
    packer = Packer(Identity(1, 0), 1 << 20)
    packer.grow(1)
    assert packer.touched() == []
    packer.add(column([b"21", b"foobar"]), column([b"", b""]), NOW_MS)
    assert packer.touched() == [0] and packer.touched() == []
    packer.grow(8)
    packer.add(column([b"21", b"foobar"]), column([b"", b""]), NOW_MS)
    assert packer.touched() == sorted((hash_of(key) & 0x7FFFFFFF) % 8 for key in (b"21", b"foobar"))


def test_other_codecs_are_left_to_librdkafka() -> None:
    with pytest.raises(Unable, match="compression.type=zstd"):
        Packer(Identity(1, 0), 1 << 20, "zstd")
