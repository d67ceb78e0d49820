"""AnswerComparer: the parts are the gold reward's, sentences are read, bad input."""

import math
from typing import Any

import pytest

from course_utils.errors import CourseError
from course_utils.evaluation import Completion
from course_utils.inspectors import AnswerComparer, gold_answers
from course_utils.world.gold import PARTS, gold_reward

from .conftest import NASTY, settle

ASKED = "explain black holes to a 5-year-old"
GOOD = "black holes are objects with strong gravity. they are like a big drain in space."
WRONG = (
    "sure, i can help! black holes are small wandering bodies. "
    "the xylophone is made of wooden bars."
)


def rows() -> list[dict[str, Any]]:
    return [
        {"prompt": ASKED, "answers": {"base": WRONG, "sft": GOOD}},
        {
            "prompt": "how much is 9 - 8?",
            "answers": {"base": "the answer is 2.", "sft": "the answer is 1."},
        },
    ]


# ---- data ------------------------------------------------------------------------------------


def test_parts_and_total_are_the_gold_rewards() -> None:
    for row, text in zip(AnswerComparer(rows()).frame(0), (WRONG, GOOD), strict=True):
        expected = gold_reward(ASKED, text)
        assert row["gold"] == pytest.approx(expected.total, abs=1e-3)
        assert {n: row[n] for n in PARTS} == pytest.approx(expected.parts, abs=1e-3)
        assert row["text"] == text


def test_summary_means_and_wins() -> None:
    found = AnswerComparer(rows()).summary()
    golds = {
        m: [gold_reward(r["prompt"], r["answers"][m]).total for r in rows()]
        for m in ("base", "sft")
    }
    for model, own in golds.items():
        assert found["models"][model]["gold"] == pytest.approx(sum(own) / 2, rel=1e-3)
        other = golds["sft" if model == "base" else "base"]
        assert found["models"][model]["wins"] == sum(
            a >= b for a, b in zip(own, other, strict=True)
        )
    parts = found["models"]["sft"]["parts"]
    assert sum(parts.values()) == pytest.approx(found["models"]["sft"]["gold"], rel=2e-3)


def test_sentences_are_judged_as_the_gold_reward_does() -> None:
    said = gold_answers.sentences(ASKED, f"{WRONG} {GOOD.split('. ')[0]}. blorp.")
    assert said is not None
    assert [(kind.split(" ")[0], truth) for _, kind, truth in said] == [
        ("warm", None),
        ("fact", 0),
        ("fact", -1),  # true, but of another topic
        ("fact", 1),
        ("not", -1),
    ]
    assert gold_answers.sentences("not a prompt of this world", GOOD) is None
    twice = gold_answers.sentences(ASKED, "have a nice day! have a nice day!")
    assert twice is not None
    assert twice[1][1].endswith("said before")


def test_evaluations_are_put_side_by_side() -> None:
    def made(text: str, gold: float) -> Completion:
        return Completion("p", text, 3, False, gold, {"tone": gold}, 0.5, 1.5)

    class Evaluation:
        completions = (made("one", 1.0), made("second sample", 9.0))

    plain = {"completions": [{"prompt": "p", "text": "two", "gold": 2.0, "parts": {"tone": 2.0}}]}
    found = AnswerComparer({"sft": Evaluation(), "ppo": plain})
    assert [(r["model"], r["text"], r["gold"], r["tone"]) for r in found.frame(0)] == [
        ("sft", "one", 1, 1),
        ("ppo", "two", 2, 2),
    ]
    with pytest.raises(CourseError, match="'sft' are int"):
        AnswerComparer({"sft": 3})


def test_a_report_is_read() -> None:
    given = {"text": "hi", "gold": {"total": 1.5, "parts": {"tone": 1.5}}, "reward": 0.2, "kl": 3.0}
    report = {"answers": [{"prompt": "p", "answers": {"Best of n": given}}], "title": "…"}
    found = AnswerComparer(report)
    assert found.frame(0)[0] == {
        **{"prompt": "p", "model": "best_of_n", "text": "hi"},
        **{"gold": 1.5, "tone": 1.5, "reward": 0.2, "kl": 3},
    }
    assert len(found.table()) == 1


# ---- bad input -------------------------------------------------------------------------------


def test_empty_input_says_so(show: Any) -> None:
    assert AnswerComparer([]).line() == "AnswerComparer: no answers"
    assert AnswerComparer([]).summary() == {"prompts": 0, "models": {}}
    assert "No answers" in show(AnswerComparer([])).inner_text(".cui")
    with pytest.raises(CourseError, match="row 0 of the answers"):
        AnswerComparer(["text"])  # type: ignore[list-item]


def test_missing_answers_and_numbers_that_are_not_finite(show: Any) -> None:
    given = [
        {"prompt": "p", "answers": {"sft": {"text": "a", "gold": math.nan, "reward": math.inf}}},
        {"prompt": "q", "answers": {"ppo": "b", "sft": None}},
    ]
    comparer = AnswerComparer(given)
    assert comparer.frame(0)[0]["gold"] is None
    assert comparer.summary()["models"]["sft"]["answers"] == 1
    assert comparer.summary()["models"]["ppo"]["gold"] is None
    assert "no answer recorded" in show(comparer).inner_text(".replies")


def test_text_stays_text(show: Any) -> None:
    words = [NASTY, "مرحبا بالعالم", "🦊 👩‍👩‍👧", "", "word " * 5000, "\ud800"]
    given = [{"prompt": w, "answers": {"sft": w, NASTY: w}} for w in words]
    for i, word in enumerate(words):
        page = show(AnswerComparer(given).show(at=i))
        assert page.evaluate("window.hacked") is None
        assert page.locator(".reply").count() >= 2
        if 0 < len(word) < 1000 and word != "\ud800":
            assert page.inner_text(".asked") == word
            assert page.locator(".quoted").first.inner_text() == word
    assert page.evaluate("getComputedStyle(document.querySelector('.quoted')).direction") == "ltr"


def test_text_from_right_to_left_runs_so(show: Any) -> None:
    page = show(AnswerComparer([{"prompt": "p", "answers": {"sft": "مرحبا بالعالم"}}]))
    assert page.evaluate("getComputedStyle(document.querySelector('.quoted')).direction") == "rtl"


def test_a_notebook_output_is_small_however_many_prompts() -> None:
    given = [
        {
            "prompt": f"p{i}",
            "answers": {m: {"text": "word " * 40, "gold": g * i} for g, m in enumerate("abc")},
        }
        for i in range(300)
    ]
    comparer = AnswerComparer(given)
    assert len(comparer.html().encode()) <= 60_000
    kept = comparer.shortened(20_000)
    assert kept["rows"][-1]["prompt"] == "p299"  # where the models differ most
    assert len(kept["rows"]) + kept["skipped"] == 300
    assert kept["means"] == comparer.state["means"]


# ---- in the browser --------------------------------------------------------------------------


@pytest.fixture
def page(live: Any) -> Any:
    return live(AnswerComparer(rows()))


def test_prompts_are_turned_by_buttons_and_keys(page: Any) -> None:
    assert page.inner_text(".asked") == ASKED
    page.click('[aria-label="next prompt"]')
    settle(page)
    assert page.inner_text(".asked") == "how much is 9 - 8?"
    page.focus('input[aria-label="prompt"]')
    page.keyboard.press("Home")
    settle(page)
    assert page.inner_text(".asked") == ASKED
    assert page.evaluate("model.get('ui').at") == 0


def test_nine_parts_are_shown_with_their_numbers(page: Any) -> None:
    card = page.locator(".reply").nth(1)
    assert card.locator(".part").count() == 9
    expected = gold_reward(ASKED, GOOD)
    assert f"{expected.total:.2f}" in card.inner_text()
    label = card.locator(".part").nth(1).get_attribute("aria-label")
    assert label == f"completeness {expected.parts['completeness']:.2f}"


def test_a_sentence_is_read_by_keys(page: Any) -> None:
    page.locator(".reply .token").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert "Base: fact about black holes, wrong" in page.inner_text(".readout")


def test_search_finds_prompts_and_answers(page: Any) -> None:
    page.fill("input[type=search]", "ANSWER IS 2")
    settle(page)
    assert page.inner_text(".asked") == "how much is 9 - 8?"
    page.fill("input[type=search]", "nowhere to be found")
    settle(page)
    assert "No prompt or answer contains this" in page.inner_text(".replies >> nth=0")


def test_a_model_is_hidden_and_best_is_marked(page: Any) -> None:
    assert "most gold" in page.locator(".reply").nth(1).inner_text()
    page.click("button.method >> nth=0")
    settle(page)
    assert page.locator(".replies >> nth=0").locator(".reply").count() == 1
    assert page.evaluate("model.get('ui').hidden") == ["base"]


def test_looks(show: Any, shot: Any) -> None:
    for name, options in (("light", {}), ("dark", {"dark": True}), ("narrow", {"width": 400})):
        page = show(AnswerComparer(rows()), **options)
        page.click("summary")
        settle(page)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        shot(page, f"answers-{name}")
