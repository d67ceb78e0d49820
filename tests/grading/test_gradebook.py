"""nbgrader's gradebook and the pages: scores, words that a person grades, nothing that runs."""

import json
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from course_utils.grading.gradebook import Gradebook, find_exercise, write_pages
from course_utils.grading.marking import CheckMark, Order, Report, TaskMark, refused
from course_utils.grading.pages import feedback_html, for_formgrader, harmless_markdown
from course_utils.grading.store import Score, write_tables

from . import made

api = pytest.importorskip("nbgrader.api")
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>"


@pytest.fixture(scope="module")
def exercise():
    return find_exercise(made.ROOT, made.SET)


def report(exercise, answers=(), student="anna", message=""):
    marks = []
    for _, cell in exercise.cells():
        if cell["locked"]:
            name, points = cell["grade_id"].removesuffix("-check"), cell["points"]
            said = ((message,), ("wrong",)) if message else ((), ())
            check = CheckMark("value", 0.0 if message else points, points, *said, False)
            marks.append(TaskMark(name, (check,), 0.1))
    return Report(
        student, made.SET, "graded", "", "digest", tuple(marks), answers=dict(answers),
        code={mark.name: "def f(): pass" for mark in marks},
    )  # fmt: skip


def first_answer(exercise):
    return next(iter(exercise.written()))


def read(folder, student, cell, name):
    with api.Gradebook(f"sqlite:///{folder}/gradebook.db") as book:
        grade = book.find_grade(cell, name, name, student)
        return grade.auto_score, grade.manual_score, grade.needs_manual_grade


def grade_by_hand(folder, student, cell, name, points, comment=""):
    """What formgrader does when a person types a score."""
    with api.Gradebook(f"sqlite:///{folder}/gradebook.db") as book:
        grade = book.find_grade(cell, name, name, student)
        grade.manual_score, grade.needs_manual_grade = points, False
        if comment:
            book.find_comment(cell, name, name, student).manual_comment = comment
        book.db.commit()


def sync(folder, exercise, reports):
    with Gradebook(folder) as book:
        return book.sync(exercise, reports)


def test_scores_words_and_what_a_person_gave(tmp_path, exercise, monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # nbgrader looks for `alembic`
    why = first_answer(exercise)
    blank = {
        marks["grade_id"]: "".join(cell["source"])
        for cell, marks in exercise.cells()
        if marks["grade_id"] in exercise.written()
    }
    answered = {**blank, why: "Because of the prompt."}
    scores = sync(tmp_path, exercise, [("anna", report(exercise, answered))])
    task = next(name for name in scores[made.SET, "anna"] if name.endswith("-check"))
    assert scores[made.SET, "anna"][task].points == scores[made.SET, "anna"][task].out_of
    assert scores[made.SET, "anna"][why].points is None
    assert read(tmp_path, "anna", why, exercise.name) == (None, None, True)
    others = set(exercise.written()) - {why}
    assert all(scores[made.SET, "anna"][name].points == 0 for name in others)  # left as it was

    grade_by_hand(tmp_path, "anna", why, exercise.name, 1.5, "good")
    grade_by_hand(tmp_path, "anna", task, exercise.name, 0.5)  # a person overrules a check
    again = sync(tmp_path, exercise, [("anna", report(exercise, answered))])
    assert again[made.SET, "anna"][why] == Score(1.5, exercise.written()[why], True, "good")
    assert again[made.SET, "anna"][task].points == 0.5

    reports = [("anna", report(exercise, answered))]
    write_tables(tmp_path, reports, again)
    row = (tmp_path / "grades.csv").read_text().splitlines()[1].split(",")
    assert float(row[5]) == 1.5
    assert float(row[7]) == float(row[3]) + 1.5
    assert float(row[3]) == sum(t.points for t in reports[0][1].tasks) - again[
        made.SET, "anna"
    ][task].out_of + 0.5  # fmt: skip

    changed = sync(tmp_path, exercise, [("anna", report(exercise, {**answered, why: "No."}))])
    assert changed[made.SET, "anna"][why].points is None  # a new text is to be read again


def test_refused_and_not_graded_submissions(tmp_path, exercise):
    order = Order(made.SET, "x", b"")
    bad = refused(order, "the notebook is empty")
    lost = replace(bad, status="not graded", reason="no memory")
    scores = sync(tmp_path, exercise, [("bad", bad), ("lost", lost)])
    assert {score.points for score in scores[made.SET, "bad"].values()} == {0.0}
    assert {score.points for score in scores[made.SET, "lost"].values()} == {None}
    with api.Gradebook(f"sqlite:///{tmp_path}/gradebook.db") as book:
        assert [s.id for s in book.students] == ["bad"]
    write_pages(tmp_path, exercise, [("bad", bad), ("lost", lost)], scores)
    page = next((tmp_path / "feedback" / "lost").rglob("*.html")).read_text()
    assert "Not graded yet: no memory" in page
    assert not (tmp_path / "autograded" / "lost").exists()


def test_a_gradebook_in_which_students_are_many_stays_in_step(tmp_path, exercise):
    reports = [(f"s{n}", report(exercise, student=f"S {n}")) for n in range(5)]
    sync(tmp_path, exercise, reports)
    sync(tmp_path, exercise, reports)
    with api.Gradebook(f"sqlite:///{tmp_path}/gradebook.db") as book:
        assert len(book.students) == 5
        assert {s.score for s in book.assignment_submissions(exercise.name)} == {
            sum(t.points for t in reports[0][1].tasks)
        }


def test_the_feedback_page_takes_nothing_for_markup(exercise):
    hostile = report(exercise, {first_answer(exercise): HOSTILE}, HOSTILE, HOSTILE)
    hostile = replace(hostile, notes=(HOSTILE,), reason="", warning=HOSTILE)
    written = {name: (None, of, HOSTILE) for name, of in exercise.written().items()}
    page = feedback_html(hostile, "Feedback", written)
    assert "<script" not in page
    assert "<img" not in page
    assert page.count("&lt;script&gt;") >= 4
    assert "default-src 'none'" in page
    assert "http" not in page.replace("http-equiv", "")
    assert "\u202e" not in feedback_html(replace(hostile, student="a\u202eb"), "t", {})


@pytest.mark.parametrize(
    "text",
    [HOSTILE, "<IMG SRC=x>", "<!-- x -->", "<?php ?>", "</div><form action=//evil>",
     "[click](javascript:alert(1))", "[x](JaVaScRiPt :alert(1))", "<http://evil>",
     r"$\href{javascript:alert(1)}{x}$", r"$\require{html}\style{x}{y}\cssId{a}{b}$",
     "![x](data:text/html;base64,xxx)", "![x](https://evil/pixel.png)", "![x][1]\n\n[1]: https://e",
     "<a href='x'>"],
)  # fmt: skip
def test_markdown_of_strangers_holds_no_html(text):
    from nbconvert.filters import markdown2html

    found = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag, attributes):
            found.append((tag, dict(attributes)))

    html = markdown2html(harmless_markdown(text))
    Tags().feed(html)
    assert {tag for tag, _ in found} <= {"p", "a", "em", "strong", "code"}, html
    for tag, attributes in found:
        assert set(attributes) <= ({"href"} if tag == "a" else set()), html
        assert attributes.get("href", "#")[:4] in ("http", "#", "#har"), html
    assert "\\href" not in html


def test_markdown_keeps_words_and_formulas():
    text = "If $a < b$ and *c* > d:\n\n```python\nif x < y: pass\n```\n$$\\frac{1}{2}$$"
    assert harmless_markdown(text) == text


def test_formgraders_notebook_is_ours_with_their_words(exercise):
    theirs = report(exercise, {first_answer(exercise): HOSTILE}, message=HOSTILE)
    theirs = replace(theirs, code={t.name: HOSTILE for t in theirs.tasks})
    notebook = for_formgrader(exercise.notebook, theirs)
    import nbformat

    nbformat.validate(nbformat.from_dict(notebook))
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            assert output["output_type"] == "stream"
        if cell["cell_type"] == "markdown":
            assert "<script" not in "".join(cell["source"])
    names = [c["metadata"]["nbgrader"]["grade_id"] for c in notebook["cells"]
             if "nbgrader" in c["metadata"]]  # fmt: skip
    assert names == [marks["grade_id"] for _, marks in exercise.cells()]
    assert json.dumps(exercise.notebook).count(HOSTILE) == 0
