"""What the checks of set 01 share: findings about arguments, dtypes and whole numbers."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from course_utils.grading.finding import Finding, show


def changed(names: Sequence[str], before: Sequence[Any], after: Sequence[Any]) -> Finding | None:
    """A finding where a function left one of its arguments other than it was."""
    for name, old, new in zip(names, before, after, strict=True):
        if isinstance(old, Tensor):
            same = isinstance(new, Tensor) and torch.equal(old, new)
        else:
            same = bool(old == new)
        if not same:
            return Finding("in place", f"your function changes its argument {name!r}")
    return None


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
