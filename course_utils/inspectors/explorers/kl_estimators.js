// KL estimators: two distributions shaped by hand, the spread of 200 seeded estimates of each kind,
// and where each kind pushes when it is used as a loss.

import { add, brief, clamp, on, show, speak } from "../kit.js";
import { linear, ticks } from "../charts.js";
import { explorer, figures, keys, uniforms } from "./explore.js";

const KINDS = [["k1", "c-sft"], ["k2", "c-gold"], ["k3", "c-dpo"]];
const BATCHES = 200;
const LIMIT = 20; // of |d| in k3, as in objectives/kl.py

const sum = (values) => values.reduce((a, b) => a + b, 0);
const shares = (weights) => { const all = sum(weights); return weights.map((w) => w / all); };
const divergence = (p, q) => sum(p.map((v, i) => v * (Math.log(v) - Math.log(q[i]))));

// Per word, if it was sampled: the estimate, and its slope by d.
export const ESTIMATORS = {
  k1: { value: (d) => d, slope: () => 1 },
  k2: { value: (d) => (d * d) / 2, slope: (d) => d },
  k3: {
    value: (d) => { const x = Math.max(d, -LIMIT); return Math.expm1(-x) + x; },
    slope: (d) => (d < -LIMIT ? 0 : -Math.expm1(-d)),
  },
};

// (BATCHES) lists of how often each word came.
export function sampleCounts(p, seed, samples) {
  const edges = [];
  for (let v = 0, all = 0; v < p.length - 1; v++) edges.push((all += p[v]));
  const u = uniforms(seed, BATCHES * samples);
  return Array.from({ length: BATCHES }, (_, b) => {
    const counts = p.map(() => 0);
    for (let i = b * samples; i < (b + 1) * samples; i++) {
      let v = 0;
      while (v < edges.length && u[i] >= edges[v]) v++;
      counts[v] += 1;
    }
    return counts;
  });
}

export function compute(c) {
  const [policy, reference] = [shares(c.policy), shares(c.reference)];
  const d = policy.map((v, i) => Math.log(v) - Math.log(reference[i]));
  const exact = divergence(policy, reference);
  const counts = sampleCounts(policy, c.seed, c.samples);
  const found = { policy, reference, exact, reverse: divergence(reference, policy) };
  for (const [kind, { value, slope }] of Object.entries(ESTIMATORS)) {
    const k = d.map(value);
    const mean = sum(policy.map((v, i) => v * k[i]));
    const pushes = policy.map((v, i) => v * slope(d[i])); // E over words of slope · ∇ log π
    const all = sum(pushes);
    const estimates = counts.map((n) => sum(n.map((times, i) => times * k[i])) / c.samples);
    const average = sum(estimates) / BATCHES;
    found[kind] = {
      mean, bias: mean - exact, average, estimates,
      std: Math.sqrt(sum(policy.map((v, i) => v * (k[i] - mean) ** 2))),
      spread: Math.sqrt(sum(estimates.map((e) => (e - average) ** 2)) / BATCHES),
      gradient: pushes.map((push, i) => push - policy[i] * all),
    };
  }
  return found;
}

export function render({ model, el }) {
  return explorer({ model, el }, {
    compute,
    build(stage, view, pick) {
      const pair = add(stage, "div", { class: "pair" });
      const shapes = add(pair, "div", { class: "chart" });
      add(shapes, "h4", {}, "the two distributions");
      const shaper = makeShaper(shapes, view.state.words, view, pick);
      keys(shapes, [["policy π", "c-ppo"], ["reference π_ref", "c-base"]]);
      const pushes = add(pair, "div", { class: "chart" });
      add(pushes, "h4", {}, "as a loss: the gradient on each word's logit");
      const drawPushes = add(pushes, "div");
      keys(pushes, KINDS);
      const strip = add(stage, "div", { class: "chart" });
      const heading = add(strip, "h4");
      const drawStrips = add(strip, "div");
      const put = figures(stage);
      return (found, c, state) => {
        shaper(found);
        gradients(drawPushes, found, state.words);
        heading.textContent = `${BATCHES} estimates, each from ${c.samples} sampled ${c.samples === 1 ? "word" : "words"}`;
        strips(drawStrips, found);
        put([
          ["exact KL(π ‖ π_ref)", found.exact, `the other way round ${brief(found.reverse)}`, "c-ink"],
          ...KINDS.map(([kind, tone]) => [kind, `${brief(found[kind].average)} ± ${brief(found[kind].spread)}`, `bias ${signed(found[kind].bias)}, std of one sample ${brief(found[kind].std)}`, tone]),
        ]);
      };
    },
  });
}

const signed = (v) => (Math.abs(v) < 5e-13 ? "0" : `${v > 0 ? "+" : ""}${brief(v)}`);

// ---- the bars -------------------------------------------------------------------------------------

const TALL = 170;
const LEAST = 0.002;

// Bars to drag: a bar's height is a probability, and the others keep their proportions. The nodes
// stay, so that the keyboard's place and a drag do too.
function makeShaper(parent, words, view, pick) {
  const svg = add(parent, "svg", { class: "shaper", role: "group", "aria-label": "probabilities of five words: drag, or use the arrow keys" });
  const grid = add(svg, "g", { class: "axes", "aria-hidden": "true" });
  const bars = [];
  let scale = null;
  const set = (side, i, probability) => {
    const old = shares(view.ui[side]);
    const p = clamp(probability, LEAST, 0.97);
    const rest = 1 - old[i];
    const next = old.map((v, k) => (k === i ? p : Math.max(LEAST, (v / rest) * (1 - p))));
    pick({ [side]: shares(next).map((v) => Number(clamp(v, 0.001, 1).toFixed(4))) });
  };
  words.forEach((word, i) => {
    for (const [side, tone] of [["policy", "c-ppo"], ["reference", "c-base"]]) {
      const g = add(svg, "g", { class: `grip ${tone}`, role: "slider", tabindex: 0, "aria-orientation": "vertical", "aria-label": `${side === "policy" ? "π" : "π_ref"} of ${word}`, "aria-valuemin": 0, "aria-valuemax": 1 });
      const hit = add(g, "rect", { class: "hit" });
      const bar = add(g, "rect", { class: "bar", rx: 2 });
      const knob = add(g, "rect", { class: "bar knob", rx: 2, height: 5 });
      const text = add(g, "text", { class: "name", "text-anchor": "middle" });
      bars.push({ side, i, g, hit, bar, knob, text });
      on(g, "keydown", (event) => {
        const by = { ArrowUp: 0.01, ArrowRight: 0.01, ArrowDown: -0.01, ArrowLeft: -0.01, PageUp: 0.1, PageDown: -0.1 }[event.key];
        if (!by) return;
        event.preventDefault();
        const p = shares(view.ui[side])[i] + by;
        set(side, i, p);
        speak(svg, `${side === "policy" ? "π" : "π ref"} of ${word} ${show(clamp(p, LEAST, 0.97), 2)}`);
      });
      const drag = (event) => {
        const frame = svg.getBoundingClientRect();
        set(side, i, scale.invert(((event.clientY - frame.top) / frame.height) * (TALL + 34)));
      };
      on(g, "pointerdown", (event) => {
        g.setPointerCapture(event.pointerId);
        g.focus({ preventScroll: true });
        event.preventDefault();
        drag(event);
      });
      on(g, "pointermove", (event) => { if (g.hasPointerCapture(event.pointerId)) drag(event); });
    }
    add(svg, "text", { class: "word name", "text-anchor": "middle", "data-word": i }, word);
  });
  return (found) => {
    const width = clamp(parent.clientWidth || 360, 230, 620);
    svg.setAttribute("viewBox", `0 0 ${width} ${TALL + 34}`);
    const held = svg.querySelector(".grip:active") && scale;
    const top = held ? scale.top : Math.min(1, Math.max(0.3, ...found.policy, ...found.reference) * 1.15);
    const sy = linear([0, top], [TALL, 12]);
    scale = { top, invert: (y) => ((TALL - y) / (TALL - 12)) * top };
    grid.replaceChildren();
    for (const v of ticks(0, top, 4)) {
      add(grid, "line", { x1: 30, x2: width, y1: sy(v), y2: sy(v), class: v ? "grid" : "zero" });
      add(grid, "text", { x: 24, y: sy(v), dy: "0.32em", "text-anchor": "end" }, show(v, 1));
    }
    const step = (width - 34) / words.length;
    const wide = Math.min(30, step * 0.36);
    for (const { side, i, g, hit, bar, knob, text } of bars) {
      const p = found[side][i];
      const x = 34 + step * (i + 0.5) + (side === "policy" ? -wide - 1 : 1);
      const y = Math.max(2, sy(p));
      for (const [node, values] of [[hit, { x, width: wide, y: 0, height: TALL }], [bar, { x, width: wide, y, height: TALL - y }], [knob, { x, width: wide, y: y - 2 }]]) {
        for (const [name, value] of Object.entries(values)) node.setAttribute(name, value);
      }
      text.setAttribute("x", x + wide / 2);
      text.setAttribute("y", y - 6);
      text.textContent = wide >= 22 ? show(p, 2).slice(1) : "";
      g.setAttribute("aria-valuenow", p.toFixed(3));
    }
    for (const word of svg.querySelectorAll(".word")) {
      word.setAttribute("x", 34 + step * (Number(word.dataset.word) + 0.5));
      word.setAttribute("y", TALL + 20);
    }
  };
}

// ---- estimates and gradients ----------------------------------------------------------------------

// One row a kind: 200 dots in a heap, their mean and standard deviation, the exact value behind.
function strips(parent, found) {
  parent.replaceChildren();
  const width = clamp(parent.clientWidth || 560, 230, 900);
  const row = 62;
  const every = KINDS.flatMap(([kind]) => found[kind].estimates).concat(found.exact, 0).sort((a, b) => a - b);
  const low = Math.min(every[Math.floor(0.004 * every.length)], 0, found.exact);
  const high = Math.max(every[Math.ceil(0.985 * every.length) - 1], found.exact * 1.3, 0.02);
  const room = (high - low) * 0.06;
  const sx = linear([low - room, high + room], [34, width - 12]);
  const svg = add(parent, "svg", { viewBox: `0 0 ${width} ${row * 3 + 24}`, role: "img", "aria-label": KINDS.map(([kind]) => `${kind}: ${brief(found[kind].average)} plus or minus ${brief(found[kind].spread)}`).join("; ") });
  const g = add(svg, "g", { class: "axes" });
  for (const v of ticks(low - room, high + room, Math.round(width / 90))) {
    add(g, "line", { x1: sx(v), x2: sx(v), y1: 4, y2: row * 3, class: v ? "grid" : "zero" });
    add(g, "text", { x: sx(v), y: row * 3 + 16, "text-anchor": "middle" }, brief(v));
  }
  KINDS.forEach(([kind, tone], k) => {
    const foot = row * (k + 1) - 14;
    const { estimates, average, spread, mean } = found[kind];
    add(svg, "text", { x: 0, y: foot - 2, class: `name ${tone}` }, kind);
    const heaps = new Map();
    for (const e of estimates) {
      const x = clamp(Math.round(sx(e) / 4) * 4, 32, width - 8);
      heaps.set(x, (heaps.get(x) ?? 0) + 1);
    }
    const tallest = Math.max(...heaps.values());
    const by = Math.min(4, 42 / tallest);
    for (const [x, n] of heaps) add(svg, "rect", { x: x - 1.6, width: 3.2, y: foot - n * by, height: n * by, class: `bar soft ${tone}` });
    const ends = [average - spread, average + spread].map((v) => clamp(sx(v), 32, width - 6));
    add(svg, "line", { x1: ends[0], x2: ends[1], y1: foot + 5, y2: foot + 5, class: `arrow ${tone}` });
    add(svg, "circle", { cx: clamp(sx(mean), 32, width - 6), cy: foot + 5, r: 4.5, class: `point ${tone}` });
  });
  add(svg, "line", { x1: sx(found.exact), x2: sx(found.exact), y1: 0, y2: row * 3, class: "exact" });
  const right = sx(found.exact) > width * 0.7;
  add(svg, "text", { x: sx(found.exact) + (right ? -6 : 6), y: 11, "text-anchor": right ? "end" : "start", class: "name" }, "exact");
}

function gradients(parent, found, words) {
  parent.replaceChildren();
  const width = clamp(parent.clientWidth || 360, 230, 620);
  const far = Math.max(0.02, ...KINDS.flatMap(([kind]) => found[kind].gradient.map(Math.abs))) * 1.12;
  const sy = linear([-far, far], [TALL, 8]);
  const svg = add(parent, "svg", { viewBox: `0 0 ${width} ${TALL + 34}`, role: "img", "aria-label": KINDS.map(([kind]) => `${kind}: ${found[kind].gradient.map((v, i) => `${words[i]} ${brief(v)}`).join(", ")}`).join("; ") });
  const g = add(svg, "g", { class: "axes" });
  for (const v of ticks(-far, far, 4)) {
    add(g, "line", { x1: 44, x2: width, y1: sy(v), y2: sy(v), class: v ? "grid" : "zero" });
    add(g, "text", { x: 38, y: sy(v), dy: "0.32em", "text-anchor": "end" }, brief(v));
  }
  const step = (width - 48) / words.length;
  const wide = Math.min(15, step * 0.26);
  words.forEach((word, i) => {
    KINDS.forEach(([kind, tone], k) => {
      const y = sy(found[kind].gradient[i]);
      const x = 48 + step * (i + 0.5) + (k - 1.5) * (wide + 1);
      add(svg, "rect", { x, width: wide, y: Math.min(y, sy(0)) - 0.8, height: Math.abs(y - sy(0)) + 1.6, rx: 1.5, class: `bar ${tone}` });
    });
    add(svg, "text", { x: 48 + step * (i + 0.5), y: TALL + 20, "text-anchor": "middle", class: "name word" }, word);
  });
  add(parent, "p", { class: "fine" }, "k1: zero, no push at all. k2: the gradient of KL(π ‖ π_ref). k3: that of KL(π_ref ‖ π).");
}
