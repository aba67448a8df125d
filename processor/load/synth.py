"""Synthetic request logs: the same seed gives the same bytes.

Promises: no clock, no environment, no global state. A longer log begins with the shorter one. Faults draw from random
streams of their own, so that records without a fault are byte for byte those of a log without faults.
Not promised: the same bytes from another numpy, or from a processor whose exp() rounds differently.

How a block of records is made:

    1. draw      numpy columns: arrival times, users, models, chips, counts
    2. resend    some records are copies of earlier ones (duplicates)
    3. edit      the few malformed or escaped ones are written one by one
    4. format    C++ spells the columns (lines.cpp)
"""

from collections.abc import Iterable, Iterator

import numpy as np

from tokenometer.processor.load.faults import Spoiler
from tokenometer.processor.load.lines import (
    RECORD,
    Block,
    Floats,
    Format,
    Ints,
    Records,
    Zipf,
    ids,
    names,
    part,
    stream,
)
from tokenometer.processor.load.profile import (
    BLOCK_RECORDS,
    CHIP_NAMES,
    ENDPOINTS,
    FUTURE_MS,
    INPUT_TOKENS_MAX,
    LATE_MS,
    LATENCY_MS_MAX,
    MODEL_NAMES,
    OUTPUT_TOKENS_MAX,
    REGIONS,
    TIME_LIMIT_MS,
    Profile,
)


def generate(profile: Profile) -> Iterator[bytes]:
    """The log, in chunks of whole lines, a few MB each. Every line ends with a newline."""
    return (bytes(block.data) for block in blocks(profile))


def blocks(profile: Profile) -> Iterator[Block]:
    """The same with what a producer wants to know of each line."""
    source, spoiler = _Source(profile), Spoiler(profile)
    models = [f'"{name}"' for name in names(MODEL_NAMES, profile.models)]
    places = [(region, endpoint) for region in REGIONS for endpoint in ENDPOINTS]
    spelling = Format(models, names(CHIP_NAMES, profile.chips), profile.users, places)
    for first in range(0, profile.records, BLOCK_RECORDS):
        # Always a whole block is drawn: a longer log begins with this one.
        records, due_ms = source.next_block()
        spoiler.resend(records)
        count = min(profile.records - first, BLOCK_RECORDS)
        yield spelling.block(records[:count], due_ms[:count], spoiler.edits(records[:count], spelling))


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
        self.arrivals, self.bursts = stream(profile.seed, "arrivals"), stream(profile.seed, "bursts")
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
    """Draws blocks of sound records."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self.clock = _Clock(profile)
        self.user = Zipf(profile.users, profile.user_skew)
        self.model, self.chip = Zipf(profile.models, 0.8), Zipf(profile.chips, 0.6)
        streams = ("ids", "users", "models", "chips", "places", "input", "output", "cached", "writes", "reasoning",
                 "latency", "late", "prefill")  # fmt: skip
        self.streams = {name: stream(profile.seed, name) for name in streams}

    def next_block(self) -> tuple[Records, Ints]:
        """Records, and when each comes to the log: a request is logged when it is done, its event time is when it
        came."""
        n, profile, streams = BLOCK_RECORDS, self.profile, self.streams
        records = np.zeros(n, RECORD)
        records["id"] = ids(streams["ids"], n)
        records["user"] = self.user.draw(streams["users"], n)
        records["model"] = self.model.draw(streams["models"], n)
        records["chip"] = self.chip.draw(streams["chips"], n)
        if profile.prefill:
            with_prefill = streams["prefill"].random(n) < profile.prefill
            records["prefill"] = with_prefill * (1 + self.chip.draw(streams["prefill"], n))
        records["input_tokens"] = input_tokens = self._tokens("input", profile.input_median, INPUT_TOKENS_MAX)
        records["output_tokens"] = output_tokens = self._tokens("output", profile.output_median, OUTPUT_TOKENS_MAX)
        latency = streams["latency"].random(n) * 4_000 + (streams["latency"].random(n) + 0.5) * 1_500 * output_tokens
        latency_cents = np.minimum(latency.astype(np.int64) + 5_000, LATENCY_MS_MAX * 100)
        logged_ms = self.clock.next(n)
        records["time_ms"] = times = logged_ms - latency_cents // 100 + self._shifts()
        assert times.min() >= 0 and times.max() < TIME_LIMIT_MS
        if profile.compact:
            for name in ("cached_input_tokens", "cache_write_tokens", "reasoning_tokens"):
                records[name] = -1
        else:
            cached, writes = self._cache_parts(input_tokens)
            records["cached_input_tokens"], records["cache_write_tokens"] = cached, writes
            records["reasoning_tokens"] = part(streams["reasoning"], profile.reasoning_share, output_tokens)
            records["place"] = streams["places"].integers(1, 1 + len(REGIONS) * len(ENDPOINTS), n)
            records["streamed"] = streams["places"].random(n) >= 0.3
            records["latency_cents"] = latency_cents
        return records, logged_ms

    def _tokens(self, name: str, median: int, limit: int) -> Ints:
        spread = np.exp(self.streams[name].standard_normal(BLOCK_RECORDS) * self.profile.token_sigma)
        tokens: Ints = np.clip(median * spread, 1, limit).astype(np.int64)
        return tokens

    def _cache_parts(self, input_tokens: Ints) -> tuple[Ints, Ints]:
        cached = part(self.streams["cached"], self.profile.cached_share, input_tokens)
        writes = part(self.streams["writes"], self.profile.cache_write_share, input_tokens - np.maximum(cached, 0))
        return cached, np.where(writes == 0, -1, writes)  # a zero of this field is hardly ever logged

    def _shifts(self) -> Ints:
        """Event times far from the record's place in the log, in milliseconds."""
        profile = self.profile
        if not profile.late + profile.future:
            return np.zeros(BLOCK_RECORDS, np.int64)
        rng = self.streams["late"]
        fate, distance = rng.random((2, BLOCK_RECORDS))
        late, ahead = fate < profile.late, fate >= 1 - profile.future
        shifts = np.zeros(BLOCK_RECORDS, np.int64)
        shifts[late] = -_log_uniform(distance[late], *LATE_MS)
        shifts[ahead] = _log_uniform(distance[ahead], *FUTURE_MS)
        return shifts


def _log_uniform(uniform: Floats, low: int, high: int) -> Ints:
    return np.asarray(low * (high / low) ** uniform).astype(np.int64)
