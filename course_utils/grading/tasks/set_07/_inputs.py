"""Set 07: inputs drawn from the seed, and slow references in float64."""

import math
from dataclasses import replace
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from course_utils.grading.finding import Finding, is_close, name_mistake, show

Known = dict[str, tuple[Tensor, str]]  # as of `name_mistake`
CLOSE = 1e-5  # codes whose levels are equally near up to this are both right


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal_float(bits: int, tail: float) -> Tensor:
    """NormalFloat by the text's formula, level by level, (2^bits,) float64 ascending."""
    half = 2 ** (bits - 1)
    quantile = NormalDist().inv_cdf
    top = quantile(tail)
    above = [quantile(tail - (tail - 0.5) * i / half) / top for i in range(half)]
    below = [-quantile(tail - (tail - 0.5) * i / (half - 1)) / top for i in range(half - 1)]
    return torch.tensor(sorted([*below, 0.0, *above]), dtype=torch.float64)


def random_book(seed: int, count: int = 16) -> Tensor:
    """(count,) float32 ascending levels at uneven distances: -1 first, an exact 0, 1 last."""
    steps = 0.4 + torch.rand(count, generator=generator(seed), dtype=torch.float64)
    below, above = steps[: count // 2 - 1], steps[count // 2 - 1 : -1]
    low = -(below / below.sum()).cumsum(0).flip(0)  # -1 first
    high = (above / above.sum()).cumsum(0)
    levels = torch.cat([low, torch.zeros(1, dtype=torch.float64), high]).float()
    levels[0], levels[-1] = -1, 1
    return levels


def nearest(scaled: Tensor, levels: Tensor) -> Tensor:
    """The number of the nearest level, (N,) long, by looking at all of them."""
    return (scaled.double().unsqueeze(-1) - levels.double()).abs().argmin(-1)


def scales_of(flat: Tensor, block: int) -> Tensor:
    """The largest magnitude of each block, (M,) float64, by a loop."""
    starts = range(0, len(flat), block)
    return torch.stack([flat[i : i + block].double().abs().max() for i in starts])


def spread(scales: Tensor, block: int, count: int) -> Tensor:
    """Each number's own scale: (M,) -> (count,)."""
    return scales.double()[torch.arange(count) // block]


def ratio(flat: Tensor, scales: Tensor, block: int) -> Tensor:
    """flat / its block's scale, (N,) float64; 0 in a block of zeros."""
    each = spread(scales, block, len(flat))
    return torch.where(each > 0, flat.double() / each.clamp(min=1e-300), 0.0)


def fits(codes: Any, scaled: Tensor, levels: Tensor) -> bool:
    """Whether every code names a level that is nearest to its number, up to rounding."""
    if not isinstance(codes, Tensor) or codes.shape != scaled.shape:
        return False
    if codes.dtype.is_floating_point or codes.dtype == torch.bool:
        return False
    index = codes.long()
    if len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(levels):
        return False
    distance = (levels.double()[index] - scaled.double()).abs()
    least = (scaled.double().unsqueeze(-1) - levels.double()).abs().amin(-1)
    return bool((distance <= least + CLOSE).all())


def rounded(values: Tensor, levels: Tensor, block: int) -> Tensor:
    """values, of any shape, quantized and dequantized: float64."""
    flat = values.flatten().double()
    scales = scales_of(flat, block)
    codes = nearest(ratio(flat, scales, block), levels)
    return (levels.double()[codes] * spread(scales, block, len(flat))).view(values.shape)


def near_border(values: Tensor, levels: Tensor, block: int, margin: float = 1e-4) -> Tensor:
    """Where a number, of any shape, is about halfway between two levels: bool."""
    flat = values.flatten().double()
    scaled = ratio(flat, scales_of(flat, block), block)
    borders = (levels[:-1].double() + levels[1:].double()) / 2
    return ((scaled.unsqueeze(-1) - borders).abs().amin(-1) < margin).view(values.shape)


def number(value: Any) -> float | None:
    """A Python number or a tensor of one number as a float; None for all else."""
    if isinstance(value, Tensor) and value.dim() == 0 and not value.is_complex():
        return None if value.dtype == torch.bool else float(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    return None


def name_number(
    got: Any, expected: float, known: dict[str, tuple[float, str]], what: str, rtol: float = 1e-6
) -> Finding | None:
    """As `name_mistake`, of plain numbers; `what` stands in the messages."""
    value = number(got)
    if value is None:
        return Finding("not a number", f"{what} must be a number", show(got), f"{expected:.6g}")
    if math.isclose(value, expected, rel_tol=rtol):
        return None
    shown = show(got), f"{expected:.6g}"
    for mistake, (wrong, message) in known.items():
        if math.isclose(value, wrong, rel_tol=rtol, abs_tol=1e-12):
            return Finding(mistake, f"{what}: {message}", *shown)
    return Finding("something else", f"{what} is wrong, by no mistake known here", *shown)


def named(
    got: Tensor, expected: Tensor, known: Known, where: str = "", rtol: float = 1e-4
) -> Finding | None:
    """As `name_mistake`; `where` comes before the message."""
    fault = name_mistake(got, expected, known, rtol)
    return fault and replace(fault, message=where + fault.message)


def pieces(value: Any, count: int, what: str) -> Finding | None:
    """A finding unless the value is a tuple (or list) of that many tensors."""
    if not isinstance(value, tuple | list) or len(value) != count:
        message = f"your function must return {count} things: {what}"
        if value is None:
            message += "; it returned None: is a `return` missing?"
        return Finding("not a tuple", message, show(value), f"({what})")
    for part, name in zip(value, what.split(", "), strict=True):
        if not isinstance(part, Tensor):
            return Finding("not a tensor", f"{name} must be a tensor", show(part), "a tensor")
    return None


def float_of(got: Tensor, shape: tuple[int, ...], what: str) -> Finding | None:
    """A finding unless `got` is a float32 tensor of this shape."""
    if tuple(got.shape) != shape:
        message = f"{what} has the wrong shape"
        return Finding("wrong shape", message, show(got), f"shape {shape}")
    if got.dtype != torch.float32:
        return Finding("wrong dtype", f"{what} must be float32", show(got), "float32")
    return None


def same(got: Any, expected: Tensor, rtol: float = 1e-4, atol: float = 1e-6) -> bool:
    """Whether `got` is a tensor of these numbers."""
    return isinstance(got, Tensor) and is_close(got, expected, rtol, atol)
