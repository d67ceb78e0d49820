"""What the tasks of set 05 share: pairs with four log-probabilities each, and looks at losses.

A loss of this set is `f(chosen, rejected, ref_chosen, ref_rejected, …) -> ()`: log π(y_w|x),
log π(y_l|x) and the same two under the reference, each (B,).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from course_utils.grading.call import Call
from course_utils.grading.finding import Finding, is_close, name_mistake, show, wrong_type

NAMES = ("chosen", "rejected", "ref_chosen", "ref_rejected")
Four = tuple[Tensor, Tensor, Tensor, Tensor]
Known = dict[str, tuple[Tensor, str]]


def four_logprobs(seed: int, size: int) -> Four:
    """Four (B,) float32: answers at -30 to -8 nats, the policy a few nats from the reference.

    The first pair is in the wrong order, and the mean of h lies between 1 and 2: by chance no
    mistake gives the right number.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(B, generator=generator)

    B = 3 + size
    ref_chosen, ref_rejected = uniform(-30, -8), uniform(-30, -8)
    by_chosen, by_rejected = uniform(-3, 5), uniform(-6, 2)
    by_chosen[0], by_rejected[0] = -by_chosen[0].abs() - 1, by_rejected[0].abs() + 0.5
    by_chosen[1:] += (uniform(1, 2).mean() - (by_chosen - by_rejected).mean()) * B / (B - 1)
    return ref_chosen + by_chosen, ref_rejected + by_rejected, ref_chosen, ref_rejected


def at_margins(margins: list[float]) -> Four:
    """Four (B,) whose difference of log-ratios is `margins`, exactly in any order of subtraction.

    `margins` must be multiples of 1/4, at most 2e4: float32 holds all of the sums then.
    """
    h = torch.tensor(margins)
    one = torch.ones_like(h)
    return -20 * one + h / 2, -30 * one - h / 2, -20 * one, -30 * one


def difference(four: Four) -> Tensor:
    """h = log π/π_ref (y_w) - log π/π_ref (y_l), (B,) float64."""
    chosen, rejected, ref_chosen, ref_rejected = (x.double() for x in four)
    return (chosen - ref_chosen) - (rejected - ref_rejected)


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x) = -log σ(-x), in float64, exact far out on both sides."""
    x = x.double()
    return x.clamp(min=0) + torch.log1p(torch.exp(-x.abs()))


def mistake_in_rows(got: Any, expected: Tensor, known: Known) -> Finding | None:
    """The finding on a float tensor (B,)."""
    return wrong_type(got, tuple(expected.shape)) or name_mistake(got, expected, known)


def check_loss_gradient(
    call: Call, four: Four, rest: tuple[Any, ...], loss: Callable[[Tensor], Tensor]
) -> list[Finding]:
    """The gradient by the policy's two log-probabilities, and none by the reference's.

    Args: rest: the arguments after the four tensors; loss: of h (B,), in float64, differentiable.
    """
    h = difference(four).requires_grad_(True)
    (by_h,) = torch.autograd.grad(loss(h), h)  # dh/d chosen = 1, dh/d rejected = -1
    chosen, rejected, *reference = call(*four, *rest, wrt=(0, 1, 2, 3)).gradients
    if not isinstance(chosen, Tensor) or not isinstance(rejected, Tensor):
        message = "no gradient reaches the policy's log-probabilities: is one of them detached?"
        return [Finding("detached", message)]
    for got, expected in ((chosen, by_h), (rejected, -by_h)):
        if not is_close(got, expected, atol=1e-7):
            message = "the gradient by the policy's log-probabilities is wrong"
            return [Finding("gradient", message, show(got.norm()), show(expected.norm()))]
    for name, leaked in zip(NAMES[2:], reference, strict=True):
        if isinstance(leaked, Tensor) and bool((leaked != 0).any()):
            message = f"a gradient reaches {name!r}: the reference is a constant, detach it"
            return [Finding("reference not detached", message)]
    return []
