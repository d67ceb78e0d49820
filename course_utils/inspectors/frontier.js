// The frontier: what each method gets for the KL that it spends, and the answers behind each point.

import { add, brief, choice, clamp, count, inspect, known, on, show, slider } from "./kit.js";
import { axes, extent, interact, line, linear, rooted, rootTicks } from "./charts.js";
import { endNames, figure, mark, methodKeys, sign } from "./marks.js";
import { answerCard, partScale, sentenceReadout } from "./cards.js";

const STEPS = 100; // places of the budget slider

export function render({ model, el }) {
  return inspect({ model, el }, (view) => {
    const head = add(view.root, "div", { class: "head" });
    add(head, "h3", {}, "Reward for KL: the frontier");
    const tools = add(head, "div", { class: "controls" });
    const markRoot = choice(tools, "KL axis", [
      [true, "√KL", "reward is about linear in the root of the KL"], [false, "KL", "plain axis"],
    ], (root) => view.choose({ root }));
    const putKeys = methodKeys(view.root, view);
    const empty = add(view.root, "p", { class: "empty" }, "No points yet.");
    const board = add(view.root, "div", { class: "views" });
    const chart = figure(board, view, "gold reward over KL to the reference", "full");
    const putBudget = slider(chart.foot, "KL budget", { min: 0, max: STEPS }, (k) => view.choose({ budget: k }));
    const ranking = add(view.root, "div", { class: "ranking" });
    const said = add(view.root, "section", { class: "reader", "aria-label": "answers of the chosen point" });
    const note = add(view.root, "p", { class: "fine" });
    return (state) => {
      const hidden = new Set(view.ui.hidden ?? []);
      const some = state.points.length > 0;
      empty.hidden = some;
      for (const node of [board, ranking, said, tools]) node.style.display = some ? "" : "none";
      putKeys(state.methods);
      note.textContent = notes(state);
      if (!some) return;
      markRoot(Boolean(view.ui.root));
      const most = Math.max(0, ...state.points.map((p) => p.kl));
      const k = view.ui.budget ?? STEPS;
      const budget = k >= STEPS ? Infinity : most * (k / STEPS) ** 2;
      putBudget({ value: k, text: budget === Infinity ? "KL budget: any" : `KL budget: ${brief(budget)} nats` });
      const drawn = chart.put([state, view.ui.root, view.ui.hidden], (host, width) => draw(host, width, view, hidden, most));
      drawn.follow(view.ui.at, budget);
      rank(ranking, view, state, hidden, budget);
      showPoint(said, view, state);
    };
  });
}

function notes({ dropped, without }) {
  const found = [];
  if (dropped) found.push(`${count(dropped, "point")} left out: no finite KL or gold reward.`);
  if (without) found.push(`The answers of ${count(without, "point")} did not fit on this page.`);
  return found.join(" ");
}

// Each method's best point among those of KL <= budget, best first. The twin of best_within.
export function bestWithin(points, budget) {
  const best = new Map();
  points.forEach((p, i) => {
    const held = best.get(p.method);
    if (p.kl <= budget && (held === undefined || p.gold > points[held].gold)) best.set(p.method, i);
  });
  return [...best.values()].sort((a, b) => points[b].gold - points[a].gold);
}

// ---- the chart ----------------------------------------------------------------------------------

function draw(host, width, view, hidden, most) {
  const { state } = view;
  const { root } = view.ui;
  const seen = state.points.map((p, i) => ({ ...p, i })).filter((p) => !hidden.has(p.method));
  const farthest = [...seen].sort((a, b) => b.kl - a.kl)[0];
  const endLabel = state.methods.find((m) => m.key === farthest?.method)?.label ?? "";
  const right = width < 520 ? 14 : clamp(7.4 * endLabel.length + 14, 30, 170);
  const low = Math.min(0, ...state.points.map((p) => p.kl));
  const { svg, box, sx, sy, plot } = axes(host, {
    width, height: width < 520 ? 300 : 380, margin: { left: 40, right, bottom: 38, top: 12 },
    label: "Gold reward over KL, one line per method. Arrow keys read the points, Enter shows a point's answers.",
    x: {
      domain: [low, most * 1.03 || 1], scale: root ? rooted : linear, ticks: root ? rootTicks : undefined, format: root ? String : undefined,
      label: width < 520 ? "KL, nats per answer" : `KL to the reference, nats per answer${root ? " (√ scale)" : ""}`,
    },
    y: { domain: extent(seen.flatMap((p) => [p.gold, p.low, p.high])) },
  });
  const beyond = add(plot, "rect", { y: box.top, height: box.bottom - box.top, class: "shade", visibility: "hidden" });
  const hair = add(plot, "line", { y1: box.top, y2: box.bottom, class: "hair", visibility: "hidden" });
  const ends = [];
  for (const { key, label, tone } of state.methods) {
    const own = seen.filter((p) => p.method === key);
    if (!own.length) continue;
    for (const p of own) if (known(p.low) && known(p.high)) add(plot, "line", { x1: sx(p.kl), x2: sx(p.kl), y1: sy(p.low), y2: sy(p.high), class: `whisker ${tone}` });
    if (own.length > 1) line(plot, own.map((p) => [sx(p.kl), sy(p.gold)]), tone);
    const last = own.at(-1);
    ends.push({ x: sx(last.kl), y: sy(last.gold), text: label, tone });
  }
  for (const { key, tone, shape } of state.methods) {
    for (const p of seen) if (p.method === key) mark(plot, shape, sx(p.kl), sy(p.gold), 4.6, tone).dataset.point = p.i;
  }
  if (width >= 520) endNames(plot, ends, { right: width - 4, low: box.top + 6, high: box.bottom - 6 });
  const ring = add(plot, "circle", { r: 10, class: "halo", visibility: "hidden" });
  const names = Object.fromEntries(state.methods.map((m) => [m.key, m.label]));
  const stops = seen.map((p) => ({
    x: sx(p.kl), y: sy(p.gold), title: [names[p.method], p.label].filter((t, i, all) => t && all.indexOf(t) === i).join(" · "),
    rows: [["gold", show(p.gold)], ["95% interval", known(p.low) ? `${show(p.low)} … ${show(p.high)}` : "–"], ["KL", `${brief(p.kl)} nats`], ["answers", String(p.answers.length)]],
  }));
  interact(svg, stops, { onPick: (i) => view.choose({ at: seen[i].i }) });
  svg.style.cursor = "pointer";
  return {
    follow(at, budget) {
      const p = seen.find(({ i }) => i === at);
      ring.setAttribute("visibility", p ? "visible" : "hidden");
      if (p) { ring.setAttribute("cx", sx(p.kl)); ring.setAttribute("cy", sy(p.gold)); }
      const limited = budget !== Infinity;
      for (const node of [beyond, hair]) node.setAttribute("visibility", limited ? "visible" : "hidden");
      if (!limited) return;
      const x = clamp(sx(budget), box.left, box.right);
      beyond.setAttribute("x", x);
      beyond.setAttribute("width", box.right - x);
      for (const end of ["x1", "x2"]) hair.setAttribute(end, x);
    },
  };
}

// ---- who gets most for the budget ---------------------------------------------------------------

function rank(host, view, state, hidden, budget) {
  const order = bestWithin(state.points, budget).filter((i) => !hidden.has(state.points[i].method));
  const focused = document.activeElement?.dataset?.rank;
  host.replaceChildren();
  add(host, "h4", {}, budget === Infinity ? "each method's best point" : `the best for at most ${brief(budget)} nats`);
  const golds = state.points.map((p) => p.gold);
  const [least, most] = [Math.min(0, ...golds), Math.max(0, ...golds)];
  const across = (v) => (100 * (v - least)) / (most - least || 1);
  for (const i of order) {
    const p = state.points[i];
    const method = state.methods.find((m) => m.key === p.method);
    const row = add(host, "button", { type: "button", class: `rank ${method.tone}`, "data-rank": p.method, "aria-pressed": String(i === view.ui.at), title: "show its answers" });
    sign(row, method);
    add(row, "span", { class: "who" }, method.label);
    const bar = add(add(row, "span", { class: "meter", "aria-hidden": "true" }), "i");
    bar.style.left = `${Math.min(across(0), across(p.gold))}%`;
    bar.style.width = `${Math.abs(across(p.gold) - across(0))}%`;
    add(row, "b", {}, show(p.gold));
    add(row, "span", { class: "aside" }, [p.label !== method.label && p.label, `${brief(p.kl)} nats`].filter(Boolean).join(", "));
    on(row, "click", () => view.choose({ at: i }));
  }
  if (!order.length) add(host, "p", { class: "fine" }, "No method has a point of so little KL.");
  if (focused) host.querySelector(`[data-rank="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
}

// ---- answers ------------------------------------------------------------------------------------

function showPoint(host, view, state) {
  const shown = `${view.ui.at}`;
  if (host.dataset.at === shown && host.state === state) return;
  host.dataset.at = shown;
  host.state = state;
  host.replaceChildren();
  const p = state.points[view.ui.at];
  if (!p) {
    add(host, "p", { class: "fine" }, "Click a point, or choose one with the arrow keys and Enter, to read its answers.");
    return;
  }
  const method = state.methods.find((m) => m.key === p.method);
  const line = add(host, "div", { class: "facts" });
  add(line, "b", {}, [method.label, p.label !== method.label && p.label].filter(Boolean).join(" · "));
  add(line, "span", {}, `gold ${show(p.gold)}, KL ${brief(p.kl)} nats`);
  if (!p.answers.length) {
    add(host, "p", { class: "fine" }, "No answer of this point was recorded.");
    return;
  }
  const readout = sentenceReadout(host);
  readout.clear(p.answers.some((a) => a.said));
  for (const answer of p.answers) {
    if (answer.prompt) add(host, "p", { class: "prompt", dir: "auto" }, answer.prompt);
    const other = p.method === "sft" ? null : reference(state, answer.prompt);
    const cards = add(host, "div", { class: "replies broad" });
    const scale = partScale([answer, other ?? answer]);
    const options = { parts: state.parts, scale, note: readout.say };
    if (other) answerCard(cards, state.methods.find((m) => m.key === "sft"), other, options);
    answerCard(cards, method, answer, options);
  }
}

// What the reference, SFT, answers to the same prompt.
function reference(state, prompt) {
  for (const p of state.points) {
    if (p.method !== "sft") continue;
    const found = p.answers.find((a) => a.prompt === prompt);
    if (found) return found;
  }
  return null;
}
