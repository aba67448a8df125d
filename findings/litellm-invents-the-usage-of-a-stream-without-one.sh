#!/usr/bin/env bash
# Guess: a stream that ends without a usage leaves a log record without counts, as the answer without one does.
# Instead: LiteLLM counts the text of the prompt and of the answer with a tokenizer of its own and logs that as the
# usage, with a price. Nothing in the record says so. The same answer without streaming is logged with counts of 0.
# Why it matters: a broken or old upstream looks healthy. Cache reads and hidden reasoning cannot be in such counts, and
# a bill made from them can be explained to nobody.
# Versions: litellm 1.110.2 (SDK, StandardLoggingPayload as the custom logger gets it).
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    litellm==1.110.2

"$work/venv/bin/python" -W ignore - <<'PY'
import asyncio
import http.server
import json
import os
import sys
import threading
from importlib.metadata import version

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # the prices that the package ships, so that nothing is fetched

import litellm  # noqa: E402
from litellm.integrations.custom_logger import CustomLogger  # noqa: E402


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


for name in ["litellm"]:
    print(name, version(name))

def answer(path, request):
    base = {"id": "chatcmpl-1", "created": 1750000000, "model": "gpt-4o"}
    if request.get("stream"):
        choice = {"index": 0, "delta": {"role": "assistant", "content": "Hello there"}, "finish_reason": "stop"}
        return [base | {"object": "chat.completion.chunk", "choices": [choice]}]
    choice = {"index": 0, "message": {"role": "assistant", "content": "Hello there"}, "finish_reason": "stop"}
    return base | {"object": "chat.completion", "choices": [choice]}


class Keep(CustomLogger):
    def __init__(self):
        super().__init__()
        self.records = []

    async def async_log_success_event(self, kwargs, response_obj, start_time, end_time):
        self.records.append(kwargs["standard_logging_object"])


async def main():
    keep = Keep()
    litellm.callbacks = [keep]
    question = {"model": "openai/gpt-4o", "api_key": "none", "api_base": serve(answer) + "/v1"}
    question["messages"] = [{"role": "user", "content": "Hi"}]
    await litellm.acompletion(**question)
    async for chunk in await litellm.acompletion(stream=True, stream_options={"include_usage": True}, **question):
        pass
    for _ in range(100):
        if len(keep.records) == 2:
            break
        await asyncio.sleep(0.1)
    return sorted(keep.records, key=lambda record: bool(record["stream"]))


whole, streamed = asyncio.run(main())
COUNTS = ["prompt_tokens", "completion_tokens", "total_tokens"]
check("counts logged without streaming", [whole[name] for name in COUNTS], [0, 0, 0])
counts = [streamed[name] for name in COUNTS]
check("counts logged for the stream are above 0", all(count > 0 for count in counts), True)
print("they are", counts)
check("the stream has a price", streamed["response_cost"] > 0, True)
check("fields that only the stream's record has", sorted(set(streamed) - set(whole)), [])
marks = [key for key in streamed["metadata"]["usage_object"] if "estimat" in key or "local" in key]
check("marks in its usage that say it was made up", marks, [])
PY
