"""Inputs of set 04, drawn from a seed: log-probabilities, values and masks of a few answers."""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from course_utils.grading.finding import Finding

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


def located(fault: Finding | None, got: Tensor, expected: Tensor) -> Finding | None:
    """The finding with the numbers where they differ most; both tensors have the same shape."""
    if fault is None or not got.numel():
        return fault
    gap = (got.double() - expected.double()).abs().nan_to_num(nan=float("inf"))
    place = tuple(int(i[0]) for i in (gap == gap.max()).nonzero(as_tuple=True))
    at = f" at {list(place)}" if place else ""
    return replace(
        fault, got=f"{float(got[place]):.5g}{at}", expected=f"{float(expected[place]):.5g}"
    )


def changed(names: str, before: tuple[object, ...], after: tuple[object, ...]) -> Finding | None:
    """A finding if a tensor among the arguments is not what it was; `names` with spaces between."""
    for name, old, new in zip(names.split(), before, after, strict=False):
        if not isinstance(old, Tensor):
            continue
        same = isinstance(new, Tensor) and torch.equal(old.nan_to_num(), new.nan_to_num())
        if not same:
            return Finding("in place", f"your function changes its argument {name!r}")
    return None
