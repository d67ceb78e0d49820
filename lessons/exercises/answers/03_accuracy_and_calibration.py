from course_utils.grading.mutants import Mutant

LOOP = """
import math
import torch

def reward_accuracy(chosen, rejected):
    points = [1.0 if c > r else 0.5 if c == r else 0.0 for c, r in zip(chosen, rejected)]
    return torch.tensor(sum(points) / len(points))

def expected_calibration_error(margins, preferred, bins=10):
    said = [1 / (1 + math.exp(-d)) if d > -700 else 0.0 for d in margins.tolist()]
    inside = {}
    for p, y in zip(said, preferred.tolist()):
        inside.setdefault(min(math.floor(p * bins), bins - 1), []).append(y - p)
    return torch.tensor(sum(abs(sum(gaps)) for gaps in inside.values()) / len(said))
"""

SCATTERED = """
import torch

def reward_accuracy(chosen, rejected):
    return (torch.sign(chosen - rejected).mean() + 1) / 2

def expected_calibration_error(margins, preferred, bins=10):
    p = margins.double().sigmoid()
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    place = torch.bucketize(p, edges[1:-1], right=True)
    gaps = torch.zeros(bins, dtype=torch.float64).index_add(0, place, preferred - p)
    return gaps.abs().sum() / len(p)
"""

HISTOGRAM = """
import torch
import torch.nn.functional as F

def reward_accuracy(chosen, rejected):
    return torch.heaviside(chosen.double() - rejected.double(), torch.tensor(0.5).double()).mean()

def expected_calibration_error(margins, preferred, bins=10):
    p = torch.sigmoid(margins)
    place = F.one_hot((p * bins).floor().clamp(0, bins - 1).long(), bins).float()  # (N, bins)
    count = place.sum(0)
    gap = (preferred.float() @ place - p @ place) / count.clamp(min=1)
    return (count / count.sum() * gap.abs()).sum()
"""

_RIGHT = "return (right + tied / 2).mean()"
_GAP = "gap = (came[inside].mean() - said[inside].mean()).abs()"
_ADD = "total = total + inside.sum() / len(said) * gap"
_SAID = "said = torch.sigmoid(margins.float())"
_PLACE = "place = (said * bins).long().clamp(max=bins - 1)"
MUTANTS = (
    Mutant("accuracy of zeros", _RIGHT, "return right.mean() * 0", "zero"),
    Mutant("ties wrong", _RIGHT, "return right.mean()", "ties wrong"),
    Mutant("ties right", _RIGHT, "return (right + tied).mean()", "ties right"),
    Mutant("ties left out", _RIGHT, "return right[chosen != rejected].mean()", "ties left out"),
    Mutant("swapped", "chosen > rejected", "rejected > chosen", "swapped"),
    Mutant("a count", _RIGHT, "return (right + tied / 2).sum()", "a count"),
    Mutant("signs", _RIGHT, "return torch.sign(chosen - rejected).mean()", "signs"),
    Mutant("probability", _RIGHT, "return torch.sigmoid(chosen - rejected).mean()", "probability"),
    Mutant("saturated", "right = (", "chosen, rejected = chosen.sigmoid(), rejected.sigmoid()\n    "
           "right = (", "saturated"),
    Mutant("accuracy not reduced", _RIGHT, "return right + tied / 2", "wrong shape"),
    Mutant("no error", _ADD, "total = total + 0 * gap", "zero"),
    Mutant("not weighted", _ADD, "total = total + gap / len(place.unique())", "not weighted"),
    Mutant("divided by all bins", _ADD, "total = total + gap / bins", "divided by all bins"),
    Mutant("a sum", _ADD, "total = total + inside.sum() * gap", "a sum"),
    Mutant("signed", _GAP, "gap = came[inside].mean() - said[inside].mean()", "signed"),
    Mutant("pairs first", _GAP, "gap = (came[inside] - said[inside]).abs().mean()", "no bins"),
    Mutant("largest", _ADD, "total = torch.maximum(total, gap)", "largest"),
    Mutant("squared", _GAP, "gap = (came[inside].mean() - said[inside].mean()).square()",
           "squared"),
    Mutant("middles", _GAP, "gap = (came[inside].mean() - (b + 0.5) / bins).abs()", "middles"),
    Mutant("one bin", _PLACE, "place = (said * 0).long()", "one bin"),
    Mutant("equal counts", _PLACE, "place = torch.zeros(len(said)).long(); [place.__setitem__(i, b) "
           "for b, i in enumerate(said.argsort().tensor_split(bins))]", "equal counts"),
    Mutant("how sure", _SAID, "preferred = torch.where(margins > 0, preferred, 1 - preferred); "
           "said = torch.sigmoid(margins.abs())", "how sure"),
    Mutant("reversed", "torch.sigmoid(margins.float())", "torch.sigmoid(-margins.float())",
           "reversed"),
    Mutant("ten bins", _SAID, "bins = 10; said = torch.sigmoid(margins.float())", "ten bins"),
    Mutant("empty bins", "if inside.any()", "if True", "nan"),
    Mutant("P = 1 lost", ".clamp(max=bins - 1)", "", "ends"),
    Mutant("P = 0 lost", _PLACE, "place = (said * bins).ceil().long() - 1", "ends"),
    Mutant("overflow", _SAID, "said = margins.float().exp() / (1 + margins.float().exp())",
           "ends"),
    Mutant("a number", "return total", "return float(total)", "not a tensor"),
)  # fmt: skip

ALTERNATIVES = (LOOP, SCATTERED, HISTOGRAM)
