"""The CUDA kernels compile for every architecture that we name, and nothing spills. Needs NVRTC, no GPU."""

import pytest

from tokenometer.kernels import build

pytest.importorskip("cupy", reason="CuPy is not installed", exc_type=ImportError)
pytest.importorskip("cupy_backends.cuda.libs.nvrtc", reason="NVRTC is not installed", exc_type=ImportError)

KERNELS = {*build.ENTRIES, *build.OWN_ENTRIES, "count_lines", "place_lines"}


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
def test_kernels_compile_without_spills(architecture, capsys):
    uses = build.compile_device(architecture)
    with capsys.disabled():
        table = ", ".join(f"{use.name} {use.registers}" for use in sorted(uses, key=lambda use: -use.registers))
        spills = {use.name: use.spill_bytes for use in uses if use.spill_bytes}
        print(f"\n{architecture}: registers: {table}; spills: {spills or 'none'}")
    assert {use.name for use in uses} >= KERNELS
    assert not spills
    rare = [use for use in uses if use.name == "read_respelled"]
    assert all(0 < use.registers <= 64 for use in uses if use not in rare), (
        "four blocks of 256 threads a multiprocessor"
    )
    assert [use.registers <= 128 for use in rare] == [True], "two of them"
