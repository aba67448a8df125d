#!/usr/bin/env bash
# Guess: gen_ai.usage.input_tokens holds the cached tokens too, as OpenTelemetry's conventions ask for.
# Instead: OpenTelemetry's own botocore instrumentation copies Bedrock's inputTokens, which excludes them. The parts in
# the same span (cache_read, cache_creation) are larger than their total. For InvokeModel with a Claude model the input
# is the uncached part as well, and the cached parts are not recorded at all.
# Why it matters: a reader of inclusive spans has to refuse these or undercounts them, the scope name is the only sign,
# and the InvokeModel calls cannot be repaired.
# Versions: opentelemetry-instrumentation-botocore 0.66b2, boto3 1.44.8.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    boto3==1.44.8 \
    opentelemetry-instrumentation-botocore==0.66b2 \
    opentelemetry-sdk==1.45.2

"$work/venv/bin/python" -W ignore - <<'PY'
import http.server
import json
import os
import sys
import threading
from importlib.metadata import version

import boto3
from opentelemetry.instrumentation.botocore import BotocoreInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


def serve(answer):
    """Serve answer(path, request) on 127.0.0.1, a dict as JSON and a list as server-sent events; return the address."""

    class Upstream(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            reply = answer(self.path, request)
            events = reply if isinstance(reply, list) else []
            lines = [(f"event: {e['type']}\n" if "type" in e else "") + f"data: {json.dumps(e)}\n\n" for e in events]
            if events and "type" not in events[0]:
                lines.append("data: [DONE]\n\n")
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


for name in ["boto3", "opentelemetry-instrumentation-botocore", "opentelemetry-sdk"]:
    print(name, version(name))

CONVERSE = {
    "output": {"message": {"role": "assistant", "content": [{"text": "Hello"}]}}, "stopReason": "end_turn",
    "metrics": {"latencyMs": 1},
    "usage": {
        "inputTokens": 9, "outputTokens": 50, "totalTokens": 4121,
        "cacheReadInputTokens": 3962, "cacheWriteInputTokens": 100,
    },
}
INVOKE = {
    "id": "msg_1", "type": "message", "role": "assistant", "content": [{"type": "text", "text": "Hello"}],
    "stop_reason": "end_turn", "stop_sequence": None,
    "usage": {
        "input_tokens": 9, "output_tokens": 50, "cache_read_input_tokens": 3962, "cache_creation_input_tokens": 100,
    },
}
MODEL = "anthropic.claude-sonnet-4-20250514-v1:0"

os.environ.update(AWS_ACCESS_KEY_ID="none", AWS_SECRET_ACCESS_KEY="none", AWS_DEFAULT_REGION="us-east-1")
exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
BotocoreInstrumentor().instrument(tracer_provider=provider)
address = serve(lambda path, request: CONVERSE if path.endswith("/converse") else INVOKE)
client = boto3.client("bedrock-runtime", endpoint_url=address)
client.converse(modelId=MODEL, messages=[{"role": "user", "content": [{"text": "Hi"}]}])
question = {"anthropic_version": "bedrock-2023-05-31", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}
client.invoke_model(modelId=MODEL, body=json.dumps(question))
NAMES = ["input_tokens", "cache_read.input_tokens", "cache_creation.input_tokens", "output_tokens"]
converse, invoke = (
    tuple(span.attributes.get(f"gen_ai.usage.{name}") for name in NAMES) for span in exporter.get_finished_spans()
)
check("Converse: input, cache read, cache written, output", converse, (9, 3962, 100, 50))
check("InvokeModel: the same", invoke, (9, None, None, 50))
PY
