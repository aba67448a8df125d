"""Messages that went wrong: samples with bytes changed, cut, doubled and swapped with what matters to a format."""

import random
from collections.abc import Iterator

_PIECES = (
    *(b"[", b"]", b"{", b"}", b",", b":", b'"', b"\\", b'\\"', b"\n", b"\r", b" ", b"null", b"0", b"-1", b"1e400"),
    *(
        b"\xff",
        b"\x00",
        b"\x80",
        b"\xc3\x28",
        b"[]",
        b"{}",
        b'""',
        b"true",
        b"12345678901234567890123",
        b"1.0",
        b"\\u0041",
    ),
    *(b'"key":', b'"value":', b'"intValue":', b'"stringValue":', b'"attributes":', b'"spans":', b'"resource":{},'),
    *(b"\x0a", b"\x12", b"\x7f", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"\x1a\x00", b"\x2a", b"\x32"),
)


def mutants(samples: list[bytes], count: int, seed: int) -> Iterator[bytes]:
    rng = random.Random(seed)
    for _ in range(count):
        message = bytearray(rng.choice(samples))
        for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
            _change(rng, message, samples)
        yield bytes(message)


def _change(rng: random.Random, message: bytearray, samples: list[bytes]) -> None:
    at = rng.randrange(len(message) + 1)
    match rng.randrange(7):
        case 0:
            message[at:at] = rng.choice(_PIECES)
        case 1:
            del message[at : at + rng.choice((1, 1, 2, 5, 40))]
        case 2 if at < len(message):
            message[at] = rng.randrange(256)
        case 3:
            del message[at:]
        case 4:
            end = at + rng.randrange(60)
            message[at:at] = message[at:end]
        case 5:
            other = rng.choice(samples)
            begin = rng.randrange(len(other) + 1)
            message[at : at + rng.randrange(20)] = other[begin : begin + rng.randrange(60)]
        case _:
            piece = rng.choice(_PIECES)
            message[at : at + len(piece)] = piece
