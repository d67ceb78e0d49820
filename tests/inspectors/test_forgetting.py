"""ForgettingPlot: what is forgotten at equal task loss, against numpy; runs, bad input, reading."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from course_utils.errors import CourseError
from course_utils.inspectors import ForgettingPlot
from course_utils.inspectors import page as pages
from course_utils.inspectors.forgetting import crossing
from course_utils.training.run import RunLog

from .conftest import NASTY, settle

RNG = np.random.default_rng(1)


def path(floor: float, cost: float, n: int = 9) -> list[dict[str, float]]:
    """A task loss that falls from 3 to about `floor`, a base loss that rises by about `cost`."""
    k = np.arange(n)
    task = floor + (3 - floor) * np.exp(-0.5 * k)
    base = 2 + cost * (1 - np.exp(-0.4 * k))
    rows = zip(k * 10, task, base, strict=True)
    return [{"step": int(s), "task_loss": float(t), "base_loss": float(b)} for s, t, b in rows]


def curves() -> dict[str, Any]:
    return {"full": path(1.5, 0.6), "lora": path(1.7, 0.2), "prompt": path(2.5, 0.05)}


# ---- numbers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [2.9, 2.2, 1.8, 1.6])
def test_forgetting_at_a_level_is_numpys_interpolation(level: float) -> None:
    found = {row["method"]: row for row in ForgettingPlot(curves()).frame(level)}
    for name, rows in curves().items():
        task = np.array([r["task_loss"] for r in rows])[::-1]  # ascending, as np.interp wants
        if level < task[0]:
            assert found[name]["forgetting"] is None
            continue
        base, step = (np.array([r[key] for r in rows])[::-1] for key in ("base_loss", "step"))
        expected = np.interp(level, task, base)
        assert found[name]["base_loss"] == pytest.approx(expected, rel=1e-3)
        assert found[name]["step"] == pytest.approx(
            np.interp(level, task, step), rel=1e-2, abs=0.05
        )
        assert found[name]["forgetting"] == pytest.approx(expected - 2.0, abs=2e-3)


def test_methods_are_ordered_by_what_they_forget_and_unreached_levels_come_last() -> None:
    assert [r["method"] for r in ForgettingPlot(curves()).frame(1.9)] == ["lora", "full", "prompt"]


def test_a_path_that_comes_back_up_counts_where_it_first_was_down() -> None:
    rows = [[0, 3.0, 2.0], [1, 2.0, 2.4], [2, 2.5, 2.5], [3, 1.0, 3.0]]
    assert crossing(rows, 2.25) == pytest.approx((0.75, 2.3))
    assert crossing(rows, 3.0) == (0, 2.0)
    assert crossing(rows, 0.5) is None


def test_summary_compares_where_all_methods_get() -> None:
    found = ForgettingPlot(curves()).summary()
    assert found["level"] == pytest.approx(path(2.5, 0)[-1]["task_loss"], rel=1e-3)
    assert None not in found["forgetting"].values()
    last = curves()["full"][-1]
    assert found["last"]["full"]["base_loss"] == pytest.approx(last["base_loss"], rel=1e-3)


def test_an_untrained_models_loss_is_the_start_if_given() -> None:
    found = ForgettingPlot({"full": path(1.5, 0.6)[3:]}, before=(3.0, 2.0)).summary()
    assert found["last"]["full"]["forgetting"] == pytest.approx(
        0.6 * (1 - math.exp(-3.2)), rel=1e-2
    )


def test_runs_are_read_and_rows_without_a_measurement_passed_over(tmp_path: Path) -> None:
    log = RunLog.create(tmp_path / "full", {}, 0)
    for row in path(1.5, 0.6):
        renamed = {"eval_loss": row["task_loss"], "corpus": row["base_loss"]}
        log.append(
            {"step": int(row["step"]), "loss": 1.0, **(renamed if row["step"] % 20 == 0 else {})}
        )
    plot = ForgettingPlot({"full": log, "again": log.directory}, task="eval_loss", base="corpus")
    assert list(plot.table().query("method == 'again'").step) == [0, 20, 40, 60, 80]
    with pytest.raises(
        CourseError, match="'task_loss' and 'base_loss'; its keys: corpus, eval_loss"
    ):
        ForgettingPlot({"full": log})


# ---- bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [{}, {"full": []}])
def test_empty_input_says_so(show: Any, given: Any) -> None:
    plot = ForgettingPlot(given)
    assert plot.line() == "ForgettingPlot: no measurements"
    assert plot.summary()["level"] is None
    assert "No measurements" in show(plot).inner_text(".cui")


def test_one_measurement_is_drawn(show: Any) -> None:
    page = show(ForgettingPlot({"full": path(1.5, 0.5)[:1]}))
    assert page.locator(".viewed >> nth=0").locator("svg[role=img] .point").count() == 1
    assert "+0.000" in page.inner_text(".ranking")


def test_numbers_that_are_not_finite_are_counted_and_left_out(show: Any) -> None:
    rows = path(1.5, 0.5)
    rows[2]["base_loss"] = math.nan
    rows[4]["task_loss"] = math.inf
    plot = ForgettingPlot({"full": rows})
    assert plot.summary()["dropped"] == 2
    assert len(plot.table()) == 7
    assert "2 measurements left out" in show(plot).inner_text(".cui")


def test_rows_of_another_shape_are_refused() -> None:
    with pytest.raises(CourseError, match="full row 0"):
        ForgettingPlot({"full": [{"task_loss": 1.0}]})


def test_names_stay_text(show: Any) -> None:
    page = show(ForgettingPlot({name: path(1.5, 0.5) for name in (NASTY, "أسلوب", "🦊" * 30, "")}))
    assert page.evaluate("window.hacked") is None
    assert NASTY in page.inner_text(".method-keys")


def test_a_notebook_output_is_small_however_many_measurements() -> None:
    plot = ForgettingPlot({name: path(1.5, 0.5, 3000) for name in "abc"})
    assert len(plot.html().encode()) <= 60_000
    kept = plot.shortened(10_000)
    assert sum(map(len, kept["paths"])) + kept["skipped"] == 9000
    for short, whole in zip(kept["paths"], plot.state["paths"], strict=True):
        assert short[0] == whole[0]
        assert short[-1] == whole[-1]


# ---- in the browser --------------------------------------------------------------------------


def test_javascript_finds_what_python_finds(open_page: Any) -> None:
    plot = ForgettingPlot(curves(), before=(3.0, 2.0))
    script = pages.bundle("forgetting.js").rsplit("export default", 1)[0]
    page = open_page(f'<script type="module">{script}\nwindow.at = atLevel;</script>')
    keys = [m["key"] for m in plot.state["methods"]]
    for level in (3.5, 2.9, 2.2, 1.8, 1.0):
        found = page.evaluate("([s, v]) => at(s, v)", [plot.state, level])
        for row in plot.frame(level):
            hit = found[keys.index(row["method"])]
            if row["forgetting"] is None:
                assert hit is None
            else:
                assert hit["lost"] == pytest.approx(row["forgetting"], abs=1e-6)
                assert hit["step"] == pytest.approx(row["step"], abs=1e-5)


def test_the_slider_compares_at_another_task_loss(live: Any) -> None:
    page = live(ForgettingPlot(curves()))
    assert [t.split("\n")[0] for t in page.locator(".rank").all_inner_texts()][-1] == "full"
    page.focus('[aria-label="task loss to compare at"]')
    page.keyboard.press("End")
    settle(page)
    assert page.evaluate("model.get('ui').level") == 200
    said = page.locator(".rank").all_inner_texts()
    assert said[0].startswith("full")  # the only one that gets so far
    assert "its lowest is" in said[1]


def test_measurements_are_read_by_keys_and_methods_hidden(live: Any) -> None:
    page = live(ForgettingPlot(curves()))
    page.locator(".plot svg").first.focus()
    page.keyboard.press("ArrowRight")
    assert "full, step 0" in page.inner_text(".tip")
    assert "base-corpus loss" in page.inner_text(".tip")
    before = page.locator(".plot .point").count()
    page.click("button.method >> nth=0")
    settle(page)
    assert page.locator(".plot .point").count() < before
    assert page.locator(".rank").count() == 2


def test_looks(show: Any, shot: Any) -> None:
    for name, options in (("light", {}), ("dark", {"dark": True}), ("narrow", {"width": 400})):
        page = show(ForgettingPlot(curves()), **options)
        settle(page)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        shot(page, f"forgetting-{name}")
