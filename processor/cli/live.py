"""The command `live`: the whole service on one machine, beside a Kafka that is there."""

import importlib
import os
import pathlib
import secrets
import shlex
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

from typer import Option

from tokenometer.processor.broker import Broker
from tokenometer.processor.cli import running, topics
from tokenometer.processor.cli.common import needs, say
from tokenometer.processor.cli.options import Config, Device, DeviceName, KafkaSettings
from tokenometer.processor.demo.stack import Member, Stack
from tokenometer.processor.secret import reveal
from tokenometer.schemas.errors import TokenometerError

_DATABASE = "ledger.duckdb"
_PARTITIONS = 6
_DAY_SECONDS = 86_400
_MEMORY = "1GiB"  # of a meter; enough for 4,000 records a second, by docs/OPERATIONS.md
_PORTS = {"meter-1": 9464, "meter-2": 9466, "rollup": 8321, "ledger": 9465, "alerts": 9467}
_PRICES = """\
# Invented prices and costs, so that there is money to see. Change them and start again; docs/BILLING.md says how.
currency = "USD"

[[price]]                 # of a million tokens
model = "*"
input = "0.50"
cached_input = "0.05"
output = "4.00"

[[price]]
model = "gpt-4o-mini"
input = "0.15"
output = "0.60"

# What a million tokens cost on each chip.
"""
_CHIP_COSTS = {
    "H100-SXM5-80GB": "0.20", "H200-SXM-141GB": "0.22", "A100-SXM4-80GB": "0.31", "B200-SXM-192GB": "0.16",
    "MI300X-192GB": "0.19", "L40S-48GB": "0.42",
}  # fmt: skip
_BUDGETS = """\
# Budgets, whose alerts come to the dashboard. Change them and start again; docs/ALERTS.md says how.
prices = "prices.toml"

[[rule]]
name = "one-model"
model = "gpt-4o-mini"
tokens = {tokens}
per = "hour"

[[rule]]
name = "user-day"
each = "user"             # each user has a budget of its own
money = "{money}"
per = "day"
thresholds = [100]
"""
# The load has 1,930 tokens a request, and gpt-4o-mini a third of them: half of its budget is used after 90 seconds.
_BUDGET_TOKENS_OF_RATE = 100_000
_USER_MONEY_OF_RATE = 0.02


class FolderUnusable(TokenometerError):
    """The folder of --folder cannot be made or written."""


@dataclass(frozen=True)
class LiveCommand(KafkaSettings):
    config: Config = None
    rate: Annotated[int, Option(min=1, max=1_000_000, help="Records a second of the synthetic load.")] = 2000
    prefix: Annotated[
        str, Option(help="The names of all topics and groups begin with this, so that those of others are left alone.")
    ] = "live"
    folder: Annotated[
        str | None,
        Option(
            metavar="DIR",
            help="For the ledger's database, the token and the logs, which are made anew at each start, and for "
            "prices.toml and budgets.toml, which are kept.",
            show_default="a temporary one",
        ),
    ] = None  # fmt: skip
    device: DeviceName = Device.AUTO

    def topic(self, name: str) -> str:
        return f"{self.prefix}-{name}"


def live_command(command: LiveCommand) -> None:
    """Run the whole service beside a Kafka until Ctrl-C: two meters, a rollup with the dashboard, a ledger, budgets,
    and a synthetic load that begins now. All that it starts ends with it.

    Where there is no Kafka, `make live` starts one.

    Examples:
        tokenometer live --bootstrap 127.0.0.1:9092
        tokenometer live --rate 20000 --folder live
    """
    with needs("rollup,ledger"):
        for package in ("duckdb", "faust", "plotly", "psycopg"):
            importlib.import_module(package)
    with _folder(command.folder) as folder, running.stop_signals() as stopped, Stack() as stack:
        broker = running.broker_of(command)
        _make_topics(broker, command)
        broker.close()
        (folder / _DATABASE).unlink(missing_ok=True)  # of another run, perhaps on another Kafka
        token = folder / "token"
        _write_secret(token, secrets.token_hex(24))
        write_examples(folder, command.rate)
        say("Starting two meters, a rollup, a ledger, budgets and a load ...")
        ports = {name: _port(port) for name, port in _PORTS.items()}
        members = list(_members(command, folder, token, ports))
        stack.start(members, stopped)
        if not stopped():
            say(_addresses(command, token, ports) + _other_ports(ports))
            stack.watch(stopped)
            say("Ending ...")


def _make_topics(broker: Broker, command: LiveCommand) -> None:
    names = {topics.INPUT: {}, topics.USAGE: {"cleanup.policy": "compact"}, topics.LIVE: {}, topics.REJECTED: {}}
    there = broker.topics([command.topic(name) for name in names])
    for name, settings in names.items():
        if there[command.topic(name)] is None:
            broker.create_topic(command.topic(name), _PARTITIONS, settings)


def _members(
    command: LiveCommand, folder: pathlib.Path, token: pathlib.Path, ports: dict[str, int]
) -> Iterator[Member]:
    """Each is a command as a person would give it."""
    client = folder / "kafka.properties"
    _write_secret(client, "".join(f"{name}={value}\n" for name, value in reveal(command.client).items()))
    kafka = ["--bootstrap", command.bootstrap, "--kafka-file", str(client)]
    usage, live = ["--usage-topic", command.topic(topics.USAGE)], ["--live-topic", command.topic(topics.LIVE)]
    served = ["--token-file", str(token), "--log-format", "text"]
    prices = ["--prices", str(folder / "prices.toml")]
    alerts = ["--alerts-topic", command.topic(topics.ALERTS)]
    arguments = {
        meter: [
            "meter", *kafka, "--name", f"{command.prefix}-{meter}", "--group", command.prefix,
            "--input", command.topic(topics.INPUT), *usage, *live, "--rejected-topic", command.topic(topics.REJECTED),
            "--device", command.device, "--memory", _MEMORY, "--log-format", "text",
        ] for meter in ("meter-1", "meter-2")
    } | {
        "ledger": ["ledger", *kafka, "--database", str(folder / _DATABASE), *usage, *live, *prices, *served],
        "rollup": ["rollup", *kafka, "--app", command.topic("rollup"), *live, "--totals-topic",
                   command.topic(topics.TOTALS), "--create-topics", *alerts, *prices,
                   "--ledger", f"http://127.0.0.1:{ports['ledger']}", "--ledger-token-file", str(token), *served],
        "alerts": ["alerts", str(folder / "budgets.toml"), *kafka, "--name", command.topic("alerts"), *usage, *alerts,
                   "--state-topic", command.topic(topics.ALERTS_STATE), "--create-topics", "--log-format", "text"],
    }  # fmt: skip
    for name, words in arguments.items():
        listen = f"127.0.0.1:{ports[name]}"
        health = f"http://{listen}/healthz"
        yield Member(name, [*words, "--listen", listen], health, folder / f"{name}.log")
    load = [
        "synth", *kafka, "--to-kafka", command.topic(topics.INPUT), "--speed", "1", "--rate", str(command.rate),
        "--duration", str(_DAY_SECONDS), "--lines", "20", "--seed", str(secrets.randbelow(1 << 31)),
    ]  # fmt: skip
    yield Member("load", load, None, folder / "load.log")


def _addresses(command: LiveCommand, token: pathlib.Path, ports: dict[str, int]) -> str:
    where = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
    topic = command.topic
    return f"""
Dashboard  {where["rollup"]}/?token={token.read_text()}
Ledger     {where["ledger"]}/v1/status (with the token)
Metrics    {where["meter-1"]}/metrics  {where["meter-2"]}/metrics  {where["rollup"]}/metrics (with the token)
Token      {token}: curl -H "Authorization: Bearer $(cat {shlex.quote(str(token))})" {where["ledger"]}/v1/status
Kafka      {command.bootstrap}, {command.rate:,} records a second into {topic(topics.INPUT)}
Files      {token.parent}: the token, the logs of all, {_DATABASE}, prices.toml, budgets.toml

In another terminal:
  tokenometer top --url {where["rollup"]} --token-file {token}
  tokenometer usage --url {where["ledger"]} --token-file {token} --from 2026-01-01 --to 2100-01-01 --group-by model
  tokenometer verify --bootstrap {command.bootstrap} --group {command.prefix} --input {topic(topics.INPUT)} \
--usage-topic {topic(topics.USAGE)} --live-topic {topic(topics.LIVE)} --rejected-topic {topic(topics.REJECTED)}

Ctrl-C ends all of it.
"""


def _other_ports(ports: dict[str, int]) -> str:
    """Of those whose usual port somebody else has."""
    others = {name: port for name, port in ports.items() if port != _PORTS[name]}
    return "".join(f"Port {_PORTS[name]} is taken, so {name} uses {port}.\n" for name, port in others.items())


# --- Files and ports ---


@contextmanager
def _folder(given: str | None) -> Iterator[pathlib.Path]:
    if given is None:
        with tempfile.TemporaryDirectory(prefix="tokenometer-live-") as name:
            yield pathlib.Path(name)
        return
    try:
        pathlib.Path(given).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FolderUnusable(f"--folder {given}: cannot be made: {error.strerror}") from None
    yield pathlib.Path(given)


def _write_secret(path: pathlib.Path, text: str) -> None:
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)


def write_examples(folder: pathlib.Path, rate: int) -> None:
    """Prices, and budgets for a load of so many records a second; files that are there are kept."""
    costs = [f'[[chip_cost]]\nchip = "{chip}"\nper_million_tokens = "{cost}"\n' for chip, cost in _CHIP_COSTS.items()]
    _write_once(folder / "prices.toml", "\n".join([_PRICES, *costs]))
    money = max(1, round(rate * _USER_MONEY_OF_RATE))
    _write_once(folder / "budgets.toml", _BUDGETS.format(tokens=f"{rate * _BUDGET_TOKENS_OF_RATE:_}", money=money))


def _write_once(path: pathlib.Path, text: str) -> None:
    """A file that is there may be somebody's work."""
    if not path.exists():
        path.write_text(text, encoding="utf-8")


def _port(usual: int) -> int:
    """The usual one, or any that is free where it is taken."""
    for port in (usual, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            found: int = probe.getsockname()[1]
            return found
    raise running.AddressUnusable("no port of 127.0.0.1 is free")
