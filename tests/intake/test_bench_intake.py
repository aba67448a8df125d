"""The benchmark runs, at its small size, so that it never rots. Nothing here looks at a time."""

import json

import pytest

from bench import bench_intake


@pytest.mark.slow
def test_the_library_makes_the_same_records(tmp_path):
    file = tmp_path / "intake.json"
    assert bench_intake.main(["--json", str(file)]) == 0
    cases = json.loads(file.read_text())["cases"]
    assert [case["name"] for case in cases] == [*bench_intake.CASES, "engine"]
    for case in cases[:-1]:
        assert case["records"] > 0 and len(set(case["digests"])) == 1
