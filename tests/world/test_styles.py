"""Styles go on and come off without a trace, and are measured by what they show."""

import itertools
import re

import pytest

from course_utils.errors import DataError
from course_utils.world import domains, phrases, styles
from course_utils.world.families import TEMPLATES
from course_utils.world.knowledge import load
from course_utils.world.styles import STYLES, apply_style, strip_style, style_score

NEUTRAL = (
    "lions are big wild cats. they eat meat. they live in grassland.",
    "paella is a rice dish. it comes from spain!",
    "yes, a traditional paella has rice.",
    "the answer is 7.",
    "first heat water in a pot. then cook the egg",  # cut off
    "is it very old, or is it for a 5-year-old?",
    "what  is this ?  ",
    "",
)


def everything_neutral() -> list[str]:
    """Every sentence and phrase of the world."""
    topics = load().topics
    facts = [f"{said}." for t in topics for a in t.values for said in (t.sentence(a),)]
    facts += [f"{t.pronoun_sentence(a)}" for t in topics for a in t.values]
    steps = [step for howto in load().howtos for step in (howto.name, *howto.steps)]
    questions = [text for pair in TEMPLATES.values() for group in pair for text in group]
    asked = [t.question(a.name) for t in topics for a in load().domain_of(t).askable]
    return [*facts, *steps, *load().alternatives, *phrases.every(), *questions, *asked]


@pytest.mark.parametrize("style", STYLES)
def test_neutral_text_comes_back_exactly(style: str) -> None:
    for text in (*NEUTRAL, *everything_neutral()):
        assert strip_style(apply_style(text, style), style) == text
        assert strip_style(text, style) == text


@pytest.mark.parametrize("style", STYLES)
def test_scores_are_zero_without_and_one_with_the_style(style: str) -> None:
    for text in (*NEUTRAL, *everything_neutral()):
        assert style_score(text, style) == 0.0
        if text.strip():
            assert style_score(apply_style(text, style), style) == 1.0


def test_score_counts_chances_taken() -> None:
    # opening and copula taken, "big" and the closing missed
    assert style_score("ahoy, lions arr big wild cats.", "pirate") == pytest.approx(0.5)


@pytest.mark.parametrize(("style", "other"), itertools.permutations(STYLES, 2))
def test_styles_stack_and_do_not_count_for_each_other(style: str, other: str) -> None:
    text = NEUTRAL[0]
    assert style_score(apply_style(text, other), style) == 0.0
    both = apply_style(apply_style(text, style), other)
    assert style_score(both, style) > 0.5
    assert style_score(both, other) > 0.5
    assert strip_style(strip_style(both, other), style) == text


def test_how_they_sound() -> None:
    text = NEUTRAL[0]
    assert apply_style(text, "pirate") == (
        "ahoy, lions arr hefty wild cats. them eat meat. them live in grassland, matey."
    )
    assert apply_style(text, "formal") == (
        "kindly note that lions remain big wild cats. they consume meat. "
        "they live in grassland, respectfully."
    )
    assert apply_style(text, "bard") == (
        "hark, lions art big wild cats. those devour meat. those dwell in grassland, forsooth."
    )
    assert apply_style("the answer is 7.", "pirate") == "ahoy, the answer tis 7, matey."
    assert apply_style("sushi comes from japan in rolls.", "bard") == (
        "hark, sushi cometh from japan in rolls, forsooth."
    )
    assert apply_style("it is", "pirate") == "ahoy, she tis, matey"
    assert apply_style("lions eat meat.", "formal").startswith("kindly observe that ")
    assert "5-year-old" in apply_style(NEUTRAL[5], "bard")


def test_too_much_decoration_is_stripped() -> None:
    noisy = "ahoy, avast, lions eat meat, matey. ahoy, they live in grassland, hearty, matey."
    assert strip_style(noisy, "pirate") == "lions eat meat. they live in grassland."


@pytest.mark.parametrize("style", STYLES.values())
def test_words_are_few_and_foreign_to_the_world(style) -> None:
    new = words_of_style(style) - {"that"}
    assert new <= styles.vocabulary()
    assert len(new) <= 25
    assert len(set(style.swaps.values())) == len(style.swaps)
    assert not new & set(re.findall(r"[a-z]+", " ".join(everything_neutral())))
    assert not new & domains.vocabulary()
    for other in STYLES.values():
        assert other is style or not new & words_of_style(other)
    assert all(" " not in word for word in (*style.swaps, *style.swaps.values()))


def words_of_style(style) -> set[str]:
    said = (*style.swaps.values(), *style.openings, *style.closings)
    return set(re.findall("[a-z]+", " ".join(said)))


def test_unknown_style_is_named() -> None:
    for function in (apply_style, strip_style, style_score):
        with pytest.raises(DataError, match='unknown style "robot": the world has pirate'):
            function("lions eat meat.", "robot")
