"""Protobuf by a schema: google.protobuf in the meter, the wire format by hand in the audit."""

import struct

import pytest
from google.protobuf import descriptor_pb2, timestamp_pb2, wrappers_pb2

from tests.intake import harness
from tests.intake.mutate import mutants
from tests.intake.test_agreement import Registry
from tokenometer.processor.intake.protobuf import MessageTypes, ProtobufSchemaError
from tokenometer.schemas.value import Value

F = descriptor_pb2.FieldDescriptorProto


def descriptor_set():
    """Package llm: `message Call { ... message Part { ... } }` and `message Batch { repeated Call calls = 1; }`"""
    file = descriptor_pb2.FileDescriptorProto(name="llm.proto", package="llm", syntax="proto3")
    imported = (timestamp_pb2, wrappers_pb2)
    file.dependency.extend(module.DESCRIPTOR.name for module in imported)
    call = file.message_type.add(name="Call")

    def add(message, name, number, kind, type_name=None, label=F.LABEL_OPTIONAL, **more):
        message.field.add(name=name, number=number, type=kind, type_name=type_name, label=label, **more)

    add(call, "request_id", 1, F.TYPE_STRING)
    add(call, "input_tokens", 2, F.TYPE_INT64)
    add(call, "delta", 3, F.TYPE_SINT32)
    add(call, "seconds", 4, F.TYPE_DOUBLE)
    add(call, "at", 5, F.TYPE_MESSAGE, ".google.protobuf.Timestamp")
    add(call, "cached", 6, F.TYPE_MESSAGE, ".google.protobuf.Int64Value")
    add(call, "kind", 7, F.TYPE_ENUM, ".llm.Kind")
    add(call, "tags", 8, F.TYPE_MESSAGE, ".llm.Call.TagsEntry", F.LABEL_REPEATED)
    add(call, "parts", 9, F.TYPE_MESSAGE, ".llm.Call.Part", F.LABEL_REPEATED)
    add(call, "counts", 10, F.TYPE_UINT32, label=F.LABEL_REPEATED)
    add(call, "raw", 11, F.TYPE_BYTES)
    add(call, "text", 12, F.TYPE_STRING, oneof_index=0)
    add(call, "number", 13, F.TYPE_FIXED64, oneof_index=0)
    add(call, "stream", 14, F.TYPE_BOOL)
    add(call, "prices", 15, F.TYPE_FLOAT, label=F.LABEL_REPEATED)
    add(call, "first", 16, F.TYPE_MESSAGE, ".llm.Call.Part")
    call.oneof_decl.add(name="either")
    entry = call.nested_type.add(name="TagsEntry", options={"map_entry": True})
    add(entry, "key", 1, F.TYPE_STRING)
    add(entry, "value", 2, F.TYPE_SFIXED32)
    part = call.nested_type.add(name="Part")
    add(part, "name", 1, F.TYPE_STRING)
    add(part, "tokens", 2, F.TYPE_UINT64)
    kind = file.enum_type.add(name="Kind")
    kind.value.add(name="CHAT", number=0)
    kind.value.add(name="EMBED", number=1)
    batch = file.message_type.add(name="Batch")
    add(batch, "calls", 1, F.TYPE_MESSAGE, ".llm.Call", F.LABEL_REPEATED)
    files = [descriptor_pb2.FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb) for module in imported]
    return descriptor_pb2.FileDescriptorSet(file=[*files, file]).SerializeToString()


SET = descriptor_set()
TYPES = MessageTypes(SET)
CALL = TYPES.by_name("llm.Call")
VALUE = Value("protobuf", schema="llm.desc")


def call():
    message = CALL(
        request_id="r-1", input_tokens=1 << 40, delta=-5, seconds=2.0, kind=1, counts=[1, 300], raw=b"\0\1", text="t"
    )
    message.at.seconds, message.at.nanos = 1795922916, 155419936
    message.cached.value = 0
    message.tags["a"], message.tags["b"] = -1, 2
    message.parts.add(name="p", tokens=7)
    message.parts.add()
    message.prices.extend([0.5, 3.0])
    return message.SerializeToString()


def test_a_message_is_a_line_under_its_own_names():
    ((line,),) = harness.check([call()], VALUE, schema=SET).messages
    assert harness.members(line) == {
        "request_id": "r-1",
        "input_tokens": 1 << 40,
        "delta": -5,
        "seconds": 2,
        "at": "2026-11-29T03:28:36.155419936Z",
        "cached": 0,
        "kind": "EMBED",
        "tags": {"a": -1, "b": 2},
        "parts": [{"name": "p", "tokens": 7}, {"tokens": 0}],
        "counts": [1, 300],
        "raw": "AAE=",
        "text": "t",
        "stream": False,
        "prices": [0.5, 3],
    }


def test_numbers_that_are_left_out_are_zero():
    ((line,),) = harness.check([b""], VALUE, schema=SET).messages
    assert harness.members(line) == {"input_tokens": 0, "delta": 0, "seconds": 0, "kind": "CHAT", "stream": False}


def test_unknown_fields_are_skipped():
    unknown = b"\xf8\x3f\x05" + b"\xfd\x3fabcd" + b"\xf9\x3fabcdefgh" + b"\xfa\x3f\x03abc"
    assert (
        harness.check([call() + unknown], VALUE, schema=SET).messages
        == harness.meter([call()], VALUE, schema=SET).messages
    )


MALFORMED = {
    "ends early": call()[:-1], "text ends early": b"\x0a\x05ab", "not UTF-8": b"\x0a\x02\xff\xfe",
    "no tag": b"\xff" * 11, "no type": b"\x07",
}  # fmt: skip


@pytest.mark.parametrize("bad", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_message_is_refused(bad):
    result = harness.check([call(), bad, call()], VALUE, schema=SET)
    assert result.failures == {1: "bad_encoding"}


def test_a_frame_names_the_schema_and_the_message():
    registered = Value("protobuf", registry=True)
    inner = b"\x0a" + bytes([len(call())]) + call()
    part = b"\x0a\x01p\x10\x07"
    messages = [
        b"\0" + struct.pack(">I", 3) + indexes + payload
        for indexes, payload in (
            (b"\0", call()),
            (b"\2\2", inner),
            (b"\4\0\2", part),
            (b"\2\x10", call()),
            (b"\x09", b""),
        )
    ]
    messages.append(b"\0" + struct.pack(">I", 4) + b"\0" + call())
    messages.append(call())
    result = harness.check(messages, registered, schemas=Registry({3: SET}))
    assert result.failures == {3: "bad_encoding", 4: "bad_encoding", 5: "unknown_schema", 6: "unknown_schema"}
    assert result.messages[0] == harness.meter([call()], VALUE, schema=SET).messages[0]
    assert harness.members(result.messages[1][0]).keys() == {"calls"}
    assert result.messages[2] == [b'{"name":"p","tokens":7}']
    framed = harness.check(messages[:3], VALUE, schema=SET)
    assert framed.messages == result.messages[:3]


def test_damaged_messages_are_read_alike():
    harness.check(list(mutants([call()], 1500, seed=11)), VALUE, schema=SET)


@pytest.mark.parametrize(("content", "words"), [(b"", "no message"), (b"\xff", "descriptor set")])
def test_a_descriptor_set_that_cannot_be_used_is_said(content, words):
    with pytest.raises(ProtobufSchemaError, match=words):
        MessageTypes(content)
    with pytest.raises(ProtobufSchemaError, match="no message llm.Nothing"):
        TYPES.by_name("llm.Nothing")
