"""Defences against reward hacking: length control and the held-out judge."""

import statistics

import pytest
import torch

from course_utils.errors import CourseError
from course_utils.training.ppo import HeldOutJudge, LengthControlled
from course_utils.training.run import RunLog


def likes_length(prompts: list[str], completions: list[str]) -> list[float]:
    return [0.5 * len(text.split()) + ("good" in text) for text in completions]


ANSWERS = ["good", "a b good", "a b c d", "a b c d e f", "good b c d e f g"]


# ---- length control ------------------------------------------------------------------------------


def test_the_slope_is_that_of_least_squares_and_the_rest_does_not_correlate_with_length() -> None:
    prompts = ["why"] * len(ANSWERS)
    controlled = LengthControlled.fit(likes_length, prompts, ANSWERS)
    lengths = [len(text.split()) for text in ANSWERS]
    wanted, intercept = statistics.linear_regression(lengths, likes_length(prompts, ANSWERS))
    assert controlled.slope == pytest.approx(wanted)
    rest = controlled(prompts, ANSWERS)
    assert statistics.correlation(lengths, rest) == pytest.approx(0, abs=1e-9)
    assert statistics.fmean(rest) == pytest.approx(wanted * statistics.fmean(lengths) + intercept)


def test_a_length_controlled_reward_tells_answers_of_one_length_apart_as_before() -> None:
    controlled = LengthControlled(likes_length, slope=0.5, mean=3.0)
    assert controlled(["q", "q"], ["a b good", "a b c"]) == [2.5, 1.5]
    assert controlled(["q"], ["a b c d e"]) == [1.5]


@pytest.mark.parametrize(
    ("prompts", "answers", "message"),
    [
        (["q"], ["a"], "at least two answers"),
        (["q", "q"], ["a"], "2 prompts and 1 answers"),
        (["q", "q"], ["a b", "c d"], "same length, 2"),
    ],
)
def test_a_slope_that_cannot_be_measured_is_refused(prompts, answers, message) -> None:
    with pytest.raises(CourseError, match=message):
        LengthControlled.fit(likes_length, prompts, answers)


def test_length_control_takes_numbers_and_functions_only() -> None:
    with pytest.raises(CourseError, match="slope must be a finite number"):
        LengthControlled(likes_length, slope=float("nan"), mean=1.0)
    with pytest.raises(CourseError, match="cannot be called"):
        LengthControlled(3, slope=0.5, mean=1.0)


def test_answers_stay_shorter_under_length_control(make_trainer, policy) -> None:
    def lengths(reward: object) -> float:
        start = {name: value.clone() for name, value in policy.state_dict().items()}
        trainer = make_trainer(
            reward=reward, steps=15, beta=0.0, missing_eos_penalty=0.0, learning_rate=3e-3
        )
        rows = trainer.train(progress=False)
        policy.load_state_dict(start)
        return statistics.fmean(row["completion_tokens"] for row in rows[-5:])

    free = lengths(likes_length)
    controlled = lengths(LengthControlled(likes_length, slope=0.5, mean=4.0))
    assert free > controlled + 1.0


# ---- the judge -----------------------------------------------------------------------------------


def falling(scores: list[float]) -> object:
    """A judge's opinion that goes through these values, one measurement after the other."""
    left = iter(scores)

    def score(prompts: list[str], completions: list[str]) -> list[float]:
        return [next(left)] * len(prompts) if prompts else []

    return score


def judged(scores: list[float], **options: object) -> HeldOutJudge:
    return HeldOutJudge(falling(scores), ["hello"], every=1, max_new_tokens=4, **options)


def test_training_ends_when_the_judge_has_seen_no_gain_for_its_patience(make_trainer) -> None:
    judge = judged([0.0, 1.0, 2.0, 1.5, 1.9, 9.0], patience=2)
    trainer = make_trainer(steps=9, judge=judge)
    rows = trainer.train(progress=False)
    assert [row["judge"] for row in rows] == [1.0, 2.0, 1.5, 1.9]
    assert "has not risen in 2 measurements: best 2 at step 2, now 1.9" in trainer.stop_reason
    assert (judge.best_step, judge.best_value) == (2, 2.0)


@pytest.mark.parametrize("restore", [True, False])
def test_the_best_policy_comes_back(make_trainer, policy, restore) -> None:
    judge = judged([0.0, 1.0, 0.5, 0.4], patience=2, restore_best=restore)
    trainer = make_trainer(steps=9, judge=judge)
    after = {}
    for step in trainer:
        after[step.number] = policy.lm_head.weight.clone()
        if step.number == 1:
            best = policy.lm_head.weight.clone()
    assert torch.equal(policy.lm_head.weight, best) == restore
    assert torch.equal(policy.lm_head.weight, after[3])


def test_a_policy_that_never_gets_better_ends_as_it_began(make_trainer, policy) -> None:
    start = policy.lm_head.weight.clone()
    make_trainer(steps=9, judge=judged([1.0, 0.9, 0.8], patience=2)).train(progress=False)
    assert torch.equal(policy.lm_head.weight, start)


def test_small_gains_do_not_count(make_trainer) -> None:
    judge = judged([0.0, 0.1, 0.2, 0.3, 0.4], patience=3, min_gain=0.25)
    rows = make_trainer(steps=4, judge=judge).train(progress=False)
    assert len(rows) == 4
    assert judge.best_step == 3


def test_the_judge_draws_nothing_from_the_run(make_trainer, policy) -> None:
    start = {name: value.clone() for name, value in policy.state_dict().items()}
    plain = make_trainer(steps=2).train(progress=False)
    policy.load_state_dict(start)
    judge = judged([0.0, 1.0, 2.0], restore_best=False)
    with_judge = make_trainer(steps=2, judge=judge).train(progress=False)
    assert [row["reward"] for row in plain] == [row["reward"] for row in with_judge]
    assert [row["kl"] for row in plain] == [row["kl"] for row in with_judge]


def test_a_judged_run_resumes_with_its_history_and_best_weights(
    make_trainer, policy, tmp_path
) -> None:
    start = {name: value.clone() for name, value in policy.state_dict().items()}
    scores = [0.0, 1.0, 0.9, 0.8, 0.7]
    make_trainer(steps=9, judge=judged(scores)).train(progress=False)
    whole = policy.lm_head.weight.clone()
    policy.load_state_dict(start)
    first = make_trainer(steps=9, save_every=1, judge=judged(scores))
    first.log = RunLog.create(tmp_path / "run", {}, seed=0)
    for step in first:
        if step.number == 2:
            break
    policy.load_state_dict(start)
    again = make_trainer(steps=9, save_every=1, judge=judged(scores[3:]))
    again.log = RunLog.create(tmp_path / "run", {}, seed=0, resume=True)
    assert again.resume() == 2
    assert again.judge.history == [(0, 0.0), (1, 1.0), (2, 0.9)]
    rows = again.train(progress=False)
    assert [row["step"] for row in rows] == [3, 4]
    assert torch.equal(policy.lm_head.weight, whole)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score": 3}, "cannot be called"),
        ({"prompts": []}, "the list is empty"),
        ({"every": 0}, "every must be a whole number >= 1, got 0"),
        ({"patience": 1.5}, "patience must be a whole number"),
        ({"min_gain": -1.0}, "min_gain must be >= 0"),
    ],
)
def test_nonsense_for_a_judge_is_refused(options, message) -> None:
    with pytest.raises(CourseError, match=message):
        HeldOutJudge(**{"score": likes_length, "prompts": ["q"], **options})


def test_a_judge_that_returns_nan_is_named(make_trainer) -> None:
    with pytest.raises(CourseError, match="judge score returned nan"):
        make_trainer(judge=judged([float("nan")])).train(progress=False)
