"""A reward model beside the truth: against counts made by hand."""

import math
from types import SimpleNamespace
from typing import Any

import pytest

from course_utils.errors import CourseError
from course_utils.inspectors.reward_views import by_part, confident_mistakes, follows, gold_margins
from course_utils.inspectors.rewards import RewardInspector

WORTH = {"good": 2.0, "good and long indeed": 2.0, "bad": 0.0, "bad <b> and long": 0.0, "fair": 1.8}
PAIRS = [
    ("good", "bad"),  # label right
    ("bad <b> and long", "good"),  # the annotator slipped: the longer one was taken
    ("good and long indeed", "good"),  # gold ties
    ("good", "fair"),  # close
]


def gold(prompt: str, answer: str) -> Any:
    parts = {"correctness": WORTH[answer], "tone": 0.0}
    return SimpleNamespace(total=WORTH[answer], parts=parts)


def by_words(prompts: list[str], answers: list[str]) -> list[float]:
    return [float(len(answer.split())) for answer in answers]


def inspector(reward: Any) -> RewardInspector:
    rows = [{"prompt": "q", "chosen": a, "rejected": b} for a, b in PAIRS]
    return RewardInspector.of(reward, rows)


def test_what_a_model_of_length_follows() -> None:
    found = follows(inspector(by_words), gold)
    # labels: tie, yes, yes, tie; truth: margins are 0, +3, (gold ties), 0 -> not preferred
    assert found["its labels"] == pytest.approx(0.75)
    assert found["the truth"] == pytest.approx(0)
    assert found["the longer answer"] == 1
    assert found["length (r)"] == pytest.approx(1)


def test_what_the_truth_follows() -> None:
    def score(prompts: list[str], answers: list[str]) -> list[float]:
        return [gold(p, a).total for p, a in zip(prompts, answers, strict=True)]

    found = follows(inspector(score), gold)
    assert found["the truth"] == 1
    assert found["its labels"] == pytest.approx((1 + 0 + 0.5 + 1) / 4)


def test_without_a_decided_pair_there_is_no_share() -> None:
    only = [{"prompt": "q", "chosen": "good", "rejected": "good and long indeed"}]
    found = follows(RewardInspector.of(by_words, only), gold)
    assert math.isnan(found["the truth"])
    assert math.isnan(found["length (r)"])


def test_mistakes_are_those_that_are_sure_and_far_from_the_truth() -> None:
    found = confident_mistakes(inspector(by_words), gold)
    assert (len(found), found.all, found.pairs) == (1, 1, 4)
    row = found.rows[0]
    assert row["liked"] == {"text": "bad <b> and long", "reward": 4.0, "gold": 0.0, "parts": {}}
    assert row["better"]["text"] == "good"
    assert "bad &lt;b&gt; and long" in found._repr_html_()
    assert "reward +4.00, gold +0.00" in repr(found)
    assert len(confident_mistakes(inspector(by_words), gold, apart=3)) == 0
    assert "no pair" in confident_mistakes(inspector(by_words), gold, n=0)._repr_html_()


def test_the_surest_come_first() -> None:
    wrong = {"good": 0.0, "bad": 1.0, "bad <b> and long": 5.0, "good and long indeed": 0, "fair": 0}
    found = confident_mistakes(inspector(lambda ps, qs: [wrong[q] for q in qs]), gold)
    assert [row["liked"]["text"] for row in found.rows] == ["bad <b> and long", "bad"]


def test_parts_count_the_pairs_that_differ_in_them() -> None:
    found = by_part(inspector(by_words), gold, least=1)
    assert set(found) == {"correctness"}, "tone is the same everywhere"
    # pairs 1, 2 and 4 differ: a tie of the model, the wrong one, a tie
    assert (found["correctness"].n, found["correctness"].mean) == (3, pytest.approx(1 / 3))
    assert by_part(inspector(by_words), gold, least=4) == {}


def test_texts_are_needed() -> None:
    with pytest.raises(CourseError, match=r"RewardInspector\.of"):
        gold_margins(RewardInspector([1.0], [0.0]), gold)
