"""Bodies of model APIs as their providers write them in 2025 and 2026, each with the counters that it says.

Names are those of the providers' documentation and SDKs (docs/SOURCES.md has versions); all data is invented. A shape
is what one call gives: one body, or the events of a stream, which have one request id. Counters: requests, input,
cached, cache write, output, reasoning; totals inclusive.
"""

from typing import Any

import orjson

Counters = tuple[int, int, int, int, int, int]
Body = dict[str, Any]
TIME = 1_795_453_500_123


def lines_of(call: str, *bodies: Body) -> list[bytes]:
    """The bodies of one call under `response`, as a gateway logs them."""
    head = {"request_id": call, "timestamp": TIME, "user": "u", "chip": "unknown", "model": "m"}
    return [orjson.dumps(head | {"response": body}) for body in bodies]


def chat(**usage: Any) -> Body:
    return {"id": "c", "object": "chat.completion", "model": "m", "usage": usage}


def chunk(usage: Any = None, choices: Any = (), **more: Any) -> Body:
    return {"id": "c", "object": "chat.completion.chunk", "model": "m", "choices": list(choices), "usage": usage} | more


def claude_usage(**more: Any) -> Body:
    return {
        "input_tokens": 9,
        "cache_creation_input_tokens": 100,
        "cache_read_input_tokens": 3962,
        "cache_creation": {"ephemeral_5m_input_tokens": 60, "ephemeral_1h_input_tokens": 40},
        "output_tokens": 50,
        "service_tier": "standard",
    } | more


DELTA = {"index": 0, "delta": {"content": "x"}, "finish_reason": None}
END = {"index": 0, "delta": {}, "finish_reason": "stop"}
PLAIN = {"prompt_tokens": 19, "completion_tokens": 13, "total_tokens": 32}
ONE = (1, 19, 0, 0, 13, 0)
CLAUDE = (1, 4071, 3962, 100, 50, 0)
RESPONSE = {"input_tokens": 56, "input_tokens_details": {"cached_tokens": 40}, "output_tokens": 5,
            "output_tokens_details": {"reasoning_tokens": 3}, "total_tokens": 61}  # fmt: skip
GROQ = {"queue_time": 0.03, "prompt_tokens": 19, "prompt_time": 0.001, "completion_tokens": 13, "completion_time": 0.02,
        "total_tokens": 32, "total_time": 0.021}  # fmt: skip
TIMINGS = {"cache_n": 30, "prompt_n": 10, "prompt_ms": 30.9, "predicted_n": 5, "predicted_ms": 661.0}
MESSAGE = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": []}
GEMINI = {"promptTokenCount": 100, "cachedContentTokenCount": 40, "candidatesTokenCount": 20, "thoughtsTokenCount": 30,
          "toolUsePromptTokenCount": 7, "totalTokenCount": 157, "trafficType": "ON_DEMAND",
          "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 60}, {"modality": "IMAGE", "tokenCount": 40}],
          "cacheTokensDetails": [{"modality": "TEXT", "tokenCount": 40}],
          "candidatesTokensDetails": [{"modality": "TEXT", "tokenCount": 20}]}  # fmt: skip
COHERE = {"billed_units": {"input_tokens": 5.0, "output_tokens": 13.0},
          "tokens": {"input_tokens": 71.0, "output_tokens": 15.0}, "cached_tokens": 16.0}  # fmt: skip
CONVERSE = {"inputTokens": 9, "outputTokens": 50, "totalTokens": 4121, "cacheReadInputTokens": 3962,
            "cacheWriteInputTokens": 100, "cacheDetails": [{"inputTokens": 100, "ttl": "1h"}]}  # fmt: skip
METRICS = {"inputTokenCount": 19, "outputTokenCount": 13, "invocationLatency": 900, "firstByteLatency": 300}

# of each shape: its bodies, what they say, and a mapping that reads it; None where none does, and it must be refused
SHAPES: dict[str, tuple[list[Body], Counters, str | None]] = {
    # --- OpenAI ---
    "openai chat": ([chat(
        prompt_tokens=2006, completion_tokens=300, total_tokens=2306,
        prompt_tokens_details={"cached_tokens": 1920, "audio_tokens": 0},
        completion_tokens_details={"reasoning_tokens": 64, "audio_tokens": 0, "accepted_prediction_tokens": 0,
                                   "rejected_prediction_tokens": 0}) | {"service_tier": "default"}],
        (1, 2006, 1920, 0, 300, 64), "openai-chat"),
    "openai chat, stream": ([chunk(choices=[DELTA]), chunk(choices=[END]), chunk(PLAIN)], ONE, "openai-chat"),
    "openai chat with audio": ([chat(
        prompt_tokens=127, completion_tokens=482, total_tokens=609,
        prompt_tokens_details={"cached_tokens": 0, "text_tokens": 17, "audio_tokens": 110},
        completion_tokens_details={"reasoning_tokens": 0, "text_tokens": 90, "audio_tokens": 392})],
        (1, 127, 0, 0, 482, 0), "openai-chat"),
    "openai completions": ([{"id": "cmpl-1", "object": "text_completion", "model": "m", "choices": [],
                             "usage": PLAIN}], ONE, "openai-chat"),
    "openai embeddings": ([{"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": "AAAA"}],
                            "model": "e", "usage": {"prompt_tokens": 8, "total_tokens": 8}}],
                          (1, 8, 0, 0, 0, 0), "openai-chat"),
    "openai responses": ([{"id": "resp_1", "object": "response", "status": "completed", "error": None, "model": "m",
                           "usage": RESPONSE}], (1, 56, 40, 0, 5, 3), "openai-responses"),
    "openai responses, stream": ([
        {"type": "response.created", "response": {"id": "resp_1", "object": "response", "usage": None}},
        {"type": "response.output_text.delta", "delta": "x"},
        {"type": "response.completed", "response": {"id": "resp_1", "object": "response", "model": "m",
                                                    "usage": RESPONSE}}], (1, 56, 40, 0, 5, 3), "openai-responses"),
    "openai responses, stream that ends early": ([
        {"type": "response.incomplete", "response": {"id": "resp_1", "object": "response", "status": "incomplete",
            "model": "m", "usage": RESPONSE}}], (1, 56, 40, 0, 5, 3), "openai-responses"),
    "openai responses, compaction": ([{"id": "resp_1", "object": "response.compaction", "output": [],
                                       "usage": RESPONSE}], (1, 56, 40, 0, 5, 3), "openai-responses"),
    "openai realtime": ([{"type": "response.done", "event_id": "e", "response": {
        "id": "resp_2", "object": "realtime.response", "status": "completed", "usage": {
            "total_tokens": 253, "input_tokens": 132, "output_tokens": 121, "input_token_details": {
                "text_tokens": 119, "audio_tokens": 13, "image_tokens": 0, "cached_tokens": 64,
                "cached_tokens_details": {"text_tokens": 64, "audio_tokens": 0, "image_tokens": 0}},
            "output_token_details": {"text_tokens": 30, "audio_tokens": 91}}}}],
        (1, 132, 64, 0, 121, 0), "openai-responses"),
    "openai realtime, transcription of the user": ([{
        "type": "conversation.item.input_audio_transcription.completed", "event_id": "e", "item_id": "i",
        "transcript": "x", "usage": {"type": "tokens", "total_tokens": 26, "input_tokens": 17,
                                     "input_token_details": {"text_tokens": 0, "audio_tokens": 17},
                                     "output_tokens": 9}}], (1, 17, 0, 0, 9, 0), "openai-responses"),
    "openai transcription, stream": ([
        {"type": "transcript.text.delta", "delta": "x"},
        {"type": "transcript.text.done", "text": "x", "usage": {
            "type": "tokens", "input_tokens": 14, "input_token_details": {"text_tokens": 0, "audio_tokens": 14},
            "output_tokens": 45, "total_tokens": 59}}], (1, 14, 0, 0, 45, 0), "openai-responses"),
    "openai images": ([{"created": 1, "data": [{"b64_json": "AA"}], "usage": {
        "total_tokens": 4210, "input_tokens": 50, "output_tokens": 4160,
        "input_tokens_details": {"text_tokens": 10, "image_tokens": 40}}}], (1, 50, 0, 0, 4160, 0), "openai-chat"),
    "openai images, stream": ([
        {"type": "image_generation.partial_image", "b64_json": "AA", "partial_image_index": 0},
        {"type": "image_generation.completed", "b64_json": "AA", "usage": {
            "total_tokens": 4210, "input_tokens": 50, "output_tokens": 4160,
            "input_tokens_details": {"text_tokens": 10, "image_tokens": 40}}}],
        (1, 50, 0, 0, 4160, 0), "openai-responses"),
    # --- Azure OpenAI ---
    "azure chat, stream with its content filter": ([
        chunk(id="", object="", model="", prompt_filter_results=[{"prompt_index": 0, "content_filter_results": {}}]),
        chunk(choices=[DELTA | {"content_filter_results": {}}]), chunk(choices=[END]), chunk(PLAIN)],
        ONE, "openai-chat"),
    # --- Who speak like OpenAI ---
    "groq": ([chat(**GROQ, prompt_tokens_details={"cached_tokens": 16}) | {"x_groq": {"id": "req_1"}}],
             (1, 19, 16, 0, 13, 0), "openai-chat"),
    "groq, stream": ([
        chunk(choices=[DELTA], x_groq={"id": "req_1"}), chunk(choices=[DELTA]),
        chunk(choices=[END], x_groq={"id": "req_1", "usage": GROQ | {"prompt_tokens_details": {"cached_tokens": 16}}})],
        (1, 19, 16, 0, 13, 0), "openai-chat"),
    "groq, stream with include_usage": ([
        chunk(choices=[DELTA], x_groq={"id": "req_1"}),
        chunk(choices=[END], x_groq={"id": "req_1", "usage": GROQ}), chunk(GROQ)], ONE, "openai-chat"),
    "moonshot": ([chat(**PLAIN, cached_tokens=8)], (1, 19, 8, 0, 13, 0), "openai-chat"),
    "moonshot, stream": ([
        chunk(choices=[DELTA], model="kimi-k2.6"),
        chunk(choices=[END | {"usage": PLAIN | {"cached_tokens": 8}}], model="kimi-k2.6")],
        (1, 19, 8, 0, 13, 0), "moonshot"),
    "moonshot, stream with include_usage": ([
        chunk(choices=[DELTA], model="moonshot-v1-8k"),
        chunk(choices=[END | {"usage": PLAIN}], model="moonshot-v1-8k"),
        chunk(PLAIN, model="moonshot-v1-8k")], ONE, "moonshot"),
    "deepseek": ([chat(prompt_tokens=2006, completion_tokens=300, total_tokens=2306, prompt_cache_hit_tokens=1920,
                       prompt_cache_miss_tokens=86, prompt_tokens_details={"cached_tokens": 1920},
                       completion_tokens_details={"reasoning_tokens": 64})], (1, 2006, 1920, 0, 300, 64),
                 "openai-chat"),
    "xai": ([chat(
        prompt_tokens=32, completion_tokens=9, total_tokens=135, num_sources_used=0,
        prompt_tokens_details={"text_tokens": 32, "audio_tokens": 0, "image_tokens": 0, "cached_tokens": 6},
        completion_tokens_details={"reasoning_tokens": 94, "audio_tokens": 0, "accepted_prediction_tokens": 0,
                                   "rejected_prediction_tokens": 0})], (1, 32, 6, 0, 103, 94), "xai"),
    "mistral": ([chat(**PLAIN, num_cached_tokens=16, prompt_tokens_details={"cached_tokens": 16},
                      prompt_token_details={"cached_tokens": 16}, prompt_audio_seconds=None)],
                (1, 19, 16, 0, 13, 0), "openai-chat"),
    "mistral, a conversation with a connector": ([{
        "object": "conversation.response", "conversation_id": "conv_1", "outputs": [], "usage": {
            "prompt_tokens": 188, "completion_tokens": 55, "total_tokens": 7355, "connector_tokens": 7112,
            "connectors": {"web_search": 1}}}], (1, 7300, 0, 0, 55, 0), None),
    "glm": ([chat(**PLAIN, prompt_tokens_details={"cached_tokens": 16}) | {"request_id": "8"}],
            (1, 19, 16, 0, 13, 0), "openai-chat"),
    "minimax": ([chat(**PLAIN, total_characters=0, completion_tokens_details={"reasoning_tokens": 5})
                 | {"base_resp": {"status_code": 0, "status_msg": ""}}], (1, 19, 0, 0, 13, 5), "openai-chat"),
    "openrouter": ([chat(
        **PLAIN, cost=0.0012, is_byok=False, cost_details={"upstream_inference_cost": None},
        prompt_tokens_details={"cached_tokens": 8, "cache_write_tokens": 2, "audio_tokens": 0, "video_tokens": 0},
        completion_tokens_details={"reasoning_tokens": 3, "image_tokens": 0, "audio_tokens": 0})],
        (1, 19, 8, 2, 13, 3), "openai-chat"),
    "openrouter, a stream that fails in its midst": ([
        chunk(choices=[DELTA]), chunk(choices=[END | {"finish_reason": "error"}], error={"code": 502, "message": "x"}),
        chunk(PLAIN)], ONE, "openai-chat"),
    "perplexity": ([chat(**PLAIN, search_context_size="low", citation_tokens=0, num_search_queries=1,
                         cost={"total_cost": 0.006})], ONE, "openai-chat"),
    "together": ([chunk(choices=[DELTA]), chunk(PLAIN | {"cached_tokens": 8}, choices=[END])], (1, 19, 8, 0, 13, 0),
                 "openai-chat"),
    "fireworks": ([chat(**PLAIN, prompt_tokens_details={"cached_tokens": 8}) | {"perf_metrics": {"prompt-tokens": 19}}],
                  (1, 19, 8, 0, 13, 0), "openai-chat"),
    "cerebras": ([chat(**PLAIN, prompt_tokens_details={"cached_tokens": 8}, completion_tokens_details={
        "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0}) | {"time_info": {"total_time": 0.1}}],
        (1, 19, 8, 0, 13, 0), "openai-chat"),
    "sambanova": ([chat(**PLAIN, is_last_response=True, acceptance_rate=3.2, time_to_first_token=0.1)], ONE,
                  "openai-chat"),
    "bedrock's openai models": ([chat(**PLAIN)], ONE, "openai-chat"),
    # --- Anthropic ---
    "anthropic": ([MESSAGE | {"usage": claude_usage(server_tool_use={"web_search_requests": 1})}], CLAUDE,
                  "anthropic"),
    "anthropic, stream": ([
        {"type": "message_start", "message": MESSAGE | {"usage": claude_usage(output_tokens=1)}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "x"}}, {"type": "ping"},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 50}},
        {"type": "message_stop"}], CLAUDE, "anthropic-stream"),
    "anthropic, stream whose end has all counts": ([
        {"type": "message_start", "message": MESSAGE | {"usage": claude_usage(output_tokens=3)}},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {
            "input_tokens": 9, "cache_creation_input_tokens": 100, "cache_read_input_tokens": 3962,
            "output_tokens": 50, "server_tool_use": {"web_search_requests": 1}}},
        {"type": "message_stop"}], CLAUDE, "anthropic-stream"),
    # --- Amazon Bedrock ---
    "bedrock converse": ([{"output": {"message": {"role": "assistant", "content": []}}, "stopReason": "end_turn",
                           "usage": CONVERSE, "metrics": {"latencyMs": 900}}], CLAUDE, "bedrock-converse"),
    "bedrock converse, stream": ([
        {"messageStart": {"role": "assistant"}}, {"contentBlockDelta": {"delta": {"text": "x"}}},
        {"messageStop": {"stopReason": "end_turn"}},
        {"metadata": {"usage": CONVERSE, "metrics": {"latencyMs": 900}}}], CLAUDE, "bedrock-converse"),
    "bedrock nova": ([{"output": {"message": {"content": []}}, "stopReason": "end_turn", "usage": {
        "inputTokens": 9, "outputTokens": 50, "totalTokens": 4121, "cacheReadInputTokenCount": 3962,
        "cacheWriteInputTokenCount": 100}}], CLAUDE, "bedrock-converse"),
    "bedrock llama": ([{"generation": "x", "prompt_token_count": 19, "generation_token_count": 13,
                        "stop_reason": "stop"}], ONE, "bedrock-converse"),
    "bedrock titan": ([{"inputTextTokenCount": 19, "results": [{"tokenCount": 13, "outputText": "x"}]}], ONE, None),
    "bedrock mistral": ([{"outputs": [{"text": "x", "stop_reason": "stop"}]}], (0, 0, 0, 0, 0, 0), None),
    "bedrock's stream of llama": ([
        {"generation": "x", "prompt_token_count": 19, "generation_token_count": 1, "stop_reason": None},
        {"generation": "", "prompt_token_count": None, "generation_token_count": 13, "stop_reason": "stop",
         "amazon-bedrock-invocationMetrics": METRICS}], ONE, None),
    "bedrock's stream of claude": ([
        {"type": "message_stop", "amazon-bedrock-invocationMetrics": METRICS}], ONE, "bedrock-converse"),
    # --- Google ---
    "gemini": ([{"candidates": [], "usageMetadata": GEMINI, "modelVersion": "g", "responseId": "x"}],
               (1, 107, 40, 0, 50, 30), "gemini"),
    "gemini, stream": ([
        {"candidates": [], "modelVersion": "g", "responseId": "x", "usageMetadata": usage} for usage in (
            {"promptTokenCount": 100, "totalTokenCount": 100},
            {"promptTokenCount": 100, "thoughtsTokenCount": 30, "totalTokenCount": 130}, GEMINI)],
        (1, 107, 40, 0, 50, 30), "gemini"),
    "gemini's OpenAI mode with thoughts": ([chat(prompt_tokens=100, completion_tokens=20, total_tokens=150)],
                                           (1, 100, 0, 0, 50, 30), None),
    "vertex embeddings": ([{"predictions": [{"embeddings": {"values": [0.1], "statistics": {
        "token_count": 4, "truncated": False}}}], "metadata": {"billableCharacterCount": 20}}],
        (1, 4, 0, 0, 0, 0), None),
    # --- Cohere ---
    "cohere": ([{"id": "c", "finish_reason": "COMPLETE", "message": {"role": "assistant"}, "usage": COHERE}],
               (1, 71, 16, 0, 15, 0), "cohere"),
    "cohere, stream": ([
        {"type": "message-start", "id": "c", "delta": {"message": {}}}, {"type": "content-delta", "delta": {}},
        {"type": "message-end", "delta": {"finish_reason": "COMPLETE", "usage": COHERE}}],
        (1, 71, 16, 0, 15, 0), "cohere"),
    "cohere v1, stream": ([
        {"event_type": "text-generation", "text": "x", "is_finished": False},
        {"event_type": "stream-end", "is_finished": True, "response": {"generation_id": "g", "meta": COHERE}}],
        (1, 71, 16, 0, 15, 0), "cohere"),
    "cohere embeddings of images": ([{
        "id": "e", "embeddings": {"float": []}, "response_type": "embeddings_by_type", "meta": {
            "api_version": {"version": "2"}, "billed_units": {"input_tokens": 0.0, "image_tokens": 128.0,
                                                              "images": 1.0}}}], (1, 128, 0, 0, 0, 0), "cohere"),
    # --- DashScope and Ark ---
    "dashscope": ([{"status_code": 200, "request_id": "d", "code": "", "output": {}, "usage": {
        "input_tokens": 1024, "output_tokens": 300, "total_tokens": 1324,
        "prompt_tokens_details": {"cached_tokens": 512}, "output_tokens_details": {"reasoning_tokens": 64}}}],
        (1, 1024, 512, 0, 300, 64), "dashscope"),
    "dashscope, an application": ([{"request_id": "d", "output": {"text": "x"}, "usage": {"models": [
        {"model_id": "qwen-max", "input_tokens": 74, "output_tokens": 36}]}}], (1, 74, 0, 0, 36, 0), None),
    "ark": ([chat(prompt_tokens=2006, completion_tokens=300, total_tokens=2306,
                  prompt_tokens_details={"cached_tokens": 1920, "provisioned_tokens": None},
                  completion_tokens_details={"reasoning_tokens": 64})], (1, 2006, 1920, 0, 300, 64), "ark"),
    # --- Servers ---
    "vllm": ([chat(prompt_tokens=3678, total_tokens=4614, completion_tokens=936,
                   prompt_tokens_details={"cached_tokens": 3072}) | {"kv_transfer_params": None}],
             (1, 3678, 3072, 0, 936, 0), "vllm"),
    "vllm, every chunk has the usage so far": ([chunk({
        "prompt_tokens": 19, "completion_tokens": n, "total_tokens": 19 + n}, choices=[DELTA]) for n in (0, 5, 13)],
        ONE, "vllm"),
    "ollama": ([{"model": "l", "created_at": "2026-11-23T17:05:00.1Z", "message": {}, "done": True,
                 "done_reason": "stop", "prompt_eval_count": 26, "eval_count": 290, "total_duration": 5}],
               (1, 26, 0, 0, 290, 0), "ollama"),
    "ollama embeddings": ([{"model": "l", "embeddings": [[0.1]], "total_duration": 5, "prompt_eval_count": 8}],
                          (1, 8, 0, 0, 0, 0), "ollama"),
    "llama.cpp": ([{"content": "x", "stop": True, "model": "m", "tokens_predicted": 5, "tokens_evaluated": 40,
                    "tokens_cached": 44, "timings": TIMINGS}], (1, 40, 30, 0, 5, 0), "llamacpp"),
    "llama.cpp chat": ([chat(prompt_tokens=40, completion_tokens=5, total_tokens=45) | {"timings": TIMINGS}],
                       (1, 40, 30, 0, 5, 0), "llamacpp"),
    "llama.cpp chat, stream without usage": ([
        chunk(choices=[DELTA]), chunk(choices=[END], timings=TIMINGS)], (1, 40, 30, 0, 5, 0), None),
    "llama.cpp messages": ([MESSAGE | {"usage": {"cache_read_input_tokens": 30, "input_tokens": 10,
                                                 "output_tokens": 5}}], (1, 40, 30, 0, 5, 0), "llamacpp"),
    "text generation inference": ([{"generated_text": "x", "details": {
        "finish_reason": "length", "generated_tokens": 13, "seed": None, "prefill": [], "tokens": []}}],
        (1, 0, 0, 0, 13, 0), None),
    "sglang generate": ([{"text": "x", "meta_info": {"id": "a", "prompt_tokens": 19, "completion_tokens": 13,
                                                     "cached_tokens": 8}}], (1, 19, 8, 0, 13, 0), None),
    "tensorrt-llm": ([chat(**PLAIN, prompt_tokens_details={"cached_tokens": 8})], (1, 19, 8, 0, 13, 0), "openai-chat"),
}  # fmt: skip
