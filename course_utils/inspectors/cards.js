// Answers on cards: the text, sentence by sentence where the gold reward could read it, the scores,
// and the gold reward's parts as bars on one scale.

import { add, known, show, tokenRun } from "./kit.js";
import { sign } from "./marks.js";

const TRUTH = { 1: ", right", 0: ", wrong" };

// A line above the cards that says what the sentence under the pointer is. Returns {clear, say}; say
// goes to the cards as `note`.
export function sentenceReadout(parent) {
  const host = add(parent, "div", { class: "readout", "aria-live": "polite" });
  return {
    host,
    clear(some) {
      host.replaceChildren();
      host.hidden = !some;
      add(host, "span", {}, "Blue sentences are right, orange ones wrong, hatched ones beside the point; point at one, or use the arrow keys.");
    },
    say(who, [text, kind, truth]) {
      host.replaceChildren();
      add(host, "b", {}, text);
      add(host, "span", {}, `${who}: ${kind}${TRUTH[truth] ?? ""}`);
    },
  };
}

export const textOf = (answer) => (answer.said ? answer.said.map((s) => s[0]).join(" ") : answer.text ?? "");

// The largest part, up or down, of all answers: where the bars end.
export function partScale(answers) {
  let most = 0;
  for (const a of answers) for (const v of a.parts ?? []) if (known(v)) most = Math.max(most, Math.abs(v));
  return most || 1;
}

// One answer of a method: {label, tone, shape}. options: parts [{name, help}], scale, note (what the
// sentence under the pointer is), best, extra ([[name, value]] below the head).
export function answerCard(parent, method, answer, { parts = [], scale = 1, best = false, note = null } = {}) {
  const card = add(parent, "article", { class: `reply ${method.tone ?? ""}`, "aria-label": method.label });
  const head = add(card, "header");
  const name = add(head, "h4");
  if (method.shape) sign(name, method);
  add(name, "span", {}, method.label);
  if (!answer) {
    add(card, "p", { class: "quoted none" }, "no answer recorded");
    return card;
  }
  if (known(answer.gold)) add(head, "b", { title: "gold reward" }, show(answer.gold));
  const line = [];
  if (best) line.push("most gold");
  if (known(answer.reward)) line.push(`reward model ${show(answer.reward)}`);
  if (known(answer.kl)) line.push(`KL ${show(answer.kl)}`);
  if (line.length) add(card, "div", { class: "fine" }, line.join(" · "));
  said(card, answer, note, method.label);
  if (answer.parts) partBars(card, answer.parts, parts, scale);
  return card;
}

function said(card, answer, note, label) {
  const host = add(card, "div", { class: "quoted", dir: "auto" });
  if (!textOf(answer)) {
    host.classList.add("none");
    host.textContent = "an empty answer";
  } else if (!answer.said) host.textContent = answer.text;
  else {
    tokenRun(host, answer.said.map((s) => s[0]), {
      glue: " ",
      label: `${label}: sentences`,
      of: (i) => {
        const truth = answer.said[i][2];
        return truth === null ? {} : truth < 0 ? { classes: "odd" } : { amount: truth ? 0.4 : -0.6 };
      },
      read: (i) => note?.(label, answer.said[i]),
    });
    host.classList.remove("tokens");
    host.classList.add("quoted");
  }
}

// Bars around zero; every card has the same scale, so that bars can be compared across cards.
export function partBars(parent, values, parts, scale) {
  const host = add(parent, "div", { class: "parts", role: "list", "aria-label": "parts of the gold reward" });
  parts.forEach(({ name, help }, i) => {
    const v = values[i];
    const zero = !known(v) || Math.abs(v) < 0.005 ? "nought" : "";
    const part = add(host, "div", { class: `part ${zero}`, title: help, role: "listitem", "aria-label": `${name} ${show(v)}` });
    add(part, "span", {}, name);
    const gauge = add(part, "span", { class: "gauge", "aria-hidden": "true" });
    add(gauge, "u").style.left = "50%";
    if (!zero) {
      const bar = add(gauge, "i", { class: v < 0 ? "neg" : "" });
      const size = Math.min(50, (50 * Math.abs(v)) / scale);
      bar.style.left = `${v < 0 ? 50 - size : 50}%`;
      bar.style.width = `${size}%`;
    }
    add(part, "b", { "aria-hidden": "true" }, show(v));
  });
}
