"""Synthetic request logs: the same seed gives the same bytes.

Owns: what a made-up log looks like (`Profile`, `generate`), and how a public trace of token counts becomes one
(`from_trace`).
Promises: no clock, no environment, no global state. A longer log begins with the shorter one. Faults draw from random
streams of their own, so that records without a fault are byte for byte those of a log without faults.
Not promised: the same bytes from another numpy, or from a processor whose exp() rounds differently.

How a block of records is made:

    1. draw     numpy columns: arrival times, users, models, chips, counts
    2. render   Arrow joins the columns into lines, without a Python step for each record
    3. spoil    the few records with a fault are rewritten one by one:
                malformed | re-sent (a duplicate), and then possibly escaped
"""

import hashlib
import math
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

START_MS = 1_795_392_000_000  # 2026-11-23T00:00:00Z
COUNT_LIMIT = 1 << 40  # RECORDS.md: counts are below it
TIME_LIMIT_MS = 253_402_300_800_000  # RECORDS.md: the year 10000
STRING_BYTES_MAX = 256  # RECORDS.md

BLOCK_RECORDS = 16_384  # about 5 MB of lines: enough to hide what each numpy call costs
RESEND_RECORDS_MAX = 4_096  # a client retries within seconds; must not exceed BLOCK_RECORDS
LATE_MS = (60_000, 3 * 86_400_000)  # from a slow shipper to a laptop that was closed over a weekend
FUTURE_MS = (2 * 3_600_000, 7 * 86_400_000)  # beyond the default max_future_skew of 1 hour
LATENCY_MS_MAX = 600_000  # gateways give up after ten minutes
INPUT_TOKENS_MAX = 1_000_000  # the longest context windows on offer
OUTPUT_TOKENS_MAX = 128_000
NAMES_MAX = 65_536  # models or chips; their names are held in a table
USERS_MAX = 1_000_000_000  # user names are rendered from their number and need no table
RATE_MIN = 1e-3  # records/s
RATE_MAX = 1e9

MODEL_NAMES = (
    "gpt-4o-mini", "claude-sonnet-4-5", "gemini-2.5-flash", "llama-3.3-70b-instruct", "deepseek-r1", "qwen3-235b-a22b",
    "gpt-4.1", "mistral-large-2411", "claude-haiku-4-5", "gemini-2.5-pro", "deepseek-v3.1", "gpt-oss-120b",
    "llama-4-maverick", "kimi-k2-instruct", "glm-4.6", "qwen3-coder-480b", "gemma-3-27b-it", "phi-4", "command-r-plus",
    "mixtral-8x22b-instruct",
)  # fmt: skip
CHIP_NAMES = (
    "H100-SXM5-80GB", "H200-SXM-141GB", "A100-SXM4-80GB", "B200-SXM-192GB", "MI300X-192GB", "L40S-48GB", "GB200-NVL72",
    "TPU-v5p", "TPU-v6e", "Trainium2", "H100-PCIe-80GB", "A10G-24GB", "Gaudi3-128GB", "MI325X-256GB", "L4-24GB",
    "H20-96GB",
)  # fmt: skip
REGIONS = ("us-east-1", "us-west-2", "eu-west-1", "eu-central-1", "ap-northeast-1", "ap-southeast-2")
ENDPOINTS = ("/v1/chat/completions", "/v1/responses", "/v1/completions", "/v1/messages")


class TraceError(ValueError):
    """A trace file that cannot become records. The message says what was expected."""


@dataclass(frozen=True)
class Profile:
    """What a synthetic log looks like. A share is a part of all records, from 0 to 1."""

    records: int
    seed: int = 1
    users: int = 50_000
    models: int = 8
    chips: int = 6
    user_skew: float = 1.1  # Zipf exponent: user k of n sends in proportion to k ** -skew; 0 is uniform
    start_ms: int = START_MS
    rate: float = 20_000.0  # records/s of log time, averaged over a day and over bursts
    day_curve: bool = False  # busy at 15:00 UTC (1.6 times the rate), quiet at 03:00 (0.4 times)
    bursts: float = 0.05  # share of time in bursts, which are 4 times as busy as the rest
    input_median: int = 800
    output_median: int = 160
    token_sigma: float = 1.2  # of the log-normal distribution of both
    cached_share: float = 0.4  # requests with a cache hit
    cache_write_share: float = 0.05
    reasoning_share: float = 0.15
    duplicates: float = 0.001  # re-sent records
    late: float = 0.002  # event time minutes to days before the record's place in the log
    future: float = 0.0  # event time hours to days ahead of it
    malformed: float = 0.0005  # rejected by RECORDS.md, whatever the reason
    escaped: float = 0.001  # needed strings or keys spelled with JSON escapes
    prefill: float = 0.05  # requests with a prefill_chip
    compact: bool = False  # only the needed fields, request_id and prefill_chip: about 200 bytes instead of 330
    lines_per_message: int = 1  # for `messages`; the lines stay the same

    def __post_init__(self) -> None:
        _check_types(self)
        _check_range(self, "records", 0, COUNT_LIMIT)
        _check_range(self, "seed", 0, (1 << 64) - 1)
        _check_range(self, "users", 1, USERS_MAX)
        _check_range(self, "models", 1, NAMES_MAX)
        _check_range(self, "chips", 1, NAMES_MAX)
        _check_range(self, "user_skew", 0, 5)
        _check_range(self, "rate", RATE_MIN, RATE_MAX)
        _check_range(self, "input_median", 1, INPUT_TOKENS_MAX)
        _check_range(self, "output_median", 1, OUTPUT_TOKENS_MAX)
        _check_range(self, "token_sigma", 0, 5)
        _check_range(self, "lines_per_message", 1, 1_000_000)
        for share in ("bursts", "cached_share", "cache_write_share", "reasoning_share", "duplicates", "late", "future",
                      "malformed", "escaped", "prefill"):  # fmt: skip
            _check_range(self, share, 0, 1)
        if self.duplicates + self.malformed > 1:
            raise ValueError("duplicates + malformed must be at most 1: a record is one or the other")
        if self.late + self.future > 1:
            raise ValueError("late + future must be at most 1: a record is one or the other")
        _check_range(self, "start_ms", LATE_MS[1] + LATENCY_MS_MAX, TIME_LIMIT_MS)
        longest_ms = 10_000 * (self.records / self.rate + 1_000)  # as if the whole log were the quietest hour
        if self.start_ms + longest_ms + FUTURE_MS[1] >= TIME_LIMIT_MS:
            raise ValueError("start_ms, records and rate put the end of the log past the year 9999")


def _check_types(profile: Profile) -> None:
    """Settings come from command lines and files; a float where an integer belongs fails far from its cause."""
    for field in fields(profile):
        value = getattr(profile, field.name)
        wanted = {int: "an integer", float: "a number", bool: "true or false"}[field.type]  # type: ignore[index]
        numeric = isinstance(value, int) or (isinstance(value, float) and field.type is float)
        if isinstance(value, bool) != (field.type is bool) or not numeric:
            raise ValueError(f"{field.name} must be {wanted}, not {value!r}")


def _check_range(profile: Profile, name: str, low: float, high: float) -> None:
    value = getattr(profile, name)
    if not low <= value <= high:  # also refuses a NaN
        raise ValueError(f"{name} must be from {low} to {high}, not {value!r}")


# --- A log ------------------------------------------------------------------------------------------------------------


def generate(profile: Profile) -> Iterator[bytes]:
    """The log, in chunks of whole lines, a few MB each. Every line ends with a newline."""
    source = _Source(profile)
    spoiler = _Spoiler(profile)
    left = profile.records
    while left > 0:
        count = min(left, BLOCK_RECORDS)  # always draw a whole block: a longer log begins with this one
        block = source.next_block().first(count)
        yield spoiler.spoil(block)
        left -= count


def messages(chunks: Iterable[bytes], lines_per_message: int = 1) -> Iterator[bytes]:
    """Message values: groups of lines, joined by newlines. However the chunks are cut, the messages are the same.

    Brokers refuse messages over 1 MiB by default: 1,000 lines of 330 bytes are well below that.
    """
    if lines_per_message < 1:
        raise ValueError(f"lines_per_message must be at least 1, not {lines_per_message!r}")
    held: list[bytes] = []  # the beginning of the next message
    held_lines = 0
    for chunk in chunks:
        newlines = np.flatnonzero(np.frombuffer(chunk, np.uint8) == 0x0A)
        start = 0
        for end in newlines[lines_per_message - 1 - held_lines :: lines_per_message].tolist():
            yield b"".join((*held, chunk[start:end]))
            held, start = [], end + 1
        held_lines = (held_lines + len(newlines)) % lines_per_message
        if start < len(chunk):
            held.append(chunk[start:])
    if held:
        yield b"".join(held).removesuffix(b"\n")


class _Block(NamedTuple):
    """Rendered lines: line i is data[ends[i]:ends[i + 1]], with its newline."""

    data: bytes
    ends: Ints

    def __len__(self) -> int:
        return len(self.ends) - 1

    def first(self, count: int) -> "_Block":
        return self if count == len(self) else _Block(self.data[: self.ends[count]], self.ends[: count + 1])

    def line(self, row: int) -> bytes:
        return self.data[self.ends[row] : self.ends[row + 1] - 1]


# --- Draw -------------------------------------------------------------------------------------------------------------


def _stream(seed: int, name: str) -> np.random.Generator:
    """One independent stream for each purpose; adding a purpose leaves the others as they are."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()))


class _Zipf:
    """Draws from 0..n-1, number k in proportion to (k + 1) ** -skew.

    The first ranks come from a table. Beyond it the sum is as good as the integral, which is inverted directly, so
    that a billion users take no more memory than a few.
    """

    TABLE_RANKS = 65_536

    def __init__(self, n: int, skew: float) -> None:
        self.n, self.skew = n, skew
        self.table = np.cumsum(np.arange(1, min(n, self.TABLE_RANKS) + 1, dtype=np.float64) ** -skew)
        self.tail_start = len(self.table) + 0.5
        self.head = float(self.table[-1])
        self.tail = self._integral(n + 0.5) if n > len(self.table) else 0.0

    def _integral(self, upto: float) -> float:
        """Of x ** -skew from tail_start."""
        power = 1.0 - self.skew
        if abs(power) < 1e-9:
            return math.log(upto / self.tail_start)
        return float((upto**power - self.tail_start**power) / power)

    def _inverse(self, mass: Floats) -> Floats:
        power = 1.0 - self.skew
        if abs(power) < 1e-9:
            return self.tail_start * np.exp(mass)
        return np.asarray((mass * power + self.tail_start**power) ** (1.0 / power))

    def draw(self, rng: np.random.Generator, count: int) -> Ints:
        mass = rng.random(count) * (self.head + self.tail)
        ranks: Ints = np.searchsorted(self.table, mass, side="right").astype(np.int64)
        beyond = mass >= self.head
        if beyond.any():
            ranks[beyond] = np.rint(self._inverse(mass[beyond] - self.head)).astype(np.int64) - 1
        return np.minimum(ranks, self.n - 1)


class _Clock:
    """Arrival times in milliseconds: a Poisson process whose rate changes from slot to slot.

    `mass` is the number of arrivals to expect by a time; arrivals are a unit Poisson process in mass, and the curve
    from mass to time is a straight line within a slot.
    """

    DAY_MS = 86_400_000
    BUSIEST_MS = 15 * 3_600_000
    BURST_FACTOR = 4.0
    SLOTS = 1_024

    def __init__(self, profile: Profile) -> None:
        self.arrivals, self.bursts = _stream(profile.seed, "arrivals"), _stream(profile.seed, "bursts")
        self.profile = profile
        self.slot_ms = max(1_000.0, 16_000.0 / profile.rate)  # some records in each slot, or a burst is not seen
        self.mass = 0.0
        self.curve_mass = np.zeros(1)
        self.curve_ms = np.full(1, float(profile.start_ms))

    def next(self, count: int) -> Ints:
        mass = self.mass + np.cumsum(self.arrivals.standard_exponential(count))
        self.mass = float(mass[-1])
        while self.curve_mass[-1] < self.mass:
            self._extend()
        times: Ints = np.interp(mass, self.curve_mass, self.curve_ms).astype(np.int64)
        used = int(np.searchsorted(self.curve_mass, self.mass, side="right")) - 1
        self.curve_mass, self.curve_ms = self.curve_mass[used:], self.curve_ms[used:]
        return times

    def _extend(self) -> None:
        times = self.curve_ms[-1] + self.slot_ms * np.arange(1, self.SLOTS + 1)
        share = self.profile.bursts
        factor = np.where(self.bursts.random(self.SLOTS) < share, self.BURST_FACTOR, 1.0)
        factor /= 1.0 + share * (self.BURST_FACTOR - 1.0)
        if self.profile.day_curve:
            factor *= 1.0 + 0.6 * np.cos(2 * np.pi * (times - self.BUSIEST_MS) / self.DAY_MS)
        mass = self.curve_mass[-1] + np.cumsum(factor) * (self.profile.rate * self.slot_ms / 1_000.0)
        self.curve_mass = np.concatenate((self.curve_mass, mass))
        self.curve_ms = np.concatenate((self.curve_ms, times))


class _Source:
    """Draws and renders blocks of sound records."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self.clock = _Clock(profile)
        self.user = _Zipf(profile.users, profile.user_skew)
        self.model, self.chip = _Zipf(profile.models, 0.8), _Zipf(profile.chips, 0.6)
        self.user_digits = max(6, len(str(profile.users - 1)))
        models, chips = _names(MODEL_NAMES, profile.models), _names(CHIP_NAMES, profile.chips)
        self.model_table = pa.array([f'","model":"{name}","chip":"' for name in models])
        self.chip_table = pa.array([f'{name}"' for name in chips])
        self.prefill_table = pa.array(["", *(f',"prefill_chip":"{name}"' for name in chips)])
        self.place_table = pa.array(
            [f',"region":"{r}","endpoint":"{e}","input_tokens":' for r in REGIONS for e in ENDPOINTS]
        )
        self.end_table = pa.array(
            [f'.{cents:02d},"status":200,"stream":{s}}}\n' for s in ("true", "false") for cents in range(100)]
        )
        names = ("ids", "users", "models", "chips", "places", "input", "output", "cached", "writes", "reasoning",
                 "latency", "late", "prefill")  # fmt: skip
        self.streams = {name: _stream(profile.seed, name) for name in names}

    def next_block(self) -> _Block:
        n, profile, streams = BLOCK_RECORDS, self.profile, self.streams
        input_tokens = self._tokens("input", profile.input_median, INPUT_TOKENS_MAX)
        output_tokens = self._tokens("output", profile.output_median, OUTPUT_TOKENS_MAX)
        latency = streams["latency"].random(n) * 4_000 + (streams["latency"].random(n) + 0.5) * 1_500 * output_tokens
        latency_cents = np.minimum(latency.astype(np.int64) + 5_000, LATENCY_MS_MAX * 100)
        # A request is logged when it is done; its event time is when it came.
        times = self.clock.next(n) - latency_cents // 100 + self._shifts()
        assert times.min() >= 0 and times.max() < TIME_LIMIT_MS
        head = ['{"request_id":"', _uuids(streams["ids"], n), '","timestamp":', _number(times),
                ',"user":"user-', _digits(self.user.draw(streams["users"], n), self.user_digits),
                _pick(self.model_table, self.model.draw(streams["models"], n)),
                _pick(self.chip_table, self.chip.draw(streams["chips"], n))]  # fmt: skip
        if profile.prefill:
            with_prefill = streams["prefill"].random(n) < profile.prefill
            head.append(_pick(self.prefill_table, with_prefill * (1 + self.chip.draw(streams["prefill"], n))))
        if profile.compact:
            counts = [',"input_tokens":', _number(input_tokens), ',"output_tokens":', _number(output_tokens), "}\n"]
            return _render(head + counts)
        places = streams["places"].integers(len(self.place_table), size=n)
        cents = latency_cents % 100 + 100 * (streams["places"].random(n) < 0.3)
        cached, writes = self._cache_parts(input_tokens)
        reasoning = self._part("reasoning", profile.reasoning_share, output_tokens)
        return _render(
            [*head, _pick(self.place_table, places), _number(input_tokens),
             *_optional("cached_input_tokens", cached), *_optional("cache_write_tokens", writes),
             ',"output_tokens":', _number(output_tokens), *_optional("reasoning_tokens", reasoning),
             ',"latency_ms":', _number(latency_cents // 100), _pick(self.end_table, cents)]
        )  # fmt: skip

    def _tokens(self, name: str, median: int, limit: int) -> Ints:
        spread = np.exp(self.streams[name].standard_normal(BLOCK_RECORDS) * self.profile.token_sigma)
        tokens: Ints = np.clip(median * spread, 1, limit).astype(np.int64)
        return tokens

    def _part(self, name: str, share: float, total: Ints) -> Ints:
        """A random part of each total; -1 where the field is absent, which is at times also how a zero is logged."""
        rng = self.streams[name]
        present, zero = rng.random(BLOCK_RECORDS) < share, rng.random(BLOCK_RECORDS) < 0.5
        part = (rng.random(BLOCK_RECORDS) * total).astype(np.int64)
        return np.where(present, part, np.where(zero, 0, -1))

    def _cache_parts(self, input_tokens: Ints) -> tuple[Ints, Ints]:
        cached = self._part("cached", self.profile.cached_share, input_tokens)
        writes = self._part("writes", self.profile.cache_write_share, input_tokens - np.maximum(cached, 0))
        return cached, np.where(writes == 0, -1, writes)  # a zero of this field is hardly ever logged

    def _shifts(self) -> Ints:
        """Event times far from the record's place in the log, in milliseconds."""
        profile = self.profile
        if not profile.late + profile.future:
            return np.zeros(BLOCK_RECORDS, np.int64)
        rng = self.streams["late"]
        fate, distance = rng.random(BLOCK_RECORDS), rng.random(BLOCK_RECORDS)
        late = np.where(fate < profile.late, -_log_uniform(distance, *LATE_MS), 0)
        return np.where(fate >= 1 - profile.future, _log_uniform(distance, *FUTURE_MS), late)


def _log_uniform(uniform: Floats, low: int, high: int) -> Ints:
    return np.asarray(low * (high / low) ** uniform).astype(np.int64)


def _names(known: tuple[str, ...], count: int) -> list[str]:
    return [known[i] if i < len(known) else f"{known[i % len(known)]}-{i // len(known) + 1}" for i in range(count)]


# --- Render -----------------------------------------------------------------------------------------------------------

_TENS = 10 ** np.arange(18, -1, -1, dtype=np.int64)


def _render(parts: list[Any]) -> _Block:
    """Joins columns and constants into lines; the last part ends with the newline."""
    lines = pc.binary_join_element_wise(*parts, "", null_handling="replace", null_replacement="")
    _, ends, data = lines.buffers()
    ends = np.frombuffer(ends, np.int32)[: len(lines) + 1].astype(np.int64)
    return _Block(data.to_pybytes()[: int(ends[-1])], ends)


def _number(values: Ints) -> Any:
    return pc.cast(pa.array(values), pa.string())


def _optional(name: str, values: Ints) -> tuple[Any, Any]:
    """Nothing where the value is negative."""
    absent = values < 0
    keys = _pick(pa.array([f',"{name}":', ""]), absent.astype(np.int64))
    return keys, pc.cast(pa.array(values, mask=absent), pa.string())


def _pick(table: Any, rows: Ints) -> Any:
    return table.take(pa.array(rows))


def _digits(values: Ints, width: int) -> Any:
    return _fixed_width((values[:, None] // _TENS[-width:] % 10 + ord("0")).astype(np.uint8))


def _uuids(rng: np.random.Generator, count: int) -> Any:
    hexed = np.frombuffer(rng.bytes(16 * count).hex().encode(), np.uint8).reshape(count, 32)
    text = np.full((count, 36), ord("-"), np.uint8)
    for group, (start, end) in enumerate(((0, 8), (8, 12), (12, 16), (16, 20), (20, 32))):
        text[:, start + group : end + group] = hexed[:, start:end]
    text[:, 14] = ord("4")  # the version: random
    return _fixed_width(text)


def _fixed_width(text: npt.NDArray[np.uint8]) -> Any:
    count, width = text.shape
    ends = np.arange(0, (count + 1) * width, width, dtype=np.int32)
    return pa.StringArray.from_buffers(count, pa.py_buffer(ends), pa.py_buffer(np.ascontiguousarray(text)))


# --- Spoil ------------------------------------------------------------------------------------------------------------


class _Spoiler:
    """Rewrites the records of a block that have a fault. Remembers one block, for the records that are sent again."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self.fates, self.escapes = _stream(profile.seed, "fates"), _stream(profile.seed, "escapes")
        # Python's generator is the faster one for single draws.
        self.malforming = random.Random(f"{profile.seed}/malform")
        self.resending = random.Random(f"{profile.seed}/resend")
        self.escaping = random.Random(f"{profile.seed}/escape")
        self.before = _Block(b"", np.zeros(1, np.int64))
        self.before_sound = np.zeros(0, np.bool_)

    def spoil(self, block: _Block) -> bytes:
        profile = self.profile
        fate = self.fates.random(BLOCK_RECORDS)[: len(block)]
        malformed = fate < profile.malformed
        resent = ~malformed & (fate < profile.malformed + profile.duplicates)
        edits = {row: malform(block.line(row), self.malforming) for row in np.flatnonzero(malformed).tolist()}
        if profile.duplicates:
            self._resend(block, resent, ~malformed & ~resent, edits)
        if profile.escaped:
            escaped = (self.escapes.random(BLOCK_RECORDS)[: len(block)] < profile.escaped) & ~malformed
            for row in np.flatnonzero(escaped).tolist():
                edits[row] = escape(edits.get(row) or block.line(row), self.escaping)
        return _splice(block, edits)

    def _resend(self, block: _Block, resent: Bools, sound: Bools, edits: dict[int, bytes]) -> None:
        """A record that is sent again takes the place of a fresh one. Where nothing was sent before, that one stays."""
        first = len(self.before)
        known = np.concatenate((self.before_sound, sound))
        source_of = np.maximum.accumulate(np.where(known, np.arange(len(known)), -1))
        for row in np.flatnonzero(resent).tolist():
            back = int(RESEND_RECORDS_MAX ** self.resending.random())  # most retries come soon
            source = int(source_of[max(first + row - back, 0)])
            if source >= 0:
                line = self.before.line(source) if source < first else block.line(source - first)
                edits[row] = resend(line, self.resending)
        self.before, self.before_sound = block, sound


def _splice(block: _Block, edits: dict[int, bytes]) -> bytes:
    if not edits:
        return block.data
    pieces, at = [], 0
    for row in sorted(edits):
        pieces += [block.data[at : block.ends[row]], edits[row], b"\n"]
        at = int(block.ends[row + 1])
    return b"".join((*pieces, block.data[at:]))


def resend(line: bytes, rng: random.Random) -> bytes:
    """The record again, with the same request id, mostly byte for byte."""
    choice = rng.random()
    if choice < 0.8:
        return line
    if choice < 0.9:
        return _with(line, b"timestamp", b"%d" % (_value(line, b"timestamp") + rng.randrange(1, 30_000)))
    return _with(line, b"output_tokens", b"%d" % (_value(line, b"output_tokens") + rng.randrange(1, 100)))


_MAPPED = re.compile(
    rb'"(request_id|timestamp|user|model|chip|prefill_chip|input_tokens|cached_input_tokens|cache_write_tokens'
    rb'|output_tokens|reasoning_tokens)":(?:"([^"]*)")?'
)


def escape(line: bytes, rng: random.Random) -> bytes:
    """The same record, with a character or two of mapped keys and strings spelled as JSON escapes."""
    spans = [match.span(group) for match in _MAPPED.finditer(line) for group in (1, 2) if match.group(group)]
    for start, end in sorted(rng.sample(spans, rng.randint(1, min(3, len(spans)))), reverse=True):
        at = rng.randrange(start, end)
        code = b"\\u%04x" if rng.random() < 0.5 else b"\\u%04X"
        line = line[:at] + code % line[at] + line[at + 1 :]
    return line


# Every case is refused by RECORDS.md, whatever the record's other fields say.
_NOT_JSON = (
    lambda line, rng: line[: rng.randrange(1, len(line))],  # truncated
    lambda line, rng: line[:-1] + b",}",
    lambda line, rng: line + b"}",
    lambda line, rng: line + line,  # a lost newline
    lambda line, rng: line.replace(b'"', b"'"),
    lambda line, rng: line.replace(b":", b"=", 1),
    lambda line, rng: line.replace(b",", b"", 1),
    lambda line, rng: line.replace(b'"user":', b"user:"),
    lambda line, rng: b"\xef\xbb\xbf" + line,
    lambda line, rng: b"2026-11-23T00:00:00Z INFO " + line,
    lambda line, rng: bytes(rng.randrange(0x80, 0xC0) for _ in range(rng.randrange(1, 200))),
)
_NOT_AN_OBJECT = (
    lambda line, rng: b"[" + line + b"]",
    lambda line, rng: b"null",
    lambda line, rng: orjson.dumps(line.decode()),  # encoded twice
    lambda line, rng: b"%d" % rng.randrange(1 << 40),
)
_BAD_VALUES = {
    b"timestamp": (b"null", b"true", b"-1", b"253402300800000", b"1795392000000.0", b'"yesterday"', b'"1795392000000"',
                   b'"2026-02-30T00:00:00Z"', b'"2026-11-23T00:00:00"', b"{}"),
    b"user": (b"null", b'""', b"17", b"false", b'["user-000017"]', b'{"id":"user-000017"}', b'"' + b"u" * 257 + b'"',
              b'"user\\ud800"', b'"user\t17"', b'"user\xff17"', b'"user\\x17"'),
    b"model": (b"null", b'""', b"4.1", b"true", b"[]", b'"' + b"\xc3\xa9" * 129 + b'"'),
    b"chip": (b"null", b'""', b"0", b"{}", b'"' + b"c" * 1_000 + b'"'),
    b"input_tokens": (b"null", b"-1", b"1.0", b"1e3", b"1099511627776", b"18446744073709551616", b'"12"', b"true",
                      b"[12]", b"007", b"NaN", b"1.", b"+1"),
    b"output_tokens": (b"null", b"-17", b"0.5", b"1E2", b"1099511627776", b"9223372036854775808", b'""', b"false",
                       b"{}", b"00", b"Infinity", b".5", b"0x10"),
}  # fmt: skip
_BAD_OPTIONAL: dict[str, tuple[Any, ...]] = {
    "request_id": ("", 17, True, ["a"], "i" * 257),
    "prefill_chip": ("", 0, {}),
    "cached_input_tokens": (-1, 1.5, "0", True, 1 << 40),
    "cache_write_tokens": (-1, 0.0, "1", [], 1 << 40),
    "reasoning_tokens": (-1, 2.0, "", False, 1 << 40),
}


def malform(line: bytes, rng: random.Random) -> bytes:
    """A record that RECORDS.md rejects, made from a sound one."""
    kind = rng.random()
    if kind < 0.25:
        return bytes(rng.choice(_NOT_JSON)(line, rng))
    if kind < 0.30:
        return bytes(rng.choice(_NOT_AN_OBJECT)(line, rng))
    field = rng.choice(tuple(_BAD_VALUES))
    if kind < 0.65:
        return _with(line, field, rng.choice(_BAD_VALUES[field]))
    if kind < 0.75:  # missing
        return orjson.dumps({name: value for name, value in orjson.loads(line).items() if name != field.decode()})
    if kind < 0.80:  # repeated
        return line[:-1] + rng.choice((b',"%s":1}', b',"%s":"x"}', b',"%s":null}')) % field
    record = orjson.loads(line)
    if kind < 0.90:
        name = rng.choice(tuple(_BAD_OPTIONAL))
        return orjson.dumps(record | {name: rng.choice(_BAD_OPTIONAL[name])})
    part, total = rng.choice((("cached_input_tokens", "input_tokens"), ("cache_write_tokens", "input_tokens"),
                              ("reasoning_tokens", "output_tokens")))  # fmt: skip
    return orjson.dumps(record | {part: record[total] + rng.randrange(1, 1_000)})


def _with(line: bytes, field: bytes, value: bytes) -> bytes:
    return re.sub(rb'"%s":("[^"]*"|[0-9]+)' % field, lambda _: b'"%s":%s' % (field, value), line, count=1)


def _value(line: bytes, field: bytes) -> int:
    return int(line.partition(b'"%s":' % field)[2].partition(b",")[0].rstrip(b"}"))


# --- Traces -----------------------------------------------------------------------------------------------------------

# Columns of a trace, by the field that they become. Several names for one field: any of them, but only one.
_TRACE_COLUMNS = {
    "timestamp": ("timestamp_ms", "timestamp"),
    "model": ("model",),
    "user": ("client", "prefix_group", "session"),
    "input_tokens": ("input_tokens",),
    "cached_input_tokens": ("cached_input_tokens", "cached_input_tokens_derived"),
    "cache_write_tokens": ("cache_creation_tokens",),
    "output_tokens": ("output_tokens",),
    "reasoning_tokens": ("reasoning_tokens", "reasoning_output_tokens"),
    "": ("provider",),  # not used
}
_TRACE_COUNTS = ("input_tokens", "cached_input_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens")
_TRACE_NEEDED = ("timestamp", "input_tokens", "output_tokens")
_TRACE_HELP = (
    "accepted columns: timestamp_ms (integer) or timestamp (ISO 8601); input_tokens, output_tokens; optional: model; "
    "client, prefix_group or session; cached_input_tokens or cached_input_tokens_derived; cache_creation_tokens; "
    "reasoning_tokens or reasoning_output_tokens; provider (not used)"
)
_TRACE_BLOCK_BYTES = 512 * 1024  # of CSV: 25,000 rows or so, a few MB of records
_EPOCH_MS_MIN = 100_000_000_000  # a trace that begins before March 1973 counts from its own beginning


def from_trace(
    path: str | Path,
    *,
    seed: int = 1,
    users: int = 50_000,
    chips: int = 6,
    model: str | None = None,
    start_ms: int | None = None,
    repeat: int = 1,
    user_skew: float = 1.1,
) -> Iterator[bytes]:
    """Records of the native mapping from a CSV trace (.csv or .csv.zst), with every token count as it stands there.

    What traces lack is made up from the seed: request ids, chips, and users where no column tells requests apart (one
    that does decides the user). `model` is used where the trace has no such column. The first row is put at
    `start_ms`; without it the trace's own dates are kept, or START_MS is used where it has none. Each repetition
    follows the last after a second, with new request ids. A row that RECORDS.md would reject is a TraceError, because
    its counts cannot be kept and counted at the same time.
    """
    made = Profile(0, seed=seed, users=users, chips=chips, user_skew=user_skew)  # checks the settings
    if start_ms is not None and not 0 <= start_ms < TIME_LIMIT_MS:
        raise ValueError(f"start_ms must be from 0 to {TIME_LIMIT_MS - 1}, not {start_ms!r}")
    if repeat < 1:
        raise ValueError(f"repeat must be at least 1, not {repeat!r}")
    model = MODEL_NAMES[0] if model is None else model
    if not 1 <= len(model.encode()) <= STRING_BYTES_MAX:
        raise ValueError(f"model must be 1 to {STRING_BYTES_MAX} bytes of UTF-8, not {model!r}")
    return _trace_records(Path(path), made, model, start_ms, repeat)


def _trace_records(path: Path, made: Profile, model: str, start_ms: int | None, repeat: int) -> Iterator[bytes]:
    writer = _TraceWriter(path, made, model)
    shift_ms: int | None = None
    first_ms = last_ms = 0
    for _ in range(repeat):
        for columns in _trace_columns(path):
            times = columns["timestamp"].cast(pa.int64()).to_numpy()
            if shift_ms is None:
                first_ms = last_ms = int(times[0])
                shift_ms = _trace_start(first_ms, start_ms) - first_ms
            last_ms = max(last_ms, int(times.max()))
            yield writer.write(columns, times + shift_ms)
        if shift_ms is not None:
            shift_ms += last_ms - first_ms + 1_000


def _trace_start(first_ms: int, start_ms: int | None) -> int:
    if start_ms is not None:
        return start_ms
    return START_MS if first_ms < _EPOCH_MS_MIN else first_ms


def _trace_columns(path: Path) -> Iterator[dict[str, Any]]:
    """Blocks of checked columns, by field."""
    try:
        with pa.input_stream(str(path), compression="zstd" if path.suffix == ".zst" else None) as source:
            reader = pa_csv.open_csv(
                source,
                read_options=pa_csv.ReadOptions(use_threads=False, block_size=_TRACE_BLOCK_BYTES),
                convert_options=pa_csv.ConvertOptions(column_types=_trace_types()),
            )
            names = _trace_names(path, reader.schema.names)
            for batch in reader:
                for name, field in names.items():
                    if field in _TRACE_NEEDED and batch.column(name).null_count:
                        raise TraceError(f"{path}: a row without {name}")
                if batch.num_rows:
                    yield {field: batch.column(name) for name, field in names.items()}
    except (pa.ArrowInvalid, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # no such file, no permission: not a matter of the trace
        raise TraceError(f"{path}: {error}; {_TRACE_HELP}") from error


def _trace_types() -> dict[str, Any]:
    types = {name: pa.int64() for field in _TRACE_COUNTS for name in _TRACE_COLUMNS[field]}
    types |= {name: pa.string() for field in ("model", "user") for name in _TRACE_COLUMNS[field]}
    return types | {"timestamp_ms": pa.int64(), "timestamp": pa.timestamp("ms", "UTC")}


def _trace_names(path: Path, header: list[str]) -> dict[str, str]:
    """Column name -> field."""
    field_of = {name: field for field, names in _TRACE_COLUMNS.items() for name in names}
    unknown = [name for name in header if name not in field_of]
    if unknown:
        raise TraceError(f"{path}: unknown column {', '.join(unknown)}; {_TRACE_HELP}")
    found = [field_of[name] for name in header]
    for field in _TRACE_NEEDED:
        if field not in found:
            raise TraceError(f"{path}: no column for {field}; {_TRACE_HELP}")
    for field in found:
        if found.count(field) > 1:
            raise TraceError(f"{path}: more than one column for {field or 'provider'}; {_TRACE_HELP}")
    return {name: field_of[name] for name in header if field_of[name]}


class _TraceWriter:
    """Renders the rows of a trace; keeps the random streams and the row number across blocks."""

    def __init__(self, path: Path, made: Profile, model: str) -> None:
        self.path, self.made, self.model = path, made, model
        self.ids, self.users, self.chips = (_stream(made.seed, f"trace {name}") for name in ("ids", "users", "chips"))
        self.user, self.chip = _Zipf(made.users, made.user_skew), _Zipf(made.chips, 0.6)
        self.user_digits = max(6, len(str(made.users - 1)))
        self.chip_table = pa.array([f'"{name}","input_tokens":' for name in _names(CHIP_NAMES, made.chips)])
        self.rows = 0
        self.user_of_group: dict[str, int] = {}

    def write(self, columns: dict[str, Any], times: Ints) -> bytes:
        n = len(times)
        self._check(columns, times)
        self.rows += n
        users = _digits(self._users(columns, n), self.user_digits)
        parts = ['{"request_id":"', _uuids(self.ids, n), '","timestamp":', _number(times),
                 ',"user":"user-', users, '","model":', self._models(columns), ',"chip":',
                 _pick(self.chip_table, self.chip.draw(self.chips, n)),
                 pc.cast(columns["input_tokens"], pa.string())]  # fmt: skip
        for field in _TRACE_COUNTS[1:]:
            if field in columns:
                parts += _optional(field, columns[field].fill_null(-1).to_numpy())
        return _render([*parts, "}\n"]).data

    def _models(self, columns: dict[str, Any]) -> Any:
        if "model" not in columns:
            return orjson.dumps(self.model).decode()
        encoded = columns["model"].fill_null("").dictionary_encode()
        names = [name or self.model for name in encoded.dictionary.to_pylist()]
        for name in names:
            if len(name.encode()) > STRING_BYTES_MAX:
                raise TraceError(f"{self.path}: model {name[:40]}... is longer than {STRING_BYTES_MAX} bytes")
        return _pick(pa.array([orjson.dumps(name).decode() for name in names]), encoded.indices)

    def _users(self, columns: dict[str, Any], n: int) -> Ints:
        """Who sent each row. Client numbers begin anew for each model, so the two together make a user."""
        if "user" not in columns:
            return self.user.draw(self.users, n)
        groups = columns["user"].fill_null("")
        if "model" in columns:
            groups = pc.binary_join_element_wise(columns["model"].fill_null(""), groups, "\n")
        encoded = groups.dictionary_encode()
        users = np.array([self._user_of(group) for group in encoded.dictionary.to_pylist()], np.int64)
        each: Ints = users[encoded.indices.to_numpy()]
        return each

    def _user_of(self, group: str) -> int:
        """Numbered by first use: no two share a user unless there are more of them than users."""
        return self.user_of_group.setdefault(group, len(self.user_of_group) % self.made.users)

    def _check(self, columns: dict[str, Any], times: Ints) -> None:
        """Every row must become a record that RECORDS.md counts; a count is never altered to make it one."""
        self._refuse((times < 0) | (times >= TIME_LIMIT_MS), "its time is outside the years 1970 to 9999")
        counts: dict[str, Ints] = {}
        for field in _TRACE_COUNTS:
            column = columns.get(field)
            counts[field] = np.zeros(len(times), np.int64) if column is None else column.fill_null(0).to_numpy()
            self._refuse((counts[field] < 0) | (counts[field] >= COUNT_LIMIT), f"{field} is outside 0 <= n < 2^40")
        parts = counts["cached_input_tokens"] + counts["cache_write_tokens"]
        self._refuse(parts > counts["input_tokens"], "cached and cache-write tokens exceed input_tokens")
        self._refuse(counts["reasoning_tokens"] > counts["output_tokens"], "reasoning tokens exceed output_tokens")

    def _refuse(self, bad: Bools, why: str) -> None:
        if bad.any():
            raise TraceError(f"{self.path}: row {self.rows + int(bad.argmax()) + 1}: {why}")
