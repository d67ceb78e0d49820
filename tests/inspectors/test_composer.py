"""AdapterComposer: interpolation against numpy, asking the kernel, the page without one."""

import itertools
import math
from typing import Any

import numpy as np
import pytest

from course_utils.errors import CourseError
from course_utils.inspectors import AdapterComposer
from course_utils.inspectors import page as pages
from course_utils.inspectors.composer import interpolate, nearest

from .conftest import NASTY, settle

RNG = np.random.default_rng(2)


def compose(weights: dict[str, float]) -> dict[str, Any]:
    a, b = weights["pirate"], weights["bard"]
    scores = {"pirate": 0.1 + 0.8 * a - 0.3 * a * b, "sense": 1 - 0.2 * (a + b) ** 2}
    return {"scores": scores, "answers": {"who are you?": f"pirate {a:g} bard {b:g}"}}


def made(**options: Any) -> AdapterComposer:
    return AdapterComposer(["pirate", "bard"], compose, **options)


# ---- numbers ---------------------------------------------------------------------------------


def by_numpy(grid: Any, levels: Any, weights: Any) -> Any:
    """One np.interp along each axis after the other."""
    block = np.array(grid).reshape(*[len(levels)] * len(weights), -1)  # (L, ..., L, S)
    for w in weights:
        block = np.apply_along_axis(lambda column, w=w: np.interp(w, levels, column), 0, block)
    return block


@pytest.mark.parametrize("adapters", [1, 2, 3])
def test_interpolation_is_numpys(adapters: int) -> None:
    levels = [-0.5, 0.0, 1.0, 1.5]
    grid = RNG.normal(size=(len(levels) ** adapters, 2)).tolist()
    for weights in RNG.uniform(-1, 2, size=(20, adapters)).tolist():
        expected = by_numpy(grid, levels, weights)
        assert interpolate(grid, levels, weights) == pytest.approx(expected.tolist())


def test_interpolation_is_exact_on_the_grid_and_unknown_beside_unknown() -> None:
    levels = [0.0, 1.0]
    grid: list[list[float | None]] = [[1.0], [None], [3.0], [4.0]]
    assert interpolate(grid, levels, [0, 0]) == [1.0]
    assert interpolate(grid, levels, [0, 0.5]) == [None]
    assert interpolate(grid, levels, [1, 0.5]) == [3.5]


def test_nearest_is_by_distance() -> None:
    levels, rng = [0.0, 0.5, 1.0], np.random.default_rng(3)
    settings = np.array(list(itertools.product(levels, repeat=2)))
    for weights in rng.uniform(0, 1, size=(20, 2)):
        expected = int(np.argmin(((settings - weights) ** 2).sum(axis=1)))
        assert nearest(levels, weights.tolist()) == expected


def test_the_grid_is_measured_in_order() -> None:
    asked: list[dict[str, float]] = []

    def recorded(weights: dict[str, float]) -> dict[str, Any]:
        asked.append(weights)
        return compose(weights)

    table = AdapterComposer(["pirate", "bard"], recorded, levels=(0.0, 1.0)).table()
    assert [tuple(w.values()) for w in asked] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for _, row in table.iterrows():
        expected = compose({"pirate": row.pirate, "bard": row.bard})["scores"]
        assert row["score pirate"] == pytest.approx(expected["pirate"], abs=1e-3)


def test_at_measures_and_shows() -> None:
    composer = made()
    found = composer.at(pirate=0.7)
    assert found["measured"]
    assert found["weights"] == {"pirate": 0.7, "bard": 0}
    assert found["scores"] == pytest.approx(compose({"pirate": 0.7, "bard": 0})["scores"], rel=1e-3)
    assert found["answers"] == {"who are you?": "pirate 0.7 bard 0"}
    assert composer.ui["weights"] == [0.7, 0]
    with pytest.raises(CourseError, match="no adapter 'ninja' here; there are: pirate, bard"):
        composer.at(ninja=1)


def test_without_a_callable_it_interpolates_and_says_so() -> None:
    grid = [compose({"pirate": a, "bard": b}) for a in (0, 1) for b in (0, 1)]
    composer = AdapterComposer(["pirate", "bard"], levels=(0.0, 1.0), grid=grid)
    found = composer.at(pirate=0.5, bard=0.25)
    assert not found["measured"]
    expected = by_numpy([list(g["scores"].values()) for g in grid], [0, 1], [0.5, 0.25])
    assert list(found["scores"].values()) == pytest.approx(expected.tolist(), rel=1e-3)
    assert composer.at(pirate=1)["measured"]


def test_plain_scores_are_enough() -> None:
    composer = AdapterComposer(["a"], lambda w: {"style": w["a"] * 2})
    assert composer.at(a=0.3)["scores"] == {"style": pytest.approx(0.6)}
    assert composer.summary()["measured"] == 3


# ---- messages --------------------------------------------------------------------------------


def test_a_question_is_answered_with_its_number() -> None:
    composer = made()
    composer.received({"kind": "weights", "weights": [0.25, 1], "seq": 7})
    result = composer.state["result"]
    assert result["seq"] == 7
    assert result["weights"] == [0.25, 1]
    assert result["answers"] == ["pirate 0.25 bard 1"]
    for bad in ({"kind": "other"}, {"kind": "weights", "weights": [1]}, {"kind": "weights"}):
        composer.received(bad)
    composer.received({"kind": "weights", "weights": [None, 1], "seq": 8})
    assert composer.state["result"]["seq"] == 7


def test_a_failing_callable_is_shown_and_raised() -> None:
    def broken(weights: dict[str, float]) -> dict[str, Any]:
        if weights["a"] == 0.3:
            raise ValueError("out of memory")
        return {"style": 1.0}

    composer = AdapterComposer(["a"], broken)
    with pytest.raises(ValueError, match="out of memory"):
        composer.received({"kind": "weights", "weights": [0.3], "seq": 1})
    assert composer.state["notice"] == "compose failed at 0.30 a: ValueError: out of memory"
    assert composer.state["result"]["seq"] == 1  # the page does not wait for ever
    composer.received({"kind": "weights", "weights": [0.4], "seq": 2})
    assert composer.state["notice"] is None


def test_a_style_that_appears_later_is_shown() -> None:
    composer = AdapterComposer(["a"], lambda w: {"x": 1.0, **({"y": 2.0} if w["a"] == 0.3 else {})})
    assert composer.at(a=0.3)["scores"] == {"x": 1, "y": 2}


# ---- bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "options", "said"),
    [
        ([], {}, "adapters' names"),
        (["a", "a"], {}, "each once"),
        (["a"], {"levels": (1.0, 0.0)}, "levels must ascend"),
        (list("abcdefghij"), {"levels": (0, 1, 2)}, "59,049 mixtures"),
        (["a"], {"grid": [{}]}, "1 results; 3 levels of 1 adapters need 3"),
    ],
)
def test_what_cannot_be_measured_is_refused(names: Any, options: Any, said: str) -> None:
    with pytest.raises(CourseError, match=said):
        AdapterComposer(names, lambda w: {"x": 1.0}, **options)


def test_a_result_of_another_shape_is_refused() -> None:
    with pytest.raises(CourseError, match="compose returned float"):
        AdapterComposer(["a"], lambda w: 0.5)  # type: ignore[arg-type,return-value]


def test_nothing_measured_says_so(show: Any) -> None:
    composer = AdapterComposer(["a", "b"])
    assert composer.line() == "AdapterComposer: 0.50 a + 0.50 b"
    assert "not measured" in show(composer).inner_text(".state")


def test_numbers_that_are_not_finite_and_nasty_text(show: Any) -> None:
    def odd(weights: dict[str, float]) -> dict[str, Any]:
        scores = {NASTY: math.nan, "ok": 1.0 if weights["א"] else math.inf}
        return {
            "scores": scores,
            "answers": {NASTY: NASTY, "rtl": "שלום", "emoji": "🦊", "empty": ""},
        }

    page = show(AdapterComposer([NASTY, "א"], odd))
    assert page.evaluate("window.hacked") is None
    assert NASTY in page.inner_text(".replies")
    assert "an empty answer" in page.inner_text(".replies")
    assert "–" in page.inner_text(".styles")


def test_a_notebook_output_is_small_however_long_the_answers() -> None:
    long = AdapterComposer(
        ["a", "b", "c"], lambda w: {"scores": {"x": 1.0}, "answers": {"p": "w " * 800}}
    )
    assert len(long.html().encode()) <= 60_000
    short = long.shortened(9_000)
    assert short["kernel"] is False
    assert len(short["scores"]) == 27


# ---- in the browser --------------------------------------------------------------------------


def test_javascript_interpolates_as_python_does(open_page: Any) -> None:
    script = pages.bundle("composer.js").rsplit("export default", 1)[0]
    extra = "window.inter = interpolate; window.near = nearestSetting;"
    page = open_page(f'<script type="module">{script}\n{extra}</script>')
    levels = [-0.5, 0.0, 1.0, 1.5]
    for adapters in (1, 2, 3):
        grid = RNG.normal(size=(len(levels) ** adapters, 2)).tolist()
        for weights in RNG.uniform(-1, 2, size=(5, adapters)).tolist():
            found = page.evaluate("([g, l, w]) => inter(g, l, w)", [grid, levels, weights])
            assert found == pytest.approx(interpolate(grid, levels, weights))
            index = page.evaluate("([l, w]) => near(l, w).index", [levels, weights])
            assert index == nearest(levels, weights)


def test_a_page_without_a_kernel_interpolates_and_says_so(show: Any) -> None:
    page = show(made())
    page.focus('[aria-label="weight of pirate"]')
    page.keyboard.press("ArrowRight")
    settle(page)
    assert "interpolated" in page.inner_text(".state")
    assert "9 mixtures measured beforehand" in page.inner_text(".state")
    assert "0.50 pirate + 0.50 bard" in page.inner_text(".state")
    assert "pirate 0.5 bard 0.5" in page.inner_text(".replies")
    page.click("text=only pirate")
    settle(page)
    assert "measured" in page.inner_text(".state b")
    assert "pirate 1 bard 0" in page.inner_text(".replies")


def test_a_kernel_is_asked_once_at_a_time_and_for_the_newest(live: Any) -> None:
    composer = made()
    page = live(composer)
    page.focus('[aria-label="weight of pirate"]')
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    settle(page)
    sent = page.evaluate("model.sent")
    assert [m["seq"] for m in sent] == [1]
    assert "asking the kernel" in page.inner_text(".state")
    for expected in (1, 2):
        composer.received(page.evaluate("model.sent.at(-1)"))
        assert composer.state["result"]["seq"] == expected
        page.evaluate("r => model.receive({kind: 'append', at: {}, add: {}, set: {result: r}})",
                      composer.state["result"])  # fmt: skip
        settle(page)
    assert len(page.evaluate("model.sent")) == 2  # the two settings in between were skipped
    assert page.evaluate("model.sent[1].weights") == page.evaluate("model.get('ui').weights")
    assert "measured" in page.inner_text(".state b")
    assert f"pirate {page.evaluate('model.sent[1].weights[0]'):g}" in page.inner_text(".replies")


def test_measured_settings_are_not_asked_again(live: Any) -> None:
    page = live(made())
    page.click("text=only bard")
    settle(page)
    assert page.evaluate("model.sent") == []
    assert page.evaluate("model.get('ui').weights") == [0, 1]


def test_a_weight_is_chosen_in_its_chart_by_keys(live: Any) -> None:
    page = live(made())
    page.locator(".sweeps svg").nth(1).focus()
    page.keyboard.press("End")
    page.keyboard.press("Enter")
    settle(page)
    assert page.evaluate("model.get('ui').weights") == [0.5, 1]


def test_looks(show: Any, shot: Any) -> None:
    for name, options in (("light", {}), ("dark", {"dark": True}), ("narrow", {"width": 400})):
        page = show(made().show(weights=[0.7, 0.3]), **options)
        settle(page)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        shot(page, f"composer-{name}")
