from course_utils.grading.mutants import Mutant

IN_DOUBLE = """
def kl_estimate(logprobs, ref_logprobs, kind):
    d = logprobs.double() - ref_logprobs.double()
    kinds = {"k1": d, "k2": 0.5 * d * d, "k3": (-d).exp() - 1 + d}
    return kinds[kind].clamp(min=0).float() if kind == "k3" else kinds[kind].float()
"""

SERIES = """
import torch

def kl_estimate(logprobs, ref_logprobs, kind):
    d = logprobs.to(torch.float32) - ref_logprobs.to(torch.float32)
    if kind == "k1":
        return d
    square = d.square() / 2
    if kind == "k2":
        return square
    near = square * (1 - d / 3 + d.square() / 12)  # exp(-d) - 1 + d = d²/2 - d³/6 + d⁴/24 ...
    safe = torch.where(d.abs() < 0.02, torch.ones_like(d), d)
    return torch.where(d.abs() < 0.02, near, (-safe).exp() - 1 + safe)
"""

_K3 = "return torch.expm1(-d) + d"
_D = "d = logprobs.float() - ref_logprobs.float()"
MUTANTS = (
    Mutant("zeros", _D, "d = logprobs.float() * 0", "zero"),
    Mutant("turned round", _D, "d = ref_logprobs.float() - logprobs.float()", "direction"),
    Mutant("k3 turned round", _K3, "return torch.expm1(d) - d", "direction"),
    Mutant("no half", "d**2 / 2", "d**2", "half"),
    Mutant("no square", "d**2 / 2", "d.abs() / 2", "root"),
    Mutant("k3 without -1", _K3, "return torch.exp(-d) + d", "minus one"),
    Mutant("k3 minus d", _K3, "return torch.expm1(-d) - d", "k3 sign of d"),
    Mutant("k3 without d", _K3, "return torch.expm1(-d)", "no correction"),
    Mutant("k3 of the ratio", _K3, "return torch.expm1(d) + d", "ratio"),
    Mutant("always k3", 'if kind == "k1":', 'if kind == "k0":', "k3 for k1"),
    Mutant("always k1", 'if kind == "k1":', "if True:", "k1 for k2"),
    Mutant("probabilities", _D, "d = logprobs.float().exp() - ref_logprobs.float().exp()",
           "probabilities"),
    Mutant("weighted", "        return d\n", "        return d * logprobs.exp()\n", "weighted"),
    Mutant("mean", "        return d\n", "        return d.mean()\n", "reduced"),
    Mutant("mean of rows", "        return d\n", "        return d.mean(-1)\n", "reduced"),
    Mutant("cancellation", _K3, "return (-d).exp() - 1 + d", "cancellation"),
    Mutant("detached", _D, "d = logprobs.detach().float() - ref_logprobs.float()", "detached"),
    Mutant("half precision", _D, "d = logprobs - ref_logprobs", "half precision"),
    Mutant("straight-through", _K3, "return (torch.expm1(-d) + d).detach() + d - d.detach()",
           "gradient"),
    Mutant("in place", _D, "d = logprobs.sub_(ref_logprobs).float()", "in place"),
    Mutant("a fixed shape", _D, _D + "; assert d.dim() == 2", "raised"),
    Mutant("no return", _K3, "torch.expm1(-d) + d", "not a tensor"),
)  # fmt: skip

ALTERNATIVES = (IN_DOUBLE, SERIES)
