"""Set 01: a measure of forgetting, and its value at equal task loss.

    loss_rise(before (B, T), after (B, T), mask (B, T)) -> ()           nats per token that counts
    forgotten_at(task_losses [S], base_losses [S], level) -> float or None

The curve's first entry is the untrained model; what was forgotten is read off where the task loss
first came down to `level`, in a straight line between two measurements.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from course_utils.grading.call import Call, Outcome
from course_utils.grading.checks import Check, Task
from course_utils.grading.finding import Finding, changed, is_close, name_mistake, show, wrong_type

NAMES = ("before", "after", "mask")


def _losses(seed: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Losses of two models, (B, T): most rise, some fall; documents of very different lengths.

    No loss is twice its partner, so that their difference is exact in bfloat16 too.
    """
    generator = torch.Generator().manual_seed(seed)
    B, T = 2 + size % 3, 9 + size
    before = 3 + torch.rand(B, T, generator=generator)
    after = before + 0.4 + torch.rand(B, T, generator=generator)
    after[1:] += 0.6  # a short document forgets more: its tokens must not weigh more
    after[:, 2] = before[:, 2] - 0.2 - torch.rand(B, generator=generator) / 2  # these fall
    mask = torch.zeros(B, T, dtype=torch.long)
    for row in range(B):
        mask[row, row % 2 : max(4, T - 3 * row - 2)] = 1
    return before, after, mask


def rise_reference(before: Tensor, after: Tensor, mask: Tensor) -> Tensor:
    """The mean rise in float64, a token at a time; 0 where none counts."""
    places = zip(*(t.flatten().tolist() for t in (before, after, mask)), strict=True)
    rises = [y - x for x, y, counts in places if counts]
    return torch.tensor(math.fsum(rises) / max(len(rises), 1), dtype=torch.float64)


def _known_rises(before: Tensor, after: Tensor, mask: Tensor) -> dict[str, tuple[Tensor, str]]:
    x, y, keep = before.double(), after.double(), mask.double()
    rise, count = (y - x) * keep, keep.sum()
    total = rise.sum()
    old, new = (x * keep).sum() / count, (y * keep).sum() / count
    return {
        "zero": (total * 0, "your forgetting is 0 whatever the losses"),
        "sign": (-total / count, "the sign is flipped: forgetting is after - before, and positive "
                 "where the loss has risen"),
        "no mask": ((y - x).mean(), "your mean is over all places; padding must not count"),
        "document mean": ((rise.sum(1) / keep.sum(1)).mean(), "you average each document first, so "
                          "tokens of short documents weigh more; every token counts the same"),
        "sum": (total, "your result is the sum; the mean per token was asked for"),
        "divided by all": (total / keep.numel(), "you divide by all places, not by the tokens "
                           "that count"),
        "divided by documents": (total / len(keep), "you divide by the number of documents, not by "
                                 "the number of tokens that count"),
        "after alone": (new, "this is the tuned model's loss; forgetting is its *rise*"),
        "absolute": (rise.abs().sum() / count, "you take absolute values: tokens that became "
                     "likelier count against forgetting"),
        "rises alone": (rise.clamp(min=0).sum() / count, "you count the tokens whose loss rose; "
                        "those whose loss fell count too"),
        "ratio": (new / old - 1, "this is the rise relative to the loss before; nats were asked "
                  "for"),
        "perplexity": (new.exp() - old.exp(), "this is the rise of the perplexity; nats were asked "
                       "for"),
    }  # fmt: skip


def check_rise(call: Call, seed: int, size: int) -> list[Finding]:
    given = _losses(seed, size)
    outcome = call(*given)
    fault = (
        wrong_type(outcome.value, ())
        or name_mistake(outcome.value, rise_reference(*given), _known_rises(*given))
        or changed(NAMES, given, outcome.arguments)
    )
    return [fault] if fault else []


def check_rise_edges(call: Call, seed: int, size: int) -> list[Finding]:
    """Padding that holds NaN and infinity, other kinds of mask, half precision, no token."""
    before, after, mask = _losses(seed, size)
    expected = rise_reference(before, after, mask)
    for kind in (torch.bool, torch.float32):
        got = call(before, after, mask.to(kind)).value
        if not isinstance(got, Tensor) or not is_close(got, expected):
            message = f"a mask of dtype {kind} must do as well as whole numbers"
            return [Finding("kind of mask", message, show(got), show(expected))]
    empty = mask == 0
    spoilt = before.masked_fill(empty, torch.inf), after.masked_fill(empty, torch.nan)
    got = call(*spoilt, mask).value
    if not isinstance(got, Tensor) or not is_close(got, expected):
        message = "at padding the losses may be infinite or NaN, and NaN times 0 is NaN: leave "
        return [Finding("garbage at padding", message + "those places out instead", show(got))]
    long = [t.repeat(1, 200).bfloat16() for t in (before, after)]
    wanted = rise_reference(long[0], long[1], mask.repeat(1, 200))
    got = call(*long, mask.repeat(1, 200)).value
    full = isinstance(got, Tensor) and got.dtype in (torch.float32, torch.float64)
    if not full or not is_close(got, wanted):
        message = "with bfloat16 losses the mean loses digits: convert them to float32 first"
        return [Finding("half precision", message, show(got), show(wanted))]
    got = call(*spoilt, mask * 0).value
    if not isinstance(got, Tensor) or not is_close(got, expected * 0):
        return [Finding("no token", "where no token counts the rise must be 0", show(got), "0")]
    return []


Curve = tuple[list[float], list[float]]


def _curve(seed: int, size: int) -> tuple[Curve, float]:
    """Losses along a training, and a level that the task loss crosses three times.

    It falls, dips below the level, climbs back over it and ends below; the other loss rises.
    """
    generator = torch.Generator().manual_seed(seed)

    def drawn(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    level = drawn(1.0, 2.0)
    high = [level + 0.7 + 0.5 * (3 + size % 4 - i) + drawn(0, 0.2) for i in range(3 + size % 4)]
    dip, bump = level - drawn(0.25, 0.4), level + drawn(0.1, 0.3)
    low = [level - depth - drawn(0, 0.04) for depth in (0.3, 0.1, 0.45, 0.6)[: 3 + size % 2]]
    task = [*high, dip, bump, *low]
    base = [drawn(0.5, 3.0)]
    for _ in task[1:]:
        base.append(base[-1] + drawn(0.1, 0.6))
    return (task, base), level


def forgotten_reference(
    task_losses: Sequence[float], base_losses: Sequence[float], level: float
) -> float | None:
    start = base_losses[0]
    points = list(zip(task_losses, base_losses, strict=True))
    if points[0][0] <= level:
        return 0.0
    for (high, x), (low, y) in itertools.pairwise(points):
        if low <= level:
            return ((level - low) * x + (high - level) * y) / (high - low) - start
    return None


def _known_forgotten(curve: Curve, level: float) -> dict[str, tuple[Tensor, str]]:
    """The values of the known mistakes on a curve that comes down to the level."""
    task, base = curve
    start, right = base[0], forgotten_reference(task, base, level)
    after = next(i for i, loss in enumerate(task) if loss <= level)
    last = max(i for i, loss in enumerate(task) if loss > level) + 1

    def between(i: int, j: int) -> float:
        share = (task[i] - level) / (task[i] - task[j])
        return base[i] + share * (base[j] - base[i]) - start

    above = min((i for i, loss in enumerate(task) if loss > level), key=lambda i: task[i])
    below = max((i for i, loss in enumerate(task) if loss <= level), key=lambda i: task[i])
    left, there = base[after - 1] - start, base[after] - start
    assert right is not None
    said = {
        "zero": (0.0, "you report 0 whatever the curve"),
        "sign": (-right, "the sign is flipped: what was forgotten is a rise, and positive"),
        "end of training": (base[-1] - start, "this is the forgetting at the end of training: "
                            "models that learnt more of the task seem to forget more. Read the "
                            "curve where the task loss is `level`"),
        "start not subtracted": (right + start, "this is the loss on the base's text, not its "
                                 "*rise* since the first measurement"),
        "point after": (there, "you take the first measurement at or below the level; draw a "
                        "straight line from the one before it"),
        "point before": (left, "you take the last measurement above the level; draw a straight "
                         "line to the next one"),
        "halfway": ((left + there) / 2, "you take the middle of the two measurements; where the "
                    "line reaches the level depends on the level"),
        "share reversed": (left + there - right, "your line runs the wrong way: close to the "
                           "higher task loss it must be close to that measurement's value"),
        "last crossing": (between(last - 1, last), "the task loss came down to the level more than "
                          "once; the *first* time counts"),
        "sorted": (between(above, below), "you sort the measurements by task loss before drawing "
                   "lines; a curve has an order, training's"),
        "line of the ends": (between(0, len(task) - 1), "you draw one line from start to end; the "
                             "measurements between them count"),
        "ratio": (right / start, "this is relative to the loss at the start; nats were asked for"),
    }  # fmt: skip
    return {name: (torch.tensor(v, dtype=torch.float64), text) for name, (v, text) in said.items()}


def _number(value: Any) -> Tensor | Finding:
    """A float, or a tensor of one number, as a tensor; else what is wrong with it."""
    if isinstance(value, Tensor) and value.shape == () and value.dtype.is_floating_point:
        return value.double()
    if isinstance(value, int | float) and not isinstance(value, bool):
        return torch.tensor(float(value), dtype=torch.float64)
    message = "forgotten_at must return a number here" + (
        "; it returned None, though the task loss came down to the level" if value is None else ""
    )
    return Finding("not a number", message, show(value), "a float")


def _untouched(outcome: Outcome, curve: Curve) -> Finding | None:
    if [list(a) if isinstance(a, list) else a for a in outcome.arguments[:2]] != list(curve):
        return Finding("in place", "your function changes the curve that it is given")
    return None


def check_forgotten(call: Call, seed: int, size: int) -> list[Finding]:
    """On a curve that crosses the level three times."""
    curve, level = _curve(seed, size)
    outcome = call.second(*curve, level)
    got = _number(outcome.value)
    if isinstance(got, Finding):
        return [got]
    expected = torch.tensor(forgotten_reference(*curve, level), dtype=torch.float64)
    fault = name_mistake(got, expected, _known_forgotten(curve, level))
    fault = fault or _untouched(outcome, curve)
    return [fault] if fault else []


def check_curve_edges(call: Call, seed: int, size: int) -> list[Finding]:
    """Never so low; there from the start; exactly on a measurement; flat; one measurement."""
    (task, base), level = _curve(seed, size)
    never, first = min(task) - 0.5, task[0]
    for curve, at in (((task, base), never), ((task[:1], base[:1]), level)):
        got = call.second(*curve, at).value
        if got is not None:
            message = "the task loss never came down to the level, so there is nothing to report: "
            return [Finding("never reached", message + "return None", show(got), "None")]
    cases = [
        ("level at the start", (task, base), first, "a level that the untrained model has already "
         "reached was reached with nothing forgotten: 0"),
        ("level at the start", (task, base), first + 1, "a level above the first measurement was "
         "reached with nothing forgotten: 0"),
        ("level at the start", (task[:1], base[:1]), first, "one measurement, at the level: 0"),
        ("on a measurement", (task[:3], base[:3]), task[1], "a level exactly on a measurement "
         "gives that measurement's value"),
        ("flat", ([task[0], task[1], task[1], task[2]], [*base[:4]]), task[1], "where the task "
         "loss stands still at the level, the first of these measurements counts"),
    ]  # fmt: skip
    for mistake, given, at, message in cases:
        expected = torch.tensor(forgotten_reference(*given, at), dtype=torch.float64)
        got = _number(call.second(*given, at).value)
        if isinstance(got, Finding):
            return [Finding(mistake, message, got.got, show(expected))]
        if not is_close(got, expected):
            return [Finding(mistake, message, show(got), show(expected))]
    return []


TASK = Task(
    set="01",
    name="forgetting",
    functions=("loss_rise", "forgotten_at"),
    checks=(
        Check("rise per token", 1, check_rise),
        Check("at equal task loss", 2, check_forgotten),
        Check("edges of the rise", 1, check_rise_edges),
        Check("edges of the curve", 1, check_curve_edges),
    ),
)
