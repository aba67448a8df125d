"""Ways to break a line of bytes that know nothing of the mapping: a part of tests/mutate.py."""

import functools
import random
from collections.abc import Callable

import numpy as np

from tests.mutate_texts import BAD_STRINGS, VALID_STRINGS

SPACES = [b" ", b"\t", b"\r", b"  ", b"\x0c", b"\x0b", b"\x00", b"\xc2\xa0", b"\xe3\x80\x80", b"\xef\xbb\xbf", b"\x85"]
STRUCTURE = b'{}[],:"\\'


@functools.cache
def table_of(wanted: bytes) -> np.ndarray:
    table = np.zeros(256, bool)
    table[list(wanted)] = True
    return table


def places_of(line: bytes, wanted: bytes) -> list[int]:
    """Where any of some bytes is. By columns, because this is most of the work of a mutation."""
    return np.flatnonzero(table_of(wanted)[np.frombuffer(line, np.uint8)]).tolist()


def span(rng: random.Random, line: bytes) -> tuple[int, int]:
    start = rng.randrange(len(line) + 1)
    return start, min(len(line), start + rng.choice([1, 1, 2, 3, 8, 40]))


def flip_bit(rng: random.Random, line: bytes) -> bytes:
    at = rng.randrange(len(line))
    return line[:at] + bytes([line[at] ^ 1 << rng.randrange(8)]) + line[at + 1 :]


def set_byte(rng: random.Random, line: bytes) -> bytes:
    at = rng.randrange(len(line))
    byte = rng.choice([rng.randrange(256), rng.choice(STRUCTURE), rng.choice(b"0123456789eE+-.")])
    return line[:at] + bytes([byte]) + line[at + 1 :]


def insert_byte(rng: random.Random, line: bytes) -> bytes:
    at = rng.randrange(len(line) + 1)
    return line[:at] + bytes([rng.choice([rng.randrange(256), rng.choice(STRUCTURE)])]) + line[at:]


def insert_space(rng: random.Random, line: bytes) -> bytes:
    """Mostly next to a structural character, where white space may stand."""
    places = places_of(line, b"{}[],:")
    at = rng.choice(places) + rng.randrange(2) if places and rng.random() < 0.7 else rng.randrange(len(line) + 1)
    return line[:at] + rng.choice(SPACES) + line[at:]


def surround(rng: random.Random, line: bytes) -> bytes:
    return rng.choice([*SPACES, b""]) + line + rng.choice([*SPACES, b"\r", b"\r", b""])


def delete_span(rng: random.Random, line: bytes) -> bytes:
    start, end = span(rng, line)
    return line[:start] + line[end:]


def repeat_span(rng: random.Random, line: bytes) -> bytes:
    start, end = span(rng, line)
    return line[:end] + line[start:end] + line[end:]


def move_span(rng: random.Random, line: bytes) -> bytes:
    start, end = span(rng, line)
    rest = line[:start] + line[end:]
    at = rng.randrange(len(rest) + 1)
    return rest[:at] + line[start:end] + rest[at:]


def delete_structure(rng: random.Random, line: bytes) -> bytes:
    places = places_of(line, STRUCTURE)
    if not places:
        return line
    at = rng.choice(places)
    return line[:at] + rng.choice([b"", b"", bytes([rng.choice(STRUCTURE)])]) + line[at + 1 :]


def edit_number(rng: random.Random, line: bytes) -> bytes:
    places = places_of(line, b"0123456789")
    if not places:
        return line
    at = rng.choice(places)
    edit = rng.choice([b"0", b"-", b".", b"e", b"E+", b"e-", b".0", b"+", b"9" * 20, b"1", b"00"])
    return line[:at] + edit + line[at:]


def edit_string(rng: random.Random, line: bytes) -> bytes:
    places = places_of(line, b'"')
    if not places:
        return line
    at = rng.choice(places) + rng.randrange(2)
    return line[:at] + rng.choice([*BAD_STRINGS, *VALID_STRINGS])[1:-1][:40] + line[at:]


def truncate(rng: random.Random, line: bytes) -> bytes:
    return line[: rng.randrange(len(line))] if rng.random() < 0.7 else line[: -rng.randrange(1, 4)]


def append(rng: random.Random, line: bytes) -> bytes:
    return line + rng.choice([b"}", b"]", b",", b"{}", b"x", b"\x00", b"null", b"//", line, b",\r", b"0", b'"'])


BYTE_MUTATORS: list[Callable[[random.Random, bytes], bytes]] = [
    flip_bit, flip_bit, set_byte, insert_byte, insert_space, insert_space, surround, delete_span, repeat_span,
    move_span,
    delete_structure, delete_structure, edit_number, edit_string, truncate, append,
]  # fmt: skip
