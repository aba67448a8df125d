"""`mappings guess`, `mappings init` and what `mappings check` says, as a person calls them."""

import json
import pathlib
from typing import Any

import pytest

from tests.guess_shapes import KNOWN, lines_of, wrapped
from tokenometer.processor.cli import __main__ as cli
from tokenometer.schemas import mapping as mappings

SAMPLES = pathlib.Path(__file__).parent / "intake" / "samples"


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    """Exit code, stdout, stderr, in an empty directory."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        code = cli.run([str(argument) for argument in arguments])
        return code, *capfd.readouterr()

    return call


def test_what_guess_writes_check_reads_and_show_explains(call: Any, tmp_path: pathlib.Path):
    log = SAMPLES / "apisix-batch1.jsonl"
    code, out, err = call("mappings", "guess", log, "--name", "mine")
    assert code == 0 and "3 of 3 records would be counted" in err and "# CHECK" in err
    (tmp_path / "mine.toml").write_text(out)
    assert mappings.load("mine.toml").name == "mine"
    code, out, _ = call("mappings", "check", "mine.toml", "--sample", log, "--strict")
    assert code == 0 and out.startswith("3 of 3 records of") and "6,077" in out
    code, out, _ = call("mappings", "show", "mine.toml")
    assert code == 0 and 'added to input_tokens where it is "claude-sonnet-4-5"' in " ".join(out.split())


def test_values_that_need_a_decoder_are_opened_in_guess_and_check(call: Any, tmp_path: pathlib.Path):
    log = SAMPLES / "traceloop.jaeger_json"
    code, out, _ = call("mappings", "guess", log)
    assert code == 0 and 'name = "traceloop"' in out and 'encoding = "jaeger"' in out
    (tmp_path / "traceloop.toml").write_text(out)
    code, out, _ = call("mappings", "check", "traceloop.toml", "--sample", log)
    assert code == 0 and "15,600" in out and "2 skipped" in out and "1 duplicate" in out


def test_a_name_is_made_of_the_logs(call: Any, tmp_path: pathlib.Path):
    (tmp_path / "My Log.2026.ndjson").write_bytes(b"\n".join(lines_of(KNOWN["openai chat"][0])))
    assert 'name = "my-log"' in call("mappings", "guess", "My Log.2026.ndjson")[1]
    code, out, err = call("mappings", "guess", "My Log.2026.ndjson", "--name", "No Name")
    assert code == 1 and out == "" and "a string of a-z, 0-9 and -" in err


def test_a_log_that_is_not_there_is_an_error(call: Any):
    code, out, err = call("mappings", "guess", "none.ndjson")
    assert code == 1 and out == "" and "none.ndjson: no such file" in err


def test_init_writes_a_shipped_mapping_and_replaces_nothing(call: Any, tmp_path: pathlib.Path):
    assert call("mappings", "init", "vllm")[0] == 0
    written = (tmp_path / "vllm.toml").read_bytes()
    assert written == mappings.shipped_text("vllm") and mappings.load("./vllm.toml").name == "vllm"
    code, _, err = call("mappings", "init", "vllm")
    assert code == 1 and "vllm.toml: exists; use --force to replace it" in err
    assert call("mappings", "init", "vllm", "--force")[0] == 0
    code, _, err = call("mappings", "init", "vlm")
    assert code == 1 and "did you mean vllm?" in err


def test_check_says_conflicts_and_what_looks_wrong(call: Any, tmp_path: pathlib.Path):
    records = [
        {"request_id": "r-1", "timestamp": 1_795_453_500, "user": "u", "model": "m", "chip": "c", "input_tokens": count,
         "output_tokens": 1} for count in (1, 2, 2)
    ]  # fmt: skip
    (tmp_path / "log").write_text("\n".join(map(json.dumps, records)))
    code, out, _ = call("mappings", "check", "native", "--sample", "log")
    words = " ".join(out.split())
    assert code == 0 and "2 duplicates, of which 2 say something else (the first is line 2)" in words
    assert 'these look like seconds: formats = ["epoch_s"]' in words
    (tmp_path / "log").write_bytes(lines_of(wrapped({"model": "m", "usage": {"prompt_tokens": 1}}))[0])
    words = " ".join(call("mappings", "check", "native", "--sample", "log")[1].split())
    assert 'no record has input_tokens ("input_tokens"); the log has ["response", "usage", "prompt_tokens"]' in words
