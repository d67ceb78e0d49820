"""Set 04: three estimates of KL(π ‖ π_ref), token by token.

    kl_estimate(logprobs, ref_logprobs, kind) -> Tensor of the same shape

With d = log π - log π_ref: k1 = d, k2 = d²/2, k3 = exp(-d) - 1 + d (Schulman 2020). The result is
float32 also for bfloat16 inputs; k2 and k3 are not negative even where d is tiny.
"""

import torch
from torch import Tensor

from course_utils.grading.call import Call
from course_utils.grading.checks import Check, Task
from course_utils.grading.finding import Finding, changed, is_close, name_mistake, show, wrong_type
from course_utils.grading.tasks.set_04._inputs import answers

KINDS = ("k1", "k2", "k3")


def _right(d: Tensor) -> dict[str, Tensor]:
    """The three estimates in float64."""
    d = d.double()
    return {"k1": d, "k2": d * d / 2, "k3": torch.expm1(-d) + d}


def _known(logprobs: Tensor, ref_logprobs: Tensor, kind: str) -> dict[str, tuple[Tensor, str]]:
    p, q = logprobs.double(), ref_logprobs.double()
    d = p - q
    found: dict[str, tuple[Tensor, str]] = {
        "zero": (d * 0, f"your {kind} is 0 everywhere"),
        "probabilities": (p.exp() - q.exp(), "you subtract probabilities; d is the difference of "
                          "the *log*-probabilities"),
        "weighted": (p.exp() * _right(d)[kind], "you weight by the token's probability; the tokens "
                     "are already drawn from π, so the plain mean over them is the expectation"),
    }  # fmt: skip
    for other, value in _right(d).items():
        if other != kind:
            found[f"{other} for {kind}"] = value, f"for kind={kind!r} you return {other}"
    if kind == "k1":
        found["direction"] = -d, "d's sign is turned round: d = log π - log π_ref, tokens are π's"
    if kind == "k2":
        found["half"] = d * d, "k2 is *half* of d squared"
        found["root"] = d.abs() / 2, "k2 is d *squared* / 2; its size alone is something else"
    if kind == "k3":
        found |= {
            "direction": (torch.expm1(d) - d, "this k3 has d's sign turned round: with tokens "
                          "drawn from π it estimates something else (published code had this)"),
            "minus one": ((-d).exp() + d, "in k3 the -1 is missing: it must be 0 at d = 0"),
            "k3 sign of d": (torch.expm1(-d) - d, "in k3 the last term is +d; with -d it can be "
                             "negative"),
            "ratio": (torch.expm1(d) + d, "k3 has exp(-d), which is π_ref/π; you have π/π_ref"),
            "no correction": (torch.expm1(-d), "k3 is exp(-d) - 1 *plus d*"),
        }  # fmt: skip
    return found


def check_value(call: Call, seed: int, size: int) -> list[Finding]:
    """The three estimates of ordinary tokens; the inputs stay as they were."""
    drawn = answers(seed, size)
    p, q = drawn.logprobs, drawn.ref_logprobs
    right = _right(p.double() - q.double())
    for kind in KINDS:
        outcome = call(p, q, kind)
        fault = wrong_type(outcome.value, tuple(p.shape))
        if fault and isinstance(outcome.value, Tensor) and outcome.value.dim() < p.dim():
            message = f"{kind} is wanted for every token, the shape of the inputs: do not average"
            fault = Finding("reduced", message, fault.got, fault.expected)
        fault = (
            fault
            or name_mistake(outcome.value, right[kind], _known(p, q, kind))
            or changed(("logprobs", "ref_logprobs"), (p, q), outcome.arguments)
        )
        if fault:
            return [fault]
    flat = call(p.t()[0], q.t()[0], "k3").value  # (B,), not contiguous
    if not isinstance(flat, Tensor) or not is_close(flat, right["k3"].t()[0]):
        message = "any shape must do, such as (B,) or a slice that is not contiguous in memory"
        return [Finding("shape assumed", message, show(flat), show(right["k3"].t()[0]))]
    return []


def check_gradient(call: Call, seed: int, size: int) -> list[Finding]:
    """∂k1 = 1, ∂k2 = d, ∂k3 = 1 - exp(-d) by log π."""
    drawn = answers(seed, size)
    p, q = drawn.logprobs, drawn.ref_logprobs
    d = p.double() - q.double()
    expected = {"k1": torch.ones_like(d), "k2": d, "k3": -torch.expm1(-d)}
    for kind in KINDS:
        (gradient,) = call(p, q, kind, wrt=(0,)).gradients
        if gradient is None:
            message = f"no gradient of {kind} reaches logprobs: something is detached"
            return [Finding("detached", message)]
        if not is_close(gradient, expected[kind], atol=1e-5):
            message = f"the gradient of {kind} by logprobs is wrong, though its value is right"
            return [Finding("gradient", message, show(gradient.norm()),
                            show(expected[kind].norm()))]  # fmt: skip
    return []


def check_small(call: Call, seed: int, size: int) -> list[Finding]:
    """Differences of 1e-3 and less, where exp(-d) - 1 loses its digits; bfloat16."""
    drawn = answers(seed, size)
    p = drawn.logprobs
    steps = 10.0 ** -(3 + torch.rand(p.shape, generator=drawn.generator))  # 1e-4 … 1e-3
    sign = torch.where(torch.rand(p.shape, generator=drawn.generator) < 0.5, -1.0, 1.0)
    q = p - steps * sign
    right = _right(p.double() - q.double())
    for kind in ("k2", "k3"):
        got = call(p, q, kind).value
        fault = wrong_type(got, tuple(p.shape))
        if fault:
            return [fault]
        if not is_close(got, right[kind], rtol=0.02, atol=0):
            message = (
                f"where π and π_ref differ by a thousandth, {kind} is rounding noise and may fall "
                "below 0: exp(-d) - 1 subtracts two numbers that are almost equal"
            )
            return [Finding("cancellation", message, f"a least value of {show(got.min())}",
                            show(right[kind].min()))]  # fmt: skip
        if bool((got < 0).any()):
            return [Finding("negative", f"{kind} may never be negative", show(got.min()), ">= 0")]
    p, q = drawn.logprobs.bfloat16(), drawn.ref_logprobs.bfloat16()
    right = _right(p.double() - q.double())
    for kind in KINDS:
        got = call(p, q, kind).value
        if not isinstance(got, Tensor) or not is_close(got, right[kind], rtol=1e-3, atol=1e-5):
            message = f"with bfloat16 inputs {kind} loses digits: convert them to float32 first"
            return [Finding("half precision", message, show(got), show(right[kind]))]
    return []


TASK = Task(
    set="04",
    name="kl-estimate",
    functions=("kl_estimate",),
    checks=(
        Check("the three estimates", 1, check_value),
        Check("gradient", 1, check_gradient),
        Check("tiny differences", 1, check_small),
    ),
)
