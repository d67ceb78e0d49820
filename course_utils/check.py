"""The student's side of the exercises, in a notebook: what is wrong with my function?

    from course_utils import check

    check.masked_sft_loss(masked_sft_loss)           # names the mistake, or says "passed"
    loss = check.use(masked_sft_loss, otherwise=f)   # mine once it has passed, until then f
    check.notebook("02", "02_supervised_fine_tuning.ipynb")   # all tasks of a saved notebook

The checks are those that grade; the grader runs them on other numbers, in a sandbox.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, TypeVar

from course_utils.errors import CourseError
from course_utils.grading.call import LocalCall, describe, run_piece
from course_utils.grading.checks import Result, Task, run_task, tasks
from course_utils.grading.finding import Finding

Function = TypeVar("Function", bound=Callable[..., Any])

_RIGHT = Finding("right", "")
_passed: list[Callable[..., Any]] = []  # the very functions that passed, in this kernel
_STATES = {"passed": "20,150,130", "not yet": "235,125,20", "not written yet": "120,120,130"}


class CheckFailed(AssertionError):
    """Raised only where nbgrader runs the notebook, which counts a cell without error as right."""


@dataclass(frozen=True)
class Verdict:
    """What the checks of one task found; shows itself as a card."""

    task: Task
    results: tuple[Result, ...]

    @property
    def passed(self) -> bool:
        return not any(result.findings for result in self.results)

    @property
    def points(self) -> float:
        return sum(result.points for result in self.results)

    @property
    def state(self) -> str:
        if self.passed:
            return "passed"
        names = {f.mistake for r in self.results for f in r.findings or (_RIGHT,)}
        return "not written yet" if names <= {"blank", "not looked at"} else "not yet"

    def __repr__(self) -> str:
        lines = [f"{self.task.name}: {self.state} ({self.points:g} of {self.task.points:g} points)"]
        if self.state != "not written yet":
            for result in self.results:
                lines.append(f"  {_mark(result)} {result.check}")
                lines += [f"      {f.text()}" for f in result.findings]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = ""
        if self.state != "not written yet":
            for result in self.results:
                said = "".join(f"<div>{escape(f.text())}</div>" for f in result.findings)
                rows += (
                    f'<div style="margin-top:5px">{_mark(result)} <b>{escape(result.check)}</b>'
                    f' <span style="opacity:.7">{result.points:g} of {result.out_of:g}</span>'
                    f'<div style="margin-left:20px">{said}</div></div>'
                )
        return (
            '<div style="border:1px solid rgba(128,128,128,.4);border-left:4px solid '
            f"rgb({_STATES[self.state]});border-radius:6px;padding:8px 16px;max-width:760px;"
            f'font-size:14px;line-height:1.5"><b>{escape(self.task.name)}</b>: {self.state} '
            f'<span style="opacity:.7">({self.points:g} of {self.task.points:g} points)</span>'
            f"{rows}</div>"
        )


def _mark(result: Result) -> str:
    return "✗" if result.findings else "✓"


def __getattr__(name: str) -> Callable[..., Verdict]:
    if name.startswith("_"):
        raise AttributeError(name)
    for task in tasks():
        if task.attribute == name:
            return _Checker(task)
    names = ", ".join(task.attribute for task in tasks())
    raise AttributeError(f"no task is called {name!r}; there are {names}")


def __dir__() -> list[str]:
    return sorted(["use", "notebook", *(task.attribute for task in tasks())])


@dataclass(frozen=True)
class _Checker:
    task: Task

    def __call__(self, *functions: Callable[..., Any]) -> Verdict:
        """Runs the task's checks on the student's functions.

        Raises CourseError for what is no function or too few of them; CheckFailed under nbgrader.
        """
        wanted = self.task.functions
        if len(functions) != len(wanted) or not all(callable(f) for f in functions):
            raise CourseError(
                f"check.{self.task.attribute} looks at {len(wanted)} function(s): call it as "
                f"check.{self.task.attribute}({', '.join(wanted)}), without calling them yourself"
            )
        verdict = Verdict(self.task, tuple(run_task(self.task, LocalCall(functions))))
        if verdict.passed:
            _passed.extend(functions)
        elif os.environ.get("NBGRADER_EXECUTION"):
            raise CheckFailed(repr(verdict))
        return verdict


def use(mine: Function, otherwise: Function) -> Function:
    """`mine` if this very function has passed its check in this kernel, else `otherwise`.

    It prints which one it took, so that no experiment runs on the library's unnoticed.
    """
    name = getattr(mine, "__name__", "your function")
    if any(mine is function for function in _passed):
        print(f"this run uses your {name}")
        return mine
    print(f"this run uses the course's {name}: yours has not passed its check yet")
    return otherwise


def notebook(set: str, path: str | Path) -> list[Verdict]:
    """The verdicts on all tasks of a saved notebook, as `course check` prints them.

    Only imports, definitions and literal constants of the notebook run, as in the grader, but
    here and without a sandbox: for your own notebook. Raises NotebookError.
    """
    from course_utils.grading.notebook import read

    book = read(path)
    return [_judged(task, book) for task in tasks(set)]


def _judged(task: Task, book: Any) -> Verdict:
    namespace: dict[str, Any] = {"__name__": "submission"}
    pieces, _ = book.needed(task.functions)
    faults: dict[str, str] = {}
    for piece in pieces:
        try:
            run_piece(piece.source, piece.cell, piece.line, namespace)
        except Exception as error:  # as in the grader: the call then says what is missing
            faults |= dict.fromkeys(piece.names, f": {describe(error)}")
    functions = [namespace.get(n, _missing(n, faults.get(n, ""))) for n in task.functions]
    return Verdict(task, tuple(run_task(task, LocalCall(functions))))


def _missing(name: str, why: str) -> Callable[..., Any]:
    def missing(*_: Any, **__: Any) -> Any:
        raise NameError(f"the notebook defines no {name!r} that could be run{why}")

    return missing
