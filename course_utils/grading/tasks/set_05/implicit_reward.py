"""Set 05: the reward that a policy implies, and how well it ranks pairs.

    implicit_reward(logprobs (B,), ref_logprobs (B,), beta) -> (B,)
    reward_metrics(chosen_rewards (B,), rejected_rewards (B,)) -> {"accuracy": x, "margin": y}

r̂ = β (log π - log π_ref) (Rafailov et al. 2023, §4). Accuracy: the share of pairs whose chosen
answer has the higher reward, a tie counts one half. Margin: mean of chosen less rejected.
"""

from typing import Any

import torch
from torch import Tensor

from course_utils.grading.call import Call
from course_utils.grading.checks import Check, Task
from course_utils.grading.finding import Finding, changed, name_mistake, show, wrong_type
from course_utils.grading.tasks.set_05._inputs import Known, four_logprobs, mistake_in_rows


def check_reward(call: Call, seed: int, size: int) -> list[Finding]:
    """β times the log-ratio, of each answer; also for one answer alone."""
    logprobs, _, ref_logprobs, _ = four_logprobs(seed, size)
    for rows in (slice(None), slice(1)):
        ours, reference, beta = logprobs[rows], ref_logprobs[rows], 0.15 + 0.05 * size
        a, b = ours.double(), reference.double()
        known: Known = {
            "zero": (a * 0, "your rewards are 0 whatever the input"),
            "sign": (beta * (b - a), "the sign is flipped: an answer that became likelier than "
                     "under the reference has a positive reward"),
            "no beta": (a - b, "β is missing"),
            "divided by beta": ((a - b) / beta, "you divide by β; the reward is β times a "
                                "log-ratio"),
            "no reference": (beta * a, "the reference is missing"),
            "ratio of logs": (beta * a / b, "you divide two logarithms; the logarithm of a ratio "
                              "is their difference"),
            "ratio": (beta * (a - b).exp(), "you take the ratio of the probabilities; its "
                      "logarithm was asked for"),
            "sigmoid": (torch.sigmoid(beta * (a - b)), "a reward is no probability: there is no "
                        "σ in it"),
        }  # fmt: skip
        outcome = call(ours, reference, beta)
        fault = mistake_in_rows(outcome.value, beta * (a - b), known)
        fault = fault or changed(("logprobs", "ref_logprobs"), (ours, reference), outcome.arguments)
        if fault:
            return [fault]
    return []


def _rewards(seed: int, size: int) -> tuple[Tensor, Tensor]:
    """(B,) chosen and rejected: one pair in the wrong order, ties, more right ones than both."""
    generator = torch.Generator().manual_seed(seed)
    ties = 2 + size % 3
    wins = ties + 2 + size + seed % 3
    kind = torch.tensor([-1.0] + [1.0] * wins + [0.0] * ties)
    kind = kind[torch.randperm(len(kind), generator=generator)]
    rejected = torch.randn(len(kind), generator=generator)
    gaps = torch.rand(len(kind), generator=generator) + torch.where(kind < 0, 1.0, 0.5)
    return rejected + kind * gaps, rejected


def _number(value: Any, key: str) -> Tensor | Finding:
    """What the student's dict has under `key`, as a tensor of shape ()."""
    if not isinstance(value, dict):
        message = 'reward_metrics must return a dict with "accuracy" and "margin"'
        return Finding("not a dict", message, show(value), "a dict")
    number: Any = value.get(key)
    if isinstance(number, (int, float)) and not isinstance(number, bool):
        number = torch.tensor(float(number), dtype=torch.float64)
    if number is None:
        return Finding("missing key", f"the dict of reward_metrics has no {key!r}", show(value))
    fault = wrong_type(number, ())
    if fault:
        message = f"{key!r} must be one number, for all pairs together"
        return Finding(fault.mistake, message, fault.got, fault.expected)
    found: Tensor = number
    return found


def _judge(call: Call, key: str, inputs: tuple[Tensor, Tensor], known: Known) -> Finding | None:
    """The finding on one of the two numbers; `known` holds the right one under ""."""
    outcome = call.second(*inputs)
    got = _number(outcome.value, key)
    if isinstance(got, Finding):
        return got
    mistakes = {name: value for name, value in known.items() if name}
    fault = name_mistake(got, known[""][0], mistakes)
    return fault or changed(("chosen_rewards", "rejected_rewards"), inputs, outcome.arguments)


def _accuracies(chosen: Tensor, rejected: Tensor) -> Known:
    a, b = chosen.double(), rejected.double()
    right, tied, wrong = ((x).double() for x in (a > b, a == b, a < b))
    accuracy = right.mean() + tied.mean() / 2
    return {
        "": (accuracy, ""),
        "zero": (accuracy * 0, "your accuracy is 0 whatever the input"),
        "ties wrong": (right.mean(), "a tie counts as wrong; it must count one half, or a policy "
                       "that still equals the reference is called worse than chance"),
        "ties right": ((right + tied).mean(), "a tie counts as right; it must count one half"),
        "ties left out": (right.sum() / (right + wrong).sum().clamp(min=1), "ties are left out; "
                          "each must count one half"),
        "reversed": (wrong.mean() + tied.mean() / 2, "you count the pairs in which the *rejected* "
                     "answer wins"),
        "reversed, ties wrong": (wrong.mean(), "you count the pairs in which the *rejected* "
                                 "answer wins"),
        "count": ((right + tied / 2).sum(), "you count the pairs; their share was asked for"),
        "percent": (100 * accuracy, "a share lies in [0, 1]; yours is in per cent"),
        "signs": ((a - b).sign().mean(), "the mean of signs lies in [-1, 1]; a share in [0, 1]"),
        "of the mean": ((a.mean() > b.mean()).double(), "you compare the mean rewards; compare "
                        "pair by pair"),
        "soft": (torch.sigmoid(a - b).mean(), "you average probabilities; count the pairs"),
    }  # fmt: skip


def check_accuracy(call: Call, seed: int, size: int) -> list[Finding]:
    """Ties one half; one pair, all ties, several hundred pairs in bfloat16."""
    chosen, rejected = _rewards(seed, size)
    best, other = chosen[chosen > rejected][:1], rejected[chosen > rejected][:1]
    for inputs in ((chosen, rejected), (rejected, rejected), (best, other)):
        fault = _judge(call, "accuracy", inputs, _accuracies(*inputs))
        if fault:
            return [fault]
    many = (chosen.repeat(60)[:299].bfloat16(), rejected.repeat(60)[:299].bfloat16())
    fault = _judge(call, "accuracy", many, {"": _accuracies(*many)[""]})
    if fault:
        message = "with bfloat16 rewards the share loses digits: count in float32"
        return [Finding("half precision", message, fault.got, fault.expected)]
    return []


def _margins(chosen: Tensor, rejected: Tensor) -> Known:
    gaps = chosen.double() - rejected.double()
    return {
        "": (gaps.mean(), ""),
        "zero": (gaps.mean() * 0, "your margin is 0 whatever the input"),
        "reversed": (-gaps.mean(), "the margin's sign is flipped: chosen less rejected"),
        "absolute": (gaps.abs().mean(), "pairs in the wrong order have a negative margin; yours "
                     "takes its absolute value"),
        "sum": (gaps.sum(), "your margin is the sum; the mean was asked for"),
        "clipped": (gaps.clamp(min=0).mean(), "pairs in the wrong order count too"),
        "right pairs only": (gaps[gaps > 0].sum() / (gaps > 0).sum().clamp(min=1), "you average "
                             "over the pairs in the right order; all of them count"),
        "ties left out": (gaps.sum() / (gaps != 0).sum().clamp(min=1), "ties count in the "
                          "margin's mean, with 0"),
        "median": (gaps.median(), "the mean was asked for, not the median"),
        "smallest": (gaps.min(), "the mean was asked for, not the smallest"),
    }  # fmt: skip


def check_margin(call: Call, seed: int, size: int) -> list[Finding]:
    """The mean difference; several hundred pairs in bfloat16."""
    chosen, rejected = _rewards(seed, size)
    fault = _judge(call, "margin", (chosen, rejected), _margins(chosen, rejected))
    if fault:
        return [fault]
    many = (chosen.repeat(60)[:299].bfloat16(), rejected.repeat(60)[:299].bfloat16())
    fault = _judge(call, "margin", many, {"": _margins(*many)[""]})
    if fault:
        message = "with bfloat16 rewards the margin loses digits: subtract and average in float32"
        return [Finding("half precision", message, fault.got, fault.expected)]
    return []


TASK = Task(
    set="05",
    name="implicit-reward",
    functions=("implicit_reward", "reward_metrics"),
    checks=(
        Check("reward", 1, check_reward),
        Check("accuracy", 1, check_accuracy),
        Check("margin", 1, check_margin),
    ),
)
