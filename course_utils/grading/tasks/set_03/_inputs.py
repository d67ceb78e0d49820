"""What the checks of set 03 share: the same numbers for the same seed, and one finding."""

from itertools import pairwise

import torch
from torch import Tensor


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def uniform(low: float, high: float, n: int, g: torch.Generator) -> Tensor:
    """(n,) float32 numbers in [low, high)."""
    return low + (high - low) * torch.rand(n, generator=g)


def told_apart(expected: Tensor, known: dict[str, tuple[Tensor, str]]) -> bool:
    """Whether each known mistake's value is 1% off the right one, and off all the others' too."""
    values = sorted(float(value) for value, _ in known.values())
    right, size = float(expected), abs(float(expected))
    apart = all(b - a > 5e-3 * size for a, b in pairwise(values))
    return apart and all(abs(value - right) > 0.01 * size for value in values)
