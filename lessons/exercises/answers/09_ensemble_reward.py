from course_utils.grading.mutants import Mutant

LOOPS = """
import math
import torch

def ensemble_reward(scores, how="mean", lam=1.0, sample=False, standardise=False):
    rows = [[float(v) for v in row] for row in scores]
    if standardise:
        for i, row in enumerate(rows):
            mean = sum(row) / len(row)
            std = math.sqrt(sum((v - mean) ** 2 for v in row) / len(row))
            rows[i] = [0.0 if min(row) == max(row) else (v - mean) / std for v in row]
    out = []
    for column in zip(*rows):
        mean = sum(column) / len(column)
        if how == "mean":
            out.append(mean)
        elif how == "min":
            out.append(min(column))
        elif how == "mean_minus_std":
            n = len(column) - 1 if sample else len(column)
            square = sum((v - mean) ** 2 for v in column)
            out.append(mean - lam * math.sqrt(square / n) if n else mean)
        else:
            raise ValueError(how)
    return torch.tensor(out)
"""

TORCH = """
import torch

def ensemble_reward(scores, how="mean", lam=1.0, sample=False, standardise=False):
    ways = {
        "mean": lambda s: s.mean(0),
        "min": lambda s: s.amin(0),
        "mean_minus_std": lambda s: s.mean(0) - lam * (
            s.std(0, unbiased=sample) if len(s) > 1 else torch.zeros_like(s[0])
        ),
    }
    if how not in ways:
        raise ValueError(f"{how!r} is none of {list(ways)}")
    s = scores.float()
    if standardise:
        s = s.double()
        same = (s == s[:, :1]).all(1, keepdim=True)
        std = torch.where(same, 1.0, (s - s.mean(1, keepdim=True)).square().mean(1, True).sqrt())
        s = torch.where(same, 0.0, (s - s.mean(1, keepdim=True)) / std)
    return ways[how](s)
"""

_MEAN = 'if how == "mean":\n        return mean'
_MINUS = "return mean - lam * std"
_OWN = "scores = (centred / spread).masked_fill(silent, 0.0)"
_CENTRED = "centred = scores - scores.mean(dim=1, keepdim=True)"
_SPREAD = "spread = centred.square().mean(dim=1, keepdim=True).sqrt()"
MUTANTS = (
    Mutant("zeros", "mean = scores.mean(dim=0)", "return scores[0] * 0", "zero"),
    Mutant("sum", "mean = scores.mean(dim=0)", "mean = scores.sum(dim=0)", "sum"),
    Mutant("median", "mean = scores.mean(dim=0)", "mean = scores.quantile(0.5, dim=0)", "median"),
    Mutant("first member", "mean = scores.mean(dim=0)", "mean = scores[0]", "first member"),
    Mutant("max", "scores.amin(dim=0)", "scores.amax(dim=0)", "max"),
    Mutant("min is mean", "scores.amin(dim=0)", "mean", "only mean"),
    Mutant("always the mean", _MINUS, "return mean", "only mean"),
    Mutant("lam ignored", _MINUS, "return mean - std", "lam ignored"),
    Mutant("plus", _MINUS, "return mean + lam * std", "plus"),
    Mutant("variance", _MINUS, "return mean - lam * std**2", "variance"),
    Mutant("only std", _MINUS, "return -lam * std", "only std"),
    Mutant("sample always", "members - 1 if sample else members", "members - 1", "sample"),
    Mutant("sample ignored", "members - 1 if sample else members", "members", "population"),
    Mutant("wrong dimension", "mean = scores.mean(dim=0)", "mean = scores.mean(dim=1)",
           "wrong shape"),
    Mutant("one std", _MINUS, "return mean - lam * scores.std(unbiased=sample)", "one std"),
    Mutant("std over answers", _MINUS, "return mean - lam * scores.std(1, unbiased=sample).mean()",
           "std over answers"),
    Mutant("not standardised", "if standardise:", "if False:", "not standardised"),
    Mutant("over members", _CENTRED + "\n        " + _SPREAD,
           "centred = scores - scores.mean(0)\n        spread = scores.std(0, unbiased=False)",
           "over the members"),
    Mutant("over everything", _CENTRED + "\n        " + _SPREAD,
           "centred = scores - scores.mean()\n        spread = scores.std(unbiased=False)",
           "over everything"),
    Mutant("not centred", _OWN, "scores = scores / spread", "not centred"),
    Mutant("only centred", _OWN, "scores = centred", "only centred"),
    Mutant("sample std", _SPREAD, "spread = scores.std(dim=1, keepdim=True, unbiased=True)",
           "sample std"),
    Mutant("spread by sample", _SPREAD, "spread = scores.std(dim=1, keepdim=True, unbiased=sample)",
           "sample std"),
    Mutant("silent not filled", _OWN, "scores = centred / spread", "silent member"),
    Mutant("by an eps", _OWN, "scores = scores.float(); centred = scores - scores.mean(1, True); "
           "scores = centred / (centred.square().mean(1, True).sqrt() + 1e-12)", "silent member"),
    Mutant("one member", "if members > 1 else torch.zeros_like(mean)", "", "one member"),
    Mutant("half", "scores = scores.double()", "scores = scores if scores.element_size() == 2 "
           "else scores.double()", "half precision"),
    Mutant("mean square", "squares = (scores - mean).square().sum(dim=0)",
           "f = scores.float(); squares = members * (f.square().mean(0) - f.mean(0).square())"
           ".clamp(min=0).double()", "level"),
    Mutant("unknown how", "raise ValueError", "return mean; raise ValueError", "unknown how"),
    Mutant("wrong error", "raise ValueError", "raise KeyError", "unknown how"),
    Mutant("in place", "scores = scores.double()", "scores *= 2; scores = scores.double() / 2",
           "in place"),
    Mutant("a list", _MEAN, 'if how == "mean":\n        return mean.tolist()', "not a tensor"),
    Mutant("hole", "scores = scores.double()", "raise NotImplementedError('your code here')",
           "blank"),
)  # fmt: skip

ALTERNATIVES = (LOOPS, TORCH)
