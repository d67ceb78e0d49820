from course_utils.grading.mutants import Mutant

CROSS_ENTROPY = """
import torch.nn.functional as F

def masked_sft_loss(logits, input_ids, mask, reduction="mean"):
    labels = input_ids.masked_fill(mask == 0, -100)[:, 1:]
    total = F.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum"
    )
    return total if reduction == "sum" else total / max(int((labels != -100).sum()), 1)
"""

SLOW = """
def masked_sft_loss(logits, input_ids, mask, reduction="mean"):
    total, count = logits.float().sum() * 0, 0
    for row in range(logits.shape[0]):
        for t in range(1, logits.shape[1]):
            if mask[row, t]:
                z = logits[row, t - 1].float()
                total = total + z.logsumexp(0) - z[input_ids[row, t]]
                count += 1
    return total if reduction == "sum" else total / max(count, 1)
"""

_MEAN = "return total / keep.sum().clamp(min=1)"
MUTANTS = (
    Mutant("zeros", _MEAN, "return total * 0", "zero"),
    Mutant("sign", "total = -(chosen", "total = (chosen", "sign"),
    Mutant("no mask", "mask[:, 1:].float()", "torch.ones_like(chosen)", "no mask"),
    Mutant("mask not shifted", "mask[:, 1:]", "mask[:, :-1]", "mask not shifted"),
    Mutant("no shift", "logits[:, :-1].float()", "logits[:, 1:].float()", "no shift"),
    Mutant("sum", _MEAN, "return total", "sum"),
    Mutant("sum ignored", 'if reduction == "sum"', "if False", "reduction ignored"),
    Mutant("per sequence", _MEAN,
           "return -((chosen * keep).sum(1) / keep.sum(1).clamp(min=1)).mean()",
           "mean per sequence"),
    Mutant("all tokens", _MEAN, "return total / keep.numel()", "divided by all"),
    Mutant("batch", _MEAN, "return total / len(keep)", "divided by batch"),
    Mutant("probabilities", "F.log_softmax", "torch.softmax", "probabilities"),
    Mutant("unstable", "F.log_softmax(logits[:, :-1].float(), dim=-1)",
           "torch.softmax(logits[:, :-1].float(), dim=-1).log()", "unstable"),
    Mutant("half precision", "logits[:, :-1].float()", "logits[:, :-1]", "half precision"),
    Mutant("empty mask", ".clamp(min=1)", "", "empty mask"),
    Mutant("detached", "logits[:, :-1].float()", "logits[:, :-1].detach().float()", "detached"),
    Mutant("in place", "keep = mask", "mask[:, 0] = 7; keep = mask", "in place"),
    Mutant("not reduced", _MEAN, "return -chosen * keep", "wrong shape"),
    Mutant("no return", _MEAN, "total / keep.sum()", "not a tensor"),
    Mutant("a float", _MEAN, "return float(total / keep.sum())", "not a tensor"),
    Mutant("wrong axis", "dim=-1)  #", "dim=1)  #", "something else"),
    Mutant("hole", "logprobs = F", "raise NotImplementedError('your code here'); logprobs = F",
           "blank"),
)  # fmt: skip

ALTERNATIVES = (CROSS_ENTROPY, SLOW)
