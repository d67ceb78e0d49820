from course_utils.grading.mutants import Mutant

QUANTILE = """
import torch

def linear_merge(deltas, weights):
    w = torch.tensor(weights, dtype=deltas[0].dtype).view(-1, 1, 1)
    return (torch.stack(deltas) * w).sum(dim=0)

def trim(delta, density):
    n = round(density * delta.numel())
    limit = delta.abs().flatten().sort(descending=True).values[n - 1]
    return torch.where(delta.abs() >= limit, delta, torch.zeros_like(delta))

def ties_merge(deltas, density, lam=1.0):
    kept = torch.stack([trim(delta, density) for delta in deltas])
    up, down = kept.clamp(min=0), kept.clamp(max=0)
    mean_up = up.sum(0) / (up > 0).sum(0).clamp(min=1)
    mean_down = down.sum(0) / (down < 0).sum(0).clamp(min=1)
    mass = up.sum(0) + down.sum(0)
    out = torch.where(mass > 0, mean_up, mean_down)
    return lam * torch.where(mass == 0, torch.zeros_like(out), out)
"""

SLOW = """
import torch

def linear_merge(deltas, weights):
    out = torch.zeros_like(deltas[0])
    for i in range(len(deltas)):
        out += weights[i] * deltas[i]
    return out

def ties_merge(deltas, density, lam=1.0):
    d, k = deltas[0].shape
    flat = [delta.flatten().tolist() for delta in deltas]
    for numbers in flat:
        order = sorted(range(d * k), key=lambda i: abs(numbers[i]))
        for i in order[: d * k - round(density * d * k)]:
            numbers[i] = 0.0
    merged = []
    for place in zip(*flat):
        total = sum(place)
        same = [v for v in place if v * total > 0]
        merged.append(lam * sum(same) / len(same) if same else 0.0)
    return torch.tensor(merged).reshape(d, k)
"""

_LINEAR = "return sum(w * delta for w, delta in zip(weights, deltas, strict=True))"
_OUT = "return lam * (stack * agree).sum(0) / agree.sum(0).clamp(min=1)"
_PLACES = "flat.abs().topk(round(density * flat.numel())).indices"
_AGREE = "(stack.sign() == sign) & (sign != 0)"
MUTANTS = (
    Mutant("zeros", _LINEAR, "return 0 * deltas[0]", "zero"),
    Mutant("negated", _LINEAR, "return -sum(w * t for w, t in zip(weights, deltas))", "sign"),
    Mutant("no weights", _LINEAR, "return sum(deltas)", "weights ignored"),
    Mutant("mean", _LINEAR, "return sum(deltas) / len(deltas)", "mean"),
    Mutant("over N", _LINEAR, _LINEAR + " / len(deltas)", "divided by number"),
    Mutant("normalised", _LINEAR, _LINEAR + " / sum(weights)", "normalised"),
    Mutant("positive", "sum(w * delta for", "sum(abs(w) * delta for", "sizes"),
    Mutant("the first", _LINEAR, "return weights[0] * deltas[0]", "one alone"),
    Mutant("linear in place", _LINEAR,
           "deltas[0] *= weights[0]; return deltas[0] + sum("
           "w * t for w, t in zip(weights[1:], deltas[1:]))", "in place"),
    Mutant("TIES of zeros", _OUT, "return 0 * stack[0]", "zero"),
    Mutant("TIES negated", _OUT, "return -lam * (stack * agree).sum(0) / agree.sum(0).clamp(min=1)",
           "sign"),
    Mutant("no lambda", "return lam * (stack", "return (stack", "lambda ignored"),
    Mutant("sum", " / agree.sum(0).clamp(min=1)", "", "sum"),
    Mutant("over all", "agree.sum(0).clamp(min=1)", "len(stack)", "divided by all"),
    Mutant("over kept", "agree.sum(0).clamp(min=1)", "(stack != 0).sum(0).clamp(min=1)",
           "divided by kept"),
    Mutant("no election", _AGREE, "stack != 0", "no election"),
    Mutant("plain sum", _OUT, "return lam * stack.sum(0)", "plain sum"),
    Mutant("plain mean", _OUT, "return lam * stack.mean(0)", "plain mean"),
    Mutant("loser", "stack.sign() == sign", "stack.sign() == -sign", "loser"),
    Mutant("votes", "stack.sum(0).sign()", "stack.sign().sum(0).sign()", "votes"),
    Mutant("early election", "stack.sum(0).sign()", "sum(deltas).sign()", "elected untrimmed"),
    Mutant("not trimmed", "kept[places] = flat[places]", "kept = flat", "not trimmed"),
    Mutant("dropped share", "round(density *", "round((1 - density) *", "density upside down"),
    Mutant("smallest", "indices", "indices.new_tensor("
           "flat.abs().argsort()[: round(density * flat.numel())].tolist())", "smallest kept"),
    Mutant("largest by value", "flat.abs().topk", "flat.topk", "signed trim"),
    Mutant("all trimmed together", "kept[places] = flat[places]",
           "every = torch.stack(deltas).abs().flatten().sort(descending=True).values; "
           "kept = flat * (flat.abs() >= every[round(density * every.numel()) - 1])",
           "trimmed together"),
    Mutant("by row", "kept[places] = flat[places]",
           "m = round(density * delta.shape[1]); "
           "kept = delta * torch.zeros_like(delta).scatter(1, delta.abs().topk(m, 1).indices, 1.0)",
           "trimmed by row"),
    Mutant("threshold", "kept[places] = flat[places]",
           "kept = flat * (flat.abs() >= (1 - density) * flat.abs().max())", "threshold"),
    Mutant("in place", "kept[places] = flat[places]",
           "kept[places] = flat[places]; flat.copy_(kept)", "in place"),
    Mutant("0 is positive", "stack.sum(0).sign()",
           "torch.where(stack.sum(0) >= 0, 1.0, -1.0)", "cancelled"),
    Mutant("empty places", ".clamp(min=1)", "", "nan"),
    Mutant("a list", _OUT, "return list(" + _OUT.removeprefix("return ") + ")", "not a tensor"),
    Mutant("flat", _OUT, "return (" + _OUT.removeprefix("return ") + ").flatten()",
           "wrong shape"),
)  # fmt: skip

ALTERNATIVES = (QUANTILE, SLOW)
