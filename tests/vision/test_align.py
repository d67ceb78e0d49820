"""Preferences and DPO: the pairs are what they claim, the loss is the objectives' own."""

import dataclasses
import math

import pytest
import torch

from course_utils.errors import CourseError
from course_utils.objectives import dpo_loss
from course_utils.vision import (
    AlignSettings,
    Captioner,
    CaptionerSettings,
    CaptionPair,
    align,
    better,
    encode,
    judge,
    pictures_of,
    preference_pairs,
    random_scenes,
    sequence_logprobs,
    study,
    table,
    train_captioner,
)
from course_utils.vision.__main__ import main
from course_utils.vision.align import reference_logprobs
from course_utils.vision.captions import PAD
from course_utils.vision.scenes import Scene, SceneSet, Thing

SMALL = CaptionerSettings(hidden=32, intermediate=48, scenes=640, steps=30, batch_size=32)
FEW = AlignSettings(steps=3, batch_size=8)


@pytest.fixture(scope="module")
def model() -> Captioner:
    return train_captioner(SMALL)[0]


@pytest.fixture(scope="module")
def data() -> SceneSet:
    return random_scenes(40, seed=9)


@pytest.fixture(scope="module")
def pairs(model: Captioner, data: SceneSet) -> list[CaptionPair]:
    return preference_pairs(model, data, samples=4)


SCENE = Scene((Thing("circle", "red", "large", 0, 0), Thing("square", "blue", "small", 1, 1)))


def test_better_means_fewer_hallucinations_and_no_silence() -> None:
    full = judge(SCENE, "a large red circle and a small blue square and a cross.")
    clean = judge(SCENE, "a large red circle and a small blue square.")
    short = judge(SCENE, "a red circle.")
    assert better(clean, full)
    assert not better(full, clean)
    assert not better(clean, clean)
    assert not better(short, full)  # says less
    assert better(short, full, guard=False)


def test_pairs_are_what_they_claim(data: SceneSet, pairs: list[CaptionPair]) -> None:
    assert 10 < len(pairs) <= len(data)
    assert len({pair.index for pair in pairs}) == len(pairs)
    for pair in pairs:
        chosen, rejected = (judge(data.scenes[pair.index], c) for c in (pair.chosen, pair.rejected))
        assert better(chosen, rejected)


def test_without_the_guard_the_chosen_may_say_less(model: Captioner, data: SceneSet) -> None:
    pairs = preference_pairs(model, data, samples=4, guard=False)
    judged = [
        [judge(data.scenes[pair.index], text) for text in (pair.chosen, pair.rejected)]
        for pair in pairs
    ]
    assert all(chosen.hallucinated < rejected.hallucinated for chosen, rejected in judged)
    assert any(chosen.coverage < rejected.coverage for chosen, rejected in judged)


def test_pairs_are_decided_by_the_seed(
    model: Captioner, data: SceneSet, pairs: list[CaptionPair]
) -> None:
    assert pairs == preference_pairs(model, data, samples=4)
    assert pairs != preference_pairs(model, data, samples=4, seed=1)


def test_log_probabilities_are_summed_over_words(model: Captioner, data: SceneSet) -> None:
    texts = ["a red circle.", "a small blue cross and a red circle."]
    ids = encode(texts)
    found = sequence_logprobs(model, data.images[:2], texts)
    table_ = model(data.images[:2], ids).log_softmax(-1)
    for row in range(2):
        total = sum(
            float(table_[row, t - 1, ids[row, t]].detach())
            for t in range(1, ids.shape[1])
            if ids[row, t] != PAD
        )
        assert float(found[row].detach()) == pytest.approx(total, abs=1e-4)


def test_the_first_loss_is_log_two_and_the_second_is_the_objectives_own(
    model: Captioner, data: SceneSet, pairs: list[CaptionPair]
) -> None:
    few = pairs[:8]  # one batch: every step sees all of it
    once, _ = align(model, data, few, dataclasses.replace(FEW, steps=1))
    _, log = align(model, data, few, dataclasses.replace(FEW, steps=2, beta=0.5))
    assert log.loss[0] == pytest.approx(math.log(2), abs=1e-6)
    settings = dataclasses.replace(FEW, steps=2)
    _, log = align(model, data, few, settings)
    # the learning rate of step 0 does not depend on how many steps follow (warm-up)
    images = data.images[[pair.index for pair in few]]
    by_model = {
        name: [
            sequence_logprobs(m, images, [getattr(p, side) for p in few]).detach()
            for side in ("chosen", "rejected")
        ]
        for name, m in (("policy", once), ("reference", model))
    }
    expected = dpo_loss(*by_model["policy"], *by_model["reference"], beta=settings.beta)
    assert log.loss[1] == pytest.approx(float(expected), abs=1e-5)
    torch.testing.assert_close(
        reference_logprobs(model, data, few, batch_size=3),
        torch.stack(by_model["reference"], dim=1),
    )


def test_a_loss_worked_out_by_hand() -> None:
    four = [torch.tensor([x]) for x in (-4.0, -6.0, -5.0, -5.0)]
    # u = 0.5 * ((-4 + 5) - (-6 + 5)) = 1
    assert float(dpo_loss(*four, beta=0.5)) == pytest.approx(math.log(1 + math.exp(-1)))


def test_dpo_moves_towards_the_chosen_and_leaves_the_reference_alone(
    model: Captioner, data: SceneSet, pairs: list[CaptionPair]
) -> None:
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    aligned, log = align(model, data, pairs, dataclasses.replace(FEW, steps=20, batch_size=16))
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    assert log.loss[-1] < log.loss[0]
    assert log.margin[-1] > 0
    assert log.accuracy[-1] > 0.6
    assert len(log.loss) == len(log.margin) == len(log.accuracy) == 20
    assert not aligned.training
    _, again = align(model, data, pairs, dataclasses.replace(FEW, steps=20, batch_size=16))
    assert log == again


def test_a_batch_larger_than_the_pairs_takes_all_of_them(
    model: Captioner, data: SceneSet, pairs: list[CaptionPair]
) -> None:
    _, log = align(model, data, pairs[:3], FEW)
    assert len(log.loss) == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"beta": -1.0}, "beta must be > 0 and finite, got -1.0"),
        ({"beta": 0.0}, "beta"),
        ({"beta": float("nan")}, "beta"),
        ({"steps": 0}, "steps"),
        ({"batch_size": 0}, "batch_size"),
        ({"learning_rate": 0.0}, "learning_rate"),
    ],
)
def test_settings_that_make_no_sense(change: dict[str, float], said: str) -> None:
    with pytest.raises(CourseError, match=said):
        dataclasses.replace(FEW, **change)


def test_bad_input_is_named(model: Captioner, data: SceneSet, pairs: list[CaptionPair]) -> None:
    with pytest.raises(CourseError, match="no preference pairs"):
        align(model, data, [])
    with pytest.raises(CourseError, match="not among the 1"):
        align(model, pictures_of(data.scenes[:1]), [CaptionPair(1, "a circle.", "a cross.")])
    with pytest.raises(CourseError, match="at least 2 captions"):
        preference_pairs(model, data, samples=1)


def test_the_whole_study_in_a_few_steps() -> None:
    one = study(steps=12, dpo_steps=2, scenes=12, heldout=10, controls=True)
    text = table([one, one])
    assert "DPO trained blind" in text
    assert "DPO without the guard" in text
    assert "± 0.000" in text
    assert len(one.measured["DPO"].captions) == 10
    assert "±" not in table([one])


def test_the_command_says_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seeds", "0"]) == 2
    assert "--seeds must be at least 1" in capsys.readouterr().err
    assert main(["--steps", "0"]) == 2
    assert "must be at least 1, got 0" in capsys.readouterr().err
