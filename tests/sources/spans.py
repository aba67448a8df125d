"""Spans of some calls as an OTLP message.

python -m tests.sources.spans openai_v2|traceloop|openinference ADDRESS FILE
"""

import sys
from typing import Any

import anthropic
import openai
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

HELLO: Any = [{"role": "user", "content": "hello"}]


def call_openai(address: str) -> None:
    """A call, a stream, an embedding, and a call that fails."""
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="x", max_retries=0)
    client.chat.completions.create(model="gpt-4o", messages=HELLO)
    for _ in client.chat.completions.create(
        model="gpt-4o", messages=HELLO, stream=True, stream_options={"include_usage": True}
    ):
        pass
    client.embeddings.create(model="text-embedding-3-small", input="hello")
    try:
        client.chat.completions.create(model="flaky", messages=HELLO)
    except openai.InternalServerError:
        pass


def call_anthropic(address: str) -> None:
    client = anthropic.Anthropic(base_url=address, api_key="x", max_retries=0)
    client.messages.create(model="claude-sonnet-4-5", max_tokens=99, messages=HELLO)


def main(instrumentation: str, address: str, file: str) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(resource=Resource.create({"service.name": "s", "user.id": "u-res"}))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    if instrumentation == "openai_v2":
        from opentelemetry.instrumentation.openai_v2 import OpenAIInstrumentor as OpenAIV2Instrumentor

        OpenAIV2Instrumentor().instrument(tracer_provider=provider)
        call_openai(address)
    elif instrumentation == "openinference":
        from openinference.instrumentation.anthropic import AnthropicInstrumentor as OpenInferenceAnthropic
        from openinference.instrumentation.openai import OpenAIInstrumentor as OpenInferenceOpenAI

        OpenInferenceOpenAI().instrument(tracer_provider=provider)
        OpenInferenceAnthropic().instrument(tracer_provider=provider)
        call_openai(address)
        call_anthropic(address)
    else:
        from opentelemetry.instrumentation.anthropic import AnthropicInstrumentor
        from opentelemetry.instrumentation.openai import OpenAIInstrumentor

        OpenAIInstrumentor().instrument(tracer_provider=provider)
        AnthropicInstrumentor().instrument(tracer_provider=provider)
        call_openai(address)
        call_anthropic(address)
    with open(file, "wb") as out:
        out.write(encode_spans(exporter.get_finished_spans()).SerializeToString())


if __name__ == "__main__":
    main(*sys.argv[1:])
