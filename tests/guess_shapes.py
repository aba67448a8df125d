"""Shapes of logs as producers write them, each with the counters that its records say.

Names are those of the producers' documentation and source (OpenAI, Anthropic, Google, OpenTelemetry, LiteLLM, vLLM,
llama.cpp, OpenInference, NVIDIA Dynamo, LangChain, Vercel's AI SDK, Langfuse, OpenRouter); all data is invented.
Counters: requests, input, cached, cache write, output, reasoning; totals inclusive.
"""

import json
from typing import Any

Counters = tuple[int, int, int, int, int, int]
TIME = 1_795_453_500_000


def wrapped(*bodies: dict[str, Any]) -> list[dict[str, Any]]:
    """Bodies under `response`, as a gateway logs them."""
    return [
        {"request_id": f"r-{n}", "timestamp": TIME + 1000 * n, "user": "alice", "chip": "H100", "response": body}
        for n, body in enumerate(bodies, 1)
    ]


def rows(*records: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
    """Records with ids, times and names of their own."""
    named = {"user": "alice", "model": "m-1", "chip": "H100"} | more
    return [{"request_id": f"r-{n}", "timestamp": TIME + n} | named | record for n, record in enumerate(records, 1)]


def _openai(prompt: int, completion: int, cached: int = 0, reasoning: int = 0, write: int = 0) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{prompt}",
        "object": "chat.completion",
        "created": 1_795_453_500,
        "model": "gpt-4o",
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": cached, "cache_write_tokens": write, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": reasoning, "audio_tokens": 0,
                                          "accepted_prediction_tokens": 3, "rejected_prediction_tokens": 1},
        },
    }  # fmt: skip


def _anthropic(sent: int, read: int, write: int, made: int, thought: int = 0) -> dict[str, Any]:
    parts = {"ephemeral_5m_input_tokens": write, "ephemeral_1h_input_tokens": 0}
    usage = {"input_tokens": sent, "cache_read_input_tokens": read, "cache_creation_input_tokens": write}
    details = {"thinking_tokens": thought}
    return {
        "id": f"msg_{sent}",
        "type": "message",
        "model": "claude-sonnet-4-5",
        "usage": usage | {"cache_creation": parts, "output_tokens": made, "output_tokens_details": details},
    }


def _gemini(snake: bool) -> list[dict[str, Any]]:
    names = ("promptTokenCount", "candidatesTokenCount", "toolUsePromptTokenCount", "thoughtsTokenCount",
             "cachedContentTokenCount", "totalTokenCount")  # fmt: skip
    if snake:
        names = ("prompt_token_count", "candidates_token_count", "tool_use_prompt_token_count", "thoughts_token_count",
                 "cached_content_token_count", "total_token_count")  # fmt: skip
    counts = ((26, 53, 12504, 50, 0, 12633), (7477, 2060, 0, 1939, 4000, 11476), (300, None, None, 1020, None, 1320))
    holder, model = ("usage_metadata", "model_version") if snake else ("usageMetadata", "modelVersion")
    return [
        {model: "gemini-2.5-flash", holder: {n: c for n, c in zip(names, each, strict=True) if c is not None}}
        for each in counts
    ]


def _span(number: int, **attributes: Any) -> dict[str, Any]:
    start = {
        "timestamp": f"2026-11-23T17:00:0{number}.5Z",
        "span_id": f"s{number}",
        "user.id": "ana",
        "hw.model": "H100",
    }
    return start | {name.replace("__", "."): value for name, value in attributes.items()}


_OTEL = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "openai",
    "gen_ai.request.model": "gpt-4",
    "gen_ai.response.model": "gpt-4-0613",
    "gen_ai.conversation.id": "c1",
}
_OPENINFERENCE = {
    "openinference.span.kind": "LLM",
    "llm.model_name": "gpt-4o",
    "llm.token_count.prompt": 100,
    "llm.token_count.completion": 20,
    "llm.token_count.total": 120,
    "llm.token_count.prompt_details.cache_read": 60,
    "llm.token_count.prompt_details.cache_write": 10,
    "llm.token_count.completion_details.reasoning": 5,
}
_DYNAMO = {"request_id": "d-1", "model": "llama", "input_tokens": 2006, "output_tokens": 300, "cached_tokens": 1920}
_DEEPSEEK = {"prompt_tokens": 2006, "completion_tokens": 300, "total_tokens": 2306, "prompt_cache_hit_tokens": 1920,
             "prompt_cache_miss_tokens": 86, "completion_tokens_details": {"reasoning_tokens": 64}}  # fmt: skip
_SLP: dict[str, Any] = {
    "id": "x-1",
    "trace_id": "t",
    "call_type": "acompletion",
    "status": "success",
    "custom_llm_provider": "openai",
    "model": "m",
    "model_id": "d1",
    "model_group": "g",
    "startTime": 1795453498.5,
    "endTime": 1795453500.25,
    "completionStartTime": 1795453499.5,
    "prompt_tokens": 100,
    "completion_tokens": 50,
    "total_tokens": 150,
    "response_cost": 0.01,
    "cache_hit": False,
    "end_user": "u1",
    "metadata": {
        "user_api_key_hash": "h",
        "user_api_key_user_id": "u",
        "user_api_key_team_id": "t",
        "usage_object": {"cache_read_input_tokens": 40, "prompt_tokens": 100, "completion_tokens": 50},
    },
}


def _event(kind: str, tokens: str, number: int) -> dict[str, Any]:
    data = {"tokens": tokens, "model": "gpt4-turbo", "type": kind}
    return {"specversion": "1.0", "type": "prompt", "id": f"0000{number}", "time": f"2026-01-01T00:00:0{number}.001Z",
            "source": "chat-app", "subject": "customer-1", "data": data}  # fmt: skip


# Of field-names.md and of the list "more shapes" of the samples.
KNOWN: dict[str, tuple[list[dict[str, Any]], Counters]] = {
    "openai chat": (wrapped(_openai(2006, 300, 1920, 64), _openai(50, 7)), (2, 2056, 1920, 0, 307, 64)),
    "openai responses": (
        wrapped({"id": "resp_1", "created_at": 1_795_453_500, "model": "m", "usage": {
            "input_tokens": 3438, "input_tokens_details": {"cached_tokens": 3423, "cache_write_tokens": 12},
            "output_tokens": 10, "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 3448}}),
        (1, 3438, 3423, 12, 10, 0),
    ),
    "openai embeddings": (
        wrapped({"model": "e", "usage": {"prompt_tokens": 8, "total_tokens": 8}}, _openai(50, 7)),
        (2, 58, 0, 0, 7, 0),
    ),
    "anthropic": (wrapped(_anthropic(9, 3962, 0, 50, 20), _anthropic(500, 0, 0, 5)), (2, 4471, 3962, 0, 55, 20)),
    "otel genai": (
        [_span(1, **_OTEL, **{"gen_ai.response.id": "chatcmpl-123", "gen_ai.usage.input_tokens": 100,
                              "gen_ai.usage.cache_read.input_tokens": 50, "gen_ai.usage.cache_write.input_tokens": 25,
                              "gen_ai.usage.output_tokens": 180, "gen_ai.usage.reasoning.output_tokens": 50})],
        (1, 100, 50, 25, 180, 50),
    ),
    "otel genai, older cache name": (
        [_span(1, **_OTEL, **{"gen_ai.usage.input_tokens": 100, "gen_ai.usage.cache_creation.input_tokens": 25,
                              "gen_ai.usage.output_tokens": 180})],
        (1, 100, 0, 25, 180, 0),
    ),
    "openmeter": ([_event("input", "1000", 1), _event("output", "300", 2), _event("system", "50", 3)],
                  (1, 1050, 0, 0, 300, 0)),
    "litellm": ([_SLP], (1, 100, 40, 0, 50, 0)),
    "vllm": (
        wrapped({"id": "cmpl-1", "model": "m", "usage": {
            "prompt_tokens": 3678, "total_tokens": 4614, "completion_tokens": 936,
            "prompt_tokens_details": {"cached_tokens": 3072}}}),
        (1, 3678, 3072, 0, 936, 0),
    ),
    "deepseek": (wrapped({"id": "c", "model": "deepseek-chat", "usage": _DEEPSEEK}), (1, 2006, 1920, 0, 300, 64)),
    "moonshot": (
        wrapped({"id": "c", "model": "kimi", "usage": {"prompt_tokens": 2006, "completion_tokens": 300,
                                                       "total_tokens": 2306, "cached_tokens": 1920}}),
        (1, 2006, 1920, 0, 300, 0),
    ),
    "xai": (
        wrapped({"id": "c", "model": "grok-4", "usage": {
            "prompt_tokens": 10120, "completion_tokens": 1499, "reasoning_tokens": 2809, "total_tokens": 14428,
            "prompt_text_tokens": 10120, "prompt_image_tokens": 0, "cached_prompt_text_tokens": 128}}),
        (1, 10120, 128, 0, 4308, 2809),
    ),
    "gemini": (wrapped(*_gemini(snake=False)), (3, 20307, 4000, 0, 5122, 3009)),
    "gemini, snake case": (wrapped(*_gemini(snake=True)), (3, 20307, 4000, 0, 5122, 3009)),
    "llama.cpp": (
        wrapped({"model": "llama", "tokens_evaluated": 2006, "tokens_predicted": 300, "tokens_cached": 2305,
                 "timings": {"cache_n": 1920, "prompt_n": 86, "prompt_ms": 5.5, "predicted_n": 300}}),
        (1, 2006, 1920, 0, 300, 0),
    ),
    "openinference": (
        [{"start_time": "2026-11-23T17:00:00Z", "span_id": "a1", "user.id": "u"} | _OPENINFERENCE],
        (1, 100, 60, 10, 20, 5),
    ),
    "traceloop": (
        [{"start_time": "2026-11-23T17:00:00Z", "span_id": "a1", "gen_ai.user": "u", "gen_ai.request.model": "m",
          "gen_ai.usage.input_tokens": 100, "gen_ai.usage.output_tokens": 20, "gen_ai.usage.reasoning_tokens": 5}],
        (1, 100, 0, 0, 20, 5),
    ),
    "vllm spans": (
        [{"start_time": 1_795_453_500_123_456_789, "span_id": "a1", "gen_ai.request.id": "cmpl-1",
          "gen_ai.response.model": "m", "gen_ai.usage.prompt_tokens": 100, "gen_ai.usage.completion_tokens": 20}],
        (1, 100, 0, 0, 20, 0),
    ),
    "dynamo trace": (
        [{"timestamp": TIME, "event": {"event_type": "request_end", "request": _DYNAMO}},
         {"timestamp": TIME, "event": {"event_type": "tool_start", "tool": {"tool_class": "w"}}}],
        (1, 2006, 1920, 0, 300, 0),
    ),
    "dynamo on nats": (
        [{"event_type": "request_end", "timestamp": TIME, "request": _DYNAMO}],
        (1, 2006, 1920, 0, 300, 0),
    ),
    "ark with audio": (
        wrapped({"id": "c", "model": "doubao", "usage": {
            "prompt_tokens": 500, "completion_tokens": 20, "total_tokens": 520,
            "prompt_tokens_details": {"cached_tokens": 100, "audio_tokens": 300, "audio_cached_tokens": 60},
            "completion_tokens_details": {"reasoning_tokens": 4}}}),
        (1, 500, 100, 0, 20, 4),
    ),
}  # fmt: skip

# Other producers and gateways: the rules are general, or they are none.
OTHERS: dict[str, tuple[list[dict[str, Any]], Counters]] = {
    "native": (rows({"input_tokens": 10, "cached_input_tokens": 4, "output_tokens": 3}), (1, 10, 4, 0, 3, 0)),
    "several providers": (
        wrapped(_openai(2006, 300, 1920, 64), _anthropic(9, 3962, 100, 50), _gemini(snake=False)[1]),
        (3, 2006 + 4071 + 7477, 1920 + 3962 + 4000, 100, 300 + 50 + 3999, 64 + 1939),
    ),
    "langchain": (
        rows({"usage_metadata": {"input_tokens": 350, "output_tokens": 240, "total_tokens": 590,
                                 "input_token_details": {"audio": 10, "cache_creation": 200, "cache_read": 100},
                                 "output_token_details": {"audio": 10, "reasoning": 200}}}),
        (1, 350, 100, 200, 240, 200),
    ),
    "vercel ai sdk": (
        rows({"usage": {"inputTokens": 350, "outputTokens": 240, "totalTokens": 590, "cachedInputTokens": 100,
                        "reasoningTokens": 30}}),
        (1, 350, 100, 0, 240, 30),
    ),
    "langfuse": (
        [{"id": "o-1", "startTime": "2026-11-23T17:00:00Z", "endTime": "2026-11-23T17:00:09Z",
          "userId": "u", "model": "m", "usage": {"input": 350, "output": 240, "total": 590, "unit": "TOKENS"}}],
        (1, 350, 0, 0, 240, 0),
    ),
    "openrouter": (
        [{"id": "gen-1", "created_at": "2026-11-23T17:00:00+00:00", "model": "m", "user": "u", "tokens_prompt": 100,
          "tokens_completion": 20, "native_tokens_prompt": 110, "native_tokens_completion": 25}],
        (1, 100, 0, 0, 20, 0),
    ),
    "tokens_in and tokens_out": (rows({"tokens_in": 100, "tokens_out": 20}, {"tokens_in": 7, "tokens_out": 2}),
                                 (2, 107, 0, 0, 22, 0)),
    "headers of a gateway": (
        [{"time": "2026-11-23T17:00:00Z", "x-request-id": "q", "x-user-id": "u", "model-id": "m",
          "x-amzn-bedrock-input-token-count": "100", "x-amzn-bedrock-output-token-count": "20"}],
        (1, 100, 0, 0, 20, 0),
    ),
    "misses beside hits": (
        rows({"uncached_input_tokens": 86, "cached_input_tokens": 1920, "output_tokens": 300}),
        (1, 2006, 1920, 0, 300, 0),
    ),
    "one-hour and five-minute writes": (
        wrapped({"id": "m", "model": "claude", "usage": {
            "input_tokens": 9, "cache_read_input_tokens": 100, "output_tokens": 5,
            "cache_creation": {"ephemeral_5m_input_tokens": 60, "ephemeral_1h_input_tokens": 40}}}),
        (1, 209, 100, 100, 5, 0),
    ),
    "chunks": (
        [{"request_id": "r-1", "timestamp": TIME, "user": "a", "chip": "H100", "object": "chat.completion.chunk",
          "response": {"id": "c", "model": "m", "usage": usage}} for usage in (
            None, {"prompt_tokens": 6179, "completion_tokens": 1, "total_tokens": 6180},
            {"prompt_tokens": 6179, "completion_tokens": 222, "total_tokens": 6401})],
        (1, 6179, 0, 0, 222, 0),
    ),
    "agents' spans": (
        [_span(1, **_OTEL, **{"gen_ai.usage.input_tokens": 56, "gen_ai.usage.output_tokens": 5}),
         _span(2, **_OTEL, **{"gen_ai.usage.input_tokens": 57, "gen_ai.usage.output_tokens": 6}),
         _span(3, **_OTEL | {"gen_ai.operation.name": "invoke_agent"},
               **{"gen_ai.usage.input_tokens": 113, "gen_ai.usage.output_tokens": 11})],
        (2, 113, 0, 0, 11, 0),
    ),
    "ids that identify nothing": (
        [_SLP | {"id": "None", "end_user": user, "prompt_tokens": count, "total_tokens": count + 50}
         for user, count in (("ana", 100), ("bo", 900), ("cy", 70))],
        (3, 1070, 120, 0, 150, 0),
    ),
    "reads of stored responses": (
        [_SLP, _SLP | {"id": "x-2", "call_type": "aget_responses"}], (1, 100, 40, 0, 50, 0)
    ),
    "seconds": (rows({"timestamp": 1_795_453_500, "input_tokens": 10, "output_tokens": 3}), (1, 10, 0, 0, 3, 0)),
    "microseconds as digits": (
        rows({"timestamp": "1795453500123456", "input_tokens": 10, "output_tokens": 3}), (1, 10, 0, 0, 3, 0)
    ),
    "whole numbers": (rows({"input_tokens": 1e5, "output_tokens": 12.0}), (1, 100_000, 0, 0, 12, 0)),
    "numeric users": (rows({"user": 7, "input_tokens": 10, "output_tokens": 3}), (1, 10, 0, 0, 3, 0)),
}  # fmt: skip


def lines_of(records: list[dict[str, Any]]) -> list[bytes]:
    return [json.dumps(record).encode() for record in records]
