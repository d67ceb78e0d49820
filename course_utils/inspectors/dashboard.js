// The dashboard: one small chart per quantity with one cursor through all of them, and the path
// that training takes through reward and KL.

import { add, brief, choice, count, inspect, known, on, responsive } from "./kit.js";
import { axes, extent, interact, line, linear, rooted, rootTicks, smooth } from "./charts.js";

export function render({ model, el }) {
  return inspect({ model, el }, (view) => {
    const head = add(view.root, "div", { class: "head" });
    const title = add(head, "h3");
    const lamp = add(head, "span", { class: "lamp fine", role: "status" });
    const progress = add(add(view.root, "div", { class: "progress", "aria-hidden": "true" }), "i");
    const tiles = add(view.root, "div", { class: "tiles" });
    const board = add(view.root, "div", { class: "board" });
    const foot = add(view.root, "div", { class: "controls" });
    foot.style.marginTop = "14px";
    const markSmooth = choice(foot, "curves", [[true, "smoothed", "each point mixed with those before it"], [false, "as measured"]],
      (smooth) => view.choose({ smooth }));
    const more = add(foot, "button", { type: "button" });
    on(more, "click", () => view.choose({ more: !view.ui.more }));
    const note = add(foot, "span", { class: "fine" });

    const drawn = []; // one entry per chart: follow(row index | null) moves its cursor
    let at = null;
    const follow = (index) => {
      at = index;
      for (const chart of drawn) chart.follow(at);
      showTiles(view, tiles, at);
    };
    const update = (state) => {
      const { rows } = state;
      const isPPO = rows.some((r) => known(r.kl) && known(r.reward));
      title.textContent = `${isPPO ? "Reward and KL" : "Training"}${state.name ? ` · ${state.name}` : ""}`;
      showLamp(lamp, state);
      progress.style.width = `${state.steps ? Math.min(100, (100 * (rows.at(-1)?.step ?? 0)) / state.steps) : 0}%`;
      markSmooth(view.ui.smooth);
      const panels = state.panels.filter((p) => view.ui.more || !p.more);
      more.hidden = panels.length === state.panels.length && !view.ui.more;
      more.textContent = view.ui.more ? "fewer curves" : `${state.panels.length - panels.length} more curves`;
      more.setAttribute("aria-expanded", String(Boolean(view.ui.more)));
      note.textContent = state.skipped ? `This page holds ${count(rows.length, "step")} of ${count(rows.length + state.skipped, "step")}.` : "";
      const focus = board.contains(document.activeElement) ? document.activeElement.parentElement.dataset.name : null;
      drawn.length = 0;
      board.replaceChildren();
      if (!rows.length) add(board, "p", { class: "empty" }, state.live ? "Waiting for the first step …" : "No steps yet.");
      if (isPPO) drawn.push(path(view, board, follow));
      for (const panel of rows.length ? panels : []) drawn.push(curves(view, board, panel, follow));
      if (focus) board.querySelector(`[data-name="${CSS.escape(focus)}"] > svg`)?.focus({ preventScroll: true });
      follow(at !== null && at < rows.length ? at : null);
    };
    requestAnimationFrame(() => responsive(view.root, view.later));
    return update;
  });
}

function showLamp(lamp, state) {
  const last = state.rows.at(-1)?.step ?? 0;
  const done = state.steps && last >= state.steps;
  lamp.className = `lamp fine ${state.live && !done ? "on" : "off"}`;
  lamp.replaceChildren();
  add(lamp, "i");
  const of = state.steps ? ` of ${state.steps}` : "";
  add(lamp, "span", {}, `${done ? "✓ finished" : state.live ? "running" : "not running"} · step ${last}${of}`);
}

// Large numbers: at the cursor's step, or the last.
function showTiles(view, tiles, at) {
  const { rows } = view.state;
  tiles.replaceChildren();
  const row = at === null ? rows.at(-1) : rows[at];
  if (!row) return;
  const tile = (label, value, note, tone = "") => {
    const box = add(tiles, "div", { class: `tile ${tone}` });
    add(box, "span", {}, label);
    add(box, "b", {}, value);
    add(box, "em", {}, note);
  };
  tile("step", String(row.step), at === null ? "the last" : "at the cursor");
  for (const panel of view.state.panels.slice(0, view.state.panels[0]?.label === "loss" ? 3 : 5)) {
    for (const { column, label, tone } of panel.curves) {
      const first = rows.find((r) => known(r[column]))?.[column];
      const value = row[column] ?? (at === null ? rows.findLast((r) => known(r[column]))?.[column] : null);
      if (!known(first)) continue;
      const since = known(value) && value !== first ? `${value > first ? "+" : "−"}${brief(Math.abs(value - first))} since start` : rows.filter((r) => known(r[column])).length > 1 ? "as at the start" : "measured once";
      tile(panel.curves.length > 1 && panel.label !== "reward" ? `${panel.label}, ${label}` : panel.label === "reward" ? label : panel.label, brief(value), known(value) ? since : "not measured", tone);
    }
  }
}

// ---- one small chart ----------------------------------------------------------------------------

function curves(view, board, panel, follow) {
  const { rows } = view.state;
  const box = add(board, "div", { class: "panel" });
  const head = add(box, "div", { class: "panel-head", title: panel.help });
  const name = add(head, "h4", {}, `${panel.label} `);
  add(name, "em", {}, panel.unit);
  const output = add(head, "output");
  const host = add(box, "div", { "data-name": panel.label });
  const raw = panel.curves.map((c) => rows.map((r) => r[c.column]));
  const means = raw.map((values) => (view.ui.smooth ? smooth(values) : values));
  const steps = rows.map((r) => r.step);
  const all = [...raw.flat(), ...(known(panel.target) ? [panel.target] : [])];
  const { svg, box: frame, sx, sy, plot } = axes(host, {
    width: Math.max(180, host.clientWidth || 300),
    height: 150,
    label: `${panel.label} by step: ${panel.help} Arrow keys read the values.`,
    x: { domain: span(steps), format: whole, lead: "step" },
    y: { domain: extent(all, { zero: panel.zero }), count: 3 },
  });
  if (known(panel.target)) add(plot, "line", { x1: frame.left, x2: frame.right, y1: sy(panel.target), y2: sy(panel.target), class: "reference" });
  panel.curves.forEach((curve, k) => {
    const points = (values) => dense(steps, values).map(([x, y]) => [sx(x), known(y) ? sy(y) : null]);
    if (view.ui.smooth) line(plot, points(raw[k]), `${curve.tone} faint`);
    line(plot, points(means[k]), `${curve.tone} ${curve.held ? "held" : ""}`);
    const few = points(raw[k]).filter(([, y]) => known(y));
    if (few.length <= 12) for (const [x, y] of few) add(plot, "circle", { cx: x, cy: y, r: 3, class: `point ${curve.tone}` });
  });
  const hair = add(plot, "line", { y1: frame.top, y2: frame.bottom, class: "hair", visibility: "hidden" });
  const dots = panel.curves.map((c) => add(plot, "circle", { r: 4, class: `point ${c.tone}`, visibility: "hidden" }));
  const stops = rows.map((r) => ({
    x: sx(r.step), y: frame.top, title: `step ${r.step}`,
    rows: panel.curves.map((c) => [panel.curves.length > 1 ? c.label : panel.label, brief(r[c.column])]),
  }));
  interact(svg, stops, { flat: true, tips: false, onMove: follow });
  return {
    follow(at) {
      output.replaceChildren();
      panel.curves.forEach((curve, k) => {
        const i = at ?? raw[k].findLastIndex(known);
        const value = raw[k][i];
        add(output, "span", { class: curve.tone, title: curve.label }, `${panel.curves.length > 1 ? `${curve.label} ` : ""}${brief(value)}`);
        const seen = at !== null && known(value);
        dots[k].setAttribute("visibility", seen ? "visible" : "hidden");
        if (seen) place(dots[k], sx(steps[i]), sy(value));
      });
      hair.setAttribute("visibility", at === null ? "hidden" : "visible");
      if (at !== null) for (const end of ["x1", "x2"]) hair.setAttribute(end, sx(steps[at]));
    },
  };
}

const place = (dot, x, y) => { dot.setAttribute("cx", x); dot.setAttribute("cy", y); };
const span = (steps) => (steps.length > 1 ? [steps[0], Math.max(...steps)] : [(steps[0] ?? 1) - 1, (steps[0] ?? 1) + 1]);
const whole = (v) => (Number.isInteger(v) ? String(v) : "");

// Held-out values come every few steps: join them, and break a line only where a value is null.
const dense = (steps, values) => values.map((y, i) => [steps[i], y]).filter(([, y]) => y !== undefined);

// ---- reward against KL --------------------------------------------------------------------------

function path(view, board, follow) {
  const { rows } = view.state;
  const box = add(board, "div", { class: "panel wide" });
  box.style.gridRow = "span 2";
  const head = add(box, "div", { class: "panel-head" });
  add(head, "h4", {}, "the path: what the reward model says, and what it is worth, as the policy moves away");
  const host = add(box, "div", { "data-name": "path" });
  const bent = (column) => { const v = rows.map((r) => r[column]); return view.ui.smooth ? smooth(v) : v; };
  const kl = bent("kl");
  const lines = view.state.panels.find((p) => p.label === "reward").curves.map((c) => ({ ...c, values: bent(c.column) }));
  const width = Math.max(260, host.clientWidth || 600);
  const { svg, box: frame, sx, sy, plot } = axes(host, {
    width,
    height: 344,
    margin: { left: 42, right: 92, top: 10, bottom: 36 },
    label: "Reward against KL, one point per step. Arrow keys read the points.",
    x: {
      domain: [Math.min(0, ...kl.filter(known)), Math.max(0.01, ...kl.filter(known)) * 1.03],
      scale: rooted,
      ticks: rootTicks,
      format: (v) => String(v),
      label: width < 420 ? "KL, nats (√ scale)" : "KL to the reference, nats per answer (√ scale)",
    },
    y: { domain: extent(lines.flatMap((l) => l.values)) },
  });
  const ends = [];
  for (const { column, label, tone, held, values } of lines) {
    const points = values.map((y, i) => [known(kl[i]) ? sx(kl[i]) : null, known(y) ? sy(y) : null]);
    line(plot, points, `${tone} faint ${held ? "held" : ""}`);
    points.forEach(([x, y], i) => {
      if (!known(x) || !known(y)) return;
      const dot = add(plot, "circle", { cx: x, cy: y, r: 3.4, class: `point ${tone}` });
      dot.style.opacity = (0.25 + (0.75 * (i + 1)) / points.length).toFixed(2); // earlier steps are paler
    });
    const last = points.findLast(([x, y]) => known(x) && known(y));
    if (last) ends.push({ x: last[0], y: last[1], text: label, tone });
    if (column === "gold") peak(plot, rows, values, points, frame);
  }
  ends.sort((a, b) => a.y - b.y);
  ends.forEach((end, i) => {
    const y = i && end.y - ends[i - 1].y < 16 ? ends[i - 1].y + 16 : end.y;
    end.y = y;
    add(plot, "text", { x: Math.min(end.x + 10, frame.right + 4), y: y + 4, class: `name ${end.tone}` }, end.text);
  });
  const rings = lines.map((l) => add(plot, "circle", { r: 6, class: `point ${l.tone}`, visibility: "hidden" }));
  const main = lines[0].values;
  const seen = rows.map((_, i) => i).filter((i) => known(kl[i]) && known(main[i]));
  const stops = seen.map((i) => ({
    x: sx(kl[i]), y: sy(main[i]), title: `step ${rows[i].step}`,
    rows: [["KL", brief(rows[i].kl)], ...lines.map((l) => [l.label, brief(rows[i][l.column])])],
  }));
  interact(svg, stops, { flat: false, tips: true, onMove: (k) => follow(k === null ? null : seen[k]) });
  return {
    follow(at) {
      lines.forEach((l, k) => {
        const on = at !== null && known(kl[at]) && known(l.values[at]);
        rings[k].setAttribute("visibility", on ? "visible" : "hidden");
        if (on) place(rings[k], sx(kl[at]), sy(l.values[at]));
      });
    },
  };
}

// Marks where gold was highest, once it has come down from there visibly.
function peak(plot, rows, values, points, frame) {
  const finite = values.filter(known);
  if (finite.length < 8) return;
  const top = Math.max(...finite);
  const i = values.indexOf(top);
  if (top - finite.at(-1) < 0.1 * (top - Math.min(...finite))) return;
  const [x, y] = points[i];
  add(plot, "circle", { cx: x, cy: y, r: 8, class: "ring c-gold" });
  const right = x < (frame.left + frame.right) / 2;
  add(plot, "text", { x: right ? x + 2 : x - 2, y: y - 14, "text-anchor": right ? "start" : "end", class: "name c-gold" }, `gold's peak, step ${rows[i].step}`);
}
