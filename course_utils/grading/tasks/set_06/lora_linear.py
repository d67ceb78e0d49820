"""Set 06: a linear map with a low-rank change.

    lora_forward(x (..., k), W (d, k), bias (d,) or None, A (R, k), B (d, R), alpha) -> (..., d)
    lora_init(d, k, r, seed) -> A (R, k), B (d, R)

y = W x + bias + (α/r) B A x with W and bias frozen. A starts uniform in ±1/√k, B at zero. Every
check of the forward has B ≠ 0, for with B = 0 a forward without any LoRA would pass.
"""

import math
from typing import Any

import torch
from torch import Tensor

from course_utils.grading.call import Call
from course_utils.grading.checks import Check, Task
from course_utils.grading.finding import (
    Finding,
    attempt,
    changed,
    is_close,
    name_mistake,
    show,
    wrong_type,
)
from course_utils.grading.tasks.set_06._inputs import lora_inputs

NAMES = ("x", "W", "bias", "A", "B")


def _inputs(seed: int, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, float]:
    draw, W, A, B, alpha = lora_inputs(seed, size)
    x = draw.normal(3 + size % 4, W.shape[1], scale=0.05)
    return x, W, 0.2 * draw.away_from_zero(len(W)), A, B, alpha


def _known(
    x: Tensor, W: Tensor, bias: Tensor, A: Tensor, B: Tensor, alpha: float
) -> tuple[Tensor, dict[str, tuple[Tensor, str]]]:
    """(the right value, what each known mistake gives), in float64."""
    x, W, bias, A, B = (t.double() for t in (x, W, bias, A, B))
    r, (d, k) = len(A), W.shape
    product = torch.einsum("nk,dk->nd", x, W)
    plain = product + bias
    low = torch.einsum("nk,rk,dr->nd", x, A, B)  # B A x
    right = plain + alpha / r * low
    return right, {
        "zero": (right * 0, "your forward gives 0 whatever the input"),
        "sign": (-right, "the output is negated"),
        "no update": (plain, "the low-rank path is missing: this is the frozen map alone"),
        "no base": (alpha / r * low, "the frozen map is missing: this is the low-rank path alone"),
        "update subtracted": (plain - alpha / r * low, "the low-rank path is subtracted; the "
                              "change is added to the frozen map"),
        "scale ignored": (plain + low, "B A x is added as it is: where is its scale?"),
        "alpha not divided": (plain + alpha * low, "the scale is α; what is α divided by, so that "
                              "a learning rate can be kept when the rank changes?"),
        "alpha left out": (plain + low / r, "you divide by the rank, but α is missing"),
        "scale upside down": (plain + r / alpha * low, "the scale is upside down"),
        "root of the rank": (plain + alpha / math.sqrt(r) * low, "the scale is α/√r: that is "
                             "rsLoRA; here plain LoRA is asked for"),
        "not the rank": (plain + alpha / k * low, "you divide α by the number of inputs; which "
                         "dimension of A is the rank?"),
        "not the rank of B": (plain + alpha / d * low, "you divide α by the number of outputs; "
                              "which dimension of B is the rank?"),
        "base scaled": (alpha / r * (plain + low), "the frozen map is scaled too; only the "
                        "low-rank path is"),
        "bias scaled": (product + alpha / r * (bias + low), "the bias is scaled too"),
        "no bias": (right - bias, "the bias is missing"),
        "bias twice": (right + bias, "the bias is added twice"),
    }  # fmt: skip


def check_value(call: Call, seed: int, size: int) -> list[Finding]:
    """The output with B ≠ 0, and that the arguments are left as they were."""
    args = _inputs(seed, size)
    right, known = _known(*args)
    outcome = call(*args)
    fault = (
        wrong_type(outcome.value, tuple(right.shape))
        or name_mistake(outcome.value, right, known)
        or changed(NAMES, args[:5], outcome.arguments[:5])
    )
    return [fault] if fault else []


def check_gradients(call: Call, seed: int, size: int) -> list[Finding]:
    """None for W and bias; the closed form for A, B and x (G is all ones: value.sum())."""
    x, W, _, A, B, alpha = args = _inputs(seed, size)
    gradients = call(*args, wrt=(0, 1, 2, 3, 4)).gradients
    for name, gradient in zip(("W", "bias"), gradients[1:3], strict=True):
        if gradient is not None and not (isinstance(gradient, Tensor) and not gradient.any()):
            message = f"a gradient reaches {name}; it is frozen: the training must not move it"
            return [Finding(f"{name} not frozen", message, show(gradient), "no gradient")]
    x, W, A, B = (t.double() for t in (x, W, A, B))
    s, G = alpha / len(A), torch.ones(len(x), len(W), dtype=torch.float64)
    low = s * G @ B @ A  # what comes back through the low-rank path alone
    expected = {
        "A": (gradients[3], s * (G @ B).T @ x),
        "B": (gradients[4], s * G.T @ (x @ A.T)),
        "x": (gradients[0], G @ W + low),
    }
    for name, (gradient, right) in expected.items():
        if not isinstance(gradient, Tensor):
            message = f"no gradient reaches {name}: something is detached, or under no_grad"
            return [Finding(f"{name} detached", message)]
        if name == "x" and is_close(gradient, low, atol=1e-5):
            message = (
                "the gradient of x misses the part through W. W is frozen, yet what lies below "
                "this layer must still learn: freeze the weight, not the path"
            )
            return [Finding("base path detached", message)]
        if not is_close(gradient, right, atol=1e-5):
            message = f"the gradient of {name} is wrong"
            return [Finding("gradient", message, show(gradient.norm()), show(right.norm()))]
    return []


def check_kinds(call: Call, seed: int, size: int) -> list[Finding]:
    """No bias, other shapes of x, a bfloat16 base, and the start at B = 0."""
    x, W, bias, A, B, alpha = _inputs(seed, size)
    right, _ = _known(x, W, bias, A, B, alpha)
    wide = torch.stack((x, 2 * x), 1)  # (n, 2, k); transposed it is no longer contiguous
    cases = [
        ("bias of None", "bias=None must be allowed", (x, W, None), right - bias),
        ("leading dimensions", "x may have any dimensions before its last one: (k,)",
         (x[0], W, bias), right[0]),
        ("leading dimensions", "x may have any dimensions before its last one: (B, T, k)",
         (wide.transpose(0, 1), W, bias), torch.stack((right, 2 * right - bias))),
    ]  # fmt: skip
    for mistake, message, (some, weight, add), expected in cases:
        outcome = attempt(call, mistake, message, some, weight, add, A, B, alpha)
        if isinstance(outcome, Finding):
            return [outcome]
        fault = wrong_type(outcome.value, tuple(expected.shape))
        if fault or not is_close(outcome.value, expected):
            return [Finding(mistake, f"{message}: the result is wrong there")]
    start = call(x, W, bias, A, B * 0, alpha).value
    expected = x.double() @ W.double().T + bias
    if not isinstance(start, Tensor) or not is_close(start, expected):
        message = "with B = 0 the output must be the frozen map's"
        return [Finding("start", message)]
    return _check_half(call, x, W, bias, A, B, alpha)


def _check_half(call: Call, *args: Any) -> list[Finding]:
    """A bfloat16 base and input, A and B in float32: bfloat16 comes out."""
    x, W, bias = (t.bfloat16() for t in args[:3])
    right, _ = _known(x, W, bias, *args[3:])
    message = "x, W and bias may be bfloat16 while A and B are float32"
    outcome = attempt(call, "mixed dtypes", message, x, W, bias, *args[3:])
    if isinstance(outcome, Finding):
        return [outcome]
    fault = wrong_type(outcome.value, tuple(right.shape))
    if fault:
        return [fault]
    if outcome.value.dtype != torch.bfloat16:
        message = "with bfloat16 x the result must be bfloat16 as well: the next layer expects it"
        return [Finding("dtype", message, show(outcome.value), "a bfloat16 tensor")]
    if (outcome.value.double() - right).norm() > 0.02 * right.norm():
        return [Finding("half precision", "with a bfloat16 base the result is wrong")]
    return []


def check_init(call: Call, seed: int, size: int) -> list[Finding]:
    """Shapes; B zero; A uniform within ±1/√k, from the seed."""
    d, k, r = 11 + size, 200 + 10 * size, 4 + size % 5
    pair = call.second(d, k, r, seed).value
    fault = _not_a_start(pair, d, k, r)
    if fault:
        return [fault]
    A, B = pair
    if B.any():
        where = "A is zero and B random: " if not A.any() else "B is not zero: "
        why = "swap them" if not A.any() else "the model would start as another than the base"
        return [Finding("A zero, B random" if not A.any() else "B not zero", where + why)]
    if not A.any():
        message = "A and B are both zero: no gradient would ever reach either of them"
        return [Finding("both zero", message)]
    again, other = (call.second(d, k, r, s).value for s in (seed, seed + 1))
    if _not_a_start(again, d, k, r) or not torch.equal(A, again[0]):
        return [Finding("not repeatable", "the same seed must give the same A")]
    if _not_a_start(other, d, k, r) or torch.equal(A, other[0]):
        return [Finding("seed ignored", "another seed must give another A")]
    return _check_spread(A.double(), k)


def _not_a_start(pair: Any, d: int, k: int, r: int) -> Finding | None:
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        return Finding("not a pair", "lora_init must return A and B", show(pair), "A, B")
    for name, value, shape in zip("AB", pair, ((r, k), (d, r)), strict=True):
        fault = wrong_type(value, shape)
        if fault:
            return Finding(fault.mistake, f"{name}: {fault.message}", fault.got, fault.expected)
    return None


def _check_spread(A: Tensor, k: int) -> list[Finding]:
    """Uniform in ±b has standard deviation b/√3; 800 numbers or more give it within a few %."""
    bound = 1 / math.sqrt(k)
    spread = bound / math.sqrt(3)
    shown = f"standard deviation {A.std():.4g}", f"{spread:.4g} (uniform within ±{bound:.4g})"
    if torch.linalg.matrix_rank(A) < len(A):
        return [
            Finding("rows alike", "rows of A repeat each other: fewer directions than the rank")
        ]
    if A.mean().abs() > 0.3 * A.std():
        return [Finding("not centred", "A is not centred at zero", f"mean {A.mean():.4g}", "0")]
    if not A.abs().max() <= bound * (1 + 1e-5) or A.std() > 1.15 * spread:
        message = "numbers of A lie beyond ±1/√k, where k is the number of inputs"
        return [Finding("too wide", message, *shown)]
    if A.std() < 0.85 * spread:
        return [Finding("too narrow", "A is smaller than uniform within ±1/√k", *shown)]
    return []


TASK = Task(
    set="06",
    name="lora-linear",
    functions=("lora_forward", "lora_init"),
    checks=(
        Check("value", 2, check_value),
        Check("gradients", 1, check_gradients),
        Check("shapes, dtypes and the start", 1, check_kinds),
        Check("lora_init", 1, check_init),
    ),
)
