"""The new exercise of docs/instructors.md, section 7, works as it is printed there."""

import re

from course_utils.grading.checks import Task
from course_utils.grading.mutants import Answers, score
from course_utils.grading.notebook import parse
from course_utils.notebooks import Shared, Source, notebook_json

from . import made


def blocks():
    page = (made.ROOT / "docs" / "instructors.md").read_text()
    return re.findall(r"```python\n(.*?)```", page[page.index("## 7") :], re.DOTALL)


def test_the_printed_exercise_builds_and_its_mutants_are_named(tmp_path):
    text, checks, answers = blocks()
    source = Source("lessons/exercises/02_x.py", text, "solutions/02_x.ipynb", "solution")
    book = parse(notebook_json(source, Shared(None, "")).encode())
    task = run(checks)["TASK"]
    assert isinstance(task, Task)
    pieces, _ = book.needed(task.functions)
    known = run(answers)
    solution = "import torch\n" + "\n".join(p.source for p in pieces)
    found = score(task, Answers(solution, known["ALTERNATIVES"], known["MUTANTS"]))
    assert found.perfect, found
    assert f"{task.points:g} points*" in text
    assert f"points={task.points:g}" in text


def run(source: str) -> dict:
    namespace: dict = {}
    exec(source, namespace)
    return namespace
