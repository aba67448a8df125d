// Revenue and cost of the time that is shown. Owns their panel, which is there where the server has prices.

import { sumQuery } from "./address.js";
import { exact, money, printable, si } from "./format.js";

const ROWS_MAX = 64;
const panel = document.getElementById("money");
const COLUMNS = ["total_tokens", "revenue", "cost", "margin"];
let latest = null;

export function shown() {
  return !panel.hidden;
}

export async function refresh(get) {
  const query = sumQuery().toString();
  const found = await get(`/api/cost?${query}`).catch(() => null);
  if (!found?.by_model || query !== sumQuery().toString()) return;
  latest = found;
  draw();
}

export function rows() {
  return [
    ["kind", "name", "total_tokens", `revenue_${latest.currency}`, `cost_${latest.currency}`, "unpriced_tokens", "uncosted_tokens"],
    ...["model", "chip"].flatMap((kind) =>
      latest[`by_${kind}`].map((row) => [kind, row[kind] ?? "others", row.total_tokens, row.revenue, row.cost, row.unpriced_tokens, row.uncosted_tokens]),
    ),
  ];
}

function draw() {
  panel.querySelector("[data-currency]").textContent = latest.currency;
  for (const kind of ["model", "chip"]) {
    const body = panel.querySelector(`[data-kind="${kind}"]`);
    body.replaceChildren(...latest[`by_${kind}`].slice(0, ROWS_MAX).map((row) => line(kind, row[kind], row)));
  }
  panel.querySelector("tfoot").replaceChildren(line(null, "All", latest));
  const left = Number(latest.unpriced_tokens);
  panel.querySelector(".more").textContent = left ? `${si(left)} tokens have no price` : "";
}

function line(kind, name, row) {
  const made = document.createElement("tr");
  const head = made.appendChild(document.createElement("th"));
  head.scope = "row";
  const text = head.appendChild(document.createElement(kind && name !== null ? "button" : "span"));
  text.append(Object.assign(document.createElement("bdi"), { textContent: name === null ? "others" : printable(name) }));
  text.className = "name";
  text.title = text.textContent;
  if (text.tagName === "BUTTON") {
    text.type = "button";
    [text.dataset.pick, text.value] = [kind, name];
  }
  const complete = row.revenue !== null && row.cost !== null && !Number(row.unpriced_tokens) && !Number(row.uncosted_tokens);
  const values = { ...row, margin: complete ? Number(row.revenue) - Number(row.cost) : null };
  for (const column of COLUMNS) {
    const cell = made.appendChild(document.createElement("td"));
    const tokens = column === "total_tokens";
    cell.textContent = tokens ? si(row.total_tokens) : money(values[column]);
    if (tokens || column === "margin") cell.title = tokens ? exact(row.total_tokens) : "";
    else cell.title = row[column] === null ? "There is no price" : `${row[column]} ${latest.currency}`;
    if (column === "margin" && values.margin < 0) cell.dataset.alarm = "true";
  }
  return made;
}
