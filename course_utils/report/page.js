// Puts every figure in its place, turns the prompts into tabs, follows the reader in the navigation.

const data = JSON.parse(document.getElementById("data").textContent);
const FIGURES = { ladder, wins, panel, frontier, overoptimisation, calibration };

for (const host of document.querySelectorAll("[data-chart]")) {
  try {
    FIGURES[host.dataset.chart](host, data);
  } catch (error) {
    add(host, "p", { class: "missing" }, "This figure could not be drawn.");
    console.error(error);
  }
}
for (const host of document.querySelectorAll("[data-inspector]")) inspector(host, data);
for (const place of document.querySelectorAll("[data-mark]")) {
  const tone = [...place.classList].find((name) => name.startsWith("c-"));
  mark(add(place, "svg", { viewBox: "-8 -8 16 16", class: "icon" }), place.dataset.mark, tone, 0, 0);
}

// One prompt at a time; without script, and on paper, all of them are there.
for (const box of document.querySelectorAll("[data-tabs]")) {
  const cards = [...box.querySelectorAll(":scope > [data-card]")];
  if (cards.length < 2) continue;
  const bar = document.createElement("div");
  bar.className = "tabs";
  bar.setAttribute("role", "tablist");
  bar.setAttribute("aria-label", box.dataset.tabs);
  box.prepend(bar);
  const tabs = cards.map((card, i) => {
    card.id = `card-${i}`;
    card.setAttribute("role", "tabpanel");
    card.setAttribute("aria-labelledby", `tab-${i}`);
    const tab = add(bar, "button", { type: "button", role: "tab", id: `tab-${i}`, "aria-controls": card.id }, card.querySelector(".prompt").textContent);
    tab.addEventListener("click", () => open(i));
    return tab;
  });
  const open = (chosen) => {
    cards.forEach((card, i) => card.classList.toggle("closed", i !== chosen));
    tabs.forEach((tab, i) => {
      tab.setAttribute("aria-selected", String(i === chosen));
      tab.setAttribute("tabindex", i === chosen ? 0 : -1);
    });
  };
  bar.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    const next = (tabs.indexOf(document.activeElement) + by + tabs.length) % tabs.length;
    open(next);
    tabs[next].focus();
  });
  box.classList.add("tabbed");
  open(0);
}

// The navigation marks the section being read.
const links = new Map([...document.querySelectorAll("nav a")].map((a) => [a.getAttribute("href").slice(1), a]));
const watcher = new IntersectionObserver((seen) => {
  for (const entry of seen) {
    if (!entry.isIntersecting) continue;
    for (const [name, link] of links) {
      if (name === entry.target.id) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
  }
}, { rootMargin: "-30% 0px -60% 0px" });
for (const name of links.keys()) watcher.observe(document.getElementById(name));

addEventListener("scroll", hideTip, { passive: true });
addEventListener("beforeprint", () => document.querySelectorAll("details:not(.numbers-table)").forEach((d) => { d.open = true; }));
