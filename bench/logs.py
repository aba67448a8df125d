"""Logs for the benchmarks: synthetic ones, kept as files, and fixed-width ones made straight in a batch's memory.

Both have a fixed seed. What differs between passes over a log is its seed, so that each pass has fresh request ids.
"""

import dataclasses
import hashlib
import os
import pathlib
import zlib
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np
import orjson

from tokenometer.processor.load import synth
from tokenometer.processor.load.profile import START_MS, Profile
from tokenometer.schemas import mapping as mappings

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Ints = np.ndarray[Any, np.dtype[np.int64]]

# No record here is for the referee, which Python pays for; the default profile has 0.15 % of them.
CLEAN = {"malformed": 0.0, "escaped": 0.0, "late": 0.0}
PROFILES: dict[str, dict[str, Any]] = {
    "default": {},
    "default, clean": CLEAN,
    "compact": {"compact": True},
    "compact, clean": {"compact": True, **CLEAN},
}


def path_of(profile: Profile, directory: pathlib.Path) -> pathlib.Path:
    """The file of a profile; another profile or another generator has another name."""
    sources = sorted(pathlib.Path(synth.__file__).parent.glob("*.[cp]*"))
    generator = b"".join(source.read_bytes() for source in sources if source.is_file())
    name = hashlib.sha256(repr(dataclasses.astuple(profile)).encode() + generator).hexdigest()[:12]
    return directory / f"{profile.records}-{profile.seed}-{name}.ndjson"


def make_all(profiles: list[Profile], directory: pathlib.Path) -> None:
    """Those files that are not there yet, on all cores."""
    directory.mkdir(parents=True, exist_ok=True)
    missing = [(profile, path) for profile in profiles if not (path := path_of(profile, directory)).exists()]
    if len(missing) == 1:
        _make(*missing[0])
    elif missing:
        # Not by fork: collecting a Kafka client's garbage in a process that lacks the client's threads is a crash.
        workers = min(len(missing), len(os.sched_getaffinity(0)))
        with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            list(pool.map(_make, *zip(*missing, strict=True)))


def _make(profile: Profile, path: pathlib.Path) -> None:
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        for chunk in synth.generate(profile):
            file.write(chunk)
    part.rename(path)


LABELS = {"team": 900, "api_key": 9_000, "tier": 4, "zone": 96}  # and how many values each has
_FORMAT_2 = mappings.shipped_text("native").decode().replace("format = 1", "format = 2")
_SKIP = '[[skip]]\npath = "endpoint"\nin = ["/v1/embeddings", "/v1/moderations"]\n'
MAPPINGS = {  # of the same log; bench_builds.py compares them
    "plain": _FORMAT_2,
    "rules": _FORMAT_2.replace("[fields.timestamp]", 'with = ["user", "model"]\n\n[fields.timestamp]').replace(
        "[fields.request_id]", f"{_SKIP}\n[fields.request_id]"
    )
    + '\n[fields.total_tokens]\npath = "total_tokens"\n',
    "labels": _FORMAT_2 + "".join(f'\n[labels.{name}]\npath = "{name}"\n' for name in LABELS),
}


def labelled(path: pathlib.Path) -> pathlib.Path:
    """A log like this one, whose records have a total and, by user, four labels of 10,000 values in all."""
    made = path.with_name(f"{path.stem}-labelled.ndjson")
    if not made.exists():
        part = made.with_suffix(".part")
        with path.open("rb") as lines, part.open("wb") as file:
            file.writelines(labelled_line(line.rstrip(b"\n")) + b"\n" for line in lines)
        part.rename(made)
    return made


def labelled_line(line: bytes) -> bytes:
    """Lines that are no record stay as they are."""
    try:
        record = orjson.loads(line)
        total, user = record["input_tokens"] + record["output_tokens"], zlib.crc32(record["user"].encode())
    except (ValueError, KeyError, TypeError, AttributeError):
        return line
    more = {"total_tokens": total} | {name: f"{name}-{user % count}" for name, count in LABELS.items()}
    return line.rstrip()[:-1] + b"," + orjson.dumps(more)[1:]


_LINE_BYTES_MAX = 1 << 13  # of a synthetic record


class FileLog:
    """A file in memory, batch by batch of whole lines. `fill` is one memcpy.

    escaped: each model has a vendor before it, and the slash between them is escaped, as PHP's json_encode does."""

    def __init__(self, path: pathlib.Path, escaped: bool = False) -> None:
        self._data = np.fromfile(path, np.uint8)
        if escaped:
            text = self._data.tobytes().replace(b'"model":"', rb'"model":"vendor\/')
            self._data = np.frombuffer(text, np.uint8)
        self._at = 0

    def fill(self, space: Bytes) -> int:
        end = min(len(self._data), self._at + len(space))
        tail = self._data[max(self._at, end - _LINE_BYTES_MAX) : end]
        if len(tail):
            end -= len(tail) - 1 - int(np.flatnonzero(tail == 0x0A)[-1])
        length = end - self._at
        space[:length] = self._data[self._at : end]
        self._at = end
        return length


_TEMPLATE = (
    b'{"request_id":"........-....-4...-....-............","timestamp":17953920.....,"user":"user-.........",'
    b'"model":"model-.-instruct-2411","chip":"chip-.-SXM5-80GB","input_tokens":1...,"output_tokens":1..}\n'
)
RECORD_BYTES = len(_TEMPLATE)
MODELS, CHIPS = 8, 6
_GROUPS = ((0, 8), (8, 12), (13, 16), (16, 20), (20, 32))  # of a request id's hex digits; digit 12 is the version


def users_of(rows: int) -> int:
    return -(-rows // (MODELS * CHIPS))


class RowsLog:
    """Records of one width, all in one minute, each for one of `rows` rows. `fill` makes them; it is never timed.

    Row r belongs to user r mod users, so that neighbours share nothing but model and chip. Easier on the processor's
    branch prediction than a real log: compare these figures with each other only.
    """

    def __init__(self, rows: int, records: int, seed: int, skew: float | None = None, first_row: int = 0) -> None:
        """skew: row k is drawn in proportion to k ** -skew; None: rows in their order from `first_row` on."""
        self._rows, self._left, self._next, self._skew = rows, records, first_row, skew
        self._users = users_of(rows)
        self._rng = np.random.default_rng(seed)
        self._shares = None if not skew else np.cumsum(np.arange(1, rows + 1, dtype=np.float64) ** -skew)
        begins = [i for i in range(RECORD_BYTES) if _TEMPLATE[i] == 0x2E and _TEMPLATE[i - 1] != 0x2E]
        self._id, self._time, self._user, self._model, self._chip, self._input, self._output = begins[0], *begins[5:]
        assert START_MS == 1_795_392_000_000, "the template's minute"

    def fill(self, space: Bytes) -> int:
        count = min(self._left, len(space) // RECORD_BYTES)
        self._left -= count
        lines = space[: count * RECORD_BYTES].reshape(count, RECORD_BYTES)
        lines[:] = np.frombuffer(_TEMPLATE, np.uint8)
        rows, rng = self._draw(count), self._rng
        cell = rows // self._users
        hexed = np.frombuffer(rng.bytes(16 * count).hex().encode(), np.uint8).reshape(count, 32)
        for dashes, (start, end) in enumerate(_GROUPS):
            at = self._id + dashes
            lines[:, at + start : at + end] = hexed[:, start:end]
        _digits(lines, self._time, 5, rng.integers(60_000, size=count))
        _digits(lines, self._user, 9, rows % self._users)
        _digits(lines, self._model, 1, cell // CHIPS)
        _digits(lines, self._chip, 1, cell % CHIPS)
        _digits(lines, self._input, 3, rng.integers(1000, size=count))
        _digits(lines, self._output, 2, rng.integers(100, size=count))
        return count * RECORD_BYTES

    def _draw(self, count: int) -> Ints:
        if self._skew is None:
            first, self._next = self._next, self._next + count
            return np.arange(first, first + count)
        if self._shares is None:
            return self._rng.integers(self._rows, size=count)
        drawn = self._rng.random(count) * self._shares[-1]
        return np.minimum(np.searchsorted(self._shares, drawn, side="right"), self._rows - 1)


_CHUNK = (
    b'{"request_id":"cmpl-.........","timestamp":17953920.....,"user":"user-....","chip":"H100-SXM5-80GB",'
    b'"response":{"id":"cmpl-.........","object":"chat.completion.chunk","model":"model-70b-instruct",'
    b'"choices":[{"index":0,"delta":{"content":" token"},"finish_reason":null}],"usage":{"prompt_tokens":1...,'
    b'"total_tokens":....,"completion_tokens":1...}}}\n'
)
CHUNK_BYTES, CHUNKS, STREAMS = len(_CHUNK), 200, 1000


class ChunksLog:
    """A router's log of streams, a record a chunk, each of which says the usage so far (vLLM's continuous_usage_stats):
    CHUNKS of a request, STREAMS requests at a time, so that two chunks of one are STREAMS records apart."""

    def __init__(self, records: int, seed: int) -> None:
        self._at, self._end, self._seed = 0, records, seed
        begins = [i for i in range(CHUNK_BYTES) if _CHUNK[i] == 0x2E and _CHUNK[i - 1] != 0x2E]
        begins = [i for i in begins if _CHUNK[i + 1] == 0x2E]  # not the dot of chat.completion.chunk
        self._id, self._time, self._user, self._id_again, self._sent, self._total, self._made = begins

    def fill(self, space: Bytes) -> int:
        count = min(self._end - self._at, len(space) // CHUNK_BYTES)
        lines = space[: count * CHUNK_BYTES].reshape(count, CHUNK_BYTES)
        lines[:] = np.frombuffer(_CHUNK, np.uint8)
        place = np.arange(self._at, self._at + count)
        self._at += count
        request = place // (CHUNKS * STREAMS) * STREAMS + place % STREAMS
        chunk, sent = place // STREAMS % CHUNKS, request * 7919 % 1000
        for at in (self._id, self._id_again):
            _digits(lines, at, 9, self._seed * 10_000_000 + request)
        _digits(lines, self._time, 5, place % 60_000)
        _digits(lines, self._user, 4, request * 104_729 % 10_000)
        _digits(lines, self._sent, 3, sent)
        _digits(lines, self._total, 4, 2000 + sent + chunk)
        _digits(lines, self._made, 3, chunk)
        return count * CHUNK_BYTES


def _digits(lines: Bytes, at: int, width: int, values: Ints) -> None:
    left = values.astype(np.uint32)
    for place in range(at + width - 1, at - 1, -1):
        higher = left // np.uint32(10)
        lines[:, place] = left - higher * np.uint32(10) + np.uint32(0x30)
        left = higher
