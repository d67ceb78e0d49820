"""How good a judge is: accuracy on preference pairs, and whether its odds come true.

A reward model says P(a preferred to b) = sigmoid(r(a) - r(b)) (Bradley and Terry 1952). Accuracy
asks only for the sign of the margin; calibration asks whether "80% sure" comes true four times in
five.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from course_utils.evaluation.statistics import Array, Estimate, estimate, finite

Reward = Callable[[list[str], list[str]], Sequence[float]]
TIE = 1e-9  # margins closer to 0 than this are ties
_BATCH = 256  # pairs scored at once


def text_of(turns: Any, role: str) -> str:
    """The words of one side of an example: a string as it is, or the last message of `role`."""
    if isinstance(turns, str):
        return turns
    spoken = [turn["content"] for turn in turns if turn["role"] == role]
    if not spoken:
        raise ValueError(f"no message of role {role!r} in {turns!r}")
    return spoken[-1]


@dataclass(frozen=True)
class PairAccuracy:
    """A reward model on preference pairs; `margins` (N,) is r(chosen) - r(rejected)."""

    accuracy: Estimate  # share ranked as the annotator did, ties counting 1/2
    ties: int  # pairs with equal scores
    margins: Array

    @property
    def pairs(self) -> int:
        return len(self.margins)

    def to_json(self) -> dict[str, Any]:
        """The report's `reward_model`, without the calibration."""
        return {"accuracy": self.accuracy.to_json(), "ties": self.ties, "pairs": self.pairs}


def pair_accuracy(chosen: ArrayLike, rejected: ArrayLike, seed: int = 0) -> PairAccuracy:
    """Accuracy from the scores of both sides of N pairs, each (N,); ties count 1/2.

    A reward model that says the same of everything gets 0.5, not 0 or 1.
    """
    left, right = np.asarray(chosen, dtype=np.float64), np.asarray(rejected, dtype=np.float64)
    if left.shape != right.shape or left.ndim != 1 or not left.size:
        raise ValueError(f"scores of pairs must be (N,) each, got {left.shape} and {right.shape}")
    margins = left - right
    if not np.isfinite(margins).all():
        where = int(np.flatnonzero(~np.isfinite(margins))[0])
        raise ValueError(
            f"pair {where} has a score that is not finite: {left[where]}, {right[where]}"
        )
    tie = np.abs(margins) <= TIE
    right_way = np.where(tie, 0.5, margins > 0)
    return PairAccuracy(estimate(right_way, seed=seed), int(tie.sum()), margins)


def reward_model_accuracy(
    reward: Reward, pairs: Iterable[Mapping[str, Any]], seed: int = 0
) -> PairAccuracy:
    """Scores both answers of every preference pair and counts how often the chosen one gets more.

    Args:
        reward: (prompts, completions) -> one score each.
        pairs: rows {prompt, chosen, rejected}, strings or message lists: a `datasets.Dataset`
            of held-out preferences, say.
    """
    rows = list(pairs)
    prompts = [text_of(row["prompt"], "user") for row in rows]
    scores: dict[str, list[float]] = {"chosen": [], "rejected": []}
    for start in range(0, len(rows), _BATCH):
        for side, kept in scores.items():
            answers = [text_of(row[side], "assistant") for row in rows[start : start + _BATCH]]
            kept.extend(float(s) for s in reward(prompts[start : start + _BATCH], answers))
    return pair_accuracy(scores["chosen"], scores["rejected"], seed)


@dataclass(frozen=True)
class Bin:
    """One bin of a reliability diagram: what was predicted in [low, high), and what happened."""

    low: float
    high: float
    confidence: float  # mean predicted probability, NaN if empty
    accuracy: float  # how often it came true, NaN if empty
    count: int


@dataclass(frozen=True)
class Calibration:
    """Reliability bins and their summary. A perfectly calibrated judge has ece -> 0 as N grows."""

    bins: tuple[Bin, ...]
    ece: float  # expected calibration error: sum of count/N |accuracy - confidence|, in [0, 1]
    brier: float  # mean (P - outcome)^2; 0.25 is what "always 50%" gets
    n: int

    def to_json(self) -> dict[str, Any]:
        rows = [
            {**vars(b), "confidence": finite(b.confidence), "accuracy": finite(b.accuracy)}
            for b in self.bins
        ]
        return {"bins": rows, "ece": finite(self.ece), "brier": finite(self.brier), "n": self.n}


def calibration(
    margins: ArrayLike,
    outcomes: ArrayLike | None = None,
    bins: int = 10,
    scale: float = 1.0,
) -> Calibration:
    """Reliability of P(first preferred) = sigmoid(scale * margin).

    Args:
        margins: (N,) r(first) - r(second).
        outcomes: (N,) 1 where the first was preferred, 0 where the second, or a probability. None
            when the first is always the chosen one: then each pair is read from the side that the
            model prefers, P = sigmoid(|margin|) in [1/2, 1], and comes true if the margin was > 0.
        bins: equal-width bins over [0, 1], or [1/2, 1] when outcomes is None.
        scale: multiplies the margins; the rewards' standard deviation if they were normalised.
    Returns: Calibration. With N pairs even a perfect judge gets an ece of up to 0.4 sqrt(bins / N).
    Raises: ValueError for other shapes, or numbers that are not finite.
    Source: Naeini et al. 2015; Guo et al. 2017, §2.
    """
    margin = np.asarray(margins, dtype=np.float64)
    if margin.ndim != 1 or not margin.size or not np.isfinite(margin).all() or bins < 1:
        raise ValueError(f"calibration needs (N,) finite margins and bins >= 1, got {margin.shape}")
    margin = margin * scale
    if outcomes is None:
        came_true = np.where(np.abs(margin) <= TIE, 0.5, margin > 0)
        margin, lowest = np.abs(margin), 0.5
    else:
        came_true, lowest = np.asarray(outcomes, dtype=np.float64), 0.0
        if came_true.shape != margin.shape:
            raise ValueError(f"{margin.shape} margins but {came_true.shape} outcomes")
    predicted = np.exp(-np.logaddexp(0.0, -margin))  # sigmoid without overflow
    edges = np.linspace(lowest, 1.0, bins + 1)
    place = np.clip(np.searchsorted(edges, predicted, side="right") - 1, 0, bins - 1)
    found, ece = [], 0.0
    for b in range(bins):
        inside = place == b
        count = int(inside.sum())
        confidence = float(predicted[inside].mean()) if count else float("nan")
        accuracy = float(came_true[inside].mean()) if count else float("nan")
        found.append(Bin(float(edges[b]), float(edges[b + 1]), confidence, accuracy, count))
        ece += count / len(margin) * abs(accuracy - confidence) if count else 0.0
    brier = float(np.mean((predicted - came_true) ** 2))
    return Calibration(tuple(found), float(ece), brier, len(margin))
