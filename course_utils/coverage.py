"""Which cell of which lesson carries which slide of the lecture: docs/coverage.md, and what lacks.

lessons/slides.toml lists the slides and words that must be said; a lesson's markdown cell names the
slides it carries in its metadata (`slides="7 8"`).
"""

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from course_utils.errors import CourseError

PAGE = "docs/coverage.md"
SOURCE = "lessons/slides.toml"
_HEADING = re.compile(r"#{1,4} +(.+)")
_HEAD = """# Where each slide of the lecture is taught

Written by `course build` from `lessons/slides.toml` and the lessons; do not edit. Every slide has
a home, and a check fails when one of its key words is in none of its cells.

| slide | what it says | taught in |
|---|---|---|
"""


@dataclass(frozen=True)
class Slide:
    number: int
    title: str
    says: tuple[str, ...]  # words that its cells must contain


@dataclass(frozen=True)
class Carried:
    """One cell that carries a slide."""

    notebook: str  # path relative to the project, with /
    heading: str  # the nearest at or above the cell
    text: str


def read_slides(text: str) -> list[Slide]:
    """The slides of slides.toml. Raises CourseError naming what is wrong with the file."""
    try:
        rows = tomllib.loads(text)["slide"]
        slides = [Slide(row["number"], row["title"], tuple(row["says"])) for row in rows]
    except (ValueError, KeyError, TypeError) as error:
        raise CourseError(f"{SOURCE} cannot be read: {error!r}") from error
    numbers = [slide.number for slide in slides]
    if numbers != list(range(1, len(slides) + 1)):
        raise CourseError(f"{SOURCE}: slides must be numbered 1, 2, 3 … in order, not {numbers}")
    return slides


def carried(notebooks: Mapping[str, Any]) -> dict[int, list[Carried]]:
    """Slide number -> the cells that carry it, in order.

    Args: notebooks: path -> parsed notebook.
    Raises: CourseError where a cell's `slides` is not a list of numbers.
    """
    found: dict[int, list[Carried]] = {}
    for path, notebook in notebooks.items():
        heading = path
        for cell in notebook["cells"]:
            text = "".join(cell["source"])
            if cell["cell_type"] == "markdown" and (match := _first_heading(text)):
                heading = match
            for number in _numbers(path, heading, cell["metadata"].get("slides", "")):
                found.setdefault(number, []).append(Carried(path, heading, text))
    return found


def _first_heading(text: str) -> str:
    match = _HEADING.match(text.lstrip())
    return match[1].strip() if match else ""


def _numbers(path: str, heading: str, value: Any) -> list[int]:
    try:
        return [int(word) for word in str(value).split()]
    except ValueError:
        raise CourseError(
            f'{path}, "{heading}": slides="{value}" must be numbers with blanks between, like "7 8"'
        ) from None


def missing(slides: Iterable[Slide], found: Mapping[int, list[Carried]]) -> list[str]:
    """What the lessons do not say yet, one line for each slide; empty when all is there."""
    lines, known = [], set()
    for slide in slides:
        known.add(slide.number)
        said = "\n".join(cell.text for cell in found.get(slide.number, [])).lower()
        lacking = [word for word in slide.says if word.lower() not in said]
        if not said:
            lines.append(f"slide {slide.number} ({slide.title}): no cell carries it")
        elif lacking:
            lines.append(f"slide {slide.number} ({slide.title}): no cell says {', '.join(lacking)}")
    lines += [f"there is no slide {number}" for number in sorted(found.keys() - known)]
    return lines


def page(slides: Iterable[Slide], found: Mapping[int, list[Carried]]) -> str:
    """docs/coverage.md."""
    rows = []
    for slide in slides:
        places = dict.fromkeys((c.notebook, c.heading) for c in found.get(slide.number, []))
        links = [
            f"[{notebook.split('/')[-1][:2]}](../{notebook}) {heading.replace('|', '/')}"
            for notebook, heading in places
        ]
        rows.append(f"| {slide.number} | {slide.title} | {'<br>'.join(links) or 'nowhere yet'} |\n")
    return _HEAD + "".join(rows)
