// Charts: the last minutes' curve, and stacked history. Owns the chart library, which is fetched when the first chart is
// drawn, so that numbers do not wait for it. Promises: a chart is drawn only if it is seen and its data changed.

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
  return { text: read("--dim"), grid: read("--line"), panel: read("--panel"), accent: read("--accent"), others: read("--s0"), series };
}

class Chart {
  constructor(node) {
    this.node = node;
    this.seen = false;
    this.due = false;
    new IntersectionObserver(([entry]) => {
      this.seen = entry.isIntersecting;
      if (this.seen && this.due) this.redraw();
    }).observe(node);
    new ResizeObserver(() => this.redraw()).observe(node);
  }

  // Once a frame at most; `figure` of the subclass says what.
  redraw() {
    this.due = true;
    if (!this.seen || this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(async () => {
      try {
        const plotly = await load();
        this.due = false;
        const { traces, layout } = this.figure(theme());
        await plotly.react(this.node, traces, { ...layout, width: this.node.clientWidth, height: this.node.clientHeight }, CONFIG);
        this.node.dataset.drawn = Number(this.node.dataset.drawn ?? 0) + 1;
      } finally {
        this.waiting = false;
      }
    });
  }
}

function layout(colours, size, more = {}) {
  const axis = { gridcolor: colours.grid, linecolor: colours.grid, zeroline: false, fixedrange: true, automargin: false };
  return {
    margin: { l: size * 3, r: size * 0.6, t: size * 0.6, b: size * 1.7 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "system-ui, sans-serif", size, color: colours.text },
    showlegend: false,
    hovermode: "x unified",
    hoverlabel: { bgcolor: colours.panel, bordercolor: colours.grid, namelength: -1, font: { size: size * 0.9 } },
    dragmode: false,
    xaxis: { ...axis, type: "date", showgrid: false, nticks: 6, hoverformat: "%H:%M:%S", tickformat: "%H:%M", ...more.xaxis },
    yaxis: { ...axis, rangemode: "tozero", tickformat: "~s", hoverformat: ".3s", nticks: 4, ...more.yaxis },
  };
}

function fontSize() {
  return Math.round(parseFloat(getComputedStyle(document.documentElement).fontSize) * 0.78);
}

// Tokens per second by commits: one sample a second.
export class Curve extends Chart {
  times = [];
  rates = [];
  spanMs = 600_000;

  set(times, rates) {
    this.times = times.slice();
    this.rates = rates.slice();
    this.redraw();
  }

  add(time, rate) {
    if (this.times.length && time <= this.times.at(-1)) return;
    this.times.push(time);
    this.rates.push(rate);
    while (this.times[0] < time - this.spanMs) {
      this.times.shift();
      this.rates.shift();
    }
    this.redraw();
  }

  figure(colours) {
    const last = this.times.at(-1) ?? Date.now();
    const line = { color: colours.accent, width: 2, simplify: true };
    const trace = { type: "scatter", mode: "lines", name: "tokens/s", x: this.times, y: this.rates, line, fill: "tozeroy", fillcolor: `${colours.accent}26` };
    const idle = this.rates.some((rate) => rate > 0) ? {} : { range: [0, 1], tickvals: [0] };
    return { traces: [trace], layout: layout(colours, fontSize(), { xaxis: { range: [last - this.spanMs, last] }, yaxis: idle }) };
  }
}

// Stacked history, largest series below; a legend of our own beside it, since names are long.
export class Stack extends Chart {
  constructor(node, legend) {
    super(node);
    this.legend = legend;
    this.history = { times: [], series: [], step_ms: 60_000, to: null };
  }

  set(history) {
    this.history = history;
    this.redraw();
  }

  figure(colours) {
    const { times, rates } = stepRates(this.history);
    const colour = (series, k) => (series.name === null ? colours.others : colours.series[k % SERIES_MAX]);
    const traces = this.history.series.map((series, k) => ({
      type: "scatter",
      mode: "lines",
      stackgroup: "all",
      name: series.name === null ? OTHERS : label(series.name),
      x: times,
      y: rates[k],
      fillcolor: colour(series, k),
      line: { color: colours.panel, width: 1 },
    }));
    this.explain(this.history.series.map((series, k) => [series, colour(series, k)]));
    return { traces, layout: layout(colours, fontSize(), { xaxis: { hoverformat: "%H:%M", range: times.length > 1 ? [times[0], times.at(-1)] : undefined } }) };
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
