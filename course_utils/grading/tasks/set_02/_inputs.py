"""What the tasks of set 02 share: rows of tokens, and readers of what a student returned."""

import random
from typing import Any

import torch
from torch import Tensor

from course_utils.grading.finding import Finding, show

Row = dict[str, list[int]]  # {input_ids, labels}, equally long
IGNORED = -100  # label of a token that the loss leaves out


def rows(
    draw: random.Random, count: int, most: int, pad: int, end: int, plain: bool = False
) -> list[Row]:
    """`count` rows of 4 to `most` tokens; each ends with `end`, and the second is longer than the
    first, so that no order of the rows is theirs by chance.

    Only `end` may equal `pad`. A row holds `end` twice, as a chat of two turns does. Its prompt is
    ignored, one or two tokens; with `plain` two rows of three count all their tokens.
    """
    made: list[Row] = []
    for number in range(count):
        shortest = len(made[0]["input_ids"]) + 1 if number == 1 else 4
        length = draw.randint(shortest, most - (number == 0))
        words = [t for t in range(10, 60) if t not in (pad, end)]
        ids = draw.sample(words, length - 1)  # no token twice: a shifted label never fits by chance
        ids = [ids[0], end, *ids[1:-1], end] if length > 4 else [*ids, end]
        prompt = (0 if number % 3 < 2 else 2) if plain else draw.randint(1, 2)
        made.append({"input_ids": ids, "labels": [IGNORED] * prompt + ids[prompt:]})
    return made


def bits(value: Any, length: int) -> list[int] | Finding:
    """A list (or tensor) of `length` zeros and ones as a list of int; or what is wrong with it."""
    wanted = f"{length} numbers, 0 or 1"
    if value is None:
        message = "it returned None: is a `return` missing?"
        return Finding("not a mask", message, "None", wanted)
    values = value.tolist() if isinstance(value, Tensor) and value.dim() == 1 else value
    if not isinstance(values, list | tuple):
        return Finding("not a mask", "it must return a list of 0 and 1", show(value), wanted)
    if not all(isinstance(v, bool | int | float) and v in (0, 1) for v in values):
        message = "the mask must hold 0 and 1 and nothing else"
        return Finding("not a mask", message, show(value), wanted)
    if len(values) != length:
        message = "the mask must be as long as the ids"
        return Finding("wrong length", message, f"{len(values)} numbers", wanted)
    return [int(v) for v in values]


def fields(value: Any, wanted: dict[str, tuple[tuple[int, ...], torch.dtype]]) -> Finding | None:
    """A finding unless `value` is a dict with (at least) tensors of these shapes and dtypes."""
    names = ", ".join(wanted)
    if not isinstance(value, dict):
        message = f"it must return a dictionary with {names}"
        if value is None:
            message += "; it returned None: is a `return` missing?"
        return Finding("not a dictionary", message, show(value), "a dict")
    for name, (shape, dtype) in wanted.items():
        kind = f"a {str(dtype).removeprefix('torch.')} tensor of shape {shape}"
        found = value.get(name)
        if name not in value:
            return Finding("missing key", f"the dictionary must have {names}; it lacks {name!r}")
        if not isinstance(found, Tensor):
            return Finding("not a tensor", f"{name!r} must be a tensor", show(found), kind)
        if tuple(found.shape) != shape:
            return Finding("wrong shape", f"{name!r} has the wrong shape", show(found), kind)
        if found.dtype != dtype:
            return Finding("wrong dtype", f"{name!r} has the wrong dtype", show(found), kind)
    return None


def name_exactly(
    what: str, got: Tensor, expected: Tensor, known: dict[str, tuple[Tensor, str]]
) -> Finding | None:
    """None if the tensors are equal; the known mistake that `got` equals; or "something else"."""
    if torch.equal(got, expected):
        return None
    for mistake, (value, message) in known.items():
        if torch.equal(got, value) and not torch.equal(value, expected):
            return Finding(mistake, message, numbers(got), numbers(expected))
    message = f"{what!r} is wrong, by no mistake known here"
    return Finding("something else", message, numbers(got), numbers(expected))


def numbers(tensor: Tensor) -> str:
    """The numbers of a small tensor, at most 120 characters."""
    text = str(tensor.long().tolist())
    return text if len(text) <= 120 else text[:117] + "..."
