// The rollout inspector: choose a step and an answer, colour its tokens by one quantity, read them all.

const QUANTITIES = [
  ["kl", "KL", "log π − log π of the reference, nats: positive where the policy likes the token more than it did"],
  ["advantages", "advantage", "how much better than expected the choice was: positive is made more likely"],
  ["rewards", "reward", "per token: the KL penalty, and the score on the last one"],
  ["values", "value", "what the value head expected from here on"],
  ["logprobs", "log π", "log-probability under the policy: far below zero where it was a lucky draw"],
];

// The size below which 98% of the values lie: one scale for all rollouts of a run, so they compare.
function scaleOf(rollouts, name) {
  const sizes = rollouts.flatMap((r) => r[name] ?? []).filter(known).map(Math.abs).sort((a, b) => a - b);
  return sizes[Math.min(sizes.length - 1, Math.floor(0.98 * sizes.length))] || 1;
}

function inspector(host, data) {
  const all = data.rollouts;
  const runs = [...new Set(all.map((r) => r.run))];
  const state = {
    run: runs[0],
    step: Infinity, // an index; render() brings it down to the last
    answer: 0,
    token: 0,
    name: QUANTITIES.find(([name]) => all.some((r) => r[name]))?.[0],
  };
  const controls = add(host, "div", { class: "controls" });
  const head = add(host, "p", { class: "prompt" });
  const text = add(host, "p", { class: "tokens", role: "group", "aria-label": "tokens of the answer" });
  const detail = add(host, "p", { class: "token-detail", "aria-live": "polite" });
  const legend = add(host, "div", { class: "scale" });
  const facts = add(host, "p", { class: "fine" });

  const ofRun = () => all.filter((r) => r.run === state.run);
  const steps = () => [...new Set(ofRun().map((r) => r.step))].sort((a, b) => a - b);
  const here = () => ofRun().filter((r) => r.step === steps()[state.step]);
  const current = () => here()[Math.min(state.answer, here().length - 1)];

  function buttons(label, options, isOn, choose) {
    const group = add(controls, "div", { class: "choice", role: "group", "aria-label": label });
    for (const [value, name] of options) {
      const button = add(group, "button", { type: "button" }, name);
      button.addEventListener("click", () => { choose(value); render(); });
      updates.push(() => button.setAttribute("aria-pressed", String(isOn(value))));
    }
  }

  function readToken(index) {
    const r = current();
    state.token = Math.max(0, Math.min(r.tokens.length - 1, index));
    [...text.children].forEach((span, i) => {
      span.setAttribute("tabindex", i === state.token ? 0 : -1);
      span.classList.toggle("on", i === state.token);
    });
    detail.replaceChildren();
    add(detail, "b", {}, r.tokens[state.token]);
    for (const [name, title] of QUANTITIES) {
      if (r[name]) add(detail, "span", {}, `${title} ${brief(r[name][state.token])}`);
    }
  }

  function drawTokens(r) {
    const size = scaleOf(ofRun(), state.name);
    text.replaceChildren();
    r.tokens.forEach((token, i) => {
      const value = r[state.name]?.[i];
      const strength = known(value) ? Math.min(1, Math.abs(value) / size) : 0;
      const span = add(text, "span", { class: `token ${value < 0 ? "neg" : "pos"}` }, token);
      span.style.setProperty("--a", strength.toFixed(2));
      span.addEventListener("pointerenter", () => readToken(i));
      span.addEventListener("click", () => readToken(i));
      span.addEventListener("focus", () => readToken(i));
      text.append(" ");
    });
    if (r.more > 0) add(text, "span", { class: "fine" }, `… ${r.more} more tokens`);
    legend.replaceChildren();
    add(legend, "span", {}, show(-size, size < 0.1 ? 4 : 2));
    add(legend, "i", {});
    add(legend, "span", {}, show(size, size < 0.1 ? 4 : 2));
    add(legend, "em", {}, QUANTITIES.find(([n]) => n === state.name)?.[2] ?? "");
  }

  text.addEventListener("keydown", (event) => {
    const moves = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
    if (!(event.key in moves)) return;
    event.preventDefault();
    readToken(state.token + moves[event.key]);
    text.children[state.token].focus();
  });

  const updates = [];
  if (runs.length > 1) {
    const names = { ppo: "PPO", ppo_low_beta: "pushed too far" };
    buttons("run", runs.map((r) => [r, names[r] ?? r]), (r) => r === state.run, (r) => { state.run = r; state.step = Infinity; });
  }
  const slider = add(controls, "label", { class: "slider" });
  const stepText = add(slider, "span");
  const range = add(slider, "input", { type: "range", min: 0, step: 1, "aria-label": "training step" });
  range.addEventListener("input", () => {
    const prompt = current().prompt;
    state.step = Number(range.value);
    const same = here().findIndex((r) => r.prompt === prompt); // stay with the prompt while stepping
    if (same >= 0) state.answer = same;
    render();
  });
  const walk = add(controls, "div", { class: "choice", role: "group", "aria-label": "answer" });
  const move = (by) => { state.answer = (Math.min(state.answer, here().length - 1) + by + here().length) % here().length; render(); };
  add(walk, "button", { type: "button", "aria-label": "previous answer" }, "‹").addEventListener("click", () => move(-1));
  const counter = add(walk, "span");
  add(walk, "button", { type: "button", "aria-label": "next answer" }, "›").addEventListener("click", () => move(1));
  buttons("colour by", QUANTITIES.filter(([n]) => all.some((r) => r[n])).map(([n, title]) => [n, title]),
    (n) => n === state.name, (n) => { state.name = n; });

  function render() {
    const every = steps();
    state.step = Math.min(state.step, every.length - 1);
    const r = current();
    range.max = every.length - 1;
    range.value = state.step;
    range.setAttribute("aria-valuetext", `step ${every[state.step]}`);
    stepText.textContent = `step ${every[state.step]}`;
    counter.textContent = `answer ${Math.min(state.answer, here().length - 1) + 1} of ${here().length}`;
    for (const update of updates) update();
    head.textContent = r.prompt;
    drawTokens(r);
    readToken(Math.min(state.token, r.tokens.length - 1));
    const moved = (r.kl ?? []).filter(known).reduce((a, b) => a + b, 0);
    const said = [`${r.tokens.length + r.more} tokens`];
    if (r.kl) said.push(`sampled KL ${show(moved)} nats`);
    if (known(r.score)) said.push(`reward model ${show(r.score)}`);
    if (known(r.gold)) said.push(`gold ${show(r.gold)}`);
    facts.textContent = said.join(" · ");
  }
  render();
}
