"""PreferenceLabeller in a real JupyterLab, whose kernel is killed while a reader labels."""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from course_utils.data.labels import read_labels

from .conftest import CHROMIUM, FLAGS, SHOTS
from .jupyter import jupyterlab, wait

ROOT = Path(__file__).parents[2]
CELL = f"""
import os, sys
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
from course_utils.inspectors import PreferenceLabeller
Path("kernel.pid").write_text(str(os.getpid()))
pairs = [(f"ask {{i}}", f"one {{i}}", f"other {{i}}") for i in range(40)]
PreferenceLabeller(pairs, "labels.jsonl")
"""

ACCEPT = ".jp-Dialog button.jp-mod-accept"


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[str]:
    """The address of a notebook in a JupyterLab that has settings of its own."""
    with jupyterlab(tmp_path, "book.ipynb", [CELL]) as address:
        yield f"{address}lab/tree/book.ipynb"


@pytest.fixture
def page(playwright: Any, tmp_path: Path) -> Iterator[Any]:
    """A page of a browser with a profile, as a reader's has."""
    context = playwright.chromium.launch_persistent_context(
        str(tmp_path / "profile"),
        executable_path=CHROMIUM,
        args=FLAGS,
        viewport={"width": 1500, "height": 900},
    )
    context.set_default_timeout(40_000)
    yield context.new_page()
    context.close()


def run_all(page: Any, pid: Path) -> None:
    """Runs the cell, which writes `pid`. JupyterLab may ask first which kernel is to do it."""
    idle = '.jp-Notebook-ExecutionIndicator[data-status="idle"]'
    page.wait_for_selector(idle, state="attached")
    for _ in range(10):
        page.evaluate("void jupyterapp.commands.execute('notebook:run-all-cells')")
        page.wait_for_timeout(500)
        if page.locator(ACCEPT).count():
            page.locator(ACCEPT).first.click()
        with contextlib.suppress(AssertionError):
            wait(pid.exists, "the cell to run", seconds=8)
            return
    raise AssertionError("the cell was never run")


def says(page: Any, place: str, text: str) -> None:
    page.wait_for_function(
        "([place, text]) => document.querySelector(place)?.textContent.includes(text)",
        arg=[f".cui {place}", text],
    )


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_labels_survive_the_death_of_a_real_kernel(lab: str, page: Any, tmp_path: Path) -> None:
    path, pid = tmp_path / "labels.jsonl", tmp_path / "kernel.pid"
    foreign: list[str] = []
    own = (lab.split("lab/")[0], "blob:", "data:")
    page.on("request", lambda r: None if r.url.startswith(own) else foreign.append(r.url))

    def label(keys: str, labelled: int) -> None:
        page.locator(".cui .stage").focus()
        for key in keys.split():
            page.keyboard.press(key)
        says(page, ".done-so-far", f"{labelled} of 40")

    page.goto(lab)
    run_all(page, pid)
    page.wait_for_selector(".cui .stage")
    label("ArrowLeft ArrowRight =", 3)
    says(page, ".status", "every label is in")
    assert len(read_labels(path).records) == 3
    for life in (1, 2):
        os.kill(int(pid.read_text()), signal.SIGKILL)
        pid.unlink()
        label("ArrowLeft s = ArrowRight", 3 + 4 * life)  # the reader has not noticed
        says(page, ".status", "kept in this browser until the kernel answers")
        assert len(read_labels(path).records) == 4 * life - 1
        page.locator(ACCEPT).click()  # "the kernel has died"
        if life == 2:  # the page goes away, too
            page.reload()
            page.wait_for_selector(".jp-Notebook")
        run_all(page, pid)
        wait(lambda n=3 + 4 * life: len(read_labels(path).records) == n, "what was kept")
        says(page, ".status", "every label is in")
    if os.environ.get("COURSE_SHOTS"):
        page.screenshot(path=str(SHOTS / "labeller-jupyterlab.png"))
    assert len(read_labels(path).records) == 11
    assert not foreign, foreign
