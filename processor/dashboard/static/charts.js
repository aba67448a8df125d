// Stacked history. Owns the chart library, which is fetched when the first chart is drawn, so that numbers do not wait
// for it. Promises: a chart is drawn only if it is seen and its data changed.

import { label, printable, share, percent, si } from "./format.js";

const CONFIG = { displayModeBar: false, doubleClick: false, showTips: false, responsive: false };
const OTHERS = "others";
const SERIES_MAX = 12;
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
    hovermode: "x unified",
    hoverlabel: { bgcolor: colours.panel, bordercolor: colours.grid, namelength: -1, font: { size: size * 0.9 } },
    dragmode: false,
    xaxis: { ...axis, type: "date", showgrid: false, nticks: 6, tickformat: "%H:%M", hoverformat: "%H:%M", range: times.length > 1 ? [times[0], times.at(-1)] : undefined },
    yaxis: { ...axis, rangemode: "tozero", tickformat: "~s", hoverformat: ".3s", nticks: 4 },
  };
}

function fontSize() {
  return Math.round(parseFloat(getComputedStyle(document.documentElement).fontSize) * 0.78);
}

// Stacked history, largest series below; a legend of our own beside it, since names are long.
export class Stack {
  constructor(node, legend) {
    Object.assign(this, { node, legend, seen: false, due: false, waiting: false });
    this.history = { times: [], series: [], step_ms: 60_000, to: null };
    new IntersectionObserver(([entry]) => {
      this.seen = entry.isIntersecting;
      if (this.seen && this.due) this.redraw();
    }).observe(node);
    new ResizeObserver(() => this.redraw()).observe(node);
  }

  set(history) {
    this.history = history;
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
  }

  figure(colours) {
    const { times, rates } = stepRates(this.history);
    const entries = this.history.series.map((series, k) => [series, series.name === null ? colours.others : colours.series[k % SERIES_MAX]]);
    this.explain(entries);
    const traces = entries.map(([{ name }, colour], k) => ({
      type: "scatter",
      mode: "lines",
      stackgroup: "all",
      name: name === null ? OTHERS : label(name),
      x: times,
      y: rates[k],
      fillcolor: colour,
      line: { color: colours.panel, width: 1 },
    }));
    return { traces, layout: layoutOf(colours, fontSize(), times) };
  }

  explain(entries) {
    const sums = entries.map(([series]) => series.tokens.reduce((sum, tokens) => sum + Number(tokens), 0));
    const whole = sums.reduce((sum, tokens) => sum + tokens, 0);
    const items = entries.map(([series, colour], k) => {
      const item = document.createElement("li");
      const [swatch, name, part] = ["i", "bdi", "b"].map((tag) => item.appendChild(document.createElement(tag)));
      swatch.style.background = colour;
      name.textContent = series.name === null ? OTHERS : printable(series.name);
      name.className = series.name === null ? "name none" : "name";
      part.textContent = percent(share(sums[k], whole));
      item.title = `${name.textContent}: ${si(sums[k])} tokens`;
      return item;
    });
    this.legend.replaceChildren(...items);
  }
}

// Tokens per step as tokens per second. The step that is not over yet is shown at its rate so far.
function stepRates({ times, series, step_ms: step, to }) {
  const lasted = times.map((time) => Math.min(step, Date.parse(to) - time));
  const shown = lasted.filter((ms) => ms >= step * STEP_SHOWN).length;
  const rates = series.map(({ tokens }) => tokens.slice(0, shown).map((count, k) => (Number(count) * 1000) / lasted[k]));
  return { times: times.slice(0, shown), rates };
}
