"""A table of answers: the same prompts put to several models, side by side, with the gold parts.

It shows itself in a notebook (plain HTML with inline styles, readable on light and dark pages, no
script) and in a terminal (text), and gives the numbers as a DataFrame.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas

# Blue and orange differ for every kind of colour vision; half-transparent, they work on any page.
GOOD, BAD = "rgba(40,120,220,.22)", "rgba(240,130,20,.28)"
LINE = "1px solid rgba(128,128,128,.35)"
_ALIGN = "text-align:left;vertical-align:top;white-space:normal"


@dataclass(frozen=True)
class Answer:
    """One model's answer to one prompt."""

    prompt: str
    model: str
    text: str
    gold: float | None = None  # the gold reward; None where the tier has none
    parts: dict[str, float] = field(default_factory=dict)  # part name -> weighted score


class AnswerTable:
    """Answers in the order prompt by prompt, model by model; made by `Lab.answers`."""

    def __init__(self, answers: Sequence[Answer], meanings: dict[str, str] | None = None) -> None:
        """`meanings`: part name -> what it measures, shown when the pointer rests on a part."""
        self.answers = list(answers)
        self.meanings = meanings or {}
        self.models = list(dict.fromkeys(a.model for a in answers))
        self.prompts = list(dict.fromkeys(a.prompt for a in answers))

    def __len__(self) -> int:
        return len(self.prompts)

    def frame(self) -> "pandas.DataFrame":
        """One row per answer: prompt, model, answer, gold and its parts (NaN without gold)."""
        import pandas

        rows = [
            {"prompt": a.prompt, "model": a.model, "answer": a.text, "gold": a.gold, **a.parts}
            for a in self.answers
        ]
        names = ["prompt", "model", "answer", "gold", *self.meanings]
        return pandas.DataFrame(rows, columns=names if self.meanings else None)

    def _row(self, prompt: str) -> list[Answer]:
        return [a for a in self.answers if a.prompt == prompt]

    def __repr__(self) -> str:
        lines = []
        for prompt in self.prompts:
            lines += ["", prompt]
            for answer in self._row(prompt):
                gold = "" if answer.gold is None else f" ({answer.gold:+.2f})"
                lines += textwrap.wrap(
                    f"{answer.model}{gold}: {answer.text}",
                    width=96,
                    initial_indent="  ",
                    subsequent_indent="      ",
                )
        return "\n".join(lines).strip() or "no answers"

    def _repr_html_(self) -> str:
        if not self.answers:
            return "<p>no answers</p>"
        head = "".join(
            f'<th scope="col" style="{_ALIGN};padding:4px 12px;font-weight:600">{escape(name)}</th>'
            for name in self.models
        )
        width = 100 / len(self.models)
        columns = f'<col style="width:{width:.1f}%">' * len(self.models)
        return (
            '<table style="width:100%;max-width:1100px;border-collapse:collapse;font-size:14px;'
            f'line-height:1.45;table-layout:fixed"><colgroup>{columns}</colgroup>'
            f'<thead><tr style="border:0">{head}</tr></thead>'
            f"<tbody>{''.join(self._html_rows(prompt) for prompt in self.prompts)}</tbody></table>"
        )

    def _html_rows(self, prompt: str) -> str:
        span = len(self.models)
        question = (
            f'<tr style="background:rgba(128,128,128,.12)"><td colspan="{span}" style="{_ALIGN};'
            f'padding:6px 12px;font-weight:600;border-top:{LINE}">{escape(prompt)}</td></tr>'
        )
        cells = "".join(self._html_cell(answer) for answer in self._row(prompt))
        return f'{question}<tr style="background:transparent">{cells}</tr>'

    def _html_cell(self, answer: Answer) -> str:
        text = escape(answer.text) or '<i style="opacity:.6">(nothing)</i>'
        return (
            f'<td style="{_ALIGN};padding:8px 12px 12px;overflow-wrap:anywhere">{text}'
            f"{self._chips(answer)}</td>"
        )

    def _chips(self, answer: Answer) -> str:
        if answer.gold is None:
            return ""
        total = (
            f'<b style="margin-right:8px;font-variant-numeric:tabular-nums">{answer.gold:+.2f}</b>'
        )
        chips = "".join(
            f'<span title="{escape(self.meanings.get(name, ""))}" style="display:inline-block;'
            f"margin:2px 4px 0 0;padding:0 7px;border-radius:9px;font-size:12px;"
            f'background:{GOOD if value > 0 else BAD}">'
            f"{escape(name.replace('_', ' '))} {value:+.2f}</span>"
            for name, value in answer.parts.items()
            if round(value, 2)
        )
        return f'<div style="margin-top:6px">{total}{chips}</div>'
