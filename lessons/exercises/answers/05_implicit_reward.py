from course_utils.grading.mutants import Mutant

SIGNS = """
import torch

def implicit_reward(logprobs, ref_logprobs, beta):
    return torch.sub(logprobs, ref_logprobs).mul(beta)

def reward_metrics(chosen_rewards, rejected_rewards):
    gaps = chosen_rewards.double() - rejected_rewards.double()
    return {"accuracy": (gaps.sign().mean() + 1) / 2, "margin": gaps.mean(), "pairs": len(gaps)}
"""

LOOP = """
import torch

def implicit_reward(logprobs, ref_logprobs, beta):
    return torch.stack([beta * p - beta * q for p, q in zip(logprobs, ref_logprobs)])

def reward_metrics(chosen_rewards, rejected_rewards):
    points, gaps = 0.0, []
    for a, b in zip(chosen_rewards.tolist(), rejected_rewards.tolist()):
        points += 1.0 if a > b else 0.5 if a == b else 0.0
        gaps.append(a - b)
    return {"margin": sum(gaps) / len(gaps), "accuracy": points / len(gaps)}
"""

_REWARD = "return beta * (logprobs - ref_logprobs)"
_ACCURACY = "(right + 0.5 * tied).mean()"
_MARGIN = "(chosen - rejected).mean()"
MUTANTS = (
    Mutant("zeros", _REWARD, "return logprobs * 0", "zero"),
    Mutant("sign", _REWARD, "return beta * (ref_logprobs - logprobs)", "sign"),
    Mutant("no beta", _REWARD, "return logprobs - ref_logprobs", "no beta"),
    Mutant("divided", _REWARD, "return (logprobs - ref_logprobs) / beta", "divided by beta"),
    Mutant("no reference", _REWARD, "return beta * logprobs", "no reference"),
    Mutant("ratio of logs", _REWARD, "return beta * logprobs / ref_logprobs", "ratio of logs"),
    Mutant("ratio", _REWARD, "return beta * (logprobs - ref_logprobs).exp()", "ratio"),
    Mutant("sigmoid", _REWARD, "return (beta * (logprobs - ref_logprobs)).sigmoid()", "sigmoid"),
    Mutant("a mean", _REWARD, "return beta * (logprobs - ref_logprobs).mean()", "wrong shape"),
    Mutant("in place", _REWARD, "logprobs -= ref_logprobs; return beta * logprobs", "in place"),
    Mutant("ties wrong", _ACCURACY, "right.mean()", "ties wrong"),
    Mutant("ties right", _ACCURACY, "(right + tied).mean()", "ties right"),
    Mutant("ties left out", _ACCURACY, "right.sum() / (1 - tied).sum()", "ties left out"),
    Mutant("reversed", "(chosen > rejected)", "(chosen < rejected)", "reversed"),
    Mutant("reversed, ties wrong", _ACCURACY, "(chosen < rejected).float().mean()",
           "reversed, ties wrong"),
    Mutant("count", _ACCURACY, "(right + 0.5 * tied).sum()", "count"),
    Mutant("per cent", _ACCURACY, "100 * (right + 0.5 * tied).mean()", "percent"),
    Mutant("signs", _ACCURACY, "(chosen - rejected).sign().mean()", "signs"),
    Mutant("zero accuracy", _ACCURACY, "0.0", "zero"),
    Mutant("soft", _ACCURACY, "torch.sigmoid(chosen - rejected).mean()", "soft"),
    Mutant("of the means", _ACCURACY, "(chosen.mean() > rejected.mean()).float()", "of the mean"),
    Mutant("counted in half", "right = (chosen > rejected).float()",
           "right = (chosen > rejected).to(chosen_rewards.dtype)\n    "
           "return {'accuracy': (right + (chosen == rejected).to(right.dtype) / 2).mean(), "
           "'margin': (chosen - rejected).mean()}", "half precision"),
    Mutant("margin in half", _MARGIN, "(chosen_rewards - rejected_rewards).mean()",
           "half precision"),
    Mutant("margin reversed", _MARGIN, "(rejected - chosen).mean()", "reversed"),
    Mutant("margin absolute", _MARGIN, "(chosen - rejected).abs().mean()", "absolute"),
    Mutant("margin sum", _MARGIN, "(chosen - rejected).sum()", "sum"),
    Mutant("margin clipped", _MARGIN, "(chosen - rejected).relu().mean()", "clipped"),
    Mutant("margin of right pairs", _MARGIN, "(chosen - rejected)[chosen > rejected].mean()",
           "right pairs only"),
    Mutant("margin without ties", _MARGIN, "(chosen - rejected)[chosen != rejected].mean()",
           "ties left out"),
    Mutant("median", _MARGIN, "(chosen - rejected).median()", "median"),
    Mutant("zero margin", _MARGIN, "0", "zero"),
    Mutant("per pair", _MARGIN, "chosen - rejected", "wrong shape"),
    Mutant("key missing", '"margin": ', '"margins": ', "missing key"),
    Mutant("a tuple", "return {", "return chosen.mean(), rejected.mean()\n    {", "not a dict"),
    Mutant("metrics in place", "chosen, rejected =", "chosen_rewards -= 1; rejected_rewards -= 1; "
           "chosen, rejected =", "in place"),
    Mutant("hole", _REWARD, "raise NotImplementedError('your code here')", "blank"),
)  # fmt: skip

ALTERNATIVES = (SIGNS, LOOP)
