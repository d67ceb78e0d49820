"""Set 04: Ziegler et al.'s controller of the KL coefficient.

    next_beta(beta, kl, target, answers, horizon) -> float

beta (1 + clip(kl / target - 1, -0.2, 0.2) answers / horizon), everything a plain number.
"""

import random

import torch
from torch import Tensor

from course_utils.grading.call import Call
from course_utils.grading.checks import Check, Task
from course_utils.grading.finding import Finding, is_close, name_mistake, show

LIMIT = 0.2


def _clip(error: float) -> float:
    return sorted((-LIMIT, error, LIMIT))[1]


def _error(kl: float, target: float) -> float:
    return _clip(kl / target - 1)


def _draw(seed: int, size: int) -> tuple[float, float, int, int]:
    """beta, target, answers, horizon: beta well below answers / horizon, which is below 1."""
    draw = random.Random(3000 + seed)
    answers = draw.randint(40, 120)
    target = draw.choice((draw.uniform(0.3, 0.7), draw.uniform(2.0, 9.0)))
    return draw.uniform(0.02, 0.08), target, answers, draw.randint(3 * answers, 9 * answers)


def _number(value: object) -> Tensor | Finding:
    """The returned number as a float64 tensor of shape (), or what is wrong with it."""
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        return value.detach().double().reshape(())
    if isinstance(value, int | float) and not isinstance(value, bool):
        return torch.tensor(float(value), dtype=torch.float64)
    message = "next_beta must return a number" + (
        "; it returned None: is a `return` missing?" if value is None else ""
    )
    return Finding("not a number", message, show(value), "a float")


def _ask(call: Call, beta: float, kls: list[float], rest: tuple[float, int, int]) -> (
    "Tensor | Finding"
):  # fmt: skip
    """The new betas for several measured KLs, each from the same beta: (N,)."""
    found = []
    for kl in kls:
        number = _number(call(beta, kl, *rest).value)
        if isinstance(number, Finding):
            return number
        found.append(number)
    return torch.stack(found)


def _known(
    beta: float, kls: list[float], target: float, answers: int, horizon: int
) -> dict[str, tuple[Tensor, str]]:
    part = answers / horizon
    plain = [kl / target - 1 for kl in kls]
    errors = [_error(kl, target) for kl in kls]
    nats = [_clip(kl - target) for kl in kls]
    turned = [_clip(target / max(kl, 1e-9) - 1) for kl in kls]
    no_minus = [_clip(kl / target) for kl in kls]
    clipped_last = [_clip(e * part) / part for e in plain]

    def by(corrections: list[float]) -> Tensor:  # beta (1 + correction n / h): (N,)
        return beta * (1 + part * torch.tensor(corrections, dtype=torch.float64))

    right = by(errors)
    return {
        "unchanged": (by([0.0 for _ in kls]), "beta comes back as it was"),
        "zero": (right * 0, "your beta is 0"),
        "sign": (by([-e for e in errors]), "your beta falls where the KL is too large: the policy "
                 "is too far away, so the penalty must rise"),
        "no clip": (by(plain), "the error is not clipped to ±0.2: one wild measurement could move "
                    "beta by any amount"),
        "clipped above only": (by([min(e, LIMIT) for e in plain]), "the error is clipped from "
                               "above only"),
        "clipped below only": (by([max(e, -LIMIT) for e in plain]), "the error is clipped from "
                               "below only"),
        "clipped last": (by(clipped_last), "you clip after multiplying by answers / horizon; the "
                         "*error* is clipped"),
        "not relative": (by(nats), "the error is KL - target in nats; it must be relative to the "
                         "target: KL / target - 1"),
        "minus one": (by(no_minus), "at the target the error must be 0: KL / target - 1"),
        "upside down": (by(turned), "the error is target / KL - 1; it is KL / target - 1"),
        "added": (beta + (right / beta - 1), "you add the correction; beta is *multiplied* by "
                  "1 + correction, so that it keeps its scale and stays positive"),
        "no horizon": (by([e / part for e in errors]), "answers / horizon is missing: beta moves "
                       "by a fifth at once"),
        "no answers": (by([e / answers for e in errors]), "the number of answers is missing: "
                       "without it beta hardly moves"),
        "horizon upside down": (by([e / part**2 for e in errors]), "you multiply by horizon / "
                                "answers; it is answers / horizon"),
        "factor alone": (right / beta, "this is only the factor: multiply beta by it"),
    }  # fmt: skip


def check_value(call: Call, seed: int, size: int) -> list[Finding]:
    """KLs a little and far from the target, on both sides of it."""
    beta, target, answers, horizon = _draw(seed, size)
    kls = [target * factor for factor in (0.9, 1.13, 1.6, 0.4, 1.0, 3.0 + size)]
    got = _ask(call, beta, kls, (target, answers, horizon))
    if isinstance(got, Finding):
        return [got]
    expected = torch.tensor(
        [beta + beta * _error(kl, target) * answers / horizon for kl in kls], dtype=torch.float64
    )
    fault = name_mistake(got, expected, _known(beta, kls, target, answers, horizon), rtol=1e-5)
    if not fault:
        return []
    worst = int((got - expected).abs().argmax())
    seen = f"at KL {kls[worst]:.3g}, target {target:.3g}, beta {beta:.3g}: "
    return [Finding(fault.mistake, fault.message, f"{seen}{float(got[worst]):.5g}",
                    f"{float(expected[worst]):.5g}")]  # fmt: skip


def check_run(call: Call, seed: int, size: int) -> list[Finding]:
    """Used step after step: no memory of its own, positive whatever the KL; KL 0 and below 0."""
    beta, target, answers, horizon = _draw(seed, size)
    draw = random.Random(seed)
    mine, right = beta, beta
    kls = [
        0.0,
        -0.05 * target,
        50 * target,
        *(draw.uniform(0, 3) * target for _ in range(5 + size)),
    ]
    for kl in kls:
        number = _number(call(mine, kl, target, answers, horizon).value)
        if isinstance(number, Finding):
            return [number]
        mine, right = float(number), right * (1 + _error(kl, target) * answers / horizon)
        if not is_close(torch.tensor(mine), torch.tensor(right)):
            message = (
                f"after a KL of {kl / target:.2g} times the target beta is wrong: an estimate may "
                "be 0 or just below, and a wild one moves beta by no more than a fifth"
                if kl <= 0 or kl > 3 * target
                else "called again and again beta goes astray: does the function keep a state?"
            )
            return [Finding("run", message, f"{mine:.5g}", f"{right:.5g}")]
    return []


TASK = Task(
    set="04",
    name="adaptive-kl",
    functions=("next_beta",),
    checks=(Check("one update", 2, check_value), Check("a whole run", 1, check_run)),
)
