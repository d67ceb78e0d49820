from course_utils.grading.mutants import Mutant

STATISTICS = """
import statistics

def diagnose(log):
    early = log["kl"][:5]
    target = log.get("kl_target", [float("inf")])[0]
    steps = zip(log["kl"], log["beta"], log["beta"][1:])
    signs = {
        "temperature": statistics.median(log["ratio_first_max"]) > 1.15,
        "mask": early[0] > 8,
        "sign": statistics.fmean(log["kl"]) < -0.4,
        "learning rate": max(early) > 10,
        "per token": sum(new < old for kl, old, new in steps if kl > target) >= 2,
    }
    return next((name for name, seen in signs.items() if seen), "healthy")
"""

TENSORS = """
import torch

def diagnose(log):
    kl, beta = torch.tensor(log["kl"]), torch.tensor(log["beta"])
    if kl.mean() < -0.45:
        return "sign"
    if kl[:5].max() > 10:
        return "mask" if kl[0] > 10 else "learning rate"
    if max(log["ratio_first_max"]) > 1.2:
        return "temperature"
    if "kl_target" in log:
        far = kl[:-1] > torch.tensor(log["kl_target"])[:-1]
        if far.any() and (beta.diff()[far] < 0).double().mean() > 0.5:
            return "per token"
    return "healthy"
"""

MUTANTS = (
    Mutant("always healthy", 'kl, beta = log["kl"], log["beta"]',
           'return "healthy"', "missed: temperature"),
    Mutant("nothing is healthy", 'return "healthy"', 'return "per token"',
           "false alarm: per token"),
    Mutant("temperature not seen", '["ratio_first_max"][0] > 1.1', '["ratio_first_max"][0] > 99',
           "missed: temperature"),
    Mutant("mask not seen", "kl[0] > 5", "kl[0] > 1e9", "learning rate for mask"),
    Mutant("sign not seen", "< -0.3", "< -1e9", "missed: sign"),
    Mutant("rate not seen", "max(kl[:5]) > 7", "max(kl[:5]) > 1e9", "missed: learning rate"),
    Mutant("controller not seen", '"kl_target" in log', '"target" in log', "missed: per token"),
    Mutant("too strict a ratio", "> 1.1", "> 1.001", "false alarm: temperature"),
    Mutant("any negative KL", "sum(kl) / len(kl) < -0.3", "min(kl) < -0.01", "false alarm: sign"),
    Mutant("the whole run's KL", "max(kl[:5]) > 7", "max(kl) > 7", "learning rate for per token"),
    Mutant("any fall of beta", "kl[t] > log[\"kl_target\"][t]", "True", "false alarm: per token"),
    Mutant("the last row", "kl[0] > 5", "kl[-1] > 5", "mask for learning rate"),
    Mutant("the wrong comparison", "beta[t + 1] < beta[t]", "beta[t + 1] > beta[t]",
           "missed: per token"),
    Mutant("a row too late", "beta[t + 1] < beta[t]", "beta[t] < beta[t - 1] and t > 0",
           "false alarm: per token"),
    Mutant("the fifth row", "max(kl[:5])", "kl[4]", "raised"),
    Mutant("a target expected", 'if "kl_target" in log:', 'if log["kl_target"]:', "raised"),
    Mutant("rate before mask", "if kl[0] > 5:", "if max(kl[:5]) > 7:", "mask for learning rate"),
    Mutant("first letter large", 'return "mask"', 'return "Mask"', "unknown name"),
    Mutant("a truth value", 'return "healthy"', "return False", "not a name"),
    Mutant("forgets", 'return "healthy"', "return None", "not a name"),
)  # fmt: skip

ALTERNATIVES = (STATISTICS, TENSORS)
