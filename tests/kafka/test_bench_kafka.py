"""The benchmark on a real broker runs at its small size, so that it never rots. Nothing here looks at a time."""

import json

import pytest

from bench import bench_pipeline, report

pytestmark = pytest.mark.kafka


def test_every_contender_reads_its_topic_to_the_end(owned, tmp_path):
    """On a broker of ours only: topics are left behind."""
    file = tmp_path / "pipeline.json"
    assert bench_pipeline.main(["--bootstrap", owned.bootstrap, "--turns", "1", "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    assert set(found["runs"]) == {":".join(case) for case in bench_pipeline.CASES}
    for case, runs in found["runs"].items():
        assert [run["records"] for run in runs] == [found["records"][case.split(":")[0]]], case
    assert "one:meter" in report.report([("pipeline.json", found)])
