"""Does it fit, and how many rows at a time? No torch."""

import difflib
from collections.abc import Iterable
from typing import Any

from course_utils.errors import CourseError
from course_utils.memory.estimate import Breakdown, estimate
from course_utils.memory.recipe import Recipe
from course_utils.memory.shape import ModelShape

GIB = 2**30
# What torch.cuda.get_device_properties(0).total_memory shows, in GiB, rounded down: less than on
# the box, because that counts 10**9, and error correction and the driver take their part.
GPUS: dict[str, float] = {
    "T4": 14.5,
    "L4": 22.0,
    "A100-40": 39.3,
    "A40": 44.3,
    "L40S": 44.3,
    "A6000": 47.4,
    "A100-80": 79.1,
    "H100": 79.1,
}
ALIASES = {"a100": "A100-80", "a100-40gb": "A100-40", "a100-80gb": "A100-80", "48gb": "A6000"}
LIMIT = 2**20  # rows; nobody needs more


def gpu(name: str) -> tuple[str, int]:
    """(name, bytes) of a GPU. Raises: CourseError naming near matches."""
    key = name.strip().lower().replace(" ", "-")
    known = {known.lower(): known for known in GPUS} | ALIASES
    if key not in known:
        near = difflib.get_close_matches(key, known, n=2, cutoff=0.5)
        hint = f"did you mean {' or '.join(known[n] for n in near)}? " if near else ""
        raise CourseError(f"unknown GPU {name!r}; {hint}choose from {', '.join(GPUS)}")
    return known[key], round(GPUS[known[key]] * GIB)


def fits(breakdown: Breakdown, gpus: Iterable[str] = tuple(GPUS)) -> dict[str, bool]:
    """GPU -> whether the total (with context and fragmentation) is within its memory."""
    found = dict(gpu(name) for name in gpus)
    return {name: breakdown.total <= size for name, size in found.items()}


def largest_batch(
    shape: ModelShape, recipe: Recipe, seq: int, name: str, completion: int | None = None
) -> int:
    """The most rows (pairs) at a time that fit on this GPU; 0 if not even one does."""
    _, room = gpu(name)

    def total(batch: int) -> int:
        return estimate(shape, recipe, seq, batch, completion).total

    if total(1) > room:
        return 0
    low, high = 1, 2
    while high <= LIMIT and total(high) <= room:
        low, high = high, 2 * high
    while high - low > 1:  # low fits, high does not
        middle = (low + high) // 2
        low, high = (middle, high) if total(middle) <= room else (low, middle)
    return low


def answers(breakdown: Breakdown, gpus: Iterable[str] = tuple(GPUS)) -> list[dict[str, Any]]:
    """For each GPU: {gpu, gib, fits, largest_batch}; the batch for this recipe and length."""
    b = breakdown
    completion = None if b.recipe.logits == "all" else b.completion
    return [
        {
            "gpu": name,
            "gib": GPUS[name],
            "fits": fit,
            "largest_batch": largest_batch(b.shape, b.recipe, b.seq, name, completion),
        }
        for name, fit in fits(b, gpus).items()
    ]
