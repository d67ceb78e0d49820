"""`course check NN NOTEBOOK` and `course mutants [NN]`; `course grade` is in `grade_command`."""

import argparse
import time
from pathlib import Path


def check(args: argparse.Namespace) -> int:
    """A student's own notebook: what each task's checks say. 1 unless all of them pass."""
    from course_utils import check as student
    from course_utils.grading.checks import tasks
    from course_utils.grading.notebook import read

    book = read(args.notebook)
    verdicts = student.notebook(args.set, args.notebook)
    for verdict in verdicts:
        print(verdict)
    _, notes = book.needed(name for task in tasks(args.set) for name in task.functions)
    for note in (*book.notes, *notes):
        print(f"note: cell {note.cell}, line {note.line}: {note.message}")
    got, of = sum(v.points for v in verdicts), sum(v.task.points for v in verdicts)
    print(f"{got:g} of {of:g} points; the grader looks with other numbers, in a sandbox")
    return 0 if all(verdict.passed for verdict in verdicts) else 1


def mutants(args: argparse.Namespace) -> int:
    """The mutation score of every task; 1 unless each mutant is named and each solution passes."""
    from course_utils.build import find_root
    from course_utils.grading import mutants as known
    from course_utils.grading.checks import tasks

    root, started = find_root(Path.cwd()), time.perf_counter()
    scores = []
    for task in tasks(args.set):
        answers = known.answers(root, task)
        score = known.score(task, answers)
        scores.append((task, score))
        right = 1 + len(answers.alternatives)
        passed = right - len(score.refused)
        print(
            f"{task.set} {task.name:<28} {score.caught:>3} of {score.mutants:>3} mutants named, "
            f"{passed} of {right} right solutions passed, {len(task.checks)} checks"
        )
        for line in (*score.survivors, *score.refused, *score.lacking):
            print(f"     {line}")
    caught, count = sum(s.caught for _, s in scores), sum(s.mutants for _, s in scores)
    seconds = time.perf_counter() - started
    share = 100 * caught / count if count else 0.0
    print(
        f"mutation score {share:.1f} %: {caught} of {count} in {len(scores)} tasks, {seconds:.0f} s"
    )
    return 0 if scores and all(score.perfect for _, score in scores) else 1
