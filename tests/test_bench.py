"""The benchmarks run, at their small size, so that they never rot. Nothing here looks at a time."""

import hashlib
import importlib.util
import json

import numpy as np
import pytest

from bench import (
    bench_builds,
    bench_engine,
    bench_lake,
    bench_ledger,
    bench_peers,
    bench_synth,
    bench_walk,
    common,
    report,
    sanitize,
)
from bench.logs import CHUNK_BYTES, CHUNKS, RECORD_BYTES, STREAMS, ChunksLog, FileLog, RowsLog
from tokenometer.kernels.target import HostTarget

PEERS = ("duckdb", "polars", "chdb")

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("forked_children")]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def engine_result(data):
    file = data / "results" / "engine-cpu.json"
    assert bench_engine.main(["--json", str(file), "--data", str(data)]) == 0
    return json.loads(file.read_text())


@pytest.fixture(scope="module")
def peers_result(data):
    file = data / "results" / "peers.json"
    assert bench_peers.main(["--json", str(file), "--data", str(data)]) == 0
    return json.loads(file.read_text())


def test_small_engine_run_has_a_case_of_each_group(engine_result):
    assert {case["group"] for case in engine_result["cases"]} >= {"records", "repeats", "skew", "rows", "memory"}
    assert not [case for case in engine_result["cases"] if "skipped" in case]


def test_threads_tiles_and_messages_do_not_show_in_the_digest(engine_result):
    cases = [case for case in engine_result["cases"] if case["log"] == "default" and case["mode"] == "all"]
    cases = [case for case in cases if case["group"] != "escapes"]  # whose models have other names
    assert len(cases) >= 3
    assert len({case["digest"] for case in cases}) == 1


def test_record_batches_count_the_same_wherever_they_are_walked(data):
    assert bench_walk.main(["--json", str(data / "walk.json")]) == 0
    found = json.loads((data / "walk.json").read_text())
    assert found["ns"]["host"] > 0 and found["ns"]["device"] > 0
    assert "## Record batches of Kafka" in report.report([("walk.json", found)])


def test_chunks_of_streams_add_up_to_the_last_of_each():
    """Two rounds of streams, all of whose chunks raise the output by one."""
    log, records = ChunksLog(2 * CHUNKS * STREAMS, seed=3), 0
    runner = bench_engine.Runner(bench_engine.Case("repeats", "", log="chunks", batch_bytes=CHUNK_BYTES * 70_001))
    records = runner.run(log, "all").records
    engine = runner.engine
    assert engine.tally().counted == records == 2 * CHUNKS * STREAMS
    sent = sum(1000 + request * 7919 % 1000 for request in range(2 * STREAMS))
    assert engine.totals()[:2] == (2 * STREAMS, sent) and engine.totals()[4] == 2 * STREAMS * (1000 + CHUNKS - 1)


def test_contenders_agree(peers_result):
    for results in peers_result["tables"].values():
        assert len({digest for one in results for digest in one["digests"]}) == 1
    with_dedup, without = (results[0]["digests"] for results in peers_result["tables"].values())
    assert with_dedup != without, "the log has duplicates"


@pytest.mark.parametrize("peer", PEERS)
def test_peer_took_part(peers_result, peer):
    if importlib.util.find_spec(peer) is None:
        assert peer in peers_result["skipped"]
        pytest.skip(peers_result["skipped"][peer])
    for results in peers_result["tables"].values():
        assert peer in {one["name"] for one in results}


def test_report_is_deterministic_and_names_what_it_needs(engine_result, peers_result):
    results = [("engine-cpu.json", engine_result), ("peers.json", peers_result)]
    text = report.report(results)
    assert text == report.report(results)
    for needed in (engine_result["commit"], engine_result["command"], engine_result["machine"]["cpu"], "pyarrow"):
        assert needed in text


def test_report_says_what_was_skipped(engine_result):
    case = engine_result["cases"][0]
    skipped = {"name": case["name"], "group": "rows", "skipped": "needs 9 TB"}
    assert "skipped: needs 9 TB" in report.report([("e.json", engine_result | {"cases": [case, skipped]})])


def test_fixed_width_log_is_made_of_records_with_all_their_rows():
    space = bytearray(64 * RECORD_BYTES)
    log = RowsLog(rows=48, records=48, seed=1)

    length = log.fill(np.frombuffer(space, np.uint8))
    lines = [json.loads(line) for line in bytes(space[:length]).splitlines()]
    assert len({(line["user"], line["model"], line["chip"]) for line in lines}) == 48
    assert len({line["request_id"] for line in lines}) == 48


def test_sanitizer_run_closes_parts_and_agrees_with_itself():
    first, second = sanitize.totals(HostTarget()), sanitize.totals(HostTarget(threads=2))
    assert first == second
    tally, parts = first[1:]
    assert parts > 1 and tally.duplicates and tally.rejected


def test_small_ledger_run_agrees_on_both_databases(data):
    file = data / "results" / "ledger.json"
    assert bench_ledger.main(["--json", str(file)]) == 0
    found = json.loads(file.read_text())
    assert "duckdb" in found["cases"]
    assert all(name in report.report([("ledger.json", found)]) for name in found["cases"]["duckdb"]["digest"].split())


def test_small_lake_run_adds_up_and_is_reported(data):
    """The run compares the sums of the lake and of the ledger with those of the rows."""
    file = data / "results" / "lake.json"
    assert bench_lake.main(["--json", str(file), "--without-postgres"]) == 0
    assert "lake, two writers" in report.report([("lake.json", json.loads(file.read_text()))])


def test_small_synth_run_meters_what_the_audit_finds_and_is_reported(data):
    file = data / "results" / "synth.json"
    options = ["--only", "file", "demo", "--turns", "2", "--data", str(data)]
    assert bench_synth.main(["--json", str(file), *options]) == 0
    found = json.loads(file.read_text())
    assert all(len(found["cases"][f"{case}, this"]["runs"]) == 2 for case in ("file", "demo"))
    nothing = hashlib.sha256().hexdigest()
    assert not any(nothing.startswith(run["digest"]) for run in found["cases"]["file, this"]["runs"])
    text = report.report([("synth.json", found)])
    assert "| demo, this |" in text and "120 T tokens a day" in text


def test_failed_child_is_an_error():
    with pytest.raises(common.ChildFailed):
        common.run_child("bench.bench_engine", {"nonsense": 1}, 1)


def test_small_rollup_run_adds_up(data):
    """Each case compares its answer with the summaries."""
    for request in (
        {"case": "fold", "arguments": {"shape": "typical", "seconds": 2}},
        {"case": "answer", "arguments": {"shape": "wide", "windows": 3}},
        {"case": "memory", "arguments": {"shape": "typical", "meters": 2, "seconds": 24}},
    ):
        assert common.run_child("bench.bench_rollup", request, 1)


def test_mappings_of_one_log_are_compared_in_alternating_runs(data):
    """Both sides count all records of the log; a rule of format 2 that refused them would be measured as fast."""
    file = data / "results" / "builds.json"
    options = ["--only", "labels", "--turns", "1", "--clock", "cpu", "--data", str(data), "--json", str(file)]
    assert bench_builds.main(options) == 0
    compared = json.loads(file.read_text())
    assert [case["case"] for case in compared["cases"]] == ["labels"]
    assert "| labels, cpu | 1 |" in report.report([("builds.json", compared)])
    log = next(data.glob("*-labelled.ndjson"))
    found = {}
    for mapping in bench_engine.MAPPINGS:
        runner = bench_engine.Runner(bench_engine.shrunk(bench_engine.Case("records", "", mapping=mapping)))
        runner.run(FileLog(log), "all")
        found[mapping] = runner.engine.tally(), runner.engine.totals()
    totals = [totals for _, totals in found.values()]
    assert totals[0] == totals[1] == totals[2] and found["plain"][0].counted > 15_000
