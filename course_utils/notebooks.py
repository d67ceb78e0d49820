"""One py:percent source -> one notebook without outputs: cells, holes, tags, ids that never change.

What a source may use beyond plain cells (all of it disappears from what the reader sees):

| in the source | becomes |
|---|---|
| a code cell tagged `setup` | the course's shared setup cell |
| a code cell tagged `hidden-test` | asserts that nbmake runs after the code cell above |
| `### BEGIN SOLUTION` … `### END SOLUTION` | in the exercise variant a hole that raises |
| a code cell tagged `hide-input` | a cell whose code is folded away (JupyterLab, Colab, the site) |
| a cell tagged `solution-only` | is left out of the exercise variant |
| cell metadata `task="name"` | nbgrader's metadata (see `_grade`); with `points=3` a graded cell |
| `seconds=90` on the first cell | the notebook's metadata: what it takes on tier tiny, two cores |
"""

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any, Literal

from course_utils.errors import CourseError

Variant = Literal["lesson", "exercise", "solution"]

BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
HOLE = 'raise NotImplementedError("your code here")'
ANSWER_HOLE = "*Your answer here.*"
TIMEOUT = 600  # seconds a cell may take under nbmake


@dataclass(frozen=True)
class Source:
    """A py:percent file and what the notebook made of it is called."""

    path: str  # for messages and the notebook's metadata, relative to the project, with /
    text: str
    notebook: str  # the notebook's path relative to the project, with /
    variant: Variant


@dataclass(frozen=True)
class Shared:
    """What every notebook gets: the badge (None without a public repository) and the setup cell."""

    repository: str | None  # "owner/name" on GitHub
    setup: str


def notebook_json(source: Source, shared: Shared) -> str:
    """The notebook file's text: the same bytes for the same source, on every run and machine."""
    import nbformat

    cells = [_clean(cell, number) for number, cell in enumerate(_read(source), 1)]
    seconds = cells[0]["metadata"].pop("seconds", None) if cells else None
    cells = [cell for cell in cells if not _left_out(cell, source.variant)]
    for cell in cells:
        if "setup" in _tags(cell):
            cell["source"] = shared.setup
        if "hide-input" in _tags(cell):
            cell["metadata"] |= {"cellView": "form", "jupyter": {"source_hidden": True}}
    cells = _attach_hidden_tests(cells, source)
    for cell in cells:
        number = cell.pop("number")  # in the source, for messages
        _grade(cell, source, number)
        cell["source"] = _open_holes(cell, source, number)
    if shared.repository:
        cells.insert(0, _badge(shared.repository, source))
    _number(cells, source.notebook)
    notebook = {
        "cells": [_for_file(cell) for cell in cells],
        "metadata": _metadata(source, seconds),
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    nbformat.validate(nbformat.from_dict(notebook))
    return json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _read(source: Source) -> list[Any]:
    import jupytext

    try:
        return list(jupytext.reads(source.text, fmt="py:percent").cells)
    except Exception as error:  # jupytext raises many kinds
        raise CourseError(f"{source.path} cannot be read as py:percent: {error}") from error


def _fault(source: Source, number: int, what: str) -> CourseError:
    return CourseError(f"{source.path} cell {number}: {what}")


def _clean(cell: Any, number: int) -> dict[str, Any]:
    """Keeps what the source says and nothing that a jupytext version may add."""
    metadata = {k: v for k, v in cell.metadata.items() if k not in ("lines_to_next_cell", "title")}
    source = cell.source.strip("\n")
    return {"cell_type": cell.cell_type, "source": source, "metadata": metadata, "number": number}


def _tags(cell: dict[str, Any]) -> list[str]:
    return list(cell["metadata"].get("tags", []))


def _left_out(cell: dict[str, Any], variant: Variant) -> bool:
    return variant == "exercise" and "solution-only" in _tags(cell)


def _attach_hidden_tests(cells: list[dict[str, Any]], source: Source) -> list[dict[str, Any]]:
    """Moves each `hidden-test` cell into nbmake's metadata of the code cell above it."""
    kept: list[dict[str, Any]] = []
    for cell in cells:
        if "hidden-test" not in _tags(cell):
            kept.append(cell)
            continue
        above = next((c for c in reversed(kept) if c["cell_type"] == "code"), None)
        if above is None:
            raise _fault(source, cell["number"], "a hidden-test needs a code cell above it")
        nbmake = above["metadata"].setdefault("nbmake", {})
        nbmake.setdefault("post_cell_execute", []).append(cell["source"])
    return kept


def _grade(cell: dict[str, Any], source: Source, number: int) -> None:
    """Writes nbgrader's metadata for a cell with `task="name"` (and `points=` where it is graded).

    A code cell with a hole is the student's own; one with points holds checks and is locked; a
    markdown cell with points is an answer in words that the instructor grades.
    """
    task, points = cell["metadata"].pop("task", None), cell["metadata"].pop("points", None)
    hole = BEGIN in cell["source"]
    if task is None:
        if hole and source.variant != "lesson":
            raise _fault(source, number, 'a hole needs task="name" in its %% line')
        if points is not None:
            raise _fault(source, number, 'points need task="name" beside them')
        return
    if not hole and points is None:
        raise _fault(source, number, f"task {task!r} has neither a hole nor points")
    graded = points is not None
    words = cell["cell_type"] == "markdown"
    if hole and graded and not words:
        raise _fault(source, number, "put the points on the check, not on the hole")
    cell["metadata"]["nbgrader"] = {
        "grade": graded,
        "grade_id": f"{task}-check" if graded and not hole else task,
        "locked": graded and not hole,
        "schema_version": 3,
        "solution": hole,
        "task": False,
        **({"points": points} if graded else {}),
    }


def _open_holes(cell: dict[str, Any], source: Source, number: int) -> str:
    """The cell's source for its variant: holes in exercises, no markers in solutions."""
    kept: list[str] = []
    inside = False
    for line in cell["source"].splitlines():
        marker = line.strip()
        if marker not in (BEGIN, END):
            if not (inside and source.variant == "exercise"):
                kept.append(line)
            continue
        if (marker == BEGIN) is inside:
            raise _fault(source, number, f"{marker!r} without its partner")
        inside = marker == BEGIN
        if inside and source.variant == "exercise":
            indent = line[: len(line) - len(line.lstrip())]
            kept.append(indent + (HOLE if cell["cell_type"] == "code" else ANSWER_HOLE))
    if inside:
        raise _fault(source, number, f"{BEGIN!r} without {END!r}")
    return "\n".join(kept)


def _badge(repository: str, source: Source) -> dict[str, Any]:
    where = f"https://colab.research.google.com/github/{repository}/blob/main/{source.notebook}"
    image = "https://colab.research.google.com/assets/colab-badge.svg"
    text = f"[![Open in Colab]({image})]({where})"
    return {"cell_type": "markdown", "source": text, "metadata": {"tags": ["badge"]}}


def _number(cells: list[dict[str, Any]], notebook: str) -> None:
    """Gives each cell an id from the notebook's name and the cell's words.

    Only identical cells are told apart by their order, so an inserted cell changes no other's id.
    """
    seen: dict[str, int] = {}
    for cell in cells:
        content = f"{notebook}\0{cell['cell_type']}\0{cell['source']}"
        ordinal = seen[content] = seen.get(content, 0) + 1
        cell["id"] = hashlib.sha256(f"{content}\0{ordinal}".encode()).hexdigest()[:12]


def _for_file(cell: dict[str, Any]) -> dict[str, Any]:
    lines = re.findall(r"[^\n]*\n|[^\n]+", cell["source"])  # only \n ends a line, as in nbformat
    if cell["cell_type"] == "code":
        cell = {**cell, "execution_count": None, "outputs": []}
    return {**cell, "source": lines}


def _metadata(source: Source, seconds: int | None) -> dict[str, Any]:
    budget = {} if seconds is None else {"budget": {"seconds": seconds, "tier": "tiny"}}
    return {
        "accelerator": "GPU",
        "colab": {"provenance": [], "toc_visible": True},
        "course": {"source": source.path, "variant": source.variant, **budget},
        "execution": {"timeout": TIMEOUT},
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
