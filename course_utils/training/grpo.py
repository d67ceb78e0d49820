"""Group relative policy optimisation (Shao et al. 2024), with TRL's GRPOTrainer behind it.

    model = train_grpo(model, tokenizer, prompts, reward, GRPOSettings(steps=40), log=log)

Each prompt is answered several times, and an answer's advantage is how much better it did than its
siblings: no value model, and with a reward that is *executed* no reward model either. The loss is
`course_utils.objectives.grpo_loss`, the advantages are `group_advantages`; a test holds them
together. PPOTrainer is not used here: it asks each prompt once and knows no groups.
"""

import copy
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from course_utils.errors import CourseError, RunError
from course_utils.training.ppo.rewards import Reward, checked_scores, reward_name
from course_utils.training.ppo.rollout import as_prompts, prompt_text
from course_utils.training.run import RunLog
from course_utils.training.settings import TrainSettings
from course_utils.training.trl_common import (
    as_found,
    common_arguments,
    own_randomness,
    quiet_libraries,
)
from course_utils.training.trl_data import Data
from course_utils.training.trl_run import (
    COMMON_METRICS,
    Course,
    LanguageRunTrainer,
    RunTrainer,
    course_trainer,
)

METRICS = {
    "reward": "reward",
    "reward_std": "reward_std",
    "frac_reward_zero_std": "silent_groups",  # all answers equally good: nothing to learn from
    "completions/mean_length": "completion_tokens",
    "completions/clipped_ratio": "cut_rate",
    "clip_ratio/region_mean": "clip_fraction",
}
Watch = Callable[[Tensor, Tensor], None]  # (rewards (N, G), advantages (N, G)) of a step
_UNKNOWN = ("max_length", "dataset_num_proc")  # of the common arguments, to GRPOConfig


@dataclass(frozen=True, kw_only=True)
class GRPOSettings(TrainSettings):
    """Settings of `train_grpo`. There is no β: TRL would load a reference from the Hub for it, and
    a reward that is executed cannot be fooled the way a reward model can. Runs are not resumed."""

    learning_rate: float = 2e-4  # peak, 1/step, > 0
    steps: int | None = 40  # optimizer steps; each samples batch_size answers anew
    batch_size: int = 96  # answers per step, a multiple of group_size
    group_size: int = 8  # answers per prompt, >= 2
    max_new_tokens: int = 24  # of an answer, >= 1
    temperature: float = 1.0  # of sampling, > 0
    clip: float = 0.2  # ε, in (0, 1]
    scale: bool = True  # divide by the group's standard deviation; False: Dr. GRPO's advantages
    loss: Literal["grpo", "bnpo", "dr_grpo"] = "grpo"  # see objectives.grpo_loss
    save_every: int = 0  # must stay 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.steps is not None, "steps", ">= 1: GRPO counts steps, not epochs")
        self.require(self.group_size >= 2, "group_size", ">= 2: one answer has no siblings")
        self.require(
            self.batch_size % self.group_size == 0,
            "batch_size",
            f"a multiple of group_size = {self.group_size}",
        )
        self.require(self.max_new_tokens >= 1, "max_new_tokens", ">= 1")
        self.require(self.temperature > 0, "temperature", "> 0, or all answers are the same")
        self.require(0 < self.clip <= 1, "clip", "in (0, 1]")
        self.require(
            self.loss in ("grpo", "bnpo", "dr_grpo"), "loss", '"grpo", "bnpo" or "dr_grpo"'
        )
        self.require(self.save_every == 0, "save_every", "0: such runs are not resumed")


def grpo_arguments(
    settings: GRPOSettings, steps: int, scratch: str, device: str = "cpu"
) -> dict[str, Any]:
    """What we pass to trl.GRPOConfig."""
    common = common_arguments(settings, steps, scratch, device)
    return {
        **{name: value for name, value in common.items() if name not in _UNKNOWN},
        "num_generations": settings.group_size,
        "steps_per_generation": settings.gradient_accumulation,  # one update per batch of answers
        "num_iterations": 1,
        "max_completion_length": settings.max_new_tokens,
        # the policy's whole distribution: the log-probability is then that of what was sampled
        "temperature": settings.temperature,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": None,
        "repetition_penalty": 1.0,
        "beta": 0.0,
        "epsilon": settings.clip,
        "epsilon_high": None,
        "loss_type": settings.loss,
        "scale_rewards": "group" if settings.scale else "none",
        "mask_truncated_completions": False,
        "disable_dropout": True,
        "use_vllm": False,
        "log_completions": False,
    }


class GroupRunTrainer(LanguageRunTrainer):
    """The order of the data is TRL's own here: it repeats each prompt for its group."""

    watch: Watch | None = None
    _scores: Any = None

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Any:
        self._scores = super()._calculate_rewards(*args, **kwargs)  # type: ignore[misc]
        return self._scores

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        made = super()._generate_and_score_completions(inputs)  # type: ignore[misc]
        if self.watch is not None:
            groups = (-1, self.args.num_generations)
            self.watch(self._scores.sum(dim=1).view(groups), made["advantages"].view(groups))
        return made

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return super(RunTrainer, self)._get_train_sampler(train_dataset)  # type: ignore[misc]


def as_trl_reward(reward: Reward) -> Any:
    """Our reward (prompts, completions) -> numbers, called as TRL calls one."""

    def scores(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
        asked = [prompt_text(prompt) for prompt in prompts]
        said = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
        return checked_scores(reward, asked, said, reward_name(reward))

    scores.__name__ = reward_name(reward)
    return scores


def train_grpo(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Any],
    reward: Reward,
    settings: GRPOSettings,
    log: RunLog | None = None,
    progress: bool = True,
    watch: Watch | None = None,
) -> Any:
    """Trains a causal language model (or PEFT model) on a reward, in place.

    Args:
        prompts: strings (put through the chat template), message lists, or a Dataset with "prompt".
        reward: a function (prompts, completions) -> one number per answer.
        log: gets a row per step {step, epoch, loss, reward, reward_std, silent_groups (share of
            groups whose answers all scored the same), completion_tokens, cut_rate, clip_fraction,
            entropy, learning_rate, grad_norm, tokens, seconds}.
        watch: called at every step with the rewards (N, G) and TRL's advantages (N, G).

    Returns: the model, in evaluation mode.

    Raises:
        CourseError: fewer prompts than a step asks, or a reward that is no number.
        RunError: the loss is not finite any more, or the log has rows already.
    """
    import torch
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    asked = [
        [{"role": "user", "content": p}] if isinstance(p, str) else p for p in as_prompts(prompts)
    ]
    groups = settings.batch_size * settings.gradient_accumulation // settings.group_size
    if len(asked) < groups:
        raise CourseError(
            f"a step asks {groups} prompts {settings.group_size} times each, and there are only "
            f"{len(asked)}; lower batch_size or raise group_size"
        )
    if log is not None and log.rows:
        raise RunError(f"{log.directory} has rows already; pass a log in a new directory")
    steps = settings.steps or 1
    seen: list[Any] = [{} for _ in range(len(asked) * settings.group_size)]  # rows of an epoch
    course = Course(
        name="GRPO",
        settings=settings,
        data=Data(rows=seen, lengths=[], steps=steps, order=[]),
        metrics={**COMMON_METRICS, **METRICS},
        log=log,
        progress=progress,
        start={},
        evaluates=False,
    )
    device = "cuda" if torch.cuda.is_available() else model.device.type
    quiet = own_randomness(), as_found(model), quiet_libraries(progress)
    with quiet[0], quiet[1], quiet[2], tempfile.TemporaryDirectory(prefix="course-") as scratch:
        trainer = course_trainer(GRPOTrainer, GroupRunTrainer)(
            course=course,
            model=model,
            reward_funcs=[as_trl_reward(reward)],
            args=GRPOConfig(**grpo_arguments(settings, steps, scratch, device)),
            train_dataset=Dataset.from_list([{"prompt": p} for p in asked]),
            processing_class=copy.deepcopy(tokenizer),  # TRL writes into it
        )
        trainer.watch = watch
        try:
            trainer.train()
        finally:
            trainer.run_callback.close()
    return model
