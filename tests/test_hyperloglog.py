"""The estimate of distinct users against known numbers of them."""

import numpy as np
import pytest

from tokenometer.processor.records import hyperloglog
from tokenometer.processor.records.hyperloglog import PRECISION, RANK_MAX, REGISTERS, estimate, merge

STANDARD_ERROR = 1.04 / REGISTERS**0.5


def sketch(hashes: np.ndarray) -> np.ndarray:
    """What the kernels keep: the index is the first 14 bits, the rank the place of the first 1 in the rest."""
    registers = np.zeros(REGISTERS, np.uint8)
    rest = hashes << np.uint64(PRECISION)
    rank = np.where(rest == 0, RANK_MAX, 64 - np.floor(np.log2(np.maximum(rest, 1).astype(np.float64))))
    np.maximum.at(registers, (hashes >> np.uint64(64 - PRECISION)).astype(np.int64), rank.astype(np.uint8))
    return registers


def random_hashes(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1 << 64, count, np.uint64)


def test_nobody_is_nobody():
    assert estimate(merge([])) == 0


@pytest.mark.parametrize("count", [1, 2, 10, 100])
def test_a_few_are_counted_almost_exactly(count: int):
    assert round(estimate(sketch(random_hashes(count, 1)))) == pytest.approx(count, abs=max(0.6, count * 0.02))


@pytest.mark.parametrize("count", [1_000, 10_000, 40_000, 100_000, 1_000_000])
def test_error_is_that_of_the_method(count: int):
    errors = [estimate(sketch(random_hashes(count, seed))) / count - 1 for seed in range(20)]
    assert abs(np.mean(errors)) < 4 * STANDARD_ERROR / 20**0.5  # no bias, at the old estimator's worst place neither
    assert np.std(errors) < 1.7 * STANDARD_ERROR


def test_merged_is_the_sketch_of_all():
    hashes = random_hashes(50_000, 3)
    parts = [sketch(hashes[:30_000]), sketch(hashes[20_000:])]  # some stand in both
    assert np.array_equal(merge(parts), sketch(hashes))
    assert np.array_equal(merge([*parts, *parts]), merge(parts))


def test_full_registers_have_an_estimate():
    assert estimate(np.full(REGISTERS, RANK_MAX, np.uint8)) == float("inf")
    assert 1e18 < estimate(np.full(REGISTERS, RANK_MAX - 1, np.uint8)) < float("inf")


def test_sigma_and_tau_are_their_series():
    x = 0.3
    sigma = x + sum(x ** (2**k) * 2 ** (k - 1) for k in range(1, 10))
    assert hyperloglog._sigma(x) == pytest.approx(sigma)
    tau = (1 - x - sum((1 - x ** (2.0**-k)) ** 2 * 2.0**-k for k in range(1, 60))) / 3
    assert hyperloglog._tau(x) == pytest.approx(tau)
