"""Reward modelling, with TRL's RewardTrainer behind it.

    reward = train_reward_model(policy, tokenizer, preferences, RewardSettings(steps=150))
    reward(["explain black holes"], ["they are ..."])  # [0.7]

The loss is Bradley-Terry's, -log σ(r(chosen) - r(rejected)):
`course_utils.objectives.bradley_terry_loss`, a test holds the two together.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from course_utils.errors import CourseError
from course_utils.training.reward_model import RewardModel, sequence_classifier
from course_utils.training.run import RunLog
from course_utils.training.settings import TrainSettings
from course_utils.training.tokenise import Row, comparison_rows
from course_utils.training.trl_common import Stage, common_arguments
from course_utils.training.trl_data import tokenised
from course_utils.training.trl_run import RunTrainer

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["RewardModel", "RewardSettings", "train_reward_model"]

METRICS = {
    "accuracy": "accuracy",
    "margin": "margin",
    "mean_reward": "score_mean",
    "min_reward": "score_min",
    "max_reward": "score_max",
}


@dataclass(frozen=True, kw_only=True)
class RewardSettings(TrainSettings):
    """Settings of `train_reward_model`; pairs with a side longer than max_length are dropped."""

    centre: float = 0.0  # weight of (r(chosen) + r(rejected))², which keeps scores near 0; >= 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.centre >= 0, "centre", ">= 0")


def reward_arguments(
    settings: RewardSettings, steps: int, scratch: str, device: str = "cpu"
) -> dict[str, Any]:
    """What we pass to trl.RewardConfig."""
    return {
        **common_arguments(settings, steps, scratch, device),
        "disable_dropout": True,
        "center_rewards_coefficient": settings.centre or None,
    }


def with_distinct_pad(tokenizer: Any, rows: Sequence[Row]) -> Any:
    """A copy of the tokenizer whose padding id ends no row.

    Transformers' classifier looks for the last token that is not the padding id: were that the id
    of EOS, it would score the token before it.
    """
    last = {ids[-1] for row in rows for ids in row.values()}
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in last:
        return copy.deepcopy(tokenizer)
    special = [i for i in tokenizer.all_special_ids if i not in last]
    free = special or [i for i in range(len(tokenizer)) if i not in last]
    if not free:
        raise CourseError("every token of the vocabulary ends some row: none is left for padding")
    other = copy.deepcopy(tokenizer)
    other.pad_token = tokenizer.convert_ids_to_tokens(free[0])
    return other


def train_reward_model(
    model: Any,
    tokenizer: Any,
    dataset: "Dataset",
    settings: RewardSettings,
    log: RunLog | None = None,
    eval_dataset: "Dataset | None" = None,
    resume: bool = False,
    progress: bool = True,
    normalise_on: Sequence[tuple[str, str]] | None = None,
) -> RewardModel:
    """Trains a reward model on {prompt, chosen, rejected} rows.

    Args:
        model: a causal language model, whose trunk is copied (it is not changed itself), or a
            sequence classifier with one output (also in PEFT), which is trained in place.
        dataset, eval_dataset: preference, standard or conversational.
        log: gets a row per step {step, epoch, loss, accuracy and margin (of the batch's pairs, raw
            scores), score_mean/_min/_max (raw), learning_rate, grad_norm, tokens, seconds, eval_*}.
        resume: see `train_sft`.
        normalise_on: (prompt, completion) texts, usually the SFT policy's own answers, that get
            mean 0 and standard deviation 1 (Ziegler et al. 2019, §2). None: raw scores.

    Returns: the RewardModel.

    Raises:
        DataError: a row is not of that shape, or none fits into max_length.
        RunError: the loss is not finite any more. CheckpointError: see `RunLog`.
    """
    from trl import RewardConfig, RewardTrainer

    from course_utils.data.shapes import detect

    rows, eval_rows = tokenised(
        comparison_rows, "preference", tokenizer, settings, dataset, eval_dataset
    )
    classifies = hasattr(model, "score")  # of a sequence classifier, also inside PEFT
    classifier = model if classifies else sequence_classifier(model, settings.seed)
    Stage(
        name="reward model",
        trainer=RewardTrainer,
        mixin=RunTrainer,
        config=lambda *where: RewardConfig(**reward_arguments(settings, *where)),
        metrics=METRICS,
        model=classifier,
        tokenizer=with_distinct_pad(tokenizer, rows + (eval_rows or [])),
        rows=rows,
        eval_rows=eval_rows,
        settings=settings,
        log=log,
        resume=resume,
        progress=progress,
    ).run()
    reward = RewardModel(classifier, tokenizer)
    reward.conversational = detect(dataset).conversational
    reward.normalisation = type(reward.normalisation)()
    if normalise_on is not None:
        reward.fit_normalisation(normalise_on)
    return reward
