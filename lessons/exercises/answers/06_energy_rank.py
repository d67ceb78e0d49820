from course_utils.grading.mutants import Mutant

SEARCH = """
import torch

def energy_rank(delta, tau):
    shares = torch.linalg.svd(delta.to(torch.float64), full_matrices=False)[1].square()
    whole = shares.sum()
    if not whole > 0:
        return 0
    reached = torch.cumsum(shares, 0) / whole
    return int(torch.searchsorted(reached, tau - 1e-9).item()) + 1
"""

EIGENVALUES = """
import torch

def energy_rank(delta, tau):
    largest = float(delta.abs().max())
    if largest == 0.0:
        return 0
    scaled = delta.double() / largest
    gram = scaled @ scaled.T if scaled.shape[0] < scaled.shape[1] else scaled.T @ scaled
    energies = sorted(torch.linalg.eigvalsh(gram).clamp(min=0).tolist(), reverse=True)
    target, reached, n = (tau - 1e-9) * sum(energies), 0.0, 0
    while reached < target and n < len(energies):
        reached += energies[n]
        n += 1
    return torch.tensor(n)
"""

_OUT = "return int((energy < (tau - 1e-9) * energy[-1]).sum()) + 1"
MUTANTS = (
    Mutant("zeros", _OUT, "return 0", "zero"),
    Mutant("full rank", _OUT, "return len(sigma)", "all"),
    Mutant("not squared", "(sigma**2)", "sigma", "not squared"),
    Mutant("one less", ".sum()) + 1", ".sum())", "one too few"),
    Mutant("one more", ".sum()) + 1", ".sum()) + 2", "one too many"),
    Mutant("ascending", "(sigma**2).cumsum(0)", "(sigma**2).flip(0).cumsum(0)", "ascending"),
    Mutant("the rest", "(tau - 1e-9) *", "(1 - tau - 1e-9) *", "the rest"),
    Mutant("norm", "(tau - 1e-9) *", "(tau - 1e-9) ** 2 *", "norm"),
    Mutant("threshold", _OUT, "return int((sigma**2 >= tau * sigma[0] ** 2).sum())", "threshold"),
    Mutant("threshold of the rest", _OUT,
           "return int((sigma**2 >= (1 - tau) * sigma[0] ** 2).sum())", "threshold of the rest"),
    Mutant("share of n", _OUT, "return math.ceil(tau * len(sigma))", "share of directions"),
    Mutant("tau ignored", "(tau - 1e-9) *", "0.9 *", "tau ignored"),
    Mutant("squared twice", "(sigma**2)", "(sigma**4)", "amplified"),
    Mutant("in place", "sigma = torch", "delta *= 2; sigma = torch", "in place"),
    Mutant("a tensor of energies", _OUT, "return energy", "not whole"),
    Mutant("a float", _OUT, "return float((energy < tau * energy[-1]).sum()) + 1", "not whole"),
    Mutant("zero matrix is 1", "return 0", "return 1", "zero matrix"),
    Mutant("zero matrix divides", "if energy[-1] == 0:\n        return 0\n    " + _OUT,
           "return int((energy / energy[-1] < tau - 1e-9).sum()) + 1", "zero matrix"),
    Mutant("no slack", "(tau - 1e-9) *", "tau *", "rounding at 1"),
    Mutant("more than all", "(energy < (tau - 1e-9)", "(energy <= (tau + 1e-9)", "rounding at 1"),
    Mutant("strict", "(energy < (tau - 1e-9)", "(energy < (tau + (1e-9 if tau < 1 else -1e-9))",
           "met exactly"),
    Mutant("float32 only", "delta.double()", "delta", "half precision"),
    Mutant("float32 squares", "delta.double()", "delta.float()", "tiny numbers"),
    Mutant("small is zero", "if energy[-1] == 0", "if energy[-1] < 1e-12", "tiny numbers"),
)  # fmt: skip

ALTERNATIVES = (SEARCH, EIGENVALUES)
