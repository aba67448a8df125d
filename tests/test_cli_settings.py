"""Settings of the file and of the environment have the names of options, and nothing is left out silently."""

import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.test_cli import assert_error, commands, known_command
from tokenometer.processor.cli import __main__ as cli
from tokenometer.processor.cli import running, sources
from tokenometer.processor.cli import statement as cli_statement
from tokenometer.processor.cli import usage as cli_usage

OFFLINE = "--listen", "", "--device", "cpu"


class Seen(Exception):
    """A command has its settings."""


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in list(os.environ):
        if name.startswith(("TOKENOMETER_", "KAFKA_")):
            monkeypatch.delenv(name)
    yield


@pytest.fixture
def settings_of(monkeypatch: pytest.MonkeyPatch):
    """What a command is told. It does nothing."""
    told: list[Any] = []

    def take(command: Any, *_: Any, **__: Any) -> None:
        told.append(command)
        raise Seen

    monkeypatch.setattr(running, "start_logs", take)  # meter, ledger
    monkeypatch.setattr(cli_usage.UsageCommand, "question", take)
    monkeypatch.setattr(cli_statement.CloseCommand, "body", take)

    def settings_of(*arguments: object) -> Any:
        with pytest.raises(Seen):
            cli.run([str(argument) for argument in arguments])
        return told.pop()

    return settings_of


NAMED_OTHERWISE = [
    ("ledger", "prices", "PRICES", "p.toml", "price_list", "p.toml"),
    ("ledger", "price_list", "PRICE_LIST", "p.toml", "price_list", "p.toml"),  # as older versions read it
    ("close", "prices", "PRICES", "p.toml", "price_list", "p.toml"),
    ("usage", "from", "FROM", "2026-11-01", "begin", "2026-11-01"),
    ("usage", "to", "TO", "2026-11-01", "end", "2026-11-01"),
    ("usage", "format", "FORMAT", "csv", "form", cli_usage.TableFormat.CSV),
    ("meter", "conflicts_to_letters", "CONFLICTS_TO_LETTERS", "false", "conflict_letters", False),
    ("meter", "conflicts-to-letters", "CONFLICT_LETTERS", "false", "conflict_letters", False),
]
OTHERS = {"ledger": ["--database", "none.duckdb"], "close": ["--to", "2026-11-01"], "meter": ["--name", "m"]}


@pytest.mark.parametrize(("command", "setting", "variable", "given", "field", "value"), NAMED_OTHERWISE)
def test_a_setting_has_the_name_of_its_option_in_a_file_and_in_the_environment(
    settings_of, monkeypatch, tmp_path, command, setting, variable, given, field, value
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tokenometer.processor.ledger.pricefile.load", lambda _: None)
    path = tmp_path / "settings.toml"
    path.write_text(f"{setting} = {given if value is False else repr(given)}\n")
    words = [command, *OTHERS.get(command, [])]
    assert getattr(settings_of(*words, "--config", path), field) == value
    monkeypatch.setenv(f"TOKENOMETER_{command.upper()}_{variable}", given)
    assert getattr(settings_of(*words), field) == value


def test_the_list_of_settings_has_the_names_of_options(call, tmp_path):
    path = tmp_path / "ledger.toml"
    path.write_text("price = 1\n")
    result = call("ledger", "--config", path)
    assert_error(result, 2, "no such setting: price; did you mean prices?; expected one of accept_gap, ")
    names = result[2].rpartition("expected one of ")[2].strip().split(", ")
    assert "prices" in names and not {"price_list", "config", "help"} & set(names)


@pytest.mark.parametrize("command", list(commands()), ids=" ".join)
def test_no_two_settings_of_a_command_share_a_name(command: tuple[str, ...]):
    options = [each for each in known_command(command).params if each.param_type_name == "option"]
    names = [sources.setting_name(each) for each in options]
    assert len(set(names)) == len(names)
    for each, name in zip(options, names, strict=True):
        assert f"--{name.replace('_', '-')}" in each.opts
        assert each.name == name or each.name not in names, "the former name is not another one's"


@pytest.mark.parametrize(
    ("command", "variable", "said"),
    [
        ("meter", "COMMIT_INTERVALL", "did you mean TOKENOMETER_METER_COMMIT_INTERVAL?"),
        ("ledger", "PRICE", "did you mean TOKENOMETER_LEDGER_PRICES?"),
        ("usage", "FORMATS", "did you mean TOKENOMETER_USAGE_FORMAT?"),
        ("meter", "ZZZ", "tokenometer meter --help lists the options"),
    ],
)
def test_an_unknown_variable_is_refused(call, monkeypatch, command, variable, said):
    monkeypatch.setenv(f"TOKENOMETER_{command.upper()}_{variable}", "hunter2hunter2")
    result = call(command)
    assert_error(result, 2, f"TOKENOMETER_{command.upper()}_{variable}: there is no such setting; {said}")
    assert "hunter2" not in result[2]


def test_variables_of_other_commands_and_of_kubernetes_are_left_alone(call, settings_of, monkeypatch):
    """A service of Kubernetes that is called tokenometer-ledger gives every pod these."""
    for name in ("SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT", "PORT_9465_TCP", "PORT_9465_TCP_ADDR",
                 "METRICS_SERVICE_HOST", "METRICS_PORT_9_UDP_PROTO", "LOAD_DATABASE"):  # fmt: skip
        monkeypatch.setenv(f"TOKENOMETER_LEDGER_{name}", "x")
    monkeypatch.setenv("TOKENOMETER_METER_TYPO", "x")
    settings_of("ledger")
    monkeypatch.setenv("TOKENOMETER_LEDGER_LOAD_DATABAS", "x")
    assert_error(call("ledger", "load", "x.ndjson"), 2, "did you mean TOKENOMETER_LEDGER_LOAD_DATABASE?")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("window = 60.5", "window: "),
        ('window = "soon"', "window: "),
        ("window = [60]", "window: expected one value, not a list"),
        ("window = true", "window: expected a text or a number"),
        ('bootstrap = ["a:1", "b:1"]', "bootstrap: expected one value, not a list"),
        ('input = "inference-logs"', "input: expected a list of texts"),
        ("input = [1, true]", "input: expected a list of texts"),
        ('conflicts-to-letters = "no"', "conflicts-to-letters: expected true or false"),
        ("conflicts-to-letters = false\nconflict_letters = true", "conflicts_to_letters is given twice"),
        ("[group]\nname = 1", "group: expected one value, not a table"),
    ],
)
def test_a_value_of_the_wrong_type_names_the_file_and_the_setting(call, tmp_path, text, said):
    path = tmp_path / "meter.toml"
    path.write_text(text + "\n")
    assert_error(call("meter", *OFFLINE, "--config", path), 2, f"{path}: {said}")


@pytest.mark.parametrize(
    ("variable", "value"), [("WINDOW", "soon"), ("CONFLICTS_TO_LETTERS", "maybe"), ("CONFLICT_LETTERS", "maybe")]
)
def test_a_value_of_the_wrong_type_names_the_variable(call, monkeypatch, variable, value):
    monkeypatch.setenv(f"TOKENOMETER_METER_{variable}", value)
    assert_error(call("meter", *OFFLINE), 2, f"error: TOKENOMETER_METER_{variable}: ")


def test_an_address_of_the_wrong_form_names_its_place(call, monkeypatch, tmp_path):
    (tmp_path / "config").write_text('listen = "nowhere"\n')
    assert_error(call("meter", "--config", tmp_path / "config"), 2, f"{tmp_path / 'config'}: listen: Invalid value for")
    monkeypatch.setenv("TOKENOMETER_METER_LISTEN", "nowhere")
    assert_error(call("meter"), 2, "error: TOKENOMETER_METER_LISTEN: Invalid value for '--listen'")
