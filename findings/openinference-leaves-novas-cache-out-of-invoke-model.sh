#!/usr/bin/env bash
# Guess: llm.token_count.prompt has one meaning under one scope, and holds the parts that its prompt_details name.
# Instead: in OpenInference's spans of Bedrock it holds the cached tokens for Converse, and for InvokeModel with Claude.
# For InvokeModel with Amazon Nova, plain or streamed, it leaves them out; the details have the same names. The total
# of the plain call holds them. The total of the streamed call does not: Nova's stream says no total, and the
# instrumentation adds up the input without the cache and the output.
# Why it matters: of one cached call of Nova the spans say 4,071, 9 and 9 input tokens, and 4,121, 4,121 and 59 in all.
# A reader who knows the scope alone loses the cached input of two of them, or counts that of the first twice.
# Versions: openinference-instrumentation-bedrock 0.1.61, boto3 1.44.8.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    openinference-instrumentation-bedrock==0.1.61 \
    boto3==1.44.8 \
    opentelemetry-sdk==1.45.2

"$work/venv/bin/python" -W ignore - <<'PY'
import base64
import http.server
import json
import os
import struct
import sys
import threading
import zlib
from importlib.metadata import version

import boto3
from openinference.instrumentation.bedrock import BedrockInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


def framed(event):
    """One chunk of Bedrock's stream: lengths, their checksum, headers, payload, a checksum of all."""
    names = {":event-type": "chunk", ":content-type": "application/json", ":message-type": "event"}
    headers = b"".join(
        struct.pack("!B", len(name)) + name.encode() + struct.pack("!BH", 7, len(text)) + text.encode()
        for name, text in names.items()
    )
    payload = json.dumps({"bytes": base64.b64encode(json.dumps(event).encode()).decode()}).encode()
    lengths = struct.pack("!II", len(headers) + len(payload) + 16, len(headers))
    message = lengths + struct.pack("!I", zlib.crc32(lengths)) + headers + payload
    return message + struct.pack("!I", zlib.crc32(message))


def serve(answer):
    """Serve answer(path) on 127.0.0.1, a dict as JSON and a list as a stream of Bedrock's; return the address."""

    class Upstream(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            reply = answer(self.path)
            is_stream = isinstance(reply, list)
            payload = b"".join(map(framed, reply)) if is_stream else json.dumps(reply).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/vnd.amazon.eventstream" if is_stream else "application/json")
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


for name in ["openinference-instrumentation-bedrock", "boto3", "opentelemetry-sdk"]:
    print(name, version(name))

ANSWER = {"output": {"message": {"role": "assistant", "content": [{"text": "Hello"}]}}, "stopReason": "end_turn"}
TOLD = {"inputTokens": 9, "outputTokens": 50}
CONVERSE = TOLD | {"totalTokens": 4121, "cacheReadInputTokens": 3962, "cacheWriteInputTokens": 100}
STREAMED = TOLD | {"cacheReadInputTokenCount": 3962, "cacheWriteInputTokenCount": 100}
INVOKED = STREAMED | {"totalTokens": 4121}
NOVA_STREAM = [
    {"messageStart": {"role": "assistant"}},
    {"contentBlockDelta": {"delta": {"text": "Hello"}, "contentBlockIndex": 0}},
    {"contentBlockStop": {"contentBlockIndex": 0}},
    {"messageStop": {"stopReason": "end_turn"}},
    {"metadata": {"usage": STREAMED, "metrics": {}}},
]
CLAUDE = {
    "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-sonnet-4-20250514",
    "content": [{"type": "text", "text": "Hello"}], "stop_reason": "end_turn", "stop_sequence": None,
    "usage": {
        "input_tokens": 9, "output_tokens": 50, "cache_read_input_tokens": 3962, "cache_creation_input_tokens": 100,
    },
}


def upstream(path):
    if path.endswith("/converse"):
        return ANSWER | {"metrics": {"latencyMs": 1}, "usage": CONVERSE}
    if path.endswith("/invoke-with-response-stream"):
        return NOVA_STREAM
    return ANSWER | {"usage": INVOKED} if "nova" in path else CLAUDE


os.environ.update(AWS_ACCESS_KEY_ID="none", AWS_SECRET_ACCESS_KEY="none", AWS_DEFAULT_REGION="us-east-1")
exporter, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
BedrockInstrumentor().instrument(tracer_provider=provider)
client = boto3.client("bedrock-runtime", endpoint_url=serve(upstream))
NAMES = ["prompt", "prompt_details.cache_read", "prompt_details.cache_write", "completion", "total"]
WORDS = "input, cache read, cache written, output, total"


def last_span():
    (span,) = exporter.get_finished_spans()
    exporter.clear()
    assert span.instrumentation_scope.name == "openinference.instrumentation.bedrock"
    return tuple(span.attributes.get(f"llm.token_count.{name}") for name in NAMES)


nova, claude = "amazon.nova-pro-v1:0", "anthropic.claude-sonnet-4-20250514-v1:0"
messages = [{"role": "user", "content": [{"text": "Hi"}]}]
print("what Bedrock says to Converse:", CONVERSE)
print("what Nova says to InvokeModel:", INVOKED)
client.converse(modelId=nova, messages=messages)
check(f"Nova, Converse: {WORDS}", last_span(), (4071, 3962, 100, 50, 4121))
client.invoke_model(modelId=nova, body=json.dumps({"messages": messages}))
check(f"Nova, InvokeModel: {WORDS}", last_span(), (9, 3962, 100, 50, 4121))
events = client.invoke_model_with_response_stream(modelId=nova, body=json.dumps({"messages": messages}))["body"]
print("events of the stream:", len(list(events)))
check(f"Nova, InvokeModel, streamed: {WORDS}", last_span(), (9, 3962, 100, 50, 59))
question = {"anthropic_version": "bedrock-2023-05-31", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}
client.invoke_model(modelId=claude, body=json.dumps(question))
check(f"Claude, InvokeModel: {WORDS}", last_span(), (4071, 3962, 100, 50, None))
PY
