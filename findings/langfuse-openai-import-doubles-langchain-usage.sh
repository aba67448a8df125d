#!/usr/bin/env bash
# Guess: Langfuse's wrapper of the OpenAI client traces the clients that are made by it.
# Instead: `import langfuse.openai` patches the openai package for the whole process. LangChain calls that package, so
# with Langfuse's callback one request becomes two generations, parent and child, each with the full usage.
# Why it matters: tokens and costs double as soon as any module of a LangChain program has that import, used or not. The
# response's id is in neither span, so an identity that would show the double is not there.
# Versions: langfuse 5.0.4, langchain-openai 1.7.4, langchain-core 1.8.3, openai 3.57.0.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    langfuse==5.0.4 \
    langchain==1.5.2 \
    langchain-openai==1.7.4 \
    langchain-core==1.8.3 \
    openai==3.57.0 \
    opentelemetry-sdk==1.45.2

"$work/venv/bin/python" -W ignore - <<'PY'
import http.server
import json
import sys
import threading
from importlib.metadata import version

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


for name in ["langfuse", "langchain", "langchain-openai", "langchain-core", "openai", "opentelemetry-sdk"]:
    print(name, version(name))

requests = []


def answer(path, request):
    requests.append(request)
    choice = {"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}
    return {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1750000000, "model": "gpt-4o-2024-08-06",
        "choices": [choice], "usage": {"prompt_tokens": 2006, "completion_tokens": 300, "total_tokens": 2306},
    }


address = serve(answer)
exporter = InMemorySpanExporter()
langfuse_client = Langfuse(public_key="pk-none", secret_key="sk-none", base_url=address, span_exporter=exporter)


def call():
    """Return the requests that the upstream saw, and the totals of the generations that were recorded."""
    exporter.clear()
    requests.clear()
    model = ChatOpenAI(model="gpt-4o", api_key="none", base_url=address + "/v1")
    model.invoke("Hi", config={"callbacks": [CallbackHandler()]})
    langfuse_client.flush()
    spans = [s for s in exporter.get_finished_spans() if s.attributes["langfuse.observation.type"] == "generation"]
    usages = [json.loads(s.attributes["langfuse.observation.usage_details"]) for s in spans]
    named = [s.name for s in spans if "chatcmpl-1" in str(dict(s.attributes))]
    totals = [usage.get("total", usage.get("total_tokens")) for usage in usages]
    generations = dict(zip([s.name for s in spans], totals, strict=True))
    return len(requests), generations, named


WORDS = "requests, totals of the generations, generations with the response's id"
check(WORDS, call(), (1, {"ChatOpenAI": 2306}, []))
import langfuse.openai  # noqa: E402, F401 (this import is what is tried)

check("the same after the import", call(), (1, {"OpenAI-generation": 2306, "ChatOpenAI": 2306}, []))
PY
