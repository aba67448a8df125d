"""The keyed hash of strings: avalanche, no collisions, no two spellings, and nothing without the secret."""

import platform

import numpy as np
import pytest

from tests import harness
from tokenometer.kernels import build

PADDING = 64


# -O1: a compiler is done in half of the time.
@pytest.fixture(scope="module", params=[(), ("-mno-aes", "-O1")], ids=["this processor's", "without AES, as on a GPU"])
def library(request):
    if request.param and platform.machine() != "x86_64":
        pytest.skip("the compiler knows no such flag")
    return build.load_host(extra=request.param)


def hash_many(library, texts: list[bytes], secret: list[int]) -> np.ndarray:
    """Each text's two 64-bit halves."""
    lengths = np.fromiter(map(len, texts), np.uint32, len(texts))
    starts = (np.cumsum(lengths, dtype=np.uint32) - lengths).astype(np.uint32)
    return hash_spans(library, b"".join(texts), starts, lengths, secret)


def hash_spans(library, data: bytes, starts: np.ndarray, lengths: np.ndarray, secret: list[int]) -> np.ndarray:
    buffer = np.zeros(len(data) + PADDING, np.uint8)
    buffer[: len(data)] = np.frombuffer(data, np.uint8)
    keys = np.array(secret, np.uint64)
    out = np.zeros((len(starts), 2), np.uint64)
    pointers = [array.ctypes.data for array in (buffer, starts, lengths, keys, out)]
    library.hash_many.argtypes = [*[build.ctypes.c_void_p] * 3, build.ctypes.c_uint32, *[build.ctypes.c_void_p] * 2]
    library.hash_many.restype = None
    library.hash_many(*pointers[:3], len(starts), *pointers[3:])
    return out


def bits(hashes: np.ndarray) -> np.ndarray:
    """128 columns of 0 and 1."""
    return np.unpackbits(hashes.view(np.uint8), axis=1)


@pytest.mark.parametrize("length", [1, 3, 8, 9, 15, 16, 17, 31, 32, 33, 64, 100, 256])
def test_every_input_bit_reaches_every_output_bit(library, length):
    rng = np.random.default_rng(length)
    texts = rng.integers(0, 256, (1000, length), np.uint8)
    if length == 1:
        texts = np.arange(256, dtype=np.uint8)[:, None]
    before = bits(hash_many(library, [text.tobytes() for text in texts], harness.secret()))
    for bit in rng.permutation(length * 8)[:48].tolist():
        flipped = texts.copy()
        flipped[:, bit // 8] ^= np.uint8(1 << bit % 8)
        after = bits(hash_many(library, [text.tobytes() for text in flipped], harness.secret()))
        rate = (before != after).mean(axis=0)  # of 128 output bits, each over all texts
        assert 0.48 < rate.mean() < 0.52
        coins = len(texts) if length > 1 else 128  # a text and its flipped twin are both among the 256
        sigma = 0.5 / coins**0.5
        assert np.abs(rate - 0.5).max() < 6.5 * sigma  # of 80,000 looks not one is that far off by chance


def structured(n: int) -> list[np.ndarray]:
    """Fixed-width names that differ in few digits, as arrays of bytes."""
    digits = (np.arange(n)[:, None] // 10 ** np.arange(7)[::-1] % 10 + ord("0")).astype(np.uint8)

    def around(head: bytes, tail: bytes) -> np.ndarray:
        parts = [np.tile(np.frombuffer(part, np.uint8), (n, 1)) for part in (head, tail)]
        return np.hstack([parts[0], digits, parts[1]])

    return [around(b"user-", b""), around(b"", b"@example.com"), around(b"org/team/service-account/", b"/key/default")]


@pytest.mark.slow
def test_millions_of_similar_names_collide_in_neither_half(library):
    n = 1_000_000
    found = []
    for names in structured(n):
        starts = np.arange(n, dtype=np.uint32) * np.uint32(names.shape[1])
        lengths = np.full(n, names.shape[1], np.uint32)
        found.append(hash_spans(library, names.tobytes(), starts, lengths, harness.secret()))
    halves = np.concatenate(found)
    for half in (0, 1):
        ordered = np.sort(halves[:, half])
        assert (ordered[1:] != ordered[:-1]).all()
        for shift in (8, 44):  # where table slots, owners and sketches take their bits
            low_20 = (halves[:, half] >> np.uint64(shift)) & np.uint64((1 << 20) - 1)
            load = np.bincount(low_20.astype(np.int64), minlength=1 << 20)
            assert load.max() < 20, "3 in each of 2^20 bins on average"


def test_length_and_padding_make_other_texts(library):
    zeros = [b"\0" * n for n in range(300)]
    padded = [b"a" + b"\0" * n for n in range(1, 300)]
    blocks = [b"x" * n for n in range(1, 300)]
    hashes = hash_many(library, zeros + padded + blocks, harness.secret())
    for half in (0, 1):
        assert len(np.unique(hashes[:, half])) == len(hashes)


def test_swapped_blocks_and_words_make_other_texts(library):
    words = [bytes([65 + i]) * 8 for i in range(6)]
    texts = [b"".join(words[i] for i in order) for order in np.ndindex(6, 6, 6, 6)]
    hashes = hash_many(library, texts, harness.secret())
    for half in (0, 1):
        assert len(np.unique(hashes[:, half])) == len(texts)


def test_only_the_texts_own_bytes_count(library):
    """Neighbours in the buffer differ; wherever a text stands, its hash is the same."""
    text = b"the-same-user"
    for length in range(1, len(text) + 1):
        data = b"".join(bytes([i]) * (i % 9) + text[:length] + bytes([255 - i]) for i in range(64))
        starts, at = [], 0
        for i in range(64):
            at += i % 9
            starts.append(at)
            at += length + 1
        lengths = np.full(64, length, np.uint32)
        hashes = hash_spans(library, data, np.array(starts, np.uint32), lengths, harness.secret())
        assert len(np.unique(hashes, axis=0)) == 1


def test_every_word_of_the_secret_matters(library):
    texts = [b"user-%d" % i for i in range(1000)] + [b"a-much-longer-name-of-a-user-%d" % i for i in range(1000)]
    base = bits(hash_many(library, texts, harness.secret()))
    for word in range(8):
        for bit in (0, 17, 63):
            other = harness.secret()
            other[word] ^= 1 << bit
            rate = (base != bits(hash_many(library, texts, other))).mean()
            # The last words reach one half each.
            assert rate > 0.2, f"word {word}, bit {bit}"
    unrelated = bits(hash_many(library, texts, harness.secret(2)))
    assert 0.49 < (base != unrelated).mean() < 0.51
