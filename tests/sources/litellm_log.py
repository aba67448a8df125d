"""LiteLLM's standard logging payloads of some calls, one a line: python -m tests.sources.litellm_log ADDRESS FILE"""

import asyncio
import json
import os
import sys
from typing import Any

os.environ |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}

import litellm  # noqa: E402
from litellm.integrations.custom_logger import CustomLogger  # noqa: E402

HELLO = [{"role": "user", "content": "hello"}]


class Log(CustomLogger):
    """Collects the payloads."""

    def __init__(self) -> None:
        super().__init__()
        self.payloads: list[Any] = []

    async def async_log_success_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
        self.payloads.append(kwargs["standard_logging_object"])

    async def async_log_failure_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
        self.payloads.append(kwargs["standard_logging_object"])


async def calls(address: str) -> None:
    """A call, a stream, Claude, an embedding, and a call whose first attempt fails."""
    openai = {"api_base": f"{address}/v1", "api_key": "x", "user": "alice"}
    await litellm.acompletion("openai/gpt-4o", HELLO, **openai)
    stream = await litellm.acompletion(
        "openai/gpt-4o", HELLO, stream=True, stream_options={"include_usage": True}, **openai
    )
    async for _ in stream:
        pass
    await litellm.acompletion("anthropic/claude-sonnet-4-5", HELLO, api_base=address, api_key="x", user="alice")
    await litellm.aembedding("openai/text-embedding-3-small", ["hello"], **openai)
    # The proxy gives all attempts of a call one id and calls the provider's SDK without retries of its own.
    for attempt in range(2):
        try:
            await litellm.acompletion("openai/flaky", HELLO, litellm_call_id="call-1", max_retries=0, **openai)
        except litellm.InternalServerError:
            assert attempt == 0


async def main(address: str, file: str) -> None:
    log = Log()
    litellm.callbacks = [log]
    await calls(address)
    for _ in range(100):  # payloads come later, from a queue
        await asyncio.sleep(0.1)
        if len(log.payloads) == 6:
            break
    with open(file, "w") as out:
        out.writelines(json.dumps(payload, default=str) + "\n" for payload in log.payloads)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
