"""Feedback that no person gave: AI judges, written principles, executed checks, several opinions.

judge         who prefers which of two answers: a reader of principles, a real chat model
constitution  principles as data; critique, revision, and the preference pairs they make
verifiable    a restricted interpreter, and the reward of a right result
ensemble      several reward models as one cautious reward
"""

import importlib
from typing import Any

_LAZY = {
    "ConstitutionJudge": "judge",
    "LanguageModelJudge": "judge",
    "agreement_table": "judge",
    "CONSTITUTION": "constitution",
    "Constitution": "constitution",
    "Critique": "constitution",
    "Principle": "constitution",
    "conduct": "constitution",
    "critique": "constitution",
    "revise": "constitution",
    "revision_pairs": "constitution",
    "Refused": "verifiable",
    "evaluate": "verifiable",
    "verifiable_reward": "verifiable",
    "cautious": "ensemble",
    "train_members": "ensemble",
}

__all__ = sorted(_LAZY)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
