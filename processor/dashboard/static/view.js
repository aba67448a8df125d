// Totals onto the page. Owns every element but the charts. Promises: elements stay and only their text changes, and only
// if it did; names reach the page as text and as nothing else.

import { clock, duration, exact, percent, printable, share, si } from "./format.js";

const METERS_MAX = 50; // rows; the stale ones come first
const HEAT_STEPS = 24;
const CATEGORIES = [
  ["Uncached input", (t) => Number(t.input_tokens) - Number(t.cached_input_tokens) - Number(t.cache_write_tokens)],
  ["Cached input", (t) => Number(t.cached_input_tokens)],
  ["Cache write", (t) => Number(t.cache_write_tokens)],
  ["Output", (t) => Number(t.output_tokens) - Number(t.reasoning_tokens)],
  ["Reasoning", (t) => Number(t.reasoning_tokens)],
];

const fields = Object.fromEntries([...document.querySelectorAll("[data-field]")].map((node) => [node.dataset.field, node]));

// --- Elements that stay ---

export function put(name, text, title = "") {
  setText(fields[name], text, title);
}

function setText(node, text, title = "") {
  if (node.shown !== text) node.textContent = node.shown = text;
  if (node.title !== title) node.title = title;
}

function setStyle(node, name, value) {
  node.styles ??= {};
  if (node.styles[name] !== value) node.style.setProperty(name, (node.styles[name] = value));
}

function setData(node, name, value) {
  if (node.dataset[name] !== value) node.dataset[name] = value;
}

function setName(cell, name) {
  if (cell.named === name) return;
  cell.named = name;
  const text = document.createElement("bdi"); // its direction of writing ends with it
  text.textContent = printable(name);
  cell.replaceChildren(text);
  cell.className = "name";
  cell.title = printable(name);
}

// As many rows as items: `make` adds one, `fill` writes into it.
function rows(parent, items, make, fill) {
  while (parent.children.length > items.length) parent.lastElementChild.remove();
  while (parent.children.length < items.length) parent.append(make());
  items.forEach((item, k) => fill(parent.children[k], item, k));
}

function row(...tags) {
  return () => {
    const made = document.createElement("tr");
    made.append(...tags.map((tag) => document.createElement(tag)));
    return made;
  };
}

function byId(id) {
  return document.getElementById(id);
}

// --- The page ---

export function draw(totals) {
  const { rate, windows } = totals;
  drawRate(rate);
  for (const [name, window] of [["today", "today"], ["yesterday", "yesterday"], ["since-start", "since_start"]]) {
    putTokens(name, windows[window].tokens.total_tokens);
  }
  for (const window of ["1m", "1h", "24h"]) {
    const { active_users: users, tokens_per_active_user: each } = windows[`last_${window}`];
    put(`users-${window}`, si(users), exact(users));
    put(`each-${window}`, si(each), exact(each));
  }
  drawCategories(windows.last_1h.tokens);
  drawFlow(totals);
  drawRecords(totals);
  drawMatrix(totals.matrix);
  drawUsers(totals.top_users, windows.last_1h.tokens.total_tokens);
  drawMeters(totals.meters);
  put("at", `${clock(totals.at)} UTC`, totals.at);
}

function putTokens(name, tokens) {
  put(name, si(tokens), `${exact(tokens)} tokens`);
}

function drawRate(rate) {
  const [number, unit] = si(rate.tokens_per_second).split(" ");
  put("now", number, exact(rate.tokens_per_second));
  put("now-unit", unit ? `${unit}` : "");
  put("requests", si(rate.requests_per_second), exact(rate.requests_per_second));
  put("per-day", si(rate.tokens_per_day), exact(rate.tokens_per_day));
  put("target", si(rate.target_tokens_per_day), exact(rate.target_tokens_per_day));
  put("share", percent(rate.share_of_target));
  // The bar ends at five quarters of the target, whose mark stands at four fifths.
  setStyle(fields.bar, "transform", `scaleX(${Math.min(1, (rate.share_of_target ?? 0) * 0.8).toFixed(4)})`);
}

function drawCategories(tokens) {
  const whole = Number(tokens.total_tokens);
  const parts = CATEGORIES.map(([name, count]) => [name, count(tokens)]);
  const segment = () => document.createElement("i");
  rows(byId("segments"), parts, segment, (node, [, count], k) => {
    setStyle(node, "flex-grow", (share(count, whole) * 1000).toFixed(1));
    setStyle(node, "background", `var(--c${k + 1})`);
  });
  rows(byId("categories"), parts, row("th", "td", "td"), (node, [name, count], k) => {
    const [head, amount, part] = node.children;
    setText(head, name);
    setStyle(head, "--swatch", `var(--c${k + 1})`);
    setText(amount, si(count), exact(count));
    setText(part, percent(share(count, whole)));
  });
}

function drawFlow(totals) {
  const live = totals.meters.filter((meter) => meter.state === "live").length;
  put("lag", totals.lag_messages === null ? "–" : `${si(totals.lag_messages)} msg`, `${exact(totals.lag_messages)} messages`);
  put("freshness", duration(totals.freshness_ms), `${exact(totals.freshness_ms)} ms`);
  put("complete", clock(totals.complete_up_to), totals.complete_up_to ?? "");
  put("meters", `${live} of ${totals.meters.length} live`);
  setData(fields.meters, "alarm", String(live < totals.meters.length));
}

function drawRecords({ records, rejects }) {
  put("read", si(records.read), exact(records.read));
  for (const name of ["duplicates", "rejected"]) {
    put(name, `${si(records[name])}  ${percent(share(records[name], records.read))}`, exact(records[name]));
  }
  const reasons = Object.entries(rejects).filter(([, count]) => count > 0).sort(([, a], [, b]) => Number(b) - Number(a));
  rows(byId("rejects"), reasons, row("th", "td"), (node, [reason, count]) => {
    setName(node.children[0], reason);
    setText(node.children[1], si(count), exact(count));
  });
}

function drawUsers(users, hour) {
  const most = Number(users[0]?.total_tokens ?? 1);
  rows(byId("top-users"), users, row("th", "td", "td"), (node, { user, total_tokens: tokens }) => {
    setName(node.children[0], user);
    setText(node.children[1], si(tokens), exact(tokens));
    setText(node.children[2], percent(share(tokens, hour)));
    setStyle(node, "--share", share(tokens, most).toFixed(3));
  });
}

function drawMeters(meters) {
  const order = (meter) => (meter.state === "live" ? 1 : 0);
  const shown = meters.toSorted((a, b) => order(a) - order(b) || a.meter.localeCompare(b.meter, "en", { numeric: true }));
  rows(byId("meter-rows"), shown.slice(0, METERS_MAX), row("th", "td", "td", "td", "td", "td"), (node, meter) => {
    const [name, state, lag, fresh, parts, tokens] = node.children;
    setName(name, meter.meter);
    setText(name.lastChild === name.firstChild ? name.appendChild(document.createElement("small")) : name.lastChild, printable(meter.device));
    setText(state, meter.state === "live" ? "● live" : `▲ ${duration(meter.age_ms)}`, `last commit ${meter.committed_at}`);
    setData(node, "state", meter.state);
    setText(lag, si(meter.lag_messages), exact(meter.lag_messages));
    setText(fresh, duration(meter.freshness_ms));
    setText(parts, String(meter.parts), printable(meter.part));
    setText(tokens, si(meter.total_tokens), exact(meter.total_tokens));
  });
  put("more-meters", meters.length > METERS_MAX ? `and ${meters.length - METERS_MAX} more` : "");
}

// --- Model by chip ---

function drawMatrix({ models, chips, total_tokens: tokens }) {
  const [head, body] = byId("matrix").children;
  setStyle(byId("matrix"), "--columns", String(chips.length));
  const most = Math.max(1, ...tokens.map((line) => Math.max(0, ...line.map(Number))));
  rows(head, [chips], () => document.createElement("tr"), (line) => {
    rows(line, ["", ...chips], () => document.createElement("th"), (cell, chip, k) => {
      if (k) setName(cell, chip);
    });
  });
  rows(body, models, () => document.createElement("tr"), (line, model, m) => {
    rows(line, [model, ...tokens[m]], () => document.createElement(line.children.length ? "td" : "th"), (cell, item, k) => {
      if (k) heat(cell, item, most);
      else setName(cell, model);
    });
  });
}

// Roots, because a few cells hold nearly everything. The number says what the colour says.
function heat(cell, tokens, most) {
  setText(cell, Number(tokens) ? si(tokens) : "·");
  setStyle(cell, "--heat", (Math.round(Math.sqrt(Number(tokens) / most) * HEAT_STEPS) / HEAT_STEPS).toFixed(3));
  cell.tokens = tokens;
}

// Exact numbers of 2,048 cells would cost more than the rest of the page: they are written when somebody points at one.
byId("matrix").addEventListener("mouseover", ({ target }) => {
  if (target.tokens !== undefined) target.title = `${exact(target.tokens)} tokens`;
});
