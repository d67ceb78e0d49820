// The adaptive KL controller on a simulated policy: two paths over the iterations, KL and β.

import { add, brief } from "../kit.js";
import { interact, line } from "../charts.js";
import { Refusal, chart, explorer, figures, keys, logged, logTicks, normals, percent } from "./explore.js";

const MOST_KL = 400;

const react = (kl, beta, c) => kl + c.speed * (Math.min((c.pull / (2 * beta)) ** 2, MOST_KL) - kl);

export function compute(c) {
  if (!(c.samples < 5 * c.horizon)) throw new Refusal(`horizon must be above a fifth of the ${c.samples} answers of an iteration: β could reach 0.`);
  const noise = normals(c.seed, c.steps);
  const paths = { kl: [], measured: [], beta: [], fixed: [] };
  let [kl, fixed, beta] = [0, 0, c.beta];
  for (let t = 0; t < c.steps; t++) {
    kl = react(kl, beta, c);
    fixed = react(fixed, c.beta, c);
    const measured = kl * Math.exp(c.noise * noise[t]);
    const error = Math.min(Math.max(measured / c.target - 1, -0.2), 0.2);
    beta *= 1 + (error * c.samples) / c.horizon;
    paths.kl.push(kl);
    paths.measured.push(measured);
    paths.fixed.push(fixed);
    paths.beta.push(beta);
  }
  const last = Math.max(1, Math.floor(c.steps / 10));
  const settled = paths.kl.findLastIndex((v) => Math.abs(v / c.target - 1) > 0.2) + 1;
  return {
    ...paths,
    final_kl: paths.kl.slice(-last).reduce((a, b) => a + b, 0) / last,
    final_beta: beta,
    final_fixed: fixed,
    highest: Math.max(...paths.kl),
    settled: settled < c.steps ? settled : null,
    right_beta: c.pull / (2 * Math.sqrt(c.target)),
    most_change: (0.2 * c.samples) / c.horizon,
  };
}

export function render({ model, el }) {
  return explorer({ model, el }, {
    compute,
    build(stage) {
      const drawKL = chart(stage, "KL to the reference, nats per answer (shaded: the target ± 20%)");
      keys(stage, [["KL, adaptive β", "c-ppo"], ["as measured", "c-ppo faint-key", false], ["KL, β fixed", "c-base", true]]);
      const drawBeta = chart(stage, "β (dotted: where KL would come to rest at the target)");
      const put = figures(stage);
      return (found, c) => {
        const x = { domain: [0, c.steps], label: "iteration" };
        const high = Math.max(c.target * 1.4, Math.min(Math.max(...found.measured), 12 * c.target), Math.min(found.final_fixed * 1.1, 6 * c.target));
        const kl = drawKL({ height: 248, margin: { bottom: 38, left: 52 }, x, y: { domain: [0, high] }, label: "KL by iteration. Arrow keys read the path." });
        const at = (made, values) => values.map((v, t) => [made.sx(t + 1), made.sy(v)]);
        addBand(kl, c.target);
        line(kl.inner, at(kl, found.measured), "c-ppo faint");
        line(kl.inner, at(kl, found.fixed), "c-base held");
        line(kl.inner, at(kl, found.kl), "c-ppo");
        const low = Math.min(c.beta, found.right_beta, ...found.beta);
        const top = Math.max(c.beta, found.right_beta, ...found.beta);
        const beta = drawBeta({
          height: 170, margin: { bottom: 38, left: 52 }, x,
          y: { domain: [low / 1.3, top * 1.3], scale: logged, ticks: (d) => betaTicks(d), format: (v) => brief(v) },
          label: "β by iteration, logarithmic. Arrow keys read the path.",
        });
        rule(beta, beta.sy(found.right_beta));
        line(beta.inner, [[beta.sx(0), beta.sy(c.beta)], ...at(beta, found.beta)], "c-ppo");
        for (const made of [kl, beta]) {
          interact(made.svg, found.kl.map((v, t) => ({
            x: made.sx(t + 1), y: made.box.top + 20, title: `iteration ${t + 1}`,
            rows: [["KL", brief(v)], ["measured", brief(found.measured[t])], ["β after it", brief(found.beta[t])], ["KL, β fixed", brief(found.fixed[t])]],
          })), { flat: true });
        }
        put([
          ["KL at the end", found.final_kl, `target ${brief(c.target)}`, "c-ppo"],
          ["β at the end", found.final_beta, `${brief(found.right_beta)} would hold the target`, "c-ppo"],
          ["KL, β fixed", found.final_fixed, "at the end", "c-base"],
          ["settled after", found.settled === null ? "not yet" : String(found.settled), "iterations, within 20%"],
          ["β moves at most", percent(found.most_change, 2), "an iteration"],
        ]);
      };
    },
  });
}

function betaTicks(domain) {
  if (domain[1] / domain[0] > 30) return logTicks(domain);
  const found = [];
  for (let p = Math.floor(Math.log10(domain[0])); 10 ** p < domain[1]; p++) {
    for (const m of [1, 2, 5]) found.push(Number((m * 10 ** p).toPrecision(3)));
  }
  return found.filter((v) => v >= domain[0] && v <= domain[1]);
}

function addBand(made, target) {
  const { sy, box, under } = made;
  const y = Math.max(box.top, sy(1.2 * target));
  add(under, "rect", { x: box.left, width: box.right - box.left, y, height: sy(0.8 * target) - y, class: "band" });
  rule(made, sy(target));
}

const rule = ({ box, under }, y) => add(under, "line", { x1: box.left, x2: box.right, y1: y, y2: y, class: "reference" });
