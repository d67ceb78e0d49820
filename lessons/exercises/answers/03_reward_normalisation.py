from course_utils.grading.mutants import Mutant

STATISTICS = """
import statistics

def normalise_rewards(rewards, reference, mask=None):
    keep = [True] * len(reference) if mask is None else mask.tolist()
    scores = [r for r, k in zip(reference.tolist(), keep) if k]
    if not scores:
        return rewards
    spread = statistics.stdev(scores) if len(scores) > 1 else 0
    return (rewards - statistics.fmean(scores)) / (spread if spread >= 1e-6 else 1)
"""

WEIGHTED = """
import torch

def normalise_rewards(rewards, reference, mask=None):
    keep = torch.ones_like(reference) if mask is None else mask.to(reference.dtype)
    safe = torch.where(keep > 0, reference, torch.zeros_like(reference))
    n = keep.sum()
    mean = (safe * keep).sum() / n.clamp(min=1)
    off = (safe - mean) * keep
    std = (off.square().sum() / (n - 1).clamp(min=1)).sqrt()
    return (rewards - mean) / torch.where(std < 1e-6, torch.ones_like(std), std)
"""

SQUARES = """
def normalise_rewards(rewards, reference, mask=None):
    # mean(r^2) - mean(r)^2, after a rough zero was taken out
    x = reference.double() if mask is None else reference.double()[mask == 1]
    if x.numel() == 0:
        return rewards.clone()
    zero = x[0]
    x = x - zero
    n, mean = x.numel(), x.mean()
    variance = ((x * x).mean() - mean * mean).clamp(min=0) * n / max(n - 1, 1)
    scale = variance ** 0.5 if variance > 1e-12 else 1.0
    return (rewards.double() - zero - mean).div(scale).to(rewards.dtype)
"""

_COUNTED = "reference if mask is None else reference[mask.bool()]"
_STD = "counted.std() if len(counted) > 1 else 0.0"
_END = "return ((rewards.double() - mean) / spread).float()"
MUTANTS = (
    Mutant("zeros", _END, "return ((rewards.double() - mean) / spread).float() * 0", "zero"),
    Mutant("unchanged", _END, "return rewards", "unchanged"),
    Mutant("own statistics", _COUNTED, "rewards", "own statistics"),
    Mutant("not centred", _END, "return (rewards.double() / spread).float()", "not centred"),
    Mutant("not scaled", _END, "return (rewards.double() - mean).float()", "not scaled"),
    Mutant("variance", "counted.std() if", "counted.var() if", "variance"),
    Mutant("inverse", _END, "return rewards * spread + mean", "inverse"),
    Mutant("order", _END, "return rewards.double() / spread - mean", "order"),
    Mutant("divided by n", "counted.std()", "counted.std(unbiased=False)", "divided by n"),
    Mutant("extremes", _END, "return (rewards.double() - counted.min()) / (counted.max() - "
           "counted.min())", "zero to one"),
    Mutant("mask ignored", _COUNTED, "reference", "mask ignored"),
    Mutant("mask ignored in the mean", "mean = counted.mean()", "mean = reference.double().mean()",
           "mask ignored in the mean"),
    Mutant("zeros counted", _COUNTED, "reference if mask is None else reference * mask",
           "zeros counted"),
    Mutant("masked nan", "mean = counted.mean()", "mean = counted.mean() if mask is None else "
           "(reference * mask).double().sum() / mask.sum()", "masked nan"),
    Mutant("divides by 0", "if spread < 1e-6", "if False", "no spread"),
    Mutant("small epsilon", "if spread < 1e-6:", "spread = spread + 1e-8\n    if False:", "no spread"),
    Mutant("exactly 0", "spread < 1e-6", "spread == 0", "tiny spread"),
    Mutant("one score", _STD, "counted.std()", "one score"),
    Mutant("no score", "if len(counted) == 0", "if False", "no score"),
    Mutant("unstable", _STD, "(counted.float().square().mean() - counted.float().mean().square())"
           ".clamp(min=0).sqrt() * (len(counted) / max(len(counted) - 1, 1)) ** 0.5", "unstable"),
    Mutant("flat", _END, "return ((rewards.flatten() - mean) / spread).float()", "wrong shape"),
    Mutant("in place", _END, "return rewards.sub_(mean).div_(spread)", "in place"),
    Mutant("only the numbers", _END, "return mean, spread", "not a tensor"),
)  # fmt: skip

ALTERNATIVES = (STATISTICS, WEIGHTED, SQUARES)
