"""The folder that `course grade` writes: one result file for each submission, all else from them.

results/04/anna.json     what became of the submission: written whole, kept for resuming
grades.csv tasks.csv     a row for each submission, a row for each of its tasks
similar.csv              functions that several students wrote identically
key                      hidden inputs are drawn from it: keep it, and keep it to yourself
"""

import csv
import io
import json
import secrets
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from course_utils.errors import CourseError
from course_utils.files import write_atomic
from course_utils.grading.marking import NOT_GRADED, Report, TaskMark, as_json, from_json
from course_utils.grading.protocol import printable

LAYOUT = 1  # of the result files
GRADES = (
    "student", "set", "status", "points", "out_of", "written", "written_out_of", "total", "reason",
    "notes", "warning",
)  # fmt: skip


class Store:
    """The results in a folder, by set and student's slug."""

    def __init__(self, folder: Path, names: Mapping[str, str]):
        """Makes the folder where it is missing. Raises CourseError where it cannot be written.

        Args: names: set -> its assignment's name: "04" -> "04_ppo".
        """
        self.folder, self.names = folder, names
        try:
            (folder / "results").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CourseError(f"{folder} cannot be written: {error.strerror}") from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps a second `course grade` out. Raises CourseError where one is at work."""
        lock = FileLock(self.folder / ".lock")
        try:
            with lock.acquire(timeout=0):
                yield
        except Timeout:
            raise CourseError(f"another `course grade` is writing to {self.folder}") from None

    def key(self) -> bytes:
        """The grading's secret, made once."""
        path = self.folder / "key"
        with suppress(FileNotFoundError):
            text = path.read_text(encoding="ascii", errors="replace").strip()
            with suppress(ValueError):
                if len(bytes.fromhex(text)) == 32:
                    return bytes.fromhex(text)
            raise CourseError(f"{path} is damaged; delete it to have everything graded again")
        drawn = secrets.token_bytes(32)
        write_atomic(path, drawn.hex() + "\n")
        path.chmod(0o600)
        return drawn

    def path(self, set: str, slug: str) -> Path:
        return self.folder / "results" / set / f"{slug}.json"

    def save(self, slug: str, report: Report, grader: str) -> None:
        path = self.path(report.set, slug)
        path.parent.mkdir(exist_ok=True)
        row = {"layout": LAYOUT, "grader": grader, "report": as_json(report)}
        write_atomic(path, json.dumps(row, indent=1) + "\n")

    def keep_original(self, slug: str, set: str, data: bytes) -> None:
        """A copy of what was handed in, where nbgrader looks for it; never executed."""
        name = self.names[set]
        path = self.folder / "submitted" / slug / name / f"{name}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data)

    def load(self, set: str, slug: str) -> tuple[Report, str] | None:
        """A kept report and the version of the grader that made it; None if there is none."""
        return _read(self.path(set, slug))

    def reports(self) -> list[tuple[str, Report]]:
        """(slug, report) of everything graded so far, by set and student."""
        found = []
        for path in sorted((self.folder / "results").glob("*/*.json")):
            if kept := _read(path):
                found.append((path.stem, kept[0]))
        return found


def _read(path: Path) -> tuple[Report, str] | None:
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
        if row["layout"] != LAYOUT:
            return None
        return from_json(row["report"]), str(row["grader"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        print(f"note: {path} is damaged; that submission is graded again")
        return None


@dataclass(frozen=True)
class Score:
    """A cell's score as the gradebook has it."""

    points: float | None  # None: a person has yet to read it
    out_of: float
    manual: bool  # a person gave or changed it
    comment: str = ""


Scores = dict[tuple[str, str], dict[str, Score]]  # (set, slug) -> grade_id -> score


def write_tables(
    folder: Path, reports: list[tuple[str, Report]], scores: Scores, given: Collection[str] = ()
) -> None:
    """grades.csv, tasks.csv and similar.csv.

    Args:
        scores: the gradebook's; where a person gave points they count instead of ours.
        given: digests of functions that the exercise hands out, which say nothing about anybody.
    """
    known = [(report, scores.get((report.set, slug), {})) for slug, report in reports]
    _write(folder / "grades.csv", GRADES, [_grade(*one) for one in known])
    rows = [row for one in known for row in _tasks(*one)]
    _write(folder / "tasks.csv", ("student", "set", "task", "points", "out_of", "mistakes"), rows)
    rows = _similar((report for _, report in reports), given)
    _write(folder / "similar.csv", ("set", "function", "students", "lines", "names"), rows)


def _points(task: TaskMark, scores: Mapping[str, Score]) -> float:
    score = scores.get(f"{task.name}-check")
    given = score.points if score and score.manual else None
    return task.points if given is None else given


def _grade(report: Report, scores: Mapping[str, Score]) -> tuple[Any, ...]:
    """A row; fields are empty rather than 0 where nothing was judged, so that no sum takes them."""
    own = {f"{task.name}-check" for task in report.tasks}
    words = [score for name, score in scores.items() if name not in own]
    read = [score.points for score in words if score.points is not None]
    points: Any = sum(_points(task, scores) for task in report.tasks)
    written: Any = sum(read) if words and len(read) == len(words) else ""
    total: Any = points + (written or 0) if written != "" or not words else ""
    if report.status == NOT_GRADED:
        points = written = total = ""
    out_of = sum(score.out_of for score in words)
    return (
        report.student, report.set, report.status, points, report.out_of, written, out_of, total,
        report.reason, len(report.notes), report.warning,
    )  # fmt: skip


def _tasks(report: Report, scores: Mapping[str, Score]) -> Iterator[tuple[Any, ...]]:
    for task in report.tasks:
        names = sorted({m for c in task.checks for m in c.mistakes if m != "not looked at"})
        points = "" if report.status == NOT_GRADED else _points(task, scores)
        yield report.student, report.set, task.name, points, task.out_of, "; ".join(names)


def _similar(reports: Iterable[Report], given: Collection[str]) -> list[tuple[Any, ...]]:
    """Functions of more than two lines whose code is the same for several students."""
    groups: dict[tuple[str, str, str, int], list[str]] = {}
    for report in reports:
        for function, (digest, lines) in report.definitions.items():
            if lines > 2 and digest not in given:
                groups.setdefault((report.set, function, digest, lines), []).append(report.student)
    return [
        (set, function, len(names), lines, "; ".join(sorted(names)))
        for (set, function, _, lines), names in sorted(groups.items())
        if len(names) > 1
    ]


def _write(path: Path, header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_cell(value) for value in row] for row in rows)
    write_atomic(path, text.getvalue())


def _cell(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula, on one line."""
    if isinstance(value, float):
        return f"{value:g}"
    if not isinstance(value, str):
        return value
    plain = printable(value, instead=" ")
    return f"'{plain}" if plain[:1] in "=+-@" and plain else plain
