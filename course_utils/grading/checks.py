"""The registry of tasks, and what happens when a task's checks meet a student's function.

A check is a pure function `check(call, seed, size) -> list[Finding]`: it draws inputs from the
seed, calls the student's function through `call` and compares here. The visible check in the
notebook and the hidden one in the grader are the same function with other seeds and sizes.
"""

from collections.abc import Callable
from dataclasses import dataclass

from course_utils.errors import CourseError
from course_utils.grading.call import Call, Failed
from course_utils.grading.finding import Finding


@dataclass(frozen=True)
class Check:
    name: str
    points: float
    run: Callable[[Call, int, int], list[Finding]]


@dataclass(frozen=True)
class Mutant:
    """A wrong solution: the right one's source with `old` (which stands there once) replaced."""

    name: str
    old: str
    new: str
    mistake: str  # the finding that it must get


@dataclass(frozen=True)
class Task:
    """One function to be written by the student."""

    set: str  # "02"
    name: str  # the name that the notebook's cells and the gradebook use
    function: str  # what the student defines
    checks: tuple[Check, ...]
    solution: str  # source text
    alternatives: tuple[str, ...]  # right, and written differently
    mutants: tuple[Mutant, ...]

    @property
    def points(self) -> float:
        return sum(check.points for check in self.checks)


@dataclass(frozen=True)
class Result:
    """What one check of a task gave."""

    check: str
    points: float
    out_of: float
    findings: tuple[Finding, ...]


def find(set: str, name: str) -> Task:
    """Raises CourseError with the names that there are."""
    for task in tasks(set):
        if task.name == name:
            return task
    names = ", ".join(task.name for task in tasks(set)) or "none"
    raise CourseError(f"exercise set {set!r} has no task {name!r}; its tasks: {names}")


def tasks(set: str | None = None) -> list[Task]:
    """The tasks of one exercise set, or all, in the order of the sets."""
    from course_utils.grading.tasks import TASKS

    return [task for task in TASKS if set is None or task.set == set]


def run_task(task: Task, call: Call, seed: int, size: int) -> list[Result]:
    """Every check of the task; after a `Failed` of a process that is gone the rest fail alike."""
    results = []
    for check in task.checks:
        findings = tuple(run_check(check, call, seed, size))
        points = 0.0 if findings else check.points
        results.append(Result(check.name, points, check.points, findings))
    return results


def run_check(check: Check, call: Call, seed: int, size: int) -> list[Finding]:
    """The check's findings; a function that fails is a finding, and so is an unusable reply."""
    try:
        return check.run(call, seed, size)
    except Failed as failure:
        blank = failure.message.startswith("NotImplementedError")
        message = "not written yet" if blank else f"your function failed: {failure.message}"
        return [Finding("blank" if blank else failure.kind, message)]
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as e:
        # A value of the student's that the check did not foresee; mutants catch faults of ours.
        return [Finding("unusable", f"what it returned cannot be compared ({type(e).__name__})")]
