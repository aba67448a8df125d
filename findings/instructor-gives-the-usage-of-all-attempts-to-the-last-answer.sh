#!/usr/bin/env bash
# Guess: the completion that Instructor hands out beside the object is the last answer, with the usage that came with it.
# Instead: after an attempt whose answer did not fit the model, its usage is the sum of all attempts, written into the
# answer itself, under the last answer's id. The hook for answers sees each attempt with its own usage.
# Why it matters: a log of such completions says more for an id than the provider charged for that id, and the attempts
# before have no record at all; beside a proxy's log, or the hook's, the failed attempts count twice.
# Versions: instructor 1.17.0, openai 3.3.0.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check instructor==1.17.0 openai==3.3.0

"$work/venv/bin/python" -W ignore - <<'PY'
import http.server
import json
import sys
import threading
from importlib.metadata import version

import instructor
import openai
from pydantic import BaseModel


def serve(answer):
    """Serve answer(path, request) as JSON on 127.0.0.1; return the address."""

    class Upstream(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            payload = json.dumps(answer(self.path, json.loads(body))).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
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


for name in ["instructor", "openai"]:
    print(name, version(name))

contents = []


def upstream(path, request):
    """Attempt n has 100 n input tokens, of which 90 (n - 1) come from the cache, and 10 output tokens."""
    contents.append(request)
    n = len(contents)
    message = {"role": "assistant", "content": '{"age": "unknown"}' if n == 1 else '{"age": 7}'}
    usage = {"prompt_tokens": 100 * n, "completion_tokens": 10, "total_tokens": 100 * n + 10}
    return {
        "id": f"chatcmpl-{n}", "object": "chat.completion", "created": 1750000000, "model": "gpt-4o-2024-08-06",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": usage | {"prompt_tokens_details": {"cached_tokens": 90 * (n - 1)}},
    }


class Person(BaseModel):
    age: int


def facts(answer):
    usage = answer.usage
    return answer.id, usage.prompt_tokens, usage.prompt_tokens_details.cached_tokens, usage.completion_tokens


plain = openai.OpenAI(api_key="none", base_url=serve(upstream) + "/v1")
client = instructor.from_openai(plain, mode=instructor.Mode.JSON)
hooked = []
client.on("completion:response", lambda answer: hooked.append(facts(answer)))
person, completion = client.chat.completions.create_with_completion(
    model="gpt-4o", response_model=Person, max_retries=2, messages=[{"role": "user", "content": "How old is she?"}]
)
check("age, requests", (person.age, len(contents)), (7, 2))
words = "id, input, cached input, output"
check(f"the hook, {words}", hooked, [("chatcmpl-1", 100, 0, 10), ("chatcmpl-2", 200, 90, 10)])
check(f"the completion, {words}", facts(completion), ("chatcmpl-2", 300, 90, 20))
PY
