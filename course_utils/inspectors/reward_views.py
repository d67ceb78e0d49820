"""A reward model beside the truth: where it is sure and wrong, and what else its scores follow.

All read a RewardInspector made by `RewardInspector.of` (scores, lengths and texts of pairs).
"""

from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from course_utils.errors import CourseError

if TYPE_CHECKING:
    import pandas

    from course_utils.evaluation import Estimate
    from course_utils.inspectors.rewards import RewardInspector

Gold = Callable[[str, str], Any]  # (prompt, answer) -> object with .total and .parts
TIE = 1e-9
_CELL = 'style="text-align:left;vertical-align:top;padding:4px 16px 4px 0"'


def gold_margins(inspector: "RewardInspector", gold: Gold) -> Any:
    """gold(chosen) - gold(rejected) of every pair, (N,). Raises CourseError without texts."""
    rows = inspector.table()
    if "chosen_text" not in rows:
        raise CourseError("the inspector has no texts: make it with RewardInspector.of")
    texts = zip(rows.prompt, rows.chosen_text, rows.rejected_text, strict=True)
    return np.array([gold(p, a).total - gold(p, b).total for p, a, b in texts])


def follows(inspector: "RewardInspector", gold: Gold) -> dict[str, float]:
    """What a reward model's scores agree with, on the pairs of an inspector.

    Returns: {"its labels": accuracy; "the truth": share of pairs in gold's order, gold's ties left
        out; "the longer answer": share of pairs whose longer answer it prefers, equal lengths left
        out; "length (r)": Pearson's r of score and length}; nan where there is no such pair.
    """
    rows, found = inspector.table(), inspector.summary()
    better = rows.margin.to_numpy() > 0
    fit = (found["length"] or {}).get("answers")
    longer = (rows.chosen_length - rows.rejected_length).to_numpy()
    return {
        "its labels": found["accuracy"]["mean"],
        "the truth": _same_way(better, gold_margins(inspector, gold)),
        "the longer answer": _same_way(better, longer),
        "length (r)": fit["r"] if fit else float("nan"),
    }


def by_part(inspector: "RewardInspector", gold: Gold, least: int = 10) -> "dict[str, Estimate]":
    """How often the model prefers the answer that is better in one part of quality.

    Counted for each part over the pairs whose answers differ in it, whatever the other parts say;
    parts with fewer than `least` such pairs are left out. Ties of the model count 1/2.
    """
    from course_utils.evaluation import estimate

    found: dict[str, list[float]] = {}
    for number, margin in enumerate(inspector.table().margin.tolist()):
        row = inspector.frame(number)
        a, b = (gold(row["prompt"], row[f"{side}_text"]).parts for side in ("chosen", "rejected"))
        for name in a:
            if abs(a[name] - b[name]) > TIE:
                right = 0.5 if abs(margin) <= TIE else float(margin * (a[name] - b[name]) > 0)
                found.setdefault(name, []).append(right)
    return {name: estimate(right) for name, right in found.items() if len(right) >= least}


def _same_way(better: Any, difference: Any) -> float:
    decided = np.abs(difference) > TIE
    return float((better == (difference > 0))[decided].mean()) if decided.any() else float("nan")


@dataclass(frozen=True)
class Mistakes:
    """Pairs that a reward model has in the wrong order, the surest first; shows itself as a table.

    `all` counts those pairs before the cut to the surest; `pairs` those looked at.
    """

    rows: tuple[dict[str, Any], ...]  # prompt; liked, better: {text, reward, gold, parts}
    all: int
    pairs: int

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        said = [
            f"{row['prompt']}\n  liked  {_line(row['liked'])}\n  better {_line(row['better'])}"
            for row in self.rows
        ]
        return "\n".join(said) or "no pair in the wrong order"

    def _repr_html_(self) -> str:
        lines = "".join(
            f'<tr style="background:transparent"><td colspan="4" {_CELL}><b>'
            f"{escape(row['prompt'])}</b></td></tr>"
            + _row("the model likes", row["liked"])
            + _row("the truth likes", row["better"])
            for row in self.rows
        )
        names = "".join(f"<th {_CELL}>{name}</th>" for name in ("", "answer", "reward", "gold"))
        return (
            f'<table style="font-size:13px;max-width:900px"><tr>{names}</tr>{lines}</table>'
            if self.rows
            else "<p>no pair in the wrong order</p>"
        )


def confident_mistakes(
    inspector: "RewardInspector", gold: Gold, n: int = 4, apart: float = 0.5
) -> Mistakes:
    """The pairs on which the reward model is surest and the truth is against it.

    Args:
        n: rows at most. apart: gold points, >= 0, that the better answer must be ahead by.
    """
    rows = inspector.table()
    margins = rows.margin.to_numpy()
    truth = gold_margins(inspector, gold)
    wrong = np.flatnonzero((margins * truth < 0) & (np.abs(truth) > apart))
    surest = sorted(wrong, key=lambda i: -abs(margins[i]))[:n]
    return Mistakes(tuple(_mistake(rows.iloc[i], gold) for i in surest), len(wrong), len(rows))


def _mistake(row: "pandas.Series[Any]", gold: Gold) -> dict[str, Any]:
    sides = {}
    for side in ("chosen", "rejected"):
        text = row[f"{side}_text"]
        score = gold(row["prompt"], text)
        parts = {name: value for name, value in score.parts.items() if abs(value) > 0.004}
        sides[side] = {"text": text, "reward": row[side], "gold": score.total, "parts": parts}
    order = ("chosen", "rejected") if row["margin"] > 0 else ("rejected", "chosen")
    return {"prompt": row["prompt"], "liked": sides[order[0]], "better": sides[order[1]]}


def _row(name: str, side: dict[str, Any]) -> str:
    parts = ", ".join(f"{n.replace('_', ' ')} {v:+.2f}" for n, v in side["parts"].items())
    return (
        f'<tr style="background:transparent"><td {_CELL}>{name}</td>'
        f"<td {_CELL}>{escape(side['text'])}</td><td {_CELL}>{side['reward']:+.2f}</td>"
        f"<td {_CELL}><b>{side['gold']:+.2f}</b><br><small>{escape(parts)}</small></td></tr>"
    )


def _line(side: dict[str, Any]) -> str:
    return f"reward {side['reward']:+.2f}, gold {side['gold']:+.2f}: {side['text']}"
