// The page's life: events in, frames out. Owns the connection, what is known about it, and when history is asked for.

import { FILTERS, SPANS, addFilters, ask, asked, filtered, historyQuery, isQuarter, isUsual, onChange, sumQuery, when } from "./address.js";
import { Stack } from "./charts.js";
import { Curve } from "./curve.js";
import { TABLES, historyRows, save } from "./export.js";
import { duration, moment, parse, percent, printable, share, si } from "./format.js";
import * as money from "./money.js";
import { refresh as refreshUser } from "./user.js";
import { PANELS, put } from "./view.js";

const SILENCE_MS = 5000; // without an event the page must not look alive
const ANSWER_MS = 10_000; // a question that hangs must not keep the page from drawing
const NAMED_MAX = 3; // topics and meters that a banner names
const RETRY_MS = 2000; // where the browser gives up, after an answer that is no stream
const HISTORY_EVERY_MS = { "15m": 5000, "1h": 5000 }; // a step is a minute, a pixel or two
const HISTORY_SELDOM_MS = 30_000;
const DAY_MS = 86_400_000;

const curve = new Curve(document.getElementById("curve"));
const stacks = Object.fromEntries(
  ["model", "chip"].map((by) => [by, new Stack(document.getElementById(`by-${by}`), document.getElementById(`legend-${by}`), by)]),
);
let stream;
let totals = null; // the newest
let view = null; // what the totals say of the filter; null: nothing is filtered
let sums = null; // of the time that is shown and the filter; null: the totals have them
let users = null; // the same of the largest users
let receivedAt = performance.now();
let drawing = false;
let again = false; // draw all once more
let refusal = "";
let historyAt = -Infinity;

// --- The stream ---

function connect() {
  stream = new EventSource("/api/stream");
  stream.addEventListener("open", () => {
    refreshCurve();
    historyAt = -Infinity; // asked for with the next totals, which say what time it is
  });
  stream.addEventListener("totals", ({ data }) => receive(parse(data)));
  stream.addEventListener("error", () => {
    if (stream.readyState !== EventSource.CLOSED) return; // it comes back by itself
    setTimeout(connect, RETRY_MS);
    explainRefusal();
  });
}

// A browser keeps a page that was left, to go back to, and with it one of its six connections to a server.
addEventListener("pagehide", () => stream.close());
addEventListener("pageshow", ({ persisted }) => {
  if (persisted) connect();
});

async function explainRefusal() {
  const answer = await get("/api/totals").catch(() => null);
  refusal = answer?.error ?? "";
}

async function receive(news) {
  [totals, receivedAt, refusal] = [news, performance.now(), ""];
  tell();
  if (filtered()) await refreshView();
  else refreshCurve();
  redraw();
}

function redraw() {
  again = drawing; // what is being drawn has a beginning that was true before
  if (!totals || drawing) return;
  drawing = true;
  requestAnimationFrame(() => drawPanel(0));
}

function drawPanel(k) {
  const shown = whatIsShown();
  try {
    PANELS[k](shown);
  } catch (error) {
    drawing = false; // the next second tries again
    throw error;
  }
  if (k + 1 < PANELS.length) return requestAnimationFrame(() => drawPanel(k + 1));
  drawing = false;
  if (again) redraw();
  tellOld();
  document.body.dataset.shown = [asked.model, asked.chip, asked.meter].join("\u0000");
  if (performance.now() - historyAt >= (HISTORY_EVERY_MS[asked.span] ?? HISTORY_SELDOM_MS)) refreshHistory();
}

// --- The filter, and the time that is shown ---

function whatIsShown() {
  const shown = { ...totals, ...view, windows: view ? { ...view.windows } : { ...totals.windows }, everyone: totals.windows };
  const known = sums ?? (needsSums() ? UNKNOWN : view);
  shown.range = known?.range ?? totals.windows.last_1h;
  shown.matrix = (known ?? totals).matrix;
  shown.users = users ?? (usersQuery() ? { rows: [] } : { source: "top_users", rows: totals.top_users });
  const only = asked.meter && totals.meters.find(({ meter }) => meter === asked.meter);
  if (!only) return shown;
  const { records, rejects, lag_messages, freshness_ms, partitions } = only;
  const watermarks = partitions.map(({ watermark }) => watermark).filter(Boolean).sort();
  if (!asked.model && !asked.chip) shown.windows.since_start = { tokens: { total_tokens: only.total_tokens } };
  return { ...shown, records, rejects, lag_messages, freshness_ms, complete_up_to: watermarks[0] ?? null, meters: [only] };
}

// What is said of now, once a second. A meter's own usage is known of the last quarter of an hour.
function viewQuery() {
  const given = addFilters(new URLSearchParams(), true);
  if (asked.meter) given.set("span", "15m");
  return given.toString();
}

// The view has the sums of the same time and filter, and the totals those of the last hour.
function needsSums() {
  if (asked.meter && isQuarter()) return false;
  return !isUsual() || (asked.meter !== "" && Boolean(asked.model || asked.chip));
}

const UNKNOWN = { range: { tokens: null }, matrix: { models: [], chips: [], total_tokens: [] } };

async function refreshView() {
  const query = viewQuery();
  const found = await get(`/api/view?${query}`).catch(() => null); // the next second asks again
  if (found?.windows && filtered() && query === viewQuery()) view = found;
}

async function refreshSums() {
  if (!needsSums()) return (sums = null);
  const query = sumQuery().toString();
  const found = await get(`/api/view?${query}`).catch(() => null);
  if (!found?.range || query !== sumQuery().toString()) return;
  sums = found;
  redraw();
}

// Of a meter its own list is asked for, of a model or another time the ledger.
function usersQuery() {
  const given = isUsual() && !asked.model && !asked.chip ? addFilters(new URLSearchParams(), true) : sumQuery();
  if (!isUsual() || asked.model || asked.chip) given.delete("meter");
  return given.toString();
}

async function refreshUsers() {
  const query = usersQuery();
  if (!query) return (users = null);
  const found = await get(`/api/users?${query}`).catch(() => ({ error: "no answer" }));
  if (query !== usersQuery()) return;
  users = { rows: [], ...found, told: found.why ?? found.error };
  redraw();
}

async function change() {
  showChoice();
  measure();
  [sums, users] = [null, null]; // they are of something else
  view = filtered() ? view : null;
  await Promise.all([filtered() && refreshView(), refreshSums(), refreshUsers()]);
  curve.set([], []);
  redraw();
  refreshCurve();
  refreshHistory();
}

// --- What is asked for, beside the stream ---

async function get(path) {
  return parse(await (await fetch(path, { signal: AbortSignal.timeout(ANSWER_MS) })).text());
}

// By commits, ten minutes of it. Commits are not known by model: filtered, it is the last quarter of an hour of event time.
async function refreshCurve() {
  const path = curvePath();
  const found = await get(path).catch(() => null);
  if (!found?.times || path !== curvePath()) return;
  if (!found.series) return curve.set(found.times, found.tokens_per_second);
  const whole = found.times.slice(0, -1);
  curve.set(whole.map((time) => time + found.step_ms), whole.map((_, k) => (Number(found.series[0]?.tokens[k] ?? 0) * 1000) / found.step_ms));
}

function curvePath() {
  if (!filtered()) return "/api/rate";
  return `/api/history?${addFilters(new URLSearchParams({ by: "total", span: "15m" }), true)}`;
}

async function refreshHistory() {
  historyAt = performance.now();
  if (view) refreshCurve();
  if (money.shown()) money.refresh(get);
  refreshSums();
  refreshUsers();
  if (!totals) return;
  const [now, known] = [Date.parse(totals.at), counted()]; // known before the histories are asked for: they have at least that
  const before = address();
  const length = asked.from === null ? SPANS[asked.span] : asked.to - asked.from;
  const wanted = asked.yesterday && length <= DAY_MS && !(asked.meter && isQuarter()); // of a meter it is not known
  const earlier = wanted ? await get(`/api/history?${historyQuery("total", now, DAY_MS)}`).catch(() => null) : null;
  for (const [by, stack] of Object.entries(stacks)) {
    const history = await get(`/api/history?${historyQuery(by, now)}`).catch(() => null); // the next round asks again
    if (history?.series && before === address()) stack.set(history, earlier?.series?.[0]?.tokens.some(Number) ? earlier : null, known);
  }
}

function address() {
  return location.search;
}

// How far the log is counted, in ms of event time: all of it, and its newest record.
function counted() {
  const marks = whatIsShown().meters.flatMap(({ partitions }) => partitions.map(({ watermark }) => Date.parse(watermark))).filter(Number.isFinite);
  return { complete: Date.parse(totals.complete_up_to) || 0, newest: marks.length ? Math.max(...marks) : Infinity };
}

// --- Is this true now? ---

function tell() {
  const silence = performance.now() - receivedAt;
  const [state, message] = judge(silence);
  document.body.dataset.state = state;
  const banner = document.getElementById("banner");
  banner.hidden = !message;
  if (banner.textContent !== message) banner.textContent = message;
  const missing = state === "live" ? missed() : "";
  document.body.dataset.missing = String(Boolean(missing));
  put("pulse", missing || state);
  const rate = totals ? `${si(totals.rate.tokens_per_second)} tokens/s · ` : "";
  const title = `${state === "live" ? "" : `${state.toUpperCase()} · `}${rate}Tokenometer`;
  if (document.title !== title) document.title = title;
}

// An old log has nothing in a view of the last hours, which looks as if nothing were counted.
function tellOld() {
  const { from, tokens } = whatIsShown().range;
  const { newest } = counted();
  const old = tokens && Number(tokens.total_tokens) === 0 && newest < Date.parse(from);
  const text = old ? `The newest record is of ${moment(newest)} UTC; this view has nothing of it.` : "";
  const note = document.getElementById("old");
  note.hidden = !text;
  if (note.textContent !== text) note.textContent = text;
}

// Meters of which commits are missing, while others go on.
function missed() {
  const missing = totals.meters.filter(({ state }) => state === "stale" || state === "late").sort((a, b) => b.age_ms - a.age_ms);
  if (!missing.length) return "";
  const named = missing.slice(0, NAMED_MAX).map(({ meter, state, age_ms: age }) => `${printable(meter)} ${state === "late" ? "late" : "stopped"} ${duration(age)}`);
  return `${named.join(", ")}${missing.length > NAMED_MAX ? ` and ${missing.length - NAMED_MAX} more` : ""}`;
}

function judge(silence) {
  if (refusal) return ["refused", `The server refuses: ${refusal}`];
  if (silence > SILENCE_MS) {
    const lost = stream.readyState === EventSource.OPEN ? "the server sends nothing" : "connection lost, trying again";
    return ["disconnected", `NO UPDATES for ${duration(silence)}: ${lost}`];
  }
  if (!totals) return ["waiting", ""];
  if (!totals.stale) return ["live", misfit(totals.misfits)];
  const last = Math.max(...totals.meters.map((meter) => Date.parse(meter.committed_at)));
  if (!Number.isFinite(last)) return ["stale", "STALE: no meter has committed yet"];
  const ago = duration(Date.parse(totals.at) - last + silence);
  if (totals.meters.every(({ state }) => state === "stopped")) return ["stale", `STOPPED: every meter was told to stop, the last one ${ago} ago`];
  return ["stale", `STALE: no meter has committed for ${ago}`];
}

// A log that is rejected is missing from every number of the page, which is otherwise true.
function misfit(misfits) {
  if (!misfits?.length) return "";
  const told = misfits.slice(0, NAMED_MAX).map(({ topic, judged, rejected, reason, field, keys }) => {
    const fault = field === null ? reason : `${reason} of ${field}`;
    const has = keys.length ? `; it has ${keys.join(", ")}` : "";
    return `${percent(share(rejected, judged))} of ${topic} (${fault}${has})`;
  });
  const more = misfits.length > NAMED_MAX ? ` and ${misfits.length - NAMED_MAX} more` : "";
  return printable(`NOT COUNTED: ${told.join(", ")}${more}`);
}

// --- What a person may ask ---

const range = document.getElementById("range");
const yesterday = document.getElementById("yesterday");
const filters = document.getElementById("filters");

function showChoice() {
  for (const button of document.querySelectorAll("[data-span]")) {
    button.setAttribute("aria-pressed", String(asked.from === null && button.dataset.span === asked.span));
  }
  range.dataset.chosen = String(asked.from !== null);
  yesterday.setAttribute("aria-pressed", String(asked.yesterday));
  put("of", filtered() ? "last two minutes of event time" : "last minute");
  for (const each of document.querySelectorAll("[data-when]")) each.textContent = when();
  const active = FILTERS.filter((key) => asked[key]);
  filters.replaceChildren(...active.map((key) => {
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.clear = key;
    button.append(`${key} `, Object.assign(document.createElement("bdi"), { textContent: printable(asked[key]) }), " ✕");
    button.setAttribute("aria-label", `Remove the filter ${key} ${printable(asked[key])}`);
    return document.createElement("li").appendChild(button).parentElement;
  }));
  for (const section of document.querySelectorAll("main > section[data-by]")) {
    const left = active.filter((key) => !filtersOf(section.dataset.by).includes(key));
    const head = section.querySelector("h2");
    section.dataset.unfiltered = String(left.length > 0);
    head.dataset.unfiltered = left.join(" and ");
    head.title = left.map((key) => WHY_NOT[section.dataset.by][key]).join("\n");
  }
}

// What a panel can be filtered by. docs/ARCHITECTURE.md has the reasons.
function filtersOf(kind) {
  if (kind === "all") return FILTERS;
  if (kind === "meter") return ["meter"];
  if (kind === "cells") return isQuarter() ? FILTERS : ["model", "chip"];
  if (kind === "users") return isUsual() && !asked.model && !asked.chip ? FILTERS : ["model", "chip"];
  return [];
}

const BY_METER = "A meter's own usage is known of the last quarter of an hour: choose 15 m.";
const RECORDS = "A meter counts records, and not of which model they are.";
const ACTIVE = "Active users are estimated of all usage together.";
const WHY_NOT = {
  cells: { meter: BY_METER },
  users: { meter: "A meter's users are known of the last hour and of all models together." },
  meter: { model: RECORDS, chip: RECORDS },
  none: { model: ACTIVE, chip: ACTIVE, meter: ACTIVE },
};

document.addEventListener("click", ({ target }) => {
  const { span, pick, clear, export: table } = target.closest("button")?.dataset ?? {};
  if (span) ask({ span, from: null, to: null });
  if (pick) ask({ [pick]: target.closest("button").value });
  if (clear) ask({ [clear]: "" });
  if (table) exportTable(table);
});

function exportTable(name) {
  if (name in stacks) save(`tokens-by-${name}`, historyRows(name, stacks[name].history));
  else if (name === "money") save("money", money.rows());
  else if (totals) save(name, TABLES[name](whatIsShown()));
}

yesterday.addEventListener("click", () => ask({ yesterday: !asked.yesterday }));
range.addEventListener("toggle", () => {
  if (!range.open) return;
  const now = totals ? Date.parse(totals.at) : Date.now();
  const { from, to } = range.querySelector("form").elements;
  from.value = new Date(asked.from ?? now - SPANS[asked.span]).toISOString().slice(0, 16);
  to.value = new Date(asked.to ?? now).toISOString().slice(0, 16);
});
range.querySelector("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const { from, to } = event.target.elements;
  const [begin, end] = [from, to].map(({ value }) => Date.parse(`${value}Z`));
  const wrong = end > begin && end - begin <= SPANS["48h"] ? "" : "Expected a time of at most 48 hours";
  to.setCustomValidity(wrong);
  if (!to.reportValidity()) return;
  range.open = false;
  ask({ from: begin, to: end });
});
range.addEventListener("input", () => range.querySelector("form").elements.to.setCustomValidity(""));

const roomy = matchMedia("(min-width: 1900px) and (min-height: 1300px)"); // as in style.css

// A screen that shows all at once, or a page to scroll.
function measure() {
  const open = !document.getElementById("user").hidden || document.getElementById("alerts").dataset.all === "true";
  document.body.dataset.long = String(open || (money.shown() && !roomy.matches));
}

async function showLinks() {
  const about = await get("/api/about").catch(() => ({}));
  for (const link of document.querySelectorAll("[data-link]")) {
    const url = about[link.dataset.link];
    link.hidden = !url;
    if (url) link.href = link.dataset.link === "ledger" ? `${url}/v1/openapi.json` : url;
  }
  document.getElementById("money").hidden = !about.prices;
  document.body.dataset.money = String(Boolean(about.prices));
  measure();
  if (about.prices) money.refresh(get);
}

const prefersDark = matchMedia("(prefers-color-scheme: dark)");

function redrawCharts() {
  for (const chart of [curve, ...Object.values(stacks)]) chart.redraw();
}

document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : prefersDark.matches;
  root.dataset.theme = dark ? "light" : "dark";
  try {
    localStorage.setItem("theme", root.dataset.theme);
  } catch {
    // It holds until the page is left.
  }
  redrawCharts();
});
prefersDark.addEventListener("change", redrawCharts);

onChange(change);
showChoice();
refreshUser();
measure();
roomy.addEventListener("change", measure);
addEventListener("alerts", measure);
showLinks();
connect();
setInterval(tell, 500);
