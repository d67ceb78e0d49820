"""What the checks of set 01 share: findings about arguments, dtypes and whole numbers."""

from typing import Any

import torch
from torch import Tensor

from course_utils.grading.finding import Finding, show


def is_near(got: Tensor, expected: Tensor, rtol: float) -> bool:
    """Near as a whole: |got - expected| <= rtol |expected| in norm; for rounded dtypes."""
    if got.shape != expected.shape or not got.isfinite().all():
        return False
    distance = torch.linalg.vector_norm(got.double() - expected.double())
    return bool(distance <= rtol * torch.linalg.vector_norm(expected.double()))


def whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def name_number(got: Any, expected: int, known: dict[str, tuple[int, str]]) -> Finding | None:
    """As `finding.name_mistake`, for whole numbers: they are equal or not."""
    if whole(got) and got == expected:
        return None
    shown = show(got), f"{expected}"
    if not whole(got):
        return Finding("not a whole number", "a count is an int", *shown)
    for mistake, (value, message) in known.items():
        if value != expected and got == value:
            return Finding(mistake, message, *shown)
    return Finding("something else", "the count is wrong, by no mistake known here", *shown)
