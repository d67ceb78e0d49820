"""Set 06: one change out of several.

    linear_merge(deltas [N × (d, k)], weights [N]) -> (d, k)      Σ w_i ΔW_i
    ties_merge(deltas [N × (d, k)], density, lam=1.0) -> (d, k)

TIES (Yadav et al. 2023, algorithm 1): trim each change to its largest numbers, elect a sign for
each place, average those that agree with it, multiply by λ.
"""

import torch
from torch import Tensor

from course_utils.grading.call import Call
from course_utils.grading.checks import Check, Task
from course_utils.grading.finding import Finding, changed, is_close, name_mistake, wrong_type
from course_utils.grading.tasks.set_06._inputs import Draw

Known = dict[str, tuple[Tensor, str]]


def _changes(seed: int, size: int) -> tuple[Draw, list[Tensor]]:
    """Three changes of the same shape and of different lengths; their size divides by four."""
    draw = Draw(seed)
    d, k = 8, 6 + size
    return draw, [draw.normal(d, k, scale=s) for s in (1.0, 1.6, 0.7)]


def _trimmed(change: Tensor, density: float) -> Tensor:
    """Keeps the round(density · n) largest numbers, in float64."""
    flat = change.double().flatten()
    order = sorted(range(len(flat)), key=lambda i: -abs(float(flat[i])))
    kept = torch.zeros_like(flat)
    for i in order[: round(density * len(flat))]:
        kept[i] = flat[i]
    return kept.view_as(change)


def _elected(kept: list[Tensor], sign: Tensor) -> tuple[Tensor, Tensor]:
    """(sum, number) of the numbers that have this sign; none where it is 0."""
    agree = [(t.sign() == sign) & (sign != 0) for t in kept]
    return sum(t * a for t, a in zip(kept, agree, strict=True)), sum(agree)  # type: ignore


def _mean(total: Tensor, count: Tensor) -> Tensor:
    return torch.where(count > 0, total / count.clamp(min=1), torch.zeros_like(total))


def _ties(deltas: list[Tensor], density: float, lam: float) -> tuple[Tensor, Known]:
    """The right result, and what each known mistake gives."""
    whole = [t.double() for t in deltas]
    kept = [_trimmed(t, density) for t in whole]
    other = [_trimmed(t, 1 - density) for t in whole]
    rest = [a - b for a, b in zip(whole, other, strict=True)]  # the smallest
    joint = _trimmed(torch.stack(whole), density).unbind(0)
    rows = [torch.stack([_trimmed(row, density) for row in t]) for t in whole]
    limits = [t * (t.abs() >= (1 - density) * t.abs().max()) for t in whole]

    def merged(trimmed: list[Tensor], sign: Tensor | None = None) -> Tensor:
        sign = torch.stack(trimmed).sum(0).sign() if sign is None else sign
        return lam * _mean(*_elected(trimmed, sign))

    mass = torch.stack(kept).sum(0).sign()
    votes = torch.stack([t.sign() for t in kept]).sum(0).sign()
    total, _ = _elected(kept, mass)
    nonzero = torch.stack([t != 0 for t in kept]).sum(0)
    right = merged(kept)
    return right, {
        "zero": (right * 0, "the result is 0 whatever the input"),
        "sign": (-right, "the sign is flipped: elect the sign with more weight, and keep it"),
        "lambda ignored": (right / lam, "the result is not multiplied by λ"),
        "sum": (lam * total, "you add the numbers that agree; TIES averages them"),
        "divided by all": (lam * total / len(kept), "you divide by the number of changes; divide "
                           "by how many agree at each place"),
        "divided by kept": (lam * _mean(total, nonzero), "you divide by all that was kept at a "
                            "place; those of the other sign do not count"),
        "no election": (lam * _mean(torch.stack(kept).sum(0), nonzero), "numbers of both signs are "
                        "averaged; elect one sign for each place first"),
        "plain sum": (lam * torch.stack(kept).sum(0), "the trimmed changes are only added"),
        "plain mean": (lam * torch.stack(kept).mean(0), "the trimmed changes are only averaged"),
        "loser": (merged(kept, -mass), "you elect the sign with less weight"),
        "votes": (merged(kept, votes), "the sign is elected by counting heads; add up the numbers: "
                  "a large one counts for more"),
        "elected untrimmed": (merged(kept, torch.stack(whole).sum(0).sign()), "the sign is elected "
                              "before trimming; trim first"),
        "not trimmed": (merged(whole), "nothing is trimmed: density is the share that is kept"),
        "density upside down": (merged(other), "density is the share kept; you drop that share"),
        "smallest kept": (merged(rest), "you keep the smallest numbers; keep the largest"),
        "trimmed together": (merged(list(joint)), "the changes are trimmed together, so that a "
                             "large change crowds out a small one; trim each by itself"),
        "trimmed by row": (merged(rows), "each row is trimmed by itself; trim the whole matrix"),
        "signed trim": (merged([_top(t, density) for t in whole]), "you keep the largest by value, "
                        "so that negative numbers never stay; magnitude is meant"),
        "threshold": (merged(limits), "you keep what is near the largest number; keep a share "
                      "of the count"),
    }  # fmt: skip


def _top(change: Tensor, density: float) -> Tensor:
    flat = change.flatten()
    kept = torch.zeros_like(flat)
    places = flat.argsort(descending=True)[: round(density * len(flat))]
    return kept.index_copy(0, places, flat[places]).view_as(change)


def check_linear(call: Call, seed: int, size: int) -> list[Finding]:
    """Σ w ΔW with weights that do not add up to 1, one of them negative."""
    draw, deltas = _changes(seed, size)
    weights = [0.6 + draw.whole(1, 5) / 4, -0.75, 1.3]
    stack, w = torch.stack(deltas).double(), torch.tensor(weights).double()
    right = torch.einsum("n,ndk->dk", w, stack)
    outcome = call(deltas, weights)
    fault = wrong_type(outcome.value, tuple(right.shape)) or name_mistake(outcome.value, right, {
        "zero": (right * 0, "the result is 0 whatever the input"),
        "sign": (-right, "the sign is flipped"),
        "weights ignored": (stack.sum(0), "the weights are ignored"),
        "mean": (stack.mean(0), "this is the mean of the changes; the weights are ignored"),
        "divided by number": (right / 3, "you divide by the number of changes; a weight of 1 must "
                              "leave a change as it is"),
        "normalised": (right / w.sum(), "you divide by the sum of the weights; it need not be 1"),
        "sizes": (torch.einsum("n,ndk->dk", w.abs(), stack), "a negative weight takes a change "
                  "away"),
        "one alone": (w[0] * stack[0], "only the first change is in the result"),
    })  # fmt: skip
    fault = fault or changed(("deltas",), (deltas,), outcome.arguments[:1])
    return [fault] if fault else []


def check_ties(call: Call, seed: int, size: int) -> list[Finding]:
    """Two densities and a λ."""
    _, deltas = _changes(seed, size)
    for density, lam in ((0.75, 1.5), (0.25, 1.25)):
        right, known = _ties(deltas, density, lam)
        outcome = call.second(deltas, density, lam)
        fault = (
            wrong_type(outcome.value, tuple(right.shape))
            or name_mistake(outcome.value, right, known)
            or changed(("deltas",), (deltas,), outcome.arguments[:1])
        )
        if fault:
            return [fault]
    return []


def check_ends(call: Call, seed: int, size: int) -> list[Finding]:
    """One change, all kept, all cancelled, places where nothing is left; λ by default."""
    _, deltas = _changes(seed, size)
    first, second, _ = deltas
    cases = [
        ("one alone", "one change with density 1 and no λ given must come back as it is",
         [first], 1.0, first),
        ("one trimmed", "one change with density 0.5: its larger half, as it is", [first], 0.5,
         _trimmed(first, 0.5)),
        ("same twice", "two equal changes must give that change: the mean, not the sum",
         [second, second], 1.0, second),
        ("cancelled", "numbers that cancel have the sign 0: nothing agrees with it, and the result "
         "is 0, not NaN and not one of the two", [first, -first], 1.0, first * 0),
        ("large numbers", "numbers of 1e4 beside numbers of 1e-4 are merged wrongly",
         [first * 1e4, second * 1e-4], 0.5, _ties([first * 1e4, second * 1e-4], 0.5, 1.0)[0]),
    ]  # fmt: skip
    for mistake, message, changes, density, right in cases:
        value = call.second(changes, density).value
        fault = wrong_type(value, tuple(right.shape))
        if fault:
            return [fault]
        if not is_close(value, right, atol=1e-9):
            return [Finding(mistake, message)]
    return []


TASK = Task(
    set="06",
    name="ties-merge",
    functions=("linear_merge", "ties_merge"),
    checks=(
        Check("linear", 1, check_linear),
        Check("TIES", 3, check_ties),
        Check("one, equal and opposite", 1, check_ends),
    ),
)
