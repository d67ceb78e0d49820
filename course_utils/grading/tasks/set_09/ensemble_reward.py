"""Set 09: several reward models joined to one reward.

    ensemble_reward(scores (M, B), how="mean", lam=1.0, sample=False, standardise=False) -> (B,)

how: "mean", "min", "mean_minus_std" = mean - lam · std over the members; std divided by M, with
sample=True by M - 1, and 0 for one member. standardise: first each member's scores over the B
answers to mean 0 and (population) std 1; a member whose scores are all equal gives 0.
"""

import math
import statistics

import torch
from torch import Tensor

from course_utils.grading.call import Call, Failed
from course_utils.grading.checks import Check, Task
from course_utils.grading.finding import Finding, attempt, changed, name_mistake, show, wrong_type

Known = dict[str, tuple[Tensor, str]]
HOW = ("mean", "min", "mean_minus_std")


def _scores(seed: int, size: int) -> Tensor:
    """(M, B) scores, M < B; the members have their own scale and level."""
    generator = torch.Generator().manual_seed(seed * 1009 + size)
    M, B = 3 + size % 3, 7 + size
    scores = torch.randn(M, B, generator=generator)
    scale = torch.rand(M, 1, generator=generator) + 0.5
    scores = scores * scale + torch.randn(M, 1, generator=generator)
    scores[0, 0], scores[0, 1] = scores.max() + 1, scores.min() - 1  # no member is always lowest
    return scores


def _joined(
    scores: Tensor, how: str = "mean", lam: float = 1.0, sample: bool = False, own: bool = False
) -> Tensor:
    """Answer by answer, in Python's floats; `own`: each member standardised first."""
    members = scores.double().tolist()
    if own:
        members = [_standardised(row) for row in members]
    out = []
    for opinions in zip(*members, strict=True):
        mean = math.fsum(opinions) / len(opinions)
        std = statistics.stdev if sample and len(opinions) > 1 else statistics.pstdev
        value = {"mean": mean, "min": min(opinions), "mean_minus_std": mean - lam * std(opinions)}
        out.append(value[how])
    return torch.tensor(out, dtype=torch.float64)


def _standardised(row: list[float]) -> list[float]:
    if len(set(row)) == 1:
        return [0.0] * len(row)
    mean, std = math.fsum(row) / len(row), statistics.pstdev(row)
    return [(value - mean) / std for value in row]


def _known(scores: Tensor, how: str, lam: float, sample: bool) -> Known:
    s = scores.double()
    mean, std = s.mean(0), s.std(0, unbiased=sample)
    wrong_side = s.std(1, unbiased=sample).mean()
    other = s.std(0, unbiased=not sample)
    messages = {
        "population": "the std is divided by M; with sample=True it is divided by M - 1",
        "sample": "the std is divided by M - 1; without sample=True it is divided by M",
    }
    return {
        "zero": (mean * 0, "your reward is 0 for every answer"),
        "sum": (s.sum(0), "you add the members up; the mean was asked for"),
        "only mean": (mean, f"how={how!r} gives the mean; what was asked for?"),
        "max": (s.amax(0), "you take the most generous member; how='min' takes the strictest"),
        "only min": (s.amin(0), f"how={how!r} gives the minimum; what was asked for?"),
        "median": (s.quantile(0.5, dim=0), "that is the median of the members"),
        "lam ignored": (mean - std, "lam has no effect: it is the weight of the std"),
        "plus": (mean + lam * std, "disagreement must be punished: the std is taken off, not "
                 "added"),
        "population" if sample else "sample": (mean - lam * other, messages["population" if sample
                                                                            else "sample"]),
        "variance": (mean - lam * std**2, "you take off the variance; the std is its root"),
        "only std": (-lam * std, "the mean of the members is missing"),
        "one std": (mean - lam * s.std(unbiased=sample), "you take one std over all scores; each "
                    "answer has its own, over the members"),
        "std over answers": (mean - lam * wrong_side, "the std is over the members (the first "
                             "dimension) for each answer, not over the answers"),
        "first member": (s[0], "that is the first member alone"),
    }  # fmt: skip


def _named(value: object, expected: Tensor, known: Known) -> Finding | None:
    fault = wrong_type(value, tuple(expected.shape))
    if fault and fault.mistake == "wrong shape":
        message = "one reward for each answer: join over the members, the first dimension"
        return Finding("wrong shape", message, fault.got, fault.expected)
    return fault or name_mistake(value, expected, known)  # type: ignore[arg-type]


def check_joined(call: Call, seed: int, size: int) -> list[Finding]:
    """The three ways, both kinds of std, another λ."""
    scores = _scores(seed, size)
    lam = 0.5 + (seed % 5 + 1) / 4  # never 1
    cases = [("mean", 1.0, False), ("min", 1.0, False), ("mean_minus_std", lam, False),
             ("mean_minus_std", lam, True), ("mean_minus_std", 0.0, False)]  # fmt: skip
    for how, weight, sample in cases:
        outcome = call(scores, how, lam=weight, sample=sample)
        known = _known(scores, how, weight, sample)
        fault = _named(outcome.value, _joined(scores, how, weight, sample), known) or changed(
            ("scores",), (scores,), outcome.arguments
        )
        if fault:
            return [fault]
    fault = _named(call(scores).value, _joined(scores), _known(scores, "mean", 1.0, False))
    return [fault] if fault else []


def check_standardised(call: Call, seed: int, size: int) -> list[Finding]:
    """Each member over the answers first; a member that is always of one opinion."""
    scores = (
        _scores(seed + 1, size) * torch.tensor([1.0, 30.0, 0.1]).repeat(2)[: 3 + size % 3, None]
    )
    lam, s = 0.75, scores.double()
    centred = s - s.mean(1, keepdim=True)
    spread = s.std(1, keepdim=True, unbiased=False)
    versions: dict[str, tuple[Tensor, str]] = {
        "not standardised": (s, "standardise=True has no effect"),
        "over the members": ((s - s.mean(0)) / s.std(0, unbiased=False), "you standardise over the "
                             "members; each member is to be standardised over its own answers"),
        "over everything": ((s - s.mean()) / s.std(unbiased=False), "you standardise all scores "
                            "together; a loud member stays louder than the others"),
        "not centred": (s / spread, "each member's mean must be taken off too"),
        "only centred": (centred, "each member must be divided by its std too"),
        "sample std": (centred / s.std(1, keepdim=True), "a member's std over the answers is "
                       "divided by B here, whatever `sample` says"),
        "zero": (s * 0, "your reward is 0 for every answer"),
    }  # fmt: skip
    for how in ("mean_minus_std", "min", "mean"):
        known = {name: (_joined(v, how, lam), said) for name, (v, said) in versions.items()}
        joined = _joined(s, how, lam)
        after = (joined - joined.mean()) / joined.std(unbiased=False)
        known["after joining"] = (after, "you standardise the joined reward; each member is to be "
                                  "standardised before they are joined")  # fmt: skip
        outcome = call(scores, how, lam=lam, standardise=True)
        fault = _named(outcome.value, _joined(s, how, lam, own=True), known) or changed(
            ("scores",), (scores,), outcome.arguments
        )
        if fault:
            return [fault]
    got = call(scores, "mean_minus_std", lam=lam, sample=True, standardise=True).value
    known = {"sample std": (_joined(versions["sample std"][0], "mean_minus_std", lam, True),
                            versions["sample std"][1])}  # fmt: skip
    fault = _named(got, _joined(s, "mean_minus_std", lam, True, own=True), known)
    return [fault] if fault else []


def check_edges(call: Call, seed: int, size: int) -> list[Finding]:
    """One member, a member with one opinion, half precision, large scores, an unknown `how`."""
    scores = _scores(seed + 2, size)
    flat = scores.clone()
    flat[1] = 0.1 + seed % 7 / 3
    large = (scores[:1].repeat(4, 1) * torch.tensor([[1.0], [5.0], [9.0], [14.0]])).round() + 2**17
    alike = torch.tensor([0.1, 0.7, 1 / 3, 2.3, 1e4 / 3, 9.7, 77.7, 1e-3])[:, None].repeat(1, 7)
    one = "one member never disagrees: its std is 0, with sample=True too"
    silent = "a member that scores all answers alike has no opinion: standardised it gives " \
             "exactly 0, not 0/0 and not a rounding error's multiple"  # fmt: skip
    answer = "of a single answer every standardised score is 0"
    for mistake, message, given, how, sample, own in (
        ("one member", one, scores[:1], "mean_minus_std", True, False),
        ("one member", one, scores[:1], "mean_minus_std", False, False),
        ("one member", one, scores[:1], "mean_minus_std", True, True),
        ("silent member", silent, flat, "mean", False, True),
        ("silent member", silent, flat, "mean_minus_std", True, True),
        ("silent member", silent, alike, "min", False, True),  # means of 7 are rounded
        ("silent member", answer, scores[:, :1], "mean", False, True),
        ("half precision", "scores in half precision lose digits: convert them to float32 first",
         (scores * 9).bfloat16(), "mean_minus_std", False, False),
        ("half precision", "scores in half precision lose digits: convert them to float32 first",
         (scores * 9).half(), "mean", False, True),
        ("level", "a variance as the mean square minus the squared mean loses its digits where "
         "scores are large", large, "mean_minus_std", False, False),
        ("strides", "scores need not be contiguous", scores.t().contiguous().t(), "min", False,
         True),
    ):  # fmt: skip
        lam = 1e3 if mistake == "level" else 2.0  # so that the std can be seen beside the level
        outcome = attempt(call, mistake, message, given, how, lam, sample, own)
        if isinstance(outcome, Finding):
            return [outcome]
        expected = _joined(given, how, lam, sample, own)
        fault = _named(outcome.value, expected, {})
        if not fault and outcome.value.dtype not in (torch.float32, torch.float64):
            fault = Finding("dtype", "the result must be float32 or float64", show(outcome.value))
        if fault:
            return [Finding(mistake, message, fault.got, fault.expected)]
    wrong = "a `how` that is none of the three must raise a ValueError, else a typing error " \
            "trains on something else for hours"  # fmt: skip
    try:
        value = call(scores, "median").value
    except Failed as failure:
        if failure.message.startswith("ValueError"):
            return []
        return [Finding("unknown how", wrong, failure.message[:100], "ValueError")]
    return [Finding("unknown how", wrong, show(value), "ValueError")]


TASK = Task(
    set="09",
    name="ensemble-reward",
    functions=("ensemble_reward",),
    checks=(
        Check("joined", 2, check_joined),
        Check("standardised", 1, check_standardised),
        Check("edges", 1, check_edges),
    ),
)
