"""A Schema Registry's client: what it asks, what it makes of answers, and schemas that refer to others. Values are made
by Confluent's own serializers, which register their schemas. The registry is the small one of tests/registry_server.py,
which follows the documented API; the real one is in tests/kafka/test_registry_kafka.py.
"""

import base64
import json
import logging
import pathlib
import ssl
from collections.abc import Iterator
from typing import Any

import pytest
from confluent_kafka.schema_registry import Schema, SchemaReference, SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.schema_registry.protobuf import ProtobufSerializer
from confluent_kafka.serialization import MessageField, SerializationContext
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from tests.intake import harness
from tests.kafka.test_fetch_secure import made_certificates
from tests.registry_server import SmallRegistry
from tokenometer.processor.broker import Refused
from tokenometer.processor.broker.registry import Registry, RegistryAway, UnregisteredSchema
from tokenometer.schemas.value import Value

AVRO, PROTOBUF = Value("avro", registry=True), Value("protobuf", registry=True)
CONTEXT = SerializationContext("calls", MessageField.VALUE)


@pytest.fixture
def server() -> Iterator[SmallRegistry]:
    with SmallRegistry() as running:
        yield running


@pytest.fixture
def client(server: SmallRegistry) -> Iterator[SchemaRegistryClient]:
    with SchemaRegistryClient({"url": server.url}) as client:
        yield client


def read(server: SmallRegistry, value: Value, message: bytes) -> Any:
    """What both decoders make of a message, each with a client of its own."""
    [[line]] = harness.meter([message], value, schemas=schemas_of(server, value)).messages
    [[other]] = harness.audit([message], value, schemas=schemas_of(server, value)).messages
    assert json.loads(line) == json.loads(other)
    return json.loads(line)


def schemas_of(server: SmallRegistry, value: Value) -> Any:
    return Registry({"schema.registry.url": server.url}).schemas(value.encoding)


# --- Avro ---

MODEL = {"type": "record", "name": "Model", "namespace": "llm", "fields": [{"name": "id", "type": "string"}]}
USAGE = {
    "type": "record", "name": "Usage", "namespace": "llm.usage",
    "fields": [{"name": "model", "type": "llm.Model"}, {"name": "tokens", "type": "long"}],
}  # fmt: skip
CALL = {
    "type": "record", "name": "Call", "namespace": "llm.usage",
    "fields": [
        {"name": "id", "type": "string"},
        {"name": "usage", "type": ["null", "Usage"]},
        {"name": "others", "type": {"type": "array", "items": "Usage"}},
        {"name": "asked", "type": {"type": "map", "values": "llm.Model"}},
    ],
}  # fmt: skip
CALL_MADE = {"id": "c", "usage": {"model": {"id": "m"}, "tokens": 5}, "others": [], "asked": {"a": {"id": "n"}}}


def test_a_schema_that_refers_to_others_is_put_together(server: SmallRegistry, client: SchemaRegistryClient) -> None:
    client.register_schema("model", Schema(json.dumps(MODEL), "AVRO"))
    model = SchemaReference("llm.Model", "model", 1)
    client.register_schema("usage", Schema(json.dumps(USAGE), "AVRO", [model]))
    references = [SchemaReference("llm.usage.Usage", "usage", 1), model]
    serialize = AvroSerializer(client, Schema(json.dumps(CALL), "AVRO", references))
    message = serialize(CALL_MADE, CONTEXT)
    assert message is not None and read(server, AVRO, message) == CALL_MADE


def test_a_reference_that_the_registry_lost_is_an_unknown_schema(server: SmallRegistry) -> None:
    reference = {"name": "llm.Model", "subject": "gone", "version": 1}
    known = server.add("usage", {"schema": json.dumps(USAGE), "schemaType": "AVRO", "references": [reference]})
    with pytest.raises(UnregisteredSchema):
        schemas_of(server, AVRO)(known)


def test_a_schema_of_another_kind_is_an_unknown_schema(server: SmallRegistry) -> None:
    known = server.add("json", {"schema": "{}", "schemaType": "JSON"})
    for value in (AVRO, PROTOBUF):
        with pytest.raises(UnregisteredSchema):
            schemas_of(server, value)(known)


def test_a_schema_without_a_type_is_avro(server: SmallRegistry) -> None:
    known = server.add("model", {"schema": json.dumps(MODEL)})
    assert json.loads(schemas_of(server, AVRO)(known)) == MODEL


# --- Protobuf ---

PART = 'syntax = "proto3"; package llm; message Part { string name = 1; int64 tokens = 2; }'
PROTO = """syntax = "proto3"; package llm;
import "google/protobuf/timestamp.proto"; import "llm/part.proto";
message Other { string no = 1; }
message Call { string id = 1; google.protobuf.Timestamp at = 2; repeated Part parts = 3; }
"""
PROTO_MADE = {"id": "c", "at": "2026-11-29T00:00:00.000000000Z", "parts": [{"name": "a", "tokens": 7}]}


def message_class(tmp_path: Any, name: str) -> Any:
    """As protoc makes it."""
    import pathlib

    from grpc_tools import protoc

    (tmp_path / "llm").mkdir()
    (tmp_path / "llm" / "part.proto").write_text(PART)
    (tmp_path / "call.proto").write_text(PROTO)
    well_known = pathlib.Path(protoc.__file__).with_name("_proto")
    to = tmp_path / "set"
    assert not protoc.main(["protoc", f"-I{tmp_path}", f"-I{well_known}", "--include_imports", f"-o{to}", "call.proto"])
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(to.read_bytes()).file:
        pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))


def made(tmp_path: Any) -> Any:
    call = message_class(tmp_path, "llm.Call")(id="c")
    call.at.FromJsonString("2026-11-29T00:00:00Z")
    call.parts.add(name="a", tokens=7)
    return call


def test_confluent_s_protobuf_serializer_is_read(server: SmallRegistry, client: Any, tmp_path: Any) -> None:
    """It registers a schema for each import, in base64, as Confluent's registry answers to format=serialized."""
    call = made(tmp_path)
    message = ProtobufSerializer(type(call), client, {"use.deprecated.format": False})(call, CONTEXT)
    assert message is not None and read(server, PROTOBUF, message) == PROTO_MADE


def test_a_registry_that_answers_with_proto_files_is_read(server: SmallRegistry, tmp_path: Any) -> None:
    """As Apicurio and Karapace do."""
    server.add("part", {"schema": PART, "schemaType": "PROTOBUF"})
    reference = {"name": "llm/part.proto", "subject": "part", "version": 1}
    known = server.add("call", {"schema": PROTO, "schemaType": "PROTOBUF", "references": [reference]})
    message = b"\0" + known.to_bytes(4, "big") + b"\x02\x02" + made(tmp_path).SerializeToString()
    assert read(server, PROTOBUF, message) == PROTO_MADE


@pytest.mark.parametrize("name", ["../out.proto", "/tmp/out.proto"])
def test_an_import_s_name_leads_nowhere_else(server: SmallRegistry, name: str) -> None:
    server.add("part", {"schema": PART, "schemaType": "PROTOBUF"})
    reference = {"name": name, "subject": "part", "version": 1}
    known = server.add("call", {"schema": PROTO, "schemaType": "PROTOBUF", "references": [reference]})
    with pytest.raises(UnregisteredSchema):
        schemas_of(server, PROTOBUF)(known)


@pytest.mark.parametrize("text", ["nonsense", base64.b64encode(b"\x0a\xff\xff").decode()])
def test_a_protobuf_schema_that_is_none_is_unknown(server: SmallRegistry, text: str) -> None:
    known = server.add("call", {"schema": text, "schemaType": "PROTOBUF"})
    with pytest.raises(UnregisteredSchema):
        schemas_of(server, PROTOBUF)(known)


# --- Answers ---


def test_an_unknown_id_is_not_asked_for_again_at_once(server: SmallRegistry, monkeypatch: Any) -> None:
    schemas = schemas_of(server, AVRO)
    for _ in range(3):
        with pytest.raises(UnregisteredSchema):
            schemas(1)
    assert len(server.asked) == 1
    server.add("model", {"schema": json.dumps(MODEL)})
    monkeypatch.setattr("tokenometer.processor.broker.registry._UNKNOWN_SECONDS", 0)
    assert schemas(1), "it has come meanwhile, perhaps to a replica"


@pytest.mark.parametrize("status", [400, 404, 408, 429, 500, 502, 503])
def test_any_other_answer_means_that_the_registry_is_away(server: SmallRegistry, status: int) -> None:
    """404 too, where it is not a registry's own: a wrong path must not make dead letters."""
    schemas = schemas_of(server, AVRO)
    server.answer = status
    with pytest.raises(RegistryAway, match=f"{server.url} answers: .*{status}"):
        schemas(1)


def test_an_answer_that_is_no_schema_means_that_the_registry_is_away(server: SmallRegistry) -> None:
    schemas = schemas_of(server, AVRO)
    server.answer = 200
    for server.body in (b"<html>", b"[]", b"null"):
        with pytest.raises(RegistryAway):
            schemas(1)


def test_a_silent_registry_is_given_up_soon(server: SmallRegistry) -> None:
    server.answer = "silent"
    with pytest.raises(RegistryAway, match="gives no answer"):
        Registry({"url": server.url, "timeout": "0.2"}).schemas("avro")(1)


def test_nobody_at_the_address_means_that_the_registry_is_away() -> None:
    with pytest.raises(RegistryAway, match="127.0.0.1:9 gives no answer"):
        Registry({"url": "http://127.0.0.1:9"}).check()


# --- Settings ---


def test_credentials_are_sent_and_their_refusal_is_said_without_them() -> None:
    with SmallRegistry(user_info="meter:secret-42") as server:
        Registry({"schema.registry.url": server.url, "basic.auth.user.info": "meter:secret-42"}).check()
        Registry({"url": server.url, "schema.registry.basic.auth.user.info": "meter:secret-42"}).check()
        with pytest.raises(Refused, match="refuses") as refused:
            Registry({"url": server.url.replace("//", "//meter:secret-43@")}).check()
        assert "secret-43" not in str(refused.value)


def test_a_registry_behind_tls_is_read_and_a_certificate_of_nobody_is_not_taken(tmp_path: pathlib.Path) -> None:
    """Mutual: the registry wants a certificate of its client, too."""
    made_certificates(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "broker.pem", tmp_path / "broker.key")
    tls.load_verify_locations(tmp_path / "ca.pem")
    tls.verify_mode = ssl.CERT_REQUIRED
    own = {
        "schema.registry.ssl.certificate.location": str(tmp_path / "client.pem"),
        "schema.registry.ssl.key.location": str(tmp_path / "client.key"),
    }
    with SmallRegistry(tls=tls) as server:
        known = server.add("calls", {"schema": json.dumps(MODEL)})
        settings = {"schema.registry.url": server.url, "schema.registry.ssl.ca.location": str(tmp_path / "ca.pem")}
        assert json.loads(Registry(settings | own).schema("avro", known)) == MODEL
        with pytest.raises(RegistryAway, match=f"{server.url} gives no answer"):
            Registry(settings).schema("avro", known)  # without a certificate of its own
        del settings["schema.registry.ssl.ca.location"]
        with pytest.raises(RegistryAway, match=r"gives no answer: .*certificate"):
            Registry(settings | own).schema("avro", known)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "lack schema.registry.url"),
        ({"url": "ftp://x"}, "Invalid url"),
        ({"url": "http://x", "ssl.ca.locatoin": "y"}, "ssl.ca.locatoin"),
        ({"url": "http://x", "ssl.ca.location": "/nowhere.pem"}, "No such file"),
        ({"url": "http://x", "timeout": "soon"}, "timeout: expected a number, found 'soon'"),
        ({"url": "http://x", "basic.auth.user.info": "nobody"}, "username"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, str], message: str) -> None:
    with pytest.raises(Refused, match=message):
        Registry(settings)


def test_a_registry_s_settings_are_shown_without_secrets(tmp_path: Any, caplog: Any) -> None:
    from tokenometer.processor.cli.meter import MeterCommand
    from tokenometer.processor.cli.options import kafka_setting

    (tmp_path / "registry").write_text("# ours\nbasic.auth.user.info=meter:secret-44\nssl.key.password = secret-45\n")
    pairs = [kafka_setting("schema.registry.url=https://meter:secret-46@registry:8081")]
    command = MeterCommand(registry=pairs, registry_file=str(tmp_path / "registry"))
    with caplog.at_level(logging.INFO, "tokenometer"):
        command.log()
    [line] = caplog.records
    assert vars(line)["registry"]["schema.registry.url"] == "https://meter:***@registry:8081"
    assert "secret-4" not in str(vars(line))
    client = command.registry_client
    assert client is not None and str(client["basic.auth.user.info"]) == "***"
