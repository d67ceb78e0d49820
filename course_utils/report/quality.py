"""The page's sections on quality: the gold reward's parts, behaviour, win rates, reward model."""

from typing import Any

from course_utils.report import words
from course_utils.report.markup import Markup, amount, fixed, number, percent, tag
from course_utils.report.sections import Results, chart, missing, section, swatch, table
from course_utils.report.series import cut, dict_of, label_of, rows_of


def _heat(value: float | None, largest: float) -> Markup:
    if value is None:
        return tag("td", "–")
    strength = min(1.0, abs(value) / largest) if largest else 0.0
    side = "pos" if value > 0 else "neg"
    return tag("td", fixed(value), cls=f"heat {side}", style=f"--a:{strength:.2f}")


def _parts_table(models: list[dict[str, Any]]) -> Markup | None:
    columns = [
        (m, dict_of(m["evaluation"].get("parts")), dict_of(m["evaluation"].get("gold")))
        for m in models
        if dict_of(m["evaluation"].get("parts"))
    ]
    if not columns:
        return None
    names = list(dict.fromkeys(name for _, parts, _ in columns for name in parts))

    def mean(parts: dict[str, Any], name: str) -> float | None:
        return number(dict_of(parts.get(name)).get("mean"))

    everything = [abs(v) for _, p, _ in columns for n in names if (v := mean(p, n)) is not None]
    largest = max(everything, default=0.0)
    head = [tag("th", swatch(str(m["key"])), str(m["label"]), scope="col") for m, _, _ in columns]
    rows = [
        tag(
            "tr",
            tag("th", name.replace("_", " "), scope="row"),
            *(_heat(mean(parts, name), largest) for _, parts, _ in columns),
        )
        for name in names
    ]
    totals = [tag("td", tag("b", fixed(gold.get("mean")))) for _, _, gold in columns]
    rows.append(tag("tr", tag("th", "total", scope="row"), *totals, cls="sum"))
    return table([tag("th", "part of the gold reward", scope="col"), *head], rows)


def _behaviour_table(models: list[dict[str, Any]]) -> Markup:
    def mean(evaluation: dict[str, Any], *path: str) -> float | None:
        value: Any = evaluation
        for name in path:
            value = dict_of(value).get(name)
        return number(dict_of(value).get("mean"))

    columns = (
        ("gold reward", lambda e: fixed(mean(e, "gold"))),
        ("reward model", lambda e: fixed(mean(e, "reward"))),
        ("KL to SFT, nats", lambda e: fixed(mean(e, "kl", "exact"), 1)),
        ("tokens", lambda e: fixed(mean(e, "length"), 1)),
        ("cut off", lambda e: percent(e.get("truncated_rate"))),
        ("distinct bigrams", lambda e: percent(e.get("distinct_2"))),
        ("forgetting, nats/token", lambda e: fixed(e.get("forgetting"), sign=True)),
    )
    cells = [[show(m["evaluation"]) for _, show in columns] for m in models]
    kept = [i for i in range(len(columns)) if any(row[i] != "–" for row in cells)]
    head = [tag("th", "model", scope="col"), *(tag("th", columns[i][0], scope="col") for i in kept)]
    rows = [
        tag(
            "tr",
            tag("th", swatch(str(m["key"])), str(m["label"]), scope="row"),
            *(tag("td", row[i]) for i in kept),
        )
        for m, row in zip(models, cells, strict=True)
    ]
    return table(head, rows)


def quality(results: Results) -> Markup:
    title = "Where the reward comes from"
    models = [
        {
            "key": m.get("key", ""),
            "label": m.get("label") or label_of(str(m.get("key", ""))),
            **found,
        }
        for m in rows_of(results.get("models"))
        if (found := {"evaluation": dict_of(m.get("evaluation"))})["evaluation"]
    ]
    if not models:
        return missing("quality", title, "No model was evaluated.")
    parts = _parts_table(models)
    wins = [w for w in rows_of(results.get("win_rates")) if number(w.get("rate")) is not None]
    judge = cut(next((w["judge"] for w in wins if w.get("judge")), "gold reward"), 80)
    return section(
        "quality",
        title,
        tag("p", f"The gold reward is a sum of parts. Means over {words.evaluated_on(results)}.")
        if parts
        else tag("p", "These prompts have no gold reward, so there are no parts to show."),
        parts,
        tag("h3", "Behaviour"),
        _behaviour_table(models),
        tag("h3", "Head to head") if wins else None,
        tag(
            "p",
            f"How often the first model’s answer beats the second’s by {judge} on the same prompt, "
            "ties counting half, with 95% intervals. At 50% the two are equal.",
        )
        if wins
        else tag("p", "No models were compared head to head.", cls="missing"),
        chart("wins", "win rates with 95% intervals") if wins else None,
    )


def reward_model(results: Results) -> Markup:
    title = "The judge: the reward model"
    text = words.reward_model_text(results)
    if not text:
        return missing("judge", title, "This run trained no reward model.")
    model = dict_of(results.get("reward_model"))
    bins = rows_of(dict_of(model.get("calibration")).get("bins"))
    ties, pairs = number(model.get("ties")), number(model.get("pairs"))
    counted = f" {amount(pairs)} pairs" if pairs else ""
    counted += f", {amount(ties)} of them tied (counted as half right)." if ties else "."
    figure = tag(
        "figure",
        chart("calibration", "how often the reward model is right, by how sure it is"),
        tag(
            "figcaption",
            "How often the model’s favourite was the chosen answer, by how sure it was: "
            "P = σ(margin). On the diagonal, confidence is justified; the dots’ area is the number "
            "of pairs.",
        ),
    )
    return section(
        "judge",
        title,
        tag("p", text, counted if pairs else None),
        figure if bins else None,
    )
