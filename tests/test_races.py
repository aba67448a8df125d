"""Threads on shared tables, and memory: results that do not depend on luck, and builds that sanitizers watch."""

import os
import pathlib
import random
import subprocess

import numpy as np
import pytest

from tests import format2, harness, mutate, sanitized
from tests.bad_input import CASES, TIME_MS
from tests.harness import Piece, shipped
from tokenometer.kernels import build, layout
from tokenometer.kernels.plan import compile_mapping
from tokenometer.kernels.target import HostTarget

ROOT = pathlib.Path(__file__).parents[1]
EXAMPLES = ROOT / "schemas" / "mappings" / "examples"
NATIVE_SOURCES = pathlib.Path(__file__).parent / "native"
THREADS = 4
_OTHERS = "adopt", "grow", "recall", "export_rows"  # which no plain tile goes through
_OTHERS += "respell", "read_respelled"  # of doubtful records; the driver knows when
PHASES = "-DPHASES=" + ",".join(name for name in build.ENTRIES if name not in _OTHERS)
ROUNDS = 12 * harness.TIMES
SIZES = harness.MIDDLE | {"cells": 1 << 17, "rows": 1 << 17, "texts": 1 << 18, "arena_bytes": 1 << 22}
SIZES |= {"batch_bytes": 1 << 20, "tile_records": 4096}
MAPPINGS = (
    "native",
    "openmeter",
    "anthropic",
    "kong",
    "litellm",
    "otel-genai",
    "together",
)  # the last: all of format 2


@pytest.fixture(scope="module")
def threads() -> HostTarget:
    return HostTarget(threads=THREADS)


def record(rng: random.Random, users: int, ids: int, windows: int = 2) -> bytes:
    return (
        b'{"request_id":"%d","timestamp":%d,"user":"user-%d","model":"m%d","chip":"c%d","prefill_chip":%s,'
        b'"input_tokens":%d,"cached_input_tokens":%d,"output_tokens":%d}'
        % (
            rng.randrange(ids),
            TIME_MS + 60_000 * rng.randrange(windows),
            rng.randrange(users),
            rng.randrange(2),
            rng.randrange(2),
            rng.choice([b"null", b'"p"', b'"c0"']),
            rng.randrange(10, 1000),
            rng.randrange(10),
            rng.randrange(1000),
        )
    )


CONTENTION = {  # users, ids, windows
    "one row": (1, 1 << 40, 1),
    "few rows, few ids": (2, 50, 2),
    "one id": (3, 1, 1),
    "every record new": (1 << 40, 1 << 40, 3),
    "mixed": (100, 2000, 4),
}


@pytest.mark.slow
@pytest.mark.parametrize("contention", CONTENTION)
def test_threads_and_one_thread_count_alike(threads, contention):
    """Thousands of records in a tile, so that threads meet; a new secret each round moves every slot."""
    users, ids, windows = CONTENTION[contention]
    rng = random.Random(contention)
    engine = harness.make_engine(threads, secret_seed=rng.random(), **SIZES)
    log = [record(rng, users, ids, windows) for _ in range(4096)]
    wanted = harness.expected(shipped(), [Piece(log)])
    for round_number in range(ROUNDS):
        engine = harness.make_engine(threads, secret_seed=round_number, **SIZES)
        run = harness.meter(engine, shipped(), [Piece(log)])
        harness.assert_same(run, wanted)
        assert sum(engine.user_tokens().values()) == sum(row[1] + row[4] for row in wanted.rows.values())


@pytest.mark.slow
def test_threads_fill_sketches_alike(threads):
    rng = random.Random(5)
    log = [record(rng, 1 << 30, 1 << 40) for _ in range(8000)]
    sizes = harness.LARGE | {"tile_records": 4096}
    plain = harness.meter(harness.make_engine(HostTarget(), **sizes), shipped(), [Piece(log)])
    wanted = plain.engine.sketches()
    for seed in range(8):
        engine = harness.make_engine(threads, secret_seed=seed, **sizes)
        sketches = harness.meter(engine, shipped(), [Piece(log)]).engine.sketches()
        assert sorted(sketches) == sorted(wanted)
        assert all(np.array_equal(sketches[start], wanted[start]) for start in wanted)


@pytest.mark.slow
def test_threads_keep_dead_letters_in_order(threads):
    rng = random.Random(6)
    log = list(mutate.lines(rng, "native", shipped().oracle, 3000))
    for seed in range(4):
        engine = harness.make_engine(threads, secret_seed=seed, **SIZES)
        harness.check(engine, shipped(), [Piece(batch) for batch in harness.batches(log)])


# --- Sanitizers ---


def compile_driver(name: str, sanitizers: str, *flags: str) -> pathlib.Path:
    options = ["-std=c++17", "-g1", "-fno-strict-aliasing", "-fno-omit-frame-pointer", *flags, "-pthread"]
    return sanitized.program(NATIVE_SOURCES / f"{name}.cpp", sanitizers, [*options, "-I", str(ROOT / "kernels")])


def mapping_of(name: str) -> harness.Mapping:
    if name in harness.SHIPPED:
        return shipped(name)
    return harness.Mapping.parse(format2.text(format2.MAPPINGS[name]), f"{name}.toml")


def write_plan(folder: pathlib.Path, name: str, lines: list[bytes]) -> list[str]:
    """A plan that learned from these lines, as files for the drivers."""
    plan = compile_mapping(mapping_of(name).engine)
    plan.learn(lines[:64])
    (folder / f"{name}.plan").write_bytes(plan.as_bytes().tobytes())
    (folder / f"{name}.prefix").write_bytes(plan.prefix)
    return [str(folder / f"{name}.plan"), str(folder / f"{name}.prefix")]


def run_driver(command: list[str], data: bytes = b"") -> str:
    environment = os.environ | {
        "TSAN_OPTIONS": "halt_on_error=1 exitcode=66",
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    done = subprocess.run(command, input=data, capture_output=True, env=environment, check=False, timeout=120)
    errors = done.stderr.decode(errors="replace")
    if "unexpected memory mapping" in errors:  # ThreadSanitizer under more address randomisation than it knows
        pytest.skip(errors.splitlines()[0])
    assert done.returncode == 0, errors[:6000]
    return done.stdout.decode()


@pytest.fixture(scope="module")
def races() -> pathlib.Path:
    return compile_driver("races", "thread", "-O1", build.THREADS_FLAG, "-march=native", PHASES)


@pytest.mark.slow
@pytest.mark.parametrize("contention", CONTENTION)
def test_thread_sanitizer_finds_no_race(races, tmp_path, contention):
    users, ids, windows = CONTENTION[contention]
    rng = random.Random(contention)
    lines = [record(rng, users, ids, windows) for _ in range(1500)]
    lines += [b"{}", b"", b"not JSON"] * 5
    lines += [line.replace(b'"m', b'"\\/m\\u00e9') for line in lines[:500]]
    rng.shuffle(lines)
    (tmp_path / "lines").write_bytes(b"\n".join(lines) + b"\n")
    command = [str(races), *write_plan(tmp_path, "native", lines), str(tmp_path / "lines")]
    four = run_driver([*command, "8", str(THREADS)])
    assert four == run_driver([*command, "8", "1"])
    assert len(four.splitlines()) == 8 and len(set(four.splitlines())) == 1, "the secret moves slots, not sums"


@pytest.mark.slow
def test_thread_sanitizer_sees_a_race_where_there_is_one(tmp_path):
    """The same driver without the flag that makes the tables' words atomic: proof that the watch is awake."""
    binary = compile_driver("races", "thread", "-O1", "-march=native", PHASES)
    lines = [record(random.Random(i), 3, 100) for i in range(1500)]
    (tmp_path / "lines").write_bytes(b"\n".join(lines) + b"\n")
    command = [str(binary), *write_plan(tmp_path, "native", lines), str(tmp_path / "lines"), "8", str(THREADS)]
    with pytest.raises(AssertionError, match="data race"):
        run_driver(command)


@pytest.mark.slow
def test_thread_sanitizer_finds_no_race_with_a_thread_that_reads_ahead(tmp_path):
    """And what it reads is what one thread would have read."""
    rng = random.Random(8)
    lines = [record(rng, 100, 2000, 4) for _ in range(3000)] + [b"{}", b"", b"not JSON"] * 50
    rng.shuffle(lines)
    (tmp_path / "lines").write_bytes(b"\n".join(lines) + b"\n")
    binary = compile_driver("ahead", "thread", "-O1", "-march=native")
    beside, after = run_driver(
        [str(binary), *write_plan(tmp_path, "native", lines), str(tmp_path / "lines"), "40"]
    ).splitlines()
    assert beside == after and not after.endswith("doubtful 0")


@pytest.fixture(scope="module", params=["-march=native", "-mavx2", ""], ids=["native", "avx2", "plain"])
def parse_lines(request) -> pathlib.Path:
    """With this machine's vector code, with AVX2, and with the plain code that GPUs and old processors run."""
    if request.param == "-mavx2" and "avx2" not in pathlib.Path("/proc/cpuinfo").read_text():
        pytest.skip("this processor has no AVX2")
    # As it is written, every read is watched; to optimise it would take a compiler four times as long.
    flags = ("-O0", "-fno-sanitize-recover=all", *filter(None, [request.param]))
    return compile_driver("parse_lines", "address,undefined", *flags)


def hostile_lines(name: str) -> list[bytes]:
    rng = random.Random(name)
    lines = list(mutate.lines(rng, name, mapping_of(name).oracle, 1500))
    if (example := EXAMPLES / f"{name}.ndjson").exists():  # mutated lines may all be for the referee
        lines += example.read_bytes().splitlines()
    if name == "native":
        lines += [line for case in CASES for line in (case.value or b"").split(b"\n")]
    # Cut anywhere: what follows a cut is padding, and then nothing.
    whole = [line for line in lines[:300] if 0 < len(line) < 400]
    lines += [line[: rng.randrange(len(line))] for line in whole for _ in range(4)]
    return lines


@pytest.mark.slow
@pytest.mark.parametrize("name", MAPPINGS)
def test_parsing_reads_nothing_beyond_the_padding(parse_lines, tmp_path, name):
    lines = hostile_lines(name)
    plan = write_plan(tmp_path, name, lines)
    verdicts, respelled = run_driver([str(parse_lines), *plan], b"\n".join(lines) + b"\n").split()
    assert len(verdicts) == len(respelled) == len(lines) and verdicts != respelled
    assert all(
        after == before or before == str(layout.DOUBTFUL) for before, after in zip(verdicts, respelled, strict=True)
    )
    met = {str(layout.ACCEPTED), str(layout.DOUBTFUL), str(layout.EMPTY)}
    assert met <= set(verdicts) <= (met | {str(layout.SKIPPED)} if mapping_of(name).engine.skip else met)
