"""`course grade SUBMISSIONS/ --out DIR`: arguments, and what is written when all is marked."""

import argparse
import json
import sys
import time
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

from course_utils.build import find_root
from course_utils.errors import CourseError
from course_utils.grading.checks import tasks
from course_utils.grading.collect import collect
from course_utils.grading.grade import Options, grade, print_progress
from course_utils.grading.gradebook import Exercise, Gradebook, find_exercise, write_pages
from course_utils.grading.marking import NOT_GRADED, Report, definitions
from course_utils.grading.notebook import parse
from course_utils.grading.sandbox import Limits
from course_utils.grading.store import Scores, Store, write_tables


def main(args: argparse.Namespace) -> int:
    """Grades, writes all tables and pages. 1 where something could not be graded."""
    started = time.perf_counter()
    root = find_root(Path.cwd())
    submissions, ignored = collect(args.submissions, args.set, args.student_pattern)
    if args.student:
        submissions = [one for one in submissions if one.student in args.student]
        missing = set(args.student) - {one.student for one in submissions}
        if missing:
            raise CourseError(f"no submission of {', '.join(sorted(missing))}")
    exercises = {one.set: find_exercise(root, one.set) for one in submissions}
    for name in ignored:
        print(f"ignored: {name!r} is not a notebook", file=sys.stderr)
    options = Options(
        args.jobs, tuple(args.task or ()), args.again, args.seconds,
        Limits(call_seconds=args.call_seconds), args.scheduler or "", args.unsafe_no_sandbox,
    )  # fmt: skip
    if options.unsafe:
        print("WARNING: students' code runs without a sandbox, as you", file=sys.stderr)
    store = Store(args.out, {set: exercise.name for set, exercise in exercises.items()})
    with store.locked():
        try:
            new = grade(store, submissions, options, print_progress)
        except (KeyboardInterrupt, CourseError):
            if reports := store.reports():  # what is there is shown
                finish(store.folder, reports, root, exercises, not args.no_gradebook)
            raise
        reports = store.reports()
        finish(store.folder, reports, root, exercises, not args.no_gradebook)
    print(summary(store.folder, reports, new, time.perf_counter() - started))
    return 1 if any(report.status == NOT_GRADED for _, report in reports) else 0


Reports = list[tuple[str, Report]]  # with each student's slug


def finish(
    folder: Path,
    reports: Reports,
    root: Path,
    exercises: dict[str, Exercise],
    with_gradebook: bool,
) -> None:
    """Tables, gradebook and pages of everything in the store, whenever it was graded."""
    scores: Scores = {}
    given: set[str] = set()
    with Gradebook(folder) if with_gradebook else nullcontext() as book:
        for name in sorted({report.set for _, report in reports}):
            exercise = exercises.get(name) or find_exercise(root, name)
            its = [(slug, report) for slug, report in reports if report.set == name]
            if book is not None:
                scores |= book.sync(exercise, its)
            write_pages(folder, exercise, its, scores)
            given |= _handed_out(exercise)
    write_tables(folder, reports, scores, given)


def _handed_out(exercise: Exercise) -> set[str]:
    """Digests of the tasks' functions as the exercise has them: holes, and code to be mended."""
    book = parse(json.dumps(exercise.notebook).encode())
    names = {name for task in tasks(exercise.name[:2]) for name in task.functions}
    return {digest for digest, _ in definitions(book.pieces, names).values()}


def summary(folder: Path, reports: Reports, new: list[Report], seconds: float) -> str:
    """How many of what, where it lies, and what a submission took."""
    counts = Counter(report.status for _, report in reports)
    lines = [
        ", ".join(f"{n} {status}" for status, n in sorted(counts.items())) or "nothing to grade",
        f"wrote {folder / 'grades.csv'}, tasks.csv, similar.csv, feedback/, gradebook.db",
    ]
    for kept in sorted({report.protection for report in new if report.protection}):
        lines.append(f"protection: {kept}")
    timed = [report.seconds for report in new if report.seconds]
    if timed:
        mean = {name: sum(t[name] for t in timed) / len(timed) for name in timed[0]}
        lines.append(
            f"{len(new)} graded now in {seconds:.0f} s; a submission takes {mean['total']:.2f} s: "
            f"{mean['sandbox']:.2f} starting the sandbox and defining, {mean['replies']:.2f} "
            f"waiting for replies, {mean['checks']:.2f} reading and comparing"
        )
    return "\n".join(lines)
