"""What the page's script draws, as plain JSON: numbers rounded, curves thinned, texts cut."""

from collections.abc import Mapping
from typing import Any

from course_utils.report import words
from course_utils.report.markup import number, rounded
from course_utils.report.series import (
    cut,
    dict_of,
    label_of,
    overoptimisation,
    panels,
    rollouts,
    rows_of,
    tone,
)


def _ends(interval: Any) -> tuple[float | None, float | None]:
    """[low, high] as it is, or two Nones for anything else."""
    if not isinstance(interval, list | tuple) or len(interval) != 2:
        return None, None
    return rounded(interval[0], 7), rounded(interval[1], 7)


def _estimate(value: Any) -> dict[str, float | None]:
    found = dict_of(value)
    return {name: rounded(found.get(name), 7) for name in ("mean", "low", "high")}


def _ladder(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    _, scores = words.score_in_use(results)
    models = rows_of(results.get("models"))
    return [
        {"key": key, "label": label_of(key, models), "tone": tone(key), **_estimate(estimate)}
        for key, estimate in scores.items()
    ]


def _frontier(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One entry a method: its points in the given order, those without numbers left out."""
    models = rows_of(results.get("models"))
    paths: dict[str, list[dict[str, Any]]] = {}
    for row in rows_of(results.get("frontier")):
        kl, gold = number(row.get("kl")), number(row.get("gold"))
        if kl is None or gold is None:
            continue
        low, high = _ends(row.get("interval"))
        example = dict_of(row.get("example"))
        point = {
            "kl": rounded(max(0.0, kl)),
            "gold": rounded(gold, 7),
            "low": low,
            "high": high,
            "label": cut(row.get("label"), 80),
        }
        if example.get("text") is not None:
            point["text"] = cut(example["text"], 800)
            point["prompt"] = cut(row.get("prompt") or example.get("prompt"), 300)
            point["score"] = rounded(dict_of(example.get("gold")).get("total"))
        paths.setdefault(str(row.get("method") or "other"), []).append(point)
    return [
        {"key": key, "label": label_of(key, models), "tone": tone(key), "points": points[:40]}
        for key, points in paths.items()
    ]


def _over(results: Mapping[str, Any]) -> dict[str, Any] | None:
    found = overoptimisation(results)
    if found is None:
        return None
    points = [{name: rounded(v) for name, v in p.items()} for p in found["points"]]
    return {"points": points, "peak": found["peak"], "verdict": found["verdict"]}


def _wins(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    models = rows_of(results.get("models"))
    found = []
    for row in rows_of(results.get("win_rates"))[:40]:
        low, high = _ends(row.get("interval"))
        a, b = str(row.get("a", "")), str(row.get("b", ""))
        if number(row.get("rate")) is not None:
            found.append(
                {
                    "a": label_of(a, models),
                    "b": label_of(b, models),
                    "key": a,
                    "tone": tone(a),
                    "rate": rounded(row["rate"]),
                    "low": low,
                    "high": high,
                }
            )
    return found


def page_data(results: Mapping[str, Any], most_rollouts: int) -> dict[str, Any]:
    """What the script draws: numbers rounded, curves thinned."""
    calibration = dict_of(dict_of(results.get("reward_model")).get("calibration"))
    return {
        "score": words.score_in_use(results)[0],
        "ladder": _ladder(results),
        "panels": panels(dict_of(results.get("curves"))),
        "frontier": _frontier(results),
        "over": _over(results),
        "bins": [
            {
                name: rounded(b.get(name))
                for name in ("low", "high", "confidence", "accuracy", "count")
            }
            for b in rows_of(calibration.get("bins"))
        ],
        "wins": _wins(results),
        "rollouts": rollouts(results, most_rollouts),
    }
