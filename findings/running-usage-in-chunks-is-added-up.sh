#!/usr/bin/env bash
# Guess: a client that meets the usage so far in every chunk (vLLM sends it on request, Baseten by default) takes the
# last.
# Instead: LangChain and Pydantic AI add them all up, so the prompt is counted once for each chunk: 8,024 for 2,006 in
# four chunks. The OpenAI SDK's helper and the Agents SDK take the last. Pydantic AI reads such chunks well only where
# its setting openai_continuous_usage_stats asked for them.
# Why it matters: the error grows with the length of the answer, and it is in the input, where nobody looks for it.
# Versions: langchain-openai 1.7.4, langchain-core 1.8.3, pydantic-ai-slim 2.68.0, openai-agents 0.24.0, openai 3.57.0.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    langchain-openai==1.7.4 \
    langchain-core==1.8.3 \
    'pydantic-ai-slim[openai]==2.68.0' \
    openai-agents==0.24.0 \
    openai==3.57.0

"$work/venv/bin/python" -W ignore - <<'PY'
import asyncio
import http.server
import json
import sys
import threading
from importlib.metadata import version

import agents
import openai
from langchain_openai import ChatOpenAI
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider


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


for name in ["langchain-openai", "langchain-core", "pydantic-ai-slim", "openai-agents", "openai"]:
    print(name, version(name))

def chunk(written, choices):
    return {
        "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1750000000, "model": "m", "choices": choices,
        "usage": {"prompt_tokens": 2006, "completion_tokens": written, "total_tokens": 2006 + written},
    }


def answer(path, request):
    delta = {"role": "assistant", "content": "word "}
    words = [{"index": 0, "delta": delta, "finish_reason": reason} for reason in (None, None, "stop")]
    return [chunk(place + 1, [word]) for place, word in enumerate(words)] + [chunk(3, [])]


address = serve(answer) + "/v1"
with openai.OpenAI(api_key="none", base_url=address).chat.completions.stream(
    model="m", messages=[{"role": "user", "content": "Hi"}]
) as stream:
    usage = stream.get_final_completion().usage
check("input, output by the OpenAI SDK's helper", (usage.prompt_tokens, usage.completion_tokens), (2006, 3))


async def by_agents():
    agents.set_tracing_disabled(True)
    client = openai.AsyncOpenAI(api_key="none", base_url=address)
    model = agents.OpenAIChatCompletionsModel(model="m", openai_client=client)
    result = agents.Runner.run_streamed(agents.Agent(name="a", model=model), "Hi")
    async for event in result.stream_events():
        pass
    return result.context_wrapper.usage.input_tokens, result.context_wrapper.usage.output_tokens


async def by_pydantic_ai(**settings):
    model = OpenAIChatModel("m", provider=OpenAIProvider(base_url=address, api_key="none"))
    async with Agent(model).run_stream("Hi", model_settings=settings) as result:
        async for text in result.stream_text():
            pass
        return result.usage.input_tokens, result.usage.output_tokens


check("by the Agents SDK", asyncio.run(by_agents()), (2006, 3))
check("by Pydantic AI", asyncio.run(by_pydantic_ai()), (8024, 9))
asked = asyncio.run(by_pydantic_ai(openai_continuous_usage_stats=True))
check("by Pydantic AI, asking for such chunks", asked, (2006, 3))
whole = None
for part in ChatOpenAI(model="m", api_key="none", base_url=address).stream("Hi"):
    whole = part if whole is None else whole + part
check("by LangChain", (whole.usage_metadata["input_tokens"], whole.usage_metadata["output_tokens"]), (8024, 9))
PY
