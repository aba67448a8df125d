"""What commands say: help that is true of its command, examples that can run, messages that name the way out."""

import contextlib
import pathlib
import shlex
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests import books
from tests.test_cli import assert_error, commands, known_command
from tests.test_ledger_usage import IDENTITY, serving, take
from tests.test_top import Feed
from tokenometer.processor.cli import live as cli_live
from tokenometer.processor.cli.adjust import AdjustCommand, adjust_command
from tokenometer.processor.dashboard import ServeAddress, SiteThread
from tokenometer.processor.ledger import adjust

TOKEN = "t" * 20
USAGE = "usage", "--from", "2026-11-23", "--to", "2026-11-24"


@pytest.fixture
def database(tmp_path: pathlib.Path) -> str:
    name = str(tmp_path / "ledger.duckdb")
    with books.opened(name) as store:
        take(store, [books.usage_row(IDENTITY, [1, 2, 0, 0, 3, 0])])
    return name


# --- Help ---


@pytest.mark.parametrize("command", list(commands()), ids=" ".join)
def test_help_names_no_other_option_than_those_of_its_command(command: tuple[str, ...]):
    params = known_command(command).params
    options = {name for each in params for name in (*each.opts, *each.secondary_opts)}
    for each in params:
        for name in ("--config", "--url"):
            assert name in options or name not in (each.help or ""), f"{each.name} speaks of {name}"


def test_lake_says_what_is_compared_without_a_ledger():
    [against] = [each for each in known_command(("lake",)).params if each.name == "against"]
    assert "summaries" in against.help and "ledger.duckdb" not in against.help


def test_every_example_of_adjust_is_a_whole_entry():
    examples = [line.strip() for line in (adjust_command.__doc__ or "").splitlines() if " adjust --" in line]
    assert len(examples) == 3
    for example in examples:
        with known_command(("adjust",)).make_context("adjust", shlex.split(example)[2:]) as context:
            adjust.check(AdjustCommand(**context.params).body())


# --- Whose address it is ---


@pytest.fixture
def dashboard() -> Iterator[str]:
    with contextlib.closing(SiteThread(Feed().source(), ServeAddress(port=0))) as site:
        yield site.url


def test_usage_names_the_option_of_the_token(call: Any, database: str, tmp_path: pathlib.Path):
    (tmp_path / "other").write_text("o" * 20)
    with books.opened(database) as store, serving(store, token=TOKEN) as url:
        assert_error(call(*USAGE, "--url", url), 1, "a bearer token is wanted; give it with --token-file FILE")
        wrong = call(*USAGE, "--url", url, "--token-file", tmp_path / "other")
        assert_error(wrong, 1, "the one of --token-file is not the ledger's")


def test_usage_and_top_say_who_answers_instead(call: Any, database: str, dashboard: str):
    assert_error(call(*USAGE, "--url", dashboard), 1, "the dashboard of a rollup answers there, which")
    with books.opened(database) as store, serving(store) as url:
        assert_error(call("top", "--once", "--url", url), 1, "a ledger answers there, which `tokenometer usage` asks")
        assert_error(call("statement", "--url", f"{url}/x"), 1, "no such path")


# --- live ---


def test_live_says_where_the_token_is_needed_and_which_ports_are_taken(tmp_path: pathlib.Path):
    token = tmp_path / "token"
    token.write_text(TOKEN)
    ports = {name: usual for name, usual in cli_live._PORTS.items()} | {"rollup": 40_123}
    said = cli_live._addresses(cli_live.LiveCommand(), token, ports)
    [ledger] = [line for line in said.splitlines() if line.startswith("Ledger")]
    assert ledger.endswith("/v1/status (with the token)")
    assert f'Token      {token}: curl -H "Authorization: Bearer $(cat {token})" http://127.0.0.1:9465/v1/status' in said
    assert cli_live._other_ports(ports) == "Port 8321 is taken, so rollup uses 40123.\n"


def test_a_taken_port_is_replaced():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        usual = taken.getsockname()[1]
        assert cli_live._port(usual) != usual
