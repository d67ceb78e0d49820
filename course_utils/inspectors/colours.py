"""Colour scales: a number becomes how strong the colour is, and on which side of zero.

One scale holds for a whole run, so equal colours mean equal numbers on every step; it goes into the
state, and kit.js (`strength`, `legend`) draws with the very same numbers.
"""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any, Literal

MOST = 50_000  # values looked at; of more, every n-th
SHARE = 0.98  # of the values lie within the limit; the few beyond get the full colour


@dataclasses.dataclass(frozen=True)
class Scale:
    """How the values of one quantity are coloured."""

    label: str  # on the button: "KL"
    help: str  # one sentence below the legend: what it is, and what the colours say
    limit: float  # > 0, in the quantity's unit: where the colour is full
    kind: Literal["diverging", "sequential"] = "diverging"  # around 0, or from 0 up
    unit: str = ""
    missing: bool = False  # some values are not finite numbers: the legend says how they look

    @classmethod
    def of(cls, values: Iterable[Any], label: str, help: str, **options: Any) -> "Scale":
        """The scale that fits `values`; entries that are not finite numbers get their own look."""
        sizes, missing = [], False
        for value in values:
            if isinstance(value, int | float) and math.isfinite(value):
                sizes.append(abs(value))
            else:
                missing = True
        sizes = sorted(sizes[:: 1 + len(sizes) // MOST])
        limit = sizes[min(len(sizes) - 1, int(SHARE * len(sizes)))] if sizes else 1.0
        limit = float(f"{limit or (sizes[-1] if sizes else 1.0) or 1.0:.3g}")
        return cls(label=label, help=help, limit=limit, missing=missing, **options)

    def strength(self, value: Any) -> float | None:
        """In [-1, 1] (sequential: [0, 1]); None for what is not a finite number."""
        if not isinstance(value, int | float) or not math.isfinite(value):
            return None
        low = 0.0 if self.kind == "sequential" else -1.0
        return max(low, min(1.0, value / self.limit))

    def state(self) -> dict[str, Any]:
        """As the state holds it."""
        return dataclasses.asdict(self)


def background(strength: float | None) -> str:
    """An inline style for the first frame, readable on light and on dark pages."""
    if strength is None:
        return "border-bottom:2px dotted rgba(128,128,128,.8)"
    red, green, blue = (0, 114, 178) if strength >= 0 else (213, 94, 0)
    side = "top" if strength >= 0 else "bottom"
    full = abs(strength)
    return (
        f"background:rgba({red},{green},{blue},{0.5 * full:.2f});"
        f"border-{side}:2px solid rgba({red},{green},{blue},{full:.2f})"
    )
