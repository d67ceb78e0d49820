"""Inspectors in a real kernel and in a real JupyterLab."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .jupyter import jupyterlab

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CELLS = (
    f"import sys, time; sys.path[:0] = [{str(ROOT)!r}, {str(HERE)!r}]\n"
    "from pathlib import Path\nfrom made import ppo_row, ppo_run, random\n"
    "from course_utils.inspectors import MaskViewer, RewardKLDashboard, RolloutInspector, watch\n"
    "class Words:\n    all_special_ids = (0,)\n"
    "    def decode(self, ids): return ' '.join('abc'[i] for i in ids)\n"
    "run = ppo_run(Path('run'), 12, 4)",
    "rollouts = RolloutInspector(run)\nrollouts",
    "MaskViewer([dict(input_ids=[0, 1, 2], labels=[-100, 1, 2])], Words())",
    "from made import every\nfrom IPython.display import display\n"
    "others = [v for k, v in every(Path('all')).items() if k not in "
    "('RolloutInspector', 'RewardKLDashboard', 'MaskViewer')]\n"
    "for other in others: display(other)",
    "board = watch(run, every=0.1)\nboard",
    "for step in range(13, 20):\n"
    "    run.append(ppo_row(random.Random(step), step, 22)); time.sleep(0.3)\nprint('trained')",
)


def test_three_layers_from_a_kernel() -> None:
    """With COURSE_COLAB_PYTHON the same on Colab's versions; colab.py says how to make them."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for python in filter(None, (sys.executable, os.environ.get("COURSE_COLAB_PYTHON"))):
        path = f"{Path(python).parent}{os.pathsep}{environment['PATH']}"
        subprocess.run(
            [python, HERE / "colab.py"], env={**environment, "PATH": path}, check=True, timeout=280
        )


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[str]:
    """The address of a JupyterLab that has one notebook, all.ipynb."""
    with jupyterlab(tmp_path, "all.ipynb", list(CELLS)) as address:
        yield address


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_in_jupyterlab_all_are_drawn_follow_and_react(lab: str, chromium: Any, shot: Any) -> None:
    page = chromium.new_page()
    page.set_viewport_size({"width": 1300, "height": 2600})
    foreign: list[str] = []
    page.on(
        "request",
        lambda r: None if r.url.startswith((lab, "blob:", "data:")) else foreign.append(r.url),
    )
    page.goto(f"{lab}lab/tree/all.ipynb")
    # The status bar, not the notebook's own sign, which says "idle" before there is a kernel.
    page.wait_for_function("document.body.innerText.includes('(ipykernel) | Idle')")
    page.evaluate("void jupyterapp.commands.execute('notebook:run-all-cells')")
    page.wait_for_selector(".board .panel")
    # While the last cell trains, rows reach the dashboard ...
    page.wait_for_function("document.querySelector('.tile b')?.textContent > 13")
    page.wait_for_selector("text=trained")
    page.wait_for_function("document.querySelector('.tile b')?.textContent === '19'")
    assert page.locator(".cui").count() == 17
    # ... and the slider moves, in the browser, and Python hears of it.
    slider = page.locator(".cui input[type=range]").first
    slider.focus()
    page.keyboard.press("ArrowLeft")
    page.wait_for_function("document.querySelector('.slider span').textContent === 'step 8'")
    assert page.locator(".cui .token").count() > 10
    assert page.locator(".cui .fault").count() == 0
    shot(page, "jupyterlab")
    assert not foreign, foreign
    page.close()
