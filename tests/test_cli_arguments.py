"""Wrong arguments end with 2 and are refused before anything is opened; what depends on the ledger ends with 1."""

import pathlib
from typing import Any

import pytest

from tests import books
from tests.test_cli import assert_error
from tests.test_ledger_usage import IDENTITY, take

USAGE = "usage", "--from", "2026-11-01", "--to", "2026-12-01"
ADJUST = "adjust", "--key", "k", "--reason", "r"
URL = "--url", "http://127.0.0.1:1"


@pytest.fixture(autouse=True)
def in_an_empty_directory(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


WRONG = [
    ((*USAGE, "--window", "week"), "window 'week': expected hour, day, month, total"),
    (("usage", "--from", "2026-11-01"), "to is missing: a date"),
    ((*USAGE, "--group-by", "user,Team"), "group_by 'Team': expected user, model, chip or the name of a label"),
    ((*USAGE, "--out", "x.json"), "x.json: expected a name that ends in .csv, .ndjson, .jsonl or .parquet"),
    ((*USAGE, "--top", "0", "--group-by", "user"), "top '0': expected a number"),
    ((*USAGE, "--after", "x"), "after is not the next"),
    ((*USAGE, "--label", "team"), "label 'team': expected NAME=VALUE"),
    ((*USAGE, "--time-zone", "Europe/Berln"), "Europe/Berln: no such time zone"),
    (("close",), "--to is missing"),
    (("close", "--to", "garbage"), "'garbage' is not a moment"),
    (("close", "--to", "2026-12-01", "--time-zone", "Europe/Berln"), "Europe/Berln: no such time zone"),
    (("close", "--to", "2026-12-01", "--user", "u", "--label", "a=b"), "a customer is a user or a label's value"),
    (("close", "--to", "2026-12-01", "--label", "a"), "label 'a': expected NAME=VALUE"),
    (("statement", "foo"), "statement 'foo': expected a number"),
    (("statement", "1", "--out", "x.json"), "x.json: expected a name that ends in"),
    ((*ADJUST, "--user", "u", "--amount=12,50"), "amount '12,50': expected a decimal"),
    ((*ADJUST, "--user", "u"), "expected an amount, or tokens, or the key of what is void"),
    ((*ADJUST, "--amount=-1"), "an amount is of a user, or of one label's value"),
    ((*ADJUST, "--tokens", "output_tokens=-1", "--user", "u"), "there is no model, no chip, no at"),
]


@pytest.mark.parametrize(("arguments", "said"), WRONG)
@pytest.mark.parametrize("where", [("--database", "none.duckdb"), URL], ids=["database", "url"])
def test_a_wrong_argument_ends_with_2_before_a_ledger_is_asked(call: Any, arguments: Any, said: str, where: Any):
    assert_error(call(*arguments, *where), 2, said)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("replay", "log", "--out", "usage.csv"), "usage.csv: expected a name that ends in .parquet"),
        (("replay", "log", "--mapping", "openai-chatt"), "did you mean openai-chat?"),
        (("meter", "--input", "x=openai-chatt"), "did you mean openai-chat?"),
        (("verify", "--input", "x=openai-chatt"), "did you mean openai-chat?"),
        (("mappings", "show", "openai-chatt"), "did you mean openai-chat?"),
        (("mappings", "check", "openai-chatt", "--sample", "log"), "did you mean openai-chat?"),
        (("mappings", "init", "openai-chatt"), "did you mean openai-chat?"),
        (("mappings", "guess", "log", "--name", "No Name"), "expected a string of a-z, 0-9 and -"),
    ],
)
def test_a_name_that_means_nothing_ends_with_2(call: Any, tmp_path: pathlib.Path, arguments: Any, said: str):
    (tmp_path / "log").write_text("{}\n")
    device = ("--device", "cpu") if arguments[0] == "replay" else ()
    assert_error(call(*arguments, *device), 2, said)


def test_what_depends_on_the_ledger_or_on_a_file_ends_with_1(call: Any, tmp_path: pathlib.Path):
    name = str(tmp_path / "ledger.duckdb")
    with books.opened(name) as store:
        take(store, [books.usage_row(IDENTITY, [1, 2, 0, 0, 3, 0])])
    there = "--database", name
    assert_error(call("close", "--to", "2026-12-01", *there), 1, "complete")
    assert_error(call("statement", "7", *there), 1, "there is no statement 7")
    assert_error(call("close", "--to", "2026-12-01", "--user", "nobody", "--anyway", *there), 1, "no usage of")
    assert_error(call(*USAGE, "--label", "team=blue", *there), 1, "no row has a label team")
    assert_error(call("meter", "--input", "x=./none.toml"), 1, "none.toml: cannot be read")
    assert call("close", "--to", "2026-12-01", "--anyway", *there)[0] == 0
    assert_error(call("close", "--to", "2026-12-01", "--anyway", *there), 1, "is closed already")
