from course_utils.grading.mutants import Mutant

STANDARD_LIBRARY = """
from statistics import NormalDist
import torch

def normal_float(bits=4, tail=0.9677083):
    quantile, m = NormalDist().inv_cdf, 2 ** (bits - 1)
    found = [0.0]
    for sign, steps in ((1, m), (-1, m - 1)):
        for i in range(steps):
            found.append(sign * quantile(tail - (tail - 0.5) * i / steps) / quantile(tail))
    return torch.tensor(sorted(found))
"""

ERFINV = """
import torch

def normal_float(bits=4, tail=0.9677083):
    m = 2 ** (bits - 1)
    number = torch.arange(-(m - 1), m + 1)  # of the level, counted from the zero
    steps = torch.where(number > 0, m, m - 1)
    levels = torch.erfinv((2 * tail - 1) * number / steps)  # the factor √2 cancels
    levels = levels / levels[-1]
    levels[0] = -1
    return levels
"""

_HALVES = "torch.cat([below, torch.zeros(1), above])"
MUTANTS = (
    Mutant("zeros", "return (levels / levels.max())", "return (0 * levels)", "zero"),
    Mutant("mirrored", "return (levels / levels.max()).float()",
           "return -(levels / levels.max()).float().flip(0)", "mirrored"),
    Mutant("not scaled", "(levels / levels.max())", "levels", "not scaled"),
    Mutant("end to end", "levels = torch.cat",
           "above = torch.special.ndtri(torch.linspace(1 - tail, tail, 2 * half))\n"
           "    return (above / above.max()).float()\n    levels = torch.cat", "no zero"),
    Mutant("symmetric", _HALVES, "torch.cat([-above.flip(0), above])", "symmetric"),
    Mutant("zero twice", "probabilities = torch.linspace(tail, 0.5, half + 1, dtype=torch.float64)[:-1]\n"
           "    fewer = torch.linspace(tail, 0.5, half, dtype=torch.float64)[:-1]",
           "probabilities = torch.linspace(tail, 0.5, half, dtype=torch.float64)\n"
           "    fewer = torch.linspace(tail, 0.5, half - 1, dtype=torch.float64)", "zero twice"),
    Mutant("a level too many", "half, dtype=torch.float64)[:-1]", "half, dtype=torch.float64)",
           "wrong shape"),
    Mutant("no zero", "below, torch.zeros(1), above", "below, above", "level missing"),
    Mutant("even", "levels = torch.cat", "return torch.linspace(-1, 1, 2 * half)\n    levels = "
           "torch.cat", "even"),
    Mutant("probabilities", "return (levels",
           "levels = torch.special.ndtr(levels) - 0.5\n    return (levels", "probabilities"),
    Mutant("descending", "return (levels / levels.max()).float()",
           "return (levels / levels.max()).float().flip(0)", "order"),
    Mutant("one half descends", ".flip(0)", "", "order of halves"),
    Mutant("tail ignored", "half = 2", "tail = 0.9677083; half = 2", "tail ignored"),
    Mutant("bits ignored", "half = 2", "bits = 4; half = 2", "bits ignored"),
    Mutant("infinite", "half = 2", "tail = 1.0; half = 2", "infinite"),
    Mutant("default tail", "tail=0.9677083", "tail=0.97", "defaults"),
    Mutant("float64", ".float()", "", "wrong dtype"),
    Mutant("zero not exact", "torch.zeros(1)", "torch.full((1,), 1e-7)", "not exact"),
    Mutant("no return", "return (", "(", "not a tensor"),
    Mutant("half the probability", "linspace(tail, 0.5, half + 1", "linspace(tail, 0.4, half + 1",
           "something else"),
    Mutant("hole", "half = 2", "raise NotImplementedError('your code here'); half = 2", "blank"),
)  # fmt: skip

ALTERNATIVES = (STANDARD_LIBRARY, ERFINV)
