"""The settings of every trainer, read off the one dial: a tier's row, its precision, a seed."""

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

from course_utils.tiers import Stage, TierChoice

if TYPE_CHECKING:
    from course_utils.training.dpo import DPOSettings
    from course_utils.training.ppo import PPOConfig
    from course_utils.training.reward import RewardSettings
    from course_utils.training.sft import SFTSettings


class Settings:
    """What the trainers are given on a tier and machine; `dataclasses.replace` one to change it."""

    def __init__(self, choice: TierChoice, seed: int = 0) -> None:
        self._choice = choice
        self._seed = seed

    def _supervised(self, stage: Stage) -> dict[str, Any]:
        return {
            "steps": stage.steps,
            "batch_size": stage.batch_size,
            "gradient_accumulation": stage.gradient_accumulation,
            "learning_rate": stage.learning_rate,
            "max_length": stage.max_length,
            "precision": self._choice.precision,
            "optimizer": "paged_adamw_8bit" if self._choice.tier.quantized else None,
            "seed": self._seed,
        }

    @functools.cached_property
    def sft(self) -> "SFTSettings":
        from course_utils.training.sft import SFTSettings

        return SFTSettings(**self._supervised(self._choice.tier.sft))

    @functools.cached_property
    def reward(self) -> "RewardSettings":
        from course_utils.training.reward import RewardSettings

        return RewardSettings(**self._supervised(self._choice.tier.reward))

    @functools.cached_property
    def dpo(self) -> "DPOSettings":
        from course_utils.training.dpo import DPOSettings

        stage = self._choice.tier.dpo
        return DPOSettings(**self._supervised(stage), beta=stage.beta)

    @functools.cached_property
    def ppo(self) -> "PPOConfig":
        from course_utils.training.ppo import PPOConfig

        stage = self._choice.tier.ppo
        return PPOConfig(
            steps=stage.iterations,
            rollouts_per_step=stage.rollouts,
            micro_batch=stage.minibatch,
            epochs=stage.epochs,
            learning_rate=stage.learning_rate,
            beta=stage.beta,
            max_prompt_tokens=stage.max_prompt,
            overlong_prompts="truncate",
            max_new_tokens=stage.max_new_tokens,
            temperature=stage.temperature,
            precision=self._choice.precision,
            seed=self._seed,
        )

    @functools.cached_property
    def ppo_low_beta(self) -> "PPOConfig":
        """The PPO run that is pushed too far on purpose: over-optimisation shows in it."""
        stage = self._choice.tier.ppo
        return dataclasses.replace(
            self.ppo,
            beta=stage.low_beta,
            steps=stage.low_beta_iterations,
            learning_rate=stage.low_beta_learning_rate or stage.learning_rate,
        )

    def __repr__(self) -> str:
        tier = self._choice.tier.name
        return f"Settings(tier={tier!r}, seed={self._seed}): .sft .reward .ppo .dpo"
