// Totals onto the page. Owns every element but the charts. Promises: elements stay and only their text changes, and only
// if it did. Names reach the page as text and as nothing else.

import { duration, exact, moment, money, percent, printable, share, si } from "./format.js";

const LEDGER_LATE_MS = 300_000; // behind which it is said how far a ledger is
const METERS_MAX = 50; // rows; the stale ones come first
const HEAT_STEPS = 24;
const ORDER = ["stale", "late", "live", "stopped"];
const STATES = {
  live: () => "● live",
  late: (age) => `◐ late ${age}`,
  stale: (age) => `▲ stopped ${age}`,
  stopped: () => "■ stopped",
};
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

// A name that one may click: everything filters to it, or it is searched.
function setPick(cell, kind, name) {
  if (cell.named === name) return;
  setName(cell, name);
  const button = document.createElement("button");
  [button.type, button.value, button.dataset.pick] = ["button", name, kind];
  button.replaceChildren(...cell.childNodes);
  cell.replaceChildren(button);
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

function element(tag) {
  return () => document.createElement(tag);
}

function byId(id) {
  return document.getElementById(id);
}

// --- The page ---

// What is drawn in one frame each, so that none of them takes longer than a frame lasts.
export const PANELS = [
  (totals) => {
    drawRate(totals.rate);
    for (const name of ["today", "yesterday", "since_start"]) putTokens(name, totals.windows[name]?.tokens.total_tokens);
    drawActive(totals.everyone);
    put("at", `${moment(totals.at)} UTC`, totals.at);
  },
  (totals) => {
    drawCategories(totals.range.tokens);
    drawFlow(totals);
    drawRecords(totals);
  },
  (totals) => drawMatrix(totals.matrix),
  (totals) => {
    drawUsers(totals.users, totals.range.tokens?.total_tokens);
    drawMeters(totals.meters);
  },
];

function drawActive(windows) {
  for (const window of ["1m", "1h", "24h"]) {
    const { active_users: users, tokens_per_active_user: each } = windows[`last_${window}`];
    put(`users-${window}`, si(users), exact(users));
    put(`each-${window}`, si(each), exact(each));
  }
}

function putTokens(name, tokens) {
  put(name, si(tokens), tokens === undefined ? "Not known of a part" : `${exact(tokens)} tokens`);
}

function drawRate(rate) {
  const [number, unit] = si(rate.tokens_per_second).split(" ");
  put("now", number, exact(rate.tokens_per_second));
  put("now-unit", unit ? `${unit}` : "");
  put("requests", si(rate.requests_per_second), exact(rate.requests_per_second));
  put("per-day", si(rate.tokens_per_day), exact(rate.tokens_per_day));
  put("target", si(rate.target_tokens_per_day), exact(rate.target_tokens_per_day));
  put("share", percent(rate.share_of_target));
  // The bar ends at five quarters of the target, whose mark is at four fifths.
  setStyle(fields.bar, "transform", `scaleX(${Math.min(1, (rate.share_of_target ?? 0) * 0.8).toFixed(4)})`);
}

function drawCategories(tokens) {
  const whole = Number(tokens?.total_tokens ?? 0);
  const parts = CATEGORIES.map(([name, count]) => [name, tokens && count(tokens)]);
  rows(byId("segments"), parts, element("i"), (node, [, count], k) => {
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
  put("complete", moment(totals.complete_up_to), totals.complete_up_to ?? "");
  put("meters", `${live} of ${totals.meters.length} live`);
  setData(fields.meters, "alarm", String(totals.meters.some(({ state }) => state === "late" || state === "stale")));
}

function drawRecords({ records, rejects }) {
  put("read", si(records.read), exact(records.read));
  for (const name of ["duplicates", "conflicts", "skipped", "rejected"]) {
    put(name, si(records[name]), exact(records[name]));
    put(`${name}-share`, percent(share(records[name], records.read)));
  }
  const reasons = Object.entries(rejects).filter(([, count]) => count > 0).sort(([, a], [, b]) => Number(b) - Number(a));
  rows(byId("rejects"), reasons, row("th", "td"), (node, [reason, count]) => {
    setName(node.children[0], reason);
    setText(node.children[1], si(count), exact(count));
  });
}

// The third column is money where the ledger has a price list, and else the share of all.
function drawUsers({ source, rows: users, told = "", currency, complete_up_to: complete, from, to }, whole) {
  const lists = source === "top_users";
  const until = complete ? `, complete to ${moment(complete)}` : "";
  put("users-when", lists ? "about the last hour" : told ? "" : `${span(from, to)}, by the ledger`, lists ? "At least so many, by the meters' lists of their largest users" : `All of it${until}`);
  const missing = complete && Date.parse(complete) < Math.min(Date.parse(to), Date.now() - LEDGER_LATE_MS);
  const committed = lists && users.length && Number(whole) === 0; // the lists know when, but not of which time
  put("users-told", told ? `Not known: ${told}` : committed ? "Committed in the last hour; the records are older" : missing ? `The ledger has all until ${moment(complete)}` : users.length || lists ? "" : "Nobody");
  put("users-third", currency ?? "Share");
  const most = Number(users[0]?.total_tokens ?? 1);
  rows(byId("top-users"), users, row("th", "td", "td"), (node, { user, total_tokens: tokens, revenue }) => {
    setPick(node.children[0], "user", user);
    setText(node.children[1], si(tokens), exact(tokens));
    if (currency) setText(node.children[2], money(revenue), revenue === null ? "There is no price" : `${revenue} ${currency}`);
    else setText(node.children[2], percent(share(tokens, whole)));
    setStyle(node, "--share", (share(tokens, most) ?? 0).toFixed(3));
  });
}

// 14:00 – 15:00
function span(from, to) {
  const [begin, end] = [from, to].map((each) => moment(each).slice(0, -3));
  return `${begin} – ${begin.slice(0, -5) === end.slice(0, -5) ? end.slice(-5) : end}`;
}

function drawMeters(meters) {
  const order = (meter) => ORDER.indexOf(meter.state);
  const shown = meters.toSorted((a, b) => order(a) - order(b) || a.meter.localeCompare(b.meter, "en", { numeric: true }));
  rows(byId("meter-rows"), shown.slice(0, METERS_MAX), row("th", "td", "td", "td", "td", "td"), (node, meter) => {
    const [name, state, lag, fresh, parts, tokens] = node.children;
    setPick(name, "meter", meter.meter);
    setText(name.lastChild === name.firstChild ? name.appendChild(document.createElement("small")) : name.lastChild, printable(meter.device));
    setText(state, STATES[meter.state](duration(meter.age_ms)), `last commit ${meter.committed_at}`);
    setData(node, "state", meter.state);
    setText(lag, si(meter.lag_messages), exact(meter.lag_messages));
    setText(fresh, duration(meter.freshness_ms));
    setText(parts, String(meter.parts), printable(meter.part));
    setText(tokens, si(meter.total_tokens), exact(meter.total_tokens));
  });
  put("more-meters", meters.length > METERS_MAX ? `and ${meters.length - METERS_MAX} more` : "");
}

// --- Model by chip ---

// Only the rows in sight exist: 64 x 32 numbers, all of them new every second, would cost several frames.
const ROW_REM = 1.35; // as in style.css
const matrix = { models: [], chips: [], total_tokens: [] };
const table = byId("matrix");
const scroller = table.parentElement;
let sight = { first: 0, count: 0 };

function look() {
  const rem = parseFloat(getComputedStyle(document.documentElement).fontSize);
  const row = ROW_REM * rem;
  fitColumns(rem);
  sight = { first: Math.floor(scroller.scrollTop / row), count: Math.ceil(scroller.clientHeight / row) };
  drawMatrix(matrix);
}

scroller.addEventListener("scroll", look, { passive: true });
for (const node of [scroller, scroller.parentElement, table]) new ResizeObserver(look).observe(node);

// Where not all columns fit, as many whole ones as fit are in sight: none is cut inside a number.
function fitColumns(rem) {
  const style = getComputedStyle(table);
  const [first, cell] = ["--first", "--cell"].map((name) => parseFloat(style.getPropertyValue(name)) * rem);
  const [columns, room] = [matrix.chips.length, scroller.parentElement.clientWidth];
  const upright = scroller.offsetWidth - scroller.clientWidth;
  const whole = Math.max(1, Math.floor((room - first - upright) / cell));
  setStyle(scroller, "width", columns > whole ? `${first + whole * cell + upright}px` : "");
  setStyle(scroller, "--bar", `${scroller.offsetHeight - scroller.clientHeight}px`);
}

function drawMatrix(latest) {
  Object.assign(matrix, latest);
  const { models, chips, total_tokens: tokens } = matrix;
  const first = Math.max(0, Math.min(sight.first, models.length - sight.count));
  const seen = models.slice(first, first + sight.count);
  const [head, body] = table.children;
  const most = Math.max(1, ...tokens.map((line) => Math.max(0, ...line.map(Number))));
  setStyle(table, "--columns", String(chips.length));
  setStyle(body, "padding-top", `${first * ROW_REM}rem`);
  setStyle(body, "padding-bottom", `${(models.length - first - seen.length) * ROW_REM}rem`);
  rows(head, [chips], element("tr"), (line) => {
    rows(line, ["", ...chips], element("th"), (cell, chip, k) => {
      if (k) setPick(cell, "chip", chip);
    });
  });
  rows(body, seen, element("tr"), (line, model, m) => {
    rows(line, [model, ...tokens[first + m]], () => element(line.children.length ? "td" : "th")(), (cell, item, k) => {
      if (k) heat(cell, item, most);
      else setPick(cell, "model", model);
    });
  });
}

// Roots, because a few cells hold nearly everything. The number says what the colour says.
function heat(cell, tokens, most) {
  setText(cell, Number(tokens) ? si(tokens) : "·");
  setStyle(cell, "--heat", (Math.round(Math.sqrt(Number(tokens) / most) * HEAT_STEPS) / HEAT_STEPS).toFixed(3));
  cell.tokens = tokens;
}

// Exact numbers of so many cells are written when somebody points at one.
table.addEventListener("mouseover", ({ target }) => {
  if (target.tokens !== undefined) target.title = `${exact(target.tokens)} tokens`;
});
