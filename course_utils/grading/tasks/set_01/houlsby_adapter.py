"""Set 01: a Houlsby adapter, its forward pass and its start.

    houlsby_init(hidden D, bottleneck M, seed)
        -> (W_down (M, D), b_down (M,), W_up (D, M), b_up (D,))
    houlsby_forward(h (..., D), W_down, b_down, W_up, b_up) -> (..., D), of h's dtype

h + W_up gelu(W_down h + b_down) + b_up (Houlsby et al. 2019, figure 2), the identity at the start.
"""

import math
from typing import Any

import torch
from torch import Tensor

from course_utils.grading.call import Call, Failed
from course_utils.grading.checks import Check, Task
from course_utils.grading.finding import Finding, changed, is_close, name_mistake, show, wrong_type
from course_utils.grading.tasks.set_01._inputs import is_near

NAMES = ("h", "W_down", "b_down", "W_up", "b_up")
Weights = tuple[Tensor, Tensor, Tensor, Tensor]


def _inputs(seed: int, size: int) -> tuple[Tensor, Weights]:
    """h (B, T, D) and an adapter in the middle of its training: nothing is zero."""
    generator = torch.Generator().manual_seed(seed)
    B, T, D, M = 1 + size % 3, 6 + size, 5 + size, 2 + size % 3
    shapes = ((B, T, D), (M, D), (M,), (D, M), (D,))
    h, W_down, b_down, W_up, b_up = (torch.randn(shape, generator=generator) for shape in shapes)
    return h, (1.5 * W_down / D**0.5, b_down, W_up / M**0.5, b_up)  # features of about 1 throughout


def _gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def _down(h: Tensor, weights: Weights) -> Tensor:
    return torch.einsum("...d,md->...m", h.double(), weights[0].double()) + weights[1].double()


def _up(narrow: Tensor, weights: Weights) -> Tensor:
    return torch.einsum("...m,dm->...d", narrow, weights[2].double()) + weights[3].double()


def reference(h: Tensor, weights: Weights) -> Tensor:
    """The adapter's output in float64."""
    return h.double() + _up(_gelu(_down(h, weights)), weights)


def _known(h: Tensor, weights: Weights) -> dict[str, tuple[Tensor, str]]:
    """The values of the known mistakes: all of them computed from the same inputs."""
    x, low, b_down, b_up = h.double(), _down(h, weights), weights[1].double(), weights[3].double()
    right = _up(_gelu(low), weights)
    tanh = torch.nn.functional.gelu(low, approximate="tanh")
    return {
        "zero": (x * 0, "your adapter gives 0 whatever comes in"),
        "nothing added": (x, "your adapter gives back h: nothing goes through the bottleneck"),
        "no residual": (right, "h itself is missing: what comes out is added to what came in"),
        "sign": (x - right, "the update is subtracted from h; it is added"),
        "no nonlinearity": (x + _up(low, weights), "there is no nonlinearity in the middle: two "
                            "linear maps in a row are one linear map"),
        "relu": (x + _up(low.relu(), weights), "your nonlinearity is ReLU; GELU was asked for"),
        "silu": (x + _up(torch.nn.functional.silu(low), weights), "your nonlinearity is SiLU; "
                 "GELU was asked for"),
        "tanh gelu": (x + _up(tanh, weights), "this is GELU's tanh approximation; the exact one "
                      "is asked for, which is F.gelu's default"),
        "no b_down": (x + _up(_gelu(low - b_down), weights), "b_down is not used"),
        "no b_up": (x + right - b_up, "b_up is not used"),
        "no biases": (x + _up(_gelu(low - b_down), weights) - b_up, "the two biases are not used"),
        "gelu at the end": (x + _gelu(_up(low, weights)), "the nonlinearity stands behind the up "
                            "projection; its place is in the bottleneck"),
        "gelu twice": (x + _gelu(right), "there is a second nonlinearity behind the up projection"),
        "gelu over all": (_gelu(x + right), "the nonlinearity is over the sum with h, so a fresh "
                          "adapter could not leave h as it is"),
        "gelu before": (x + _up(_down(_gelu(x), weights), weights), "the nonlinearity is applied "
                        "to h before the down projection; its place is in the bottleneck"),
    }  # fmt: skip


def check_forward(call: Call, seed: int, size: int) -> list[Finding]:
    """The value, and that the inputs are left as they were."""
    h, weights = _inputs(seed, size)
    outcome = call.second(h, *weights)
    fault = (
        wrong_type(outcome.value, tuple(h.shape))
        or name_mistake(outcome.value, reference(h, weights), _known(h, weights))
        or changed(NAMES, (h, *weights), outcome.arguments)
    )
    return [fault] if fault else []


def check_shapes(call: Call, seed: int, size: int) -> list[Finding]:
    """One vector, a row, four dimensions, a strided view, nothing at all; half precision."""
    h, weights = _inputs(seed, size)
    strided = h.transpose(0, 1)
    for given in (h[0, 0], h[0], torch.stack([h, h - 1]), strided, h[:, :0]):
        shape = tuple(given.shape)
        try:
            got = call.second(given, *weights).value
        except Failed as failure:
            message = f"with h of shape {shape} your function fails: {failure.message}"
            return [Finding("other shapes", message[:350])]
        fault = wrong_type(got, shape)
        if fault or not is_close(got, reference(given, weights)):
            message = "h may have any number of dimensions before the last one; yours is wrong for"
            return [Finding("other shapes", f"{message} shape {shape}", show(got), str(shape))]
    half = h.bfloat16()
    message = "h may be bfloat16 beside a float32 adapter: compute in the adapter's dtype, give h's"
    try:
        got = call.second(half, *weights).value
    except Failed:
        return [Finding("half precision", message)]
    expected = reference(half, weights)
    if not isinstance(got, Tensor) or got.dtype != half.dtype or not is_near(got, expected, 0.02):
        return [Finding("half precision", message, show(got), "a bfloat16 tensor")]
    return []


def _start(call: Call, D: int, M: int, seed: int) -> Weights | Finding:
    """The four tensors of a fresh adapter, or what is wrong with their kinds and shapes."""
    made: Any = call(D, M, seed).value
    if not isinstance(made, tuple | list) or len(made) != 4:
        message = "houlsby_init must return four tensors: W_down, b_down, W_up, b_up"
        return Finding("not four tensors", message, show(made), "a tuple of four tensors")
    for name, value, shape in zip(NAMES[1:], made, ((M, D), (M,), (D, M), (D,)), strict=True):
        fault = wrong_type(value, shape)
        if fault:
            message = f"{name} of hidden size {D} and bottleneck {M}: {fault.message}"
            return Finding("wrong shape", message, fault.got, fault.expected)
        if value.dtype != torch.float32:
            return Finding("wrong dtype", f"{name} must be float32", show(value), "float32")
    return made[0], made[1], made[2], made[3]


def _start_mistake(W_down: Tensor, b_down: Tensor, W_up: Tensor, b_up: Tensor) -> Finding | None:
    """Zeros where they belong, and a W_down of 960 numbers or more that looks random."""
    if bool(W_up.any()):
        return Finding("up not zero", "a fresh adapter must be the identity: with a random W_up it "
                       "changes every hidden state before it has learnt anything")  # fmt: skip
    for name, bias in (("b_down", b_down), ("b_up", b_up)):
        if bool(bias.any()):
            return Finding("bias not zero", f"{name} must be 0 at the start")
    if not bool(W_down.any()):
        return Finding("all zeros", "W_down and W_up are both 0: then the gradient of each has the "
                       "other as a factor, and neither ever moves")  # fmt: skip
    mean, std = W_down.double().mean(), W_down.double().std()
    if torch.unique(W_down, dim=0).shape[0] < W_down.shape[0]:
        return Finding("features alike", "several rows of W_down are the same, so these features "
                       "of the bottleneck get the same gradient and stay alike")  # fmt: skip
    if not 0.008 < std < 0.012:
        return Finding("scale", "W_down's standard deviation must be 0.01", show(std), "0.01")
    if abs(mean) > 0.0025:
        return Finding("mean", "W_down's mean must be 0", show(mean), "0")
    return None


def check_start(call: Call, seed: int, size: int) -> list[Finding]:
    """Shapes, the identity, a random W_down, and that the seed alone decides it."""
    D, M = 60 + 4 * size, 16 + size
    made = [_start(call, D, M, s) for s in (seed, seed, seed + 1)]
    for one in made:
        if isinstance(one, Finding):
            return [one]
    first, again, other = (one for one in made if not isinstance(one, Finding))
    fault = _start_mistake(*first)
    if fault:
        return [fault]
    if not torch.equal(first[0], again[0]):
        message = "the same seed gave other numbers: draw from a torch.Generator with that seed"
        return [Finding("not repeatable", message)]
    if torch.equal(first[0], other[0]):
        return [Finding("seed ignored", "two seeds gave the same W_down")]
    return []


def check_gradient(call: Call, seed: int, size: int) -> list[Finding]:
    """By h, and by each of the adapter's tensors."""
    h, weights = _inputs(seed, size)
    leaves = [t.clone().requires_grad_(True) for t in (h, *weights)]
    value = reference(leaves[0], (leaves[1], leaves[2], leaves[3], leaves[4]))
    expected = torch.autograd.grad(value.sum(), leaves)
    gradients = call.second(h, *weights, wrt=(0, 1, 2, 3, 4)).gradients
    for name, got in zip(NAMES, gradients, strict=True):
        if got is None:
            message = f"no gradient reaches {name}: something is detached, or under no_grad"
            return [Finding("detached", message)]
    for name, got, right in zip(NAMES, gradients, expected, strict=True):
        if not isinstance(got, Tensor) or not is_close(got, right):
            message = f"the gradient by {name} is wrong: part of the path is detached"
            return [Finding("gradient", message, show(got), show(right))]
    return []


TASK = Task(
    set="01",
    name="houlsby-adapter",
    functions=("houlsby_init", "houlsby_forward"),
    checks=(
        Check("forward", 1, check_forward),
        Check("any shape and dtype", 1, check_shapes),
        Check("start", 2, check_start),
        Check("gradient", 1, check_gradient),
    ),
)
