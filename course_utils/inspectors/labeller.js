// Two answers side by side, and a label for each pair. A label goes into the browser's storage first
// and leaves it when Python's log has it: so none depends on a kernel being there.

import { add, count, fold, inspect, known, on, show, speak } from "./kit.js";

const CHOICES = { left: "A is better", right: "B is better", tie: "equally good", skip: "skipped" };
const KEYS = {
  ArrowLeft: "left", ArrowRight: "right", "=": "tie", s: "skip", S: "skip", ArrowDown: "skip",
  u: "undo", U: "undo", Backspace: "undo",
};
const RETRY = [2000, 4000, 8000, 16000, 30000, 60000]; // ms after which unanswered labels go out again
const MANY = 8; // differences listed

// ---- what the labels say (the twin of data/labels.py and evaluation/agreement.py) ---------------

// pair id -> the label that counts, in the order made
function standing(entries) {
  const undone = new Set(entries.filter((e) => e.kind === "undo").map((e) => e.of));
  const found = new Map();
  for (const entry of entries) {
    if (entry.kind !== "label" || undone.has(entry.id)) continue;
    found.delete(entry.pair);
    found.set(entry.pair, entry);
  }
  return found;
}

function wilson(successes, n) {
  if (!n) return [0, 1];
  const z = 1.959963984540054;
  const share = successes / n;
  const grow = 1 + (z * z) / n;
  const middle = (share + (z * z) / (2 * n)) / grow;
  const half = (z / grow) * Math.sqrt((share * (1 - share)) / n + (z * z) / (4 * n * n));
  return [Math.max(0, middle - half), Math.min(1, middle + half)];
}

// Of [mine, theirs] verdicts that are both "left" or "right": share, interval, kappa, pairs.
function agreement(cases) {
  const both = cases.filter(([a, b]) => [a, b].every((v) => v === "left" || v === "right"));
  const n = both.length;
  const same = both.filter(([a, b]) => a === b).length;
  const lefts = [0, 1].map((who) => both.filter((one) => one[who] === "left").length / n);
  const chance = lefts[0] * lefts[1] + (1 - lefts[0]) * (1 - lefts[1]);
  const kappa = n && chance < 1 ? (same / n - chance) / (1 - chance) : null;
  return { n, share: n ? same / n : null, interval: wilson(same, n), kappa, leftOut: cases.length - n };
}

// ---- the browser's storage ----------------------------------------------------------------------

const spare = new Map(); // storage key -> record, where the browser has no storage for us

// One entry per record, so two tabs never overwrite each other. A page without a kernel keeps its
// labels under the pairs it shows; a labeller on the same pairs finds them there.
function outbox({ labeller, page, kernel, annotator }) {
  const names = [`course-labels:${labeller}:`, `course-labels:${page}:`];
  const own = names[kernel ? 0 : 1];
  const box = { fault: "" };
  const storage = () => { // may be forbidden, as in a sandboxed frame
    try { return window.localStorage; } catch (error) { box.fault = error.message; return null; }
  };
  const keys = () => {
    const found = storage() ? Array.from({ length: localStorage.length }, (_, i) => localStorage.key(i)) : [];
    return [...found, ...spare.keys()].filter((key) => names.some((name) => key.startsWith(name)));
  };
  box.all = () => keys()
    .map((key) => JSON.parse(spare.get(key) ?? localStorage.getItem(key)))
    .filter((record) => record.annotator === annotator)
    .sort((a, b) => (a.at < b.at ? -1 : a.at > b.at ? 1 : 0));
  box.put = (record) => {
    const key = own + record.id;
    const text = JSON.stringify(record);
    try {
      window.localStorage.setItem(key, text);
    } catch (error) { // no storage, or a full one: kept as long as the page is open, and said so
      box.fault = error.message;
      spare.set(key, text);
    }
  };
  box.drop = (id) => {
    for (const name of names) {
      spare.delete(name + id);
      storage()?.removeItem(name + id);
    }
  };
  return box;
}

function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");
}

let lastTime = 0; // no two records of a page have the same time: it is what they are sorted by
function now() {
  lastTime = Math.max(Date.now(), lastTime + 1);
  return new Date(lastTime).toISOString();
}

// Seconds that a pair was in front of somebody: not while the page is hidden or scrolled away.
function clock(node) {
  let spent = 0;
  let since = null;
  let inView = true;
  const look = () => {
    const running = inView && document.visibilityState === "visible";
    if (since !== null) spent += performance.now() - since;
    since = running ? performance.now() : null;
  };
  const watcher = new IntersectionObserver(([entry]) => { inView = entry.isIntersecting; look(); });
  watcher.observe(node);
  document.addEventListener("visibilitychange", look);
  look();
  return {
    reset: () => { look(); spent = 0; },
    seconds: () => { look(); return Math.round(spent / 10) / 100; },
    stop: () => { watcher.disconnect(); document.removeEventListener("visibilitychange", look); },
  };
}

// ---- pieces of the page -------------------------------------------------------------------------

const plain = (cell) => (typeof cell === "string" ? cell : cell.map((m) => m.content).join("\n"));

// A text, or messages; of several messages each says who speaks.
function words(host, cell) {
  host.replaceChildren();
  if (typeof cell === "string" || cell.length === 1) {
    host.textContent = plain(cell);
    return;
  }
  for (const message of cell) {
    add(host, "span", { class: "role" }, message.role);
    add(host, "div", { dir: "auto" }, message.content);
  }
}

function answerBox(parent, name, key) {
  const box = add(parent, "section", { class: "answer", "aria-label": `answer ${name}` });
  const head = add(box, "h4");
  add(head, "b", {}, name);
  add(head, "kbd", {}, key);
  const text = add(box, "div", { class: "words", dir: "auto" });
  return { box, put(cell) {
    words(text, cell);
    text.scrollTop = 0;
    const long = text.scrollHeight > text.clientHeight + 1;
    box.classList.toggle("long", long);
    if (long) text.setAttribute("tabindex", 0); // arrow keys scroll it
    else text.removeAttribute("tabindex");
  } };
}

function labelButton(parent, classes, parts, title, act) {
  const button = add(parent, "button", { type: "button", class: classes, title });
  for (const [name, text] of parts) add(button, name, {}, text);
  on(button, "click", act);
  return button;
}

function download(name, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/jsonl" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// One judge: a line from 0 to 100% with the interval as a band, then the numbers in words.
function drawJudge(host, name, { n, share, interval, kappa, leftOut }) {
  const row = add(host, "div", { class: "judge" });
  add(row, "b", {}, name);
  if (!n) {
    add(row, "span", { class: "fine" }, "no pair yet that both of you decided");
    return;
  }
  const percent = (v) => `${Math.round(100 * v)}%`;
  const track = add(row, "div", { class: "track", role: "img", "aria-label": `agreement ${percent(share)}` });
  const band = add(track, "i", { class: "band" });
  band.style.left = percent(interval[0]);
  band.style.width = `${100 * (interval[1] - interval[0])}%`;
  add(track, "i", { class: "half" });
  add(track, "i", { class: "dot" }).style.left = percent(share);
  const out = leftOut ? ` · ${leftOut} left out (a tie, skipped or not known)` : "";
  add(row, "span", { class: "numbers" }, `agree on ${percent(share)} of ${n}, 95% interval ${percent(interval[0])} to ${percent(interval[1])} · κ ${known(kappa) ? show(kappa) : "not defined"}${out}`);
}

// ---- the inspector ------------------------------------------------------------------------------

export function render({ model, el }) {
  let stop = () => {};
  const close = inspect({ model, el }, (view) => {
    const made = build(view);
    stop = made.stop;
    return made.update;
  });
  return () => { stop(); close(); };
}

function build(view) {
  const { root } = view;
  const box = outbox(view.state);
  let current = null; // id of the pair in front of the reader
  let drawn = null;
  let peeked = false;
  let unreachable = false; // sending failed: there is no kernel
  let tries = 0;
  let timer = 0;

  const head = add(root, "div", { class: "head" });
  add(head, "h3", {}, "Which answer is better?");
  const progress = add(head, "div", { class: "done-so-far" });
  const progressText = add(progress, "span");
  const bar = add(add(progress, "div", { class: "track", "aria-hidden": "true" }), "i", { class: "band" });
  const notes = add(root, "p", { class: "fine", hidden: true });
  const stage = add(root, "div", {
    class: "stage", tabindex: 0, role: "group",
    "aria-label": "Keys: left arrow A is better, right arrow B is better, equals sign equally good, down arrow or s skip, u or backspace undo",
  });
  const empty = add(stage, "div", { class: "empty", hidden: true });
  const task = add(stage, "div");
  const prompt = add(task, "div", { class: "prompt", dir: "auto" });
  const answers = add(task, "div", { class: "answers" });
  const sides = { left: answerBox(answers, "A", "←"), right: answerBox(answers, "B", "→") };
  const verdicts = add(root, "div", { class: "verdicts" });
  const act = (choice) => () => choose(choice);
  const buttons = {
    left: labelButton(verdicts, "big", [["kbd", "←"], ["span", "A is better"]], "key ←", act("left")),
    tie: labelButton(verdicts, "big", [["kbd", "="], ["span", "equally good"]], "key =", act("tie")),
    right: labelButton(verdicts, "big", [["span", "B is better"], ["kbd", "→"]], "key →", act("right")),
    skip: labelButton(verdicts, "small", [["kbd", "↓"], ["span", "skip"]], "key ↓ or s", act("skip")),
    undo: labelButton(verdicts, "small", [["kbd", "⌫"], ["span", "undo"]], "key u or backspace", act("undo")),
  };
  for (const side of ["left", "right"]) { // pointing at a button shows which answer it means
    for (const [type, lit] of [["pointerenter", true], ["focus", true], ["pointerleave", false], ["blur", false]]) {
      on(buttons[side], type, () => sides[side].box.classList.toggle("lit", lit));
    }
  }
  const foot = add(root, "div", { class: "foot" });
  const status = add(foot, "span", { class: "status" });
  add(status, "i");
  const statusText = add(status, "span");
  const last = add(foot, "span", { class: "fine last" });
  const save = add(foot, "button", { type: "button" }, "download labels");
  const again = add(foot, "button", { type: "button", hidden: true }, "start over");
  const agree = add(root, "div", { class: "agree" });
  const agreeBody = fold(agree, "How far do I agree?");
  const summaryNode = agree.querySelector("summary");
  const time = clock(stage);

  // ---- labels

  const waiting = () => {
    const have = new Set(view.state.log.map((e) => e.id));
    return box.all().filter((r) => !have.has(r.id));
  };
  const entries = () => [...view.state.log, ...waiting()];
  const pairOf = (id) => view.state.pairs.find((pair) => pair.id === id);

  const next = (done) => { // the first open pair after the current one, else the first open one
    const { pairs } = view.state;
    const from = pairs.findIndex((pair) => pair.id === current) + 1;
    const open = [...pairs.slice(from), ...pairs.slice(0, from)].find((pair) => !done.has(pair.id));
    return open?.id ?? null;
  };

  const keep = (record) => {
    const whole = { ...record, id: newId(), annotator: view.state.annotator, at: now() };
    box.put(whole);
    send([whole]);
  };

  const takeBack = (label) => keep({ kind: "undo", of: label.id });

  function choose(choice) {
    const done = standing(entries());
    if (choice === "undo") {
      const label = [...done.values()].filter((e) => pairOf(e.pair)).pop();
      if (!label) { speak(root, "There is nothing to undo."); return; }
      takeBack(label);
      current = label.pair;
      last.textContent = `taken back: ${CHOICES[label.choice]}`;
    } else {
      const pair = pairOf(current);
      if (!pair) return;
      const seconds = time.seconds();
      const { id, ...texts } = pair;
      keep({ kind: "label", pair: id, ...texts, choice, seconds, peeked });
      current = next(standing(entries()));
      last.textContent = `last: ${CHOICES[choice]}, ${show(seconds, 1)} s`;
    }
    if (root.contains(document.activeElement) && !current) stage.focus({ preventScroll: true });
    update(view.state);
    speak(root, `${last.textContent}. ${progressText.textContent}`);
  }

  // Python has the pairs of this labeller, so their texts stay here.
  function send(records) {
    if (!view.state.kernel || !records.length) return;
    const light = records.map((record) => {
      if (!pairOf(record.pair)) return record;
      const { prompt: _, left: __, right: ___, ...rest } = record;
      return rest;
    });
    try {
      view.send({ kind: "labels", have: view.state.log.length, records: light });
      unreachable = false;
    } catch { // no kernel: the labels stay in the browser, the status says so, and we try again
      unreachable = true;
    }
    if (!timer) timer = setTimeout(retry, RETRY[Math.min(tries, RETRY.length - 1)]);
  }

  function retry() {
    timer = 0;
    const left = waiting().filter((r) => !view.state.refused[r.id]);
    tries = left.length ? tries + 1 : 0;
    send(left);
    update(view.state);
  }

  // ---- keys and buttons

  on(root, "keydown", (event) => {
    const choice = KEYS[event.key];
    if (!choice || event.ctrlKey || event.metaKey || event.altKey || event.target.closest(".agree")) return;
    if (event.key === "ArrowDown" && event.target.closest(".long .words")) return;
    event.preventDefault();
    if (!event.repeat) choose(choice); // a key held down labels one pair, not all
  });
  on(save, "click", () => {
    const { labeller, annotator, file } = view.state;
    const own = new Map(box.all().map((r) => [r.id, r]));
    const whole = entries().map((entry) => {
      if (own.has(entry.id)) return own.get(entry.id);
      const { id: _, ...texts } = pairOf(entry.pair) ?? {};
      return entry.kind === "undo" || texts.left !== undefined ? { ...texts, ...entry, annotator } : null;
    });
    const header = { kind: "labels", version: 1, id: labeller, created: new Date().toISOString() };
    download(file, `${[header, ...whole.filter(Boolean)].map((r) => JSON.stringify(r)).join("\n")}\n`);
  });
  on(again, "click", () => {
    if (again.dataset.sure) {
      for (const record of box.all()) box.drop(record.id);
      current = null;
      delete again.dataset.sure;
    } else again.dataset.sure = "yes";
    update(view.state);
  });
  on(again, "blur", () => { delete again.dataset.sure; update(view.state); });
  on(agree.querySelector("details"), "toggle", () => {
    peeked = peeked || agree.querySelector("details").open;
    drawAgreement(view.state);
  });

  // ---- drawing

  function update(state) {
    const acknowledged = new Set(state.log.map((e) => e.id));
    if (state.kernel) for (const record of box.all()) if (acknowledged.has(record.id)) box.drop(record.id);
    peeked = peeked || state.log.some((e) => e.peeked);
    const done = standing(entries());
    const labelled = state.pairs.filter((pair) => done.has(pair.id)).length;
    if (!pairOf(current)) current = next(done);
    progressText.textContent = `${labelled} of ${count(state.pairs.length, "pair")} labelled`;
    bar.style.width = `${(100 * labelled) / (state.pairs.length || 1)}%`;
    const more = state.left_out ? [`${count(state.left_out, "more pair")} in the notebook: this page has room for ${state.pairs.length}`] : [];
    notes.textContent = [...state.notes, ...more].join(" · ");
    notes.hidden = !notes.textContent;
    drawPair(pairOf(current), state, done);
    for (const choice of ["left", "right", "tie", "skip"]) buttons[choice].disabled = !current;
    buttons.undo.disabled = !labelled;
    drawStatus(state, labelled);
    drawAgreement(state);
  }

  function drawPair(pair, state, done) {
    task.hidden = !pair;
    verdicts.hidden = !state.pairs.length;
    empty.hidden = Boolean(pair);
    if (!pair) {
      drawn = null;
      drawEnd(state, [...done.values()].filter((e) => e.choice === "skip" && pairOf(e.pair)));
    } else if (pair.id !== drawn) {
      drawn = pair.id;
      words(prompt, pair.prompt);
      sides.left.put(pair.left);
      sides.right.put(pair.right);
      time.reset();
    }
  }

  function drawEnd(state, skipped) {
    empty.replaceChildren();
    const nothing = state.left_out ? "These pairs are too long for this page: open the notebook to label them." : "There are no pairs to label.";
    add(empty, "p", {}, state.pairs.length ? "All pairs are labelled. Thank you!" : nothing);
    if (!skipped.length) return;
    const button = add(empty, "button", { type: "button" }, `look at ${count(skipped.length, "skipped pair")} again`);
    on(button, "click", () => {
      skipped.forEach(takeBack);
      update(view.state);
      stage.focus({ preventScroll: true });
    });
  }

  function drawStatus(state, labelled) {
    const left = waiting();
    const refused = left.filter((r) => state.refused[r.id]);
    const slow = left.some((r) => Date.now() - Date.parse(r.at) > 1500);
    const late = state.kernel && left.length > 0 && (slow || unreachable);
    const labels = (n) => count(n, "label");
    let text = `every label is in ${state.file}`;
    if (!labelled && !left.length) text = state.kernel ? `labels go to ${state.file}` : "labels stay in this browser; download them when done";
    else if (!state.kernel) text = `${labels(left.length)} kept in this browser`;
    else if (refused.length) text = `${labels(refused.length)} could not be written: ${state.refused[refused[0].id]}`;
    else if (late) text = `${labels(left.length)} kept in this browser until the kernel answers${unreachable ? " (run the cell again)" : ""}`;
    else if (left.length) text = "saving …";
    if (box.fault) text += ` · this browser does not keep labels (${box.fault}): download them before you close the page`;
    status.className = `status ${late || refused.length || box.fault ? "late" : state.kernel ? "good" : ""}`;
    statusText.textContent = text;
    save.hidden = !labelled && !left.length;
    again.hidden = state.kernel || !left.length;
    again.textContent = again.dataset.sure ? `sure? ${labels(left.length)} will be deleted` : "start over";
  }

  function drawAgreement(state) {
    agree.hidden = !state.against.length || !state.pairs.length;
    const names = state.against.map((judge) => judge.name).join(", ");
    summaryNode.textContent = `How far do I agree with ${names}? Best asked at the end: it may lead you.`;
    agreeBody.replaceChildren();
    if (!agree.querySelector("details").open) return;
    const done = standing(entries());
    const mine = state.pairs.map((pair) => done.get(pair.id)?.choice);
    for (const { name, verdicts: theirs } of state.against) {
      const cases = mine.map((choice, i) => [choice, theirs[i], i]).filter(([choice]) => choice);
      drawJudge(agreeBody, name, agreement(cases));
      const differ = cases.filter(([a, b]) => ["left right", "right left"].includes(`${a} ${b}`));
      if (differ.length) drawDifferences(state, name, differ);
    }
    const decided = mine.filter((choice) => choice === "left" || choice === "right");
    const lefts = decided.filter((choice) => choice === "left").length;
    const times = [...done.values()].map((e) => e.seconds).filter(known).sort((a, b) => a - b);
    const habits = decided.length ? [`You chose A ${lefts} of ${decided.length} times; the order is random, so about half is to be expected.`] : [];
    if (times.length) habits.push(`Typical time for a pair: ${show(times[Math.floor((times.length - 1) / 2)], 1)} s.`);
    add(agreeBody, "p", { class: "fine" }, habits.join(" "));
  }

  function drawDifferences(state, name, differ) {
    const list = add(agreeBody, "ul", { class: "differ" });
    for (const [mine, theirs, i] of differ.slice(0, MANY)) {
      const item = add(list, "li");
      const link = add(item, "button", { type: "button", title: "show this pair again" });
      add(link, "span", { dir: "auto" }, plain(state.pairs[i].prompt).slice(0, 120));
      on(link, "click", () => {
        current = state.pairs[i].id;
        update(view.state);
        stage.focus();
      });
      add(item, "span", { class: "fine" }, `you: ${mine === "left" ? "A" : "B"} · ${name}: ${theirs === "left" ? "A" : "B"}`);
    }
    if (differ.length > MANY) add(list, "li", { class: "fine" }, `and ${differ.length - MANY} more`);
  }

  // ---- other tabs, and labels that an earlier kernel did not take

  const fromOtherTab = (event) => { if (event.key?.startsWith("course-labels:")) view.later(); };
  window.addEventListener("storage", fromOtherTab);
  send(waiting());
  return { update, stop() {
    window.removeEventListener("storage", fromOtherTab);
    clearTimeout(timer);
    time.stop();
  } };
}
