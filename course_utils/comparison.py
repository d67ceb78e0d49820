"""Several models on the same prompts, side by side: what is known of each, with intervals."""

from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

from course_utils.errors import CourseError

if TYPE_CHECKING:
    import pandas

    from course_utils.evaluation import Evaluation, WinRate

# column -> (heading, what it is); a column that no model has is left out
COLUMNS = {
    "gold": ("gold reward", "true quality, known in the embedded world only"),
    "reward": ("reward", "the reward model's score"),
    "kl": ("KL", "to the reference, nats per answer"),
    "length": ("tokens", "per answer"),
    "distinct_2": ("distinct-2", "share of different word pairs over all answers"),
}
_CELL = "padding:3px 16px 3px 0;text-align:right;font-variant-numeric:tabular-nums"


class Comparison:
    """Shows itself as a table; `evaluations` has everything, `frame()` the numbers."""

    def __init__(self, evaluations: "Mapping[str, Evaluation]") -> None:
        if not evaluations:
            raise CourseError('nothing to compare: pass models, such as {"base": lab.base()}')
        self.evaluations = dict(evaluations)

    def winner(self, a: str, b: str, which: str | None = None) -> "WinRate":
        """How often model `a`'s answer is the better one, by gold, or without gold by reward."""
        from course_utils.evaluation import win_rate

        for name in (a, b):
            if name not in self.evaluations:
                raise CourseError(f'"{name}" is not among {", ".join(self.evaluations)}')
        first, second = self.evaluations[a], self.evaluations[b]
        which = which or ("gold" if first.gold is not None else "reward")
        return win_rate(first.scores(which), second.scores(which))

    def frame(self) -> "pandas.DataFrame":
        """One row per model: means, and for gold and reward the ends of the 95% interval."""
        import pandas

        rows: dict[str, dict[str, float]] = {}
        for name, found in self.evaluations.items():
            row = rows[name] = {}
            for column in self._columns():
                value = getattr(found, column)
                row[column] = float("nan") if value is None else _mean(value)
                if column in ("gold", "reward") and value is not None:
                    row |= {f"{column}_low": value.low, f"{column}_high": value.high}
        return pandas.DataFrame.from_dict(rows, orient="index")

    def _columns(self) -> list[str]:
        found = self.evaluations.values()
        return [c for c in COLUMNS if any(getattr(e, c) is not None for e in found)]

    def _table(self) -> list[list[str]]:
        columns = self._columns()
        lines = [["", *(COLUMNS[column][0] for column in columns)]]
        for name, found in self.evaluations.items():
            cells = [_text(getattr(found, column), column) for column in columns]
            lines.append([name, *cells])
        return lines

    def __repr__(self) -> str:
        lines = self._table()
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        padded = [[c.rjust(w) for c, w in zip(line, widths, strict=True)] for line in lines]
        return "\n".join("  ".join(line) for line in padded)

    def _repr_html_(self) -> str:
        head, *body = self._table()
        said = ["", *(COLUMNS[column][1] for column in self._columns())]
        titles = "".join(
            f'<th scope="col" title="{escape(words)}" style="{_CELL}">{escape(cell)}</th>'
            for cell, words in zip(head, said, strict=True)
        )
        rows = "".join(
            f'<tr style="background:transparent"><th scope="row" style="{_CELL};text-align:left">'
            + "".join([escape(name), "</th>", *(f'<td style="{_CELL}">{c}</td>' for c in cells)])
            + "</tr>"
            for name, *cells in body
        )
        any_found = next(iter(self.evaluations.values()))
        note = f"{any_found.prompts} held-out prompts; in brackets 95% bootstrap intervals"
        return (
            f'<table style="border-collapse:collapse;font-size:14px"><thead><tr>{titles}</tr>'
            f"</thead><tbody>{rows}</tbody></table>"
            f'<div style="font-size:12.5px;opacity:.75">{note}</div>'
        )


def _mean(value: Any) -> float:
    return float(getattr(value, "mean", value))


def _text(value: Any, column: str) -> str:
    if value is None:
        return "–"
    if column in ("gold", "reward"):
        return f"{value.mean:+.2f} [{value.low:+.2f}, {value.high:+.2f}]"
    return f"{_mean(value):.1f}" if column == "length" else f"{_mean(value):.2f}"
