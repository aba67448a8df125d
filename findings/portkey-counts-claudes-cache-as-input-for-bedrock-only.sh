#!/usr/bin/env bash
# Guess: a gateway with one OpenAI-compatible endpoint gives prompt_tokens one meaning: all of the input, of which
# prompt_tokens_details.cached_tokens is a part, and prompt_tokens and completion_tokens add up to total_tokens.
# Instead: Portkey's gateway does this for Claude on Bedrock. For Claude at Anthropic prompt_tokens leaves out tokens
# read from the cache and written to it, and total_tokens holds both; cached_tokens is larger than prompt_tokens.
# Streams from Anthropic say the same as plain answers.
# Why it matters: of one call of 4,071 input tokens the first route says 4,071 and the second 9. Whoever prices
# prompt_tokens less cached_tokens gets a negative number for the second; its input is the total less the output.
# Versions: @portkey-ai/gateway 1.15.2, with the hono 4.9.7 and @hono/node-server 1.13.5 of its lock file.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
cat > package.json <<'JSON'
{
  "dependencies": { "@portkey-ai/gateway": "1.15.2" },
  "overrides": { "hono": "4.9.7", "@hono/node-server": "1.13.5" }
}
JSON
npm install --silent --no-audit --no-fund

cat > finding.mjs <<'JS'
import { createServer } from 'node:http';
import { readFileSync } from 'node:fs';
import { Server } from 'node:net';

/** Print what was seen; leave with an error when it is no longer what this finding says. */
function check(words, seen, expected) {
  console.log(`${words}: ${seen}`);
  if (seen !== expected) {
    console.error(`The behaviour has changed: expected ${expected}`);
    process.exit(1);
  }
}

const usage = { input_tokens: 9, cache_read_input_tokens: 3962, cache_creation_input_tokens: 100, output_tokens: 50 };
const message = {
  id: 'msg_1', type: 'message', role: 'assistant', model: 'claude-sonnet-4-5', stop_reason: 'end_turn',
  stop_sequence: null, content: [{ type: 'text', text: 'Hello' }], usage,
};
const events = [
  { type: 'message_start', message: { ...message, content: [], usage: { ...usage, output_tokens: 1 } } },
  { type: 'content_block_start', index: 0, content_block: { type: 'text', text: '' } },
  { type: 'content_block_delta', index: 0, delta: { type: 'text_delta', text: 'Hello' } },
  { type: 'content_block_stop', index: 0 },
  { type: 'message_delta', delta: { stop_reason: 'end_turn', stop_sequence: null }, usage },
  { type: 'message_stop' },
];
const converse = {
  output: { message: { role: 'assistant', content: [{ text: 'Hello' }] } },
  stopReason: 'end_turn', metrics: { latencyMs: 1 },
  usage: {
    inputTokens: 9, cacheReadInputTokens: 3962, cacheWriteInputTokens: 100, outputTokens: 50, totalTokens: 4121,
  },
};

/** Anthropic at /v1/messages, plain and streamed; Bedrock at any other path. */
const upstream = createServer(async (request, response) => {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  const isAnthropic = request.url.endsWith('/messages');
  const isStream = JSON.parse(Buffer.concat(chunks)).stream;
  response.setHeader('content-type', isStream ? 'text/event-stream' : 'application/json');
  if (isStream) response.end(events.map((e) => `event: ${e.type}\ndata: ${JSON.stringify(e)}\n\n`).join(''));
  else response.end(JSON.stringify(isAnthropic ? message : converse));
});
await new Promise((ready) => upstream.listen(0, '127.0.0.1', ready));
const host = `http://127.0.0.1:${upstream.address().port}`;

/** Start the gateway in this process, quietly, and return its address. By itself it listens on every interface. */
async function startGateway() {
  const listen = Server.prototype.listen;
  const listening = new Promise((ready) => {
    Server.prototype.listen = function listenHere(port, name, done) {
      return listen.call(this, 0, '127.0.0.1', () => {
        done?.(this.address());
        ready(`http://127.0.0.1:${this.address().port}`);
      });
    };
  });
  process.argv.push('--headless');
  const write = process.stdout.write;
  process.stdout.write = () => true;
  await import('@portkey-ai/gateway/build/start-server.js');
  const address = await listening;
  await fetch(address);
  process.stdout.write = write;
  return address;
}

const gateway = await startGateway();
process.on('uncaughtException', (error) => {
  console.error(error);
  process.exit(1);
});

async function ask(stream, headers, model) {
  const answer = await fetch(`${gateway}/v1/chat/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', ...headers },
    body: JSON.stringify({ model, max_tokens: 50, stream, messages: [{ role: 'user', content: 'Hi' }] }),
  });
  const text = await answer.text();
  if (!stream) return JSON.parse(text).usage;
  const lines = text.split('\n').filter((line) => line.startsWith('data: {'));
  return lines.map((line) => JSON.parse(line.slice(6)).usage).find((found) => found);
}

const facts = (said) =>
  [said.prompt_tokens, said.prompt_tokens_details.cached_tokens, said.completion_tokens, said.total_tokens].join(', ');
const version = JSON.parse(readFileSync('node_modules/@portkey-ai/gateway/package.json')).version;
console.log('@portkey-ai/gateway', version);
console.log('what Anthropic says:', JSON.stringify(usage));
console.log('what Bedrock says:', JSON.stringify(converse.usage));
const anthropic = {
  'x-portkey-provider': 'anthropic', 'x-portkey-custom-host': `${host}/v1`, authorization: 'Bearer none',
};
const bedrock = {
  'x-portkey-provider': 'bedrock', 'x-portkey-custom-host': host, 'x-portkey-aws-region': 'us-east-1',
  'x-portkey-aws-access-key-id': 'none', 'x-portkey-aws-secret-access-key': 'none',
};
const words = 'prompt, cached, completion, total';
const overBedrock = await ask(false, bedrock, 'anthropic.claude-sonnet-4-5-20250929-v1:0');
check(`Bedrock: ${words}`, facts(overBedrock), '4071, 3962, 50, 4121');
const plain = await ask(false, anthropic, 'claude-sonnet-4-5');
check(`Anthropic: ${words}`, facts(plain), '9, 3962, 50, 4121');
check('prompt and completion', plain.prompt_tokens + plain.completion_tokens, 59);
check(`Anthropic, streamed: ${words}`, facts(await ask(true, anthropic, 'claude-sonnet-4-5')), '9, 3962, 50, 4121');
process.exit(0);
JS
node finding.mjs
