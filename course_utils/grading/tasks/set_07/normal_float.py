"""Set 07: the code book NF4, and NormalFloats of other widths.

    normal_float(bits=4, tail=0.9677083) -> (2^bits,) float32, ascending

With m = 2^(bits-1): m levels above zero at Φ⁻¹(tail - (tail - ½) i/m), i = 0 … m-1; m - 1 below at
-Φ⁻¹(tail - (tail - ½) i/(m-1)), i = 0 … m-2; and 0; all divided by Φ⁻¹(tail).
"""

from statistics import NormalDist

import torch
from torch import Tensor

from course_utils.grading.call import Call
from course_utils.grading.checks import Check, Task
from course_utils.grading.finding import Finding, is_close, show, wrong_type
from course_utils.grading.tasks.set_07._inputs import generator, named, normal_float

TAIL = 0.9677083  # the paper's, of NF4
_phi, _quantile = NormalDist().cdf, NormalDist().inv_cdf


def _quantiles(probabilities: list[float]) -> Tensor:
    return torch.tensor([_quantile(p) for p in probabilities], dtype=torch.float64)


def _even(first: float, last: float, count: int) -> list[float]:
    """As linspace: both ends are in it."""
    return [first + (last - first) * i / (count - 1) for i in range(count)]


def _known(bits: int, tail: float) -> dict[str, tuple[Tensor, str]]:
    """What the known mistakes give."""
    right, half = normal_float(bits, tail), 2 ** (bits - 1)
    top = _quantile(tail)
    whole = _quantiles(_even(1 - tail, tail, 2 * half)) / top
    up = _quantiles(_even(tail, 0.5, half)) / top  # ends at ½: a second zero
    low = -_quantiles(_even(tail, 0.5, half - 1)) / top if half > 2 else torch.zeros(1) - 1
    twice = torch.cat([low, torch.zeros(1), up.flip(0)])
    uneven = torch.tensor([-1 + 2 * i / (2 * half - 1) for i in range(2 * half)])
    density = torch.tensor([2 * _phi(float(q) * top) - 1 for q in right]) / (2 * tail - 1)
    other = _quantiles(_even(tail, 0.5, half + 1)[:-1]) / top
    both = torch.cat([-other, other.flip(0)])
    return {
        "zero": (right * 0, "your levels are all 0"),
        "mirrored": (-right.flip(0), "the halves are swapped: the larger half, 2^(bits-1) levels, "
                     "lies above zero"),
        "not scaled": (right * top, "these are the quantiles themselves; the outermost levels "
                       "must be exactly -1 and 1"),
        "no zero": (whole, "your levels are quantiles at evenly spaced probabilities from end to "
                    "end, and none of them is 0: take the two halves separately"),
        "symmetric": (both, "both halves have the same number of levels, so none is left for 0"),
        "zero twice": (twice, "your probabilities run down to ½ itself, whose quantile is 0: so 0 "
                       "comes more than once and the others stand wrong"),
        "even": (uneven, "your levels are evenly spaced: it is the *probabilities* that are even"),
        "probabilities": (density, "your levels are probabilities; the levels are the quantiles "
                          "Φ⁻¹ of evenly spaced probabilities"),
        "order": (right.flip(0), "the levels must ascend: -1 comes first"),
        "order of halves": (_unsorted(right, half), "the levels must ascend: one of the halves is "
                            "in the other order"),
    }  # fmt: skip


def _unsorted(right: Tensor, half: int) -> Tensor:
    """Both halves from the outermost inwards, as the formula writes them down."""
    return torch.cat([right[:half], right[half:].flip(0)])


def _look(call: Call, bits: int, tail: float) -> Finding | None:
    expected = normal_float(bits, tail)
    got = call(bits, tail).value
    fault = wrong_type(got, (2**bits,))
    if fault and fault.mistake == "wrong shape" and isinstance(got, Tensor):
        if got.dim() == 1 and len(got) == 16:
            message = f"bits={bits} must give {2**bits} levels; yours are 16 whatever is asked for"
            return Finding("bits ignored", message, fault.got, fault.expected)
        if got.dim() == 1 and len(got) == 2**bits - 1:
            message = "one level is missing: zero is one of them, and has a code of its own"
            return Finding("level missing", message, fault.got, fault.expected)
    if fault:
        return fault
    if not got.isfinite().all():
        message = "a level is infinite or NaN: Φ⁻¹(0) and Φ⁻¹(1) are infinite, so start at `tail`"
        return Finding("infinite", message, show(got))
    fixed = normal_float(bits, TAIL)
    known = _known(bits, tail)
    if not is_close(fixed, expected):
        message = "your levels do not depend on `tail`, the probability of the outermost level"
        known["tail ignored"] = fixed, message
    return named(got, expected, known)


def check_levels(call: Call, seed: int, size: int) -> list[Finding]:
    """Sixteen levels, for a tail of this seed."""
    tail = 0.9 + 0.05 * float(torch.rand((), generator=generator(seed)))
    fault = _look(call, 4, tail)
    return [fault] if fault else []


def check_widths(call: Call, seed: int, size: int) -> list[Finding]:
    """Other numbers of bits."""
    tail = 0.97 + 0.02 * float(torch.rand((), generator=generator(seed)))
    for bits in (3, 2, 5 + size % 4):
        fault = _look(call, bits, tail)
        if fault:
            message = f"with bits={bits}: {fault.message}"
            return [Finding(fault.mistake, message, fault.got, fault.expected)]
    return []


def check_nf4(call: Call, seed: int, size: int) -> list[Finding]:
    """Without arguments it is NF4, and ends and zero are exact."""
    got = call().value
    fault = wrong_type(got, (16,))
    if not fault and not is_close(got, normal_float(4, TAIL)):
        message = "normal_float() must be NF4: 4 bits and the paper's tail are the defaults"
        fault = Finding("defaults", message, show(got))
    if fault:
        return [fault]
    if got.dtype != torch.float32:
        return [Finding("wrong dtype", "the levels must be float32", show(got), "float32")]
    for place, exact in ((0, -1.0), (7, 0.0), (15, 1.0)):
        if float(got[place]) != exact:
            message = f"level {place} must be exactly {exact:g}: a zero has to stay a zero, and " \
                      "the largest of a block itself"  # fmt: skip
            return [Finding("not exact", message, f"{float(got[place])!r}", f"{exact:g}")]
    return []


TASK = Task(
    set="07",
    name="normal-float",
    functions=("normal_float",),
    checks=(
        Check("levels", 2, check_levels),
        Check("other widths", 1, check_widths),
        Check("NF4 itself", 1, check_nf4),
    ),
)
