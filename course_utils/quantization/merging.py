"""A LoRA's update merged into a weight that was trained in 4 bits: four ways, and what they change.

For whole models with bitsandbytes' layers there is `qlora.merge_qlora`; this is one matrix, so that
each way can be looked at by itself.
"""

import torch
from torch import Tensor

from course_utils.errors import CourseError
from course_utils.quantization.blockwise import dequantize, quantize

WAYS = ("dequantize", "requantize", "original", "original-requantize")


def merged_weight(
    weight: Tensor, update: Tensor, how: str, format: str = "nf4", block: int = 64
) -> Tensor:
    """W' (d, k) in fp32, as a layer would hold it after the merge.

    The adapter was trained beside Ŵ, the weight rounded to 4 bits; so Ŵ + ΔW is what was learned.

    Args:
        weight: W (d, k), before any rounding. update: ΔW (d, k) = (α/r) B A.
        how: "dequantize" Ŵ + ΔW; "original" W + ΔW, which drops the rounding that the adapter has
            learned to live with; "requantize" and "original-requantize" round either of them again.
    Raises: CourseError for another way or shapes that differ, and as `quantize`.
    """
    if how not in WAYS:
        raise CourseError(f"how is {how!r}; it must be one of {', '.join(WAYS)}")
    if weight.shape != update.shape:
        raise CourseError(f"weight {tuple(weight.shape)} and update {tuple(update.shape)} differ")
    start = weight.detach().float()
    if not how.startswith("original"):
        start = dequantize(quantize(start, format, block))
    merged = start + update.detach().float()
    if how.endswith("requantize"):
        merged = dequantize(quantize(merged, format, block))
    return merged


def output_error(x: Tensor, merged: Tensor, wanted: Tensor) -> Tensor:
    """‖x W'ᵀ - x Vᵀ‖ / ‖x Vᵀ‖, shape (): inputs x (..., k), W' `merged` and V `wanted` (d, k)."""
    reference = x @ wanted.T
    return torch.linalg.norm(x @ merged.T - reference) / torch.linalg.norm(reference)
