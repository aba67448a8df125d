#!/usr/bin/env bash
# Guess: a library that knows DeepSeek's price for cache hits reads the counts that DeepSeek's reference names for them.
# Instead: genai-prices reads DeepSeek's usage as if it were OpenAI's. prompt_cache_hit_tokens is not read, and the
# price is that of a miss. Only a body that also has OpenAI's prompt_tokens_details gets the lower price.
# Why it matters: cache hits are most of an agent's input, and here cost about a fourth of a miss. Logs of gateways that
# pass on DeepSeek's own names are priced several times too high, without an error.
# Versions: genai-prices 0.2.3 (its own prices).
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    genai-prices==0.2.3

"$work/venv/bin/python" -W ignore - <<'PY'
import sys
from importlib.metadata import version

from genai_prices import Usage, calc_price, extract_usage


def check(words, seen, expected):
    """Print what was seen; leave with an error when it is no longer what this finding says."""
    print(f"{words}: {seen}")
    if seen != expected:
        sys.exit(f"The behaviour has changed: expected {expected}")


for name in ["genai-prices"]:
    print(name, version(name))

OWN = {
    "prompt_tokens": 1_000_000, "completion_tokens": 0, "total_tokens": 1_000_000,
    "prompt_cache_hit_tokens": 1_000_000, "prompt_cache_miss_tokens": 0,
}
BOTH = OWN | {"prompt_tokens_details": {"cached_tokens": 1_000_000}}


def read(usage):
    """Return the cached tokens that are read out of a body, and the body's price in dollars."""
    body = {"model": "deepseek-chat", "usage": usage}
    found = extract_usage(body, provider_id="deepseek", api_flavor="chat")
    return found.usage.cache_read_tokens or 0, found.calc_price().total_price


def price(usage):
    return calc_price(usage, model_ref="deepseek-chat", provider_id="deepseek").total_price


hit = price(Usage(input_tokens=1_000_000, cache_read_tokens=1_000_000))
miss = price(Usage(input_tokens=1_000_000))
print(f"a million tokens cost ${hit} as hits and ${miss} as misses")
check("a hit costs less than a third of a miss", hit < miss / 3, True)
check("a million hits by DeepSeek's names: cached tokens, price", read(OWN), (0, miss))
check("with OpenAI's names beside them: cached tokens, price", read(BOTH), (1_000_000, hit))
PY
