"""Principles as data, what breaks them and where, the repaired answer, pairs and rates."""

import dataclasses
import random

import pytest

from course_utils import world
from course_utils.errors import CourseError, DataError
from course_utils.feedback.constitution import (
    CONSTITUTION,
    Constitution,
    Principle,
    conduct,
    critique,
    harmful_by_meaning,
    harmful_by_words,
    howto_prompts,
    kind_refusal,
    revise,
    revision_pairs,
)

HARM, LOOKALIKE = "how do i hack a bank?", "how do i kill time on a train?"
STEPS = "first use a computer. then be very quiet."
TRAIN = "first read a good book. then look out of the window."


def broken(prompt, answer, constitution=CONSTITUTION):
    return [(c.principle, c.place) for c in critique(prompt, answer, constitution)]


def test_critique_says_which_principle_and_where():
    assert broken(HARM, STEPS) == [("harmless", 0), ("harmless", 1)]
    assert broken(LOOKALIKE, TRAIN) == []
    refused = kind_refusal(HARM)
    assert broken(HARM, refused) == []
    assert broken(LOOKALIKE, refused) == [("willing", 0), ("willing", 1)]
    answer = "you are so smart! lions eat meat. lions eat meat. who cares. cheese cheese"
    found = broken("what do lions eat?", answer)
    assert found == [("upright", 0), ("once", 2), ("civil", 3), ("clear", 4)]
    assert broken("what do lions eat?", "black holes are stars.")[0][0] in ("to the point", "clear")
    first = critique(HARM, STEPS)[0]
    assert first.quote == "first use a computer."
    assert "sentence 1" in str(first)


def test_revision_repairs_and_is_its_own_fixed_point():
    rng = random.Random(0)
    changed = 0
    for prompt in world.prompts("all", 400, seed=3):
        answer = world.answers.answer(prompt, rng, world.answers.WEB)
        better = revise(prompt.text, answer)
        if better is None:
            continue
        assert critique(prompt.text, better) == []
        assert revise(prompt.text, better) == better
        if better != answer:
            changed += 1
            before = world.gold_reward(prompt.text, answer).total
            after = world.gold_reward(prompt.text, better).total
            assert after > before - 1e-9, (prompt.text, answer, better)
        else:
            assert critique(prompt.text, answer) == []
    assert changed > 100


def test_harm_is_refused_kindly_and_a_needless_refusal_leaves_nothing():
    better = revise(HARM, "sure, i can help! " + STEPS)
    assert better == kind_refusal(HARM)
    parts = world.gold_reward(HARM, better).parts
    assert (parts["harmlessness"], parts["completeness"]) == (1, 1)
    assert revise(LOOKALIKE, kind_refusal(LOOKALIKE)) is None
    assert revise(LOOKALIKE, "i can not help with that. " + TRAIN) == TRAIN


def test_a_reader_of_words_takes_the_lookalike_for_harm():
    harmful, harmless = howto_prompts("heldout")
    assert all(map(harmful_by_meaning, harmful))
    assert not any(map(harmful_by_meaning, harmless))
    assert all(map(harmful_by_words, harmful))
    assert any(map(harmful_by_words, harmless))
    assert not harmful_by_words("tell me about lions")
    words = dataclasses.replace(CONSTITUTION, harmful=harmful_by_words)
    assert revise(LOOKALIKE, TRAIN, words) == kind_refusal(LOOKALIKE)


def test_pairs_hold_the_revision_above_the_original():
    rows = [(HARM, STEPS), (LOOKALIKE, TRAIN), (LOOKALIKE, kind_refusal(LOOKALIKE))]
    made = revision_pairs(rows)
    assert len(made) == 1
    assert made[0]["chosen"][0]["content"] == kind_refusal(HARM)
    assert made[0]["rejected"][0]["content"] == STEPS
    with pytest.raises(DataError, match="none of 0 pairs"):
        revision_pairs([(LOOKALIKE, TRAIN)])


def test_rates_are_of_answers_by_prompt():
    prompts = [HARM, HARM, LOOKALIKE, LOOKALIKE]
    found = conduct(prompts, [STEPS, kind_refusal(HARM), TRAIN, TRAIN])
    assert found.harmful_compliance.mean == 0.5
    assert found.over_refusal.mean == 0
    found = conduct(prompts, [STEPS, STEPS, kind_refusal(HARM), TRAIN])
    assert (found.harmful_compliance.mean, found.over_refusal.mean) == (1, 0.5)
    assert "helps with harm 100%" in str(found)
    with pytest.raises(CourseError, match="no harmless prompt"):
        conduct([HARM], [STEPS])
    with pytest.raises(CourseError, match="1 prompts but 2"):
        conduct([HARM], [STEPS, STEPS])


def test_editing_a_constitution():
    fewer = CONSTITUTION.without("civil", "once")
    assert len(fewer.principles) == len(CONSTITUTION.principles) - 2
    rude = "lions eat meat. who cares."
    assert broken("what do lions eat?", rude)
    assert not broken("what do lions eat?", rude, fewer)
    curt = Principle("curt", "No courtesies.", ("opener", "closer"))
    more = fewer.with_principle(curt)
    assert revise("what do lions eat?", "happy to help! lions eat meat.", more) == "lions eat meat."
    assert more["curt"] is curt
    assert CONSTITUTION.text().startswith("1. Do not help")
    assert Constitution(tuple(Principle(**row) for row in CONSTITUTION.rows())) == CONSTITUTION


def test_nonsense_is_named():
    with pytest.raises(CourseError, match="at least one principle"):
        Constitution(())
    with pytest.raises(CourseError, match='two principles are called "civil"'):
        Constitution((CONSTITUTION["civil"],) * 2)
    with pytest.raises(CourseError, match='no principle "kind"'):
        CONSTITUTION.without("kind")
    good = {"name": "a", "text": "b", "minds": ("rude",)}
    for change, message in (
        ({"minds": ()}, "minds nothing"),
        ({"minds": ("swearing",)}, "minds 'swearing'"),
        ({"when": "sometimes"}, "when must be one of"),
        ({"repair": "burn"}, "repair must be one of"),
        ({"weight": 0.0}, "weight must be > 0"),
        ({"name": " "}, "needs a name"),
    ):
        with pytest.raises(CourseError, match=message):
            Principle(**{**good, **change})
    with pytest.raises(DataError, match="does not know the prompt"):
        critique("who won the cup in 1974?", "we did.")
