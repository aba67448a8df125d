#!/usr/bin/env bash
# Guess: `cache_creation` in LangChain's usage is the number of tokens that were written to the cache.
# Instead: where the answer splits the writes by lifetime, `cache_creation` is 0 and the writes are under
# `ephemeral_5m_input_tokens` and `ephemeral_1h_input_tokens`; where it does not, as at the end of a stream,
# `cache_creation` is the total and the two names are absent.
# Why it matters: a sum over `cache_creation` holds the streamed calls only. A sum over all details is right here, and
# counts twice on other producers, which give the total beside its parts.
# Versions: langchain-anthropic 1.7.10, langchain-core 1.8.3, anthropic 2.14.0.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    langchain-anthropic==1.7.10 \
    langchain-core==1.8.3 \
    anthropic==2.14.0

"$work/venv/bin/python" -W ignore - <<'PY'
import http.server
import json
import sys
import threading
from importlib.metadata import version

from langchain_anthropic import ChatAnthropic


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


for name in ["langchain-anthropic", "langchain-core", "anthropic"]:
    print(name, version(name))

SPLIT = {"cache_creation": {"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 200}}
USAGE = {"input_tokens": 9, "cache_read_input_tokens": 3962, "cache_creation_input_tokens": 300, "output_tokens": 500}
MESSAGE = {
    "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-sonnet-4-5", "stop_sequence": None,
    "content": [{"type": "text", "text": "Hello"}], "stop_reason": "end_turn", "usage": USAGE | SPLIT,
}
STREAM = [
    {"type": "message_start", "message": MESSAGE | {"content": [], "stop_reason": None}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": USAGE},
    {"type": "message_stop"},
]

address = serve(lambda path, request: STREAM if request.get("stream") else MESSAGE)
model = ChatAnthropic(model="claude-sonnet-4-5", api_key="none", base_url=address)
usage = model.invoke("Hi").usage_metadata
check("input of the call without streaming", usage["input_tokens"], 4271)
check("its details", usage["input_token_details"], {
    "cache_read": 3962, "cache_creation": 0, "ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 200})
whole = None
for chunk in model.stream("Hi"):
    whole = chunk if whole is None else whole + chunk
check("input of the streamed call", whole.usage_metadata["input_tokens"], 4271)
check("its details", whole.usage_metadata["input_token_details"], {"cache_read": 3962, "cache_creation": 300})
PY
