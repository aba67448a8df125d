"""`mappings guess`, `mappings init` and what `mappings check` says, as a person calls them."""

import json
import pathlib
from typing import Any

import pytest

from tests.guess_shapes import KNOWN, lines_of, wrapped
from tokenometer.schemas import mapping as mappings

SAMPLES = pathlib.Path(__file__).parent / "intake" / "samples"


@pytest.fixture(autouse=True)
def in_an_empty_directory(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_the_list_has_whole_names_with_descriptions(call: Any, monkeypatch: pytest.MonkeyPatch, width: int):
    """A name is there to be typed. Conventions are shown only where there is room for them."""
    monkeypatch.setenv("COLUMNS", str(width))
    code, out, _ = call("mappings")
    lines = [line for line in out.splitlines() if line[:1].isalnum()]
    assert code == 0 and [line.split()[0] for line in lines] == ["Mapping", *mappings.shipped()]
    assert all(len(line.split()) > 2 for line in lines[1:]), "each name has its description beside it"
    assert "…" not in out and max(map(len, out.splitlines())) <= width
    assert ("inclusive" in out) == ("Input" in lines[0]) == (width >= 160)
    if width >= 80:
        assert out.count("\n") < 100


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


MINE = """
format = 2
name = "mine"
description = "Mine."
input_tokens_are = { path = "kind", inclusive = ["openai"], additive = ["claude", "bedrock"], otherwise = "inclusive" }
output_tokens_are = { by_total = "additive" }
repeats = "grow"

[[skip]]
path = "status"
not_in = ["ok", 200, true]
absent = true
and = [{ path = "usage", absent = true }]

[[skip]]
path = "test"
present = true

[fields]
request_id = { path = "id", with = ["user"] }
timestamp = { path = "ts", formats = ["iso8601", "epoch_ms"], zone = "+08:00", digits = true }
user = { path = "user", empty = "absent", default = "nobody", numbers = true }
model = { path = "model" }
chip = { constant = "H100" }
input_tokens = { path = "in", plus = ["tool"], whole_numbers = true }
cached_input_tokens = { path = "cached" }
cache_write_tokens = { path = "write" }
output_tokens = { path = "out" }
reasoning_tokens = { path = "thoughts" }
total_tokens = { path = "total" }
"""


def test_show_says_what_is_skipped_repeated_totalled_and_inside_of_what(call: Any, tmp_path: pathlib.Path):
    (tmp_path / "mine.toml").write_text(MINE)
    code, out, err = call("mappings", "show", "mine.toml")
    words = " ".join(out.split())
    assert code == 0, err
    for said in (
        'cached_input_tokens and cache_write_tokens are by kind: included in input_tokens where it is "openai"',
        'added to input_tokens where it is "bedrock", otherwise included in input_tokens',
        "reasoning_tokens are included in output_tokens or added to it, as total_tokens tells, and added where there "
        "is no total.",
        'Skipped where status is none of "ok", 200, true or absent and usage is absent.',
        "Skipped where test is present.",
        "Records of one request carry the usage so far: each counter counts up to its greatest value.",
        "unique with user", "at +08:00 where no zone is named", 'default "nobody"', '"" is absent; numbers too',
        'constant "H100"', "plus tool", "12.0 and 1e+05 too", "optional; must be input + output",
    ):  # fmt: skip
        assert said in words, out
    assert "the first counts, and the others are duplicates" in " ".join(call("mappings", "show", "native")[1].split())
    assert "Messages are opened as otlp." in call("mappings", "show", "otlp")[1]


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
    assert code == 2 and out == "" and "a string of a-z, 0-9 and -" in err


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
    assert code == 2 and "did you mean vllm?" in err


@pytest.mark.parametrize("time", [1_795_453_500_000, 1_795_453_500])
def test_check_says_conflicts_and_what_looks_wrong(call: Any, tmp_path: pathlib.Path, time: int):
    records = [
        {"request_id": "r-1", "timestamp": time, "user": "u", "model": "m", "chip": "c", "input_tokens": count,
         "output_tokens": 1} for count in (1, 2, 2)
    ]  # fmt: skip
    (tmp_path / "log").write_text("\n".join(map(json.dumps, records)))
    code, out, _ = call("mappings", "check", "native", "--sample", "log")
    words = " ".join(out.split())
    right = time > 10**12
    assert code == 0 and ("2 duplicates, of which 2 say something else (the first is line 2)" in words) == right
    assert ('these look like seconds: formats = ["epoch_s"]' in words and "3 rejected" in words) != right
    (tmp_path / "log").write_bytes(lines_of(wrapped({"model": "m", "usage": {"prompt_tokens": 1}}))[0])
    words = " ".join(call("mappings", "check", "native", "--sample", "log")[1].split())
    assert 'no record has input_tokens ("input_tokens"); the log has ["response", "usage", "prompt_tokens"]' in words
