"""What the checks of set 08 share: numbers that students return."""

from typing import Any

import torch
from torch import Tensor

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
