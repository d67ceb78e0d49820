from course_utils.grading.mutants import Mutant

LOGADDEXP = """
import torch

def bradley_terry_loss(chosen, rejected, margin=None):
    d = chosen.to(torch.float32) - rejected.to(torch.float32)
    if margin is not None:
        d = d - margin
    return torch.stack([torch.zeros_like(d), -d]).logsumexp(dim=0).sum() / len(d)
"""

CROSS_ENTROPY = """
import torch
import torch.nn.functional as F

def bradley_terry_loss(chosen, rejected, margin=None):
    shift = 0.0 if margin is None else margin
    logits = torch.stack([chosen.float() - shift, rejected.float()], dim=1)
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long))
"""

BY_HAND = """
def bradley_terry_loss(chosen, rejected, margin=None):
    total = 0.0
    for i in range(len(chosen)):
        d = chosen[i].double() - rejected[i].double() - (0.0 if margin is None else margin[i])
        # each branch takes the exponential of a negative number
        total = total + ((-d).exp().log1p() if d > 0 else d.exp().log1p() - d)
    return total / len(chosen)
"""

_LOSS = "return -F.logsigmoid(difference).mean()"
_DIFFERENCE = "difference = chosen.float() - rejected.float()"
MUTANTS = (
    Mutant("zeros", _LOSS, "return difference.sum() * 0", "zero"),
    Mutant("sign", _LOSS, "return F.logsigmoid(difference).mean()", "sign"),
    Mutant("swapped", _DIFFERENCE, "difference = rejected.float() - chosen.float()", "swapped"),
    Mutant("sum", ".mean()", ".sum()", "sum"),
    Mutant("not reduced", ".mean()", "", "wrong shape"),
    Mutant("probability", _LOSS, "return (1 - torch.sigmoid(difference)).mean()", "probability"),
    Mutant("no logarithm", _LOSS, "return -torch.sigmoid(difference).mean()", "no logarithm"),
    Mutant("no sigmoid", _LOSS, "return -difference.mean()", "no sigmoid"),
    Mutant("mean first", _LOSS, "return -F.logsigmoid(difference.mean())", "mean too early"),
    Mutant("log of the mean", _LOSS, "return -torch.sigmoid(difference).mean().log()",
           "log of the mean"),
    Mutant("each by itself", _LOSS, "return -(F.logsigmoid(chosen) + F.logsigmoid(-rejected)).mean()",
           "each by itself"),
    Mutant("hinge", _LOSS, "return torch.relu(1 - difference).mean()", "hinge"),
    Mutant("margin ignored", "if margin is not None", "if False", "margin ignored"),
    Mutant("margin added", "difference - margin", "difference + margin", "margin's sign"),
    Mutant("margin multiplied", "difference - margin", "difference * margin", "margin times"),
    Mutant("unstable", "F.logsigmoid(difference)", "torch.sigmoid(difference).log()", "unstable"),
    Mutant("cut off", "F.logsigmoid(difference)", "(torch.sigmoid(difference) + 1e-8).log()",
           "unstable"),
    Mutant("exponential", _LOSS, "return (-difference).exp().log1p().mean()", "unstable"),
    Mutant("nan gradient", "F.logsigmoid(difference)", "torch.where(difference < -50, difference, "
           "torch.sigmoid(difference).log())", "nan gradient"),
    Mutant("half precision", _DIFFERENCE, "difference = chosen - rejected", "half precision"),
    Mutant("one side detached", "rejected.float()", "rejected.detach().float()", "detached"),
    Mutant("a float", _LOSS, "return -F.logsigmoid(difference).mean().item()", "not a tensor"),
    Mutant("in place", _DIFFERENCE, "difference = chosen.float().detach().sub_(rejected.float())",
           "in place"),
)  # fmt: skip

ALTERNATIVES = (LOGADDEXP, CROSS_ENTROPY, BY_HAND)
