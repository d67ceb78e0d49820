"""ForgettingPlot: what training on a task costs on the text that the base model knew."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from course_utils.errors import CourseError
from course_utils.inspectors import frames
from course_utils.inspectors.base import Inspector
from course_utils.inspectors.frames import Markup, fixed
from course_utils.inspectors.gold_answers import number
from course_utils.inspectors.methods import method_key, methods
from course_utils.inspectors.page import json_bytes
from course_utils.training.run import RunLog

if TYPE_CHECKING:
    import pandas

Rows = Iterable[Mapping[str, Any]]
Path3 = list[list[float]]  # [[step, task loss, base loss], …] in the order of training


class ForgettingPlot(Inspector):
    """Base-corpus loss against task loss along training, one path per method.

        ForgettingPlot({"full": rows, "lora": rows})        # rows {step, task_loss, base_loss}
        ForgettingPlot({"full": run, "lora": other_run}, task="eval_loss", base="base_loss")

    Args:
        curves: method -> rows, a RunLog, or a run's directory. Rows without both losses are passed
            over (a run measures them now and then); those with a loss that is not finite are
            counted.
        task: the rows' key of the loss on the task, nats per token.
        base: the rows' key of the loss on the base model's own corpus, nats per token.
        before: (task loss, base loss) of the untrained model; if not given, each method's first
            row is its own start.
        labels: method -> name shown.

    Raises: CourseError for rows without a step, or for a method whose rows have neither key.
    """

    module, css, title = "forgetting.js", ("viewers.css", "ranking.css"), "What each method forgets"

    def __init__(
        self,
        curves: Mapping[str, RunLog | Path | str | Rows],
        task: str = "task_loss",
        base: str = "base_loss",
        before: tuple[float, float] | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        paths, dropped = {}, 0
        for name, given in curves.items():
            found, lost = _path(str(name), given, task, base)
            dropped += lost
            if found:
                paths[method_key(name)] = found
        state = {
            "methods": methods(paths, labels),
            "paths": list(paths.values()),
            "before": None if before is None else [number(v) for v in before],
            "dropped": dropped,
            "skipped": 0,
        }
        super().__init__(state, {"hidden": [], "level": None})

    # ---- data --------------------------------------------------------------------------------

    def table(self) -> "pandas.DataFrame":
        """One row per measurement: method, step, task_loss, base_loss, forgetting."""
        import pandas

        rows = []
        for method, path in zip(self._state["methods"], self._state["paths"], strict=True):
            start = self._start(path)
            for step, task, base in path:
                row = {"method": method["key"], "step": step, "task_loss": task, "base_loss": base}
                rows.append({**row, "forgetting": base - start})
        return pandas.DataFrame(rows)

    def frame(self, level: float | None = None) -> list[dict[str, Any]]:
        """What each method had forgotten when its task loss first came down to `level`, nats.

        Linear between measurements. Returns: [{method, forgetting, base_loss, step}], least
        forgetting first; None in all three for a method that never came down so far. `level`: the
        lowest that all methods reach, if not given. The twin of `atLevel` in forgetting.js.
        """
        paths = self._state["paths"]
        level = common_level(paths) if level is None else level
        found = []
        for method, path in zip(self._state["methods"], paths, strict=True):
            hit = None if level is None else crossing(path, level)
            row: dict[str, Any] = {"method": method["key"]}
            if hit is None:
                found.append({**row, "forgetting": None, "base_loss": None, "step": None})
            else:
                lost = hit[1] - self._start(path)
                found.append({**row, "forgetting": lost, "base_loss": hit[1], "step": hit[0]})
        return sorted(found, key=lambda r: (r["forgetting"] is None, r["forgetting"] or 0.0))

    def summary(self) -> dict[str, Any]:
        """{methods, dropped, level (task loss that all reach), forgetting: {method: nats there},
        last: {method: {step, task_loss, base_loss, forgetting}}}."""
        last = {}
        for method, path in zip(self._state["methods"], self._state["paths"], strict=True):
            names = ("step", "task_loss", "base_loss")
            end = dict(zip(names, path[-1], strict=True))
            last[method["key"]] = {**end, "forgetting": path[-1][2] - self._start(path)}
        return {
            "methods": len(last),
            "dropped": self._state["dropped"],
            "level": common_level(self._state["paths"]),
            "forgetting": {row["method"]: row["forgetting"] for row in self.frame()},
            "last": last,
        }

    def _start(self, path: Path3) -> float:
        before = self._state["before"]
        return float(path[0][2] if before is None or before[1] is None else before[1])

    # ---- layers ------------------------------------------------------------------------------

    def line(self) -> str:
        if not self._state["paths"]:
            return "ForgettingPlot: no measurements"
        names = {m["key"]: m["label"] for m in self._state["methods"]}
        said = [
            f"{names[r['method']]} {fixed(r['forgetting'], 3, sign=True)}" for r in self.frame()
        ]
        level = fixed(common_level(self._state["paths"]), 3)
        return f"ForgettingPlot: base loss at task loss {level}, nats: {', '.join(said)}"

    def first_frame(self) -> Markup:
        found = self.summary()
        if not found["methods"]:
            return frames.card(self.title, frames.fine("No measurements yet."))
        names = {m["key"]: m["label"] for m in self._state["methods"]}
        rows = []
        for key, lost in found["forgetting"].items():
            end = found["last"][key]
            numbers = (lost, end["task_loss"], end["base_loss"], end["forgetting"])
            rows.append([names[key], *(fixed(v, 3) for v in numbers), f"{end['step']:g}"])
        level = fixed(found["level"], 3)
        heads = (
            "",
            f"forgotten at task loss {level}",
            "task loss",
            "base loss",
            "forgotten",
            "step",
        )
        return frames.card(self.title, frames.table(rows, heads))

    def shortened(self, budget: int) -> dict[str, Any]:
        """Every n-th measurement, with the first and the last of each method."""
        state, every = self._state, 1
        while json_bytes(state) > budget and every < 10_000:
            every += max(1, every // 3)
            kept = [[*p[:-1:every], p[-1]] for p in self._state["paths"]]
            lost = sum(map(len, self._state["paths"])) - sum(map(len, kept))
            state = {**self._state, "paths": kept, "skipped": lost}
        return state


def _path(name: str, given: Any, task: str, base: str) -> tuple[Path3, int]:
    """([[step, task loss, base loss]], rows left out as not finite) of one method."""
    if isinstance(given, str | Path):
        given = RunLog.open(given)
    rows = list(given.rows if isinstance(given, RunLog) else given)
    found, dropped, seen = [], 0, False
    for i, row in enumerate(rows):
        if not isinstance(row, Mapping) or number(row.get("step")) is None:
            raise CourseError(f"{name} row {i} is {row!r:.80}; a row is a dict with a step")
        if task not in row or base not in row:
            continue
        seen = True
        values = [number(row[key]) for key in ("step", task, base)]
        if any(value is None for value in values):
            dropped += 1
        else:
            found.append([float(v) for v in values if v is not None])
    if rows and not seen:
        keys = ", ".join(sorted({str(k) for row in rows for k in row})[:12])
        raise CourseError(
            f"no row of {name} has both {task!r} and {base!r}; its keys: {keys}. Name them with "
            "task=… and base=…"
        )
    return found, dropped


def crossing(path: Sequence[Sequence[float]], level: float) -> tuple[float, float] | None:
    """(step, base loss) where the task loss of a path first is <= level, linear in between."""
    last: Sequence[float] | None = None
    for step, task, base in path:
        if task <= level:
            if last is None or last[1] == task:
                return step, base
            share = (last[1] - level) / (last[1] - task)
            return last[0] + share * (step - last[0]), last[2] + share * (base - last[2])
        last = (step, task, base)
    return None


def common_level(paths: Sequence[Sequence[Sequence[float]]]) -> float | None:
    """The lowest task loss that all methods reach; None without methods."""
    return max((min(row[1] for row in path) for path in paths), default=None)
