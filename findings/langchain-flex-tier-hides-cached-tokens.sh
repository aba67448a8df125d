#!/usr/bin/env bash
# Guess: a service tier changes the price of a call, not the names of its counts.
# Instead: for an answer of tier flex or priority langchain-openai puts the tier before the names (`flex_cache_read`,
# `flex_reasoning`) and adds a rest (`flex`). LangChain's own cost callback then sees no cached and no reasoning tokens
# and charges the cached ones in full; Langfuse subtracts all details and records input 0 and output 0, with the tokens
# under new names (`input_flex`, `output_flex`, ...).
# Why it matters: the cheap tier comes out dearer than the standard one, or as no input at all, and only for these
# calls.
# Versions: langchain-openai 1.7.4, langchain-core 1.8.3, langchain-community 0.4.2, langfuse 5.0.4, openai 3.57.0.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    langchain-openai==1.7.4 \
    langchain-core==1.8.3 \
    langchain-community==0.4.2 \
    langchain==1.5.2 \
    langfuse==5.0.4 \
    openai==3.57.0 \
    opentelemetry-sdk==1.45.2

"$work/venv/bin/python" -W ignore - <<'PY'
import http.server
import json
import sys
import threading
from importlib.metadata import version

from langchain_community.callbacks import get_openai_callback
from langchain_openai import ChatOpenAI
from langfuse import Langfuse
from langfuse.langchain import CallbackHandler
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


for name in [
    "langchain-openai", "langchain-core", "langchain-community", "langchain", "langfuse", "openai",
    "opentelemetry-sdk",
]:
    print(name, version(name))

USAGE = {
    "prompt_tokens": 2006, "completion_tokens": 300, "total_tokens": 2306,
    "prompt_tokens_details": {"cached_tokens": 1920}, "completion_tokens_details": {"reasoning_tokens": 64},
}
tier = "default"


def answer(path, request):
    choice = {"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}
    return {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1750000000, "model": "gpt-4o-2024-08-06",
        "choices": [choice], "usage": USAGE, "service_tier": tier,
    }


address = serve(answer)
exporter = InMemorySpanExporter()
langfuse_client = Langfuse(public_key="pk-none", secret_key="sk-none", base_url=address, span_exporter=exporter)
model = ChatOpenAI(model="gpt-4o", api_key="none", base_url=address + "/v1")


def call():
    """Return the input's details, the callback's cached tokens and cost, and what Langfuse records."""
    exporter.clear()
    with get_openai_callback() as cost:
        usage = model.invoke("Hi", config={"callbacks": [CallbackHandler()]}).usage_metadata
    langfuse_client.flush()
    (span,) = exporter.get_finished_spans()
    recorded = json.loads(span.attributes["langfuse.observation.usage_details"])
    charged = cost.prompt_tokens_cached, round(cost.total_cost, 6)
    details = dict(sorted(usage["input_token_details"].items()))
    return details, charged, (recorded["input"], recorded["output"], recorded["total"])


details, cost, recorded = call()
check("tier default, details of the input", details, {"cache_read": 1920})
check("cached tokens and dollars by the callback", cost, (1920, 0.005615))
check("input, output, total by Langfuse", recorded, (86, 236, 2306))
tier = "flex"
details, cost, recorded = call()
check("tier flex, details of the input", details, {"flex": 86, "flex_cache_read": 1920})
check("cached tokens and dollars by the callback", cost, (0, 0.008015))
check("input, output, total by Langfuse", recorded, (0, 0, 2306))
PY
