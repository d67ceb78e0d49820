"""Set 03: the reward model's loss, stable at any size, with an optional margin.

    bradley_terry_loss(chosen (B,), rejected (B,), margin (B,) or None) -> ()

The mean of -log σ(chosen - rejected - margin).
"""

import torch
from torch import Tensor

from course_utils.grading.call import Call
from course_utils.grading.checks import Check, Task
from course_utils.grading.finding import Finding, changed, is_close, name_mistake, show, wrong_type
from course_utils.grading.tasks.set_03._inputs import generator, uniform


def _inputs(seed: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scores of chosen and rejected, and margins, (B,) each; some pairs in the wrong order."""
    g = generator(seed)
    B = 4 + size
    chosen = torch.randn(B, generator=g) * 2 + 0.5
    rejected = torch.randn(B, generator=g) * 2
    return chosen, rejected, uniform(0.5, 2.0, B, g)


def _loss(difference: Tensor) -> Tensor:
    """log(e^0 + e^-d) in float64: (B,) -> (B,)."""
    d = difference.double()
    return torch.logaddexp(torch.zeros_like(d), -d)


def _known(chosen: Tensor, rejected: Tensor) -> dict[str, tuple[Tensor, str]]:
    """The values of the known mistakes, without a margin."""
    c, r = chosen.double(), rejected.double()
    loss, right = _loss(c - r), (c - r).sigmoid()
    each = (_loss(c) + _loss(-r)).mean()
    return {
        "zero": (c.sum() * 0, "your loss is 0 whatever the scores are"),
        "sign": (-loss.mean(), "the sign is flipped: the loss is the *negative* log-likelihood"),
        "swapped": (_loss(r - c).mean(), "chosen and rejected are swapped: your loss falls where "
                    "the rejected answer scores higher"),
        "sum": (loss.sum(), "your loss is the sum over the pairs; the mean was asked for"),
        "probability": (1 - right.mean(), "your loss is the mean of 1 - σ(…): take the logarithm "
                        "of the probability"),
        "no logarithm": (-right.mean(), "your loss is the mean of -σ(…): take the logarithm of "
                         "the probability"),
        "no sigmoid": ((r - c).mean(), "your loss is the mean difference of the scores: it has no "
                       "lower bound, so one pair could pull for ever"),
        "mean too early": (_loss((c - r).mean()), "you average the differences before the "
                           "logarithm; every pair has a loss of its own"),
        "log of the mean": (-right.mean().log(), "you average the probabilities before the "
                            "logarithm; every pair has a loss of its own"),
        "each by itself": (each, "you put each score by itself through a sigmoid; only the "
                           "difference of the two says which one is preferred"),
        "each by itself, halved": (each / 2, "you put each score by itself through a sigmoid; only "
                                   "the difference of the two says which one is preferred"),
        "hinge": ((1 - c + r).clamp(min=0).mean(), "this is the hinge loss; the Bradley-Terry "
                  "model asks for -log σ"),
    }  # fmt: skip


def check_value(call: Call, seed: int, size: int) -> list[Finding]:
    """Without a margin, with one, and that the inputs are left as they were."""
    chosen, rejected, margin = _inputs(seed, size)
    outcome = call(chosen, rejected)
    plain = _loss(chosen.double() - rejected.double()).mean()
    fault = wrong_type(outcome.value, ()) or name_mistake(
        outcome.value, plain, _known(chosen, rejected)
    )
    if fault:
        return [fault]
    outcome = call(chosen, rejected, margin)
    difference = chosen.double() - rejected.double()
    known = {
        "margin ignored": (plain, "the margin changes nothing in your loss"),
        "margin's sign": (_loss(difference + margin).mean(), "the margin goes the wrong way: it "
                          "asks for *more* distance, so it makes a pair's loss larger"),
        "margin outside": (plain + margin.double().mean(), "you add the margin to the loss, where "
                           "it has no gradient; it belongs inside the sigmoid"),
        "margin times": (_loss(difference * margin).mean(), "you multiply by the margin; it is "
                         "subtracted from the difference"),
    }  # fmt: skip
    fault = wrong_type(outcome.value, ()) or name_mistake(
        outcome.value, _loss(difference - margin).mean(), known
    )
    fault = fault or changed(
        ("chosen", "rejected", "margin"), (chosen, rejected, margin), outcome.arguments
    )
    return [fault] if fault else []


def _extreme(seed: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scores up to ±1e4 on either side, beside usual ones, and margins."""
    chosen, rejected, margin = _inputs(seed, size)
    big = uniform(5e3, 1e4, 4, generator(seed + 1))
    chosen[:4] = torch.stack([big[0], -big[1], torch.zeros(()), big[3]])
    rejected[:4] = torch.stack([-big[0], big[1], big[2], big[3] - 1])
    return chosen, rejected, margin


def check_extremes(call: Call, seed: int, size: int) -> list[Finding]:
    """Scores of ±1e4 and half precision."""
    chosen, rejected, _ = _extreme(seed, size)
    expected = _loss(chosen.double() - rejected.double()).mean()
    got = call(chosen, rejected).value
    fault = wrong_type(got, ())
    if not fault and not is_close(got, expected):
        message = (
            "scores of 10,000 break your loss: far on the wrong side it is the distance itself, "
            "neither infinite nor cut off; σ is 0 there, so do not take its logarithm"
        )
        fault = Finding("unstable", message, show(got), show(expected))
    if fault:
        return [fault]
    # -256.75 - 2k needs more digits than bfloat16 has: there it becomes -256 - 2k
    chosen = -(256.0 + 2 * (seed % 9)) * torch.ones(3 + size).bfloat16()
    rejected = torch.full_like(chosen, 0.75)
    expected = _loss(chosen.double() - rejected.double()).mean()
    got = call(chosen, rejected).value
    if not isinstance(got, Tensor) or not is_close(got, expected):
        message = "with bfloat16 scores the difference loses digits: convert to float32 first"
        return [Finding("half precision", message, show(got), show(expected))]
    return []


def check_gradient(call: Call, seed: int, size: int) -> list[Finding]:
    """∂L/∂chosen = -σ(-d) / B, ∂L/∂rejected = +σ(-d) / B; also at ±1e4."""
    chosen, rejected, margin = _extreme(seed, size)
    d = chosen.double() - rejected.double() - margin.double()
    pull = torch.exp(-_loss(-d)) / len(d)  # σ(-d): the probability of the other choice
    gradients = call(chosen, rejected, margin, wrt=(0, 1)).gradients
    for name, got, expected in zip(("chosen", "rejected"), gradients, (-pull, pull), strict=True):
        if not isinstance(got, Tensor):
            message = f"no gradient reaches {name!r}: something is detached, or under no_grad"
            return [Finding("detached", message)]
        if not bool(got.isfinite().all()):
            message = f"the gradient by {name!r} is not finite with scores of 10,000"
            return [Finding("nan gradient", message, show(got), show(expected))]
        if not is_close(got, expected, rtol=2e-3):  # chosen - margin alone is rounded by 5e-4
            message = f"the gradient by {name!r} is wrong, though the loss is right"
            return [Finding("gradient", message, show(got.norm()), show(expected.norm()))]
    return []


TASK = Task(
    set="03",
    name="bradley-terry-loss",
    functions=("bradley_terry_loss",),
    checks=(
        Check("value and margin", 2, check_value),
        Check("extreme inputs", 1, check_extremes),
        Check("gradient", 1, check_gradient),
    ),
)
