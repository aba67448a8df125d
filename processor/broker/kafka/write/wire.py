"""The requests of a writer: to bytes, and answers to values. No I/O. One version of each, all of them
known to Kafka 3.1 and later."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tokenometer.processor.broker import Place
from tokenometer.processor.broker.kafka.fetch.wire import Reader, Request, Writer
from tokenometer.processor.broker.kafka.write.packer import Identity, PackedBatch

PRODUCE = Request("Produce", 0, 9, True)
FIND_COORDINATOR = Request("FindCoordinator", 10, 3, True)
ADD_PARTITIONS = Request("AddPartitionsToTxn", 24, 3, True)
END_TRANSACTION = Request("EndTxn", 26, 3, True)
INIT_PRODUCER = Request("InitProducerId", 22, 4, True)
_ALL_REPLICAS, _TRANSACTION = -1, 1


class Coordinator(NamedTuple):
    """error: Kafka's code; 0: there is none."""

    error: int
    host: str
    port: int


def produce(transactional_id: str | None, batches: Mapping[str, Sequence[PackedBatch]], timeout_ms: int) -> bytearray:
    """batches: by topic, at most one for a partition."""
    of_transaction = None if transactional_id is None else transactional_id.encode()
    writer = Writer().text(of_transaction).pack("hi", _ALL_REPLICAS, timeout_ms).size(len(batches))
    for topic, of_topic in batches.items():
        writer.text(topic.encode()).size(len(of_topic))
        for batch in of_topic:
            writer.pack("i", batch.partition).size(len(batch.data)).raw(batch.data).no_tags()
        writer.no_tags()
    return writer.no_tags().data


def read_produced(reader: Reader) -> dict[Place, int]:
    """Kafka's error code of each partition."""

    def topic(item: Reader) -> list[tuple[Place, int]]:
        name = item.string()

        def partition(item: Reader) -> tuple[Place, int]:
            number, error, _, _, _ = item.unpack("ihqqq")
            item.array(_record_error)
            item.text()
            item.tags()
            return Place(name, number), error

        found = item.array(partition)
        item.tags()
        return found

    return {place: error for found in reader.array(topic) for place, error in found}


def _record_error(item: Reader) -> None:
    item.number("i")
    item.text()
    item.tags()


def find_coordinator(transactional_id: str) -> bytearray:
    return Writer().text(transactional_id.encode()).pack("b", _TRANSACTION).no_tags().data


def read_coordinator(reader: Reader) -> Coordinator:
    _, error = reader.unpack("ih")
    reader.text()
    reader.number("i")  # its number
    return Coordinator(error, reader.string(), reader.number("i"))


def add_partitions(transactional_id: str, identity: Identity, partitions: Mapping[str, Sequence[int]]) -> bytearray:
    """partitions: by topic."""
    writer = Writer().text(transactional_id.encode()).pack("qh", *identity).size(len(partitions))
    for topic, numbers in partitions.items():
        writer.text(topic.encode()).size(len(numbers)).pack(f"{len(numbers)}i", *numbers).no_tags()
    return writer.no_tags().data


def read_added(reader: Reader) -> dict[Place, int]:
    """Kafka's error code of each partition."""

    def topic(item: Reader) -> list[tuple[Place, int]]:
        name = item.string()

        def partition(item: Reader) -> tuple[Place, int]:
            number, error = item.unpack("ih")
            item.tags()
            return Place(name, number), error

        found = item.array(partition)
        item.tags()
        return found

    reader.take(4)  # throttle; the brokers wait by themselves
    return {place: error for found in reader.array(topic) for place, error in found}


def end(transactional_id: str, identity: Identity, commit: bool) -> bytearray:
    return Writer().text(transactional_id.encode()).pack("qh?", *identity, commit).no_tags().data


def read_ended(reader: Reader) -> int:
    """Kafka's error code."""
    return reader.unpack("ih")[1]


def init_producer() -> bytearray:
    """For an identity without transactions."""
    return Writer().text(None).pack("iqh", 0, -1, -1).no_tags().data


def read_initiated(reader: Reader) -> tuple[int, Identity]:
    """Kafka's error code, and the identity if that is 0."""
    _, error, producer, epoch = reader.unpack("ihqh")
    return error, Identity(producer, epoch)
