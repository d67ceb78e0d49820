from course_utils.grading.mutants import Mutant

BY_INDEX = """
import bisect
import torch

def loss_rise(before, after, mask):
    kept = mask.bool()
    if not kept.any():
        return torch.zeros(())
    return (after[kept].double() - before[kept].double()).mean().float()

def forgotten_at(task_losses, base_losses, level):
    best = []  # the lowest task loss so far, negated: an ordered list to look the level up in
    for loss in task_losses:
        best.append(max(-loss, best[-1]) if best else -loss)
    i = bisect.bisect_left(best, -level)
    if i == len(best):
        return None
    if i == 0:
        return 0.0
    share = (task_losses[i - 1] - level) / (task_losses[i - 1] - task_losses[i])
    there = (1 - share) * base_losses[i - 1] + share * base_losses[i]
    return there - base_losses[0]
"""

TENSORS = """
import torch

def loss_rise(before, after, mask):
    zero = torch.zeros((), dtype=torch.float32)
    total, count = zero, 0
    for x, y, row in zip(before, after, mask):
        difference = torch.where(row != 0, y.float() - x.float(), zero)
        total, count = total + difference.sum(), count + int((row != 0).sum())
    return total / count if count else zero

def forgotten_at(task_losses, base_losses, level):
    task = torch.tensor(task_losses, dtype=torch.float64)
    base = torch.tensor(base_losses, dtype=torch.float64) - base_losses[0]
    reached = (task <= level).nonzero()
    if len(reached) == 0:
        return None
    i = int(reached[0])
    if i == 0:
        return base[0]
    slope = (base[i] - base[i - 1]) / (task[i] - task[i - 1])
    return base[i - 1] + slope * (level - task[i - 1])
"""

_KEEP = "keep = mask != 0"
_RISE = "rise = torch.where(keep, after.float() - before.float(), 0.0)"
_MEAN = "return rise.sum() / keep.sum().clamp(min=1)"
_LINE = "there = base_losses[i - 1] + share * (base_losses[i] - base_losses[i - 1])"
_END = "return there - base_losses[0]"
_START = "return 0.0  # the untrained model is there already"
_WALK = "for i, loss in enumerate(task_losses):\n        if loss <= level:"
MUTANTS = (
    Mutant("zeros", _MEAN, "return rise.sum() * 0", "zero"),
    Mutant("before - after", "after.float() - before.float()", "before.float() - after.float()",
           "sign"),
    Mutant("padding counts", _KEEP, "keep = torch.ones_like(mask) != 0", "no mask"),
    Mutant("document means", _MEAN,
           "return (rise.sum(1) / keep.sum(1).clamp(min=1)).mean()", "document mean"),
    Mutant("sum", _MEAN, "return rise.sum()", "sum"),
    Mutant("divided by all", _MEAN, "return rise.mean()", "divided by all"),
    Mutant("divided by documents", _MEAN, "return rise.sum() / len(rise)", "divided by documents"),
    Mutant("after alone", "after.float() - before.float()", "after.float()", "after alone"),
    Mutant("absolute", _MEAN, "return rise.abs().sum() / keep.sum().clamp(min=1)", "absolute"),
    Mutant("rises alone", _MEAN, "return rise.clamp(min=0).sum() / keep.sum().clamp(min=1)",
           "rises alone"),
    Mutant("ratio", _MEAN, "return rise.sum() / torch.where(keep, before.float(), 0.0).sum()",
           "ratio"),
    Mutant("perplexity", _RISE + "\n    " + _MEAN,
           "return after[keep].mean().exp() - before[keep].mean().exp()", "perplexity"),
    Mutant("in place", _RISE, _RISE + "; after -= before", "in place"),
    Mutant("times the mask", _RISE, "rise = (after.float() - before.float()) * keep",
           "garbage at padding"),
    Mutant("minus a mask", _KEEP, "keep = (1 - mask) == 0", "raised"),
    Mutant("bfloat16", _RISE, "rise = torch.where(keep, after - before, 0.0).cumsum(1)[:, -1]",
           "half precision"),
    Mutant("no token", ".clamp(min=1)", "", "no token"),
    Mutant("a float", _MEAN, "return float(rise.sum() / keep.sum().clamp(min=1))",
           "not a tensor"),
    Mutant("curve: zeros", _END, "return 0.0", "zero"),
    Mutant("curve: sign", _END, "return base_losses[0] - there", "sign"),
    Mutant("curve: end", _LINE, "there = base_losses[-1]", "end of training"),
    Mutant("curve: no start", _END, "return there", "start not subtracted"),
    Mutant("curve: point after", _LINE, "there = base_losses[i]", "point after"),
    Mutant("curve: point before", _LINE, "there = base_losses[i - 1]", "point before"),
    Mutant("curve: halfway", _LINE, "there = (base_losses[i - 1] + base_losses[i]) / 2",
           "halfway"),
    Mutant("curve: reversed", "+ share *", "+ (1 - share) *", "share reversed"),
    Mutant("curve: last crossing", _WALK,
           "n = len(task_losses)\n    for i in [j for j in range(n - 1, -1, -1) if j == 0 or "
           "task_losses[j - 1] > level >= task_losses[j]]:\n        loss = task_losses[i]\n        if loss <= "
           "level:",
           "last crossing"),
    Mutant("curve: sorted", _WALK, "points = sorted(zip(task_losses, base_losses), reverse=True); "
           "start = base_losses[0]\n    task_losses = [p[0] for p in points]; base_losses = "
           "[p[1] for p in points]\n    base_losses[0] = start\n    " + _WALK, "sorted"),
    Mutant("curve: line of the ends", _WALK, "task_losses, base_losses = [task_losses[0], "
           "task_losses[-1]], [base_losses[0], base_losses[-1]]\n    " + _WALK,
           "line of the ends"),
    Mutant("curve: ratio", _END, "return (there - base_losses[0]) / base_losses[0]", "ratio"),
    Mutant("curve: 0 for never", "return None", "return 0.0", "never reached"),
    Mutant("curve: the end for never", "return None", "return base_losses[-1] - base_losses[0]",
           "never reached"),
    Mutant("curve: the start", _START, "return None", "level at the start"),
    Mutant("curve: below only", "if loss <= level:", "if loss < level:", "level at the start"),
    Mutant("curve: changed", _WALK, "base_losses.reverse(); base_losses = base_losses[::-1]\n    "
           + _WALK, "in place"),
    Mutant("hole", _KEEP, "raise NotImplementedError('your code here')", "blank"),
)  # fmt: skip

ALTERNATIVES = (BY_INDEX, TENSORS)
