"""Direct preference optimisation, with TRL's DPOTrainer behind it.

    model = train_dpo(model, tokenizer, preferences, DPOSettings(steps=150, beta=0.1), log=log)

The losses are `course_utils.objectives.dpo_loss`, a test holds the two together.
"""

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from course_utils.training.run import RunLog
from course_utils.training.settings import TrainSettings
from course_utils.training.tokenise import preference_rows
from course_utils.training.trl_common import Stage, common_arguments
from course_utils.training.trl_data import tokenised
from course_utils.training.trl_run import LanguageRunTrainer

if TYPE_CHECKING:
    from datasets import Dataset

METRICS = {
    "rewards/accuracies": "accuracy",
    "rewards/margins": "margin",
    "rewards/chosen": "chosen_reward",
    "rewards/rejected": "rejected_reward",
    "logps/chosen": "chosen_logprob",
    "logps/rejected": "rejected_logprob",
}
_TERM = 0.25  # any ε' in (0, 0.5) would do, see `loss_terms`


@dataclass(frozen=True, kw_only=True)
class DPOSettings(TrainSettings):
    """Settings of `train_dpo`; answers longer than max_length with their prompt are cut."""

    learning_rate: float = 3e-4  # peak, 1/step, > 0
    beta: float = 0.1  # β, pull to the reference, > 0 (ipo: 1/(2β) is the wanted margin per token)
    loss: Literal["sigmoid", "ipo", "robust", "hinge"] = "sigmoid"  # see objectives.dpo_loss
    label_smoothing: float = 0.0  # ε, supposed share of wrong labels, [0, 0.5); sigmoid: cDPO
    precompute_reference: bool = True  # its log-probabilities once, before; no second model in use

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.beta > 0, "beta", "> 0")
        losses = ("sigmoid", "ipo", "robust", "hinge")
        self.require(self.loss in losses, "loss", f"one of {losses}")
        self.require(0 <= self.label_smoothing < 0.5, "label_smoothing", "in [0, 0.5)")
        smooths = self.loss in ("sigmoid", "robust")
        self.require(
            smooths or self.label_smoothing == 0, "label_smoothing", f'0 with loss "{self.loss}"'
        )


def loss_terms(settings: DPOSettings) -> dict[str, Any]:
    """TRL's names for the loss. Its "sigmoid" ignores label_smoothing: cDPO is made of two terms.

    With s = -log σ(u) and f = -log σ(-u), TRL's robust loss is [(1-ε') s - ε' f] / (1-2ε'), so

        (1-ε) s + ε f = (1+w) sigmoid - w robust(ε'),  w = ε (1-2ε') / ε'
    """
    epsilon = settings.label_smoothing
    if settings.loss == "sigmoid" and epsilon:
        weight = epsilon * (1 - 2 * _TERM) / _TERM
        return {
            "loss_type": ["sigmoid", "robust"],
            "loss_weights": [1 + weight, -weight],
            "label_smoothing": _TERM,
        }
    return {"loss_type": [settings.loss], "loss_weights": None, "label_smoothing": epsilon}


def dpo_arguments(
    settings: DPOSettings, steps: int, scratch: str, device: str = "cpu"
) -> dict[str, Any]:
    """What we pass to trl.DPOConfig."""
    return {
        **common_arguments(settings, steps, scratch, device),
        **loss_terms(settings),
        "beta": settings.beta,
        "f_divergence_type": "reverse_kl",
        "disable_dropout": True,
        "precompute_ref_log_probs": settings.precompute_reference,
        "precompute_ref_batch_size": 2 * settings.batch_size,
        "sync_ref_model": False,
    }


def train_dpo(
    model: Any,
    tokenizer: Any,
    dataset: "Dataset",
    settings: DPOSettings,
    log: RunLog | None = None,
    reference: Any = None,
    eval_dataset: "Dataset | None" = None,
    resume: bool = False,
    progress: bool = True,
) -> Any:
    """Trains a causal language model (or PEFT model) on {prompt, chosen, rejected} rows, in place.

    Args:
        dataset, eval_dataset: preference, standard or conversational.
        reference: π_ref, not changed. None: the model as it is now (with PEFT: its adapters as they
            are now), for which no second copy is kept when precompute_reference.
        log: gets a row per step {step, epoch, loss, accuracy and margin (of the implicit rewards
            β log π/π_ref), chosen_reward, rejected_reward, chosen_logprob, rejected_logprob (nats
            per answer), entropy, learning_rate, grad_norm, tokens, seconds, eval_*}.
        resume: see `train_sft`. The model passed must then be the one that the run started with.

    Returns: the model, in evaluation mode.

    Raises:
        DataError: a row is not of that shape, or none fits into max_length.
        RunError: the loss is not finite any more. CheckpointError: see `RunLog`.
    """
    from trl import DPOConfig, DPOTrainer

    rows, eval_rows = tokenised(
        preference_rows, "preference", tokenizer, settings, dataset, eval_dataset
    )
    reference = None if reference is model else reference
    adapters = set(getattr(model, "peft_config", ()))
    if reference is None and not settings.precompute_reference and not adapters:
        reference = copy.deepcopy(model)
    try:
        Stage(
            name="DPO",
            trainer=DPOTrainer,
            mixin=LanguageRunTrainer,
            config=lambda *where: DPOConfig(**dpo_arguments(settings, *where)),
            metrics=METRICS,
            model=model,
            tokenizer=tokenizer,
            rows=rows,
            eval_rows=eval_rows,
            settings=settings,
            log=log,
            resume=resume,
            progress=progress,
            reference=reference,
            has_reference=True,
            arguments={"ref_model": reference},
        ).run()
    finally:
        for added in set(getattr(model, "peft_config", ())) - adapters:  # TRL's "ref"
            model.delete_adapter(added)
    return model
