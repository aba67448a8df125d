// One user: what was asked of it, and the answer. Owns its panel.

import { ask, asked, onChange } from "./address.js";
import { duration, exact, moment, money, printable, si } from "./format.js";

const form = document.getElementById("search");
const panel = document.getElementById("user");
const [head, told, body] = ["h2 bdi", ".told", "tbody"].map((each) => panel.querySelector(each));
let turn = 0;

form.addEventListener("submit", (event) => {
  event.preventDefault();
  ask({ user: form.elements.user.value.trim() });
});
panel.querySelector("button").addEventListener("click", () => {
  ask({ user: "" });
  form.elements.user.focus();
});

export async function refresh() {
  form.elements.user.value = asked.user;
  panel.hidden = !asked.user;
  if (!asked.user) return;
  const mine = ++turn;
  head.textContent = printable(asked.user);
  told.textContent = "asking …";
  body.replaceChildren();
  const answer = await fetch(`/api/user?user=${encodeURIComponent(asked.user)}`).then((each) => each.json()).catch(() => ({ error: "no answer" }));
  if (mine === turn) show(answer);
}

function show(answer) {
  if (answer.error) return (told.textContent = `Not known: ${answer.error}`);
  if (answer.source === "top_users") {
    const tokens = answer.total_tokens;
    told.textContent = tokens === null
      ? "Not among the largest users of the last hour. No ledger is named (--ledger), so smaller users are not known here."
      : `At least ${exact(tokens)} tokens in about the last hour, by the meters' lists of largest users. No ledger is named (--ledger).`;
    return;
  }
  const until = answer.complete_up_to ? `, complete to ${moment(answer.complete_up_to)}` : "";
  told.textContent = `${exact(answer.total_tokens)} tokens in the last ${duration(Date.parse(answer.to) - Date.parse(answer.from))}, by the ledger${until}.`;
  panel.querySelector("[data-revenue]").textContent = answer.currency ? `${answer.currency}, 24 h` : "";
  const [sums, revenues] = [new Map(), new Map()];
  for (const { begin, model, total_tokens: tokens, revenue } of answer.rows) {
    if (!sums.has(model)) sums.set(model, [0, 0, 0]);
    const age = Date.parse(answer.to) - Date.parse(begin);
    if (revenue !== null && revenue !== undefined) revenues.set(model, (revenues.get(model) ?? 0) + Number(revenue));
    [1, 6, 24].forEach((hours, k) => (sums.get(model)[k] += age <= hours * 3_600_000 ? Number(tokens) : 0));
  }
  const ranked = [...sums].sort(([, a], [, b]) => b[2] - a[2]);
  body.replaceChildren(...ranked.map(([model, tokens]) => {
    const row = document.createElement("tr");
    row.append(Object.assign(document.createElement("th"), { textContent: printable(model), className: "name" }));
    row.append(...tokens.map((each) => Object.assign(document.createElement("td"), { textContent: si(each), title: exact(each) })));
    if (answer.currency) row.append(Object.assign(document.createElement("td"), { textContent: money(revenues.get(model)) }));
    return row;
  }));
}

onChange(refresh);
