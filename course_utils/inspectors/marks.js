// What the viewers of several methods share: marks that differ without colour, a legend that hides
// methods, and figures that are drawn anew only when what they show has changed.

import { add, on, responsive } from "./kit.js";

const round = (n, from, r = () => 1) => Array.from({ length: n }, (_, i) => {
  const a = from + (2 * Math.PI * i) / n;
  return [r(i) * Math.cos(a), r(i) * Math.sin(a)];
});
const CORNERS = {
  square: round(4, Math.PI / 4, () => 1.2),
  diamond: round(4, 0, () => 1.25),
  up: round(3, -Math.PI / 2, () => 1.3),
  down: round(3, Math.PI / 2, () => 1.3),
  star: round(10, -Math.PI / 2, (i) => (i % 2 ? 0.58 : 1.4)),
  bar: [[-1.4, -0.55], [1.4, -0.55], [1.4, 0.55], [-1.4, 0.55]],
  cross: [[-0.45, -1.25], [0.45, -1.25], [0.45, -0.45], [1.25, -0.45], [1.25, 0.45], [0.45, 0.45], [0.45, 1.25], [-0.45, 1.25], [-0.45, 0.45], [-1.25, 0.45], [-1.25, -0.45], [-0.45, -0.45]],
};

// A mark of about radius r at x, y: circle, square, diamond, up, down, cross, star or bar.
export function mark(parent, shape, x, y, r, classes = "") {
  const at = ([u, v]) => `${(x + r * u).toFixed(1)},${(y + r * v).toFixed(1)}`;
  const d = CORNERS[shape]
    ? `M${CORNERS[shape].map(at).join("L")}Z`
    : `M${(x - r).toFixed(1)},${y.toFixed(1)}a${r},${r} 0 1 0 ${2 * r},0a${r},${r} 0 1 0 ${-2 * r},0Z`;
  return add(parent, "path", { d, class: `point ${classes}`, "data-shape": shape });
}

// The mark alone, beside a word.
export function sign(parent, { shape, tone }) {
  const svg = add(parent, "svg", { viewBox: "-9 -9 18 18", class: "sign", "aria-hidden": "true" });
  mark(svg, shape, 0, 0, 6, tone);
  return svg;
}

// A legend of methods whose entries are buttons that hide and show them. Returns put(methods).
export function methodKeys(parent, view) {
  const host = add(parent, "div", { class: "method-keys", role: "group", "aria-label": "methods shown" });
  let drawn = null;
  return (methods) => {
    if (drawn !== methods) {
      drawn = methods;
      host.replaceChildren();
      for (const method of methods) {
        const button = add(host, "button", { type: "button", class: `method ${method.tone}`, "data-key": method.key, title: "hide or show" });
        sign(button, method);
        add(button, "span", {}, method.label);
        on(button, "click", () => {
          const hidden = new Set(view.ui.hidden ?? []);
          if (!hidden.delete(method.key)) hidden.add(method.key);
          view.choose({ hidden: [...hidden] });
        });
      }
    }
    for (const button of host.children) button.setAttribute("aria-pressed", String(!(view.ui.hidden ?? []).includes(button.dataset.key)));
  };
}

// A chart with its heading. put(needs, draw) calls draw(host, width) when one of `needs` or the width
// is another than last time; the keyboard's focus stays on the chart.
export function figure(parent, view, title, classes = "") {
  const box = add(parent, "figure", { class: `viewed ${classes}` });
  const head = add(box, "figcaption");
  add(head, "h4", {}, title);
  const note = add(head, "span", { class: "fine" });
  const host = add(box, "div", { class: "plot" });
  const foot = add(box, "div", { class: "under" });
  let last = [];
  let drawn = null;
  requestAnimationFrame(() => responsive(host, view.later));
  return {
    box, head, host, foot,
    say(text) { note.textContent = text; },
    put(needs, draw) {
      const now = [...needs, Math.round(host.clientWidth)];
      if (now.length === last.length && now.every((v, i) => v === last[i])) return drawn;
      last = now;
      const focused = host.contains(document.activeElement);
      host.replaceChildren();
      drawn = draw(host, Math.max(220, host.clientWidth || 480));
      if (focused) host.querySelector("svg")?.focus({ preventScroll: true });
      return drawn;
    },
  };
}

// Labels beside the ends of lines, moved apart so that none covers another.
export function endNames(parent, ends, { right, low = 12, high = Infinity, gap = 15 }) {
  const sorted = [...ends].sort((a, b) => a.y - b.y);
  sorted.forEach((end, i) => { end.at = Math.max(low, end.y, i ? sorted[i - 1].at + gap : -Infinity); });
  const over = (sorted.at(-1)?.at ?? 0) - high;
  for (const { x, at, text, tone } of sorted) {
    add(parent, "text", { x: Math.min(x + 10, right), y: at - Math.max(0, over) + 4, class: `name ${tone}` }, text);
  }
}
