// The adapter composer: a slider per adapter, the style scores of the mixture, what each slider does,
// and the answers. With a kernel every setting is measured; without one it is interpolated.

import { add, clamp, count, inspect, known, on, show } from "./kit.js";
import { axes, extent, interact, line } from "./charts.js";
import { figure, mark, sign } from "./marks.js";

const PATIENCE = 10000; // ms after which a question to the kernel counts as lost

export function render({ model, el }) {
  return inspect({ model, el }, (view) => {
    add(add(view.root, "div", { class: "head" }), "h3", {}, "Mixing adapters");
    const mix = add(view.root, "div", { class: "mix" });
    const knobs = add(mix, "div", { class: "dials", role: "group", "aria-label": "weights of the adapters" });
    const styles = add(mix, "div", { class: "styles", role: "list", "aria-label": "style scores" });
    const said = add(view.root, "p", { class: "state", role: "status" });
    const sweeps = add(view.root, "div", { class: "sweeps" });
    const answers = add(view.root, "section", { class: "reader", "aria-label": "answers" });
    const asker = makeAsker(view);
    let drawn = null; // [adapters and levels, controls, figures]
    return (state) => {
      const key = JSON.stringify([state.adapters, state.levels]);
      if (drawn?.key !== key) {
        knobs.replaceChildren();
        sweeps.replaceChildren();
        drawn = { key, put: makeKnobs(knobs, view, asker), charts: state.adapters.map((a) => figure(sweeps, view, `as ${a.label} is turned up`)) };
      }
      const weights = view.ui.weights;
      drawn.put(weights);
      const now = current(state, weights, asker);
      drawStyles(styles, state, now.scores);
      tell(said, state, now);
      const some = state.scores.length > 0;
      sweeps.style.display = some ? "" : "none";
      if (some) drawn.charts.forEach((chart, i) => drawSweep(chart, view, asker, i));
      drawAnswers(answers, state, now);
    };
  });
}

// ---- grid ---------------------------------------------------------------------------------------

function cell(levels, weight) {
  const w = clamp(weight, levels[0], levels.at(-1));
  let k = 0;
  for (let i = 1; i < levels.length - 1; i++) if (levels[i] <= w) k = i;
  return [k, (w - levels[k]) / (levels[k + 1] - levels[k])];
}

// Multilinear on the grid, null where a corner is unknown. The twin of `interpolate` in composer.py.
export function interpolate(grid, levels, weights) {
  const cells = weights.map((w) => cell(levels, w));
  let total = grid[0].map(() => 0);
  for (let corner = 0; corner < 2 ** cells.length; corner++) {
    let [share, index] = [1, 0];
    cells.forEach(([k, t], i) => {
      const up = (corner >> (cells.length - 1 - i)) & 1;
      share *= up ? t : 1 - t;
      index = index * levels.length + k + up;
    });
    if (share) total = total.map((a, s) => (known(a) && known(grid[index][s]) ? a + share * grid[index][s] : null));
  }
  return total;
}

export function nearestSetting(levels, weights) {
  const place = (w) => levels.reduce((best, v, i) => (Math.abs(v - w) < Math.abs(levels[best] - w) ? i : best), 0);
  const at = weights.map(place);
  return { index: at.reduce((sum, k) => sum * levels.length + k, 0), weights: at.map((k) => levels[k]) };
}

const same = (a, b) => a.every((v, i) => Math.abs(v - b[i]) < 1e-6);

// What is known of the sliders' setting: {scores, answers, how: measured | asking | between | nothing, near}.
function current(state, weights, asker) {
  const { result } = state;
  if (result?.scores && same(result.weights, weights)) return { scores: result.scores, answers: result.answers, how: "measured", near: weights };
  const asking = state.kernel && asker.waiting();
  if (!state.scores.length) return { scores: result?.scores ?? state.styles.map(() => null), answers: result?.answers ?? [], how: asking ? "asking" : "nothing", near: result?.weights };
  const near = nearestSetting(state.levels, weights);
  const exact = same(near.weights, weights);
  return {
    scores: interpolate(state.scores, state.levels, weights), answers: state.answers[near.index], near: near.weights,
    how: exact ? "measured" : asking ? "asking" : "between",
  };
}

const mixture = (state, weights) => state.adapters.map((a, i) => `${show(weights[i])} ${a.label}`).join(" + ");

function tell(host, state, now) {
  host.replaceChildren();
  const measured = count(state.scores.length, "mixture");
  const [short, long] = {
    measured: ["measured", "These scores and answers were made with exactly this mixture."],
    asking: ["asking the kernel …", state.scores.length ? "Until it answers: interpolated scores, the nearest measured answers. It answers once no cell is running." : "It answers once no cell is running."],
    between: ["interpolated", `Scores lie between those of ${measured} measured beforehand; the answers are those of the nearest one${now.near ? `, ${mixture(state, now.near)}` : ""}.${state.kernel ? "" : " With a kernel, every setting is measured."}`],
    nothing: ["not measured", state.kernel ? "Move a slider to measure." : "Nothing was measured beforehand, and there is no kernel to ask."],
  }[now.how];
  add(host, "b", {}, `${{ measured: "●", asking: "◌", between: "◐", nothing: "○" }[now.how]} ${short}`);
  add(host, "span", {}, long);
}

// ---- asking the kernel --------------------------------------------------------------------------

// At most one question is open; while it is, only the newest setting waits for its turn.
function makeAsker(view) {
  let [seq, open, wanted, timer] = [0, null, null, null];
  const send = () => {
    seq += 1;
    open = { seq, at: Date.now() };
    const weights = wanted;
    wanted = null;
    view.send({ kind: "weights", weights, seq });
    clearTimeout(timer);
    timer = setTimeout(view.later, PATIENCE + 50);
  };
  const settle = () => {
    if (open && (view.state.result?.seq === open.seq || Date.now() - open.at > PATIENCE)) open = null;
    if (!open && wanted) send();
  };
  return {
    ask(weights) {
      if (!view.state.kernel) return;
      wanted = weights;
      settle();
    },
    waiting() {
      settle();
      return Boolean(open);
    },
  };
}

function choose(view, asker, weights) {
  view.choose({ weights });
  const { result, levels, scores } = view.state;
  const held = (result?.scores && same(result.weights, weights)) || (scores.length && same(nearestSetting(levels, weights).weights, weights));
  if (!held) asker.ask(weights);
}

// ---- sliders ------------------------------------------------------------------------------------

function makeKnobs(host, view, asker) {
  const { adapters, levels } = view.state;
  const [low, high] = [levels[0], levels.at(-1)];
  add(host, "h4", {}, "weights");
  const rows = adapters.map((adapter, i) => {
    const row = add(host, "label", { class: `dial ${adapter.tone}` });
    sign(row, adapter);
    add(row, "span", {}, adapter.label);
    const range = add(row, "input", { type: "range", min: low, max: high, step: Number(((high - low) / 40).toPrecision(3)), "aria-label": `weight of ${adapter.label}` });
    range.style.accentColor = "var(--c)";
    const value = add(row, "b");
    on(range, "input", () => choose(view, asker, view.ui.weights.map((w, k) => (k === i ? Number(range.value) : w))));
    return [range, value];
  });
  const presets = add(host, "div", { class: "quick", role: "group", "aria-label": "presets" });
  const preset = (label, of) => on(add(presets, "button", { type: "button" }, label), "click", () => choose(view, asker, adapters.map((_, i) => clamp(of(i), low, high))));
  preset("none", () => 0);
  if (adapters.length <= 6) adapters.forEach((a, k) => preset(`only ${a.label}`, (i) => (i === k ? 1 : 0)));
  if (adapters.length > 1) {
    preset("average", () => Math.round((100 / adapters.length)) / 100);
    preset("sum", () => 1);
  }
  return (weights) => rows.forEach(([range, value], i) => {
    if (Number(range.value) !== weights[i]) range.value = weights[i];
    range.setAttribute("aria-valuetext", show(weights[i]));
    value.textContent = show(weights[i]);
  });
}

// ---- scores -------------------------------------------------------------------------------------

function drawStyles(host, state, scores) {
  host.replaceChildren();
  add(host, "h4", {}, "style scores");
  const all = [...state.scores.flat(), ...scores].filter(known);
  const [low, high] = [Math.min(0, ...all), Math.max(0, ...all)];
  const across = (v) => (100 * (v - low)) / (high - low || 1);
  const zero = state.scores.length ? interpolate(state.scores, state.levels, state.adapters.map(() => 0)) : [];
  state.styles.forEach((style, s) => {
    const row = add(host, "div", { class: `style ${style.tone}`, role: "listitem", "aria-label": `${style.label} ${show(scores[s])}` });
    sign(row, style);
    add(row, "span", {}, style.label);
    const track = add(row, "span", { class: "meter", "aria-hidden": "true" });
    if (known(scores[s])) {
      const bar = add(track, "i");
      bar.style.left = `${Math.min(across(0), across(scores[s]))}%`;
      bar.style.width = `${Math.abs(across(scores[s]) - across(0))}%`;
    }
    if (known(zero[s])) add(track, "u", { title: `without adapters: ${show(zero[s])}` }).style.left = `${across(zero[s])}%`;
    add(row, "b", {}, show(scores[s]));
  });
  if (!state.styles.length) add(host, "p", { class: "fine" }, "No scores yet.");
  else if (zero.some(known) && state.levels[0] <= 0) add(host, "p", { class: "fine" }, "The upright line: without any adapter.");
}

// ---- what one slider does, the others held ------------------------------------------------------

function drawSweep(chart, view, asker, i) {
  const { state } = view;
  const { weights } = view.ui;
  const others = weights.filter((_, k) => k !== i).join();
  const at = (w) => weights.map((v, k) => (k === i ? w : v));
  const drawn = chart.put([state.scores, others], (host, width) => {
    const { levels } = state;
    const curves = levels.map((w) => interpolate(state.scores, levels, at(w)));
    const { svg, box, sx, sy, plot } = axes(host, {
      width, height: 150, margin: { left: 40, bottom: 22, right: 12 },
      label: `Style scores by the weight of ${state.adapters[i].label}, the other weights held. Arrow keys read the measured weights, Enter chooses one.`,
      x: { domain: [levels[0], levels.at(-1)], count: 4 },
      y: { domain: extent(state.scores.flat()), count: 3 },
    });
    state.styles.forEach(({ tone, shape }, s) => {
      line(plot, levels.map((w, k) => [sx(w), known(curves[k][s]) ? sy(curves[k][s]) : null]), tone);
      levels.forEach((w, k) => known(curves[k][s]) && mark(plot, shape, sx(w), sy(curves[k][s]), 3.6, tone));
    });
    const hair = add(plot, "line", { y1: box.top, y2: box.bottom, class: "hair" });
    interact(svg, levels.map((w, k) => ({
      x: sx(w), y: box.top + 20, title: `${state.adapters[i].label} ${show(w)}`, rows: state.styles.map((m, s) => [m.label, show(curves[k][s])]),
    })), { flat: true, onPick: (k) => choose(view, asker, view.ui.weights.map((v, n) => (n === i ? levels[k] : v))) });
    return { hair, sx };
  });
  const x = drawn.sx(clamp(weights[i], state.levels[0], state.levels.at(-1)));
  for (const end of ["x1", "x2"]) drawn.hair.setAttribute(end, x);
}

// ---- answers ------------------------------------------------------------------------------------

function drawAnswers(host, state, now) {
  const texts = state.prompts.map((p, i) => [p, now.answers?.[i]]).filter(([, text]) => known(text?.length));
  const key = JSON.stringify([texts, state.cut]);
  if (host.dataset.key === key) return;
  host.dataset.key = key;
  host.replaceChildren();
  host.hidden = !state.prompts.length;
  if (!texts.length) add(host, "p", { class: "fine" }, state.cut ? "This page holds the answers of the sliders' ends only." : "No answers at this setting.");
  const cards = add(host, "div", { class: "replies broad" });
  for (const [prompt, text] of texts) {
    const card = add(cards, "article", { class: "reply" });
    add(card, "p", { class: "prompt", dir: "auto" }, prompt);
    add(card, "p", { class: `quoted ${text ? "" : "none"}`, dir: "auto" }, text || "an empty answer");
  }
}
