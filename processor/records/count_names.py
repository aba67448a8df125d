"""What the names of a log's keys say: which counter, and whether it is part of another, as producers write it.

`KNOWN` lists names of producers, from their documentation and source. A name that is not listed is read by its words.
This is less certain, and `Name.known` says so.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tokenometer.schemas.mapping_model import Path

CACHED, WRITE, REASONING = "cached_input_tokens", "cache_write_tokens", "reasoning_tokens"
INPUT, OUTPUT, TOTAL = "input_tokens", "output_tokens", "total_tokens"
TOOL_INPUT = "tool_input"  # input that the producer counts beside its input
UNCACHED = "uncached_input"  # input without its cached part
WRITE_PART = "write_part"  # cache writes, by how long they live
DETAIL = "detail"  # a finer count that no row has
IN, BESIDE = False, True  # additive?

# The end of a path, its words joined by "_": counter, and where a part is (None: producers differ).
KNOWN: dict[str, tuple[str, bool | None]] = {
    # OpenAI, vLLM, SGLang, LiteLLM, Kong, Mistral, Databricks; Responses, Anthropic, Cohere, DashScope; Ark
    "prompt_tokens": (INPUT, None),
    "completion_tokens": (OUTPUT, None),
    "input_tokens": (INPUT, None),
    "output_tokens": (OUTPUT, None),
    "total_tokens": (TOTAL, None),
    "prompt_tokens_details_cached_tokens": (CACHED, IN),
    "input_tokens_details_cached_tokens": (CACHED, IN),
    "prompt_tokens_details_cache_write_tokens": (WRITE, IN),
    "input_tokens_details_cache_write_tokens": (WRITE, IN),
    "prompt_tokens_details_cache_creation_tokens": (WRITE, IN),
    "completion_tokens_details_reasoning_tokens": (REASONING, IN),
    "output_tokens_details_reasoning_tokens": (REASONING, IN),
    "output_tokens_details_thinking_tokens": (REASONING, IN),
    # Tokenometer's own; others use the names, too, so the arithmetic decides
    "cached_input_tokens": (CACHED, None),
    "cache_write_tokens": (WRITE, None),
    # SGLang, Moonshot, Cohere, NVIDIA Dynamo mean a part of the prompt; the name alone does not say so
    "cached_tokens": (CACHED, None),
    "reasoning_tokens": (REASONING, None),  # xAI counts it beside the completion, SGLang inside
    # DeepSeek; xAI's own SDK
    "prompt_cache_hit_tokens": (CACHED, IN),
    "prompt_cache_miss_tokens": (UNCACHED, None),
    "cached_prompt_text_tokens": (CACHED, IN),
    # Anthropic, and those who copy its names
    "cache_read_input_tokens": (CACHED, None),
    "cache_creation_input_tokens": (WRITE, None),
    "ephemeral_5m_input_tokens": (WRITE_PART, None),
    "ephemeral_1h_input_tokens": (WRITE_PART, None),
    # Amazon Bedrock, Converse and its invocation log
    "input_token_count": (INPUT, None),
    "output_token_count": (OUTPUT, None),
    "cache_read_input_token_count": (CACHED, BESIDE),
    "cache_write_input_token_count": (WRITE, BESIDE),
    "usage_cache_write_input_tokens": (WRITE, BESIDE),
    "cache_write_input_tokens": (WRITE, None),
    # Gemini
    "prompt_token_count": (INPUT, None),
    "candidates_token_count": (OUTPUT, None),
    "total_token_count": (TOTAL, None),
    "cached_content_token_count": (CACHED, IN),
    "thoughts_token_count": (REASONING, BESIDE),
    "tool_use_prompt_token_count": (TOOL_INPUT, None),
    # OpenTelemetry GenAI and its instrumentations, Envoy AI Gateway; OpenInference
    "gen_ai_usage_cache_read_input_tokens": (CACHED, IN),
    "gen_ai_usage_cache_write_input_tokens": (WRITE, IN),
    "gen_ai_usage_cache_creation_input_tokens": (WRITE, IN),
    "gen_ai_usage_cached_input_tokens": (CACHED, IN),
    "gen_ai_usage_reasoning_output_tokens": (REASONING, IN),
    "gen_ai_usage_reasoning_tokens": (REASONING, IN),
    "token_count_prompt": (INPUT, None),
    "token_count_completion": (OUTPUT, None),
    "token_count_total": (TOTAL, None),
    "token_count_prompt_details_cache_read": (CACHED, IN),
    "token_count_prompt_details_cache_write": (WRITE, IN),
    "token_count_prompt_details_cache_input": (DETAIL, None),
    "token_count_completion_details_reasoning": (REASONING, IN),
    "token_count_cache_write": (WRITE, IN),
    "token_count_cache_read": (CACHED, IN),
    "token_count_reasoning": (REASONING, IN),
    # Ollama; llama.cpp, whose tokens_cached is the size of the context after the request
    "prompt_eval_count": (INPUT, None),
    "eval_count": (OUTPUT, None),
    "tokens_evaluated": (INPUT, None),
    "tokens_predicted": (OUTPUT, None),
    "timings_cache_n": (CACHED, None),  # beside timings.prompt_n, inside tokens_evaluated
    "timings_prompt_n": (UNCACHED, None),
    "timings_predicted_n": (OUTPUT, None),
    "tokens_cached": (DETAIL, None),
    # LangChain, Vercel's AI SDK, Higress, OpenRouter
    "input_token_details_cache_read": (CACHED, IN),
    "input_token_details_cache_creation": (WRITE, IN),
    "input_token_details_cache_read_tokens": (CACHED, IN),
    "input_token_details_cache_write_tokens": (WRITE, IN),
    "output_token_details_reasoning": (REASONING, IN),
    "output_token_details_reasoning_tokens": (REASONING, IN),
    "input_token": (INPUT, None),
    "output_token": (OUTPUT, None),
    "total_token": (TOTAL, None),
    "tokens_prompt": (INPUT, None),
    "tokens_completion": (OUTPUT, None),
    "tokens_in": (INPUT, None),
    "tokens_out": (OUTPUT, None),
}
# Words that may come before a known name without changing what it counts.
_NEUTRAL = {"gen", "ai", "usage", "llm", "openai", "x", "num", "n", "number", "of", "total", "req", "request", "span"}
_NO_COUNT = set(
    "max min limit cost price usd rate per latency duration time ms us ns seconds second budget remaining quota ratio "
    "avg mean average percent accepted rejected prediction id ids tps tpm rpm ttft tpot window threshold available "
    "spend weight temperature parameters parameter price factor multiplier speed throughput probability logprob "
    "logprobs reserved allowed requested estimate estimated map characters chars bytes size length width "
    "version".split()
)
_OTHER_NUMBERS = set(
    "type status code port index created seed top k n ts retries attempts requests priority level".split()
)
_MODALITY = {"audio", "image", "images", "text", "video", "document", "modality", "search", "web"}
_TOKEN = {"token", "tokens", "tok", "toks"}
_CACHE = {"cache", "cached", "caching"}
_WRITTEN = {"write", "writes", "written", "creation", "create", "created", "store", "stored", "miss_write"}
_NOT_CACHED = {"miss", "misses", "no", "non", "not", "uncached", "noncached"}
_THOUGHT = {"reasoning", "thinking", "thought", "thoughts", "reason", "cot"}
_SENT = {"input", "inputs", "prompt", "prompts", "in", "prefill", "context", "evaluated", "ingested"}
_MADE = {"output", "outputs", "completion", "completions", "out", "generated", "generation", "candidates", "predicted",
         "decode", "decoded", "answer", "produced"}  # fmt: skip
_ALL = {"total", "all", "overall", "sum", "combined"}
_HOLDERS = {"usage", "token", "tokens", "toks", "tok"}  # of objects whose members are counts
_HUMPS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+[a-z]*|[^\W_0-9A-Za-z]+")


@dataclass(frozen=True)
class Name:
    """What the name of a count says. additive: is the part beside its total (None: the name does not say)."""

    role: str
    additive: bool | None
    known: bool
    billed: bool = False  # what the producer bills may be less than what it used


def words(key: str) -> tuple[str, ...]:
    """The words of a name: `promptTokenCount` and `prompt.token-count` are prompt, token, count."""
    return tuple(word.lower() for word in _HUMPS.findall(key))


def norm(path: Path) -> str:
    return "_".join(word for key in path for word in words(key))


def place_of(text: str, names: Sequence[str]) -> int | None:
    """The place of the longest name that `text`, words joined by "_", ends with."""
    found = [name for name in names if text == name or text.endswith(f"_{name}")]
    return names.index(max(found, key=len)) if found else None


def name_of(path: Path) -> Name | None:
    """What the name says; None where by its name it is no count of tokens."""
    own = words(path[-1])
    # A finer count inside details, such as cached_tokens_details.device, is not what its parent counts.
    holder = words(path[-2]) if len(path) > 1 else ()
    billed = "billed" in own or "billed" in holder
    plain = tuple(word for word in own if word != "billed")
    if set(plain) & _NO_COUNT:
        return None
    known = _known((*(word for key in path[:-1] for word in words(key)), *plain), len(plain))
    if known:
        return Name(known[0], known[1], known=True, billed=billed)
    role = _role(set(plain), set(holder))
    return Name(role, None, known=False, billed=billed) if role else None


def _known(all_words: tuple[str, ...], own: int) -> tuple[str, bool | None] | None:
    """The longest known name at the path's end; what is left of the last key may only be neutral."""
    for start in range(len(all_words)):
        found = KNOWN.get("_".join(all_words[start:]))
        if found:
            before = all_words[max(len(all_words) - own, 0) : start]
            return found if set(before) <= _NEUTRAL else None
    return None


def _role(own: set[str], holder: set[str]) -> str | None:
    if not own & _TOKEN:
        if not holder & _HOLDERS or holder & _NO_COUNT:
            return None
        if "details" in holder and not own & (_CACHE | _THOUGHT):
            return DETAIL
    if own & _NOT_CACHED and own & (_CACHE | {"uncached", "noncached"}):
        return UNCACHED
    if own & _MODALITY or "ephemeral" in own:
        return WRITE_PART if "ephemeral" in own else DETAIL
    if own & _CACHE:
        return WRITE if own & _WRITTEN else CACHED
    if own & _THOUGHT:
        return REASONING
    sent, made = bool(own & _SENT), bool(own & _MADE)
    if sent and "tool" in own:
        return TOOL_INPUT
    if sent != made:
        return INPUT if sent else OUTPUT
    return TOTAL if own & _ALL else None


def is_no_count(path: Path) -> bool:
    """Whether by its name it is something else than a count of tokens: a price, a limit, a time, another number."""
    return bool(set(words(path[-1])) & (_NO_COUNT | _OTHER_NUMBERS))
