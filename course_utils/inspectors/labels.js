// Labels on the browser's side: kept in its storage from the moment they are made until Python's log
// has them, so that none depends on a kernel being there. No imports; base.py puts this file in front.

const RETRY = [2000, 4000, 8000, 16000, 30000, 60000]; // ms after which unanswered labels go out again

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
export function agreement(cases) {
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

// ---- labels made here, and the way to Python ------------------------------------------------------

// What was labelled: Python's log and what the browser still holds. `changed` is called when that
// changes without the reader's doing.
export function ledgerOf(view, changed) {
  const box = outbox(view.state);
  const ledger = { box, unreachable: false };
  let tries = 0;
  let timer = 0;
  ledger.pairOf = (id) => view.state.pairs.find((pair) => pair.id === id);
  ledger.waiting = () => {
    const have = new Set(view.state.log.map((e) => e.id));
    return box.all().filter((record) => !have.has(record.id));
  };
  ledger.entries = () => [...view.state.log, ...ledger.waiting()];
  ledger.done = () => standing(ledger.entries());
  ledger.forgetAcknowledged = () => {
    if (!view.state.kernel) return;
    const have = new Set(view.state.log.map((e) => e.id));
    for (const record of box.all()) if (have.has(record.id)) box.drop(record.id);
  };
  ledger.keep = (record) => {
    const whole = { ...record, id: newId(), annotator: view.state.annotator, at: now() };
    box.put(whole);
    ledger.send([whole]);
  };
  ledger.takeBack = (label) => ledger.keep({ kind: "undo", of: label.id });
  // Python has the texts of its own pairs, so they are not sent.
  const light = (record) => {
    if (!ledger.pairOf(record.pair)) return record;
    const { prompt: _, left: __, right: ___, ...rest } = record;
    return rest;
  };
  ledger.send = (records) => {
    if (!view.state.kernel || !records.length) return;
    try {
      view.send({ kind: "labels", have: view.state.log.length, records: records.map(light) });
      ledger.unreachable = false;
    } catch { // no kernel: the labels stay in the browser, the status says so, and we try again
      ledger.unreachable = true;
    }
    if (!timer) timer = setTimeout(retry, RETRY[Math.min(tries, RETRY.length - 1)]);
  };
  const retry = () => {
    timer = 0;
    const left = ledger.waiting().filter((record) => !view.state.refused[record.id]);
    tries = left.length ? tries + 1 : 0;
    ledger.send(left);
    changed();
  };
  // All labels as a file like Python's.
  ledger.file = () => {
    const { labeller, annotator } = view.state;
    const own = new Map(box.all().map((record) => [record.id, record]));
    const whole = ledger.entries().map((entry) => {
      if (own.has(entry.id)) return own.get(entry.id);
      const { id: _, ...texts } = ledger.pairOf(entry.pair) ?? {};
      return entry.kind === "undo" || texts.left !== undefined ? { ...texts, ...entry, annotator } : null;
    });
    const header = { kind: "labels", version: 1, id: labeller, created: new Date().toISOString() };
    return `${[header, ...whole.filter(Boolean)].map((row) => JSON.stringify(row)).join("\n")}\n`;
  };
  ledger.stop = () => clearTimeout(timer);
  return ledger;
}
