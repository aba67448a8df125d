"""Records of every kind that a producer writes, through `replay`: streams, failures, retries, embeddings, other APIs.

Shapes and names are those of the producers' sources and documentation (docs/SOURCES.md has versions); all data is
invented. Each case says what its records say: requests, input, cached, cache write, output, reasoning.
"""

from typing import Any

import orjson
import pytest

from tests import harness
from tests.bodies import SHAPES
from tests.test_samples import counted, counters
from tokenometer.schemas import mapping as mappings

TIME = 1_795_453_500_123
NOTHING = (0, 0, 0, 0, 0, 0)
ONE_CLAUDE = (1, 4071, 3962, 100, 50, 0)


def wrapped(*bodies: dict[str, Any]) -> list[dict[str, Any]]:
    """Bodies under `response`, as a gateway logs them."""
    head = {"timestamp": TIME, "user": "u", "chip": "unknown", "model": "m"}
    return [head | {"request_id": f"r-{number}", "response": body} for number, body in enumerate(bodies)]


def chat(**usage: Any) -> dict[str, Any]:
    return {"id": "c", "object": "chat.completion", "model": "m", "usage": usage}


def unnamed(id: str, second: int | None, made: int = 13) -> dict[str, Any]:
    """A body of which the gateway has no id."""
    body = chat(prompt_tokens=19, completion_tokens=made, total_tokens=19 + made) | {"id": id, "created": second}
    return {"timestamp": TIME, "user": "u", "chip": "c", "response": body}


def litellm(id: str, call: str, status: str = "success", tokens: tuple[int, int] = (30, 5), **more: Any) -> dict:
    counts = dict(zip(("prompt_tokens", "completion_tokens", "total_tokens"), (*tokens, sum(tokens)), strict=True))
    head = {"id": id, "litellm_call_id": call, "call_type": "acompletion", "status": status, "model": "gpt-5"}
    return head | {"startTime": 1795453198.5, "endTime": 1795453200.1, "end_user": "u"} | counts | more


def usage_object(**usage: Any) -> dict[str, Any]:
    return {"metadata": {"usage_object": usage}}


def apisix(model: str, prompt: Any, completion: Any, read: Any = 0, write: Any = 0, status: int = 200) -> dict:
    counts = {"prompt_tokens": prompt, "completion_tokens": completion}
    cache = {"cache_read_input_tokens": read, "cache_creation_input_tokens": write, "reasoning_tokens": 0}
    summary = {"request_model": "auto", "model": model, "end_user_id": ""} | counts | cache
    return {"start_time": TIME, "response": {"status": status, "headers": {}}, "llm_summary": summary}


def kong(plugin: str, id: str, usage: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
    ai = {"meta": {"request_model": "gpt-4o"}} | ({"usage": usage} if usage else {}) | more
    return {"started_at": TIME, "request": {"id": id}, "response": {"status": 200}, "ai": {plugin: ai}}


def higress(ai_log: Any, code: str = "200") -> dict[str, Any]:
    text = ai_log if isinstance(ai_log, str) else orjson.dumps(ai_log).decode()
    return {"ai_log": text, "request_id": text[-40:], "response_code": code, "start_time": "2026-11-29T03:20:28.123Z"}


def envoy(id: str, **fields: Any) -> dict[str, Any]:
    head = {"x-request-id": id, "start_time": "2026-11-29T03:20:30.123Z", "gen_ai.request.model": "m"}
    return head | {"response_code": 200} | {name.replace("__", "."): value for name, value in fields.items()}


def new_api(id: int, other: dict[str, Any] | str, **row: Any) -> dict[str, Any]:
    text = other if isinstance(other, str) else orjson.dumps(other).decode()
    after = {"id": id, "created_at": TIME // 1000, "type": 2, "username": "alice", "model_name": "m", "other": text}
    return {"payload": {"before": None, "after": after | row, "op": "c", "source": {"table": "logs"}}}


def bifrost(id: str, status: str, usage: dict[str, Any] | str, **row: Any) -> dict[str, Any]:
    text = usage if isinstance(usage, str) else orjson.dumps(usage).decode()
    after = {"id": id, "timestamp": "2026-11-29T03:20:28.123456Z", "object_type": "chat.completion", "model": "m"}
    more = {"status": status, "token_usage": text, "prompt_tokens": 0, "virtual_key_id": "vk"}
    return {"before": None, "after": after | more | row, "op": "u", "ts_ms": TIME}


def span(id: str, **attributes: Any) -> dict[str, Any]:
    """As OTLP in JSON, alone in its message."""
    named = [_attribute(name.replace("__", "."), value) for name, value in attributes.items()]
    body = {"traceId": "0" * 31 + "1", "spanId": f"{int(id, 16):016x}", "name": "s", "kind": 3, "attributes": named}
    times = {"startTimeUnixNano": str(TIME * 10**6), "endTimeUnixNano": str(TIME * 10**6 + 5)}
    return {"scope": {"name": attributes.get("scope", "test")}, "spans": [body | times]}


def _attribute(name: str, value: Any) -> dict[str, Any]:
    kinds = {bool: "boolValue", int: "intValue", float: "doubleValue", str: "stringValue"}
    return {"key": name, "value": {kinds[type(value)]: str(value) if type(value) is int else value}}


def otlp(*scopes: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"resourceSpans": [{"resource": {"attributes": []}, "scopeSpans": list(scopes)}]}]


CLAUDE_USAGE = {
    "prompt_tokens": 4071,
    "prompt_tokens_details": {
        "cached_read_tokens": 3962,
        "cached_write_tokens": 100,
        "cached_write_token_details": {"cached_write_tokens_5m": 60, "cached_write_tokens_1h": 40},
        "cached_tokens": 3962,
    },
    "completion_tokens": 50,
    "total_tokens": 4121,
}
DYNAMO = {"schema": "dynamo.request.trace.v1", "event_type": "request_end", "event_time_unix_ms": TIME}
BATCH_BODY = chat(prompt_tokens=10, completion_tokens=5, total_tokens=15) | {"created": TIME // 1000}
ARK_BOT = {"name": "ep-1", "prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
ANTHROPIC = {"id": "msg_1", "type": "message", "model": "m", "usage": {
    "input_tokens": 9, "cache_read_input_tokens": 3962, "cache_creation_input_tokens": 100, "output_tokens": 50,
    "cache_creation": {"ephemeral_1h_input_tokens": 40}}}  # fmt: skip
UNTYPED = {"id": "msg_2", "model": "m", "usage": {
    "input_tokens": 500, "cache_read_input_tokens": 70, "output_tokens": 5}}  # fmt: skip
RESPONSES = {"id": "resp_1", "object": "response", "model": "m", "usage": {
    "input_tokens": 56, "input_tokens_details": {"cached_tokens": 40}, "output_tokens": 5,
    "output_tokens_details": {"reasoning_tokens": 3}, "total_tokens": 61}}  # fmt: skip
ONE_RESPONSE = (1, 56, 40, 0, 5, 3)
EMBEDDING = {"object": "list", "data": [], "model": "m", "usage": {"prompt_tokens": 8, "total_tokens": 8}}

VERCEL = {"ai.telemetry.metadata.userId": "ana", "gen_ai.request.model": "claude", "ai.operationId": "x"}
VERCEL_USAGE = {
    "ai.usage.inputTokens": 4071, "ai.usage.inputTokenDetails.noCacheTokens": 9, "ai.usage.outputTokens": 50,
    "ai.usage.inputTokenDetails.cacheReadTokens": 3962, "ai.usage.inputTokenDetails.cacheWriteTokens": 100,
    "ai.usage.outputTokenDetails.textTokens": 43, "ai.usage.outputTokenDetails.reasoningTokens": 7,
    "ai.usage.totalTokens": 4121, "ai.usage.reasoningTokens": 7, "ai.usage.cachedInputTokens": 3962,
}  # fmt: skip
VERCEL_CALL = {"gen_ai.usage.input_tokens": 4071, "gen_ai.usage.output_tokens": 50, "gen_ai.response.id": "msg_1"}
VERCEL_SPANS = (
    {"ai.operationId": "ai.generateText"} | VERCEL_USAGE,
    VERCEL | {"ai.operationId": "ai.generateText.doGenerate"} | VERCEL_USAGE | VERCEL_CALL,
    VERCEL | {"ai.operationId": "ai.embedMany", "ai.usage.tokens": 12},
    VERCEL | {"ai.operationId": "ai.embedMany.doEmbed", "ai.model.id": "e", "ai.usage.tokens": 12},
    {"ai.operationId": "ai.toolCall", "ai.toolCall.name": "t"},
    {"gen_ai.operation.name": "invoke_agent", "gen_ai.usage.input_tokens": 20, "gen_ai.usage.output_tokens": 5},
    VERCEL | {"gen_ai.operation.name": "chat", "gen_ai.usage.input_tokens": 20, "gen_ai.usage.output_tokens": 5,
              "gen_ai.usage.cache_read.input_tokens": 8, "ai.usage.outputTokenDetails.reasoningTokens": 3},
)  # fmt: skip

BOTOCORE, OPENLIT = "opentelemetry.instrumentation.botocore.bedrock-runtime", "openlit.otel.tracing"
UNCACHED = {"gen_ai__operation__name": "chat", "gen_ai__request__model": "claude", "gen_ai__usage__input_tokens": 9000,
            "gen_ai__usage__output_tokens": 50}  # fmt: skip
BEDROCK = UNCACHED | {"gen_ai__usage__cache_read__input_tokens": 3962,
                      "gen_ai__usage__cache_creation__input_tokens": 100}  # fmt: skip
STRANDS = UNCACHED | {"gen_ai__usage__cache_read_input_tokens": 3962, "gen_ai__usage__cache_write_input_tokens": 100,
                      "gen_ai__request__model": "us.anthropic.claude"}  # fmt: skip
NOVA = {"openinference__span__kind": "LLM", "llm__model_name": "nova", "llm__token_count__prompt": 9000,
        "llm__token_count__completion": 50, "llm__token_count__prompt_details__cache_read": 3962,
        "llm__token_count__prompt_details__cache_write": 100}  # fmt: skip


def dotted(attributes: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("__", "."): value for name, value in attributes.items()}


def under(parent: str, scope: dict[str, Any]) -> dict[str, Any]:
    scope["spans"][0]["parentSpanId"] = f"{int(parent, 16):016x}"
    return scope


# mapping, records, counters, skipped, reasons of the rejected ones
CASES: dict[str, tuple[str, list[dict[str, Any]], tuple[int, ...], int, dict[str, int]]] = {
    # --- LiteLLM ---
    "the failed attempts of a call do not hide its success": ("litellm", [
        litellm("c-2", "c-2", "failure", (0, 0)), litellm("c-2", "c-2", "failure", (0, 0)), litellm("x", "c-2"),
    ], (2, 30, 0, 0, 5, 0), 0, {}),
    "a stream that broke off has tokens, and the attempt after it too": ("litellm", [
        litellm("c-2", "c-2", "failure", (30, 2)), litellm("x", "c-2"),
    ], (2, 60, 0, 0, 7, 0), 0, {}),
    "cache writes have several names": ("litellm", [
        litellm("1", "1", tokens=(1000, 20), **usage_object(
            prompt_tokens_details={"cached_tokens": 100, "cache_write_tokens": 700})),
        litellm("2", "2", tokens=(1000, 20), **usage_object(prompt_tokens_details={"cache_creation_tokens": 30})),
        litellm("3", "3", tokens=(1000, 20), **usage_object(
            cache_creation_input_tokens=5,
            prompt_tokens_details={"cache_creation_tokens": 5, "cache_write_tokens": 5})),
        litellm("4", "4", tokens=(1000, 20), **usage_object(prompt_cache_hit_tokens=3)),
    ], (4, 4000, 103, 735, 80, 0), 0, {}),
    "its own cache answers, and no model": ("litellm", [litellm("h", "h", cache_hit=True)], NOTHING, 1, {}),
    "and does so where they are asked for": ("litellm-cache-hits", [
        litellm("h", "h", cache_hit=True)], (1, 30, 0, 0, 5, 0), 0, {}),
    "Anthropic's usage as nobody converted it is refused": ("litellm", [
        litellm("p", "p", tokens=(9, 50), call_type="pass_through_endpoint",
                **usage_object(cache_read_input_tokens=3962)),
    ], NOTHING, 0, {"inconsistent_counts": 1}),
    "a failed login names no model, and a user may be a number": ("litellm", [
        litellm("f", "f", "failure", (0, 0), model="", end_user=7)], (1, 0, 0, 0, 0, 0), 0, {}),
    "each read of a batch has all its tokens, and is no call": ("litellm", [
        litellm("batch_1", poll, call_type="aretrieve_batch") for poll in ("p1", "p2")], NOTHING, 2, {}),
    # --- APISIX ---
    "Claude's rows add up, whatever the model's version": ("apisix", [
        apisix("claude-opus-9-20280101", 9, 50, 3962, 100),
        apisix("anthropic.claude-sonnet-4-5-20250929-v1:0", 9, 50, 3962, 100),
        apisix("us.anthropic.claude-haiku-4-5-v1:0", 9, 50, 3962, 100),
        apisix("gpt-4o", 2006, 300, 1920, 0),
        apisix("anthropic/claude-sonnet-4.5", 4071, 50, 3962, 100),
    ], (5, 4 * 4071 + 2006, 4 * 3962 + 1920, 400, 4 * 50 + 300, 0), 0, {}),
    "failures have strings, and requests to no model no summary": ("apisix", [
        apisix("", "0", "0", "0", "0", status=503), {"start_time": TIME, "response": {"status": 200}},
        apisix("gpt-4o", "0", "0"),
    ], (1, 0, 0, 0, 0, 0), 2, {}),
    "before 3.18 there are no cache counts": ("apisix", [
        {"start_time": TIME, "response": {"status": 200, "headers": {"x-request-id": "b1"}}, "consumer": {
            "username": "bo"}, "llm_summary": {"model": "gpt-4o", "prompt_tokens": 40, "completion_tokens": 5}},
    ], (1, 40, 0, 0, 5, 0), 0, {}),
    # --- Kong ---
    "the plugin's name is another in each version": ("kong", [
        kong(plugin, plugin, {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15})
        for plugin in ("proxy", "ai-proxy", "ai-proxy-advanced")
    ], (3, 30, 0, 0, 15, 0), 0, {}),
    "no statistics, no request to a model, an answer of the cache; an estimate": ("kong", [
        kong("proxy", "1", None), {"started_at": TIME, "request": {"id": "2"}},
        kong("proxy", "3", {"prompt_tokens": 1, "completion_tokens": 1}, cache={"cache_status": "Hit"}),
        kong("proxy", "4", {"prompt_tokens": 12.6, "completion_tokens": 30, "total_tokens": 42.6}),
    ], NOTHING, 3, {"wrong_type": 1}),
    "an answer of the cache is none of a model under any name of the plugin": ("kong", [
        kong(plugin, plugin, {"prompt_tokens": 1, "completion_tokens": 1}, cache={"cache_status": "Hit"})
        for plugin in ("proxy", "ai-proxy", "ai-proxy-advanced")
    ], NOTHING, 3, {}),
    # --- Higress ---
    "details tell where the parts are": ("higress", [
        higress({"model": "claude-sonnet-4-5", "input_token": 9, "output_token": 50, "total_token": 4121,
                 "input_token_details": {"cache_creation_input_tokens": 100, "cache_read_input_tokens": 3962}}),
        higress({"model": "gemini-2.5-flash", "input_token": 26, "output_token": 53, "total_token": 12633,
                 "input_token_details": {"tool_use_prompt_token_count": 12504},
                 "output_token_details": '{"thoughts_token_count": 50}'}),
        higress({"model": "gpt-4o", "input_token": 2006, "output_token": 300, "total_token": 2306,
                 "cached_tokens": 1920, "reasoning_tokens": 64}),
        higress({"model": "qwen-max", "input_token": "343", "output_token": "153"}),
    ], (4, 4071 + 12530 + 2006 + 343, 3962 + 1920, 100, 50 + 103 + 300 + 153, 114), 0, {}),
    "a dash is no log, a failure has no counts, and a stream without usage is no failure": ("higress", [
        higress("-"), higress({"response_type": "error"}, "503"), higress({"model": "m", "chat_id": "c"}, "503"),
        higress({"model": "m", "chat_id": "d"}),
    ], NOTHING, 3, {"missing_field": 1}),
    # --- Envoy AI Gateway ---
    "counts ahead of a request, MCP and failures are no calls": ("envoy-ai-gateway", [
        envoy("1", gen_ai__usage__input_tokens=800, gen_ai__usage__output_tokens=0,
              request__path="/v1/messages/count_tokens?beta=true"),
        envoy("2", mcp__method__name="tools/call", gen_ai__usage__input_tokens=None),
        envoy("3", response_code=503, gen_ai__usage__input_tokens=None),
    ], NOTHING, 3, {}),
    "a log without the code does not say that a request failed": ("envoy-ai-gateway", [
        envoy("1", gen_ai__usage__input_tokens=None) | {"response_code": None}], NOTHING, 0, {"missing_field": 1}),
    "nor does Higress's": ("higress", [
        higress({"model": "m", "chat_id": "c"}) | {"response_code": None}], NOTHING, 0, {"missing_field": 1}),
    "large counts have exponents, and the total tells where reasoning is": ("envoy-ai-gateway", [
        envoy("1", gen_ai__usage__input_tokens=1e5, gen_ai__usage__output_tokens=5,
              gen_ai__usage__total_tokens=100005.0),
        envoy("2", gen_ai__usage__input_tokens=10, gen_ai__usage__output_tokens=5, gen_ai__usage__total_tokens=22,
              gen_ai__usage__reasoning_tokens=7),
    ], (2, 100010, 0, 0, 17, 7), 0, {}),
    # --- new-api ---
    "Claude's rows exclude the cache, others include it": ("new-api", [
        new_api(4, {"claude": True, "usage_semantic": "anthropic", "cache_tokens": 3962, "cache_creation_tokens": 100,
                    "cache_write_tokens": 100}, prompt_tokens=9, completion_tokens=50),
        new_api(6, {"cache_tokens": 2000, "cache_creation_tokens": 400}, prompt_tokens=2600, completion_tokens=10),
        new_api(9, {"usage_semantic": "anthropic", "cache_tokens": 70}, prompt_tokens=500, completion_tokens=5),
    ], (3, 4071 + 2600 + 570, 6032, 500, 65, 0), 0, {}),
    "top-ups, errors, corrections of tasks and deletions are no calls": ("new-api", [
        new_api(1, "", type=1), new_api(5, {"error_code": "x"}, type=5, prompt_tokens=0, completion_tokens=0),
        new_api(7, {"task_id": "t"}, prompt_tokens=0, completion_tokens=0),
        {"payload": {"before": {"id": 6, "type": 2}, "after": None, "op": "d", "ts_ms": 1}},
    ], NOTHING, 3, {}),
    "a user without a name has a number": ("new-api", [
        new_api(8, "", username="", user_id=7, prompt_tokens=3, completion_tokens=1)], (1, 3, 0, 0, 1, 0), 0, {}),
    # --- Bifrost ---
    "a row counts when its call has ended": ("bifrost", [
        bifrost("b-1", "processing", ""), bifrost("b-1", "success", CLAUDE_USAGE),
        bifrost("b-1", "success", CLAUDE_USAGE, cost=1.5),
    ], ONE_CLAUDE, 1, {}),
    "its JSON has the usage as an object, and zeros are left out": ("bifrost", [
        {"id": "b-2", "timestamp": "2026-11-29T03:20:29.1Z", "object": "embedding", "model": "e", "status": "success",
         "token_usage": {"prompt_tokens": 8, "total_tokens": 8}},
    ], (1, 8, 0, 0, 0, 0), 0, {}),
    "failures, lists of models and answers of its cache are no calls; lost usage shows": ("bifrost", [
        bifrost("e", "error", ""), bifrost("l", "success", "", object_type="list_models"),
        bifrost("h", "success", CLAUDE_USAGE, cache_debug='{"cache_hit":true}'), bifrost("x", "success", ""),
    ], NOTHING, 3, {"missing_field": 1}),
    "a stream that was cancelled has tokens": ("bifrost", [bifrost("c", "cancelled", CLAUDE_USAGE)], ONE_CLAUDE, 0, {}),
    "a failure with its usage that becomes a success is one request": ("bifrost", [
        bifrost("g", "error", {"prompt_tokens": 4071, "total_tokens": 4071}), bifrost("g", "success", CLAUDE_USAGE),
    ], ONE_CLAUDE, 0, {}),
    # --- OpenAI's chat and those who speak like it ---
    "cached tokens have a name at each provider": ("openai-chat", wrapped(
        chat(prompt_tokens=1000, completion_tokens=20, total_tokens=1020, cached_tokens=768),
        chat(prompt_tokens=1000, completion_tokens=20, total_tokens=1020, prompt_cache_hit_tokens=1,
             prompt_cache_miss_tokens=999),
        chat(prompt_tokens=40, completion_tokens=5, total_tokens=45) | {"timings": {"cache_n": 36, "prompt_n": 4}},
        chat(prompt_tokens=3019, completion_tokens=104, total_tokens=3123, prompt_tokens_details={
            "cached_tokens": 2048, "cache_creation_input_tokens": 512, "cache_type": "ephemeral"}),
    ), (4, 5059, 2853, 512, 149, 0), 0, {}),
    "embeddings, images, transcriptions and reranking": ("openai-chat", wrapped(
        EMBEDDING,
        {"created": 1, "data": [], "usage": {"input_tokens": 50, "output_tokens": 4160, "total_tokens": 4210,
                                             "input_tokens_details": {"text_tokens": 10, "image_tokens": 40}}},
        {"text": "x", "usage": {"type": "tokens", "input_tokens": 14, "output_tokens": 45, "total_tokens": 59,
                                "input_token_details": {"text_tokens": 0, "audio_tokens": 14}}},
        {"text": "x", "usage": {"type": "duration", "seconds": 9}},
        {"model": "r", "results": [], "usage": {"total_tokens": 815}},
    ), (4, 8 + 50 + 14 + 815, 0, 0, 4160 + 45, 0), 1, {}),
    "failures and chunks are skipped, a body that lost its usage is refused": ("openai-chat", wrapped(
        {"error": {"message": "boom", "type": "server_error", "code": None}},
        {"id": "c", "object": "chat.completion.chunk", "model": "m", "choices": [], "usage": None},
        {"id": "c", "object": "chat.completion", "model": "m", "choices": []},
    ), NOTHING, 2, {"missing_field": 1}),
    "the last chunk of a stream has the usage": ("openai-chat", wrapped(
        {"object": "chat.completion.chunk", "model": "m", "usage": None},
        {"object": "chat.completion.chunk", "model": "m", "choices": [], "usage": {
            "prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}},
    ), (1, 10, 0, 0, 5, 0), 1, {}),
    "parts that overlap are refused": ("openai-chat", wrapped(chat(
        prompt_tokens=2000, completion_tokens=5, total_tokens=2005,
        prompt_tokens_details={"cached_tokens": 1500, "cache_write_tokens": 900})),
        NOTHING, 0, {"inconsistent_counts": 1}),
    "an Anthropic body has its cache beside the input": ("openai-chat", wrapped(ANTHROPIC), ONE_CLAUDE, 0, {}),
    "a gateway leaves out Anthropic's type, another one its whole way": ("openai-chat", wrapped(UNTYPED, {
        "id": "msg_3", "object": "chat.completion", "model": "m", "usage": {
            "prompt_tokens": 500, "cache_read_input_tokens": 70, "completion_tokens": 5}},
    ), (2, 1070, 140, 0, 10, 0), 0, {}),
    "LiteLLM's proxy adds Anthropic's names to OpenAI's": ("openai-chat", wrapped(chat(
        prompt_tokens=4071, completion_tokens=50, total_tokens=4121, cache_read_input_tokens=3962,
        cache_creation_input_tokens=100, prompt_tokens_details={"cached_tokens": 3962, "cache_creation_tokens": 100})),
        ONE_CLAUDE, 0, {}),
    "a body of the Responses API": ("openai-chat", wrapped(RESPONSES), ONE_RESPONSE, 0, {}),
    "a batch's lines": ("openai-batch", [
        {"id": "b-1", "custom_id": "1", "response": {"status_code": 200, "request_id": "q", "body": BATCH_BODY},
         "error": None},
        {"id": "b-2", "custom_id": "2", "response": {"status_code": 200, "body": {
            "id": "resp", "object": "response", "model": "m", "created_at": TIME // 1000, "usage": {
                "input_tokens": 2600, "input_tokens_details": {"cached_tokens": 2000}, "output_tokens": 10,
                "output_tokens_details": {"reasoning_tokens": 4}, "total_tokens": 2610}}}, "error": None},
        {"id": "b-3", "custom_id": "3", "response": {"status_code": 400, "body": {"error": {"message": "x"}}},
         "error": None},
        {"id": "b-4", "custom_id": "4", "response": None, "error": {"code": "batch_expired"}},
    ], (2, 2610, 2000, 0, 15, 4), 2, {}),
    # --- OpenAI's responses ---
    "a response in the background counts when it is ready": ("openai-responses", [
        wrapped({"id": "resp_1", "object": "response", "status": "queued", "model": "m", "usage": None})[0],
        wrapped({"id": "resp_1", "object": "response", "status": "completed", "model": "m", "usage": {
            "input_tokens": 2600, "input_tokens_details": {"cached_tokens": 2000, "cache_write_tokens": 400},
            "output_tokens": 10, "output_tokens_details": {"reasoning_tokens": 4}, "total_tokens": 2610}})[0],
    ], (1, 2600, 2000, 400, 10, 4), 1, {}),
    "a stream's last event holds the body": ("openai-responses", wrapped(
        {"type": "response.created", "response": {"id": "resp_1", "status": "in_progress", "usage": None}},
        {"type": "response.output_text.delta", "delta": "x"},
        {"type": "response.completed", "response": {"id": "resp_1", "model": "m", "usage": {
            "input_tokens": 100, "input_tokens_details": {"cached_tokens": 60}, "output_tokens": 10,
            "output_tokens_details": {"reasoning_tokens": 4}, "total_tokens": 110}}},
        {"type": "response.done", "response": {"id": "resp_2", "usage": {
            "total_tokens": 253, "input_tokens": 132, "output_tokens": 121,
            "input_token_details": {"cached_tokens": 64, "text_tokens": 119, "audio_tokens": 13}}}},
    ), (2, 232, 124, 0, 131, 4), 2, {}),
    "servers without details, failures, and counts ahead of a request": ("openai-responses", wrapped(
        {"id": "r", "model": "m", "usage": {"input_tokens": 5, "output_tokens": 2, "total_tokens": 7}},
        {"id": "f", "status": "failed", "error": {"code": "server_error"}, "usage": None},
        {"object": "response.input_tokens", "input_tokens": 11}, {"error": {"message": "x"}},
    ), (1, 5, 0, 0, 2, 0), 3, {}),
    "an Anthropic body, here too": ("openai-responses", wrapped(ANTHROPIC), ONE_CLAUDE, 0, {}),
    "and one without its type": ("openai-responses", wrapped(UNTYPED), (1, 570, 70, 0, 5, 0), 0, {}),
    # --- Anthropic ---
    "null counts, errors, and counts ahead of a request": ("anthropic", wrapped(
        {"id": "msg_1", "model": "m", "usage": {
            "input_tokens": 500, "cache_creation_input_tokens": 100, "cache_read_input_tokens": None,
            "cache_creation": {"ephemeral_5m_input_tokens": 60, "ephemeral_1h_input_tokens": 40}, "output_tokens": 20,
            "server_tool_use": {"web_search_requests": 2}, "service_tier": "priority"}},
        {"type": "error", "error": {"type": "overloaded_error", "message": "x"}}, {"input_tokens": 800},
    ), (1, 600, 0, 100, 20, 0), 2, {}),
    "lines of a batch have no time": ("anthropic-batch", [
        {"timestamp": TIME, "custom_id": "1", "result": {"type": "succeeded", "message": {
            "id": "msg_1", "model": "m", "usage": {"input_tokens": 9, "cache_read_input_tokens": 3962,
                                                   "cache_creation_input_tokens": 100, "output_tokens": 50}}}},
        {"custom_id": "2", "result": {"type": "errored", "error": {"type": "error"}}},
        {"custom_id": "3", "result": {"type": "expired"}},
        {"custom_id": "4", "result": {"type": "succeeded", "message": {
            "id": "msg_4", "model": "m", "usage": {"input_tokens": 9, "output_tokens": 50}}}},
    ], ONE_CLAUDE, 2, {"missing_field": 1}),
    # --- Gemini ---
    "blocked prompts, errors, counts ahead of a request, snake case, the live API": ("gemini", wrapped(
        {"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {"promptTokenCount": 5, "totalTokenCount": 5}},
        {"error": {"code": 429, "status": "RESOURCE_EXHAUSTED"}}, {"totalTokens": 31},
        {"model_version": "g", "usage_metadata": {
            "prompt_token_count": 100, "candidates_token_count": None, "thoughts_token_count": 30,
            "cached_content_token_count": None, "tool_use_prompt_token_count": 20, "total_token_count": 150}},
        {"usageMetadata": {"promptTokenCount": 10, "responseTokenCount": 7, "totalTokenCount": 17}},
        {"id": "i", "model": "g", "usage": {
            "total_input_tokens": 10, "total_output_tokens": 4, "total_thought_tokens": 3, "total_tool_use_tokens": 2,
            "total_cached_tokens": 1, "total_tokens": 19}},
    ), (4, 5 + 120 + 10 + 12, 1, 0, 30 + 7 + 7, 33), 2, {}),
    "every chunk has the usage so far": ("gemini", [
        wrapped({"responseId": "x", "modelVersion": "g", "usageMetadata": usage})[0] for usage in (
            {"promptTokenCount": 10, "totalTokenCount": 10},
            {"promptTokenCount": 10, "thoughtsTokenCount": 6, "totalTokenCount": 16},
            {"promptTokenCount": 10, "candidatesTokenCount": 9, "thoughtsTokenCount": 6, "totalTokenCount": 25},
        )
    ], (1, 10, 0, 0, 15, 6), 0, {}),
    "one id of two users is two requests": ("gemini", [
        wrapped({"usageMetadata": {"promptTokenCount": 10, "totalTokenCount": 10}})[0] | {"user": user}
        for user in ("u", "v")
    ], (2, 20, 0, 0, 0, 0), 0, {}),
    # --- xAI ---
    "the SDK's usage leaves zeros out": ("xai", wrapped(
        {"model": "g", "usage": {"promptTokens": 120, "reasoningTokens": 30, "totalTokens": 150,
                                 "cachedPromptTextTokens": 64, "costInUsdTicks": "1234"}},
        chat(prompt_tokens=10, completion_tokens=5, total_tokens=15, completion_tokens_details={"reasoning_tokens": 0}),
        chat(prompt_tokens=10, completion_tokens=5, total_tokens=22, completion_tokens_details={"reasoning_tokens": 7}),
        {"error": "boom", "code": "x"},
    ), (3, 140, 64, 0, 47, 37), 1, {}),
    "every chunk may have the usage so far": ("xai", [
        wrapped(chat(prompt_tokens=10, completion_tokens=n, total_tokens=10 + n))[0] for n in (1, 5, 9)
    ], (1, 10, 0, 0, 9, 0), 0, {}),
    # --- Cohere ---
    "embed, rerank, both APIs and their streams": ("cohere", wrapped(
        {"id": "e", "embeddings": {}, "meta": {"billed_units": {"input_tokens": 8.0}}},
        {"id": "k", "results": [], "meta": {"billed_units": {"search_units": 1.0}}},
        {"text": "x", "generation_id": "g", "meta": {
            "tokens": {"input_tokens": 20.0, "output_tokens": 3.0}, "billed_units": {"input_tokens": 5.0}}},
        {"type": "content-delta", "delta": {}},
        {"type": "message-end", "delta": {"finish_reason": "COMPLETE", "usage": {
            "tokens": {"input_tokens": 215.0, "output_tokens": 420.0}, "cached_tokens": 80.0}}},
        {"event_type": "text-generation", "text": "x"},
        {"event_type": "stream-end", "response": {"generation_id": "s", "meta": {
            "tokens": {"input_tokens": 20.0, "output_tokens": 3.0}}}},
    ), (4, 8 + 20 + 215 + 20, 80, 0, 426, 0), 3, {}),
    "the last event of API v1 has cached tokens": ("cohere", wrapped(
        {"event_type": "stream-end", "response": {"generation_id": "s", "meta": {
            "tokens": {"input_tokens": 215.0, "output_tokens": 420.0}, "cached_tokens": 80.0}}},
    ), (1, 215, 80, 0, 420, 0), 0, {}),
    # --- DashScope ---
    "embeddings, failures, an explicit cache, the compatible mode, images": ("dashscope", wrapped(
        {"status_code": 200, "code": "", "output": {"embeddings": []}, "usage": {"total_tokens": 12}},
        {"status_code": 400, "code": "InvalidParameter", "message": "x", "output": None, "usage": None},
        {"status_code": 429, "code": "Throttling", "usage": {"input_tokens": 0, "output_tokens": 0}},
        {"status_code": 200, "code": "", "usage": {
            "input_tokens": 3019, "output_tokens": 104, "total_tokens": 3123, "prompt_tokens_details": {
                "cached_tokens": 2048, "cache_creation_input_tokens": 512}}},
        chat(prompt_tokens=100, completion_tokens=20, total_tokens=120, prompt_tokens_details={"cached_tokens": 60},
             completion_tokens_details={"reasoning_tokens": 11}),
        {"status_code": 200, "code": "", "usage": {"image_count": 2}}, {"error": {"code": "x"}},
    ), (3, 12 + 3019 + 100, 2108, 512, 124, 11), 4, {}),
    "every chunk has the usage so far, here too": ("dashscope", [
        wrapped({"status_code": 200, "code": "", "usage": {
            "input_tokens": 20, "output_tokens": n, "total_tokens": 20 + n}})[0] for n in (1, 5, 9)
    ], (1, 20, 0, 0, 9, 0), 0, {}),
    "one id of two users is two requests of DashScope, too": ("dashscope", [
        wrapped({"usage": {"input_tokens": 20, "output_tokens": 1}})[0] | {"user": user} for user in ("u", "v")
    ], (2, 40, 0, 0, 2, 0), 0, {}),
    # --- Ids ---
    "a body's id is one with the second of its making, a gateway's id alone": ("openai-chat", [
        *(unnamed("chatcmpl-412", second) for second in (1, 2, 3, 3)),
        *(unnamed("chatcmpl-412", second) | {"request_id": "gw"} for second in (1, 2)),
        unnamed("chatcmpl-9", None), unnamed("chatcmpl-9", None),
    ], (5, 5 * 19, 0, 0, 5 * 13, 0), 0, {}),
    "chunks of one stream are one request, whatever second each was made in": ("vllm", [
        *(unnamed("chatcmpl-7", second, count) for second, count in ((5, 0), (5, 5), (6, 13))),
        *(unnamed("chatcmpl-412", second, 5) | {"request_id": "gw"} for second in (1, 2)),
    ], (2, 2 * 19, 0, 0, 13 + 5, 0), 0, {}),
    "a stored response has its own id, whoever reads it, and a connection has many": ("openai-responses", [
        *(wrapped(RESPONSES | {"id": "resp_1"})[0] | {"request_id": gateway} for gateway in ("gw-1", "gw-2")),
        *(wrapped({"type": "response.done", "response": {"id": id, "usage": {
            "input_tokens": tokens, "output_tokens": 3, "total_tokens": tokens + 3}}})[0] | {"request_id": "conn-1"}
          for id, tokens in (("resp_A", 250), ("resp_B", 497), ("resp_A", 250))),
        *(wrapped({"type": "conversation.item.input_audio_transcription.completed", "item_id": item, "usage": {
            "input_tokens": 17, "output_tokens": 9, "total_tokens": 26}})[0] | {"request_id": "conn-1"}
          for item in ("item_1", "item_2")),
        *(wrapped({"id": "", "usage": {"input_tokens": 1, "output_tokens": 0}})[0] | {"request_id": gateway}
          for gateway in ("gw-3", "gw-4", "gw-4")),
    ], (7, 56 + 747 + 34 + 2, 40, 0, 5 + 6 + 18, 3), 0, {}),
    "each look at a job of Ark's has its tokens": ("ark", [
        wrapped({"id": "cgt-1", "model": "s", "status": "succeeded", "usage": {
            "completion_tokens": 246840, "total_tokens": 246840}})[0] | {"request_id": gateway}
        for gateway in ("gw-1", "gw-2")
    ], (1, 0, 0, 0, 246840, 0), 0, {}),
    "Portkey leaves Claude's cache out of the prompt, and the total has it": ("openai-chat", wrapped(
        chat(prompt_tokens=9000, completion_tokens=50, total_tokens=13112, cache_read_input_tokens=3962,
             cache_creation_input_tokens=100),
        chat(prompt_tokens=9000, completion_tokens=50, total_tokens=9050, prompt_tokens_details={
            "cached_tokens": 3962, "cache_write_tokens": 100}),
        chat(prompt_tokens=9000, completion_tokens=50, prompt_tokens_details={"cached_tokens": 3962}),
        chat(prompt_tokens=9000, completion_tokens=50, total_tokens=13113, cache_read_input_tokens=3962,
             cache_creation_input_tokens=100),
    ), (3, 13062 + 18000, 3 * 3962, 200, 150, 0), 0, {"inconsistent_counts": 1}),
    "a chunk of Vertex may have no counts yet": ("gemini", [
        wrapped({"responseId": "x", "usageMetadata": usage})[0] for usage in (
            {"trafficType": "ON_DEMAND"}, {"trafficType": "ON_DEMAND", "promptTokenCount": None},
            {"trafficType": "ON_DEMAND", "promptTokenCount": 10, "candidatesTokenCount": 4, "totalTokenCount": 14})
    ] + wrapped({"usage_metadata": {"traffic_type": "ON_DEMAND"}}, {"usageMetadata": {"totalTokenCount": 5}},
                {"candidates": []}), (1, 10, 0, 0, 4, 0), 3, {"missing_field": 2}),
    # --- Ollama and llama.cpp ---
    "loading, chunks, failures, embeddings and the compatible API": ("ollama", wrapped(
        {"model": "l", "done": True, "done_reason": "load", "response": ""}, {"model": "l", "done": False},
        {"error": "model not found"}, {"embedding": [1.0]},
        {"model": "n", "embeddings": [], "prompt_eval_count": 8},
        {"model": "l", "done": True, "eval_count": 4},
        chat(prompt_tokens=10, completion_tokens=5, total_tokens=15),
    ), (2, 18, 0, 0, 5, 0), 4, {"missing_field": 1}),
    "a body that is none of Ollama's is refused, for it may have tokens": ("ollama", wrapped(
        {"usageMetadata": {"promptTokenCount": 10}}, {"usage": {"inputTokens": 9, "outputTokens": 4}}, {"id": "x"},
    ), NOTHING, 0, {"missing_field": 3}),
    "its Responses API, and a total that does not fit": ("ollama", wrapped(
        {"model": "m", "usage": {"input_tokens": 56, "output_tokens": 5, "total_tokens": 61}},
        {"model": "m", "usage": {"input_tokens": 56, "total_tokens": 61}},
    ), (1, 56, 0, 0, 5, 0), 0, {"inconsistent_counts": 1}),
    "both APIs, with and without a cache": ("llamacpp", wrapped(
        {"stop": True, "model": "m", "tokens_predicted": 5, "tokens_evaluated": 40, "tokens_cached": 44,
         "timings": {"prompt_n": 40, "predicted_n": 5}},
        {"stop": True, "model": "m", "tokens_predicted": 5, "tokens_evaluated": 40, "timings": {"cache_n": 36}},
        {"stop": False, "tokens_predicted": 1, "tokens_evaluated": 40}, {"error": {"code": 500}},
        chat(prompt_tokens=40, completion_tokens=5, total_tokens=45) | {"timings": {"cache_n": 30}},
        chat(prompt_tokens=40, completion_tokens=5, total_tokens=45, prompt_tokens_details={"cached_tokens": 20}),
        EMBEDDING, {"object": "chat.completion.chunk", "choices": []},
    ), (5, 168, 86, 0, 20, 0), 3, {}),
    # --- Bedrock ---
    "a stream's last event, older names, failures": ("bedrock-converse", wrapped(
        {"metadata": {"usage": {"inputTokens": 9, "outputTokens": 4, "totalTokens": 18, "cacheReadInputTokens": 2,
                                "cacheWriteInputTokens": 3}}},
        {"usage": {"inputTokens": 9, "outputTokens": 4, "totalTokens": 15, "cacheReadInputTokenCount": 2}},
        {"Error": {"Code": "ThrottlingException"}}, {"message": "boom"},
    ), (2, 25, 4, 3, 8, 0), 2, {}),
    "embeddings, failures and images": ("bedrock-log", [
        {"timestamp": "2026-11-29T03:20:29Z", "requestId": str(number), "modelId": "m"} | more
        for number, more in enumerate((
            {"input": {"inputTokenCount": 12}, "output": {}},
            {"input": {}, "errorCode": "ThrottlingException"},
            {"input": {}, "output": {"outputImageCount": 1}},
            {"input": {"inputTokenCount": 12}, "output": {"outputTokenCount": 3}, "errorCode": "ModelStreamError"},
        ))
    ], (2, 24, 0, 0, 3, 0), 2, {}),
    # --- Ark ---
    "chat, responses, embeddings, a video": ("ark", wrapped(
        EMBEDDING,
        {"id": "resp_1", "object": "response", "status": "completed", "model": "d", "usage": {
            "input_tokens": 500, "input_tokens_details": {"cached_tokens": 400, "audio_tokens": None},
            "output_tokens": 60, "output_tokens_details": {"reasoning_tokens": 33}, "total_tokens": 560}},
        {"id": "cgt-1", "model": "s", "status": "running"},
        {"id": "cgt-1", "model": "s", "status": "succeeded", "usage": {
            "completion_tokens": 246840, "total_tokens": 246840}},
        {"error": {"code": "x"}}, {"id": "c", "object": "chat.completion.chunk", "model": "d", "usage": None},
        {"object": "tokenization", "data": []}, {"id": "c", "object": "chat.completion", "model": "d"},
    ), (3, 508, 400, 0, 246900, 33), 4, {"missing_field": 1}),
    "a bot may call one endpoint twice": ("ark", 2 * wrapped(
        {"id": "bot", "model": "bot-1", "usage": None, "bot_usage": {"model_usage": [ARK_BOT, ARK_BOT]}},
    ), (2, 200, 0, 0, 40, 0), 0, {}),
    "chunks have the usage so far where they are asked for it": ("ark", [
        wrapped(chat(prompt_tokens=10, completion_tokens=n, total_tokens=10 + n))[0] for n in (1, 5, 9)
    ], (1, 10, 0, 0, 9, 0), 0, {}),
    # --- Servers ---
    "embeddings, reranking and errors": ("vllm", wrapped(
        EMBEDDING | {"usage": {"prompt_tokens": 8, "total_tokens": 8, "prompt_tokens_details": None}},
        {"id": "r", "results": [], "model": "m", "usage": {"total_tokens": 56}},
        {"object": "error", "message": "x"}, {"error": {"message": "x"}},
    ), (2, 64, 0, 0, 0, 0), 2, {}),
    "the Responses API, also at the end of a stream, and reasoning at the top": ("vllm", wrapped(
        RESPONSES, {"type": "response.created", "response": {"id": "resp_2", "usage": None}},
        {"type": "response.completed", "response": RESPONSES},
        chat(prompt_tokens=10, completion_tokens=5, total_tokens=15, reasoning_tokens=2),
        {"model": "m", "usage": {"total_tokens": 61, "completion_tokens": 5}},
    ), (3, 122, 80, 0, 15, 8), 1, {"inconsistent_counts": 1}),
    "one id of two users is two requests of vLLM, too": ("vllm", [
        wrapped(chat(prompt_tokens=10, total_tokens=10))[0] | {"user": user} for user in ("u", "v")
    ], (2, 20, 0, 0, 0, 0), 0, {}),
    "embeddings have no completion, and an aborted request counts": ("sglang-metrics", [
        {"id": "e1", "prompt_tokens": 12, "request_finished_ts": TIME / 1000},
        {"id": "a1", "finish_reason": {"type": "abort"}, "prompt_tokens": 100, "completion_tokens": 7,
         "request_finished_ts": TIME / 1000},
    ], (2, 112, 0, 0, 7, 0), 0, {}),
    "an agent's tools are no requests, and those without context have a replay": ("dynamo", [
        DYNAMO | {"request": {"request_id": "q1", "output_tokens": 7, "replay": {"input_length": 3}}},
        {"timestamp": 120, "event": DYNAMO | {"request": {
            "request_id": "q2", "model": "m", "input_tokens": 32, "output_tokens": 8, "cached_tokens": 16}}},
        {"timestamp": 121, "event": DYNAMO | {"event_type": "tool_end", "tool": {"output_tokens": 900}}},
        DYNAMO | {"event_type": "request_payload"},
    ], (2, 35, 16, 0, 15, 0), 2, {}),
    # --- Envelopes ---
    "an insert and its update are one request, and a deletion is none": ("debezium", [
        {"before": None, "after": row, "op": op, "source": {"db": "x"}} for row, op in (
            ({"request_id": "r", "timestamp": TIME, "user": "u", "model": "m", "chip": "c", "input_tokens": 2006,
              "output_tokens": 0}, "c"),
            ({"request_id": "r", "timestamp": TIME, "user": "u", "model": "m", "chip": "c", "input_tokens": 2006,
              "output_tokens": 300}, "u"),
            (None, "d"),
        )
    ] + [{"request_id": "r2", "__deleted": "true"}], (1, 2006, 0, 0, 300, 0), 1, {}),
    # --- Spans ---
    "traceloop's spans of Bedrock leave the cache out": ("otlp", otlp(
        span("1", scope="opentelemetry.instrumentation.bedrock", gen_ai__request__model="claude",
             gen_ai__usage__input_tokens=9, gen_ai__usage__output_tokens=50,
             gen_ai__usage__cache_read__input_tokens=3962, gen_ai__usage__cache_creation__input_tokens=100),
        span("2", gen_ai__request__model="claude", gen_ai__usage__input_tokens=4071, gen_ai__usage__output_tokens=50,
             gen_ai__usage__cache_read__input_tokens=3962, gen_ai__usage__cache_write__input_tokens=100),
    ), (2, 8142, 7924, 200, 100, 0), 0, {}),
    "OpenTelemetry's spans of Bedrock leave the cache out": ("otlp", otlp(
        span("1", scope=BOTOCORE, **BEDROCK), span("2", scope=BOTOCORE, **UNCACHED),
        span("3", scope="opentelemetry.instrumentation.botocore.sqs", **BEDROCK),
    ), (3, 13_062 + 9000 + 9000, 2 * 3962, 200, 150, 0), 0, {}),
    "and flattened they do so too": ("otel-genai", [
        {"span_id": str(number), "end_time": "2026-11-23T17:00:01Z", "otel.scope.name": scope} | attributes
        for number, (scope, attributes) in enumerate(((BOTOCORE, dotted(BEDROCK)), ("other", dotted(BEDROCK))))
    ], (2, 13_062 + 9000, 2 * 3962, 200, 100, 0), 0, {}),
    "the total of a span tells where the cache is": ("otlp", otlp(
        span("1", scope="strands.telemetry.tracer", **STRANDS, gen_ai__usage__total_tokens=13_112),
        span("2", scope="strands.telemetry.tracer", **STRANDS, gen_ai__usage__total_tokens=9050),
        span("3", **NOVA, llm__token_count__total=13_112), span("4", **NOVA, llm__token_count__total=9050),
        span("5", **NOVA, llm__token_count__total="13112"), span("6", **NOVA),
        span("7", scope="opentelemetry.instrumentation.bedrock", **BEDROCK, gen_ai__usage__total_tokens=9050),
    ), (7, 4 * 13_062 + 3 * 9000, 7 * 3962, 700, 350, 0), 0, {}),
    "a total with thoughts or tools that nothing else says is refused": ("otlp", otlp(
        span("1", openinference__span__kind="LLM", llm__model_name="gemini", llm__token_count__prompt=1000,
             llm__token_count__completion=20, llm__token_count__total=1820),
        span("2", scope="opentelemetry.instrumentation.google_generativeai", gen_ai__request__model="gemini",
             gen_ai__usage__input_tokens=1000, gen_ai__usage__output_tokens=20, gen_ai__usage__total_tokens=1820),
        span("3", gen_ai__request__model="gemini", gen_ai__usage__input_tokens=1000, gen_ai__usage__output_tokens=20,
             gen_ai__usage__reasoning_tokens=800, gen_ai__usage__total_tokens=1820),
        span("4", gen_ai__request__model="o5", gen_ai__usage__input_tokens=1000, gen_ai__usage__output_tokens=820,
             gen_ai__usage__reasoning_tokens=800, gen_ai__usage__total_tokens=1820),
    ), (2, 2000, 0, 0, 1640, 1600), 0, {"inconsistent_counts": 2}),
    "what OpenLIT and Strands leave out is refused, and what they count right is not": ("otlp", otlp(
        span("1", scope=OPENLIT, gen_ai__provider__name="anthropic", **BEDROCK),
        span("2", scope=OPENLIT, gen_ai__provider__name="openai", **BEDROCK),
        span("3", scope=OPENLIT, gen_ai__provider__name="anthropic", **UNCACHED),
        span("4", scope=OPENLIT, gen_ai__provider__name="gcp.gemini", gen_ai__request__model="g",
             gen_ai__usage__input_tokens=7, gen_ai__usage__output_tokens=300, gen_ai__usage__reasoning_tokens=200),
        span("5", scope="strands.telemetry.tracer", gen_ai__usage__total_tokens=9050,
             **BEDROCK | {"gen_ai__request__model": "claude-opus-4"}),
        span("6", scope="strands.telemetry.tracer", gen_ai__usage__total_tokens=9050,
             **BEDROCK | {"gen_ai__request__model": "gpt-5"}),
        span("7", gen_ai__provider__name="anthropic", **BEDROCK),
        *(span(f"{number}", scope="strands.telemetry.tracer", gen_ai__usage__total_tokens=9050,
               **UNCACHED | {f"gen_ai__usage__cache_{kind}_input_tokens": 100})
          for number, kind in ((8, "read"), (9, "write"))),
        span("a", scope="strands.telemetry.tracer", gen_ai__usage__total_tokens=9050, **UNCACHED),
    ), (5, 5 * 9000, 3 * 3962, 300, 250, 0), 0, {"refused": 5}),
    "agents without calls of their own are counted or refused": ("otlp", otlp(
        span("1", scope="openinference.instrumentation.claude_agent_sdk", openinference__span__kind="AGENT",
             llm__token_count__prompt=13_062, llm__token_count__completion=50, llm__token_count__total=13_112,
             llm__token_count__prompt_details__cache_read=3962),
        span("2", scope="openinference.instrumentation.claude_agent_sdk", openinference__span__kind="TOOL"),
        span("3", openinference__span__kind="AGENT", llm__token_count__prompt=5, llm__token_count__completion=5),
        span("4", openinference__span__kind="CHAIN", llm__token_count__prompt=5),
        span("5", langfuse__observation__type="generation", langfuse__observation__usage_details='{"input":900}'),
        span("6", langfuse__observation__type="span"),
    ), (1, 13_062, 3962, 0, 50, 0), 2, {"refused": 2, "missing_field": 1}),
    "an agent gives way to the calls below it": ("otlp", otlp(
        span("1", openinference__span__kind="AGENT", llm__token_count__prompt=12, llm__token_count__completion=5),
        under("1", span("2", openinference__span__kind="LLM", llm__model_name="m", llm__token_count__prompt=12,
                        llm__token_count__completion=5)),
        span("3", scope="openinference.instrumentation.claude_agent_sdk", openinference__span__kind="AGENT",
             llm__token_count__prompt=100, llm__token_count__completion=10),
        under("3", span("4", scope="openinference.instrumentation.claude_agent_sdk", openinference__span__kind="AGENT",
                        llm__token_count__prompt=30, llm__token_count__completion=3)),
    ), (3, 142, 0, 0, 18, 0), 1, {}),
    "Vercel's reader refuses Langfuse's usage, too": ("vercel-ai", otlp(
        span("1", langfuse__observation__type="generation", langfuse__observation__usage_details='{"input":900}'),
        span("2", langfuse__observation__type="span"),
    ), NOTHING, 1, {"missing_field": 1}),
    "compaction is beside the totals, and vLLM names no model": ("otlp", otlp(
        span("1", gen_ai__operation__name="chat", gen_ai__request__model="claude", gen_ai__response__id="msg_9",
             gen_ai__usage__input_tokens=500, gen_ai__usage__output_tokens=20,
             gen_ai__usage__reasoning__output_tokens=5, anthropic__usage__compaction__input_tokens=9000,
             anthropic__usage__compaction__output_tokens=300),
        span("2", gen_ai__request__id="cmpl-1", gen_ai__usage__prompt_tokens=17, gen_ai__usage__completion_tokens=64),
        span("3", gen_ai__request__model="m", gen_ai__usage__input_tokens="12", gen_ai__usage__output_tokens=3.0),
    ), (3, 9529, 0, 0, 387, 5), 0, {}),
    "agents and chains repeat their calls, and a task of LlamaIndex is the call": ("otlp", otlp(
        span("1", gen_ai__operation__name="invoke_agent", gen_ai__usage__input_tokens=5,
             gen_ai__usage__output_tokens=5),
        span("2", scope="openinference.instrumentation.smolagents", openinference__span__kind="CHAIN",
             llm__token_count__prompt=5, llm__token_count__completion=5),
        span("3", traceloop__span__kind="workflow", gen_ai__usage__input_tokens=5, gen_ai__usage__output_tokens=5),
        span("4", traceloop__span__kind="task", gen_ai__request__model="m", gen_ai__usage__input_tokens=7,
             gen_ai__usage__output_tokens=5),
        span("5", openinference__span__kind="EMBEDDING", embedding__model_name="e", llm__token_count__prompt=8),
        span("6", anthropic__message__count_tokens__input_tokens=800, gen_ai__request__model="m"),
    ), (2, 15, 0, 0, 5, 0), 4, {}),
    "an agent's span of older Pydantic AI, and Vercel's cached tokens": ("otlp", otlp(
        span("1", model_name="m", agent_name="a", gen_ai__usage__input_tokens=5, gen_ai__usage__output_tokens=5),
        span("2", gen_ai__operation__name="chat", gen_ai__request__model="m", gen_ai__usage__input_tokens=100,
             gen_ai__usage__output_tokens=5, gen_ai__usage__details__cache_read_tokens=60),
        span("3", gen_ai__request__model="m", gen_ai__usage__input_tokens=100, gen_ai__usage__output_tokens=5,
             ai__usage__cachedInputTokens=40),
        span("4", openinference__span__kind="llm", llm__model_name="m", llm__token_count__prompt=7),
    ), (3, 207, 100, 0, 10, 0), 1, {}),
    "Vercel's calls are inside spans that repeat them, and so are its embeddings": ("vercel-ai", otlp(*(
        span(f"{number:x}", **attributes) for number, attributes in enumerate(VERCEL_SPANS, 1)
    )), (3, 4071 + 12 + 20, 3962 + 8, 100, 55, 10), 4, {}),
    "where embeddings of Vercel's are not read they are refused": ("otlp", otlp(*(
        span(f"{number:x}", **attributes) for number, attributes in enumerate(VERCEL_SPANS, 1)
    )), (2, 4091, 3970, 0, 55, 7), 3, {"missing_field": 2}),
    "log records with usage repeat spans and are refused, and others are skipped": ("otlp", [
        {"resourceLogs": [{"scopeLogs": [{"logRecords": [
            {"timeUnixNano": str(TIME * 10**6), "spanId": f"{number:016x}", "attributes": [
                _attribute(key, value) for key, value in attributes.items()]}
            for number, attributes in enumerate(({"event.name": "gen_ai.choice"}, {
                "event.name": "gen_ai.client.inference.operation.details", "gen_ai.operation.name": "chat",
                "gen_ai.request.model": "m", "gen_ai.usage.input_tokens": 9, "gen_ai.usage.output_tokens": 3}), 1)
        ]}]}]},
    ], NOTHING, 1, {"missing_field": 1}),
    "Spring AI says embedding, and counts that Micrometer made strings; an output alone is not lost": ("otlp", otlp(
        span("1", gen_ai__operation__name="embedding", gen_ai__request__model="e", gen_ai__usage__input_tokens="9",
             gen_ai__usage__total_tokens="9"),
        span("2", gen_ai__operation__name="chat", gen_ai__request__model="m", gen_ai__usage__completion_tokens=9),
        span("3", openinference__span__kind="LLM", llm__model_name="m", llm__token_count__completion=9),
    ), (1, 9, 0, 0, 0, 0), 0, {"missing_field": 2}),
    "flattened, no operation with usage is lost": ("otel-genai", [
        {"span_id": str(number), "end_time": "2026-11-23T17:00:01Z"} | attributes for number, attributes in enumerate((
            {"gen_ai.operation.name": "embedding", "gen_ai.request.model": "e", "gen_ai.usage.input_tokens": 9},
            {"gen_ai.operation.name": "decide", "gen_ai.request.model": "e", "gen_ai.usage.input_tokens": 9,
             "ai.usage.reasoningTokens": 0},
            {"gen_ai.operation.name": "invoke_agent", "gen_ai.usage.input_tokens": 9},
            {"ai.operationId": "ai.embed.doEmbed", "ai.usage.tokens": 5},
            {"error.type": "timeout", "gen_ai.request.model": "m", "gen_ai.usage.completion_tokens": 3},
            {"error.type": "timeout", "gen_ai.request.model": "m"},
        ))
    ], (2, 18, 0, 0, 0, 0), 2, {"missing_field": 2}),
    "flattened, these have the same rules": ("otel-genai", [
        {"span_id": str(number), "end_time": "2026-11-23T17:00:01Z"} | attributes for number, attributes in enumerate((
            {"model_name": "m", "agent_name": "a", "gen_ai.usage.input_tokens": 5, "gen_ai.usage.output_tokens": 5},
            {"gen_ai.request.model": "m", "gen_ai.usage.input_tokens": 100, "gen_ai.usage.output_tokens": 9,
             "gen_ai.usage.details.cache_read_tokens": 60, "gen_ai.usage.details.cache_write_tokens": 20,
             "gen_ai.usage.details.reasoning_tokens": 4},
            {"gen_ai.request.model": "m", "gen_ai.usage.input_tokens": 100, "ai.usage.cachedInputTokens": 40},
            {"gen_ai.operation.name": "chat.completions", "gen_ai.request.model": "m", "gen_ai.usage.input_tokens": 3},
            {"gen_ai.usage.prompt_tokens": 17, "gen_ai.usage.completion_tokens": 64},
            {"openinference.span.kind": "llm", "llm.model_name": "m", "llm.token_count.prompt": 7},
            {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m"},
        ))
    ], (5, 227, 100, 20, 73, 4), 1, {"missing_field": 1}),
    "flattened spans of OpenInference": ("otel-genai", [
        {"span_id": "a1", "end_time": "2026-11-23T17:00:01.000Z", "openinference.span.kind": "LLM",
         "llm.model_name": "claude", "llm.token_count.prompt": 4071, "llm.token_count.completion": 50,
         "llm.token_count.prompt_details.cache_read": 3962, "llm.token_count.prompt_details.cache_write": 100},
        {"span_id": "a0", "end_time": "2026-11-23T17:00:02.000Z", "openinference.span.kind": "CHAIN",
         "otel.scope.name": "openinference.instrumentation.smolagents",
         "llm.token_count.prompt": 4071, "llm.token_count.completion": 50},
        {"span_id": "a2", "end_time": "2026-11-23T17:00:02.000Z", "http.method": "GET"},
    ], ONE_CLAUDE, 2, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_producers_records_count_as_they_say(make_engine, tmp_path, name):
    mapping, records, expected, skipped, rejects = CASES[name]
    (tmp_path / "log.jsonl").write_bytes(b"\n".join(map(orjson.dumps, records)))
    summary = counted(make_engine, tmp_path / "log.jsonl", mapping, whole=False)
    assert counters(summary) == expected
    assert summary.tally.skipped == skipped
    assert {reason.partition(":")[0]: count for reason, count in summary.rejects.items()} == rejects


Labels = tuple[tuple[str, str], ...]
# mapping, record, labels of its row, its further counters (1 h writes; audio, image, cached audio, audio out)
LABELLED: dict[str, tuple[str, dict[str, Any], Labels, tuple[int, ...]]] = {
    "LiteLLM knows team, project, organisation and key": ("litellm", litellm("1", "1", tokens=(1000, 20), metadata={
        "user_api_key_team_id": "t", "user_api_key_org_id": "o", "user_api_key_project_id": "p",
        "user_api_key_hash": "k", "usage_object": {"service_tier": "standard", "cache_creation_input_tokens": 100,
            "prompt_tokens_details": {"audio_tokens": 3, "image_tokens": 4, "cache_creation_token_details": {
                "ephemeral_5m_input_tokens": 60, "ephemeral_1h_input_tokens": 40}},
            "completion_tokens_details": {"audio_tokens": 5}}}),
        (("api_key", "k"), ("organisation", "o"), ("project", "p"), ("service_tier", "standard"), ("team", "t")),
        (40, 3, 4, 0, 5)),
    "OpenAI's tier, audio and images": ("openai-chat", wrapped(chat(
        prompt_tokens=100, completion_tokens=20, total_tokens=120,
        prompt_tokens_details={"audio_tokens": 17, "image_tokens": 9, "cached_tokens": None},
        completion_tokens_details={"audio_tokens": 11}) | {"service_tier": "flex"})[0],
        (("service_tier", "flex"),), (0, 17, 9, 0, 11)),
    "audio of a transcription": ("openai-chat", wrapped({"text": "x", "usage": {
        "type": "tokens", "total_tokens": 1045, "input_tokens": 1000, "output_tokens": 45,
        "input_token_details": {"audio_tokens": 1000, "text_tokens": 0}}, "model": "t"})[0], (), (0, 1000, 0, 0, 0)),
    "Anthropic's one-hour writes, as another's body": ("openai-chat", wrapped(ANTHROPIC)[0], (), (40, 0, 0, 0, 0)),
    "audio from realtime's cache": ("openai-responses", wrapped({"type": "response.done", "response": {
        "id": "resp_2", "usage": {"total_tokens": 253, "input_tokens": 132, "output_tokens": 121,
            "input_token_details": {
                "cached_tokens": 64, "audio_tokens": 13, "cached_tokens_details": {"audio_tokens": 11}}}}})[0],
        (), (0, 13, 0, 11, 0)),
    "a body without a tier has no label": ("openai-chat", wrapped(
        chat(prompt_tokens=1, completion_tokens=2, total_tokens=3) | {"service_tier": None})[0], (), ()),
    "Anthropic's one-hour writes, tier, speed and place": ("anthropic", wrapped({
        "id": "msg_1", "model": "m", "usage": {
            "input_tokens": 500, "cache_creation_input_tokens": 100, "output_tokens": 20,
            "cache_creation": {"ephemeral_5m_input_tokens": 60, "ephemeral_1h_input_tokens": 40},
            "service_tier": "priority", "speed": "fast", "inference_geo": "us"}})[0],
        (("inference_geo", "us"), ("service_tier", "priority"), ("speed", "fast")), (40, 0, 0, 0, 0)),
    "batches cost less": ("openai-batch", {"id": "b", "response": {"status_code": 200, "body": BATCH_BODY}},
        (("service_tier", "batch"),), ()),
    "Gemini's traffic": ("gemini", wrapped({"usageMetadata": {
        "promptTokenCount": 5, "totalTokenCount": 5, "trafficType": "ON_DEMAND"}})[0],
        (("service_tier", "ON_DEMAND"),), ()),
    "Kong's workspace, service and key": ("kong", kong("proxy", "1", {"prompt_tokens": 1, "completion_tokens": 1})
        | {"workspace_name": "w", "service": {"name": "s"}, "authenticated_entity": {"id": "k"}},
        (("api_key", "k"), ("service", "s"), ("workspace", "w")), ()),
    "Bedrock's metadata of a request": ("bedrock-log", {
        "timestamp": "2026-11-29T03:20:29Z", "requestId": "b", "modelId": "m", "input": {"inputTokenCount": 1},
        "requestMetadata": {"team": "growth", "project": "p"}}, (("project", "p"), ("team", "growth")), ()),
    "a span's tier and organisation": ("otel-genai", {
        "span_id": "1", "end_time": "2026-11-23T17:00:01Z", "gen_ai.request.model": "m", "gen_ai.usage.input_tokens": 1,
        "gen_ai.usage.output_tokens": 1, "openai.response.service_tier": "flex", "anthropic.organization.id": "o"},
        (("organisation", "o"), ("service_tier", "flex")), ()),
}  # fmt: skip


@pytest.mark.parametrize("name", LABELLED)
def test_a_row_carries_what_its_price_depends_on(make_engine, name):
    mapping, record, labels, further = LABELLED[name]
    run = harness.Run(make_engine(), harness.shipped(mapping))
    run.feed([orjson.dumps(record)])
    [(key, row)] = run.rows().items()
    assert key[4:] == ((labels,) if labels else ())
    assert tuple(row[6:]) == further


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("bedrock-converse", {"usage": {"inputTokens": 9, "outputTokens": 4, "totalTokens": 13}}),
        ("cohere", {"usage": {"tokens": {"input_tokens": 9.0, "output_tokens": 4.0}}}),
        ("dashscope", {"usage": {"input_tokens": 9, "output_tokens": 4}}),
    ],
)
def test_a_body_that_names_no_model_counts_without_one_of_the_gateway(make_engine, name, body):
    [record] = wrapped(body)
    del record["model"]
    run = harness.Run(make_engine(), harness.shipped(name))
    run.feed([orjson.dumps(record)])
    [(key, row)] = run.rows().items()
    assert (key[2], row[1], row[4]) == ("unknown", 9, 4)


@pytest.mark.parametrize(("name", "edges"), [("anthropic", 1), ("gemini", 1), ("ark", 3)])
def test_the_ranges_that_prices_depend_on_are_ready_to_be_used(name, edges):
    """Take out the signs, as the mapping says."""
    text = (harness.MAPPINGS / f"{name}.toml").read_text()
    table = text[text.index("# [labels.context]") :]
    mapping = mappings.parse(text.replace(table, table.replace("# ", "")), name)
    [context] = [label.bracket for label in mapping.labels if label.bracket]
    assert (context.counter, len(context.names)) == ("input_tokens", edges + 1)


@pytest.mark.parametrize(
    ("scope", "total", "sent"),
    [
        ("opentelemetry.instrumentation.bedrock", "9", 3971),
        (BOTOCORE, "", 3971),
        ("strands.telemetry.tracer", "3971", 3971),
        ("strands.telemetry.tracer", "3972", None),
    ],
)
def test_spans_in_jaegers_and_zipkins_json_have_the_rules_of_otlp(make_engine, tmp_path, scope, total, sent):
    """Zipkin's tags are strings; Jaeger leaves a zero out, and it is 0."""
    bedrock = {
        "otel.scope.name": scope,
        "gen_ai.request.model": "m",
        "gen_ai.usage.input_tokens": "9",
        "gen_ai.usage.output_tokens": "0",
        "gen_ai.usage.cache_read.input_tokens": "3962",
    } | ({"gen_ai.usage.total_tokens": total} if total else {})
    zipkin = [{"traceId": "1", "id": "3", "timestamp": TIME * 1000, "duration": 5000, "tags": bedrock}]
    tags: list[dict[str, Any]] = [
        {"key": key, "vStr": value} if not value.isdigit() else {"key": key, "vType": "INT64", "vInt64": value}
        for key, value in bedrock.items()
    ]
    del tags[3]["vInt64"]
    ids = {"traceId": "AAAAAAAAAAAAAAAAAAAAAQ==", "spanId": "AAAAAAAAAAE="}
    jaeger = ids | {"startTime": "2026-11-29T03:26:22.1Z", "duration": "0.05s", "tags": tags}
    for mapping, value in (("zipkin", zipkin), ("jaeger", jaeger)):
        (tmp_path / mapping).write_bytes(orjson.dumps(value))
        assert counters(counted(make_engine, tmp_path / mapping, mapping, whole=True)) == (
            (1, sent, 3962, 0, 0, 0) if sent else NOTHING
        )


def test_every_shipped_mapping_of_a_producer_has_cases_here_or_a_sample():
    """Ours and OpenMeter's have tests of their own, and so has a log whose lines are no JSON."""
    elsewhere = {"native", "openmeter", "cloudevents", "sglang-log", "zipkin", "jaeger"}
    elsewhere |= {home for _, _, home in SHAPES.values() if home}
    assert {case[0] for case in CASES.values()} | elsewhere == set(mappings.shipped())
