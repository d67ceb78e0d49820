from course_utils.grading.mutants import Mutant

LOGARITHMS = """
import math
import torch

def effective_rank(W):
    s = torch.linalg.svd(W.double(), full_matrices=False)[1].tolist()
    total = sum(s)
    if total == 0:
        return 0.0
    # H(p) = log Σσ - Σ σ log σ / Σσ
    return math.exp(math.log(total) - sum(x * math.log(x) for x in s if x > 0) / total)

def stable_rank(W):
    s = torch.linalg.svdvals(W.double()).tolist()
    return sum((x / s[0]) ** 2 for x in s) if s[0] else 0
"""

NORMS = """
import torch

def effective_rank(W):
    W = W.double()
    size = W.abs().max()
    if size == 0:
        return torch.zeros(())
    p = torch.linalg.svdvals(W / size)
    p = p / torch.linalg.matrix_norm(W / size, "nuc")
    return torch.distributions.Categorical(probs=p).entropy().exp()

def stable_rank(W):
    W = W.double() / W.double().abs().max().clamp(min=1e-300)
    top = torch.linalg.matrix_norm(W, 2)
    return torch.where(top > 0, (torch.linalg.matrix_norm(W) / top.clamp(min=1e-300)) ** 2, 0.0)
"""

_SIGMA = "sigma = torch.linalg.svdvals(W.double())"
_P = "p = sigma / sigma.sum()"
_EXP = "return float(torch.special.entr(p).sum().exp())"
_VALUES = "values = torch.linalg.svdvals(W.double())"
_STABLE = "return float((values / values[0]).square().sum()) if values[0] > 0 else 0.0"


def _stable(expression):
    return f"return float({expression}) if values[0] > 0 else 0.0"


MUTANTS = (
    Mutant("zeros", _EXP, "return 0.0", "zero"),
    Mutant("entropy", _EXP, "return float(torch.special.entr(p).sum())", "no exp"),
    Mutant("minus", _EXP, "return float((-torch.special.entr(p)).sum().exp())", "exp of minus"),
    Mutant("energy", _P, "p = sigma**2 / (sigma**2).sum()", "squared"),
    Mutant("bits", _EXP, "return math.exp(float(-(p * p.log2()).sum()))", "log 2"),
    Mutant("rank", _EXP, "return float((sigma > 1e-5).sum())", "rank"),
    Mutant("softmax", _P, "p = torch.softmax(sigma, 0)", "softmax"),
    Mutant("not normalised", _P, "p = sigma", "not normalised"),
    Mutant("length 1", _P, "p = sigma / sigma.norm()", "length 1"),
    Mutant("stable in its place", _EXP, "return float((sigma / sigma[0]).square().sum())",
           "stable"),
    Mutant("participation", _EXP, "return float((sigma**2).sum() ** 2 / (sigma**4).sum())",
           "participation"),
    Mutant("in place", _SIGMA, "W *= 2; sigma = torch.linalg.svdvals(W.double())", "in place"),
    Mutant("not squared", _STABLE, _stable("values.norm() / values[0]"), "not squared"),
    Mutant("nuclear", _STABLE, _stable("values.sum() / values[0]"), "nuclear"),
    Mutant("one squared", _STABLE, _stable("values.square().sum() / values[0]"), "one squared"),
    Mutant("norm with 1", _STABLE,
           _stable("values.square().sum() / torch.linalg.matrix_norm(W.double(), 1) ** 2"),
           "other norm"),
    Mutant("largest entry", _STABLE,
           _stable("values.square().sum() / W.double().abs().max() ** 2"), "largest entry"),
    Mutant("frobenius twice", _STABLE, _stable("(values.norm() / W.double().norm()) ** 2"),
           "frobenius twice"),
    Mutant("smallest", _STABLE, _stable("(values / values[-1]).square().sum()"), "smallest"),
    Mutant("upside down", _STABLE, _stable("values[0] ** 2 / values.square().sum()"),
           "upside down"),
    Mutant("effective in its place", _STABLE,
           _stable("torch.special.entr(values / values.sum()).sum().exp()"), "effective"),
    Mutant("participation in its place", _STABLE,
           _stable("values.square().sum() ** 2 / (values**4).sum()"), "participation"),
    Mutant("0 log 0", _EXP, "return float((-(p * p.log()).sum()).exp())", "exact zeros"),
    Mutant("zero matrix", "if sigma[0] == 0:", "if False:", "zero matrix"),
    Mutant("stable of zeros", _STABLE, "return float((values / values[0]).square().sum())",
           "zero matrix"),
    Mutant("epsilon", _P, "p = sigma / (sigma.sum() + 1e-8)", "scale"),
    Mutant("squares in float32", _STABLE,
           _stable("W.float().norm() ** 2 / torch.linalg.svdvals(W.float())[0] ** 2"), "scale"),
    Mutant("bfloat16", _VALUES, "values = torch.linalg.svdvals(W)", "half precision"),
    Mutant("a text", _EXP, "return 'rank'", "not a number"),
    Mutant("no return", _STABLE, "values.sum()", "not a number"),
    Mutant("hole", _SIGMA, "raise NotImplementedError('your code here'); sigma = 0", "blank"),
)  # fmt: skip

ALTERNATIVES = (LOGARITHMS, NORMS)
