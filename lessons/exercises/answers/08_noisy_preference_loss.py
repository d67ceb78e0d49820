from course_utils.grading.mutants import Mutant

CROSS_ENTROPY = """
import math
import torch
import torch.nn.functional as F

def noisy_preference_loss(h, beta, eps, robust=False):
    u = h.to(torch.float64) * beta
    eps = torch.as_tensor(eps, dtype=torch.float64).expand(u.shape)
    right = (1 - eps) if not robust else (1 - eps) / (1 - 2 * eps)
    return F.binary_cross_entropy_with_logits(u, right, reduction="none").float()

def best_margin(beta, eps):
    if eps == 0:
        return math.inf
    return torch.logit(torch.tensor(1 - eps, dtype=torch.float64)).item() / beta
"""

SOFTPLUS = """
import math
import torch

def noisy_preference_loss(h, beta, eps, robust=False):
    u = h.float() * beta
    plain = torch.clamp(-u, min=0) + torch.log1p(torch.exp(-abs(u)))
    slope = -eps / (1 - 2 * eps) if robust else eps
    return plain + slope * u

def best_margin(beta, eps):
    if eps <= 0:
        return torch.tensor(math.inf)
    return torch.tensor((math.log1p(-eps) - math.log(eps)) / beta)
"""

_U = "u = beta * h.float()"
_F = "given, turned = -F.logsigmoid(u), -F.logsigmoid(-u)"
_CDPO = "return (1 - eps) * given + eps * turned"
_ROBUST = "return ((1 - eps) * given - eps * turned) / (1 - 2 * eps)"
_IF = "if robust:"
_BEST = "return math.log((1 - eps) / eps) / beta if eps > 0 else math.inf"
MUTANTS = (
    Mutant("zeros", _CDPO, "return 0 * given", "zero"),
    Mutant("sign", _F, "given, turned = F.logsigmoid(u), F.logsigmoid(-u)", "sign"),
    Mutant("eps ignored", _CDPO, "return given", "eps ignored"),
    Mutant("eps swapped", _CDPO, "return eps * given + (1 - eps) * turned",
           "eps on the wrong side"),
    Mutant("half eps", _CDPO, "return (1 - eps / 2) * given + eps / 2 * turned", "half eps"),
    Mutant("no beta", _U, "u = h.float()", "no beta"),
    Mutant("beta outside", _U, "u = h.float(); return beta * ((1 - eps) * -F.logsigmoid(u) "
           "- eps * F.logsigmoid(-u))", "beta outside"),
    Mutant("beta divides", _U, "u = h.float() / beta", "beta divides"),
    Mutant("one term", _CDPO, "return (1 - eps) * given", "no second term"),
    Mutant("minus", _CDPO, "return (1 - eps) * given - eps * turned", "plus"),
    Mutant("always robust", _IF, "if True:", "robust"),
    Mutant("probabilities", _F, "given, turned = 1 - torch.sigmoid(u), 1 - torch.sigmoid(-u)",
           "probabilities"),
    Mutant("mean eps", _U, "u = beta * h.float(); eps = float(torch.as_tensor(eps).mean())",
           "one eps for all"),
    Mutant("float eps only", _U, "u = beta * h.float(); assert eps < 0.5", "eps per pair"),
    Mutant("reduced", _CDPO, "return ((1 - eps) * given + eps * turned).mean()", "wrong shape"),
    Mutant("in place", _U, "u = beta * h.float(); h *= beta", "in place"),
    Mutant("never robust", _IF, "if False:", "robust ignored"),
    Mutant("not divided", _ROBUST, "return (1 - eps) * given - eps * turned", "not divided"),
    Mutant("divided by 1 - eps", _ROBUST,
           "return ((1 - eps) * given - eps * turned) / (1 - eps)", "divided by 1 - eps"),
    Mutant("divided by 1 + 2 eps", _ROBUST,
           "return ((1 - eps) * given - eps * turned) / (1 + 2 * eps)", "divided by 1 + 2 eps"),
    Mutant("multiplied", _ROBUST, "return ((1 - eps) * given - eps * turned) * (1 - 2 * eps)",
           "multiplied"),
    Mutant("not subtracted", _ROBUST,
           "return ((1 - eps) * given + eps * turned) / (1 - 2 * eps)", "not subtracted"),
    Mutant("robust swapped", _ROBUST,
           "return (eps * given - (1 - eps) * turned) / (2 * eps - 1)", "eps on the wrong side"),
    Mutant("unstable", _F, "given, turned = -torch.sigmoid(u).log(), -torch.sigmoid(-u).log()",
           "unstable"),
    Mutant("half precision", _U, "u = beta * h", "half precision"),
    Mutant("detached", _U, "u = beta * h.detach().float()", "detached"),
    Mutant("turned detached", _F, _F.replace("-F.logsigmoid(-u)", "-F.logsigmoid(-u).detach()"),
           "gradient"),
    Mutant("margin without beta", _BEST,
           "return math.log((1 - eps) / eps) if eps > 0 else math.inf", "margin without beta"),
    Mutant("margin times beta", _BEST,
           "return math.log((1 - eps) / eps) * beta if eps > 0 else math.inf",
           "margin times beta"),
    Mutant("margin sign", _BEST, "return math.log(eps / (1 - eps)) / beta if eps > 0 else "
           "math.inf", "margin sign"),
    Mutant("probability", _BEST, "return 1 - eps", "probability"),
    Mutant("log(1 / eps)", _BEST, "return -math.log(eps) / beta", "log(1 / eps)"),
    Mutant("eps is 0", _BEST, "return math.log((1 - eps) / eps) / beta", "eps is 0"),
    Mutant("eps clamped", _BEST, "return math.log((1 - eps) / max(eps, 1e-30)) / beta",
           "eps is 0"),
    Mutant("a text", _BEST, "return 'log((1 - eps) / eps) / beta'", "not a number"),
    Mutant("no return", _CDPO, "(1 - eps) * given + eps * turned", "not a tensor"),
    Mutant("hole", _U, "raise NotImplementedError('your code here'); u = 0", "blank"),
)  # fmt: skip

ALTERNATIVES = (CROSS_ENTROPY, SOFTPLUS)
