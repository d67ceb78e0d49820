"""Set 05: conservative DPO, which expects that a share ε of the labels is wrong.

    cdpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta, label_smoothing=0.0) -> ()

L = mean -(1-ε) log σ(u) - ε log σ(-u), u = β [(chosen - ref_chosen) - (rejected - ref_rejected)]
(Mitchell 2023). With ε = 0 it is DPO's. Finite at |u| = 1e4; the reference gets no gradient.
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


def _settings(seed: int, size: int) -> tuple[float, float]:
    """β and ε."""
    return 0.3 + 0.05 * size, 0.1 + 0.05 * (seed % 4)


def _losses(u: Tensor, epsilon: float) -> Tensor:
    """-log σ(u) + ε u: what is left of the two terms, since log σ(u) - log σ(-u) = u. (B,)"""
    return softplus(-u) + epsilon * u


def _known(four: Four, beta: float, epsilon: float) -> Known:
    chosen, rejected, _, _ = (x.double() for x in four)
    h = difference(four)
    u = beta * h
    loss, clean, flipped = _losses(u, epsilon).mean(), softplus(-u).mean(), softplus(u).mean()
    robust = (1 - epsilon) * clean - epsilon * flipped
    p = torch.sigmoid(u)
    return {
        "zero": (loss * 0, "your loss is 0 whatever the input"),
        "sign": (-loss, "the sign is flipped: the loss is the *negative* log-likelihood"),
        "smoothing ignored": (clean, "ε plays no part: this is DPO's loss"),
        "swapped": (_losses(u, 1 - epsilon).mean(), "ε and 1 - ε have changed places: your loss "
                    "believes that most labels are wrong"),
        "subtracted": (robust, "the second term is subtracted: that is robust DPO's numerator; "
                       "a cross-entropy adds both terms"),
        "robust": (robust / (1 - 2 * epsilon), "this is robust DPO (Chowdhury et al. 2024), "
                   "not cDPO"),
        "not normalised": (clean + epsilon * flipped, "the first term's factor 1 - ε is missing"),
        "second term missing": ((1 - epsilon) * clean, "the second term, for wrong labels, is "
                                "missing"),
        "same term twice": ((1 - epsilon) * clean + epsilon * (-clean), "both terms have the "
                            "same σ; in the second the pair is the other way round"),
        "halved": (_losses(u, epsilon / 2).mean(), "ε is halved: there are no classes to share "
                   "it among"),
        "mixed probability": (-torch.log((1 - epsilon) * p + epsilon * (1 - p)).mean(), "you mix "
                              "the probabilities and then take the logarithm; cDPO mixes the "
                              "two losses"),
        "margin scaled": (softplus(-(1 - 2 * epsilon) * u).mean(), "you shrink the margin; cDPO "
                          "mixes the two losses"),
        "no beta": (_losses(h, epsilon).mean(), "β is missing in front of the log-ratios"),
        "no reference": (_losses(beta * (chosen - rejected), epsilon).mean(), "the reference is "
                         "missing"),
        "sum": (loss * len(u), "your loss is the sum over the pairs; the mean was asked for"),
    }  # fmt: skip


def check_value(call: Call, seed: int, size: int) -> list[Finding]:
    """With ε, without it (which is DPO), and inputs left as they were."""
    four, (beta, epsilon) = four_logprobs(seed, size), _settings(seed, size)
    u = beta * difference(four)
    outcome = call(*four, beta, label_smoothing=epsilon)
    fault = wrong_type(outcome.value, ())
    fault = fault or name_mistake(
        outcome.value, _losses(u, epsilon).mean(), _known(four, beta, epsilon)
    )
    fault = fault or changed(NAMES, four, outcome.arguments)
    if fault:
        return [fault]
    got, expected = call(*four, beta).value, softplus(-u).mean()
    if not isinstance(got, Tensor) or not is_close(got, expected):
        message = "label_smoothing must default to 0, and the loss is DPO's then"
        return [Finding("default", message, show(got), show(expected))]
    return []


def check_extremes(call: Call, seed: int, size: int) -> list[Finding]:
    """Margins of ±1e4, also with ε = 0, where 0 times infinity waits."""
    for margins in ([2e4, -2e4, 0.25 * (1 + size)], [2e4], [-2e4]):
        for epsilon in (0.0, 0.1 + 0.05 * (seed % 4)):
            four = at_margins(margins)
            expected = _losses(0.5 * difference(four), epsilon).mean()
            got = call(*four, 0.5, label_smoothing=epsilon).value
            if not isinstance(got, Tensor) or not is_close(got, expected):
                message = "large margins break your loss: use logsigmoid, in both terms"
                return [Finding("unstable", message, show(got), show(expected))]
    return []


def check_gradient(call: Call, seed: int, size: int) -> list[Finding]:
    """∂L/∂chosen = -β (σ(-u) - ε) / B: 0 at the margin log((1-ε)/ε); none by the reference."""
    beta, epsilon = _settings(seed, size)
    return check_loss_gradient(
        call,
        four_logprobs(seed, size),
        (beta, epsilon),
        lambda h: _losses(beta * h, epsilon).mean(),
    )


TASK = Task(
    set="05",
    name="cdpo-loss",
    functions=("cdpo_loss",),
    checks=(
        Check("value", 2, check_value),
        Check("extreme margins", 1, check_extremes),
        Check("gradient", 1, check_gradient),
    ),
)
