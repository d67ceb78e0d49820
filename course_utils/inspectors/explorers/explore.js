// What all explorers share: controls made from the list of inputs, refusals, presets, a logarithmic
// axis, seeded random numbers that Python has too (chance.py).

import { add, brief, choice, clamp, inspect, known, on, responsive, show, tipFor } from "../kit.js";
import { axes, line, linear } from "../charts.js";

// ---- inputs -------------------------------------------------------------------------------------

// A value, or a combination of values, that the formula does not take.
export class Refusal extends Error {}

export function fault(field, value) {
  if (field.kind === "choice") {
    return field.options.some(([own]) => own === value) ? null : `${value} is none of the choices`;
  }
  if (field.kind === "weights") {
    if (!Array.isArray(value) || value.length !== field.default.length) return `${field.default.length} numbers are needed`;
    return value.map((v) => fault({ ...field, kind: "number" }, v)).find(Boolean) ?? null;
  }
  if (!known(value)) return "not a number";
  if (field.whole && !Number.isInteger(value)) return `${value} is not a whole number`;
  return value >= field.low && value <= field.high ? null : `${value} is not from ${field.low} to ${field.high}`;
}

export function checkAll(inputs, chosen) {
  for (const field of inputs) {
    const wrong = fault(field, chosen[field.name]);
    if (wrong) throw new Refusal(`${field.label}: ${wrong}.`);
  }
}

// ---- the page -----------------------------------------------------------------------------------

// compute(chosen, state) -> numbers, or throws a Refusal; build(stage, view, pick) makes the nodes
// and returns draw(numbers, chosen, state). pick({name: value}) is what a control calls.
export function explorer({ model, el }, { compute, build }) {
  return inspect({ model, el }, (view) => {
    const { root, state } = view;
    const pick = (part) => view.choose({ preset: null, ...part });
    const opening = add(root, "div", { class: "opening" });
    add(opening, "h3", {}, state.title);
    add(opening, "p", { class: "fine" }, state.lead);
    const desk = add(root, "div", { class: "desk" });
    const knobs = add(desk, "div", { class: "knobs" });
    const stage = add(desk, "div", { class: "stage" });
    const puts = state.inputs.filter((field) => field.kind !== "weights").map((field) => knob(knobs, field, pick));
    const markPreset = presets(add(desk, "div", { class: "tries" }), state.presets, view);
    const refused = add(stage, "p", { class: "notice", role: "alert", hidden: true });
    const draw = build(stage, view, pick);
    const foot = add(root, "div", { class: "foot" });
    add(foot, "span", { class: "formula" }, state.formula);
    add(foot, "span", { class: "fine" }, state.source);
    requestAnimationFrame(() => responsive(stage, view.later));
    return (now) => {
      for (const put of puts) put(view.ui);
      markPreset(view.ui.preset ?? null);
      let found = null;
      try {
        checkAll(now.inputs, view.ui);
        found = compute(view.ui, now);
      } catch (error) {
        if (!(error instanceof Refusal)) throw error;
        refused.textContent = error.message;
      }
      refused.hidden = found !== null;
      stage.classList.toggle("stale", found === null);
      if (found) draw(found, view.ui, now);
    };
  });
}

function presets(parent, list, view) {
  if (!list.length) return () => {};
  const box = add(parent, "div", { class: "presets", role: "group", "aria-label": "things to try" });
  add(box, "h4", {}, "Try");
  const buttons = list.map((preset, i) => {
    const button = add(box, "button", { type: "button" }, preset.text);
    on(button, "click", () => view.choose({ ...preset.set, preset: i }));
    return button;
  });
  const note = add(parent, "p", { class: "note", role: "status" });
  return (at) => {
    buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(i === at)));
    note.textContent = list[at]?.note ?? "";
    note.hidden = !list[at];
  };
}

// One control. Returns put(chosen).
function knob(parent, field, pick) {
  const box = add(parent, "div", { class: `knob ${field.kind}`, title: field.help || null });
  const set = field.kind === "choice" ? chooser(box, field, pick) : dial(box, field, pick);
  return (chosen) => {
    box.hidden = Boolean(field.needs) && !chosen[field.needs];
    set(chosen[field.name]);
  };
}

function chooser(box, field, pick) {
  const { label, name, options } = field;
  if (options.map(([value, text = value]) => text).join("").length <= 26) {
    add(box, "span", {}, label);
    return choice(box, label, options.map(([value, text = value]) => [value, text]), (value) => pick({ [name]: value }));
  }
  const host = add(box, "label");
  add(host, "span", {}, label);
  const select = add(host, "select", { "aria-label": label });
  for (const [value, text = value] of options) add(select, "option", { value }, text);
  on(select, "change", () => pick({ [name]: options.find(([value]) => String(value) === select.value)[0] }));
  return (value) => { select.value = String(value); };
}

const PLACES = 240; // of a logarithmic slider

function dial(box, field, pick) {
  const { label, name, log, step } = field;
  const { stops } = field;
  const [low, high] = field.slide ?? [field.low, field.high];
  const ends = stops ? [0, stops.length - 1, 1] : log ? [0, PLACES, 1] : [low, high, step];
  const toValue = (place) => {
    if (stops) return stops[place];
    return log ? Number(clamp(low * (high / low) ** (place / PLACES), low, high).toPrecision(3)) : place;
  };
  const toPlace = (value) => {
    if (stops) return stops.reduce((best, stop, i) => (Math.abs(stop - value) < Math.abs(stops[best] - value) ? i : best), 0);
    return log ? Math.round((PLACES * Math.log(value / low)) / Math.log(high / low)) : value;
  };
  const host = add(box, "label");
  add(host, "span", {}, label);
  const exact = add(host, "input", { type: "text", inputmode: "decimal", autocomplete: "off", "aria-label": `${label}, exact value` });
  const range = add(box, "input", { type: "range", min: ends[0], max: ends[1], step: ends[2], "aria-label": label });
  const wrong = add(box, "p", { class: "wrong", role: "alert", hidden: true });
  let last = null;
  const put = (value) => {
    last = value;
    range.value = toPlace(value);
    range.setAttribute("aria-valuetext", plain(value));
    if (wrong.hidden) exact.value = plain(value);
  };
  const say = (text) => {
    wrong.hidden = !text;
    wrong.textContent = text ?? "";
    exact.setAttribute("aria-invalid", String(Boolean(text)));
  };
  on(range, "input", () => { say(null); pick({ [name]: toValue(Number(range.value)) }); });
  on(exact, "change", () => {
    const text = exact.value.trim().replace("−", "-").replace(",", ".");
    const value = text === "" ? NaN : Number(text);
    const found = fault(field, value);
    say(found);
    if (!found) pick({ [name]: value });
  });
  on(exact, "blur", () => { if (!wrong.hidden) { say(null); put(last); } });
  return put;
}

// A number as one would type it.
export const plain = (value) => (known(value) ? String(Number(value.toPrecision(6))).replace("-", "−") : "–");

// ---- charts -------------------------------------------------------------------------------------

let clips = 0;

// A chart that keeps the keyboard's place when it is drawn again. Returns draw(options of axes) ->
// {svg, box, sx, sy, plot, inner}; what is drawn into `inner` ends at the frame.
export function chart(parent, title = null) {
  const figure = add(parent, "div", { class: "chart" });
  if (title) add(figure, "h4", {}, title);
  const canvas = add(figure, "div");
  return (options) => {
    const had = canvas.contains(document.activeElement);
    tipFor(canvas).hide();
    const made = axes(canvas, { width: clamp(canvas.clientWidth || 560, 230, 900), height: 240, ...options });
    if (had) made.svg.focus({ preventScroll: true });
    const { left, right, top, bottom } = made.box;
    const id = `cui-clip-${(clips += 1)}-${Math.random().toString(36).slice(2, 8)}`;
    const mask = add(made.svg, "clipPath", { id });
    add(mask, "rect", { x: left, y: top - 2, width: right - left, height: bottom - top + 4 });
    const under = add(made.plot, "g", { "clip-path": `url(#${id})` });
    return { ...made, canvas, inner: add(made.plot, "g", { "clip-path": `url(#${id})` }), under };
  };
}

// The function f over the chart's x-axis.
export function curve(made, [from, to], f, classes, places = 220) {
  const points = [];
  for (let i = 0; i <= places; i++) {
    const x = from + ((to - from) * i) / places;
    const y = f(x);
    points.push([made.sx(x), known(y) ? clamp(made.sy(y), -1e4, 1e4) : null]);
  }
  return line(made.inner, points, classes);
}

// Where the reader is on a curve: a line down to the axis, and a dot.
export function here(made, x, y, classes) {
  const [px, py] = [made.sx(x), clamp(made.sy(y), made.box.top, made.box.bottom)];
  add(made.inner, "line", { x1: px, x2: px, y1: py, y2: made.box.bottom, class: "reference" });
  return add(made.plot, "circle", { cx: px, cy: py, r: 6, class: `point ${classes}` });
}

export const logged = (domain, range) => {
  const inner = linear(domain.map(Math.log), range);
  return (v) => inner(Math.log(v));
};

// 1, 2, 5 or only the powers of ten, or the powers of two.
export function logTicks(domain, base = 10, most = 9) {
  const found = [];
  for (let i = Math.ceil(Math.log(domain[0]) / Math.log(base) - 1e-9); base ** i <= domain[1] * (1 + 1e-9); i++) found.push(Number((base ** i).toPrecision(12)));
  const every = Math.ceil(found.length / most);
  return found.filter((_, i) => i % every === 0);
}

// The numbers below a chart. Returns put([[label, value, hint, tone]]).
export function figures(parent) {
  const list = add(parent, "dl", { class: "figures" });
  return (rows) => {
    list.replaceChildren();
    for (const [label, value, hint = "", tone = ""] of rows) {
      const one = add(list, "div", { class: tone });
      add(one, "dt", {}, label);
      add(one, "dd", {}, typeof value === "string" ? value : brief(value));
      if (hint) add(one, "dd", { class: "hint" }, hint);
    }
  };
}

// The key to lines: [[text, classes]].
export function keys(parent, rows) {
  const legend = add(parent, "div", { class: "legend" });
  for (const [text, tone, held] of rows) {
    const one = add(legend, "span", { class: tone });
    add(one, "i", { class: `key ${held ? "held" : ""}` });
    one.append(text);
  }
  return legend;
}

export const percent = (share, decimals = 1) => `${show(100 * share, decimals)}%`;

// ---- maths --------------------------------------------------------------------------------------

export const sigmoid = (x) => (x >= 0 ? 1 / (1 + Math.exp(-x)) : Math.exp(x) / (1 + Math.exp(x)));
export const softplus = (x) => Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x))); // -log σ(-x)

// (count) numbers in (0, 1), the same as chance.py's.
export function uniforms(seed, count) {
  const found = new Float64Array(count);
  for (let i = 0; i < count; i++) {
    let x = (Math.imul(i + 1, 0x9e3779b9) + Math.imul(seed + 1, 0x85ebca6b)) | 0;
    x ^= x >>> 16;
    x = Math.imul(x, 0x7feb352d);
    x ^= x >>> 15;
    x = Math.imul(x, 0x846ca68b);
    x ^= x >>> 16;
    found[i] = ((x >>> 0) + 0.5) / 2 ** 32;
  }
  return found;
}

export function normals(seed, count) {
  const u = uniforms(seed, 2 * count);
  return Float64Array.from({ length: count }, (_, i) => Math.sqrt(-2 * Math.log(u[2 * i])) * Math.cos(2 * Math.PI * u[2 * i + 1]));
}
