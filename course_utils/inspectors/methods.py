"""Methods in charts: each has the same name, colour and mark wherever it is drawn.

The mark (circle, square, …) says without colour which method a point belongs to; marks.js draws it.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from course_utils.report.series import LABELS

SHAPES = ("circle", "square", "up", "diamond", "down", "cross", "star", "bar")
_KNOWN = {
    "base": "square",
    "sft": "diamond",
    "best_of_n": "up",
    "ppo": "circle",
    "ppo_low_beta": "down",
    "dpo": "cross",
}
# For methods of other names, in this order: neighbours differ most.
_TONES = ("sft", "ppo", "dpo", "best-of-n", "gold", "ppo-low-beta", "base", "proxy")


def method_key(name: Any) -> str:
    """ "Best of n" and "best-of-n" are the "best_of_n" of the report; other names stay."""
    plain = str(name).strip().lower().replace("-", "_").replace(" ", "_")
    return plain if plain in _KNOWN else str(name)


def methods(keys: Iterable[str], labels: Mapping[str, str] | None = None) -> list[dict[str, str]]:
    """[{key, label, tone, shape}] of each distinct key, in the order given, as the state holds it.

    More than eight methods share colours, then also marks; their names stay apart.
    """
    order = list(dict.fromkeys(keys))
    taken = {"c-" + key.replace("_", "-") for key in order if key in _KNOWN}
    tones = [f"c-{t}" for t in _TONES if f"c-{t}" not in taken] or [f"c-{t}" for t in _TONES]
    used = {_KNOWN[key] for key in order if key in _KNOWN}
    shapes = [s for s in SHAPES if s not in used] or list(SHAPES)
    found, others = [], 0
    for key in order:
        label = (labels or {}).get(key) or LABELS.get(key, key)
        if key in _KNOWN:
            tone, shape = "c-" + key.replace("_", "-"), _KNOWN[key]
        else:
            tone, shape = tones[others % len(tones)], shapes[others % len(shapes)]
            others += 1
        found.append({"key": key, "label": label, "tone": tone, "shape": shape})
    return found
