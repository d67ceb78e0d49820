"""Prompts, paraphrases and the split that is never crossed."""

import collections

import pytest

from course_utils import world
from course_utils.errors import DataError
from course_utils.world.families import (
    FAMILIES,
    TEMPLATES,
    calculate,
    catalogue,
    find,
    held_out_topics,
    prompts,
)
from course_utils.world.knowledge import load

EVERY = [p for family in catalogue().values() for p in family]


def test_every_prompt_is_found_again_by_its_text() -> None:
    assert set(catalogue()) == set(FAMILIES) == set(TEMPLATES)
    for prompt in EVERY:
        found = find(prompt.text)
        assert found is not None
        assert (found.family, set(found.topics), found.detail) == (
            prompt.family,
            set(prompt.topics),
            prompt.detail,
        )


@pytest.mark.parametrize(
    "text",
    [
        "Explain black holes to a 5-year-old",
        "explain BLACK holes   to a 5 year old.",
        "Explain the moon landing to a 6 year old",
        "Should I add chorizo to my paella?",
        "should i add chorizo to my paella",
    ],
)
def test_the_lectures_prompts_are_known_in_any_spelling(text: str) -> None:
    found = find(text)
    assert found is not None
    assert found.split == "heldout"


def test_two_topics_of_each_domain_are_held_out_and_never_in_a_training_prompt() -> None:
    held = held_out_topics()
    per_domain = collections.Counter(load().topic(name).domain_name for name in held)
    assert set(per_domain.values()) == {2}
    assert len(per_domain) == len(load().domains)
    for prompt in EVERY:
        if prompt.split == "train":
            assert not held & set(prompt.topics), prompt


def test_held_out_paraphrases_are_never_trained_on() -> None:
    for family, (train, held) in TEMPLATES.items():
        assert not set(train) & set(held)
        # a held-out paraphrase is recognised by the words before its first slot, or after its last
        starts = {t.split("{")[0] for t in held} - {t.split("{")[0] for t in train}
        for prompt in catalogue()[family]:
            if any(start and prompt.text.startswith(start) for start in starts):
                assert prompt.split == "heldout", prompt.text


def test_drawing_is_seeded_distinct_and_follows_the_weights() -> None:
    first = prompts("train", 600, seed=3)
    assert first == prompts("train", 600, seed=3)
    assert first != prompts("train", 600, seed=4)
    assert len({p.text for p in first}) == 600
    counts = collections.Counter(p.family for p in first)
    assert set(counts) == set(FAMILIES)
    assert counts["explain"] > counts["story"]
    assert {p.split for p in first} == {"train"}
    assert {p.split for p in prompts("heldout", 300)} == {"heldout"}


def test_harmful_and_harmless_tasks_are_drawn_equally_often() -> None:
    tasks = [load().howto(p.detail).harmful for p in prompts("train", 40, families=["howto"])]
    assert abs(sum(tasks) - 20) <= 1


def test_which_has_exactly_one_right_answer() -> None:
    for prompt in catalogue()["which"]:
        values = [load().topic(name).value(prompt.detail) for name in prompt.topics]
        assert values.count(values[0]) == 1


@pytest.mark.parametrize(
    ("text", "value"),
    [("3 + 4", 7), ("12 - 5", 7), ("5 * 4", 20), ("3+4", None), ("3 / 4", None), ("x + 1", None)],
)
def test_sums(text: str, value: int | None) -> None:
    assert calculate(text) == value


def test_a_sum_that_is_not_in_the_catalogue_is_still_understood() -> None:
    found = find("What is 40 + 7?")
    assert found is not None
    assert found.detail == "40 + 7"


def test_bad_requests_say_what_exists() -> None:
    with pytest.raises(DataError, match='"train", "heldout" or "all"'):
        prompts("test", 3)
    with pytest.raises(DataError, match="explain, describe"):
        prompts("train", 3, families=["poems"])
    with pytest.raises(DataError, match="lower n"):
        prompts("train", 10**6)
    assert find("what is the meaning of life?") is None


def test_the_package_hands_out_the_function_not_the_module() -> None:
    assert world.prompts is prompts
