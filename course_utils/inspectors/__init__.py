"""Inspectors: widgets that show a run, token by token, in a notebook, on a page, or as text.

    watch(run)                     # in the cell before training: the dashboard, live
    RolloutInspector(run)          # answers by step, tokens coloured by KL, advantage …
    MaskViewer(rows, tokenizer)    # which tokens the loss counts, and how much

They read a RunLog or plain data and never import a trainer. README.md says how to write one.
"""

import importlib
from typing import Any

_LAZY = {
    "Inspector": "base",
    "RunInspector": "runs",
    "watch": "runs",
    "RolloutInspector": "rollouts",
    "RewardKLDashboard": "dashboard",
    "MaskViewer": "mask",
    "PreferenceLabeller": "labeller",
    "RewardInspector": "rewards",
    "FrontierViewer": "frontier",
    "frontier_points": "frontier",
    "AnswerComparer": "answers",
    "ForgettingPlot": "forgetting",
    "AdapterComposer": "composer",
    "PPOClipExplorer": "explorers.ppo_clip",
    "KLExplorer": "explorers.kl_estimators",
    "DPOExplorer": "explorers.dpo_beta",
    "BradleyTerryExplorer": "explorers.bradley_terry",
    "LoRAExplorer": "explorers.lora_rank",
    "NF4Explorer": "explorers.nf4_levels",
    "MemoryExplorer": "explorers.memory",
    "KLControlExplorer": "explorers.kl_control",
}

__all__ = sorted(_LAZY)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
