#!/usr/bin/env bash
# Guess: the spans of Vercel's AI SDK say the same input for the same call in each of its versions; OpenTelemetry's
# conventions say that `gen_ai.usage.input_tokens` holds all of it, cached or not.
# Instead: of a call to Anthropic that read 3,962 tokens from the cache and wrote 100, version 5 says 9 and has no count
# of the cache at all. Version 6 says 4,071, and the parts in names of its own.
# Why it matters: after an upgrade the same traffic has hundreds of times the input. Before it, nothing in the span says
# that something is left out: nobody can repair the sum later.
# Versions: ai 5.0.277 with @ai-sdk/anthropic 2.0.112, ai 6.0.326 with @ai-sdk/anthropic 3.0.140 (generateText).
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
npm install --silent --no-audit --no-fund ai5@npm:ai@5.0.277 ai6@npm:ai@6.0.326 \
    anthropic2@npm:@ai-sdk/anthropic@2.0.112 anthropic3@npm:@ai-sdk/anthropic@3.0.140 \
    @opentelemetry/api@1.9.0 @opentelemetry/sdk-trace-base@2.12.1

cat > finding.mjs <<'JS'
import { createServer } from 'node:http';
import { readFileSync } from 'node:fs';
import { BasicTracerProvider, InMemorySpanExporter, SimpleSpanProcessor } from '@opentelemetry/sdk-trace-base';

/** Print what was seen; leave with an error when it is no longer what this finding says. */
function check(words, seen, expected) {
  console.log(`${words}: ${seen}`);
  if (seen !== expected) {
    console.error(`The behaviour has changed: expected ${expected}`);
    process.exit(1);
  }
}

const message = {
  id: 'msg_1', type: 'message', role: 'assistant', model: 'claude-sonnet-4-5', content: [{ type: 'text', text: 'Hello' }],
  stop_reason: 'end_turn', stop_sequence: null,
  usage: { input_tokens: 9, cache_read_input_tokens: 3962, cache_creation_input_tokens: 100, output_tokens: 50 },
};
const server = createServer((request, response) => {
  request.resume();
  request.on('end', () => {
    response.setHeader('content-type', 'application/json');
    response.end(JSON.stringify(message));
  });
});
await new Promise((ready) => server.listen(0, '127.0.0.1', ready));
const baseURL = `http://127.0.0.1:${server.address().port}/v1`;

async function spanOfCall(sdk, provider) {
  const { generateText } = await import(sdk);
  const { createAnthropic } = await import(provider);
  const exporter = new InMemorySpanExporter();
  const tracer = new BasicTracerProvider({ spanProcessors: [new SimpleSpanProcessor(exporter)] }).getTracer('t');
  const model = createAnthropic({ apiKey: 'none', baseURL })('claude-sonnet-4-5');
  await generateText({ model, prompt: 'Hi', experimental_telemetry: { isEnabled: true, tracer } });
  return exporter.getFinishedSpans().find((span) => span.name === 'ai.generateText.doGenerate').attributes;
}

for (const name of ['ai5', 'anthropic2', 'ai6', 'anthropic3']) {
  console.log(name, JSON.parse(readFileSync(`node_modules/${name}/package.json`)).version);
}
console.log('what the answer says:', JSON.stringify(message.usage));
const [five, six] = [await spanOfCall('ai5', 'anthropic2'), await spanOfCall('ai6', 'anthropic3')];
check('version 5, input', five['gen_ai.usage.input_tokens'], 9);
check('version 5, attributes about a cache', Object.keys(five).filter((key) => /usage.*cache/i.test(key)).length, 0);
check('version 6, input', six['gen_ai.usage.input_tokens'], 4071);
check('version 6, read from the cache', six['ai.usage.inputTokenDetails.cacheReadTokens'], 3962);
check('version 6, written to the cache', six['ai.usage.inputTokenDetails.cacheWriteTokens'], 100);
server.close();
JS
node finding.mjs
