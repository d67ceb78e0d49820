"""What users get wrong: each a clear error that says what was seen and what to do."""

import math
from typing import Any

import pytest
import torch

from course_utils.errors import CourseError, DataError
from course_utils.training.ppo import Ensemble, PPOConfig, per_answer

BAD_SETTINGS = [
    ({"beta": -0.1}, "beta must be a number >= 0"),
    ({"beta": math.nan}, "beta must be a number >= 0"),
    ({"beta": "0.1"}, "beta must be a number"),
    ({"steps": 0}, "steps must be a whole number >= 1"),
    ({"steps": 2.5}, "steps must be a whole number"),
    ({"epochs": True}, "epochs must be a whole number"),
    ({"rollouts_per_step": 1}, "rollouts_per_step must be a whole number >= 2"),
    ({"minibatches": 200}, "minibatches = 200 would be empty"),
    ({"micro_batch": 0}, "micro_batch"),
    ({"max_new_tokens": 0}, "max_new_tokens"),
    ({"max_prompt_tokens": 0}, "max_prompt_tokens"),
    ({"temperature": 0.0}, "temperature must be a number > 0"),
    ({"learning_rate": -1e-4}, "learning_rate"),
    ({"learning_rate": math.inf}, "learning_rate"),
    ({"gamma": 1.1}, "gamma must be a number >= 0 and <= 1"),
    ({"lam": -0.1}, "lam"),
    ({"clip": 0.0}, "clip"),
    ({"clip": 1.5}, "clip"),
    ({"dual_clip": 1.1}, "dual_clip must be a number > 1.2"),
    ({"value_clip": 0.0}, "value_clip"),
    ({"kl_target": 0.0}, "kl_target must be a number > 0"),
    ({"kl_target": 3.0, "beta": 0.0}, "cannot adapt"),
    ({"kl_target": 3.0, "kl_horizon": 10}, "kl_horizon = 10 is too short"),
    ({"kl_stop": -1.0}, "kl_stop"),
    ({"max_grad_norm": 0.0}, "max_grad_norm"),
    ({"precision": "int8"}, "precision must be one of fp32, bf16, fp16"),
    ({"critic": "separate"}, "critic must be one of shared, policy, reward"),
    ({"lr_schedule": "cosine"}, "lr_schedule"),
    ({"overlong_prompts": "drop"}, "overlong_prompts"),
    ({"whiten_advantages": "yes"}, "whiten_advantages must be True or False"),
    ({"save_every": 0}, "save_every"),
    ({"seed": -1}, "seed"),
]


@pytest.mark.parametrize(("settings", "message"), BAD_SETTINGS)
def test_nonsensical_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CourseError, match=message):
        PPOConfig(**settings)


def test_the_defaults_are_valid_and_frozen() -> None:
    config = PPOConfig()
    assert config.planned_updates == 60 * 2 * 2
    with pytest.raises(AttributeError):
        config.beta = 1.0  # type: ignore[misc]


# ---- rewards -----------------------------------------------------------------------------------


def raising(prompts: list[str], completions: list[str]) -> list[float]:
    raise ZeroDivisionError("division by zero")


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (raising, "raising raised ZeroDivisionError: division by zero"),
        (lambda p, c: [1.0] * (len(p) - 1), "returned 19 scores for 20 answers"),
        (lambda p, c: [0.0] * 3 + [math.nan] + [0.0] * 16, "returned nan for answer 3"),
        (lambda p, c: torch.full((20,), math.inf), "returned inf for answer 0"),
        (lambda p, c: ["good"] * 20, "returned 'good' for answer 0"),
        (lambda p, c: [None] * 20, "returned None for answer 0"),
        (lambda p, c: torch.zeros(20, 2), r"returned \[0.0, 0.0\] for answer 0"),
        (lambda p, c: 1.0, "returned float; it must return a list"),
        (lambda p, c: "1.0", "returned str; it must return a list"),
        (lambda p, c: None, "returned NoneType"),
    ],
)
def test_a_bad_reward_says_what_came_and_for_which_answer(make_trainer, reward, message) -> None:
    with pytest.raises(CourseError, match=message):
        make_trainer(reward=reward).step()
    with pytest.raises(CourseError, match="gold"):
        make_trainer(gold=lambda p, c: [math.nan] * len(p)).step()


def test_many_kinds_of_numbers_are_fine(make_trainer) -> None:
    class Score:
        def __float__(self) -> float:
            return 0.25

    for value in (1, True, torch.tensor(0.5), Score()):
        rollouts = make_trainer(reward=lambda p, c, v=value: [v] * len(p)).step().rollouts
        assert rollouts.scores.tolist() == [float(value)] * 20
    assert make_trainer(reward=lambda p, c: torch.ones(len(p))).step().stats["reward"] == 1


def test_a_function_of_one_answer_becomes_a_reward(make_trainer) -> None:
    def length(prompt: str, completion: str) -> int:
        return len(completion)

    reward = per_answer(length)
    assert reward(["a", "b"], ["xy", ""]) == [2.0, 0.0]
    stats = make_trainer(reward=reward, gold=reward).step().stats
    assert stats["gold"] == pytest.approx(stats["reward"])
    with pytest.raises(CourseError, match="the reward raising raised"):
        make_trainer(reward=per_answer(raising)).step()


def test_a_reward_gets_its_own_copy_of_the_texts(make_trainer) -> None:
    def destructive(prompts: list[str], completions: list[str]) -> list[float]:
        count = len(prompts)
        prompts.clear()
        completions.clear()
        return [0.0] * count

    assert len(make_trainer(reward=destructive).step().rollouts.completions) == 20


def test_a_reward_that_cannot_be_called_is_refused_at_once(make_trainer) -> None:
    with pytest.raises(CourseError, match="reward 0 is a int"):
        make_trainer(reward=3)
    with pytest.raises(CourseError, match="reward 1 is a str"):
        make_trainer(reward=[lambda p, c: [], "accuracy"])


def long_is_good(prompts: list[str], completions: list[str]) -> list[float]:
    return [float(len(c)) for c in completions]


def short_is_good(prompts: list[str], completions: list[str]) -> list[float]:
    return [10.0 - len(c) for c in completions]


def test_ensembles_combine_their_members(make_trainer) -> None:
    prompts, answers = ["a", "b"], ["12345678", "1"]
    lengths, others = [8.0, 1.0], [2.0, 9.0]
    both = [long_is_good, short_is_good]
    assert Ensemble(both)(prompts, answers) == [5.0, 5.0]
    assert Ensemble(both, "min")(prompts, answers) == [2.0, 1.0]
    assert Ensemble(both, weights=[3, 1])(prompts, answers) == [6.5, 3.0]
    pessimistic = Ensemble(both, "mean_minus_std", std_weight=0.5)(prompts, answers)
    wanted = [(a + b) / 2 - 0.5 * abs(a - b) / 2 for a, b in zip(lengths, others, strict=True)]
    assert pessimistic == pytest.approx(wanted)
    step = make_trainer(reward=both).step()
    assert step.stats["reward"] == pytest.approx(5.0)
    assert step.stats["reward_disagreement"] > 0
    worst = make_trainer(reward=Ensemble(both, "min")).step().rollouts
    assert worst.scores.tolist() == [float(min(len(c), 10 - len(c))) for c in worst.completions]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "at least one reward"),
        (([raising], "median"), "combine must be"),
        (([raising], "mean", [1, 2]), "weights must be 1 numbers"),
        (([raising], "mean", [-1.0]), "weights must be"),
        (([raising], "min", [1.0]), "weights have no meaning"),
        (([raising], "mean_minus_std", None, -1.0), "std_weight"),
    ],
)
def test_bad_ensembles_are_named(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(CourseError, match=message):
        Ensemble(*arguments)


def test_the_failing_member_of_an_ensemble_is_named(make_trainer) -> None:
    with pytest.raises(CourseError, match=r"raising \(number 1 of the ensemble\)"):
        make_trainer(reward=[long_is_good, raising]).step()


class OtherTokens:
    """A reward model whose tokenizer is not the policy's: it must get text."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, prompts: list[str], completions: list[str]) -> list[float]:
        return long_is_good(prompts, completions)

    def score_tokens(self, input_ids: Any, attention_mask: Any) -> Any:
        raise AssertionError("these tokens mean other words to it")


def test_a_reward_model_with_another_vocabulary_gets_text(make_trainer, tiny_tokenizer) -> None:
    import copy

    other = copy.deepcopy(tiny_tokenizer)
    other.add_tokens(["more"])
    rollouts = make_trainer(reward=OtherTokens(other)).step().rollouts
    assert rollouts.scores.tolist() == [float(len(c)) for c in rollouts.completions]


def test_what_a_template_writes_after_the_answer_is_found(tiny_tokenizer) -> None:
    """Point 15: a reward model reads its score there."""
    from course_utils.loading import CHATML
    from course_utils.training.ppo.rewards import tokens_after_answer

    assert tokens_after_answer(tiny_tokenizer) == []
    tiny_tokenizer.chat_template = tiny_tokenizer.chat_template.replace(
        "{%- endgeneration -%}", "{%- endgeneration -%}{{- ' yes' -}}"
    )
    assert tokens_after_answer(tiny_tokenizer) == tiny_tokenizer.encode("yes")
    tiny_tokenizer.chat_template = CHATML  # has no token for its marks here
    assert tokens_after_answer(tiny_tokenizer) is None


# ---- prompts, tokenizer, policy ----------------------------------------------------------------


def test_bad_prompts_are_named(make_trainer) -> None:
    from datasets import Dataset

    for prompts, message in [
        ([], "no prompts"),
        (["hello", ""], "prompt 1 is ''"),
        (["hello", "   "], "prompt 1"),
        (["hello", None], "prompt 1 is None"),
        ("hello", "one string"),
        (Dataset.from_dict({"question": ["hello"]}), r"\['question'\] and no \"prompt\""),
        (Dataset.from_dict({"prompt": []}), "no prompts"),
    ]:
        with pytest.raises(DataError, match=message):
            make_trainer(prompts=prompts)


def test_overlong_prompts_are_an_error_or_are_cut(make_trainer) -> None:
    prompts = ["hello", "hello " * 300]
    with pytest.raises(CourseError, match="prompt 1 has 302 tokens and only 246 fit"):
        make_trainer(prompts=prompts)
    with pytest.raises(CourseError, match="only 5 fit"):
        make_trainer(prompts=["hello hello hello hello hello"], max_prompt_tokens=5)
    trainer = make_trainer(prompts=prompts, max_prompt_tokens=20, overlong_prompts="truncate")
    assert [len(row) for row in trainer.prompts.tokens] == [3, 20]
    trainer.step()
    with pytest.raises(CourseError, match="no room for a prompt"):
        make_trainer(max_new_tokens=256)


def test_a_tokenizer_without_eos_or_template_is_refused(
    make_trainer, tiny_tokenizer, policy
) -> None:
    tiny_tokenizer.chat_template = None
    with pytest.raises(CourseError, match="no chat template"):
        make_trainer()
    tiny_tokenizer.eos_token = None
    policy.generation_config.eos_token_id = None
    with pytest.raises(CourseError, match="no EOS token"):
        make_trainer()


def test_policies_that_cannot_be_trained_are_refused(make_trainer, policy) -> None:
    with pytest.raises(CourseError, match=r"bfloat16.*policy\.float\(\)"):
        make_trainer(policy=policy.to(torch.bfloat16))
    policy.float().requires_grad_(False)
    with pytest.raises(CourseError, match="no trainable parameter"):
        make_trainer()


def test_a_critic_from_the_reward_model_needs_one(make_trainer) -> None:
    with pytest.raises(CourseError, match="the reward is a function"):
        make_trainer(critic="reward")


def test_activations_written_as_many_operations_become_one_kernel(tiny_tokenizer) -> None:
    """GPT-2's GELU is the same function to rounding, and the user's own classes stay."""
    import copy

    from transformers import GPT2Config, GPT2LMHeadModel

    from course_utils.models import fuse_activations

    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=32)
    ).eval()
    fused = copy.deepcopy(model)
    assert fuse_activations(fused) == 2
    assert fuse_activations(fused) == 0
    ids = torch.arange(20).unsqueeze(0)
    assert torch.allclose(model(ids).logits, fused(ids).logits, atol=1e-6)
    assert fused.state_dict().keys() == model.state_dict().keys()
