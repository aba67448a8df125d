#!/usr/bin/env bash
# Guess: the token usage in the output of a crew is what the calls of this kickoff used.
# Instead: CrewAI adds up, for each agent, a counter that belongs to the agent's LLM object and is never set back. Two
# agents with one LLM object count every call twice. A second kickoff has the first one in it, and kickoff_for_each,
# whose copies share the counter, says 2,100, 4,200 and 6,300 for three runs of 2,100 and their sum for all. The number
# of requests is multiplied in the same way.
# Why it matters: one LLM object for all agents is a usual way to write a crew, and the factor is the number of its
# agents. A service that keeps its crew adds up usage that has been added up already, so that it grows with the square
# of the runs. Only the first kickoff of a crew whose agents share no LLM is right.
# Versions: crewai 1.15.30, openai 2.54.0.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    crewai==1.15.30 \
    openai==2.54.0

export HOME="$work" CREWAI_STORAGE_DIR="$work/crewai"
export CREWAI_DISABLE_TELEMETRY=true CREWAI_TRACING_ENABLED=false OTEL_SDK_DISABLED=true
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import http.server
import json
import logging
import sys
import threading
from importlib.metadata import version

from crewai import LLM, Agent, Crew, Task

logging.disable(logging.WARNING)
requests = 0


class Upstream(http.server.BaseHTTPRequestHandler):
    """OpenAI's chat completions, each with 1,000 prompt tokens and 50 completion tokens."""

    def do_POST(self):
        global requests
        requests += 1
        self.rfile.read(int(self.headers["Content-Length"]))
        message = {"role": "assistant", "content": "Hello"}
        reply = {
            "id": f"chatcmpl-{requests}", "object": "chat.completion", "created": 1750000000, "model": "gpt-4o",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 1000, "completion_tokens": 50, "total_tokens": 1050},
        }
        payload = json.dumps(reply).encode()
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


def new_llm():
    return LLM(model="openai/gpt-4o", api_key="none", base_url=f"http://127.0.0.1:{server.server_port}/v1")


def new_crew(llms):
    """A crew with one agent for each LLM, and one task for each agent."""
    agents = [Agent(role=f"Writer {i}", goal="Write.", backstory="Writes.", llm=llm) for i, llm in enumerate(llms)]
    tasks = [Task(description="Say hello.", expected_output="A greeting.", agent=agent) for agent in agents]
    return Crew(agents=agents, tasks=tasks)


def counts(usage):
    return usage.total_tokens, usage.prompt_tokens, usage.successful_requests


def kickoff(crew):
    """Run the crew; return the requests that the server got, and the total, the prompt and the requests it is told."""
    before = requests
    usage = crew.kickoff().token_usage
    return requests - before, *counts(usage)


for name in ["crewai", "openai"]:
    print(name, version(name))
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
threading.Thread(target=server.serve_forever, daemon=True).start()
print("each request: 1,050 tokens in all, 1,000 of them prompt")
WORDS = "requests at the server; total, prompt and requests in the output"

crew = new_crew([new_llm(), new_llm()])
check(f"two agents, two LLMs: {WORDS}", kickoff(crew), (2, 2100, 2000, 2))
check(f"the same crew again: {WORDS}", kickoff(crew), (2, 4200, 4000, 4))
llm = new_llm()
check(f"two agents, one LLM: {WORDS}", kickoff(new_crew([llm] * 2)), (2, 4200, 4000, 4))
check("total and requests by that LLM's own counter", counts(llm.get_token_usage_summary())[::2], (2100, 2))
check(f"three agents, one LLM: {WORDS}", kickoff(new_crew([new_llm()] * 3)), (3, 9450, 9000, 9))

before = requests
crew = new_crew([new_llm(), new_llm()])
outputs = crew.kickoff_for_each([{}, {}, {}])
check("kickoff_for_each, two LLMs, three runs: requests at the server", requests - before, 6)
check("totals in the three outputs", [output.token_usage.total_tokens for output in outputs], [2100, 4200, 6300])
check("total, prompt and requests of the crew", counts(crew.usage_metrics), (12600, 12000, 12))
PY
