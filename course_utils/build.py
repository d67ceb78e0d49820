"""`course build`: the sources in lessons/ -> notebooks/, exercises/ and solutions/.

    lessons/NN_name.py             ->  notebooks/NN_name.ipynb
    lessons/exercises/NN_name.py   ->  exercises/NN_name.ipynb (holes)  and  solutions/NN_name.ipynb
    lessons/_setup.py              ->  the setup cell of all of them
    lessons/slides.toml            ->  docs/coverage.md: which cell carries which slide

The same sources give the same bytes; `course build --check` says what has drifted and fails.
"""

import argparse
import difflib
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from course_utils import coverage
from course_utils.errors import CourseError
from course_utils.files import write_atomic
from course_utils.notebooks import Shared, Source, Variant, notebook_json

FOLDERS = ("notebooks", "exercises", "solutions")
_NAME = re.compile(r"\d\d_\w+\.py")
_SHOWN_LINES = 6  # changed lines printed for each notebook that has drifted


def main(args: argparse.Namespace) -> int:
    """Builds, or with `args.check` compares. Returns the exit status: 1 where something drifted."""
    root = find_root(Path.cwd())
    wanted = build(root)
    stale = stale_notebooks(root, wanted)
    made = f"{len(wanted)} notebooks"
    covered, lacking = _coverage(root, wanted)
    wanted |= covered
    drifted = {path: text for path, text in wanted.items() if _on_disk(root / path) != text}
    if args.check:
        for path, text in drifted.items():
            print(describe_drift(path, _on_disk(root / path), text))
    else:
        for path, text in drifted.items():
            write_atomic(root / path, text)
            print(f"wrote {path}")
    for path in stale:
        print(f"{path}: stale, its source is gone; delete it")
    for line in lacking:
        print(f"{coverage.SOURCE}: {line}")
    if args.check and (drifted or stale or lacking):
        todo = "" if not (drifted or stale) else ": run `course build` and commit the result"
        print(f"{made}, {len(drifted)} files not as built{todo}")
        return 1
    print(f"{made}, {len(wanted) - len(drifted)} of {len(wanted)} files already up to date")
    return 0


def _coverage(root: Path, notebooks: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """docs/coverage.md as a file to write, and what the lessons do not say yet."""
    if not (root / coverage.SOURCE).exists():
        return {}, []
    slides = coverage.read_slides(_read(root / coverage.SOURCE))
    lessons = {path: json.loads(text) for path, text in notebooks.items() if "notebooks/" in path}
    found = coverage.carried(lessons)
    return {coverage.PAGE: coverage.page(slides, found)}, coverage.missing(slides, found)


def find_root(start: Path) -> Path:
    """The checkout's folder: `start` or the nearest above it with the course's pyproject.toml."""
    for folder in (start.resolve(), *start.resolve().parents):
        if (_pyproject(folder).get("project") or {}).get("name") == "course_utils":
            return folder
    raise CourseError(
        f"{start} is not inside a checkout of the course (no pyproject.toml of course_utils here "
        "or above), and only a checkout has the lessons' sources; change into one and try again"
    )


def _pyproject(folder: Path) -> dict[str, Any]:
    try:
        return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def build(root: Path) -> dict[str, str]:
    """All notebooks of a checkout: path relative to `root` (with /) -> the file's text."""
    repository = _pyproject(root).get("tool", {}).get("course", {}).get("repository") or None
    shared = Shared(repository, _setup_cell(root, repository))
    return {source.notebook: notebook_json(source, shared) for source in sources(root)}


def solution_notebook(root: Path, set: str) -> str:
    """An exercise set's ("02") notebook with its solutions, as built: the file's text.

    Raises CourseError where lessons/exercises has no source of that set.
    """
    for source in sources(root):
        if source.variant == "solution" and Path(source.notebook).name.startswith(f"{set}_"):
            return notebook_json(source, Shared(None, ""))
    raise CourseError(f"{root / 'lessons' / 'exercises'} has no source of set {set!r}")


def _setup_cell(root: Path, repository: str | None) -> str:
    text = _read(root / "lessons" / "_setup.py")
    return text.replace("@REPOSITORY@", repository or "").strip("\n")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CourseError(f"{path} cannot be read as UTF-8 text: {error}") from error


def sources(root: Path) -> Iterator[Source]:
    """One Source for each notebook to make, in order of the notebooks' names."""
    kinds: list[tuple[str, str, Variant]] = [
        ("lessons", "notebooks", "lesson"),
        ("lessons/exercises", "exercises", "exercise"),
        ("lessons/exercises", "solutions", "solution"),
    ]
    for folder, target, variant in kinds:
        for path in sorted((root / folder).glob("*.py")):
            if _NAME.fullmatch(path.name):
                text = _read(path)
                yield Source(f"{folder}/{path.name}", text, f"{target}/{path.stem}.ipynb", variant)


def _on_disk(path: Path) -> str | None:
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        return ""


def stale_notebooks(root: Path, wanted: dict[str, str]) -> list[str]:
    """Notebooks that we once built and no source makes any more; a student's own are left out."""
    found = []
    for folder in FOLDERS:
        for path in sorted((root / folder).glob("*.ipynb")):
            name = f"{folder}/{path.name}"
            source = _parsed(_on_disk(path)).get("metadata", {}).get("course", {}).get("source", "")
            copied = Path(source).stem != path.stem  # "Save as": still says where it came from
            if source and name not in wanted and not copied:
                found.append(name)
    return found


def _parsed(text: str | None) -> dict[str, Any]:
    try:
        notebook = json.loads(text or "")
    except ValueError:
        return {}
    return notebook if isinstance(notebook, dict) else {}


def describe_drift(path: str, found: str | None, wanted: str) -> str:
    """What is different about a notebook on disk: one line, then the first changed source lines."""
    if found is None:
        return f"{path}: missing"
    if not path.endswith(".ipynb"):
        return f"{path}: out of date"
    old, new = _parsed(found), _parsed(wanted)
    if not old:
        return f"{path}: not a notebook (damaged JSON)"
    before, after = _lines(old), _lines(new)
    changes = [
        line
        for line in difflib.unified_diff(before, after, n=0, lineterm="")
        if line[:1] in "+-" and not line.startswith(("+++", "---"))
    ]
    if not changes:
        outputs = any(c.get("outputs") or c.get("execution_count") for c in old.get("cells", []))
        return f"{path}: " + ("has outputs" if outputs else "metadata or layout differs")
    more = len(changes) - _SHOWN_LINES
    tail = [f"    … {more} more"] if more > 0 else []
    removed = sum(line.startswith("-") for line in changes)
    head = f"{path}: {removed} lines must go, {len(changes) - removed} must come"
    return "\n".join([head, *(f"    {line}" for line in changes[:_SHOWN_LINES]), *tail])


def _lines(notebook: dict[str, Any]) -> list[str]:
    cells = notebook.get("cells", [])
    return [line for cell in cells for line in "".join(cell.get("source", "")).splitlines()]
