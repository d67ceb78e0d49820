from course_utils.grading.mutants import Mutant

CROSS_ENTROPY = """
import torch.nn.functional as F

def sequence_logprobs(logits, input_ids, mask, reduction="sum"):
    labels = input_ids.masked_fill(mask == 0, -100)[:, 1:]
    wanted = labels != -100
    quiet = logits[:, :-1].float().masked_fill(~wanted.unsqueeze(-1), 0.0)
    total = -F.cross_entropy(quiet.transpose(1, 2), labels, reduction="none").sum(-1)
    return total if reduction == "sum" else total / wanted.sum(-1).clamp(min=1)
"""

SLOW = """
import torch

def sequence_logprobs(logits, input_ids, mask, reduction="sum"):
    result = []
    for row in range(logits.shape[0]):
        total, count = torch.zeros(()), 0
        for t in range(1, logits.shape[1]):
            if mask[row, t]:
                z = logits[row, t - 1].float()
                total = total + z[input_ids[row, t]] - torch.logsumexp(z, 0)
                count += 1
        result.append(total / max(count, 1) if reduction == "mean" else total)
    return torch.stack(result)
"""

WHERE = """
import torch

def sequence_logprobs(logits, input_ids, mask, reduction="sum"):
    keep = mask[:, 1:] != 0
    picked = torch.log_softmax(logits.to(torch.float32), 2)[:, :-1].gather(2, input_ids[:, 1:, None])
    picked = torch.where(keep, picked[..., 0], torch.zeros_like(picked[..., 0]))
    total = picked.sum(1)
    if reduction == "mean":
        total = torch.where(keep.any(1), total / keep.sum(1).clamp(min=1), 0)
    return total
"""

_END = "\n    return total"  # not the mean's, which stands deeper
_FILL = "tokens.masked_fill(~keep, 0.0).sum(dim=1)"
MUTANTS = (
    Mutant("zeros", _END, "\n    return total * 0", "zero"),
    Mutant("sign", f"total = {_FILL}", f"total = -{_FILL}", "sign"),
    Mutant("no mask", "mask[:, 1:].bool()", "torch.ones_like(mask[:, 1:]).bool()", "no mask"),
    Mutant("no shift", "logits[:, :-1].float()", "logits[:, 1:].float()", "no shift"),
    Mutant("mask not shifted", "mask[:, 1:].bool()", "mask[:, :-1].bool()", "mask not shifted"),
    Mutant("first token lost", "mask[:, 1:].bool()", "(mask[:, 1:] * mask[:, :-1]).bool()",
           "first token"),
    Mutant("last token lost", "mask[:, 1:].bool()",
           "(mask[:, 1:] * F.pad(mask[:, 2:], (0, 1))).bool()", "last token"),
    Mutant("mean", 'if reduction == "mean":', "if True:", "mean"),
    Mutant("mean ignored", 'if reduction == "mean":', "if False:", "reduction ignored"),
    Mutant("mean over positions", "keep.sum(dim=1).clamp(min=1)", "keep.shape[1]",
           "mean over all"),
    Mutant("mean over the batch", "keep.sum(dim=1).clamp(min=1)", "(keep.sum() / len(keep))",
           "mean over the batch"),
    Mutant("probability", _END, "\n    return total.exp()\n", "probability"),
    Mutant("probabilities", "F.log_softmax", "F.softmax", "probabilities"),
    Mutant("no softmax", "F.log_softmax(logits[:, :-1].float(), dim=-1)", "logits[:, :-1].float()",
           "no softmax"),
    Mutant("wrong axis", "float(), dim=-1)", "float(), dim=1)", "wrong axis"),
    Mutant("one number", _END, "\n    return total.sum()\n", "wrong shape"),
    Mutant("per token", _END, "\n    return tokens\n", "wrong shape"),
    Mutant("no return", _END, "\n    total", "not a tensor"),
    Mutant("multiplied", _FILL, "(tokens * keep).sum(dim=1)", "masked by multiplication"),
    Mutant("-inf to 0", "tokens.masked_fill(~keep, 0.0)",
           "(tokens.clamp(min=-1e30) * keep)", "masked by multiplication"),
    Mutant("last column lost", "mask[:, 1:].bool()", "F.pad(mask[:, 1:-1], (0, 1)).bool()",
           "last column"),
    Mutant("answer at the end", "mask[:, 1:].bool()", "torch.arange(mask.shape[1] - 1) >= "
           "mask.shape[1] - 1 - mask.sum(1, keepdim=True)", "from the end"),
    Mutant("prompts of at most 4 tokens", "mask[:, 1:].bool()", "mask[:, 1:].bool() & "
           "(torch.arange(mask.shape[1] - 1) < 4 + mask.sum(1).max())", "padding"),
    Mutant("~ of integers", "mask[:, 1:].bool()", "mask[:, 1:].eq(1) if mask.dtype == torch.long "
           "else torch.zeros_like(mask[:, 1:])", "bool mask"),
    Mutant("empty", ".clamp(min=1)", "", "empty answer"),
    Mutant("unstable", "F.log_softmax(logits[:, :-1].float(), dim=-1)",
           "F.softmax(logits[:, :-1].float(), dim=-1).log()", "unstable"),
    Mutant("half precision", "logits[:, :-1].float()", "logits[:, :-1]", "half precision"),
    Mutant("half result", _END, "\n    return total.to(logits.dtype)\n",
           "half precision"),
    Mutant("detached", "logits[:, :-1].float()", "logits[:, :-1].detach().float()", "detached"),
    Mutant("in place", "keep = mask", "input_ids[:, 0] = 0; mask[:, 0] = 5; keep = mask",
           "in place"),
    Mutant("hole", "logprobs = F", "raise NotImplementedError('your code here'); logprobs = F",
           "blank"),
)  # fmt: skip

ALTERNATIVES = (CROSS_ENTROPY, SLOW, WHERE)
