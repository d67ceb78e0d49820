"""The numbers behind RewardInspector: histograms, calibration at several scales, fitted slopes."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
BARS = 28  # of a histogram, about
# Factors on the reward, from 1/4 to 4: the calibration slider's places.
SCALES = [float(f"{2 ** (k / 8):.3g}") for k in range(-16, 17)]


def histogram(*samples: Array) -> dict[str, Any]:
    """Counts of each sample in the same bins, of a round width and with 0 as an edge.

    Args:
        samples: (N,) finite numbers each.
    Returns: {"edges": [B + 1 numbers], "counts": [[B counts] for each sample]}; B <= 2 BARS.
    """
    both = np.concatenate(samples)
    if not both.size:
        return {"edges": [], "counts": [[] for _ in samples]}
    low, high = np.quantile(both, [0.002, 0.998])  # a few outliers share the outer bins
    span = float(high - low) or max(abs(float(high)), 1.0) * 0.1
    power = 10.0 ** math.floor(math.log10(span / BARS))
    width = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= span / BARS * 0.999)
    first, last = math.floor(low / width), math.floor(high / width) + 1
    edges = np.arange(first, last + 1) * width
    inside = [np.clip(s, edges[0], np.nextafter(edges[-1], -np.inf)) for s in samples]
    counts = [np.histogram(s, edges)[0].tolist() for s in inside]
    return {"edges": [float(f"{e:.6g}") for e in edges], "counts": counts}


def fit(x: Array, y: Array) -> dict[str, float | int] | None:
    """The least-squares line y = slope x + intercept and Pearson's r.

    Returns: {slope, intercept, r, n}; None with less than 3 points or without variation in x.
    r is 0 where y does not vary.
    """
    if len(x) < 3 or np.ptp(x) == 0:
        return None
    dx, dy = x - x.mean(), y - y.mean()
    slope = float(dx @ dy / (dx @ dx))
    spread = math.sqrt(float(dx @ dx) * float(dy @ dy))
    return {
        "slope": slope,
        "intercept": float(y.mean() - slope * x.mean()),
        "r": float(dx @ dy) / spread if spread else 0.0,
        "n": len(x),
    }


def best_scale(margins: Array, most: float = SCALES[-1]) -> float | None:
    """The factor s in [1 / most, most] under which the labels are likeliest: max Σ log σ(s m).

    The log-likelihood is concave in s, so bisection on its slope Σ m σ(-s m) finds the maximum.
    With no mistake in the data no finite s is best, and the answer is `most`.

    Source: temperature scaling, Guo et al. 2017, §4.2.
    """
    if not margins.size or not margins.any():
        return None

    def slope(s: float) -> float:
        return float((margins * np.exp(-np.logaddexp(0.0, s * margins))).sum())

    low, high = 1.0 / most, most
    if slope(low) <= 0:
        return low
    if slope(high) >= 0:
        return high
    for _ in range(50):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return 0.5 * (low + high)


def lengths(rows: Array) -> dict[str, Any] | None:
    """How reward goes with length; rows (N, 4): scores and lengths of chosen and rejected.

    Returns: None without lengths, else {"answers": fit over all 2N answers, "within": fit of the
    margin on how much longer the chosen answer is (the prompt drops out), "longer_preferred": of
    the pairs of unequal length, the share in which the longer one gets the higher reward,
    "longer_chosen": and in which it is the chosen one}.
    """
    if rows.shape[1] < 4:
        return None
    longer = rows[:, 2] - rows[:, 3]
    margin = rows[:, 0] - rows[:, 1]
    unequal = longer != 0
    agrees = np.sign(margin[unequal]) * np.sign(longer[unequal])  # 1 the longer one, 0 a tie
    return {
        "answers": fit(rows[:, 2:].ravel(), rows[:, :2].ravel()),
        "within": fit(longer, margin),
        "longer_preferred": float((agrees + 1).mean() / 2) if unequal.any() else None,
        "longer_chosen": float((longer[unequal] > 0).mean()) if unequal.any() else None,
    }


def all_of(rows: Array, bins: int) -> dict[str, Any]:
    """All that the charts draw of N pairs; rows (N, 2) or (N, 4), finite."""
    margins = rows[:, 0] - rows[:, 1]
    found: dict[str, Any] = {
        "n": len(rows),
        "scales": SCALES,
        "scores": histogram(rows[:, 0], rows[:, 1]),
        "margins": histogram(margins),
        "calibrations": [],
        "accuracy": None,
        "ties": 0,
        "margin": None,
        "best_scale": best_scale(margins),
        "length": lengths(rows) if len(rows) else None,
    }
    if not len(rows):
        return found
    from course_utils.evaluation.preferences import calibration, pair_accuracy  # brings torch

    right = pair_accuracy(rows[:, 0], rows[:, 1])
    found |= {"accuracy": right.accuracy.to_json(), "ties": right.ties}
    found["margin"] = float(margins.mean())
    for scale in SCALES:
        curve = calibration(margins, bins=bins, scale=scale).to_json()
        drawn = [[b["confidence"], b["accuracy"], b["count"]] for b in curve["bins"] if b["count"]]
        found["calibrations"].append(
            {"scale": scale, "ece": curve["ece"], "brier": curve["brier"], "bins": drawn}
        )
    return found
