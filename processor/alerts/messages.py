"""Alerts as messages, and the state as messages of a compacted topic. Pure: values in, bytes out, and back."""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from tokenometer.processor.alerts.rules import Crossing
from tokenometer.processor.ledger import times

SCHEMA = 1
CHUNK_BYTES = 900 << 10  # brokers take 1 MiB with the key
_STATE_VERSION = 1
_HEAD_BYTES = 16


# --- Alerts ---


def alert(crossing: Crossing, now_ms: int) -> bytes:
    """As schemas/alert.schema.json says."""
    rule = crossing.rule
    zone = rule.zone or UTC
    return json.dumps(  # a sum may have more than the 64 bits that orjson knows
        {
            "schema": SCHEMA,
            "id": crossing.id,
            "rule": rule.name,
            "threshold": crossing.threshold,
            "each": rule.each,
            "subject": crossing.subject,
            "unit": rule.unit,
            "limit": rule.shown(rule.limit),
            "used": rule.shown(crossing.used),
            "per": rule.per,
            "begin": times.text(crossing.begin, zone),
            "end": times.text(crossing.end, zone),
            "at": times.text(now_ms, UTC),
        },
        ensure_ascii=False,
        separators=(",", ":"),
    ).encode()


# --- The state ---


@dataclass(frozen=True)
class State:
    """Sums, and where they are of: the next offset of each partition of token-usage. alerts: from
    where token-alerts may have alerts that are not marked in the sums."""

    header: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray[Any, Any]]
    topic_id: str
    positions: Mapping[int, int]
    alerts: Mapping[int, int]


def state_key(name: str) -> bytes:
    return f"{name}/state".encode()


def hook_key(name: str, hook: str) -> bytes:
    return f"{name}/webhook/{hook}".encode()


def state_messages(name: str, state: State, generation: bytes) -> tuple[list[bytes], list[bytes]]:
    """Keys and values. They are one state if they are written in one transaction. generation: 16 bytes, its own."""
    assert len(generation) == _HEAD_BYTES
    buffer = io.BytesIO()
    header = {
        "version": _STATE_VERSION, "topic_id": state.topic_id, "positions": list(state.positions.items()),
        "alerts": list(state.alerts.items()), "budgets": state.header,
    }  # fmt: skip
    text = np.frombuffer(orjson.dumps(header), np.uint8)
    np.savez(buffer, header=text, **state.arrays)  # type: ignore[arg-type]
    packed = pa.compress(buffer.getbuffer(), codec="lz4", asbytes=True)
    chunks = [packed[begin : begin + CHUNK_BYTES] for begin in range(0, len(packed), CHUNK_BYTES)]
    manifest = {"generation": generation.hex(), "chunks": len(chunks), "bytes": buffer.tell()}
    keys = [_chunk_key(name, number) for number in range(len(chunks))]
    return [*keys, state_key(name)], [*(generation + chunk for chunk in chunks), orjson.dumps(manifest)]


def state_of(name: str, held: Mapping[bytes, bytes]) -> State | None:
    """held: the newest value of each key. None: there is none, or one of another version."""
    if (said := held.get(state_key(name))) is None:
        return None
    manifest = orjson.loads(said)
    chunks = [held[_chunk_key(name, number)] for number in range(manifest["chunks"])]
    assert all(chunk[:_HEAD_BYTES].hex() == manifest["generation"] for chunk in chunks), "one transaction wrote them"
    packed = b"".join(chunk[_HEAD_BYTES:] for chunk in chunks)
    with np.load(io.BytesIO(pa.decompress(packed, manifest["bytes"], codec="lz4", asbytes=True))) as file:
        arrays = {key: file[key] for key in file.files}
    header = orjson.loads(arrays.pop("header").tobytes())
    if header["version"] != _STATE_VERSION:
        return None
    return State(header["budgets"], arrays, header["topic_id"], dict(header["positions"]), dict(header["alerts"]))


def _chunk_key(name: str, number: int) -> bytes:
    return f"{name}/state/{number:05}".encode()
