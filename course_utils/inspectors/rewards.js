// The reward inspector: score distributions, margins, calibration, reward against length, and the
// pairs themselves to read.

import { add, brief, choice, clamp, count, inspect, known, on, show, slider } from "./kit.js";
import { axes, extent, interact, line } from "./charts.js";
import { figure } from "./marks.js";

const lengthText = (v) => (Number.isInteger(v) ? show(v, 0) : brief(v));
const MOST_SPECKS = 1500; // points drawn per side

export function render({ model, el }) {
  return inspect({ model, el }, (view) => {
    add(add(view.root, "div", { class: "head" }), "h3", {}, "What the reward model has learnt");
    const numbers = add(view.root, "div", { class: "headline" });
    const empty = add(view.root, "p", { class: "empty", hidden: true });
    const board = add(view.root, "div", { class: "views" });
    const figures = {
      scores: figure(board, view, "Scores: better answers above, worse below"),
      margins: figure(board, view, "Margins: reward(chosen) − reward(rejected)"),
      calibration: figure(board, view, "Calibration: do its odds come true?"),
      lengths: figure(board, view, "Reward and length"),
    };
    const putScale = slider(figures.calibration.foot, "reward scale", {}, (scale) => view.choose({ scale }));
    const bestButton = add(figures.calibration.foot, "button", { type: "button" });
    on(bestButton, "click", () => view.choose({ scale: nearestScale(view.state) }));
    const markWithin = choice(figures.lengths.foot, "length", [
      [false, "all answers", "reward of each answer against its length"],
      [true, "within pairs", "what the longer answer of a pair gains: the prompt drops out"],
    ], (within) => view.choose({ within }));
    const lengthNote = add(figures.lengths.foot, "span");
    const lengthKeys = add(figures.lengths.foot, "span");
    const reader = makeReader(view);
    const note = add(view.root, "p", { class: "fine" });
    return (state) => {
      const some = state.n > 0;
      empty.hidden = some;
      empty.textContent = "No pairs of scores yet.";
      board.hidden = numbers.hidden = !some;
      board.style.display = some ? "" : "none";
      note.textContent = notes(state);
      if (some) {
        putNumbers(numbers, state);
        drawScores(figures.scores, state);
        drawMargins(figures.margins, view, state);
        const { scale } = view.ui;
        putScale({ value: scale, min: 0, max: state.scales.length - 1, text: `reward × ${show(state.scales[scale])}` });
        bestButton.textContent = `likeliest: × ${show(state.best_scale)}`;
        bestButton.hidden = !known(state.best_scale);
        drawCalibration(figures.calibration, state, scale);
        figures.lengths.box.hidden = !state.length;
        markWithin(Boolean(view.ui.within));
        lengthKeys.textContent = view.ui.within ? "● as labelled  ○ ordered wrongly" : "● chosen  ○ rejected";
        if (state.length) drawLengths(figures.lengths, lengthNote, view, state);
      }
      reader(state);
    };
  });
}

function notes({ dropped, skipped, n }) {
  const said = [];
  if (dropped) said.push(`${count(dropped, "pair")} left out: a score or length is not a finite number.`);
  if (skipped) said.push(`The curves are computed from all ${count(n, "pair")}; of the points, this page holds ${(n - skipped).toLocaleString("en-US")}.`);
  return said.join(" ");
}

function putNumbers(host, state) {
  host.replaceChildren();
  const put = (label, value, more) => {
    const box = add(host, "div");
    add(box, "span", {}, label);
    add(box, "b", {}, value);
    add(box, "em", {}, more);
  };
  const { accuracy, margin, calibrations, scales, length, ties } = state;
  const plain = calibrations[scales.indexOf(1)];
  const percent = (v) => (known(v) ? `${show(100 * v, 0)}%` : "–");
  put("pairs ordered as labelled", percent(accuracy.mean), `${percent(accuracy.low)} … ${percent(accuracy.high)} of ${count(state.n, "pair")}${ties ? `, ${count(ties, "tie")}` : ""}`);
  put("mean margin", show(margin), "chosen − rejected");
  put("calibration error", show(plain.ece, 3), "0: its odds come true");
  if (length?.answers) put(`reward per 10 ${state.unit}`, `${length.answers.slope >= 0 ? "+" : ""}${brief(10 * length.answers.slope)}`, `all answers, r = ${show(length.answers.r)}`);
  if (known(length?.longer_preferred)) put("longer answer scored higher", percent(length.longer_preferred), `it is the better one in ${percent(length.longer_chosen)}`);
}

// ---- distributions ------------------------------------------------------------------------------

function drawScores(chart, state) {
  chart.put([state.scores], (host, width) => {
    const { edges, counts: [chosen, rejected] } = state.scores;
    const most = Math.max(1, ...chosen, ...rejected);
    const { svg, sx, sy, plot, box } = axes(host, {
      width, height: 230, margin: { bottom: 36, left: 34 },
      label: "Histogram of the scores of chosen and rejected answers. Arrow keys read the bars.",
      x: { domain: [edges[0], edges.at(-1)], label: "reward" },
      y: { domain: [-most * 1.25, most * 1.25], count: 6, format: (v) => String(Math.abs(Math.round(v))) },
    });
    const mean = (values) => values.reduce((sum, c, i) => sum + (c * (edges[i] + edges[i + 1])) / 2, 0) / values.reduce((a, b) => a + b, 0);
    [[chosen, 1, "c-sft", "chosen"], [rejected, -1, "c-ppo", "rejected"]].forEach(([values, side, tone, name]) => {
      values.forEach((c, i) => c && add(plot, "rect", {
        x: sx(edges[i]), width: sx(edges[i + 1]) - sx(edges[i]), y: Math.min(sy(0), sy(side * c)), height: Math.abs(sy(c) - sy(0)), class: `cell ${tone}`,
      }));
      const m = sx(mean(values));
      add(plot, "line", { x1: m, x2: m, y1: sy(0), y2: sy(side * most * 1.2), class: `trace ${tone}` });
      const late = m > box.right - 130;
      add(plot, "text", { x: late ? m - 6 : m + 6, "text-anchor": late ? "end" : "start", y: side > 0 ? box.top + 10 : box.bottom - 6, class: `name ${tone}` }, `${name}, mean ${show(mean(values))}`);
    });
    add(plot, "line", { x1: box.left, x2: box.right, y1: sy(0), y2: sy(0), class: "axis" });
    interact(svg, edges.slice(1).map((high, i) => ({
      x: (sx(edges[i]) + sx(high)) / 2, y: sy(chosen[i]), title: `${brief(edges[i])} … ${brief(high)}`,
      rows: [["chosen", String(chosen[i])], ["rejected", String(rejected[i])]],
    })), { flat: true });
  });
}

function drawMargins(chart, view, state) {
  const { edges, counts: [bars] } = state.margins;
  chart.put([state.margins], (host, width) => {
    const { svg, sx, sy, plot, box } = axes(host, {
      width, height: 230, margin: { bottom: 36, left: 34 },
      label: "Histogram of margins; left of zero the pair is ordered wrongly. Arrow keys read the bars, Enter shows a pair.",
      x: { domain: [Math.min(edges[0], 0), Math.max(edges.at(-1), 0)], label: "margin" },
      y: { domain: [0, Math.max(1, ...bars) * 1.12], count: 4, format: (v) => (Number.isInteger(v) ? String(v) : "") },
    });
    add(plot, "rect", { x: box.left, width: Math.max(0, sx(0) - box.left), y: box.top, height: box.bottom - box.top, class: "shade" });
    bars.forEach((c, i) => c && add(plot, "rect", {
      x: sx(edges[i]), width: sx(edges[i + 1]) - sx(edges[i]), y: sy(c), height: box.bottom - sy(c), class: `cell ${edges[i] < 0 ? "c-ppo" : "c-sft"}`,
    }));
    add(plot, "line", { x1: sx(0), x2: sx(0), y1: box.top, y2: box.bottom, class: "axis" });
    const wrong = bars.reduce((sum, c, i) => sum + (edges[i] < 0 ? c : 0), 0);
    if (sx(0) - box.left > 90) add(plot, "text", { x: sx(0) - 8, y: box.top + 10, "text-anchor": "end", class: "name c-ppo" }, `wrong: ${count(wrong, "pair")}`);
    if (box.right - sx(0) > 90) add(plot, "text", { x: sx(0) + 8, y: box.top + 10, class: "name c-sft" }, "as labelled");
    interact(svg, bars.map((c, i) => ({
      x: (sx(edges[i]) + sx(edges[i + 1])) / 2, y: sy(c), title: `margin ${brief(edges[i])} … ${brief(edges[i + 1])}`, rows: [["pairs", String(c)]],
    })), { flat: true, onPick: (i) => pickMargin(view, (edges[i] + edges[i + 1]) / 2) });
  });
}

// ---- calibration --------------------------------------------------------------------------------

function nearestScale({ scales, best_scale: best }) {
  const far = scales.map((s) => Math.abs(Math.log(s / best)));
  return far.indexOf(Math.min(...far));
}

function drawCalibration(chart, state, scale) {
  const found = state.calibrations[scale];
  chart.say(`error ${show(found.ece, 3)}`);
  chart.put([state.calibrations, scale], (host, width) => {
    const low = Math.max(0, Math.min(0.4, ...found.bins.map((b) => b[1] - 0.08)));
    const { svg, sx, sy, plot, box } = axes(host, {
      width, height: 230, margin: { bottom: 36, left: 42 },
      label: "Calibration: how often the preferred answer was the chosen one, by how sure the model was. Arrow keys read the bins.",
      x: { domain: [0.5, 1], format: (v) => `${Math.round(100 * v)}%`, label: "how sure it is: σ(reward difference)", count: 5 },
      y: { domain: [low, 1.02], format: (v) => `${Math.round(100 * v)}%`, count: 4 },
    });
    add(plot, "path", { d: `M${sx(0.5)},${sy(0.5)}L${sx(1)},${sy(1)}`, class: "reference" });
    add(plot, "text", { x: sx(0.5) + 8, y: box.top + 14, class: "caption" }, "above the dotted line: too modest");
    add(plot, "text", { x: box.right - 4, y: box.bottom - 8, "text-anchor": "end", class: "caption" }, "below: too sure of itself");
    const most = Math.max(...found.bins.map((b) => b[2]), 1);
    for (const [p, share] of found.bins) add(plot, "line", { x1: sx(p), x2: sx(p), y1: sy(p), y2: sy(share), class: "whisker c-ppo" });
    line(plot, found.bins.map(([p, share]) => [sx(p), sy(share)]), "c-sft");
    for (const [p, share, n] of found.bins) add(plot, "circle", { cx: sx(p), cy: sy(share), r: 2.5 + 6 * Math.sqrt(n / most), class: "point c-sft" });
    interact(svg, found.bins.map(([p, share, n]) => ({
      x: sx(p), y: sy(share), title: `${show(100 * p, 0)}% sure`, rows: [["came true", `${show(100 * share, 0)}%`], ["pairs", String(n)]],
    })), { flat: true });
  });
}

// ---- length -------------------------------------------------------------------------------------

function drawLengths(chart, note, view, state) {
  const within = Boolean(view.ui.within);
  const found = within ? state.length.within : state.length.answers;
  const kind = within ? "margin" : "reward";
  note.textContent = found
    ? `${kind} ${found.slope >= 0 ? "+" : "−"}${brief(Math.abs(10 * found.slope))} per 10 ${state.unit}${within ? " more" : ""}, r = ${show(found.r)}`
    : "the lengths do not vary: no slope";
  const { pairs } = state;
  const specks = (within
    ? pairs.map(([c, r, lc, lr], i) => ({ x: lc - lr, y: c - r, i, tone: c > r ? "c-sft" : "c-ppo", open: c <= r }))
    : pairs.flatMap(([c, r, lc, lr], i) => [{ x: lc, y: c, i, tone: "c-sft" }, { x: lr, y: r, i, tone: "c-ppo", open: true }])
  ).filter((_, i, all) => i % Math.ceil(all.length / MOST_SPECKS) === 0);
  const drawn = chart.put([pairs, within], (host, width) => {
    const yDomain = extent(specks.map((p) => p.y));
    const span = extent(specks.map((p) => p.x), { margin: 0.05 });
    const { svg, sx, sy, plot, box } = axes(host, {
      width, height: 230, margin: { bottom: 36, left: 42 },
      label: `${kind} against length, with the fitted line. Arrow keys read the points, Enter shows the pair.`,
      x: { domain: span, label: within ? `how much longer the chosen answer is, ${state.unit}` : `length, ${state.unit}` },
      y: { domain: yDomain },
    });
    if (within) add(plot, "line", { x1: sx(0), x2: sx(0), y1: box.top, y2: box.bottom, class: "axis" });
    // Whole lengths lie on top of each other: spread them within a quarter of a unit, always the same way.
    for (const p of specks) p.px = sx(p.x) + (sx(1) - sx(0)) * 0.25 * Math.sin(7.13 * p.i + (p.open ? 2 : 0));
    for (const p of specks) add(plot, "circle", { cx: p.px.toFixed(1), cy: sy(p.y).toFixed(1), r: 2.4, class: `speck ${p.tone} ${p.open ? "open" : ""}` });
    if (found) { // the part of the line that is within the picture
      const at = (x) => found.slope * x + found.intercept;
      const cross = found.slope ? yDomain.map((y) => (y - found.intercept) / found.slope).sort((a, b) => a - b) : span;
      const ends = [Math.max(span[0], cross[0]), Math.min(span[1], cross[1])];
      if (ends[0] < ends[1]) line(plot, ends.map((x) => [sx(x), sy(at(x))]), "c-ink");
    }
    const ring = add(plot, "circle", { r: 6, class: "halo", visibility: "hidden" });
    const sorted = [...specks].sort((a, b) => a.px - b.px);
    interact(svg, sorted.map((p) => ({
      x: p.px, y: sy(p.y), title: within ? (p.open ? "ordered wrongly" : "ordered as labelled") : p.open ? "rejected" : "chosen",
      rows: [[kind, show(p.y)], [within ? "longer by" : "length", `${lengthText(p.x)} ${state.unit}`]],
    })), { onPick: (k) => view.choose({ pair: sorted[k].i }) });
    return { ring, place: (i) => specks.find((p) => p.i === i), sy };
  });
  const spot = known(view.ui.pair) ? drawn.place(view.ui.pair) : null;
  drawn.ring.setAttribute("visibility", spot ? "visible" : "hidden");
  if (spot) {
    drawn.ring.setAttribute("cx", spot.px);
    drawn.ring.setAttribute("cy", drawn.sy(spot.y));
  }
}

// ---- reading pairs ------------------------------------------------------------------------------

const ORDERS = {
  wrong: { text: "most wrong first", of: (m) => m },
  close: { text: "closest first", of: (m) => Math.abs(m) },
  right: { text: "surest first", of: (m) => -m },
};

function order(state, name) {
  const margin = ([i]) => state.pairs[i][0] - state.pairs[i][1];
  return state.texts.map((t) => [ORDERS[name].of(margin(t)), t]).sort((a, b) => a[0] - b[0]).map(([, t]) => t);
}

// Selects the readable pair with the margin nearest to the one clicked.
function pickMargin(view, margin) {
  const far = ([i]) => Math.abs(view.state.pairs[i][0] - view.state.pairs[i][1] - margin);
  const nearest = [...view.state.texts].sort((a, b) => far(a) - far(b))[0];
  if (nearest) view.choose({ pair: nearest[0] });
}

function makeReader(view) {
  const host = add(view.root, "section", { class: "reader", "aria-label": "read the pairs" });
  const controls = add(host, "div", { class: "controls" });
  const go = (at) => view.choose({ pair: order(view.state, view.ui.order)[at][0] });
  const markOrder = choice(controls, "order of the pairs", Object.entries(ORDERS).map(([k, v]) => [k, v.text]), (name) => {
    view.choose({ order: name, pair: order(view.state, name)[0]?.[0] });
  });
  const put = slider(controls, "pair", {}, go);
  const prompt = add(host, "p", { class: "prompt", dir: "auto" });
  const both = add(host, "div", { class: "replies broad" });
  const verdict = add(host, "p", { class: "fine" });
  verdict.style.marginTop = "8px";
  return (state) => {
    host.hidden = !state.texts.length;
    if (host.hidden) return;
    markOrder(view.ui.order);
    const sorted = order(state, view.ui.order);
    const at = Math.max(0, sorted.findIndex(([i]) => i === (view.ui.pair ?? sorted[0][0])));
    const [i, asked, ...texts] = sorted[at];
    put({ value: at, min: 0, max: sorted.length - 1, text: `pair ${at + 1} of ${sorted.length}` });
    prompt.textContent = asked;
    both.replaceChildren();
    const row = state.pairs[i];
    ["chosen", "rejected"].forEach((name, side) => {
      const card = add(both, "article", { class: `reply ${side ? "c-ppo" : "c-sft"}` });
      const head = add(card, "header");
      add(head, "h4", {}, `${name}${known(row[2 + side]) ? ` · ${lengthText(row[2 + side])} ${state.unit}` : ""}`);
      add(head, "b", {}, show(row[side]));
      add(card, "p", { class: `quoted ${texts[side] ? "" : "none"}`, dir: "auto" }, texts[side] || "an empty answer");
    });
    const margin = row[0] - row[1];
    const sure = 1 / (1 + Math.exp(-Math.abs(margin)));
    verdict.textContent = margin === 0
      ? "A tie: both get the same reward."
      : `Margin ${show(margin)}: the model is ${show(100 * clamp(sure, 0, 1), 0)}% sure that the ${margin > 0 ? "chosen" : "rejected"} answer is the better one${margin > 0 ? ", as labelled." : ": a mistake, or a wrong label."}`;
  };
}
