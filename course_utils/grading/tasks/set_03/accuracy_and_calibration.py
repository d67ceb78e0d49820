"""Set 03: how often a reward model is right, and whether its odds come true.

    reward_accuracy(chosen (N,), rejected (N,)) -> ()
    expected_calibration_error(margins (N,), preferred (N,), bins=10) -> ()

Ties count half. Bins of equal width over P = σ(margin); Σ n_b / N |mean(preferred) - mean(P)|.
"""

import torch
from torch import Tensor

from course_utils.grading.call import Call
from course_utils.grading.checks import Check, Task
from course_utils.grading.finding import Finding, changed, is_close, name_mistake, show, wrong_type
from course_utils.grading.tasks.set_03._inputs import generator, told_apart, uniform


def _pairs(seed: int, size: int) -> tuple[Tensor, Tensor, int, int, int]:
    """Scores (N,) of which some pairs are right, fewer wrong and some tied; the three counts."""
    g = generator(seed)
    right, wrong, ties = 9 + 2 * size, 2 + size // 2, 2 + size % 3
    N = right + wrong + ties
    rejected = torch.randn(N, generator=g)
    step = uniform(0.2, 3.0, N, g)
    step[right : right + wrong] *= -1
    step[right + wrong :] = 0
    order = torch.randperm(N, generator=g)
    return (rejected + step)[order], rejected[order], right, wrong, ties


def check_accuracy(call: Call, seed: int, size: int) -> list[Finding]:
    """Right, wrong and tied pairs; scores that a sigmoid cannot tell apart."""
    chosen, rejected, right, wrong, ties = _pairs(seed, size)
    N = len(chosen)

    def share(count: float, of: int = N) -> Tensor:
        return torch.tensor(count / of, dtype=torch.float64)

    known = {
        "zero": (share(0), "your accuracy is 0 whatever the scores are"),
        "ties wrong": (share(right), "you count ties as wrong: a model that scores all answers "
                       "alike would be right on none of the pairs, and it is a coin"),
        "ties right": (share(right + ties), "you count ties as right: a model that scores all "
                       "answers alike would be right on all of the pairs"),
        "ties left out": (share(right, right + wrong), "you leave ties out; each counts one half"),
        "swapped": (share(wrong + ties / 2), "chosen and rejected are swapped"),
        "wrong pairs": (share(wrong), "you count the pairs in the wrong order"),
        "a count": (share(right + ties / 2, 1), "that is a count; the share of the pairs was asked "
                    "for"),
        "signs": (share(right - wrong), "right minus wrong pairs runs from -1 to 1; accuracy is a "
                  "share in [0, 1]"),
        "probability": ((chosen - rejected).double().sigmoid().mean(), "you average the predicted "
                        "probabilities; accuracy asks only which score is higher"),
    }  # fmt: skip
    expected = share(right + ties / 2)
    outcome = call(chosen, rejected)
    fault = wrong_type(outcome.value, ()) or name_mistake(outcome.value, expected, known)
    fault = fault or changed(("chosen", "rejected"), (chosen, rejected), outcome.arguments)
    if fault:
        return [fault]
    got = call(chosen + 200, rejected + 200).value
    # float32 rounds 200 + r in steps of 1e-5: ties stay ties, and steps of 0.2 are far from them
    if not isinstance(got, Tensor) or not is_close(got, expected):
        message = (
            "with 200 added to all scores your accuracy changes: compare the scores themselves"
        )
        return [Finding("saturated", message, show(got), show(expected))]
    return []


def _predictions(seed: int, size: int, bins: int) -> tuple[Tensor, Tensor]:
    """Margins (N,) whose probabilities lie well inside bins, some bins empty; preferred (N,)."""
    g = generator(seed)
    N = 18 + 3 * size
    filled = torch.randperm(bins, generator=g)[: bins - 2]  # two bins stay empty
    place = filled[(torch.rand(N, generator=g) ** 2 * len(filled)).long()]  # crowded and sparse
    probability = (place + uniform(0.1, 0.9, N, g).double()) / bins
    came = torch.rand(N, generator=g) < 0.25 + 0.35 * probability  # too low: errors in every bin
    came[0], came[1] = True, False
    return torch.logit(probability).float(), came.long()


def _binned(margins: Tensor, preferred: Tensor, bins: int) -> tuple[list[int], list[float]]:
    """Of every bin that is not empty: how many, and mean(preferred) - mean(P). Slow, float64."""
    found: dict[int, list[tuple[float, float]]] = {}
    for p, came in zip(margins.double().sigmoid().tolist(), preferred.tolist(), strict=True):
        found.setdefault(min(int(p * bins), bins - 1), []).append((p, came))
    counts = [len(inside) for inside in found.values()]
    gaps = [sum(came - p for p, came in inside) / len(inside) for inside in found.values()]
    return counts, gaps


def _ece(margins: Tensor, preferred: Tensor, bins: int) -> Tensor:
    counts, gaps = _binned(margins, preferred, bins)
    total = sum(n * abs(gap) for n, gap in zip(counts, gaps, strict=True))
    return torch.tensor(total / len(margins), dtype=torch.float64)


def _quantile_bins(p: Tensor, came: Tensor, bins: int) -> Tensor:
    order = p.argsort()
    parts = zip(p[order].tensor_split(bins), came[order].tensor_split(bins), strict=True)
    return sum(((b - a).sum().abs() for a, b in parts), start=p.new_zeros(())) / len(p)


def _known(margins: Tensor, preferred: Tensor, bins: int) -> dict[str, tuple[Tensor, str]]:
    p, came = margins.double().sigmoid(), preferred.double()
    counts, gaps = (torch.tensor(v, dtype=torch.float64) for v in _binned(margins, preferred, bins))
    place = (p * bins).long().clamp(max=bins - 1)
    ece, share = _ece(margins, preferred, bins), counts / counts.sum()
    middle = (place + 0.5) / bins
    by_middle = torch.stack(
        [(came - middle)[place == b].sum().abs() for b in place.unique()]
    ).sum() / len(p)
    sure = torch.maximum(p, 1 - p)
    right = torch.where(p >= 0.5, came, 1 - came)
    return {
        "zero": (ece * 0, "your calibration error is 0 whatever came true"),
        "not weighted": (gaps.abs().mean(), "you average over the bins; a bin with more pairs "
                         "weighs more"),
        "divided by all bins": (gaps.abs().sum() / bins, "you average over the bins, empty ones "
                                "too; a bin weighs by its share of the pairs"),
        "a sum": ((counts * gaps.abs()).sum(), "you weigh by the number of pairs; it is the share "
                  "of the pairs"),
        "ten bins": (_ece(margins, preferred, 10), "the number of bins is not always ten: use the "
                     "argument"),
        "signed": ((share * gaps).sum(), "errors of different bins cancel in yours: take the "
                   "absolute value in each bin"),
        "one bin": (-(share * gaps).sum(), "errors of different bins cancel in yours, as if all "
                    "pairs were in one bin: take the absolute value in each"),
        "no bins": ((came - p).abs().mean(), "you take the absolute value of every pair: one pair "
                    "is always 0 or 1, so average in the bin first"),
        "largest": (gaps.abs().max(), "this is the largest error of a bin; their weighted mean was "
                    "asked for"),
        "squared": ((share * gaps.square()).sum(), "you square the errors of the bins; their "
                    "absolute values were asked for"),
        "squared, root": ((share * gaps.square()).sum().sqrt(), "you square the errors of the "
                          "bins; their absolute values were asked for"),
        "Brier": ((came - p).square().mean(), "this is the Brier score; it does not compare bins"),
        "middles": (by_middle, "you compare with the middle of the bin; compare with the mean "
                    "probability of the pairs in it"),
        "equal counts": (_quantile_bins(p, came, bins), "your bins hold equally many pairs; they "
                         "are of equal width in P"),
        "how sure": (_ece(torch.logit(sure), right, bins), "you bin by how sure the model is of "
                     "the answer it prefers; bin by P that the *first* is preferred"),
        "how sure, half": (_ece_half(sure, right, bins), "you bin by how sure the model is of the "
                           "answer it prefers; bin by P that the *first* is preferred"),
        "reversed": (_ece(margins, 1 - preferred, bins), "P is the probability that the *first* "
                     "answer is preferred, and preferred is 1 then"),
    }  # fmt: skip


def _ece_half(sure: Tensor, right: Tensor, bins: int) -> Tensor:
    """The error with bins over [1/2, 1]: (N,) in [1/2, 1], (N,) -> ()."""
    place = ((sure - 0.5) * 2 * bins).long().clamp(max=bins - 1)
    gaps = [(right - sure)[place == b].sum().abs() for b in place.unique()]
    return torch.stack(gaps).sum() / len(sure)


def _distinct(seed: int, size: int, bins: int) -> tuple[Tensor, Tensor]:
    """The first predictions drawn on which every known mistake gives a number of its own."""
    for attempt in range(200):
        margins, preferred = _predictions(seed + 10_007 * attempt, size, bins)
        known = _known(margins, preferred, bins)
        if bins == 10:
            known.pop("ten bins")  # no mistake there
        # too sure on the whole: "signed" is negative, and so not the error of "one bin"
        if known["signed"][0] < 0 and told_apart(_ece(margins, preferred, bins), known):
            break
    return margins, preferred


def check_calibration(call: Call, seed: int, size: int) -> list[Finding]:
    """Ten bins by default and another number; two bins are empty."""
    for bins in (10, 6 + seed % 3):
        margins, preferred = _distinct(seed, size, bins)
        given = (margins, preferred)
        outcome = call.second(*given) if bins == 10 else call.second(*given, bins=bins)
        fault = wrong_type(outcome.value, ()) or name_mistake(
            outcome.value, _ece(margins, preferred, bins), _known(margins, preferred, bins)
        )
        fault = fault or changed(("margins", "preferred"), (margins, preferred), outcome.arguments)
        if fault:
            return [fault]
    return []


def check_ends(call: Call, seed: int, size: int) -> list[Finding]:
    """P of exactly 0 and 1 (margins of ±1e4), one pair, a judge that is right as often as told."""
    margins, preferred = _distinct(seed, size, 8)
    margins = torch.cat([margins, torch.tensor([1e4, 9e3, 8e3, -1e4, -9e3, -8e3])])
    preferred = torch.cat([preferred, torch.tensor([0, 0, 1, 1, 1, 0])])  # badly wrong at the ends
    got = call.second(margins, preferred, bins=8).value
    fault = wrong_type(got, ())
    expected = _ece(margins, preferred, 8)
    if not fault and not is_close(got, expected):
        message = (
            "with margins of ±10,000 P is exactly 1 or 0 in floating point, and yours loses or "
            "misplaces such pairs: the first bin holds 0 and the last one 1 (and exp overflows "
            "where a sigmoid does not)"
        )
        fault = Finding("ends", message, show(got), show(expected))
    if fault:
        return [fault]
    one = margins[:1]
    got = call.second(one, preferred[:1]).value
    expected = _ece(one, preferred[:1], 10)
    if not isinstance(got, Tensor) or not is_close(got, expected):
        message = "with a single pair the error is the distance of P from what came true"
        return [Finding("one pair", message, show(got), show(expected))]
    half = torch.zeros(6 + 2 * size)
    got = call.second(half, torch.arange(len(half)) % 2).value
    if not isinstance(got, Tensor) or not is_close(got, torch.tensor(0.0)):
        message = "a judge that says one half, and is right half the time, has an error of 0"
        return [Finding("a coin", message, show(got), "0")]
    return []


TASK = Task(
    set="03",
    name="accuracy-and-calibration",
    functions=("reward_accuracy", "expected_calibration_error"),
    checks=(
        Check("accuracy", 1, check_accuracy),
        Check("calibration error", 3, check_calibration),
        Check("ends of the scale", 1, check_ends),
    ),
)
