"""The benchmark on a real broker runs at its small size, so that it never rots. Nothing here looks at a time."""

import json
import pathlib
import tomllib

import pyarrow as pa
import pytest

from bench import bench_exactly_once, bench_peers, bench_pipeline, bench_synth, bench_verify, report
from tests import oracle
from tokenometer.schemas import mapping as mappings

pytestmark = [pytest.mark.kafka, pytest.mark.usefixtures("forked_children")]


def test_every_contender_reads_its_topic_to_the_end(ours, tmp_path):
    """On a broker of ours only: topics are left behind."""
    file = tmp_path / "pipeline.json"
    assert bench_pipeline.main(["--bootstrap", ours.bootstrap, "--turns", "1", "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    assert set(found["runs"]) == {":".join(case) for case in bench_pipeline.CASES}
    for case, runs in found["runs"].items():
        assert [run["records"] for run in runs] == [found["records"][case.split(":")[0]]], case
    assert "one:meter" in report.report([("pipeline.json", found)])


def test_a_made_up_log_is_sent(ours, tmp_path):
    file = tmp_path / "synth.json"
    options = ["--bootstrap", ours.bootstrap, "--json", str(file), "--data", str(tmp_path), "--only", "kafka"]
    assert bench_synth.main([*options, "--turns", "1"]) == 0
    found = json.loads(file.read_text())
    assert list(found["cases"]) == ["kafka, this"]
    assert "synth, kafka, two cores" in report.report([("synth.json", found)])


def test_an_audit_of_a_benchmarks_log_is_clean(ours, tmp_path):
    """The run itself demands a clean report of all records."""
    file = tmp_path / "verify.json"
    assert bench_verify.main(["--bootstrap", ours.bootstrap, "--turns", "1", "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    cases = found["cases"]
    assert {name: case["records"] for name, case in cases.items()} == bench_verify.SIZES["small"]
    assert all(f"| {name}, this | 20,000 |" in report.report([("verify.json", found)]) for name in cases)
    assert all(len(case["runs"]["this"]) == 1 for case in cases.values())


ONCE = [*(f"{name}:dedup" for name in bench_exactly_once.HOW), "streams-by-hand:plain"]


@pytest.mark.slow  # five contenders, three of them in a JVM
def test_exactly_once_peers_commit_the_rows_of_the_oracle(ours, tmp_path):
    file = tmp_path / "exactly-once.json"
    options = ["--bootstrap", ours.bootstrap, "--json", str(file), "--data", str(tmp_path), "--only", *ONCE]
    assert bench_exactly_once.main(options) == 0
    found = json.loads(file.read_text())
    assert list(found["runs"]) == ONCE
    [log] = tmp_path.glob("*.ndjson")
    wanted = {mode: oracle_digest(log.read_bytes(), dedup) for mode, dedup in bench_exactly_once.MODES.items()}
    assert wanted["dedup"] != wanted["plain"], "the log has duplicates"
    for case, [run] in found["runs"].items():
        assert run["answer"]["digest"] == wanted[case.split(":")[1]], case
    assert "flink:dedup" in report.report([("exactly-once.json", found)])


def oracle_digest(log, dedup):
    """Of the rows that the oracle makes of the log's lines."""
    mapping = tomllib.loads((pathlib.Path(mappings.__file__).parent / "mappings" / "native.toml").read_text())
    if not dedup:
        del mapping["fields"]["request_id"]
    meter = oracle.Meter()
    for line in log.splitlines():
        meter.feed(mapping, line)
    assert meter.counted + meter.duplicates == meter.read
    columns = [*zip(*meter.rows, strict=True), *zip(*meter.rows.values(), strict=True)]
    return bench_peers.digest_of(pa.table(list(map(pa.array, columns)), names=bench_peers.ANSWER.names))
