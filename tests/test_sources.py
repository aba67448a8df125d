"""The producers themselves, in the versions of the extra `sources`: what they write today gives its counters.

    make test-sources

LiteLLM and the instrumentations run in processes of their own, against a provider on loopback (tests/sources).
"""

import datetime
import importlib.util
import subprocess
import sys

import orjson
import pytest

from tests.intake import harness
from tests.sources.upstream import provider
from tests.test_samples import NATIVE, counted, counters
from tokenometer.schemas.value import Value

pytestmark = pytest.mark.sources

RECORD = {
    "request_id": "r-1", "timestamp": 1795453500000, "user": "u", "model": "m", "chip": "H100",
    "input_tokens": 2006, "cached_input_tokens": 1920, "output_tokens": 300,
}  # fmt: skip


def needs(*modules: str) -> pytest.MarkDecorator:
    def missing(module: str) -> bool:
        try:
            return importlib.util.find_spec(module) is None
        except ModuleNotFoundError:
            return True

    lacking = [module for module in modules if missing(module)]
    return pytest.mark.skipif(bool(lacking), reason=f"pip install -e '.[sources]': no {', '.join(lacking)}")


def run(module: str, *arguments: str) -> None:
    command = [sys.executable, "-W", "ignore", "-m", f"tests.sources.{module}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@needs("litellm")
def test_litellm_writes_what_its_mapping_reads(make_engine, tmp_path):
    """Two calls of OpenAI, one of Claude, an embedding, and a call that failed once: six records, all counted."""
    log = tmp_path / "log.jsonl"
    with provider() as address:
        run("litellm_log", address, str(log))
    summary = counted(make_engine, log, "litellm", whole=False)
    chats = 3  # the call, the stream, and the attempt that succeeded
    expected = (6, chats * 2006 + 4071 + 8, chats * 1920 + 3962, 100, chats * 300 + 50, chats * 64)
    assert (counters(summary), summary.rejects) == (expected, {})
    assert summary.tally.duplicates == 0


@needs("opentelemetry.instrumentation.openai_v2", "anthropic")
def test_opentelemetrys_openai_v2_writes_what_otlp_reads(make_engine, tmp_path):
    """A call and its stream; an embedding; the failed call has no usage. Its spans have no parts."""
    with provider() as address:
        run("spans", "openai_v2", address, str(tmp_path / "spans"))
    summary = counted(make_engine, tmp_path / "spans", "otlp", whole=True)
    assert (counters(summary), summary.rejects) == ((3, 2 * 2006 + 8, 0, 0, 600, 0), {})
    assert summary.tally.skipped == 1


@needs("opentelemetry.instrumentation.openai", "opentelemetry.instrumentation.anthropic")
def test_traceloop_and_the_anthropic_sdk_write_what_otlp_reads(make_engine, tmp_path):
    """The call of Claude has two spans, traceloop's and the SDK's own, and one response id: it counts once.

    The spans of streams do not count reasoning."""
    with provider() as address:
        run("spans", "traceloop", address, str(tmp_path / "spans"))
    summary = counted(make_engine, tmp_path / "spans", "otlp", whole=True)
    assert (counters(summary), summary.rejects) == ((4, 2 * 2006 + 8 + 4071, 2 * 1920 + 3962, 100, 650, 64), {})
    assert summary.tally.duplicates == 1


@needs("openinference.instrumentation.openai", "openinference.instrumentation.anthropic")
def test_openinference_writes_what_otlp_reads(make_engine, tmp_path):
    """Its spans have no response id: the SDK's own span of the call is below OpenInference's, which is skipped.

    So is the call that failed.
    """
    with provider() as address:
        run("spans", "openinference", address, str(tmp_path / "spans"))
    summary = counted(make_engine, tmp_path / "spans", "otlp", whole=True)
    assert (counters(summary), summary.rejects) == ((4, 2 * 2006 + 8 + 4071, 2 * 1920 + 3962, 100, 650, 128), {})
    assert (summary.tally.skipped, summary.tally.duplicates) == (2, 0)


@needs("cloudevents.core")
@pytest.mark.parametrize("data", [RECORD, orjson.dumps(RECORD).decode(), orjson.dumps(RECORD)], ids=type)
@pytest.mark.parametrize("mode", ["structured", "binary"])
def test_cloudevents_writes_what_its_mapping_reads(make_engine, tmp_path, data, mode):
    from cloudevents.core.bindings import kafka
    from cloudevents.core.v1.event import CloudEvent

    time = datetime.datetime(2026, 11, 29, 3, 34, 18, tzinfo=datetime.UTC)
    attributes = {"type": "llm.usage", "source": "gw", "id": "e1", "time": time, "subject": "customer-1"}
    event = CloudEvent(attributes | {"datacontenttype": "application/json"}, data)
    message = kafka.to_structured_event(event) if mode == "structured" else kafka.to_binary_event(event)
    headers = [(name, content) for name, content in message.headers.items()]
    read = harness.check([message.value], Value("cloudevents"), headers=[headers])
    (tmp_path / "events").write_bytes(b"\n".join(read.messages[0]))
    assert counters(counted(make_engine, tmp_path / "events", "cloudevents", whole=False)) == NATIVE


@needs("confluent_kafka.schema_registry", "jsonschema", "fastavro")
@pytest.mark.parametrize("kind", ["json", "avro"])
def test_confluents_serializers_write_what_is_read(make_engine, tmp_path, kind):
    from confluent_kafka.schema_registry import SchemaRegistryClient
    from confluent_kafka.schema_registry.avro import AvroSerializer
    from confluent_kafka.schema_registry.json_schema import JSONSerializer
    from confluent_kafka.serialization import MessageField, SerializationContext

    registry = SchemaRegistryClient.new_client({"url": "mock://tests"})
    schema = orjson.dumps({"type": "object", "title": "R", "properties": {}}).decode()
    serialize = JSONSerializer(schema, registry) if kind == "json" else AvroSerializer(registry, harness.AVRO.decode())
    value = serialize(RECORD, SerializationContext("requests", MessageField.VALUE))
    if kind == "json":
        read = harness.check([value])
    else:
        read = harness.check([value], Value("avro", schema="a.avsc"), schema=harness.AVRO)
    (tmp_path / "records").write_bytes(b"\n".join(read.messages[0]))
    assert counters(counted(make_engine, tmp_path / "records", "native", whole=False)) == NATIVE
