"""Trainers and the one shape of their runs. Nothing heavy is imported until it is used.

`run.py` holds RunLog; `sft.py`, `reward.py` and `dpo.py` have TRL behind them; `ppo/` is ours.

A row of `rollouts.jsonl` is one completion of one step: {step, prompt, completion, tokens (list of
str), token_ids, logprobs, ref_logprobs, kl, values, advantages, rewards (lists, one entry per
completion token), score (float), gold (float or null)}.
"""

import importlib
from typing import Any

_LAZY = {
    "RunLog": "run",
    "SFTSettings": "sft",
    "train_sft": "sft",
    "RewardSettings": "reward",
    "RewardModel": "reward",
    "train_reward_model": "reward",
    "DPOSettings": "dpo",
    "train_dpo": "dpo",
    "PPOConfig": "ppo",
    "PPOTrainer": "ppo",
}

__all__ = sorted(_LAZY)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
