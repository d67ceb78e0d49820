"""RolloutInspector: its numbers against the run's own, its three layers, every bad input."""

import json
import math
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from course_utils.errors import RunError
from course_utils.inspectors import RolloutInspector
from course_utils.inspectors.frames import glue_of
from course_utils.inspectors.rollouts import k3
from course_utils.objectives import kl_k3
from course_utils.training.run import RunLog

from .conftest import NASTY, settle
from .made import ppo_run, rollout


@pytest.fixture
def run(tmp_path: Path) -> RunLog:
    return ppo_run(tmp_path / "ppo")


# ---- data ------------------------------------------------------------------------------------


def test_summary_is_the_runs(run: RunLog) -> None:
    rows = run.rollouts(20)
    found = RolloutInspector(run).summary()
    assert found["steps"] == [1, 5, 10, 15, 20]
    assert found["rollouts"] == 30
    last = found["last"]
    assert last["step"] == 20
    assert last["score"] == pytest.approx(sum(r["score"] for r in rows) / len(rows), abs=1e-3)
    assert last["kl"] == pytest.approx(sum(sum(r["kl"]) for r in rows) / len(rows), abs=1e-2)


def test_frame_and_tokens_are_the_runs(run: RunLog) -> None:
    inspector, rows = RolloutInspector(run), run.rollouts(10)
    frame = inspector.frame(10)
    assert list(frame.prompt) == [r["prompt"] for r in rows]
    assert list(frame.answer) == [r["completion"] for r in rows]
    tokens = inspector.tokens(10, 2)
    assert list(tokens.token) == rows[2]["tokens"]
    for name in ("kl", "advantages", "values", "rewards"):
        assert list(tokens[name]) == pytest.approx(rows[2][name], rel=1e-3, abs=1e-9)
    assert list(tokens.logprobs) == pytest.approx([-v for v in rows[2]["logprobs"]], rel=1e-3)
    pair = torch.tensor(rows[2]["logprobs"]), torch.tensor(rows[2]["ref_logprobs"])
    assert list(tokens.k3) == pytest.approx(kl_k3(*pair).tolist(), rel=2e-2, abs=1e-4)


def test_a_step_or_answer_that_is_not_there_is_named(run: RunLog) -> None:
    inspector = RolloutInspector(run)
    with pytest.raises(RunError, match=r"step 7; it has \[1, 5"):
        inspector.frame(7)
    with pytest.raises(RunError, match="no number 99"):
        inspector.tokens(5, 99)


def test_k3_neither_overflows_nor_makes_up_numbers() -> None:
    assert k3(-1e6) == pytest.approx(math.exp(20) - 1 - 1e6)
    assert k3(0.0) == 0
    assert k3(None) is None
    assert k3(float("inf")) is None


def test_one_scale_for_the_whole_run(run: RunLog) -> None:
    scale = RolloutInspector(run).state["scales"]["kl"]
    sizes = sorted(abs(d) for r in run.rollouts() for d in r["kl"])
    assert scale["limit"] == pytest.approx(sizes[int(0.98 * len(sizes))], rel=0.01)


def test_blanks_go_between_tokens_only_where_tokens_lack_them() -> None:
    assert glue_of(["i", "have"], "i have") == " "
    assert glue_of(["i", " have"], "i have") == ""
    assert glue_of(["日", "本"], "日本") == ""
    assert glue_of(["yes"], "yes") == ""


def test_new_rollouts_are_sent_alone(run: RunLog, monkeypatch: pytest.MonkeyPatch) -> None:
    inspector = RolloutInspector(run)
    sent: list[Any] = []
    monkeypatch.setattr(inspector.widget, "send", sent.append)
    run.save_rollouts(21, [rollout(random.Random(1), "new?", ["yes"], 0.1)])
    assert inspector.refresh() == 1
    assert [len(m["add"]["rollouts"]) for m in sent] == [1]
    assert sent[0]["at"]["rollouts"] == 30
    assert len(json.dumps(sent)) < 4000
    assert inspector.summary()["last"]["step"] == 21


# ---- layers and sizes ------------------------------------------------------------------------


def test_the_html_layer_stays_small_and_says_what_it_left_out(tmp_path: Path) -> None:
    log = ppo_run(tmp_path / "big", steps=10, every=1, answers=50, tokens=64)  # 500 rollouts
    inspector = RolloutInspector(log)
    html = inspector.html()
    assert len(html.encode()) <= 60_000
    state = json.loads(re.search(r"data-cui-state[^>]*>(.*?)</script>", html)[1])["state"]
    assert state["left_out"] + len(state["rollouts"]) == 500
    assert {r["step"] for r in state["rollouts"]} >= {10}
    assert len(inspector.save(tmp_path / "all.html").read_bytes()) < 3_000_000


def test_text_layer(run: RunLog) -> None:
    line = repr(RolloutInspector(run))
    assert "30 answers of 5 steps (1 … 20)" in line
    assert "\n" not in line


def test_the_first_frame_shows_the_last_step_coloured(run: RunLog) -> None:
    frame = RolloutInspector(run).first_frame()
    assert "step 20" in frame
    assert "rgba(0,114,178" in frame
    assert "<script" not in frame
    assert "<svg" not in frame


# ---- in the browser --------------------------------------------------------------------------


def at(page: Any, name: str) -> Any:
    return page.evaluate(f"model.get('ui').{name}")


def test_slider_keys_choose_the_step_and_keep_the_prompt(run: RunLog, live: Any, shot: Any) -> None:
    page = live(RolloutInspector(run).show(answer=3))
    assert page.locator(".slider span").text_content() == "step 20"
    slider = page.locator("input[type=range]")
    slider.focus()
    page.keyboard.press("ArrowLeft")
    settle(page)
    assert page.locator(".slider span").text_content() == "step 15"
    assert page.locator(".prompt").first.text_content() == "question 3?"
    assert slider.get_attribute("aria-valuetext") == "step 15"
    assert at(page, "step") == 15
    shot(page, "rollouts-light")


def test_every_token_has_the_colour_of_its_value(run: RunLog, live: Any, shot: Any) -> None:
    inspector = RolloutInspector(run)
    page = live(inspector, dark=True)
    page.get_by_role("button", name="advantage").click()
    settle(page)
    limit = inspector.state["scales"]["advantages"]["limit"]
    values = inspector.tokens(20, 0).advantages
    shown = page.eval_on_selector_all(
        ".token",
        "all => all.map(t => (t.classList.contains('neg') ? -1 : 1)"
        " * parseFloat(t.style.getPropertyValue('--a')))",
    )
    wanted = [max(-1, min(1, v / limit)) for v in values]
    assert shown == pytest.approx(wanted, abs=0.011)
    assert at(page, "by") == "advantages"
    shot(page, "rollouts-dark")


def test_pointer_and_keys_read_a_tokens_numbers(run: RunLog, live: Any) -> None:
    inspector = RolloutInspector(run)
    page = live(inspector)
    page.locator(".token").nth(2).hover()
    readout = page.locator(".readout")
    assert "token 3" in readout.text_content()
    page.locator(".token").nth(2).click()
    page.keyboard.press("ArrowRight")
    assert "token 4" in readout.text_content()
    value = inspector.tokens(20, 0).advantages[3]
    assert f"advantage {value:.2f}".replace("-", "−") in readout.text_content()


def test_list_sorts_filters_and_follows_keys(run: RunLog, live: Any) -> None:
    page = live(RolloutInspector(run))
    rows = run.rollouts(20)
    page.select_option("select", "best")
    settle(page)
    first = page.locator(".item").first.text_content()
    assert first.startswith(max(rows, key=lambda r: r["score"])["prompt"])
    page.locator(".answers").focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowDown")
    settle(page)
    chosen = page.locator('.item[aria-selected="true"]')
    assert chosen.get_attribute("data-k") == "1"
    page.fill("input[type=search]", "QUESTION 4")
    settle(page)
    assert page.locator(".item").count() == 1
    assert page.locator(".item .words").text_content() == "question 4?"


def test_the_references_answer_stands_beside(run: RunLog, live: Any) -> None:
    page = live(RolloutInspector(run, references={"question 0?": f"as before {NASTY}"}))
    assert f"as before {NASTY}" in page.locator(".other").text_content()
    assert "the reference" in page.locator(".said").text_content()
    page = live(RolloutInspector(run).show(answer=1))  # none given: step 1 sampled from it
    first = run.rollouts(1)[1]["completion"]
    assert page.locator(".other").text_content() == first


def test_rollouts_that_arrive_while_it_trains(run: RunLog, live: Any) -> None:
    page = live(RolloutInspector(run))
    new = {"step": 25, "prompt": "new?", "tokens": ["yes"], "glue": " ", "ended": True, "kl": [1]}
    message = {"kind": "append", "at": {"rollouts": 30}, "add": {"rollouts": [new]}, "set": {}}
    page.evaluate(f"model.receive({json.dumps(message)})")
    settle(page)
    assert page.locator(".slider span").text_content() == "step 25"
    assert page.locator(".prompt").first.text_content() == "new?"


# ---- bad input -------------------------------------------------------------------------------


def one(tmp_path: Path, **changes: Any) -> RolloutInspector:
    log = RunLog.create(tmp_path / "one", {}, 0)
    row = rollout(random.Random(0), "why?", ["because", "it", "is"], 0.2)
    log.save_rollouts(1, [{**row, **changes}])
    return RolloutInspector(log)


def test_empty_run(tmp_path: Path, live: Any) -> None:
    inspector = RolloutInspector(RunLog.create(tmp_path / "empty", {}, 0))
    assert "no rollouts yet" in repr(inspector)
    assert inspector.summary()["last"]["step"] is None
    assert inspector.frame().empty
    assert "No rollouts yet" in live(inspector).locator(".empty").text_content()


def test_one_step_run_has_a_slider_that_cannot_move(tmp_path: Path, live: Any) -> None:
    page = live(one(tmp_path))
    assert page.locator("input[type=range]").is_disabled()
    assert page.locator(".token").count() == 3


def test_values_that_are_no_numbers_are_hatched(tmp_path: Path, live: Any) -> None:
    nan, inf = float("nan"), float("inf")
    inspector = one(tmp_path, kl=[nan, 0.5, inf], score=nan, gold=None)
    assert inspector.summary()["last"]["score"] is None
    page = live(inspector)
    assert page.locator(".token.odd").count() == 2
    assert "not a number" in page.locator(".scale").text_content()
    assert "NaN" not in page.locator(".cui").text_content()


def test_a_run_without_numbers_per_token(tmp_path: Path, live: Any) -> None:
    names = ("kl", "values", "advantages", "rewards", "logprobs", "ref_logprobs")
    inspector = one(tmp_path, **dict.fromkeys(names))
    assert inspector.summary()["quantities"] == []
    assert "no numbers per token" in live(inspector).locator(".cui").text_content()


def test_five_thousand_tokens(tmp_path: Path, live: Any, show: Any) -> None:
    long = rollout(random.Random(0), "long?", ["word"] * 5000, 0.2)
    inspector = one(tmp_path, **long)
    assert len(inspector.html().encode()) <= 60_000
    page = live(inspector)
    assert page.locator(".token").count() == 600
    page.get_by_role("button", name="show all 5,000 tokens").click()
    assert page.locator(".token").count() == 5000


@pytest.mark.parametrize("text", ["שלום עולם טוב", "🙂 👩‍👩‍👧 é", NASTY, "a\nb\tc", "", " "])
def test_text_of_any_kind_stays_text(tmp_path: Path, live: Any, show: Any, text: str) -> None:
    tokens = text.split(" ") if text.strip() else [text]
    inspector = one(
        tmp_path, prompt=f"p {text}", tokens=tokens, completion=text, kl=[0.1] * len(tokens)
    )
    for page in (live(inspector), show(inspector)):
        assert page.locator(".prompt").first.text_content() == f"p {text}"
        shown = page.locator(".tokens").text_content()
        for token in tokens:
            assert token.replace("\n", "⏎").replace("\t", "⇥").strip() in shown.replace("⏎\n", "⏎")
        assert page.evaluate("window.hacked") is None
        assert page.locator(".cui img").count() == 0
    if "ש" in text:
        direction = "e => getComputedStyle(e).direction"
        assert page.eval_on_selector(".tokens", direction) == "rtl"


def test_an_empty_answer(tmp_path: Path, live: Any) -> None:
    page = live(one(tmp_path, tokens=[], completion="", kl=[], values=[], advantages=[]))
    assert "an empty answer" in page.locator(".cui").text_content()
