#!/usr/bin/env bash
# Guess: a stream whose message_delta leaves out the optional input counts keeps those of message_start, as Anthropic's
# own SDK does and as the example streams of Anthropic's documentation need it.
# Instead: langchain-anthropic reads the usage of message_delta alone. Input, cache reads and cache writes are 0.
# Why it matters: a server or a gateway that sends only output_tokens at the end (which the SDK's types allow) makes
# every streamed call free on the input side, and the input is the larger side. No warning is given.
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

import anthropic
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

START = {"input_tokens": 9, "cache_read_input_tokens": 3962, "cache_creation_input_tokens": 100, "output_tokens": 1}
MESSAGE = {
    "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-sonnet-4-5", "stop_sequence": None,
    "content": [{"type": "text", "text": "Hello"}], "stop_reason": "end_turn", "usage": START | {"output_tokens": 500},
}
END = {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}}
STREAM = [
    {"type": "message_start", "message": MESSAGE | {"content": [], "stop_reason": None, "usage": START}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello"}},
    {"type": "content_block_stop", "index": 0},
    END | {"usage": {"output_tokens": 500}},
    {"type": "message_stop"},
]


def three(usage):
    return usage["input_tokens"], usage["input_token_details"].get("cache_read", 0), usage["output_tokens"]


address = serve(lambda path, request: STREAM if request.get("stream") else MESSAGE)
client = anthropic.Anthropic(api_key="none", base_url=address)
question = {"model": "claude-sonnet-4-5", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}
with client.messages.stream(**question) as own:
    usage = own.get_final_message().usage
check("uncached input, cache read, output by Anthropic's SDK, streamed",
      (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens), (9, 3962, 500))
model = ChatAnthropic(model="claude-sonnet-4-5", api_key="none", base_url=address)
check("input (all of it), cache read, output by LangChain", three(model.invoke("Hi").usage_metadata), (4071, 3962, 500))
whole = None
for chunk in model.stream("Hi"):
    whole = chunk if whole is None else whole + chunk
check("the same, streamed", three(whole.usage_metadata), (0, 0, 500))
PY
