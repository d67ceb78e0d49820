"""Data in TRL's four shapes: the user's files, the world's datasets, and their validator.

Names are loaded when they are first used; `datasets` is imported only by what needs it.
"""

import importlib
from typing import Any

_NAMES = {
    "KINDS": "shapes",
    "Shape": "shapes",
    "detect": "shapes",
    "validate": "shapes",
    "to_conversational": "shapes",
    "to_standard": "shapes",
    "load_file": "files",
    "load_prompts": "files",
    "load_demonstrations": "files",
    "load_preferences": "files",
    "LoadReport": "report",
}
_SUBMODULES = ("files", "report", "shapes", "worldsets")

__all__ = [*_NAMES, *_SUBMODULES]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
