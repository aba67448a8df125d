// What a panel shows, as a CSV file. Numbers have all their digits. A name that a spreadsheet would take for a formula
// gets an apostrophe before it, which spreadsheets do not show.

import { asked, minute } from "./address.js";

const OF_NOW = ["meters"]; // the other panels are of a time

const FORMULA = /^[=+\-@\t\r]/;

function field(value) {
  if (value === null || value === undefined) return "";
  if (typeof value !== "string") return String(value);
  const text = FORMULA.test(value) ? `'${value}` : value;
  return /[",\n\r]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text;
}

export function csv(rows) {
  return rows.map((row) => `${row.map(field).join(",")}\r\n`).join("");
}

export function save(name, rows) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([csv(rows)], { type: "text/csv" }));
  const filter = [asked.model, asked.chip, asked.meter].filter(Boolean).map((each) => each.replace(/[^\w.-]+/g, "_"));
  const until = asked.from === null ? [asked.span, minute(Date.now())] : [minute(asked.from), minute(asked.to)];
  const time = (OF_NOW.includes(name) ? until.slice(-1) : until).map((each) => each.replace(/:/g, ""));
  link.download = ["tokenometer", name, ...filter, ...time].join("-") + ".csv";
  link.click();
  URL.revokeObjectURL(link.href);
}

export function historyRows(by, { times, series, step_ms: step, to }) {
  const end = Date.parse(to);
  const rows = [["from", "to", by, "total_tokens"]];
  times.forEach((time, k) => {
    for (const { name, tokens } of series) {
      rows.push([new Date(time).toISOString(), new Date(Math.min(time + step, end)).toISOString(), name ?? "others", tokens[k]]);
    }
  });
  return rows;
}

export const TABLES = {
  matrix: ({ matrix: { models, chips, total_tokens: tokens } }) => [
    ["model", ...chips],
    ...models.map((model, k) => [model, ...tokens[k]]),
  ],
  users: ({ users: { rows, currency } }) => [
    ["user", "total_tokens", ...(currency ? [`revenue_${currency}`, "unpriced_tokens"] : [])],
    ...rows.map((row) => [row.user, row.total_tokens, ...(currency ? [row.revenue, row.unpriced_tokens] : [])]),
  ],
  meters: ({ meters }) => [
    ["meter", "device", "state", "committed_at", "lag_messages", "freshness_ms", "parts", "total_tokens"],
    ...meters.map((m) => [m.meter, m.device, m.state, m.committed_at, m.lag_messages, m.freshness_ms, m.parts, m.total_tokens]),
  ],
};
