from course_utils.grading.mutants import Mutant

LOOP = """
import torch

def last_token_scores(hidden, input_ids, mask, weight):
    scores = []
    for row in range(len(hidden)):
        real = mask[row].nonzero().flatten()
        scores.append(hidden[row, real[-1]].dot(weight) if len(real) else weight.sum() * 0)
    return torch.stack(scores)
"""

FLIPPED = """
import torch

def last_token_scores(hidden, input_ids, mask, weight):
    behind = mask.long().flip(1).argmax(1)  # columns of padding after the last real token
    place = (mask.shape[1] - 1 - behind).view(-1, 1, 1).expand(-1, 1, hidden.shape[-1])
    picked = hidden.gather(1, place).squeeze(1)
    return (picked * weight).sum(-1).masked_fill(mask.sum(1) == 0, 0.0)
"""

CUMULATIVE = """
import torch

def last_token_scores(hidden, input_ids, mask, weight):
    real = mask.long()
    last = real.bool() & (real.cumsum(1) == real.sum(1, keepdim=True))  # (B, T), one True a row
    picked = torch.where(last.unsqueeze(-1), hidden, torch.zeros_like(hidden)).sum(1)
    return torch.einsum("bd,d->b", picked, weight)
"""

_SCORES = "scores = hidden[rows, last] @ weight"
_LAST = "last = (columns * mask).argmax(dim=1)"
_END = "return torch.where(mask.any(dim=1), scores, 0.0)"
MUTANTS = (
    Mutant("zeros", _SCORES, "scores = hidden[rows, last] @ weight * 0", "zero"),
    Mutant("sign", _SCORES, "scores = -hidden[rows, last] @ weight", "sign"),
    Mutant("last column", _LAST, "last = -1", "last column"),
    Mutant("counted", _LAST, "last = mask.sum(1) - 1", "counted"),
    Mutant("after the end", _LAST, "last = mask.sum(1) % hidden.shape[1]", "after the end"),
    Mutant("before the end", _LAST, "last = (columns * mask).argmax(dim=1) - 1", "before the end"),
    Mutant("by the ids", _LAST, "last = (columns * (input_ids != 2)).argmax(dim=1)", "by ids"),
    Mutant("first eos", _LAST, "last = (input_ids == 2).long().argmax(dim=1)", "first eos"),
    Mutant("before the first eos", _LAST, "last = (input_ids == 2).long().argmax(dim=1) - 1",
           "before the first eos"),
    Mutant("first token", _LAST, "last = mask.long().argmax(dim=1)", "first token"),
    Mutant("mean", _SCORES, "scores = (hidden * mask.unsqueeze(-1)).sum(1) @ weight / mask.sum(1)",
           "mean of the real"),
    Mutant("mean of all", _SCORES, "scores = hidden.mean(1) @ weight", "mean of all"),
    Mutant("largest", _SCORES, "scores = (hidden @ weight).masked_fill(mask == 0, -torch.inf).amax(1)",
           "largest"),
    Mutant("every token", _SCORES, "return hidden @ weight", "wrong shape"),
    Mutant("trailing axis", _SCORES, "return (hidden[rows, last] @ weight).unsqueeze(-1)",
           "wrong shape"),
    Mutant("multiplied away", _SCORES, "scores = (hidden * F.one_hot(last, hidden.shape[1])"
           ".unsqueeze(-1)).sum(1) @ weight", "padding's nan"),
    Mutant("empty row", _END, "return scores", "empty row"),
    Mutant("detached", "hidden[rows, last] @", "hidden[rows, last].detach() @", "detached"),
    Mutant("in place", _LAST, "mask *= columns; last = mask.argmax(dim=1)", "in place"),
    Mutant("no return", _END, "torch.where(mask.any(dim=1), scores, 0.0)", "not a tensor"),
)  # fmt: skip

ALTERNATIVES = (LOOP, FLIPPED, CUMULATIVE)
