"""How long `course grade` takes for a class: seconds a submission, and where they go.

    python benchmarks/grading.py                 # 100 submissions of set 02, two processes
    python benchmarks/grading.py 04 --students 500 --jobs 8 --hostile 10

The class: a third hands in the solution, a third the solution with one task broken, a third the
exercise as it was handed out; `--hostile N` adds endless loops, memory bombs and the like.
"""

import argparse
import contextlib
import io
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

from course_utils import cli
from course_utils.build import find_root, solution_notebook
from course_utils.grading.checks import tasks
from course_utils.grading.store import Store

HOSTILE = (
    "while True: pass",
    "x = [bytearray(2**24) for _ in range(10**6)]",
    "import os; os._exit(0)",
    "import os\n    while True: os.fork()",
    "raise SystemExit",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("set", nargs="?", default="02")
    parser.add_argument("--students", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--hostile", type=int, default=0)
    given = parser.parse_args()
    root = find_root(Path.cwd())
    os.chdir(root)
    with tempfile.TemporaryDirectory() as work:
        subs, out = Path(work) / "subs", Path(work) / "out"
        hand_in(subs, root, given.set, given.students, given.hostile)
        command = ["grade", str(subs), "--out", str(out), "-j", str(given.jobs)]
        started = time.perf_counter()
        with contextlib.redirect_stderr(io.StringIO()):
            status = cli.main(command)
        wall = time.perf_counter() - started
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        cpu = sum(u.ru_utime + u.ru_stime for u in used)
        count = given.students + given.hostile
        print(f"{count} submissions of set {given.set} in {wall:.0f} s ({wall / count:.2f} s each, "
              f"{cpu:.0f} CPU s), {given.jobs} processes; exit {status}")  # fmt: skip
        started = time.perf_counter()
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            cli.main(command)
        print(f"again, with nothing to do: {time.perf_counter() - started:.1f} s")
        check(Store(out, {}), given.set)


def hand_in(subs: Path, root: Path, set: str, students: int, hostile: int) -> None:
    """Writes the class's notebooks."""
    right = json.loads(solution_notebook(root, set))
    empty = json.loads(next((root / "exercises").glob(f"{set}_*.ipynb")).read_text())
    todo = tasks(set)
    for number in range(students):
        book = json.loads(json.dumps(empty if number % 3 == 2 else right))
        book["metadata"]["number"] = number
        if number % 3 == 1:
            task = todo[number % len(todo)]
            replace(book, task.name, f"def {task.functions[0]}(*a, **k):\n    return None\n")
        write(subs / f"student{number:03d}" / f"{set}_x.ipynb", book)
    for number in range(hostile):
        book = json.loads(json.dumps(right))
        body = HOSTILE[number % len(HOSTILE)]
        for task in todo:
            replace(book, task.name, f"def {task.functions[0]}(*a, **k):\n    {body}\n")
        write(subs / f"hostile{number:03d}" / f"{set}_x.ipynb", book)


def replace(book: dict, name: str, source: str) -> None:
    for cell in book["cells"]:
        if cell["metadata"].get("nbgrader", {}).get("grade_id") == name:
            cell["source"] = source


def write(path: Path, book: dict) -> None:
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(book))


def check(store: Store, set: str) -> None:
    """The timing counts only if the marks are right."""
    full = sum(task.points for task in tasks(set))
    for slug, report in store.reports():
        number = int(slug[-3:])
        expected = full if slug.startswith("student") and number % 3 == 0 else None
        if slug.startswith("hostile") or number % 3 == 2:
            expected = 0.0
        if report.status != "graded" or (expected is not None and report.points != expected):
            sys.exit(f"{slug}: {report.status}, {report.points} points; the marks are wrong")


if __name__ == "__main__":
    main()
