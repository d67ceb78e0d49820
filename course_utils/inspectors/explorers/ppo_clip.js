// PPO's clipped objective for one token: the curve, its slope, and where the token is.

import { add, brief, clamp } from "../kit.js";
import { interact } from "../charts.js";
import { Refusal, chart, curve, explorer, figures, here } from "./explore.js";

export function surrogate(ratio, advantage, clip, high, dual) {
  const unclipped = ratio * advantage;
  const bounded = clamp(ratio, 1 - clip, 1 + high) * advantage;
  let objective = Math.min(unclipped, bounded);
  let clipped = bounded < unclipped;
  if (dual !== null && advantage < 0 && objective < dual * advantage) {
    objective = dual * advantage;
    clipped = true;
  }
  return { objective, unclipped, bounded, clipped, gradient: clipped ? 0 : advantage };
}

const settings = (c) => [c.clip, c.apart ? c.high : c.clip, c.dual ? c.floor : null];

export function compute(c) {
  const [clip, high, dual] = settings(c);
  if (dual !== null && !(dual > 1 + high)) throw new Refusal(`dual clip c must be above 1 + ε = ${brief(1 + high)}: below it there is nothing left for the clip to do.`);
  const found = surrogate(c.ratio, c.advantage, clip, high, dual);
  const inside = 1 - clip <= c.ratio && c.ratio <= 1 + high;
  return {
    ...found,
    push: c.ratio * found.gradient,
    log_ratio: Math.log(c.ratio),
    region: found.clipped ? "stopped" : inside ? "inside" : "pulled back",
  };
}

const REGIONS = {
  "stopped": ["flat: no gradient", "the clip has let this token go"],
  "inside": ["inside 1 ± ε", "the full gradient r Â"],
  "pulled back": ["outside, not clipped", "moved the wrong way, and is pulled back"],
};

export function render({ model, el }) {
  return explorer({ model, el }, {
    compute,
    build(stage, view, pick) {
      const drawCurve = chart(stage, "objective");
      const drawSlope = chart(stage, "slope by r");
      const show = figures(stage);
      return (found, c) => {
        const [clip, high, dual] = settings(c);
        const at = (r) => surrogate(r, c.advantage, clip, high, dual);
        const domain = [0, Math.max(3, c.ratio * 1.05)];
        const size = Math.max(Math.abs(c.advantage), 1e-6);
        const tall = c.advantage >= 0 ? [Math.min(0, -0.25 * size), 2 * size] : [-domain[1] * size, 0.35 * size];
        const label = "Objective by ratio. Arrow keys read the curve, Enter moves the token there.";
        const made = drawCurve({ height: 280, x: { domain, label: "ratio r = π / π_old" }, y: { domain: tall }, margin: { bottom: 38 }, label });
        backdrop(made, clip, high, dual);
        curve(made, domain, (r) => r * c.advantage, "c-ink thin held");
        const mark = c.advantage >= 0 ? Math.min(1.9, domain[1] * 0.62) : (1 - clip) / 2;
        add(made.plot, "text", { x: made.sx(mark) + 10, y: made.sy(mark * c.advantage) + (c.advantage >= 0 ? 6 : -4), class: "name c-ink" }, "r Â");
        const side = c.advantage >= 0 ? "c-sft" : "c-ppo";
        curve(made, domain, (r) => at(r).objective, side, 400);
        pull(made, c, found, size, side);
        here(made, c.ratio, found.objective, side);
        const stops = [];
        for (let i = 1; i <= 60; i++) {
          const r = (domain[1] * i) / 60;
          const o = at(r);
          stops.push({ r, x: made.sx(r), y: clamp(made.sy(o.objective), made.box.top, made.box.bottom), title: `r = ${brief(r)}`, rows: [["objective", brief(o.objective)], ["slope", brief(o.gradient)]] });
        }
        interact(made.svg, stops, { flat: true, onPick: (i) => pick({ ratio: Number(clamp(stops[i].r, 0.01, 10).toFixed(2)) }) });

        const steep = drawSlope({
          height: 118,
          x: { domain, lead: "r" },
          y: { domain: c.advantage >= 0 ? [-0.15 * size, 1.25 * size] : [-1.25 * size, 0.15 * size], count: 2 },
          label: "Slope of the objective by ratio",
        });
        backdrop(steep, clip, high, dual, false);
        curve(steep, domain, (r) => at(r).gradient, side, 600);
        here(steep, c.ratio, found.gradient, side);
        show([
          ["objective", found.objective, `r Â = ${brief(found.unclipped)}`, side],
          ["slope by r", found.gradient, found.clipped ? "zero: clipped" : "= Â"],
          ["pull on log π", found.push, "r · slope"],
          ["region", ...REGIONS[found.region]],
        ]);
      };
    },
  });
}

function backdrop(made, clip, high, dual, names = true) {
  const { sx, box, under, plot } = made;
  add(under, "rect", { x: sx(1 - clip), width: sx(1 + high) - sx(1 - clip), y: box.top, height: box.bottom - box.top, class: "band" });
  for (const [r, text] of [[1 - clip, "1−ε"], [1 + high, "1+ε"], [dual, "c"]]) {
    if (r === null) continue;
    add(under, "line", { x1: sx(r), x2: sx(r), y1: box.top, y2: box.bottom, class: "reference" });
    if (names) add(plot, "text", { x: sx(r) + (r < 1 ? -4 : 4), y: box.top + 11, "text-anchor": r < 1 ? "end" : "start", class: "name c-ink" }, text);
  }
}

// Where this token's gradient pulls the ratio: an arrow, the longer the steeper.
function pull(made, c, found, size, side) {
  if (!found.gradient) return;
  const [x, y] = [made.sx(c.ratio), clamp(made.sy(found.objective), made.box.top, made.box.bottom)];
  const length = 16 + 30 * Math.min(1, Math.abs(found.gradient) / size);
  const way = Math.sign(found.gradient);
  const tip = x + way * length;
  add(made.inner, "path", { d: `M${x},${y}H${tip}m${-7 * way},-5l${7 * way},5l${-7 * way},5`, class: `arrow ${side}` });
}
