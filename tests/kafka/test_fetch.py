"""The fetcher on a real broker: every codec, and answers that are damaged, late or cut off on their way."""

import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewPartitions

from tests.kafka import proxy as damages
from tests.kafka.proxy import Proxy
from tests.kafka_server import (
    ENVIRONMENT,
    ONE_COMPILER,
    KafkaServer,
    KafkaToolMissing,
    find_java,
    free_ports,
    resolve,
)
from tokenometer.processor.broker import BEGINNING, BrokerError, Messages, Offset, Place, Refused
from tokenometer.processor.broker.kafka import KafkaBroker, KafkaConsumer
from tokenometer.processor.broker.kafka.fetch import fetcher, parts, walk

pytestmark = pytest.mark.kafka

PATIENCE_SECONDS = 60
MOST = 10_000
OWN = {"tokenometer.fetch": "own"}
CODECS = ("none", "gzip", "snappy", "lz4", "zstd")


class Starter:
    """A listener that starts at the beginning."""

    def assigned(self, places: Sequence[Place]) -> Mapping[Place, Offset]:
        return dict.fromkeys(places, BEGINNING)

    def revoked(self, places: Sequence[Place]) -> None:
        pass

    lost = revoked


def new_name() -> str:
    return f"test-{uuid.uuid4().hex[:12]}"


def offsets_of(found: Sequence[Messages]) -> list[tuple[int, int]]:
    return [(int(messages.offsets[0]), int(messages.offsets[-1])) for messages in found]


def poll_values(consumer: KafkaConsumer, count: int) -> list[bytes | None]:
    found: list[Messages] = []
    deadline = time.monotonic() + PATIENCE_SECONDS
    while sum(len(messages.values) for messages in found) < count:
        assert time.monotonic() < deadline, f"{offsets_of(found)} came; {consumer.last_error}"
        found += consumer.poll(0.1, MOST)
    return [value for messages in found for value in messages.values]


def lines(count: int, first: int = 0) -> list[bytes]:
    return [b'{"number": %d, "text": "%s"}' % (number, b"x" * (number % 90)) for number in range(first, first + count)]


@pytest.fixture
def opened() -> Iterator[Callable[..., KafkaConsumer]]:
    """`opened(bootstrap, topic, settings)`: a member of a new group."""
    closing: list[Any] = []

    def open_one(bootstrap: str, topic: str, settings: Mapping[str, str] = OWN, **beside: Any) -> KafkaConsumer:
        broker = KafkaBroker(bootstrap, {**settings, "heartbeat.interval.ms": "300"})
        consumer = broker.consumer(new_name(), [topic], Starter(), **beside)
        closing.extend([broker, consumer])
        return consumer

    yield open_one
    for each in reversed(closing):
        each.close()


# --- Codecs ---


@pytest.mark.parametrize("codec", CODECS)
def test_what_librdkafka_compresses_is_read(
    kafka: KafkaServer, topics: Callable[..., str], opened: Callable[..., KafkaConsumer], codec: str
) -> None:
    topic, wanted = topics(), lines(5_000)
    producer = Producer({"bootstrap.servers": kafka.bootstrap, "compression.type": codec, "linger.ms": 20})
    for number, value in enumerate(wanted):
        producer.produce(topic, value, b"%d" % number, headers=[("n", b"%d" % number)])
    assert producer.flush(PATIENCE_SECONDS) == 0
    consumer = opened(kafka.bootstrap, topic, keys=[topic], headers=[topic])
    assert poll_values(consumer, len(wanted)) == wanted


JAVA = """
import java.util.*;
import org.apache.kafka.clients.producer.*;
import org.apache.kafka.common.serialization.*;

public class Produce {
  public static void main(String[] arguments) {
    for (String codec : List.of("none", "gzip", "snappy", "lz4", "zstd")) {
      Map<String, Object> settings = new HashMap<>();
      settings.put("bootstrap.servers", arguments[0]);
      settings.put("compression.type", codec);
      settings.put("linger.ms", 20);
      try (var producer = new KafkaProducer<>(settings, new StringSerializer(), new StringSerializer())) {
        for (int i = 0; i < 2000; ++i)
          producer.send(new ProducerRecord<>(arguments[1], codec + " " + i + " " + "x".repeat(i % 90)));
      }
    }
  }
}
"""


def test_what_java_compresses_is_read(
    kafka: KafkaServer, topics: Callable[..., str], opened: Callable[..., KafkaConsumer], tmp_path: Any
) -> None:
    java = find_java()
    if shutil.which("javac") is None:
        pytest.skip("needs a JDK that runs a source file")
    topic = topics()
    (tmp_path / "Produce.java").write_text(JAVA)
    command = [java, ONE_COMPILER, "-cp", f"{resolve()}/*", str(tmp_path / "Produce.java"), kafka.bootstrap, topic]
    made = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert made.returncode == 0, made.stderr[-3000:]
    wanted = [f"{codec} {i} {'x' * (i % 90)}".encode() for codec in CODECS for i in range(2000)]
    assert poll_values(opened(kafka.bootstrap, topic), len(wanted)) == wanted


# --- A broker that answers badly ---


@pytest.fixture(scope="module")
def damaging() -> Iterator[tuple[KafkaServer, Proxy]]:
    """A broker that names the proxy as its address, so that every client comes through it."""
    between, (port, controller) = Proxy(), free_ports()
    settings = {
        "listeners": f"CLIENT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}",
        "controller.quorum.voters": f"1@127.0.0.1:{controller}",
        "advertised.listeners": f"CLIENT://127.0.0.1:{between.port}",
    }
    between.target = ("127.0.0.1", port)
    server = KafkaServer(port=port, settings=settings, quick=True)
    if not server.owned:
        pytest.skip(f"needs a broker that names another address, and {ENVIRONMENT} names one of its own")
    try:
        with server:
            yield server, between
    except KafkaToolMissing as error:
        pytest.skip(str(error))
    finally:
        between.close()


@pytest.fixture
def damaged(damaging: tuple[KafkaServer, Proxy]) -> Iterator[Proxy]:
    _, between = damaging
    yield between
    between.damage = between.versions = lambda answer: answer


@pytest.fixture
def filled(damaging: tuple[KafkaServer, Proxy], damaged: Proxy) -> str:
    """A topic with 3,000 lines in several batches."""
    broker, topic = KafkaBroker(damaging[0].bootstrap), new_name()
    broker.create_topic(topic, 1, {})
    for first in range(0, 3_000, 500):
        broker.append(topic, lines(500, first))
        broker.flush()
    broker.close()
    return topic


def now_and_then(damage: damages.Damage, times: int = 3) -> damages.Damage:
    """Every second answer with messages, so many times."""
    state = {"seen": 0, "done": 0}

    def damaged_or_not(answer: bytes) -> bytes | None:
        if not damages.batches_in(answer):
            return answer
        state["seen"] += 1
        if state["seen"] % 2 == 0 or state["done"] == times:
            return answer
        state["done"] += 1
        return damage(answer)

    return damaged_or_not


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (damages.wrong_checksum, "a batch has a wrong checksum"),
        (damages.cut_short, "a batch is cut short"),
        (lambda answer: None, "the broker has closed the connection"),
        (lambda answer: answer[: len(answer) // 2], "an answer ends early"),
        (lambda answer: b"\x7f" + answer[1:], "was answered"),
    ],
    ids=["wrong checksum", "cut short", "closed", "half an answer", "another answer"],
)
def test_a_damaged_answer_is_named_and_asked_for_again(
    damaging: tuple[KafkaServer, Proxy], damaged: Proxy, filled: str, opened: Callable[..., KafkaConsumer],
    damage: damages.Damage, said: str, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    damaged.damage = now_and_then(damage)
    consumer = opened(damaging[0].bootstrap, filled, OWN | {"fetch.message.max.bytes": "30000"})
    assert poll_values(consumer, 3_000) == lines(3_000)
    assert said in caplog.text


@pytest.mark.parametrize(
    ("damage", "said"),
    [(damages.wrong_checksum, "a wrong checksum"), (damages.cut_short, "cut short")],
    ids=["wrong checksum", "cut short"],
)
def test_a_batch_that_stays_broken_stops_the_reader_with_its_place(
    damaging: tuple[KafkaServer, Proxy], damaged: Proxy, filled: str, opened: Callable[..., KafkaConsumer],
    damage: Callable[..., bytes], said: str,
) -> None:  # fmt: skip
    """What comes before it is read, and when it is whole again, so is the rest."""
    damaged.damage = lambda answer: damage(answer, lowest=1_000)
    consumer = opened(damaging[0].bootstrap, filled, OWN | {"fetch.message.max.bytes": "30000"})
    before = poll_values(consumer, 1_000)
    with pytest.raises(BrokerError, match=f"{filled}-0: at offset 1000 a batch .*{said}, {parts.BROKEN_MAX} times"):
        poll_values(consumer, 1)
    damaged.damage = lambda answer: answer
    assert before == lines(1_000)
    consumer.seek({Place(filled, 0): Offset(1_000)})
    assert poll_values(consumer, 2_000) == lines(2_000, 1_000)


def test_a_broker_that_is_slow_is_named_and_asked_again(
    damaging: tuple[KafkaServer, Proxy], damaged: Proxy, filled: str, opened: Callable[..., KafkaConsumer],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    said = "did not come in time (socket.timeout.ms)"

    def late(answer: bytes) -> bytes:
        """Until it is named: the client, before it is paused, asks here too."""
        if damages.batches_in(answer) and said not in caplog.text:
            time.sleep(2.5)
        return answer

    damaged.damage = late
    consumer = opened(damaging[0].bootstrap, filled, OWN | {"socket.timeout.ms": "1500"})
    assert poll_values(consumer, 3_000) == lines(3_000)
    assert said in caplog.text


def test_a_reader_that_is_throttled_waits(
    damaging: tuple[KafkaServer, Proxy], damaged: Proxy, filled: str, opened: Callable[..., KafkaConsumer],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    damaged.damage = damages.throttled(400)
    damaged.pauses.clear()
    consumer = opened(damaging[0].bootstrap, filled, OWN | {"fetch.message.max.bytes": "30000"})
    assert poll_values(consumer, 3_000) == lines(3_000)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while all(len(pauses) < 2 for pauses in damaged.pauses):  # it goes on asking after the last line
        assert time.monotonic() < deadline
        consumer.poll(0.1, MOST)
    assert all(min(pauses) > 0.399 for pauses in damaged.pauses if len(pauses) > 1)
    assert "throttles us by 400 ms" in caplog.text


# --- What only librdkafka can read ---


def without_fetch_13(answer: bytes) -> bytes:
    """Each entry is a request's number, its lowest and its highest version; Fetch comes second."""
    at = answer.find(b"\0\1\0\4")
    assert at > 0
    return answer[: at + 4] + b"\0\x0c" + answer[at + 6 :]


def test_an_old_broker_is_read_by_librdkafka_which_is_said(
    damaging: tuple[KafkaServer, Proxy], damaged: Proxy, filled: str, opened: Callable[..., KafkaConsumer],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    damaged.versions = without_fetch_13
    consumer = opened(f"127.0.0.1:{damaged.port}", filled, {})
    assert poll_values(consumer, 3_000) == lines(3_000)
    assert "does not know Fetch 13" in caplog.text
    with pytest.raises(Refused, match="does not know Fetch 13"):
        poll_values(opened(f"127.0.0.1:{damaged.port}", filled, OWN), 3_000)


def test_a_batch_that_is_too_large_goes_to_librdkafka_where_it_lies(
    kafka: KafkaServer, topics: Callable[..., str], opened: Callable[..., KafkaConsumer],
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Other partitions stay with the fetcher; a seek and a pause reach both."""
    topic = topics(partitions=2)
    broker = KafkaBroker(kafka.bootstrap, {"compression.type": "gzip"})
    small, large = lines(100), [b"x" * 50_000] * 10
    for values in (small, large, small):
        broker.append(topic, values, [b"0"] * len(values))
        broker.flush()
    place = next(place for place, extent in broker.extents([topic]).items() if extent.end)
    broker.close()
    monkeypatch.setattr(fetcher, "Walker", lambda: walk.Walker(limit=100_000))
    consumer = opened(kafka.bootstrap, topic, {}, keys=[topic])
    assert poll_values(consumer, 210) == small + large + small
    assert f"librdkafka reads {topic}-{place.partition}" in caplog.text and "when it is decompressed" in caplog.text
    assert consumer.known_ends()[place] == 210
    consumer.seek({place: Offset(95)})
    assert poll_values(consumer, 115) == small[95:] + large + small
    consumer.seek({place: Offset(0)})
    consumer.pause([place])
    assert consumer.poll(0.5, MOST) == []
    consumer.resume([place])
    assert poll_values(consumer, 210) == small + large + small


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"security.protocol": "sasl_plaintext", "sasl.mechanism": "OAUTHBEARER"}, "the SASL mechanism OAUTHBEARER"),
        ({"security.protocol": "sasl_ssl", "sasl.mechanism": "GSSAPI"}, "the SASL mechanism GSSAPI"),
        ({"security.protocol": "ssl", "ssl.keystore.location": "x"}, "the setting ssl.keystore.location"),
    ],
)
def test_what_the_fetcher_cannot_do_is_said(settings: dict[str, str], reason: str) -> None:
    from tokenometer.processor.broker.kafka.fetch import Fetcher, Unable
    from tokenometer.processor.broker.kafka.messages import PLAIN

    with pytest.raises(Unable, match=reason):
        Fetcher({"bootstrap.servers": "127.0.0.1:1", **settings}, PLAIN)


def test_librdkafka_can_be_forced(
    kafka: KafkaServer, topics: Callable[..., str], opened: Callable[..., KafkaConsumer]
) -> None:
    topic = topics()
    broker = KafkaBroker(kafka.bootstrap)
    broker.append(topic, lines(100))
    broker.flush()
    broker.close()
    consumer = opened(kafka.bootstrap, topic, {"tokenometer.fetch": "librdkafka"})
    assert poll_values(consumer, 100) == lines(100) and consumer._fetcher is None
    with pytest.raises(Refused, match="one of auto, own, librdkafka, not 'mine'"):
        KafkaBroker(kafka.bootstrap, {"tokenometer.fetch": "mine"})


# --- Partitions that come later ---


def test_new_partitions_are_read(
    kafka: KafkaServer, topics: Callable[..., str], opened: Callable[..., KafkaConsumer], admin: AdminClient
) -> None:
    topic = topics()
    consumer = opened(kafka.bootstrap, topic, OWN | {"topic.metadata.refresh.interval.ms": "500"})
    broker = KafkaBroker(kafka.bootstrap)
    broker.append(topic, lines(10))
    broker.flush()
    assert poll_values(consumer, 10) == lines(10)
    admin.create_partitions([NewPartitions(topic, 3)])[topic].result(20)
    producer = Producer({"bootstrap.servers": kafka.bootstrap})
    for partition in range(3):
        producer.produce(topic, b"%d" % partition, partition=partition)
    assert producer.flush(PATIENCE_SECONDS) == 0
    assert sorted(filter(None, poll_values(consumer, 3))) == [b"0", b"1", b"2"]
    broker.close()
