"""Inputs of set 04, drawn from a seed: log-probabilities, values and masks of a few answers."""

from typing import NamedTuple

import torch
from torch import Tensor

ROOM = 2  # columns of padding behind the longest answer, where nothing asks for none


class Answers(NamedTuple):
    """B answers of up to C tokens; what stands at masked positions is garbage, not 0."""

    logprobs: Tensor  # (B, C) log π, below 0
    ref_logprobs: Tensor  # (B, C) log π_ref, below 0
    values: Tensor  # (B, C)
    scores: Tensor  # (B,)
    mask: Tensor  # (B, C) bool, True on the answer, padding on the right
    generator: torch.Generator  # for whatever else a check draws


def answers(seed: int, size: int, spread: float = 0.8) -> Answers:
    """Answers of different lengths, each followed by padding; |log π - log π_ref| about `spread`.

    Every row has at least three tokens, so that first, middle and last are different ones.
    """
    generator = torch.Generator().manual_seed(1000 + seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    B = 3 + size % 3
    lengths = 3 + torch.randint(2 + size, (B,), generator=generator)  # (B,)
    lengths[0] = lengths[1] + 1  # never all of one length
    C = int(lengths.max()) + ROOM
    mask = torch.arange(C) < lengths.unsqueeze(1)
    logprobs = -0.05 - 3 * torch.rand(B, C, generator=generator)
    ref_logprobs = (logprobs + spread * normal(B, C)).clamp(max=-0.01)
    scores = normal(B) + torch.where(normal(B) > 0, 1.5, -1.5)
    return Answers(logprobs, ref_logprobs, 2 * normal(B, C), scores, mask, generator)


def spoil(tensor: Tensor, mask: Tensor, value: float) -> Tensor:
    """A copy with `value` (NaN, -inf, …) at the masked positions."""
    return tensor.masked_fill(~mask, value)
