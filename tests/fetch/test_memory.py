"""The walk reads nothing beyond an answer and writes nothing beyond its buffers: AddressSanitizer and UBSan watch."""

import pathlib
import struct
import subprocess

import pytest

from tests import sanitized
from tests.fetch.batches import CODECS, Record, batch, marker
from tests.fetch.test_walk import inside, some_records
from tokenometer.processor.broker.kafka.fetch import walk

SOURCE = pathlib.Path(__file__).parent / "native" / "fuzz_walk.cpp"
FLAGS = ("-std=c++17", "-g1", "-O1", "-Wall", "-Wextra", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all")
MUTANTS = 60_000  # a few seconds
LARGE_BYTES = 250_000  # twice what the driver lets a batch have, and more than any other seed


def seeds() -> list[bytes]:
    found = [batch(7, some_records(seed, 20), codec) for codec in CODECS for seed in range(4)]
    found += [batch(0, some_records(9, 3), codec) + batch(3, some_records(8, 3), codec) for codec in CODECS]
    found += [batch(0, [Record(b"x" * LARGE_BYTES)], codec) for codec in CODECS if codec != "none"]
    found.append(inside(0, 1, b"a", b"b") + marker(2, 1, commit=False) + inside(3, 2, b"c") + marker(4, 2, commit=True))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["native", "x86-64"])
def test_the_walk_stays_within_its_memory(tmp_path: pathlib.Path, architecture: str) -> None:
    """x86-64: without the instruction for checksums."""
    includes = ("-I", str(pathlib.Path(walk.__file__).resolve().parent), "-ldl")
    binary = sanitized.program(SOURCE, "address,undefined", [*FLAGS, f"-march={architecture}", *includes])
    (tmp_path / "seeds").write_bytes(b"".join(struct.pack("<I", len(seed)) + seed for seed in seeds()))
    done = subprocess.run(
        [str(binary), str(tmp_path / "seeds"), str(MUTANTS)], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[:6000]
    counts = dict(zip(walk.Status, map(int, done.stdout.split()), strict=True))
    assert sum(counts.values()) == MUTANTS and counts.pop(walk.Status.NO_MEMORY) == 0
    assert all(counts.values()), f"some outcome was never reached: {counts}"
