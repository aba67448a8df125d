#!/usr/bin/env bash
# Guess: the input and the output of a Gemini span add up to the total of the answer.
# Instead: OpenTelemetry's own instrumentation of google-genai adds the thoughts to the output, but leaves out
# toolUsePromptTokenCount, which Gemini counts beside promptTokenCount. LangChain's Gemini package adds it to the input.
# Why it matters: results of search and of URL context are billed input, and often larger than the prompt. Spans and
# callbacks of one call disagree by exactly these tokens, and no attribute of the span holds them or the total.
# Versions: opentelemetry-instrumentation-google-genai 1.3b0, google-genai 2.34.0, langchain-google-genai 4.4.3.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    google-genai==2.34.0 \
    opentelemetry-instrumentation-google-genai==1.3b0 \
    opentelemetry-util-genai==1.3b0 \
    opentelemetry-sdk==1.45.2 \
    langchain-google-genai==4.4.3

"$work/venv/bin/python" -W ignore - <<'PY'
import http.server
import json
import sys
import threading
from importlib.metadata import version

from google import genai
from langchain_google_genai import ChatGoogleGenerativeAI
from opentelemetry.instrumentation.google_genai import GoogleGenAiSdkInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
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
    "google-genai", "opentelemetry-instrumentation-google-genai", "opentelemetry-util-genai",
    "opentelemetry-sdk", "langchain-google-genai",
]:
    print(name, version(name))

ANSWER = {
    "candidates": [{"content": {"parts": [{"text": "Hello"}], "role": "model"}, "finishReason": "STOP", "index": 0}],
    "modelVersion": "gemini-2.5-pro", "responseId": "r1",
    "usageMetadata": {
        "promptTokenCount": 1000, "toolUsePromptTokenCount": 3000, "candidatesTokenCount": 50, "thoughtsTokenCount": 70,
        "totalTokenCount": 4120,
    },
}

exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
GoogleGenAiSdkInstrumentor().instrument(tracer_provider=provider)
address = serve(lambda path, request: ANSWER)
client = genai.Client(api_key="none", http_options={"base_url": address})
usage = client.models.generate_content(model="gemini-2.5-pro", contents="Hi").usage_metadata
check("total of the answer", usage.total_token_count, 4120)
(span,) = exporter.get_finished_spans()
seen = span.attributes["gen_ai.usage.input_tokens"], span.attributes["gen_ai.usage.output_tokens"]
check("input and output of the span", seen, (1000, 120))
check("tokens of the answer that the span does not hold", usage.total_token_count - sum(seen), 3000)
check("attributes of the span that hold them", [k for k, v in span.attributes.items() if v in (3000, 4000, 4120)], [])
model = ChatGoogleGenerativeAI(model="gemini-2.5-pro", google_api_key="none", base_url=address)
counts = model.invoke("Hi").usage_metadata
check("input and output by LangChain", (counts["input_tokens"], counts["output_tokens"]), (4000, 120))
PY
