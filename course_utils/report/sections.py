"""The page's first sections: header, answers, training curves, frontier, over-optimisation.

Each function takes the results and returns Markup. A section without data is one sentence.
"""

from collections.abc import Mapping
from typing import Any

from course_utils.report import words
from course_utils.report.markup import (
    Markup,
    duration,
    fixed,
    number,
    tag,
)
from course_utils.report.series import cut, dict_of, label_of, panels, rows_of, tone

Results = Mapping[str, Any]


def section(name: str, title: str, *body: Any) -> Markup:
    return tag("section", tag("h2", title), *body, id=name)


def missing(name: str, title: str, sentence: str) -> Markup:
    return section(name, title, tag("p", sentence, cls="missing"))


def chart(name: str, description: str, **attributes: Any) -> Markup:
    """The place of a chart, which the script draws; `description` is for screen readers."""
    return tag("div", cls="chart", data_chart=name, data_label=description, **attributes)


def swatch(key: str) -> Markup:
    """The model's mark (shape and colour), filled in by the script; decorative."""
    return tag("span", cls=f"mark {tone(key)}", data_mark=key, aria_hidden="true")


def model_keys(results: Results) -> list[str]:
    return [str(m["key"]) for m in rows_of(results.get("models")) if m.get("key") is not None]


def table(head: list[Markup], rows: list[Markup]) -> Markup:
    """A table that scrolls by itself where the screen is narrow."""
    body = tag("table", tag("thead", tag("tr", *head)), tag("tbody", *rows))
    return tag("div", body, cls="scroll", tabindex="0", role="region", aria_label="table")


# ---- header ------------------------------------------------------------------------------------


def header(results: Results) -> Markup:
    facts = [
        ("tier", results.get("tier")),
        ("seed", results.get("seed")),
        ("took", duration(results.get("seconds")) if number(results.get("seconds")) else None),
        ("on", results.get("machine")),
        ("started", str(results.get("started") or "").replace("T", " ")[:16] or None),
    ]
    shown = [
        tag("span", tag("span", name, cls="k"), " ", tag("b", cut(value, 200)), cls="fact")
        for name, value in facts
        if value is not None
    ]
    notes = results.get("notes")
    notes = [n for n in notes if n] if isinstance(notes, list | tuple) else []
    which, scores = words.score_in_use(results)
    what = "gold reward" if which == "gold" else "the reward model’s score"
    ladder = tag(
        "figure",
        chart("ladder", f"{what} of each model with 95% intervals"),
        tag(
            "figcaption",
            f"{what[0].upper()}{what[1:]}: mean and 95% interval. ",
            "Each model’s mark and colour stay the same.",
        ),
    )
    return tag(
        "header",
        tag("p", *shown, cls="facts"),
        tag("h1", cut(results.get("title") or "From base model to aligned model", 200)),
        tag("p", words.verdict(results), cls="verdict"),
        tag("p", words.verdict_details(results), cls="lead"),
        ladder if scores else None,
        tag("ul", *(tag("li", cut(n, 600)) for n in notes), cls="notes") if notes else None,
    )


# ---- answers -----------------------------------------------------------------------------------


def _chips(gold: Any) -> Markup | None:
    """The gold reward's parts that are not zero, largest first."""
    gold = dict_of(gold)
    parts = [(name, number(value)) for name, value in dict_of(gold.get("parts")).items()]
    kept = [(name, value) for name, value in parts if value is not None and abs(value) >= 0.005]
    kept.sort(key=lambda part: -abs(part[1]))
    chips = [
        tag(
            "span",
            str(name).replace("_", " "),
            " ",
            tag("b", fixed(value, 1 if abs(value) >= 0.05 else 2, sign=True)),
            cls="chip pos" if value > 0 else "chip neg",
        )
        for name, value in kept
    ]
    return tag("div", *chips, cls="chips") if chips else None


def _answer(key: str, label: str, answer: dict[str, Any]) -> Markup:
    numbers = [
        tag("span", name, " ", tag("b", value))
        for name, value in (
            ("gold reward", fixed(dict_of(answer.get("gold")).get("total"))),
            ("reward model", fixed(answer.get("reward"))),
            ("KL, nats", fixed(answer.get("kl"), 1)),
        )
        if value != "–"
    ]
    text = cut(answer.get("text"))
    return tag(
        "article",
        tag("h4", swatch(key), label),
        tag(
            "div",
            tag("p", text or "(an empty answer)", cls="said" if text else "said empty"),
            tag("p", *numbers, cls="numbers") if numbers else None,
            _chips(answer.get("gold")),
        ),
        cls=f"answer {tone(key)}",
    )


def answers(results: Results) -> Markup:
    title = "Before and after"
    rows = [row for row in rows_of(results.get("answers")) if dict_of(row.get("answers"))][:16]
    if not rows:
        return missing("answers", title, "This run kept no answers to show.")
    models, order = rows_of(results.get("models")), model_keys(results)
    cards = []
    for i, row in enumerate(rows):
        said = {str(k): dict_of(v) for k, v in dict_of(row.get("answers")).items()}
        keys = sorted(said, key=lambda k: order.index(k) if k in order else len(order))
        shown = [_answer(key, label_of(key, models), said[key]) for key in keys]
        prompt = tag("h3", cut(row.get("prompt"), 600), cls="prompt")
        cards.append(tag("div", prompt, *shown, cls="card", data_card=str(i)))
    return section(
        "answers",
        title,
        tag("p", words.answers_text(results)),
        tag("div", *cards, cls="cards", data_tabs="Prompts"),
    )


# ---- charts ------------------------------------------------------------------------------------


def curves(results: Results) -> Markup:
    title = "Training"
    drawn = panels(dict_of(results.get("curves")))
    if not drawn:
        return missing("curves", title, "This run has no training curves.")
    groups = []
    for stage in dict.fromkeys(panel["stage"] for panel in drawn):
        places = [
            chart("panel", f"{panel['title']} during {stage}", data_index=str(i))
            for i, panel in enumerate(drawn)
            if panel["stage"] == stage
        ]
        lines = list(
            {s["name"]: s for p in drawn if p["stage"] == stage for s in p["series"]}.values()
        )
        legend = None
        if len(lines) > 1:
            entries = [
                tag(
                    "span",
                    tag("i", cls=f"line {s['tone']}{' held' if s['held'] else ''}"),
                    s["name"],
                )
                for s in lines
            ]
            legend = tag("p", *entries, cls="legend")
        groups.append(tag("div", tag("h3", stage), legend, tag("div", *places, cls="panels")))
    return section(
        "curves",
        title,
        tag(
            "p",
            "One chart a quantity, over training steps. Faint: as measured; strong: smoothed. "
            "Dots: held-out data. Point at a chart, or focus it and use the arrow keys, to read "
            "values.",
        ),
        *groups,
    )


def frontier(results: Results) -> Markup:
    title = "The reward-KL frontier"
    points = [
        p
        for p in rows_of(results.get("frontier"))
        if number(p.get("kl")) is not None and number(p.get("gold")) is not None
    ]
    if len(points) < 2:
        return missing(
            "frontier",
            title,
            "The reward-KL frontier needs a gold reward and at least two measured models.",
        )
    return section(
        "frontier",
        title,
        tag(
            "p",
            "Every method buys reward with distance from the SFT model, measured in nats of KL per "
            "answer. Higher and further left is better. ",
            words.frontier_text(results),
        ),
        tag(
            "figure",
            chart("frontier", "gold reward against KL to the SFT model, one path a method"),
            tag(
                "figcaption",
                f"Gold reward on {words.evaluated_on(results)}, with 95% intervals. ",
                "Best-of-n stands at its analytic KL, log n − (n − 1)/n. Choose a point to read "
                "one of its answers.",
            ),
        ),
        tag("div", cls="example", id="frontier-example", aria_live="polite"),
    )


def overoptimisation(results: Results) -> Markup:
    title = "Pushed too far: over-optimisation"
    text = words.overoptimisation_text(results)
    if not text:
        return missing(
            "overoptimisation",
            title,
            "Over-optimisation was not measured: it takes a PPO run with a small β and a gold "
            "reward, measured at three or more steps.",
        )
    beta = number(dict_of(results.get("overoptimisation")).get("beta"))
    run = "The same PPO" + (f" with β = {beta:g}" if beta is not None else " with a smaller β")
    return section(
        "overoptimisation",
        title,
        tag("p", f"{run} is held back less by the KL penalty. ", text),
        tag(
            "figure",
            chart("overoptimisation", f"proxy and gold reward against KL. {text}"),
            tag(
                "figcaption",
                "The reward model’s score is what PPO maximises (the proxy, in standard deviations "
                "of its scores on SFT answers); the gold reward is the truth it stands for. Dots: "
                "as measured; lines: mean of each and its two neighbours.",
            ),
        ),
    )
