#!/usr/bin/env bash
# Guess: one tracer's gen_ai.usage.input_tokens means the same in each version and for each provider, and its metric of
# input tokens says what its spans say.
# Instead: the spans of Strands leave cached tokens out of the input until 1.53. From 1.54 on the input holds them for
# Bedrock, and for Anthropic's own API only from the patch 1.57.2 on, which changes the total as well. The scope and
# the names of the counts stay the same; 1.54 adds a second name for each count of the cache. The metric
# strands.event_loop.input.tokens leaves the cached tokens out in all of these versions.
# Why it matters: two upgrades raise the input of the same traffic hundreds of times, one provider at a time. The scope
# does not tell whether to add the cached tokens; from 1.54 to 1.57.1 neither do the names, nor the total, which is the
# sum of input and output for both providers. Span and metric of one call disagree.
# Versions: strands-agents 1.53.0, 1.54.0, 1.57.1, 1.57.2 and 1.62.0, with anthropic 0.125.0 and boto3 1.44.8.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
pip=("$work/venv/bin/pip" --quiet --disable-pip-version-check)
"${pip[@]}" install \
    'strands-agents[anthropic]==1.62.0' \
    mcp==1.30.0 \
    anthropic==0.125.0 \
    boto3==1.44.8 \
    opentelemetry-sdk==1.45.1

cat > "$work/finding.py" <<'PY'
import http.server
import json
import os
import sys
import threading
from importlib.metadata import version

import boto3
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


def serve(answer):
    """Serve answer(path, request) on 127.0.0.1, a dict as JSON and a list as server-sent events; return the address."""

    class Upstream(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            reply = answer(self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            events = reply if isinstance(reply, list) else []
            lines = [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events]
            payload = ("".join(lines) if events else json.dumps(reply)).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream" if events else "application/json")
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


def check(words, seen, expected):
    """Print what was seen; leave with an error when it is no longer what this finding says."""
    print(f"{words}: {seen}")
    if seen != expected:
        sys.exit(f"The behaviour has changed: expected {expected}")


CONVERSE = {
    "output": {"message": {"role": "assistant", "content": [{"text": "Hello"}]}}, "stopReason": "end_turn",
    "metrics": {"latencyMs": 1},
    "usage": {
        "inputTokens": 9, "outputTokens": 50, "totalTokens": 4121,
        "cacheReadInputTokens": 3962, "cacheWriteInputTokens": 100,
    },
}
USAGE = {"input_tokens": 9, "cache_read_input_tokens": 3962, "cache_creation_input_tokens": 100, "output_tokens": 50}
MESSAGE = {
    "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-sonnet-4-5", "content": [],
    "stop_reason": None, "stop_sequence": None, "usage": USAGE | {"output_tokens": 1},
}
MESSAGES = [
    {"type": "message_start", "message": MESSAGE},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": USAGE},
    {"type": "message_stop"},
]

exporter, reader, provider = InMemorySpanExporter(), InMemoryMetricReader(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
metrics.set_meter_provider(MeterProvider(metric_readers=[reader]))

from strands import Agent  # noqa: E402: its metrics and tracer belong to the providers set above
from strands.models import BedrockModel  # noqa: E402
from strands.models.anthropic import AnthropicModel  # noqa: E402


def metric(name):
    """The sum of the histogram so far."""
    found = reader.get_metrics_data()
    scopes = [scope for resource in found.resource_metrics for scope in resource.scope_metrics] if found else []
    every = [one for scope in scopes for one in scope.metrics]
    return sum(point.sum for one in every if one.name == name for point in one.data.data_points)


def facts(model):
    """Input and total of the span of the model's call, and the input that the metric got."""
    exporter.clear()
    before = metric("strands.event_loop.input.tokens")
    Agent(model=model, callback_handler=None)("Hi")
    (span,) = [span for span in exporter.get_finished_spans() if span.name == "chat"]
    assert span.instrumentation_scope.name == "strands.telemetry.tracer"
    names = [f"gen_ai.usage.{name}_tokens" for name in ("input", "total", "cache_read_input")]
    *counts, cached = [span.attributes[name] for name in names]
    assert cached == 3962
    assert ("gen_ai.usage.cache_read.input_tokens" in span.attributes) == (number != "1.53.0")
    return (*counts, metric("strands.event_loop.input.tokens") - before)


os.environ.update(AWS_ACCESS_KEY_ID="none", AWS_SECRET_ACCESS_KEY="none")
address = serve(lambda path, request: CONVERSE if path.endswith("/converse") else MESSAGES)
session = boto3.Session(region_name="us-east-1")
model_id = "anthropic.claude-sonnet-4-5-20250929-v1:0"
bedrock = BedrockModel(boto_session=session, endpoint_url=address, model_id=model_id, streaming=False)
client = {"api_key": "none", "base_url": address}
anthropic = AnthropicModel(client_args=client, model_id="claude-sonnet-4-5", max_tokens=50)
number = version("strands-agents")
EXPECTED = {
    "1.53.0": ((9, 4121, 9), (9, 59, 9)),
    "1.54.0": ((4071, 4121, 9), (9, 59, 9)),
    "1.57.1": ((4071, 4121, 9), (9, 59, 9)),
    "1.57.2": ((4071, 4121, 9), (4071, 4121, 9)),
    "1.62.0": ((4071, 4121, 9), (4071, 4121, 9)),
}
words = "input and total of the span, input of the metric"
check(f"{number}, Bedrock: {words}", facts(bedrock), EXPECTED[number][0])
check(f"{number}, Anthropic: {words}", facts(anthropic), EXPECTED[number][1])
PY

"$work/venv/bin/python" -c 'from importlib.metadata import version as v
print(*(f"{name} {v(name)}" for name in ("strands-agents", "anthropic", "boto3", "opentelemetry-sdk")), sep="\n")'
echo "what both providers say: input 9, cache read 3962, cache written 100, output 50"
for version in 1.53.0 1.54.0 1.57.1 1.57.2 1.62.0; do
    "${pip[@]}" install --no-deps "strands-agents==$version"
    "$work/venv/bin/python" -W ignore "$work/finding.py"
done
