"""What the tasks of set 06 share: draws from a seed, a LoRA to look at, and wary comparisons."""

from typing import Any

import torch
from torch import Tensor


class Draw:
    """Random inputs of one round: everything comes from its seed."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=self.generator) * scale

    def away_from_zero(self, *shape: int) -> Tensor:
        """±(0.5 … about 3): so that a relative tolerance is never a tiny absolute one."""
        drawn = self.normal(*shape)
        return drawn + torch.where(drawn >= 0, 0.5, -0.5)

    def whole(self, low: int, high: int) -> int:
        """low <= n < high."""
        return int(torch.randint(low, high, (), generator=self.generator))


def lora_inputs(seed: int, size: int) -> tuple[Draw, Tensor, Tensor, Tensor, float]:
    """(draw, W (d, k), A (R, k), B (d, R), α): d, k, R, α, α/R and 1 are six different numbers."""
    draw = Draw(seed)
    r, d, k = 2 + size % 3, 5 + size, 8 + 2 * size
    alpha = (1.31 + 0.37 * (seed % 4)) * r
    # Small B: where numbers of both signs are added, float32's rounding stays below 1e-6.
    return draw, draw.away_from_zero(d, k), draw.normal(r, k), draw.normal(d, r, scale=0.2), alpha


def whole_number(value: Any) -> int | None:
    """A whole number that was returned as an int or as a tensor of one integer; else None."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = None if value.is_floating_point() or value.is_complex() else value.item()
    return value if isinstance(value, int) and not isinstance(value, bool) else None
