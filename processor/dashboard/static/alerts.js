// Budgets whose thresholds were passed, below the header. Owns its section, and asks for itself.

import { exact, moment, parse, percent, printable, share, si } from "./format.js";

const EVERY_MS = 2000;
const section = document.getElementById("alerts");
const list = section.querySelector("ol");
const all = section.querySelector("button");
let before = "";
let news = { alerts: [], more: 0 };

all.addEventListener("click", () => {
  section.dataset.all = String(section.dataset.all !== "true");
  dispatchEvent(new Event("alerts"));
  tellMore();
});
addEventListener("resize", tellMore);

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
  news = parse(text);
  section.hidden = news.alerts.length === 0;
  list.replaceChildren(...news.alerts.map(entry));
  tellMore();
}

// The style shows the first ones, as many as the screen has room for; the button shows all.
function tellMore() {
  const open = section.dataset.all === "true";
  const hidden = [...list.children].filter((each) => !each.offsetParent).length;
  all.hidden = !open && !hidden && !news.more;
  all.disabled = !open && !hidden;
  all.textContent = open ? "Fewer" : `and ${exact(hidden + Number(news.more))} more`;
  all.setAttribute("aria-expanded", String(open));
}

function entry(alert) {
  const over = alert.threshold >= 100;
  const item = document.createElement("li");
  item.className = over ? "over" : "near";
  const subject = alert.subject === null ? "" : ` · ${printable(alert.subject)}`;
  item.append(
    span("passed", `${alert.threshold} %`),
    span("budget", `${printable(alert.rule)}${subject}`),
    span("used", `${amount(alert.used)} of ${amount(alert.limit)} ${unit(alert.unit)} (${percent(share(alert.used, alert.limit))})`),
    span("when", period(alert)),
  );
  item.title = `${told(alert.used)} of ${told(alert.limit)} ${unit(alert.unit)} at ${alert.at}`;
  return item;
}

function span(name, text) {
  const made = document.createElement("span");
  made.className = name;
  made.textContent = text;
  return made;
}

// Tokens are integers; money is an exact decimal in a text, which is rounded here and told when one points at it.
function amount(value) {
  return typeof value === "string" ? String(Math.round(Number(value) * 100) / 100 || value) : si(value);
}

function told(value) {
  return typeof value === "string" ? value : exact(value);
}

function unit(name) {
  return name === "total_tokens" ? "tokens" : name.replaceAll("_", " ");
}

// In the budget's zone: its day is not always ours.
function period({ per, begin }) {
  const [date, time] = [begin.slice(0, 10), begin.slice(11, 16)];
  const day = moment(`${date}T00:00:00Z`, 0).slice(0, -9);
  return { hour: `hour from ${day} ${time}`, day: `day of ${day}`, month: `month from ${day}` }[per];
}

refresh();
