"""The code books: which 16 (or 256) numbers in [-1, 1] a code can mean.

A weight is divided by the largest magnitude of its block, so it lies in [-1, 1], and is then
replaced by the nearest number of the book. The three 4-bit books differ in where their numbers
are: evenly spread (INT4), by powers of two (FP4), or where normally distributed weights are (NF4).
"""

import difflib
import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from course_utils.errors import CourseError

FORMATS = ("nf4", "fp4", "int4")

# NF4's outermost probability: 1 - δ with δ = ½(1/32 + 1/30) (Dettmers et al. 2023, appendix E),
# to the seven digits from which the published levels were computed.
NF4_TAIL = 0.9677083


@dataclass(frozen=True, eq=False)
class CodeBook:
    """What each code means, and the way back: `nearest` finds the code of a number."""

    name: str
    values: Tensor  # (16,) or (256,) float32: values[code]
    levels: Tensor  # (L,) float32: the different values, ascending; L <= len(values)
    codes: Tensor  # (L,) uint8: the code of each level

    @classmethod
    def of(cls, name: str, values: Tensor) -> "CodeBook":
        """Orders the values; of two codes for the same number (FP4's 0 and -0) the lower stays."""
        levels, place = torch.unique(values, sorted=True, return_inverse=True)
        codes = [int((place == i).nonzero()[0]) for i in range(len(levels))]
        return cls(name, values, levels, torch.tensor(codes, dtype=torch.uint8))

    @property
    def zero(self) -> int:
        """The code that means 0."""
        return int(self.codes[self.levels == 0])

    @property
    def half_gap(self) -> float:
        """Half the widest gap between neighbours: the most that rounding can change a number."""
        inside = self.levels[self.levels >= -1]  # INT4's -8/7 is never used
        return float(inside.diff().max()) / 2

    def nearest(self, x: Tensor) -> Tensor:
        """Codes, uint8 and of x's shape, of the nearest levels; halfway goes to the lower one."""
        levels = self.levels.to(x.device)
        borders = (levels[:-1] + levels[1:]) / 2  # (L - 1,)
        return self.codes.to(x.device)[torch.bucketize(x, borders, out_int32=True)]


def code_book(name: str) -> CodeBook:
    """The book of a 4-bit format, "nf4", "fp4" or "int4".

    Raises: CourseError for any other name, with the nearest one.
    """
    key = str(name).strip().lower()
    if key not in FORMATS:
        near = difflib.get_close_matches(key, FORMATS, n=1, cutoff=0.4)
        hint = f'; did you mean "{near[0]}"?' if near else ""
        raise CourseError(
            f"there is no 4-bit format {name!r}{hint} Choose from {', '.join(FORMATS)}"
        )
    return _book(key)


@functools.cache
def _book(name: str) -> CodeBook:
    makers = {"nf4": nf4_values, "fp4": fp4_values, "int4": int4_values, "dynamic8": dynamic_values}
    return CodeBook.of(name, makers[name]())


def dynamic_book() -> CodeBook:
    """The 8-bit book in which double quantization stores the blocks' scales."""
    return _book("dynamic8")


def nf4_values() -> Tensor:
    """NF4: quantiles of the standard normal distribution, scaled to [-1, 1]; (16,) ascending.

    Were weights normal, every code would be used about equally often, which is what makes the most
    of 4 bits. Equation 4 of Dettmers et al. 2023 averages neighbouring quantiles; its first and
    last would be infinite, and no level would be 0. Appendix E therefore starts at 1 - δ and takes
    the two halves separately, 8 levels above 0, 7 below, and 0 itself, so that padding and pruned
    weights stay 0.
    """
    return normal_values(4, NF4_TAIL)


def normal_values(bits: int = 4, tail: float = NF4_TAIL) -> Tensor:
    """NormalFloat of any width, made as NF4 is: (2^bits,) ascending, with -1, an exact 0 and 1.

    Args: bits: 2 to 8. tail: probability of the outermost level, above ½ and below 1.
    Raises: CourseError for others.
    """
    if bits not in range(2, 9) or not 0.5 < tail < 1:
        raise CourseError(
            f"a NormalFloat has 2 to 8 bits and a tail between 0.5 and 1, got {bits!r} and {tail!r}"
        )
    half = 2 ** (bits - 1)  # levels above 0; below there is one less, and 0 itself
    # Φ⁻¹ at evenly spaced probabilities, from the tail inwards; the last, Φ⁻¹(½) = 0, comes once
    above = torch.special.ndtri(torch.linspace(tail, 0.5, half + 1)[:-1].double())
    below = -torch.special.ndtri(torch.linspace(tail, 0.5, half)[:-1].double())
    zero = torch.zeros(1, dtype=torch.float64)
    values = torch.cat([below, zero, above.flip(0)]).float()
    return values / values.max()


def fp4_values() -> Tensor:
    """FP4: one sign, two exponent and one mantissa bit; (16,) by bit pattern, as in bitsandbytes.

    The pattern s·ee·m means ±(1 + m/2)·2^(4 - ee), and with ee = 0 it is 0 or ±1/16; all divided by
    the largest, 12. Higher patterns are not higher numbers, and 0 comes twice, as 0 and as -0.
    """
    small = [0.0, 0.0625]
    normal = [(1 + m / 2) * 2.0 ** (4 - e) for e in (1, 2, 3) for m in (0, 1)]
    positive = torch.tensor(small + normal)  # (8,)
    return torch.cat([positive, -positive]) / positive.max()


def int4_values() -> Tensor:
    """INT4, symmetric absmax: -7 … 7 in equal steps, divided by 7; (16,) by two's complement.

    Code 8 would be -8/7, outside of [-1, 1]: it is never used, the price of symmetry.
    """
    return torch.tensor([*range(8), *range(-8, 0)]) / 7.0


def dynamic_values() -> Tensor:
    """The 8-bit dynamic book (Dettmers 2015; Dettmers et al. 2022), (256,) ascending.

    Decade 10^(i-6), i = 0 … 6, has 2^i evenly spaced magnitudes of either sign, so large numbers
    get many digits and small ones a wide range; and there are 0 and 1. The QLoRA paper writes of
    8-bit floats here; this is what its implementation uses.
    """
    magnitudes = []
    for i in range(7):
        edges = torch.linspace(0.1, 1, 2**i + 1)
        magnitudes.append(10.0 ** (i - 6) * (edges[:-1] + edges[1:]) / 2)  # (2^i,)
    size = torch.cat(magnitudes)  # (127,)
    return torch.cat([size, -size, torch.tensor([0.0, 1.0])]).sort().values
