#!/usr/bin/env bash
# Guess: an observer's output tokens are all that the model wrote and that is charged as output, thinking included, as
# OpenAI and Anthropic count it; a detail of the output is a part of it.
# Instead: Gemini counts thoughts beside the candidates. MLflow and LangSmith take the candidates alone for the output and
# keep Gemini's total, so that input and output do not add up to it. LangSmith lists the thoughts as a detail of an output
# that is smaller; MLflow has them nowhere. OpenInference adds them to the output.
# Why it matters: Google charges thoughts as output, and here they are 150 times the rest of it. Whoever prices the output
# of these two loses them; whoever takes the total less the input has them.
# Versions: mlflow-skinny 3.17.2, langsmith 0.15.1, openinference-instrumentation-google-genai 1.4.14, google-genai 3.6.1.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    mlflow-skinny==3.17.2 \
    langsmith==0.15.1 \
    openinference-instrumentation-google-genai==1.4.14 \
    google-genai==3.6.1

cd "$work"
MLFLOW_ALLOW_FILE_STORE=true MLFLOW_ENABLE_ASYNC_TRACE_LOGGING=false MLFLOW_TRACKING_URI="file:$work/runs" \
    MLFLOW_LOGGING_LEVEL=ERROR "$work/venv/bin/python" -W ignore - <<'PY'
import http.server
import json
import sys
import threading
from importlib.metadata import version

import langsmith
import mlflow
from google import genai
from google.genai import types
from langsmith.wrappers import wrap_gemini
from openinference.instrumentation.google_genai import GoogleGenAIInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


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


for name in ["mlflow-skinny", "langsmith", "openinference-instrumentation-google-genai", "google-genai"]:
    print(name, version(name))

USAGE = {"promptTokenCount": 1000, "candidatesTokenCount": 20, "thoughtsTokenCount": 3000, "totalTokenCount": 4020}
print("what Gemini says:", USAGE)


def gemini(path, request):
    candidate = {"content": {"role": "model", "parts": [{"text": "Hello"}]}, "finishReason": "STOP"}
    return {"candidates": [candidate], "usageMetadata": USAGE, "modelVersion": "gemini-2.5-flash", "responseId": "r"}


address = serve(gemini)


def make_client():
    return genai.Client(api_key="none", http_options=types.HttpOptions(base_url=address))


def call(client):
    client.models.generate_content(model="gemini-2.5-flash", contents="Hi")


runs = []
service = serve(lambda path, run: runs.append(run) or {}, ("POST", "PATCH", "GET"))
watched = langsmith.Client(api_url=service, api_key="none", auto_batch_tracing=False)
with langsmith.tracing_context(client=watched, enabled=True):
    call(wrap_gemini(make_client()))
watched.flush()
(usage,) = [run["outputs"]["usage_metadata"] for run in runs if "usage_metadata" in (run.get("outputs") or {})]
seen = usage["input_tokens"], usage["output_tokens"], usage["total_tokens"], usage["output_token_details"]["reasoning"]
check("LangSmith: input, output, total, reasoning of the output", seen, (1000, 20, 4020, 3000))

exporter, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
GoogleGenAIInstrumentor().instrument(tracer_provider=provider)
call(make_client())
GoogleGenAIInstrumentor().uninstrument()
(span,) = exporter.get_finished_spans()
counts = [span.attributes[f"llm.token_count.{name}"] for name in ("prompt", "completion", "total")]
check("OpenInference: input, output, total", counts, [1000, 3020, 4020])

mlflow.set_experiment("finding")
mlflow.gemini.autolog()
call(make_client())
trace = mlflow.get_trace(mlflow.get_last_active_trace_id())
check("MLflow", trace.info.token_usage, {"input_tokens": 1000, "output_tokens": 20, "total_tokens": 4020})
told = [3000 in span.attributes["mlflow.chat.tokenUsage"].values() for span in trace.data.spans]
check("MLflow's spans with the count of thoughts", (any(told), len(told)), (False, 2))
PY
