"""The ACLs of docs/OPERATIONS.md are enough, none of them can be left out, and an error names what is missing."""

import contextlib
import pathlib
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pytest
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from tests import forked, streams
from tests.kafka_server import ENVIRONMENT, KafkaServer, KafkaToolMissing, free_ports
from tokenometer.processor.broker import Broker, Position
from tokenometer.processor.broker.kafka import KafkaBroker

pytestmark = pytest.mark.kafka

OPERATIONS = pathlib.Path(__file__).parents[2] / "docs" / "OPERATIONS.md"
NAME, GROUP = "meter-7", "tokenometer"
INPUT, USAGE, LIVE, REJECTED = "inference-logs", "token-usage", "token-live", "inference-logs-rejected"
ALERTS, STATE = "token-alerts", "token-alerts-state"
PRINCIPALS = ("meter", "verify", "ledger", "rollup", "alerts", "lake")
BUDGETS = '[[rule]]\nname = "of-{}"\ntokens = 7\n'  # a new one each time, so that there is something to announce
KINDS = {
    "topic": ResourceType.TOPIC,
    "group": ResourceType.GROUP,
    "transactional id": ResourceType.TRANSACTIONAL_ID,
}
OPERATIONS_BY_NAME = {
    "Read": AclOperation.READ,
    "Write": AclOperation.WRITE,
    "Describe": AclOperation.DESCRIBE,
    "DescribeConfigs": AclOperation.DESCRIBE_CONFIGS,
}
PATIENCE_SECONDS = 60
NOW_MS = int(time.time() * 1000)
LINE = b'{"timestamp":%d,"user":"u","model":"m","chip":"c","input_tokens":5,"output_tokens":2}' % NOW_MS


class Grant(NamedTuple):
    principal: str
    kind: str
    name: str
    operation: str

    def binding(self) -> AclBinding:
        return AclBinding(
            KINDS[self.kind], self.name, ResourcePatternType.LITERAL, f"User:{self.principal}", "*",
            OPERATIONS_BY_NAME[self.operation], AclPermissionType.ALLOW,
        )  # fmt: skip


def documented() -> list[Grant]:
    expected = "|".join(PRINCIPALS)
    rows = re.findall(rf"^\| ({expected}) \| (.+?) \| (.+?) \|$", OPERATIONS.read_text(), re.MULTILINE)
    grants = []
    for principal, resource, operations in rows:
        kind = next(kind for kind in KINDS if resource.startswith(kind))
        name = NAME if principal == "meter" and kind == "transactional id" else resource.split("`")[1]
        grants += [Grant(principal, kind, name, operation) for operation in operations.split(", ")]
    return grants


GRANTS = documented()


class Secure:
    """A broker that lets nobody in whom no ACL allows; ANONYMOUS, on the other listener, may do everything."""

    def __init__(self, server: KafkaServer, port: int) -> None:
        self.server, self.port = server, port
        self.admin = AdminClient({"bootstrap.servers": server.bootstrap})
        self.broker: Broker = KafkaBroker(server.bootstrap)

    def allow(self, grants: Sequence[Grant]) -> None:
        """These, and nothing else."""
        everything = AclBindingFilter(
            ResourceType.ANY, None, ResourcePatternType.ANY, None, None, AclOperation.ANY, AclPermissionType.ANY
        )
        for done in self.admin.delete_acls([everything]).values():
            done.result(20)
        for done in self.admin.create_acls([grant.binding() for grant in grants]).values():
            done.result(20)
        time.sleep(0.5)  # the authorizer hears of them from the metadata log

    def command(self, name: str, *arguments: str) -> "subprocess.Popen[str]":
        settings = {
            "security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN", "sasl.username": name,
            "sasl.password": f"secret-of-{name}",
        }  # fmt: skip
        client = [text for item in settings.items() for text in ("--kafka", "=".join(item))]
        return forked.Popen(
            [sys.executable, "-m", "tokenometer.processor.cli", name, "--bootstrap", f"127.0.0.1:{self.port}", *client]
            + list(arguments),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def behind(self) -> bool:
        committed: dict[object, Position | None] = dict(self.broker.committed(GROUP, [INPUT]))
        ends = self.broker.extents([INPUT])
        return any((at.offset if (at := committed[place]) else 0) < extent.end for place, extent in ends.items())


@pytest.fixture(scope="module")
def secure() -> Iterator[Secure]:
    (port, controller), sasl = free_ports(), free_ports()[0]
    users = " ".join(f'user_{name}="secret-of-{name}"' for name in PRINCIPALS)
    login = "org.apache.kafka.common.security.plain.PlainLoginModule required"
    settings = {
        "listeners": f"CLIENT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller},SASL://127.0.0.1:{sasl}",
        "controller.quorum.voters": f"1@127.0.0.1:{controller}",
        "listener.security.protocol.map": "CLIENT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL:SASL_PLAINTEXT",
        "sasl.enabled.mechanisms": "PLAIN",
        "listener.name.sasl.plain.sasl.jaas.config": f"{login} {users};",
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",
    }
    server = KafkaServer(port=port, settings=settings, quick=True)
    if not server.owned:
        pytest.skip(f"needs a broker with an authorizer, and {ENVIRONMENT} names another one")
    try:
        with server:
            made = Secure(server, sasl)
            for topic in (INPUT, USAGE, LIVE, REJECTED):
                made.broker.create_topic(topic, 2, {"cleanup.policy": "compact"} if topic == USAGE else {})
            made.broker.create_topic("tokenometer-rollup-entries-changelog", 2, {"cleanup.policy": "compact"})
            made.broker.create_topic("token-totals", 1, {})
            made.broker.create_topic(ALERTS, 1, {})
            made.broker.create_topic(STATE, 1, {"cleanup.policy": "compact"})
            yield made
            made.broker.close()
    except KafkaToolMissing as error:
        pytest.skip(str(error))


def ended(process: "subprocess.Popen[str]", seconds: float = PATIENCE_SECONDS) -> tuple[int, str]:
    with contextlib.closing(process.stdout):  # type: ignore[arg-type]
        try:
            text, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            text, _ = process.communicate()
            pytest.fail(f"it did not end: {text[-3000:]}")
    return process.returncode, text


def arguments(name: str, tmp_path: pathlib.Path) -> list[str]:
    if name == "meter":
        return ["--name", NAME, "--listen", "", "--device", "cpu", "--memory", "256MiB"]
    if name == "ledger":
        return ["--database", str(tmp_path / "ledger.duckdb"), "--once", "--listen", ""]
    if name == "alerts":
        (rules := tmp_path / "budgets.toml").write_text(BUDGETS.format(uuid.uuid4().hex))
        return [str(rules), "--listen", ""]
    if name == "lake":
        return ["--warehouse", str(tmp_path / "lake"), "--once"]
    return ["--listen", ""] if name == "rollup" else []


def test_the_documented_acls_are_enough(secure: Secure, tmp_path: pathlib.Path) -> None:
    secure.allow(GRANTS)
    secure.broker.append(INPUT, [LINE] * 50 + [b"{"])
    secure.broker.flush()
    meter = secure.command("meter", *arguments("meter", tmp_path))
    deadline = time.monotonic() + PATIENCE_SECONDS
    while secure.behind() and meter.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    meter.terminate()
    assert (found := ended(meter))[0] == 0, found
    for name in ("verify", "ledger", "lake"):
        assert (found := ended(secure.command(name, *arguments(name, tmp_path))))[0] == 0, found
    for name, topic in (("rollup", "token-totals"), ("alerts", ALERTS)):
        process = secure.command(name, *arguments(name, tmp_path))
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not streams.read_topic(secure.broker, topic) and process.poll() is None:
            assert time.monotonic() < deadline, f"nothing in {topic}"
            time.sleep(0.5)
        process.terminate()
        assert (found := ended(process))[0] == 0, found


@pytest.mark.parametrize(
    "left_out", [grant for grant in GRANTS if grant.principal != "rollup"], ids=lambda grant: "-".join(grant)
)
def test_a_missing_acl_ends_the_command_with_principal_operation_and_resource(
    secure: Secure, tmp_path: pathlib.Path, left_out: Grant
) -> None:
    """The name of the resource, and DESCRIBE where that is what is asked for first."""
    secure.allow([grant for grant in GRANTS if grant != left_out])
    secure.broker.append(INPUT, [LINE, b"{"])
    secure.broker.flush()
    code, text = ended(secure.command(left_out.principal, *arguments(left_out.principal, tmp_path)))
    assert code == 1, text
    last = text.strip().splitlines()[-1]
    operation = {"DescribeConfigs": "DESCRIBE_CONFIGS"}.get(left_out.operation, left_out.operation.upper())
    assert f"allow User:{left_out.principal} " in last and left_out.name in last, text
    assert operation in last or "DESCRIBE on" in last, text
