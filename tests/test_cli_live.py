"""The commands that need a broker, on one in memory: where settings come from, what is said, what is written."""

import contextlib
import json
import logging
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import orjson
import pytest

from tests import oracle, streams
from tests.streams import INPUT, LIVE, REJECTED, USAGE
from tests.test_cli import assert_error
from tokenometer.processor.broker import Broker
from tokenometer.processor.broker.memory import MemoryBroker
from tokenometer.processor.cli import meter as cli_meter
from tokenometer.processor.cli import running
from tokenometer.processor.cli.demo import DemoCommand
from tokenometer.processor.cli.options import LogFormat
from tokenometer.processor.load import synth
from tokenometer.processor.load.profile import Profile
from tokenometer.processor.meter.meter import Meter
from tokenometer.schemas.usage import TARGET_TOKENS_PER_DAY

START_MS = 1_795_392_000_000
LOG = b"".join(synth.generate(Profile(600, seed=3, users=20, duplicates=0.05, malformed=0.05))).splitlines()
CPU = ("--device", "cpu")
QUIET = (*CPU, "--listen", "")


@pytest.fixture
def broker() -> MemoryBroker:
    broker = MemoryBroker()
    broker.create_topic(INPUT, 3, {})
    return broker


@pytest.fixture(autouse=True)
def opened(monkeypatch: pytest.MonkeyPatch, broker: MemoryBroker) -> list[tuple[str, dict[str, str]]]:
    """Every command gets this broker; with what it asked for it."""
    asked: list[tuple[str, dict[str, str]]] = []

    def open_broker(bootstrap: str, settings: dict[str, str]) -> Broker:
        asked.append((bootstrap, dict(settings)))
        return broker

    monkeypatch.setattr(running, "open_broker", open_broker)
    return asked


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in list(os.environ):
        if name.startswith(("TOKENOMETER_", "KAFKA_")):
            monkeypatch.delenv(name)
    yield


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Meters stop at once; the last one's settings and engine."""
    found: dict[str, Any] = {}

    class Recorded(Meter):
        def __init__(self, broker, engine, settings, run, **more) -> None:
            found.update(settings=settings, engine=engine, run=run)
            super().__init__(broker, engine, settings, run, **more)

        def run(self, stopped) -> None:
            for thread in (self._engine_thread, self._commit_thread):
                thread.shutdown()

    monkeypatch.setattr(cli_meter, "Meter", Recorded)
    return found


def outputs(broker: MemoryBroker) -> None:
    for topic in (USAGE, LIVE, REJECTED):
        broker.create_topic(topic, 1, {"cleanup.policy": "compact" if topic == USAGE else "delete"})


def all_committed(broker: MemoryBroker, group: str) -> bool:
    committed = broker.committed(group, [INPUT])
    return all(
        committed[place] is not None and committed[place].offset >= extent.end  # type: ignore[union-attr]
        for place, extent in broker.extents([INPUT]).items()
    )


@pytest.fixture
def until_committed(monkeypatch: pytest.MonkeyPatch, broker: MemoryBroker):
    """The signal to stop comes when a group has committed all of the input."""

    def until(group: str) -> None:
        @contextlib.contextmanager
        def stop_signals() -> Iterator[Any]:
            deadline = time.monotonic() + 30
            yield lambda: all_committed(broker, group) or time.monotonic() > deadline

        monkeypatch.setattr(running, "stop_signals", stop_signals)

    return until


def fill(broker: MemoryBroker, lines: list[bytes] = LOG) -> oracle.Meter:
    """What a meter is to find."""
    keys = [b"%d" % (k % 5) for k in range(len(lines))]
    broker.append(INPUT, lines, keys, [START_MS + k for k in range(len(lines))])
    wanted, _ = streams.expected(broker)
    return wanted


def log_lines(err: str) -> list[dict[str, Any]]:
    return [json.loads(text) for text in err.splitlines()]


def settings_line(err: str) -> dict[str, Any]:
    [line] = [line for line in log_lines(err) if line["message"] == "settings"]
    return line


# --- Where a setting comes from ---


def test_defaults(call, broker, built, opened):
    outputs(broker)
    code, out, _ = call("meter", *QUIET, "--name", "m")
    assert (code, out) == (0, "")
    settings, engine = built["settings"], built["engine"]
    assert (settings.name, settings.group) == ("m", "tokenometer")
    assert (settings.usage_topic, settings.live_topic, settings.rejected_topic) == (USAGE, LIVE, REJECTED)
    assert {topic: mapping.name for topic, mapping in settings.inputs.items()} == {INPUT: "native"}
    assert settings.commit_interval_ms == 800 and not settings.from_end and engine.window_ms == 60_000
    assert opened == [("127.0.0.1:9092", {})] and built["run"].startswith("m.")


FILE = """
bootstrap = "file:9092"
group = "from-file"
name = "file-meter"
window = 120
commit-interval = 0.5
begin_at = "end"
input = ["a=openai-chat", "b"]
usage-topic = "rows"

[kafka]
"security.protocol" = "SASL_SSL"
"fetch.min.bytes" = 17
"""


def some_topics(broker: MemoryBroker) -> None:
    outputs(broker)
    for topic in ("a", "b", "c", "rows"):
        broker.create_topic(topic, 1, {"cleanup.policy": "compact"})


def test_a_file(call, broker, built, opened, tmp_path):
    some_topics(broker)
    path = tmp_path / "meter.toml"
    path.write_text(FILE)
    code, _, err = call("meter", "--config", path, *QUIET)
    assert code == 0, err
    settings = built["settings"]
    assert (settings.name, settings.group, settings.usage_topic) == ("file-meter", "from-file", "rows")
    assert {topic: mapping.name for topic, mapping in settings.inputs.items()} == {"a": "openai-chat", "b": "native"}
    assert settings.commit_interval_ms == 500 and settings.from_end
    assert built["engine"].window_ms == 120_000
    assert opened == [("file:9092", {"security.protocol": "SASL_SSL", "fetch.min.bytes": "17"})]


def test_the_environment(call, broker, built, opened, monkeypatch):
    some_topics(broker)
    for name, value in {
        "GROUP": "from-env", "NAME": "env-meter", "WINDOW": "30", "BOOTSTRAP": "env:1", "INPUT": "a=openai-chat b",
        "KAFKA": "client.id=x", "DEVICE": "cpu", "LISTEN": "",
    }.items():  # fmt: skip
        monkeypatch.setenv(f"TOKENOMETER_METER_{name}", value)
    code, _, err = call("meter", "--listen", "")
    assert code == 0, err
    settings = built["settings"]
    assert (settings.name, settings.group) == ("env-meter", "from-env")
    assert set(settings.inputs) == {"a", "b"} and built["engine"].window_ms == 30_000
    assert opened == [("env:1", {"client.id": "x"})]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["meter", "verify", "rollup", "ledger", "synth", "replay", "demo"])
def test_the_variable_that_kafkas_users_know_is_honoured(call, opened, monkeypatch, tmp_path, command):
    (tmp_path / "log").write_text("{}\n")
    (tmp_path / "config").write_text('bootstrap = "config:1"\n')
    arguments = {
        "replay": [tmp_path / "log", "--to-kafka", "t"],
        "synth": ["--count", 1, "--to-kafka", "t"],
        "demo": ["--count", 1000, "--seconds", 0, *QUIET],
        "meter": QUIET,
        "ledger": ["--listen", "", "--database", tmp_path / "ledger.duckdb"],
        "rollup": ["--listen", ""],
    }.get(command, [])
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "known:1,known:2")
    call(command, *arguments)
    config = [] if command in ("synth", "replay", "demo") else ["--config", tmp_path / "config"]
    call(command, *arguments, *config)
    monkeypatch.setenv(f"TOKENOMETER_{command.upper()}_BOOTSTRAP", "ours:1")
    call(command, *arguments, *config)
    call(command, *arguments, *config, "--bootstrap", "line:1")
    assert [bootstrap for bootstrap, _ in opened] == ["known:1,known:2"] * 2 + ["ours:1", "line:1"]


def test_the_command_line_then_the_environment_then_the_file(call, broker, built, monkeypatch, tmp_path):
    some_topics(broker)
    path = tmp_path / "meter.toml"
    path.write_text('group = "file"\nname = "file"\nwindow = 120\n')
    monkeypatch.setenv("TOKENOMETER_METER_GROUP", "env")
    monkeypatch.setenv("TOKENOMETER_METER_NAME", "env")
    assert call("meter", "--config", path, "--name", "flag", *QUIET)[0] == 0
    assert (built["settings"].name, built["settings"].group) == ("flag", "env")
    assert built["engine"].window_ms == 120_000
    monkeypatch.setenv("TOKENOMETER_METER_CONFIG", str(path))
    monkeypatch.delenv("TOKENOMETER_METER_NAME")
    assert call("meter", *QUIET)[0] == 0
    assert (built["settings"].name, built["settings"].group) == ("file", "env")
    monkeypatch.setenv("TOKENOMETER_VERIFY_GROUP", "other")
    assert call("meter", *QUIET, "--group", "flag")[0] == 0
    assert built["settings"].group == "flag"


def test_inputs_of_the_command_line_replace_those_of_the_file(call, broker, built, tmp_path):
    some_topics(broker)
    path = tmp_path / "meter.toml"
    path.write_text('input = ["a", "b"]\n')
    assert call("meter", "--config", path, "--input", "c=anthropic", *QUIET)[0] == 0
    assert {topic: mapping.name for topic, mapping in built["settings"].inputs.items()} == {"c": "anthropic"}


@pytest.mark.parametrize(
    "written",
    [
        pytest.param(
            'security.protocol = "SSL"\nssl.ca.location = "ca"',
        ),
        '"security.protocol" = "SSL"\n"ssl.ca.location" = "ca"',
    ],
)
def test_librdkafka_settings_in_a_file(call, broker, built, opened, tmp_path, written):
    outputs(broker)
    path = tmp_path / "meter.toml"
    path.write_text(f"[kafka]\n{written}\n")
    assert call("meter", "--config", path, *QUIET)[0] == 0
    assert opened == [("127.0.0.1:9092", {"security.protocol": "SSL", "ssl.ca.location": "ca"})]


def test_an_unknown_setting_in_the_file_is_named(call, tmp_path):
    path = tmp_path / "meter.toml"
    path.write_text('grup = "x"\n')
    result = call("meter", "--config", path, *QUIET)
    assert_error(result, 2, "no such setting: grup")
    assert "meter.toml" in result[2] and "group" in result[2], "and the known ones are listed"
    for name in ("config", "help"):
        path.write_text(f'{name} = "x"\n')
        assert_error(call("meter", "--config", path, *QUIET), 2, f"no such setting: {name}")


@pytest.mark.parametrize(("text", "message"), [("group = ", "not TOML"), (None, "cannot be read")])
def test_a_file_that_cannot_be_read_is_named(call, tmp_path, text, message):
    path = tmp_path / "meter.toml"
    if text is not None:
        path.write_text(text)
    assert_error(call("meter", "--config", path, *QUIET), 2, message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--window", "0"], "--window"),
        (["--window", "soon"], "--window"),
        (["--commit-interval", "0.001"], "--commit-interval"),
        (["--commit-interval", "61"], "--commit-interval"),
        (["--dedup-horizon", "0"], "--dedup-horizon"),
        (["--max-future-skew", "-1"], "--max-future-skew"),
        (["--sketch-seed", "-1"], "--sketch-seed"),
        (["--begin-at", "middle"], "--begin-at"),
        (["--name", "a b"], "--name"),
        (["--name", "x" * 81], "--name"),
        (["--device", "tpu"], "--device"),
        (["--memory", "much"], "--memory"),
        (["--create-topics", "-1"], "--create-topics"),
        (["--replication", "0"], "--replication"),
        (["--log-format", "xml"], "--log-format"),
        (["--log-level", "loud"], "--log-level"),
        (["--kafka", "novalue"], "--kafka"),
        (["--kafka", "=x"], "--kafka"),
        (["--input", "inference-logs", "--input", "inference-logs=native"], "--input"),
        (["--input", "token-usage"], "--input"),
        (["--live-topic", "token-usage"], "token-usage"),
        (["--listen", "9464"], "--listen"),
        (["--listen", "127.0.0.1:http"], "--listen"),
        (["--grup", "x"], "--grup"),
    ],
)
def test_wrong_values_name_the_option(call, broker, built, arguments, message):
    outputs(broker)
    code, out, err = call("meter", "--device", "cpu", "--listen", "", *arguments)
    assert (code, out) == (2, "")
    last = err.splitlines()[-1]
    assert last.startswith("tokenometer: error: ") and message in last
    assert "settings" not in built or "--listen" in arguments, "nothing has begun"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('window = "soon"', "--window"),
        ("window = 0", "--window"),
        ('commit-interval = "often"', "--commit-interval"),
        ('begin-at = "middle"', "--begin-at"),
        ('kafka = ["novalue"]', "--kafka"),
    ],
)
def test_wrong_values_in_a_file_name_the_option(call, broker, built, tmp_path, text, message):
    outputs(broker)
    path = tmp_path / "meter.toml"
    path.write_text(text + "\n")
    assert_error(call("meter", "--config", path, *QUIET), 2, message)


def test_wrong_values_in_the_environment_name_the_option(call, monkeypatch):
    monkeypatch.setenv("TOKENOMETER_METER_WINDOW", "0")
    assert_error(call("meter", *QUIET), 2, "--window")


def test_an_unknown_mapping_is_named(call):
    assert_error(call("meter", *QUIET, "--input", f"{INPUT}=nativ"), 2, "did you mean native?")


# --- Topics ---


def said(err: str) -> str:
    return [line for line in err.splitlines() if line.startswith("tokenometer: error: ")][-1]


@pytest.mark.parametrize("missing", [USAGE, LIVE, REJECTED])
def test_a_missing_output_names_the_command_that_creates_it(call, broker, missing):
    for topic in {USAGE, LIVE, REJECTED} - {missing}:
        broker.create_topic(topic, 1, {"cleanup.policy": "compact"})
    code, out, err = call("meter", *QUIET, "--replication", 3)
    assert (code, out) == (1, "")
    for words in (
        f"topic {missing} is not there", "--create-topics", "kafka-topics.sh", f"--create --topic {missing} ",
        "--replication-factor 3",
    ):  # fmt: skip
        assert words in said(err)
    assert ("cleanup.policy=compact" in said(err)) == (missing == USAGE)


def test_a_missing_input_is_named_and_is_created_only_on_demand(call, broker):
    code, _, err = call("meter", *QUIET, "--input", "elsewhere")
    assert code == 1 and "topic elsewhere is not there; use --create-topics 6" in said(err)
    assert "kafka-topics.sh" in said(err) and "--create --topic elsewhere" in said(err)
    assert broker.topics(["elsewhere", USAGE]) == {"elsewhere": None, USAGE: None}
    assert call("synth", "--count", 5, "--to-kafka", "elsewhere", "--create-topics", 3)[0] == 0
    assert broker.topics(["elsewhere"])["elsewhere"].partitions == 3


def test_create_topics_creates_what_is_missing(call, broker, built):
    broker.create_topic(LIVE, 1, {"retention.ms": "1"})
    code, _, err = call("meter", *QUIET, "--create-topics", 6)
    assert code == 0, err
    states = broker.topics([USAGE, LIVE, REJECTED])
    assert {name: state.partitions for name, state in states.items()} == {USAGE: 6, LIVE: 1, REJECTED: 6}
    assert states[USAGE].settings["cleanup.policy"] == "compact"
    assert states[REJECTED].settings["cleanup.policy"] == "delete"
    assert states[LIVE].settings == {"retention.ms": "1"}, "what is there is left alone"
    assert {line["topic"] for line in log_lines(err) if line["message"] == "topic created"} == {USAGE, REJECTED}


@pytest.mark.parametrize(
    ("policy", "warned"), [("delete", True), ("compact", False), ("compact,delete", False), (None, True)]
)
def test_usage_rows_that_are_not_compacted_are_warned_of(call, broker, built, policy, warned):
    for topic in (LIVE, REJECTED):
        broker.create_topic(topic, 1, {})
    broker.create_topic(USAGE, 1, {"cleanup.policy": policy} if policy else {})
    code, _, err = call("meter", *QUIET)
    warnings = [line["message"] for line in log_lines(err) if line["level"] == "WARNING"]
    assert code == 0 and len(warnings) == warned
    if warned:
        assert "kafka-configs.sh" in warnings[0] and f"--topic {USAGE}" in warnings[0]


# --- Logs ---

SECRETS = [
    "sasl.password",
    "ssl.key.password",
    "ssl.keystore.password",
    "ssl.key.pem",
    "sasl.oauthbearer.client.secret",
    "sasl.oauthbearer.client.credentials.client.secret",
    "sasl.jaas.config",
    pytest.param(
        "sasl.oauthbearer.assertion.private.key.passphrase",
    ),
]


@pytest.mark.parametrize("name", SECRETS)
def test_secrets_are_never_printed(call, broker, built, opened, name):
    outputs(broker)
    code, out, err = call("meter", *QUIET, "--kafka", f"{name}=hunter2=x", "--kafka", "client.id=me")
    assert code == 0 and opened == [("127.0.0.1:9092", {name: "hunter2=x", "client.id": "me"})]
    assert "hunter2" not in out + err
    assert settings_line(err)["kafka"] == {name: "***", "client.id": "me"}


def test_settings_are_logged_once_as_json(call, broker, built):
    outputs(broker)
    _, _, err = call("meter", *QUIET, "--group", "g", "--window", 7)
    line = settings_line(err)
    assert (line["setting.group"], line["setting.window"], line["setting.device"]) == ("g", 7, "cpu")
    assert line["level"] == "INFO" and line["name"] == "tokenometer"


# --- A run ---


def test_a_meter_meters_until_it_is_stopped(call, broker, until_committed):
    wanted = fill(broker)
    until_committed("billing")
    code, out, err = call(
        "meter", *CPU, "--group", "billing", "--create-topics", 2, "--listen", "127.0.0.1:0", "--commit-interval", 0.05
    )
    assert (code, out) == (0, ""), err
    found = streams.assert_exact(broker)
    assert found.rows == wanted.rows and found.tallies["duplicates"] > 0
    messages = [line["message"] for line in log_lines(err)]
    assert messages[-1] == "stopped" and "committed" in messages and "serving /metrics and /healthz" in messages
    commits = [line for line in log_lines(err) if line["message"] == "committed"]
    assert (
        commits[-1]["records"] == wanted.read
        and sum(line["dead_letters"] for line in commits) == wanted.rejected + wanted.conflicts
    )
    assert commits[-1]["tokens"] == sum(row[1] + row[4] for row in wanted.rows.values())
    assert sum(line["rows"] for line in commits) >= len(wanted.rows)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_after_a_last_commit(call, broker, number):
    fill(broker)
    before = signal.getsignal(number)

    def stop() -> None:
        deadline = time.monotonic() + 30
        while not broker._cluster.groups and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.5)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=stop)
    thread.start()
    code, _, err = call("meter", *QUIET, "--group", "billing", "--create-topics", 1, "--commit-interval", 60)
    thread.join()
    assert code == 0 and log_lines(err)[-1]["message"] == "stopped"
    streams.assert_exact(broker, upto=broker.committed("billing", [INPUT]))
    assert all_committed(broker, "billing"), "what was polled is committed before the end"
    assert signal.getsignal(number) == before


def test_from_the_end(call, broker, until_committed):
    fill(broker)
    until_committed("billing")
    code, _, err = call("meter", *QUIET, "--group", "billing", "--create-topics", 1, "--begin-at", "end")
    assert code == 0, err
    assert streams.outcome(broker).rows == {}
    assert all_committed(broker, "billing")


def test_a_port_in_use_says_what_to_do(call, broker, built):
    outputs(broker)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, err = call("meter", *CPU, "--listen", f"127.0.0.1:{port}")
    assert code == 1 and f"--listen 127.0.0.1:{port}" in said(err) and "choose another port" in said(err)


# --- verify ---


@pytest.fixture
def metered(call, broker, until_committed) -> oracle.Meter:
    wanted = fill(broker)
    until_committed("billing")
    arguments = "--group", "billing", "--create-topics", 1, "--commit-interval", 0.05
    assert call("meter", *QUIET, *arguments)[0] == 0
    return wanted


VERIFY = ("verify", "--group", "billing", "--processes", 1)


def test_verify_is_content_with_what_a_meter_wrote(call, metered, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = call(*VERIFY)
    assert (code, err) == (0, "")
    tokens = sum(row[1] + row[4] for row in metered.rows.values())
    assert out.startswith(f"clean: {tokens:,} tokens in {metered.counted:,} requests accounted for exactly")
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("by", [1, -1])
def test_verify_exits_with_1_where_one_token_differs(call, broker, metered, by):
    key, value, _ = streams.read_topic(broker, USAGE, keys=True)[-1]
    row = orjson.loads(value)
    row["output_tokens"] += by
    row["total_tokens"] += by
    broker.append(USAGE, [orjson.dumps(row)], [key])
    code, out, _ = call(*VERIFY)
    assert code == 1 and out.startswith("NOT clean: 1 of")
    assert row["user"] in out and row["model"] in out, "the differing key"


def test_verify_takes_its_settings_from_a_file(call, metered, tmp_path):
    path = tmp_path / "verify.toml"
    path.write_text('group = "billing"\nprocesses = 1\n')
    assert call("verify", "--config", path)[0] == 0


def test_verify_of_a_group_that_committed_nothing(call, broker):
    outputs(broker)
    fill(broker)
    code, out, err = call("verify", "--group", "nobody", "--processes", 1)
    assert (code, out) == (1, "") and "nobody" in said(err)


def test_verify_goes_on_since_a_checkpoint(call, broker, metered, until_committed, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    file = tmp_path / "audit"
    code, out, err = call(*VERIFY, "--checkpoint", file)
    assert (code, err) == (0, "") and "Checkpoint" in out and file.exists()
    broker.append(INPUT, LOG[:100], None, [START_MS] * 100)
    assert call("meter", *QUIET, "--group", "billing", "--commit-interval", 0.05)[0] == 0
    code, out, err = call(*VERIFY, "--since", file, "--checkpoint", file)
    assert (code, err) == (0, "") and max(map(len, out.splitlines())) <= 80
    assert re.match(
        r"clean: [0-9,]+ tokens in [0-9,]+ requests accounted for exactly since", text := " ".join(out.split())
    )
    assert f"offsets of {INPUT}/0 from" in text and "100 = " in text
    assert f"{len(LOG) + 100} records" in text and "the clean audits before this one" in text


def test_verify_leaves_no_checkpoint_where_one_token_differs(call, broker, metered, tmp_path):
    file = tmp_path / "audit"
    assert call(*VERIFY, "--checkpoint", file)[0] == 0
    kept = file.read_bytes()
    key, value, _ = streams.read_topic(broker, USAGE, keys=True)[-1]
    row = orjson.loads(value)
    broker.append(USAGE, [orjson.dumps(row | {"requests": row["requests"] + 1})], [key])
    for since in ((), ("--since", file)):
        code, out, err = call(*VERIFY, *since, "--checkpoint", file)
        assert (code, err) == (1, "") and out.startswith("NOT clean: 1 of")
        assert "No checkpoint was written: only a clean audit leaves one." in out and file.read_bytes() == kept


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--since", "nothing"), "nothing: there is no such file: make the first one with --checkpoint"),
        (("--since", "damaged"), "damaged: the file is damaged: audit without --since, and leave a new one"),
        (("--checkpoint", "no/where"), "no/where: there is no folder"),
        (("--since", "audit", "--dedup-horizon", 5), "made with --dedup-horizon 600,000 ms, and now it is 5,000 ms"),
        (("--since", "audit", "--input", f"{INPUT}=openai-chat"), f"the mapping of {INPUT} was another one"),
    ],
)
def test_verify_says_what_is_wrong_with_a_checkpoint(call, metered, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert call(*VERIFY, "--checkpoint", "audit")[0] == 0
    (tmp_path / "damaged").write_bytes((tmp_path / "audit").read_bytes()[:-1])
    code, out, err = call(*VERIFY, *arguments)
    assert (code, out) == (1, "") and message in said(err)


# --- synth and replay into a topic ---


def lines_of(broker: MemoryBroker) -> list[bytes]:
    found = []
    for place, extent in broker.extents([INPUT]).items():
        for messages in broker.read(place, extent.begin, extent.end):
            found += [text for value in messages.values for text in value.split(b"\n")]
    return sorted(found)


@pytest.mark.parametrize("each", [1, 7])
def test_synth_goes_into_a_topic(call, broker, opened, each):
    code, out, err = call(
        "synth", "--count", 500, "--seed", 4, "--malformed", 0.1, "--to-kafka", INPUT, "--lines", each,
        "--bootstrap", "there:1", "--kafka", "linger.ms=5",
    )  # fmt: skip
    made = b"".join(synth.generate(Profile(500, seed=4, malformed=0.1))).splitlines()
    assert (code, out) == (0, "") and err.startswith(f"{INPUT}: 500 records in ")
    assert lines_of(broker) == sorted(made) and opened == [("there:1", {"linger.ms": "5"})]


def test_replay_goes_into_a_topic(call, broker, tmp_path):
    for name, lines in (("a.ndjson", LOG[:200]), ("b.ndjson", LOG[200:])):
        (tmp_path / name).write_bytes(b"\n".join(lines) + b"\n")
    code, _, err = call("replay", tmp_path / "a.ndjson", tmp_path / "b.ndjson", "--to-kafka", INPUT, "--lines", 10)
    assert code == 0 and f"{len(LOG)} records" in err
    assert lines_of(broker) == sorted(LOG)


def test_records_that_are_keyed_by_their_bytes_are_told(call, broker, tmp_path):
    log = tmp_path / "log.ndjson"
    log.write_bytes(b'{"id":1}\n{"id":2}\n{"user":"u"}\n{\n')
    code, _, err = call("replay", log, "--to-kafka", INPUT)
    assert code == 0 and "2 records without a user and a request id, as mapping native reads them" in err
    log.write_bytes(b'{"user":"u"}\n{"request_id":"r"}\n')
    assert "without a user" not in call("replay", log, "--to-kafka", INPUT)[2]


def test_what_goes_into_a_topic_comes_out_metered(call, broker, until_committed):
    now = int(np.datetime64("now", "ms").astype(int))
    assert call("synth", "--count", 400, "--start", now, "--duplicates", 0.1, "--to-kafka", INPUT, "--lines", 5)[0] == 0
    until_committed("billing")
    assert call("meter", *QUIET, "--group", "billing", "--create-topics", 1)[0] == 0
    assert streams.assert_exact(broker).tallies["duplicates"] > 0
    assert call(*VERIFY)[0] == 0


def test_speed_takes_its_time(call, broker):
    began = time.monotonic()
    code, _, _ = call(
        "synth", "--count", 20, "--rate", 40, "--late", 0, "--bursts", 0, "--to-kafka", INPUT, "--speed", 2
    )
    assert code == 0 and 0.15 <= time.monotonic() - began < 5
    assert len(lines_of(broker)) == 20


@pytest.mark.parametrize("start", [None, "2027-01-01T00:00:00Z"])
def test_a_log_that_is_played_begins_now_unless_a_time_is_named(call, broker, start):
    began = time.time_ns() // 1_000_000
    played = ["synth", "--count", 20, "--rate", 1000, "--late", 0, "--malformed", 0, "--to-kafka", INPUT, "--speed", 9]
    assert call(*played, *(["--start", start] if start else []))[0] == 0
    first = max(json.loads(text)["timestamp"] for text in lines_of(broker))
    assert (began - 1000 <= first <= time.time_ns() // 1_000_000 + 1000) == (start is None)
    assert (1_798_761_600_000 - 1000 <= first < 1_798_761_601_000) == (start is not None)


@pytest.mark.parametrize("command", [["synth", "--count", "5"], ["replay", "LOG"]])
def test_a_missing_topic_names_the_command_that_creates_it(call, tmp_path, command):
    (tmp_path / "log").write_bytes(b"{}\n")
    arguments = [str(tmp_path / "log") if word == "LOG" else word for word in command]
    code, out, err = call(*arguments, "--to-kafka", "nowhere")
    assert (code, out) == (1, "") and "nowhere is not there" in said(err) and "kafka-topics.sh" in said(err)


def test_a_missing_log_is_named_before_the_first_is_sent(call, broker, tmp_path):
    (tmp_path / "a").write_bytes(b"{}\n")
    assert_error(call("replay", tmp_path / "a", tmp_path / "none", "--to-kafka", INPUT), 1, "none: no such file")
    assert lines_of(broker) == []


# --- demo ---


def test_the_demo_runs_and_is_clean(call, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = call("demo", "--count", 20_000, "--device", "cpu", "--seconds", 0, "--listen", "127.0.0.1:0")
    assert (code, err) == (0, "")
    shown = out.splitlines()
    assert max(map(len, shown)) <= 80 and "…" not in out and "\x1b" not in out
    assert all(text == text.rstrip() for text in shown)
    assert sum(text.startswith("Dashboard http://127.0.0.1:") for text in shown) == 1
    assert sum(text.startswith("Metered ") for text in shown) == 1, "the last view only, where nobody watches"
    assert next(text for text in shown if text and "Dashboard" not in text).startswith("Speed "), "the first number"
    assert "20,000 of 20,000 committed, 20,000 sent" in out
    assert sum(text.startswith("clean: ") for text in shown) == 1 and "NOT clean" not in out
    [metered] = [text for text in shown if text.startswith("Metered ")]
    [clean] = [text for text in shown if text.startswith("clean: ")]
    assert metered.split()[1] == clean.split()[1], "the audit finds the tokens that the view shows"
    for words in ("Model", "gpt-4o-mini", "Chip", "H100-SXM5-80GB", "dead letters", "duplicates"):
        assert words in out


@pytest.mark.slow
def test_a_live_demo_has_the_rate_of_120_trillion_tokens_a_day_and_shows_the_arithmetic(call):
    profile = DemoCommand().profile()
    tokens = sum(json.loads(line)["input_tokens"] + json.loads(line)["output_tokens"] for line in sample_of(profile))
    assert profile.rate * tokens / 20_000 * 86_400 > 1.1 * TARGET_TOKENS_PER_DAY
    assert profile.start_ms == pytest.approx(time.time() * 1000, abs=60_000)
    code, out, _ = call("demo", "--count", 20_000, "--seconds", 1, "--device", "cpu", "--listen", "")
    assert code == 0 and "clean: " in out
    [metered] = [text for text in out.splitlines() if text.startswith("Metered ")]
    speed = out[out.index("Speed ") : out.index("Metered ")].replace("\n", " ")
    found = re.search(
        r"([\d.]+) ([GT]) tokens a day, .* of 120 T: +([\d.]+) k records/s x ([\d,]+) tokens x 86,400 s", speed
    )
    assert found, speed
    shown = float(found[1]) * {"G": 1e9, "T": 1e12}[found[2]]
    assert float(found[3]) * 1000 * int(found[4].replace(",", "")) * 86_400 == pytest.approx(shown, rel=0.02)
    assert int(found[4].replace(",", "")) == round(int(metered.split()[1].replace(",", "")) / 20_000)


def sample_of(profile: Profile) -> list[bytes]:
    return b"".join(synth.generate(replace(profile, records=20_000, malformed=0))).splitlines()


def test_the_paced_demo_is_an_hour_in_half_a_minute():
    paced, fast = DemoCommand(pace=True), DemoCommand(seconds=0)
    assert (paced.records, paced.speed) == (1_000_000, 120) and fast.speed is None and DemoCommand().speed == 1
    for command in (paced, fast):
        assert command.profile().start_ms == pytest.approx(time.time() * 1000 - 3_600_000, abs=60_000)
        assert command.profile().records == pytest.approx(3600 * command.profile().rate)


def test_a_demo_that_is_told_to_end_does_not_wait_for_the_next_records_of_its_log(call):
    """Its log takes a day; who does not end hangs here."""
    thread = threading.Timer(3.0, os.kill, (os.getpid(), signal.SIGTERM))
    thread.start()
    code, out, _ = call("demo", "--count", 20_000, "--seconds", 86_400, "--device", "cpu", "--listen", "")
    thread.join()
    assert code == 0 and "clean: " in out


@pytest.mark.parametrize(("count", "wanted"), [(1000, 500_000), (8_589_934, 4_294_967_000), (8_589_935, 4 << 30)])
def test_a_demo_takes_its_memory_before_the_log_begins_but_not_more_than_four_gib(count, wanted):
    assert DemoCommand(count=count).reserved_bytes == wanted


def test_a_demo_takes_no_more_than_half_of_the_memory_that_is_free(monkeypatch):
    taken = []
    monkeypatch.setattr(
        "tokenometer.processor.broker.memory.MemoryBroker.reserve", lambda broker, size: taken.append(size)
    )
    monkeypatch.setattr("tokenometer.processor.cli.demo._free_bytes", lambda: 1_000_000)
    DemoCommand(count=1000).broker()
    DemoCommand(count=1001).broker()
    assert taken == [500_000, 500_000]


def test_a_demo_is_as_large_as_one_asks_for(call):
    assert_error(call("demo", "--count", 10), 2, "--count")


def test_help_fits_and_names_every_command(call, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = call("--help")
    for command in ("meter", "verify", "demo"):
        assert command in out
        code, text, err = call(command, "--help")
        assert (code, err) == (0, "") and f"Usage: tokenometer {command}" in text
        assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("form", ["json", "text"])
def test_libraries_warn_in_the_same_form_and_failures_have_their_place(form, capsys):
    running.start_logging(LogFormat(form))
    logging.getLogger("aiokafka.consumer").info("not for operators")
    try:
        raise ValueError("odd")
    except ValueError:
        logging.getLogger("faust.app").exception("it failed")
    said = capsys.readouterr().err
    assert "not for operators" not in said and "ValueError: odd" in said and "it failed" in said
    if form == "json":
        assert json.loads(said)["level"] == "ERROR"


def test_meters_of_one_host_have_names_of_their_own_and_the_same_ones_again():
    with cli_meter.own_name("host") as first, cli_meter.own_name("host") as second:
        assert (first, second) == ("host", "host-2")
        with cli_meter.own_name("other") as other:
            assert other == "other"
    with cli_meter.own_name("host") as again:
        assert again == "host"


def test_a_second_meter_of_a_host_says_what_its_name_is(call, broker, built, monkeypatch):
    monkeypatch.setattr(cli_meter.socket, "gethostname", lambda: "one-host")
    with cli_meter.own_name("one-host"):
        code, _, err = call("meter", *QUIET, "--create-topics", 1)
    assert code == 0 and "so this one is one-host-2" in err and built["settings"].name == "one-host-2"
