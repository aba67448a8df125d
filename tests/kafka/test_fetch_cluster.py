"""The fetcher and the writer of rows on a cluster of three brokers: leaders and coordinators that change while messages
are written, and nearer replicas."""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator

import pytest
from confluent_kafka import Producer

from tests.kafka.test_fetch import MOST, OWN, PATIENCE_SECONDS, Starter, lines, new_name, poll_values
from tests.kafka_server import ENVIRONMENT, KafkaServer, KafkaToolMissing, free_ports
from tests.write.test_packer import column
from tokenometer.processor.broker import BrokerError, Place
from tokenometer.processor.broker.kafka import KafkaBroker, KafkaConsumer

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

BROKERS = (1, 2, 3)
SOON = {"heartbeat.interval.ms": "300", "topic.metadata.refresh.interval.ms": "1000"}


@pytest.fixture(scope="module")
def brokers() -> Iterator[dict[int, KafkaServer]]:
    """The first is the controller too, and stays."""
    first, controller = free_ports()
    ports = {1: first, 2: free_ports()[0], 3: free_ports()[0]}
    made = {}
    for number, port in ports.items():
        own = f"CLIENT://127.0.0.1:{port}"
        settings = {
            "node.id": str(number),
            "broker.rack": f"rack-{number}",
            "replica.selector.class": "org.apache.kafka.common.replica.RackAwareReplicaSelector",
            "process.roles": "broker,controller" if number == 1 else "broker",
            "listeners": f"{own},CONTROLLER://127.0.0.1:{controller}" if number == 1 else own,
            "controller.quorum.voters": f"1@127.0.0.1:{controller}",
            "offsets.topic.replication.factor": "3",
            "transaction.state.log.replication.factor": "3",
        }
        made[number] = KafkaServer(port=port, settings=settings, quick=True)
    if not made[1].owned:
        pytest.skip(f"needs three brokers of its own, and {ENVIRONMENT} names another one")
    try:
        for server in made.values():
            server.start()
        yield made
    except KafkaToolMissing as error:
        pytest.skip(str(error))
    finally:
        for server in reversed(made.values()):
            server.close()


def leaders(broker: KafkaBroker, topic: str) -> list[int]:
    partitions = broker._admin.list_topics(topic, timeout=20).topics[topic].partitions
    return [partitions[number].leader for number in sorted(partitions)]


class Writing(threading.Thread):
    """Numbered messages, as many as it can in the given rhythm, until it is told to stop; none is lost."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        super().__init__(daemon=True)
        self.count, self.stopped, self.topic = 0, threading.Event(), topic
        self.producer = Producer({"bootstrap.servers": bootstrap, "enable.idempotence": True, "linger.ms": 5})

    def run(self) -> None:
        while not self.stopped.wait(0.01):
            for _ in range(50):
                self.producer.produce(self.topic, b"%d" % self.count, b"%d" % (self.count % 97))
                self.count += 1
            self.producer.poll(0)

    def stop(self) -> int:
        self.stopped.set()
        self.join()
        assert self.producer.flush(PATIENCE_SECONDS) == 0
        return self.count


def test_no_message_is_lost_or_repeated_while_leaders_change(brokers: dict[int, KafkaServer]) -> None:
    bootstrap = ",".join(server.bootstrap for server in brokers.values())
    broker, topic = KafkaBroker(bootstrap, OWN | SOON), new_name()
    broker.create_topic(topic, 6, {}, replication=3)
    before = leaders(broker, topic)
    assert set(before) == set(BROKERS)
    consumer = broker.consumer(new_name(), [topic], Starter())
    writing = Writing(bootstrap, topic)
    writing.start()
    seen: dict[Place, list[tuple[int, int]]] = defaultdict(list)

    def read(seconds: float, enough: int = 1 << 60) -> int:
        until = time.monotonic() + seconds
        while time.monotonic() < until and sum(map(len, seen.values())) < enough:
            for messages in consumer.poll(0.1, MOST):
                numbers = map(int, filter(None, messages.values))
                seen[messages.place] += zip(messages.offsets.tolist(), numbers, strict=True)
        return sum(map(len, seen.values()))

    read(3)
    for number, end in ((2, brokers[2].stop), (3, brokers[3].kill)):
        threading.Thread(target=end).start()
        read(6)
        assert number not in leaders(broker, topic)
        assert read(PATIENCE_SECONDS, len_of(seen) + 1_000) >= 1_000, "reading goes on"
        restart = threading.Thread(target=brokers[number].start)
        restart.start()
        while restart.is_alive():
            read(0.5)
    count = writing.stop()
    assert read(PATIENCE_SECONDS, count) == count
    assert sorted(number for rows in seen.values() for _, number in rows) == list(range(count))
    for rows in seen.values():
        assert rows == sorted(rows), "in the order of offsets, which is the order of writing"
    consumer.close()
    broker.close()


def test_rows_are_written_once_and_whole_while_leaders_change(brokers: dict[int, KafkaServer]) -> None:
    """A transaction whose commit failed is there as a whole or not at all, as the next producer has settled it."""
    bootstrap = ",".join(server.bootstrap for server in brokers.values())
    broker, topic, other, name = (
        KafkaBroker(bootstrap, {"tokenometer.rows": "own"} | SOON),
        *(new_name() for _ in range(3)),
    )
    for made, partitions in ((topic, 6), (other, 1)):
        broker.create_topic(made, partitions, {}, replication=3)
    done, failed, number = [], [], 0
    ends = iter([brokers[2].stop, brokers[2].start, brokers[3].kill, brokers[3].start])
    changing: threading.Thread | None = None
    producer = broker.producer(name)
    until = time.monotonic() + 2
    while True:
        try:
            producer.begin()
            producer.produce(other, [b"%d" % number])
            for part in range(4):
                values = [b"%d %d %s" % (number, 500 * part + i, b"x" * 300) for i in range(500)]
                producer.produce_columns(topic, column([b"%d" % i for i in range(500)]), column(values))
            producer.commit()
            done.append(number)
        except BrokerError:
            failed.append(number)
            producer.close()
            producer = broker.producer(name)
        number += 1
        if time.monotonic() > until and (changing is None or not changing.is_alive()):
            end = next(ends, None)
            if end is None:
                break
            changing = threading.Thread(target=end)
            changing.start()
            until = time.monotonic() + 4
    producer.close()
    found: dict[int, list[int]] = defaultdict(list)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not found.keys() >= set(done) or any(len(rows) < 2_000 for rows in found.values()):
        assert time.monotonic() < deadline, "what is committed shows after a while"
        found = transactions_in(broker, topic)
    assert set(found) <= set(done) | set(failed) and len(done) > 10
    assert all(sorted(rows) == list(range(2_000)) for rows in found.values())
    broker.close()


def transactions_in(broker: KafkaBroker, topic: str) -> dict[int, list[int]]:
    found: dict[int, list[int]] = defaultdict(list)
    for place, extent in broker.extents([topic]).items():
        for messages in broker.read(place, *extent):
            for value in filter(None, messages.values):
                transaction, row, _ = value.split()
                found[int(transaction)].append(int(row))
    return found


def len_of(seen: dict[Place, list[tuple[int, int]]]) -> int:
    return sum(map(len, seen.values()))


def sources(consumer: KafkaConsumer) -> set[int | None]:
    assert consumer._fetcher is not None
    with consumer._fetcher.changed:
        return {part.source(time.monotonic()) for part in consumer._fetcher.parts._parts.values()}


def test_a_replica_in_the_same_rack_is_read_and_left_when_it_is_gone(brokers: dict[int, KafkaServer]) -> None:
    bootstrap = ",".join(server.bootstrap for server in brokers.values())
    broker, topic = KafkaBroker(bootstrap, OWN | SOON | {"client.rack": "rack-2"}), new_name()
    broker.create_topic(topic, 3, {}, replication=3)
    broker.append(topic, lines(3_000))
    broker.flush()
    consumer = broker.consumer(new_name(), [topic], Starter())
    found = poll_values(consumer, 3_000)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while sources(consumer) != {2}:
        assert time.monotonic() < deadline, f"read from {sources(consumer)}"
        assert consumer.poll(0.1, MOST) == []
    broker.append(topic, lines(300, 3_000))
    broker.flush()
    found += poll_values(consumer, 300)
    brokers[2].stop()
    broker.append(topic, lines(300, 3_300))
    broker.flush()
    found += poll_values(consumer, 300)
    assert 2 not in sources(consumer)
    assert sorted(filter(None, found)) == sorted(lines(3_600))
    consumer.close()
    broker.close()
