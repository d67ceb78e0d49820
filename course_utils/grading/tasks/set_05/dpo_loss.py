"""Set 05: the loss of direct preference optimisation.

    dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta=0.1) -> ()

The four are log π(y|x), (B,) each. L = mean -log σ(u), u = β [(chosen - ref_chosen) - (rejected -
ref_rejected)] (Rafailov et al. 2023, eq. 7). Finite at |u| = 1e4; the reference gets no gradient.
"""

import torch
from torch import Tensor

from course_utils.grading.call import Call
from course_utils.grading.checks import Check, Task
from course_utils.grading.finding import Finding, changed, is_close, name_mistake, show, wrong_type
from course_utils.grading.tasks.set_05._inputs import (
    NAMES,
    Four,
    Known,
    at_margins,
    check_loss_gradient,
    difference,
    four_logprobs,
    softplus,
)


def _beta(size: int) -> float:
    return 0.15 + 0.05 * size


def _loss(u: Tensor) -> Tensor:
    """mean -log σ(u), from log(1 + e^-u)."""
    return softplus(-u).mean()


def _known(four: Four, beta: float) -> Known:
    """The values of the known mistakes on these inputs."""
    chosen, rejected, ref_chosen, ref_rejected = (x.double() for x in four)
    h = difference(four)
    u = beta * h
    return {
        "zero": (u.sum() * 0, "your loss is 0 whatever the input"),
        "sign": (-_loss(u), "the sign is flipped: this falls where it should rise; the loss is "
                 "the *negative* log-likelihood"),
        "reversed": (_loss(-u), "chosen and rejected have changed places, or a minus inside σ "
                     "is wrong: your loss falls when the rejected answer wins"),
        "no reference": (_loss(beta * (chosen - rejected)), "the reference is missing: "
                         "log-probabilities are compared, not log-ratios"),
        "reference added": (_loss(beta * (chosen + ref_chosen - rejected - ref_rejected)), "the "
                            "reference is added; it is what the policy is compared *to*"),
        "chosen only": (_loss(beta * (chosen - ref_chosen)), "the rejected answer plays no part"),
        "no beta": (_loss(h), "β is missing in front of the log-ratios"),
        "beta outside": (beta * _loss(h), "β multiplies the loss; it belongs inside σ"),
        "divided by beta": (_loss(h / beta), "you divide by β"),
        "sum": (_loss(u) * len(u), "your loss is the sum over the pairs; the mean was asked for"),
        "mean of margins": (softplus(-u.mean()), "you average the margins first and take one loss "
                            "of that; each pair has a loss of its own"),
        "probability": (-torch.sigmoid(u).mean(), "the logarithm is missing: you average "
                        "probabilities"),
        "squared": ((h - 1 / (2 * beta)).square().mean(), "this is IPO's loss, not DPO's"),
    }  # fmt: skip


def check_value(call: Call, seed: int, size: int) -> list[Finding]:
    """The mean over the pairs, β's default, log 2 at the start, inputs left as they were."""
    four, beta = four_logprobs(seed, size), _beta(size)
    outcome = call(*four, beta)
    expected = _loss(beta * difference(four))
    fault = wrong_type(outcome.value, ())
    fault = fault or name_mistake(outcome.value, expected, _known(four, beta))
    fault = fault or changed(NAMES, four, outcome.arguments)
    if fault:
        return [fault]
    expected = _loss(0.1 * difference(four))
    got = call(*four).value
    if not isinstance(got, Tensor) or not is_close(got, expected):
        return [Finding("default", "beta must default to 0.1", show(got), show(expected))]
    chosen, rejected, _, _ = four
    got = call(chosen, rejected, chosen, rejected, beta).value
    expected = _loss(torch.zeros_like(chosen))
    if not isinstance(got, Tensor) or not is_close(got, expected):
        message = "where policy and reference agree the loss must be log 2"
        return [Finding("start", message, show(got), show(expected))]
    return []


def check_extremes(call: Call, seed: int, size: int) -> list[Finding]:
    """Margins of ±1e4, one pair: value and gradient."""
    sign = 1 if seed % 2 else -1
    for margins in ([1e4 * sign, -1e4 * sign, 0.25 * (1 + size)], [-2e4], [2e4]):
        four = at_margins(margins)
        u = 0.5 * difference(four)
        expected = _loss(u)
        outcome = call(*four, 0.5, wrt=(0,))
        got = outcome.value
        if not isinstance(got, Tensor) or not is_close(got, expected):
            message = (
                "large margins break your loss: an exp overflows, or σ is 0 or 1; use logsigmoid"
            )
            return [Finding("unstable", message, show(got), show(expected))]
        by_chosen = -0.5 * torch.sigmoid(-u) / len(u)
        (gradient,) = outcome.gradients
        if isinstance(gradient, Tensor) and not is_close(gradient, by_chosen):
            message = "the loss is right at large margins, its gradient is not"
            return [Finding("unstable gradient", message, show(gradient.norm()))]
    return []


def check_gradient(call: Call, seed: int, size: int) -> list[Finding]:
    """∂L/∂chosen = -β σ(-u) / B, the opposite by rejected, none by the reference."""
    beta = _beta(size)
    return check_loss_gradient(call, four_logprobs(seed, size), (beta,), lambda h: _loss(beta * h))


TASK = Task(
    set="05",
    name="dpo-loss",
    functions=("dpo_loss",),
    checks=(
        Check("value", 2, check_value),
        Check("extreme margins", 1, check_extremes),
        Check("gradient", 1, check_gradient),
    ),
)
