"""Best-of-n: draw n answers, keep the one that the reward likes most. Alignment without training.

It is the yardstick on the reward-KL frontier: its distance from the base policy is known in closed
form, and one draw of N answers a prompt gives an unbiased estimate for *every* n <= N at once.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from course_utils.evaluation.statistics import Array, Estimate, estimate
from course_utils.objectives.kl import best_of_n_kl


def subset_weights(samples: int) -> Array:
    """W[n - 1, k - 1]: P(the best of n drawn from N samples has rank k from below).

        W = C(k - 1, n - 1) / C(N, n)      (the other n - 1 come from the k - 1 below)

    The n are drawn without replacement.

    Returns: (N, N), rows sum to 1.
    Source: Nakano et al. 2021 (WebGPT), appendix I; Gao et al. 2022, §2.
    """
    if samples < 1:
        raise ValueError(f"best-of-n needs at least one sample, got {samples}")
    rows = [
        [math.comb(k - 1, n - 1) / math.comb(samples, n) for k in range(1, samples + 1)]
        for n in range(1, samples + 1)
    ]
    return np.array(rows)


def expected_best(reward: ArrayLike, score: ArrayLike | None = None) -> Array:
    """Unbiased estimate of E[score of the answer with the highest reward among n], for all n <= N.

    Averages over *all* subsets of size n instead of looking at one. Answers with equal reward share
    their ranks (a tie is broken by a coin).

    Args:
        reward: (P, N) what selects, for N samples to each of P prompts.
        score: (P, N) what is measured on the selected one, such as gold; None: the reward.
    Returns: (P, N); column n - 1 is best-of-n. Column 0 is the plain mean.
    """
    selector = np.asarray(reward, dtype=np.float64)
    measured = selector if score is None else np.asarray(score, dtype=np.float64)
    if selector.ndim != 2 or selector.shape != measured.shape or not selector.size:
        raise ValueError(
            f"reward and score must both be (P, N): got {selector.shape} and {measured.shape}"
        )
    if not np.isfinite(selector).all():
        raise ValueError("best-of-n cannot rank a reward that is not finite")
    order = np.argsort(selector, axis=1, kind="stable")
    ranked = np.take_along_axis(measured, order, axis=1)  # (P, N), lowest reward first
    sorted_reward = np.take_along_axis(selector, order, axis=1)
    for row, keys in zip(ranked, sorted_reward, strict=True):
        starts = np.flatnonzero(np.diff(keys, prepend=-np.inf) > 0)  # first of each group of ties
        sizes = np.diff(np.append(starts, len(keys)))
        row[:] = np.repeat(np.add.reduceat(row, starts) / sizes, sizes)
    return ranked @ subset_weights(selector.shape[1]).T


@dataclass(frozen=True)
class BestOfN:
    """Best-of-n for n = 1..N from N samples a prompt; lists are indexed by n - 1."""

    sizes: tuple[int, ...]  # n
    kl: tuple[float, ...]  # log n - (n - 1) / n, nats per answer: the bound on the distance moved
    reward: tuple[Estimate, ...]  # expected reward of the chosen answer
    gold: tuple[Estimate, ...] | None  # expected gold reward of the chosen answer
    chosen: tuple[str, ...]  # per prompt, the best of all N by reward
    chosen_index: tuple[int, ...]

    def frontier(self, sizes: Sequence[int] = (2, 4, 8, 16)) -> list[dict[str, Any]]:
        """Points for the report's reward-KL frontier; empty without gold."""
        if self.gold is None:
            return []
        return [
            {
                "method": "best_of_n",
                "kl": self.kl[n - 1],
                "gold": self.gold[n - 1].mean,
                "interval": list(self.gold[n - 1].interval),
                "label": f"n = {n}",
            }
            for n in sizes
            if n <= len(self.sizes)
        ]


def best_of_n(
    completions: Sequence[Sequence[str]],
    reward: ArrayLike,
    gold: ArrayLike | None = None,
    seed: int = 0,
) -> BestOfN:
    """Chosen answers and expected scores for every n.

    Args:
        completions: P lists of N samples.
        reward: (P, N) scores that choose. gold: (P, N) true scores.
        seed: of the bootstrap over prompts.
    """
    selector = np.asarray(reward, dtype=np.float64)
    shape = (len(completions), len(completions[0]) if completions else 0)
    if selector.shape != shape or any(len(row) != shape[1] for row in completions):
        raise ValueError(
            f"{shape[0]} prompts with {shape[1]} samples, but rewards {selector.shape}"
        )
    by_reward = expected_best(selector)
    by_gold = None if gold is None else expected_best(selector, gold)
    best = selector.argmax(axis=1)
    sizes = tuple(range(1, shape[1] + 1))

    def columns(values: Array) -> tuple[Estimate, ...]:
        return tuple(estimate(values[:, n - 1], seed=seed) for n in sizes)

    return BestOfN(
        sizes=sizes,
        kl=tuple(best_of_n_kl(n) for n in sizes),
        reward=columns(by_reward),
        gold=None if by_gold is None else columns(by_gold),
        chosen=tuple(row[i] for row, i in zip(completions, best, strict=True)),
        chosen_index=tuple(int(i) for i in best),
    )
