from course_utils.grading.mutants import Mutant

SELECTED = """
import torch

def clipped_loss(logprobs, old_logprobs, advantages, mask, clip=0.2):
    if not mask.any():
        return logprobs.new_zeros(())
    new, old, adv = logprobs[mask], old_logprobs.detach()[mask], advantages.detach()[mask]
    ratio = torch.exp(torch.clamp(new - old, min=-20.0, max=20.0))
    losses = torch.maximum(-adv * ratio, -adv * torch.clamp(ratio, 1.0 - clip, 1.0 + clip))
    return losses.mean()
"""

CASES = """
import torch

def clipped_loss(logprobs, old_logprobs, advantages, mask, clip=0.2):
    new, old, adv = (torch.where(mask, x, torch.zeros(())) for x in (
        logprobs, old_logprobs.detach(), advantages.detach()))
    ratio = (new - old).clamp(-20, 20).exp()
    good = torch.where(ratio > 1 + clip, torch.full_like(ratio, 1 + clip), ratio)
    bad = torch.where(ratio < 1 - clip, torch.full_like(ratio, 1 - clip), ratio)
    total = -(torch.where(adv > 0, good, bad) * adv).sum()
    return total / max(int(mask.sum()), 1)
"""

_LOG = "log_ratio = (logprobs - old_logprobs.detach()).masked_fill(~mask, 0.0)"
_RATIO = "ratio = log_ratio.clamp(-20, 20).exp()"
_ADV = "adv = advantages.detach().masked_fill(~mask, 0.0)"
_MIN = "objective = torch.min(ratio * adv, ratio.clamp(1 - clip, 1 + clip) * adv)"
_MEAN = "return -objective.sum() / mask.sum().clamp(min=1)"
MUTANTS = (
    Mutant("zeros", _MEAN, "return objective.sum() * 0", "zero"),
    Mutant("sign", _MEAN, "return objective.sum() / mask.sum().clamp(min=1)", "sign"),
    Mutant("max", "torch.min(", "torch.max(", "max"),
    Mutant("no clip", _MIN, "objective = ratio * adv", "no clip"),
    Mutant("always clipped", _MIN, "objective = ratio.clamp(1 - clip, 1 + clip) * adv",
           "always clipped"),
    Mutant("one side", "ratio.clamp(1 - clip, 1 + clip)", "ratio.clamp(max=1 + clip)",
           "clip one-sided"),
    Mutant("no mask", _LOG, "mask = torch.ones_like(mask); " + _LOG, "no mask"),
    Mutant("all positions", _MEAN, "return -objective.mean()", "divided by all"),
    Mutant("sum", _MEAN, "return -objective.sum()", "sum"),
    Mutant("per answer", _MEAN,
           "return -(objective.sum(1) / mask.sum(1).clamp(min=1)).mean()", "mean per answer"),
    Mutant("batch", _MEAN, "return -objective.sum() / len(mask)", "divided by batch"),
    Mutant("log-ratio", "torch.min(ratio * adv, ratio.clamp(1 - clip, 1 + clip) * adv)",
           "torch.min(log_ratio * adv, log_ratio.clamp(-clip, clip) * adv)", "log-ratio"),
    Mutant("inverse", _RATIO, "ratio = (-log_ratio).clamp(-20, 20).exp()", "inverse ratio"),
    Mutant("policy gradient", _MIN, "objective = logprobs.masked_fill(~mask, 0.0) * adv",
           "log-probability"),
    Mutant("clip ignored", "ratio.clamp(1 - clip, 1 + clip)", "ratio.clamp(0.8, 1.2)",
           "clip ignored"),
    Mutant("product clipped", "ratio.clamp(1 - clip, 1 + clip) * adv",
           "(ratio * adv).clamp(1 - clip, 1 + clip)", "product clipped"),
    Mutant("another default", "clip=0.2", "clip=0.1", "default"),
    Mutant("detached", "(logprobs - old", "(logprobs.detach() - old", "detached"),
    Mutant("old not detached", "old_logprobs.detach()", "old_logprobs",
           "old_logprobs not detached"),
    Mutant("advantages not detached", "advantages.detach()", "advantages",
           "advantages not detached"),
    Mutant("times the mask", _LOG, "log_ratio = (logprobs - old_logprobs.detach()) * mask",
           "padding leaks"),
    Mutant("masked after exp", _LOG + "\n    " + _RATIO,
           "ratio = torch.where(mask, (logprobs - old_logprobs.detach()).exp(), 1.0)",
           "nan gradient"),
    Mutant("overflow", ".clamp(-20, 20)", "", "overflow"),
    Mutant("empty mask", ".clamp(min=1)", "", "empty mask"),
    Mutant("pulled by the policy", _MEAN,
           "objective = objective - 0.1 * (logprobs - logprobs.detach()).masked_fill(~mask, 0.0)\n"
           "    " + _MEAN, "first gradient"),
    Mutant("half a gradient", _MIN,
           _MIN + "\n    objective = torch.where(ratio < 1, objective.detach(), objective)",
           "gradient"),
    Mutant("in place", _ADV, "adv = advantages.detach().masked_fill_(~mask, 0.0)", "in place"),
    Mutant("not reduced", _MEAN, "return -objective", "wrong shape"),
    Mutant("a float", _MEAN, "return float(-objective.sum() / mask.sum())", "not a tensor"),
)  # fmt: skip

ALTERNATIVES = (SELECTED, CASES)
