"""The registry of tasks, and what happens when a task's checks meet a student's functions.

A check is a pure function `check(call, seed, size) -> list[Finding]`: it draws inputs from the
seed, calls the student's function through `call` and compares here. The visible check in the
notebook and the hidden one in the grader are the same function with other seeds and sizes.
"""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from course_utils.errors import CourseError
from course_utils.grading.call import Call, Failed, MachineFailed
from course_utils.grading.finding import Finding

SETS = ("01", "02", "03", "04", "05", "06", "07", "08", "09")
VISIBLE = ((0, 0), (1, 3))  # (seed, size) of the rounds that a student's own check runs


@dataclass(frozen=True)
class Check:
    name: str
    points: float
    run: Callable[[Call, int, int], list[Finding]]


@dataclass(frozen=True)
class Task:
    """One or more functions to be written by the student, and the checks that look at them.

    The first check says whether the functions do their work at all: where it finds a mistake, the
    others are not run and give no points (a function of zeros would pass some of them).
    """

    set: str  # "02"
    name: str  # of the notebook's cells and in the gradebook: "masked-sft-loss"
    functions: tuple[str, ...]  # what the student defines; a check's `call` calls the first
    checks: tuple[Check, ...]

    @property
    def points(self) -> float:
        return sum(check.points for check in self.checks)

    @property
    def attribute(self) -> str:
        """The name under which `course_utils.check` has it: "masked_sft_loss"."""
        return self.name.replace("-", "_")


@dataclass(frozen=True)
class Result:
    """What one check of a task gave."""

    check: str
    points: float
    out_of: float
    findings: tuple[Finding, ...]
    hidden: bool = False  # found with numbers that the student has not seen


def find(set: str, name: str) -> Task:
    """Raises CourseError with the names that there are."""
    for task in tasks(set):
        if task.name == name:
            return task
    names = ", ".join(task.name for task in tasks(set)) or "none"
    raise CourseError(f"exercise set {set!r} has no task {name!r}; its tasks: {names}")


def tasks(set: str | None = None) -> list[Task]:
    """The tasks of one exercise set, or all, in the notebooks' order.

    Raises CourseError for a set that does not exist.
    """
    if set is not None and set not in SETS:
        raise CourseError(f"there is no exercise set {set!r}; there are {', '.join(SETS)}")
    chosen = SETS if set is None else (set,)
    modules = [importlib.import_module(f"course_utils.grading.tasks.set_{s}") for s in chosen]
    return [task for module in modules for task in module.TASKS]


Rounds = Sequence[tuple[int, int]]  # (seed, size)


def run_task(task: Task, call: Call, rounds: Rounds = VISIBLE, hidden: Rounds = ()) -> list[Result]:
    """Every check of the task on each round; a check ends at its first findings.

    All checks see the visible rounds before any sees a hidden one: a function that stops
    answering is not asked again, and then has at least the findings that it could have seen.
    """
    found: dict[str, tuple[tuple[Finding, ...], bool]] = {}
    for several, secret in ((rounds, False), (hidden, True)):
        for check in task.checks:
            if check.name in found or task.checks[0].name in found:
                continue
            tried = (tuple(run_check(check, call, seed, size)) for seed, size in several)
            if findings := next(filter(None, tried), ()):
                found[check.name] = findings, secret
    first = task.checks[0].name
    results = []
    for check in task.checks:
        findings, secret = found.get(check.name, ((), False))
        if not findings and first in found:
            message = f"not looked at before the check {first!r} passes"
            findings, secret = (Finding("not looked at", message),), found[first][1]
        points = 0.0 if findings else check.points
        results.append(Result(check.name, points, check.points, findings, secret))
    return results


def run_check(check: Check, call: Call, seed: int, size: int) -> list[Finding]:
    """The check's findings; a function that fails is a finding, and so is an unusable reply."""
    try:
        return check.run(call, seed, size)
    except Failed as failure:
        if failure.is_blank:
            return [Finding("blank", "not written yet")]
        said = "" if failure.kind == "missing" else "your function failed: "
        return [Finding(failure.kind, said + failure.message)]
    except MachineFailed:
        raise
    except Exception as error:
        # A value of the student's that the check did not foresee, whatever it set off: no reply
        # may stop the grading of others. Faults of ours show as solutions that are refused.
        kind = type(error).__name__
        return [Finding("unusable", f"what it returned cannot be compared ({kind})")]
