"""Are the checks any good? Wrong solutions must be named, differently written right ones pass.

    lessons/exercises/NN_topic.py               the solution, in its cell between the markers
    lessons/exercises/answers/NN_task_name.py   right ALTERNATIVES, and MUTANTS, which are wrong

Only a checkout has them: the installed package, which students have, holds the checks alone.
"""

import importlib.util
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from course_utils.build import solution_notebook
from course_utils.errors import CourseError
from course_utils.grading.call import LocalCall
from course_utils.grading.checks import Task, run_task
from course_utils.grading.notebook import parse

ROUNDS = ((0, 0), (1, 3), (2, 8))  # (seed, size)
LEAST_MUTANTS, LEAST_ALTERNATIVES = 8, 2


@dataclass(frozen=True)
class Mutant:
    """A wrong solution: the right one's source with `old` (which stands there once) replaced."""

    name: str
    old: str
    new: str
    mistake: str  # the finding that it must get in every round


@dataclass(frozen=True)
class Answers:
    """Right and wrong answers to one task."""

    solution: str  # source: what the grader would take from the solution's notebook
    alternatives: tuple[str, ...]
    mutants: tuple[Mutant, ...]


@dataclass(frozen=True)
class Score:
    """Of one task."""

    task: str
    caught: int
    mutants: int
    survivors: tuple[str, ...]  # mutants that pass, or are not given the message meant for them
    refused: tuple[str, ...]  # right solutions that fail, with what was found
    lacking: tuple[str, ...]  # too few mutants or alternatives

    @property
    def perfect(self) -> bool:
        return not (self.survivors or self.refused or self.lacking)


def answers(root: Path, task: Task) -> Answers:
    """A task's answers, from the checkout. Raises CourseError with the file that is missing."""
    book = parse(solution_notebook(root, task.set).encode())
    needed, _ = book.needed(task.functions)  # and the imports, which a mutant may need
    pieces = [p for p in book.pieces if p in needed or (p.kind == "import" and _plain(p.source))]
    path = root / "lessons" / "exercises" / "answers" / f"{task.set}_{task.attribute}.py"
    spec = importlib.util.spec_from_file_location(f"answers_{task.attribute}", path)
    if spec is None or spec.loader is None or not path.exists():
        raise CourseError(f"{path} is missing: it holds the task's ALTERNATIVES and MUTANTS")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    solution = "\n\n".join(piece.source for piece in pieces)
    return Answers(solution, tuple(module.ALTERNATIVES), tuple(module.MUTANTS))


def _plain(statement: str) -> bool:
    """Whether an import is of what a task's function may use: torch, the standard library."""
    module = statement.split()[1].split(".")[0]
    return module in ("torch", "numpy") or module in sys.stdlib_module_names


def mutated(task: Task, solution: str, mutant: Mutant) -> str:
    """The mutant's source. Raises CourseError unless its text stands in the solution once."""
    count = solution.count(mutant.old)
    if count != 1:
        raise CourseError(
            f"task {task.name} mutant {mutant.name!r}: {mutant.old!r} stands {count} times in the "
            "solution; it must stand there once"
        )
    return solution.replace(mutant.old, mutant.new)


def mistakes(task: Task, source: str, rounds: Iterable[tuple[int, int]] = ROUNDS) -> list[set[str]]:
    """The names of the findings on this source (trusted: it runs here), for each round."""
    namespace: dict[str, object] = {"__name__": "answer"}
    exec(compile(source, "cell 0", "exec"), namespace)
    call = LocalCall([namespace[name] for name in task.functions])  # type: ignore[misc]
    return [
        {f.mistake for result in run_task(task, call, [round]) for f in result.findings}
        for round in rounds
    ]


def score(task: Task, known: Answers) -> Score:
    """A mutant counts as caught if every round gives the finding meant for it."""
    survivors, refused, lacking = [], [], []
    for mutant in known.mutants:
        found = mistakes(task, mutated(task, known.solution, mutant))
        if not all(mutant.mistake in names for names in found):
            survivors.append(f"{mutant.name}: expected {mutant.mistake!r}, found {found}")
    for number, source in enumerate((known.solution, *known.alternatives)):
        found = mistakes(task, source)
        if any(found):
            refused.append(f"right solution {number}: {found}")
    for count, least, what in (
        (len(known.mutants), LEAST_MUTANTS, "mutants"),
        (len(known.alternatives), LEAST_ALTERNATIVES, "alternatives"),
    ):
        if count < least:
            lacking.append(f"{count} {what}, at least {least} are needed")
    caught = len(known.mutants) - len(survivors)
    return Score(
        task.name, caught, len(known.mutants), tuple(survivors), tuple(refused), tuple(lacking)
    )
