"""Set 05: how much each pair counts in DPO's gradient, and the gradient itself.

    gradient_weight(chosen, rejected, ref_chosen, ref_rejected, beta) -> (B,)
    dpo_gradients(chosen, rejected, ref_chosen, ref_rejected, beta) -> ((B,), (B,))

w = σ(r̂(y_l) - r̂(y_w)) (Rafailov et al. 2023, §4). The second returns the gradient of the mean DPO
loss by `chosen` and by `rejected`: what the chain rule hands on to ∇ log π.
"""

import torch
from torch import Tensor

from course_utils.grading.call import Call
from course_utils.grading.checks import Check, Task
from course_utils.grading.finding import Finding, changed, is_close, show
from course_utils.grading.tasks.set_05._inputs import (
    NAMES,
    Four,
    Known,
    at_margins,
    difference,
    four_logprobs,
    mistake_in_rows,
    softplus,
)


def _beta(size: int) -> float:
    return 0.15 + 0.05 * size


def _weight(u: Tensor) -> Tensor:
    """σ(-u) = exp(-log(1 + e^u)): exact in its digits however small."""
    return torch.exp(-softplus(u))


def _known(four: Four, beta: float) -> Known:
    chosen, rejected, _, _ = (x.double() for x in four)
    h = difference(four)
    u = beta * h
    w = _weight(u)
    return {
        "zero": (w * 0, "your weights are 0 whatever the input"),
        "constant": (w * 0 + 0.5, "your weight is 0.5 for every pair; that holds only while the "
                     "policy equals the reference"),
        "one": (w * 0 + 1, "your weight is 1 for every pair"),
        "reversed": (1 - w, "the weight is large where the order is *right*: a pair must count "
                     "the more, the more wrong it is"),
        "times beta": (beta * w, "β stands in front of the weight; it belongs to the gradient, "
                       "and to the rewards inside σ, but not here"),
        "divided by the batch": (w / len(w), "the weight is each pair's own: 1/B belongs to the "
                                 "mean, not to it"),
        "no beta": (_weight(h), "β is missing in the rewards"),
        "no reference": (_weight(beta * (chosen - rejected)), "the reference is missing in the "
                         "rewards"),
        "derivative": (w * (1 - w), "this is the derivative of σ; the weight is that of log σ"),
        "loss": (softplus(-u), "this is each pair's loss, not its weight"),
        "not squashed": (-u, "this is the difference of the rewards; σ is missing"),
        "normalised": (w / w.sum(), "the weights do not sum to 1: each pair has its own"),
        "softmax": (torch.softmax(-u, 0), "a softmax over the batch lets pairs compete; each "
                    "pair has its own weight"),
        "gradient": (-w, "a weight is positive; the minus stands before it in the gradient"),
    }  # fmt: skip


def check_weight(call: Call, seed: int, size: int) -> list[Finding]:
    """The weight of each pair."""
    four, beta = four_logprobs(seed, size), _beta(size)
    outcome = call(*four, beta)
    expected = _weight(beta * difference(four))
    fault = mistake_in_rows(outcome.value, expected, _known(four, beta))
    fault = fault or changed(NAMES, four, outcome.arguments)
    return [fault] if fault else []


def check_extremes(call: Call, seed: int, size: int) -> list[Finding]:
    """Margins of ±1e4; weights of 1e-9, in which the digits count."""
    margins = [40.0 + size, 2e4, -2e4, 0.25 * (1 + seed % 5), -60.0]
    four = at_margins(margins)
    expected = _weight(0.5 * difference(four))
    got = call(*four, 0.5).value
    if not isinstance(got, Tensor) or got.shape != expected.shape or got.isnan().any():
        message = "large margins break your weight: exp overflows; torch.sigmoid does not"
        return [Finding("unstable", message, show(got), show(expected))]
    if not is_close(got, expected, atol=0.0):
        message = "small weights lose all their digits: 1 - σ(u) is 0 in float32 from u = 17 on"
        return [Finding("cancels", message, show(got[0]), show(expected[0]))]
    return []


def check_gradients(call: Call, seed: int, size: int) -> list[Finding]:
    """The gradients of the mean loss, against float64 autograd."""
    four, beta = four_logprobs(seed, size), _beta(size)
    h = difference(four).requires_grad_(True)
    (by_chosen,) = torch.autograd.grad(softplus(-beta * h).mean(), h)
    by_chosen = by_chosen.detach()
    outcome = call.second(*four, beta)
    value = outcome.value
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        message = "dpo_gradients must return two tensors: by chosen, by rejected"
        return [Finding("not two", message, show(value), "two tensors")]
    B = len(by_chosen)
    factors = {
        "zero": (0, "your gradients are 0 whatever the input"),
        "no mean": (B, "the loss is a *mean* over the pairs: 1/B is missing"),
        "no beta": (1 / beta, "β is missing in the gradient: u has it as a factor"),
        "no beta, no mean": (B / beta, "β and the 1/B of the mean are missing"),
        "beta squared": (beta, "β stands there twice"),
    }
    for name, got, expected in (
        ("chosen", value[0], by_chosen),
        ("rejected", value[1], -by_chosen),
    ):
        known: Known = {
            "sign": (-expected, f"the gradient by {name} has the wrong sign: a step against it "
                     "must raise the chosen answer and lower the rejected one")
        }  # fmt: skip
        known |= {key: (factor * expected, text) for key, (factor, text) in factors.items()}
        fault = mistake_in_rows(got, expected, known)
        if fault:
            return [fault]
    fault = changed(NAMES, four, outcome.arguments)
    return [fault] if fault else []


TASK = Task(
    set="05",
    name="gradient-weight",
    functions=("gradient_weight", "dpo_gradients"),
    checks=(
        Check("weight", 1, check_weight),
        Check("extreme margins", 1, check_extremes),
        Check("gradients", 1, check_gradients),
    ),
)
