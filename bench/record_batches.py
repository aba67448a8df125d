"""Kafka's record batches of values, as a producer writes them: format 2, not compressed, no keys, no headers.

For machines that have no Kafka client. A description of the format: kernels/records.h, broker/kafka/fetch/batches.h.
"""

import struct
from collections.abc import Iterable, Sequence

from tokenometer.processor.broker.kafka.fetch.walk import checksum

_AFTER_CHECKSUM = struct.Struct(">hiqqqhii")
_NO_PRODUCER = -1
_HEAD_BYTES_AFTER_LENGTH = 49


def batches(values: Sequence[bytes | None], times: Sequence[int], per_batch: int, base: int = 0) -> bytes:
    """Several, one after the other, of `per_batch` messages each. times: ms since the epoch."""
    cuts = range(0, len(values), per_batch)
    return b"".join(batch(values[at : at + per_batch], times[at : at + per_batch], base + at) for at in cuts)


def batch(values: Sequence[bytes | None], times: Sequence[int], base: int) -> bytes:
    first_ms = times[0]
    records = b"".join(_records(values, (time_ms - first_ms for time_ms in times)))
    ids = _NO_PRODUCER, -1, -1  # the producer, its epoch, its sequence
    checked = _AFTER_CHECKSUM.pack(0, len(values) - 1, first_ms, max(times), *ids, len(values)) + records
    head = struct.pack(">qiibI", base, _HEAD_BYTES_AFTER_LENGTH + len(records), 0, 2, checksum(checked))
    return head + checked


def _records(values: Iterable[bytes | None], deltas: Iterable[int]) -> Iterable[bytes]:
    for number, (value, delta) in enumerate(zip(values, deltas, strict=True)):
        text = _number(-1) if value is None else _number(len(value)) + value
        record = b"\0" + _number(delta) + _number(number) + _number(-1) + text + _number(0)
        yield _number(len(record)) + record


def _number(value: int) -> bytes:
    """A zigzag varint."""
    left = value << 1 ^ value >> 63
    made = bytearray()
    while left > 127:
        made.append(left & 127 | 128)
        left >>= 7
    return bytes([*made, left])
