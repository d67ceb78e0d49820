"""Are the checks any good? Wrong solutions must be named, differently written right ones pass."""

from collections.abc import Iterable
from dataclasses import dataclass

from course_utils.errors import CourseError
from course_utils.grading.call import LocalCall
from course_utils.grading.checks import Mutant, Task, run_task

ROUNDS = ((0, 0), (1, 3), (2, 8))  # (seed, size)


@dataclass(frozen=True)
class Score:
    """Of one task."""

    task: str
    caught: int
    mutants: int
    survivors: tuple[str, ...]  # mutants that pass, or are not given the message meant for them
    refused: tuple[str, ...]  # right solutions that fail, with what was found

    @property
    def perfect(self) -> bool:
        return not self.survivors and not self.refused


def mutated(task: Task, mutant: Mutant) -> str:
    """The mutant's source. Raises CourseError unless its text stands in the solution once."""
    count = task.solution.count(mutant.old)
    if count != 1:
        raise CourseError(
            f"task {task.name} mutant {mutant.name!r}: {mutant.old!r} stands {count} times in the "
            "solution; it must stand there once"
        )
    return task.solution.replace(mutant.old, mutant.new)


def mistakes(task: Task, source: str, rounds: Iterable[tuple[int, int]] = ROUNDS) -> list[set[str]]:
    """The names of the findings on this source (trusted: it runs here), for each round."""
    namespace: dict[str, object] = {}
    exec(compile(source, "cell 0", "exec"), namespace)
    call = LocalCall(namespace[task.function])  # type: ignore[arg-type]
    return [
        {f.mistake for result in run_task(task, call, seed, size) for f in result.findings}
        for seed, size in rounds
    ]


def score(task: Task) -> Score:
    """A mutant counts as caught if every round gives the finding meant for it."""
    survivors, refused = [], []
    for mutant in task.mutants:
        found = mistakes(task, mutated(task, mutant))
        if not all(mutant.mistake in names for names in found):
            survivors.append(f"{mutant.name}: expected {mutant.mistake!r}, found {found}")
    for number, source in enumerate((task.solution, *task.alternatives)):
        found = mistakes(task, source)
        if any(found):
            refused.append(f"right solution {number}: {found}")
    caught = len(task.mutants) - len(survivors)
    return Score(task.name, caught, len(task.mutants), tuple(survivors), tuple(refused))
