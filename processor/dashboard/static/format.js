// Numbers, times and names as people read them. Pure. Rules for numbers are those of processor/show.py.

const UNITS = [[1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];
const UNKNOWN = "–";
// Made once: making one takes longer than a hundred uses.
const FIXED = [0, 1, 2].map((digits) => new Intl.NumberFormat("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits }));
const DAY = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", timeZone: "UTC" });
const EXACT = new Intl.NumberFormat("en-US", { maximumFractionDigits: 1 });

// JSON whose integers may pass 2^53, where a double loses tokens: those become BigInt. Names cannot look like one here,
// because a quote comes before them.
export function parse(text) {
  return /[:,[]\d{16}/.test(text) ? JSON.parse(text, exactInteger) : JSON.parse(text);
}

function exactInteger(_, value, context) {
  const lost = typeof value === "number" && Math.abs(value) > Number.MAX_SAFE_INTEGER && /^-?\d+$/.test(context?.source);
  return lost ? BigInt(context.source) : value;
}

// 1.39 G: three significant digits and a unit.
export function si(value) {
  if (value === null || value === undefined) return UNKNOWN;
  const number = Number(value);
  for (const [size, unit] of UNITS) if (number >= size * 0.9995) return `${significant(number / size)} ${unit}`;
  return Number.isInteger(number) || number >= 100 ? FIXED[0].format(number) : significant(number);
}

function significant(value) {
  return FIXED[Math.max(0, 3 - String(Math.trunc(value)).length)].format(value);
}

// 1,389,000,000: every digit.
export function exact(value) {
  return value === null || value === undefined ? UNKNOWN : EXACT.format(value);
}

export function percent(share) {
  if (share === null || share === undefined || Number.isNaN(share)) return UNKNOWN;
  if (share > 0 && share < 0.0001) return "< 0.01 %";
  const digits = share >= 9.995 ? 0 : share >= 0.0995 ? 1 : 2;
  return `${FIXED[digits].format(share * 100)} %`;
}

// null: the share of nothing.
export function share(part, whole) {
  return Number(whole) > 0 ? Number(part) / Number(whole) : null;
}

export function duration(ms) {
  if (ms === null || ms === undefined) return UNKNOWN;
  if (ms < 1000) return `${Math.max(0, Math.round(ms))} ms`;
  const seconds = ms / 1000;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 120) return `${Math.floor(seconds)} s`;
  if (seconds < 7200) return `${Math.floor(seconds / 60)} min`;
  return `${Math.floor(seconds / 3600)} h`;
}

// 17:05:13, in UTC like everything that the server says.
export function clock(instant) {
  return instant ? new Date(instant).toISOString().slice(11, 19) : UNKNOWN;
}

// The same, with the day where it is not today's: 28 Nov 17:05:13.
export function moment(instant, now = Date.now()) {
  if (!instant) return UNKNOWN;
  const [then, today] = [new Date(instant), new Date(now)].map((date) => date.toISOString());
  return then.slice(0, 10) === today.slice(0, 10) ? clock(instant) : `${DAY.format(new Date(instant))} ${clock(instant)}`;
}

// 12.30 or 1.39 k: an amount of money, which may be below 0.
export function money(amount) {
  if (amount === null || amount === undefined) return UNKNOWN;
  const number = Number(amount);
  const size = Math.abs(number);
  const text = size >= 1000 ? si(size) : size >= 0.01 || !size ? FIXED[2].format(size) : "< 0.01";
  return number < 0 ? `−${text}` : text;
}

// Names are other people's input. What is invisible or turns the direction of writing becomes visible.
export function printable(name) {
  return name.replace(/[\p{Cc}\p{Zl}\p{Zp}\u00ad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]/gu, "\ufffd");
}

// For the chart library, which reads a subset of HTML in labels.
export function label(name, most = 32) {
  const shown = [...printable(name)];
  const short = shown.length > most ? `${shown.slice(0, most - 1).join("")}…` : shown.join("");
  return short.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}
