// The mask viewer: a row of training data, token by token: left out, or counted and how much.

import { add, brief, count, inspect, known, legend, on, paint, show, slider, strength, tokenRun } from "./kit.js";

export function render({ model, el }) {
  return inspect({ model, el }, (view) => {
    const head = add(view.root, "div", { class: "head" });
    add(head, "h3", {}, "What the loss counts");
    const walk = add(head, "div", { class: "controls" });
    const put = slider(walk, "example", { min: 0, step: 1 }, (at) => view.choose({ at }));
    const facts = add(view.root, "p", { class: "facts" });
    const share = add(add(view.root, "div", { class: "share", "aria-hidden": "true" }), "i");
    const sides = add(view.root, "div", { class: "sides" });
    const readout = add(view.root, "p", { class: "readout" });
    const keys = add(view.root, "p", { class: "masks" });
    const scale = add(view.root, "div");
    const note = add(view.root, "p", { class: "fine" });
    return (state) => {
      const { examples } = state;
      const at = Math.min(view.ui.at ?? 0, examples.length - 1);
      const row = examples[at];
      put({ value: at, min: 0, max: Math.max(0, examples.length - 1), text: `row ${at + 1} of ${examples.length}` });
      walk.hidden = examples.length < 2;
      for (const part of [facts, readout, keys, scale]) part.replaceChildren();
      sides.replaceChildren();
      note.textContent = state.left_out ? `${count(state.left_out, "more row")} not on this page.` : "";
      if (!row) {
        add(sides, "p", { class: "empty" }, "No rows.");
        return;
      }
      const counted = sum(row.sides.map((s) => sum(s.counted)));
      const all = sum(row.sides.map((s) => s.tokens.length));
      share.style.width = `${(100 * counted) / Math.max(1, all)}%`;
      drawFacts(facts, state, row, counted, all);
      const runs = row.sides.map((side) => drawSide(sides, readout, state, row, side, counted));
      runs[0].select(Math.max(0, row.sides[0].counted.indexOf(1)));
      key(keys, state);
      if (state.scale) legend(scale, state.scale);
    };
  });
}

const sum = (values) => values.reduce((a, b) => a + (known(b) ? b : 0), 0);

function drawFacts(host, state, row, counted, all) {
  const one = (label, value) => add(add(host, "span", {}, `${label} `), "b", {}, value);
  one("tokens", String(all));
  one("counted", `${counted} (${((100 * counted) / Math.max(1, all)).toFixed(0)}%)`);
  if (!known(row.loss)) return;
  if (state.kind === "sft") one("loss, mean per counted token", `${show(row.loss, 3)} nats`);
  else {
    one("margin", show(row.margin, 3));
    one("loss −log σ(margin)", show(row.loss, 3));
    one("gradient weight β σ(−margin)", brief(row.weight));
  }
}

function drawSide(host, readout, state, row, side, counted) {
  const box = add(host, "div", { class: side.label === "rejected" ? "c-ppo" : "c-dpo" });
  if (side.label) add(box, "h4", {}, `${side.label}${side.values ? ` · reward ${show(sum(side.values), 3)}` : ""}`);
  return tokenRun(add(box, "div"), side.tokens, {
    glue: side.glue,
    label: `${side.label} tokens: arrow keys read them`,
    of: (i) => ({
      classes: `${side.special[i] ? "special" : ""} ${side.counted[i] ? "counted" : "masked"}`,
      amount: side.values && side.counted[i] ? strength(state.scale, side.values[i]) : undefined,
    }),
    read: (i) => {
      readout.replaceChildren();
      add(readout, "b", { dir: "auto" }, side.tokens[i].trim() || side.tokens[i]);
      add(readout, "span", {}, `token ${i + 1}${side.label ? `, ${side.label}` : ""}`);
      const one = (label, value) => add(add(readout, "span", {}, `${label} `), "b", {}, value);
      if (!side.counted[i]) {
        add(readout, "span", {}, i ? "left out: read, but not learned" : "left out: nothing comes before it");
        return;
      }
      if (state.kind === "sft") {
        if (side.values) {
          one("−log p", `${brief(side.values[i])} nats`);
          one("p", brief(Math.exp(-side.values[i])));
          one("of the row's loss", `${((100 * side.values[i]) / Math.max(1e-12, sum(side.values))).toFixed(1)}%`);
        } else one("weight", `1/${counted} of the row's mean`);
      } else {
        add(readout, "span", {}, side.label === "chosen" ? "counted: pushed up" : "counted: pushed down");
        if (side.values) one("β (log π − log π_ref)", brief(side.values[i]));
      }
    },
  });
}

function key(host, state) {
  add(host, "span", { class: "token masked" }, "left out");
  if (state.scale) {
    const sample = add(host, "span", { class: "token counted" }, "counted");
    paint(sample, 0.6);
  } else add(host, "span", { class: "token counted" }, "counted");
  add(host, "span", { class: "token special" }, "<sign>");
  add(host, "span", {}, "special token");
}
