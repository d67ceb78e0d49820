from course_utils.grading.mutants import Mutant

SOFT_LABELS = """
import torch
import torch.nn.functional as F

def cdpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta, label_smoothing=0.0):
    u = beta * (chosen - rejected - (ref_chosen - ref_rejected).detach())
    return F.binary_cross_entropy_with_logits(u, torch.full_like(u, 1 - label_smoothing))
"""

LINEAR = """
import torch.nn.functional as F

def cdpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta, label_smoothing=0.0):
    ref_chosen, ref_rejected = ref_chosen.data, ref_rejected.data
    losses = []
    for w, l, rw, rl in zip(chosen, rejected, ref_chosen, ref_rejected):
        u = beta * ((w - rw) - (l - rl))
        losses.append(label_smoothing * u - F.logsigmoid(u))
    return sum(losses) / len(losses)
"""

_END = "return ((1 - label_smoothing) * as_labelled + label_smoothing * other_way).mean()"
_U = "u = beta * ((chosen - ref_chosen.detach()) - (rejected - ref_rejected.detach()))"
MUTANTS = (
    Mutant("zeros", _END, "return u.sum() * 0", "zero"),
    Mutant("sign", _END, "return -((1 - label_smoothing) * as_labelled + label_smoothing * "
           "other_way).mean()", "sign"),
    Mutant("ignored", _END, "return as_labelled.mean()", "smoothing ignored"),
    Mutant("swapped", _END, "return ((1 - label_smoothing) * other_way + label_smoothing * "
           "as_labelled).mean()", "swapped"),
    Mutant("subtracted", "as_labelled + label", "as_labelled - label", "subtracted"),
    Mutant("robust", _END, "return ((1 - label_smoothing) * as_labelled - label_smoothing * "
           "other_way).mean() / (1 - 2 * label_smoothing)", "robust"),
    Mutant("1 - ε missing", "(1 - label_smoothing) * as", "as", "not normalised"),
    Mutant("second term missing", " + label_smoothing * other_way", "", "second term missing"),
    Mutant("same term twice", "other_way = -F.logsigmoid(-u)", "other_way = F.logsigmoid(u)",
           "same term twice"),
    Mutant("halved", _END, "e = label_smoothing / 2; return ((1 - e) * as_labelled + e * "
           "other_way).mean()", "halved"),
    Mutant("mixed probability", _END, "p = u.double().sigmoid(); return -((1 - label_smoothing) * "
           "p + label_smoothing * (1 - p)).log().mean()", "mixed probability"),
    Mutant("margin scaled", _END, "return -F.logsigmoid((1 - 2 * label_smoothing) * u).mean()",
           "margin scaled"),
    Mutant("no beta", "u = beta * (", "u = (", "no beta"),
    Mutant("no reference", _U, "u = beta * (chosen - rejected)", "no reference"),
    Mutant("sum", ".mean()", ".sum()", "sum"),
    Mutant("not reduced", ".mean()", "", "wrong shape"),
    Mutant("other default", "label_smoothing=0.0", "label_smoothing=0.1", "default"),
    Mutant("log of sigmoid", "-F.logsigmoid(u)", "-torch.log(torch.sigmoid(u))", "unstable"),
    Mutant("log of 1 - sigmoid", "-F.logsigmoid(-u)", "-torch.log(1 - torch.sigmoid(u))",
           "unstable"),
    Mutant("reference attached", "ref_rejected.detach()", "ref_rejected",
           "reference not detached"),
    Mutant("detached", "(chosen - ref_chosen.detach())", "(chosen - ref_chosen).detach()",
           "detached"),
    Mutant("second term detached", "other_way = -F.logsigmoid(-u)",
           "other_way = -F.logsigmoid(-u.detach())", "gradient"),
    Mutant("in place", "u = beta * ((chosen", "rejected.data -= 1; u = beta * (-1 + (chosen",
           "in place"),
    Mutant("hole", _END, "raise NotImplementedError('your code here')", "blank"),
)  # fmt: skip

ALTERNATIVES = (SOFT_LABELS, LINEAR)
