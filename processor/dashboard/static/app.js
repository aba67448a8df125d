// The page's life: events in, frames out. Owns the connection, what is known about it, and when history is asked for.

import { Stack } from "./charts.js";
import { Curve } from "./curve.js";
import { duration, parse, percent, printable, share, si } from "./format.js";
import { PANELS, put } from "./view.js";

const SILENCE_MS = 5000; // without an event the page must not look alive
const MISFITS_MAX = 3; // that the banner names
const RETRY_MS = 2000; // where the browser gives up, after an answer that is no stream
const HISTORY_EVERY_MS = { "1h": 5000, "6h": 30_000, "24h": 30_000 }; // a step is a minute or five: a pixel or two

const curve = new Curve(document.getElementById("curve"));
const stacks = Object.fromEntries(
  ["model", "chip"].map((by) => [by, new Stack(document.getElementById(`by-${by}`), document.getElementById(`legend-${by}`))]),
);
let stream;
let totals = null; // the newest
let receivedAt = performance.now();
let drawing = false;
let refusal = "";
let span = "1h";
let historyAt = -Infinity;

// --- The stream ---

function connect() {
  stream = new EventSource("/api/stream");
  stream.addEventListener("open", refresh);
  stream.addEventListener("totals", ({ data }) => receive(parse(data)));
  stream.addEventListener("error", () => {
    if (stream.readyState !== EventSource.CLOSED) return; // it comes back by itself
    setTimeout(connect, RETRY_MS);
    explainRefusal();
  });
}

async function explainRefusal() {
  const answer = await get("/api/totals").catch(() => null);
  refusal = answer?.error ?? "";
}

function receive(news) {
  [totals, receivedAt, refusal] = [news, performance.now(), ""];
  tell();
  if (drawing) return; // the frames to come will draw these
  drawing = true;
  requestAnimationFrame(() => drawPanel(0));
}

function drawPanel(k) {
  PANELS[k](totals);
  if (k + 1 < PANELS.length) return requestAnimationFrame(() => drawPanel(k + 1));
  drawing = false;
  curve.count(Date.parse(totals.at), Number(totals.windows.since_start.tokens.total_tokens));
  if (performance.now() - historyAt >= HISTORY_EVERY_MS[span]) refreshHistory();
}

// --- What is asked for, beside the stream ---

async function get(path) {
  return parse(await (await fetch(path)).text());
}

function refresh() {
  get("/api/rate").then(({ times, tokens_per_second: rates }) => curve.set(times, rates)).catch(() => {});
  refreshHistory();
}

async function refreshHistory() {
  historyAt = performance.now();
  const asked = span;
  for (const [by, stack] of Object.entries(stacks)) {
    const history = await get(`/api/history?span=${asked}&by=${by}`).catch(() => null); // the next round asks again
    if (history?.series && asked === span) stack.set(history);
  }
}

// --- Is this true now? ---

function tell() {
  const silence = performance.now() - receivedAt;
  const [state, message] = judge(silence);
  document.body.dataset.state = state;
  const banner = document.getElementById("banner");
  banner.hidden = !message;
  if (banner.textContent !== message) banner.textContent = message;
  put("pulse", state === "live" ? "live" : state);
  const rate = totals ? `${si(totals.rate.tokens_per_second)} tokens/s · ` : "";
  const title = `${state === "live" ? "" : `${state.toUpperCase()} · `}${rate}Tokenometer`;
  if (document.title !== title) document.title = title;
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
  return ["stale", `STALE: no meter has committed for ${duration(Date.parse(totals.at) - last + silence)}`];
}

// A log that is rejected is missing from every number of the page, which is otherwise true.
function misfit(misfits) {
  if (!misfits?.length) return "";
  const told = misfits.slice(0, MISFITS_MAX).map(({ topic, judged, rejected, reason, field, keys }) => {
    const fault = field === null ? reason : `${reason} of ${field}`;
    const has = keys.length ? `; it has ${keys.join(", ")}` : "";
    return `${percent(share(rejected, judged))} of ${topic} (${fault}${has})`;
  });
  const more = misfits.length > MISFITS_MAX ? ` and ${misfits.length - MISFITS_MAX} more` : "";
  return printable(`NOT COUNTED: ${told.join(", ")}${more}`);
}

// --- What a person may change ---

function choose(chosen) {
  span = chosen;
  for (const button of document.querySelectorAll("[data-span]")) {
    button.setAttribute("aria-pressed", String(button.dataset.span === span));
  }
}

for (const button of document.querySelectorAll("[data-span]")) {
  button.addEventListener("click", () => {
    choose(button.dataset.span);
    refreshHistory();
  });
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

// The token that opened the page is a cookie now; the address bar need not show it.
if (new URLSearchParams(location.search).has("token")) history.replaceState(null, "", "/");
choose(span);
connect();
setInterval(tell, 500);
