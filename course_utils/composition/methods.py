"""The ways to make one adapter of several (PEFT's add_weighted_adapter), and their rank rules.

w are the weights, ΔW = (α/r)·B A an adapter's update of a weight W (d, k), A (R, k), B (d, R).
"""

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping

from course_utils.adapters.sites import check_whole_number
from course_utils.errors import CourseError

__all__ = ["METHODS", "Method", "check_density", "near", "resulting_rank"]


@dataclasses.dataclass(frozen=True)
class Method:
    """What a method computes and asks for."""

    does: str
    equal_ranks: bool = False  # it adds A to A and B to B, so these must be of one shape
    rank: str = "the largest"  # of the result: "the same", "the sum", or "the largest", or chosen
    density: bool = False  # it keeps only a share of the numbers


def _on_factors(does: str, density: bool = True) -> Method:
    return Method(does, equal_ranks=True, rank="the same", density=density)


METHODS: dict[str, Method] = {
    "cat": Method("Σ w ΔW exactly: the A stacked, the B side by side", rank="the sum"),
    "svd": Method("Σ w ΔW, cut to its R largest directions"),
    "linear": _on_factors("(Σ √w B)(Σ √w A): cheap, with cross terms B₁ A₂", density=False),
    "ties": _on_factors("the largest numbers of A and of B, averaged where signs agree"),
    "dare_linear": _on_factors("random numbers of A and of B, rescaled; then linear"),
    "dare_ties": _on_factors("random numbers of A and of B, averaged where signs agree"),
    "magnitude_prune": _on_factors("the largest numbers of A and of B; then linear"),
    "ties_svd": Method("the largest numbers of ΔW, averaged where signs agree", density=True),
    "dare_linear_svd": Method("random numbers of ΔW, rescaled and added", density=True),
    "dare_ties_svd": Method("random numbers of ΔW, averaged where signs agree", density=True),
    "magnitude_prune_svd": Method("the largest numbers of ΔW, added", density=True),
}


def near(name: object, known: Iterable[str]) -> str:
    """For the end of an error: names that are like this one, then all there are."""
    names = list(known)
    alike = difflib.get_close_matches(str(name), names, n=3, cutoff=0.4)
    meant = f" (did you mean {' or '.join(alike)}?)" if alike else ""
    return f"{meant}; there are {', '.join(names) or 'none'}"


def resulting_rank(method: str, ranks: Mapping[str, int], rank: int | None = None) -> int:
    """The rank of what a method makes of adapters with these ranks (name -> R).

    Args:
        rank: the wanted rank, for the methods that end in "svd"; None: the largest of the ranks.
    Raises: CourseError for an unknown method, no adapters, ranks that differ where they must not, a
        rank below 1, or one given to a method that leaves no choice.
    """
    known = METHODS.get(method)
    if known is None:
        raise CourseError(f"unknown method {method!r}{near(method, METHODS)}")
    if not ranks:
        raise CourseError("no adapters to combine: give at least one name and weight")
    each = ", ".join(f"{name} has {r}" for name, r in ranks.items())
    total, largest = sum(ranks.values()), max(ranks.values())
    if known.equal_ranks and len(set(ranks.values())) > 1:
        free = [name for name, m in METHODS.items() if m.rank == "the largest"]
        raise CourseError(
            f"{method} adds A to A and B to B, so the adapters need one rank, but {each}; cat "
            f"takes any ranks (the result has their sum, {total}), and so do {', '.join(free)} "
            f"(the result has the largest, {largest}, or what rank= says)"
        )
    if rank is None or len(ranks) == 1:
        if rank is not None:
            raise CourseError(f"rank={rank}: a single adapter is only scaled and keeps its rank")
        return total if known.rank == "the sum" else largest
    check_whole_number(rank, 1, "rank")
    if known.rank != "the largest":
        raise CourseError(
            f'rank={rank} can be chosen for methods that end in "svd"; with {method} the result '
            f"has {known.rank} of the ranks ({each})"
        )
    return rank


def check_density(method: str, density: float | None) -> float | None:
    """The share of numbers that a method keeps, 0.5 unless given; None if it keeps all.

    Raises: CourseError for a share outside (0, 1], or one given to a method that keeps all.
    """
    if not METHODS[method].density:
        if density is not None:
            takes = ", ".join(name for name, m in METHODS.items() if m.density)
            raise CourseError(f"{method} keeps all numbers; density is for {takes}")
        return None
    density = 0.5 if density is None else density
    if isinstance(density, bool) or not (math.isfinite(density) and 0 < density <= 1):
        raise CourseError(f"density is the share of numbers kept, in (0, 1], got {density!r}")
    return density
