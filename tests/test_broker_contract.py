"""What processor/broker promises, tested on the model and on a real Kafka alike.

No test waits for a span of time: it polls until what it wants has come, or fails after a minute. Topics, groups and
transactional ids are new ones for every test.
"""

import random
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from tokenometer.processor.broker import (
    BEGINNING,
    Broker,
    BrokerError,
    Column,
    Consumer,
    Dead,
    Fenced,
    Follower,
    Headers,
    Lost,
    Messages,
    Offset,
    OutOfRange,
    Place,
    Position,
    Refused,
    TopicMissing,
)
from tokenometer.processor.broker.memory import MemoryBroker

PATIENCE_SECONDS = 60
MOST = 10_000
# So that rebalances and new partitions are heard of soon.
CLASSIC = {"heartbeat.interval.ms": "300", "topic.metadata.refresh.interval.ms": "500"}
STRATEGIES = {
    "eager": CLASSIC | {"partition.assignment.strategy": "range,roundrobin"},
    "cooperative": CLASSIC | {"partition.assignment.strategy": "cooperative-sticky"},
    "kip848": {"group.protocol": "consumer", "topic.metadata.refresh.interval.ms": "500"},
}


class KafkaAdmin:
    """What an administrator does to a real cluster."""

    def __init__(self, bootstrap: str) -> None:
        from confluent_kafka.admin import AdminClient

        self._client = AdminClient({"bootstrap.servers": bootstrap})

    def delete_topic(self, name: str) -> None:
        _ended(self._client.delete_topics([name]))
        eventually(lambda: name not in self._client.list_topics(timeout=PATIENCE_SECONDS).topics)

    def add_partitions(self, name: str, total: int) -> None:
        from confluent_kafka.admin import NewPartitions

        _ended(self._client.create_partitions([NewPartitions(name, total)]))

    def delete_before(self, place: Place, offset: Offset) -> None:
        from confluent_kafka import TopicPartition

        _ended(self._client.delete_records([TopicPartition(place.topic, place.partition, offset)]))


def _ended(futures: Mapping[Any, Any]) -> None:
    for future in futures.values():
        future.result(PATIENCE_SECONDS)


class ByColumns:
    """A producer that writes columns, but for messages with headers, which columns have not."""

    def __init__(self, producer: Any) -> None:
        self._producer = producer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._producer, name)

    def produce(
        self,
        topic: str,
        values: Sequence[bytes],
        keys: Sequence[bytes] | None = None,
        headers: Sequence[Headers] | None = None,
    ) -> None:
        if headers is not None:
            return self._producer.produce(topic, values, keys, headers)
        self._producer.produce_columns(topic, _column(keys or [b""] * len(values)), _column(values))
        if writer := getattr(self._producer, "_writer", None):  # as librdkafka does with time, which tests wait for
            writer.push()


def _column(texts: Sequence[bytes]) -> Column:
    lengths = np.array([len(text) for text in texts], np.int64)
    return Column(np.frombuffer(b"".join(texts) or b" ", np.uint8), np.cumsum(lengths) - lengths, lengths)


class Cluster:
    """A broker and its administrator, and names that nobody else uses."""

    def __init__(
        self, broker: Broker, admin: Any, cooperative: bool, brokers_lead: bool = False, columns: bool = False
    ) -> None:
        """brokers_lead: groups are those of KIP-848. columns: transactions write with `produce_columns`."""
        self.broker = broker
        self.admin = admin
        self.cooperative = cooperative
        self.brokers_lead = brokers_lead
        self._columns = columns
        self._closing: list[Any] = []

    def topic(self, partitions: int = 1, **settings: str) -> str:
        name = self.name("topic")
        self.broker.create_topic(name, partitions, settings)
        return name

    def name(self, kind: str) -> str:
        return f"contract-{kind}-{uuid.uuid4().hex[:12]}"

    def consumer(
        self,
        group: str,
        topic: str | Sequence[str],
        listener: "Heard | None" = None,
        member: str | None = None,
        **beside: Sequence[str],
    ) -> Consumer:
        """Positions come from the group, or else from the partition's beginning."""
        heard = listener or Heard()
        topics = [topic] if isinstance(topic, str) else list(topic)
        consumer = self.broker.consumer(group, topics, heard, member, **beside)
        heard.consumer = consumer
        self._closing.append(consumer)
        return consumer

    def follower(self, starts: Mapping[Place, Offset], keys: bool = False) -> Follower:
        follower = self.broker.follow(starts, keys)
        self._closing.append(follower)
        return follower

    def producer(self, transactional_id: str) -> Any:
        producer = self.broker.producer(transactional_id)
        self._closing.append(producer)
        return ByColumns(producer) if self._columns else producer

    def put(self, topic: str, values: Sequence[bytes | None], keys: Sequence[bytes | None] | None = None) -> None:
        self.broker.append(topic, values, keys)
        self.broker.flush()

    def committed_values(self, place: Place) -> list[bytes | None]:
        begin, end = self.broker.extents([place.topic])[place]
        return values_of(self.broker.read(place, begin, end))

    def shows(self, place: Place, values: Sequence[bytes | None]) -> None:
        """Exactly these are committed. A transaction's end need not be in the partition when `commit` returns."""
        eventually(lambda: len(self.committed_values(place)) >= len(values))
        assert self.committed_values(place) == values

    def close(self) -> None:
        for closing in reversed(self._closing):
            closing.close()
        self.broker.close()


@pytest.fixture(
    params=[
        "memory-eager",
        "memory-cooperative",
        pytest.param("kafka-eager", marks=pytest.mark.kafka),
        pytest.param("kafka-cooperative", marks=pytest.mark.kafka),
        pytest.param("kafka-kip848", marks=pytest.mark.kafka),
        pytest.param("kafka-cooperative-librdkafka", marks=pytest.mark.kafka),
        pytest.param("kafka-kip848-librdkafka", marks=pytest.mark.kafka),
    ]
)
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Groups read by the fetcher, unless the parameter says that librdkafka does. With `eager` transactions write
    columns: on Kafka by requests of our own."""
    kind, assignor, *way = request.param.split("-")
    cooperative = assignor != "eager"
    if kind == "memory":
        memory = MemoryBroker(assignor=assignor)
        made = Cluster(memory, memory, cooperative, columns=not cooperative)
    else:
        from tokenometer.processor.broker.kafka import KafkaBroker

        bootstrap = request.getfixturevalue("kafka").bootstrap
        settings = STRATEGIES[assignor] | {"tokenometer.fetch": way[0] if way else "own", "tokenometer.rows": "own"}
        made = Cluster(
            KafkaBroker(bootstrap, settings),
            KafkaAdmin(bootstrap),
            cooperative,
            brokers_lead=assignor == "kip848",
            columns=not cooperative,
        )
    yield made
    made.close()


@pytest.fixture
def broker(cluster: Cluster) -> Broker:
    return cluster.broker


class Heard:
    """A listener that remembers what it was told, and starts where the group stands."""

    def __init__(self, start: Mapping[Place, Offset] | None = None) -> None:
        self.consumer: Consumer | None = None
        self.start = start
        self.events: list[tuple[str, tuple[Place, ...]]] = []
        self.on_revoked: Callable[[Sequence[Place]], None] = lambda places: None

    def assigned(self, places: Sequence[Place]) -> Mapping[Place, Offset]:
        self.events.append(("assigned", tuple(sorted(places))))
        if self.start is not None:
            return {place: self.start.get(place, BEGINNING) for place in places}
        assert self.consumer is not None
        committed = self.consumer.committed(places)
        return {place: position.offset if position else BEGINNING for place, position in committed.items()}

    def revoked(self, places: Sequence[Place]) -> None:
        self.events.append(("revoked", tuple(sorted(places))))
        self.on_revoked(places)

    def lost(self, places: Sequence[Place]) -> None:
        self.events.append(("lost", tuple(sorted(places))))

    def held(self) -> list[Place]:
        """What it must have, by what it was told. Nothing comes twice, nothing goes that had not come."""
        held: set[Place] = set()
        for kind, places in self.events:
            assert places, "a listener is told of some partitions, or not at all"
            if kind == "assigned":
                assert held.isdisjoint(places)
                held.update(places)
            else:
                assert held.issuperset(places)
                held.difference_update(places)
        return sorted(held)


# --- Helpers ---


def eventually(condition: Callable[[], Any]) -> Any:
    """The condition's first answer that is true; meanwhile it is asked again and again."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (answer := condition()):
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.005)
    return answer


def poll_until(consumers: Iterable[Consumer | Follower], condition: Callable[[list[Messages]], Any]) -> list[Messages]:
    """Poll these in turn, until what came so far is enough."""
    found: list[Messages] = []

    def enough() -> Any:
        for consumer in consumers:
            found.extend(consumer.poll(0.05, MOST))
        return condition(found)

    eventually(enough)
    return found


def poll_values(consumer: Consumer, count: int) -> list[bytes | None]:
    found = poll_until([consumer], lambda found: len(values_of(found)) >= count)
    assert len(values_of(found)) == count
    return values_of(found)


def values_of(found: Iterable[Messages]) -> list[bytes | None]:
    return [value for messages in found for value in messages.values]


def whole(found: Iterable[Messages]) -> Messages:
    """Of one partition; where it was cut is nobody's business."""
    parts = list(found)
    return Messages(
        parts[0].place,
        values_of(parts),
        np.concatenate([part.times for part in parts]),
        np.concatenate([part.offsets for part in parts]),
        [key for part in parts for key in part.keys or ()],
        [headers for part in parts for headers in part.headers or ()],
    )


def numbers(count: int, first: int = 0) -> list[bytes]:
    return [b"%d" % number for number in range(first, first + count)]


def joined(topic: str, partitions: int, *listeners: Heard) -> Callable[[list[Messages]], bool]:
    """Each partition is held by exactly one, and the shares are even."""

    def condition(found: list[Messages]) -> bool:
        shares = [listener.held() for listener in listeners]
        every = sorted(place for share in shares for place in share)
        assert len(every) == len(set(every)), "two members hold one partition"
        even = max(map(len, shares)) - min(map(len, shares)) <= 1
        return even and every == [Place(topic, partition) for partition in range(partitions)]

    return condition


# --- Topics ---


def test_a_topic_is_created_once(cluster: Cluster, broker: Broker) -> None:
    name, missing = cluster.name("topic"), cluster.name("topic")
    broker.create_topic(name, 3, {"cleanup.policy": "compact"})
    (first,) = broker.topics([name]).values()
    broker.create_topic(name, 5, {})
    states = broker.topics([name, missing])
    assert first is not None and first.partitions == 3 and first.settings["cleanup.policy"] == "compact"
    assert states == {name: first, missing: None}


def test_a_topic_made_anew_has_another_id(cluster: Cluster, broker: Broker) -> None:
    name = cluster.topic()
    cluster.put(name, [b"old"])
    before = broker.topics([name])[name]
    cluster.admin.delete_topic(name)
    assert broker.topics([name]) == {name: None}
    eventually(lambda: _created(broker, name))
    after = broker.topics([name])[name]
    assert before is not None and after is not None and before.id != after.id
    assert cluster.committed_values(Place(name, 0)) == []


def _created(broker: Broker, name: str) -> bool:
    try:
        broker.create_topic(name, 1, {})
    except BrokerError:  # a cluster may still be deleting the old one
        return False
    return broker.topics([name])[name] is not None


def test_a_missing_topic_is_said_to_be_missing(cluster: Cluster, broker: Broker) -> None:
    missing = cluster.name("topic")
    with pytest.raises(TopicMissing):
        broker.extents([missing])
    if cluster.brokers_lead:  # a subscription to what is not there waits; a meter's watch hears of it
        return
    consumer = cluster.consumer(cluster.name("group"), missing)
    with pytest.raises(TopicMissing):
        poll_until([consumer], lambda found: False)


# --- Appending and reading ---


def test_messages_are_read_as_they_were_written(cluster: Cluster, broker: Broker) -> None:
    topic = cluster.topic()
    place = Place(topic, 0)
    values, keys, times = [b"a", None, b"", b"d"], [b"k", b"gone", None, b""], [1_700_000_000_000 + i for i in range(4)]
    broker.append(topic, values, keys, times)
    broker.flush()
    assert broker.extents([topic]) == {place: (0, 4)}
    messages = whole(broker.read(place, BEGINNING, Offset(4), keys=True, headers=True))
    assert messages.place == place and messages.next_offset == 4
    assert list(messages.values) == values
    assert list(messages.keys or ()) == keys
    assert messages.times.tolist() == times and messages.times.dtype == "uint64"
    assert messages.offsets.tolist() == [0, 1, 2, 3] and messages.offsets.dtype == "int64"
    assert [list(headers) for headers in messages.headers or ()] == [[], [], [], []]
    assert all(bare.keys is None and bare.headers is None for bare in broker.read(place, BEGINNING, Offset(4)))


def test_messages_without_a_time_bear_the_time_of_their_writing(cluster: Cluster, broker: Broker) -> None:
    topic = cluster.topic()
    before = time.time() * 1000
    cluster.put(topic, [b"a"])
    (messages,) = broker.read(Place(topic, 0), BEGINNING, Offset(1))
    assert before - 1 <= messages.times[0] <= time.time() * 1000


def test_a_range_is_read_and_nothing_beyond(cluster: Cluster, broker: Broker) -> None:
    topic = cluster.topic()
    place = Place(topic, 0)
    for first in range(0, 30, 10):
        cluster.put(topic, numbers(10, first))
    for begin, end in [(0, 30), (0, 1), (29, 30), (9, 11), (5, 25), (7, 7), (30, 30)]:
        found = list(broker.read(place, Offset(begin), Offset(end)))
        assert values_of(found) == numbers(end - begin, begin)
        assert [offset for messages in found for offset in messages.offsets] == list(range(begin, end))


def test_a_range_that_is_not_there_is_refused(cluster: Cluster, broker: Broker) -> None:
    topic = cluster.topic()
    place = Place(topic, 0)
    cluster.put(topic, numbers(10))
    with pytest.raises(OutOfRange):
        list(broker.read(place, BEGINNING, Offset(11)))
    cluster.admin.delete_before(place, Offset(4))
    eventually(lambda: broker.extents([topic]) == {place: (4, 10)})
    with pytest.raises(OutOfRange):
        list(broker.read(place, Offset(3), Offset(10)))
    assert values_of(broker.read(place, Offset(4), Offset(10))) == numbers(6, 4)


def test_partitions_are_followed_as_they_grow(cluster: Cluster, broker: Broker) -> None:
    topic = cluster.topic(partitions=2)
    places = [Place(topic, partition) for partition in range(2)]
    cluster.put(topic, numbers(20), [b"%d" % (k % 5) for k in range(20)])
    held = {place: cluster.committed_values(place) for place in places}
    follower = cluster.follower({places[0]: Offset(1), places[1]: BEGINNING}, keys=True)
    found = poll_until([follower], lambda found: len(values_of(found)) >= 19)
    assert {place: values_of(m for m in found if m.place == place) for place in places} == {
        places[0]: held[places[0]][1:], places[1]: held[places[1]],
    }  # fmt: skip
    for messages in found:
        assert [int(key or b"-1") for key in messages.keys or ()] == [int(value) % 5 for value in messages.values]
    cluster.put(topic, [b"late", None], [b"k", b"k"])
    found = poll_until([follower], lambda found: len(values_of(found)) >= 2)
    assert values_of(found) == [b"late", None] and follower.poll(0, MOST) == []


def test_a_follower_sees_no_aborted_messages(cluster: Cluster, broker: Broker) -> None:
    topic = cluster.topic()
    follower = cluster.follower({Place(topic, 0): BEGINNING})
    producer = cluster.producer(cluster.name("id"))
    producer.begin()
    producer.produce(topic, [b"aborted"] * 3)
    after = _put_until_hidden(cluster, Place(topic, 0))
    before = values_of(follower.poll(0.1, MOST))  # what came before the transaction did
    assert before == numbers(len(before)), "what is undecided is not seen"
    producer.abort()
    with_transaction(cluster, topic, [b"z"])
    found = poll_until([follower], lambda found: len(before + values_of(found)) >= after + 1)
    assert before + values_of(found) == [*numbers(after), b"z"]


def test_a_follower_says_when_its_offset_is_gone(cluster: Cluster, broker: Broker) -> None:
    topic = cluster.topic()
    place = Place(topic, 0)
    cluster.put(topic, numbers(10))
    cluster.admin.delete_before(place, Offset(4))
    eventually(lambda: broker.extents([topic]) == {place: (4, 10)})
    with pytest.raises(OutOfRange):
        poll_until([cluster.follower({place: Offset(3)})], lambda found: found)


def test_equal_keys_share_a_partition(cluster: Cluster, broker: Broker) -> None:
    topic = cluster.topic(partitions=4)
    users = numbers(200)
    cluster.put(topic, users, users)
    with_transaction(cluster, topic, users, users)

    def read() -> dict[int, list[bytes | None]]:
        return {place.partition: cluster.committed_values(place) for place in broker.extents([topic])}

    eventually(lambda: sum(map(len, read().values())) == 400)
    found = read()
    assert sorted(found) == [0, 1, 2, 3] and all(found.values())
    for values in found.values():
        half = len(values) // 2
        assert values[:half] == values[half:] == sorted(values[:half], key=lambda value: int(value or 0))


@pytest.mark.parametrize("lines", [False, True])
def test_columns_are_messages_like_others(cluster: Cluster, broker: Broker, lines: bool) -> None:
    """They go where lists go, come between lists as they were written, and are the broker's once it has taken them."""
    plain, mixed = cluster.topic(partitions=3), cluster.topic(partitions=3)
    keys: list[bytes | None] = [b"k%d" % (number % 40) for number in range(300)]
    for turn in range(4):
        values: list[bytes | None] = [b"%d of %d" % (number, turn) for number in range(299)] + [b""]
        if turn == 1:
            values[7], values[8] = None, b""
        cluster.put(plain, values, keys)
        if turn % 2 == 0:
            cluster.put(mixed, values, keys)
            continue
        value_column, key_column = column(values, lines), column(keys, False)
        cluster.put(mixed, value_column, key_column)
        value_column.data[:] = key_column.data[:] = ord("x")

    def read(topic: str) -> dict[int, tuple[list[bytes | None], list[bytes | None]]]:
        found = {}
        for place, (begin, end) in broker.extents([topic]).items():
            messages = whole(broker.read(place, begin, end, keys=True))
            found[place.partition] = list(messages.values), list(messages.keys or ())
        return found

    assert read(mixed) == read(plain) and len(read(plain)) == 3
    consumer = cluster.consumer(cluster.name("group"), mixed)
    polled: dict[int, list[bytes | None]] = {partition: [] for partition in range(3)}

    def enough() -> bool:
        some = consumer.poll(0.05, 7)
        assert len(values_of(some)) <= 7
        for messages in some:
            polled[messages.place.partition] += messages.values
        return sum(map(len, polled.values())) == 1200

    eventually(enough)
    assert polled == {partition: values for partition, (values, _) in read(plain).items()}


def test_columns_of_an_aborted_transaction_are_never_seen(cluster: Cluster, broker: Broker) -> None:
    topic = cluster.topic()
    producer = cluster.producer(cluster.name("producer"))
    for turn in range(4):
        producer.begin()
        texts = column([b"%d of %d" % (number, turn) for number in range(20)], False)
        producer.produce_columns(topic, texts, texts)
        texts.data[:] = ord("x")
        (producer.abort if turn % 2 else producer.commit)()
    cluster.shows(Place(topic, 0), [b"%d of %d" % (number, turn) for turn in (0, 2) for number in range(20)])


def column(texts: Sequence[bytes | None], lines: bool) -> Column:
    """lines: each text is ended by a newline, and the column says so."""
    lengths = np.array([-1 if text is None else len(text) for text in texts], np.int64)
    ends = np.cumsum(np.maximum(lengths, 0) + lines)
    data = np.frombuffer(b"".join((text or b"") + b"\n" * lines for text in texts), np.uint8).copy()
    return Column(data, ends - np.maximum(lengths, 0) - lines, lengths, ends if lines else None)


def test_large_messages_pass_and_larger_ones_are_refused(cluster: Cluster, broker: Broker) -> None:
    topic = cluster.topic(**{"max.message.bytes": "1100000"})
    large = random.Random(1).randbytes(1_000_000)  # what a broker limits is the compressed size
    cluster.put(topic, [large, b"after"])
    with_transaction(cluster, topic, [large])
    cluster.shows(Place(topic, 0), [large, b"after", large])
    too_large = random.Random(1).randbytes(1_100_001)
    with pytest.raises(Refused):
        cluster.put(topic, [too_large])
    producer = cluster.producer(cluster.name("id"))
    producer.begin()
    with pytest.raises(Refused):
        producer.produce(topic, [too_large])
        producer.commit()


# --- Transactions ---


def with_transaction(
    cluster: Cluster,
    topic: str,
    values: Sequence[bytes],
    keys: Sequence[bytes] | None = None,
    headers: Sequence[Headers] | None = None,
) -> None:
    producer = cluster.producer(cluster.name("id"))
    producer.begin()
    producer.produce(topic, values, keys, headers)
    producer.commit()
    producer.close()


def test_a_transaction_becomes_visible_with_its_headers(cluster: Cluster, broker: Broker) -> None:
    topic = cluster.topic()
    headers: list[Headers] = [[("reason", b"bad \xff"), ("line", b"7")], [], [("reason", b""), ("none", None)]]
    with_transaction(cluster, topic, numbers(3), headers=headers)
    place = Place(topic, 0)
    cluster.shows(place, numbers(3))
    messages = whole(broker.read(place, *broker.extents([topic])[place], headers=True))
    assert list(messages.values) == numbers(3)
    assert [list(pairs) for pairs in messages.headers or ()] == headers


def test_a_member_gets_the_keys_and_headers_of_the_topics_that_it_asks_for(cluster: Cluster) -> None:
    both, keyed, plain = cluster.topic(), cluster.topic(), cluster.topic()
    keys = [b"a", b"", b"\xff"]
    headers: list[Headers] = [[("x", b"\xff\x00"), ("\u00fc", b""), ("x", b"2")], [], [("none", None)]]
    for topic in (both, keyed, plain):
        with_transaction(cluster, topic, numbers(3), keys, headers)
    cluster.put(both, [b"3", None], [b"later", None])
    consumer = cluster.consumer(cluster.name("group"), [both, keyed, plain], keys=[both, keyed], headers=[both])
    found = poll_until([consumer], lambda found: len(values_of(found)) == 11)
    beside = {topic: [messages for messages in found if messages.place.topic == topic] for topic in (both, keyed)}
    assert [key for messages in beside[both] for key in messages.keys or ()] == [*keys, b"later", None]
    assert [list(pairs) for messages in beside[both] for pairs in messages.headers or ()] == [*headers, [], []]
    assert [key for messages in beside[keyed] for key in messages.keys or ()] == keys
    assert all(messages.headers is None for messages in beside[keyed])
    assert all((messages.keys, messages.headers) == (None, None) for messages in found if messages.place.topic == plain)
    consumer.seek({Place(both, 0): Offset(1)})  # keys and headers follow their messages where some are left out
    again = poll_until([consumer], lambda found: len(values_of(found)) == 4)
    assert [key for messages in again for key in messages.keys or ()] == [*keys[1:], b"later", None]
    assert [list(pairs) for messages in again for pairs in messages.headers or ()] == [*headers[1:], [], []]


def test_aborted_messages_are_never_seen(cluster: Cluster, broker: Broker) -> None:
    topic = cluster.topic()
    cluster.put(topic, [b"a"])
    producer = cluster.producer(cluster.name("id"))
    producer.begin()
    producer.produce(topic, [b"aborted"] * 3)
    after = _put_until_hidden(cluster, Place(topic, 0))
    producer.abort()
    with_transaction(cluster, topic, [b"z"])
    wanted = [b"a", *numbers(after), b"z"]
    cluster.shows(Place(topic, 0), wanted)
    consumer = cluster.consumer(cluster.name("group"), topic)
    found = poll_until([consumer], lambda found: len(values_of(found)) >= len(wanted))
    offsets = [offset for messages in found for offset in messages.offsets]
    assert values_of(found) == wanted
    assert offsets == sorted(set(offsets)) and offsets[-1] - offsets[0] > len(wanted), "an abort leaves a gap"


def test_several_transactions_of_one_producer(cluster: Cluster) -> None:
    topic = cluster.topic()
    producer = cluster.producer(cluster.name("id"))
    for number in range(6):
        producer.begin()
        producer.produce(topic, [b"%d" % number])
        if number % 2:
            producer.abort()
        else:
            producer.commit()
    producer.begin()
    producer.commit()  # nothing in it
    cluster.shows(Place(topic, 0), [b"0", b"2", b"4"])


def test_an_open_transaction_hides_what_follows_it(cluster: Cluster, broker: Broker) -> None:
    topic = cluster.topic()
    place = Place(topic, 0)
    cluster.put(topic, [b"before"])
    producer = cluster.producer(cluster.name("id"))
    producer.begin()
    producer.produce(topic, [b"inside"])
    after = _put_until_hidden(cluster, place)
    begin, end = broker.extents([topic])[place]
    assert values_of(broker.read(place, begin, end)) == [b"before", *numbers(after - 1)]
    with pytest.raises(OutOfRange):
        list(broker.read(place, begin, Offset(end + 1)))
    consumer = cluster.consumer(cluster.name("group"), topic)
    assert poll_values(consumer, after) == [b"before", *numbers(after - 1)]
    assert consumer.poll(0.2, MOST) == []
    producer.commit()
    assert poll_values(consumer, 2) == [b"inside", b"%d" % (after - 1)]


def _put_until_hidden(cluster: Cluster, place: Place) -> int:
    """A producer's messages may be on their way still. How many were put, until one was hidden."""
    for count in range(1, MOST):
        cluster.put(place.topic, [b"%d" % (count - 1)])
        if cluster.broker.extents([place.topic])[place].end < 1 + count:
            return count
        time.sleep(0.005)
    pytest.fail("the transaction hides nothing")


def test_a_follower_reaches_the_end_whatever_stands_there(cluster: Cluster, broker: Broker) -> None:
    """The one that `ends` tells: past markers and aborted messages, and not past what is in an open transaction."""
    topic = cluster.topic(partitions=2)
    places = [Place(topic, 0), Place(topic, 1)]
    cluster.put(topic, numbers(3), [b"a"] * 3)
    follower = cluster.follower(dict.fromkeys(places, BEGINNING))
    seen: list[bytes] = []

    def read_until_end() -> bool:
        seen.extend(values_of(follower.poll(0.2, 2)))
        return bool(follower.reached() == broker.ends([topic]))

    eventually(read_until_end)
    for number in range(3):
        with_transaction(cluster, topic, [b"%d" % number], [b"%d" % number])
    eventually(read_until_end)
    producer = cluster.producer(cluster.name("id"))
    producer.begin()
    producer.produce(topic, numbers(9), [b"a"] * 9)
    _put_until_hidden(cluster, max(places, key=lambda place: broker.extents([topic])[place].end))
    assert follower.reached() != broker.ends([topic])
    producer.abort()
    eventually(read_until_end)
    assert seen[:3] == numbers(3) and sorted(seen[3:6]) == numbers(3)


def test_messages_and_offsets_are_committed_together(cluster: Cluster, broker: Broker) -> None:
    source, target, group = cluster.topic(), cluster.topic(partitions=2), cluster.name("group")
    place = Place(source, 0)
    cluster.put(source, numbers(10))
    consumer = cluster.consumer(group, source)
    poll_values(consumer, 10)
    producer = cluster.producer(cluster.name("id"))

    def attempt(offset: int) -> None:
        producer.begin()
        producer.produce(target, numbers(20, offset), numbers(20))
        producer.send_offsets({place: Position(Offset(offset), f"at {offset}")}, consumer.group_metadata())

    def visible() -> int:
        return sum(len(cluster.committed_values(Place(target, partition))) for partition in range(2))

    def outcome() -> tuple[int, Position | None]:
        return visible(), broker.committed(group, [source])[place]

    attempt(5)
    assert visible() == 0
    producer.abort()
    assert outcome() == (0, None)
    attempt(7)
    producer.commit()
    eventually(lambda: outcome() == (20, (7, "at 7")))
    attempt(9)
    producer.abort()
    assert outcome() == (20, (7, "at 7"))


def test_committed_offsets_keep_their_metadata(cluster: Cluster, broker: Broker) -> None:
    topic, group = cluster.topic(partitions=3), cluster.name("group")
    metadata = '{"v":1,"watermark":1700000000000,"text":"ä€"}' + "x" * 2000
    nothing = {Place(topic, partition): None for partition in range(3)}
    assert broker.committed(group, [topic]) == nothing
    heard = Heard()
    consumer = cluster.consumer(group, topic, heard)
    poll_until([consumer], joined(topic, 3, heard))
    assert consumer.committed(list(nothing)) == nothing
    positions = {Place(topic, 0): Position(Offset(11), metadata), Place(topic, 2): Position(Offset(0), "")}
    commit_offsets(cluster, consumer, positions)
    wanted = nothing | positions
    assert consumer.committed(list(nothing)) == wanted
    assert broker.committed(group, [topic]) == wanted
    assert consumer.committed([Place(topic, 2)]) == {Place(topic, 2): (0, "")}


def commit_offsets(
    cluster: Cluster, consumer: Consumer, positions: Mapping[Place, Position], group_metadata: Any = None
) -> None:
    producer = cluster.producer(cluster.name("id"))
    producer.begin()
    producer.send_offsets(positions, group_metadata or consumer.group_metadata())
    producer.commit()
    producer.close()


def test_a_newer_producer_fences_the_older_one(cluster: Cluster) -> None:
    topic, name = cluster.topic(), cluster.name("id")
    older = cluster.producer(name)
    older.begin()
    older.produce(topic, [b"older"])
    newer = cluster.producer(name)
    with pytest.raises(Fenced):
        older.produce(topic, [b"still older"])
        older.commit()
    newer.begin()
    newer.produce(topic, [b"newer"])
    newer.commit()
    cluster.shows(Place(topic, 0), [b"newer"])


def test_a_fenced_producer_commits_no_offsets(cluster: Cluster, broker: Broker) -> None:
    topic, group, name = cluster.topic(), cluster.name("group"), cluster.name("id")
    heard = Heard()
    consumer = cluster.consumer(group, topic, heard)
    poll_until([consumer], joined(topic, 1, heard))
    older = cluster.producer(name)
    older.begin()
    older.send_offsets({Place(topic, 0): Position(Offset(1), "")}, consumer.group_metadata())
    cluster.producer(name)
    with pytest.raises(Fenced):
        older.commit()
    assert broker.committed(group, [topic]) == {Place(topic, 0): None}


def test_a_newer_producer_ends_what_the_older_one_left_open(cluster: Cluster, broker: Broker) -> None:
    topic, name = cluster.topic(), cluster.name("id")
    place = Place(topic, 0)
    cluster.put(topic, [b"before"])
    older = cluster.producer(name)
    older.begin()
    older.produce(topic, [b"inside"])
    after = _put_until_hidden(cluster, place)
    older.close()
    assert broker.extents([topic])[place].end == after
    cluster.producer(name)
    cluster.shows(place, [b"before", *numbers(after)])


# --- Reading in a group ---


def test_reading_starts_where_the_listener_says(cluster: Cluster) -> None:
    topic = cluster.topic()
    cluster.put(topic, numbers(10))
    consumer = cluster.consumer(cluster.name("group"), topic, Heard({Place(topic, 0): Offset(7)}))
    assert poll_values(consumer, 3) == numbers(3, 7)


def test_reading_goes_on_at_the_committed_offset(cluster: Cluster) -> None:
    topic, group = cluster.topic(), cluster.name("group")
    cluster.put(topic, numbers(10))
    first = cluster.consumer(group, topic)
    poll_values(first, 10)
    commit_offsets(cluster, first, {Place(topic, 0): Position(Offset(4), "")})
    first.close()
    second = cluster.consumer(group, topic)
    assert poll_values(second, 6) == numbers(6, 4)


def test_the_members_of_a_group_are_those_who_joined_with_what_they_have(cluster: Cluster) -> None:
    topic, group = cluster.topic(partitions=2), cluster.name("group")
    assert cluster.broker.members(group) == []
    one, two = Heard(), Heard()
    consumers = [cluster.consumer(group, topic, one, "one"), cluster.consumer(group, topic, two, "two")]
    poll_until(consumers, joined(topic, 2, one, two))

    def told() -> bool:
        for consumer in consumers:
            consumer.poll(0.01, 1)
        found = {member.name: list(member.places) for member in cluster.broker.members(group)}
        return found == {"one": one.held(), "two": two.held()}

    eventually(told)


def test_the_known_ends_are_where_the_partitions_ended(cluster: Cluster) -> None:
    topic = cluster.topic()
    cluster.put(topic, numbers(10))
    consumer = cluster.consumer(cluster.name("group"), topic)
    poll_values(consumer, 10)
    assert consumer.known_ends() == {Place(topic, 0): 10}


def test_a_poll_gives_no_more_than_asked_for(cluster: Cluster) -> None:
    topic = cluster.topic(partitions=3)
    sent = numbers(500)
    cluster.put(topic, sent, sent)
    consumer = cluster.consumer(cluster.name("group"), topic)
    seen: dict[Place, list[int]] = {}
    found: list[bytes | None] = []

    def enough() -> bool:
        polled = consumer.poll(0.05, 7)
        assert len(values_of(polled)) <= 7
        for messages in polled:
            assert len(messages.values) == len(messages.offsets) == len(messages.times) > 0
            seen.setdefault(messages.place, []).extend(messages.offsets.tolist())
            found.extend(messages.values)
        return len(found) >= len(sent)

    eventually(enough)
    assert sorted(found) == sorted(sent)
    assert all(offsets == list(range(len(offsets))) for offsets in seen.values())


def test_reading_goes_on_from_where_it_was_sent(cluster: Cluster) -> None:
    topic = cluster.topic()
    cluster.put(topic, numbers(100))
    consumer = cluster.consumer(cluster.name("group"), topic)
    poll_values(consumer, 100)
    consumer.seek({Place(topic, 0): Offset(90)})
    assert poll_values(consumer, 10) == numbers(10, 90)
    consumer.seek({Place(topic, 0): BEGINNING})
    some: list[Messages] = []
    eventually(lambda: some.extend(consumer.poll(0.05, 10)) or some)
    consumer.seek({Place(topic, 0): Offset(95)})
    assert poll_values(consumer, 5) == numbers(5, 95)


def test_a_paused_partition_waits(cluster: Cluster) -> None:
    topic = cluster.topic(partitions=2)
    users = numbers(50)
    cluster.put(topic, users, users)
    consumer = cluster.consumer(cluster.name("group"), topic)
    poll_values(consumer, 50)
    paused, open_one = Place(topic, 0), Place(topic, 1)
    consumer.pause([paused])
    cluster.put(topic, users, users)
    ranges = cluster.broker.extents([topic])
    found = poll_until([consumer], lambda found: found and found[-1].next_offset == ranges[open_one].end)
    assert {messages.place for messages in found} == {open_one}
    assert consumer.poll(0.2, MOST) == []
    consumer.resume([paused])
    found = poll_until([consumer], lambda found: found and found[-1].next_offset == ranges[paused].end)
    assert {messages.place for messages in found} == {paused}
    assert found[0].offsets[0] == ranges[paused].end // 2


def test_a_position_that_is_not_there_is_reported(cluster: Cluster) -> None:
    topic = cluster.topic()
    cluster.put(topic, numbers(5))
    consumer = cluster.consumer(cluster.name("group"), topic, Heard({Place(topic, 0): Offset(6)}))
    with pytest.raises(OutOfRange):
        poll_until([consumer], lambda found: False)


def test_a_position_that_retention_has_passed_is_reported(cluster: Cluster, broker: Broker) -> None:
    topic = cluster.topic()
    cluster.put(topic, numbers(10))
    cluster.admin.delete_before(Place(topic, 0), Offset(4))
    eventually(lambda: broker.extents([topic])[Place(topic, 0)].begin == 4)
    consumer = cluster.consumer(cluster.name("group"), topic, Heard({Place(topic, 0): Offset(3)}))
    with pytest.raises(OutOfRange):
        poll_until([consumer], lambda found: False)


def test_members_share_the_partitions(cluster: Cluster) -> None:
    topic, group, heard = cluster.topic(partitions=4), cluster.name("group"), [Heard(), Heard()]
    first = cluster.consumer(group, topic, heard[0])
    poll_until([first], joined(topic, 4, heard[0]))
    assert [kind for kind, _ in heard[0].events] == ["assigned"]
    second = cluster.consumer(group, topic, heard[1])
    poll_until([first, second], joined(topic, 4, *heard))
    assert sorted(first.assignment()) == heard[0].held() and sorted(second.assignment()) == heard[1].held()
    given = [place for kind, places in heard[0].events if kind == "revoked" for place in places]
    assert len(given) == (2 if cluster.cooperative else 4), "a cooperative member gives up only what moves"
    second.close()
    assert heard[1].held() == [] and heard[1].events[-1][0] == "revoked"
    poll_until([first], joined(topic, 4, heard[0]))
    assert not [kind for listener in heard for kind, _ in listener.events if kind == "lost"]


def test_a_group_reads_every_message_once_through_a_rebalance(cluster: Cluster) -> None:
    """Each member commits what it has read when its partitions are revoked, as the last thing before they move."""
    topic, group, heard = cluster.topic(partitions=4), cluster.name("group"), [Heard(), Heard()]
    positions: dict[Place, Position] = {}

    def commit_on_revoke(consumer: Consumer) -> Callable[[Sequence[Place]], None]:
        def commit(places: Sequence[Place]) -> None:
            commit_offsets(cluster, consumer, {place: positions[place] for place in places if place in positions})

        return commit

    def read(consumers: Sequence[Consumer], condition: Callable[[], Any]) -> list[bytes | None]:
        found: list[bytes | None] = []

        def step() -> Any:
            for consumer in consumers:
                for messages in consumer.poll(0.05, 10):
                    found.extend(messages.values)
                    positions[messages.place] = Position(messages.next_offset, "")
            return condition()

        eventually(step)
        return found

    sent = numbers(400)
    first = cluster.consumer(group, topic, heard[0])
    heard[0].on_revoked = commit_on_revoke(first)
    cluster.put(topic, sent[:200], sent[:200])
    found = read([first], lambda: positions)
    second = cluster.consumer(group, topic, heard[1])
    heard[1].on_revoked = commit_on_revoke(second)
    found += read([first, second], lambda: joined(topic, 4, *heard)([]))
    cluster.put(topic, sent[200:], sent[200:])
    found += read([first, second], lambda: sum(position.offset for position in positions.values()) >= 300)
    first.close()
    found += read([second], lambda: sum(position.offset for position in positions.values()) == 400)
    assert sorted(found) == sorted(sent)


def test_added_partitions_are_assigned(cluster: Cluster) -> None:
    topic, heard = cluster.topic(), Heard()
    consumer = cluster.consumer(cluster.name("group"), topic, heard)
    poll_until([consumer], joined(topic, 1, heard))
    cluster.admin.add_partitions(topic, 3)
    poll_until([consumer], joined(topic, 3, heard))
    users = numbers(60)
    cluster.put(topic, users, users)
    assert sorted(poll_values(consumer, 60)) == sorted(users)


def test_a_member_of_an_older_generation_commits_nothing(cluster: Cluster, broker: Broker) -> None:
    topic, group, heard = cluster.topic(partitions=2), cluster.name("group"), [Heard(), Heard()]
    first = cluster.consumer(group, topic, heard[0])
    poll_until([first], joined(topic, 2, heard[0]))
    old = first.group_metadata()
    second = cluster.consumer(group, topic, heard[1])
    poll_until([first, second], joined(topic, 2, *heard))
    (mine,), (given_away,) = first.assignment(), second.assignment()
    with pytest.raises(Lost):
        commit_offsets(cluster, first, {given_away: Position(Offset(1), "")}, old)
    if not cluster.brokers_lead:  # they look at each partition: what a member has kept, it may commit (KIP-1251)
        with pytest.raises(Lost):
            commit_offsets(cluster, first, {mine: Position(Offset(1), "")}, old)
    assert set(broker.committed(group, [topic]).values()) == {None}
    commit_offsets(cluster, first, {mine: Position(Offset(1), "")})
    assert first.committed([mine]) == {mine: (1, "")}


def test_a_member_that_has_left_commits_nothing(cluster: Cluster, broker: Broker) -> None:
    topic, group, heard = cluster.topic(), cluster.name("group"), Heard()
    consumer = cluster.consumer(group, topic, heard)
    poll_until([consumer], joined(topic, 1, heard))
    old = consumer.group_metadata()
    consumer.close()
    with pytest.raises(Lost):
        commit_offsets(cluster, consumer, {Place(topic, 0): Position(Offset(1), "")}, old)
    assert broker.committed(group, [topic]) == {Place(topic, 0): None}


def test_closing_revokes(cluster: Cluster) -> None:
    topic, group, heard = cluster.topic(partitions=2), cluster.name("group"), [Heard(), Heard()]
    first = cluster.consumer(group, topic, heard[0])
    poll_until([first], joined(topic, 2, heard[0]))
    heard[0].on_revoked = lambda places: commit_offsets(
        cluster, first, {place: Position(BEGINNING, "closing") for place in places}
    )
    first.close()
    assert heard[0].held() == []
    assert {kind for kind, _ in heard[0].events[1:]} == {"revoked"}
    wanted = {Place(topic, partition): (0, "closing") for partition in range(2)}
    assert cluster.broker.committed(group, [topic]) == wanted
    second = cluster.consumer(group, topic, heard[1])
    poll_until([second], joined(topic, 2, heard[1]))


def test_a_static_member_is_taken_over_at_once(cluster: Cluster) -> None:
    topic, group, heard = cluster.topic(partitions=4), cluster.name("group"), [Heard(), Heard(), Heard()]
    other = cluster.consumer(group, topic, heard[0], member="other")
    old = cluster.consumer(group, topic, heard[1], member="mine")
    poll_until([other, old], joined(topic, 4, heard[0], heard[1]))
    before, of_old = list(heard[0].events), old.group_metadata()
    new = cluster.consumer(group, topic, heard[2], member="mine")
    if cluster.brokers_lead:  # only when the older one has closed, or its session is over
        with pytest.raises(Dead):
            poll_until([other, new], lambda found: False)
        return
    poll_until([other, new], joined(topic, 4, heard[0], heard[2]))
    assert heard[0].events == before, "the others notice nothing"
    assert heard[2].events == [("assigned", tuple(heard[1].held()))]
    with pytest.raises(Fenced):
        commit_offsets(cluster, old, {place: Position(Offset(1), "") for place in heard[1].held()}, of_old)
    with pytest.raises(Fenced):
        poll_until([old], lambda found: False)
    commit_offsets(cluster, new, {place: Position(Offset(2), "") for place in heard[2].held()})
    assert {position and position.offset for position in new.committed(heard[2].held()).values()} == {2}


def test_a_static_member_that_closed_finds_its_partitions_again(cluster: Cluster) -> None:
    topic, group, heard = cluster.topic(partitions=4), cluster.name("group"), [Heard(), Heard(), Heard()]
    other = cluster.consumer(group, topic, heard[0], member="other")
    old = cluster.consumer(group, topic, heard[1], member="mine")
    poll_until([other, old], joined(topic, 4, heard[0], heard[1]))
    before, had = list(heard[0].events), heard[1].held()
    old.close()
    assert heard[1].events[-1][0] == "revoked" and heard[1].held() == []
    new = cluster.consumer(group, topic, heard[2], member="mine")
    poll_until([other, new], joined(topic, 4, heard[0], heard[2]))
    assert heard[0].events == before and heard[2].held() == had


def test_offsets_about_to_be_committed_are_waited_for(cluster: Cluster) -> None:
    topic, group, heard = cluster.topic(), cluster.name("group"), Heard()
    place = Place(topic, 0)
    consumer = cluster.consumer(group, topic, heard)
    poll_until([consumer], joined(topic, 1, heard))
    commit_offsets(cluster, consumer, {place: Position(Offset(1), "older")})
    producer = cluster.producer(cluster.name("id"))
    producer.begin()
    producer.send_offsets({place: Position(Offset(2), "newer")}, consumer.group_metadata())
    answers: list[Position | None] = []
    reader = threading.Thread(target=lambda: answers.append(_committed(consumer, place)))
    reader.start()
    reader.join(0.5)
    assert answers == [], "the older offset is not answered while a newer one is about to come"
    producer.commit()
    reader.join(PATIENCE_SECONDS)
    assert answers == [(2, "newer")]


def _committed(consumer: Consumer, place: Place) -> Position | None:
    for _ in range(100):
        try:
            return consumer.committed([place])[place]
        except BrokerError:  # it may give up waiting, and be asked again
            continue
    pytest.fail("committed() never answers")
