// The rollout inspector: a step, an answer, a quantity; every token in its colour, its numbers below.

import { add, brief, choice, clamp, count, inspect, isSign, known, legend, on, responsive, show, slider, speak, strength, tokenRun } from "./kit.js";
import { axes, extent, line, linear } from "./charts.js";

// The twins of `k3` and `quantity` in rollouts.py.
const k3 = (d) => (known(d) ? Math.exp(Math.min(-d, 20)) - 1 + d : null);

function quantity(rollout, name) {
  const values = rollout[name === "k3" ? "kl" : name];
  if (!values) return null;
  if (name === "k3") return values.map(k3);
  return name === "logprobs" ? values.map((v) => (known(v) ? -v : null)) : values;
}

const SORTS = [
  ["sampled", "as sampled", (r) => r.number],
  ["best", "highest score", (r) => -(r.score ?? -1e9)],
  ["worst", "lowest score", (r) => r.score ?? 1e9],
  ["gold", "lowest gold", (r) => r.gold ?? 1e9],
  ["far", "largest KL", (r) => -(r.moved ?? -1e9)],
  ["gap", "score far above gold", (r) => -((r.score ?? -1e9) - (r.gold ?? 0))],
  ["long", "longest", (r) => -(r.tokens.length + (r.more ?? 0))],
];

export function render({ model, el }) {
  return inspect({ model, el }, (view) => {
    const { root } = view;
    const head = add(root, "div", { class: "head" });
    const title = add(head, "h3");
    const walk = add(head, "div", { class: "controls" });
    const course = add(root, "div", { class: "course", "aria-hidden": "true" });
    const two = add(root, "div", { class: "two" });
    const empty = add(root, "p", { class: "empty" });
    const side = add(two, "div", { class: "side" });
    const main = add(two, "div");
    const picks = add(side, "div", { class: "controls" });
    const list = add(side, "div", { class: "answers", role: "listbox", "aria-label": "answers of this step", tabindex: 0 });
    const listed = add(side, "p", { class: "fine" });
    const parts = {
      controls: add(main, "div", { class: "controls" }),
      prompt: add(main, "p", { class: "prompt", dir: "auto" }),
      facts: add(main, "p", { class: "facts" }),
      said: add(main, "div", { class: "said" }),
      readout: add(main, "p", { class: "readout" }),
      strip: add(main, "div", { class: "strip" }),
      legend: add(main, "div"),
    };
    parts.controls.style.marginBottom = "10px";
    let book = null; // {state, steps, of: Map step -> rollouts}
    let shown = []; // the rollouts in the list, in its order
    let drawnList = "";
    let marks = { names: "", mark: () => {} };

    const put = slider(walk, "training step", { min: 0, step: 1 }, (i) => goTo(book.steps[i]));
    const sort = add(picks, "select", { "aria-label": "sort the answers" });
    on(sort, "change", () => view.choose({ sort: sort.value }));
    const filter = add(picks, "input", { type: "search", placeholder: "filter", "aria-label": "show answers with these words" });
    on(filter, "input", () => view.choose({ filter: filter.value }));

    // To another step, staying with the prompt where it has it.
    function goTo(step) {
      const prompt = current()?.prompt;
      const there = book.of.get(step);
      const same = there.findIndex((r) => r.prompt === prompt);
      view.choose({ step, answer: same >= 0 ? same : Math.min(view.ui.answer, there.length - 1) });
    }
    const stepNow = () => (book.of.has(view.ui.step) ? view.ui.step : book.steps.at(-1));
    const current = () => book.of.get(stepNow())?.[view.ui.answer] ?? book.of.get(stepNow())?.[0];

    const pick = (rollout) => {
      view.choose({ step: rollout.step, answer: rollout.number });
      speak(root, `${rollout.prompt}: score ${brief(rollout.score)}`);
    };
    on(list, "click", (event) => {
      const item = event.target.closest(".item");
      if (item) pick(shown[Number(item.dataset.k)]);
    });
    on(list, "keydown", (event) => {
      const by = { ArrowDown: 1, ArrowUp: -1, Home: -1e9, End: 1e9, PageDown: 8, PageUp: -8 }[event.key];
      if (!by || !shown.length) return;
      event.preventDefault();
      pick(shown[clamp(shown.indexOf(current()) + by, 0, shown.length - 1)]);
    });

    const update = (state) => {
      if (book?.state !== state) book = bookOf(state);
      title.textContent = `Rollouts${state.name ? ` · ${state.name}` : ""}`;
      const none = !book.steps.length;
      for (const part of [walk, course, two]) part.hidden = none;
      two.style.display = none ? "none" : "";
      empty.hidden = !none;
      empty.textContent = state.live ? "Waiting for the first answers …" : "No rollouts yet.";
      if (none) return;
      const step = stepNow();
      put({ value: book.steps.indexOf(step), min: 0, max: book.steps.length - 1, text: `step ${step}` });
      drawCourse(course, state, book.steps, step);
      drawList(state, step);
      const names = Object.keys(state.scales).join();
      if (marks.names !== names) {
        parts.controls.replaceChildren();
        const options = Object.entries(state.scales).map(([name, s]) => [name, s.label, s.help]);
        marks = { names, mark: choice(parts.controls, "colour the tokens by", options, (by) => view.choose({ by })) };
      }
      const by = state.scales[view.ui.by] ? view.ui.by : Object.keys(state.scales)[0];
      marks.mark(by);
      drawAnswer(parts, state, book, current(), by);
    };

    function drawList(state, step) {
      const here = book.of.get(step);
      const hasGold = here.some((r) => known(r.gold));
      const usable = SORTS.filter(([name]) => hasGold || !["gold", "gap"].includes(name));
      if (sort.options.length !== usable.length) {
        sort.replaceChildren();
        for (const [name, text] of usable) add(sort, "option", { value: name }, text);
      }
      sort.value = usable.some(([name]) => name === view.ui.sort) ? view.ui.sort : "sampled";
      if (document.activeElement !== filter) filter.value = view.ui.filter ?? "";
      const wanted = (view.ui.filter ?? "").toLowerCase().trim();
      const signature = [step, sort.value, wanted, here.length, state === book.state].join("|");
      if (signature !== drawnList || list.bookState !== state) {
        drawnList = signature;
        list.bookState = state;
        const key = SORTS.find(([name]) => name === sort.value)[2];
        shown = here.filter((r) => !wanted || `${r.prompt} ${r.tokens.join(r.glue)}`.toLowerCase().includes(wanted));
        shown.sort((a, b) => key(a) - key(b) || a.number - b.number);
        const run = document.createDocumentFragment();
        shown.forEach((r, k) => listItem(run, r, k));
        list.replaceChildren(run);
        listed.textContent = wanted ? `${count(shown.length, "answer")} of ${here.length}` : count(here.length, "answer");
        if (state.left_out) listed.textContent += `; ${count(state.left_out, "more answer")} not on this page`;
      }
      const chosen = current();
      [...list.children].forEach((item, k) => {
        const isIt = shown[k] === chosen;
        if (isIt !== (item.getAttribute("aria-selected") === "true")) item.setAttribute("aria-selected", String(isIt));
        if (isIt) {
          list.setAttribute("aria-activedescendant", item.id);
          const low = item.offsetTop - list.offsetTop;
          if (low < list.scrollTop || low + item.offsetHeight > list.scrollTop + list.clientHeight) list.scrollTop = low - 60;
        }
      });
    }

    function listItem(parent, r, k) {
      const item = add(parent, "div", { class: "item", role: "option", "data-k": k, id: `${model.get("key")}-${k}`, "aria-selected": "false" });
      add(item, "span", { class: "words", dir: "auto" }, r.prompt.slice(0, 300));
      const numbers = add(item, "span", { class: "numbers" });
      const one = (label, value, tone) => {
        if (!known(value)) return;
        const box = add(numbers, "span", {}, `${label} `);
        add(box, "b", { class: tone }, show(value));
      };
      one("score", r.score, "c-sft");
      one("gold", r.gold, "c-gold");
      one("KL", r.moved, "c-ppo");
      if (!r.ended) add(numbers, "span", {}, "cut");
    }
    requestAnimationFrame(() => responsive(root, view.later));
    return update;
  });
}

function bookOf(state) {
  const of = new Map();
  for (const r of state.rollouts) {
    if (!of.has(r.step)) of.set(r.step, []);
    of.get(r.step).push({ ...r, number: of.get(r.step).length });
  }
  return { state, of, steps: [...of.keys()].sort((a, b) => a - b) };
}

// ---- where in the run we are --------------------------------------------------------------------

function drawCourse(host, state, steps, step) {
  host.replaceChildren();
  if (state.log.length < 2) return;
  const width = Math.max(240, host.clientWidth || 900);
  const svg = add(host, "svg", { viewBox: `0 0 ${width} 46` });
  const at = state.log.map((r) => r.step);
  const sx = linear([at[0], at.at(-1)], [4, width - 110]);
  const ends = [];
  for (const [name, label, tone] of [["reward", "reward", "c-sft"], ["gold", "gold", "c-gold"], ["kl", "KL", "c-ppo"]]) {
    const values = state.log.map((r) => r[name]);
    if (!values.some(known)) continue;
    const both = name === "kl" ? values : state.log.flatMap((r) => [r.reward, r.gold]);
    const sy = linear(extent(both), [42, 6]);
    const points = values.map((v, i) => [sx(at[i]), known(v) ? sy(v) : null]).filter(([, y]) => y !== null);
    line(svg, points, tone);
    ends.push({ y: points.at(-1)[1], label, tone });
  }
  ends.sort((a, b) => a.y - b.y);
  ends.forEach((end, i) => {
    if (i) end.y = Math.max(end.y, ends[i - 1].y + 14);
    add(svg, "text", { x: width - 102, y: end.y + 4, class: `name ${end.tone}` }, end.label);
  });
  for (const s of steps) add(svg, "circle", { cx: sx(s), cy: 44, r: 2, class: "knob" });
  add(svg, "line", { x1: sx(step), x2: sx(step), y1: 2, y2: 44, class: "at" });
}

// ---- the answer ---------------------------------------------------------------------------------

function drawAnswer(parts, state, book, rollout, by) {
  parts.prompt.textContent = rollout.prompt;
  facts(parts.facts, rollout);
  parts.said.replaceChildren();
  const own = add(parts.said, "div");
  const beside = reference(state, book, rollout);
  if (beside) add(own, "h4", {}, `step ${rollout.step}`);
  const scale = state.scales[by];
  const values = (scale && quantity(rollout, by)) ?? [];
  const bars = drawStrip(parts.strip, rollout, values, scale, (i) => run.select(i));
  const run = tokenRun(add(own, "div"), rollout.tokens, {
    glue: rollout.glue,
    label: "tokens of the answer: arrow keys read them",
    of: (i) => ({ amount: scale ? strength(scale, values[i]) : undefined, classes: isSign(rollout.tokens[i]) ? "special" : "" }),
    read: (i) => {
      readToken(parts.readout, state, rollout, i);
      bars(i);
    },
  });
  if (rollout.more) add(own, "p", { class: "fine" }, `… and ${count(rollout.more, "more token")}, not on this page`);
  if (!rollout.tokens.length) add(own, "p", { class: "empty" }, "(an empty answer)");
  if (beside) {
    const other = add(parts.said, "div");
    add(other, "h4", {}, beside.label);
    add(other, "p", { class: "other", dir: "auto" }, beside.text);
  }
  parts.readout.replaceChildren();
  if (rollout.tokens.length) run.select(mostStriking(values));
  if (scale) legend(parts.legend, scale);
  else parts.legend.textContent = "This run saved no numbers per token.";
}

function facts(host, rollout) {
  host.replaceChildren();
  const one = (label, value) => {
    const box = add(host, "span", {}, `${label} `);
    add(box, "b", {}, value);
  };
  one("score", show(rollout.score));
  if (known(rollout.gold)) one("gold", show(rollout.gold));
  if (known(rollout.moved)) one("KL", `${show(rollout.moved)} nats`);
  one("tokens", String(rollout.tokens.length + (rollout.more ?? 0)));
  if (!rollout.ended) add(host, "span", { class: "pill" }, "cut at the length limit");
}

// The reference's own answer, if it is known: given by Python, or sampled before the first update.
function reference(state, book, rollout) {
  const given = state.references[rollout.prompt];
  if (given !== undefined) return { label: "the reference", text: given };
  const first = book.steps[0];
  const early = rollout.step > first && book.of.get(first).find((r) => r.prompt === rollout.prompt);
  if (!early) return null;
  const label = first <= 1 ? "the reference (step 1 samples from it)" : `at step ${first}`;
  return { label, text: early.tokens.join(early.glue) };
}

function mostStriking(values) {
  let best = 0;
  values.forEach((v, i) => { if (known(v) && Math.abs(v) > Math.abs(known(values[best]) ? values[best] : 0)) best = i; });
  return Math.min(best, 599);
}

function readToken(host, state, rollout, i) {
  host.replaceChildren();
  add(host, "b", { dir: "auto" }, rollout.tokens[i].trim() || rollout.tokens[i]);
  add(host, "span", {}, `token ${i + 1}`);
  for (const [name, scale] of Object.entries(state.scales)) {
    const values = quantity(rollout, name);
    if (!values) continue;
    const box = add(host, "span", {}, `${scale.label} `);
    add(box, "b", {}, known(values[i]) ? brief(values[i]) : "not a number");
  }
}

// One bar per token below the text: the same values, on the same scale, as heights.
function drawStrip(host, rollout, values, scale, pick) {
  host.replaceChildren();
  const n = Math.min(rollout.tokens.length, 600);
  if (!scale || n < 2) return () => {};
  const width = Math.max(200, host.clientWidth || 600);
  const two = scale.kind !== "sequential";
  const [height, zero] = two ? [54, 27] : [40, 38];
  const svg = add(host, "svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
  const each = Math.min(26, (width - 2) / n);
  let [up, down] = ["", ""];
  for (let i = 0; i < n; i++) {
    const amount = strength(scale, values[i]);
    if (!amount) continue;
    const tall = Math.abs(amount) * (zero - 2);
    const bar = `M${(i * each + 1).toFixed(1)},${(amount > 0 ? zero - tall : zero).toFixed(1)}h${Math.max(0.8, each - 1.5).toFixed(1)}v${tall.toFixed(1)}h${(-Math.max(0.8, each - 1.5)).toFixed(1)}z`;
    if (amount > 0) up += bar;
    else down += bar;
  }
  add(svg, "path", { d: up, class: "plus" });
  add(svg, "path", { d: down, class: "minus" });
  add(svg, "line", { x1: 0, x2: Math.min(width, n * each), y1: zero, y2: zero, class: "zero" });
  const cursor = add(svg, "line", { y1: 0, y2: height, class: "on", visibility: "hidden" });
  on(svg, "pointermove", (event) => {
    const frame = svg.getBoundingClientRect();
    pick(clamp(Math.floor(((event.clientX - frame.left) * width) / frame.width / each), 0, n - 1));
  });
  return (i) => {
    cursor.setAttribute("visibility", i < n ? "visible" : "hidden");
    for (const end of ["x1", "x2"]) cursor.setAttribute(end, (i + 0.45) * each);
  };
}
