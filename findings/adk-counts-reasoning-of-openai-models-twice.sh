#!/usr/bin/env bash
# Guess: gen_ai.usage.output_tokens is what the provider charges as output, whichever provider an agent calls, and the
# reasoning is a part of it.
# Instead: Google's Agent Development Kit keeps usage in Gemini's shape, where thoughts are beside the candidates, and
# its spans and its metric add the two. For OpenAI's models its candidates are completion_tokens, which hold the
# reasoning already, so that the reasoning is added a second time. This is so in its own OpenAI integration and in the
# one with LiteLLM, plain and streamed.
# Why it matters: of a call with 3,020 output tokens, 3,000 of them reasoning, span and metric say 6,020, and for Gemini
# 3,020. The span has no total that would tell, and the excess differs from call to call.
# Versions: google-adk 2.13.0, google-genai 2.34.0, openai 2.54.0, litellm 1.92.0.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    google-adk==2.13.0 \
    google-genai==2.34.0 \
    openai==2.54.0 \
    litellm==1.92.0 \
    opentelemetry-sdk==1.44.0

LITELLM_LOCAL_MODEL_COST_MAP=true "$work/venv/bin/python" -W ignore - <<'PY'
import asyncio
import http.server
import json
import os
import sys
import threading
from importlib.metadata import version

from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


def serve(answer):
    """Serve answer(path, request) on 127.0.0.1, a dict as JSON and a list as server-sent events; return the address."""

    class Upstream(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            reply = answer(self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            events = reply if isinstance(reply, list) else []
            lines = [f"data: {json.dumps(event)}\n\n" for event in events] + ["data: [DONE]\n\n"]
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


GEMINI = {"promptTokenCount": 1000, "candidatesTokenCount": 20, "thoughtsTokenCount": 3000, "totalTokenCount": 4020}
OPENAI = {
    "prompt_tokens": 1000, "completion_tokens": 3020, "total_tokens": 4020,
    "completion_tokens_details": {"reasoning_tokens": 3000},
}


def upstream(path, request):
    if "generateContent" in path:
        candidate = {"content": {"role": "model", "parts": [{"text": "Hello"}]}, "finishReason": "STOP"}
        return {"candidates": [candidate], "usageMetadata": GEMINI, "modelVersion": "gemini-2.5-flash"}
    head = {"id": "chatcmpl-1", "created": 1750000000, "model": "gpt-5", "object": "chat.completion"}
    message = {"role": "assistant", "content": "Hello"}
    if not request.get("stream"):
        return head | {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": OPENAI}
    head["object"] = "chat.completion.chunk"
    return [
        head | {"choices": [{"index": 0, "delta": message, "finish_reason": None}]},
        head | {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
        head | {"choices": [], "usage": OPENAI},
    ]


exporter, reader, provider = InMemorySpanExporter(), InMemoryMetricReader(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
metrics.set_meter_provider(MeterProvider(metric_readers=[reader]))
os.environ.update(GOOGLE_API_KEY="none", OPENAI_API_KEY="none")

from google.adk.agents import LlmAgent  # noqa: E402: its tracer and meter belong to the providers set above
from google.adk.agents.run_config import RunConfig, StreamingMode  # noqa: E402
from google.adk.integrations.openai import OpenAILlm  # noqa: E402
from google.adk.models import Gemini  # noqa: E402
from google.adk.models.lite_llm import LiteLlm  # noqa: E402
from google.adk.runners import InMemoryRunner  # noqa: E402
from google.genai import types  # noqa: E402

for name in ["google-adk", "google-genai", "openai", "litellm", "opentelemetry-sdk"]:
    print(name, version(name))


def output_metric():
    """The sum so far of the histogram of output tokens."""
    found = reader.get_metrics_data()
    scopes = [scope for resource in found.resource_metrics for scope in resource.scope_metrics] if found else []
    every = [one for scope in scopes for one in scope.metrics if one.name == "gen_ai.client.token.usage"]
    points = [point for one in every for point in one.data.data_points]
    return sum(point.sum for point in points if point.attributes["gen_ai.token.type"] == "output")


async def ask(model, mode):
    runner = InMemoryRunner(LlmAgent(name="agent", model=model), app_name="app")
    session = await runner.session_service.create_session(app_name="app", user_id="u")
    question = types.Content(role="user", parts=[types.Part(text="Hi")])
    config = RunConfig(streaming_mode=mode)
    arguments = {"user_id": "u", "session_id": session.id, "new_message": question, "run_config": config}
    async for _ in runner.run_async(**arguments):
        pass


def facts(model, mode=StreamingMode.NONE):
    """Input, output and reasoning of the span of the model's call, and the output that the metric got."""
    exporter.clear()
    before = output_metric()
    asyncio.run(ask(model, mode))
    (span,) = [span for span in exporter.get_finished_spans() if "gen_ai.usage.output_tokens" in span.attributes]
    assert not [name for name in span.attributes if "usage" in name and "total" in name]
    counts = [span.attributes[f"gen_ai.usage.{name}_tokens"] for name in ("input", "output", "reasoning.output")]
    return (*counts, output_metric() - before)


address = serve(upstream)
words = "input, output and reasoning of the span, output of the metric"
gemini = Gemini(model="gemini-2.5-flash", base_url=address)
own = OpenAILlm(model="gpt-5", api_key="none", base_url=f"{address}/v1")
lite = LiteLlm(model="openai/gpt-5", api_base=f"{address}/v1")
print("what Gemini says:", GEMINI)
check(f"Gemini: {words}", facts(gemini), (1000, 3020, 3000, 3020))
print("what OpenAI says:", OPENAI)
check(f"OpenAI: {words}", facts(own), (1000, 6020, 3000, 6020))
check(f"OpenAI, streamed: {words}", facts(own, StreamingMode.SSE), (1000, 6020, 3000, 6020))
check(f"OpenAI by LiteLLM: {words}", facts(lite), (1000, 6020, 3000, 6020))
check(f"OpenAI by LiteLLM, streamed: {words}", facts(lite, StreamingMode.SSE), (1000, 6020, 3000, 6020))
PY
