// The answer comparer: one prompt, a card per model, and the means over all prompts.

import { add, choice, clamp, count, fold, inspect, known, on, show, slider } from "./kit.js";
import { methodKeys, sign } from "./marks.js";
import { answerCard, partBars, partScale, sentenceReadout, textOf } from "./cards.js";

const ORDERS = {
  given: { text: "as given", of: (row, i) => i },
  spread: { text: "models differ most", of: (row) => -spread(row) },
  worst: { text: "worst answers", of: (row) => Math.min(...golds(row)) },
};

export function render({ model, el }) {
  return inspect({ model, el }, (view) => {
    const head = add(view.root, "div", { class: "head" });
    add(head, "h3", {}, "The same prompt, different models");
    const putKeys = methodKeys(head, view);
    const controls = add(view.root, "div", { class: "controls" });
    const stepper = add(controls, "span", { class: "stepper" });
    const step = (by) => on(add(stepper, "button", { type: "button", "aria-label": by < 0 ? "previous prompt" : "next prompt" }, by < 0 ? "←" : "→"), "click", () => go(view, by));
    step(-1);
    const put = slider(stepper, "prompt", {}, (at) => view.choose({ at: order(view.state, view.ui)[at] }));
    step(1);
    const markOrder = choice(controls, "order of the prompts", Object.entries(ORDERS).map(([k, v]) => [k, v.text]), (name) => {
      view.choose({ order: name, at: order(view.state, { ...view.ui, order: name })[0] ?? 0 });
    });
    const search = add(controls, "input", { type: "search", placeholder: "find in prompts and answers", "aria-label": "find in prompts and answers" });
    on(search, "input", () => view.choose({ find: search.value, at: order(view.state, { ...view.ui, find: search.value })[0] ?? view.ui.at }));
    const prompt = add(view.root, "p", { class: "prompt asked", dir: "auto" });
    const readout = sentenceReadout(view.root);
    const cards = add(view.root, "div", { class: "replies" });
    const means = fold(view.root, "means over all prompts");
    const note = add(view.root, "p", { class: "fine" });
    let last = [];
    let meant = []; // for which the means were drawn
    let scale = [null, 1]; // one for all prompts, so that a bar of one can be compared with another's
    return (state) => {
      putKeys(state.methods);
      markOrder(view.ui.order);
      const found = order(state, view.ui);
      const at = Math.max(0, found.indexOf(view.ui.at));
      const row = state.rows[found[at]];
      const some = state.rows.length > 0;
      for (const node of [controls, means.parentElement]) node.style.display = some ? "" : "none";
      if (document.activeElement !== search) search.value = view.ui.find ?? "";
      put({ value: at, min: 0, max: Math.max(0, found.length - 1), text: found.length ? `prompt ${at + 1} of ${found.length}` : "nothing found" });
      note.textContent = state.skipped ? `This page holds ${count(state.rows.length, "prompt")}, those on which the models differ most, of ${count(state.rows.length + state.skipped, "prompt")}.` : "";
      const now = [state, row, view.ui.hidden];
      if (now.every((v, i) => v === last[i]) && last.length) return;
      last = now;
      readout.clear(Boolean(row?.answers.some((a) => a?.said)));
      cards.replaceChildren();
      prompt.textContent = row ? row.prompt : some ? "" : null;
      if (!row) add(cards, "p", { class: "empty" }, some ? "No prompt or answer contains this." : "No answers yet.");
      else {
        if (scale[0] !== state) scale = [state, partScale(state.rows.flatMap((r) => r.answers.filter(Boolean)))];
        drawCards(view, cards, row, scale[1], readout.say);
      }
      if (state === meant[0] && view.ui.hidden === meant[1]) return;
      meant = [state, view.ui.hidden];
      drawMeans(means, view, state);
    };
  });
}

const golds = (row) => row.answers.filter((a) => a && known(a.gold)).map((a) => a.gold);
const spread = (row) => (golds(row).length ? Math.max(...golds(row)) - Math.min(...golds(row)) : 0);

// Indices of the rows that contain what is searched for, in the order chosen.
function order(state, { order: name, find }) {
  const wanted = (find ?? "").toLowerCase();
  return state.rows
    .map((row, i) => [ORDERS[name ?? "given"].of(row, i), i, row])
    .filter(([, , row]) => !wanted || [row.prompt, ...row.answers.map((a) => (a ? textOf(a) : ""))].some((t) => t.toLowerCase().includes(wanted)))
    .sort((a, b) => a[0] - b[0] || a[1] - b[1])
    .map(([, i]) => i);
}

function go(view, by) {
  const found = order(view.state, view.ui);
  if (found.length) view.choose({ at: found[clamp(found.indexOf(view.ui.at) + by, 0, found.length - 1)] });
}

function drawCards(view, host, row, scale, say) {
  const { state } = view;
  const hidden = new Set(view.ui.hidden ?? []);
  const seen = row.answers.map((a, i) => [a, state.methods[i]]).filter(([, m]) => !hidden.has(m.key));
  const found = seen.map(([a]) => a?.gold).filter(known);
  const top = found.length > 1 && Math.max(...found) > Math.min(...found) ? Math.max(...found) : null;
  for (const [answer, method] of seen) {
    answerCard(host, method, answer, { parts: state.parts, scale, note: say, best: top !== null && answer?.gold === top });
  }
  if (!seen.length) add(host, "p", { class: "empty" }, "All models are hidden: press a name above.");
}

function drawMeans(host, view, state) {
  host.replaceChildren();
  if (!state.parts.length && !state.means.some((m) => known(m.gold))) return;
  const hidden = new Set(view.ui.hidden ?? []);
  const cards = add(host, "div", { class: "replies" });
  const most = Math.max(0.01, ...state.means.flatMap((m) => m.parts.filter(known).map(Math.abs)));
  state.means.forEach((mean, i) => {
    const method = state.methods[i];
    if (hidden.has(method.key)) return;
    const card = add(cards, "article", { class: `reply ${method.tone}` });
    const head = add(card, "header");
    const name = add(head, "h4");
    sign(name, method);
    add(name, "span", {}, method.label);
    add(head, "b", {}, show(mean.gold));
    add(card, "div", { class: "fine" }, `${count(mean.answers, "answer")}, most gold on ${count(mean.wins, "prompt")}`);
    if (state.parts.length) partBars(card, mean.parts, state.parts, most);
  });
}
