from course_utils.grading.mutants import Mutant

INTEGERS = """
import math
import torch

def expected_best(rewards, scores, n):
    N, found = rewards.shape[1], []
    subsets = math.comb(N, n)
    for keys, values in zip(rewards.tolist(), scores.tolist()):
        order = sorted(range(N), key=lambda i: keys[i])
        total, start = 0.0, 0
        while start < N:
            stop = start
            while stop < N and keys[order[stop]] == keys[order[start]]:
                stop += 1
            won = (math.comb(stop, n) - math.comb(start, n)) / subsets  # big integers
            total += won * sum(values[i] for i in order[start:stop]) / (stop - start)
            start = stop
        found.append(total)
    return torch.tensor(found)
"""

LOGARITHMS = """
import torch

def expected_best(rewards, scores, n):
    N = rewards.shape[1]
    k = torch.arange(1, N + 1, dtype=torch.float64)
    log_w = torch.lgamma(k) - torch.lgamma((k - n + 1).clamp(min=1))
    log_w = log_w.masked_fill(k < n, float("-inf"))
    w = torch.softmax(log_w, 0)
    found = []
    for keys, values in zip(rewards, scores.double()):
        keys, order = keys.sort()
        _, group = torch.unique_consecutive(keys, return_inverse=True)
        size = torch.zeros(N, dtype=torch.float64).index_add_(0, group, torch.ones_like(w))
        total = torch.zeros(N, dtype=torch.float64).index_add_(0, group, values[order])
        found.append((w * (total / size.clamp(min=1))[group]).sum())
    return torch.stack(found)
"""

_N = "N = rewards.shape[1]"
_RETURN = "return (each * scores.double()).sum(1)"
_EACH = "each = (up_to[below + equal] - up_to[below]) / equal"
_WEIGHTS = "weights = torch.tensor(weights[::-1], dtype=torch.float64)"
_BLOCKS = """g = rewards.shape[1] // n
    best = rewards[:, : g * n].reshape(-1, g, n).argmax(2, keepdim=True)
    return scores[:, : g * n].reshape(-1, g, n).gather(2, best)[..., 0].mean(1)
    N = rewards.shape[1]"""
MUTANTS = (
    Mutant("zeros", _RETURN, "return (0 * each * scores.double()).sum(1)", "zero"),
    Mutant("one subset", _N,
           "rewards, scores = rewards[:, :n], scores[:, :n]; N = rewards.shape[1]", "one subset"),
    Mutant("groups", _N, _BLOCKS, "groups"),
    Mutant("best of all", _N, "n = N = rewards.shape[1]", "best of all"),
    Mutant("mean", _N, "n = 1; N = rewards.shape[1]", "mean"),
    Mutant("with replacement", "up_to = F.pad(weights.cumsum(0), (1, 0))",
           "up_to = (torch.arange(N + 1).double() / N) ** n", "with replacement"),
    Mutant("worst", "[:, None, :] < rewards", "[:, None, :] > rewards", "worst of n"),
    Mutant("by score", _N, "rewards = scores; N = rewards.shape[1]", "by score"),
    Mutant("reward", _RETURN, "return (each * rewards.double()).sum(1)", "reward"),
    Mutant("not sorted", _RETURN, "return (weights * scores.double()).sum(1)", "not sorted"),
    Mutant("n + 1", _N, "N = rewards.shape[1]; n = min(n + 1, N)", "n + 1"),
    Mutant("not normalised", _EACH, "each = up_to[below + equal] / equal", "not normalised"),
    Mutant("ties not shared", _EACH, "each = up_to[below + equal] - up_to[below]", "ties"),
    Mutant("last of equals", _EACH,
           "each = weights[rewards.argsort(dim=1, stable=True).argsort(1)]", "last of equals"),
    Mutant("first of equals", _EACH,
           "order = rewards.argsort(dim=1, stable=True, descending=True); "
           "each = weights.flip(0)[order.argsort(1)]",
           "first of equals"),
    Mutant("overflow", _WEIGHTS,
           "weights = [float(math.comb(k, n - 1)) / float(math.comb(N, n)) for k in range(N)]; "
           "weights = torch.tensor(weights, dtype=torch.float64)", "overflow"),
    Mutant("lost digits", _WEIGHTS,
           "k = torch.arange(1.0, N + 1); m = torch.tensor([N + 1.0, n, n + 1, N - n + 1]); "
           "c = m.lgamma(); weights = (k.lgamma() - c[1] - (k - n + 1).clamp(min=1).lgamma()"
           " - c[0] + c[2] + c[3]).exp() * (k >= n)", "digits"),
    Mutant("in place", _RETURN, "scores += 1; return (each * (scores - 1).double()).sum(1)",
           "in place"),
    Mutant("summed over prompts", _RETURN, "return (each * scores.double()).sum()", "wrong shape"),
    Mutant("no return", _RETURN, "(each * scores.double()).sum(1)", "not a tensor"),
    Mutant("hole", _N, "raise NotImplementedError('your code here'); N = 0", "blank"),
)  # fmt: skip

ALTERNATIVES = (INTEGERS, LOGARITHMS)
