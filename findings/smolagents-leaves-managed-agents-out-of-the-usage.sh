#!/usr/bin/env bash
# Guess: the token usage of an agent's run holds all calls that the run made, those of the agents that it manages too.
# Instead: smolagents sums up the steps of the agent itself. The result of the run, its steps and the monitor of the
# agent leave out every call of its managed agents. A managed agent's own monitor starts again at each of its runs, so
# that of two tasks that it was given only the last is to be found anywhere. The OpenAI Agents SDK counts the same calls
# of an agent that is used as a tool.
# Why it matters: the agents below do the reading, and here 97 % of the input is theirs. A budget or a bill from
# RunResult.token_usage says 3,600 tokens of 123,600, and it is an exact sum, so nothing looks wrong.
# Versions: smolagents 1.26.0, openai-agents 0.24.0, openai 3.57.0.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    smolagents==1.26.0 \
    openai-agents==0.24.0 \
    openai==3.57.0

"$work/venv/bin/python" -W ignore - <<'PY'
import http.server
import json
import sys
import threading
from importlib.metadata import version

import openai
from agents import Agent, OpenAIChatCompletionsModel, Runner, set_tracing_disabled
from smolagents import OpenAIModel, ToolCallingAgent

# For each call of the lead: the tool that it asks for, and its usage. Every call of the searcher has the same usage.
LEAD = [("searcher", 1000, 100), ("searcher", 1100, 100), ("final_answer", 1250, 50)]
SEARCHER = ("final_answer", 59700, 300)
calls = []


def message(tool, tools, task):
    """The assistant's message: a call of the tool, or a text where the framework has no tool for the final answer."""
    if tool not in tools:
        return {"role": "assistant", "content": "Lyon"}
    arguments = {"answer": "Lyon"} if tool == "final_answer" else {task: "Find a city."}
    function = {"name": tool, "arguments": json.dumps(arguments)}
    call = {"id": f"call_{len(calls)}", "type": "function", "function": function}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


class Upstream(http.server.BaseHTTPRequestHandler):
    """OpenAI's chat completions."""

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        tools = {t["function"]["name"]: t["function"]["parameters"]["properties"] for t in request.get("tools", [])}
        is_lead = "searcher" in tools
        tool, prompt, completion = LEAD[sum(lead for lead, _ in calls)] if is_lead else SEARCHER
        answer = message(tool, tools, next(iter(tools["searcher"])) if is_lead else None)
        calls.append((is_lead, (prompt, completion)))
        usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
        choice = {"index": 0, "message": answer, "finish_reason": "tool_calls" if "tool_calls" in answer else "stop"}
        reply = {"id": f"chatcmpl-{len(calls)}", "object": "chat.completion", "created": 1750000000, "model": "gpt-4o"}
        payload = json.dumps(reply | {"choices": [choice], "usage": usage}).encode()
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


def answered():
    """The input and the output that the server said to all calls since the last time."""
    sums = tuple(sum(counts) for counts in zip(*[usage for _, usage in calls]))
    check("calls of the lead and of the searcher", [sum(x == lead for x, _ in calls) for lead in (True, False)], [3, 2])
    calls.clear()
    return sums


def counts(usage):
    return usage.input_tokens, usage.output_tokens


for name in ["smolagents", "openai-agents", "openai"]:
    print(name, version(name))
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
threading.Thread(target=server.serve_forever, daemon=True).start()
address = f"http://127.0.0.1:{server.server_port}/v1"

model = OpenAIModel("gpt-4o", api_base=address, api_key="none")
about = {"name": "searcher", "description": "Searches."}
searcher = ToolCallingAgent(tools=[], model=model, verbosity_level=0, **about)
lead = ToolCallingAgent(tools=[], model=model, managed_agents=[searcher], verbosity_level=0)
result = lead.run("Which city?", return_full_result=True)
check("input and output that the server said", answered(), (122750, 850))
check("smolagents: RunResult.token_usage", counts(result.token_usage), (3350, 250))
steps = [step["token_usage"]["input_tokens"] for step in result.steps if step.get("token_usage")]
check("smolagents: inputs of the steps", steps, [1000, 1100, 1250])
check("smolagents: monitor of the lead", counts(lead.monitor.get_total_token_counts()), (3350, 250))
check("smolagents: monitor of the searcher", counts(searcher.monitor.get_total_token_counts()), (59700, 300))

set_tracing_disabled(True)
chat = OpenAIChatCompletionsModel("gpt-4o", openai.AsyncOpenAI(base_url=address, api_key="none"))
tool = Agent(name="searcher", model=chat).as_tool("searcher", "Searches.")
result = Runner.run_sync(Agent(name="lead", model=chat, tools=[tool]), "Which city?")
check("input and output that the server said", answered(), (122750, 850))
check("Agents SDK: usage of the run", counts(result.context_wrapper.usage), (122750, 850))
PY
