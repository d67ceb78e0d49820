"""Set 06: adding a LoRA into its weight, and taking it out again.

    merge(W (d, k), A (R, k), B (d, R), alpha, rslora=False) -> W' (d, k)
    unmerge(merged (d, k), A, B, alpha, rslora=False) -> W (d, k)

W' = W + (α/r) B A, with rslora α/√r. The sum is taken in float32 and rounded once, to W's dtype.
"""

import math

import torch
from torch import Tensor

from course_utils.grading.call import Call
from course_utils.grading.checks import Check, Task
from course_utils.grading.finding import Finding, attempt, changed, name_mistake, show, wrong_type
from course_utils.grading.tasks.set_06._inputs import lora_inputs

NAMES = ("W", "A", "B")


def _product(A: Tensor, B: Tensor) -> Tensor:
    """B A in float64, as a sum of R outer products."""
    return torch.einsum("dr,rk->dk", B.double(), A.double())


def _known(
    W: Tensor, A: Tensor, B: Tensor, alpha: float, sign: int, rslora: bool = False
) -> tuple[Tensor, dict[str, tuple[Tensor, str]]]:
    """(W + sign (α/r) B A, what each known mistake gives), in float64; sign -1 is unmerging."""
    W, product, r, (d, k) = W.double(), sign * _product(A, B), len(A), W.shape
    plain, root = alpha / r, alpha / math.sqrt(r)
    scale, other = (root, plain) if rslora else (plain, root)
    opposite = "B A is subtracted; merging adds it" if sign > 0 else (
        "B A is added once more; unmerging takes it out")  # fmt: skip
    which = "rslora=True asks for α/√r" if rslora else "plain LoRA is α/r; α/√r is for rslora=True"
    return W + scale * product, {
        "zero": (W * 0, "the result is 0 whatever the input"),
        "unchanged": (W, "the weight comes back as it was"),
        "change alone": (scale * product, "this is the change alone, without the weight"),
        "sign": (W - scale * product, opposite),
        "wrong rule": (W + other * product, f"the scale is the wrong one of the two: {which}"),
        "scale ignored": (W + product, "B A is added as it is: where is its scale?"),
        "alpha not divided": (W + alpha * product, "the scale is α; divide it by the rank"),
        "alpha left out": (W + product / r, "you divide by the rank, but α is missing"),
        "scale upside down": (W + product / scale, "the scale is upside down"),
        "not the rank": (W + alpha / k * product, "you divide α by the number of inputs; which "
                         "dimension of A is the rank?"),
        "not the rank of B": (W + alpha / d * product, "you divide α by the number of outputs; "
                              "which dimension of B is the rank?"),
        "weight scaled": (scale * (W + product), "the weight is scaled too; only B A is"),
    }  # fmt: skip


def check_merge(call: Call, seed: int, size: int) -> list[Finding]:
    """W' by both rules, and that W is not changed."""
    _, W, A, B, alpha = lora_inputs(seed, size)
    right, known = _known(W, A, B, alpha, 1)
    outcome = call(W, A, B, alpha)
    fault = (
        wrong_type(outcome.value, tuple(right.shape))
        or name_mistake(outcome.value, right, known)
        or changed(NAMES, (W, A, B), outcome.arguments[:3])
    )
    if fault:
        return [fault]
    right, known = _known(W, A, B, alpha, 1, rslora=True)
    value = call(W, A, B, alpha, rslora=True).value
    fault = wrong_type(value, tuple(right.shape)) or name_mistake(value, right, known)
    return [fault] if fault else []


def check_unmerge(call: Call, seed: int, size: int) -> list[Finding]:
    """W comes back from a W' that was merged here, so nothing can have been kept aside."""
    _, W, A, B, alpha = lora_inputs(seed, size)
    for rslora in (False, True):
        merged = _known(W, A, B, alpha, 1, rslora)[0].float()
        right, known = _known(merged, A, B, alpha, -1, rslora)
        outcome = call.second(merged, A, B, alpha, rslora=rslora)
        fault = (
            wrong_type(outcome.value, tuple(right.shape))
            or name_mistake(outcome.value, right, known, rtol=3e-4)
            or changed(NAMES, (merged, A, B), outcome.arguments[:3])
        )
        if fault:
            return [fault]
    return []


def check_dtype(call: Call, seed: int, size: int) -> list[Finding]:
    """W in half precision, A and B in float32: same dtype out, and rounded once."""
    draw, _, _, _, alpha = lora_inputs(seed, size)
    r, d, k = 2 + size % 3, 30 + size, 40 + size
    W, A, B = draw.away_from_zero(d, k), draw.normal(r, k), draw.normal(d, r)
    for dtype in (torch.bfloat16, torch.float16):
        for number, sign in enumerate((1, -1)):
            weight = W.to(dtype)
            exact = weight.double() + sign * alpha / r * _product(A, B)
            name = str(dtype).removeprefix("torch.")
            message = f"W may be {name} while A and B are float32"
            outcome = attempt(call.nth, "mixed dtypes", message, number, weight, A, B, alpha)
            if isinstance(outcome, Finding):
                return [outcome]
            fault = wrong_type(outcome.value, (d, k)) or _fault(outcome.value, exact, dtype)
            if fault:
                return [fault]
    return []


def _fault(value: Tensor, exact: Tensor, dtype: torch.dtype) -> Finding | None:
    name = str(dtype).removeprefix("torch.")
    if value.dtype != dtype:
        message = f"a {name} weight must stay {name}: the model around it has that dtype"
        return Finding("dtype changed", message, show(value), f"a {name} tensor")
    error = (value.double() - exact).abs().mean()
    least = (exact.to(dtype).double() - exact).abs().mean()  # of rounding once
    if not error < 0.05 * exact.abs().mean():
        return Finding("half precision", f"with a {name} weight the result is wrong")
    if error > 1.02 * least:
        message = (
            f"more is rounded away than a {name} result needs: take the product and the sum in "
            "float32, and round once, at the end"
        )
        return Finding("rounded early", message, f"mean error {error:.3g}", f"{least:.3g}")
    return None


TASK = Task(
    set="06",
    name="lora-merge",
    functions=("merge", "unmerge"),
    checks=(
        Check("merge", 2, check_merge),
        Check("unmerge", 1, check_unmerge),
        Check("half precision", 1, check_dtype),
    ),
)
