"""Annotators choose as Bradley-Terry says, show the bias asked for, and never change their mind."""

import math
from dataclasses import FrozenInstanceError, dataclass

import pytest

from course_utils.errors import CourseError
from course_utils.world import phrases
from course_utils.world.annotators import Annotator, flattery


@dataclass(frozen=True)
class Score:
    total: float


def judge(prompt: str, answer: str) -> Score:
    """The number in the answer is its worth: "short 1.5" -> 1.5."""
    return Score(float(answer.split()[-1]))


def share_of_first(annotator: Annotator, a: str, b: str, n: int = 2000) -> float:
    """How often `a`, shown first, is preferred over n prompts."""
    return sum(annotator.compare(f"prompt {i}", a, b) == 0 for i in range(n)) / n


@pytest.mark.parametrize(("temperature", "gap"), [(0.5, 0.5), (1.0, -0.7), (2.0, 1.0)])
def test_probability_is_bradley_terry_and_choices_follow_it(temperature, gap) -> None:
    annotator = Annotator(temperature=temperature, judge=judge)
    expected = 1 / (1 + math.exp(-gap / temperature))
    assert annotator.probability("p", f"a {gap}", "b 0") == pytest.approx(expected)
    assert share_of_first(annotator, f"a {gap}", "b 0") == pytest.approx(expected, abs=0.04)


def test_noise_flips_labels() -> None:
    annotator = Annotator(temperature=0.0, noise=0.2, judge=judge)
    assert annotator.probability("p", "a 1", "b 0") == pytest.approx(0.8)
    assert share_of_first(annotator, "a 1", "b 0") == pytest.approx(0.8, abs=0.03)
    assert share_of_first(annotator, "a 0", "b 1") == pytest.approx(0.2, abs=0.03)


def test_temperature_zero_takes_the_better_and_tosses_for_equals() -> None:
    annotator = Annotator(temperature=0.0, judge=judge)
    assert share_of_first(annotator, "a 0.1", "b 0", n=50) == 1.0
    assert share_of_first(annotator, "a 0", "b 0.1", n=50) == 0.0
    assert share_of_first(annotator, "a 1", "b 1") == pytest.approx(0.5, abs=0.04)
    # far apart and nearly cold: no overflow
    cold = Annotator(temperature=1e-9, judge=judge)
    assert cold.probability("p", "a 3", "b 0") == 1.0
    assert cold.probability("p", "a 0", "b 3") == 0.0


def test_biases_are_worth_what_they_say() -> None:
    long_answer = "word " * 19 + "0"  # 20 words
    assert Annotator(length_bias=0.3, judge=judge).utility("p", long_answer) == pytest.approx(0.6)
    flattering = f"{phrases.FLATTERY[0]} {phrases.FLATTERY[1]} 0"
    assert Annotator(sycophancy=0.4, judge=judge).utility("p", flattering) == pytest.approx(0.8)
    first = Annotator(temperature=1.0, position_bias=1.0, judge=judge)
    assert first.probability("p", "a 0", "b 0") == pytest.approx(1 / (1 + math.exp(-1)))
    assert first.utility("p", "a 0") == 0.0
    assert Annotator(judge=judge).utility("p", flattering) == 0.0


def test_flattery_is_counted_in_any_spelling() -> None:
    phrase = phrases.FLATTERY[0]
    spaced = phrase.replace("!", " !").upper()
    assert flattery("lions eat meat.") == 0
    assert flattery(f"{spaced} lions eat meat. {phrase}") == 2
    assert all(flattery(opener) == 0 for opener in phrases.WARM_OPENERS)


def test_the_same_question_gets_the_same_answer() -> None:
    annotator = Annotator(temperature=1.0, judge=judge)
    questions = [(f"prompt {i}", f"a {i % 3}", f"b {i % 2}") for i in range(60)]
    forward = [annotator.compare(*q) for q in questions]
    backward = [Annotator(temperature=1.0, judge=judge).compare(*q) for q in questions[::-1]]
    assert forward == backward[::-1]
    swapped = [annotator.compare(p, b, a) for p, a, b in questions]
    assert [1 - label for label in swapped] == forward
    other = [Annotator(temperature=1.0, seed=1, judge=judge).compare(*q) for q in questions]
    assert other != forward


def test_position_bias_breaks_the_symmetry() -> None:
    biased = Annotator(temperature=0.5, position_bias=2.0, judge=judge)
    same = [biased.compare(f"p{i}", "a 0", "b 0") for i in range(200)]
    swapped = [biased.compare(f"p{i}", "b 0", "a 0") for i in range(200)]
    assert sum(same) < 20
    assert sum(swapped) < 20


def test_label_makes_preference_rows() -> None:
    annotator = Annotator(temperature=0.0, judge=judge)
    rows = annotator.label([("p", "a 0", "b 1"), ("q", "a 2", "b 1"), ("r", "same 1", "same 1")])
    assert rows == [
        {"prompt": "p", "chosen": "b 1", "rejected": "a 0"},
        {"prompt": "q", "chosen": "a 2", "rejected": "b 1"},
    ]


def test_rank_has_the_pairwise_probabilities_of_compare() -> None:
    assert Annotator(temperature=0.0, judge=judge).rank("p", ["a 1", "b 3", "c 2"]) == [1, 2, 0]
    assert Annotator(0.0, noise=1.0, judge=judge).rank("p", ["a 1", "b 3", "c 2"]) == [0, 2, 1]
    annotator = Annotator(temperature=0.5, noise=0.1, position_bias=0.2, judge=judge)
    answers = ["a 0", "b 0.5", "c 0.2"]
    orders = [annotator.rank(f"p{i}", answers) for i in range(2000)]
    above = sum(order.index(0) < order.index(1) for order in orders) / len(orders)
    assert above == pytest.approx(annotator.probability("p", answers[0], answers[1]), abs=0.04)
    assert orders == [annotator.rank(f"p{i}", answers) for i in range(2000)]


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": math.inf},
        {"noise": 1.1},
        {"noise": math.nan},
        {"length_bias": 11.0},
        {"sycophancy": -11.0},
        {"position_bias": math.inf},
    ],
)
def test_values_out_of_range_are_refused(wrong: dict) -> None:
    name = next(iter(wrong))
    with pytest.raises(CourseError, match=rf"Annotator\({name}=.*must lie in"):
        Annotator(**wrong)


def test_an_annotator_is_frozen_and_judges_by_gold() -> None:
    annotator = Annotator(temperature=0.0)
    with pytest.raises(FrozenInstanceError):
        annotator.noise = 0.5  # type: ignore[misc]
    prompt = "what do lions eat?"
    assert annotator.compare(prompt, "lions eat meat.", "lions eat fish.") == 0
    assert annotator.compare(prompt, "lions eat fish.", "lions eat meat.") == 1
