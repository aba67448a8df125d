// What the page shows, as its address says it, so that a view can be sent. Owns the address. Promises: what the address
// names and nobody knows is left out; a change is told to all who asked.

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

export function addFilters(given) {
  for (const key of ["model", "chip"]) if (asked[key]) given.set(key, asked[key]);
  return given;
}
