// The memory calculator: one stacked bar, the cards below it, the moments of a step.

import { add, brief, clamp, count, show, tipFor } from "../kit.js";
import { linear, ticks } from "../charts.js";
import { explorer, figures } from "./explore.js";
import { estimate, largestBatch, shapeOf } from "./memory_terms.js";

const GIB = 2 ** 30;

export function recipeOf(c, state) {
  const found = { ...state.plain, ...state.recipes[c.recipe], rank: c.rank };
  if (c.optimizer !== "recipe") found.optimizer = c.optimizer;
  if (c.checkpointing !== "recipe") found.checkpointing = c.checkpointing === "on";
  return found;
}

export function compute(c, state) {
  const shape = shapeOf(c.model, state);
  const recipe = recipeOf(c, state);
  const { moments, ...found } = estimate(shape, recipe, c.seq, c.batch);
  const rooms = state.gpus.map(([name, gib]) => [name, Math.round(gib * GIB)]);
  return {
    ...found,
    moments: Object.fromEntries(Object.entries(moments).map(([name, terms]) => [name, Object.values(terms).reduce((a, b) => a + b, 0)])),
    parameters: shape.parameters,
    fits: Object.fromEntries(rooms.map(([name, room]) => [name, found.total <= room])),
    batches: Object.fromEntries(rooms.map(([name, room]) => [name, largestBatch(shape, recipe, c.seq, room)])),
  };
}

// [group, colour, what a term's name starts with]
const GROUPS = [
  ["weights", "c-sft", ["weights:", "LoRA adapters", "value head"]],
  ["other models", "c-proxy", ["reference model", "reward model"]],
  ["gradients", "c-ppo", ["gradients"]],
  ["optimizer states", "c-best-of-n", ["optimizer"]],
  ["activations", "c-dpo", ["activations", "checkpoints", "a block's", "final norm"]],
  ["logits", "c-gold", ["logits", "head's input"]],
  ["16-bit copies", "c-ppo-low-beta", ["autocast"]],
  ["KV cache, working set", "c-base", ["KV cache", "working set"]],
  ["context, fragmentation", "c-slack", ["CUDA"]],
];

function grouped(found) {
  const terms = { ...found.terms, "CUDA context": found.context, "CUDA allocator's fragmentation": found.fragmentation };
  return GROUPS.map(([name, tone, starts]) => {
    const parts = Object.entries(terms).filter(([term]) => starts.some((start) => term.startsWith(start)));
    return { name, tone, parts, size: parts.reduce((all, [, size]) => all + size, 0) };
  }).filter(({ size }) => size);
}

const gib = (bytes) => {
  const v = bytes / GIB;
  if (v < 0.0995) return `${v * 1024 < 0.995 ? "< 1" : show(v * 1024, 0)} MiB`;
  return `${show(v, v >= 100 ? 0 : v >= 0.995 ? 1 : 2)} GiB`;
};

export function render({ model, el }) {
  return explorer({ model, el }, {
    compute,
    build(stage) {
      const cards = add(stage, "div", { class: "chart" });
      const title = add(cards, "h4");
      const drawCards = add(cards, "div");
      const pair = add(stage, "div", { class: "pair" });
      const terms = add(pair, "div");
      add(terms, "h4", {}, "what it is made of");
      const drawTerms = add(terms, "div", { class: "scroll" });
      const right = add(pair, "div", { class: "chart" });
      add(right, "h4", {}, "the moments of a step");
      const drawMoments = add(right, "div");
      const put = figures(stage);
      return (found, c, state) => {
        tipFor(stage).hide();
        const groups = grouped(found);
        title.textContent = `${c.model}, ${c.recipe}: ${gib(found.total)} at the worst moment, “${found.moment}”`;
        cardRows(drawCards, groups, found, state.gpus);
        termTable(drawTerms, groups, found);
        momentRows(drawMoments, found);
        const smallest = state.gpus.find(([name]) => found.fits[name]);
        put([
          ["total", gib(found.total), `${gib(found.peak)} of tensors`],
          ["smallest card", smallest ? smallest[0] : "none", smallest ? `${gib(smallest[1] * GIB - found.total)} to spare` : `${gib(found.total - Math.max(...state.gpus.map(([, room]) => room)) * GIB)} too much for the largest`],
          ["per parameter", `${brief(found.total / found.parameters)} bytes`, `${brief(found.parameters / 1e9)} B parameters`],
          ...(found.paged ? [["paged", gib(found.paged), "optimizer states, in the CPU's memory if need be"]] : []),
        ]);
      };
    },
  });
}

function cardRows(parent, groups, found, gpus) {
  parent.replaceChildren();
  const width = clamp(parent.clientWidth || 560, 230, 900);
  const narrow = width < 460;
  const [left, bar, row] = [74, 40, narrow ? 42 : 31];
  const end = Math.max(found.total / GIB, ...gpus.map(([, room]) => room)) * 1.03;
  const sx = linear([0, end], [left, width - (narrow ? 8 : 178)]);
  const high = bar + 26 + row * gpus.length;
  const svg = add(parent, "svg", { viewBox: `0 0 ${width} ${high + 24}`, role: "img", "aria-label": `${gib(found.total)} in all; ${gpus.map(([name]) => `${name} ${found.fits[name] ? `fits, up to ${found.batches[name]} rows` : "does not fit"}`).join("; ")}` });
  const g = add(svg, "g", { class: "axes" });
  for (const v of ticks(0, end, narrow ? 4 : 7)) {
    add(g, "line", { x1: sx(v), x2: sx(v), y1: 0, y2: high, class: v ? "grid" : "axis" });
    add(g, "text", { x: sx(v), y: high + 16, "text-anchor": "middle" }, `${v}`);
  }
  add(g, "text", { x: left - 8, y: high + 16, "text-anchor": "end" }, "GiB");
  let at = 0;
  for (const { name, tone, size } of groups) {
    const [x, x2] = [sx(at), sx(at + size / GIB)];
    const part = add(svg, "rect", { x, width: Math.max(0.5, x2 - x - 0.8), y: 4, height: bar - 8, class: `bar ${tone}` });
    add(part, "title", {}, `${name}: ${gib(size)}`);
    if (x2 - x > name.length * 6.6 + 10) add(svg, "text", { x: (x + x2) / 2, y: bar / 2 + 4, "text-anchor": "middle", class: "inside" }, name);
    at += size / GIB;
  }
  add(svg, "text", { x: left - 8, y: bar / 2 + 4, "text-anchor": "end", class: "name" }, "this step");
  add(svg, "line", { x1: sx(at), x2: sx(at), y1: 0, y2: high, class: "need" });
  gpus.forEach(([name, room], i) => {
    const y = bar + 14 + row * i;
    const fit = found.fits[name];
    add(svg, "text", { x: left - 8, y: y + 15, "text-anchor": "end", class: "name" }, name);
    add(svg, "rect", { x: left, width: sx(room) - left, y: y + 2, height: 18, rx: 4, class: "room" });
    add(svg, "rect", { x: left, width: Math.max(0, Math.min(sx(room), sx(at)) - left), y: y + 2, height: 18, rx: 4, class: `filled ${fit ? "c-sft" : "c-ppo"}` });
    const text = fit ? `✓ fits, up to ${count(found.batches[name], "row")}` : `✗ ${gib(found.total - room * GIB)} short${found.batches[name] ? `; ${count(found.batches[name], "row")} would fit` : ""}`;
    const beside = narrow ? [left, y + 34] : [Math.max(sx(room), sx(0)) + 9, y + 16];
    add(svg, "text", { x: beside[0], y: beside[1], class: `name verdict ${fit ? "c-sft" : "c-ppo"}` }, text);
  });
}

function termTable(parent, groups, found) {
  parent.replaceChildren();
  const table = add(parent, "table");
  const body = add(table, "tbody");
  for (const { name, tone, parts, size } of groups) {
    const row = add(body, "tr", { class: tone });
    const cell = add(row, "td");
    add(cell, "i", { class: "swatch" });
    add(cell, "b", {}, name);
    add(row, "td", {}, gib(size));
    add(row, "td", {}, `${show((100 * size) / found.total, 0)}%`);
    if (parts.length < 2 && name === parts[0][0]) continue;
    for (const [term, own] of parts) {
      const sub = add(body, "tr", { class: "sub" });
      add(sub, "td", {}, term);
      add(sub, "td", {}, gib(own));
      add(sub, "td");
    }
  }
}

function momentRows(parent, found) {
  parent.replaceChildren();
  const width = clamp(parent.clientWidth || 360, 230, 620);
  const rows = Object.entries(found.moments);
  const most = Math.max(...rows.map(([, size]) => size));
  const sx = linear([0, most], [0, width - 74]);
  const svg = add(parent, "svg", { viewBox: `0 0 ${width} ${36 * rows.length}`, role: "img", "aria-label": rows.map(([name, size]) => `${name} ${gib(size)}`).join(", ") });
  rows.forEach(([name, size], i) => {
    const worst = name === found.moment;
    add(svg, "text", { x: 0, y: 36 * i + 12, class: `name ${worst ? "" : "c-ink"}` }, name + (worst ? ", the worst" : ""));
    add(svg, "rect", { x: 0, width: Math.max(1, sx(size)), y: 36 * i + 17, height: 11, rx: 2, class: `bar ${worst ? "c-sft" : "c-base soft"}` });
    add(svg, "text", { x: sx(size) + 6, y: 36 * i + 27, class: "name" }, gib(size));
  });
}
