"""Set 08: DPO's loss where a known share of the labels is wrong, in two ways.

    noisy_preference_loss(h (B,), beta, eps, robust=False) -> (B,)      u = β h
        cDPO      (1 - ε) f(u) + ε f(-u)                    f(u) = -log σ(u)
        robust   ((1 - ε) f(u) - ε f(-u)) / (1 - 2 ε)
    best_margin(beta, eps) -> the h at which cDPO is lowest: log((1 - ε) / ε) / β, inf for ε = 0

h is the difference of log-ratios in nats; ε in [0, 0.5), a float or (B,), one for each pair.
Mitchell 2023 (cDPO); Chowdhury et al. 2024 (robust).
"""

import math

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
from course_utils.grading.tasks.set_08._inputs import as_number, not_a_number

Known = dict[str, tuple[Tensor, str]]


def _inputs(seed: int, size: int, scale: float = 1.0) -> tuple[Tensor, float, float]:
    """h (B,) of either sign, β, ε."""
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(4 + size, generator=generator) * 8 * scale
    h[0], h[1] = h[0].abs() + 1, -h[1].abs() - 1
    beta, eps = torch.rand(2, generator=generator).tolist()
    return h, 0.1 + 0.3 * beta, 0.1 + 0.25 * eps


def _f(u: Tensor) -> Tensor:
    """-log σ(u) = max(-u, 0) + log(1 + e^-|u|), in float64."""
    u = u.double()
    return (-u).clamp(min=0) + torch.log1p((-u.abs()).exp())


def _cdpo(h: Tensor, beta: float, eps: float | Tensor) -> Tensor:
    u = beta * h.double()
    return _f(u) + eps * u  # f(-u) = f(u) + u


def _robust(h: Tensor, beta: float, eps: float | Tensor) -> Tensor:
    u = beta * h.double()
    return _f(u) - u * eps / (1 - 2 * eps)


def _known(h: Tensor, beta: float, eps: float | Tensor) -> Known:
    u, clean, turned = beta * h.double(), _f(beta * h), _f(-beta * h)
    right = _cdpo(h, beta, eps)
    return {
        "zero": (right * 0, "your loss is 0 whatever the input"),
        "sign": (-right, "the sign is flipped: the loss is minus a log-likelihood"),
        "eps ignored": (clean, "ε is ignored: this is the plain DPO loss"),
        "eps on the wrong side": (eps * clean + (1 - eps) * turned, "ε is on the wrong side: the "
                                  "label as given is right with probability 1 - ε"),
        "half eps": (_cdpo(h, beta, eps / 2), "you smooth by ε / 2 (as cross entropy over two "
                     "classes does); here ε is the share of wrong labels"),
        "no beta": (_cdpo(h, 1.0, eps), "β is missing: the loss is of u = β h"),
        "beta outside": (beta * _cdpo(h, 1.0, eps), "β belongs inside the sigmoid, not before "
                         "the loss"),
        "beta divides": (_cdpo(h, 1 / beta, eps), "h is to be multiplied by β, not divided"),
        "no second term": ((1 - eps) * clean, "the second term is missing: with probability ε the "
                           "label is wrong, which adds ε f(-u)"),
        "second term like the first": (clean + 0 * u, "both terms are f(u); the flipped label's "
                                       "is f(-u)"),
        "plus": ((1 - eps) * clean - eps * turned, "in cDPO the second term is added; only the "
                 "robust loss subtracts it"),
        "robust": (_robust(h, beta, eps), "this is the robust loss; cDPO was asked for"),
        "probabilities": (1 - torch.sigmoid(u) * (1 - eps) - torch.sigmoid(-u) * eps, "you sum "
                          "probabilities; take their logarithms"),
    }  # fmt: skip


def check_value(call: Call, seed: int, size: int) -> list[Finding]:
    """cDPO with one ε for all pairs, then with one for each pair."""
    h, beta, eps = _inputs(seed, size)
    outcome = call(h, beta, eps)
    fault = (
        wrong_type(outcome.value, tuple(h.shape))
        or name_mistake(outcome.value, _cdpo(h, beta, eps), _known(h, beta, eps))
        or changed(("h",), (h,), outcome.arguments)
    )
    if fault:
        return [fault]
    each = torch.linspace(0.0, 0.45, len(h))
    message = "ε may also be a tensor with one value for each pair; that breaks your function"
    result = attempt(call, "eps per pair", message, h, beta, each)
    if isinstance(result, Finding):
        return [result]
    mean = _cdpo(h, beta, float(each.mean()))
    known = {"one eps for all": (mean, "you use the mean of ε; each pair has its own")}
    fault = wrong_type(result.value, tuple(h.shape))
    fault = fault or name_mistake(result.value, _cdpo(h, beta, each.double()), known)
    return [fault] if fault else []


def _known_robust(h: Tensor, beta: float, eps: float | Tensor) -> Known:
    clean, turned = _f(beta * h), _f(-beta * h)
    difference = (1 - eps) * clean - eps * turned
    return {
        "robust ignored": (_cdpo(h, beta, eps), "robust=True is ignored: this is cDPO"),
        "not divided": (difference, "the division by 1 - 2ε is missing: of the clean loss only a "
                        "part 1 - 2ε is left on average"),
        "divided by 1 - eps": (difference / (1 - eps), "you divide by 1 - ε; it takes 1 - 2ε to "
                               "undo the flips"),
        "divided by 1 + 2 eps": (difference / (1 + 2 * eps), "you divide by 1 + 2ε; it takes "
                                 "1 - 2ε to undo the flips"),
        "multiplied": (difference * (1 - 2 * eps), "you multiply by 1 - 2ε; divide by it"),
        "not subtracted": (_cdpo(h, beta, eps) / (1 - 2 * eps), "in the robust loss the second "
                           "term is subtracted: what the flips added on average is taken off"),
        "eps on the wrong side": ((eps * clean - (1 - eps) * turned) / (2 * eps - 1), "ε is on "
                                  "the wrong side: the label as given is right with probability "
                                  "1 - ε"),
    }  # fmt: skip


def check_robust(call: Call, seed: int, size: int) -> list[Finding]:
    """The robust loss; and that over right and flipped labels its mean is the clean loss."""
    h, beta, eps = _inputs(seed, size)
    each = torch.linspace(0.02, 0.45, len(h)).double()
    for share, given in ((eps, eps), (each, each.float())):
        got = call(h, beta, given, robust=True).value
        fault = wrong_type(got, tuple(h.shape))
        known = _known_robust(h, beta, share)
        fault = fault or name_mistake(got, _robust(h, beta, share), known)
        if fault:
            return [fault]
    other = call(-h, beta, eps, robust=True).value
    got = call(h, beta, eps, robust=True).value
    fault = wrong_type(other, tuple(h.shape))
    if not fault and not is_close((1 - eps) * got.double() + eps * other.double(), _f(beta * h)):
        message = "its mean over right and flipped labels must be the plain loss on right ones"
        fault = Finding("biased", message)
    return [fault] if fault else []


def check_extremes(call: Call, seed: int, size: int) -> list[Finding]:
    """Margins of ±1e4, half precision, ε = 0; the gradient."""
    h, beta, eps = _inputs(seed, size, scale=1000.0)
    h[-1] = 0.0
    for share in (eps, 0.0):
        for robust in (False, True):
            got = call(h, beta, share, robust=robust).value
            expected = (_robust if robust else _cdpo)(h, beta, share)
            fault = wrong_type(got, tuple(h.shape))
            if not fault and not is_close(got, expected):
                message = "margins of several thousand break your loss: use F.logsigmoid, not the "
                message += "logarithm of a sigmoid, and mind 0 · inf"
                fault = Finding("unstable", message, show(got), show(expected))
            if fault:
                return [fault]
    h = _inputs(seed, size)[0].bfloat16()
    got = call(h, beta, eps).value
    if not isinstance(got, Tensor) or not is_close(got, _cdpo(h, beta, eps)):
        message = "with bfloat16 margins the loss loses digits: convert them to float32 first"
        return [Finding("half precision", message, show(got), show(_cdpo(h, beta, eps)))]
    for robust in (False, True):
        leaf = _inputs(seed, size)[0].double().requires_grad_(True)
        (expected,) = torch.autograd.grad((_robust if robust else _cdpo)(leaf, beta, eps).sum(),
                                          leaf)  # fmt: skip
        (gradient,) = call(leaf.detach().float(), beta, eps, robust=robust, wrt=(0,)).gradients
        if gradient is None:
            message = "no gradient reaches h: something is detached, or under no_grad"
            return [Finding("detached", message)]
        if not is_close(gradient, expected):
            shown = show(gradient), show(expected)
            return [Finding("gradient", "the gradient by h is wrong", *shown)]
    return []


def check_minimum(call: Call, seed: int, size: int) -> list[Finding]:
    """Where cDPO stops pushing."""
    _, beta, eps = _inputs(seed, size)
    for e in (eps, 1e-9, 0.5 - 1e-3):
        value = call.second(beta, e).value
        got = as_number(value)
        if got is None:
            return [not_a_number(value, "best_margin")]
        u = math.log((1 - e) / e)
        values = {
            "margin without beta": (u, "this is the best u = β h; asked for is h in nats, so β "
                                    "is missing"),
            "margin times beta": (u * beta, "divide by β: a small β needs a large h"),
            "margin sign": (-u / beta, "the margin has the wrong sign: labels that are mostly "
                            "right want h > 0"),
            "probability": (1 - e, "1 - ε is the best *probability* σ(u); the margin is the h "
                            "that gives it"),
            "log(1 / eps)": (-math.log(e) / beta, "σ(u) = 1 - ε is solved by the log of the odds "
                             "(1 - ε) / ε"),
        }  # fmt: skip
        known = {k: (torch.tensor(v, dtype=torch.float64), m) for k, (v, m) in values.items()}
        fault = name_mistake(got, torch.tensor(u / beta, dtype=torch.float64), known)
        if fault:
            return [fault]
    message = "with ε = 0 there is no best margin: plain DPO wants an infinite one, math.inf"
    outcome = attempt(call.second, "eps is 0", message, beta, 0.0)
    if isinstance(outcome, Finding):
        return [outcome]
    got = as_number(outcome.value)
    if got is None or float(got) != math.inf:
        return [Finding("eps is 0", message, show(outcome.value), "inf")]
    return []


TASK = Task(
    set="08",
    name="noisy-preference-loss",
    functions=("noisy_preference_loss", "best_margin"),
    checks=(
        Check("cDPO", 2, check_value),
        Check("robust", 1, check_robust),
        Check("extreme inputs", 1, check_extremes),
        Check("minimum", 1, check_minimum),
    ),
)
