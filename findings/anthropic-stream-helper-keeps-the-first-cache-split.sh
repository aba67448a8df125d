#!/usr/bin/env bash
# Guess: in the final message of a stream the cache writes by lifetime add up to the total of the cache writes.
# Instead: Anthropic's Python SDK takes the cumulative totals of message_delta, but keeps the split into five-minute and
# one-hour writes as message_start said it. The SDK's type of the delta's usage has no field for the split.
# Why it matters: one-hour writes cost 1.6 times as much as five-minute ones. A request with server tools writes to the
# cache after its start, and a price from the split misses those tokens, while a price from the total cannot tell them.
# Versions: anthropic 2.14.0 (messages.stream and get_final_message).
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    anthropic==2.14.0

"$work/venv/bin/python" -W ignore - <<'PY'
import http.server
import json
import sys
import threading
from importlib.metadata import version

import anthropic
from anthropic.types import MessageDeltaUsage


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


for name in ["anthropic"]:
    print(name, version(name))

START = {
    "input_tokens": 9, "output_tokens": 1, "cache_read_input_tokens": 0, "cache_creation_input_tokens": 100,
    "cache_creation": {"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 0},
}
# The totals at the end of a request that ran a server tool; all of them are cumulative.
END = {
    "input_tokens": 2009, "output_tokens": 500, "cache_read_input_tokens": 100, "cache_creation_input_tokens": 300,
    "server_tool_use": {"web_search_requests": 1},
}
MESSAGE = {
    "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-sonnet-4-5", "content": [],
    "stop_reason": None, "stop_sequence": None, "usage": START,
}
STREAM = [
    {"type": "message_start", "message": MESSAGE},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": END},
    {"type": "message_stop"},
]

client = anthropic.Anthropic(api_key="none", base_url=serve(lambda path, request: STREAM))
question = {"model": "claude-sonnet-4-5", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}
with client.messages.stream(**question) as stream:
    usage = stream.get_final_message().usage
split = usage.cache_creation
check("input, output and cache writes of the final message",
      (usage.input_tokens, usage.output_tokens, usage.cache_creation_input_tokens), (2009, 500, 300))
check("cache writes of five minutes and of one hour",
      (split.ephemeral_5m_input_tokens, split.ephemeral_1h_input_tokens), (100, 0))
check("cache writes that the split does not hold",
      usage.cache_creation_input_tokens - split.ephemeral_5m_input_tokens - split.ephemeral_1h_input_tokens, 200)
known = "cache_creation" in MessageDeltaUsage.model_fields
check("the type of the delta's usage has a field for the split", known, False)
PY
