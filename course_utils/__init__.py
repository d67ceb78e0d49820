"""A hands-on course on fine-tuning LLMs and RLHF, and the small package behind it.

Importing this package imports no torch: names are loaded when they are first used.
"""

import importlib
import os
import sys
from typing import Any

__version__ = "0.1.0"

# On a busy machine OpenMP threads that spin while they wait cost 5-12x; both variables are read
# once, when torch loads its OpenMP runtime, so they are set before anything here can import torch.
TOO_LATE_FOR_OPENMP = "torch" in sys.modules and "OMP_WAIT_POLICY" not in os.environ
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

_LAZY = {
    "Lab": "course_utils.lab:Lab",
    "RunLog": "course_utils.training.run:RunLog",
    "PPOConfig": "course_utils.training.ppo:PPOConfig",
    "PPOTrainer": "course_utils.training.ppo:PPOTrainer",
    "RewardModel": "course_utils.training.reward:RewardModel",
    "train_sft": "course_utils.training.sft:train_sft",
    "train_reward_model": "course_utils.training.reward:train_reward_model",
    "train_dpo": "course_utils.training.dpo:train_dpo",
}
_SUBMODULES = (
    "check",
    "data",
    "doctor",
    "evaluation",
    "generation",
    "models",
    "objectives",
    "tiers",
    "training",
    "world",
)

__all__ = ["__version__", *_LAZY, *_SUBMODULES]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        module, attribute = _LAZY[name].split(":")
        return getattr(importlib.import_module(module), attribute)
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
