"""FrontierViewer: methods on one axis of KL, and what their points say."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from course_utils.errors import CourseError
from course_utils.inspectors import frames, gold_answers
from course_utils.inspectors.base import Inspector
from course_utils.inspectors.frames import Markup, fixed
from course_utils.inspectors.gold_answers import number
from course_utils.inspectors.methods import method_key, methods
from course_utils.inspectors.page import json_bytes
from course_utils.training.run import RunLog

if TYPE_CHECKING:
    import pandas


class FrontierViewer(Inspector):
    """Gold reward over KL to the reference, one line per method; a point shows its answers.

        FrontierViewer(report)                              # results of `course run`, or their path
        FrontierViewer([{"method": "dpo", "kl": 0.3, "gold": 1.4, "example": {"text": "…"}}, …])
        FrontierViewer([*frontier_points("runs/a", "β = 0.1"), *frontier_points("runs/b", "β = 0")])

    Args:
        points: report.schema.FrontierPoint rows (method, kl, gold, interval, label, example,
            prompt; or "answers": [{prompt, text, …}]), a report's dict with "frontier", or the path
            of a report.json. Points of one method are joined in the order given; those without a
            finite KL and gold are counted and left out.
        labels: method -> name shown.

    Raises: CourseError for what is none of these.
    Source: Gao et al. 2022 (reward over √KL).
    """

    module, css, title = (
        "frontier.js",
        ("viewers.css", "cards.css", "ranking.css"),
        "Reward for KL: the frontier",
    )

    def __init__(
        self,
        points: Sequence[Mapping[str, Any]] | Mapping[str, Any] | Path | str,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        rows = _rows(points)
        found = [_point(row) for row in rows]
        drawn = [p for p in found if p["kl"] is not None and p["gold"] is not None]
        names = gold_answers.part_names(a for p in drawn for a in p["answers"])
        for p in drawn:
            p["answers"] = [
                {"prompt": a["prompt"], **gold_answers.shown(a, names, a["prompt"])}
                for a in p["answers"]
            ]
        drawn.sort(key=lambda p: list(dict.fromkeys(q["method"] for q in found)).index(p["method"]))
        state = {
            "points": drawn,
            "methods": methods((p["method"] for p in drawn), labels),
            "parts": names,
            "dropped": len(found) - len(drawn),
            "without": 0,
        }
        super().__init__(state, {"root": True, "hidden": [], "at": None, "budget": None})

    # ---- data --------------------------------------------------------------------------------

    def table(self) -> "pandas.DataFrame":
        """One row per point: method, label, kl, gold, low, high, answers (their number)."""
        import pandas

        rows = [{**p, "answers": len(p["answers"])} for p in self._state["points"]]
        return pandas.DataFrame(rows)

    def frame(self, index: int = 0) -> dict[str, Any]:
        """One point with its answers. Raises CourseError for a point that is not there."""
        points = self.state["points"]
        if not 0 <= index < len(points):
            raise CourseError(f"there is no point {index}; this frontier has {len(points)} points")
        return dict(points[index])

    def best_within(self, budget: float) -> list[dict[str, Any]]:
        """Each method's measured point of most gold among those of KL <= budget, best first.

        Returns: [{method, kl, gold, label, index}]; methods with no such point are left out. The
        twin of `bestWithin` in frontier.js.
        """
        best: dict[str, int] = {}
        points = self._state["points"]
        for i, p in enumerate(points):
            held = best.get(p["method"])
            if p["kl"] <= budget and (held is None or p["gold"] > points[held]["gold"]):
                best[p["method"]] = i
        order = sorted(best.values(), key=lambda i: -points[i]["gold"])
        keys = ("method", "kl", "gold", "label")
        return [{**{k: points[i][k] for k in keys}, "index": i} for i in order]

    def summary(self) -> dict[str, Any]:
        """{points, dropped, methods: {name: {points, best: {kl, gold, label}}}}."""
        best = {row["method"]: row for row in self.best_within(float("inf"))}
        count = [p["method"] for p in self._state["points"]]
        return {
            "points": len(count),
            "dropped": self._state["dropped"],
            "methods": {
                m["key"]: {
                    "points": count.count(m["key"]),
                    "best": {k: best[m["key"]][k] for k in ("kl", "gold", "label")},
                }
                for m in self._state["methods"]
            },
        }

    # ---- layers ------------------------------------------------------------------------------

    def line(self) -> str:
        best = self.best_within(float("inf"))
        if not best:
            return "FrontierViewer: no points"
        names = {m["key"]: m["label"] for m in self._state["methods"]}
        said = (f"{names[b['method']]} {fixed(b['gold'])} at {fixed(b['kl'])} nats" for b in best)
        return f"FrontierViewer: most gold of {', '.join(said)}"

    def first_frame(self) -> Markup:
        best = self.best_within(float("inf"))
        if not best:
            return frames.card(self.title, frames.fine("No points yet."))
        names = {m["key"]: m["label"] for m in self._state["methods"]}
        rows = [[names[b["method"]], b["label"], float(b["kl"]), float(b["gold"])] for b in best]
        return frames.card(
            self.title,
            frames.fine("Each method's point of most gold reward"),
            frames.table(rows, ("", "", "KL, nats", "gold")),
        )

    def shortened(self, budget: int) -> dict[str, Any]:
        """All points; as many of their answers as fit, those of each last point longest."""
        rows = self._state["points"]
        last = {p["method"]: i for i, p in enumerate(rows)}.values()
        state, most, every = self._state, max((len(p["answers"]) for p in rows), default=0), 1
        while json_bytes(state) > budget and most:
            if most > 1:
                most //= 2
            elif every <= len(rows):
                every += 1 + every // 4
            else:
                most = 0  # no answers at all
            kept = [
                {**p, "answers": p["answers"][:most] if i % every == 0 or i in last else []}
                for i, p in enumerate(rows)
            ]
            without = sum(bool(p["answers"]) for p in rows) - sum(bool(p["answers"]) for p in kept)
            state = {**self._state, "points": kept, "without": without}
        return state


def frontier_points(
    run: RunLog | Path | str, method: str = "ppo", answers: int = 4
) -> list[dict[str, Any]]:
    """The points of one run, one for each step whose row has a KL and a gold reward.

    Args:
        run: a RunLog or its directory; rows' "kl" (nats per answer) and "eval_gold", else "gold".
        method: what the points are called in the legend.
        answers: rollouts shown with a point, where the run kept some of that step.
    """
    log = run if isinstance(run, RunLog) else RunLog.open(run)
    kept: dict[Any, list[dict[str, Any]]] = {}
    for row in log.rollouts():
        kept.setdefault(row.get("step"), []).append(row)
    found = []
    for row in log.rows:
        gold = number(row.get("eval_gold", row.get("gold")))
        if gold is None or number(row.get("kl")) is None:
            continue
        said = [
            {
                "prompt": str(r.get("prompt", "")),
                "text": str(r.get("completion", "")),
                "gold": r.get("gold"),
                "reward": r.get("score"),
            }
            for r in kept.get(row["step"], [])[:answers]
        ]
        point = {"method": method, "kl": row["kl"], "gold": gold, "answers": said}
        found.append({**point, "label": f"step {row['step']}"})
    return found


def _rows(points: Any) -> list[Mapping[str, Any]]:
    if isinstance(points, str | Path):
        path = Path(points)
        try:
            points = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CourseError(
                f"{path} is not a report.json ({error}); give the file that `course run` writes"
            ) from error
    if isinstance(points, Mapping):
        points = points.get("frontier") or []
    rows = list(points)
    for i, row in enumerate(rows):
        if not isinstance(row, Mapping) or "method" not in row:
            raise CourseError(
                f"frontier point {i} is {row!r:.80}; a point is a dict with method, kl and gold"
            )
    return rows


def _point(row: Mapping[str, Any]) -> dict[str, Any]:
    low, high = row.get("interval") or (None, None)
    answers = row.get("answers") or ([row["example"]] if row.get("example") else [])
    asked = row.get("prompt")
    return {
        "method": method_key(row["method"]),
        "kl": number(row.get("kl")),
        "gold": number(row.get("gold")),
        "low": number(low),
        "high": number(high),
        "label": str(row.get("label") or ""),
        "answers": [_answer(a, asked) for a in answers],
    }


def _answer(given: Any, asked: Any) -> dict[str, Any]:
    prompt = str((given.get("prompt") if isinstance(given, Mapping) else "") or asked or "")
    return {"prompt": prompt, **gold_answers.scored(gold_answers.plain(given), prompt)}
