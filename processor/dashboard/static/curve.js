// Tokens per second by commits: one sample a second, over the five seconds before it, ten minutes of them. The server has
// them: totals that grow at once, where a rollup catches up, were not counted at once. Owns a canvas: the chart library
// takes more than a frame (30 ms) to draw this anew, once a second, and this takes less than one millisecond.

import { si } from "./format.js";

const SPAN_MS = 600_000;
const LABEL = "Tokens per second over the last ten minutes";
const MINUTES_APART = 2; // labels of the time axis

export class Curve {
  times = [];
  rates = [];

  constructor(node) {
    this.canvas = node.appendChild(document.createElement("canvas"));
    new ResizeObserver(([{ contentRect }]) => {
      this.size = [contentRect.width, contentRect.height];
      this.redraw();
    }).observe(node);
  }

  set(times, rates) {
    this.times = times.slice();
    this.rates = rates.slice();
    this.canvas.parentElement.setAttribute("aria-label", `${LABEL}, at most ${si(Math.max(0, ...rates))}`);
    this.redraw();
  }

  redraw() {
    if (!this.size) return;
    const [width, height] = this.size;
    const ratio = devicePixelRatio;
    Object.assign(this.canvas, { width: width * ratio, height: height * ratio });
    Object.assign(this.canvas.style, { width: `${width}px`, height: `${height}px` });
    const context = this.canvas.getContext("2d");
    context.scale(ratio, ratio);
    const style = getComputedStyle(document.documentElement);
    const font = parseFloat(style.fontSize) * 0.78;
    context.font = `${font}px system-ui, sans-serif`;
    const scale = scaleOf(this.rates);
    const left = Math.max(...scale.ticks.map((rate) => context.measureText(tick(rate)).width)) + font;
    const place = this.place(scale, { left, right: width - 4, top: font * 0.8, bottom: height - font * 1.8 });
    drawAxes(context, place, style, font);
    drawLine(context, place, style.getPropertyValue("--accent"), this.times, this.rates);
  }

  // Times and rates to pixels.
  place({ top, ticks }, edges) {
    const last = this.times.at(-1) ?? Date.now();
    const x = (time) => edges.right - ((last - time) / SPAN_MS) * (edges.right - edges.left);
    const y = (rate) => edges.bottom - (rate / top) * (edges.bottom - edges.top);
    return { ...edges, last, ticks, x, y };
  }
}

// The highest rate's axis: its end, and where it has lines.
function scaleOf(rates) {
  const most = Math.max(0, ...rates);
  const step = niceStep(most / 3);
  const count = Math.max(1, Math.ceil((most * 1.02) / step));
  return { top: count * step, ticks: Array.from({ length: count + 1 }, (_, k) => k * step) };
}

// 1, 2 or 5 and zeros.
function niceStep(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((factor) => factor * power).find((step) => step >= value);
}

function drawAxes(context, place, style, font) {
  context.fillStyle = style.getPropertyValue("--dim");
  context.strokeStyle = style.getPropertyValue("--line");
  context.textAlign = "right";
  context.textBaseline = "middle";
  for (const rate of place.ticks) {
    const y = Math.round(place.y(rate)) + 0.5;
    context.beginPath();
    context.moveTo(place.left, y);
    context.lineTo(place.right, y);
    context.stroke();
    context.fillText(tick(rate), place.left - font * 0.5, y);
  }
  context.textAlign = "center";
  const apart = MINUTES_APART * 60_000;
  for (let time = Math.floor(place.last / apart) * apart; time > place.last - SPAN_MS; time -= apart) {
    const x = Math.min(place.x(time), place.right - font * 1.3);
    context.fillText(new Date(time).toISOString().slice(11, 16), x, place.bottom + font);
  }
}

function tick(rate) {
  const [number, unit] = si(rate).split(" ");
  return `${parseFloat(number)} ${unit ?? ""}`.trimEnd();
}

// Where nothing is known the line is broken.
function drawLine(context, place, colour, times, rates) {
  const runs = [];
  times.forEach((time, k) => {
    if (rates[k] === null || place.x(time) < place.left) return;
    if (!k || rates[k - 1] === null || !runs.length) runs.push([]);
    runs.at(-1).push([place.x(time), place.y(rates[k])]);
  });
  for (const run of runs) {
    context.beginPath();
    for (const [x, y] of run) context.lineTo(x, y);
    context.strokeStyle = context.fillStyle = colour;
    context.lineWidth = 2;
    context.lineJoin = "round";
    context.stroke();
    context.lineTo(run.at(-1)[0], place.bottom);
    context.lineTo(run[0][0], place.bottom);
    context.globalAlpha = 0.16;
    context.fill();
    context.globalAlpha = 1;
  }
}
