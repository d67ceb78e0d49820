// What every inspector stands on: nodes, numbers, theme, controls, colour scales, tokens, and the
// link to Python, which is a live kernel's model or, on a page without one, `fakeModel`.
// README.md says how to use it. No imports: base.py puts this file in front of an inspector's own.

const SVG = "http://www.w3.org/2000/svg";

// ---- nodes --------------------------------------------------------------------------------------

// Appends <name ...>text</name>. Text goes in as a text node, so nothing in it can become markup.
export function add(parent, name, attributes = {}, text = null) {
  const svg = name === "svg" || (parent.namespaceURI === SVG && name !== "div");
  const made = svg ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  if (text !== null) made.textContent = text;
  parent.append(made);
  return made;
}

// An event handler whose error is shown in the inspector, and then goes on to the console.
export function on(node, type, handler) {
  node.addEventListener(type, (event) => {
    try {
      return handler(event);
    } catch (error) {
      fail(node.closest(".cui"), error);
      throw error;
    }
  });
}

function fail(root, error) {
  if (!root) return;
  const box = root.querySelector(":scope > .fault") ?? add(root, "p", { class: "fault", role: "alert" });
  box.textContent = `This inspector met an error: ${error?.message ?? error}. Please report it.`;
  root.prepend(box);
}

// ---- numbers ------------------------------------------------------------------------------------

export const known = (value) => typeof value === "number" && Number.isFinite(value);
export const clamp = (value, low, high) => Math.max(low, Math.min(high, value));

export function show(value, decimals = 2) {
  if (!known(value)) return "–";
  const text = value.toFixed(decimals);
  return (Number(text) === 0 ? (0).toFixed(decimals) : text).replace("-", "−");
}

// As many decimals as the size of the number needs.
export function brief(value) {
  if (!known(value)) return "–";
  const size = Math.abs(value);
  if (size >= 1e6 || (size && size < 1e-4)) return value.toExponential(1).replaceAll("-", "−").replace("+", "");
  if (size >= 10000) return `${show(value / 1000, 0)}k`;
  return show(value, size >= 100 ? 0 : size >= 10 ? 1 : size >= 0.1 || size === 0 ? 2 : size >= 0.01 ? 3 : 4);
}

export const count = (n, one, many = `${one}s`) => `${n.toLocaleString("en-US")} ${n === 1 ? one : many}`;

// ---- the link to Python -------------------------------------------------------------------------

// A model that no kernel stands behind: for static pages, and for tests.
export function fakeModel(state, ui = {}, key = "page") {
  const values = { state, ui, key };
  const heard = [];
  return {
    get: (name) => values[name],
    set(name, value) {
      values[name] = value;
      for (const [type, run] of [...heard]) if (type === `change:${name}`) run();
    },
    on: (type, run) => void heard.push([type, run]),
    off(type, run) {
      for (let i = heard.length - 1; i >= 0; i--) {
        if (heard[i][0] === type && (!run || heard[i][1] === run)) heard.splice(i, 1);
      }
    },
    save_changes() {},
    sent: [],
    send(message) { this.sent.push(message); },
    receive: (message) => { for (const [type, run] of [...heard]) if (type === "msg:custom") run(message); },
  };
}

// What Python has sent so far, one store per model: the whole state once, then increments
// {kind: "append", at: {rows: 12}, add: {rows: [...]}, set: {...}}.
const stores = new Map();

export function initialize({ model }) {
  const store = { state: model.get("state"), views: new Set() };
  const changed = () => { for (const view of store.views) view(); };
  const whole = () => { store.state = model.get("state"); changed(); };
  const message = (m) => {
    if (m.kind !== "append") return;
    const next = { ...store.state, ...m.set };
    for (const [name, rows] of Object.entries(m.add ?? {})) {
      const have = store.state[name] ?? [];
      if (m.at[name] > have.length) { // an increment came before this page was listening
        model.send({ kind: "resend" });
        return;
      }
      next[name] = have.slice(0, m.at[name]).concat(rows);
    }
    store.state = next;
    changed();
  };
  stores.set(model.get("key"), store);
  model.on("change:state", whole);
  model.on("msg:custom", message);
  return () => stores.delete(model.get("key"));
}

// Runs on a page without a kernel; the same `render` draws.
export function start(render, host, { state, ui, key }) {
  if (host.dataset.started) return;
  host.dataset.started = "yes";
  const model = fakeModel(state, ui, key);
  initialize({ model });
  render({ model, el: host });
}

// ---- the view -----------------------------------------------------------------------------------

// Fills `el`: `build(view)` makes the nodes once and returns update(state), which is called now,
// with every new state, and after view.choose(). At most one update per drawn picture.
export function inspect({ model, el }, build) {
  if (!stores.has(model.get("key"))) initialize({ model });
  const store = stores.get(model.get("key"));
  el.replaceChildren(); // the frame that Python drew
  const root = add(el, "div", { class: "cui", "data-lm-suppress-shortcuts": "true" });
  const stopTheme = followTheme(root, el);
  on(root, "keydown", (event) => event.stopPropagation()); // the notebook's shortcuts are not meant
  const ui = { ...model.get("ui") };
  let update = null;
  let asked = 0;
  const draw = () => {
    asked = 0;
    try {
      showNotice(root, store.state.notice);
      update(store.state);
    } catch (error) {
      fail(root, error);
      throw error;
    }
  };
  const later = () => { asked = asked || requestAnimationFrame(draw); };
  const chosen = () => {
    Object.assign(ui, model.get("ui"));
    later();
  };
  const view = {
    root,
    ui, // what the reader has chosen; Python reads and sets it too
    get state() { return store.state; },
    choose(part, { redraw = true } = {}) {
      Object.assign(ui, part);
      model.set("ui", { ...ui });
      model.save_changes();
      if (redraw) later();
    },
    send: (message) => model.send(message), // to Inspector.received; heard once the kernel is idle
    later,
  };
  try {
    update = build(view);
  } catch (error) {
    fail(root, error);
    throw error;
  }
  draw();
  store.views.add(later);
  model.on("change:ui", chosen);
  return () => {
    store.views.delete(later);
    model.off("change:ui", chosen);
    cancelAnimationFrame(asked);
    stopTheme();
  };
}

function showNotice(root, notice) {
  const old = root.querySelector(":scope > .notice");
  if (!notice) { old?.remove(); return; }
  const box = old ?? add(root, "p", { class: "notice", role: "status" });
  box.textContent = notice;
  root.prepend(box);
}

// Dark where the page writes in a light colour: true of JupyterLab, VS Code, Colab and web pages.
function followTheme(root, el) {
  const look = () => {
    const [r, g, b] = (getComputedStyle(el).color.match(/[\d.]+/g) ?? [0, 0, 0]).map(Number);
    root.dataset.theme = 0.3 * r + 0.6 * g + 0.1 * b > 127 ? "dark" : "light";
  };
  look();
  const watcher = new MutationObserver(look);
  for (const node of [document.documentElement, document.body]) watcher.observe(node, { attributes: true });
  const scheme = matchMedia("(prefers-color-scheme: dark)");
  scheme.addEventListener("change", look);
  const late = setTimeout(look, 300); // a page whose style sheet came after us
  return () => {
    watcher.disconnect();
    scheme.removeEventListener("change", look);
    clearTimeout(late);
  };
}

// Calls draw(width) now and whenever `host` gets another width.
export function responsive(host, draw) {
  let last = 0;
  const check = () => {
    const width = Math.round(host.clientWidth);
    if (width < 40 || Math.abs(width - last) < 2) return;
    last = width;
    draw(width);
  };
  check();
  new ResizeObserver(() => requestAnimationFrame(check)).observe(host);
}

// ---- reading values -----------------------------------------------------------------------------

// Says `text` to a screen reader.
export function speak(node, text) {
  const root = node.closest(".cui");
  const place = root.querySelector(":scope > .unseen") ?? add(root, "div", { class: "unseen", "aria-live": "polite" });
  place.textContent = text;
}

// The tooltip of the inspector that holds `node`: show(x, y, title, [[name, value]]), hide().
export function tipFor(node) {
  const root = node.closest(".cui");
  const tip = root.querySelector(":scope > .tip") ?? add(root, "div", { class: "tip", hidden: true });
  return {
    hide: () => { tip.hidden = true; },
    show(x, y, title, rows = []) { // x, y in the window
      tip.replaceChildren();
      add(tip, "b", {}, title);
      for (const [name, value] of rows) {
        const one = add(tip, "div");
        add(one, "span", {}, name);
        add(one, "span", {}, value);
      }
      tip.hidden = false;
      const frame = root.getBoundingClientRect();
      const { width, height } = tip.getBoundingClientRect();
      const top = y - height - 12 < Math.max(0, frame.top) ? y + 18 : y - height - 12;
      tip.style.left = `${clamp(x + 12 - frame.left, 4, Math.max(4, frame.width - width - 6))}px`;
      tip.style.top = `${top - frame.top}px`;
    },
  };
}

// ---- controls -----------------------------------------------------------------------------------

// A row of buttons of which one is pressed. options: [[value, label, title]]. Returns mark(value).
export function choice(parent, label, options, pick) {
  const group = add(parent, "div", { class: "choice", role: "group", "aria-label": label });
  const buttons = options.map(([value, text, title]) => {
    const button = add(group, "button", { type: "button", title }, text);
    on(button, "click", () => pick(value));
    return [value, button];
  });
  return (value) => {
    for (const [own, button] of buttons) button.setAttribute("aria-pressed", String(own === value));
  };
}

// A slider with its text. Returns put({value, min, max, text}); pick(number) is called as it moves.
export function slider(parent, label, { min = 0, max = 1, step = 1 }, pick) {
  const host = add(parent, "label", { class: "slider" });
  const text = add(host, "span");
  const range = add(host, "input", { type: "range", min, max, step, "aria-label": label });
  on(range, "input", () => pick(Number(range.value)));
  return ({ value, min: low, max: high, text: said = String(value) }) => {
    if (low !== undefined) range.min = low;
    if (high !== undefined) range.max = high;
    range.value = value;
    range.disabled = Number(range.max) <= Number(range.min);
    range.setAttribute("aria-valuetext", said);
    text.textContent = said;
  };
}

// A button that unfolds text. Returns its body.
export function fold(parent, title) {
  const details = add(parent, "details");
  add(details, "summary", {}, title);
  return add(details, "div");
}

// ---- colour scales (the twin of colours.py) -----------------------------------------------------

// In [-1, 1]: how strong the colour of a value is, and on which side; null where there is no number.
export function strength(scale, value) {
  return known(value) ? clamp(value / (scale.limit || 1), scale.kind === "sequential" ? 0 : -1, 1) : null;
}

export function paint(node, amount) {
  node.classList.toggle("heat", amount !== null);
  node.classList.toggle("odd", amount === null);
  node.classList.toggle("neg", amount !== null && amount < 0);
  node.style.setProperty("--a", Math.abs(amount ?? 0).toFixed(2));
}

export function legend(host, scale) {
  host.replaceChildren();
  host.classList.add("scale");
  const two = scale.kind !== "sequential";
  add(host, "span", {}, two ? `≤ ${brief(-scale.limit)}` : "0");
  add(host, "i", { class: two ? "two" : "one" });
  add(host, "span", {}, `≥ ${brief(scale.limit)}`);
  if (scale.unit) add(host, "span", {}, scale.unit);
  if (scale.missing) {
    add(host, "i", { class: "odd" });
    add(host, "span", {}, "not a number");
  }
  add(host, "em", {}, scale.help ?? "");
}

// ---- tokens -------------------------------------------------------------------------------------

export const FIRST_TOKENS = 600; // drawn at once; the rest on demand

// A run of tokens that pointer and arrow keys read. options: glue (put between tokens), of(i) ->
// {amount, classes, text}, read(i) when token i is looked at. Returns {select(i), repaint()}.
export function tokenRun(host, tokens, { glue = "", of, read, label = "tokens", limit = FIRST_TOKENS }) {
  host.replaceChildren();
  host.classList.add("tokens");
  for (const [key, value] of Object.entries({ role: "group", "aria-label": label, dir: "auto" })) host.setAttribute(key, value);
  let at = -1;
  const spans = [];
  const dress = (span, i) => {
    const { amount, classes = "" } = of(i);
    span.className = `token ${classes} ${i === at ? "on" : ""}`;
    if (amount !== undefined) paint(span, amount);
  };
  const draw = (from, to) => {
    const run = document.createDocumentFragment();
    for (let i = from; i < to; i++) {
      const text = of(i).text ?? tokens[i];
      const span = add(run, "span", { "data-i": i, tabindex: i ? -1 : 0 }, visible(text));
      dress(span, i);
      spans.push(span);
      if (glue && i + 1 < tokens.length) run.append(glue);
      if (text.includes("\n")) run.append("\n");
    }
    host.append(run);
  };
  const select = (index, focus = false) => {
    const next = clamp(index, 0, spans.length - 1);
    if (!spans.length) return;
    for (const i of [at, next]) {
      spans[i]?.classList.toggle("on", i === next);
      spans[i]?.setAttribute("tabindex", i === next ? 0 : -1);
    }
    if (at < 0 && next) spans[0].setAttribute("tabindex", -1);
    at = next;
    if (focus) spans[at].focus();
    read?.(at);
  };
  host.onpointerover = host.onclick = (event) => {
    const span = event.target.closest(".token");
    if (span) select(Number(span.dataset.i), event.type === "click");
  };
  host.onkeydown = (event) => {
    const rtl = getComputedStyle(host).direction === "rtl" ? -1 : 1;
    const by = { ArrowRight: rtl, ArrowLeft: -rtl, ArrowDown: 10, ArrowUp: -10, Home: -1e9, End: 1e9 }[event.key];
    if (!by || !event.target.closest(".token")) return;
    event.preventDefault();
    select(at + by, true);
  };
  draw(0, Math.min(limit, tokens.length));
  if (tokens.length > limit) {
    const more = add(host, "button", { type: "button", class: "more" }, `show all ${tokens.length.toLocaleString("en-US")} tokens`);
    on(more, "click", () => {
      more.remove();
      draw(limit, tokens.length);
    });
  }
  return { select, repaint: () => spans.forEach(dress), get at() { return at; } };
}

// Whether a token is one of the tokenizer's signs: <|end|>, <s>, [PAD].
export const isSign = (token) => /^(<\|.*\|>|<\/?\w+>|\[[A-Z]+\])$/.test(token.trim());

// Line ends, and tokens that would show nothing, get a sign.
export function visible(token) {
  if (token === "") return "∅";
  return token.replaceAll("\r", "␍").replaceAll("\n", "⏎").replaceAll("\t", "⇥").replace(/^ +$/, (s) => "␣".repeat(s.length));
}
