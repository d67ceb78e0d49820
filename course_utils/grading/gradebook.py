"""nbgrader's gradebook and folders, filled with our marks: no code of a student runs for them.

gradebook.db                                 scores, comments; manual grades in it are kept
source/, release/                            the exercise as it was handed out
autograded/anna/04_ppo/04_ppo.ipynb          what formgrader shows
feedback/anna/04_ppo/04_ppo.html             what the student gets
"""

import hashlib
import json
import os
import sysconfig
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from course_utils.errors import CourseError
from course_utils.files import write_atomic
from course_utils.grading.marking import NOT_GRADED, REFUSED, Report
from course_utils.grading.pages import feedback_html, for_formgrader
from course_utils.grading.store import Score, Scores
from course_utils.notebooks import ANSWER_HOLE

CONFIG = """\
# Read by `nbgrader` and by JupyterLab when they are started in this folder:
#   cd THIS_FOLDER && jupyter lab      then choose Nbgrader > Formgrader
c = get_config()
c.CourseDirectory.course_id = ""
"""


@dataclass(frozen=True)
class Exercise:
    """A set's notebook as it was handed out."""

    name: str  # "04_ppo": the assignment and its only notebook
    notebook: dict[str, Any]

    def cells(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """(cell, nbgrader's marks) of each cell that has any."""
        for cell in self.notebook["cells"]:
            if marks := cell["metadata"].get("nbgrader"):
                yield cell, marks

    def written(self) -> dict[str, float]:
        """grade_id -> points of the answers in words."""
        return {
            marks["grade_id"]: float(marks["points"])
            for _, marks in self.cells()
            if marks["grade"] and marks["solution"]
        }


def find_exercise(root: Path, set: str) -> Exercise:
    """The built exercise of a checkout. Raises CourseError where there is none."""
    found = sorted((root / "exercises").glob(f"{set}_*.ipynb"))
    if not found:
        raise CourseError(f"{root / 'exercises'} has no notebook of set {set}: run `course build`")
    return Exercise(found[0].stem, json.loads(found[0].read_text(encoding="utf-8")))


@contextmanager
def _own_programs_first() -> Iterator[None]:
    """This environment's programs on the PATH, whether or not it was activated."""
    before = os.environ.get("PATH", os.defpath)
    os.environ["PATH"] = os.pathsep.join((sysconfig.get_path("scripts"), before))
    try:
        yield
    finally:
        os.environ["PATH"] = before


class Gradebook:
    """nbgrader's database in the folder of `course grade`; a context manager."""

    def __init__(self, folder: Path):
        """Raises CourseError without nbgrader."""
        try:
            from nbgrader.api import Gradebook as Database
        except ModuleNotFoundError as error:
            raise CourseError(
                "the gradebook needs nbgrader: pip install nbgrader, or grade with --no-gradebook"
            ) from error
        self.folder = folder
        self.read = folder / "answers-read.json"  # digests of the answers that were marked
        with _own_programs_first():  # nbgrader starts `alembic`
            self._database = Database(f"sqlite:///{folder.resolve() / 'gradebook.db'}")

    def __enter__(self) -> "Gradebook":
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def sync(self, exercise: Exercise, reports: list[tuple[str, Report]]) -> Scores:
        """Writes the marks of one set into the database; returns what it says then."""
        book, name = self._database, exercise.name
        self._declare(exercise)
        known = self._digests()
        scores: Scores = {}
        for slug, report in reports:
            key = (report.set, slug)
            written = exercise.written()
            if report.status == NOT_GRADED:
                scores[key] = {cell: Score(None, of, False) for cell, of in written.items()}
                continue
            book.update_or_create_student(slug, last_name=_storable(report.student))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # SQLAlchemy's, about nbgrader's use of it
                submission = book.update_or_create_submission(name, slug)
            auto = {f"{task.name}-check": task for task in report.tasks}
            grades, comments = submission.notebooks[0].grades, submission.notebooks[0].comments
            for grade in grades:
                if grade.name in auto:
                    grade.auto_score = auto[grade.name].points
                    grade.needs_manual_grade = False
                elif grade.name in written:
                    _written(grade, report, known, f"{name}/{slug}/{grade.name}")
            said = {
                t.name: "; ".join(m for c in t.checks for m in c.messages) for t in report.tasks
            }
            for comment in comments:
                comment.auto_comment = _storable(said.get(comment.name) or "") or None
            words = {c.name: c.comment or "" for c in comments}
            scores[key] = {g.name: _score(g, words.get(g.name, "")) for g in grades}
        book.db.commit()
        write_atomic(self.read, json.dumps(known, indent=0, sort_keys=True) + "\n")
        return scores

    def _declare(self, exercise: Exercise) -> None:
        """The assignment with its cells, as nbgrader's own `generate_assignment` would."""
        from nbformat import from_dict
        from nbgrader.utils import compute_checksum

        book, name = self._database, exercise.name
        book.update_or_create_assignment(name)
        kernel = json.dumps(exercise.notebook["metadata"]["kernelspec"])
        book.update_or_create_notebook(name, name, kernelspec=kernel)
        for cell, marks in exercise.cells():
            grade_id, kind = marks["grade_id"], cell["cell_type"]
            if marks["grade"]:
                points = float(marks["points"])
                book.update_or_create_grade_cell(
                    grade_id, name, name, max_score=points, cell_type=kind
                )
            if marks["solution"]:
                book.update_or_create_solution_cell(grade_id, name, name)
            source = "".join(cell["source"])
            checksum = compute_checksum(from_dict({**cell, "source": source}))
            book.update_or_create_source_cell(
                grade_id, name, name, cell_type=kind, locked=marks["locked"], source=source,
                checksum=checksum,
            )  # fmt: skip

    def _digests(self) -> dict[str, str]:
        try:
            found = json.loads(self.read.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def _written(grade: Any, report: Report, known: dict[str, str], key: str) -> None:
    """An answer in words: 0 where there is none, else a person's to grade; once for each text."""
    answer = report.answers.get(grade.name, "").replace(ANSWER_HOLE, "").strip()
    question = grade.cell.notebook.source_cells
    asked = next((c.source for c in question if c.name == grade.name), "")
    blank = not answer or answer == asked.replace(ANSWER_HOLE, "").strip()
    digest = hashlib.sha256(answer.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    changed = known.get(key) != digest
    known[key] = digest
    if blank or report.status == REFUSED:
        grade.auto_score, grade.needs_manual_grade = 0.0, False
    elif changed or grade.manual_score is None:
        grade.auto_score, grade.needs_manual_grade = None, True


def _score(grade: Any, comment: str) -> Score:
    manual = grade.manual_score is not None
    points = None if grade.needs_manual_grade else float(grade.score or 0.0)
    return Score(points, float(grade.max_score), manual, comment)


def _storable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()[:2000]


def write_pages(
    folder: Path, exercise: Exercise, reports: list[tuple[str, Report]], scores: Scores
) -> None:
    """Feedback pages, notebooks for formgrader, the exercise itself and nbgrader's settings."""
    name = exercise.name
    text = json.dumps(exercise.notebook, indent=1, ensure_ascii=False) + "\n"
    for place in ("source", "release"):
        _write(folder / place / name / f"{name}.ipynb", text)
    if not (folder / "nbgrader_config.py").exists():
        write_atomic(folder / "nbgrader_config.py", CONFIG)
    for slug, report in reports:
        found = scores.get((report.set, slug), {})
        written = {}
        for cell, of in exercise.written().items():
            score = found.get(cell, Score(None, of, False))
            written[cell] = (score.points, of, score.comment)
        page = feedback_html(report, f"Feedback on {name}", written)
        _write(folder / "feedback" / slug / name / f"{name}.html", page)
        if report.status != NOT_GRADED:
            notebook = json.dumps(for_formgrader(exercise.notebook, report), indent=1)
            _write(folder / "autograded" / slug / name / f"{name}.ipynb", notebook + "\n")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text)
