// Drawing by hand: nodes, scales, axes, lines, and a cursor that pointer and arrow keys move.
// Text goes in as text nodes only; colours are CSS classes, so light and dark need no redrawing.

import { add, clamp, known, show, speak, tipFor, on } from "./kit.js";

// ---- scales: value -> pixel ---------------------------------------------------------------------

export const linear = (domain, range) => (v) =>
  range[0] + ((v - domain[0]) / (domain[1] - domain[0])) * (range[1] - range[0]);

// A square-root axis, as reward is about linear in √KL (Gao et al. 2022).
const bend = (v) => Math.sign(v) * Math.sqrt(Math.abs(v));
export const rooted = (domain, range) => {
  const inner = linear(domain.map(bend), range);
  return (v) => inner(bend(v));
};

// Round numbers in [low, high], about `count` of them.
export function ticks(low, high, count) {
  const power = 10 ** Math.floor(Math.log10((high - low) / Math.max(1, count)));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= ((high - low) / Math.max(1, count)) * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) {
    found.push(Number((i * step).toPrecision(12)));
  }
  return found;
}

// Round numbers that stay apart on a square-root axis.
export function rootTicks(domain, range) {
  const place = rooted(domain, range);
  const size = Math.max(Math.abs(domain[0]), Math.abs(domain[1]));
  const power = 10 ** Math.floor(Math.log10(size || 1));
  const round = [0, ...[0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5].map((m) => Number((m * power).toPrecision(3)))];
  let last = -Infinity;
  return round.filter((v) => {
    if (v < domain[0] || v > domain[1] || (v && place(v) - last < 34)) return false;
    last = place(v);
    return true;
  });
}

export function tickText(value, all) {
  const step = all.length > 1 ? Math.min(...all.slice(1).map((v, i) => v - all[i])) : 1;
  const size = Math.abs(value);
  if (size && (size >= 1e5 || size < 1e-4)) return value.toExponential(0).replace("-", "−").replace("+", "");
  return show(value, Math.max(0, Math.min(6, -Math.floor(Math.log10(step) + 1e-9))));
}

// [low, high] around the finite values, never of width 0; `zero` makes 0 part of it.
export function extent(values, { margin = 0.08, zero = false } = {}) {
  let [low, high] = zero ? [0, 0] : [Infinity, -Infinity];
  for (const v of values) if (known(v)) { low = Math.min(low, v); high = Math.max(high, v); }
  if (low > high || (zero && low === high)) return [0, 1];
  const room = (high - low) * margin || Math.abs(high) * 0.1 || 1;
  return [zero && low === 0 ? 0 : low - room, zero && high === 0 ? 0 : high + room];
}

// ---- axes and lines -----------------------------------------------------------------------------

// A fresh svg with axes and grid in `host`. `x`, `y`: {domain, scale, ticks, label or lead (beside the ticks), format, count}.
export function axes(host, { width, height, x, y, label, margin = {} }) {
  host.querySelector(":scope > svg")?.remove();
  const { left = 42, right = 10, top = 8, bottom = 22 } = margin;
  const svg = add(host, "svg", { viewBox: `0 0 ${width} ${height}`, role: "img", tabindex: 0, "aria-label": label });
  const box = { left, right: width - right, top, bottom: height - bottom };
  const [xs, ys] = [[box.left, box.right], [box.bottom, box.top]];
  const sx = (x.scale ?? linear)(x.domain, xs);
  const sy = (y.scale ?? linear)(y.domain, ys);
  const g = add(svg, "g", { class: "axes", "aria-hidden": "true" });
  const yTicks = y.ticks?.(y.domain, ys) ?? ticks(...y.domain, y.count ?? Math.max(2, Math.round((box.bottom - box.top) / 38)));
  for (const v of yTicks) {
    add(g, "line", { x1: box.left, x2: box.right, y1: sy(v), y2: sy(v), class: v === 0 ? "zero" : "grid" });
    add(g, "text", { x: box.left - 7, y: sy(v), dy: "0.32em", "text-anchor": "end" }, (y.format ?? tickText)(v, yTicks));
  }
  const xTicks = x.ticks?.(x.domain, xs) ?? ticks(...x.domain, x.count ?? Math.max(2, Math.round((box.right - box.left) / 80)));
  add(g, "line", { x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom, class: "axis" });
  for (const v of xTicks) {
    add(g, "line", { x1: sx(v), x2: sx(v), y1: box.bottom, y2: box.bottom + 4, class: "axis" });
    add(g, "text", { x: sx(v), y: box.bottom + 16, "text-anchor": "middle" }, (x.format ?? tickText)(v, xTicks));
  }
  if (x.lead) add(g, "text", { x: box.left - 7, y: box.bottom + 16, "text-anchor": "end" }, x.lead);
  if (x.label) add(g, "text", { x: box.right, y: height - 3, "text-anchor": "end", class: "label" }, x.label);
  if (y.label) add(g, "text", { x: 0, y: 11, class: "label" }, y.label);
  return { svg, box, sx, sy, plot: add(svg, "g") };
}

// A line through [x, y] pixels; a point that is not finite breaks it. Far more points than pixels
// are thinned to the lowest and highest of each column, so that no spike is lost.
export function line(parent, points, classes) {
  let d = "";
  let pen = "M";
  for (const [x, y] of perColumn(points)) {
    if (known(x) && known(y)) {
      d += `${pen}${x.toFixed(1)},${y.toFixed(1)}`;
      pen = "L";
    } else pen = "M";
  }
  if (d.includes("M") && !d.includes("L")) d += "h0.01"; // one point: a dot, by its round cap
  return add(parent, "path", { d, class: `trace ${classes}` });
}

function perColumn(points) {
  if (points.length < 2000) return points;
  const found = [];
  let column = [];
  const flush = () => {
    if (column.length > 4) {
      const finite = column.filter(([, y]) => known(y)).sort((a, b) => a[1] - b[1]);
      column = finite.length ? [finite[0], finite[finite.length - 1]].sort((a, b) => a[0] - b[0]) : column.slice(0, 1);
    }
    found.push(...column);
    column = [];
  };
  for (const point of points) {
    if (column.length && Math.round(point[0]) !== Math.round(column[0][0])) flush();
    column.push(point);
  }
  flush();
  return found;
}

// The mean of each value and its neighbours, as many on either side: it lags nowhere, and at both ends
// it is the value itself. The twin of `smooth` in dashboard.py.
export function smooth(values) {
  const finite = values.map((v, i) => [v, i]).filter(([v]) => known(v));
  const most = clamp(Math.round(finite.length / 30), 1, 25);
  const sums = [0];
  for (const [v] of finite) sums.push(sums.at(-1) + v);
  const found = values.map((v) => (v === undefined ? v : null));
  finite.forEach(([, i], k) => {
    const half = Math.min(most, k, finite.length - 1 - k);
    found[i] = (sums[k + half + 1] - sums[k - half]) / (2 * half + 1);
  });
  return found;
}

// ---- reading values -----------------------------------------------------------------------------

// Pointer and arrow keys move between `stops` ({x, y, title, rows}). `onMove(index | null)` draws
// the cursor, `onPick(index)` is a click, Enter or blank; `flat` looks for the nearest x only.
export function interact(svg, stops, { flat = false, onMove = null, onPick = null, tips = true } = {}) {
  if (!stops.length) return;
  let at = -1;
  const tip = tipFor(svg);
  const go = (index, spoken) => {
    at = index;
    onMove?.(at);
    const stop = stops[at];
    const frame = svg.getBoundingClientRect();
    const scale = frame.width / svg.viewBox.baseVal.width;
    if (tips) tip.show(frame.left + stop.x * scale, frame.top + stop.y * scale, stop.title, stop.rows);
    if (spoken) speak(svg, `${stop.title}: ${stop.rows.map((r) => r.join(" ")).join(", ")}`);
  };
  const leave = () => {
    at = -1;
    onMove?.(null);
    tip.hide();
  };
  const nearest = (event) => {
    const frame = svg.getBoundingClientRect();
    const scale = frame.width / svg.viewBox.baseVal.width;
    const [x, y] = [(event.clientX - frame.left) / scale, (event.clientY - frame.top) / scale];
    const far = (s) => (flat ? Math.abs(s.x - x) : Math.hypot(s.x - x, s.y - y));
    let found = 0;
    stops.forEach((s, i) => { if (far(s) < far(stops[found])) found = i; });
    return flat || far(stops[found]) < 40 ? found : -1;
  };
  const point = (event) => {
    const found = nearest(event);
    if (found < 0) leave();
    else if (found !== at) go(found, false);
  };
  on(svg, "pointermove", point);
  on(svg, "pointerdown", point);
  on(svg, "pointerleave", leave);
  on(svg, "blur", leave);
  on(svg, "click", (event) => {
    const found = nearest(event);
    if (found >= 0) onPick?.(found);
  });
  on(svg, "keydown", (event) => {
    const moves = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 };
    if (event.key in moves) {
      const from = at < 0 ? (moves[event.key] > 0 ? -1 : stops.length) : at;
      go(Math.max(0, Math.min(stops.length - 1, from + moves[event.key])), true);
    } else if (event.key === "Home" || event.key === "End") {
      go(event.key === "Home" ? 0 : stops.length - 1, true);
    } else if ((event.key === "Enter" || event.key === " ") && at >= 0 && onPick) {
      onPick(at);
    } else if (event.key === "Escape") {
      leave();
    } else {
      return;
    }
    event.preventDefault();
  });
}
