"""Means over prompts and how far to trust them: bootstrap intervals, win rates, distinct-n.

The unit that is resampled is always the prompt (or document, or pair): several answers to one
prompt are averaged first, since they are not independent evidence. numpy only.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95  # coverage aimed at by every interval here
RESAMPLES = 2000
_CHUNK = 4_000_000  # resampled numbers held at once (32 MB)

Array = NDArray[np.float64]
Statistic = Callable[..., Any]


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` prompts with its 95% bootstrap interval [low, high]."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def interval(self) -> tuple[float, float]:
        return self.low, self.high

    def __float__(self) -> float:
        return self.mean

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def to_json(self) -> dict[str, float | int | None]:
        """Numbers only; None where not finite."""
        return {
            "mean": finite(self.mean),
            "low": finite(self.low),
            "high": finite(self.high),
            "n": self.n,
        }


def finite(value: float) -> float | None:
    """`value`, or None (JSON has no NaN) when it is not a finite number."""
    return float(value) if math.isfinite(value) else None


def per_prompt(values: ArrayLike, name: str = "values") -> Array:
    """Values (N,), or (N, S) for S answers to each of N prompts, averaged to (N,).

    Raises: ValueError if there is nothing to average.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim not in (1, 2) or array.size == 0:
        raise ValueError(f"{name} must be (N,) or (N, S) with N, S >= 1, got shape {array.shape}")
    return array if array.ndim == 1 else array.mean(axis=1)


def resampled(
    values: ArrayLike, statistic: Statistic | None = None, n: int = RESAMPLES, seed: int = 0
) -> Array:
    """The statistic on `n` bootstrap resamples of the rows of `values`, in one vectorised pass.

    Args:
        values: (N,) or (N, K), rows drawn with replacement (K paired columns stay paired).
        statistic: None for the mean over rows; or a function of (n', N[, K]) resamples that takes
            `axis=1` and returns n' numbers, such as np.median.
    Returns: (n,), or (n, K) for the mean of (N, K) values.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim not in (1, 2) or len(array) == 0:
        raise ValueError(f"values must be (N,) or (N, K) with N >= 1, got shape {array.shape}")
    if n < 1:
        raise ValueError(f"n (bootstrap resamples) must be >= 1, got {n}")
    function = np.mean if statistic is None else statistic
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK // array.size)
    parts = []
    for start in range(0, n, rows):
        chosen = rng.integers(0, len(array), size=(min(rows, n - start), len(array)))
        parts.append(np.asarray(function(array[chosen], axis=1), dtype=np.float64))
    return np.concatenate(parts)


def bootstrap_interval(
    values: ArrayLike,
    statistic: Statistic | None = None,
    n: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic over prompts.

    Draws N of the N values with replacement `n` times and takes the middle `level` of what the
    statistic gives. With few values (N < 20) it is a little too narrow; one value gives no width.
    The same seed draws the same rows, whatever the values: intervals of two models are paired.

    Args:
        values: (N,) one per prompt, or (N, K) for a statistic of K paired columns.
        statistic: see `resampled`; None is the mean.
        level: in (0, 1).
    Returns: (low, high).
    Raises: ValueError on empty values or a level outside (0, 1).
    Source: Efron 1979; Efron and Tibshirani 1993, ch. 13.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level}")
    draws = resampled(values, statistic, n, seed)
    if draws.ndim != 1:
        raise ValueError("the statistic must give one number per resample: pass (N,) values")
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def estimate(
    values: ArrayLike, n: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> Estimate:
    """Mean over prompts with its bootstrap interval. values: (N,), or (N, S) answers per prompt."""
    means = per_prompt(values)
    low, high = bootstrap_interval(means, None, n, level, seed)
    return Estimate(float(means.mean()), low, high, len(means))


@dataclass(frozen=True)
class WinRate:
    """How often a is better than b on the same prompt, ties counting 1/2; 0.5 is equality."""

    rate: float  # in [0, 1]
    low: float
    high: float
    ties: float  # share of comparisons that tie, in [0, 1]
    n: int  # prompts

    @property
    def interval(self) -> tuple[float, float]:
        return self.low, self.high

    def to_json(self, a: str = "a", b: str = "b", judge: str = "gold reward") -> dict[str, Any]:
        """A row of the report's `win_rates`; a and b are model keys."""
        return {
            "a": a,
            "b": b,
            "rate": finite(self.rate),
            "interval": [finite(self.low), finite(self.high)],
            "ties": finite(self.ties),
            "n": self.n,
            "judge": judge,
        }


def win_rate(
    a: ArrayLike,
    b: ArrayLike,
    n: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
    tolerance: float = 1e-9,
) -> WinRate:
    """P(a better than b) + P(tie) / 2 from two models' scores on the *same* prompts.

    Args:
        a, b: (N,) scores, or (N, S) and (N, S') for several answers to each prompt; then every
            answer of a meets every answer of b on that prompt.
        tolerance: scores closer than this tie (a sum in another order differs by 1e-16).
    Returns: WinRate; win_rate(b, a).rate = 1 - win_rate(a, b).rate.
    Raises: ValueError when the prompts do not match in number or a score is not finite.
    """
    left, right = (np.asarray(x, dtype=np.float64) for x in (a, b))
    left, right = (x[:, None] if x.ndim == 1 else x for x in (left, right))
    if left.ndim != 2 or right.ndim != 2 or len(left) != len(right) or not left.size * right.size:
        raise ValueError(
            f"win_rate needs scores on the same prompts: got {np.shape(a)} and {np.shape(b)}"
        )
    if not (np.isfinite(left).all() and np.isfinite(right).all()):
        raise ValueError(
            "win_rate got a score that is not finite; leave that prompt out on both sides"
        )
    difference = left[:, :, None] - right[:, None, :]  # (N, S, S')
    tie = np.abs(difference) <= tolerance
    wins = np.where(tie, 0.5, difference > 0).mean(axis=(1, 2))  # (N,)
    low, high = bootstrap_interval(wins, None, n, level, seed)
    return WinRate(float(wins.mean()), low, high, float(tie.mean()), len(wins))


def distinct_n(texts: Sequence[str], n: int = 2) -> float:
    """Distinct n-grams of words over all n-grams of all texts, in [0, 1]; 0 if there is none.

    Low values show a policy that says the same thing to everybody. It falls with the number of
    texts, so compare equal numbers only.
    Source: Li et al. 2016, "A diversity-promoting objective function", §5.
    """
    if n < 1:
        raise ValueError(f"distinct_n needs n >= 1, got {n}")
    grams: list[tuple[str, ...]] = []
    for text in texts:
        words = text.split()
        grams.extend(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    return len(set(grams)) / len(grams) if grams else 0.0
