"""The embedded world: a small universe whose every fact is known, so true quality can be computed.

Names are loaded when first used; only the tokenizer and the base model need torch or transformers.
"""

import importlib
from typing import Any

from course_utils.world.families import LECTURE_PROMPTS, Prompt, find, prompts

_LAZY = {
    "Annotator": "annotators",
    "GoldScore": "gold",
    "gold_reward": "gold",
    "base_corpus": "corpus",
    "plain_corpus": "corpus",
    "demonstrations": "corpus",
    "domain_corpus": "domains",
    "load_tokenizer": "tokenizer",
    "load_base_model": "model",
}
_SUBMODULES = (
    "annotators",
    "answers",
    "corpus",
    "domains",
    "gold",
    "knowledge",
    "model",
    "phrases",
    "styles",
)

__all__ = ["LECTURE_PROMPTS", "Prompt", "find", "prompts", *_LAZY, *_SUBMODULES]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
