from course_utils.grading.mutants import Mutant

LOOP = """
import torch

def group_advantage(rewards, group_size, scale=True, eps=1e-4):
    out = []
    for group in rewards.double().split(group_size):
        if bool((group == group[0]).all()):
            out.append(torch.zeros_like(group))
            continue
        centred = group - group.mean()
        out.append(centred / (centred.std() + eps) if scale else centred)
    return torch.cat(out).float()
"""

BY_HAND = """
import torch

def group_advantage(rewards, group_size, scale=True, eps=1e-4):
    r = rewards.reshape(-1, group_size).to(torch.float64)
    d = r - r.sum(1, keepdim=True) / group_size
    flat = r.amax(1, keepdim=True) == r.amin(1, keepdim=True)
    if scale:
        norm = (d.square().sum(1, keepdim=True) / max(group_size - 1, 1)).sqrt() + eps
        d = d / torch.where(flat, torch.ones_like(norm), norm)
    return torch.where(flat, torch.zeros_like(d), d).reshape(-1)
"""

_STD = "std = centred.std(dim=1, keepdim=True) if group_size > 1 else 1.0"
_GROUPS = "groups = rewards.double().reshape(-1, group_size)"
_MEAN = "groups.mean(dim=1, keepdim=True)"
_LAST = "return advantages.masked_fill(silent, 0.0).flatten().float()"
_SCALE = "advantages = centred / (std + eps) if scale else centred"
MUTANTS = (
    Mutant("zeros", _LAST, "return advantages.flatten().float() * 0", "zero"),
    Mutant("the rewards", _LAST, "return rewards.float()", "rewards"),
    Mutant("sign", "centred = groups - " + _MEAN, "centred = " + _MEAN + " - groups", "sign"),
    Mutant("whole batch", _GROUPS, "groups = rewards.double().view(1, -1)", "whole batch"),
    Mutant("mean of the batch", _MEAN, "groups.mean()", "mean of the batch"),
    Mutant("std of the batch", _STD, "std = groups.std() if group_size > 1 else 1.0",
           "std of the batch"),
    Mutant("mixed groups", _LAST, "r = rewards.double().view(group_size, -1); "
           "return ((r - r.mean(0)) / (r.std(0) + eps)).flatten().float()", "grouped wrongly"),
    Mutant("population", "centred.std(dim=1, keepdim=True)",
           "centred.std(dim=1, keepdim=True, unbiased=False)", "population std"),
    Mutant("no division", _SCALE, "advantages = centred", "not divided"),
    Mutant("no mean", "centred = groups - " + _MEAN, "centred = groups", "only divided"),
    Mutant("variance", _STD, "std = centred.var(dim=1, keepdim=True) if group_size > 1 else 1.0",
           "variance"),
    Mutant("leave one out", _LAST, "return (groups - (groups.sum(1, keepdim=True) - groups) / "
           "max(group_size - 1, 1)).flatten().float()", "leave one out"),
    Mutant("median", _MEAN, "groups.quantile(0.5, dim=1, keepdim=True)", "median"),
    Mutant("scale ignored", "if scale else centred", "", "scale ignored"),
    Mutant("divided by eps", "if scale else centred", "if scale else centred / eps",
           "scaled by eps"),
    Mutant("eps ignored", "(std + eps)", "(std + 1e-4)", "eps ignored"),
    Mutant("eps under the root", "(std + eps)", "(std**2 + eps)**0.5", "eps under the root"),
    Mutant("eps as a floor", "(std + eps)", "(torch.as_tensor(std).clamp(min=eps))",
           "eps as a floor"),
    Mutant("silent not filled", _LAST, "return advantages.flatten().float()", "silent group"),
    Mutant("NaN to 0", _LAST, "f = rewards.float().reshape(-1, group_size); c = f - f.mean(1, "
           "keepdim=True); return (c / (c.std(1, keepdim=True) + eps) if scale else c)"
           ".nan_to_num(0.0).flatten()", "silent group"),
    Mutant("no integers", "rewards.double()", "(rewards * (rewards.mean() * 0 + 1))", "integers"),
    Mutant("half", _GROUPS, "groups = rewards.view(-1, group_size) if rewards.dtype in "
           "(torch.half, torch.bfloat16) else rewards.double().view(-1, group_size)",
           "half precision"),
    Mutant("dtype kept", ".flatten().float()", ".flatten().to(rewards.dtype if "
           "rewards.is_floating_point() else torch.float32)", "dtype"),
    Mutant("mean square", _STD, "f = rewards.float().view(-1, group_size); std = (((f**2).mean(1, "
           "keepdim=True) - f.mean(1, keepdim=True)**2).clamp(min=0) * group_size / "
           "(group_size - 1)).sqrt() if group_size > 1 else 1.0", "level"),
    Mutant("one answer", "if group_size > 1 else 1.0", "; silent = silent & (group_size > 1)",
           "group of one"),
    Mutant("in place", _GROUPS, "rewards -= 0.5; " + _GROUPS, "in place"),
    Mutant("shape (P, G)", _LAST, "return advantages.masked_fill(silent, 0.0).float()",
           "wrong shape"),
    Mutant("no return", _LAST, "advantages.flatten()", "not a tensor"),
    Mutant("hole", _GROUPS, "raise NotImplementedError('your code here')", "blank"),
)  # fmt: skip

ALTERNATIVES = (LOOP, BY_HAND)
