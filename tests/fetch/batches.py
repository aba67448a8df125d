"""Record batches for tests, by aiokafka's writer, and what is in them, by its reader: neither knows our code."""

import struct
from collections.abc import Sequence
from typing import NamedTuple

from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import calc_crc32c

CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
NO_PRODUCER = -1
TIME_MS = 1_700_000_000_000


class Record(NamedTuple):
    value: bytes | None
    key: bytes | None = None
    headers: Sequence[tuple[str, bytes | None]] = ()
    time_ms: int = TIME_MS


class Seen(NamedTuple):
    offset: int
    time_ms: int
    value: bytes | None
    key: bytes | None
    headers: Sequence[tuple[str, bytes | None]]


def batch(
    base: int,
    records: Sequence[Record],
    codec: str = "none",
    producer: int = NO_PRODUCER,
    transactional: bool = False,
    epoch: int = 0,
) -> bytes:
    builder = DefaultRecordBatchBuilder(
        magic=2, compression_type=CODECS[codec], is_transactional=transactional, producer_id=producer,
        producer_epoch=0, base_sequence=0, batch_size=1 << 30,
    )  # fmt: skip
    for index, record in enumerate(records):
        assert builder.append(index, record.time_ms, record.key, record.value, list(record.headers)) is not None
    return placed(bytes(builder.build()), base, epoch)


def placed(data: bytes, base: int, epoch: int = 0) -> bytes:
    """Neither number is in the checksum."""
    return struct.pack(">q", base) + data[8:12] + struct.pack(">i", epoch) + data[16:]


def changed(data: bytes, at: int, new: bytes) -> bytes:
    """With other bytes there, and the checksum that belongs to them."""
    made = data[:at] + new + data[at + len(new) :]
    return made[:17] + struct.pack(">I", calc_crc32c(made[21:])) + made[21:]


def marker(base: int, producer: int, commit: bool) -> bytes:
    """The end of a transaction."""
    key = struct.pack(">hh", 0, int(commit))
    data = batch(base, [Record(b"\0\0\0\0\0\0", key)], producer=producer, transactional=True)
    return changed(data, 21, struct.pack(">h", 0x30))


def read(data: bytes) -> list[Seen]:
    """By aiokafka."""
    found, batches = [], MemoryRecords(data)
    while batches.has_next():
        part = batches.next_batch()
        assert part is not None and part.validate_crc()
        for r in part:
            found.append(
                Seen(r.offset, r.timestamp, r.value and bytes(r.value), r.key and bytes(r.key), list(r.headers))
            )
    return found
