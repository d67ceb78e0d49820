"""What the checks of set 08 share: numbers that students return, and calls that may fail."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from course_utils.grading.call import Failed, Outcome
from course_utils.grading.finding import Finding, show


def as_number(value: Any) -> Tensor | None:
    """A float, an int or a real tensor of one number, as a float64 tensor (); else None."""
    if isinstance(value, Tensor):
        real = value.numel() == 1 and value.dtype != torch.bool and not value.is_complex()
        return value.detach().double().reshape(()) if real else None
    if isinstance(value, float | int) and not isinstance(value, bool):
        return torch.tensor(float(value), dtype=torch.float64)
    return None


def not_a_number(value: Any, what: str) -> Finding:
    message = f"{what} must return one number" + (
        "; it returned None: is a `return` missing?" if value is None else ""
    )
    return Finding("not a number", message, show(value), "a float")


def same(a: Tensor, b: Tensor) -> bool:
    """The same numbers, NaN where the other has NaN."""
    alike = a.shape == b.shape and a.dtype == b.dtype
    return alike and torch.allclose(a.double(), b.double(), rtol=0, atol=0, equal_nan=True)


def attempt(
    function: Callable[..., Outcome], mistake: str, message: str, *args: Any, **kwargs: Any
) -> Outcome | Finding:
    """The outcome; where the function raised on these extreme inputs, the mistake's name."""
    try:
        return function(*args, **kwargs)
    except Failed as failure:
        # torch's own NotImplementedError is a fault ("svd" not implemented for 'BFloat16')
        blank = failure.message.startswith("NotImplementedError")
        if failure.kind != "raised" or (blank and "not implemented for" not in failure.message):
            raise
        return Finding(mistake, f"{message} (it failed: {failure.message})")
