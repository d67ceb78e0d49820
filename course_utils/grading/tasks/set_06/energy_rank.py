"""Set 06: in how many directions a change lies, by the energy of its singular values.

    energy_rank(delta (d, k), tau) -> int

The smallest n with σ_1² + ... + σ_n² >= (τ - 1e-9) Σ σ²; 0 for a matrix of zeros.
"""

import math
from typing import Any

import torch
from torch import Tensor

from course_utils.grading.call import Call
from course_utils.grading.checks import Check, Task
from course_utils.grading.finding import Finding, attempt, show
from course_utils.grading.tasks.set_06._inputs import Draw, whole_number

TAUS = (0.3, 0.5, 0.75, 0.9, 0.97)
SLACK = 1e-9


def _matrix(draw: Draw, sigma: list[float], d: int, k: int) -> Tensor:
    """A float32 (d, k) matrix with these singular values, between random bases."""
    n = len(sigma)
    U, _ = torch.linalg.qr(draw.normal(d, n).double())
    V, _ = torch.linalg.qr(draw.normal(k, n).double())
    return torch.einsum("dn,n,kn->dk", U, torch.tensor(sigma).double(), V).float()


def _least(shares: list[float], tau: float) -> int:
    """How many of the shares, taken in order, reach tau of their sum."""
    total, reached = math.fsum(shares), 0.0
    for number, share in enumerate(shares, 1):
        reached += share
        if reached >= (tau - SLACK) * total:
            return number
    return len(shares)


def _known(sigma: list[float]) -> tuple[list[int], dict[str, tuple[list[int], str]]]:
    """The right ranks at TAUS, and those of each known mistake."""
    energy, n = [s * s for s in sigma], len(sigma)
    right = [_least(energy, tau) for tau in TAUS]
    return right, {
        "zero": ([0] * len(TAUS), "your function returns 0 whatever the input"),
        "all": ([n] * len(TAUS), "your function returns the full rank whatever tau is"),
        "not squared": ([_least(sigma, t) for t in TAUS], "you add up the singular values; energy "
                        "is their squares"),
        "one too few": ([k - 1 for k in right], "one too few: a place counted from 0 is one less "
                        "than a number of directions"),
        "one too many": ([k + 1 for k in right], "one too many: the direction that reaches tau is "
                         "the last that is needed"),
        "ascending": ([_least(energy[::-1], t) for t in TAUS], "you begin with the smallest "
                      "singular value; the largest come first"),
        "the rest": ([_least(energy, 1 - t) for t in TAUS], "you keep 1 - tau of the energy; keep "
                     "tau of it"),
        "norm": ([_least(energy, t * t) for t in TAUS], "you compare norms, the roots of the "
                 "energies"),
        "threshold": ([sum(e >= t * energy[0] for e in energy) for t in TAUS], "you compare each "
                      "direction with the first; add them up and compare with the whole"),
        "threshold of the rest": ([sum(e >= (1 - t) * energy[0] for e in energy) for t in TAUS],
                                  "you compare each direction with the first; add them up and "
                                  "compare with the whole"),
        "share of directions": ([math.ceil(t * n) for t in TAUS], "you take tau of the number of "
                                "directions; their energies differ"),
        "tau ignored": ([_least(energy, 0.9)] * len(TAUS), "the result does not follow tau"),
        "amplified": ([_least([e * e for e in energy], t) for t in TAUS], "you square twice"),
    }  # fmt: skip


def _whole(value: Any) -> int | Finding:
    number = whole_number(value)
    if number is None:
        message = "return the number of directions as an int"
        return Finding("not whole", message, show(value), "an int")
    return number


def _ask(call: Call, mistake: str, message: str, delta: Tensor, tau: float, right: int) -> Any:
    """A finding of this name unless the answer is right."""
    outcome = attempt(call, mistake, message, delta, tau)
    if isinstance(outcome, Finding):
        return outcome
    got = _whole(outcome.value)
    if isinstance(got, Finding) or got == right:
        return got if isinstance(got, Finding) else None
    return Finding(mistake, message, str(got), str(right))


def check_value(call: Call, seed: int, size: int) -> list[Finding]:
    """Five thresholds on a spectrum that falls slowly: every known mistake differs somewhere."""
    draw, n = Draw(seed), 24 + size
    sigma = sorted((0.25 + abs(float(x)) for x in draw.normal(n)), reverse=True)
    delta = _matrix(draw, sigma, n + 1 + size % 3, n)
    right, known = _known(sigma)
    got = []
    for tau in TAUS:
        outcome = call(delta, tau)
        number = _whole(outcome.value)
        if isinstance(number, Finding):
            return [number]
        if not isinstance(outcome.arguments[0], Tensor) or not torch.equal(
            delta, outcome.arguments[0]
        ):
            return [Finding("in place", "your function changes its argument 'delta'")]
        got.append(number)
    if got == right:
        return []
    shown = f"{got} for tau = {list(TAUS)}", f"{right}"
    for mistake, (values, message) in known.items():
        if got == values != right:
            return [Finding(mistake, message, *shown)]
    return [Finding("something else", "the result is wrong, by no mistake known here", *shown)]


def check_ends(call: Call, seed: int, size: int) -> list[Finding]:
    """Zeros, tau = 1, a threshold met exactly, one row."""
    draw, n = Draw(seed), 8 + size
    low = _matrix(draw, [3.0, 2.0, 1.0] + [1e-6] * 4, n + 4, n)  # a product's float32 rounding
    equal = torch.eye(4) * (1.0 + draw.whole(1, 9))
    cases = [
        ("zero matrix", "a matrix of zeros lies in 0 directions", torch.zeros(n, n + 2), 0.9, 0),
        ("zero matrix", "a matrix of zeros lies in 0 directions", torch.zeros(n, 3), 1.0, 0),
        ("rounding at 1", "at tau = 1 rounding must not count: a product of rank 3 lies in 3 "
         "directions; allow for the 1e-9 of the text", low, 1.0, 3),
        ("rounding at 1", "at tau = 1 all directions of a matrix of full rank are needed, and no "
         "more than there are", _matrix(draw, [1.0 + i for i in range(n, 0, -1)], n, n + 3), 1.0,
         n),
        ("met exactly", "2 of 4 equal directions hold exactly half of the energy, and that is "
         "enough", equal, 0.5, 2),
        ("met exactly", "1 of 4 equal directions holds a quarter of the energy", equal, 0.25, 1),
        ("one row", "a matrix of one row lies in one direction", draw.normal(1, n), 0.9, 1),
        ("wide matrix", "a matrix and its transpose lie in the same number of directions",
         _matrix(draw, [3.0, 2.0, 1.0, 0.1], 4, n + 9), 0.9, 2),
    ]  # fmt: skip
    findings = (_ask(call, *case) for case in cases)
    return [f for f in findings if f][:1]


def check_numbers(call: Call, seed: int, size: int) -> list[Finding]:
    """bfloat16, and matrices whose squares are beyond float32."""
    draw, n = Draw(seed), 6 + size
    sigma = [2.0 ** (1 - i) for i in range(n)]  # energies fall by 4: 0.9 takes two of them
    delta = _matrix(draw, sigma, n + 2, n)
    cases = [
        ("half precision", "a bfloat16 matrix must be allowed", delta.bfloat16(), 0.9, 2),
        ("tiny numbers", "numbers of 1e-25 are no zeros: their squares need float64",
         delta * 1e-25, 0.9, 2),
        ("large numbers", "numbers of 1e25 are allowed: their squares need float64",
         delta * 1e25, 0.9, 2),
    ]  # fmt: skip
    findings = (_ask(call, *case) for case in cases)
    return [f for f in findings if f][:1]


TASK = Task(
    set="06",
    name="energy-rank",
    functions=("energy_rank",),
    checks=(
        Check("value", 2, check_value),
        Check("zeros, ties and the whole", 1, check_ends),
        Check("half precision, tiny and large", 1, check_numbers),
    ),
)
