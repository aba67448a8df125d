"""The few records of a made-up log that have a fault: sent again, malformed, or spelled with escapes.

A record that is sent again is a copy of its columns. The others are rewritten as text, one by one.
"""

import random
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson

from tokenometer.processor.load.lines import RECORD, Bools, Format, Ints, Records, stream
from tokenometer.processor.load.profile import BLOCK_RECORDS, RESEND_RECORDS_MAX, Profile


class Spoiler:
    """Spoils block after block: first `resend`, then `edits` of the same block."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self.fates, self.escapes, self.resends = (stream(profile.seed, name) for name in ("fates", "escapes", "resend"))
        # Python's generator is the faster one for single draws.
        self.malforming = random.Random(f"{profile.seed}/malform")
        self.escaping = random.Random(f"{profile.seed}/escape")
        self.before = np.zeros(1, RECORD)  # the block before, for the records that are sent again; at first none
        self.before_sound = np.zeros(1, np.bool_)
        self.malformed = np.zeros(0, np.bool_)

    def resend(self, records: Records) -> None:
        """Puts records that came before in place of some. Where nothing was sent before, the fresh one stays."""
        fate = self.fates.random(BLOCK_RECORDS)
        self.malformed = fate < self.profile.malformed
        resent = ~self.malformed & (fate < self.profile.malformed + self.profile.duplicates)
        if self.profile.duplicates:
            sound = ~self.malformed & ~resent
            self._resend(records, np.flatnonzero(resent), sound)
            self.before, self.before_sound = records, sound  # nothing is copied of those that were sent again

    def _resend(self, records: Records, rows: Ints, sound: Bools) -> None:
        """Most retries come soon, and with the same request id mostly byte for byte."""
        distance, choice, amount = self.resends.random((3, len(rows)))
        back = (RESEND_RECORDS_MAX**distance).astype(np.int64)
        known, first = np.concatenate((self.before_sound, sound)), len(self.before)
        source_of = np.maximum.accumulate(np.where(known, np.arange(len(known)), -1))
        source = source_of[np.maximum(first + rows - back, 0)]
        again = records[np.maximum(source - first, 0)]
        again[source < first] = self.before[source[source < first]]
        again["time_ms"] += np.where((choice >= 0.8) & (choice < 0.9), 1 + (amount * 29_999).astype(np.int64), 0)
        again["output_tokens"] += np.where(choice >= 0.9, 1 + (amount * 99).astype(np.int64), 0)
        records[rows[source >= 0]] = again[source >= 0]

    def edits(self, records: Records, spelling: Format) -> dict[int, bytes]:
        """Malformed and escaped lines in place of some of the block's, or of its beginning."""
        malformed = self.malformed[: len(records)]
        edits = {row: malform(line, self.malforming) for row, line in _lines(records, malformed, spelling)}
        if self.profile.escaped:
            escaped = (self.escapes.random(BLOCK_RECORDS)[: len(records)] < self.profile.escaped) & ~malformed
            edits |= {row: escape(line, self.escaping) for row, line in _lines(records, escaped, spelling)}
        return edits


def _lines(records: Records, wanted: Bools, spelling: Format) -> Iterator[tuple[int, bytes]]:
    rows = np.flatnonzero(wanted)
    block = spelling.block(records[rows], np.zeros(len(rows), np.int64))
    yield from ((row, block.line(at)) for at, row in enumerate(rows.tolist()))


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
