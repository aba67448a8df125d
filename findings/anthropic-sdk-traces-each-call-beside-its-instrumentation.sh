#!/usr/bin/env bash
# Guess: a program that instruments the Anthropic SDK for OpenTelemetry, or gives LangChain Langfuse's callback, has one
# span with the usage of each call; who sets no instrumentation up has none.
# Instead: the SDK makes a span of its own with the full usage for each call, as soon as the process has a tracer
# provider. Beside Traceloop's instrumentation neither span is the other's parent, and nothing but the answer's id says
# that they are one call; of a stream one of them says 50 output tokens and the other 51. OpenInference's span, and the
# one of Langfuse's callback, is the parent of the SDK's and has no id. Langfuse sets a provider and exports both.
# Why it matters: every call is there twice, under two scopes, and a sum over spans doubles. The cache writes have
# another name in each of the two, so that a query for one name hides the double. The client's option
# `open_telemetry={"traces": False}` and ANTHROPIC_OPEN_TELEMETRY=false turn the SDK's spans off.
# Versions: anthropic 2.14.0, opentelemetry-instrumentation-anthropic 0.62.4 (Traceloop),
# openinference-instrumentation-anthropic 3.1.0, langfuse 5.0.4, langchain-anthropic 1.7.10, langchain-core 1.8.3.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    anthropic==2.14.0 \
    opentelemetry-instrumentation-anthropic==0.62.4 \
    openinference-instrumentation-anthropic==3.1.0 \
    langfuse==5.0.4 \
    langchain==1.5.2 \
    langchain-anthropic==1.7.10 \
    langchain-core==1.8.3 \
    opentelemetry-sdk==1.45.2

"$work/venv/bin/python" -W ignore - <<'PY'
import http.server
import json
import os
import sys
import threading
from importlib.metadata import version

import anthropic
from langchain_anthropic import ChatAnthropic
from langfuse import Langfuse
from langfuse.langchain import CallbackHandler
from openinference.instrumentation.anthropic import AnthropicInstrumentor as OpenInference
from opentelemetry import trace
from opentelemetry.instrumentation.anthropic import AnthropicInstrumentor as Traceloop
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

COUNTS = {"input_tokens": 9, "cache_read_input_tokens": 3962, "cache_creation_input_tokens": 100, "output_tokens": 50}
MESSAGE = {
    "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-sonnet-4-20250514",
    "content": [{"type": "text", "text": "Hello"}], "stop_reason": "end_turn", "stop_sequence": None, "usage": COUNTS,
}
START = MESSAGE | {"content": [], "stop_reason": None, "usage": COUNTS | {"output_tokens": 1}}
EVENTS = [
    {"type": "message_start", "message": START},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": COUNTS},
    {"type": "message_stop"},
]
SDK = "com.anthropic.sdk.python"


class Upstream(http.server.BaseHTTPRequestHandler):
    """Anthropic's Messages API, plain and streamed; what Langfuse sends is answered, too."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        is_stream = self.path == "/v1/messages" and json.loads(body).get("stream", False)
        events = "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in EVENTS)
        payload = (events if is_stream else json.dumps(MESSAGE)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream" if is_stream else "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *args):
        pass


def check(words, seen, expected):
    """Print what was seen; leave with an error when it is no longer what this finding says."""
    print(f"{words}: {seen}")
    if seen != expected:
        sys.exit(f"The behaviour has changed: expected {expected}")


def counted(span):
    """The span's input, output and answer's id; of Langfuse's span the input as it divides it, summed up."""
    read = dict(span.attributes).get
    if usage := json.loads(read("langfuse.observation.usage_details", "{}")):
        return sum(count for name, count in usage.items() if name not in ("output", "total")), usage["output"], None
    prefix = "llm.token_count." if read("llm.token_count.prompt") else "gen_ai.usage."
    names = ("prompt", "completion") if read("llm.token_count.prompt") else ("input_tokens", "output_tokens")
    return *[read(prefix + name) for name in names], read("gen_ai.response.id")


def writes(span):
    """The name under which the span has the cache writes."""
    flat = dict(span.attributes) | json.loads(span.attributes.get("langfuse.observation.usage_details", "{}"))
    (name,) = [name for name, value in flat.items() if value == COUNTS["cache_creation_input_tokens"]]
    return name


def spans():
    """The last call's spans: the other's place to the SDK's, the names of the cache writes, and what each counts."""
    client.flush()
    found = {span.instrumentation_scope.name: span for span in exporter.get_finished_spans()}
    exporter.clear()
    seen = {scope: counted(span) for scope, span in found.items()}
    if len(found) < 2:
        return seen
    sdk = found.pop(SDK)
    (other,) = found.values()
    is_parent = sdk.parent is not None and sdk.parent.span_id == other.context.span_id
    is_child = other.parent is not None and other.parent.span_id == sdk.context.span_id
    place = "parent" if is_parent else "child" if is_child else "neither"
    return place, writes(sdk), writes(other), seen


for name in [
    "anthropic", "opentelemetry-instrumentation-anthropic", "openinference-instrumentation-anthropic", "langfuse",
    "langchain", "langchain-anthropic", "langchain-core", "opentelemetry-sdk",
]:
    print(name, version(name))
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
threading.Thread(target=server.serve_forever, daemon=True).start()
address = f"http://127.0.0.1:{server.server_port}"
exporter = InMemorySpanExporter()
client = Langfuse(public_key="pk-none", secret_key="sk-none", base_url=address, span_exporter=exporter)
provider = trace.get_tracer_provider()
print("provider of the process, set by Langfuse:", type(provider).__name__)
request = {"model": "claude-sonnet-4-20250514", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}
WORDS = "spans with input, output and id"
PAIR = f"the other's place to the SDK's, the names of the cache writes, {WORDS}"
WRITES = "gen_ai.usage.cache_write.input_tokens"
OWN = {SDK: (4071, 50, "msg_1")}

sdk = anthropic.Anthropic(api_key="none", base_url=address)
sdk.messages.create(**request)
check(f"no instrumentation: {WORDS}", spans(), OWN)
off = anthropic.Anthropic(api_key="none", base_url=address, open_telemetry={"traces": False})
off.messages.create(**request)
check(f"no instrumentation, the SDK's spans turned off: {WORDS}", spans(), {})
os.environ["ANTHROPIC_OPEN_TELEMETRY"] = "false"
anthropic.Anthropic(api_key="none", base_url=address).messages.create(**request)
check(f"the same by the environment: {WORDS}", spans(), {})
del os.environ["ANTHROPIC_OPEN_TELEMETRY"]

model = ChatAnthropic(model=request["model"], api_key="none", base_url=address)
model.invoke("Hi", config={"callbacks": [CallbackHandler()]})
seen = OWN | {"langfuse-sdk": (4071, 50, None)}
expected = "parent", WRITES, "cache_creation_input_tokens", seen
check(f"LangChain with Langfuse's callback: {PAIR}", spans(), expected)

OpenInference().instrument(tracer_provider=provider)
sdk.messages.create(**request)
seen = OWN | {"openinference.instrumentation.anthropic": (4071, 50, None)}
expected = "parent", WRITES, "llm.token_count.prompt_details.cache_write", seen
check(f"OpenInference: {PAIR}", spans(), expected)
OpenInference().uninstrument()

Traceloop().instrument(tracer_provider=provider)
sdk = anthropic.Anthropic(api_key="none", base_url=address)
sdk.messages.create(**request)
seen = OWN | {"opentelemetry.instrumentation.anthropic": (4071, 50, "msg_1")}
expected = "neither", WRITES, "gen_ai.usage.cache_creation.input_tokens", seen
check(f"Traceloop: {PAIR}", spans(), expected)
print("events of the stream:", len(list(sdk.messages.create(**request, stream=True))))
seen = OWN | {"opentelemetry.instrumentation.anthropic": (4071, 51, "msg_1")}
expected = "neither", WRITES, "gen_ai.usage.cache_creation.input_tokens", seen
check(f"Traceloop, streamed: {PAIR}", spans(), expected)
PY
