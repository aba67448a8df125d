#!/usr/bin/env bash
# Guess: the part of a long input that LangSmith says is over 200,000 tokens depends on how long the input is.
# Instead: of the same input of 250,000 tokens, none is over 200,000 where nothing came from a cache, and 49,000 where
# 1,000 tokens did: the split is made only beside a cache, and cached tokens are taken off first.
# Why it matters: Gemini's higher price is one of the whole request, from its length. Neither of the two splits says how
# much is charged at that price, and they differ for requests that cost nearly the same. Whoever prices by this detail has
# no long requests at all as long as nothing is cached.
# Versions: langsmith 0.15.1, google-genai 3.6.1.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check langsmith==0.15.1 google-genai==3.6.1

"$work/venv/bin/python" -W ignore - <<'PY'
import http.server
import json
import sys
import threading
from importlib.metadata import version

import langsmith
from google import genai
from google.genai import types
from langsmith.wrappers import wrap_gemini


def serve(answer, handled=("POST",)):
    """Serve answer(path, request) as JSON on 127.0.0.1; return the address."""

    class Upstream(http.server.BaseHTTPRequestHandler):
        def take(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            payload = json.dumps(answer(self.path, json.loads(body or b"{}"))).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *args):
            pass

    for method in handled:
        setattr(Upstream, f"do_{method}", Upstream.take)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


def check(words, seen, expected):
    """Print what was seen; leave with an error when it is no longer what this finding says."""
    print(f"{words}: {seen}")
    if seen != expected:
        sys.exit(f"The behaviour has changed: expected {expected}")


for name in ["langsmith", "google-genai"]:
    print(name, version(name))

usage = {"promptTokenCount": 250_000, "candidatesTokenCount": 20, "totalTokenCount": 250_020}


def gemini(path, request):
    candidate = {"content": {"role": "model", "parts": [{"text": "Hello"}]}, "finishReason": "STOP"}
    return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": "gemini-2.5-pro", "responseId": "r"}


address = serve(gemini)
runs = []
service = serve(lambda path, run: runs.append(run) or {}, ("POST", "PATCH", "GET"))
watched = langsmith.Client(api_url=service, api_key="none", auto_batch_tracing=False)
model = wrap_gemini(genai.Client(api_key="none", http_options=types.HttpOptions(base_url=address)))


def details():
    """What LangSmith says of the input's parts."""
    runs.clear()
    with langsmith.tracing_context(client=watched, enabled=True):
        model.models.generate_content(model="gemini-2.5-pro", contents="Hi")
    watched.flush()
    (found,) = [run["outputs"]["usage_metadata"] for run in runs if "usage_metadata" in (run.get("outputs") or {})]
    assert found["input_tokens"] == 250_000
    return found["input_token_details"]


check("250,000 tokens, none of them cached", details(), {})
usage["cachedContentTokenCount"] = 1_000
split = {"cache_read": 1_000, "cache_read_over_200k": 0, "over_200k": 49_000}
check("250,000 tokens, 1,000 of them cached", details(), split)
usage["cachedContentTokenCount"] = 100_000
split = {"cache_read": 100_000, "cache_read_over_200k": 0, "over_200k": 0}
check("250,000 tokens, 100,000 of them cached", details(), split)
PY
