"""Set 07: a LoRA merged in four ways, and how far the outputs move.

    merge_lora(weight (d, k), A (r, k), B (d, r), alpha, how, levels (L,), block=64) -> (d, k)
    output_error(x (T, k), merged (d, k), frozen (d, k), A, B, alpha) -> ()

how: "dequantize" Ŵ + ΔW, "requantize" Q(Ŵ + ΔW), "original" W + ΔW, "original-requantize"
Q(W + ΔW); Ŵ = Q(W) is the weight through quantize and dequantize, ΔW = (alpha / r) B A. The error
is ‖x W'ᵀ - y‖ / ‖y‖ with y = x Ŵᵀ + (alpha / r) (x Aᵀ) Bᵀ.
"""

import torch
from torch import Tensor

from course_utils.grading.call import Call
from course_utils.grading.checks import Check, Task
from course_utils.grading.finding import Finding, changed, is_close, name_mistake, show, wrong_type
from course_utils.grading.tasks.set_07._inputs import (
    generator,
    named,
    near_border,
    random_book,
    rounded,
)

WAYS = ("dequantize", "original", "requantize", "original-requantize")


def _inputs(seed: int, size: int) -> tuple[Tensor, Tensor, Tensor, float, Tensor, int]:
    """weight (d, k), A (r, k), B (d, r), alpha, levels (16,), block; d·k fills no whole block."""
    source = generator(seed)
    d, k, r, block = 13 + size, 21 + 2 * (size % 5), 3 + size % 3, (16, 24, 64)[size % 3]
    while d * k % block == 0 or k % block == 0 or d == k:
        d += 1
    weight = torch.randn(d, k, generator=source) * 0.5
    A = torch.randn(r, k, generator=source) * 0.3
    B = torch.randn(d, r, generator=source) * 0.3
    return weight, A, B, float(1.5 * r + 1 + size % 4), random_book(seed + 1), block


def _update(A: Tensor, B: Tensor, alpha: float) -> Tensor:
    """ΔW in float64, as a sum of outer products."""
    total = torch.zeros(B.shape[0], A.shape[1], dtype=torch.float64)
    for column, row in zip(B.T.double(), A.double(), strict=True):
        total += torch.outer(column, row)
    return alpha / len(A) * total


def _merged(
    weight: Tensor, update: Tensor, how: str, levels: Tensor, block: int
) -> tuple[Tensor, Tensor]:
    """(W' in float64, where a rounding on the way was too close to call)."""
    doubt = torch.zeros_like(weight, dtype=torch.bool)
    start = weight.double()
    if not how.startswith("original"):
        start, doubt = rounded(weight, levels, block), near_border(weight, levels, block)
    whole = start + update
    if how.endswith("requantize"):
        doubt = doubt | near_border(whole, levels, block)
        whole = rounded(whole, levels, block)
    return whole, doubt


def _known(
    how: str, weight: Tensor, A: Tensor, B: Tensor, alpha: float, levels: Tensor, block: int
) -> dict[str, tuple[Tensor, str]]:
    """What the known mistakes give for this way."""
    delta, r = _update(A, B, alpha), len(A)

    def merged(update: Tensor = delta, way: str = how) -> Tensor:
        return _merged(weight, update, way, levels, block)[0]

    apart = rounded(weight, levels, block) + rounded(delta, levels, block)
    nothing = delta * 0
    scaled = "the update is (alpha / r) B A"
    known = {
        "zero": (nothing, "your weight is 0"),
        "not scaled": (merged(delta * r / alpha), f"{scaled}: the factor is missing"),
        "alpha alone": (merged(delta * r), f"{scaled}: r is missing"),
        "upside down": (merged(delta * (r / alpha) ** 2), f"{scaled}, not r / alpha"),
        "sign": (merged(-delta), "the update must be *added*"),
        "merged twice": (merged(2 * delta), "the update is added twice"),
        "update lost": (merged(nothing), "the update is missing: this is the weight alone"),
        "update alone": (delta, "this is the update alone; add it to the weight"),
        "rounded apart": (apart, "weight and update are rounded each for itself; their *sum* is "
                          "what has to be stored in 4 bits"),
    }  # fmt: skip
    others = {
        "dequantize": "Ŵ + ΔW, the dequantized weight and the update",
        "original": "W + ΔW, the weight before any rounding and the update",
        "requantize": "Ŵ + ΔW, rounded to 4 bits again",
        "original-requantize": "W + ΔW, rounded to 4 bits",
    }
    for way in WAYS:
        if way != how:
            message = f"this is {others[way]}; asked for was {others[how]}"
            known[f"{way} instead"] = merged(way=way), message
    return known


def check_merge(call: Call, seed: int, size: int) -> list[Finding]:
    """The four ways; all that is given stays as it was."""
    weight, A, B, alpha, levels, block = _inputs(seed, size)
    for how in WAYS:
        arguments = (weight, A, B, alpha, how, levels, block)
        outcome = call(*arguments)
        fault = wrong_type(outcome.value, tuple(weight.shape))
        if fault is None:
            expected, doubt = _merged(weight, _update(A, B, alpha), how, levels, block)
            got = torch.where(doubt, expected, outcome.value.double())
            if not is_close(got, expected):  # only then is it worth while to know the mistakes
                mistakes = _known(how, weight, A, B, alpha, levels, block)
                known = {
                    name: (torch.where(doubt, expected, value), message)
                    for name, (value, message) in mistakes.items()
                }
                fault = named(got, expected, known)
        if fault:
            message = f'how="{how}": {fault.message}'
            return [Finding(fault.mistake, message, fault.got, fault.expected)]
        fault = changed(("weight", "A", "B"), arguments[:3], outcome.arguments)
        if fault:
            return [fault]
    return []


def _case(seed: int, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, float]:
    """x (T, k), merged (d, k), frozen (d, k), A, B, alpha: tokens of very different size."""
    weight, A, B, alpha, levels, block = _inputs(seed, size)
    source = generator(seed + 2)
    x = torch.randn(5 + size, weight.shape[1], generator=source)
    x *= 10 ** torch.linspace(-1, 1, len(x)).unsqueeze(1)
    frozen = rounded(weight, levels, block).float()
    merged, _ = _merged(weight, _update(A, B, alpha), "requantize", levels, block)
    merged *= 1.05  # its outputs then differ from y in size, and not in direction only
    return x, merged.float(), frozen, A, B, alpha


def _size(value: Tensor) -> Tensor:
    """Root of the sum of all squares, (), float64."""
    return value.double().square().sum().sqrt()


def check_error(call: Call, seed: int, size: int) -> list[Finding]:
    """The relative error of the outputs."""
    x, merged, frozen, A, B, alpha = _case(seed, size)
    delta, inputs = _update(A, B, alpha), x.double()
    y = inputs @ (frozen.double() + delta).T
    out = inputs @ merged.double().T
    off = out - y
    right = _size(off) / _size(y)
    rows = off.norm(dim=1) / y.norm(dim=1)
    base = inputs @ frozen.double().T
    unscaled = inputs @ (frozen.double() + delta * len(A) / alpha).T
    weights = merged.double() - frozen.double() - delta
    known = {
        "zero": (right * 0, "your error is 0"),
        "not relative": (_size(off), "divide by the size of the outputs: the error is relative"),
        "squared": (right**2, "this is the square of it: take the root of both norms"),
        "mean over tokens": (rows.mean(), "you average each token's own relative error; take one "
                             "norm over all numbers"),
        "largest": (off.abs().max() / y.abs().max(), "this compares the largest numbers; take the "
                    "norm over all"),
        "absolute values": (off.abs().sum() / y.abs().sum(), "these are sums of magnitudes; take "
                            "the root of the sum of squares"),
        "divided by the merged": (_size(off) / _size(out), "divide by the size of y, the outputs "
                                  "*before* merging"),
        "without the adapter": (_size(out - base) / _size(base), "y lacks the adapter: before "
                                "merging the layer gives x Ŵᵀ *and* the LoRA's part"),
        "relative to the base": (_size(off) / _size(base), "divide by the size of the whole y, "
                                 "the adapter's part included"),
        "not scaled": (_size(out - unscaled) / _size(unscaled), "the adapter's part of y is scaled "
                       "by alpha / r"),
        "weights": (_size(weights) / _size(frozen.double() + delta), "this is the error of the "
                    "weights; asked for is that of the *outputs*"),
        "divided by the count": (_size(off) / _size(y) / off.numel(), "a ratio of norms needs "
                                      "no division by the number of outputs"),
    }  # fmt: skip
    got = call.second(x, merged, frozen, A, B, alpha).value
    fault = wrong_type(got, ()) or name_mistake(got, right, known)
    return [fault] if fault else []


def check_exact(call: Call, seed: int, size: int) -> list[Finding]:
    """An exact merge has an error of 0, tiny errors are seen, the scale of x does not matter."""
    x, merged, frozen, A, B, alpha = _case(seed + 1, size)
    exact = (frozen.double() + _update(A, B, alpha)).float()
    got = call.second(x, exact, frozen, A, B, alpha).value
    fault = wrong_type(got, ())
    if not fault and not (0 <= float(got) < 1e-5):
        message = "merging Ŵ + ΔW changes nothing: the error must be 0 up to rounding"
        fault = Finding("exact merge", message, show(got), "0")
    if fault:
        return [fault]
    here = call.second(x, merged, frozen, A, B, alpha).value
    for factor in (1e-6, 1e6):
        there = call.second(x * factor, merged, frozen, A, B, alpha).value
        if not isinstance(there, Tensor) or not is_close(there, here, 1e-3):
            message = f"inputs {factor:g} times as large must have the same *relative* error"
            return [Finding("not relative", message, show(there), show(here))]
    y = x @ exact.T
    far = call.second(x, exact * 3, frozen, A, B, alpha).value
    if not isinstance(far, Tensor) or not is_close(far, torch.tensor(2.0), 1e-3):
        message = "a merged weight three times too large has a relative error of 2"
        return [Finding("large errors", message, show(far), f"2 (‖y‖ is {float(_size(y)):.3g})")]
    return []


TASK = Task(
    set="07",
    name="merge-error",
    functions=("merge_lora", "output_error"),
    checks=(
        Check("four merges", 2, check_merge),
        Check("the error of the outputs", 2, check_error),
        Check("exact and extreme", 1, check_exact),
    ),
)
