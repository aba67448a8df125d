#!/usr/bin/env bash
# Guess: a price library whose table has a price above 200,000 input tokens uses it for a call above 200,000 tokens.
# Instead: tokencost charges the lower price for any length, though the higher one is in the table that it reads.
# Why it matters: exactly the dearest calls come out at half their price. The cost is a plain number, so nobody sees
# that a rule was left out; per-token prices times counts are no bill where the provider prices the whole request by its
# length.
# Versions: tokencost 0.1.26.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    tokencost==0.1.26

"$work/venv/bin/python" -W ignore - <<'PY'
import sys
from importlib.metadata import version

from tokencost import TOKEN_COSTS, calculate_cost_by_tokens


def check(words, seen, expected):
    """Print what was seen; leave with an error when it is no longer what this finding says."""
    print(f"{words}: {seen}")
    if seen != expected:
        sys.exit(f"The behaviour has changed: expected {expected}")


for name in ["tokencost"]:
    print(name, version(name))

price = TOKEN_COSTS["gemini-2.5-pro"]
low, high = price["input_cost_per_token"], price["input_cost_per_token_above_200k_tokens"]
check("price above 200,000 tokens against the price below, by the table", high / low, 2.0)
for count in 200_000, 250_000:
    charged = float(calculate_cost_by_tokens(count, "gemini-2.5-pro", "input")) / count
    check(f"price of each of {count} tokens against the lower price", round(charged / low, 6), 1.0)
PY
