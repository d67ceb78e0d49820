"""Set 09: GRPO's advantage, each prompt's answers being each other's baseline.

    group_advantage(rewards (P·G,), group_size=G, scale=True, eps=1e-4) -> (P·G,)

The answers to one prompt stand side by side. (r - mean) / (std + eps) within the group, std with
G - 1; scale=False leaves the division out (Dr. GRPO). Equal rewards give exactly 0, with eps = 0
too, and so does a group of one.
"""

import math
import statistics

import torch
from torch import Tensor

from course_utils.grading.call import Call
from course_utils.grading.checks import Check, Task
from course_utils.grading.finding import Finding, attempt, changed, name_mistake, show, wrong_type

Known = dict[str, tuple[Tensor, str]]


def _rewards(seed: int, size: int) -> tuple[Tensor, int]:
    """Rewards (P·G,) and G; the groups differ in level and in spread, and P differs from G."""
    generator = torch.Generator().manual_seed(seed * 1009 + size)
    P, G = 3 + size % 4, 4 + size // 2
    P += P == G
    level = torch.randn(P, 1, generator=generator) * 3
    spread = torch.rand(P, 1, generator=generator) + 0.3
    rewards = torch.randn(P, G, generator=generator) * spread + level
    return rewards.flatten(), G


def _by_loop(rewards: Tensor, group_size: int, scale: bool = True, eps: float = 1e-4) -> Tensor:
    """Group by group, in Python's floats."""
    numbers, out = rewards.double().tolist(), []
    for start in range(0, len(numbers), group_size):
        group = numbers[start : start + group_size]
        if len(set(group)) == 1:  # also a group of one
            out += [0.0] * len(group)
            continue
        mean, std = math.fsum(group) / len(group), statistics.stdev(group)
        out += [(r - mean) / (std + eps) if scale else r - mean for r in group]
    return torch.tensor(out, dtype=torch.float64)


def _known(rewards: Tensor, G: int, eps: float = 1e-4) -> Known:
    """The values of the known mistakes, with scale=True."""
    r = rewards.double()
    groups = r.view(-1, G)
    centred = groups - groups.mean(1, keepdim=True)
    std = groups.std(1, keepdim=True)
    mixed = _by_loop(r.view(G, -1).t().flatten(), G, eps=eps).view(-1, G).t()
    sibling = (groups.sum(1, keepdim=True) - groups) / (G - 1)
    values: dict[str, tuple[Tensor, str]] = {
        "zero": (centred * 0, "your advantages are all 0"),
        "rewards": (groups, "you return the rewards; each group's mean must be taken off"),
        "sign": (-centred / (std + eps), "the sign is flipped: what is better than its siblings "
                 "has a positive advantage"),
        "whole batch": ((groups - r.mean()) / (r.std() + eps), "you take mean and std over the "
                        "whole batch: an answer must be compared with answers to its own prompt"),
        "mean of the batch": ((groups - r.mean()) / (std + eps), "the mean is that of the whole "
                              "batch; the baseline of an answer is its own group's mean"),
        "std of the batch": (centred / (r.std() + eps), "you divide by the std of the whole batch; "
                             "each group has its own"),
        "grouped wrongly": (mixed, "the groups are mixed up: the answers to one prompt stand side "
                            "by side, so group p holds the places p·G to (p + 1)·G - 1"),
        "population std": (centred / (groups.std(1, unbiased=False, keepdim=True) + eps), "the std "
                           "is divided by G; here it is the sample's, divided by G - 1"),
        "not divided": (centred, "the division by the std is missing"),
        "only divided": (groups / (std + eps), "you divide by the std, and the mean is still in"),
        "variance": (centred / (std**2 + eps), "you divide by the variance; its root is the std"),
        "eps under the root": (centred / (std**2 + eps).sqrt(), "eps is added to the std, not to "
                               "the variance under the root"),
        "eps as a floor": (centred / std.clamp(min=eps), "eps is added to the std; yours is a "
                           "floor under it"),
        "leave one out": (groups - sibling, "that is RLOO's advantage (the mean of the *others*); "
                          "GRPO takes the mean of the whole group"),
        "median": ((groups - groups.quantile(0.5, dim=1, keepdim=True)) / (std + eps),
                   "the baseline is the mean, not the median"),
    }  # fmt: skip
    return {name: (value.flatten(), message) for name, (value, message) in values.items()}


def _named(value: object, expected: Tensor, known: Known) -> Finding | None:
    return wrong_type(value, tuple(expected.shape)) or name_mistake(value, expected, known)  # type: ignore[arg-type]


def check_value(call: Call, seed: int, size: int) -> list[Finding]:
    """Mean and std of the group, for random rewards, and that nothing is changed in place."""
    rewards, G = _rewards(seed, size)
    outcome = call(rewards, G)
    fault = _named(outcome.value, _by_loop(rewards, G), _known(rewards, G)) or changed(
        ("rewards",), (rewards,), outcome.arguments
    )
    if fault:
        return [fault]
    alone = call(rewards[:G], G).value  # a group's advantages do not depend on the other groups
    fault = _named(alone, _by_loop(rewards[:G], G), _known(rewards[:G], G))
    return [fault] if fault else []


def check_options(call: Call, seed: int, size: int) -> list[Finding]:
    """scale=False, and an eps that can be seen."""
    rewards, G = _rewards(seed + 1, size)
    groups = rewards.double().view(-1, G)
    centred = groups - groups.mean(1, keepdim=True)
    known: Known = {
        "scale ignored": (_by_loop(rewards, G), "scale=False must leave the division out"),
        "scaled by the batch": ((centred / (groups.std() + 1e-4)).flatten(), "scale=False must "
                                "leave every division out"),
        "scaled by eps": ((centred / 1e-4).flatten(), "scale=False must leave out the whole "
                          "division, eps too"),
    }  # fmt: skip
    fault = _named(call(rewards, G, scale=False).value, _by_loop(rewards, G, False), known)
    if fault:
        return [fault]
    std = groups.std(1, keepdim=True)
    known = {
        "eps ignored": (_by_loop(rewards, G), "eps has no effect: it is added to the std"),
        "eps under the root": ((centred / (std**2 + 0.5).sqrt()).flatten(), "eps is added to the "
                               "std, not to the variance under the root"),
        "eps as a floor": ((centred / std.clamp(min=0.5)).flatten(), "eps is added to the std; "
                           "yours is a floor under it"),
        "eps left out": ((centred / std).flatten(), "eps has no effect: it is added to the std"),
        "eps added outside": ((centred / std + 0.5).flatten(), "eps belongs into the denominator"),
    }  # fmt: skip
    fault = _named(call(rewards, G, eps=0.5).value, _by_loop(rewards, G, eps=0.5), known)
    if fault:
        return [fault]
    both = call(rewards, G, False, 0.5).value
    fault = _named(both, _by_loop(rewards, G, False), {})
    if fault:
        message = "with scale=False eps has no part in the result"
        return [Finding("scaled by eps", message, fault.got, fault.expected)]
    return []


def check_edges(call: Call, seed: int, size: int) -> list[Finding]:
    """Silent groups, rewards of 0 and 1 as integers, half precision, large levels, one answer."""
    rewards, G = _rewards(seed + 2, size)
    silent = rewards.view(-1, G).clone()
    silent[1] = 0.1 + seed % 7 / 3  # its mean need not be the same number in float32
    silent[2] = 1e4 / 3
    words = "a group of equal rewards teaches nothing: its advantages are exactly 0, with eps " \
            "= 0 too (0/0 is NaN, and a mean may be a rounding error off)"  # fmt: skip
    alike = torch.tensor([0.1, 0.7, 1 / 3, 2.3, 1e4 / 3, 9.7, 77.7, 1e-3])  # sums of 7 are rounded
    outcome = attempt(call, "silent group", words, alike.repeat_interleave(7), 7, eps=0.0)
    if isinstance(outcome, Finding):
        return [outcome]
    fault = wrong_type(outcome.value, (56,))
    if fault:
        return [fault]
    if not bool((outcome.value == 0).all()):
        return [Finding("silent group", words, "a number that is not 0", "0")]
    for eps in (1e-4, 1e-12, 0.0):
        outcome = attempt(call, "silent group", words, silent.flatten(), G, eps=eps)
        if isinstance(outcome, Finding):
            return [outcome]
        fault = wrong_type(outcome.value, (silent.numel(),))
        if fault:
            return [fault]
        got = outcome.value.view(-1, G)[1:3]
        if not bool((got == 0).all()):
            return [Finding("silent group", words, show(got.flatten()[0]), "0")]
        fault = _named(outcome.value, _by_loop(silent.flatten(), G, eps=eps), {})
        if fault:
            message = "the other groups are wrong beside a group of equal rewards"
            return [Finding("beside a silent group", message, fault.got, fault.expected)]
    for mistake, message, given, group in _edge_cases(rewards, G, seed):
        outcome = attempt(call, mistake, message, given, group)
        if isinstance(outcome, Finding):
            return [outcome]
        expected = _by_loop(given, group)
        fault = wrong_type(outcome.value, tuple(expected.shape))
        if not fault and outcome.value.dtype not in (torch.float32, torch.float64):
            fault = Finding("dtype", "the result must be float32 or float64", show(outcome.value))
        fault = fault or name_mistake(outcome.value, expected, {})
        if fault:
            name = fault.mistake if fault.mistake == "dtype" else mistake
            return [Finding(name, fault.message if name == "dtype" else message, fault.got,
                            fault.expected)]  # fmt: skip
    return []


def _edge_cases(rewards: Tensor, G: int, seed: int) -> list[tuple[str, str, Tensor, int]]:
    generator = torch.Generator().manual_seed(seed)
    verified = torch.randint(2, (3, G), generator=generator)
    verified[0], verified[1, :2] = 0, torch.tensor([0, 1])
    fine = torch.rand(2, 4, generator=generator) * 64  # means of four are exact in float32
    spread = "rewards of 0 and 1 may come as integers or bool: convert them before the mean"
    half = "rewards in half precision lose digits in the mean: convert them to float32 first"
    level = "a level that all rewards share must not matter; a variance as the mean square minus " \
            "the squared mean loses its digits there"  # fmt: skip
    one = "a group of one answer has no siblings: its advantage is 0"
    return [
        ("integers", spread, verified.flatten(), G),
        ("integers", spread, verified.flatten().bool(), G),
        ("half precision", half, (rewards * 10).bfloat16(), G),
        ("half precision", half, (rewards * 10).half(), G),
        ("level", level, fine.round().flatten() + 2**17, 4),
        ("group of one", one, rewards[:3], 1),
        ("strides", "rewards need not be contiguous", torch.stack([rewards, rewards], 1)[:, 0], G),
    ]


TASK = Task(
    set="09",
    name="group-advantage",
    functions=("group_advantage",),
    checks=(
        Check("value", 2, check_value),
        Check("options", 1, check_options),
        Check("edges", 1, check_edges),
    ),
)
