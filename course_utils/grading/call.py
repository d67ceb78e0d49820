"""A student's functions as the checks see them: the same interface here and in the sandbox.

`call(*args, wrt=(0,))` returns an `Outcome` or raises `Failed`; `call.second(…)` calls a task's
next function, `call.nth(2, …)` any. A function always gets copies.
This file is also read inside the sandbox, so it needs torch and nothing else of ours.
"""

import copy
import re
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SUBMISSION = "cell "  # how the file name of a student's code begins: "cell 5"


@dataclass(frozen=True)
class Outcome:
    value: Any  # what the function returned
    gradients: tuple[Tensor | None, ...]  # of value.sum() by each argument asked for; None: no path
    arguments: tuple[Any, ...]  # the arguments as they are after the call


class Failed(Exception):
    """The student's function gave no value: it raised, was late, ended the process, is missing."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind, self.message = kind, message

    @property
    def is_blank(self) -> bool:
        """Whether it is the exercise's hole that raised, not torch ("… not implemented for …")."""
        return bool(re.match(r"NotImplementedError: (your code here|\(|$)", self.message))


class MachineFailed(Exception):
    """The call failed for reasons that are not the student's."""


class Call:
    """A task's functions; subclasses say where they run."""

    def __call__(self, *args: Any, wrt: tuple[int, ...] = (), **kwargs: Any) -> Outcome:
        """The first function. `wrt`: positions of tensors to differentiate value.sum() by."""
        return self.nth(0, *args, wrt=wrt, **kwargs)

    def second(self, *args: Any, wrt: tuple[int, ...] = (), **kwargs: Any) -> Outcome:
        return self.nth(1, *args, wrt=wrt, **kwargs)

    def nth(self, which: int, *args: Any, wrt: tuple[int, ...] = (), **kwargs: Any) -> Outcome:
        raise NotImplementedError


class LocalCall(Call):
    """Calls functions in this process: what a student's own notebook does."""

    def __init__(self, functions: Sequence[Callable[..., Any]]):
        self.functions = functions

    def nth(self, which: int, *args: Any, wrt: tuple[int, ...] = (), **kwargs: Any) -> Outcome:
        try:
            return invoke(self.functions[which], copy.deepcopy(args), copy.deepcopy(kwargs), wrt)
        except Exception as error:
            raise Failed("raised", describe(error)) from error


def invoke(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    wrt: tuple[int, ...],
) -> Outcome:
    """Calls the function and, where asked, differentiates the sum of what it returned."""
    inputs = [args[i].requires_grad_(True) for i in wrt]
    value = function(*args, **kwargs)
    gradients: tuple[Tensor | None, ...] = (None,) * len(inputs)
    if inputs and isinstance(value, Tensor) and value.requires_grad:
        gradients = torch.autograd.grad(value.sum(), inputs, allow_unused=True)
    if isinstance(value, Tensor):
        value = value.detach()
    return Outcome(value, tuple(gradients), tuple(_detached(a) for a in args))


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def run_piece(source: str, cell: int, line: int, namespace: dict[str, Any]) -> None:
    """Runs a statement of a notebook; its errors name the notebook's cell and lines."""
    exec(compile("\n" * (line - 1) + source, f"{SUBMISSION}{cell}", "exec"), namespace)


def describe(error: BaseException) -> str:
    """The error's kind, its first words and the student's line: "… (cell 5, line 3)"."""
    try:
        text = str(error)[:300]
    except Exception:
        text = "(its message cannot be shown)"
    frames = traceback.extract_tb(error.__traceback__, limit=50)
    own = [f for f in frames if f.filename.startswith(SUBMISSION)]
    where = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {text}{where}"
