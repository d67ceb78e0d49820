"""RewardKLDashboard: numbers, live growth, the cursor, and every kind of run."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from course_utils.errors import RunError
from course_utils.inspectors import RewardKLDashboard, watch
from course_utils.inspectors.dashboard import gold_peak, smooth
from course_utils.training.run import RunLog

from .conftest import settle
from .made import ppo_row, ppo_run


@pytest.fixture
def run(tmp_path: Path) -> RunLog:
    return ppo_run(tmp_path / "ppo", steps=40)


# ---- data ------------------------------------------------------------------------------------


def test_frame_and_summary_are_the_runs(run: RunLog) -> None:
    board = RewardKLDashboard(run)
    rows = run.rows
    assert board.frame(7)["kl"] == pytest.approx(rows[6]["kl"], rel=1e-3)
    assert board.frame() == board.frame(40)
    assert list(board.table().reward) == pytest.approx([r["reward"] for r in rows], rel=1e-3)
    peak = board.summary()["gold_peak"]
    near = [sum(r["gold"] for r in rows[i - 1 : i + 2]) / 3 for i in range(1, 39)]
    assert peak["step"] == near.index(max(near)) + 2
    with pytest.raises(RunError, match="no step 99"):
        board.frame(99)


def test_smoothing_keeps_ends_gaps_and_means() -> None:
    assert smooth([1.0, None, 4.0, 1.0]) == [1.0, None, 2.0, 1.0]
    assert smooth([]) == []
    assert smooth([None]) == [None]
    line = [float(i) for i in range(100)]
    assert smooth(line) == pytest.approx(line)
    assert gold_peak([{"step": 1, "kl": 0.0}]) is None


def test_text_layer(run: RunLog) -> None:
    assert repr(RewardKLDashboard(run)).startswith("RewardKLDashboard: step 40 of 40, reward ")


def test_watch_follows_a_run_from_before_its_first_step(tmp_path: Path) -> None:
    board = watch(tmp_path / "later", every=0.01)
    assert "no steps yet" in repr(board)
    ppo_run(tmp_path / "later", steps=3)
    board.stop()
    assert board.summary()["rows"] == 3
    assert board.summary()["live"] is False
    assert board.summary()["steps"] == 3


def test_only_new_rows_are_sent(run: RunLog, monkeypatch: pytest.MonkeyPatch) -> None:
    board = RewardKLDashboard(run)
    sent: list[Any] = []
    monkeypatch.setattr(board.widget, "send", sent.append)
    run.append(ppo_row(random.Random(1), 41, 40))
    board.refresh()
    assert [list(m["add"]) for m in sent] == [["rows"]]
    assert len(sent[0]["add"]["rows"]) == 1
    assert len(json.dumps(sent)) < 600


def test_a_column_that_comes_later_gets_its_panel(run: RunLog) -> None:
    board = RewardKLDashboard(run)
    before = [p["label"] for p in board.state["panels"]]
    run.append({"step": 41, "loss": 0.5})
    board.refresh()
    assert [p["label"] for p in board.state["panels"]] == ["loss", *before]


def test_a_very_long_run_fits_on_a_page(tmp_path: Path) -> None:
    board = RewardKLDashboard(ppo_run(tmp_path / "long", steps=3000, every=10_000))
    assert len(board.html().encode()) <= 60_000
    assert "steps" in board.html()


# ---- in the browser --------------------------------------------------------------------------


def test_one_cursor_goes_through_all_charts(run: RunLog, live: Any, shot: Any) -> None:
    page = live(RewardKLDashboard(run))
    shot(page, "dashboard-light")
    page.locator('[data-name="KL to the reference"] > svg').focus()
    page.keyboard.press("Home")
    for _ in range(6):
        page.keyboard.press("ArrowRight")
    settle(page)
    assert page.locator(".tile b").first.text_content() == "7"
    kl = page.locator(".panel", has_text="KL to the reference").locator("output").last
    assert kl.text_content() == f"{run.rows[6]['kl']:.2f}"
    hairs = page.locator('.hair[visibility="visible"]').count()
    assert hairs == page.locator(".panel:not(.wide)").count() == 8
    assert "step 7" in page.locator(".unseen").text_content()
    page.keyboard.press("Escape")
    assert page.locator(".tile b").first.text_content() == "40"


def test_rows_that_arrive_are_drawn(run: RunLog, live: Any) -> None:
    page = live(RewardKLDashboard(run))
    row = ppo_row(random.Random(1), 41, 40)
    message = {"kind": "append", "at": {"rows": 40}, "add": {"rows": [row]}, "set": {"live": True}}
    page.evaluate(f"model.receive({json.dumps(message)})")
    settle(page)
    assert page.locator(".tile b").first.text_content() == "41"


def test_gold_peak_is_marked_where_python_says(run: RunLog, show: Any, shot: Any) -> None:
    board = RewardKLDashboard(run)
    page = show(board, dark=True)
    step = board.summary()["gold_peak"]["step"]
    assert f"gold's peak, step {step}" in page.locator(".wide").text_content()
    shot(page, "dashboard-dark")


def test_more_curves_and_raw_values(run: RunLog, live: Any) -> None:
    page = live(RewardKLDashboard(run))
    page.get_by_role("button", name="2 more curves").click()
    page.get_by_role("button", name="as measured").click()
    settle(page)
    assert "gradient norm" in page.locator(".board").text_content()
    assert page.locator(".panel:not(.wide) .faint").count() == 0


# ---- bad input -------------------------------------------------------------------------------


def test_empty_and_one_step_runs(tmp_path: Path, live: Any) -> None:
    log = RunLog.create(tmp_path / "run", {}, 0)
    board = RewardKLDashboard(log)
    assert board.frame() == {}
    assert board.summary()["last"] == {}
    assert "No steps yet" in live(board).locator(".empty").text_content()
    log.append({"step": 1, "reward": 0.5, "kl": 0.0})
    board.refresh()
    page = live(board)
    assert page.locator(".tile b").first.text_content() == "1"


def test_values_that_are_no_numbers_break_the_line(tmp_path: Path, live: Any) -> None:
    log = RunLog.create(tmp_path / "run", {}, 0)
    for step in range(1, 12):
        bad = float("nan") if step == 5 else float("inf") if step == 8 else 0.1 * step
        log.append({"step": step, "reward": bad, "kl": bad, "beta": 0.0, "value_loss": bad})
    page = live(RewardKLDashboard(log))
    path = page.locator('[data-name="value loss"] .trace').last.get_attribute("d")
    assert path.count("M") == 3
    assert "NaN" not in page.content()


def test_other_trainers_runs(tmp_path: Path, live: Any) -> None:
    log = RunLog.create(tmp_path / "dpo", {"steps": 30}, 0)
    for step in range(1, 31):
        log.append({"step": step, "loss": 0.69 - 0.01 * step, "accuracy": 0.5, "margin": 0.0})
    log.append({"step": 31, "eval_loss": 0.6})
    board = RewardKLDashboard(log)
    assert [p["label"] for p in board.state["panels"]] == ["loss", "accuracy", "margin"]
    page = live(board, width=420)
    assert page.locator("h3").text_content() == "Training · dpo"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_something_that_is_not_a_run(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(RunError, match="not a run directory"):
        RewardKLDashboard(file)
