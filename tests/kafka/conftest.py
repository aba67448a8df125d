"""Fixtures: topics of a test's own on the session's real broker."""

import functools
import os
import pathlib
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping

import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from tests.conftest import kafka_for
from tests.kafka.service import Service
from tests.kafka.stream import Stream
from tests.kafka_server import ENVIRONMENT, KafkaServer

ANSWER_SECONDS_MAX = 20


@pytest.fixture(scope="module")
def owned(request: pytest.FixtureRequest) -> Iterator[KafkaServer]:
    """A broker for tests that stop it: with several processes one of their file, else that of all tests."""
    if os.environ.get(ENVIRONMENT):
        pytest.skip(f"stops the broker, and the one that {ENVIRONMENT} names is not ours to stop")
    if not hasattr(request.config, "workerinput"):
        yield request.getfixturevalue("common_kafka")
        return
    with kafka_for(request.config, alone=True) as server:
        yield server
        _admin_of.cache_clear()  # it would look for the broker until the end


@pytest.fixture
def ours(kafka: KafkaServer) -> KafkaServer:
    """The broker of all tests, for a test that leaves topics behind."""
    if os.environ.get(ENVIRONMENT):
        pytest.skip(f"leaves topics behind, and the broker that {ENVIRONMENT} names is not ours to fill")
    return kafka


@pytest.fixture
def admin(kafka: KafkaServer) -> AdminClient:
    return _admin_of(kafka.bootstrap)


@functools.lru_cache(maxsize=2)
def _admin_of(bootstrap: str) -> AdminClient:
    return AdminClient({"bootstrap.servers": bootstrap})


@pytest.fixture
def topics(admin: AdminClient, request: pytest.FixtureRequest) -> Iterator[Callable[..., str]]:
    """`topics("logs", partitions=3, config={...})` makes a topic that no other test has and returns its name."""
    made: list[str] = []
    test = re.sub(r"[^a-zA-Z0-9._-]+", "-", request.node.name)[:100]

    def make(label: str = "topic", partitions: int = 1, config: Mapping[str, str] | None = None) -> str:
        name = f"{test}-{label}-{uuid.uuid4().hex[:8]}"
        topic = NewTopic(name, num_partitions=partitions, replication_factor=1, config=dict(config or {}))
        admin.create_topics([topic])[name].result(ANSWER_SECONDS_MAX)
        made.append(name)
        await_leaders(admin, name, partitions)
        return name

    yield make
    if made:
        for deleted in admin.delete_topics(made).values():
            deleted.result(ANSWER_SECONDS_MAX)


def await_leaders(admin: AdminClient, topic: str, partitions: int) -> None:
    """The controller knows a topic a little sooner than the broker serves it."""
    deadline = time.monotonic() + ANSWER_SECONDS_MAX
    while time.monotonic() < deadline:
        seen = admin.list_topics(topic, timeout=5).topics[topic].partitions.values()
        if len(seen) == partitions and all(partition.leader >= 0 for partition in seen):
            return
        time.sleep(0.02)
    pytest.fail(f"{topic} has not {partitions} partitions with a leader after {ANSWER_SECONDS_MAX} s")


@pytest.fixture
def make_stream(
    kafka: KafkaServer, admin: AdminClient, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Stream]]:
    made: list[Stream] = []

    def make(partitions: int = 3, outputs: bool = True) -> Stream:
        made.append(Stream(kafka, monkeypatch, partitions, outputs))
        return made[-1]

    yield make
    for stream in made:
        stream.close()
        admin.delete_topics([stream.input, *stream.outputs])


@pytest.fixture
def stream(make_stream: Callable[..., Stream]) -> Stream:
    return make_stream()


@pytest.fixture
def start(tmp_path: pathlib.Path) -> Iterator[Callable[..., Service]]:
    made: list[Service] = []

    def one(stream: Stream, *more: str, **settings: str) -> Service:
        made.append(Service(stream, tmp_path / f"log-{len(made)}", *more, **settings))
        return made[-1]

    yield one
    for service in made:
        service.close()
