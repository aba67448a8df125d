#!/usr/bin/env bash
# Guess: a stream whose last chunk says how many tokens it used is counted by that.
# Instead: Moonshot writes the usage of a stream into the choice of the last chunk and Groq into `x_groq` of it, unless
# the request asks for `stream_options.include_usage`. The OpenAI SDK and LangChain then have no usage at all. LiteLLM, by
# its own providers for Moonshot and Groq, counts the texts with a tokenizer of its own, though the counts are there.
# Pydantic AI asks for the usage itself and has the right one.
# Why it matters: the tokens of such streams are 0 or invented in every log that these clients write, and nothing says so.
# Versions: openai 3.57.0, langchain-openai 1.7.4, litellm 1.110.2, pydantic-ai-slim 2.68.0.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    openai==3.57.0 langchain-openai==1.7.4 litellm==1.110.2 'pydantic-ai-slim[openai]==2.68.0'

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
import openai  # noqa: E402
from langchain_openai import ChatOpenAI  # noqa: E402
from pydantic_ai import Agent  # noqa: E402
from pydantic_ai.models.openai import OpenAIChatModel  # noqa: E402
from pydantic_ai.providers.openai import OpenAIProvider  # noqa: E402

litellm.suppress_debug_info = True
USAGE = {"prompt_tokens": 19, "completion_tokens": 13, "total_tokens": 32}
QUESTION = [{"role": "user", "content": "Hi"}]


def chunks(place, request):
    base = {"id": "c", "object": "chat.completion.chunk", "created": 1750000000, "model": request["model"]}
    choice = {"index": 0, "delta": {"role": "assistant", "content": "Hello there"}, "finish_reason": None}
    end = {"index": 0, "delta": {}, "finish_reason": "stop"}
    last = base | (
        {"choices": [end | {"usage": USAGE}]}
        if place == "moonshot"
        else {"choices": [end], "x_groq": {"id": "req_1", "usage": USAGE}}
    )
    asked = (request.get("stream_options") or {}).get("include_usage")
    return [base | {"choices": [choice]}, last, *([base | {"choices": [], "usage": USAGE}] if asked else [])]


class Upstream(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        events = chunks(self.path.split("/")[1], request)
        payload = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Content-Length", str(len(payload.encode())))
        self.end_headers()
        self.wfile.write(payload.encode())

    def log_message(self, *args):
        pass


def check(words, seen, expected):
    """Print what was seen; leave with an error when it is no longer what this finding says."""
    print(f"{words}: {seen}")
    if seen != expected:
        sys.exit(f"The behaviour has changed: expected {expected}")


def by_litellm(name, url, **more):
    stream = litellm.completion(
        model=f"{name}/m", api_key="none", api_base=url, messages=QUESTION, stream=True, **more
    )
    usage = litellm.stream_chunk_builder(list(stream), messages=QUESTION).usage
    return usage.prompt_tokens, usage.completion_tokens


async def by_pydantic(url):
    agent = Agent(OpenAIChatModel("m", provider=OpenAIProvider(base_url=url, api_key="none")))
    async with agent.run_stream("Hi") as result:
        async for _ in result.stream_text():
            pass
        usage = result.usage() if callable(result.usage) else result.usage
        return usage.input_tokens, usage.output_tokens


for name in ["openai", "langchain-openai", "litellm", "pydantic-ai-slim"]:
    print(name, version(name))
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
threading.Thread(target=server.serve_forever, daemon=True).start()
print("usage that the last chunk of each stream says:", USAGE)
for name in ["moonshot", "groq"]:
    url = f"http://127.0.0.1:{server.server_port}/{name}/v1"
    client = openai.OpenAI(api_key="none", base_url=url)
    stream = client.chat.completions.create(model="m", messages=QUESTION, stream=True)
    check(f"{name}, OpenAI SDK, usage of each chunk", [chunk.usage for chunk in stream], [None, None])
    whole = None
    for part in ChatOpenAI(model="m", api_key="none", base_url=url).stream("Hi"):
        whole = part if whole is None else whole + part
    check(f"{name}, LangChain, usage of the whole", whole.usage_metadata, None)
    counted = by_litellm(name, url)
    check(f"{name}, LiteLLM has counts of its own", counted not in [(19, 13), (0, 0)], True)
    print("  they are", counted)
    asked = by_litellm(name, url, stream_options={"include_usage": True})
    check(f"{name}, LiteLLM, asked for the usage", asked, (19, 13))
    check(f"{name}, Pydantic AI", asyncio.run(by_pydantic(url)), (19, 13))
PY
