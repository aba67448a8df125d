"""The commands that ask a ledger: what a terminal is sent, and what a spreadsheet is given."""

import csv
import io
import json
import pathlib
from typing import Any

import pytest
from rich.console import Console

from tests import books
from tests.test_cli import EVIL, assert_harmless, on_a_terminal, run
from tests.test_ledger_usage import IDENTITY, take
from tokenometer.processor.cli import tables
from tokenometer.processor.ledger import export

ASKED = ("--from", "2026-11-23", "--to", "2026-11-24", "--group-by", "user")


@pytest.fixture
def ledger(tmp_path: pathlib.Path) -> str:
    """One that holds usage of a user whose name would steer a terminal."""
    name = str(tmp_path / "ledger.duckdb")
    with books.opened(name) as store:
        take(store, [books.usage_row((IDENTITY[0], EVIL, *IDENTITY[2:]), [1, 2, 0, 0, 3, 0])])
    return name


@pytest.mark.parametrize("form", ["table", "json", "csv"])
def test_usage_sends_a_terminal_no_control_character(ledger: str, form: str):
    code, out = on_a_terminal("usage", "--database", ledger, *ASKED, "--format", form)
    assert code == 0 and "0;o" in out, "a narrow column folds the name"
    assert_harmless(out)
    if form == "json":
        assert json.loads(out)["rows"][0]["user"] == EVIL, "it says the same"


def test_csv_in_a_pipe_is_exact(ledger: str):
    out = run("usage", "--database", ledger, *ASKED, "--format", "csv").stdout.decode()
    [row] = csv.DictReader(io.StringIO(out, newline=""))
    assert row["user"] == EVIL


def test_statements_send_a_terminal_no_control_character(ledger: str):
    close = "close", "--database", ledger, "--to", "2026-11-24", "--anyway"
    code, out = on_a_terminal(*close, "--user", EVIL)
    assert code == 0 and ", user " in out and ", not complete" in out
    assert_harmless(out)
    assert on_a_terminal(*close)[0] == 0
    code, out = on_a_terminal("statement", "1", "--json", "--database", ledger)
    assert code == 0 and json.loads(out)["user"] == EVIL
    assert_harmless(out)


def test_a_files_name_is_harmless(ledger: str, tmp_path: pathlib.Path):
    code, out = on_a_terminal("usage", "--database", ledger, *ASKED, "--out", str(tmp_path / f"{EVIL}.csv"))
    assert code == 0 and "1 row written" in out
    assert_harmless(out)


@pytest.mark.parametrize(
    ("name", "guarded"),
    [
        *((f"{before}{sign}1+1", True) for before in ("", " ", "\t", "\xa0", "\u200b", "\ufeff", " \u2060 ", "\n", "\0")
          for sign in "=+-@"),
        ("\uff1d1+1", True), ("\uff0b1", True), ("\uff0d1", True), ("\uff20A1", True),
        ("\tname", True), ("\rname", True),
        ("name", False), (" name", False), ("a=1", False), ("", False), ("\u200b", False), ("user-1", False),
        ("1-1", False), ("'=1", False),
    ],
)  # fmt: skip
def test_a_cell_that_a_spreadsheet_would_run_is_guarded(name: str, guarded: bool):
    row: dict[str, Any] = {"user": name, "input_tokens": -5}
    text = export.csv_text([row], ["user", "input_tokens"], header=False)
    [[cell, count]] = csv.reader(io.StringIO(text, newline=""))
    assert cell == (f"'{name}" if guarded else name)
    assert count == "-5", "a number of ours is one"


@pytest.mark.slow
def test_a_list_of_statements_is_written_and_printed_as_what_was_asked_for(ledger: str, tmp_path: pathlib.Path):
    assert run("close", "--database", ledger, "--to", "2026-11-24", "--anyway").returncode == 0
    for name in ("list.csv", "list.parquet", "list.ndjson"):
        assert run("statement", "--database", ledger, "--out", str(tmp_path / name)).returncode == 0
        assert (tmp_path / name).stat().st_size
    printed = run("statement", "--database", ledger, "--format", "csv").stdout
    assert printed == (tmp_path / "list.csv").read_bytes()
    [row] = csv.DictReader(io.StringIO(printed.decode(), newline=""))
    assert (row["statement"], row["end"], row["complete"]) == ("1", "2026-11-24T00:00:00Z", "false")


@pytest.mark.parametrize(
    "arguments",
    [
        ("statement", "1", "--adjustments", "--corrections"),
        ("statement", "1", "--format", "focus", "--corrections"),
        ("statement", "--adjustments"),
        ("statement", "1", "--format", "json", "--out", "x.csv"),
        ("statement", "1", "--format", "csv", "--out", "x.parquet"),
        ("statement", "1", "--check"),
        ("adjust", "--reason", "r", "--user", "a", "--amount=-1"),
    ],
)
def test_what_contradicts_itself_is_a_wrong_use(tmp_path: pathlib.Path, arguments: Any):
    done = run(*arguments, "--database", str(tmp_path / "none.duckdb"))
    assert done.returncode == 2 and b"--" in done.stderr and done.stdout == b""


def test_nothing_is_said_in_words_on_a_page_and_in_no_other_form(ledger: str):
    where = "--database", ledger
    nobody = "usage", *where, *ASKED, "--user", "nobody"
    assert run(*nobody).stdout.startswith(b"No usage.\n")
    assert json.loads(run(*nobody, "--format", "json").stdout)["rows"] == []
    assert run(*nobody, "--format", "csv").stdout.count(b"\n") == 1, "the header"
    assert run("statement", *where).stdout == b"No statements.\n"
    assert run("statement", "next", *where).stdout == b"Nothing waits.\n"
    assert run("statement", "next", "--json", *where).stdout == b""


def test_a_statement_that_has_no_price_for_anything_is_listed_as_such(ledger: str, tmp_path: pathlib.Path):
    where = "--database", ledger
    prices = tmp_path / "prices.toml"
    prices.write_text('currency = "USD"\n[[price]]\nmodel = "other"\ninput = "1"\noutput = "1"\n')
    assert run("prices", "check", str(prices)).stdout.decode() == f"{prices}: 1 price in USD, 0 chip costs\n"
    closed = run("close", *where, "--to", "2026-11-24", "--anyway", "--prices", str(prices), "--allow-unpriced")
    assert closed.returncode == 0, closed.stderr
    listed = run("statement", *where).stdout.decode()
    assert "unpriced" in listed and "USD" not in listed


@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_no_time_and_no_header_is_folded(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(tables, "stdout_console", lambda: Console(width=width))
    monkeypatch.setattr(tables, "show_view", lambda view: Console(width=width).print(view))
    time, count = "2026-11-23T00:00:00Z", "18,446,744,073,709,551,615"
    tables.show_rows(
        ["window_start", "price_line", "labels"], ["input"], [[time, "6", "service_tier=default " * 3, count]]
    )
    out = capsys.readouterr().out
    assert all(word in out for word in (time, count, "window_start", "price_line", "labels"))
    assert max(map(len, out.splitlines())) <= width
