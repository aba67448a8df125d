// Budgets whose thresholds were passed, below the header. Owns its section, and asks for itself.

import { exact, parse, percent, printable, share } from "./format.js";

const EVERY_MS = 2000;
const section = document.getElementById("alerts");
const list = section.querySelector("ol");
const more = section.querySelector("p");
let before = "";

async function refresh() {
  try {
    const answer = await fetch("/v1/alerts", { cache: "no-store" });
    if (answer.ok) show(await answer.text());
  } catch {
    // The connection is lost; the page says so.
  }
  setTimeout(refresh, document.hidden ? 10 * EVERY_MS : EVERY_MS);
}

function show(text) {
  if (text === before) return;
  before = text;
  const news = parse(text);
  section.hidden = news.alerts.length === 0;
  list.replaceChildren(...news.alerts.map(entry));
  more.hidden = !news.more;
  more.textContent = `and ${exact(news.more)} more`;
}

function entry(alert) {
  const over = alert.threshold >= 100;
  const item = document.createElement("li");
  item.className = over ? "over" : "near";
  const subject = alert.subject === null ? "" : ` · ${printable(alert.subject)}`;
  item.append(
    span("mark", `${alert.threshold} %`),
    span("budget", `${printable(alert.rule)}${subject}`),
    span("used", `${amount(alert.used)} of ${amount(alert.limit)} ${unit(alert.unit)} (${percent(share(alert.used, alert.limit))})`),
    span("when", `${alert.per} from ${moment(alert.begin)}`),
  );
  item.title = `announced ${alert.at}`;
  return item;
}

function span(name, text) {
  const made = document.createElement("span");
  made.className = name;
  made.textContent = text;
  return made;
}

// Tokens are integers; money is a decimal in a text, which is shown as it is.
function amount(value) {
  return typeof value === "string" ? value : exact(value);
}

function unit(name) {
  return name.replaceAll("_", " ");
}

// 2026-11-23 17:00, in the budget's zone.
function moment(instant) {
  return instant.slice(0, 16).replace("T", " ");
}

refresh();
