"""Set 03: what a word more is worth to a reward model, quality being equal.

    length_bias(margins (N,), lengths (N,), quality (N,)) -> ()

The slope b of the least-squares fit margin ≈ a · quality + b · length without an intercept, all
three being differences between a pair's two answers (lengths: integers). By Frisch, Waugh and
Lovell: b = m · l̃ / l̃ · l̃ with l̃ what quality leaves of l. 0 where l̃ · l̃ <= 1e-6 l · l.
"""

import torch
from torch import Tensor

from course_utils.grading.call import Call
from course_utils.grading.checks import Check, Task
from course_utils.grading.finding import Finding, changed, is_close, name_mistake, show, wrong_type
from course_utils.grading.tasks.set_03._inputs import generator, told_apart, uniform


def _pairs(seed: int, size: int) -> tuple[Tensor, Tensor]:
    """Differences in length (N,) int64 and quality (N,); better answers tend to be longer."""
    g = generator(seed)
    N = 12 + 2 * size
    quality = torch.randn(N, generator=g) + 0.6  # the first is better more often than not
    lengths = (4 * quality + 5 * torch.randn(N, generator=g) + 2).round().long()
    lengths[:2] = torch.tensor([7, -3])
    return lengths, quality


def _inputs(seed: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The first scorer drawn on which every known mistake gives a slope of its own."""
    for attempt in range(200):
        margins, lengths, quality = _scorer(seed + 10_007 * attempt, size)
        expected = _slopes(margins, [quality, lengths])[1]
        if told_apart(expected, _known(margins, lengths, quality)):
            break
    return margins, lengths, quality


def _scorer(seed: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Margins of a scorer that likes length (or brevity), with noise; lengths; quality."""
    lengths, quality = _pairs(seed, size)
    g = generator(seed + 1)
    likes = uniform(0.15, 0.4, 1, g) * (-1) ** seed
    noise = 0.3 * torch.randn(len(quality), generator=g)
    return uniform(0.8, 2.0, 1, g) * quality + likes * lengths + noise, lengths, quality


def _slopes(margins: Tensor, columns: list[Tensor]) -> Tensor:
    """Least squares by the normal equations in float64: (len(columns),)."""
    x = torch.stack([c.double() for c in columns], dim=1)
    return torch.linalg.solve(x.T @ x, x.T @ margins.double())


def _known(m: Tensor, lengths: Tensor, q: Tensor) -> dict[str, tuple[Tensor, str]]:
    ones = torch.ones_like(q)
    m, l, q = m.double(), lengths.double(), q.double()  # noqa: E741
    a, b = _slopes(m, [q, l])
    left = l - q * (q @ l) / (q @ q)  # l̃
    rest = m - q * (q @ m) / (q @ q)
    partial = (rest @ left) / (rest.norm() * left.norm())
    flat = "you fit an intercept: which answer stands first is arbitrary, so with equal length and "
    flat += "quality the expected margin is 0"
    alone = "quality is not held constant: better answers are longer here, and a scorer that goes "
    alone += "by quality alone would look biased"
    return {
        "zero": (b * 0, "your length bias is 0 whatever the margins are"),
        "sign": (-b, "the sign is flipped: positive means that longer answers score higher"),
        "intercept": (_slopes(m, [ones, q, l])[2], flat),
        "quality ignored": ((m @ l) / (l @ l), alone),
        "quality ignored, intercept": (_slopes(m, [ones, l])[1], alone),
        "quality subtracted": (((m - q) @ l) / (l @ l), "you subtract quality from the margin as "
                               "if both had one unit; fit its slope along with that of length"),
        "quality's slope": (a, "that is the slope by quality; the one by length was asked for"),
        "correlation": (torch.corrcoef(torch.stack([m, l]))[0, 1], "that is a correlation, without "
                        "a unit and with quality not held constant; a slope was asked for"),
        "partial correlation": (partial, "that is a partial correlation; the slope, in reward per "
                                "word, was asked for"),
        "reversed": (_slopes(l, [q, m])[1], "you explain length by the margin; the margin is what "
                     "is to be explained"),
        "reversed, quality ignored": ((m @ l) / (m @ m), "you explain length by the margin; the "
                                      "margin is what is to be explained"),
        "half taken out": ((rest @ l) / (l @ l), "you take quality out of one side only; what it "
                           "shares with length must leave numerator and denominator"),
        "not divided": (rest @ left, "you do not divide: a sum of products grows with the number "
                        "of pairs"),
        "covariance": (rest @ left / len(l), "that is a covariance; divide by the variance of the "
                       "lengths that is left"),
    }  # fmt: skip


def check_value(call: Call, seed: int, size: int) -> list[Finding]:
    """The slope of a scorer with a habit, and that the inputs are left as they were."""
    margins, lengths, quality = _inputs(seed, size)
    outcome = call(margins, lengths, quality)
    expected = _slopes(margins, [quality, lengths])[1]
    fault = wrong_type(outcome.value, ()) or name_mistake(
        outcome.value, expected, _known(margins, lengths, quality), rtol=5e-4
    )
    given = {"margins": margins, "lengths": lengths, "quality": quality}
    fault = fault or changed(tuple(given), tuple(given.values()), outcome.arguments)
    return [fault] if fault else []


def check_fair(call: Call, seed: int, size: int) -> list[Finding]:
    """An unbiased scorer gets 0, a known habit is found, and the sides may be swapped."""
    lengths, quality = _pairs(seed, size)
    for habit in (0.0, 0.2):
        margins = 1.3 * quality + habit * lengths
        got = call(margins, lengths, quality).value
        fault = wrong_type(got, ())
        if not fault and not is_close(got, torch.tensor(habit), atol=2e-5):
            message = (
                "a scorer that goes by quality alone has no length bias, though better answers are "
                "longer: its slope must be 0"
                if habit == 0
                else "a scorer that adds 0.2 a word to quality has a slope of 0.2"
            )
            fault = Finding("not fair", message, show(got), f"{habit:g}")
        if fault:
            return [fault]
    margins, lengths, quality = _inputs(seed, size)
    side = torch.where(torch.rand(len(margins), generator=generator(seed + 2)) < 0.5, -1, 1)
    got = call(margins * side, lengths * side, quality * side).value
    expected = _slopes(margins, [quality, lengths])[1]
    if not isinstance(got, Tensor) or not is_close(got, expected, rtol=5e-4):
        message = "the slope changes when the two answers of some pairs are swapped"
        return [Finding("sides", message, show(got), show(expected))]
    return []


def check_undefined(call: Call, seed: int, size: int) -> list[Finding]:
    """Equal lengths, length that goes with quality exactly, equal quality, one pair."""
    margins, lengths, quality = _inputs(seed, size)
    zeros = torch.zeros_like(quality)
    alone = (margins.double() @ lengths.double()) / (lengths.double() @ lengths.double())
    one = torch.tensor([2.0])
    cases = (
        (margins, lengths * 0, quality, 0.0, "equal lengths", "where no pair differs in length "
         "nothing can be told of it: the bias is 0, not 0/0"),
        (margins, lengths, lengths * 0.3, 0.0, "collinear", "where length goes with quality "
         "exactly nothing is left that only length explains: the bias is 0 there"),
        (margins, lengths, zeros, float(alone), "equal quality", "where no pair differs in quality "
         "the slope is that of the margin on the length alone"),
        (one, torch.tensor([4]), zeros[:1], 0.5, "one pair", "with one pair of equal quality the "
         "slope is its margin for each word"),
        (margins, lengths * 0, zeros, 0.0, "nothing differs", "where pairs differ in neither "
         "length nor quality the bias is 0"),
    )  # fmt: skip
    for m, l, q, expected, mistake, message in cases:  # noqa: E741
        got = call(m, l, q).value
        # float32 leaves a little of a collinear length: a slope of it is huge, and ours is 0
        if not isinstance(got, Tensor) or not is_close(got, torch.tensor(expected), atol=1e-5):
            return [Finding(mistake, message, show(got), f"{expected:.6g}")]
    return []


TASK = Task(
    set="03",
    name="length-bias",
    functions=("length_bias",),
    checks=(
        Check("slope", 2, check_value),
        Check("fair to the fair", 1, check_fair),
        Check("nothing to tell", 1, check_undefined),
    ),
)
