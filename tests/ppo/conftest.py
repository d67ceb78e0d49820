"""A trainer on a tiny random model whose answers have all sorts of lengths."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from course_utils.training.ppo import PPOConfig, PPOTrainer

PROMPTS = [
    "hello",
    "explain the moon landing to a 6 year old",
    "should i add chorizo to my paella ?",
    "why",
    "explain black holes to a 5 year old please",
    "is it big or small ?",
    "how do rockets go",
]
WANTED = frozenset(["moon", "star", "light"])


def share_of_wanted(prompts: list[str], completions: list[str]) -> list[float]:
    """10 x the share of an answer's words that are in WANTED."""
    words = [completion.split() for completion in completions]
    return [10 * sum(w in WANTED for w in row) / max(len(row), 1) for row in words]


def lively(model: Any, tokenizer: Any, factor: float = 3.0) -> Any:
    """Sharper distributions than random weights give, and several tokens that end an answer."""
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(factor)
        model.get_output_embeddings().weight.mul_(factor)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, *range(10, 16)]
    return model


@pytest.fixture
def policy(tiny_model: Any, tiny_tokenizer: Any) -> Any:
    return lively(tiny_model, tiny_tokenizer)


@pytest.fixture
def config() -> PPOConfig:
    return PPOConfig(
        steps=2,
        rollouts_per_step=20,
        minibatches=2,
        micro_batch=4,
        max_new_tokens=10,
        learning_rate=1e-3,
        rollouts_every=0,
    )


@pytest.fixture
def make_trainer(policy: Any, tiny_tokenizer: Any, config: PPOConfig) -> Callable[..., PPOTrainer]:
    """make_trainer(policy=, reward=, prompts=, log=, ..., any field of PPOConfig)."""
    import dataclasses

    fields = {field.name for field in dataclasses.fields(PPOConfig)}

    def make(**changes: Any) -> PPOTrainer:
        settings = {name: changes.pop(name) for name in list(changes) if name in fields}
        arguments = {
            "policy": policy,
            "reward": share_of_wanted,
            "tokenizer": tiny_tokenizer,
            "prompts": PROMPTS,
            "config": dataclasses.replace(config, **settings),
            **changes,
        }
        return PPOTrainer(**arguments)

    return make
