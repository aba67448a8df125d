#!/usr/bin/env bash
# Guess: an attribute keeps its type from span to span, and OTLP as JSON says the same as OTLP as protobuf.
# Instead: OpenTelemetry JS looks at each value: a cost of 1.5 is a double and a cost of 1.0 an int, in both forms. In
# JSON an int is a number and not a decimal string; NaN (a sum with `undefined`) becomes null, which protobuf's JSON
# mapping reads as no value; 1e21 becomes an intValue that does not fit into 64 bits. Protobuf has a NaN and a double
# there.
# Why it matters: a typed column for cost refuses the round amounts only, and what arrives depends on the exporter.
# Versions: @opentelemetry/otlp-transformer 0.223.1, @opentelemetry/sdk-trace-base 2.12.1 (the newest for Node.js 20).
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
npm install --silent --no-audit --no-fund \
    @opentelemetry/api@1.9.0 @opentelemetry/otlp-transformer@0.223.1 @opentelemetry/sdk-trace-base@2.12.1

cat > finding.mjs <<'JS'
import { readFileSync } from 'node:fs';
import { JsonTraceSerializer, ProtobufTraceSerializer } from '@opentelemetry/otlp-transformer';
import { BasicTracerProvider, InMemorySpanExporter, SimpleSpanProcessor } from '@opentelemetry/sdk-trace-base';

/** Print what was seen; leave with an error when it is no longer what this finding says. */
function check(words, seen, expected) {
  const [was, should] = [JSON.stringify(seen), JSON.stringify(expected)];
  console.log(`${words}: ${was}`);
  if (was !== should) {
    console.error(`The behaviour has changed: expected ${should}`);
    process.exit(1);
  }
}

for (const name of ['otlp-transformer', 'sdk-trace-base']) {
  const { version } = JSON.parse(readFileSync(`node_modules/@opentelemetry/${name}/package.json`));
  console.log(`@opentelemetry/${name}`, version);
}

const nan = 100 + undefined; // a sum in which one count is absent
const values = { 'cost.broken': 1.5, 'cost.round': 1.0, 'count.small': 2006, 'count.nan': nan, 'count.huge': 1e21 };
const exporter = new InMemorySpanExporter();
const provider = new BasicTracerProvider({ spanProcessors: [new SimpleSpanProcessor(exporter)] });
provider.getTracer('finding').startSpan('chat', { attributes: values }).end();
const spans = exporter.getFinishedSpans();

const text = new TextDecoder().decode(JsonTraceSerializer.serializeRequest(spans));
const [span] = JSON.parse(text).resourceSpans[0].scopeSpans[0].spans;
const json = Object.fromEntries(span.attributes.map(({ key, value }) => [key, value]));
check('JSON, cost of 1.5', json['cost.broken'], { doubleValue: 1.5 });
check('JSON, cost of 1.0', json['cost.round'], { intValue: 1 });
check('JSON, count of 2006 (a number, not a string)', json['count.small'], { intValue: 2006 });
check('JSON, count of NaN', json['count.nan'], { doubleValue: null });
check('JSON, count of 1e21', json['count.huge'], { intValue: 1e21 });

// In protobuf the tag and the length of the AnyValue follow its key; then comes the tag of the field that is set.
const bytes = Buffer.from(ProtobufTraceSerializer.serializeRequest(spans));
const tags = { 0x18: 'int_value', 0x21: 'double_value' };
const protobuf = (key) => tags[bytes[bytes.indexOf(key) + key.length + 2]];
check('protobuf, types in the same order', Object.keys(values).map(protobuf),
  ['double_value', 'int_value', 'int_value', 'double_value', 'double_value']);
const place = bytes.indexOf('count.nan') + 'count.nan'.length + 3;
check('protobuf, the count of NaN is NaN', Number.isNaN(bytes.readDoubleLE(place)), true);
JS
node finding.mjs
