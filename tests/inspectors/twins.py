"""Holds the formulas of an explorer's ES module to their Python twins, in the browser."""

import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any

from course_utils.inspectors import page as pages
from course_utils.inspectors.explorers.explorer import Explorer


class Maths:
    """The module of an explorer in a tab, without its page: only its formulas."""

    def __init__(self, open_page: Callable[..., Any], explorer: Explorer, names: str = "") -> None:
        script = pages.bundle(explorer.module).rsplit("export default", 1)[0]
        asked = ", ".join(["compute", "checkAll", "Refusal", *names.split()])
        html = (
            '<!doctype html><meta charset="utf-8"><script type="module">\n'
            f"{script}\nwindow.own = {{ {asked} }};\n"
            f"window.state = {pages.script_json(explorer.state)};\n"
            "window.at = (chosen) => { try { own.checkAll(state.inputs, chosen);"
            " return own.compute(chosen, state); } catch (e) {"
            " if (!(e instanceof own.Refusal)) throw e; return { refused: e.message }; } };\n"
            "</script>"
        )
        self.tab = open_page(html)
        self.tab.wait_for_function("() => Boolean(window.at)")

    def at(self, inputs: list[dict[str, Any]]) -> list[Any]:
        """compute() at each of the inputs, or {"refused": message}."""
        return self.tab.evaluate("(list) => list.map(at)", inputs)

    def run(self, expression: str, argument: Any = None) -> Any:
        return self.tab.evaluate(expression, argument)


def grid(**values: Iterable[Any]) -> list[dict[str, Any]]:
    """Every combination."""
    return [dict(zip(values, row, strict=True)) for row in itertools.product(*values.values())]


def same(ours: Any, theirs: Any, tolerance: float = 1e-12, where: str = "") -> None:
    """Fails unless two nested results are equal, numbers to a relative `tolerance`."""
    if isinstance(ours, dict):
        assert isinstance(theirs, dict), f"{where}: {theirs!r}"
        for name in ours:
            assert name in theirs, f"{where}.{name} is missing in JavaScript"
            same(ours[name], theirs[name], tolerance, f"{where}.{name}")
    elif isinstance(ours, list):
        assert len(ours) == len(theirs), where
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            same(a, b, tolerance, f"{where}[{i}]")
    elif isinstance(ours, float):
        assert math.isfinite(ours), f"{where}: {ours}"
        assert math.isclose(ours, theirs, rel_tol=tolerance, abs_tol=tolerance), (
            f"{where}: Python {ours!r}, JavaScript {theirs!r}"
        )
    else:
        assert ours == theirs, f"{where}: Python {ours!r}, JavaScript {theirs!r}"


def hold(maths: Maths, explorer: Explorer, points: list[dict[str, Any]], **how: Any) -> None:
    """Fails unless Python and JavaScript agree at every point, refusals included."""
    from course_utils.errors import CourseError

    full = [explorer.chosen | point for point in points]
    for inputs, theirs in zip(full, maths.at(full), strict=True):
        try:
            ours = explorer.frame(**inputs)
        except CourseError:
            assert "refused" in theirs, f"Python refuses {inputs}, JavaScript does not"
            continue
        same(ours, theirs, where=str(inputs), **how)
