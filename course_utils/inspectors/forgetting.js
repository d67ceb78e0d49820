// The forgetting plot: loss on the base model's own text over loss on the task, along training.

import { add, brief, count, inspect, known, show, slider } from "./kit.js";
import { axes, extent, interact, line, ticks } from "./charts.js";
import { endNames, figure, mark, methodKeys, sign } from "./marks.js";

const STEPS = 200; // places of the slider

export function render({ model, el }) {
  return inspect({ model, el }, (view) => {
    const head = add(view.root, "div", { class: "head" });
    add(head, "h3", {}, "What each method forgets");
    const putKeys = methodKeys(head, view);
    const empty = add(view.root, "p", { class: "empty" }, "No measurements yet.");
    const board = add(view.root, "div", { class: "views" });
    const paths = figure(board, view, "base-corpus loss (up: forgotten) against task loss (right: learnt)", "full");
    const put = slider(paths.foot, "task loss to compare at", { min: 0, max: STEPS }, (level) => view.choose({ level }));
    const ranking = add(paths.box, "div", { class: "ranking" });
    const task = figure(board, view, "task loss by step");
    const base = figure(board, view, "base-corpus loss by step");
    const note = add(view.root, "p", { class: "fine" });
    return (state) => {
      const some = state.paths.length > 0;
      empty.hidden = some;
      board.style.display = some ? "" : "none";
      putKeys(state.methods);
      note.textContent = [
        state.dropped && `${count(state.dropped, "measurement")} left out: a loss is not a finite number.`,
        state.skipped && `This page leaves out ${count(state.skipped, "measurement")} between the others.`,
      ].filter(Boolean).join(" ");
      if (!some) return;
      const hidden = new Set(view.ui.hidden ?? []);
      const all = state.paths.flat().map((p) => p[1]);
      const [low, high] = [Math.min(...all), Math.max(...all)];
      const common = Math.max(...state.paths.map((p) => Math.min(...p.map((r) => r[1]))));
      const level = known(view.ui.level) ? high - ((high - low) * view.ui.level) / STEPS : common;
      const place = high > low ? ((high - level) / (high - low)) * STEPS : 0;
      put({ value: Math.round(place), text: `at task loss ${show(level, 3)}` });
      const drawn = paths.put([state, view.ui.hidden], (host, width) => drawPaths(host, width, state, hidden));
      const found = atLevel(state, level);
      drawn.follow(level, found);
      rank(ranking, state, hidden, found);
      for (const [chart, column, name] of [[task, 1, "task loss"], [base, 2, "base-corpus loss"]]) {
        chart.put([state, view.ui.hidden], (host, width) => drawSteps(host, width, state, hidden, column, name));
      }
    };
  });
}

const startOf = (state, path) => (known(state.before?.[1]) ? state.before[1] : path[0][2]);

// [step, base loss] where the task loss first is <= level, linear in between. The twin of `crossing`.
export function crossing(path, level) {
  let last = null;
  for (const [step, task, base] of path) {
    if (task <= level) {
      if (!last || last[1] === task) return [step, base];
      const share = (last[1] - level) / (last[1] - task);
      return [last[0] + share * (step - last[0]), last[2] + share * (base - last[2])];
    }
    last = [step, task, base];
  }
  return null;
}

// One entry per method: {i, step, base, lost}, or null where it never came down to the level.
export function atLevel(state, level) {
  return state.paths.map((path, i) => {
    const hit = crossing(path, level + 1e-9);
    return hit && { i, step: hit[0], base: hit[1], lost: hit[1] - startOf(state, path) };
  });
}

// ---- the paths ----------------------------------------------------------------------------------

const nats = (v) => `${show(v, 3)} nats`;
const signed = (v) => `${v >= 0 ? "+" : ""}${show(v, 3)}`;
const stops = (state, hidden, x, y) => state.methods.flatMap((m, k) => (hidden.has(m.key) ? [] : state.paths[k].map((p) => ({
  x: x(p), y: y(p), title: `${m.label}, step ${brief(p[0]).replace(/\.0+$/, "")}`,
  rows: [["task loss", nats(p[1])], ["base-corpus loss", nats(p[2])], ["forgotten", signed(p[2] - startOf(state, state.paths[k]))]],
}))));

function drawPaths(host, width, state, hidden) {
  const seen = state.methods.map((m, k) => [m, state.paths[k]]).filter(([m]) => !hidden.has(m.key));
  const rows = seen.flatMap(([, path]) => path);
  const tasks = extent(rows.map((r) => r[1]), { margin: 0.05 });
  const ends = seen.map(([m, path]) => [m, path.at(-1)]);
  const bases = extent([...rows.map((r) => r[2]), ...seen.map(([, path]) => startOf(state, path))]);
  const longest = Math.max(0, ...state.methods.map((m) => m.label.length));
  const { svg, box, sx, sy, plot } = axes(host, {
    width, height: width < 520 ? 300 : 350, margin: { left: 46, right: width < 520 ? 12 : Math.min(170, 7.2 * longest + 14), bottom: 38, top: 12 },
    label: "Base-corpus loss over task loss, one path per method. Arrow keys read the measurements.",
    x: { domain: [tasks[1], tasks[0]], ticks: () => ticks(...tasks, Math.max(3, Math.round(width / 90))), label: "loss on the task, nats per token: lower, better →" },
    y: { domain: bases, label: width < 520 ? null : "" },
  });
  const level = add(plot, "line", { y1: box.top, y2: box.bottom, class: "hair", visibility: "hidden" });
  const before = new Set(seen.map(([, path]) => startOf(state, path)));
  if (before.size === 1) {
    const y = sy([...before][0]);
    add(plot, "line", { x1: box.left, x2: box.right, y1: y, y2: y, class: "reference" });
    add(plot, "text", { x: box.right - 4, y: y + 14, "text-anchor": "end", class: "caption" }, "before training");
  }
  for (const [{ tone }, path] of seen) line(plot, path.map((p) => [sx(p[1]), sy(p[2])]), tone);
  for (const [{ tone, shape }, path] of seen) {
    const every = Math.max(1, Math.ceil(path.length / 40));
    path.forEach((p, i) => {
      const last = i === path.length - 1;
      if (!last && i % every) return;
      const dot = mark(plot, shape, sx(p[1]), sy(p[2]), last ? 6 : 3.6, tone);
      dot.style.opacity = last ? 1 : (0.35 + (0.55 * i) / path.length).toFixed(2); // earlier steps are paler
    });
  }
  if (width >= 520) {
    endNames(plot, ends.map(([m, p]) => ({ x: sx(p[1]), y: sy(p[2]), text: m.label, tone: m.tone })), { right: width - 4, low: box.top + 6, high: box.bottom - 6 });
  }
  const rings = state.methods.map((m) => add(plot, "circle", { r: 8, class: `ring ${m.tone}`, visibility: "hidden" }));
  interact(svg, stops(state, hidden, (p) => sx(p[1]), (p) => sy(p[2])), {});
  return {
    follow(at, found) {
      level.setAttribute("visibility", "visible");
      for (const end of ["x1", "x2"]) level.setAttribute(end, sx(at));
      found.forEach((hit, i) => {
        const on = hit && !hidden.has(state.methods[i].key);
        rings[i].setAttribute("visibility", on ? "visible" : "hidden");
        if (on) { rings[i].setAttribute("cx", sx(at)); rings[i].setAttribute("cy", sy(hit.base)); }
      });
    },
  };
}

// ---- who has forgotten least --------------------------------------------------------------------

function rank(host, state, hidden, found) {
  host.replaceChildren();
  const shown = found.filter((hit) => hit && !hidden.has(state.methods[hit.i].key)).sort((a, b) => a.lost - b.lost);
  const all = found.filter(Boolean).map((hit) => Math.abs(hit.lost));
  const most = Math.max(1e-9, ...all);
  add(host, "h4", {}, "base-corpus loss gained by then, nats per token: less is better");
  const row = (m, text) => {
    const one = add(host, "div", { class: `rank ${m.tone}` });
    sign(one, m);
    add(one, "span", { class: "who" }, m.label);
    return [one, add(one, "span", { class: "meter", "aria-hidden": "true" }), add(one, "b", {}, text)];
  };
  for (const { i, lost, step } of shown) {
    const [one, track] = row(state.methods[i], signed(lost));
    add(track, "i").style.width = `${Math.max(0, (100 * lost) / most)}%`;
    add(one, "span", { class: "aside" }, `step ${brief(step).replace(/\.0+$/, "")}`);
  }
  state.methods.forEach((m, i) => {
    if (found[i] || hidden.has(m.key)) return;
    const [one] = row(m, "–");
    add(one, "span", { class: "aside" }, `its lowest is ${show(Math.min(...state.paths[i].map((p) => p[1])), 3)}`);
  });
}

// ---- by step ------------------------------------------------------------------------------------

function drawSteps(host, width, state, hidden, column, name) {
  const seen = state.methods.map((m, k) => [m, state.paths[k]]).filter(([m]) => !hidden.has(m.key));
  const rows = seen.flatMap(([, path]) => path);
  const { svg, sx, sy, plot } = axes(host, {
    width, height: 180, margin: { left: 46, bottom: 24 },
    label: `${name} by step. Arrow keys read the measurements.`,
    x: { domain: extent(rows.map((r) => r[0]), { margin: 0.02 }), lead: "step", format: (v) => (Number.isInteger(v) && v >= 0 ? String(v) : "") },
    y: { domain: extent(rows.map((r) => r[column])), count: 4 },
  });
  for (const [{ tone, shape }, path] of seen) {
    line(plot, path.map((p) => [sx(p[0]), sy(p[column])]), tone);
    mark(plot, shape, sx(path.at(-1)[0]), sy(path.at(-1)[column]), 4.6, tone);
  }
  interact(svg, stops(state, hidden, (p) => sx(p[0]), (p) => sy(p[column])), {});
}
