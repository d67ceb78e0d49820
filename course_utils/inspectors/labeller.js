// Two answers side by side, and a label for each pair. What becomes of a label is in labels.js.

import { add, count, fold, inspect, known, on, show, speak } from "./kit.js";
import { agreement, ledgerOf } from "./labels.js";

const CHOICES = { left: "A is better", right: "B is better", tie: "equally good", skip: "skipped" };
const KEYS = {
  ArrowLeft: "left", ArrowRight: "right", "=": "tie", s: "skip", S: "skip", ArrowDown: "skip",
  u: "undo", U: "undo", Backspace: "undo",
};
const MANY = 8; // differences listed

// ---- pieces of the page -------------------------------------------------------------------------

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

// ---- what is on the page ------------------------------------------------------------------------

function nodesOf(root, choose) {
  const nodes = {};
  const head = add(root, "div", { class: "head" });
  add(head, "h3", {}, "Which answer is better?");
  const progress = add(head, "div", { class: "done-so-far" });
  nodes.progress = add(progress, "span");
  nodes.bar = add(add(progress, "div", { class: "track", "aria-hidden": "true" }), "i", { class: "band" });
  nodes.notes = add(root, "p", { class: "fine", hidden: true });
  nodes.stage = add(root, "div", {
    class: "stage", tabindex: 0, role: "group",
    "aria-label": "Keys: left arrow A is better, right arrow B is better, equals sign equally good, down arrow or s skip, u or backspace undo",
  });
  nodes.empty = add(nodes.stage, "div", { class: "empty", hidden: true });
  nodes.task = add(nodes.stage, "div");
  nodes.prompt = add(nodes.task, "div", { class: "prompt", dir: "auto" });
  const answers = add(nodes.task, "div", { class: "answers" });
  nodes.sides = { left: answerBox(answers, "A", "←"), right: answerBox(answers, "B", "→") };
  nodes.verdicts = add(root, "div", { class: "verdicts" });
  const button = (choice, size, parts, keys) => labelButton(nodes.verdicts, size, parts, keys, () => choose(choice));
  nodes.buttons = {
    left: button("left", "big", [["kbd", "←"], ["span", "A is better"]], "key ←"),
    tie: button("tie", "big", [["kbd", "="], ["span", "equally good"]], "key ="),
    right: button("right", "big", [["span", "B is better"], ["kbd", "→"]], "key →"),
    skip: button("skip", "small", [["kbd", "↓"], ["span", "skip"]], "key ↓ or s"),
    undo: button("undo", "small", [["kbd", "⌫"], ["span", "undo"]], "key u or backspace"),
  };
  for (const side of ["left", "right"]) { // pointing at a button shows which answer it means
    for (const [type, lit] of [["pointerenter", true], ["focus", true], ["pointerleave", false], ["blur", false]]) {
      on(nodes.buttons[side], type, () => nodes.sides[side].box.classList.toggle("lit", lit));
    }
  }
  const foot = add(root, "div", { class: "foot" });
  nodes.status = add(foot, "span", { class: "status" });
  add(nodes.status, "i");
  nodes.statusText = add(nodes.status, "span");
  nodes.last = add(foot, "span", { class: "fine last" });
  nodes.save = add(foot, "button", { type: "button" }, "download labels");
  nodes.again = add(foot, "button", { type: "button", hidden: true }, "start over");
  nodes.agree = add(root, "div", { class: "agree" });
  nodes.agreeBody = fold(nodes.agree, "How far do I agree?");
  [nodes.details, nodes.summary] = ["details", "summary"].map((name) => nodes.agree.querySelector(name));
  return nodes;
}

function drawStatus(nodes, state, ledger, labelled) {
  const left = ledger.waiting();
  const refused = left.filter((record) => state.refused[record.id]);
  const slow = left.some((record) => Date.now() - Date.parse(record.at) > 1500);
  const late = state.kernel && left.length > 0 && (slow || ledger.unreachable);
  const labels = (n) => count(n, "label");
  let text = `every label is in ${state.file}`;
  if (!labelled && !left.length) text = state.kernel ? `labels go to ${state.file}` : "labels stay in this browser; download them when done";
  else if (!state.kernel) text = `${labels(left.length)} kept in this browser`;
  else if (refused.length) text = `${labels(refused.length)} could not be written: ${state.refused[refused[0].id]}`;
  else if (late) text = `${labels(left.length)} kept in this browser until the kernel answers${ledger.unreachable ? " (run the cell again)" : ""}`;
  else if (left.length) text = "saving …";
  const { fault } = ledger.box;
  if (fault) text += ` · this browser does not keep labels (${fault}): download them before you close the page`;
  nodes.status.className = `status ${late || refused.length || fault ? "late" : state.kernel && !left.length ? "good" : ""}`;
  nodes.statusText.textContent = text;
  nodes.save.hidden = !labelled && !left.length;
  nodes.again.hidden = state.kernel || !left.length;
  nodes.again.textContent = nodes.again.dataset.sure ? `sure? ${labels(left.length)} will be deleted` : "start over";
}

function drawEnd(nodes, state, skipped, lookAgain) {
  nodes.empty.replaceChildren();
  const nothing = state.left_out ? "These pairs are too long for this page: open the notebook to label them." : "There are no pairs to label.";
  add(nodes.empty, "p", {}, state.pairs.length ? "All pairs are labelled. Thank you!" : nothing);
  if (!skipped.length) return;
  const button = add(nodes.empty, "button", { type: "button" }, `look at ${count(skipped.length, "skipped pair")} again`);
  on(button, "click", () => lookAgain(skipped));
}

function drawAgreement(nodes, state, done, revisit) {
  nodes.agree.hidden = !state.against.length || !state.pairs.length;
  const names = state.against.map((judge) => judge.name).join(", ");
  const early = state.pairs.some((pair) => !done.has(pair.id)) ? " Best asked at the end: it may lead you." : "";
  nodes.summary.textContent = `How far do I agree with ${names}?${early}`;
  const host = nodes.agreeBody;
  host.replaceChildren();
  if (!nodes.details.open) return;
  const mine = state.pairs.map((pair) => done.get(pair.id)?.choice);
  for (const { name, verdicts: theirs } of state.against) {
    const cases = mine.map((choice, i) => [choice, theirs[i], i]).filter(([choice]) => choice);
    drawJudge(host, name, agreement(cases));
    const differ = cases.filter(([a, b]) => ["left right", "right left"].includes(`${a} ${b}`));
    if (differ.length) drawDifferences(host, state, name, differ, revisit);
  }
  const decided = mine.filter((choice) => choice === "left" || choice === "right");
  const lefts = decided.filter((choice) => choice === "left").length;
  const times = [...done.values()].map((e) => e.seconds).filter(known).sort((a, b) => a - b);
  const habits = decided.length ? [`You chose A ${lefts} of ${decided.length} times; the order is random, so about half is to be expected.`] : [];
  if (times.length) habits.push(`Typical time for a pair: ${show(times[Math.floor((times.length - 1) / 2)], 1)} s.`);
  add(host, "p", { class: "fine" }, habits.join(" "));
}

function drawDifferences(host, state, name, differ, revisit) {
  const letter = (side) => (side === "left" ? "A" : "B");
  const list = add(host, "ul", { class: "differ" });
  for (const [mine, theirs, i] of differ.slice(0, MANY)) {
    const item = add(list, "li");
    const link = add(item, "button", { type: "button", title: "show this pair again" });
    add(link, "span", { dir: "auto" }, plain(state.pairs[i].prompt).slice(0, 120));
    on(link, "click", () => revisit(state.pairs[i].id));
    add(item, "span", { class: "fine" }, `you: ${letter(mine)} · ${name}: ${letter(theirs)}`);
  }
  if (differ.length > MANY) add(list, "li", { class: "fine" }, `and ${differ.length - MANY} more`);
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
  const ledger = ledgerOf(view, () => update(view.state));
  const nodes = nodesOf(root, (choice) => choose(choice));
  const time = clock(nodes.stage);
  let current = null; // id of the pair in front of the reader
  let drawn = null;
  let peeked = false; // the agreement was looked at: from then on labels say so

  const next = (done) => { // the first open pair after the current one, else the first open one
    const { pairs } = view.state;
    const from = pairs.findIndex((pair) => pair.id === current) + 1;
    const open = [...pairs.slice(from), ...pairs.slice(0, from)].find((pair) => !done.has(pair.id));
    return open?.id ?? null;
  };

  function choose(choice) {
    if (choice === "undo") {
      const label = [...ledger.done().values()].filter((e) => ledger.pairOf(e.pair)).pop();
      if (!label) { speak(root, "There is nothing to undo."); return; }
      ledger.takeBack(label);
      current = label.pair;
      nodes.last.textContent = `taken back: ${CHOICES[label.choice]}`;
    } else {
      if (!ledger.pairOf(current)) return;
      const { id: pair, ...texts } = ledger.pairOf(current);
      const seconds = time.seconds();
      ledger.keep({ kind: "label", pair, ...texts, choice, seconds, peeked });
      current = next(ledger.done());
      nodes.last.textContent = `last: ${CHOICES[choice]}, ${show(seconds, 1)} s`;
    }
    if (root.contains(document.activeElement) && !current) nodes.stage.focus({ preventScroll: true });
    update(view.state);
    speak(root, `${nodes.last.textContent}. ${nodes.progress.textContent}`);
  }

  function revisit(id) {
    current = id;
    update(view.state);
    nodes.stage.focus();
  }

  function lookAgain(skipped) {
    skipped.forEach(ledger.takeBack);
    revisit(null);
  }

  function update(state) {
    ledger.forgetAcknowledged();
    peeked = peeked || state.log.some((e) => e.peeked);
    const done = ledger.done();
    const labelled = state.pairs.filter((pair) => done.has(pair.id)).length;
    if (!ledger.pairOf(current)) current = next(done);
    nodes.progress.textContent = `${labelled} of ${count(state.pairs.length, "pair")} labelled`;
    nodes.bar.style.width = `${(100 * labelled) / (state.pairs.length || 1)}%`;
    const more = state.left_out ? [`${count(state.left_out, "more pair")} in the notebook: this page has room for ${state.pairs.length}`] : [];
    nodes.notes.textContent = [...state.notes, ...more].join(" · ");
    nodes.notes.hidden = !nodes.notes.textContent;
    drawPair(ledger.pairOf(current), state, done);
    for (const choice of ["left", "right", "tie", "skip"]) nodes.buttons[choice].disabled = !current;
    nodes.buttons.undo.disabled = !labelled;
    drawStatus(nodes, state, ledger, labelled);
    drawAgreement(nodes, state, done, revisit);
  }

  function drawPair(pair, state, done) {
    nodes.task.hidden = !pair;
    nodes.empty.hidden = Boolean(pair);
    nodes.verdicts.hidden = !state.pairs.length;
    nodes.verdicts.classList.toggle("over", !pair); // only undo is left
    if (!pair) drawEnd(nodes, state, [...done.values()].filter((e) => e.choice === "skip" && ledger.pairOf(e.pair)), lookAgain);
    else if (pair.id !== drawn) {
      words(nodes.prompt, pair.prompt);
      nodes.sides.left.put(pair.left);
      nodes.sides.right.put(pair.right);
      time.reset();
    }
    drawn = pair?.id ?? null;
  }

  on(root, "keydown", (event) => {
    const choice = KEYS[event.key];
    if (!choice || event.ctrlKey || event.metaKey || event.altKey || event.target.closest(".agree")) return;
    if (event.key === "ArrowDown" && event.target.closest(".long .words")) return; // scrolls
    event.preventDefault();
    if (!event.repeat) choose(choice); // a key held down labels one pair, not all
  });
  on(nodes.save, "click", () => download(view.state.file, ledger.file()));
  on(nodes.again, "click", () => {
    if (nodes.again.dataset.sure) {
      for (const record of ledger.box.all()) ledger.box.drop(record.id);
      current = null;
      delete nodes.again.dataset.sure;
    } else nodes.again.dataset.sure = "yes";
    update(view.state);
  });
  on(nodes.again, "blur", () => { delete nodes.again.dataset.sure; update(view.state); });
  on(nodes.details, "toggle", () => {
    peeked = peeked || nodes.details.open;
    drawAgreement(nodes, view.state, ledger.done(), revisit);
  });
  const fromOtherTab = (event) => { if (event.key?.startsWith("course-labels:")) view.later(); };
  window.addEventListener("storage", fromOtherTab);
  ledger.send(ledger.waiting()); // what an earlier kernel did not take
  return { update, stop() {
    window.removeEventListener("storage", fromOtherTab);
    ledger.stop();
    time.stop();
  } };
}
