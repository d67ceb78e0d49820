"""Set 08: the expected score of best-of-n, from all subsets of N samples at once.

    expected_best(rewards (P, N), scores (P, N), n) -> (P,)

The mean, over all C(N, n) subsets of n answers, of the score of the answer with the highest reward
in the subset; equal rewards share their places. Stiennon et al. 2020; Nakano et al. 2021, appendix
I; Gao et al. 2022, section 2.
"""

import itertools
import math
from fractions import Fraction

import torch
from torch import Tensor

from course_utils.grading.call import Call
from course_utils.grading.checks import Check, Task
from course_utils.grading.finding import (
    Finding,
    attempt,
    changed,
    is_close,
    name_mistake,
    show,
    wrong_type,
)


def _inputs(seed: int, size: int) -> tuple[Tensor, Tensor]:
    """Rewards and scores (P, N) that go together, but not quite; no two rewards are equal."""
    generator = torch.Generator().manual_seed(seed)
    P, N = 3 + size % 2, 6 + size % 3
    rewards = torch.randn(P, N, generator=generator)
    rewards[:, -1] = rewards.amax(1) + 0.5  # the best is not among the first n
    scores = 3 + rewards * 0.7 + 2 * torch.randn(P, N, generator=generator)
    return rewards, scores


def _all_subsets(rewards: Tensor, scores: Tensor, n: int, tie: str = "share") -> Tensor:
    """Every subset looked at, one by one; `tie`: who is chosen among equal rewards."""
    found = []
    for keys, values in zip(rewards.tolist(), scores.tolist(), strict=True):
        chosen = []
        for subset in itertools.combinations(range(len(keys)), n):
            top = max(keys[i] for i in subset)
            equals = [values[i] for i in subset if keys[i] == top]
            chosen.append({"share": sum(equals) / len(equals), "first": equals[0],
                           "last": equals[-1]}[tie])  # fmt: skip
        found.append(sum(chosen) / len(chosen))
    return torch.tensor(found, dtype=torch.float64)


def _weighted(rewards: Tensor, scores: Tensor, weights: Tensor) -> Tensor:
    """weights (N,) of the answers in rising order of reward."""
    order = rewards.double().argsort(1)
    return scores.double().gather(1, order) @ weights


def _known(rewards: Tensor, scores: Tensor, n: int) -> dict[str, tuple[Tensor, str]]:
    N = rewards.shape[1]
    rewards, scores = rewards.double(), scores.double()
    ranks = torch.arange(1, N + 1, dtype=torch.float64)
    plug_in = (ranks / N) ** n - ((ranks - 1) / N) ** n
    ordinary = torch.tensor([math.comb(k, n - 1) / math.comb(N, n) for k in range(N)])
    wider = torch.tensor([math.comb(k, n) / max(math.comb(N, n + 1), 1) for k in range(N)])
    shifted = torch.tensor([math.comb(k + 1, n) / math.comb(N, n) for k in range(N)])
    first = scores.gather(1, rewards[:, :n].argmax(1, keepdim=True))[:, 0]
    groups = N // n
    blocks = rewards[:, : groups * n].view(-1, groups, n).argmax(2, keepdim=True)
    blocks = scores[:, : groups * n].view(-1, groups, n).gather(2, blocks)[..., 0].mean(1)
    nan = torch.full_like(first, math.nan)
    return {
        "zero": (first * 0, "your result is 0 whatever the input"),
        "one subset": (first, "you look at the first n answers only: one of the C(N, n) subsets"),
        "groups": (blocks, "you cut the N answers into N / n groups; that uses few of the C(N, n) "
                   "subsets, so it is noisier than it need be"),
        "best of all": (_weighted(rewards, scores, (ranks == N).double()), "you return the score "
                        "of the best of all N, whatever n is"),
        "mean": (scores.mean(1), "you return the mean score, which is n = 1"),
        "with replacement": (_weighted(rewards, scores, plug_in), "your subsets may hold an answer "
                             "twice (they are drawn with replacement): that is biased towards "
                             "smaller n"),
        "worst of n": (_weighted(rewards, scores, ordinary.double().flip(0)), "you take the worst "
                       "of n: the largest weight belongs to the highest reward"),
        "by score": (_weighted(scores, scores, ordinary.double()), "you choose by the score that "
                     "is measured; the rewards choose"),
        "reward": (_weighted(rewards, rewards, ordinary.double()), "you return the expected "
                   "*reward*; the scores of the chosen answers were asked for"),
        "not sorted": (scores @ ordinary.double(), "the scores are not in the order of the "
                       "rewards"),
        "n + 1": (_weighted(rewards, scores, wider.double()) if n < N else nan, "this is best of n "
                  "+ 1: an off-by-one in the binomials"),
        "not normalised": (_weighted(rewards, scores, shifted.double()), "the weights do not sum "
                           "to 1: of the n answers one is the best, and n - 1 come from the k - 1 "
                           "below it"),
    }  # fmt: skip


def check_value(call: Call, seed: int, size: int) -> list[Finding]:
    """Distinct rewards, against all subsets looked at one by one."""
    rewards, scores = _inputs(seed, size)
    P, N = rewards.shape
    for n in (3, 2, 1, N):
        outcome = call(rewards, scores, n)
        expected = _all_subsets(rewards, scores, n)
        fault = (
            wrong_type(outcome.value, (P,))
            or name_mistake(outcome.value, expected, _known(rewards, scores, n))
            or changed(("rewards", "scores"), (rewards, scores), outcome.arguments)
        )
        if fault:
            return [fault]
    return []


def check_ties(call: Call, seed: int, size: int) -> list[Finding]:
    """Few different rewards, so that most answers have an equal."""
    rewards, scores = _inputs(seed, size)
    generator = torch.Generator().manual_seed(seed + 1)
    rewards = torch.randint(3, rewards.shape, generator=generator) * 0.5 - 1.0
    known = {
        "first of equals": (_all_subsets(rewards, scores, 2, "first"), "of equal rewards you let "
                            "the first win: the result must not depend on the answers' order"),
        "last of equals": (_all_subsets(rewards, scores, 2, "last"), "of equal rewards you let "
                           "the last win: the result must not depend on the answers' order"),
    }  # fmt: skip
    for n in (2, 3, rewards.shape[1]):
        got = call(rewards, scores, n).value
        fault = wrong_type(got, (len(rewards),))
        expected = _all_subsets(rewards, scores, n)
        fault = fault or name_mistake(got, expected, known if n == 2 else {})
        if fault and fault.mistake == "something else":
            message = "answers of equal reward must share: a coin decides which is chosen"
            fault = Finding("ties", message, fault.got, fault.expected)
        if fault:
            return [fault]
    return []


def _hypergeometric(N: int, n: int) -> Tensor:
    """Exact weights by rank, lowest first: each from the one above it, in fractions."""
    weights = [Fraction(n, N)]  # the best of all is in the subset
    for k in range(N, 1, -1):
        weights.append(weights[-1] * Fraction(k - n, k - 1))
    return torch.tensor([float(w) for w in reversed(weights)], dtype=torch.float64)


def check_many(call: Call, seed: int, size: int) -> list[Finding]:
    """More than a thousand samples: C(N, n) is beyond every float."""
    generator = torch.Generator().manual_seed(seed)
    N = 1100 + 20 * (size % 8)
    rewards = torch.randn(1, N, generator=generator) * 1e4
    scores = 5 + rewards / 1e4 + torch.randn(1, N, generator=generator)
    for n in (N // 2, 4, N - 1):
        message = f"N = {N}, n = {n} breaks your function: C(N, n) is beyond every float; make "
        message += "each weight from its neighbour, or work with logarithms"
        outcome = attempt(call, "overflow", message, rewards, scores, n)
        if isinstance(outcome, Finding):
            return [outcome]
        got, expected = outcome.value, _weighted(rewards, scores, _hypergeometric(N, n))
        fault = wrong_type(got, (1,))
        if not fault and not got.isfinite().all():
            fault = Finding("overflow", message, show(got), show(expected))
        if not fault and not is_close(got, expected):
            message = f"N = {N}, n = {n} loses digits: work in float64"
            fault = Finding("digits", message, show(got), show(expected))
        if fault:
            return [fault]
    return []


TASK = Task(
    set="08",
    name="expected-best-of-n",
    functions=("expected_best",),
    checks=(
        Check("value", 2, check_value),
        Check("equal rewards", 1, check_ties),
        Check("many samples", 1, check_many),
    ),
)
