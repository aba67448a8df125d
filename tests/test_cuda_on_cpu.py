"""The CUDA build's logic without a card: the order of threads makes no difference, and what would break it is found.

Every test of the engine runs on this target too (conftest.py); here is what only it can show.
"""

import json
import random
import subprocess
import sys

import pytest

from bench import sanitize
from tests import cuda_on_cpu, harness
from tests.bad_input import TIME_MS
from tests.cuda_on_cpu import CudaOnCpuTarget
from tests.harness import TINY, Piece, shipped
from tokenometer.kernels import build
from tokenometer.kernels.target import HostTarget

SEEDS = 12


def test_the_code_is_the_one_that_a_card_gets():
    ours, cards = build.source(cuda_on_cpu.SOURCE), build.source(build.SOURCES[1])
    kernels, mark, _ = cards.partition('#line 1 "layout.py"')
    assert mark and kernels.rstrip("\n") in ours


def busy_log(seed: int) -> list[bytes]:
    """Few users and ids, so that threads meet at every table; prefill chips, so that a record has two rows."""
    rng, log = random.Random(seed), []
    for _ in range(3_000):
        record = {
            "request_id": f"r-{rng.randrange(1_500)}", "timestamp": TIME_MS - rng.randrange(180_000),
            "user": f"u{rng.randrange(30)}", "model": f"m{rng.randrange(3)}", "chip": f"c{rng.randrange(3)}",
            "input_tokens": rng.randrange(3) * 7, "output_tokens": rng.randrange(1 << 40),
        }  # fmt: skip
        if rng.random() < 0.3:
            record["prefill_chip"] = f"c{rng.randrange(3)}"
        line = json.dumps(record).encode()
        log.append(line if rng.random() < 0.97 else line[: rng.randrange(len(line))])
    return log


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(SEEDS))
def test_whatever_order_threads_run_in_the_oracle_agrees(seed):
    engine = harness.make_engine(CudaOnCpuTarget(seed), secret_seed=seed, **harness.MIDDLE)
    log = busy_log(seed)
    harness.check(engine, shipped(), [Piece(batch) for batch in (log[:2_000], log[2_000:])])


@pytest.mark.parametrize("seed", range(4))
def test_so_it_does_with_tables_that_are_full_again_and_again(seed):
    engine = harness.make_engine(CudaOnCpuTarget(seed), secret_seed=seed, **TINY)
    harness.check(engine, shipped(), [Piece([line]) for line in busy_log(seed)[:150]])


@pytest.mark.slow
def test_the_short_run_for_compute_sanitizer_is_that_of_the_cpu():
    wanted = sanitize.totals(HostTarget(), raw=False)
    for seed in range(SEEDS):
        assert sanitize.totals(CudaOnCpuTarget(seed)) == wanted, seed


def test_threads_give_way_and_warps_drift_apart():
    """Otherwise the tests above would show little."""
    target = CudaOnCpuTarget(5)
    before = target.exercised()
    sanitize.totals(target)
    switches, masks, left_out = (now - then for now, then in zip(target.exercised(), before, strict=True))
    assert switches > 10_000 and masks > 300 and left_out > 300


BREAKS = {
    "every lane of a warp adds for all": (
        "  if ((threadIdx.x & 31u) == (u32)__ffs((int)active) - 1u) atomicAdd(p, (u64)__popc(active));",
        "  atomicAdd(p, (u64)__popc(active));",
    ),
    "the first lane adds, active or not": ("(u32)__ffs((int)active) - 1u", "0u"),
    "an id's slot is taken in two steps": (
        "HD u64 compare_swap(u64* p, u64 expected, u64 desired) { return atomicCAS(p, expected, desired); }",
        "HD u64 compare_swap(u64* p, u64 expected, u64 desired) {"
        " const u64 old = load(p); if (old != expected) return old; if (load(p) != ~0ull) *p = desired; return old; }",
    ),
    "a sum is read, and later written": (
        "HD void add(u64* p, u64 value) { atomicAdd(p, value); }",
        "HD void add(u64* p, u64 value) { const u64 old = load(p); if (load(p) != ~0ull) *p = old + value; }",
    ),
    "a changed row is told twice": (
        "{ return atomicExch(p, value); }",
        "{ const u32 old = load(p); if (load(p) != ~0u) *p = value; return old; }",
    ),
    "a grid's stride is a block": ("i += gridDim.x * blockDim.x", "i += blockDim.x"),
    "a word across two is cut": ("(low >> shift) | (aligned[1] << (64u - shift))", "low >> shift"),
}  # fmt: skip
BROKEN = """
import resource, sys
from bench import sanitize
from tests.cuda_on_cpu import CudaOnCpuTarget
from tokenometer.kernels import build
from tokenometer.kernels.target import HostTarget

wanted, source = sanitize.totals(HostTarget(), raw=False), build.source
def broken(file):
    text = source(file)
    if file.name != "cuda_on_cpu.cpp":
        return text
    assert text.count(sys.argv[1]) == 1, "it is one place"
    return text.replace(sys.argv[1], sys.argv[2])
build.source = broken
CudaOnCpuTarget(0, ("-O0",))
print("it compiles", flush=True)
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))  # what is broken may never end
for seed in range(8):
    if sanitize.totals(CudaOnCpuTarget(seed, ("-O0",))) != wanted:
        sys.exit("the totals differ")
"""


@pytest.mark.slow
@pytest.mark.parametrize("what", BREAKS)
def test_what_would_break_on_a_card_is_found(what):
    command = [sys.executable, "-c", BROKEN, *BREAKS[what]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "it compiles" in done.stdout, done.stderr
    assert done.returncode != 0, "the totals are right all the same"
