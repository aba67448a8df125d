"""Records as real producers write them, read by `replay` with shipped mappings, give their known counters."""

import pathlib

import pytest

from tests import harness
from tokenometer.kernels.target import HostTarget
from tokenometer.processor.files.decoded import reader_of
from tokenometer.processor.files.replay import Outlets, replay
from tokenometer.processor.intake import Decoder
from tokenometer.schemas.mapping import resolve
from tokenometer.schemas.usage import Usage

SAMPLES = pathlib.Path(__file__).parent / "intake" / "samples"
SPANS = Usage(3, 4020, 0, 0, 600, 0)
AGENTS = Usage(6, 15600, 12788, 200, 810, 128)
NATIVE = Usage(1, 2006, 1920, 0, 300, 0)
WHOLE = {
    "otel.otlp_json": ("otlp", SPANS),
    "otel.otlp_proto": ("otlp", SPANS),
    "otel.zipkin_json": ("zipkin", SPANS),
    "traceloop.otlp_json": ("otlp", AGENTS),
    "traceloop.otlp_proto": ("otlp", AGENTS),
    "framing-array.json": ("native", NATIVE),
    "framing-gzip.json": ("native", NATIVE),
    "framing-json-string.json": ("native", NATIVE),
    "framing-confluent-json.bin": ("native", NATIVE),
    "framing-confluent-json-headerid.bin": ("native", NATIVE),
    "framing-debezium.json": ("debezium", NATIVE),
    "framing-debezium-update.json": ("debezium", NATIVE),
    "framing-cloudevents-structured.bin": ("cloudevents", NATIVE),
}
LINES = {"traceloop.jaeger_json": ("jaeger", AGENTS)}


def read(name: str, mapping_name: str, whole: bool) -> Usage:
    mapping = resolve(mapping_name)
    reader = reader_of([str(SAMPLES / name)], mapping.value, lambda: Decoder(mapping.value), whole)
    summary = replay(harness.make_engine(HostTarget(), batch_bytes=1 << 20), reader.fill, mapping, "r", Outlets())
    assert summary.tally.rejected == 0
    return summary.usage


@pytest.mark.parametrize("name", WHOLE)
def test_a_message_gives_its_counters(name: str):
    mapping, wanted = WHOLE[name]
    assert read(name, mapping, whole=True) == wanted


@pytest.mark.parametrize("name", LINES)
def test_lines_give_their_counters(name: str):
    mapping, wanted = LINES[name]
    assert read(name, mapping, whole=False) == wanted
