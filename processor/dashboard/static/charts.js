// Stacked history. Owns the chart library, which is fetched when the first chart is drawn, so that numbers do not wait
// for it. Promises: a chart is drawn only if it is seen and its data changed.

import { label, printable, share, percent, si } from "./format.js";

const CONFIG = { displayModeBar: false, doubleClick: false, showTips: false, responsive: false };
const OTHERS = "others";
const SERIES_MAX = 12;
const DAY_MS = 86_400_000;
const VEILED_MAX = 4; // steps: a partition whose clients are silent must not veil all
const EVEN = 0.2; // of a step: partitions that are counted alike
const STEP_SHOWN = 0.25; // of a step that is not over: before that its rate says nothing

let library;

function load() {
  library ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = "/static/plotly.min.js";
    script.onload = () => resolve(globalThis.Plotly);
    script.onerror = () => {
      library = undefined;
      script.remove();
      reject(new Error("the chart library did not come"));
    };
    document.head.append(script);
  });
  return library;
}

function theme() {
  const style = getComputedStyle(document.documentElement);
  const read = (name) => style.getPropertyValue(name).trim();
  const series = Array.from({ length: SERIES_MAX }, (_, k) => read(`--s${k + 1}`));
  return { text: read("--dim"), grid: read("--line"), panel: read("--panel"), others: read("--s0"), series };
}

function layoutOf(colours, size, times) {
  const axis = { gridcolor: colours.grid, linecolor: colours.grid, zeroline: false, fixedrange: true };
  return {
    margin: { l: size * 3.2, r: 4, t: size * 0.8, b: size * 1.8 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "system-ui, sans-serif", size, color: colours.text },
    showlegend: false,
    hovermode: "x",
    dragmode: false,
    xaxis: { ...axis, type: "date", showgrid: false, nticks: 6, showticklabels: times.length > 1, tickformat: "%H:%M", tickformatstops: [{ dtickrange: [43_200_000, null], value: "%-d %b" }], showspikes: true, spikemode: "across", spikethickness: 1, spikedash: "solid", spikecolor: colours.text, range: times.length > 1 ? [times[0], times.at(-1)] : undefined },
    yaxis: { ...axis, rangemode: "tozero", tickformat: "~s", nticks: 4 },
  };
}

function fontSize() {
  return Math.round(parseFloat(getComputedStyle(document.documentElement).fontSize) * 0.78);
}

// Stacked history, largest series below; a legend of our own beside it, since names are long. Where the pointer is in
// the chart, the legend says the rates of that time: a label in the chart would be higher than the panel.
export class Stack {
  constructor(node, legend, by) {
    Object.assign(this, { node, legend, by, seen: false, due: false, waiting: false, earlier: null, counted: null, listens: false });
    this.caption = document.querySelector(`[data-time="${node.id}"]`);
    this.usual = this.caption.textContent;
    this.history = { times: [], series: [], step_ms: 60_000, to: null };
    new IntersectionObserver(([entry]) => {
      this.seen = entry.isIntersecting;
      if (this.seen && this.due) this.redraw();
    }).observe(node);
    new ResizeObserver(() => this.redraw()).observe(node);
  }

  // earlier: the total, a day before; null: it is not shown. counted: how far the log is counted, all of it and at most.
  set(history, earlier, counted) {
    Object.assign(this, { history, earlier, counted });
    this.redraw();
  }

  redraw() {
    this.due = true;
    if (!this.seen || this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => this.drawFrame().catch(console.error).finally(() => (this.waiting = false)));
  }

  async drawFrame() {
    const plotly = await load();
    this.due = false;
    const { traces, layout } = this.figure(theme());
    const { clientWidth: width, clientHeight: height } = this.node;
    await plotly.react(this.node, traces, { ...layout, width, height }, CONFIG);
    this.node.dataset.drawn = Number(this.node.dataset.drawn ?? 0) + 1;
    if (this.listens) return;
    this.listens = true;
    this.node.on("plotly_hover", ({ points }) => this.point(points[0].pointNumber, points[0].x));
    this.node.on("plotly_unhover", () => this.unpoint());
  }

  point(k, x) {
    const day = this.times.at(-1) - this.times[0] > DAY_MS / 2;
    const time = String(x).replace(/^\d{4}-(\d\d)-(\d\d)\s*(\d\d:\d\d)?.*$/, (_, month, date, clock) => `${day ? `${date}.${month}. ` : ""}${clock ?? "00:00"}`);
    this.caption.textContent = `tokens/s at ${time} UTC`;
    this.parts.forEach((part, n) => (part.textContent = si(this.rates[n]?.[k])));
  }

  unpoint() {
    this.caption.textContent = this.usual;
    this.parts.forEach((part) => (part.textContent = part.usual));
  }

  figure(colours) {
    const { times, rates, ends } = stepRates(this.history, this.counted);
    const entries = this.history.series.map((series, k) => [series, series.name === null ? colours.others : colours.series[k % SERIES_MAX]]);
    this.explain(entries);
    Object.assign(this, { times, rates });
    const traces = entries.map(([{ name }, colour], k) => ({
      type: "scatter",
      hoverinfo: "none",
      mode: "lines",
      stackgroup: "all",
      name: name === null ? OTHERS : label(name),
      x: times,
      y: rates[k],
      fillcolor: colour,
      line: { color: colours.panel, width: 1 },
    }));
    if (this.earlier) traces.push(this.dayBefore(colours));
    return { traces, layout: { ...layoutOf(colours, fontSize(), axisOf(this.history, times)), shapes: unfinished(this.history, times, ends, this.counted, colours) } };
  }

  dayBefore(colours) {
    const { times, rates } = stepRates(this.earlier);
    return {
      type: "scatter", mode: "lines", hoverinfo: "skip", name: "yesterday", x: times.map((time) => time + DAY_MS), y: rates[0] ?? [],
      line: { color: colours.text, width: 1.5, dash: "dash" },
    };
  }

  explain(entries) {
    const sums = entries.map(([series]) => series.tokens.reduce((sum, tokens) => sum + Number(tokens), 0));
    const whole = sums.reduce((sum, tokens) => sum + tokens, 0);
    const items = entries.map(([series, colour], k) => {
      const item = document.createElement("li");
      const pick = item.appendChild(document.createElement(series.name === null ? "span" : "button"));
      if (series.name !== null) [pick.type, pick.value, pick.dataset.pick] = ["button", series.name, this.by];
      const [swatch, name, part] = ["i", "bdi", "b"].map((tag) => pick.appendChild(document.createElement(tag)));
      swatch.style.background = colour;
      name.textContent = series.name === null ? OTHERS : printable(series.name);
      name.className = series.name === null ? "name none" : "name";
      part.textContent = part.usual = percent(share(sums[k], whole));
      item.title = `${name.textContent}: ${si(sums[k])} tokens`;
      return item;
    });
    this.parts = items.map((item) => item.querySelector("b"));
    const held = document.activeElement?.value; // who goes by keyboard keeps the place
    const focused = this.legend.contains(document.activeElement);
    this.legend.replaceChildren(...items);
    if (focused) this.legend.querySelector(`[value="${CSS.escape(held)}"]`)?.focus();
  }
}

// All of the time that was asked for, also where nothing of it is counted yet.
function axisOf({ times, step_ms: step, to }, shown) {
  if (!shown.length) return times.slice(0, 1).concat(times.length ? Date.parse(to) : []);
  const last = times.findLast((time) => time + step * STEP_SHOWN <= Date.parse(to));
  return last > shown.at(-1) ? [...shown, last] : shown;
}

// The steps that are not complete are veiled: one that is not over, one that some meter has not read to its end, and the
// last one where counting is behind the clock, to which late records come. Their rates are those so far, and will change.
function unfinished({ step_ms: step, to }, shown, ends, counted, colours) {
  const last = shown.at(-1);
  const complete = counted?.complete || Infinity;
  const behind = ends < Date.parse(to) - step;
  if (last === undefined || (ends >= last + step && complete >= last + step && !behind)) return [];
  const whole = shown.findLastIndex((time) => time + step <= complete);
  const begin = shown[Math.max(0, Math.min(whole, shown.length - 2), shown.length - 1 - VEILED_MAX)];
  const line = { width: 1, dash: "dot", color: colours.text };
  return [
    { type: "rect", yref: "paper", x0: begin, x1: last, y0: 0, y1: 1, fillcolor: colours.panel, opacity: 0.55, line: { width: 0 }, layer: "above" },
    { type: "line", yref: "paper", x0: begin, x1: begin, y0: 0, y1: 1, line, layer: "above" },
  ];
}

// Where the chart ends: at the newest record that is counted, since what comes after it is not known to be 0. Where that is
// not now, or some partitions are counted further than others, it ends with a whole step: the last one that is counted of
// all, unless one of the partitions has been silent for long.
function endOf({ step_ms: step, to }, counted) {
  const now = Date.parse(to);
  const newest = Math.min(now, counted?.newest ?? Infinity);
  const apart = newest - (counted?.complete || newest);
  const even = !(apart > step * EVEN) || apart > step * VEILED_MAX;
  if (even && !(newest < now - step)) return newest;
  return Math.floor((even ? newest : counted.complete) / step) * step;
}

// Tokens per step as tokens per second. The step that is not over yet is shown at its rate so far.
function stepRates(history, counted) {
  const { times, series, step_ms: step } = history;
  const ends = endOf(history, counted);
  const lasted = times.map((time) => Math.min(step, ends - time));
  const shown = lasted.filter((ms) => ms >= step * STEP_SHOWN).length;
  const rates = series.map(({ tokens }) => tokens.slice(0, shown).map((count, k) => (Number(count) * 1000) / lasted[k]));
  return { times: times.slice(0, shown), rates, ends };
}
