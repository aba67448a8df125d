"""The broker that the other tests stand on: it keeps what it was given, and leaves nothing behind."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import pytest
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition

from tests import kafka_server
from tests.kafka_lender import borrow
from tests.kafka_server import ENVIRONMENT, KafkaFailed, KafkaNotOwned, KafkaServer, KafkaToolMissing

pytestmark = pytest.mark.kafka

Topics = Callable[..., str]
SECONDS_MAX = 20


def transact(kafka: KafkaServer, topic: str, values: list[bytes], commit: bool) -> None:
    producer = Producer({"bootstrap.servers": kafka.bootstrap, "transactional.id": f"writer-of-{topic}"})
    producer.init_transactions(SECONDS_MAX)
    producer.begin_transaction()
    for value in values:
        producer.produce(topic, value)
    producer.flush(SECONDS_MAX)  # an aborted record must be in the log to be skipped there
    (producer.commit_transaction if commit else producer.abort_transaction)(SECONDS_MAX)


def read_committed(kafka: KafkaServer, topic: str) -> list[bytes]:
    """Partition 0 to its end."""
    consumer = Consumer(
        {
            "bootstrap.servers": kafka.bootstrap,
            "group.id": f"reader-of-{topic}",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
        }
    )
    values = []
    try:
        consumer.assign([TopicPartition(topic, 0, 0)])
        deadline = time.monotonic() + SECONDS_MAX
        while time.monotonic() < deadline:
            message = consumer.poll(0.2)
            if message is None:
                continue
            if message.error() is not None:
                break  # the end of the partition
            values.append(message.value() or b"")
        else:
            pytest.fail(f"{topic} has no end after {SECONDS_MAX} s")
    finally:
        consumer.close()
    return values


def await_end(pid: int) -> None:
    deadline = time.monotonic() + SECONDS_MAX
    while time.monotonic() < deadline:
        try:
            # A zombie is an end too: who reaps orphans differs between machines.
            if pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except (FileNotFoundError, ProcessLookupError):
            return
        time.sleep(0.05)
    pytest.fail(f"process {pid} still runs after {SECONDS_MAX} s")


def assert_nothing_listens(bootstrap: str) -> None:
    host, port = bootstrap.split(":")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), timeout=5).close()


def test_committed_transactions_are_read_and_aborted_ones_are_not(kafka: KafkaServer, topics: Topics) -> None:
    topic = topics()
    transact(kafka, topic, [b"a", b"b"], commit=True)
    transact(kafka, topic, [b"lost"], commit=False)
    transact(kafka, topic, [b"c"], commit=True)
    assert read_committed(kafka, topic) == [b"a", b"b", b"c"]


def test_a_message_of_two_mebibytes_fits(kafka: KafkaServer, topics: Topics) -> None:
    topic = topics()
    producer = Producer({"bootstrap.servers": kafka.bootstrap, "message.max.bytes": 4 << 20})
    failures = []
    producer.produce(topic, b"x" * (2 << 20), on_delivery=lambda error, _: failures.append(error))
    producer.flush(SECONDS_MAX)
    assert failures == [None]


def test_a_topic_that_nobody_made_is_an_error(kafka: KafkaServer) -> None:
    # Clients wait for new topics to become known; here nothing is to come.
    producer = Producer({"bootstrap.servers": kafka.bootstrap, "topic.metadata.propagation.max.ms": 0})
    failures = []
    producer.produce("never-made", b"x", on_delivery=lambda error, _: failures.append(error))
    producer.flush(SECONDS_MAX)
    assert [error.code() for error in failures if error] in (
        [KafkaError.UNKNOWN_TOPIC_OR_PART],
        [KafkaError._UNKNOWN_TOPIC],
    )


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_data_and_address_survive(owned: KafkaServer, topics: Topics, end: str) -> None:
    topic = topics()
    transact(owned, topic, [b"a", b"b"], commit=True)
    bootstrap, pid = owned.bootstrap, owned.pid
    assert pid is not None
    try:
        getattr(owned, end)()
        await_end(pid)
        assert_nothing_listens(bootstrap)
    finally:
        owned.start()
    assert owned.bootstrap == bootstrap
    transact(owned, topic, [b"c"], commit=True)
    assert read_committed(owned, topic) == [b"a", b"b", b"c"]


@pytest.fixture
def by_hand(owned: KafkaServer, tmp_path: pathlib.Path) -> Iterator[tuple[subprocess.Popen[str], str, int]]:
    """`make kafka`, as a person starts it: the process, the broker's address and the broker's process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.kafka_server", "--quick", "--data", str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Where a shell has us in the background, SIGINT is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    pid = None
    try:
        lines = iter(process.stdout.readline, "")
        bootstrap = next(line for line in lines if ENVIRONMENT in line).rpartition("=")[2].strip()
        pid = broker_of(tmp_path)
        yield process, bootstrap, pid
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def broker_of(data_dir: pathlib.Path) -> int:
    for entry in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            command = entry.read_bytes().split(b"\0")
            if b"kafka.Kafka" in command and f"{data_dir}/server.properties".encode() in command:
                return int(entry.parent.name)
    pytest.fail(f"no broker with its data in {data_dir}")


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda end: end.name)
def test_no_broker_outlives_who_started_it(
    by_hand: tuple[subprocess.Popen[str], str, int], end: signal.Signals
) -> None:
    process, bootstrap, pid = by_hand
    process.send_signal(end)
    status = process.wait(SECONDS_MAX)
    assert status == (-signal.SIGKILL if end == signal.SIGKILL else 0)
    await_end(pid)
    assert_nothing_listens(bootstrap)


LENDING = """
import sys
from tests.kafka_lender import Lender
lender = Lender()
print(lender.address, flush=True)
sys.stdin.readline()
lender.close()
"""


@pytest.mark.parametrize("end", ["close", "kill"])
def test_one_broker_is_lent_to_all_who_ask_and_ends_with_its_lender(ours: KafkaServer, end: str) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="lent-") as folder,  # a socket's path has to be short
        subprocess.Popen(
            [sys.executable, "-c", LENDING],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "TMPDIR": folder},
        ) as process,
    ):
        assert process.stdin is not None and process.stdout is not None
        try:
            address = process.stdout.readline().decode().strip()
            bootstrap = borrow(address)
            assert borrow(address) == bootstrap != ours.bootstrap
            [data] = pathlib.Path(folder).glob("tokenometer-kafka-*")
            pid = broker_of(data)
            borrower = KafkaServer(bootstrap=bootstrap)
            borrower.start()
            with pytest.raises(KafkaNotOwned):
                borrower.stop()
            if end == "close":
                process.stdin.write(b"\n")
                process.stdin.flush()
                assert process.wait(SECONDS_MAX) == 0
                assert os.listdir(folder) == []
        finally:
            process.kill()
        await_end(pid)
        assert_nothing_listens(bootstrap)


def test_close_leaves_no_process_and_no_data(owned: KafkaServer) -> None:
    with KafkaServer(quick=True) as second:
        pid, directory, bootstrap = second.pid, second.log_path.parent, second.bootstrap
        assert bootstrap != owned.bootstrap
    assert pid is not None
    await_end(pid)
    assert not directory.exists()


def test_a_start_that_fails_shows_the_log_and_leaves_no_process(owned: KafkaServer, tmp_path: pathlib.Path) -> None:
    taken = int(owned.bootstrap.rpartition(":")[2])
    server = KafkaServer(tmp_path, port=taken, quick=True)
    with pytest.raises(KafkaFailed, match="(?s)before it was ready.*server.log.*Address already in use"):
        server.start()
    assert server.pid is None


def test_classes_come_from_the_archive(owned: KafkaServer) -> None:
    java, jars = kafka_server.find_java(), kafka_server.resolve()
    archive = kafka_server.find_archive(java, jars)
    if not archive.exists() or not archive.stat().st_size:
        pytest.skip(f"{java} writes no archive of classes, or the cache cannot be written")
    command = [*owned._jvm(java, jars, archive), "-Xlog:class+load", "kafka.tools.StorageTool", "random-uuid"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    loaded = [line for line in said.splitlines() if " org.apache.kafka." in line]
    assert any(line.endswith("source: shared objects file (top)") for line in loaded), loaded


def test_a_broker_starts_whatever_the_archive_is(
    owned: KafkaServer, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    damaged = tmp_path / "damaged.jsa"
    damaged.write_bytes(b"no classes" * 1000)
    monkeypatch.setattr(kafka_server, "find_archive", lambda java, jars: damaged)
    with KafkaServer(quick=True) as second:
        assert second.pid != owned.pid


def test_an_archive_is_written_once_and_never_asked_of_a_java_that_wrote_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    made = []
    monkeypatch.setattr(kafka_server, "_version", lambda java: java)
    monkeypatch.setattr(kafka_server, "_make_archive", lambda archive: (made.append(archive.name), archive.touch()))
    ours, other = (kafka_server.find_archive(java, tmp_path / "jars") for java in ("java 17", "java 25"))
    assert ours != other and ours.exists() and other.exists()
    assert kafka_server.find_archive("java 17", tmp_path / "jars") == ours
    assert made == [ours.name, other.name]


def test_a_cache_that_cannot_be_written_costs_the_archive_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setattr(kafka_server, "_version", lambda java: java)
    assert not kafka_server.find_archive("java 17", tmp_path / "absent" / "jars").exists()


def test_missing_tools_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(KafkaToolMissing, match="Java 17"):
        kafka_server.find_java()
    with pytest.raises(KafkaToolMissing, match="Maven"):
        kafka_server.resolve()
    assert list(tmp_path.iterdir()) == []


def test_a_broker_of_someone_else_is_used_and_left_alone(kafka: KafkaServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, kafka.bootstrap)
    with KafkaServer() as same:
        assert (same.owned, same.bootstrap, same.pid) == (False, kafka.bootstrap, None)
        for end in (same.stop, same.kill, same.restart):
            with pytest.raises(KafkaNotOwned):
                end()
    kafka_server._await_answer(kafka.bootstrap, time.monotonic() + SECONDS_MAX)
