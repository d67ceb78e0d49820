"""FrontierViewer: points of reports and runs, the budget, answers by click and by keys."""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest

from course_utils.errors import CourseError
from course_utils.inspectors import FrontierViewer, frontier_points
from course_utils.inspectors import page as pages
from course_utils.training.run import RunLog
from course_utils.world.gold import gold_reward

from .conftest import NASTY, settle
from .made import ppo_run

ASKED = "explain black holes to a 5-year-old"


def answer(text: str, prompt: str = ASKED) -> dict[str, Any]:
    return {"prompt": prompt, "text": text}


def points() -> list[dict[str, Any]]:
    rows = [{"method": "sft", "kl": 0.0, "gold": 1.2, "label": "SFT", "answers": [answer("first")]}]
    for method, peak in (("ppo", 1.8), ("my method", 1.4)):
        for k, share in enumerate((0.2, 0.6, 1.0, 0.7)):
            point = {"method": method, "kl": 0.5 * (k + 1), "gold": 1.0 + share * (peak - 1)}
            example = answer(f"{method} {k}")
            rows.append({**point, "label": f"step {k}", "interval": [0.9, 2.0], "example": example})
    return rows


def best_by_hand(rows: list[dict[str, Any]], budget: float) -> list[tuple[str, float]]:
    found = {}
    for method, group in itertools.groupby(rows, key=lambda r: r["method"]):
        golds = [r["gold"] for r in group if r["kl"] <= budget]
        if golds:
            found[method] = max(golds)
    return sorted(found.items(), key=lambda pair: -pair[1])


# ---- data ------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [-1.0, 0.0, 0.5, 1.2, 99.0])
def test_best_within_a_budget_is_the_most_gold_among_its_points(budget: float) -> None:
    found = FrontierViewer(points()).best_within(budget)
    expected = best_by_hand(points(), budget)
    assert [row["method"] for row in found] == [m for m, _ in expected]
    assert [row["gold"] for row in found] == pytest.approx([g for _, g in expected])


def test_summary_counts_points_and_names_the_best() -> None:
    found = FrontierViewer(points()).summary()
    assert found["points"] == 9
    assert found["methods"]["ppo"] == {
        "points": 4,
        "best": {"kl": 1.5, "gold": 1.8, "label": "step 2"},
    }


def test_a_report_and_its_path_are_read(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps({"frontier": points()}))
    assert FrontierViewer(path).table().equals(FrontierViewer(points()).table())
    path.write_text("{")
    with pytest.raises(CourseError, match=r"report.json is not a report.json"):
        FrontierViewer(path)
    with pytest.raises(CourseError, match="frontier point 0 is 3"):
        FrontierViewer([3])  # type: ignore[list-item]


def test_points_of_a_run_have_its_kl_gold_and_rollouts(tmp_path: Path) -> None:
    run = ppo_run(tmp_path / "run")
    found = frontier_points(run.directory, "mine")
    rows = [r for r in run.rows if r.get("gold") is not None or r.get("eval_gold") is not None]
    assert [p["kl"] for p in found] == [r["kl"] for r in rows]
    step = run.rollouts()[0]["step"]
    said = next(p for p in found if p["label"] == f"step {step}")["answers"]
    assert [a["text"] for a in said] == [r["completion"] for r in run.rollouts(step)[:4]]
    assert FrontierViewer(found).summary()["methods"]["mine"]["points"] == len(rows)


def test_gold_of_known_prompts_is_filled_in_and_given_gold_is_kept() -> None:
    text = "black holes are objects with strong gravity."
    rows = [
        {"method": "sft", "kl": 0, "gold": 1.0, "example": answer(text)},
        {"method": "dpo", "kl": 1, "gold": 1.0, "example": {**answer(text), "gold": 7.0}},
    ]
    viewer = FrontierViewer(rows)
    expected = gold_reward(ASKED, text)
    first = viewer.frame(0)["answers"][0]
    assert first["gold"] == pytest.approx(expected.total, rel=1e-3)
    names = [p["key"] for p in viewer.state["parts"]]
    assert dict(zip(names, first["parts"], strict=True)) == pytest.approx(expected.parts, abs=1e-3)
    assert viewer.frame(1)["answers"][0]["gold"] == 7.0
    assert viewer.frame(1)["answers"][0]["parts"] is None


# ---- bad input -------------------------------------------------------------------------------


def test_empty_input_says_so(show: Any, tmp_path: Path) -> None:
    assert FrontierViewer([]).line() == "FrontierViewer: no points"
    assert "No points" in show(FrontierViewer({"frontier": None})).inner_text(".cui")
    run = RunLog.create(tmp_path / "empty", {}, 0)
    assert frontier_points(run) == []


def test_one_point_is_drawn(show: Any) -> None:
    page = show(FrontierViewer(points()[:1]))
    assert page.locator(".plot .point").count() == 1


def test_points_without_finite_numbers_are_counted(show: Any) -> None:
    rows = [*points(), {"method": "ppo", "kl": math.nan, "gold": 1.0}, {"method": "x", "kl": 1.0}]
    viewer = FrontierViewer(rows)
    assert viewer.summary()["dropped"] == 2
    assert "2 points left out" in show(viewer).inner_text(".cui")


def test_text_stays_text(show: Any) -> None:
    words = [NASTY, "שלום עולם", "🦊🦊", "", "x" * 6000]
    rows = [
        {"method": w, "kl": i, "gold": i, "label": w, "answers": [answer(w, prompt=w)]}
        for i, w in enumerate(words)
    ]
    for i, word in enumerate(words):
        page = show(FrontierViewer(rows).show(at=i))
        assert page.evaluate("window.hacked") is None
        if word and len(word) < 6000:
            assert page.inner_text(".reader .prompt") == word
            assert word in page.inner_text(".reader .quoted")


def test_a_notebook_output_is_small_however_many_answers() -> None:
    many = [{**p, "answers": [answer("word " * 300)] * 6, "example": None} for p in points()] * 10
    viewer = FrontierViewer(many)
    assert len(viewer.html().encode()) <= 60_000
    kept = viewer.shortened(20_000)
    assert len(kept["points"]) == len(many)
    assert kept["without"] == sum(not p["answers"] for p in kept["points"])


# ---- in the browser --------------------------------------------------------------------------


def test_javascript_ranks_as_python_does(open_page: Any) -> None:
    viewer = FrontierViewer(points())
    script = pages.bundle("frontier.js").rsplit("export default", 1)[0]
    html = f'<script type="module">{script}\nwindow.best = bestWithin;</script>'
    page = open_page(html)
    for budget in (-1.0, 0.0, 0.5, 1.2, 99.0):
        found = page.evaluate("([p, b]) => best(p, b)", [viewer.state["points"], budget])
        assert found == [row["index"] for row in viewer.best_within(budget)]


def test_a_point_is_chosen_by_keys_and_by_pointer(live: Any) -> None:
    page = live(FrontierViewer(points()))
    page.focus(".plot svg")
    page.keyboard.press("End")
    page.keyboard.press("Enter")
    settle(page)
    assert page.evaluate("model.get('ui').at") == 8
    assert "my method 3" in page.inner_text(".reader")
    assert "first" in page.inner_text(".reader")  # SFT's answer to the same prompt beside it
    page.locator(".plot .point[data-point='3']").click()
    settle(page)
    assert page.evaluate("model.get('ui').at") == 3
    assert "ppo 2" in page.inner_text(".reader")


def test_the_budget_reorders_the_ranking(live: Any) -> None:
    page = live(FrontierViewer(points()))
    names = lambda: [n.split("\n")[0] for n in page.locator(".rank").all_inner_texts()]  # noqa: E731
    assert names() == ["PPO", "my method", "SFT"]
    page.focus('[aria-label="KL budget"]')
    page.keyboard.press("Home")
    settle(page)
    assert names() == ["SFT"]
    assert page.evaluate("model.get('ui').budget") == 0
    page.locator(".rank").first.press("Enter")
    settle(page)
    assert page.evaluate("model.get('ui').at") == 0


def test_methods_are_hidden_and_the_axis_is_changed(live: Any) -> None:
    page = live(FrontierViewer(points()))
    before = page.locator(".plot .point").count()
    page.click("button.method:has-text('PPO')")
    settle(page)
    assert page.locator(".plot .point").count() == before - 4
    assert page.evaluate("model.get('ui').hidden") == ["ppo"]
    place = page.locator(".plot .point[data-point='5']").get_attribute("d")
    page.click("text=/^KL$/")
    settle(page)
    assert page.locator(".plot .point[data-point='5']").get_attribute("d") != place


def test_marks_differ_without_colour() -> None:
    found = FrontierViewer(points()).state["methods"]
    assert len({m["shape"] for m in found}) == len(found)
    assert len({m["tone"] for m in found}) == len(found)


def test_looks(show: Any, shot: Any) -> None:
    viewer = FrontierViewer(points()).show(at=3, budget=70)
    for name, options in (("light", {}), ("dark", {"dark": True}), ("narrow", {"width": 400})):
        page = show(viewer, **options)
        settle(page)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        shot(page, f"frontier-{name}")
