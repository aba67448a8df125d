"""The fetcher and the writer of rows on a broker with TLS, a password, or both, with certificates made for the test."""

import pathlib
import subprocess
import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import pytest
from confluent_kafka.admin import AdminClient, ScramCredentialInfo, ScramMechanism, UserScramCredentialUpsertion

from tests.kafka.test_fetch import OWN, Starter, lines, new_name, poll_values
from tests.kafka_server import ENVIRONMENT, KafkaServer, KafkaToolMissing, free_ports
from tests.write.test_packer import column
from tokenometer.processor.broker import Offset, Place, Refused
from tokenometer.processor.broker.kafka import KafkaBroker
from tokenometer.processor.broker.kafka.fetch import Fetcher
from tokenometer.processor.broker.kafka.messages import PLAIN as NOTHING_BESIDE

pytestmark = pytest.mark.kafka

PASSWORD = "a,b=ü secret"  # with what SCRAM's own syntax would trip over
PLAIN_PASSWORD = "a,b=secret"  # a file of Java's properties has no ü
ACCOUNT = "reader=1,x"
LISTENERS = {"TLS": "SSL", "MUTUAL": "SSL", "SASLTLS": "SASL_SSL", "SASL": "SASL_PLAINTEXT"}


class Secure(NamedTuple):
    plain: str
    addresses: dict[str, str]
    folder: pathlib.Path
    topic: str


def made_certificates(folder: pathlib.Path) -> None:
    """An authority, and what it has signed for the broker and for a client. Kafka wants keys in PKCS 8."""

    def openssl(*arguments: str) -> None:
        done = subprocess.run(["openssl", *arguments], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ca",
            "-days", "2")  # fmt: skip
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
    for name in ("broker", "client"):
        openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj",
                f"/CN={name}")  # fmt: skip
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days",
                "2", "-extfile", "names", "-out", f"{name}.pem")  # fmt: skip
    both = (folder / "broker.key").read_text() + (folder / "broker.pem").read_text()
    (folder / "broker-both.pem").write_text(both)
    openssl("pkcs8", "-topk8", "-in", "client.key", "-passout", "pass:sesame", "-out", "client-locked.key")


def server_settings(folder: pathlib.Path, ports: Mapping[str, int], plain: int, controller: int) -> dict[str, str]:
    listeners = {"CLIENT": plain, "CONTROLLER": controller, **ports}
    advertised = {name: port for name, port in listeners.items() if name != "CONTROLLER"}
    protocols = {"CLIENT": "PLAINTEXT", "CONTROLLER": "PLAINTEXT", **LISTENERS}
    plain_login = f'org.apache.kafka.common.security.plain.PlainLoginModule required user_reader="{PLAIN_PASSWORD}";'
    settings = {
        "listeners": ",".join(f"{name}://127.0.0.1:{port}" for name, port in listeners.items()),
        "advertised.listeners": ",".join(f"{name}://127.0.0.1:{port}" for name, port in advertised.items()),
        "controller.quorum.voters": f"1@127.0.0.1:{controller}",
        "listener.security.protocol.map": ",".join(f"{name}:{protocol}" for name, protocol in protocols.items()),
        "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(folder / "broker-both.pem"),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(folder / "ca.pem"),
        "listener.name.mutual.ssl.client.auth": "required",
    }
    for name in ("sasltls", "sasl"):
        settings[f"listener.name.{name}.plain.sasl.jaas.config"] = plain_login
        for kind in ("256", "512"):
            scram_login = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
            settings[f"listener.name.{name}.scram-sha-{kind}.sasl.jaas.config"] = scram_login
    return settings


def add_accounts(bootstrap: str) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap})
    for kind in (ScramMechanism.SCRAM_SHA_256, ScramMechanism.SCRAM_SHA_512):
        account = UserScramCredentialUpsertion(ACCOUNT, ScramCredentialInfo(kind, 4096), PASSWORD.encode())
        for future in admin.alter_user_scram_credentials([account]).values():
            future.result(20)
    time.sleep(0.5)  # the broker hears of them from the metadata log


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secure]:
    folder = tmp_path_factory.mktemp("certificates")
    made_certificates(folder)
    plain, controller = free_ports()
    ports = {name: free_ports()[0] for name in LISTENERS}
    server = KafkaServer(port=plain, settings=server_settings(folder, ports, plain, controller), quick=True)
    if not server.owned:
        pytest.skip(f"needs a broker of its own, and {ENVIRONMENT} names another one")
    try:
        with server:
            add_accounts(server.bootstrap)
            broker, topic = KafkaBroker(server.bootstrap, {"compression.type": "lz4"}), new_name()
            broker.create_topic(topic, 2, {})
            broker.append(topic, lines(20_000))
            broker.flush()
            broker.close()
            addresses = {name: f"127.0.0.1:{port}" for name, port in ports.items()}
            yield Secure(server.bootstrap, addresses, folder, topic)
    except KafkaToolMissing as error:
        pytest.skip(str(error))


def login(mechanism: str, name: str = ACCOUNT, password: str = PASSWORD) -> dict[str, str]:
    return {"sasl.mechanism": mechanism, "sasl.username": name, "sasl.password": password}


TLS = {"ssl.ca.location": "ca.pem"}
CERTIFICATE = {"ssl.certificate.location": "client.pem"}
WAYS = {
    "TLS": ("TLS", TLS),
    "TLS, its authority as text": ("TLS", {"ssl.ca.pem": "ca.pem"}),
    "TLS without looking at the certificate": ("TLS", {"enable.ssl.certificate.verification": "false"}),
    "TLS with a certificate of ours": ("MUTUAL", TLS | CERTIFICATE | {"ssl.key.location": "client.key"}),
    "TLS with a key that has a password": (
        "MUTUAL", TLS | CERTIFICATE | {"ssl.key.location": "client-locked.key", "ssl.key.password": "sesame"},
    ),
    "PLAIN": ("SASL", login("PLAIN", "reader", PLAIN_PASSWORD)),
    "PLAIN over TLS": ("SASLTLS", TLS | login("PLAIN", "reader", PLAIN_PASSWORD)),
    "SCRAM-SHA-256": ("SASL", login("SCRAM-SHA-256")),
    "SCRAM-SHA-512 over TLS": ("SASLTLS", TLS | login("SCRAM-SHA-512")),
}  # fmt: skip


def settings_of(secure: Secure, listener: str, given: Mapping[str, str]) -> dict[str, str]:
    settings = {"security.protocol": LISTENERS[listener].lower(), **given}
    for name, value in settings.items():
        if name.endswith(".location"):
            settings[name] = str(secure.folder / value)
        elif name == "ssl.ca.pem":
            settings[name] = (secure.folder / value).read_text()
    return settings


@pytest.mark.parametrize("way", WAYS)
def test_a_secured_broker_is_read(secure: Secure, way: str) -> None:
    listener, given = WAYS[way]
    broker = KafkaBroker(secure.addresses[listener], OWN | settings_of(secure, listener, given))
    consumer = broker.consumer(new_name(), [secure.topic], Starter())
    try:
        values = poll_values(consumer, 20_000)
        assert sorted(filter(None, values)) == sorted(lines(20_000))
    finally:
        consumer.close()
        broker.close()


@pytest.mark.parametrize(
    ("listener", "given", "said"),
    [
        ("SASL", login("SCRAM-SHA-256", password="wrong"), "refuses these credentials"),
        ("SASL", login("PLAIN", "reader", "wrong"), "refuses these credentials"),
        ("TLS", {}, "is not trusted: .*check the ssl"),
    ],
)
def test_who_is_not_let_in_hears_why(secure: Secure, listener: str, given: dict[str, str], said: str) -> None:
    """The group's client would say so too, and first."""
    settings = settings_of(secure, listener, given) | {"bootstrap.servers": secure.addresses[listener]}
    fetcher = Fetcher(settings, NOTHING_BESIDE)
    try:
        fetcher.add({Place(secure.topic, 0): Offset(0)})
        deadline = time.monotonic() + 30
        while (error := fetcher.poll(0.1, 10).error) is None:
            assert time.monotonic() < deadline, "nothing was said"
        with pytest.raises(Refused, match=said):
            raise error
    finally:
        fetcher.close()


@pytest.mark.parametrize("way", ["TLS with a certificate of ours", "PLAIN", "SCRAM-SHA-512 over TLS"])
def test_rows_are_written_in_each_way(secure: Secure, way: str) -> None:
    listener, given = WAYS[way]
    settings = settings_of(secure, listener, given) | {"tokenometer.rows": "own"}
    broker, topic = KafkaBroker(secure.addresses[listener], settings), new_name()
    broker.create_topic(topic, 1, {})
    producer = broker.producer(new_name())
    producer.begin()
    producer.produce_columns(topic, column(lines(3_000)), column(lines(3_000)))
    producer.commit()
    producer.close()
    place, deadline = Place(topic, 0), time.monotonic() + 20
    while (end := broker.extents([topic])[place].end) < 3_000:
        assert time.monotonic() < deadline, "a commit is answered before it shows"
        time.sleep(0.05)
    found = [value for messages in broker.read(place, Offset(0), end) for value in messages.values]
    assert found == lines(3_000)
    broker.close()
