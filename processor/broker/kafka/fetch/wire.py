"""Kafka's protocol, as far as a reader needs it: requests to bytes, answers to values. No I/O.

Only one version of each request, the first that names topics by their ids (Kafka 3.1, KIP-516): a topic that was made
anew is never taken for the old one. `missing` says what a broker lacks.
"""

import struct
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from tokenometer.processor.broker import Place

_T = TypeVar("_T")

READ_COMMITTED = 1
NO_EPOCH = -1
_NO_TOPIC_ID = uuid.UUID(int=0)


class Request(NamedTuple):
    name: str
    key: int
    version: int
    flexible: bool  # its heads have tagged fields


FETCH = Request("Fetch", 1, 13, True)
METADATA = Request("Metadata", 3, 12, True)
SASL_HANDSHAKE = Request("SaslHandshake", 17, 1, False)
API_VERSIONS = Request("ApiVersions", 18, 3, True)
SASL_AUTHENTICATE = Request("SaslAuthenticate", 36, 2, True)
OF_A_READER = (FETCH, METADATA)


class Malformed(Exception):
    """An answer that is none of Kafka's."""


class Writer:
    def __init__(self) -> None:
        self.data = bytearray()

    def pack(self, form: str, *values: int) -> "Writer":
        self.data += struct.pack(f">{form}", *values)
        return self

    def size(self, count: int) -> "Writer":
        """Of a text or an array, plus one: 0 means that there is none."""
        count += 1
        while count >= 128:
            self.data.append(count & 127 | 128)
            count >>= 7
        self.data.append(count)
        return self

    def text(self, text: bytes | None) -> "Writer":
        if text is None:
            return self.size(-1)
        self.size(len(text)).data.extend(text)
        return self

    def raw(self, data: bytes | memoryview) -> "Writer":
        self.data += data
        return self

    def no_tags(self) -> "Writer":
        self.data.append(0)
        return self


class Reader:
    def __init__(self, data: memoryview) -> None:
        self._data, self._at = data, 0

    def take(self, count: int) -> memoryview:
        taken = self._data[self._at : self._at + count]
        if count < 0 or len(taken) < count:
            raise Malformed("an answer ends early")
        self._at += count
        return taken

    def unpack(self, form: str) -> tuple[int, ...]:
        form = f">{form}"
        return struct.unpack(form, self.take(struct.calcsize(form)))

    def number(self, form: str) -> int:
        return self.unpack(form)[0]

    def varint(self) -> int:
        value = 0
        for shift in range(0, 35, 7):
            byte = self.take(1)[0]
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise Malformed("a number does not end")

    def text(self) -> memoryview | None:
        size = self.varint() - 1
        return None if size < 0 else self.take(size)

    def string(self) -> str:
        return bytes(self.text() or b"").decode(errors="replace")

    def array(self, item: Callable[["Reader"], _T]) -> list[_T]:
        return [item(self) for _ in range(self.varint() - 1)]

    def tags(self) -> dict[int, memoryview]:
        return {self.varint(): self.take(self.varint()) for _ in range(self.varint())}


def framed(request: Request, correlation: int, client_id: str, body: bytes | bytearray) -> bytes:
    """With its length and its head."""
    name = client_id.encode()
    head = struct.pack(f">hhih{len(name)}s", request.key, request.version, correlation, len(name), name)
    head += b"\0" if request.flexible else b""
    return struct.pack(">i", len(head) + len(body)) + head + body


def unframed(request: Request, correlation: int, data: memoryview) -> Reader:
    """The answer's body. Raises Malformed if it answers something else."""
    reader = Reader(data)
    answered = reader.number("i")
    if answered != correlation:
        raise Malformed(f"{request.name} {correlation} was asked, {answered} was answered")
    if request.flexible and request is not API_VERSIONS:
        reader.tags()
    return reader


# --- Which versions a broker knows ---


def api_versions() -> bytearray:
    """The brokers count clients by such names; ours is not a release's."""
    return Writer().text(b"tokenometer-fetcher").text(b"1").no_tags().data


def missing(reader: Reader, wanted: Sequence[Request]) -> list[str]:
    """The requests, of these and of a login, that it does not know."""
    unsupported_version = 35
    error = reader.number("h")
    if error == unsupported_version:
        return [f"{API_VERSIONS.name} {API_VERSIONS.version}"]

    def entry(item: Reader) -> tuple[int, int, int]:
        key, low, high = item.unpack("hhh")
        item.tags()
        return key, low, high

    known = {key: (low, high) for key, low, high in reader.array(entry)}
    ours = (*wanted, SASL_HANDSHAKE, SASL_AUTHENTICATE)
    none = (0, -1)
    lacking = [r for r in ours if not known.get(r.key, none)[0] <= r.version <= known.get(r.key, none)[1]]
    return [f"{request.name} {request.version}" for request in lacking]


# --- Who leads what ---


@dataclass(frozen=True)
class Leader:
    """error: Kafka's code; 0: there is none. node: -1: nobody leads now."""

    error: int
    node: int
    epoch: int


@dataclass(frozen=True)
class Topic:
    error: int
    id: uuid.UUID
    leaders: dict[int, Leader]  # by partition


@dataclass(frozen=True)
class Metadata:
    brokers: dict[int, tuple[str, int]]  # host and port
    topics: dict[str, Topic]


def metadata(topics: Sequence[str]) -> bytearray:
    writer = Writer().size(len(topics))
    for topic in topics:
        writer.raw(_NO_TOPIC_ID.bytes).text(topic.encode()).no_tags()
    return writer.pack("??", False, False).no_tags().data


def read_metadata(reader: Reader) -> Metadata:
    def broker(item: Reader) -> tuple[int, tuple[str, int]]:
        node, host, port = item.number("i"), item.string(), item.number("i")
        item.text()  # its rack
        item.tags()
        return node, (host, port)

    def partition(item: Reader) -> tuple[int, Leader]:
        error, number, node, epoch = item.unpack("hiii")
        for _ in ("replicas", "replicas in sync", "replicas away"):
            item.array(lambda replica: replica.number("i"))
        item.tags()
        return number, Leader(error, node, epoch)

    def topic(item: Reader) -> tuple[str, Topic]:
        error, name = item.number("h"), item.string()
        identity = uuid.UUID(bytes=bytes(item.take(16)))
        item.take(1)  # is it internal?
        leaders = dict(item.array(partition))
        item.take(4)  # what we may do
        item.tags()
        return name, Topic(error, identity, leaders)

    reader.take(4)  # throttle; another request waits for it
    brokers = dict(reader.array(broker))
    reader.text()  # cluster's id
    reader.take(4)  # controller
    return Metadata(brokers, dict(reader.array(topic)))


# --- Reading ---


@dataclass(frozen=True)
class Wanted:
    """A partition to read from `offset` on. epoch: of its leader, as far as we know it. read_epoch: of the leader that
    wrote the message before `offset`; the broker compares it with its log."""

    place: Place
    topic_id: uuid.UUID
    offset: int
    epoch: int
    read_epoch: int


@dataclass(frozen=True)
class Sizes:
    """wait_ms: that a broker waits for min_bytes. part_bytes: of one partition; a larger first batch comes as a whole
    all the same."""

    wait_ms: int
    min_bytes: int
    max_bytes: int
    part_bytes: int


@dataclass(frozen=True)
class Part:
    """What came of a partition. stable: its last stable offset. nearer: a replica that we should read from instead; -1:
    none. diverged: the log of the leader is not the one that we have read."""

    topic_id: uuid.UUID
    partition: int
    error: int
    stable: int
    aborted: Sequence[tuple[int, int]]
    nearer: int
    records: memoryview
    diverged: bool


@dataclass(frozen=True)
class Fetched:
    throttle_ms: int
    error: int
    parts: list[Part] = field(default_factory=list)


def fetch(wanted: Sequence[Wanted], sizes: Sizes, rack: str) -> bytearray:
    """Without a session: what it saves are some bytes of each partition that has nothing new.

    A broker fills its answer in the order of `wanted`, as far as that is possible with topics side by side.
    """
    by_topic: dict[uuid.UUID, list[Wanted]] = {}
    for part in wanted:
        by_topic.setdefault(part.topic_id, []).append(part)
    consumer, no_session, final_epoch, no_offset = -1, 0, -1, -1
    writer = Writer().pack("iiiib", consumer, sizes.wait_ms, sizes.min_bytes, sizes.max_bytes, READ_COMMITTED)
    writer.pack("ii", no_session, final_epoch).size(len(by_topic))
    for topic_id, parts in by_topic.items():
        writer.raw(topic_id.bytes).size(len(parts))
        for part in parts:
            writer.pack("iiqiqi", part.place.partition, part.epoch, part.offset, part.read_epoch, no_offset,
                        sizes.part_bytes).no_tags()  # fmt: skip
        writer.no_tags()
    return writer.size(0).text(rack.encode()).no_tags().data


def read_fetch(reader: Reader) -> Fetched:
    """The records point into the answer."""

    def aborted(item: Reader) -> tuple[int, int]:
        producer, offset = item.unpack("qq")
        item.tags()
        return producer, offset

    def topic(item: Reader) -> list[Part]:
        topic_id = uuid.UUID(bytes=bytes(item.take(16)))

        def partition(item: Reader) -> Part:
            number, error, _, stable, _ = item.unpack("ihqqq")
            transactions, nearer = item.array(aborted), item.number("i")
            records = item.text()
            diverging = 0
            diverged = diverging in item.tags()
            return Part(topic_id, number, error, stable, transactions, nearer, records or memoryview(b""), diverged)

        parts = item.array(partition)
        item.tags()
        return parts

    throttle_ms, error, _ = reader.unpack("ihi")
    return Fetched(throttle_ms, error, [part for parts in reader.array(topic) for part in parts])


# --- Who we are ---


def handshake(mechanism: str) -> bytes:
    return struct.pack(">h", len(mechanism)) + mechanism.encode()


def read_handshake(reader: Reader) -> tuple[int, list[str]]:
    """Kafka's error code, and the mechanisms that the broker knows."""
    error, count = reader.unpack("hi")
    return error, [bytes(reader.take(reader.number("h"))).decode() for _ in range(count)]


def authenticate(token: bytes) -> bytearray:
    return Writer().text(token).no_tags().data


def read_authenticate(reader: Reader) -> tuple[int, str, bytes]:
    """Kafka's error code, what the broker says of it, and its own token."""
    return reader.number("h"), reader.string(), bytes(reader.text() or b"")
