"""Public datasets of the Hugging Face Hub in the course's shapes: `load_public(name)`.

One file a family says how its rows become {prompt, ...}; the rest is shared:

sources   what is known of a dataset, and the catalogue
fetch     rows over the network: one commit, retries, going on where a connection was cut
trouble   what a failure means and what to do about it
kept      rows loaded before, on disk
load      load_public: rows -> one shape, with what was dropped and why
tiersets  what a tier's lab hands out
"""

import importlib
from typing import Any

_NAMES = {
    "Source": "sources",
    "catalogue": "sources",
    "public_datasets": "sources",
    "load_public": "load",
}

__all__ = [*_NAMES]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
