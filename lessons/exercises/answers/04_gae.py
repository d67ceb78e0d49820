from course_utils.grading.mutants import Mutant

ROWS = """
import torch

def gae(rewards, values, mask, gamma, lam):
    advantages, returns = torch.zeros(mask.shape), torch.zeros(mask.shape)
    for b, length in enumerate(mask.sum(1).tolist()):
        advantage, after = 0.0, 0.0
        for t in range(length - 1, -1, -1):
            advantage = rewards[b, t] + gamma * after - values[b, t] + gamma * lam * advantage
            after = values[b, t]
            advantages[b, t], returns[b, t] = advantage, advantage + after
    return [advantages, returns]
"""

MATRIX = """
import torch

def gae(rewards, values, mask, gamma, lam):
    zero = torch.zeros((), dtype=torch.float64)
    r, v = (torch.where(mask, x.double(), zero) for x in (rewards, values))
    after = torch.cat([v[:, 1:], torch.zeros_like(v[:, :1])], dim=1)
    delta = r + gamma * after - v
    C = mask.shape[1]
    later = torch.arange(C)[None, :] - torch.arange(C)[:, None]  # (C, C): u - t
    weights = torch.tensor(gamma * lam, dtype=torch.float64) ** later.clamp(min=0)
    advantages = delta @ torch.where(later >= 0, weights, zero).T
    return advantages.float(), (advantages + v).float()
"""

_DELTA = "delta = rewards[:, t] + gamma * next_value - values[:, t]"
_STEP = "advantage = delta + gamma * lam * advantage"
_END = "return advantages, advantages + values"
_R = "    rewards = rewards.masked_fill(~mask, 0.0)\n"
_V = "    values = values.masked_fill(~mask, 0.0)\n"
_REST = f"""{_R}{_V}    advantages = torch.zeros_like(values)
    advantage = next_value = torch.zeros_like(values[:, 0])  # (B,) Â_{{t+1}}, V(s_{{t+1}})
    for t in reversed(range(values.shape[1])):
        {_DELTA}
        {_STEP}
        next_value = values[:, t]
        advantages[:, t] = advantage  # 0 on padding: all that went in is 0 there
    {_END}"""
_WHITEN = """kept = advantages[mask]
    white = advantages * 0
    white[mask] = (kept - kept.mean()) / kept.std()
    return white, advantages + values"""
MUTANTS = (
    Mutant("zeros", _END, "return advantages * 0, values", "zero"),
    Mutant("no mask", _R + _V, "", "padding kept"),
    Mutant("masked at the end", _REST,
           _REST.replace(_R, "").replace(_V, "").replace(_END,
           "return advantages * mask, (advantages + values) * mask"), "padding leaks"),
    Mutant("rewards masked, values not", _REST,
           _REST.replace(_V, "").replace(_END,
           "return advantages * mask, (advantages + values) * mask"), "values leak"),
    Mutant("value after the end", _REST,
           _REST.replace(_V, "    garbage = values\n" + _V).replace(
           "next_value = values[:, t]", "next_value = garbage[:, t]").replace(
           "advantage = delta + gamma * lam * advantage",
           "advantage = (delta + gamma * lam * advantage) * mask[:, t]"), "value after the end"),
    Mutant("bootstrap", "gamma * next_value",
           "gamma * torch.where(mask.sum(1) - 1 == t, values[:, t], next_value)", "bootstrap"),
    Mutant("off by one", "gamma * next_value", "gamma * values[:, t]", "off by one"),
    Mutant("forwards", "reversed(range(values.shape[1]))", "range(values.shape[1])", "forwards"),
    Mutant("rewards to go", _STEP, "advantage = rewards[:, t] + gamma * advantage", "no values"),
    Mutant("no values", _STEP, "advantage = rewards[:, t] + gamma * lam * advantage",
           "no values, lambda"),
    Mutant("lambda ignored", _STEP, "advantage = delta + gamma * advantage", "lambda ignored"),
    Mutant("one step", _STEP, "advantage = delta", "one step"),
    Mutant("gamma ignored", _DELTA, "gamma = 1.0; " + _DELTA, "gamma ignored"),
    Mutant("no gamma in the recursion", _STEP, "advantage = delta + lam * advantage",
           "gamma only in delta"),
    Mutant("no gamma in delta", "gamma * next_value", "next_value", "gamma not in delta"),
    Mutant("swapped", _DELTA, _DELTA.replace("gamma", "lam"), "swapped"),
    Mutant("sign", _DELTA, "delta = values[:, t] - rewards[:, t] - gamma * next_value", "sign"),
    Mutant("whitened", _END, _WHITEN, "whitened"),
    Mutant("returns first", _END, "return advantages + values, advantages", "returns"),
    Mutant("reward to go as return", _END,
           "togo = torch.zeros_like(rewards); g = rewards[:, 0] * 0\n"
           "    for t in reversed(range(rewards.shape[1])):\n"
           "        g = rewards[:, t] + gamma * g; togo[:, t] = g\n"
           "    return advantages, togo", "reward to go"),
    Mutant("minus values", _END, "return advantages, advantages - values", "minus values"),
    Mutant("advantages twice", _END, "return advantages, advantages", "advantages twice"),
    Mutant("one tensor", _END, "return advantages", "not a pair"),
    Mutant("in place", "values.masked_fill(", "values.masked_fill_(", "in place"),
    Mutant("times the mask", _R + _V, "    rewards, values = rewards * mask, values * mask\n",
           "garbage on padding"),
)  # fmt: skip

ALTERNATIVES = (ROWS, MATRIX)
