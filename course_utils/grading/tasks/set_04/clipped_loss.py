"""Set 04: PPO's clipped loss, averaged over the tokens that count.

    clipped_loss(logprobs, old_logprobs, advantages, mask (all (B, C)), clip=0.2) -> ()

-mean of min(r Â, clip(r, 1-ε, 1+ε) Â), r = exp(log π - log π_old) with the log-ratio within ±20;
0 where no token counts. Old log-probabilities and advantages are constants.
"""

import math

import torch
from torch import Tensor

from course_utils.grading.call import Call
from course_utils.grading.checks import Check, Task
from course_utils.grading.finding import Finding, changed, is_close, name_mistake, show, wrong_type
from course_utils.grading.tasks.set_04._inputs import answers, spoil

NAMES = ("logprobs", "old_logprobs", "advantages", "mask")
LIMIT = 20.0
Drawn = tuple[Tensor, Tensor, Tensor, Tensor]  # logprobs, old_logprobs, advantages, mask


def _draw(seed: int, size: int) -> Drawn:
    """Ratios on both sides of the clip for advantages of both signs."""
    drawn = answers(seed, size, spread=0.5)
    advantages = drawn.values + 0.4  # (B, C), not whitened: their mean is not 0
    # an answer has three tokens at least: the first two rows meet all four corners of the clip
    logprobs = drawn.logprobs.clone()
    old = drawn.ref_logprobs.clone()
    logprobs[:2, :2] = old[:2, :2] + torch.tensor([[0.7, -0.7], [0.8, -0.6]])
    advantages[0, :2] = advantages[0, :2].abs() + 0.5
    advantages[1, :2] = -advantages[1, :2].abs() - 0.5
    return logprobs, old, advantages, drawn.mask


def _objective(drawn: Drawn, clip: float) -> Tensor:
    """min(r Â, clip(r) Â) per token by its four cases, float64: (B, C)."""
    logprobs, old, advantages, _ = drawn
    ratio = (logprobs.double() - old.double()).clamp(-LIMIT, LIMIT).exp()
    adv = advantages.double()
    bound = torch.where(adv > 0, 1 + clip, 1 - clip)  # the side on which it stops paying
    stopped = torch.where(adv > 0, ratio > bound, ratio < bound)
    return torch.where(stopped, bound * adv, ratio * adv)


def _known(drawn: Drawn, clip: float) -> dict[str, tuple[Tensor, str]]:
    logprobs, old, advantages, mask = drawn
    d, adv, n = logprobs.double() - old.double(), advantages.double(), mask.sum()
    right = _objective(drawn, clip)

    def mean(per_token: Tensor) -> Tensor:
        return -per_token[mask].sum() / n

    ratio, inverse = d.exp(), (-d).exp()
    bounded = ratio.clamp(1 - clip, 1 + clip)
    upside = torch.minimum(inverse * adv, inverse.clamp(1 - clip, 1 + clip) * adv)
    each = (right * mask).sum(1) / mask.sum(1)
    log_bounded = d.clamp(-clip, clip)
    product = torch.minimum(ratio * adv, (ratio * adv).clamp(1 - clip, 1 + clip))
    both_logs = torch.minimum(d * adv, log_bounded * adv)
    return {
        "zero": (right.sum() * 0, "your loss is 0 whatever the input"),
        "sign": (-mean(right), "the sign is flipped: the objective is maximised, so the *loss* is "
                 "minus it"),
        "max": (mean(torch.maximum(ratio * adv, bounded * adv)), "you take the larger of the two "
                "terms: the clip must take the *worse* one, min before the minus sign, or it pays "
                "exactly where it should stop"),
        "no clip": (mean(ratio * adv), "nothing is clipped: this is the plain ratio times the "
                    "advantage"),
        "always clipped": (mean(bounded * adv), "you always take the clipped term; then a token "
                           "that moved in the wrong direction gets no gradient to come back"),
        "clip one-sided": (mean(torch.minimum(ratio * adv, ratio.clamp(max=1 + clip) * adv)), "the "
                           "ratio is clipped from above only; the lower bound 1 - ε matters for "
                           "negative advantages"),
        "no mask": (-right.mean(), "your loss is the mean over all positions; padding must not "
                    "count"),
        "divided by all": (-(right * mask).mean(), "you divide by all positions, padding included, "
                           "not by the tokens that count"),
        "sum": (mean(right) * n, "your loss is the sum over tokens; the mean was asked for"),
        "mean per answer": (-each.mean(), "you average each answer first, so tokens of short "
                            "answers weigh more; one mean over all tokens"),
        "divided by batch": (mean(right) * n / len(mask), "you divide by the number of answers, "
                             "not by the tokens that count"),
        "log-ratio": (mean(both_logs), "the ratio is missing its exp: the difference of log-"
                      "probabilities is the logarithm of the ratio"),
        "inverse ratio": (mean(upside), "the ratio is upside down: it is π / π_old"),
        "log-probability": (mean(logprobs.double() * adv), "this is plain policy gradient, "
                            "log π Â: PPO uses the ratio to the old policy"),
        "clip ignored": (mean(_objective(drawn, 0.2)), "the argument clip is ignored: this is 0.2"),
        "product clipped": (mean(product), "you clip ratio times advantage; only the ratio is "
                            "clipped"),
    }  # fmt: skip


def _clip(seed: int) -> float:
    return 0.1 + 0.05 * (seed % 2)  # never the default, nor so wide that nothing is clipped


def check_value(call: Call, seed: int, size: int) -> list[Finding]:
    """Ratios on both sides of both bounds; the inputs stay as they were; the default clip."""
    drawn, clip = _draw(seed, size), _clip(seed)
    outcome = call(*drawn, clip)
    expected = -_objective(drawn, clip)[drawn[3]].mean()
    fault = (
        wrong_type(outcome.value, ())
        or name_mistake(outcome.value, expected, _known(drawn, clip))
        or changed(NAMES, drawn, outcome.arguments)
    )
    if fault:
        return [fault]
    got, expected = call(*drawn).value, -_objective(drawn, 0.2)[drawn[3]].mean()
    if not isinstance(got, Tensor) or not is_close(got, expected):
        return [Finding("default", "without the argument, clip must be 0.2", show(got),
                        show(expected))]  # fmt: skip
    return []


def check_first_update(call: Call, seed: int, size: int) -> list[Finding]:
    """π = π_old: the loss is minus the mean advantage, its gradient -Â/n on each token."""
    logprobs, _, advantages, mask = _draw(seed, size)
    outcome = call(logprobs, logprobs.clone(), advantages, mask, wrt=(0,))
    n = mask.sum()
    expected = -advantages.double()[mask].mean()
    fault = wrong_type(outcome.value, ())
    if not fault and not is_close(outcome.value, expected):
        message = "where π is π_old every ratio is 1, so the loss is minus the mean advantage"
        fault = Finding("first value", message, show(outcome.value), show(expected))
    if fault:
        return [fault]
    (gradient,) = outcome.gradients
    if gradient is None or not bool(gradient.any()):
        message = (
            "no gradient reaches logprobs at the first update. The ratio is 1 there, but its "
            "derivative is not 0: is something detached or under no_grad?"
        )
        return [Finding("detached", message)]
    wanted = -advantages.double() * mask / n
    if not is_close(gradient, wanted):
        message = "at the first update the gradient by a token's log-probability is -Â/n"
        return [Finding("first gradient", message, show(gradient.norm()), show(wanted.norm()))]
    return []


def check_gradient(call: Call, seed: int, size: int) -> list[Finding]:
    """Where the clip cuts the gradient, and that old_logprobs and advantages are constants."""
    drawn, clip = _draw(seed, size), _clip(seed)
    logprobs, old, advantages, mask = drawn
    d, adv = logprobs.double() - old.double(), advantages.double()
    stopped = torch.where(adv > 0, d.exp() > 1 + clip, d.exp() < 1 - clip)
    expected = (-d.exp() * adv * mask / mask.sum()).masked_fill(stopped, 0.0)
    gradient, by_old, by_advantage = call(*drawn, clip, wrt=(0, 1, 2)).gradients
    if gradient is None or not is_close(gradient, expected):
        message = (
            "the gradient by logprobs is wrong: 0 where the clip stops the token, -r Â/n elsewhere"
        )
        got = "none" if gradient is None else show(gradient.norm())
        return [Finding("gradient", message, got, show(expected.norm()))]
    for name, constant in (("old_logprobs", by_old), ("advantages", by_advantage)):
        if constant is not None and bool((constant != 0).any()):
            message = f"gradient flows into {name}, which is a constant of the update: detach it"
            return [Finding(f"{name} not detached", message)]
    return []


def check_extremes(call: Call, seed: int, size: int) -> list[Finding]:
    """Garbage on padding, also in the gradient; log-ratios of ±200; nothing that counts."""
    logprobs, old, advantages, mask = _draw(seed, size)
    for garbage in (math.nan, -math.inf):
        spoilt = tuple(spoil(x, mask, garbage) for x in (logprobs, old, advantages))
        expected = -_objective((logprobs, old, advantages, mask), 0.2)[mask].mean()
        outcome = call(*spoilt, mask, wrt=(0,))
        got, (gradient,) = outcome.value, outcome.gradients
        if not isinstance(got, Tensor) or not is_close(got, expected):
            message = (
                "NaN or infinity on padding reaches the loss: 0 * nan is nan, so replace what is "
                "masked, do not multiply it by 0"
            )
            return [Finding("padding leaks", message, show(got), show(expected))]
        if gradient is not None and bool(gradient.isnan().any()):
            message = (
                "the loss is right with NaN on the padding, but the gradient is NaN: mask the "
                "*inputs* of exp, not its result"
            )
            return [Finding("nan gradient", message)]
    far = old.clone()
    far[0, 0], far[1, 0] = logprobs[0, 0] - 200, logprobs[1, 0] - 200  # Â > 0 and Â < 0
    expected = -_objective((logprobs, far, advantages, mask), 0.2)[mask].mean()
    outcome = call(logprobs, far, advantages, mask, wrt=(0,))
    got, (gradient,) = outcome.value, outcome.gradients
    broken = gradient is None or not bool(gradient.isfinite().all())
    if not isinstance(got, Tensor) or not is_close(got, expected) or broken:
        message = (
            "a log-ratio of 200 overflows in exp, and inf * 0 in the gradient is NaN: clamp the "
            "log-ratio to ±20 first"
        )
        return [Finding("overflow", message, show(got), show(expected))]
    got = call(logprobs, old, advantages, torch.zeros_like(mask)).value
    if not isinstance(got, Tensor) or got.dim() != 0 or not is_close(got, expected * 0):
        message = "where no token counts the loss must be 0, not 0/0"
        return [Finding("empty mask", message, show(got), "0")]
    return []


TASK = Task(
    set="04",
    name="clipped-loss",
    functions=("clipped_loss",),
    checks=(
        Check("value", 2, check_value),
        Check("before the first update", 1, check_first_update),
        Check("gradient", 1, check_gradient),
        Check("extreme inputs", 1, check_extremes),
    ),
)
