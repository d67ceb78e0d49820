"""Set 05: the loss of IPO, which wants a margin and no more.

    ipo_loss(chosen, rejected, ref_chosen, ref_rejected, beta) -> ()

L = mean (h - 1/(2β))², h = (chosen - ref_chosen) - (rejected - ref_rejected), of sums over tokens
(Azar et al. 2023, eq. 17, whose τ is our β). The reference gets no gradient.
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
    return 0.13 + 0.05 * size


def _loss(h: Tensor, beta: float) -> Tensor:
    return (h * h - h / beta + 1 / (4 * beta * beta)).mean()


def _inputs(four: Four, beta: float) -> Four:
    """The pairs with `chosen` shifted: one h beyond the target, one before it, and a mean of h at
    which no wrong target gives the right loss."""
    target, h = 1 / (2 * beta), difference(four)
    wanted = h.clone()
    wanted[:2] = torch.tensor([target + 5, target - 3])
    wanted[2:] += (0.8 * target - wanted.mean()) * len(h) / (len(h) - 2)
    return four[0] + (wanted - h).float(), *four[1:]


def _known(four: Four, beta: float) -> Known:
    chosen, rejected, _, _ = (x.double() for x in four)
    h, target = difference(four), 1 / (2 * beta)
    return {
        "zero": (h.sum() * 0, "your loss is 0 whatever the input"),
        "sign": (-_loss(h, beta), "the sign is flipped: a squared distance is never negative"),
        "beta in h": (_loss(beta * h, beta), "β stands in front of h; in IPO only the target "
                      "1/(2β) has it"),
        "target 1/beta": ((h - 2 * target).square().mean(), "the target is 1/(2β), yours is 1/β"),
        "target beta/2": ((h - beta / 2).square().mean(), "the target is 1/(2β), yours is β/2"),
        "target 2/beta": ((h - 2 / beta).square().mean(), "the target is 1/(2β), yours is 2/β"),
        "target 2 beta": ((h - 2 * beta).square().mean(), "the target is 1/(2β), yours is 2β"),
        "target half": ((beta * h - 0.5).square().mean(), "you aim at β h = 1/2: the same "
                        "minimum, but your loss is β² times the one asked for"),
        "target added": ((h + target).square().mean(), "the target is added: your loss pushes "
                         "the wrong way, or chosen and rejected have changed places"),
        "no target": (h.square().mean(), "the target 1/(2β) is missing: your loss wants no "
                      "difference at all"),
        "no reference": (_loss(chosen - rejected, beta), "the reference is missing in h"),
        "half": (_loss(h, beta) / 2, "there is no factor 1/2 in front of the square"),
        "not squared": ((h - target).mean(), "the square is missing"),
        "absolute": ((h - target).abs().mean(), "you take the absolute value; the square was "
                     "asked for"),
        "mean before the square": ((h.mean() - target).square(), "you average h before you "
                                   "square; each pair has a loss of its own"),
        "sum": (_loss(h, beta) * len(h), "your loss is the sum; the mean was asked for"),
        "one-sided": ((target - h).clamp(min=0).square().mean(), "a margin beyond the target "
                      "costs too: that is what stops IPO"),
        "dpo": (softplus(-beta * h).mean(), "this is DPO's loss"),
    }  # fmt: skip


def check_value(call: Call, seed: int, size: int) -> list[Finding]:
    """The mean over the pairs; 0 where every pair is on target; one pair far beyond it."""
    beta = _beta(size)
    four = _inputs(four_logprobs(seed, size), beta)
    outcome = call(*four, beta)
    fault = wrong_type(outcome.value, ())
    fault = fault or name_mistake(outcome.value, _loss(difference(four), beta), _known(four, beta))
    fault = fault or changed(NAMES, four, outcome.arguments)
    if fault:
        return [fault]
    for margins in ([2.0, 2.0], [100.0 + size], [-1000.0, 1000.0]):
        four = at_margins(margins)
        expected = _loss(difference(four), 0.25)
        got = call(*four, 0.25).value
        if not isinstance(got, Tensor) or not is_close(got, expected):
            message = "the loss is wrong where h is on the target, or far away from it"
            return [Finding("far away", message, show(got), show(expected))]
    return []


def check_gradient(call: Call, seed: int, size: int) -> list[Finding]:
    """∂L/∂chosen = 2 (h - 1/(2β)) / B, the opposite by rejected, none by the reference."""
    beta = _beta(size)
    return check_loss_gradient(call, four_logprobs(seed, size), (beta,), lambda h: _loss(h, beta))


TASK = Task(
    set="05",
    name="ipo-loss",
    functions=("ipo_loss",),
    checks=(Check("value", 2, check_value), Check("gradient", 1, check_gradient)),
)
