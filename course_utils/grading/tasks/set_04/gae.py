"""Set 04: generalised advantage estimation over answers of different lengths.

    gae(rewards (B, C), values (B, C), mask (B, C), gamma, lam) -> (advantages, returns), (B, C)

An answer's padding is on the right and nothing on it counts; after the last real token V and the
advantage are 0. returns = advantages + values. Both are 0 on padding.
"""

import math

import torch
from torch import Tensor

from course_utils.grading.call import Call
from course_utils.grading.checks import Check, Task
from course_utils.grading.finding import Finding, changed, is_close, name_mistake, show, wrong_type
from course_utils.grading.protocol import Opaque
from course_utils.grading.tasks.set_04._inputs import answers, spoil

NAMES = ("rewards", "values", "mask")
Drawn = tuple[Tensor, Tensor, Tensor, float, float]  # the arguments


def _draw(seed: int, size: int) -> Drawn:
    """Rewards and values with garbage on the padding; γ and λ well away from 0, 1 and another."""
    drawn = answers(seed, size)
    rewards = 1.5 * torch.randn(drawn.mask.shape, generator=drawn.generator)
    both = torch.rand(2, generator=drawn.generator).tolist()
    return rewards, drawn.values, drawn.mask, 0.85 + 0.1 * both[0], 0.5 + 0.25 * both[1]


def _by_sums(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, decay: float, boot: bool = False
) -> Tensor:
    """Σ_l decay^l δ_{t+l} with δ by `gamma`, written as the double sum: (B, C) float64.

    decay is γλ. boot: V after the last token is the last token's own V, not 0.
    """
    result = torch.zeros(mask.shape, dtype=torch.float64)
    for row, length in enumerate(mask.sum(1).tolist()):
        r, v = rewards[row, :length].double(), values[row, :length].double()
        after = torch.cat([v[1:], v[-1:] if boot else v.new_zeros(1)])  # (length,) V(s_{t+1})
        delta = r + gamma * after - v
        for t in range(length):
            weights = decay ** torch.arange(length - t, dtype=torch.float64)
            result[row, t] = (weights * delta[t:]).sum()
    return result


def _recursion(drawn: Drawn, values_only: bool = False) -> Tensor:
    """The recursion over all columns as if padding were text, or its values alone: (B, C)."""
    rewards, values, mask, gamma, lam = drawn
    r = rewards.double() * mask if values_only else rewards.double()
    v = torch.cat([values.double(), torch.zeros(len(r), 1)], dim=1)  # (B, C + 1)
    result = torch.zeros_like(v)
    for t in reversed(range(r.shape[1])):
        delta = r[:, t] + gamma * v[:, t + 1] - v[:, t]
        result[:, t] = delta + gamma * lam * result[:, t + 1]
    return result[:, :-1]


def _forwards(drawn: Drawn, carried: bool) -> Tensor:
    """The recursion from first to last column; V "after" t is V(s_{t-1}) if it is carried along."""
    rewards, values, mask, gamma, lam = drawn
    r, v = (x.double().masked_fill(~mask, 0.0) for x in (rewards, values))
    result = torch.zeros_like(r)
    advantage = before = r.new_zeros(len(r))
    for t in range(r.shape[1]):
        after = v[:, t + 1] if t + 1 < r.shape[1] else v[:, t] * 0
        delta = r[:, t] + gamma * (before if carried else after) - v[:, t]
        advantage, before = delta + gamma * lam * advantage, v[:, t]
        result[:, t] = advantage
    return result


def _one_leak(drawn: Drawn) -> Tensor:
    """Right but for the value after the last token, which is read off the padding."""
    rewards, values, mask, gamma, lam = drawn
    rewards = rewards.clone()
    for row, length in enumerate(mask.sum(1).tolist()):
        rewards[row, length - 1] += gamma * values[row, length]
    return _by_sums(rewards, values, mask, gamma, gamma * lam)


def _known(drawn: Drawn) -> dict[str, tuple[Tensor, str]]:
    rewards, values, mask, gamma, lam = drawn
    right = _by_sums(*drawn[:4], gamma * lam)
    kept = right[mask]
    white = torch.zeros_like(right).masked_scatter(mask, (kept - kept.mean()) / kept.std())
    own = ((gamma - 1) * values.double() + rewards).masked_fill(~mask, 0.0)  # δ with V(s_t) twice
    off = torch.zeros_like(right)
    for t in reversed(range(mask.shape[1])):
        off[:, t] = own[:, t] + (gamma * lam * off[:, t + 1] if t + 1 < mask.shape[1] else 0)
    nothing = torch.zeros_like(values)
    leak = (
        "what stands on the padding reaches the answer: after the last real token V and the "
        "advantage are 0, whatever the tensors hold there"
    )
    forwards = (
        "your recursion runs forwards, from first to last token; a token is judged by what comes "
        "*after* it"
    )
    return {
        "zero": (right * 0, "your advantages are 0 everywhere"),
        "padding kept": (_recursion(drawn), "padding has advantages, and passes them on to the "
                         "answer: use the mask"),
        "padding leaks": (_recursion(drawn) * mask, leak),
        "values leak": (_recursion(drawn, values_only=True) * mask, leak),
        "value after the end": (_one_leak(drawn), leak),
        "bootstrap": (_by_sums(*drawn[:4], gamma * lam, boot=True), "after the last real token you "
                      "add a value; the answer is over, nothing comes after it"),
        "off by one": (off * mask, "δ_t compares V(s_t) with itself: the value after token t is "
                       "V(s_{t+1})"),
        "forwards": (_forwards(drawn, carried=True), forwards),
        "forwards, masked": (_forwards(drawn, carried=True) * mask, forwards),
        "forwards, indexed": (_forwards(drawn, carried=False) * mask, forwards),
        "no values": (_by_sums(rewards, nothing, mask, gamma, gamma), "these are discounted sums "
                      "of rewards; an advantage compares with what the values predicted"),
        "no values, lambda": (_by_sums(rewards, nothing, mask, gamma, gamma * lam), "the values "
                              "are missing from δ"),
        "lambda ignored": (_by_sums(*drawn[:4], gamma), "lam is ignored: this is λ = 1, the sum of "
                           "all rewards to come minus the value"),
        "one step": (_by_sums(*drawn[:4], 0.0), "these are the δ_t alone (λ = 0): the recursion is "
                     "missing"),
        "gamma ignored": (_by_sums(*drawn[:3], 1.0, lam), "gamma is ignored: this is γ = 1"),
        "gamma only in delta": (_by_sums(*drawn[:4], lam), "gamma is missing in the recursion: its "
                                "factor is γλ"),
        "gamma not in delta": (_by_sums(*drawn[:3], 1.0, gamma * lam), "gamma is missing in δ, "
                               "before V(s_{t+1})"),
        "swapped": (_by_sums(*drawn[:3], lam, gamma * lam), "gamma and lam are swapped"),
        "sign": (-right, "the sign is flipped: better than predicted is positive"),
        "whitened": (white, "you whiten the advantages; that comes later, over the whole batch"),
        "returns": ((right + values.double()).masked_fill(~mask, 0.0), "these are the returns; "
                    "the advantages come first: return (advantages, returns)"),
    }  # fmt: skip


def _pair(value: object, shape: tuple[int, ...]) -> Finding | tuple[Tensor, Tensor]:
    """The two tensors, or what is wrong with the answer."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        got = show(value) if isinstance(value, Tensor | Opaque) else type(value).__name__
        message = "return two tensors: `return advantages, returns`"
        return Finding("not a pair", message, got, "(advantages, returns)")
    for tensor in value:
        fault = wrong_type(tensor, shape)
        if fault:
            return fault
    return value[0].detach(), value[1].detach()


def check_advantages(call: Call, seed: int, size: int) -> list[Finding]:
    """The advantages, on answers with garbage behind them; the inputs stay as they were."""
    drawn = _draw(seed, size)
    expected = _by_sums(*drawn[:4], drawn[3] * drawn[4])
    outcome = call(*drawn)
    pair = _pair(outcome.value, tuple(drawn[2].shape))
    if isinstance(pair, Finding):
        return [pair]
    fault = name_mistake(pair[0], expected, _known(drawn)) or changed(
        NAMES, drawn, outcome.arguments
    )
    return [fault] if fault else []


def check_returns(call: Call, seed: int, size: int) -> list[Finding]:
    """returns = advantages + values on the answers, 0 behind them."""
    drawn = _draw(seed, size)
    rewards, values, mask, gamma, lam = drawn
    pair = _pair(call(*drawn).value, tuple(mask.shape))
    if isinstance(pair, Finding):
        return [pair]
    advantages = _by_sums(*drawn[:4], gamma * lam)
    v, nothing = values.double(), torch.zeros_like(values)
    known = {
        "values on padding": (advantages + v, "the returns are not 0 on the padding"),
        "reward to go": (_by_sums(rewards, nothing, mask, gamma, gamma), "your returns are the "
                         "discounted sums of rewards (λ = 1); the critic's target here is "
                         "advantage + value, with the same λ as the advantages"),
        "minus values": ((advantages - v) * mask, "returns are advantages *plus* values"),
        "advantages twice": (advantages, "your returns are the advantages again: add the values"),
        "values": (v * mask, "your returns are the values: add the advantages"),
        "zero": (v * 0, "your returns are 0 everywhere"),
    }  # fmt: skip
    expected = (advantages + v).masked_fill(~mask, 0.0)
    fault = name_mistake(pair[1], expected, known)
    return [fault] if fault else []


def check_padding(call: Call, seed: int, size: int) -> list[Finding]:
    """Nothing of the padding reaches an answer: NaN, huge values, no padding, one token; limits."""
    rewards, values, mask, gamma, lam = _draw(seed, size)
    mask = mask.clone()
    mask[0], mask[1, 1:] = True, False  # nothing padded; one token
    for garbage in (math.nan, 1e30):
        arguments = (spoil(rewards, mask, garbage), spoil(values, mask, garbage), mask, gamma, lam)
        pair = _pair(call(*arguments).value, tuple(mask.shape))
        if isinstance(pair, Finding):
            return [pair]
        advantages = _by_sums(*arguments[:4], gamma * lam)
        expected = advantages, (advantages + values.double()).masked_fill(~mask, 0.0)
        for name, got, wanted in zip(("advantages", "returns"), pair, expected, strict=True):
            if not is_close(got, wanted):
                message = (
                    f"with {garbage:g} on the padding the {name} are wrong: 0 * nan is nan, so "
                    "replace what is masked, do not multiply it by 0"
                )
                return [Finding("garbage on padding", message, show(got), show(wanted))]
    for gamma, lam in ((1.0, 1.0), (1.0, 0.0), (0.0, 0.9)):
        arguments = (rewards, values, mask, gamma, lam)
        pair = _pair(call(*arguments).value, tuple(mask.shape))
        if isinstance(pair, Finding):
            return [pair]
        if not is_close(pair[0], _by_sums(*arguments[:4], gamma * lam)):
            return [Finding("limits", f"wrong advantages at gamma = {gamma:g}, lam = {lam:g}")]
    return []


TASK = Task(
    set="04",
    name="gae",
    functions=("gae",),
    checks=(
        Check("advantages", 2, check_advantages),
        Check("returns", 1, check_returns),
        Check("padding and limits", 2, check_padding),
    ),
)
