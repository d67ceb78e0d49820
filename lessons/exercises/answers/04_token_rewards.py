from course_utils.grading.mutants import Mutant

SCATTER = """
import torch

def token_rewards(logprobs, ref_logprobs, scores, mask, beta):
    columns = torch.arange(mask.shape[1])
    last = torch.where(mask, columns, -1).amax(1, keepdim=True)  # (B, 1)
    kl = torch.where(mask, logprobs - ref_logprobs, torch.tensor(0.0)).detach()
    return (-beta * kl).scatter_add(1, last, scores.detach().unsqueeze(1).to(kl.dtype))
"""

SLOW = """
import torch

@torch.no_grad()
def token_rewards(logprobs, ref_logprobs, scores, mask, beta):
    rewards = torch.zeros(logprobs.shape)
    for b in range(len(scores)):
        place = None
        for t in range(mask.shape[1]):
            if mask[b, t]:
                rewards[b, t] = beta * (ref_logprobs[b, t] - logprobs[b, t])
                place = t
        rewards[b, place] = rewards[b, place] + scores[b]
    return rewards
"""

_ADD = "rewards[torch.arange(len(rewards)), last] += scores"
_D = "d = (logprobs - ref_logprobs).masked_fill(~mask, 0.0)"
_KL = "rewards = -beta * d"
MUTANTS = (
    Mutant("zeros", "        return rewards", "        return rewards * 0", "zero"),
    Mutant("paid for distance", _KL, "rewards = beta * d", "paid for distance"),
    Mutant("no KL", _KL, "rewards = 0 * d", "no KL"),
    Mutant("no score", _ADD, "", "no score"),
    Mutant("no beta", _KL, "rewards = -d", "no beta"),
    Mutant("beta on the score", "+= scores", "+= beta * scores", "beta on the score"),
    Mutant("first token", _ADD, "rewards[:, 0] += scores", "score on the first"),
    Mutant("last column", _ADD, "rewards[:, -1] += scores", "score in the last column"),
    Mutant("after the end", "mask.sum(dim=1) - 1",
           "(mask.sum(dim=1)).clamp(max=mask.shape[1] - 1)", "score after the end"),
    Mutant("too early", "mask.sum(dim=1) - 1", "mask.sum(dim=1) - 2", "score too early"),
    Mutant("every token", _ADD, "rewards += scores.unsqueeze(1) * mask", "score on every token"),
    Mutant("spread", _ADD, "rewards += (scores / mask.sum(1)).unsqueeze(1) * mask", "score spread"),
    Mutant("overwrites", "+= scores", "= scores", "score overwrites"),
    Mutant("padding pays", ".masked_fill(~mask, 0.0)", "", "padding pays"),
    Mutant("k3", _KL, "rewards = -beta * (torch.expm1(-d) + d)", "k3"),
    Mutant("whole KL at the end", _KL,
           "rewards = torch.zeros_like(d); scores = scores - beta * d.sum(1)",
           "whole KL at the end"),
    Mutant("mean KL", _KL, "rewards = -beta * d / mask.sum(1, keepdim=True)", "mean KL"),
    Mutant("times the mask", _D, "d = (logprobs - ref_logprobs) * mask", "padding leaks"),
    Mutant("not detached", "with torch.no_grad():", "if True:", "not detached"),
    Mutant("in place", _D, _D + "; scores *= 1.5; scores /= 1.5; logprobs += 0.1; logprobs -= d",
           "in place"),
    Mutant("sum per answer", "        return rewards", "        return rewards.sum(1)",
           "wrong shape"),
    Mutant("no return", "        return rewards", "        rewards", "not a tensor"),
)  # fmt: skip

ALTERNATIVES = (SCATTER, SLOW)
