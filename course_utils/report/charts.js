// Drawing by hand: SVG nodes, scales, axes, a tooltip, pointer and keyboard on a chart.
// Text goes in as text nodes only; colours are CSS classes, so light and dark need no redrawing.

const SVG = "http://www.w3.org/2000/svg";

function add(parent, name, attributes = {}, text = null) {
  const svg = parent.namespaceURI === SVG || name === "svg";
  const made = svg ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) made.setAttribute(key, value);
  }
  if (text !== null) made.textContent = text;
  parent.append(made);
  return made;
}

const known = (value) => typeof value === "number" && Number.isFinite(value);

function show(value, decimals = 2) {
  if (!known(value)) return "–";
  const text = value.toFixed(decimals);
  return (Number(text) === 0 ? (0).toFixed(decimals) : text).replace("-", "−");
}

// As many decimals as the size of the number needs.
function brief(value) {
  if (!known(value)) return "–";
  const size = Math.abs(value);
  if (size >= 10000) return `${show(value / 1000, 0)}k`;
  return show(value, size >= 100 ? 0 : size >= 10 ? 1 : size >= 0.1 || size < 0.0005 ? 2 : 3);
}

// ---- scales ------------------------------------------------------------------------------------

function ticks(low, high, count) {
  const raw = (high - low) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) {
    found.push(Number((i * step).toPrecision(12)));
  }
  return found;
}

function tickText(value, all) {
  const step = all.length > 1 ? all[1] - all[0] : 1;
  return show(value, Math.max(0, Math.min(6, -Math.floor(Math.log10(step) + 1e-9))));
}

// [low, high] around the values with a margin, never of width 0.
function extent(values, margin = 0.06) {
  const finite = values.filter(known);
  if (!finite.length) return [0, 1];
  const low = Math.min(...finite);
  const high = Math.max(...finite);
  const room = (high - low) * margin || Math.abs(high) * 0.1 || 1;
  return [low - room, high + room];
}

const linear = (domain, range) => (v) =>
  range[0] + ((v - domain[0]) / (domain[1] - domain[0])) * (range[1] - range[0]);

// Round numbers that stay apart on a square-root axis.
const rootTicks = (domain, range) => {
  const place = rooted(domain, range);
  let last = -Infinity;
  return [0, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000].filter((v) => {
    if (v > domain[1] || (v && place(v) - last < 34)) return false;
    last = place(v);
    return true;
  });
};

const bend = (v) => Math.sign(v) * Math.sqrt(Math.abs(v));
const rooted = (domain, range) => {
  const inner = linear(domain.map(bend), range);
  return (v) => inner(bend(v));
};

// ---- frame: the axes ---------------------------------------------------------------------------

// Draws axes and grid into a fresh svg in `host`; `x` and `y` are {domain, label, scale, count}.
function frame(host, { width, height, margin, x, y }) {
  host.querySelector(":scope > svg")?.remove();
  const svg = add(host, "svg", {
    viewBox: `0 0 ${width} ${height}`,
    role: "img",
    tabindex: 0,
    "aria-label": host.dataset.label ?? "chart",
  });
  const box = { left: margin.left, right: width - margin.right, top: margin.top, bottom: height - margin.bottom };
  const sx = (x.scale ?? linear)(x.domain, [box.left, box.right]);
  const sy = linear(y.domain, [box.bottom, box.top]);
  const axes = add(svg, "g", { class: "axes", "aria-hidden": "true" });
  const yTicks = ticks(...y.domain, y.count ?? Math.max(2, Math.round((box.bottom - box.top) / 56)));
  for (const value of yTicks) {
    add(axes, "line", { x1: box.left, x2: box.right, y1: sy(value), y2: sy(value), class: value === 0 ? "zero" : "grid" });
    add(axes, "text", { x: box.left - 7, y: sy(value), dy: "0.32em", "text-anchor": "end" }, (y.format ?? tickText)(value, yTicks));
  }
  const xTicks = x.ticks?.(x.domain, [box.left, box.right]) ?? ticks(...x.domain, x.count ?? Math.max(2, Math.round((box.right - box.left) / 80)));
  add(axes, "line", { x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom, class: "axis" });
  for (const value of xTicks) {
    add(axes, "line", { x1: sx(value), x2: sx(value), y1: box.bottom, y2: box.bottom + 4, class: "axis" });
    add(axes, "text", { x: sx(value), y: box.bottom + 17, "text-anchor": "middle" }, (x.format ?? tickText)(value, xTicks));
  }
  if (x.label) add(axes, "text", { x: box.right, y: height - 6, "text-anchor": "end", class: "label" }, x.label);
  if (y.label) add(axes, "text", { x: 0, y: 12, class: "label" }, y.label);
  return { svg, box, sx, sy, plot: add(svg, "g") };
}

// ---- marks -------------------------------------------------------------------------------------

const SHAPES = {
  base: (r) => `M${-r},0a${r},${r} 0 1,0 ${2 * r},0a${r},${r} 0 1,0 ${-2 * r},0`,
  sft: (r) => `M${-r},${-r}h${2 * r}v${2 * r}h${-2 * r}z`,
  ppo: (r) => `M0,${-1.4 * r}L${1.4 * r},0L0,${1.4 * r}L${-1.4 * r},0z`,
  ppo_low_beta: (r) => `M${-1.25 * r},${-r}h${2.5 * r}L0,${1.3 * r}z`,
  best_of_n: (r) => `M${-1.25 * r},${r}h${2.5 * r}L0,${-1.3 * r}z`,
  dpo: (r) => `M${-0.45 * r},${-1.2 * r}h${0.9 * r}v${0.75 * r}h${0.75 * r}v${0.9 * r}h${-0.75 * r}v${0.75 * r}h${-0.9 * r}v${-0.75 * r}h${-0.75 * r}v${-0.9 * r}h${0.75 * r}z`,
};

function mark(parent, key, tone, x, y, radius = 4.5) {
  const shape = SHAPES[key] ?? SHAPES.base;
  return add(parent, "path", { d: shape(radius), transform: `translate(${x},${y})`, class: `point ${tone}` });
}

function polyline(parent, points, classes) {
  const text = points.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join(" ");
  return add(parent, "polyline", { points: text, class: classes });
}

// Points every few pixels along a path, as obstacles for labels.
function along(points) {
  const found = [];
  for (let i = 1; i < points.length; i++) {
    const [[x0, y0], [x1, y1]] = [points[i - 1], points[i]];
    const n = Math.max(1, Math.round(Math.hypot(x1 - x0, y1 - y0) / 12));
    for (let k = 0; k <= n; k++) found.push([x0 + ((x1 - x0) * k) / n, y0 + ((y1 - y0) * k) / n]);
  }
  return found;
}

// Puts texts beside their points: of eight places the one that stays inside and hits least.
function placeLabels(parent, box, wanted, obstacles) {
  const taken = obstacles.map(([x, y, r = 7]) => [x - r, y - r, x + r, y + r]);
  for (const { x, y, text, tone } of wanted) {
    const label = add(parent, "text", { class: `name ${tone}` }, text);
    const w = label.getComputedTextLength() + 4;
    const places = [
      [x + 10, y - 7], [x - w - 10, y - 7], [x - w / 2, y - 27], [x - w / 2, y + 12],
      [x + 10, y - 24], [x + 10, y + 10], [x - w - 6, y - 24], [x - w - 6, y + 10],
    ];
    const cost = ([px, py]) => {
      const rect = [px, py, px + w, py + 15];
      const outside = rect[0] < box.left || rect[2] > box.right + 8 || rect[1] < box.top - 8 || rect[3] > box.bottom;
      const hits = taken.filter((t) => rect[0] < t[2] && rect[2] > t[0] && rect[1] < t[3] && rect[3] > t[1]);
      return hits.length + (outside ? 20 : 0);
    };
    const best = places.reduce((a, b) => (cost(b) < cost(a) ? b : a));
    taken.push([best[0], best[1], best[0] + w, best[1] + 15]);
    label.setAttribute("x", best[0] + 2);
    label.setAttribute("y", best[1] + 12);
  }
}

// ---- reading values ----------------------------------------------------------------------------

const tip = add(document.body, "div", { class: "tip", hidden: "" });
const live = add(document.body, "div", { class: "unseen", "aria-live": "polite" });

function hideTip() {
  tip.hidden = true;
}

function showTip(x, y, title, rows) {
  tip.replaceChildren();
  add(tip, "b", {}, title);
  for (const [name, value] of rows) {
    const line = add(tip, "div");
    add(line, "span", {}, name);
    add(line, "span", {}, value);
  }
  tip.hidden = false;
  const room = document.documentElement.clientWidth;
  const { width, height } = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(x + 14, room - width - 4))}px`;
  tip.style.top = `${y - height - 12 < 4 ? y + 16 : y - height - 12}px`;
}

// Pointer and arrow keys move between `stops` ({x, y, title, rows}); `onMove(stop | null)` draws the
// cursor, `onPick(stop)` is a click, Enter or blank. `flat` looks for the nearest x only.
function interact(svg, stops, { flat = false, onMove = null, onPick = null, tips = true }) {
  if (!stops.length) return;
  let at = -1;
  const go = (index, spoken) => {
    at = index;
    const stop = stops[at];
    const frame = svg.getBoundingClientRect();
    const scale = frame.width / svg.viewBox.baseVal.width;
    onMove?.(stop);
    if (tips) showTip(frame.left + stop.x * scale, frame.top + stop.y * scale, stop.title, stop.rows);
    if (spoken) live.textContent = `${stop.title}: ${stop.rows.map((r) => r.join(" ")).join(", ")}`;
  };
  const leave = () => {
    at = -1;
    onMove?.(null);
    hideTip();
  };
  const nearest = (event) => {
    const frame = svg.getBoundingClientRect();
    const scale = frame.width / svg.viewBox.baseVal.width;
    const x = (event.clientX - frame.left) / scale;
    const y = (event.clientY - frame.top) / scale;
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
  svg.addEventListener("pointermove", point);
  svg.addEventListener("pointerdown", point);
  svg.addEventListener("pointerleave", leave);
  svg.addEventListener("blur", leave);
  svg.addEventListener("click", (event) => {
    const found = nearest(event);
    if (found >= 0) onPick?.(stops[found]);
  });
  svg.addEventListener("keydown", (event) => {
    const moves = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 };
    if (event.key in moves) {
      const from = at < 0 ? (moves[event.key] > 0 ? -1 : stops.length) : at;
      go(Math.max(0, Math.min(stops.length - 1, from + moves[event.key])), true);
    } else if (event.key === "Home" || event.key === "End") {
      go(event.key === "Home" ? 0 : stops.length - 1, true);
    } else if ((event.key === "Enter" || event.key === " ") && at >= 0 && onPick) {
      onPick(stops[at]);
    } else if (event.key === "Escape") {
      leave();
      return;
    } else {
      return;
    }
    event.preventDefault();
  });
}

// Calls draw(width) now and whenever the place has another width.
function responsive(host, draw) {
  let last = 0;
  const check = () => {
    const width = Math.round(host.clientWidth);
    if (width < 40 || Math.abs(width - last) < 2) return;
    last = width;
    draw(width);
  };
  check();
  new ResizeObserver(() => requestAnimationFrame(check)).observe(host);
}

// A table with the chart's numbers, folded away.
function numbersTable(host, heads, rows) {
  const details = add(host, "details", { class: "numbers-table" });
  add(details, "summary", {}, "The numbers");
  const table = add(add(details, "div", { class: "scroll" }), "table");
  const top = add(add(table, "thead"), "tr");
  for (const text of heads) add(top, "th", { scope: "col" }, text);
  const body = add(table, "tbody");
  for (const row of rows) {
    const line = add(body, "tr");
    row.forEach((text, i) => add(line, i ? "td" : "th", i ? {} : { scope: "row" }, text));
  }
}
