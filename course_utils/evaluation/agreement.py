"""How far two judges agree: the share of equal verdicts, and Cohen's kappa, with intervals."""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from course_utils.evaluation.statistics import LEVEL, finite, resampled


def wilson(successes: float, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's score interval (low, high) for a share of n, also right for 0 of n and n of n.

    With n = 0 nothing is known: (0, 1).
    Source: Wilson 1927; Brown, Cai and DasGupta 2001, §3.
    """
    if not 0 <= successes <= n or not 0 < level < 1:
        raise ValueError(f"wilson needs 0 <= successes <= n, 0 < level < 1: {successes}, {n}")
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, grow = successes / n, 1 + z * z / n
    middle = (share + z * z / (2 * n)) / grow
    half = z / grow * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At the ends rounding would leave 1e-17 of what is 0 (or 1) exactly.
    return middle - half if successes else 0.0, middle + half if successes < n else 1.0


def cohens_kappa(a: Sequence[Hashable], b: Sequence[Hashable]) -> float:
    """(p_o - p_e) / (1 - p_e): agreement beyond what the two judges' habits give by chance.

    1 is full agreement, 0 chance. NaN if nothing was judged, or if both always say one same thing.
    Source: Cohen 1960.
    """
    if len(a) != len(b):
        raise ValueError(f"two judges of the same cases: got {len(a)} and {len(b)} verdicts")
    if not len(a):
        return float("nan")
    left, right = Counter(a), Counter(b)
    chance = sum(left[v] * right[v] for v in left) / len(a) ** 2
    if chance == 1:
        return float("nan")
    share = sum(x == y for x, y in zip(a, b, strict=True)) / len(a)
    return (share - chance) / (1 - chance)


@dataclass(frozen=True)
class Agreement:
    """Two judges on the same `n` cases."""

    share: float  # of equal verdicts, in [0, 1]; NaN for n = 0
    low: float  # Wilson's 95% interval of it
    high: float
    kappa: float  # Cohen's; NaN where chance alone explains everything
    kappa_low: float  # 95% percentile bootstrap over the cases; NaN where kappa is
    kappa_high: float
    n: int
    left_out: int = 0  # cases that one of the two did not decide (ties, skips, not known)

    def to_json(self) -> dict[str, Any]:
        return {k: finite(v) if isinstance(v, float) else v for k, v in vars(self).items()}

    def __str__(self) -> str:
        if not self.n:
            return "no case that both have decided"
        agreed = f"{self.share:.0%} [{self.low:.0%}, {self.high:.0%}] of {self.n}"
        if math.isnan(self.kappa):
            return f"{agreed}, κ not defined"
        return f"{agreed}, κ {self.kappa:.2f} [{self.kappa_low:.2f}, {self.kappa_high:.2f}]"


def agreement(
    a: Sequence[Hashable | None], b: Sequence[Hashable | None], seed: int = 0
) -> Agreement:
    """Agreement of two judges; a case where either says None is left out and counted.

    Args:
        a, b: one verdict per case, any hashable values.
        seed: of the bootstrap.
    Raises: ValueError when they judged different numbers of cases.
    """
    verdicts = zip(a, b, strict=True)
    both = [(x, y) for x, y in verdicts if x is not None and y is not None]
    nan = float("nan")
    out = len(a) - len(both)
    if not both:
        return Agreement(nan, 0.0, 1.0, nan, nan, nan, 0, out)
    one, other = [x for x, _ in both], [y for _, y in both]
    equal = sum(x == y for x, y in both)
    code = {value: i for i, value in enumerate(dict.fromkeys([*one, *other]))}
    cases = np.array([[code[x], code[y]] for x, y in both], dtype=np.float64)  # (N, 2)
    draws = resampled(cases, _kappas, seed=seed)
    draws = draws[np.isfinite(draws)]
    kappa = cohens_kappa(one, other)
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if len(draws) else (nan, nan)
    if math.isnan(kappa):
        low = high = nan
    share = wilson(equal, len(both))
    return Agreement(equal / len(both), *share, kappa, float(low), float(high), len(both), out)


def _kappas(cases: Any, axis: int) -> Any:
    """Cohen's kappa of each of R resamples (R, N, 2) of coded verdicts -> (R,)."""
    share = (cases[..., 0] == cases[..., 1]).mean(axis=axis)
    chance = np.zeros(len(cases))
    for value in np.unique(cases):
        chance += (cases[..., 0] == value).mean(axis=axis) * (cases[..., 1] == value).mean(
            axis=axis
        )
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(chance < 1, (share - chance) / (1 - chance), np.nan)
