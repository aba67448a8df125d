"""What real producers write, through a real Kafka: every sample, OTLP and Avro while meters are killed and come and go,
and a real Schema Registry. `verify` finds each stream clean.
"""

import ctypes
import io
import json
import os
import pathlib
import random
import signal
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import confluent_kafka
import fastavro
import orjson
import pytest

from tests import harness, streams
from tests.intake.harness import AVRO, SAMPLES, sample
from tests.kafka.meter_process import POINTS, Trip
from tests.kafka.service import Service
from tests.kafka.stream import PATIENCE_SECONDS, Stream, eventually, text_of
from tests.registry_server import SchemaRegistry, SmallRegistry
from tests.test_samples import BODIES, CASES
from tokenometer.kernels.target import HostTarget
from tokenometer.processor import verify
from tokenometer.processor.broker.kafka import direct
from tokenometer.processor.meter.meter import Meter, MeterSettings
from tokenometer.schemas import mapping as mappings

pytestmark = pytest.mark.kafka

SAMPLES_MS = 1_795_950_000_000  # 2026-11-29: when the samples were made
COUNTERS = 6
# A batch holds the largest message of these streams; parts are full now and then.
TABLES = {"rows": 2048, "cells": 2048, "texts": 4096, "windows": 16, "arena_bytes": 1 << 17, "batch_bytes": 1 << 15}


# --- Samples ---


def messages_of(name: str, whole: bool) -> list[bytes]:
    content = (SAMPLES / name).read_bytes()
    return [content] if whole else content.splitlines()


def body(name: str) -> bytes:
    around = {"request_id": "r", "timestamp": SAMPLES_MS, "user": "alice", "chip": "H100", "model": "m"}
    return orjson.dumps(around | {"response": orjson.loads((SAMPLES / name).read_bytes())})


def test_every_sample_is_metered(stream: Stream, tmp_path: pathlib.Path) -> None:
    """Each in a topic of its own, all by one meter."""
    avro = tmp_path / "avro.toml"
    avro.write_text(avro_mapping(f'schema = "{SAMPLES / "framing-confluent-avro.avsc"}"'))
    cases = [(messages_of(name, whole), mapping, counters) for name, mapping, whole, counters, _, _ in CASES]
    cases += [([body(name)], mapping, counters) for name, mapping, counters in BODIES]
    cases.append((sample("framing-confluent-avro.bin"), str(avro), (1, 2006, 1920, 0, 300, 0)))
    inputs = {f"{stream.input}-{number}": mapping for number, (_, mapping, _) in enumerate(cases)}
    for topic, (messages, _, _) in zip(inputs, cases, strict=True):
        stream.broker.create_topic(topic, 1, {})
        stream.broker.append(topic, messages, times=[SAMPLES_MS] * len(messages))
    stream.broker.flush()
    schemas = {topic: AVRO for topic, mapping in inputs.items() if mapping == str(avro)}
    wanted = {topic: mappings.resolve(mapping) for topic, mapping in inputs.items()}
    meter_until_read(stream, wanted, schemas)
    settings = verify.VerifySettings(*stream.outputs, processes=1)
    report = verify.verify(stream.broker, stream.group, wanted, settings)
    assert report.clean, text_of(report)
    found = streams.outcome(stream.broker)
    assert found.tallies["rejected"] == 0
    sums = [sum(counters[index] for counters in found.rows.values()) for index in range(COUNTERS)]
    assert sums == [sum(case[2][index] for case in cases) for index in range(COUNTERS)]


def meter_until_read(stream: Stream, inputs: dict[str, mappings.Mapping], schemas: dict[str, bytes]) -> None:
    """A meter in this process, until every message is committed."""
    settings = MeterSettings(stream.named("meter-0"), stream.group, inputs, *stream.outputs, schemas=schemas)
    meter = Meter(stream.broker, harness.make_engine(HostTarget(), **harness.LARGE), settings, "meter-0.run")
    done = threading.Event()
    thread = threading.Thread(target=meter.run, args=(done.is_set,))
    thread.start()
    try:
        ends = stream.broker.extents(list(inputs))

        def read() -> bool:
            committed = stream.broker.committed(stream.group, list(inputs))
            return all(at is not None and at.offset >= ends[place].end for place, at in committed.items())

        eventually(read, "all samples to be committed", PATIENCE_SECONDS)
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("form", ["json", "proto"])
def test_the_command_meters_the_collector_s_spans_without_other_settings(
    stream: Stream, start: Callable[..., Service], form: str
) -> None:
    """`tokenometer meter --input otlp-spans=otlp`"""
    stream.mapping = "otlp"
    values = [value for name in ("otel", "traceloop") for value in sample(f"{name}.otlp_{form}")]
    stream.broker.append(stream.input, values, times=[SAMPLES_MS] * len(values))
    stream.broker.flush()
    service = start(stream)
    stream.settle()
    end(service)
    report = stream.verify()
    assert report.clean, text_of(report)
    counters = [sum(row[index] for row in streams.outcome(stream.broker).rows.values()) for index in range(COUNTERS)]
    assert counters == [9, 19620, 12788, 200, 1410, 128]


def end(service: Service) -> None:
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(60) == 0, service.log


def test_a_header_s_name_that_is_not_utf_8_is_read_alike_by_meter_and_audit(stream: Stream) -> None:
    """The client cannot read such a message's headers at all; the meter reads them without the client."""
    topic = f"{stream.input}-headers"
    text = (harness.MAPPINGS / "native.toml").read_text().replace("format = 1", "format = 2")
    mapping = mappings.parse(text.replace('path = "user"', 'header = "user"\ndefault = "nobody"'), "test.toml")
    stream.broker.create_topic(topic, 1, {})
    producer, library = confluent_kafka.Producer({"bootstrap.servers": stream.bootstrap}), direct.library()
    for number, name in enumerate((b"other", b"\xff")):
        value = orjson.dumps(Calls(seed=number)() | {"request_id": f"r-{number}"})
        error = library.rd_kafka_producev(
            direct.handle(producer),
            *(1, topic.encode(), 4, value, ctypes.c_size_t(len(value))),  # RD_KAFKA_VTYPE_TOPIC and _VALUE
            *(9, b"user", b"alice", ctypes.c_ssize_t(5), 9, name, b"x", ctypes.c_ssize_t(1)),  # _HEADER
            *(8, ctypes.c_int64(SAMPLES_MS), 7, 2, 0),  # _TIMESTAMP, _MSGFLAGS, _END
        )
        assert error == 0
    producer.flush(10)
    meter_until_read(stream, {topic: mapping}, {})
    report = verify.verify(
        stream.broker, stream.group, {topic: mapping}, verify.VerifySettings(*stream.outputs, processes=1)
    )
    assert report.clean, text_of(report)
    assert sorted(row[1] for row in streams.outcome(stream.broker).rows) == ["alice", "nobody"]


# --- kill -9 and rebalances ---


class Calls:
    """Records of calls, some of them sent again, and what their totals are."""

    def __init__(self, seed: int) -> None:
        self._rng, self._number = random.Random(seed), 0
        self.tokens = self.requests = 0
        self._sent: list[dict[str, Any]] = []

    def __call__(self) -> dict[str, Any]:
        if self._sent and self._rng.random() < 0.05:
            return self._rng.choice(self._sent[-50:])
        self._number += 1
        made = {
            "request_id": f"r-{self._number}",
            "timestamp": SAMPLES_MS + self._number,
            "user": f"user-{self._rng.randrange(40)}",
            "model": f"m-{self._rng.randrange(3)}",
            "chip": "H100",
            "input_tokens": self._rng.randrange(5000),
            "output_tokens": self._rng.randrange(500),
        }
        self._sent.append(made)
        self.requests += 1
        self.tokens += made["input_tokens"] + made["output_tokens"]
        return made


def otlp(calls: Sequence[dict[str, Any]], as_json: bool) -> bytes:
    from google.protobuf import json_format
    from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

    data = TracesData()
    resource = data.resource_spans.add()
    resource.resource.attributes.add(key="hw.model").value.string_value = "H100"
    scope = resource.scope_spans.add()
    for call in calls:
        span = scope.spans.add(trace_id=bytes(16), span_id=os.urandom(8), name="chat")
        span.start_time_unix_nano = span.end_time_unix_nano = call["timestamp"] * 1_000_000
        texts = {"gen_ai.response.id": "request_id", "gen_ai.response.model": "model", "user.id": "user"}
        for key, name in texts.items():
            span.attributes.add(key=key).value.string_value = call[name]
        for name in ("input_tokens", "output_tokens"):
            span.attributes.add(key=f"gen_ai.usage.{name}").value.int_value = call[name]
    if as_json:
        return json_format.MessageToJson(data, use_integers_for_enums=True).encode()
    return data.SerializeToString()


def avro_mapping(value: str) -> str:
    text = pathlib.Path(mappings.__file__).with_name("mappings") / "native.toml"
    return (
        text.read_text().replace("format = 1", "format = 2").replace('"native"', '"avro"')
        + f'\n[value]\nencoding = "avro"\n{value}\n'
    )


PROTO = """syntax = "proto3"; package llm; import "google/protobuf/timestamp.proto";
message Call { string request_id = 1; google.protobuf.Timestamp timestamp = 2; string user = 3; string model = 4;
  string chip = 5; int64 input_tokens = 6; uint32 output_tokens = 7; }
"""


def protobuf_class(folder: pathlib.Path) -> Any:
    """Of PROTO's message, as protoc makes it."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    from grpc_tools import protoc

    (folder / "call.proto").write_text(PROTO)
    well_known, to = pathlib.Path(protoc.__file__).with_name("_proto"), folder / "set"
    paths = (f"-I{folder}", f"-I{well_known}")
    assert not protoc.main(["protoc", *paths, "--include_imports", f"-o{to}", "call.proto"])
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(to.read_bytes()).file:
        pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("llm.Call"))


def avro(call: dict[str, Any], schema_id: int) -> bytes:
    schema = fastavro.parse_schema(json.loads(AVRO))
    full = {"prefill_chip": None, "cached_input_tokens": 0, "cache_write_tokens": 0, "reasoning_tokens": 0} | call
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, schema, {field["name"]: full[field["name"]] for field in schema["fields"]})
    return b"\0" + struct.pack(">I", schema_id) + stream.getvalue()


class Encoded:
    """A stream whose messages are OTLP batches or Avro; a partition has each user's calls."""

    def __init__(self, stream: Stream, kind: str, tmp_path: pathlib.Path, registry: SmallRegistry) -> None:
        self.stream, self.kind, self.calls = stream, kind, Calls(seed=7)
        self.schema_id = registry.add("calls-value", {"schema": AVRO.decode(), "schemaType": "AVRO"})
        stream.mapping = "otlp"
        if kind == "avro":
            (tmp_path / "avro.toml").write_text(avro_mapping("registry = true"))
            stream.mapping, stream.registry = str(tmp_path / "avro.toml"), registry.url

    def append(self, count: int) -> None:
        """Messages; each has one user's calls, for a call that is sent again must meet the first."""
        by_user: dict[str, list[dict[str, Any]]] = {}
        for _ in range(count):
            call = self.calls()
            by_user.setdefault(call["user"], []).append(call)
        values, keys = [], []
        for user, calls in by_user.items():
            made = [avro(call, self.schema_id) for call in calls] if self.kind == "avro" else [
                otlp(calls, self.kind == "otlp json")
            ]  # fmt: skip
            values += made
            keys += [user.encode()] * len(made)
        self.stream.broker.append(self.stream.input, values, keys, [SAMPLES_MS] * len(values))
        self.stream.broker.flush()

    def flow(self, until: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not until():
            assert time.monotonic() < deadline
            self.append(60)
            time.sleep(0.05)

    def audit(self) -> streams.Outcome:
        self.stream.settle()
        self.stream.stop()
        report = self.stream.verify()
        assert report.clean, text_of(report)
        assert report.rejects == {}
        found = streams.outcome(self.stream.broker)
        counters = list(found.rows.values())
        assert sum(row[0] for row in counters) == self.calls.requests
        assert sum(row[1] + row[4] for row in counters) == self.calls.tokens
        assert found.tallies["duplicates"] > 0
        return found


@pytest.fixture
def registry() -> Iterator[SmallRegistry]:
    with SmallRegistry() as running:
        yield running


@pytest.fixture(params=["otlp protobuf", "otlp json", "avro"])
def encoded(request: Any, stream: Stream, tmp_path: pathlib.Path, registry: SmallRegistry) -> Encoded:
    return Encoded(stream, request.param, tmp_path, registry)


def test_meters_of_otlp_and_avro_are_killed(encoded: Encoded) -> None:
    stream = encoded.stream
    for point in POINTS:
        meter = stream.meter(trip=Trip(point, commit=2), engine=TABLES)
        encoded.flow(lambda meter=meter: meter.ended)
        meter.wait_for_end(-signal.SIGKILL)
    stream.meter()
    assert encoded.audit().parts >= len(POINTS)  # a meter that commits nothing before it is killed has no part


def test_meters_of_otlp_and_avro_come_and_go(encoded: Encoded) -> None:
    stream = encoded.stream
    first, second = stream.meter("meter-0"), stream.meter("meter-1")
    encoded.flow(lambda: bool(first.held and second.held))
    second.kill()
    encoded.flow(lambda: len(first.held) == 3)
    third = stream.meter("meter-2")
    encoded.flow(lambda: bool(first.held and third.held))
    first.stop()
    encoded.flow(lambda: len(third.held) == 3)
    encoded.audit()


# --- A Schema Registry that goes away ---


def test_partitions_that_wait_for_a_registry_move_to_another_meter(
    stream: Stream, tmp_path: pathlib.Path, registry: SmallRegistry
) -> None:
    encoded = Encoded(stream, "avro", tmp_path, registry)
    registry.answer = 500
    first = stream.meter("meter-0")
    encoded.flow(lambda: len(first.held) == 3)
    second = stream.meter("meter-1")
    encoded.flow(lambda: bool(first.held and second.held))
    encoded.append(200)
    time.sleep(1)
    second.kill()
    assert all(not event["read"] for meter in (first, second) for event in meter.of("commit"))
    registry.answer = None
    encoded.audit()


@pytest.fixture(scope="module")
def apicurio() -> Iterator[SchemaRegistry]:
    with SchemaRegistry() as running:
        yield running


def test_a_real_registry_gives_schemas_and_is_waited_for(
    stream: Stream, start: Callable[..., Service], tmp_path: pathlib.Path, apicurio: SchemaRegistry
) -> None:
    from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
    from confluent_kafka.schema_registry.avro import AvroSerializer
    from confluent_kafka.serialization import MessageField, SerializationContext

    stream.registry, stream.mapping = apicurio.url, str(tmp_path / "avro.toml")
    (tmp_path / "avro.toml").write_text(avro_mapping("registry = true"))
    made, context = Calls(seed=3), SerializationContext("calls", MessageField.VALUE)
    full = {"prefill_chip": None, "cached_input_tokens": 0, "cache_write_tokens": 0, "reasoning_tokens": 0}

    def put(serialize: AvroSerializer, count: int) -> None:
        values = [serialize(full | made(), context) for _ in range(count)]
        stream.broker.append(stream.input, values, [b"one"] * count, [SAMPLES_MS] * count)
        stream.broker.flush()

    with SchemaRegistryClient({"url": apicurio.url}) as client:
        put(AvroSerializer(client, Schema(AVRO.decode(), "AVRO")), 100)
        service = start(stream, "--registry", f"schema.registry.url={apicurio.url}", "--log-format", "text")
        stream.settle()
        newer = json.loads(AVRO)
        newer["fields"].append({"name": "note", "type": "string", "default": "x"})
        full["note"] = "n"
        put(AvroSerializer(client, Schema(json.dumps(newer), "AVRO")), 1)  # has its id before the registry is away
        stream.settle()
        newer["fields"].append({"name": "more", "type": "string", "default": "x"})
        full["more"] = "n"
        serialize = AvroSerializer(client, Schema(json.dumps(newer), "AVRO"))
        values = [serialize(full | made(), context) for _ in range(50)]
    apicurio.signal(signal.SIGSTOP)
    try:
        stream.broker.append(stream.input, values, [b"one"] * 50, [SAMPLES_MS] * 50)
        stream.broker.append(stream.input, [b"\0\0\xff\xff\xffgarbage"], [b"one"], [SAMPLES_MS])
        stream.broker.flush()
        eventually(lambda: service.health()[0] == 503, "it to be not healthy", 40)
        eventually(lambda: apicurio.url in service.health()[1], "it to name the registry", 20)
        assert service.log.count("messages wait for it from offset") == 1
        assert stream.behind()
    finally:
        apicurio.signal(signal.SIGCONT)
    stream.settle()
    eventually(lambda: service.health()[0] == 200, "it to be healthy again", 30)
    end(service)
    report = stream.verify()
    assert report.clean, text_of(report)
    assert report.rejects == {"unknown_schema": 1}
    assert report.tally.counted == made.requests


def test_a_real_registry_gives_the_schemas_of_protobuf(
    stream: Stream, tmp_path: pathlib.Path, apicurio: SchemaRegistry
) -> None:
    """What Confluent's serializer registers there and writes."""
    from confluent_kafka.schema_registry import SchemaRegistryClient
    from confluent_kafka.schema_registry.protobuf import ProtobufSerializer
    from confluent_kafka.serialization import MessageField, SerializationContext

    text = avro_mapping("registry = true").replace('"avro"', '"protobuf"')
    stream.registry, stream.mapping = apicurio.url, str(tmp_path / "protobuf.toml")
    (tmp_path / "protobuf.toml").write_text(text)
    made, kind = Calls(seed=5), protobuf_class(tmp_path)
    values = []
    with SchemaRegistryClient({"url": apicurio.url}) as client:
        serialize = ProtobufSerializer(kind, client, {"use.deprecated.format": False})
        for _ in range(200):
            call = made()
            message = kind(**{name: value for name, value in call.items() if name != "timestamp"})
            message.timestamp.FromMilliseconds(call["timestamp"])
            values.append(serialize(message, SerializationContext("protobuf-calls", MessageField.VALUE)))
    stream.broker.append(stream.input, values, [b"one"] * len(values), [SAMPLES_MS] * len(values))
    stream.broker.flush()
    stream.meter()
    stream.settle()
    stream.stop()
    report = stream.verify()
    assert report.clean, text_of(report)
    assert (report.rejects, report.tally.counted) == ({}, made.requests)
    rows = streams.outcome(stream.broker).rows.values()
    assert sum(row[1] + row[4] for row in rows) == made.tokens
