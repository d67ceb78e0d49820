"""What a check has to say about a student's function, and comparisons that no reply can upset."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from course_utils.grading.call import Failed, Outcome
from course_utils.grading.protocol import Opaque, printable


@dataclass(frozen=True)
class Finding:
    """One mistake. Hidden variants show `message` only; visible ones got and expected too."""

    mistake: str  # short name, stable: mutants and statistics go by it
    message: str  # what is wrong and what to think about
    got: str = ""
    expected: str = ""

    def text(self, hidden: bool = False) -> str:
        if hidden or not (self.got or self.expected):
            return self.message
        return f"{self.message} (got {self.got}, expected {self.expected})"


def is_close(got: Tensor, expected: Tensor, rtol: float = 1e-4, atol: float = 1e-6) -> bool:
    """Same shape and, in float64, the same numbers; NaN equals nothing."""
    if got.shape != expected.shape:
        return False
    return torch.allclose(got.double(), expected.double(), rtol=rtol, atol=atol)


def same(a: Any, b: Any) -> bool:
    """The same plain value, through lists and dicts; tensors with dtype, and NaN equal to NaN."""
    if isinstance(a, Tensor):
        alike = isinstance(b, Tensor) and a.shape == b.shape and a.dtype == b.dtype
        return alike and bool(((a == b) | (a.isnan() & b.isnan())).all())
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def changed(names: Sequence[str], before: Sequence[Any], after: Sequence[Any]) -> Finding | None:
    """A finding that names the first argument that is no longer what it was."""
    for name, old, new in zip(names, before, after, strict=False):
        if not same(old, new):
            message = f"your function changes its argument {name!r}; the caller still needs it"
            return Finding("in place", message)
    return None


def attempt(
    function: Callable[..., Outcome], mistake: str, message: str, *args: Any, **kwargs: Any
) -> Outcome | Finding:
    """The outcome; a finding of this name where the function raised on these unusual inputs.

    Raises Failed where it is late, has ended or is not written yet.
    """
    try:
        return function(*args, **kwargs)
    except Failed as failure:
        if failure.kind != "raised" or failure.is_blank:
            raise
        return Finding(mistake, f"{message} (it failed: {failure.message[:150]})")


def show(value: Any) -> str:
    """A value in few words: never more than 120 characters, never an error."""
    if isinstance(value, Opaque):
        return f"a {value.type}"
    if isinstance(value, Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        if value.numel() > 1 and value.dim() == 1 and not value.is_complex():
            first = ", ".join(f"{v:.5g}" for v in value[:4].tolist())
            return f"[{first}{', …' if len(value) > 4 else ''}] ({dtype}, {len(value)} numbers)"
        if value.numel() == 1 and not value.is_complex():
            return f"{value.item():.6g}" + (
                "" if value.dim() == 0 else f" of shape {_shape(value)}"
            )
        return f"a {dtype} tensor of shape {_shape(value)}"
    return printable(repr(value)[:120])


def _shape(value: Tensor) -> str:
    return str(tuple(value.shape))


def wrong_type(value: Any, shape: tuple[int, ...]) -> Finding | None:
    """A finding unless the value is a float tensor of this shape."""
    wanted = "a number" if shape == () else f"shape {shape}"
    if not isinstance(value, Tensor):
        message = "your function must return a tensor" + (
            "; it returned None: is a `return` missing?" if value is None else ""
        )
        return Finding("not a tensor", message, show(value), f"a tensor ({wanted})")
    if tuple(value.shape) != shape:
        return Finding("wrong shape", "the result has the wrong shape", show(value), wanted)
    if not value.dtype.is_floating_point:
        return Finding("wrong dtype", "the result is not a float tensor", show(value), "float32")
    return None


def _where_wrong(got: Tensor, expected: Tensor, rtol: float) -> tuple[str, str]:
    """Both values for a student to see: of many numbers the first that is wrong, and its place."""
    if got.shape != expected.shape or got.is_complex() or got.numel() < 2:
        return show(got), show(expected)
    close = torch.isclose(got.double(), expected.double(), rtol=rtol, atol=1e-6)
    place = tuple((~close).nonzero()[0].tolist())
    return f"{float(got[place]):.5g} at {list(place)}", f"{float(expected[place]):.5g}"


def name_mistake(
    got: Tensor, expected: Tensor, known: dict[str, tuple[Tensor, str]], rtol: float = 1e-4
) -> Finding | None:
    """None if right; the known mistake whose value `got` is; or "something else".

    Args: known: mistake -> (the value that it gives on this input, the message for it).
    """
    if is_close(got, expected, rtol):
        return None
    shown = _where_wrong(got, expected, rtol)
    if got.isnan().any():
        return Finding("nan", "the result holds NaN", *shown)
    for mistake, (value, message) in known.items():
        if not is_close(value, expected, rtol) and is_close(got, value, rtol):
            return Finding(mistake, message, *shown)
    return Finding("something else", "the result is wrong, by no mistake known here", *shown)
