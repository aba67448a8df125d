// What the page shows, as its address says it, so that a view can be sent. Owns the address. Promises: what the address
// names and nobody knows is left out; a change is told to all who asked.

import { moment } from "./format.js";

export const SPANS = { "15m": 900_000, "1h": 3_600_000, "6h": 21_600_000, "24h": 86_400_000, "48h": 172_800_000 };
export const FILTERS = ["model", "chip", "meter"];
const DEFAULT_SPAN = "1h";
const RANGE_MAX_MS = SPANS["48h"];
const NAME_MAX = 256;
const told = [];

export const asked = read();

function read() {
  const given = new URLSearchParams(location.search);
  const name = (key) => ((given.get(key) ?? "").length <= NAME_MAX && given.get(key)) || "";
  const [from, to] = [given.get("from"), given.get("to")].map((text) => (text ? Date.parse(text) : NaN));
  const absolute = to - from > 0 && to - from <= RANGE_MAX_MS;
  const span = given.get("range");
  return {
    span: span in SPANS ? span : DEFAULT_SPAN,
    from: absolute ? from : null,
    to: absolute ? to : null,
    yesterday: given.get("yesterday") !== "0",
    ...Object.fromEntries([...FILTERS, "user"].map((key) => [key, name(key)])),
  };
}

export function onChange(listener) {
  told.push(listener);
}

// A step of its own in the browser's history, so that Back undoes a filter.
export function ask(changes) {
  Object.assign(asked, changes);
  history.pushState(null, "", address());
  tell();
}

function address() {
  const shown = new URLSearchParams();
  if (asked.from !== null) {
    shown.set("from", minute(asked.from));
    shown.set("to", minute(asked.to));
  } else if (asked.span !== DEFAULT_SPAN) shown.set("range", asked.span);
  for (const key of [...FILTERS, "user"]) if (asked[key]) shown.set(key, asked[key]);
  if (!asked.yesterday) shown.set("yesterday", "0");
  const text = shown.toString();
  return text ? `/?${text}` : "/";
}

export function minute(ms) {
  return `${new Date(ms).toISOString().slice(0, 16)}Z`;
}

function tell() {
  for (const listener of told) listener(asked);
}

addEventListener("popstate", () => {
  Object.assign(asked, read());
  tell();
});

// The token that opened the page is a cookie now; the address bar need not show it, nor what nobody knows.
history.replaceState(null, "", address());

// The parameters of a history, `ago` ms earlier than what is shown.
export function historyQuery(by, now, ago = 0) {
  const given = new URLSearchParams({ by });
  if (asked.from !== null) {
    given.set("from", minute(asked.from - ago));
    given.set("to", minute(asked.to - ago));
  } else if (ago) {
    given.set("from", new Date(now - SPANS[asked.span] - ago).toISOString());
    given.set("to", new Date(now - ago).toISOString());
  } else given.set("span", asked.span);
  return addFilters(given);
}

// With the meter only where the server knows its own usage.
export function addFilters(given, withMeter = isQuarter()) {
  for (const key of withMeter ? FILTERS : ["model", "chip"]) if (asked[key]) given.set(key, asked[key]);
  return given;
}

export function filtered() {
  return FILTERS.some((key) => asked[key]);
}

// The last hour, which the stream tells by itself.
export function isUsual() {
  return asked.from === null && asked.span === DEFAULT_SPAN;
}

// So long the server knows a meter's own usage by model and chip.
export function isQuarter() {
  return asked.from === null && asked.span === "15m";
}

// The parameters of a sum over the time that is shown.
export function sumQuery(given = new URLSearchParams()) {
  if (asked.from !== null) {
    given.set("from", minute(asked.from));
    given.set("to", minute(asked.to));
  } else if (!isUsual()) given.set("span", asked.span);
  return addFilters(given);
}

const NAMES = { "15m": "last 15 minutes", "1h": "last hour", "6h": "last 6 hours", "24h": "last 24 hours", "48h": "last 48 hours" };

// The time that is shown, in words.
export function when() {
  if (asked.from === null) return NAMES[asked.span];
  const [from, to] = [asked.from, asked.to].map((ms) => moment(ms).slice(0, -3));
  return `${from} – ${moment(asked.to).slice(0, -9) === moment(asked.from).slice(0, -9) ? to.slice(-5) : to} UTC`;
}
