// The figures of the report, each a function of (place on the page, its data).

// Rows of a dot with its interval on one common axis: gold per model, win rates.
function intervals(host, rows, { domain, format, reference = null, referenceText = "" }) {
  const draw = (width) => {
    const longest = Math.max(...rows.map((row) => row.label.length)) * 7.8 + 22;
    const narrow = longest > width * 0.42;
    const step = narrow ? 46 : 34;
    const margin = { left: narrow ? 8 : Math.max(120, longest), right: narrow ? 16 : 76, top: reference === null ? 8 : 22, bottom: 26 };
    const height = margin.top + rows.length * step + margin.bottom;
    const { svg, box, sx, plot } = frame(host, {
      width, height, margin,
      x: { domain, format: (v, all) => format(v, all) },
      y: { domain: [0, 1], count: 1, format: () => "" },
    });
    svg.querySelectorAll(".axes .grid, .axes .zero").forEach((line) => line.remove());
    if (reference !== null && reference >= domain[0] && reference <= domain[1]) {
      add(plot, "line", { x1: sx(reference), x2: sx(reference), y1: box.top - 4, y2: box.bottom, class: "reference" });
      add(plot, "text", { x: sx(reference), y: 11, "text-anchor": "middle", class: "hint" }, referenceText);
    }
    const stops = rows.map((row, i) => {
      const y = box.top + (i + (narrow ? 0.66 : 0.5)) * step;
      const ends = [row.low, row.high].every(known) ? [row.low, row.high] : [row.mean, row.mean];
      add(plot, "line", { x1: box.left, x2: box.right, y1: y, y2: y, class: "grid" });
      add(plot, "line", { x1: sx(ends[0]), x2: sx(ends[1]), y1: y, y2: y, class: `whisker ${row.tone}` });
      mark(plot, row.key, row.tone, sx(row.mean), y, 6);
      if (narrow) {
        const line = add(plot, "text", { x: box.left, y: y - 13, class: "row" }, `${row.label}  `);
        add(line, "tspan", { class: "strong" }, format(row.mean));
      } else {
        add(plot, "text", { x: box.left - 14, y, dy: "0.34em", "text-anchor": "end", class: "row" }, row.label);
        add(plot, "text", { x: box.right + 14, y, dy: "0.34em", class: "row strong" }, format(row.mean));
      }
      const values = [["mean", format(row.mean)]];
      if (known(row.low) && known(row.high)) values.push(["95% interval", `${format(row.low)} to ${format(row.high)}`]);
      return { x: sx(row.mean), y, title: row.label, rows: values };
    });
    interact(svg, stops, {});
  };
  responsive(host, draw);
}

function ladder(host, data) {
  const rows = data.ladder.filter((row) => known(row.mean));
  const domain = extent(rows.flatMap((r) => [r.mean, r.low, r.high]).concat(0), 0.04);
  intervals(host, rows, {
    domain,
    format: (v, all) => (all ? tickText(v, all) : show(v)),
    reference: 0,
  });
}

function wins(host, data) {
  const rows = data.wins.map((w) => ({ ...w, mean: w.rate, label: `${w.a} against ${w.b}` }));
  intervals(host, rows, {
    domain: [0, 1],
    format: (v) => `${show(100 * v, 0)}%`,
    reference: 0.5,
    referenceText: "equal",
  });
}

// ---- training curves ---------------------------------------------------------------------------

function smoothed(points) {
  const reach = Math.max(1, Math.round(points.length / 24));
  return points.map(([x], i) => {
    const near = points.slice(Math.max(0, i - reach), i + reach + 1);
    return [x, near.reduce((sum, p) => sum + p[1], 0) / near.length];
  });
}

const cursors = []; // {stage, move(step)} of every panel, so that one pointer moves them all

function panel(host, data) {
  const found = data.panels[Number(host.dataset.index)];
  const head = add(host, "p", { class: "panel-head" });
  add(head, "span", {}, found.title);
  const reading = add(head, "output");
  const values = found.series.flatMap((s) => s.points.map((p) => p[1]));
  const steps = found.series.flatMap((s) => s.points.map((p) => p[0]));
  let cursor = () => {};
  cursors.push({ stage: found.stage, move: (step) => cursor(step) });
  responsive(host, (width) => {
    const { svg, box, sx, sy, plot } = frame(host, {
      width,
      height: 150,
      margin: { left: 40, right: 12, top: 10, bottom: 24 },
      x: { domain: [Math.min(...steps), Math.max(...steps, Math.min(...steps) + 1)], count: 4 },
      y: { domain: extent(values), count: 3 },
    });
    const place = ([x, y]) => [sx(x), sy(y)];
    for (const series of found.series) {
      const long = series.points.length > 30 && !series.held;
      if (long) polyline(plot, series.points.map(place), `trace faint ${series.tone}`);
      const line = long ? smoothed(series.points) : series.points;
      polyline(plot, line.map(place), `trace ${series.tone}${series.held ? " held" : ""}`);
      if (series.held) for (const p of series.points) mark(plot, "base", series.tone, ...place(p), 3);
    }
    const hair = add(plot, "line", { y1: box.top, y2: box.bottom, class: "hair", visibility: "hidden" });
    const dots = found.series.map((s) => add(plot, "circle", { r: 3.5, class: `dot ${s.tone}`, visibility: "hidden" }));
    const say = (lead, values) => {
      reading.replaceChildren(lead);
      values.forEach((value, i) => add(reading, "span", { class: found.series[i].tone }, value));
    };
    const last = found.series.map((s) => brief(s.points.at(-1)[1]));
    const near = (series, step) => series.points.reduce((a, b) => (Math.abs(b[0] - step) < Math.abs(a[0] - step) ? b : a));
    cursor = (step) => {
      const seen = step === null ? "hidden" : "visible";
      hair.setAttribute("visibility", seen);
      dots.forEach((dot) => dot.setAttribute("visibility", seen));
      if (step === null) return say("", last);
      const x = Math.max(box.left, Math.min(box.right, sx(step)));
      hair.setAttribute("x1", x);
      hair.setAttribute("x2", x);
      const read = found.series.map((s, i) => {
        const p = near(s, step);
        dots[i].setAttribute("cx", sx(p[0]));
        dots[i].setAttribute("cy", sy(p[1]));
        return brief(p[1]);
      });
      say(`step ${show(step, 0)}`, read);
    };
    cursor(null);
    const stops = [...new Set(steps)].sort((a, b) => a - b).map((step) => ({
      x: sx(step),
      y: box.top,
      step,
      title: `step ${show(step, 0)}`,
      rows: found.series.map((s) => [s.name || found.title, brief(near(s, step)[1])]),
    }));
    const together = (stop) => {
      for (const other of cursors) if (other.stage === found.stage) other.move(stop ? stop.step : null);
    };
    interact(svg, stops, { flat: true, onMove: together, tips: false });
  });
}

// ---- reward-KL frontier ------------------------------------------------------------------------

function showExample(place, path, point) {
  place.replaceChildren();
  if (point.text === undefined) return;
  const head = add(place, "p", { class: "example-head" });
  mark(add(head, "svg", { viewBox: "-8 -8 16 16", class: "icon" }), path.key, path.tone, 0, 0);
  add(head, "b", {}, path.label);
  add(head, "span", {}, ` ${point.label} · KL ${show(point.kl, 1)} nats · mean gold ${show(point.gold)}`);
  add(place, "p", { class: "prompt" }, point.prompt);
  add(place, "p", { class: "said" }, point.text || "(an empty answer)");
  if (known(point.score)) add(place, "p", { class: "fine" }, `gold of this answer: ${show(point.score)}`);
}

function frontier(host, data) {
  const paths = data.frontier;
  const everything = paths.flatMap((path) => path.points.map((point) => ({ path, point })));
  const example = document.getElementById("frontier-example");
  let picked = everything.filter((e) => e.point.text !== undefined && ["ppo", "dpo"].includes(e.path.key))
    .reduce((a, b) => (a && a.point.gold >= b.point.gold ? a : b), null);
  let bent = Math.max(...everything.map((e) => e.point.kl)) > 8; // else what happens early is squeezed
  let redraw = () => {};
  const choice = add(host, "div", { class: "choice", role: "group", "aria-label": "KL axis" });
  for (const [text, value] of [["KL", false], ["√KL", true]]) {
    const button = add(choice, "button", { type: "button", "aria-pressed": String(value === bent) }, text);
    button.addEventListener("click", () => {
      bent = value;
      for (const other of choice.children) other.setAttribute("aria-pressed", String(other === button));
      redraw();
    });
  }
  const draw = (width) => {
    const kls = everything.map((e) => e.point.kl);
    const { svg, box, sx, sy, plot } = frame(host, {
      width,
      height: Math.max(320, Math.min(520, width * 0.56)),
      margin: { left: 44, right: 20, top: 26, bottom: 46 },
      x: { domain: [0, Math.max(...kls) * 1.06 || 1], scale: bent ? rooted : linear, ticks: bent ? rootTicks : undefined, format: bent ? String : undefined, label: "KL to the SFT model, nats per answer" },
      y: { domain: extent(everything.flatMap((e) => [e.point.gold, e.point.low, e.point.high])), label: "gold reward" },
    });
    const start = paths.find((p) => p.key === "sft")?.points[0];
    if (start) add(plot, "line", { x1: box.left, x2: box.right, y1: sy(start.gold), y2: sy(start.gold), class: "reference" });
    const place = (p) => [sx(p.kl), sy(p.gold)];
    for (const path of paths) {
      const from = start && !["base", "sft"].includes(path.key) && path.points[0].kl >= start.kl ? [start] : [];
      polyline(plot, [...from, ...path.points].map(place), `trace path ${path.tone}`);
      for (const p of path.points) {
        if (known(p.low) && known(p.high)) {
          add(plot, "line", { x1: sx(p.kl), x2: sx(p.kl), y1: sy(p.low), y2: sy(p.high), class: `whisker thin ${path.tone}` });
        }
      }
    }
    const ring = add(plot, "circle", { r: 11, class: "ring", visibility: "hidden" });
    const chosen = add(plot, "circle", { r: 11, class: "ring chosen", visibility: "hidden" });
    const stops = everything.map(({ path, point }) => {
      const [x, y] = place(point);
      mark(plot, path.key, path.tone, x, y);
      const rows = [["KL, nats", show(point.kl)], ["gold", show(point.gold)]];
      if (known(point.low) && known(point.high)) rows.push(["95%", `${show(point.low)} to ${show(point.high)}`]);
      const title = point.label && point.label !== path.label ? `${path.label}, ${point.label}` : path.label;
      return { x, y, title, rows, path, point };
    }).sort((a, b) => a.x - b.x);
    placeLabels(plot, box, paths.map((path) => {
      const [x, y] = place(path.points.at(-1));
      return { x, y, text: path.label, tone: path.tone };
    }), [...stops.map((s) => [s.x, s.y]), ...paths.flatMap((path) => along(path.points.map(place))).map(([x, y]) => [x, y, 1])]);
    const circle = (node, stop) => {
      node.setAttribute("visibility", stop ? "visible" : "hidden");
      if (stop) { node.setAttribute("cx", stop.x); node.setAttribute("cy", stop.y); }
    };
    const pick = (stop) => {
      if (!stop) return;
      picked = stop;
      circle(chosen, stop);
      showExample(example, stop.path, stop.point);
    };
    pick(stops.find((s) => picked && s.point === picked.point));
    interact(svg, stops, { onMove: (stop) => circle(ring, stop), onPick: pick });
  };
  redraw = () => draw(Math.round(host.clientWidth));
  responsive(host, draw);
  numbersTable(host.parentNode, ["method", "point", "KL, nats", "gold", "95% interval"], everything.map(({ path, point }) => [
    path.label, point.label, show(point.kl), show(point.gold),
    known(point.low) ? `${show(point.low)} to ${show(point.high)}` : "–",
  ]));
}

// ---- over-optimisation -------------------------------------------------------------------------

function overoptimisation(host, data) {
  const { points, peak, verdict } = data.over;
  const lines = [["proxy", "reward model (proxy)", "c-proxy"], ["gold", "gold reward", "c-gold"]]
    .filter(([name]) => points.some((p) => known(p[name])));
  responsive(host, (width) => {
    const narrow = width < 520;
    const { svg, box, sx, sy, plot } = frame(host, {
      width,
      height: Math.max(280, Math.min(420, width * 0.46)),
      margin: { left: 44, right: narrow ? 16 : 160, top: 26, bottom: 46 },
      x: { domain: [0, Math.max(...points.map((p) => p.kl)) * 1.02 || 1], label: "KL to the SFT model, nats per answer" },
      y: { domain: extent(lines.flatMap(([name]) => points.map((p) => p[name]))), label: "reward" },
    });
    const falls = verdict.includes("fall");
    if (falls) {
      const x = sx(points[peak].kl);
      add(plot, "rect", { x, y: box.top, width: Math.max(0, box.right - x), height: box.bottom - box.top, class: "danger" });
      add(plot, "line", { x1: x, x2: x, y1: box.top, y2: box.bottom, class: "reference" });
      const text = narrow ? "gold’s peak" : `gold’s peak, KL ${show(points[peak].kl, 1)}`;
      add(plot, "text", { x: x + 6, y: box.bottom - 8, class: "hint" }, text);
    }
    const ends = [];
    for (const [name, text, tone] of lines) {
      const measured = points.filter((p) => known(p[name]));
      polyline(plot, measured.map((p) => [sx(p.kl), sy(p[`${name}_level`])]), `trace ${tone}${name === "proxy" ? " held" : ""}`);
      for (const p of measured) mark(plot, name === "gold" ? "base" : "sft", tone, sx(p.kl), sy(p[name]), 3);
      ends.push({ y: sy(measured.at(-1)[name]), text, tone });
    }
    if (narrow) {
      ends.forEach((e, i) => add(plot, "text", { x: box.right, y: 12 + 15 * i, "text-anchor": "end", class: `name ${e.tone}` }, `${i ? "● " : "■ "}${e.text}`));
    } else {
      if (ends.length === 2 && Math.abs(ends[0].y - ends[1].y) < 16) ends[0].y = ends[1].y + (ends[0].y < ends[1].y ? -16 : 16);
      for (const e of ends) add(plot, "text", { x: box.right + 10, y: e.y, dy: "0.34em", class: `name ${e.tone}` }, e.text);
    }
    const hair = add(plot, "line", { y1: box.top, y2: box.bottom, class: "hair", visibility: "hidden" });
    const stops = points.map((p) => ({
      x: sx(p.kl),
      y: sy(p.gold),
      title: known(p.step) ? `step ${show(p.step, 0)}` : "measured",
      rows: [["KL, nats", show(p.kl, 1)], ["proxy", show(p.proxy)], ["gold", show(p.gold)]],
    })).sort((a, b) => a.x - b.x);
    interact(svg, stops, {
      flat: true,
      onMove: (stop) => {
        hair.setAttribute("visibility", stop ? "visible" : "hidden");
        if (stop) { hair.setAttribute("x1", stop.x); hair.setAttribute("x2", stop.x); }
      },
    });
  });
  numbersTable(host.parentNode, ["step", "KL, nats", "proxy", "gold"],
    points.map((p) => [show(p.step, 0), show(p.kl), show(p.proxy), show(p.gold)]));
}

// ---- calibration -------------------------------------------------------------------------------

function calibration(host, data) {
  const bins = data.bins.filter((b) => known(b.confidence) && known(b.accuracy) && b.count > 0);
  const most = Math.max(...bins.map((b) => b.count), 1);
  const low = Math.min(...data.bins.map((b) => b.low).filter(known), 0.5);
  responsive(host, (width) => {
    const { svg, sx, sy, plot } = frame(host, {
      width,
      height: Math.min(width, 360),
      margin: { left: 48, right: 18, top: 26, bottom: 46 },
      x: { domain: [low, 1], count: 5, format: (v) => `${show(100 * v, 0)}%`, label: "how sure it was" },
      y: { domain: [Math.min(low, ...bins.map((b) => b.accuracy)) - 0.02, 1.02], count: 5, format: (v) => `${show(100 * v, 0)}%`, label: "how often it was right" },
    });
    polyline(plot, [[sx(low), sy(low)], [sx(1), sy(1)]], "reference");
    polyline(plot, bins.map((b) => [sx(b.confidence), sy(b.accuracy)]), "trace c-sft");
    const stops = bins.map((b) => {
      const at = { x: sx(b.confidence), y: sy(b.accuracy) };
      add(plot, "circle", { cx: at.x, cy: at.y, r: 3 + 9 * Math.sqrt(b.count / most), class: "bubble c-sft" });
      return {
        ...at,
        title: `${show(100 * b.low, 0)} to ${show(100 * b.high, 0)}% sure`,
        rows: [["said", `${show(100 * b.confidence, 0)}%`], ["was right", `${show(100 * b.accuracy, 0)}%`], ["pairs", show(b.count, 0)]],
      };
    });
    interact(svg, stops, {});
  });
}
