#!/usr/bin/env bash
# Guess: tokenlens, made for the usage of Vercel's AI SDK, takes cachedInputTokens and reasoningTokens as the parts of
# inputTokens and outputTokens that they are there.
# Instead: it charges each total in full and each part once more. A million input tokens that all came from the cache
# cost more than a million that did not ($3.75 for $1.25), and reasoning costs double.
# Why it matters: the better the cache works, the larger the bill. The AI SDK's newer names for the cached tokens
# (inputTokenDetails) are not read at all, so the same call has a third price ($2.50) when only these are kept.
# Versions: tokenlens 1.3.1.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
npm install --silent --no-audit --no-fund tokenlens@1.3.1

cat > finding.mjs <<'JS'
import { readFileSync } from 'node:fs';
import { getTokenCosts } from 'tokenlens';

/** Print what was seen; leave with an error when it is no longer what this finding says. */
function check(words, seen, expected) {
  console.log(`${words}: ${seen}`);
  if (seen !== expected) {
    console.error(`The behaviour has changed: expected ${expected}`);
    process.exit(1);
  }
}

console.log('tokenlens', JSON.parse(readFileSync('node_modules/tokenlens/package.json')).version);
const cost = { input: 2.5, cache_read: 1.25, output: 10, reasoning: 10 }; // dollars for a million tokens
const model = { id: 'm', name: 'm', cost, limit: { context: 2e6, output: 2e6 } };
const providers = { p: { id: 'p', models: { m: model } } };
const dollars = (usage) => getTokenCosts({ modelId: 'p/m', usage, providers }).totalUSD;

const input = { inputTokens: 1e6, outputTokens: 0 };
const output = { inputTokens: 0, outputTokens: 1e6 };
check('dollars, input without cache', dollars(input), 2.5);
check('dollars, the same input, all of it cached', dollars({ ...input, cachedInputTokens: 1e6 }), 3.75);
check('dollars, the same, by the newer names', dollars({ ...input, inputTokenDetails: { cacheReadTokens: 1e6 } }), 2.5);
check('dollars, output without reasoning', dollars(output), 10);
check('dollars, the same output, all of it reasoning', dollars({ ...output, reasoningTokens: 1e6 }), 20);
JS
node finding.mjs
