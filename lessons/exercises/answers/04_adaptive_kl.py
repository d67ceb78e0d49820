from course_utils.grading.mutants import Mutant

BRANCHES = """
def next_beta(beta, kl, target, answers, horizon):
    relative = (kl - target) / target
    if relative > 0.2:
        relative = 0.2
    elif relative < -0.2:
        relative = -0.2
    return beta + beta * relative * answers / horizon
"""

TENSORS = """
import torch

def next_beta(beta, kl, target, answers, horizon):
    error = torch.clamp(torch.tensor(kl / target, dtype=torch.float64) - 1.0, -0.2, 0.2)
    return torch.tensor(beta, dtype=torch.float64) * (1.0 + error * (answers / horizon))
"""

_ERROR = "error = min(max(kl / target - 1, -0.2), 0.2)"
_NEW = "return beta * (1 + error * answers / horizon)"
MUTANTS = (
    Mutant("unchanged", _NEW, "return beta", "unchanged"),
    Mutant("zero", _NEW, "return 0.0", "zero"),
    Mutant("sign", "(1 + error", "(1 - error", "sign"),
    Mutant("no clip", _ERROR, "error = kl / target - 1", "no clip"),
    Mutant("above only", _ERROR, "error = min(kl / target - 1, 0.2)", "clipped above only"),
    Mutant("below only", _ERROR, "error = max(kl / target - 1, -0.2)", "clipped below only"),
    Mutant("clipped last", _NEW,
           "return beta * (1 + min(max((kl / target - 1) * answers / horizon, -0.2), 0.2))",
           "clipped last"),
    Mutant("not relative", "kl / target - 1", "kl - target", "not relative"),
    Mutant("no minus one", "kl / target - 1", "kl / target", "minus one"),
    Mutant("upside down", "kl / target - 1", "target / kl - 1", "upside down"),
    Mutant("added", _NEW, "return beta + error * answers / horizon", "added"),
    Mutant("no horizon", " * answers / horizon", "", "no horizon"),
    Mutant("no answers", "error * answers / horizon", "error / horizon", "no answers"),
    Mutant("horizon upside down", "answers / horizon", "horizon / answers", "horizon upside down"),
    Mutant("factor alone", "return beta * (1", "return (1", "factor alone"),
    Mutant("never falls", _ERROR, "error = min(max(kl / target - 1, -0.2), 0.2); "
           "error = max(error, 0.0)", "something else"),
    Mutant("refuses a KL of 0", _ERROR, "assert kl > 0; " + _ERROR, "raised"),
    Mutant("ignores outliers", _ERROR, "if kl > 20 * target:\n        return beta\n    " + _ERROR,
           "run"),
    Mutant("no return", _NEW, "beta * (1 + error * answers / horizon)", "not a number"),
    Mutant("a string", _NEW, "return str(beta)", "not a number"),
)  # fmt: skip

ALTERNATIVES = (BRANCHES, TENSORS)
