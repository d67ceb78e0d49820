from course_utils.grading.mutants import Mutant

MSE = """
import torch
import torch.nn.functional as F

def ipo_loss(chosen, rejected, ref_chosen, ref_rejected, beta):
    wanted = (ref_chosen - ref_rejected).detach() + 0.5 / beta
    return F.mse_loss(chosen - rejected, wanted)
"""

EXPANDED = """
import torch

def ipo_loss(chosen, rejected, ref_chosen, ref_rejected, beta):
    with torch.no_grad():
        base = ref_chosen - ref_rejected
    total = 0
    for i in range(len(chosen)):
        d = (chosen[i] - rejected[i] - base[i]) * 2 * beta - 1
        total = total + d * d
    return total / (len(chosen) * 4 * beta**2)
"""

_END = "return (h - 1 / (2 * beta)).square().mean()"
MUTANTS = (
    Mutant("zeros", _END, "return h.sum() * 0", "zero"),
    Mutant("sign", _END, "return -(h - 1 / (2 * beta)).square().mean()", "sign"),
    Mutant("beta in h", _END, "return (beta * h - 1 / (2 * beta)).square().mean()", "beta in h"),
    Mutant("1/beta", "1 / (2 * beta)", "1 / beta", "target 1/beta"),
    Mutant("beta/2", "1 / (2 * beta)", "beta / 2", "target beta/2"),
    Mutant("precedence", "1 / (2 * beta)", "1 / 2 * beta", "target beta/2"),
    Mutant("2/beta", "1 / (2 * beta)", "2 / beta", "target 2/beta"),
    Mutant("2 beta", "1 / (2 * beta)", "2 * beta", "target 2 beta"),
    Mutant("one half", _END, "return (beta * h - 0.5).square().mean()", "target half"),
    Mutant("plus", "h - 1", "h + 1", "target added"),
    Mutant("reversed", "h = (chosen - ref_chosen.detach()) - (rejected - ref_rejected.detach())",
           "h = (rejected - ref_rejected.detach()) - (chosen - ref_chosen.detach())",
           "target added"),
    Mutant("no target", _END, "return h.square().mean()", "no target"),
    Mutant("no reference", "h = (chosen - ref_chosen.detach()) - (rejected - ref_rejected.detach())",
           "h = chosen - rejected", "no reference"),
    Mutant("half", _END, "return 0.5 * (h - 1 / (2 * beta)).square().mean()", "half"),
    Mutant("not squared", ".square()", "", "not squared"),
    Mutant("absolute", ".square()", ".abs()", "absolute"),
    Mutant("mean first", _END, "return (h - 1 / (2 * beta)).mean().square()",
           "mean before the square"),
    Mutant("sum", ".mean()", ".sum()", "sum"),
    Mutant("one-sided", _END, "return (1 / (2 * beta) - h).relu().square().mean()", "one-sided"),
    Mutant("DPO", _END, "return -F.logsigmoid(beta * h).mean()", "dpo"),
    Mutant("clamped", _END, "return (h.clamp(-50, 50) - 1 / (2 * beta)).square().mean()",
           "far away"),
    Mutant("not reduced", ".mean()", "", "wrong shape"),
    Mutant("reference attached", "ref_chosen.detach()", "ref_chosen", "reference not detached"),
    Mutant("detached", "(chosen - ref_chosen.detach())", "(chosen - ref_chosen).detach()",
           "detached"),
    Mutant("in place", "h = (chosen", "ref_rejected.data += 1; h = -1 + (chosen", "in place"),
    Mutant("hole", _END, "raise NotImplementedError('your code here')", "blank"),
)  # fmt: skip

ALTERNATIVES = (MSE, EXPANDED)
