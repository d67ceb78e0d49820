"""RewardKLDashboard: the curves of a run, live while it trains, and its path by reward and KL."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from course_utils.errors import RunError
from course_utils.inspectors import frames, panels
from course_utils.inspectors.frames import Markup, fixed
from course_utils.inspectors.page import json_bytes
from course_utils.inspectors.runs import LOG, RunInspector
from course_utils.report.markup import number
from course_utils.training.run import RunLog

if TYPE_CHECKING:
    import pandas


class RewardKLDashboard(RunInspector):
    """Reward, gold, KL, β, entropy, clip fraction, value loss of a PPO run; the losses of others.

        watch(run)                      # in the cell before the training: live
        RewardKLDashboard(run)          # of a finished run, or of one that another process writes

    Args:
        run: a RunLog or the directory of one, which need not exist yet.

    Raises: RunError for something that is not one run, or for a damaged log (naming the line).
    """

    module, css, title = "dashboard.js", ("dashboard.css",), "Reward and KL"
    reads = (LOG,)

    def __init__(self, run: RunLog | Path | str) -> None:
        self._columns: set[str] = set()
        state = {"rows": [], "panels": [], "live": False, "steps": None, "name": "", "skipped": 0}
        super().__init__(run, state, {"smooth": True, "more": False})

    def took(self, log: list[dict[str, Any]], rollouts: list[dict[str, Any]], fresh: bool) -> None:
        if fresh:
            self._columns = set()
            self.set_state({**self._state, "rows": [], "panels": []})
        rows = [
            {"step": row["step"], **{n: number(row[n]) for n in panels.COLUMNS if n in row}}
            for row in log
        ]
        new = panels.present(rows) - self._columns
        changed: dict[str, Any] = {}
        if new or not self._state["name"]:
            self._columns |= new
            config = RunLog.open(self.directory).config
            changed = {
                "panels": panels.chosen(self._columns, config),
                "steps": config.get("steps"),
                "name": self.directory.name,
            }
        self.append(rows=rows, set=changed)

    # ---- data --------------------------------------------------------------------------------

    def table(self) -> "pandas.DataFrame":
        """What is drawn: one row per step, one column per curve (4 digits)."""
        import pandas

        return pandas.DataFrame(self._state["rows"])

    def frame(self, step: int | None = None) -> dict[str, Any]:
        """The numbers of one step, of the last if not given; {} of an empty run.

        Raises RunError for a step that the run does not have.
        """
        rows = self._state["rows"]
        if step is None:
            return dict(rows[-1]) if rows else {}
        for row in rows:
            if row["step"] == step:
                return dict(row)
        known = f"{rows[0]['step']} … {rows[-1]['step']}" if rows else "none yet"
        raise RunError(f"{self.directory} has no step {step}; its steps: {known}")

    def summary(self) -> dict[str, Any]:
        """{rows, steps, live, first, last, gold_peak: {step, gold, kl} of the smoothed gold}."""
        rows = self._state["rows"]
        return {
            "rows": len(rows),
            "steps": self._state["steps"],
            "live": self._state["live"],
            "first": dict(rows[0]) if rows else {},
            "last": dict(rows[-1]) if rows else {},
            "gold_peak": gold_peak(rows),
        }

    # ---- layers ------------------------------------------------------------------------------

    def line(self) -> str:
        rows = self._state["rows"]
        if not rows:
            return f"RewardKLDashboard: {self.directory} has no steps yet"
        said = []
        for name, label in (("reward", "reward"), ("gold", "gold"), ("loss", "loss"), ("kl", "KL")):
            values = [row[name] for row in rows if row.get(name) is not None]
            if values:
                said.append(f"{label} {fixed(values[0])} → {fixed(values[-1])}")
        of = f" of {self._state['steps']}" if self._state["steps"] else ""
        return f"RewardKLDashboard: step {rows[-1]['step']}{of}, {', '.join(said)}"

    def first_frame(self) -> Markup:
        rows = self._state["rows"]
        if not rows:
            return frames.card(self.title, frames.fine("No steps yet."))
        lines = []
        for panel in self._state["panels"]:
            for curve in panel["curves"]:
                values = [
                    row[curve["column"]] for row in rows if row.get(curve["column"]) is not None
                ]
                name = panel["label"] + (f", {curve['label']}" if len(panel["curves"]) > 1 else "")
                ends = [float(v) for v in (values[0], values[-1], min(values), max(values))]
                lines.append([name, *ends, panel["unit"]])
        return frames.card(
            f"{self.title} · {self._state['name']}",
            frames.fine(f"{len(rows):,} steps, the last is step {rows[-1]['step']}"),
            frames.table(lines, ("", "first", "last", "lowest", "highest", "")),
        )

    def shortened(self, budget: int) -> dict[str, Any]:
        """Every n-th row and the last, so that it fits."""
        state = self._state
        every = 1
        while json_bytes(state) > budget and len(state["rows"]) > 20:
            every += max(1, every // 3)
            rows = self._state["rows"]
            kept = [*rows[:-1:every], *rows[-1:]]
            state = {**self._state, "rows": kept, "skipped": len(rows) - len(kept)}
        return {**state, "live": False}


def smooth(values: list[float | None]) -> list[float | None]:
    """The mean of each value and up to 25 on either side (1/30 of all); gaps stay, ends are kept.

    The twin of `smooth` in charts.js.
    """
    known = [(value, i) for i, value in enumerate(values) if value is not None]
    most = max(1, min(25, int(len(known) / 30 + 0.5)))
    found: list[float | None] = [None] * len(values)
    for k, (_, i) in enumerate(known):
        half = min(most, k, len(known) - 1 - k)
        near = [value for value, _ in known[k - half : k + half + 1]]
        found[i] = sum(near) / len(near)
    return found


def gold_peak(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Where the smoothed gold reward was highest; None where gold is unknown."""
    means = smooth([row.get("gold") for row in rows])
    peaks = [(mean, i) for i, mean in enumerate(means) if mean is not None]
    if not peaks:
        return None
    mean, at = max(peaks, key=lambda found: (found[0], -found[1]))
    return {"step": rows[at]["step"], "gold": mean, "kl": rows[at].get("kl")}
