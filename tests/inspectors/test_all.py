"""Every inspector at once: in one executed notebook, and on one page without a kernel."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest

from course_utils import inspectors
from course_utils.inspectors.base import Inspector

HERE = Path(__file__).parent
ABSTRACT = {"Inspector", "RunInspector"}


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, int]:
    """A notebook that shows one of each, run by nbclient, and its size on the disk in bytes.

    As the site and JupyterLab save it, without the widgets' state: that would hold every script a
    second time, and the HTML layer needs no state.
    """
    from nbclient import NotebookClient

    folder = tmp_path_factory.mktemp("all")
    cells = [
        f"import sys; sys.path[:0] = [{str(HERE.parents[1])!r}, {str(HERE)!r}]\n"
        "from pathlib import Path\nfrom IPython.display import display\nfrom made import every",
        "for one in every(Path('all')).values():\n    display(one)",
    ]
    notebook = nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, cells)))
    where = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=240, resources=where, store_widget_state=False).execute()
    nbformat.write(notebook, folder / "all.ipynb")
    return notebook, (folder / "all.ipynb").stat().st_size


def shown(notebook: Any) -> list[dict[str, str]]:
    return [o["data"] for o in notebook.cells[1].outputs if o["output_type"] == "display_data"]


def test_there_is_one_of_each(tmp_path: Path) -> None:
    from .made import every

    public = {name: getattr(inspectors, name) for name in inspectors.__all__}
    classes = {n for n, v in public.items() if inspect.isclass(v) and issubclass(v, Inspector)}
    assert every(tmp_path).keys() == classes - ABSTRACT


def test_a_notebook_with_all_of_them_stays_below_a_megabyte(executed: tuple[Any, int]) -> None:
    notebook, size = executed
    assert len(shown(notebook)) == len(inspectors.__all__) - len(ABSTRACT) - 2  # two functions
    assert size < 1_000_000, f"{size:,} bytes"
    for data in shown(notebook):
        assert len(data["text/html"].encode()) <= 60_000
        assert ": " in data["text/plain"]


def test_their_outputs_live_on_one_page_without_a_kernel(
    executed: tuple[Any, int], open_page: Callable[..., Any], shot: Callable[[Any, str], None]
) -> None:
    """What the course's site shows: all outputs' scripts share the page, nothing is fetched."""
    outputs = [data["text/html"] for data in shown(executed[0])]
    page = open_page('<!doctype html><meta charset="utf-8">' + "\n".join(outputs))
    page.wait_for_function(f"document.querySelectorAll('.cui').length === {len(outputs)}")
    assert page.locator(".cui .fault").count() == 0
    # and they react: each slider of an explorer redraws its numbers
    clip = page.locator(".cui", has_text="PPO's clip").last
    before = clip.inner_text()
    clip.locator("input[type=range]").first.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_timeout(200)
    assert clip.inner_text() != before
    shot(page, "all")
