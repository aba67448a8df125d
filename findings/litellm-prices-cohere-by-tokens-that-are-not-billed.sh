#!/usr/bin/env bash
# Guess: of the two counts in an answer of Cohere (`billed_units`, and `tokens`, which holds Cohere's own preamble and
# formatting too) a log with a cost column prices the billed ones.
# Instead: LiteLLM logs and prices `tokens`, so a short question costs many times too much; it says nothing of the
# billed units. genai-prices reads the billed units from the same body, and keeps them as floats.
# Why it matters: two ledgers of one call differ by a fixed amount for each request, which looks like a fault of
# neither.
# Versions: litellm 1.110.2, genai-prices 0.2.3 (each with its own prices).
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    litellm==1.110.2 \
    genai-prices==0.2.3

"$work/venv/bin/python" -W ignore - <<'PY'
import http.server
import json
import os
import sys
import threading
from importlib.metadata import version

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # the prices that the package ships, so that nothing is fetched

import litellm  # noqa: E402
from genai_prices import extract_usage  # noqa: E402


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


for name in ["litellm", "genai-prices"]:
    print(name, version(name))

BODY = {
    "id": "c1", "finish_reason": "COMPLETE",
    "message": {"role": "assistant", "content": [{"type": "text", "text": "Hello"}]},
    "usage": {
        "billed_units": {"input_tokens": 15.0, "output_tokens": 20.0},
        "tokens": {"input_tokens": 215.0, "output_tokens": 22.0},
    },
}
response = litellm.completion(
    model="cohere_chat/command-r-08-2024", api_key="none", messages=[{"role": "user", "content": "Hi"}],
    api_base=serve(lambda path, request: BODY) + "/v2/chat",
)
check("input and output by LiteLLM", (response.usage.prompt_tokens, response.usage.completion_tokens), (215, 22))
price = litellm.model_cost["command-r-08-2024"]
of_tokens = 215 * price["input_cost_per_token"] + 22 * price["output_cost_per_token"]
of_billed = 15 * price["input_cost_per_token"] + 20 * price["output_cost_per_token"]
check("the cost by LiteLLM is that of `tokens`", abs(litellm.completion_cost(response) - of_tokens) < 1e-12, True)
print(f"${of_tokens:.8f}, where the billed units cost ${of_billed:.8f}")
check("LiteLLM's usage names the billed units", "billed" in str(response.usage.model_dump()), False)
found = extract_usage(BODY | {"model": "command-r"}, provider_id="cohere").usage
check("input and output by genai-prices", (found.input_tokens, found.output_tokens), (15, 20))
check("their type", type(found.input_tokens).__name__, "float")
PY
