"""Set 08: the law of over-optimisation, gold = d (α - β d) with d = √KL, fitted; and its peak.

    fit_overoptimisation(kl (M,), gold (M,), weights=None or (M,)) -> (alpha, beta, peak)

Least squares without an intercept: minimise Σ w (d (α - β d) - gold)². KL below 0 counts as 0. The
peak is the distance d >= 0 at which the law is highest: α / 2β; inf where β <= 0, and 0 where
α <= 0 < β. Gao et al. 2022, section 3 (their law for best-of-n).
"""

import math
from typing import Any

import torch
from torch import Tensor

from course_utils.grading.call import Call, Outcome
from course_utils.grading.checks import Check, Task
from course_utils.grading.finding import Finding, attempt, changed, is_close, name_mistake, show
from course_utils.grading.tasks.set_08._inputs import as_number

Known = dict[str, tuple[Tensor, str]]


def _inputs(seed: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """kl, gold and weights (M,) of a run that passes its peak; the first point is the start."""
    generator = torch.Generator().manual_seed(seed)
    M = 7 + size
    d = 0.3 + 4.2 * torch.rand(M, generator=generator)
    d[0], d[1], d[-1] = 0.0, 0.6, 4.5
    alpha, beta = 1.5 + torch.rand(2, generator=generator).double()
    beta = alpha / (4 + beta)  # the peak is between d = 2.75 and 3.25
    gold = d.double() * (alpha - beta * d) + 0.15 * torch.randn(M, generator=generator)
    gold[0] = 0.0
    weights = 0.1 + 4 * torch.rand(M, generator=generator)
    weights[2] = 0.0  # a point that must not count
    gold[2] += 1.0
    return (d * d).float(), gold.float(), weights.float()


def _two_columns(x: Tensor, y: Tensor, target: Tensor, w: Tensor) -> Tensor:
    """(a, b) for which Σ w (a x + b y - target)² is smallest: y is made orthogonal to x first."""
    x, y, target, w = x.double(), y.double(), target.double(), w.double()
    along = (w * x * y).sum() / (w * x * x).sum()
    rest = y - along * x
    b = (w * rest * target).sum() / (w * rest * rest).sum()
    a = (w * x * target).sum() / (w * x * x).sum() - b * along
    return torch.stack([a, b])


def _fit(d: Tensor, gold: Tensor, w: Tensor) -> Tensor:
    """(α, β)."""
    return _two_columns(d, -(d.double() ** 2), gold, w)


def _intercept(d: Tensor, gold: Tensor, w: Tensor) -> Tensor:
    """(α, β) of a fit that may also choose gold at d = 0: all three columns about their means."""
    d, gold, w = d.double(), gold.double(), w.double() / w.double().sum()

    def centred(v: Tensor) -> Tensor:
        return v - (w * v).sum()

    return _two_columns(centred(d), centred(-(d**2)), centred(gold), w)


def _known(kl: Tensor, gold: Tensor, w: Tensor) -> Known:
    """(α, β) of the known mistakes."""
    kl, gold = kl.double(), gold.double()
    d = kl.clamp(min=0).sqrt()
    right, later = _fit(d, gold, w), d > 0
    one = torch.ones_like(right[0])
    per_d = _two_columns(one.expand(int(later.sum())), -d[later], gold[later] / d[later], w[later])
    slope = (w * d * gold).sum() / (w * d * d).sum()
    return {
        "no root": (_fit(kl, gold, w), "you fitted over the KL itself; the law's d is its square "
                    "root"),
        "beta sign": (right * torch.tensor([1.0, -1.0]), "β has the wrong sign: the law subtracts "
                      "β d², so a curve that bends down has β > 0"),
        "swapped": (right.flip(0), "α and β are swapped"),
        "intercept": (_intercept(d, gold, w), "you fitted an intercept too; at d = 0 the law is 0"),
        "RL law": (_two_columns(d, -torch.xlogy(d, d), gold, w), "you fitted d (α - β log d), the "
                   "law for RL; asked for is d (α - β d)"),
        "divided by d": (per_d, "you fitted gold / d by a line: its squared errors are other "
                         "ones, and points near the start count too much"),
        "no bend": (torch.stack([slope, slope * 0]), "you fitted a straight line through 0, "
                    "without the term in d²"),
    }  # fmt: skip


def _three(value: Any) -> Tensor | Finding:
    """What was returned as a float64 tensor (3,), or a finding."""
    if isinstance(value, Tensor) and value.dim() == 1 and not value.is_complex():
        value = value.tolist()
    numbers = [as_number(v) for v in value] if isinstance(value, tuple | list) else []
    if len(numbers) != 3 or any(n is None for n in numbers):
        message = "your function must return three numbers, (alpha, beta, peak)" + (
            "; it returned None: is a `return` missing?" if value is None else ""
        )
        return Finding("not three numbers", message, show(value), "three floats")
    return torch.stack([n for n in numbers if n is not None])


def _wrong_fit(outcome: Outcome, right: Tensor, known: Known) -> Finding | None:
    """A finding on α and β, then on the peak that follows from them."""
    got = _three(outcome.value)
    if isinstance(got, Finding):
        return got
    fault = name_mistake(got[:2], right, known)
    if fault:
        pair = f"α = {got[0]:.5g}, β = {got[1]:.5g}", f"α = {right[0]:.5g}, β = {right[1]:.5g}"
        return Finding(fault.mistake, fault.message, *pair)
    alpha, beta = right
    peak = alpha / (2 * beta)
    return name_mistake(
        got[2], peak,
        {
            "zero crossing": (2 * peak, "α / β is where the law is back at 0; its top is half "
                              "way there"),
            "peak in KL": (peak**2, "the peak is asked for as a distance d = √KL, not as a KL"),
            "height": (alpha**2 / (4 * beta), "you return how high the peak is; asked for is "
                       "*where* it is"),
            "half": (peak / 2, "α / 4β is half the way to the peak: set the slope α - 2 β d to 0"),
        },
    )  # fmt: skip


def check_fit(call: Call, seed: int, size: int) -> list[Finding]:
    """Without weights, on points around a law with a peak."""
    kl, gold, _ = _inputs(seed, size)
    ones = torch.ones_like(kl)
    outcome = call(kl, gold)
    fault = _wrong_fit(outcome, _fit(kl.double().sqrt(), gold, ones), _known(kl, gold, ones))
    fault = fault or changed(("kl", "gold"), (kl, gold), outcome.arguments)
    return [fault] if fault else []


def check_weights(call: Call, seed: int, size: int) -> list[Finding]:
    """Weights of the squared errors; only their ratios matter."""
    kl, gold, weights = _inputs(seed, size)
    d = kl.double().sqrt()
    known: Known = {
        "weights ignored": (_fit(d, gold, torch.ones_like(kl)), "the weights are ignored"),
        "weights squared": (_fit(d, gold, weights**2), "the weights count twice: a weight belongs "
                            "to the *squared* error, so the rows are multiplied by its root"),
        "root of weights": (_fit(d, gold, weights.sqrt()), "the weights count too little: it is "
                            "Σ w (error)², not Σ √w (error)²"),
        "as 1 / w": (_fit(d, gold, 1 / weights.clamp(min=1e-6)), "a large weight must make a point "
                     "count more, not less"),
    }  # fmt: skip
    known |= {name: pair for name, pair in _known(kl, gold, weights).items() if name != "no bend"}
    for scale in (1.0, 1e-8, 1e8):
        outcome = call(kl, gold, weights * scale)
        fault = _wrong_fit(outcome, _fit(d, gold, weights), known if scale == 1 else {})
        if fault and scale != 1:
            message = f"all weights times {scale:g} must give the same fit"
            fault = Finding("scale of weights", message, fault.got, fault.expected)
        if fault:
            return [fault]
    outcome = call(kl, gold, weights=weights)
    fault = _wrong_fit(outcome, _fit(d, gold, weights), known)
    fault = fault or changed(("kl", "gold"), (kl, gold), outcome.arguments)
    return [fault] if fault else []


def _negative(call: Call, seed: int, size: int) -> Finding | None:
    """A KL estimated slightly below 0 counts as 0."""
    kl, gold, _ = _inputs(seed, size)
    kl[0], gold[0], kl[1] = -0.3, 0.4, -0.02  # both now count nothing
    ones = torch.ones_like(kl)
    known: Known = {
        "KL below 0 turned round": (_fit(kl.double().abs().sqrt(), gold, ones), "a KL estimated "
                                    "below 0 counts as 0, not as its magnitude"),
    }  # fmt: skip
    message = "a KL that was estimated slightly below 0 must count as 0"
    outcome = attempt(call, "KL below 0", message, kl, gold)
    if isinstance(outcome, Finding):
        return outcome
    fault = _wrong_fit(outcome, _fit(kl.double().clamp(min=0).sqrt(), gold, ones), known)
    if fault and fault.mistake in ("nan", "something else"):
        fault = Finding("KL below 0", message, fault.got, fault.expected)
    return fault


def _without_peak(call: Call, seed: int) -> Finding | None:
    """Laws that only rise, only fall, or fall first."""
    d = torch.tensor([0.0, 0.7, 1.5, 2.0 + seed % 5, 8.0])
    kl = (d * d).float()
    for (alpha, beta), peak, what in (
        ((1.0, -0.3), math.inf, "rises for ever (β <= 0)"),
        ((-1.0, 0.4), 0.0, "only falls (α <= 0 < β)"),
        ((-1.0, -0.4), math.inf, "falls first, then rises for ever (β <= 0)"),
    ):
        gold = (d * (alpha - beta * d)).float()
        message = f"where the law {what} the peak must be {peak:g}"
        outcome = attempt(call, "no peak", message, kl, gold)
        if isinstance(outcome, Finding):
            return outcome
        got = _three(outcome.value)
        if isinstance(got, Finding):
            return got
        if not is_close(got[2], torch.tensor(peak, dtype=torch.float64)):
            return Finding("no peak", message, show(got[2]), f"{peak:g}")
    return None


def check_unusual(call: Call, seed: int, size: int) -> list[Finding]:
    """Points far from the start, a KL below 0, a law without a peak."""
    d = 60 + _inputs(seed, size)[0].sqrt() / 4  # 60 to 61.1: d and d² are nearly one direction
    noise = 0.01 * torch.randn(len(d), generator=torch.Generator().manual_seed(seed))
    far, gold = d * d, d * (2 - 0.02 * d) + noise
    outcome = call(far, gold)
    right = _fit(far.double().sqrt(), gold, torch.ones_like(far))
    fault = _wrong_fit(outcome, right, {})
    if fault:
        message = "points that all lie far from the start cost digits: compute in float64, and "
        fault = Finding("digits", message + "add nothing to X'X", fault.got, fault.expected)
        return [fault]
    fault = _negative(call, seed, size) or _without_peak(call, seed)
    return [fault] if fault else []


TASK = Task(
    set="08",
    name="overoptimisation-peak",
    functions=("fit_overoptimisation",),
    checks=(
        Check("fit and peak", 2, check_fit),
        Check("weights", 1, check_weights),
        Check("unusual curves", 1, check_unusual),
    ),
)
