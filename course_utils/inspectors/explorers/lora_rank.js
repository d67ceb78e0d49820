// LoRA by rank: the factors drawn to scale, the share of parameters, the energy that a rank holds.

import { add, brief, clamp, count } from "../kit.js";
import { interact, line } from "../charts.js";
import { Refusal, chart, explorer, figures, here, keys, logged, logTicks } from "./explore.js";

const adapted = (shape, which) => shape.linears.filter(([name]) => which === "all" || shape[which].includes(name));
const cost = (shape, which, rank) => shape.layers * rank * adapted(shape, which).reduce((all, [, k, d]) => all + k + d, 0);
const limit = (shape, which) => Math.min(...adapted(shape, which).map(([, k, d]) => Math.min(k, d)));

// Shares of the squared singular values, summed up.
export function energies(values) {
  let all = 0;
  const sums = values.map((v) => (all += v * v));
  return sums.map((v) => v / all);
}

export const spectrumOf = (c, state) => state.spectrum ?? Array.from({ length: state.directions }, (_, i) => (i + 1) ** -c.decay);

export function compute(c, state) {
  const shape = state.shapes[c.model];
  const most = limit(shape, c.targets);
  if (c.rank > most) throw new Refusal(`rank ${c.rank} does not fit ${c.model}: the smallest side of the matrices it is added to is ${most}.`);
  const trained = cost(shape, c.targets, c.rank);
  const values = spectrumOf(c, state);
  const energy = energies(values);
  const total = values.reduce((a, b) => a + b, 0);
  const entropy = values.reduce((all, v) => (v > 0 ? all - (v / total) * Math.log(v / total) : all), 0);
  return {
    trained,
    parameters: shape.parameters,
    share: trained / (shape.parameters + trained),
    matrices: adapted(shape, c.targets).length * shape.layers,
    kept: energy[Math.min(c.rank, values.length) - 1],
    enough: energy.findIndex((v) => v >= c.energy - 1e-12) + 1,
    effective: Math.exp(entropy),
    directions: values.length,
  };
}

const WAYS = [["few", "q, v", "c-best-of-n", "dots"], ["attention", "attention", "c-ppo", "held"], ["all", "all linear", "c-sft", ""]];
const digits = (share) => `${Number((100 * share).toPrecision(3))}%`;

export function render({ model, el }) {
  return explorer({ model, el }, {
    compute,
    build(stage, view, pick) {
      const picture = add(stage, "div", { class: "chart" });
      const caption = add(picture, "h4");
      const drawFactors = add(picture, "div");
      const pair = add(stage, "div", { class: "pair" });
      const left = add(pair, "div");
      const drawShare = chart(left, "share that trains (shaded: 0.1 to 1%)");
      keys(left, WAYS.map(([, text, tone, dash]) => [text, `${tone} ${dash}`, dash === "held"]));
      const right = add(pair, "div");
      const drawEnergy = chart(right, "energy of ΔW that rank r can hold");
      const energyNote = add(right, "p", { class: "fine" });
      const put = figures(stage);
      return (found, c, state) => {
        const shape = state.shapes[c.model];
        const largest = [...adapted(shape, c.targets)].sort((a, b) => b[1] * b[2] - a[1] * a[2])[0];
        caption.textContent = `${largest[0]}, ${largest[2]} × ${largest[1]}, and its B and A, to scale`;
        factors(drawFactors, largest, c.rank);
        shares(drawShare, shape, c, found, pick);
        spectrum(drawEnergy, spectrumOf(c, state), c, found, pick);
        energyNote.textContent = state.spectrum ? `your ΔW: ${count(found.directions, "singular value")}` : `a made-up spectrum of ${found.directions} directions, σ_i = i^−${c.decay}; bars: σ_i / σ_1`;
        put([
          ["trained", found.trained.toLocaleString("en-US"), `in ${count(found.matrices, "matrix", "matrices")}`, WAYS.find(([way]) => way === c.targets)[2]],
          ["share of all", digits(found.share), `of ${found.parameters >= 1e9 ? `${brief(found.parameters / 1e9)} B` : `${brief(found.parameters / 1e6)} M`}`, WAYS.find(([way]) => way === c.targets)[2]],
          ["energy kept", digits(found.kept), `by rank ${c.rank}`, "c-dpo"],
          [`rank for ${digits(c.energy)}`, String(found.enough), `of ${found.directions} directions`, "c-dpo"],
          ["effective rank", found.effective, "exp of the spectrum's entropy", "c-dpo"],
        ]);
      };
    },
  });
}

// d × k, d × r and r × k as rectangles; a strip thinner than a pixel is drawn as one pixel.
function factors(parent, [, k, d], rank) {
  parent.replaceChildren();
  const width = clamp(parent.clientWidth || 560, 230, 900);
  const tall = 150;
  const label = 88; // the least room for a name
  const each = Math.min(tall / d, (width - 100) / (2 * k), (width - 100 - 2 * label) / Math.min(2 * k, k + label));
  const [w, h, r] = [k * each, d * each, Math.max(1.2, rank * each)];
  const svg = add(parent, "svg", { viewBox: `0 0 ${width} ${h + 28}`, role: "img", "aria-label": `W has ${d * k} numbers, B ${d * rank} and A ${rank * k}` });
  const big = (v) => (v >= 1e6 ? `${brief(v / 1e6)} M` : v.toLocaleString("en-US"));
  const box = (x, y, wide, high, tone, text) => {
    add(svg, "rect", { x, y, width: wide, height: high, rx: 1, class: `bar ${tone}` });
    add(svg, "text", { x, y: y + high + 17, class: `name ${tone}` }, text);
    return x + Math.max(wide, label);
  };
  const sign = (x, text) => add(svg, "text", { x, y: h / 2 + 5, "text-anchor": "middle", class: "name" }, text);
  let x = box(1, 2, w, h, "c-base", `W ${big(d * k)}`);
  sign(x + 16, "+");
  x = box(x + 34, 2, r, h, "c-sft", `B ${big(d * rank)}`);
  sign(x + 12, "×");
  box(x + 30, 2 + (h - Math.min(r, h)) / 2, w, Math.min(r, h), "c-ppo", `A ${big(rank * k)}`);
}

function shares(draw, shape, c, found, pick) {
  const of = (which, rank) => { const own = cost(shape, which, rank); return (100 * own) / (own + shape.parameters); };
  const domain = [1, 256];
  const high = Math.max(of("all", 256), 100 * found.share, 1.5);
  const made = draw({
    height: 236, margin: { bottom: 38, left: 50 },
    x: { domain: [1, Math.max(256, c.rank)], scale: logged, ticks: (d) => logTicks(d, 2), label: "rank r" },
    y: { domain: [Math.min(0.005, of("few", 1)), high * 1.2], scale: logged, ticks: (d) => logTicks(d), format: (v) => `${v}%` },
    label: "Share of trained parameters by rank. Arrow keys read the curves, Enter sets the rank.",
  });
  const { sx, sy, box, under } = made;
  add(under, "rect", { x: box.left, width: box.right - box.left, y: sy(1), height: sy(0.1) - sy(1), class: "band" });
  for (const [which, , tone, dash] of WAYS) {
    const most = Math.min(256, limit(shape, which));
    line(made.inner, Array.from({ length: 41 }, (_, i) => most ** (i / 40)).map((rank) => [sx(rank), sy(of(which, rank))]), `${tone} ${dash} ${which === c.targets ? "" : "thin"}`);
  }
  here(made, c.rank, 100 * found.share, WAYS.find(([which]) => which === c.targets)[2]);
  const stops = logTicks(domain, 2).map((rank) => ({ rank, x: sx(rank), y: box.top, title: `rank ${rank}`, rows: WAYS.map(([which, text]) => [text, digits(of(which, rank) / 100)]) }));
  interact(made.svg, stops, { flat: true, onPick: (i) => pick({ rank: stops[i].rank }) });
}

function spectrum(draw, values, c, found, pick) {
  const energy = energies(values);
  const made = draw({
    height: 236, margin: { bottom: 38 },
    x: { domain: [1, values.length], scale: logged, ticks: (d) => logTicks(d, 2), label: "rank r" },
    y: { domain: [0, 1], count: 4 },
    label: "Energy kept by rank. Arrow keys read the curve, Enter sets the rank.",
  });
  const { sx, sy, box, under } = made;
  values.forEach((v, i) => {
    const x = sx(i + 1);
    const wide = Math.max(0.8, Math.min(10, (sx(i + 2) - x) * 0.7));
    add(under, "rect", { x: x - wide / 2, width: wide, y: sy(v / values[0]), height: Math.max(0, box.bottom - sy(v / values[0])), class: `bar soft ${i < c.rank ? "c-dpo" : "c-base"}` });
  });
  const y = sy(c.energy);
  add(under, "line", { x1: box.left, x2: box.right, y1: y, y2: y, class: "reference" });
  line(made.inner, energy.map((e, i) => [sx(i + 1), sy(e)]), "c-dpo");
  here(made, Math.min(c.rank, values.length), found.kept, "c-dpo");
  add(made.plot, "circle", { cx: sx(found.enough), cy: sy(energy[found.enough - 1]), r: 6, class: "ring c-dpo" });
  const stops = energy.map((e, i) => ({ rank: i + 1, x: sx(i + 1), y: sy(e), title: `rank ${i + 1}`, rows: [["energy kept", digits(e)], ["σ / σ₁", brief(values[i] / values[0])]] }));
  interact(made.svg, stops, { flat: true, onPick: (i) => pick({ rank: stops[i].rank }) });
}
