#!/usr/bin/env bash
# Guess: of an answer that bills 128 image tokens for one image LiteLLM makes 128 prompt tokens.
# Instead: it makes 129. The number of images is added to the number of image tokens, in the prompt, in the total and in
# the image tokens of the details, which also have the right number of images beside it.
# Why it matters: the log, and every price made from it, is a few tokens too high for each call, so it never agrees with
# Cohere's invoice, and the difference looks like a rounding error that nobody can explain.
# Versions: litellm 1.110.2 (provider cohere, embed-v4.0).
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    litellm==1.110.2

"$work/venv/bin/python" -W ignore - <<'PY'
import http.server
import json
import os
import sys
import threading
from importlib.metadata import version

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # the prices that the package ships, so that nothing is fetched

import litellm  # noqa: E402

BILLED = {"input_tokens": 0, "image_tokens": 128, "images": 1}


class Upstream(http.server.BaseHTTPRequestHandler):
    """Cohere's embed API, as its documentation shows an answer about one image."""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        reply = {"id": "e", "embeddings": {"float": [[0.1, 0.2]]}, "response_type": "embeddings_by_type"}
        payload = json.dumps(reply | {"meta": {"api_version": {"version": "2"}, "billed_units": BILLED}}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
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


print("litellm", version("litellm"))
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
threading.Thread(target=server.serve_forever, daemon=True).start()
answer = litellm.embedding(
    model="cohere/embed-v4.0",
    input=["data:image/png;base64,iVBORw0KGgo="],
    api_key="none",
    api_base=f"http://127.0.0.1:{server.server_port}/v2/embed",
)
print("billed by the answer:", BILLED)
check("prompt tokens", answer.usage.prompt_tokens, 129)
check("total tokens", answer.usage.total_tokens, 129)
check("image tokens of the details", answer.usage.prompt_tokens_details.image_tokens, 129)
check("images of the details", answer.usage.prompt_tokens_details.image_count, 1)
PY
