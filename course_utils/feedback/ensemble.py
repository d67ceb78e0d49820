"""Several reward models instead of one: where they disagree, none knows (Coste et al. 2024).

    members = train_members(policy, tokenizer, pairs, settings, count=3, normalise_on=answers)
    PPOTrainer(policy, cautious(members, "mean_minus_std", std_weight=1.0), ...)

Each member learns from its own bootstrap resample of the pairs and starts from its own head, so
that their errors differ where the pairs say nothing. The joining is `training.ppo.Ensemble`.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from course_utils.errors import CourseError
from course_utils.training.ppo import Ensemble

if TYPE_CHECKING:
    from datasets import Dataset

    from course_utils.training.reward import RewardModel, RewardSettings


def resample(rows: int, seed: int, share: float = 1.0) -> list[int]:
    """Row numbers of a bootstrap resample: round(share · rows) drawn with replacement.

    Source: Efron 1979; "bagging", Breiman 1996.
    """
    if rows < 1 or not 0 < share <= 1:
        raise CourseError(f"resample needs rows >= 1 and a share in (0, 1], got {rows}, {share!r}")
    rng = np.random.default_rng(seed)
    return [int(i) for i in rng.integers(0, rows, size=max(1, round(share * rows)))]


def train_members(
    model: Any,
    tokenizer: Any,
    dataset: "Dataset",
    settings: "RewardSettings",
    count: int = 3,
    share: float = 1.0,
    normalise_on: Sequence[tuple[str, str]] | None = None,
    progress: bool = True,
) -> "list[RewardModel]":
    """`count` reward models, each on its own resample of the pairs and with its own seed.

    Args:
        model: a causal language model whose trunk each member copies.
        share: of the pairs that a member draws, in (0, 1].
        normalise_on: as of `train_reward_model`; without it scores of members cannot be compared.

    Raises: CourseError for fewer than two members.
    """
    from course_utils.training.reward import train_reward_model

    if count < 2:
        raise CourseError(f"an ensemble of {count} cannot disagree: count must be at least 2")
    members = []
    for number in range(count):
        seed = settings.seed + number
        drawn = dataset.select(resample(len(dataset), seed, share))
        own = dataclasses.replace(settings, seed=seed)
        members.append(
            train_reward_model(
                model, tokenizer, drawn, own, progress=progress, normalise_on=normalise_on
            )
        )
    return members


def cautious(
    members: Sequence[Any],
    combine: Literal["mean", "min", "mean_minus_std"] = "mean_minus_std",
    std_weight: float = 1.0,
) -> Ensemble:
    """The members as one reward for PPOTrainer: "mean", "min", or mean - λ · std.

    Raises: CourseError for fewer than two members, another `combine`, or λ < 0.
    """
    if len(members) < 2:
        raise CourseError(
            f"an ensemble needs at least two rewards, got {len(members)}: one alone never disagrees"
        )
    return Ensemble(members, combine=combine, std_weight=std_weight)
