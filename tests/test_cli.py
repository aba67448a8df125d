"""The command as a Unix user meets it: exit codes, streams, messages, files."""

import contextlib
import gzip
import json
import os
import pathlib
import pty
import re
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from typing import Any

import orjson
import pyarrow.parquet as pq
import pytest
import typer
import zstandard

from tests import forked, oracle
from tests.test_schemas import validator
from tokenometer.kernels import build
from tokenometer.kernels.engine import Limits
from tokenometer.processor import show
from tokenometer.processor.cli import __main__ as cli
from tokenometer.processor.load import synth
from tokenometer.processor.load.profile import Profile

ROOT = pathlib.Path(__file__).parents[1]
NATIVE = tomllib.loads((ROOT / "schemas/mappings/native.toml").read_text())
COMMAND = [sys.executable, "-m", "tokenometer.processor.cli"]
CPU = ("--device", "cpu")
RECORDS = 5_000
LOG = b"".join(
    synth.generate(Profile(RECORDS, seed=5, users=50, duplicates=0.02, malformed=0.02, escaped=0.02, late=0))
)
CLEAN = b"".join(synth.generate(Profile(500, duplicates=0, malformed=0)))
SECONDS = orjson.dumps(orjson.loads(CLEAN.splitlines()[0]) | {"timestamp": 1_795_453_500})


def run(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """In a process of its own."""
    return forked.run([*COMMAND, *arguments], input=stdin, capture_output=True, timeout=60, cwd=ROOT, check=False)


@pytest.fixture
def log(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "requests.ndjson"
    path.write_bytes(LOG)
    return path


@pytest.fixture(scope="module")
def truth() -> oracle.Meter:
    meter = oracle.Meter()
    meter.feed(NATIVE, LOG)
    return meter


def assert_error(result: tuple[int, str, str], code: int, message: str) -> None:
    """One line on stderr, nothing on stdout."""
    assert result[0] == code, result
    assert result[1] == ""
    assert result[2].startswith("tokenometer: error: ") and result[2].count("\n") == 1, result[2]
    assert message in result[2]


def left_in(directory: pathlib.Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


# replay


def test_json_summary_equals_the_oracle(call: Any, log: pathlib.Path, truth: oracle.Meter):
    code, out, err = call("replay", log, "--json", "--top", 3, *CPU)
    summary = json.loads(out)
    assert (code, err) == (0, "")
    tally = {
        name: getattr(truth, name)
        for name in ("read", "counted", "duplicates", "rejected", "empty", "skipped", "conflicts")
    }
    assert summary["records"] == tally
    assert sum(summary["rejects"].values()) == truth.rejected
    total = sum(row[1] + row[4] for row in truth.rows.values())
    assert summary["usage"]["total_tokens"] == total
    for name in ("by_model", "by_chip", "by_model_and_chip"):
        assert sum(item["total_tokens"] for item in summary[name]) == total
    assert len(summary["top_users"]) == 3
    assert (summary["device"], summary["mapping"], summary["partial"]) == ("cpu", "native", False)
    assert summary["log_bytes"] == summary["read_bytes"] == len(LOG)


def test_report_is_plain_when_piped(call: Any, log: pathlib.Path, truth: oracle.Meter):
    code, out, err = call("replay", log, *CPU)
    assert (code, err) == (0, "")
    assert "\x1b" not in out and "█" not in out
    assert all(line == line.rstrip() and len(line) <= 120 for line in out.splitlines())
    assert f"{truth.counted:,} counted + {truth.duplicates} duplicates + {truth.rejected} rejected" in out
    for word in (
        "Model",
        "gpt-4o-mini",
        "Chip",
        "H100-SXM5-80GB",
        "Top 10 users",
        "user-000000",
        "invalid_json",
        "cpu",
    ):
        assert word in out


def test_names_and_records_in_a_report_cannot_steer_the_terminal(call: Any, tmp_path: pathlib.Path):
    evil = "\x1b]0;owned\x07\x1b[2J\u202e"
    record = {"timestamp": 1_795_000_000_000, "user": evil, "model": evil, "chip": evil, "input_tokens": 1,
              "output_tokens": 1}  # fmt: skip
    log = tmp_path / "evil.ndjson"
    log.write_text(f"{json.dumps(record)}\n{{{evil}\n", encoding="utf-8")
    for arguments in (("replay", log, *CPU), ("mappings", "check", "native", "--sample", log)):
        code, out, err = call(*arguments)
        assert code == 0, err
        assert "owned" in out and out.replace("\n", "").isprintable()


def test_report_fits_eighty_columns(call: Any, log: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = call("replay", log, *CPU)
    assert code == 0 and max(map(len, out.splitlines())) <= 80
    assert "…" not in out


def test_rows_and_dead_letters_are_written(call: Any, log: pathlib.Path, truth: oracle.Meter, tmp_path: pathlib.Path):
    for name in ("usage.ndjson", "usage.parquet", "usage.ndjson.zst"):
        files = "--out", tmp_path / name, "--rejected", tmp_path / f"{name}.rejected"
        code, out, _ = call("replay", log, *files, "--run", "test", *CPU)
        assert code == 0 and f"writtento{tmp_path / name}" in "".join(out.split())
    ndjson = [orjson.loads(line) for line in (tmp_path / "usage.ndjson").read_bytes().splitlines()]
    for row in ndjson:
        validator("usage").validate(row)
    assert {row["part"] for row in ndjson} == {"test-part-1"}
    assert len(ndjson) == len(truth.rows)
    assert sum(row["total_tokens"] for row in ndjson) == sum(row[1] + row[4] for row in truth.rows.values())
    assert pq.read_table(tmp_path / "usage.parquet").num_rows == len(ndjson)
    unpacked = zstandard.ZstdDecompressor().decompressobj().decompress((tmp_path / "usage.ndjson.zst").read_bytes())
    assert [orjson.loads(line) for line in unpacked.splitlines()] == ndjson
    letters = [orjson.loads(line) for line in (tmp_path / "usage.ndjson.rejected").read_bytes().splitlines()]
    assert [(x["line"] - 1, x["reason"], x["field"]) for x in letters] == [x[2:5] for x in truth.dead_letters]


def test_logs_come_from_files_and_standard_input(tmp_path: pathlib.Path, truth: oracle.Meter):
    lines = LOG.splitlines(keepends=True)
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"".join(lines[:1_000])))
    (tmp_path / "b.zst").write_bytes(zstandard.compress(b"".join(lines[1_000:2_000])))
    for stdin in (b"".join(lines[2_000:]), gzip.compress(b"".join(lines[2_000:]))):
        result = run("replay", str(tmp_path / "a.gz"), str(tmp_path / "b.zst"), "-", "--json", *CPU, stdin=stdin)
        assert (result.returncode, result.stderr) == (0, b"")
        assert json.loads(result.stdout)["records"]["counted"] == truth.counted


def test_rows_go_to_standard_output_and_the_summary_to_standard_error(log: pathlib.Path, truth: oracle.Meter):
    result = run("replay", "-", "--out", "-", *CPU, stdin=LOG)
    rows = [orjson.loads(line) for line in result.stdout.splitlines()]
    assert result.returncode == 0 and len(rows) == len(truth.rows)
    assert f"{truth.counted:,} counted".encode() in result.stderr


def test_strict_exits_with_3_after_the_report(call: Any, log: pathlib.Path, tmp_path: pathlib.Path):
    code, out, _ = call("replay", log, "--strict", "--out", tmp_path / "usage.parquet", *CPU)
    assert code == 3 and "invalid_json" in out and (tmp_path / "usage.parquet").exists()
    log.write_bytes(CLEAN)
    assert call("replay", log, "--strict", *CPU)[0] == 0


@pytest.mark.parametrize(
    ("mapping", "lines", "code", "why"),
    [
        ("anthropic", CLEAN, 3, "nothing was counted: 500 records rejected, 500 of them for missing_field of "),
        ("native", b"{\n[]\n[]\n\n", 3, "3 records rejected, 2 of them for not_an_object; try another mapping"),
        ("native", SECONDS, 3, "1 of them for past_timestamp of timestamp; these look like seconds; try another"),
        ("otlp", b"\x0a\x05\n\n\n\xff\n" * 3, 3, "rejected for bad_encoding; each line was taken for a value. Is the"),
        ("skips.toml", CLEAN, 3, "nothing was counted: mapping skips skips all 500 records"),
        ("native", b"", 0, ""),
        ("native", b"\n \n", 0, ""),
        ("native", CLEAN + b"{\n" * 5000, 0, ""),
    ],
    ids=[
        "wrong mapping",
        "no records",
        "seconds",
        "one binary message",
        "all are skipped",
        "empty",
        "white space",
        "one in ten counts",
    ],
)
def test_a_log_of_which_nothing_is_counted_ends_with_3_and_says_why(
    call: Any, tmp_path: pathlib.Path, mapping: str, lines: bytes, code: int, why: str
):
    log, skips = tmp_path / "log.ndjson", (ROOT / "schemas/mappings/native.toml").read_text()
    skips = skips.replace('name = "native"', 'name = "skips"').replace("format = 1\n", "format = 2\n")
    (tmp_path / "skips.toml").write_text(skips + '\n[[skip]]\npath = "kind"\nabsent = true\n')
    log.write_bytes(lines)
    chosen = tmp_path / mapping if "." in mapping else mapping
    found, out, err = call("replay", log, "--mapping", chosen, "--out", tmp_path / "usage.parquet", *CPU)
    assert found == code and "records" in out.lower(), "after the report"
    assert (tmp_path / "usage.parquet").exists()
    assert why in err if why else not err
    if mapping == "anthropic":
        assert "one of them has the keys request_id, timestamp, user" in err and err.count("\n") == 1


def test_records_without_a_time_take_the_one_that_is_given(call: Any, tmp_path: pathlib.Path):
    """Results of batches have none, and a file has no message time."""
    message = {"id": "msg_1", "model": "m", "usage": {"input_tokens": 9, "output_tokens": 5}}
    lines = [{"custom_id": str(n), "result": {"type": "succeeded", "message": message}} for n in (1, 1)]
    lines[1]["result"]["message"] = {"id": "msg_2", "model": "m", "usage": {}}
    log, out, letters = (tmp_path / name for name in ("log.jsonl", "out.ndjson", "letters.ndjson"))
    log.write_bytes(b"\n".join(map(orjson.dumps, lines)))
    command = ("replay", log, "--mapping", "anthropic-batch", *CPU)
    status, _, errors = call(*command)
    assert status == 3 and "--message-time" in errors
    given = ("--message-time", "2026-11-23T17:00:42+01:00", "--out", out, "--rejected", letters)
    assert call(*command, *given)[0] == 0
    [row], [letter] = ([orjson.loads(line) for line in file.read_bytes().splitlines()] for file in (out, letters))
    assert (row["window_start"], row["total_tokens"]) == ("2026-11-23T16:00:00Z", 14)
    assert (letter["line"], letter["reason"], letter["field"]) == (2, "missing_field", "input_tokens")
    assert call(*command, "--message-time", "2026-11-23")[0] == 2
    assert call(*command, *given[:2], "--dedup-horizon", 60)[0] == 2


def test_request_ids_are_forgotten_after_a_horizon(call: Any, tmp_path: pathlib.Path):
    lines = CLEAN.splitlines()
    times = [json.loads(line)["timestamp"] for line in lines]
    gap = b'"timestamp":%d' % (times[-1] + 86_400_000)
    log = tmp_path / "log.ndjson"
    again = [line.replace(b'"timestamp":%d' % time_ms, gap) for line, time_ms in zip(lines, times, strict=True)]
    log.write_bytes(b"\n".join(lines + lines + again) + b"\n")

    def duplicates(*arguments: object) -> int:
        return json.loads(call("replay", log, "--json", *arguments, *CPU)[1])["records"]["duplicates"]

    assert duplicates() == 1000
    assert 500 <= duplicates("--dedup-horizon", 3600) <= 502, "the clock follows two records later"
    assert call("replay", log, "--dedup-horizon", 0, *CPU)[0] == 2
    assert call("replay", log, "--dedup-horizon", 604_801, *CPU)[0] == 2


def test_a_window_of_its_own(call: Any, log: pathlib.Path):
    summary = json.loads(call("replay", log, "--json", "--window", 3600, *CPU)[1])
    assert summary["window_ms"] == 3_600_000 and summary["windows"] <= 2


def test_memory_bounds_the_tables(call: Any, log: pathlib.Path):
    assert json.loads(call("replay", log, "--json", "--memory", "256MiB", *CPU)[1])["records"]["read"] == RECORDS


# What goes wrong


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["replay"], "FILE"),
        (["replay", "LOG", "--divice", "cpu"], "--divice"),
        (["replay", "LOG", "--device", "tpu"], "'tpu' is not one of 'auto', 'cuda', 'cpu'"),
        (["replay", "LOG", "--memory", "much"], "expected a size such as 2GiB"),
        (["replay", "LOG", "--memory", "1MiB"], "expected 256MiB or more"),
        (["replay", "LOG", "--window", "0"], "--window"),
        (["replay", "LOG", "--run", "a b"], "--run"),
        (["replay", "LOG", "--out", "LOG"], "is named twice"),
        (["replai", "LOG"], "replai"),
        (["synth", "--count", "-1"], "--count"),
        (["synth", "--users", "0"], "--users must be from 1"),
        (["synth", "--user-skew", "9"], "--user-skew must be from 0 to 5"),
        (["synth", "--duplicates", "1.5"], "--duplicates must be from 0 to 1"),
        (["synth", "--count", "5", "--duration", "5"], "give one of them"),
        (["synth", "--repeat", "2"], "--repeat has no meaning without --trace"),
        (["synth", "--trace", "x.csv", "--rate", "2"], "--rate has no meaning with --trace"),
        (["synth", "--start", "yesterday"], "expected a time such as"),
        (["mappings", "check", "native"], "--sample"),
    ],
)
def test_wrong_arguments_exit_with_2(call: Any, log: pathlib.Path, arguments: list[str], message: str):
    assert_error(call(*(str(log) if word == "LOG" else word for word in arguments)), 2, message)


def test_failures_exit_with_1(call: Any, log: pathlib.Path, tmp_path: pathlib.Path):
    (tmp_path / "cut.gz").write_bytes(gzip.compress(LOG)[:-100])
    (tmp_path / "bad.toml").write_text('format = 1\nname = "other"\n')
    (tmp_path / "zeros").write_bytes(bytes(Limits.batch_bytes + 1))
    for arguments, message in (
        (["replay", tmp_path / "none"], "none: no such file or directory"),
        (["replay", log, tmp_path], "is a directory"),
        (["replay", log, tmp_path / "cut.gz"], "the gzip data ends too early"),
        (["replay", tmp_path / "zeros"], "is this newline-delimited JSON?"),
        (["replay", log, "--mapping", tmp_path / "bad.toml"], "bad.toml"),
        (["replay", log, "--out", tmp_path / "none" / "usage.parquet"], "there is no directory"),
        (["synth", "--trace", tmp_path / "none.csv"], "none.csv"),
        (["synth", "--trace", log], "requests.ndjson"),
        (["synth", "--count", "5", "-o", log], "exists; use --force"),
        (["mappings", "check", "native", "--sample", tmp_path / "none"], "none: no such file"),
    ):
        device = CPU if arguments[0] == "replay" else ()
        assert_error(call(*arguments, *device), 1, message)


def test_a_failure_leaves_no_file(call: Any, log: pathlib.Path, tmp_path: pathlib.Path):
    (tmp_path / "cut.gz").write_bytes(gzip.compress(LOG)[:-100])
    before = left_in(tmp_path)
    files = "--out", tmp_path / "usage.parquet", "--rejected", tmp_path / "rejected.ndjson"
    assert call("replay", log, tmp_path / "cut.gz", *files, *CPU)[0] == 1
    assert left_in(tmp_path) == before


def test_results_are_not_replaced_without_force(call: Any, log: pathlib.Path, tmp_path: pathlib.Path):
    out = tmp_path / "usage.parquet"
    out.write_bytes(b"old")
    assert_error(call("replay", log, "--out", out, *CPU), 1, "usage.parquet: exists; use --force to replace it")
    assert out.read_bytes() == b"old"
    assert call("replay", log, "--out", out, "--force", *CPU)[0] == 0
    assert pq.read_table(out).num_rows > 0


def test_a_broken_pipe_is_quiet():
    with forked.Popen([*COMMAND, "synth"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout and process.stderr
        assert process.stdout.readline().startswith(b'{"request_id"')
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=30) == 141


THREE_BATCHES = CLEAN * (13 * (1 << 20) // len(CLEAN))


def interrupt(arguments: list[str], stdin: bytes, signal_number: int) -> tuple[int, str, str]:
    """The command gets the signal while it waits for a pipe that has more to come. Once it has taken three batches from
    the pipe, the first was counted."""
    with forked.Popen(
        [*COMMAND, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    ) as process:
        assert process.stdin
        process.stdin.write(stdin)
        process.stdin.flush()
        time.sleep(0.5)
        process.send_signal(signal_number)
        out, err = process.communicate(timeout=30)
        return process.returncode, out.decode(), err.decode()


def test_ctrl_c_shows_a_partial_result_and_writes_none(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "300")  # the name of a test's folder is long, and would be folded
    arguments = ["replay", "-", "-o", str(tmp_path / "usage.parquet"), *CPU]
    code, out, err = interrupt(arguments, THREE_BATCHES, signal.SIGINT)
    assert code == 130
    assert out.startswith("PARTIAL, interrupted before the end: ") and "usage.parquet not written, because" in " ".join(
        out.split()
    )
    assert err == "tokenometer: error: interrupted: the result is partial, and no file was written\n"
    assert left_in(tmp_path) == []


def test_termination_leaves_no_file(tmp_path: pathlib.Path):
    arguments = ["replay", "-", "-o", str(tmp_path / "usage.parquet"), *CPU]
    assert interrupt(arguments, THREE_BATCHES, signal.SIGTERM) == (143, "", "")
    assert left_in(tmp_path) == []


# The rest


def test_version_and_help(call: Any):
    assert call("--version") == (0, "tokenometer 0.1.0\n", "")
    for arguments in ([], ["replay"], ["synth"], ["mappings"], ["mappings", "check"]):
        code, out, err = call(*arguments, "--help")
        assert (code, err) == (0, "") and "Usage: tokenometer" in out
    code, out, _ = call()
    assert code == 2 and "Usage: tokenometer" in out


def test_synth_writes_what_the_library_makes(call: Any, tmp_path: pathlib.Path):
    settings = (
        "--count",
        3_000,
        "--seed",
        9,
        "--users",
        40,
        "--compact",
        "--day-curve",
        "--future",
        0.1,
        "--malformed",
        0.1,
    )
    profile = Profile(3_000, seed=9, users=40, compact=True, day_curve=True, future=0.1, malformed=0.1)
    made = b"".join(synth.generate(profile))
    result = run("synth", *map(str, settings))
    assert (result.returncode, result.stdout, result.stderr) == (0, made, b"")
    for suffix, unpack in ((".gz", gzip.decompress), (".zst", zstandard.ZstdDecompressor().decompressobj().decompress)):
        path = tmp_path / f"log.ndjson{suffix}"
        assert call("synth", *settings, "-o", path)[0] == 0
        assert unpack(path.read_bytes()) == made


def test_every_profile_setting_is_an_option(call: Any, tmp_path: pathlib.Path):
    help_text = call("synth", "--help")[1]
    for name in Profile.__dataclass_fields__.keys() - {"records", "start_ms", "lines_per_message"}:
        assert f"--{name.replace('_', '-')} " in help_text
    assert call("synth", "--count", 20_000, "-o", tmp_path / "log")[0] == 0  # the defaults are the same
    assert (tmp_path / "log").read_bytes() == b"".join(synth.generate(Profile(20_000)))


def test_synth_for_a_duration(call: Any):
    code, out, _ = call("synth", "--duration", 2, "--rate", 50, "--start", "2027-01-01T00:00:00Z", "--late", 0)
    assert code == 0 and out.count("\n") == 100
    assert show.time(orjson.loads(out.splitlines()[-1])["timestamp"]).startswith(("2026-12-31 23:5", "2027-01-01"))


def test_synth_from_a_trace(call: Any, tmp_path: pathlib.Path):
    trace = tmp_path / "trace.csv"
    trace.write_text("timestamp_ms,input_tokens,output_tokens\n0,10,1\n500,20,2\n")
    code, out, _ = call(
        "synth", "--trace", trace, "--users", 3, "--model", "m", "--repeat", 2, "--start", "1700000000000"
    )
    records = [orjson.loads(line) for line in out.splitlines()]
    assert code == 0 and [record["input_tokens"] for record in records] == [10, 20, 10, 20]
    assert {record["model"] for record in records} == {"m"} and records[0]["timestamp"] == 1_700_000_000_000


def test_mappings_are_listed_and_shown(call: Any):
    code, out, _ = call("mappings")
    assert code == 0 and "anthropic" in out and "openmeter" in out
    code, out, _ = call("mappings", "show", "anthropic")
    text = " ".join(out.split())
    assert code == 0 and "response > usage > cache_read_input_tokens" in text
    assert "tokens are added to input_tokens" in text


def test_mappings_check_shows_values_and_reasons(call: Any, log: pathlib.Path, tmp_path: pathlib.Path):
    mine = tmp_path / "mine.toml"
    mine.write_text(
        'format = 1\nname = "mine"\ndescription = "Mine."\n'
        'input_tokens_are = "inclusive"\noutput_tokens_are = "inclusive"\n'
        '[fields.timestamp]\npath = "t"\nformats = ["epoch_s"]\n[fields.user]\npath = ["who", "name"]\n'
        '[fields.model]\nconstant = "m"\n[fields.chip]\nconstant = "c"\n'
        '[fields.input_tokens]\npath = "in"\n[fields.output_tokens]\npath = "out"\n'
    )
    log.write_bytes(
        b'{"t":1600000001,"who":{"name":"ann"},"in":5,"out":7}\n\n{"t":1600000002,"who":"bob","in":1,"out":1}\n{"t":1600000003}\n'
        * 2
    )
    code, out, _ = call("mappings", "check", mine, "--sample", log, "-n", 6)
    assert code == 0
    assert out.startswith("2 of 6 records of")
    assert "2 rejected, 1 empty" not in out
    words = out.split()
    for word in ("ann", "wrong_type", "missing_field", "user", "2020-09-13"):
        assert word in words
    assert call("mappings", "check", mine, "--sample", log, "--strict")[0] == 3


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (7, "7"),
        (999, "999"),
        (999.6, "1.00 k"),
        (1_000, "1.00 k"),
        (12_345, "12.3 k"),
        (1_240_000_000, "1.24 G"),
        (120 * 10**12, "120 T"),
        (0.5, "0.50"),
    ],
)
def test_numbers_have_units(value: float, shown: str):
    assert show.si(value) == shown


@pytest.mark.parametrize(
    ("share", "shown"),
    [(0, "0.00 %"), (0.0031, "0.31 %"), (0.00001, "< 0.01 %"), (0.123, "12.3 %"), (1.91, "191.0 %"), (12.5, "1,250 %")],
)
def test_shares_are_percent(share: float, shown: str):
    assert show.percent(share) == shown


def test_the_installed_command_is_this_one():
    command = pathlib.Path(sys.executable).with_name("tokenometer")
    if not command.exists():
        pytest.skip("tokenometer is not installed beside this Python")
    result = subprocess.run([command, "--version"], capture_output=True, timeout=60, check=False, env=os.environ)
    assert (result.returncode, result.stdout) == (0, b"tokenometer 0.1.0\n")


# Help and completion


def commands(group: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in (group or typer.main.get_command(cli.application())).commands.items():
        yield (*path, name)
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))


@pytest.mark.parametrize("command", list(commands()), ids=" ".join)
def test_every_help_has_examples_that_parse(
    call: Any, command: tuple[str, ...], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = call(*command, "--help")
    assert (code, err) == (0, "") and "Examples:" in out and max(map(len, out.splitlines())) <= 80
    monkeypatch.chdir(tmp_path)
    for name, text in (
        ("ledger.token", "t" * 16),
        ("dashboard.token", "t" * 16),
        ("meter.toml", ""),
        ("ledger.toml", ""),
    ):
        (tmp_path / name).write_text(text)
    heading, *examples = known_command(command).epilog.split("\n\n")
    assert heading == "Examples:" and examples
    for example in examples:
        words = shlex.split(example.replace("\\[", "[").split(" > ")[0].split(" | ")[-1])
        assert words[: len(command) + 1] == ["tokenometer", *command], example
        with known_command(command).make_context(command[-1], words[1 + len(command) :]):
            pass


@pytest.mark.parametrize("command", [(), *commands()], ids=" ".join)
def test_every_option_of_every_help_is_there_in_full_at_80_columns(
    call: Any, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = call(*command, "--help")
    words = set(out.replace(",", " ").split())
    assert code == 0 and "…" not in out and max(map(len, out.splitlines())) <= 80
    for each in known_command(command).params:
        for name in (*each.opts, *each.secondary_opts) if each.param_type_name == "option" else ():
            assert name in words, f"{name} is cut"


def known_command(path: tuple[str, ...]) -> Any:
    command: Any = typer.main.get_command(cli.application())
    for name in path:
        command = command.commands[name]
    return command


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_completes_commands_options_and_choices(shell: str):
    def completed(words: str) -> str:
        asked = {
            "_TOKENOMETER_COMPLETE": f"complete_{shell}",
            "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1),
            "_TYPER_COMPLETE_ARGS": words, "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        }  # fmt: skip
        result = forked.run(COMMAND, env={**os.environ, **asked}, capture_output=True, timeout=60, check=False)
        assert result.stderr == b""
        return result.stdout.decode()

    assert "replay" in completed("tokenometer re")
    assert "--rejected" in completed("tokenometer replay --rej")
    assert "cuda" in completed("tokenometer replay --device cu")


def test_completion_can_be_shown_and_installed(call: Any):
    out = call("--help")[1]
    assert "--install-completion" in out and "--show-completion" in out


# Surroundings that fail


@pytest.mark.slow
def test_a_full_standard_output_is_said_in_one_line(tmp_path: pathlib.Path):
    log = tmp_path / "log.ndjson"
    log.write_bytes(CLEAN)
    for arguments in (["replay", str(log), *CPU], ["replay", str(log), "--out", "-", *CPU], ["mappings"], ["--help"],
                      ["--version"], ["synth", "--count", "100"], ["synth", "--count", "100000"],
                      ["replay", str(log), "--json", *CPU]):  # fmt: skip
        with open("/dev/full", "wb") as full:
            result = forked.run(
                [*COMMAND, *arguments], stdout=full, stderr=subprocess.PIPE, timeout=60, cwd=ROOT, check=False
            )
        assert result.returncode == 1, arguments
        assert result.stderr == b"tokenometer: error: standard output: cannot be written: No space left on device\n"


def test_a_full_disk_names_the_file(call: Any, log: pathlib.Path):
    code, out, err = call("replay", log, "--rejected", "/dev/full", *CPU)
    assert (code, out) == (
        1,
        "",
    ) and err == "tokenometer: error: /dev/full: cannot be written: No space left on device\n"


def test_closed_streams_are_no_traceback():
    for close in ("1>&-", "1>&- 2>&-"):
        command = " ".join(map(shlex.quote, COMMAND))
        result = subprocess.run(
            ["sh", "-c", f"{command} mappings {close}"], capture_output=True, timeout=60, check=False
        )
        assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")


def test_a_cache_that_cannot_be_written_names_the_way_out(call: Any, log: pathlib.Path, monkeypatch: Any):
    """Below a file, because a directory without permission is none to root."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(log))
    build.load_host.cache_clear()  # as if this process had no engine yet
    assert_error(call("replay", log, *CPU), 1, "the kernels cannot be kept here: Not a directory; name another")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "extra", "arguments"),
    [
        ("duckdb", "verify", ["verify"]),
        ("duckdb", "verify", ["demo", "--listen", ""]),
        ("duckdb", "ledger", ["usage", "--from", "2026-11-01", "--to", "2026-12-01"]),
        ("duckdb", "ledger", ["ledger"]),
        ("faust", "rollup", ["rollup"]),
        ("psycopg", "rollup,ledger", ["live"]),
        ("plotly", "dashboard", ["demo", "--count", "1000"]),
    ],
)
def test_an_extra_that_is_missing_is_named(tmp_path: pathlib.Path, module: str, extra: str, arguments: list[str]):
    program = f"import sys; sys.modules['{module}'] = None; from tokenometer.processor.cli.__main__ import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, timeout=60, cwd=tmp_path, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path or str(ROOT) for path in sys.path)},
    )  # fmt: skip
    said = result.stderr.decode().splitlines()
    assert result.returncode == 1 and said[-1].startswith("tokenometer: error: "), said
    assert f"pip install 'tokenometer[{extra}]'" in said[-1]


# Terminals


EVIL = "\x1b]0;owned\x07\x1b[2J\u202e\x9b31m\x7f"


def on_a_terminal(*arguments: str) -> tuple[int, str]:
    """Standard output is a terminal; what it was sent."""
    master, slave = pty.openpty()
    process = forked.Popen([*COMMAND, *arguments], stdout=slave, stderr=subprocess.STDOUT, cwd=ROOT,
                               env={**os.environ, "TERM": "dumb", "NO_COLOR": "1"})  # fmt: skip
    os.close(slave)
    pieces = []
    with contextlib.suppress(OSError):  # the end of a terminal
        while piece := os.read(master, 1 << 16):
            pieces.append(piece)
    os.close(master)
    return process.wait(60), b"".join(pieces).decode()


def assert_harmless(text: str) -> None:
    for line in text.replace("\r\n", "\n").split("\n"):
        assert re.sub(r"\x1b\[[0-9;]*m", "", line).isprintable(), repr(line)  # colours are ours


@pytest.fixture
def evil_log(tmp_path: pathlib.Path) -> pathlib.Path:
    record = {"timestamp": 1_795_000_000_000, "user": EVIL, "model": EVIL, "chip": EVIL, "input_tokens": 1,
              "output_tokens": 1}  # fmt: skip
    log = tmp_path / f"{EVIL}.ndjson"
    log.write_text(json.dumps(record, ensure_ascii=False) + "\n{" + EVIL + "\n", encoding="utf-8")
    return log


@pytest.mark.parametrize("more", [[], ["--json"], ["--out", "-"], ["--rejected", "-"], ["--out", "OUT"]])
def test_replay_sends_a_terminal_no_control_character(evil_log: pathlib.Path, tmp_path: pathlib.Path, more: list[str]):
    more = [str(tmp_path / f"{EVIL}.parquet") if word == "OUT" else word for word in more]
    code, out = on_a_terminal("replay", str(evil_log), *more, *CPU)
    assert code == 0 and "owned" in out, out
    assert_harmless(out)


def test_names_of_files_in_errors_are_harmless(evil_log: pathlib.Path):
    for arguments in (["replay", f"{evil_log}x"], ["synth", "-o", str(evil_log)], ["mappings", "show", EVIL],
                      ["replay", str(evil_log), "--out", f"{EVIL}.csv"], ["meter", "--config", EVIL],
                      ["mappings", "check", "native", "--sample", f"{evil_log}x"]):  # fmt: skip
        code, out = on_a_terminal(*arguments)
        assert code in (1, 2) and "owned" in out
        assert_harmless(out)


def test_rows_on_a_terminal_say_the_same_as_in_a_file(evil_log: pathlib.Path):
    _, shown = on_a_terminal("replay", str(evil_log), "--out", "-", "--run", "r", *CPU)
    [line] = [line for line in shown.split("\r\n") if line.startswith("{")]
    piped = run("replay", str(evil_log), "--out", "-", "--run", "r", *CPU).stdout
    assert orjson.loads(line) == orjson.loads(piped) and orjson.loads(line)["user"] == EVIL


@pytest.mark.slow
def test_a_hundred_thousand_models_are_summed_in_one_pass(call: Any, tmp_path: pathlib.Path):
    """One pass for each model took minutes."""
    log = tmp_path / "models.ndjson"
    lines = (
        b'{"request_id":"r%d","timestamp":1795000000000,"user":"u","model":"m%d","chip":"c%d","input_tokens":%d,'
        b'"output_tokens":1}\n' % (number, number, number % 3, number % 7)
        for number in range(100_000)
    )
    log.write_bytes(b"".join(lines))
    code, out, _ = call("replay", log, *CPU)
    assert code == 0 and "(99,981 others)" in out and "100,000 requests" in out
    summary = json.loads(call("replay", log, "--json", *CPU)[1])
    assert len(summary["by_model"]) == 100_000 and len(summary["by_chip"]) == 3
    assert sum(item["total_tokens"] for item in summary["by_model"]) == summary["usage"]["total_tokens"]
