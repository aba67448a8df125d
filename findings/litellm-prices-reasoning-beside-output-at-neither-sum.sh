#!/usr/bin/env bash
# Guess: where an OpenAI-compatible server counts reasoning beside the output (completion 100, reasoning 400, total
# 1,500), LiteLLM charges 500 output tokens, or the 100 that completion_tokens says.
# Instead: it charges 400, the reasoning alone. Of a stream it also logs total_tokens as 1,100, its own sum, so the one
# number is lost that says which way the server counts. (For its provider xai, LiteLLM corrects the counts to 500.)
# Why it matters: a fifth of the billed output is free, and the log of a stream can no longer be put right.
# Versions: litellm 1.110.2 (SDK, StandardLoggingPayload; prices of the package for gpt-4o).
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

USAGE = {
    "prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1500,
    "completion_tokens_details": {"reasoning_tokens": 400},
}


def answer(path, request):
    base = {"id": "chatcmpl-1", "created": 1750000000, "model": "gpt-4o"}
    if request.get("stream"):
        base["object"] = "chat.completion.chunk"
        choice = {"index": 0, "delta": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}
        return [base | {"choices": [choice]}, base | {"choices": [], "usage": USAGE}]
    choice = {"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}
    return base | {"object": "chat.completion", "choices": [choice], "usage": USAGE}


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
price = litellm.model_cost["gpt-4o"]
for name, record, total in ("whole answer", whole, 1500), ("stream", streamed, 1100):
    check(f"{name}: output and total as logged", (record["completion_tokens"], record["total_tokens"]), (100, total))
    paid = (record["response_cost"] - 1000 * price["input_cost_per_token"]) / price["output_cost_per_token"]
    check(f"{name}: output tokens that were charged", round(paid), 400)
PY
