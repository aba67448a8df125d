#!/usr/bin/env bash
# Guess: Langfuse's callback for LangChain records the same call under the same names, streamed or not, and the parts of
# an observation add up to its tokens.
# Instead: of a call to Claude without streaming it records Anthropic's own names (cache_read_input_tokens, ...), of the
# same call streamed LangChain's (input_cache_read, input_cache_creation). Without streaming the cache writes are
# recorded twice, as their total and by lifetime, and there is no total of the call; with streaming once, with a total.
# Why it matters: the parts of the call without streaming add up to 5,121 tokens of 4,621: every write counts twice, and
# with it goes the share of the cache. A price or a query by one set of names misses the other half of the traffic.
# Versions: langfuse 5.0.4, langchain-anthropic 1.7.10, langchain-core 1.8.3, anthropic 2.14.0.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    langfuse==5.0.4 \
    langchain==1.5.2 \
    langchain-anthropic==1.7.10 \
    langchain-core==1.8.3 \
    anthropic==2.14.0 \
    opentelemetry-sdk==1.45.2

"$work/venv/bin/python" -W ignore - <<'PY'
import http.server
import json
import sys
import threading
from importlib.metadata import version

from langchain_anthropic import ChatAnthropic
from langfuse import Langfuse
from langfuse.langchain import CallbackHandler
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

# Input 9 + 3,962 + 500 = 4,471, output 150, in all 4,621.
COUNTS = {
    "input_tokens": 9, "cache_read_input_tokens": 3962, "cache_creation_input_tokens": 500, "output_tokens": 150,
}
SPLIT = {"cache_creation": {"ephemeral_5m_input_tokens": 200, "ephemeral_1h_input_tokens": 300}}
MESSAGE = {
    "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-sonnet-4-20250514",
    "content": [{"type": "text", "text": "Hello"}], "stop_reason": "end_turn", "stop_sequence": None,
    "usage": COUNTS | SPLIT | {"service_tier": "standard"},
}
EVENTS = [
    {
        "type": "message_start",
        "message": MESSAGE | {"content": [], "stop_reason": None, "usage": COUNTS | SPLIT | {"output_tokens": 1}},
    },
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": COUNTS},
    {"type": "message_stop"},
]


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


def recorded():
    """What Langfuse's callback records of the call's usage: the total, and the parts; the SDK has its own spans."""
    client.flush()
    (span,) = [s for s in exporter.get_finished_spans() if s.instrumentation_scope.name == "langfuse-sdk"]
    exporter.clear()
    details = json.loads(span.attributes["langfuse.observation.usage_details"])
    return details.pop("total", None), details


for name in ["langfuse", "langchain", "langchain-anthropic", "langchain-core", "anthropic", "opentelemetry-sdk"]:
    print(name, version(name))
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
threading.Thread(target=server.serve_forever, daemon=True).start()
address = f"http://127.0.0.1:{server.server_port}"
exporter = InMemorySpanExporter()
client = Langfuse(public_key="pk-none", secret_key="sk-none", base_url=address, span_exporter=exporter)
model = ChatAnthropic(model="claude-sonnet-4-20250514", api_key="none", base_url=address)

print("what the API says:", COUNTS | SPLIT)
answer = model.invoke("Hi", config={"callbacks": [CallbackHandler()]})
check("total by LangChain, not streamed", answer.usage_metadata["total_tokens"], 4621)
total, plain = recorded()
check("total by Langfuse, not streamed", total, None)
expected = {
    "input": 9, "output": 150, "cache_read_input_tokens": 3962, "cache_creation_input_tokens": 500,
    "cache_creation_ephemeral_5m_input_tokens": 200, "cache_creation_ephemeral_1h_input_tokens": 300,
}
check("parts by Langfuse, not streamed", plain, expected)
check("sum of these parts", sum(plain.values()), 5121)
chunks = list(model.stream("Hi", config={"callbacks": [CallbackHandler()]}))
print("chunks of the stream:", len(chunks))
total, streamed = recorded()
check("total by Langfuse, streamed", total, 4621)
expected = {"input": 9, "output": 150, "input_cache_read": 3962, "input_cache_creation": 500}
check("parts by Langfuse, streamed", streamed, expected)
check("sum of these parts", sum(streamed.values()), 4621)
check("names in both", sorted(plain.keys() & streamed.keys()), ["input", "output"])
PY
