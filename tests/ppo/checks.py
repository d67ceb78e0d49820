"""What several tests of PPO look at."""

from typing import Any

import torch
from torch import nn


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def varied(rollouts: Any) -> bool:
    """Some answers end, some are cut, lengths and prompts differ: the interesting case."""
    lengths = rollouts.mask.sum(1)
    prompts = rollouts.sequences.prompt_lengths
    return bool(
        rollouts.ended.any()
        and not rollouts.ended.all()
        and len(lengths.unique()) > 2
        and len(prompts.unique()) > 2
    )
