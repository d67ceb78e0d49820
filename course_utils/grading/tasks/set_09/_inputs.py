"""What the checks of set 09 share: calls that may fail, numbers that students return."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from course_utils.grading.call import Failed, Outcome
from course_utils.grading.finding import Finding, name_mistake


def attempt(
    function: Callable[..., Outcome], mistake: str, message: str, *args: Any, **kwargs: Any
) -> Outcome | Finding:
    """The outcome; where the function raised on these inputs, a finding of this name.

    A NotImplementedError counts too: only a task's first call tells a hole from a refusal.
    """
    try:
        return function(*args, **kwargs)
    except Failed as failure:
        if failure.kind != "raised":
            raise
        return Finding(mistake, f"{message} (it failed: {failure.message})")


def name_values(
    got: Tensor, expected: Tensor, known: dict[str, tuple[Tensor, str]]
) -> Finding | None:
    """`name_mistake` for vectors (N,), which shows their first numbers."""
    found = name_mistake(got, expected, known)
    return found and Finding(found.mistake, found.message, first(got), first(expected))


def first(values: Tensor) -> str:
    shown = ", ".join(f"{v:.5g}" for v in values.double().flatten()[:4].tolist())
    return f"[{shown}{', …' if values.numel() > 4 else ''}]"


def changed(names: Sequence[str], before: Sequence[Tensor], outcome: Outcome) -> Finding | None:
    """A finding if the function changed one of its first arguments, which are tensors."""
    for name, old, new in zip(names, before, outcome.arguments, strict=False):
        if not isinstance(new, Tensor) or not torch.equal(old, new):
            return Finding("in place", f"your function changes its argument {name!r}")
    return None
