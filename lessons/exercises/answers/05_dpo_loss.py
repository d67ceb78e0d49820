from course_utils.grading.mutants import Mutant

SOFTPLUS = """
import torch.nn.functional as F

def dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta=0.1):
    by_policy = chosen - rejected
    by_reference = (ref_chosen - ref_rejected).detach()
    return F.softplus(beta * (by_reference - by_policy), threshold=60).mean()
"""

CLASSIFIER = """
import torch

def dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta=0.1):
    with torch.no_grad():
        constant = ref_chosen - ref_rejected
    u = beta * (chosen - rejected - constant)
    both = torch.stack([u, torch.zeros_like(u)], dim=1)  # two classes: the chosen one is right
    return torch.nn.functional.cross_entropy(both, torch.zeros(len(u), dtype=torch.long))
"""

SLOW = """
import torch

def dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta=0.1):
    total = 0.0
    for w, l, rw, rl in zip(chosen, rejected, ref_chosen.data, ref_rejected.data):
        u = beta * ((w - rw) - (l - rl))
        total = total + torch.logaddexp(torch.zeros(()), -u)
    return total / chosen.numel()
"""

_U = "beta * (chosen_ratio - rejected_ratio)"
_END = "return -F.logsigmoid(u).mean()"
_STABLE = "F.logsigmoid(u)"
MUTANTS = (
    Mutant("zeros", _END, "return u.sum() * 0", "zero"),
    Mutant("sign", _END, "return F.logsigmoid(u).mean()", "sign"),
    Mutant("reversed", _U, "beta * (rejected_ratio - chosen_ratio)", "reversed"),
    Mutant("no reference", _U, "beta * (chosen - rejected)", "no reference"),
    Mutant("reference added", _U,
           "beta * (chosen + ref_chosen.detach() - rejected - ref_rejected.detach())",
           "reference added"),
    Mutant("chosen only", _U, "beta * chosen_ratio", "chosen only"),
    Mutant("no beta", _U, "chosen_ratio - rejected_ratio", "no beta"),
    Mutant("beta outside", "u = " + _U, "u = chosen_ratio - rejected_ratio\n    "
           "return -beta * F.logsigmoid(u).mean()", "beta outside"),
    Mutant("divided by beta", _U, "(chosen_ratio - rejected_ratio) / beta", "divided by beta"),
    Mutant("sum", _END, "return -F.logsigmoid(u).sum()", "sum"),
    Mutant("mean of margins", _END, "return -F.logsigmoid(u.mean())", "mean of margins"),
    Mutant("probability", _STABLE, "torch.sigmoid(u)", "probability"),
    Mutant("IPO", _END, "return (u / beta - 1 / (2 * beta)).square().mean()", "squared"),
    Mutant("other default", "beta=0.1", "beta=0.2", "default"),
    Mutant("not reduced", _END, "return -F.logsigmoid(u)", "wrong shape"),
    Mutant("a float", _END, "return (-F.logsigmoid(u).mean()).item()", "not a tensor"),
    Mutant("log of sigmoid", _STABLE, "torch.log(torch.sigmoid(u))", "unstable"),
    Mutant("epsilon", _STABLE, "torch.log(torch.sigmoid(u) + 1e-8)", "unstable"),
    Mutant("log1p of exp", _STABLE, "(-torch.log1p(torch.exp(-u)))", "unstable"),
    Mutant("fraction", _STABLE, "torch.log(torch.exp(beta * chosen_ratio) / "
           "(torch.exp(beta * chosen_ratio) + torch.exp(beta * rejected_ratio)))", "unstable"),
    Mutant("clamped", _STABLE, "F.logsigmoid(u.clamp(-100, 100))", "unstable"),
    Mutant("NaN gradient", _STABLE, "torch.where(u > -50, -torch.log1p(torch.exp(-u)), u)",
           "unstable gradient"),
    Mutant("detached", "chosen - ref_chosen.detach()", "(chosen - ref_chosen).detach()",
           "detached"),
    Mutant("rejected detached", "rejected - ref_rejected.detach()",
           "(rejected - ref_rejected).detach()", "detached"),
    Mutant("weight detached", _END, "loss = -F.logsigmoid(u).mean(); "
           "return loss + (u - u.detach()).sum()", "gradient"),
    Mutant("reference attached", "ref_chosen.detach()", "ref_chosen", "reference not detached"),
    Mutant("rejected reference attached", "ref_rejected.detach()", "ref_rejected",
           "reference not detached"),
    Mutant("in place", "chosen_ratio = chosen", "ref_chosen.data += 1; ref_chosen.data -= 3; "
           "chosen = chosen - 2; chosen_ratio = chosen", "in place"),
    Mutant("hole", "chosen_ratio = chosen", "raise NotImplementedError('your code here'); "
           "chosen_ratio = chosen", "blank"),
)  # fmt: skip

ALTERNATIVES = (SOFTPLUS, CLASSIFIER, SLOW)
