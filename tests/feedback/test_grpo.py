"""train_grpo: arguments by name, advantages are ours, the reward rises, nonsense is named."""

import dataclasses
import inspect
import random

import pytest
import torch

from course_utils.errors import CourseError
from course_utils.objectives import group_advantages
from course_utils.training.grpo import GroupRunTrainer, GRPOSettings, grpo_arguments, train_grpo
from course_utils.training.run import RunLog

QUICK = {"progress": False}


def greats(prompts, completions):
    return [float(text.split().count("great")) for text in completions]


def questions(n=6):
    rng = random.Random(0)
    words = ["the", "moon", "is", "what", "why", "star", "rice", "explain", "rocket"]
    return [" ".join(rng.choices(words, k=rng.randint(2, 6))) for _ in range(n)]


def small(**changes):
    given = {"batch_size": 16, "group_size": 4, "max_new_tokens": 5, "steps": 2, **changes}
    return GRPOSettings(**given)


def test_every_argument_is_a_field_of_trls_config_and_has_our_value(tmp_path):
    from trl import GRPOConfig, GRPOTrainer

    given = grpo_arguments(small(clip=0.3, scale=False, seed=4), 7, str(tmp_path))
    assert set(given) <= {field.name for field in dataclasses.fields(GRPOConfig)}
    made = GRPOConfig(**given)
    for name, value in given.items():
        if name != "report_to":
            assert getattr(made, name) == value, name
    assert made.report_to == []
    assert (made.beta, made.epsilon, made.scale_rewards, made.max_steps) == (0.0, 0.3, "none", 7)
    assert made.generation_batch_size == 16
    assert (made.bf16, made.use_vllm, made.push_to_hub) == (False, False, False)
    for name in ("_calculate_rewards", "_generate_and_score_completions", "_get_train_sampler"):
        assert hasattr(GRPOTrainer, name)
        assert name in vars(GroupRunTrainer)
    scored = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    assert '"advantages": advantages' in scored


@pytest.mark.parametrize("scale", [True, False])
def test_trls_advantages_are_ours_and_each_prompt_is_asked_group_size_times(
    scale, tiny_model, tiny_tokenizer
):
    seen, asked = [], []

    def reward(prompts, completions):
        asked.append(prompts)
        return greats(prompts, completions)

    train_grpo(
        tiny_model,
        tiny_tokenizer,
        questions(),
        reward,
        small(scale=scale),
        watch=lambda rewards, advantages: seen.append((rewards, advantages)),
        **QUICK,
    )
    assert len(seen) == 2
    for rewards, advantages in seen:
        assert rewards.shape == advantages.shape == (4, 4)
        torch.testing.assert_close(advantages, group_advantages(rewards, scale=scale))
    for prompts in asked:
        groups = [set(prompts[i : i + 4]) for i in range(0, 16, 4)]
        assert all(len(group) == 1 for group in groups)
        assert len(set.union(*groups)) == 4


def test_the_reward_rises_and_the_row_says_how(tiny_model, tiny_tokenizer, tmp_path):
    log = RunLog.create(tmp_path / "run", {}, seed=0)
    before = torch.get_rng_state()
    model = train_grpo(
        tiny_model,
        tiny_tokenizer,
        questions(12),
        greats,
        small(steps=16, batch_size=32, learning_rate=2e-2),
        log=log,
        **QUICK,
    )
    assert torch.equal(before, torch.get_rng_state())
    assert model is tiny_model
    assert not model.training
    assert "forward" not in model.__dict__
    rewards = log.column("reward")
    assert len(rewards) == 16
    assert sum(rewards[-4:]) / 4 > sum(rewards[:4]) / 4 + 0.5
    wanted = {"loss", "reward_std", "silent_groups", "completion_tokens", "tokens", "grad_norm"}
    assert wanted <= set(log.rows[0])
    with pytest.raises(CourseError, match="has rows already"):
        train_grpo(model, tiny_tokenizer, questions(), greats, small(), log=log, **QUICK)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group_size": 1}, "no siblings"),
        ({"batch_size": 10}, "a multiple of group_size"),
        ({"temperature": 0.0}, "all answers are the same"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"clip": 0.0}, "clip"),
        ({"steps": None}, "counts steps"),
        ({"save_every": 5}, "not resumed"),
        ({"loss": "ppo"}, "dr_grpo"),
        ({"learning_rate": -1.0}, "learning_rate"),
    ],
)
def test_nonsense_settings_are_named(changes, message):
    with pytest.raises(CourseError, match=message):
        small(**changes)


def test_too_few_prompts_and_a_reward_that_is_no_number(tiny_model, tiny_tokenizer):
    with pytest.raises(CourseError, match="only 3"):
        train_grpo(tiny_model, tiny_tokenizer, questions(3), greats, small(), **QUICK)

    def nothing(prompts, completions):
        return ["good"] * len(prompts)

    with pytest.raises(CourseError, match="nothing returned"):
        train_grpo(tiny_model, tiny_tokenizer, questions(), nothing, small(), **QUICK)
