// Sixteen levels on a number line, the weights that fall on them, and what rounding changes. In
// float32 throughout (Math.fround), as course_utils/quantization, to the last bit.

import { add, brief, clamp, count } from "../kit.js";
import { interact, linear, ticks } from "../charts.js";
import { chart, curve, explorer, figures, normals, percent, uniforms } from "./explore.js";

const f32 = Math.fround;
// The float32 numbers of quantization/codebooks.py, which says where they come from; ascending.
export const LEVELS = {
  nf4: [-1, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1],
  fp4: [-12, -8, -6, -4, -3, -2, -0.0625, 0, 0.0625, 2, 3, 4, 6, 8, 12].map((v) => f32(v / 12)),
  int4: [-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7].map((v) => f32(v / 7)),
};
const BORDERS = Object.fromEntries(Object.entries(LEVELS).map(([name, levels]) => [name, levels.slice(1).map((v, i) => f32(f32(levels[i] + v) / 2))]));
const NAMES = [["nf4", "NF4", "c-sft"], ["fp4", "FP4", "c-ppo"], ["int4", "INT4", "c-dpo"]];
const TINY = f32(1e-38);

// The level's place; halfway goes to the lower one.
export function nearest(format, x) {
  const borders = BORDERS[format];
  let [low, high] = [0, borders.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (borders[middle] < x) low = middle + 1;
    else high = middle;
  }
  return low;
}

export function weightsOf(c, state) {
  if (state.weights) return Float32Array.from(state.weights);
  const n = state.count;
  if (c.kind === "normal" || c.kind === "outliers") {
    return Float32Array.from(normals(c.seed, n), (w, i) => (c.kind === "outliers" && i % 200 === 0 ? w * 8 : w) * 0.02);
  }
  return Float32Array.from(uniforms(c.seed, n), (u) => {
    const v = u - 0.5;
    return (c.kind === "heavy" ? -Math.sign(v) * Math.log(1 - 2 * Math.abs(v)) : 2 * v) * 0.02;
  });
}

// {places, scaled, error statistics} of all weights in one format.
export function roundTrip(weights, format, block) {
  const levels = LEVELS[format];
  const places = new Uint8Array(weights.length);
  const scaled = new Float32Array(weights.length);
  let [total, square, energy, worst] = [0, 0, 0, 0];
  for (let start = 0; start < weights.length; start += block) {
    const end = Math.min(start + block, weights.length);
    let scale = 0;
    for (let i = start; i < end; i++) scale = Math.max(scale, Math.abs(weights[i]));
    const reciprocal = f32(1 / Math.max(scale, TINY));
    for (let i = start; i < end; i++) {
      scaled[i] = weights[i] * reciprocal;
      places[i] = nearest(format, scaled[i]);
      const error = Math.abs(f32(levels[places[i]] * scale) - weights[i]);
      total += error;
      square += error * error;
      energy += weights[i] * weights[i];
      worst = Math.max(worst, error);
    }
  }
  const n = weights.length;
  const scales = Math.ceil(n / block);
  const bits = (8 * (Math.ceil(n / 2) + 4 * scales)) / n;
  return { places, scaled, scales, mean: total / n, rms: Math.sqrt(square / n), max: worst, relative: energy ? Math.sqrt(square / energy) : 0, bits };
}

export function compute(c, state) {
  const weights = weightsOf(c, state);
  const formats = {};
  let used = null;
  let scales = 0;
  for (const [name] of NAMES) {
    const { places, scaled, scales: blocks, ...errors } = roundTrip(weights, name, c.block);
    formats[name] = errors;
    if (name !== c.format) continue;
    used = LEVELS[name].map(() => 0);
    for (const place of places) used[place] += 1;
    used = used.map((n) => n / weights.length);
    scales = blocks;
  }
  const level = LEVELS[c.format][nearest(c.format, f32(c.probe))];
  return {
    formats, used, scales, level,
    levels: LEVELS[c.format],
    entropy: used.reduce((all, p) => (p ? all - p * Math.log2(p) : all), 0),
    error: level - f32(c.probe),
  };
}

export function render({ model, el }) {
  return explorer({ model, el }, {
    compute,
    build(stage, view, pick) {
      const lines = add(stage, "div", { class: "chart" });
      const heading = add(lines, "h4");
      const drawLines = add(lines, "div");
      const pair = add(stage, "div", { class: "pair" });
      const use = add(pair, "div", { class: "chart" });
      const useHead = add(use, "h4");
      const drawUse = add(use, "div");
      const drawError = chart(pair, "rounding error of a weight w / s");
      const put = figures(stage);
      return (found, c, state) => {
        const weights = weightsOf(c, state);
        const [, name, tone] = NAMES.find(([format]) => format === c.format);
        heading.textContent = `${count(weights.length, "weight")} divided by the largest of their block, and the levels`;
        numberLine(drawLines, roundTrip(weights, c.format, c.block).scaled, c, found, (format) => pick({ format }));
        useHead.textContent = `how often each level of ${name} is used`;
        usage(drawUse, found, tone);
        saw(drawError, c, found, tone, pick);
        const best = Math.min(...NAMES.map(([format]) => found.formats[format].relative));
        put([
          ...NAMES.map(([format, text, own]) => {
            const { relative, max } = found.formats[format];
            return [`${text} error`, percent(relative), `${relative === best ? "the least; " : ""}worst ${brief(max)}`, own];
          }),
          ["bits per weight", brief(found.formats[c.format].bits), `${count(found.scales, "scale")} of 32 bits`],
          ["bits used", brief(found.entropy), "entropy of the codes, of 4"],
        ]);
      };
    },
  });
}

// The weights as a histogram over [-1, 1], below it a row of levels for each format.
function numberLine(parent, scaled, c, found, pick) {
  const had = parent.contains(document.activeElement) ? document.activeElement.dataset.format : null;
  parent.replaceChildren();
  const width = clamp(parent.clientWidth || 560, 230, 900);
  const sx = linear([-1.02, 1.02], [52, width - 12]);
  const svg = add(parent, "svg", { viewBox: `0 0 ${width} 236`, role: "group", "aria-label": "levels of the three formats on a number line" });
  const bins = new Array(Math.round(width / 7)).fill(0);
  for (const w of scaled) bins[Math.min(bins.length - 1, Math.floor(((w + 1) / 2) * bins.length))] += 1;
  const tallest = Math.max(...bins);
  const [, , tone] = NAMES.find(([format]) => format === c.format);
  bins.forEach((n, i) => {
    const [x, x2] = [sx(-1 + (2 * i) / bins.length), sx(-1 + (2 * (i + 1)) / bins.length)];
    const high = (104 * n) / tallest;
    add(svg, "rect", { x, width: x2 - x - 0.6, y: 112 - high, height: high, class: `bar soft ${tone}` });
  });
  for (const level of found.levels) if (level >= -1) add(svg, "line", { x1: sx(level), x2: sx(level), y1: 4, y2: 112, class: "grid level" });
  NAMES.forEach(([format, text, own], k) => {
    const y = 134 + 28 * k;
    const row = add(svg, "g", { class: `row ${own}`, role: "button", tabindex: 0, "data-format": format, "aria-pressed": String(format === c.format), "aria-label": `${text}: choose` });
    add(row, "rect", { x: 0, width, y: y - 13, height: 26, rx: 6, class: "hit" });
    add(row, "text", { x: 4, y: y + 4, class: "name" }, text);
    add(row, "line", { x1: sx(-1), x2: sx(1), y1: y, y2: y, class: "axis" });
    for (const level of LEVELS[format]) {
      if (level < -1) continue;
      add(row, "line", { x1: sx(level), x2: sx(level), y1: y - 8, y2: y + 8, class: "tick" });
    }
    row.onclick = () => pick(format);
    row.onkeydown = (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      pick(format);
    };
  });
  const y = 134 + 28 * NAMES.findIndex(([format]) => format === c.format);
  add(svg, "path", { d: `M${sx(c.probe)},${y - 9}V${y}H${sx(found.level)}`, class: "arrow" });
  add(svg, "circle", { cx: sx(c.probe), cy: y - 9, r: 4, class: "point" });
  add(svg, "circle", { cx: sx(found.level), cy: y, r: 5, class: `point ${tone}` });
  const g = add(svg, "g", { class: "axes" });
  for (const v of ticks(-1, 1, 8)) add(g, "text", { x: sx(v), y: 228, "text-anchor": "middle" }, brief(v));
  if (had) svg.querySelector(`[data-format="${had}"]`)?.focus({ preventScroll: true });
}

function usage(parent, found, tone) {
  parent.replaceChildren();
  const width = clamp(parent.clientWidth || 360, 230, 620);
  const most = Math.max(0.08, ...found.used) * 1.15;
  const sy = linear([0, most], [168, 8]);
  const svg = add(parent, "svg", { viewBox: `0 0 ${width} 200`, role: "img", "aria-label": found.levels.map((level, i) => `${brief(level)}: ${percent(found.used[i])}`).join(", ") });
  const g = add(svg, "g", { class: "axes" });
  for (const v of ticks(0, most, 4)) {
    add(g, "line", { x1: 40, x2: width, y1: sy(v), y2: sy(v), class: v ? "grid" : "zero" });
    add(g, "text", { x: 34, y: sy(v), dy: "0.32em", "text-anchor": "end" }, percent(v, 0));
  }
  const step = (width - 42) / found.used.length;
  found.used.forEach((share, i) => {
    add(svg, "rect", { x: 42 + i * step + 1.5, width: step - 3, y: sy(share), height: 168 - sy(share), rx: 1.5, class: `bar ${tone}` });
    if (i % 2 === 0 || width > 560) add(g, "text", { x: 42 + (i + 0.5) * step, y: 185, "text-anchor": "middle" }, brief(found.levels[i]).replace("0.", "."));
  });
  const even = sy(1 / 16);
  add(svg, "line", { x1: 40, x2: width, y1: even, y2: even, class: "reference" });
  add(svg, "text", { x: width - 2, y: even - 4, "text-anchor": "end", class: "name c-ink" }, "all alike: 1/16");
}

function saw(draw, c, found, tone, pick) {
  const error = (x) => { const w = f32(x); return LEVELS[c.format][nearest(c.format, w)] - w; };
  const made = draw({
    height: 200, margin: { left: 48, bottom: 24 },
    x: { domain: [-1, 1], count: 5 }, y: { domain: [-0.2, 0.2], count: 4 },
    label: "Rounding error by weight. Arrow keys read it, Enter moves the probe there.",
  });
  curve(made, [-1, 1], error, tone, 800);
  const y = made.sy(found.error);
  add(made.plot, "circle", { cx: made.sx(c.probe), cy: y, r: 6, class: `point ${tone}` });
  add(made.plot, "text", { x: made.sx(0), y: made.box.top + 12, "text-anchor": "middle", class: "name" }, `${brief(c.probe)} becomes ${brief(found.level)}`);
  const stops = [];
  for (let i = -50; i <= 50; i++) stops.push({ w: i / 50, x: made.sx(i / 50), y: made.sy(error(i / 50)), title: `w / s = ${brief(i / 50)}`, rows: [["level", brief(i / 50 + error(i / 50))], ["error", brief(error(i / 50))]] });
  interact(made.svg, stops, { flat: true, onPick: (i) => pick({ probe: stops[i].w }) });
}
