"""From the results to what is drawn: names and colours of models, curves, the peak of gold."""

import math
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from course_utils.report.markup import number, rounded

LABELS = {
    "base": "Base",
    "sft": "SFT",
    "best_of_n": "Best of n",
    "ppo": "PPO",
    "ppo_low_beta": "PPO, pushed too far",
    "dpo": "DPO",
}
MAX_POINTS = 240  # points of one curve
MAX_TEXT = 2000  # characters of one answer shown

# a panel's title, and for each of its lines the names it may have in a row: the first found counts
Plan = list[tuple[str, dict[str, tuple[str, ...]]]]
_PANELS: dict[str, Plan] = {
    "sft": [
        ("Loss, nats per token", {"training": ("loss",), "held out": ("eval_loss",)}),
        (
            "Token accuracy",
            {
                "training": ("accuracy", "mean_token_accuracy"),
                "held out": ("eval_accuracy", "eval_mean_token_accuracy"),
            },
        ),
    ],
    "reward": [
        ("Loss, nats per pair", {"training": ("loss",), "held out": ("eval_loss",)}),
        ("Accuracy on pairs", {"training": ("accuracy",), "held out": ("eval_accuracy",)}),
        ("Margin, chosen − rejected", {"training": ("margin",), "held out": ("eval_margin",)}),
    ],
    "ppo": [
        ("Reward model's score (proxy)", {"": ("reward",)}),
        ("Gold reward", {"": ("gold",)}),
        ("KL to the reference, nats", {"": ("kl",)}),
        ("Entropy, nats per token", {"": ("entropy",)}),
        ("Answer length, tokens", {"": ("completion_tokens",)}),
        ("Clipped updates, share", {"": ("clip_fraction",)}),
    ],
    "dpo": [
        ("Loss, nats per pair", {"training": ("loss",), "held out": ("eval_loss",)}),
        (
            "Implicit reward margin",
            {
                "training": ("margin", "rewards/margins"),
                "held out": ("eval_margin", "eval_rewards/margins"),
            },
        ),
        (
            "Accuracy on pairs",
            {
                "training": ("accuracy", "rewards/accuracies"),
                "held out": ("eval_accuracy", "eval_rewards/accuracies"),
            },
        ),
        ("Gold reward", {"": ("gold",)}),
        ("KL to the reference, nats", {"": ("kl",)}),
    ],
}
STAGES = {"sft": "Supervised fine-tuning", "reward": "Reward model", "ppo": "PPO", "dpo": "DPO"}


def rows_of(value: Any) -> list[dict[str, Any]]:
    """The dicts of a list; [] for anything else: a missing section needs no special case."""
    if not isinstance(value, list | tuple):
        return []
    return [dict(row) for row in value if isinstance(row, Mapping)]


def dict_of(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def cut(text: Any, limit: int = MAX_TEXT) -> str:
    """Text that is short enough to show; says so where it was cut."""
    text = "" if text is None else str(text)
    return text if len(text) <= limit else f"{text[:limit]} … ({len(text) - limit} more characters)"


def tone(key: str) -> str:
    """The colour class of a model: its own, or for other names one of four by its letters."""
    if key in LABELS:
        return "c-" + key.replace("_", "-")
    return f"c-other-{sum(key.encode('utf-8', 'replace')) % 4}"


def label_of(key: str, models: Iterable[Mapping[str, Any]] = ()) -> str:
    """How a model is called: by the results, else by its usual name, else by its key."""
    for model in models:
        if model.get("key") == key and model.get("label"):
            return str(model["label"])
    return LABELS.get(key, key)


def thinned(points: list[list[float]], limit: int = MAX_POINTS) -> list[list[float]]:
    """At most `limit` points, first and last among them: means of neighbours in between."""
    if len(points) <= limit:
        return points
    inner, found = points[1:-1], [points[0]]
    for k in range(limit - 2):
        start, stop = (len(inner) * j // (limit - 2) for j in (k, k + 1))
        group = inner[start:stop]
        found.append([sum(p[axis] for p in group) / len(group) for axis in (0, 1)])
    return [*found, points[-1]]


def curve(rows: list[dict[str, Any]], names: Iterable[str]) -> list[list[float | None]]:
    """[[step, value], ...] of the first of `names` that is there, thinned and rounded."""
    for name in names:
        points = []
        for i, row in enumerate(rows):
            step, value = number(row.get("step")), number(row.get(name))
            if value is not None:
                points.append([float(i) if step is None else step, value])
        if points:
            return [[rounded(x, 6), rounded(y)] for x, y in thinned(points)]
    return []


def _other_numbers(rows: list[dict[str, Any]]) -> Plan:
    """Panels for a stage whose rows have none of the names we know: its first four numbers."""
    names = dict.fromkeys(k for row in rows for k in row if number(row[k]) is not None)
    plan: Plan = [(name, {"": (name,)}) for name in names if name != "step"]
    return plan[:4]


def panels(curves: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The training curves as small charts: stage, title, and series of name, tone and points.

    Both PPO runs share their charts, so that pushing too far can be seen against not doing so.
    """
    found = []
    for stage in [*STAGES, *(k for k in curves if k not in STAGES and k != "ppo_low_beta")]:
        runs = {
            key: rows_of(curves.get(key))
            for key in ([stage, "ppo_low_beta"][: 1 + (stage == "ppo")])
        }
        runs = {key: rows for key, rows in runs.items() if rows}
        everything = [row for rows in runs.values() for row in rows]
        for plan in (_PANELS.get(stage, []), _other_numbers(everything)):
            drawn = []
            for title, lines in plan:
                series = [
                    {
                        "name": name or (label_of(key) if len(runs) > 1 else ""),
                        "tone": "c-proxy" if key == "reward" else tone(key),
                        "held": name == "held out",
                        "points": curve(rows, names),
                    }
                    for key, rows in runs.items()
                    for name, names in lines.items()
                ]
                if series := [s for s in series if s["points"]]:
                    drawn.append(
                        {"stage": STAGES.get(stage, stage), "title": title, "series": series}
                    )
            if drawn:
                found += drawn
                break
    return found


# ---- over-optimisation -------------------------------------------------------------------------


def smooth(values: list[float]) -> list[float]:
    """Mean of each value and its two neighbours; the ends, with only one, stay as they are."""
    inner = [sum(values[i - 1 : i + 2]) / 3 for i in range(1, len(values) - 1)]
    return [*values[:1], *inner, *values[1:][-1:]]


def _noise(values: list[float]) -> float:
    """Standard deviation of one measurement's noise.

    From the median of |second differences|: a trend drops out of them, a single bend (the peak)
    does not move the median, and for noise of deviation 1 it is 0.6745 √6.
    """
    second = [abs(values[i - 1] - 2 * values[i] + values[i + 1]) for i in range(1, len(values) - 1)]
    return statistics.median(second) / (0.6745 * math.sqrt(6)) if second else 0.0


def overoptimisation(results: Mapping[str, Any]) -> dict[str, Any] | None:
    """Proxy and gold along the low-β run and what happened to them; None with less than 3 points.

    "verdict": "rise and fall", "rise", "fall" or "flat". A change counts when it is larger than
    0.05 and 3 times the noise of a measurement; the peak is the maximum of gold smoothed over
    three measurements.
    """
    rows = rows_of(dict_of(results.get("overoptimisation")).get("rows"))
    rows.sort(key=lambda row: number(row.get("step")) or 0.0)
    held = sum(number(row.get("gold_heldout")) is not None for row in rows)
    name = "gold_heldout" if 2 * held >= len(rows) and held else "gold"
    points = [
        {
            key: number(row.get(source))
            for key, source in (("step", "step"), ("kl", "kl"), ("proxy", "proxy"), ("gold", name))
        }
        for row in rows
    ]
    points = [p for p in points if p["kl"] is not None and p["gold"] is not None]
    if len(points) < 3:
        return None
    gold = [p["gold"] or 0.0 for p in points]
    level = smooth(gold)
    threshold = max(0.05, 3 * _noise(gold))
    peak = max(range(len(level)), key=level.__getitem__)
    rise, fall = level[peak] - level[0], level[peak] - level[-1]
    found = {
        (True, True): "rise and fall",
        (True, False): "rise",
        (False, True): "fall",
        (False, False): "flat",
    }[rise > threshold, fall > threshold]
    proxies = [(i, p["proxy"]) for i, p in enumerate(points) if p["proxy"] is not None]
    after = [value for i, value in proxies if i >= peak]
    values = [value for _, value in proxies if value is not None]
    margin = max(0.05, 3 * _noise(values))
    for point, gold_level in zip(points, level, strict=True):
        point["gold_level"] = gold_level
    for (i, _), proxy_level in zip(proxies, smooth(values), strict=True):
        points[i]["proxy_level"] = proxy_level
    return {
        "points": points,
        "heldout": name == "gold_heldout",
        "peak": peak,
        "levels": level,
        "rise": rise,
        "fall": fall,
        "verdict": found,
        "proxy_rises_after_peak": len(after) > 1 and after[-1] - after[0] > margin,
        "beta": number(dict_of(results.get("overoptimisation")).get("beta")),
    }


# ---- rollouts ----------------------------------------------------------------------------------

_PER_TOKEN = ("kl", "advantages", "rewards", "values", "logprobs", "ref_logprobs")
MAX_TOKENS = 160  # of one rollout


def rollouts(results: Mapping[str, Any], limit: int = 120) -> list[dict[str, Any]]:
    """Rollouts for the inspector: at most `limit`, evenly over the steps, numbers rounded."""
    rows = [row for row in rows_of(results.get("rollouts")) if isinstance(row.get("tokens"), list)]
    by_step: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for row in rows:
        key = (str(row.get("run") or "ppo"), number(row.get("step")) or 0.0)
        by_step.setdefault(key, []).append(row)
    if not by_step or limit < 1:
        return []
    steps = sorted(by_step)
    if len(steps) > limit:
        steps = [steps[i * (len(steps) - 1) // max(1, limit - 1)] for i in range(limit)]
    each = max(1, limit // len(steps))
    found = []
    for run, step in steps:
        for row in by_step[run, step][:each]:
            tokens = [str(token)[:48] for token in row["tokens"][:MAX_TOKENS]]
            kept: dict[str, Any] = {"run": run, "step": step, "tokens": tokens}
            kept["prompt"] = cut(row.get("prompt"), 400)
            kept["more"] = len(row["tokens"]) - len(tokens)
            kept["score"], kept["gold"] = rounded(row.get("score")), rounded(row.get("gold"))
            for name in _PER_TOKEN:
                values = row.get(name)
                if isinstance(values, list) and len(values) >= len(tokens):
                    kept[name] = [rounded(v, 3) for v in values[: len(tokens)]]
            found.append(kept)
    return found
