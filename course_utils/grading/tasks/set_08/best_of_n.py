"""Set 08: choose the best of n answers, and how far that moves the policy.

    best_of_n(rewards (P, N)) -> (P,) integer positions     best_of_n_kl(n) -> nats

Equal rewards: the first. NaN (no reward) is chosen only where a prompt has nothing else, then
position 0; -inf is a reward, so better than NaN. The bound is log n - (n - 1) / n.
"""

import math
from typing import Any

import torch
from torch import Tensor

from course_utils.grading.call import Call
from course_utils.grading.checks import Check, Task
from course_utils.grading.finding import Finding, attempt, changed, name_mistake, show
from course_utils.grading.tasks.set_08._inputs import as_number, not_a_number

_INF, _NAN = math.inf, math.nan


def _rewards(seed: int, size: int) -> Tensor:
    """(P, N), P < N: a tie at the top in row 0, only negative rewards in row 1."""
    generator = torch.Generator().manual_seed(seed)
    P, N = 3 + size % 3, 6 + size
    rewards = torch.randn(P, N, generator=generator)
    rewards[1] = -rewards[1].abs() - 0.1
    first = int(torch.randint(1, N // 2, (), generator=generator))
    rewards[0, [first, first + N // 2]] = rewards.max() + 1  # two that are equally good
    rewards[1, -1] = -1 - rewards.abs().max()
    return rewards


def _chosen(rewards: Tensor) -> Tensor:
    """By a loop: the first position whose reward no other beats; NaN is beaten by everything."""
    positions = []
    for row in rewards.tolist():
        best = 0
        for i, reward in enumerate(row):
            if not math.isnan(reward) and (math.isnan(row[best]) or reward > row[best]):
                best = i
        positions.append(best)
    return torch.tensor(positions)


def _last(rewards: Tensor) -> Tensor:
    return rewards.shape[1] - 1 - rewards.flip(1).argmax(1)


def _wrong_positions(value: Any, rewards: Tensor) -> Finding | None:
    if not isinstance(value, Tensor):
        message = "best_of_n must return a tensor of positions" + (
            "; it returned None: is a `return` missing?" if value is None else ""
        )
        return Finding("not a tensor", message, show(value), f"shape ({len(rewards)},)")
    if tuple(value.shape) != (len(rewards),):
        message = "one position for each prompt: choose along the second dimension"
        return Finding("wrong shape", message, show(value), f"shape ({len(rewards)},)")
    if value.is_floating_point() and torch.equal(value.double(), rewards.double().amax(1)):
        message = "you return the highest rewards; asked for are their positions"
        return Finding("values", message, show(value), "an int64 tensor")
    if value.is_floating_point() or value.dtype == torch.bool or value.is_complex():
        return Finding("wrong dtype", "the positions must be integers", show(value), "int64")
    return None


def _named(value: Any, rewards: Tensor, known: dict[str, tuple[Tensor, str]]) -> Finding | None:
    fault = _wrong_positions(value, rewards)
    if fault:
        return fault
    expected = _chosen(rewards)
    found = name_mistake(value.double(), expected.double(), known)
    if not found:
        return None
    return Finding(found.mistake, found.message, str(value.tolist()[:8]), str(expected.tolist()))


def check_choice(call: Call, seed: int, size: int) -> list[Finding]:
    """Finite rewards: the largest, the first among equals; one answer a prompt."""
    rewards = _rewards(seed, size)
    known = {
        "worst": (rewards.argmin(1), "you choose the answer with the *lowest* reward"),
        "magnitude": (rewards.abs().argmax(1), "you choose by the magnitude of the reward; a large "
                      "negative one is bad"),
        "last of equals": (_last(rewards), "among equal rewards the *first* answer is to be "
                           "chosen"),
        "first answer": (rewards.argmin(1) * 0, "you always choose the first answer"),
        "all prompts": (rewards.argmin(1) * 0 + rewards.argmax() % rewards.shape[1], "you choose "
                        "one position for all prompts; each prompt has its own best answer"),
    }  # fmt: skip
    outcome = call(rewards)
    fault = _named(outcome.value, rewards, known) or changed(
        ("rewards",), (rewards,), outcome.arguments
    )
    if fault:
        return [fault]
    wide = rewards.repeat(1, 2).t().contiguous().t()[:, ::2] * 1e4  # not contiguous, large
    for other in (wide, rewards.half(), rewards[:1], rewards[:, :1]):
        fault = _named(call(other).value, other, {})
        if fault:
            return [fault]
    return []


def check_unusual(call: Call, seed: int, size: int) -> list[Finding]:
    """NaN and infinities."""
    rows = _rewards(seed, size)[:1, :5].repeat(6, 1)
    a, b = sorted(torch.randperm(5, generator=torch.Generator().manual_seed(seed))[:2].tolist())
    rows[0, a] = _NAN
    rows[1] = rows[1].abs() * -1 - 1  # all below 0, which NaN must not become
    rows[1, b] = _NAN
    rows[2], rows[2, a], rows[2, b] = _NAN, _NAN, -_INF  # -inf after NaN
    rows[3], rows[3, b] = -_INF, _NAN
    rows[4] = _NAN
    rows[5, a], rows[5, b] = _NAN, _INF
    nan = rows.isnan()
    lowest = torch.finfo(rows.dtype).min
    empty = torch.where(nan.all(1), -1, _chosen(rows))
    known = {
        "nan chosen": (rows.argmax(1), "NaN is chosen, which is no reward at all: torch.argmax and "
                       "torch.max take NaN for the largest number"),
        "nan as 0": (rows.nan_to_num(0.0, _INF, -_INF).argmax(1), "you let NaN count as 0, which "
                     "beats every negative reward"),
        "nan as -inf": (rows.masked_fill(nan, -_INF).argmax(1), "where the only reward is -inf you "
                        "choose a NaN before it: once NaN has become -inf the two are the same"),
        "nan above -inf": (rows.masked_fill(nan, lowest).argmax(1), "you let NaN count as the "
                           "lowest finite number, so it beats -inf, which is a reward"),
        "only nan": (empty, "a prompt with NaN alone must give position 0"),
    }  # fmt: skip
    message = "a row with NaN or -inf breaks your function"
    outcome = attempt(call, "unusual", message, rows)
    if isinstance(outcome, Finding):
        return [outcome]
    fault = _named(outcome.value, rows, known) or changed(("rewards",), (rows,), outcome.arguments)
    return [fault] if fault else []


def check_kl(call: Call, seed: int, size: int) -> list[Finding]:
    """The bound on the KL, for n from 1 to a billion."""
    for n in (3 + size, 2, 1, 16, 10**6 + seed % 1000, 10**9):
        outcome = attempt(call.second, "kl fails", f"best_of_n_kl({n}) breaks", n)
        if isinstance(outcome, Finding):
            return [outcome]
        got = as_number(outcome.value)
        if got is None:
            return [not_a_number(outcome.value, "best_of_n_kl")]
        log, expected = math.log(n), math.log(n) - (n - 1) / n
        values = {
            "only log n": (log, "log n alone is too far: n - 1 of n answers are thrown away, which "
                           "takes (n - 1) / n off"),
            "log n - 1": (log - 1, "(n - 1) / n is not 1; at n = 1 nothing moves, and the KL is 0"),
            "log 2": (math.log2(n) - (n - 1) / n, "the logarithm is to base 2; nats need the "
                      "natural one"),
            "1 / n": (log - 1 / n, "you take off 1 / n in place of (n - 1) / n"),
            "upside down": (log - n / (n - 1) if n > 1 else _NAN, "n / (n - 1) is upside down"),
            "kl sign": (-expected, "a KL is never negative: the sign is flipped"),
            "added": (log + (n - 1) / n, "(n - 1) / n must be taken off, not added"),
        }  # fmt: skip
        known = {k: (torch.tensor(v, dtype=torch.float64), m) for k, (v, m) in values.items()}
        fault = name_mistake(got, torch.tensor(expected, dtype=torch.float64), known)
        if fault:
            return [fault]
    return []


TASK = Task(
    set="08",
    name="best-of-n",
    functions=("best_of_n", "best_of_n_kl"),
    checks=(
        Check("choice", 2, check_choice),
        Check("NaN and infinities", 1, check_unusual),
        Check("KL", 1, check_kl),
    ),
)
