"""The metric by cases: what is claimed, what of it is false, what is left out."""

import itertools
import random

import pytest

from course_utils.errors import DataError
from course_utils.vision import (
    HONEST,
    Mention,
    Scene,
    Thing,
    Web,
    attributes,
    decode,
    encode,
    hallucination_rate,
    judge,
    random_scenes,
    true_caption,
    web_caption,
)
from course_utils.vision.captions import MAX_WORDS, WORDS, relation_of

ONE = Scene((Thing("circle", "red", "large", 0, 0),))
TWO = Scene((Thing("circle", "red", "large", 0, 0), Thing("square", "blue", "small", 1, 1)))

# scene, caption, claims, false, coverage, correct
CASES = [
    (ONE, "a large red circle.", 3, 0, 1, True),
    (ONE, "a red circle.", 2, 0, 2 / 3, True),
    (ONE, "a small red circle.", 3, 1, 2 / 3, False),
    (ONE, "a blue circle.", 2, 1, 1 / 3, False),
    (ONE, "a red square.", 2, 1, 1 / 3, False),
    (ONE, "a blue square.", 2, 2, 0, False),
    (ONE, "a red circle and a red circle.", 4, 2, 2 / 3, False),
    (ONE, "a red circle and a yellow triangle.", 4, 2, 2 / 3, False),
    (ONE, "a red circle above a blue cross.", 5, 3, 2 / 3, False),
    (ONE, "", 0, 0, 0, False),
    (ONE, ".", 0, 0, 0, False),
    (ONE, "a large red.", 2, 0, 2 / 3, False),
    (TWO, "a large red circle left of a small blue square.", 7, 0, 1, True),
    (TWO, "a large red circle above a small blue square.", 7, 0, 1, True),
    (TWO, "a small blue square below a large red circle.", 7, 0, 1, True),
    (TWO, "a large red circle right of a small blue square.", 7, 1, 1, False),
    (TWO, "a blue square and a red circle.", 4, 0, 4 / 6, True),
    (TWO, "a red circle.", 2, 0, 2 / 6, False),
    (TWO, "a red square and a blue circle.", 4, 2, 2 / 6, False),
    (TWO, "a red circle and a blue square and a red circle.", 6, 2, 4 / 6, False),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[1] or "nothing")
def test_cases(case: tuple[Scene, str, int, int, float, bool]) -> None:
    scene, caption, claims, false, coverage, correct = case
    found = judge(scene, caption)
    assert (found.claims, found.false, found.correct) == (claims, false, correct)
    assert found.coverage == pytest.approx(coverage)
    assert hallucination_rate(scene, caption) == (false / claims if claims else 0)


def test_the_words_are_marked_one_by_one() -> None:
    found = judge(TWO, "a large red circle right of a small blue square and a cross.").verdicts
    said = " ".join(word for word, _ in found)
    assert said == "a large red circle right of a small blue square and a cross ."
    false = [word for word, fits in found if fits is False]
    assert false == ["right", "of", "cross"]
    assert [word for word, fits in found if fits is None] == ["a", "a", "and", "a", "."]


def test_attributes_reads_what_is_there() -> None:
    assert attributes("A red circle left of a small square.") == (
        Mention(shape="circle", colour="red"),
        Mention(shape="square", size="small", relation="left of"),
    )


@pytest.mark.parametrize(
    ("caption", "mentions"),
    [
        ("circle", 1),
        ("a a red", 1),
        ("red blue circle", 2),
        ("left of a red circle", 1),
        ("of of right above . and", 0),
        ("large circle square", 2),
        ("a red and a circle", 2),
    ],
)
def test_attributes_bears_bad_grammar(caption: str, mentions: int) -> None:
    found = attributes(caption)
    assert len(found) == mentions
    assert not found or found[0].relation is None


def test_true_captions_survive_the_parser_and_tell_all() -> None:
    for scene in random_scenes(200).scenes:
        caption = true_caption(scene)
        said = [(m.shape, m.colour, m.size) for m in attributes(caption)]
        assert said == [(t.shape, t.colour, t.size) for t in scene.things]
        judged = judge(scene, caption)
        assert judged.correct
        assert judged.coverage == 1


def brute_force(scene: Scene, caption: str) -> int:
    """The most claims that any match makes true: every way to deal the things out."""
    mentions, things = attributes(caption), [*scene.things]
    slots: list[Thing | None] = [*things, *([None] * len(mentions))]
    best = 0
    for match in itertools.permutations(slots, len(mentions)):
        true = 0
        for i, (mention, thing) in enumerate(zip(mentions, match, strict=True)):
            if thing is None:
                continue
            said = mention.claims().items()
            true += sum(getattr(thing, name) == value for name, value in said)
            before = match[i - 1] if i else None
            true += before is not None and mention.relation in relation_of(before, thing)
        best = max(best, true)
    return best


def test_the_match_is_the_best_of_all() -> None:
    rng = random.Random(0)
    wild = Web(wrong_colour=0.5, wrong_size=0.5, wrong_relation=0.5)
    for scene in random_scenes(60).scenes:
        other = rng.choice(random_scenes(60).scenes)
        judged = judge(scene, caption := web_caption(other, rng, wild))
        assert judged.claims - judged.false == brute_force(scene, caption)


def test_a_caption_of_an_untrained_model_is_judged_at_once() -> None:
    three = next(scene for scene in random_scenes(50).scenes if len(scene.things) == 3)
    assert judge(three, " ".join(["red circle"] * (MAX_WORDS // 2))).false > 0


def test_the_web_hallucinates_and_the_honest_web_does_not() -> None:
    rng, scenes = random.Random(1), random_scenes(500).scenes
    web = [judge(scene, web_caption(scene, rng)) for scene in scenes]
    assert 0.1 < sum(j.hallucinated for j in web) / len(web) < 0.3
    assert all(judge(scene, web_caption(scene, rng, HONEST)).correct for scene in scenes)


def test_the_habit_adds_what_is_not_there() -> None:
    scene = Scene((Thing("cross", "blue", "small", 0, 0),))
    always = Web(habit=1, wrong_colour=0, wrong_size=0, say_size=0)
    assert web_caption(scene, random.Random(0), always) == "a blue cross and a red circle."
    both = Scene((scene.things[0], Thing("circle", "red", "small", 1, 1)))
    assert judge(both, web_caption(both, random.Random(0), always)).false == 0


def test_words_and_numbers() -> None:
    captions = ["a red circle.", "a large blue square left of a cross."]
    ids = encode(captions)
    assert ids.shape == (2, 11)
    assert decode(ids) == captions
    assert encode([]).numel() == 0
    assert len(set(WORDS)) == len(WORDS)


def test_unknown_words_and_endless_captions_are_named() -> None:
    with pytest.raises(DataError, match='"pink" is not in the vocabulary; known: a and'):
        hallucination_rate(ONE, "a pink circle.")
    with pytest.raises(DataError, match="<pad>"):
        encode(["a <pad> circle"])
    with pytest.raises(DataError, match=f"at most {MAX_WORDS}"):
        encode(["red " * (MAX_WORDS + 1)])
