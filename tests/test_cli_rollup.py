"""The command `rollup` as far as it goes without a Kafka: its refusals, and security for two clients."""

import ssl

import pytest

from tokenometer.processor.broker import Refused
from tokenometer.processor.broker.memory import MemoryBroker
from tokenometer.processor.cli import __main__ as cli
from tokenometer.processor.cli import running
from tokenometer.processor.rollup import worker as rollup
from tokenometer.processor.rollup.worker import RollupSettings


@pytest.fixture
def broker(monkeypatch):
    broker = MemoryBroker()
    monkeypatch.setattr(running, "open_broker", lambda bootstrap, settings: broker)
    return broker


def run(capsys, *arguments: object) -> tuple[int, str]:
    code = cli.run(["rollup", *map(str, arguments)])
    return code, capsys.readouterr().err


def test_missing_topics_are_named_with_the_way_out(broker, capsys):
    for arguments in ([], ["--create-topics"]):
        code, err = run(capsys, *arguments)
        assert code == 1 and "token-live is not there: start a meter first" in err
    broker.create_topic("token-live", 1, {})
    code, err = run(capsys)
    assert code == 1 and "token-totals is not there; use --create-topics" in err


def test_topics_are_created_to_fit(broker):
    broker.create_topic("token-live", 5, {})
    settings = RollupSettings("app", "", {})
    rollup.create_topics(broker, settings, 1)
    found = broker.topics(["app-entries-changelog", "token-totals"])
    assert found["app-entries-changelog"].partitions == 5 and found["token-totals"].partitions == 1
    assert found["app-entries-changelog"].settings == rollup.CHANGELOG_SETTINGS


def test_added_partitions_are_refused(broker, capsys):
    broker.create_topic("token-live", 5, {})
    rollup.create_topics(broker, RollupSettings("tokenometer-rollup", "", {}), 1)
    broker.add_partitions("token-live", 6)
    code, err = run(capsys)
    assert code == 1 and "token-live has 6 partitions" in err and "another --app" in err


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "10.0.0.1:8321"])
def test_other_machines_need_a_token(broker, capsys, listen):
    broker.create_topic("token-live", 1, {})
    code, err = run(capsys, "--create-topics", "--listen", listen)
    assert code == 1 and "token" in err.splitlines()[-1]


def test_a_token_is_not_logged(broker, capsys):
    broker.create_topic("token-live", 1, {})
    code, err = run(capsys, "--create-topics", "--token", "a-secret-of-the-house", "--listen", "nowhere")
    assert code == 2 and "a-secret-of-the-house" not in err


@pytest.mark.parametrize(
    ("client", "words"),
    [
        ({"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "GSSAPI"}, "GSSAPI"),
        ({"security.protocol": "sasl_ssl"}, "is missing"),
        ({"security.protocol": "SSL", "ssl.ca.location": "/nowhere.pem"}, "the ssl"),
    ],
)
def test_security_that_only_one_client_can_do_is_refused(client, words):
    with pytest.raises(Refused, match=words):
        rollup._credentials(client)


def test_security_settings_hold_for_both_clients():
    assert rollup._credentials({}) is None
    sasl = {"sasl.mechanism": "SCRAM-SHA-256", "sasl.username": "u", "sasl.password": "p"}
    plain = rollup._credentials({"security.protocol": "sasl_plaintext", **sasl})
    assert (plain.protocol.value, plain.mechanism.value) == ("SASL_PLAINTEXT", "SCRAM-SHA-256")
    assert (plain.username, plain.password) == ("u", "p")
    secure = rollup._credentials({"security.protocol": "SASL_SSL", **sasl})
    assert secure.protocol.value == "SASL_SSL" and secure.ssl_context.verify_mode == ssl.CERT_REQUIRED
    assert secure.ssl_context.check_hostname
    lax = rollup._credentials({"security.protocol": "SSL", "ssl.endpoint.identification.algorithm": "none"})
    assert lax.protocol.value == "SSL" and not lax.context.check_hostname
