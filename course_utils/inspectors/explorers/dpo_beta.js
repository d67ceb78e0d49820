// DPO, cDPO and IPO on one pair: loss and gradient weight by the policy's lead, implicit rewards.

import { add, brief, clamp } from "../kit.js";
import { interact, linear, ticks } from "../charts.js";
import { chart, curve, explorer, figures, here, keys, percent, sigmoid, softplus } from "./explore.js";

// lead: log π/π_ref(y_w) - log π/π_ref(y_l), nats.
export function losses(lead, beta, smoothing) {
  const u = beta * lead;
  return {
    dpo: { loss: softplus(-u), weight: sigmoid(-u) },
    cdpo: { loss: (1 - smoothing) * softplus(-u) + smoothing * softplus(u), weight: sigmoid(-u) - smoothing },
    ipo: { loss: (lead - 1 / (2 * beta)) ** 2, weight: -2 * (lead - 1 / (2 * beta)) * beta },
  };
}

export function compute(c) {
  const [reward_chosen, reward_rejected] = [c.beta * c.chosen, c.beta * c.rejected];
  const margin = reward_chosen - reward_rejected;
  const lead = c.chosen - c.rejected;
  return { reward_chosen, reward_rejected, lead, margin, probability: sigmoid(c.beta * lead), ...losses(lead, c.beta, c.smoothing) };
}

const KINDS = [["dpo", "DPO", "c-dpo"], ["cdpo", "cDPO", "c-best-of-n", "held"], ["ipo", "IPO × β²", "c-gold", "dots"]];

export function render({ model, el }) {
  return explorer({ model, el }, {
    compute,
    build(stage, view, pick) {
      const rewards = add(stage, "div", { class: "chart" });
      add(rewards, "h4", {}, "implicit rewards r̂ = β log π/π_ref");
      const drawRewards = add(rewards, "div");
      const pair = add(stage, "div", { class: "pair" });
      const drawLoss = chart(pair, "loss");
      const drawWeight = chart(pair, "how much the pair counts: −∂L/∂u");
      keys(stage, [["DPO", "c-dpo"], ["cDPO", "c-best-of-n", true], ["IPO × β², to share the axis", "c-gold dots", true]]);
      const put = figures(stage);
      return (found, c) => {
        bars(drawRewards, found);
        const far = clamp(Math.abs(found.lead) * 1.1, 50, 2.1e4);
        const domain = [-far, far];
        const at = (lead) => losses(lead, c.beta, c.smoothing);
        const shape = (name, what) => (lead) => at(lead)[name][what] * (name === "ipo" && what === "loss" ? c.beta ** 2 : 1);
        const x = { domain, label: "lead of y_w over y_l, nats", count: 5 };
        const top = clamp(shape("dpo", "loss")(-far) * 1.05, 1.6, 12);
        for (const [draw, what, tall] of [[drawLoss, "loss", [0, top]], [drawWeight, "weight", [-0.55, 1.15]]]) {
          const made = draw({ height: 236, margin: { bottom: 38 }, x, y: { domain: tall, count: 5 }, label: `${what} by lead. Arrow keys read the curves, Enter moves the chosen answer.` });
          for (const [name, , tone, held = ""] of KINDS) curve(made, domain, shape(name, what), `${tone} ${held}`);
          for (const [name, , tone] of [...KINDS].reverse()) {
            const y = shape(name, what)(found.lead);
            if (y >= tall[0] && y <= tall[1]) here(made, found.lead, y, tone);
          }
          const stops = [];
          for (let i = -30; i <= 30; i++) {
            const lead = (far * i) / 30;
            stops.push({ lead, x: made.sx(lead), y: made.box.top, title: `lead ${brief(lead)} nats, u = ${brief(lead * c.beta)}`, rows: KINDS.map(([name, text]) => [text, brief(shape(name, what)(lead))]) });
          }
          interact(made.svg, stops, { flat: true, onPick: (i) => pick({ chosen: Number(clamp(c.rejected + stops[i].lead, -1e4, 1e4).toFixed(1)) }) });
        }
        const turn = c.smoothing > 0 ? Math.log((1 - c.smoothing) / c.smoothing) : null;
        put([
          ["margin u", found.margin, `${brief(found.lead)} nats × β`],
          ["P(y_w ≻ y_l)", percent(found.probability), "what the policy implies"],
          ["DPO", found.dpo.loss, `weight ${brief(found.dpo.weight)}`, "c-dpo"],
          ["cDPO", found.cdpo.loss, `weight ${brief(found.cdpo.weight)}${turn ? `, 0 at u = ${brief(turn)}` : ""}`, "c-best-of-n"],
          ["IPO", found.ipo.loss, `weight × β² ${brief(found.ipo.weight)}, 0 at ${brief(1 / (2 * c.beta))} nats`, "c-gold"],
        ]);
      };
    },
  });
}

// Two bars from zero, and the margin between their ends.
function bars(parent, found) {
  parent.replaceChildren();
  const width = clamp(parent.clientWidth || 560, 230, 900);
  const rows = [["chosen y_w", found.reward_chosen, "c-sft"], ["rejected y_l", found.reward_rejected, "c-ppo"]];
  const far = Math.max(1, ...rows.map(([, v]) => Math.abs(v))) * 1.12;
  const sx = linear([-far, far], [96, width - 14]);
  const svg = add(parent, "svg", { viewBox: `0 0 ${width} 92`, role: "img", "aria-label": `Implicit rewards: chosen ${brief(found.reward_chosen)}, rejected ${brief(found.reward_rejected)}` });
  const g = add(svg, "g", { class: "axes" });
  for (const v of ticks(-far, far, 5)) {
    add(g, "line", { x1: sx(v), x2: sx(v), y1: 2, y2: 70, class: v ? "grid" : "zero" });
    add(g, "text", { x: sx(v), y: 86, "text-anchor": "middle" }, brief(v));
  }
  rows.forEach(([name, value, tone], i) => {
    const [a, b] = [sx(0), sx(value)].sort((p, q) => p - q);
    const y = 8 + 32 * i;
    add(svg, "rect", { x: a, width: Math.max(1.5, b - a), y, height: 22, rx: 3, class: `bar ${tone}` });
    add(svg, "text", { x: 88, y: y + 16, "text-anchor": "end", class: `name ${tone}` }, name);
    const right = value >= 0;
    const inside = right ? width - b < 60 : a - 96 < 60;
    add(svg, "text", { x: sx(value) + (right !== inside ? 7 : -7), y: y + 16, "text-anchor": right !== inside ? "start" : "end", class: "name" }, brief(value));
  });
}
