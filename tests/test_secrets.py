"""No secret is ever printed: planted in every option, variable and file of every command, searched in all output.

A secret that was only looked for where we think it is printed would be no proof, so each test takes all of standard
output and standard error, at every log level and in both formats, and knows the secret in the forms that escape it.
"""

import contextlib
import http.server
import importlib
import itertools
import json
import logging
import os
import pathlib
import threading
import typing
import urllib.parse
from collections.abc import Iterator
from typing import Any

import pytest

from tokenometer.processor import secret
from tokenometer.processor.broker.memory import MemoryBroker
from tokenometer.processor.cli import __main__ as cli
from tokenometer.processor.cli import running
from tokenometer.processor.cli.client import open_url
from tokenometer.processor.secret import MASK, Secret

SECRET = 'hunter2-"x"/é@7'  # what JSON, a URL and Python's repr each write in another way
TOKEN = "plain-token-hunter2-hunter2"
DEAD = "127.0.0.1:1"  # where nothing answers
CLUSTER = ("meter", "verify", "rollup", "ledger")  # commands that read Kafka's settings, with --config
SENDERS = ("synth", "replay", "demo")
# Those that are no groups of commands.
COMMANDS = {
    name: getattr(importlib.import_module(f"tokenometer.processor.cli.{module}"), f"{name}_command")
    for name, module in cli.COMMANDS.items()
    if name not in ("ledger", "prices", "mappings")
}
FORMS = {SECRET, json.dumps(SECRET)[1:-1], repr(SECRET)[1:-1], urllib.parse.quote(SECRET, safe=""), TOKEN}
# Each says that it is one, or librdkafka treats it as one.
NAMES = (
    "sasl.password",
    "ssl.key.password",
    "ssl.keystore.password",
    "ssl.key.pem",
    "sasl.oauthbearer.client.secret",
    "sasl.oauthbearer.config",
    "sasl.oauthbearer.assertion.private.key.passphrase",
    "sasl.oauthbearer.assertion.private.key.pem",
    "sasl.jaas.config",
    "some.credentials",
    "some.api.key",
    "some.token",
)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("TOKENOMETER_", "KAFKA_")):
            monkeypatch.delenv(name)
    # Half a minute of waiting for a broker that is not there would prove nothing more.
    monkeypatch.setattr("tokenometer.processor.broker.kafka.cluster.ANSWER_SECONDS", 0.2, raising=False)
    monkeypatch.setattr(secret, "_known", set())


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]):
    """The exit status and all that was said."""

    def call(*arguments: object) -> tuple[int, str]:
        capfd.readouterr()
        code = cli.run([str(argument) for argument in arguments])
        return code, "".join(capfd.readouterr())

    return call


@pytest.fixture
def log(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "log.ndjson"
    path.write_text('{"timestamp": 1795000000000}\n')
    return path


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """Every command gets a broker in memory; what its client was given."""
    given: list[dict[str, str]] = []

    def open_broker(bootstrap: str, client: dict[str, str]) -> MemoryBroker:
        given.append(dict(client))
        return MemoryBroker()  # without topics: each command stops at once, after it has logged its settings

    monkeypatch.setattr(running, "open_broker", open_broker)
    return given


def arguments_of(command: str, log: pathlib.Path) -> list[object]:
    more: dict[str, list[object]] = {
        "replay": [log, "--to-kafka", "t"],
        "synth": ["--count", 1, "--to-kafka", "t"],
        "demo": ["--bootstrap", DEAD, "--listen", "", "--count", 1000, "--seconds", 0, "--device", "cpu"],
        "meter": ["--listen", ""],
        "ledger": ["--listen", "", "--database", log.with_name("ledger.duckdb")],
        "rollup": ["--listen", ""],
    }
    return [command, *more.get(command, ())]


def assert_unsaid(text: str) -> None:
    for form in FORMS:
        assert form not in text, text


# --- Where a secret comes from ---


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
@pytest.mark.parametrize("form", ["json", "text"])
@pytest.mark.parametrize("command", ["meter", "rollup", "ledger"])
def test_settings_are_logged_without_secrets(call, memory, log, command, form, level):
    given = [word for name in NAMES for word in ("--kafka", f"{name}={SECRET}")]
    code, said = call(
        *arguments_of(command, log), "--log-format", form, "--log-level", level, *given, "--kafka", "client.id=seen"
    )
    assert code == 1 and ("is not there" in said or "no such topic" in said), "it got as far as its topics"
    assert memory == [{name: SECRET for name in NAMES} | {"client.id": "seen"}]
    assert_unsaid(said)
    if level in ("debug", "info"):
        assert said.count(MASK) == len(NAMES) and "seen" in said, "the setting is named, its value is not"


@pytest.mark.parametrize(
    ("command", "source"),
    [
        *itertools.product([*CLUSTER, *SENDERS], ["command line", "environment", "file"]),
        *itertools.product(CLUSTER, ["config", "flat config"]),
    ],
)
def test_a_secret_may_come_from_anywhere_and_goes_to_the_client_only(
    call, memory, log, monkeypatch, tmp_path, command, source
):
    arguments = arguments_of(command, log)
    plain = SECRET.replace('"', "").replace(" ", "")  # a variable of several settings is cut at spaces
    FORMS.add(plain)
    if source == "command line":
        arguments += ["--kafka", f"sasl.password={plain}"]
    elif source == "environment":
        monkeypatch.setenv(f"TOKENOMETER_{command.upper()}_KAFKA", f"sasl.password={plain} client.id=x")
    elif source == "file":
        (tmp_path / "kafka").write_text(f"# a comment\n\n  client.id = y\nsasl.password={plain}\n", encoding="utf-8")
        arguments += ["--kafka-file", tmp_path / "kafka"]
    else:
        text = {"config": f"sasl.password = '{plain}'", "flat config": f"'sasl.password' = '{plain}'"}[source]
        (tmp_path / "config").write_text(f"[kafka]\n{text}\n", encoding="utf-8")
        arguments += ["--config", tmp_path / "config"]
    code, said = call(*arguments)
    assert memory and memory[0]["sasl.password"] == plain, said
    assert_unsaid(said)


def test_the_command_line_goes_before_the_file(call, memory, log, tmp_path):
    (tmp_path / "kafka").write_text("sasl.password=of-the-file\nclient.id=of-the-file\n")
    call(*arguments_of("meter", log), "--kafka-file", tmp_path / "kafka", "--kafka", "client.id=of-the-line")
    assert memory == [{"sasl.password": "of-the-file", "client.id": "of-the-line"}]


# --- What is wrong ---


@pytest.mark.parametrize("command", [*CLUSTER, *SENDERS])
@pytest.mark.parametrize("name", ["sasl.passwort", "sasl.pasword", "ssl.ky.password"])
def test_a_misspelt_setting_is_refused_before_anything_is_logged(call, log, command, name):
    bootstrap = [] if command == "demo" else ["--bootstrap", DEAD]
    code, said = call(*arguments_of(command, log), *bootstrap, "--kafka", f"{name}={SECRET}")
    assert code == 1 and name in said, said
    assert '"settings"' not in said
    assert_unsaid(said)


@pytest.mark.parametrize("command", [*CLUSTER, *SENDERS])
@pytest.mark.parametrize("text", [f"sasl.password {SECRET}", SECRET, f"={SECRET}", f"sasl password={SECRET}", ""])
def test_what_is_not_a_setting_is_not_repeated(call, memory, log, tmp_path, command, text):
    code, said = call(*arguments_of(command, log), "--kafka", text)
    assert code == 2 and "--kafka" in said and "expected NAME=VALUE" in said and memory == []
    assert_unsaid(said)
    if text:
        (tmp_path / "kafka").write_text(f"client.id=x\n{text}\n", encoding="utf-8")
        code, said = call(*arguments_of(command, log), "--kafka-file", tmp_path / "kafka")
        assert code == 1 and "line 2: expected NAME=VALUE" in said
        assert_unsaid(said)


@pytest.mark.parametrize("command", CLUSTER)
def test_a_config_file_with_a_wrong_setting_is_not_repeated(call, memory, log, tmp_path, command):
    path = tmp_path / "config"
    for text in (f"kafka = ['{TOKEN}']", f"[kafka\n'sasl.password' = '{TOKEN}'", f"kafca = '{TOKEN}'"):
        path.write_text(text)
        code, said = call(*arguments_of(command, log), "--config", path)
        assert code == 2 and memory == []
        assert_unsaid(said)


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - {"replay"}))  # to that one, any word is a file
def test_a_word_too_many_is_not_repeated(call, log, command):
    """`--kafka sasl.password hunter2`, or a password with a space that nobody quoted."""
    words = [TOKEN, TOKEN] if command in ("alerts", "statement", "reconcile") else [TOKEN]  # these take a word
    code, said = call(command, "--kafka", "a=b", *words) if command in (*CLUSTER, *SENDERS) else call(command, *words)
    assert code == 2 and "unexpected extra argument" in said
    assert_unsaid(said)


def test_files_of_secrets_that_cannot_be_used_are_named_and_not_repeated(call, tmp_path):
    path = tmp_path / "secret"
    for content in (b"short", TOKEN.encode() + b" " + TOKEN.encode(), b"", b"\xff" * 20):
        path.write_bytes(content)
        for arguments in (["top"], ["rollup"], ["usage", "--url", f"http://{DEAD}"], ["ledger"]):
            code, said = call(*arguments, "--token-file", path)
            assert code == 1 and str(path) in said
            assert_unsaid(said)
    for command in ("top", "rollup", "usage", "close", "statement", "ledger"):
        code, said = call(command, "--token-file", tmp_path / "none")
        assert code == 1 and "No such file" in said
    code, said = call("meter", "--kafka-file", tmp_path / "none")
    assert code == 1 and "No such file" in said


# --- Tokens ---


@pytest.mark.parametrize("form", ["json", "text"])
def test_tokens_are_never_printed(call, memory, log, tmp_path, monkeypatch, form):
    (tmp_path / "token").write_text(TOKEN + "\n")
    for command, more in (("rollup", ["--log-format", form]), ("top", ["--url", f"http://{DEAD}"])):
        for arguments in (["--token", TOKEN], ["--token-file", tmp_path / "token"]):
            code, said = call(*arguments_of(command, log), *more, *arguments)
            assert code == 1, said
            assert_unsaid(said)
        monkeypatch.setenv(f"TOKENOMETER_{command.upper()}_TOKEN", TOKEN)
        code, said = call(*arguments_of(command, log), *more)
        assert code == 1
        assert_unsaid(said)
    arguments = ["--log-format", form, "--token-file", tmp_path / "token"]
    code, said = call(*arguments_of("ledger", log), *arguments)
    assert code == 1 and '"settings"' in said or "settings" in said
    assert_unsaid(said)


class Origin(http.server.ThreadingHTTPServer):
    """Notes what it is sent; answers with `location`, if there is one, else with an empty object."""

    def __init__(self) -> None:
        origin = self
        self.location: str | None = None
        self.heard: list[tuple[str, str | None]] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                origin.heard.append((self.path, self.headers.get("Authorization")))
                self.send_response(302 if origin.location and self.path == "/" else 200)
                if origin.location and self.path == "/":
                    self.send_header("Location", origin.location)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def url(self, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.server_port}/"


@pytest.fixture
def origins() -> Iterator[tuple[Origin, Origin]]:
    with contextlib.ExitStack() as stack:
        pair = Origin(), Origin()
        for origin in pair:
            stack.callback(origin.server_close)
            stack.callback(origin.shutdown)
        yield pair


def test_a_token_follows_a_redirect_within_its_origin(origins):
    first, _ = origins
    first.location = first.url() + "there"
    with open_url(first.url(), Secret(TOKEN), 10) as answer:
        assert answer.read() == b"{}"
    assert first.heard == [("/", f"Bearer {TOKEN}"), ("/there", f"Bearer {TOKEN}")]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_token_is_not_sent_on_to_another_origin(origins, host):
    """Another port, or another name of the same machine."""
    first, second = origins
    other = second if host == "127.0.0.1" else first
    first.location = other.url(host) + "there"
    with open_url(first.url(), Secret(TOKEN), 10):
        pass
    assert ("/there", None) in other.heard
    assert [token for _, token in first.heard + second.heard if token] == [f"Bearer {TOKEN}"]


# --- Databases and addresses ---


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:{}@127.0.0.1:1/db",
        "postgresql://u@127.0.0.1:1/db?password={}",
        "postgresql://u@127.0.0.1:1/db?sslmode=disable&sslpassword={}",
        "postgresql://u:{}@127.0.0.1:port/db",
        "mysql://u:{}@127.0.0.1/db",
    ],
)
@pytest.mark.parametrize("raw", [False, True])
def test_a_databases_password_is_never_printed(call, memory, tmp_path, url, raw):
    text = url.format(SECRET if raw else urllib.parse.quote(SECRET, safe=""))
    (tmp_path / "config.toml").write_text(f"database = {json.dumps(text)}\n", encoding="utf-8")
    for command in ("ledger", "usage", "statement", "close"):
        asked = {"ledger": ["--listen", ""], "usage": ["--from", "2026-11-01", "--to", "2026-12-01"],
                 "close": ["--to", "2026-12-01"]}.get(command, [])  # fmt: skip
        for given in (["--database", text], ["--config", tmp_path / "config.toml"]):
            code, said = call(command, *given, *asked)
            assert code in (1, 2), said
            assert_unsaid(said)
            assert "hunter2" not in said, "no piece of it either"


def test_a_database_is_logged_without_its_password(caplog):
    text = f"postgresql://u:{urllib.parse.quote(SECRET, safe='')}@host:1/db?sslpassword={TOKEN}&sslmode=require"
    shown = str(secret.url(text))
    assert shown == "postgresql://u:***@host:1/db?sslpassword=***&sslmode=require"
    assert secret.url(text).reveal() == text


@pytest.mark.parametrize("command", ["top", "usage", "close", "statement"])
def test_an_address_with_a_password_is_refused_and_not_repeated(call, command):
    code, said = call(command, "--url", f"http://u:{TOKEN}@127.0.0.1:1")
    assert code == 2 and "--token-file" in said
    assert_unsaid(said)


# --- The type ---


def test_a_secret_shows_itself_nowhere():
    value = Secret(SECRET)
    shown = [
        str(value),
        repr(value),
        f"{value}",
        f"{value:>9}",
        f"{value!r}",
        str([value]),
        str({1: value}),
    ]
    for text in shown:
        assert SECRET not in text and MASK in text
    with pytest.raises(TypeError):
        json.dumps({"x": value})
    assert value.reveal() == SECRET and value == Secret(SECRET) and value != SECRET and Secret(value).reveal() == SECRET


@pytest.mark.parametrize("name", NAMES)
def test_names_that_say_so_are_secret(name):
    assert isinstance(secret.setting(name, "x"), Secret) and isinstance(secret.setting(name.upper(), "x"), Secret)


@pytest.mark.parametrize(
    "name",
    ["client.id", "security.protocol", "sasl.mechanism", "sasl.username", "ssl.ca.location", "socket.keepalive.enable",
     "linger.ms", "topic.metadata.refresh.interval.ms"],
)  # fmt: skip
def test_other_names_are_shown(name):
    assert secret.setting(name, "x") == "x"


def test_a_url_in_any_setting_is_shown_without_its_password():
    assert str(secret.setting("https.proxy", f"http://u:{TOKEN}@proxy:1")) == "http://u:***@proxy:1"


@pytest.mark.parametrize("form", ["json", "text"])
def test_what_a_library_logs_or_raises_is_scrubbed(capfd, form):
    Secret(SECRET)
    running.start_logging(running.LogFormat(form), running.LogLevel.DEBUG)
    logging.getLogger("aiokafka.conn").warning("cannot log in with %s", SECRET, extra={"more": {"deep": SECRET}})
    try:
        raise ValueError(f"bad password {SECRET!r}")
    except ValueError:
        logging.getLogger("tokenometer").exception("failed")
    said = "".join(capfd.readouterr())
    assert said.count(MASK) >= 3
    assert_unsaid(said)


def test_every_option_that_takes_a_secret_has_the_type():
    """A new option whose name says that it is a secret comes with the type, or with a reason here."""
    plain = {
        "kafka_file": "the name of a file",
        "token_sigma": "a number",
        "key": "an entry's name",
        "tokens": "how many",
    }
    found = set()
    for run in COMMANDS.values():
        [settings] = [kind for key, kind in typing.get_type_hints(run).items() if key != "return"]
        for name, kind in typing.get_type_hints(settings).items():
            if (secret.is_secret(name) or name == "database") and name not in plain:
                assert kind is Secret or Secret in typing.get_args(kind), f"{run.__name__}: {name}"
                found.add(name)
    assert found == {"token", "token_file", "ledger_token_file", "database"}


@pytest.mark.parametrize("form", ["json", "text"])
@pytest.mark.parametrize("protocol", ["sasl_plaintext", "sasl_ssl"])
def test_a_client_that_logs_all_it_does_says_no_secret(call, log, form, protocol):
    """A real client of librdkafka, which dumps its settings where it is told to."""
    settings = {"debug": "all", "security.protocol": protocol, "sasl.mechanism": "PLAIN", "sasl.username": "u",
                "sasl.password": TOKEN, "ssl.key.password": TOKEN}  # fmt: skip
    given = [word for name, value in settings.items() for word in ("--kafka", f"{name}={value}")]
    arguments = ["--bootstrap", DEAD, "--log-level", "debug", "--log-format", form]
    code, said = call(*arguments_of("meter", log), *arguments, *given)
    assert code == 1 and "gave no answer" in said and "sasl" in said.lower()
    assert said.count("\n") > 10, "the client has told much"
    assert_unsaid(said)
