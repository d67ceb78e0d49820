// Bradley-Terry: the difference of two scores as a probability, a loss, and a gradient.

import { add, brief, show } from "../kit.js";
import { interact } from "../charts.js";
import { chart, curve, explorer, figures, here, keys, percent, sigmoid, softplus } from "./explore.js";

export function terms(difference, margin, smoothing) {
  const x = difference - margin;
  return {
    difference,
    probability: sigmoid(difference),
    loss: (1 - smoothing) * softplus(-x) + smoothing * softplus(x),
    gradient: -((1 - smoothing) * sigmoid(-x) - smoothing * sigmoid(x)),
  };
}

export const compute = (c) => terms(c.chosen - c.rejected, c.margin, c.smoothing);

const DOTS = 100;

export function render({ model, el }) {
  return explorer({ model, el }, {
    compute,
    build(stage, view, pick) {
      const pair = add(stage, "div", { class: "pair" });
      const drawChance = chart(pair, "P(A preferred)");
      const people = add(pair, "div", { class: "chart" });
      add(people, "h4", {}, "of 100 people, how many prefer A?");
      const crowd = add(people, "div");
      const drawLoss = chart(stage, "loss, and its slope by A's score");
      keys(stage, [["loss", "c-sft"], ["slope", "c-ppo", true]]);
      const put = figures(stage);
      return (found, c) => {
        const far = Math.max(8, Math.min(1e4, Math.abs(found.difference) * 1.15));
        const domain = [-far, far];
        const at = (d) => terms(d, c.margin, c.smoothing);
        const readers = (made, y) => {
          const stops = [];
          for (let i = -30; i <= 30; i++) {
            const d = (far * i) / 30;
            const t = at(d);
            stops.push({ d, x: made.sx(d), y: made.sy(Math.min(y(t), made.top)), title: `difference ${brief(d)}`, rows: [["P(A preferred)", brief(t.probability)], ["loss", brief(t.loss)], ["slope", brief(t.gradient)]] });
          }
          interact(made.svg, stops, { flat: true, onPick: (i) => pick({ chosen: Number((c.rejected + stops[i].d).toFixed(2)) }) });
        };
        const chance = drawChance({
          height: 216, margin: { bottom: 38 },
          x: { domain, label: "r_A − r_B", count: 4 }, y: { domain: [0, 1], count: 4 },
          label: "Probability that A is preferred, by difference of scores. Arrow keys read the curve, Enter sets A's score.",
        });
        curve(chance, domain, sigmoid, "c-sft");
        here(chance, found.difference, found.probability, "c-sft");
        readers({ ...chance, top: 1 }, (t) => t.probability);
        dots(crowd, Math.round(DOTS * found.probability));
        const top = Math.max(2.5, Math.min(found.loss * 1.15, at(-far).loss));
        const loss = drawLoss({
          height: 230, margin: { bottom: 38 },
          x: { domain, label: "r_A − r_B" }, y: { domain: [-1.1, top] },
          label: "Loss and its slope, by difference of scores",
        });
        curve(loss, domain, (d) => at(d).loss, "c-sft");
        curve(loss, domain, (d) => at(d).gradient, "c-ppo held");
        here(loss, found.difference, found.loss, "c-sft");
        here(loss, found.difference, found.gradient, "c-ppo");
        readers({ ...loss, top }, (t) => t.loss);
        put([
          ["difference", found.difference, "r_A − r_B, the log-odds"],
          ["P(A preferred)", percent(found.probability), `odds ${brief(Math.exp(Math.min(700, found.difference)))} to 1`, "c-sft"],
          ["loss", found.loss, `${show(Math.LN2, 3)} if the scores are equal`, "c-sft"],
          ["slope by A's score", found.gradient, found.gradient > 0 ? "A is held down" : "A is pushed up, B as much down", "c-ppo"],
        ]);
      };
    },
  });
}

function dots(parent, filled) {
  parent.replaceChildren();
  parent.className = "people";
  const side = 19;
  const svg = add(parent, "svg", { viewBox: `0 0 ${10 * side} ${10 * side}`, role: "img", "aria-label": `${filled} of 100 prefer A`, class: "crowd" });
  for (let i = 0; i < DOTS; i++) {
    const [x, y] = [((i % 10) + 0.5) * side, (Math.floor(i / 10) + 0.5) * side];
    add(svg, "circle", { cx: x, cy: y, r: i < filled ? 6.8 : 5.6, class: i < filled ? "bar c-sft" : "ring c-ppo" });
  }
  const legend = add(parent, "p", { class: "fine" });
  add(legend, "b", { class: "tone c-sft" }, `● ${filled} prefer A`);
  add(legend, "b", { class: "tone c-ppo" }, `○ ${DOTS - filled} prefer B`);
}
