"""Set 03: a zero and a unit for the reward, from the SFT model's answers.

    normalise_rewards(rewards (...), reference (N,), mask (N,) or None) -> (...)

(rewards - mean) / std, both over the counted reference scores; the std is the unbiased one.
A spread under 1e-6, or a single score: only the mean is subtracted. No score: nothing changes.
"""

import torch
from torch import Tensor

from course_utils.grading.call import Call
from course_utils.grading.checks import Check, Task
from course_utils.grading.finding import Finding, changed, is_close, name_mistake, show, wrong_type
from course_utils.grading.tasks.set_03._inputs import generator, uniform


def _inputs(seed: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards (M,), reference (N,) around 3 with a spread of about 2, mask (N,) with zeros."""
    g = generator(seed)
    N = 7 + size
    reference = 3 + 2 * torch.randn(N, generator=g)
    mask = torch.ones(N, dtype=torch.long)
    out = torch.randperm(N, generator=g)[: 2 + size // 3]
    mask[out] = 0
    reference[out] += uniform(8, 12, len(out), g)  # it shows whether they are counted
    rewards = 4 + 3 * torch.randn(5 + size, generator=g)
    return rewards, reference, mask


def _moments(scores: list[float]) -> tuple[float, float]:
    """Mean and unbiased standard deviation of a list, in Python's floats."""
    mean = sum(scores) / len(scores)
    return mean, (sum((s - mean) ** 2 for s in scores) / (len(scores) - 1)) ** 0.5


def _counted(reference: Tensor, mask: Tensor) -> list[float]:
    pairs = zip(reference.tolist(), mask.tolist(), strict=True)
    return [score for score, counts in pairs if counts]


def _known(rewards: Tensor, reference: Tensor, mask: Tensor) -> dict[str, tuple[Tensor, str]]:
    x, n = rewards.double(), int(mask.sum())
    mean, std = _moments(_counted(reference, mask))
    own_mean, own_std = _moments(rewards.tolist())
    all_mean, all_std = _moments(reference.tolist())
    zeroed = reference.double() * mask
    low, high = min(_counted(reference, mask)), max(_counted(reference, mask))
    known = {
        "unchanged": (x, "the rewards come back as they were"),
        "zero": (x * 0, "your rewards are 0 whatever the scores are"),
        "own statistics": ((x - own_mean) / own_std, "you take mean and spread of the rewards "
                           "themselves: then an answer's reward depends on what else is in the "
                           "batch; take those of the reference"),
        "own statistics, n": ((x - own_mean) / (own_std * ((len(x) - 1) / len(x)) ** 0.5), "you "
                              "take mean and spread of the rewards themselves; take those of the "
                              "reference"),
        "not centred": (x / std, "you divide by the spread, and do not subtract the mean"),
        "not scaled": (x - mean, "you subtract the mean, and do not divide by the spread"),
        "variance": ((x - mean) / std**2, "you divide by the variance, which has the wrong unit"),
        "mean added": ((x + mean) / std, "you add the mean; it is subtracted"),
        "inverse": (x * std + mean, "you multiply and add: that is the way back"),
        "divided by n": ((x - mean) / (std * ((n - 1) / n) ** 0.5), "your spread divides by n; "
                         "the unbiased one, divided by n - 1, was asked for"),
        "order": (x / std - mean, "you divide first and then subtract the mean: it is on the raw "
                  "scale, so subtract it first"),
        "zero to one": ((x - low) / (high - low), "you stretch to [0, 1] by the extremes, so one "
                        "odd answer sets the scale"),
    }  # fmt: skip
    if n < len(mask):
        zero_std = float(zeroed.std())
        ignored = "the mask is ignored: scores with a 0 there count in your mean and spread"
        zeros = "scores with a 0 in the mask count as scores of 0 in yours; they must not count"
        known |= {
            "mask ignored": ((x - all_mean) / all_std, ignored),
            "mask ignored in the mean": ((x - all_mean) / std, ignored),
            "mask ignored in the spread": ((x - mean) / all_std, ignored),
            "zeros counted": ((x - float(zeroed.mean())) / zero_std, zeros),
            "zeros counted in the mean": ((x - float(zeroed.mean())) / std, zeros),
            "zeros counted in the spread": ((x - mean) / zero_std, zeros),
        }
    return known


def check_value(call: Call, seed: int, size: int) -> list[Finding]:
    """Without a mask, with one, two dimensions, and that the inputs are left as they were."""
    rewards, reference, mask = _inputs(seed, size)
    for given in (None, mask):
        counted = torch.ones_like(mask) if given is None else mask
        mean, std = _moments(_counted(reference, counted))
        outcome = call(rewards, reference) if given is None else call(rewards, reference, mask)
        expected = (rewards.double() - mean) / std
        known = _known(rewards, reference, counted)
        fault = wrong_type(outcome.value, tuple(expected.shape)) or name_mistake(
            outcome.value, expected, known
        )
        fault = fault or changed(("rewards", "reference"), (rewards, reference), outcome.arguments)
        if fault:
            return [fault]
    table = torch.stack([rewards, rewards.flip(0)])  # (2, M)
    got = call(table, reference, mask).value
    fault = wrong_type(got, tuple(table.shape))
    if not fault and not is_close(got, (table.double() - mean) / std):
        message = "rewards in two dimensions must come back normalised one by one"
        fault = Finding("two dimensions", message, show(got))
    return [fault] if fault else []


def check_no_spread(call: Call, seed: int, size: int) -> list[Finding]:
    """No spread to divide by: equal scores, one score, none; and what is masked may be NaN."""
    rewards, reference, mask = _inputs(seed, size)
    mean, std = _moments(_counted(reference, mask))
    got = call(rewards, reference.masked_fill(mask == 0, torch.nan), mask).value
    expected = (rewards.double() - mean) / std
    if not isinstance(got, Tensor) or not is_close(got, expected):
        message = (
            "a NaN at a score that does not count reaches your result: 0 · NaN is NaN, so select "
            "the scores instead of multiplying by the mask"
        )
        return [Finding("masked nan", message, show(got), show(expected))]
    level = 0.25 + seed % 5  # exact in float32, and so is its mean
    equal = torch.full_like(reference, level)
    nearly = equal.clone()
    nearly[::2] += 2.0**-21 if level > 0.5 else 2.0**-24  # an ulp or two: a spread under 1e-6
    one = torch.zeros_like(mask)
    one[seed % len(mask)] = 1
    cases = (
        (equal, mask, level, "no spread", "all scores of the reference are equal: the spread is 0, "
         "and only the mean can be subtracted"),
        (nearly, mask, level, "tiny spread", "a spread of rounding errors (under 1e-6) blows up "
         "the rewards: treat it as none"),
        (reference, one, float(reference[seed % len(mask)]), "one score", "a single score has no "
         "spread: only the mean can be subtracted"),
        (reference, one * 0, 0.0, "no score", "where no score counts the rewards must come back as "
         "they are"),
    )  # fmt: skip
    for scores, counts, centre, mistake, message in cases:
        got = call(rewards, scores, counts).value
        expected = rewards.double() - centre
        if not isinstance(got, Tensor) or not is_close(got, expected, atol=1e-5):
            return [Finding(mistake, message, show(got), show(expected))]
    return []


def check_invariance(call: Call, seed: int, size: int) -> list[Finding]:
    """Scores on another scale and around 30,000 give the same rewards as before."""
    rewards, reference, mask = _inputs(seed, size)
    big_rewards, big = 3 * rewards + 30_000, 3 * reference + 30_000
    mean, std = _moments(_counted(big, mask))
    expected = (big_rewards.double() - mean) / std
    got = call(big_rewards, big, mask).value
    fault = wrong_type(got, tuple(expected.shape))
    # float32 knows 30,000 to 0.002: a fair mean is off by 0.01 at most, and the std is 3 or more
    if not fault and not is_close(got, expected, rtol=5e-3, atol=2e-2):
        message = (
            "scores around 30,000 break your spread (the same answers with three times the unit "
            "and another zero must get the same rewards): mean(r²) - mean(r)² subtracts two "
            "numbers that float32 cannot tell apart"
        )
        fault = Finding("unstable", message, show(got), show(expected))
    return [fault] if fault else []


TASK = Task(
    set="03",
    name="reward-normalisation",
    functions=("normalise_rewards",),
    checks=(
        Check("mean and spread", 2, check_value),
        Check("no spread", 1, check_no_spread),
        Check("another zero and unit", 1, check_invariance),
    ),
)
