"""The page's last sections: what it cost, the rollout inspector, how it was run."""

from collections.abc import Mapping
from typing import Any

from course_utils.report.markup import Markup, amount, duration, number, tag
from course_utils.report.sections import Results, missing, section, table
from course_utils.report.series import cut, dict_of, rows_of

_COSTS = (
    ("time", "seconds", duration),
    ("CPU time", "cpu_seconds", duration),
    ("tokens generated", "generated_tokens", amount),
    ("tokens trained on", "trained_tokens", amount),
    ("FLOPs", "flops", amount),
    ("peak memory, MiB", "peak_mib", amount),
)


def costs(results: Results) -> Markup:
    title = "What it cost"
    rows = rows_of(results.get("costs"))
    kept = [c for c in _COSTS if any(number(row.get(c[1])) is not None for row in rows)]
    if not kept:
        return missing("costs", title, "This run recorded no costs.")
    longest = max((number(row.get("seconds")) or 0.0 for row in rows), default=0.0)
    body = []
    for row in rows:
        share = (number(row.get("seconds")) or 0.0) / longest if longest else 0.0
        cells = [
            tag(
                "td",
                show(row.get(name)),
                cls="bar" if name == "seconds" else None,
                style=f"--a:{share:.3f}" if name == "seconds" else None,
            )
            for _, name, show in kept
        ]
        body.append(tag("tr", tag("th", cut(row.get("stage"), 80), scope="row"), *cells))
    totals = []
    for _, name, show in kept:
        values = [value for row in rows if (value := number(row.get(name))) is not None]
        total = max(values) if name == "peak_mib" else sum(values)
        totals.append(tag("td", tag("b", show(total))))
    body.append(tag("tr", tag("th", "all stages", scope="row"), *totals, cls="sum"))
    head = [tag("th", text, scope="col") for text in ("stage", *(text for text, _, _ in kept))]
    return section(
        "costs",
        title,
        table(head, body),
        tag(
            "p",
            "FLOPs are counted, not measured: 2 per weight and token forward, 6 per weight and "
            "trained token. Peak memory is the process’s high-water mark at the end of the stage: "
            "it never falls.",
            cls="fine",
        ),
    )


def rollouts(results: Results, kept: int) -> Markup:
    """`kept` is the number of rollouts in the page's data."""
    title = "Inside the rollouts"
    if not kept:
        return missing("rollouts", title, "This run saved no rollouts to inspect.")
    return section(
        "rollouts",
        title,
        tag(
            "p",
            "What PPO saw: sampled answers, token by token. KL says where the policy moved away "
            "from its reference, the reward where it was paid, the advantage which choices it was "
            "taught to repeat. Point at a token, or walk with the arrow keys.",
        ),
        tag("div", cls="inspector", data_inspector="rollouts"),
    )


def _setting(value: Any) -> str:
    lost = isinstance(value, float) and number(value) is None
    return "–" if value is None or lost else cut(value, 300)


def _listing(values: Mapping[str, Any]) -> Markup:
    rows = [
        tag("tr", tag("th", cut(k, 80), scope="row"), tag("td", tag("code", _setting(v))))
        for k, v in values.items()
    ]
    return tag("table", tag("tbody", *rows), cls="listing")


def how(results: Results) -> Markup:
    command = results.get("command")
    versions = {k: v for k, v in dict_of(results.get("versions")).items() if v is not None}
    settings = dict_of(results.get("settings"))
    flat = {k: v for k, v in settings.items() if not isinstance(v, Mapping)}
    groups = [("run", flat)] if flat else []
    groups += [(str(k), dict(v)) for k, v in settings.items() if isinstance(v, Mapping) and v]
    stages = results.get("stages")
    ran = ", ".join(str(s) for s in stages) if isinstance(stages, list | tuple) else ""
    return section(
        "run",
        "How this was run",
        tag("pre", tag("code", cut(command, 1000)), cls="command") if command else None,
        tag("p", f"Stages: {cut(ran, 200)}.") if ran else None,
        tag("details", tag("summary", "Versions"), _listing(versions)) if versions else None,
        *(
            tag("details", tag("summary", f"Settings: {cut(name, 60)}"), _listing(values))
            for name, values in groups
        ),
        None
        if command or versions or groups
        else tag("p", "The command and its settings were not recorded.", cls="missing"),
    )
