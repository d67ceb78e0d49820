"""What people read about a submission: the student's feedback page, the notebook for formgrader.

Both show text that a stranger wrote, so none of it is taken for markup: the page escapes all of it
and forbids scripts; the notebook is ours, with the student's words and code put into its holes.
"""

import copy
import re
from collections.abc import Mapping
from html import escape
from typing import Any

from course_utils.grading.marking import NOT_GRADED, CheckMark, Report, TaskMark
from course_utils.grading.protocol import printable

_STYLE = """
:root { color-scheme: light dark; --line: rgba(128,128,128,.35) }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.4rem; margin-bottom: 0 } h2 { font-size: 1.1rem; margin: 1.6rem 0 .3rem }
.points { opacity: .75; font-weight: 400 }
.task { border-left: 4px solid #8a8a8a; padding-left: 1rem }
.right { border-color: #149682 } .wrong { border-color: #eb7d14 }
.check { margin: .35rem 0 } .said { margin-left: 1.4rem }
pre { white-space: pre-wrap; overflow-wrap: anywhere; border: 1px solid var(--line);
      border-radius: 6px; padding: .6rem .8rem; font-size: .9rem }
.warning { border: 2px solid #eb7d14; border-radius: 6px; padding: .5rem 1rem }
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def feedback_html(
    report: Report, title: str, written: Mapping[str, tuple[float | None, float, str]]
) -> str:
    """One page without scripts or links.

    Args: written: grade_id -> (points or None while nobody has read it, out of, comment).
    """
    parts = [
        f"<h1>{escape(title)}</h1><p>{escape(_plain(report.student))}: "
        f"<b>{report.points:g} of {report.out_of:g} points</b> for the functions</p>"
    ]
    if report.warning:
        parts.append(f'<p class="warning">{escape(report.warning)}</p>')
    if report.reason:
        head = "Not graded yet" if report.status == NOT_GRADED else "This could not be graded"
        parts.append(f'<p class="warning">{head}: {escape(_plain(report.reason))}</p>')
    else:
        parts += [_task(task) for task in report.tasks]
    for name, (points, of, comment) in written.items():
        parts.append(_answer(name, report.answers.get(name, ""), points, of, comment))
    if report.notes:
        notes = "".join(f"<li>{escape(_plain(note))}</li>" for note in report.notes)
        parts.append(f"<h2>Notes on your notebook</h2><ul>{notes}</ul>")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        'content="width=device-width">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _task(task: TaskMark) -> str:
    right = task.points == task.out_of
    checks = "".join(_check(check) for check in task.checks)
    return (
        f'<h2>{escape(task.name)} <span class="points">{task.points:g} of {task.out_of:g}'
        f'</span></h2><div class="task {"right" if right else "wrong"}">{checks}</div>'
    )


def _check(check: CheckMark) -> str:
    where = " (with numbers that you have not seen)" if check.hidden and check.messages else ""
    said = "".join(f'<div class="said">{escape(_plain(m))}</div>' for m in check.messages)
    mark = "✗" if check.messages else "✓"
    return (
        f'<div class="check">{mark} <b>{escape(check.name)}</b>{where} '
        f'<span class="points">{check.points:g} of {check.out_of:g}</span>{said}</div>'
    )


def _answer(name: str, answer: str, points: float | None, of: float, comment: str) -> str:
    state = "not read yet" if points is None else f"{points:g}"
    said = f'<div class="said">{escape(_plain(comment))}</div>' if comment else ""
    return (
        f'<h2>{escape(name)} <span class="points">{state} of {of:g}</span></h2>'
        f"<pre>{escape(_plain(answer) or '(no answer)')}</pre>{said}"
    )


def _plain(text: str) -> str:
    """Without characters that are not shown, or that turn the line's direction round."""
    return printable(text, instead="\N{REPLACEMENT CHARACTER}", keep="\n\t")


def for_formgrader(exercise: dict[str, Any], report: Report) -> dict[str, Any]:
    """The exercise's text and tasks with the student's code and words, and what the checks said."""
    notebook = copy.deepcopy(exercise)
    notebook["cells"] = [
        cell
        for cell in notebook["cells"]
        if cell["cell_type"] == "markdown" or "nbgrader" in cell["metadata"]
    ]
    tasks = {f"{task.name}-check": task for task in report.tasks}
    for cell in notebook["cells"]:
        marks = cell["metadata"].get("nbgrader")
        if marks is None:
            continue
        name = marks["grade_id"]
        if name in tasks:
            text = "\n".join(_lines(tasks[name]))
            cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": text}]
        elif marks["solution"] and cell["cell_type"] == "code":
            cell["source"] = _plain(report.code.get(name, ""))
        elif marks["solution"]:
            cell["source"] = harmless_markdown(report.answers.get(name, ""))
    return notebook


def _lines(task: TaskMark) -> list[str]:
    lines = [f"{task.points:g} of {task.out_of:g} points"]
    for check in task.checks:
        lines.append(f"{'✗' if check.messages else '✓'} {check.name}")
        lines += [f"    {_plain(message)}" for message in check.messages]
    return lines


def harmless_markdown(text: str) -> str:
    """Markdown in which no HTML begins, no picture is fetched and no formula is a link.

    Everything else stays as it was written.
    """
    text = re.sub(r"<(?=[A-Za-z/!?])", "&lt;", _plain(text))
    text = text.replace("![", "! [")
    text = re.sub(r"(?i)(javascript|vbscript|data)\s*:", r"\1 :", text)
    return re.sub(
        r"\\(href|url|class|style|cssId|require|html\w*|data|def|newcommand|let)\b", r"\1", text
    )
