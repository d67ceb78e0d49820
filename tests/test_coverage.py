"""Every slide of the lecture has a home, and the build says which has not."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from course_utils import build, coverage
from course_utils.errors import CourseError

ROOT = Path(__file__).parents[1]


def markdown(source: str, **metadata: Any) -> dict[str, Any]:
    return {"cell_type": "markdown", "source": [source], "metadata": metadata}


NOTEBOOKS = {
    "notebooks/01_a.ipynb": {
        "cells": [
            markdown("# Title\nabout LoRA", slides="1"),
            {"cell_type": "code", "source": ["# a comment, no heading"], "metadata": {}},
            markdown("more on *merging*", slides="1 2"),
            markdown("## Next | one\nnothing"),
            markdown("said here", slides="2"),
        ]
    }
}


def test_cells_are_found_with_the_heading_they_stand_under() -> None:
    found = coverage.carried(NOTEBOOKS)
    assert [(c.heading, c.text) for c in found[2]] == [
        ("Title", "more on *merging*"),
        ("Next | one", "said here"),
    ]


def test_what_is_missing_is_named() -> None:
    slides = [
        coverage.Slide(1, "one", ("lora", "Merging")),
        coverage.Slide(2, "two", ("said", "never")),
        coverage.Slide(3, "three", ()),
    ]
    found = coverage.carried(NOTEBOOKS)
    found[9] = found[1]
    assert coverage.missing(slides, found) == [
        "slide 2 (two): no cell says never",
        "slide 3 (three): no cell carries it",
        "there is no slide 9",
    ]
    page = coverage.page(slides, found)
    assert "| 2 | two | [01](../notebooks/01_a.ipynb) Title<br>[01]" in page
    assert "Next / one" in page
    assert "| 3 | three | nowhere yet |" in page


def test_faults() -> None:
    with pytest.raises(CourseError, match='slides="seven" must be numbers'):
        coverage.carried({"n": {"cells": [markdown("# T", slides="seven")]}})
    with pytest.raises(CourseError, match="in order, not"):
        coverage.read_slides('[[slide]]\nnumber = 2\ntitle = "x"\nsays = []')
    for text in ("[[slide]]\nnumber = 1", "= 3", "x = 1"):
        with pytest.raises(CourseError, match="cannot be read"):
            coverage.read_slides(text)


def test_the_build_writes_the_page_and_fails_for_a_missing_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lessons").mkdir()
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "course_utils"\n')
    (tmp_path / "lessons/_setup.py").write_text("")
    (tmp_path / "lessons/01_a.py").write_text('# %% [markdown] slides="1"\n# # Head\n# words\n')
    slides = tmp_path / "lessons/slides.toml"
    slides.write_text('[[slide]]\nnumber = 1\ntitle = "x"\nsays = ["Words"]\n')
    monkeypatch.chdir(tmp_path)
    assert build.main(SimpleNamespace(check=False)) == 0  # type: ignore[arg-type]
    assert "[01](../notebooks/01_a.ipynb) Head" in (tmp_path / "docs/coverage.md").read_text()
    cells = json.loads((tmp_path / "notebooks/01_a.ipynb").read_text())["cells"]
    assert cells[0]["metadata"]["slides"] == "1"
    assert build.main(SimpleNamespace(check=True)) == 0  # type: ignore[arg-type]
    (tmp_path / "docs/coverage.md").write_text("old")
    assert build.main(SimpleNamespace(check=True)) == 1  # type: ignore[arg-type]
    assert "docs/coverage.md: out of date" in capsys.readouterr().out
    build.main(SimpleNamespace(check=False))  # type: ignore[arg-type]
    slides.write_text(slides.read_text().replace("Words", "wards"))
    assert build.main(SimpleNamespace(check=True)) == 1  # type: ignore[arg-type]
    assert "slide 1 (x): no cell says wards" in capsys.readouterr().out


def test_this_lecture_has_twenty_four_slides() -> None:
    assert len(coverage.read_slides((ROOT / coverage.SOURCE).read_text(encoding="utf-8"))) == 24
