from course_utils.grading.mutants import Mutant

LOOP = """
import math
import torch

def best_of_n(rewards):
    chosen = []
    for row in rewards.tolist():
        numbers = [(-r, i) for i, r in enumerate(row) if r == r]
        chosen.append(min(numbers)[1] if numbers else 0)
    return torch.tensor(chosen)

def best_of_n_kl(n):
    return math.log(n) + 1 / n - 1
"""

TWO_KEYS = """
import torch

def best_of_n(rewards):
    nan = rewards.isnan()
    safe = torch.where(nan, torch.full_like(rewards, float("-inf")), rewards)
    order = torch.sort(safe, dim=1, descending=True, stable=True).indices
    order = order.gather(1, nan.gather(1, order).long().argsort(dim=1, stable=True))
    return order[:, 0]

def best_of_n_kl(n):
    x = torch.tensor(float(n), dtype=torch.float64)
    return x.log() - (x - 1) / x
"""

_TOP = "highest = rewards.masked_fill(~number, -math.inf).amax(dim=1, keepdim=True)"
_PICK = "return candidates.int().argmax(dim=1)"
_KL = "return math.log(n) - (n - 1) / n"
MUTANTS = (
    Mutant("first", _PICK, "return candidates.int().argmax(dim=1) * 0", "first answer"),
    Mutant("worst", _PICK, "return rewards.argmin(dim=1)", "worst"),
    Mutant("magnitude", _PICK, "return rewards.abs().argmax(dim=1)", "magnitude"),
    Mutant("last tie", _PICK,
           "return rewards.shape[1] - 1 - candidates.flip(1).int().argmax(dim=1)",
           "last of equals"),
    Mutant("values", _PICK, "return highest[:, 0]", "values"),
    Mutant("floats", _PICK, "return candidates.int().argmax(dim=1).float()", "wrong dtype"),
    Mutant("wrong axis", _PICK, "return candidates.int().argmax(dim=0)", "wrong shape"),
    Mutant("one for all", _PICK,
           "return (rewards.argmax() % rewards.shape[1]).repeat(len(rewards))", "all prompts"),
    Mutant("no return", _PICK, "candidates.int().argmax(dim=1)", "not a tensor"),
    Mutant("in place", "number = ~rewards.isnan()",
           "number = ~rewards.isnan(); rewards += 1", "in place"),
    Mutant("nan chosen", _PICK, "return rewards.argmax(dim=1)", "nan chosen"),
    Mutant("nan as 0", _PICK, "return rewards.masked_fill(~number, 0.0).argmax(dim=1)",
           "nan as 0"),
    Mutant("nan as -inf", _PICK, "return rewards.masked_fill(~number, -math.inf).argmax(dim=1)",
           "nan as -inf"),
    Mutant("nan as the lowest float", _PICK,
           "return rewards.masked_fill(~number, torch.finfo(rewards.dtype).min).argmax(dim=1)",
           "nan above -inf"),
    Mutant("-1 for only nan", _PICK,
           "return candidates.int().argmax(dim=1).masked_fill(~number.any(1), -1)", "only nan"),
    Mutant("an error for nan", _TOP, "assert number.all(); " + _TOP, "unusual"),
    Mutant("log n", _KL, "return math.log(n)", "only log n"),
    Mutant("log n - 1", _KL, "return math.log(n) - 1", "log n - 1"),
    Mutant("base 2", _KL, "return math.log2(n) - (n - 1) / n", "log 2"),
    Mutant("1 / n", _KL, "return math.log(n) - 1 / n", "1 / n"),
    Mutant("upside down", _KL, "return math.log(n) - n / (n - 1)", "upside down"),
    Mutant("kl sign", _KL, "return (n - 1) / n - math.log(n)", "kl sign"),
    Mutant("added", _KL, "return math.log(n) + (n - 1) / n", "added"),
    Mutant("no kl returned", _KL, "math.log(n)", "not a number"),
    Mutant("hole", "number = ~rewards.isnan()",
           "raise NotImplementedError('your code here'); number = 0", "blank"),
    Mutant("second hole", _KL, "raise NotImplementedError('your code here')", "blank"),
)  # fmt: skip

ALTERNATIVES = (LOOP, TWO_KEYS)
