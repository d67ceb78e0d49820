"""Supervised fine-tuning, with TRL's SFTTrainer behind it.

    model = train_sft(model, tokenizer, demonstrations, SFTSettings(steps=150), log=log)

The loss is the mean negative log-likelihood of the answers' tokens, EOS included (the prompt is
context only): `course_utils.objectives.sft_loss`, a test holds the two together.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from course_utils.training.run import RunLog
from course_utils.training.settings import TrainSettings
from course_utils.training.tokenise import demonstration_rows
from course_utils.training.trl_common import Stage, common_arguments
from course_utils.training.trl_data import tokenised
from course_utils.training.trl_run import LanguageRunTrainer

if TYPE_CHECKING:
    from datasets import Dataset

METRICS = {"mean_token_accuracy": "accuracy"}


@dataclass(frozen=True, kw_only=True)
class SFTSettings(TrainSettings):
    """Settings of `train_sft`; rows longer than max_length are cut at the end."""


def sft_arguments(
    settings: SFTSettings, steps: int, scratch: str, device: str = "cpu"
) -> dict[str, Any]:
    """What we pass to trl.SFTConfig."""
    return {
        **common_arguments(settings, steps, scratch, device),
        "completion_only_loss": True,
        "loss_type": "nll",
        "packing": False,
        "shuffle_dataset": False,
    }


def train_sft(
    model: Any,
    tokenizer: Any,
    dataset: "Dataset",
    settings: SFTSettings,
    log: RunLog | None = None,
    eval_dataset: "Dataset | None" = None,
    resume: bool = False,
    progress: bool = True,
) -> Any:
    """Trains a causal language model (or a PEFT model) on {prompt, completion} rows, in place.

    Args:
        model: its trainable parameters are changed; the tokenizer is not.
        dataset, eval_dataset: prompt-completion, standard or conversational.
        log: gets a row per step {step, epoch, loss (nats per answer token), accuracy (of the next
            token), entropy, learning_rate, grad_norm, tokens (so far), seconds, eval_loss, ...} and
            the checkpoints.
        resume: continue from the log's last checkpoint; on a CPU the weights are bit for bit those
            of an uninterrupted run. Without a checkpoint it starts from the beginning.

    Returns: the model, in evaluation mode.

    Raises:
        DataError: a row is not of that shape, or none fits into max_length.
        RunError: the loss is not finite any more. CheckpointError: see `RunLog`.
    """
    from trl import SFTConfig, SFTTrainer

    rows, eval_rows = tokenised(
        demonstration_rows, "prompt-completion", tokenizer, settings, dataset, eval_dataset
    )
    Stage(
        name="SFT",
        trainer=SFTTrainer,
        mixin=LanguageRunTrainer,
        config=lambda *where: SFTConfig(**sft_arguments(settings, *where)),
        metrics=METRICS,
        model=model,
        tokenizer=tokenizer,
        rows=rows,
        eval_rows=eval_rows,
        settings=settings,
        log=log,
        resume=resume,
        progress=progress,
    ).run()
    return model
