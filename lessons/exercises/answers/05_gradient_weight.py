from course_utils.grading.mutants import Mutant

AUTOGRAD = """
import torch
import torch.nn.functional as F

def _loss(chosen, rejected, ref_chosen, ref_rejected, beta):
    return F.softplus(-beta * (chosen - ref_chosen - rejected + ref_rejected), threshold=60)

def dpo_gradients(chosen, rejected, ref_chosen, ref_rejected, beta):
    w, l = (x.detach().clone().requires_grad_(True) for x in (chosen, rejected))
    loss = _loss(w, l, ref_chosen.detach(), ref_rejected.detach(), beta).mean()
    return list(torch.autograd.grad(loss, (w, l)))

def gradient_weight(chosen, rejected, ref_chosen, ref_rejected, beta):
    u = beta * (chosen - ref_chosen - rejected + ref_rejected)
    return torch.exp(F.logsigmoid(-u))
"""

STABLE_FRACTION = """
import torch

def gradient_weight(chosen, rejected, ref_chosen, ref_rejected, beta):
    rewards = beta * torch.stack([chosen - ref_chosen, rejected - ref_rejected])
    return torch.softmax(rewards, dim=0)[1]

def dpo_gradients(chosen, rejected, ref_chosen, ref_rejected, beta):
    pushed = torch.stack(
        [gradient_weight(*(x[i : i + 1] for x in (chosen, rejected, ref_chosen, ref_rejected)),
                         beta)[0] for i in range(chosen.shape[0])]
    )
    return -beta * pushed / chosen.shape[0], beta * pushed / chosen.shape[0]
"""

_W = "return torch.sigmoid(reward_rejected - reward_chosen)"
_STEP = "step = beta * weight / len(weight)"
MUTANTS = (
    Mutant("zeros", _W, "return reward_chosen * 0", "zero"),
    Mutant("constant", _W, "return reward_chosen * 0 + 0.5", "constant"),
    Mutant("one", _W, "return torch.ones_like(reward_chosen)", "one"),
    Mutant("reversed", _W, "return torch.sigmoid(reward_chosen - reward_rejected)", "reversed"),
    Mutant("times beta", _W, "return beta * torch.sigmoid(reward_rejected - reward_chosen)",
           "times beta"),
    Mutant("mean's 1/B", _W,
           "return torch.sigmoid(reward_rejected - reward_chosen) / len(reward_chosen)",
           "divided by the batch"),
    Mutant("no beta", _W, "return torch.sigmoid((reward_rejected - reward_chosen) / beta)",
           "no beta"),
    Mutant("no reference", _W, "return torch.sigmoid(beta * (rejected - chosen))", "no reference"),
    Mutant("derivative", _W, "w = torch.sigmoid(reward_rejected - reward_chosen); "
           "return w * (1 - w)", "derivative"),
    Mutant("loss", _W, "return -F.logsigmoid(reward_chosen - reward_rejected)", "loss"),
    Mutant("not squashed", _W, "return reward_rejected - reward_chosen", "not squashed"),
    Mutant("normalised", _W, "w = torch.sigmoid(reward_rejected - reward_chosen); "
           "return w / w.sum()", "normalised"),
    Mutant("softmax", _W, "return torch.softmax(reward_rejected - reward_chosen, 0)", "softmax"),
    Mutant("minus", _W, "return -torch.sigmoid(reward_rejected - reward_chosen)", "gradient"),
    Mutant("a mean", _W, "return torch.sigmoid(reward_rejected - reward_chosen).mean()",
           "wrong shape"),
    Mutant("exp", _W, "a, b = reward_chosen.exp(), reward_rejected.exp(); return b / (a + b)",
           "unstable"),
    Mutant("cancels", _W, "return 1 - torch.sigmoid(reward_chosen - reward_rejected)", "cancels"),
    Mutant("in place", "reward_chosen = beta", "rejected -= ref_rejected; rejected += ref_rejected;"
           " rejected -= 1; chosen -= 1; reward_chosen = beta", "in place"),
    Mutant("gradient sign", "return -step, step", "return step, -step", "sign"),
    Mutant("both the same", "return -step, step", "return -step, -step", "sign"),
    Mutant("zero gradient", "return -step, step", "return step * 0, step * 0", "zero"),
    Mutant("sum's gradient", _STEP, "step = beta * weight", "no mean"),
    Mutant("no beta in the gradient", _STEP, "step = weight / len(weight)", "no beta"),
    Mutant("the weight alone", _STEP, "step = weight", "no beta, no mean"),
    Mutant("beta twice", _STEP, "step = beta * beta * weight / len(weight)", "beta squared"),
    Mutant("only one", "return -step, step", "return -step", "not two"),
    Mutant("stacked", "return -step, step", "return torch.stack([-step, step])", "not two"),
    Mutant("scalar gradients", "return -step, step", "return -step.sum(), step.sum()",
           "wrong shape"),
    Mutant("hole", "weight = gradient", "raise NotImplementedError('your code here'); "
           "weight = gradient", "blank"),
)  # fmt: skip

ALTERNATIVES = (AUTOGRAD, STABLE_FRACTION)
