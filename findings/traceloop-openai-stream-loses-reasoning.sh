#!/usr/bin/env bash
# Guess: a span of a streamed chat holds the attributes that the span of the same chat without streaming holds.
# Instead: with streaming the span has no reasoning count and no service tier, though the usage chunk and the other
# chunks carry both. Input, output and cached tokens are there, so the span looks complete.
# Why it matters: reasoning per model is computed from the calls without streaming alone, and a flex or priority call
# (half or twice the price) cannot be told from a standard one once it is streamed.
# Versions: opentelemetry-instrumentation-openai 0.62.4 (Traceloop), openai 3.57.0.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    openai==3.57.0 \
    opentelemetry-instrumentation-openai==0.62.4 \
    opentelemetry-sdk==1.45.2

"$work/venv/bin/python" -W ignore - <<'PY'
import http.server
import json
import sys
import threading
from importlib.metadata import version

import openai
from opentelemetry.instrumentation.openai import OpenAIInstrumentor
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


for name in ["openai", "opentelemetry-instrumentation-openai", "opentelemetry-sdk"]:
    print(name, version(name))

USAGE = {
    "prompt_tokens": 2006, "completion_tokens": 300, "total_tokens": 2306,
    "prompt_tokens_details": {"cached_tokens": 1920}, "completion_tokens_details": {"reasoning_tokens": 64},
}


def answer(path, request):
    base = {"id": "chatcmpl-1", "created": 1750000000, "model": "gpt-5", "service_tier": "flex"}
    if not request.get("stream"):
        choice = {"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}
        return base | {"object": "chat.completion", "choices": [choice], "usage": USAGE}
    base["object"] = "chat.completion.chunk"
    choice = {"index": 0, "delta": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}
    return [base | {"choices": [choice], "usage": None}, base | {"choices": [], "usage": USAGE}]


exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
OpenAIInstrumentor().instrument(tracer_provider=provider)
client = openai.OpenAI(api_key="none", base_url=serve(answer) + "/v1")
question = {"model": "gpt-5", "service_tier": "flex", "messages": [{"role": "user", "content": "Hi"}]}
client.chat.completions.create(**question)
for chunk in client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **question):
    pass
NAMES = [
    "gen_ai.usage.input_tokens", "gen_ai.usage.cache_read.input_tokens", "gen_ai.usage.output_tokens",
    "gen_ai.usage.reasoning_tokens", "openai.response.service_tier",
]
whole, streamed = (tuple(span.attributes.get(name) for name in NAMES) for span in exporter.get_finished_spans())
check("input, cached, output, reasoning, tier without streaming", whole, (2006, 1920, 300, 64, "flex"))
check("the same with streaming", streamed, (2006, 1920, 300, None, None))
PY
